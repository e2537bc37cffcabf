"""A rating is one number: alone, in any batch, beside anybody, from whatever tier holds the row, under concurrency."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.serving.bench import Bench, claim
from benchmarks.serving.load import Traffic, get, post
from benchmarks.serving.peers.scorer import Pair
from benchmarks.serving.redis_server import running
from benchmarks.serving.server import Server
from levi_serve.bundle.commands import RunError

EXACT = 1e-5
PAIRS = 400
SIZES = (2, 3, 7, 31, 33, 100, 257)
"""Of POSTs: below, at and above what one run of the model takes."""
NEW = 40
_CONCURRENCY = 8
"""With more connections, lists would mostly be refused."""
_PATIENT = "X-Request-Timeout-Ms: 60000\r\n"
"""A list of pair views takes longer than a request gets that says nothing."""


def ratings(bench: Bench) -> dict[str, Any]:
    """Largest difference of a rating or head rating from ONNX Runtime, each pair alone; and of new entities' ratings
    from those of the first time.
    """
    with (
        tempfile.TemporaryDirectory(dir=bench.folder) as folder,
        running(bench.redis, Path(folder), bench.load_core) as redis,
    ):
        bench.levi("publish", "--redis", redis.url)
        remote = ("--redis", redis.url)
        only = (*remote, "--remote-only", ",".join(bench.bundle.names))
        off = {
            "entity views, rows from the table": _known(bench, ()),
            "entity views, rows from the cache or Redis": _known(bench, only),
            "entity views, rows from Redis, nothing kept": _known(bench, (*only, "--cache-mib", "0")),
        }
        new = _new(bench, remote)
    if bench.pair_bundle:
        off["pair views"] = _known(bench.with_bundle(bench.pair_bundle), ())
    made = [
        claim(f"{name}, {how}", worst, worst <= EXACT) for name, found in off.items() for how, worst in found.items()
    ]
    made += [claim(f"a new movie's row, {how}", worst, worst <= EXACT) for how, worst in new.items()]
    return {"known": off, "new": new, "claims": made}


def _known(bench: Bench, flags: Sequence[str]) -> dict[str, float]:
    """Pairs of the catalogue: one at a time, in POSTs of several sizes, and both at once over many connections."""
    pairs = bench.bundle.pairs(PAIRS, bench.seed)
    expected = bench.bundle.expected(pairs)
    rng = np.random.default_rng(bench.seed)
    groups = [rng.integers(PAIRS, size=size).tolist() for size in SIZES for _ in range(4)]
    user, item = bench.bundle.names
    singles = Traffic("single", [get(f"/predict?{user}={u}&{item}={i}", _PATIENT) for u, i in pairs])
    posts = Traffic("post", [_post(bench, [pairs[i] for i in group]) for group in groups])
    asked = {"alone": ([singles], 1), "in batches": ([posts], 1), "under concurrency": ([singles, posts], _CONCURRENCY)}
    places = {"alone": [[i] for i in range(PAIRS)], "in batches": groups}
    places["under concurrency"] = places["alone"] + groups
    with bench.serve(flags=flags) as server:
        return {how: _off(bench, server, *asked[how], expected, places[how]) for how in asked}


def _post(bench: Bench, pairs: Sequence[Pair]) -> bytes:
    return post("/predict", {"pairs": [dict(zip(bench.bundle.names, pair, strict=True)) for pair in pairs]}, _PATIENT)


def _off(
    bench: Bench,
    server: Server,
    traffic: Sequence[Traffic],
    connections: int,
    expected: npt.NDArray[np.float32],
    places: Sequence[Sequence[int]],
) -> float:
    """Largest difference under a load; `places` [requests] are the pairs that each request asks for."""
    run = bench.start(server, traffic, connections, keep=True, warmup=0.0, timeout=60.0)
    report = run.finish()
    if report.failed > report.statuses.get("429", 0) or not report.statuses.get("200"):  # lists may meet a full queue
        raise RunError(f"requests failed while ratings were compared: {report.statuses} {report.errors}")
    worst = 0.0
    for reply in run.replies():
        if reply.status == 200:
            worst = max(worst, float(np.abs(_numbers(reply.body) - expected[places[reply.request]]).max()))
    return worst


def _numbers(body: bytes) -> npt.NDArray[np.float64]:
    """Ratings and head ratings [B, 1 + n] of an answer."""
    found = json.loads(body)
    answers = found if isinstance(found, list) else [found]
    return np.array([[answer["rating"], *answer["heads"]] for answer in answers])


def _new(bench: Bench, remote: Sequence[str]) -> dict[str, float]:
    """Movies that the encoder has to see, each alone at first."""
    user, item = bench.bundle.names
    someone = bench.bundle.pairs(1, bench.seed)[0][0]
    pairs = [{user: someone, item: movie} for movie in bench.bundle.new_items(NEW, bench.seed)]

    def ask(server: Server, *groups: Sequence[dict[str, Any]]) -> npt.NDArray[np.float64]:
        bodies = [server.ask(post("/predict", {"pairs": list(group)}), timeout=60.0).body for group in groups]
        return np.concatenate([_numbers(body) for body in bodies])

    with bench.serve(flags=remote) as server:
        first = ask(server, *([pair] for pair in pairs))
        again = ask(server, pairs)
    with bench.serve(flags=remote) as server:
        elsewhere = ask(server, pairs)
        used = server.sample("levi_store_lookups_total", tier="encoder")
    if used:
        raise RunError(f"{used:g} rows were encoded once more instead of being read from Redis")
    with bench.serve() as server:
        together = ask(server, pairs)
    found = {
        "from the process that encoded it": again,
        "from Redis in another process": elsewhere,
        "encoded again, beside others": together,
    }
    return {how: float(np.abs(numbers - first).max()) for how, numbers in found.items()}
