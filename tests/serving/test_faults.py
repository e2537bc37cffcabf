"""A tiered store under load while its real Redis is killed, frozen, emptied, filled up or replaced by something else.

What must hold all along: no call fails or takes long, a row that is used is the right one, and it heals by itself.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
import redis

from levi_serve.bundle.keys import Keys
from levi_serve.bundle.manifest import Manifest
from levi_serve.bundle.rows import Table
from levi_serve.cache import RowCache
from levi_serve.publish import publish
from levi_serve.remote import Remote
from levi_serve.store import State, TableStore
from levi_serve.tiers import SPACES, TieredStore

from .redis_server import RedisServer, play, until_async
from .toy import Toy

Start = Callable[..., RedisServer]
LOADS = 4
USERS = {number: {"age": 10 + number} for number in range(40)}
UNKNOWN = np.array([[-1.0] * 4, [-2.0] * 4], np.float16)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    Toy("entity", users=USERS).write(folder)
    return folder


class Load:
    """Batches of users and movies, asked for one after the other until it is stopped; each answer is checked."""

    def __init__(self, repository: Path, server: RedisServer, local: bool) -> None:
        folder = repository / "levi" / "1"
        manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
        users, movies = Table(folder, "users"), Table(folder, "movies")
        self.truth = TableStore(users, movies)
        self.local = local
        self.remote = Remote(server.url, 0.1)
        # Room for some rows only: Redis is needed all the time.
        cache = RowCache(4, 5000, SPACES)
        tables = (users if local else None, movies)
        self.store = TieredStore(Keys(manifest), tables, UNKNOWN, self.remote, cache, absent_s=0.0, new_ttl_s=60)
        self.states: Counter[State] = Counter()
        self.slowest = 0.0
        self.stopped = False

    async def run(self) -> None:
        draw = random.Random(0)
        while not self.stopped:
            await self.once(draw)
            await asyncio.sleep(0.001)

    async def once(self, draw: random.Random) -> None:
        users = draw.choices([*USERS, 1000], k=8)
        movies = draw.choices([357, 50, 1001, 51], k=8)
        start = time.monotonic()
        sides = self.store.at_hand(users, movies) or await self.store.fetch(users, movies)
        self.slowest = max(self.slowest, time.monotonic() - start)
        for number, (side, true) in enumerate(zip(sides, self.truth.at_hand(users, movies), strict=True)):
            for i in range(8):
                state = State(side.state[i])
                if number == 0:
                    self.states[state] += 1
                if state == State.DEGRADED:
                    assert number == 0
                    assert not self.local
                else:
                    assert state == true.state[i]
                row = true.rows[i] if state == State.FOUND else UNKNOWN[number]
                assert side.rows[i].tobytes() == row.tobytes()
                assert side.trained[i] == (state == State.FOUND and true.trained[i])

    async def seen(self, state: State) -> None:
        """Wait until an answer with this state has come from now on."""
        before = self.states[state]
        await until_async(lambda: self.states[state] > before)

    async def healthy(self) -> None:
        """Wait until a while has passed in which nothing was degraded and rows came from Redis."""

        async def clean() -> bool:
            degraded, redis_rows, found = self.states[State.DEGRADED], self.store.counts.redis, self.states[State.FOUND]
            await until_async(lambda: self.states[State.FOUND] > found + 200)
            return self.states[State.DEGRADED] == degraded and self.store.counts.redis > redis_rows

        end = time.monotonic() + 20
        while not await clean():
            assert time.monotonic() < end, "did not heal"


async def killed(server: RedisServer, load: Load, fill: Callable[[], Awaitable[None]]) -> None:
    server.kill()
    await until_async(lambda: not load.remote.available)
    await load.seen(State.FOUND if load.local else State.DEGRADED)
    server.start()
    if not load.local:
        await until_async(lambda: load.remote.available)
        await load.seen(State.DEGRADED)  # it is back and empty: it cannot say who is unknown
    await fill()


async def frozen(server: RedisServer, load: Load, _: Callable[[], Awaitable[None]]) -> None:
    server.freeze()
    await until_async(lambda: not load.remote.available)
    await load.seen(State.FOUND if load.local else State.DEGRADED)
    server.thaw()


async def restarted(server: RedisServer, load: Load, fill: Callable[[], Awaitable[None]]) -> None:
    for _ in range(5):
        server.kill()
        server.start()
        await load.seen(State.FOUND)
    await fill()


async def emptied(server: RedisServer, load: Load, fill: Callable[[], Awaitable[None]]) -> None:
    server.client.flushall()
    await load.seen(State.FOUND if load.local else State.DEGRADED)
    await fill()


async def damaged(server: RedisServer, load: Load, fill: Callable[[], Awaitable[None]]) -> None:
    """Every row is cut, replaced by noise, or by another entity's."""
    keys = [key for key in server.client.keys("*") if key.count(b":") == 4]
    values = server.client.mget(keys)
    for number, key in enumerate(keys):
        bad = (values[number][:-1], os.urandom(len(values[number])), values[number - 1])
        server.client.set(key, bad[number % 3])
    before = load.store.counts.corrupt
    await until_async(lambda: load.store.counts.corrupt > before + 100)
    await fill()


