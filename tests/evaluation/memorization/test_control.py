"""The control group: patients are permuted, within their modality."""

from __future__ import annotations

import numpy as np
import pytest

from medsyn.evaluation.memorization.control import control_group

TRAINED = {f"t{number}": "OCT" for number in range(30)}
CONTROLS = {f"c{number}": "OCT" for number in range(30)}


def honest(images: int, seed: int) -> list[dict[str, float]]:
    """Images that are as near to one patient as to another; some patients are near to many."""
    random = np.random.default_rng(seed)
    patients = [*TRAINED, *CONTROLS]
    hub = random.exponential(0.3, len(patients))
    return [
        {patients[place]: float(hub[place] + random.exponential(0.2)) for place in random.choice(60, 6, replace=False)}
        for _ in range(images)
    ]


def test_images_that_are_near_to_everybody_give_no_small_p() -> None:
    found = [control_group(honest(60, seed), TRAINED, CONTROLS, seed) for seed in range(20)]
    ps = [each.p for each in found if each is not None]
    assert len(ps) == 20
    assert sum(p < 0.05 for p in ps) <= 3
    assert 0.3 < np.mean(ps) < 0.7


def test_copies_of_several_patients_are_noticed_and_of_controls_not() -> None:
    copied = [{**each, f"t{number}": 4.0} for number, each in enumerate(honest(12, 1))]
    found = control_group([*honest(60, 2), *copied], TRAINED, CONTROLS, 0)
    assert found is not None
    assert found.p < 0.01
    assert found.z > 3
    swapped = control_group([*honest(60, 2), *copied], CONTROLS, TRAINED, 0)
    assert swapped is not None
    assert swapped.p > 0.95


def test_one_copied_patient_cannot_bring_it_below_the_share_of_the_trained() -> None:
    found = control_group([{"t0": 9.0}] * 50, TRAINED, CONTROLS, 0)
    assert found is not None
    assert found.smallest_p == 0.5
    assert found.p > 0.4


def test_labels_stay_in_their_modality() -> None:
    """All OCT patients were trained on and no CT patient: nothing can be permuted, so nothing can be said."""
    found = control_group([{"t0": 3.0, "x0": 0.1}] * 9, TRAINED, {"x0": "CT", "x1": "CT"}, 0)
    assert found is not None
    assert found.p == 1.0


@pytest.mark.parametrize("trained,controls", [({}, CONTROLS), (TRAINED, {})])
def test_without_one_of_the_groups_there_is_no_test(trained: dict[str, str], controls: dict[str, str]) -> None:
    assert control_group(honest(3, 0), trained, controls, 0) is None
