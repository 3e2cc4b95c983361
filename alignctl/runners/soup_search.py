"""Soups that look before they merge: greedy selection, and the line between two models.

Every candidate is poured into one model in memory and scored on held-out pairs through the cache, so a
search that was killed goes on where it stood. Candidates are compared paired, on the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from alignctl.config import (
    DemoDataset,
    EvalConfig,
    GateSettings,
    GreedySoup,
    NoJudge,
    ScoringSettings,
    SoupConfig,
    SweepSoup,
    request_hash,
)
from alignctl.errors import UsageError
from alignctl.evaluate.comparison import compare, compare_means
from alignctl.evaluate.preferences import preference_metrics
from alignctl.evaluate.results import Comparison, ScoredPairs
from alignctl.evaluate.soup_points import SoupPoint, SoupSearch
from alignctl.evaluate.statistics import mean_interval
from alignctl.models.machine import cache_root
from alignctl.models.reference import cached_scores
from alignctl.models.soup.members import Member
from alignctl.models.souped import pour, vessel
from alignctl.records import Scores
from alignctl.report.terminal import Panel
from alignctl.runners.checkpoints import Checkpoint, open_checkpoint
from alignctl.runners.evaluation import common_reference, short_names
from alignctl.runners.evaluation_data import EvaluationData, prepare_evaluation
from alignctl.runners.evaluation_results import gold_scores, scored_pairs
from alignctl.runners.measurement import AnswerFile, Sampler, open_policy
from alignctl.runners.preparation import policy_of, resolve_device, scoring_tokens
from alignctl.train.lock import lock_beside, only_writer
from alignctl.train.signals import StopFlag, leave_if_stopped

SHOWN = (
    "accuracy",
    "accuracy_logp",
    "accuracy_avg",
    "margin/mean",
    "likelihood/chosen",
    "likelihood/rejected",
)
"""What is kept of each candidate, besides its gold score."""
DEFAULT_BETA = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """What candidates are measured with."""

    config: SoupConfig
    settings: EvalConfig
    data: EvaluationData
    members: Sequence[Member]
    names: tuple[str, ...]
    model: PreTrainedModel
    device: torch.device
    reference: Scores | None
    beta: float
    store: AnswerFile
    panel: Panel
    stop: StopFlag

    def report(self, what: str, done: int, total: int, tokens: int | None = None, /) -> None:
        """Progress, and the place where a signal is noticed."""
        self.panel.working(what, done, total, tokens)
        leave_if_stopped(self.stop, "what was scored is kept")


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """One candidate, measured."""

    point: SoupPoint
    pairs: ScoredPairs
    gold: np.ndarray | None


def search(config: SoupConfig, members: Sequence[Member], panel: Panel, stop: StopFlag) -> SoupSearch:
    """Measure candidates and say which is best, with the paired gain over the best single member."""
    answers = cache_root() / "searches" / f"{request_hash(config)}.jsonl"
    with only_writer(answers, lock_beside(answers)):
        return _found(_bench(config, members, answers, panel, stop))


def _found(bench: Bench) -> SoupSearch:
    config = bench.config
    if isinstance(config.soup, SweepSoup):
        tried = [
            _try(bench, (1 - alpha, alpha), alpha) for alpha in np.linspace(0, 1, config.soup.points).tolist()
        ]
        singles = [tried[0], tried[-1]]
        best = max(tried, key=lambda one: _value(one, bench))
    else:
        tried, singles, best = _greedy(bench)
    single = max(singles, key=lambda one: _value(one, bench))
    gain = None if best is single else _compared(best, single, bench)
    return SoupSearch(
        kind="sweep" if isinstance(config.soup, SweepSoup) else "greedy",
        metric=_metric(bench),
        points=tuple(one.point for one in tried),
        best=tried.index(best),
        single=tried.index(single),
        gain=None if gain is None else gain.delta,
        gain_p=None if gain is None else gain.p,
    )


def _greedy(bench: Bench) -> tuple[list[Tried], list[Tried], Tried]:
    """Members alone, then in the order of their value, each kept where the mean does not get worse."""
    n = len(bench.members)
    singles = [_try(bench, tuple(float(place == one) for place in range(n)), None) for one in range(n)]
    order = sorted(range(n), key=lambda place: -_value(singles[place], bench))
    tried, chosen, best = list(singles), [order[0]], singles[order[0]]
    for place in order[1:]:
        kept = [*chosen, place]
        candidate = _try(bench, tuple(1 / len(kept) if one in kept else 0.0 for one in range(n)), None)
        tried.append(candidate)
        if _value(candidate, bench) >= _value(best, bench):
            chosen, best = kept, candidate
    return tried, singles, best


def _try(bench: Bench, weights: tuple[float, ...], alpha: float | None) -> Tried:
    """Pour the mean into the model, score the pairs, and sample answers where there is a gold score."""
    used = [name for name, weight in zip(bench.names, weights, strict=True) if weight > 0]
    label = f"alpha {alpha:.2f}" if alpha is not None else " + ".join(used)
    kept = [(member, weight) for member, weight in zip(bench.members, weights, strict=True) if weight > 0]
    start = policy_of(
        pour(bench.model, [member for member, _ in kept], [weight for _, weight in kept]),
        dropout=0.0,
        max_length=bench.data.max_length,
        device=bench.device,
        dtype=torch.float32,
    )
    scores, _ = cached_scores(
        start.policy,
        start.fingerprint,
        bench.data.examples,
        token_budget=scoring_tokens(bench.device, bench.config.hardware),
        with_top=True,
        progress=lambda done, total: bench.report(f"{label}: pairs", done, total),
    )
    pairs = scored_pairs(bench.data, scores, bench.reference, bench.beta)
    figures = preference_metrics(pairs, seed=bench.config.seed)
    metrics = {name: figures[name] for name in SHOWN if name in figures}
    gold = None
    if bench.data.gold is not None and bench.data.asked:
        sampler = Sampler(start, label, bench.settings, bench.data, bench.store, bench.report)
        ids = [row.id for row in bench.data.asked]
        answers = sampler.answers("answer", ids, bench.data.prompts, bench.settings.eval.temperature)
        gold = gold_scores(bench.data, answers)[:, 0]
        metrics["gold/mean"] = mean_interval(gold, bounds=(0.0, 1.0))
    bench.panel.note(f"{label}: {_metric(bench)} {metrics[_metric(bench)].value:.3f}")
    point = SoupPoint(label, alpha, tuple(used), weights, metrics)
    return Tried(point, pairs, gold)


def _metric(bench: Bench) -> str:
    assert isinstance(bench.config.soup, GreedySoup | SweepSoup)
    return "gold/mean" if bench.config.soup.metric == "gold" else bench.config.soup.metric


def _value(one: Tried, bench: Bench) -> float:
    return one.point.metrics[_metric(bench)].value


def _compared(best: Tried, single: Tried, bench: Bench) -> Comparison:
    """The two on the same rows, best minus single."""
    metric, seed = _metric(bench), bench.config.seed
    if metric == "gold/mean":
        assert best.gold is not None
        assert single.gold is not None
        values = [("best", best.gold), ("single", single.gold)]
        return compare_means(values, metric, np.arange(len(best.gold)), seed=seed)[0]
    found = compare([("best", best.pairs), ("single", single.pairs)], seed=seed)
    return next(one for one in found if one.metric == metric)


# --- what the candidates are measured with -------------------------------------------------------------


def _bench(
    config: SoupConfig, members: Sequence[Member], answers: Path, panel: Panel, stop: StopFlag
) -> Bench:
    assert isinstance(config.soup, GreedySoup | SweepSoup)
    settings = _evaluation_of(config)
    models = [open_checkpoint(word, panel.note) for word in config.members]
    device = resolve_device(config.hardware)
    reference = None
    if config.soup.metric == "accuracy" or config.soup.reference is not None:
        reference = common_reference(settings, models, panel.note)
        if reference is None:
            raise UsageError("soup.metric=accuracy needs a reference", "name it   soup.reference=MODEL")
    entrants = [*models, *((reference,) if reference else ())]
    data = prepare_evaluation(settings, models, [(one.name, one.source) for one in entrants], panel.working)
    panel.plan([f"soup   {config.soup.method} of {', '.join(config.members)}", *data.card])
    betas = {model.origin.beta for model in models}
    bench = Bench(
        config=config,
        settings=settings,
        data=data,
        members=members,
        names=short_names(config.members),
        model=vessel(members),
        device=device,
        reference=None,
        beta=(betas.pop() if len(betas) == 1 else None) or DEFAULT_BETA,
        store=AnswerFile(answers),
        panel=panel,
        stop=stop,
    )
    return bench if reference is None else replace(bench, reference=_reference_scores(bench, reference))


def _reference_scores(bench: Bench, reference: Checkpoint) -> Scores:
    start = open_policy(reference.source, bench.settings, bench.data, bench.device)
    scores, _ = cached_scores(
        start.policy,
        start.fingerprint,
        bench.data.examples,
        token_budget=scoring_tokens(bench.device, bench.config.hardware),
        with_top=True,
        progress=lambda done, total: bench.report("reference: pairs", done, total),
    )
    return scores


def _evaluation_of(config: SoupConfig) -> EvalConfig:
    """The evaluation that a search does over and over."""
    soup = config.soup
    assert isinstance(soup, GreedySoup | SweepSoup)
    sampling = isinstance(soup, SweepSoup)
    return EvalConfig(
        models=tuple(dict.fromkeys(config.members)),
        reference=soup.reference,
        dataset=config.dataset,
        judge=NoJudge(kind="none"),
        eval=ScoringSettings(
            rows=soup.rows,
            beta=None,
            dtype="float32",
            max_length=None,
            max_prompt=None,
            allow_overlap=False,
            samples=soup.samples if sampling and isinstance(config.dataset, DemoDataset) else 0,
            max_new_tokens=soup.max_new_tokens if sampling else 1,
            temperature=soup.temperature if sampling else 0.0,
            opponent=None,
            questions=None,
        ),
        gate=GateSettings(accuracy=None, accuracy_logp=None, accuracy_avg=None, win_rate=None, gold=None),
        hardware=config.hardware,
        out=None,
        overwrite=False,
        seed=config.seed,
    )
