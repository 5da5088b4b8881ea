from __future__ import annotations

import re
from pathlib import Path

import pytest
from prompt_table import read_prompts

from medsyn.data.tables import Table
from medsyn.errors import InputError, InputProblems, Problem


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write(folder: Path, content: str | bytes, name: str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def only_warning(table: Table) -> Problem:
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
    assert all("of line 2 already" in problem.reason for problem in table.errors)


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
