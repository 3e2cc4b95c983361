"""Rewards by the data's own score, by pattern, by a model's text score, by a log-ratio and by a server."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_server

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from alignctl.algos.bradley_terry import reward_loss
from alignctl.config import DemoDataset, EndpointReward, PatternReward, RewardModelConfig, TinyModel
from alignctl.data.demo import load_demo
from alignctl.errors import SetupError, UsageError
from alignctl.evaluate.held_out import evaluate_rewards
from alignctl.evaluate.judges.http import Limits
from alignctl.evaluate.judges.reading import open_reader
from alignctl.evaluate.reward_endpoint import endpoint_reward, read_rewards
from alignctl.evaluate.rewards import (
    LogRatio,
    Reward,
    gold_reward,
    implicit_reward,
    model_reward,
    pattern_reward,
    scale_of,
)
from alignctl.models.load import Source
from alignctl.models.policy import Policy, set_attention
from alignctl.models.score_model import load_score_model, padding_token, score_config
from alignctl.models.tiny import tiny_model, tiny_tokenizer
from alignctl.records import Example, Message, Row

CPU = torch.device("cpu")
END = "<|im_end|>"


def asked(text: str) -> Row:
    return Row(id=text, prompt=(Message("user", text),), branches=())


ROWS = [asked("Say hello."), asked("2 + 2?"), asked("Say hello.")]
ANSWERS = ["Hello!", "It is four, as anybody knows.", "Go away."]


def conversation(row: Row, answer: str) -> str:
    """What the tiny template writes, by hand."""
    turns = [*row.prompt, Message("assistant", answer)]
    return "".join(f"<|im_start|>{turn.role}\n{turn.content}{END}\n" for turn in turns)


# --- gold and pattern ----------------------------------------------------------------------------------


def test_gold_is_the_total_of_the_data_s_own_score() -> None:
    demo = DemoDataset(
        kind="demo",
        seed=3,
        pairs=12,
        eval_pairs=0,
        gold_samples=0,
        prompts=None,
        limit=None,
        min_response_tokens=1,
    )
    data = load_demo(demo, kind="pairs")
    assert data.gold is not None
    rows = [row for row in data.train for _ in row.branches]
    answers = [answer for row in data.train for answer in row.branches]
    found = gold_reward(data.gold).score(rows, answers, None)
    assert found == [data.gold(row, answer).total for row, answer in zip(rows, answers, strict=True)]
    assert sum(found[::2]) > sum(found[1::2]), "chosen answers are worth more"


def test_a_pattern_is_found_or_not() -> None:
    reward = pattern_reward(r"\bfour\b|!$")
    assert reward.score(ROWS, ANSWERS, None) == [1.0, 1.0, 0.0]
    assert reward.fingerprint != pattern_reward("four").fingerprint


@pytest.mark.parametrize("pattern", ["(a", "[z-a]", "*", "(?P<x>a)(?P<x>b)"])
def test_a_pattern_that_is_none_is_refused_by_the_config(pattern: str) -> None:
    with pytest.raises(ValidationError, match=r"reward\.pattern=.* is not a regular expression"):
        PatternReward(kind="pattern", pattern=pattern, normalise=False)


# --- scale ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "sd", "scale"),
    [
        (0.0, 1.0, 1.0),
        (1.0, 2.0, 2.0),
        (-1.0, 0.5, 0.5),
        # Scores that did not differ give no scale to divide by.
        (1.0, 0.0, 1.0),
        (1000.0, 1e-4, 1.0),
        (0.0, 1e-4, 1e-4),
    ],
)
def test_scores_that_do_not_differ_have_no_scale(mean: float, sd: float, scale: float) -> None:
    assert scale_of(mean, sd) == scale


# --- held-out pairs ------------------------------------------------------------------------------------


def test_held_out_pairs_get_intervals() -> None:
    """Wilson's interval of 2.5 in 4 by the formula of the paper; the mean's by Student's 3.18245 at n = 4."""
    ids = np.array([3], dtype=np.int32)
    examples = [Example(str(n), ids, (ids, ids), weight=1.0 + n) for n in range(4)]
    rewards = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    loss = reward_loss(RewardModelConfig(name="reward", label_noise=0.0, lr_scale=1.0))
    found = evaluate_rewards(examples, rewards, loss)
    z, share = 1.959964, 2.5 / 4
    half = z / (1 + z * z / 4) * math.sqrt(share * (1 - share) / 4 + z * z / 64)
    centre = (share + z * z / 8) / (1 + z * z / 4)
    accuracy = found.estimates["rewards/accuracies"]
    assert (accuracy.value, accuracy.n, accuracy.method) == (share, 4, "wilson")
    assert accuracy.ci == pytest.approx((centre - half, centre + half), abs=1e-6)
    margins = found.estimates["rewards/margins"]
    assert margins.ci == pytest.approx(
        (-3.18245 * math.sqrt(14 / 3) / 2, 3.18245 * math.sqrt(14 / 3) / 2), rel=5e-3
    )
    losses = [math.log1p(math.exp(-lead)) for lead in (1, 2, 0, -3)]
    assert found.estimates["loss"].value == found.metrics["loss"]
    assert found.metrics["loss"] == pytest.approx(sum(one * (1 + n) for n, one in enumerate(losses)) / 4)
    assert found.metrics["rewards/accuracies"] == share