async def full(server: RedisServer, load: Load, _: Callable[[], Awaitable[None]]) -> None:
    """Reads go on; rows of new entities are not kept there, and still had from this process."""
    server.client.config_set("maxmemory", 1)
    with pytest.raises(redis.ResponseError, match="maxmemory"):
        server.client.set("one", "more")
    row = np.array([1, 2, 3, 4], np.float16)
    load.store.remember(b"new", row)
    (found,) = await load.store.recall([b"new"])
    assert found is not None
    assert found.tolist() == row.tolist()
    await until_async(lambda: load.remote.write_failures == 1)


async def replaced(server: RedisServer, load: Load, fill: Callable[[], Awaitable[None]]) -> None:
    """Its port falls to something that answers with noise."""

    async def noise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(1000):
                writer.write(os.urandom(1000))
        except OSError:
            pass
        finally:
            writer.close()

    server.kill()
    other = await asyncio.start_server(noise, "127.0.0.1", server.port)
    await until_async(lambda: not load.remote.available)
    await load.seen(State.FOUND if load.local else State.DEGRADED)
    other.close()
    await other.wait_closed()
    server.start()
    await fill()


@pytest.mark.parametrize("local", [True, False], ids=["with a table", "without"])
@pytest.mark.parametrize("fault", [killed, frozen, restarted, emptied, damaged, full, replaced])
def test_fault_under_load(
    start_redis: Start, repository: Path, fault: Callable[..., Awaitable[None]], local: bool
) -> None:
    """With a table every answer is the table's all along; without one answers are right or degraded."""
    server = start_redis()
    publish(repository, "levi", 1, server.url, (), None, lambda *_: None)

    async def scenario() -> None:
        load = Load(repository, server, local)
        await load.remote.start()

        async def fill() -> None:
            await asyncio.to_thread(publish, repository, "levi", 1, server.url, (), None, lambda *_: None)

        tasks = [asyncio.create_task(load.run()) for _ in range(LOADS)]
        try:
            await load.healthy()
            await fault(server, load, fill)
            await load.healthy()
        finally:
            load.stopped = True
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await load.store.close()
        assert results == [None] * LOADS
        assert load.slowest < 5

    play(scenario)


def test_memory_does_not_follow_the_catalogue(start_redis: Start, repository: Path) -> None:
    """However many users pass, the cache stays within its bound."""
    server = start_redis()
    publish(repository, "levi", 1, server.url, (), None, lambda *_: None)

    async def scenario() -> None:
        load = Load(repository, server, local=False)
        await load.remote.start()
        for number in range(50):
            await load.once(random.Random(number))
        assert load.store._cache.bytes <= 5000
        assert len(load.store._cache) > 5
        await load.store.close()

    play(scenario)
