"""The gold score of the demo data set: was the constraint kept (form), and is the answer right (content)?

Every function here is pure, maps an answer to [0, 1] and knows nothing about the wording of a prompt.
Two rules hold throughout. A constraint that is not kept exactly earns at most one half, falling with the
distance. Content counts only what is known to be right, so gibberish, an empty answer, an echo of the
prompt and one word said over and over earn nothing, however well they keep the form.

What it cannot see: a wrong statement in otherwise fitting prose, and words of a good answer shuffled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from alignctl.records import GoldScore

_FUNCTION_WORDS = (
    "a an the this that these those it its they them their there here he she his her him we us our you "
    "your i my me who which what when where why how and or but nor so if then than as of in on at by for "
    "from with to into out over under up down about after before between through around is are was were "
    "be been being am do does did has have had can could will would may might must shall should not no "
    "yes also very too more most many much some any all each every other such only just like one two "
    "three first both few people thing things way make made makes use used uses using called help helps "
    "get give gives need needs often usually know known well because while during even still ever never "
    "good great different kind type "
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
# In running English every second or third word is one of these; in a heap of keywords none is.
FUNCTION_SHARE = 0.2
# The least share of function words, keywords and words of the prompt in an answer that is about its topic.
FAMILIAR_SHARE = 0.35
KEYWORDS_WANTED = 2
ROOT_LENGTH = 6

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_MARKER = re.compile(r"^\s*(?:\d+[.):]|[-*•])\s+")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_SUFFIXES = ("ing", "es", "ed", "s")


@dataclass(frozen=True, slots=True)
class Judge:
    """How the answers to one prompt are scored: two functions from the answer to [0, 1]."""

    prompt: str
    form: Callable[[str], float]
    content: Callable[[str], float]


def score(judge: Judge, answer: str) -> GoldScore:
    """Form, content and their product, which is the total."""
    content = 0.0 if _echoes(answer, judge.prompt) else judge.content(answer) * variety(answer)
    form = judge.form(answer)
    return GoldScore(total=form * content, form=form, content=content)


# --- words ---------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """The words and numbers of a text in lower case, without punctuation and markdown."""
    return _WORD.findall(text.lower())


def stem(word: str) -> str:
    """A word without its commonest endings, so that `heats`, `heated` and `heat` agree."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word.removesuffix(suffix).rstrip("e")
    return word.rstrip("e") if len(word) > 3 else word


def stems(text: str) -> str:
    """The stems of a text as one string with a space on either side of each, to look names up in."""
    return f" {' '.join(stem(word) for word in words(text))} "


def roots(text: str) -> frozenset[str]:
    """What the words of a text begin with, so that `transportation` and `transport` agree."""
    return frozenset(stem(word)[:ROOT_LENGTH] for word in words(text))


def keywords(text: str) -> frozenset[str]:
    """The roots of the content words of a text."""
    return roots(text) - roots(_FUNCTION_WORDS)


def variety(answer: str) -> float:
    """1 for natural text, falling to 0 as the same words come again and again."""
    said = words(answer)
    if not said or len(set(said)) == 1 < len(said):
        return 0.0
    return min(1.0, max(0.0, len(set(said)) / len(said) - 0.2) / 0.3)


def _echoes(answer: str, prompt: str) -> bool:
    """Whether the answer is the prompt again, or a part of it longer than three words."""
    said, asked = " ".join(words(answer)), " ".join(words(prompt))
    return asked in said or (len(said.split()) > 3 and said in asked)


def _partly(distance: float, scale: float) -> float:
    """The credit for a count that is off by `distance`: at most one half, nothing from `scale` on."""
    return 1.0 if distance == 0 else 0.5 * max(0.0, 1.0 - distance / scale)


# --- form ----------------------------------------------------------------------------------------------


