"""levi_serve.tiers over a Redis that answers as the test says; the real one is in test_faults."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from levi_serve.bundle.keys import Keys, Stored, encode_value
from levi_serve.bundle.manifest import Manifest
from levi_serve.bundle.rows import Id, Table
from levi_serve.cache import RowCache
from levi_serve.store import Side, State, TableStore
from levi_serve.tiers import SPACES, TieredStore

from .redis_server import play
from .toy import BROKEN, MOVIES, UNTRAINED, USERS, Toy

WIDTH = 4
UNKNOWN = np.array([[-1.0] * WIDTH, [-2.0] * WIDTH], np.float16)
FOUND, ABSENT, DEGRADED = State.FOUND, State.UNKNOWN, State.DEGRADED


class Scripted:
    """A Redis in this process. It holds back answers while its gate is closed, and gives none while it is down."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.calls: list[list[bytes]] = []
        self.down = False
        self.available = True
        self.closed = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None] | None:
        self.calls.append(list(keys))
        await self.gate.wait()
        return None if self.down or not self.available else [self.values.get(key) for key in keys]

    def put(self, key: bytes, value: bytes, ttl_s: int) -> None:
        self.values[key] = value

    async def close(self) -> None:
        self.closed = True


class World:
    """The toy model's tables, a scripted Redis that holds some of them, and stores over both."""

    def __init__(self, repository: Path, published: str = "both") -> None:
        folder = repository / "levi" / "1"
        self.manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
        self.keys = Keys(self.manifest)
        self.tables = (Table(folder, "users"), Table(folder, "movies"))
        self.redis = Scripted()
        for side, entity in enumerate(("users", "movies")):
            if published in {"both", entity}:
                self.publish(side)

    def publish(self, side: int) -> None:
        table = self.tables[side]
        ids = table.ids.tolist()
        for key, row, trained in zip(self.keys.known(side, ids), table.rows, table.trained, strict=False):
            self.redis.values[key] = encode_value(key, Stored(row, bool(trained)))
        self.redis.values[self.keys.marks[side]] = str(len(ids)).encode()

    def store(self, local: str = "none", cache: int = 100_000, absent_s: float = 60.0) -> TieredStore:
        """A store whose Redis is the scripted one; `local` names the tables it has."""
        tables = tuple(
            t if local in {"both", name} else None for name, t in zip(("users", "movies"), self.tables, strict=True)
        )
        remote: Any = self.redis
        width = self.manifest.layout.width
        return TieredStore(
            self.keys, tables, UNKNOWN[:, :width], remote, RowCache(width, cache, SPACES), absent_s, new_ttl_s=60
        )

    def key(self, side: int, id_: Id) -> bytes:
        return self.keys.known(side, [id_])[0]


@pytest.fixture
def world(entity_toy_repository: Path) -> World:
    return World(entity_toy_repository)


def check(toy: Toy, sides: tuple[Side, Side] | None, users: Sequence[Id], movies: Sequence[Id], states: Any) -> None:
    """Every FOUND id has exactly its own row and mark, and every other one the unknown row."""
    assert sides is not None
    for number, (side, ids, expected) in enumerate(zip(sides, (users, movies), states, strict=True)):
        assert [State(state) for state in side.state] == expected
        for i, id_ in enumerate(ids):
            if side.state[i] == FOUND:
                row = toy.row(number, id_) * np.float16("nan" if number == 0 and id_ in BROKEN else 1)
                assert np.array_equal(side.rows[i], row, equal_nan=True)
                assert bool(side.trained[i]) == (id_ not in UNTRAINED)
            else:
                assert side.rows[i].tolist() == UNKNOWN[number].tolist()
                assert not side.trained[i]


