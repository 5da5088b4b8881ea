from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from medsyn.evaluation import plots
from medsyn.evaluation.read_campaign import ALL_MODALITIES

CURVE = pd.DataFrame(
    [{"loss": 1 / step, "policy_loss": 1.0, "policy_auroc": 0.5} for step in range(1, 30)], index=range(1, 30)
)


def test_the_same_numbers_give_the_same_text() -> None:
    assert plots.loss_curves({"CT": CURVE}) == plots.loss_curves({"CT": CURVE})


def test_a_figure_is_one_svg_element_in_the_colour_of_the_page() -> None:
    svg = plots.loss_curves({"CT": CURVE, "OCT": CURVE})
    assert ET.fromstring(svg).tag.endswith("svg")
    assert svg.startswith("<svg ") and "<?xml" not in svg and "#010203" not in svg and "currentColor" in svg
    assert "metadata" not in svg


def test_six_kinds_have_six_colours_and_the_five_keep_theirs() -> None:
    six = plots.colours_of(["OCT", "Fundus", "Chest X-Ray", "Chest CT", "Brain MRI", "Breast MRI"])
    assert len(set(six.values())) == 6
    five = plots.colours_of(["OCT", "CT", "X-Ray", "MRI", "Fundus"])
    together = plots.colours_of([*five, ALL_MODALITIES])
    assert {name: together[name] for name in five} == five and together[ALL_MODALITIES] not in five.values()
    assert list(five.values()) == list(plots.COLOURS[:5]) and six["Fundus"] == five["Fundus"]
    assert len(plots.colours_of(["MRI", *(f"{part} MRI" for part in "ABCDEFGH")])) == 9, "colours come again"


def test_a_modality_has_one_colour_whoever_is_beside_it() -> None:
    colour = plots.COLOURS[1]
    assert colour in plots.loss_curves({"CT": CURVE}) and colour in plots.stage2_curves({"OCT": CURVE, "CT": CURVE})


@pytest.mark.parametrize(
    "curve", [CURVE[:1], pd.DataFrame({"loss": [float("nan"), 0.5]}, [1, 2]), pd.DataFrame({"loss": [None]}, [1])]
)
def test_short_and_broken_curves_are_drawn(curve: pd.DataFrame) -> None:
    ET.fromstring(plots.loss_curves({"CT": curve}))


def test_missing_columns_are_left_out() -> None:
    ET.fromstring(plots.stage1_curves(pd.DataFrame({"policy_loss": [0.3, 0.2]}, [1, 2])))
    ET.fromstring(plots.stage2_curves({"CT": pd.DataFrame({"policy_auroc": [None]}, [1])}))


def test_a_histogram_of_one_kind_only() -> None:
    assert "rejected (0)" in plots.score_histogram(np.eye(1, 40, 30, dtype=int)[0] * 2, np.zeros(40, int), {"CT": 0.6})
    assert "passed (0)" in plots.score_histogram(
        np.zeros(40, int), np.eye(1, 40, 4, dtype=int)[0], {"CT": 0.6, "MRI": 0.9}
    )


def test_each_modality_has_its_threshold_in_the_histogram() -> None:
    drawn = plots.score_histogram(np.ones(40, int), np.ones(40, int), {"CT": 0.6, "MRI": 0.9, "OCT": 0.6})
    assert "CT, OCT 0.6" in drawn and "MRI 0.9" in drawn and "threshold" not in drawn


def test_drawing_leaves_matplotlibs_settings_alone() -> None:
    before = dict(mpl.rcParams)
    plots.loss_curves({"CT": CURVE})
    assert dict(mpl.rcParams) == before


def test_pyplot_is_not_needed() -> None:
    code = (
        "import sys, pandas, medsyn.evaluation.plots as figures\n"
        "figures.loss_curves({'CT': pandas.DataFrame({'loss': [1.0]}, [1])})\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
