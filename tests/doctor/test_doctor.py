from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medsyn import doctor
from medsyn.doctor import adam, devices, image, machine, packages
from tests.helpers.paths import ROOT

LIBRARY = "libbitsandbytes_cuda118_nocublaslt.so"
IN_IMAGE = """
import sys
from medsyn import __main__
from medsyn.doctor import image
image.PREFIX = sys.prefix
sys.exit(__main__.main())
"""


@pytest.fixture
def in_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "PREFIX", sys.prefix)


def python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *words]
    return subprocess.run(command, env=kept | environment, cwd=ROOT, capture_output=True, text=True, check=False)


def plant(folder: Path, name: str, version: str) -> None:
    information = folder / f"{name}-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def isolation_of(pythonpath: str) -> dict[str, doctor.Diagnosis]:
    code = "from medsyn import doctor; doctor.CHECKS = (doctor.isolation.check_isolation,); doctor.main(['--json'])"
    *found, _ = json.loads(python("-c", code, PYTHONPATH=pythonpath).stdout)  # the last one sums up
    return {finding["check"]: doctor.Diagnosis(**finding) for finding in found}


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
    assert f"RuntimeError: driver on fire ({__file__}, line " in findings[0].value
    assert findings[1].check == "python"


def test_versions_off_the_pins_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "pins", lambda extras: {"rich": "0.0.1", "surely-not-installed": "1.0"})
    findings = {finding.check: finding for finding in packages.check_versions()}
    assert findings["pin rich"].verdict == "note"
    assert findings["pin surely-not-installed"].verdict == "bad"


def test_json_is_complete_and_the_exit_code_says_unfit(capsys: pytest.CaptureFixture[str]) -> None:
    code = doctor.main(["--json"])
    findings = json.loads(capsys.readouterr().out)
    checks = {finding["check"] for finding in findings}
    assert {"driver", "torch", "cuda available", "cuda devices", "chosen", "attention", "bitsandbytes"} <= checks
    assert {"architectures", "isolation", "HF_HUB_OFFLINE", "disk here"} <= checks
    assert {"memory", "umask", "open files (ulimit -n)", "address space (ulimit -v)", "containers"} <= checks
    assert findings[-1]["check"] == "in short"
    assert (code == 78) == any(finding["verdict"] == "bad" for finding in findings)


def test_the_build_of_torch_for_a_cuda_is_the_pinned_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "pins", lambda extras: {"torch": "2.1.2"})
    monkeypatch.setattr(packages, "installed_version", lambda name: "2.1.2+cu118")
    assert [finding.check for finding in packages.check_versions()] == ["pins"]


def test_a_package_from_pythonpath_is_told(tmp_path: Path) -> None:
    plant(tmp_path, "numpy", "9.9.9")
    found = isolation_of(str(tmp_path))
    assert found["packages from elsewhere"].value == f"{tmp_path}: numpy"
    assert found["packages from elsewhere"].verdict == "note"
    assert "unset PYTHONPATH" in found["packages from elsewhere"].advice
    assert found["PYTHONPATH"].verdict == "note"


def test_a_module_from_pythonpath_is_told_though_it_has_no_metadata(tmp_path: Path) -> None:
    (tmp_path / "diffusers.py").touch()
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "my_own.py").touch()  # takes nobody's place
    found = isolation_of(str(tmp_path))
    assert found["packages from elsewhere"].value == f"{tmp_path}: diffusers, torch"
    assert "isolation" not in found


def test_a_portion_of_a_namespace_package_from_elsewhere_is_told(tmp_path: Path) -> None:
    (tmp_path / "mpl_toolkits").mkdir()
    assert isolation_of(str(tmp_path))["packages from elsewhere"].value == f"{tmp_path}: mpl_toolkits"


def test_a_module_in_the_place_of_the_standard_library_is_told_where_python_would_take_it(tmp_path: Path) -> None:
    for name in ("secrets", "os", "sys"):  # the last two are inside the interpreter and come first
        (tmp_path / f"{name}.py").touch()
    assert isolation_of(str(tmp_path))["packages from elsewhere"].value == f"{tmp_path}: secrets"


