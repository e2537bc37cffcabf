"""What the heads of size `best` are made of: a Bayesian factor model of the ratings, by Gibbs sampling.

    r_ui = μ + b_u + b_i + p_u·q_i + s_u·c_i + noise
    (b_u, p_u) ~ N(·, ·)        s_u ~ N(0, 1/α_f)        (b_i, q_i) ~ N(W [1 ; c_i], ·)

c_i is the item's content (categories, number buckets, a backbone view): all that is known of an item nobody has rated.
All hyperparameters are sampled (Salakhutdinov & Mnih 2008; side information as in Simm et al. 2017), with one change:
in the regression W an item counts as often as it was rated. A popular item's content says more of what is rated later.

The posterior mean is a sum of products of user and item vectors, so it is stored as such: what depends on content is
linear in c_i, and the rest, [U, samples × K] times [samples × K, M], is cut to its leading singular vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from levi_serve.bundle import DoubleArray as Array
from levi_serve.bundle import Int64Array
from levi_serve.bundle.schema import Frozen

WISHART = 1.0
"""Scale of the Wishart priors; shapes of the Gamma priors are as vague."""
VAGUE = 1e-3


class Sampling(Frozen):
    """How the posterior is sampled."""

    rank: int = 4
    """K, the width of p_u and q_i."""
    burn_in: int = 20
    samples: int = 40
    kept: int = 32
    """Singular vectors kept of what content does not explain."""
    popularity: float = 1.0
    """In the regression on content an item counts as (number of ratings) to this power."""


@dataclass(frozen=True)
class Posterior:
    """The posterior mean of rating (u, i) is user[u]·[1 ; c_i ; item[i]]; the last user is one who rated nothing."""

    user: Array  # [U + 1, 1 + F + kept]
    item: Array  # [M, kept]; 0 for an item without ratings

    def predict(self, content: Array, user: Int64Array, item: Int64Array) -> Array:
        """Ratings [r] of pairs, unclipped."""
        inputs = np.hstack([np.ones((len(content), 1)), content, self.item])
        result: Array = np.einsum("rd,rd->r", self.user[user], inputs[item])
        return result


@dataclass
class _Groups:
    """Ratings by one side's entity, to sum over an entity's ratings."""

    order: Int64Array | slice
    """Puts ratings of one entity side by side."""
    bounds: Int64Array  # [entities + 1]
    counts: Int64Array  # [entities]

    @classmethod
    def by(cls, entity: Int64Array, entities: int) -> _Groups:
        counts = np.bincount(entity, minlength=entities)
        order = np.argsort(entity, kind="stable") if np.any(np.diff(entity) < 0) else slice(None)
        return cls(order, np.concatenate([[0], np.cumsum(counts)]), counts)

    def slices(self) -> Iterator[tuple[int, slice]]:
        """Each entity that has ratings, and where they are once `order` was applied."""
        for e in np.flatnonzero(self.counts).tolist():
            yield e, slice(self.bounds[e], self.bounds[e + 1])

    def products(self, left: Array, right: Array) -> Array:
        """Σ over each entity's ratings of left ⊗ right: [entities, a, b] of [m, a] and [m, b]."""
        left, right = left[self.order], right[self.order]
        out = np.zeros((len(self.counts), left.shape[1], right.shape[1]))
        for e, own in self.slices():
            np.matmul(left[own].T, right[own], out=out[e])
        return out


def sample(
    user: Int64Array,
    item: Int64Array,
    value: Array,
    users: int,
    content: Array,
    groups: tuple[int, ...],
    settings: Sampling,
    seed: int,
) -> Posterior:
    """Fit to m ratings.

    Args:
        user: [m] of 0 … users - 1.
        item: [m] rows of `content`.
        value: [m] ratings.
        users: U.
        content: [M, F].
        groups: where in F another kind of content begins; rows of W for one kind share a precision.
        settings: how to sample.
        seed: of every draw; the same one gives the same numbers.
    """
    return _Gibbs(user, item, value, users, content, groups, settings, np.random.default_rng(seed)).run()


