from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trial import Trial

from medsyn.campaign.records import Campaign
from medsyn.campaign.slurm import check, container
from medsyn.campaign.slurm.site import Site
from medsyn.config import Config, ModelPathsSection
from medsyn.errors import InputProblems


@pytest.fixture
def campaign(trial: Trial) -> Campaign:
    return trial.prepare()


def site(image: Path, **values: Any) -> Site:
    return Site.model_validate({"container": {"image": str(image)}, **values})


def words(campaign: Campaign, profile: Site, stage: str = "finetune") -> list[str]:
    environment = container.task_environment(profile, campaign)
    return container.python(profile, campaign, profile.resources(stage), environment).split()


def test_driver_is_bound_for_jobs_that_ask_for_a_gpu_and_for_no_other(campaign: Campaign, tmp_path: Path) -> None:
    image = tmp_path / "image.sif"
    assert "--nv" in words(campaign, site(image, gres="gpu:titanxp:1"))
    assert "--nv" in words(campaign, site(image, sbatch={"gpus_per_node": 1}))
    assert "--nv" not in words(campaign, site(image, gres="gpu:1"), "gate")
    assert "--nv" not in words(campaign, site(image))
    assert "--nv" in words(campaign, Site.model_validate({"container": {"image": str(image), "nv": True}}))


def test_variables_of_the_site_win_over_the_image_and_those_of_the_container_over_both(
    campaign: Campaign, tmp_path: Path
) -> None:
    profile = Site.model_validate(
        {
            "environment": {"HF_HOME": "/scratch/hf", "OMP_NUM_THREADS": 4},
            "container": {"image": str(tmp_path / "image.sif"), "environment": {"HF_HOME": "/inner"}},
        }
    )
    given = words(campaign, profile)
    assert {"HF_HOME=/inner", "OMP_NUM_THREADS=4", "PYTHONNOUSERSITE=1", "PYTHONPATH=", "PYTHONHOME="} <= {
        word.strip("'") for word in given
    }
    assert "HF_HOME=/scratch/hf" not in given
    assert "OMP_NUM_THREADS=1" in words(campaign, site(tmp_path / "image.sif"))


def test_campaign_data_and_cache_are_bound_where_they_are(campaign: Campaign, tmp_path: Path) -> None:
    cache = tmp_path / "hf"
    profile = site(tmp_path / "image.sif", environment={"HF_HOME": str(cache)})
    folders = {str(campaign.directory.root), str(tmp_path / "data")}
    assert set(container.binds(campaign, profile)) == folders  # apptainer refuses to bind what is not there
    cache.mkdir()
    assert set(container.binds(campaign, profile)) == folders | {str(cache)}


def test_cache_that_the_submitter_names_reaches_the_inside(
    campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    other.mkdir()
    monkeypatch.setenv("HF_HOME", str(mine))
    given = words(campaign, site(tmp_path / "image.sif"))
    assert {str(mine), f"HF_HOME={mine}"} <= set(given)
    given = words(campaign, site(tmp_path / "image.sif", environment={"HF_HOME": str(other)}))
    assert {str(other), f"HF_HOME={other}"} <= set(given)  # the site's wins
    assert str(mine) not in given


def test_weights_of_a_hub_id_and_targets_of_links_are_bound(
    campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub's snapshot is links into the repository's blobs: both must be there inside."""
    repository = tmp_path / "hf" / "hub" / "models--somebody--diffusion"
    snapshot, blob = repository / "snapshots" / "abc", repository / "blobs" / "123"
    for folder in (snapshot, blob.parent, repository / "refs"):
        folder.mkdir(parents=True)
    blob.write_text("{}")
    (repository / "refs" / "main").write_text("abc")
    (snapshot / "model_index.json").symlink_to("../../blobs/123")

    def bound(source: str) -> set[str]:
        config = campaign.config.model_copy(update={"model_paths": ModelPathsSection(stable_diffusion=source)})
        return set(container.binds(replace(campaign, config=config), site(tmp_path / "image.sif")))

    without = bound("embedded")
    assert bound(str(snapshot)) - without == {str(snapshot), str(blob.parent)}
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    assert bound("somebody/diffusion") - without == {str(tmp_path / "hf" / "hub")}
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "hf").rename(tmp_path / ".cache" / "huggingface")
    moved = tmp_path / ".cache" / "huggingface" / "hub" / repository.name
    assert bound("somebody/diffusion") - without == {str(moved)}


def test_image_is_named_by_its_hash_and_hashed_again_only_when_it_changed(campaign: Campaign, tmp_path: Path) -> None:
    image = tmp_path / "image.sif"
    image.write_bytes(b"one")

    def named() -> str:
        return str(container.task_environment(site(image), campaign)[container.IMAGE_VARIABLE])

    assert named() == f"sha256:{hashlib.sha256(b'one').hexdigest()}"
    status = image.stat()
    image.write_bytes(b"two")
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert named() == f"sha256:{hashlib.sha256(b'one').hexdigest()}"
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert named() == f"sha256:{hashlib.sha256(b'two').hexdigest()}"


def test_image_of_a_registry_and_that_of_pyxis_are_known_too(campaign: Campaign, tmp_path: Path) -> None:
    remote = Site.model_validate({"container": {"image": "docker://example.org/medsyn@sha256:12"}})
    told = container.task_environment(remote, campaign)
    assert told[container.IMAGE_VARIABLE] == "docker://example.org/medsyn@sha256:12"
    image = tmp_path / "medsyn.sqsh"
    image.write_bytes(b"three")
    pyxis = Site.model_validate({"srun": [f"--container-image={image}"], "environment": {"A": "b"}})
    told = container.task_environment(pyxis, campaign)
    assert told[container.IMAGE_VARIABLE] == f"sha256:{hashlib.sha256(b'three').hexdigest()}"
    assert (told["A"], told["PYTHONPATH"], told["PYTHONSAFEPATH"]) == ("b", "", "1")
    assert container.task_environment(Site(), campaign) == {}


@pytest.mark.parametrize("option", ["--cleanenv", "-e", "--containall", "-C"])
def test_options_that_hide_what_slurm_says_are_refused(option: str, tmp_path: Path) -> None:
    from medsyn.campaign.slurm import site as profiles

    path = tmp_path / "site.yaml"
    path.write_text(f"container: {{image: /image.sif, options: [{option}]}}\n")
    with pytest.raises(InputProblems, match="hides the SLURM_"):
        profiles.load(str(path))


def test_paths_that_cannot_be_bound_are_refused(tmp_path: Path) -> None:
    image, profile, table = tmp_path / "image.sif", tmp_path / "site.yaml", tmp_path / "a,b" / "metadata.csv"
    image.touch()
    table.parent.mkdir()
    table.touch()
    profile.write_text(f"container: {{image: {image}, runtime: no-such-runtime}}\n")
    values = {"campaign": {"dir": str(tmp_path / "10:30")}, "data": {"table": str(table)}}
    config = Config.model_validate({**values, "cluster": {"site": str(profile)}})
    found = {problem.key for problem in check.problems(config, asks_slurm=False) if problem.severity == "error"}
    assert found == {"campaign.dir", "data.table"}
    profile.write_text("partition: gpu\n")
    assert not [problem for problem in check.problems(config, asks_slurm=False) if problem.severity == "error"]
