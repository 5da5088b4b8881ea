from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from medsyn.data.prompts.rows import ERRORS_SHOWN, PromptSource, check_prompts, new_faults
from medsyn.data.tables.read import InputTable
from medsyn.errors import InputError, InputProblems, Problem
from tests.helpers.prompt_table import read_prompts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write(folder: Path, content: str | bytes, name: str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def only_warning(table: InputTable) -> Problem:
    assert [problem.severity for problem in table.problems] == ["warning"], [str(p) for p in table.problems]
    return table.problems[0]


def test_a_text_file_of_prompts(folder: Path) -> None:
    lines = ["# a comment", "", "CT: chest, axial", "   ", "  # another: CT", "  Brain MRI: glioma  ", "CT: #3 rib"]
    table = read_prompts(write(folder, "\ufeff" + "\r\n".join(lines), "prompts.txt"))
    assert table.problems == []
    assert [(row.row, row.prompt, row.modality) for row in table.rows] == [
        (3, "CT: chest, axial", "CT"),
        (6, "Brain MRI: glioma", "MRI"),
        (7, "CT: #3 rib", "CT"),
    ]


def test_quotes_mean_nothing_in_a_text_file(folder: Path) -> None:
    table = read_prompts(write(folder, 'CT: a 5" tube\nCT: "quoted, twice\n', "prompts.txt"))
    assert [row.prompt for row in table.rows] == ['CT: a 5" tube', 'CT: "quoted, twice']


def test_a_bad_line_of_a_text_file_costs_that_line(folder: Path) -> None:
    table = read_prompts(write(folder, "CT: x\nultrasound: y\nhealthy\nCT:\nCT: a\0b\nOCT: z\n", "prompts.txt"))
    assert [row.prompt for row in table.rows] == ["CT: x", "OCT: z"]
    assert [problem.row for problem in table.errors] == [2, 3, 4, 5]
    assert "OCT, CT, X-Ray, MRI, Fundus" in table.errors[0].reason


@pytest.mark.parametrize("content", ["\n \n", "# only a comment\n"])
def test_a_prompt_list_without_prompts(folder: Path, content: str) -> None:
    with pytest.raises(InputError, match=r"empty|no rows"):
        read_prompts(write(folder, content, "prompts.txt"))


def test_another_kind_of_prompt_list(folder: Path) -> None:
    with pytest.raises(InputError, match=r"\.csv, \.jsonl, \.parquet or \.txt file"):
        read_prompts(write(folder, "CT: x", "prompts.json"))


def test_a_csv_of_prompts(folder: Path) -> None:
    content = 'id,kind,prompt,modality\np1,x,"CT: chest, axial",\np2,x,glioma,BrainMRI\np3,x,"Chest CT: x",Fundus\n'
    table = read_prompts(write(folder, content, "prompts.CSV"))
    assert [(row.prompt_id, row.prompt, row.modality) for row in table.rows] == [
        ("p1", "CT: chest, axial", "CT"),
        ("p2", "MRI: glioma", "MRI"),
        ("p3", "Chest CT: x", "Fundus"),
    ]
    assert table.errors == []
    assert any("the text says CT, the modality is Fundus" in problem.reason for problem in table.problems)


def test_a_prompt_needs_a_modality(folder: Path) -> None:
    table = read_prompts(write(folder, "prompt,modality\nhealthy,\nhealthy,Echo\nhealthy,CT\n", "prompts.csv"))
    assert [(problem.row, problem.key) for problem in table.errors] == [(2, "prompt"), (3, "modality")]
    assert all("OCT, CT, X-Ray, MRI, Fundus" in problem.reason for problem in table.errors)


def test_over_long_prompts_are_counted(folder: Path) -> None:
    long = "CT: " + "nodule " * 80
    table = read_prompts(write(folder, f"{long}\nCT: x\n{long} right\n", "prompts.txt"))
    assert "(2 rows: 1, 3)" in only_warning(table).reason
    assert len(table.rows) == 3


def test_unquoted_commas_in_a_prompt(folder: Path) -> None:
    with pytest.raises(InputProblems, match="2 fields, 1 expected"):
        read_prompts(write(folder, "prompt\nCT: chest, axial\n", "prompts.csv"))


@pytest.mark.parametrize("name", ["a/b", "../x", ".hidden", "-x", "a b", "é", "a" * 65, "x\\y", "$(id)", "a\u202eb"])
def test_ids_are_file_names(folder: Path, name: str) -> None:
    table = read_prompts(write(folder, f"id,prompt\n{name},CT: x\nOK_1.a-b,CT: y\n", "prompts.csv"))
    assert [(problem.row, problem.key) for problem in table.errors] == [(2, "id")]
    assert [row.prompt_id for row in table.rows] == ["OK_1.a-b"]


def test_ids_are_unique_on_every_file_system(folder: Path) -> None:
    table = read_prompts(write(folder, "id,prompt\na,CT: x\nb,CT: y\nA,CT: z\na,CT: x\n", "prompts.csv"))
    assert [(problem.row, problem.key) for problem in table.errors] == [(4, "id"), (5, "id")]
    assert all("is already the id of line 2" in problem.reason for problem in table.errors)


def test_derived_ids_never_change(folder: Path) -> None:
    """Written down: images are named and seeded by them."""
    (row,) = read_prompts(write(folder, "Chest X-ray: clear lungs\n", "prompts.txt")).rows
    assert row.prompt_id == "x-ray-8b093c6c882933d7"


def test_derived_ids_do_not_depend_on_the_order(folder: Path) -> None:
    lines = ["CT: a", "CT: b", "CT: a", "OCT: a", "CT: a", "MRI: c"]
    ids = [row.prompt_id for row in read_prompts(write(folder, "\n".join(lines), "prompts.txt")).rows]
    back = [row.prompt_id for row in read_prompts(write(folder, "\n".join(lines[::-1]), "prompts.txt")).rows]
    assert len(set(ids)) == len(lines)
    assert set(ids) == set(back)
    assert (ids[1], ids[3], ids[5]) == (back[4], back[2], back[0])
    assert all(re.fullmatch(r"(ct|oct|mri)-[0-9a-f]{16}", prompt_id) for prompt_id in ids)


def test_a_prompt_has_one_derived_id_however_the_list_is_written(folder: Path) -> None:
    text = read_prompts(write(folder, "CT:  chest,\taxial\n", "prompts.txt")).rows[0]
    table = read_prompts(write(folder, 'modality,prompt,note\nct,"chest, axial",x\n', "prompts.csv")).rows[0]
    assert text.prompt == table.prompt == "CT: chest, axial"
    assert text.prompt_id == table.prompt_id


def test_a_further_prompt_leaves_the_other_ids_alone(folder: Path) -> None:
    before = read_prompts(write(folder, "CT: a\nCT: b\n", "prompts.txt")).rows
    after = read_prompts(write(folder, "CT: new\nCT: a\nCT: b\n", "prompts.txt")).rows
    assert [row.prompt_id for row in before] == [row.prompt_id for row in after[1:]]


# Further columns and settings of a prompt's own -------------------------------------------------------------------

SETTINGS = {"n": 3, "seed": 7, "num_inference_steps": 20, "guidance_scale": 4.5, "negative_prompt": "text, blur"}


def as_csv(folder: Path, rows: list[dict[str, Any]]) -> Path:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with (folder / "prompts.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
    return folder / "prompts.csv"


def as_jsonl(folder: Path, rows: list[dict[str, Any]]) -> Path:
    return write(folder, "".join(json.dumps(row) + "\n" for row in rows), "prompts.jsonl")


def as_parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    columns = dict.fromkeys(column for row in rows for column in row)
    table = pyarrow.table({column: [row.get(column) for row in rows] for column in columns})
    parquet.write_table(table, folder / "prompts.parquet", row_group_size=2)
    return folder / "prompts.parquet"


FORMATS = [as_csv, as_jsonl, as_parquet]
Format = Callable[[Path, list[dict[str, Any]]], Path]


@pytest.mark.parametrize("form", FORMATS)
def test_a_prompt_may_have_its_own_settings_in_every_format(folder: Path, form: Format) -> None:
    plain = {"prompt": "CT: b"}
    table = read_prompts(form(folder, [{"id": "a", "prompt": "CT: a", "modality": "ct", **SETTINGS}, plain]))
    assert table.problems == []
    first, second = table.rows
    assert {key: getattr(first, key) for key in SETTINGS} == SETTINGS
    assert [getattr(second, key) for key in SETTINGS] == [None] * 5


@pytest.mark.parametrize("form", FORMATS)
def test_further_columns_are_kept(folder: Path, form: Format) -> None:
    table = read_prompts(form(folder, [{"prompt": "CT: a", "Finding": "nodule", "site": "left"}]))
    assert table.problems == []
    assert table.rows[0].extra == {"Finding": "nodule", "site": "left"}


@pytest.mark.parametrize("column", ["patient_id", "Patient's Name", "MRN", "patient_birth_date", "accession_number"])
def test_nothing_of_a_patient_is_carried_along(folder: Path, column: str) -> None:
    path = as_csv(folder, [{"prompt": "CT: a", column: "p-1", "site": "left"}])
    warning = only_warning(read_prompts(path))
    assert "it may identify patients" in warning.reason and "data.keep_columns" in warning.reason
    assert read_prompts(path).rows[0].extra == {"site": "left"}
    faults = new_faults(path)
    (row,) = PromptSource.file(path, keep=[column.upper()]).rows(faults)
    assert row.extra == {column: "p-1", "site": "left"} and not faults.warnings()


@pytest.mark.parametrize("form", FORMATS)
def test_the_case_of_a_column_does_not_count(folder: Path, form: Format) -> None:
    table = read_prompts(form(folder, [{"Prompt": "CT: a", "GUIDANCE_SCALE": 2, "Seed": 0}]))
    assert (table.rows[0].guidance_scale, table.rows[0].seed) == (2.0, 0)


def test_whole_numbers_may_be_written_as_spreadsheets_and_pandas_write_them(folder: Path) -> None:
    table = read_prompts(write(folder, "prompt,n,seed\nCT: a,3.0,\nCT: b,,5.0\nCT: c,1e3,\n", "prompts.csv"))
    assert [(row.n, row.seed) for row in table.rows] == [(3, None), (None, 5), (1000, None)]


@pytest.mark.parametrize("form", [as_jsonl, as_parquet])
def test_a_missing_number_of_a_typed_column_is_empty(folder: Path, form: Format) -> None:
    missing = {"n": float("nan"), "seed": float("nan"), "guidance_scale": float("nan")}
    table = read_prompts(form(folder, [{"prompt": "CT: a", "n": 2.0}, {"prompt": "CT: b", **missing}]))
    assert table.problems == []
    assert [(row.n, row.seed, row.guidance_scale) for row in table.rows] == [(2, None, None), (None, None, None)]


def test_values_of_parquet_keep_their_kind_and_missing_ones_are_none(folder: Path) -> None:
    rows = [{"prompt": "CT: a", "age": 61, "score": float("nan"), "seen": True, "day": date(2024, 5, 1)}]
    assert read_prompts(as_parquet(folder, rows)).rows[0].extra == {
        "age": 61,
        "score": None,
        "seen": True,
        "day": "2024-05-01",
    }


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("n", 0, "'0' is not a whole number from 1"),
        ("n", -2, "'-2' is not a whole number"),
        ("n", "many", "'many' is not a whole number"),
        ("n", 1.5, "'1.5' is not a whole number"),
        ("seed", -1, "'-1' is not a whole number from 0"),
        ("seed", 2**63, "is not a whole number"),
        ("num_inference_steps", 1001, "from 1 to 1000"),
        ("guidance_scale", 0.5, "'0.5' is not a number from 1"),
        ("guidance_scale", "inf", "'inf' is not a number"),
        ("guidance_scale", "none", "'none' is not a number from 1 to 1000; leave it empty"),
        ("n", "nan", "'nan' is not a whole number from 1 to 1000000; leave it empty"),
        ("seed", "NaN", "'NaN' is not a whole number"),
        ("prompt", "", "says nothing"),
        ("prompt", "CT: " + "x" * 10**6, "is longer than 10000 characters"),
        ("prompt", "CT: a\0b", "contains a NUL byte"),
        ("prompt", "CT: a\nb", "contains a line break"),
        ("negative_prompt", "a\nb", "contains a line break"),
        ("modality", "PET", "is not one of the five modalities"),
        ("id", "a/b", "is not a valid id"),
        ("note", "x\0", "contains a NUL byte"),
    ],
)
@pytest.mark.parametrize("form", FORMATS)
def test_a_bad_value_is_told_with_its_row_and_column(
    folder: Path, form: Format, column: str, value: Any, says: str
) -> None:
    rows = [{"prompt": "CT: a", "modality": "CT"}, {"prompt": "CT: b", "modality": "CT", column: value}]
    table = read_prompts(form(folder, [{key: str(value) for key, value in row.items()} for row in rows]))
    (problem,) = table.errors
    line = 3 if form is as_csv else 2
    assert (problem.row, problem.key) == (line, column)
    assert says in problem.reason
    assert len(str(problem)) < 400 and "\n" not in str(problem)
    assert [row.prompt for row in table.rows] == ["CT: a"]


