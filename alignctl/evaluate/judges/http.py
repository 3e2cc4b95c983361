"""One POST to the server of a judge or a reward, bounded in every direction.

The whole exchange has one deadline, so a server that drips its headers or body byte by byte gains nothing;
a reply is read up to 1 MiB; no redirect is followed, no cookie is kept; compression is not asked for, so
nothing can inflate. What may pass (a timeout, a lost connection, 429, 5xx) is tried again with exponential
backoff and jitter; a server that names its own delay in Retry-After (RFC 9110, seconds or a date) is obeyed
up to a minute.

asyncio rather than threads: only there can a deadline cut off a request whatever it waits for.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import ip_address

import httpx

from alignctl.config.settings import check_address
from alignctl.errors import SetupError, UsageError

TIMEOUT = "no answer in time"
UNREACHABLE = "connection failed"
BUSY = "too many requests (429)"
BROKEN = "server error (5xx)"
REDIRECT = "redirect"
PASSING = frozenset({TIMEOUT, UNREACHABLE, BUSY, BROKEN})
"""Faults after which it makes sense to ask again."""
QUOTED = 160
"""Characters of foreign text in a message."""
EXAMPLE = "for example http://127.0.0.1:8000/v1"


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how much a server may take."""

    timeout: float
    """Seconds for one request, from connecting to the last byte of the reply."""
    retries: int
    first_delay: float = 0.5
    """Seconds before the first retry; doubled each time."""
    longest_delay: float = 60.0
    """Seconds at most between two tries, also when the server asks for more."""
    body: int = 2**20
    """Bytes of a reply."""


