"""Times a step of HyPO, sampling included: alignctl against a plain loop over transformers' own calls.

    python scripts/bench/hypo.py --data hh.jsonl.gz --out hypo.json

A step is 8 pairs and 2 answers of 64 tokens to each of their prompts, SmolLM2-135M, full fine-tuning with
AdamW. The plain side is what one writes first: `generate(num_return_sequences=2)` on left-padded prompts,
then padded forward passes of chosen, of rejected and of the samples, for the policy and for the reference,
with log-softmax over the vocabulary; the samples' logits are kept for the answers alone.
Decisions. Both sides start from one policy, the reference moved by seeded noise so that the KL is not zero,
and no answer may end early, so that both sample as many tokens. Before anything is timed the same pairs and
answers go through both: loss of the pairs, KL and gradient norm have to agree. Each round has pairs of its
own, the order of the sides turns round with every round, medians are reported. alignctl scores its reference
on the pairs once before training; that pass is timed too and shown beside the step, since a run of one epoch
pays it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from alignctl.algos import pair_loss
from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import HypoConfig, TrainConfig
from alignctl.data.preferences import load_file
from alignctl.models.gate import choose_layout
from alignctl.models.live_reference import LiveReference
from alignctl.models.load import Source, load_tokenizer
from alignctl.models.memory import CPU_MICRO_TOKENS, CUDA_MICRO_TOKENS
from alignctl.models.pinned import pinned_directory
from alignctl.models.policy import Policy
from alignctl.models.scoring import score
from alignctl.records import Example, Message, Row, Sampled
from alignctl.runners.preparation import scoring_tokens
from alignctl.runners.training_data import render_rows
from alignctl.train.hypo_step import hypo_backward
from alignctl.train.optimiser import build_optimiser
from alignctl.train.sampling import sample_answers
from alignctl.train.step import optimiser_step

PAIRS, SAMPLES, ANSWER_TOKENS = 8, 2, 64
LONGEST = 256
"""Tokens of a prompt with one answer."""
PLAIN_PAIRS = 4
"""Pairs of the plain side per backward pass, for it keeps activations and logits of every padded position."""
LR, CLIP, SEED, NOISE = 1e-6, 1.0, 7, 0.02
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}
"""By how much the sides' figures may differ, relative to the larger."""

Answers = list[list[np.ndarray]]
"""By prompt."""
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Run:
    """One timed step."""

    sampling: float
    update: float
    reference: float
    """Seconds of the pass over the pairs that is made before training; 0 where the step makes it."""

    @property
    def step(self) -> float:
        """Without that pass."""
        return self.sampling + self.update


class Side(Protocol):
    """One implementation with its own policy, reference and optimiser."""

    def score_reference(self, pairs: Sequence[Example]) -> Tensor | None:
        """What is known of the pairs before the step."""
        ...

    def sample(self, pairs: Sequence[Example], step: int) -> Answers:
        """Answers to the pairs' prompts."""
        ...

    def update(
        self, pairs: Sequence[Example], answers: Answers, ref_sums: Tensor | None, lr: float
    ) -> Figures:
        """One optimiser step."""
        ...


# --- alignctl ------------------------------------------------------------------------------------------