def test_one_round_trip_then_at_hand(entity_toy: Toy, world: World) -> None:
    """Both sides come in one MGET that names each id once; from then on they are at hand."""

    async def scenario() -> None:
        store = world.store()
        users: list[Id] = [7, 138, 7]
        movies: list[Id] = [1001, 50, 50]
        assert store.at_hand(users, movies) is None
        check(entity_toy, await store.fetch(users, movies), users, movies, [[FOUND] * 3] * 2)
        (asked,) = world.redis.calls
        assert sorted(asked) == sorted(
            [*world.keys.marks, *world.keys.known(0, [7, 138]), *world.keys.known(1, [50, 1001])]
        )
        check(entity_toy, store.at_hand(users, movies), users, movies, [[FOUND] * 3] * 2)
        assert (store.counts.redis, store.counts.cache, len(world.redis.calls)) == (4, 6, 1)
        assert store.at_hand([7, 9], [50, 50]) is None

    play(scenario)


def test_no_ids(world: World) -> None:
    """A batch of nothing asks nobody."""

    async def scenario() -> None:
        user, item = await world.store().fetch([], [])
        assert (user.rows.shape, item.rows.shape, world.redis.calls) == ((0, WIDTH), (0, WIDTH), [])

    play(scenario)


def test_unknown_if_all_rows_were_published(entity_toy: Toy, world: World) -> None:
    """An id that a complete Redis does not have is unknown, and is not asked for again for a while."""

    async def scenario() -> None:
        store = world.store()
        check(entity_toy, await store.fetch([8, 7], [50, 51]), [8, 7], [50, 51], [[ABSENT, FOUND], [FOUND, ABSENT]])
        check(entity_toy, store.at_hand([7, 8], [51, 50]), [7, 8], [51, 50], [[FOUND, ABSENT], [ABSENT, FOUND]])
        assert (store.counts.unknown, len(world.redis.calls)) == (4, 1)
        forgetful = world.store(absent_s=0.0)
        for _ in range(2):
            assert forgetful.at_hand([8], [50]) is None
            await forgetful.fetch([8], [50])
        assert len(world.redis.calls) == 3

    play(scenario)


@pytest.mark.parametrize("published", ["none", "movies"])
def test_a_redis_that_lost_its_rows_cannot_say(entity_toy: Toy, entity_toy_repository: Path, published: str) -> None:
    """Without the mark, a user that Redis does not have may exist: degraded, and asked for again until it is there."""

    async def scenario() -> None:
        world = World(entity_toy_repository, published)
        store = world.store(local="movies")
        check(entity_toy, await store.fetch([7, 8], [50, 51]), [7, 8], [50, 51], [[DEGRADED] * 2, [FOUND, ABSENT]])
        assert store.counts.degraded == 2
        assert store.at_hand([7], [50]) is None
        world.publish(0)
        check(entity_toy, await store.fetch([7, 8], [50, 51]), [7, 8], [50, 51], [[FOUND, ABSENT], [FOUND, ABSENT]])

    play(scenario)


def test_rows_are_used_while_a_table_is_being_published(entity_toy: Toy, entity_toy_repository: Path) -> None:
    """Before the mark is there, rows that are there already are rows."""

    async def scenario() -> None:
        world = World(entity_toy_repository, "movies")
        world.publish(0)
        del world.redis.values[world.keys.marks[0]], world.redis.values[world.key(0, 138)]
        sides = await world.store().fetch([7, 138], [50, 50])
        check(entity_toy, sides, [7, 138], [50, 50], [[FOUND, DEGRADED], [FOUND, FOUND]])

    play(scenario)


def test_an_outage_without_a_table(entity_toy: Toy, world: World) -> None:
    """Without an answer known users are degraded and unknown ones too; what the cache has is as good as ever."""

    async def scenario() -> None:
        store = world.store(local="movies")
        await store.fetch([7], [50])
        world.redis.down = True
        sides = await store.fetch([7, 138, 8], [357, 50, 51])
        check(entity_toy, sides, [7, 138, 8], [357, 50, 51], [[FOUND, DEGRADED, DEGRADED], [FOUND, FOUND, ABSENT]])
        world.redis.down = False
        assert store.at_hand([138], [50]) is None
        check(entity_toy, await store.fetch([138], [50]), [138], [50], [[FOUND], [FOUND]])
        world.redis.available = False
        before = len(world.redis.calls)
        sides = store.at_hand([9, 138], [50, 52])
        check(entity_toy, sides, [9, 138], [50, 52], [[DEGRADED, FOUND], [FOUND, ABSENT]])
        assert len(world.redis.calls) == before
        world.redis.available = True
        assert store.at_hand([9], [50]) is None

    play(scenario)


