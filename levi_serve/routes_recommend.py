"""The endpoints that put items in order: /recommend and /rank."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from levi_serve.errors import UnknownIdError
from levi_serve.exchange import deadline_of, json_response, read_json, unless_gone
from levi_serve.live import Live, Service
from levi_serve.problems import documented
from levi_serve.trial import Trial
from levi_serve.wire_recommend import Wish


def build_recommend_router(live: Live, trial: Trial, max_body_bytes: int, timeout_s: float) -> APIRouter:
    """These endpoints over one `live` service."""
    router = APIRouter()

    @router.get(
        "/recommend",
        summary="Recommend",
        response_class=Response,
        responses=documented(404, 409, 422, 429, 500, 503, 504),
    )
    async def recommend(request: Request) -> Response:
        """The best items of the whole catalogue for one user, best first; of equal ratings, the smaller id first."""
        deadline = deadline_of(request, timeout_s)
        wish = live.current().lists.query(request.scope["query_string"])
        with trial.choose(wish.user)[0] as service:
            return await _recommended(request, service, wish, deadline)

    @router.post(
        "/recommend",
        summary="Recommend, also to a new user",
        response_class=Response,
        responses=documented(400, 404, 409, 413, 415, 422, 429, 500, 503, 504),
    )
    async def recommend_new(request: Request) -> Response:
        """The same for a user that may be new: one given by its attributes in place of an id."""
        live.current()  # without a model no body is read
        deadline = deadline_of(request, timeout_s)
        body = await read_json(request, max_body_bytes)
        wish = live.current().lists.body(body)
        with trial.choose(wish.user)[0] as service:
            return await _recommended(request, service, wish, deadline)

    @router.post(
        "/rank",
        summary="Rank some items",
        response_class=Response,
        responses=documented(400, 404, 413, 415, 422, 429, 500, 503, 504),
    )
    async def rank(request: Request) -> Response:
        """Predictions for some items, best first; of equal ratings, the smaller id first and new items last."""
        deadline = deadline_of(request, timeout_s)
        live.current().engine.admit(deadline)  # without a model, or without room, no body is read
        body = await read_json(request, max_body_bytes)
        candidates = live.current().lists.candidates(body)
        with trial.choose(candidates.user)[0] as service:
            try:
                answers = await unless_gone(request, service.engine.rank(*candidates, deadline), deadline)
            except UnknownIdError as error:
                raise service.lists.unknown_candidate(error, candidates) from None
            return json_response(service.lists.answer(candidates.user, answers))

    return router


async def _recommended(request: Request, service: Service, wish: Wish, deadline: float) -> Response:
    try:
        answers = await unless_gone(request, service.engine.recommend(*wish, deadline), deadline)
    except UnknownIdError as error:
        raise service.lists.unknown_user(error) from None
    return json_response(service.lists.answer(wish.user, answers))
