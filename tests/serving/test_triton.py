"""levi_serve.backends.triton against a real Triton server, over exported models of both views.

The environment of Triton's wheel is named by LEVI_TRITON; `make test-system` makes one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from levi_serve.backends.onnx import Tensor
from levi_serve.backends.triton import TritonGraph
from levi_serve.errors import BackendError
from levi_serve.versions import load

from .conftest import Process, settings, until
from .running import RunningApp
from .triton_server import TritonServer

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def venv() -> Path:
    """The environment that holds Triton."""
    folder = Path(os.environ.get("LEVI_TRITON", "/nowhere"))
    if not folder.is_dir():
        message = "set LEVI_TRITON to an environment with nvidia-pytriton, numpy<2 and onnxruntime"
        if "LEVI_SYSTEM" in os.environ:
            pytest.fail(message)
        pytest.skip(message)
    return folder.resolve()


@pytest.fixture(scope="module", params=["entity", "pair"])
def served(
    request: pytest.FixtureRequest, venv: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, TritonServer]]:
    """An exported repository of either views, and a Triton that serves it."""
    folder = tmp_path_factory.mktemp("triton")
    repository = Path(shutil.copytree(request.getfixturevalue(f"{request.param}_repository"), folder / "repository"))
    server = TritonServer(venv, repository, folder)
    yield repository, server
    server.kill()


@pytest.fixture
def own(entity_repository: Path, venv: Path, tmp_path: Path) -> Iterator[tuple[Path, TritonServer]]:
    """A Triton to be killed, with entity views."""
    repository = Path(shutil.copytree(entity_repository, tmp_path / "repository"))
    server = TritonServer(venv, repository, tmp_path)
    yield repository, server
    server.kill()


def over(repository: Path, server: TritonServer, **changes: Any) -> RunningApp:
    """The application with Triton behind it."""
    return RunningApp(settings(repository, backend="triton", triton_url=server.url, **changes))


def pairs_of(app: RunningApp) -> list[dict[str, Any]]:
    """Pairs of known ids, in which each side also comes by its attributes."""
    users, items = app.live.service.version.tables
    user, item = (entity.name for entity in app.live.service.version.manifest.schema_.entities)
    pairs = [{user: users.id(u), item: items.id(i)} for u in range(6) for i in range(6)]
    return [*pairs, *({user: users.id(0), item: dict(items.attributes(i))} for i in range(3))]


def test_same_ratings(served: tuple[Path, TritonServer]) -> None:
    """Ratings and heads of known and new entities, and recommendations, are those of our own runtime to 1e-4."""
    repository, server = served
    with over(repository, server) as there, RunningApp(settings(repository)) as here:
        assert there.get("/readyz").status_code == 200, there.get("/readyz").text
        pairs = pairs_of(here)
        answers = [app.post(pairs).json() for app in (there, here)]
        for field in ("rating", "heads"):
            found, expected = (np.array([answer[field] for answer in said]) for said in answers)
            assert np.abs(found - expected).max() <= 1e-4
        if here.live.service.version.encoder is not None:
            user = pairs[0][next(iter(pairs[0]))]
            name = next(iter(pairs[0]))
            listed = [app.get(f"/recommend?{name}={user}&k=5").json()["items"] for app in (there, here)]
            assert [a["rating"] for a in listed[0]] == pytest.approx([a["rating"] for a in listed[1]], abs=1e-4)


def test_calls_are_batched(served: tuple[Path, TritonServer]) -> None:
    """Of many calls at once Triton makes fewer runs."""
    repository, server = served
    version = load(repository, "levi", 1, "cpu", 1, remote=graph_at(server))
    inferred, runs = server.statistics("levi")
    graph, feeds = version.predictor._graph, feeds_of(repository)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: graph.run(feeds), range(200)))
    more, further = (after - before for after, before in zip(server.statistics("levi"), (inferred, runs), strict=True))
    assert more == 200 * len(next(iter(feeds.values())))
    assert further < 200
    version.close()


def graph_at(server: TritonServer) -> Callable[..., TritonGraph]:
    """Opens graphs there."""
    return lambda name, version, inputs, outputs, fallback: TritonGraph(
        name, version, inputs, outputs, fallback, server.url, 2.0
    )


def feeds_of(repository: Path, rows: int = 1) -> dict[str, Any]:
    """Random inputs of the `levi` graph, as its own file says what they are."""
    import onnxruntime

    random = np.random.default_rng(0)
    feeds = {}
    for tensor in onnxruntime.InferenceSession(repository / "levi" / "1" / "model.onnx").get_inputs():
        columns = tensor.shape[1] if isinstance(tensor.shape[1], int) else 16
        feeds[tensor.name] = (
            np.ones((rows, columns), np.int64)
            if tensor.type == "tensor(int64)"
            else random.normal(size=(rows, columns)).astype("float16" if "16" in tensor.type else "float32")
        )
    return feeds


def test_large_batches_are_cut(own: tuple[Path, TritonServer], monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch larger than a message or than Triton's batches goes in several calls, one row standing for all of a side;
    the result is that of one run.
    """
    repository, server = own
    there = load(repository, "levi", 1, "cpu", 1, remote=graph_at(server)).predictor._graph
    here = load(repository, "levi", 1, "cpu", 1).predictor._graph
    feeds = feeds_of(repository, 2500)
    calls: list[int] = []
    call = TritonGraph._call
    monkeypatch.setattr(TritonGraph, "_call", lambda s, f, rows: (calls.append(rows), call(s, f, rows))[1])
    for found, expected in zip(there.run(feeds), here.run(feeds), strict=True):
        assert np.abs(found - expected).max() <= 1e-4
    assert max(calls) <= 1024
    assert sum(calls) == 2500
    name = next(iter(feeds))
    one = {**feeds, name: feeds[name][:1]}
    whole = {**feeds, name: feeds[name][:1].repeat(2500, 0)}
    for found, expected in zip(there.run(one), here.run(whole), strict=True):
        assert np.abs(found - expected).max() <= 1e-4
    there.close()


