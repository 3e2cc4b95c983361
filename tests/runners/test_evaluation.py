"""Whole evaluations on two small trained runs: every figure recomputed plainly, and what must not matter."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from scipy import optimize, stats
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from alignctl.cli import main
from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import EvalConfig
from alignctl.data.demo import load_demo
from alignctl.data.rendering import Limits, open_renderer, render
from alignctl.data.template import stop_token_ids
from alignctl.records import Example

TRAIN = [
    "model=tiny",
    "dataset.pairs=160",
    "dataset.eval_pairs=12",
    "dataset.gold_samples=0",
    "eval.samples=0",
    "train.steps=20",
    "checkpoint.every=10",
    "checkpoint.keep=3",
]
PAIRS = ["dataset.eval_pairs=60"]
EVAL = [*PAIRS, "eval.samples=10", "eval.max_new_tokens=12"]
PAIRS_ONLY = [*PAIRS, "eval.samples=0"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trained runs, one evaluation of both, and a cache, shared by the tests of this file."""
    directory = tmp_path_factory.mktemp("evaluation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNCTL_CACHE", str(directory / "cache"))
        patch.chdir(directory)
        for seed in ("0", "1"):
            assert main(["train", *TRAIN, f"seed={seed}", f"out=runs/{seed}"]) == 0
        assert main(["eval", "runs/0", "runs/1", *EVAL, "out=both"]) == 0
    return directory


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNCTL_CACHE", str(place / "cache"))
    monkeypatch.chdir(place)


def results(out: str) -> dict[str, Any]:
    return json.loads(Path(out, "results.json").read_text())


def figures(out: str, name: str) -> dict[str, Any]:
    return next(model["metrics"] for model in results(out)["models"] if model["name"] == name)


