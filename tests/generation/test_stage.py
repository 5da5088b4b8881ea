"""Whole shards through the random tiny model: same files whatever happens, everything on record."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from medsyn import disk, score, time_use
from medsyn.data.images.read import read_image
from medsyn.errors import InputError
from medsyn.generation import block_store, stage
from medsyn.generation import filter as rules
from medsyn.generation.block_store import Item
from medsyn.generation.sample import batch as sample_batch
from medsyn.generation.sample import load
from medsyn.generation.write import provenance
from medsyn.generation.write.provenance import Sources, require_same_environment
from medsyn.generation.write.webdataset import unpacked
from medsyn.models.device import Device
from medsyn.models.scorers import load_selector, save_scorer
from medsyn.models.scores import Card, Scores, Threshold
from medsyn.models.selector import Selector
from medsyn.stage import CampaignDirectory, Control, NoProgress, Saved, Task
from tests.helpers.generation_campaign import CPU, PROMPTS, Campaign, StopAfter
from tests.helpers.processes import fork, wait

# --- the same files whatever happens -------------------------------------------------------------------------------


def test_the_reference_has_every_kind_of_outcome(reference: Campaign) -> None:
    """Without retries, refusals and exhausted prompts the tests below would show little."""
    attempts = reference.read("attempts.jsonl", "filtered")
    manifest = reference.read("manifest.jsonl", "filtered")
    assert {record["reason"] for record in manifest} == {rules.ACCEPTED, rules.SKIPPED}
    assert {record["reason"] for record in attempts} >= {rules.SELECTOR_LOW, rules.OUTRANKED, None}
    assert len({record["attempts"] for record in manifest}) > 1


@pytest.mark.parametrize("ranges", [[(2, 3), (1, 2), (0, 1)], [(1, 3), (0, 2)]])
def test_shards_and_their_order_change_no_byte(
    campaign: Campaign, reference: Campaign, ranges: list[tuple[int, int]]
) -> None:
    for blocks in ranges:
        campaign.run(blocks=blocks)
    assert campaign.snapshot() == reference.snapshot()


def test_the_account_of_a_shard_knows_what_was_painted_used_and_kept(campaign: Campaign) -> None:
    account = time_use.open_account()
    try:
        with pytest.raises(Saved):
            campaign.run(control=StopAfter(7))
        campaign.run()
    finally:
        time_use.close_account()
    use, made = account.as_dict(), [campaign.read("manifest.jsonl", mode) for mode in ("baseline", "filtered")]
    assert use["used"] == sum(record["file"] is not None for records in made for record in records)
    tried = len(campaign.read("attempts.jsonl", "filtered")) + len(made[0])
    assert use["places"] >= tried
    assert use["places"] % campaign.config.generation.images_per_batch == 0
    assert use["unsaved"] < 0.05 * use["seconds"][time_use.PAINTING], "every batch is in a journal"
    assert min(use["seconds"][kind] for kind in (time_use.PAINTING, time_use.SCORING, time_use.LOADING)) > 0


def test_a_process_that_makes_several_shards_keeps_its_models_and_changes_no_byte(
    campaign: Campaign, reference: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    real = load.Loader.sampler
    monkeypatch.setattr(
        load.Loader, "sampler", lambda self, mode, *had: (loaded.append(mode), real(self, mode, *had))[1]
    )
    control = Control()
    for blocks in ((2, 3), (1, 2), (0, 1)):
        campaign.run(blocks=blocks, control=control)
    assert campaign.snapshot() == reference.snapshot()
    assert loaded == ["baseline", "filtered", "baseline", "filtered"]  # the next shard begins with what is loaded


def test_what_an_earlier_attempt_made_counts_as_done_and_not_into_the_rate(
    campaign: Campaign, reference: Campaign
) -> None:
    with pytest.raises(Saved):
        campaign.run(control=StopAfter(7))
    resumed = StopAfter(10**9)
    campaign.run(control=resumed)
    found, total = resumed.told[0][:2]
    assert found > 0
    assert (resumed.numbers[0]["worked"], resumed.numbers[-1]["worked"]) == (0, total - found)
    manifest = [record for mode in ("baseline", "filtered") for record in reference.read("manifest.jsonl", mode)]
    assert (resumed.told[-1][0], resumed.numbers[-1]["accepted"]) == (
        len(manifest),
        sum(record["accepted"] for record in manifest),
    )


def test_kill_9_at_any_moment_changes_no_byte(campaign: Campaign, reference: Campaign) -> None:
    timings = reference.directory.root.glob("work/generate/*/*/*/*/timing.json")
    whole = 1 + sum(disk.read_json(timing)["seconds"] for timing in timings)
    killed = 0
    for delay in np.random.default_rng(3).uniform(0.1, 0.8, 5) * whole:
        child = fork(campaign.run)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(wait(child))
        assert campaign.blocks().items() <= reference.snapshot().items(), "a reader sees whole blocks only"
    assert killed
    campaign.run()
    assert campaign.snapshot() == reference.snapshot()


@pytest.mark.parametrize("moment", ["write", "fsync", "syncfs", "rename", "renamed"])
def test_kill_9_inside_a_commit_changes_no_byte(
    campaign: Campaign, reference: Campaign, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    countdown = {"write": 3, "fsync": 5}.get(moment, 2)  # the first two fsync are those of made-with.json

    def fatal(real: Callable[..., Any], after: bool = False) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal countdown
            countdown -= 1
            if countdown == 0:
                if after:
                    real(*args, **kwargs)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        if moment == "write":
            patch.setattr(disk, "_write_new", fatal(disk._write_new))
        elif moment == "fsync":
            patch.setattr(disk, "_is_synced_as_a_whole", lambda place: False)
            patch.setattr(os, "fsync", fatal(os.fsync))
        elif moment == "syncfs":
            patch.setattr(disk, "_is_synced_as_a_whole", lambda place: True)
            patch.setattr(disk, "_sync_file_system", fatal(disk._sync_file_system))
        else:
            patch.setattr(Path, "rename", fatal(Path.rename, after=moment == "renamed"))
        status = wait(fork(campaign.run))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    left = [path for path in campaign.snapshot() if ".tmp-" in path]
    assert bool(left) == (moment != "renamed")
    campaign.run()
    assert campaign.snapshot() == reference.snapshot()


def test_two_processes_with_the_same_task_change_no_byte(campaign: Campaign, reference: Campaign) -> None:
    """A node that was given up may go on beside the task's second run."""
    children = [fork(campaign.run), fork(campaign.run)]
    statuses = [wait(child) for child in children]
    assert 0 in statuses, "the second to start is not disturbed by the first"
    assert campaign.snapshot() == reference.snapshot()


