from __future__ import annotations

from typing import Any

import pytest

from medsyn import config as configuration
from medsyn.campaign.estimate.cost import CostModel
from medsyn.campaign.plan import blocks, inputs, show
from medsyn.errors import InputError, InputProblems
from tests.helpers.paths import ROOT
from tests.helpers.trial import Trial

AUTO: dict[str, Any] = {"generation__batches_per_block": "auto", "generation__output": "webdataset"}


def chosen(images: int, *overrides: str, name: str = "tiny", on_gpu: bool = False) -> int:
    """Of a campaign of tars with as many images of CT, and as many of OCT."""
    given = [
        *("generation.batches_per_block=auto", "generation.batch_size=16", "generation.output=webdataset"),
        *("data.modalities=[CT, OCT]", *overrides),
    ]
    config = configuration.load(ROOT / "configs" / f"{name}.yaml", given, environment={})
    return blocks.choose(config, CostModel(config, {"asked": {"CT": images // 2, "OCT": images // 2}}, on_gpu))


class TestChoice:
    @pytest.mark.parametrize(
        ("images", "number"), [(0, 4), (1000, 4), (64_000, 4), (64_002, 8), (500_000, 32), (10**6, 64), (10**7, 1024)]
    )
    def test_there_are_at_most_a_thousand_blocks(self, images: int, number: int) -> None:
        assert chosen(images, "generation.modes=[baseline]", "cluster.tflops=100") == number

    def test_those_of_all_modes_count(self) -> None:
        assert chosen(10**6, "cluster.tflops=100", "generation.modes=[baseline, filtered]") == 128
        assert chosen(10**6, "cluster.tflops=100") == 256  # of four arms

    def test_a_file_for_each_image_leaves_nothing_to_save(self) -> None:
        assert chosen(10**6, "generation.output=png") == 4

    def test_a_block_takes_at_most_half_a_shard_at_the_rate_of_the_estimate(self) -> None:
        """A block of 64 images of Stable Diffusion v1.5 in both modes takes some ten minutes on a TITAN Xp."""
        numbers = [
            chosen(10**6, f"cluster.tflops={rate}", "data.resolution=256", name="sd15-pascal", on_gpu=True)
            for rate in (1, 20, 200, 2000)
        ]
        assert numbers == sorted(numbers) and numbers[0] == 4 and numbers[-1] == 128 and len(set(numbers)) > 2

    def test_and_half_a_gibibyte_at_most(self) -> None:
        assert chosen(10**7, "data.resolution=1024", "cluster.tflops=1e6") == 32


class TestRecord:
    def test_the_campaign_has_a_number_and_keeps_it_whatever_the_rate(
        self, trial: Trial, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(blocks, "MOST_BLOCKS", 2)
        fast = {"generation__img_num": 16, "cluster__tflops": 1e6}
        campaign = trial.prepare(**AUTO, **fast)
        number = campaign.config.generation.batches_per_block
        assert number == 32, "two modes of 64 images in batches of two, in at most two blocks"
        assert configuration.load(campaign.directory.config, environment={}).generation.batches_per_block == number
        [line] = show.sharding(inputs.check(trial.config(**AUTO, **fast)))
        assert line.endswith(", 64 images in a block (generation.batches_per_block=32)")
        slow = {"generation__img_num": 16, "cluster__tflops": 1e-6, "generation__shard_minutes": 1.0}
        assert trial.prepare(**AUTO, **slow).config.generation.batches_per_block == number
        assert trial.prepare(**AUTO, generation__img_num=1).config.generation.batches_per_block == 4

    def test_images_keep_the_blocks_that_they_are_in(self, trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
        trial.prepare(generation__batches_per_block=2)
        assert all(trial.work(*planned.key)[0] == 0 for planned in trial.campaign().plan)
        monkeypatch.setattr(blocks, "MOST_BLOCKS", 1)
        assert trial.prepare(generation__batches_per_block="auto").config.generation.batches_per_block == 2
        with pytest.raises(InputProblems, match=r"generation\.batches_per_block: was 2 and is now 4, but this"):
            trial.prepare(generation__batches_per_block=4)

    def test_until_then_nothing_counts_blocks(self) -> None:
        with pytest.raises(InputError, match=r"generation\.batches_per_block: auto is resolved when a campaign is"):
            assert configuration.Config().generation.block_size

    @pytest.mark.parametrize("wrong", [0, True, "three", 2.5, None])
    def test_anything_else_is_no_number(self, trial: Trial, wrong: Any) -> None:
        with pytest.raises(InputProblems) as caught:
            trial.config(generation__batches_per_block=wrong)
        [problem] = caught.value.problems
        assert problem.key == "generation.batches_per_block"
        assert problem.reason.startswith("batches_per_block must be a whole number of at least 1, or auto")
