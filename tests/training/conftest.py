"""A tiny backbone, tiny tables, and runs fitted on them once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import write_bert, write_tables
from training.export import export
from training.options import Options
from training.run import Run, fit, open_run


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny BERT."""
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny dataset in the `tables` format."""
    return write_tables(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A view cache that all tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def options(bert: Path, tables: Path) -> Options:
    """A fit of a second or two."""
    return Options(dataset="tables", data=tables, backbone=str(bert), epochs=2, batch=100)


def fitted(options: Options, folder: Path, cache: Path) -> Run:
    """A finished run on the CPU."""
    fit(options, folder, cache, "cpu")
    return open_run(folder, cache, "cpu")


@pytest.fixture(scope="session")
def entity_run(options: Options, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """LEVI over entity views."""
    return fitted(options, tmp_path_factory.mktemp("runs") / "entity", cache)


@pytest.fixture(scope="session")
def pair_run(options: Options, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """LEVI over pair views."""
    return fitted(options.model_copy(update={"views": "pair"}), tmp_path_factory.mktemp("runs") / "pair", cache)


@pytest.fixture(scope="session")
def entity_repository(entity_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the entity run as version 1; not to be changed."""
    return export(entity_run, tmp_path_factory.mktemp("entity"), "levi", 100).parents[1]


@pytest.fixture(scope="session")
def pair_repository(pair_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the pair run as version 1; not to be changed."""
    return export(pair_run, tmp_path_factory.mktemp("pair"), "levi", 100).parents[1]
