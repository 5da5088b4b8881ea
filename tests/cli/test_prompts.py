from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from medsyn import __main__ as main
from medsyn.cli import app


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.csv"
    rows = [f"CT: nodule {number},nodule" for number in range(9)]
    path.write_text("\n".join(["prompt,finding", *rows, "CT: normal,none", "OCT: drusen,drusen", "OCT: x,"]) + "\n")
    return path


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = app.dispatch("python -m medsyn", main.COMMANDS, ["prompts", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_balanced_list_is_written_and_what_was_repeated_or_left_out_is_said(
    capsys: pytest.CaptureFixture[str], source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "balanced.csv"
    code, said, _ = call(capsys, "balance", source, "--by", "modality,finding", "--total", "12", "--out", out)
    assert code == 0
    assert "2 of 3 have fewer captions than images: captions are repeated (column n): CT/none, OCT/drusen" in said
    assert "3 combinations of values are in no row and get no image: CT/drusen, OCT/nodule, OCT/none" in said
    assert "1 row was left out: it has no value in modality, finding" in said
    assert "12 images of 6 prompts in 3 cells" in said
    assert call(capsys, "check", out)[:2] == (0, "OCT: 1 prompt, 4 images\nCT: 5 prompts, 8 images\n")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--by", "stage", "--total", "5"], "the columns are 'modality', 'finding'"),
        (["--by", "modality,findng", "--total", "5"], "no column 'findng' (--by)"),
        (["--by", "modality,findng", "--total", "5"], "did you mean 'finding'?"),
        (["--by", "seed", "--total", "5"], "--by: 'seed' is a setting of the generation"),
        (["--by", "finding", "--per-cell", "1000001"], "--per-cell: 1000001 is more than 1000000"),
        (["--by", "finding", "--total", "9000000"], "--total: asks for more than 1000000 images of one prompt"),
        (["--by", " ,", "--total", "5"], "--by: names no column"),
        (["--by", "finding", "--total", "0"], "--total: 0 is not 1 or more"),
        (["--by", "finding", "--per-cell", "-1"], "--per-cell: -1 is not 1 or more"),
        (["--by", "finding", "--total", "2"], "fewer than the 3 cells"),
        (["--total", "2", "--modalities", "CT,Toe MRI"], "--modalities: there is no such part of the body: known are"),
    ],
)
def test_what_cannot_be_balanced_is_said_in_one_line_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], source: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    code, _, said = call(capsys, "balance", source, *options, "--out", tmp_path / "balanced.csv")
    assert code == 65
    assert says in said and said.count("\n") == 1
    assert not (tmp_path / "balanced.csv").exists()


@pytest.mark.parametrize(
    ("name", "says"), [("prompts.csv", "already exists"), ("new.txt", "must end in .csv or .jsonl")]
)
def test_a_file_that_is_there_is_not_written_over(
    capsys: pytest.CaptureFixture[str], source: Path, tmp_path: Path, name: str, says: str
) -> None:
    before = source.read_bytes()
    code, _, said = call(capsys, "balance", source, "--total", "4", "--out", tmp_path / name)
    assert code == 65
    assert says in said
    assert source.read_bytes() == before


def test_a_column_of_a_data_set_s_table_is_suggested(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = tmp_path / "metadata.csv"
    table.write_text("path,Text,modality,Finding\na.png,CT: nodule,CT,nodule\n")
    code, _, said = call(capsys, "balance", table, "--by", "findings", "--total", "4", "--out", tmp_path / "x.csv")
    assert code == 65
    assert "there is no column 'findings' (--by)" in said and "did you mean 'Finding'?" in said
    assert call(capsys, "balance", table, "--by", "finding", "--total", "4", "--out", tmp_path / "x.csv")[0] == 0


def test_formulas_are_told_and_markup_and_control_characters_do_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "list.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"CT: {n}", "note": note, "offset": "-1.5"}) + "\n"
            for n, note in enumerate(["=1+1", "[bold]x[/nope]", "\u202ea\x1b[2J"])
        )
    )
    code, said, _ = call(
        capsys, "balance", tmp_path / "list.jsonl", "--by", "note", "--per-cell", "1", "--out", tmp_path / "out.csv"
    )
    assert code == 0 and "values of note begin as a spreadsheet's formulas do" in said
    assert "[bold]x[/nope]" in said and "\x1b" not in said and "\u202e" not in said
    assert "\x1b" not in (tmp_path / "out.csv").read_text()


@pytest.mark.parametrize("command", [["check"], ["balance", "--total", "4", "--out", "x.csv"]])
def test_a_pipe_is_told_and_not_waited_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]
) -> None:
    os.mkfifo(tmp_path / "list.csv")
    code, _, said = call(capsys, *command, tmp_path / "list.csv")
    assert code == 65 and "is not a regular file" in said


def test_everything_wrong_with_the_arguments_is_told_at_once(capsys: pytest.CaptureFixture[str], source: Path) -> None:
    code, _, said = call(capsys, "balance", source, "--by", ",", "--total", "0", "--out", source / "x.txt")
    assert code == 65
    for line, told in zip(
        said.splitlines(), ("--by", "--total: 0", "must end in .csv", "cannot be written"), strict=True
    ):
        assert told in line


def test_check_tells_what_is_wrong_and_what_is_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"prompt": "CT: a"}\n{"prompt": "CT: b", "n": 3}\n{"prompt": "CT: c", "n": 0}\n')
    code, said, _ = call(capsys, "check", path)
    assert code == 65
    assert "line 3, n: '0' is not a whole number" in said
    assert "CT: 2 prompts, 3 images and generation.img_num images of 1 prompt" in said


def test_it_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        call(capsys, "balance", "--help")
    assert left.value.code == 0
    assert "--per-cell" in capsys.readouterr().out
