"""Ratings from files, checked, as one `Dataset`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from training.datasets.amazon import load_amazon, load_sentiment
from training.datasets.dataset import Dataset
from training.datasets.movielens import load_1m, load_100k, load_csv
from training.datasets.sample import generate
from training.datasets.snapshot import load_snapshot
from training.datasets.tables import load_tables
from training.errors import UsageError

_LOADERS: dict[str, Callable[[Path], Dataset]] = {
    "ml-100k": load_100k,
    "ml-1m": load_1m,
    "ml-csv": load_csv,
    "amazon": load_amazon,
    "sentiment": load_sentiment,
    "tables": load_tables,
    "snapshot": load_snapshot,
    "sample": lambda _: generate(),
}
NAMES = tuple(_LOADERS)
"""The datasets that `load` knows."""


def load(name: str, data: Path | None) -> Dataset:
    """The dataset `name` from the folder `data` (tables: or the TOML file; sample needs none and ignores it).

    Raises UsageError if the name is unknown or the folder is missing, DataError if its files are not as they should be.
    """
    if name not in _LOADERS:
        raise UsageError(f"there is no dataset '{name}'; choose one of {', '.join(NAMES)}")
    if name == "sample":
        return generate()
    if data is None or not data.exists():
        found = "no --data was given" if data is None else f"{data} does not exist"
        remedy = "; `levi-train download ml-100k` gets it" if name == "ml-100k" else ""
        raise UsageError(f"{name}: {found}; give the folder that holds its files{remedy}")
    return _LOADERS[name](data)
