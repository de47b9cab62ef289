"""The only network code: rate limits, retries, timeouts, one honest user agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Policy(NamedTuple):
    """How one kind of service is to be asked."""

    requests_per_s: float
    concurrency: int
    attempts: int
    timeout_s: float
    retry_statuses: frozenset[int]


class HttpResponse(NamedTuple):
    """A complete answer."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    url: str
    """Secrets removed."""


class HttpClient:
    """STUB of the contract; replaced by the real one."""

    def request(
        self,
        method: str,
        url: str,
        *,
        policy: Policy,
        data: Mapping[str, str] | None = None,
        complaint: Callable[[HttpResponse], str | None] | None = None,
    ) -> HttpResponse:
        """Ask until a final answer comes.

        `complaint` looks at a 200 answer and says what is wrong with it (then it is retried like a 503), or None.

        Raises:
            FetchError: no proper answer after `policy.attempts` attempts.
        """
        raise NotImplementedError
