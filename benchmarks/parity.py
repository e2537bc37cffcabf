"""Do the exported graphs say what torch says? Both views and both sizes, fitted for one epoch, on 10,000 pairs each.

python -m benchmarks.parity --data DIR     # prints a table, writes benchmarks/results/parity.json
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from levi_serve.bundle.commands import Command, run
from levi_serve.bundle.manifest import read_manifest
from training.checkpoint import write_json
from training.conditions import conditions
from training.export import PARITY, export
from training.options import Options, default_cache
from training.run import fit, open_run

CASES: tuple[tuple[Literal["entity", "pair"], Literal["ref", "paper"]], ...] = (
    ("entity", "ref"),
    ("entity", "paper"),
    ("pair", "ref"),
    ("pair", "paper"),
)


class Parity(Command):
    """Fit, export, compare; exits 1 where the exporter itself refuses."""

    data: Annotated[Path, Field(description="Folder of MovieLens-100K.")]
    cache: Annotated[Path, Field(default_factory=default_cache, description="Folder of cached views.")]
    pairs: Annotated[PositiveInt, Field(description="Pairs that are compared.")] = 10_000
    out: Annotated[Path, Field(description="Where the figures go.")] = Path("benchmarks/results/parity.json")

    def __call__(self) -> None:
        """Print the table and write the figures."""
        rows = []
        print(
            "| views | size | largest difference of a head rating, fp32 | of a rating, fp16 rows | of RMSE, fp16 rows |"
        )
        print("|---|---|---|---|---|")
        for views, size in CASES:
            with tempfile.TemporaryDirectory() as folder:
                # The paper size has no dropout and wider layers: it wants a smaller rate.
                rate = 6e-3 if size == "ref" else 1e-3
                options = Options(
                    dataset="ml-100k",
                    data=self.data,
                    views=views,
                    size=size,
                    epochs=1,
                    learning_rate=(rate,),
                    select="random",
                )
                fit(options, Path(folder) / "run", self.cache, "cpu")
                fitted = open_run(Path(folder) / "run", self.cache, "cpu")
                export(fitted, Path(folder) / "repository", "levi", self.pairs)
                metrics = read_manifest(Path(folder) / "repository", "levi", 1).metrics
            rows.append({"views": views, "size": size, **metrics})
            shown = [f"{metrics[k]:.1e}" for k in ("parity", "fp16_rating_difference", "fp16_rmse_difference")]
            print(f"| {views} | {size} | {' | '.join(shown)} |", flush=True)
        write_json(
            self.out,
            {
                "command": "python -m benchmarks.parity --data ml-100k",
                **conditions(),
                "pairs": self.pairs,
                "allowed": PARITY,
                "rows": rows,
            },
        )


if __name__ == "__main__":
    sys.exit(run("parity", "", {"run": Parity}, sys.argv[1:], default="run"))
