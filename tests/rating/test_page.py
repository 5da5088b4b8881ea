"""The rating page in a real browser: every way to use it, nothing lost, nothing fetched, nothing in the way."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright", reason="playwright, which drives the browser, is not installed")

from playwright.sync_api import Browser, Playwright, expect, sync_playwright

from medsyn.rating.export import Exported, Wishes, export
from medsyn.rating.formats import Answers, seal
from medsyn.rating.order import order_for
from medsyn.rating.sources import Source
from tests.data.images.test_dicom import ct, write
from tests.helpers.rating_page import ARGUMENTS, Rater, chromium, edited, kill_browser, processes_of
from tests.helpers.rating_set import HOSTILE, generated, ramp, small_set

pytestmark = pytest.mark.browser
CHOICES = {"1": "left", "2": "right", "3": "same", "4": "both-bad"}
NOTE = '<img src=x onerror="window.ran=3"> né \U0001f9e0 "1" \\ \u2028 123'
Open = Callable[..., Rater]


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    chromium()  # or all is skipped
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    started = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
    yield started
    started.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return small_set(tmp_path_factory.mktemp("set"))


@pytest.fixture
def open_page(browser: Browser, made: Exported, tmp_path: Path) -> Iterator[Open]:
    """Opens pages in windows that share nothing; none may ask for anything but itself, or complain."""
    opened: list[Rater] = []

    def open_one(file: Path | None = None, script: str = "", **options: Any) -> Rater:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(10_000)
        if script:
            context.add_init_script(script)
        opened.append(Rater(context, file or made.page, tmp_path))
        return opened[-1]

    yield open_one
    for rater in opened:
        rater.context.close()
        assert set(rater.requests) <= {rater.file.as_uri(), "blob:null"}, rater.requests
        assert rater.complaints == []


def place(rater: Rater) -> int:
    """Of the present turn, from 1."""
    return int(rater.title.split()[1])


def check_order(answers: Answers, made: Exported) -> None:
    """The page has asked in the order that Python computes."""
    turns = order_for(made.made.set, answers.rater.id)
    shown = sorted(answers.answers, key=lambda answer: answer.order)
    assert [(one.item, tuple(one.shown)) for one in shown] == [(turn.item, turn.shown) for turn in turns]


# --- whole sets -----------------------------------------------------------------------------------------------------


def test_a_whole_set_by_keys_alone(open_page: Open, made: Exported) -> None:
    rater = open_page()
    rater.begin()
    keys = random.Random(1).choices("1230", k=rater.total)
    for number, key in enumerate(keys):
        assert place(rater) == number + 1
        rater.press(key)
        rater.expect_answered(number + 1)
    assert rater.at_the_end()
    with rater.page.expect_download() as started:
        rater.press("Enter")
    saved = rater.keep(started.value)
    assert saved.name == f"ratings-{made.made.set.id}-r1.json"
    answers = rater.answers()
    check_order(answers, made)
    assert (answers.set.hash, answers.rater.expert_level) == (made.made.set.hash, 2)
    assert (answers.display.dark_patch, answers.display.bright_patch, answers.display.light) == (True, True, "dim")
    for answer, key in zip(sorted(answers.answers, key=lambda one: one.serial), keys, strict=True):
        is_pair = len(answer.shown) == 2
        assert answer.not_sure == (key == "0")
        assert answer.rating == (None if is_pair or key == "0" else int(key))
        assert answer.choice == (CHOICES.get(key) if is_pair else None)
        assert answer.changes == 0 and 0 < answer.milliseconds < 10_000


def test_a_whole_set_by_mouse_alone(open_page: Open, made: Exported) -> None:
    rater = open_page()
    page = rater.page
    page.locator("#rater").fill("m")  # the one thing that must be typed
    page.get_by_label("Senior specialist").click()
    page.get_by_role("button", name="Begin").click()
    for answer in page.get_by_label("I do not").all():
        answer.click()
    page.get_by_label("As in an office").click()
    page.get_by_role("button", name="Go on", exact=True).click()
    page.get_by_role("button", name="Start rating").click()
    page.locator("[data-screen=rate]").wait_for()
    for number in range(rater.total):
        if number == 0:
            page.get_by_label("Blurred, detail missing").click()
            page.get_by_label("High").click()
        page.locator(f".answer.of-{number % 4}").click()
        rater.expect_answered(number + 1)
    answers = rater.answers()
    check_order(answers, made)
    assert (answers.rater.expert_level, answers.display.light, answers.display.dark_patch) == (3, "office", False)
    first = next(one for one in answers.answers if one.order == 0)
    assert (first.defects, first.confidence, first.not_sure) == (["blur"], 3, True)
    assert sum(one.not_sure for one in answers.answers) == -(-rater.total // 4)


def test_a_whole_set_by_touch_on_a_telephone(open_page: Open, made: Exported) -> None:
    rater = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, device_scale_factor=2)
    page = rater.page
    page.locator("#rater").fill("t")
    page.get_by_role("button", name="Begin").tap()
    page.get_by_role("button", name="Leave this out").tap()
    page.get_by_role("button", name="Start rating").tap()
    page.locator("[data-screen=rate]").wait_for()
    for number in range(rater.total):
        page.locator(f".answer.of-{number % 3 + 1}").tap()
        rater.expect_answered(number + 1)
    answers = rater.answers()
    check_order(answers, made)
    assert (answers.display.dark_patch, answers.display.width, answers.display.ratio) == (None, 390, 200)


# --- keys -----------------------------------------------------------------------------------------------------------


def test_answers_are_taken_back_and_given_anew(open_page: Open) -> None:
    rater = open_page()
    rater.begin()
    rater.press("1", "2", "3")
    rater.expect_answered(3)
    rater.press("z")
    rater.expect_answered(2)
    assert place(rater) == 3
    rater.press("Backspace")
    rater.expect_answered(1)
    rater.press("3")
    rater.expect_answered(2)
    rater.press("ArrowLeft", "ArrowLeft")
    expect(rater.page.locator(".answer[aria-pressed=true]")).to_have_text("1Poor")
    rater.press("2", "ArrowRight", "1")
    rater.expect_answered(3)
    given = {one.order: (one.rating, one.changes) for one in rater.answers().answers}
    assert given == {0: (2, 1), 1: (3, 1), 2: (1, 1)}


def test_arrows_go_without_an_answer_and_the_end_names_what_is_open(open_page: Open) -> None:
    rater = open_page()
    rater.begin()
    rater.press("ArrowLeft", *["ArrowRight"] * rater.total)
    expect(rater.page.locator("#end-title")).to_have_text("The end, with gaps")
    rater.expect_answered(0)
    rater.page.get_by_role("button", name="Go back to the images").click()
    expect(rater.page.locator("#case-title")).to_contain_text("Case 1 of")
    rater.press("ArrowRight", "2", "ArrowLeft", "ArrowLeft")
    rater.press(*["1"] * rater.total)
    expect(rater.page.locator("#end-title")).to_have_text("All done. Thank you.")


def test_remarks_by_keys_and_a_note_is_no_shortcut(open_page: Open) -> None:
    rater = open_page()
    rater.begin()
    rater.press("q", "w", "q", "e", "c", "c", "n")
    expect(rater.page.locator("#note")).to_be_focused()
    rater.page.keyboard.type("1 2 3 z ? x")
    rater.press("Backspace", "ArrowLeft", "Delete")
    rater.expect_answered(0)
    assert not rater.page.locator("dialog[open]").count()
    rater.press("Escape", "2")
    rater.expect_answered(1)
    (answer,) = rater.answers().answers
    assert (answer.defects, answer.confidence, answer.note) == (["not-as-described", "texture"], 2, "1 2 3 z ?")
    expect(rater.page.locator("#note")).to_have_value("")


def test_a_key_that_is_held_down_answers_once_and_others_are_left_to_the_browser(open_page: Open) -> None:
    rater = open_page()
    rater.begin()
    for _ in range(5):
        rater.page.keyboard.down("2")
    rater.page.keyboard.up("2")
    rater.press("Control+1", "Alt+2", "Meta+3", "Shift+Tab")
    rater.expect_answered(1)
    time.sleep(0.1)
    rater.expect_answered(1)


def test_keys_can_be_turned_off(open_page: Open) -> None:
    rater = open_page()
    rater.begin()
    rater.press("?")
    rater.press("1")  # nothing is rated behind a dialog
    rater.page.get_by_label("Keys are on").uncheck()
    rater.press("Escape", "1")
    time.sleep(0.1)
    rater.expect_answered(0)
    rater.page.locator(".answer.of-1").click()
    rater.expect_answered(1)


# --- the view -------------------------------------------------------------------------------------------------------


def test_sixteen_bits_are_there_to_be_windowed(open_page: Open, tmp_path: Path) -> None:
    made = export([ramp(tmp_path)], [], [], tmp_path / "deep.html", Wishes(decoys=0, repeats=0, pairs=0))
    rater = open_page(made.page)
    rater.begin()
    rater.press("h")  # one pixel for each
    assert rater.colours() > 200
    wide = rater.page.locator("#view-text").inner_text()
    rater.press(*["g"] * 20)  # 2 ** 3 times the contrast: of 256 columns 32 are neither black nor white
    assert 28 <= rater.colours() <= 36, "8 bits would leave as many greys, but not in steps of one column"
    assert rater.page.locator("#view-text").inner_text() != wide
    rater.press("b")
    expect(rater.page.locator("#view-text")).to_have_text(wide)
    rater.press("v", "v")
    expect(rater.page.locator("#preset")).to_have_value("Dark parts")
    (image,) = made.made.set.images.values()
    rater.press("2")
    rater.expect_answered(1)
    (answer,) = rater.answers().answers
    middle = (image.low + image.high) / 2
    assert answer.window.low == pytest.approx(image.low, abs=2) and answer.window.high == pytest.approx(middle, abs=2)
    assert answer.zoom == 100


def test_a_ct_is_windowed_in_hounsfield_units(open_page: Open, tmp_path: Path) -> None:
    source = Source(write(tmp_path / "a.dcm", ct()), "CT", "CT: x")
    made = export([source], [], [], tmp_path / "ct.html", Wishes(decoys=0, repeats=0, pairs=0))
    rater = open_page(made.page)
    rater.begin()
    expect(rater.page.locator("#view-text")).to_contain_text("Level 40, width 399 HU")  # PS3.3 C.11.2.1.2: of 400
    rater.page.locator("#preset").select_option("Lung")
    expect(rater.page.locator("#view-text")).to_contain_text("Level -600, width 1500 HU")


@pytest.mark.parametrize("modality", ["MRI", "Fundus"])
def test_every_pixel_is_that_of_the_file(open_page: Open, tmp_path: Path, modality: str) -> None:
    (source,) = generated(tmp_path, 1, modality)
    made = export([source], [], [], tmp_path / "one.html", Wishes(decoys=0, repeats=0, pairs=0))
    rater = open_page(made.page)
    rater.begin()
    rater.press("h")
    written = np.asarray(Image.open(source.file).convert("RGB"))
    assert (rater.pixels(*written.shape[:2]) == written).all()


def test_window_and_place_by_drag_and_wheel(open_page: Open) -> None:
    rater = open_page()
    rater.begin()
    mouse, text = rater.page.mouse, rater.page.locator("#view-text")
    box = rater.page.locator("#canvas-left").bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(right: float, down: float) -> None:
        mouse.move(x, y)
        mouse.down()
        mouse.move(x + right, y + down, steps=3)
        mouse.up()

    fit = text.inner_text()
    assert fit.startswith("Level 128, width 255 · ")
    drag(100, 0)
    narrow = text.inner_text()
    assert narrow.startswith("Level 128, width 180")
    drag(0, -80)
    assert text.inner_text().startswith("Level 77, width 18")
    mouse.wheel(0, -400)
    expect(text).not_to_contain_text(fit.rpartition(" · ")[2])
    rater.page.keyboard.down("Shift")
    drag(50, 20)
    rater.page.keyboard.up("Shift")
    assert text.inner_text().startswith("Level 77, width 18"), "with Shift the image is moved"
    mouse.dblclick(x, y)
    rater.press("b")
    expect(text).to_have_text(fit)
    rater.press("+", "-", "=", "f", "h")
    expect(text).to_contain_text("· 100 %")


def test_two_fingers_zoom_and_one_sets_the_window(open_page: Open) -> None:
    rater = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    rater.begin()
    text, box = rater.page.locator("#view-text"), rater.page.locator("#canvas-left").bounding_box()
    assert box
    x, y, fit = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, text.inner_text()
    session = rater.context.new_cdp_session(rater.page)

    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": left, "y": top, "id": number} for number, (left, top) in enumerate(places)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", (x - 20, y), (x + 20, y))
    touch("touchMove", (x - 40, y), (x + 40, y))
    touch("touchEnd")
    rater.page.wait_for_function("(before) => document.getElementById('view-text').textContent !== before", arg=fit)
    assert text.inner_text().startswith("Level 128, width 255 · ")
    touch("touchStart", (x, y))
    touch("touchMove", (x, y - 40))
    touch("touchEnd")
    rater.page.wait_for_function("() => !document.getElementById('view-text').textContent.startsWith('Level 128')")


def test_a_pair_shows_two_images_alike(open_page: Open, made: Exported) -> None:
    rater = open_page()
    rater.begin()
    cases = len(made.made.set.cases)
    rater.press(*["2"] * cases)
    rater.expect_answered(cases)
    assert rater.title.startswith(f"Pair {cases + 1} of")
    left, right = (rater.page.locator(f"#canvas-{side}").bounding_box() for side in ("left", "right"))
    assert left and right and (left["width"], left["height"]) == (right["width"], right["height"])
    rater.press(*["g"] * 60)
    assert rater.colours("#canvas-left") <= 4 and rater.colours("#canvas-right") <= 4, "one window for both"
    expect(rater.page.get_by_role("group", name="Defects of the worse one")).to_be_visible()
    expect(rater.page.locator("#canvas-right")).to_have_attribute("aria-label", "Right image: MRI, synthetic or real")


def test_examples_and_help_are_a_key_away(open_page: Open) -> None:
    rater = open_page()
    rater.begin()
    rater.press("x")
    dialog = rater.page.get_by_role("dialog", name="What 1, 2 and 3 mean")
    expect(dialog.locator("canvas")).to_have_count(3)
    rater.press("Enter")  # its button has the focus
    expect(dialog).to_be_hidden()
    rater.press("?")
    expect(rater.page.locator("#help-title")).to_be_focused()
    expect(rater.page.get_by_role("dialog", name="Help").get_by_role("row")).to_have_count(19)
    rater.press("Escape", "2")
    rater.expect_answered(1)


# --- nothing is lost ------------------------------------------------------------------------------------------------


def test_nothing_is_lost_when_the_tab_is_killed_at_random_moments(
    open_page: Open, browser: Browser, tmp_path: Path
) -> None:
    made = small_set(tmp_path, images=100, pairs=4)
    rater = open_page(made.page)
    rater.begin()
    dice, pressed, sure = random.Random(7), list[str](), 0
    for _ in range(50):
        processes = processes_of(browser, rater.page)
        for _ in range(dice.randrange(3)):
            pressed.append(dice.choice("123"))
            rater.press(pressed[-1])
            rater.expect_answered(len(pressed))
        sure = len(pressed)
        last = dice.choice("123")
        if dice.random() < 0.7:  # in the midst of an answer
            rater.page.evaluate(
                "(key) => { dispatchEvent(new KeyboardEvent('keydown', {key, code: `Digit${key}`})) }", last
            )
            time.sleep(dice.random() * 0.004)
        rater.killed(processes)
        kept = int(rater.resume().split(": ")[1].split()[0])
        assert kept in (sure, sure + 1)
        pressed += [last] * (kept - sure)
    assert len(pressed) > 60
    given = sorted(rater.answers().answers, key=lambda answer: answer.serial)
    expected = [CHOICES[key] if len(one.shown) == 2 else int(key) for one, key in zip(given, pressed, strict=True)]
    assert [one.choice or one.rating for one in given] == expected
    assert [one.order for one in given] == list(range(len(pressed)))


def test_half_a_note_is_there_after_a_kill(open_page: Open, browser: Browser) -> None:
    rater = open_page()
    rater.begin()
    rater.press("1")
    rater.expect_answered(1)
    rater.press("r", "c", "n")
    rater.page.keyboard.insert_text(NOTE)
    rater.page.wait_for_timeout(100)
    rater.killed(processes_of(browser, rater.page))
    assert rater.resume().startswith("Go on as r1: 1 of ")
    assert place(rater) == 2
    expect(rater.page.locator("#note")).to_have_value(NOTE)
    expect(rater.page.get_by_label("Blurred, detail missing")).to_be_checked()
    (draft,) = rater.answers().drafts
    assert (draft.note, draft.defects, draft.confidence) == (NOTE, ["blur"], 1)


def test_nothing_is_lost_when_the_whole_browser_is_killed(
    playwright: Playwright, made: Exported, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"executable_path": chromium(), "args": ARGUMENTS}
    context = playwright.chromium.launch_persistent_context(tmp_path / "profile", **options)
    rater = Rater(context, made.page, tmp_path)
    rater.begin()
    for count, key in enumerate("12312", 1):
        rater.press(key)
        rater.expect_answered(count)
    kill_browser(tmp_path / "profile")
    context = playwright.chromium.launch_persistent_context(tmp_path / "profile", **options)
    again = Rater(context, made.page, tmp_path)
    assert again.resume().startswith("Go on as r1: 5 of ")
    assert [one.rating for one in again.answers().answers] == [1, 2, 3, 1, 2]
    context.close()


def test_where_there_is_no_database_answers_are_kept_too(open_page: Open) -> None:
    broken = "Object.defineProperty(window, 'indexedDB', { get() { throw new Error('forbidden'); } });"
    rater = open_page(script=broken)
    rater.begin()
    rater.press("1", "2", "n")
    rater.page.keyboard.type("half a note")
    rater.page.close()
    rater.open()
    assert rater.resume().startswith("Go on as r1: 2 of ")
    expect(rater.page.locator("#note")).to_have_value("half a note")


def test_an_answer_that_cannot_be_kept_is_told_and_not_shown_as_given(open_page: Open) -> None:
    rater = open_page()
    rater.begin()
    full = "IDBDatabase.prototype.transaction = () => { throw new Error('the disk is full'); }"
    rater.page.evaluate(f"() => {{ {full} }}")
    rater.press("2")
    expect(rater.page.locator("#error")).to_contain_text("could not be kept (the disk is full)")
    rater.expect_answered(0)
    assert place(rater) == 1
    assert rater.complaints.pop().startswith("error: Error: the disk is full")


def test_two_windows_of_one_session_are_told(open_page: Open) -> None:
    rater = open_page()
    rater.begin()
    other = Rater(rater.context, rater.file, rater.folder)
    other.resume()
    expect(other.page.locator("#error")).to_contain_text("open in another window")


# --- time -----------------------------------------------------------------------------------------------------------


def test_idle_time_is_left_out_and_a_break_is_offered(open_page: Open) -> None:
    rater = open_page(script="")
    page = rater.page
    page.clock.install()
    page.reload()
    rater.begin()
    page.clock.fast_forward(600_000)  # ten minutes away
    rater.press("1")
    rater.expect_answered(1)
    for _ in range(3):
        page.clock.fast_forward(20_000)
        rater.press("a")
    rater.press("2")
    rater.expect_answered(2)
    idle, busy = sorted(rater.answers().answers, key=lambda answer: answer.order)
    assert 30_000 <= idle.milliseconds < 35_000
    assert 60_000 <= busy.milliseconds < 65_000
    for _ in range(70):
        page.clock.fast_forward(20_000)
        rater.press("s")
    assert not page.locator("dialog[open]").count(), "not in the midst of a case"
    rater.press("3")
    dialog = page.get_by_role("dialog", name="Time for a break?")
    expect(dialog).to_contain_text("You have been at work for 25 minutes, and 3 of")
    page.clock.fast_forward(900_000)
    rater.press("2")  # nothing is rated behind it
    rater.press("Enter")
    expect(dialog).to_be_hidden()
    rater.press("1")
    rater.expect_answered(4)
    after = max(rater.answers().answers, key=lambda answer: answer.order)
    assert after.milliseconds < 5_000, "a break is no work"


# --- files of answers -----------------------------------------------------------------------------------------------


def test_a_session_goes_on_in_another_browser(open_page: Open) -> None:
    rater = open_page()
    rater.begin("a.b")
    rater.press("1", "3", "r", "n")
    rater.page.keyboard.insert_text(NOTE)
    rater.press("Escape", "2", "q")
    rater.expect_answered(3)
    saved = rater.save()
    other = open_page()
    other.page.locator("#load").set_input_files(saved)
    finish_preparing(other)
    assert place(other) == 4
    other.expect_answered(3)
    before, after = rater.answers(), other.answers()
    assert (after.answers, after.rater, after.started_at) == (before.answers, before.rater, before.started_at)
    assert after.answers[2].note == NOTE
    expect(other.page.get_by_label("Anatomy that cannot be")).to_be_checked()


def finish_preparing(rater: Rater) -> None:
    rater.page.get_by_role("button", name="Leave this out").click()
    rater.page.get_by_role("button", name="Start rating").click()
    rater.page.locator("[data-screen=rate]").wait_for()


def test_of_two_answers_to_one_case_the_newer_counts(open_page: Open) -> None:
    rater = open_page()
    rater.begin()
    rater.press("1", "1")
    rater.expect_answered(2)
    old = rater.save()
    rater.press("z")
    rater.expect_answered(1)
    rater.press("3")
    rater.expect_answered(2)
    rater.page.reload()
    rater.page.locator("#load").set_input_files(old)
    rater.page.locator("[data-screen=rate]").wait_for()
    assert [one.rating for one in rater.answers().answers] == [1, 3]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": "9"}, "This file was changed after it was saved."),
        ({"format": "else"}, "This is not a file of answers of a rating page."),
        ({"set": {"id": "<b>no</b>", "hash": "0" * 64}}, "These answers are of another set (<b>no</b>)."),
    ],
)
def test_a_wrong_file_is_told(open_page: Open, change: dict[str, Any], reason: str) -> None:
    rater = open_page()
    rater.begin()
    saved = rater.save()
    rater.page.reload()
    rater.page.locator("#load").set_input_files(edited(saved, **change))
    expect(rater.page.locator("#error")).to_have_text(reason)
    rater.page.locator("#load").set_input_files(saved)
    rater.page.locator("[data-screen=rate]").wait_for()
    expect(rater.page.locator("#error")).to_be_hidden()


# --- safety ---------------------------------------------------------------------------------------------------------


def test_neither_texts_nor_notes_run(open_page: Open, made: Exported) -> None:
    rater = open_page()
    rater.begin()
    captions = []
    for number in range(len(made.made.set.cases)):
        captions.append(rater.page.locator("#caption").text_content())
        if number == 0:
            rater.press("n")
            rater.page.keyboard.insert_text(NOTE)
            rater.press("Escape")
        rater.press("2")
        rater.expect_answered(number + 1)
    assert HOSTILE in captions
    assert rater.page.evaluate("window.ran") is None
    saved = rater.save()
    tree = json.loads(saved.read_text())
    tree["rater"]["id"] = "<img src=x onerror=window.ran=4>"
    rater.page.reload()
    rater.page.locator("#load").set_input_files(edited(saved, **seal(tree)))
    rater.page.wait_for_timeout(200)
    rater.page.reload()
    rater.page.get_by_role("button", name="Go on as").first.wait_for()
    assert rater.page.evaluate("window.ran") is None
    assert rater.page.locator("img").count() == 0


def test_the_policy_lets_nothing_else_run_and_nothing_be_fetched(open_page: Open) -> None:
    rater = open_page()
    with socket.create_server(("127.0.0.1", 0)) as server:
        tried = rater.page.evaluate(
            """async (address) => {
                const tried = {};
                const script = document.createElement("script");
                try { script.text = "window.ran = 5"; } catch { tried.script = "refused"; }
                document.head.append(script);
                try { document.body.insertAdjacentHTML("beforeend", "<i></i>"); } catch { tried.markup = "refused"; }
                try { await fetch(address); } catch { tried.fetch = "refused"; }
                const image = new Image();
                image.src = address + "x.png";
                tried.image = await new Promise((done) => {
                    image.onload = done;
                    image.onerror = () => done("refused");
                });
                return tried;
            }""",
            f"http://127.0.0.1:{server.getsockname()[1]}/",
        )
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()
    assert tried == dict.fromkeys(("script", "markup", "fetch", "image"), "refused")
    assert rater.page.evaluate("window.ran") is None
    assert len(rater.complaints) >= 4
    assert all("Content Security Policy" in one or "Trusted" in one for one in rater.complaints), rater.complaints
    rater.complaints.clear()
    rater.requests[:] = [address for address in rater.requests if not address.startswith("http://127.0.0.1")]


# --- everybody ------------------------------------------------------------------------------------------------------

SCREENS = ("start", "display", "examples", "rate", "pair", "help", "end")


def visit(rater: Rater, made: Exported) -> Iterator[str]:
    """Every screen and dialog of the page, one after the other."""
    page = rater.page
    expect(page.locator("#rater")).to_be_focused()
    yield "start"
    page.keyboard.type("r1")
    rater.press("Enter")
    page.locator("[data-screen=display]").wait_for()
    yield "display"
    page.get_by_role("button", name="Leave this out").click()
    page.locator("[data-screen=examples]").wait_for()
    yield "examples"
    rater.press("Enter")
    page.locator("[data-screen=rate]").wait_for()
    rater.press("2", "ArrowLeft")
    expect(page.locator(".answer[aria-pressed=true]")).to_have_count(1)
    yield "rate"
    rater.press(*["3"] * len(made.made.set.cases))
    expect(page.locator("#case-title")).to_contain_text("Pair")
    yield "pair"
    rater.press("?")
    yield "help"
    rater.press("Escape", *["1"] * 3)
    page.locator("#end-title").wait_for()
    yield "end"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier_on_any_screen(open_page: Open, made: Exported, scheme: str) -> None:
    axe = Path(pytest.importorskip("axe_playwright_python").__file__).with_name("axe.min.js")
    rater = open_page(color_scheme=scheme, bypass_csp=True)
    seen = []
    for screen in visit(rater, made):
        if not rater.page.evaluate("'axe' in window"):
            rater.page.add_script_tag(path=axe)
        found = rater.page.evaluate(
            "async () => (await axe.run()).violations.map((one) => [one.id, one.nodes[0].html])"
        )
        assert found == [], screen
        seen.append(screen)
    assert seen == list(SCREENS)


@pytest.mark.parametrize(("width", "height"), [(390, 844), (640, 400), (320, 640)])
def test_no_screen_is_wider_than_the_window(open_page: Open, made: Exported, width: int, height: int) -> None:
    """640 x 400 is a window of 1280 x 800 at 200 %."""
    rater = open_page(viewport={"width": width, "height": height})
    for screen in visit(rater, made):
        wide = rater.page.evaluate(
            """() => [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility()
                && !one.closest(".unseen, input[type=file]") && one.getBoundingClientRect().right > innerWidth + 1)
                .map((one) => one.id || one.className || one.tagName)"""
        )
        assert wide == [], screen
        notice = rater.page.locator(".notice")
        expect(notice).to_have_text("The images on this page are synthetic, or may be. Not for diagnosis.")
        expect(notice).to_be_visible()
        if screen in ("rate", "pair") and height >= 400 and width > 320:
            expect(rater.page.locator(".answer.of-1")).to_be_in_viewport()
            expect(rater.page.locator("#canvas-left")).to_be_in_viewport(ratio=0.9)


def test_light_and_dark_follow_the_system_until_the_switch(open_page: Open) -> None:
    rater = open_page(color_scheme="dark")

    def background() -> str:
        colour: str = rater.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return colour

    dark = background()
    rater.page.emulate_media(color_scheme="light")
    light = background()
    assert dark != light
    rater.page.get_by_role("button", name="Light/dark").click()
    assert background() == dark
    rater.page.reload()
    assert background() == dark
    rater.page.keyboard.type("l")
    expect(rater.page.locator("#rater")).to_have_value("l")
    assert background() == dark, "no shortcut while typing"


def test_screen_readers_are_told_what_happens(open_page: Open) -> None:
    rater = open_page()
    rater.begin()
    live = rater.page.locator("#live")
    expect(live).to_contain_text("Case 1 of ")
    rater.press("2")
    expect(live).to_contain_text("Case 1: 2. Case 2 of ")
    rater.press("q")
    expect(live).to_have_text("Anatomy that cannot be: ticked")
    rater.press("z")
    expect(live).to_contain_text("Taken back. Case 1 of ")
    expect(rater.page.get_by_role("group", name="How good is the image?").get_by_role("button")).to_have_count(4)


def test_the_focus_stays_where_it_is_used(open_page: Open) -> None:
    rater = open_page()
    rater.begin()
    expect(rater.page.locator("#case-title")).to_be_focused()
    rater.page.locator(".answer.of-3").focus()
    rater.press("Space")
    rater.expect_answered(1)
    expect(rater.page.locator(".answer.of-3")).to_be_focused()
