"""Reloads under load: is any request lost, mixed or slow while versions change, and does memory grow?

python -m benchmarks.reload --model-repo model_repo      # prints a table, writes benchmarks/results/reload.json

Versions are made of the repository's newest one: every second one has the rows of its users moved on by one place, but
for those of golden examples, so that a rating tells which version's rows it came from. Large files are hard links. The
load is an open loop: a request's time counts from when it was due.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
from pydantic import Field, PositiveFloat, PositiveInt

from levi_serve.bundle.commands import Command, RunError, run
from levi_serve.bundle.golden import read_golden
from levi_serve.bundle.manifest import NAME, Manifest, read_manifest, sha256
from levi_serve.bundle.rows import Table
from levi_serve.repository import numbers
from training.checkpoint import write_json
from training.conditions import conditions

PAIRS = 10
"""In one POST."""
SLOW_EVERY = 100
"""One request in so many goes through the encoder or the whole catalogue; these are checked and timed apart."""
TOLERANCE = 2e-5
_READY = re.compile(r"ready: \S+/(\d+), loaded in ([0-9.]+) s")
_RELEASED = re.compile(r"released: \S+/(\d+)")
_MARGIN_S = 0.005
"""Of a time that is told in hundredths of a second."""


class Reload(Command):
    """Change the version again and again while requests go on."""

    model_repo: Annotated[Path, Field(description="Model repository with entity views.")] = Path("model_repo")
    reloads: Annotated[PositiveInt, Field(description="Changes of the version.")] = 50
    rate: Annotated[PositiveFloat, Field(description="Requests a second.")] = 300.0
    pause_s: Annotated[PositiveFloat, Field(description="Steady seconds between two changes.")] = 1.0
    out: Annotated[Path, Field(description="Where the figures go.")] = Path("benchmarks/results/reload.json")

    def __call__(self) -> None:
        """Print the figures and write them."""
        facts = asyncio.run(self._measure())
        command = f"python -m benchmarks.reload --reloads {self.reloads} --rate {self.rate:g}"
        write_json(self.out, {"command": command, **conditions(), **facts})
        print("| requests | steady p50, p99 | in a swap p50, p99 | failed | mixed | memory after first, last reload |")
        print("|---|---|---|---|---|---|")
        steady, swap, memory = facts["steady_ms"], facts["swap_ms"], facts["memory_mib"]
        print(
            f"| {steady['requests'] + swap['requests']:,} | {steady['p50']:.2f}, {steady['p99']:.2f} ms "
            f"| {swap['p50']:.2f}, {swap['p99']:.2f} ms | {facts['failed']} | {facts['mixed']} "
            f"| {memory[0]:.0f}, {memory[-1]:.0f} MiB |"
        )

    async def _measure(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=self.model_repo.resolve().parent) as folder:
            versions = Versions(self.model_repo, Path(folder))
            versions.add(1)
            async with _server(Path(folder)) as server:
                load = Load(server.port, versions, self.rate)
                await load.learn()
                going = asyncio.create_task(load.run())
                await asyncio.sleep(self.pause_s)
                memory, windows = [], []
                for number in range(2, self.reloads + 2):
                    versions.add(number)
                    windows.append(await server.released(number - 1))
                    versions.remove(number - 1)
                    await asyncio.sleep(self.pause_s)
                    memory.append(server.memory_mib())
                load.over = True
                await going
        return load.facts(windows) | {"reloads": self.reloads, "rate": self.rate, "memory_mib": memory}


class Versions:
    """Makes versions out of one, as an export would: staged beside and renamed, the model last."""

    def __init__(self, source: Path, target: Path) -> None:
        """Of the newest version in `source`."""
        self._name = "levi"
        self._version = numbers(source, self._name)[0]
        self._manifest: Manifest = read_manifest(source, self._name, self._version)
        if self._manifest.views != "entity":
            raise RunError(f"{source}: needs entity views")
        self._source, self._target = source, target
        user, item = self._manifest.schema_.entities
        self.names = (user.name, item.name)
        folder = source / self._name / str(self._version)
        users = Table(folder, f"{user.name}s")
        golden = {e.user.id for e in read_golden(folder / "golden.jsonl", self._manifest.layout.width)}
        self.users = np.array([i for i in range(len(users)) if users.id(i) not in golden])
        """Rows of users that are in no golden example."""
        self.ids = [users.id(int(i)) for i in self.users]
        self.items = list(map(Table(folder, f"{item.name}s").id, range(50)))

    def add(self, number: int) -> None:
        """Put this version into the repository; in even ones each user has the row of the next."""
        staged = self._target / f".staged-{number}"
        for file in self._manifest.files:
            path = self._path(staged, file, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(self._source / file, path)
        folder = staged / self._name / str(number)
        rows = folder / f"{self.names[0]}s.rows.npy"
        if number % 2 == 0:
            table = np.load(rows)
            table[self.users] = table[np.roll(self.users, -1)]
            rows.unlink()
            np.save(rows, table)
        files = {
            self._path(Path(), file, number).as_posix(): digest for file, digest in self._manifest.files.items()
        } | {f"{self._name}/{number}/{rows.name}": sha256(rows)}
        told = self._manifest.model_dump(mode="json", by_alias=True) | {"version": number, "files": files}
        (folder / NAME).write_text(json.dumps(told), encoding="utf-8")
        for model in (f"{self._name}_encoder", self._name):
            (self._target / model).mkdir(exist_ok=True)
            (staged / model / str(number)).rename(self._target / model / str(number))
        shutil.rmtree(staged)

    def remove(self, number: int) -> None:
        """As a retention job does."""
        for model in (self._name, f"{self._name}_encoder"):
            shutil.rmtree(self._target / model / str(number))

    @staticmethod
    def _path(root: Path, file: str, number: int) -> Path:
        model, _, name = file.split("/")
        return root / model / str(number) / name


@dataclass
class Server:
    """A `levi-serve` process and what it logs."""

    process: subprocess.Popen[str]
    port: int = 0
    _lines: list[tuple[float, str]] = field(default_factory=list)

    def read(self) -> None:
        """In a thread: note each line with its time."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.append((time.perf_counter(), line))

    async def find(self, pattern: re.Pattern[str], number: str | None = None) -> tuple[float, re.Match[str]]:
        """Wait for a line; when it came."""
        end = time.perf_counter() + 60
        while time.perf_counter() < end and self.process.poll() is None:
            for when, line in reversed(self._lines):
                if (match := pattern.search(line)) and number in (None, match[1]):
                    return when, match
            await asyncio.sleep(0.01)
        raise RunError("the server does not do it: " + "".join(line for _, line in self._lines[-5:]))

    async def released(self, old: int) -> tuple[float, float]:
        """Wait until the version after `old` has taken over; when its loading began and when `old` was released."""
        end, _ = await self.find(_RELEASED, str(old))
        ready, said = await self.find(_READY, str(old + 1))
        return ready - float(said[2]) - _MARGIN_S, end + _MARGIN_S

    def memory_mib(self) -> float:
        """Resident."""
        return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)


