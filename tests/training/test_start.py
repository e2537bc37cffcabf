"""training.start: a fit that goes on from an earlier run begins where that one ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from levi_serve.bundle.feedback import Event, encode_event
from tests.tiny import fitted
from training.datasets import load
from training.datasets.snapshot import write_snapshot
from training.errors import UsageError
from training.fit import new_model, predict
from training.gates import in_service
from training.merge import merge
from training.options import Options
from training.run import Run, fit, open_run
from training.splits import split


@pytest.fixture(scope="module")
def grown(options: Options, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny tables with a new movie in front of all others and ratings of it, as a snapshot."""
    folder = tmp_path_factory.mktemp("grown")
    base = load("tables", options.data)
    described = {"movie": {"title": "new star", "genres": ["Drama"]}}
    users = base.users["id"].to_pylist()
    events = [Event(id=str(u), user=u, item=9001, rating=5, time=1, received=1, attributes=described) for u in users]
    batch = folder / "1.events"
    batch.write_bytes(b"".join(map(encode_event, events)))
    merged = merge(base, split(base, 0), {1: batch})
    data = merged.dataset
    order = np.arange(len(data.items))[::-1]
    turned = replace(data.ratings, item=(len(order) - 1 - data.ratings.item).astype(np.int32))
    write_snapshot(folder, replace(data, items=data.items.take(order), ratings=turned), merged.batch)
    return folder


def started(options: Options, run: Run, data: Path) -> Options:
    changes = {"dataset": "snapshot", "data": data, "start": run.folder, "epochs": 1}
    return options.model_copy(update=changes)


@pytest.mark.parametrize("views", ["entity", "pair"])
def test_it_begins_where_the_other_ended(
    views: str, grown: Path, cache: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Before the first step the model rates as the earlier one does, whose rows lie in another order; the new movie is
    as an unknown one. It then learns, and is opened again as it was fitted.
    """
    earlier: Run = request.getfixturevalue(f"{views}_run")
    wanted = started(earlier.record.options, earlier, grown)
    run = fitted(wanted, tmp_path / "run", cache)
    before = in_service(earlier, run.dataset, cache)
    train = torch.from_numpy(run.split.train)
    model = new_model(run.prepared, wanted, run.prepared.features.value[train]).eval()
    movies = run.dataset.items["id"].to_pylist()
    new = run.dataset.ratings.item == movies.index(9001)
    assert movies[0] == 9001
    rows = np.arange(len(new))
    heads = predict(model, run.prepared.features, torch.from_numpy(rows), run.ids).numpy()
    np.testing.assert_allclose(heads, before.heads(rows), atol=1e-5)
    assert (model.item.ids.weight[1] == model.item.ids.weight[0]).all()
    after = predict(run.model, run.prepared.features, torch.from_numpy(rows[new]), run.ids).mean()
    assert after > heads[new].mean() + 0.01
    assert run.ids[1][0] == 1


def test_runs_that_are_not_alike(
    options: Options, entity_run: Run, best_run: Run, grown: Path, cache: Path, tmp_path: Path
) -> None:
    """Another backbone, size or schema, and heads that are sampled, are refused before anything is fitted."""
    wanted = started(options, entity_run, grown)
    for k, (changes, says) in enumerate(
        (
            ({"size": "paper"}, "another size"),
            ({"weights": "late"}, "another weights"),
            ({"dataset": "sample", "data": None}, "another schema"),
            ({"start": best_run.folder, "size": "best"}, "fitted from nothing"),
            ({"start": tmp_path}, "holds no run"),
        )
    ):
        with pytest.raises(UsageError, match=says):
            fit(wanted.model_copy(update=changes), tmp_path / f"run-{k}", cache, "cpu")


def test_the_earlier_run_is_needed_once(
    options: Options, entity_run: Run, grown: Path, cache: Path, tmp_path: Path
) -> None:
    """What was taken over lies in the new run's folder."""
    wanted = started(options, entity_run, grown).model_copy(update={"start": tmp_path / "earlier"})
    (tmp_path / "earlier").symlink_to(entity_run.folder)
    fit(wanted, tmp_path / "run", cache, "cpu")
    (tmp_path / "earlier").unlink()
    assert open_run(tmp_path / "run", cache, "cpu").record.options.start == tmp_path / "earlier"
