"""Images that were read once are known, and nothing but their unchanged files is taken for known."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsyn import disk
from medsyn.data import known_images, read_images
from medsyn.data.check import Reading, check_images, check_tables, read_tables
from medsyn.data.images.pixels import Image as Picture
from medsyn.data.read_images import Limit
from medsyn.data.tables.read import read_dataset
from medsyn.user_cache import CACHE_VARIABLE

NAMES = ("MRN12345678.png", "b.png", "c.png")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(known_images, "_RECENT_SECONDS", -1.0)  # the files are new
    return tmp_path / "cache"


@pytest.fixture
def table(tmp_path: Path, cache: Path) -> Path:
    for number, name in enumerate(NAMES):
        draw(tmp_path / name, number)
    rows = [f"{name},CT: text {number},CT" for number, name in enumerate(NAMES)]
    (tmp_path / "data.csv").write_text("\n".join(["path,Text,modality", *rows]) + "\n")
    return tmp_path / "data.csv"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read."""
    names: list[str] = []
    real = read_images.read_image

    def counting(path: Path, modality: str, volume: int | None) -> Picture:
        names.append(path.name)
        return real(path, modality, volume)

    monkeypatch.setattr(read_images, "read_image", counting)
    return names


def draw(path: Path, number: int) -> None:
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32), dtype=np.uint8)).save(path)


def test_nothing_is_read_a_second_time_and_the_same_is_found(table: Path, read: list[str]) -> None:
    seen: list[tuple[int, int]] = []
    first = read_tables([table], Reading())
    again = read_tables([table], Reading(), lambda done, total: seen.append((done, total)))
    assert sorted(read) == sorted(NAMES) and seen == []
    assert again == first and again.contents[0].parts["CT"].sizes == {(32, 32): 3}


def test_a_file_that_was_written_replaced_or_touched_is_read_again(table: Path, read: list[str]) -> None:
    check_tables(table)
    folder, kept = table.parent, (table.parent / NAMES[0]).stat()
    draw(folder / NAMES[0], 9)
    os.utime(folder / NAMES[0], ns=(kept.st_atime_ns, kept.st_mtime_ns))  # as rsync and cp -p do
    draw(folder / "new.png", 10)
    (folder / "new.png").replace(folder / NAMES[1])
    read.clear()
    check_tables(table)
    assert sorted(read) == sorted(NAMES[:2])
    (folder / NAMES[2]).write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    assert any("damaged" in problem.reason for problem in check_tables(table))


def test_what_could_not_be_used_is_read_again(table: Path, read: list[str]) -> None:
    (table.parent / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    first = check_tables(table)
    read.clear()
    assert check_tables(table) == first and read == ["b.png"]


def test_another_reader_or_another_modality_knows_nothing(
    table: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_tables(table)
    read.clear()
    table.write_text(table.read_text().replace("CT", "MRI"))
    check_tables(table)
    assert len(read) == 3
    monkeypatch.setattr(known_images, "_readers", lambda: "others")
    check_tables(table)
    assert len(read) == 6


def test_a_file_of_this_moment_is_not_taken_for_known(
    table: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_images, "_RECENT_SECONDS", 60.0)
    check_tables(table)
    check_tables(table)
    assert len(read) == 6


def test_no_path_is_in_the_cache_and_others_cannot_read_it(table: Path, cache: Path) -> None:
    check_tables(table)
    (path,) = cache.iterdir()
    content = path.read_text()
    assert "MRN" not in content and table.parent.name not in content and '"PNG"' in content
    assert path.stat().st_mode & 0o007 == 0


@pytest.mark.parametrize(
    "content", [b"", b"[", b"[]", b'{"a": 1}', b'{"a": ["PNG", 1, 1, null, "zz", "", []]}', b"\xff"]
)
def test_a_damaged_cache_is_none(table: Path, cache: Path, read: list[str], content: bytes) -> None:
    check_tables(table)
    (path,) = cache.iterdir()
    good = path.read_bytes()
    path.write_bytes(content)
    check_tables(table)
    assert len(read) == 6 and path.read_bytes() == good


def test_a_cache_that_cannot_be_written_is_no_error(table: Path, cache: Path, read: list[str]) -> None:
    cache.write_text("a file")
    assert [problem.severity for problem in check_tables(table)] == ["warning"], "there are no patients"
    assert len(read) == 3


def test_over_the_limit_only_what_is_known_is_used(table: Path, read: list[str]) -> None:
    rows = {table: read_dataset(table).rows}
    for limit in (Limit(2, 10**9), Limit(10, 100)):
        assert check_images(rows, False, limit=limit) == ([], 3) and read == []
    check_tables(table)
    draw(table.parent / "b.png", 5)
    (table.parent / "c.png").write_bytes((table.parent / NAMES[0]).read_bytes())
    read.clear()
    assert check_images(rows, False, limit=Limit(0, 0)) == ([], 2) and read == []
    [problem], _ = check_images(rows, False, limit=Limit(2, 10**9))
    assert problem.row == 4 and "the same picture" in problem.reason and sorted(read) == ["b.png", "c.png"]


def test_what_an_interrupted_check_has_read_is_known(table: Path, read: list[str]) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_tables(table, progress=interrupt)
    read.clear()
    check_tables(table)
    assert read == ["c.png"]


def test_old_tables_are_forgotten(table: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_images, "_TABLES_KEPT", 2)
    for number in range(4):
        check_tables(table.replace(table.with_name(f"{number}.csv")))
        table = table.with_name(f"{number}.csv")
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    ("given", "allowed", "count"), [("", 3, 3), ("2", 3, 2), ("9", 3, 3), ("", 64, 4), ("x", 1, 1)]
)
def test_as_many_threads_as_processors_are_given(
    monkeypatch: pytest.MonkeyPatch, given: str, allowed: int, count: int
) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", given)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    assert read_images.threads() == count


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(read_images, "threads", lambda: 4)
    monkeypatch.setattr(read_images, "_AT_ONCE", 2)
    return None


@pytest.mark.usefixtures("threads")
def test_threads_find_the_same_and_are_silent(
    table: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def warning(path: Path, modality: str, volume: int | None) -> Picture:
        warnings.warn(f"the header of {path} says Doe^Jane", stacklevel=1)
        return Picture(np.full((16, 16, 1), len(path.name), np.float32), (), (path.name,))

    monkeypatch.setattr(read_images, "read_image", warning)
    found = read_tables([table], Reading())
    assert [problem.row for problem in found.problems if "was read, but" in problem.reason] == [2, 3, 4]
    assert "Doe" not in "".join(capfd.readouterr())
    filters = list(warnings.filters)
    read_tables([table], Reading())
    assert list(warnings.filters) == filters


def test_two_writers_leave_one_whole_file(table: Path, cache: Path) -> None:
    check_tables(table)
    (path,) = cache.iterdir()
    known = known_images.load(table)
    for _ in range(3):
        known_images.save(table, known)
    assert known_images.load(table) == known and disk.read_json(path)
