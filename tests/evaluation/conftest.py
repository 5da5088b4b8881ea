"""Campaigns for the tests of this folder, and the judge."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsyn.evaluation import judge
from tests.helpers.once import once
from tests.helpers.synthetic_campaign import Builder


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """A complete campaign that no test changes."""
    return Builder(tmp_path_factory.mktemp("whole")).everything()


@pytest.fixture(scope="session")
def expert_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The judge that a real evaluation trains, trained once for all tests (half a minute)."""
    return once(tmp_path_factory, "judge", judge.load_or_train)


@pytest.fixture(scope="session")
def expert(expert_directory: Path) -> judge.Judge:
    return judge.load_or_train(expert_directory)
