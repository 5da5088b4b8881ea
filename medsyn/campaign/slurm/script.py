"""The shell around a task: the lines of the batch script before and after `srun python -m submitit.core._submit`.

The host's shell does what concerns Slurm, so that a container needs none of its tools. The contract is the exit code
(`medsyn.errors`): 0 done, 65 bad input and 70 no progress end the job; anything else is tried again, in the same job
by `scontrol requeue`, at most `cluster.max_requeues` times. Measured on Slurm 22.05: `scancel` kills this shell, so a
cancelled job does not come back; after `scontrol requeue` nothing of the script runs any more; the id of an array's
element must be ARRAYJOB_TASK, for its raw id may stand for the whole array.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from medsyn.errors import EXIT_BAD_INPUT, EXIT_BAD_NODE, EXIT_DONE, EXIT_NO_PROGRESS

CANCEL_LIST = "cancel"  # a gate's verdict, in the folder of its submission
_REQUEUE = """
rc=$?
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
"""


def before(environment: Mapping[str, str], setup: list[str], code: Path | None) -> list[str]:
    """The lines before a task.

    Args:
        environment: variables for the task.
        setup: the site's own lines.
        code: folder of the medsyn package where it may not be installed; None inside a container.
    """
    lines = ["umask 027", "unset SLURM_EXPORT_ENV", "export PYTHONUNBUFFERED=1"]
    if code is not None:
        lines.append(f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    return [*lines, *setup]


def after_task(bad_nodes: Path, max_requeues: int) -> list[str]:
    """The lines after a task: end the job, or queue it again.

    Args:
        bad_nodes: file that collects the names of nodes on which a task failed for the machine's reasons.
        max_requeues: how often one job is queued again, whatever the reason.
    """
    return f"""{_REQUEUE}
case $rc in {EXIT_DONE}|{EXIT_BAD_INPUT}|{EXIT_NO_PROGRESS}) exit $rc ;; esac
if [ "${{SLURM_RESTART_COUNT:-0}}" -ge {max_requeues} ]; then
  echo "medsyn: exit code $rc, and cluster.max_requeues ({max_requeues}) is used up" >&2
  exit $rc
fi
if [ $rc -eq {EXIT_BAD_NODE} ]; then
  echo "$SLURMD_NODENAME" >> {shlex.quote(str(bad_nodes))}
  {_ELSEWHERE}
fi
echo "medsyn: exit code $rc, queueing $job again" >&2
scontrol requeue "$job" && sleep 60
exit $rc""".strip().splitlines()


# A job's excluded nodes can be changed only while it waits, and its script ends when it is queued again; so another
# job, queued first, takes it off this node and lets it go.
_ELSEWHERE = """
  avoid=$(scontrol -o show job "$SLURM_JOB_ID" | sed -n 's/.* ExcNodeList=\\([^ ]*\\).*/\\1/p')
  case $avoid in ""|"(null)") avoid=$SLURMD_NODENAME ;; *) avoid=$avoid,$SLURMD_NODENAME ;; esac
  helper="sleep 1; scontrol update JobId=$job ExcNodeList=$avoid; scontrol release $job"
  if sbatch --quiet --job-name=medsyn-elsewhere --time=5 --ntasks=1 --output=/dev/null \\
    ${SLURM_JOB_PARTITION:+--partition=$SLURM_JOB_PARTITION} ${SLURM_JOB_ACCOUNT:+--account=$SLURM_JOB_ACCOUNT} \\
    --wrap "$helper"; then
    echo "medsyn: exit code $rc, queueing $job again on another node than $avoid" >&2
    scontrol requeuehold "$job" && sleep 60
  fi
""".strip()


def after_gate(folder: Path, max_requeues: int) -> list[str]:
    """The lines after a gate: cancel what it found blocked; one that could not decide is tried again."""
    listed = shlex.quote(str(folder / CANCEL_LIST))
    return f"""{_REQUEUE}
if [ $rc -eq 0 ]; then
  if [ -s {listed} ]; then xargs -n 200 scancel --quiet < {listed}; fi
  exit 0
fi
if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {max_requeues} ] && [ $rc -ne {EXIT_BAD_INPUT} ]; then
  scontrol requeue "$job" && sleep 60
fi
exit $rc""".strip().splitlines()
