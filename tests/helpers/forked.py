"""A task that tells what kind of process it is, for `python -m`: the arguments are what to do, and where to tell it."""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path


def facts() -> dict[str, object]:
    return {
        "arguments": sys.argv[1:],
        "parent": os.getppid(),
        "session": os.getsid(0) == os.getpid() == os.getpgid(0),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "files": sorted(int(path.name) for path in Path("/proc/self/fd").iterdir() if path.exists()),
        "input": Path("/proc/self/fd/0").readlink().as_posix(),
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
        "limit": resource.getrlimit(resource.RLIMIT_AS),
        "handlers": [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)],
        "program": sys.argv[0],
        "name": sys.modules["__main__"].__name__,
    }


if __name__ == "__main__":
    if sys.argv[1] == "tell":
        print(json.dumps(facts()))
    elif sys.argv[1] == "wait":
        print("waiting", flush=True)
        time.sleep(60)
    elif sys.argv[1] == "raise":
        raise ValueError("boom")
    elif sys.argv[1] == "linger":
        atexit.register(print, "at exit")
        threading.Timer(0.05, print, ["a thread"]).start()
    sys.exit(int(sys.argv[2]))
