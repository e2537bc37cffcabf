"""Several servers as one stream: the recursion over the sum of what each has counted.

One monitor over all replicas finds a shift several times sooner than each of them by itself. Replicas tell their bin
counts in `/metrics`; what was added between two readings, summed over replicas, is one block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.request import Request, urlopen

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from levi_serve.bundle import Int64Array
from levi_serve.bundle.scores import BINS
from levi_serve.monitor.streams import Streams

_BINS = "levi_monitor_score_bin"
_MODEL = "levi_model_info"


class ReplicaError(Exception):
    """A replica cannot be counted this time; the message says why."""


class Replicas:
    """What each replica had counted when it was last read."""

    def __init__(self, streams: Streams, model: str, version: int) -> None:
        """Replicas that serve another model or version, or that change over, are left out: their bins mean something
        else.
        """
        self._rows = {score: row for row, score in enumerate(streams.scores)}
        self._served = f"{model}/{version}"
        self._last: dict[str, Int64Array] = {}

    def added(self, texts: Mapping[str, str | ReplicaError]) -> tuple[Int64Array, dict[str, str]]:
        """The block [R, BINS] that was added since the last reading, from each replica's metrics; and by replica, why
        it was left out. The first reading of a replica adds nothing: nobody knows how old its counts are. One whose
        counts fell was restarted: all it has is new.
        """
        block = np.zeros((len(self._rows), BINS), np.int64)
        missing = {}
        for replica, text in texts.items():
            try:
                counts = self._counts(text)
            except ReplicaError as error:
                missing[replica] = str(error)
                continue
            last = self._last.get(replica, counts)
            block += counts if (counts < last).any() else counts - last
            self._last[replica] = counts
        return block, missing

    def _counts(self, text: str | ReplicaError) -> Int64Array:
        if isinstance(text, ReplicaError):
            raise text
        counts = np.zeros((len(self._rows), BINS), np.int64)
        serving, found = set(), 0
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name == f"{_BINS}_total":
                        counts[self._rows[sample.labels["score"]], int(sample.labels["bin"])] = int(sample.value)
                        found += 1
                    elif sample.name == _MODEL and sample.value:
                        serving.add(f"{sample.labels['model']}/{sample.labels['version']}")
        except (KeyError, IndexError, ValueError) as error:
            raise ReplicaError(f"its metrics are not as expected: {error}") from None
        # Of several workers the one that answers tells its own bins, and what all serve: while they change over nobody
        # knows whose bins these are.
        if serving != {self._served}:
            raise ReplicaError(f"it serves {' and '.join(sorted(serving)) or 'no model'}, not {self._served}")
        if found != counts.size:
            raise ReplicaError("it has no monitor")
        return counts


def read_metrics(urls: Iterable[str], token: str | None, timeout_s: float) -> dict[str, str | ReplicaError]:
    """The metrics of each server, or why there are none."""
    texts: dict[str, str | ReplicaError] = {}
    for url in urls:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            request = Request(f"{url.rstrip('/')}/metrics", headers=headers)  # noqa: S310 - the scheme is checked
            with urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
                texts[url] = answer.read().decode()
        except (OSError, ValueError) as error:
            texts[url] = ReplicaError(str(error))
    return texts
