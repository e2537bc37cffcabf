"""training.features: what LEVI reads of a dataset, and what is fitted on the training part only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.decomposition import PCA

from levi_serve.bundle.schema import Attribute, Entity, Schema, Template
from training import features as module
from training.backbones import load_backbone
from training.datasets.dataset import Dataset, Ratings
from training.features import fit_projection, prepare, project
from training.model import SIZES, Projection, Shape
from training.views import Views

CPU = torch.device("cpu")
FITTED = np.arange(3, 43)


def shape(components: int | None, layers: int = 2, width: int = 6) -> Shape:
    size = SIZES["ref"].model_copy(update={"components": components})
    return Shape(size=size, views="entity", layers=layers, width=width, counts=(1, 1), categories=((), ()))


def random_views() -> np.ndarray:
    """[50, 2, 6] views that are correlated, off centre, and of very different size per layer."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(2, 6, 6)) * np.array([1, 100])[:, None, None]
    x = np.einsum("bnd,nde->bne", rng.normal(size=(50, 2, 6)), mixing)
    x += np.array([5, -300])[:, None]
    return x.astype(np.float32)


def components(x: np.ndarray, chosen: Shape) -> np.ndarray:
    """What the heads read of the views, fitted on the rows in FITTED."""
    views = Views([x])
    return project(views, fit_projection(views, FITTED, chosen), chosen, CPU).numpy()


def test_principal_components() -> None:
    """Components are scikit-learn's, fitted on the chosen rows, divided by the layer's root mean square."""
    x = random_views()
    found = components(x, shape(4))
    for layer in range(2):
        pca = PCA(4).fit(x[FITTED, layer].astype(np.float64))
        expected = pca.transform(x[:, layer])
        expected /= np.sqrt(np.square(expected[FITTED]).mean())
        signs = np.sign((found[:, layer] * expected).sum(0))
        np.testing.assert_allclose(found[:, layer] * signs, expected, atol=1e-4)
    np.testing.assert_allclose(found[FITTED].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(np.square(found[FITTED]).mean((0, 2)), 1, atol=1e-5)


def test_all_components() -> None:
    """Without a number of components, views are centred and divided by the layer's root mean square, not rotated."""
    x = random_views()
    centred = x - x[FITTED].mean(0)
    expected = centred / np.sqrt(np.square(centred[FITTED]).mean((0, 2)))[:, None]
    np.testing.assert_allclose(components(x, shape(None)), expected, atol=1e-4)


@pytest.mark.parametrize("kept", [4, None])
def test_support(kept: int | None) -> None:
    """Support is 1 in the mean square over the fitted entities, and larger far from them."""
    views, chosen = Views([random_views()]), shape(kept)
    state = fit_projection(views, FITTED, chosen)
    projection = Projection(chosen)
    projection.load_state_dict(state)
    found = projection.support(project(views, state, chosen, CPU))
    assert found.shape == (50, 1)
    assert float(found[FITTED].square().mean()) == pytest.approx(1, abs=1e-4)
    far = projection.support(projection(torch.from_numpy(random_views() * 10)))
    assert float(far.min()) > 2


@pytest.mark.parametrize("kept", [2, 6, None])
@pytest.mark.parametrize("constant", [[1], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]])
def test_constant_columns(kept: int | None, constant: list[int]) -> None:
    """Columns that never vary, even all of them, give finite components and support: nothing is divided by 0."""
    x = random_views()
    x[:, :, constant] = 7
    found = components(x, shape(kept))
    assert np.isfinite(found).all()
    projection = Projection(shape(kept))
    projection.load_state_dict(fit_projection(Views([x]), FITTED, shape(kept)))
    assert projection.support(torch.from_numpy(found)).isfinite().all()
    if len(constant) == 6:
        assert not found.any()
    else:
        np.testing.assert_allclose(np.square(found[FITTED]).mean((0, 2)), 1, atol=1e-4)


def test_an_axis_whose_entries_cancel_is_kept() -> None:
    """A principal axis like [1, −1]/√2, whose entries sum to exactly 0, is an axis like any other."""
    x = np.zeros((50, 1, 2), np.float32)
    x[:, 0, 0] = np.arange(50)
    x[:, 0, 1] = -x[:, 0, 0]
    found = components(x, shape(1, layers=1, width=2))
    assert float(np.square(found[FITTED]).mean()) == pytest.approx(1, abs=1e-4)


