from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsyn import __main__ as main
from medsyn.cli import app
from medsyn.errors import InputError, InputProblems, Problem, SlurmError
from medsyn.stage import STAGES


def medsyn(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "medsyn", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, env=dict(os.environ))


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = app.dispatch("python -m medsyn", main.COMMANDS, [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def table(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    path = tmp_path / "metadata.csv"
    path.write_text("path,Text,modality\na.png,CT: normal,CT\n")
    return path


def test_help_lists_every_command_and_no_command_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert all(f"  {name} " in out for name in main.COMMANDS)
    assert call(capsys)[0] == 2
    assert "did you mean generate?" in call(capsys, "genrate")[2]


def test_every_stage_has_a_command() -> None:
    assert {stage.partition("-")[0] for stage in STAGES} <= set(main.COMMANDS)


@pytest.mark.parametrize(
    "command",
    sorted(main.COMMANDS),
)
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as left:
        call(capsys, command, "--help")
    assert left.value.code == 0
    assert f"medsyn {command}" in capsys.readouterr().out


def test_bad_input_is_one_line_per_problem_and_exit_code_65(capsys: pytest.CaptureFixture[str]) -> None:
    problems = [Problem("a.csv", "is bad", row=3), Problem("configuration", "is worse", key="data.table")]

    def fail(error: Exception) -> app.Command:
        def command(program: str, arguments: object) -> int:
            raise error

        return app.Command("", command)

    assert app.dispatch("test", {"x": fail(InputProblems(problems))}, ["x"]) == 65
    assert capsys.readouterr().err == "a.csv, line 3: is bad\nconfiguration, data.table: is worse\n"
    assert app.dispatch("test", {"x": fail(InputError("b.csv", "is bad"))}, ["x"]) == 65
    assert capsys.readouterr().err == "b.csv: is bad\n"
    assert app.dispatch("test", {"x": fail(SlurmError("sbatch: no controller"))}, ["x"]) == 1
    assert capsys.readouterr().err == "test: sbatch: no controller\n"
    assert app.dispatch("test", {"x": fail(KeyboardInterrupt())}, ["x"]) == 130
    with pytest.raises(ZeroDivisionError):  # a bug is not hidden
        app.dispatch("test", {"x": fail(ZeroDivisionError())}, ["x"])


def test_tasks_are_listed_without_running_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"campaign: {{dir: {tmp_path / 'run'}}}\ndata: {{modalities: [MRI, X-Ray]}}\n")
    code, out, _ = call(capsys, "finetune", config)
    assert (code, out.split()) == (0, ["0", "mri", "1", "x-ray"])
    assert call(capsys, "rlhf", config, "--stage", "1")[1].split() == ["0", "all"]
    assert (
        call(
            capsys,
            "generate",
            config,
            "data.modalities=[CT]",
            "generation.batch_size=2",
            "generation.batches_per_block=1",
        )[1].split()[1]
        == "ct-00000"
    )
    code, out, err = call(capsys, "rlhf", config, "--stage", "2", "training.stage=1")
    assert (code, out, err) == (65, "", "rlhf-stage2: this campaign has no such stage\n")
    code, out, err = call(capsys, "generate", config, "data.prompts=no.csv")
    assert (code, out, "no.csv" in err) == (65, "", True)
    assert not (tmp_path / "run").exists()


def test_a_task_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "worker", tmp_path, "finetune", "0")
    assert (code, "not a campaign's directory" in err) == (65, True)


def test_check_of_good_and_of_bad_tables(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "check", table)
    assert (code, out.splitlines()[-1]) == (0, "no problems")
    with table.open("a") as stream:
        stream.write("b.png,CT: normal,CT\na.png,CT: normal,PET\n")
    code, out, _ = call(capsys, "check", table)
    assert code == 65
    assert out.count("error: ") == 2
    assert out.endswith("\n2 errors\n")
    code, out, _ = call(capsys, "check", table, "--json")
    assert code == 65
    found = json.loads(out)
    assert [(problem["row"], problem["severity"]) for problem in found["problems"]] == [(3, "error"), (4, "error")]
    assert [(one["kind"], one["modalities"]["CT"]["images"]) for one in found["tables"]] == [("dataset", 1)]


def test_check_of_good_tables_says_what_they_hold_and_no_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, draw = [], np.random.default_rng(0)
    for number in range(10):
        height = 48 if number == 9 else 64
        Image.fromarray(draw.integers(0, 255, (height, 64), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,CT: of {'very ' * number}much,CT,Mustermann{number // 2}")
    (tmp_path / "data.csv").write_text("\n".join(["path,Text,modality,patient_id", *rows]) + "\n")
    rows = [f"{number}.png,{1 + number % 2},CT,1,CT: x" for number in range(10)]
    header = "image_path,rating,modality,expert_level,prompt"
    (tmp_path / "ratings.csv").write_text("\n".join([header, *rows, "0.png,3,CT,1,CT: x"]) + "\n")
    (tmp_path / "prompts.csv").write_text("prompt\nCT: lung\nMRI: brain\nMRI: a knee\n")
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = call(capsys, "check", *(tmp_path / f"{name}.csv" for name in ("data", "ratings", "prompts")))
    said = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0 and "Mustermann" not in out
    for line in [
        "modality images (held out) patients (held out) formats pixels",
        "CT 10 (2) 5 (1) PNG 10 64 x 64 (9 of 10), sides 48 to 64",
        "10 different captions, of 3 to 12 words (half have 7 or fewer)",
        "no picture is there twice",
        "held out: with data.held_out_fraction=0.2 and campaign.seed=0, the defaults",
        "modality ratings 1 poor 2 acceptable 3 excellent images (held out)",
        "CT 11 5 5 1 10 (2)",
        "MRI 2",
        "3 prompts, of 2 to 3 words (half have 2 or fewer)",
    ]:
        assert line in said, out
    assert said[-1] == "no problems"


def test_check_counts_tokens_with_the_tokenizer_of_a_model(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table.write_text(table.read_text() + f"b.png,{'CT: ' + 'kidneys ' * 50},CT\n")
    assert "an estimate" not in call(capsys, "check", table)[1]
    assert "and the model's text encoder reads 77" in call(capsys, "check", table, "--pretrained-model", "embedded")[1]
    code, _, err = call(capsys, "check", table, "--pretrained-model", table.parent)
    assert (code, "has no tokenizer that can be read" in err) == (65, True)


def test_a_thousand_errors_of_one_kind_are_one_line(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with table.open("a") as stream:
        stream.writelines(f"not-there-{number}.png,CT: normal,CT\n" for number in range(1000))
    code, out, _ = call(capsys, "check", table)
    assert (code, out.count("error: ")) == (65, 1)
    assert "'not-there-0.png' does not exist (1,000 rows like this: 3, 4, 5, 6, " in out and out.endswith(
        "\n1000 errors\n"
    )


def test_check_takes_the_data_folder_and_the_column(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tables").mkdir()
    moved = table.rename(tmp_path / "tables" / "metadata.csv")
    moved.write_text(moved.read_text().replace("modality", "modal"))
    assert call(capsys, "check", moved)[0] == 65
    assert call(capsys, "check", moved, "--root", tmp_path, "--modality-column", "modal")[0] == 0


def test_a_warning_alone_is_no_failure(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with table.open("a") as stream:
        stream.write("a.png,CT: normal,CT\n")
    code, out, _ = call(capsys, "check", table)
    assert (code, out.startswith("warning: "), out.endswith("\n1 warning\n")) == (0, True, True)


def test_phantoms_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ("--images-per-kind", "4", "--prompts-per-kind", "1", "--image-size", "64", "--seed", "3")
    assert call(capsys, "phantoms", tmp_path / "p", *size)[0] == 0
    assert {"metadata.csv", "ratings.csv", "prompts.csv"} <= {path.name for path in (tmp_path / "p").iterdir()}
    assert call(capsys, "phantoms", tmp_path / "p", *size[:-1], "4")[0] == 65


@pytest.mark.parametrize("option", ["--images-per-kind=0", "--prompts-per-kind=0", "--image-size=7", "--seed=-1"])
def test_phantoms_have_the_limits_of_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    code, _, err = call(capsys, "phantoms", tmp_path / "p", option)
    assert (code, "command line, " in err) == (65, True)
    assert not (tmp_path / "p").exists()


def test_phantoms_where_nothing_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    for place in ("/proc/nope", tmp_path / "file", tmp_path / "file" / "below"):
        code, _, err = call(capsys, "phantoms", place, "--images-per-kind", "4", "--image-size", "64")
        assert (code, err.startswith(f"{place}: ")) == (65, True), err
    assert (tmp_path / "file").read_text() == "mine"


def test_pretrain_trains_into_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medsyn.training.pretrain.pretrain", lambda directory: directory)
    assert call(capsys, "pretrain", tmp_path / "tiny") == (0, f"{tmp_path / 'tiny'}\n", "")


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    result = medsyn("check", "nowhere.csv", cwd=tmp_path)
    assert (result.returncode, "nowhere.csv" in result.stdout, result.stderr) == (65, True, "")
