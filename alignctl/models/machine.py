"""What the machine gives: the place of the cache and the memory that is free. Imports no torch, so that the
command line can ask too."""

from __future__ import annotations

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")


def cache_root() -> Path:
    """`$ALIGNCTL_CACHE`, else ~/.cache/alignctl; everything below it can be deleted at any time."""
    return Path(os.environ.get("ALIGNCTL_CACHE") or Path.home() / ".cache" / "alignctl")


def compiled_code() -> Path:
    """Where torch.compile leaves its code: it depends on the model alone, so later runs find it."""
    return cache_root() / "compiled"


def total_memory() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_memory() -> int:
    """Bytes of main memory that a process can still have; half of all where the system does not say."""
    for line in MEMINFO.read_text().splitlines() if MEMINFO.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return total_memory() // 2
