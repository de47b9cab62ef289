"""The only network code: rate limits, retries, timeouts, one honest user agent.

A service (a host, or all mirrors of one template) is a bucket: it has a pace, a number of requests in flight, and a
circuit breaker (`pace.py`), all shared by those who ask it. No key, token or password of an address ever leaves this
file: not in an error, not in a log line, not in `HttpResponse.url`.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import io
import logging
import random as random_module
import re
import secrets
import socket
import threading
import time
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import unquote_plus, urlsplit

import requests
import urllib3
from requests import exceptions as failures
from requests.adapters import HTTPAdapter
from urllib3 import exceptions as low_failures
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from magc_data.errors import FetchError, UsageError
from magc_data.sources.pace import LocalPace, Pace
from magc_data.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from typing_extensions import Buffer

USER_AGENT = (
    f"magc/{__version__} (builds aligned aerial image / OpenStreetMap datasets; python-requests/{requests.__version__})"
)
MAX_BODY_BYTES = 1 << 30
CONNECT_TIMEOUT_S = 10.0
BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
LONGEST_RETRY_AFTER_S = 900.0
"""A server that asks for a longer pause than this is reported instead of waited for."""


class Policy(NamedTuple):
    """How one kind of service is to be asked."""

    requests_per_s: float
    concurrency: int
    attempts: int
    timeout_s: float
    """Longest silence of the server, before its answer and within it."""
    retry_statuses: frozenset[int]
    deadline_s: float = 600.0
    """Longest time of one attempt in all, however busily bytes drip in."""
    rate_adjustable: bool = False
    """True: the client's one-number `requests_per_s` takes the place of this one's."""


_BUSY_STATUSES = frozenset({408, 425, 429, *range(500, 600)})

IMAGERY_POLICY = Policy(8.0, 8, 5, 20.0, _BUSY_STATUSES, deadline_s=60.0, rate_adjustable=True)
METADATA_POLICY = Policy(8.0, 2, 4, 30.0, _BUSY_STATUSES, deadline_s=120.0, rate_adjustable=True)
DOWNLOAD_POLICY = Policy(4.0, 1, 6, 60.0, _BUSY_STATUSES)
OVERPASS_POLICY = Policy(1.0, 2, 4, 240.0, _BUSY_STATUSES - {429, 504})
"""429 and 504 come back to the caller, who waits as /api/status says, or asks for less."""


class HttpResponse(NamedTuple):
    """A complete answer."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    url: str
    """Secrets removed."""


class RequestFailedError(FetchError):
    """One request failed for good; `seen` says with what, without the address."""

    def __init__(self, message: str, seen: str = "") -> None:
        super().__init__(message)
        self.seen = seen


# --- secrets ---------------------------------------------------------------------------------------------------------

_HIDDEN_PARAMETERS = (
    r"(?:(?:api|app|access|auth|client|consumer|license|map|user|subscription|ocp[-_]?apim[-_]?subscription)[-_]?)?key"
    r"|(?:(?:access|auth|id|session|security|bearer|refresh|sas)[-_]?)?token|session|jwt|auth|authorization|tk|ak|sk|pk"
    r"|sig|signature|hmac|(?:client[-_]?)?secret|pass|passwd|password|pwd|app[-_]?code|app[-_]?id"
    r"|x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|credentials?"
)
_USERINFO = re.compile(r"(?<=://)[^/?#\s\"'<>]*@")
_PARAMETER = re.compile(rf"(?i)(?<=[?&;])({_HIDDEN_PARAMETERS})=([^&;#\s\"'<>]+)")


def remove_secrets(text: str) -> str:
    """Replace user names, passwords, keys, tokens and signatures of every address in a text by `***`."""
    return _PARAMETER.sub(r"\1=***", _USERINFO.sub("***@", text))


def remove_secrets_of(url: str, text: str) -> str:
    """Remove the secrets of one address from a text that may repeat them bare, as error pages do."""
    values = {value for _, value in _PARAMETER.findall(url)}
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        values |= {value for value in (parts.username, parts.password) if value}
    for value in sorted(values | {unquote_plus(value) for value in values}, key=len, reverse=True):
        text = text.replace(value, "***")
    return remove_secrets(text)


