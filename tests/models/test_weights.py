from __future__ import annotations

from pathlib import Path

import pytest

from medsyn.models import model_folder, weights


def fake_model(directory: Path) -> Path:
    for part, names in weights.PARTS.items():
        for name in names:
            (directory / part).mkdir(parents=True, exist_ok=True)
            (directory / part / name).write_text("{}")
    return directory


def test_a_downloaded_hub_id_is_found_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some--model"
    fake_model(repository / "snapshots" / "abc")
    assert weights.locate("some/model") is None
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert weights.locate("some/model") == repository / "snapshots" / "abc"
    assert model_folder.missing("some/model") == []


def test_the_fingerprint_sees_content_and_not_place(tmp_path: Path) -> None:
    first, second = fake_model(tmp_path / "a"), fake_model(tmp_path / "b")
    assert weights.weights_fingerprint(str(first)) == weights.weights_fingerprint(str(second))
    (second / "unet" / "config.json").write_text('{"changed": 1}')
    assert weights.weights_fingerprint(str(first)) != weights.weights_fingerprint(str(second))


def test_large_files_are_told_apart_by_content_and_not_by_time(tmp_path: Path) -> None:
    size = weights._HASHED_WHOLE + 1
    facts = []
    for name, content in (("a", b"\0"), ("copy", b"\0"), ("b", b"\1")):
        path = tmp_path / name
        with path.open("wb") as stream:
            stream.truncate(size)
            stream.seek(0)
            stream.write(content)
        facts.append(weights._file_digest(path, size, path.stat().st_mtime_ns))
    assert facts[0] == facts[1] != facts[2]
