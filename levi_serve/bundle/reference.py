"""The monitor's reference: what the scores and heads of one model are like in distribution (`monitor.npz`)."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from levi_serve.bundle import AnyArray, DoubleArray, FloatArray
from levi_serve.bundle.manifest import BundleError
from levi_serve.bundle.scores import BINS, Scorer, bin_edges, bins_of, names, table

FILE = "monitor.npz"
RATING_BINS = 5
"""Equally full bins of the predicted rating, for display: detection pools them, since each alone is too small."""
SHOWN_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_TABLE = "quantiles_"
_FACTS = "facts"


@dataclass(frozen=True)
class Reference:
    """Measured on the split's calibration part, of N ratings, which nothing else reads."""

    scorer: Scorer
    tables: Mapping[str, FloatArray]
    """Sorted values of each score, in the order of the scores' columns."""
    edges: FloatArray
    """[S, BINS − 1], where bins begin."""
    weights: DoubleArray
    """[2, S, BINS], share of ratings in each bin: as they are, and with every user counting alike."""
    sizes: DoubleArray
    """[2], how many independent ratings that is: N, and Kish's effective size with every user counting alike."""
    new: DoubleArray
    """[2, 2], share of ratings whose user and item were not trained on, weighted in the two ways."""
    squared_error: DoubleArray
    """[BINS], mean squared error of ratings in each bin of `spread`, made not to fall."""
    heads: DoubleArray
    """[3, n], each head's mean, deviation and RMSE."""
    covariance: DoubleArray
    """[n, n] of the heads."""
    rmse: float
    """Of the answered rating."""
    rating_edges: DoubleArray
    """[RATING_BINS − 1] of the predicted rating, for display."""
    by_rating: DoubleArray
    """[RATING_BINS, S, 5], SHOWN_QUANTILES of each score, for display; NaN in a bin that no rating is in."""
    seed: int
    """Of the split."""
    model: str
    """SHA-256 of the graph that was calibrated."""

    @property
    def names(self) -> tuple[str, ...]:
        """The scores, in the order of their columns."""
        return tuple(self.tables)

    @property
    def size(self) -> int:
        """Ratings N that it was measured on."""
        return round(float(self.sizes[0]))


def measure(
    heads: FloatArray,
    support: tuple[AnyArray, AnyArray] | None,
    rating: FloatArray,
    truth: FloatArray,
    users: AnyArray,
    trained: tuple[AnyArray, AnyArray],
    seed: int,
    model: str,
) -> Reference:
    """The reference of N rated pairs.

    Args:
        heads: [N, n] unclipped head ratings, as the served graph gives them.
        support: [N] each, the last column of both sides' stored rows, or None.
        rating: [N] as it is answered, clipped.
        truth: [N] the true ratings.
        users: [N] whose rating each is.
        trained: whether the user [N] and the item [N] were trained on.
        seed: of the split.
        model: SHA-256 of the graph.
    """
    scorer = Scorer.fitted(heads)
    scores = scorer(heads, support)
    tables = {name: table(column) for name, column in zip(names(support is not None), scores.T, strict=True)}
    edges = np.stack([bin_edges(reference) for reference in tables.values()])
    bins = bins_of(scores, edges)  # [S, N]
    _, inverse, counts = np.unique(users, return_inverse=True, return_counts=True)
    n = len(heads)
    alike = 1 / (len(counts) * counts[inverse])
    weightings = np.stack([np.full(n, 1 / n), alike])
    weights: DoubleArray = np.array([[np.bincount(column, w, BINS) for column in bins] for w in weightings])
    error = np.square(rating.astype(np.float64) - truth)
    by_bin = _rising(np.bincount(bins[0], error, BINS), np.bincount(bins[0], minlength=BINS))
    rating_edges = np.quantile(rating.astype(np.float64), np.arange(1, RATING_BINS) / RATING_BINS)
    shown = _shown(scores, np.searchsorted(rating_edges, rating, side="right"))
    exact = heads.astype(np.float64)
    return Reference(
        scorer=scorer,
        tables=tables,
        edges=edges,
        weights=weights,
        sizes=1 / np.square(weightings).sum(1),
        new=weightings @ np.stack([~side for side in trained], axis=1),
        squared_error=by_bin,
        heads=np.stack([exact.mean(0), exact.std(0), np.sqrt(np.square(exact - truth[:, None]).mean(0))]),
        covariance=np.atleast_2d(np.cov(exact, rowvar=False)),
        rmse=float(np.sqrt(error.mean())),
        rating_edges=rating_edges,
        by_rating=shown,
        seed=seed,
        model=model,
    )


