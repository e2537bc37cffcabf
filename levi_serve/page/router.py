"""Serves the page: a few static files, which ask this same server for everything else."""

from __future__ import annotations

from hashlib import sha256
from importlib import resources
from pathlib import PurePath
from typing import NamedTuple

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

# Nothing from elsewhere, nothing inline, nobody's frame: a title in the catalogue cannot become a program.
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _File(NamedTuple):
    content: bytes
    media_type: str
    tag: str

    def answer(self, request: Request) -> Response:
        """The file, or 304 to who has it already."""
        headers = {**_HEADERS, "ETag": self.tag}
        known = request.headers.get("if-none-match", "").split(",")
        if self.tag in (tag.strip().removeprefix("W/") for tag in known):
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


def build_page() -> APIRouter:
    """Routes of the page and its files, read once; none of them is part of the API."""
    files = _files()
    router = APIRouter(include_in_schema=False)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        return files["index.html"].answer(request)

    @router.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def file(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(404)
        return files[name].answer(request)

    return router


def is_page(path: str) -> bool:
    """Whether a path belongs to the page, which is for everybody: a browser that opens it has no token yet."""
    return path == "/" or path.startswith("/page/")


def _files() -> dict[str, _File]:
    found = {}
    for entry in resources.files(__package__).iterdir():
        kind = _TYPES.get(PurePath(entry.name).suffix)
        if kind:
            content = entry.read_bytes()
            found[entry.name] = _File(content, kind, f'"{sha256(content).hexdigest()[:32]}"')
    return found
