from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from medsyn.data.modalities import clean_text, is_over_long
from medsyn.data.tables import read as tables_read
from medsyn.data.tables.read import InputTable, read_dataset, read_ratings
from medsyn.errors import InputError, InputProblems, Problem
from tests.helpers.prompt_table import read_prompts

HEADER = "path,Text,modality\n"
ROW = "img/a.png,Fundus: healthy,Fundus\n"
RATINGS = "image_path,rating,modality,expert_level,prompt\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with six files that no table reader may open: they cannot be read."""
    root = tmp_path / "data"
    (root / "img").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "c.jpeg", "d.dcm", "e.nii.gz", "Scan One.PNG"):
        (root / "img" / name).touch(mode=0)
    return root


def write(folder: Path, content: str | bytes, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def dataset(folder: Path, rows: str, header: str = HEADER) -> InputTable[tables_read.ImageRow]:
    return read_dataset(write(folder, header + rows))


def file_fault(folder: Path, content: str | bytes) -> list[Problem]:
    try:
        read_dataset(write(folder, content))
    except (InputError, InputProblems) as refused:
        return refused.problems
    raise AssertionError("the file was not refused")


def only_error(table: InputTable[tables_read.ImageRow]) -> Problem:
    assert len(table.errors) == 1, [str(problem) for problem in table.errors]
    return table.errors[0]


def only_warning(table: InputTable) -> Problem:
    assert [problem.severity for problem in table.problems] == ["warning"], [str(p) for p in table.problems]
    return table.problems[0]


# What a good table gives ------------------------------------------------------------------------------------------


def test_rows_keep_order_and_lines_and_files_one_spelling(folder: Path) -> None:
    table = dataset(folder, "img/b.jpg,OCT: drusen,oct\n./img/a.png,Chest X-ray: clear,CXR\n")
    assert table.problems == []
    first, second = table.rows
    assert (first.row, first.file, first.path, first.text) == (2, "img/b.jpg", folder / "img/b.jpg", "OCT: drusen")
    assert (second.row, second.file, second.path) == (3, "img/a.png", folder / "img/a.png")  # written ./img/a.png
    assert (second.text, second.modality, second.patient_id) == ("Chest X-ray: clear", "X-Ray", None)


def test_a_root_apart_from_the_table(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + ROW)
    assert read_dataset(path, folder).rows[0].path == folder / "img/a.png"
    assert read_dataset(path, str(folder)).rows[0].path == folder / "img/a.png"


def test_paths_are_absolute_for_a_table_named_relatively(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, HEADER + ROW)
    monkeypatch.chdir(folder)
    assert read_dataset("table.csv").rows[0].path == folder / "img/a.png"


@pytest.mark.parametrize("column", ["patient_id", "patient", "Patient_ID", "subject_id", "Patient ID", "MRN"])
def test_patients_are_read_where_known(folder: Path, column: str) -> None:
    rows = "img/a.png,CT: x1,CT,p7\nimg/b.jpg,CT: x2,CT,\nimg/c.jpeg,CT: x3,CT,NaN\n"
    table = dataset(folder, rows, f"path,Text,modality,{column}\n")
    assert [row.patient_id for row in table.rows] == ["p7", None, None]
    assert "counts as one of a patient of its own (2 rows: 3, 4)" in only_warning(table).reason


def test_the_patients_column_may_have_any_name(folder: Path) -> None:
    content = "path,Text,modality,who\nimg/a.png,CT: x1,CT,p7\n"
    assert read_dataset(write(folder, content), patient_column="who").rows[0].patient_id == "p7"
    assert read_dataset(write(folder, content), patient_column="path").rows[0].patient_id == "img/a.png"
    with pytest.raises(InputError, match=r"no column 'whom'.*pass data.patient_column=who"):
        read_dataset(write(folder, content), patient_column="whom")


def test_two_columns_that_look_like_patients_are_refused_with_the_way_out(folder: Path) -> None:
    path = write(folder, "path,Text,modality,subject_id,mrn\nimg/a.png,CT: x1,CT,p7,1\n")
    with pytest.raises(InputError, match=r"'subject_id' and 'mrn' look like patients.*data.patient_column"):
        read_dataset(path)
    assert read_dataset(path, patient_column="mrn").rows[0].patient_id == "1"


def test_a_table_without_patients_is_told_once(folder: Path) -> None:
    table = dataset(folder, ROW + "img/b.jpg,OCT: x,OCT\n")
    assert table.problems == [] and "no patient column" in table.advice[0].reason
    assert dataset(folder, ROW).advice == []


def test_columns_are_found_by_name_in_any_order_and_case(folder: Path) -> None:
    table = dataset(folder, "Fundus,7,img/a.png,Fundus: x\n", "MODALITY,age,Path, text\n")
    assert table.problems == []
    assert table.rows[0].text == "Fundus: x"


def test_the_exact_name_wins_over_another_case(folder: Path) -> None:
    table = dataset(folder, "img/a.png,wrong,CT: right,CT\n", "path,text,Text,modality\n")
    assert table.rows[0].text == "CT: right"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_marks(folder: Path, end: str, mark: str) -> None:
    content = mark + (HEADER + ROW + "img/b.jpg,OCT: x,OCT").replace("\n", end)
    table = read_dataset(write(folder, content))
    assert [(row.row, row.modality) for row in table.rows] == [(2, "Fundus"), (3, "OCT")]


def test_blank_lines_are_skipped_but_counted(folder: Path) -> None:
    table = dataset(folder, "\n   \n" + ROW + "\nimg/b.jpg,,OCT\n", "\n" + HEADER)
    assert [row.row for row in table.rows] == [5]
    assert only_error(table).row == 7


def test_a_space_before_a_quote_is_allowed(folder: Path) -> None:
    table = dataset(folder, 'img/a.png, "CT: chest, axial" , CT\n'.replace('" ,', '",'))
    assert table.rows[0].text == "CT: chest, axial"


def test_line_numbers_after_a_text_of_several_lines(folder: Path) -> None:
    table = dataset(folder, 'img/a.png,"CT: one\r\n two\n\nthree",CT\nimg/nope.png,CT: x,CT\n')
    assert table.rows[0].text == "CT: one two three"
    assert only_error(table).row == 6


# Files that are refused as a whole --------------------------------------------------------------------------------


def test_no_such_table(folder: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        read_dataset(folder / "absent" / "table.csv")
    with pytest.raises(InputError, match="is a directory"):
        read_dataset(folder / "img")
    with pytest.raises(InputError, match="is not a regular file"):
        read_dataset("/dev/zero")


def test_no_such_data_folder(folder: Path) -> None:
    with pytest.raises(InputError, match="there is no such directory"):
        read_dataset(write(folder, HEADER + ROW), folder / "nope")


@pytest.mark.parametrize(
    ("content", "row", "says"),
    [
        (b"", None, "empty"),
        (b"\xef\xbb\xbf \r\n\t\n", None, "empty"),
        (HEADER.encode(), None, "no rows"),
        ((HEADER + ROW).encode("utf-16"), 1, "UTF-16"),
        ((HEADER + ROW).encode("utf-16-le"), 1, "NUL"),
        ((HEADER + ROW + ROW).encode() + b"img/a.png,Fundus: r\xe9tine,Fundus\n", 4, "not UTF-8 here;"),
        ((HEADER + ROW).encode() + b"a,\xe9,CT\n" * 3, 3, "not UTF-8 here and on 2 more lines"),
        ((HEADER + ROW).encode() + b"img/a.png,Fundus: a\0b,Fundus\n", 3, "NUL"),
    ],
)
def test_what_is_no_utf8_table(folder: Path, content: bytes, row: int | None, says: str) -> None:
    (problem,) = file_fault(folder, content)
    assert problem.row == row
    assert says in problem.reason


def test_a_missing_column_is_named_with_those_seen(folder: Path) -> None:
    (problem,) = file_fault(folder, "path,caption,modality,age\nimg/a.png,x,CT,3\n")
    assert (problem.row, problem.key) == (1, "Text")
    assert all(name in problem.reason for name in ("'Text'", "'path'", "'caption'", "'modality'", "'age'"))


def test_minims_modality_column_is_refused_with_the_way_out(folder: Path) -> None:
    content = HEADER.replace("modality", "modal") + ROW
    (problem,) = file_fault(folder, content)
    assert problem.key == "modality"
    assert "'path', 'Text', 'modal'" in problem.reason
    assert "pass data.modality_column=modal or rename 'modal' to 'modality'" in problem.reason
    assert read_dataset(write(folder, content), modality_column="modal").rows[0].modality == "Fundus"


def test_a_modality_column_that_is_not_there(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no column 'modal'.*pass data.modality_column=modality"):
        read_dataset(write(folder, HEADER + ROW), modality_column="modal")


def test_errors_of_a_renamed_modality_column_name_it(folder: Path) -> None:
    table = read_dataset(write(folder, "path,Text,modal\nimg/a.png,x,Echo\n"), modality_column="modal")
    assert only_error(table).key == "modal"


def test_no_advice_that_does_not_exist_for_ratings(folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_ratings(write(folder, RATINGS.replace("modality", "modal") + "img/a.png,1,CT,1,CT: x\n"))
    assert "rename 'modal' to 'modality'" in str(caught.value)
    assert "modality_column" not in str(caught.value)


def test_the_first_row_is_not_taken_for_a_header(folder: Path) -> None:
    (problem,) = file_fault(folder, ROW + ROW)
    assert problem.row == 1
    assert "the first line must be the header: path,Text,modality" in problem.reason


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_another_delimiter_is_guessed(folder: Path, mark: str) -> None:
    (problem,) = file_fault(folder, (HEADER + ROW).replace(",", mark))
    assert "there is only one column" in problem.reason
    assert f"not {mark!r}" in problem.reason


@pytest.mark.parametrize("header", ["path,path,Text,modality\n", "PATH,Path,Text,modality\n"])
def test_a_column_that_is_there_twice(folder: Path, header: str) -> None:
    (problem,) = file_fault(folder, header + "img/a.png,img/b.jpg,CT: x,CT\n")
    assert (problem.key, problem.reason) == (
        "path",
        "2 columns have this name; keep one, and remove or rename the others",
    )


def test_ragged_rows_refuse_the_file_and_are_all_told(folder: Path) -> None:
    """Where commas were not quoted, a row that happens to fit cannot be trusted either; other errors are told too."""
    content = HEADER + ROW + "img/a.png,CT: a, b, c,CT\nimg/a.png,CT\nimg/nope.png,CT: x,CT\n"
    problems = file_fault(folder, content)
    assert [problem.row for problem in problems] == [3, 4, 5]
    assert "5 fields, 3 expected" in problems[0].reason
    assert "double quotes" in problems[0].reason
    assert "2 fields, 3 expected" in problems[1].reason
    assert "double quotes" not in problems[1].reason


def test_a_quote_that_is_never_closed(folder: Path) -> None:
    problems = file_fault(folder, HEADER + ROW + 'img/b.jpg,"Fundus: open,Fundus\n' + ROW)
    assert [problem.row for problem in problems] == [3]
    assert "never closed" in problems[0].reason


def test_a_quote_inside_a_text(folder: Path) -> None:
    problems = file_fault(folder, HEADER + 'img/b.jpg,"CT: a 5" tube, right",CT\n' + ROW)
    assert [problem.row for problem in problems] == [2]
    assert "write a quote inside a text as two" in problems[0].reason


def test_a_header_with_broken_quotes(folder: Path) -> None:
    (problem,) = file_fault(folder, 'path,"Te"xt,modality\n' + ROW)
    assert problem.row == 1
    assert "quotes are broken" in problem.reason


def test_an_open_quote_does_not_swallow_a_large_table(folder: Path) -> None:
    """The csv module gives up on a field of 128 KiB; what follows it is still looked at."""
    problems = file_fault(folder, HEADER + 'img/b.jpg,"CT: open,CT\n' + ROW * 6000 + "img/nope.png,CT: x,CT\n")
    assert problems[0].row == 2
    assert "field larger" in problems[0].reason
    assert problems[-1].row == 6003


# Paths stay in the data folder ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("../secret.png", "may not contain '..'"),
        ("img/../../secret.png", "may not contain '..'"),
        ("img/../img/a.png", "may not contain '..'"),
        ("/etc/passwd", "outside the data directory"),
        ("/dev/zero", "outside the data directory"),
        ("//etc/passwd", "outside the data directory"),
        ("http://example.invalid/a.png", "is a URL"),
        ("file:///etc/passwd", "is a URL"),
        ("S3://bucket/a.png", "is a URL"),
        ("~/a.png", "there is no directory '~'"),
        ("img", "is a directory"),
        (".", "is a directory"),
        ("img/", "is a directory"),
        ("img\\a.png", "directories are separated by '/'"),
        ("img/a.png/b.png", "'img/a.png' is not a directory"),
        ("x/" * 2000 + "a.png", "does not exist"),
        ("y" * 5000 + "/a.png", "does not exist|cannot be listed"),
        ("z" * 300 + ".png", "does not exist"),
        ("notes.txt", "not an image; supported are .png"),
        ("pipe.png", "not a regular file"),
        ("", "not a file name"),
    ],
)
def test_files_that_are_refused(folder: Path, written: str, says: str) -> None:
    (folder.parent / "secret.png").touch()
    (folder / "notes.txt").write_text("private")
    os.mkfifo(folder / "pipe.png")
    table = dataset(folder, f"{written},CT: x,CT\n" + ROW)
    problem = only_error(table)
    assert (problem.row, problem.key) == (2, "path")
    assert re.search(says, problem.reason)
    assert len(problem.reason) < 600
    assert [row.row for row in table.rows] == [3]


def test_links_may_lead_to_directories_that_are_named(folder: Path) -> None:
    store, other = folder.parent / "store", folder.parent / "other"
    for place in (store, other):
        place.mkdir()
        (place / "one.png").touch()
        (folder / f"{place.name}.png").symlink_to(place / "one.png")
    (folder / "linked").symlink_to(store)
    content = HEADER + "store.png,CT: x,CT\nlinked/one.png,CT: y,CT\nother.png,CT: z,CT\n"
    table = read_dataset(write(folder, content), linked_roots=[store])
    assert [row.file for row in table.rows] == ["store.png", "linked/one.png"]
    assert "'other.png' is a symbolic link that leaves" in only_error(table).reason
    assert "data.linked_roots" in only_error(table).reason
    absolute = read_dataset(write(folder, f"{HEADER}{store}/one.png,CT: x,CT\n{ROW}"), linked_roots=[store])
    assert "is outside the data directory" in only_error(absolute).reason


def test_links_may_not_leave_the_data_folder(folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "patient.png").touch()
    (folder / "link.png").symlink_to(outside / "patient.png")
    (folder / "linked").symlink_to(outside)
    (folder / "broken.png").symlink_to(folder / "absent.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "folder.png").symlink_to(folder / "img")
    (folder / "zero.png").symlink_to("/dev/zero")
    names = ["link.png", "linked/patient.png", "broken.png", "loop.png", "loop/a.png", "folder.png", "zero.png"]
    names.append("linked/absent.png")
    table = dataset(folder, "".join(f"{name},CT: x,CT\n" for name in names))
    reasons = [problem.reason for problem in table.errors]
    assert table.rows == []
    assert len(reasons) == len(names)
    assert "is a symbolic link that leaves the data directory" in reasons[0]
    assert "is behind a symbolic link that leaves the data directory" in reasons[1]
    assert "is a symbolic link to nothing" in reasons[2]
    assert "is a symbolic link to nothing" in reasons[3]
    assert "is a directory" in reasons[5]
    assert "leaves" in reasons[6]
    assert reasons[7].replace("absent", "patient") == reasons[1]  # what is outside cannot be probed for
    assert not any("outside" in reason for reason in reasons)  # where a link leads is nobody's business


def test_links_inside_the_data_folder_are_files_like_others(folder: Path) -> None:
    (folder / "link.png").symlink_to("img/a.png")
    (folder / "linked").symlink_to("img")
    table = dataset(folder, "link.png,CT: x,CT\nlinked/b.jpg,CT: y,CT\n")
    assert table.problems == []
    assert [row.path for row in table.rows] == [folder / "link.png", folder / "linked/b.jpg"]


def test_a_data_folder_that_is_itself_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    rows = f"img/a.png,CT: x,CT\n{folder}/img/b.jpg,CT: y,CT\n{tmp_path}/link/img/c.jpeg,CT: z,CT\n"
    table = read_dataset(write(folder, HEADER + rows), tmp_path / "link")
    assert table.problems == []
    assert [row.path.name for row in table.rows] == ["a.png", "b.jpg", "c.jpeg"]
    assert {row.path.parent for row in table.rows} == {tmp_path / "link" / "img"}


def test_a_folder_beside_the_data_folder_with_the_same_beginning(folder: Path) -> None:
    beside = folder.parent / "data-private"
    beside.mkdir()
    (beside / "a.png").touch()
    assert "outside" in only_error(dataset(folder, f"{beside}/a.png,CT: x,CT\n" + ROW)).reason


def test_absolute_paths_inside_the_data_folder(folder: Path) -> None:
    table = dataset(folder, f"{folder}/img/a.png,CT: x,CT\n{folder},CT: x,CT\n")
    assert table.rows[0].path == folder / "img/a.png"
    assert "is a directory" in only_error(table).reason


def test_a_hidden_file_keeps_its_dot(folder: Path) -> None:
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / ".a.png").touch()
    assert dataset(folder, ".hidden/.a.png,CT: x,CT\n").rows[0].path == folder / ".hidden" / ".a.png"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("img/A.png", "img/a.png"),
        ("IMG/a.png", "img"),
        ("img/a.jpg", "img/a.png"),
        ("img/scan one.png", "img/Scan One.PNG"),
        ("imgs/a.png", "img"),
        ("img/e.nii", "img/e.nii.gz"),
        ("img/a.png\u200b", "img/a.png"),
    ],
)
def test_what_was_meant(folder: Path, written: str, meant: str) -> None:
    reason = only_error(dataset(folder, f"{written},CT: x,CT\nimg/d.dcm,CT: y,CT\n")).reason
    assert "does not exist" in reason
    assert f"; did you mean '{meant}'?" in reason


