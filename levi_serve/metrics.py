"""What Prometheus may read. No label ever holds an id, and every label has few values."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})


class Metrics:
    """One server's metrics, in a registry of their own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        """Start from zero."""
        self._registry = CollectorRegistry()
        ProcessCollector(namespace="levi", registry=self._registry)
        self._requests = Histogram(
            "levi_http_request_duration_seconds",
            "Time from a request's head to the end of its answer.",
            ["route", "method", "status"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._errors = Counter("levi_errors", "Requests answered with a problem.", ["problem"], registry=self._registry)
        self._sizes = Histogram(
            "levi_batch_size", "Items in one model run.", ["lane"], buckets=_SIZES, registry=self._registry
        )
        self._runs = Histogram(
            "levi_batch_duration_seconds",
            "Time of one model run, its tokenisation and gathering included.",
            ["lane"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._queue = Gauge("levi_queue_depth", "Items that wait for a model run.", ["lane"], registry=self._registry)
        self._left_out = Counter(
            "levi_items_left_out",
            "Items that were not recommended, since the model gave no finite number for them.",
            registry=self._registry,
        )
        self._ready = Gauge("levi_ready", "1 while a model is in service.", registry=self._registry)
        self._model = Info("levi_model", "The model in service.", registry=self._registry)

    def request(self, route: str, method: str, status: str, seconds: float) -> None:
        """Count one answered request under the route's template."""
        self._requests.labels(route, method if method in _METHODS else "other", status).observe(seconds)

    def problem(self, name: str) -> None:
        """Count one problem by its kind."""
        self._errors.labels(name).inc()

    def observe_batches(self, lane: str) -> Callable[[int, float, float], None]:
        """What a batcher calls with the size, the duration [s] and the oldest item's wait [s] of each run."""
        sizes, runs = self._sizes.labels(lane), self._runs.labels(lane)

        def observe(size: int, seconds: float, waited: float) -> None:
            sizes.observe(size)
            runs.observe(seconds)

        return observe

    def degraded(self, side: int) -> None:
        """Count an entity that was rated as an unknown one, since its row could not be had; side 0 is the user."""

    def left_out(self, items: int) -> None:
        """Count items that were not recommended, since the model gave no finite number for them."""
        self._left_out.inc(items)

    def watch_queue(self, lane: str, depth: Callable[[], int]) -> None:
        """Read a queue's depth whenever the metrics are read."""
        self._queue.labels(lane).set_function(depth)

    def serving(self, model: str, version: int, views: str) -> None:
        """A model has come into service."""
        self._model.info({"model": model, "version": str(version), "views": views})

    def ready(self, ready: bool) -> None:
        """Whether the server takes traffic."""
        self._ready.set(ready)

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self._registry)
