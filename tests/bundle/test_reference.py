"""levi_serve.bundle.reference: what is measured, by hand, and that only the model's own is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from levi_serve.bundle.manifest import BundleError
from levi_serve.bundle.reference import (
    FILE,
    SHOWN_QUANTILES,
    Reference,
    _rising,
    measure,
    read_reference,
    write_reference,
)

MODEL = "a" * 64
N = 600
HEADS = np.random.default_rng(1).normal(3, 0.5, (N, 3)) @ np.array([[1, 0.5, 0], [0, 1, 0.2], [0, 0, 1]])
"""Ratings of heads that move together in part."""


@pytest.fixture
def reference() -> Reference:
    """User 0 has half of the ratings, 300 others one each."""
    rng, heads = np.random.default_rng(0), HEADS.astype(np.float32)
    users = np.where(np.arange(N) < N // 2, 0, np.arange(N))
    known = np.ones(N, np.bool_)
    rating = heads.mean(1)
    return measure(heads, (rng.random(N), rng.random(N)), rating, rating + 0.5, users, (known, users > 0), 7, MODEL)


def test_measured(reference: Reference) -> None:
    """Weights sum to one in both ways; a user with half of the ratings counts like anybody else in the second."""
    np.testing.assert_allclose(reference.weights.sum(2), 1)
    np.testing.assert_allclose(reference.weights[0], 0.05, atol=1e-9)
    assert reference.sizes.tolist() == pytest.approx([N, 1 / (300 / 301**2 + 300 * (1 / (301 * 300)) ** 2)])
    np.testing.assert_allclose(reference.new, [[0, 0.5], [0, 1 / 301]])
    np.testing.assert_allclose(reference.squared_error, 0.25, rtol=1e-5)
    assert reference.rmse == pytest.approx(0.5)
    off = HEADS - HEADS.mean(0)
    np.testing.assert_allclose(reference.covariance, off.T @ off / (N - 1), rtol=1e-5)
    assert (reference.size, reference.seed) == (N, 7)


def test_usual_by_rating() -> None:
    """Each fifth of the ratings has quantiles of its own; where all ratings are one, the other parts have none."""
    rating = np.arange(1000) / 200
    part = np.arange(1000) // 200
    offset = (1 + part) * (np.arange(1000) % 200) / 100
    heads = (rating[:, None] + offset[:, None] * np.array([-1, 1])).astype(np.float32)
    known = np.ones(1000, np.bool_)
    found = measure(heads, None, rating, rating, part, (known, known), 0, MODEL)
    np.testing.assert_allclose(found.rating_edges, [1, 2, 3, 4], atol=0.01)
    expected = np.quantile(np.arange(200) / 100, SHOWN_QUANTILES) * np.arange(1, 6)[:, None]
    np.testing.assert_allclose(found.by_rating[:, 0], expected, rtol=1e-4)
    same = measure(heads, None, np.full(1000, 5.0), rating, part, (known, known), 0, MODEL)
    assert np.isnan(same.by_rating[:4]).all()
    assert np.isfinite(same.by_rating[4]).all()


def test_errors_never_fall() -> None:
    """Bins whose error is lower than that of a bin before are pooled with it, empty ones with a neighbour."""
    assert _rising(np.array([1.0, 4, 2, 9]), np.array([1, 1, 1, 1])).tolist() == [1, 3, 3, 9]
    assert _rising(np.array([0.0, 4, 0, 9]), np.array([0, 2, 0, 1])).tolist() == [2, 2, 2, 9]


def test_written_and_read(reference: Reference, tmp_path: Path) -> None:
    """What is read is what was written."""
    write_reference(tmp_path, reference)
    found = read_reference(tmp_path, MODEL, 3, support=True)
    assert found.names == reference.names
    for name in ("weights", "edges", "squared_error", "heads", "covariance", "new", "sizes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(reference, name))
    np.testing.assert_array_equal(found.scorer.linear, reference.scorer.linear)
    assert (found.rmse, found.seed, found.model) == (reference.rmse, 7, MODEL)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"model": "b" * 64}, "was calibrated with another model; export the version again"),
        ({"layers": 4}, "linear is [3, 4], expected [4, 5]"),
        ({"support": False}, "edges is [6, 19], expected [4, 19]"),
    ],
)
def test_of_another_model(reference: Reference, tmp_path: Path, asked: dict[str, Any], says: str) -> None:
    """A reference of another graph, or of another shape, is refused."""
    write_reference(tmp_path, reference)
    with pytest.raises(BundleError) as caught:
        read_reference(tmp_path, **({"model": MODEL, "layers": 3, "support": True} | asked))
    assert says in str(caught.value)


def test_damage(reference: Reference, tmp_path: Path) -> None:
    """Numbers that are none, a missing array and noise are refused, and the file named."""
    write_reference(tmp_path, replace(reference, by_rating=reference.by_rating[:2]))
    with pytest.raises(BundleError, match=r"by_rating is \[2, 6, 5\], expected \[5, 6, 5\]"):
        read_reference(tmp_path, MODEL, 3, support=True)
    write_reference(tmp_path, replace(reference, weights=reference.weights * np.nan))
    with pytest.raises(BundleError, match="weights is"):
        read_reference(tmp_path, MODEL, 3, support=True)
    np.savez(tmp_path / FILE, spread=np.zeros(3))
    with pytest.raises(BundleError, match="not a monitor's reference"):
        read_reference(tmp_path, MODEL, 3, support=True)
    (tmp_path / FILE).write_bytes(b"PK\x03\x04 noise")
    with pytest.raises(BundleError, match=FILE):
        read_reference(tmp_path, MODEL, 3, support=True)
