"""Judges at addresses of strangers: a reply is a verdict or a fault, whatever else it tries."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from artefacts import KEY, ROWS, SECRET, Place, checked, write_rows

Reply = Callable[[BaseHTTPRequestHandler], None]
HEADER = "X-Filler"


@contextmanager
def serving(reply: Reply) -> Iterator[tuple[int, list[dict[str, str]]]]:
    """A server on this machine; gives its port and the headers of every request it got."""
    asked: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(dict(self.headers))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                reply(self)
            except OSError:
                self.close_connection = True

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal of the tests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        server.server_close()


def answer(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def redirect(where: str, status: int = 302) -> Reply:
    return lambda handler: answer(handler, b"", status, Location=where)


def endless(handler: BaseHTTPRequestHandler) -> None:
    """A gibibyte, as fast as it is taken."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(2**30))
    handler.end_headers()
    for _ in range(2**10):
        handler.wfile.write(b" " * 2**20)


def dripping(handler: BaseHTTPRequestHandler) -> None:
    """A byte at a time, without end."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(2**20))
    handler.end_headers()
    waits = threading.Event()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        waits.wait(0.1)


def many_headers(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    for number in range(20_000):
        handler.send_header(f"{HEADER}-{number}", "x" * 100)
    handler.end_headers()


def long_header(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header(HEADER, "x" * 2**24)
    handler.end_headers()


def inflating(handler: BaseHTTPRequestHandler) -> None:
    answer(handler, gzip.compress(b"a" * 2**27, 1), Content_Encoding="gzip")


def chat(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def echoing(handler: BaseHTTPRequestHandler) -> None:
    """The key that was sent, in the body and in a header."""
    sent = handler.headers.get("Authorization", "")
    answer(handler, f"no: {sent} {KEY}".encode(), 401, X_Echo=sent)


HOSTILE: dict[str, Reply] = {
    "redirect to a file": redirect("file:///etc/passwd"),
    "redirect to another machine": redirect("http://192.0.2.1/v1/chat/completions"),
    "redirect to another scheme": redirect("gopher://192.0.2.1/x", 307),
    "redirect to itself": redirect("/v1/chat/completions", 308),
    "redirect that is no address": redirect("http://[::1"),
    "a gibibyte": endless,
    "a byte at a time": dripping,
    "headers without number": many_headers,
    "a header of 16 MiB": long_header,
    "a gzip bomb": inflating,
    "brackets": lambda handler: answer(handler, b"[" * 10**6),
    "a terminal's commands": lambda handler: answer(handler, b"\x1b]0;x\x07\x1b[2J", 400),
    "the key sent back": echoing,
}


def judged(place: Place, port: int) -> tuple[str, ...]:
    """The words of an evaluation whose judge is at that port, with a key."""
    opponent = [{"prompt": row["prompt"], "answer": row["rejected"]} for row in ROWS]
    write_rows(place.work / "opponent.jsonl", opponent)
    place.ports = [port]
    judge = (f"judge.url=http://127.0.0.1:{port}/v1", "judge.model=m", "judge.key_env=WITNESS_KEY")
    limits = ("judge.timeout=1", "judge.retries=0", "eval.samples=2", "eval.max_new_tokens=2")
    files = ("./model", "dataset=prefs.jsonl", "eval.opponent=opponent.jsonl", "out=run")
    return ("eval", *files, "judge=endpoint", *judge, *limits)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_judge_that_misbehaves_ends_the_evaluation(name: str, place: Place) -> None:
    with serving(HOSTILE[name]) as (port, asked):
        checked(place.run(*judged(place, port)), 3)
    assert len(asked) == 1, "no second request, to wherever"
    assert files_with(place, KEY) == []


def files_with(place: Place, text: str) -> list[Path]:
    """Everything left behind that holds that text: runs, caches, temporary files."""
    roots = (place.work, place.witness.cache, place.witness.temporary)
    files = [path for root in roots for path in root.rglob("*") if path.is_file()]
    return [path for path in files if text.encode() in path.read_bytes()]


def grading(handler: BaseHTTPRequestHandler) -> None:
    """A fair reply, with cookies that nobody asked for and the key in it."""
    answer(handler, chat(f"{KEY} [[A]]"), Set_Cookie="track=1; Path=/", X_Echo=KEY)


def test_a_key_is_sent_and_left_nowhere(place: Place) -> None:
    """Not in run.json, config.yaml, the report, the verdicts or any cache, though the judge repeats it."""
    with serving(grading) as (port, asked):
        seen = place.run(*judged(place, port))
    assert seen.events == []
    assert {headers["Authorization"] for headers in asked} == {f"Bearer {KEY}"}
    assert not any("Cookie" in headers for headers in asked)
    assert (place.work / "run" / "run.json").exists()
    assert KEY not in seen.text
    assert files_with(place, KEY) == []
    assert files_with(place, SECRET) == []
