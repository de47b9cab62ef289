"""The rule of `sources/pace.py` for many processes: one keeper, asked by all; it is an actor of a cluster.

A client that has died holds no place for long: clients say every `BEAT_S` that they are alive, and what one has that
was silent for `SILENCE_S` is taken back.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from magc_data.sources.pace import Service, ServiceDownError, append_to_log, read_log

if TYPE_CHECKING:
    from pathlib import Path

BEAT_S = 2.0
SILENCE_S = 10.0


class _Shared:
    """A service and what its requests wait on."""

    def __init__(self, name: str) -> None:
        self.state = Service(name)
        self.free = asyncio.Condition()
        self.turn_of: str | None = None
        """The lease that holds the turn."""


class _Lease:
    """A place, a turn, or the wait for one."""

    def __init__(self, client: str, shared: _Shared) -> None:
        self.client = client
        self.shared = shared
        self.has_place = False


class PaceKeeper:
    """Keeps the pace of every service. All methods but `beat` return at once or when the caller may go on.

    Leases are named by their holders, so that a call repeated after a lost answer changes nothing.

    Args:
        cache_folder: has the logs of daily budgets.
    """

    def __init__(self, cache_folder: Path) -> None:
        self._cache_folder = cache_folder
        self._services: dict[str, _Shared] = {}
        self._leases: dict[str, _Lease] = {}
        self._beats: dict[str, float] = {}
        self._watch: asyncio.Task[None] | None = None

    def _service(self, name: str) -> _Shared:
        return self._services.setdefault(name, _Shared(name))

    async def beat(self, client: str) -> None:
        """A client lives."""
        self._beats[client] = time.monotonic()
        if self._watch is None:
            self._watch = asyncio.create_task(self._take_back_forever())

    async def enter(
        self, client: str, lease: str, service: str, request: str, requests_per_s: float, concurrency: int
    ) -> str | None:
        """Wait for a place and the pace; returns what is wrong with the service where its circuit is open."""
        await self.beat(client)
        shared = self._service(service)
        held = self._leases.setdefault(lease, _Lease(client, shared))
        try:
            async with shared.free:
                while lease in self._leases and not held.has_place:
                    held.has_place = shared.state.enter(request, concurrency, time.monotonic())
                    if not held.has_place:
                        await shared.free.wait()
            while lease in self._leases and (delay := shared.state.due_in(requests_per_s, time.monotonic())):
                await asyncio.sleep(delay)
            shared.state.check(request, time.monotonic())
        except ServiceDownError as error:
            await self.leave(lease)
            return str(error)
        return None

    async def take_turn(self, client: str, lease: str, service: str) -> None:
        """Wait until nobody else has the turn."""
        await self.beat(client)
        shared = self._service(service)
        self._leases.setdefault(lease, _Lease(client, shared))
        async with shared.free:
            while lease in self._leases and shared.turn_of not in (None, lease):
                await shared.free.wait()
            if lease in self._leases:
                shared.turn_of = lease

    async def leave(self, lease: str) -> None:
        """Give back what a lease holds, or stop its wait."""
        held = self._leases.pop(lease, None)
        if held is None:
            return
        async with held.shared.free:
            if held.has_place:
                held.shared.state.leave()
            if held.shared.turn_of == lease:
                held.shared.turn_of = None
            held.shared.free.notify_all()

    async def pause(self, service: str, seconds: float) -> None:
        """Nobody asks this service for a while."""
        self._service(service).state.pause(seconds, time.monotonic())

    async def over(self, service: str, request: str, *, worked: bool = False, failed: str | None = None) -> None:
        """A request is over: with an answer, with a failure (what was seen), or with neither."""
        shared = self._service(service)
        if worked:
            shared.state.worked(request)
        elif failed is not None:
            shared.state.failed(request, failed, time.monotonic())
        else:
            shared.state.abandoned(request)
        async with shared.free:
            shared.free.notify_all()

    async def spent(self, log: str) -> list[int]:
        """What a log in the cache folder says."""
        return read_log(self._cache_folder / log)

    async def spend(self, log: str, size: int) -> str | None:
        """Write to it; returns why that cannot be done."""
        try:
            append_to_log(self._cache_folder / log, size)
        except OSError as error:
            return error.strerror or str(error)
        return None

    async def _take_back_forever(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S / 2)
            now = time.monotonic()
            silent = {client for client, heard in self._beats.items() if now - heard > SILENCE_S}
            for lease in [lease for lease, held in self._leases.items() if held.client in silent]:
                await self.leave(lease)
            for client in silent:
                del self._beats[client]
