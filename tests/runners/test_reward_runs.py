"""What a reward run leaves, as others read it; and what `reward=model` makes of all kinds of paths."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignctl.cli import main
from alignctl.config import DemoDataset, GoldReward, ModelReward, PatternReward, RewardJudge
from alignctl.data.demo import load_demo
from alignctl.errors import AlignctlError, RunDirectoryError, SetupError
from alignctl.evaluate.judges.cache import VerdictCache
from alignctl.evaluate.judges.contest import Contest
from alignctl.evaluate.judges.reward import reward_judge
from alignctl.evaluate.rewards import Reward
from alignctl.records import Example, GoldScore, Row
from alignctl.runners.rewards import open_reward
from alignctl.runners.tasks.reward import closed

CPU = torch.device("cpu")
PAIRS, HELD_OUT, SEED = 32, 10, 0
COMMON = (
    "model=tiny",
    f"dataset.pairs={PAIRS}",
    f"dataset.eval_pairs={HELD_OUT}",
    "dataset.gold_samples=0",
    "eval.samples=0",
    "eval.every=2",
    "train.steps=4",
    "train.batch_size=4",
    "train.lr=0.01",
    "checkpoint.export=last",
)
RUNS = {
    "reward": ("algo=reward",),
    "reward-lora": ("algo=reward", "adapter=lora"),
    "dpo": ("algo=dpo", "algo.beta=0.2"),
    "ipo": ("algo=ipo",),
    "sft": ("algo=sft",),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a cache and a finished run of each kind."""
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNCTL_CACHE", str(place / "cache"))
        for name, settings in RUNS.items():
            assert main(["train", *COMMON, *settings, f"out={place / name}"]) == 0
        yield place


def demo_pairs() -> tuple[Row, ...]:
    config = DemoDataset(
        kind="demo",
        seed=SEED,
        pairs=PAIRS,
        eval_pairs=HELD_OUT,
        gold_samples=0,
        prompts=None,
        limit=None,
        min_response_tokens=2,
    )
    return load_demo(config, kind="pairs").held_out


def opened(path: Path | str, said: list[str] | None = None) -> Reward:
    config = ModelReward(kind="model", path=str(path), normalise=True)
    say = (said if said is not None else []).append
    return open_reward(config, None, device=CPU, dtype=torch.float32, say=say)


def written(tokenizer: PreTrainedTokenizerBase, row: Row, answer: str | None) -> list[int]:
    """Ids of the conversation as the template of the saved tokenizer gives them."""
    turns = [{"role": turn.role, "content": turn.content} for turn in row.prompt]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def classifier_scores(run: Path, rows: Sequence[Row]) -> list[list[float]]:
    """Scores of both answers of each row by plain transformers, all conversations in one padded batch."""
    model = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    ids = [written(tokenizer, row, answer) for row in rows for answer in row.branches]
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    return model(**batch).logits[:, 0].view(-1, 2).double().tolist()


def last_evaluation(run: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "eval"][-1]


# --- a reward run --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reward", "reward-lora"])
def test_transformers_reads_what_the_run_measured(place: Path, name: str) -> None:
    """Scores of the saved classifier on the held-out conversations give the run's own last figures."""
    scores = classifier_scores(place / name, demo_pairs())
    leads = [chosen - rejected for chosen, rejected in scores]
    found = last_evaluation(place / name)
    assert found["loss"] == pytest.approx(
        sum(math.log1p(math.exp(-lead)) for lead in leads) / HELD_OUT, abs=1e-4
    )
    assert found["rewards/margins"] == pytest.approx(sum(leads) / HELD_OUT, abs=1e-4)
    assert found["rewards/accuracies"] == sum(lead > 0 for lead in leads) / HELD_OUT
    every = np.array(scores).ravel()
    assert found["reward/mean"] == pytest.approx(every.mean(), abs=1e-4)
    assert found["reward/std"] == pytest.approx(every.std(), abs=1e-4)
    assert every.std() > 0.02
    record = json.loads((place / name / "run.json").read_text())
    assert set(record["fingerprints"]) == {"data", "template", "model"}
    assert record["headline"]["rewards/accuracies"]["last"]["method"] == "wilson"


@pytest.mark.slow
def test_a_reward_run_is_a_judge(place: Path, tmp_path: Path) -> None:
    rows = demo_pairs()
    config = RewardJudge(kind="reward", path=str(place / "reward"))
    judge = reward_judge(config, VerdictCache(tmp_path), device=CPU, dtype=torch.float32)
    found = judge.judge([Contest(row.id, row.prompt, *row.branches) for row in rows], None)
    scores = classifier_scores(place / "reward", rows)
    expected = [1 / (1 + math.exp(rejected - chosen)) for chosen, rejected in scores]
    assert [one.p for one in found] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reward", "reward-lora"])
def test_a_reward_run_is_no_language_model(
    place: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", *COMMON[1:], f"model={place / name}", f"out={tmp_path / 'run'}"]
    assert main(words) == 3
    assert "is a sequence classifier, such as a reward model" in capsys.readouterr().err


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int32)


