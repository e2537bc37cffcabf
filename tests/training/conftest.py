"""What all tests of the fitting side share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from training.datasets import load
from training.datasets.dataset import Dataset


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread for tiny tensors: more of them would only wait for each other, long where cores are busy."""
    threads = torch.get_num_threads()
    if "ml100k" not in request.fixturenames:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tables: Path) -> Dataset:
    """The data of the tiny tables."""
    return load("tables", tables)