class _NoSecretsInLogs(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = remove_secrets(record.getMessage()), None
        return True


_LOG_FILTER = _NoSecretsInLogs()
_LOGGERS_WITH_ADDRESSES = ("connection", "connectionpool", "poolmanager", "response", "util.retry")


def service_name(url: str) -> str:
    """Host and port of an address, without user name and password: the name of its bucket."""
    return re.sub(r"^[^/]*//", "", url).split("/", 1)[0].split("?", 1)[0].rpartition("@")[2].lower()


# --- one attempt -----------------------------------------------------------------------------------------------------


class _BodyTooLargeError(Exception):
    pass


class _CutShortError(Exception):
    pass


class _ForeignEncodingError(Exception):
    pass


class _Attempt(threading.local):
    """When the attempt that this thread is making must be over."""

    deadline: float = float("inf")


_attempt = _Attempt()


class _DeadlineStream(io.RawIOBase):
    """A socket's bytes. Each read is cut off at the attempt's deadline: a socket's own timeout only bounds silence."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._sock = sock
        self._silence_s = sock.gettimeout()
        self._stream = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int | None:
        remaining = _attempt.deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        if remaining != float("inf"):
            self._sock.settimeout(remaining if self._silence_s is None else min(self._silence_s, remaining))
        return self._stream.readinto(memoryview(buffer))

    def close(self) -> None:
        self._stream.close()
        super().close()


class _AnswerReader(io.BufferedReader):
    """Notices headers that are cut short; http.client takes the end of the connection for the end of the headers."""

    lines_of_head: int | None = None
    """How many were read; None when the head is over."""

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(-1 if size is None else size)
        if self.lines_of_head is not None:
            if self.lines_of_head and not line.endswith(b"\n"):
                raise http.client.IncompleteRead(line)
            self.lines_of_head += 1
        return line


class _CarefulResponse(http.client.HTTPResponse):
    def __init__(
        self, sock: socket.socket, debuglevel: int = 0, method: str | None = None, url: str | None = None
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        self.fp.close()
        self.fp = self._reader = _AnswerReader(_DeadlineStream(sock))

    def begin(self) -> None:
        self._reader.lines_of_head = 0
        super().begin()
        self._reader.lines_of_head = None


class _Connection(HTTPConnection):
    response_class = _CarefulResponse


class _TlsConnection(HTTPSConnection):
    response_class = _CarefulResponse


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


_POOLS = {"http": _Pool, "https": _TlsPool}


class _Adapter(HTTPAdapter):
    """requests' own adapter over connections that keep the deadline."""

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: object) -> None:
        super().init_poolmanager(connections, maxsize, block, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **options: object) -> urllib3.ProxyManager:
        manager: urllib3.ProxyManager = super().proxy_manager_for(proxy, **options)
        if not proxy.lower().startswith("socks"):  # SOCKS connections are another class altogether
            manager.pool_classes_by_scheme = _POOLS
        return manager


def _gunzip(data: bytes, limit: int) -> bytes:
    """Unpack; `requests` itself would not notice that a gzip stream ends too early."""
    pieces: list[bytes] = []
    size = 0
    while data:
        unpacker = zlib.decompressobj(wbits=31)
        pieces.append(unpacker.decompress(data, limit - size + 1))
        size += len(pieces[-1])
        if size > limit:
            raise _BodyTooLargeError
        if not unpacker.eof:
            raise _CutShortError
        data = unpacker.unused_data.lstrip(b"\0")
    return b"".join(pieces)


def _read_body(response: requests.Response, limit: int) -> bytes:
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise _ForeignEncodingError
    pieces: list[bytes] = []
    size = 0
    for piece in response.raw.stream(1 << 16, decode_content=False):
        size += len(piece)
        if size > limit:
            raise _BodyTooLargeError
        pieces.append(piece)
    body = b"".join(pieces)
    return _gunzip(body, limit) if "gzip" in encoding and body else body


class _Failure(NamedTuple):
    """What an attempt met instead of an answer."""

    seen: str
    final: bool = False
    """True: asking again cannot help."""
    retry_after_s: float | None = None
    throttled: bool = False