@pytest.mark.parametrize("fallback", [False, True])
def test_killed_under_load(own: tuple[Path, TritonServer], start: Callable[..., Process], fallback: bool) -> None:
    """When Triton dies, requests are answered 503, or by the fallback, within the time of a call, later at once; when
    it is back, so are the answers, without a restart of ours.
    """
    repository, server = own
    flags = ["--backend", "triton", "--triton-url", server.url, "--triton-timeout-ms", "500", "--drain-s", "0"]
    flags += ["--triton-fallback"] if fallback else []
    ours = start("--model-repo", str(repository), *flags)
    ours.ready(1)
    seen: list[tuple[int, float]] = []
    version = load(repository, "levi", 1, "cpu", 1)
    user, item = (entity.name for entity in version.manifest.schema_.entities)
    path = f"/predict?{user}={version.tables[0].id(0)}&{item}={version.tables[1].id(0)}"

    def ask() -> int:
        began = time.monotonic()
        answer = ours.http.get(path)
        seen.append((answer.status_code, time.monotonic() - began))
        if answer.status_code == 503:
            assert "Triton" in answer.json()["detail"]
        return answer.status_code

    assert [ask() for _ in range(20)] == [200] * 20
    server.kill()
    seen.clear()
    found = {ask() for _ in range(200)}
    assert found == ({200} if fallback else {503})
    assert max(seconds for _, seconds in seen) < 1.0
    assert max(seconds for _, seconds in seen[20:]) < 0.25
    if not fallback:
        assert ours.http.get("/readyz").status_code == 503
    text = ours.http.get("/metrics").text
    assert "levi_triton_breakers_open 1.0" in text
    server.start()
    until(lambda: "levi_triton_breakers_open 0.0" in ours.http.get("/metrics").text, ours.text)
    assert [ask() for _ in range(20)] == [200] * 20
    assert ours.http.get("/readyz").status_code == 200


def test_a_backend_that_is_ready_and_fails(own: tuple[Path, TritonServer]) -> None:
    """With its model processes dead Triton says that it is ready while every inference fails: the breaker opens."""
    repository, server = own
    version = load(repository, "levi", 1, "cpu", 1, remote=graph_at(server))
    graph, feeds = version.predictor._graph, feeds_of(repository)
    graph.run(feeds)
    server.kill_stubs()
    for _ in range(3):
        with pytest.raises(BackendError):
            graph.run(feeds)
    assert server.ready()
    assert not graph.available
    began = time.monotonic()
    with pytest.raises(BackendError, match="is left alone"):
        graph.run(feeds)
    assert time.monotonic() - began < 0.05
    version.close()


def test_another_model_of_that_name(served: tuple[Path, TritonServer]) -> None:
    """A version that Triton lacks, other tensors, or other types: said so, and not served."""
    _, server = served
    outputs = [Tensor("head_ratings", "float32", 3), Tensor("rating", "float32")]
    for name, number, inputs, reason in (
        ("levi", 9, [], "levi/9"),
        ("other", 1, [], "other/1"),
        ("levi", 1, [Tensor("stars", "float32", 2)], "input 'stars' is no float32"),
        ("levi", 1, [], "another model: it has the input"),
    ):
        with pytest.raises(BackendError, match=reason):
            TritonGraph(name, number, inputs, outputs, None, server.url, 2.0)


def test_nobody_there(entity_repository: Path) -> None:
    """Without Triton at the start: up, not ready, and saying why; nothing hangs."""
    changes = {"backend": "triton", "triton_url": "127.0.0.1:1", "triton_timeout_ms": 300}
    with RunningApp(settings(entity_repository, **changes)) as app:
        assert "Triton at 127.0.0.1:1" in app.get("/readyz").json()["detail"]


def test_a_new_version_reaches_both(own: tuple[Path, TritonServer]) -> None:
    """Both watch the repository; ours serves the new version when Triton has it, and never asks it for another."""
    repository, server = own
    with over(repository, server, watch_s=0.2) as app:
        staged = {}
        for name in ("levi", "levi_encoder"):
            staged[name] = shutil.copytree(repository / name / "1", repository / f".{name}")
        manifest = staged["levi"] / "manifest.json"
        manifest.write_text(
            manifest.read_text()
            .replace('"version": 1', '"version": 2')
            .replace("levi/1/", "levi/2/")
            .replace("levi_encoder/1/", "levi_encoder/2/")
        )
        for name in ("levi_encoder", "levi"):
            staged[name].rename(repository / name / "2")
        until(lambda: app.live.service.number == 2, lambda: str(app.live.unusable))
        assert server.ready("models/levi/versions/2/ready")
        before = server.statistics("levi", 1)
        (pair, *_) = pairs_of(app)
        assert app.post([pair]).json()[0]["version"] == 2
        assert server.statistics("levi", 1) == before
