"""What the documents point at is there: links, paths, configuration keys, and tables that repeat what the code says."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from medsyn import config as configuration
from medsyn import errors
from medsyn.campaign.slurm import sbatch, site
from medsyn.campaign.status.state import STATES
from medsyn.campaign.worker import STAGE_FUNCTIONS
from medsyn.cli import app
from medsyn.config import Config
from medsyn.data.prompts.formats import COLUMNS
from medsyn.specification import ENVIRONMENT, OTHER_KEYS, RENAMED
from medsyn.stage import STAGES
from tests import test_packaging
from tests.docs.pages import (
    PAGES,
    all_blocks,
    anchors,
    blocks,
    in_backticks,
    inline_code,
    links,
    name,
    paths_of_tree,
    table,
    text,
)
from tests.helpers.paths import ROOT

ARCHITECTURE, CONTRIBUTING = ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md"
CONFIGURATION, SLURM = ROOT / "docs" / "configuration.md", ROOT / "docs" / "slurm.md"

# Paths that are in no checkout, and what they are. Those of a campaign are looked for in one, further below.
IN_A_CAMPAIGN = re.compile(r"^(tasks|work|inputs|cache|shards|runs/tiny|<mode>)(/|$)|^(part-|block-|blocks-|\.block)")
IN_A_FOLDER_OF_IT = {"campaign.json", "config.yaml", "ledger.jsonl", "report.html", "index.json", "made-with.json"}
IN_A_FOLDER_OF_IT |= {
    "<modality>.offsets",
    "manifest.jsonl",
    "attempts.jsonl",
    "timing.json",
    "metrics.jsonl",
    "summary.json",
    "manifest.parquet",
    "attempts.parquet",
    "images.tar",
}
ELSEWHERE = {
    r"^(mine|runs|trial|out)/": "what the blocks of a page make",
    r"^(metadata|ratings|prompts|balanced)\.csv$|^metadata\.jsonl$": "a user's tables",
    r"^set(-2)?(\.key)?\.(html|json)$|^ratings-<set>-<rater>\.json$": "what `rate export` and its page write",
    r"^(pairs\.csv|sessions\.parquet)$": "what `rate import` writes",
    r"^medsyn-rating-(set|key|answers)/1$": "names of formats",
    r"^(/|~)": "of the machine",
    r"^\.[a-z0-9.]+$": "a suffix of files",
    r"^(set-aside|quarantine)(/|$)": "where verify --repair moves things",
    r"^\.\./shared/": "images for development, beside the checkout",
    r"^\.venv": "the environment that uv makes",
    r"^(exclude\.csv|nearest-honest\.png|copies/|copies\.(json|png))": "what `medsyn copies` writes",
    r"^proctrack/": "a setting of Slurm's",
    r"^(unet/|config\.json|text_encoder/config\.json)$": "of a diffusers directory",
    r"^checkpoint-1000/unet$": "what a fine-tuning leaves that is asked to",
    r"^checkpoints/<timestamp>/epoch_10$": "what the scorers' stages leave that are asked to",
    r"^(start\.sh|scripts/train\.sh|main\.py|generate\.py)$": "the specification's scripts",
}
_SUFFIXES = "py|md|yaml|yml|csv|json|jsonl|def|toml|txt|sh|html|parquet|tar|offsets"
_PATH = re.compile(rf"^[\w.~<>{{}}*,/-]*/[\w.~<>{{}}*,/-]*$|^[\w<>.-]+\.({_SUFFIXES})$|^(Dockerfile|LICENSE)$")


def is_path(code: str) -> bool:
    return bool(_PATH.match(code)) and not re.match(r"^(N/A|n/a|\d+/\d+)$", code)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match("https?://", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_path_exists_or_is_known_to_be_elsewhere(page: Path) -> None:
    for code in filter(is_path, inline_code(page)):
        here = (ROOT / code).exists() or (page.parent / code).exists()
        campaign = IN_A_CAMPAIGN.search(code) or code in IN_A_FOLDER_OF_IT
        assert here or campaign or any(re.search(pattern, code) for pattern in ELSEWHERE), code


# Of a campaign on Slurm, or of one at work, or made by a command.
NOT_IN_A_FINISHED_CAMPAIGN = (
    *("tasks/slurm", "images.tar", ".block-", ".dcm", "manifest.parquet", "attempts.parquet"),
    "finetune/all",  # of one with finetune.together
    "evaluate/all/copies",  # of one with evaluation.copies
    "inputs/models/",  # of one whose weights are a single file
)


def shown_of_a_campaign() -> Iterator[tuple[str, str]]:
    """(page, pattern) of every path of a campaign that a text or a picture shows."""
    for page in PAGES:
        for code in inline_code(page):
            if is_path(code) and IN_A_CAMPAIGN.search(code):
                yield name(page), re.sub(r"<[^>]*>", "*", code)
    for block in all_blocks("text"):
        if block.text.startswith("runs/tiny/"):
            yield from ((block.page, path) for path in paths_of_tree(block.text.partition("\n")[2]))


@pytest.mark.slow
def test_what_is_shown_of_a_campaign_is_in_one(undisturbed: Path) -> None:
    """A path may be shown from the campaign's directory or from a folder of it."""
    missing = [
        (page, path)
        for page, path in shown_of_a_campaign()
        if not any(part in path for part in NOT_IN_A_FINISHED_CAMPAIGN)
        and not any(undisturbed.glob(path.removeprefix("runs/tiny/").rstrip("/")))
        and not any(undisturbed.glob("**/" + path.rstrip("/")))
    ]
    assert missing == []
    assert sum(page == "README.md" for page, _ in shown_of_a_campaign()) > 10


