"""`python -m alignctl.cli`, the form in which a sweep starts its jobs."""

from __future__ import annotations

import sys

from alignctl.cli import main

if __name__ == "__main__":
    sys.exit(main())
