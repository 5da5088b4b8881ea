from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medsyn import disk
from medsyn.config import load, validate
from medsyn.data.tables.read import read_dataset
from medsyn.data.tables.split import hold_out
from medsyn.evaluation import generated, read_campaign
from medsyn.rating.sessions import SESSIONS_TABLE, write_sessions
from medsyn.stage import Saved
from tests.helpers.paths import ROOT
from tests.helpers.synthetic_campaign import Builder, write_csv


def nothing() -> None:
    pass


def read(builder: Builder) -> read_campaign.Gathered:
    return read_campaign.gather(builder.config, builder.directory, nothing)


def missing(builder: Builder) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for part in read(builder).missing:
        found.setdefault(part.task, []).append(part.what)
    return found


def test_a_whole_campaign_misses_nothing(whole: Builder) -> None:
    gathered = read(whole)
    assert gathered.missing == []
    assert gathered.modalities == ["OCT", "CT"]
    assert len(gathered.made["CT"]["baseline"].pictures) == 3
    assert len(gathered.made["CT"]["filtered"].pictures) == 2, "one prompt is exhausted"


def test_an_empty_directory_misses_everything_by_task_name(builder: Builder) -> None:
    builder.tables()
    assert missing(builder) == {
        "finetune oct": ["the fine-tuned UNet of OCT"],
        "finetune ct": ["the fine-tuned UNet of CT"],
        "rlhf-stage1 all": ["the Selector and the Policy"],
        "rlhf-stage2 oct": ["the Policy of OCT"],
        "rlhf-stage2 ct": ["the Policy of CT"],
        "generate oct-00000": ["2 baseline images of OCT", "2 filtered images of OCT"],
        "generate oct-00001": ["1 baseline image of OCT", "1 filtered image of OCT"],
        "generate ct-00000": ["2 baseline images of CT", "2 filtered images of CT"],
        "generate ct-00001": ["1 baseline image of CT", "1 filtered image of CT"],
    }


def test_each_volume_of_a_file_is_a_real_image(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 999, (20, 20, 3, 2)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "mri.nii")
    rows = "".join(f"mri.nii,MRI: contrast {number},MRI,{number}\n" for number in (1, 2, 2))
    (tmp_path / "data.csv").write_text(f"path,Text,modality,volume\n{rows}")
    config = validate({"data": {"table": str(tmp_path / "data.csv"), "modalities": ["MRI"]}}, "test")
    real, missing = read_campaign.read_real(config, nothing)
    assert missing == [] and real.counts == {"MRI": 2} and real.unreadable == 0


def test_a_missing_block_is_named_by_the_shard_that_owns_it(builder: Builder) -> None:
    builder.everything()
    shutil.rmtree(builder.directory.block("filtered", "CT", 1))
    assert missing(builder) == {"generate ct-00001": ["1 filtered image of CT"]}


def test_the_owner_is_the_shard_that_the_campaign_recorded(builder: Builder) -> None:
    builder.everything()
    disk.write_json(builder.directory.campaign_file, {"blocks_per_shard": {"CT": 2, "OCT": 1}})
    for modality in ("CT", "OCT"):
        shutil.rmtree(builder.directory.block("filtered", modality, 1))
    assert missing(builder) == {
        "generate ct-00000": ["1 filtered image of CT"],
        "generate oct-00001": ["1 filtered image of OCT"],
    }


def test_a_block_that_lost_an_image_is_missing_not_an_error(builder: Builder) -> None:
    builder.everything()
    next(builder.directory.block("baseline", "OCT", 0).glob("*.png")).unlink()
    assert missing(builder) == {"generate oct-00000": ["2 baseline images of OCT"]}


def test_blocks_beyond_the_prompt_list_are_not_read(builder: Builder) -> None:
    builder.everything()
    stale = builder.directory.block("filtered", "CT", 7)
    shutil.copytree(builder.directory.block("filtered", "CT", 0), stale)
    assert read(builder).made["CT"]["filtered"].tally.requested == 3


