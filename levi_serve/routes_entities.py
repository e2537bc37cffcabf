"""The endpoints that put and erase users and items while the server runs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from levi_serve.bundle.entities import Change
from levi_serve.bundle.rows import Id
from levi_serve.entities import Entities
from levi_serve.errors import EntitiesError, UnsupportedError
from levi_serve.exchange import deadline_of, read_json
from levi_serve.feedback import Feedback
from levi_serve.guard import Token, admission
from levi_serve.live import Live
from levi_serve.problems import documented


class EntityReceipt(BaseModel):
    """The entity is durable, and known to this process; to all others within a second."""

    entity: str
    id: Id
    attributes: dict[str, Any]


class ErasureReceipt(BaseModel):
    """The entity is gone from here; from all other processes within a second."""

    entity: str
    id: Id
    events: int = Field(description="events of it that were taken out of the feedback log")


def build_entities_router(
    live: Live,
    entities: Entities | None,
    feedback: Feedback | None,
    admin: Token | None,
    max_body_bytes: int,
    timeout_s: float,
) -> APIRouter:
    """The endpoints over the list of `entities`; they ask for the `admin` token, without one they refuse."""
    router = APIRouter(prefix="/entities", dependencies=[Depends(admission(admin))])

    def kept() -> Entities:
        if entities is None:
            raise UnsupportedError("this server keeps no entities: start it with --entities FILE or redis://HOST")
        return entities

    @router.put(
        "/{entity}/{id:path}",
        summary="Put a user or an item",
        responses=documented(400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 503, 504),
    )
    async def put(request: Request, entity: str, id: str) -> EntityReceipt:  # noqa: A002 - the path's name
        """Make an entity known by its attributes; it is encoded once, and kept when the version changes."""
        deadline = deadline_of(request, timeout_s)
        live.current()
        into = kept()
        body = await read_json(request, max_body_bytes)
        with live.current() as service:
            side, id_ = service.wire.entity(entity, id)
            attributes = service.wire.attributes(side, body)
            row = await service.engine.row(side, attributes, deadline)
            await into.put(Change(entity, id_, attributes, service.overlay.digest, row.tobytes()))
        await live.follow(into)
        return EntityReceipt(entity=entity, id=id_, attributes=attributes)

    @router.delete(
        "/{entity}/{id:path}",
        summary="Erase a user or an item",
        responses=documented(401, 403, 404, 409, 422, 503),
    )
    async def erase(entity: str, id: str) -> ErasureReceipt:  # noqa: A002
        """Forget an entity, its rows and the events that name it. Without an answer send it again. It may take long:
        the whole feedback log is read.
        """
        live.current()
        into = kept()
        with live.current() as service:
            side, id_ = service.wire.entity(entity, id)
            before = service.overlay.given(side, id_)
        await into.put(Change(entity, id_, None))
        await live.follow(into)
        done = [await service.overlay.erase(side, id_, before) for service in list(live.loaded.values())]
        events = 0 if feedback is None else await feedback.erase(side, id_)
        if not all(done):
            raise EntitiesError("it is erased here; Redis, which has a row of it, does not answer: send this again")
        return ErasureReceipt(entity=entity, id=id_, events=events)

    return router
