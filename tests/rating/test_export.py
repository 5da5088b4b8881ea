"""What goes out: which images, how mixed, and that nothing of the page tells what they are."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medsyn.cli import app, rate
from medsyn.errors import InputError, InputProblems
from medsyn.rating import page, sources
from medsyn.rating.compose import choose_pairs, count_mixed
from medsyn.rating.export import Exported, Wishes, export
from medsyn.rating.formats import RatingSet, read_key
from medsyn.rating.order import order_for
from tests.helpers.rating_set import SCRIPT, SIDE, drawing, generated, ramp, real, small_set, write_png


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return small_set(tmp_path_factory.mktemp("set"), images=40)


def set_in(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="set">(.*?)</script>', html, re.DOTALL)
    assert found
    tree: dict[str, Any] = json.loads(found[1])
    return tree


def images_in(html: str) -> dict[str, bytes]:
    blocks = re.findall(r'<script type="application/x-png" id="image-(\w+)">([\w+/=]*)</script>', html)
    return {name: base64.b64decode(text) for name, text in blocks}


@pytest.mark.parametrize("images", [1, 2, 7, 8, 9, 40, 200, 999])
@pytest.mark.parametrize(("decoys", "repeats"), [(0.1, 0.1), (0.0, 0.1), (0.3, 0.05), (0.0, 0.0), (0.4, 0.4)])
def test_decoys_and_repeats_are_at_least_their_shares(images: int, decoys: float, repeats: float) -> None:
    mixed, again = count_mixed(images, decoys, repeats)
    total = images + mixed + again
    assert mixed >= decoys * total - 1e-6
    assert again >= repeats * total - 1e-6
    assert total <= images / (1 - decoys - repeats) + 3


def test_the_key_says_what_every_case_is(made: Exported) -> None:
    key = read_key(made.key)
    assert (key.set, key.id) == (made.made.set.hash, made.made.set.id)
    assert key.cases.keys() == {case.id for case in made.made.set.cases}
    kinds = Counter((case.decoy, case.repeat_of is not None) for case in key.cases.values())
    assert kinds[False, False] + kinds[True, False] == 40 + 5
    assert sum(decoy for decoy, _ in kinds.elements()) >= 5
    for case in key.cases.values():
        assert (key.images[case.image].kind == "real") == case.decoy
        if case.repeat_of is not None:
            assert key.cases[case.repeat_of].image == case.image
            assert key.cases[case.repeat_of].repeat_of is None
    origin = next(one for one in key.images.values() if one.prompt_id == "mri-secret-3")
    assert (origin.kind, origin.accepted, origin.selector, origin.modality) == ("generated", False, 0.123456, "MRI")
    assert Path(origin.file).is_file()


def test_the_page_tells_nothing_of_what_an_image_is(made: Exported) -> None:
    html, key = made.page.read_text().replace(page.script(), ""), read_key(made.key)
    for origin in key.images.values():
        for told in (Path(origin.file).name, origin.sha256, origin.prompt_id):
            assert told is None or told not in html
    for word in (
        "secret",
        "0.123456",
        "filtered",
        "decoy",
        "repeat_of",
        "accepted",
        "Synthetic",
        str(made.page.parent),
    ):
        assert word not in html, word
    shown = set_in(html)
    assert {frozenset(case) for case in shown["cases"]} == {frozenset(["id", "image", "section", "caption"])}
    assert [case["id"] for case in shown["cases"]] == sorted(case["id"] for case in shown["cases"])
    in_cases = {case.image for case in key.cases.values()}
    looks = {
        (image["modality"], image["width"], image["height"], image["bits"], image["channels"], image["low"])
        for name, image in shown["images"].items()
        if name in in_cases
    }
    assert looks == {("MRI", SIDE, SIDE, 8, 1, 0), ("Fundus", SIDE, SIDE, 8, 3, 0)}


def test_the_pixels_are_those_of_the_files_and_nothing_else_is_in_them(made: Exported) -> None:
    key, images = read_key(made.key), images_in(made.page.read_text())
    assert images.keys() == key.images.keys() and list(images) == sorted(images)
    for name, png in images.items():
        chunks = set()
        place = 8
        while place < len(png):
            chunks.add(png[place + 4 : place + 8])
            place += int.from_bytes(png[place : place + 4], "big") + 12
        assert chunks == {b"IHDR", b"IDAT", b"IEND"}
        if (origin := key.images[name]).kind == "generated":
            stored, written = np.asarray(Image.open(io.BytesIO(png))).copy(), np.asarray(Image.open(origin.file))
            if stored.ndim == 3:
                stored[..., [0, 2]] += stored[..., [1]]
            assert (stored == written).all()


def test_the_same_images_and_seed_give_the_same_page(made: Exported, tmp_path: Path) -> None:
    folder = made.page.parent
    before = made.page.read_bytes()
    again = small_set(folder, images=40)
    assert again.page.read_bytes() == before
    other = small_set(tmp_path, images=40, seed=4)
    assert other.made.key.cases.keys().isdisjoint(made.made.key.cases.keys())


def test_another_set_is_not_written_over(made: Exported) -> None:
    before = made.key.read_bytes(), made.page.read_bytes()
    with pytest.raises(InputError, match=r"set\.key\.json: is there already, of another set"):
        small_set(made.page.parent, images=40, seed=4)
    assert (made.key.read_bytes(), made.page.read_bytes()) == before


def test_a_text_can_end_no_element_of_the_page(made: Exported) -> None:
    html = made.page.read_text()
    assert SCRIPT not in html
    assert any(SCRIPT in case["caption"] for case in set_in(html)["cases"])
    assert html.count("<script") == html.count("</script>") == 2 + len(made.made.files)


@pytest.mark.parametrize("rater", ["a", "B-2", "somebody.else"])
def test_a_repeat_comes_a_section_later_in_every_order(made: Exported, rater: str) -> None:
    turns = order_for(made.made.set, rater)
    assert sorted(turn.item for turn in turns) == sorted([*made.made.key.cases, *made.made.key.pairs])
    places = {turn.item: place for place, turn in enumerate(turns)}
    sections = Counter(case.section for case in made.made.set.cases)
    apart = [abs(places[name] - places[one.repeat_of]) for name, one in made.made.key.cases.items() if one.repeat_of]
    assert len(apart) >= 5
    assert min(apart) > min(sections.values())
    assert all(places[case] < places[pair] for case in made.made.key.cases for pair in made.made.key.pairs)


def test_raters_have_orders_of_their_own(made: Exported) -> None:
    orders = [[turn.item for turn in order_for(made.made.set, f"r{number}")] for number in range(20)]
    assert len({tuple(order) for order in orders}) == 20
    assert len({order[0] for order in orders}) > 5
    sides = {
        turn.shown for number in range(20) for turn in order_for(made.made.set, f"r{number}") if len(turn.shown) > 1
    }
    assert {shown[::-1] for shown in sides} == sides, "a pair is shown both ways round"


def test_pairs_are_of_one_prompt_first_and_of_one_modality_always(tmp_path: Path) -> None:
    made = [*generated(tmp_path, 6), *generated(tmp_path, 3, "Fundus")]
    pairs = choose_pairs(made, 20, 0)
    assert len(set(pairs)) == len(pairs) > 5
    assert all(left < right and made[left].modality == made[right].modality for left, right in pairs)
    assert all(made[left].prompt == made[right].prompt for left, right in pairs[:4])


def test_two_prompts_are_no_caption_of_a_pair(tmp_path: Path) -> None:
    made = small_set(tmp_path, pairs=8).made
    prompts = {name: image.prompt for name, image in made.key.images.items()}
    alike = {pair.id: prompts[pair.images[0]] == prompts[pair.images[1]] for pair in made.set.pairs}
    assert set(alike.values()) == {True, False}
    assert {pair.id: bool(pair.caption) for pair in made.set.pairs} == alike


def test_all_kinds_are_drawn_alike(tmp_path: Path) -> None:
    made = [*generated(tmp_path, 30), *generated(tmp_path, 3, "Fundus")]
    drawn = sources.draw(iter(made), 9, 0)
    assert Counter(one.modality for one in drawn) == {"MRI": 6, "Fundus": 3}
    assert {one.place for one in sources.draw(reversed(made), 9, 0)} == {one.place for one in drawn}
    assert len(sources.draw(made, 99, 0)) == 33


def test_16_bits_stay_16_bits(tmp_path: Path) -> None:
    made = export([ramp(tmp_path)], [], [], tmp_path / "set.html", Wishes(decoys=0))
    (image,) = made.made.set.images.values()
    assert (image.bits, image.channels, image.width, image.height) == (16, 1, 256, 64)
    (png,) = images_in(made.page.read_text()).values()
    stored = np.asarray(Image.open(io.BytesIO(png))).astype(np.uint16)
    assert (stored == np.asarray(Image.open(tmp_path / "deep" / "ramp.png"))).all()
    assert 0 < image.low < image.high < 65535, "its percentiles"


def test_an_image_in_an_archive_is_read_from_its_place(tmp_path: Path) -> None:
    (one,) = generated(tmp_path, 1)
    png = one.file.read_bytes()
    archive = tmp_path / "images.tar"
    archive.write_bytes(b"x" * 512 + png + b"y" * 512)
    at = {"member": "a.png", "offset": 512, "size": len(png), "sha256": hashlib.sha256(png).hexdigest()}
    made = export([replace(one, file=archive, **at)], [], [], tmp_path / "set.html", Wishes(decoys=0))
    (origin,) = made.made.key.images.values()
    assert (origin.file, origin.member, origin.sha256) == (str(archive), "a.png", at["sha256"])
    with pytest.raises(InputError, match=r"images\.tar, a\.png: has changed since it was generated"):
        replace(one, file=archive, **at | {"offset": 511}).content()


def test_images_that_cannot_be_read_are_all_told(tmp_path: Path) -> None:
    made = generated(tmp_path, 4)
    for one in made[:2]:
        one.file.write_bytes(b"not a picture")
    with pytest.raises(InputProblems) as raised:
        export(made, [], [], tmp_path / "set.html", Wishes())
    assert sorted(problem.source for problem in raised.value.problems) == sorted(str(one.file) for one in made[:2])
    assert not (tmp_path / "set.html").exists() and not (tmp_path / "set.key.json").exists()


def test_a_decoy_that_cannot_be_read_is_replaced(tmp_path: Path) -> None:
    decoys = real(tmp_path, 6)
    decoys[0].file.write_bytes(b"not a picture")
    made = export(generated(tmp_path, 16), decoys, [], tmp_path / "set.html", Wishes(decoys=0.2))
    assert sum(case.decoy and not case.repeat_of for case in made.made.key.cases.values()) == 5


def run(*words: str | Path) -> int:
    return app.dispatch("medsyn", {"rate": app.Command("", rate.main)}, ["rate", *map(str, words)])


def test_wrong_arguments_are_told_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--out", tmp_path / "set.pdf", "--images", 0, "--decoys", 0.9, "--modality", "MRT")
    assert run("export", tmp_path / "none", *words) == 65
    told = capsys.readouterr().err
    for part in (
        "--images: must be 1 to",
        "--decoys: must be 0 to 0.4",
        "--out: must be",
        "--modality:",
        "does not exist",
    ):
        assert part in told
    assert "Traceback" not in told


def test_a_folder_of_images_must_say_its_modality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "images", tmp_path / "set.html"
    for number in range(3):
        write_png(folder / f"{number}.png", drawing(number))
    assert run("export", folder, "--out", out) == 65
    assert "3 images do not say their modality (0.png, 1.png, 2.png): give --modality" in capsys.readouterr().err
    assert run("export", folder, "--out", out, "--modality", "brain mri", "--pairs", 1) == 0
    shown = capsys.readouterr()
    assert re.search(r"set\.html: 3 images, 0 real images and 1 repeat mixed in, 1 pair, \d+\.\d MB", shown.out)
    assert "has 0 real images of 1 that 10% would be" in shown.err
    assert "has no examples of 1, 2 and 3" in shown.err
    assert read_key(tmp_path / "set.key.json").images.popitem()[1].modality == "MRI"


def test_a_table_is_a_source_and_real_ones_and_examples_come_from_tables(tmp_path: Path) -> None:
    for number in range(6):
        write_png(tmp_path / f"{number}.png", drawing(number), **({"Synthetic": "YES"} if number < 3 else {}))
    rated = [f"{number}.png,{number % 3 + 1},MRI,3,MRI: number {number}" for number in range(3, 6)]
    (tmp_path / "rated.csv").write_text("\n".join(["image_path,rating,modality,expert_level,prompt", *rated]))
    named = [f"{number}.png,MRI: number {number},MRI" for number in range(6)]
    (tmp_path / "made.csv").write_text("\n".join(["path,Text,modality", *named[:3]]))
    (tmp_path / "real.csv").write_text("\n".join(["path,Text,modality", *named[3:]]))
    words = ("--real", tmp_path / "real.csv", "--examples", tmp_path / "rated.csv", "--no-captions")
    assert run("export", tmp_path / "made.csv", "--out", tmp_path / "set.html", *words) == 0
    key = read_key(tmp_path / "set.key.json")
    assert Counter(origin.kind for origin in key.images.values()) == {"generated": 3, "real": 4}
    shown = RatingSet.model_validate_json(
        json.dumps({k: v for k, v in set_in((tmp_path / "set.html").read_text()).items() if k != "hash"})
    )
    assert shown.hash == key.set
    assert sorted(example.rating for example in shown.examples) == [1, 2, 3]
    assert {case.caption for case in shown.cases} == {""}


def test_modules_of_the_script_share_no_name() -> None:
    declared = Counter(
        name
        for module in page.modules()
        for name in re.findall(r"^(?:export )?(?:async )?(?:function|class|const|let) (\w+)", module.read_text(), re.M)
    )
    assert [name for name, count in declared.items() if count > 1] == []
    assert sum(declared.values()) > 30
    code = page.script()
    assert not re.search(r"^(import|export) ", code, re.M)
    assert all(f"class {name}" in code for name in ("Session", "RatingScreen", "Viewer"))


def test_no_module_makes_markup_or_asks_the_network() -> None:
    code = page.script()
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "fetch(",
        "XMLHttp",
        "http:",
        "https:",
    ):
        assert word not in code, word
