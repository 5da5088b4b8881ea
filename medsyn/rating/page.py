"""The page: one HTML file with its script, its style, the set and all pixels in it, and nothing from anywhere else.

The script is the modules of `page/`, joined in the order of their imports. The page's own policy lets nothing run but
that script, by its hash, and lets nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path

from medsyn.rating.formats import RatingSet, canonical_json

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\w+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(async )?(function|class|const) )", re.MULTILINE)
_HOLE = re.compile(r"<!--medsyn:(\w+)-->")


def render(rating_set: RatingSet, images: Mapping[str, bytes]) -> Iterator[str]:
    """The page's text, piece by piece.

    Args:
        rating_set: what it shows.
        images: the PNG file of each of the set's images.
    """
    style, code = _asset("style.css"), script()
    data = _in_script(canonical_json({**rating_set.model_dump(mode="json"), "hash": rating_set.hash}))
    policy = (
        f"default-src 'none'; script-src {_digest(code)}; style-src {_digest(style)}; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    holes = {
        "policy": f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        "title": escape(rating_set.title),
        "style": f"<style>{style}</style>",
        "set": f'<script type="application/json" id="set">{data}</script>',
        "script": f"<script>{code}</script>",
    }
    template = _asset("page.html")
    place = 0
    for hole in _HOLE.finditer(template):
        yield template[place : hole.start()]
        if hole[1] == "images":
            yield from map(_block, images, images.values())
        else:
            yield holes[hole[1]]
        place = hole.end()
    yield template[place:]


def _block(name: str, png: bytes) -> str:
    """An image as data that no browser looks at until the script asks for it."""
    return f'<script type="application/x-png" id="image-{name}">{base64.b64encode(png).decode()}</script>\n'


def _in_script(json: str) -> str:
    """JSON that can end no element and begin none, whatever texts are in it."""
    return json.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _digest(text: str) -> str:
    """How a policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def script() -> str:
    """All modules as one script: each after those that it imports, without the lines that import and export."""
    done: dict[str, str] = {}

    def add(name: str) -> None:
        text = _asset(f"{name}.js")
        for other in _IMPORT.findall(text):
            if other not in done:
                add(other)
        done[name] = _EXPORT.sub("", _IMPORT.sub("", text))

    add("main")
    return '"use strict";\n(() => {\n' + "\n".join(done.values()) + "})();\n"


def modules() -> list[Path]:
    """The files of the script."""
    return sorted(Path(str(files("medsyn.rating"))).joinpath("page").glob("*.js"))


@cache
def _asset(name: str) -> str:
    return (files("medsyn.rating") / "page" / name).read_text(encoding="utf-8")
