"""Files that appear whole or not at all, and the hashes that say what is in them.

Everything medsyn leaves on a shared file system is written by these few functions: a temporary sibling, fsync,
one rename, fsync of the directory. A reader never sees half a file, and kill -9 leaves at most a `*.tmp-*` sibling.

What is on disk when a name appears survives a power cut. Only hints and what is checked when it is read are written
without that (`write_unsynced`).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

# The most that anyone is given, since the inputs are medical: nothing to others. The user's umask takes away from it.
FILE_MODE = 0o640
DIRECTORY_MODE = 0o750
FULL = (errno.ENOSPC, errno.EDQUOT)  # a full disk or an exhausted quota
_ABANDONED_SECONDS = 3600.0  # another host's temporary of this age is abandoned: no write takes an hour


def make_directory(path: Path) -> Path:
    """Create `path` and its parents, readable by user and (where the umask lets it) group only; return it."""
    try:
        path.mkdir(mode=DIRECTORY_MODE)
    except FileExistsError:
        if not path.is_dir():
            reason = "a symbolic link that leads nowhere" if path.is_symlink() else "not a directory"
            raise NotADirectoryError(errno.ENOTDIR, f"it is {reason}", str(path)) from None
    except OSError as error:
        if path.is_dir():  # some file systems say first that they are read-only
            return path
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP) or path == path.parent:
            raise
        make_directory(path.parent)
        path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    return path


def private_umask() -> int:
    """This process's umask, and nothing to others: for programs that choose the modes of their files themselves."""
    mine = os.umask(0o777 & ~FILE_MODE)
    os.umask(mine)
    return mine | (0o777 & ~DIRECTORY_MODE)


def free_bytes(path: Path) -> int | None:
    """Bytes free where `path` is or will be; None if unknown."""
    try:
        usage = shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists()))
    except OSError:
        return None
    return usage.free if usage.total else None  # some network file systems report nothing


def room(path: Path) -> str:
    """How much is free where `path` is or will be, in words; empty if unknown."""
    free = free_bytes(path)
    return "" if free is None else f"{free / 2**20:,.0f} MiB are free there"


_FOREIGN = re.compile(r"\(os error (\d+)\)")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around whatever writes `path`: what the file system refuses is an OSError that names a file.

    A write to a full disk names none, and libraries in other languages raise types of their own and print the number.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        number = _FOREIGN.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def is_full(error: BaseException) -> bool:
    """Whether an exception is about a full disk or a used-up quota, whoever raised it."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return any(os.strerror(number) in str(error) for number in FULL)


def temporary_sibling(path: Path) -> Path:
    """A name beside `path` that no other process uses: it contains the host and the process id."""
    return path.with_name(f".{path.name}.tmp-{os.uname().nodename}-{os.getpid()}")


def fsync_directory(path: Path) -> None:
    """Make the names in the directory `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` so that `path` has either the old or the new content in full, whatever happens."""
    _replace(path, content, os.fsync)
    fsync_directory(path.parent)


def write_unsynced(path: Path, content: bytes | memoryview | str) -> None:
    """`write_atomic` for what a power cut may take or tear: readers and a kill never see part of it."""
    _replace(path, content, lambda descriptor: None)


def write_together(folder: Path, files: Mapping[str, bytes | str]) -> None:
    """`write_atomic` of several files of one directory, one after the other."""
    for name, content in files.items():
        _replace(folder / name, content, os.fsync)
    fsync_directory(folder)


def _replace(path: Path, content: bytes | memoryview | str, sync: Callable[[int], None]) -> None:
    temporary = temporary_sibling(path)
    descriptor = _open_to_write(temporary, os.O_WRONLY | os.O_TRUNC)
    try:
        with writing(path):
            try:
                _write_all(descriptor, content.encode() if isinstance(content, str) else content)
                sync(descriptor)
            finally:
                os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _open_to_write(path: Path, flags: int) -> int:
    """Open or create a file; its directory is made if it is not there."""
    try:
        return os.open(path, flags | os.O_CREAT, FILE_MODE)
    except FileNotFoundError:
        make_directory(path.parent)
        return os.open(path, flags | os.O_CREAT, FILE_MODE)


def _write_all(descriptor: int, content: bytes | memoryview) -> None:
    """Write all of it: a nearly full disk may take only a part, and the next write then raises."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def publish(temporary: Path, path: Path) -> None:
    """Move a finished temporary file to `path` as durably as `write_atomic` does."""
    with writing(path):
        temporary.chmod(FILE_MODE & temporary.stat().st_mode)
        _fsync_file(temporary)
        temporary.replace(path)
        fsync_directory(path.parent)


