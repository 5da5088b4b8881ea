"""Fine-tuning, mean things first: killed, torn, full and altered runs must end in the bits of an undisturbed one."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from medsyn import Generator, disk
from medsyn.campaign.estimate import architecture
from medsyn.config import Config, validate
from medsyn.data.images.latent_cache import TensorCache, hash_files
from medsyn.data.images.pixels import fit_square
from medsyn.data.images.read import SYNTHETIC_KEY, read_image
from medsyn.data.tables.read import read_dataset
from medsyn.errors import InputError, InputProblems
from medsyn.models import model_folder, noise_schedule, tiny
from medsyn.models.scorers import PROVENANCE
from medsyn.models.stable_diffusion import SyntheticSystem, load_synthetic
from medsyn.models.weights import model_fingerprint, weights_fingerprint
from medsyn.seeds import seed
from medsyn.stage import CampaignDirectory, Control, NoProgress, Saved, Task
from medsyn.training import checkpoint, encode_rows
from medsyn.training import run as training_run
from medsyn.training.finetune import dataset, loop, precision, samples, stage, state
from medsyn.training.finetune import publish as publishing
from medsyn.training.finetune.loss import denoising_loss, min_snr_weights
from medsyn.training.finetune.validation import Validation
from medsyn.training.schedule import draws, samples_of_step
from tests.helpers.event_files import assert_as_metrics
from tests.helpers.small_unet import small_unet

TASK = Task("finetune", 0, "ct", "CT")
MEASURED = ("samples_per_second", "tflops", "peak_memory_gib")  # no two runs have the same
STEPS = 6


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion with an even smaller UNet than the tiny one: these tests train it many times."""
    directory = tiny.build_random(tmp_path_factory.mktemp("weights"))
    small_unet().save_pretrained(directory / "unet")
    return directory


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten CT images of eight patients with four captions, and two MRI images."""
    directory = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = ["path,Text,modality,patient_id"]
    for number in range(12):
        Image.fromarray(rng.integers(0, 255, (40, 32), dtype=np.uint8)).save(directory / f"{number}.png")
        modality = "CT" if number < 10 else "MRI"
        lines.append(f"{number}.png,{modality}: finding {number % 4},{modality},secret{number % 8}")
    (directory / "table.csv").write_text("\n".join(lines) + "\n")
    return directory / "table.csv"


def training(weights: Path, table: Path, data: dict[str, Any] | None = None, **section: Any) -> Config:
    """A run with everything on that has a state: accumulation, warm-up, cosine, caption dropout, averaging."""
    base = {
        "max_train_steps": STEPS,
        "train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 2,
        "caption_dropout": 0.3,
        "use_ema": True,
        "checkpointing_steps": 2,
        "checkpoints_total_limit": 2,
    }
    return validate(
        {
            "data": {"table": str(table), "resolution": 32, **(data or {})},
            "model_paths": {"stable_diffusion": str(weights)},
            "finetune": {**base, **section},
            "device": {"use_cuda": False},
        },
        "test",
    )


class StopAt(Control):
    """Asks the task to leave once it has done `step` steps, as a signal that arrives just then would."""

    def __init__(self, step: int, unit: str = "step") -> None:
        super().__init__()
        self.step, self.unit, self.beats = step, unit, 0

    def heartbeat(self, step: int, total: int, unit: str = "step", **numbers: Any) -> None:
        if unit == self.unit:
            self.beats += 1
            if step >= self.step:
                self.request_stop()


def run(config: Config, root: Path, control: Control | None = None) -> None:
    stage.run(config, TASK, CampaignDirectory(root), control or Control())


def unet_bytes(root: Path) -> bytes:
    return (root / "work/finetune/ct/model/unet/diffusion_pytorch_model.safetensors").read_bytes()


def metrics(root: Path) -> list[dict[str, Any]]:
    lines = (root / "work/finetune/ct/metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in MEASURED} for line in lines]


def checkpoints(root: Path) -> list[Path]:
    return sorted((root / "work/finetune/ct/checkpoints").glob("step-*"))


def summary(root: Path) -> dict[str, Any]:
    return disk.read_json(root / "work/finetune/ct/summary.json")


LORA = {"lora": {"rank": 2, "alpha": 4.0}}


@pytest.fixture(scope="module")
def undisturbed(weights: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every disturbed run must end in."""
    root = tmp_path_factory.mktemp("undisturbed")
    run(training(weights, table), root)
    return root


@pytest.fixture(scope="module")
def undisturbed_lora(weights: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with adapters."""
    root = tmp_path_factory.mktemp("undisturbed-lora")
    run(training(weights, table, **LORA), root)
    return root


def assert_same_end(root: Path, undisturbed: Path) -> None:
    assert unet_bytes(root) == unet_bytes(undisturbed)
    assert metrics(root) == metrics(undisturbed)
    work = root / "work/finetune/ct"
    reference = undisturbed / "work/finetune/ct"
    assert sorted(path.name for path in work.iterdir()) == sorted(path.name for path in reference.iterdir())


# --- interrupted == uninterrupted, bit for bit ----------------------------------------------------------------------


@pytest.mark.parametrize("stops", [[0], [3], [STEPS], [1, 2, 4, 5]])
def test_stopping_and_going_on_ends_in_the_same_bits(
    stops: list[int], weights: Path, table: Path, undisturbed: Path, tmp_path: Path
) -> None:
    config = training(weights, table, checkpointing_steps=100)
    for stop in stops:
        control = StopAt(stop)
        if stop == 0:
            control.request_stop()
        with pytest.raises(Saved):
            run(config, tmp_path, control)
        assert [path.name for path in checkpoints(tmp_path)][-1:] == [f"step-{stop:09d}"] * (stop > 0)
    run(config, tmp_path)
    assert_same_end(tmp_path, undisturbed)


def test_with_adapters_too_and_checkpoints_hold_nothing_else(
    weights: Path, table: Path, undisturbed: Path, undisturbed_lora: Path, tmp_path: Path
) -> None:
    assert unet_bytes(undisturbed_lora) != unet_bytes(undisturbed)
    for stop, checkpointing in ((1, False), (2, True), (5, False)):
        with pytest.raises(Saved):
            run(training(weights, table, **LORA, gradient_checkpointing=checkpointing), tmp_path, StopAt(stop))
        saved = load_file(checkpoints(tmp_path)[-1] / "state.safetensors")
        assert all(".lora." in name for name in saved if name != "loss_sum")
        assert {name.partition(".")[0] for name in saved} == {"unet", "average", "optimizer", "loss_sum"}
    run(training(weights, table, **LORA), tmp_path)
    assert_same_end(tmp_path, undisturbed_lora)
    adapter = "work/finetune/ct/model/pytorch_lora_weights.safetensors"
    assert (tmp_path / adapter).read_bytes() == (undisturbed_lora / adapter).read_bytes()


def test_a_loss_scale_is_part_of_the_checkpoint(
    weights: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on sm_70, but that autocast stays off: overflows in steps 2 and 3, and a doubling after two good ones."""
    monkeypatch.setattr(stage, "training_dtype", lambda *_: torch.float16)
    monkeypatch.setattr(loop, "autocast", lambda *_: torch.autocast("cpu", torch.bfloat16, enabled=False))
    monkeypatch.setattr(precision, "_GROW_AFTER", 2)
    clip = torch.nn.utils.clip_grad_norm_
    config, scales = training(weights, table, checkpointing_steps=100), []

    def clipped(steps: Iterator[int]) -> Callable:
        return lambda *rest: clip(*rest) + (float("inf") if next(steps) in (2, 3) else 0)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clipped(itertools.count(1)))
    run(config, tmp_path / "straight")
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clipped(itertools.count(1)))
    for stop in (1, 2, 4, 5):
        with pytest.raises(Saved):
            run(config, tmp_path / "stopped", StopAt(stop))
        scales.append(
            float(load_file(checkpoints(tmp_path / "stopped")[-1] / "state.safetensors")["loss_scale"]) / 2**16
        )
    run(config, tmp_path / "stopped")
    assert scales == [1, 0.5, 0.25, 0.5]
    assert_same_end(tmp_path / "stopped", tmp_path / "straight")


