from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from medsyn import disk
from medsyn.stage import Control


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    disk.write_atomic(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        disk.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_files_and_directories_are_private(tmp_path: Path) -> None:
    disk.write_json(tmp_path / "a" / "b.json", {"x": 1})
    disk.append_jsonl(tmp_path / "a" / "c.jsonl", {"x": 1})
    for path in (tmp_path / "a" / "b.json", tmp_path / "a" / "c.jsonl", tmp_path / "a"):
        assert not path.stat().st_mode & stat.S_IRWXO


def test_killed_writers_never_show_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    code = (
        "import sys; from pathlib import Path; from medsyn import disk\n"
        "for n in range(10**9): disk.write_atomic(Path(sys.argv[1]), str(n % 10) * 100_000)"
    )
    for delay in (0.15, 0.25, 0.4):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
        deadline = time.monotonic() + 30
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        content = path.read_text()
        assert len(content) == 100_000
        assert len(set(content)) == 1


def test_a_torn_last_line_is_left_out_and_closed_off(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    disk.append_jsonl(path, {"n": 1})
    with path.open("a") as stream:
        stream.write('{"n": 2, "torn')
    assert list(disk.read_jsonl(path)) == [{"n": 1}]
    disk.append_jsonl(path, {"n": 3})
    assert list(disk.read_jsonl(path)) == [{"n": 1}, {"n": 3}]


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "block"
    with pytest.raises(RuntimeError), disk.atomic_directory(target) as temporary:
        (temporary / "half").write_text("x")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with disk.atomic_directory(target) as temporary:
        (temporary / "whole").write_text("x")
        assert not target.exists()
    assert (target / "whole").read_text() == "x"


def test_a_second_directory_does_not_replace_the_first(tmp_path: Path) -> None:
    target = tmp_path / "block"
    for content in ("first", "second"):
        with disk.atomic_directory(target) as temporary:
            (temporary / "file").write_text(content)
    assert (target / "file").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["block"]


def test_reading_never_waits_for_a_pipe_and_follows_links_only_where_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (disk.read_json, disk.sha256_file, disk.read_own_file, lambda path: list(disk.read_jsonl(path))):
        with pytest.raises(disk.NotAFile, match="is not a file"):
            read(tmp_path / "pipe")
    (tmp_path / "file").write_text("1")
    (tmp_path / "link").symlink_to("file")
    assert disk.read_json(tmp_path / "link") == 1
    with pytest.raises(disk.NotAFile, match="is a symbolic link"):
        disk.read_own_file(tmp_path / "link")


def test_json_with_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        disk.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_fingerprints_ignore_order_and_see_values() -> None:
    assert disk.fingerprint({"a": 1, "b": 2}) == disk.fingerprint({"b": 2, "a": 1})
    assert disk.fingerprint({"a": 1}) != disk.fingerprint({"a": "1"})


def test_what_libraries_write_into_a_directory_gets_its_modes(tmp_path: Path) -> None:
    with disk.atomic_directory(tmp_path / "model") as temporary:
        (temporary / "unet").mkdir(mode=0o777)
        (temporary / "unet" / "weights").write_text("x")
        (temporary / "unet" / "weights").chmod(0o600)
    assert stat.S_IMODE((tmp_path / "model" / "unet").stat().st_mode) == disk.DIRECTORY_MODE
    assert stat.S_IMODE((tmp_path / "model" / "unet" / "weights").stat().st_mode) == disk.FILE_MODE


def test_the_group_of_a_shared_directory_is_handed_down(tmp_path: Path) -> None:
    tmp_path.chmod(0o2770)
    with disk.atomic_directory(tmp_path / "model") as temporary:
        (temporary / "unet").mkdir()
    assert stat.S_IMODE((tmp_path / "model" / "unet").stat().st_mode) == disk.DIRECTORY_MODE | stat.S_ISGID


def test_leftovers_are_swept_but_not_those_of_the_living(tmp_path: Path) -> None:
    here = os.uname().nodename
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    leftovers = {
        f".step-000000001.tmp-{here}-{dead}": True,
        f".metrics.jsonl.tmp-{here}-{os.getpid()}": True,  # a container's first process has the same id every time
        f".step-000000002.tmp-{here}-{os.getppid()}": False,
        ".step-000000003.tmp-another-host-17": False,
        ".step-000000004.tmp-another-host-18": True,
        ".hidden": False,
    }
    for name in leftovers:
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.safetensors").write_bytes(b"half")
    os.utime(tmp_path / ".step-000000004.tmp-another-host-18", (0, 0))
    disk.sweep_temporaries(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name for name, gone in leftovers.items() if not gone}
    disk.sweep_temporaries(tmp_path / "nowhere")


def test_sweeping_for_one_name_leaves_other_names_alone(tmp_path: Path) -> None:
    mine = tmp_path / ".block-000001.tmp-node7-4242"
    others = [tmp_path / ".block-000010.tmp-node7-4242", tmp_path / "block-000001", tmp_path / ".block-00000.tmp-x-1"]
    for directory in (mine, *others):
        directory.mkdir()
        os.utime(directory, (0, 0))
    disk.sweep_temporaries(tmp_path, of="block-000001")
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_a_line_torn_inside_a_letter_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    disk.append_jsonl(path, {"name": "a"})
    with path.open("ab") as stream:
        stream.write('{"name": "ü'.encode()[:-1])
    disk.append_jsonl(path, {"name": "b"})
    assert [record["name"] for record in disk.read_jsonl(path)] == ["a", "b"]


def test_an_append_goes_on_where_the_system_took_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data)[:3]))
    disk.append_jsonl(tmp_path / "log.jsonl", {"name": "something long"})
    assert list(disk.read_jsonl(tmp_path / "log.jsonl")) == [{"name": "something long"}]


