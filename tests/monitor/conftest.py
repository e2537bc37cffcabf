"""A reference of made-up heads, and traffic like it or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from levi_serve.bundle.reference import Reference, measure
from levi_serve.monitor.detector import Detector
from levi_serve.monitor.streams import threshold
from levi_serve.monitor.watch import Monitor

HEADS = 5
SIZE = 4000


@dataclass
class World:
    """Draws predictions; `noise` is the deviation of the heads from each other, 0.2 in distribution."""

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def heads(self, count: int, noise: float = 0.2, shift: float = 0.0) -> np.ndarray:
        common = 3 + shift + 0.5 * self.rng.normal(size=(count, 1))
        return (common + noise * self.rng.normal(size=(count, HEADS))).astype(np.float32)

    def support(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        user, item = 1 + 0.1 * np.abs(self.rng.normal(size=(2, count))).astype(np.float32)
        return user, item

    def reference(self, size: int = SIZE) -> Reference:
        heads = self.heads(size)
        rating = heads.mean(1)
        known = np.ones(size, np.bool_)
        truth = rating + self.rng.normal(size=size)
        users = self.rng.integers(0, 500, size)
        return measure(heads, self.support(size), rating, truth, users, (known, known), 0, "0" * 64)

    def show(
        self,
        monitor: Monitor,
        count: int,
        noise: float = 0.2,
        shift: float = 0.0,
        users: Callable[[int], list[int]] | None = None,
        new: float = 0.0,
        batch: int = 32,
        soon: Callable[..., object] | None = None,
    ) -> None:
        """Let a monitor watch `count` predictions."""
        for _ in range(count // batch):
            heads = self.heads(batch, noise, shift)
            scores = monitor.reference.scorer(heads, self.support(batch))
            who = users(batch) if users else self.rng.integers(0, 10**6, batch).tolist()
            trained = np.ones(batch, np.bool_), self.rng.random(batch) >= new
            monitor.observe(who, scores, heads.astype(np.float64), trained, soon)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(scope="session")
def reference() -> Reference:
    return World().reference()


@pytest.fixture(scope="session")
def detector(reference: Reference) -> Detector:
    """With a budget of 30 days at 1,000 a second."""
    return Detector.of(reference, threshold(30, 1000))


@pytest.fixture
def monitor(reference: Reference, detector: Detector) -> Monitor:
    """A monitor of its own, whose clock stands still."""
    return Monitor(reference, detector, None, lambda: 1000.0)
