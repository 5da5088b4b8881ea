"""Everything before the first task: check every input and write what the tasks read.

A prepared campaign's directory holds phantoms (if it is to draw them), `inputs/prompts/`, `config.yaml` with all
paths absolute and nothing left to look up, and `campaign.json`: first a mark that the directory is medsyn's, then,
written last, what all results depend on.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medsyn import config as configuration
from medsyn import disk
from medsyn.campaign.plan import capacity, inputs
from medsyn.campaign.plan.inputs import Checked, Progress
from medsyn.campaign.state import campaign_file, locks, markers
from medsyn.campaign.state.campaign_file import Campaign, CampaignRecord, FileRecord
from medsyn.campaign.tasks import READS, RESHARDED_BY, Key, reads_key, results_of, stage_fingerprints
from medsyn.config import PHANTOMS, Config
from medsyn.data.prompts.store import INDEX
from medsyn.disk import absolute
from medsyn.errors import CONFIGURATION, InputError, InputProblems, Problem
from medsyn.models import single_file, weights
from medsyn.stage import STAGES, CampaignDirectory

STEPS = "finetune.max_train_steps"
# What may change at any time: it changes no result, or (evaluation) only the last stage's, which is made again.
FREE = ("campaign.name", "campaign.gate", "cluster", "evaluation", *RESHARDED_BY)


Warn = Callable[[list[Problem]], None]
Approve = Callable[[CampaignRecord | None, Checked | None], None]


def unchanged(config: Config, before: CampaignRecord | None) -> Campaign | None:
    """The campaign if it was prepared from exactly this configuration and these inputs, so that no check is needed.

    Args:
        config: as the user gave it.
        before: the campaign's record.
    """
    if before is None:
        return None
    try:
        resolved = inputs.resolve(config, before)
    except InputError:  # `check` reports it, with everything else
        return None
    directory = CampaignDirectory(resolved.campaign.path)
    if before["config"] != resolved.model_dump() or before["weights"] != inputs.weights_of(resolved):
        return None
    source = inputs.prompt_source(config)
    if (before["prompt_source"] or {}).get("path") != (str(source) if source else None):
        return None
    files = [*before["inputs"].values(), *([before["prompt_source"]] if source else [])]
    if any(campaign_file.difference(FileRecord(**file), directory.root, hashes=True) for file in files):
        return None
    try:
        return campaign_file.open_recorded(directory, before)
    except (InputError, InputProblems):  # a killed submit, or an edit by hand: prepare it again
        return None


def check(config: Config, progress: Progress | None = None, here: bool = False) -> Checked:
    """What `inputs.check` finds, and every change that existing results depend on."""
    before, damage = None, []
    try:
        before = campaign_file.read_record(CampaignDirectory(config.campaign.path))
    except InputError as error:
        damage = error.problems
    checked = _check(config, before, progress, here=here)
    return replace(checked, problems=[*checked.problems, *damage])


def _check(
    config: Config,
    before: CampaignRecord | None,
    progress: Progress | None = None,
    earlier: Checked | None = None,
    here: bool = False,
) -> Checked:
    checked = inputs.check(config, before, progress, earlier, here)
    return replace(checked, problems=[*checked.problems, *_refused(checked, before)])


def prepare(
    config: Config,
    before: CampaignRecord | None,
    progress: Progress | None = None,
    warn: Warn | None = None,
    approve: Approve | None = None,
    here: bool = False,
    keep: ExitStack | None = None,
) -> Campaign:
    """The campaign of a configuration, ready to run; checks and writes only what has changed.

    Args:
        config: as the user gave it.
        before: the campaign's record (`campaign_file.read_record`).
        progress: called with how far reading images and drawing phantoms are.
        warn: called with the warnings.
        approve: asked under the campaign's lock, before anything is written, with the record as it is then and what
            was found (None: the campaign stays as it is); raises if that must not be. Not asked where no lock is taken.
        here: whether its tasks will run on this machine, not in Slurm's queue.
        keep: takes over the campaign's lock; without it, the lock is held only to write, and not taken at all where
            nothing has changed.

    Raises:
        InputProblems: everything that is wrong with the inputs, or the changed keys that existing results depend on.
        Busy: another process works on the campaign.
    """
    campaign = unchanged(config, before)
    if campaign is not None and keep is None:
        return campaign
    checked = None
    if campaign is None:
        _raise(_refused_keys(config, before))  # before images are read, which takes a while
        checked = _require(_check(config, before, progress, here=here), warn)
        _make_directory(checked.config.campaign.path)
    directory = CampaignDirectory(config.campaign.path)
    with ExitStack() as lock:
        lock.enter_context(locks.exclusive(directory.ledger, directory.root))
        now = campaign_file.read_record(directory)  # who held the lock before us may have changed it
        if campaign is not None and now != before:
            lock.close()
            return prepare(config, now, progress, warn, approve, here, keep)
        if approve:
            approve(now, checked)
        if checked is not None:
            campaign = _write(checked, now, progress, warn, here)
        if keep is not None:
            keep.push(lock.pop_all())
    assert campaign is not None
    return campaign


def _make_directory(root: Path) -> None:
    try:
        disk.make_directory(root)
    except OSError as error:
        reason = f"{root} cannot be created: {error.strerror}"
        raise InputError(CONFIGURATION, reason, key="campaign.dir") from None


def _write(
    checked: Checked, before: CampaignRecord | None, progress: Progress | None, warn: Warn | None, here: bool
) -> Campaign:
    config, resolved = checked.given, checked.config
    directory = CampaignDirectory(resolved.campaign.path)
    _raise(_refused(checked, before))
    campaign_file.claim(directory)
    is_new = _convert_model(config, resolved, progress)
    if config.data.table == PHANTOMS:
        _draw_phantoms(config, directory.root / "phantoms", progress)
    if is_new or config.data.table == PHANTOMS:
        checked = _require(_check(config, before, earlier=checked, here=here), warn)
    source = inputs.prompt_source(config)
    files = _files(checked)
    contents = _contents(resolved, files)
    checked.prompts.write(Path(str(resolved.data.prompts)))
    _sweep_tables(directory, checked)
    disk.write_atomic(directory.config, configuration.save(resolved))
    facts = {
        "fingerprints": stage_fingerprints(resolved, contents),
        "prompts": checked.prompts.index.amounts(),
        "counts": {what: dict(counts) for what, counts in checked.counts.items()},
        "blocks_per_shard": checked.blocks_per_shard,
        "weights": contents["weights"],
        "inputs": {name: asdict(record) for name, record in files.items()},
        "prompt_source": asdict(campaign_file.record_file(source)) if source else None,
        "config": resolved.model_dump(),
    }
    campaign_file.write_record(directory, facts)
    return campaign_file.open_recorded(directory, facts, checked.plan)


def _sweep_tables(directory: CampaignDirectory, checked: Checked) -> None:
    """Remove the tables of shards that no longer exist; the blocks that they were made of stay."""
    tasks = [planned.task for planned in checked.plan.by_stage.get("generate", [])]
    for mode in checked.config.generation.modes:
        kept = {directory.shard(mode, str(task.modality), task.blocks) for task in tasks if task.blocks}
        for folder in directory.work("generate", mode).glob("*/shards/blocks-*"):
            if folder not in kept:
                disk.remove(folder)


def _convert_model(given: Config, resolved: Config, progress: Progress | None) -> bool:
    """Convert a model that is one file, if that has not been done, and remove what others were converted to."""
    model = Path(resolved.model_paths.stable_diffusion)
    if not single_file.is_one(given.model_paths.stable_diffusion):
        return False
    disk.sweep_temporaries(model.parent)
    is_new = inputs.is_to_convert(given, resolved)
    if is_new:
        report = (lambda done, total: progress("converting the model", done, total)) if progress else None
        file, components = absolute(given.model_paths.stable_diffusion), Path(str(resolved.model_paths.components))
        single_file.convert(file, components, model, report)
    for other in model.parent.iterdir():
        if other != model:
            disk.remove(other)
    return is_new


def _draw_phantoms(config: Config, directory: Path, progress: Progress | None) -> None:
    for left in directory.parent.glob(f".{directory.name}.tmp-*"):  # by a submit that was killed: we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    wanted = config.data.phantoms
    report = (lambda done, total: progress("drawing phantoms", done, total)) if progress else None
    inputs.phantoms("dataset").write_dataset(
        directory, wanted.images_per_kind, wanted.prompts_per_kind, wanted.image_size, config.campaign.seed, report
    )


def _require(checked: Checked, warn: Warn | None) -> Checked:
    if warn:
        warn([problem for problem in checked.problems if problem.severity == "warning"])
    _raise(checked.errors)
    return checked


def _raise(problems: list[Problem]) -> None:
    if problems:
        raise InputProblems(problems)


def _files(checked: Checked) -> dict[str, FileRecord]:
    """What the campaign's tables hold, or will hold."""
    data = checked.config.data
    return {
        "table": campaign_file.record_file(Path(data.table)),
        "ratings": campaign_file.record_file(Path(str(data.ratings_file))),
        "prompts": _record_text(Path(str(data.prompts)) / INDEX, checked.prompts.index.text()),
        **({"pairs": campaign_file.record_file(Path(data.pairs_file))} if data.pairs_file else {}),
    }


