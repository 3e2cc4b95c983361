"""Win rates from the command line: every judge, opponents from a file, questions of two turns."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from alignctl.cli import main
from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import EvalConfig
from alignctl.data.demo import load_demo

TRAIN = ["model=tiny", "dataset.pairs=64", "dataset.eval_pairs=12", "dataset.gold_samples=0"]
TRAIN += ["eval.samples=0", "train.steps=6"]
EVAL = ["dataset.eval_pairs=24", "eval.samples=8", "eval.max_new_tokens=8"]
MT_BENCH = Path(__file__).resolve().parents[3] / "shared" / "data" / "mt-bench-questions.jsonl"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One trained run and a cache, shared by the tests of this file."""
    directory = tmp_path_factory.mktemp("judging")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNCTL_CACHE", str(directory / "cache"))
        patch.chdir(directory)
        assert main(["train", *TRAIN, "out=run"]) == 0
    return directory


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNCTL_CACHE", str(place / "cache"))
    monkeypatch.chdir(place)


def evaluate(*words: str, out: str) -> dict[str, Any]:
    assert main(["eval", "run", *EVAL, *words, f"out={out}"]) == 0
    return json.loads(Path(out, "results.json").read_text())


def prompts() -> list[str]:
    config = load(open_conf(None, "eval"), ["run", *EVAL])
    assert isinstance(config, EvalConfig)
    return [row.prompt[0].content for row in load_demo(config.dataset, kind="pairs").held_out[:8]]  # type: ignore[arg-type]


def write_opponent(name: str, answers: dict[str, str]) -> str:
    lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in answers.items()]
    Path(name).write_text("\n".join(lines) + "\n")
    return name


def test_the_gold_score_judges_as_it_scores():
    """Against empty answers, whose gold score is 0, a win is a score above 0 and everything else a tie."""
    opponent = write_opponent("silent.jsonl", dict.fromkeys(prompts(), ""))
    found = evaluate("judge=gold", f"eval.opponent={opponent}", out="gold")
    (rate,) = [one for one in found["win_rates"] if one["model"] == "run"]
    answers = [json.loads(line) for line in Path("gold/answers.jsonl").read_text().splitlines()]
    assert rate["wins"] + rate["ties"] + rate["losses"] == len(prompts()) == 8
    assert rate["losses"] == rate["missing"] == 0
    gold = found["models"][0]["metrics"]["gold/mean"]["value"]
    assert (rate["wins"] == 0) == (gold == 0)
    assert rate["metrics"]["win_rate"]["value"] == (rate["wins"] + rate["ties"] / 2) / 8
    assert found["judge_check"] is None, "the labels were made from the gold score"
    assert {line["kind"] for line in answers} == {"answer", "own"}


