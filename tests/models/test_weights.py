from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from medsyn.config import EMBEDDED
from medsyn.models import weights


def fake_model(directory: Path) -> Path:
    for part, names in weights._PARTS.items():
        for name in names:
            (directory / part).mkdir(parents=True, exist_ok=True)
            (directory / part / name).write_text("{}")
    return directory


def test_the_embedded_model_is_whole() -> None:
    assert weights.missing(EMBEDDED) == []


def test_a_model_that_is_nowhere_is_one_problem_that_says_what_to_do() -> None:
    (problem,) = weights.missing("nobody/absent-model")
    assert problem.key == "model_paths.stable_diffusion"
    assert "nobody/absent-model" in str(problem)
    assert "download" in problem.reason


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "model")
    (model / "unet" / "config.json").unlink()
    (model / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    reasons = [problem.reason for problem in weights.missing(str(model))]
    assert reasons == ["vae/diffusion_pytorch_model.safetensors is missing", "unet/config.json is missing"]


def test_a_pickle_is_not_taken_for_weights(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "model")
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    (problem,) = weights.missing(str(model))
    assert "pickles are not read" in problem.reason


def test_a_downloaded_hub_id_is_found_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some--model"
    fake_model(repository / "snapshots" / "abc")
    assert weights.locate("some/model") is None
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert weights.locate("some/model") == repository / "snapshots" / "abc"
    assert weights.missing("some/model") == []


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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"cross_attention_dim": 2048, "in_channels": 4, "out_channels": 4}', "cross_attention_dim is 2048, not"),
        ("{", "is not a readable model configuration"),
        ("[]", "is not a readable model configuration"),
    ],
)
def test_parts_that_do_not_belong_together_are_told_before_they_are_loaded(
    tmp_path: Path, content: str, reason: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(weights.embedded_directory(), model)
    assert weights.problems(str(model)) == []
    (model / "unet" / "config.json").write_text(content)
    (problem,) = weights.problems(str(model))
    assert (reason in problem.reason, problem.key) == (True, "model_paths.stable_diffusion")
