"""HyPO against DPO at equal pairs and steps (arXiv 2406.01462): KL to the reference, gold score, win rate.

    python scripts/studies/hypo.py --out studies/hypo

On SmolLM2 and the demo pairs, whose gold score is the truth. Budget on two cores: seeds x (a DPO run and one
HyPO run per lambda) and one evaluation of all; three seeds of 40 steps and one lambda took 50 minutes on one
of the two, beside another study.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from common import Dot, alignctl, figures, markdown, over_seeds, scatter

METRICS = {
    "KL per answer, nats": "kl/sequence",
    "KL per token": "kl/token",
    "gold score": "gold/mean",
    "win rate over the start": "win_rate",
    "length, tokens": "response_length",
    "accuracy_logp": "accuracy_logp",
}


def main() -> None:
    """Train, evaluate, print the table, write the chart."""
    options = _options()
    shared = [*options.set, f"train.steps={options.steps}", "train.dtype=bfloat16", "dataset.gold_samples=16"]
    arms = {"dpo": ["algo=dpo"]} | {
        f"hypo, lambda {value}": ["algo=hypo", f"algo.lambda={value}"] for value in options.lambdas
    }
    runs: dict[str, list[Path]] = {name: [] for name in arms}
    for seed in range(options.seeds):
        for number, (name, words) in enumerate(arms.items()):
            out = options.out / f"{number}-seed-{seed}"
            runs[name].append(alignctl(["train", *words, *shared, f"seed={seed}"], out))
    models = [str(run) for of_arm in runs.values() for run in of_arm]
    judged = ["judge=gold", f"eval.samples={options.answers}", "eval.temperature=1"]
    table = figures(alignctl(["eval", *models, *judged], options.out / "eval"))
    rows, dots = [], []
    for number, (name, of_arm) in enumerate(runs.items()):
        measured = [table[run.name] for run in of_arm]
        rows.append(
            [name, *(over_seeds([one[key]["value"] for one in measured]) for key in METRICS.values())]
        )
        for run, one in zip(of_arm, measured, strict=True):
            gold = one["gold/mean"]
            dots.append(Dot(number, one["kl/sequence"]["value"], gold["value"], tuple(gold["ci"]), run.name))
    print(markdown(["arm", *METRICS], rows))
    _differences(table, runs)
    chart = scatter("HyPO and DPO", "KL per answer, nats", "gold score", list(runs), dots)
    (options.out / "hypo.svg").write_text(chart)


def _differences(table: dict, runs: dict[str, list[Path]]) -> None:
    """Seed by seed against DPO: the same pairs in the same order, so differences are paired."""
    base, *others = runs.items()
    for name, of_arm in others:
        for key in ("kl/sequence", "gold/mean", "win_rate"):
            deltas = [
                table[run.name][key]["value"] - table[dpo.name][key]["value"]
                for run, dpo in zip(of_arm, base[1], strict=True)
            ]
            lower = sum(delta < 0 for delta in deltas)
            print(f"{name} less dpo, {key}: {over_seeds(deltas)} (lower in {lower} of {len(deltas)} seeds)")
        print(f"  mean KL ratio {_ratio(table, of_arm, base[1]):.2f}")


def _ratio(table: dict, ours: list[Path], theirs: list[Path]) -> float:
    mean = [
        statistics.fmean(table[run.name]["kl/sequence"]["value"] for run in side) for side in (ours, theirs)
    ]
    return mean[0] / mean[1]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("studies/hypo"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--lambdas", type=float, nargs="+", default=[0.01])
    parser.add_argument("--answers", type=int, default=128, help="held-out prompts answered by each model")
    parser.add_argument("--set", nargs="*", default=[], help="more settings for every run, key=value")
    return parser.parse_args()


if __name__ == "__main__":
    main()
