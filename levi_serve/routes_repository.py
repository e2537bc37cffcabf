"""The endpoints that show and change what is loaded: the model repository extension of the Open Inference Protocol."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from levi_serve.errors import Complaint, InvalidRequestError
from levi_serve.exchange import read_body
from levi_serve.guard import Token, admission
from levi_serve.live import Label, Live
from levi_serve.problems import ProblemError, documented
from levi_serve.rollout import Rollout

Wish = TypeVar("Wish", bound=BaseModel)
Number = Annotated[int, Field(ge=1)]


class VersionState(BaseModel):
    """One version of the model."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str = Field(description="why it is not loaded; empty if it is")
    labels: list[Label] = Field(description="what points at it")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class IndexWish(_Strict):
    """What to list."""

    ready: bool = Field(False, description="only what is loaded")


class _LoadParameters(_Strict):
    version: Number | None = Field(None, description="which; unset, whatever the server's settings name")
    label: Label | None = Field(None, description="to point at it; without a version, what the settings name")


class LoadWish(_Strict):
    """What to load."""

    parameters: _LoadParameters = _LoadParameters()


class _UnloadParameters(_Strict):
    version: Number


class UnloadWish(_Strict):
    """What to unload."""

    parameters: _UnloadParameters


def build_repository_router(
    live: Live, rollout: Rollout, name: str, admin: Token | None, max_body_bytes: int
) -> APIRouter:
    """The endpoints over the versions of the model `name`; they ask for the `admin` token, without one they refuse."""
    router = APIRouter(prefix="/v2/repository", dependencies=[Depends(admission(admin))])

    @router.post("/index", summary="List versions", responses=documented(401, 403, 413, 422))
    async def index(request: Request) -> list[VersionState]:
        """The versions that are loaded, and those that were to be and cannot."""
        wish = await _read(request, IndexWish, max_body_bytes)
        return [state for state in versions(live, name) if state.state == "READY" or not wish.ready]

    @router.post("/models/{model}/load", summary="Load", responses=documented(401, 403, 404, 409, 413, 422))
    async def load(request: Request, model: str) -> Response:
        """Load a version beside those of the settings, and point a label at it; without a version, try again what
        could not be loaded. It stays until it is unloaded or the server ends.
        """
        _known(model, name)
        wish = (await _read(request, LoadWish, max_body_bytes)).parameters
        await rollout.load(wish.version, wish.label)
        return Response()

    @router.post("/models/{model}/unload", summary="Unload", responses=documented(401, 403, 404, 409, 413, 422))
    async def unload(request: Request, model: str) -> Response:
        """Take a version out of service, until it is loaded by name or the server ends."""
        _known(model, name)
        await rollout.unload((await _read(request, UnloadWish, max_body_bytes)).parameters.version)
        return Response()

    return router


def versions(live: Live, name: str) -> list[VersionState]:
    """What is loaded or was to be, newest first."""
    found = []
    for number in sorted(live.loaded.keys() | live.unusable.keys(), reverse=True):
        reason = "" if number in live.loaded else live.unusable[number]
        labels = [label for label, labelled in live.labels.items() if labelled == number]
        state: Literal["READY", "UNAVAILABLE"] = "UNAVAILABLE" if reason else "READY"
        found.append(VersionState(name=name, version=str(number), state=state, reason=reason, labels=labels))
    return found


def _known(model: str, name: str) -> None:
    if model != name:
        raise ProblemError(404, "unknown-model", f"this server serves the model '{name}' and no other")


async def _read(request: Request, kind: type[Wish], limit: int) -> Wish:
    """The wish; no body at all is an empty one."""
    try:
        return kind.model_validate_json(await read_body(request, limit) or b"{}")
    except ValidationError as error:
        raise InvalidRequestError(
            [Complaint(".".join(map(str, e["loc"])) or "body", e["msg"]) for e in error.errors()[:10]]
        ) from None