def test_no_guess_where_nothing_is_close(folder: Path) -> None:
    assert "did you mean" not in only_error(dataset(folder, "img/zebra.dicom,CT: x,CT\n" + ROW)).reason


def test_names_that_look_alike_in_unicode(folder: Path) -> None:
    """A file name from a Mac is decomposed; the table says the composed one."""
    (folder / "re\u0301tine.png").touch()
    reason = only_error(dataset(folder, "r\u00e9tine.png,CT: x,CT\n" + ROW)).reason
    assert "did you mean 're\u0301tine.png'?" in reason


def test_file_names_that_are_no_utf8_can_be_told(folder: Path) -> None:
    (folder / os.fsdecode(b"r\xe9tine.png")).touch()
    reason = only_error(dataset(folder, "rétine.png,CT: x,CT\n" + ROW)).reason
    reason.encode()  # a lone surrogate would fail here, and on every terminal


def test_a_wrong_data_folder_is_told_once_more(folder: Path, tmp_path: Path) -> None:
    table = read_dataset(write(folder, HEADER + ROW), tmp_path)
    assert "none of its files is in" in table.errors[-1].reason
    assert "data.root" in table.errors[-1].reason
    assert "data.root" not in str(dataset(folder, ROW + "img/nope.png,CT: x,CT\n").errors)


