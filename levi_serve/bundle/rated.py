"""What each user rated in training, so that it need not be recommended again: a memory-mapped sparse table.

`rated.items.npy` int32 holds row numbers of the items' table, user after user and ascending for each. Those of the user
in row u of the users' table lie between entries u and u + 1 of `rated.offsets.npy` [U + 1] int64.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from levi_serve.bundle import Int32Array, Int64Array

NAME = "rated"


class Rated:
    """The table, opened read-only: memory does not grow with the ratings."""

    def __init__(self, folder: Path) -> None:
        """Open both files."""
        self.offsets: Int64Array = np.load(folder / f"{NAME}.offsets.npy", mmap_mode="r")
        self.items: Int32Array = np.load(folder / f"{NAME}.items.npy", mmap_mode="r")

    def __len__(self) -> int:
        """How many users it knows of."""
        return len(self.offsets) - 1

    def items_of(self, user: int) -> Int32Array:
        """Rows of the items that the user in row `user` rated, ascending."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]


def write_rated(folder: Path, users: int, user: Int64Array, item: Int64Array) -> None:
    """Write the table of `users` users from ratings: rows `user` and `item` [m] of the stored tables, in any order."""
    counts = np.bincount(user, minlength=users)
    np.save(folder / f"{NAME}.offsets.npy", np.append(0, counts.cumsum()).astype(np.int64))
    np.save(folder / f"{NAME}.items.npy", item[np.lexsort((item, user))].astype(np.int32))
