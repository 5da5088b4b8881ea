"""How large is a rating page, how fast does it open, and how long does a rater wait for the next image?

    python benchmarks/rating_page.py

Draws grey images of 256 x 256 pixels that compress as badly as chest radiographs do, writes the page, and opens it from
disk in a headless Chromium. It is ready when the first field has the focus. Then cases are rated with keys: from a key
to the frame that shows the next case. The answer is on disk by then.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from scipy.ndimage import gaussian_filter

from medsyn.rating.export import Wishes, export
from medsyn.rating.sources import Source

SIDE = 256
NOISE = 3.0  # levels: a PNG file of 30 kB
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_WATCH = """() => {
    window.waits = [];
    let pressed = 0;
    addEventListener("keydown", () => (pressed = performance.now()), true);
    const shown = () => requestAnimationFrame(() => waits.push(performance.now() - pressed));
    new MutationObserver(shown).observe(document.getElementById("case-title"), { childList: true });
}"""


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--rated", type=int, default=200, help="how many are rated")
    parser.add_argument("--pace", type=float, default=0.12, help="seconds between two keys")
    args = parser.parse_args()
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        print("there is no Chromium here", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        sources = draw_images(Path(directory), args.cases)
        kilobytes = statistics.mean(source.file.stat().st_size for source in sources) / 1000
        wishes = Wishes(images=args.cases, decoys=0, repeats=0, pairs=0)
        exported = export(sources, [], [], Path(directory) / "set.html", wishes)
        print(f"{args.cases} cases of {SIDE} px, {kilobytes:.1f} kB each as PNG: {exported.size / 1e6:.1f} MB")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        opened, waits = [], []
        for _ in range(3):
            page = browser.new_context().new_page()
            opened.append(seconds_to_open(page, exported.page))
            waits = waits or waits_for_cases(page, min(args.rated, args.cases - 1), args.pace)
            page.context.close()
        browser.close()
    ready, read = (", ".join(f"{one:.2f}" for one in times) for times in zip(*opened, strict=True))
    print(f"ready after {ready} s, and read to its end after {read} s")
    print(f"next case, {len(waits)} times: {summary(waits)}")
    return 0


def draw_images(folder: Path, count: int) -> list[Source]:
    """Smooth shapes under noise, as PNG files."""
    sources = []
    for number in range(count):
        generator = np.random.default_rng(number)
        smooth = gaussian_filter(generator.normal(size=(SIDE, SIDE)), 16)
        smooth = 128 + 60 * smooth / np.abs(smooth).max() + generator.normal(scale=NOISE, size=(SIDE, SIDE))
        path = folder / f"{number}.png"
        Image.fromarray(smooth.round().clip(0, 255).astype(np.uint8)).save(path)
        sources.append(Source(path, "X-Ray", f"X-Ray: number {number}", is_generated=True))
    return sources


def seconds_to_open(page: Page, file: Path) -> tuple[float, float]:
    """Until the first field takes letters, and until the whole file has been read."""
    started = time.perf_counter()
    page.goto(file.as_uri(), wait_until="commit")
    page.wait_for_function("() => document.activeElement?.id === 'rater'")
    ready = time.perf_counter() - started
    page.wait_for_load_state("load")
    return ready, time.perf_counter() - started


def waits_for_cases(page: Page, count: int, pace: float) -> list[float]:
    """Milliseconds from a key to the frame with the next case."""
    page.keyboard.type("r1")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Leave this out").click()
    page.get_by_role("button", name="Start rating").click()
    page.locator("[data-screen=rate]").wait_for()
    page.evaluate(_WATCH)
    for number in range(count):
        page.keyboard.press(str(number % 3 + 1))
        page.wait_for_timeout(1000 * pace)
    page.wait_for_function("(count) => waits.length >= count", arg=count)
    waits: list[float] = page.evaluate("() => waits")
    return waits


def summary(waits: list[float]) -> str:
    """Median and 95 % of some waits in milliseconds, as seconds."""
    ordered = sorted(waits)
    late = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    return f"median {statistics.median(ordered) / 1000:.3f} s, 95 % within {late / 1000:.3f} s"


if __name__ == "__main__":
    sys.exit(main())
