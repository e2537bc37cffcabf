"""levi_serve.routes_inference: the Open Inference Protocol, as Triton's own client speaks it and as it is written."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import Process, settings, until
from .running import RunningApp
from .toy import MOVIES, USERS, Toy

tritonclient = pytest.importorskip("tritonclient.http", exc_type=RuntimeError)

INFER = "/v2/models/levi/infer"


@pytest.fixture(scope="module")
def client(
    entity_toy_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tritonclient.InferenceServerClient]:
    """A real client of a real server."""
    log = tmp_path_factory.mktemp("inference") / "log"
    server = Process(log, "--model-repo", str(entity_toy_repository), "--admin-token", "admin", "--drain-s", "0")
    server.ready(1)
    found = tritonclient.InferenceServerClient(server.url.removeprefix("http://"))
    yield found
    found.close()
    server.close()


def inputs(pairs: list[tuple[Any, Any]], binary: bool, kind: type = np.int64) -> list[Any]:
    """Both inputs."""
    found = []
    for name, ids in zip(("user", "movie"), zip(*pairs, strict=True), strict=True):
        tensor = tritonclient.InferInput(name, [len(pairs)], "INT64" if kind is np.int64 else "BYTES")
        tensor.set_data_from_numpy(np.array(ids, dtype=kind), binary_data=binary)
        found.append(tensor)
    return found


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("version", ["", "1"])
def test_tritons_client(
    client: tritonclient.InferenceServerClient, entity_toy: Toy, binary: bool, version: str
) -> None:
    """It finds server and model alive and ready, reads their metadata, and gets the model's ratings and heads."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("levi", version)
    assert not client.is_model_ready("levi", "7")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "levi-serve"
    metadata = client.get_model_metadata("levi", version)
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": name, "datatype": "INT64", "shape": [-1]} for name in ("user", "movie")]
    pairs = [(user, movie) for user in USERS if user != 13 for movie in MOVIES]
    result = client.infer("levi", inputs(pairs, binary), version, request_id="seven")
    assert result.get_response()["id"] == "seven"
    assert result.get_response()["model_version"] == "1"
    assert result.as_numpy("rating") == pytest.approx([entity_toy.rating(*pair) for pair in pairs], abs=2e-6)
    heads = np.array([entity_toy.heads(*pair) for pair in pairs])
    assert result.as_numpy("heads") == pytest.approx(heads, abs=2e-6)
    few = client.infer("levi", inputs(pairs, binary), outputs=[tritonclient.InferRequestedOutput("ood_score")])
    assert [output["name"] for output in few.get_response()["outputs"]] == ["ood_score"]


def test_tritons_client_is_told_what_is_wrong(client: tritonclient.InferenceServerClient) -> None:
    """Errors arrive as such, with our reason."""
    error = tritonclient.InferenceServerException if hasattr(tritonclient, "InferenceServerException") else Exception
    with pytest.raises(error, match="There is no user 99 in the catalogue"):
        client.infer("levi", inputs([(99, 357)], binary=True))
    with pytest.raises(error, match="version 7 is not loaded; loaded: 1"):
        client.infer("levi", inputs([(138, 357)], binary=True), "7")
    with pytest.raises(error, match="serves the model 'levi' and no other"):
        client.infer("other", inputs([(138, 357)], binary=True))


def test_tritons_client_gives_orders(client: tritonclient.InferenceServerClient) -> None:
    """The model repository, with the admin token."""
    token = {"Authorization": "Bearer admin"}
    with pytest.raises(Exception, match="admin token"):
        client.get_model_repository_index()
    (listed,) = client.get_model_repository_index(headers=token)
    assert (listed["name"], listed["version"], listed["state"]) == ("levi", "1", "READY")
    client.load_model("levi", headers=token)
    assert client.is_model_ready("levi")


def test_text_ids(tmp_path: Path) -> None:
    """Ids of text are BYTES, in JSON and in binary."""
    toy = Toy("entity", id_type="string", users={"ü1": {"age": 30}}, movies={"m": {"title": "A"}})
    toy.write(tmp_path)
    with RunningApp(settings(tmp_path)) as app:
        said = app.get("/v2/models/levi").json()["inputs"]
        assert {tensor["datatype"] for tensor in said} == {"BYTES"}
        body, length = tritonclient.InferenceServerClient.generate_request_body(inputs([("ü1", "m")], True, np.object_))
        headers = {"Inference-Header-Content-Length": str(length)}
        answer = app.request("POST", INFER, content=body, headers=headers).json()
        assert answer["outputs"][0]["data"] == pytest.approx([toy.rating("ü1", "m")], abs=2e-6)


def tensor(name: str = "user", **changes: Any) -> dict[str, Any]:
    return {"name": name, "datatype": "INT64", "shape": [1], "data": [138 if name == "user" else 357]} | changes


