"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # torch is imported by the fixtures that need it: the server's tests start without it
    from training.options import Options
    from training.run import Run


@pytest.fixture(scope="session")
def ml100k() -> Path:
    """The folder of the real MovieLens-100K files, which are never part of this repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "ml-100k"
    folder = Path(os.environ.get("LEVI_ML100K", beside))
    if not folder.is_dir():
        message = f"{folder} is missing: set LEVI_ML100K to the folder of MovieLens-100K"
        if "CI" in os.environ:
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny BERT."""
    from tests.tiny import write_bert

    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny dataset in the `tables` format."""
    from tests.tiny import write_tables

    return write_tables(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A view cache that all tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def options(bert: Path, tables: Path) -> Options:
    """A fit of half a second."""
    from training.options import Options

    return Options(
        dataset="tables", data=tables, backbone=str(bert), epochs=2, batch=100, learning_rate=(2e-3,), select="random"
    )


@pytest.fixture(scope="session")
def entity_run(options: Options, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """LEVI over entity views."""
    from tests.tiny import fitted

    return fitted(options, tmp_path_factory.mktemp("runs") / "entity", cache)


@pytest.fixture(scope="session")
def pair_run(options: Options, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """LEVI over pair views."""
    from tests.tiny import fitted

    return fitted(options.model_copy(update={"views": "pair"}), tmp_path_factory.mktemp("runs") / "pair", cache)


@pytest.fixture(scope="session")
def best_run(options: Options, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """LEVI with Bayesian heads."""
    from tests.tiny import fitted

    return fitted(options.model_copy(update={"size": "best"}), tmp_path_factory.mktemp("runs") / "best", cache)


@pytest.fixture(scope="session")
def _large() -> Iterator[None]:
    """Tensors of the tiny backbone are large enough to be set aside, as a real one's are."""
    from training import graphs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "LARGE", 1000)
        yield


@pytest.fixture(scope="session")
def best_repository(best_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with it as version 1; not to be changed."""
    from training.export import export

    return export(best_run, tmp_path_factory.mktemp("best"), "levi", 100).parents[1]


@pytest.fixture(scope="session")
def entity_repository(entity_run: Run, _large: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the entity run as version 1; not to be changed."""
    from training.export import export

    return export(entity_run, tmp_path_factory.mktemp("entity"), "levi", 100).parents[1]


@pytest.fixture(scope="session")
def pair_repository(pair_run: Run, _large: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the pair run as version 1; not to be changed."""
    from training.export import export

    return export(pair_run, tmp_path_factory.mktemp("pair"), "levi", 100).parents[1]
