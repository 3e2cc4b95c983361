"""`judge=reward`: a reward model; the answer with the higher scalar wins.

P(a wins) = sigmoid(r(a) - r(b)), the Bradley-Terry model that such models are trained with
(arXiv 2009.01325). A score does not depend on the other answer, so there is no order to be biased by.
"""

from __future__ import annotations

from functools import partial

import torch

from alignctl.config import RewardJudge
from alignctl.evaluate.judges.cache import VerdictCache
from alignctl.evaluate.judges.contest import Contest, Judge, Judgement
from alignctl.evaluate.judges.reading import (
    ModelJudge,
    Reader,
    Reading,
    Unreadable,
    judge_by_model,
    open_reader,
)
from alignctl.models.load import locate_path
from alignctl.models.score_model import load_score_model, padding_token, score_config
from alignctl.models.tensor_files import weights_fingerprint


def reward_judge(
    config: RewardJudge, cache: VerdictCache, *, device: torch.device, dtype: torch.dtype
) -> Judge:
    """The reward model at `config.path` (directory or hub id, safetensors) as a judge.

    Raises SetupError unless it has one score, all its weights, a chat template and its own padding token.
    """
    setting, source = f"judge.path={config.path}", locate_path(config.path)
    described = score_config(setting, source)
    reader = open_reader(setting, source, described)
    pad = padding_token(setting, reader.tokenizer, reader.end, described)
    model = load_score_model(setting, source, described, pad, device=device, dtype=dtype)
    judge = ModelJudge(
        name=config.path,
        identity=f"reward {weights_fingerprint(model.model.state_dict())} {dtype}",
        read=partial(_both_sides, reader),
        numbers=lambda readings: model.scores([one.ids for one in readings]),
        judgement=_bradley_terry,
    )
    return Judge(config.path, partial(judge_by_model, judge, cache))


def _bradley_terry(a: float, b: float) -> Judgement:
    p = torch.sigmoid(torch.tensor(a - b, dtype=torch.float64)).item()
    return Judgement(p, p)


def _both_sides(reader: Reader, contest: Contest) -> tuple[Reading | Unreadable, Reading | Unreadable]:
    return (
        reader.read(contest.conversation_a, opens_answer=False),
        reader.read(contest.conversation_b, opens_answer=False),
    )