def test_only_whole_answers_are_closed() -> None:
    row = Example("a", ids(5, 6, 7), (ids(8, 2), ids(8, 9), ids(2)), p_chosen=0.5)
    found = closed(row, end=2, closing=ids(10, 11), max_length=100)
    assert [branch.tolist() for branch in found.branches] == [[8, 2, 10, 11], [8, 9], [2, 10, 11]]
    assert found.p_chosen == 0.5
    tight = closed(row, end=2, closing=ids(10, 11), max_length=6)
    assert [branch.tolist() for branch in tight.branches] == [[8, 2], [8, 9], [2, 10, 11]]
    nothing = closed(row, end=2, closing=ids(), max_length=5)
    assert [branch.tolist() for branch in nothing.branches] == [[8, 2], [8, 9], [2]]


# --- reward=model --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("part", ["", "model"])
def test_a_reward_run_scores_answers(place: Path, part: str) -> None:
    rows = demo_pairs()
    found = opened(place / "reward" / part).score(
        [row for row in rows for _ in range(2)], [answer for row in rows for answer in row.branches], None
    )
    expected = [score for pair in classifier_scores(place / "reward", rows) for score in pair]
    assert found == pytest.approx(expected, abs=1e-4)


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    (found,) = tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"]
    return found


@torch.no_grad()
def plain_logp(model: PreTrainedModel, prompt: list[int], whole: list[int]) -> float:
    logps = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(logps[place - 1, whole[place]].item() for place in range(len(prompt), len(whole)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scale"), [("dpo", 0.2), ("ipo", 0.1), ("dpo@2", 0.2)])
def test_a_preference_run_is_a_reward_beside_its_start(place: Path, name: str, scale: float) -> None:
    """beta times the log-ratio; ipo's own loss takes the mean per token."""
    rows = demo_pairs()[:3]
    found = opened(place / name).score(rows, [row.branches[0] for row in rows], None)
    (start,) = (place / "cache" / "models").glob("tiny-*")
    written_out = (place / "cache" / "exports").glob("dpo-*") if "@" in name else [place / name / "model"]
    tokenizer = AutoTokenizer.from_pretrained(start)
    policy, reference = (AutoModelForCausalLM.from_pretrained(one).eval() for one in (*written_out, start))
    expected = []
    for row in rows:
        prompt, whole = written(tokenizer, row, None), written(tokenizer, row, row.branches[0])
        whole = whole[: len(whole) - whole[::-1].index(end_id(tokenizer))]
        ratio = plain_logp(policy, prompt, whole) - plain_logp(reference, prompt, whole)
        expected.append(scale * ratio / (len(whole) - len(prompt) if name == "ipo" else 1))
    assert found == pytest.approx(expected, abs=1e-3)
    assert max(map(abs, found)) > 0.01


@pytest.mark.slow
def test_the_fingerprint_tells_rewards_apart_and_stays(place: Path) -> None:
    paths = [place / name for name in ("reward", "reward-lora", "dpo", "ipo", "dpo@2")]
    found = [opened(path).fingerprint for path in paths]
    assert len(set(found)) == len(paths)
    assert [opened(path).fingerprint for path in paths] == found


@pytest.mark.slow
def test_what_is_no_reward_is_refused_with_ways_on(place: Path, tmp_path: Path) -> None:
    (start,) = (place / "cache" / "models").glob("tiny-*")
    orphan = tmp_path / "orphan"
    shutil.copytree(place / "dpo", orphan)
    text = (orphan / "config.yaml").read_text()
    (orphan / "config.yaml").write_text(text.replace("    path: null", f"    path: {tmp_path / 'gone'}", 1))
    for path, kind, words in (
        (place / "sft", SetupError, "is a run of algo=sft, which trains no reward"),
        (start, SetupError, "is no reward model: it has no score"),
        (orphan, SetupError, "has no reference that its rewards could be measured against"),
        (tmp_path / "absent", SetupError, "there is no model at"),
        (f"{place / 'dpo'}@3", RunDirectoryError, "keeps no checkpoint of step 3"),
    ):
        with pytest.raises(AlignctlError, match=words) as caught:
            opened(path)
        assert type(caught.value) is kind
        assert caught.value.hints


# --- the others ----------------------------------------------------------------------------------------


def test_gold_and_pattern_need_no_model() -> None:
    row = Row("a", (), ())

    def gold(row: Row, answer: str) -> GoldScore:
        return GoldScore(total=len(answer) / 10, form=0.0, content=0.0)

    settings = {"device": CPU, "dtype": torch.float32, "say": print}
    by_gold = open_reward(GoldReward(kind="gold", normalise=False), gold, **settings)
    assert by_gold.score([row, row], ["abc", ""], None) == [0.3, 0.0]
    pattern = PatternReward(kind="pattern", pattern="b+c", normalise=False)
    assert open_reward(pattern, gold, **settings).score([row, row], ["abbc", "ac"], None) == [1.0, 0.0]
