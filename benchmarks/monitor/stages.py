"""The stages: each takes the fitted runs by text and seed and returns what goes into the results."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.monitor.peers import matched
from benchmarks.monitor.peers import peers as all_peers
from benchmarks.monitor.pools import Fitted, Pool, Runs, Traffic, hidden_traffic, traffic
from benchmarks.monitor.simulate import Share, Source, pool_bins, ramp, run_lengths, switch
from benchmarks.monitor.simulate import delays as simulate
from levi_serve.bundle import AnyArray, DoubleArray
from levi_serve.bundle.reference import Reference
from levi_serve.bundle.scores import quantile
from levi_serve.monitor.detector import Detector
from levi_serve.monitor.streams import Streams, threshold
from levi_serve.monitor.watch import Monitor

STREAMS = 70
"""Of each seed."""
BATCH = 32
LIMIT = 20_000
"""Requests after which a stream without alarm is given up."""
VIEWS = ("corrupt text", "broken layer", "stale rows")
"""Shifts of what the heads read."""
BUDGETS = {"10⁴ requests": 10_000 / 86_400 / 1000, "30 days": 30.0}
"""Days at 1,000 predictions a second."""


def delays(runs: Runs, cache: Path) -> Any:
    """Requests from the change to the alarm, by shift, share and budget."""
    found: dict[str, Any] = {}
    cases: dict[str, tuple[str, Share]] = {
        **{f"OOD genres, {share:.0%}": ("OOD genres", switch(share)) for share in (0.01, 0.05, 0.1, 0.3, 1.0)},
        **{f"OOD genres, ramp over {n:,}": ("OOD genres", ramp(n)) for n in (1_000, 10_000)},
        **{
            f"{name}, {share:.0%}": (name, switch(share))
            for name in ("cold users", "cold movies", "corrupt text", "broken layer", "stale rows", "all heads + 0.3")
            for share in (0.1, 1.0)
        },
        **{name: (name, switch(1.0)) for name in ("benign, users alike", "benign, items alike")},
    }
    for text, of in runs.items():
        for seed, run in enumerate(of):
            whole, hidden = traffic(run, of[(seed + 1) % len(of)].model, cache), hidden_traffic(run)
            for budget, days in BUDGETS.items():
                # What a movie's sentence tells does not change which ids are new; the paper's heads tell more of views.
                wanted = {
                    case: c for case, c in cases.items() if text == "titles" or (text == "paper" and c[0] in VIEWS)
                }
                if text == "titles" and days > 1:
                    wanted |= {f"genre {name}, 100%": (f"genre {name}", switch(1.0)) for name in run.split.slices}
                for case, (pool, share) in wanted.items():
                    _add(found, f"{text} · {budget} · {case}", _delay(whole, pool, share, days, True, seed))
                for part in (0.1, 0.3, 1.0):
                    case = f"{text} · {budget} · without id novelty, OOD genres, {part:.0%}"
                    _add(found, case, _delay(hidden, "OOD genres", switch(part), days, False, seed))
    return {case: _summary(parts) for case, parts in found.items()}


def _delay(found: Traffic, pool: str, share: Share, days: float, new: bool, seed: int) -> dict[str, Any]:
    streams = Streams.of(found.reference, new)
    inside, outside = (_source(found.reference, found.pools[p], new) for p in ("id", pool))
    limit = threshold(days, 1000)
    got, early = simulate(streams, inside, outside, share, limit, STREAMS, LIMIT, seed)
    return {"delays": got, "early": early, "oracle": _oracle(streams, inside, outside, share, days, seed)}


def _source(reference: Reference, pool: Pool, new: bool) -> Source:
    return Source(pool_bins(reference, pool, new), pool.user)


def _oracle(streams: Streams, inside: Source, outside: Source, share: Share, days: float, seed: int) -> AnyArray:
    """CUSUM of the true likelihood ratio of the best single score: it knows both densities, the share and the bins."""
    part = float(share(np.array(10**9)))
    best, gain = None, -1.0
    for row in range(len(streams.scores)):
        p, q = (np.bincount(s.bins[:, row], minlength=20) / len(s.bins) for s in (inside, outside))
        mixed = (1 - part) * p + part * q
        known = (p > 0) & (mixed > 0)
        ratio = np.where(known, np.log(np.where(known, mixed, 1) / np.where(known, p, 1)), np.where(mixed > 0, 20.0, 0))
        if mixed @ ratio > gain:
            best, gain = (row, ratio), float(mixed @ ratio)
    assert best is not None
    rng = np.random.default_rng(seed)
    row, ratio = best
    needed = np.log(max(days * 86_400 * 1000, 1.0))
    total, at = np.zeros(STREAMS), np.full(STREAMS, LIMIT)
    for step in range(1, LIMIT // 100):
        active = np.flatnonzero(at == LIMIT)
        if not len(active):
            break
        since = np.arange(100 * (step - 1), 100 * step)
        strange = rng.random((len(active), 100)) < share(since)
        a = inside.bins[rng.integers(0, len(inside.bins), strange.shape), row]
        b = outside.bins[rng.integers(0, len(outside.bins), strange.shape), row]
        for k, gains in enumerate(ratio[np.where(strange, b, a)].T):
            total[active] = np.maximum(total[active], 0) + gains
            rung = active[(total[active] >= needed) & (at[active] == LIMIT)]
            at[rung] = since[k] + 1
    return at


def _add(found: dict[str, Any], name: str, one: Any) -> None:
    found.setdefault(name, []).append(one)


def _summary(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    every = np.concatenate([part["delays"] for part in parts])
    oracle = np.concatenate([part["oracle"] for part in parts])
    return {
        "median": float(np.median(every)),
        "p95": float(np.quantile(every, 0.95)),
        "share_alarmed": float((every < LIMIT).mean()),
        "streams": len(every),
        "median_by_seed": [float(np.median(part["delays"])) for part in parts],
        "alarms_before_the_change": int(sum(part["early"] for part in parts)),
        "oracle_median": float(np.median(oracle)),
    }


def peers(runs: Runs, cache: Path) -> Any:
    """Median delays at a measured mean run length of 10⁴ requests, all over the same streams of the heads' spread."""
    found: dict[str, Any] = {}
    for seed, run in enumerate(runs["titles"]):
        whole = traffic(run, None, cache)
        rng = np.random.default_rng(seed)
        spread = {name: pool.scores[:, 0].astype(np.float64) for name, pool in whole.pools.items()}
        quiet = rng.choice(spread["id"], (60, 30_000))
        shares = (0.1, 0.3, 1.0)
        shifted = {
            share: np.where(
                (rng.random((STREAMS, 12_000)) < share) & (np.arange(12_000) >= 2_000),
                rng.choice(spread["OOD genres"], (STREAMS, 12_000)),
                rng.choice(spread["id"], (STREAMS, 12_000)),
            )
            for share in shares
        }
        for peer in all_peers(whole.reference.tables["spread"]):
            knob, length = matched(peer, quiet, 10_000)
            for share, streams in shifted.items():
                rings = peer.rings(streams, knob)
                late = rings[rings > 2_000] - 2_000
                _add(found, f"{peer.name} · {share:.0%}", {"knob": knob, "run_length": length, "late": late})
        for name, new in (("this monitor", True), ("this monitor, spread alone", False)):
            reference = whole.reference
            streams_of = Streams.of(reference, new)
            inside, outside = (_source(reference, whole.pools[p], new) for p in ("id", "OOD genres"))
            if not new:
                streams_of = _only(streams_of, "spread")
            limit, length = _matched_threshold(streams_of, inside, seed)
            for share in shares:
                late, _ = simulate(streams_of, inside, outside, switch(share), limit, STREAMS, 10_000, seed, 2_000)
                _add(found, f"{name} · {share:.0%}", {"knob": limit, "run_length": length, "late": late})
    return {
        name: {
            "median_delay": float(np.median(np.concatenate([p["late"] for p in parts]))),
            "share_alarmed_in_10000": float((np.concatenate([p["late"] for p in parts]) < 10_000).mean()),
            "run_length": [p["run_length"] for p in parts],
            "knob": [p["knob"] for p in parts],
        }
        for name, parts in found.items()
    }


