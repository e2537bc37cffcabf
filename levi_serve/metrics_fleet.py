"""What Prometheus may read of that which several servers, or several versions, have in common."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

_DIFFERENCES = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_OUTCOMES = ("compared", "skipped", "failed")
_LABELS = ("stable", "canary")


class FleetMetrics:
    """Beside a server's own metrics, in their registry."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        """`registry` is what `Metrics.own` is."""
        self._entities = Gauge(
            "levi_entities",
            "Users and items on the list of what came after the export, by what became of them.",
            ["state"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._seen = Gauge(
            "levi_entities_seen_timestamp_seconds",
            "When the worker that is furthest behind has last read the list of entities.",
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
        for outcome in _OUTCOMES:
            self._compared.labels(outcome)

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