def to_json(value: Any) -> str:
    """`value` as indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of `value` as indented JSON."""
    write_atomic(path, to_json(value))


class NotAFile(OSError):
    """Something other than a regular file, such as a pipe or a directory, is where a file should be."""

    def __init__(self, path: Path) -> None:
        what = "is a symbolic link, not a file" if path.is_symlink() else "is not a file"
        super().__init__(errno.EINVAL, what, str(path))


def open_file(path: Path, links: bool = True) -> BinaryIO:
    """Open a regular file to read its bytes; never blocks, as opening a pipe would.

    Args:
        path: of the file.
        links: whether it may be a symbolic link to one.

    Raises:
        NotAFile: it is something else.
        OSError: it does not exist, or cannot be opened.
    """
    if not stat.S_ISREG((path.stat() if links else path.lstat()).st_mode):
        raise NotAFile(path)
    # it may be something else by now
    further = os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW)
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | further))


def read_own_file(path: Path) -> bytes:
    """The content of a file that medsyn wrote: a regular file, not a link. Raises as `open_file` does."""
    with open_file(path, links=False) as stream:
        return stream.read()


def own_size(path: Path) -> int | None:
    """Bytes of a regular file, None if `path` is a link or something else; raises OSError if it does not exist."""
    status = path.lstat()
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def from_json(content: bytes | str) -> Any:
    """The value of a JSON text; raises ValueError if it is none, or nested so deeply that it cannot be read."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> Any:
    """The JSON in `path`; raises as `open_file` and `from_json` do."""
    with open_file(path) as stream:
        return from_json(stream.read().decode())


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Append one record as one line, in one write; a torn line that a kill left is ended first."""
    descriptor = _open_to_write(path, os.O_RDWR | os.O_APPEND)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        line = json.dumps(record, ensure_ascii=False) + "\n"
        with writing(path):
            _write_all(descriptor, ("\n" + line if torn else line).encode())
    finally:
        os.close(descriptor)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file; a torn last line (a kill in the middle of a write) is skipped."""
    try:
        stream = open_file(path)
    except FileNotFoundError:
        return
    with stream:
        for line in stream:
            try:
                record = from_json(line)
            except ValueError:  # not JSON, or a character cut in two
                continue
            if isinstance(record, dict):
                yield record


def truncate_jsonl(path: Path, key: str, last: int) -> list[dict[str, Any]]:
    """Drop the records whose `key` is above `last`, which a resumed run writes again; return the others."""
    if not path.exists():
        return []
    kept = [record for record in read_jsonl(path) if record[key] <= last]
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept))
    return kept


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A temporary directory that becomes `path` when the block ends without an error.

    Every file in it is fsynced first, so the one rename publishes complete content. If `path` exists by then
    (another process was faster, or this is a second run) the temporary one is dropped and `path` is left as it is.
    """
    make_directory(path.parent)
    temporary = temporary_sibling(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=DIRECTORY_MODE)
    try:
        with writing(path):
            yield temporary
        mode = stat.S_IMODE(temporary.stat().st_mode)  # what the umask leaves of ours, and the parent's group bit
        for file in sorted(temporary.rglob("*")):
            # libraries choose their own modes (safetensors gives the group no access)
            if file.is_file():
                if file.stat().st_nlink == 1:  # another's file, linked here, keeps its mode
                    file.chmod(FILE_MODE & mode)
                _fsync_file(file)
            else:
                file.chmod(mode)
                fsync_directory(file)
        fsync_directory(temporary)
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync_directory(path.parent)


