"""The Open Inference Protocol (version 2): health, metadata and inference, with versions, for its generic clients.

The model's inputs are named as the schema's entities and hold ids, [B] or [B, 1]; its outputs are what `GET /predict`
tells of a pair. Inputs may come as JSON or in the binary form; outputs are JSON.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from importlib.metadata import version as installed
from typing import Any, Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from levi_serve.bundle.rows import Id
from levi_serve.bundle.schema import Entity
from levi_serve.errors import Complaint, InvalidRequestError, UnknownIdError
from levi_serve.exchange import deadline_of, read_body, unless_gone
from levi_serve.live import Live, Service
from levi_serve.predictor import GivenPair
from levi_serve.problems import ProblemError, documented
from levi_serve.routes import ready

HEADER_LENGTH = "inference-header-content-length"
"""The header that says how many bytes of the body are JSON; the rest is binary."""
_IDS = {"integer": "INT64", "string": "BYTES"}


class TensorInfo(BaseModel):
    """An input or output."""

    name: str
    datatype: Literal["INT64", "BYTES", "FP64"]
    shape: list[int]


class ModelMetadata(BaseModel):
    """The model's tensors."""

    name: str
    versions: list[str] = Field(description="those that are loaded")
    platform: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


class ServerMetadata(BaseModel):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class _Input(BaseModel):
    model_config = ConfigDict(extra="ignore")
    name: str
    datatype: str
    shape: list[int] = Field(min_length=1, max_length=2)
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class _Output(BaseModel):
    model_config = ConfigDict(extra="ignore")
    name: str


class InferenceRequest(BaseModel):
    """Ids of both sides."""

    model_config = ConfigDict(extra="ignore")
    id: str | None = None
    inputs: list[_Input]
    outputs: list[_Output] | None = Field(None, description="which to answer; unset, all")


def build_inference_router(live: Live, name: str, max_body_bytes: int, max_pairs: int, timeout_s: float) -> APIRouter:
    """These endpoints for the model `name`."""
    router = APIRouter(prefix="/v2")

    def served(model: str, version: str | None) -> Service:
        if model != name:
            raise ProblemError(404, "unknown-model", f"this server serves the model '{name}' and no other")
        if version is None:
            return live.current()
        if not version.isdecimal() or len(version) > len(str(2**63)):
            raise ProblemError(404, "unknown-version", "a version is a number")
        return live.at(int(version))

    @router.get("", summary="Server metadata")
    async def server() -> ServerMetadata:
        """What this is and can do."""
        extensions = ["binary_tensor_data", "model_repository"]
        return ServerMetadata(name="levi-serve", version=installed("levi-serve"), extensions=extensions)

    @router.get("/health/live", summary="Alive?")
    async def alive() -> Response:
        """Whether the process runs."""
        return Response()

    @router.get("/health/ready", summary="Ready?", responses=documented(503))
    async def is_ready() -> Response:
        """Whether to send traffic: the model has just answered."""
        await ready(live)
        return Response()

    async def model_ready(model: str, version: str | None = None) -> Response:
        """Whether this version has just answered."""
        await ready(live, served(model, version))
        return Response()

    async def metadata(model: str, version: str | None = None) -> ModelMetadata:
        """The tensors of `infer`."""
        return _metadata(served(model, version), sorted(live.loaded))

    async def infer(request: Request, model: str, version: str | None = None) -> Response:
        """Ratings of pairs of known ids."""
        served(model, version)
        deadline = deadline_of(request, timeout_s)
        body = await read_body(request, max_body_bytes)
        with served(model, version) as service:
            wish, binary = _parse(body, request.headers.get(HEADER_LENGTH))
            pairs = _pairs(wish, binary, service.version.manifest.schema_.entities, max_pairs)
            try:
                answers = await unless_gone(request, service.engine.predict(pairs, deadline), deadline)
            except UnknownIdError as error:
                raise service.wire.unknown_id(error, "") from None
            return _response(wish, service, [orjson.loads(answer) for answer in answers])

    for path in ("/models/{model}", "/models/{model}/versions/{version}"):
        _add(router, "GET", f"{path}/ready", model_ready, 404, 503)
        _add(router, "GET", path, metadata, 404, 503)
        _add(router, "POST", f"{path}/infer", infer, 400, 404, 413, 422, 429, 500, 503, 504)
    return router


def _add(router: APIRouter, method: str, path: str, endpoint: Callable[..., Any], *statuses: int) -> None:
    router.add_api_route(path, endpoint, methods=[method], responses=documented(*statuses))


def _outputs(service: Service) -> dict[str, list[int]]:
    """Each output's shape but for the batch."""
    return {"rating": [], "heads": [service.version.manifest.layers], "disagreement": [], "ood_score": []}


