"""levi_serve.remote against real Redis servers, and against servers that are none.

Where Redis is to be missed, a call may take 0.1 s; elsewhere so long that no busy machine makes it fail.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme

from levi_serve.remote import CALLS, FAILURES, WRITES, Remote, RemoteError

from .redis_server import RedisServer, free_port, play, until, until_async

Start = Callable[..., RedisServer]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


PATIENT, HASTY = 10.0, 0.1


@asynccontextmanager
async def connected(url: str, timeout_s: float = PATIENT, **keywords: Any) -> AsyncIterator[Remote]:
    """A client that has asked once."""
    remote = Remote(url, timeout_s, **keywords)
    await remote.start()
    yield remote
    await remote.close()


@asynccontextmanager
async def listening(handler: Handler, port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server that does to its connections what it likes; its address."""
    lines: set[asyncio.StreamWriter] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.add(writer)
        try:
            await handler(reader, writer)
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", port, ssl=tls)
    host, found = server.sockets[0].getsockname()
    yield f"{host}:{found}"
    server.close()
    for line in lines:
        line.close()


def greeting(data: bytes) -> bytes:
    """The answer to what a client says of itself on connecting."""
    return b"%1\r\n+proto\r\n:3\r\n" * data.count(b"HELLO") + b"+OK\r\n" * data.count(b"SETINFO")


async def ask(remote: Remote, *keys: bytes) -> list[bytes | None] | None:
    """Ask; however Redis feels, this ends before long."""
    start = time.monotonic()
    values = await remote.get(keys)
    assert time.monotonic() - start < 5
    return values


async def becomes(remote: Remote, *values: bytes | None) -> None:
    """Ask for `a` until that is the answer."""
    end = time.monotonic() + 20
    while await ask(remote, b"a") != [*values]:
        assert time.monotonic() < end, "never came"
        await asyncio.sleep(0.01)


async def exhaust(remote: Remote) -> None:
    """Ask until nothing is asked any more."""
    for _ in range(FAILURES):
        assert await ask(remote, b"a", b"b", b"c") is None
    assert not remote.available


def test_values(start_redis: Start) -> None:
    """Values come in the order of their keys, None where there is none, each byte as it is; answers are timed."""
    server = start_redis()
    value = bytes(range(256)) * 10
    server.client.set(b"a", value)
    server.client.set(b"\xff\r\n", b"")

    async def scenario() -> None:
        seconds: list[float] = []
        async with connected(server.url, observe=seconds.append) as remote:
            assert await ask(remote, b"b", b"\xff\r\n", b"a", b"b") == [None, b"", value, None]
            assert await asyncio.gather(*(remote.get([b"a"]) for _ in range(5 * CALLS))) == [[value]] * 5 * CALLS
            assert (remote.failures, remote.available) == (0, True)
            assert len(server.client.client_list()) <= CALLS + 1
        assert len(seconds) == 5 * CALLS + 1
        assert all(0 < second < 1 for second in seconds)

    play(scenario)


def test_writes(start_redis: Start) -> None:
    """What is written is there soon, with a life."""
    server = start_redis()

    async def scenario() -> None:
        async with connected(server.url) as remote:
            remote.put(b"k", b"v", 60)
            await until_async(lambda: server.client.get("k"))
            assert server.client.get("k") == b"v"
            assert 50 < server.client.ttl("k") <= 60
            remote.put(b"last", b"v", 60)
        assert server.client.get("last") == b"v"  # closing waits for it

    play(scenario)


def killed(server: RedisServer) -> Callable[[], None]:
    server.kill()
    return server.start


def frozen(server: RedisServer) -> Callable[[], None]:
    server.freeze()
    return server.thaw


@pytest.mark.parametrize("fault", [killed, frozen])
def test_outage(start_redis: Start, fault: Callable[..., Callable[[], None]], caplog: pytest.LogCaptureFixture) -> None:
    """Calls end soon and without an exception; after a few nothing is asked, and once Redis is back it is again."""
    server = start_redis()

    async def scenario() -> None:
        async with connected(server.url, HASTY) as remote:
            await becomes(remote, None)
            said = len(caplog.records)
            mend = fault(server)
            answers = await asyncio.gather(*(ask(remote, b"a") for _ in range(5 * CALLS)))
            assert answers == [None] * 5 * CALLS
            assert not remote.available
            failures = remote.failures
            assert FAILURES <= failures < CALLS + FAILURES
            assert [await ask(remote, b"a") for _ in range(100)] == [None] * 100
            remote.put(b"k", b"v", 60)
            assert (remote.failures, remote.writes_dropped) == (failures, 1)
            mend()
            server.client.set(b"a", b"1")
            await becomes(remote, b"1")
        out, back = [record.getMessage() for record in caplog.records][said : said + 2]
        assert out.startswith(f"redis {server.url}: ")
        assert out.endswith("; asking nothing until it answers again")
        assert back == f"redis {server.url}: answers again"

    with caplog.at_level(logging.INFO, logger="levi"):
        play(scenario)


