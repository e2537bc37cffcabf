"""The feedback log as a Redis stream. An event is acknowledged when Redis has answered XADD; how much that is worth is
Redis' setting: `appendfsync always` answers after its own fsync, `everysec` may lose a second to a power cut.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from levi_serve.bundle.feedback import FIELD, stream_key
from levi_serve.bundle.redis_url import open_redis, shown
from levi_serve.bundle.rows import Id
from levi_serve.errors import FeedbackError
from levi_serve.feedback import Backlog, names

log = logging.getLogger("levi")

T = TypeVar("T")

_TIMEOUT_S = 1.0
"""For an answer: a Redis that fsyncs may take a while."""
_CHUNK = 2000
"""Entries in one answer."""


class StreamLog:
    """One stream, which all servers share."""

    def __init__(self, url: str, model: str, max_bytes: int) -> None:
        """Of this model's events; no more than `max_bytes` of Redis' memory."""
        self._where = f"the feedback stream at {shown(url)}"
        self._key = stream_key(model)
        self._max_bytes = max_bytes
        self._redis = open_redis(url, _TIMEOUT_S)
        self._checked = False

    def append(self, lines: Sequence[bytes]) -> Backlog:
        """Two round trips, however many there are."""
        return self._ask(self._append, lines)

    def backlog(self) -> Backlog:
        """One round trip."""
        return self._ask(self._look)

    def erase(self, side: int, id_: Id) -> int:
        """A pass through the whole stream."""
        return self._ask(self._erase, side, id_)

    def close(self) -> None:
        """Disconnect."""
        self._redis.close()

    def _append(self, lines: Sequence[bytes]) -> Backlog:
        if not self._checked:
            self._check()
            self._checked = True
        size, oldest = self._look()
        size += sum(map(len, lines))
        if size > self._max_bytes:
            raise FeedbackError(f"{self._where} takes {self._max_bytes >> 20} MiB, and as much as it may")
        with self._redis.pipeline(transaction=False) as pipe:
            for line in lines:
                pipe.xadd(self._key, {FIELD: line})
            answers = pipe.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return Backlog(size, oldest)

    def _look(self) -> Backlog:
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.memory_usage(self._key)
            pipe.xrange(self._key, count=1)
            size, first = pipe.execute()
        # An entry's id begins with the milliseconds since 1970.
        oldest = int(first[0][0].partition(b"-")[0]) / 1000 if first else time.time()
        return Backlog(size or 0, oldest)

    def _erase(self, side: int, id_: Id) -> int:
        erased, after, unwanted = 0, "-", names(side, id_)
        while entries := self._redis.xrange(self._key, min=after, count=_CHUNK):
            after = f"({entries[-1][0].decode()}"
            if found := [number for number, fields in entries if unwanted(fields.get(FIELD, b""))]:
                erased += self._redis.xdel(self._key, *found)
        return erased

    def _check(self) -> None:
        """Say what would lose events although Redis has answered. A Redis that does not tell is not asked again."""
        told: dict[str, Any] = {**self._info("persistence"), **self._info("memory")}
        if told.get("aof_enabled") == 0:
            log.warning("%s: 'appendonly' is off: what Redis acknowledged is lost when it ends", self._where)
        if str(told.get("maxmemory_policy", "")).startswith("allkeys"):
            log.warning("%s: 'maxmemory-policy' may evict it: use noeviction or one of volatile-*", self._where)

    def _info(self, section: str) -> dict[str, Any]:
        from redis.exceptions import ResponseError  # noqa: PLC0415 - see `open_redis`

        try:
            told = self._redis.info(section)
        except ResponseError:  # no permission
            return {}
        return told if "aof_enabled" in told or "maxmemory_policy" in told else next(iter(told.values()), {})

    def _ask(self, work: Callable[..., T], *arguments: object) -> T:
        from redis.exceptions import RedisError  # noqa: PLC0415

        try:
            return work(*arguments)
        except (RedisError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            log.error("%s: %s", self._where, reason)  # noqa: TRY400 - it is all there is
            raise FeedbackError(f"{self._where} cannot be used: {reason}") from None
