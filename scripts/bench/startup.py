"""How long the command line takes to answer before anything is computed.

    python scripts/bench/startup.py --rounds 9

Whole processes in turn, so that a busy moment meets all of them; median and range of the wall clock.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "alignctl --help": ["--help"],
    "alignctl train --help": ["train", "--help"],
    "alignctl ls": ["ls"],
    "a setting mistyped": ["train", "algo.bta=1"],
    "alignctl train --cfg job": ["train", "--cfg", "job"],
}


def main() -> None:
    """Time every command and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    taken = [{name: _seconds(words) for name, words in COMMANDS.items()} for _ in range(rounds)]
    print("| command | seconds, median | range |\n|---|---:|---:|")
    for name in COMMANDS:
        seconds = [one[name] for one in taken]
        print(f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} to {max(seconds):.2f} |")


def _seconds(words: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "alignctl", *words], capture_output=True, check=False)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
