"""Real processes: what a task runs, and everything that may happen to it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from medsyn import disk
from medsyn.campaign import worker
from medsyn.campaign.state import locks, markers
from medsyn.campaign.tasks import Key
from medsyn.errors import EXIT_BAD_INPUT
from medsyn.models.scores import Card, Evidence, Interval
from medsyn.stage import STAGES
from tests.helpers.paths import ROOT
from tests.helpers.trial import Trial, wait_until

FINETUNE = ("finetune", "ct")


def events(trial: Trial, stage: str = "finetune", task: str = "ct") -> list[tuple[object, ...]]:
    lines = disk.read_jsonl(trial.campaign().directory.attempts(stage, task))
    return [(line["event"], line["attempt"], line.get("exit_code")) for line in lines]


def failure(trial: Trial, stage: str = "finetune", task: str = "ct") -> dict[str, object]:
    found: dict[str, object] = disk.read_json(trial.campaign().directory.failed(stage, task))
    return found


def test_a_task_that_returns_is_done_and_its_marker_lists_what_it_made(trial: Trial) -> None:
    trial.prepare()
    for for_the_user in ("checkpoint-2/unet/config.json", "tensorboard/events.out", "wandb/run/debug.log"):
        kept = trial.root / "work/finetune/ct" / for_the_user  # who may delete it
        kept.parent.mkdir(parents=True)
        kept.touch()
    assert trial.work(*FINETUNE)[0] == 0
    marker = disk.read_json(trial.campaign().directory.done(*FINETUNE))
    model = trial.root / "work/finetune/ct/model.bin"
    assert marker["outputs"] == [
        {"path": "work/finetune/ct/model.bin", "size": model.stat().st_size, "sha256": disk.sha256_file(model)}
    ]
    assert trial.done() == {"finetune ct"}
    assert events(trial) == [("start", 1, None), ("end", 1, 0)]


def test_a_task_that_is_done_leaves_before_it_imports_anything_heavy(trial: Trial) -> None:
    trial.prepare()
    trial.work(*FINETUNE)
    code = (
        "import sys, pathlib; from medsyn.campaign import worker; "
        f"code = worker.run_task(pathlib.Path({str(trial.root)!r}), 'finetune', 'ct'); "
        "heavy = {'torch', 'numpy', 'pandas', 'diffusers', 'submitit', 'PIL', 'rich'} & set(sys.modules); "
        "sys.exit(code or str(heavy) if heavy else code)"
    )
    started = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "already done" in result.stdout
    assert time.monotonic() - started < 20  # a second where nothing else runs
    assert trial.calls() == ["finetune ct"]


def test_index_and_name_mean_the_same_task(trial: Trial) -> None:
    trial.prepare()
    trial.work("finetune", "0")
    assert "already done" in trial.work(*FINETUNE)[1]


def test_every_stage_has_a_function(trial: Trial) -> None:
    assert tuple(worker.STAGE_FUNCTIONS) == STAGES


@pytest.mark.parametrize(
    ("action", "code", "said"),
    [
        ("save", 75, "saved"),
        ("input", 65, "table.csv, line 3: row 3 is wrong"),
        ("stuck", 70, "the loss is not finite"),
        ("bad-node", 78, "no GPU is visible"),
        ("disk-full", 78, "no space left on the disk"),
        ("disk-full-abroad", 78, "no space left on the disk"),
        ("broken-gpu", 78, "the GPU of this machine is broken or gone"),
        ("crash:1", 1, "ValueError: boom 1"),
        ("nothing", 1, "ended without any output"),
    ],
)
def test_what_a_stage_raises_becomes_an_exit_code(trial: Trial, action: str, code: int, said: str) -> None:
    trial.prepare()
    trial.script({"finetune ct": [action]})
    returned, output = trial.work(*FINETUNE)
    assert (returned, said in output) == (code, True), output
    assert ("Traceback" in output) == (code == 1)
    assert trial.done() == set()
    assert events(trial) == [("start", 1, None), ("end", 1, code)]
    assert trial.campaign().directory.failed(*FINETUNE).is_file() == (code != 75)


def test_a_full_disk_is_told_with_the_place_and_the_room(trial: Trial) -> None:
    trial.prepare()
    trial.script({"finetune ct": ["disk-full-named", "disk-full-abroad"]})
    free = r": [\d,]+ MiB are free there"
    _, output = trial.work(*FINETUNE)
    assert re.search(rf"used up, at {re.escape(str(trial.root))}/work/finetune/ct/model\.bin{free}", output), output
    _, output = trial.work(*FINETUNE)
    assert re.search(rf"used up, at {re.escape(str(trial.root))}{free}", output), output


def test_a_log_on_the_full_disk_does_not_change_how_a_task_ends(trial: Trial) -> None:
    trial.prepare()
    trial.script({"finetune ct": ["disk-full"]})
    command = [sys.executable, "-m", "tests.helpers.fake_worker", str(trial.root), *FINETUNE]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with open("/dev/full", "w") as log:  # noqa: PTH123
        ended = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False)
    assert ended.returncode == 78
    assert events(trial) == [("start", 1, None), ("end", 1, 78)]


def test_a_used_up_quota_is_told_by_name_and_never_a_crash(trial: Trial) -> None:
    trial.prepare()
    trial.script({"finetune ct": ["quota", "quota"]})
    for _ in range(2):  # the second time would be "no progress" if it were one
        code, output = trial.work(*FINETUNE)
        assert code == 78
        assert f"the quota is used up, at {trial.root}/work/finetune/ct/model.bin: `quota -s`" in output


def test_a_crash_is_on_record_with_class_text_place_and_traceback(trial: Trial) -> None:
    trial.prepare()
    trial.script({"finetune ct": ["crash:at home"]})
    trial.work(*FINETUNE)
    found = failure(trial)
    assert (found["exit_code"], found["error"], found["step"]) == (1, "ValueError", 3)
    assert str(found["message"]).startswith("boom at home")
    assert "raise ValueError" in "\n".join(found["traceback"])  # type: ignore[arg-type]


def test_the_second_crash_at_the_same_place_is_final_and_another_one_is_not(trial: Trial) -> None:
    trial.prepare()
    trial.script({"finetune ct": ["crash:1", "crash:2", "crash:x", "work"]})
    codes = [trial.work(*FINETUNE)[0] for _ in range(4)]
    assert codes == [1, 70, 1, 0]  # addresses and numbers in the text differ by chance, words do not
    assert not trial.campaign().directory.failed(*FINETUNE).exists()


def test_a_task_whose_need_is_not_done_says_which(trial: Trial) -> None:
    trial.prepare()
    code, output = trial.work("generate", "ct-00000")
    assert code == 65
    assert "it needs finetune ct, but it is not done" in output
    assert trial.calls() == []


def chain(trial: Trial) -> None:
    for stage, task in [("finetune", "ct"), ("rlhf-stage1", "all"), ("rlhf-stage2", "ct"), ("generate", "ct-00000")]:
        assert trial.work(stage, task)[0] == 0


def test_a_result_of_the_same_size_but_other_content_is_not_used(trial: Trial) -> None:
    trial.prepare()
    chain(trial)
    trial.campaign().directory.done("generate", "ct-00000").unlink()
    model = trial.root / "work/finetune/ct/model.bin"
    model.write_bytes(bytes(reversed(model.read_bytes())))
    code, output = trial.work("generate", "ct-00000")
    assert (code, "has changed since it was recorded" in output) == (65, True)


def test_a_table_that_changed_after_the_submission_is_not_used(trial: Trial) -> None:
    trial.prepare()
    with (trial.data / "metadata.csv").open("a") as stream:
        stream.write("ct-0.png,CT: one more,CT\n")
    code, output = trial.work(*FINETUNE)
    assert (code, "submitted with another table file" in output) == (65, True)


@pytest.mark.parametrize("damage", ["deleted", "shorter", "marker garbled", "marker of another task", "marker empty"])
def test_a_task_without_its_result_is_not_done_and_runs_again(trial: Trial, damage: str) -> None:
    trial.prepare()
    trial.work(*FINETUNE)
    model, marker = trial.root / "work/finetune/ct/model.bin", trial.campaign().directory.done(*FINETUNE)
    if damage == "deleted":
        model.unlink()
    elif damage == "shorter":
        model.write_bytes(b"m")
    elif damage == "marker garbled":
        marker.write_text(marker.read_text()[:-20])
    elif damage == "marker of another task":
        trial.work("finetune", "oct")
        shutil.copy(trial.campaign().directory.done("finetune", "oct"), marker)
    else:
        marker.write_text("[]")
    assert "finetune ct" not in trial.done()
    assert trial.work(*FINETUNE)[0] == 0
    assert "finetune ct" in trial.done()
    assert trial.calls().count("finetune ct") == 2


@pytest.mark.parametrize("lost", ["a.png", "manifest.jsonl", "attempts.jsonl", ""])
def test_a_shard_that_lost_a_file_or_a_block_is_not_done(trial: Trial, lost: str) -> None:
    trial.prepare()
    chain(trial)
    block = trial.campaign().directory.block("filtered", "CT", 0)
    shutil.rmtree(block) if not lost else (block / lost).unlink()
    assert "generate ct-00000" not in trial.done()


def test_configuration_edited_by_hand_is_refused(trial: Trial) -> None:
    campaign = trial.prepare()
    path = campaign.directory.config
    path.write_text(path.read_text().replace("max_train_steps: 2000", "max_train_steps: 2001"))
    code, output = trial.work(*FINETUNE)
    assert (code, "config.yaml or campaign.json was edited by hand or is damaged" in output) == (65, True)


def test_a_directory_that_is_no_campaign_is_refused(trial: Trial) -> None:
    trial.root.mkdir()
    assert trial.work(*FINETUNE)[0] == 65


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_makes_a_task_save_leave_and_go_on_later(trial: Trial, number: signal.Signals) -> None:
    trial.prepare()
    trial.script({"finetune ct": ["steps:20"]})
    process = trial.start("fake_worker", *FINETUNE)
    wait_until(lambda: len(trial.steps("finetune ct")) > 2)
    sent = time.time()
    process.send_signal(number)
    if number != signal.SIGINT:  # a second one is no harm
        process.send_signal(number)
    assert process.wait(timeout=20) == 75
    assert trial.work(*FINETUNE)[0] == 0
    assert trial.steps("finetune ct") == list(range(20))
    assert events(trial) == [("start", 1, None), ("end", 1, 75), ("start", 2, None), ("end", 2, 0)]
    _, saved, _, done = disk.read_jsonl(trial.campaign().directory.attempts(*FINETUNE))
    assert sent <= saved["asked"] <= saved["time"]
    assert "asked" not in done, "nobody asked the second attempt to leave"


def test_progress_before_and_after_every_attempt_is_on_record(trial: Trial) -> None:
    trial.prepare()
    trial.script({"finetune ct": ["crash:1", "work"]})
    trial.work(*FINETUNE)
    trial.work(*FINETUNE)
    lines = list(disk.read_jsonl(trial.campaign().directory.attempts(*FINETUNE)))
    assert [line["progress"]["step"] if line["progress"] else None for line in lines] == [None, 3, 3, None]
    assert {line["pid"] > 0 and line["host"] != "" and line["time"] > 0 for line in lines} == {True}


def test_a_killed_task_goes_on_where_it_was(trial: Trial) -> None:
    trial.prepare()
    trial.script({"finetune ct": ["steps:20"]})
    process = trial.start("fake_worker", *FINETUNE)
    wait_until(lambda: len(trial.steps("finetune ct")) > 2)
    process.kill()
    process.wait()
    assert trial.work(*FINETUNE)[0] == 0
    assert sorted(set(trial.steps("finetune ct"))) == list(range(20))
    assert len(trial.steps("finetune ct")) <= 21
    assert events(trial) == [("start", 1, None), ("start", 2, None), ("end", 2, 0)]


def test_two_workers_of_one_task_never_run_at_once_and_the_second_finds_it_done(trial: Trial) -> None:
    trial.prepare()
    trial.script({"finetune ct": ["steps:15"]})
    first, second = (trial.start("fake_worker", *FINETUNE) for _ in range(2))
    outputs = [process.communicate(timeout=20)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert trial.calls() == ["finetune ct"]
    assert sum("waiting for it" in output and "already done" in output for output in outputs) == 1


def test_a_worker_that_waits_for_another_one_can_be_stopped(trial: Trial) -> None:
    trial.prepare()
    with locks.exclusive(trial.campaign().directory.attempts(*FINETUNE)):
        process = trial.start("fake_worker", *FINETUNE)
        assert process.stdout is not None
        assert "waiting" in process.stdout.readline()
        process.terminate()
        assert process.wait(timeout=20) == 75


def test_a_worker_saves_and_leaves_when_its_scheduler_dies(trial: Trial) -> None:
    trial.prepare()
    trial.script({"finetune ct": ["steps:1000"]})
    command = f"{sys.executable} -m tests.helpers.fake_worker {trial.root} finetune ct --parent $$ & wait"
    parent = subprocess.Popen(["bash", "-c", command], cwd=ROOT)
    trial.processes.append(parent)  # type: ignore[arg-type]
    wait_until(lambda: trial.steps("finetune ct"))
    parent.kill()
    parent.wait()
    attempts = trial.campaign().directory.attempts(*FINETUNE)
    wait_until(lambda: not locks.is_held(attempts))
    assert events(trial)[-1] == ("end", 1, 75)


def test_a_worker_whose_scheduler_is_dead_already_leaves_before_it_starts(trial: Trial) -> None:
    trial.prepare()
    process = trial.start("fake_worker", *FINETUNE, "--parent", "1" if os.getpid() != 1 else "2")
    assert process.wait(timeout=20) == 75
    assert trial.calls() == []


def test_threads_come_from_the_configuration(trial: Trial) -> None:
    trial.prepare(device__cpu_threads=3)
    trial.work(*FINETUNE)
    assert next(disk.read_jsonl(trial.root / "calls.jsonl"))["threads"] == "3"


def test_on_a_cluster_a_result_that_the_file_system_shows_late_is_waited_for(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.prepare_short()
    assert trial.work(*FINETUNE)[0] == trial.work("rlhf-stage1", "all")[0] == 0
    marker = trial.campaign().directory.done(*FINETUNE)
    hidden = marker.with_suffix(".late")
    marker.rename(hidden)
    assert trial.work("generate", "ct-00000")[0] == EXIT_BAD_INPUT  # here nothing shows late
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    late = threading.Timer(1.0, hidden.rename, [marker])
    late.start()
    assert trial.work("generate", "ct-00000")[0] == 0
    late.join()


@pytest.mark.parametrize(("umask", "given"), [(0o077, 0o700), (0o022, 0o750)])
def test_a_campaigns_files_are_as_private_as_the_user_wants_them(trial: Trial, umask: int, given: int) -> None:
    before = os.umask(umask)
    try:
        trial.prepare_short()
        assert trial.work(*FINETUNE)[0] == 0
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in (trial.root, *trial.root.rglob("*"))}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {given}
    assert {mode for path, mode in modes.items() if path.is_file()} == {given & 0o640}, modes


@pytest.mark.parametrize(
    ("task", "asked", "allowed"),
    [
        (("rlhf-stage1", "all"), ("finetune", "ct"), False),
        (("rlhf-stage2", "ct"), ("rlhf-stage1", "all"), True),
        (("rlhf-stage2", "ct"), ("rlhf-stage2", "oct"), True),  # its own stage: there is nothing to wait for
        (("rlhf-stage2", "ct"), ("finetune", "ct"), True),
        (("rlhf-stage2", "ct"), ("finetune", "oct"), False),
        (("generate", "ct-00000"), ("finetune", "ct"), True),
        (("generate", "ct-00000"), ("finetune", "oct"), False),
        (("evaluate", "all"), ("finetune", "oct"), True),
    ],
)
def test_a_stage_that_asks_for_a_result_it_does_not_say_it_reads_is_told(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, task: Key, asked: Key, allowed: bool
) -> None:
    trial.prepare()
    trial.script({" ".join(task): [f"ask:{' '.join(asked)}"]})
    monkeypatch.setattr(markers, "check_inputs", lambda campaign, planned: None)
    assert trial.work(*task)[0] == (0 if allowed else 1)
    if not allowed:
        message = str(failure(trial, *task)["message"])
        assert message.startswith(f"{' '.join(task)} asks for the result of {' '.join(asked)}, which nothing makes")


def test_a_selector_that_has_not_earned_it_chooses_nothing_until_it_is_told_to(trial: Trial) -> None:
    directory = trial.prepare_short().directory
    for stage, task in (("finetune", "ct"), ("rlhf-stage1", "all")):
        trial.work(stage, task)
    evidence = Evidence(auroc=Interval(value=0.55, low=0.45, high=0.66, n=31))
    for scorer in (directory.selector(), directory.policy()):
        disk.write_json(disk.make_directory(scorer) / "config.json", {"card": Card(evidence=evidence).model_dump()})
        (scorer / "model.safetensors").write_bytes(b"")
    code, said = trial.work("generate", "ct-00000")
    assert code == 65 and "AUROC on held-out ratings of all modalities together is 0.55" in said
    assert "generate ct-00000" not in trial.calls()
    trial.prepare_short(selector__require_auroc=None)
    assert trial.done() == {"finetune ct", "rlhf-stage1 all"}, "nothing is trained again"
    assert trial.work("generate", "ct-00000")[0] == 0
