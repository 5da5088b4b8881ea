from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medsyn import config as configuration
from medsyn import disk
from medsyn.campaign.estimate import architecture, cost, memory
from medsyn.campaign.estimate.cost import Estimate, TaskCost
from medsyn.campaign.estimate.workload import Volume
from medsyn.campaign.plan import capacity, inputs, show
from medsyn.campaign.tasks import build
from medsyn.config import Config
from medsyn.errors import Problem
from medsyn.text import GIB
from tests.helpers.paths import ROOT
from tests.helpers.trial import Trial

COUNTS = {"images": {"CT": 1000}, "rated images": {"CT": 400}, "ratings": {"CT": 800}, "prompts": {"CT": 100}}
HOUR = 3600


def config(name: str = "sd15-pascal", **changes: Any) -> Config:
    """A configuration of the repository, of CT alone in batches of 4; `section__key` changes a value."""
    sizes = {"generation__batch_size": 4, "generation__batches_per_block": 4}
    overrides = [f"{key.replace('__', '.')}={value!s}" for key, value in {**sizes, **changes}.items()]
    return configuration.load(ROOT / "configs" / f"{name}.yaml", ["data.modalities=[CT]", *overrides], environment={})


def estimate(settings: Config, counts: Mapping[str, Mapping[str, int]] = COUNTS, on_gpu: bool = True) -> Estimate:
    """What the campaign costs, its blocks in shards of the configuration's size or all of a modality in one."""
    counts = with_asked(settings, counts)
    asked, sizes = counts["asked"], {}
    for name, n in asked.items():
        sizes[name] = settings.generation.blocks_per_shard or n
    return cost.estimate(settings, build(settings, {name: [n] for name, n in asked.items()}, sizes), counts, on_gpu)


def with_asked(settings: Config, counts: Mapping[str, Mapping[str, int]] = COUNTS) -> dict[str, Mapping[str, int]]:
    """The counts with the images that are asked for: as many of each prompt as the configuration says."""
    return {**counts, "asked": {name: n * settings.generation.img_num for name, n in counts["prompts"].items()}}


def one(stage: str, **changes: Any) -> TaskCost:
    """The first task of a stage."""
    return estimate(config(**changes)).of(stage)[0]


def said(settings: Config) -> list[Problem]:
    return capacity.check(settings, estimate(settings), done=())


