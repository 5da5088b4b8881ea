"""Curves and histograms as SVG text for the report, drawn without pyplot's global state.

Text and axes take the page's text colour (`currentColor`), so figures suit both light and dark pages.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator

from medsyn.evaluation.tally import SCORE_BINS
from medsyn.modality_names import MODALITIES

# Medium lightness, visible on white and on black; distinguishable with red-green colour blindness.
COLOURS = ("#3d7fd6", "#dd8a26", "#2f9e77", "#b261b8", "#cf5a5a", "#7f8794")
_INK = "#010203"  # placeholder for the page's text colour until the SVG is written
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text: small files, the page's font, selectable
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
}


def _svg(name: str, alternative: str, panels: int, draw: Callable[[Sequence[Axes]], None]) -> str:
    """The SVG element of a row of `panels` axes that `draw` fills; the same input gives the same text."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(12, 3.4), layout="constrained")
        FigureCanvasSVG(figure)
        draw(list(np.atleast_1d(figure.subplots(1, panels))))
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{alternative}" ', 1)


def _values(curve: pd.DataFrame, column: str) -> pd.Series:
    """The finite numbers of a column, by step or epoch."""
    values = pd.to_numeric(curve.get(column, pd.Series()), errors="coerce")
    return values[np.isfinite(values)]


def _line(axes: Axes, curve: pd.DataFrame, column: str, **style: Any) -> None:
    values = _values(curve, column)
    if len(values):
        axes.plot(values, marker="o" if len(values) == 1 else None, **style)


