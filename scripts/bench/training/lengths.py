"""Pairs of made-up tokens with the lengths of a real data set, so that a benchmark needs no download.

    python scripts/bench/training/lengths.py --measure hh.jsonl.gz --shape hh  # what made lengths/hh.json
    python scripts/bench/training/lengths.py --fit                             # lengths/ultrafeedback.json

A shape is a table of (prompt, chosen, rejected) token counts, lengths/SHAPE.json, which also says where it
comes from. hh was measured; of UltraFeedback no copy was at hand, so its table is drawn from a distribution
fitted to published figures (`PUBLISHED`). What a step costs depends on the lengths alone; the token ids are
drawn uniformly and mean nothing, so a loss on them says nothing either.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignctl.records import Example

DIRECTORY = Path(__file__).parent / "lengths"
SHAPES = ("hh", "ultrafeedback")
ROWS = 400
"""Triples in a table: enough for the tail at one in a hundred, small enough to read."""
MAX_LENGTH, MAX_PROMPT = 1024, 512
"""Tokens of a prompt with one answer, and of the prompt: our defaults, and those of the source below."""


@dataclass(frozen=True, slots=True)
class Published:
    """Figures of UltraFeedback-binarized that the fit has to meet."""

    median_length: float
    """Prompt with one answer, in tokens."""
    median_ratio: float
    """Prompt over answer."""
    prompt_bytes: float
    answer_bytes: float
    """Means."""


PUBLISHED = Published(median_length=409, median_ratio=0.42, prompt_bytes=704, answer_bytes=1217)
SOURCE = (
    "No copy of UltraFeedback was measured. Published: median length 409 and median prompt-to-completion "
    "ratio 0.42 (arXiv 2410.20305, table 1; read as prompt with one answer, in tokens of their 7B or 8B "
    "model). Mean bytes of prompt and answer, 704 and 1217, follow from the sizes on two dataset cards: "
    "p + c + r = 3138 (argilla/ultrafeedback-binarized-preferences: 203,496,688 bytes, 63,619 rows, of "
    "each row about 61 bytes of other fields), 3 p + c + r = 4545 "
    "(csarron/argilla-ultrafeedback-binarized-preferences-cleaned: 284,937,773 bytes, 60,917 rows, about "
    "132 of other fields)."
)
ASSUMED = (
    "Assumed, not published: 4 bytes a token; prompt and answers log-normal; chosen and rejected of one "
    "distribution (a third card, HuggingFaceH4/ultrafeedback_binarized, puts them 3 % apart); "
    "correlation of the logarithms of chosen and rejected 0.5, of prompt and answers 0; prompts cut at "
    "512 tokens, prompt and answer at 1024."
)
BYTES_A_TOKEN = 4.0
ANSWER_CORRELATION = 0.5


# --- pairs ---------------------------------------------------------------------------------------------


def made_up_pairs(shape: str, count: int, vocabulary: int, seed: int) -> list[Example]:
    """`count` pairs of random token ids; the same for the same arguments, on every machine.

    Lengths run through the whole table in an order drawn by the seed, then through it again in another, so
    that the means of a few hundred pairs are those of the table. Ids lie in [vocabulary / 10, vocabulary),
    clear of the special tokens that most vocabularies begin with. Raises SystemExit for an unknown shape.
    """
    table = read_table(shape)
    # Two streams, so that the first pairs are the same however many are asked for.
    shuffle, draw = (np.random.Generator(np.random.PCG64([seed, stream])) for stream in (0, 1))
    passes = -(-count // len(table))
    order = np.concatenate([shuffle.permutation(len(table)) for _ in range(passes)])[:count]
    pairs = []
    for number, place in enumerate(order):
        prompt, *answers = (
            draw.integers(vocabulary // 10, vocabulary, size=length, dtype=np.int32)
            for length in table[place]
        )
        pairs.append(Example(id=f"{shape}:{number}", prompt=prompt, branches=tuple(answers)))
    return pairs


def read_table(shape: str) -> np.ndarray:
    """int64 [n, 3]: prompt, chosen, rejected."""
    if shape not in SHAPES:
        raise SystemExit(
            f"no lengths called {shape!r}; there are {' and '.join(SHAPES)}, or give --data FILE"
        )
    return np.array(json.loads((DIRECTORY / f"{shape}.json").read_text(encoding="utf-8"))["triples"])


# --- tables --------------------------------------------------------------------------------------------


def measured(data: Path, model: str) -> np.ndarray:
    """int64 [n, 3] of every pair of a file, as `alignctl train` prepares it for `model`."""
    # Here and not above: who only draws pairs needs neither a tokenizer nor the data path.
    from alignctl.cli.compose import load
    from alignctl.cli.options import open_conf
    from alignctl.config import TrainConfig
    from alignctl.data.preferences import load_preferences, open_workshop
    from alignctl.models.load import Source, load_tokenizer
    from alignctl.models.machine import cache_root
    from alignctl.runners.training_data import unseen

    config = load(open_conf(None), [f"dataset={data}", "dataset.on_bad=drop", "dataset.eval_size=0"])
    assert isinstance(config, TrainConfig)
    assert config.dataset.kind == "file"
    workshop = open_workshop(
        config.dataset,
        load_tokenizer(Source(model, None)),
        vocabulary=1 << 20,
        max_length=MAX_LENGTH,
        max_prompt=MAX_PROMPT,
        cache=cache_root(),
        report=unseen,
    )
    found = load_preferences(config.dataset, workshop, seed=0, kind="pairs")
    return np.array(
        [(len(pair.prompt), *map(len, pair.branches)) for pair in found.pool.examples(found.train)]
    )


def representative(lengths: np.ndarray, rows: int) -> np.ndarray:
    """At most `rows` of [n, 3], with nearly the means, squares and products of all.

    One row of each of `rows` strata of the packed length, drawn 2,000 times; the draw whose moments are
    nearest is kept. Squares and products count, since attention costs them.
    """
    ranked = lengths[np.lexsort((lengths[:, 2], lengths[:, 1], lengths[:, 0], lengths.sum(1)))]
    if len(ranked) <= rows:
        return ranked
    draw = np.random.Generator(np.random.PCG64(0))
    wanted = moments(ranked)

    def one_draw() -> np.ndarray:
        return ranked[((np.arange(rows) + draw.random(rows)) * len(ranked) / rows).astype(int)]

    def distance(kept: np.ndarray) -> float:
        return float(np.abs(moments(kept) / wanted - 1).max())

    return min((one_draw() for _ in range(2000)), key=distance)


def moments(lengths: np.ndarray) -> np.ndarray:
    """Means of p, c, r and of their squares and products: [..., n, 3] to [..., 9]."""
    first, second = np.triu_indices(3)
    whole = lengths.astype(float)
    return np.concatenate([whole, whole[..., first] * whole[..., second]], axis=-1).mean(-2)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """A length: its logarithm is normal around log(median)."""

    median: float
    sigma: float

    @staticmethod
    def of(median: float, mean: float) -> LogNormal:
        """mean / median = exp(sigma^2 / 2)."""
        return LogNormal(median, math.sqrt(2 * math.log(mean / median)))

    def at(self, normal: np.ndarray) -> np.ndarray:
        """Lengths for standard normal values."""
        return self.median * np.exp(self.sigma * normal)


def fitted(normals: np.ndarray) -> tuple[LogNormal, LogNormal]:
    """Prompt and answer that meet `PUBLISHED` on standard normal values [n, 2].

    The ratio of two independent log-normal values has the ratio of their medians as its median, so one
    unknown is left, the answer's median; it is found by halving on the median of the sum.
    """
    prompt_mean, answer_mean = (
        size / BYTES_A_TOKEN for size in (PUBLISHED.prompt_bytes, PUBLISHED.answer_bytes)
    )

    def parts(answer_median: float) -> tuple[LogNormal, LogNormal]:
        prompt_median = PUBLISHED.median_ratio * answer_median
        return LogNormal.of(prompt_median, prompt_mean), LogNormal.of(answer_median, answer_mean)

    low, high = answer_mean / 3, answer_mean
    for _ in range(40):
        middle = (low + high) / 2
        prompt, answer = parts(middle)
        found = float(np.median(prompt.at(normals[:, 0]) + answer.at(normals[:, 1])))
        low, high = (middle, high) if found < PUBLISHED.median_length else (low, middle)
    return parts(low)


def drawn(count: int, seed: int) -> tuple[np.ndarray, dict[str, float]]:
    """int64 [count, 3] from the fitted distribution, cut as training would cut them, and its parameters."""
    draw = np.random.Generator(np.random.PCG64(seed))
    normals = draw.standard_normal((count, 3))
    prompt, answer = fitted(normals[:, :2])
    rejected = ANSWER_CORRELATION * normals[:, 1] + math.sqrt(1 - ANSWER_CORRELATION**2) * normals[:, 2]
    columns = (prompt.at(normals[:, 0]), answer.at(normals[:, 1]), answer.at(rejected))
    whole = np.stack(columns, axis=1).round().clip(1).astype(np.int64)
    whole[:, 0] = whole[:, 0].clip(max=MAX_PROMPT)
    whole[:, 1:] = np.minimum(whole[:, 1:], MAX_LENGTH - whole[:, :1])
    return whole, {
        "prompt_median": prompt.median,
        "prompt_sigma": prompt.sigma,
        "answer_median": answer.median,
        "answer_sigma": answer.sigma,
    }


def table(lengths: np.ndarray, facts: dict[str, Any]) -> str:
    """The file: what it is, the means and medians of the table as shipped and of all rows, the triples."""
    kept = representative(lengths, ROWS)
    head = facts | {
        "rows": len(lengths),
        "all": summary(lengths),
        "table": summary(kept),
    }
    triples = ",\n  ".join(json.dumps(triple) for triple in kept.tolist())
    return json.dumps(head, indent=1)[:-2] + f',\n "triples": [\n  {triples}\n ]\n}}\n'


def summary(lengths: np.ndarray) -> dict[str, float | Sequence[float]]:
    """Means of prompt, chosen and rejected, and the two medians that others publish."""
    one_answer = lengths[:, :1] + lengths[:, 1:]
    return {
        "mean": lengths.mean(0).round(1).tolist(),
        "median_prompt_with_one_answer": float(np.median(one_answer)),
        "median_prompt_to_answer": round(float(np.median(lengths[:, :1] / lengths[:, 1:])), 2),
    }


def main() -> None:
    """Write the table that was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--measure", type=Path, metavar="FILE", help="preference rows that alignctl reads")
    what.add_argument(
        "--fit", action="store_true", help="draw UltraFeedback's lengths from published figures"
    )
    parser.add_argument("--shape", choices=SHAPES, default="hh", help="name of the measured table")
    parser.add_argument("--model", help="directory of the tokenizer (default: the pinned SmolLM2)")
    options = parser.parse_args()
    order = {"order": "prompt, chosen, rejected; tokens"}
    if options.fit:
        lengths, parameters = drawn(100_000, seed=0)
        shape, facts = "ultrafeedback", {"source": SOURCE, "assumed": ASSUMED, "fit": parameters}
    else:
        from alignctl.models.pinned import pinned_directory

        lengths = measured(options.measure, options.model or str(pinned_directory(print)))
        shape, facts = options.shape, {"source": measured_from(options.measure)}
    (DIRECTORY / f"{shape}.json").write_text(table(lengths, order | facts), encoding="utf-8")
    print(f"{len(lengths)} rows, {summary(lengths)}")


def measured_from(data: Path) -> str:
    """How a measured table came about."""
    return (
        f"Measured on every pair of {data.name} with SmolLM2-135M-Instruct's tokenizer and chat template "
        f"through alignctl's data path, max_length {MAX_LENGTH}, max_prompt {MAX_PROMPT}; the triples are a "
        "draw of them with nearly the same means and squares. Counts only, no text."
    )


if __name__ == "__main__":
    main()