def test_versions_of_an_image_are_encoded_once_and_drawn_alike_in_a_resumed_run(
    weights: Path, table: Path, undisturbed: Path, tmp_path: Path
) -> None:
    config = training(weights, table, augment={"versions": 3, "mirror": True})
    run(config, tmp_path / "straight")
    counted = summary(tmp_path / "straight")
    assert counted["vae_encodes"] == 6 * counted["images"]
    assert unet_bytes(tmp_path / "straight") != unet_bytes(undisturbed)
    for stop in (2, 5):
        with pytest.raises(Saved):
            run(config, tmp_path / "stopped", StopAt(stop))
    run(config, tmp_path / "stopped")
    assert_same_end(tmp_path / "stopped", tmp_path / "straight")


def test_mirrored_versions_are_for_images_without_a_side(weights: Path, own_table: Path, tmp_path: Path) -> None:
    own_table.write_text(own_table.read_text().replace("finding 1", "left finding"))
    config = training(weights, own_table, augment={"versions": 3, "mirror": True})
    rows, _ = dataset.training_rows(config, "CT")
    hashes = hash_files((row.path for row in rows), tmp_path / "files.json")
    system = load_synthetic(str(weights), torch.device("cpu"))
    made = dataset.prepare_dataset(config, rows, hashes, lambda: system, TensorCache(tmp_path / "cache"), Control())
    assert made.versions == [3 if "left" in row.text else 6 for row in rows]
    chosen = draws((0, "x"), 0, len(rows), len(rows), made.latent_shape, 1000, 0.0)
    chosen = replace(chosen, samples=np.arange(len(rows)), posterior=np.zeros_like(chosen.posterior))
    for is_last in (False, True):
        latents, _ = made.batch(replace(chosen, version=np.full(len(rows), 0.999 * is_last)))
        for number, (key, count) in enumerate(zip(made.images, made.versions, strict=True)):
            assert torch.equal(latents[number], made.cache.read(key, "mean")[(count - 1) * is_last].float())


def test_the_adapter_that_is_published_makes_the_base_the_model_that_is_published(
    weights: Path, undisturbed_lora: Path
) -> None:
    model = undisturbed_lora / "work/finetune/ct/model"
    base, made = (load_file(path / "unet" / "diffusion_pytorch_model.safetensors") for path in (weights, model))
    adapter = load_file(model / "pytorch_lora_weights.safetensors")
    layers = {name.removeprefix("unet.").partition(".lora.")[0] for name in adapter}
    for name, value in base.items():
        layer = name.removesuffix(".weight")
        if layer in layers:
            up, down = (adapter[f"unet.{layer}.lora.{which}.weight"] for which in ("up", "down"))
            assert torch.allclose(value + up @ down, made[name], atol=1e-6)
            assert not torch.equal(value, made[name])
        else:
            assert torch.equal(value, made[name])
    assert painted(model).shape == (32, 32, 3)


@pytest.mark.parametrize("every", [2, 4, 100])
def test_the_same_holds_for_an_average_of_some_steps(every: int, weights: Path, table: Path, tmp_path: Path) -> None:
    """Stopped where an update is due, between two, and at the end, where the steps since the last one are missing."""
    config = training(weights, table, ema_every=every, checkpointing_steps=100)
    run(config, tmp_path / "straight")
    for stop in (1, 4, 6):
        with pytest.raises(Saved):
            run(config, tmp_path / "stopped", StopAt(stop))
    run(config, tmp_path / "stopped")
    assert_same_end(tmp_path / "stopped", tmp_path / "straight")


