"""Is this machine fit for a campaign? One table: what was found, whether it is good, what to do about it.

    python -m medsyn doctor [--json]

Answers the specification's sanity checks (driver, CUDA, devices) and what decides speed and failure on old cards:
compute capability, memory, the precision and attention that will be chosen and why, 8-bit Adam, disk, offline flags,
versions against the pins, and combinations of packages known not to work together.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from medsyn.errors import EXIT_BAD_NODE, EXIT_DONE

Verdict = Literal["good", "note", "bad"]
DISTRIBUTION = "medsyn-hpc"
_OFFLINE_FLAGS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_GIB = 1 << 30
_FREE_DISK_GIB = 20  # one SD v1.5 fine-tune with two checkpoints and its caches


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    check: str
    value: str
    verdict: Verdict = "good"
    advice: str = ""


def installed_version(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def pins() -> dict[str, str]:
    """Exact versions that medsyn asks for, by distribution name."""
    try:
        required = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    exact = (line.split(";")[0].strip().split("==") for line in required if "==" in line and "extra" not in line)
    return {name.strip(): version.strip() for name, version in exact}


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())


def check_python() -> Iterator[Finding]:
    """The interpreter and the machine."""
    good = sys.version_info[:2] == (3, 11)
    yield Finding(
        "python", f"{platform.python_version()} on {platform.machine()}", "good" if good else "note",
        "" if good else "the pinned stack is for Python 3.11",
    )  # fmt: skip
    yield Finding("processor", f"{os.cpu_count()} cores visible, {len(os.sched_getaffinity(0))} usable")


def _tool_output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return result.stdout.strip() if result.returncode == 0 else None


def check_driver() -> Iterator[Finding]:
    """nvidia-smi and nvcc, as the specification's sanity checks ask."""
    driver = _tool_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if driver is None:
        yield Finding("driver", "nvidia-smi is absent or fails", "note", "no NVIDIA driver: tasks run on the CPU")
    else:
        yield Finding("driver", driver.splitlines()[0] if driver else "no device")
    compiler = _tool_output("nvcc", "--version")
    yield Finding("nvcc", compiler.splitlines()[-1] if compiler else "absent; not needed to run")


def check_devices() -> Iterator[Finding]:
    """Devices, capability, memory, and what will be chosen on them."""
    import torch

    from medsyn.config import DeviceSection
    from medsyn.models.device import choose_device

    built = torch.version.cuda or "without CUDA"
    yield Finding("torch", f"{torch.__version__} (CUDA {built})")
    yield Finding("cuda available", str(torch.cuda.is_available()), "good" if torch.cuda.is_available() else "note")
    yield Finding("cuda devices", str(torch.cuda.device_count()))
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        name = f"sm_{properties.major}{properties.minor}"
        compiled = torch.cuda.get_arch_list()
        # binaries run on any later minor version of the same major capability
        runs = any(arch.startswith(f"sm_{properties.major}") and int(arch[3:]) <= int(name[3:]) for arch in compiled)
        memory = properties.total_memory / _GIB
        yield Finding(
            f"device {index}",
            f"{properties.name}, {name}, {memory:.1f} GiB",
            "good" if runs else "bad",
            "" if runs else f"this torch has no kernels for {name} ({', '.join(compiled)}): use the CUDA 11.8 image",
        )
    for reason in choose_device(DeviceSection()).reasons:
        yield Finding("chosen", reason)
    yield _attention(torch.cuda.get_device_capability(0) if torch.cuda.is_available() else None)


def _attention(capability: tuple[int, int] | None) -> Finding:
    if capability is None:
        return Finding("attention", "torch SDPA on the CPU")
    if capability < (8, 0):
        return Finding("attention", "torch SDPA, memory-efficient kernels (flash attention needs sm_80)")
    return Finding("attention", "torch SDPA, flash kernels")


def check_bitsandbytes() -> Iterator[Finding]:
    """8-bit Adam: what makes full fine-tuning of SD v1.5 fit 12 GB."""
    version = installed_version("bitsandbytes")
    if version is None:
        yield Finding(
            "bitsandbytes", "absent", "note", "finetune.use_8bit_adam needs it: pip install 'medsyn-hpc[bnb]'"
        )
        return
    yield Finding("bitsandbytes", version)