@asynccontextmanager
async def _server(repository: Path) -> AsyncIterator[Server]:
    command = [sys.executable, "-m", "levi_serve.cli", "--model-repo", str(repository), "--port", "0"]
    flags = ["--watch-s", "0.2", "--drain-s", "0", "--threads", "1"]
    with subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True) as process:
        server = Server(process)
        reading = asyncio.get_running_loop().run_in_executor(None, server.read)
        try:
            _, said = await server.find(re.compile(r"listening on http://[^:]+:(\d+)"))
            server.port = int(said[1])
            await server.find(_READY)
            yield server
        finally:
            process.terminate()
            await reading


class Load:
    """Requests at a constant rate, each answer checked against what its version must say."""

    def __init__(self, port: int, versions: Versions, rate: float) -> None:
        """`rate` requests a second."""
        self._port = port
        self._versions = versions
        self._rate = rate
        self._random = random.Random(0)  # noqa: S311 - no secret
        self._lines: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._expected: dict[tuple[int, int], float] = {}
        """Rating by place of the user and place of the item, in odd versions."""
        self._asked: list[tuple[str, float, float]] = []
        """Kind, when it was due, seconds."""
        self.over = False
        self.failed = Counter[str]()
        self.mixed = 0

    async def learn(self) -> None:
        """What version 1 says of every pair that is asked for."""
        user, item = self._versions.names
        for place, id_ in enumerate(self._versions.ids):
            pairs = [{user: id_, item: other} for other in self._versions.items]
            answers = await self._ask("POST", "/predict", {"pairs": pairs})
            self._expected.update({(place, i): answer["rating"] for i, answer in enumerate(answers)})

    async def run(self) -> None:
        """Until it is over; every request is waited for."""
        tasks: set[asyncio.Task[None]] = set()
        due, number = time.perf_counter(), 0
        while not self.over:
            due, number = due + 1 / self._rate, number + 1
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self._one(due, number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)
        for _, writer in self._lines:
            writer.close()

    def facts(self, windows: list[tuple[float, float]]) -> dict[str, Any]:
        """What was measured; `windows` are the times of the changes."""
        during = [
            any(start <= due <= end or start <= due + seconds <= end for start, end in windows)
            for _, due, seconds in self._asked
        ]
        return {
            "failed": dict(self.failed) or 0,
            "mixed": self.mixed,
            "swap_s": float(np.median([end - start for start, end in windows])),
            "steady_ms": self._quantiles(during, swap=False),
            "swap_ms": self._quantiles(during, swap=True),
            "slow_steady_ms": self._quantiles(during, swap=False, slow=True),
            "slow_swap_ms": self._quantiles(during, swap=True, slow=True),
        }

    def _quantiles(self, during: list[bool], swap: bool, slow: bool = False) -> dict[str, float]:
        found = [
            seconds * 1000
            for (kind, _, seconds), inside in zip(self._asked, during, strict=True)
            if inside is swap and (kind == "slow") is slow
        ]
        quantiles = {f"p{q:g}": float(np.percentile(found, q)) for q in (50, 90, 99, 99.9)}
        return {"requests": len(found), **quantiles, "max": max(found)}

    async def _one(self, due: float, number: int) -> None:
        user, item = self._versions.names
        place = self._random.randrange(len(self._versions.ids))
        id_ = self._versions.ids[place]
        kind = "slow" if number % SLOW_EVERY == 0 else "post" if number % 5 == 0 else "get"
        try:
            if kind == "get":
                at = self._random.randrange(len(self._versions.items))
                path = f"/predict?{user}={id_}&{item}={self._versions.items[at]}"
                self._check([await self._ask("GET", path)], place, [at])
            elif kind == "post":
                places = self._random.sample(range(len(self._versions.items)), PAIRS)
                known = [{user: id_, item: self._versions.items[at]} for at in places]
                self._check(await self._ask("POST", "/predict", {"pairs": known}), place, places)
            elif number % (2 * SLOW_EVERY):
                found = (await self._ask("GET", f"/recommend?{user}={id_}&k=5"))["items"]
                self.mixed += len({answer["version"] for answer in found}) != 1
            else:
                new = {"title": f"A new film, part {number}"}
                pairs: list[dict[str, Any]] = [{user: id_, item: self._versions.items[0]}, {user: id_, item: new}]
                answers = await self._ask("POST", "/predict", {"pairs": pairs})
                self._check(answers, place, [0, None])
        except (OSError, RunError, asyncio.IncompleteReadError, ValueError) as error:
            self.failed[f"{type(error).__name__}: {error}"] += 1
        self._asked.append((kind, due, time.perf_counter() - due))

    def _check(self, answers: list[dict[str, Any]], place: int, items: Sequence[int | None]) -> None:
        """All by one version, and by its rows."""
        versions = {answer["version"] for answer in answers}
        moved = (place + 1) % len(self._versions.ids) if answers[0]["version"] % 2 == 0 else place
        right = len(versions) == 1 and all(
            at is None or abs(answer["rating"] - self._expected[moved, at]) <= TOLERANCE
            for answer, at in zip(answers, items, strict=True)
        )
        self.mixed += not right

    async def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request on a line that is free, or a new one."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        reader, writer = self._lines.pop() if self._lines else await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(head.encode() + b"\r\n" + content)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", answer)
        said = await reader.readexactly(int(length[1]) if length else 0)
        self._lines.append((reader, writer))
        status = answer.split(b" ", 2)[1].decode()
        if status != "200":
            raise RunError(f"{method} {path.partition('?')[0]}: {status}")
        return json.loads(said)


if __name__ == "__main__":
    sys.exit(run("reload", "", {"run": Reload}, sys.argv[1:], default="run"))
