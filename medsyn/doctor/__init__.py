"""Is this machine fit for a campaign? One table: what was found, whether it is good, what to do about it.

    medsyn doctor [--gpu] [--json]

Answers the specification's sanity checks (driver, CUDA, devices) and what decides speed and failure on old cards:
compute capability, memory, the precision and attention that will be chosen and why, 8-bit Adam, disk, offline flags,
versions against the pins, packages that leak in from outside, combinations known not to work together, memory, limits
of the shell, container runtimes, and what Slurm offers. The last line sums up. In the container image the checks are
stricter (image.py).
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict

from medsyn.doctor import (
    adam,
    devices,
    gpu,
    isolation,
    machine,
    packages,  # which import packages when they check
)
from medsyn.doctor.diagnosis import SUBMITTING, Diagnosis
from medsyn.errors import EXIT_BAD_NODE, EXIT_DONE
from medsyn.text import GIB, counted

Check = Callable[[], Iterator[Diagnosis]]
CHECKS: tuple[Check, ...] = (
    machine.check_python,
    machine.check_memory,
    machine.check_limits,
    machine.check_driver,
    devices.check_devices,
    devices.check_choice,
    adam.check_bitsandbytes,
    machine.check_containers,
    machine.check_disk,
    machine.check_offline,
    packages.check_versions,
    isolation.check_isolation,
    packages.known_bad_combinations,
)


def examine(more: Iterable[Check] = ()) -> list[Diagnosis]:
    """Every finding; a check that itself fails becomes a finding too, so that the others still run.

    Args:
        more: extra checks, run after the usual ones.
    """
    findings: list[Diagnosis] = []
    for check in (*CHECKS, *more):
        try:
            findings.extend(check())
        except (Exception, SystemExit) as error:  # a shadowed module may do anything
            findings.append(Diagnosis(check.__name__, _where(error), "bad"))
    return findings


SUMMARY = "in short"


def summary(findings: Sequence[Diagnosis], cards: Sequence[int]) -> Diagnosis:
    """What this machine is fit for, in one line.

    Args:
        findings: of all checks.
        cards: bytes of memory of each GPU that tasks will use here.
    """
    bad = list(dict.fromkeys(finding.check for finding in findings if finding.verdict == "bad"))
    if bad:
        return Diagnosis(SUMMARY, f"not fit: {', '.join(bad)}", "bad", "see what to do at each")
    sizes = sorted({round(card / GIB) for card in cards})
    of = f"{sizes[0]} GiB" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} GiB" if sizes else ""
    here = f"{counted(len(cards), 'GPU')} of {of}" if cards else "CPU"
    queue = " and for --cluster slurm" if any(_takes_jobs(finding) for finding in findings) else ""
    return Diagnosis(SUMMARY, f"fit for --cluster local on {here}{queue}")


def _takes_jobs(finding: Diagnosis) -> bool:
    return finding.check == SUBMITTING and finding.verdict == "good"


def _cards() -> list[int]:
    """See `devices.cards`; none where torch fails, or no check has needed it: importing it takes seconds."""
    try:
        return devices.cards() if "torch" in sys.modules else []
    except (Exception, SystemExit):
        return []


def _where(error: BaseException) -> str:
    """The error and the file that raised it, which may be a stray one."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"


def main(arguments: list[str] | None = None, program: str = "medsyn doctor", more: Iterable[Check] = ()) -> int:
    """Print the table; exit code 78 (unfit node) if something is bad. `more`: see `examine`."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="also compute on the GPU; a missing GPU is then bad")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    options = parser.parse_args(arguments)
    findings = examine([*more, *([gpu.check_gpu] if options.gpu else [])])
    findings.append(summary(findings, _cards()))
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print_table(findings)
    return EXIT_BAD_NODE if any(finding.verdict == "bad" for finding in findings) else EXIT_DONE


def _print_table(findings: list[Diagnosis]) -> None:
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except (Exception, SystemExit):  # absent, or another module of that name
        _print_lines(findings)
        return
    colours = {"good": "green", "note": "yellow", "bad": "bold red"}
    table = Table(title="medsyn doctor", title_justify="left")
    for column in ("check", "found", "", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        verdict = f"[{colours[finding.verdict]}]{finding.verdict}[/]"
        table.add_row(finding.check, escape(finding.value), verdict, escape(finding.advice))
    Console().print(table)


def _print_lines(findings: list[Diagnosis]) -> None:
    for finding in findings:
        advice = f"\n      {finding.advice}" if finding.advice else ""
        print(f"{finding.verdict:<5} {finding.check}: {finding.value}{advice}")