def fingerprints(checked: Checked) -> dict[str, str]:
    """The fingerprint that each stage would have; none where phantoms are still to be drawn."""
    if not Path(checked.config.data.table).is_file():
        return {}
    return stage_fingerprints(checked.config, _contents(checked.config, _files(checked)))


def done_tasks(checked: Checked) -> set[Key]:
    """The tasks that are done and would stay so; none where the inputs have errors. Outputs are not checked."""
    directory = CampaignDirectory(checked.config.campaign.path)
    if checked.errors or not capacity.marked_done(directory) or not (its := fingerprints(checked)):
        return set()
    return set(markers.done_facts(Campaign(directory, checked.config, checked.plan, its, {})))


def _contents(config: Config, files: Mapping[str, FileRecord]) -> dict[str, str]:
    """A fingerprint of each input."""
    return {name: record.sha256 for name, record in files.items()} | {"weights": inputs.weights_of(config)}


def _record_text(path: Path, text: str) -> FileRecord:
    """The record of a file that will hold `text`."""
    content = text.encode()
    return FileRecord(str(path), len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class _Change:
    """A key whose value, or the content of the file it names, has changed since the campaign was prepared."""

    key: str
    how: str
    stages: list[str]  # that read it
    way_back: str = "change it back"


def _changed_keys(before: CampaignRecord, after: Config) -> list[_Change]:
    return [
        _Change(key, _how(key, was, now, after), _stages(key, was, now, after))
        for key, (was, now) in configuration.changes(before["config"], after).items()
        if not any(key == free or key.startswith(free + ".") for free in FREE)
    ]


def _stages(key: str, was: Any, now: Any, after: Config) -> list[str]:
    """The stages that read a key.

    More steps at a constant rate are no other fine-tuning: it goes on. Results made with its model would be others.
    """
    if key == STEPS and after.finetune.can_be_lengthened and now > was:
        return [stage for stage in STAGES if "finetune" in results_of(stage, after)]
    return [stage for stage in STAGES if reads_key(stage, key, after)]


def _how(key: str, was: Any, now: Any, after: Config) -> str:
    how = f"was {was!r} and is now {now!r}"
    if key == STEPS and after.finetune.keep_best:
        return f"{how}, and with keep_best what came after the best is not kept"
    if key == STEPS and not after.finetune.can_be_lengthened:
        return f"{how}, and with lr_scheduler={after.finetune.lr_scheduler} the rate of every step depends on it"
    if key == configuration.GLOBAL_BATCH:
        return f"the batch of a step ({' x '.join(configuration.SHARED_OUT)}) {how}"
    return how


_INPUT_KEYS = {
    "table": "data.table",
    "ratings": "data.ratings_file",
    "prompts": "data.prompts",
    "pairs": "data.pairs_file",
    "weights": weights.KEY,
}
_MODEL = weights.KEY.rpartition(".")[2]


def _changed_inputs(before: CampaignRecord, contents: Mapping[str, str]) -> list[_Change]:
    old = {name: record["sha256"] for name, record in before["inputs"].items()} | {"weights": before["weights"]}
    return [
        _Change(key, "has changed", [stage for stage in STAGES if name in READS[stage].inputs])
        for name, key in _INPUT_KEYS.items()
        if old.get(name) != contents.get(name)
    ]


def _refused_keys(given: Config, before: CampaignRecord | None) -> list[Problem]:
    if before is None:
        return []
    try:
        resolved = inputs.resolve(given, before)
    except InputError:  # `check` reports it, with everything else
        return []
    changes = _changed_keys(before, resolved)
    if given.generation.batch_size == "auto":
        changes = [_explain_auto(change, before, resolved) for change in changes]
    return _depended_on(changes, CampaignDirectory(given.campaign.path))


def _explain_auto(change: _Change, before: CampaignRecord, resolved: Config) -> _Change:
    """Say how to keep the old batch size: one that `auto` chose cannot be changed back."""
    if change.key != "generation.batch_size":
        return change
    was, size = before["config"]["generation"]["batch_size"], resolved.generation.batch_size
    return replace(change, how=f"was {was}, and auto now gives {size}", way_back=f"set it to {was}")


def _refused(checked: Checked, before: CampaignRecord | None) -> list[Problem]:
    """Every changed key and, where the inputs can be read, every changed content that existing results depend on."""
    problems = _refused_keys(checked.given, before)
    if before and not checked.errors and Path(checked.config.data.table).is_file():
        changes = _changed_inputs(before, _contents(checked.config, _files(checked)))
        model = checked.config.model_paths.stable_diffusion
        if inputs.is_to_convert(checked.given, checked.config) and before["config"]["model_paths"][_MODEL] == model:
            changes = [change for change in changes if change.key != weights.KEY]  # its name says what is in it
        problems += _depended_on(changes, CampaignDirectory(checked.config.campaign.path))
    return problems


def _depended_on(changes: Iterable[_Change], directory: CampaignDirectory) -> list[Problem]:
    """An error for every change that existing results depend on."""
    problems = []
    for change in changes:
        made = [stage for stage in change.stages if stage != "evaluate" and _has_made(directory, stage)]
        if change.key.startswith("data.phantoms.") and (directory.root / "phantoms").is_dir():
            made.insert(0, "phantoms")
        if made:
            reason = f"{change.how}, but this campaign has results of {', '.join(made)}: {change.way_back}, or choose "
            problems.append(Problem(CONFIGURATION, reason + "another campaign.name or campaign.dir", key=change.key))
    return problems


def _has_made(directory: CampaignDirectory, stage: str) -> bool:
    """Whether a task of the stage has left anything."""
    work = directory.work(stage, "any").parent
    return work.is_dir() and any(work.iterdir())
