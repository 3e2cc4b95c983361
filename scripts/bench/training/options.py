"""The command line of the training benchmark."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from measurements import Case
from worker import MICRO_PAIRS

CASES = ("full-float32-8", "full-bfloat16-8", "lora-bfloat16-8", "full-bfloat16-1", "full-bfloat16-32")
"""Every choice once, around the case that stands for most: full fine-tuning in bfloat16, 8 pairs a step."""


def arguments(description: str) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python scripts/bench/training", description=description)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="preference rows that alignctl reads")
    source.add_argument("--lengths", choices=("hh", "ultrafeedback"), help="made-up tokens in those lengths")
    parser.add_argument("--model", type=Path, help="model directory (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--cases", nargs="+", type=parse_case, default=[parse_case(word) for word in CASES])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of 8 pairs per run")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("runs/bench-training"))
    parser.add_argument("--trl-python", type=Path, help="an interpreter that has TRL (default: one is made)")
    return parser.parse_args()


def parse_case(word: str) -> Case:
    """ADAPTER-DTYPE-PAIRS, such as lora-bfloat16-8."""
    adapter, dtype, batch = (word.split("-") + [""] * 3)[:3]
    known = adapter in ("full", "lora") and dtype in ("float32", "bfloat16") and batch.isdecimal()
    if not known or word.count("-") != 2:
        raise argparse.ArgumentTypeError(f"{word!r} is not full|lora - float32|bfloat16 - PAIRS")
    pairs = int(batch)
    if not 1 <= pairs <= MICRO_PAIRS and (pairs == 0 or pairs % MICRO_PAIRS):
        raise argparse.ArgumentTypeError(f"{word!r}: up to {MICRO_PAIRS} pairs, or a multiple of that")
    return Case(adapter, dtype, pairs)
