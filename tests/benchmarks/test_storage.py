from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medsyn.generation.block_store import read_manifest

PICTURES = [np.full((32, 32, 1), value, np.uint8) for value in (0, 99, 255)]
STRACE = """\
100 openat(AT_FDCWD, "/usr/lib/python3.11/os.py", O_RDONLY) = 3
100 access("/medsyn-from-here", F_OK)  = -1 ENOENT (No such file or directory)
100 newfstatat(3, "", {st_mode=S_IFREG|0640, st_size=1, ...}, AT_EMPTY_PATH) = 0
100 openat(AT_FDCWD, "a.png", O_WRONLY|O_CREAT <unfinished ...>
101 fsync(4 <unfinished ...>
100 <... openat resumed>)                 = 5
101 <... fsync resumed>)                  = 0
101 newfstatat(AT_FDCWD, "a.png", {st_mode=S_IFREG|0640, st_size=1, ...}, 0) = 0
100 --- SIGCHLD {si_signo=SIGCHLD} ---
100 access("/medsyn-to-here", F_OK)    = -1 ENOENT (No such file or directory)
100 openat(AT_FDCWD, "b.png", O_RDONLY) = 3
"""


def test_calls_between_the_marks_are_counted_once_and_fstat_is_none_of_a_path() -> None:
    import storage

    assert storage.counted(STRACE.splitlines()) == {"openat": 1, "fsync": 1, "newfstatat": 1}


def test_every_way_writes_the_images_that_were_asked_for(tmp_path: Path) -> None:
    import storage

    for output in storage.OUTPUTS:
        run = storage.ready(output, tmp_path / output, PICTURES, 20)
        assert run is not None
        run()
        manifest = read_manifest(tmp_path / output / "campaign/work/generate/baseline/mri/part-000/block-000000")
        assert manifest is not None
        assert len(manifest) == sum(record["file"] is not None for record in manifest) == 20
    run = storage.ready(storage.SAVE, tmp_path / "plain", PICTURES, 4)
    assert run is not None
    run()
    assert len(list((tmp_path / "plain").glob("*.png"))) == 4


@pytest.fixture(autouse=True)
def the_loader_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from medsyn.generation.sample.load import Loader

    monkeypatch.setattr(Loader, "sampler", Loader.sampler)
