"""The endpoints."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from pydantic_core import to_json

from levi_serve.errors import Complaint, InvalidRequestError, NotReadyError, OverloadedError, UnknownIdError
from levi_serve.live import Live, Status
from levi_serve.metrics import Metrics
from levi_serve.problems import ProblemError, documented
from levi_serve.versions import Version
from levi_serve.wire import MalformedJsonError


class Health(BaseModel):
    """A probe's answer."""

    status: Literal["alive", "ready"]


class ModelInfo(BaseModel):
    """The model in service, from its manifest."""

    version: int
    views: Literal["entity", "pair"]
    heads: int
    entities: list[dict[str, Any]] = Field(description="names, id types and attributes of both sides")
    rating_min: float
    rating_max: float
    score: str = Field(description="the score whose in-distribution quantile is `ood_score`")
    metrics: dict[str, float] = Field(description="measured when the version was exported")
    run: dict[str, Any] = Field(description="where the version comes from")
    licences: dict[str, str]
    golden_examples: int = Field(description="recorded predictions that this server reproduced before it became ready")
    golden_difference: float = Field(description="the largest difference of a rating among them")


class Info(BaseModel):
    """What this server is and does."""

    name: str
    status: Status
    reason: str | None = Field(description="why the server is not ready")
    model: ModelInfo | None = Field(description="null until a version is in service")


def build_router(live: Live, metrics: Metrics, name: str, max_body_bytes: int) -> APIRouter:
    """All endpoints over one `live` service of the model `name`."""
    router = APIRouter()

    @router.get(
        "/predict", summary="Predict one rating", response_class=Response, responses=documented(404, 422, 429, 500, 503)
    )
    async def predict(request: Request) -> Response:
        """The rating that one user would give one item."""
        service = live.current()
        pair = service.wire.query(request.scope["query_string"])
        try:
            (prediction,) = await service.engine.predict([pair])
        except UnknownIdError as error:
            raise service.wire.unknown_id(error, "") from None
        return _json(service.wire.answer(prediction))

    @router.post(
        "/predict",
        summary="Predict many ratings",
        response_class=Response,
        responses=documented(400, 404, 413, 415, 422, 429, 500, 503),
    )
    async def predict_many(request: Request) -> Response:
        """Ratings of many pairs, in order. A new user or item is given by its attributes in place of an id."""
        service = live.current()
        if request.query_params:
            unknown = next(iter(request.query_params))[:100]
            raise InvalidRequestError([Complaint(unknown, "is unknown; a POST has its pairs in the body")])
        body = await _read_json(request, max_body_bytes)
        try:
            pairs = service.wire.body(body)
            predictions = await service.engine.predict(pairs)
        except MalformedJsonError as error:
            raise ProblemError(400, "malformed-json", f"the body is not JSON: {error}") from None
        except UnknownIdError as error:
            raise service.wire.unknown_id(error, f"pairs[{error.index}].") from None
        return _json([service.wire.answer(prediction) for prediction in predictions])

    @router.get("/livez", summary="Alive?")
    async def livez() -> Health:
        """Whether the process runs; restart it if not."""
        return Health(status="alive")

    @router.get("/readyz", summary="Ready?", responses=documented(503))
    async def readyz() -> Health:
        """Whether to send traffic: the model has just answered, or is at work on a full queue."""
        service = live.current()
        if live.status != "ready":
            raise NotReadyError(live.reason)
        try:
            await service.engine.predict(service.version.examples[:1])
        except OverloadedError:
            pass
        except Exception as error:
            raise NotReadyError(f"the model does not answer: {error}") from error
        return Health(status="ready")

    @router.get("/info")
    async def info() -> Info:
        """The model in service and where it comes from, or why there is none."""
        service = live.service
        model = _model_info(service.version) if service else None
        return Info(name=name, status=live.status, reason=live.reason, model=model)

    @router.get("/metrics", summary="Metrics", response_class=PlainTextResponse)
    async def read_metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(metrics.text(), media_type=metrics.content_type)

    return router


def methods_by_path(router: APIRouter) -> dict[str, str]:
    """The methods of each path, as an Allow header lists them."""
    methods: dict[str, set[str]] = {}
    for route in router.routes:
        if isinstance(route, APIRoute):
            methods.setdefault(route.path, set()).update(route.methods or ())
    return {path: ", ".join(sorted(names)) for path, names in methods.items()}


def _json(content: object) -> Response:
    return Response(to_json(content), media_type="application/json")


async def _read_json(request: Request, limit: int) -> bytes:
    """The body, counted while it is read: its length may not be announced, or wrongly."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ProblemError(415, "unsupported-media-type", "send the body as 'Content-Type: application/json'")
    too_large = ProblemError(
        413, "body-too-large", f"the body is larger than {limit} bytes; send fewer pairs at a time"
    )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


def _model_info(version: Version) -> ModelInfo:
    manifest = version.manifest
    schema = manifest.schema_
    return ModelInfo(
        version=manifest.version,
        views=manifest.views,
        heads=manifest.layers,
        entities=[entity.model_dump(mode="json", exclude_defaults=True) for entity in schema.entities],
        rating_min=schema.rating_min,
        rating_max=schema.rating_max,
        score=manifest.score,
        metrics=manifest.metrics,
        run=manifest.run,
        licences=manifest.licences,
        golden_examples=len(version.examples),
        golden_difference=version.worst,
    )
