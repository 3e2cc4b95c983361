"""Replies of judges and reward servers, mutated: a number that was said, or none; never one made up."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignctl.config import EndpointJudge
from alignctl.errors import SetupError
from alignctl.evaluate.judges.cache import VerdictCache
from alignctl.evaluate.judges.contest import Contest
from alignctl.evaluate.judges.endpoint import endpoint_judge, read_answer, read_verdict
from alignctl.evaluate.judges.http import Limits, RequestFault, quoted, retry_after
from alignctl.evaluate.reward_endpoint import read_rewards
from alignctl.records import Message
from fuzz.mutations import fuzz, mutated, odd_json


def completion(text: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "choices": [choice], "usage": {"total_tokens": 3}}


TEXTS = (
    "[[A]]",
    "B is worse.\n[[A]]",
    "<think>[[B]]</think>[[C]]",
    "[[A]] or [[B]]",
    "",
    "[A]",
    "[[D]]",
    "[[a]]",
)
COMPLETIONS = [completion(text) for text in TEXTS]
REWARDS = [{"rewards": [0.5, -1, 2e300]}, {"rewards": [0, 1, 2], "n": 3}]
FAIR = {"A": 1.0, "B": 0.0, "C": 0.5}


def said(reply: Any) -> float | None:
    """What a reply says by the letter: the one verdict in the text of its one choice."""
    try:
        (choice,) = reply["choices"]
        text = choice["message"]["content"]
        (mark,) = re.findall(r"\[\[([ABC])\]\]", text.split("</think>")[-1])
    except (TypeError, KeyError, ValueError, AttributeError, IndexError):
        return None
    return FAIR[mark]


def parsed(text: str) -> Any:
    """As the client reads a body; what it cannot read is no reply."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def attempted(read: Callable[[], Any]) -> Any:
    """What is read, None where it is refused."""
    with suppress(RequestFault):
        return read()
    return None


@fuzz(250)
@given(text=odd_json(COMPLETIONS, extra=TEXTS))
def test_a_verdict_is_what_the_reply_says_or_missing(text: str) -> None:
    reply = parsed(text)
    assert attempted(lambda: read_verdict(read_answer(reply))) == said(reply)


@fuzz(250)
@given(text=odd_json(REWARDS))
def test_rewards_are_the_finite_numbers_of_the_reply_or_none(text: str) -> None:
    reply = parsed(text)
    found = attempted(lambda: read_rewards(reply, 3))
    rewards = reply.get("rewards") if isinstance(reply, dict) else None
    sound = isinstance(rewards, list) and len(rewards) == 3 and all(map(_is_finite, rewards))
    assert found == (rewards if sound else None)
    assert found is None or all(type(value) is float for value in found)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1.7976931348623157e308


@fuzz(150)
@given(
    value=st.one_of(st.text(max_size=40), st.from_regex(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{1,9} .{0,20}"))
)
def test_a_delay_is_a_number_of_seconds_or_none(value: str) -> None:
    found = retry_after(value, datetime(2030, 1, 1, tzinfo=UTC))
    assert found is None or found >= 0


@fuzz(100)
@given(body=mutated([json.dumps(one).encode() for one in COMPLETIONS]))
def test_quoted_text_is_short_printable_and_without_the_key(body: bytes) -> None:
    shown = quoted(body.decode(errors="replace") + "sk-secret" + body.decode("latin1"), "sk-secret")
    assert len(shown) <= 160
    assert shown.isprintable()
    assert "sk-secret" not in shown


# --- over a real connection ----------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Answers the canary, then with the raw bytes it was given."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Server)
        raw = self.server.raw if self.server.asked else http(json.dumps(completion("[[A]]")).encode())
        self.server.asked += 1
        self.wfile.write(raw)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A server whose every reply after the first is `raw`."""

    daemon_threads = True
    raw = b""
    asked = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what is tested."""


def http(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


SOUND_REPLIES = [
    *(http(json.dumps(one).encode()) for one in COMPLETIONS),
    b"HTTP/1.1 429 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{}  \r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x08",
    b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\n\r\n",
    b"<html>nothing of the kind</html>",
]
LIMITS = Limits(timeout=5.0, retries=1, first_delay=0.001, longest_delay=0.01)


@fuzz(40)
@given(raw=mutated(SOUND_REPLIES))
def test_bytes_on_the_wire_become_a_judgement_or_a_refusal(
    raw: bytes, server: Server, tmp_path: Path
) -> None:
    server.raw, server.asked = raw, 0
    config = EndpointJudge(
        kind="endpoint",
        url=f"http://127.0.0.1:{server.server_port}/v1",
        model="judge",
        key_env=None,
        timeout=5.0,
        retries=0,
        parallel=1,
        max_tokens=16,
    )
    (tmp_path / "verdicts.jsonl").unlink(missing_ok=True)
    judge = endpoint_judge(config, VerdictCache(tmp_path), limits=LIMITS)
    found = None
    with suppress(SetupError):
        (found,) = judge.judge([Contest("1", (Message("user", "?"),), "one", "other")], None)
    # The same words in both orders: a win for whoever is shown in that place, or a tie; one alone missing
    # is over the share that may be, and refused.
    assert found is None or (found.first, found.second) in {(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)}