@pytest.mark.parametrize("value", [["a"], {"b": 1}, "\ud800"])
def test_a_value_that_no_table_can_hold(folder: Path, value: Any) -> None:
    table = read_prompts(as_jsonl(folder, [{"prompt": "CT: a", "note": value}, {"prompt": value}]))
    assert [(problem.row, problem.key) for problem in table.errors] == [(1, "note"), (2, "prompt")]


def test_every_fault_of_a_row_is_told(folder: Path) -> None:
    table = read_prompts(write(folder, "prompt,modality,n,seed\nCT: a,PET,0,x\n", "prompts.csv"))
    assert [problem.key for problem in table.errors] == ["modality", "n", "seed"]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("column", "right"),
    [
        ("guidence_scale", "guidance_scale"),
        ("steps", "num_inference_steps"),
        ("cfg", "guidance_scale"),
        ("negativePrompt", "negative_prompt"),
        ("img_num", "n"),
        ("modal", "modality"),
    ],
)
def test_a_misspelt_column_is_refused_with_the_right_name(folder: Path, form: Format, column: str, right: str) -> None:
    with pytest.raises(InputProblems, match=f"rename it to '{right}'") as caught:
        read_prompts(form(folder, [{"prompt": "CT: a", column: "5"}, {"prompt": "CT: b", column: "5"}]))
    assert [problem.key for problem in caught.value.problems] == [column]