def test_stage_2_is_not_missed_where_it_was_not_asked_for(tmp_path: Path) -> None:
    builder = Builder(tmp_path, overrides={"training": {"stage": 1}}).everything()
    for modality in builder.modalities:
        shutil.rmtree(builder.directory.policy(modality))
    assert missing(builder) == {}


def test_the_split_is_that_of_training_by_patient(whole: Builder) -> None:
    real = read(whole).real
    rows = read_dataset(whole.data / "metadata.csv").rows
    is_held_out = hold_out(rows, 0.4, 0)
    assert len(real.held_out) == sum(map(is_held_out, rows)) == 2 * round(0.4 * whole.images_per_kind)
    assert len(real.training) == len(rows) - len(real.held_out)
    assert real.patients_known


def test_an_unreadable_image_is_counted_and_not_an_error(builder: Builder) -> None:
    builder.everything()
    (builder.data / "oct-000.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    gathered = read(builder)
    assert gathered.real.unreadable == 1
    assert len(gathered.real.held_out) + len(gathered.real.training) == 23


def test_a_data_set_that_is_gone_is_missing(builder: Builder) -> None:
    builder.everything()
    (builder.data / "metadata.csv").unlink()
    assert missing(builder) == {"the data set": ["its table cannot be read"]}


def test_a_modality_without_images_is_said(tmp_path: Path) -> None:
    builder = Builder(tmp_path, overrides={"data": {"modalities": ["OCT", "CT", "Fundus"]}})
    builder.everything()
    builder.models()
    assert missing(builder)["the data set"] == ["it has no images of Fundus"]


def test_one_file_in_two_rows_is_one_image(builder: Builder) -> None:
    builder.tables()
    rows = [("oct-000.png", "OCT: one text", "OCT"), ("oct-000.png", "OCT: another text", "OCT")]
    write_csv(builder.data / "metadata.csv", ("path", "Text", "modality"), rows)
    real = read(builder).real
    assert [picture.text for picture in real.held_out + real.training] == ["OCT: one text"]
    assert not real.patients_known


def test_large_sets_are_sampled_the_same_way_whatever_their_order(tmp_path: Path) -> None:
    builder = Builder(tmp_path, overrides={"evaluation": {"max_images": 3}})
    builder.tables()
    first = read(builder).real
    header, *rows = (builder.data / "metadata.csv").read_text().splitlines()
    (builder.data / "metadata.csv").write_text("\n".join([header, *reversed(rows)]) + "\n")
    second = read(builder).real
    assert len(first.training) == 6 and first.left_out > 0
    assert {one.pixels.tobytes() for one in first.training} == {one.pixels.tobytes() for one in second.training}


def test_of_many_images_all_are_counted_and_a_fixed_sample_is_looked_at(tmp_path: Path) -> None:
    def made(folder: str, **evaluation: int) -> generated.GeneratedImages:
        builder = Builder(tmp_path / folder, prompts_per_kind=9, overrides={"evaluation": evaluation})
        builder.tables()
        builder.blocks("baseline", "CT")
        return read(builder).made["CT"]["baseline"]

    everything, some, again = made("all"), made("some", max_images=4), made("again", max_images=4)
    assert (everything.tally.accepted, some.tally.accepted) == (9, 9)
    assert (len(everything.pictures), len(some.pictures), everything.left_out, some.left_out) == (9, 4, 0, 5)
    whole, sample, same = ([one.pixels.tobytes() for one in made.pictures] for made in (everything, some, again))
    assert sample == same and sample == [pixels for pixels in whole if pixels in sample], "in the prompts' order"
    assert sample != whole[:4], "not simply the first"
    assert set(some.shown) == set(everything.shown) and all(picture for _, picture in some.shown.values())


def test_surplus_attempts_are_not_counted(whole: Builder) -> None:
    counted = read(whole).made["CT"]["filtered"].tally
    assert counted.attempts == 2 + 6 + 2
    assert counted.passed == counted.passed_scores.sum() == 2 and counted.rejected_scores.sum() == 8


def test_pictures_keep_their_place_with_replicates(tmp_path: Path) -> None:
    builder = Builder(tmp_path, prompts_per_kind=2, overrides={"generation": {"img_num": 3}}).everything()
    made = read(builder).made["OCT"]["baseline"]
    assert len(made.pictures) == 6
    assert [picture.text for picture in made.pictures[:3]] == [made.pictures[0].text] * 3
    assert {name: line["replicate"] for name, (line, _) in made.shown.items()} == {"oct-0": 0, "oct-1": 0}
    assert missing(builder) == {}


def test_a_picture_keeps_one_channel_of_a_grey_image_and_gives_all_three() -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    grey = np.repeat(colour[..., :1], 3, axis=2)
    for pixels, channels in ((grey, 1), (colour, 3)):
        kept = generated.picture(pixels, "CT", "CT: x")
        assert kept.stored.shape[2] == channels
        assert np.array_equal(kept.pixels, pixels)


def test_asked_to_stop_it_stops_at_the_next_image(whole: Builder) -> None:
    calls = 0

    def tick() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Saved

    with pytest.raises(Saved):
        read_campaign.gather(whole.config, whole.directory, tick)
    assert calls == 5


def test_a_step_that_was_done_twice_counts_once_and_a_torn_line_not_at_all(builder: Builder) -> None:
    path = builder.directory.work("finetune", "ct") / "metrics.jsonl"
    for step, loss in ((1, 0.9), (2, 0.8), (3, 0.7), (2, 0.5), (3, 0.4)):
        disk.append_jsonl(path, {"step": step, "loss": loss})
    with path.open("a") as stream:
        stream.write('{"step": 4, "lo')
    curve = read_campaign.read_curves(builder.config, builder.directory).finetune["CT"]
    assert list(curve.loss.items()) == [(1, 0.9), (2, 0.5), (3, 0.4)]


def test_one_model_for_all_is_looked_for_where_it_is_made(builder: Builder) -> None:
    finetune = builder.config.finetune.model_copy(update={"together": True})
    config, directory = builder.config.model_copy(update={"finetune": finetune}), builder.directory
    missing = [one for one in read_campaign.missing_models(config, directory) if "UNet" in one.what]
    assert missing == [read_campaign.Missing("finetune all", "the fine-tuned UNet of all modalities")]
    disk.append_jsonl(directory.work("finetune", "all") / "metrics.jsonl", {"step": 1, "loss": 0.5})
    disk.make_directory(directory.finetuned_unet("all") / "unet")
    assert list(read_campaign.read_curves(config, directory).finetune) == ["all modalities"]
    assert not any("UNet" in one.what for one in read_campaign.missing_models(config, directory))


def test_curves_that_are_not_there_are_left_out(builder: Builder) -> None:
    curves = read_campaign.read_curves(builder.config, builder.directory)
    assert (curves.finetune, len(curves.stage1), curves.stage2) == ({}, 0, {})


def test_killed_attempts_are_counted_and_cost_no_invented_seconds(builder: Builder) -> None:
    path = builder.directory.attempts("finetune", "ct")
    for event, attempt, time in (("start", 1, 10.0), ("start", 2, 50.0), ("end", 2, 57.5), ("start", 3, 60.0)):
        disk.append_jsonl(path, {"event": event, "attempt": attempt, "time": time})
    (times,) = read_campaign.stage_times(builder.directory)
    assert (times.stage, times.tasks, times.attempts, times.unfinished, times.seconds) == ("finetune", 1, 3, 2, 7.5)


@pytest.mark.parametrize(("ratings", "is_known"), [("expert.csv", True), ("other.csv", False)])
def test_answers_are_those_of_the_campaigns_own_ratings(tmp_path: Path, ratings: str, is_known: bool) -> None:
    """Beside one table may lie the sessions of another."""
    write_sessions(tmp_path / SESSIONS_TABLE, [], "expert.csv")
    config = load(ROOT / "configs" / "tiny.yaml", [f"data.ratings_file={tmp_path / ratings}"], environment={})
    assert (read_campaign.read_agreement(config) is not None) == is_known
