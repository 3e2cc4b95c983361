"""The endpoint judge against a real HTTP server on loopback that misbehaves in every way of the catalogue."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_server

import pytest

from alignctl.config import EndpointJudge
from alignctl.errors import AlignctlError, SetupError, UsageError
from alignctl.evaluate.judges.cache import FILE, VerdictCache
from alignctl.evaluate.judges.contest import Contest, Judge, Judgement
from alignctl.evaluate.judges.endpoint import endpoint_judge
from alignctl.evaluate.judges.http import Limits
from alignctl.records import Message

QUICK = Limits(timeout=5.0, retries=2, first_delay=0.01, longest_delay=3.0)
SHORT = Limits(timeout=0.3, retries=2, first_delay=0.01, longest_delay=3.0)

Behaviour = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Notes every request and answers with the next behaviour of the script, then with fair verdicts."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        self.question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.home.lock:
            self.home.seen.append((time.monotonic(), self.path, dict(self.headers), self.question))
            behaviour = self.home.script.pop(0) if self.home.script else fair
        with suppress(OSError):  # the client has given up, which is what some tests are about
            behaviour(self)

    @property
    def home(self) -> Server:
        assert isinstance(self.server, Server)
        return self.server

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def say(self, text: object) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        self.reply(200, json.dumps({"choices": [choice]}).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A server with a script, on a free loopback port."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.script: list[Behaviour] = []
        self.seen: list[tuple[float, str, dict[str, str], dict]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


# --- behaviours ----------------------------------------------------------------------------------------


def fair(handler: Handler) -> None:
    """The answer that contains `splendid` wins; without one, or with two, it is a tie."""
    text = handler.question["messages"][0]["content"]
    a, _, b = text.partition("Answer B:")
    a_good, b_good = "splendid" in a.partition("Answer A:")[2], "splendid" in b
    handler.say("[[C]]" if a_good == b_good else "[[A]]" if a_good else "[[B]]")


def says(text: object) -> Behaviour:
    return lambda handler: handler.say(text)


def status(code: int, body: bytes = b"", **headers: str) -> Behaviour:
    return lambda handler: handler.reply(code, body, **headers)


def hang(handler: Handler) -> None:
    time.sleep(1.0)


def drip_body(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def drip_headers(handler: Handler) -> None:
    for letter in b"HTTP/1.1 200 OK\r\n" + b"X-Slow: " + b"x" * 80:
        handler.wfile.write(bytes([letter]))
        time.sleep(0.05)


def huge(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(2**34))
    handler.end_headers()
    for _ in range(2**14):
        handler.wfile.write(b" " * 2**16)


def hang_up(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.close()


def not_http(handler: Handler) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    handler.close_connection = True


def bomb(handler: Handler) -> None:
    handler.reply(200, gzip.compress(b" " * 2**24), Content_Encoding="gzip")


def two_answers(handler: Handler) -> None:
    handler.reply(200, json.dumps({"choices": [{"message": {"content": "[[A]]"}}] * 2}).encode())


def cut_off(handler: Handler) -> None:
    choice = {"message": {"content": "Both answers are"}, "finish_reason": "length"}
    handler.reply(200, json.dumps({"choices": [choice]}).encode())


# --- opening and judging -------------------------------------------------------------------------------


def opened(
    server: Server | str,
    directory: Path,
    limits: Limits = QUICK,
    *,
    key_env: str | None = None,
    parallel: int = 1,
) -> Judge:
    config = EndpointJudge(
        kind="endpoint",
        url=server if isinstance(server, str) else server.url,
        model="referee",
        key_env=key_env,
        timeout=limits.timeout,
        retries=limits.retries,
        parallel=parallel,
        max_tokens=64,
    )
    return endpoint_judge(config, VerdictCache(directory), limits=limits)


def contest(number: int, a: str, b: str) -> Contest:
    return Contest(f"row {number}", (Message("user", f"question {number}"),), a, b)


def test_verdicts_of_both_orders_become_one_judgement_each(server: Server, tmp_path: Path) -> None:
    judge = opened(server, tmp_path)
    contests = [contest(0, "splendid", "bad"), contest(1, "bad", "splendid"), contest(2, "one", "two")]
    found = judge.judge(contests, None)
    assert [(one.first, one.second, one.outcome) for one in found] == [(1, 1, 1), (0, 0, 0), (0.5, 0.5, 0.5)]
    assert len(server.seen) == 1 + 2 * 3
    asked = server.seen[1][3]
    assert server.seen[1][1] == "/v1/chat/completions"
    assert (asked["model"], asked["temperature"]) == ("referee", 0.0)
    assert "Authorization" not in server.seen[1][2]


def test_a_judge_that_loves_one_label_gives_inconsistent_ties(server: Server, tmp_path: Path) -> None:
    server.script = [says("[[A]]")] * 3
    (found,) = opened(server, tmp_path).judge([contest(0, "one", "two")], None)
    assert (found.first, found.second, found.p) == (1.0, 0.0, 0.5)
    assert (found.outcome, found.consistent) == (0.5, False)


def test_one_win_and_one_tie_is_a_tie(server: Server, tmp_path: Path) -> None:
    server.script = [says("hello"), says("[[A]]"), says("[[C]]")]
    (found,) = opened(server, tmp_path).judge([contest(0, "one", "two")], None)
    assert (found.p, found.outcome, found.consistent) == (0.75, 0.5, False)


# name, what the server does from its first request on, limits, requests it sees, words of the message
AT_THE_START = [
    ("unauthorised", [status(401)], QUICK, 1, "does not let us in (401)"),
    ("forbidden", [status(403)], QUICK, 1, "does not let us in (403)"),
    ("redirect", [status(302, Location="http://elsewhere.example:81/v1")], QUICK, 1, "elsewhere.example:81"),
    ("redirect to nowhere", [status(301)], QUICK, 1, "redirects to"),
    ("redirect to nonsense", [status(300, Location="http://host:port")], QUICK, 1, "an address that is none"),
    ("redirect that is none", [status(302, Location="http://host:port")], QUICK, 1, "connection failed"),
    ("html", [status(200, b"<html>Welcome</html>")], QUICK, 1, "reply is not JSON: <html>Welcome"),
    ("garbage", [status(200, b'{"choices": [')], QUICK, 1, "reply is not JSON"),
    ("deep nesting", [status(200, b"[" * 200_000)], QUICK, 1, "reply is not JSON"),
    ("other JSON", [status(200, b'{"error": "x"}')], QUICK, 1, "reply without exactly one answer"),
    ("a list", [status(200, b"[1]")], QUICK, 1, "reply without exactly one answer"),
    ("no message", [status(200, b'{"choices": [{}]}')], QUICK, 1, "answer without text"),
    ("null", [says(None)], QUICK, 1, "answer without text"),
    ("two answers", [two_answers], QUICK, 1, "reply without exactly one answer"),
    ("no such model", [status(404, b'{"error": "no such model"}')], QUICK, 1, "no such model"),
    ("bad request", [status(400, b"temperature\x1b[31m is fixed")], QUICK, 1, "temperature [31m is fixed"),
    ("down", [status(500, b"out of memory")] * 3, QUICK, 3, "server error (5xx): out of memory"),
    ("busy", [status(429)] * 3, QUICK, 3, "too many requests (429)"),
    ("silent", [hang], SHORT, 1, "no answer in time"),
    ("slow body", [drip_body], SHORT, 1, "no answer in time"),
    ("slow headers", [drip_headers], SHORT, 1, "no answer in time"),
    ("endless", [huge], QUICK, 1, "reply over 1048576 bytes"),
    ("bomb", [bomb], QUICK, 1, "compressed reply"),
    ("hangs up", [hang_up], QUICK, 1, "connection failed"),
    ("not http", [not_http], QUICK, 1, "connection failed"),
]


@pytest.mark.parametrize(
    ("script", "limits", "requests", "words"),
    [row[1:] for row in AT_THE_START],
    ids=[row[0] for row in AT_THE_START],
)
def test_a_server_that_is_no_judge_is_found_out_at_the_start(
    server: Server, tmp_path: Path, script: list[Behaviour], limits: Limits, requests: int, words: str
) -> None:
    server.script = list(script)
    start = time.monotonic()
    with pytest.raises(SetupError) as caught:
        opened(server, tmp_path, limits)
    assert words in caught.value.message
    assert caught.value.exit_code == 3
    assert caught.value.hints
    assert len(server.seen) == requests
    assert time.monotonic() - start < 2.0


def test_nobody_listening_says_what_to_start(tmp_path: Path) -> None:
    with create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(SetupError, match="connection failed") as caught:
        opened(f"http://127.0.0.1:{port}/v1", tmp_path)
    assert any("transformers serve" in hint for hint in caught.value.hints)


# name, what the server does after the canary, limits, requests in all, the judgement of good against bad
PASSING_FAULTS = [
    ("timeout", [hang], SHORT, 4),
    ("429", [status(429)], QUICK, 4),
    ("429 with a delay", [status(429, Retry_After="0")], QUICK, 4),
    ("500 twice", [status(500), status(503)], QUICK, 5),
    ("lost connection", [hang_up], QUICK, 4),
]


@pytest.mark.parametrize(
    ("script", "limits", "requests"),
    [row[1:] for row in PASSING_FAULTS],
    ids=[row[0] for row in PASSING_FAULTS],
)
def test_what_passes_is_asked_again(
    server: Server, tmp_path: Path, script: list[Behaviour], limits: Limits, requests: int
) -> None:
    judge = opened(server, tmp_path, limits)
    server.script = list(script)
    (found,) = judge.judge([contest(0, "splendid", "bad")], None)
    assert found.outcome == 1.0
    assert len(server.seen) == requests


# name, the server's replies after the canary, requests in all, reason
LASTING_FAULTS = [
    ("no verdict", [says("Answer A is better.")], 2, "1 unreadable: no verdict"),
    ("two verdicts", [says("[[A]] or rather [[B]]")], 2, "1 unreadable: several verdicts"),
    ("the same twice", [says("[[A]] [[A]]")], 2, "1 unreadable: several verdicts"),
    ("unknown label", [says("[[D]]")], 2, "1 unreadable: no verdict"),
    ("cut off", [cut_off], 2, "1 unreadable: cut off before a verdict"),
    ("second order", [says("[[A]]"), says("hm")], 3, "1 unreadable: no verdict"),
    ("html", [status(200, b"<html>")], 2, "1 reply is not JSON"),
    ("too long for it", [status(400)], 2, "1 request refused (400)"),
    ("huge", [huge], 2, "1 reply over 1048576 bytes"),
    ("down for good", [status(500)] * 3, 4, "1 server error (5xx)"),
    ("busy for good", [status(429)] * 3, 4, "1 too many requests (429)"),
    ("locked out", [status(401)], 2, "does not let us in (401)"),
    ("sent away", [status(308, Location="https://other.example")], 2, "redirects to other.example"),
]


@pytest.mark.parametrize(
    ("script", "requests", "words"),
    [row[1:] for row in LASTING_FAULTS],
    ids=[row[0] for row in LASTING_FAULTS],
)
def test_what_lasts_is_missing_and_too_much_of_it_stops_the_run(
    server: Server, tmp_path: Path, script: list[Behaviour], requests: int, words: str
) -> None:
    judge = opened(server, tmp_path)
    server.script = list(script)
    with pytest.raises(SetupError) as caught:
        judge.judge([contest(0, "splendid", "bad")], None)
    assert words in caught.value.message
    assert len(server.seen) == requests


def test_one_missing_in_twenty_is_counted_and_neither_lost_nor_tied(server: Server, tmp_path: Path) -> None:
    judge = opened(server, tmp_path)
    server.script = [says("I cannot decide.")]
    found = judge.judge([contest(number, "splendid", "bad") for number in range(20)], None)
    assert found[0] == Judgement(None, None, reason="unreadable: no verdict")
    assert [one.outcome for one in found[1:]] == [1.0] * 19


def test_it_stops_as_soon_as_too_many_are_certain_to_be_missing(server: Server, tmp_path: Path) -> None:
    judge = opened(server, tmp_path)
    server.script = [says("hm"), says("[[A]] [[B]]"), says("hm")]
    with pytest.raises(SetupError, match="3 of 40 contests") as caught:
        judge.judge([contest(number, "splendid", "bad") for number in range(40)], None)
    assert "2 unreadable: no verdict, 1 unreadable: several verdicts" in caught.value.message
    assert len(server.seen) == 1 + 3


def test_replies_in_another_order_come_back_in_ours(server: Server, tmp_path: Path) -> None:
    def late(handler: Handler) -> None:
        number = int(handler.question["messages"][0]["content"].partition("question ")[2].split()[0])
        time.sleep(0.02 * (7 - number % 8))
        fair(handler)

    judge = opened(server, tmp_path, parallel=8)
    server.script = [late] * 100
    wins = [number % 3 == 0 for number in range(24)]
    told = []
    found = judge.judge(
        [
            contest(number, *(("splendid", "bad") if won else ("bad", "splendid")))
            for number, won in enumerate(wins)
        ],
        lambda done, total: told.append((done, total)),
    )
    assert [one.outcome for one in found] == [float(won) for won in wins]
    assert told == [(done, 24) for done in range(1, 25)]


def test_at_most_parallel_requests_are_under_way(server: Server, tmp_path: Path) -> None:
    under_way, most = [0], [0]

    def counted(handler: Handler) -> None:
        with handler.home.lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        time.sleep(0.02)
        with handler.home.lock:
            under_way[0] -= 1
        fair(handler)

    judge = opened(server, tmp_path, parallel=3)
    server.script = [counted] * 24
    judge.judge([contest(number, "splendid", "bad") for number in range(12)], None)
    assert most[0] == 3


# --- delays --------------------------------------------------------------------------------------------


def test_the_server_s_own_delay_is_kept_and_capped(server: Server, tmp_path: Path) -> None:
    judge = opened(server, tmp_path, Limits(timeout=5.0, retries=2, first_delay=0.01, longest_delay=0.5))
    server.script = [status(429, Retry_After="0.3"), status(429, Retry_After="3600")]
    judge.judge([contest(0, "splendid", "bad")], None)
    times = [seen[0] for seen in server.seen[1:]]
    assert times[1] - times[0] < 0.2, "not a number of whole seconds, so the own backoff holds"
    assert 0.5 <= times[2] - times[1] < 2.0


# --- the key and the way -------------------------------------------------------------------------------

KEY = "not-a-real-key-0123456789"


def test_the_key_travels_in_one_header_and_nowhere_else(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFEREE_KEY", f"{KEY}\n")
    judge = opened(server, tmp_path, key_env="REFEREE_KEY")
    judge.judge([contest(0, "splendid", "bad")], None)
    assert {seen[2]["Authorization"] for seen in server.seen} == {f"Bearer {KEY}"}
    assert KEY not in json.dumps([seen[3] for seen in server.seen])
    assert KEY not in (tmp_path / FILE).read_text() + repr(judge)


@pytest.mark.parametrize("code", [401, 403, 400, 500, 200])
def test_a_server_that_echoes_the_key_does_not_get_it_into_a_message(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setenv("REFEREE_KEY", KEY)
    server.script = [status(code, f"bad key {KEY}, ".encode() + b"x" * 130 + f" bad key {KEY}".encode())] * 3
    with pytest.raises(SetupError) as caught:
        opened(server, tmp_path, key_env="REFEREE_KEY")
    assert KEY[:4] not in caught.value.render()
    if code in (401, 403):
        assert "REFEREE_KEY" in caught.value.render()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("REFEREE_KEY", None, "judge.key_env=REFEREE_KEY: this environment variable is not set"),
        ("REFEREE_KEY", " \n", "is not set"),
        ("REFEREE_KEY", "two\nlines", "characters that no key has"),
        ("REFEREE_KEY", "schlüssel", "characters that no key has"),
    ],
)
def test_an_unusable_key_is_named_by_its_variable_before_anything_is_sent(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str | None,
    words: str,
) -> None:
    monkeypatch.delenv("REFEREE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("REFEREE_KEY", value)
    with pytest.raises(UsageError) as caught:
        opened(server, tmp_path, key_env=variable)
    assert words in caught.value.message
    assert server.seen == []


def test_proxies_of_the_environment_hold_for_other_machines_only(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
    monkeypatch.setenv("REFEREE_KEY", KEY)
    judge = opened("http://judge.invalid/v1", tmp_path, key_env="REFEREE_KEY")
    assert [seen[1] for seen in server.seen] == ["http://judge.invalid/v1/chat/completions"]
    assert judge.warnings == (
        "the key of REFEREE_KEY travels unencrypted to judge.invalid: its address is http",
    )
    with create_server(("127.0.0.1", 0)) as dead:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{dead.getsockname()[1]}")
        assert opened(server, tmp_path, key_env="REFEREE_KEY").warnings == ()
    assert len(server.seen) == 2


# --- resuming ------------------------------------------------------------------------------------------


def test_a_second_run_asks_only_for_what_is_missing(server: Server, tmp_path: Path) -> None:
    contests = [contest(number, "splendid", "bad") for number in range(4)]
    judge = opened(server, tmp_path)
    server.script = [fair, fair, fair, says("hm")]
    with pytest.raises(AlignctlError):
        judge.judge(contests, None)
    assert len(server.seen) == 1 + 4, "the first contest and half of the second"
    again = opened(server, tmp_path)
    assert [one.outcome for one in again.judge(contests, None)] == [1.0] * 4
    assert len(server.seen) == 5 + 1 + (8 - 3)
    third = opened(server, tmp_path)
    third.judge(contests, None)
    assert len(server.seen) == 11 + 1, "only the canary"


def test_another_model_or_another_server_is_asked_afresh(server: Server, tmp_path: Path) -> None:
    one = [contest(0, "splendid", "bad")]
    opened(server, tmp_path).judge(one, None)
    opened(server.url.replace("127.0.0.1", "localhost"), tmp_path).judge(one, None)
    assert len(server.seen) == 2 * 3
