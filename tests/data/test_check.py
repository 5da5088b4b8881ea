"""`check_tables`: every problem of tables and images, each told once, with its line."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import PngImagePlugin

import medsyn.data.check as check
import medsyn.data.read_images as reading
from medsyn.data.check import check_tables
from medsyn.data.images.read import SYNTHETIC_KEY, Image
from medsyn.data.prompts.formats import table_kind
from medsyn.errors import Problem
from tests.data.images.test_dicom import ct, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good images, a truncated one, a blank one and a generated one."""
    values = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    for name in ("a.png", "b.jpg"):
        PillowImage.fromarray(values).save(tmp_path / name)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:500])
    PillowImage.fromarray(values * 0).save(tmp_path / "blank.png")
    text = PngImagePlugin.PngInfo()
    text.add_text(SYNTHETIC_KEY, "YES")
    PillowImage.fromarray(values).save(tmp_path / "made.png", pnginfo=text)
    return tmp_path


def dataset(folder: Path, *files: str, modality: str = "modality") -> Path:
    rows = [f"{file},CT: text {number},CT" for number, file in enumerate(files)]
    (folder / "data.csv").write_text("\n".join([f"path,Text,{modality}", *rows]) + "\n")
    return folder / "data.csv"


def ratings(folder: Path, *files: str) -> Path:
    rows = [f"{file},{1 + number % 3},CT,3,CT: text" for number, file in enumerate(files)]
    (folder / "ratings.csv").write_text("\n".join(["image_path,rating,modality,expert_level,prompt", *rows]) + "\n")
    return folder / "ratings.csv"


def errors(problems: list[Problem]) -> list[tuple[str, int | None, str]]:
    return [(problem.source, problem.row, problem.reason) for problem in problems if problem.severity == "error"]


def test_good_tables_have_no_problems(folder: Path) -> None:
    (folder / "prompts.txt").write_text("CT: a prompt\n")
    tables = [dataset(folder, "a.png", "b.jpg"), ratings(folder, "a.png", "b.jpg"), folder / "prompts.txt"]
    assert check_tables(tables, patient_column="path") == []


@pytest.mark.parametrize("first", ["sep=,", "SEP=,", '"sep=,"'])
def test_a_line_for_excel_before_the_header_is_no_row(folder: Path, first: str) -> None:
    for table in (dataset(folder, "a.png", "cut.png"), ratings(folder, "b.jpg", "cut.png")):
        table.write_text(f"{first}\n{table.read_text()}")
        [(_, row, reason)] = errors(check_tables(table, patient_column="path" if table.name == "data.csv" else None))
        assert row == 4 and "'cut.png'" in reason
    (folder / "prompts.csv").write_text(f"{first}\nprompt,modality\nCT: x,CT\n")
    assert check_tables(folder / "prompts.csv") == []


def test_a_table_without_patients_gets_one_warning(folder: Path) -> None:
    (problem,) = check_tables([dataset(folder, "a.png", "b.jpg")])
    assert problem.severity == "warning" and "data.patient_column=path" in problem.reason


@pytest.mark.parametrize(
    "header",
    ["path,Text,modality,", "prompt,", "image_path,rating,modality,expert_level,prompt,"],
)
def test_a_table_of_very_many_columns_is_refused_at_once(folder: Path, header: str) -> None:
    (folder / "wide.csv").write_text(header + ",".join(f"c{n}" for n in range(200_000)) + "\n")
    (problem,) = check_tables([folder / "wide.csv"])
    assert re.search(r"there are 20000\d columns, and at most 1000", problem.reason)


def test_every_bad_image_is_told_with_its_table_and_line(folder: Path) -> None:
    table = dataset(folder, "a.png", "cut.png", "absent.png", "blank.png")
    found = errors(check_tables([table]))
    assert {(source, row) for source, row, _ in found} == {(str(table), 3), (str(table), 4), (str(table), 5)}
    reasons = {row: reason for _, row, reason in found}
    assert "cut.png" in reasons[3] and "damaged" in reasons[3]
    assert "absent.png" in reasons[4]
    assert "blank.png" in reasons[5] and "blank" in reasons[5]


def test_images_of_ratings_are_read_too(folder: Path) -> None:
    table = ratings(folder, "a.png", "cut.png", "b.jpg")
    problem = next(problem for problem in check_tables([table]) if problem.severity == "error")
    assert (problem.source, problem.row, problem.key) == (str(table), 3, "image_path")


def test_generated_images_are_errors_unless_they_are_allowed(folder: Path) -> None:
    table = dataset(folder, "a.png", "made.png")
    [(_, row, reason)] = errors(check_tables([table]))
    assert row == 3 and "made.png" in reason and "synthetic" in reason
    assert errors(check_tables([table], allow_synthetic=True)) == []