KEYS = set(configuration._FIELD_TYPES)
SITE_KEYS = set(site._known_keys())


def is_key(dotted: str) -> bool:
    known = {*KEYS, *SITE_KEYS, *Config.model_fields, *OTHER_KEYS, *RENAMED}
    return dotted in known or any(key.startswith(dotted + ".") for key in known)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_configuration_key_is_one_and_takes_the_value_that_is_shown(page: Path) -> None:
    for code in inline_code(page):
        shown = re.match(r"^([a-z_0-9]+(?:\.[a-z_0-9]+)+)(?:(=|: )(.*))?$", code)
        if (
            shown is None
            or is_path(code)
            or shown[1].split(".")[0] not in {*Config.model_fields, "container", "stages"}
        ):
            continue
        assert is_key(shown[1]), code
        if shown[2] and shown[1] in KEYS:
            configuration.load(ROOT / "configs" / "tiny.yaml", [f"{shown[1]}={shown[3]}"], environment={})


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_name_of_python_is_one(page: Path) -> None:
    for code in inline_code(page):
        if re.match(r"^medsyn(\.\w+)+$", code):
            module, _, attribute = code.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute) or importlib.import_module(code), code


def test_every_key_is_in_the_file_that_explains_them() -> None:
    tree = configuration.read_tree(ROOT / "configs" / "tiny.yaml")
    given = {key for key, _ in configuration.flatten(tree)}
    assert KEYS - given == set()


def test_environment_variables_are_those_that_are_read() -> None:
    rows = table(CONFIGURATION, "variable", "key")
    assert {in_backticks(variable)[0]: in_backticks(key)[0] for variable, key in rows} == ENVIRONMENT
    switches = {in_backticks(variable)[0] for variable, _ in rows if "(0 or 1)" in variable}
    assert switches == {variable for variable, key in ENVIRONMENT.items() if configuration._FIELD_TYPES[key] is bool}


def codes() -> set[int]:
    return {value for key, value in vars(errors).items() if key.startswith("EXIT_")}


def test_exit_codes_are_all_of_them() -> None:
    rows = table(CONFIGURATION, "code", "of a task", "of `submit --cluster local` and `resume --cluster local`")
    assert {int(row[0]) for row in rows} == codes() | {app.EXIT_USAGE}


def test_the_batch_script_does_with_exit_codes_what_the_page_says() -> None:
    rows = {code: does for code, _, does in table(SLURM, "code", "meaning", "what the batch script does")}
    assert {int(code) for code in rows if code != "other"} == codes() - {errors.EXIT_FAILED, errors.EXIT_INTERRUPTED}
    script = "\n".join(sbatch.after_task(Path("folder"), Path("bad"), 3))
    final = re.search(r"case \$rc in ([\d|]+)\) exit", script)
    assert final
    assert final[1].split("|") == [code for code, does in rows.items() if does.startswith("ends the job")]
    assert re.search(rf"if \[ \$rc -eq {errors.EXIT_BAD_NODE} \]", script) and "away from this node" in rows["78"]


def test_states_are_those_of_status() -> None:
    assert [row[0] for row in table(ROOT / "docs" / "status.md", "state", "means", "goes on")] == list(STATES)


