"""`reward=endpoint`: a server that scores conversations.

    POST {"conversations": [[{"role": ..., "content": ...}, ...], ...]}    back {"rewards": [number, ...]}

One number per conversation, in order. The server is asked once at the start, so that what is wrong with it
is found out before anything is computed. What passes (a timeout, a lost connection, 429, 5xx) is tried
again; a reply of another length or with anything but finite numbers stops the run: a reward made up in its
place would be trained on.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

import httpx

from alignctl.config import EndpointReward
from alignctl.errors import SetupError
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
    checked_url,
    open_client,
    plain_text_warning,
    post_json,
    quoted,
    read_key,
    redirect_host,
)
from alignctl.evaluate.rewards import Progress, Reward, Say
from alignctl.records import Message, Row

CANARY = (Message("user", "This is a test of the connection."), Message("assistant", "All is well."))
PROTOCOL = 'it has to answer {"conversations": [...]} with {"rewards": [...]}, one finite number for each'


@dataclass(frozen=True, slots=True)
class RewardServer:
    """A server and the manner of asking."""

    address: str
    """As it was given."""
    url: httpx.URL
    key: str | None = field(repr=False)
    key_env: str | None
    limits: Limits
    batch: int
    """Conversations per request."""


def endpoint_reward(config: EndpointReward, say: Say, *, limits: Limits | None = None) -> Reward:
    """The server at `config.url`, asked once to see that it answers.

    `limits` defaults to the config's timeout and retries. Raises UsageError for an unusable address or an
    unset key, SetupError when the server is not there, refuses or speaks another protocol.
    """
    server = RewardServer(
        address=config.url,
        url=checked_url("reward.url", config.url),
        key=None if config.key_env is None else read_key("reward.key_env", config.key_env),
        key_env=config.key_env,
        limits=limits or Limits(config.timeout, config.retries),
        batch=config.batch,
    )
    for warning in plain_text_warning(server.url, server.key_env):
        say(warning)
    # No second try for a server that is not there: the user still is, and can start it.
    asyncio.run(_ask_all(server, [CANARY], None, again={BUSY, BROKEN}))
    return Reward(
        name=f"the reward server {server.url.netloc.decode('ascii')}",
        fingerprint=f"endpoint {server.url}",
        score=partial(_scores, server),
    )


def _scores(
    server: RewardServer, rows: Sequence[Row], answers: Sequence[str], progress: Progress | None
) -> list[float]:
    conversations = [
        (*row.prompt, Message("assistant", answer)) for row, answer in zip(rows, answers, strict=True)
    ]
    return asyncio.run(_ask_all(server, conversations, progress, again=PASSING))


async def _ask_all(
    server: RewardServer,
    conversations: Sequence[tuple[Message, ...]],
    progress: Progress | None,
    *,
    again: Collection[str],
) -> list[float]:
    """One request after another: they come once per step, and the next step needs them all."""
    found: list[float] = []
    async with open_client(server.url, authorisation(server.key), 1) as client:
        while len(found) < len(conversations):
            part = conversations[len(found) : len(found) + server.batch]
            turns = [[{"role": turn.role, "content": turn.content} for turn in one] for one in part]
            payload = {"conversations": turns}
            try:
                reply = await post_json(client, server.url, payload, server.limits, again=again)
                found += read_rewards(reply, len(part))
            except RequestFault as fault:
                raise _no_reward(server, fault) from fault
            if progress:
                progress(len(found), len(conversations))
    return found


def read_rewards(reply: object, wanted: int) -> list[float]:
    """The numbers of a reply. Raises RequestFault unless they are `wanted` finite ones."""
    rewards = reply.get("rewards") if isinstance(reply, dict) else None
    if not isinstance(rewards, list):
        raise RequestFault("reply without a list of rewards")
    if len(rewards) != wanted:
        raise RequestFault(f"{len(rewards)} rewards for {wanted} conversations")
    for value in rewards:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RequestFault("reward that is no number", said=repr(value))
        if not abs(value) <= sys.float_info.max:  # NaN is not either
            raise RequestFault("reward that is not finite", said=str(value)[:40])
    return [float(value) for value in rewards]


def _no_reward(server: RewardServer, fault: RequestFault) -> SetupError:
    """The server, what came of asking it, and the ways on."""
    said = quoted(fault.said, server.key)
    if fault.reason == REDIRECT:
        said = f"to {redirect_host(server.url, fault.said, server.key)}, and alignctl follows none"
    return SetupError(
        f"reward.url={server.address}: {fault.reason}" + (f": {said}" if said else ""),
        _way_on(server, fault),
        "a run that had begun goes on from its last checkpoint when its command is repeated",
    )


def _way_on(server: RewardServer, fault: RequestFault) -> str:
    if fault.status in (401, 403):
        if server.key_env is None:
            return "name the environment variable that holds its key: reward.key_env=NAME"
        return f"check the key in the environment variable {server.key_env}"
    if fault.reason == UNREACHABLE:
        return "start the server first, and give the address that conversations are posted to as reward.url"
    if fault.reason == TIMEOUT:
        return f"it had {server.limits.timeout:g} s: give a larger reward.timeout or a smaller reward.batch"
    if fault.reason in (BUSY, BROKEN):
        return "try again later, or give more reward.retries"
    return PROTOCOL
