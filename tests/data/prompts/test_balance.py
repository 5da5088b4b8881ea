from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from medsyn.data.prompts.balance import Balanced, as_text, balance
from medsyn.errors import InputError, InputProblems
from tests.helpers.prompt_table import read_prompts


def a_list(folder: Path) -> Path:
    lines = ["prompt,finding,site,seed"]
    lines += [f"CT: nodule {number},nodule,left,{number}" for number in range(30)]
    lines += ["CT: normal,none,right,", "CT: normal,none,right,", "OCT: drusen,drusen,left,", "OCT: nothing,,left,"]
    path = folder / "prompts.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def a_data_set(folder: Path) -> Path:
    path = folder / "metadata.csv"
    rows = [f"gone-{number}.png,{number},finding {number},ct,nodule,SECRET-{number}" for number in range(6)]
    path.write_text("\n".join(["path,id,Text,modality,Finding,patient_id", *rows, "a.png,1,OCT: x,OCT,,p"]) + "\n")
    return path


def images(balanced: Balanced) -> Counter[str]:
    found: Counter[str] = Counter()
    for row in balanced.rows:
        found[row.extra["finding"]] += row.n or 0
    return found


def test_every_cell_gets_its_number_of_images_however_many_captions_it_has(tmp_path: Path) -> None:
    balanced = balance(a_list(tmp_path), ["modality", "finding"], per_cell=7)
    assert images(balanced) == {"nodule": 7, "none": 7, "drusen": 7}
    assert [(cell.values, cell.captions, cell.most_of_one) for cell in balanced.cells] == [
        (("CT", "nodule"), 30, 1),
        (("CT", "none"), 1, 7),
        (("OCT", "drusen"), 1, 7),
    ]
    assert balanced.left_out == 1


@pytest.mark.parametrize("total", [3, 10, 11, 100])
def test_a_total_is_met_and_no_two_cells_differ_by_more_than_one(tmp_path: Path, total: int) -> None:
    found = images(balance(a_list(tmp_path), ["finding"], total=total))
    assert sum(found.values()) == total
    assert max(found.values()) - min(found.values()) <= 1


def test_the_seed_decides_which_captions_are_taken_and_nothing_else_does(tmp_path: Path) -> None:
    path = a_list(tmp_path)
    lines = path.read_text().splitlines()
    turned = tmp_path / "turned.csv"
    turned.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    first, again, other = (
        {row.prompt for row in balance(source, ["finding"], per_cell=5, draw=draw).rows}
        for source, draw in ((path, 0), (turned, 0), (path, 1))
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_what_is_written_is_a_prompt_list_with_everything_the_source_said(tmp_path: Path, suffix: str) -> None:
    balanced = balance(a_list(tmp_path), ["modality", "finding"], per_cell=4)
    path = tmp_path / f"balanced{suffix}"
    path.write_text(as_text(balanced, suffix))
    table = read_prompts(path)
    assert table.errors == []
    key = [(row.prompt_id, row.prompt, row.n, row.seed, row.extra["site"]) for row in table.rows]
    assert key == [(row.prompt_id, row.prompt, row.n, row.seed, row.extra["site"]) for row in balanced.rows]


def test_prompts_keep_the_ids_and_so_the_images_that_they_have_without_balancing(tmp_path: Path) -> None:
    path = a_list(tmp_path)
    ids = {row.prompt: row.prompt_id for row in reversed(read_prompts(path).rows)}
    assert all(row.prompt_id == ids[row.prompt] for row in balance(path, ["finding"], per_cell=2).rows)


def test_the_captions_of_a_data_set_are_prompts_and_nothing_of_a_patient_goes_along(tmp_path: Path) -> None:
    balanced = balance(a_data_set(tmp_path), ["Modality", "finding"], per_cell=4)
    assert {row.prompt for row in balanced.rows} < {f"CT: finding {number}" for number in range(6)}
    assert {tuple(row.extra) for row in balanced.rows} == {("Finding",)}
    assert balanced.left_out == 1
    text = as_text(balanced, ".csv")
    assert "gone" not in text and "SECRET" not in text


def test_a_list_is_not_balanced_by_what_may_identify_patients(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--by: 'patient_ID' may identify patients.*rename the column"):
        balance(a_data_set(tmp_path), ["patient_ID"], per_cell=1)


def test_what_may_identify_patients_stays_behind_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("prompt,finding,MRN\nCT: a,x,4711\n")
    balanced = balance(tmp_path / "list.csv", ["finding"], per_cell=1)
    assert [warning.key for warning in balanced.warnings] == ["MRN"] and "4711" not in as_text(balanced, ".csv")


def test_a_column_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no column 'stage'.*'Finding'"):
        balance(a_data_set(tmp_path), ["stage"], per_cell=1)
    with pytest.raises(InputError, match=r"no column 'stage'.*'modality', 'finding', 'site'; did you mean 'site'"):
        balance(a_list(tmp_path), ["stage"], per_cell=1)


def test_a_total_smaller_than_the_cells_and_bad_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fewer than the 3 cells"):
        balance(a_list(tmp_path), ["finding"], total=2)
    (tmp_path / "bad.csv").write_text("prompt,finding\nCT: a,x\nnothing,x\n")
    with pytest.raises(InputProblems, match="line 3, prompt"):
        balance(tmp_path / "bad.csv", ["finding"], total=2)


def test_modalities_of_a_part_of_the_body_are_cells_and_others_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,modality\nBrain MRI: a,MRI\nmass,MRI breast\nMRI: b,\nCT: c,\nMRI brain: d,\n")
    listed = ["Brain MRI", "Breast MRI"]
    balanced = balance(path, ["modality"], per_cell=2, modalities=listed)
    assert [(cell.values, cell.captions) for cell in balanced.cells] == [(("Brain MRI",), 2), (("Breast MRI",), 1)]
    assert (balanced.left_out, balanced.of_all_modalities) == (2, False)
    assert [(row.modality, row.prompt) for row in balanced.rows if row.modality == "Breast MRI"] == [
        ("Breast MRI", "Breast MRI: mass")
    ]
    assert "names no part of the body" in "".join(str(warning) for warning in balanced.warnings)
    assert [cell.values for cell in balance(path, ["modality"], per_cell=2).cells] == [("CT",), ("MRI",)]
