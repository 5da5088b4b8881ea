"""Are synthetic images nearer to the patients that a model was trained on than to patients that it never saw?

A test of the whole set, where `search` looks at one image at a time. Patients are permuted, not images: many images
share one near patient, and tests that take them for independent give false alarms (docs/memorization.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medsyn.seeds import seed

_PERMUTATIONS = 999


@dataclass(frozen=True)
class Control:
    """What the test says."""

    p: float  # share of permutations that look at least as much like copying
    z: float  # of the statistic among the permutations
    n: int  # synthetic images
    trained: int  # patients
    controls: int

    @property
    def smallest_p(self) -> float:
        """What the test can say at best if a single patient was copied: no p is smaller, whatever the evidence."""
        return self.trained / (self.trained + self.controls)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**vars(self), "smallest_p_of_one_copied_patient": self.smallest_p}


def control_group(
    nearest: Sequence[Mapping[str, float]], trained: Mapping[str, str], controls: Mapping[str, str], campaign_seed: int
) -> Control | None:
    """Permute which patients were trained on, within each modality.

    The statistic is the sum of sign(D) D^2 over images, D the evidence for the best patient that was trained on less
    that for the best of the controls.

    Args:
        nearest: of each synthetic image, the evidence for each patient that it was compared with.
        trained: modality by patient.
        controls: the same, of the patients that were held out.
        campaign_seed: draws the permutations.

    Returns:
        None where one of the groups is empty.
    """
    if not nearest or not trained or not controls:
        return None
    patients = [*trained, *controls]
    place = {patient: number for number, patient in enumerate(patients)}
    modality = {**trained, **controls}
    strata = np.unique(np.array([modality[patient] for patient in patients]), return_inverse=True)[1]
    label = np.arange(len(patients)) < len(trained)
    images = np.repeat(np.arange(len(nearest)), [len(each) for each in nearest])
    who = np.array([place[patient] for each in nearest for patient in each], dtype=np.int64)
    value = np.array([number for each in nearest for number in each.values()], dtype=np.float64)

    def statistic(label: np.ndarray) -> float:
        best = np.zeros((2, len(nearest)))
        for row, chosen in enumerate((label[who], ~label[who])):
            np.maximum.at(best[row], images[chosen], value[chosen])
        difference = best[0] - best[1]
        return float((np.sign(difference) * difference**2).sum())

    random = np.random.default_rng(seed(campaign_seed, "control group"))
    observed, drawn = statistic(label), np.empty(_PERMUTATIONS)
    for number in range(_PERMUTATIONS):
        shuffled = label.copy()
        for stratum in np.unique(strata):
            its = np.flatnonzero(strata == stratum)
            shuffled[its] = label[random.permutation(its)]
        drawn[number] = statistic(shuffled)
    spread = float(drawn.std())
    return Control(
        p=(1 + int((drawn >= observed - 1e-12).sum())) / (1 + _PERMUTATIONS),
        z=(observed - float(drawn.mean())) / spread if spread > 0 else 0.0,
        n=len(nearest),
        trained=len(trained),
        controls=len(controls),
    )
