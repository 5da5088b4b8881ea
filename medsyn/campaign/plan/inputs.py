"""A campaign's inputs: which files a configuration names, what is in them, and everything that is wrong with them.

Nothing is written here; `plan` and `submit` both call `check`, and find the same problems, all at once.

The campaign's prompts, too: which list a configuration names, and what is in it, read row by row.
"""

from __future__ import annotations

import importlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from medsyn import config as configuration
from medsyn.campaign import notify
from medsyn.campaign.estimate import cost, workload
from medsyn.campaign.plan import blocks, capacity, machine, shards
from medsyn.campaign.state import campaign_file
from medsyn.campaign.state.campaign_file import CampaignRecord
from medsyn.campaign.tasks import Plan, build, count_blocks
from medsyn.config import PHANTOMS, Config, DataSection, FinetuneSection
from medsyn.data.images.own_sampling import differences, sampling_of
from medsyn.data.modalities import read_prefix
from medsyn.data.prompts.rows import PromptRow, PromptSource, new_faults, wrong_negative
from medsyn.data.prompts.store import INDEX, ListIndex, Run
from medsyn.data.prompts.write import index_rows, write_lists
from medsyn.data.tables import read as tables_read
from medsyn.data.tables.pairs import PairImage, PairRow, pairs_of
from medsyn.data.tables.read import ImageRow, InputTable, RatingRow
from medsyn.data.tables.split import groups, hold_out
from medsyn.data.tables.token_count import TokenCount
from medsyn.disk import absolute
from medsyn.errors import CONFIGURATION, InputError, InputProblems, Problem
from medsyn.generation.write.provenance import sampling
from medsyn.modality_names import MODALITIES, anatomy_of, most_specific
from medsyn.models import single_file, weights
from medsyn.models.tokenizer import token_count
from medsyn.schedulers import SchedulerName, wrong_steps
from medsyn.seeds import seed
from medsyn.stage import CampaignDirectory
from medsyn.text import counted

FEWEST_JUDGED = 8  # `medsyn.training.alignment.judge.FEWEST`, which a login node does not import
# A few minutes' work; what is more is read by `medsyn check`, and then known here. Files that are known do not count.
IMAGES_READ_AT_MOST = 20_000
BYTES_READ_AT_MOST = 4 * 2**30

Row = TypeVar("Row", ImageRow, RatingRow, PairRow)
Runs = Mapping[str, Sequence[int]]  # images of each run of prompts with equal settings, by modality
Progress = Callable[[str, int, int], None]  # what, how many are done, of how many

BASE_PROMPT = "data.base_prompt"
_GOOD, _FEWEST_RATED = 2, 2  # the rating from which images are good; good and poor images, to tell them apart
_SAMPLING_READ = 500  # rated images whose settings are looked at, evenly over the table
CAPTIONS_PER_MODALITY = 8  # drawn as prompts where there is no prompt list
MODELS = Path("inputs") / "models"  # of the campaign: what single files were converted to


@dataclass(frozen=True)
class Checked:
    """A configuration with everything that was found about its inputs; nothing has been written."""

    given: Config  # as the user wrote it
    config: Config  # resolved
    plan: Plan
    asked: dict[str, list[int]]  # images of each run of prompts with equal settings, by modality
    counts: dict[str, Counter[str]]  # see `medsyn.campaign.estimate.workload`
    blocks_per_shard: dict[str, int]  # by modality
    estimate: cost.Estimate
    prompts: Prompts  # empty where they are still to be drawn
    problems: list[Problem]

    @property
    def errors(self) -> list[Problem]:
        """What keeps the campaign from starting."""
        return [problem for problem in self.problems if problem.severity == "error"]


def resolve(config: Config, before: CampaignRecord | None = None) -> Config:
    """The configuration with nothing left to look up; of the data set's table only the modalities are read.

    `generation.batches_per_block: auto` is replaced by the number on record; where there is none, it stays, as it
    takes the prompts to choose one.

    Args:
        config: as the user gave it.
        before: the campaign's record, if it has been prepared.

    Raises:
        InputError: the batch size is `auto`, and nothing says how much memory a card has.
    """
    return blocks.as_recorded(capacity.resolve_batch_size(_with_paths(with_modalities(config))), before)


