"""The campaign's prompts: which list a configuration means, and what is in it. The rows never are in memory at once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medsyn.campaign.machine import CONFIGURATION
from medsyn.config import Config
from medsyn.data.modalities import split_prefix
from medsyn.data.prompt_lists import INDEX, ListIndex, Run
from medsyn.data.prompt_writer import index_rows, write_lists
from medsyn.data.prompts import PromptRow, PromptSource, new_faults, wrong_negative
from medsyn.data.tables import ImageRow
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.seeds import seed
from medsyn.solvers import SchedulerName, wrong_steps

BASE_PROMPT = "data.base_prompt"
CAPTIONS_PER_MODALITY = 8  # drawn as prompts where there is no prompt list


@dataclass(frozen=True)
class Prompts:
    """The prompts of the campaign's modalities: what there is, and where to read it again."""

    source: PromptSource
    index: ListIndex
    rows_read: int  # those of other modalities too

    @property
    def counts(self) -> Counter[str]:
        """How many prompts there are of each modality."""
        return Counter({modality: sum(run.prompts for run in runs) for modality, runs in self.index.modalities.items()})

    def write(self, directory: Path) -> None:
        """Write the list as the tasks read it; nothing is done where it is already."""
        write_lists(self._rows(), self.index, directory)

    def _rows(self) -> Iterator[PromptRow]:
        rows = self.source.rows(new_faults(self.source.name))
        return (row for row in rows if row.modality in self.index.modalities)


def absolute(path: str) -> Path:
    """The path from the root on, links kept."""
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 (Path.absolute keeps '..')


def prompt_file(config: Config, table: Path) -> Path | None:
    """The prompt list that the user means, or None where it is `data.base_prompt` or the table's captions."""
    if config.data.prompts:
        path = absolute(config.data.prompts)
        return path / INDEX if (path / INDEX).is_file() else path  # the lists of a prepared campaign
    beside = table.with_name("prompts.csv")
    return beside if config.data.base_prompt is None and beside.is_file() else None


def find_source(
    config: Config, file: Path | None, images: Iterable[ImageRow], problems: list[Problem]
) -> PromptSource | None:
    """What is to be generated: the prompt list, the one prompt, or some of the table's own captions."""
    base = config.data.base_prompt
    if file is not None and base is not None:
        reason = "there is a prompt list as well (data.prompts); keep one of the two"
        problems.append(Problem(CONFIGURATION, reason, key=BASE_PROMPT))
    if file is not None:
        return PromptSource.file(file)
    if base is None:
        captions = _captions(config, images)
        return PromptSource.texts(config.data.table, captions) if captions else None
    modality = split_prefix(base)[0] or (config.data.modalities[0] if len(config.data.modalities) == 1 else None)
    if modality is None:
        reason = f"which modality? Let it start with one, as in 'CT: {base}', or let data.modalities name just one"
        problems.append(Problem(CONFIGURATION, reason, key=BASE_PROMPT))
        return None
    return PromptSource.texts(BASE_PROMPT, [(modality, base)])


def _captions(config: Config, images: Iterable[ImageRow]) -> list[tuple[str, str]]:
    """The same few captions of each modality every time."""
    drawn: list[tuple[str, str]] = []
    captions = dict.fromkeys((row.modality, row.text) for row in images)
    for modality in config.data.modalities:
        texts = [text for its, text in captions if its == modality]
        texts.sort(key=lambda text: seed(config.campaign.seed, "prompts", text))
        drawn += [(modality, text) for text in texts[:CAPTIONS_PER_MODALITY]]
    return drawn


def check_negative(config: Config) -> list[Problem]:
    """What is wrong with the configuration's negative prompt."""
    reasons = wrong_negative(config.generation.negative_prompt)
    return [Problem(CONFIGURATION, reason, key="generation.negative_prompt") for reason in reasons]


def read(source: PromptSource | None, config: Config, problems: list[Problem]) -> Prompts:
    """Read the list through. A bad row is an error if `data.strict`; else it is left out and told."""
    nothing = Prompts(PromptSource.texts("", ()), ListIndex({}), 0)
    if source is None:
        return nothing
    faults = new_faults(source.name)
    try:
        index = index_rows(source.rows(faults))
    except (InputError, InputProblems) as error:
        problems += map(_of_configuration, dict.fromkeys([*faults.all_errors(), *error.problems]))
        return nothing
    found = [*faults.all_errors(), *(faults.warnings() if source.is_file else ())]
    found = list(map(_of_configuration, found))
    strict = config.data.strict or not index.modalities
    problems += found if strict else [replace(one, severity="warning") for one in found]
    rows = sum(run.prompts for runs in index.modalities.values() for run in runs)
    wanted: set[str] = set(config.data.modalities)
    chosen = {modality: runs for modality, runs in index.modalities.items() if modality in wanted}
    problems += _wrong_steps(source.name, chosen, config.generation.scheduler)
    return Prompts(source, ListIndex(chosen), rows)


def _of_configuration(problem: Problem) -> Problem:
    """A problem of the one prompt that is in no file, by its key."""
    if problem.source != BASE_PROMPT:
        return problem
    return replace(problem, source=CONFIGURATION, row=None, key=BASE_PROMPT)


def _wrong_steps(source: str, modalities: Mapping[str, Sequence[Run]], scheduler: SchedulerName) -> list[Problem]:
    """Numbers of steps that some prompts ask for and the campaign's sampler cannot take."""
    asked = {run.num_inference_steps for runs in modalities.values() for run in runs}
    told = (wrong_steps(scheduler, steps) for steps in sorted(steps for steps in asked if steps is not None))
    return [Problem(source, f"{reason} (generation.scheduler)", key="num_inference_steps") for reason in told if reason]