class _Gibbs:
    """The chain's state; each method draws one block given all others."""

    def __init__(
        self,
        user: Int64Array,
        item: Int64Array,
        value: Array,
        users: int,
        content: Array,
        groups: tuple[int, ...],
        settings: Sampling,
        rng: np.random.Generator,
    ) -> None:
        self.groups, self.settings, self.rng = groups, settings, rng
        order = np.argsort(user, kind="stable")
        self.user, self.item = user[order], item[order]
        self.mean = float(value.mean())
        self.target = value[order] - self.mean  # [m]
        self.described = content[self.item]  # [m, F]
        self.taste = np.zeros(len(user))  # [m]: s_u·c_i
        self.inputs = np.hstack([np.ones((len(content), 1)), content])  # [M, 1 + F]
        self.of_user, self.of_item = _Groups.by(self.user, users), _Groups.by(self.item, len(content))
        d = 1 + settings.rank
        self.weights = self.of_item.counts**settings.popularity * 1.0
        self.weights *= np.count_nonzero(self.weights) / self.weights.sum()  # [M], on average 1
        self.crossed = self.of_user.products(self.described, self.described)  # [U, F, F]
        self.users = np.hstack([np.zeros((users, 1)), rng.normal(0, 0.1, (users, settings.rank))])  # b_u | p_u
        self.slopes = np.zeros((users, content.shape[1]))  # s_u
        self.items = np.hstack([np.zeros((len(content), 1)), rng.normal(0, 0.1, (len(content), settings.rank))])
        self.regression = np.zeros((self.inputs.shape[1], d))  # W, transposed
        self.user_mean, self.user_precision, self.item_precision = np.zeros(d), np.eye(d) * 5, np.eye(d) * 5
        self.slope_precision = np.full(content.shape[1], 20.0)
        self.shrink, self.noise = np.ones(content.shape[1]), 1.0  # precision of W's rows and of the ratings

    def run(self) -> Posterior:
        settings = self.settings
        fixed = np.zeros((len(self.users) + 1, self.inputs.shape[1]))  # Σ samples of what meets [1 ; c_i]
        left, right = [], []
        for sweep in range(settings.burn_in + settings.samples):
            self.draw_users()
            self.draw_items()
            self.draw_hyperparameters()
            if sweep < settings.burn_in:
                continue
            # Who rated nothing is the mean user. What content does to all wanders between W and the slopes: count both.
            active = self.of_user.counts[:, None] > 0
            mean_slope = self.slopes[active[:, 0]].mean(0)
            known = np.vstack([np.where(active, self.users, self.user_mean), self.user_mean])  # [U + 1, d]
            slopes = np.vstack([np.where(active, self.slopes, mean_slope), mean_slope])
            joined = _with_one(known)  # b_u enters once, with weight 1
            fixed += joined @ self.regression.T
            fixed[:, 0] += known[:, 0]
            fixed[:, 1:] += slopes
            residual = np.where(self.of_item.counts[:, None] > 0, self.items - self.inputs @ self.regression, 0)
            left.append(joined)
            right.append(residual)
        fixed /= settings.samples
        fixed[:, 0] += self.mean
        user, item = _compress(np.hstack(left), np.hstack(right) / settings.samples, settings.kept)
        return Posterior(np.hstack([fixed, user]), item)

    def draw_users(self) -> None:
        """(b_u, p_u, s_u) of all users, jointly."""
        d, features = self.users.shape[1], self.described.shape[1]
        here = _with_one(self.items)[self.item]  # [m, d]: what multiplies b_u and p_u
        rest = (self.target - self.items[self.item, 0])[:, None]
        precision = np.empty((len(self.users), d + features, d + features))
        precision[:, :d, :d] = self.of_user.products(here, here)
        precision[:, :d, d:] = self.of_user.products(here, self.described)
        precision[:, d:, :d] = precision[:, :d, d:].transpose(0, 2, 1)
        precision[:, d:, d:] = self.crossed
        precision *= self.noise
        precision[:, :d, :d] += self.user_precision
        precision[:, range(d, d + features), range(d, d + features)] += self.slope_precision
        linear = np.hstack([self.of_user.products(part, rest)[:, :, 0] for part in (here, self.described)]) * self.noise
        linear[:, :d] += self.user_precision @ self.user_mean
        drawn = _draw(precision, linear, self.rng)
        self.users, self.slopes = drawn[:, :d], drawn[:, d:]
        for user, own in self.of_user.slices():
            np.matmul(self.described[own], self.slopes[user], out=self.taste[own])

    def draw_items(self) -> None:
        """(b_i, q_i) of all items."""
        here = _with_one(self.users)[self.user]  # [m, d]
        rest = self.target - self.users[self.user, 0] - self.taste
        precision = self.item_precision + self.noise * self.of_item.products(here, here)
        linear = self.noise * self.of_item.products(here, rest[:, None])[:, :, 0]
        linear += self.inputs @ self.regression @ self.item_precision
        self.items = _draw(precision, linear, self.rng)

    def draw_hyperparameters(self) -> None:
        """Precisions, the users' mean and the regression W on content."""
        rng, d = self.rng, self.users.shape[1]
        rated, active = self.of_item.counts > 0, self.of_user.counts > 0
        users, slopes = self.users[active], self.slopes[active]
        # Users: normal-Wishart with mean 0 and one pseudo-observation.
        n, mean = len(users), users.mean(0)
        scatter = np.cov(users.T, bias=True) * n + np.outer(mean, mean) * n / (n + 1)
        self.user_precision = _wishart(np.eye(d) * WISHART + scatter, d + n, rng)
        self.user_mean = _draw(((n + 1) * self.user_precision)[None], (n * self.user_precision @ mean)[None], rng)[0]
        self.slope_precision = rng.gamma(VAGUE + n / 2, 1 / (VAGUE + np.square(slopes).sum(0) / 2))
        # Items: matrix-normal regression on content, weighted; W's intercept is not shrunk.
        inputs, items, weights = self.inputs[rated], self.items[rated], self.weights[rated]
        ridge = np.append(VAGUE, self.shrink)
        gram = (inputs * weights[:, None]).T @ inputs + np.diag(ridge)
        lower = np.linalg.cholesky(gram)
        fitted = np.linalg.solve(gram, (inputs * weights[:, None]).T @ items)
        columns = np.linalg.cholesky(np.linalg.inv(self.item_precision))
        self.regression = fitted + np.linalg.solve(lower.T, rng.normal(size=fitted.shape)) @ columns.T
        inner = np.einsum("fa,ab,fb->f", self.regression[1:], self.item_precision, self.regression[1:])
        for part in np.split(np.arange(len(inner)), self.groups):
            self.shrink[part] = rng.gamma(VAGUE + len(part) * d / 2, 1 / (VAGUE + inner[part].sum() / 2))
        residual = items - inputs @ self.regression
        self.item_precision = _wishart(np.eye(d) * WISHART + residual.T @ residual, d + len(items), rng)
        predicted = np.einsum("md,md->m", _with_one(self.users)[self.user], self.items[self.item])
        predicted += self.users[self.user, 0] + self.taste
        error = np.square(self.target - predicted).sum()
        self.noise = rng.gamma(VAGUE + len(self.target) / 2, 1 / (VAGUE + error / 2))


