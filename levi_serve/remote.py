"""Redis, asked so that its troubles cost a caller a bounded time and never an exception.

A call that fails or takes too long is answered with None. After a few of those in a row nothing is asked any more
(`available` is False) until a probe of our own, with a new client, has been answered in time: no request is spent on
finding out.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterCrossSlotError,
    ClusterDownError,
    InvalidResponse,
    MovedError,
    NoPermissionError,
    RedisClusterException,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from levi_serve.bundle.commands import RunError
from levi_serve.bundle.redis_url import client_options, is_cluster, node_url, shown

log = logging.getLogger("levi")

Client: TypeAlias = Redis | RedisCluster

FAILURES = 3
"""Calls that fail one after the other until Redis counts as unavailable."""
RETRY_S = 0.25
"""Between two probes."""
PROBE_S = 1.0
"""A probe may take this long to connect: it delays nobody."""
CALLS = 8
"""Calls at a time; more would wait for each other inside Redis."""
WRITES = 16
"""Writes under way; more are dropped, since each is a row that can be computed again."""
_PROBES = (b"levi:probe:1", b"levi:probe:2")
"""Keys of different slots that nobody writes: a cluster that is not addressed as one refuses them."""
_NO_REDIS = "what listens there does not answer as Redis does; is it another service's port?"
_ADVICE: tuple[tuple[tuple[type[Exception], ...], str | None], ...] = (
    ((ssl.SSLError,), "{}; rediss:// needs a TLS port whose certificate the system trusts, or ?ssl_ca_certs=FILE"),
    ((AuthenticationError, AuthorizationError), "{}; put user and password into the URL: redis://USER:PASSWORD@HOST"),
    ((NoPermissionError,), "{}; the user needs MGET, SET and DEL on keys levi:*, in a cluster CLUSTER SLOTS too"),
    ((MovedError, ClusterCrossSlotError), "it is a Redis Cluster; write redis+cluster:// or rediss+cluster://"),
    ((InvalidResponse,), _NO_REDIS),
    ((ClusterDownError,), None),
    ((ResponseError,), "{} (Redis 6 or newer is needed; redis+cluster:// is for a cluster only)"),
    ((RedisConnectionError, RedisTimeoutError, RedisClusterException, OSError), None),
    ((Exception,), _NO_REDIS),
)
"""What to do about an error, by the first of these kinds among its causes; None: Redis is not there, or not yet."""


class RemoteError(RunError):
    """Redis answers and cannot be used; the message says what to do."""


class Remote:
    """One Redis, or one cluster. It belongs to the event loop that first awaits it."""

    def __init__(self, url: str, timeout_s: float, observe: Callable[[float], None] = lambda _: None) -> None:
        """A call takes `timeout_s` at most; `observe` gets the seconds of each one that was answered."""
        self.failures = 0
        """Calls that were not answered, or not usably, or not in time."""
        self.write_failures = 0
        self.writes_dropped = 0
        self.closed: Callable[[], None] = lambda: None
        """Called at its end."""
        self._url = url
        self._timeout_s = timeout_s
        self._observe = observe
        self._in_a_row = 0
        self._healing: asyncio.Task[None] | None = None
        self._calls = asyncio.Semaphore(CALLS)
        self._writes: set[asyncio.Task[None]] = set()
        self._client = self._connect()

    @property
    def available(self) -> bool:
        """Whether calls are made at all."""
        return self._healing is None

    async def start(self) -> None:
        """Ask once. A Redis that is out of reach is waited for in the background; one that will never do is an error.

        Raises:
            RemoteError: it refuses our name, is no Redis, is too old, or is a cluster where none was expected.

        """
        error = await self._probe(self._client)
        if error is None:
            return
        if why := advice(error):
            await _close(self._client)
            raise RemoteError(f"{shown(self._url)}: {why}")
        self._open(error)

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None] | None:
        """The values [len(keys)] in one round trip, None where there is none; None instead of all without an answer."""
        async with self._calls:
            if not self.available:
                return None
            start = time.perf_counter()
            try:
                async with asyncio.timeout(self._timeout_s):
                    values = await _mget(self._client, keys)
            except Exception as error:  # noqa: BLE001 - whatever a broken server makes the client do is an outage
                self.failures += 1
                self._in_a_row += 1
                if self._in_a_row >= FAILURES and self.available:
                    self._open(error)
                return None
            self._in_a_row = 0
            self._observe(time.perf_counter() - start)
            return values

    def put(self, key: bytes, value: bytes, ttl_s: int) -> None:
        """Write in the background, or not at all: a value that is missing is computed again."""
        if not self.available or len(self._writes) >= WRITES:
            self.writes_dropped += 1
            return
        task = asyncio.create_task(self._write(key, value, ttl_s))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def delete(self, keys: Sequence[bytes]) -> bool:
        """Whether they are known to be gone."""
        if not self.available:
            return False
        try:
            async with asyncio.timeout(max(self._timeout_s, PROBE_S)):
                for key in keys:  # in a cluster each may lie on another node
                    await self._client.delete(key)
        except Exception:  # noqa: BLE001 - as in `get`
            self.write_failures += 1
            return False
        return True

    async def close(self) -> None:
        """End what is under way and disconnect."""
        if self._healing:
            self._healing.cancel()
            await asyncio.wait([self._healing])
        if self._writes:
            await asyncio.wait(self._writes)
        await _close(self._client)
        self.closed()

    async def _write(self, key: bytes, value: bytes, ttl_s: int) -> None:
        # A Redis that is full or read-only refuses writes and still answers: no reason to stop asking it.
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._client.set(key, value, ex=ttl_s)
        except Exception:  # noqa: BLE001 - as in `get`
            self.write_failures += 1

    def _open(self, error: Exception) -> None:
        log.warning("redis %s: %s; asking nothing until it answers again", shown(self._url), _said(error))
        self._healing = asyncio.create_task(self._heal())

    async def _heal(self) -> None:
        """Try until a new client, with no connection or topology from before, gets an answer."""
        while self._healing:
            await asyncio.sleep(RETRY_S)
            client = self._connect()
            try:
                if await self._probe(client) is None:
                    self._client, client = client, self._client
                    self._in_a_row = 0
                    self._healing = None
                    log.info("redis %s: answers again", shown(self._url))
            finally:
                await _close(client)

    def _connect(self) -> Client:
        return connect(self._url, max(self._timeout_s, PROBE_S))  # `get` itself keeps a call's time

    async def _probe(self, client: Client) -> Exception | None:
        """Connect, then ask what calls ask, within a call's time."""
        try:
            async with asyncio.timeout(max(self._timeout_s, PROBE_S)):
                await _mget(client, _PROBES)
            async with asyncio.timeout(self._timeout_s):
                await _mget(client, _PROBES)
        except Exception as error:  # noqa: BLE001 - as in `get`
            return error
        return None