@pytest.mark.parametrize("form", [as_csv, as_parquet])
@pytest.mark.parametrize("column", ["prompts", "Text", "caption"])
def test_a_missing_prompt_column_is_told_with_what_may_be_meant(folder: Path, form: Format, column: str) -> None:
    with pytest.raises(InputError, match=f"no column 'prompt'.*rename '{column}' to 'prompt'"):
        read_prompts(form(folder, [{column: "CT: a", "modality": "CT"}]))


@pytest.mark.parametrize("name", ["\ud800", "a\0", "a\nb", "x" * 101])
def test_a_column_s_name_is_a_word(folder: Path, name: str) -> None:
    with pytest.raises(InputProblems, match="is not a valid column name"):
        read_prompts(as_jsonl(folder, [{"prompt": "CT: a", name: "x"}]))


def test_a_list_has_not_any_number_of_columns(folder: Path) -> None:
    rows = [{"prompt": "CT: a", f"c{number}": "x"} for number in range(65)]
    with pytest.raises(InputError, match="more than 64 passthrough columns"):
        read_prompts(as_jsonl(folder, rows))


def test_json_lines_that_are_no_objects_cost_their_line(folder: Path) -> None:
    lines = ["{", "[1]", '{"modality": "CT"}', "", '{"prompt": "CT: a"}']
    table = read_prompts(write(folder, "\n".join(lines), "prompts.jsonl"))
    assert [problem.row for problem in table.errors] == [1, 2, 3]
    assert [row.row for row in table.rows] == [5]


