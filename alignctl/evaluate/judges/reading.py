"""Judges that are models on this machine: what they are shown, and what their numbers become.

Such a judge reads two texts per contest and gives a number for each: a reward model the score of either
side, a language model the probability of label A in either order. The rest is the same for both.

Foreign text must not become control tokens: an answer that contains the judge's own end-of-turn token could
close its turn and speak in another's name. Such a contest is missing, with the reason named, as is one that
the judge cannot read to its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from alignctl.data.bad_rows import RowFault
from alignctl.data.template import answer_ending, apply_template, encode, special_tokens
from alignctl.errors import DataError, SetupError
from alignctl.evaluate.judges.cache import VerdictCache, verdict_key
from alignctl.evaluate.judges.contest import Contest, Judgement, Progress, missing, refuse_missing
from alignctl.models.load import Source, load_tokenizer
from alignctl.records import Message

CHUNK = 64
"""Contests judged before their numbers are written down: what a broken run repeats at most."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A conversation as a judge reads it."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A conversation that a judge cannot read; `reason` is a phrase that can be counted."""

    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A judge's tokenizer and how much it can read."""

    tokenizer: PreTrainedTokenizerBase
    control: tuple[str, ...]
    """Texts of the control tokens."""
    end: int
    """The token that ends a turn."""
    context: int | None
    """Tokens the judge can read; None = unlimited."""

    def read(self, messages: Sequence[Message], *, opens_answer: bool) -> Reading | Unreadable:
        """The conversation through the judge's template, with the opening of an answer after it if asked."""
        if any(token in message.content for message in messages for token in self.control):
            return Unreadable("containing a control token of the judge")
        try:
            text = apply_template(self.tokenizer, messages, opens_answer=opens_answer)
        except RowFault:
            return Unreadable("refused by the judge's chat template")
        ids = self.ids(text)
        if self.context is not None and len(ids) > self.context:
            return Unreadable(f"longer than the judge's {self.context} tokens")
        return Reading(text, ids)

    def ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a rendered text, nothing added."""
        (ids,) = encode(self.tokenizer, [text])
        return tuple(ids)


def open_reader(setting: str, source: Source, config: PretrainedConfig) -> Reader:
    """Tokenizer, template and context of the model that `setting` (KEY=VALUE, as typed) names.

    Raises SetupError when it has no usable template.
    """
    tokenizer = load_tokenizer(source)
    if not tokenizer.chat_template:
        raise SetupError(
            f"{setting}: its tokenizer has no chat template",
            "it has to read conversations: name a model trained on chat",
        )
    try:
        end = answer_ending(tokenizer).token
    except DataError as error:
        raise SetupError(f"{setting}: {error.message}", "name another model") from error
    context = config.get_text_config().to_dict().get("max_position_embeddings")
    return Reader(
        tokenizer=tokenizer,
        control=tuple(special_tokens(tokenizer).values()),
        end=end,
        context=context if isinstance(context, int) else None,
    )


@dataclass(frozen=True, slots=True, eq=False)
class ModelJudge:
    """What sets one kind of judge apart from the other."""

    name: str
    identity: str
    """What its numbers depend on besides the text."""
    read: Callable[[Contest], tuple[Reading | Unreadable, Reading | Unreadable]]
    """The two texts of a contest."""
    numbers: Callable[[Sequence[Reading]], list[float]]
    """One number per text."""
    judgement: Callable[[float, float], Judgement]
    """What the two numbers of a contest mean."""


def judge_by_model(
    model: ModelJudge, cache: VerdictCache, contests: Sequence[Contest], progress: Progress | None
) -> list[Judgement]:
    """One judgement per contest. Raises SetupError when more than 5 % are missing."""
    found: list[Judgement] = []
    for start in range(0, len(contests), CHUNK):
        pairs = [model.read(contest) for contest in contests[start : start + CHUNK]]
        numbers = _numbers(model, cache, [one for pair in pairs for one in pair if isinstance(one, Reading)])
        found += [_judgement(model, numbers, *pair) for pair in pairs]
        refuse_missing(model.name, [one.reason for one in found if one.reason], len(contests))
        if progress:
            progress(len(found), len(contests))
    return found


def _judgement(
    model: ModelJudge, numbers: dict[str, float], one: Reading | Unreadable, other: Reading | Unreadable
) -> Judgement:
    if isinstance(one, Unreadable):
        return missing(one.reason)
    if isinstance(other, Unreadable):
        return missing(other.reason)
    found = numbers[one.text], numbers[other.text]
    if not all(map(math.isfinite, found)):
        return missing("scored NaN or infinity")
    return model.judgement(*found)


def _numbers(model: ModelJudge, cache: VerdictCache, readings: Sequence[Reading]) -> dict[str, float]:
    """The number of every text: from the cache, else computed and kept; no text twice."""
    keys = {reading: verdict_key(model.identity, reading.text) for reading in readings}
    fresh = [reading for reading, key in keys.items() if cache.get(key) is None]
    computed = dict(zip(fresh, model.numbers(fresh) if fresh else [], strict=True))
    for reading, number in computed.items():
        if math.isfinite(number):
            cache.put(keys[reading], number)
    numbers = {}
    for reading, key in keys.items():
        kept = cache.get(key)
        numbers[reading.text] = computed[reading] if kept is None else kept
    return numbers
