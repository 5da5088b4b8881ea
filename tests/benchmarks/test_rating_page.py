"""The parts of benchmarks/rating_page.py: its images are as hard to compress as they say, and what its figures mean."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_images_are_as_hard_to_compress_as_radiographs(tmp_path: Path) -> None:
    pytest.importorskip("playwright")
    import rating_page

    sources = rating_page.draw_images(tmp_path, 2)
    assert all(28_000 < source.file.stat().st_size < 40_000 for source in sources)
    assert sources[0].content() != sources[1].content()


def test_waits_are_summed_up_in_seconds() -> None:
    pytest.importorskip("playwright")
    import rating_page

    assert rating_page.summary([10.0] * 94 + [500.0] * 6) == "median 0.010 s, 95 % within 0.500 s"
