"""What Prometheus may read. No label ever holds an id, and every label has few values.

One process keeps its numbers in memory. Several workers keep them in mapped files of one folder, each in its own, and
whichever is asked adds them all up.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, values
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics import disable_created_metrics
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from levi_serve.bundle import AnyArray
from levi_serve.metrics_fleet import FleetMetrics, Serving
from levi_serve.store import Counts

Observe = Callable[[float], None]

_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SIDES = ("user", "item")
_PROBLEMS = ("overloaded", "deadline", "not-ready", "row-unavailable", "model-output", "internal")
"""Those that are not the client's doing: alerts look at them from the start."""
_SHEDS = ("full", "late", "gone")
_REDIS_FAILURES = ("call", "write", "dropped")
_TIERS = tuple(field.name for field in fields(Counts))
_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})


class Metrics:
    """One server's metrics."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, shared: Path | None = None, worker: int = 0) -> None:
        """Start from zero; or, as one of several workers, from where the last one of this number stopped."""
        # The library chooses where numbers live by a variable of its module. They belong to the worker's number and
        # not to its process id: a worker that replaces another counts on in the same files, so no counter goes back
        # and no files pile up.
        values.ValueClass = values.MutexValue if shared is None else values.MultiProcessValue(lambda: worker)
        disable_created_metrics()
        self._registry = CollectorRegistry()
        self._shared = shared
        registry: CollectorRegistry | None = self._registry
        if shared is None:
            ProcessCollector(namespace="levi", registry=registry)
        else:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(shared)
            (shared / f"{worker}.pid").write_text(str(os.getpid()))
            MultiProcessCollector(registry, str(shared))
            _Processes(shared, self._registry)
            registry = None  # what is read is what lies in the files, one's own included
        self.fleet = FleetMetrics(registry)
        self._serving = Serving(shared, worker)
        self._registry.register(self._serving)
        self._requests = Histogram(
            "levi_http_request_duration_seconds",
            "Time from a request's head to the end of its answer.",
            ["route", "method", "status"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._errors = Counter("levi_errors", "Requests answered with a problem.", ["problem"], registry=registry)
        self._sizes = Histogram(
            "levi_batch_size", "Items in one model run.", ["lane"], buckets=_SIZES, registry=registry
        )
        self._runs = Histogram(
            "levi_batch_duration_seconds",
            "Time of one model run, its tokenisation and gathering included.",
            ["lane"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._tokenising = Histogram(
            "levi_tokenise_duration_seconds",
            "Time in which one model run's entities or pairs became token ids.",
            ["lane"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._inference = Histogram(
            "levi_infer_duration_seconds",
            "Time of the graph in one model run; of a whole pass through the catalogue in the lane `recommend`.",
            ["lane"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._tokens = Counter(
            "levi_tokens", "Tokens that went through the backbone.", ["lane", "kind"], registry=registry
        )
        self._waits = Histogram(
            "levi_queue_wait_seconds",
            "How long the oldest item of a model run had waited for it.",
            ["lane"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue = Gauge(
            "levi_queue_depth",
            "Items that wait for a model run.",
            ["lane"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._limit = Gauge(
            "levi_queue_limit",
            "Items that may wait for a model run; more are refused.",
            ["lane"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._shed = Counter(
            "levi_shed_items",
            "Items that were given up without an answer.",
            ["lane", "reason"],
            registry=registry,
        )
        self._lookups = Counter(
            "levi_store_lookups",
            "Entities looked up, by the tier that had them or why none had.",
            ["tier"],
            registry=registry,
        )
        self._degraded = Counter(
            "levi_degraded",
            "Entities rated as unknown ones, since their row could not be had.",
            ["side"],
            registry=registry,
        )
        self._redis_errors = Counter("levi_redis_errors", "Calls of Redis that failed.", ["kind"], registry=registry)
        self._redis_seconds = Histogram(
            "levi_redis_duration_seconds",
            "Time of a call of Redis that was answered.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._breaker = Gauge(
            "levi_redis_breaker_open",
            "Workers that do not ask Redis at the moment, since it failed.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._ready = Gauge(
            "levi_ready", "Workers with a model in service.", registry=registry, multiprocess_mode="livesum"
        )
        self._left_out = Counter(
            "levi_items_left_out",
            "Items that were not recommended, since the model gave no finite number for them.",
            registry=registry,
        )
        for counter, labels in (
            (self._errors, _PROBLEMS),
            (self._lookups, _TIERS),
            (self._redis_errors, _REDIS_FAILURES),
            (self._degraded, _SIDES),
        ):
            for label in labels:
                counter.labels(label)  # a rate needs the zero that came before the first event
        self._tiers = {tier: self._lookups.labels(tier) for tier in _TIERS}
        self._observers: dict[tuple[str, str, str], Observe] = {}
        self._problems: dict[str, Callable[[], None]] = {}
        self._depths: dict[str, list[Callable[[], int]]] = {}
        self._redis: list[tuple[Callable[[], None], Callable[[], bool]]] = []
        """Of each version's Redis: what counts its failures, and whether it is asked."""
        self._monitor: Collector | None = None

    def request(self, route: str, method: str, status: str, seconds: float) -> None:
        """Count one answered request under the route's template."""
        if method not in _METHODS:
            method = "other"
        observe = self._observers.get((route, method, status))
        if observe is None:
            observe = self._observer(route, method, status)
        observe(seconds)

    def _observer(self, route: str, method: str, status: str) -> Observe:
        """Looking a child up by its labels costs more than the observation."""
        observe = self._requests.labels(route, method, status).observe
        self._observers[route, method, status] = observe
        return observe

    def problem(self, name: str) -> None:
        """Count one problem by its kind."""
        count = self._problems.get(name)
        if count is None:
            count = self._problems[name] = self._errors.labels(name).inc
        count()

    def observe_batches(self, lane: str) -> Callable[[int, float, float], None]:
        """What a batcher calls with the size, the duration [s] and the oldest item's wait [s] of each run."""
        sizes, runs, waits = self._sizes.labels(lane), self._runs.labels(lane), self._waits.labels(lane)

        def observe(size: int, seconds: float, waited: float) -> None:
            sizes.observe(size)
            runs.observe(seconds)
            waits.observe(waited)
            if self._shared is not None:
                self._show_gauges()

        return observe

    def observe_tokenising(self, lane: str) -> Observe:
        """What hears of the time [s] in which one run's sentences became token ids."""
        observe: Observe = self._tokenising.labels(lane).observe
        return observe

    def observe_inference(self, lane: str) -> Observe:
        """What hears of the time [s] of one run's graph."""
        observe: Observe = self._inference.labels(lane).observe
        return observe

    def count_tokens(self, lane: str) -> Callable[[AnyArray], None]:
        """What a backbone calls with the attention mask [B, T] of each run."""
        real, padding = self._tokens.labels(lane, "real"), self._tokens.labels(lane, "padding")

        def count(mask: AnyArray) -> None:
            told = int(mask.sum())
            real.inc(told)
            padding.inc(mask.size - told)

        return count

    def count_shed(self, lane: str) -> Callable[[str, int], None]:
        """What a batcher calls with the reason and number of items that it gives up."""
        counters = {reason: self._shed.labels(lane, reason) for reason in _SHEDS}
        return lambda reason, items: counters[reason].inc(items)

    def watch_queue(self, lane: str, depth: Callable[[], int], limit: int) -> Callable[[], None]:
        """Read a queue's depth whenever the metrics are read; other workers read what it was after the last run. At
        most `limit` items wait in it. What several versions have under one name is added up. What is returned ends it.
        """
        depths = self._depths.setdefault(lane, [])
        depths.append(depth)
        self._limit.labels(lane).set(limit)
        return lambda: depths.remove(depth)

    def count_lookups(self) -> Callable[[Counts], None]:
        """What counts one store's look-ups when it is shown how many there have been."""
        seen = dict.fromkeys(_TIERS, 0)

        def count(so_far: Counts) -> None:
            for tier, counter in self._tiers.items():
                total = getattr(so_far, tier)
                if total != seen[tier]:
                    counter.inc(total - seen[tier])
                    seen[tier] = total

        return count

    def degraded(self, side: int) -> None:
        """Count an entity that was rated as an unknown one, since its row could not be had; side 0 is the user."""
        self._degraded.labels(_SIDES[side]).inc()

    def watch_redis(self, failures: Callable[[], dict[str, int]], available: Callable[[], bool]) -> Callable[[], None]:
        """Read how many calls have failed, by kind, and whether any are made, with the queues. What is returned ends
        it.
        """
        seen: dict[str, int] = {}

        def count() -> None:
            for kind, total in failures().items():
                self._redis_errors.labels(kind).inc(total - seen.get(kind, 0))
                seen[kind] = total

        watched = (count, available)
        self._redis.append(watched)

        def end() -> None:
            count()
            self._redis.remove(watched)

        return end

    def redis_call(self, seconds: float) -> None:
        """One call of Redis that was answered."""
        self._redis_seconds.observe(seconds)

    def left_out(self, items: int) -> None:
        """Count items that were not recommended, since the model gave no finite number for them."""
        self._left_out.inc(items)

    def serving(self, model: str, version: int, views: str) -> None:
        """A model has come into service."""
        self._serving.change(model, str(version), views)

    def show_monitor(self, monitor: Collector) -> None:
        """Read the monitor's metrics with all others; only that of the version in service."""
        if self._monitor is not None:
            self._registry.unregister(self._monitor)
        self._monitor = monitor
        self._registry.register(monitor)

    @property
    def shared(self) -> Path | None:
        """Folder of what workers share."""
        return self._shared

    def ready(self, ready: bool) -> None:
        """Whether the server takes traffic."""
        self._ready.set(ready)

    def text(self) -> bytes:
        """The exposition, of all workers."""
        self._show_gauges()
        return generate_latest(self._registry)

    def _show_gauges(self) -> None:
        for lane, depths in self._depths.items():
            self._queue.labels(lane).set(sum(depth() for depth in depths))
        if self._redis:
            self._breaker.set(not all(available() for _, available in self._redis))
        for count, _ in self._redis:
            count()


def forget_worker(shared: Path, worker: int) -> None:
    """A worker has ended: what it was doing goes, what it has counted stays."""
    mark_process_dead(worker, str(shared))
    for kept in ("pid", "serving"):
        (shared / f"{worker}.{kept}").unlink(missing_ok=True)


class _Processes(Collector):
    """Memory, CPU time and open files of each worker, under its number. They are not added up: workers share pages of
    the tables, and a sum over files that a worker leaves behind would mean nothing.
    """

    def __init__(self, shared: Path, registry: CollectorRegistry) -> None:
        """`shared` holds one file `N.pid` per worker."""
        self._shared = shared
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Read /proc for each worker."""
        merged: dict[str, Metric] = {}
        for file in sorted(self._shared.glob("*.pid")):
            with suppress(FileNotFoundError):  # it has just ended
                for metric in ProcessCollector("levi", file.read_text, registry=None).collect():
                    whole = merged.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                    for sample in metric.samples:
                        whole.add_sample(sample.name, {"worker": file.stem}, sample.value)
        return merged.values()
