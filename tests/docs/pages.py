"""The documents as data: their blocks, commands, inline code, links, headings and tables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.helpers.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], key=lambda path: str(path.relative_to(ROOT)))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_OPERATORS = {"&&", "||", "|", ";", "&"}


@dataclass(frozen=True)
class Block:
    """A fenced block; `before` is the page's text down to it."""

    page: str
    language: str
    text: str
    line: int
    before: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """Every command of a block of shell, and of a console session what was typed."""
        if self.language == "bash":
            return commands(self.text)
        typed = [line.removeprefix("$ ") for line in self.text.splitlines() if line.startswith("$ ")]
        return commands("\n".join(typed)) if self.language == "console" else []


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def text(page: Path) -> str:
    return page.read_text()


@cache
def blocks(page: Path) -> list[Block]:
    whole = text(page)
    return [
        Block(name(page), found[1], found[2], whole.count("\n", 0, found.start()) + 1, whole[: found.start()])
        for found in _FENCE.finditer(whole)
    ]


def all_blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language in languages]


def prose(page: Path) -> str:
    """The page without its blocks."""
    return _FENCE.sub("", text(page))


def inline_code(page: Path) -> list[str]:
    """What stands in backticks, in prose and tables."""
    return list(dict.fromkeys(_INLINE.findall(prose(page))))


def links(page: Path) -> list[str]:
    return list(dict.fromkeys(_LINK.findall(_INLINE.sub("x", prose(page)))))


def anchors(page: Path) -> set[str]:
    """The names by which links reach the page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(script: str) -> list[list[str]]:
    """The simple commands of shell text, those inside `$(...)` too; comments and operators are left out."""
    found: list[list[str]] = []
    for line in re.sub(r"\\\n\s*", "", script).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in _OPERATORS:
                found += [words] if words else []
                words = []
            else:
                words.append(word)
    inner = [commands(inside) for words in found for word in words for inside in re.findall(r"\$\((.+)\)", word)]
    return [*found, *(one for several in inner for one in several)]


def table(page: Path, *header: str) -> list[list[str]]:
    """The rows of the page's table with this header."""
    rows = iter(text(page).splitlines())
    wanted = "| " + " | ".join(header).strip() + " |"
    found: list[list[str]] = []
    for line in rows:
        if line == wanted:
            next(rows)
            for row in rows:
                if not row.startswith("|"):
                    break
                found.append([cell.strip() for cell in row.strip("|").split(" | ")])
    assert found, f"{name(page)} has no table {wanted}"
    return found


def in_backticks(cell: str) -> list[str]:
    return _INLINE.findall(cell)


def paths_of_tree(tree: str) -> Iterator[str]:
    """The paths in a picture of a directory: the first words of its lines, `<...>` as `*`, braces spelled out."""
    for line in tree.splitlines():
        for word in re.split(r"\s{1,}", re.sub(r"<[^>]*>", "*", line).strip()):
            if re.fullmatch(r"[\w*{},./-]*(/|\.(json|jsonl|yaml|html|parquet|tar|png|dcm))", word):
                brace = re.search(r"\{([^}]*)\}", word)
                for part in brace[1].split(",") if brace else [""]:
                    yield re.sub(r"\{[^}]*\}", part, word)
