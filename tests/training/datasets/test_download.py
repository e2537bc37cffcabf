"""Downloading from a real local server; GroupLens' own is never asked."""

from __future__ import annotations

import hashlib
import http.server
import io
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from training.datasets import download, load
from training.datasets.download import download_ml100k
from training.errors import RunError, UsageError

CONTENT = {"u.data": b"1\t1\t3\t8\n", "u.info": b"1 users\n"}


class _Handler(http.server.BaseHTTPRequestHandler):
    body = b""
    cut = 0

    def do_GET(self) -> None:
        self.send_response(404 if self.path == "/none" else 200)
        self.send_header("Content-Length", str(len(self.body) + self.cut))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an archive; set `_Handler.body` to what it holds."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(_Handler, "cut", 0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{serving.server_address[1]}/ml-100k.zip"
        serving.shutdown()
        thread.join()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small files instead of GroupLens', with their own hashes."""
    monkeypatch.setattr(download, "_SHA256", {n: hashlib.sha256(c).hexdigest() for n, c in CONTENT.items()})


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for name, content in members.items():
            opened.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


GOOD = {f"ml-100k/{name}": content for name, content in CONTENT.items()}


def refuse(target: Path, url: str, message: str, **options: float) -> None:
    """The download fails with one line, and its folder's parent is as empty as before."""
    before = sorted(target.parent.rglob("*"))
    with pytest.raises(RunError) as caught:
        download_ml100k(target, lambda _: None, url, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(target.parent.rglob("*")) == before


@pytest.mark.usefixtures("small")
def test_files_arrive_and_the_licence_is_said(server: str, tmp_path: Path) -> None:
    """The named files and nothing else are in a new folder, and the terms were told first."""
    _Handler.body = archive({**GOOD, "ml-100k/mku.sh": b"rm -rf /"})
    told: list[str] = []
    download_ml100k(tmp_path / "deep/ml-100k", told.append, server)
    assert {p.name: p.read_bytes() for p in (tmp_path / "deep/ml-100k").iterdir()} == CONTENT
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["ml-100k"]
    assert len(told) == 1
    for term in ("research", "no redistribution", "10.1145/2827872"):
        assert term in told[0]


@pytest.mark.usefixtures("small")
def test_nothing_is_overwritten(server: str, tmp_path: Path) -> None:
    """A target that is there already is a usage error, and stays as it is."""
    _Handler.body = archive(GOOD)
    (tmp_path / "mine").write_text("x")
    for target in (tmp_path, tmp_path / "mine"):
        with pytest.raises(UsageError, match="is there already"):
            download_ml100k(target, lambda _: None, server)
    assert (tmp_path / "mine").read_text() == "x"


@pytest.mark.usefixtures("small")
def test_names_in_the_archive_are_no_paths(server: str, tmp_path: Path) -> None:
    """A member that points outside is not written anywhere."""
    evil = {"../evil": b"x", "ml-100k/../../evil": b"x", str(tmp_path / "evil"): b"x", "/evil": b"x"}
    _Handler.body = archive({**evil, **GOOD})
    download_ml100k(tmp_path / "a/ml-100k", lambda _: None, server)
    assert not list(tmp_path.rglob("evil"))
    assert not (tmp_path.parent / "evil").exists()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "is not the archive of MovieLens-100K"),
        (b"<html>moved</html>", "is not the archive of MovieLens-100K"),
        (archive(GOOD)[:-30], "is not the archive of MovieLens-100K"),
        (archive({"ml-100k/u.data": CONTENT["u.data"]}), "is not the archive of MovieLens-100K"),
        (archive({**GOOD, "ml-100k/u.data": b"1\t1\t4\t8\n"}), "u.data is not GroupLens' file (its SHA-256 differs)"),
    ],
)
def test_other_content(server: str, tmp_path: Path, body: bytes, message: str) -> None:
    """What is no archive, lacks a file, or has another file in its place is refused and leaves nothing."""
    _Handler.body = body
    refuse(tmp_path / "ml-100k", server, message)


@pytest.mark.usefixtures("small")
def test_every_corrupted_byte_is_noticed(server: str, tmp_path: Path) -> None:
    """Whichever byte of the archive is flipped, what arrives is right or nothing (a byte of a date is no content)."""
    good = archive(GOOD)
    refused = 0
    for position in range(len(good)):
        _Handler.body = good[:position] + bytes([good[position] ^ 0xFF]) + good[position + 1 :]
        target = tmp_path / str(position)
        try:
            download_ml100k(target, lambda _: None, server)
        except RunError:
            refused += 1
            assert not target.exists()
        else:
            assert {p.name: p.read_bytes() for p in target.iterdir()} == CONTENT
    assert refused > len(good) / 2


@pytest.mark.usefixtures("small")
def test_network_failures_say_how_to_use_a_folder(server: str, tmp_path: Path) -> None:
    """No such host, no such port, an error page, a cut transfer and a silent host all end in the same advice."""
    advice = "unpack it and give its folder with --data"
    _Handler.body = archive(GOOD)
    refuse(tmp_path / "x", server.replace("ml-100k.zip", "none"), advice)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        refuse(tmp_path / "x", f"http://127.0.0.1:{port}/x", advice, timeout=0.1)
    refuse(tmp_path / "x", f"http://127.0.0.1:{port}/x", advice)
    refuse(tmp_path / "x", "http://nowhere.invalid/x", advice)
    _Handler.cut = 10
    refuse(tmp_path / "x", server, advice)


def test_endless_answers_and_other_schemes(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More bytes than the archive could have are not kept, and only http addresses are opened."""
    monkeypatch.setattr(download, "_MOST_BYTES", 1 << 20)
    _Handler.body = bytes((1 << 20) + 1)
    refuse(tmp_path / "x", server, "sends more than 1 MiB")
    with pytest.raises(UsageError, match="is no http address"):
        download_ml100k(tmp_path / "x", lambda _: None, "file:///etc/passwd")


@pytest.mark.ml100k
def test_the_real_files(server: str, tmp_path: Path, ml100k: Path) -> None:
    """GroupLens' files pass the built-in hashes and load."""
    names = ["u.data", "u.item", "u.user", "u.genre", "u.occupation", "u.info", "README"]
    _Handler.body = archive({f"ml-100k/{name}": (ml100k / name).read_bytes() for name in names})
    download_ml100k(tmp_path / "ml-100k", lambda _: None, server)
    assert len(load("ml-100k", tmp_path / "ml-100k").ratings) == 100_000