# File systems of this machine whose metadata reaches the disk in the order in which it was changed, and whose syncfs(2)
# returns when everything is there: ext2 to ext4, XFS, Btrfs, and tmpfs, which has no disk. Clients of network file
# systems and of FUSE need not hand syncfs(2) on to their servers, so there files are synchronised one by one.
_SYNCED_AS_A_WHOLE = {0xEF53, 0x58465342, 0x9123683E, 0x01021994}
_TELLS_OF_ERRORS = (5, 8)  # the Linux whose syncfs(2) is the first to report what could not be written


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _is_synced_as_a_whole(descriptor: int) -> bool:
    """Whether `_sync_file_system` puts everything on disk, reports errors, and keeps the order of what follows."""
    version = tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
    kind = ctypes.create_string_buffer(512)  # struct statfs begins with f_type, a long
    if version < _TELLS_OF_ERRORS or _libc().fstatfs(descriptor, kind) != 0:
        return False
    return ctypes.c_long.from_buffer(kind).value in _SYNCED_AS_A_WHOLE


def _sync_file_system(descriptor: int) -> None:
    """Put on disk what has been written to the file system of an open file; errors since it was opened are raised."""
    if _libc().syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def write_directory(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a directory of these files, which appears whole or not at all; `path` is left as it is if it exists.

    Their content is on disk before the name appears, by one call where the file system allows it. There the name is
    on disk only after the next `fsync_directory` of the parent, though not later than anything that is changed after
    it; elsewhere it is on return.
    """
    temporary = temporary_sibling(path)
    try:
        temporary.mkdir(mode=DIRECTORY_MODE)
    except OSError:  # left by a process with the same id, or there is no parent
        remove(make_directory(path.parent) / temporary.name)
        temporary.mkdir(mode=DIRECTORY_MODE)
    try:
        with writing(path):
            is_ordered = _fill(temporary, files)
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
            remove(temporary)
    except BaseException:
        remove(temporary)
        raise
    if not is_ordered:
        fsync_directory(path.parent)


def _write_new(path: Path, content: bytes, sync: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    try:
        _write_all(descriptor, content)
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fill(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Write files into a directory and put them on disk; return whether what follows keeps its order."""
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # before anything is written: errors since then are told
    try:
        as_a_whole = _is_synced_as_a_whole(place)
        for name, content in files.items():
            _write_new(folder / name, content, sync=not as_a_whole)
        if as_a_whole:
            try:
                _sync_file_system(place)
            except OSError:  # another program's file may be meant: ask about ours
                for name in files:
                    _fsync_file(folder / name)
                as_a_whole = False
        if not as_a_whole:
            os.fsync(place)
    finally:
        os.close(place)
    return as_a_whole


def remove(path: Path) -> None:
    """Remove a file or a whole directory, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep_temporaries(directory: Path, of: str = "*") -> None:
    """Remove what killed processes left in `directory`: temporary siblings of `of` whose writer is gone.

    Call it before writing there.
    """
    for path in directory.glob(f".{of}.tmp-*"):
        host, _, process = path.name.rpartition(".tmp-")[2].rpartition("-")
        if host == os.uname().nodename and process.isdigit():
            # a container's first process has the same id every time
            abandoned = int(process) == os.getpid() or not is_running(int(process))
        else:
            abandoned = _age(path) > _ABANDONED_SECONDS
        if abandoned:
            remove(path)


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # its writer renamed or removed it meanwhile
        return 0.0


def is_running(process: int) -> bool:
    """Whether a process with this id exists on this host."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def why_not_a_file(mode: int) -> str:
    """What a message says of something that is no regular file, by its `st_mode`."""
    if stat.S_ISDIR(mode):
        return "is a directory, not a file"
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return f"is not a regular file but {kinds.get(stat.S_IFMT(mode), 'a device')}"


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with open_file(path) as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def fingerprint(value: Any, encode: Callable[[Any], Any] = str) -> str:
    """Hex SHA-256 of a JSON-ready value in canonical form: same value, same fingerprint, on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=encode)
    return hashlib.sha256(text.encode()).hexdigest()


def absolute(path: str) -> Path:
    """The absolute path, with symbolic links kept."""
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 (Path.absolute keeps '..')
