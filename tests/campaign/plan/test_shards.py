from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medsyn import config as configuration
from medsyn.campaign.estimate.cost import START_SECONDS, CostModel
from medsyn.campaign.plan import inputs, prepare, shards, show
from medsyn.campaign.state import campaign_file
from medsyn.campaign.status import figures, read
from medsyn.config import Config
from medsyn.disk import read_json
from medsyn.errors import InputProblems
from tests.helpers.paths import ROOT
from tests.helpers.trial import Trial

BY_TIME: dict[str, Any] = {"generation__blocks_per_shard": None}


def model(*overrides: str) -> CostModel:
    """Stable Diffusion v1.5 on a TITAN Xp: a block of four batches of four takes three to four minutes."""
    given = ["generation.batch_size=4", "generation.batches_per_block=4", "data.modalities=[CT, OCT]", *overrides]
    config = configuration.load(ROOT / "configs" / "sd15-pascal.yaml", given, environment={})
    counts = {"asked": {"CT": 10**6, "OCT": 10**6}}
    return CostModel(config, counts, on_gpu=True)


def minutes(its: CostModel, blocks: int) -> float:
    return (START_SECONDS + blocks * shards.block_seconds(its, "CT", 100)) / 60


class TestByTime:
    @pytest.mark.parametrize("wanted", [20, 30, 60])
    def test_a_shard_takes_as_long_as_asked_for_with_its_start(self, wanted: float) -> None:
        its = model(f"generation.shard_minutes={wanted}")
        size = shards.choose_sizes(its, {"CT": 1000})["CT"]
        assert minutes(its, size) == pytest.approx(wanted, rel=0.1)

    def test_blocks_that_do_not_fill_whole_shards_are_spread_over_all_of_them(self) -> None:
        its = model()
        full = shards.choose_sizes(its, {"CT": 1000})["CT"]
        for count in range(1, 5 * full):
            size = shards.choose_sizes(its, {"CT": count})["CT"]
            assert 1 <= size <= 1.5 * full + 1
            assert size >= min(count, 0.66 * full - 1)

    def test_a_slower_card_and_a_longer_block_make_fewer(self) -> None:
        [size, slower, longer] = (
            shards.choose_sizes(model(*overrides), {"CT": 1000})["CT"]
            for overrides in ([], ["cluster.tflops=2.95"], ["generation.num_inference_steps=50"])
        )
        assert slower == pytest.approx(size / 2, rel=0.2)
        assert longer == pytest.approx(size / 2, rel=0.2)

    def test_a_block_that_takes_longer_is_a_shard_of_its_own(self) -> None:
        assert shards.choose_sizes(model("generation.batches_per_block=100"), {"CT": 9}) == {"CT": 1}

    def test_a_number_of_the_users_is_taken_and_a_modality_without_blocks_has_none(self) -> None:
        assert shards.choose_sizes(model("generation.blocks_per_shard=7"), {"CT": 9, "OCT": 0}) == {"CT": 7}


class TestBound:
    def test_shards_are_made_longer_and_none_much_longer_than_the_others(self) -> None:
        blocks = {"CT": 3000, "OCT": 1000}
        sizes = shards.choose_sizes(model("cluster.max_shards=8"), blocks)
        assert shards.count_shards(blocks, sizes) == 8
        assert sizes == {"CT": 500, "OCT": 500}

    def test_it_holds_for_a_number_of_the_users_too(self) -> None:
        blocks = {"CT": 100, "OCT": 100}
        sizes = shards.choose_sizes(model("generation.blocks_per_shard=1", "cluster.max_shards=10"), blocks)
        assert shards.count_shards(blocks, sizes) == 10

    def test_it_does_nothing_where_there_are_fewer(self) -> None:
        assert shards.choose_sizes(model("cluster.max_shards=5000"), {"CT": 1000}) == shards.choose_sizes(
            model(), {"CT": 1000}
        )

    def test_every_modality_has_a_shard_whatever_the_bound(self) -> None:
        assert shards.choose_sizes(model("cluster.max_shards=1"), {"CT": 9, "OCT": 5}) == {"CT": 9, "OCT": 5}

    def test_a_million_shards_are_bounded_in_no_time(self) -> None:
        blocks = {"CT": 10**6, "OCT": 10**6}
        overrides = ["generation.blocks_per_shard=1", "cluster.max_shards=300000"]
        assert shards.count_shards(blocks, shards.choose_sizes(model(*overrides), blocks)) <= 300_000


