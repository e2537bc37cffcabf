"""The peers: everybody serves the same graph and tables from one core, and they take turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.serving.bench import Bench, claim, spread
from benchmarks.serving.environments import installed
from benchmarks.serving.lineup import LINEUP, OURS, TOLERANCE, Contestant, Setting
from levi_serve.bundle.commands import RunError

IDLE_S = 3.0
P99_MS = 5.0
"""Of ours at half of its ceiling (entity views)."""
RATIOS = (
    (2.0, "mosec_null", "mosec with a scorer that does nothing"),
    (3.0, "mosec_null", "mosec with a scorer that does nothing (the aim)"),
    (2.0, "mosec_null_batched", "mosec with a scorer that does nothing, in batches"),
    (10.0, "bentoml_null", "BentoML with a scorer that does nothing"),
    (4.0, "fastapi_torch", "FastAPI + torch with the same tables"),
    (100.0, "fastapi_torch_backbone", "FastAPI + torch encoding each pair's sentences"),
)
"""What our throughput must be, over whose (entity views)."""
_SWEEP_S = 1.0


def compare(bench: Bench, only: Sequence[str] = ()) -> dict[str, Any]:
    """Throughput, latency, memory and idle CPU of each; several repeats in turn, ours among them."""
    chosen = [who for who in LINEUP if (not only or who.name in (*only, OURS.name)) and bench.bundle.views in who.views]
    results: dict[str, dict[str, Any]] = {}
    settings: dict[str, Setting] = {}
    for who in chosen:
        try:
            settings[who.name], results[who.name] = _best_setting(bench, who)
        except RunError as error:
            bench.say(f"{who.name}: left out: {error}")
            results[who.name] = {"left_out": str(error)}
    for turn in range(bench.repeats):
        for who in chosen:
            if who.name in settings:
                _measure(bench, who, settings[who.name], results[who.name], turn)
    for result in results.values():
        if result.get("runs"):
            result["summary"] = _summary(result["runs"])
    return {"servers": results, "ratios": _ratios(results)}


def _best_setting(bench: Bench, who: Contestant) -> tuple[Setting, dict[str, Any]]:
    """Try each setting for a moment; a setting that fails is recorded and not taken.

    Raises:
        RunError: it cannot be installed, or none of its settings works.

    """
    versions = installed(who.bin(bench.cache))
    tried: list[dict[str, Any]] = []
    for setting in who.settings:
        facts: dict[str, Any] = {"route": setting.route, **setting.variables}
        try:
            with bench.serve(who, setting) as server:
                report = bench.ceiling(server, [bench.singles(setting)], seconds=_SWEEP_S, warmup=_SWEEP_S / 2)
                facts["throughput"] = report.goodput
        except RunError as error:
            facts["failed"] = str(error)
        bench.say(f"{who.name}: {facts}")
        tried.append(facts)
    working = [(facts["throughput"], i) for i, facts in enumerate(tried) if "throughput" in facts]
    if not working:
        raise RunError(tried[0]["failed"])
    best = who.settings[max(working)[1]]
    return best, {
        "versions": {name: versions.get(name, "?") for name in who.packages},
        "setting": {"route": best.route, **best.variables},
        "tried": tried,
        "runs": [],
    }


def _measure(bench: Bench, who: Contestant, setting: Setting, result: dict[str, Any], turn: int) -> None:
    traffic = [bench.singles(setting, seed=bench.seed + turn)]
    try:
        with bench.serve(who, setting) as server:
            difference = None if who.tolerance is None else bench.difference(server, setting, who.tolerance)
            ceiling = bench.ceiling(server, traffic)
            half = bench.open(server, traffic, ceiling.goodput / 2)
            memory, idle = server.memory_mib(), server.cpu_share(IDLE_S)
    except RunError as error:
        bench.say(f"{who.name}: {error}")
        result.setdefault("failed", []).append(str(error))
        return
    bench.say(
        f"{who.name}: {ceiling.goodput:,.0f} requests/s; at half of it p50 {half.latency_ms.p50:.2f} ms, "
        f"p99 {half.latency_ms.p99:.2f} ms; {memory:.0f} MiB, idle {idle:.1%}"
    )
    result["runs"].append(
        {
            "turn": turn,
            "difference": difference,
            "ceiling": ceiling.model_dump(exclude={"windows"}),
            "half": half.model_dump(exclude={"windows"}),
            "memory_mib": memory,
            "idle_share": idle,
        }
    )


def _summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "throughput": spread([run["ceiling"]["goodput"] for run in runs]),
        "p50_ms": spread([run["half"]["latency_ms"]["p50"] for run in runs]),
        "p99_ms": spread([run["half"]["latency_ms"]["p99"] for run in runs]),
        "failed_at_half": sum(run["half"]["statuses"].get("200", 0) != run["half"]["scheduled"] for run in runs),
        "memory_mib": spread([run["memory_mib"] for run in runs]),
        "idle_share": spread([run["idle_share"] for run in runs]),
        "difference": max((run["difference"] for run in runs if run["difference"] is not None), default=None),
    }


def _ratios(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Our throughput over each other's, turn by turn: what slows the machine slows both."""
    ours = {run["turn"]: run["ceiling"]["goodput"] for run in results.get(OURS.name, {}).get("runs", [])}
    found: dict[str, list[float]] = {}
    for name, result in results.items():
        for run in result.get("runs", []):
            if name != OURS.name and run["turn"] in ours:
                found.setdefault(name, []).append(ours[run["turn"]] / run["ceiling"]["goodput"])
    return {name: spread(ratios) for name, ratios in found.items()}


def claims(views: str, servers: dict[str, Any], ratios: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """What must show of ours beside the others; whoever was not measured proves nothing."""
    ours = servers.get(OURS.name, {}).get("summary")
    if ours is None:
        return []
    right = ours["difference"]
    made = [claim(f"ratings and heads are those of ONNX Runtime to {TOLERANCE:g}", right, right <= TOLERANCE)]
    p99 = ours["p99_ms"]["median"]
    if views == "pair":
        peers = {name: servers[name]["summary"] for name in ratios}
        if not peers:
            return made
        best = max(peers, key=lambda name: peers[name]["throughput"]["median"])
        ratio, theirs = ratios[best]["median"], peers[best]["p99_ms"]["median"]
        return [
            *made,
            claim(f"at least the throughput of the best peer, {best}", ratio, ratio >= 1),
            claim(f"at no worse p99 than its {theirs:.0f} ms, each at half of its ceiling [ms]", p99, p99 <= theirs),
        ]
    for least, name, text in RATIOS:
        found = ratios[name]["median"] if name in ratios else None
        made.append(claim(f"≥ {least:g} × {text}", found, found is not None and found >= least))
    return [*made, claim(f"p99 ≤ {P99_MS:g} ms at half of our ceiling [ms]", p99, p99 <= P99_MS)]