@pytest.mark.parametrize("lines", [100, 1], ids=["a line per step", "stopped inside an interval of the metrics"])
def test_the_same_holds_for_a_plain_run(
    lines: int, weights: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_METRICS_LINES", lines)
    options = {"use_ema": False, "gradient_accumulation_steps": 1, "lr_scheduler": "constant", "snr_gamma": None}
    config = training(weights, table, **options)
    run(config, tmp_path / "straight")
    assert len(metrics(tmp_path / "straight")) == (STEPS if lines == 100 else 1)
    with pytest.raises(Saved):
        run(config, tmp_path / "stopped", StopAt(3))
    run(config, tmp_path / "stopped")
    assert_same_end(tmp_path / "stopped", tmp_path / "straight")


def kill_self(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_run(config: Config, root: Path, sabotage: Callable[[], None]) -> None:
    """Run in a forked process that `sabotage` makes kill itself with SIGKILL somewhere."""
    child = os.fork()
    if child == 0:
        try:
            sabotage()
            run(config, root)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def on_call(number: int, function: Callable, action: Callable) -> Callable:
    """`function`, but its call `number` (from 1) runs `action` with its arguments instead."""
    calls = {"count": 0}

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        calls["count"] += 1
        return (action if calls["count"] == number else function)(*arguments, **keywords)

    return wrapped


def half_a_state(*arguments: Any) -> None:
    """Of whatever writes {name: tensor} to a path, half."""
    tensors = next(one for one in arguments if isinstance(one, dict) and torch.is_tensor(next(iter(one.values()))))
    path = next(one for one in arguments if isinstance(one, Path))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    os.truncate(path, path.stat().st_size // 2)
    kill_self()


def half_a_line(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.write(json.dumps(record)[:20])
    kill_self()


KILLS: dict[str, tuple[Any, str, Callable[[Any], Callable]]] = {
    "in the first save": (checkpoint, "write_tensors", lambda real: on_call(1, real, half_a_state)),
    "in the second save": (checkpoint, "write_tensors", lambda real: on_call(2, real, half_a_state)),
    "before the second is pruned": (checkpoint, "discard", lambda real: on_call(1, real, kill_self)),
    "in a line of the metrics": (disk, "append_jsonl", lambda real: on_call(3, real, half_a_line)),
    "between two saves": (loop, "draws", lambda real: on_call(4, real, kill_self)),
    "while images are encoded": (encode_rows, "read_image", lambda real: on_call(5, real, kill_self)),
    "before the model is published": (stage, "publish", lambda real: kill_self),
    "while the model is published": (state, "save_file", lambda real: kill_self),
    "when the model is published": (shutil, "rmtree", lambda real: on_call(9, real, kill_self)),
}


@pytest.mark.parametrize("kill", KILLS)
def test_kill_minus_nine_anywhere_ends_in_the_same_bits(
    kill: str, weights: Path, table: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, name, make = KILLS[kill]
    config = training(weights, table)
    killed_run(config, tmp_path, lambda: monkeypatch.setattr(place, name, make(getattr(place, name))))
    run(config, tmp_path)
    assert_same_end(tmp_path, undisturbed)


@pytest.mark.parametrize("kill", ["in the second save", "before the model is published"])
def test_the_same_holds_where_the_clock_says_when_to_save(
    kill: str, weights: Path, table: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, name, make = KILLS[kill]
    config = training(weights, table, checkpointing_steps=None, max_lost_minutes=1e-9)
    killed_run(config, tmp_path, lambda: monkeypatch.setattr(place, name, make(getattr(place, name))))
    assert checkpoints(tmp_path)
    run(config, tmp_path)
    assert_same_end(tmp_path, undisturbed)


LORA_KILLS: dict[str, tuple[Any, str, Callable[[Any], Callable]]] = {
    "between two saves": KILLS["between two saves"],
    "before the adapter is written": (state, "save_adapter", lambda real: kill_self),
}


@pytest.mark.parametrize("kill", LORA_KILLS)
def test_and_with_adapters(
    kill: str, weights: Path, table: Path, undisturbed_lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, name, make = LORA_KILLS[kill]
    config = training(weights, table, **LORA)
    killed_run(config, tmp_path, lambda: monkeypatch.setattr(place, name, make(getattr(place, name))))
    run(config, tmp_path)
    assert_same_end(tmp_path, undisturbed_lora)


@pytest.fixture(scope="module")
def stopped(weights: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stopped")
    stopped_at_four(training(weights, table), root)
    return root


def stopped_at_four(config: Config, root: Path) -> None:
    with pytest.raises(Saved):
        run(config, root, StopAt(4))
    assert [path.name for path in checkpoints(root)] == ["step-000000002", "step-000000004"]


@pytest.mark.parametrize("damage", ["cut", "a bit flipped", "manifest gone"])
def test_a_damaged_newest_checkpoint_costs_its_steps_and_nothing_else(
    damage: str, weights: Path, table: Path, undisturbed: Path, tmp_path: Path
) -> None:
    config = training(weights, table)
    stopped_at_four(config, tmp_path)
    newest = checkpoints(tmp_path)[-1]
    state = newest / "state.safetensors"
    if damage == "cut":
        os.truncate(state, 1000)
    elif damage == "a bit flipped":
        content = bytearray(state.read_bytes())
        content[-7] ^= 4
        state.write_bytes(bytes(content))
    else:
        (newest / "manifest.json").unlink()
    run(config, tmp_path)
    assert_same_end(tmp_path, undisturbed)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(
    weights: Path, table: Path, tmp_path: Path
) -> None:
    config = training(weights, table)
    stopped_at_four(config, tmp_path)
    for path in checkpoints(tmp_path):
        os.truncate(path / "state.safetensors", 1000)
    lines = metrics(tmp_path)
    with pytest.raises(NoProgress):
        run(config, tmp_path)
    assert metrics(tmp_path) == lines


def test_a_full_disk_ends_the_run_and_room_on_it_lets_it_go_on(
    weights: Path, table: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = training(weights, table)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", on_call(2, checkpoint.write_tensors, full))
        with pytest.raises(OSError, match="No space left"):
            run(config, tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000002"]
    run(config, tmp_path)
    assert_same_end(tmp_path, undisturbed)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"learning_rate": 2e-3}, "finetune.learning_rate"),
        ({"max_train_steps": 7}, "finetune.max_train_steps"),
        ({"train_batch_size": 4}, "finetune.global_batch"),
        ({"lora": {"rank": 2}}, "finetune.lora.rank"),
        ({"data": {"resolution": 64}}, "data.resolution"),
        ({"data": {"held_out_fraction": 0.6}}, "data.table"),
        ({"data": {"allow_synthetic": True}}, "data.allow_synthetic"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_going_on_under_other_conditions_is_refused_by_name(
    finished: bool, change: dict, key: str, weights: Path, table: Path, undisturbed: Path, stopped: Path
) -> None:
    with pytest.raises(InputError) as caught:
        run(training(weights, table, **change), undisturbed if finished else stopped)
    assert key in str(caught.value.problem.key)


def test_captions_that_differ_late_are_told_apart_where_they_are_read(
    weights: Path, table: Path, tmp_path: Path
) -> None:
    """Two data sets whose captions differ after token 77 alone: one model, or with `text_chunks` two."""
    filler = "finding " * 90  # a token each
    models = {}
    for side in ("left", "right"):
        own = table.with_name(f"{side}.csv")
        own.write_text(table.read_text().replace("finding", f"{filler}{side}"))
        for chunks in (None, 2):
            root = tmp_path / f"{side}-{chunks}"
            config = training(weights, own, {"text_chunks": chunks}, max_train_steps=1, use_ema=False)
            run(config, root)
            models[side, chunks] = unet_bytes(root)
    assert models["left", None] == models["right", None]
    assert models["left", 2] != models["right", 2]


def test_how_much_of_a_text_is_read_is_on_record_and_cannot_change_on_the_way(
    weights: Path, table: Path, tmp_path: Path
) -> None:
    config = training(weights, table, {"text_chunks": 2}, max_train_steps=2)
    with pytest.raises(Saved):
        run(config, tmp_path, StopAt(1))
    with pytest.raises(InputError, match=r"data\.text_chunks was 2 and is None"):
        run(training(weights, table, max_train_steps=2), tmp_path)
    run(config, tmp_path)
    assert model_folder.trained_chunks(tmp_path / "work/finetune/ct/model") == 2


def test_images_with_rare_captions_are_seen_more_often_and_encoded_once(
    weights: Path, table: Path, tmp_path: Path
) -> None:
    own = table.with_name("unbalanced.csv")
    text = table.read_text()
    for number in (0, 1, 2):
        text = text.replace(f"finding {number}", "normal")
    own.write_text(text)
    short = {"data": {"held_out_fraction": 0.4}, "validate_every": 3, "max_train_steps": 3, "use_ema": False}
    config = training(weights, own, **short, rare_captions=3)
    run(config, tmp_path / "whole")
    rows, held_out = dataset.training_rows(config, "CT")
    number = Counter(row.text for row in rows)
    assert set(number) == {"CT: normal", "CT: finding 3"} and number["CT: normal"] >= 2 * number["CT: finding 3"]
    times = min(3, number["CT: normal"] // number["CT: finding 3"])
    found = summary(tmp_path / "whole")
    assert found["samples"] == found["vae_encodes"] == len(rows)
    assert found["samples_with_repeats"] == number["CT: normal"] + times * number["CT: finding 3"] > len(rows)
    assert {len(losses) for losses in per_image(tmp_path / "whole").values()} == {len(held_out)}
    with pytest.raises(Saved):
        run(config, tmp_path / "stopped", StopAt(1))
    with pytest.raises(InputError, match=r"finetune\.rare_captions was 3 and is 2"):
        run(training(weights, own, **short, rare_captions=2), tmp_path / "stopped")
    run(config, tmp_path / "stopped")
    assert_same_end(tmp_path / "stopped", tmp_path / "whole")


CONSTANT = {"lr_scheduler": "constant", "ema_every": 4}


@pytest.mark.parametrize("after", ["the end", "a stop", "a kill before the new model is there"])
def test_a_run_at_a_constant_rate_is_lengthened_as_if_it_had_been_longer_from_the_start(
    after: str,
    weights: Path,
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    longer = training(weights, table, **CONSTANT, checkpointing_steps=3)
    run(longer, tmp_path / "long")
    shorter, root = training(weights, table, **CONSTANT, max_train_steps=4, checkpointing_steps=3), tmp_path / "run"
    if after == "a stop":
        with pytest.raises(Saved):
            run(shorter, root, StopAt(2))
    else:
        run(shorter, root)
        run(shorter, root)
        assert [path.name for path in checkpoints(root)] == ["step-000000003"]
    if after.startswith("a kill"):
        killed_run(longer, root, lambda: monkeypatch.setattr(publishing, "discard", kill_self))
    run(longer, root)
    assert_same_end(root, tmp_path / "long")
    assert [path.name for path in checkpoints(root)] == ["step-000000006"]
    assert ("the model after 4 steps is trained on to 6, from step " in caplog.text) == (after != "a stop")
    if after == "the end":
        assert "to 6, from step 3" in caplog.text  # after the kill, step 6 may have been written by then
    with pytest.raises(InputError, match=r"max_train_steps"):
        run(shorter, root)
    for path in (root / "work/finetune/ct/model", root / "work/finetune/ct/summary.json"):
        disk.remove(path)
    with pytest.raises(InputError, match="a checkpoint after 6 steps, so 4 cannot be asked for"):
        run(shorter, root)


def test_a_lengthened_run_keeps_the_unet_that_was_the_last(weights: Path, table: Path, tmp_path: Path) -> None:
    options = {**CONSTANT, "checkpointing_steps": 1, "keep_every": 1}
    run(training(weights, table, **options, max_train_steps=1), tmp_path)
    last = unet_bytes(tmp_path)
    run(training(weights, table, **options, max_train_steps=2), tmp_path)
    kept = tmp_path / "work/finetune/ct/checkpoint-1"
    assert (kept / "unet/diffusion_pytorch_model.safetensors").read_bytes() == last != unet_bytes(tmp_path)
    assert disk.read_json(kept / PROVENANCE)["step"] == 1


def test_without_a_checkpoint_a_longer_run_begins_anew_and_says_so(
    weights: Path, table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {**CONSTANT, "keep_last_checkpoint": False}
    run(training(weights, table, **options, max_train_steps=1), tmp_path / "run")
    assert checkpoints(tmp_path / "run") == []
    for name in ("run", "straight"):
        run(training(weights, table, **options, max_train_steps=2), tmp_path / name)
    assert "the model after 1 steps is trained on to 2, anew: there is no checkpoint" in caplog.text
    assert_same_end(tmp_path / "run", tmp_path / "straight")


def test_changed_images_captions_or_weights_are_refused_by_name(weights: Path, table: Path, tmp_path: Path) -> None:
    data, model = tmp_path / "data", tmp_path / "weights"
    shutil.copytree(table.parent, data)
    shutil.copytree(weights, model)
    config = training(model, data / "table.csv")
    stopped_at_four(config, tmp_path / "run")

    used, _ = dataset.training_rows(config, "CT")
    content, text = used[0].path.read_bytes(), (data / "table.csv").read_text()
    Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32)).save(used[0].path)
    with pytest.raises(InputError, match=r"data\.table"):
        run(config, tmp_path / "run")
    used[0].path.write_bytes(content)
    (data / "table.csv").write_text(text.replace("finding 1", "finding one"))
    with pytest.raises(InputError, match=r"data\.table"):
        run(config, tmp_path / "run")
    (data / "table.csv").write_text(text)
    unet = model / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: value + 1 for name, value in load_file(unet).items()}, unet)
    with pytest.raises(InputError, match=r"model_paths\.stable_diffusion"):
        run(config, tmp_path / "run")


def test_what_does_not_touch_the_weights_may_change_on_the_way(
    weights: Path, table: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """More checkpoints, fewer kept, and gradient checkpointing after an out-of-memory."""
    stopped_at_four(training(weights, table), tmp_path)
    changed = training(weights, table, checkpointing_steps=1, checkpoints_total_limit=1, gradient_checkpointing=True)
    run(changed, tmp_path)
    assert_same_end(tmp_path, undisturbed)


def test_a_model_of_unknown_origin_is_not_taken_for_ours(weights: Path, table: Path, tmp_path: Path) -> None:
    (CampaignDirectory(tmp_path).finetuned_unet("CT") / "unet").mkdir(parents=True)
    with pytest.raises(InputError, match=r"finetune\.learning_rate was None"):
        run(training(weights, table), tmp_path)


def test_a_finished_run_loads_nothing(
    weights: Path, table: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "load_synthetic", kill_self)
    monkeypatch.setattr(stage, "load_unet", kill_self)
    run(training(weights, table), undisturbed)


def test_checkpoints_are_pruned_and_lines_are_not_doubled(weights: Path, table: Path, tmp_path: Path) -> None:
    config = training(weights, table, checkpointing_steps=1, checkpoints_total_limit=2)
    with pytest.raises(Saved):
        run(config, tmp_path, StopAt(5))
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000004", "step-000000005"]
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 5]


# --- validation -----------------------------------------------------------------------------------------------------

VALIDATED = {"validate_every": 2, "data": {"held_out_fraction": 0.4}}


@pytest.fixture(scope="module")
def validated(weights: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("validated")
    run(training(weights, table, **VALIDATED), root)
    return root


def per_image(root: Path) -> dict[int, list[float]]:
    return {line["step"]: line["losses"] for line in disk.read_jsonl(root / "work/finetune/ct/validation.jsonl")}


def test_the_held_out_loss_is_measured_and_training_does_not_notice(
    weights: Path, table: Path, validated: Path, tmp_path: Path
) -> None:
    run(training(weights, table, data=VALIDATED["data"]), tmp_path)
    assert unet_bytes(validated) == unet_bytes(tmp_path)
    losses = per_image(validated)
    assert list(losses) == [0, 2, 4, 6] and {len(each) for each in losses.values()} == {4}
    lines = {line["step"]: line for line in metrics(validated)}
    for step in (2, 4, 6):
        mean, low, high = lines[step].pop("held_out_loss")
        half = 1.96 * np.std(losses[step], ddof=1) / 2
        assert (mean, low, high) == pytest.approx((np.mean(losses[step]), mean - half, mean + half))
        change = np.subtract(losses[step], losses[0])
        assert lines[step].pop("held_out_change")[0] == pytest.approx(change.mean())
    assert list(lines.values()) == metrics(tmp_path), "everything else is as without"


def strips(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "work/finetune/ct/samples").iterdir())}


def test_held_out_captions_are_drawn_on_the_way_and_training_does_not_notice(
    weights: Path, table: Path, validated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "_STEPS", 2)
    config = training(weights, table, **VALIDATED, validation_images=2)
    run(config, tmp_path / "whole")
    assert unet_bytes(tmp_path / "whole") == unet_bytes(validated)
    made = strips(tmp_path / "whole")
    assert list(made) == [f"step-{step:09d}.png" for step in (0, 2, 4, 6)]
    assert made["step-000000000.png"] != made["step-000000006.png"]
    picture = read_image(tmp_path / "whole/work/finetune/ct/samples/step-000000002.png")
    assert picture.synthetic and picture.pixels.shape[:2] == (32, 64)
    with Image.open(io.BytesIO(made["step-000000002.png"])) as image:
        captions = [image.info[f"caption {number}"] for number in (1, 2)]
    _, held_out = dataset.training_rows(config, "CT")
    assert captions == list(dict.fromkeys(row.text for row in held_out))[:2]
    with pytest.raises(Saved):
        run(config, tmp_path / "stopped", StopAt(3))
    run(config, tmp_path / "stopped")
    assert strips(tmp_path / "stopped") == made


def test_event_files_have_what_the_metrics_have(weights: Path, table: Path, validated: Path, tmp_path: Path) -> None:
    config = training(weights, table, **VALIDATED)
    config = config.model_copy(update={"training": config.training.model_copy(update={"report_to": "tensorboard"})})
    with pytest.raises(Saved):
        run(config, tmp_path, StopAt(3))
    run(config, tmp_path)
    assert_as_metrics(tmp_path / "work/finetune/ct", "step")
    assert metrics(tmp_path) == metrics(validated) and unet_bytes(tmp_path) == unet_bytes(validated)


def test_the_held_out_loss_is_that_of_what_is_published(weights: Path, table: Path, validated: Path) -> None:
    """Worked out with the published model: the average, the posterior's mean, the same noise and timesteps."""
    config = training(weights, table, **VALIDATED)
    system = load_synthetic(str(weights), torch.device("cpu"), unet_from=validated / "work/finetune/ct/model")
    noise_scheduler = DDPMScheduler.from_config(system.scheduler_config)
    alphas = noise_scheduler.alphas_cumprod
    _, held_out = dataset.training_rows(config, "CT")
    expected = []
    for number, row in enumerate(held_out):
        rng = np.random.default_rng(seed(0, "finetune", "ct", "validation", number))
        noise = torch.from_numpy(rng.standard_normal((4, *system.latent_shape(32)), dtype=np.float32))
        timesteps = torch.from_numpy(((np.arange(4) + rng.random(4)) / 4 * 1000).astype(np.int64))
        pixels = torch.from_numpy(fit_square(read_image(row.path, "CT").pixels, 32).transpose(2, 0, 1).copy())[None]
        latents = system.encode(pixels)[0].half().float().expand(4, -1, -1, -1)
        hidden = system.embed(row.text)[0].half().float().expand(4, -1, -1)
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        target = noise if system.prediction_type == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        with torch.no_grad():
            predicted = system.unet(alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, timesteps, hidden).sample
        weight = min_snr_weights(alphas, 5.0, system.prediction_type)[timesteps]
        expected.append(float(((predicted - target).square().mean(dim=(1, 2, 3)) * weight).mean()))
    assert per_image(validated)[6] == pytest.approx(expected, rel=1e-3)


VALIDATION_KILLS: dict[str, tuple[Any, str, Callable[[Any], Callable]]] = {
    "before the first line": (disk, "append_jsonl", lambda real: on_call(1, real, half_a_line)),
    "between a validation and its line": (disk, "append_jsonl", lambda real: on_call(4, real, half_a_line)),
    "while the best is kept": (state, "save_file", lambda real: on_call(2, real, half_a_state)),
    "after the best was kept": (training_run, "save_checkpoint", lambda real: on_call(2, real, kill_self)),
    "when the best is published": (shutil, "rmtree", lambda real: on_call(9, real, kill_self)),
}


@pytest.mark.parametrize("kill", VALIDATION_KILLS)
def test_kills_around_validation_change_nothing(
    kill: str, weights: Path, table: Path, best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, name, make = VALIDATION_KILLS[kill]
    config = training(weights, table, keep_best=True, **VALIDATED)
    killed_run(config, tmp_path, lambda: monkeypatch.setattr(place, name, make(getattr(place, name))))
    run(config, tmp_path)
    assert unet_bytes(tmp_path) == unet_bytes(best)
    assert metrics(tmp_path) == metrics(best)
    assert per_image(tmp_path) == per_image(best)
    names = sorted(path.name for path in (tmp_path / "work/finetune/ct").iterdir())
    assert names == ["metrics.jsonl", "model", "summary.json", "validation.jsonl"]


@pytest.fixture(scope="module")
def best(weights: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("best")
    run(training(weights, table, keep_best=True, **VALIDATED), root)
    return root


def test_the_best_is_published_and_not_the_last(
    weights: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With losses that turn at step 4: what is published is what a run keeps of that step, whatever came later."""
    turning = iter([9.0, 3.0, 2.0, 2.5, 1.0, 4.0, 5.0])  # one measurement a step, also over the stops
    errors = Validation._errors
    monkeypatch.setattr(
        Validation, "_errors", lambda *its: [loss + added for added in [next(turning)] for loss in errors(*its)]
    )
    options = VALIDATED | {"validate_every": 1, "keep_every": 4, "checkpointing_steps": 100}
    for stop in (3, 5):
        with pytest.raises(Saved):
            run(training(weights, table, keep_best=True, **options), tmp_path, StopAt(stop))
    run(training(weights, table, keep_best=True, **options), tmp_path)
    assert unet_bytes(tmp_path) == kept(tmp_path)["checkpoint-4"]
    assert summary(tmp_path)["best_step"] == 4
    assert model_folder.problems(str(tmp_path / "work/finetune/ct/model")) == []


def test_too_few_held_out_images_are_told(weights: Path, table: Path, tmp_path: Path) -> None:
    config = training(weights, table, validate_every=2, data={"held_out_fraction": 0.05})
    with pytest.raises(InputError, match="at least 2 held-out images for each model, and there are 1 of CT"):
        run(config, tmp_path)
    with pytest.raises(InputProblems, match="keep_best needs validate_every"):
        training(weights, table, keep_best=True)


# --- what it leaves is a whole pipeline, and may be the next one's base ---------------------------------------------


def painted(model: Path) -> np.ndarray:
    """What diffusers alone, told nothing, makes with a model."""
    pipeline = StableDiffusionPipeline.from_pretrained(str(model))
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "np"}
    image: np.ndarray = pipeline("CT: finding 1", generator=torch.Generator().manual_seed(0), **options).images[0]
    return image


def test_the_result_is_a_pipeline_that_diffusers_loads_and_runs(
    weights: Path, undisturbed: Path, tmp_path: Path
) -> None:
    model = undisturbed / "work/finetune/ct/model"
    before, after = painted(weights), painted(model)
    assert before.shape == after.shape == (32, 32, 3)
    assert not np.array_equal(before, after)
    UNet2DConditionModel.from_pretrained(str(model / "unet")).save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").read_bytes() == unet_bytes(undisturbed)


def test_the_result_is_the_base_of_the_next_run(table: Path, undisturbed: Path, tmp_path: Path) -> None:
    model = shutil.copytree(undisturbed / "work/finetune/ct/model", tmp_path / "model")
    run(training(model, table, max_train_steps=1), tmp_path / "next")
    shutil.rmtree(model)
    again = tmp_path / "next/work/finetune/ct/model"
    assert model_folder.problems(str(again)) == []
    made_from = disk.read_json(again / PROVENANCE)["model_paths.stable_diffusion"]
    assert made_from == weights_fingerprint(str(undisturbed / "work/finetune/ct/model"))
    assert made_from != weights_fingerprint(str(again))


@pytest.mark.parametrize("what", ["is not there any more", "has changed during the training"])
def test_a_base_that_goes_or_changes_costs_no_step(
    what: str, weights: Path, table: Path, undisturbed: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(weights, tmp_path / "base")
    config = training(base, table)

    class Loses(Control):
        def heartbeat(self, step: int, total: int, unit: str = "step", **numbers: Any) -> None:
            if unit == "step" and step == total:
                shutil.rmtree(base / "vae" if "changed" in what else base)

    with pytest.raises(InputError, match=what):
        run(config, tmp_path, Loses())
    shutil.copytree(weights, base, dirs_exist_ok=True)
    run(config, tmp_path)
    assert_same_end(tmp_path, undisturbed)


def kept(root: Path) -> dict[str, bytes]:
    folders = (root / "work/finetune/ct").glob("checkpoint-*")
    return {path.name: (path / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() for path in folders}


@pytest.fixture(scope="module")
def with_kept(weights: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kept")
    run(training(weights, table, keep_every=2), root)
    return root


def test_kept_unets_are_what_a_shorter_run_ends_with(
    weights: Path, table: Path, undisturbed: Path, with_kept: Path, tmp_path: Path
) -> None:
    assert sorted(kept(with_kept)) == ["checkpoint-2", "checkpoint-4"]  # the last is the model
    assert unet_bytes(with_kept) == unet_bytes(undisturbed)
    constant = {"lr_scheduler": "constant"}
    run(training(weights, table, keep_every=4, **constant), tmp_path / "long")
    run(training(weights, table, max_train_steps=4, **constant), tmp_path / "short")
    assert kept(tmp_path / "long") == {"checkpoint-4": unet_bytes(tmp_path / "short")}
    load_synthetic(str(weights), torch.device("cpu"), unet_from=tmp_path / "long/work/finetune/ct/checkpoint-4")


KILLS_AROUND_KEEPING: dict[str, tuple[Any, str, Callable[[Any], Callable]]] = {
    "in the first": (state, "save_file", lambda real: on_call(1, real, half_a_state)),
    "in the second": (state, "save_file", lambda real: on_call(2, real, half_a_state)),
    "after it, before the checkpoint": (training_run, "save_checkpoint", lambda real: on_call(2, real, kill_self)),
}


@pytest.mark.parametrize("kill", KILLS_AROUND_KEEPING)
def test_a_kill_while_a_unet_is_kept_changes_nothing(
    kill: str, weights: Path, table: Path, with_kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, name, make = KILLS_AROUND_KEEPING[kill]
    config = training(weights, table, keep_every=2)
    killed_run(config, tmp_path, lambda: monkeypatch.setattr(place, name, make(getattr(place, name))))
    run(config, tmp_path)
    assert kept(tmp_path) == kept(with_kept)
    assert unet_bytes(tmp_path) == unet_bytes(with_kept)
    assert not list((tmp_path / "work/finetune/ct").glob(".*"))


def test_weights_that_are_not_finite_are_not_kept(
    weights: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_METRICS_LINES", 1)  # the loss is not looked at before the end
    monkeypatch.setattr(loop, "learning_rate", lambda *_: float("nan"))
    with pytest.raises(NoProgress, match="the loss is nan at step 2"):
        run(training(weights, table, keep_every=2, checkpointing_steps=100), tmp_path)
    assert kept(tmp_path) == {}


def test_the_shape_of_sd2_goes_through_the_same_code(weights: Path, table: Path, tmp_path: Path) -> None:
    """Text features of 1024, gelu, linear projections, heads by level, v-prediction."""
    base = shutil.copytree(weights, tmp_path / "sd2")
    settings = CLIPTextConfig.from_pretrained(str(base / "text_encoder")).to_dict()
    small = {"hidden_size": 1024, "num_hidden_layers": 1, "intermediate_size": 64, "num_attention_heads": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = CLIPTextModel(CLIPTextConfig(**settings | small | {"hidden_act": "gelu", "projection_dim": 512}))
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=1024,
            attention_head_dim=[2, 4],
            use_linear_projection=True,
            upcast_attention=True,
            norm_num_groups=4,
        )
    text.half().save_pretrained(base / "text_encoder")
    unet.half().save_pretrained(base / "unet")
    tiny.make_scheduler("v_prediction").save_pretrained(base / "scheduler")
    assert not architecture.read(str(base), 32).assumed
    run(training(base, table, max_train_steps=1), tmp_path / "run")
    model = tmp_path / "run/work/finetune/ct/model"
    assert painted(model).shape == (32, 32, 3)
    generator = Generator(base, finetuned=model, device="cpu", height=32, num_inference_steps=1)
    (image,) = generator.images("CT: finding 1", count=1)
    assert image.record["accepted"]


# --- nothing waits ---------------------------------------------------------------------------------------------------


def test_the_samples_of_the_next_step_are_made_while_this_one_computes(
    weights: Path, table: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {step: threading.Event() for step in range(STEPS)}
    draw, loss, computed = loop.draws, loop.denoising_loss, []

    def drawing(key: Any, step: int, *arguments: Any) -> Any:
        made[step].set()
        return draw(key, step, *arguments)

    def computing(*arguments: Any) -> torch.Tensor:
        step = len(computed) // 2  # micro-batches
        assert made[min(step + 1, STEPS - 1)].wait(30)
        computed.append(step)
        return loss(*arguments)

    monkeypatch.setattr(loop, "draws", drawing)
    monkeypatch.setattr(loop, "denoising_loss", computing)
    run(training(weights, table), tmp_path)
    assert_same_end(tmp_path, undisturbed)


# --- every image once, every caption once, held out is held out -----------------------------------------------------


def test_images_are_encoded_once_and_captions_embedded_once(
    weights: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, embedded, read = [], [], []
    encode, embed, read_image = AutoencoderKL.encode, SyntheticSystem.embed, encode_rows.read_image
    monkeypatch.setattr(AutoencoderKL, "encode", lambda self, x: (encoded.append(len(x)), encode(self, x))[1])
    monkeypatch.setattr(SyntheticSystem, "embed", lambda self, text: (embedded.append(text), embed(self, text))[1])
    monkeypatch.setattr(encode_rows, "read_image", lambda path, *more: (read.append(path), read_image(path, *more))[1])
    config = training(weights, table)
    run(config, tmp_path)  # 24 samples: three epochs

    rows, held_out = dataset.training_rows(config, "CT")
    assert 0 < len(held_out) == 10 - len(rows)
    assert read == [row.path for row in rows]
    assert sum(encoded) == len(encoded) == len(rows)
    assert sorted(embedded) == sorted({"", *(row.text for row in rows)})
    counted = summary(tmp_path)
    assert counted["images"] == counted["vae_encodes"] == len(rows)
    assert counted["text_encoder_calls"] == counted["captions"] + 1 == len(embedded)
    assert counted["held_out"] == len(held_out)
    assert counted["skipped"] == 0


def test_no_patient_is_on_both_sides(weights: Path, table: Path) -> None:
    config = training(weights, table, data={"held_out_fraction": 0.4})
    rows, held_out = dataset.training_rows(config, "CT")
    everything = [row for row in read_dataset(table).rows if row.modality == "CT"]
    others = {row.patient_id for row in everything} - {row.patient_id for row in rows}
    assert len(held_out) == sum(row.patient_id in others for row in everything) == 4
    assert not {row.file for row in rows} & {row.file for row in held_out}


def test_a_resumed_run_encodes_and_embeds_nothing_again_and_loads_nothing_for_it(
    weights: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = training(weights, table)
    with pytest.raises(Saved):
        run(config, tmp_path, StopAt(1))
    monkeypatch.setattr(stage, "load_synthetic", lambda *_, **__: pytest.fail("VAE and text encoder were loaded"))
    run(config, tmp_path)
    assert summary(tmp_path)["vae_encodes"] == summary(tmp_path)["text_encoder_calls"] == 0


def test_a_stop_while_images_are_encoded_keeps_them(
    weights: Path, table: Path, undisturbed: Path, tmp_path: Path
) -> None:
    config = training(weights, table)
    control = StopAt(3, unit="image")
    with pytest.raises(Saved):
        run(config, tmp_path, control)
    assert checkpoints(tmp_path) == []
    run(config, tmp_path)
    assert summary(tmp_path)["vae_encodes"] == summary(undisturbed)["images"] - control.beats - 1
    assert_same_end(tmp_path, undisturbed)


def test_a_torn_cache_file_is_made_again(weights: Path, table: Path, undisturbed: Path, tmp_path: Path) -> None:
    config = training(weights, table)
    with pytest.raises(Saved):
        run(config, tmp_path, StopAt(3))
    for shard in (tmp_path / "cache" / "ct").glob("*.safetensors"):
        os.truncate(shard, shard.stat().st_size - 100)
    run(config, tmp_path)
    assert summary(tmp_path)["vae_encodes"] == summary(undisturbed)["images"]
    assert_same_end(tmp_path, undisturbed)


def test_nothing_that_is_written_names_a_patient(undisturbed: Path) -> None:
    for path in undisturbed.rglob("*"):
        assert "secret" not in path.name
        assert not path.is_file() or b"secret" not in path.read_bytes()


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_table(table: Path, tmp_path: Path) -> Path:
    shutil.copytree(table.parent, tmp_path / "data")
    return tmp_path / "data" / "table.csv"


def spoil(table: Path, weights: Path) -> list[str]:
    """Make two training images unusable, one unreadable and one synthetic; their names."""
    rows, _ = dataset.training_rows(training(weights, table), "CT")
    rows[1].path.write_bytes(rows[1].path.read_bytes()[:60])
    mark = PngInfo()
    mark.add_text(SYNTHETIC_KEY, "YES")
    Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32)).save(rows[3].path, pnginfo=mark)
    return [rows[1].file, rows[3].file]


def test_all_images_that_cannot_be_used_are_told_at_once(weights: Path, own_table: Path, tmp_path: Path) -> None:
    names = spoil(own_table, weights)
    with pytest.raises(InputProblems) as caught:
        run(training(weights, own_table), tmp_path)
    problems = caught.value.problems
    assert [problem.reason.split(":")[0] for problem in problems] == names
    assert [problem.row for problem in problems] == [int(name.removesuffix(".png")) + 2 for name in names]
    assert "allow_synthetic" in problems[1].reason
    assert not (tmp_path / "work").exists()


def test_without_strictness_they_are_left_out_and_counted(weights: Path, own_table: Path, tmp_path: Path) -> None:
    spoil(own_table, weights)
    config = training(weights, own_table, data={"strict": False}, max_train_steps=1)
    run(config, tmp_path)
    rows, _ = dataset.training_rows(config, "CT")
    assert summary(tmp_path)["skipped"] == 2
    assert summary(tmp_path)["samples"] == len(rows) - 2


def test_allowing_synthetic_images_is_another_campaign_not_a_stale_cache(
    weights: Path, own_table: Path, tmp_path: Path
) -> None:
    names = spoil(own_table, weights)
    data = {"strict": False, "allow_synthetic": True}
    run(training(weights, own_table, data=data, max_train_steps=1), tmp_path)
    assert summary(tmp_path)["skipped"] == 1
    shutil.rmtree(tmp_path / "work")
    run(training(weights, own_table, data={"strict": False}, max_train_steps=1), tmp_path)
    assert summary(tmp_path)["skipped"] == len(names)


def test_a_modality_without_a_usable_image_is_an_error_even_without_strictness(
    weights: Path, own_table: Path, tmp_path: Path
) -> None:
    for number in range(10):
        (own_table.parent / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputProblems):
        run(training(weights, own_table, data={"strict": False}), tmp_path)


def test_a_modality_that_the_table_lacks_is_an_error(weights: Path, table: Path, tmp_path: Path) -> None:
    task = Task("finetune", 0, "oct", "OCT")
    with pytest.raises(InputError, match="has no images of OCT"):
        stage.run(training(weights, table), task, CampaignDirectory(tmp_path), Control())


def test_something_is_left_to_train_on_whatever_the_share(weights: Path, table: Path) -> None:
    rows, held_out = dataset.training_rows(training(weights, table, data={"held_out_fraction": 0.9999}), "CT")
    assert len({row.patient_id for row in rows}) == 1 and len(held_out) == 10 - len(rows)


def test_the_same_image_with_two_captions_is_two_samples_and_one_encode(
    weights: Path, own_table: Path, tmp_path: Path
) -> None:
    rows, _ = dataset.training_rows(training(weights, own_table), "CT")
    with own_table.open("a") as stream:
        stream.write(f"{rows[0].file},CT: seen again,CT,{rows[0].patient_id}\n")
    run(training(weights, own_table, max_train_steps=1), tmp_path)
    assert summary(tmp_path)["samples"] == summary(tmp_path)["images"] + 1
    assert summary(tmp_path)["vae_encodes"] == summary(tmp_path)["images"]


def test_an_option_this_machine_does_not_have_is_named(weights: Path, table: Path, tmp_path: Path) -> None:
    for option in ("use_8bit_adam", "enable_xformers"):
        with pytest.raises(InputError) as caught:
            run(training(weights, table, **{option: True}), tmp_path)
        assert caught.value.problem.key == f"finetune.{option}"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_at_once_and_names_the_rows(
    bad: float, weights: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second micro-batch of step 3; nothing of the metrics asks for the loss before the end."""
    monkeypatch.setattr(loop, "_METRICS_LINES", 1)
    rows, _ = dataset.training_rows(training(weights, table), "CT")
    batch = samples_of_step((0, "finetune", "ct"), 2, 4, len(rows))
    real, calls = loop.denoising_loss, []

    def failing(*arguments: Any) -> torch.Tensor:
        calls.append(real(*arguments))
        return calls[-1] * bad if len(calls) == 6 else calls[-1]

    monkeypatch.setattr(loop, "denoising_loss", failing)
    with pytest.raises(NoProgress) as caught:
        run(training(weights, table), tmp_path)
    assert len(calls) == 6
    assert f"the loss is {bad} at step 3, on " in str(caught.value)
    names = [f"{rows[sample].file} (row {rows[sample].row})" for sample in batch]
    assert [name in str(caught.value) for name in names] == [name in names[2:] for name in names]
    assert "secret" not in str(caught.value)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000002"]


class OutOfMemory:
    """In the place of the loss: the GPU's memory holds `most` images at once from call `first` on."""

    def __init__(self, most: int, first: int = 0) -> None:
        self.real, self.most, self.first = loop.denoising_loss, most, first
        self.sizes: list[int] = []

    def __call__(self, *arguments: Any) -> torch.Tensor:
        self.sizes.append(len(arguments[3]))
        if len(self.sizes) > self.first and self.sizes[-1] > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return self.real(*arguments)


def test_out_of_memory_halves_the_micro_batch_and_goes_on_with_the_same_samples(
    weights: Path,
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the second micro-batch of step 4, and again when half as many are tried; stopped after step 5."""
    config = training(weights, table, train_batch_size=4, gradient_accumulation_steps=2)
    run(config, tmp_path / "enough")
    stops: list[int]
    for stops in ([], [5]):
        root = tmp_path / str(stops)
        with monkeypatch.context() as patch:
            patch.setattr(loop, "denoising_loss", memory := OutOfMemory(most=1, first=7))
            for stop in stops:
                with pytest.raises(Saved):
                    run(config, root, StopAt(stop))
            run(config, root)
        assert memory.sizes == [4] * 8 + [2] + [1] * 24, "the rest of step 4, and nothing anew"
    enough, little, stopped = (metrics(tmp_path / name) for name in ("enough", "[]", "[5]"))
    assert [line["loss"] for line in little] == pytest.approx([line["loss"] for line in enough], rel=1e-4)
    assert [line.get("micro_batch") for line in little] == [None] * 3 + [1] * 3
    assert little == stopped
    assert unet_bytes(tmp_path / "[]") == unet_bytes(tmp_path / "[5]")
    record = disk.read_json(tmp_path / "[5]/work/finetune/ct/model" / PROVENANCE)["conditions"]
    common = {"precision": "float32", "train_batch_size": 4}
    assert record == [{"from_step": step, **common, "micro_batch": size} for step, size in ((1, 4), (4, 2), (4, 1))]
    assert "the GPU's memory does not hold 4 images at once" in caplog.text
    assert "from step 4 on micro_batch was 4 and is 2" in caplog.text


def test_where_one_image_is_too_much_it_says_what_takes_less(
    weights: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "denoising_loss", OutOfMemory(most=0))
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"gradient_checkpointing=true.*Tried to allocate"):
        run(training(weights, table), tmp_path)


def test_a_change_of_precision_between_attempts_is_told_and_on_record(
    weights: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = training(weights, table)
    with monkeypatch.context() as patch, pytest.raises(Saved):
        patch.setattr(stage, "training_dtype", lambda *_: torch.bfloat16)
        run(config, tmp_path, StopAt(2))
    run(config, tmp_path)
    assert "from step 3 on precision was bfloat16 and is float32" in caplog.text
    record = disk.read_json(tmp_path / "work/finetune/ct/model" / PROVENANCE)["conditions"]
    assert [(one["from_step"], one["precision"]) for one in record] == [(1, "bfloat16"), (3, "float32")]
    run(config, tmp_path)  # the model is taken for what it is


@pytest.mark.parametrize("use_ema", [False, True])
def test_a_diverging_run_says_so_and_keeps_no_broken_weights(
    use_ema: bool, weights: Path, table: Path, tmp_path: Path
) -> None:
    config = training(weights, table, learning_rate=1e25, lr_scheduler="constant", lr_warmup_steps=0, use_ema=use_ema)
    with pytest.raises(NoProgress, match=r"finetune\.learning_rate"):
        run(config, tmp_path)
    assert checkpoints(tmp_path) == []
    assert not (tmp_path / "work/finetune/ct/model").exists()


# --- the model and the numbers --------------------------------------------------------------------------------------


def test_the_result_is_an_ordinary_diffusers_directory_in_float32(weights: Path, undisturbed: Path) -> None:
    model = CampaignDirectory(undisturbed).finetuned_unet("CT")
    trained = UNet2DConditionModel.from_pretrained(model, subfolder="unet", use_safetensors=True).state_dict()
    before = UNet2DConditionModel.from_pretrained(weights, subfolder="unet").state_dict()
    assert trained.keys() == before.keys()
    assert all(value.dtype == torch.float32 for value in trained.values())
    assert all(torch.isfinite(value).all() for value in trained.values())
    assert not any(torch.equal(trained[name], before[name]) for name in trained)
    for file in (model / "unet").iterdir():
        assert file.stat().st_mode & 0o777 == 0o640


def test_weights_that_are_stored_in_half_precision_are_trained_in_float32(
    weights: Path, table: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    shutil.copytree(weights, half)
    path = half / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: value.half() for name, value in load_file(path).items()}, path)
    run(training(half, table, max_train_steps=1, learning_rate=1e-7), tmp_path / "run")
    trained = load_file(tmp_path / "run" / "work" / "finetune/ct/model/unet/diffusion_pytorch_model.safetensors")
    assert all(value.dtype == torch.float32 for value in trained.values())
    assert any(not torch.equal(value, value.half().float()) for value in trained.values())


def test_the_metrics_have_a_line_per_interval(undisturbed: Path) -> None:
    lines = [json.loads(line) for line in (undisturbed / "work/finetune/ct/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(set(line) == {"step", "loss", "learning_rate", *MEASURED} for line in lines)
    assert all(line["tflops"] > 0 and 0.1 < line["peak_memory_gib"] < 100 for line in lines)
    assert all(line["loss"] > 0 and line["samples_per_second"] > 0 for line in lines)
    assert lines[0]["learning_rate"] == pytest.approx(5e-4)
    assert summary(undisturbed)["loss"] == lines[-1]["loss"]


def test_a_line_holds_the_mean_of_its_interval_and_the_last_one_may_be_short(
    weights: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "denoising_loss", lambda unet, *_: next(unet.parameters()).sum() * 0 + 2.5)
    monkeypatch.setattr(loop, "_METRICS_LINES", 2)
    run(training(weights, table, max_train_steps=7), tmp_path)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [3, 6, 7]
    assert all(line["loss"] == pytest.approx(2.5) for line in lines)


def test_how_a_batch_is_split_into_micro_batches_does_not_matter(weights: Path, table: Path, tmp_path: Path) -> None:
    ends = []
    for size, accumulation in ((4, 1), (2, 2), (1, 4)):
        root = tmp_path / str(size)
        options = {"train_batch_size": size, "gradient_accumulation_steps": accumulation, "max_train_steps": 3}
        run(training(weights, table, **options), root)
        ends.append([line["loss"] for line in metrics(root)])
    assert ends[1] == pytest.approx(ends[0], rel=1e-4)
    assert ends[2] == pytest.approx(ends[0], rel=1e-4)


def test_training_lowers_the_loss(weights: Path, table: Path, tmp_path: Path) -> None:
    options = {"max_train_steps": 40, "train_batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 5e-3}
    run(training(weights, table, checkpointing_steps=100, use_ema=False, **options), tmp_path)
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_the_average_lags_behind_the_weights(weights: Path, table: Path, undisturbed: Path, tmp_path: Path) -> None:
    run(training(weights, table, use_ema=False), tmp_path)
    name = "conv_in.weight"
    path = "work/finetune/ct/model/unet/diffusion_pytorch_model.safetensors"
    start = load_file(weights / "unet" / "diffusion_pytorch_model.safetensors")[name]
    last, average = load_file(tmp_path / path)[name], load_file(undisturbed / path)[name]
    assert 0 < (average - start).norm() < (last - start).norm()
    assert metrics(tmp_path) == metrics(undisturbed)  # averaging must not touch what is trained


# --- the loss -------------------------------------------------------------------------------------------------------


def scheduler(prediction_type: str, **options: Any) -> DDPMScheduler:
    config = dict(tiny.make_scheduler(prediction_type).config)
    return DDPMScheduler.from_config({**config, **options})


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_of_a_perfect_prediction_is_zero_and_of_another_is_its_weighted_square(prediction_type: str) -> None:
    noise_scheduler = scheduler(prediction_type)
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    timesteps = torch.tensor([0, 500, 999])
    alpha = noise_scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    target = noise if prediction_type == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    weights = torch.zeros(1000)
    weights[[0, 500, 999]] = torch.tensor([1.0, 2.0, 4.0])

    class Answer:
        def __init__(self, off: torch.Tensor) -> None:
            self.off = off

        def __call__(self, noisy: torch.Tensor, steps: torch.Tensor, hidden: torch.Tensor) -> Answer:
            assert torch.allclose(noisy, alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, atol=1e-6)
            self.sample = target + self.off
            return self

    def loss(off: torch.Tensor) -> float:
        arguments = (noise_scheduler, weights, latents, torch.zeros(3, 77, 8), noise, timesteps)
        return float(denoising_loss(Answer(off), *arguments))

    assert loss(torch.zeros(3, 1, 1, 1)) == pytest.approx(0, abs=1e-9)
    off = torch.tensor([1.0, 0.5, 3.0]).view(-1, 1, 1, 1)
    assert loss(off) == pytest.approx((1 * 1 + 2 * 0.25 + 4 * 9) / 3, rel=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_weights_the_error_of_the_clean_latents_alike_for_both_targets(gamma: float) -> None:
    alphas = scheduler("epsilon").alphas_cumprod
    snr = alphas / (1 - alphas)
    expected = snr.clamp(max=gamma)
    epsilon = min_snr_weights(alphas, gamma, "epsilon")
    velocity = min_snr_weights(alphas, gamma, "v_prediction")
    assert torch.allclose(epsilon * snr, expected, rtol=1e-5)
    assert torch.allclose(velocity * (snr + 1), expected, rtol=1e-5)
    assert epsilon.max() == 1


def test_min_snr_knows_zero_terminal_snr_and_can_be_switched_off() -> None:
    alphas = torch.tensor([0.99, 0.5, 0.0])
    assert torch.equal(min_snr_weights(alphas, None, "epsilon"), torch.ones(3))
    assert min_snr_weights(alphas, 5.0, "epsilon").tolist() == pytest.approx([5 / 99, 1, 1], rel=1e-4)
    assert min_snr_weights(alphas, 5.0, "v_prediction").tolist() == pytest.approx([0.05, 0.5, 0], rel=1e-4)


def test_a_model_is_trained_over_to_v_and_zero_terminal_snr_and_its_folder_says_so(
    weights: Path, table: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(weights, tmp_path / "base")
    tiny.make_scheduler("epsilon").save_pretrained(base / "scheduler")
    over = {"prediction_type": "v_prediction", "zero_terminal_snr": True, "snr_gamma": None, "noise_offset": 0.1}
    run(training(base, table, max_train_steps=2, keep_every=1, **over), tmp_path / "run")
    model = tmp_path / "run/work/finetune/ct/model"
    for folder in (model, model.parent / "checkpoint-1"):
        system = load_synthetic(str(base), torch.device("cpu"), unet_from=folder)
        assert system.prediction_type == "v_prediction"
        assert system.scheduler_config["rescale_betas_zero_snr"]
        assert system.scheduler_config["timestep_spacing"] == "trailing"
    pipeline = StableDiffusionPipeline.from_pretrained(str(model))
    assert float(pipeline.scheduler.alphas_cumprod[-1]) == pytest.approx(0, abs=1e-9)
    assert np.isfinite(painted(model)).all()
    (image,) = Generator(base, finetuned=model, device="cpu", height=32, num_inference_steps=2).images("CT: a", count=1)
    assert image.record["accepted"]
    before = model_fingerprint(str(base), "unet", model)
    (model / "scheduler" / "scheduler_config.json").write_bytes((base / "scheduler/scheduler_config.json").read_bytes())
    assert model_fingerprint(str(base), "unet", model) != before


def test_zero_terminal_snr_is_refused_where_it_cannot_be_learned(weights: Path, table: Path, tmp_path: Path) -> None:
    base = shutil.copytree(weights, tmp_path / "base")
    tiny.make_scheduler("epsilon").save_pretrained(base / "scheduler")
    with pytest.raises(InputProblems, match="says nothing of the image: set v_prediction"):
        run(training(base, table, zero_terminal_snr=True, snr_gamma=None), tmp_path / "run")
    with pytest.raises(InputProblems, match="zero_terminal_snr needs snr_gamma: null"):
        training(base, table, zero_terminal_snr=True)
    config = training(base, table, zero_terminal_snr=True, snr_gamma=None, prediction_type="v_prediction")
    assert noise_schedule.problems(config) == []
    sampled = config.model_copy(update={"generation": config.generation.model_copy(update={"scheduler": "unipc"})})
    [problem] = noise_schedule.problems(sampled)
    assert problem.key == "generation.scheduler" and "dpm, dpm_sde, ddim, ddpm, euler, euler_a" in problem.reason


def test_both_prediction_types_train_and_others_are_refused(weights: Path, table: Path, tmp_path: Path) -> None:
    for prediction_type in ("epsilon", "sample"):
        model = tmp_path / prediction_type
        shutil.copytree(weights, model)
        tiny.make_scheduler(prediction_type).save_pretrained(model / "scheduler")
    run(training(tmp_path / "epsilon", table, max_train_steps=2), tmp_path / "run")
    assert len(metrics(tmp_path / "run")) == 2
    with pytest.raises(InputError, match="only epsilon and v_prediction"):
        run(training(tmp_path / "sample", table), tmp_path / "other")
