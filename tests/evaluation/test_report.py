from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsyn.config import EvaluationSection
from medsyn.evaluation import contact_sheets, evaluate, judge, read_campaign
from medsyn.evaluation.generated import Picture
from medsyn.evaluation.read_campaign import Gathered
from medsyn.evaluation.report_tables import _threshold_cell, duration, number, percent, stages
from medsyn.models.scores import Threshold
from medsyn.rating.sessions import SESSIONS_TABLE, write_sessions
from medsyn.stage import Control, Task
from tests.evaluation.test_rated import rate
from tests.helpers.synthetic_campaign import Builder
from tests.rating import test_report as reading

VOID = {"meta", "img", "br", "link", "input", "hr"}


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a campaign, with a judge that is trained in a moment and knows little."""
    builder = Builder(tmp_path_factory.mktemp("report")).everything()
    ratings = tmp_path_factory.mktemp("ratings") / "ratings.csv"
    sessions = [reading.session("Reader A", reading.honest), reading.session("Reader <B>", reading.guessing(1))]
    rows = [row for rows in sessions for row in rows]
    write_sessions(ratings.with_name(SESSIONS_TABLE), rows)
    rate(builder.directory, [row | {"mode": "filtered", "selector": row["order"] / 100} for row in rows])
    data = builder.config.data.model_copy(update={"ratings_file": str(ratings)})
    config = builder.config.model_copy(update={"data": data})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "RECIPE", judge.JudgeRecipe(images_per_kind=6, epochs=1))
        evaluate.run(config, Task("evaluate", 0, "all"), builder.directory, Control())
    return builder.directory.report.read_text()


class Nesting(HTMLParser):
    """Complains about tags that are closed in another order than opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("li", "p") and self.open[-1] != tag:
            return
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_no_script_and_no_other_file(html: str) -> None:
    page = Nesting()
    page.feed(html)
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.seen}
    for _, attributes in page.seen:
        assert (attributes.get("src") or "data:").startswith("data:")
        assert re.match(r"$|#", attributes.get("href") or "") or (attributes["href"] or "").startswith("#")
    styles = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert "http" not in styles.replace("http-equiv", "").replace("http://www.w3.org", ""), "a reference to the network"


def test_raters_are_shown_with_what_makes_them_doubtful(html: str) -> None:
    section = html[html.index('<section id="raters">') :]
    section = section[: section.index("</section>")]
    assert "Reader A" in section
    assert "Reader &lt;B&gt; agrees with their own earlier ratings hardly better than by chance" in section
    assert "Krippendorff’s alpha" in section


def test_ratings_of_the_campaigns_own_images_have_a_section(html: str) -> None:
    section = html[html.index('<section id="rated">') :]
    section = section[: section.index("</section>")]
    assert "on which no scorer of it was trained" in section
    assert "Selector: AUROC" in section and "Filtered" in section and "60 images" in section
    assert "Reader &lt;B&gt;" in section


def test_every_image_says_what_it_is_and_every_figure_has_a_name(html: str) -> None:
    page = Nesting()
    page.feed(html)
    images = [attributes["alt"] or "" for tag, attributes in page.seen if tag == "img"]
    assert images and all(alt.startswith(("real image", "synthetic image")) for alt in images)
    svgs = [attributes for tag, attributes in page.seen if tag == "svg"]
    assert len(svgs) == 4 and all(attributes["aria-label"] for attributes in svgs)
    anchors = {attributes["id"] for tag, attributes in page.seen if tag == "section" and "id" in attributes}
    links = {(attributes["href"] or "")[1:] for tag, attributes in page.seen if tag == "a"}
    assert links <= anchors


def test_ids_of_figures_do_not_collide(html: str) -> None:
    clips = re.findall(r'<clipPath id="([^"]+)"', html)
    assert clips and len(clips) == len(set(clips))


def test_the_notice_is_at_the_top_and_at_the_end(html: str) -> None:
    assert html.count("All generated images are synthetic. Not for diagnosis.") == 2


def test_pictures_in_the_page_are_the_generated_ones(whole: Builder) -> None:
    gathered = read_campaign.gather(whole.config, whole.directory, lambda: None)
    sheet = contact_sheets.contact_sheet(gathered, "CT", 4)
    frame = sheet.rows[1][2][0]
    assert frame.image is not None
    shown = Image.open(io.BytesIO(base64.b64decode(frame.image.partition(",")[2])))
    line, _ = next(iter(gathered.made["CT"]["baseline"].shown.values()))
    with Image.open(whole.directory.block("baseline", "CT", 0) / line["file"]) as original:
        assert np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(original.convert("RGB")))


