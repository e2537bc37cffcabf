"""Reference rows: what a rating would be predicted from the same training ratings without any network."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.linear_model import Ridge

from levi_serve.bundle import Int64Array
from training.datasets.dataset import Dataset, attributes
from training.splits import item_folds

Predictions = npt.NDArray[np.float64]

SHRINK = 5.0
"""A user's mean counts as if this many further ratings at the global mean had been given."""
ALPHAS = (3.0, 10.0, 30.0, 100.0)
"""Ridge penalties that the item-disjoint folds choose from."""
FOLDS = 5


def user_mean(dataset: Dataset, train: Int64Array, rows: Int64Array) -> Predictions:
    """Each user's mean training rating, shrunk towards the global mean: predictions [len(rows)], unclipped."""
    value, user = dataset.ratings.value[train].astype(np.float64), dataset.ratings.user[train]
    mean = value.mean()
    count = np.bincount(user, minlength=len(dataset.users))
    residual = np.bincount(user, value - mean, minlength=len(dataset.users))
    result: Predictions = (mean + residual / (count + SHRINK))[dataset.ratings.user[rows]]
    return result


def ridge(dataset: Dataset, train: Int64Array, rows: Int64Array, seed: int) -> tuple[Predictions, float]:
    """Ridge on user, item content and user × content; content is every category and bucketed number of the item.

    Returns:
        Predictions [len(rows)], unclipped, and the penalty that item-disjoint folds of the training part chose.
    """
    content = item_content(dataset)
    folds = list(item_folds(dataset, train, FOLDS, seed))
    errors = {
        alpha: np.mean([_error(dataset, content, fitted, held_out, alpha) for fitted, held_out in folds])
        for alpha in ALPHAS
    }
    best = min(errors, key=lambda alpha: errors[alpha])
    return _fit_predict(dataset, content, train, rows, best), best


def _error(dataset: Dataset, content: sparse.csr_array, fitted: Int64Array, rows: Int64Array, alpha: float) -> float:
    error = _fit_predict(dataset, content, fitted, rows, alpha) - dataset.ratings.value[rows]
    return float(np.square(error).mean())


def _fit_predict(
    dataset: Dataset, content: sparse.csr_array, fitted: Int64Array, rows: Int64Array, alpha: float
) -> Predictions:
    target = dataset.ratings.value[fitted].astype(np.float64)
    model = Ridge(alpha=alpha, solver="sparse_cg", tol=1e-5).fit(_design(dataset, content, fitted), target)
    result: Predictions = model.predict(_design(dataset, content, rows))
    return result


def _design(dataset: Dataset, content: sparse.csr_array, rows: Int64Array) -> sparse.csr_array:
    """[len(rows), U + F + U·F]: user indicator, item content, and their products."""
    user, item = dataset.ratings.user[rows], dataset.ratings.item[rows]
    users, features = len(dataset.users), content.shape[1]
    indicator = sparse.csr_array((np.ones(len(rows)), (np.arange(len(rows)), user)), shape=(len(rows), users))
    here = sparse.coo_array(content[item])
    row, column = here.coords
    crossed = sparse.csr_array((here.data, (row, user[row] * features + column)), shape=(len(rows), users * features))
    return sparse.csr_array(sparse.hstack([indicator, here, crossed], format="csr"))


def item_content(dataset: Dataset) -> sparse.csr_array:
    """[M, F] indicators of each item's categories and number buckets."""
    chosen = [a for a in dataset.schema.item.attributes if a.kind == "category" or a.edges]
    described = attributes(dataset.items, dataset.schema.item)
    levels = [
        sorted({f"{a.name}={level}" for a in chosen if a.name in row for level in a.levels(row[a.name])})
        for row in described
    ]
    index = {name: i for i, name in enumerate(sorted({name for row in levels for name in row}))}
    pairs = [(i, index[name]) for i, row in enumerate(levels) for name in row]
    row, column = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return sparse.csr_array((np.ones(len(pairs)), (row, column)), shape=(len(described), len(index)))
