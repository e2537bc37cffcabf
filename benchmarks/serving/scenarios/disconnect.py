"""Clients that send and hang up: what they asked for is not worked on any more."""

from __future__ import annotations

import socket
import time
from typing import Any

from benchmarks.serving.bench import Bench, claim
from benchmarks.serving.load import post
from benchmarks.serving.server import Server

CLIENTS = 40
NEW_ITEMS = 20
SHARE = 0.2
"""Of the CPU that the same requests cost when their clients wait."""
_LIMIT_S = 60.0


def disconnect(bench: Bench) -> dict[str, Any]:
    """CPU for the same heavy requests, with clients that wait and with clients that do not."""
    with bench.serve() as server:
        waited = _cost(bench, server, hang_up=False, seed=1)
        left = _cost(bench, server, hang_up=True, seed=2)
        depth = server.sample("levi_queue_depth")
    bench.say(f"CPU with clients that wait {waited:.2f} s, with clients that hang up {left:.2f} s; queued {depth:g}")
    return {
        "clients": CLIENTS,
        "new_items_each": NEW_ITEMS,
        "cpu_waited_s": waited,
        "cpu_hung_up_s": left,
        "queue_after": depth,
        "claims": [
            claim(f"hanging up saves ≥ {1 - SHARE:.0%} of the CPU", left / waited, left <= SHARE * waited),
            claim("nothing left in the queue", depth, depth == 0),
        ],
    }


def _cost(bench: Bench, server: Server, hang_up: bool, seed: int) -> float:
    """CPU seconds from the first request until the server is quiet again."""
    user, item = bench.bundle.names
    someone = bench.bundle.pairs(1, bench.seed)[0][0]
    new = bench.bundle.new_items(CLIENTS * NEW_ITEMS, 1000 + seed)
    bodies = [
        {"pairs": [{user: someone, item: i} for i in new[start : start + NEW_ITEMS]]}
        for start in range(0, len(new), NEW_ITEMS)
    ]
    before = server.cpu_s()
    clients = []
    for body in bodies:
        client = socket.create_connection(("127.0.0.1", server.port), timeout=_LIMIT_S)
        client.sendall(post("/predict", body, "X-Request-Timeout-Ms: 60000\r\n"))
        clients.append(client)
    for client in clients:
        if not hang_up:
            client.recv(1)
        client.close()
    return _quiet(server) - before


def _quiet(server: Server) -> float:
    """The CPU seconds used once the server has used none for half a second."""
    used, since = server.cpu_s(), time.monotonic()
    deadline = since + _LIMIT_S
    while time.monotonic() - since < 0.5 and time.monotonic() < deadline:
        time.sleep(0.05)
        now = server.cpu_s()
        if now > used + 0.011:  # the clock ticks in hundredths, and a quiet server may use one
            used, since = now, time.monotonic()
    return server.cpu_s()
