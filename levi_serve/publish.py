"""Publishing: the rows of a version's tables, written to Redis for servers that have no such table.

Every run writes all rows, so running again after a failure is all there is to resuming. The mark that a table is there
as a whole is written last; with a time to live, all rows expire together and the mark shortly before them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from redis.asyncio import RedisCluster
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError

from levi_serve.bundle.commands import UsageError
from levi_serve.bundle.keys import Keys, Stored, encode_value
from levi_serve.bundle.manifest import Manifest, read_manifest
from levi_serve.bundle.redis_url import shown
from levi_serve.bundle.rows import Table
from levi_serve.remote import Client, RemoteError, advice, connect

log = logging.getLogger("levi")

ROWS = 500
"""In one pipeline: about half a megabyte of rows."""
PIPELINES = 2
"""At a time: one is put together while Redis reads the other."""
TIMEOUT_S = 10.0
"""For one pipeline: a Redis that writes a snapshot may pause."""
_MARK_S = 1.0
"""The mark of rows that expire goes this long before them."""


@dataclass(frozen=True, slots=True)
class Published:
    """One table that is in Redis."""

    entity: str
    rows: int
    seconds: float


def publish(
    repository: Path,
    name: str,
    version: int,
    url: str,
    entities: Sequence[str],
    ttl_s: float | None,
    report: Callable[[str, int, int], None],
) -> list[Published]:
    """Write the tables of these entities (none: of both). `report` is told entity, rows written and rows in all.

    Raises:
        UsageError: there is no such entity.
        BundleError: the version is not whole.
        RemoteError: Redis is out of reach or takes no more; the message says how much was written.

    """
    manifest = read_manifest(repository, name, version)
    names = [entity.name for entity in manifest.schema_.entities]
    for entity in entities:
        if entity not in names:
            raise UsageError(f"--entity {entity}: the entities of {name}/{version} are {' and '.join(names)}")
    folder = repository / name / str(version)
    sides = [side for side, entity in enumerate(names) if not entities or entity in entities]
    return asyncio.run(_publish(manifest, folder, sides, url, ttl_s, report))


async def _publish(
    manifest: Manifest,
    folder: Path,
    sides: Sequence[int],
    url: str,
    ttl_s: float | None,
    report: Callable[[str, int, int], None],
) -> list[Published]:
    client = connect(url, TIMEOUT_S)
    done = []
    try:
        for side in sides:
            start = time.perf_counter()
            entity = manifest.schema_.entities[side].name
            load = _Load(client, manifest, side, Table(folder, f"{entity}s"), ttl_s)
            try:
                await load.run(partial(report, entity))
            except (RedisError, OSError) as error:
                so_far = f"({load.written:,} of {len(load.table):,} rows of {entity} were written)"
                raise RemoteError(f"{shown(url)}: {_why(error)} {so_far}; then run the same command again") from None
            done.append(Published(entity, load.written, time.perf_counter() - start))
        await _warn_of_eviction(client, url)
    finally:
        await client.aclose()
    return done


async def _warn_of_eviction(client: Client, url: str) -> None:
    if isinstance(client, RedisCluster):  # its nodes may differ
        return
    try:
        policy = str((await client.info("memory")).get("maxmemory_policy", ""))
    except RedisError:  # not everybody may ask
        return
    if policy.startswith("allkeys"):
        log.warning(
            "redis %s: drops any key when it is full (%s), and users or items that it drops are answered as unknown; "
            "set its maxmemory-policy to noeviction or volatile-lru",
            shown(url),
            policy,
        )


class _Load:
    """One table on its way into Redis."""

    def __init__(self, client: Client, manifest: Manifest, side: int, table: Table, ttl_s: float | None) -> None:
        self.table = table
        self.written = 0
        self._client = client
        self._keys = Keys(manifest)
        self._side = side
        self._told = manifest.views == "pair"
        self._end = None if ttl_s is None else time.monotonic() + ttl_s

    async def run(self, report: Callable[[int, int], None]) -> None:
        """All rows, then the mark."""
        batches = iter(range(0, len(self.table), ROWS))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(PIPELINES):
                    group.create_task(self._work(batches, report))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        mark = (self._keys.marks[self._side], str(len(self.table)).encode())
        await self._client.execute_command("SET", *mark, *self._life(_MARK_S))

    async def _work(self, batches: Iterator[int], report: Callable[[int, int], None]) -> None:
        for start in batches:
            pipeline: Any = self._client.pipeline(transaction=False)
            life = self._life(0.0)
            for key, value in self._values(start):
                pipeline.execute_command("SET", key, value, *life)
            async with asyncio.timeout(TIMEOUT_S):
                answers = await pipeline.execute(raise_on_error=False)
            errors = [answer for answer in answers if isinstance(answer, Exception)]
            self.written += len(answers) - len(errors)
            if errors:
                raise errors[0]
            report(self.written, len(self.table))

    def _values(self, start: int) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of the rows from `start` on."""
        numbers = range(start, min(start + ROWS, len(self.table)))
        ids = self.table.ids[start : numbers.stop].tolist()
        names = self._keys.known(self._side, (i.decode() if isinstance(i, bytes) else i for i in ids))
        rows, trained = self.table.rows[start : numbers.stop], self.table.trained[start : numbers.stop].tolist()
        for i, number in enumerate(numbers):
            told = self.table.attributes_json(number) if self._told else b""
            yield names[i], encode_value(names[i], Stored(rows[i], trained[i], told))

    def _life(self, less_s: float) -> tuple[str | int, ...]:
        """What SET needs for all rows to expire at one time."""
        if self._end is None:
            return ()
        return "PX", max(1, int((self._end - time.monotonic() - less_s) * 1000))


class Progress:
    """A line on a terminal that says how far the work is; nothing elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream` if it is a terminal."""
        self._stream = stream if stream.isatty() else None
        self._entity = ""
        self._start = 0.0

    def __call__(self, entity: str, rows: int, total: int) -> None:
        """`rows` of `total` are written."""
        if self._stream is None:
            return
        now = time.perf_counter()
        if entity != self._entity:
            self._entity, self._start = entity, now
        rate = rows / (now - self._start) if now > self._start else 0.0
        left = f", {rate:,.0f} a second, {(total - rows) / rate:,.0f} s left" if rate else ""
        self._stream.write(f"\r\x1b[K{entity}: {rows:,} of {total:,} rows{left}")
        self._stream.write("\r\x1b[K" if rows == total else "")
        self._stream.flush()


def _why(error: Exception) -> str:
    match error:
        case OutOfMemoryError():
            return "is full; raise its maxmemory or publish fewer entities"
        case ReadOnlyError():
            return "is a read-only replica; publish to its primary"
    return advice(error) or f"{error or 'no answer in time'}"