BOTH = [tensor(), tensor("movie")]


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_shapes(entity_app: RunningApp, shape: list[int]) -> None:
    """[B] and [B, 1], flat or nested, are the same."""
    data = [[138], [7]] if len(shape) == 2 else [138, 7]
    body = {"inputs": [tensor(shape=shape, data=data), tensor("movie", shape=[2], data=[357, 50])]}
    answer = entity_app.request("POST", INFER, json=body).json()
    assert answer["outputs"][0]["shape"] == [2]
    assert answer["outputs"][1]["shape"] == [2, 3]
    known = [entity_app.get(f"/predict?user={u}&movie={m}").json() for u, m in ((138, 357), (7, 50))]
    assert answer["outputs"][0]["data"] == [one["rating"] for one in known]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"inputs": [tensor()]}, "as many ids for each of user and movie"),
        ({"inputs": [*BOTH, tensor("film")]}, "one input each"),
        ({"inputs": [*BOTH, tensor()]}, "one input each"),
        ({"inputs": [tensor(datatype="INT32"), BOTH[1]]}, "its datatype must be INT64"),
        ({"inputs": [tensor(shape=[2]), BOTH[1]]}, "must be 2 ids"),
        ({"inputs": [tensor(shape=[1, 2]), BOTH[1]]}, "its shape must be"),
        ({"inputs": [tensor(shape=[0], data=[]), BOTH[1]]}, "its shape must be"),
        ({"inputs": [tensor(shape=[21], data=[138] * 21), BOTH[1]]}, "B from 1 to 20"),
        ({"inputs": [tensor(shape=[2], data=[138, 7]), BOTH[1]]}, "as many ids"),
        ({"inputs": [tensor(data=["138"]), BOTH[1]]}, "ids of type INT64"),
        ({"inputs": [tensor(data=[1.5]), BOTH[1]]}, "ids of type INT64"),
        ({"inputs": [tensor(data=[True]), BOTH[1]]}, "ids of type INT64"),
        ({"inputs": [tensor(data=[2**63]), BOTH[1]]}, "ids of type INT64"),
        ({"inputs": [tensor(data=[[138], 7]), BOTH[1]]}, "must be 1 ids"),
        ({"inputs": [tensor(data=None, parameters={"binary_data_size": 8}), BOTH[1]]}, "more than the body has"),
        ({"inputs": [tensor(data=None, parameters={"binary_data_size": -8}), BOTH[1]]}, "more than the body has"),
        ({"inputs": [tensor(data=None, parameters={"binary_data_size": "8"}), BOTH[1]]}, "more than the body has"),
        ({"inputs": BOTH, "outputs": [{"name": "stars"}]}, "there is no such output"),
        ({"inputs": {}}, "valid array"),
        ({}, "required"),
        ([], ""),
    ],
)
def test_bad_requests(entity_app: RunningApp, body: Any, reason: str) -> None:
    """Each is a 422 that says what is wrong, in both dialects: as a problem and as the protocol's `error`."""
    answer = entity_app.request("POST", INFER, json=body)
    assert answer.status_code == 422
    said = answer.json()
    assert said["error"] == said["detail"]
    assert reason in said["detail"]


@pytest.mark.parametrize(
    ("content", "length"),
    [(b"{", None), (b"\xff", None), (b"", None), (b"{}", "9"), (b"{}", "-1"), (b"{}", "x"), (b"{}", "٣")],
)
def test_bad_bodies(entity_app: RunningApp, content: bytes, length: str | None) -> None:
    headers = {} if length is None else {b"Inference-Header-Content-Length": length.encode()}
    answer = entity_app.request("POST", INFER, content=content, headers=headers)
    assert answer.status_code == 422


@pytest.mark.parametrize("binary", [struct.pack("<I", 9) + b"ab", b"\0\0", struct.pack("<q", 138)[:7]])
def test_bad_binary(entity_app: RunningApp, binary: bytes) -> None:
    """Bytes that are no ids of that type and number."""
    first = tensor(data=None, parameters={"binary_data_size": len(binary)})
    head = json.dumps({"inputs": [first, BOTH[1]]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = entity_app.request("POST", INFER, content=head + binary, headers=headers)
    assert answer.status_code == 422


def test_both_versions(tmp_path: Path) -> None:
    """With two loaded, each can be named; unnamed is the stable one."""
    for version in (1, 2):
        Toy("entity").write(tmp_path, version)
    with RunningApp(settings(tmp_path, version="latest:2")) as app:
        until(lambda: len(app.live.loaded) == 2)
        for path, version in (("", "2"), ("/versions/1", "1"), ("/versions/2", "2")):
            answer = app.request("POST", f"/v2/models/levi{path}/infer", json={"inputs": BOTH})
            assert answer.json()["model_version"] == version
            assert app.get(f"/v2/models/levi{path}").json()["versions"] == ["1", "2"]
        for odd in ("x", "0", "-1", "9" * 40, "٣"):
            assert app.get(f"/v2/models/levi/versions/{odd}").status_code == 404


def test_not_ready(tmp_path: Path) -> None:
    """Without a model: alive, not ready, and said so."""
    with RunningApp(settings(tmp_path)) as app:
        assert app.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", "/v2/models/levi/ready"):
            assert "error" in app.get(path).json()
            assert app.get(path).status_code == 503
