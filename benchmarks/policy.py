"""Does the Policy know what its prompts say? Usage and method: `benchmarks/scoring/policy.py`."""

import sys

from scoring.policy import main

if __name__ == "__main__":
    sys.exit(main())
