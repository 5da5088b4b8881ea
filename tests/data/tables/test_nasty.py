"""Every table of the development images that is broken or hostile gets what its line in the manifest says."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import pytest

from medsyn.data.tables.read import InputTable, read_dataset, read_ratings
from medsyn.errors import InputError, InputProblems, Problem
from tests.helpers.prompt_table import read_prompts


@dataclass(frozen=True)
class Expected:
    """Lines of the good rows (None: the file is refused), and (line, words) of each error and warning."""

    rows: tuple[int, ...] | None
    errors: tuple[tuple[int | None, str], ...] = ()
    warnings: tuple[tuple[int, str], ...] = ()


EXPECTED = {
    "good.csv": Expected((2, 3, 4)),
    "wrong_header_modal.csv": Expected(
        None, ((1, "no column 'modality'; the columns found are 'path', 'Text', 'modal'"),)
    ),
    "no_header.csv": Expected(None, ((1, "the first line must be the header"),)),
    "header_case.csv": Expected((2, 3, 4)),
    "bom.csv": Expected((2, 3, 4)),
    "utf16.csv": Expected(None, ((1, "not UTF-8"),)),
    "latin1.csv": Expected(None, ((2, "not UTF-8"),)),
    "semicolon.csv": Expected(None, ((1, "not ';'"),)),
    "crlf.csv": Expected((2, 3, 4)),
    "quoted_newline.csv": Expected((2,)),
    "unquoted_commas.csv": Expected(None, ((2, "5 fields, 3 expected"),)),
    "empty.csv": Expected(None, ((None, "empty"),)),
    "header_only.csv": Expected(None, ((None, "no rows"),)),
    "nul_bytes.csv": Expected(None, ((2, "NUL"),)),
    "missing_file.csv": Expected((2, 3, 4), ((5, "does not exist"),)),
    "missing_path_value.csv": Expected((3, 4, 5), ((2, "not a file name"),)),
    "empty_text.csv": Expected((4,), ((2, "says nothing"), (3, "says nothing"))),
    "text_nan_string.csv": Expected((), ((2, "says nothing"), (3, "says nothing"))),
    "unknown_modality.csv": Expected((3, 4, 5), ((2, "OCT, CT, X-Ray, MRI, Fundus"),)),
    "modality_case.csv": Expected((2, 3, 4)),
    "xray_spellings.csv": Expected((2,), (), ((3, "5 rows: 3, 4, 5, 6, 7"),)),
    "prefix_mismatch.csv": Expected((2,), (), ((2, "the text says CT, the modality is Fundus"),)),
    "no_prefix.csv": Expected((2,), (), ((2, "it was added"),)),
    "traversal.csv": Expected((), ((2, "'..'"), (3, "'..'"))),
    "absolute.csv": Expected((), ((2, "outside"), (3, "outside"), (4, "outside"))),
    "url.csv": Expected((), ((2, "URL"), (3, "URL"))),
    "directory_as_path.csv": Expected((), ((2, "is a directory"),)),
    "bad_ext.csv": Expected((), ((2, "is not an image"),)),
    "duplicates.csv": Expected((2, 3, 4), (), ((5, "3 rows: 5, 6, 7"),)),
    "same_image_two_texts.csv": Expected((2, 3), (), ((3, "the same image"),)),
    "extra_columns.csv": Expected((2, 3, 4)),
    "reordered_columns.csv": Expected((2, 3, 4)),
    "long_text.csv": Expected((2,), (), ((2, "CLIP tokens"),)),
    "formula.csv": Expected((2,), (), ((2, "it was added"),)),
    "format_string.csv": Expected((2,)),
    "unicode_bidi.csv": Expected((2,)),
    "ratings_good.csv": Expected((2, 3)),
    "ratings_out_of_range.csv": Expected((2, 3), ((4, "'0'"), (5, "'4'"), (6, "'-1'"))),
    "ratings_not_int.csv": Expected((2, 3), ((4, "'2.5'"), (5, "'three'"), (6, "''"), (7, "'nan'"))),
    "ratings_expert_level_bad.csv": Expected((), ((2, "'0'"), (3, "'-2'"), (4, "'expert'"), (5, "''"))),
    "ratings_conflict.csv": Expected((2, 3)),
    "ratings_one_class.csv": Expected(None, ((None, "cannot train the Selector"),)),
    "ratings_missing_column.csv": Expected(None, ((1, "no column 'expert_level'"),)),
    "prompts_bad.txt": Expected((1, 6), ((5, "names no modality"), (7, "NUL"))),
}
NOT_A_TABLE = {"million_rows.txt"}  # says how to make one; test_tables.py times large ones


def read(path: Path) -> InputTable:
    if path.name.startswith("ratings"):
        return read_ratings(path)
    return read_prompts(path) if path.name.startswith("prompts") else read_dataset(path)


def manifest(shared_data: Path) -> dict[str, str]:
    """The verdict of every broken table, by its file name."""
    with (shared_data / "nasty" / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        verdicts = {row["file"]: row["verdict"] for row in csv.DictReader(stream)}
    return {Path(file).name: verdict for file, verdict in verdicts.items() if file.startswith("csv/")}


def agree(found: list[Problem], expected: tuple[tuple[int | None, str], ...]) -> bool:
    return len(found) == len(expected) and all(
        problem.row == row and words in problem.reason for problem, (row, words) in zip(found, expected, strict=True)
    )


def test_every_line_of_the_manifest_is_tested(shared_data: Path) -> None:
    assert set(manifest(shared_data)) - NOT_A_TABLE == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_nasty_table_gets_what_it_should(shared_data: Path, name: str) -> None:
    expected, verdict = EXPECTED[name], manifest(shared_data)[name]
    try:
        table = read(shared_data / "nasty" / "csv" / name)
    except (InputError, InputProblems) as refused:
        assert verdict in ("reject", "accept-or-reject")
        assert expected.rows is None
        assert agree(refused.problems, expected.errors), str(refused)
        return
    assert tuple(row.row for row in table.rows) == expected.rows
    assert agree(table.errors, expected.errors), table.errors
    assert agree([problem for problem in table.problems if problem.severity == "warning"], expected.warnings)
    if verdict == "reject":
        assert not table.rows
        assert table.errors
    if verdict == "accept":
        assert table.rows
        assert not table.errors
    if verdict == "partial":
        assert table.problems


def test_what_the_nasty_texts_become(shared_data: Path) -> None:
    tables = shared_data / "nasty" / "csv"
    texts = {name: read(tables / name).rows[0].text for name in EXPECTED if name in TEXTS}
    assert texts == TEXTS


TEXTS = {
    "quoted_newline.csv": "Fundus: line one line two",
    "no_prefix.csv": "Fundus: healthy retina",
    "prefix_mismatch.csv": "CT: chest",
    "formula.csv": "Fundus: =cmd|'/c calc'!A0",
    "format_string.csv": "Fundus: {0.__class__} %s ${HOME} `id` $(id)",
    "unicode_bidi.csv": "Fundus: default zero width \U0001f441",
}


def test_the_way_out_of_minims_header(shared_data: Path) -> None:
    path = shared_data / "nasty" / "csv" / "wrong_header_modal.csv"
    with pytest.raises(InputError, match=r"pass data.modality_column=modal or rename"):
        read_dataset(path)
    assert len(read_dataset(path, modality_column="modal").require(strict=True)) == 3


def test_patients_of_an_extra_column_are_used(shared_data: Path) -> None:
    rows = read_dataset(shared_data / "nasty" / "csv" / "extra_columns.csv").rows
    assert [row.patient_id for row in rows] == ["p0", "p1", "p2"]


def test_the_content_of_a_file_outside_is_never_shown(shared_data: Path) -> None:
    secrets = {line for line in Path("/etc/passwd").read_text().splitlines() if line}
    for name in ("traversal.csv", "absolute.csv", "url.csv"):
        told = "\n".join(map(str, read_dataset(shared_data / "nasty" / "csv" / name).problems))
        assert not any(secret in told for secret in secrets)


def test_the_development_tables_read_clean(shared_data: Path) -> None:
    table = read_dataset(shared_data / "dev" / "metadata.csv")
    assert (len(table.rows), table.errors) == (364, [])
    assert len(table.require(strict=True)) == 364
    for name, rows in {"ratings.csv": 328, "ratings_two_raters.csv": 445, "ratings_real.csv": 98}.items():
        ratings = read_ratings(shared_data / "dev" / name)
        assert (len(ratings.rows), ratings.problems) == (rows, [])
