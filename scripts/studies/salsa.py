"""SALSA-PPO against PPO (arXiv 2411.01798) at equal steps and beta: does a soup as reference help?

    python scripts/studies/salsa.py --out studies/salsa

Two SFT seeds and one reward model, then per seed a PPO run from the first SFT model, held to it, and a
SALSA run from the same model, held to the soup of both. The reward model is optimised, the demo's gold
score is the truth. Also the landscape between the two SFT models, from `alignctl soup soup=sweep`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from common import Dot, alignctl, figures, markdown, over_seeds, scatter

METRICS = {
    "gold score": "gold/mean",
    "win rate over the SFT model": "win_rate",
    "KL per answer to the SFT model, nats": "kl/sequence",
    "length, tokens": "response_length",
}


def main() -> None:
    """Train the chain, evaluate, print the tables, write the charts."""
    options = _options()
    out, common = options.out, [*options.set, "train.dtype=bfloat16", "dataset.gold_samples=16"]
    supervised = ["train", "algo=sft", *common, f"train.steps={options.sft_steps}"]
    sft = [alignctl([*supervised, f"seed={seed}"], out / f"sft-{seed}") for seed in (0, 1)]
    judging = ["train", "algo=reward", *common, f"train.steps={options.reward_steps}"]
    reward = alignctl(judging, out / "reward")
    members = f"algo.reference.members=[{sft[0]},{sft[1]}]"
    arms = {"ppo": ["algo=ppo"], "salsa-ppo": ["algo=salsa-ppo", members]}
    against = ["reward=model", f"reward.path={reward}", f"train.steps={options.steps}"]
    runs: dict[str, list[Path]] = {name: [] for name in arms}
    for seed in range(options.seeds):
        for name, words in arms.items():
            words = ["train", *words, f"model={sft[0]}", *against, *common, *options.online, f"seed={seed}"]
            runs[name].append(alignctl(words, out / f"{name}-seed-{seed}"))
    _report(options, sft, runs)
    points = ["soup=sweep", f"soup.points={options.points}", "dataset=demo"]
    soup = alignctl(["soup", *map(str, sft), *points], out / "sweep")
    print(json.dumps(json.loads((soup / "soup.json").read_text()).get("search"), indent=1))


def _report(options: argparse.Namespace, sft: list[Path], runs: dict[str, list[Path]]) -> None:
    models = [str(run) for of_arm in runs.values() for run in of_arm]
    words = ["eval", *models, f"reference={sft[0]}", "judge=gold", f"eval.samples={options.answers}"]
    table = figures(alignctl([*words, "eval.temperature=1"], options.out / "eval"))
    rows = [["sft-0", *(_one(table[str(sft[0].name)], key) for key in METRICS.values()), "", ""]]
    dots = []
    for number, (name, of_arm) in enumerate(runs.items()):
        measured = [table[run.name] for run in of_arm]
        reward, kl = ([_last(run, key) for run in of_arm] for key in ("reward/mean", "kl/sequence"))
        cells = [over_seeds([one[key]["value"] for one in measured]) for key in METRICS.values()]
        rows.append([name, *cells, over_seeds(reward), over_seeds(kl)])
        for run, one in zip(of_arm, measured, strict=True):
            gold = one["gold/mean"]
            dots.append(Dot(number, one["kl/sequence"]["value"], gold["value"], tuple(gold["ci"]), run.name))
    print(markdown(["arm", *METRICS, "reward, last step", "KL to its own reference, last step"], rows))
    chart = scatter(
        "SALSA-PPO and PPO", "KL per answer to the SFT model, nats", "gold score", list(runs), dots
    )
    (options.out / "salsa.svg").write_text(chart)


def _one(metrics: dict, key: str) -> str:
    if key not in metrics:
        return ""
    low, high = metrics[key]["ci"]
    return f"{metrics[key]['value']:.3f} [{low:.3f}, {high:.3f}]"


def _last(run: Path, key: str) -> float:
    """The mean of a metric over the last five rollouts."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = [line[key] for line in lines if line["split"] == "train"][-5:]
    return sum(values) / len(values)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("studies/salsa"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--sft-steps", type=int, default=80)
    parser.add_argument("--reward-steps", type=int, default=80)
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--answers", type=int, default=128, help="held-out prompts answered by each model")
    parser.add_argument("--set", nargs="*", default=[], help="more settings for every run, key=value")
    parser.add_argument("--online", nargs="*", default=[], help="more settings for ppo and salsa-ppo")
    return parser.parse_args()


if __name__ == "__main__":
    main()