def test_nothing_is_from_elsewhere_where_pythonpath_is_empty() -> None:
    assert set(isolation_of("")) == {"isolation"}


def test_pythonpath_and_what_is_found_in_it_are_bad_in_the_image(tmp_path: Path) -> None:
    (tmp_path / "diffusers.py").touch()
    done = python("-c", IN_IMAGE, "doctor", "--json", PYTHONPATH=str(tmp_path))
    found = {finding["check"]: (finding["value"], finding["verdict"]) for finding in json.loads(done.stdout)}
    assert done.returncode == 78
    assert found["packages from elsewhere"] == (f"{tmp_path}: diffusers", "bad")
    assert found["PYTHONPATH"] == (str(tmp_path), "bad")


@pytest.mark.parametrize("name", ["yaml", "pydantic", "rich"])
@pytest.mark.parametrize("error", ["RuntimeError", "SystemExit"])
def test_doctor_outlives_a_module_that_fails_and_names_it(tmp_path: Path, name: str, error: str) -> None:
    (tmp_path / f"{name}.py").write_text(f"raise {error}('poison')\n")
    done = python("-m", "medsyn", "doctor", PYTHONPATH=str(tmp_path), COLUMNS="1000")
    assert f"{tmp_path}: {name}" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    if name != "rich":  # no check needs that one
        assert done.returncode == 78
        assert f"{error}: poison ({tmp_path / name}.py, line 1)" in done.stdout


def test_without_a_gpu_the_gpu_checks_are_bad(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert doctor.main(["--gpu", "--json"]) == 78
    findings = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["GPU"]["verdict"] == "bad"
    assert "--nv" in findings["GPU"]["advice"]


def test_a_library_for_pascal_that_lacks_cuda_11_is_told_and_how_to_mend_it(tmp_path: Path) -> None:
    (tmp_path / LIBRARY).write_bytes(b"no library")
    finding = adam.pascal_adam(tmp_path / LIBRARY)
    assert finding.verdict == "note"
    assert "requirements-cuda11.txt" in finding.advice


@pytest.mark.usefixtures("in_image")
def test_a_library_for_pascal_that_does_not_load_is_bad_in_the_image(tmp_path: Path) -> None:
    (tmp_path / LIBRARY).write_bytes(b"no library")
    finding = adam.pascal_adam(tmp_path / LIBRARY)
    assert (finding.verdict, "rebuild the image" in finding.advice) == ("bad", True)


def without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[doctor.Diagnosis]:
    plant(tmp_path, "bitsandbytes", "0.41.1")
    monkeypatch.syspath_prepend(tmp_path)
    return list(adam.check_bitsandbytes())


def test_bitsandbytes_without_its_library_for_pascal_is_told_and_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, library = without_its_library(tmp_path, monkeypatch)
    assert (package.value, package.verdict) == ("0.41.1", "good")
    assert (library.value, library.verdict) == (f"{LIBRARY} is absent", "note")
    assert "use_8bit_adam may fail on cards before Turing" in library.advice


@pytest.mark.usefixtures("in_image")
def test_bitsandbytes_without_its_library_for_pascal_is_bad_in_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = without_its_library(tmp_path, monkeypatch)[1]
    assert (library.verdict, "rebuild the image" in library.advice) == ("bad", True)


def test_absent_bitsandbytes_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adam, "installed_version", lambda name: None)
    (finding,) = adam.check_bitsandbytes()
    assert (finding.value, finding.verdict, "pip install" in finding.advice) == ("absent", "note", True)


@pytest.mark.usefixtures("in_image")
def test_absent_bitsandbytes_is_bad_in_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adam, "installed_version", lambda name: None)
    (finding,) = adam.check_bitsandbytes()
    assert (finding.value, finding.verdict, "rebuild the image" in finding.advice) == ("absent", "bad", True)


