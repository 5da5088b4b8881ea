from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medsyn import doctor
from medsyn.doctor import machine, packages

ROOT = Path(__file__).parents[1]


def combinations(**versions: str) -> list[str]:
    return [finding.check for finding in packages.known_bad_combinations(versions.get)]


def test_the_peft_trap_is_seen() -> None:
    stack = {"diffusers": "0.27.2", "transformers": "4.38.2", "torch": "2.1.2+cu118", "numpy": "1.26.4"}
    assert combinations(**stack, peft="0.17.1") == ["peft + transformers"]
    assert combinations(**stack, peft="0.13.2") == []
    assert combinations(**stack) == []


def test_a_current_stack_is_not_blamed() -> None:
    assert combinations(torch="2.13.0", diffusers="0.42.1", transformers="5.23.0", numpy="2.4.6", peft="0.21.2") == []


@pytest.mark.parametrize(
    ("versions", "check"),
    [
        ({"torch": "2.1.2", "numpy": "2.0.1"}, "torch + numpy"),
        ({"torch": "2.1.2", "diffusers": "0.35.0"}, "torch + diffusers"),
        ({"torch": "2.1.2", "setuptools": "82.0"}, "setuptools"),
    ],
)
def test_other_known_traps_are_seen(versions: dict[str, str], check: str) -> None:
    assert combinations(**versions) == [check]


def test_a_failing_check_is_a_finding_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("driver on fire")

    monkeypatch.setattr(doctor, "CHECKS", (broken, machine.check_python))
    findings = doctor.examine()
    assert findings[0].verdict == "bad"
    assert "driver on fire" in findings[0].value
    assert findings[1].check == "python"


def test_versions_off_the_pins_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "pins", lambda: {"rich": "0.0.1", "surely-not-installed": "1.0"})
    findings = {finding.check: finding for finding in packages.check_versions()}
    assert findings["pin rich"].verdict == "note"
    assert findings["pin surely-not-installed"].verdict == "bad"


def test_json_is_complete_and_the_exit_code_says_unfit(capsys: pytest.CaptureFixture[str]) -> None:
    code = doctor.main(["--json"])
    findings = json.loads(capsys.readouterr().out)
    checks = {finding["check"] for finding in findings}
    assert {"driver", "torch", "cuda available", "cuda devices", "chosen", "attention", "bitsandbytes"} <= checks
    assert {"architectures", "isolation", "HF_HUB_OFFLINE", "disk here"} <= checks
    assert (code == 78) == any(finding["verdict"] == "bad" for finding in findings)


def test_the_build_of_torch_for_a_cuda_is_the_pinned_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "pins", lambda: {"torch": "2.1.2"})
    monkeypatch.setattr(packages, "installed_version", lambda name: "2.1.2+cu118")
    assert [finding.check for finding in packages.check_versions()] == ["pins"]


def test_a_package_from_pythonpath_is_told(tmp_path: Path) -> None:
    planted = tmp_path / "numpy-9.9.9.dist-info"
    planted.mkdir()
    (planted / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 9.9.9\n")
    code = "from medsyn.doctor import packages; print(*packages.check_isolation())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert f"{tmp_path}: numpy" in done.stdout
    assert "unset PYTHONPATH" in done.stdout


def test_without_a_gpu_the_gpu_checks_are_bad(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert doctor.main(["--gpu", "--json"]) == 78
    findings = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["GPU"]["verdict"] == "bad"
    assert "--nv" in findings["GPU"]["advice"]


def test_a_library_for_pascal_that_lacks_cuda_11_is_told_and_how_to_mend_it(tmp_path: Path) -> None:
    library = tmp_path / "libbitsandbytes_cuda118_nocublaslt.so"
    library.write_bytes(b"no library")
    finding = packages.pascal_adam(library)
    assert finding.verdict == "note"  # bad in the image, which promises it
    assert "requirements-cuda11.txt" in finding.advice
