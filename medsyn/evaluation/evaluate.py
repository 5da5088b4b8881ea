"""The stage `evaluate`: a campaign's results in numbers (`metrics.json`) and for people (`report.html`).

It reads what exists and names what is missing; a failed modality costs only its own rows of the report. Everything
except the timings is a function of the files and of the campaign's seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from medsyn import __version__, disk
from medsyn.config import PHANTOMS, Config
from medsyn.evaluation import (
    alignment,
    copies,
    coverage,
    judge,
    metrics,
    rated,
    read_campaign,
    report,
    scored,
    selectors,
    side_by_side,
    tally,
    verdict,
)
from medsyn.evaluation.generated import Picture
from medsyn.evaluation.read_campaign import Gathered
from medsyn.evaluation.report_tables import OVERALL
from medsyn.models import image_features
from medsyn.seeds import seed
from medsyn.stage import CampaignDirectory, Control, NoProgress, Task

FORMAT = 1  # of metrics.json
_PARTS = ("reading images", "training the judge", "measuring", "writing the report")
_SSIM_PAIRS = 100
_SSIM_SIDE = 64
_LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "clean-fid")


@dataclass(frozen=True)
class Group:
    """The images of one modality, or of all, that are compared with each other."""

    training: Sequence[Picture]
    held_out: Sequence[Picture]
    generated: Mapping[str, Sequence[Picture]]  # by mode; of the filtered mode only accepted ones

    @property
    def sets(self) -> dict[str, Sequence[Picture]]:
        """The sets that are compared: held-out real images, then each mode's."""
        return {"held_out": self.held_out, **self.generated}


def run(config: Config, task: Task, directory: CampaignDirectory, control: Control) -> None:
    """Measure the campaign and write its report.

    Raises:
        Saved: a stop was requested; a trained judge is kept, and the rest takes about a minute to repeat.
        NoProgress: the report is written, and its verdict is as bad as `evaluation.fail_on` says.
    """
    work = directory.work(task.stage, task.name)
    part = 0

    def tick() -> None:
        control.leave_if_asked()
        control.heartbeat(part, len(_PARTS), "part", doing=_PARTS[part])

    gathered = read_campaign.gather(config, directory, tick)
    groups = _groups(config, gathered)
    part = 1
    following, judge_info, seen = _prompt_following(groups, work / "judge", tick)
    part = 2
    distances, kid_info = _distances(config, groups, tick)
    result: dict[str, Any] = {
        "format": FORMAT,
        "notice": report.NOTICE,
        "campaign": _describe_campaign(config, gathered),
        "missing": [asdict(one) for one in gathered.missing],
        "kid": kid_info,
        "judge": judge_info,
        "groups": {
            name: {
                "n": {"training": len(group.training)} | {key: len(pictures) for key, pictures in group.sets.items()},
                "kid": distances[name],
                "pairwise_ssim": _similarity(config, name, group),
                "nearest_training": _nearest(group),
                "generation": _generation(config, gathered, name),
                "prompt_following": following.get(name),
            }
            for name, group in groups.items()
        },
        "arms": side_by_side.measure(
            config,
            gathered,
            {name: gathered.modalities if name == OVERALL else [name] for name in groups},
            seen,
            scored.score(config, directory, gathered.made, tick),
            tick,
        ),
        "alignment": alignment.read(config, directory) if config.align.enabled else None,
        "copies": copies.measure(config, gathered, work / "copies", tick) if config.evaluation.copies else None,
        "achieved": coverage.measure(gathered, config.generation.modes, config.generation.img_num),
        "selectors": selectors.describe(config, directory),
        "rlhf": read_campaign.read_summaries(config, directory),
        "raters": read_campaign.read_agreement(config),
        "rated": rated.measure(directory, config.campaign.seed),
        "stages": [asdict(time) for time in read_campaign.stage_times(directory) if time.stage != task.stage],
        "efficiency": read_campaign.read_efficiency(directory, but=task.stage).as_dict(),
    }
    result["verdict"] = judged = verdict.judge(result, config.evaluation)
    disk.write_json(work / "metrics.json", result)
    part = 3
    tick()
    disk.write_atomic(
        directory.report,
        report.render(config, directory, gathered, read_campaign.read_curves(config, directory), result),
    )
    control.heartbeat(len(_PARTS), len(_PARTS), "part")
    if verdict.fails(judged, config.evaluation):
        limit = f"evaluation.fail_on is {config.evaluation.fail_on}"
        raise NoProgress(f"{judged['summary']} ({limit}; the reasons are in {directory.report})")


def _groups(config: Config, gathered: Gathered) -> dict[str, Group]:
    """All images together, then those of each modality that has any."""
    modes = config.generation.modes

    def group(modalities: Sequence[str]) -> Group:
        return Group(
            [picture for picture in gathered.real.training if picture.modality in modalities],
            [picture for picture in gathered.real.held_out if picture.modality in modalities],
            {
                mode: [p for m in modalities if m in gathered.made for p in gathered.made[m][mode].pictures]
                for mode in modes
            },
        )

    present = gathered.modalities
    return {OVERALL: group(present), **{modality: group([modality]) for modality in present}}


def _stack(pictures: Sequence[Picture]) -> np.ndarray:
    """Features [N, D]."""
    return np.stack([picture.features for picture in pictures]) if pictures else np.empty((0, 1), dtype=np.float32)