def test_restarted_between_calls(start_redis: Start) -> None:
    """A Redis that was replaced while nobody asked is asked at once; connections that it cut are no failure."""
    server = start_redis()

    async def scenario() -> None:
        async with connected(server.url) as remote:
            await asyncio.gather(*(remote.get([b"a"]) for _ in range(CALLS)))
            server.kill()
            server.start()
            server.client.set(b"a", b"2")
            for _ in range(CALLS + 1):
                assert await ask(remote, b"a") == [b"2"]
            assert remote.failures == 0

    play(scenario)


def test_a_single_failure_is_forgiven() -> None:
    """Only failures one after the other count: an answer in between starts the count anew."""

    async def scenario() -> None:
        good, bad = b"*2\r\n_\r\n_\r\n", b":1\r\n"
        script = iter([good, good, *3 * [*(FAILURES - 1) * [bad], good], *FAILURES * [bad]])

        async def moody(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(10_000):
                writer.write(next(script) if b"MGET" in data else greeting(data))

        async with listening(moody) as address, connected(f"redis://{address}") as remote:
            for _ in range(3):
                for _ in range(FAILURES - 1):
                    assert await ask(remote, b"a", b"b") is None
                assert await ask(remote, b"a", b"b") == [None, None]
            for _ in range(FAILURES):
                assert remote.available
                assert await ask(remote, b"a", b"b") is None
            assert not remote.available

    play(scenario)


def test_one_probe_at_a_time() -> None:
    """While a server accepts connections and says nothing, no more than one probe waits for it."""

    async def scenario() -> None:
        now = most = total = 0

        async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            nonlocal now, most, total
            now, total = now + 1, total + 1
            most = max(most, now)
            while await reader.read(1000):
                pass
            now -= 1

        async with listening(silent) as address, connected(f"redis://{address}") as remote:
            assert not remote.available
            most = now
            await until_async(lambda: total >= 2)
            assert [await ask(remote, b"a") for _ in range(50)] == [None] * 50
            assert most == 1
            assert remote.failures == 0

    play(scenario)


def test_a_slow_redis_stays_away() -> None:
    """A server that connects but answers later than a call may wait is not asked again."""

    async def scenario() -> None:
        asked = 0

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            while data := await reader.read(10_000):
                if b"MGET" in data:
                    asked += 1
                    await asyncio.sleep(0.2)
                    writer.write(b"*2\r\n_\r\n_\r\n")
                else:
                    writer.write(greeting(data))

        async with listening(slow) as address, connected(f"redis://{address}", HASTY) as remote:
            assert not remote.available
            await until_async(lambda: asked >= 6)  # two a probe
            assert not remote.available

    play(scenario)


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1000)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


async def ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    await reader.read(1000)


async def noise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1000)
    writer.write(os.urandom(10_000))


async def pong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(1000):
        writer.write(b"+PONG\r\n")


