"""`judge=endpoint`: any server that speaks the OpenAI chat protocol (transformers serve, vLLM, a vendor).

One request per contest and order, at temperature 0, with the reason before the verdict (arXiv 2306.05685).
The reply must hold exactly one of [[A]], [[B]], [[C]]; anything else is unreadable and counts as missing. A
win needs both orders: one win and one tie, or two opposite verdicts, are a tie. The key comes from the
environment, travels in one header and is blotted out of everything quoted.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import httpx

from alignctl.config import EndpointJudge
from alignctl.errors import SetupError
from alignctl.evaluate.judges.cache import VerdictCache, verdict_key
from alignctl.evaluate.judges.contest import Contest, Judge, Judgement, Progress, missing, refuse_missing
from alignctl.evaluate.judges.http import (
    BROKEN,
    BUSY,
    PASSING,
    REDIRECT,
    TIMEOUT,
    UNREACHABLE,
    Limits,
    RequestFault,
    authorisation,
    endpoint_url,
    open_client,
    plain_text_warning,
    post_json,
    quoted,
    read_key,
    redirect_host,
)
from alignctl.evaluate.judges.prompt import ASK_VERDICT, judging_prompt

TIE_MARGIN = 0.25
"""The mean of a win and a tie lies this far from 1/2, and is a tie."""
VERDICTS = {"A": 1.0, "B": 0.0, "C": 0.5}
"""What each label says of the answer shown as A."""
_MARK = re.compile(r"\[\[([ABC])\]\]")
_CANARY = "This is a test of the connection. Reply with [[A]] and nothing else."


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server, the model it is asked for, and the manner of asking."""

    base: str
    """The address as it was given."""
    url: httpx.URL
    model: str
    key: str | None = field(repr=False)
    key_env: str | None
    limits: Limits
    parallel: int
    max_tokens: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.model} at {self.url.netloc.decode('ascii')}"

    @property
    def identity(self) -> str:
        """What a verdict depends on besides the text."""
        return f"endpoint {self.url} {self.model} max_tokens={self.max_tokens}"


def endpoint_judge(config: EndpointJudge, cache: VerdictCache, *, limits: Limits | None = None) -> Judge:
    """The judge behind `config.url`, asked once to see that it answers.

    `limits` defaults to the config's timeout and retries. Raises UsageError for an unusable address or an
    unset key, SetupError when the server is not there, refuses or speaks another protocol.
    """
    endpoint = Endpoint(
        base=config.url,
        url=endpoint_url(config.url),
        model=config.model,
        key=None if config.key_env is None else read_key("judge.key_env", config.key_env),
        key_env=config.key_env,
        limits=limits or Limits(config.timeout, config.retries),
        parallel=config.parallel,
        max_tokens=config.max_tokens,
    )
    asyncio.run(_check_answers(endpoint))
    warnings = plain_text_warning(endpoint.url, endpoint.key_env)
    return Judge(endpoint.name, partial(_judge, endpoint, cache), warnings)


# --- one question --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said."""

    text: str
    cut: bool
    """Whether it ran into the limit of tokens."""


async def ask(
    client: httpx.AsyncClient, endpoint: Endpoint, text: str, again: Collection[str] = PASSING
) -> Answer:
    """The answer to one message. Raises RequestFault when there is none, SetupError where asking on is
    pointless: the server refuses us, or sends us elsewhere."""
    payload = {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0.0,
        "max_tokens": endpoint.max_tokens,
    }
    try:
        return read_answer(await post_json(client, endpoint.url, payload, endpoint.limits, again=again))
    except RequestFault as fault:
        _refuse_for_good(endpoint, fault)
        raise


