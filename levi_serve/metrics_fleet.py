"""What Prometheus may read of that which several servers, or several versions, have in common."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge


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

    def entities(self, put: int, erased: int) -> None:
        """The list of entities was read just now; it holds so many."""
        self._entities.labels("put").set(put)
        self._entities.labels("erased").set(erased)
        self._seen.set_to_current_time()