class Ours:
    """The functions that `alignctl train algo=hypo` runs at a step."""

    def __init__(
        self, models: tuple[PreTrainedModel, PreTrainedModel], config: HypoConfig, dtype: str
    ) -> None:
        self.policy, reference = (
            Policy(
                model,
                choose_layout(model, max_length=LONGEST, adapter_dropout=0.0, device=model.device).layout,
                DTYPES[dtype],
                model.device,
            )
            for model in models
        )
        self.reference = LiveReference(reference, adapter_off=False)
        self.optimiser = build_optimiser(self.policy.model, weight_decay=0.0)
        self.config = config

    def score_reference(self, pairs: Sequence[Example]) -> Tensor:
        """Float [B, 2]."""
        with self.reference.active() as frozen:
            return score(frozen, pairs, token_budget=scoring_tokens(frozen.device), with_top=False).sums

    def sample(self, pairs: Sequence[Example], step: int) -> Answers:
        """Through the key-value cache of each prompt, forked."""
        rows = [Row(pair.id, (Message("user", ""),), ()) for pair in pairs]
        sampled = sample_answers(
            self.policy,
            rows,
            [pair.prompt for pair in pairs],
            str,
            samples=SAMPLES,
            # No token at all, so that every answer has the full length.
            stop=(self.policy.causal_lm.config.get_text_config().vocab_size,),
            max_new_tokens=ANSWER_TOKENS,
            seed=SEED,
            step=step,
        )
        return [list(example.branches) for example in sampled.examples]

    def update(
        self, pairs: Sequence[Example], answers: Answers, ref_sums: Tensor | None, lr: float
    ) -> Figures:
        """One row per pair, its answers among the branches."""
        assert ref_sums is not None
        examples = [
            Example(pair.id, pair.prompt, tuple(own)) for pair, own in zip(pairs, answers, strict=True)
        ]
        total = len(pairs) * SAMPLES
        backward = partial(
            hypo_backward,
            self.policy,
            self.reference,
            pair_loss(self.config),
            pairs,
            ref_sums,
            Sampled(tuple(examples), (), ("",) * total, (False,) * total),
            lambda_=self.config.lambda_,
            estimator="full",
            samples=SAMPLES,
            micro_tokens=CUDA_MICRO_TOKENS if self.policy.device.type == "cuda" else CPU_MICRO_TOKENS,
        )
        return optimiser_step(self.optimiser, backward, lr=lr, max_grad_norm=CLIP)[0]


# --- the plain loop ------------------------------------------------------------------------------------


class Plain:
    """transformers' calls and torch's functions, nothing of alignctl."""

    def __init__(
        self, models: tuple[PreTrainedModel, PreTrainedModel], config: HypoConfig, dtype: str
    ) -> None:
        self.model, self.reference = models
        self.model.generation_config = GenerationConfig(pad_token_id=0)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=0.0, fused=True)
        self.beta, self.lambda_ = config.beta, config.lambda_
        self.device = self.model.device
        self.autocast = partial(
            torch.autocast, self.device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"
        )

    def score_reference(self, pairs: Sequence[Example]) -> None:
        """In the step."""

    @torch.no_grad()
    def sample(self, pairs: Sequence[Example], step: int) -> Answers:
        """`generate` on the padded prompts."""
        torch.manual_seed(SEED + step)
        ids, mask = self.padded([pair.prompt for pair in pairs], left=True)
        with self.autocast():
            out = self.model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                num_return_sequences=SAMPLES,
                max_new_tokens=ANSWER_TOKENS,
            )
        answers = out[:, ids.shape[1] :].cpu().numpy().astype(np.int32)
        return [list(answers[n : n + SAMPLES]) for n in range(0, len(answers), SAMPLES)]

    def update(
        self, pairs: Sequence[Example], answers: Answers, ref_sums: Tensor | None, lr: float
    ) -> Figures:
        """Three padded passes for each of the two models."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        dpo, nats = 0.0, 0.0
        for start in range(0, len(pairs), PLAIN_PAIRS):
            part = slice(start, start + PLAIN_PAIRS)
            losses = self.pair_losses(pairs[part])
            (losses.sum() / len(pairs)).backward()
            logps, kl = self.answer_terms(pairs[part], answers[part])
            later = kl.detach().flip(1).cumsum(1).flip(1) - kl.detach()
            online = (kl + logps * later).sum() / (len(pairs) * SAMPLES)
            (self.lambda_ * online).backward()
            dpo += float(losses.detach().sum()) / len(pairs)
            nats += float(kl.detach().sum()) / (len(pairs) * SAMPLES)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return {"loss/pairs": dpo, "kl/sequence": nats, "grad_norm": float(norm)}

    def pair_losses(self, pairs: Sequence[Example]) -> Tensor:
        """DPO [B]."""
        policy = [self.pair_logps(self.model, pairs, side) for side in (0, 1)]
        with torch.no_grad():
            reference = [self.pair_logps(self.reference, pairs, side) for side in (0, 1)]
        return -F.logsigmoid(self.beta * ((policy[0] - reference[0]) - (policy[1] - reference[1])))

    def pair_logps(self, model: PreTrainedModel, pairs: Sequence[Example], side: int) -> Tensor:
        """Summed log-probabilities [B] of one side's answers."""
        ids, mask = self.padded([np.concatenate([pair.prompt, pair.branches[side]]) for pair in pairs])
        with self.autocast():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        logps = logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        places = torch.arange(1, ids.shape[1], device=self.device)
        begins = torch.tensor([[len(pair.prompt)] for pair in pairs], device=self.device)
        return (logps * (places >= begins) * mask[:, 1:]).sum(1)

    def answer_terms(self, pairs: Sequence[Example], answers: Answers) -> tuple[Tensor, Tensor]:
        """log pi of every answer token and KL at its position, [B k, answer tokens]."""
        rows = [
            np.concatenate([pair.prompt, one])
            for pair, own in zip(pairs, answers, strict=True)
            for one in own
        ]
        ids, mask = self.padded(rows, left=True)
        log_p = self.answer_log_softmax(self.model, ids, mask)
        with torch.no_grad():
            log_q = self.answer_log_softmax(self.reference, ids, mask)
        logps = log_p.gather(2, ids[:, -ANSWER_TOKENS:, None])[..., 0]
        return logps, (log_p.exp() * (log_p - log_q)).sum(-1)

    def answer_log_softmax(self, model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
        """[B k, answer tokens, V]."""
        with self.autocast():
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp_min(0),
                use_cache=False,
                logits_to_keep=ANSWER_TOKENS + 1,
            ).logits
        return logits[:, :-1].float().log_softmax(-1)

    def padded(self, rows: Sequence[np.ndarray], *, left: bool = False) -> tuple[Tensor, Tensor]:
        """Ids and mask [n, longest]."""
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            place = slice(longest - len(row), None) if left else slice(len(row))
            ids[number, place], mask[number, place] = torch.from_numpy(row.astype(np.int64)), 1
        return ids.to(self.device), mask.to(self.device)


