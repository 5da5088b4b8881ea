from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from medsyn.data.prompts import store
from medsyn.data.prompts.rows import PromptRow, PromptSource, new_faults
from medsyn.data.prompts.store import BlockRanges, Item, ListIndex, open_lists
from medsyn.data.prompts.write import index_rows, resolve, write_lists
from medsyn.errors import InputError


def some_rows(count: int) -> list[PromptRow]:
    draw = random.Random(0)
    return [
        PromptRow(
            number,
            f"p{number}",
            f"CT: finding {number}, é",
            draw.choice(["CT", "OCT"]),
            n=draw.choice([None, 1, 4]),
            seed=draw.choice([None, 7]),
            num_inference_steps=draw.choice([None, 10, 20]),
            guidance_scale=draw.choice([None, 1.0, 2.5, 3.5]),
            negative_prompt=draw.choice([None, "blur"]),
            extra=draw.choice([{}, {"finding": "nodule", "age": number}]),
        )
        for number in range(count)
    ]


def expected(row: PromptRow, img_num: int) -> list[Item]:
    settings = (row.seed, row.num_inference_steps, row.guidance_scale, row.negative_prompt)
    return [
        Item(row.prompt_id, row.prompt, replicate, *settings, dict(row.extra)) for replicate in range(row.n or img_num)
    ]


def kind(item: Item) -> tuple[object, ...]:
    return item.num_inference_steps, None if item.guidance_scale is None else item.guidance_scale == 1


@pytest.mark.parametrize("img_num", [1, 3])
def test_every_item_is_there_once_with_all_that_the_list_says_of_it(tmp_path: Path, img_num: int) -> None:
    rows = some_rows(500)
    write_lists(rows, index_rows(rows), tmp_path / "lists")
    for modality, prompts in open_lists(tmp_path / "lists").items():
        wanted = [item for row in rows if row.modality == modality for item in expected(row, img_num)]
        found = prompts.items(0, sum(prompts.run_items(img_num)), img_num)
        assert sorted(found, key=str) == sorted(wanted, key=str)
        assert prompts.prompts == sum(row.modality == modality for row in rows)
        places = {row.prompt_id: place for place, row in enumerate(rows)}
        for _, run in itertools.groupby(found, key=kind):
            order = [places[item.prompt_id] for item in run]
            assert order == sorted(order), "within a run the list's own order"


def test_any_range_of_items_is_what_it_is_in_the_whole(tmp_path: Path) -> None:
    rows = some_rows(400)
    write_lists(rows, index_rows(rows), tmp_path / "lists")
    prompts = open_lists(tmp_path / "lists")["CT"]
    whole = prompts.items(0, sum(prompts.run_items(2)), 2)
    draw = random.Random(1)
    for _ in range(200):
        start = draw.randrange(len(whole))
        stop = min(start + draw.choice([0, 1, 2, 5, 70, 300]), len(whole))
        assert prompts.items(start, stop, 2) == whole[start:stop]
    ids = list(dict.fromkeys(item.prompt_id for item in whole))
    assert [prompts.prompt(number).prompt_id for number in range(prompts.prompts)] == ids


def test_what_is_in_a_block_can_share_a_batch_and_is_nowhere_else(tmp_path: Path) -> None:
    rows = some_rows(300)
    write_lists(rows, index_rows(rows), tmp_path / "lists")
    prompts = open_lists(tmp_path / "lists")["CT"]
    ranges = BlockRanges(tuple(prompts.run_items(2)), 4)
    blocks = [prompts.items(*ranges.items(number), 2) for number in range(ranges.count)]
    assert all(len({kind(item) for item in block}) == 1 and 1 <= len(block) <= 4 for block in blocks)
    assert [item for block in blocks for item in block] == prompts.items(0, ranges.item_count, 2)


