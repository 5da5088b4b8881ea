from __future__ import annotations

import json
from pathlib import Path

import pytest

from medsyn.data.prompts.formats import clash, passthrough_name
from medsyn.data.prompts.rows import check_prompts


@pytest.mark.parametrize("name", ["sha256", "SHA256", "extra", "item_fingerprint", "archive", "dicom_offset", "mode"])
def test_a_column_called_like_one_of_the_tables_gets_a_prefix(name: str) -> None:
    assert passthrough_name(name) == f"prompt_{name}"
    assert passthrough_name("site") == "site" and passthrough_name("prompt_sha256") == "prompt_sha256"


def test_two_columns_that_would_have_one_name_clash() -> None:
    assert clash("prompt_sha256", ["site", "sha256"]) == "sha256"
    assert clash("sha256", ["prompt_SHA256"]) == "prompt_SHA256"
    assert clash("sha256", ["sha256", "site"]) is None


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_list_with_two_columns_of_one_name_in_the_tables_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"list{suffix}"
    if suffix == ".csv":
        path.write_text("prompt,sha256,prompt_sha256\nCT: nodule,1,2\n")
    else:
        rows = [{"prompt": "CT: nodule", "sha256": 1}, {"prompt": "CT: cyst", "prompt_sha256": 2}]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (problem,) = check_prompts(path)
    assert problem.source == str(path) and problem.severity == "error"
    assert problem.key == "prompt_sha256" and "'sha256'" in problem.reason and "rename" in problem.reason
