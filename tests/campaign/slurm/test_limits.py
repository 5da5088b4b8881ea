"""What a user is told where a cluster does not take so many jobs."""

from __future__ import annotations

import pytest

from medsyn.campaign.slurm import limits, submit
from medsyn.campaign.slurm.graph import Graph, Node

WANTED = Graph(
    (
        Node("finetune", "tasks", "finetune", ("a", "b")),
        Node("gate-finetune", "gate", "finetune", ("a", "b")),
        Node("generate-a", "tasks", "generate", tuple(f"a-{number}" for number in range(30))),
    ),
    {},
)
POLICY = "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size)"


@pytest.mark.parametrize(
    "name",
    ["QOSMaxSubmitJobPerUserLimit", "AssocMaxSubmitJobLimit", "QOSGrpSubmitJobsLimit", "AssocGrpSubmitJobsLimit"],
)
def test_a_submit_limit_is_named_with_what_is_needed_and_a_way_out(name: str) -> None:
    said = submit._reason(RuntimeError(f"sbatch: error: {name}\nsbatch: error: {POLICY}\n"))
    assert said == f"{name}: {POLICY}"
    told = limits.way_out(said, WANTED)
    assert told.startswith("; this needs 33 jobs in the queue at once (32 tasks, 1 gates): ")
    assert "lower cluster.max_shards (30 generate tasks now)" in told and "resume --only STAGE" in told


def test_other_limits_and_other_reasons() -> None:
    assert "max_array_size" in limits.way_out("Batch job submission failed: Invalid job array specification", WANTED)
    assert "this needs 33 jobs" in limits.way_out("Resource temporarily unavailable", WANTED)
    assert limits.way_out("Requested partition configuration not available now", WANTED) == ""


def test_a_cluster_that_cannot_take_the_campaign_at_all() -> None:
    told = limits.too_many(WANTED, {"MaxJobCount": "30"})
    assert told and told.startswith("the cluster takes 30 jobs in all (MaxJobCount); this needs 33 jobs")
    assert limits.too_many(WANTED, {"MaxJobCount": "10000"}) is None
    assert limits.too_many(WANTED, {}) is None
