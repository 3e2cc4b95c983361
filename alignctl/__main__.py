"""`python -m alignctl`, the same as the command `alignctl`."""

from __future__ import annotations

import sys

from alignctl.cli import main

if __name__ == "__main__":
    sys.exit(main())
