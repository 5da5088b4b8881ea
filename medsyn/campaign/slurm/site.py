"""A site profile: the settings one cluster needs (partition, account, container), as a YAML file in `slurm/`.

Nothing in it changes a result. Resources can be given for all stages and again for single ones; `gate` is the small
job after a stage. A key that is left out is not passed to sbatch: the cluster's own default holds.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, field_validator

from medsyn import config
from medsyn.config import Section
from medsyn.errors import InputProblems
from medsyn.stage import STAGES

GATE = "gate"
# sbatch's options that the graph of jobs stands on
OWNED = {
    *("array", "chdir", "dependency", "error", "hold", "input", "job-name", "kill-on-invalid-dep", "no-requeue"),
    *("nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "parsable", "quiet", "requeue", "signal"),
    *("test-only", "wait", "wrap"),
}
# of sbatch and srun: jobs of a federation or on another cluster, which squeue, scontrol and dependencies do not reach
OF_OTHER_CLUSTERS = {"clusters", "cluster", "cluster-constraint"}
ONE_CLUSTER = "one campaign runs on one cluster, the one that sbatch uses here: submit from a login node of the other"
# what gives a job GPUs, or whole nodes with theirs, or counts by them; a gate does not inherit it
OF_GPUS = {
    *("gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task", "gpu-bind", "gpu-freq", "gres-flags"),
    *("cpus-per-gpu", "mem-per-gpu", "ntasks-per-gpu", "exclusive"),
    *("tres-bind", "tres-per-job", "tres-per-node", "tres-per-socket", "tres-per-task"),
}
HIDE_THE_ENVIRONMENT = {"--cleanenv", "-e", "--containall", "-C"}  # options of apptainer exec
Word = Annotated[str, StringConstraints(pattern=r"^\S+$")]
_TIME = re.compile(r"^(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d\d){0,2})$")


def _variable(name: str) -> str:
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"{name!r} is not a valid name of an environment variable")
    return name


Variables = dict[Annotated[str, AfterValidator(_variable)], str | int | float]  # of the environment


def option(name: str) -> str:
    """An option of sbatch by its own name: `gpus_per_node` is `gpus-per-node`."""
    return name.lstrip("-").replace("_", "-")


def _abbreviates(word: str, options: Collection[str]) -> bool:
    """Whether sbatch takes the word for one of the options: it accepts the beginning of a name."""
    return word in options or (len(word) > 3 and any(name.startswith(word) for name in options))


def minutes(text: str) -> int:
    """Minutes of a time limit as Slurm writes it (`90`, `12:00:00`, `2-12:00:00`), rounded up.

    Raises:
        ValueError: it is not one.
    """
    match = _TIME.match(text)
    if not match:
        raise ValueError(f"{text!r} is not a time limit: minutes (90), hours (12:00:00) or days (2-12:00:00)")
    parts = [int(part) for part in match["parts"].split(":")]
    if match["days"] is not None:
        hours, mins, seconds = (*parts, 0, 0)[:3]
        seconds += (int(match["days"]) * 24 + hours) * 3600 + mins * 60
    elif len(parts) == 3:
        seconds = parts[0] * 3600 + parts[1] * 60 + parts[2]
    else:
        seconds = parts[0] * 60 + (parts[1] if len(parts) == 2 else 0)
    return -(-seconds // 60)


class Resources(Section):
    """What one stage's jobs request, under sbatch's own names."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    gres: Word | None = None
    constraint: str | None = None
    exclude: Word | None = None
    reservation: Word | None = None
    time: str | int | None = None  # minutes, or Slurm's form
    mem: Word | None = None
    cpus_per_task: int | None = Field(None, ge=1)
    nice: int | None = None
    array_parallelism: int | None = Field(None, ge=1)  # tasks of one array at work at once: the N of --array=0-9%N
    sbatch: dict[str, str | int | bool] = Field({})  # any further option of sbatch, without the dashes
    srun: list[str] = Field([])  # further arguments of srun, which starts the task (Pyxis: --container-image=...)

    @field_validator("time")
    @classmethod
    def _time_is_slurms(cls, value: str | int | None) -> str | int | None:
        if value is not None and minutes(str(value)) < 1:
            raise ValueError("must be at least one minute")
        return value

    @field_validator("sbatch")
    @classmethod
    def _not_ours(cls, value: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        for name in value:
            word = option(name)
            if len(word) < 2:
                raise ValueError(f"{name} is a short option: write its long name")
            if _abbreviates(word, OF_OTHER_CLUSTERS):
                raise ValueError(f"{name} cannot be used: {ONE_CLUSTER}")
            if _abbreviates(word, OWNED):
                raise ValueError(f"{name} is set by medsyn; remove it")
            if name.replace("_", "-") in Resources.model_fields or name.replace("-", "_") in Resources.model_fields:
                raise ValueError(f"{name} has its own key in the profile: set it there")
        return value

    @field_validator("srun")
    @classmethod
    def _one_word_each(cls, value: list[str]) -> list[str]:
        for word in value:
            if word.startswith("-") and " " in word.partition("=")[0]:
                raise ValueError(f"{word!r} is one argument for srun; write {'='.join(word.split(maxsplit=1))!r}")
            name = option(word.partition("=")[0])
            if word.startswith("-M") or (word.startswith("--") and _abbreviates(name, OF_OTHER_CLUSTERS)):
                raise ValueError(f"{word} cannot be used: {ONE_CLUSTER}")
        return value

    @property
    def minutes(self) -> int | None:
        """The time limit in minutes, None for the partition's default."""
        return None if self.time is None else minutes(str(self.time))


class Container(Section):
    """The image that tasks run in. Paths are of the cluster's shared file system, the same inside and outside."""

    image: str
    runtime: Word = "apptainer"
    nv: bool | None = None  # the host's NVIDIA driver inside; None: for jobs that ask for a GPU
    binds: list[str] = Field([])  # besides the campaign's directory and its inputs: SOURCE or SOURCE:TARGET[:ro]
    environment: Variables = Field({})  # set inside
    options: list[str] = Field([])  # further arguments of `apptainer exec`
    python: str = "python3"  # inside the image

    @field_validator("options")
    @classmethod
    def _environment_stays(cls, value: list[str]) -> list[str]:
        for word in HIDE_THE_ENVIRONMENT.intersection(value):
            raise ValueError(f"{word} hides the SLURM_* variables, which a task needs; remove it")
        return value


class Site(Resources):
    """One cluster."""

    mail_user: Word | None = None
    mail_type: str = "END,FAIL"
    signal_seconds: int = Field(120, ge=10, le=3600)  # how long before the time limit tasks are asked to save
    environment: Variables = Field({})  # exported to every task
    setup: list[str] = Field([])  # shell lines before the task: module load ...
    python: str | None = None  # interpreter of the compute nodes; None: the one that runs medsyn
    max_array_size: int | None = Field(None, ge=1)  # None: what the cluster says
    container: Container | None = None
    stages: dict[
        Literal["finetune", "rlhf-stage1", "rlhf-stage2", "align", "generate", "evaluate", "gate"], Resources
    ] = Field({})

    def resources(self, stage: str) -> Resources:
        """What the jobs of a stage (or `gate`) ask for: the site's values, replaced by the stage's own.

        Options in `sbatch` are joined; a gate asks for no GPU unless its own entry does.
        """
        own = self.stages.get(stage)  # type: ignore[call-overload]
        values: dict[str, Any] = {name: getattr(self, name) for name in Resources.model_fields}
        if stage == GATE:
            values |= {"gres": None, "time": 10, "mem": None, "cpus_per_task": 1, "constraint": None, "srun": []}
            values["sbatch"] = {name: value for name, value in self.sbatch.items() if option(name) not in OF_GPUS}
        if own is not None:
            given = {name: getattr(own, name) for name in own.model_fields_set}
            values |= given | {"sbatch": {**values["sbatch"], **own.sbatch}}
        return Resources.model_construct(**values)


def _known_keys() -> list[str]:
    nested: dict[str, type[Section]] = {
        "container": Container,
        **{f"stages.{stage}": Resources for stage in (*STAGES, GATE)},
    }
    inner = [f"{prefix}.{name}" for prefix, section in nested.items() for name in section.model_fields]
    return [*Site.model_fields, *inner]


def load(path: str | None) -> Site:
    """Read a site profile; without a path, one that leaves everything to the cluster's defaults.

    Raises:
        InputError, InputProblems: no such file, not YAML, unknown keys, wrong types; all of them at once.
    """
    if not path:
        return Site()
    tree = config.read_tree(Path(path), "site profile")
    try:
        return Site.model_validate(tree)
    except ValidationError as error:
        raise InputProblems(config.problem_of(one, path, {}, _known_keys()) for one in error.errors()) from None