def test_an_opponent_with_answers_to_some_prompts_is_compared_on_those():
    some = prompts()[:5]
    opponent = write_opponent("some.jsonl", dict.fromkeys(some, "words"))
    found = evaluate("judge=gold", f"eval.opponent={opponent}", out="some")
    rate = found["win_rates"][0]
    assert rate["wins"] + rate["ties"] + rate["losses"] == 5
    assert any("answers to 5 of the 8 prompts" in warning for warning in found["warnings"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"prompt": "never asked", "answer": "x"}\n', "answers none of the 8 prompts"),
        ('{"prompt": "p", "answer": 3}\n', "bad.jsonl:1"),
        ('{"prompt": "p"}\n', "bad.jsonl:1"),
        ("", "has no rows"),
    ],
)
def test_a_file_of_answers_that_does_not_fit_is_refused(
    content: str, told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    Path("bad.jsonl").write_text(content)
    words = ["eval", "run", *EVAL, "judge=gold", "eval.opponent=bad.jsonl", f"out={tmp_path}/out"]
    assert main(words) == 6
    assert told in capsys.readouterr().err


def test_a_local_judge_is_tried_on_the_labels_and_judges_questions():
    Path("questions.jsonl").write_text(
        "".join(
            json.dumps({"question_id": number, "category": category, "turns": turns}) + "\n"
            for number, (category, turns) in enumerate(
                [("writing", ["Say hello.", "Say it again."]), ("math", ["What is 1 + 1?"])]
            )
        )
    )
    words = ["judge=local", "judge.path=run", "judge.tie_margin=0.0", "eval.questions=questions.jsonl"]
    found = evaluate(*words, out="local")
    rate = found["win_rates"][0]
    # Eight prompts of the rows, two turns and one turn of the questions.
    assert rate["wins"] + rate["ties"] + rate["losses"] == 11
    assert {one["name"]: one["metrics"]["win_rate"]["n"] for one in rate["categories"]} == {
        "writing": 2,
        "math": 1,
    }
    assert found["judge_check"]["agreement"]["n"] == 24
    kinds = [json.loads(line)["kind"] for line in Path("local/answers.jsonl").read_text().splitlines()]
    assert {kind: kinds.count(kind) for kind in ("turn 1", "turn 2")} == {"turn 1": 4, "turn 2": 2}


@pytest.mark.skipif(not MT_BENCH.exists(), reason="no MT-Bench questions beside the repository")
@pytest.mark.slow
def test_the_eighty_questions_of_mt_bench_are_answered_and_judged(tmp_path: Path):
    model = reward_model(tmp_path / "reward")
    words = ["judge=reward", f"judge.path={model}", "eval.samples=0", f"eval.questions={MT_BENCH}"]
    kept = [word for word in EVAL if not word.startswith("eval.samples")]
    assert main(["eval", "run", *kept, *words, "out=mt-bench"]) == 0
    rate = json.loads(Path("mt-bench/results.json").read_text())["win_rates"][0]
    assert rate["wins"] + rate["ties"] + rate["losses"] == 160
    assert len(rate["categories"]) == 8
    assert "stem" in Path("mt-bench/report.html").read_text()


def reward_model(directory: Path) -> Path:
    """A small classification model with one score and a padding token of its own."""
    tokenizer = AutoTokenizer.from_pretrained("run/model")
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 1,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        max_position_embeddings=16_384,
    )
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_a_reward_model_judges(tmp_path: Path):
    model = reward_model(tmp_path / "reward")
    found = evaluate("judge=reward", f"judge.path={model}", out="reward")
    rate = found["win_rates"][0]
    assert rate["wins"] + rate["ties"] + rate["losses"] == 8
    assert rate["metrics"]["consistency"]["value"] == 1.0, "a score does not depend on the order"
    assert found["judge"] == "reward"


@contextmanager
def server(says: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A judge on loopback that always says the same; yields its address and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            reply = {
                "choices": [{"message": {"role": "assistant", "content": says}, "finish_reason": "stop"}]
            }
            body = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Tests are quiet."""

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1", asked
    finally:
        running.shutdown()


def test_an_endpoint_that_always_prefers_the_first_is_seen_through():
    with server("[[A]]") as (url, asked):
        words = ["judge=endpoint", f"judge.url={url}", "judge.model=first", "seed=3"]
        found = evaluate(*words, out="endpoint")
    rate = found["win_rates"][0]
    assert (rate["wins"], rate["ties"], rate["losses"]) == (0, 8, 0)
    assert rate["metrics"]["consistency"]["value"] == 0.0
    assert any("does not look at the answers" in warning for warning in found["warnings"])
    assert {request["model"] for request in asked} == {"first"}
    # One canary, the human labels and the answers, each in both orders.
    assert len(asked) == 1 + 2 * 24 + 2 * 8


def test_an_endpoint_that_is_not_there_is_told_before_any_model_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    words = ["judge=endpoint", "judge.url=http://127.0.0.1:9/v1", "judge.model=m", f"out={tmp_path}/out"]
    assert main(["eval", "run", *EVAL, *words]) == 3
    assert "127.0.0.1:9" in capsys.readouterr().err
    assert not (tmp_path / "out" / "answers.jsonl").exists()


def test_an_endpoint_whose_replies_cannot_be_read_stops_the_evaluation(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    with server("I like them both, really.") as (url, _):
        words = ["judge=endpoint", f"judge.url={url}", "judge.model=m", "judge.retries=0"]
        assert main(["eval", "run", *EVAL, *words, f"out={tmp_path}/out"]) == 3
    assert "no verdict" in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_key_is_named_by_its_variable_and_never_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("JUDGE_KEY", "very-secret-value")
    with server("[[B]]") as (url, _):
        words = ["judge=endpoint", f"judge.url={url}", "judge.model=m", "judge.key_env=JUDGE_KEY"]
        evaluate(*words, out=str(tmp_path / "out"))
    for file in (tmp_path / "out").iterdir():
        assert b"very-secret-value" not in file.read_bytes(), file.name