def _finish(axes: Axes, title: str, xlabel: str, ylabel: str = "") -> None:
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def loss_curves(curves: Mapping[str, pd.DataFrame], colours: Mapping[str, str] | None = None) -> str:
    """Fine-tuning loss over steps, one line per modality: every record faint, with a running mean on top."""
    chosen = colours or colours_of(curves)

    def draw(panels: Sequence[Axes]) -> None:
        (axes,) = panels
        for modality, curve in curves.items():
            colour = chosen[modality]
            losses = _values(curve, "loss")
            smooth = losses.rolling(max(1, len(losses) // 10)).mean().dropna()
            axes.plot(losses, color=colour, alpha=0.3, linewidth=0.8)
            axes.plot(smooth, color=colour, label=modality)
        _finish(axes, "", "optimizer step", "denoising loss")

    return _svg("finetune", "Fine-tuning loss over steps", 1, draw)


def stage1_curves(curve: pd.DataFrame) -> str:
    """RLHF stage 1 over epochs: losses, held-out AUROC, and the mean scores of good and poor images."""

    def draw(panels: Sequence[Axes]) -> None:
        losses, auroc, rewards = panels
        for colour, scorer in zip(COLOURS, ("selector", "policy"), strict=False):
            _line(losses, curve, f"{scorer}_loss", color=colour, label=scorer.capitalize())
            _line(auroc, curve, f"{scorer}_auroc", color=colour, label=scorer.capitalize())
        _chance(auroc)
        _line(rewards, curve, "reward_good", color=COLOURS[2], label="rated 2 or 3")
        _line(rewards, curve, "reward_poor", color=COLOURS[4], label="rated 1")
        _finish(losses, "Loss", "epoch")
        _finish(auroc, "AUROC, held-out ratings", "epoch")
        _finish(rewards, "Mean score, held-out ratings", "epoch")

    return _svg("rlhf-stage1", "RLHF stage 1: losses, AUROC and rewards over epochs", 3, draw)


def stage2_curves(curves: Mapping[str, pd.DataFrame], colours: Mapping[str, str] | None = None) -> str:
    """RLHF stage 2 over epochs, one colour per modality: loss, AUROC, scores of good (solid) and poor."""
    chosen = colours or colours_of(curves)

    def draw(panels: Sequence[Axes]) -> None:
        losses, auroc, rewards = panels
        for modality, curve in curves.items():
            colour = chosen[modality]
            _line(losses, curve, "policy_loss", color=colour, label=modality)
            _line(auroc, curve, "policy_auroc", color=colour)
            _line(rewards, curve, "reward_good", color=colour)
            _line(rewards, curve, "reward_poor", color=colour, linestyle=(0, (2, 2)))
        _chance(auroc)
        _finish(losses, "Policy loss", "epoch")
        _finish(auroc, "AUROC, held-out ratings", "epoch")
        _finish(rewards, "Mean score: good —, poor - -", "epoch")

    return _svg("rlhf-stage2", "RLHF stage 2: loss, AUROC and rewards over epochs", 3, draw)


def alignment_curves(curves: Mapping[str, pd.DataFrame], colours: Mapping[str, str] | None = None) -> str:
    """Alignment over steps, one colour per modality: the scorers' reward, and what the judge says."""
    chosen = colours or colours_of(curves)
    titles = {
        "reward": "Reward, of the scorers",
        "quality": "Quality, by the judge",
        "distance": "Distance to good images",
        "diversity": "Diversity",
    }
    known = {name: title for name, title in titles.items() if any(name in curve for curve in curves.values())}

    def draw(panels: Sequence[Axes]) -> None:
        for axes, (name, title) in zip(panels, known.items(), strict=True):
            for modality, curve in curves.items():
                _line(axes, curve, name, color=chosen[modality], label=modality)
            _finish(axes, title, "optimizer step")

    return _svg("align", "Alignment: reward, quality, distance and diversity over steps", max(1, len(known)), draw)


def score_histogram(passed: np.ndarray, rejected: np.ndarray, thresholds: Mapping[str, float]) -> str:
    """Histogram of the Selector scores of filtered generation's candidates, with the thresholds.

    Args:
        passed: candidates in each bin of `SCORE_BINS`, int [40], of those that passed.
        rejected: the same for the others.
        thresholds: the required score of each modality.
    """

    def draw(panels: Sequence[Axes]) -> None:
        (axes,) = panels
        middles = (SCORE_BINS[:-1] + SCORE_BINS[1:]) / 2
        labels = [f"passed ({passed.sum()})", f"rejected ({rejected.sum()})"]
        axes.hist(
            [middles, middles], SCORE_BINS.tolist(), weights=[passed, rejected], stacked=True,
            color=[COLOURS[2], COLOURS[4]], label=labels, alpha=0.85,
        )  # fmt: skip
        for row, threshold in enumerate(sorted(set(thresholds.values()))):
            whose = ", ".join(name for name, its in thresholds.items() if its == threshold)
            label = f"threshold {threshold:.3g}" if len(set(thresholds.values())) == 1 else f"{whose} {threshold:.3g}"
            axes.axvline(threshold, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
            is_right = threshold > 0.7
            axes.annotate(
                label, (threshold, 1), (-4 if is_right else 4, -2 - 10 * row), xycoords=("data", "axes fraction"),
                textcoords="offset points", va="top", ha="right" if is_right else "left", fontsize=8,
            )  # fmt: skip
        axes.set_xlim(0, 1)
        _finish(axes, "", "Selector score", "candidates")
        axes.xaxis.set_major_locator(MultipleLocator(0.2))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))

    return _svg("scores", "Histogram of Selector scores, passed and rejected", 1, draw)


def _chance(axes: Axes) -> None:
    axes.axhline(0.5, color=_INK, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.set_ylim(0, 1.03)


def colours_of(modalities: Collection[str]) -> dict[str, str]:
    """A colour for each line: always the same one for each of the five modalities, what is free for the others."""
    plain = {name: COLOURS[MODALITIES.index(name)] for name in modalities if name in MODALITIES}
    free = itertools.cycle([colour for colour in COLOURS if colour not in plain.values()] or COLOURS)
    return plain | {name: next(free) for name in sorted(modalities) if name not in plain}