def test_a_sheet_spreads_over_the_prompt_list(tmp_path: Path) -> None:
    builder = Builder(tmp_path, kinds=("Brain MRI", "Breast MRI"), images_per_kind=4, prompts_per_kind=6)
    builder.tables()
    gathered = read_campaign.gather(builder.config, builder.directory, lambda: None)
    prompts = contact_sheets.contact_sheet(gathered, "MRI", 4).prompts
    assert [prompt.split(":")[0] for prompt in prompts] == ["Brain MRI", "Brain MRI", "Breast MRI", "Breast MRI"]
    wide = builder.config.model_copy(update={"evaluation": EvaluationSection(sheet_columns=100)})
    gathered = read_campaign.gather(wide, builder.directory, lambda: None)
    assert len(contact_sheets.contact_sheet(gathered, "MRI", 100).prompts) == 12


def test_an_exhausted_prompt_says_so_and_has_no_image(whole: Builder) -> None:
    gathered = read_campaign.gather(whole.config, whole.directory, lambda: None)
    frame = contact_sheets.contact_sheet(gathered, "OCT", 4).rows[2][2][1]
    assert frame.image is None and not frame.accepted
    assert list(frame.lines) == ["none of 6 candidates passed"]


def test_real_images_are_those_whose_caption_comes_closest_and_not_always_the_same() -> None:
    pixels, features = np.zeros((8, 8, 3), np.uint8), np.zeros(3, np.float32)
    pictures = [
        Picture("CT", text, pixels, features)
        for text in ("CT: liver", "CT: lung nodule", "CT: lung nodule", "CT: head")
    ]
    chosen = contact_sheets.closest_captions(
        ["CT: lung nodule", "CT: lung nodule", "CT: lung nodule, left", "CT: head, bone"], pictures
    )
    assert [pictures.index(one) for one in chosen if one][-1] == 3
    assert chosen[0] is not chosen[1] and {id(chosen[0]), id(chosen[1])} == {id(pictures[1]), id(pictures[2])}
    assert contact_sheets.closest_captions(["CT: lung"], []) == [None]


def test_a_sheet_without_anything_is_empty() -> None:
    assert contact_sheets.contact_sheet(Gathered(read_campaign.RealImages(), {}, {}, []), "CT", 4).prompts == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0.00"),
        (0.0123, "0.012"),
        (-0.5, "−0.500"),
        (12.345, "12.3"),
        (1234.5, "1234"),
        (2.5e7, "2.50e+07"),
    ],
)
def test_numbers_have_sensible_digits(value: float | None, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "–"),
        (0.0, "0.0 s"),
        (0.123, "0.12 s"),
        (59.4, "59 s"),
        (59.99, "1 min 00 s"),
        (61.2, "1 min 01 s"),
        (3599.9, "1 h 00 min"),
        (7260, "2 h 01 min"),
    ],
)
def test_durations_are_in_the_unit_a_person_would_choose(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


def test_percent() -> None:
    assert percent(0.666) == "67 %" and percent(None) == "–"


def test_stages_of_no_time_do_not_divide_by_zero() -> None:
    stage = {"stage": "finetune", "tasks": 1, "attempts": 2, "unfinished": 1, "seconds": 0.0}
    assert stages([stage])[0] == {
        "name": "finetune",
        "runs": "1 task, 2 attempts (1 killed)",
        "time": "0.0 s",
        "width": "0.0%",
    }
    assert stages([]) == []


def test_the_template_is_inside_the_package() -> None:
    assert resources.files("medsyn.evaluation").joinpath("templates", "report.html.j2").is_file()


def test_what_a_threshold_costs_is_said() -> None:
    own = Threshold(threshold=0.5, good=9, poor=9, good_passing=0.95, poor_passing=0.1)
    lowered = own.model_copy(update={"basis": "samples", "samples_passing": 0.875, "spoilt_passing": 0.02})
    said = [_threshold_cell({"threshold": 0.5, "own_threshold": one.model_dump()}) for one in (own, lowered)]
    assert [one.detail for one in said] == [
        "95 % of good, 10 % of poor pass",
        "95 % of good, 10 % of poor pass; 88 % of samples, 2 % of bad ones",
    ]
