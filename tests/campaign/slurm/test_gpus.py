"""What a site profile asks for where a fine-tuning task has several GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medsyn.campaign.slurm import gpus, sbatch
from medsyn.campaign.slurm.graph import Node
from medsyn.config import Config, validate
from tests.campaign.slurm.test_site import profile

FINETUNE = Node("finetune", "tasks", "finetune", ("ct",))
OTHERS = [Node("generate-ct", "tasks", "generate", ("a",)), Node("gate-finetune", "gate", "finetune", ("ct",))]


def config(count: int | str, **device: Any) -> Config:
    return validate({"finetune": {"gpus": count}, "device": device}, "test")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gres: gpu:1", {"gres": "gpu:2"}),
        ("gres: gpu", {"gres": "gpu:2"}),
        ("gres: gpu:titanxp:1", {"gres": "gpu:titanxp:2"}),
        ("gres: 'lscratch:10,gpu:v100:1'", {"gres": "lscratch:10,gpu:v100:2"}),
        ("gres: gpu:4", {"gres": "gpu:4"}),
        ("sbatch: {gpus-per-node: 1}", {"gpus_per_node": 2}),
        ("sbatch: {gpus: 'a100:1'}", {"gpus": "a100:2"}),
        ("gres: gpu:1\ncpus_per_task: 4", {"gres": "gpu:2", "cpus_per_task": 8}),
        ("gres: gpu:1\nstages: {finetune: {gres: 'gpu:big:3'}}", {"gres": "gpu:big:3"}),
        ("gres: gpu:1\nstages: {finetune: {time: 90}}", {"gres": "gpu:2", "time": 90}),
        (
            "gres: gpu:1\nstages: {finetune: {cpus_per_task: 6}}\ncpus_per_task: 4",
            {"gres": "gpu:2", "cpus_per_task": 6},
        ),
        ("mem: 24G", {"mem": "24G"}),
    ],
)
def test_the_finetune_array_asks_for_more_and_nothing_else_does(
    text: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    plain = profile(tmp_path, text)
    more = gpus.with_gpus(plain, config(2))
    assert sbatch.sbatch_options(more, FINETUNE) == expected | {"requeue": True}
    for node in OTHERS:
        assert sbatch.sbatch_options(more, node) == sbatch.sbatch_options(plain, node)


@pytest.mark.parametrize("settings", [config(1), config("auto"), config(2, use_cuda=False)])
def test_a_profile_stays_where_there_is_nothing_to_add(settings: Config, tmp_path: Path) -> None:
    plain = profile(tmp_path, "gres: gpu:1")
    assert gpus.with_gpus(plain, settings) is plain
    assert not list(gpus.problems(plain, settings, "site.yaml"))


@pytest.mark.parametrize(
    ("text", "severity", "key", "words"),
    [
        ("gres: shard:1", "error", "stages.finetune.gres", "shard:1 is a part of a card, and finetune.gpus is 3"),
        ("gres: gpu:1\nstages: {finetune: {gres: 'gpu:2'}}", "error", "stages.finetune", "a fine-tuning task 2, and"),
        ("partition: gpu", "warning", "gres", "asks for no GPU, and finetune.gpus is 3"),
    ],
)
def test_what_cannot_be_asked_for_is_told(text: str, severity: str, key: str, words: str, tmp_path: Path) -> None:
    (problem,) = gpus.problems(profile(tmp_path, text), config(3), "site.yaml")
    assert (problem.severity, problem.key) == (severity, key)
    assert words in problem.reason