def _distances(
    config: Config, groups: Mapping[str, Group], tick: Callable[[], None]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """KID of every group's generated images to its held-out ones, with two reference values, and details of the KID.

    The references: `floor`, two halves of the held-out images; `other_modalities`, the held-out images of this modality
    against those of all others.
    """
    info = {"available": True, "reason": None, "features": image_features.NAME, "meaningful_from": metrics.MEANINGFUL}
    try:
        kernel_distance = metrics.load_kernel_distance()
    except metrics.NotAvailable as error:
        return {name: {} for name in groups}, info | {"available": False, "reason": str(error)}
    section = config.evaluation
    distances: dict[str, dict[str, Any]] = {}
    for name, group in groups.items():
        real = _stack(group.held_out)
        first, second = metrics.halves(len(real), seed(config.campaign.seed, "floor", name))
        others = [p for other in groups if other not in (name, OVERALL) for p in groups[other].held_out]
        pairs = {mode: (real, _stack(pictures)) for mode, pictures in group.generated.items()}
        pairs["floor"] = (real[first], real[second])
        pairs["other_modalities"] = (real, _stack(others if name != OVERALL else []))
        distances[name] = {}
        for key, (left, right) in pairs.items():
            tick()
            chosen = seed(config.campaign.seed, "kid", name, key)
            distance = metrics.kid(kernel_distance, left, right, section.kid_subsets, section.kid_subset_size, chosen)
            distances[name][key] = None if distance is None else distance.as_dict()
    return distances, info


def _similarity(config: Config, name: str, group: Group) -> dict[str, float | None]:
    """How similar the images of each set are to each other."""

    def of(key: str, pictures: Sequence[Picture]) -> float | None:
        def image(place: int) -> np.ndarray:
            return image_features.grey(image_features.shrink(pictures[place].pixels, _SSIM_SIDE))

        return metrics.pairwise_similarity(
            len(pictures), image, _SSIM_PAIRS, seed(config.campaign.seed, "ssim", name, key)
        )

    return {key: of(key, pictures) for key, pictures in group.sets.items()}


def _nearest(group: Group) -> dict[str, Any]:
    """How close each set's images are to the nearest training image; held-out images are the reference."""
    training = _stack(group.training)
    found = {
        key: metrics.nearest_distances(_stack(pictures), training)
        for key, pictures in group.sets.items()
        if pictures and len(training)
    }
    yardstick = found.get("held_out")
    return {
        key: metrics.nearest_summary(distances, None if key == "held_out" else yardstick)
        for key, distances in found.items()
    }


def _generation(config: Config, gathered: Gathered, name: str) -> dict[str, Any]:
    """Per mode, the cost and the yield of generation."""
    made = gathered.made.values() if name == OVERALL else [gathered.made[name]] if name in gathered.made else []
    return {mode: tally.total(one[mode].tally for one in made).summary() for mode in config.generation.modes}


def _prompt_following(
    groups: Mapping[str, Group], directory: Path, tick: Callable[[], None]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any], judge.Seen]:
    """Per group and set, how often the judge sees what the text says; whether there is a judge; and what it saw."""
    everything = [picture for pictures in groups[OVERALL].sets.values() for picture in pictures]
    if judge.labels_of([picture.text for picture in everything]) is None:
        reason = "only phantoms have a judge, because what they show can be drawn at will"
        return {}, {"available": False, "reason": reason}, {}
    tick()
    expert = judge.load_or_train(directory, judge.RECIPE, progress=lambda *_: tick())
    info = {"available": True, "reason": None, "trained_on": judge.RECIPE.images_per_kind * len(judge.KINDS)}
    verdicts = judge.look(expert, (picture.pixels for picture in everything))
    seen = {id(picture): verdict for picture, verdict in zip(everything, verdicts, strict=True)}
    following = {
        name: {
            key: judge.agreement([seen[id(p)] for p in pictures], judge.labels_of([p.text for p in pictures]) or [])
            for key, pictures in group.sets.items()
        }
        for name, group in groups.items()
    }
    return following, info, seen


def _describe_campaign(config: Config, gathered: Gathered) -> dict[str, Any]:
    """What was evaluated, without paths outside the campaign."""
    parsed = judge.labels_of([picture.text for picture in gathered.real.held_out + gathered.real.training])
    return {
        "name": config.campaign.name,
        "seed": config.campaign.seed,
        "model": _public(config.model_paths.stable_diffusion),
        "data": PHANTOMS if parsed else _public(config.data.table),
        "resolution": config.data.resolution,
        "modalities": gathered.modalities,
        "prompts": sum(prompts.prompts for prompts in gathered.prompts.values()),
        "images_per_prompt": config.generation.img_num,
        "images_asked": sum(sum(prompts.run_items(config.generation.img_num)) for prompts in gathered.prompts.values()),
        "real_images": sum(gathered.real.counts.values()),
        "real_images_unreadable": gathered.real.unreadable,
        "real_images_left_out": gathered.real.left_out,
        "generated_images_left_out": sum(made.left_out for modes in gathered.made.values() for made in modes.values()),
        "config_fingerprint": disk.fingerprint(config.model_dump()),
        "versions": {"medsyn": __version__, **{name: _version(name) for name in _LIBRARIES}},
    }


def _public(source: str) -> str:
    """The last component of a path on this machine; anything else (a hub id, `embedded`) unchanged."""
    return Path(source).name if Path(source).is_absolute() or Path(source).exists() else source


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