def write_reference(folder: Path, reference: Reference) -> None:
    """Write `monitor.npz`."""
    arrays: dict[str, Any] = {"linear": reference.scorer.linear, "center": reference.scorer.center}
    arrays |= {f"{_TABLE}{name}": values for name, values in reference.tables.items()}
    facts = {"seed": reference.seed, "model": reference.model, "rmse": reference.rmse, "scores": reference.names}
    arrays |= {name: getattr(reference, name) for name in _ARRAYS}
    np.savez(folder / FILE, allow_pickle=False, **arrays, **{_FACTS: np.array(json.dumps(facts))})


def read_reference(folder: Path, model: str, layers: int, support: bool) -> Reference:
    """Read `monitor.npz` of a model whose graph has this SHA-256, so many heads, and rows with `support` or not.

    Raises:
        BundleError: it is damaged, or belongs to another model.

    """
    path = folder / FILE
    try:
        with path.open("rb") as file, np.load(file) as stored:
            facts = json.loads(str(stored[_FACTS]))
            reference = Reference(
                scorer=Scorer(stored["linear"], stored["center"]),
                tables={name: stored[f"{_TABLE}{name}"] for name in facts["scores"]},
                seed=int(facts["seed"]),
                model=str(facts["model"]),
                rmse=float(facts["rmse"]),
                **{name: stored[name] for name in _ARRAYS},
            )
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: not a monitor's reference: {error}") from None
    if reference.model != model:
        raise BundleError(f"{path}: was calibrated with another model; export the version again")
    n, s = layers, len(names(support))
    shapes: dict[str, tuple[AnyArray, tuple[int, ...]]] = {
        "linear": (reference.scorer.linear, (n, n + 1)),
        "center": (reference.scorer.center, (n - 1,)),
        "edges": (reference.edges, (s, BINS - 1)),
        "weights": (reference.weights, (2, s, BINS)),
        "sizes": (reference.sizes, (2,)),
        "new": (reference.new, (2, 2)),
        "squared_error": (reference.squared_error, (BINS,)),
        "heads": (reference.heads, (3, n)),
        "rating_edges": (reference.rating_edges, (RATING_BINS - 1,)),
        "by_rating": (reference.by_rating, (RATING_BINS, s, len(SHOWN_QUANTILES))),
    }
    for name, (array, shape) in shapes.items():
        if array.shape != shape or (name not in {"edges", "by_rating"} and not np.isfinite(array).all()):
            raise BundleError(f"{path}: {name} is {list(array.shape)}, expected {list(shape)} finite numbers")
    if reference.names != names(support) or not all(map(len, reference.tables.values())):
        raise BundleError(f"{path}: has tables of {', '.join(reference.names)}, expected {', '.join(names(support))}")
    return reference


_ARRAYS = tuple(
    field.name for field in fields(Reference) if field.name not in {"scorer", "tables", "seed", "model", "rmse"}
)


def _rising(total: AnyArray, count: AnyArray) -> DoubleArray:
    """Mean per bin by pooling neighbours that fall (isotonic regression); an empty bin takes its neighbour's."""
    blocks: list[list[float]] = []  # total, count, bins
    for t, c in zip(total.tolist(), count.tolist(), strict=True):
        blocks.append([t, c, 1])
        while len(blocks) > 1 and (not blocks[-2][1] or _mean(blocks[-1]) <= _mean(blocks[-2])):
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    return np.concatenate([np.full(int(b[2]), _mean(b)) for b in blocks])


def _mean(block: list[float]) -> float:
    return block[0] / block[1] if block[1] else 0.0


def _shown(scores: FloatArray, bins: AnyArray) -> DoubleArray:
    out = np.full((RATING_BINS, scores.shape[1], len(SHOWN_QUANTILES)), np.nan)
    for b in range(RATING_BINS):
        if (bins == b).any():
            out[b] = np.quantile(scores[bins == b], SHOWN_QUANTILES, axis=0).T
    return out
