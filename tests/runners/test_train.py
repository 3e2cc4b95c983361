"""Whole runs of `alignctl train` on the tiny model: what they leave, and that nothing disturbs them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignctl.cli import main

pytestmark = pytest.mark.usefixtures("workplace")

QUICK = {
    "model": "tiny",
    "dataset.pairs": "64",
    "dataset.eval_pairs": "12",
    "dataset.gold_samples": "4",
    "eval.max_new_tokens": "8",
    "eval.every": "3",
    "train.steps": "6",
}
HH = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh-harmless-1.jsonl.gz"


def train(out: str, **changes: str) -> Path:
    """Run the command line in this process, expecting success; double underscores stand for dots."""
    settings = QUICK | {key.replace("__", "."): value for key, value in changes.items()}
    assert main(["train", f"out={out}", *(f"{key}={value}" for key, value in settings.items())]) == 0
    return Path(out)


def lines(path: Path, split: str | None = None) -> list[dict[str, object]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [record for record in records if split in (None, record.get("split"))]


def weights(run: Path) -> dict[str, torch.Tensor]:
    name = "adapter_model" if (run / "model" / "adapter_config.json").exists() else "model"
    return load_file(run / "model" / f"{name}.safetensors")


def same_bytes(one: Path, other: Path, names: tuple[str, ...]) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_a_run_leaves_everything_the_interface_promises(capsys: pytest.CaptureFixture[str]) -> None:
    run = train("run")
    names = {path.name for path in run.iterdir()}
    assert names >= {"config.yaml", "overrides.txt", "run.json", "metrics.jsonl", "timing.jsonl", "model"}
    assert names >= {"samples.jsonl", "checkpoints"}
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "done"
    assert record["resumes"] == []
    assert record["decided"]["layout"] == "shared"
    assert set(record["fingerprints"]) == {"data", "template", "model", "reference"}
    assert set(record["headline"]["accuracy_logp"]) == {"start", "best", "last"}
    assert record["headline"]["accuracy_logp"]["start"]["n"] == 12
    assert [line["step"] for line in lines(run / "metrics.jsonl", "train")] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines(run / "metrics.jsonl", "eval")] == [0, 3, 6]
    assert [line["step"] for line in lines(run / "timing.jsonl", "train")] == [1, 2, 3, 4, 5, 6]
    assert len(lines(run / "samples.jsonl")) == 3 * 4
    assert "accuracy_logp" in capsys.readouterr().out


def test_step_0_is_exactly_indifferent() -> None:
    start = lines(train("run") / "metrics.jsonl", "eval")[0]
    assert start["rewards/accuracies"] == 0.5
    assert start["rewards/margins"] == 0.0
    assert start["displacement"] == 0.0
    assert start["loss"] == pytest.approx(math.log(2), abs=1e-7)


@pytest.mark.parametrize(
    ("algo", "at_start"), [("dpo", math.log(2)), ("ipo", 25.0), ("hinge", 1.0), ("slic", None)]
)
def test_every_algorithm_starts_at_its_indifferent_loss_and_lowers_it(
    algo: str, at_start: float | None
) -> None:
    steps = lines(train("run", algo=algo, train__steps="12") / "metrics.jsonl", "train")
    if at_start is not None:
        assert steps[0]["loss"] == pytest.approx(at_start, rel=1e-5)
    first, last = (np.mean([float(s["loss"]) for s in part]) for part in (steps[:3], steps[-3:]))  # type: ignore[arg-type]
    assert last < first


def test_the_model_directory_opens_with_plain_transformers_and_holds_the_kept_step() -> None:
    run = train("run")
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**ids, max_new_tokens=4).shape[1] > ids["input_ids"].shape[1]
    best = json.loads((run / "run.json").read_text())["best_step"]
    kept = load_file(run / "checkpoints" / f"step-{best:06d}" / "model.safetensors")
    assert all(torch.equal(tensor, weights(run)[name]) for name, tensor in kept.items())


def test_an_adapter_run_exports_an_adapter_that_opens_with_peft_and_can_be_trained_on() -> None:
    run = train("first", adapter="lora", train__lr="1e-2")
    written = json.loads((run / "model" / "adapter_config.json").read_text())
    base, targets = written["base_model_name_or_path"], written["target_modules"]
    assert targets == sorted(targets)
    assert len(targets) == 14
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(run / "model"))
    assert all("lora" in name for name in weights(run))
    again = train("second", model=str(run), adapter="lora", train__lr="1e-3")
    start = lines(again / "metrics.jsonl", "eval")[0]
    assert start["rewards/accuracies"] == 0.5  # the reference is the adapter as it was, not the base
    merged = train("third", model=str(run), adapter="none", train__lr="1e-4")
    assert not (merged / "model" / "adapter_config.json").exists()


def test_a_trained_adapter_with_dropout_can_be_trained_on() -> None:
    dropout = {"adapter": "lora", "adapter__dropout": "0.3"}
    run = train("first", **dropout, train__lr="1e-2")
    again = train("second", **dropout, model=str(run), train__lr="1e-3")
    assert lines(again / "metrics.jsonl", "eval")[0]["rewards/accuracies"] == 0.5


def test_adapter_off_measures_against_the_base_of_a_trained_adapter() -> None:
    run = train("first", adapter="lora", train__lr="1e-2", train__steps="10")
    settings = {"model": str(run), "adapter": "lora", "algo__reference__kind": "adapter_off"}
    start = lines(train("second", **settings) / "metrics.jsonl", "eval")[0]
    assert abs(float(start["rewards/margins"])) > 1e-3  # type: ignore[arg-type]


def test_bfloat16_trains_and_starts_indifferent() -> None:
    run = train("run", train__dtype="bfloat16")
    assert lines(run / "metrics.jsonl", "eval")[0]["rewards/accuracies"] == 0.5
    assert json.loads((run / "run.json").read_text())["decided"]["dtype"] == "bfloat16"


def test_evaluating_logging_and_saving_do_not_disturb_training() -> None:
    plain = train("plain", checkpoint__export="last")
    busy = train(
        "busy",
        checkpoint__export="last",
        checkpoint__every="2",
        eval__every="1",
        eval__samples="2",
        dataset__gold_samples="6",
    )
    assert same_bytes(plain, busy, ("model/model.safetensors",))
    assert lines(plain / "metrics.jsonl", "train") == lines(busy / "metrics.jsonl", "train")


def test_the_same_request_twice_gives_the_same_bytes() -> None:
    one, other = train("one"), train("other")
    assert same_bytes(one, other, ("metrics.jsonl", "samples.jsonl", "model/model.safetensors"))


def test_micro_batches_change_the_memory_not_the_training() -> None:
    whole, split = train("whole"), train("split", hardware__micro_tokens="300")
    for one, other in zip(lines(whole / "metrics.jsonl"), lines(split / "metrics.jsonl"), strict=True):
        for name in ("loss", "grad_norm"):
            if name in one:
                assert one[name] == pytest.approx(other[name], rel=1e-4)


def test_activation_checkpointing_gives_the_same_training() -> None:
    plain = train("plain", checkpoint__export="last")
    saved = train("saved", checkpoint__export="last", hardware__activation_checkpointing="true")
    assert all(torch.equal(t, weights(saved)[name]) for name, t in weights(plain).items())


def test_a_diverging_run_stops_after_three_steps_that_changed_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [f"{key}={value}" for key, value in (QUICK | {"train.lr": "1e30", "train.steps": "9"}).items()]
    assert main(["train", "out=run", *words]) == 1
    error = capsys.readouterr().err
    assert "3 steps in a row" in error
    record = json.loads(Path("run/run.json").read_text())
    assert record["status"] == "failed"
    skipped = [line["step"] for line in lines(Path("run/metrics.jsonl"), "train") if line.get("skipped")]
    assert skipped == list(range(skipped[0], skipped[0] + 3))


def test_bad_rows_stop_the_run_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    good = {"prompt": "Say hi", "chosen": "Hi there", "rejected": "No"}
    rows = [good] * 9 + [good | {"chosen": ""}, good | {"rejected": None}]
    Path("prefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["train", "model=tiny", "dataset=prefs.jsonl", "out=run"]) == 6
    error = capsys.readouterr().err
    assert "prefs.jsonl:10" in error
    assert "prefs.jsonl:11" in error
    assert [line["id"] for line in lines(Path("run/bad_rows.jsonl"))] == ["prefs.jsonl:10", "prefs.jsonl:11"]


def test_soft_labels_and_weights_of_a_file_reach_the_loss() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "prompt": f"Question {i}",
            "chosen": f"yes {i}",
            "rejected": f"no no {i}",
            "p_chosen": 0.5,
            "weight": 2.0,
        }
        for i in rng.permutation(20).tolist()
    ]
    Path("soft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["model=tiny", "dataset=soft.jsonl", "train.steps=2", "eval.samples=0", "dataset.eval_size=4"]
    assert main(["train", *words, "out=run"]) == 0
    first = lines(Path("run/metrics.jsonl"), "train")[0]
    assert first["loss"] == pytest.approx(2 * math.log(2), rel=1e-6)  # weighted
    assert first["grad_norm"] == pytest.approx(0, abs=1e-6)  # p = 1/2 at the reference: nothing to learn


@pytest.mark.slow
def test_real_preferences_are_trained_on_and_their_bad_rows_listed() -> None:
    if not HH.exists():
        pytest.skip(f"real preferences are not at {HH}")
    words = ["model=tiny", f"dataset={HH}", "dataset.on_bad=drop", "dataset.eval_size=40", "train.steps=3"]
    assert main(["train", *words, "eval.samples=2", "eval.max_new_tokens=4", "out=run"]) == 0
    assert len(lines(Path("run/bad_rows.jsonl"))) == 8