@pytest.mark.parametrize("unavailable", [True, False])
def test_an_outage_with_tables(entity_toy: Toy, world: World, unavailable: bool) -> None:
    """With tables an outage changes no row, and an unknown id is unknown."""

    async def scenario() -> None:
        world.redis.available, world.redis.down = not unavailable, not unavailable
        store = world.store(local="both")
        users, movies = [*USERS, 8], [*MOVIES, 50, 51]
        sides = store.at_hand(users, movies) if unavailable else await store.fetch(users, movies)
        check(entity_toy, sides, users, movies, [[FOUND] * 4 + [ABSENT], [FOUND] * 4 + [ABSENT]])
        assert (store.counts.table, store.counts.degraded) == (7, 0)

    play(scenario)


def test_an_unpublished_row_comes_from_the_table(entity_toy: Toy, world: World) -> None:
    """What Redis does not have and the table has is found, and Redis is not asked for it again."""

    async def scenario() -> None:
        del world.redis.values[world.key(0, 7)]
        store = world.store(local="both")
        check(entity_toy, await store.fetch([7, 138], [50, 50]), [7, 138], [50, 50], [[FOUND] * 2] * 2)
        assert (store.counts.table, store.counts.redis) == (1, 2)
        check(entity_toy, store.at_hand([7, 138], [50, 50]), [7, 138], [50, 50], [[FOUND] * 2] * 2)

    play(scenario)


@pytest.mark.parametrize("damage", ["cut", "garbage", "swapped", "empty"])
@pytest.mark.parametrize("local", ["none", "both"])
def test_damaged_values_are_never_used(entity_toy: Toy, world: World, damage: str, local: str) -> None:
    """A value that is not what was published is counted and replaced by the table's; else the id is degraded, not
    unknown, and has its row as soon as Redis has.
    """

    async def scenario() -> None:
        key, other = world.key(0, 7), world.key(0, 138)
        good = world.redis.values[key]
        bad = {"cut": good[:-1], "garbage": b"\0" * len(good), "swapped": world.redis.values[other], "empty": b""}
        world.redis.values[key] = bad[damage]
        store = world.store(local=local)
        state = FOUND if local == "both" else DEGRADED
        check(entity_toy, await store.fetch([7, 138], [50, 50]), [7, 138], [50, 50], [[state, FOUND], [FOUND] * 2])
        assert (store.counts.corrupt, store.counts.table) == (1, int(local == "both"))
        world.redis.values[key] = good
        if local == "none":
            check(entity_toy, await store.fetch([7], [50]), [7], [50], [[FOUND], [FOUND]])
            assert store.counts.corrupt == 1

    play(scenario)


def test_another_version_has_other_rows(entity_toy: Toy, world: World) -> None:
    """The rows of a retrained model never serve this one, though name and version number are the same."""

    async def scenario() -> None:
        files = {file: "0" * 64 if file.endswith("users.rows.npy") else d for file, d in world.manifest.files.items()}
        world.keys = Keys(world.manifest.model_copy(update={"files": files}))
        sides = await world.store().fetch([7], [50])
        check(entity_toy, sides, [7], [50], [[DEGRADED], [DEGRADED]])

    play(scenario)