def test_signs_do_not_depend_on_the_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eigenvector and its negative lead to the same components."""
    x, plain = random_views(), torch.linalg.eigh
    expected = components(x, shape(4))

    def negated(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, vectors = plain(matrix)
        return values, -vectors

    monkeypatch.setattr(torch.linalg, "eigh", negated)
    np.testing.assert_allclose(components(x, shape(4)), expected, atol=1e-6)


def test_many_sentences_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A projection reads at most SAMPLE of the fitted sentences, and none of the others."""
    monkeypatch.setattr(module, "SAMPLE", 10)
    x = random_views()
    x[np.setdiff1d(np.arange(50), FITTED)] = np.nan
    state = fit_projection(Views([x]), FITTED, shape(4))
    assert all(tensor.isfinite().all() for tensor in state.values())
    centres = {tuple(x[FITTED][rows].mean(0).ravel()) for rows in (slice(None), slice(10))}
    assert tuple(state["mean"].numpy().ravel()) not in centres


def dataset() -> Dataset:
    """Three users, three movies; rating i is of value i + 1."""
    schema = Schema(
        user=Entity(name="user", attributes=(Attribute(name="job", kind="category", embed=True),)),
        item=Entity(
            name="movie",
            attributes=(
                Attribute(name="title", kind="text"),
                Attribute(name="genres", kind="category", many=True, slots=2, embed=True),
            ),
        ),
        rating_min=1,
        rating_max=5,
        user_template=Template(clauses=("user.job",)),
        item_template=Template(clauses=("movie.title",)),
        pair_template=Template(clauses=("user.id", "movie.title")),
    )
    return Dataset(
        "test",
        schema,
        pa.table({"id": [10, 20, 30], "job": ["nurse", None, "pilot"]}),
        pa.table({"id": [1, 2, 3], "title": ["A", "B", "C"], "genres": [["War", "Art"], ["Art"], ["Pop"]]}),
        Ratings(
            np.array([0, 1, 2, 0], np.int32),
            np.array([0, 1, 2, 1], np.int32),
            np.array([1, 2, 3, 4], np.float32),
            np.zeros(4, np.int64),
        ),
        None,
    )


@pytest.mark.parametrize("views", ["entity", "pair", "none"])
def test_prepared(bert: Path, tmp_path: Path, views: module.ViewKind) -> None:
    """Vocabulary and known ids come from the training ratings alone; a batch finds its rows' own inputs."""
    train = np.array([0, 1, 3])  # the pilot and movie C occur in rating 2 only
    backbone = None if views == "none" else load_backbone(str(bert))
    prepared = prepare(dataset(), train, backbone, views, SIZES["ref"], tmp_path, CPU)
    features = prepared.features
    assert prepared.vocabulary == ({"job": ["nurse"]}, {"genres": ["Art", "War"]})
    assert prepared.shape.categories == (((1, 1),), ((2, 2),))
    assert features.codes[0].tolist() == [[1], [0], [0]]
    assert features.codes[1].tolist() == [[2, 1], [1, 0], [0, 0]]
    known = features.known_ids(torch.from_numpy(train))
    assert [ids.tolist() for ids in known] == [[1, 2, 0], [1, 2, 0]]

    batch = features.batch(torch.tensor([3, 2]), known)
    assert features.value[[3, 2]].tolist() == [4, 3]
    assert [ids.tolist() for ids in batch.ids] == [[1, 0], [2, 0]]
    assert [codes.tolist() for codes in batch.codes] == [[[1], [0]], [[1, 0], [0, 0]]]
    if views == "entity":
        for side, rows in ((0, [0, 2]), (1, [1, 2])):
            everyone, here = features.components[side], batch.components[side]
            assert everyone is not None
            assert here is not None
            assert torch.equal(here, everyone[rows])
    else:
        assert batch.components == (None, None)
    if views == "pair":
        assert features.pair_components is not None
        assert batch.pair_components is not None
        assert torch.equal(batch.pair_components, features.pair_components[[3, 2]])
    else:
        assert batch.pair_components is None
    assert len(prepared.projections) == {"entity": 2, "pair": 1, "none": 0}[views]


@pytest.mark.parametrize("views", ["entity", "pair"])
def test_projections_are_fitted_on_training_sentences(bert: Path, tmp_path: Path, views: module.ViewKind) -> None:
    """The centre of a projection is that of the sentences in training, and no other's."""
    train = np.array([0, 1, 3])
    prepared = prepare(dataset(), train, load_backbone(str(bert)), views, SIZES["ref"], tmp_path, CPU)
    if views == "entity":
        parts = [(prepared.features.components[side], [0, 1]) for side in (0, 1)]
    else:
        parts = [(prepared.features.pair_components, [0, 1, 3])]
    for components, fitted in parts:
        assert components is not None
        torch.testing.assert_close(components[fitted].mean(0), torch.zeros_like(components[0]), atol=1e-3, rtol=0)
        assert float(components.mean(0).abs().max()) > 0.1  # with rating 2's it would be elsewhere
