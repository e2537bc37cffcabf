"""training.bilinear: rows and heads by hand, and a run of size `best` from fit to files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import fitted
from training import bilinear
from training.bilinear import BilinearLevi, FactorHalf
from training.errors import UsageError
from training.factors import Sampling
from training.fit import predict
from training.model import Batch, FactorSize, Shape
from training.options import Options
from training.run import STAGES, Run, fit, open_run

SHAPE = Shape(
    size=FactorSize(components=2, sampling=Sampling(rank=1, burn_in=1, samples=1, kept=1)),
    views="entity",
    layers=2,
    width=4,
    counts=(1, 1),
    categories=((), ((3, 2), (2, 1))),  # a category of 3 levels in two slots, one of 2 levels
)
"""D = 1 + (3 + 2 + 2) + 1 = 9 columns a head."""


def test_content_by_hand() -> None:
    """An indicator per level, wherever the level stands; 0 is no level; then the layer's own components."""
    half = FactorHalf(SHAPE, 1)
    components = torch.tensor([[[0.1, 0.2], [0.3, 0.4]], [[1.0, 2.0], [3.0, 4.0]]])
    content = half.content(torch.tensor([[3, 1, 2], [0, 2, 0]]), components)
    known = [[1, 0, 1, 0, 1], [0, 1, 0, 0, 0]]
    expected = [[[*known[b], *components[b, j].tolist()] for j in (0, 1)] for b in (0, 1)]
    np.testing.assert_allclose(content.numpy(), expected, rtol=1e-6)


def test_heads_by_hand() -> None:
    """Head j: the mean + a_u,j·[1 ; c ; h_j] + z_u,j z_i,j; an unknown item has no z."""
    model = BilinearLevi(SHAPE)
    assert SHAPE.embedding == 18
    user = np.arange(1.0, 19).reshape(2, 9) / 10
    model.user.ids.weight[1, :18] = torch.tensor(user.ravel())
    model.item.ids.weight[1, [8, 17]] = torch.tensor([0.5, -2.0])
    model.center.fill_(3.0)
    components = torch.tensor([[[0.1, 0.2], [0.3, 0.4]]])
    codes = (torch.zeros(1, 0, dtype=torch.int64), torch.tensor([[3, 1, 2]]))
    for item, z in ((1, (0.5, -2.0)), (0, (0.0, 0.0))):
        batch = Batch((torch.tensor([1]), torch.tensor([item])), codes, (torch.zeros(1, 2, 2), components), None)
        inputs = [[1, 1, 0, 1, 0, 1, *components[0, j].tolist(), z[j]] for j in (0, 1)]
        expected = 3 + (user * inputs).sum(1)
        np.testing.assert_allclose(model(batch).numpy()[0], expected, rtol=1e-5)


def test_a_run(best_run: Run, cache: Path, tmp_path: Path) -> None:
    """It reads items' categories, predicts as its record says, and comes out the same from the same seed."""
    rows = torch.from_numpy(best_run.split.selection)
    heads = predict(best_run.model, best_run.prepared.features, rows, best_run.ids)
    error = best_run.model.rating(heads).clamp(*best_run.bounds) - best_run.prepared.features.value[rows]
    assert best_run.record.curve == pytest.approx((float(error.square().mean().sqrt()),), abs=1e-6)
    assert heads.std(1).min() > 0
    again = fitted(best_run.record.options, tmp_path / "again", cache)
    for name, tensor in best_run.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_grouped_folds(options: Options, cache: Path, tmp_path: Path) -> None:
    """Grouped folds judge it; the model is that of all training ratings."""
    wanted = options.model_copy(update={"size": "best", "select": "item"})
    assert len(fit(wanted, tmp_path / "run", cache, "cpu").curve) == 1
    run = open_run(tmp_path / "run", cache, "cpu")
    assert run.model.item.ids.weight[run.ids[1][run.ids[1] > 0]].abs().amax(1).min() > 0


def test_killed_and_resumed(best_run: Run, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit that is killed goes on with the head that it was at, and ends with the numbers of one never stopped."""
    plain, calls = bilinear.sample, 0

    def killed(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(bilinear, "sample", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(best_run.record.options, tmp_path / "run", cache, "cpu")
    again = fitted(best_run.record.options, tmp_path / "run", cache)
    assert calls == 1 + best_run.model.shape.layers
    assert all(torch.equal(t, again.model.state_dict()[name]) for name, t in best_run.model.state_dict().items())
    assert not (tmp_path / "run" / STAGES).exists()


def test_it_needs_entity_views(options: Options, cache: Path, tmp_path: Path) -> None:
    """A pair's sentence is no view of an item."""
    with pytest.raises(UsageError, match=r"--size best .* use --views entity"):
        fit(options.model_copy(update={"size": "best", "views": "pair"}), tmp_path / "run", cache, "cpu")
