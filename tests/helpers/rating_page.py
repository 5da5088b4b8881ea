"""A rating page in a real browser, used as a rater uses it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, expect

from medsyn.rating.formats import Answers, read_answers

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def chromium() -> str:
    """The browser's program; the test is skipped where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("there is no Chromium here (apt-get install chromium)")
    return found


@dataclass
class Rater:
    """One rater's browser window. Everything that the page asks of the network or complains of is kept."""

    context: BrowserContext
    file: Path
    folder: Path  # for downloads
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    page: Page = field(init=False)

    def __post_init__(self) -> None:
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.open()

    def open(self) -> None:
        """Open the page in a new tab."""
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(self.file.as_uri())

    def begin(self, name: str = "r1") -> None:
        """From the first screen to the first image, by keys alone."""
        expect(self.page.locator("#rater")).to_be_focused()
        self.page.keyboard.type(name)
        self.press("Enter")
        self.page.get_by_role("heading", name="Check your screen").wait_for()
        for _ in range(3):  # the radio buttons of three questions: the first answer of each
            self.press("Tab", "Space")
        self.press("Enter")
        self.page.get_by_role("heading", name="What 1, 2 and 3 mean").wait_for()
        self.press("Enter")
        self.page.locator("[data-screen=rate]").wait_for()

    def resume(self) -> str:
        """Go on with the session of before; return what its button said."""
        button = self.page.get_by_role("button", name="Go on as")
        expect(button).to_be_focused()
        said = button.inner_text()
        self.press("Enter")
        self.page.locator("[data-screen=rate], [data-screen=end]").locator("visible=true").wait_for()
        return said

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def expect_answered(self, count: int) -> None:
        expect(self.page.locator("#progress-text")).to_have_text(f"{count} of {self.total}")

    @property
    def total(self) -> int:
        return int(self.page.locator("#progress").get_attribute("max") or 0)

    @property
    def title(self) -> str:
        return self.page.locator("#case-title").inner_text()

    def at_the_end(self) -> bool:
        return self.page.locator("#end-title").is_visible()

    def killed(self, processes: list[int]) -> None:
        """SIGKILL to the page's process, which is the first of some but for the browser's own; then a new tab."""
        crashed: list[Page] = []
        self.page.on("crash", lambda page: crashed.append(page))
        for process in processes:
            os.kill(process, signal.SIGKILL)
            with suppress(Error):  # it waits for nothing, so that the event can come
                self.page.wait_for_timeout(300)
            if crashed:
                break
        assert crashed
        self.page.close()
        self.open()

    def save(self, button: str = "#save") -> Path:
        """Save the answers as a file; return where it is."""
        with self.page.expect_download() as started:
            self.page.locator(button).click()
        return self.keep(started.value)

    def keep(self, download: Any) -> Path:
        path = self.folder / download.suggested_filename
        download.save_as(path)
        return path

    def answers(self) -> Answers:
        """What a saved file says now, as the import reads it."""
        return read_answers(self.save())

    def colours(self, canvas: str = "#canvas-left") -> int:
        """How many different greys a canvas shows where it shows the image."""
        shown = self._drawn(canvas)
        return len(np.unique(shown[..., 0][shown[..., 3] == 255]))

    def pixels(self, height: int, width: int) -> np.ndarray:
        """The middle of the image's canvas, uint8 [height, width, 3]."""
        shown = self._drawn("#canvas-left")
        top, left = (shown.shape[0] - height + 1) // 2, (shown.shape[1] - width + 1) // 2
        return shown[top : top + height, left : left + width, :3]

    def _drawn(self, canvas: str) -> np.ndarray:
        """What a canvas shows, uint8 [H, W, 4]."""
        script = """async (canvas) => {
            await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
            const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
            copy.drawImage(canvas, 0, 0);
            const pixels = copy.getImageData(0, 0, canvas.width, canvas.height).data;
            return [canvas.height, canvas.width, Array.from(pixels, (one) => String.fromCharCode(one)).join("")];
        }"""
        height, width, text = self.page.locator(canvas).evaluate(script)
        return np.frombuffer(text.encode("latin-1"), np.uint8).reshape(height, width, 4)


def processes_of(browser: Browser, page: Page) -> list[int]:
    """The processes that may be showing a page, first those that worked while it did."""
    session = browser.new_browser_cdp_session()

    def seconds() -> dict[int, float]:
        processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
        return {one["id"]: one["cpuTime"] for one in processes if one["type"] == "renderer"}

    before = seconds()
    page.evaluate("() => { const end = performance.now() + 50; while (performance.now() < end); }")
    after = seconds()
    session.detach()
    return sorted(after, key=lambda process: before.get(process, 0) - after[process])


def kill_browser(profile: Path) -> None:
    """SIGKILL to every process of the browser that uses a profile."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            if f"--user-data-dir={profile}".encode() in words:
                os.kill(int(entry.name), signal.SIGKILL)


def edited(path: Path, **changes: Any) -> Path:
    """A copy of a JSON file with other values."""
    other = path.with_name(f"edited-{path.name}")
    other.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return other
