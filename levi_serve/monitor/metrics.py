"""The monitor in Prometheus' form. Every worker reads the same record, so each tells the whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from levi_serve.bundle.scores import BINS
from levi_serve.monitor.detector import DISAGREEMENT, Record
from levi_serve.monitor.watch import Monitor, estimated_rmse, head_ratings, true_rmse

_SIDES = ("user", "item")


class MonitorCollector(Collector):
    """Reads the record when the metrics are read."""

    def __init__(self, monitor: Monitor) -> None:
        """Of one monitor."""
        self._monitor = monitor

    def collect(self) -> Iterable[Metric]:
        """Every metric of the monitor."""
        record = self._monitor.read()
        yield from self._counted(record)
        yield from self._judged(record)
        yield from self._errors(record)

    def _counted(self, record: Record) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "levi_monitor_predictions", "Predictions watched by the shift monitor.", value=int(record["predictions"])
        )
        yield CounterMetricFamily(
            "levi_monitor_passed_over",
            "Predictions that the shift monitor did not watch: more a second than its budget is reckoned with.",
            value=int(record["passed_over"]),
        )
        buckets, below = [], 0
        for end, count in zip((*DISAGREEMENT, math.inf), record["spreads"].tolist(), strict=True):
            below += count
            buckets.append(("+Inf" if math.isinf(end) else str(end), below))
        yield HistogramMetricFamily(
            "levi_monitor_disagreement",
            "Standard deviation of the heads' ratings, in rating units.",
            buckets=buckets,
            sum_value=float(record["spread_sum"]),
        )
        bins = CounterMetricFamily(
            "levi_monitor_score_bin",
            "Predictions by quantile bin of a score, each user once a round: 5 % per bin in distribution.",
            labels=["score", "bin"],
        )
        for score, counts in zip(self._monitor.detector.streams.scores, record["counts"].tolist(), strict=True):
            for number in range(BINS):
                bins.add_metric([score, str(number)], counts[number])
        yield bins
        unknown = CounterMetricFamily(
            "levi_monitor_unknown", "Predictions for a user or an item that was not trained on.", labels=["side"]
        )
        for side, count in zip(_SIDES, record["new"].tolist(), strict=True):
            unknown.add_metric([side], count)
        yield unknown
        yield CounterMetricFamily(
            "levi_monitor_seconds", "Time that the shift monitor took.", value=float(record["seconds"])
        )

    def _judged(self, record: Record) -> Iterator[Metric]:
        detector = self._monitor.detector
        evidence = GaugeMetricFamily(
            "levi_monitor_evidence",
            "Evidence of a shift, as a natural logarithm: of each stream, and of all together.",
            labels=["stream"],
        )
        evidence.add_metric(["all"], detector.total(record))
        for stream, value in detector.by_stream(record):
            evidence.add_metric([stream.name], value)
        yield evidence
        yield GaugeMetricFamily(
            "levi_monitor_evidence_threshold", "Evidence of all streams that raises an alarm.", value=detector.threshold
        )
        alarms = CounterMetricFamily(
            "levi_monitor_alarms", "Shift alarms, by the stream with most evidence.", labels=["score", "kind"]
        )
        for stream, count in zip(detector.streams.streams, record["alarms_total"].tolist(), strict=True):
            alarms.add_metric([stream.score, stream.kind], count)
        yield alarms
        yield GaugeMetricFamily(
            "levi_monitor_alarm_active",
            "Whether there is an alarm that nobody has acknowledged.",
            value=bool(record["active"]),
        )

    def _errors(self, record: Record) -> Iterator[Metric]:
        reference = self._monitor.reference
        live = head_ratings(record)
        shown = [
            ("reference_mean", "Mean of a head's ratings in distribution.", reference.heads[0]),
            ("reference_deviation", "Standard deviation of a head's ratings in distribution.", reference.heads[1]),
        ]
        if live is not None:
            shown += [
                ("rating_mean", "Recent mean of a head's ratings.", live[0]),
                ("rating_deviation", "Recent standard deviation of a head's ratings.", live[1]),
            ]
        for name, text, values in shown:
            family = GaugeMetricFamily(f"levi_monitor_head_{name}", text, labels=["head"])
            for head, value in enumerate(values.tolist()):
                family.add_metric([str(head)], value)
            yield family
        yield CounterMetricFamily(
            "levi_monitor_true_ratings", "True ratings that came of predictions.", value=int(record["true_ratings"])
        )
        yield GaugeMetricFamily("levi_monitor_id_rmse", "RMSE measured in distribution.", value=reference.rmse)
        for name, text, value in (
            (
                "estimated_rmse",
                "RMSE estimated without labels, from the heads' disagreement.",
                estimated_rmse(reference, record),
            ),
            ("true_rmse", "RMSE of recent predictions whose true rating came.", true_rmse(record)),
        ):
            if value is not None:
                yield GaugeMetricFamily(f"levi_monitor_{name}", text, value=value)
