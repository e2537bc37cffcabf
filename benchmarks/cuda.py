"""Does a bundle run on a GPU as it does on the CPU? To be run on a machine with CUDA and the extra `gpu`.

python -m benchmarks.cuda --bundle model_repo   # prints, writes benchmarks/results/cuda.json; exits 1 if it does not

It checks that the CUDA provider really started, that ratings are the CPU's within the version's golden tolerance, and
measures both. We had no such machine: the code was run with I/O binding on the CPU only.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from pydantic import Field, PositiveInt

from benchmarks.batch import timed
from levi_serve.backends.binding import page_locked
from levi_serve.bundle import AnyArray
from levi_serve.bundle.commands import Command, RunError, run
from levi_serve.encoder import NewEntity
from levi_serve.predictor import GivenPair, PairReader, entity_feeds
from levi_serve.store import TableStore
from levi_serve.versions import Version, load, newest
from training.checkpoint import write_json
from training.conditions import conditions

Work: TypeAlias = dict[str, Any]


class Cuda(Command):
    """Compare a bundle on CUDA with the same on the CPU; needs a CUDA machine, on which we have not run it."""

    bundle: Annotated[Path, Field(description="Model repository.")]
    batches: Annotated[tuple[PositiveInt, ...], Field(description="Pairs, or new entities, in one run.")] = (1, 32, 256)
    seed: int = 0
    out: Annotated[Path, Field(description="Where the figures go.")] = Path("benchmarks/results/cuda.json")

    def __call__(self) -> None:
        """Print a table; write it.

        Raises:
            RunError: CUDA did not start, or its ratings are not the CPU's.

        """
        number = newest(self.bundle, "levi")
        cuda = load(self.bundle, "levi", number, "cuda", threads=1)  # fails first where there is no GPU
        cpu = load(self.bundle, "levi", number, "cpu", threads=1)
        rows = []
        for size in self.batches:
            for name, on_cpu in self._work(cpu, size).items():
                on_cuda = self._work(cuda, size)[name]
                rows.append(_compared(f"{name}, {size}", on_cpu, on_cuda, cpu.manifest.golden_tolerance, size))
        locked = page_locked() is not None
        facts: dict[str, Any] = {
            "command": f"python -m benchmarks.cuda --bundle {self.bundle.name}",
            **conditions(),
            "precision": cpu.manifest.run.get("precision", ""),
            "page_locked": locked,
            "tolerance": cpu.manifest.golden_tolerance,
            "rows": rows,
        }
        write_json(self.out, facts)
        print(f"CUDA started; page-locked buffers: {'yes' if locked else 'no'}")
        print("| run | largest difference | CPU, per second | CUDA, per second |\n|---|---|---|---|")
        for row in rows:
            print(f"| {row['run']} | {row['difference']:.1e} | {row['cpu']:,.0f} | {row['cuda']:,.0f} |")

    def _work(self, version: Version, size: int) -> Work:
        """Runs of this many items, each giving the ratings or, of the encoder, the rows that come out."""
        rng = np.random.default_rng(self.seed)
        users, items = version.tables
        assert users is not None
        assert items is not None
        user, item = rng.integers(len(users), size=size), rng.integers(len(items), size=size)
        if version.encoder is not None:
            encoder = version.encoder
            new = [NewEntity(1, items.attributes(int(i))) for i in item]

            def encoded() -> AnyArray:
                """New items with the same users: what their rows differ is told in ratings."""
                rows = np.stack(encoder.rows(new))
                return version.predictor.score(entity_feeds(users.rows[user], rows)).rating

            return {
                "pairs": lambda: version.predictor.score(entity_feeds(users.rows[user], items.rows[item])).rating,
                "new items": encoded,
            }
        reader = PairReader(version.manifest, version.tokenizer)
        ids = [users.id(int(u)) for u in user], [items.id(int(i)) for i in item]
        sides = TableStore(users, items).at_hand(*ids)
        assert sides is not None
        pairs = [GivenPair(*pair) for pair in zip(*ids, strict=True)]
        feeds = reader.feeds(reader.read(pairs, sides, range(size)))
        return {"sentences": lambda: version.predictor.score(feeds).rating}


def _compared(name: str, on_cpu: Any, on_cuda: Any, tolerance: float, size: int) -> dict[str, Any]:
    off = float(np.abs(on_cuda() - on_cpu()).max())
    if not off <= tolerance:
        raise RunError(f"{name}: ratings on CUDA are off by {off:.2g}, more than {tolerance:g}")
    return {"run": name, "difference": off, "cpu": size / timed(on_cpu), "cuda": size / timed(on_cuda)}


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(run("cuda", "", {"run": Cuda}, sys.argv[1:], default="run"))