def test_records_that_will_be_made_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert disk.truncate_jsonl(path, "step", 3) == []
    for step in (1, 2, 3, 4):
        disk.append_jsonl(path, {"step": step})
    assert disk.truncate_jsonl(path, "step", 2) == [{"step": 1}, {"step": 2}]
    assert [record["step"] for record in disk.read_jsonl(path)] == [1, 2]


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as appending:
        disk.append_jsonl(tmp_path / "full", {"a": 1})
    assert appending.value.filename == str(tmp_path / "full")
    with (
        pytest.raises(OSError, match="No space left") as building,
        disk.atomic_directory(tmp_path / "made"),
        (tmp_path / "full").open("w") as stream,
    ):
        stream.write("x")
    assert building.value.filename == str(tmp_path / "made")


def test_what_is_nested_too_deeply_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        disk.read_json(tmp_path / "a.json")
    assert list(disk.read_jsonl(tmp_path / "a.json")) == []


@pytest.mark.parametrize("target", ["loop", "gone"])
def test_a_directory_cannot_be_made_through_a_link_that_leads_nowhere(tmp_path: Path, target: str) -> None:
    (tmp_path / "loop").symlink_to(target)
    with pytest.raises(NotADirectoryError, match="leads nowhere"):
        disk.make_directory(tmp_path / "loop" / "x")


@pytest.mark.parametrize("number", disk.FULL)
def test_what_a_library_prints_becomes_an_error_with_number_and_name(tmp_path: Path, number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)) as caught, disk.writing(tmp_path / "weights"):
        raise RuntimeError(f"I/O error: {os.strerror(number)} (os error {number})")
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / "weights"))
    assert disk.is_full(caught.value)