def _with_one(vectors: Array) -> Array:
    """(bias, factors) to (1, factors): what the other side's (bias, factors) is multiplied by."""
    return np.hstack([np.ones((len(vectors), 1)), vectors[:, 1:]])


def _draw(precision: Array, linear: Array, rng: np.random.Generator) -> Array:
    """[n, d] of N(precision⁻¹ linear, precision⁻¹), for n precisions at once."""
    lower = torch.linalg.cholesky(torch.from_numpy(precision))
    half = torch.linalg.solve_triangular(lower, torch.from_numpy(linear).unsqueeze(2), upper=False)
    half += torch.from_numpy(rng.normal(size=linear.shape)).unsqueeze(2)
    result: Array = torch.linalg.solve_triangular(lower.mT, half, upper=True).squeeze(2).numpy()
    return result


def _wishart(scatter: Array, degrees: int, rng: np.random.Generator) -> Array:
    """A precision matrix of Wishart(scatter⁻¹, degrees), by Bartlett's decomposition."""
    d = len(scatter)
    lower = np.tril(rng.normal(size=(d, d)), -1)
    lower[range(d), range(d)] = np.sqrt(rng.chisquare(degrees - np.arange(d)))
    root = np.linalg.cholesky(np.linalg.inv(scatter)) @ lower
    return root @ root.T


def _compress(left: Array, right: Array, kept: int) -> tuple[Array, Array]:
    """Two factors of width `kept` whose product is the best approximation of left @ right.T."""
    q_left, r_left = np.linalg.qr(left)
    q_right, r_right = np.linalg.qr(right)
    u, values, v = np.linalg.svd(r_left @ r_right.T)
    kept = min(kept, len(values))
    root = np.sqrt(values[:kept])
    return q_left @ u[:, :kept] * root, q_right @ v[:kept].T * root
