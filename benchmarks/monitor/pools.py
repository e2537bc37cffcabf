"""Traffic to draw from: what one fitted model says of in-distribution and of shifted ratings."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from levi_serve.bundle import AnyArray, BoolArray, DoubleArray, FloatArray, Int64Array
from levi_serve.bundle.prompt import entity_sentence
from levi_serve.bundle.reference import Reference, measure
from training.datasets.dataset import Dataset, attributes
from training.features import Features, prepare, project
from training.fit import Fitter, Fold, Views, ViewStage, predict
from training.model import SIZES, FactorSize, Levi, Network, Size
from training.run import Run, accelerator
from training.splits import item_folds
from training.views import compute_views

Runs = Mapping[str, Sequence[Run]]
"""Fitted runs by what text their items have, a seed each."""


@dataclass(frozen=True)
class Pool:
    """Predictions of one kind of traffic."""

    scores: FloatArray
    """[N, S]"""
    heads: FloatArray
    """[N, n]"""
    new: BoolArray
    """[2, N], whether user and item were not trained on."""
    user: Int64Array
    """[N]"""
    item: Int64Array
    """[N]"""
    squared: DoubleArray
    """[N], squared errors of the answered ratings."""

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: AnyArray) -> Pool:
        """Some of them."""
        return Pool(
            self.scores[rows], self.heads[rows], self.new[:, rows], self.user[rows], self.item[rows], self.squared[rows]
        )


@dataclass(frozen=True)
class Fitted:
    """A model and what it was fitted on."""

    dataset: Dataset
    model: Network
    features: Features
    ids: tuple[Tensor, Tensor]
    bounds: tuple[float, float]

    @classmethod
    def of(cls, run: Run) -> Fitted:
        """A finished run's."""
        return cls(run.dataset, run.model, run.prepared.features, run.ids, run.bounds)

    def hidden(self, users: bool = False, items: bool = True) -> Fitted:
        """The same with ids that it does not get to see: no rating is told by its id being new."""
        user, item = self.ids
        return replace(self, ids=(torch.zeros_like(user) if users else user, torch.zeros_like(item) if items else item))

    def heads(self, rows: Int64Array) -> FloatArray:
        """Head ratings [N, n] of some ratings."""
        return predict(self.model, self.features, torch.from_numpy(rows), self.ids).numpy()

    def support(self, rows: Int64Array) -> tuple[FloatArray, FloatArray]:
        """[N] of both sides."""
        found = []
        for side, (half, column) in enumerate(
            zip(self.model.halves, (self.features.user, self.features.item), strict=True)
        ):
            components = self.features.components[side]
            assert components is not None
            assert half.projection is not None
            with torch.inference_mode():
                found.append(half.projection.support(components)[:, 0].numpy()[column.numpy()[rows]])
        return found[0], found[1]

    def reference(self, rows: Int64Array, seed: int) -> Reference:
        """The monitor's reference, as `training.calibrate` measures it."""
        ratings = self.dataset.ratings
        heads = self.heads(rows)
        trained = [(ids > 0).numpy()[column[rows]] for ids, column in zip(self.ids, self._columns, strict=True)]
        return measure(
            heads,
            self.support(rows),
            self.rating(heads),
            ratings.value[rows].astype(np.float64),
            ratings.user[rows],
            (trained[0], trained[1]),
            seed,
            "",
        )

    def pool(
        self, rows: Int64Array, reference: Reference, change: Callable[[FloatArray], FloatArray] | None = None
    ) -> Pool:
        """What the monitor sees of some ratings; `change` is done to the heads."""
        heads = self.heads(rows)
        if change is not None:
            heads = change(heads)
        trained = [(ids > 0).numpy()[column[rows]] for ids, column in zip(self.ids, self._columns, strict=True)]
        return Pool(
            reference.scorer(heads, self.support(rows)),
            heads,
            ~np.stack(trained),
            self.dataset.ratings.user[rows].astype(np.int64),
            self.dataset.ratings.item[rows].astype(np.int64),
            np.square(self.rating(heads).astype(np.float64) - self.dataset.ratings.value[rows]),
        )

    def rating(self, heads: FloatArray) -> FloatArray:
        """As it is answered."""
        clipped: FloatArray = np.clip(heads @ self.model.weights.numpy(), *self.bounds)
        return clipped

    def with_components(self, side: int, change: Callable[[Tensor], Tensor]) -> Fitted:
        """The same over other components of one side's views."""
        components = list(self.features.components)
        given = components[side]
        assert given is not None
        components[side] = change(given.clone())
        return replace(self, features=replace(self.features, components=(components[0], components[1])))

    @property
    def _columns(self) -> tuple[AnyArray, AnyArray]:
        return self.dataset.ratings.user, self.dataset.ratings.item


