"""Names and folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from levi_serve.bundle.prompt import entity_sentence
from training.datasets import NAMES, load
from training.datasets.dataset import with_item_text
from training.errors import UsageError


def test_unknown_names_are_answered_with_the_known() -> None:
    """A wrong name is a usage error that lists the right ones."""
    known = "ml-100k, ml-1m, ml-csv, amazon, sentiment, tables, snapshot, sample"
    with pytest.raises(UsageError, match=f"no dataset 'ml-10m'; choose one of {known}"):
        load("ml-10m", None)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "sample"])
def test_datasets_from_files_need_a_folder(name: str, tmp_path: Path) -> None:
    """Without a folder, or with one that is not there, the error says what to give."""
    with pytest.raises(UsageError, match=f"{name}: no --data was given; give the folder"):
        load(name, None)
    with pytest.raises(UsageError, match="nowhere does not exist; give the folder"):
        load(name, tmp_path / "nowhere")


def test_download_is_offered() -> None:
    """Who asks for ml-100k without files hears of the command that gets them."""
    with pytest.raises(UsageError, match="`levi-train download ml-100k` gets it"):
        load("ml-100k", None)


def test_item_text() -> None:
    """Sentences tell further attributes of an item after the template's, each once; one that is not there is named."""
    dataset = load("sample", None)
    told = with_item_text(dataset, ("genres", "title")).schema
    row = {"title": "A Film", "genres": ("War", "Drama")}
    assert entity_sentence(told, 1, row) == "the movie title is A Film, and the movie genres is War, Drama"
    assert told.pair_template.clauses[-1] == "movie.genres"
    assert told.pair_template.closing == dataset.schema.pair_template.closing
    assert with_item_text(dataset, ()).schema == dataset.schema
    with pytest.raises(UsageError, match="--item-text plot: an item of sample has genres, title, year"):
        with_item_text(dataset, ("genres", "plot"))
