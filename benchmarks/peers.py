"""The recommenders that a user would pick instead, fitted to the same training ratings (extra `peers`).

All but myFM see ids only. Surprise gives an item without training ratings mean + user bias; cornac has no such answer,
so it is given the same. myFM also sees genres and decade. Settings are the libraries' own, save myFM's rank and length.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable

import numpy as np
from scipy import sparse

from levi_serve.bundle import Int64Array
from training.baselines import Predictions, item_content
from training.datasets.dataset import Dataset

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # myFM imports the deprecated pkg_resources
    import cornac
    import surprise
    from myfm import MyFMRegressor

FM_RANK = 8
FM_SWEEPS = 300


def svd(dataset: Dataset, train: Int64Array, rows: Int64Array, seed: int) -> Predictions:
    """Surprise's SVD."""
    return _surprise(surprise.SVD(random_state=seed), dataset, train, rows)


def svdpp(dataset: Dataset, train: Int64Array, rows: Int64Array, seed: int) -> Predictions:
    """Surprise's SVD++."""
    return _surprise(surprise.SVDpp(random_state=seed, cache_ratings=True), dataset, train, rows)


def _surprise(model: surprise.AlgoBase, dataset: Dataset, train: Int64Array, rows: Int64Array) -> Predictions:
    ratings, schema = dataset.ratings, dataset.schema
    triples = zip(
        ratings.user[train].tolist(), ratings.item[train].tolist(), ratings.value[train].tolist(), strict=True
    )
    data = surprise.Dataset(surprise.Reader(rating_scale=(schema.rating_min, schema.rating_max)))
    model.fit(data.construct_trainset([(u, i, r, None) for u, i, r in triples]))
    pairs = zip(ratings.user[rows].tolist(), ratings.item[rows].tolist(), strict=True)
    return np.array([model.predict(u, i, clip=False).est for u, i in pairs])


def cornac_mf(dataset: Dataset, train: Int64Array, rows: Int64Array, seed: int) -> Predictions:
    """Cornac's biased matrix factorisation; unseen items get mean + user bias."""
    ratings = dataset.ratings
    triples = zip(
        ratings.user[train].tolist(), ratings.item[train].tolist(), ratings.value[train].tolist(), strict=True
    )
    known = cornac.data.Dataset.from_uir(list(triples), seed=seed)
    model = cornac.models.MF(use_bias=True, seed=seed).fit(known)
    out = np.empty(len(rows))
    for k, (u, i) in enumerate(zip(ratings.user[rows].tolist(), ratings.item[rows].tolist(), strict=True)):
        user, item = known.uid_map.get(u), known.iid_map.get(i)
        out[k] = model.global_mean + (0 if user is None else model.u_biases[user])
        if item is not None:
            out[k] += model.i_biases[item] + (0 if user is None else model.u_factors[user] @ model.i_factors[item])
    return out


def myfm(dataset: Dataset, train: Int64Array, rows: Int64Array, seed: int) -> Predictions:
    """Bayesian factorisation machine on user, item, genres and decade."""
    content = item_content(dataset)
    ratings = dataset.ratings
    seen = np.isin(np.arange(len(dataset.items)), ratings.item[train])

    def design(chosen: Int64Array) -> sparse.csr_matrix:
        user, item, at = ratings.user[chosen], ratings.item[chosen], np.arange(len(chosen))
        users = sparse.csr_matrix((np.ones(len(chosen)), (at, user)), shape=(len(chosen), len(dataset.users)))
        items = sparse.csr_matrix((seen[item] * 1.0, (at, item)), shape=(len(chosen), len(dataset.items)))
        return sparse.csr_matrix(sparse.hstack([users, items, content[item]]))

    model = MyFMRegressor(rank=FM_RANK, random_seed=seed)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar cannot be turned off
        model.fit(
            design(train),
            ratings.value[train].astype(np.float64),
            n_iter=FM_SWEEPS,
            n_kept_samples=FM_SWEEPS - 50,
            group_shapes=[len(dataset.users), len(dataset.items), content.shape[1]],
        )
    result: Predictions = model.predict(design(rows))
    return result


PEERS: dict[str, Callable[[Dataset, Int64Array, Int64Array, int], Predictions]] = {
    "myFM + genres, decade": myfm,
    "cornac MF": cornac_mf,
    "Surprise SVD": svd,
    "Surprise SVD++": svdpp,
}
