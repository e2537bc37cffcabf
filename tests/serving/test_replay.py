"""levi_serve.replay and the command: a file of requests through model and monitor."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from levi_serve.bundle.commands import UsageError
from levi_serve.cli import main
from levi_serve.replay import read_requests

from .toy import USERS, Toy, schema

MANY = USERS | {number: {"age": 20 + number % 40} for number in range(2000, 2400)}


@pytest.fixture
def crowd(tmp_path: Path) -> Path:
    Toy("entity", users=MANY).write(tmp_path / "repo")
    return tmp_path / "repo"


def test_both_kinds_of_files(tmp_path: Path) -> None:
    """JSON lines and CSV give the same requests; a new entity is told by its attributes in JSON only."""
    lines, sheet = tmp_path / "r.jsonl", tmp_path / "r.csv"
    lines.write_text('{"user": 138, "movie": 357, "rating": 4}\n\n{"user": 7, "movie": 50}\n')
    sheet.write_text("movie,rating,user\n357,4,138\n50,,7\n")
    found = list(read_requests(lines, schema()))
    assert found == [((138, 357), 4.0), ((7, 50), None)]
    assert list(read_requests(sheet, schema())) == found
    lines.write_text('{"user": {"age": 3}, "movie": {"genres": ["War"]}}')
    assert list(read_requests(lines, schema())) == [(({"age": 3}, {"genres": ("War",)}), None)]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("r.jsonl", '{"user": 1, "movie": 2}\n{"user": 1}', "request 2 is none with 'user' and 'movie'"),
        ("r.jsonl", "nonsense", "request 1 is none"),
        ("r.jsonl", '{"user": "x", "movie": 2}', "request 1"),
        ("r.jsonl", '{"user": null, "movie": 2}', "None is no id"),
        ("r.jsonl", "[1, 2]", "request 1"),
        ("r.csv", "user,film\n1,2\n", "request 1"),
        ("r.csv", "user,movie\n1\n", "request 1"),
        ("absent", None, "No such file"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str | None, says: str) -> None:
    """What is no request is named by its number."""
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=tmp_path.name) as caught:
        list(read_requests(tmp_path / name, schema()))
    assert says in str(caught.value)


def test_command(
    crowd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table has the alarms, the requests without an answer and the true error; the picture is sound."""
    requests = [{"user": number, "movie": 357, "rating": 3} for number in range(2000, 2400)]
    requests.insert(5, {"user": 4711, "movie": 357, "rating": 3})
    file = tmp_path / "requests.jsonl"
    file.write_text("".join(json.dumps(request) + "\n" for request in requests))
    picture = tmp_path / "evidence.svg"
    command = ["levi-serve", "replay", str(file), "--model-repo", str(crowd), "--plot", str(picture)]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 0
    said = capsys.readouterr().out
    assert "ALARM: " in said
    assert "401 requests, 1 of them without an answer" in said
    assert len(said.splitlines()) < 40
    root = ElementTree.fromstring(picture.read_text())
    assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == 1


def test_command_monitor(crowd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers that count the same shift raise one alarm, which ends the command with code 1."""
    from levi_serve import replicas
    from levi_serve.metrics import Metrics
    from levi_serve.versions import read_version_reference

    metrics = Metrics()
    metrics.serving("levi", 1, "entity")
    scores = (*read_version_reference(crowd, "levi", 1).names, "new_user", "new_item")
    readings = iter(range(9))

    def read(urls: list[str], *_: object) -> dict[str, str]:
        count = 64 * next(readings)
        lines = [
            f'levi_monitor_score_bin_total{{score="{score}",bin="{b}"}} {count if b == 19 else 0}'
            for score in scores
            for b in range(20)
        ]
        text = metrics.text().decode().replace("# EOF", "")
        return dict.fromkeys(urls, text + "# TYPE levi_monitor_score_bin_total counter\n" + "\n".join(lines) + "\n")

    monkeypatch.setattr(replicas, "read_metrics", read)
    urls = ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    monkeypatch.setattr(sys, "argv", ["levi-serve", "monitor", *urls, "--model-repo", str(crowd), "--every-s", "0.01"])
    assert main() == 1
    said = capsys.readouterr()
    assert "shift alarm: " in said.err
    assert "128 predictions, evidence" in said.out


def test_monitor_overwrites_nothing_else(
    crowd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was named for the state by mistake is refused, with one line and code 2, and stays as it is."""
    from levi_serve import replicas

    def read(*_: object) -> None:
        raise KeyboardInterrupt  # it would go on for ever

    monkeypatch.setattr(replicas, "read_metrics", read)
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear all,\n")
    arguments = ["monitor", "http://127.0.0.1:1", "--model-repo", str(crowd), "--state", str(letter)]
    monkeypatch.setattr(sys, "argv", ["levi-serve", *arguments])
    assert main() == 2
    said = capsys.readouterr().err
    assert said.startswith(f"levi-serve monitor: --state {letter}: is no monitor's state")
    assert said.count("\n") == 1
    assert letter.read_text() == "Dear all,\n"


def test_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A URL that is none and a missing file are errors of usage."""
    for command in (["monitor", "ftp://x"], ["monitor"], ["replay"]):
        monkeypatch.setattr(sys, "argv", ["levi-serve", *command])
        assert main() == 2