def test_a_block_changes_only_with_what_is_before_it_in_its_run(tmp_path: Path) -> None:
    rows = [PromptRow(number, f"p{number}", "CT: x", "CT") for number in range(100)]
    more = [*rows, PromptRow(100, "new", "CT: x", "CT"), PromptRow(101, "slow", "CT: x", "CT", num_inference_steps=50)]
    found = []
    for name, its in (("one", rows), ("two", more)):
        write_lists(its, index_rows(its), tmp_path / name)
        found.append(open_lists(tmp_path / name)["CT"].items(0, 100, 1))
    assert found[0] == found[1]


def test_the_same_list_has_the_same_index_and_another_one_another(tmp_path: Path) -> None:
    rows = some_rows(50)
    assert index_rows(rows).text() == index_rows(list(rows)).text()
    other = [*rows[:-1], PromptRow(49, "p49", "CT: something else", rows[-1].modality)]
    assert index_rows(rows).text() != index_rows(other).text()


def test_a_written_list_is_a_prompt_list_itself(tmp_path: Path) -> None:
    rows = some_rows(80)
    index = index_rows(rows)
    write_lists(rows, index, tmp_path / "lists")
    source, faults = PromptSource.file(tmp_path / "lists" / "index.json"), new_faults("again")
    assert resolve(source, faults, tmp_path / "again").text() == index.text()
    assert faults.errors == []


def test_what_is_there_already_is_left_alone(tmp_path: Path) -> None:
    rows = some_rows(10)
    index = index_rows(rows)
    write_lists(rows, index, tmp_path / "lists")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "lists").iterdir()}
    write_lists(iter(()), index, tmp_path / "lists")  # the rows are not even asked for
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "lists").iterdir()} == before


@pytest.mark.parametrize("victim", ["ct.jsonl", "ct.offsets", "index.json"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_damaged_list_is_not_opened_and_made_again(tmp_path: Path, victim: str, how: str) -> None:
    rows = some_rows(200)
    index = index_rows(rows)
    write_lists(rows, index, tmp_path / "lists")
    path = tmp_path / "lists" / victim
    content = path.read_bytes()
    path.unlink() if how == "gone" else path.write_bytes(content[:-5])
    with pytest.raises(InputError, match="prepare the campaign again"):
        open_lists(tmp_path / "lists")
    write_lists(rows, index, tmp_path / "lists")
    assert path.read_bytes() == content


def test_other_content_of_the_same_size_is_found(tmp_path: Path) -> None:
    rows = some_rows(200)
    write_lists(rows, index_rows(rows), tmp_path / "lists")
    path = tmp_path / "lists" / "ct.jsonl"
    path.write_text(path.read_text().replace("finding 1", "finding 2", 1))
    assert store.damage(tmp_path / "lists", hashes=False) is None
    assert "ct.jsonl has changed since it was written" in str(store.damage(tmp_path / "lists", hashes=True))


def test_a_list_that_changes_while_it_is_read_is_not_written(tmp_path: Path) -> None:
    rows = some_rows(100)
    index = index_rows(rows)
    for other in (rows[:-1], [*rows, rows[0]], [*some_rows(99), PromptRow(1, "p99", "CT: y", rows[-1].modality)]):
        with pytest.raises(InputError, match="changed while it was being read"):
            write_lists(other, index, tmp_path / "lists")
        assert not (tmp_path / "lists").exists()


def test_an_index_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"format": 99, "modalities": {}}))
    with pytest.raises(InputError, match="a different format"):
        ListIndex.read(tmp_path)


MEASURE = """
import sys
from pathlib import Path
from medsyn.data.prompts.rows import PromptSource, new_faults
from medsyn.data.prompts.write import resolve
path = Path(sys.argv[1])
index = resolve(PromptSource.file(path), new_faults(path), Path(sys.argv[2]))
print(sum(run.prompts for runs in index.modalities.values() for run in runs))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_memory_does_not_grow_with_the_list(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    with path.open("w") as stream:
        stream.write("prompt,note\n")
        for number in range(40_000):
            stream.write(f'"CT: finding {number} of the left lung, axial slice","{"x" * 200}"\n')
    command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "lists")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, kilobytes = map(int, done.stdout.split())
    assert rows == 40_000
    assert kilobytes < 60 << 10, "two thirds of it are Python and the text's 16 MB are on disk"