def test_keys_of_a_site_profile_are_all_of_them() -> None:
    rows = {tuple(in_backticks(cells[0])): cells for cells in table(SLURM, "key", "")}
    assert sorted(key for keys in rows for key in keys) == sorted(site.Site.model_fields)
    assert set(in_backticks(rows["container",][1])) == set(site.Container.model_fields)
    assert set(in_backticks(rows["stages",][1])) == {*STAGES, site.GATE}
    own = [keys for keys in rows if set(keys) <= set(site.Resources.model_fields)]
    assert sorted(key for keys in own for key in keys) == sorted(site.Resources.model_fields)
    assert f"the keys of the first {['', 'one', 'two', 'three', 'four', 'five'][len(own)]} rows again" in text(SLURM)
    assert list(rows)[: len(own)] == own


def test_columns_of_prompt_lists_are_those_that_are_read() -> None:
    rows = table(ROOT / "docs" / "prompt-lists.md", "column", "meaning", "if empty")
    assert sorted(column for row in rows for column in in_backticks(row[0])) == sorted(COLUMNS)


def test_columns_of_ratings_are_those_of_its_example() -> None:
    page = ROOT / "docs" / "data.md"
    columns = [[column for row in table_rows for column in in_backticks(row[0])] for table_rows in column_tables(page)]
    headers = [block.text.splitlines()[0].split(",") for block in blocks(page) if block.language == "csv"]
    assert columns[1] == headers[1]
    assert set(columns[0]) - {"patient"} == set(headers[0]) - {"finding"}


def column_tables(page: Path) -> list[list[list[str]]]:
    """The rows of every table of columns that a page has."""
    found = re.findall(r"^\| column \| meaning \|\n\|[ -|]+\|\n((?:\|.*\n)+)", text(page), re.MULTILINE)
    return [[row.strip("|").split(" | ") for row in rows.splitlines()] for rows in found]


def test_stages_are_where_the_picture_says() -> None:
    rows = table(ARCHITECTURE, "stage", "one task for each", "runs", "makes")
    assert [in_backticks(row[0])[0] for row in rows] == list(STAGES)
    for stage, _, runs, _ in rows:
        module = STAGE_FUNCTIONS[in_backticks(stage)[0]].partition(":")[0]
        assert in_backticks(runs) == [module.replace(".", "/") + ".py"]


# What has to be findable by the name of a file alone, and what that file then has.
FOUND_BY_NAME = {
    "medsyn/campaign/slurm/sbatch.py": "def sbatch_options(",
    "medsyn/generation/filter.py": "class Rule",
    "medsyn/campaign/state/markers.py": "def done_marker(",
    "medsyn/generation/write/png.py": "def encode_png(",
    "medsyn/campaign/plan/shards.py": "def choose_sizes(",
    "medsyn/data/images/dicom_window.py": "def grey_levels(",
}


def test_six_things_are_where_a_stranger_looks_for_them() -> None:
    section = text(ARCHITECTURE).partition("## Where do I find ...")[2].partition("A room is")[0]
    rows = re.findall(r"^\| the .*\? \| `(.*)` \|$", section, re.MULTILINE)
    assert rows == list(FOUND_BY_NAME)
    for path, what in FOUND_BY_NAME.items():
        assert what in (ROOT / path).read_text(), path


def test_every_room_is_in_the_table_of_rooms() -> None:
    section = text(ARCHITECTURE).partition("A room is")[2].partition("Imports go one way")[0]
    listed = set(in_backticks(section))
    rooms = {path.parent.relative_to(ROOT) for path in ROOT.glob("medsyn/*/**/__init__.py")}
    assert {f"{room}/" for room in rooms} - listed == set()


def test_imports_go_the_way_that_the_picture_says() -> None:
    (picture,) = (block for block in blocks(ARCHITECTURE) if block.text.startswith("medsyn/cli/"))
    *lines, above, lowest = [
        {Path(path).name.removesuffix(".py") for path in re.findall(r"medsyn/\w+(?:/|\.py)", line)}
        for line in picture.text.splitlines()
    ]
    beside = {"__main__", "doctor"}
    levels = [rooms - beside for rooms in reversed(test_packaging.LAYERS[""]) if rooms - beside]
    assert [*lines, above | lowest] == levels


def test_the_twelve_rules_are_twelve() -> None:
    rules = text(ARCHITECTURE).partition("## Rules")[2]
    assert re.findall(r"^(\d+)\. \*\*", rules, re.MULTILINE) == [str(number) for number in range(1, 13)]


def test_markers_of_tests_are_those_of_the_project() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    known = {marker.partition(":")[0] for marker in options["markers"]}
    assert {in_backticks(row[0])[0] for row in table(CONTRIBUTING, "marker", "what its tests do")} == known
