"""Politeness that all who ask a service share: its pace, its free places, its circuit breaker, what was spent today.

`Service` is the rule, without clock and threads; `LocalPace` keeps it among the threads of a process. Where several
processes work on one build, `HttpClient` is given a pace that keeps it among them all (`engines/ray_pace.py`).
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Protocol

from magc_data.errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

BREAKER_FAILURES = 16
"""So many requests in a row that failed after all their attempts open the circuit."""
BREAKER_PAUSE_S = 60.0


class ServiceDownError(FetchError):
    """The circuit of a service is open: request after request failed, and it is left alone for a while."""


class Pace(Protocol):
    """What a client asks before and tells after a request. Services are named, requests have an id of their own."""

    def slot(self, service: str, request: str, requests_per_s: float, concurrency: int) -> AbstractContextManager[None]:
        """Wait for a free place and for the pace; the place is free again after the block.

        Raises:
            ServiceDownError: the circuit is open.
        """
        ...

    def pause(self, service: str, seconds: float) -> None:
        """Nobody asks this service for a while."""
        ...

    def worked(self, service: str, request: str) -> None:
        """A final answer came: the circuit closes."""
        ...

    def failed(self, service: str, request: str, seen: str) -> None:
        """A request used up its attempts."""
        ...

    def abandoned(self, service: str, request: str) -> None:
        """The request is over; if it was the circuit's trial, the next one may try."""
        ...

    def turn(self, service: str) -> AbstractContextManager[None]:
        """For jobs of many requests and waits that a service should meet one after another."""
        ...

    def spent(self, log: Path) -> list[int]:
        """Sizes of the answers of today, of everybody; the log is a file in the cache folder."""
        ...

    def spend(self, log: Path, size: int) -> None:
        """One more request was made.

        Raises:
            OSError: the log cannot be written.
        """
        ...


class Service:
    """One service's state. A token bucket of size one: requests are spaced evenly. Times are monotonic seconds."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._in_flight = 0
        self._next_start = float("-inf")
        self._failures = 0
        self._open_until = float("-inf")
        self._trial: str | None = None
        self._last_seen = ""

    def enter(self, request: str, concurrency: int, now: float) -> bool:
        """Take a place if there is one.

        Raises:
            ServiceDownError: the circuit is open.
        """
        self.check(request, now)
        if self._in_flight >= concurrency:
            return False
        self._in_flight += 1
        return True

    def leave(self) -> None:
        """Give a place back."""
        self._in_flight -= 1

    def due_in(self, requests_per_s: float, now: float) -> float:
        """Seconds until a request may start; 0 starts it."""
        delay = self._next_start - now
        if delay > 0:
            return delay
        self._next_start = now + 1.0 / requests_per_s
        return 0.0

    def check(self, request: str, now: float) -> None:
        """Refuse while the circuit is open; after its pause one request may try.

        Raises:
            ServiceDownError: it is open.
        """
        if self._failures < BREAKER_FAILURES or self._trial == request:
            return
        if self._trial is None and now >= self._open_until:
            self._trial = request
            return
        raise ServiceDownError(
            f"{self.name} is not working: the last {self._failures} requests in a row failed, the latest with "
            f"{self._last_seen}; check the network connection and the service, then run the same command again"
        )

    def pause(self, seconds: float, now: float) -> None:
        """See `Pace`."""
        self._next_start = max(self._next_start, now + seconds)

    def worked(self, request: str) -> None:
        """See `Pace`."""
        self._failures = 0
        self.abandoned(request)

    def failed(self, request: str, seen: str, now: float) -> None:
        """See `Pace`."""
        self._failures += 1
        self._last_seen = seen
        self._open_until = now + BREAKER_PAUSE_S
        self.abandoned(request)

    def abandoned(self, request: str) -> None:
        """See `Pace`."""
        if self._trial == request:
            self._trial = None


class _Shared:
    """A service and what its threads wait on."""

    def __init__(self, name: str) -> None:
        self.state = Service(name)
        self.free = threading.Condition()
        self.turn = threading.Lock()


class LocalPace:
    """Among the threads of this process.

    Args:
        clock: monotonic seconds.
        sleep: waits some seconds.
        share: of all rates and places, where several processes work on one job without knowing of each other.
    """

    def __init__(self, clock: Callable[[], float], sleep: Callable[[float], None], share: float = 1.0) -> None:
        self._clock, self._sleep, self._share = clock, sleep, share
        self._services: dict[str, _Shared] = {}
        self._lock = threading.Lock()

    def _service(self, name: str) -> _Shared:
        with self._lock:
            return self._services.setdefault(name, _Shared(name))

    @contextlib.contextmanager
    def slot(self, service: str, request: str, requests_per_s: float, concurrency: int) -> Iterator[None]:
        """See `Pace`."""
        shared = self._service(service)
        places = max(1, int(concurrency * self._share))
        with shared.free:
            while not shared.state.enter(request, places, self._clock()):
                shared.free.wait()
        try:
            self._keep_pace(shared, requests_per_s * self._share)
            with shared.free:
                shared.state.check(request, self._clock())
            yield
        finally:
            with shared.free:
                shared.state.leave()
                shared.free.notify_all()

    def _keep_pace(self, shared: _Shared, requests_per_s: float) -> None:
        while True:
            with shared.free:
                delay = shared.state.due_in(requests_per_s, self._clock())
            if not delay:
                return
            self._sleep(delay)

    def pause(self, service: str, seconds: float) -> None:
        """See `Pace`."""
        shared = self._service(service)
        with shared.free:
            shared.state.pause(seconds, self._clock())

    def worked(self, service: str, request: str) -> None:
        """See `Pace`."""
        shared = self._service(service)
        with shared.free:
            shared.state.worked(request)
            shared.free.notify_all()

    def failed(self, service: str, request: str, seen: str) -> None:
        """See `Pace`."""
        shared = self._service(service)
        with shared.free:
            shared.state.failed(request, seen, self._clock())
            shared.free.notify_all()

    def abandoned(self, service: str, request: str) -> None:
        """See `Pace`."""
        shared = self._service(service)
        with shared.free:
            shared.state.abandoned(request)
            shared.free.notify_all()

    @contextlib.contextmanager
    def turn(self, service: str) -> Iterator[None]:
        """See `Pace`."""
        with self._service(service).turn:
            yield

    def spent(self, log: Path) -> list[int]:
        """See `Pace`."""
        return read_log(log)

    def spend(self, log: Path, size: int) -> None:
        """See `Pace`."""
        append_to_log(log, size)


def read_log(log: Path) -> list[int]:
    """The sizes in a log; none where there is no log yet."""
    return [int(line) for line in log.read_text("ascii").split()] if log.exists() else []


def append_to_log(log: Path, size: int) -> None:
    """A line a request: appending is atomic, so that several builds share one budget.

    Raises:
        OSError: it cannot be written.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="ascii") as stream:
        stream.write(f"{size}\n")
