"""Fixtures of the serving tests: toy repositories, the application in this process, and the server as a process."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import pytest

from levi_serve.cli import Serve

from .redis_server import RedisServer
from .running import RunningApp
from .toy import Toy

T = TypeVar("T")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", params=["entity", "pair"])
def toy(request: pytest.FixtureRequest) -> Toy:
    """The toy model, with either kind of views."""
    return Toy(request.param)


@pytest.fixture(scope="session")
def toy_repository(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its repository; not to be changed."""
    folder = tmp_path_factory.mktemp(toy.views)
    toy.write(folder)
    return folder


@pytest.fixture(scope="session")
def entity_toy() -> Toy:
    """The toy model with entity views."""
    return Toy("entity")


@pytest.fixture(scope="session")
def entity_toy_repository(entity_toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its repository; not to be changed."""
    folder = tmp_path_factory.mktemp("entity_only")
    entity_toy.write(folder)
    return folder


@pytest.fixture(scope="session")
def pair_toy_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with pair views; not to be changed."""
    folder = tmp_path_factory.mktemp("pair_only")
    Toy("pair").write(folder)
    return folder


@pytest.fixture(scope="session")
def app(toy_repository: Path) -> Iterator[RunningApp]:
    """The application over the toy model, ready."""
    with RunningApp(settings(toy_repository)) as running:
        yield running


@pytest.fixture(scope="session")
def entity_app(entity_toy_repository: Path) -> Iterator[RunningApp]:
    """The application over the toy model with entity views, ready, and with small limits."""
    limits = settings(entity_toy_repository, max_batch=4, max_pairs=20, max_queue=50, max_body_bytes=20_000)
    with RunningApp(limits) as running:
        yield running


def settings(repository: Path, **changes: Any) -> Serve:
    """Settings of a test; nothing is read from the command line or a file."""
    return Serve(_cli_parse_args=False, _env_file=None, model_repo=repository, threads=1, **changes)


def until(attempt: Callable[[], T], tell: Callable[[], str] = str) -> T:
    """Try until it is true; after too long a time, fail with what there is to tell."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if result := attempt():
            return result
        time.sleep(0.02)
    raise AssertionError(tell())


class Process:
    """A `levi-serve` process on a free loopback port."""

    def __init__(self, log: Path, *arguments: str) -> None:
        """Start it and wait until it listens."""
        self.log = log
        self._file = log.open("w")
        command = [sys.executable, "-W", "error", "-m", "levi_serve.cli", "--port", "0", "--threads", "1", *arguments]
        self.popen = subprocess.Popen(command, stdout=self._file, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            self.url = self._await(lambda: re.search(r"listening on (http://[^\s\"]+)", self.text()))[1]
        except BaseException:
            self.popen.kill()
            raise
        self.http = httpx.Client(base_url=self.url, timeout=10)

    def text(self) -> str:
        """What it has logged."""
        return self.log.read_text()

    def ready(self, workers: int) -> None:
        """Wait until that many processes have loaded their model."""
        self._await(lambda: self.text().count("ready: levi/") >= workers)

    def settled(self) -> httpx.Response:
        """The answer of /readyz once the model is loaded, or has turned out to be unusable."""
        return self._await(lambda: None if "being loaded" in (answer := self.http.get("/readyz")).text else answer)

    def exit_code(self) -> int:
        """Wait for its end."""
        return self.popen.wait(timeout=10)

    def close(self) -> None:
        """Kill what is left."""
        self.http.close()
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.popen.pid).children():
                child.kill()
        self.popen.kill()
        self.popen.wait()
        self._file.close()

    def _await(self, attempt: Callable[[], Any]) -> Any:
        def alive() -> Any:
            result = attempt()
            assert result or self.popen.poll() is None, self.text()
            return result

        return until(alive, self.text)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts `levi-serve` processes with given flags, and ends them."""
    processes: list[Process] = []

    def starter(*arguments: str) -> Process:
        processes.append(Process(tmp_path / f"{len(processes)}.log", *arguments))
        return processes[-1]

    yield starter
    for process in processes:
        process.close()


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Starts real Redis servers with given options, and kills them."""
    servers: list[RedisServer] = []

    def starter(*options: str, **keywords: str) -> RedisServer:
        folder = tmp_path / f"redis{len(servers)}"
        folder.mkdir()
        servers.append(RedisServer(folder, *options, **keywords))
        return servers[-1]

    yield starter
    for server in servers:
        server.kill()