def with_modalities(config: Config) -> Config:
    """The configuration with its modalities named: where `data.modalities` is null, those of the table.

    All five stand in for those of a table that cannot be read, which `check` reports.
    """
    if config.data.modalities:
        return config
    found = tables_read.modalities_of(absolute(config.data.table), config.data.modality_column)
    tree = config.model_dump()
    tree["data"]["modalities"] = found or list(MODALITIES)
    return Config.model_validate(tree)


def of_directory(root: Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration that a prepared campaign's directory stands for, as if it were given once more.

    Defaults are filled in again, so that what they depend on may be overridden. Environment variables were taken into
    account when the campaign was prepared.

    Args:
        root: the directory, or a link to it; it may have been moved.
        overrides: see `medsyn.config.load`.

    Raises:
        InputError, InputProblems: it is not a campaign's, or its configuration or an override is wrong.
    """
    directory = CampaignDirectory(absolute(str(root)))
    facts = campaign_file.require_record(directory)
    config, prepared_in = campaign_file.saved_configuration(directory)
    tree, root = config.model_dump(), config.campaign.path
    data, table = tree["data"], Path(config.data.table)
    if table == root / PHANTOMS / "metadata.csv":
        data["table"] = PHANTOMS
    if config.data.ratings_file == str(table.parent / "ratings.csv"):
        data["ratings_file"] = None
    if facts["prompt_source"] is None:
        data["prompts"] = None
    else:
        source = Path(campaign_file.moved(facts["prompt_source"]["path"], prepared_in, root))
        if source == table.with_name("prompts.csv"):
            data["prompts"] = None
        elif source.exists():
            data["prompts"] = str(source)  # else the campaign's own copy of it
    return configuration.assemble(tree, str(directory.config), overrides, {})


def _with_paths(config: Config) -> Config:
    """The configuration with every path absolute and every default path filled in."""
    root, data = config.campaign.path, config.data
    table = root / PHANTOMS / "metadata.csv" if data.table == PHANTOMS else absolute(data.table)
    ratings = absolute(data.ratings_file) if data.ratings_file else table.parent / "ratings.csv"
    sources = {
        key: str(absolute(source)) if source and absolute(source).is_dir() else source
        for key, source in config.model_paths.model_dump().items()
    }
    if single_file.is_one(base := config.model_paths.stable_diffusion):
        name = single_file.folder_name(absolute(base), sources["components"])
        sources["stable_diffusion"] = str(root / MODELS / name)
    changes: dict[str, Any] = {
        "campaign": {"dir": str(root)},
        "data": {
            "table": str(table),
            "root": str(absolute(data.root)) if data.root else None,
            "linked_roots": [str(absolute(folder)) for folder in data.linked_roots],
            "ratings_file": str(ratings),
            "pairs_file": str(absolute(data.pairs_file)) if data.pairs_file else None,
            "prompts": str(root / "inputs" / "prompts"),
        },
        "cluster": {"site": str(absolute(config.cluster.site)) if config.cluster.site else ""},
        "model_paths": sources,
    }
    tree = config.model_dump()
    for section, values in changes.items():
        tree[section] |= values
    return Config.model_validate(tree)


def is_to_convert(given: Config, resolved: Config) -> bool:
    """Whether the model is one file that the campaign has not converted yet."""
    is_made = Path(resolved.model_paths.stable_diffusion).is_dir()
    return single_file.is_one(given.model_paths.stable_diffusion) and not is_made


def prompt_source(config: Config) -> Path | None:
    """The prompt list that the user names, or None where it is `data.base_prompt` or the table's captions."""
    return prompt_file(config, Path(_with_paths(config).data.table))


def check(
    config: Config,
    before: CampaignRecord | None = None,
    progress: Progress | None = None,
    earlier: Checked | None = None,
    here: bool = False,
) -> Checked:
    """Read every table, look for weights and images (not too many); everything wrong is in the result's `problems`.

    Args:
        config: as the user gave it.
        before: the campaign's record, if it has been prepared: its shards stay as they are.
        progress: called with how many images have been read.
        earlier: the result before phantoms were drawn; its plan is kept if they are what was expected.
        here: whether the tasks will run on this machine.
    """
    problems: list[Problem] = []
    of_the_table = not config.data.modalities
    config = with_modalities(config)
    resolved = _resolve(config, problems)
    modalities = resolved.data.modalities
    problems += machine.check(resolved, config.model_paths)
    problems += notify.problems(resolved) if here else []
    problems += _check_kept(resolved.finetune)
    problems += _check_linked_roots(resolved)
    drawn_later = config.data.table == PHANTOMS and not Path(resolved.data.table).is_file()
    has_ratings = not drawn_later or config.data.ratings_file is not None
    has_prompts = not drawn_later or config.data.prompts is not None or config.data.base_prompt is not None
    tokens = token_count(resolved.model_paths.described_by, resolved.data.chunks)
    images = [] if drawn_later else _read_images(resolved, problems, tokens)
    ratings = _read_ratings(resolved, problems, tokens) if has_ratings else []
    pairs = _read_pairs(resolved, problems, tokens)
    source = find_source(config, prompt_source(config), images, problems) if has_prompts else None
    prompts = read_prompts(source, config, problems, tokens)
    if of_the_table:
        problems += _left_out(prompts)
    problems += check_negative(config)
    problems += _check_rare(resolved, images)
    problems += _check_split(resolved, images)
    problems += _check_evidence(resolved, ratings)
    problems += _check_sampling(resolved, ratings)
    rated = {(row.path, row.volume, row.modality) for row in ratings}
    counts: dict[str, Counter[str]] = {
        "images": Counter(row.modality for row in images if row.modality in modalities),
        "rated images": Counter(modality for *_, modality in rated if modality in modalities),
        "ratings": Counter(row.modality for row in ratings if row.modality in modalities),
        "prompts": prompts.counts,
    }
    rows = {"images": len(images), "rated images": len(rated), "prompts": prompts.rows_read}
    runs = prompts.index.modalities
    if drawn_later:
        known = {"images": False, "rated images": has_ratings, "prompts": has_prompts}
        counts |= {what: expected for what, expected in _phantom_counts(config).items() if not known[what]}
        if not has_prompts:
            runs = {modality: (Run.plain_prompts(n),) for modality, n in counts["prompts"].items()}
    counts |= workload.asked(runs, resolved.generation)
    for what, number in rows.items():
        absent = [modality for modality in modalities if not counts[what][modality]]
        if number and absent:  # a table without any row has been reported already
            problems.append(_absent(resolved, what, absent))
    own: dict[
        Path, Sequence[ImageRow | RatingRow | PairImage]
    ] = {}  # tables whose images are not medsyn's own drawings
    if config.data.table != PHANTOMS:
        own[Path(resolved.data.table)] = images
    if config.data.table != PHANTOMS or config.data.ratings_file:
        own[Path(str(resolved.data.ratings_file))] = ratings
    if pairs:
        own[Path(str(resolved.data.pairs_file))] = [side for row in pairs for side in (row.a, row.b)]
    problems += _check_images(resolved.data, own, progress)
    asked = {modality: [run.items(config.generation.img_num) for run in its] for modality, its in runs.items()}
    on_gpu = machine.expects_gpu(resolved, here)
    resolved = blocks.resolve(resolved, before, prompts.index, cost.CostModel(resolved, counts, on_gpu))
    if resolved.finetune.validate_every is not None:
        problems += _check_validated(resolved, images, counts["images"] if drawn_later else None)
    problems += _check_judge(resolved, counts)
    problems += machine.check_here(resolved) if here else []
    sizes = _shard_sizes(resolved, before, asked, counts, prompts, on_gpu)
    is_planned = earlier is not None and (earlier.asked, earlier.blocks_per_shard) == (asked, sizes)
    plan = earlier.plan if earlier is not None and is_planned else build(resolved, asked, sizes)
    estimate = cost.estimate(resolved, plan, counts, on_gpu, forks=not machine.is_queued(here))
    done = capacity.marked_done(CampaignDirectory(resolved.campaign.path))
    converted = Path(config.model_paths.stable_diffusion).stat().st_size if is_to_convert(config, resolved) else 0
    problems += capacity.check(resolved, estimate, done, converted)
    problems = list(dict.fromkeys(problems))  # what two readers report is reported once
    return Checked(config, resolved, plan, asked, counts, sizes, estimate, prompts, problems)


def _check_kept(section: FinetuneSection) -> list[Problem]:
    """A warning where no UNet would be kept, although that is asked for."""
    if section.keep_every is None or section.keep_every < section.max_train_steps:
        return []
    reason = (
        f"it is {section.keep_every}, and there are {section.max_train_steps} steps: nothing is kept, because the UNet "
        "after the last step is the model. Use less, or null"
    )
    return [Problem(CONFIGURATION, reason, key="finetune.keep_every", severity="warning")]


def _check_judge(config: Config, counts: Mapping[str, Mapping[str, int]]) -> list[Problem]:
    """A warning where an alignment's judge will have too few held-out images to say that anything is better."""
    if not config.align.enabled:
        return []
    share, images = config.data.held_out_fraction, counts.get("images", {})
    held_out = {name: round(share * images.get(name, 0)) for name in config.data.modalities}
    few = [f"{name} ({number})" for name, number in held_out.items() if images.get(name) and number < FEWEST_JUDGED]
    if not few:
        return []
    reason = (
        f"an alignment's judge compares with held-out images, and of {', '.join(few)} there are fewer than "
        f"{FEWEST_JUDGED}: it will hardly publish an aligned model. Raise it, or set align.enabled=false"
    )
    return [Problem(CONFIGURATION, reason, key="data.held_out_fraction", severity="warning")]


def _check_rare(config: Config, images: Sequence[ImageRow]) -> list[Problem]:
    """A warning where no image would be repeated, although that is asked for: captions are equally frequent."""
    if config.finetune.rare_captions is None or not images:
        return []
    numbers: dict[str, Counter[str]] = defaultdict(Counter)  # of each caption, by fine-tuning task
    for row in images:
        if row.modality in config.data.modalities:
            numbers[config.finetune.task_for(row.modality)][row.text] += 1
    if any(max(its.values()) >= 2 * min(its.values()) for its in numbers.values()):
        return []
    beside = "" if config.finetune.together else " of its modality"
    reason = f"no caption is twice as frequent as another{beside}, so no image is repeated: use null"
    return [Problem(CONFIGURATION, reason, key="finetune.rare_captions", severity="warning")]


def _check_linked_roots(config: Config) -> list[Problem]:
    """An error for each place that links may lead to and that is no directory."""
    return [
        Problem(CONFIGURATION, f"{folder} is not a directory: correct it, or leave it out", key="data.linked_roots")
        for folder in config.data.linked_roots
        if not Path(folder).is_dir()
    ]


def _resolve(config: Config, problems: list[Problem]) -> Config:
    """`resolve`, in batches of one where no size can be chosen."""
    try:
        return resolve(config)
    except InputError as error:
        problems += error.problems
        return capacity.with_size(_with_paths(config), 1)


def _shard_sizes(
    config: Config,
    before: CampaignRecord | None,
    asked: Runs,
    counts: workload.Counts,
    prompts: Prompts,
    on_gpu: bool,
) -> dict[str, int]:
    """Blocks of one shard, by modality: as on record, or else as the cost model says."""
    known = shards.recorded(before, config, prompts.index)
    if known is not None:
        return known
    model = cost.CostModel(config, counts, on_gpu)
    return shards.choose_sizes(model, {modality: count_blocks(config, runs) for modality, runs in asked.items()})


def _check_split(config: Config, images: Sequence[ImageRow]) -> list[Problem]:
    """A warning for each modality of which no image is held out, or far from the share that is asked for."""
    data, problems, group_of = config.data, [], groups(images)
    is_held_out = hold_out(images, data.held_out_fraction, config.campaign.seed)
    for modality in data.modalities:
        files = {row.file for row in images if row.modality == modality}
        held = len({row.file for row in images if row.modality == modality and is_held_out(row)})
        wanted, patients = data.held_out_fraction * len(files), len({group_of[file] for file in files})
        if files and not held:
            why = ", because they are all of one patient" if patients == 1 < len(files) else ""
            reason = (
                f"no image of {modality} ({len(files)}) is held out{why}: generated ones cannot be compared with any"
            )
        elif abs(held - wanted) > max(1, 0.1 * len(files)):
            reason = (
                f"{held} of {len(files)} images of {modality} are held out instead of {round(wanted)}, because those "
                f"of one patient stay together, and there are only {counted(patients, 'patient')}"
            )
        else:
            continue
        problems.append(Problem(data.table, reason, key="data.held_out_fraction", severity="warning"))
    return problems


def _check_validated(
    config: Config, images: Sequence[ImageRow], expected: Mapping[str, int] | None = None
) -> Iterator[Problem]:
    """An error where models have too few held-out images to measure a loss and its interval on.

    `expected` is how many images of each there will be, where they are still to be drawn.
    """
    fraction = config.data.held_out_fraction
    is_held_out = hold_out(images, fraction, config.campaign.seed)
    held = {row.modality: 0 for row in images} | Counter(row.modality for row in images if is_held_out(row))
    if expected is not None:
        held = {modality: max(1, round(fraction * n)) for modality, n in expected.items()}
    few = [f"{held[modality]} of {modality}" for modality in config.data.modalities if held.get(modality, 2) < 2]
    if config.finetune.together and sum(held.get(modality, 2) for modality in config.data.modalities) >= 2:
        return
    if few:
        of = "" if config.finetune.together else " of each modality"
        reason = f"validation needs at least 2 held-out images{of}, and there are {', '.join(few)}: raise "
        yield Problem(CONFIGURATION, reason + "it, or set finetune.validate_every: null", key="data.held_out_fraction")


def weights_of(config: Config) -> str:
    """Fingerprint of the pretrained weights that the campaign uses."""
    return weights.weights_fingerprint(config.model_paths.stable_diffusion)


def phantoms(module: str) -> ModuleType:
    """A module of `medsyn.data.phantoms`, which needs numpy, and most campaigns need no phantoms."""
    try:
        return importlib.import_module(f"medsyn.data.phantoms.{module}")
    except ImportError as error:
        reason = f"drawing phantoms needs {error.name}, which is not installed here; set this to a table of images"
        raise InputError(CONFIGURATION, reason, key="data.table") from None


def _phantom_counts(config: Config) -> dict[str, Counter[str]]:
    """What the phantoms' tables will hold."""
    wanted, modalities = config.data.phantoms, config.data.modalities
    of_kinds = (_modality_of(f"{kind}: ", modalities) for kind in phantoms("phantom").KINDS)
    kinds = Counter(modality for modality in of_kinds if modality in modalities)
    sizes = {
        "images": wanted.images_per_kind,
        "rated images": wanted.images_per_kind,
        "prompts": wanted.prompts_per_kind,
    }
    return {what: Counter({modality: n * size for modality, n in kinds.items()}) for what, size in sizes.items()}


def _rows(read: Callable[[], InputTable[Row]], strict: bool, problems: list[Problem]) -> list[Row]:
    """A table's good rows. A bad row is an error if `strict`; else it is left out with a warning."""
    try:
        table = read()
    except (InputError, InputProblems) as error:
        problems += error.problems
        return []
    problems += table.advice
    problems += table.problems if strict else [replace(one, severity="warning") for one in table.problems]
    if not table.rows:
        problems += table.errors
    return table.rows


def _read_images(config: Config, problems: list[Problem], tokens: TokenCount | None) -> list[ImageRow]:
    data = config.data
    return _rows(lambda: tables_read.dataset_of(data, tokens), data.strict, problems)


def _read_ratings(config: Config, problems: list[Problem], tokens: TokenCount | None) -> list[RatingRow]:
    path = str(config.data.ratings_file)
    if not Path(path).is_file():
        reason = "there is no such file; the Selector and the Policy learn from expert ratings of images"
        problems.append(Problem(path, reason, key="data.ratings_file"))
        return []
    return _rows(lambda: tables_read.ratings_of(config.data, tokens), config.data.strict, problems)


def _read_pairs(config: Config, problems: list[Problem], tokens: TokenCount | None) -> list[PairRow]:
    path = config.data.pairs_file
    if path is None:
        return []
    if not Path(path).is_file():
        reason = "there is no such file; null: the scorers learn from ratings alone"
        problems.append(Problem(path, reason, key="data.pairs_file"))
        return []
    return _rows(lambda: pairs_of(config.data, tokens), config.data.strict, problems)


def _check_evidence(config: Config, ratings: Sequence[RatingRow]) -> list[Problem]:
    """A warning where held-out ratings can never show what the Selector is worth, which generation will ask for."""
    if config.selector.require_auroc is None or not config.generation.filters or not ratings:
        return []
    good = {row.path for row in ratings if row.rating >= _GOOD}
    poor = {row.path for row in ratings if row.rating < _GOOD}
    if min(len(good), len(poor)) >= _FEWEST_RATED:
        return []
    reason = (
        f"{counted(len(good), 'image')} rated acceptable or excellent and {len(poor)} rated poor are too few to show "
        "that the Selector tells them apart, so the campaign will stop before it generates: rate more, or set "
        "selector.require_auroc=null"
    )
    return [Problem(str(config.data.ratings_file), reason, key="data.ratings_file", severity="warning")]


def _check_sampling(config: Config, ratings: Sequence[RatingRow]) -> list[Problem]:
    """A warning where the images that the Selector will judge are sampled otherwise than all those that were rated."""
    if not config.generation.filters or not ratings:
        return []
    files = list(dict.fromkeys(row.path for row in ratings))
    step = -(-len(files) // _SAMPLING_READ)
    try:
        seen = sampling_of(files[::step])
    except ImportError:  # Pillow: a login node needs no more than pydantic, PyYAML, rich and submitit
        return []
    found = differences(seen, sampling(config.generation))
    if not found:
        return []
    reason = (
        f"the generated images among them were sampled otherwise than this campaign does: {'; '.join(found)}. Scores "
        "of images unlike those that were rated mean less: rate some of this campaign (medsyn rate), or sample alike"
    )
    return [Problem(str(config.data.ratings_file), reason, key="data.ratings_file", severity="warning")]


def _absent(config: Config, what: str, modalities: Sequence[str]) -> Problem:
    """What it means that a table has nothing of some of the configuration's modalities."""
    data, names = config.data, ", ".join(modalities)
    if what == "images":
        return Problem(data.table, f"it has no rows of {names}: remove them from data.modalities")
    nothing_at_all = len(modalities) == len(data.modalities)
    if what == "rated images":
        by_itself = config.generation.filters and config.generation.quality_threshold == "auto"
        needed = nothing_at_all or config.training.stage == 2 or by_itself
        reason = f"it has no ratings of {names}, so their Policy has nothing to learn from"
        if by_itself:
            reason += ", and the Selector no threshold for them (generation.quality_threshold takes a number)"
        return Problem(str(data.ratings_file), reason, key="data.ratings_file", severity=_severity(needed))
    reason = f"there is no prompt for {names}: no images of them will be generated"
    return Problem(CONFIGURATION, reason, key="data.prompts", severity=_severity(nothing_at_all))


def _left_out(prompts: Prompts) -> Iterator[Problem]:
    """A warning where a list has prompts of modalities that the table does not have, and that nobody chose away."""
    number = prompts.rows_read - sum(prompts.counts.values())
    if number:
        are = "prompt is" if number == 1 else "prompts are"
        reason = f"{number} {are} left out: the data set has no image of their modalities (data.modalities)"
        yield Problem(prompts.source.name, reason, severity="warning")


def _severity(is_error: bool) -> str:
    return "error" if is_error else "warning"


def _check_images(
    data: DataSection, tables: Mapping[Path, Sequence[ImageRow | RatingRow | PairImage]], progress: Progress | None
) -> list[Problem]:
    """What is wrong with the images of tables, as far as they are known or few enough to read."""
    if not any(tables.values()):
        return []
    first = str(next(iter(tables)))
    try:
        from medsyn.data.check import check_images  # needs the image readers
        from medsyn.data.read_images import Limit
    except ImportError as error:  # a login node needs no more than pydantic, PyYAML, rich and submitit
        reason = f"its images were not read: {error.name} is not installed here; tasks will read them"
        return [Problem(first, reason, severity="warning")]

    report = (lambda done, total: progress("reading images", done, total)) if progress else None
    limit = Limit(IMAGES_READ_AT_MOST, BYTES_READ_AT_MOST)
    found, unread = check_images(tables, data.allow_synthetic, report, limit)
    if not data.strict:
        found = [replace(one, severity="warning") for one in found]
    if unread:
        command = f"medsyn check {' '.join(map(str, tables))}"
        reason = f"{unread:,} images were not read: they are too many for now; run `{command}`, once"
        found.append(Problem(first, reason, severity="warning"))
    return found


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
        """Write the list as the tasks read it; does nothing where it exists already."""
        write_lists(self._rows(), self.index, directory)

    def _rows(self) -> Iterator[PromptRow]:
        rows = self.source.rows(new_faults(self.source.name))
        return (row for row in rows if row.modality in self.index.modalities)


def prompt_file(config: Config, table: Path) -> Path | None:
    """The prompt list that the user names, or None where it is `data.base_prompt` or the table's captions."""
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
        return PromptSource.file(file, config.data.keep_columns, config.data.modalities)
    if base is None:
        captions = _captions(config, images)
        return PromptSource.texts(config.data.table, captions, config.data.modalities) if captions else None
    modality = _modality_of(base, config.data.modalities)
    if modality is None:
        example = next((name for name in config.data.modalities if anatomy_of(name)), "CT")
        reason = (
            f"its modality is not clear: start it with one, as in '{example}: {read_prefix(base)[1]}', "
            "or name just one in data.modalities"
        )
        problems.append(Problem(CONFIGURATION, reason, key=BASE_PROMPT))
        return None
    return PromptSource.texts(BASE_PROMPT, [(modality, base)], config.data.modalities)


def _modality_of(prompt: str, modalities: Sequence[str]) -> str | None:
    """The modality that a prompt's prefix names; without one the only modality there is, if there is only one."""
    named, _ = read_prefix(prompt)
    if named is not None:
        return most_specific(named.modality, named.anatomies, modalities)
    return modalities[0] if len(modalities) == 1 else None


def _captions(config: Config, images: Iterable[ImageRow]) -> list[tuple[str, str]]:
    """A few captions of each modality, the same ones every time."""
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


def read_prompts(
    source: PromptSource | None, config: Config, problems: list[Problem], tokens: TokenCount | None = None
) -> Prompts:
    """Read the whole list. A bad row is an error if `data.strict`; else it is left out with a warning."""
    nothing = Prompts(PromptSource.texts("", ()), ListIndex({}), 0)
    if source is None:
        return nothing
    faults = new_faults(source.name, tokens)
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
    """A problem of the one prompt that is in no file, named by its key."""
    if problem.source != BASE_PROMPT:
        return problem
    return replace(problem, source=CONFIGURATION, row=None, key=BASE_PROMPT)


def _wrong_steps(source: str, modalities: Mapping[str, Sequence[Run]], scheduler: SchedulerName) -> list[Problem]:
    """A problem for each number of steps that prompts ask for and the campaign's sampler cannot take."""
    asked = {run.num_inference_steps for runs in modalities.values() for run in runs}
    reasons = (wrong_steps(scheduler, steps) for steps in sorted(steps for steps in asked if steps is not None))
    return [
        Problem(source, f"{reason} (generation.scheduler)", key="num_inference_steps") for reason in reasons if reason
    ]
