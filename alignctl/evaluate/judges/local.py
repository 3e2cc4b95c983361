"""`judge=local`: a causal language model, read by the logits of its two labels.

It is shown both answers, labelled A and B, and asked for the label. Nothing is sampled: P(A) is the softmax
over the two label tokens right after the opening of its answer, so every contest has a verdict, and the mean
over both orders cancels a constant preference for one label (arXiv 2306.05685). The labels are scored as two
one-token answers to one prompt, by the code that scores preference pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from alignctl.config import LocalJudge, NoAdapter
from alignctl.errors import SetupError
from alignctl.evaluate.judges.cache import VerdictCache
from alignctl.evaluate.judges.contest import Contest, Judge, Judgement
from alignctl.evaluate.judges.prompt import ASK_LABEL, judging_prompt
from alignctl.evaluate.judges.reading import (
    ModelJudge,
    Reader,
    Reading,
    Unreadable,
    judge_by_model,
    open_reader,
)
from alignctl.models.gate import choose_layout
from alignctl.models.load import load_start, locate_path
from alignctl.models.policy import Policy
from alignctl.models.scoring import score
from alignctl.records import Example, Message

TOKENS = 8192
"""Per forward pass."""
LABELS = ("A", "B")


@dataclass(frozen=True, slots=True, eq=False)
class LabelModel:
    """A causal model and the token ids of A and B where its answer begins."""

    policy: Policy
    labels: tuple[int, int]

    def probabilities(self, readings: Sequence[Reading]) -> list[float]:
        """P(A) against B after each text."""
        branches = tuple(np.array([label], dtype=np.int32) for label in self.labels)
        examples = [
            Example(id="", prompt=np.array(one.ids, dtype=np.int32), branches=branches) for one in readings
        ]
        sums = score(self.policy, examples, token_budget=TOKENS, with_top=False).sums.double()
        return torch.sigmoid(sums[:, 0] - sums[:, 1]).tolist()


def local_judge(
    config: LocalJudge, cache: VerdictCache, *, device: torch.device, dtype: torch.dtype
) -> Judge:
    """The model at `config.path` (directory, adapter, run or hub id) as a judge.

    Raises SetupError when it cannot be loaded, has no chat template, or when A and B are not one token each.
    """
    source = locate_path(config.path)
    start = load_start(source, NoAdapter(kind="none"), seed=0)
    model = start.model.to(device)  # type: ignore[arg-type]
    reader = open_reader(f"judge.path={config.path}", source, model.config)
    gate = choose_layout(model, max_length=reader.context or TOKENS, adapter_dropout=0.0, device=device)
    labels = LabelModel(Policy(model, gate.layout, dtype, device), label_tokens(config.path, reader))
    judge = ModelJudge(
        name=config.path,
        identity=f"local {start.fingerprint} {dtype}",
        read=partial(_both_orders, reader),
        numbers=labels.probabilities,
        judgement=lambda first, second: Judgement(first, 1.0 - second, config.tie_margin),
    )
    return Judge(config.path, partial(judge_by_model, judge, cache))


def label_tokens(name: str, reader: Reader) -> tuple[int, int]:
    """The tokens that A and B are at the beginning of an answer. Raises SetupError unless it is one each."""
    opening = reader.read([Message("user", ASK_LABEL)], opens_answer=True)
    if isinstance(opening, Unreadable):
        raise SetupError(f"judge.path={name}: its chat template refuses a plain question")
    found = []
    for label in LABELS:
        ids = reader.ids(opening.text + label)
        if ids[:-1] != opening.ids:
            raise SetupError(
                f"judge.path={name}: its tokenizer has no token of its own for the label {label}",
                "the judge is read by the logits of A and B; name another model",
            )
        found.append(ids[-1])
    return found[0], found[1]


def _both_orders(reader: Reader, contest: Contest) -> tuple[Reading | Unreadable, Reading | Unreadable]:
    return _read(reader, contest), _read(reader, contest.swapped)


def _read(reader: Reader, contest: Contest) -> Reading | Unreadable:
    return reader.read([Message("user", judging_prompt(contest, ASK_LABEL))], opens_answer=True)