def _only(streams: Streams, score: str) -> Streams:
    kept = [i for i, stream in enumerate(streams.streams) if stream.score == score]
    return Streams(
        streams.scores,
        tuple(streams.streams[i] for i in kept),
        streams.rows[kept],
        np.full(len(kept), 1 / len(kept)),
        streams.levels[kept],
        streams.factors[kept],
    )


def _matched_threshold(streams: Streams, inside: Source, seed: int) -> tuple[float, float]:
    """The evidence at which in-distribution streams ring every 10⁴ requests on average, and what they do there; never
    more than the one that guarantees it.
    """
    for limit in np.arange(0.5, threshold(BUDGETS["10⁴ requests"], 1000), 0.25):
        lengths, _ = run_lengths(streams, inside, float(limit), 60, 30_000, seed)
        mean = lengths.sum() / max(1, int((lengths < 30_000).sum()))
        if mean >= 10_000:
            return float(limit), float(mean)
    return threshold(BUDGETS["10⁴ requests"], 1000), float("inf")


def replay(runs: Runs, cache: Path) -> Any:
    """In-distribution traffic through the monitor itself: shuffled, by user, with a hot user; and run lengths."""
    found: dict[str, Any] = {}
    for seed, run in enumerate(runs["titles"]):
        whole = traffic(run, None, cache)
        inside = whole.pools["id"]
        for name in ("shuffled", "user after user", "one user sends 90 %"):
            wanted = 10_000_000 if name == "shuffled" and seed == 0 else 1_000_000
            _add(found, name, _replayed(whole.reference, inside, name, wanted))
        lengths, most = run_lengths(
            Streams.of(whole.reference),
            _source(whole.reference, inside, True),
            threshold(BUDGETS["10⁴ requests"], 1000),
            STREAMS,
            50_000,
            seed,
        )
        rung = int((lengths < 50_000).sum())
        _add(
            found,
            "run length at a budget of 10⁴",
            {
                "streams": STREAMS,
                "requests": int(lengths.sum()),
                "alarms": rung,
                "mean_run_length": float(lengths.sum() / rung) if rung else None,
                "largest_evidence": float(most.max()),
            },
        )
    return found