# --- measuring -----------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="preference rows that alignctl reads")
    parser.add_argument("--model", help="model directory (default: the pinned SmolLM2-135M-Instruct)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="write every figure to this JSON file")
    return parser.parse_args()


def read_pairs(data: Path, model: str, wanted: int) -> tuple[list[Example], HypoConfig]:
    """The first pairs that fit whole, and the settings of algo=hypo."""
    words = [f"dataset={data}", "algo=hypo", "dataset.on_bad=drop", "dataset.eval_size=0"]
    config = load(open_conf(None), words)
    assert isinstance(config, TrainConfig)
    assert isinstance(config.algo, HypoConfig)
    assert config.dataset.kind == "file"
    rows = load_file(config.dataset, seed=0, kind="pairs").train
    found: list[Example] = []
    for start in range(0, len(rows), 4 * wanted):
        rendered = render_rows(
            config.dataset,
            rows[start : start + 4 * wanted],
            load_tokenizer(Source(model, None)),
            1 << 20,
            max_length=LONGEST,
            max_prompt=LONGEST - ANSWER_TOKENS,
        )
        found += [example for example in rendered.examples if not example.truncated]
        if len(found) >= wanted:
            return found[:wanted], config.algo
    raise SystemExit(f"{data} has {len(found)} pairs that fit, {wanted} are needed")


def models(directory: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A policy, and a reference some way off."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, device_map=device)
        for _ in range(2)
    )
    draw = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in reference.parameters():
            noise = torch.randn(parameter.shape, generator=draw).to(parameter)
            parameter.add_(noise, alpha=NOISE * float(parameter.std()))
    return policy, reference.requires_grad_(False)


def check_parity(sides: dict[str, Side], pairs: Sequence[Example], dtype: str) -> dict[str, Figures]:
    """Raise unless both sides find the same on the same answers; the weights stay as they are."""
    answers = {name: side.sample(pairs, 0) for name, side in sides.items()}["alignctl"]
    found = {
        name: side.update(pairs, answers, side.score_reference(pairs), lr=0.0) for name, side in sides.items()
    }
    shown = {name: {key: figures[key] for key in found["plain"]} for name, figures in found.items()}
    for key, value in shown["plain"].items():
        if abs(shown["alignctl"][key] - value) > TOLERANCE[dtype] * abs(value):
            raise SystemExit(f"the sides differ in {key} ({dtype}): {shown}")
    return shown


def timed_step(side: Side, pairs: Sequence[Example], step: int) -> Run:
    """One step with fresh answers."""

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    begin = now()
    ref_sums = side.score_reference(pairs)
    scored = now()
    answers = side.sample(pairs, step)
    sampled = now()
    side.update(pairs, answers, ref_sums, lr=LR)
    return Run(sampling=sampled - scored, update=now() - sampled, reference=scored - begin)


def measure(
    model: str, pairs: Sequence[Example], config: HypoConfig, dtype: str, rounds: int
) -> tuple[dict[str, list[Run]], dict[str, Figures]]:
    """Parity, which also warms up, then the rounds in turn."""
    sides: dict[str, Side] = {
        "plain": Plain(models(model), config, dtype),
        "alignctl": Ours(models(model), config, dtype),
    }
    parity = check_parity(sides, pairs[:PAIRS], dtype)
    print(f"both sides agree ({dtype}): {parity}", file=sys.stderr)
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for number in range(1, rounds + 1):
        batch = pairs[number * PAIRS : (number + 1) * PAIRS]
        for name in list(sides) if number % 2 else list(reversed(sides)):
            runs[name].append(timed_step(sides[name], batch, number))
            print(f"round {number} {dtype} {name}: {runs[name][-1].step:.1f} s", file=sys.stderr)
    return runs, parity


def medians(done: Sequence[Run]) -> Figures:
    """Seconds of a step and of its parts."""
    return {
        "step": statistics.median(run.step for run in done),
        "sampling": statistics.median(run.sampling for run in done),
        "update": statistics.median(run.update for run in done),
        "reference": statistics.median(run.reference for run in done),
        "with reference": statistics.median(run.step + run.reference for run in done),
    }


def table(results: dict[str, dict[str, list[Run]]]) -> str:
    """Medians in seconds, and the plain side's over alignctl's."""
    lines = [
        "| dtype | side | step (range) | sampling | update | reference, once before |",
        "|---|---|---|---|---|---|",
    ]
    for dtype, runs in results.items():
        middle = {name: medians(done) for name, done in runs.items()}
        for name, found in middle.items():
            steps = [run.step for run in runs[name]]
            span = f"{found['step']:.2f} ({min(steps):.2f} to {max(steps):.2f})"
            parts = " | ".join(f"{found[part]:.2f}" for part in ("sampling", "update", "reference"))
            lines.append(f"| {dtype} | {name} | {span} | {parts} |")
        plain, ours = middle["plain"], middle["alignctl"]
        ratios = " | ".join(f"{plain[part] / ours[part]:.2f}" for part in ("step", "sampling", "update"))
        whole = plain["step"] / ours["with reference"]
        lines.append(f"| {dtype} | plain / alignctl | {ratios} | step with it: {whole:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Check, measure, print the table and write the figures."""
    options = arguments()
    torch.set_num_threads(options.threads)
    model = options.model or str(pinned_directory(print))
    pairs, config = read_pairs(options.data, model, PAIRS * (options.rounds + 1))
    results, parity = {}, {}
    for dtype in options.dtypes:
        results[dtype], parity[dtype] = measure(model, pairs, config, dtype, options.rounds)
    print(table(results))
    if options.out is None:
        return
    figures = {
        "machine": {"cores": os.cpu_count(), "system": platform.platform(), "load": os.getloadavg()},
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "threads": options.threads,
        "tokens a pair": statistics.mean(pair.tokens for pair in pairs),
        "parity": parity,
        "runs": {
            dtype: {name: [asdict(run) for run in done] for name, done in runs.items()}
            for dtype, runs in results.items()
        },
    }
    options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
