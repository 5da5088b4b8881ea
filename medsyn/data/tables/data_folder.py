"""The files that a table names: all inside one directory, which is listed instead of looking up file by file."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from medsyn.data.tables.row_errors import show
from medsyn.disk import why_not_a_file
from medsyn.errors import InputError
from medsyn.text import closest

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".nii", ".nii.gz")
_ARCHIVE_NAME = re.compile(r"[^.]+|.*\.(\d+|ima)", re.IGNORECASE)  # of DICOM: IM000001, a UID; its content decides


_LEAVES = "; data.linked_roots lists the directories that links may lead to, such as a DVC or hub cache"


class Refused(Exception):
    """Why a file that a table names cannot be used."""


class DataFolder:
    """The directory that every file of a table must be in.

    Each directory below it is listed once: on a shared file system that is far cheaper than one lookup per row.
    """

    def __init__(self, folder: str | Path, linked: Iterable[str | Path] = ()) -> None:
        """`folder` is what names are relative to; symbolic links below it may lead to `linked` directories, too."""
        self.path = Path(os.path.abspath(folder))  # noqa: PTH100 (Path.absolute keeps '..')
        if not self.path.is_dir():
            raise InputError(folder, "there is no such directory; it should contain the files that the table names")
        self.asked = self.found = 0
        self._real = os.path.realpath(self.path)
        self._allowed = [self._real, *map(os.path.realpath, linked)]
        self._listings: dict[str, dict[str, str] | str] = {}  # folder -> {name: kind}, or why it cannot be used
        self._guesses_left = 20

    def find(self, written: str) -> Path:
        """The absolute path of an image file as a table names it; raises `Refused`."""
        if not written:
            raise Refused("is not a file name")
        if "://" in written:
            raise Refused("is a URL, not a file in the data directory")
        if ".." in written.split("/"):
            raise Refused("may not contain '..'")
        relative = self._relative(os.path.normpath(written))
        folder, _, name = relative.rpartition("/")
        self.asked += 1
        kind = self._kinds(folder).get(name) if name else "folder"
        if kind is None:
            hint = "; directories are separated by '/'" if "\\" in written else self._guess(folder, name)
            raise Refused(f"does not exist{hint}")
        self.found += 1
        path = self.path / relative
        if kind == "link":
            kind = self._kind_behind(path)
        if kind != "file":
            raise Refused(_not_a_file(path))
        if not name.lower().endswith(IMAGE_SUFFIXES) and not _ARCHIVE_NAME.fullmatch(name):
            raise Refused(f"is not an image; supported are {', '.join(IMAGE_SUFFIXES)}")
        return path

    def name(self, path: Path) -> str:
        """The one name of a found file, however a table spells it: its path below the data directory."""
        return path.relative_to(self.path).as_posix()

    def _relative(self, path: str) -> str:
        """A normalised path as one below the data directory; '' is the data directory itself."""
        for root in (self.path, Path(self._real)) if path.startswith("/") else ():
            if Path(path).is_relative_to(root):
                path = str(Path(path).relative_to(root))
        if path.startswith("/"):
            raise Refused(f"is outside the data directory {self.path}")
        return "" if path == "." else path

    def _is_inside(self, path: Path) -> bool:
        real = Path(os.path.realpath(path))  # Path.resolve raises on a link to itself
        return any(real.is_relative_to(folder) for folder in self._allowed)

    def _kinds(self, folder: str) -> dict[str, str]:
        """A directory below the data directory: {name: file, link, folder or other}; raises `Refused`."""
        if folder not in self._listings:
            self._listings[folder] = self._list(folder)
        listing = self._listings[folder]
        if isinstance(listing, str):
            raise Refused(listing)
        return listing

    def _list(self, folder: str) -> dict[str, str] | str:
        if not self._is_inside(self.path / folder):
            return f"is behind a symbolic link that leaves the data directory{_LEAVES}"
        try:
            with os.scandir(self.path / folder) as entries:
                return {entry.name: _kind(entry) for entry in entries}
        except (FileNotFoundError, NotADirectoryError):
            return self._why_no_folder(folder) if folder else "cannot be found: the data directory is gone"
        except OSError as error:
            return f"is in a directory that cannot be listed: {error.strerror}"

    def _why_no_folder(self, folder: str) -> str:
        above = ""
        for name in folder.split("/"):
            below = f"{above}/{name}".lstrip("/")
            if name not in self._kinds(above):
                return f"does not exist: there is no directory {show(below)}{self._guess(above, name)}"
            above = below
        return f"does not exist: {show(folder)} is not a directory"

    def _kind_behind(self, link: Path) -> str:
        if not self._is_inside(link):
            raise Refused(f"is a symbolic link that leaves the data directory{_LEAVES}")
        try:
            mode = link.stat().st_mode
        except OSError:
            raise Refused("is a symbolic link to nothing") from None
        return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"

    def _guess(self, folder: str, name: str) -> str:
        """'; did you mean …?' for a name that is not in a directory; empty where the search would take long."""
        names = self._kinds(folder)
        if not self._guesses_left or len(names) > 2000:
            return ""
        self._guesses_left -= 1
        folded = {unicodedata.normalize("NFC", other).casefold(): other for other in names}
        wanted = unicodedata.normalize("NFC", name).casefold()
        other_suffix = (other for other in folded if Path(other).stem == Path(wanted).stem)
        close = next(other_suffix, None) or closest(wanted, folded, cutoff=0.75)
        return f"; did you mean {show(str(Path(folder, folded[close])))}?" if close else ""


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "link"
    return "file" if entry.is_file() else "folder" if entry.is_dir() else "other"


def _not_a_file(path: Path) -> str:
    try:
        return why_not_a_file(path.stat().st_mode)
    except OSError:  # gone since the directory was listed
        return "is not a regular file"