def model(path: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager").eval()


def base_path() -> str:
    return next(one["path"] for one in results("both")["models"] if one["name"] not in ("0", "1"))


def examples() -> tuple[Example, ...]:
    config = load(open_conf(None, "eval"), ["runs/0", *EVAL])
    assert isinstance(config, EvalConfig)
    tokenizer = AutoTokenizer.from_pretrained("runs/0/model")
    rows = load_demo(config.dataset, kind="pairs").held_out  # type: ignore[arg-type]
    limits = Limits(
        max_length=100_000,
        max_prompt=99_999,
        min_response_tokens=1,
        vocab_size=len(tokenizer),
        allow_control_tokens=False,
    )
    return render(rows, open_renderer(tokenizer, limits)).examples


@torch.no_grad()
def logp(lm: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """One sequence, one forward pass, whole logits."""
    ids = torch.tensor([[*prompt, *answer]], dtype=torch.int64)
    logps = lm(input_ids=ids).logits[0].log_softmax(-1)
    return float(sum(logps[len(prompt) + place - 1, token] for place, token in enumerate(answer)))


@pytest.fixture(scope="module")
def plain(place: Path) -> Callable[[str], np.ndarray]:
    """Log-probabilities [n, 2] of chosen and rejected under a model directory, computed once each."""
    known: dict[str, np.ndarray] = {}

    def scores(path: str) -> np.ndarray:
        if path not in known:
            lm = model(path)
            known[path] = np.array(
                [
                    [logp(lm, row.prompt.tolist(), side.tolist()) for side in row.branches]
                    for row in examples()
                ]
            )
        return known[path]

    return scores


def lengths() -> np.ndarray:
    return np.array([[len(side) for side in row.branches] for row in examples()], dtype=np.float64)


def outcomes(difference: np.ndarray) -> np.ndarray:
    return np.array([1.0 if d > 0 else 0.0 if d < 0 else 0.5 for d in difference])


def test_accuracies_margins_and_likelihoods_equal_plain_sums(plain: Callable[[str], np.ndarray]):
    policy, reference, tokens = plain("runs/0/model"), plain(base_path()), lengths()
    margins = 0.1 * ((policy[:, 0] - reference[:, 0]) - (policy[:, 1] - reference[:, 1]))
    found = figures("both", "0")
    expected = {
        "accuracy": outcomes(margins).mean(),
        "accuracy_logp": outcomes(policy[:, 0] - policy[:, 1]).mean(),
        "accuracy_avg": outcomes(policy[:, 0] / tokens[:, 0] - policy[:, 1] / tokens[:, 1]).mean(),
        "margin/mean": margins.mean(),
        "margin/sd": margins.std(ddof=1),
        "margin/p25": np.quantile(margins, 0.25),
        "likelihood/chosen": (policy[:, 0] / tokens[:, 0]).mean(),
        "likelihood/rejected": (policy[:, 1] / tokens[:, 1]).mean(),
        "displacement": (policy[:, 0] < reference[:, 0]).mean(),
        "brier": ((1 / (1 + np.exp(-margins)) - 1) ** 2).mean(),
        "nll": np.log1p(np.exp(-margins)).mean(),
    }
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, abs=2e-5), name
        assert found[name]["n"] == 60


def test_wilson_s_interval_equals_scipy_s(plain: Callable[[str], np.ndarray]):
    policy = plain("runs/0/model")
    wins = int((policy[:, 0] > policy[:, 1]).sum())
    expected = stats.binomtest(wins, 60).proportion_ci(method="wilson")
    assert figures("both", "0")["accuracy_logp"]["ci"] == pytest.approx(
        [expected.low, expected.high], abs=1e-9
    )


def test_calibration_error_equals_a_plain_loop(plain: Callable[[str], np.ndarray]):
    policy, reference = plain("runs/0/model"), plain(base_path())
    margins = 0.1 * ((policy[:, 0] - reference[:, 0]) - (policy[:, 1] - reference[:, 1]))
    by_confidence = sorted((1 / (1 + math.exp(-abs(m))), float(m > 0)) for m in margins)
    # Sixty pairs make three bins of twenty.
    gaps = [
        abs(sum(confidence - right for confidence, right in by_confidence[start : start + 20]))
        for start in (0, 20, 40)
    ]
    found = figures("both", "0")
    assert found["ece"]["value"] == pytest.approx(sum(gaps) / 60, abs=2e-5)
    best = optimize.minimize_scalar(
        lambda log_t: np.log1p(np.exp(-margins / np.exp(log_t))).sum(),
        bounds=(-8, 8),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert found["temperature"]["value"] == pytest.approx(math.exp(best.x), rel=1e-3)


def test_length_control_equals_a_logistic_fit_by_hand(plain: Callable[[str], np.ndarray]):
    policy, reference, tokens = plain("runs/0/model"), plain(base_path()), lengths()
    margins = (policy[:, 0] - reference[:, 0]) - (policy[:, 1] - reference[:, 1])
    right, difference = outcomes(margins), tokens[:, 0] - tokens[:, 1]
    x = np.tanh(difference / math.sqrt((difference**2).mean()))
    longer, shorter = (difference > 0).sum(), (difference < 0).sum()
    half = (longer + shorter) / 2
    weight = np.where(difference > 0, half / longer, np.where(difference < 0, half / shorter, 1.0))

    def loss(ab: np.ndarray) -> float:
        z = ab[0] + ab[1] * x
        return float(
            (weight * (np.logaddexp(0, -z) * right + np.logaddexp(0, z) * (1 - right))).sum()
            + ab[1] ** 2 / 18
        )

    a, _ = optimize.minimize(
        loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}
    ).x
    found = figures("both", "0")
    assert found["accuracy_lc"]["value"] == pytest.approx(1 / (1 + math.exp(-a)), abs=1e-4)
    assert found["length_correlation"]["value"] == pytest.approx(
        stats.spearmanr(margins, difference).statistic, abs=1e-6
    )
    rules = results("both")["baselines"]
    assert rules["always_longer"]["value"] == pytest.approx(outcomes(difference).mean())


def test_models_are_compared_by_mcnemar_s_exact_test(plain: Callable[[str], np.ndarray]):
    a, b = (outcomes(-np.diff(plain(f"runs/{seed}/model"))[:, 0]) for seed in (0, 1))
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    found = next(
        one
        for one in results("both")["comparisons"]
        if (one["a"], one["b"], one["metric"]) == ("0", "1", "accuracy_logp")
    )
    assert found["p"] == pytest.approx(expected)
    assert found["delta"] == pytest.approx((a - b).mean())


def test_kl_is_the_mean_log_ratio_on_answers_drawn_at_temperature_one():
    lines = [json.loads(line) for line in Path("both/answers.jsonl").read_text().splitlines()]
    own = [line for line in lines if line["model"] == "0" and line["kind"] == "own"]
    assert len(own) == 10
    assert {line["temperature"] for line in own} == {1.0}
    prompts = {row.id: row.prompt.tolist() for row in examples()}
    policy, reference = model("runs/0/model"), model(base_path())
    ratios = [
        logp(policy, prompts[line["id"]], line["tokens"])
        - logp(reference, prompts[line["id"]], line["tokens"])
        for line in own
    ]
    tokens = [len(line["tokens"]) for line in own]
    found = figures("both", "0")
    assert found["kl/token"]["value"] == pytest.approx(sum(ratios) / sum(tokens), abs=1e-5)
    assert found["kl/sequence"]["value"] == pytest.approx(sum(ratios) / 10, abs=1e-4)


def test_generation_figures_count_the_kept_answers():
    tokenizer = AutoTokenizer.from_pretrained("runs/0/model")
    stop = set(stop_token_ids(tokenizer))
    lines = [json.loads(line) for line in Path("both/answers.jsonl").read_text().splitlines()]
    said = [line["tokens"] for line in lines if line["model"] == "0" and line["kind"] == "answer"]
    found = figures("both", "0")
    assert found["response_length"]["value"] == pytest.approx(np.mean([len(tokens) for tokens in said]))
    assert found["no_end_rate"]["value"] == pytest.approx(
        np.mean([tokens[-1] not in stop for tokens in said])
    )


def test_the_table_of_pairs_holds_what_the_figures_are_made_of():
    table = pyarrow.parquet.read_table("both/pairs.parquet").to_pandas()
    mine = table[table["model"] == "0"]
    assert len(table) == 3 * 60
    assert (mine["margin"] > 0).mean() == pytest.approx(figures("both", "0")["accuracy"]["value"])
    assert set(mine["subset"]) == {"list", "comma", "lower", "closing", "number", "word"}
    assert table[table["model"] == table["model"].iloc[-1]]["margin"].isna().all(), (
        "the reference has no margin"
    )


def test_files_say_the_same_as_the_terminal(capsys: pytest.CaptureFixture[str]):
    assert main(["eval", "runs/0", *PAIRS, "eval.samples=2", "out=files"]) == 0
    shown = capsys.readouterr().out
    found = results("files")
    assert " ".join(found["verdict"]["sentence"].split()) in " ".join(shown.split())
    assert found["verdict"]["sentence"] in Path("files/results.md").read_text()
    assert json.loads(Path("files/run.json").read_text())["status"] == "done"
    assert "files/report.html" in shown
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize("words", [["hardware.threads=1"], ["dataset.limit=30"], ["gate.accuracy=0.0"]])
def test_settings_beside_the_pairs_leave_their_scores_alone(words: list[str]):
    """A limit is for training rows; threads, gates and sampling touch no log-probability."""
    out = f"beside-{words[0].split('=')[0]}"
    assert main(["eval", "runs/0", *PAIRS_ONLY, *words, f"out={out}"]) == 0
    for name in ("accuracy", "accuracy_logp", "margin/mean", "ece"):
        assert figures(out, "0")[name] == figures("both", "0")[name]


def as_file(rows: Sequence[int], name: str, **changes: str) -> str:
    """Some demo pairs as a file of the user's own, in that order."""
    config = load(open_conf(None, "eval"), ["runs/0", *EVAL])
    assert isinstance(config, EvalConfig)
    held_out = load_demo(config.dataset, kind="pairs").held_out  # type: ignore[arg-type]
    lines = [
        {
            "prompt": [{"role": "user", "content": held_out[row].prompt[0].content}],
            "chosen": [{"role": "assistant", "content": held_out[row].branches[0]}],
            "rejected": [{"role": "assistant", "content": held_out[row].branches[1]}],
        }
        | changes
        for row in rows
    ]
    Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return name


def test_order_and_company_of_the_rows_do_not_matter():
    """The same pairs in another order, beside half as many, in other micro-batches."""
    whole = as_file(range(60), "whole.jsonl")
    turned = as_file(range(59, -1, -1), "turned.jsonl")
    for file, out in ((whole, "whole"), (turned, "turned")):
        assert main(["eval", "runs/0", f"dataset={file}", "eval.samples=0", f"out={out}"]) == 0
    tables = [pyarrow.parquet.read_table(f"{out}/pairs.parquet").to_pandas() for out in ("whole", "turned")]
    first, second = (table[table["model"] == "0"]["logp_chosen"].to_numpy() for table in tables)
    assert second[::-1] == pytest.approx(first, abs=1e-4)
    for name in ("accuracy", "accuracy_logp", "displacement"):
        assert figures("whole", "0")[name] == figures("turned", "0")[name] == figures("both", "0")[name]


def test_the_size_of_a_forward_pass_does_not_matter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """With a cache of its own, so that everything is scored anew, a few rows at a time."""
    monkeypatch.setenv("ALIGNCTL_CACHE", str(tmp_path / "cache"))
    assert main(["eval", "runs/0", *PAIRS_ONLY, "hardware.micro_tokens=400", f"out={tmp_path}/small"]) == 0
    small, whole = (
        pyarrow.parquet.read_table(f"{out}/pairs.parquet").to_pandas()
        for out in (f"{tmp_path}/small", "both")
    )
    columns = ["logp_chosen", "logp_rejected", "ref_logp_chosen", "margin", "entropy_chosen", "mass_chosen"]
    first, second = (table[table["model"] == "0"][columns].to_numpy() for table in (small, whole))
    assert first == pytest.approx(second, abs=1e-4)
    for name in ("accuracy", "accuracy_logp", "displacement"):
        assert figures(f"{tmp_path}/small", "0")[name] == figures("both", "0")[name]


def test_a_second_evaluation_scores_nothing_again(place: Path):
    before = {path: path.stat().st_mtime_ns for path in (place / "cache/reference").iterdir()}
    assert main(["eval", "runs/1", *PAIRS_ONLY, "out=again"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (place / "cache/reference").iterdir()} == before


# --- refusals and gates --------------------------------------------------------------------------------


def trained_row() -> str:
    """The first prompt that runs/0 was trained on, as a row of a user's file."""
    config = load(open_conf(None, "eval"), ["runs/0", "dataset.pairs=160"])
    assert isinstance(config, EvalConfig)
    row = load_demo(config.dataset, kind="pairs").train[0]  # type: ignore[arg-type]
    line = {"prompt": [{"role": "user", "content": row.prompt[0].content}]} | {
        side: [{"role": "assistant", "content": text}]
        for side, text in zip(("chosen", "rejected"), row.branches, strict=True)
    }
    Path("trained.jsonl").write_text(json.dumps(line) + "\n" + Path(as_file(range(3), "x.jsonl")).read_text())
    return "trained.jsonl"


@pytest.mark.parametrize("name", ["runs/0", "runs/0@10", "runs/0/model"])
def test_rows_that_were_trained_on_are_refused(name: str, capsys: pytest.CaptureFixture[str]):
    words = ["eval", name, f"dataset={trained_row()}", "eval.samples=0"]
    assert main([*words, f"out=overlap-{len(name)}"]) == 6
    assert "was trained on the prompts of 1 of 4 rows" in capsys.readouterr().err
    assert main([*words, "eval.allow_overlap=true", f"out=overlapping-{len(name)}"]) == 0


CASES = [
    ("no such model", ["nowhere/at/all"], 3, "there is no model at nowhere/at/all"),
    ("no such step", ["runs/0@7"], 7, "keeps no checkpoint of step 7"),
    ("a step of no run", ["nothing@7"], 3, "nothing is not a run"),
    ("a gate", ["runs/0", "gate.accuracy=1.0"], 5, "gate.accuracy=1"),
    (
        "a gate on gold",
        ["runs/0", "gate.gold=1.0", "eval.samples=2", "eval.max_new_tokens=2"],
        5,
        "gate.gold=1",
    ),
    ("finished", ["runs/0", "runs/1", *EVAL, "out=both"], 7, "is finished"),
    ("a foreign directory", ["runs/0", "out=runs"], 7, "not a run"),
    ("too long", ["runs/0", "eval.max_length=1000000000"], 3, "read"),
    ("no file", ["runs/0", "dataset=absent.jsonl"], 3, "absent.jsonl"),
    ("nothing held out", ["runs/0", "dataset.eval_pairs=0"], 6, "leaves nothing to score"),
]


@pytest.mark.parametrize(
    ("words", "code", "told"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_mistakes_are_answered(
    words: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    out = [] if any(word.startswith("out=") for word in words) else [f"out={tmp_path}/out"]
    quick = [] if "eval.samples=2" in words or "out=both" in words else ["eval.samples=0"]
    assert main(["eval", *words, *quick, *out]) == code
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


def test_a_model_with_another_tokenizer_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    other = tmp_path / "other"
    lm = AutoModelForCausalLM.from_pretrained("runs/1/model")
    tokenizer = AutoTokenizer.from_pretrained("runs/1/model")
    tokenizer.chat_template = str(tokenizer.chat_template) + " "
    lm.save_pretrained(other)
    tokenizer.save_pretrained(other)
    assert main(["eval", "runs/0", str(other), *EVAL, f"out={tmp_path}/out"]) == 2
    assert "different tokenizers or chat templates" in capsys.readouterr().err


def test_without_a_reference_the_figures_that_need_one_are_absent(tmp_path: Path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in Path("runs/0/model").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert main(["eval", str(copy), *PAIRS_ONLY, f"out={tmp_path}/out"]) == 0
    found = results(str(tmp_path / "out"))
    assert found["reference"] is None
    metrics = found["models"][0]["metrics"]
    assert metrics["accuracy_logp"] == figures("both", "0")["accuracy_logp"]
    assert {"accuracy", "ece", "displacement", "kl/token"} & set(metrics) == set()
