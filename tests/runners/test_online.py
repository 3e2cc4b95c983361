"""Whole runs of sft, reward, hypo, ppo, salsa-ppo on the tiny model: what they leave and what they obey."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from alignctl.cli import main
from alignctl.models.load import locate_path

pytestmark = pytest.mark.usefixtures("workplace")

QUICK = {
    "model": "tiny",
    "dataset.pairs": "32",
    "dataset.eval_pairs": "8",
    "dataset.gold_samples": "4",
    "eval.max_new_tokens": "8",
    "eval.every": "2",
    "train.steps": "4",
    "train.batch_size": "4",
}
SHORT = {"algo.max_new_tokens": "8"}
# A tiny random model never ends an answer by itself, so rewards come from its letters.
LETTERS = {"reward": "pattern", "reward.pattern": "[aeiou]", "algo.missing_end_score": "null"}
HYPO = {"algo": "hypo", "algo.prompts_per_step": "2", "algo.lambda": "0.1", **SHORT}
PPO = {"algo": "ppo", "algo.samples": "2", **SHORT, **LETTERS}
RUNS = {
    "sft": {"algo": "sft"},
    "reward": {"algo": "reward"},
    "hypo": HYPO,
    "hypo-rloo": HYPO | {"algo.estimator": "rloo"},
    "hypo-prompts": HYPO | {"dataset.prompts": "12"},
    "hypo-lora": HYPO | {"adapter": "lora"},
    "ppo": PPO,
    "ppo-trunk": PPO | {"algo.critic": "trunk", "algo.critic_warmup": "1"},
    "ppo-separate": PPO | {"algo.critic": "separate", "algo.samples": "1", "algo.minibatches": "2"},
    "ppo-lora": PPO | {"adapter": "lora", "algo.kl_target": "1.0"},
}


def words(settings: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in (QUICK | settings).items()]


def train(out: str, settings: dict[str, str]) -> Path:
    """Run the command line in this process, expecting success."""
    assert main(["train", f"out={out}", *words(settings)]) == 0
    return Path(out)


def refused(settings: dict[str, str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["train", "out=refused", *words(settings)])
    return code, capsys.readouterr().err


def lines(run: Path, split: str) -> list[dict[str, float]]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["split"] == split]


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "model").glob("*model.safetensors")
    return load_file(file)


# --- every algorithm -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_every_algorithm_runs_from_the_command_line(name: str) -> None:
    run = train("run", RUNS[name])
    assert json.loads((run / "run.json").read_text())["status"] == "done"
    steps = lines(run, "train")
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(line["grad_norm"] > 0 for line in steps)
    assert [line["step"] for line in lines(run, "eval")] == [0, 2, 4]
    kinds = AutoModelForSequenceClassification if name == "reward" else AutoModelForCausalLM
    if name.endswith("lora"):
        assert (run / "model" / "adapter_config.json").is_file()
    else:
        assert sum(p.numel() for p in kinds.from_pretrained(run / "model").parameters()) > 1e4
    assert AutoTokenizer.from_pretrained(run / "model").chat_template
    assert len((run / "train_prompts.txt").read_text().split()) >= 12


@pytest.mark.parametrize("name", ["hypo", "ppo"])
def test_online_steps_log_what_they_sampled(name: str) -> None:
    for line in lines(train("run", RUNS[name]), "train"):
        assert {"kl/sequence", "kl/sequence_se", "kl/token", "response_length", "eos_rate"} <= set(line)
        assert 1 <= line["response_length"] <= 8
        assert 0 <= line["eos_rate"] <= 1


def test_sft_lowers_its_loss() -> None:
    held_out = lines(train("run", {"algo": "sft", "train.steps": "12"}), "eval")
    assert held_out[-1]["loss"] < held_out[0]["loss"] - 0.1


def test_a_policy_learns_what_the_reward_asks_for() -> None:
    settings = PPO | {"train.steps": "30", "train.lr": "5e-3", "algo.beta": "0", "algo.samples": "4"}
    rewards = [line["reward/mean"] for line in lines(train("run", settings), "train")]
    assert sum(rewards[-5:]) > sum(rewards[:5]) + 0.5


# --- laws ----------------------------------------------------------------------------------------------


def same_run(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


def test_hypo_with_lambda_0_is_dpo_bitwise() -> None:
    same_run(train("dpo", {"algo": "dpo"}), train("hypo", HYPO | {"algo.lambda": "0"}))


def test_salsa_with_alpha_0_is_ppo_bitwise() -> None:
    a = train("a", {"algo": "sft"})
    b = train("b", {"algo": "sft", "seed": "1"})
    ppo = PPO | {"model": str(a)}
    salsa = ppo | {
        "algo": "salsa-ppo",
        "algo.reference.members": f"[{a},{b}]",
        "algo.reference.alpha": "0",
    }
    same_run(train("ppo", ppo), train("salsa", salsa))


def test_salsa_measures_against_the_soup_and_can_start_from_it() -> None:
    a = train("a", {"algo": "sft", "train.lr": "1e-2"})
    b = train("b", {"algo": "sft", "train.lr": "1e-2", "seed": "1"})
    assert main(["soup", str(a), str(b), "out=both"]) == 0
    salsa = PPO | {"algo": "salsa-ppo", "model": str(a), "algo.reference.members": f"[{a},{b}]"}
    away = lines(train("away", salsa), "train")[0]
    there = lines(train("there", salsa | {"algo.policy_init": "soup"}), "train")[0]
    assert abs(there["kl/sequence"]) < 1e-3 < abs(away["kl/sequence"])
    on_disk = {"algo.reference.kind": "frozen", "algo.reference.path": "both", "algo.reference.members": "[]"}
    from_disk = lines(train("disk", salsa | on_disk), "train")[0]
    assert from_disk["kl/sequence"] == pytest.approx(away["kl/sequence"], abs=1e-4)


def test_the_reward_of_a_run_trains_a_policy_and_its_scale_is_kept() -> None:
    reward = train("reward", {"algo": "reward"})
    settings = PPO | {"reward": "model", "reward.path": str(reward)}
    del settings["reward.pattern"]
    run = train("run", settings)
    decided = json.loads((run / "run.json").read_text())["decided"]
    assert decided["reward_sd"] > 0
    implicit = train("implicit", settings | {"reward.path": str(train("dpo", {"algo": "dpo"}))})
    assert json.loads((implicit / "run.json").read_text())["decided"]["reward_sd"] > 0


def test_a_checkpoint_of_ppo_is_a_model_and_one_of_a_reward_model_is_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = train("run", RUNS["ppo-trunk"])
    again = train("again", {"algo": "sft", "model": f"{run}@4", "train.steps": "1"})
    kept = load_file(run / "checkpoints" / "step-000004" / "model.safetensors")
    assert {name.partition(".")[0] for name in kept} == {"policy", "critic"}
    assert json.loads((again / "run.json").read_text())["status"] == "done"
    reward = train("reward", {"algo": "reward"})
    capsys.readouterr()
    code, said = refused({"algo": "ppo", "reward": "model", "reward.path": f"{reward}@4"}, capsys)
    assert code == 3
    assert "holds a reward model" in said


def test_a_separate_critic_starts_from_the_reward_model() -> None:
    reward = train("reward", {"algo": "reward", "train.lr": "1e-2"})
    settings = PPO | {"reward": "model", "reward.path": str(reward), "algo.critic": "separate"}
    del settings["reward.pattern"]
    from_reward = lines(train("run", settings), "train")[0]
    from_start = lines(train("zero", RUNS["ppo-separate"]), "train")[0]
    assert from_start["value/mean"] == 0
    assert from_reward["value/mean"] != 0


# --- what a careless user types ------------------------------------------------------------------------

REFUSALS = {
    "rloo of one": ({"algo": "ppo", "algo.samples": "1"}, 2, "algo.samples=2 or more"),
    "dropout": ({"algo": "ppo", "adapter": "lora", "adapter.dropout": "0.1"}, 2, "adapter.dropout=0"),
    "no members": ({"algo": "salsa-ppo"}, 2, "algo.reference.members=[A,B]"),
    "soup start without soup": (
        {"algo": "salsa-ppo", "algo.policy_init": "soup", "algo.reference.kind": "frozen"},
        2,
        "algo.policy_init=soup needs a soup",
    ),
    "missing member": (
        {"algo": "salsa-ppo", "algo.reference.members": "[no/where/a,no/where/b]"},
        3,
        "no/where",
    ),
    "missing reward": (
        {"algo": "ppo", "reward": "model", "reward.path": "nowhere/at/all"},
        3,
        "nowhere/at/all",
    ),
    "reward of another": (
        {"algo": "dpo", "reward": "pattern", "reward.pattern": "x"},
        2,
        "not read by algo=dpo",
    ),
    "prompts of dpo": ({"algo": "dpo", "dataset.prompts": "4"}, 2, "not read by algo=dpo"),
    "bad pattern": ({"algo": "ppo", "reward": "pattern", "reward.pattern": "("}, 2, "reward.pattern"),
    "more prompts than pairs": ({"algo": "hypo", "algo.prompts_per_step": "9"}, 2, "algo.prompts_per_step=9"),
    "a long answer": (HYPO | {"algo.max_new_tokens": "2000"}, 2, "algo.max_new_tokens=2000"),
    "too many prompts": ({"algo": "ppo", "dataset.prompts": "100000000"}, 2, "100000000 prompts"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_mistakes_are_told_in_a_few_lines(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings, code, text = REFUSALS[name]
    found, said = refused(settings, capsys)
    assert found == code, said
    assert text in said
    assert len(said.strip().splitlines()) <= 12
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_reference_with_other_tokens_is_refused(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = refused(HYPO | {"algo.reference.path": str(smollm2)}, capsys)
    assert code == 3
    assert "49152" in said


def test_a_reward_model_is_no_policy(capsys: pytest.CaptureFixture[str]) -> None:
    reward = train("reward", {"algo": "reward"})
    capsys.readouterr()
    code, said = refused({"model": str(reward)}, capsys)
    assert code == 3
    assert "reward model" in said or "sequence classifier" in said
    assert locate_path(str(reward)).base.endswith("model")
