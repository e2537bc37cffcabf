"""Names and folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.datasets import NAMES, load
from training.errors import UsageError


def test_unknown_names_are_answered_with_the_known() -> None:
    """A wrong name is a usage error that lists the right ones."""
    with pytest.raises(UsageError, match="no dataset 'ml-10m'; choose one of ml-100k, ml-1m, ml-csv, tables, sample"):
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
