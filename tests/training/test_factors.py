"""training.factors: the sampler finds what was planted, and says of the unseen what content says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from training.factors import Posterior, Sampling, _compress, _draw, _Groups, _wishart, sample

USERS, ITEMS, UNSEEN = 120, 90, 20
NOISE = 0.3
SHORT = Sampling(rank=2, burn_in=30, samples=30, kept=12)


class Planted:
    """Ratings of a known model: biases, two factors, and tastes for two kinds of content."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.content = rng.normal(size=(ITEMS, 3))
        bias_u, bias_i = rng.normal(0, 0.4, USERS), self.content @ [0.5, -0.5, 0.0] + rng.normal(0, 0.2, ITEMS)
        p, q = rng.normal(0, 0.7, (USERS, 2)), rng.normal(0, 0.7, (ITEMS, 2))
        taste = rng.normal(0, 0.4, (USERS, 3))
        self.truth = 3.5 + bias_u[:, None] + bias_i + p @ q.T + taste @ self.content.T
        self.by_content = self.truth - p @ q.T - (bias_i - self.content @ [0.5, -0.5, 0.0])
        user, item = np.divmod(rng.permutation(USERS * ITEMS)[:6000], ITEMS)
        seen = item < ITEMS - UNSEEN
        self.user, self.item = user[seen], item[seen]
        self.value = self.truth[self.user, self.item] + rng.normal(0, NOISE, seen.sum())

    def fit(self, settings: Sampling = SHORT, seed: int = 0, **changes: Any) -> Posterior:
        given = {"user": self.user, "item": self.item, "value": self.value, "content": self.content} | changes
        return sample(users=USERS, groups=(), settings=settings, seed=seed, **given)

    def everything(self, posterior: Posterior) -> np.ndarray:
        users, items = np.indices((USERS, ITEMS)).reshape(2, -1)
        return posterior.predict(self.content, users, items).reshape(USERS, ITEMS)


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted()


@pytest.fixture(scope="module")
def posterior(planted: Planted) -> Posterior:
    return planted.fit()


def test_finds_what_was_planted(planted: Planted, posterior: Posterior) -> None:
    """The true ratings of seen items come back within the noise of one rating, though each is one noisy value or none.

    A model without the two factors could not: they alone have a deviation of 0.7.
    """
    error = (planted.everything(posterior) - planted.truth)[:, :-UNSEEN]
    assert np.sqrt(np.square(error).mean()) < NOISE / 1.5


def test_an_unseen_item_is_what_its_content_says(planted: Planted, posterior: Posterior) -> None:
    """Of an item that nobody rated, the users' means, its content's effect and the users' tastes are known."""
    error = (planted.everything(posterior) - planted.by_content)[:, -UNSEEN:]
    assert np.sqrt(np.square(error).mean()) < 0.25
    assert not posterior.item[-UNSEEN:].any()


def test_an_unseen_user_is_the_mean_user(planted: Planted, posterior: Posterior) -> None:
    """The last row stands for a user without ratings: near the mean of all users."""
    rows = np.arange(ITEMS)
    found = posterior.predict(planted.content, np.full(ITEMS, USERS), rows)
    assert np.abs(found - planted.truth.mean(0))[:-UNSEEN].max() < 0.2


def test_a_user_without_ratings_gets_that_row(planted: Planted) -> None:
    """A user of the table who rated nothing is like the unknown one, not a random draw."""
    active = planted.user != 7
    found = planted.fit(Sampling(rank=2, burn_in=2, samples=2, kept=4), user=planted.user[active],
                        item=planted.item[active], value=planted.value[active])  # fmt: skip
    np.testing.assert_allclose(found.user[7], found.user[-1], atol=1e-12)


def test_one_seed_gives_one_posterior(planted: Planted) -> None:
    """The same seed gives the same numbers, another seed others."""
    quick = Sampling(rank=2, burn_in=1, samples=2, kept=4)
    first, again, other = planted.fit(quick), planted.fit(quick), planted.fit(quick, seed=1)
    np.testing.assert_array_equal(first.user, again.user)
    np.testing.assert_array_equal(first.item, again.item)
    assert np.abs(first.user - other.user).max() > 0.01


def test_popular_items_decide_what_content_means(planted: Planted) -> None:
    """Ten items with many ratings say that content lowers a rating, sixty with two each that it raises it."""
    rng = np.random.default_rng(0)
    content = np.abs(rng.normal(1, 0.1, (ITEMS, 1))) * (np.arange(ITEMS) % 2)[:, None]
    popular = np.arange(ITEMS) < 20
    item = np.concatenate([rng.integers(0, 20, 4000), np.repeat(np.arange(20, 80), 2)])
    user = rng.integers(0, USERS, len(item))
    effect = np.where(popular, -0.5, 0.5)[:, None] * content
    value = 3 + effect[item, 0] + rng.normal(0, 0.1, len(item))
    slopes = {}
    for popularity in (0.0, 1.0):
        settings = Sampling(rank=1, burn_in=10, samples=20, kept=4, popularity=popularity)
        found = sample(user, item, value, USERS, content, (), settings, 0)
        slopes[popularity] = found.user[-1, 1]
    assert slopes[1.0] < -0.2 < 0.1 < slopes[0.0]


def test_draws_have_the_stated_moments() -> None:
    """N(P⁻¹ b, P⁻¹): mean and covariance of 20,000 draws, for two different precisions at once."""
    precision = np.array([[[2.0, 0.5], [0.5, 1.0]], [[5.0, -1.0], [-1.0, 4.0]]])
    linear = np.array([[1.0, 2.0], [0.0, -3.0]])
    n = 20_000
    drawn = _draw(np.repeat(precision, n, 0), np.repeat(linear, n, 0), np.random.default_rng(0)).reshape(2, n, 2)
    for k in (0, 1):
        covariance = np.linalg.inv(precision[k])
        np.testing.assert_allclose(drawn[k].mean(0), covariance @ linear[k], atol=0.03)
        np.testing.assert_allclose(np.cov(drawn[k].T), covariance, atol=0.04)


def test_wishart_has_its_mean() -> None:
    """E W(S⁻¹, ν) = ν S⁻¹."""
    scatter, rng = np.array([[3.0, 1.0], [1.0, 2.0]]), np.random.default_rng(0)
    mean = np.mean([_wishart(scatter, 9, rng) for _ in range(5000)], axis=0)
    np.testing.assert_allclose(mean, 9 * np.linalg.inv(scatter), rtol=0.05)


def test_sums_over_an_entity() -> None:
    """By hand: entity 0 has two ratings, 1 none, 2 one."""
    groups = _Groups.by(np.array([2, 0, 0]), 3)
    left, right = np.array([[1.0], [2.0], [3.0]]), np.array([[10.0, 1.0], [20.0, 2.0], [30.0, 3.0]])
    np.testing.assert_array_equal(groups.products(left, right)[:, 0], [[130, 13], [0, 0], [10, 1]])


def test_compression_keeps_the_product() -> None:
    """A product of rank 3 survives a cut to 3; a cut to more changes nothing."""
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(30, 3)) @ rng.normal(size=(3, 12)), rng.normal(size=(40, 12))
    for kept in (3, 12):
        a, b = _compress(left, right, kept)
        assert a.shape == (30, kept)
        np.testing.assert_allclose(a @ b.T, left @ right.T, atol=1e-10)