def _order(pool: Pool, name: str, n: int, rng: np.random.Generator) -> AnyArray:
    """Rows of the next n requests."""
    if name == "user after user":
        return np.resize(np.argsort(pool.user, kind="stable"), n)
    rows = rng.integers(0, len(pool), n)
    if name == "one user sends 90 %":
        hot = np.flatnonzero(pool.user == np.bincount(pool.user).argmax())
        return np.where(rng.random(n) < 0.9, rng.choice(hot, n), rows)
    return rows


def _replayed(reference: Reference, pool: Pool, order: str, wanted: int, days: float = 30.0) -> dict[str, Any]:
    """Requests through the monitor itself, 32 at a time."""
    rng = np.random.default_rng(0)
    monitor = Monitor(reference, Detector.of(reference, threshold(days, 1000)), None)
    most, memory, process = -np.inf, [], psutil.Process()
    for _ in range(wanted // 100_000):
        for rows in _order(pool, order, 100_000, rng).reshape(-1, BATCH):
            monitor.observe(*_seen(pool, rows))
        record = monitor.read()
        most = max(most, monitor.detector.total(record))
        memory.append(process.memory_info().rss)
    record = monitor.read()
    return {
        "requests": int(record["predictions"]),
        "blocks": int(record["blocks"]),
        "alarms": int(record["alarm_count"]),
        "largest_evidence_seen": most,
        "threshold": monitor.detector.threshold,
        "memory_grew_mib": (memory[-1] - memory[0]) / 2**20,
    }


def errors(runs: Runs, cache: Path) -> Any:
    """The RMSE of each shifted slice as estimated without labels, against assuming the in-distribution one; and what
    labels of the other slices add: the median of what their squared errors are above the estimate, or their median
    error alone, which says nothing of the slice itself.
    """
    found: dict[str, Any] = {}
    for text, of in runs.items():
        parts: list[DoubleArray] = []
        for run in of:
            whole = traffic(run, None, cache)
            reference = whole.reference
            slices = [pool for name, pool in whole.pools.items() if name.startswith("genre ")]
            true = np.array([pool.squared.mean() for pool in slices])
            told = np.array([reference.squared_error[pool_bins(reference, p, False)[:, 0]].mean() for p in slices])
            above, other = (_median_of_others(values) for values in (true - told, true))
            guesses = np.stack([told, told + above, other, np.full(len(slices), reference.rmse**2)])
            parts.append(np.abs(np.sqrt(guesses) - np.sqrt(true)))
        names = ("estimated", "estimated_and_other_slices", "other_slices_alone", "assuming_id")
        medians = np.median(np.concatenate(parts, 1), axis=1).tolist()
        found[text] = {"slices": sum(p.shape[1] for p in parts), **dict(zip(names, medians, strict=True))}
    return found


def _median_of_others(values: DoubleArray) -> DoubleArray:
    """Of each, the median of all but it."""
    return np.array([np.median(np.delete(values, k)) for k in range(len(values))])


def cost(runs: Runs, cache: Path) -> Any:
    """Microseconds per prediction in batches of 32: the scores, `ood_score`, and the monitor with its blocks. Its state
    is changed as often as under load: whenever many blocks wait.
    """
    run = runs["titles"][0]
    whole = traffic(run, None, cache)
    pool, reference = whole.pools["id"], whole.reference
    user, item = Fitted.of(run).support(run.split.test)
    table = reference.tables["contrast"]
    batches = np.random.default_rng(0).integers(0, len(pool), (2000, BATCH))
    monitor = Monitor(reference, Detector.of(reference, threshold(30, 1000)), None)
    seen = [_seen(pool, rows) for rows in batches]
    heads = [(pool.heads[rows], (user[rows], item[rows])) for rows in batches]

    def watch() -> None:
        for one in seen:
            monitor.observe(*one)

    parts = {
        "scores_us": lambda: [reference.scorer(*one) for one in heads],
        "ood_score_us": lambda: [quantile(table, one[1][:, 1]) for one in seen],
        "monitor_us": watch,
    }
    found = {name: _fastest(part) / batches.size * 1e6 for name, part in parts.items()}
    return {**found, "all_us": sum(found.values()), "batch": BATCH}


def _fastest(work: Callable[[], Any], times: int = 7) -> float:
    """Seconds of CPU of the fastest of several times: what runs beside it on the machine only adds."""
    found = []
    for _ in range(times):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def _seen(pool: Pool, rows: AnyArray) -> Any:
    """What `Monitor.observe` is given of these rows of a pool."""
    heads = pool.heads[rows].astype(np.float64)
    return pool.user[rows].tolist(), pool.scores[rows], heads, (~pool.new[0][rows], ~pool.new[1][rows])
