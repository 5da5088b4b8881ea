"""The documents' blocks, run as they are printed, page by page and in their order."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from unittest.mock import Mock, patch

import pytest

from medsyn import config as configuration
from medsyn.data.check import check_tables
from medsyn.data.prompts.formats import table_kind
from tests.docs import kinds, test_conversions
from tests.docs.pages import PAGES, Block, all_blocks, blocks, name
from tests.docs.sandbox import Sandbox
from tests.helpers import small_campaign
from tests.helpers.paths import ROOT

RUN = {
    page: [block for block in blocks(page) if block.language == "bash" and kinds.reason(block) is None]
    for page in PAGES
}
QUICK = [page for page in PAGES if any(kinds.kind(block) == "quick" for block in RUN[page])]
SLOW = [page for page in PAGES if any(kinds.kind(block) == "slow" for block in RUN[page])]


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    known = {"", "text", "bash", "console", "csv", "json", "yaml", "python"}
    assert {block.language for page in PAGES for block in blocks(page)} <= known


def test_every_reason_not_to_run_a_block_has_one() -> None:
    """And a block is left out for one reason only where no other would do, so that none is left unnoticed."""
    left_out = [block for block in all_blocks("bash") if kinds.kind(block) == "not run"]
    for pattern in kinds.NOT_RUN:
        assert any(re.search(pattern, block.text) for block in left_out), pattern


def test_blocks_of_python_are_run_by_the_tests_of_the_interface() -> None:
    from tests import test_public_api  # imports torch

    pages = {*test_public_api.DOCUMENTS, str(test_conversions.PAGE.relative_to(ROOT))}
    assert {block.page for block in all_blocks("python")} <= pages


def test_the_quick_start_is_what_the_small_campaign_runs() -> None:
    (quick_start,) = (block for block in blocks(ROOT / "README.md") if "launch.py submit" in block.text)
    typed = next(words for words in quick_start.commands if "launch.py" in words)
    typed = typed[typed.index("uv") :]  # behind what is set for it
    with patch.object(small_campaign.subprocess, "Popen", Mock()) as popen:
        small_campaign.submit(Path("somewhere"))
    ran = popen.call_args.args[0]
    assert ran == [sys.executable, *typed[2:], *small_campaign.SMALLER, "campaign.dir=somewhere"]


@pytest.mark.parametrize("page", QUICK, ids=name)
def test_what_takes_seconds(page: Path, tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    for block in RUN[page]:
        if kinds.kind(block) == "quick":
            sandbox.run(block)
    check_tables_shown(page, sandbox)


def check_tables_shown(page: Path, sandbox: Sandbox) -> None:
    """A table in a page is good, and where the page says what file it is, that file has its lines."""
    for number, block in enumerate(block for block in blocks(page) if block.language == "csv"):
        said = re.findall(r"`([\w/]+\.csv)`", block.before.rpartition("```\n")[2])
        file = sandbox.folder / said[-1] if said else sandbox.folder / "shown.csv"
        folder = file if file.is_file() else sandbox.folder / "mine" / table_of(block)
        shown = folder.with_name(f"shown-{number}.csv") if folder.is_file() else sandbox.folder / f"shown-{number}.csv"
        shown.write_text(block.text)
        assert check_tables([shown]) == [], block
        if folder.is_file() and table_kind(shown) not in ("prompts", "pairs"):
            assert set(block.text.splitlines()) <= set(folder.read_text().splitlines()), block


def table_of(block: Block) -> str:
    header = block.text.splitlines()[0]
    return {"path": "metadata.csv", "image_path": "ratings.csv"}.get(header.split(",")[0], "prompts.csv")


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, ids=name)
def test_what_takes_minutes(page: Path, tmp_path: Path, undisturbed: Path) -> None:
    sandbox = Sandbox(tmp_path)
    sandbox.take_campaign(undisturbed)
    said = {block: sandbox.run(block) for block in RUN[page] if kinds.kind(block) in ("quick", "slow")}
    for block, output in said.items():
        assert "Traceback" not in output, f"{block}\n{output}"
    if name(page) == "README.md":
        assert (sandbox.folder / "runs" / "mine" / "report.html").is_file()
        shown = sorted(path.name for path in (sandbox.folder / "out").iterdir())
        assert {"contact_sheet.png", "manifest.jsonl"} < set(shown)
    if name(page) == "docs/status.md":
        check_status_as_json(sandbox)


def check_status_as_json(sandbox: Sandbox) -> None:
    """`status --json` has the keys that the page lists, and no others."""
    (schema,) = (block for block in blocks(ROOT / "docs" / "status.md") if block.text.startswith("schema "))
    output = sandbox.run_script("uv run medsyn status runs/tiny --json", "docs/status.md")
    assert list(json.loads(output)) == re.findall(r"^(\w+)", schema.text, re.MULTILINE)


def test_what_is_shown_of_a_file_is_read_by_its_reader(tmp_path: Path) -> None:
    for block in all_blocks("json"):
        json.loads(block.text)
    for block in all_blocks("yaml"):  # all of them are configurations
        (tmp_path / "config.yaml").write_text(block.text)
        configuration.load(tmp_path / "config.yaml", environment={})