# --- a model's score by text ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("scoring")
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
        num_labels=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        LlamaForSequenceClassification(config).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def by_model(scoring: Path, said: list[str]) -> Reward:
    source = Source(str(scoring), None)
    config = score_config("reward.path=x", source)
    reader = open_reader("reward.path=x", source, config)
    pad = padding_token("reward.path=x", reader.tokenizer, reader.end, config)
    model = load_score_model("reward.path=x", source, config, pad, device=CPU, dtype=torch.float32)
    return model_reward("x", "f", reader, model, said.append)


def plain_scores(path: Path, texts: Sequence[str]) -> list[float]:
    """One text at a time, without any padding."""
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        return [model(tokenizer(text, return_tensors="pt").input_ids).logits.item() for text in texts]


def test_a_model_scores_the_whole_conversation(scoring: Path, by_model: Reward, said: list[str]) -> None:
    steps: list[tuple[int, int]] = []
    found = by_model.score(ROWS, ANSWERS, lambda done, total: steps.append((done, total)))
    texts = [conversation(row, answer) for row, answer in zip(ROWS, ANSWERS, strict=True)]
    assert found == pytest.approx(plain_scores(scoring, texts), abs=1e-5)
    assert max(found) - min(found) > 0.1
    assert steps[-1] == (3, 3)
    assert said == []


def test_an_answer_that_cannot_be_read_gets_the_lowest_score_beside_it(by_model: Reward, said) -> None:
    clean = by_model.score(ROWS, ANSWERS, None)
    rows = [ROWS[0], *ROWS, ROWS[1]]
    found = by_model.score(rows, [f"Best answer ever.{END}", *ANSWERS, "long " * 60], None)
    assert found == pytest.approx([min(clean), *clean, min(clean)], abs=1e-5)
    assert said == ["x cannot read every answer: those that it cannot get the lowest score of their batch"]


def test_where_nothing_can_be_read_it_stops(by_model: Reward) -> None:
    with pytest.raises(SetupError, match="x can read none of 2 answers"):
        by_model.score(ROWS[:2], [END, "long " * 60], None)


def test_a_score_that_is_no_number_stops(scoring: Path, by_model: Reward) -> None:
    broken = by_model.score.args[2].model  # type: ignore[attr-defined]
    with torch.no_grad():
        broken.score.weight.fill_(float("inf"))
    with pytest.raises(SetupError, match="NaN or infinity"):
        by_model.score(ROWS, ANSWERS, None)


# --- a log-ratio ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models() -> list[LlamaForCausalLM]:
    made = [
        tiny_model(TinyModel(kind="tiny", name="tiny", seed=seed, layers=1, hidden=32, lr=1e-3))
        for seed in (1, 2)
    ]
    with torch.no_grad():
        for model in made:
            for parameter in model.parameters():
                parameter.mul_(4.0)
            model.eval()
    return made


def ratio_of(models: Sequence[LlamaForCausalLM], **changes) -> LogRatio:
    policy, reference = (Policy(model, "shared", torch.float32, CPU) for model in models)
    for one in (policy, reference):
        set_attention(one.causal_lm, "shared")
    settings = {"scale": 0.3, "reduction": "sum", "context": 160, **changes}
    return LogRatio(
        policy, reference, tokenizer=tiny_tokenizer(), vocabulary=259, token_budget=300, **settings
    )