@pytest.mark.parametrize("beats", [1, 3, 8])
def test_a_stop_request_saves_whole_blocks_and_changes_no_byte(
    campaign: Campaign, reference: Campaign, beats: int
) -> None:
    with pytest.raises(Saved):
        campaign.run(control=StopAfter(beats))
    assert campaign.blocks().items() < reference.snapshot().items()
    campaign.run()
    assert campaign.snapshot() == reference.snapshot()


def test_progress_is_told_in_images_and_ends_at_the_total(campaign: Campaign) -> None:
    control = StopAfter(0)
    campaign.run(control=control)
    steps = [step for step, _, _ in control.told]
    assert {(total, unit) for _, total, unit in control.told} == {(16, "image")}, "2 modes x 4 prompts x 2 replicates"
    assert steps == sorted(steps) and steps[-1] == 16


@pytest.mark.parametrize("victim", ["ct-1_0.png", "attempts.jsonl", "manifest.jsonl"])
def test_a_full_disk_leaves_no_half_block(
    campaign: Campaign, reference: Campaign, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    real = disk._write_new

    def full(path: Path, content: bytes, sync: bool) -> None:
        if path.name == victim:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content, sync)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(disk, "_write_new", full)
        campaign.run()
    assert campaign.blocks().items() < reference.snapshot().items(), "whole blocks"
    assert not [path for path in campaign.snapshot() if ".tmp-" in path]
    campaign.run()
    assert campaign.snapshot() == reference.snapshot()


def test_a_damaged_block_is_made_again_to_the_same_bytes(campaign: Campaign, reference: Campaign) -> None:
    campaign.run()
    victim = next(campaign.block("filtered", 1).glob("*.png"))
    victim.write_bytes(victim.read_bytes()[:100])
    (campaign.block("baseline", 2) / "manifest.jsonl").unlink()
    campaign.run()
    assert campaign.snapshot() == reference.snapshot()


