"""The shell around a task: the lines of the batch script before and after `srun python -m medsyn.campaign.slurm.job`.

The host's shell does what concerns Slurm, so that a container needs none of its tools. The contract is the exit code
(`medsyn.errors`): 0 done, 65 bad input and 70 no progress end the job; anything else is tried again, in the same job
by `scontrol requeue`, at most `cluster.max_requeues` times. Measured on Slurm 22.05: `scancel` kills this shell, so a
cancelled job does not come back; after `scontrol requeue` nothing of the script runs any more; the id of an array's
element must be ARRAYJOB_TASK, for its raw id may stand for the whole array.

A task creates a file when it begins; a job that ends without one, not by a signal, is tried once more only: its
interpreter, its container, its srun arguments or the site's `setup` are wrong.

Also the sbatch options of an array or gate, the same for `plan`, which prints them, and for `submit`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from medsyn import disk
from medsyn.campaign.slurm.graph import Node
from medsyn.campaign.slurm.site import GATE, Resources, Site
from medsyn.errors import EXIT_BAD_INPUT, EXIT_BAD_NODE, EXIT_BAD_SETUP, EXIT_DONE, EXIT_NO_PROGRESS

BEGUN = "MEDSYN_BEGUN"  # the file a task creates when it begins
STUMBLED = "stumbled-"  # and a job's id: the file of a job that ended before its task began
CANCEL_LIST = "cancel"  # a gate's verdict, in the folder of its submission
_JOB = """
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
"""
# srun may fail before Slurm kills this shell: a job that was cancelled as it started must not come back
_UNLESS_CANCELLED = """
case $(scontrol -o show job "$job" 2>/dev/null) in *JobState=CANCELLED*) exit $rc ;; esac
"""

# A line of `setup` that fails ends the job before its task. Not by `set -e`: it would hold inside of sourced files,
# too, and for what comes after the task. A failure counts where `set -e` counts it, but in the lines themselves only:
# the result of a function (module, conda) or of a sourced file is its last command's.
_SETUP_BEGINS = f"""
medsyn_setup_failed() {{
  [ "$3" -le 1 ] || return 0
  trap - ERR EXIT TERM
  set +eu
  medsyn_why="setup: exit code $1 of: $2"
  echo "medsyn: $medsyn_why" >&2
  medsyn_end {EXIT_BAD_SETUP}
}}
trap 'medsyn_setup_failed $? "$(sed -n "${{LINENO}}p" "$0")" ${{#BASH_SOURCE[@]}}' ERR
trap 'medsyn_setup_failed $? "$BASH_COMMAND" 1' EXIT
trap 'trap - EXIT TERM; kill -s TERM $$ # medsyn_setup' TERM
"""
_SETUP_ENDS = """
for signal in ERR EXIT TERM; do
  case $(trap -p $signal) in *medsyn_setup*) trap - $signal ;; esac
done
set +eu
"""
END = ["medsyn_end $?"]  # after the task

DEFAULT_PARALLELISM = 256  # elements of an array at work at once, where the site says nothing

Options = dict[str, str | int | bool]


def before(
    folder: Path,
    environment: Mapping[str, object],
    setup: Sequence[str],
    code: Path | None,
    after: Sequence[str] = ("exit $rc",),
    guarded: bool = True,
) -> list[str]:
    """The lines before a task; `END` comes after it.

    Args:
        folder: of the submission.
        environment: variables for the task.
        setup: the site's own lines.
        code: folder of the medsyn package where it may not be installed; None inside a container.
        after: what is to be done with the task's exit code `rc`: `after_task` or `after_gate`.
        guarded: whether a line of `setup` that fails ends the job. A gate goes on: if it were to fail where the tasks
            did, what they block would stay in the queue.
    """
    lines = [f"umask {disk.private_umask():04o}", 'unset SLURM_EXPORT_ENV "${!SQUEUE_@}" "${!SCANCEL_@}"']
    lines.append("export PYTHONUNBUFFERED=1")
    lines += [*_JOB.strip().splitlines(), f"export {BEGUN}={shlex.quote(str(folder))}/begun-$job", f'rm -f "${BEGUN}"']
    if code is not None:
        lines.append(f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}")
    lines += [f"export {name}={shlex.quote(str(value))}" for name, value in environment.items()]
    end = ["medsyn_end() {", "rc=$1", *after, "}"]
    guard = _SETUP_BEGINS.strip().splitlines() if guarded else []
    return [*lines, *end, *guard, *setup, *_SETUP_ENDS.strip().splitlines()]


def after_task(folder: Path, bad_nodes: Path, max_requeues: int) -> list[str]:
    """The lines after a task: end the job, or queue it again.

    Args:
        folder: of the submission.
        bad_nodes: file that collects the names of nodes on which a task failed for the machine's reasons.
        max_requeues: how often one job is queued again, whatever the reason.
    """
    stumbled = f"{shlex.quote(str(folder))}/{STUMBLED}$job"
    return f"""
if [ -e "${BEGUN}" ]; then
  rm -f "${BEGUN}" {stumbled}
