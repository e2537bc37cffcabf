"""What Prometheus may read of versions, of what came after their export, and of Triton: what concerns more than one
server or one version.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_DIFFERENCES = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_LOADS = ("usable", "unusable")
_OUTCOMES = ("compared", "skipped", "failed")
_LABELS = ("stable", "canary")


class FleetMetrics:
    """Beside a server's own metrics, in their registry."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        """Several workers have no `registry`: theirs are in the files."""
        self._labels = Gauge(
            "levi_served_version",
            "The version that a label points at; 0: none.",
            ["label"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._unusable = Gauge(
            "levi_unusable_versions",
            "Versions in the model repository that were to be served and cannot be, now.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._loads = Counter("levi_version_loads", "Versions loaded, or tried to.", ["outcome"], registry=registry)
        self._feedback = Counter(
            "levi_feedback_events", "Events that are durable, by whether all ids are known.", ["ids"], registry=registry
        )
        self._backlog = Gauge(
            "levi_feedback_backlog_bytes",
            "Bytes in the feedback log that nobody has taken away.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._oldest = Gauge(
            "levi_feedback_oldest_timestamp_seconds",
            "When the oldest file of the feedback log was begun.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._triton_failures = Counter("levi_triton_failures", "Calls of Triton that failed.", registry=registry)
        self._triton_open = Gauge(
            "levi_triton_breakers_open",
            "Graphs that Triton is not asked for at the moment, since it failed.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._entities = Gauge(
            "levi_entities",
            "Users and items on the list of what came after the export, by what became of them.",
            ["state"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._seen = Gauge(
            "levi_entities_seen_timestamp_seconds",
            "When the worker that is furthest behind has last read the list of entities, or was started.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._differences = Histogram(
            "levi_versions_rating_difference",
            "Absolute difference of the ratings that the stable version and the canary give one pair.",
            buckets=_DIFFERENCES,
            registry=registry,
        )
        self._errors = Summary(
            "levi_versions_squared_error",
            "Squared error of both versions on the ratings that came as feedback.",
            ["label"],
            registry=registry,
        )
        self._compared = Counter(
            "levi_versions_comparisons",
            "Requests that both versions were to predict, and true ratings to be compared, by what came of it.",
            ["outcome"],
            registry=registry,
        )
        for counter, labels in ((self._loads, _LOADS), (self._compared, _OUTCOMES)):
            for label in labels:
                counter.labels(label)  # a rate needs the zero that came before the first event

    def triton(self, failures: int, opened: int) -> None:
        """Count calls of Triton that failed, and graphs that are left alone."""
        self._triton_failures.inc(failures)
        self._triton_open.inc(opened)

    def feedback(self, known: bool) -> None:
        """Count an event that is durable."""
        self._feedback.labels("known" if known else "unknown").inc()

    def feedback_backlog(self, size: int, oldest: float) -> None:
        """What lies in the log: bytes, and when its oldest file was begun [s since 1970]."""
        self._backlog.set(size)
        self._oldest.set(oldest)

    def labels(self, stable: int, canary: int | None) -> None:
        """The labels point at these versions."""
        self._labels.labels("stable").set(stable)
        self._labels.labels("canary").set(canary or 0)

    def loaded(self, usable: bool) -> None:
        """Count a version that was loaded and proven, or could not be."""
        self._loads.labels(_LOADS[not usable]).inc()

    def unusable(self, count: int) -> None:
        """How many versions are not served although they should be."""
        self._unusable.set(count)

    def difference(self, of_ratings: float) -> None:
        """Both versions have rated one pair."""
        self._differences.observe(of_ratings)

    def errors(self, *squared: float) -> None:
        """The stable version's and the canary's error on one true rating."""
        for label, error in zip(_LABELS, squared, strict=True):
            self._errors.labels(label).observe(error)

    def compared(self, outcome: str) -> None:
        """Both versions have predicted, or have not."""
        self._compared.labels(outcome).inc()

    def entities(self, put: int, erased: int) -> None:
        """The list of entities was read just now; it holds so many."""
        self._entities.labels("put").set(put)
        self._entities.labels("erased").set(erased)
        self._seen.set_to_current_time()


class Serving(Collector):
    """The model that this process has in service, or that each worker has: one file `N.serving` each. In the library's
    files a version would stay for ever.
    """

    def __init__(self, shared: Path | None, worker: int) -> None:
        """Nothing is in service yet. Workers have a folder that they have `shared`."""
        self._shared = shared
        self._worker = worker
        self._own: tuple[str, str, str] | None = None

    def change(self, model: str, version: str, views: str) -> None:
        """Another one has come into service."""
        self._own = (model, version, views)
        if self._shared is not None:
            file = self._shared / f"{self._worker}.serving"
            fresh = file.with_suffix(".new")  # nobody is to read half of it
            fresh.write_text(json.dumps(self._own))
            fresh.replace(file)

    def collect(self) -> Iterable[Metric]:
        """What any worker has in service."""
        found = {self._own} if self._own else set()
        if self._shared is not None:
            for file in self._shared.glob("*.serving"):
                with suppress(FileNotFoundError):  # it has just ended
                    found.add(tuple(json.loads(file.read_text())))
        info = GaugeMetricFamily("levi_model_info", "The model in service.", labels=["model", "version", "views"])
        for labels in sorted(found):
            info.add_metric(labels, 1)
        yield info