def read_answer(reply: object) -> Answer:
    """The one choice of a chat completion. Raises RequestFault when it is not there."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise RequestFault("reply without exactly one answer")
    message = choices[0].get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str):
        raise RequestFault("answer without text")
    return Answer(content, choices[0].get("finish_reason") == "length")


def read_verdict(answer: Answer) -> float:
    """What the one verdict in an answer says of the side shown as A. Raises RequestFault when unreadable."""
    # A server without a reasoning parser leaves the model's thoughts in the text; they are not its verdict.
    marks = _MARK.findall(answer.text.rpartition("</think>")[2])
    if len(marks) == 1:
        return VERDICTS[marks[0]]
    if marks:
        raise RequestFault("unreadable: several verdicts")
    raise RequestFault("unreadable: cut off before a verdict" if answer.cut else "unreadable: no verdict")


def _refuse_for_good(endpoint: Endpoint, fault: RequestFault) -> None:
    """Raise SetupError for what no later request can change."""
    if fault.status in (401, 403):
        way = (
            "name the environment variable that holds its key: judge.key_env=NAME"
            if endpoint.key_env is None
            else f"check the key in the environment variable {endpoint.key_env}"
        )
        raise SetupError(f"{endpoint.name} does not let us in ({fault.status})", way) from fault
    if fault.reason == REDIRECT:
        target = redirect_host(endpoint.url, fault.said, endpoint.key)
        raise SetupError(
            f"judge.url={endpoint.base} redirects to {target}; alignctl follows no redirect",
            "if that is the server you mean, give its address as judge.url",
        ) from fault


# --- the canary ----------------------------------------------------------------------------------------


async def _check_answers(endpoint: Endpoint) -> None:
    """One question before anything else is done. Raises SetupError when it is not answered.

    What a missing server looks like (no connection, no answer in time) is not tried again here: the user
    is still there and can start it.
    """
    try:
        async with _client(endpoint) as client:
            await ask(client, endpoint, _CANARY, again={BUSY, BROKEN})
    except RequestFault as fault:
        said = quoted(fault.said, endpoint.key)
        raise SetupError(
            f"judge.url={endpoint.base}: {fault.reason}" + (f": {said}" if said else ""),
            *_ways_on(endpoint, fault),
        ) from fault


def _ways_on(endpoint: Endpoint, fault: RequestFault) -> tuple[str, ...]:
    if fault.reason == UNREACHABLE:
        return (
            "start the server first, for example: transformers serve MODEL --port 8000",
            "and give its address: judge.url=http://127.0.0.1:8000/v1",
        )
    if fault.reason == TIMEOUT:
        return (f"it had {endpoint.limits.timeout:g} s; a larger judge.timeout gives it longer",)
    if fault.status in (400, 404, 422):
        return (
            f"check judge.model={endpoint.model} against the models the server lists",
            "and judge.url: for most servers it ends in /v1",
        )
    if fault.reason in (BUSY, BROKEN):
        return ("try again later, or give more judge.retries",)
    return ("is judge.url an OpenAI-compatible server? for most of them it ends in /v1",)


# --- all contests --------------------------------------------------------------------------------------


def _judge(
    endpoint: Endpoint, cache: VerdictCache, contests: Sequence[Contest], progress: Progress | None
) -> list[Judgement]:
    return asyncio.run(_judge_all(endpoint, cache, contests, progress))


async def _judge_all(
    endpoint: Endpoint, cache: VerdictCache, contests: Sequence[Contest], progress: Progress | None
) -> list[Judgement]:
    """`parallel` contests at a time; judgements come back in the order of the contests."""
    judged: dict[int, Judgement] = {}
    waiting = iter(enumerate(contests))
    async with _client(endpoint) as client:
        workers = [
            asyncio.create_task(_work(client, endpoint, cache, waiting, judged, len(contests), progress))
            for _ in range(min(endpoint.parallel, len(contests)))
        ]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
    return [judged[place] for place in range(len(contests))]


async def _work(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    cache: VerdictCache,
    waiting: Iterator[tuple[int, Contest]],
    judged: dict[int, Judgement],
    total: int,
    progress: Progress | None,
) -> None:
    """Judge contests until none is left; SetupError as soon as too many are missing."""
    for place, contest in waiting:
        judged[place] = await _judge_one(client, endpoint, cache, contest)
        if judged[place].p is None:
            refuse_missing(endpoint.name, [one.reason for one in judged.values() if one.reason], total)
        if progress:
            progress(len(judged), total)


async def _judge_one(
    client: httpx.AsyncClient, endpoint: Endpoint, cache: VerdictCache, contest: Contest
) -> Judgement:
    try:
        first = await _verdict(client, endpoint, cache, contest)
        second = 1.0 - await _verdict(client, endpoint, cache, contest.swapped)
    except RequestFault as fault:
        return missing(fault.reason)
    return Judgement(first, second, TIE_MARGIN)


async def _verdict(
    client: httpx.AsyncClient, endpoint: Endpoint, cache: VerdictCache, contest: Contest
) -> float:
    text = judging_prompt(contest, ASK_VERDICT)
    key = verdict_key(endpoint.identity, text)
    kept = cache.get(key)
    if kept is not None:
        return kept
    found = read_verdict(await ask(client, endpoint, text))
    cache.put(key, found)
    return found


def _client(endpoint: Endpoint) -> httpx.AsyncClient:
    return open_client(endpoint.url, authorisation(endpoint.key), endpoint.parallel)
