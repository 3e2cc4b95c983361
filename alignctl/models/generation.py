"""Sampling answers: each prompt read once, its key-value cache forked for its samples, ended rows dropped.

What all prompts begin with is read once for all of them (prompt_stem.py).

A token is drawn at a uniform number that depends on (seed, step, sample id, position) alone, so an answer
does not depend on which others are sampled beside it, up to the rounding of the forward pass.

Measured on two cores with SmolLM2-135M, 16 rows of 200 tokens. A float32 decode step took 125 ms, 57 of them
for concatenating the cache, which the one of kv_cache.py spares. Under autocast a step took 121 ms, 54 of
them for casts: in inference mode autocast keeps none, elsewhere only those of weights being trained, so the
copies are made here. The head after reading three prompts in bfloat16: 483 ms by `logits_to_keep=1`, whose
slice makes torch copy the weight for every prompt, 7 ms by index. Prompts of like length are read together,
others by themselves: 16 rows padded to the longest of 8 prompts would be 3.8 times their tokens.
What did not help: matrix products and a softmax in place of SDPA (the same in float32, half as fast in
bfloat16), masks in float, weights stored transposed; a plain matrix product takes most of what is left.
Untried for the gain expected, under a tenth each: keys of a prompt shared by its samples in decoding, and
attention in groups of like length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from alignctl.models.drawing import draw, uniforms
from alignctl.models.drawn_scores import DrawnScores
from alignctl.models.kv_cache import keeps_all, merged_cache
from alignctl.models.policy import Policy, autocast, plain_attention
from alignctl.models.prompt_stem import NO_STEM, Stem, close_gaps, read_stem

BATCH = 128
"""Answers in flight; a decode step reads every weight once, however many rows share it."""
PASS_TOKENS = 16384
"""Prompt tokens read in one forward pass at most, so that activations stay small; one prompt always fits."""
PASS_COST = (64, 1024)
"""What a forward pass costs beside its tokens, in tokens: on a CPU, on a GPU."""
Progress = Callable[[int, int, int], None]
"""Called with (answers done, of how many, tokens so far)."""
STRETCH = (1, 8)
"""Decode steps between looks at which rows have ended; a look waits for the device. On a CPU, on a GPU."""


@torch.inference_mode()
def sample(
    policy: Policy,
    prompts: Sequence[np.ndarray],
    *,
    samples: int = 1,
    stop: Sequence[int],
    max_new_tokens: int,
    temperature: float | Sequence[float],
    top_p: float = 1.0,
    seed: int,
    step: int,
    sample_ids: Sequence[int] | None = None,
    scores: DrawnScores | None = None,
    progress: Progress | None = None,
) -> list[np.ndarray]:
    """`samples` answers per prompt, prompt by prompt; int32, up to a stop token or `max_new_tokens` long.

    Answer j of prompt i is at i * samples + j. `temperature` (0 takes the likeliest token) may be one for
    each of these places; `sample_ids` are the places themselves where None. `scores` takes down what the
    policy says of the tokens. `progress` hears how far it is before the first token and after every look at
    the rows.
    """
    sheet = _Sheet(len(prompts) * samples, max_new_tokens, stop, progress)
    ids = range(sheet.total) if sample_ids is None else sample_ids
    numbers = [uniforms(seed, step, sample_id, max_new_tokens) for sample_id in ids]
    waiting = _groups(prompts, samples)
    sampler = _Sampler(
        policy=policy,
        sheet=sheet,
        numbers=np.array(numbers),
        temperature=_temperatures(temperature),
        top_p=top_p,
        scores=scores,
        growable=keeps_all(policy.causal_lm, max(map(len, prompts), default=0) + max_new_tokens),
    )
    flight: _Flight | None = None
    with plain_attention(policy), autocast(policy), _cast_once(policy):
        while waiting or flight:
            taken = _fitting(waiting, _seats(flight, sampler.growable))
            if taken:
                flight = _board(sampler, flight, waiting[:taken])
                waiting = waiting[taken:]
            elif flight:
                flight = _advance(sampler, flight)
    return sheet.answers()


def _temperatures(wanted: float | Sequence[float]) -> float | np.ndarray:
    """One number where all are the same: rows then share it, and drawing is a little faster."""
    if not isinstance(wanted, Sequence):
        return wanted
    return wanted[0] if len(set(wanted)) == 1 else np.array(wanted, dtype=np.float32)


@contextmanager
def _cast_once(policy: Policy) -> Iterator[None]:
    """Within it linear layers hold bfloat16 copies of the weights that autocast would cast at every step.

    The numbers are the same. Where memory for all copies is lacking, autocast goes on casting the rest.
    """
    originals: list[tuple[nn.Linear, Tensor, Tensor | None]] = []
    try:
        if policy.compute_dtype == torch.bfloat16:
            with suppress(torch.OutOfMemoryError):
                for layer in policy.causal_lm.modules():
                    if type(layer) is nn.Linear and layer.weight.dtype == torch.float32:
                        originals.append((layer, layer.weight, layer.bias))
                        layer.weight = _low(layer.weight)
                        layer.bias = None if layer.bias is None else _low(layer.bias)  # type: ignore[assignment]
        yield
    finally:
        for layer, weight, bias in originals:
            layer.weight, layer.bias = weight, bias  # type: ignore[assignment]


def _low(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.to(torch.bfloat16), requires_grad=False)


def _seats(flight: _Flight | None, growable: bool) -> int:
    """How many answers may join: taking in a few at a time would copy the cache too often."""
    if flight is None:
        return BATCH
    return BATCH - len(flight.ids) if growable and 2 * len(flight.ids) <= BATCH else 0


# --- answers -------------------------------------------------------------------------------------------


class _Sheet:
    """The answers as they are written, on the host."""

    def __init__(self, total: int, longest: int, stop: Sequence[int], progress: Progress | None) -> None:
        self.total = total
        self.longest = longest
        self.lengths = np.zeros(total, dtype=np.int64)
        self._tokens = np.zeros((total, longest), dtype=np.int32)
        self._stop = np.array(sorted(stop))
        self._progress = progress
        self._done = 0
        self._report()

    def write(self, ids: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Go on with answers `ids` [n] by `tokens` [n, m]; bool [n]: which of them go on further."""
        ends = np.isin(tokens, self._stop)
        ended = ends.any(axis=1)
        self._tokens[ids[:, None], self.lengths[ids, None] + np.arange(tokens.shape[1])] = tokens
        self.lengths[ids] += np.where(ended, ends.argmax(axis=1) + 1, tokens.shape[1])
        going = ~ended & (self.lengths[ids] < self.longest)
        self._done += int((~going).sum())
        self._report()
        return going

    def _report(self) -> None:
        if self._progress and self.total:
            self._progress(self._done, self.total, int(self.lengths.sum()))

    def answers(self) -> list[np.ndarray]:
        return [row[:length].copy() for row, length in zip(self._tokens, self.lengths, strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """One prompt [p] and the sample ids of its answers."""

    prompt: np.ndarray
    ids: np.ndarray


def _groups(prompts: Sequence[np.ndarray], samples: int) -> list[_Group]:
    """Unique prompts, shortest first; one with more than BATCH answers is read once for each BATCH."""
    ids: dict[tuple[int, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        ids.setdefault(tuple(prompt.tolist()), []).extend(range(number * samples, (number + 1) * samples))
    return [
        _Group(np.array(prompt), np.array(ids[prompt][start : start + BATCH]))
        for prompt in sorted(ids, key=len)
        for start in range(0, len(ids[prompt]), BATCH)
    ]


def _fitting(groups: Sequence[_Group], seats: int) -> int:
    """How many of the first groups have answers for at most `seats`."""
    return int((np.cumsum([len(group.ids) for group in groups]) <= seats).sum())


# --- prompts -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Flight:
    """n answers written side by side."""

    ids: np.ndarray
    """[n] sample ids."""
    last: Tensor
    """int64 [n]: each one's latest token, which the model has not read."""
    places: Tensor
    """int64 [n]: its position, so how many tokens the model has read."""
    mask: Tensor
    """int64 [n, columns]: where the cache holds tokens of a row."""
    cache: DynamicCache


@dataclass(frozen=True, slots=True, eq=False)
class _Sampler:
    """What stays the same from the first token to the last."""

    policy: Policy
    sheet: _Sheet
    numbers: np.ndarray
    """float64 [total, max_new_tokens]: the uniform number of every token."""
    temperature: float | np.ndarray
    """Of all answers, or float32 [total]."""
    top_p: float
    scores: DrawnScores | None
    growable: bool
    """Whether all layers keep keys and values of all tokens, so that rows may be put together."""

    def draw(self, answers: np.ndarray, columns: np.ndarray, logits: Tensor, numbers: Tensor) -> Tensor:
        """Tokens [n] for places `columns` [n] of `answers` [n], from logits float32 [n, V] at numbers [n]."""
        one = self.temperature
        own = one if isinstance(one, float | int) else torch.from_numpy(one[answers]).to(logits.device)
        tokens = draw(logits, numbers, temperature=own, top_p=self.top_p)
        if self.scores:
            self.scores.add(answers, columns, logits, tokens)
        return tokens


def _board(sampler: _Sampler, flight: _Flight | None, groups: Sequence[_Group]) -> _Flight | None:
    """Read the groups' prompts, draw their first tokens, and go on with those beside `flight`."""
    prompts = [group.prompt for group in groups]
    stem = read_stem(sampler.policy.causal_lm, prompts) if sampler.growable else NO_STEM
    cost = PASS_COST[sampler.policy.device.type == "cuda"]
    lengths = [len(prompt) - stem.length for prompt in prompts]
    cuts = _passes(lengths, cost) if sampler.growable else [slice(len(groups))]
    parts = [part for cut in cuts if (part := _read(sampler, groups[cut], stem))]
    if flight:
        parts.append((flight, torch.arange(len(flight.ids), device=sampler.policy.device)))
    if not parts:
        return None
    if sampler.growable:
        return _merged(parts, sampler.policy)
    ((forked, rows),) = parts
    # Not batch_repeat_interleave: recurrent layers lack it, and hybrid ones repeat only half with it.
    forked.cache.reorder_cache(rows)  # type: ignore[arg-type]
    return forked


def _passes(lengths: Sequence[int], cost: int) -> list[slice]:
    """Cut ascending lengths into forward passes with the fewest padded tokens and `cost` tokens a pass."""
    best, cuts = [0], [0]
    for end in range(1, len(lengths) + 1):
        longest = lengths[end - 1]
        begins = [b for b in range(end) if b == end - 1 or (end - b) * longest <= PASS_TOKENS]
        total, begin = min((best[b] + cost + (end - b) * longest, b) for b in begins)
        best.append(total)
        cuts.append(begin)
    found = []
    end = len(lengths)
    while end:
        found.append(slice(cuts[end], end))
        end = cuts[end]
    return found[::-1]


def _read(sampler: _Sampler, groups: Sequence[_Group], stem: Stem) -> tuple[_Flight, Tensor] | None:
    """The prompts' cache, and which of its rows each of the answers that go on from it [n] comes from."""
    model, device = sampler.policy.causal_lm, sampler.policy.device
    ids, gaps = _left_padded([group.prompt[stem.length :] for group in groups], device)
    seen = torch.arange(ids.shape[1], device=device) >= gaps[:, None]
    mask = nn.functional.pad(seen.long(), (stem.length, 0), value=1)
    cache = stem.cache(model, len(groups))
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp_min(0)[:, stem.length :],
        past_key_values=cache,
        use_cache=True,
        # By index, which copies: the slice of logits_to_keep=1 makes torch copy the head once per prompt.
        logits_to_keep=torch.tensor([ids.shape[1] - 1], device=device),
    ).logits[:, -1]
    close_gaps(cache, stem.length, gaps)
    mask = (torch.arange(mask.shape[1], device=device) >= gaps[:, None]).long()
    answers = np.concatenate([group.ids for group in groups])
    rows = torch.arange(len(groups)).repeat_interleave(torch.tensor([len(group.ids) for group in groups]))
    numbers = torch.from_numpy(sampler.numbers[answers, 0]).to(device)
    tokens = sampler.draw(answers, np.zeros_like(answers), logits.float()[rows.to(device)], numbers)
    going = sampler.sheet.write(answers, tokens[:, None].cpu().numpy())
    if not going.any():
        return None
    kept = torch.from_numpy(np.flatnonzero(going)).to(device)
    rows = rows.to(device)[kept]
    return _Flight(answers[going], tokens[kept], mask.sum(-1)[rows], mask[rows], cache), rows


def _left_padded(prompts: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids [n, longest], tokens at the right edge, where decoding goes on; int64 [n]: padding before them."""
    longest = max(map(len, prompts))
    ids = np.zeros((len(prompts), longest), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
    gaps = np.array([longest - len(prompt) for prompt in prompts])
    return torch.from_numpy(ids).to(device), torch.from_numpy(gaps).to(device)


# --- decoding ------------------------------------------------------------------------------------------


def _advance(sampler: _Sampler, flight: _Flight) -> _Flight | None:
    """Some tokens more for every row; then rows that ended leave."""
    model, device, sheet = sampler.policy.causal_lm, sampler.policy.device, sampler.sheet
    written = sheet.lengths[flight.ids]
    steps = min(STRETCH[device.type == "cuda"], sheet.longest - int(written.max()))
    numbers = sampler.numbers[flight.ids[:, None], written[:, None] + np.arange(steps)]
    drawn = []
    for place, uniform in enumerate(torch.from_numpy(numbers).to(device).unbind(1)):
        mask = nn.functional.pad(flight.mask, (0, 1), value=1)
        logits = model(
            input_ids=flight.last[:, None],
            attention_mask=mask,
            position_ids=flight.places[:, None],
            past_key_values=flight.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        drawn.append(sampler.draw(flight.ids, written + place, logits.float(), uniform))
        flight = replace(flight, last=drawn[-1], places=flight.places + 1, mask=mask)
    return _thinned(flight, sheet.write(flight.ids, torch.stack(drawn, dim=1).cpu().numpy()))


def _thinned(flight: _Flight, going: np.ndarray) -> _Flight | None:
    """The rows that go on; the last ones take the places of those that do not."""
    if going.all():
        return flight
    if not going.any():
        return None
    n = int(going.sum())
    index = np.arange(n)
    index[~going[:n]] = n + np.flatnonzero(going[n:])
    # Not batch_select_indices: recurrent layers lack it, and hybrid ones select only half with it.
    flight.cache.reorder_cache(torch.from_numpy(index))  # type: ignore[arg-type]
    rows = torch.from_numpy(index).to(flight.last.device)
    return _Flight(flight.ids[index], flight.last[rows], flight.places[rows], flight.mask[rows], flight.cache)


def _merged(parts: Sequence[tuple[_Flight, Tensor]], policy: Policy) -> _Flight:
    """All parts' answers side by side; takes the parts' caches apart."""
    flights = [flight for flight, _ in parts]
    columns = max(int(flight.places.max()) for flight in flights)
    return _Flight(
        np.concatenate([flight.ids for flight in flights]),
        torch.cat([flight.last for flight in flights]),
        torch.cat([flight.places for flight in flights]),
        torch.cat([_widened(flight.mask, columns) for flight in flights]),
        merged_cache(
            [(flight.cache, rows) for flight, rows in parts],
            columns,
            # Autocast would cast keys that rotary embeddings left in float32 at every step.
            torch.bfloat16 if policy.compute_dtype == torch.bfloat16 else None,
        ),
    )


def _widened(mask: Tensor, columns: int) -> Tensor:
    """The last `columns` of a mask [n, m], zeros to the left where it has fewer."""
    return nn.functional.pad(mask, (columns - mask.shape[1], 0))