def test_what_is_there_is_left_alone_without_loading_a_model(
    campaign: Campaign, reference: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign.run(blocks=(0, 2))
    before = {path: path.stat().st_mtime_ns for path in campaign.directory.root.rglob("*.png")}

    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(load, "load_synthetic", forbidden)
    monkeypatch.setattr(load, "load_unet", forbidden)
    monkeypatch.setattr(load, "load_selector", forbidden)
    campaign.run(blocks=(0, 2))
    assert before == {path: path.stat().st_mtime_ns for path in campaign.directory.root.rglob("*.png")}


# --- one image ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def filtered(reference: Campaign) -> sample_batch.ImageSampler:
    return load.Loader(reference.config, "CT", reference.directory).sampler("filtered")


def test_companions_position_and_padding_change_no_bit_of_picture_or_score(filtered: sample_batch.ImageSampler) -> None:
    wanted = (Item("ct-1", "CT: nodule, left", 1), 3)
    others = [(Item(f"o-{i}", f"CT: {text}", 0), i) for i, text in enumerate(["normal", "effusion", "nodule, right"])]
    batches = [([wanted], 0), ([*others[:2], wanted], 2), ([others[2], wanted, others[0]], 1), ([others[1], wanted], 1)]
    results = []
    for batch, position in batches:
        made = filtered.sample(batch)
        assert len(made.candidates) == len(made.pictures) == len(batch), "padding is dropped"
        assert made.unet_evaluations == 3 * 2 * 2, "padding is computed: batch 3, guidance, 2 steps"
        results.append((made.candidates[position], made.pictures[position].tobytes()))
    assert len(set(results)) == 1


def test_an_image_depends_on_seed_prompt_replicate_and_attempt(filtered: sample_batch.ImageSampler) -> None:
    item = Item("ct-1", "CT: nodule, left", 0)
    others = [
        (item, 1),
        (Item("ct-1", item.prompt, 1), 0),
        (Item("ct-2", item.prompt, 0), 0),
    ]
    made = [picture.tobytes() for wanted in [(item, 0), *others] for picture in filtered.sample([wanted]).pictures]
    assert len(set(made)) == 4
    assert filtered.recipe.image_seed(item, 0) != replace(filtered.recipe, seed=1).image_seed(item, 0)
    assert filtered.recipe.image_seed(item, 0) == 5529676483254214139, "published seeds do not change between versions"


# --- the record -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["baseline", "filtered"])
def test_every_item_once_and_every_candidate_on_record(reference: Campaign, mode: str) -> None:
    manifest, attempts = reference.read("manifest.jsonl", mode), reference.read("attempts.jsonl", mode)
    recipe = sample_batch.Recipe.of(reference.config, "CT")
    asked = [(f"ct-{prompt}", replicate) for prompt in range(4) for replicate in range(2)]
    assert [(record["id"], record["replicate"]) for record in manifest] == asked
    for record in manifest:
        mine = [line for line in attempts if (line["id"], line["replicate"]) == (record["id"], record["replicate"])]
        item = Item(record["id"], record["prompt"], record["replicate"])
        assert [line["attempt"] for line in mine] == list(range(len(mine)))
        assert [line["seed"] for line in mine] == [recipe.image_seed(item, n) for n in range(len(mine))]
        assert sum(line["reason"] != rules.SURPLUS for line in mine) == record["attempts"]
        chosen = [line for line in mine if line["chosen"]]
        assert len(chosen) == (record["file"] is not None)
        for line in chosen:
            assert all(line[key] == record[key] for key in ("attempt", "seed", "selector", "policy"))


def test_the_filter_did_what_the_attempts_say(reference: Campaign) -> None:
    attempts = reference.read("attempts.jsonl", "filtered")
    for record in reference.read("manifest.jsonl", "filtered"):
        mine = [line for line in attempts if (line["id"], line["replicate"]) == (record["id"], record["replicate"])]
        passing = [line for line in mine[: record["attempts"]] if line["selector"] >= 0.61]
        assert record["accepted"] == bool(passing)
        assert len(passing) == 2 or record["attempts"] == 5, "stops at the second that passes, or when spent"
        if passing:
            assert record["policy"] == max(line["policy"] for line in passing)
        else:
            assert record["file"] is None and record["reason"] == rules.SKIPPED


def test_a_place_that_would_be_padding_is_an_early_attempt_and_on_record(campaign: Campaign) -> None:
    campaign.override(modes=["filtered"], num_candidates=1, quality_threshold=0.0).run(blocks=(2, 3))
    attempts = list(disk.read_jsonl(campaign.block("filtered", 2) / "attempts.jsonl"))
    surplus = disk.read_json(campaign.block("filtered", 2) / "timing.json")["surplus"]
    made = [(line["id"], line["replicate"], line["attempt"], line["reason"], line["chosen"]) for line in attempts]
    assert made == [("ct-3", 0, 0, None, True), ("ct-3", 1, 0, None, True)], "the same however batches are packed"
    assert [{**attempts[0], "reason": rules.SURPLUS, "chosen": False}.keys() == line.keys() for line in surplus] == [
        True
    ]
    assert [(line["id"], line["replicate"], line["attempt"]) for line in surplus] == [("ct-3", 0, 1)]


def test_the_baseline_has_the_pretrained_weights_attempt_0_and_no_scores(reference: Campaign) -> None:
    baseline, better = (reference.read("manifest.jsonl", mode) for mode in ("baseline", "filtered"))
    assert all(
        (r["attempt"], r["attempts"], r["selector"], r["reason"]) == (0, 1, None, "unfiltered") for r in baseline
    )
    assert {r["model_fingerprint"] for r in baseline}.isdisjoint({r["model_fingerprint"] for r in better})
    assert {r["config_fingerprint"] for r in baseline}.isdisjoint({r["config_fingerprint"] for r in better})


@pytest.mark.parametrize("mode", ["baseline", "filtered"])
def test_every_file_is_marked_grey_and_what_the_manifest_says(reference: Campaign, mode: str) -> None:
    listed = set()
    for number in range(3):
        block = reference.block(mode, number)
        for record in disk.read_jsonl(block / "manifest.jsonl"):
            if record["file"] is None:
                continue
            path = block / record["file"]
            listed.add(path)
            assert disk.sha256_file(path) == record["sha256"] and path.stat().st_size == record["bytes"]
            assert read_image(path).synthetic
            with Image.open(path) as image:
                assert image.mode == "L" and image.size == (record["width"], record["height"]) == (32, 32)
                assert image.text["Seed"] == str(record["seed"])  # type: ignore[attr-defined]
    assert listed == set(reference.block(mode).parent.parent.rglob("*.png")), "no file that the manifest does not name"


def test_fundus_is_written_in_colour(campaign: Campaign) -> None:
    campaign.override(modes=["baseline"]).run("Fundus")
    with Image.open(campaign.block("baseline", 0, "Fundus") / "fundus-0_1.png") as image:
        assert image.mode == "RGB"


def test_a_score_on_record_is_the_score_of_the_file(reference: Campaign, filtered: sample_batch.ImageSampler) -> None:
    """So a threshold can be applied again to what is on disk."""
    for number in range(3):
        block = reference.block("filtered", number)
        for record in disk.read_jsonl(block / "manifest.jsonl"):
            if record["file"] is not None:
                pixels = torch.from_numpy(read_image(block / record["file"]).pixels).permute(2, 0, 1)[None]
                assert filtered.selector is not None
                score = float(filtered.selector.score(pixels.expand(1, 3, -1, -1), "CT").score)
                assert score == pytest.approx(record["selector"], abs=1e-4)


def test_images_of_a_campaign_that_are_scored_again_get_the_scores_on_record(reference: Campaign) -> None:
    directory, blocks = reference.directory, reference.block("filtered").parent
    scorers = Sources(reference.config, "CT", directory).scorers()
    model = reference.config.model_paths.stable_diffusion
    selector, policy = (file.parent for file in scorers)
    scored = {Path(one.file).name: one for one in score(blocks, selector, policy, model=model, device="cpu")}
    for record in reference.read("manifest.jsonl", "filtered"):
        if record["file"] is not None:
            its = scored.pop(record["file"])
            assert (its.selector, its.policy, its.modality) == (record["selector"], record["policy"], "CT")
    assert scored == {}


def test_work_is_counted(reference: Campaign) -> None:
    for mode in ("baseline", "filtered"):
        made, batches, evaluations = 0, 0.0, 0
        for number in range(3):
            timing = disk.read_json(reference.block(mode, number) / "timing.json")
            made += sum(1 for _ in disk.read_jsonl(reference.block(mode, number) / "attempts.jsonl"))
            made += len(timing["surplus"])
            batches += timing["batches"]
            evaluations += timing["unet_evaluations"]
            assert timing["unet_evaluations"] == pytest.approx(timing["batches"] * 3 * 2 * 2, abs=2)
            assert mode == "filtered" or timing["batches"] == 1
            assert timing["seconds"] > 0 and timing["device"] == "cpu"
        whole = round(batches)
        assert batches == pytest.approx(whole), "the blocks' shares of a batch are a whole one together"
        assert evaluations == whole * 3 * 2 * 2
        assert 3 * (whole - 1) < made <= 3 * whole, "no place but the very last is padding"


def test_without_guidance_the_unet_does_half_the_work(campaign: Campaign) -> None:
    campaign.override(modes=["baseline"], guidance_scale=1.0).run(blocks=(0, 1))
    assert disk.read_json(campaign.block("baseline") / "timing.json")["unet_evaluations"] == 3 * 2


def test_models_are_loaded_once_and_prompts_embedded_once(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real_system, real_unet = load.load_synthetic, load.load_unet

    def system(*args: Any, **kwargs: Any) -> Any:
        calls.append("system")
        loaded = real_system(*args, **kwargs)
        loaded.text_encoder.register_forward_hook(lambda *_: calls.append("text encoder"))
        return loaded

    def unet(*args: Any, **kwargs: Any) -> Any:
        calls.append("unet")
        return real_unet(*args, **kwargs)

    monkeypatch.setattr(load, "load_synthetic", system)
    monkeypatch.setattr(load, "load_unet", unet)
    campaign.run()
    assert [call for call in calls if call != "text encoder"] == ["system", "unet", "unet"]
    assert calls.count("text encoder") == 4 + 1, "four prompts and the negative one"


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_exhausted_prompts_fail_by_name_with_their_record_on_disk(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = campaign.override(modes=["filtered"], quality_threshold=1.0, on_exhausted="fail", max_attempts=2)
    with pytest.raises(NoProgress, match=r"ct-0, ct-1(?!.*ct-0)"):
        strict.run(blocks=(0, 1))
    manifest = strict.read("manifest.jsonl", "filtered")
    assert {record["reason"] for record in manifest} == {rules.FAILED}
    assert len(strict.read("attempts.jsonl", "filtered")) == 3 * 2
    monkeypatch.setattr(load, "load_synthetic", None)
    with pytest.raises(NoProgress, match="ct-1"):
        strict.run(blocks=(0, 1))


def test_a_kept_best_is_written_but_not_accepted(campaign: Campaign) -> None:
    lenient = campaign.override(modes=["filtered"], quality_threshold=1.0, on_exhausted="keep-best", max_attempts=2)
    lenient.run(blocks=(0, 1))
    attempts = lenient.read("attempts.jsonl", "filtered")
    for record in lenient.read("manifest.jsonl", "filtered"):
        mine = [line for line in attempts if (line["id"], line["replicate"]) == (record["id"], record["replicate"])]
        assert record["accepted"] is False and record["reason"] == rules.KEPT_BEST
        assert record["selector"] == max(line["selector"] for line in mine)
        assert (lenient.block("filtered") / record["file"]).is_file()


def own(path: Path) -> Path:
    """A copy of a file in place of the link to it that leads into the shared inputs."""
    link = next((parent for parent in path.parents if parent.is_symlink()), None)
    if link is None:
        return path
    target = link.resolve()
    link.unlink()
    shutil.copytree(target, link)
    return path


def break_weights(path: Path) -> None:
    tensors = load_file(own(path))
    save_file({name: tensor * float("nan") for name, tensor in tensors.items()}, path)


def test_a_model_of_nan_makes_a_record_and_no_image(campaign: Campaign, recwarn: pytest.WarningsRecorder) -> None:
    break_weights(campaign.directory.finetuned_unet("CT") / "unet" / "diffusion_pytorch_model.safetensors")
    campaign.override(modes=["filtered"], on_exhausted="keep-best").run(blocks=(0, 1))
    attempts = campaign.read("attempts.jsonl", "filtered")
    assert len(attempts) == 3 * 5
    assert {(a["reason"], a["finite"], a["selector"], a["passed"]) for a in attempts} == {
        (rules.NON_FINITE, False, None, False)
    }
    assert not list(campaign.directory.root.rglob("generate/**/*.png"))
    assert not [warning for warning in recwarn if "invalid value" in str(warning.message)]


def test_a_scorer_of_nan_accepts_nothing(campaign: Campaign) -> None:
    break_weights(campaign.directory.selector("CT") / "model.safetensors")
    campaign.override(modes=["filtered"]).run(blocks=(0, 1))
    assert {record["reason"] for record in campaign.read("attempts.jsonl", "filtered")} == {rules.NON_FINITE}


def test_one_broken_candidate_costs_its_neighbours_nothing(
    campaign: Campaign, reference: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sample_batch.initial_noise
    broken = sample_batch.Recipe.of(campaign.config, "CT").image_seed(Item("ct-0", "", 1), 0)

    def one_broken(seeds: list[int], shape: tuple[int, int, int]) -> torch.Tensor:
        noise = real(seeds, shape)
        noise[[seed == broken for seed in seeds]] = float("inf")
        return noise

    monkeypatch.setattr(sample_batch, "initial_noise", one_broken)
    campaign.override(modes=["baseline"]).run(blocks=(0, 1))
    files = {record["id"] + str(record["replicate"]): record for record in campaign.read("manifest.jsonl", "baseline")}
    expected = list(disk.read_jsonl(reference.block("baseline") / "manifest.jsonl"))
    assert files["ct-01"]["file"] is None and files["ct-01"]["accepted"] is False
    assert files["ct-00"] == expected[0] and files["ct-10"] == expected[2]


@pytest.mark.parametrize(
    ("missing", "task"),
    [
        (lambda d: d.finetuned_unet("CT"), "finetune ct"),
        (lambda d: d.selector("CT"), "rlhf-stage2 ct"),
        (lambda d: d.policy("CT"), "rlhf-stage2 ct"),
    ],
)
def test_what_an_earlier_task_should_have_made_is_asked_for_before_any_work(
    campaign: Campaign, missing: Callable[[CampaignDirectory], Path], task: str
) -> None:
    shutil.rmtree(own(missing(campaign.directory) / "x").parent)
    with pytest.raises(InputError, match=task):
        campaign.run()
    assert campaign.snapshot() == {}


def say(selector: Path, **card: Any) -> None:
    """Give a Selector a card."""
    made = load_selector(selector, CPU)
    described = Selector(made.section, Card(**card))
    described.members = made.members
    for name in ("slope", "shift"):  # of every modality what it is of any
        getattr(described.calibration, name).fill_(getattr(made.calibration, name)[0])
    shutil.rmtree(own(selector / "config.json").parent)
    save_scorer(described, selector)


def test_an_automatic_threshold_is_the_selectors_own_of_the_modality_and_on_record(
    campaign: Campaign, reference: Campaign, tmp_path: Path
) -> None:
    found = {"CT": Threshold(threshold=0.61, good=9, poor=3), "Fundus": Threshold(threshold=0.0, good=9, poor=3)}
    for name in found:
        say(campaign.directory.selector(name), modalities=list(found), thresholds=found)
    auto = campaign.override(modes=["filtered"], quality_threshold="auto")
    auto.run(blocks=(0, 1))
    made, expected = auto.read("manifest.jsonl", "filtered"), reference.read("manifest.jsonl", "filtered")
    alike = ("id", "replicate", "reason", "attempt", "selector", "policy", "quality_threshold")
    for record, other in zip(made, expected, strict=False):
        assert {key: record[key] for key in alike} == {key: other[key] for key in alike}
    assert {record["quality_threshold"] for record in made} == {0.61}
    auto.run("Fundus")
    records = auto.read("manifest.jsonl", "filtered", "Fundus")
    assert {record["quality_threshold"] for record in records} == {0.0} and all(one["accepted"] for one in records)
    with Image.open(auto.block("filtered", 0, "Fundus") / records[0]["file"]) as image:
        assert image.text["Quality threshold"] == "0.0"  # type: ignore[attr-defined]
    say(campaign.directory.selector("CT"), modalities=["CT"], thresholds={"CT": found["Fundus"]})
    with pytest.raises(InputError, match="was made with a different quality_threshold"):
        auto.run(blocks=(0, 1))


def test_a_selector_without_a_threshold_for_a_modality_makes_nothing(campaign: Campaign) -> None:
    say(
        campaign.directory.selector("CT"),
        modalities=["MRI"],
        thresholds={"MRI": Threshold(threshold=1, good=9, poor=3)},
    )
    reason = r"selector: has no threshold of its own for CT \(it has some for MRI\): .*generation.quality_threshold"
    with pytest.raises(InputError, match=reason):
        campaign.override(quality_threshold="auto").run()
    assert campaign.snapshot() == {}


def test_spread_and_marks_are_on_record_of_every_candidate(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    def says(spread: float, unfamiliar: bool) -> Any:
        def scores(scorer: Any, pixels: torch.Tensor, *rest: Any) -> Scores:
            count = len(pixels)
            numbers = torch.full((count,), 0.75), torch.full((count,), spread)
            return Scores(*numbers, torch.full((count,), unfamiliar))

        return scores

    monkeypatch.setattr(sample_batch, "selector_scores", says(0.125, True))
    monkeypatch.setattr(sample_batch, "policy_scores", says(0.25, False))
    campaign.override(keep_rejected=1, num_candidates=2).run(blocks=(0, 1))
    rejected = block_store.rejected_directory(campaign.block("filtered"))
    manifest = campaign.read("manifest.jsonl", "filtered")
    for record in [*manifest, *campaign.read("attempts.jsonl", "filtered"), *block_store.read_rejected(rejected)]:
        assert (record["selector_spread"], record["policy_spread"], record["unfamiliar"]) == (0.125, 0.25, True)
    for record in campaign.read("manifest.jsonl", "baseline"):
        assert (record["selector_spread"], record["policy_spread"], record["unfamiliar"]) == (None, None, None)
    with Image.open(campaign.block("filtered") / manifest[0]["file"]) as image:
        assert image.text["Unfamiliar"] == "True"  # type: ignore[attr-defined]


def test_one_model_for_all_is_what_every_modality_is_made_with(campaign: Campaign) -> None:
    finetune = campaign.config.finetune.model_copy(update={"together": True})
    config, unets = campaign.config.model_copy(update={"finetune": finetune}), campaign.directory
    with pytest.raises(InputError, match="the task 'finetune all' makes it"):
        Campaign(config, unets).run(blocks=(0, 1))
    own(unets.finetuned_unet("CT") / "x").parent.parent.rename(unets.finetuned_unet("all").parent)
    for modality in PROMPTS:
        assert Sources(config, modality, unets).unet("filtered") == unets.finetuned_unet("all")
    Campaign(config, unets).override(modes=["filtered"]).run(blocks=(0, 1))
    assert Campaign(config, unets).read("manifest.jsonl", "filtered")


def test_the_policy_of_stage_1_is_used_where_there_is_no_stage_2(campaign: Campaign, reference: Campaign) -> None:
    shutil.rmtree(own(campaign.directory.policy("CT") / "x").parent.parent.parent)
    training = campaign.config.training.model_copy(update={"stage": 1})
    config = campaign.config.model_copy(update={"training": training})
    Campaign(config, campaign.directory).override(modes=["filtered"]).run(blocks=(0, 1))
    first = campaign.read("attempts.jsonl", "filtered")
    second = list(disk.read_jsonl(reference.block("filtered") / "attempts.jsonl"))
    assert first[0]["selector"] == second[0]["selector"] and first[0]["policy"] != second[0]["policy"]


@pytest.mark.parametrize("changed", [{"guidance_scale": 3.0}, {"batch_size": 4}, {"img_num": 1}, {"scheduler": "ddim"}])
def test_blocks_of_other_settings_are_refused_and_kept(campaign: Campaign, changed: dict[str, Any]) -> None:
    campaign.run(blocks=(0, 1))
    before = campaign.snapshot()
    with pytest.raises(InputError, match=r"config_fingerprint|prompts"):
        campaign.override(**changed).run(blocks=(0, 1))
    assert campaign.snapshot() == before


def test_settings_that_change_no_image_are_free(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign.run(blocks=(0, 1))
    monkeypatch.setattr(load, "load_synthetic", None)
    campaign.override(blocks_per_shard=99).run(blocks=(0, 1))


def test_blocks_of_another_model_are_refused(campaign: Campaign) -> None:
    campaign.run(blocks=(0, 1))
    path = own(campaign.directory.finetuned_unet("CT") / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(InputError, match="model_fingerprint"):
        campaign.run(blocks=(0, 1))


def test_a_plan_of_another_prompt_list_is_refused(campaign: Campaign) -> None:
    with pytest.raises(InputError, match="3 blocks of CT, but the task was planned for 4"):
        campaign.run(blocks=(2, 4))


def test_a_modality_without_prompts_is_done_at_once(campaign: Campaign) -> None:
    shutil.copytree(own(campaign.directory.finetuned_unet("CT") / "x").parent, campaign.directory.finetuned_unet("OCT"))
    campaign.override(modes=["baseline"]).run("OCT", (0, 0))
    assert campaign.snapshot() == {}


# --- what an item may ask for ---------------------------------------------------------------------------------------


def test_overrides_of_an_item_are_what_is_painted(reference: Campaign) -> None:
    plain = load.Loader(reference.config, "CT", reference.directory).sampler("baseline")
    item = Item("ct-1", "CT: nodule, left", 0, num_inference_steps=4, guidance_scale=2.0, negative_prompt="noise")
    recipe = replace(plain.recipe, num_inference_steps=4, guidance_scale=2.0, negative_prompt="noise")
    asked = Item("ct-1", "CT: nodule, left", 0)
    overridden, configured = plain.sample([(item, 1)]), replace(plain, recipe=recipe).sample([(asked, 1)])
    assert np.array_equal(overridden.pictures[0], configured.pictures[0])
    assert overridden.unet_evaluations == configured.unet_evaluations == 3 * 2 * 4
    assert not np.array_equal(overridden.pictures[0], plain.sample([(asked, 1)]).pictures[0])


def test_a_given_seed_takes_the_place_of_the_campaigns_and_the_prompts(reference: Campaign) -> None:
    recipe = sample_batch.Recipe.of(reference.config, "CT")
    one, other = Item("a", "CT: normal", 0, seed=5), Item("b", "CT: effusion", 0, seed=5)
    assert recipe.image_seed(one, 0) == replace(recipe, seed=9).image_seed(other, 0)
    seeds = {recipe.image_seed(Item("a", "", replicate, seed=5), attempt) for replicate in (0, 1) for attempt in (0, 1)}
    assert len(seeds) == 4


def test_shortcuts_save_calls_and_change_images(reference: Campaign) -> None:
    item = Item("ct-1", "CT: nodule, left", 0, num_inference_steps=10)
    evaluations, pictures = [], []
    for settings in ({}, {"deep_cache_every": 1, "text_attention_until": 1.0}, {"fast": True}):
        its = reference.override(guidance_scale=2.0, **settings)
        made = load.Loader(its.config, "CT", its.directory).sampler("baseline").sample([(item, 0)])
        evaluations.append(made.unet_evaluations)
        pictures.append(made.pictures[0])
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])
    assert evaluations[0] == evaluations[1] == 3 * 20 > 2 * evaluations[2]


@pytest.fixture
def preloaded(reference: Campaign, monkeypatch: pytest.MonkeyPatch) -> Campaign:
    """The reference's inputs, and its models loaded as in the process whose forks are its tasks."""
    monkeypatch.setattr(stage, "_preloaded", {})
    stage.preload(reference.config, Task("generate", 0, "x", "CT", None), reference.directory)
    assert list(stage._preloaded) == [(reference.directory.root, "CT")]
    return reference


def test_a_fork_takes_the_models_that_are_loaded_and_they_compute_the_same(
    preloaded: Campaign, filtered: sample_batch.ImageSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load.Loader, "sampler", lambda self, mode: pytest.fail("it loads"))
    config = preloaded.config.model_copy(deep=True)  # a task reads its own
    maker = stage._maker(config, "CT", preloaded.directory, Control())
    wanted = [(Item("ct-1", "CT: nodule, left", 0), 1)]
    made, expected = maker._sampler("filtered").sample(wanted), filtered.sample(wanted)
    assert np.array_equal(made.pictures[0], expected.pictures[0]) and made.candidates == expected.candidates
    assert maker.modes == list(maker.facts) and maker._sampler("baseline").selector is None


@pytest.mark.parametrize("difference", ["settings", "weights", "modality", "threads"])
def test_a_fork_that_would_load_something_else_loads_it(
    preloaded: Campaign, monkeypatch: pytest.MonkeyPatch, difference: str
) -> None:
    config, modality = preloaded.config, "CT"
    if difference == "settings":
        config = preloaded.override(guidance_scale=4.0).config
    elif difference == "weights":
        monkeypatch.setattr(provenance, "model_fingerprint", lambda *_: "other weights")
    elif difference == "modality":
        modality = "Fundus"
    else:  # how many there are is no matter: a fork sets them
        config = config.model_copy(update={"device": config.device.model_copy(update={"cpu_threads": 2})})
    maker = stage._maker(config, modality, preloaded.directory, Control())
    torch.set_num_threads(1)
    assert bool(maker._loaded) == (difference == "threads")
    assert maker.config is config and maker.loader.config is config


@pytest.mark.parametrize("room", [True, False])
def test_models_of_other_modalities_make_room_and_what_does_not_fit_is_not_loaded(
    preloaded: Campaign, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    needed = 2 * stage._weights_bytes(preloaded.config)
    free = iter([4 * needed - 1, 4 * needed]) if room else iter([0, 0])
    monkeypatch.setattr(stage.host_memory, "available", lambda: next(free))
    stage.preload(preloaded.config, Task("generate", 0, "x", "Fundus", None), preloaded.directory)
    assert [modality for _, modality in stage._preloaded] == (["Fundus"] if room else [])


def test_a_compiled_unet_is_on_record_and_what_samples(reference: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU that can compile; how it is compiled is shown elsewhere."""
    device = reference.config.device.model_copy(update={"compile": True})
    its = replace(reference, config=reference.config.model_copy(update={"device": device}))
    monkeypatch.setattr(load, "choose_device", lambda section: Device(CPU, torch.float32, (), section.compile))
    monkeypatch.setattr(load, "compiled", lambda unet: lambda rows, timestep, hidden: asked.append(1) or rows)
    asked: list[int] = []
    loader = load.Loader(its.config, "CT", its.directory)
    assert loader.facts("baseline")["attention"] == "sdpa, compiled UNet"
    loader.sampler("baseline").sample([(Item("ct-1", "CT: nodule, left", 0, num_inference_steps=4), 0)])
    assert len(asked) == 4
    made = its.directory.work("generate", "made-with.json")
    with pytest.raises(InputError, match="compiled UNet"):
        require_same_environment(made, loader.facts("baseline"), keep=False)


def test_items_of_several_kinds_in_one_block_are_painted_as_each_alone(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [
        Item("a", "CT: normal", 0, num_inference_steps=3),
        Item("b", "CT: normal", 0),
        Item("c", "CT: normal", 0, guidance_scale=1.0),
        Item("d", "CT: normal", 0, num_inference_steps=3, negative_prompt="noise", extra={"site": "left"}),
    ]
    only = campaign.override(modes=["baseline"], batches_per_block=2)
    monkeypatch.setattr(block_store.Blocks, "items", lambda self, number: items)
    only.run(blocks=(0, 1))
    manifest = only.read("manifest.jsonl", "baseline")
    assert [record["id"] for record in manifest] == ["a", "b", "c", "d"] and manifest[3]["extra"] == {"site": "left"}
    alone = load.Loader(only.config, "CT", only.directory).sampler("baseline")
    for item, record in zip(items, manifest, strict=True):
        pixels = np.rint(read_image(only.block("baseline") / record["file"]).pixels * 255).astype(np.uint8)
        assert np.array_equal(pixels, alone.sample([(item, 0)]).pictures[0])
    assert disk.read_json(only.block("baseline") / "timing.json")["batches"] == 3


@pytest.mark.parametrize(("output", "batches_per_block"), [("png", 4), ("webdataset", 2)])
def test_neither_a_tar_nor_a_larger_block_changes_an_image(
    campaign: Campaign, reference: Campaign, output: str, batches_per_block: int
) -> None:
    campaign.override(output=output, batches_per_block=batches_per_block, keep_rejected=1).run()

    def records(its: Campaign) -> list[tuple[Path, dict[str, Any]]]:
        found = sorted(its.block("filtered").parent.iterdir())
        return [(block, record) for block in found for record in disk.read_jsonl(block / "manifest.jsonl")]

    made, expected = records(campaign), records(reference)
    assert len({block for block, _ in made}) < len({block for block, _ in expected})
    for (block, record), (other, original) in zip(made, expected, strict=True):
        assert unpacked(record, original["file"]) == original
        if record["file"] is not None:
            assert block_store.read_image_bytes(block, record) == (other / original["file"]).read_bytes()
    rejected = [block_store.rejected_directory(block) for block in dict.fromkeys(block for block, _ in made)]
    kept = [(folder, record) for folder in rejected for record in block_store.read_rejected(folder)]
    assert len(kept) > 3 and all(block_store.read_image_bytes(folder, record) for folder, record in kept)
    assert {record.get("archive") for _, record in kept} == {"images.tar" if output == "webdataset" else None}


def test_an_end_between_the_rejected_candidates_and_their_block_changes_neither(
    campaign: Campaign, reference: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    class End(Exception): ...

    def end(block: Path, content: block_store.BlockContent) -> None:
        if block == campaign.block("filtered"):
            raise End
        block_store.commit_block(block, content)

    keeping = campaign.override(keep_rejected=1)
    with monkeypatch.context() as patch, pytest.raises(End):
        patch.setattr("medsyn.generation.make.block.commit_block", end)
        keeping.run(blocks=(0, 1))
    folder = block_store.rejected_directory(campaign.block("filtered"))
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert before and not campaign.block("filtered").exists()
    disk.temporary_sibling(folder).mkdir()
    keeping.run()
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()} == before
    assert list(folder.parent.glob(".*")) == []
    outputs = {path: value for path, value in keeping.snapshot().items() if "/rejected/" not in path}
    assert outputs == reference.snapshot()


def test_too_little_memory_says_what_to_set(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(sample_batch.ImageSampler, "sample", full)
    with pytest.raises(InputError, match=r"generation.batch_size: a batch of 3 does not fit .*: set it to 1"):
        campaign.run()
