"""Licence, changelog, hooks and continuous integration keep in step with the project."""

from __future__ import annotations

import re
import tomllib

import yaml

import medsyn
from tests.helpers.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_licence_is_apache_and_is_packed() -> None:
    assert (PROJECT["license"], PROJECT["license-files"]) == ("Apache-2.0", ["LICENSE"])
    words = (ROOT / "LICENSE").read_text().split()
    assert " ".join(words[:5]) == "Apache License Version 2.0, January"
    assert words[-1] == "License."
    assert len(words) > 1500, "the whole text"


def test_the_changelog_has_the_version_of_the_package() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    sections = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", changelog, re.MULTILINE)
    versions = [version for version, _ in sections]
    assert versions[0] == "Unreleased"
    assert versions[1] == PROJECT["version"] == medsyn.__version__
    assert all(date for version, date in sections if version != "Unreleased")
    assert [date for _, date in sections[1:]] == sorted((date for _, date in sections[1:]), reverse=True)
    kinds = set(re.findall(r"^### (.+)$", changelog, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_hooks_are_local_and_what_continuous_integration_runs() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"], "nothing is fetched"
    hooks = [hook for repository in repositories for hook in repository["hooks"]]
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in hooks)
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    checks = [line for line in lines if line.startswith("uv run")]
    assert checks == [*(hook["entry"] for hook in hooks), "uv run pytest"]
    assert checks[-1] in (ROOT / "README.md").read_text().splitlines()
    assert " && ".join(checks[:-1]) in (ROOT / "CONTRIBUTING.md").read_text()
