"""levi_serve.cache: exact copies, the CLOCK order, and bounds that hold."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levi_serve.bundle.keys import Stored
from levi_serve.cache import Absent, Key, RowCache

WIDTH = 4
ENTRY = 2 * WIDTH + 272 + 28
"""Bytes of an entry whose key is a small integer, as the cache accounts for them."""


def row(number: float) -> Stored:
    return Stored(np.full(WIDTH, number, np.float16), number % 2 == 0)


def cache(entries: int, spaces: int = 1) -> RowCache:
    """A cache with room for so many entries with small integers as keys."""
    return RowCache(WIDTH, entries * ENTRY, spaces)


def held(cache: RowCache, keys: range, space: int = 0) -> list[int]:
    """Those of the keys that are there, without touching them."""
    return [key for key, slot in zip(keys, cache.slots(space, keys), strict=True) if slot is not None]


def read(cache: RowCache, *keys: Key, space: int = 0) -> list[float | None]:
    return [None if found is None else float(found[0]) for found in cache.rows(space, keys)]


def test_what_is_put_is_read() -> None:
    """Rows, marks and attributes come back as they were put, whatever kind of key they have, and as copies."""
    it = cache(10)
    special = np.array([np.nan, -0.0, 6e-8, np.inf], np.float16)
    it.put(0, "a", Stored(special, True, b'{"x": 1}'))
    it.put(0, b"a", row(3))
    it.put(0, 7, row(8))
    slots = it.slots(0, [7, "a", b"a", "b"])
    assert slots[3] is None
    found = it.gather([slot for slot in slots if slot is not None])
    assert found.rows.dtype == np.float16
    assert found.rows[1].tobytes() == special.tobytes()
    assert found.rows[[0, 2], 0].tolist() == [8, 3]
    assert found.trained.tolist() == [True, True, False]
    assert found.attributes == [b"", b'{"x": 1}', b""]
    found.rows[:] = 0
    assert read(it, 7) == [8]


def test_a_gathered_row_outlives_its_entry() -> None:
    """What was gathered stays what it was when its place is taken by another entry."""
    it = cache(1)
    it.put(0, 1, row(1))
    found = it.gather([0])
    it.put(0, 2, row(2))
    assert (read(it, 1, 2), found.rows[0, 0]) == ([None, 2], 1)


def test_spaces_are_apart() -> None:
    """A user and an item of the same id have a row each."""
    it = cache(10, spaces=2)
    it.put(0, 1, row(1))
    it.put(1, 1, row(2))
    it.put(1, 2, row(3))
    assert (read(it, 1, 2), read(it, 1, 2, space=1)) == ([1, None], [2, 3])
    assert len(it) == 3


def test_a_key_keeps_its_row() -> None:
    """An entry that is there stays: one version's row of an id never changes."""
    it = cache(10)
    it.put(0, 1, row(1))
    it.put(0, 1, row(2))
    assert (read(it, 1), len(it), it.bytes) == ([1], 1, ENTRY)


def test_clock() -> None:
    """Of entries that were not read the oldest goes; one that was read is spared once."""
    it = cache(3)
    for key in (0, 1, 2):
        it.put(0, key, row(key))
    read(it, 0)
    it.put(0, 3, row(3))  # the hand wipes the mark of 0 and takes 1
    assert held(it, range(4)) == [0, 2, 3]
    it.put(0, 4, row(4))  # goes on to 2
    assert held(it, range(5)) == [0, 3, 4]
    it.put(0, 5, row(5))  # 0 was spared once
    assert held(it, range(6)) == [3, 4, 5]


def test_when_all_were_read() -> None:
    """If every entry was read since, the hand goes around and takes the first it met."""
    it = cache(3)
    for key in (0, 1, 2):
        it.put(0, key, row(key))
    read(it, 0, 1, 2)
    it.put(0, 3, row(3))
    assert held(it, range(4)) == [1, 2, 3]
    assert read(it, 1, 2, 3) == [1, 2, 3]


def test_a_scan_does_not_flush_what_is_in_use() -> None:
    """Entries that are read between puts survive a thousand others that are not."""
    it = cache(20)
    for key in range(5):
        it.put(0, key, row(key))
    for key in range(1000, 2000):
        assert read(it, *range(5)) == [0, 1, 2, 3, 4]
        it.put(0, key, row(1))


@pytest.mark.parametrize("size", [0, 1, ENTRY - 1])
def test_no_room_at_all(size: int) -> None:
    """A cache that cannot hold a single entry holds none, and says so."""
    it = RowCache(WIDTH, size, 1)
    it.put(0, 1, row(1))
    assert (read(it, 1), len(it), it.bytes) == ([None], 0, 0)
    assert it.gather([]).rows.shape == (0, WIDTH)