def check_disk() -> Iterator[Finding]:
    """Room where campaigns and temporary files go."""
    for name, path in (("disk here", Path.cwd()), ("disk TMPDIR", Path(os.environ.get("TMPDIR", "/tmp")))):
        if not path.is_dir():
            yield Finding(name, f"{path} does not exist", "bad", "set TMPDIR to an existing directory")
            continue
        free = shutil.disk_usage(path).free / _GIB
        enough = free >= _FREE_DISK_GIB
        advice = "" if enough else f"an SD v1.5 fine-tune with two checkpoints wants {_FREE_DISK_GIB} GiB"
        yield Finding(name, f"{free:.1f} GiB free", "good" if enough else "note", advice)


def check_offline() -> Iterator[Finding]:
    """Compute nodes have no internet; these flags turn a long time-out into a clear error."""
    for flag in _OFFLINE_FLAGS:
        value = os.environ.get(flag)
        yield Finding(
            flag,
            value or "unset",
            "good" if value in {"1", "true", "TRUE"} else "note",
            "" if value else "weights are loaded from local files only, whatever this says",
        )


def check_versions() -> Iterator[Finding]:
    """Installed versions against the pins."""
    wanted = pins()
    if not wanted:
        yield Finding("pins", f"{DISTRIBUTION} is not installed", "note", "run through `uv run`, or pip install -e .")
        return
    off = {name: installed_version(name) for name, version in wanted.items() if installed_version(name) != version}
    if not off:
        yield Finding("pins", f"all {len(wanted)} packages as pinned")
    for name, found in off.items():
        missing = found is None
        yield Finding(f"pin {name}", found or "absent", "bad" if missing else "note", f"pinned at {wanted[name]}")


def known_bad_combinations(version_of: Callable[[str], str | None] = installed_version) -> Iterator[Finding]:
    """Packages that install together and then fail: each was seen to."""
    found = {name: version_of(name) for name in ("peft", "diffusers", "transformers", "torch", "numpy", "setuptools")}
    release = {name: _release(version) for name, version in found.items() if version}
    if release.get("peft", (0,)) >= (0, 14) and release.get("transformers", (9,)) < (4, 47):
        yield Finding(
            "peft + transformers",
            f"peft {found['peft']} with transformers {found['transformers']}",
            "bad",
            "fails at UNet forward (EncoderDecoderCache): uninstall peft or take peft<0.14",
        )
    if release.get("torch", (9,)) < (2, 3) and release.get("numpy", (0,)) >= (2, 0):
        yield Finding("torch + numpy", f"torch {found['torch']} with numpy {found['numpy']}", "bad", "take numpy<2")
    if release.get("torch", (9,)) < (2, 4) and release.get("diffusers", (0,)) >= (0, 31):
        yield Finding(
            "torch + diffusers",
            f"torch {found['torch']} with diffusers {found['diffusers']}",
            "bad",
            "torch.library has no custom_op: take the pinned diffusers",
        )
    if release.get("setuptools", (0,)) >= (82,) and release.get("torch", (9,)) < (2, 3):
        yield Finding("setuptools", str(found["setuptools"]), "bad", "pkg_resources is gone: take setuptools<82")


CHECKS = (
    check_python,
    check_driver,
    check_devices,
    check_bitsandbytes,
    check_disk,
    check_offline,
    check_versions,
    known_bad_combinations,
)


def examine() -> list[Finding]:
    """Every finding; a check that itself fails is a finding too, for the rest is worth knowing."""
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings.extend(check())
        except Exception as error:
            findings.append(Finding(check.__name__, f"{type(error).__name__}: {error}", "bad"))
    return findings


def main(arguments: list[str] | None = None) -> int:
    """Print the table; exit code 78 (unfit node) if something is bad."""
    parser = argparse.ArgumentParser(prog="python -m medsyn doctor", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="for scripts")
    options = parser.parse_args(arguments)
    findings = examine()
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print_table(findings)
    return EXIT_BAD_NODE if any(finding.verdict == "bad" for finding in findings) else EXIT_DONE


def _print_table(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    colours = {"good": "green", "note": "yellow", "bad": "bold red"}
    table = Table(title="medsyn doctor", title_justify="left")
    for column in ("check", "found", "", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        verdict = f"[{colours[finding.verdict]}]{finding.verdict}[/]"
        table.add_row(finding.check, escape(finding.value), verdict, escape(finding.advice))
    Console().print(table)