def test_single_flight(entity_toy: Toy, world: World) -> None:
    """While an id is under way, others that want it wait for that answer and ask only for the rest."""

    async def scenario() -> None:
        store = world.store()
        world.redis.gate.clear()
        first = asyncio.create_task(store.fetch([7, 138], [50, 50]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second = asyncio.create_task(store.fetch([138, 9], [50, 357]))
        third = asyncio.create_task(store.fetch([138], [50]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [set(call) - {*world.keys.marks} for call in world.redis.calls] == [
            {*world.keys.known(0, [7, 138]), *world.keys.known(1, [50])},
            {*world.keys.known(0, [9]), *world.keys.known(1, [357])},
        ]
        world.redis.gate.set()
        check(entity_toy, await first, [7, 138], [50, 50], [[FOUND] * 2] * 2)
        check(entity_toy, await second, [138, 9], [50, 357], [[FOUND] * 2] * 2)
        check(entity_toy, await third, [138], [50], [[FOUND]] * 2)
        assert len(world.redis.calls) == 2

    play(scenario)


def test_the_same_id_on_both_sides(world: World, tmp_path: Path) -> None:
    """A user and a movie of one id are two entities, also while both are under way."""

    async def scenario() -> None:
        Toy("entity", users={1: {"age": 30}}, movies={1: {"title": "One"}}).write(tmp_path)
        same = World(tmp_path)
        user, item = await same.store().fetch([1], [1])
        assert user.rows[0].tobytes() == same.tables[0].rows[0].tobytes()
        assert item.rows[0].tobytes() == same.tables[1].rows[0].tobytes()
        assert user.rows[0].tobytes() != item.rows[0].tobytes()

    play(scenario)


def test_a_caller_that_leaves_takes_nothing_away(entity_toy: Toy, world: World) -> None:
    """If the caller that asked first is cancelled, the one that waits for the same id still gets it."""

    async def scenario() -> None:
        store = world.store()
        world.redis.gate.clear()
        first = asyncio.create_task(store.fetch([7], [50]))
        await asyncio.sleep(0)
        second = asyncio.create_task(store.fetch([7], [50]))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        world.redis.gate.set()
        check(entity_toy, await second, [7], [50], [[FOUND], [FOUND]])
        assert len(world.redis.calls) == 1

    play(scenario)


def test_after_a_failed_flight(entity_toy: Toy, world: World) -> None:
    """An id whose flight brought no answer is asked for anew."""

    async def scenario() -> None:
        store = world.store()
        world.redis.down = True
        check(entity_toy, await store.fetch([7], [50]), [7], [50], [[DEGRADED], [DEGRADED]])
        world.redis.down = False
        check(entity_toy, await store.fetch([7], [50]), [7], [50], [[FOUND], [FOUND]])

    play(scenario)


def test_close_waits_for_flights(world: World) -> None:
    """Closing lets what is under way end before Redis is left."""

    async def scenario() -> None:
        store = world.store()
        world.redis.gate.clear()
        fetching = asyncio.create_task(store.fetch([7], [50]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(store.close())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not world.redis.closed
        world.redis.gate.set()
        await closing
        assert world.redis.closed
        assert (await fetching)[0].state.tolist() == [FOUND]

    play(scenario)


ROW = np.array([np.nan, -0.0, 6e-8, 65504], np.float16)


def test_rows_of_new_entities(world: World) -> None:
    """A row that was encoded is recalled bit for bit, here and by another server of the same version."""

    async def scenario() -> None:
        here, there = world.store(), world.store()
        here.remember(b"\x01" * 16, ROW)
        for store, tier in ((here, "cache"), (there, "redis"), (there, "cache")):
            before = getattr(store.counts, tier)
            found = await store.recall([b"\x02" * 16, b"\x01" * 16])
            assert found[0] is None
            assert found[1] is not None
            assert found[1].tobytes() == ROW.tobytes()
            assert getattr(store.counts, tier) == before + 1
        assert here.counts.encoder == 1

    play(scenario)


def test_recall_without_redis(world: World) -> None:
    """Without an answer, or with a damaged value, a new entity is encoded again; what this process has stays good."""

    async def scenario() -> None:
        store = world.store()
        store.remember(b"\x01" * 16, ROW)
        world.redis.down = True
        found = await store.recall([b"\x01" * 16, b"\x02" * 16])
        assert [row is None for row in found] == [False, True]
        world.redis.down = False
        (name,) = world.keys.new([b"\x01" * 16])
        world.redis.values[name] = world.redis.values[name][:-1]
        other = world.store()
        assert await other.recall([b"\x01" * 16]) == [None]
        assert other.counts.corrupt == 1
        assert await store.recall([]) == []

    play(scenario)


def test_attributes(tmp_path: Path) -> None:
    """Pair views read attributes from Redis where there is no table; a table tells them otherwise."""

    async def scenario() -> None:
        toy = Toy("pair")
        toy.write(tmp_path)
        world = World(tmp_path, "none")
        users = world.tables[0]
        for number, key in enumerate(world.keys.known(0, users.ids.tolist())):
            stored = Stored(users.rows[number], True, users.attributes_json(number))
            world.redis.values[key] = encode_value(key, stored)
        store = world.store(local="movies")
        for sides in (await store.fetch([138, 7], [50, 357]), store.at_hand([138, 7], [50, 357])):
            assert sides is not None
            assert [sides[0].attributes(i) for i in (0, 1)] == [USERS[138], USERS[7]]
            assert [sides[1].attributes(i) for i in (0, 1)] == [MOVIES[50], MOVIES[357]]

    play(scenario)


def test_attributes_that_nobody_has(world: World) -> None:
    """With entity views rows say everything: without a table there are no attributes."""

    async def scenario() -> None:
        user, item = await world.store(local="movies").fetch([138], [50])
        assert (user.attributes(0), item.attributes(0)) == ({}, MOVIES[50])

    play(scenario)


@settings(deadline=None, max_examples=30)
@given(st.randoms(use_true_random=False), st.integers(0, 12), st.booleans())
def test_every_tier_gives_the_same_rows(
    entity_toy_repository: Path, draw: random.Random, room: int, local: bool
) -> None:
    """Whatever fails when, and however small the cache: a FOUND row is the table's, in any company, and with a table
    every answer is the table's.
    """

    async def scenario() -> None:
        world = World(entity_toy_repository)
        store = world.store("both" if local else "none", cache=room * 320, absent_s=draw.choice([0.0, 60.0]))
        truth = TableStore(*world.tables)
        published = dict(world.redis.values)

        async def ask() -> None:
            count = draw.randrange(1, 8)
            users = draw.choices([*USERS, 8, -(2**63)], k=count)
            movies = draw.choices([*MOVIES, 51, 2**63 - 1], k=count)
            sides = store.at_hand(users, movies) or await store.fetch(users, movies)
            for side, true, unknown in zip(sides, truth.at_hand(users, movies), UNKNOWN, strict=True):
                for i in range(count):
                    if local or side.state[i] != DEGRADED:
                        assert side.state[i] == true.state[i]
                    found = side.state[i] == FOUND
                    assert side.rows[i].tobytes() == (true.rows[i] if found else unknown).tobytes()
                    assert side.trained[i] == (found and true.trained[i])

        for _ in range(30):
            world.redis.down, world.redis.available = draw.random() < 0.2, draw.random() < 0.8
            if draw.random() < 0.3:
                world.redis.values.pop(draw.choice([*published]), None)
                if draw.random() < 0.5:
                    world.redis.values[draw.choice([*published])] = draw.randbytes(draw.randrange(40))
                for mark in world.keys.marks:  # a Redis that loses rows loses the mark no later
                    if draw.random() < 0.9 or len(world.redis.values) < len(published):
                        world.redis.values.pop(mark, None)
            elif draw.random() < 0.2:
                world.redis.values.update(published)
            await asyncio.gather(*(ask() for _ in range(draw.randrange(1, 4))))
        assert store._cache.bytes <= room * 320

    play(scenario)
