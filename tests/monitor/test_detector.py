"""levi_serve.monitor.detector: alarms, what they remember, and run lengths."""

from __future__ import annotations

import numpy as np
import pytest

from levi_serve.bundle.reference import Reference
from levi_serve.bundle.scores import bins_of
from levi_serve.monitor.detector import ALARMS, Detector, Watched
from levi_serve.monitor.streams import BLOCK, threshold
from levi_serve.monitor.watch import block_counts

from .conftest import HEADS, World


def block(detector: Detector, bin_: int, count: int = 64) -> np.ndarray:
    """One block: every score in one bin."""
    counts = np.zeros((len(detector.streams.scores), 20), np.int64)
    counts[:, bin_] = count
    return counts[..., None]


def even(detector: Detector) -> np.ndarray:
    """Three predictions in every bin, all of known users and items."""
    counts = np.full((len(detector.streams.scores), 20), 3)
    counts[-2:] = 0
    counts[-2:, 0] = 60
    return counts[..., None]


def usual(reference: Reference, world: World, count: int, noise: float = 0.2) -> np.ndarray:
    """Blocks of `count` predictions for known users and items."""
    scores = reference.scorer(world.heads(count, noise), world.support(count))
    return block_counts(np.concatenate([bins_of(scores, reference.edges), np.zeros((2, count), np.int64)]))


def test_alarm_latches(detector: Detector) -> None:
    """One alarm until somebody has seen it, however long the shift lasts; then the evidence begins anew."""
    record = detector.start()
    rung = [detector.apply(record, block(detector, 19), float(now)) for now in range(5)]
    assert rung == [True, False, False, False, False]
    assert record["active"] == 1
    ((alarm, _),) = detector.alarms(record)
    assert (alarm["raised"], alarm["since"], alarm["seen"]) == (0, 0, 0)
    assert alarm["evidence"] >= detector.threshold
    assert not detector.acknowledge(record, 2, 9.0)
    assert detector.acknowledge(record, 1, 10.0)
    assert detector.total(record) == -np.inf
    assert detector.acknowledge(record, 1, 99.0)
    assert detector.alarms(record)[0][0]["seen"] == 10
    assert detector.apply(record, block(detector, 19), 11.0)
    assert [int(a["id"]) for a, _ in detector.alarms(record)] == [1, 2]
    assert record["alarms_total"].sum() == 2


def test_since_when(detector: Detector) -> None:
    """An alarm says when its stream began to rise, which is long after the start."""
    record = detector.start()
    for now in range(100):
        detector.apply(record, even(detector), float(now))
    slightly = even(detector)
    slightly[0, :4], slightly[0, 16:] = 0, 6
    now = 100.0
    while not detector.apply(record, slightly, now):
        now += 1
    ((alarm, stream),) = detector.alarms(record)
    assert stream.score == "spread"
    assert 99 <= alarm["since"] <= 101 < alarm["raised"] == now


def test_only_the_last_alarms_are_kept(detector: Detector) -> None:
    """The record does not grow: of many alarms the last ones are known, and the count goes on."""
    record = detector.start()
    for number in range(1, ALARMS + 6):
        assert detector.apply(record, block(detector, 19), 0.0)
        assert detector.acknowledge(record, number, 1.0)
    kept = [int(alarm["id"]) for alarm, _ in detector.alarms(record)]
    assert kept == list(range(6, ALARMS + 6))
    assert record["alarm_count"] == ALARMS + 5


@pytest.mark.parametrize(("bin_", "kind"), [(19, "upper"), (0, "lower")])
def test_every_direction_is_seen(detector: Detector, bin_: int, kind: str) -> None:
    """Scores that are all high, or all low (heads that are constant), raise an alarm within one block of the shift."""
    record = detector.start()
    detector.apply(record, even(detector), 0.0)
    assert detector.apply(record, block(detector, bin_), 1.0)


def test_workers_are_merged_exactly(detector: Detector, reference: Reference, world: World) -> None:
    """One process that sees all predictions of a block ends with the very bits of workers whose counts are added, and
    blocks one by one end with the very evidence of many at once.
    """
    alone, merged, at_once = detector.start(), detector.start(), detector.start()
    blocks = usual(reference, world, 400 * BLOCK, noise=0.21)
    parts = np.random.default_rng(0).binomial(blocks, 0.3)
    for at in range(400):
        whole, part = blocks[..., at : at + 1], parts[..., at : at + 1]
        detector.apply(alone, whole, 0.0)
        detector.apply(merged, part + (whole - part), 0.0)
    for some in np.split(blocks, [1, 8, 200, 201], axis=-1):
        detector.apply(at_once, some, 0.0)
    assert alone.tobytes() == merged.tobytes()
    for name in ("evidence", "onset", "counts", "blocks", "alarms", "active"):
        assert alone[name].tobytes() == at_once[name].tobytes()
    assert np.isfinite(alone["evidence"]).all()


def test_an_alarm_among_many_blocks(detector: Detector) -> None:
    """Evidence that rose and fell again between two hand-overs raises the alarm that it would have raised by itself."""
    strange, calm = block(detector, 19), even(detector)
    one, many = detector.start(), detector.start()
    blocks = [calm, strange, *[calm] * 500]
    rung = [detector.apply(one, each, 0.0) for each in blocks]
    assert rung[:3] == [False, True, False]
    assert detector.total(one) < detector.threshold
    assert detector.apply(many, np.concatenate(blocks, axis=-1), 0.0)
    for name in ("evidence", "alarms"):
        assert many[name].tobytes() == one[name].tobytes()


def test_run_length_in_distribution(reference: Reference, world: World) -> None:
    """With a budget of 10,000 predictions the mean run length is beyond it: in 600,000, no more than 60 alarms."""
    detector = Detector.of(reference, threshold(10_000 / 86_400, 1))
    record, alarms = detector.start(), 0
    for some in np.split(usual(reference, world, 600_000), 7500, axis=-1):
        if detector.apply(record, some, 0.0):
            alarms += 1
            detector.acknowledge(record, alarms, 0.0)
    assert alarms <= 60


def test_true_errors(detector: Detector) -> None:
    """Squared errors add up."""
    record, watched = detector.start(), Watched.nothing(HEADS)
    for errors in ([2.0, 5.0], [1.0, 1.0]):
        watched.errors = np.array(errors)
        detector.note(record, watched)
    count, total = record["recent_errors"]
    assert total / count == pytest.approx(2, abs=1e-3)


def test_the_past_fades(detector: Detector) -> None:
    """What is shown as recent forgets; what is counted does not."""
    record = detector.start()
    old, new = Watched.nothing(HEADS), Watched.nothing(HEADS)
    old.predictions = new.predictions = 200_000
    old.new += 200_000
    detector.note(record, old)
    detector.note(record, new)
    assert record["new"].tolist() == [200_000, 200_000]
    assert (record["recent_new"] / record["recent_predictions"] < 1e-3).all()