def ranges(trial: Trial) -> list[tuple[int, int]]:
    generates = trial.campaign().plan.by_stage["generate"]
    return [task.task.blocks for task in generates if task.task.modality == "CT" and task.task.blocks]


def run_all(trial: Trial) -> None:
    for planned in trial.campaign().plan:
        if " ".join(planned.key) not in trial.done():
            assert trial.work(*planned.key)[0] == 0


def blocks_of(trial: Trial) -> set[Path]:
    return set((trial.root / "work").rglob("block-*"))


class TestRecord:
    def test_the_deal_is_written_down_and_everything_that_opens_the_campaign_uses_it(self, trial: Trial) -> None:
        campaign = trial.prepare(**BY_TIME, generation__img_num=8)
        assert read_json(trial.root / "campaign.json")["blocks_per_shard"] == {"CT": 8, "OCT": 8}
        assert ranges(trial) == [(0, 8)]
        assert campaign_file.open_campaign(trial.root).plan == campaign.plan

    @pytest.mark.parametrize("change", [{"cluster__tflops": 1e-6}, {"cluster__gpu_memory_gib": 12.0}])
    def test_another_estimate_deals_nothing_anew_and_the_plan_says_what_it_would_be(
        self, trial: Trial, change: dict[str, Any]
    ) -> None:
        before = trial.prepare(**BY_TIME, generation__img_num=8).plan
        slow = change | {"cluster__tflops": 1e-6}
        assert trial.prepare(**BY_TIME, generation__img_num=8, **slow).plan == before
        checked = prepare.check(trial.config(**BY_TIME, generation__img_num=8, **slow))
        said = "\n".join(show.sharding(checked))
        assert "by today's estimate there would be 16; change generation.shard_minutes to re-shard" in said
        slow["generation__shard_minutes"] = 29
        assert len(trial.prepare(**BY_TIME, generation__img_num=8, **slow).plan.by_stage["generate"]) == 16

    def test_more_prompts_are_dealt_anew_as_long_as_nothing_is_generated(self, trial: Trial) -> None:
        trial.prepare(**BY_TIME)
        trial.write_tables(prompts=40)
        trial.prepare(**BY_TIME)
        assert ranges(trial) == [(0, 20)]

    @pytest.mark.parametrize("change", [{"generation__blocks_per_shard": 3}, {"cluster__max_shards": 4}])
    def test_a_new_deal_of_a_finished_campaign_is_made_of_the_same_blocks(
        self, trial: Trial, change: dict[str, Any]
    ) -> None:
        trial.prepare(generation__img_num=8)
        run_all(trial)
        before, deal = blocks_of(trial), ranges(trial)
        settings = {"generation__img_num": 8, **change}
        campaign = trial.prepare(**settings)
        assert ranges(trial) != deal
        assert not {"generate ct-00000", "evaluate all"} & trial.done()
        assert "finetune ct" in trial.done()
        run_all(trial)
        assert len(trial.done()) == len(campaign.plan.tasks)
        made = figures.images(read.read(campaign))
        assert {mode: (its.asked, its.made) for mode, its in made.items()} == {
            "baseline": (32, 16),
            "filtered": (32, 16),
        }
        assert blocks_of(trial) == before
        tables = {path.name for path in (trial.root / "work").glob("generate/baseline/ct/shards/*")}
        assert tables == {f"blocks-{start:06d}-{end:06d}" for start, end in ranges(trial)}
        assert trial.prepare(**settings).plan == campaign.plan

    def test_a_record_without_a_deal_is_damaged(self, trial: Trial) -> None:
        trial.prepare()
        path = trial.root / "campaign.json"
        path.write_text(json.dumps(read_json(path) | {"blocks_per_shard": {"CT": 0}}))
        with pytest.raises(ValueError, match="damaged"):
            trial.campaign()


def said(config: Config) -> str:
    return "\n".join(show.sharding(inputs.check(config)))


