from __future__ import annotations

from pathlib import Path

import pytest

from medsyn import config
from medsyn.__main__ import COMMANDS
from medsyn.campaign.estimate.cost import CostModel
from medsyn.campaign.estimate.workload import unet_calls
from medsyn.campaign.plan import inputs
from medsyn.cli import app, calibrate
from medsyn.generation.sample.load import Loader
from medsyn.stage import CampaignDirectory
from tests.helpers.paths import ROOT

TINY = ROOT / "configs" / "tiny.yaml"
OVERRIDES = ["device.use_cuda=false", "generation.batch_size=4", "data.modalities=[CT]", "generation.modes=[filtered]"]


def test_the_last_line_is_an_override_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*OVERRIDES, f"campaign.dir={tmp_path / 'campaign'}"]
    assert app.dispatch("medsyn", COMMANDS, ["calibrate", str(TINY), *overrides]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["device", "batch", "seconds a batch", "images a second"]
    settings = config.load(TINY, [*overrides, last], environment={})
    assert last == f"cluster.tflops={settings.cluster.tflops:.3g}"
    assert not (tmp_path / "campaign").exists()


def test_with_the_rate_that_was_measured_a_batch_is_estimated_to_take_what_it_takes(tmp_path: Path) -> None:
    settings = inputs.resolve(config.load(TINY, OVERRIDES, environment={}))
    sampler = Loader(settings, "CT", CampaignDirectory(tmp_path)).sampler("baseline")
    calibrate.sample(sampler, 1)
    ratios = []
    for _ in range(5):  # another process may be at work during one of the two
        speed = calibrate.measure(settings)
        section = settings.cluster.model_copy(update={"tflops": speed.tflops})
        model = CostModel(settings.model_copy(update={"cluster": section}), {}, on_gpu=False)
        seconds, _ = calibrate.sample(sampler, settings.generation.num_inference_steps)
        ratios.append(model.batch(*unet_calls(settings.generation)) / seconds)
        if 0.5 < ratios[-1] < 2:
            return
    pytest.fail(f"estimated over measured: {ratios}")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model_paths.stable_diffusion=/no/such/model", "/no/such/model"),
        ("generation.batch_size=many", "generation.batch_size"),
    ],
)
def test_what_cannot_be_measured_is_one_line(override: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.dispatch("medsyn", COMMANDS, ["calibrate", str(TINY), *OVERRIDES, override]) == 65
    told = capsys.readouterr().err
    assert said in told and len(told.splitlines()) == 1