elif [ $rc -lt 129 ] || [ $rc -gt 192 ]; then
  if [ -e {stumbled} ]; then
    echo "medsyn: exit code $rc before the task began, twice${{medsyn_why:+; $medsyn_why}}" >&2
    exit $rc
  fi
  touch {stumbled}
fi
case $rc in {EXIT_DONE}|{EXIT_BAD_INPUT}|{EXIT_NO_PROGRESS}) exit $rc ;; esac
{_UNLESS_CANCELLED.strip()}
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
# job, queued first, takes it off this node and lets it go, once it waits: the end of a job may take minutes.
_ELSEWHERE = """
  avoid=$(scontrol -o show job "$job" | sed -n 's/.* ExcNodeList=\\([^ ]*\\).*/\\1/p')
  case $avoid in ""|"(null)") avoid=$SLURMD_NODENAME ;; *) avoid=$avoid,$SLURMD_NODENAME ;; esac
  helper="n=0
    while [ \\$((n += 1)) -le 240 ]; do
      state=\\$(squeue -h -a -o %T -j $job) && case \\$state in PENDING|REQUEUE_HOLD) break ;; '') exit ;; esac
      sleep 1
    done
    scontrol update JobId=$job 'ExcNodeList=$avoid'; scontrol release $job"
  if sbatch --quiet --job-name=medsyn-elsewhere --time=10 --ntasks=1 --output=/dev/null \\
    ${SLURM_JOB_PARTITION:+--partition=$SLURM_JOB_PARTITION} ${SLURM_JOB_ACCOUNT:+--account=$SLURM_JOB_ACCOUNT} \\
    ${SLURM_JOB_QOS:+--qos=$SLURM_JOB_QOS} --wrap "$helper"; then
    echo "medsyn: exit code $rc, queueing $job again on another node than $avoid" >&2
    scontrol requeuehold "$job" && sleep 60
  fi
""".strip()


def after_gate(folder: Path, max_requeues: int) -> list[str]:
    """The lines after a gate: cancel the jobs it found blocked; a gate that could not decide is tried again.

    Slurm reuses ids, so the name is compared first; `scancel --name` with an element's id takes the whole array.
    """
    listed = shlex.quote(str(folder / CANCEL_LIST))
    return f"""
if [ $rc -eq 0 ]; then
  if [ -s {listed} ]; then
    while read -r name jobs; do
      first=${{jobs%% *}}
      case $(squeue -h -a -o %j -j "${{first%%_*}}" 2>/dev/null) in "$name"*) scancel --quiet $jobs ;; esac
    done < {listed}
  fi
  exit 0
fi
{_UNLESS_CANCELLED.strip()}
if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {max_requeues} ] && [ $rc -ne {EXIT_BAD_INPUT} ]; then
  scontrol requeue "$job" && sleep 60
fi
exit $rc""".strip().splitlines()


def wanted_options(site: Site, node: Node) -> Resources:
    """The resources that the site requests for this node's jobs."""
    return site.resources(GATE if node.kind == "gate" else node.stage)


def sbatch_options(site: Site, node: Node, bad_nodes: Sequence[str] = ()) -> Options:
    """The node's sbatch options, by their names with underscores, except name, dependency and array.

    Args:
        site: the cluster.
        node: the array or gate.
        bad_nodes: nodes to leave out besides the site's own.
    """
    ours = wanted_options(site, node)
    options: Options = {name.replace("-", "_"): value for name, value in ours.sbatch.items()}
    for name in ("partition", "account", "qos", "gres", "constraint", "reservation", "mem", "cpus_per_task", "nice"):
        value = getattr(ours, name)
        if value is not None:
            options[name] = value
    if ours.time is not None:
        options["time"] = ours.time
    if excluded := [*filter(None, [ours.exclude]), *bad_nodes]:
        options["exclude"] = ",".join(excluded)
    if site.mail_user:
        options |= {"mail_user": site.mail_user, "mail_type": site.mail_type}
    options["requeue"] = True  # after preemption and node failure, by Slurm; after saving, by the batch script
    return options


def array_option(site: Site, node: Node) -> str | None:
    """The value of --array, or None: a single task is no array."""
    count = len(node.tasks)
    if node.kind == "gate" or count == 1:
        return None
    return f"0-{count - 1}%{min(count, parallelism(site, node))}"


def parallelism(site: Site, node: Node) -> int:
    """Elements of the array at work at once."""
    return wanted_options(site, node).array_parallelism or DEFAULT_PARALLELISM


def options_as_text(options: Options) -> str:
    """The options as one would type them."""
    return " ".join(
        f"--{name.replace('_', '-')}" if value is True else f"--{name.replace('_', '-')}={value}"
        for name, value in options.items()
    )


def srun_options(site: Site, node: Node) -> list[str]:
    """Arguments of srun. Since Slurm 22.05 a step does not inherit --cpus-per-task everywhere."""
    ours = wanted_options(site, node)
    return [*([f"--cpus-per-task={ours.cpus_per_task}"] if ours.cpus_per_task else []), *ours.srun]