class TestOutline:
    def test_a_plan_says_how_long_a_shard_is(self, trial: Trial) -> None:
        slow = trial.config(**BY_TIME, generation__img_num=300, cluster__tflops=0.03)
        [line] = said(slow).splitlines()
        assert line.startswith("generate: ") and line.endswith(" minutes, in batches of 2")
        assert 20 <= int(line.partition("of about ")[2].split()[0]) <= 45
        assert "2 shards of about" in said(trial.config(**BY_TIME))
        assert "seconds, in batches of 2" in said(trial.config(**BY_TIME))

    def test_and_when_a_bound_makes_it_longer(self, trial: Trial) -> None:
        told = said(trial.config(generation__img_num=8, cluster__max_shards=4))
        assert "generate: 4 shards of about " in told
        assert "cluster.max_shards=4 makes them longer; without it there would be 16" in told
        assert "each of 2 modalities has a shard of its own" in said(trial.config(cluster__max_shards=1))

    def test_scripts_read_it_too(self, trial: Trial) -> None:
        told = show.as_dict(inputs.check(trial.config(**BY_TIME)))["generate"]
        assert (told["batch_size"], told["blocks_per_shard"]) == (2, {"CT": 1, "OCT": 1})
        assert 0 < told["shard_minutes"] < 2


CARD: dict[str, Any] = {"generation__batch_size": "auto", "device__use_cuda": True, "data__resolution": 256}


class TestBatchSize:
    def chosen(self, trial: Trial, **changes: Any) -> Any:
        settings = CARD | {"model_paths__stable_diffusion": "absent/so-sd15-is-assumed"} | changes
        return inputs.resolve(trial.config(**settings)).generation.batch_size

    def test_auto_is_the_largest_that_fits_with_a_tenth_of_the_memory_to_spare(self, trial: Trial) -> None:
        """10.8 GiB for 32 images, 7.8 for 16, 5.0 for one."""
        gib = {5.6: 1, 8: 8, 11.9: 16, 12.1: 32, 80: 64}
        assert {card: self.chosen(trial, cluster__gpu_memory_gib=float(card)) for card in gib} == gib

    def test_where_not_even_one_fits_the_capacity_check_says_so(self, trial: Trial) -> None:
        small = trial.config(**CARD, model_paths__stable_diffusion="absent", cluster__gpu_memory_gib=4.0)
        problems = [problem for problem in inputs.check(small).errors if "generate" in problem.reason]
        assert "estimated to need 5.0 GiB of GPU memory, but a card has 4 GiB" in problems[0].reason

    def test_without_a_gpu_it_is_eight(self, trial: Trial) -> None:
        assert self.chosen(trial, device__use_cuda=False) == 8

    def test_a_gpu_whose_memory_is_unknown_is_one_of_the_problems_that_are_told(
        self, trial: Trial, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("medsyn.campaign.plan.machine.has_gpu", lambda config, here=False: True)
        (trial.data / "ratings.csv").unlink()
        with pytest.raises(InputProblems) as caught:
            trial.prepare(**CARD)
        told = str(caught.value)
        assert "cluster.gpu_memory_gib: generation.batch_size=auto needs to know how much memory a card has" in told
        assert "ratings.csv" in told
        assert said(trial.config(**CARD)) == ""

    def test_the_campaign_has_a_number_and_the_plan_says_who_chose_it(self, trial: Trial) -> None:
        campaign = trial.prepare(generation__batch_size="auto")
        assert campaign.config.generation.batch_size == 8
        assert configuration.load(campaign.directory.config, environment={}).generation.batch_size == 8
        assert said(trial.config(generation__batch_size="auto")).endswith("batches of 8 (generation.batch_size=auto)")
        assert trial.prepare(generation__batch_size="auto").plan == campaign.plan
        assert trial.prepare(generation__batch_size=8).plan == campaign.plan

    def test_another_number_is_refused_once_there_are_images_and_the_message_says_which_to_set(
        self, trial: Trial
    ) -> None:
        trial.prepare(generation__batch_size=4)
        run_all(trial)
        with pytest.raises(InputProblems) as caught:
            trial.prepare(generation__batch_size="auto")
        said = str(caught.value)
        assert "generation.batch_size: was 4, and auto now gives 8, but this campaign has results of" in said
        assert "rlhf-stage2, generate: set it to 4" in said

    @pytest.mark.parametrize("wrong", [0, True, "three", 2.5, None])
    def test_anything_else_is_no_batch_size(self, trial: Trial, wrong: Any) -> None:
        with pytest.raises(InputProblems) as caught:
            trial.config(generation__batch_size=wrong)
        [problem] = caught.value.problems
        assert (problem.key, "at least 1, or auto" in problem.reason) == ("generation.batch_size", True)
