"""The study on real preferences, whose truth is a reward model trained on the other half of them.

    python scripts/studies/overoptimisation --data hh-harmless.jsonl --out studies/harmless

The file holds pairs of transcripts ("Human: ... Assistant: ..."). Decisions. Halves are drawn by the prompt
and hold each once, so none is in two places. Only short pairs are used, which is what two cores carry. The
truth of an evaluation is the share of its sampled answers that the reward model prefers to the untrained
model's answer to the same prompt, by Bradley-Terry, as the scale of its scores says nothing by itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import alignctl
from grid import Arm

from alignctl.config import ModelReward
from alignctl.data.bad_rows import RowFault
from alignctl.data.conversations import with_answers
from alignctl.data.files import read_json_lines
from alignctl.evaluate.rewards import Reward
from alignctl.records import Message, Row
from alignctl.runners.rewards import open_reward
from alignctl.train.watch.course import Record, read_records

ARMS = (Arm("dpo", "algo.beta=0.05"), Arm("ipo", "algo.tau=0.05"), Arm("hinge", "algo.beta=0.05"))

ANSWERS = 64
TRAIN, HELD_OUT = 96, 64
"""Pairs of the half that is trained on."""
LONGEST = 800
"""Characters of a prompt with both its answers."""


def prepared(data: Path, out: Path) -> Path:
    """Write the halves and train the reward model; returns its run."""
    out.mkdir(parents=True, exist_ok=True)
    halves: list[dict[str, dict[str, Any]]] = [{}, {}]
    for pair in _short_pairs(data):
        prompt = json.dumps(pair["prompt"])
        halves[hashlib.sha256(prompt.encode()).digest()[0] % 2][prompt] = pair
    judged, trained = (list(half.values()) for half in halves)
    _write(out / "judged.jsonl", judged)
    _write(out / "train.jsonl", trained[HELD_OUT : HELD_OUT + TRAIN])
    _write(out / "held_out.jsonl", trained[:HELD_OUT])
    print(f"{len(judged)} pairs for the reward model, {len(trained)} to train on", flush=True)
    words = ["train", "algo=reward", f"dataset={out / 'judged.jsonl'}", "train.dtype=bfloat16"]
    return alignctl([*words, "train.epochs=2", "eval.every=20"], out / "reward")


def words(out: Path) -> tuple[str, ...]:
    """What all runs share."""
    data = (f"dataset={out / 'train.jsonl'}", f"dataset.eval_path={out / 'held_out.jsonl'}")
    answers = ("eval.every=6", f"eval.samples={ANSWERS}", "eval.temperature=1", "eval.max_new_tokens=48")
    train = ("train.dtype=bfloat16", "train.lr=2e-5", "train.schedule=constant", "train.steps=72")
    return (*train, *data, *answers)


def judged_records(run: Path, out: Path, reward: Reward) -> list[Record]:
    """The evaluations of a run with their truth under the names of a gold score."""
    prompts = [line["prompt"] for line in _lines(out / "held_out.jsonl")]
    sampled: dict[int, dict[str, str]] = {}
    for line in _lines(run / "samples.jsonl"):
        sampled.setdefault(line["step"], {})[line["id"]] = line["answer"]
    scores = {step: _scores(prompts, answers, reward) for step, answers in sampled.items()}
    found = []
    for record in read_records(run / "metrics.jsonl"):
        won = [
            1 / (1 + math.exp(start - now)) for start, now in zip(scores[0], scores[record.step], strict=True)
        ]
        error = statistics.stdev(won) / math.sqrt(len(won))
        truth = {"gold/mean": statistics.fmean(won), "gold/mean_se": error}
        found.append(replace(record, metrics=record.metrics | truth))
    return found


def open_judge(run: Path) -> Reward:
    """The trained reward model, on the CPU."""
    config = ModelReward(kind="model", path=str(run), normalise=False)
    return open_reward(config, None, device=torch.device("cpu"), dtype=torch.float32, say=print)


def _short_pairs(data: Path) -> Iterator[dict[str, Any]]:
    """Pairs of at most `LONGEST` characters as rows of a JSONL; rows that are no pair are left out."""
    for _, record in read_json_lines(data):
        try:
            if isinstance(record, RowFault):
                raise record
            found = with_answers(None, {side: record[side] for side in ("chosen", "rejected")})
        except RowFault:
            continue
        if sum(map(len, (*(message.content for message in found.prompt), *found.answers))) <= LONGEST:
            chosen, rejected = ([_turn("assistant", answer)] for answer in found.answers)
            prompt = [_turn(message.role, message.content) for message in found.prompt]
            yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _scores(prompts: Sequence[list[dict[str, str]]], answers: dict[str, str], reward: Reward) -> list[float]:
    """Of the answers in the order of their prompts; ids are FILE:LINE."""
    lines = sorted(answers, key=_line)
    rows = [
        Row(line, tuple(Message(**turn) for turn in prompts[_line(line) - 1]), branches=()) for line in lines
    ]
    return reward.score(rows, [answers[line] for line in lines], None)


def _line(row_id: str) -> int:
    return int(row_id.rpartition(":")[2])


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
