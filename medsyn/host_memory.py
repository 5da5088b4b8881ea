"""The memory of this machine that a process may use: Slurm and containers give it less than there is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


def limits() -> list[int]:
    """The limits, in bytes, of the control groups that this process is in; those of a job are above its steps'."""
    return [limit for limit, _ in _groups(read(Path("/proc/self/cgroup")))]


def available() -> int | None:
    """Bytes that this process can still use without swapping or being killed; None if that is unknown."""
    words = read(Path("/proc/meminfo")).split()
    if "MemAvailable:" not in words:
        return None
    free = int(words[words.index("MemAvailable:") + 1]) * 1024
    return max(0, min([free, *(limit - used for limit, used in _groups(read(Path("/proc/self/cgroup"))))]))


def _groups(membership: str, root: Path = _ROOT) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use) of a process's groups that have a limit; pages of files that can be dropped are not used.

    `membership` is what /proc/<pid>/cgroup says: `0::/job_7/step_0`, or `4:memory:/job_7/step_0` in version 1.
    """
    for line in membership.splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            mount, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = mount / group.strip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(mount) and (limit := read(folder / names[0])).isdigit():
                statistics = read(folder / "memory.stat").split()
                files = statistics[statistics.index(names[2]) + 1] if names[2] in statistics else "0"
                yield int(limit), int(read(folder / names[1]) or 0) - int(files)


def read(path: Path) -> str:
    """The text of a file of the system's, or nothing."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
