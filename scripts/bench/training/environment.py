"""TRL's own environment: made once in the cache, with the same torch, transformers and PEFT as alignctl's.

alignctl does not depend on TRL, and TRL's pins must not decide what alignctl runs with; equal versions of
what both stand on leave only the two trainers to be compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

from alignctl.models.machine import cache_root

TRL = "1.16.0"
SHARED = ("torch", "transformers", "peft")
NAMED = ("trl", *SHARED, "accelerate", "datasets", "numpy")
PROBE = f"""
import json
from importlib.metadata import PackageNotFoundError, version
found = {{}}
for name in {NAMED!r}:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def trl_python(given: Path | None) -> tuple[Path, dict[str, str]]:
    """The interpreter that has TRL, and the versions it has; made where none is given."""
    python = given or made_environment()
    found = probe(python)
    missing = [name for name in ("trl", *SHARED) if name not in found]
    if missing:
        raise SystemExit(f"{python} has no {', '.join(missing)}; without --trl-python one is made")
    if found["trl"] != TRL:
        raise SystemExit(f"{python} has trl {found['trl']}, this benchmark compares with {TRL}")
    for name in SHARED:
        if public(found[name]) != public(version(name)):
            print(f"note: {name} {found[name]} for TRL, {version(name)} for alignctl", file=sys.stderr)
    return python, found


def made_environment() -> Path:
    """A virtual environment below alignctl's cache, made on first use."""
    pins = [f"trl=={TRL}", *(f"{name}=={public(version(name))}" for name in SHARED)]
    directory = cache_root() / "bench" / "-".join(pin.replace("==", "-") for pin in pins)
    python, done = directory / "bin" / "python", directory / "complete"
    if not done.exists():
        print(f"making TRL's environment in {directory}", file=sys.stderr)
        venv.create(directory, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *pins], check=True)
        # Written last: an environment whose making was broken off is made anew.
        done.touch()
    return python


def probe(python: Path) -> dict[str, str]:
    """Versions of what matters there."""
    answer = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, check=True)
    return json.loads(answer.stdout)


def public(found: str) -> str:
    """A version without its local part: 2.13.0+cpu is on no index under that name."""
    return found.partition("+")[0]