def without_items(run: Run, cache: Path) -> tuple[Fitted, Int64Array]:
    """The run's recipe fitted without a fifth of the in-distribution items, and all ratings of those: new items that
    are no shift.
    """
    options, dataset = run.record.options, run.dataset
    fitted_rows, held = next(iter(item_folds(dataset, run.split.train, 5, options.seed)))
    left_out = np.zeros(len(dataset.items), bool)
    left_out[dataset.ratings.item[held]] = True
    kept = run.split.selection[~left_out[dataset.ratings.item[run.split.selection]]]
    others = run.split.test[left_out[dataset.ratings.item[run.split.test]]]
    return refitted(run, cache, SIZES[options.size], fitted_rows, kept), np.concatenate([held, others])


def refitted(run: Run, cache: Path, size: Size | FactorSize, rows: Int64Array, held_out: Int64Array) -> Fitted:
    """The run's recipe fitted once more, with this size, on these ratings; its length is chosen on those `held_out`."""
    accelerate = accelerator("cpu")
    prepared = prepare(run.dataset, rows, run.backbone, "entity", size, cache, accelerate.device)
    fold = Fold(torch.from_numpy(rows), torch.from_numpy(held_out))
    with tempfile.TemporaryDirectory() as folder:
        fitter = Fitter(Views(prepared), run.record.options, run.bounds, accelerate, Path(folder))
        stage = fitter.fit(fold.fitted, [fold]).stage
    assert isinstance(stage, ViewStage)
    return Fitted(run.dataset, stage.model, prepared.features, stage.ids, run.bounds)


def corrupted(run: Run, cache: Path, seed: int) -> Fitted:
    """The run over item sentences whose letters were shuffled within each word."""
    rng = np.random.default_rng(seed)
    schema = run.dataset.schema

    def shuffled(word: str) -> str:
        return "".join(rng.permutation(list(word)))

    sentences = [
        " ".join(shuffled(word) for word in entity_sentence(schema, 1, row).split())
        for row in attributes(run.dataset.items, schema.item)
    ]
    assert run.backbone is not None
    views = compute_views(run.backbone, sentences, cache, torch.device("cpu"), "corrupted")
    shape = run.prepared.shape
    components = project(views, run.prepared.projections[1], shape, torch.device("cpu"))
    return Fitted.of(run).with_components(1, lambda _: components)


def broken_layer(fitted: Fitted, layer: int, seed: int) -> Fitted:
    """One layer's views of items belong to other items: the head that reads them is broken."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(fitted.dataset.items)))

    def change(components: Tensor) -> Tensor:
        components[:, layer] = components[order, layer]
        return components

    return fitted.with_components(1, change)


def stale(fitted: Fitted, other: Network) -> Fitted:
    """Items' rows come from another fit: after retraining, nobody published the new ones."""
    mixed = Levi(fitted.model.shape)
    mixed.load_state_dict(fitted.model.state_dict())
    mixed.item.load_state_dict(other.item.state_dict())
    return replace(fitted, model=mixed.eval())


@dataclass(frozen=True)
class Traffic:
    """A model's reference and the traffic that it may meet, by name; `id` is in distribution."""

    reference: Reference
    pools: dict[str, Pool]


def traffic(run: Run, other: Network | None, cache: Path) -> Traffic:
    """Ids as they are."""
    fitted, parts, seed = Fitted.of(run), run.split, run.record.options.seed
    reference = fitted.reference(parts.calibration, seed)
    pools = {"id": fitted.pool(parts.test, reference), "OOD genres": fitted.pool(parts.ood, reference)}
    for name, rows in parts.slices.items():
        pools[f"genre {name}"] = fitted.pool(rows, reference)
    pools["cold users"] = fitted.hidden(users=True, items=False).pool(parts.test, reference)
    pools["cold movies"] = fitted.hidden().pool(parts.test, reference)
    pools["corrupt text"] = corrupted(run, cache, seed).pool(parts.test, reference)
    pools["broken layer"] = broken_layer(fitted, fitted.model.shape.layers // 2, seed).pool(parts.test, reference)
    pools["all heads + 0.3"] = fitted.pool(parts.test, reference, lambda heads: heads + np.float32(0.3))
    if other is not None:
        pools["stale rows"] = stale(fitted, other).pool(parts.test, reference)
    inside = pools["id"]
    for name, column in (("users alike", inside.user), ("items alike", inside.item)):
        count = np.bincount(column)[column]
        drawn = np.random.default_rng(seed).choice(len(inside), len(inside), p=(1 / count) / (1 / count).sum())
        pools[f"benign, {name}"] = inside.take(drawn)
    return Traffic(reference, pools)


def hidden_traffic(run: Run) -> Traffic:
    """Movie ids hidden in all of it, the reference included: nothing is told by an id being new."""
    fitted, parts = Fitted.of(run).hidden(), run.split
    reference = fitted.reference(parts.calibration, run.record.options.seed)
    return Traffic(
        reference, {"id": fitted.pool(parts.test, reference), "OOD genres": fitted.pool(parts.ood, reference)}
    )
