"""The keeper of a cluster's pace, without a cluster: the same rule as in one process, and nothing lost with a client."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from magc_data.engines import shared_pace
from magc_data.engines.shared_pace import PaceKeeper
from magc_data.sources import pace

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def keeper(tmp_path: Path) -> PaceKeeper:
    return PaceKeeper(tmp_path)


async def enter(keeper: PaceKeeper, lease: str, client: str = "a", rate: float = 1e6, places: int = 3) -> str | None:
    return await keeper.enter(client, lease, "host", f"request of {lease}", rate, places)


def test_requests_of_all_clients_are_spaced_evenly(keeper: PaceKeeper) -> None:
    starts: list[float] = []

    async def request(number: int) -> None:
        await enter(keeper, str(number), client=f"client {number % 5}", rate=50.0, places=8)
        starts.append(time.monotonic())
        await keeper.leave(str(number))

    async def ask() -> None:
        await asyncio.gather(*(request(number) for number in range(26)))

    asyncio.run(ask())
    assert starts[-1] - starts[0] >= 25 / 50 * 0.98


def test_places_are_bounded_over_all_clients(keeper: PaceKeeper) -> None:
    at_once = most = 0

    async def request(number: int) -> None:
        nonlocal at_once, most
        await enter(keeper, str(number), client=f"client {number}")
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.005)
        at_once -= 1
        await keeper.leave(str(number))

    async def ask() -> None:
        await asyncio.gather(*(request(number) for number in range(30)))

    asyncio.run(ask())
    assert most == 3


def test_what_a_dead_client_holds_or_waits_for_is_taken_back(
    keeper: PaceKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_pace, "BEAT_S", 0.02)
    monkeypatch.setattr(shared_pace, "SILENCE_S", 0.15)

    async def live() -> None:
        for _ in range(50):
            await keeper.beat("living")
            await asyncio.sleep(0.02)

    async def ask() -> None:
        for number in range(3):
            await enter(keeper, f"dead {number}", client="dead")
        await keeper.take_turn("dead", "dead's turn", "host")
        waiting = asyncio.create_task(enter(keeper, "dead and waiting", client="dead"))
        beats = asyncio.create_task(live())
        begun = time.monotonic()
        for number in range(3):  # all of the places, none of them to the dead one that waited
            await asyncio.wait_for(enter(keeper, f"living {number}", client="living"), 2)
        await asyncio.wait_for(keeper.take_turn("living", "living's turn", "host"), 2)
        assert time.monotonic() - begun >= 0.1
        await asyncio.wait_for(waiting, 1)
        fourth = asyncio.create_task(enter(keeper, "fourth", client="living"))
        await asyncio.sleep(0.2)
        assert not fourth.done(), "one place too many"
        await keeper.leave("living 0")
        await asyncio.wait_for(fourth, 1)
        await beats

    asyncio.run(ask())


def test_the_circuit_opens_for_all_and_says_why(keeper: PaceKeeper) -> None:
    async def ask() -> None:
        for number in range(pace.BREAKER_FAILURES):
            assert await enter(keeper, str(number), client=str(number)) is None
            await keeper.leave(str(number))
            await keeper.over("host", f"request of {number}", failed="HTTP 503")
        refused = await enter(keeper, "next", client="another")
        assert refused is not None
        assert "host is not working: the last 16 requests in a row failed, the latest with HTTP 503" in refused
        await keeper.over("host", "request of 0", worked=True)
        assert await enter(keeper, "next") is None

    asyncio.run(ask())


def test_a_pause_is_one_for_all(keeper: PaceKeeper) -> None:
    async def ask() -> float:
        await enter(keeper, "first")
        await keeper.pause("host", 0.3)
        begun = time.monotonic()
        await enter(keeper, "second", client="b")
        return time.monotonic() - begun

    assert asyncio.run(ask()) >= 0.29


def test_turns_are_taken_one_after_another(keeper: PaceKeeper) -> None:
    order: list[str] = []

    async def work(name: str) -> None:
        await keeper.take_turn(name, name, "host")
        order.append(f"{name} begins")
        await asyncio.sleep(0.01)
        order.append(f"{name} ends")
        await keeper.leave(name)

    async def ask() -> None:
        await asyncio.gather(*(work(str(number)) for number in range(5)))

    asyncio.run(ask())
    begun = [line.split()[0] for line in order[::2]]
    assert order == [f"{name} {verb}" for name in begun for verb in ("begins", "ends")]


def test_a_call_that_is_repeated_changes_nothing(keeper: PaceKeeper) -> None:
    async def ask() -> None:
        for _ in range(5):
            await enter(keeper, "the same", places=2)
        await asyncio.wait_for(enter(keeper, "another", places=2), 1)
        for _ in range(5):
            await keeper.leave("the same")
        await asyncio.wait_for(enter(keeper, "a third", places=2), 1)

    asyncio.run(ask())


def test_the_log_of_the_day_is_in_the_keepers_cache(keeper: PaceKeeper, tmp_path: Path) -> None:
    async def ask() -> list[int]:
        for size in (5, 7):
            assert await keeper.spend("overpass/host/used.log", size) is None
        return await keeper.spent("overpass/host/used.log")

    assert asyncio.run(ask()) == [5, 7]
    assert (tmp_path / "overpass/host/used.log").read_text() == "5\n7\n"
    (tmp_path / "a file").touch()
    assert asyncio.run(keeper.spend("a file/used.log", 1)) == "File exists"