class RequestFault(Exception):
    """Why there is no usable reply; `reason` is a constant phrase that can be counted."""

    def __init__(
        self, reason: str, *, status: int | None = None, said: str = "", wait: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.said = said
        """What the server or the network said, uncleaned: it may hold anything, the key included."""
        self.wait = wait
        """Seconds the server asks to wait."""


def endpoint_url(base: str) -> httpx.URL:
    """The address of the chat completions below `base`, such as http://127.0.0.1:8000/v1.

    Raises UsageError as `checked_url` does.
    """
    url = checked_url("judge.url", base)
    path = url.path.rstrip("/").removesuffix("/chat/completions")
    return url.copy_with(path=f"{path}/chat/completions")


def checked_url(key: str, address: str) -> httpx.URL:
    """The address that a setting gives.

    Raises UsageError for anything but http and https, and for addresses that carry a secret or a query.
    """
    try:
        check_address(key, address)
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        url = httpx.URL(address)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise UsageError(f"{key}={address!r} is not an address", EXAMPLE) from error
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65535:
        raise UsageError(f"{key}={address!r} is not an http or https address", EXAMPLE)
    return url


def read_key(key: str, variable: str) -> str:
    """The secret in an environment variable that the setting `key` names. Raises UsageError, without it."""
    secret = os.environ.get(variable, "").strip()
    if not secret:
        raise UsageError(
            f"{key}={variable}: this environment variable is not set",
            f"export {variable}=..., or {key}=null for a server without a key",
        )
    if not (secret.isascii() and secret.isprintable()):
        raise UsageError(f"{key}={variable}: its value has characters that no key has")
    return secret


def plain_text_warning(url: httpx.URL, key_env: str | None) -> tuple[str, ...]:
    """One sentence where a key would cross a network unencrypted."""
    if key_env is None or url.scheme == "https" or is_loopback(url):
        return ()
    return (f"the key of {key_env} travels unencrypted to {url.host}: its address is http",)


def authorisation(secret: str | None) -> dict[str, str]:
    """The one header that a key travels in."""
    return {} if secret is None else {"Authorization": f"Bearer {secret}"}


def is_loopback(url: httpx.URL) -> bool:
    """Whether an address is this machine itself."""
    host = url.host
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def open_client(url: httpx.URL, headers: Mapping[str, str], parallel: int) -> httpx.AsyncClient:
    """A client for one server. The environment's proxies hold for other machines, never for this one."""
    try:
        return httpx.AsyncClient(
            headers={"Accept-Encoding": "identity", "Content-Type": "application/json", **headers},
            follow_redirects=False,
            timeout=None,  # every exchange has its own deadline, see `_exchange`
            limits=httpx.Limits(max_connections=parallel),
            trust_env=not is_loopback(url),
            # A jar that takes nothing: each request stands alone, and no server can mark a client.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        )
    except (ValueError, ImportError, OSError) as error:
        raise SetupError(
            f"the proxy or certificate settings of the environment cannot be used: {type(error).__name__}",
            "see HTTPS_PROXY, ALL_PROXY, NO_PROXY and SSL_CERT_FILE",
        ) from error


async def post_json(
    client: httpx.AsyncClient,
    url: httpx.URL,
    payload: Mapping[str, object],
    limits: Limits,
    *,
    again: Collection[str] = PASSING,
) -> object:
    """POST `payload` and return the reply's JSON; faults in `again` are retried. Raises RequestFault."""
    for attempt in itertools.count():
        try:
            return await _exchange(client, url, payload, limits)
        except RequestFault as fault:
            if attempt >= limits.retries or fault.reason not in again:
                raise
            await asyncio.sleep(_delay(attempt, fault.wait, limits))
    raise AssertionError("unreachable")


async def _exchange(
    client: httpx.AsyncClient, url: httpx.URL, payload: Mapping[str, object], limits: Limits
) -> object:
    # ASCII JSON, so that a lone surrogate in an answer is an escape and not an encoding error.
    content = json.dumps(payload).encode("ascii")
    try:
        async with asyncio.timeout(limits.timeout), client.stream("POST", url, content=content) as response:
            body = await _read(response, limits.body)
    except TimeoutError as error:
        raise RequestFault(TIMEOUT) from error
    except (httpx.TransportError, UnicodeError) as error:
        raise RequestFault(UNREACHABLE, said=str(error) or type(error).__name__) from error
    _check_status(response, body)
    if len(body) > limits.body:
        raise RequestFault(f"reply over {limits.body} bytes")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise RequestFault("compressed reply, though none was asked for")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestFault("reply is not JSON", said=_text(body)) from error


async def _read(response: httpx.Response, limit: int) -> bytes:
    """The body as it comes over the wire; of a longer one, a little more than `limit` bytes."""
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > limit:
            break
    return bytes(body)


def _check_status(response: httpx.Response, body: bytes) -> None:
    status = response.status_code
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise RequestFault(REDIRECT, status=status, said=response.headers.get("Location", ""))
    said = _text(body)
    wait = retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
    if status == 429:
        raise RequestFault(BUSY, status=status, said=said, wait=wait)
    if status >= 500:
        raise RequestFault(BROKEN, status=status, said=said, wait=wait)
    raise RequestFault(f"request refused ({status})", status=status, said=said)


def _text(body: bytes) -> str:
    """The beginning of a body, long enough for a key in it to be whole when it is blotted out."""
    return body[: 64 * QUOTED].decode(errors="replace")


def retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for, a number or a date; None when it says nothing usable."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    aware = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (aware - now).total_seconds())


def _delay(attempt: int, wait: float | None, limits: Limits) -> float:
    """Seconds before the next try. Jitter keeps parallel requests from coming back all at once."""
    if wait is not None:
        return min(wait, limits.longest_delay)
    return min(limits.first_delay * 2.0**attempt, limits.longest_delay) * random.uniform(0.5, 1.0)


def quoted(text: str, secret: str | None) -> str:
    """Foreign text fit for a message: one line, short, printable, and without the secret."""
    if secret:
        text = text.replace(secret, "[key]")
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:QUOTED]


def redirect_host(url: httpx.URL, location: str, secret: str | None) -> str:
    """Where a redirect from `url` leads, fit for a message."""
    try:
        target = url.join(location)
    except (httpx.InvalidURL, UnicodeError):
        return "an address that is none"
    return quoted(target.netloc.decode("ascii", errors="replace"), secret)