def test_generated_images_may_be_rated(folder: Path) -> None:
    """Generate, rate, align: the loop needs ratings of synthetic images."""
    assert errors(check_tables([ratings(folder, "a.png", "made.png", "b.jpg")])) == []


def test_an_image_is_read_once_and_told_once_per_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    real = reading.read_image

    def counting(path: Path, modality: str, volume: int | None) -> Image:
        read.append(path.name)
        return real(path, modality, volume)

    monkeypatch.setattr(reading, "read_image", counting)
    tables = [dataset(folder, "a.png", "cut.png", "cut.png"), ratings(folder, "cut.png", "a.png", "cut.png")]
    seen: list[tuple[int, int]] = []
    found = errors(check_tables(tables, progress=lambda done, total: seen.append((done, total))))
    assert sorted(read) == ["a.png", "cut.png"]
    assert [(Path(source).name, row) for source, row, _ in found] == [("data.csv", 3), ("ratings.csv", 2)]
    assert seen == [(1, 2), (2, 2)]


def test_an_image_of_another_generator_is_told_with_its_mark(folder: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "CT: chest\nSteps: 20, Sampler: Euler a")
    PillowImage.open(folder / "a.png").save(folder / "web.png", pnginfo=text)
    [(_, row, reason)] = errors(check_tables([dataset(folder, "a.png", "web.png")]))
    assert row == 3 and "(PNG text 'parameters')" in reason


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_one_image_under_two_names_is_told_once(folder: Path, link: Callable[[Path, Path], None]) -> None:
    link(folder / "again.png", folder / "a.png")
    found = check_tables([dataset(folder, "a.png", "b.jpg", "again.png", "again.png")])
    reason = "'again.png' is the same file as 'a.png' on line 2, by a link"
    [problem] = [problem for problem in found if problem.reason == reason]
    assert (problem.severity, problem.row, problem.key) == ("warning", 4, "path")
    assert check_tables([dataset(folder, "a.png"), ratings(folder, "again.png", "b.jpg")]) == []


def test_a_copy_under_another_name_is_told_once(folder: Path) -> None:
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "other.png").write_bytes((folder / "copy.png").read_bytes())
    table = dataset(folder, "a.png", "b.jpg", "copy.png", "copy.png", "other.png", "a.png")
    found = [
        problem for problem in check_tables([table], patient_column="path") if "the same picture" in problem.reason
    ]
    assert [(one.severity, one.row, one.key) for one in found] == [("warning", 4, "path"), ("warning", 6, "path")]
    assert found[0].reason == "'copy.png' shows the same picture as 'a.png' on line 2"


def test_the_spacing_of_the_pixels_is_known_where_a_header_says_it(folder: Path) -> None:
    write(folder / "a.dcm", ct(PixelSpacing=[0.8, 0.8]))
    write(folder / "detector.dcm", ct(ImagerPixelSpacing=[0.8, 0.8]))
    volume = nib.Nifti1Image(np.random.default_rng(1).integers(0, 999, (20, 20, 5)).astype(np.int16), np.diag([2] * 4))
    nib.save(volume, folder / "unknown.nii")
    volume.header.set_xyzt_units("mm")
    nib.save(volume, folder / "mm.nii")
    files = ("a.dcm", "detector.dcm", "unknown.nii", "mm.nii", "a.png")
    [contents] = check.read_tables([dataset(folder, *files)], check.Reading()).contents
    part = contents.parts["CT"]
    assert part.formats == {"DICOM": 2, "NIfTI": 2, "PNG": 1}
    assert part.spacings == {0.8: 1, 2.0: 1}


def test_a_pipe_and_a_socket_do_not_hang_the_check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(folder / "pipe.png")
    monkeypatch.chdir(folder)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        found = errors(check_tables([dataset(folder, "a.png", "pipe.png", "socket.png", "null.png")]))
    assert [reason.partition(".png' ")[2] for _, _, reason in found] == [
        "is not a regular file but a named pipe",
        "is not a regular file but a socket",
        "does not exist",
    ]


def test_dicom_of_an_archive_needs_no_ending(folder: Path) -> None:
    for name in ("IM000001", "1.2.840.10008.17"):
        write(folder / name, ct())
    (folder / "README").write_text("these are images\n")
    table = dataset(folder, "IM000001", "1.2.840.10008.17", "README")
    [(_, row, reason)] = errors(check_tables([table]))
    assert row == 4 and "does not have the name of an image" in reason


def test_each_volume_of_a_file_is_an_image_of_its_own(folder: Path) -> None:
    values = np.random.default_rng(1).integers(0, 999, (20, 20, 5, 2)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.eye(4)), folder / "mri.nii")
    rows = [f"mri.nii,MRI: contrast {number},MRI,{number}" for number in ("1", "2", "3", "0", "x", "")]
    (folder / "data.csv").write_text("\n".join(["path,Text,modality,volume", *rows]) + "\n")
    found = {problem.row: problem for problem in check_tables([folder / "data.csv"]) if problem.row}
    assert sorted(found) == [4, 5, 6, 7]
    assert "has no volume 3: it has 2" in found[4].reason
    assert found[5].key == found[6].key == "volume" and "'x' is not the number of a volume" in found[6].reason
    assert found[7].severity == "warning" and "column 'volume' (1 to 2)" in found[7].reason


