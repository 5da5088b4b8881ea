from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as library_bytes

from medsyn import disk
from medsyn.config import FinetuneSection
from medsyn.errors import InputError
from medsyn.stage import NoProgress
from medsyn.training import checkpoint, tensor_file
from medsyn.training.checkpoint import load_newest, save_checkpoint
from medsyn.training.optimizer import make_optimizer, optimizer_tensors, restore_optimizer

FACTS = {"finetune.learning_rate": 1e-5, "data.table": "abc", "world_size": 1, "list": (1, 2), "nested": {"a": 1}}


def tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "weight": torch.full((3, 5), value),
        "half": torch.full((4,), 0.1, dtype=torch.float16),
        "codes": torch.arange(7, dtype=torch.uint8),
        "step": torch.tensor(value),
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "empty": torch.zeros(0, 3),
    }


def save(directory: Path, *steps: int, keep: int = 10) -> None:
    for step in steps:
        save_checkpoint(directory, step, tensors(float(step)), FACTS, keep)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def newest(directory: Path) -> int:
    found = load_newest(directory, FACTS)
    assert found is not None
    step, loaded = found
    assert torch.equal(loaded["weight"], torch.full((3, 5), float(step)))
    return step


def truncate(path: Path, size: int | None = None) -> None:
    os.truncate(path, path.stat().st_size // 2 if size is None else size)


def flip_bit(path: Path, position: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "state cut in half": lambda path: truncate(path / "state.safetensors"),
    "state empty": lambda path: truncate(path / "state.safetensors", 0),
    "state gone": lambda path: (path / "state.safetensors").unlink(),
    "a bit of a tensor flipped": lambda path: flip_bit(path / "state.safetensors"),
    "a bit of the header flipped": lambda path: flip_bit(path / "state.safetensors", 12),
    "state longer": lambda path: (path / "state.safetensors").open("ab").write(b"x"),
    "manifest gone": lambda path: (path / "manifest.json").unlink(),
    "manifest cut": lambda path: truncate(path / "manifest.json"),
    "manifest empty": lambda path: truncate(path / "manifest.json", 0),
    "manifest not an object": lambda path: (path / "manifest.json").write_text("[1]"),
    "manifest not text": lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "a digit of the facts flipped": lambda path: (path / "manifest.json").write_text(
        (path / "manifest.json").read_text().replace("abc", "abd")
    ),
    "directory empty": lambda path: [file.unlink() for file in path.iterdir()],
    "a file instead": lambda path: (disk.remove(path), path.write_text("?")),
}


def test_what_is_loaded_is_what_was_saved_bit_for_bit(tmp_path: Path) -> None:
    saved = tensors(float("nan"))
    save_checkpoint(tmp_path, 7, saved, FACTS, keep=1)
    found = load_newest(tmp_path, FACTS)
    assert found is not None
    step, loaded = found
    assert step == 7
    assert loaded.keys() == saved.keys()
    for name, tensor in saved.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert loaded[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes()


def test_no_directory_and_an_empty_one_mean_start(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "nowhere", FACTS) is None
    assert load_newest(tmp_path, FACTS) is None


def test_the_newest_is_the_highest_step_not_the_last_in_time_or_alphabet(tmp_path: Path) -> None:
    save(tmp_path, 9, 10, 2_000_000_000, keep=9)
    os.utime(tmp_path / "step-000000009")
    assert newest(tmp_path) == 2_000_000_000


def test_other_things_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    for name in ("notes.txt", "step-000000099.bak", "checkpoint-500", "step-5"):
        (tmp_path / name).mkdir()
    save(tmp_path, 1, 2, 3, keep=1)
    assert newest(tmp_path) == 3
    assert names(tmp_path) == ["checkpoint-500", "notes.txt", "step-000000003", "step-000000099.bak", "step-5"]


def test_older_ones_go_only_after_the_new_one_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    discard = checkpoint.discard
    monkeypatch.setattr(checkpoint, "discard", lambda path: (seen.append(names(tmp_path)), discard(path)))
    save(tmp_path, 1, 2, 3, keep=2)
    assert names(tmp_path) == ["step-000000002", "step-000000003"]
    assert seen == [["step-000000001", "step-000000002", "step-000000003"]]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_skipped_with_a_warning(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, 2)
    DAMAGES[damage](tmp_path / "step-000000002")
    with caplog.at_level(logging.WARNING):
        assert newest(tmp_path) == 1
    assert "step-000000002" in caplog.text


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_run_never_starts_over_when_no_checkpoint_is_intact(damage: str, tmp_path: Path) -> None:
    save(tmp_path, 1)
    DAMAGES[damage](tmp_path / "step-000000001")
    with pytest.raises(NoProgress, match="start over"):
        load_newest(tmp_path, FACTS)
    assert names(tmp_path) == ["step-000000001"]  # the evidence stays


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_never_wins_over_what_is_saved_after_it(damage: str, tmp_path: Path) -> None:
    save(tmp_path, 10, 20, 30)
    DAMAGES[damage](tmp_path / "step-000000030")
    assert newest(tmp_path) == 20
    save_checkpoint(tmp_path, 25, tensors(25.0), FACTS, keep=1)
    assert names(tmp_path) == ["step-000000025"]
    assert newest(tmp_path) == 25


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_replaced_when_its_step_is_reached_again(damage: str, tmp_path: Path) -> None:
    save(tmp_path, 10, 20)
    DAMAGES[damage](tmp_path / "step-000000020")
    save_checkpoint(tmp_path, 20, tensors(20.0), FACTS, keep=2)
    assert names(tmp_path) == ["step-000000010", "step-000000020"]
    assert newest(tmp_path) == 20


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({"finetune.learning_rate": 2e-5}, ["finetune.learning_rate"]),
        ({"data.table": "xyz", "world_size": 2}, ["data.table", "world_size"]),
        ({"nested": {"a": 2}}, ["nested.a"]),
        ({"new": 3}, ["new"]),
    ],
)
def test_other_facts_are_refused_by_name(change: dict, keys: list[str], tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(InputError) as caught:
        load_newest(tmp_path, {**FACTS, **change})
    assert caught.value.problem.key == ", ".join(keys)
    assert all(key in str(caught.value) for key in keys)
    assert "list" not in str(caught.value)


def test_a_fact_that_is_gone_is_a_difference(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(InputError, match="world_size was 1 and is None"):
        load_newest(tmp_path, {key: value for key, value in FACTS.items() if key != "world_size"})


def test_a_full_disk_leaves_what_was_there_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    before = names(tmp_path)
    calls = {"count": 0}
    fsync = os.fsync
    for fail_at in range(4):  # manifest, its directory, state, …: whichever write meets the full disk
        calls["count"] = 0

        def full(descriptor: int, fail_at: int = fail_at) -> None:
            calls["count"] += 1
            if calls["count"] > fail_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as caught:
            save_checkpoint(tmp_path, 2, tensors(2.0), FACTS, keep=1)
        assert caught.value.errno == errno.ENOSPC
        monkeypatch.setattr(os, "fsync", fsync)
        assert names(tmp_path) == before
        assert newest(tmp_path) == 1


def test_tensors_are_written_as_the_library_writes_them_and_hashed_on_the_way(tmp_path: Path) -> None:
    many = {f"é {dtype}": torch.arange(6).to(dtype).reshape(3, 2) for dtype in tensor_file._NAMES} | {
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(1.5),
        "long": torch.arange(99.0),
    }
    path = tmp_path / "tensors"
    size, sha256 = tensor_file.write_tensors(path, many)
    content = path.read_bytes()
    assert (size, sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert content == library_bytes(many)


def test_nothing_is_read_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "sha256_file", lambda path: pytest.fail("read again"))
    save_checkpoint(tmp_path, 1, tensors(), FACTS, 1)


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process; its exit status (the negative signal if one ended it)."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_self(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("module", "function", "survivor"),
    [
        (checkpoint, "write_tensors", 1),
        (disk, "write_json", 1),
        (disk, "fsync_directory", 1),  # everything written, not yet renamed
        (checkpoint, "discard", 2),  # renamed, not yet pruned
        (shutil, "rmtree", None),  # before anything, or in the middle of pruning
    ],
)
def test_kill_minus_nine_anywhere_in_a_save_leaves_a_whole_checkpoint(
    module: object, function: str, survivor: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def killed_save() -> None:
        monkeypatch.setattr(module, function, kill_self)
        save_checkpoint(tmp_path, 2, tensors(2.0), FACTS, keep=1)

    assert in_child(killed_save) == -signal.SIGKILL
    assert newest(tmp_path) == survivor if survivor else newest(tmp_path) in (1, 2)
    disk.sweep_temporaries(tmp_path)
    assert not [name for name in names(tmp_path) if ".tmp-" in name]
    save_checkpoint(tmp_path, 3, tensors(3.0), FACTS, keep=1)
    assert names(tmp_path) == ["step-000000003"]


def test_only_user_and_group_can_read_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for path in (tmp_path / "step-000000001").iterdir():
        assert path.stat().st_mode & 0o777 == 0o640


def test_the_manifest_says_what_the_state_depends_on(tmp_path: Path) -> None:
    save(tmp_path, 4)
    manifest = json.loads((tmp_path / "step-000000004" / "manifest.json").read_text())
    assert manifest["step"] == 4
    assert manifest["facts"]["finetune.learning_rate"] == 1e-5
    assert manifest["sha256"] == disk.sha256_file(tmp_path / "step-000000004" / "state.safetensors")


# --- the optimizer's state as tensors -------------------------------------------------------------------------------


def quadratic_run(steps: range, optimizer: torch.optim.Optimizer, parameters: dict[str, torch.Tensor]) -> None:
    for step in steps:
        sum((value * (step + 1)).sin().sum() for value in parameters.values()).backward()
        optimizer.step()
        optimizer.zero_grad()


def parameters_of(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"down.0.weight": (4, 3), "down.0.bias": (4,), "scale": ()}
    return {name: torch.randn(shape, generator=generator).requires_grad_() for name, shape in shapes.items()}


def test_an_optimizer_restored_from_tensors_goes_on_bit_for_bit(tmp_path: Path) -> None:
    section, device = FinetuneSection(learning_rate=0.1), torch.device("cpu")
    straight = parameters_of(0)
    quadratic_run(range(6), make_optimizer(straight, section, device), straight)

    first = parameters_of(0)
    optimizer = make_optimizer(first, section, device)
    quadratic_run(range(3), optimizer, first)
    save_checkpoint(tmp_path, 3, optimizer_tensors(optimizer, list(first)) | first, {}, 1)
    found = load_newest(tmp_path, {})
    assert found is not None
    second = parameters_of(1)
    with torch.no_grad():
        for name, value in second.items():
            value.copy_(found[1][name])
    again = make_optimizer(second, section, device)
    restore_optimizer(again, list(second), found[1])
    quadratic_run(range(3, 6), again, second)
    assert all(torch.equal(straight[name], second[name]) for name in straight)


def test_a_fresh_optimizer_has_no_tensors_and_takes_none() -> None:
    parameters = parameters_of(0)
    optimizer = make_optimizer(parameters, FinetuneSection(), torch.device("cpu"))
    assert optimizer_tensors(optimizer, list(parameters)) == {}
    restore_optimizer(optimizer, list(parameters), {"unet.scale": torch.ones(())})
    assert not optimizer.state


def test_integers_and_shared_tensors_as_eight_bit_adam_keeps_them_survive(tmp_path: Path) -> None:
    parameters = parameters_of(0)
    names_, shared = list(parameters), torch.linspace(-1, 1, 256)
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    for parameter in parameters.values():
        codes = torch.full(parameter.shape, 200, dtype=torch.uint8)
        optimizer.state[parameter] = {"step": 5, "state1": codes, "qmap1": shared}
    save_checkpoint(tmp_path, 5, optimizer_tensors(optimizer, names_), {}, 1)
    found = load_newest(tmp_path, {})
    assert found is not None

    class Kept(torch.optim.SGD):
        def load_state_dict(self, state_dict: dict) -> None:  # bitsandbytes has its own, which keeps the dtypes
            self.loaded = state_dict

    other = Kept(parameters.values(), lr=0.1)
    restore_optimizer(other, names_, found[1])
    state = other.loaded["state"][1]
    assert state["step"] == 5
    assert type(state["step"]) is int
    assert state["state1"].dtype == torch.uint8
    assert torch.equal(state["qmap1"], shared)


def test_half_precision_weights_are_not_trained() -> None:
    with pytest.raises(ValueError, match="float32"):
        make_optimizer({"w": torch.ones(2, dtype=torch.float16)}, FinetuneSection(), torch.device("cpu"))


def test_eight_bit_adam_without_a_gpu_is_a_clear_error() -> None:
    with pytest.raises(InputError, match="needs a CUDA GPU") as caught:
        make_optimizer(parameters_of(0), FinetuneSection(use_8bit_adam=True), torch.device("cpu"))
    assert caught.value.problem.key == "finetune.use_8bit_adam"


def test_eight_bit_adam_without_bitsandbytes_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(InputError, match=r"medsyn-hpc\[bnb\]") as caught:
        make_optimizer(parameters_of(0), FinetuneSection(use_8bit_adam=True), torch.device("cuda"))
    assert caught.value.problem.key == "finetune.use_8bit_adam"
