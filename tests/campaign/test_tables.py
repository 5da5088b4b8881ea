from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from medsyn.campaign.state.campaign_file import Campaign, open_campaign
from medsyn.campaign.tables import read_attempts, read_manifest, table_folders
from medsyn.data.images.read import read_image
from medsyn.errors import InputError
from medsyn.records import AttemptRecord, ImageRecord, columns
from tests.helpers.generated_campaign import generated_campaign


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return generated_campaign(tmp_path_factory.mktemp("tables") / "tiny")


def test_the_manifest_has_every_image_and_finds_its_file(campaign: Campaign) -> None:
    frame = read_manifest(campaign.directory.root)
    assert list(frame.columns) == [*columns(ImageRecord), "finding"]
    assert frame.groupby(["mode", "modality"]).size().to_dict() == {
        (mode, modality): images for mode in ("baseline", "filtered") for modality, images in (("MRI", 8), ("X-Ray", 4))
    }
    for row in frame.itertuples():
        assert read_image(str(row.file)).pixels.shape[:2] == (row.height, row.width)


def test_numbers_keep_all_their_digits_where_some_are_missing(campaign: Campaign) -> None:
    frame = read_manifest(campaign.directory.root)
    assert (str(frame["seed"].dtype), str(frame["accepted"].dtype)) == ("Int64", "boolean")
    attempts = read_attempts(campaign.directory.root)
    assert list(attempts.columns) == list(columns(AttemptRecord))
    chosen = attempts[attempts["chosen"]].set_index(["mode", "id", "replicate"])["seed"]
    images = frame.set_index(["mode", "id", "replicate"])["seed"]
    pd.testing.assert_series_equal(chosen.sort_index(), images.sort_index())


def test_what_is_there_of_a_running_campaign_is_read_and_the_rest_told(campaign: Campaign, tmp_path: Path) -> None:
    root = tmp_path / "moved"
    shutil.copytree(campaign.directory.root, root)
    folders = table_folders(open_campaign(root))
    shutil.rmtree(folders[0])
    rows = read_manifest(open_campaign(root))
    assert len(rows) < 24 and rows["file"].str.startswith(str(root)).all()
    (folders[1] / "manifest.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"manifest.parquet: damaged"):
        read_manifest(str(root))
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    with pytest.raises(InputError, match="no task has made its images yet"):
        read_manifest(root)
    with pytest.raises(InputError, match="not a campaign's directory"):
        read_attempts(tmp_path)
