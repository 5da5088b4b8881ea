"""What the user's shell says to sbatch, and medsyn does not pass on."""

from __future__ import annotations

import pytest

from medsyn.campaign.slurm import shell_variables
from medsyn.campaign.slurm.site import Site


def told(profile: Site, cluster: str | None = None, source: str | None = "mine.yaml", **variables: str) -> list[str]:
    found = shell_variables.problems(profile, source, cluster, variables)
    return [f"{problem.severity}: {problem}" for problem in found]


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("SBATCH_PARTITION", "gpu", "partition: gpu"),
        ("SBATCH_ACCOUNT", "lab", "account: lab"),
        ("SBATCH_TIMELIMIT", "2:00:00", "time: 2:00:00"),
        ("SBATCH_MEM_PER_NODE", "4G", "mem: 4G"),
        ("SBATCH_GPUS_PER_NODE", "1", "sbatch: {gpus-per-node: 1}"),
        ("SBATCH_WCKEY", "x", "sbatch: {wckey: x}"),
        ("SLURM_PARTITION", "gpu", "partition: gpu"),
    ],
)
def test_each_variable_is_told_with_its_key(name: str, value: str, wanted: str) -> None:
    assert told(Site(), **{name: value}) == [
        f"warning: {name}: {value} in your shell is not passed to jobs: write {wanted} in mine.yaml"
    ]


def test_without_a_profile_one_is_asked_for() -> None:
    assert told(Site(), source=None, SBATCH_QOS="long")[0].endswith("write qos: long in a site profile (cluster.site)")


def test_what_the_user_cannot_or_need_not_say_is_not_told() -> None:
    profile = Site.model_validate({"partition": "gpu", "sbatch": {"wckey": "x"}, "stages": {"gate": {"account": "a"}}})
    variables = {"SBATCH_PARTITION": "x", "SBATCH_WCKEY": "y", "SBATCH_ACCOUNT": "z", "SBATCH_QOS": ""}
    variables |= {"SBATCH_JOB_NAME": "x", "SBATCH_DEBUG": "1", "SLURM_CONF": "/etc/slurm.conf", "SLURM_CPUS": "2"}
    assert told(profile, **variables) == []
    assert told(Site(), SLURM_PARTITION="gpu", SLURM_JOB_ID="7") == []  # Slurm's own, inside of a job


@pytest.mark.parametrize("name", ["SLURM_CLUSTERS", "SBATCH_CLUSTERS"])
def test_another_cluster_is_refused(name: str) -> None:
    (refused,) = told(Site(), cluster="here", **{name: "other"})
    assert refused.startswith(f"error: {name}: other in your shell is not passed on: one campaign runs on one cluster")
    assert told(Site(), cluster="here", **{name: "here"}) == []
