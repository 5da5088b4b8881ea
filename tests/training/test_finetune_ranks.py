"""Fine-tuning on several GPUs, shown on CPUs: two and three ranks, killed or not, must end where one process does."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medsyn import disk, forks, time_use
from medsyn.campaign import worker
from medsyn.config import Config, validate
from medsyn.errors import EXIT_SAVED, InputError, InputProblems, Problem
from medsyn.launcher import Launched, launched
from medsyn.models.scorers import PROVENANCE
from medsyn.models.weights import UNET_WEIGHTS
from medsyn.stage import BadNode, Control, NoProgress, Saved
from medsyn.training.finetune import loop, parallel, ranks, stage
from tests.training import test_finetune
from tests.training.test_finetune import StopAt, checkpoints, metrics, run, training, unet_bytes

STEPS = 20
MODEL = "work/finetune/ct/model/unet"
weights, table = test_finetune.weights, test_finetune.table  # its fixtures


@pytest.fixture(autouse=True)
def ranks_are_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a task are; the test's own process has threads by now, which a task's has not."""
    monkeypatch.setattr(forks, "unfit", lambda: None)


def of(weights: Path, table: Path, gpus: int, batch: tuple[int, int] = (2, 2), **section: Any) -> Config:
    """20 steps, unless `section` says otherwise, on a batch of two numbers: samples at once, and how often."""
    sizes = {"train_batch_size": batch[0], "gradient_accumulation_steps": batch[1], "gpus": gpus}
    return training(weights, table, **{"max_train_steps": STEPS, "checkpointing_steps": 5} | sizes | section)


@pytest.fixture(scope="module")
def alone(weights: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of a batch of 2 x 2."""
    root = tmp_path_factory.mktemp("alone")
    run(of(weights, table, 1), root)
    return root


def assert_same_end(root: Path, other: Path) -> None:
    assert unet_bytes(root) == unet_bytes(other)
    assert metrics(root) == metrics(other)
    names = sorted(path.name for path in (root / "work/finetune/ct").iterdir())
    assert names == ["metrics.jsonl", "model", "summary.json"]


def is_rank(number: int) -> bool:
    """In a rank that has met the others."""
    return os.environ.get("RANK") == str(number)


@pytest.fixture(autouse=True)
def no_rank_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


def at_call(number: int, rank: int, real: Callable, action: Callable) -> Callable:
    """`real`, but in one rank its call `number` runs `action` first."""
    seen = {"calls": 0}

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        if is_rank(rank):
            seen["calls"] += 1
            if seen["calls"] == number:
                action()
        return real(*arguments, **keywords)

    return wrapped


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# --- one batch, however many share it --------------------------------------------------------------------------------


def test_two_ranks_end_in_the_bits_of_one_process(weights: Path, table: Path, alone: Path, tmp_path: Path) -> None:
    run(of(weights, table, 2), tmp_path)
    assert_same_end(tmp_path, alone)


def test_so_they_do_with_adapters_versions_of_images_and_validation(weights: Path, table: Path, tmp_path: Path) -> None:
    """A validation is the first rank's alone, and the others wait for it; the best is kept and published."""
    options = {"lora": {"rank": 2}, "augment": {"versions": 2}, "validate_every": 2, "keep_best": True}
    options |= {"max_train_steps": 4, "data": {"held_out_fraction": 0.4}}
    run(of(weights, table, 1, **options), tmp_path / "one")
    with pytest.raises(Saved):
        run(of(weights, table, 2, **options), tmp_path / "two", StopAt(2))
    run(of(weights, table, 2, **options), tmp_path / "two")
    assert unet_bytes(tmp_path / "two") == unet_bytes(tmp_path / "one")
    assert metrics(tmp_path / "two") == metrics(tmp_path / "one")
    assert "held_out_change" in metrics(tmp_path / "two")[-1]


@pytest.mark.parametrize(("gpus", "batch"), [(3, (2, 3)), (2, (2, 4)), (3, (4, 1))])
def test_other_ways_to_share_a_batch_differ_by_rounding_only(
    gpus: int,
    batch: tuple[int, int],
    weights: Path,
    table: Path,
    tmp_path: Path,
) -> None:
    """Three ranks, two micro-batches on each, and parts of 2, 1 and 1."""
    steps = {"max_train_steps": 8, "use_ema": False, "learning_rate": 1e-4}
    run(of(weights, table, 1, batch, **steps), tmp_path / "one")
    run(of(weights, table, gpus, batch, **steps), tmp_path / "several")
    folders = (tmp_path / "one" / MODEL, tmp_path / "several" / MODEL, weights / "unet")
    one, several, before = (load_file(folder / UNET_WEIGHTS) for folder in folders)
    moved = max(float((one[name] - before[name]).abs().max()) for name in one)
    apart = max(float((one[name] - several[name]).abs().max()) for name in one)
    assert moved > 1e-4
    assert apart < 1e-5


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [4, 7, 16])
def test_the_parts_of_a_batch_are_its_samples_once_in_order(size: int, batch: int) -> None:
    teams = [parallel.Team() for _ in range(size)]
    for rank, team in enumerate(teams):
        team.rank, team.size = rank, size
    parts = [list(range(batch))[team.part(batch)] for team in teams]
    assert [sample for part in parts for sample in part] == list(range(batch))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), (2, 4)])