def test_other_errors_pass_the_door_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not finite"), disk.writing(tmp_path / "weights"):
        raise ValueError("the weights are not finite")
    assert not disk.is_full(ValueError("the weights are not finite"))
    assert not disk.is_full(OSError(2, os.strerror(2)))


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is put on disk and what is named, in order: `fsync NAME`, `syncfs NAME`, `name NAME`."""
    events: list[str] = []
    fsync, sync_file_system, rename, replace = os.fsync, disk._sync_file_system, Path.rename, Path.replace

    def name(descriptor: int) -> str:
        return Path(f"/proc/self/fd/{descriptor}").readlink().name.partition(".tmp-")[0].removeprefix(".")

    def note(what: str, real: Callable[[int], None]) -> Callable[[int], None]:
        return lambda descriptor: (events.append(f"{what} {name(descriptor)}"), real(descriptor))[1]

    def noted(real: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        return lambda path, target: (events.append(f"name {target.name}"), real(path, target))[1]

    monkeypatch.setattr(os, "fsync", note("fsync", fsync))
    monkeypatch.setattr(disk, "_sync_file_system", note("syncfs", sync_file_system))
    monkeypatch.setattr(Path, "rename", noted(rename))
    monkeypatch.setattr(Path, "replace", noted(replace))
    return events


FILES = {"image.png": b"image", "manifest.jsonl": b"{}\n"}


@pytest.mark.parametrize("as_a_whole", [False, True])
def test_what_a_directory_names_is_on_disk_before_its_own_name(
    tmp_path: Path, happened: list[str], monkeypatch: pytest.MonkeyPatch, as_a_whole: bool
) -> None:
    monkeypatch.setattr(disk, "_is_synced_as_a_whole", lambda place: as_a_whole)
    disk.write_directory(tmp_path / "part" / "block", FILES)
    assert {path.name: path.read_bytes() for path in (tmp_path / "part" / "block").iterdir()} == FILES
    assert happened == (
        ["syncfs block", "name block"]
        if as_a_whole
        else ["fsync image.png", "fsync manifest.jsonl", "fsync block", "name block", "fsync part"]
    )


def test_where_the_file_system_tells_of_an_error_every_file_is_asked(
    tmp_path: Path, happened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be another program's."""

    def fails(place: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(disk, "_is_synced_as_a_whole", lambda place: True)
    monkeypatch.setattr(disk, "_sync_file_system", fails)
    disk.write_directory(tmp_path / "block", FILES)
    expected = ["fsync image.png", "fsync manifest.jsonl", "fsync block", "name block"]
    assert happened == [*expected, f"fsync {tmp_path.name}"]


def test_a_directory_that_is_there_is_kept_and_one_left_by_the_dead_is_replaced(tmp_path: Path) -> None:
    left = disk.temporary_sibling(tmp_path / "block")
    left.mkdir()
    (left / "half").write_text("x")
    disk.write_directory(tmp_path / "block", FILES)
    disk.write_directory(tmp_path / "block", {"image.png": b"another"})
    assert {path.name: path.read_bytes() for path in (tmp_path / "block").iterdir()} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["block"]


@pytest.mark.parametrize(("release", "whole"), [("4.18.0-553.el8_10.x86_64", False), ("6.1.0", True), ("5.8", True)])
def test_a_kernel_that_hides_errors_is_not_asked_to_synchronise_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, whole: bool
) -> None:
    descriptor = os.open("/dev/shm", os.O_RDONLY)  # a tmpfs
    host = SimpleNamespace(release=release, nodename="node7")
    monkeypatch.setattr(os, "uname", lambda: host)
    assert disk._is_synced_as_a_whole(descriptor) == whole
    os.close(descriptor)
    other = os.open("/proc", os.O_RDONLY)
    assert not disk._is_synced_as_a_whole(other)
    os.close(other)


def test_hints_are_whole_for_readers_and_wait_for_no_disk(tmp_path: Path, happened: list[str]) -> None:
    disk.write_unsynced(tmp_path / "beat" / "a.json", "1")
    Control(tmp_path / "beat" / "b.json").heartbeat(1, 1)
    assert happened == ["name a.json", "name b.json"]
    assert disk.read_json(tmp_path / "beat" / "b.json")["step"] == 1
    disk.write_atomic(tmp_path / "beat" / "c.json", "1")
    assert happened[2:] == ["fsync c.json", "name c.json", "fsync beat"]


def test_files_written_together_share_the_synchronising_of_their_names(tmp_path: Path, happened: list[str]) -> None:
    disk.write_together(tmp_path / "shard", {"a": b"1", "b": b"2"})
    assert happened == ["fsync a", "name a", "fsync b", "name b", "fsync shard"]
