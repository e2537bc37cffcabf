"""levi_serve.page.router: the page's files as they are served; no browser is needed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from levi_serve.page.router import is_page
from tests.serving.conftest import Process, settings
from tests.serving.running import RunningApp
from tests.serving.toy import Toy

FOLDER = Path(__file__).parents[2] / "levi_serve" / "page"
FILES = sorted(file.name for file in FOLDER.iterdir() if file.suffix in {".html", ".css", ".js", ".svg"})
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@pytest.fixture(scope="module")
def app(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """The application over the toy model."""
    folder = tmp_path_factory.mktemp("router")
    toy.write(folder)
    with RunningApp(settings(folder)) as running:
        yield running


def assert_guarded(answer: httpx.Response) -> None:
    """The headers forbid what the page does not need."""
    policy = answer.headers["content-security-policy"].split("; ")
    assert policy[0] == "default-src 'self'"
    assert {"object-src 'none'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} <= {*policy}
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"


def test_page(app: RunningApp) -> None:
    """`/` is the page, as HTML."""
    answer = app.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.content == (FOLDER / "index.html").read_bytes()
    assert_guarded(answer)


@pytest.mark.parametrize("name", FILES)
def test_files(app: RunningApp, name: str) -> None:
    """Each file comes whole, with its type and the protecting headers."""
    answer = app.get(f"/page/{name}")
    assert answer.status_code == 200
    assert answer.headers["content-type"].partition(";")[0] == TYPES[Path(name).suffix]
    assert answer.content == (FOLDER / name).read_bytes()
    assert_guarded(answer)


@pytest.mark.parametrize("path", ["/", "/page/page.js"])
def test_who_has_it_is_not_sent_it_again(app: RunningApp, path: str) -> None:
    """The tag of the content is answered with 304, one among several and a weak one too; another one with the file."""
    first = app.get(path)
    tag = first.headers["etag"]
    assert re.fullmatch('"[0-9a-f]{32}"', tag)
    for given in (tag, f'"other", {tag}', f"W/{tag}"):
        answer = app.get(path, headers={"if-none-match": given})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
        assert_guarded(answer)
    assert app.get(path, headers={"if-none-match": '"other"'}).content == first.content


def test_tags_differ(app: RunningApp) -> None:
    """Files that differ have tags that differ."""
    tags = [app.get(f"/page/{name}").headers["etag"] for name in FILES]
    assert len({*tags}) == len(FILES)


@pytest.mark.parametrize(
    "path", ["/page", "/page/", "/page/router.py", "/page/__init__.py", "/page/none.js", "/page/..%2frouter.py"]
)
def test_nothing_else_is_there(app: RunningApp, path: str) -> None:
    """Anything but the page's files is a problem document with status 404."""
    answer = app.get(path)
    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:levi:problem:not-found"


def test_only_reading(app: RunningApp) -> None:
    """The page can be read, with GET and HEAD, and nothing else."""
    for path in ("/", "/page/style.css"):
        assert app.request("HEAD", path).status_code == 200
        answer = app.request("POST", path)
        assert (answer.status_code, {*answer.headers["allow"].split(", ")}) == (405, {"GET", "HEAD"})


def test_over_a_socket(server: Process) -> None:
    """The real server sends the page, and for HEAD its length alone."""
    assert server.http.get("/").content == (FOLDER / "index.html").read_bytes()
    head = server.http.head("/")
    assert (head.content, int(head.headers["content-length"])) == (b"", (FOLDER / "index.html").stat().st_size)


def test_not_part_of_the_api(app: RunningApp) -> None:
    """The API's description does not know the page."""
    assert not [path for path in app.get("/openapi.json").json()["paths"] if is_page(path)]


def test_one_label_for_all_files(app: RunningApp) -> None:
    """However many files are asked for, metrics know two routes."""
    for name in (*FILES, "none.js"):
        app.get(f"/page/{name}")
    routes = {*re.findall('route="(/page[^"]*|/)"', app.get("/metrics").text)}
    assert routes == {"/", "/page/{name}"}


def test_is_page() -> None:
    """What may be read without a token is the page and nothing that looks like it."""
    assert is_page("/")
    assert all(is_page(f"/page/{name}") for name in FILES)
    assert not any(map(is_page, ["/predict", "/page", "/pages/x", "/info", "//page/x", "", "/monitor"]))


def test_files_refer_to_files() -> None:
    """What the page and its scripts load is there, and all that is there is loaded."""
    html = (FOLDER / "index.html").read_text()
    named = {*re.findall(r'(?:href|src)="page/([^"]+)"', html)}
    for script in FOLDER.glob("*.js"):
        named |= {*re.findall(r'from "\./([^"]+)"', script.read_text())}
    assert {*named, "index.html"} == {*FILES}


def test_nothing_from_elsewhere() -> None:
    """No file names another server, or holds script or style where the policy forbids it, or has text read as HTML."""
    for name in FILES:
        text = (FOLDER / name).read_text().replace('"http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?:|//[a-z]+\.[a-z]+/|@import|url\(", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(", text), name
        assert not re.search(r"<style|\bstyle=|\son[a-z]+=", text), name
        assert not re.search(r"localStorage|document\.cookie|indexedDB", text), name


def test_every_name_is_there_once() -> None:
    """Ids in the page are unique, and scripts use only those."""
    html = (FOLDER / "index.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len({*ids})
    used = {name for script in FOLDER.glob("*.js") for name in re.findall(r'byId\("([^"]+)"\)', script.read_text())}
    assert used <= {*ids}
    assert {*re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', html)} <= {*ids}


def test_lines_fit() -> None:
    """The page's sources keep to the project's width."""
    for name in FILES:
        if not name.endswith(".svg"):
            assert max(map(len, (FOLDER / name).read_text().splitlines())) <= 120, name