def test_a_folder_that_may_not_be_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    table = dataset(folder, ROW)
    assert "cannot be listed: Permission denied" in table.errors[0].reason


def test_a_data_folder_that_goes_away_meanwhile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "scandir", gone)
    table = dataset(folder, "a.png,CT: x,CT\nimg/a.png,CT: x,CT\n")
    assert all("the data directory is gone" in problem.reason for problem in table.errors[:2])


def test_messages_hold_no_control_characters(folder: Path) -> None:
    evil = "\x1b[31m\u202egnp.a"
    table = dataset(folder, f"{evil},{evil},{evil}\n")
    assert len(table.errors) >= 2
    assert all(str(problem.reason).isprintable() for problem in table.errors)


def test_nothing_but_the_table_is_opened_and_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, HEADER + ROW + "http://example.invalid/a.png,CT: x,CT\n/etc/passwd,CT: x,CT\n")
    opened: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open":
            opened.append(str(arguments[0]))

    def no_network(*_: object) -> None:
        raise AssertionError("a table must not touch the network")

    monkeypatch.setattr(socket, "socket", no_network)
    sys.addaudithook(watch)  # cannot be taken off again, hence `watching`
    try:
        table = read_dataset(path)
    finally:
        watching = False
    assert len(table.rows) == 1
    assert {name for name in opened if name.startswith((str(folder), "/etc"))} == {str(path)}


