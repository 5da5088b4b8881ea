"""Whether a campaign is any good: a few questions, each answered yes, not shown or no, with the reason and what to do.

The thresholds are `evaluation.min_auroc`, `min_diversity` and `min_images`. Nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from medsyn.arms import title
from medsyn.config import EvaluationSection
from medsyn.evaluation import alignment
from medsyn.evaluation.arm_tables import in_words, shown
from medsyn.evaluation.report_tables import OVERALL, number
from medsyn.evaluation.side_by_side import LOWER_IS_BETTER
from medsyn.text import counted

Level = Literal["good", "unclear", "bad"]
LEVELS: tuple[Level, ...] = ("good", "unclear", "bad")  # from good to bad
ANSWERS = {"good": "yes", "unclear": "not shown", "bad": "no"}
QUESTIONS = {
    "images": "Enough images to say?",
    "selector": "Is the Selector better than chance?",
    "filter": "Did the filter make images better?",
    "alignment": "Did alignment make images better?",
    "diversity": "Is diversity kept?",
    "copies": "Free of copies of training images?",
}
_JUDGED = ("right", "distance")  # which measures say whether images got better; the first that is known


@dataclass(frozen=True)
class Answer:
    """The answer to one question about one modality."""

    question: str
    level: Level
    reason: str
    next: str = ""  # what to do about it

    @property
    def word(self) -> str:
        """The answer in a word or two."""
        return ANSWERS[self.level]


def judge(result: Mapping[str, Any], section: EvaluationSection) -> dict[str, Any]:
    """The answers by modality, and the worst of them, for metrics.json.

    Args:
        result: the rest of metrics.json.
        section: what the thresholds are.
    """
    groups = [name for name in result["groups"] if name != OVERALL]
    answers = {name: list(_answers(result, section, name)) for name in groups}
    every = [answer for its in answers.values() for answer in its]
    overall = max((answer.level for answer in every), key=LEVELS.index, default="unclear")
    return {
        "overall": overall,
        "summary": _summary(answers),
        "modalities": {name: [asdict(answer) for answer in its] for name, its in answers.items()},
    }


def worst(verdict: Mapping[str, Any]) -> Level:
    """The worst answer of a verdict."""
    level: Level = verdict["overall"]
    return level


def fails(verdict: Mapping[str, Any], section: EvaluationSection) -> bool:
    """Whether the verdict is as bad as `evaluation.fail_on` says."""
    limit = section.fail_on
    return limit is not None and LEVELS.index(worst(verdict)) >= LEVELS.index(limit)


def _summary(answers: Mapping[str, Sequence[Answer]]) -> str:
    """All answers in a sentence: what is wrong and where, else what is not shown, else that it is good."""
    for level, opening in (("bad", "Not good"), ("unclear", "Not shown to be good")):
        found: dict[str, list[str]] = {}
        for modality, its in answers.items():
            for answer in its:
                if answer.level == level:
                    found.setdefault(_SHORT[answer.question, level], []).append(modality)
        if found:
            said = [
                what if len(names) == len(answers) else f"{what} ({', '.join(names)})" for what, names in found.items()
            ]
            return f"{opening}: {'; '.join(said)}."
    return "Good: every question is answered yes." if answers else "Nothing could be judged."


_SHORT = {
    ("images", "unclear"): "too few images",
    ("selector", "bad"): "the Selector is worse than chance",
    ("selector", "unclear"): "the Selector is not shown to be better than chance",
    ("filter", "bad"): "the filter makes images worse",
    ("filter", "unclear"): "no gain by the filter is shown",
    ("alignment", "bad"): "alignment makes images worse",
    ("alignment", "unclear"): "no gain by alignment is shown",
    ("diversity", "bad"): "diversity is lost",
    ("diversity", "unclear"): "diversity is uncertain",
    ("copies", "bad"): "there are copies of training images",
    ("copies", "unclear"): "too little is known of copies",
}


def _answers(result: Mapping[str, Any], section: EvaluationSection, name: str) -> Iterator[Answer]:
    yield _images(result, section, name)
    if any(arm["filters"] for arm in result["arms"]["arms"]):
        yield _selector(result, section, name)
        alone = Answer("filter", "unclear", "no two arms differ in this alone", _more_arms(result))
        yield _step(result, name, "filter") or alone
    if result["alignment"] is not None:
        yield _alignment(result, name)
    if (diversity := _diversity(result, section, name)) is not None:
        yield diversity
    if result["copies"] is not None:
        yield _copies(result["copies"], name)


def _last(result: Mapping[str, Any]) -> str:
    """The arm that the campaign is for: the last of its steps."""
    mode: str = result["arms"]["arms"][-1]["mode"]
    return mode


def _images(result: Mapping[str, Any], section: EvaluationSection, name: str) -> Answer:
    counts, mode = result["groups"][name]["n"], _last(result)
    few = {
        what: counts[key]
        for key, what in ((mode, title(mode).lower()), ("held_out", "held-out real"))
        if counts[key] < section.min_images
    }
    if not few:
        return Answer(
            "images", "good", f"{counts[mode]} {title(mode).lower()} and {counts['held_out']} held-out images"
        )
    said = " and ".join(f"{count} {what} images" for what, count in few.items())
    more = (
        "more prompts or generation.img_num"
        if title(mode).lower() in few
        else "more real images or data.held_out_fraction"
    )
    return Answer(
        "images",
        "unclear",
        f"{said}, fewer than {section.min_images} (evaluation.min_images)",
        f"ask for {more} in the next campaign",
    )


_RATE = "medsyn rate export CAMPAIGN --out set.html: more ratings would tell"


def _selector(result: Mapping[str, Any], section: EvaluationSection, name: str) -> Answer:
    its = result["selectors"].get(name)
    found = its["auroc"] if its else None
    if found is None or found["value"] is None or found["low"] is None:
        return Answer("selector", "unclear", "too few held-out ratings", _RATE)
    whose = "" if its and its["evidence_of"] else " (of all modalities together)"
    interval = f"[{number(found['low'], 2)}, {number(found['high'], 2)}]"
    figure = f"AUROC {number(found['value'], 2)} {interval} on held-out ratings{whose}; chance is 0.5"
    if found["low"] > section.min_auroc:
        return Answer("selector", "good", figure)
    if found["high"] is not None and found["high"] < 0.5:
        return Answer("selector", "bad", figure, "medsyn rate report RATINGS: are they to be trusted?")
    return Answer("selector", "unclear", figure, _RATE)


def _more_arms(result: Mapping[str, Any]) -> str:
    """The arms of which two differ in the filter alone."""
    aligns = any(arm["weights"] == "aligned" for arm in result["arms"]["arms"])
    modes = "pretrained, finetuned, aligned, filtered" if aligns else "pretrained, finetuned, filtered"
    return f"a campaign with generation.modes=[{modes}] tells the filter from the rest"


def _step(result: Mapping[str, Any], name: str, what: str) -> Answer | None:
    """Whether the last step of this name made images better, as far as the judge or the distance to real images say.

    None where no two arms differ in it alone.
    """
    steps = [
        step for step in result["arms"]["groups"][name]["steps"] if step["name"].split(" on ")[0].split(",")[0] == what
    ]
    if not steps:
        return None
    step = steps[-1]
    measures = step["measures"]
    measure = next((one for one in _JUDGED if measures.get(one) and measures[one]["change"] is not None), None)
    between = f"{title(step['before'])} → {title(step['after'])}".lower()
    if measure is None or shown(measures[measure]) is None:
        return Answer(
            what, "unclear", f"{between}: too few images in both to say", "ask for more prompts in the next campaign"
        )
    change = measures[measure]
    said = f"{between}: {in_words(measure, change)}"
    if not shown(change):
        return Answer(what, "unclear", f"no difference shown, {said}", _MORE[what])
    is_better = (change["change"] > 0) != (measure in LOWER_IS_BETTER)
    return Answer(what, "good", said) if is_better else Answer(what, "bad", said, _MORE[what])


_MORE = {
    "filter": "look at what it rejects (generation.keep_rejected) and rate it: medsyn rate export CAMPAIGN",
    "alignment": "more ratings, or other settings of align: docs/alignment.md",
}


def _alignment(result: Mapping[str, Any], name: str) -> Answer:
    summary = result["alignment"].get(name)
    if summary is None:
        return Answer("alignment", "unclear", "it has not run", "medsyn resume CAMPAIGN")
    if not summary.get("kept"):
        # no image is worse for it: what the judge refused, reward hacking too, is not in use
        return Answer("alignment", "unclear", alignment.sentence(summary), _MORE["alignment"])
    return _step(result, name, "alignment") or Answer("alignment", "good", alignment.sentence(summary))


def _diversity(result: Mapping[str, Any], section: EvaluationSection, name: str) -> Answer | None:
    found = result["arms"]["groups"][name]["arms"][_last(result)]["figures"].get("diversity")
    alike = result["groups"][name]["pairwise_ssim"]["held_out"]
    if found is None or found["value"] is None or alike is None:
        return None
    real = 1 - alike
    interval = "" if found["low"] is None else f" [{number(found['low'], 2)}, {number(found['high'], 2)}]"
    said = f"{number(found['value'], 2)}{interval}; of held-out images {number(real, 2)}"
    said += f", of which {section.min_diversity:g} are asked (evaluation.min_diversity)"
    least = section.min_diversity * real
    if found["low"] is None:
        level: Level = "unclear"
    else:
        level = "good" if found["low"] >= least else "bad" if found["high"] < least else "unclear"
    more = {
        "good": "",
        "unclear": "ask for more images in the next campaign",
        "bad": "fewer fine-tuning or alignment steps, or a lower generation.guidance_scale",
    }
    return Answer("diversity", level, said, more[level])


_LEAST_RECALL = 0.8  # of the copies planted on purpose, with the lower end of the interval


def _copies(found: Mapping[str, Any], name: str) -> Answer:
    """Whether any image of the modality is a copy; no copy means little where planted ones are not found."""
    its = [one for one in found["copies"] if one["modality"] == name]
    if its:
        said = f"{counted(len(its), 'image')} of the {found['images']} that were searched in all"
        return Answer("copies", "bad", said, "leave out what work/evaluate/all/copies/exclude.csv lists")
    if name in found["unsearched"]:
        return Answer("copies", "unclear", found["unsearched"][name], "more patients would tell")
    recall = found["recall_of_all"]
    if recall is None:
        return Answer("copies", "unclear", "nothing was searched")
    said = f"none found; of copies planted on purpose {recall['value']:.0%} [{recall['low']:.0%}, {recall['high']:.0%}]"
    if recall["low"] < _LEAST_RECALL:
        return Answer("copies", "unclear", said, "medsyn copies says which kinds it misses here")
    return Answer("copies", "good", said)
