"""The reference of a run: its scores of given rows, computed once, or the model itself where answers are new.

The starting policy is the reference unless `algo.reference` names another model or a soup, or an adapter that
was trained before is switched off.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, replace

from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise

from alignctl.config import NoAdapter, Reference, TrainConfig, soup_weights
from alignctl.errors import RunDirectoryError, SetupError
from alignctl.models.live_reference import LiveReference
from alignctl.models.load import Start, load_start, locate_path
from alignctl.models.policy import causal_lm, head_parameters
from alignctl.models.precision import settle_precision
from alignctl.models.reference import as_tensors, cached_scores, from_tensors
from alignctl.models.scoring import Progress
from alignctl.models.soup.members import open_member
from alignctl.models.souped import pour, vessel
from alignctl.records import Scores
from alignctl.runners.checkpoints import Say, model_path
from alignctl.runners.preparation import StartingPolicy, policy_of, scoring_tokens
from alignctl.runners.training_data import TrainingData
from alignctl.train.durable import write_bytes
from alignctl.train.run_directory import RunDirectory

REFERENCE = "reference.safetensors"


@dataclass(frozen=True, slots=True)
class References:
    """What the reference says of every row."""

    train: Scores
    held_out: Scores | None
    is_start: bool
    """The policy starts as the reference itself, so its first evaluation is already known."""
    cached: bool


# --- the model -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A reference ready to score."""

    live: LiveReference
    fingerprint: str
    is_start: bool


def named_reference(wanted: Reference, seed: int, say: Say) -> Start | None:
    """The second model, or the mean of several, that the config names; None when it names none."""
    if wanted.path is not None:
        source = locate_path(model_path(wanted.path, say))
        return load_start(source, NoAdapter(kind="none"), seed=seed)
    if wanted.kind != "soup":
        return None
    members = [open_member(model_path(word, say)) for word in wanted.members]
    return pour(vessel(members), members, soup_weights(wanted))


def find_reference(
    wanted: Reference, config: TrainConfig, start: StartingPolicy, data: TrainingData, say: Say
) -> Found:
    """The model that the policy is measured against, before the first step; see the module's rule.

    It shares the policy's weights where those are the reference's: score with it now, or `frozen` it.
    """
    other = named_reference(wanted, config.seed, say)
    if other is not None:
        _refuse_vocabulary(other, start)
        ready = policy_of(
            other,
            dropout=0.0,
            max_length=config.train.max_length,
            device=start.policy.device,
            dtype=start.policy.compute_dtype,
        )
        same = ready.fingerprint == start.fingerprint and isinstance(config.adapter, NoAdapter)
        return Found(LiveReference(ready.policy, adapter_off=False), ready.fingerprint, same)
    model, was_trained = start.policy.model, data.source.adapter is not None
    if isinstance(model, PeftModel) and (wanted.kind == "adapter_off" or not was_trained):
        # A fresh adapter adds exactly nothing; switched off, it also costs nothing.
        fingerprint = f"{start.fingerprint} adapter off" if was_trained else start.fingerprint
        return Found(LiveReference(start.policy, adapter_off=True), fingerprint, not was_trained)
    return Found(LiveReference(start.policy, adapter_off=False), start.fingerprint, True)


def _refuse_vocabulary(other: Start, start: StartingPolicy) -> None:
    """Token ids must mean the same to both; as many of them is the least."""
    sizes = [head_parameters(causal_lm(model))[0].shape[0] for model in (start.policy.model, other.model)]
    if sizes[0] != sizes[1]:
        raise SetupError(
            f"the policy has {sizes[0]} tokens and its reference {sizes[1]}: they read different texts",
            "name a reference with the policy's tokenizer: algo.reference.path=MODEL",
        )


def frozen(found: Found, start: StartingPolicy) -> LiveReference:
    """The reference as it will stay while the policy moves: a copy where both are one set of weights.

    In memory for the whole run, in bfloat16 at half of the policy's size: to read SmolLM2-135M again took
    3.1 s on one core, 1.2 of them to prove that its files are the same, and 16 answers take 3.1 s to score.
    """
    if found.live.adapter_off:
        return found.live
    policy = found.live.policy
    model = copy.deepcopy(policy.model) if policy.model is start.policy.model else policy.model
    settle_precision(model.requires_grad_(False), policy.compute_dtype)
    return LiveReference(replace(policy, model=model), adapter_off=False)


# --- its scores of given rows --------------------------------------------------------------------------


def score_all(found: Found, data: TrainingData, progress: Progress) -> References:
    """Score all rows, or find their scores in the cache."""
    with found.live.active() as policy:
        train, train_cached = cached_scores(
            policy,
            found.fingerprint,
            data.train,
            token_budget=scoring_tokens(policy.device),
            with_top=False,
            progress=progress,
        )
        if not data.held_out:
            return References(train, None, found.is_start, train_cached)
        held_out, held_out_cached = cached_scores(
            policy,
            found.fingerprint,
            data.held_out,
            token_budget=scoring_tokens(policy.device),
            with_top=True,
            progress=progress,
        )
    return References(train, held_out, found.is_start, train_cached and held_out_cached)


def keep(references: References, directory: RunDirectory) -> str:
    """Write the scores into the run directory; returns their hash."""
    tensors = as_tensors(references.train, "train.")
    if references.held_out:
        tensors |= as_tensors(references.held_out, "held_out.")
    content = serialise(tensors)
    write_bytes(directory.path / REFERENCE, content)
    return hashlib.sha256(content).hexdigest()


def kept(directory: RunDirectory, data: TrainingData) -> tuple[References, str]:
    """The run's own copy and its hash: a resume reads what the run began with, cache or no cache."""
    path = directory.path / REFERENCE
    try:
        content = path.read_bytes()
        tensors = deserialise(content)
    except (OSError, SafetensorError) as error:
        raise RunDirectoryError(
            f"{path} cannot be read: {error}", "start over with overwrite=true or another out=DIR"
        ) from error
    held_out = from_tensors(tensors, "held_out.") if data.held_out else None
    references = References(from_tensors(tensors, "train."), held_out, is_start=False, cached=True)
    return references, hashlib.sha256(content).hexdigest()