def test_warnings_of_the_reader_are_warnings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image(np.zeros((16, 16, 1), np.float32), (), ("one thing is odd",))
    monkeypatch.setattr(reading, "read_image", lambda path, modality, volume: image)
    [problem] = check_tables([dataset(folder, "a.png")])
    assert problem.severity == "warning" and "a.png" in problem.reason and "one thing is odd" in problem.reason


def test_a_table_that_cannot_be_used_does_not_hide_the_others(folder: Path) -> None:
    (folder / "empty.csv").write_text("")
    found = errors(check_tables([folder / "absent.csv", folder / "empty.csv", dataset(folder, "cut.png")]))
    assert [Path(source).name for source, _, _ in found] == ["absent.csv", "empty.csv", "data.csv"]


def test_another_root_and_another_column(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    table = dataset(folder, "a.png", modality="modal").rename(elsewhere / "data.csv")
    assert check_tables([table], root=folder, modality_column="modal") == []
    assert errors(check_tables([table], root=folder))


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.csv", "path,Text,modality\n", "dataset"),
        ("a.csv", "\n\nText, path ,modal,prompt\n", "dataset"),
        ("a.csv", "image_path,rating,modality,expert_level,prompt\n", "ratings"),
        ("a.csv", "rating,prompt\n", "ratings"),
        ("a.csv", '\ufeff"Prompt",modality\n', "prompts"),
        ("a.csv", '\ufeff"sep=,"\nprompt,modality\n', "prompts"),
        ("a.TXT", "path,Text,modality\n", "prompts"),
        ("a.jsonl", '{"prompt": "CT: x", "path": "y"}\n', "prompts"),
        ("a.jsonl", '{"file_name": "a.png", "text": "CT: x"}\n', "dataset"),
        ("a.csv", "", "dataset"),
        ("a.csv", "\0\0", "dataset"),
    ],
)
def test_the_header_tells_what_a_table_is(tmp_path: Path, name: str, content: str, kind: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert table_kind(tmp_path / name) == kind


def test_of_a_directory_the_tables_in_it_are_named(folder: Path) -> None:
    (folder / "empty").mkdir()
    for name in "dcba":
        (folder / f"{name}.csv").touch()
    named, none = (problem.reason for problem in check_tables([folder, folder / "empty"]))
    tables = ", ".join(repr(str(folder / f"{name}.csv")) for name in "abc")
    assert named == f"is a directory, not a table: give {tables} and 1 more"
    assert "there is none in it: make one with the columns path, Text and modality" in none


def test_utf_16_is_told_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,Text,modality\n", encoding="utf-16")
    (problem,) = check_tables([tmp_path / "a.csv"])
    assert problem.reason.startswith("is UTF-16, not UTF-8; save it as 'CSV UTF-8', or docs/data.md")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "CT: x"}\n',
            "an imagefolder's list.*path, Text and modality",
        ),
        ("metadata.csv", "file_name,text\na.png,CT: x\n", "an imagefolder's list.*taken for a data set, because"),
        ("a.csv", "annotation_id,annotator,image,rating\n", "of Label Studio.*ratings table.*column 'rating'"),
        ("a.csv", "rating,prompt\n", "a ratings table, because it has a column 'rating'"),
        ("a.csv", "file,caption\n", "a data set, because it has no column 'prompt' or 'rating'"),
        ("a.csv", "path;Text;modality\na.png;CT: x, y;CT\n", "only one column.*by commas, not ';'.*docs/data.md"),
        ("a.csv", "path;Text, English;modality\na.png;CT: x;CT\n", "^separate by commas, not ';'.*docs/data.md"),
        ("a.csv", "path\tText\tmodality\na.png\tCT: x\tCT\n", "by commas, not '.t'.*docs/data.md"),
        ("a.csv", "prompt;modality\nCT: x;CT\n", "by commas, not ';'.*docs/data.md"),
        ("a.csv", "sep=;\npath;Text;modality\na.png;CT: x;CT\n", "by commas, not ';'.*docs/data.md"),
        ("a.csv", "p\0a\0t\0h\0,\0\n\0", "if it is UTF-16, save it as 'CSV UTF-8', or docs/data.md"),
        ("a.json", "[]", "is a .json file.*of an export of Label Studio, docs/data.md"),
        ("data.xlsx", "x", "is a .xlsx file.*save it as 'CSV UTF-8'"),
    ],
)
def test_other_programs_tables_are_named(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    (problem,) = check_tables([tmp_path / name])
    assert re.search(told, problem.reason), problem.reason