def test_a_run_goes_on_with_another_number_of_gpus_and_another_micro_batch(
    first: int,
    then: int,
    weights: Path,
    table: Path,
    alone: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(Saved):
        run(of(weights, table, first), tmp_path, StopAt(7))
    assert 7 <= int(checkpoints(tmp_path)[-1].name.removeprefix("step-")) < STEPS
    if then == 4:
        run(of(weights, table, then, batch=(1, 4)), tmp_path)
        got, expected = load_file(tmp_path / MODEL / UNET_WEIGHTS), load_file(alone / MODEL / UNET_WEIGHTS)
        assert max(float((got[name] - expected[name]).abs().max()) for name in got) < 1e-4
    else:
        run(of(weights, table, then), tmp_path)
        assert_same_end(tmp_path, alone)


# --- killed, stopped, wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_others_and_costs_the_steps_since_the_checkpoint(
    rank: int,
    weights: Path,
    table: Path,
    alone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kill_self_between_checkpoints() -> None:
        wait_for(lambda: checkpoints(tmp_path))  # a thread writes the one of step 5
        kill_self()

    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", at_call(8, rank, loop.learning_rate, kill_self_between_checkpoints))
        started = time.monotonic()
        with pytest.raises(RuntimeError, match=f"rank {rank} was killed by SIGKILL: the others were ended"):
            run(of(weights, table, 2), tmp_path)
        assert time.monotonic() - started < ranks.GRACE_SECONDS
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000005"]
    run(of(weights, table, 2), tmp_path)
    assert_same_end(tmp_path, alone)


def in_a_fork(work: Callable[[], int]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = work()
        finally:
            os._exit(code)
    return child


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Every step waits, and every rank leaves its process id in the folder."""
    pids, real = tmp_path / "pids", loop.draws
    pids.mkdir()

    def slow(*arguments: Any) -> Any:
        (pids / str(os.getpid())).touch()
        time.sleep(0.05)
        return real(*arguments)

    monkeypatch.setattr(loop, "draws", slow)
    yield pids
    monkeypatch.setattr(loop, "draws", real)


def test_no_rank_outlives_the_task_and_the_task_goes_on(
    weights: Path,
    table: Path,
    alone: Path,
    tmp_path: Path,
    slow_steps: Path,
) -> None:
    root = tmp_path / "run"
    task = in_a_fork(lambda: run(of(weights, table, 2), root) or 0)
    wait_for(lambda: checkpoints(root))
    os.kill(task, signal.SIGKILL)
    os.waitpid(task, 0)
    found = [int(path.name) for path in slow_steps.iterdir()]
    assert len(found) == 2
    wait_for(lambda: not any(map(is_running, found)), 5)
    run(of(weights, table, 2), root)
    assert_same_end(root, alone)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_makes_all_save_and_leave(
    number: signal.Signals,
    weights: Path,
    table: Path,
    alone: Path,
    tmp_path: Path,
    slow_steps: Path,
) -> None:
    """Slurm signals the ranks as well, which leave that to the task."""
    root = tmp_path / "run"

    def work() -> int:
        control = Control()
        worker.install(control)
        with contextlib.suppress(Saved):
            run(of(weights, table, 2, checkpointing_steps=100), root, control)
            return 0
        return EXIT_SAVED

    task = in_a_fork(work)
    wait_for(lambda: len(metrics(root)) >= 3 if (root / "work/finetune/ct/metrics.jsonl").exists() else False)
    for pid in (*(int(path.name) for path in slow_steps.iterdir()), task):
        os.kill(pid, number)
    assert os.waitstatus_to_exitcode(os.waitpid(task, 0)[1]) == EXIT_SAVED
    assert len(checkpoints(root)) == 1
    run(of(weights, table, 2), root)
    assert_same_end(root, alone)


def test_a_stop_while_images_are_encoded_keeps_them(weights: Path, table: Path, tmp_path: Path) -> None:
    with pytest.raises(Saved):
        run(of(weights, table, 2), tmp_path, StopAt(1, unit="image"))
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        InputError("table.csv", "is wrong", 3, "column"),
        InputProblems([Problem("a", "b", 1), Problem("c", "d", key="e")]),
        NoProgress("the loss is nan"),
        BadNode("no GPU"),
        OSError(28, "No space left on device", "/somewhere/file"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_rank_raises_is_what_the_task_raises(
    error: Exception,
    weights: Path,
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(stage, "training_rows", fail)
    with pytest.raises(type(error)) as caught:
        run(of(weights, table, 2), tmp_path)
    assert str(caught.value) == str(error)
    assert vars(caught.value).get("problems") == vars(error).get("problems")
    if not isinstance(error, InputError | InputProblems):  # a mistake of a user has no traceback
        assert "in fail" in caught.value.__notes__[0]


def test_a_loss_that_is_not_finite_stops_all(weights: Path, table: Path, tmp_path: Path) -> None:
    with pytest.raises(NoProgress, match=r"finetune\.learning_rate"):
        run(of(weights, table, 2, learning_rate=1e25, lr_scheduler="constant", lr_warmup_steps=0), tmp_path)
    assert checkpoints(tmp_path) == []


def test_weights_that_come_apart_are_noticed(
    weights: Path,
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Drifts(parallel.Ranks):
        def require_equal(self, step: int) -> None:
            if self.rank == 1 and step == 3:
                with torch.no_grad():
                    self._parameters[0].view(torch.int32).view(-1)[0] += 1
            super().require_equal(step)

    monkeypatch.setattr(ranks, "Ranks", Drifts)
    with pytest.raises(NoProgress, match="rank 1 of 2 no longer has the weights of rank 0 after step 3"):
        run(of(weights, table, 2), tmp_path)


def test_a_finished_run_ends_at_once(weights: Path, table: Path, alone: Path) -> None:
    before = unet_bytes(alone)
    run(of(weights, table, 2), alone)
    assert unet_bytes(alone) == before


# --- how many ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "there", "batch", "expected"),
    [
        (1, [], 4, 1),
        ("auto", [], 4, 1),
        ("auto", ["0", "1"], 4, 2),
        ("auto", ["0", "1", "2"], 2, 2),
        (2, ["0"] * 3, 4, 2),
    ],
)
def test_how_many_ranks(
    gpus: int | str, there: list[str], batch: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "visible_gpus", lambda: there)
    section = {"gpus": gpus, "train_batch_size": batch, "gradient_accumulation_steps": 1}
    assert ranks.count(validate({"finetune": section}, "test")) == expected


@pytest.mark.parametrize(("there", "seen"), [([], "no GPU"), (["0"], "1 GPU"), (["0", "1"], "2 GPUs")])
def test_more_than_there_are_is_told(there: list[str], seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "visible_gpus", lambda: there)
    with pytest.raises(InputError, match=rf"finetune\.gpus: 3 are asked for, and {seen} can be seen here"):
        ranks.count(validate({"finetune": {"gpus": 3}}, "test"))


@pytest.mark.parametrize(("gpus", "words"), [(0, "at least 1, or auto"), ("two", "auto"), (9, "a step has 8 samples")])
def test_a_number_that_cannot_be_is_told(gpus: Any, words: str) -> None:
    section = {"gpus": gpus, "train_batch_size": 4, "gradient_accumulation_steps": 2}
    with pytest.raises(InputProblems, match=words):
        validate({"finetune": section}, "test")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, Launched(1, 2, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, None),
    ],
)
def test_a_launchers_place_is_read(
    environment: dict[str, str], expected: Launched | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected


@pytest.fixture
def as_launched(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], int]:
    """Starts a fork in the environment that torchrun and `accelerate launch` give one of two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def start(rank: int, work: Callable[[], object]) -> int:
        environment = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        os.environ.update({name: str(value) for name, value in environment.items()})
        try:
            return in_a_fork(lambda: work() or 0)  # type: ignore[arg-type, return-value]
        finally:
            for name in environment:
                del os.environ[name]

    return start


def test_processes_that_a_launcher_starts_train_together(
    weights: Path,
    table: Path,
    alone: Path,
    tmp_path: Path,
    as_launched: Callable[[int, Callable[[], object]], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second needs nothing but its place: the first tells it the rest, and stays until it has heard."""
    first = as_launched(0, lambda: run(of(weights, table, 1), tmp_path))
    second = as_launched(1, lambda: worker.follow("finetune"))
    assert [os.waitpid(process, 0)[1] for process in (first, second)] == [0, 0]
    assert_same_end(tmp_path, alone)
    hear = parallel.Ranks.hear
    monkeypatch.setattr(parallel.Ranks, "hear", lambda team: time.sleep(0.5) or hear(team))
    first = as_launched(0, lambda: run(of(weights, table, 1), tmp_path))  # there is nothing to do
    second = as_launched(1, lambda: worker.follow("finetune"))
    assert [os.waitpid(process, 0)[1] for process in (first, second)] == [0, 0]
    assert worker.follow("generate") == 0


def test_adapters_and_their_average_are_shared_out_too(weights: Path, table: Path, tmp_path: Path) -> None:
    options = {"lora": {"rank": 2}, "ema_every": 3, "max_train_steps": 7}
    run(of(weights, table, 1, **options), tmp_path / "one")
    run(of(weights, table, 2, **options), tmp_path / "two")
    assert_same_end(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_ranks_that_cannot_be_forks_are_new_processes(
    weights: Path, table: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "unfit", lambda: "a library has started threads")
    run(of(weights, table, 2), tmp_path)
    assert_same_end(tmp_path, alone)


def test_a_rank_knows_how_much_time_the_task_has() -> None:
    ours, theirs = multiprocessing.Pipe()
    control, task = ranks.RankControl(0, theirs), Control(grace_seconds=100)
    assert not control.asked_here()
    task.request_stop()
    ours.send((task.asked, task.seconds_left()))
    control.together = True
    control.heartbeat(1, 2)
    assert control.asked_here() and not control.stop_requested  # until all have agreed
    assert 95 < (control.seconds_left() or 0) <= 100
    assert ours.recv() == ("beat", (1, 2), {}, None)
    time_use.open_account()
    control.heartbeat(2, 2)
    time_use.close_account()
    assert ours.recv()[-1].keys() == {"seconds", "unsaved"}, "and where its time went"


def test_cards_that_would_compute_in_different_precisions_are_refused(
    weights: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OtherCard(parallel.Ranks):
        def hear(self) -> dict[str, Any] | None:
            return (super().hear() or {}) | {"dtype": "torch.bfloat16"}

    monkeypatch.setattr(ranks, "Ranks", OtherCard)
    monkeypatch.setattr(ranks, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(parallel, "DEAD_SECONDS", 20)
    with pytest.raises(InputError, match=r"rank 1 would compute in torch\.float32 and rank 0 in torch\.bfloat16"):
        run(of(weights, table, 2), tmp_path)


def test_a_rank_that_runs_out_of_memory_halves_the_micro_batch_of_all(
    weights: Path, table: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = loop.denoising_loss, {"calls": 0}

    def short(unet: Any, scheduler: Any, weights: Any, latents: torch.Tensor, *more: Any) -> torch.Tensor:
        seen["calls"] += 1
        if is_rank(1) and seen["calls"] >= 4 and len(latents) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return real(unet, scheduler, weights, latents, *more)

    monkeypatch.setattr(loop, "denoising_loss", short)
    run(of(weights, table, 2), tmp_path)
    record = disk.read_json(tmp_path / "work/finetune/ct/model" / PROVENANCE)["conditions"]
    assert [(one["from_step"], one["micro_batch"]) for one in record] == [(1, 2), (4, 1)]
    got, expected = load_file(tmp_path / MODEL / UNET_WEIGHTS), load_file(alone / MODEL / UNET_WEIGHTS)
    assert max(float((got[name] - expected[name]).abs().max()) for name in got) < 1e-4