def tiny_estimate() -> Estimate:
    """Of the tiny configuration, without a GPU, and with the arms that it had when it was measured."""
    arms = "generation.modes=[baseline, filtered]"
    settings = configuration.load(ROOT / "configs" / "tiny.yaml", [arms], environment={})
    of_each = {modality: 120 if modality == "MRI" else 60 for modality in settings.data.modalities}
    counts = {"images": of_each, "rated images": of_each, "prompts": {key: n // 10 for key, n in of_each.items()}}
    return estimate(settings, counts, on_gpu=False)


ALIGNED = {"align__enabled": "true"}
MORE_ALIGNMENT = {"prompts": 128, "candidates": 16, "max_train_steps": 400, "judge_images": 300, "rounds": 2}


class TestAlignment:
    def test_a_round_on_12_gb_takes_adapters_and_less_than_four_hours_of_a_titan_xp(self) -> None:
        """As configured: 512 candidates of 25 guided steps, 200 steps of 32, nine looks at 64 images."""
        found = one("align", generation__batch_size=16, **ALIGNED)
        assert found.seconds < 4 * 3600
        assert found.memory < 11 * GIB
        assert [p for p in said(config(generation__batch_size=16, **ALIGNED)) if p.severity == "error"] == []

    def test_all_weights_are_refused_before_anything_is_queued_and_what_would_help_is_told(self) -> None:
        settings = config(generation__batch_size=16, align__lora__rank="null", **ALIGNED)
        problem = next(p for p in said(settings) if p.key == "align.lora.rank")
        assert problem.reason.startswith("align is estimated to need 12.6 GiB of GPU memory, but a card has 12 GiB")
        assert problem.reason.endswith("align.lora.rank=16 would need 7.8 GiB")

    @pytest.mark.parametrize(("key", "value"), MORE_ALIGNMENT.items())
    def test_more_of_it_takes_longer(self, key: str, value: int) -> None:
        assert one("align", **ALIGNED, **{f"align__{key}": value}).seconds > one("align", **ALIGNED).seconds

    def test_an_hour_is_its_candidates_its_steps_and_its_looks(self) -> None:
        """180 GFLOP of the UNet twice in each of 25 steps of an image, 537 to learn from one and 180 to remember."""
        images, steps = 512 + 9 * 64, 200 * 32
        expected = (images * (50 * 180e9 + 622e9) + steps * (537e9 + 0.7 * 180e9) * 0.7) / 5.9e12
        assert one("align", generation__batch_size=16, **ALIGNED).seconds == pytest.approx(expected, rel=0.3)


class TestHours:
    def test_a_finetuning_on_a_titan_xp_takes_what_its_operations_take(self) -> None:
        """537 GFLOP a sample at 5.9 TFLOP/s: 11 samples a second."""
        expected = 2000 * 32 / 11
        assert one("finetune").seconds == pytest.approx(expected, rel=0.15)  # encoding and checkpoints on top

    @pytest.mark.parametrize(
        ("name", "tflops", "every_step"),
        [("sd15", 30, 0.45), ("sd15", 10, 0), ("sd15-pascal", 5.9, 0)],
    )
    def test_nearly_all_of_a_step_of_sd15_is_the_unet_and_its_update(
        self, name: str, tflops: float, every_step: float
    ) -> None:
        def outside(**changes: Any) -> float:
            settings = config(name, cluster__tflops=tflops, **changes)
            return cost.CostModel(settings, COUNTS, on_gpu=True).finetuning(Volume(images=800)).outside

        assert 0 < outside() < 0.01
        assert outside(finetune__ema_every=1) >= every_step
        assert outside(finetune__checkpointing_steps=1) > 0.6, "training waits for the disk"

    @pytest.mark.parametrize("held_out", [200, 20])
    def test_a_validation_takes_what_its_passes_take(self, held_out: int) -> None:
        """64 images at most, 4 rows each; 4 samples of 20 guided steps."""
        work = Volume(images=800, held_out=held_out)
        changes = {"finetune__validate_every": 200, "finetune__train_batch_size": 4}

        def seconds(**more: Any) -> float:
            settings = config("sd15", cluster__tflops=5, **changes, **more)
            return cost.CostModel(settings, COUNTS, on_gpu=True).finetuning(work).validating

        settings = config("sd15", cluster__tflops=5, **changes)
        shape = cost.CostModel(settings, COUNTS, on_gpu=True).networks
        averages = 3 * 4 * shape.unet.parameters / cost.COPY_BYTES_PER_SECOND
        row, eleven = shape.unet.flops / 5e12, 2000 // 200 + 1
        assert seconds() == pytest.approx(eleven * (min(held_out, 64) * 4 * row + averages), rel=0.01)
        drawn = seconds(finetune__validation_images=4) - seconds()
        decoding = shape.decoder.flops / 5e12
        assert drawn == pytest.approx(eleven * (4 * 20 * 2 * row + 4 * decoding + averages), rel=0.05)
        more = cost.CostModel(settings, COUNTS, on_gpu=True).finetuning(replace(work, held_out=0))
        assert more.validating < 0.5 * seconds()

    def test_what_is_waited_for(self) -> None:
        """At 30 TFLOP/s a step takes .65 s, averaging 3.4 GB 1.2; 13.8 GB are copied in 3.4 and written in 46."""
        settings = config("sd15", cluster__tflops=30, finetune__ema_every=1, finetune__checkpointing_steps=20)
        found = cost.CostModel(settings, COUNTS, on_gpu=True).finetuning(Volume(images=800))
        step = (found.unet + found.update) / 2000
        assert step == pytest.approx(0.576 + 0.069, rel=0.03)
        assert found.waiting / 2000 == pytest.approx(1.2 - step + (3.4 + 46 - 20 * step) / 20, rel=0.03)

    def test_an_image_on_a_titan_xp_takes_what_its_operations_take(self) -> None:
        settings = config(generation__modes="[baseline]")
        assert estimate(settings).of("generate")[0].seconds == pytest.approx(100 / 0.61, rel=0.15)

    @pytest.mark.parametrize(
        ("stage", "changes"),
        [
            ("finetune", {"finetune__max_train_steps": 4000}),
            ("finetune", {"finetune__train_batch_size": 8}),
            ("finetune", {"finetune__gradient_checkpointing": "true"}),
            ("finetune", {"finetune__use_ema": "true"}),
            ("finetune", {"finetune__validate_every": 200}),
            ("finetune", {"finetune__checkpointing_steps": 10}),
            ("finetune", {"data__resolution": 512}),
            ("finetune", {"cluster__tflops": 3}),
            ("rlhf-stage1", {"training__max_epochs": 200}),
            ("rlhf-stage2", {"policy_model__hidden_dim": 768}),
            ("generate", {"generation__num_inference_steps": 50}),
            ("generate", {"generation__scheduler": "pndm"}),
            ("generate", {"generation__num_candidates": 4}),
            ("generate", {"generation__img_num": 3}),
        ],
    )
    def test_more_work_takes_longer(self, stage: str, changes: dict[str, Any]) -> None:
        assert one(stage, **changes).seconds > one(stage).seconds

    def test_without_guidance_the_unet_sees_half_as_much(self) -> None:
        assert one("generate", generation__guidance_scale=1).seconds < 0.65 * one("generate").seconds

    def test_filtered_images_have_bounds_and_the_expectation_lies_between(self) -> None:
        task = one("generate", generation__modes="[filtered]")
        assert task.least < task.seconds < task.most
        assert task.most == pytest.approx(10 / 3 * task.least, rel=0.05)  # max_attempts over num_candidates
        assert one("generate", generation__max_attempts=3).seconds == one("generate", generation__max_attempts=3).most

    def test_baseline_images_have_none(self) -> None:
        task = one("generate", generation__modes="[baseline]")
        assert task.least == task.seconds == task.most

    def test_how_blocks_are_dealt_to_tasks_changes_only_the_starts(self) -> None:
        coarse, fine = (
            estimate(config(generation__batches_per_block=1, generation__blocks_per_shard=size)).of("generate")
            for size in (128, 5)
        )
        work = [sum(task.seconds - cost.START_SECONDS for task in tasks) for tasks in (coarse, fine)]
        assert (len(coarse), len(fine)) == (1, 5)
        assert work[0] == pytest.approx(work[1])

    def test_small_batches_on_a_fast_card_wait_for_the_launches(self) -> None:
        slow, fast = (one("generate", cluster__tflops=rate).seconds for rate in (1e4, 1e5))
        assert slow == pytest.approx(fast, rel=0.01)

    def test_a_thread_is_slower_than_a_card_and_threads_add_up(self) -> None:
        one, four = (config(device__cpu_threads=number, cluster__tflops="null") for number in (1, 4))
        card, thread = estimate(config()), estimate(one, on_gpu=False)
        assert thread.hours() > 50 * card.hours()
        assert estimate(four, on_gpu=False).hours() < 0.3 * thread.hours()

    def test_a_rate_that_was_measured_holds_without_a_card_too_whatever_the_threads(self) -> None:
        without = [estimate(config(device__cpu_threads=number), on_gpu=False).of("generate") for number in (1, 4)]
        assert without[0] == without[1] and [task.seconds for task in without[0]] == pytest.approx(
            [task.seconds for task in estimate(config()).of("generate")], rel=0.01
        )

    def test_evaluation_holds_no_card(self) -> None:
        found = estimate(config())
        everything = sum(task.seconds for task in found.tasks.values())
        assert found.hours() * HOUR == pytest.approx(everything - found.of("evaluate")[0].seconds)

    def test_one_task_can_be_asked_for(self) -> None:
        settings = config()
        for planned in build(settings, {"CT": [100]}, {"CT": 100}):
            expected = estimate(settings).tasks[planned.key].seconds
            assert cost.CostModel(settings, with_asked(settings), on_gpu=True).task(planned.task).seconds == expected

    @pytest.mark.parametrize(
        ("stage", "changes"),
        [
            ("rlhf-stage1", {"selector__members": 3}),
            ("rlhf-stage1", {"selector__artifact_detection": "false"}),
            ("rlhf-stage2", {"selector__artifact_detection": "false"}),
            ("rlhf-stage2", {"selector__sampled_prompts": 4}),
            ("rlhf-stage2", {"generation__num_inference_steps": 5}),
            ("generate", {"selector__members": 1}),
        ],
    )
    def test_fewer_networks_and_comparisons_take_less(self, stage: str, changes: dict[str, Any]) -> None:
        assert one(stage, **changes).seconds < one(stage).seconds

    def test_stage_2_holds_the_generator_where_it_samples_for_the_selector(self) -> None:
        few = {"training__batch_size": 1}  # else learning needs more
        without = one("rlhf-stage2", selector__artifact_detection="false", **few)
        assert without.memory < one("rlhf-stage2", **few).memory == one("generate").memory

    def test_the_tiny_campaign_took_about_what_is_expected(self) -> None:
        """One run on one core, tasks one after the other: seconds. The scorers were single networks then."""
        took = {"finetune": 144, "generate": 66, "evaluate": 23}
        found = tiny_estimate()
        for stage, seconds in took.items():
            assert seconds / 2 < sum(task.seconds for task in found.of(stage)) < 2 * seconds, stage


class TestMemory:
    def test_sd15_with_8_bit_adam_fits_12_gib_at_batch_4(self) -> None:
        """Weights 3.2, gradients 3.2, optimizer 1.6, activations 1.77; context 0.5 to 0.8 GiB."""
        assert one("finetune").memory / GIB == pytest.approx(9.8 + 0.65, abs=0.25)
        assert said(config()) == []

    def test_without_it_it_does_not_and_the_plan_says_what_to_change(self) -> None:
        settings = config(finetune__use_8bit_adam="false")
        assert estimate(settings).of("finetune")[0].memory / GIB == pytest.approx(12.8 + 1.77 + 0.65, abs=0.25)
        [problem] = said(settings)
        assert (problem.severity, problem.key) == ("error", "finetune.use_8bit_adam")
        assert "15.3 GiB of GPU memory, but a card has 12 GiB" in problem.reason
        assert problem.reason.endswith("finetune.use_8bit_adam=true would need 10.5 GiB")

    def test_adapters_need_less_than_8_gib_without_8_bit_adam(self) -> None:
        """Weights 3.2, activations 1.77; context .75; the adapters' 3.2 million numbers four times are .05 GiB."""
        adapters = {"finetune__use_8bit_adam": "false", "finetune__lora__rank": 16, "cluster__gpu_memory_gib": 8}
        settings = config(**adapters, generation__batch_size=1)
        assert estimate(settings).of("finetune")[0].memory / GIB == pytest.approx(3.2 + 1.77 + 0.05 + 0.75, abs=0.1)
        assert [problem for problem in said(settings) if problem.reason.startswith("finetune")] == []
        assert estimate(settings).of("finetune")[0].seconds < 0.75 * one("finetune").seconds
        assert estimate(settings).of("finetune")[0].scratch < 0.15 * GIB

    def test_they_are_advised_where_nothing_else_is_enough(self) -> None:
        [problem, *_] = said(config(cluster__gpu_memory_gib=7))
        assert problem.reason.endswith("finetune.lora.rank=16 would need 5.7 GiB")

    def test_what_is_set_already_is_not_advised_and_changes_add_up(self) -> None:
        [problem] = said(config(finetune__train_batch_size=16))
        assert problem.key == "finetune.gradient_checkpointing"
        [both] = said(config(finetune__train_batch_size=16, finetune__use_8bit_adam="false"))
        assert "finetune.use_8bit_adam=true, finetune.gradient_checkpointing=true would need" in both.reason

    def test_where_nothing_helps_that_is_said(self) -> None:
        problems = {problem.reason.split()[0]: problem for problem in said(config(cluster__gpu_memory_gib=4))}
        assert problems.keys() == {"finetune", "rlhf-stage2", "generate"}
        assert "is not enough; lower data.resolution, or use a card with more memory" in problems["finetune"].reason

    def test_generation_names_its_own_batch_size(self) -> None:
        """That of the stage that samples for the Selector, too."""
        problems = said(config(generation__batch_size=64, data__resolution=256))
        assert [problem.reason.split()[0] for problem in problems] == ["rlhf-stage2", "generate"]
        for problem in problems:
            assert problem.key == "generation.batch_size" and "generation.batch_size=1 would need" in problem.reason

    def test_without_a_card_or_without_its_size_nothing_is_refused(self) -> None:
        settings = config(finetune__use_8bit_adam="false")
        assert capacity.check(settings, replace(estimate(settings), on_gpu=False), ()) == []
        assert said(config(finetune__use_8bit_adam="false", cluster__gpu_memory_gib="null")) == []

    @pytest.mark.parametrize(
        "less",
        [
            {"finetune__gradient_checkpointing": "true"},
            {"finetune__train_batch_size": 1},
            {"data__resolution": 128},
        ],
    )
    def test_what_takes_less(self, less: dict[str, Any]) -> None:
        assert one("finetune", **less).memory < one("finetune").memory

    def test_half_precision_saves_activations_and_costs_a_copy_of_the_weights(self) -> None:
        half, full = (
            one("finetune", finetune__train_batch_size=32, device__precision=precision).memory
            for precision in ("bfloat16", "float32")
        )
        assert half < full


class TestDisk:
    def test_checkpoints_count_once_more_than_are_kept(self) -> None:
        """The new one is whole before the oldest goes."""
        removed = {"finetune__keep_last_checkpoint": "false"}
        task = one("finetune", **removed)
        assert task.scratch == pytest.approx(3 * 859_520_964 * (4 + 2))
        assert one("finetune", finetune__use_8bit_adam="false", **removed).scratch == pytest.approx(
            3 * 859_520_964 * 12
        )
        assert one("finetune", finetune__checkpoints_total_limit=1, **removed).scratch == pytest.approx(
            2 * 859_520_964 * 6
        )
        stays = one("finetune")
        assert stays.kept - task.kept == task.scratch - stays.scratch == pytest.approx(859_520_964 * 6)
        assert one("finetune", finetune__lr_scheduler="cosine") == task

    def test_latents_the_model_and_kept_unets_stay(self) -> None:
        cache = 800 * (2 * 4 * 32 * 32 * 2) + 801 * 77 * 768 * 2
        unet, parts = 859_520_964 * 4, (83_653_863 + 123_060_480) * 4
        assert one("finetune", finetune__keep_last_checkpoint="false").kept == unet + parts + cache
        steps = {"finetune__max_train_steps": 2000, "finetune__keep_every": 500, "finetune__lr_scheduler": "cosine"}
        assert one("finetune", **steps).kept == 4 * unet + parts + cache  # the last is the model

    @pytest.mark.parametrize("rank", ["null", 4])
    def test_a_checkpoint_is_as_large_as_one_that_training_wrote(self, rank: Any, tmp_path: Path) -> None:
        import torch
        from safetensors.torch import save_file

        from medsyn.models.device import choose_device
        from medsyn.models.stable_diffusion import load_synthetic
        from medsyn.training.finetune.state import first_state

        settings = config("tiny", device__use_cuda="false", finetune__lora__rank=rank)
        unet = load_synthetic("embedded", choose_device(settings.device).device).unet
        state = first_state(unet, settings.finetune, (0,))
        unet(torch.zeros(1, 4, 16, 16), torch.tensor([1]), torch.zeros(1, 77, 64)).sample.sum().backward()
        state.optimizer.step()
        save_file(state.tensors(1), tmp_path / "state")
        expected = memory.checkpoint_bytes(settings, architecture.read("embedded", 64))
        names = sum(len(name) + 100 for name in state.tensors(1))  # of the file's header
        assert expected == pytest.approx((tmp_path / "state").stat().st_size - names, rel=0.05)

    def test_the_tiny_campaign_left_about_what_is_expected(self) -> None:
        """One run on a file system with blocks of 4 KiB, in bytes, caches included and phantoms not.

        The scorers were single networks then.
        """
        left = {"finetune": 68_829_184, "generate": 618_496}
        found = tiny_estimate()
        for stage, size in left.items():
            assert size / 2 < sum(task.kept for task in found.of(stage)) < 2 * size, stage

    def test_rejected_candidates_take_the_room_of_images_as_far_as_there_are_so_many(self) -> None:
        """4.5 candidates for an image are expected, so 3.5 besides it; the first of a baseline is the image."""
        kept = [one("generate", generation__keep_rejected=most).kept for most in (0, 2, 4, 9)]
        assert kept[1] - kept[0] == pytest.approx(2 * 100 * memory.image_bytes(config(), "CT"), rel=1e-3)
        assert kept[2] == kept[3] and kept[3] - kept[0] == pytest.approx(1.75 * (kept[1] - kept[0]), rel=1e-3)
        only = [one("generate", generation__modes="[baseline]", generation__keep_rejected=most).kept for most in (0, 9)]
        assert only[0] == only[1]

    def test_a_full_file_system_is_an_error_for_what_runs_at_once_and_a_warning_for_all(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        number = ["generation.batches_per_block=4"]
        settings = inputs.resolve(configuration.load(ROOT / "configs" / "sd15-pascal.yaml", number, environment={}))
        counts = {what: dict.fromkeys(settings.data.modalities, 1000) for what in COUNTS}
        found = estimate(settings, counts)
        few = capacity.disk_needed(found, (), settings.cluster.max_parallel)
        everything = capacity.disk_needed(found, ())
        assert 40 * GIB < few < everything - GIB
        for free, expected in ((few - 1, ["error"]), (few, ["warning"]), (everything, [])):
            monkeypatch.setattr(capacity, "disk_free", lambda config, free=free: free)
            assert [problem.severity for problem in capacity.check(settings, found, done=())] == expected

    def test_what_is_done_needs_no_more_room(self) -> None:
        found = estimate(config())
        assert capacity.disk_needed(found, done=found.tasks.keys()) == 0
        rest = capacity.disk_needed(found, done={("finetune", "ct")})
        assert rest + 8 * GIB < capacity.disk_needed(found, done=()), "the fine-tuned model, and its checkpoints"


def test_a_campaign_that_does_not_fit_is_refused_before_anything_is_written(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "disk_free", lambda config: 2**20)
    [problem] = inputs.check(trial.config()).errors
    assert re.search(r"estimated to need \d+\.\d GiB more", problem.reason)
    last = ", or set finetune.keep_last_checkpoint=false"
    assert problem.reason.endswith(f"or lower finetune.checkpoints_total_limit{last}")
    [problem] = inputs.check(trial.config(finetune__keep_every=100)).errors
    assert problem.reason.endswith(f"or raise finetune.keep_every{last}")
    [problem] = inputs.check(trial.config(finetune__keep_last_checkpoint=False)).errors
    assert problem.reason.endswith("or lower finetune.checkpoints_total_limit")
    with pytest.raises(ValueError, match="GiB free: free some space"):
        trial.prepare_config(trial.config())
    assert not trial.root.exists()


def test_a_prepared_campaign_remembers_its_counts_so_that_expected_and_spent_can_be_compared(trial: Trial) -> None:
    campaign, checked = trial.prepare(), inputs.check(trial.config())
    assert campaign.counts == checked.counts
    again = cost.estimate(campaign.config, campaign.plan, campaign.counts, on_gpu=False)
    assert again == cost.estimate(checked.config, checked.plan, checked.counts, on_gpu=False)


def test_tasks_that_are_done_are_found_by_their_markers(trial: Trial) -> None:
    directory = trial.prepare().directory
    assert capacity.marked_done(directory) == set()
    disk.write_json(directory.done("generate", "ct-00000"), {})
    assert capacity.marked_done(directory) == {("generate", "ct-00000")}


def test_constants_that_are_repeated_are_the_same() -> None:
    from medsyn.evaluation.memorization import planted
    from medsyn.modality_names import COLOUR_MODALITIES
    from medsyn.training.alignment import judge, lessons, real_images
    from medsyn.training.finetune import samples, validation
    from medsyn.training.scorers import loop, measured, selector_learner, sources, ways

    assert memory.COLOURS.keys() == COLOUR_MODALITIES
    assert memory.JUDGED_TOGETHER == measured.TOGETHER
    assert memory.SCORER_CHECKPOINTS == loop.CHECKPOINTS_KEPT
    assert (memory.VALIDATED, memory.VALIDATED_ROWS) == (validation.MOST_IMAGES, validation._PER_IMAGE)
    assert samples._STEPS == memory.SAMPLE_STEPS
    assert (memory.LEVELS, memory.REAL_IMAGES) == (lessons.LEVELS, real_images.MOST)
    assert judge.FEWEST == inputs.FEWEST_JUDGED
    assert len(planted.kinds()) == cost.PLANTED_KINDS
    assert (memory.ORIGINALS, memory.KINDS_PER_IMAGE) == (sources.ORIGINALS, sources.KINDS_PER_IMAGE)
    assert memory.EXAMINED == selector_learner.EXAMINED
    assert memory.PULLS == selector_learner.PULLS_PER_RATING
    assert memory.COMPARED == 2 * selector_learner.COMPARISONS_PER_RATING
    assert cost.VERSIONS == measured.VERSIONS == 2 * measured.VERSIONS_COMPARED
    again = [way for way in ways.WAYS.values() if isinstance(way, ways.Resampled)]
    assert 1 + sum(way.steps / way.every for way in again if way.steps < 1) == pytest.approx(memory.SAMPLED_RUNS)
    assert sum(way.steps / way.every for way in again if way.steps >= 1) == memory.SAMPLED_CALLS
    others = len(ways.WAYS) - len(again)
    assert 1 + others + sum(1 / way.every for way in again) == pytest.approx(memory.SAMPLED_PICTURES, abs=1)


def test_forks_start_once_and_read_the_weights_each() -> None:
    settings = config(generation__batches_per_block=1, generation__blocks_per_shard=5)
    counts = with_asked(settings)
    plan = build(settings, {"CT": [counts["asked"]["CT"]]}, {"CT": 5})
    jobs, forks = (cost.estimate(settings, plan, counts, on_gpu=True, forks=forked) for forked in (False, True))
    shards = len(jobs.of("generate"))
    read = forks.in_all("generate") - shards * (jobs.of("generate")[0].seconds - cost.START_SECONDS)
    assert shards > 2
    assert read / shards == pytest.approx(4.2 + cost.CONTINUED_SECONDS, abs=0.6), "3.4 GB at 1 GB/s, a fork each"
    assert forks.spared["finetune"] == 0, "the first task pays for the process that is forked"
    assert forks.tasks == jobs.tasks, "a time limit must hold for a task that starts alone"
    assert forks.hours() < jobs.hours()


@pytest.mark.parametrize(
    ("settings", "starts"),
    [
        ({}, 2),
        ({"cluster__max_parallel": 4}, 4),
        ({"cluster__continue_in_allocation": False}, 5),
        ({"cluster__claim": True}, 5),
    ],
)
def test_jobs_that_go_on_with_other_shards_start_once(settings: dict[str, Any], starts: int) -> None:
    its = estimate(config(generation__batches_per_block=1, generation__blocks_per_shard=5, **settings))
    work = sum(task.seconds - cost.START_SECONDS for task in its.of("generate"))
    expected = starts * cost.START_SECONDS + (5 - starts) * cost.CONTINUED_SECONDS
    assert its.in_all("generate") - work == pytest.approx(expected)
    assert its.spared["finetune"] == 0


def test_a_hundred_thousand_tasks_are_estimated_in_no_time() -> None:
    settings = config(generation__batch_size=1, generation__batches_per_block=1, generation__blocks_per_shard=1)
    found = estimate(settings, {**COUNTS, "prompts": {"CT": 100_000}})
    assert len(found.of("generate")) == 100_000


# --- several GPUs for one task ----------------------------------------------------------------------------------------


def test_two_gpus_halve_what_they_share_and_nothing_else() -> None:
    alone, two = (one("finetune", finetune__gpus=number) for number in (1, 2))
    model = cost.CostModel(config(finetune__gpus=1), with_asked(config()), True)
    shared = (found := model.finetuning(Volume(images=800))).unet + found.update
    assert two.waiting == pytest.approx(alone.seconds - shared, rel=0.1)  # a shorter run has fewer checkpoints
    assert alone.seconds / 2 < two.seconds < alone.seconds
    assert shared / 2 < two.seconds - two.waiting < 0.75 * shared  # the gradients' way is longer than nothing
    assert (alone.gpus, two.gpus) == (1, 2)
    assert (alone.waiting, alone.memory, alone.kept) == (0, two.memory, two.kept)


def test_the_hours_of_a_campaign_are_those_of_all_its_gpus() -> None:
    alone, two = (estimate(config(finetune__gpus=number)) for number in (1, 2))
    finetune = [of.of("finetune")[0].seconds for of in (alone, two)]
    assert two.hours() - alone.hours() == pytest.approx((2 * finetune[1] - finetune[0]) / HOUR)


def test_the_longest_part_counts() -> None:
    settings = {"finetune__train_batch_size": 4, "finetune__gradient_accumulation_steps": 1}
    two, three, four = (one("finetune", finetune__gpus=number, **settings) for number in (2, 3, 4))
    assert two.seconds <= three.seconds  # parts of 2, 1 and 1
    assert four.memory < one("finetune", **settings).memory  # a part is smaller than a micro-batch


@pytest.mark.parametrize("keep", [True, False])
def test_a_plan_says_what_last_checkpoints_take_and_how_to_be_rid_of_them(
    keep: bool, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "GIB", 1)  # the tiny model's are not worth a line
    said = "\n".join(show.cost_totals(inputs.check(trial.config(finetune__keep_last_checkpoint=keep))))
    assert ("finetune.keep_last_checkpoint=false removes it" in said) == keep
