"""The keys of records and tables: said once, and the same on disk as ever."""

from __future__ import annotations

import subprocess
import sys

import pytest

from medsyn.generation import filter as rules
from medsyn.generation.filter import Candidate, Rule, Trial
from medsyn.records import AttemptRecord, ImageRecord, Schema, columns, fields, json_types, markdown
from tests.helpers.paths import ROOT

IMAGE_COLUMNS = """
id string, prompt string, modality string, mode string, replicate int32, seed int64, accepted bool, reason string,
attempts int32, attempt int32, selector float64, policy float64, selector_spread float64, policy_spread float64,
unfamiliar bool, precision string, num_inference_steps int32, guidance_scale float64, negative_prompt string, file
string, member string, offset int64, bytes int64, sha256 string, width int32, height int32, dicom string, dicom_sha256
string, model_fingerprint string, config_fingerprint string, scorers_fingerprint string, quality_threshold float64,
synthetic bool, scheduler string, batch_size int32, dtype string, attention string, container string, software string,
device string, block int32, gpu_seconds float64
"""
ATTEMPT_COLUMNS = """
id string, replicate int32, modality string, mode string, attempt int32, seed int64, finite bool, selector float64,
policy float64, selector_spread float64, policy_spread float64, unfamiliar bool, precision string, passed bool, reason
string, chosen bool, block int32, gpu_seconds float64
"""


@pytest.mark.parametrize(("schema", "expected"), [(ImageRecord, IMAGE_COLUMNS), (AttemptRecord, ATTEMPT_COLUMNS)])
def test_the_tables_have_the_columns_that_readers_know(schema: Schema, expected: str) -> None:
    """Campaigns on disk and what users wrote for them read these: another name, type or order is a change of format."""
    assert list(columns(schema).items()) == [tuple(column.split()) for column in expected.split(",")]


@pytest.mark.parametrize("schema", [ImageRecord, AttemptRecord])
def test_a_key_that_is_not_always_there_says_when_it_is(schema: Schema) -> None:
    assert all((field.name in schema.__optional_keys__) == bool(field.about.when) for field in fields(schema))


@pytest.mark.parametrize("schema", [ImageRecord, AttemptRecord])
def test_the_documentation_has_every_key_as_the_schema_has_it(schema: Schema) -> None:
    assert markdown(schema) in (ROOT / "docs" / "output.md").read_text(), "`python -m medsyn.records` prints the tables"


def test_the_command_of_the_documentation_prints_both_tables_and_imports_nothing_heavy() -> None:
    run = "runpy.run_module('medsyn.records', run_name='__main__')"
    code = f"import runpy, sys; {run}; assert not {{'numpy', 'pydantic'}} & sys.modules.keys()"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert printed == f"{markdown(ImageRecord)}\n\n{markdown(AttemptRecord)}\n"


def test_every_reason_of_the_filter_is_explained() -> None:
    of_images = {rules.ACCEPTED, rules.UNFILTERED, rules.FAILED, rules.SKIPPED, rules.KEPT_BEST}
    of_candidates = {rules.NON_FINITE, rules.SELECTOR_LOW, rules.POLICY_LOW, rules.OUTRANKED, rules.SURPLUS}
    for schema, reasons in ((ImageRecord, of_images), (AttemptRecord, of_candidates)):
        (meaning,) = (field.about.meaning for field in fields(schema) if field.name == "reason")
        assert [reason for reason in reasons if f"`{reason}`" not in meaning] == []


def test_a_candidate_on_record_has_just_the_keys_of_the_schema() -> None:
    trial = Trial(Rule(1, 1, 0.6, None, "skip"))
    trial.add(Candidate(0, 5, True, 0.7, 0.5))
    (line,) = trial.records()
    assert {"id", "replicate", *line} == json_types(AttemptRecord).keys()