def _metadata(service: Service, versions: Sequence[int]) -> ModelMetadata:
    manifest = service.version.manifest
    inputs = [
        TensorInfo(name=entity.name, datatype=_IDS[entity.id_type], shape=[-1]) for entity in manifest.schema_.entities
    ]
    outputs = [TensorInfo(name=n, datatype="FP64", shape=[-1, *shape]) for n, shape in _outputs(service).items()]
    told = list(map(str, versions))
    return ModelMetadata(name=manifest.name, versions=told, platform="levi", inputs=inputs, outputs=outputs)


def _wrong(where: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError([Complaint(where, reason)])


def _parse(body: bytes, header: str | None) -> tuple[InferenceRequest, bytes]:
    """The JSON of a request and the bytes after it.

    Raises:
        InvalidRequestError: it is no inference request.

    """
    length = len(body)
    if header is not None:
        if not header.isdecimal() or int(header) > length:
            raise _wrong(HEADER_LENGTH, f"must be a number of bytes of the body, which has {length}")
        length = int(header)
    try:
        return InferenceRequest.model_validate_json(body[:length]), body[length:]
    except ValidationError as error:
        raise InvalidRequestError(
            [Complaint(".".join(map(str, e["loc"])) or "body", e["msg"]) for e in error.errors()[:10]]
        ) from None


def _pairs(wish: InferenceRequest, binary: bytes, entities: Sequence[Entity], max_pairs: int) -> list[GivenPair]:
    """The pairs that the inputs name."""
    found: dict[str, list[Id]] = {}
    kinds = {entity.name: entity.id_type for entity in entities}
    for tensor in wish.inputs:
        if tensor.name not in kinds or tensor.name in found:
            raise _wrong(f"inputs.{tensor.name[:40]}", f"there must be one input each for {' and '.join(kinds)}")
        if tensor.datatype != _IDS[kinds[tensor.name]]:
            raise _wrong(f"inputs.{tensor.name}", f"its datatype must be {_IDS[kinds[tensor.name]]}")
        rows = tensor.shape[0]
        if not 1 <= rows <= max_pairs or tensor.shape[1:] not in ([], [1]):
            raise _wrong(f"inputs.{tensor.name}", f"its shape must be [B] or [B, 1], B from 1 to {max_pairs}")
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            ids = tensor.data or []
            if ids and isinstance(ids[0], list):  # rows of one; anything else among them is no id
                ids = [id_ for row in ids for id_ in (row if isinstance(row, list) else [None])]
        else:
            if not isinstance(size, int) or not 0 <= size <= len(binary):
                raise _wrong(f"inputs.{tensor.name}", "its binary_data_size is more than the body has")
            ids, binary = _decode(binary[:size], tensor.datatype), binary[size:]
        kind = int if tensor.datatype == "INT64" else str
        sound = all(type(id_) is kind and (isinstance(id_, str) or abs(id_) < 2**63) for id_ in ids)
        if len(ids) != rows or not sound:
            raise _wrong(f"inputs.{tensor.name}", f"its data must be {rows} ids of type {tensor.datatype}")
        found[tensor.name] = ids
    if len(found) < len(kinds) or len(set(map(len, found.values()))) > 1:
        raise _wrong("inputs", f"there must be as many ids for each of {' and '.join(kinds)}")
    return [GivenPair(*pair) for pair in zip(*(found[name] for name in kinds), strict=True)]


def _decode(binary: bytes, datatype: str) -> list[Any]:
    """Ids of the binary form; [] if the bytes are none."""
    if datatype == "INT64":
        return list(struct.unpack(f"<{len(binary) // 8}q", binary)) if len(binary) % 8 == 0 else []
    ids, at = [], 0
    while at + 4 <= len(binary):
        (length,) = struct.unpack_from("<I", binary, at)
        ids.append(binary[at + 4 : at + 4 + length].decode("utf-8", "replace"))
        at += 4 + length
    return ids if at == len(binary) else []


def _response(wish: InferenceRequest, service: Service, answers: Sequence[dict[str, Any]]) -> Response:
    shapes = _outputs(service)
    names = list(shapes) if wish.outputs is None else [output.name for output in wish.outputs]
    if unknown := [name for name in names if name not in shapes]:
        raise _wrong(f"outputs.{unknown[0][:40]}", f"there is no such output; there are {', '.join(shapes)}")
    outputs = []
    for name in names:
        values = [answer[name] for answer in answers]
        flat = [value for row in values for value in row] if shapes[name] else values
        shape = [len(answers), *shapes[name]]
        outputs.append({"name": name, "datatype": "FP64", "shape": shape, "data": flat})
    manifest = service.version.manifest
    said: dict[str, Any] = {"model_name": manifest.name, "model_version": str(manifest.version), "outputs": outputs}
    if wish.id is not None:
        said["id"] = wish.id
    return Response(json.dumps(said), media_type="application/json")
