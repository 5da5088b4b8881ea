"""`medsyn init`: the configurations and site profiles that come with medsyn, as files of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

import medsyn
from medsyn import config as configuration
from medsyn.__main__ import COMMANDS
from medsyn.campaign.slurm import site
from medsyn.cli import app, init
from tests.helpers.paths import ROOT


def call(*words: str | Path) -> int:
    return app.dispatch("medsyn", COMMANDS, [str(word) for word in words])


def test_it_copies_what_can_be_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("init", tmp_path / "mine") == 0
    told = capsys.readouterr().out
    made = {str(path.relative_to(tmp_path / "mine")) for path in (tmp_path / "mine").rglob("*.yaml")}
    configs, profiles = ({path.name for path in (ROOT / name).glob("*.yaml")} for name in ("configs", "slurm"))
    assert made == configs | {f"slurm/{name}" for name in profiles}
    assert all(name in told for name in made)
    for name in configs:
        configuration.load(tmp_path / "mine" / name, environment={})
    for name in profiles:
        site.load(str(tmp_path / "mine" / "slurm" / name))
    assert told.endswith(f"submit {tmp_path}/mine/tiny.yaml --cluster local\n")


def test_it_overwrites_nothing_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "tiny.yaml").write_text("campaign: {name: mine}\n")
    (tmp_path / "slurm" / "pascal.yaml").write_bytes((ROOT / "slurm" / "pascal.yaml").read_bytes())
    (tmp_path / "slurm" / "pyxis.yaml").symlink_to("nowhere")
    assert call("init", tmp_path) == 0
    assert (tmp_path / "tiny.yaml").read_text() == "campaign: {name: mine}\n"
    assert (tmp_path / "slurm" / "pyxis.yaml").is_symlink()
    told = capsys.readouterr().out
    assert f"{tmp_path}/tiny.yaml already exists with other content and is kept\n" in told
    assert f"{tmp_path}/slurm/pascal.yaml already exists\n" in told
    assert f"{tmp_path}/slurm/pyxis.yaml already exists with other content and is kept\n" in told
    assert f"{tmp_path}/slurm/generic.yaml\n" in told


@pytest.mark.parametrize("place", ["/proc/nope", "FILE", "FILE/below"])
def test_where_nothing_can_be_written(tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    folder = place.replace("FILE", str(tmp_path / "file"))
    assert call("init", folder) == 65
    assert capsys.readouterr().err.startswith(f"{folder}: cannot be written: ")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_package_without_them_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(medsyn, "__file__", str(tmp_path / "site-packages" / "medsyn" / "__init__.py"))
    assert call("init", tmp_path / "mine") == 65
    assert "this installation of medsyn has no configurations" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_a_wheels_files_come_before_those_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("medsyn/configs", "configs"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.yaml").touch()
    monkeypatch.setattr(medsyn, "__file__", str(tmp_path / "medsyn" / "__init__.py"))
    assert init.shipped("configs") == [tmp_path / "medsyn" / "configs" / "a.yaml"]


def test_it_writes_into_no_campaign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "campaign.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "inputs" / "more"):
        assert call("init", folder) == 65
        assert "is a campaign's directory or inside one" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["campaign.json"]