def list_items(answer: str) -> list[str]:
    """The lines with a number or bullet, without it; where no line has one, every line."""
    lines = [line for line in answer.splitlines() if words(line)]
    marked = [_MARKER.sub("", line) for line in lines if _MARKER.match(line)]
    return marked or lines


def comma_items(answer: str) -> list[str]:
    """The parts between commas, without a leading `and` or a full stop; list items if there is no comma."""
    if "," not in answer:
        return list_items(answer)
    parts = [part.strip().rstrip(".").removeprefix("and ") for part in answer.split(",")]
    return [part for part in parts if words(part)]


def list_form(answer: str, *, n: int) -> float:
    """Exactly n items, each on its own line."""
    return _partly(abs(len(list_items(answer)) - n), n)


def comma_form(answer: str, *, n: int) -> float:
    """Exactly n names of at most three words between commas, on one line, with nothing else."""
    if "," not in answer:
        return 0.0
    items = comma_items(answer)
    close = _partly(abs(len(items) - n), n)
    clean = "\n" not in answer.strip() and all(len(words(item)) <= 3 and ":" not in item for item in items)
    return close if clean else min(close, 0.5)


def lower_form(answer: str) -> float:
    """Letters, and none of them a capital; five capitals and more earn nothing."""
    if not any(letter.islower() for letter in answer):
        return 0.0
    capitals = sum(letter.isupper() for letter in answer)
    return _partly(capitals, 5)


def closing_form(answer: str, *, phrase: str) -> float:
    """The phrase ends the answer; half for other letters or marks, a quarter for it elsewhere."""
    if answer.strip().strip('"“”').endswith(phrase):
        return 1.0
    said, wanted = " ".join(words(answer)), " ".join(words(phrase))
    return 0.5 if said.endswith(wanted) else 0.25 * (wanted in said)


def bare_form(answer: str) -> float:
    """One word or number and nothing else, except a final mark; less for every word around it."""
    text = answer.strip()
    said = words(text)
    if not said:
        return 0.0
    return 1.0 if _WORD.fullmatch(text.rstrip(".!")) else 0.5 / len(said)


# --- content -------------------------------------------------------------------------------------------


def items_content(answer: str, *, split: Callable[[str], list[str]], pool: Collection[str]) -> float:
    """Share of the items that name a different member of the category; `pool` holds the members' `stems`."""
    items = split(answer)
    found: set[str] = set()
    for item in items:
        text = stems(item)
        named = [member for member in pool if member in text]
        found.update(sorted(named, key=len)[-1:])
    return len(found) / len(items) if items else 0.0


def topic_content(answer: str, *, topic: Collection[str], prompt: str) -> float:
    """How far an answer is English about its topic; `topic` holds its `keywords`.

    Two different keywords are enough, those that the prompt gave away apart. They count only in running
    text: a share of function words is asked for, and a good part must be such words, keywords or words of
    the prompt.
    """
    said = words(answer)
    if not said:
        return 0.0
    given = roots(prompt)
    known = given.union(topic)
    named = len(roots(answer).intersection(topic) - given) / KEYWORDS_WANTED
    function = sum(word in FUNCTION_WORDS for word in said) / len(said)
    familiar = sum(word in FUNCTION_WORDS or not known.isdisjoint(roots(word)) for word in said) / len(said)
    return min(1.0, named) * min(1.0, function / FUNCTION_SHARE) * min(1.0, familiar / FAMILIAR_SHARE)


def number_content(answer: str, *, value: int) -> float:
    """1 when the first or the last number of the answer is the right one."""
    found = [float(number) for number in _NUMBER.findall(answer.replace(",", ""))]
    return float(value in (*found[:1], *found[-1:]))


def word_content(answer: str, *, accepted: Collection[str], rivals: Collection[str]) -> float:
    """1 when an accepted word stands in the answer, shared with every rival that stands there too."""
    said = set(words(answer))
    return float(bool(said & set(accepted))) / (1 + len(said & set(rivals)))