def connect(url: str, timeout_s: float) -> Client:
    """A client that waits no longer than `timeout_s` for a connection or an answer."""
    return (RedisCluster if is_cluster(url) else Redis).from_url(node_url(url), **client_options(timeout_s, Retry))


async def _mget(client: Client, keys: Sequence[bytes]) -> list[bytes | None]:
    """One round trip; to a cluster, one to each node that has some of the keys, side by side."""
    values: Any = await (client.mget_nonatomic(keys) if isinstance(client, RedisCluster) else client.mget(keys))
    if not isinstance(values, list) or len(values) != len(keys) or not {*map(type, values)} <= {bytes, type(None)}:
        raise InvalidResponse("the answer to MGET is not one")
    return values


async def _close(client: Client) -> None:
    try:
        await client.aclose()
    except Exception as error:  # noqa: BLE001 - it is gone either way
        log.debug("closing a Redis client: %s", error)


def advice(error: Exception) -> str | None:
    """What to do about an error that no waiting will mend; None for all others."""
    causes: list[BaseException] = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    found = ((text, cause) for kinds, text in _ADVICE for cause in causes if isinstance(cause, kinds))
    text, cause = next(found)
    return text and text.format(_said(cause))


def _said(error: BaseException) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else " ".join(str(error).split()).rstrip(".")
