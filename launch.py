"""The specification's command, `python launch.py submit CONFIG ...`: the same program as `medsyn`."""

from __future__ import annotations

import sys

from medsyn.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
