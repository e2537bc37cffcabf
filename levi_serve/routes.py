"""The endpoints."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from levi_serve.errors import NotReadyError, OverloadedError, UnknownIdError
from levi_serve.exchange import deadline_of, json_response, read_json, unless_gone
from levi_serve.live import Live, Service, Status
from levi_serve.metrics import Metrics
from levi_serve.predictor import Probe
from levi_serve.problems import documented
from levi_serve.routes_repository import VersionState, versions
from levi_serve.trial import Trial


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
    versions: list[VersionState] = Field(description="what is loaded, and what was to be and cannot be used")


def build_router(
    live: Live, trial: Trial, metrics: Metrics, name: str, max_body_bytes: int, timeout_s: float
) -> APIRouter:
    """All endpoints over one `live` service of the model `name`."""
    router = APIRouter()

    @router.get(
        "/predict",
        summary="Predict one rating",
        response_class=Response,
        responses=documented(404, 422, 429, 500, 503, 504),
    )
    async def predict(request: Request) -> Response:
        """The rating that one user would give one item."""
        deadline = deadline_of(request, timeout_s)
        pair = live.current().wire.query(request.scope["query_string"])
        chosen, other = trial.choose(pair.user)
        with chosen as service:
            try:
                (answer,) = await unless_gone(request, service.engine.predict([pair], deadline), deadline)
            except UnknownIdError as error:
                raise service.wire.unknown_id(error, "") from None
        if other is not None:
            trial.compare(other, [pair], [answer])
        return json_response(answer)

    @router.post(
        "/predict",
        summary="Predict many ratings",
        response_class=Response,
        responses=documented(400, 404, 413, 415, 422, 429, 500, 503, 504),
    )
    async def predict_many(request: Request) -> Response:
        """Ratings of many pairs, in order. A new user or item is given by its attributes in place of an id."""
        deadline = deadline_of(request, timeout_s)
        live.current().engine.admit(deadline)  # without a model, or without room, no body is read
        body = await read_json(request, max_body_bytes)
        pairs = live.current().wire.body(body)
        chosen, other = trial.choose(pairs[0].user)
        with chosen as service:
            try:
                answers = await unless_gone(request, service.engine.predict(pairs, deadline), deadline)
            except UnknownIdError as error:
                place = next(i for i, pair in enumerate(pairs) if pair[error.side] == error.id)
                raise service.wire.unknown_id(error, f"pairs[{place}].") from None
        if other is not None:
            trial.compare(other, pairs, answers)
        return json_response(b"[" + b",".join(answers) + b"]")

    @router.get("/livez", summary="Alive?")
    async def livez() -> Health:
        """Whether the process runs; restart it if not."""
        return Health(status="alive")

    @router.get("/readyz", summary="Ready?", responses=documented(503))
    async def readyz() -> Health:
        """Whether to send traffic: the model has just answered, or is at work on a full queue."""
        await ready(live)
        return Health(status="ready")

    @router.get("/info")
    async def info() -> Info:
        """The model in service and where it comes from, or why there is none."""
        service = live.service
        model = _model_info(service) if service else None
        return Info(name=name, status=live.status, reason=live.reason, model=model, versions=versions(live, name))

    @router.get("/metrics", summary="Metrics", response_class=PlainTextResponse)
    async def read_metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(metrics.text(), media_type=metrics.content_type)

    return router


async def ready(live: Live, service: Service | None = None) -> None:
    """Have the stable version, or this one, answer.

    Raises:
        NotReadyError: it does not, or the server is about to end.

    """
    with service or live.current() as asked:
        if live.status != "ready":
            raise NotReadyError(live.reason)
        try:
            first = asked.version.examples[0]  # by ids
            await asked.engine.predict([Probe(*first)])  # type: ignore[arg-type]
        except (OverloadedError, UnknownIdError):
            pass  # it is at work; or these ids were erased, and it answered that
        except Exception as error:
            raise NotReadyError(f"the model does not answer: {error}") from error


def methods_by_path(router: APIRouter) -> dict[str, str]:
    """The methods of each path, as an Allow header lists them."""
    methods: dict[str, set[str]] = {}
    for route in router.routes:
        if isinstance(route, APIRoute):
            methods.setdefault(route.path, set()).update(route.methods or ())
    return {path: ", ".join(sorted(names)) for path, names in methods.items()}


def _model_info(service: Service) -> ModelInfo:
    manifest = service.version.manifest
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
        golden_examples=len(service.version.golden),
        golden_difference=service.golden_difference,
    )
