"""Bulk scoring against asking one by one: every user with every item.

python -m benchmarks.bulk --model-repo model_repo     # prints a table, writes benchmarks/results/bulk.json

One by one: a client sends `GET /predict`, waits for the answer and sends the next, over one connection that stays
open. The job is the command as a user runs it, from its start to its end; `inside` leaves out the start of Python.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, PositiveInt

from levi_serve.bundle.commands import Command, RunError, run
from levi_serve.bundle.manifest import read_manifest
from levi_serve.bundle.rows import Table
from levi_serve.repository import numbers
from training.checkpoint import write_json
from training.conditions import conditions

_SAMPLE = 20_000
"""Pairs that are asked for one by one."""


class Bulk(Command):
    """Time one by one, in bulk, and in bulk on Ray."""

    model_repo: Annotated[Path, Field(description="Model repository with entity views.")] = Path("model_repo")
    processes: Annotated[PositiveInt, Field(description="Of the job, and workers of Ray.")] = 2
    ray: Annotated[bool, Field(description="Also on a Ray cluster that is started here.")] = True
    out: Annotated[Path, Field(description="Where the figures go.")] = Path("benchmarks/results/bulk.json")

    def __call__(self) -> None:
        """Print the figures and write them."""
        number = numbers(self.model_repo, "levi")[0]
        manifest = read_manifest(self.model_repo, "levi", number)
        names = [entity.name for entity in manifest.schema_.entities]
        tables = [Table(self.model_repo / "levi" / str(number), f"{name}s") for name in names]
        users, items = np.repeat(tables[0].ids, len(tables[1])), np.tile(tables[1].ids, len(tables[0]))
        rows: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            pq.write_table(
                pa.table({names[0]: users, names[1]: items}), folder / "pairs.parquet", row_group_size=1 << 17
            )
            chosen = np.random.default_rng(0).integers(len(users), size=_SAMPLE)
            seconds, told = self._one_by_one(names, users[chosen].tolist(), items[chosen].tolist())
            rows.append({"way": "one by one over HTTP", "pairs": _SAMPLE, "seconds": seconds})
            digests = set()
            ways: dict[str, list[str]] = {"levi-serve score": []}
            if self.ray:
                ways["levi-serve score --ray local"] = ["--ray", "local"]
            for way, flags in ways.items():
                whole, inside = self._score(folder / "pairs.parquet", folder / "out", flags)
                found = pq.read_table(sorted((folder / "out").glob("part-*.parquet")))
                digests.add(hashlib.sha256(b"".join(_bytes(folder / "out"))).hexdigest())
                off = float(np.abs(found["rating"].to_numpy()[chosen] - told).max())
                if len(found) != len(users) or not off < 1e-4:
                    raise RunError(f"{way}: {len(found)} rows for {len(users)}, ratings off by {off}")
                rows.append({"way": way, "pairs": len(found), "seconds": whole, "inside": inside, "off": off})
        for row in rows:
            row["per_second"] = row["pairs"] / row["seconds"]
            row["ratio"] = row["per_second"] / rows[0]["per_second"]
        facts = {
            "command": f"python -m benchmarks.bulk --processes {self.processes}",
            **conditions(),
            "rows": rows,
            "identical_files": len(digests) == 1,
        }
        write_json(self.out, facts)
        print("| way | pairs | seconds | pairs a second | ratio |\n|---|---|---|---|---|")
        for row in rows:
            told_seconds = f"{row['seconds']:.1f}" + (f" ({row['inside']:.1f} inside)" if "inside" in row else "")
            print(
                f"| {row['way']} | {row['pairs']:,} | {told_seconds} | {row['per_second']:,.0f} | {row['ratio']:.1f} |"
            )
        print("the files are " + ("identical" if facts["identical_files"] else "NOT identical"))

    def _score(self, pairs: Path, out: Path, flags: list[str]) -> tuple[float, float]:
        """Seconds of the whole command, and those that it tells."""
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "levi_serve.cli", "score", str(out), "--pairs", str(pairs)]
        command += ["--model-repo", str(self.model_repo), "--processes", str(self.processes), *flags]
        began = time.perf_counter()
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        if ended.returncode:
            raise RunError(ended.stderr)
        return seconds, float(re.findall(r"in ([0-9.]+) s", ended.stdout)[0])

    def _one_by_one(self, names: list[str], users: list[Any], items: list[Any]) -> tuple[float, np.ndarray[Any, Any]]:
        with _server(self.model_repo) as port, socket.create_connection(("127.0.0.1", port)) as line:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            told = np.empty(len(users))
            for k in range(-500, len(users)):  # the first ones warm it up
                if k == 0:
                    began = time.perf_counter()
                question = f"GET /predict?{names[0]}={users[k]}&{names[1]}={items[k]} HTTP/1.1\r\nHost: levi\r\n\r\n"
                line.sendall(question.encode())
                answer = line.recv(65_536)
                told[k] = float(answer.partition(b'"rating":')[2].partition(b",")[0])
            return time.perf_counter() - began, told


def _bytes(folder: Path) -> Iterator[bytes]:
    return (path.read_bytes() for path in sorted(folder.glob("part-*.parquet")))


@contextmanager
def _server(repository: Path) -> Iterator[int]:
    command = [sys.executable, "-m", "levi_serve.cli", "--model-repo", str(repository), "--port", "0"]
    with tempfile.NamedTemporaryFile("r", suffix=".log") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=Path(log.name).open("w"))  # noqa: SIM115
        try:
            text, end = "", time.monotonic() + 120
            while "ready: " not in text:
                if process.poll() is not None or time.monotonic() > end:
                    raise RunError(f"the server does not start: {text}")
                time.sleep(0.1)
                text += log.read()
            yield int(re.findall(r"listening on http://[^:]+:(\d+)", text)[0])
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    sys.exit(run("bulk", "", {"bulk": Bulk}, sys.argv[1:], default="bulk"))