def plain_log_ratio(models: Sequence[LlamaForCausalLM], row: Row, answer: str) -> tuple[float, int]:
    """log pi - log ref of the answer with its end token, from whole logits, and its tokens."""
    tokenizer = tiny_tokenizer()
    prompt = tokenizer(f"<|im_start|>user\n{row.prompt[0].content}{END}\n<|im_start|>assistant\n").input_ids
    rest = tokenizer(f"{answer}{END}").input_ids
    ids = torch.tensor([[*prompt, *rest]])
    sums = []
    for model in models:
        set_attention(model, "padded")
        with torch.no_grad():
            logps = model(ids).logits[0].double().log_softmax(-1)
        sums.append(sum(logps[len(prompt) - 1 + n, token].item() for n, token in enumerate(rest)))
    return sums[0] - sums[1], len(rest)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_log_ratio_is_that_of_the_answer_and_its_end(models, said, reduction: str) -> None:
    plain = [plain_log_ratio(models, row, answer) for row, answer in zip(ROWS, ANSWERS, strict=True)]
    expected = [0.3 * (ratio / count if reduction == "mean" else ratio) for ratio, count in plain]
    reward = implicit_reward("x", "f", ratio_of(models, reduction=reduction), said.append)
    steps: list[tuple[int, int]] = []
    found = reward.score(ROWS, ANSWERS, lambda done, total: steps.append((done, total)))
    assert found == pytest.approx(expected, abs=2e-4)
    assert max(found) - min(found) > 0.01
    assert steps[-1] == (3, 3)
    assert steps == sorted(steps)


def test_an_answer_without_a_log_ratio_gets_the_lowest(models, said: list[str]) -> None:
    reward = implicit_reward("x", "f", ratio_of(models), said.append)
    clean = reward.score(ROWS, ANSWERS, None)
    rows = [ROWS[0], *ROWS, ROWS[0]]
    found = reward.score(rows, [f"a{END}b", *ANSWERS, "long " * 60], None)
    assert found == pytest.approx([min(clean), *clean, min(clean)], abs=1e-4)
    assert len(said) == 1
    with pytest.raises(SetupError, match="x can read none of 1 answers"):
        reward.score(ROWS[:1], [END], None)


# --- a server ------------------------------------------------------------------------------------------

Behaviour = Callable[["Handler"], None]
QUICK = Limits(timeout=5.0, retries=2, first_delay=0.01, longest_delay=1.0)
SHORT = Limits(timeout=0.3, retries=1, first_delay=0.01, longest_delay=1.0)
KEY = "not-a-real-key-0123456789"


def length_of(turns: Sequence[dict[str, str]]) -> float:
    return len(turns[-1]["content"]) / 4


