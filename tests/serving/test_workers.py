"""levi_serve.workers: several real processes behind one port, from their start to their end, however that comes."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import httpx
import psutil
import pytest

from levi_serve import app as app_module
from levi_serve.bundle.manifest import BundleError
from levi_serve.listener import bind
from levi_serve.metrics import Metrics
from levi_serve.workers import Workers

from .conftest import ROOT, Process, settings, until

Start = Callable[..., Process]
PAIR = {"user": 138, "movie": 357}
REQUEST = b"GET /predict?user=138&movie=357 HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the server's temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def start_two(start: Start, repository: Path, *arguments: str) -> Process:
    """Two workers, both ready."""
    server = start("--model-repo", str(repository), "--workers", "2", *arguments)
    server.ready(2)
    return server


def workers(server: Process) -> list[psutil.Process]:
    """The workers that run now."""
    return [c for c in psutil.Process(server.popen.pid).children() if c.status() != psutil.STATUS_ZOMBIE]


def levi_serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, run to its end."""
    command = [sys.executable, "-W", "error", "-m", "levi_serve.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


def sample(text: str, name: str) -> float:
    """One value of an exposition."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


class Crowd:
    """Clients that send one request after the other, each on a line that is kept open, or opened anew when it was
    closed after an answer. They count statuses, and by their names the errors that they met.
    """

    def __init__(self, server: Process, clients: int = 6) -> None:
        self.seen = Counter[str]()
        self._address = (server.http.base_url.host, server.http.base_url.port)
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._client) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def join(self) -> None:
        """Wait until everybody was refused."""
        for thread in self._threads:
            thread.join(timeout=20)
            assert not thread.is_alive()

    def answered(self, more: int) -> None:
        """Wait until so many more requests were answered."""
        goal = self.seen["200"] + more
        until(lambda: self.seen["200"] >= goal, lambda: str(self.seen))

    def _client(self) -> None:
        while not self._over.is_set():
            try:
                with socket.create_connection(self._address, timeout=10) as line:
                    while not self._over.is_set() and self._ask(line):
                        pass
            except ConnectionRefusedError:
                self.seen["refused"] += 1
                return
            except OSError as error:
                self.seen[type(error).__name__] += 1

    def _ask(self, line: socket.socket) -> bool:
        """Send one request; whether the line stays open."""
        line.sendall(REQUEST)
        answer = b""
        while not answer.endswith(b"}"):
            part = line.recv(65536)
            if not part:
                raise ConnectionAbortedError
            answer += part
        self.seen[answer[9:12].decode()] += 1
        return b"connection: close" not in answer


def test_one_worker_has_no_parent(start: Start, entity_toy_repository: Path) -> None:
    """With one worker the process that was started serves itself."""
    server = start("--model-repo", str(entity_toy_repository), "--drain-s", "0", "--workers", "1")
    assert server.settled().status_code == 200
    assert workers(server) == []


def test_sigterm_under_load(start: Start, entity_toy_repository: Path, temporary: Path) -> None:
    """Every request of a client that could connect is answered, no line is reset, the exit code is 0, and neither
    processes nor files are left. The address is logged once.
    """
    server = start_two(start, entity_toy_repository, "--drain-s", "0.5")
    children = workers(server)
    with Crowd(server) as crowd:
        crowd.answered(200)
        server.popen.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        crowd.answered(50)
        crowd.join()
    assert set(crowd.seen) == {"200", "refused"}
    assert server.exit_code() == 0
    assert not any(child.is_running() for child in children)
    assert list(temporary.iterdir()) == []
    assert server.text().count("listening on") == 1
    assert server.text().count("draining") == 2


def test_stop_without_draining_under_load(start: Start, entity_toy_repository: Path) -> None:
    """Even when nothing tells the clients beforehand, who has sent a request on an open line is answered."""
    server = start_two(start, entity_toy_repository, "--drain-s", "0")
    with Crowd(server) as crowd:
        crowd.answered(200)
        server.popen.send_signal(signal.SIGINT)
        crowd.join()
    assert set(crowd.seen) == {"200", "refused"}
    assert server.exit_code() == 0


def test_killed_parent_leaves_no_orphan(start: Start, entity_toy_repository: Path, temporary: Path) -> None:
    """When the parent is killed its workers notice, drain as after a signal, and end; their folder goes with them."""
    server = start_two(start, entity_toy_repository, "--drain-s", "0.3")
    children = workers(server)
    with Crowd(server) as crowd:
        crowd.answered(100)
        server.popen.kill()
        crowd.join()
    assert set(crowd.seen) == {"200", "refused"}
    until(lambda: not any(child.is_running() for child in children))
    until(lambda: list(temporary.iterdir()) == [])


def test_parent_killed_at_once_leaves_no_orphan(start: Start, entity_toy_repository: Path) -> None:
    """Also when it is killed while its workers start."""
    server = start("--model-repo", str(entity_toy_repository), "--workers", "2", "--drain-s", "0")
    children = until(lambda: workers(server))
    server.popen.kill()
    until(lambda: not any(child.is_running() for child in children))


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Workers]:
    """A parent of one worker, in this process, which has not begun."""
    with bind("127.0.0.1", 0) as address:
        workers = Workers(address, 1, {"drain_s": 0}, patience_s=0.1)
        workers._shared = tmp_path
        yield workers


def test_worker_that_starts_while_all_end(parent: Workers) -> None:
    """It is told so too, and the parent need not wait for it in vain."""

    async def late() -> str:
        parent._ending.set()
        return await asyncio.wait_for(parent._live(0, parent._socket(), replaces=False), 20)

    assert asyncio.run(late()) == "ended with exit code 0"


def test_worker_that_does_not_end_is_killed(parent: Workers, caplog: pytest.LogCaptureFixture) -> None:
    """One that is stuck does not keep the parent for ever."""

    async def stuck() -> int:
        running = asyncio.create_task(parent._run())
        while not parent._processes:
            await asyncio.sleep(0.01)
        parent._processes[0].send_signal(signal.SIGSTOP)
        parent._signal()
        await asyncio.wait_for(running, 20)
        return parent._processes[0].returncode or 0

    assert asyncio.run(stuck()) == -signal.SIGKILL
    assert "worker 0 is killed before it has answered everything" in caplog.text


def test_worker_without_a_parent_does_nothing() -> None:
    """When its input ends before it said what to do, there is nothing to do."""
    ended = subprocess.run(
        [sys.executable, "-m", "levi_serve.worker"], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    assert (ended.stdout, ended.stderr) == (b"", b"")


def test_killed_worker_is_replaced(start: Start, entity_toy_repository: Path) -> None:
    """While one worker is killed and comes back, whoever connects is served at once by the other; only the killed
    one's clients lose a line. No counter goes back.
    """
    server = start_two(start, entity_toy_repository, "--drain-s", "0")
    counter = 'levi_http_request_duration_seconds_count{method="GET",route="/predict",status="200"}'
    with Crowd(server) as crowd:
        crowd.answered(200)
        before = sample(httpx.get(f"{server.url}/metrics").text, counter)
        victim = workers(server)[0]
        victim.kill()
        until(lambda: not victim.is_running())
        for _ in range(30):
            assert httpx.get(f"{server.url}/predict", params=PAIR, timeout=5).status_code == 200
        assert sample(httpx.get(f"{server.url}/metrics").text, counter) >= before + 30
        until(lambda: sample(httpx.get(f"{server.url}/metrics").text, "levi_ready") == 2)
        crowd.answered(200)
    assert set(crowd.seen) <= {"200", "ConnectionResetError", "ConnectionAbortedError"}
    assert crowd.seen["200"] >= 400
    after = sample(httpx.get(f"{server.url}/metrics").text, counter)
    assert after >= crowd.seen["200"] + 30 - 6  # each of six clients may miss the last answer that was counted
    assert "was ended by SIGKILL; the next one starts in 0 s" in server.text()
    assert len(workers(server)) == 2


def test_worker_that_dies_again_is_started_less_often(start: Start, entity_toy_repository: Path) -> None:
    """The second death in a row is followed by a pause, the third by a longer one, and meanwhile one worker is ready;
    a worker that is asked to end does, and is replaced too.
    """
    server = start_two(start, entity_toy_repository, "--drain-s", "0")
    for deaths, number in enumerate((signal.SIGTERM, signal.SIGKILL, signal.SIGKILL)):
        server.ready(2 + deaths)
        os.kill(int(re.findall(r"worker 0 is process (\d+)", server.text())[-1]), number)
        until(lambda so_far=deaths: server.text().count("the next one starts") > so_far, server.text)
    until(lambda: sample(httpx.get(f"{server.url}/metrics").text, "levi_ready") == 1)
    assert re.findall(r"worker 0 (.*; .*)", server.text()) == [
        "ended with exit code 0; the next one starts in 0 s",
        "was ended by SIGKILL; the next one starts in 0.5 s",
        "was ended by SIGKILL; the next one starts in 1 s",
    ]


def test_replacement_that_cannot_load_takes_no_request(
    start: Start, entity_toy_repository: Path, tmp_path: Path
) -> None:
    """When the model's files have gone, a killed worker's successor says so and does not listen; what is left serves
    on. Once the files are back so is the second worker.
    """
    repository = Path(shutil.copytree(entity_toy_repository, tmp_path / "repository"))
    server = start_two(start, repository, "--drain-s", "0")
    moved = repository.rename(tmp_path / "moved")
    workers(server)[0].kill()
    until(lambda: "cannot serve: " in server.text(), server.text)
    for _ in range(20):
        assert httpx.get(f"{server.url}/predict", params=PAIR).status_code == 200
    assert "no model to serve; the next one starts in" in server.text()
    assert "Traceback" not in server.text()
    moved.rename(repository)
    server.ready(3)
    until(lambda: sample(httpx.get(f"{server.url}/metrics").text, "levi_ready") == 2)


@pytest.mark.parametrize(("first", "second"), [("2", "2"), ("2", "1"), ("1", "2")])
def test_second_server_on_the_port_is_refused(
    start: Start, entity_toy_repository: Path, first: str, second: str
) -> None:
    """Workers share their port among themselves only: another server gets one line and exit code 1."""
    server = start("--model-repo", str(entity_toy_repository), "--drain-s", "0", "--workers", first)
    port = server.http.base_url.port
    ended = levi_serve("--port", str(port), "--workers", second)
    assert ended.returncode == 1
    assert ended.stderr == f"levi-serve: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    assert server.settled().status_code == 200


def test_no_worker_can_serve(entity_toy_repository: Path) -> None:
    """What no restart can help ends all with one line and exit code 1."""
    ended = levi_serve("--model-repo", str(entity_toy_repository), "--port", "0", "--workers", "2", "--device", "cuda")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("levi-serve: device cuda: the installed ONNX Runtime has no CUDA")
    assert ended.stderr.count("CUDAExecutionProvider") == 1
    assert "Traceback" not in ended.stderr
    assert "the next one starts" not in ended.stderr


def test_second_signal_ends_the_waiting(start: Start, entity_toy_repository: Path, temporary: Path) -> None:
    """Ctrl-C in a terminal goes to a whole process group: the workers drain once all the same. Pressed again it ends
    them at once.
    """
    server = start_two(start, entity_toy_repository, "--drain-s", "600")
    children = workers(server)
    assert {os.getpgid(child.pid) for child in children}.isdisjoint({os.getpgid(server.popen.pid)})
    server.popen.send_signal(signal.SIGINT)
    until(lambda: server.text().count("draining") == 2)
    assert httpx.get(f"{server.url}/predict", params=PAIR).status_code == 200
    server.popen.send_signal(signal.SIGINT)
    assert server.exit_code() == 0
    assert not any(child.is_running() for child in children)
    assert list(temporary.iterdir()) == []


def test_connections_are_spread(start: Start, entity_toy_repository: Path) -> None:
    """Of 64 clients that connect at once and stay, each worker gets some: fewer than 8 would happen once in 10¹⁰."""
    server = start_two(start, entity_toy_repository, "--drain-s", "0")
    address = (server.http.base_url.host, server.http.base_url.port)
    lines = [socket.create_connection(address, timeout=10) for _ in range(64)]
    for line in lines:
        line.sendall(REQUEST)
        assert line.recv(20).startswith(b"HTTP/1.1 200 OK")
    for child in workers(server):
        assert sum(line.status == psutil.CONN_ESTABLISHED for line in child.net_connections()) >= 8
    for line in lines:
        line.close()


def test_any_worker_tells_what_all_have_done(start: Start, entity_toy_repository: Path) -> None:
    """Counters of all workers are added, whichever answers, as are gauges; each process has its own memory."""
    server = start_two(start, entity_toy_repository, "--drain-s", "0")
    for _ in range(40):
        assert httpx.get(f"{server.url}/predict", params=PAIR).status_code == 200
    pids = {child.pid for child in workers(server)}
    for _ in range(10):  # new lines, so both workers are asked, but for one time in 500
        text = httpx.get(f"{server.url}/metrics").text
        name = "levi_http_request_duration_seconds"
        assert sample(text, name + '_count{method="GET",route="/predict",status="200"}') == 40
        assert sample(text, name + '_bucket{le="+Inf",method="GET",route="/predict",status="200"}') == 40
        assert sample(text, "levi_ready") == 2
        assert sample(text, 'levi_model_info{model="levi",version="1",views="entity"}') == 1
        assert sample(text, 'levi_queue_depth{lane="score"}') == 0
        assert len(set(re.findall(r'^levi_process_start_time_seconds\{worker="(\d)"\}', text, re.MULTILINE))) == 2
    assert {child.pid for child in workers(server)} == pids


@pytest.mark.parametrize(("cores", "count", "threads"), [(8, 1, 8), (8, 2, 4), (7, 2, 3), (2, 4, 1)])
def test_workers_share_the_cores(
    entity_toy_repository: Path, monkeypatch: pytest.MonkeyPatch, cores: int, count: int, threads: int
) -> None:
    """Unless `--threads` says otherwise, all workers together use each core once."""
    given: list[int] = []

    def load(_repository: Path, _name: str, _version: int, _device: str, threads: int, *_: object) -> None:
        given.append(threads)
        raise BundleError("enough")

    monkeypatch.setattr(app_module, "load", load)
    monkeypatch.setattr(app_module, "usable_cores", lambda: cores)
    chosen = settings(entity_toy_repository, workers=count).model_copy(update={"threads": None})
    with pytest.raises(BundleError, match="enough"):
        asyncio.run(app_module.bring_up(chosen, Metrics(), 1))
    assert given == [threads]


def test_ipv6(start: Start, entity_toy_repository: Path) -> None:
    """An IPv6 address is shared as well."""
    server = start("--model-repo", str(entity_toy_repository), "--workers", "2", "--host", "::1", "--drain-s", "0")
    assert server.url.startswith("http://[::1]:")
    assert server.http.get("/livez").status_code == 200


def test_the_parent_loads_no_model() -> None:
    """What the parent imports is a part of a server: neither ONNX Runtime nor the web framework."""
    code = "import sys, levi_serve.cli, levi_serve.workers; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"onnxruntime", "fastapi", "uvicorn"}.isdisjoint(ended.stdout.split())