# The first row with a class among an exception and its causes says what happened. Their own words are never used:
# they hold whole addresses.
_MEANINGS: tuple[tuple[type[BaseException], _Failure], ...] = (
    (failures.InvalidSchema, _Failure("an address that is not http or https", final=True)),
    (failures.MissingSchema, _Failure("an address without http:// or https://", final=True)),
    (failures.InvalidURL, _Failure("an address that is not valid", final=True)),
    (low_failures.LocationValueError, _Failure("an address that is not valid", final=True)),
    (UnicodeError, _Failure("an address that is not valid", final=True)),
    (failures.TooManyRedirects, _Failure("redirections without end", final=True)),
    (_BodyTooLargeError, _Failure("an answer larger than expected", final=True)),
    (_ForeignEncodingError, _Failure("a compression that was not asked for")),
    (_CutShortError, _Failure("an answer cut short")),
    (zlib.error, _Failure("an answer damaged on its way")),
    (failures.ProxyError, _Failure("a proxy that does not let the request through")),
    (failures.SSLError, _Failure("no trusted TLS connection")),
    (low_failures.SSLError, _Failure("no trusted TLS connection")),
    (socket.gaierror, _Failure("a host name that cannot be resolved")),
    (ConnectionRefusedError, _Failure("a refused connection")),
    (http.client.RemoteDisconnected, _Failure("a connection closed without an answer")),
    (low_failures.ConnectTimeoutError, _Failure("no connection within {connect_s:g} s")),
    (failures.ConnectTimeout, _Failure("no connection within {connect_s:g} s")),
    (low_failures.IncompleteRead, _Failure("an answer cut short")),
    (http.client.IncompleteRead, _Failure("an answer cut short")),
    (low_failures.InvalidChunkLength, _Failure("an answer cut short")),
    (ConnectionResetError, _Failure("a connection that was reset")),
    (failures.Timeout, _Failure("silence for {timeout_s:g} s")),
    (low_failures.TimeoutError, _Failure("silence for {timeout_s:g} s")),
    (TimeoutError, _Failure("silence for {timeout_s:g} s")),
    (low_failures.ProtocolError, _Failure("an answer that is not HTTP, or cut short")),
    (Exception, _Failure("a connection that failed")),
)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and everything that it wraps."""
    waiting, met = [error], set[int]()
    while waiting:
        current = waiting.pop(0)
        if id(current) in met:
            continue
        met.add(id(current))
        yield current
        inner = (current.__cause__, current.__context__, getattr(current, "reason", None), *current.args)
        waiting.extend(part for part in inner if isinstance(part, BaseException))


def _connect_timeout_s(policy: Policy) -> float:
    return min(CONNECT_TIMEOUT_S, policy.timeout_s)


def _meaning(error: Exception, policy: Policy, limit: int) -> _Failure:
    chain = tuple(_chain(error))
    failure = next(row for kind, row in _MEANINGS if any(isinstance(part, kind) for part in chain))
    if time.monotonic() >= _attempt.deadline:
        return _Failure(f"an answer not finished within {policy.deadline_s:g} s")
    if any(isinstance(part, _BodyTooLargeError) for part in chain):
        return failure._replace(seen=f"an answer of more than {limit:,} bytes")
    return failure._replace(seen=failure.seen.format(timeout_s=policy.timeout_s, connect_s=_connect_timeout_s(policy)))


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait (RFC 9110, 10.2.3: a number or a date), None where it does not say."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0)


# --- asking until a final answer comes -------------------------------------------------------------------------------

_STOPPED = "the download was stopped before it was finished; run the same command again to go on"


class HttpClient:
    """Asks services politely: one session, shared by all threads. Use as a context manager, or `close` it.

    Args:
        requests_per_s: in place of the policies' rates: one number for all policies that are `rate_adjustable`, or
            a rate for each named bucket.
        clock: monotonic seconds.
        sleep: waits some seconds; the default wakes up when the client is closed.
        random: uniform in [0, 1), for the jitter of the backoff.
        share: of all rates and concurrencies, where several processes work on one job without knowing of each other.
        pace: kept instead of one of this process' own.
    """

    def __init__(
        self,
        requests_per_s: float | Mapping[str, float] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
        random: Callable[[], float] = random_module.random,
        share: float = 1.0,
        pace: Pace | None = None,
    ) -> None:
        rates = requests_per_s.values() if isinstance(requests_per_s, Mapping) else (requests_per_s or 1.0,)
        if requests_per_s == 0 or not all(rate > 0 for rate in rates):
            raise UsageError(f"a rate of {requests_per_s} requests a second was asked for: it must be above 0")
        self._rates = requests_per_s
        self._random = random
        self._closed = threading.Event()
        self._sleep = sleep or self._sleep_until_closed
        self.pace: Pace = pace or LocalPace(clock, self._sleep, share)
        self._session = requests.Session()
        self._session.headers.update({"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "gzip"})
        # Cookies would make answers depend on the order of requests.
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        self._session.max_redirects = 5
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Adapter(pool_connections=32, pool_maxsize=32))
        for name in _LOGGERS_WITH_ADDRESSES:
            logging.getLogger(f"urllib3.{name}").addFilter(_LOG_FILTER)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wake up and stop every thread that waits here, and close the connections."""
        self._closed.set()
        self._session.close()

    def request(
        self,
        method: str,
        url: str,
        *,
        policy: Policy,
        data: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        complaint: Callable[[HttpResponse], str | None] | None = None,
        bucket: str | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> HttpResponse:
        """Ask until a final answer comes.

        Args:
            method: HTTP method.
            url: http or https.
            policy: pace, attempts, timeouts, and the statuses after which to ask again.
            data: form fields to post.
            headers: besides those of every request.
            complaint: looks at a 200 answer and says what is wrong with it (then it is retried like a 503), or None.
            bucket: name of the service whose pace and circuit breaker the request shares; the address' host if None.
            max_body_bytes: a longer answer is refused, packed or unpacked.

        Raises:
            RequestFailedError: no proper answer after `policy.attempts` attempts (a FetchError).
            ServiceDownError: too many requests to this service failed one after the other (a FetchError).
        """
        name = bucket or service_name(url)
        request = secrets.token_hex(8)
        try:
            return self._ask(name, request, method, url, policy, data, headers, complaint, max_body_bytes)
        finally:
            self.pace.abandoned(name, request)

    def _ask(
        self,
        service: str,
        request: str,
        method: str,
        url: str,
        policy: Policy,
        data: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        complaint: Callable[[HttpResponse], str | None] | None,
        max_body_bytes: int,
    ) -> HttpResponse:
        rate = self._rate(service, policy)
        failure = _Failure("no attempt at all")
        attempt = 0
        for attempt in range(1, policy.attempts + 1):
            with self.pace.slot(service, request, rate, policy.concurrency):
                if self._closed.is_set():
                    raise FetchError(_STOPPED)
                answer = self._attempt(method, url, policy, data, headers, max_body_bytes)
            if isinstance(answer, HttpResponse):
                problem = _problem(answer, policy, complaint)
                if problem is None:
                    self.pace.worked(service, request)
                    return answer
                failure = problem
            else:
                failure = answer
            wait_s = failure.retry_after_s or 0.0
            if failure.final or wait_s > LONGEST_RETRY_AFTER_S:
                break
            if attempt < policy.attempts:
                # "Full jitter": anywhere between nothing and the doubled wait, so that clients drift apart.
                longest_s = min(LONGEST_BACKOFF_S, BACKOFF_S * 2 ** (attempt - 1))
                wait_s = max(wait_s, self._random() * longest_s)
            if failure.throttled or failure.retry_after_s is not None:
                self.pace.pause(service, wait_s)  # it speaks to all of us
            elif attempt < policy.attempts:
                self._sleep(wait_s)
        if not failure.final:
            self.pace.failed(service, request, failure.seen)
        times = "once" if attempt == 1 else f"{attempt} times"
        raise RequestFailedError(
            f"no proper answer from {service}: asked {times}, it gave {failure.seen}; check the network "
            f"connection and the address ({remove_secrets(url)}), then run the same command again",
            f"{failure.seen} ({times})",
        )

    def _attempt(
        self,
        method: str,
        url: str,
        policy: Policy,
        data: Mapping[str, str] | None,
        extra_headers: Mapping[str, str] | None,
        limit: int,
    ) -> HttpResponse | _Failure:
        _attempt.deadline = time.monotonic() + policy.deadline_s
        timeouts = (_connect_timeout_s(policy), policy.timeout_s)
        try:
            with self._session.request(
                method, url, data=data, headers=extra_headers, timeout=timeouts, stream=True
            ) as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                return HttpResponse(
                    response.status_code, headers, _read_body(response, limit), remove_secrets(response.url)
                )
        except Exception as error:  # noqa: BLE001 - its words hold the address: _MEANINGS tells it
            return _meaning(error, policy, limit)
        finally:
            _attempt.deadline = float("inf")

    def _rate(self, bucket: str, policy: Policy) -> float:
        if isinstance(self._rates, (int, float)):
            return self._rates if policy.rate_adjustable else policy.requests_per_s
        return (self._rates or {}).get(bucket, policy.requests_per_s)

    def _sleep_until_closed(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise FetchError(_STOPPED)


def _problem(
    answer: HttpResponse, policy: Policy, complaint: Callable[[HttpResponse], str | None] | None
) -> _Failure | None:
    """Why an answer is to be asked for again, None where it is final."""
    if answer.status in policy.retry_statuses:
        wait_s = _retry_after_s(answer.headers)
        asked = f" (Retry-After {wait_s:.0f} s)" if wait_s is not None and wait_s > LONGEST_RETRY_AFTER_S else ""
        return _Failure(f"HTTP {answer.status}{asked}", retry_after_s=wait_s, throttled=answer.status == 429)
    wrong = complaint(answer) if complaint is not None and answer.status == 200 else None
    return None if wrong is None else _Failure(wrong)
