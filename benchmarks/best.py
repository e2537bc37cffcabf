"""Our best model beside the recommenders that a user would pick instead, on MovieLens-100K's genre shift.

python -m benchmarks.best choose --data DIR     # ID ratings only: candidates on grouped folds
python -m benchmarks.best compare --data DIR    # test and OOD, three seeds; needs the extra `peers`

`choose` writes benchmarks/results/best_choice.json. The configuration that it speaks for is committed as size `best`
in training/model.py; only then `compare` may read OOD ratings: it refuses while that file differs from the last commit,
and adds a line to benchmarks/results/ood_log.jsonl every time that it does. It writes benchmarks/results/best.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from benchmarks.paired import Errors, difference
from levi_serve.bundle import DoubleArray, Int64Array
from levi_serve.bundle.commands import Command, run
from training.backbones import load_backbone
from training.baselines import ridge, user_mean
from training.checkpoint import write_json
from training.conditions import conditions, versions
from training.datasets import load
from training.datasets.dataset import Dataset, with_content
from training.evaluate import METRICS, Evaluation, evaluate
from training.features import prepare
from training.fit import Fold, ViewStage, fit_by_sampling, predict
from training.model import SIZES, FactorSize, layer_weights
from training.options import Options, Recipe, default_cache
from training.run import fit, open_run
from training.splits import genre_folds, item_folds, split

SEEDS = (0, 1, 2)
RESULTS = Path("benchmarks/results")
CONFIGURATION = ("training/model.py", "training/factors.py", "benchmarks/best.py")
WEIGHTS = "late"
"""Of the heads, as chosen on the folds."""
BEST = SIZES["best"]
assert isinstance(BEST, FactorSize)


def candidates() -> dict[str, FactorSize]:
    """What `choose` compares: the committed size and its neighbours."""
    assert isinstance(BEST, FactorSize)
    sampling = BEST.sampling
    return {
        "best": BEST,
        "64 components": BEST.model_copy(update={"components": 64}),
        "rank 8": BEST.model_copy(update={"sampling": sampling.model_copy(update={"rank": 8})}),
        "items count once": BEST.model_copy(update={"sampling": sampling.model_copy(update={"popularity": 0.0})}),
    }


class OnData(Command):
    """What both commands are given."""

    data: Annotated[Path, Field(description="Folder of MovieLens-100K.")]
    runs: Annotated[Path, Field(description="Folder of fitted runs and of finished parts.")] = Path("runs/best")
    cache: Annotated[Path, Field(default_factory=default_cache, description="Folder of cached views.")]


class Choose(OnData):
    """Errors of candidates on folds of the training part; finished parts are not computed again."""

    parts: Annotated[tuple[str, ...], Field(description="Only these parts; all by default.")] = ()
    names: Annotated[tuple[str, ...], Field(description="Only these candidates and peers.")] = ()

    def __call__(self) -> None:
        """Compute what is missing and write all that is there."""
        dataset = load("ml-100k", self.data)
        for part, fitted, held_out in _parts(dataset):
            if not self.parts or part in self.parts:
                for name, judge in self._judges().items():
                    path = self.runs / "choice" / f"{name}, {part}.json"
                    if (not self.names or name in self.names) and not path.exists():
                        began = time.monotonic()
                        found = judge(dataset, fitted, held_out)
                        path.parent.mkdir(parents=True, exist_ok=True)
                        seconds = round(time.monotonic() - began, 1)
                        write_json(path, {"name": name, "part": part, **found, "seconds": seconds})
                        print(name, part, found, seconds, flush=True)
        rows = [json.loads(path.read_text()) for path in sorted((self.runs / "choice").glob("*.json"))]
        write_json(RESULTS / "best_choice.json", _facts("choose") | {"seed": 0, "rows": rows})

    def _judges(self) -> dict[str, Callable[[Dataset, Int64Array, Int64Array], dict[str, object]]]:
        from benchmarks.peers import myfm  # noqa: PLC0415 - an extra

        def of_size(size: FactorSize) -> Callable[[Dataset, Int64Array, Int64Array], dict[str, object]]:
            return lambda dataset, fitted, held_out: self._heads(dataset, size, fitted, held_out)

        return {
            **{name: of_size(size) for name, size in candidates().items()},
            "ridge": lambda d, a, b: {"rmse": _rmse(d, b, ridge(d, a, b, 0)[0])},
            "myFM": lambda d, a, b: {"rmse": _rmse(d, b, myfm(d, a, b, 0))},
        }

    def _heads(self, plain: Dataset, size: FactorSize, fitted: Int64Array, held_out: Int64Array) -> dict[str, object]:
        """The mean of the heads, and each head alone."""
        dataset, device = with_content(plain), torch.device("cpu")
        prepared = prepare(dataset, fitted, load_backbone(Options().backbone), "entity", size, self.cache, device)
        bounds = (dataset.schema.rating_min, dataset.schema.rating_max)
        rows, out = torch.from_numpy(fitted), torch.from_numpy(held_out)
        with TemporaryDirectory() as folder:
            found = fit_by_sampling(prepared, Recipe(select="random"), bounds, rows, [Fold(rows, out)], Path(folder))
        assert isinstance(found.stage, ViewStage)
        heads = predict(found.stage.model, prepared.features, out, found.stage.ids).double().numpy()
        by_weights = {
            kind: _rmse(dataset, held_out, heads @ np.array(layer_weights(kind, heads.shape[1])))
            for kind in ("equal", "late")
        }
        return {
            "by_weights": by_weights,
            "heads": [_rmse(dataset, held_out, head) for head in heads.T],
        }


class Compare(OnData):
    """Fit, evaluate on test and OOD, and compare; runs and peers that are there are not fitted again."""

    peers: Annotated[tuple[str, ...], Field(description="Only these peers; all by default.")] = ()

    def __call__(self) -> None:
        """Print the table and write the figures."""
        commit = _committed()
        dataset = load("ml-100k", self.data)
        errors: dict[str, list[Errors]] = {}
        heads: list[Evaluation] = []
        for seed in SEEDS:
            parts = split(dataset, seed)
            rows = np.concatenate([parts.test, parts.ood])
            shifted = np.arange(len(rows)) >= len(parts.test)
            predictions = {"LEVI best": self._levi(seed, rows, heads), **self._peers(dataset, seed, rows)}
            for name, predicted in predictions.items():
                error = predicted.clip(dataset.schema.rating_min, dataset.schema.rating_max)
                squared = np.square(error - dataset.ratings.value[rows].astype(np.float64))
                errors.setdefault(name, []).append(
                    Errors(dataset.ratings.item[rows].astype(np.int64), squared, shifted)
                )
        table = [_row(name, found) for name, found in errors.items()]
        pairs = {
            f"LEVI best - {name}": {
                where: difference(errors["LEVI best"], found, ood) for where, ood in (("id", False), ("ood", True))
            }
            for name, found in errors.items()
            if name != "LEVI best"
        }
        levi = table[0]
        with (RESULTS / "ood_log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({"date": conditions()["date"], "commit": commit, "seeds": SEEDS, **levi}) + "\n")
        facts = _facts("compare") | {
            "commit": commit,
            "seeds": SEEDS,
            "rows": table,
            "paired": pairs,
            "auroc_spread": [e.auroc_spread for e in heads],
            "heads_id": [e.heads_id for e in heads],
            "heads_ood": [e.heads_ood for e in heads],
        }
        write_json(RESULTS / "best.json", facts)
        print(_markdown(table))

    def _levi(self, seed: int, rows: Int64Array, evaluations: list[Evaluation]) -> DoubleArray:
        folder = self.runs / f"seed-{seed}"
        fit(
            Options(dataset="ml-100k", data=self.data, size="best", weights=WEIGHTS, seed=seed, select="random"),
            folder,
            self.cache,
            "cpu",
        )
        opened = open_run(folder, self.cache, "cpu")
        if not (folder / METRICS).exists():
            evaluate(opened)
        evaluations.append(Evaluation.model_validate_json((folder / METRICS).read_bytes()))
        heads = predict(opened.model, opened.prepared.features, torch.from_numpy(rows), opened.ids)
        return opened.model.rating(heads).double().numpy()

    def _peers(self, dataset: Dataset, seed: int, rows: Int64Array) -> dict[str, DoubleArray]:
        from benchmarks.peers import PEERS  # noqa: PLC0415 - an extra

        train = split(dataset, seed).train
        models = {"shrunk user mean": lambda d, a, b, _: user_mean(d, a, b), "ridge": lambda *a: ridge(*a)[0], **PEERS}
        found = {}
        for name, model in models.items():
            if self.peers and name not in self.peers:
                continue
            path = self.runs / "peers" / f"{name}, {seed}.npy"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, model(dataset, train, rows, seed))
            found[name] = np.load(path)
        return found


def _parts(dataset: Dataset) -> Iterator[tuple[str, Int64Array, Int64Array]]:
    """(name, fitted, held out): random selection, item-disjoint folds, and one genre left out; no test, no OOD."""
    parts = split(dataset, 0)
    yield "random", parts.train, parts.selection
    for k, (fitted, held_out) in enumerate(item_folds(dataset, parts.train, 5, 0)):
        yield f"items {k}", fitted, held_out
    yield from genre_folds(dataset, parts.train)


def _rmse(dataset: Dataset, rows: Int64Array, predicted: DoubleArray) -> float:
    error = predicted.clip(dataset.schema.rating_min, dataset.schema.rating_max) - dataset.ratings.value[rows]
    return float(np.sqrt(np.square(error).mean()))


def _row(name: str, errors: list[Errors]) -> dict[str, object]:
    by_seed = [[e.rmse(ood=False) for e in errors], [e.rmse(ood=True) for e in errors]]
    return {
        "model": name,
        "id_rmse": float(np.mean(by_seed[0])),
        "ood_rmse": float(np.mean(by_seed[1])),
        "id_by_seed": by_seed[0],
        "ood_by_seed": by_seed[1],
    }


def _committed() -> str:
    """The commit whose configuration is judged."""
    changed = subprocess.run(["git", "status", "--porcelain", *CONFIGURATION], capture_output=True, check=True)  # noqa: S607
    if changed.stdout:
        sys.exit(
            f"{' or '.join(CONFIGURATION)} differs from the last commit: commit the configuration before its OOD run"
        )
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, check=True, text=True)  # noqa: S607
    return head.stdout.strip()


def _facts(command: str) -> dict[str, object]:
    return {
        "command": f"python -m benchmarks.best {command} --data ml-100k",
        **conditions(),
        "versions": versions() | {name: version(name) for name in ("scikit-surprise", "myfm", "cornac")},
    }


def _markdown(table: list[dict[str, object]]) -> str:
    lines = ["| model | ID RMSE | OOD RMSE |", "|---|---|---|"]
    lines += [f"| {r['model']} | {r['id_rmse']:.4f} | {r['ood_rmse']:.4f} |" for r in table]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run("best", "", {"choose": Choose, "compare": Compare}, sys.argv[1:]))