def test_an_entry_beyond_the_bound_costs_no_other() -> None:
    """Attributes or a key that are larger than the whole cache are not kept, and nothing goes for them."""
    it = cache(3)
    it.put(0, 1, row(1))
    it.put(0, 2, row(2)._replace(attributes=b"x" * 4 * ENTRY))
    it.put(0, "x" * 4 * ENTRY, row(3))
    assert (held(it, range(3)), len(it)) == ([1], 1)


def test_attributes_and_keys_count() -> None:
    """Attributes and long keys take the room of other entries, and give it back."""
    it = cache(4)
    for key in range(4):
        it.put(0, key, row(key))
    it.put(0, 4, row(4)._replace(attributes=b"x" * ENTRY))
    assert held(it, range(5)) == [3, 4]
    for key in range(5, 8):
        it.put(0, key, row(key))
    assert held(it, range(8)) == [5, 6, 7]
    assert it.bytes == 3 * ENTRY


@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20), st.integers(0, 300), st.booleans()), max_size=200),
)
def test_any_use(entries: int, steps: list[tuple[int, int, int, bool]]) -> None:
    """Whatever is put and read in whatever order: what is there is right, and the bound holds."""
    it = cache(entries, spaces=2)
    for space, key, told, reads in steps:
        if reads:
            found = it.rows(space, [key])[0]
            assert found is None or found.tolist() == [100 * space + key] * WIDTH
        elif it.slots(space, [key]) == [None]:
            stored = row(100 * space + key)._replace(attributes=b"x" * told)
            it.put(space, key, stored)
            fits = ENTRY + (told and 33 + told) <= entries * ENTRY
            assert (it.slots(space, [key]) != [None]) == fits
        assert 0 <= it.bytes <= entries * ENTRY
    for space in (0, 1):
        keys = held(it, range(21), space)
        gathered = it.gather([slot for slot in it.slots(space, range(21)) if slot is not None])
        assert gathered.rows[:, 0].tolist() == [100 * space + key for key in keys]
        assert gathered.trained.tolist() == [key % 2 == 0 for key in keys]


def peak(work: Callable[[], object]) -> int:
    """Bytes that Python and NumPy held at most while it ran, not for the first time: interpreters keep free lists."""
    work()
    tracemalloc.start()
    try:
        kept = work()
        del kept
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("bound", [300_000, 700_000, 1_000_000, 1_700_000])
@pytest.mark.parametrize("kind", ["integers", "texts", "attributes"])
def test_memory_stays_within_the_bound(bound: int, kind: str) -> None:
    """Filled several times over, with dicts that grow and shrink, the cache takes no more than it may."""

    def fill() -> RowCache:
        it = RowCache(WIDTH, bound, 1)
        draw = random.Random(0)
        for number in range(4 * bound // ENTRY):
            key: Key = f"user {number} with a name" if kind == "texts" else 10**6 + number
            told = bytes(draw.randrange(300)) if kind == "attributes" else b""
            it.put(0, key, row(number % 100)._replace(attributes=told))
        return it

    assert peak(fill) <= bound


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_absent_for_a_while() -> None:
    """An absent id is one for its life and then no more; looking again makes it live anew."""
    clock = Clock()
    absent = Absent(5.0, 10_000, clock)
    absent.add(1)
    assert 1 in absent
    assert 2 not in absent
    clock.now += 4.9
    assert 1 in absent
    absent.add(1)
    clock.now += 4.9
    assert 1 in absent
    clock.now += 0.2
    assert 1 not in absent


def test_dead_ids_take_no_room() -> None:
    """Ids whose time is over go when the next one comes; the oldest go when there are too many."""
    clock = Clock()
    absent = Absent(5.0, 10 * (512 + 28), clock)
    for id_ in range(10):
        absent.add(id_)
        clock.now += 0.1
    assert absent.bytes == 10 * (512 + 28)
    absent.add(10)
    assert [id_ for id_ in range(11) if id_ in absent] == [*range(1, 11)]
    clock.now += 4.25  # 1 and 2 were added more than 5 s ago
    absent.add(11)
    assert absent.bytes == 9 * (512 + 28)
    absent.add("x" * 100_000)
    assert (absent.bytes, 11 in absent) == (0, False)


def test_no_life() -> None:
    """With a life of no time nothing is absent, and nothing piles up."""
    absent = Absent(0.0, 10_000, Clock())
    absent.add(1)
    assert 1 not in absent
    assert absent.bytes == 0


def test_absent_ids_stay_within_their_bound() -> None:
    """As the cache's, the memory of absent ids is bounded."""
    absent = Absent(1000.0, 300_000)
    assert peak(lambda: [absent.add(10**6 + number) for number in range(5000)] and None) <= 300_000 + 50_000
