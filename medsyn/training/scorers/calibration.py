"""From logits to probabilities that mean what they say, and what is like the images a scorer knows: on unseen images.

Both are learned from answers that members gave about groups they were not trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.covariance import ledoit_wolf

from medsyn.models.ensemble import ANY, Ensemble
from medsyn.models.image_encoder import Standardise
from medsyn.training.scorers.exam import Exam, cross_entropy

# How far, in standard deviations, one modality's slope and shift may be expected to lie from the common ones: a few
# ratings of a modality move it little, dozens decide.
SLOPE_SPREAD, SHIFT_SPREAD = 0.3, 1.0
UNFAMILIAR_QUANTILE = 0.99  # of the distances of images whose group the statistics do not know
FEWEST_FOR_DISTANCES = 30  # images; with fewer, nothing is called unfamiliar

Line = tuple[float, float]  # log of the slope (which is never negative), shift


def fit_line(logits: np.ndarray, target: np.ndarray, weight: np.ndarray, centre: Line, spread: Line) -> Line:
    """The most probable line, given a normal prior around `centre`: of logits [N], targets 0..1 and weights [N].

    As Platt does, targets are moved from 0 and 1 as far as so few examples leave in doubt.
    """
    doubt = 1 / (weight.sum() + 2)
    target = doubt + (1 - 2 * doubt) * target

    def cost(line: np.ndarray) -> tuple[float, np.ndarray]:
        slope = np.exp(line[0])
        scaled = slope * logits + line[1]
        error = weight * (_sigmoid(scaled) - target)
        gone = (line - np.array(centre)) / np.array(spread)
        gradient = np.array([(error * slope * logits).sum(), error.sum()]) + gone / np.array(spread)
        return float((weight * cross_entropy(scaled, target)).sum() + 0.5 * (gone**2).sum()), gradient

    found = minimize(cost, np.array(centre), jac=True, method="L-BFGS-B", bounds=[(-6.0, 3.0), (-20.0, 20.0)])
    return float(found.x[0]), float(found.x[1])


def fit_lines(
    logits: np.ndarray,
    exam: Exam,
    rows: np.ndarray,
    modalities: Sequence[str],
    before: Sequence[Line] | None = None,
) -> list[Line]:
    """The common line, and one for each modality, shrunk towards the common one.

    Args:
        logits: answers [M] to the exam.
        exam: with targets and weights.
        rows: which of its questions count, bool [M].
        modalities: in the order of the lines.
        before: lines to shrink to, and keep where there is nothing to learn from; else the common one.
    """
    weight = exam.weight / exam.weight[rows].mean() if rows.any() else exam.weight
    common = before[ANY] if before else (0.0, 0.0)
    if rows.any() and not before:
        common = fit_line(logits[rows], exam.target[rows], weight[rows], (0.0, 0.0), (2.0, 3.0))
    lines = [common]
    for place, name in enumerate(modalities):
        its = rows & (exam.modality == name)
        centre = before[1 + place] if before else common
        spread = (SLOPE_SPREAD, SHIFT_SPREAD)
        lines.append(fit_line(logits[its], exam.target[its], weight[its], centre, spread) if its.any() else centre)
    return lines


def calibrated(
    logits: np.ndarray, modality: np.ndarray, lines: Sequence[Line], modalities: Sequence[str]
) -> np.ndarray:
    """Probabilities [M] of answers [M] of images of these modalities."""
    place = {name: 1 + number for number, name in enumerate(modalities)}
    rows = np.array([place.get(name, ANY) for name in modality.tolist()], dtype=np.int64)
    slopes, shifts = np.exp([line[0] for line in lines]), np.array([line[1] for line in lines])
    return _sigmoid(slopes[rows] * logits + shifts[rows])


def cross_fitted(
    logits: np.ndarray, exam: Exam, modalities: Sequence[str], before: Sequence[Line] | None
) -> np.ndarray:
    """Probabilities [M], those of each fold calibrated without that fold; NaN for what nobody could answer."""
    scores = np.full(len(exam), np.nan)
    for fold in range(int(exam.fold.max(initial=-1)) + 1):
        its = exam.fold == fold
        lines = fit_lines(logits, exam, exam.rated & ~its, modalities, before)
        scores[its] = calibrated(logits[its], exam.modality[its], lines, modalities)
    return scores


def set_calibration(scorer: Ensemble, lines: Sequence[Line]) -> None:
    """Have an ensemble calibrate by lines: the common one, then those of its card's modalities."""
    slopes, shifts = zip(*lines, strict=True)
    scorer.calibration.slope.copy_(torch.tensor(np.exp(slopes)))
    scorer.calibration.shift.copy_(torch.tensor(shifts))


def lines_of(scorer: Ensemble, modalities: Sequence[str]) -> list[Line]:
    """The lines by which an ensemble calibrates: the common one, then those of modalities."""
    rows = [ANY, *(scorer.row_of(name) for name in modalities)]
    slopes, shifts = scorer.calibration.slope.double().log().tolist(), scorer.calibration.shift.double().tolist()
    return [(slopes[row], shifts[row]) for row in rows]


def set_familiarity(scorer: Ensemble, metrics: np.ndarray, modality: np.ndarray, group: np.ndarray) -> None:
    """Learn what is familiar from the quality metrics [I, F] of the images that a scorer was trained on.

    Args:
        scorer: its card says which modalities there are.
        metrics: of images as they may come.
        modality: str [I].
        group: str [I]: the limit is a quantile of distances to statistics of other groups.
    """
    names, familiarity = scorer.card.modalities or [""], scorer.familiarity
    if len(metrics) < FEWEST_FOR_DISTANCES or len(set(group.tolist())) < 2:
        return
    distances = np.zeros(len(metrics))
    parts = np.unique(group, return_inverse=True)[1] % 5
    for part in np.unique(parts):
        its = parts == part
        if its.all():
            return
        _put(familiarity, _statistics(metrics[~its], modality[~its], names))
        distances[its] = familiarity.distance(torch.from_numpy(metrics[its]).to(familiarity.scale)).cpu().numpy()
    _put(familiarity, _statistics(metrics, modality, names))
    familiarity.limit.fill_(float(np.quantile(distances, UNFAMILIAR_QUANTILE, method="higher")))


def _statistics(
    metrics: np.ndarray, modality: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deviations [F], the mean of each modality [names, F], and the inverse of their common covariance [F, F].

    The covariance is shrunk: O. Ledoit, M. Wolf, "A well-conditioned estimator for large-dimensional covariance
    matrices", Journal of Multivariate Analysis 88 (2004).
    """
    metrics = metrics.astype(np.float64)
    scale = metrics.std(axis=0)
    scale[scale < Standardise.SMALLEST] = 1.0
    overall = metrics.mean(axis=0)
    means, centred = [], metrics - overall
    for name in names:
        its = modality == name
        means.append(metrics[its].mean(axis=0) if its.any() else overall)
        centred[its] = metrics[its] - means[-1]
    covariance, _ = ledoit_wolf(centred / scale, assume_centered=True)
    # a metric that never varies has no scale of its own: a small one keeps the inverse finite
    return scale, np.stack(means), np.linalg.inv(covariance + 1e-3 * np.eye(len(scale)))


def _put(familiarity: torch.nn.Module, statistics: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    for name, values in zip(("scale", "means", "precision"), statistics, strict=True):
        getattr(familiarity, name).copy_(torch.from_numpy(values))


def _sigmoid(values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # NaN of what nobody could answer stays NaN
        return np.asarray(np.exp(-np.logaddexp(0, -values)))