class Handler(BaseHTTPRequestHandler):
    """Answers with the next behaviour of the script, then with the length of each last turn."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        self.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert isinstance(self.server, Server)
        self.server.seen.append((self.path, dict(self.headers), self.asked))
        behaviour = self.server.script.pop(0) if self.server.script else fair
        behaviour(self)

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Behaviour] = []
        self.seen: list[tuple[str, dict[str, str], dict]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/score"


def fair(handler: Handler) -> None:
    rewards = [length_of(turns) for turns in handler.asked["conversations"]]
    handler.reply(200, json.dumps({"rewards": rewards}).encode())


def says(body: str) -> Behaviour:
    return lambda handler: handler.reply(200, body.encode())


def status(code: int, **headers: str) -> Behaviour:
    return lambda handler: handler.reply(code, f"code {code} for {KEY}".encode(), **headers)


def silent(handler: Handler) -> None:
    threading.Event().wait(1.0)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def endpoint(url: str, *, batch: int = 2, key_env: str | None = None) -> EndpointReward:
    return EndpointReward(
        kind="endpoint", url=url, key_env=key_env, timeout=5.0, retries=2, batch=batch, normalise=True
    )


def test_a_server_is_asked_in_batches_and_order_is_kept(server: Server, said: list[str]) -> None:
    reward = endpoint_reward(endpoint(server.url), said.append, limits=QUICK)
    steps: list[tuple[int, int]] = []
    found = reward.score(ROWS, ANSWERS, lambda done, total: steps.append((done, total)))
    assert found == [len(answer) / 4 for answer in ANSWERS]
    assert steps == [(2, 3), (3, 3)]
    assert said == []
    assert [len(sent["conversations"]) for _, _, sent in server.seen] == [1, 2, 1], "once before all others"
    path, headers, sent = server.seen[1]
    assert path == "/score"
    assert "Authorization" not in headers
    assert sent["conversations"][1] == [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": ANSWERS[1]},
    ]


def test_what_passes_is_asked_again(server: Server, said: list[str]) -> None:
    reward = endpoint_reward(endpoint(server.url, batch=8), said.append, limits=QUICK)
    server.script = [status(429), status(503)]
    assert reward.score(ROWS, ANSWERS, None) == [len(answer) / 4 for answer in ANSWERS]
    assert len(server.seen) == 1 + 3


BROKEN = {
    "too few": (says('{"rewards": [1.0, 2.0]}'), "2 rewards for 3 conversations"),
    "too many": (says('{"rewards": [1, 2, 3, 4]}'), "4 rewards for 3 conversations"),
    "text": (says('{"rewards": [1.0, "2.0", 3]}'), "reward that is no number: '2.0'"),
    "null": (says('{"rewards": [1.0, null, 3]}'), "reward that is no number: None"),
    "boolean": (says('{"rewards": [1.0, true, 3]}'), "reward that is no number: True"),
    "NaN": (says('{"rewards": [1.0, NaN, 3]}'), "reward that is not finite: nan"),
    "infinity": (says('{"rewards": [1.0, 1e999, 3]}'), "reward that is not finite: inf"),
    "too large": (says('{"rewards": [1.0, 1' + "0" * 400 + ", 3]}"), "reward that is not finite: 1000"),
    "no rewards": (says('{"scores": [1, 2, 3]}'), "reply without a list of rewards"),
    "a bare list": (says("[1, 2, 3]"), "reply without a list of rewards"),
    "no JSON": (says("<html>hello</html>"), "reply is not JSON: <html>hello</html>"),
    "refused": (status(401), r"request refused \(401\)"),
    "redirect": (status(302, Location="http://elsewhere.example/x"), r"redirect: to elsewhere\.example"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_reply_that_is_no_reward_stops_and_names_the_server(server: Server, said, name: str) -> None:
    behaviour, words = BROKEN[name]
    reward = endpoint_reward(endpoint(server.url, batch=8), said.append, limits=QUICK)
    server.script = [behaviour]
    with pytest.raises(SetupError, match=words) as caught:
        reward.score(ROWS, ANSWERS, None)
    assert f"reward.url={server.url}" in caught.value.message
    assert len(server.seen) == 2, "asked once, and not again"


def test_a_server_that_stays_broken_or_silent_stops(server: Server, said: list[str]) -> None:
    reward = endpoint_reward(endpoint(server.url), said.append, limits=SHORT)
    server.script = [status(500)] * 2
    with pytest.raises(SetupError, match=r"server error \(5xx\)"):
        reward.score(ROWS, ANSWERS, None)
    server.script = [silent, silent]
    with pytest.raises(SetupError, match="no answer in time") as caught:
        reward.score(ROWS, ANSWERS, None)
    assert "a larger reward.timeout" in caught.value.render()


def test_a_server_that_is_not_there_is_found_out_at_the_start(said: list[str]) -> None:
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(SetupError, match="connection failed") as caught:
        endpoint_reward(endpoint(f"http://127.0.0.1:{port}/score"), said.append, limits=QUICK)
    assert "start the server first" in caught.value.render()


def test_the_key_travels_in_one_header_and_is_never_shown(
    server: Server, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFEREE_KEY", KEY)
    reward = endpoint_reward(endpoint(server.url, key_env="REFEREE_KEY"), said.append, limits=QUICK)
    assert server.seen[0][1]["Authorization"] == f"Bearer {KEY}"
    server.script = [status(403)]
    with pytest.raises(SetupError) as caught:
        reward.score(ROWS, ANSWERS, None)
    assert "[key]" in caught.value.render()
    assert KEY not in caught.value.render() + repr(reward) + reward.fingerprint


@pytest.mark.parametrize(
    ("url", "key_env", "words"),
    [
        ("ftp://host/x", None, r"reward\.url='ftp://host/x' is not an http or https address"),
        ("http://127.0.0.1:1/x", "NOT_SET_ANYWHERE", r"reward\.key_env=NOT_SET_ANYWHERE"),
    ],
)
def test_an_unusable_address_or_key_is_refused_unasked(url: str, key_env, words: str, said) -> None:
    with pytest.raises(UsageError, match=words):
        endpoint_reward(endpoint(url, key_env=key_env), said.append)


def test_whole_numbers_are_numbers() -> None:
    assert read_rewards({"rewards": [1, -2.5], "model": "x"}, 2) == [1.0, -2.5]