async def one_value(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says hello properly, and answers every MGET with one value."""
    while data := await reader.read(10_000):
        writer.write(b"*1\r\n$1\r\nx\r\n" if b"MGET" in data else greeting(data))


async def numbers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers MGET with as many values as were asked for, which are no bytes."""
    while data := await reader.read(10_000):
        writer.write(b"*2\r\n:1\r\n:2\r\n" if b"MGET" in data else greeting(data))


@pytest.mark.parametrize("handler", [http, ssh, noise, pong, one_value, numbers])
def test_no_redis(handler: Handler) -> None:
    """A port on which something else listens is an error at start that says so; at run time it is an outage."""

    async def scenario() -> None:
        async with listening(handler) as address:
            remote = Remote(f"redis://u:secret@{address}", PATIENT)
            with pytest.raises(RemoteError, match="is it another service's port") as caught:
                await remote.start()
            assert str(caught.value).startswith(f"redis://{address}: ")
            running = Remote(f"redis://{address}", PATIENT)
            await exhaust(running)
            await running.close()

    play(scenario)


def test_replaced_by_garbage(start_redis: Start) -> None:
    """A Redis whose port falls to another service and back is left alone meanwhile."""
    server = start_redis()

    async def scenario() -> None:
        async with connected(server.url) as remote:
            server.kill()
            async with listening(noise, server.port):
                await exhaust(remote)
                assert await ask(remote, b"a") is None
            server.start()
            await becomes(remote, None)

    play(scenario)


def test_full(start_redis: Start) -> None:
    """A full Redis refuses writes, which is counted, and is read as before."""
    server = start_redis()
    server.client.set("a", "1")
    server.client.config_set("maxmemory", 1)
    with pytest.raises(redis.ResponseError, match="maxmemory"):
        server.client.set("b", "1")

    async def scenario() -> None:
        async with connected(server.url) as remote:
            for _ in range(2 * FAILURES):
                remote.put(b"k", b"v", 60)
            await until_async(lambda: remote.write_failures == 2 * FAILURES)
            assert await ask(remote, b"a", b"k") == [b"1", None]
            assert (remote.available, remote.failures) == (True, 0)

    play(scenario)


def test_writes_do_not_pile_up(start_redis: Start) -> None:
    """While Redis is frozen, a bounded number of writes wait, and they end."""
    server = start_redis()

    async def scenario() -> None:
        async with connected(server.url, HASTY) as remote:
            await until_async(lambda: remote.available)
            server.freeze()
            for number in range(10 * WRITES):
                remote.put(b"%d" % number, b"v", 60)
            assert remote.writes_dropped == 9 * WRITES
            await until_async(lambda: remote.write_failures == WRITES)
            server.thaw()

            def written() -> bool:
                remote.put(b"again", b"v", 60)
                return server.client.get("again") == b"v"

            await until_async(written)

    play(scenario)


def test_not_there_at_start(start_redis: Start) -> None:
    """A Redis that is not up yet is no error: the server starts, and asks it when it has come."""
    server = start_redis()
    server.kill()

    async def scenario() -> None:
        async with connected(server.url) as remote:
            assert not remote.available
            assert await ask(remote, b"a") is None
            server.start()
            await becomes(remote, None)

    play(scenario)


@pytest.mark.parametrize("url", ["redis://nobody.invalid", "redis+cluster://127.0.0.1:1", "unix:///nowhere/redis.sock"])
def test_unreachable(url: str) -> None:
    """What cannot be reached is waited for, whatever the reason."""

    async def scenario() -> None:
        async with connected(url) as remote:
            assert not remote.available
            assert await ask(remote, b"a") is None

    play(scenario)


@pytest.mark.parametrize("login", ["", ":wrong@", "nobody:secret@"])
def test_password(start_redis: Start, login: str) -> None:
    """A missing or wrong password is an error at start that says what to do and does not show what was given."""
    server = start_redis(password="secret")

    async def scenario() -> None:
        with pytest.raises(RemoteError, match="put user and password into the URL") as caught:
            await Remote(f"redis://{login}127.0.0.1:{server.port}", PATIENT).start()
        assert str(caught.value).startswith(f"redis://127.0.0.1:{server.port}: ")
        assert "wrong" not in str(caught.value)
        async with connected(server.url) as remote:
            assert await ask(remote, b"a") == [None]
            server.kill()
            server.start()
            assert await ask(remote, b"a") == [None]

    play(scenario)


def test_permissions(start_redis: Start) -> None:
    """A user who may not read our keys is an error at start that says what it needs."""
    server = start_redis()
    server.client.execute_command("ACL", "SETUSER", "bob", "on", ">secret", "~other:*", "+@all")

    async def scenario() -> None:
        with pytest.raises(RemoteError, match=r"the user needs MGET, SET and DEL on keys levi:\*"):
            await Remote(f"redis://bob:secret@127.0.0.1:{server.port}", PATIENT).start()

    play(scenario)


def test_no_such_database(start_redis: Start) -> None:
    """A database that there is not is an error at start; one that there is, is used."""
    server = start_redis()

    async def scenario() -> None:
        with pytest.raises(RemoteError, match="DB index is out of range"):
            await Remote(f"{server.url}/99", PATIENT).start()
        async with connected(f"{server.url}/3") as remote:
            remote.put(b"k", b"v", 60)
            await until_async(lambda: server.client.info("keyspace").get("db3"))

    play(scenario)


def test_socket(start_redis: Start, tmp_path: Path) -> None:
    """A Redis on a local socket is reached by the socket's path."""
    start_redis("--unixsocket", str(tmp_path / "redis.sock"))

    async def scenario() -> None:
        async with connected(f"unix://{tmp_path / 'redis.sock'}") as remote:
            assert await ask(remote, b"a") == [None]

    play(scenario)


def test_tls(start_redis: Start, tmp_path: Path) -> None:
    """`rediss://` speaks TLS and checks the certificate; one that nobody vouches for is an error at start."""
    server = start_redis()
    server.client.set("a", "1")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", server.port)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(100_000):
                target.write(data)
            target.close()

        await asyncio.gather(pump(reader, outer), pump(inner, writer))

    async def scenario() -> None:
        async with listening(forward, tls=context) as address:
            async with connected(f"rediss://{address}?ssl_ca_certs={tmp_path / 'ca.pem'}") as remote:
                assert await ask(remote, b"a") == [b"1"]
            with pytest.raises(RemoteError, match="certificate"):
                await Remote(f"rediss://{address}", PATIENT).start()

    play(scenario)


@pytest.fixture
def cluster(start_redis: Start) -> tuple[RedisServer, RedisServer]:
    """Two nodes that share the slots."""
    options = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf")
    one, two = start_redis(*options), start_redis(*options)
    one.client.execute_command("CLUSTER", "ADDSLOTS", *range(8192))
    two.client.execute_command("CLUSTER", "ADDSLOTS", *range(8192, 16384))
    one.client.execute_command("CLUSTER", "MEET", "127.0.0.1", two.port)
    for node in (one, two):
        until(lambda node=node: b"cluster_state:ok" in node.client.execute_command("CLUSTER", "INFO"))
    return one, two


def test_cluster(cluster: tuple[RedisServer, RedisServer]) -> None:
    """Keys of one call may lie on several nodes; values come in the order of the keys all the same."""

    async def scenario() -> None:
        async with connected(f"redis+cluster://127.0.0.1:{cluster[0].port}") as remote:
            keys = [b"%d" % number for number in range(2 * WRITES)]
            for part in (keys[:WRITES], keys[WRITES:]):
                for key in part:
                    remote.put(key, b"value " + key, 60)
                await until_async(lambda: not remote._writes)
            assert remote.write_failures == 0
            assert all(node.client.dbsize() > 0 for node in cluster)
            assert await ask(remote, b"none", *keys) == [None, *(b"value " + key for key in keys)]

    play(scenario)


def test_a_cluster_that_lost_a_node(cluster: tuple[RedisServer, RedisServer]) -> None:
    """While a node is frozen calls that need it end soon without an answer, and it is used again when it is back."""

    async def scenario() -> None:
        keys = [b"%d" % number for number in range(20)]
        async with connected(f"redis+cluster://127.0.0.1:{cluster[0].port}", HASTY) as remote:
            await until_async(lambda: remote.available)
            cluster[1].freeze()
            while remote.available:
                assert await ask(remote, *keys) in (None, [None] * 20)  # what was answered before the freeze
            cluster[1].thaw()
            await becomes(remote, None)

    play(scenario)


def test_a_cluster_must_be_named_one(start_redis: Start, cluster: tuple[RedisServer, RedisServer]) -> None:
    """A cluster that is addressed as a server, or a server as a cluster, is an error at start that says which it is."""
    single = start_redis()

    async def scenario() -> None:
        with pytest.raises(RemoteError, match=r"it is a Redis Cluster; write redis\+cluster://"):
            await Remote(cluster[0].url, PATIENT).start()
        with pytest.raises(RemoteError, match=r"redis\+cluster:// is for a cluster only"):
            await Remote(f"redis+cluster://127.0.0.1:{single.port}", PATIENT).start()

    play(scenario)


def test_close_at_any_time(start_redis: Start) -> None:
    """A client that never asked, one that heals, one whose probe is under way and one with writes under way can be
    closed, and leave nothing open.
    """
    server = start_redis()
    lines = 0

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        nonlocal lines
        lines += 1
        await reader.read()

    async def scenario() -> None:
        async with listening(silent) as address, connected(f"redis://{address}", HASTY):
            await until_async(lambda: lines == 2)
        await Remote(server.url, PATIENT).close()
        async with connected(f"redis://127.0.0.1:{free_port()}") as remote:
            assert not remote.available
        async with connected(server.url) as remote:
            server.freeze()
            remote.put(b"k", b"v", 60)
            server.thaw()

    play(scenario)
    gc.collect()  # what was not closed says so