@pytest.mark.usefixtures("in_image")
def test_a_version_off_the_pins_is_bad_in_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "pins", lambda extras: {"rich": "0.0.1"})
    (finding,) = packages.check_versions()
    assert (finding.check, finding.verdict) == ("pin rich", "bad")
    assert finding.advice == "pinned at 0.0.1; rebuild the image"


def test_the_image_is_held_to_the_pin_of_bitsandbytes_as_well() -> None:
    assert set(packages.pins(extras=True)) - set(packages.pins()) == {"bitsandbytes"}


@pytest.mark.usefixtures("in_image")
def test_another_cuda_than_the_images_is_a_note_in_the_image() -> None:
    assert devices.cuda_build("2.1.2+cu118", "11.8") == doctor.Diagnosis("torch", "2.1.2+cu118 (CUDA 11.8)")
    for other in ("12.1", None):
        finding = devices.cuda_build("2.1.2", other)
        assert (finding.verdict, "CUDA 11.8" in finding.advice) == ("note", True)


def test_outside_of_the_image_any_cuda_is_good() -> None:
    assert devices.cuda_build("2.13.0", "13.0").verdict == "good"


def room(temporary: str) -> str:
    code = "from medsyn.doctor import machine; print(*machine.check_disk(), sep='\\n')"
    return python("-c", code, TMPDIR=temporary).stdout


def test_a_tmpdir_that_cannot_be_used_is_a_note_for_python_takes_another(tmp_path: Path) -> None:
    told = room(str(tmp_path / "nowhere"))
    assert f"{tmp_path / 'nowhere'} cannot be used', verdict='note'" in told
    assert "disk TMPDIR" in told
    assert "bad" not in told
    assert "cannot be used" not in room(str(tmp_path))


@pytest.mark.parametrize(("value", "verdict"), [("1", "good"), ("yes", "good"), ("0", "note"), ("off", "note")])
def test_an_offline_flag_that_is_not_on_has_advice(monkeypatch: pytest.MonkeyPatch, value: str, verdict: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    finding = next(finding for finding in machine.check_offline() if finding.check == "HF_HUB_OFFLINE")
    assert (finding.value, finding.verdict) == (value, verdict)
    assert ("set it to 1" in finding.advice) == (verdict == "note")


BAD = doctor.Diagnosis("pin torch", "absent", "bad")
TAKES_JOBS = doctor.Diagnosis("slurm takes jobs", "yes")


@pytest.mark.parametrize(
    ("findings", "cards", "told"),
    [
        ([], [], "fit for --cluster local on CPU"),
        ([], [12_782_075_904], "fit for --cluster local on 1 GPU of 12 GiB"),
        (
            [TAKES_JOBS],
            [12 << 30, 24 << 30],
            "fit for --cluster local on 2 GPUs of 12 to 24 GiB and for --cluster slurm",
        ),
        ([replace(TAKES_JOBS, verdict="note")], [], "fit for --cluster local on CPU"),
        ([BAD, TAKES_JOBS, BAD], [12 << 30], "not fit: pin torch"),
    ],
)
def test_one_line_sums_up(findings: list[doctor.Diagnosis], cards: list[int], told: str) -> None:
    found = doctor.summary(findings, cards)
    assert (found.value, found.verdict) == (told, "bad" if BAD in findings else "good")


@pytest.mark.parametrize(("mask", "verdict"), [(0o022, "good"), (0o077, "good"), (0o777, "bad")])
def test_the_umask_is_told_and_stays(mask: int, verdict: str) -> None:
    before = os.umask(mask)
    try:
        finding = next(machine.check_limits())
    finally:
        assert os.umask(before) == mask
    assert (finding.check, finding.verdict, finding.value[:4]) == ("umask", verdict, f"{mask:04o}")


def test_low_limits_of_the_shell_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_NOFILE: 256, resource.RLIMIT_AS: 8 << 30}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], limits[kind]))
    _, files, space = machine.check_limits()
    assert (files.value, files.verdict, "ulimit -n 1024" in files.advice) == ("256", "note", True)
    assert (space.value, space.verdict, "ulimit -v unlimited" in space.advice) == ("8.0 GiB", "note", True)