def test_what_is_no_parquet_is_refused_in_one_line(folder: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as Parquet") as caught:
        read_prompts(write(folder, "prompt\nCT: a\n", "prompts.parquet"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["none.csv", "none.jsonl", "none.parquet", "none.txt"])
def test_a_list_that_is_not_there(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        read_prompts(folder / name)


@pytest.mark.parametrize("form", FORMATS)
def test_a_list_without_rows(folder: Path, form: Format) -> None:
    path = form(folder, [{"prompt": "CT: a"}])
    if form is as_parquet:
        parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), path)
    else:
        path.write_text("prompt\n" if form is as_csv else "\n")
    with pytest.raises(InputError, match=r"no rows|empty"):
        read_prompts(path)


def test_of_many_errors_the_first_are_shown_and_the_others_counted(folder: Path) -> None:
    problems = check_prompts(write(folder, "prompt\n" + "x\n" * 1000, "prompts.csv"))
    assert len(problems) == ERRORS_SHOWN + 1
    assert problems[-1].reason == f"and {1000 - ERRORS_SHOWN} more errors, which are not shown"


def test_a_prompt_that_is_listed_twice_is_told_unless_it_differs(folder: Path) -> None:
    lines = ["id,prompt,seed", ",CT: a,", ",CT: a,", "x,CT: a,", ",CT: a,3", ",CT: b,"]
    table = read_prompts(write(folder, "\n".join(lines), "prompts.csv"))
    assert "the same prompt as in an earlier row" in only_warning(table).reason
    assert only_warning(table).row == 3
    assert len(table.rows) == 5


def test_a_column_that_is_there_twice_refuses_the_list(folder: Path) -> None:
    for header in ("prompt,prompt", "prompt,Prompt", "prompt,x,x"):
        with pytest.raises((InputError, InputProblems), match=r"2 columns have this name; keep one[^;]*$"):
            read_prompts(write(folder, f"{header}\n" + ",".join(["CT: a"] * (header.count(",") + 1)), "prompts.csv"))
