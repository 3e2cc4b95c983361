"""The memory a run says it will need against what it took, over shapes of models, rows and settings.

    python scripts/bench/memory.py
    python scripts/bench/memory.py --only lora

Every case is a whole `alignctl train` of two steps in a process of its own, on random weights and made-up
pairs. The estimate is the one in run.json, written before the first step; the peak is the kernel's count of
resident memory for the process, from its start to its end, evaluation and checkpoint among it. Prints a
markdown table. Exits with 1 if an estimate is more than 15 % off.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 0.15


@dataclass(frozen=True, slots=True)
class Shape:
    """A model of random weights."""

    kind: str
    """As transformers names its config."""
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = True


SHAPES = {
    "tiny": Shape("Llama", 2, 64, 128, 4, 2, 259),
    "llama-25m": Shape("Llama", 8, 512, 1376, 8, 4, 512),
    "llama-135m": Shape("Llama", 30, 576, 1536, 9, 3, 49152),
    "qwen2-80m": Shape("Qwen2", 12, 640, 2560, 10, 2, 32000, tied=False),
    "gemma-150m": Shape("Gemma", 6, 768, 6144, 8, 1, 64000),
    "llama-360m": Shape("Llama", 32, 960, 2560, 15, 5, 49152),
    "wide-500m": Shape("Qwen2", 8, 2048, 8192, 16, 4, 32000),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A run: a shape, the tokens of its prompts and answers, about, and settings."""

    shape: str
    prompt: int
    answer: int
    words: str = ""
    """Settings as they are typed."""

    @property
    def settings(self) -> list[str]:
        """The settings one by one."""
        return self.words.split()


ROWS = 40
LORA = "adapter=lora"
LOW = "train.dtype=bfloat16"
AGAIN = "hardware.activation_checkpointing=true"
CASES = (
    Case("tiny", 40, 40),
    Case("tiny", 300, 300, "train.batch_size=32"),
    Case("llama-25m", 125, 45, "train.batch_size=2"),
    Case("llama-25m", 125, 45, "train.batch_size=32"),
    Case("llama-25m", 300, 300, LOW),
    Case("llama-25m", 300, 300, f"{LORA} {AGAIN}"),
    Case("llama-135m", 125, 45),
    Case("llama-135m", 125, 45, LOW),
    Case("llama-135m", 125, 45, AGAIN),
    Case("llama-135m", 125, 45, f"{LOW} {AGAIN}"),
    Case("llama-135m", 125, 45, LORA),
    Case("llama-135m", 125, 45, f"{LORA} {LOW}"),
    Case("llama-135m", 125, 45, f"{LORA} {LOW} {AGAIN}"),
    Case("llama-135m", 125, 45, "hardware.micro_tokens=512"),
    Case("llama-135m", 300, 300, "train.batch_size=2"),
    Case("llama-135m", 125, 45, "algo=sft"),
    Case("llama-135m", 125, 45, "algo=reward"),
    Case("llama-135m", 125, 45, f"algo=hypo {LOW}"),
    Case("llama-135m", 125, 45, "algo=ppo reward=pattern reward.pattern=a"),
    Case("qwen2-80m", 125, 45),
    Case("qwen2-80m", 400, 400, f"{LORA} train.batch_size=2"),
    Case("qwen2-80m", 125, 45, "algo=reward"),
    Case("gemma-150m", 125, 45, "train.batch_size=4"),
    Case("gemma-150m", 125, 45, f"{LOW} {AGAIN}"),
    Case("llama-360m", 125, 45, f"{LORA} train.batch_size=4"),
    Case("llama-360m", 125, 45, "train.batch_size=2"),
    Case("wide-500m", 125, 45, f"{LORA} {LOW} train.batch_size=4"),
)
ALWAYS = (
    *("train.steps=2", "eval.samples=2", "eval.max_new_tokens=8", "dataset.eval_size=4", "train.lr=1e-5"),
    *("hardware=cpu", "overwrite=true"),
)
ANSWERING = ("algo.samples=2", "algo.max_new_tokens=32")


def main() -> None:
    """Parse the command line, run the cases one after another, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="cases whose shape or settings contain this")
    parser.add_argument("--scratch", type=Path, help="where to write (default: a temporary directory)")
    parser.add_argument("--make", nargs=2, metavar=("SHAPE", "DIR"), help="write a model of a shape, no more")
    args = parser.parse_args()
    if args.make:
        make_model(SHAPES[args.make[0]], Path(args.make[1]))
        return
    print(
        "| model | prompt + answers | settings | estimate, GB | peak, GB | error |\n|---|---|---|---|---|---|"
    )
    worst = 0.0
    for case in CASES:
        if args.only not in f"{case.shape} {case.words}":
            continue
        with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
            estimate, peak = measured(case, Path(scratch))
        error = estimate / peak - 1
        worst = max(worst, abs(error))
        lengths = f"{case.prompt} + 2 x {case.answer}"
        row = (case.shape, lengths, case.words or "-", f"{estimate:.2f}", f"{peak:.2f}", f"{error:+.0%}")
        print(f"| {' | '.join(row)} |", flush=True)
    sys.exit(worst > LIMIT)


def measured(case: Case, scratch: Path) -> tuple[float, float]:
    """Estimate and peak of a run in a process of its own, in GB."""
    # In a process of its own: what this one holds would count for its children until they begin.
    make = [sys.executable, __file__, "--make", case.shape, str(scratch / "model")]
    subprocess.run(make, check=True, capture_output=True)
    write_pairs(scratch / "pairs.jsonl", case)
    online = any(word.startswith(("algo=hypo", "algo=ppo")) for word in case.settings)
    words = [
        *(f"model={scratch / 'model'}", f"dataset={scratch / 'pairs.jsonl'}", f"out={scratch / 'run'}"),
        *("train.max_prompt=1024", "train.max_length=2048"),
        *ALWAYS,
        *(ANSWERING if online else ()),
        *case.settings,
    ]
    log = scratch / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "alignctl.cli", "train", *words],
            stdout=file,
            stderr=file,
            env={**os.environ, "ALIGNCTL_CACHE": str(scratch / "cache")},
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{case}\n{log.read_text()}")
    record: Mapping[str, Any] = json.loads((scratch / "run" / "run.json").read_text())
    unit = 1 if sys.platform == "darwin" else 1024
    return record["memory_estimate_gb"], usage.ru_maxrss * unit / 1e9


def make_model(shape: Shape, directory: Path) -> None:
    """A model directory of random weights with one token per byte."""
    import torch
    import transformers

    from alignctl.models.tiny import tiny_tokenizer

    config = transformers.AutoConfig.for_model(
        shape.kind.lower(),
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.hidden // shape.heads,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)


def write_pairs(path: Path, case: Case) -> None:
    """Pairs whose lengths scatter by a fifth around the case's."""
    draw = random.Random(0)

    def text(tokens: int) -> str:
        return "".join(draw.choices("abcdefgh ", k=round(tokens * draw.uniform(0.8, 1.2))))

    with path.open("w", encoding="utf-8") as file:
        for number in range(ROWS):
            row = {
                "prompt": f"{number} {text(case.prompt)}",
                "chosen": text(case.answer),
                "rejected": text(case.answer),
            }
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