def test_folders_are_listed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look per row would take minutes for a large table on a shared file system."""
    for number in range(200):
        (folder / "img" / f"{number}.png").touch()
    path = write(folder, HEADER + "".join(f"img/{number}.png,CT: x {number},CT\n" for number in range(200)))
    listed: list[str] = []
    looked: list[str] = []
    scandir, look = os.scandir, os.stat

    def count_listing(name: Path) -> object:
        listed.append(str(name))
        return scandir(name)

    def count_look(name: Path, **options: bool) -> os.stat_result:
        looked.append(str(name))
        return look(name, **options)

    monkeypatch.setattr(os, "scandir", count_listing)
    monkeypatch.setattr(os, "stat", count_look)
    assert len(read_dataset(path).rows) == 200
    assert listed == [str(folder / "img")]
    assert len(looked) < 20


# Texts and modalities ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "   ", "nan", "NaN", "NA", "n/a", "None", "<NA>", "Fundus:", "Fundus: nan", "-", "?!"]
)
def test_texts_that_say_nothing(folder: Path, text: str) -> None:
    problem = only_error(dataset(folder, f"img/a.png,{text},Fundus\nimg/b.jpg,CT: x,CT\n"))
    assert (problem.row, problem.key) == (2, "Text")


@pytest.mark.parametrize(
    ("text", "modality", "expected"),
    [
        ("healthy retina", "Fundus", "Fundus: healthy retina"),
        ("Fundus: healthy", "Fundus", "Fundus: healthy"),
        ("fundus:healthy", "Fundus", "fundus:healthy"),
        ("FUNDUS : healthy", "Fundus", "FUNDUS : healthy"),
        ("Color fundus photograph: healthy", "Fundus", "Color fundus photograph: healthy"),
        ("Chest X-ray: clear", "X-Ray", "Chest X-ray: clear"),
        ("CXR: clear", "X-Ray", "CXR: clear"),
        ("Brain MRI: glioma", "MRI", "Brain MRI: glioma"),
        ("CT abdomen: normal", "CT", "CT abdomen: normal"),
        ("Findings: no effusion", "X-Ray", "X-Ray: Findings: no effusion"),
        ("CT of the chest", "CT", "CT: CT of the chest"),
        (": clear", "CT", "CT: : clear"),
        ("10:30 scan", "CT", "CT: 10:30 scan"),
    ],
)
def test_the_prefix_is_there_once(folder: Path, text: str, modality: str, expected: str) -> None:
    table = dataset(folder, f"img/a.png,{text},{modality}\n")
    assert table.errors == []
    assert table.rows[0].text == expected
    again = dataset(folder, f"img/a.png,{expected},{modality}\n")
    assert (again.rows[0].text, again.problems) == (expected, [])


def test_added_prefixes_are_one_warning_that_counts(folder: Path) -> None:
    table = dataset(folder, "".join(f"img/a.png,text {number},CT\n" for number in range(9)))
    added = [problem for problem in table.problems if "it was added" in problem.reason]
    assert len(added) == 1
    assert (added[0].row, added[0].key, added[0].severity) == (2, "Text", "warning")
    assert "9 rows: 2, 3, 4, 5, 6, ..." in added[0].reason


def test_a_text_of_another_modality_is_a_warning(folder: Path) -> None:
    table = dataset(folder, "img/a.png,Chest CT: nodule,Fundus\n")
    assert "the text says CT, the modality is Fundus" in only_warning(table).reason
    assert table.rows[0].text == "Chest CT: nodule"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("CT: a\t b\x0bc\x85d\u2028e\u00a0f", "CT: a b c d e f"),
        ("CT: \u202edefault\u202c \u200b zero\u2066width\u2069 \U0001f441", "CT: default zerowidth \U0001f441"),
        ("CT: bell\x07 and\x1b[31m red\x7f", "CT: bell and[31m red"),
        ("\ufeffCT: soft\u00adhyphen", "CT: softhyphen"),
        ("CT: re\u0301tine", "CT: r\u00e9tine"),
        (
            "CT: {0.__class__} %s ${HOME} `id` $(id) =cmd|'/c calc'!A0",
            "CT: {0.__class__} %s ${HOME} `id` $(id) =cmd|'/c calc'!A0",
        ),
        ("CT: 肺 結節", "CT: 肺 結節"),
    ],
)
def test_texts_are_one_visible_line(folder: Path, raw: str, clean: str) -> None:
    assert clean_text(raw) == clean
    assert clean_text(clean) == clean
    quoted = raw.replace('"', '""')
    assert dataset(folder, f'img/a.png,"{quoted}",CT\n').rows[0].text == clean


def test_an_invisible_text_is_no_text(folder: Path) -> None:
    assert only_error(dataset(folder, "img/a.png,\u200b\u202e,CT\n")).key == "Text"


@pytest.mark.parametrize(
    "text",
    [
        "compared to ___; Dr. ___ was informed",
        "seen on [**2101-3-4**] by [**Last Name (un) 12**]",
        "XXXX-year-old with XXXX",
        "referred by <NAME>",
        "[DATE] follow-up of {PATIENT NAME}",
        "of \u2588\u2588\u2588",
    ],
)
def test_placeholders_of_deidentification_are_counted(folder: Path, text: str) -> None:
    table = dataset(folder, f"img/a.png,CT: {text},CT\nimg/b.jpg,CT: {text} 2,CT\n")
    assert "placeholders" in only_warning(table).reason and "(2 rows: 2, 3)" in only_warning(table).reason


@pytest.mark.parametrize(
    "text", ["a_b", "lesion < 5 mm and > 2 mm", "XX chromosome", "stage [III]", "T2 <TE 80>", "xx"]
)
def test_ordinary_texts_have_no_placeholder(folder: Path, text: str) -> None:
    assert dataset(folder, f"img/a.png,CT: {text},CT\n").problems == []


def test_over_long_texts_are_one_warning_that_counts(folder: Path) -> None:
    long = "Fundus: " + "microaneurysm " * 60
    table = dataset(folder, f"img/a.png,{long},Fundus\nimg/b.jpg,{long},Fundus\nimg/c.jpeg,Fundus: x,Fundus\n")
    assert "CLIP tokens (an estimate)" in only_warning(table).reason
    assert "(2 rows: 2, 3)" in only_warning(table).reason
    assert len(table.rows) == 3


@pytest.mark.parametrize(
    ("text", "over_long"),
    [
        ("CT: " + "chest " * 73, False),
        ("CT: " + "chest " * 74, True),
        ("CT: " + "1" * 74, True),
        ("CT: " + "-" * 200, False),
        ("肺" * 600, True),
        ("CT: " + "双肺纹理增多模糊" * 2, False),
        ("CT: " + "双肺纹理增多模糊" * 4, True),
        ("CT: " + "двусторонняя пневмония " * 2, False),
        ("CT: " + "двусторонняя пневмония " * 4, True),
        # CLIP's own tokenizer makes 93 and 97 tokens of these
        (
            "X-Ray: bibasilar atelectasis, cardiomegaly, hypoinflated lungs, pneumomediastinum, costophrenic blunting, "
            "dextroscoliosis, tracheobronchomalacia, bronchiectasis, lymphadenopathy, hydropneumothorax, kyphoplasty, "
            "spondylolisthesis, atherosclerotic calcification, cholecystectomy clips",
            True,
        ),
        (
            "X-Ray: Röntgen-Thorax in zwei Ebenen: Herzvergrößerung, beidseitige Pleuraergüsse, Stauungszeichen, "
            "Belüftungsstörungen basal rechtsbetont, Zwerchfellhochstand links, kein Pneumothorax, Aortensklerose, "
            "degenerative Wirbelsäulenveränderungen",
            True,
        ),
        # and 67 of this
        (
            "Chest X-ray: the cardiomediastinal silhouette is within normal limits for size and contour. The lungs are "
            "normally inflated without evidence of focal airspace disease, pleural effusion, or pneumothorax. Osseous "
            "structures are within normal limits for patient age. No acute cardiopulmonary abnormality.",
            False,
        ),
        ("", False),
    ],
)
def test_the_estimate_of_tokens(text: str, over_long: bool) -> None:
    assert is_over_long(text.strip()) is over_long


@pytest.mark.parametrize(
    ("name", "hint"), [("Fundos", "did you mean Fundus?"), ("X-Rey", "did you mean X-Ray?"), ("Ultrasound", None)]
)
def test_an_unknown_modality_lists_the_five(folder: Path, name: str, hint: str | None) -> None:
    problem = only_error(dataset(folder, f"img/a.png,x1,{name}\n" + ROW))
    assert (problem.row, problem.key) == (2, "modality")
    assert "OCT, CT, X-Ray, MRI, Fundus" in problem.reason
    assert hint in problem.reason if hint else "did you mean" not in problem.reason


# Modalities of a part of the body ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "modality"),
    [
        ("Brain MRI: mass", "MRI", "Brain MRI"),
        ("mass", "Brain MRI", "Brain MRI"),
        ("MRI: mass", "BrainMRI", "Brain MRI"),
        ("MRI brain: mass", "mr", "Brain MRI"),
        ("Breast MRI: mass", "MRI", "Breast MRI"),
        ("CT: mass", "Brain MRI", "Brain MRI"),
        ("Brain CT: mass", "CT", "CT"),
        ("mass", "Chest CT", "CT"),
    ],
)
def test_a_row_belongs_to_the_most_specific_modality(folder: Path, text: str, name: str, modality: str) -> None:
    path = write(folder, HEADER + f"img/a.png,{text},{name}\n")
    listed = ["Brain MRI", "Breast MRI", "CT"]
    assert [row.modality for row in read_dataset(path, modalities=listed).rows] == [modality]
    ratings = write(folder, RATINGS + f"img/a.png,3,{name},2,{text}\nimg/b.jpg,1,{name},2,{text}\n", "ratings.csv")
    assert [row.modality for row in read_ratings(ratings, modalities=listed).rows] == [modality] * 2


def test_rows_without_a_part_of_the_body_are_left_out_with_a_count_unless_the_plain_one_is_listed(folder: Path) -> None:
    rows = "img/a.png,MRI: a,MRI\nimg/b.jpg,MRI: b,MRI\nimg/c.jpeg,Spine MRI: c,MRI\nimg/d.dcm,Brain MRI: d,MRI\n"
    path = write(folder, HEADER + rows)
    table = read_dataset(path, modalities=["Brain MRI", "Breast MRI"])
    assert [row.modality for row in table.rows] == ["MRI", "MRI", "MRI", "Brain MRI"]
    assert [(one.row, one.severity, one.reason) for one in table.problems] == [
        (
            2,
            "warning",
            "is of MRI and names no part of the body, while data.modalities has Brain MRI, Breast MRI: write "
            "'Brain MRI' as its modality, or begin its text with 'Brain MRI: '; left out (2 rows: 2, 3)",
        ),
        (4, "warning", "is of Spine MRI, which is not in data.modalities; left out (1 row)"),
    ]
    table = read_dataset(path, modalities=["Brain MRI", "MRI"])
    assert ([row.modality for row in table.rows], table.problems) == (["MRI", "MRI", "MRI", "Brain MRI"], [])


def test_a_text_of_another_part_of_the_body_is_a_warning(folder: Path) -> None:
    path = write(folder, HEADER + "img/a.png,Breast MRI: mass,Brain MRI\n")
    table = read_dataset(path, modalities=["Brain MRI", "Breast MRI"])
    assert table.rows[0].modality == "Brain MRI"
    assert "the text says Breast MRI, the modality is Brain MRI" in only_warning(table).reason


def test_a_text_without_a_prefix_gets_the_whole_name(folder: Path) -> None:
    path = write(folder, HEADER + "img/a.png,mass,MRI brain\n")
    assert read_dataset(path, modalities=["Brain MRI"]).rows[0].text == "Brain MRI: mass"
    assert read_dataset(path).rows[0].text == "MRI: mass"


# Several problems, repeated rows, strictness ----------------------------------------------------------------------


def test_everything_wrong_with_a_row_is_told_at_once(folder: Path) -> None:
    table = dataset(folder, "img/nope.png,,Echo\n" + ROW + "/etc/passwd,NA,CT\n")
    assert [(problem.row, problem.key) for problem in table.errors] == [
        (2, "path"),
        (2, "modality"),
        (2, "Text"),
        (4, "path"),
        (4, "Text"),
    ]
    assert all(problem.source == str(folder / "table.csv") for problem in table.errors)
    assert str(table.errors[0]).startswith(f"{folder}/table.csv, line 2, path: ")


def test_repeated_rows_are_kept_once(folder: Path) -> None:
    rows = ROW + "img/b.jpg,OCT: x,OCT\n" + ROW + "./img//a.png,  Fundus:  healthy ,fundus\n"
    table = dataset(folder, rows)
    assert [row.row for row in table.rows] == [2, 3]
    assert "repeats an earlier row; only the first is kept (2 rows: 4, 5)" in only_warning(table).reason


@pytest.mark.parametrize("other", ["img/a.png,Fundus: drusen,Fundus\n", "img/a.png,Fundus: healthy,CT\n"])
def test_one_image_with_two_texts_is_a_warning(folder: Path, other: str) -> None:
    table = dataset(folder, ROW + other + ROW)
    assert [row.row for row in table.rows] == [2, 3]
    reasons = [problem.reason for problem in table.problems]
    assert any(reason.startswith("the same image") and "(1 row)" in reason for reason in reasons)
    assert any(reason.startswith("repeats") and "(1 row)" in reason for reason in reasons)
    assert table.errors == []


def test_require(folder: Path) -> None:
    clean = dataset(folder, ROW)
    assert clean.require(strict=True) is clean.rows
    warned = dataset(folder, ROW + ROW)
    assert warned.require(strict=True) == clean.rows
    partial = dataset(folder, ROW + "img/nope.png,CT: x,CT\nimg/a.png,,CT\n")
    assert [row.row for row in partial.require(strict=False)] == [2]
    with pytest.raises(InputProblems) as caught:
        partial.require(strict=True)
    assert [problem.row for problem in caught.value.problems] == [3, 4]
    hopeless = dataset(folder, "img/a.png,,CT\n")
    for strict in (True, False):
        with pytest.raises(InputProblems, match="line 2, Text"):
            hopeless.require(strict)
        with pytest.raises(InputProblems, match="no rows"):
            InputTable(folder, [], []).require(strict)


def test_a_large_table_takes_seconds(folder: Path) -> None:
    rows = "".join(f"img/a.png,CT: nodule of {number} mm,CT\n" for number in range(20_000))
    start = time.process_time()
    assert len(dataset(folder, rows).rows) == 20_000
    assert time.process_time() - start < 100


def test_a_large_table_without_one_file_takes_seconds(folder: Path) -> None:
    """Guessing what was meant must stay cheap, however many rows are wrong and files there are."""
    for number in range(1500):
        (folder / "img" / f"scan_{number:04d}.png").touch()
    rows = "".join(f"img/scan_{number:05d}.png,CT: x,CT\n" for number in range(10_000))
    start = time.process_time()
    assert len(dataset(folder, rows).errors) == 10_001
    assert time.process_time() - start < 40


def test_no_table_is_ever_a_traceback(folder: Path) -> None:
    """Pieces of tables in any order: read, or refused with a reason, in a table of any kind."""
    pieces = [
        HEADER,
        RATINGS,
        "id,prompt,modality\n",
        "prompt,n,seed\n",
        '{"prompt": "CT: a", "n": 2}\n',
        ROW,
        *GOOD_RATINGS.splitlines(keepends=True),
        ",",
        '"',
        "\n",
        "\r",
    ]
    pieces += [
        "img/a.png",
        "..",
        "/",
        "//",
        ":",
        "CT: ",
        "\ufeff",
        "\u202e",
        "\U0001f441",
        " ",
        "\x1b",
        ";",
        "#",
        "1",
        "\\",
    ]
    choice = np.random.default_rng(0)
    readers = {
        "t.csv": (read_dataset, read_ratings, read_prompts),
        "t.txt": (read_prompts,),
        "t.jsonl": (read_prompts,),
    }
    outcomes = set()
    for _ in range(400):
        start = str(choice.choice(pieces[:3]))
        content = start + "".join(map(str, choice.choice(pieces, size=int(choice.integers(0, 25)))))
        damage = content.encode()[: int(choice.integers(1, 400))]
        for name, functions in readers.items():
            for read in functions:
                try:
                    table = read(write(folder, damage, name))
                except (InputError, InputProblems) as refused:
                    outcomes.add("refused")
                    assert refused.problems
                else:
                    outcomes.add("read")
                    assert table.rows or table.errors
    assert outcomes == {"read", "refused"}


def test_reading_tables_imports_nothing_heavy() -> None:
    heavy = ("torch", "pandas", "numpy", "pydantic")
    code = f"import sys, medsyn.data.tables.read; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Ratings ----------------------------------------------------------------------------------------------------------

GOOD_RATINGS = "img/a.png,3,Fundus,2,Fundus: healthy\nimg/b.jpg,1,CXR,3,clear lungs\n"


def test_ratings(folder: Path) -> None:
    table = read_ratings(write(folder, RATINGS + GOOD_RATINGS))
    floats = re.sub(r",([123]),", r",\1.0,", RATINGS + GOOD_RATINGS)
    assert ".0" in floats and read_ratings(write(folder, floats)).rows == table.rows
    assert table.errors == []
    assert [(row.row, row.rating, row.modality, row.expert_level) for row in table.rows] == [
        (2, 3, "Fundus", 2),
        (3, 1, "X-Ray", 3),
    ]
    assert table.rows[1].prompt == "X-Ray: clear lungs"
    assert table.rows[1].path == folder / "img/b.jpg"


@pytest.mark.parametrize("column", ["rating", "expert_level"])
@pytest.mark.parametrize(
    "value", ["0", "4", "-1", "2.5", "3.01", "three", "", "nan", "inf", "1e0", "٣", "03", "+1", "1_"]
)
def test_grades_are_the_integers_one_to_three(folder: Path, column: str, value: str) -> None:
    grades = f"{value},CT,1" if column == "rating" else f"1,CT,{value}"
    table = read_ratings(write(folder, f"{RATINGS}{GOOD_RATINGS}img/c.jpeg,{grades},CT: x\n"))
    (problem,) = table.errors
    assert (problem.row, problem.key) == (4, column)
    assert "not 1, 2 or 3" in problem.reason
    assert len(table.rows) == 2


def test_two_ratings_of_one_image_are_two_raters(folder: Path) -> None:
    row = "img/a.png,3,Fundus,2,Fundus: healthy\n"
    table = read_ratings(write(folder, RATINGS + row + row + row.replace(",3,", ",1,")))
    assert [row.rating for row in table.rows] == [3, 3, 1]
    assert table.problems == []


@pytest.mark.parametrize(("grades", "says"), [("333", "no row is rated 1"), ("23", "rated 1"), ("11", "rated 2 or 3")])
def test_one_class_cannot_train_the_selector(folder: Path, grades: str, says: str) -> None:
    rows = "".join(f"img/a.png,{grade},CT,1,CT: x\n" for grade in grades)
    with pytest.raises(InputProblems, match="cannot train the Selector") as caught:
        read_ratings(write(folder, RATINGS + rows + "img/nope.png,1,CT,1,CT: x\n"))
    assert says in str(caught.value)
    assert [problem.row for problem in caught.value.problems] == [len(grades) + 2, None]


@pytest.mark.parametrize("grades", ["12", "13", "31"])
def test_two_classes_can(folder: Path, grades: str) -> None:
    rows = "".join(f"img/a.png,{grade},CT,1,CT: x\n" for grade in grades)
    assert len(read_ratings(write(folder, RATINGS + rows)).require(strict=True)) == 2


def test_a_rating_needs_a_prompt(folder: Path) -> None:
    table = read_ratings(write(folder, f"{RATINGS}{GOOD_RATINGS}img/a.png,3,CT,1,\n"))
    assert [(problem.row, problem.key) for problem in table.errors] == [(4, "prompt")]


def test_families_and_raters_are_read_where_known(folder: Path) -> None:
    header = RATINGS.strip() + ",Group,rater,patient_id\n"
    rows = "img/a.png,3,CT,2,CT: x,base-1,Reader 1,p1\nimg/b.jpg,1,CT,3,CT: x,,,\n"
    table = read_ratings(write(folder, header + rows))
    assert [(row.group, row.rater, row.patient_id) for row in table.rows] == [
        ("base-1", "Reader 1", "p1"),
        (None, None, None),
    ]
