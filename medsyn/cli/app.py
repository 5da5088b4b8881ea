"""What all commands share: dispatch, opening the campaign that is named, and reporting errors plainly."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import medsyn
from medsyn import disk
from medsyn.campaign.state.locks import Busy
from medsyn.cli import invocation
from medsyn.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_SAVED,
    InputError,
    InputProblems,
    Problem,
    SlurmError,
    grouped,
)
from medsyn.specification import ENVIRONMENT
from medsyn.stage import CampaignDirectory, campaign_above
from medsyn.text import did_you_mean

if TYPE_CHECKING:
    from medsyn.campaign.state.campaign_file import Campaign
    from medsyn.config import Config

EXIT_USAGE = 2  # argparse's own
_PLACE_SHOWN = 300  # characters of a path
_WRONG_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS, errno.EISDIR)  # the user named the wrong path


class Command(NamedTuple):
    """One command of the program."""

    help: str
    run: Callable[[str, Sequence[str]], int]  # of (how it was called, arguments); returns the exit code
    group: str = ""  # what users do with it


def dispatch(program: str, commands: Mapping[str, Command], arguments: Sequence[str]) -> int:
    """Run the command that the first argument names; return its exit code.

    A user's mistake is printed, one kind of problem per line, and ends with EXIT_BAD_INPUT.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(program, commands))
        return EXIT_DONE if arguments else EXIT_USAGE
    if arguments[0] == "--version":
        print(f"medsyn {medsyn.__version__}")
        return EXIT_DONE
    name, rest = arguments[0], arguments[1:]
    if name not in commands:
        hint = did_you_mean(name, commands) or f"; commands are {', '.join(commands)}"
        print(f"{program}: unknown command {name!r}{hint}", file=sys.stderr)
        return EXIT_USAGE
    try:
        return commands[name].run(f"{program} {name}", rest)
    except (InputError, InputProblems) as error:
        for problem in grouped(error.problems):
            print(problem, file=sys.stderr)
        return EXIT_BAD_INPUT
    except Busy as busy:
        print(f"{program}: {busy}; try again when it has ended", file=sys.stderr)
        return EXIT_SAVED
    except SlurmError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (PermissionError, FileNotFoundError, NotADirectoryError, disk.NotAFile) as error:
        print(f"{program}: {_place(error)}: {error.strerror}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or flushing at exit would raise once more
        return EXIT_DONE
    except OSError as error:  # a full disk, a read-only file system, a stale handle
        print(f"{program}: {_place(error)}: {error.strerror or error}{_room(error)}", file=sys.stderr)
        return EXIT_BAD_INPUT if error.errno in _WRONG_PATH else EXIT_FAILED


def _overview(program: str, commands: Mapping[str, Command]) -> str:
    """The program's help: every command, grouped by what users do."""
    lines, group = [f"usage: {program} COMMAND ...", f"       {program} --version"], None
    for name, its in commands.items():
        if its.group != group:
            group = its.group
            lines += ["", f"{group}:"]
        lines.append(f"  {name:<10} {its.help}")
    return "\n".join([*lines, "", f"for more, run `{program} COMMAND --help`"])


def _place(error: OSError) -> str:
    return str(error.filename or "a file of the campaign")[:_PLACE_SHOWN]


def _room(error: OSError) -> str:
    """How much disk space is free, if the error is about a lack of it."""
    if error.errno not in disk.FULL or not isinstance(error.filename, str):
        return ""
    room = disk.room(Path(error.filename).parent)
    return f" ({room})" if room else ""


def config_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser for `CONFIG [key=value ...]`; use it with `parse_intermixed_args`."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    text = "the campaign's configuration (a YAML file), or the directory of a prepared campaign"
    parser.add_argument("config", metavar="CONFIG", help=text)
    text = "values that override the configuration's"
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=text)
    return parser


def load(args: argparse.Namespace, tells: bool = False) -> Config:
    """The configuration that a command line of `config_parser` names.

    Args:
        args: the command line.
        tells: whether to print what the specification's names mean here, for the commands that begin something.
    """
    if Path(args.config).is_dir():
        from medsyn.campaign.plan import inputs

        if tells:
            show_problems(_unread_variables(args.config))
        return inputs.of_directory(Path(args.config), args.overrides)
    from medsyn import config

    return config.load(args.config, args.overrides, tell=show_problems if tells else None)


def _unread_variables(directory: str) -> Iterator[Problem]:
    """Warnings about variables that set a key, where a campaign's directory says all."""
    for name, key in ENVIRONMENT.items():
        if value := os.environ.get(name):
            reason = f"is not used: {directory} has its settings; give {key}={value:.100}"
            yield Problem(f"environment variable {name}", reason, severity="warning")


def named(args: argparse.Namespace) -> list[str]:
    """How a further command names the campaign; a directory needs no overrides once they have taken effect."""
    return [args.config] if Path(args.config).is_dir() else [args.config, *args.overrides]


def open_campaign(args: argparse.Namespace) -> Campaign:
    """The campaign that a command line of `config_parser` names; it must have been prepared."""
    from medsyn.campaign.state import campaign_file

    if Path(args.config).is_dir():
        if args.overrides:
            reason = f"{args.overrides[0]} has no effect here: {args.config} has its settings"
            raise InputError("command line", f"{reason}, which `{invocation.command('submit', [args.config])}` changes")
        return campaign_file.open_campaign(disk.absolute(args.config))
    directory = CampaignDirectory(load(args).campaign.path)
    if not directory.campaign_file.exists():
        raise not_submitted(args)
    return campaign_file.open_campaign(directory.root)


def require_no_campaign(path: Path, source: str) -> None:
    """Raise InputError if a path to write to is a campaign's directory or in one; OSError if it cannot be looked at."""
    if (campaign := campaign_above(path)) is not None:
        reason = f"{path} is a campaign's directory or inside one ({campaign}); choose another directory"
        raise InputError(source, reason)


def not_submitted(args: argparse.Namespace) -> InputError:
    """The error of a command that needs a campaign which has not been submitted."""
    how = invocation.command("submit", named(args))
    return InputError(args.config, f"this campaign has not been submitted; run `{how}`")


def open_for_change(config: Config, here: bool, keep: ExitStack | None = None) -> Campaign:
    """See `medsyn.campaign.guards.open_for_change`; progress and warnings go to standard error."""
    from medsyn.campaign import guards

    warnings: list[Problem] = []
    try:
        with progress_bars() as progress:
            return guards.open_for_change(config, here, progress, warnings.extend, keep)
    finally:
        show_problems(dict.fromkeys(warnings))


def show_problems(problems: Iterable[Problem]) -> None:
    """Print problems of a check to standard error, one line for each kind."""
    for problem in grouped(problems):
        print(f"{problem.severity}: {problem}", file=sys.stderr)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (what, done, total) that shows progress on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in tasks:
            bars.start()
            tasks[what] = bars.add_task(what)
        bars.update(tasks[what], completed=done, total=total)

    try:
        yield show
    finally:
        if tasks:
            bars.stop()
