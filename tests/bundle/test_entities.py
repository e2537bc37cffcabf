"""levi_serve.bundle.entities: the last change of each entity, in order; what is erased is gone, from file and Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from levi_serve.bundle.entities import Change, EntityList, FullError, PlaceError, open_entities
from tests.serving.redis_server import RedisServer

FILM = Change("movie", 9001, {"title": "Ünicode", "genres": ("a", "b"), "year": 1999}, "d", b"\0\1")
OTHER = Change("user", "x y", {"age": 3.5}, "d", b"")
ERASED = Change("movie", 9001, None)


@pytest.fixture(params=["file", "redis"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], EntityList]]:
    """Opens one and the same list again and again."""
    server = RedisServer(tmp_path) if request.param == "redis" else None
    lists: list[EntityList] = []

    def open_list() -> EntityList:
        lists.append(open_entities(server.url if server else tmp_path / "deep" / "entities.sqlite", "levi"))
        return lists[-1]

    yield open_list
    for one in lists:
        one.close()
    if server:
        server.kill()


def test_changes_come_in_order(opened: Callable[[], EntityList]) -> None:
    """Each once, the last of its entity, to everybody; and only those after the number that is known."""
    one, other = opened(), opened()
    assert one.since(0) == (0, [])
    one.put(FILM, 10)
    other.put(OTHER, 10)
    assert one.since(0) == other.since(0) == (2, [FILM, OTHER])
    assert one.since(1) == (2, [OTHER])
    assert one.since(2) == (2, [])
    one.put(ERASED, 10)
    assert other.since(2) == (3, [ERASED])
    assert other.since(0) == (3, [OTHER, ERASED])
    other.put(FILM._replace(id="9001"), 10)  # a text is another id than the number
    assert one.since(0)[1] == [OTHER, ERASED, FILM._replace(id="9001")]


def test_a_list_that_begins_anew(opened: Callable[[], EntityList]) -> None:
    """Who knows more than there is gets all of it."""
    one = opened()
    one.put(FILM, 10)
    assert one.since(7) == (1, [FILM])


def test_room(opened: Callable[[], EntityList]) -> None:
    """No more than so many; those that are there may change, and erasing is always possible."""
    one = opened()
    one.put(FILM, 1)
    one.put(FILM, 1)
    with pytest.raises(FullError, match="holds 1"):
        one.put(OTHER, 1)
    one.put(OTHER._replace(attributes=None), 1)
    assert one.since(0)[0] == 3


def test_what_is_erased_is_gone(tmp_path: Path) -> None:
    """Its attributes are in no file any more."""
    one = open_entities(tmp_path / "list", "levi")
    one.put(FILM, 10)
    assert any("Ünicode".encode("unicode_escape")[2:] in file.read_bytes() for file in tmp_path.iterdir())
    one.put(ERASED, 10)
    one.close()
    assert not any(b"nicode" in file.read_bytes() for file in tmp_path.iterdir())


def test_places_that_are_none(tmp_path: Path) -> None:
    """One line that names the place."""
    (tmp_path / "text").write_text("this is no database, and long enough to be told from an empty one" * 9)
    with pytest.raises(PlaceError, match=r"text: file is not a database"):
        open_entities(tmp_path / "text", "levi").since(0)
    with pytest.raises(PlaceError, match=r"redis://127\.0\.0\.1:1"):
        open_entities("redis://127.0.0.1:1", "levi").since(0)
