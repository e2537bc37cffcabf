"""training.synthetic: App. B by hand, and that App. E.8's generator plants what it says."""

from __future__ import annotations

import numpy as np
import pytest

from training.synthetic import FINE_TUNED, POINTS, PRETRAINED, SCRATCH, TARGETS, TRUE, descend, points, spurious


def test_app_b_weights() -> None:
    """Gradient descent from the pre-trained weights and from zero ends at the paper's weights; all fit the points."""
    np.testing.assert_allclose(descend(PRETRAINED), FINE_TUNED, atol=1e-9)
    np.testing.assert_allclose(descend(np.zeros(5)), SCRATCH, atol=1e-9)
    for weights in (FINE_TUNED, SCRATCH):
        np.testing.assert_allclose(POINTS @ weights, TARGETS, atol=1e-12)


def test_app_b_errors() -> None:
    """On any point the errors are x1 + x5, x1 − x4 and x5 − x2; on a stated one, by hand."""
    x = np.array([0.5, 0.25, -1.0, 0.75, 0.5])
    errors = [(w - TRUE) @ x for w in (FINE_TUNED, PRETRAINED, SCRATCH)]
    assert errors == [1.0, -0.25, 0.25]
    rng = np.random.default_rng(0)
    for x in rng.standard_normal((20, 5)):
        expected = [x[0] + x[4], x[0] - x[3], x[4] - x[1]]
        np.testing.assert_allclose([(w - TRUE) @ x for w in (FINE_TUNED, PRETRAINED, SCRATCH)], expected)


def test_app_b_on_a_distribution() -> None:
    """x1 and x5 of variance 1 and correlation ½, all else independent: mean squared errors 3, 2 and 2."""
    covariance = np.eye(5)
    covariance[0, 4] = covariance[4, 0] = 0.5
    errors = [float((w - TRUE) @ covariance @ (w - TRUE)) for w in (FINE_TUNED, PRETRAINED, SCRATCH)]
    assert errors == [3, 2, 2]


def test_generator() -> None:
    """A feature that follows the class has its mean on the class's side; the others have none."""
    data = points(np.random.default_rng(0), s1=True, s2=False)
    sign = 2 * data.y - 1
    means = (data.x * sign.unsqueeze(1)).mean(0)
    assert means.tolist() == pytest.approx([0.75, 0, 0.75], abs=0.06)


def test_spurious() -> None:
    """Every model is above chance and below the best that x allows, and a seed gives the same numbers again."""
    first = spurious(3)
    assert first == spurious(3)
    assert set(first) == {"pre-trained", "fine-tuned", "from scratch", "LEVI"}
    assert all(0.55 < value < 0.80 for value in first.values())
