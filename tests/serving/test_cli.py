"""levi_serve.cli: exit codes and what a person reads."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from levi_serve.cli import main

from .conftest import ROOT


def levi_serve(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["levi-serve", *map(str, arguments)])
    return main()


def test_validate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], entity_toy_repository: Path
) -> None:
    """`validate` prints what it found in a good version and exits 0."""
    assert levi_serve(monkeypatch, "validate", "--model-repo", entity_toy_repository) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model", "levi/1,", "entity", "views,", "3", "heads"]
    assert "19, every checksum as in the manifest" in lines[2]
    assert "11 examples reproduced; largest difference" in lines[3]


def test_validate_names_the_broken_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], entity_toy_repository: Path, tmp_path: Path
) -> None:
    """`validate` of a broken version prints one line with the file's name and exits 1."""
    repository = Path(shutil.copytree(entity_toy_repository, tmp_path / "repository"))
    (repository / "levi/1/tokenizer.json").write_text("{}")
    assert levi_serve(monkeypatch, "validate", "--model-repo", repository) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"levi-serve validate: {repository}/levi/1/tokenizer.json: checksum differs")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--port", "70000"], "--port"),
        (["--port", "http"], "--port"),
        (["--threads", "0"], "--threads"),
        (["--workers", "0"], "--workers"),
        (["--workers", "-1"], "--workers"),
        (["--workers", "two"], "--workers"),
        (["--workers", "257"], "--workers"),
        (["--token", ""], "LEVI_TOKEN or --token-file must hold printable ASCII"),
        (["--token", "two words"], "LEVI_TOKEN or --token-file must hold printable ASCII"),
        (["--token", "ünicode"], "LEVI_TOKEN or --token-file must hold printable ASCII"),
        (["--token", "a", "--token-file", "b"], "give --token-file or LEVI_TOKEN, not both"),
        (["--token-file", "/no/such/file"], "--token-file /no/such/file: No such file or directory"),
        (["--token-file", "/"], "--token-file /: Is a directory"),
        (["--token-file", "/dev/null"], "LEVI_TOKEN or --token-file must hold printable ASCII"),
        (["--log-format", "xml"], "--log-format"),
        (["--max-batch", "0"], "--max-batch"),
        (["--max-queue", "1999"], "max_queue must be at least twice max_pairs"),
        (["--device", "tpu"], "--device"),
        (["--version", "0"], "--version"),
        (["--version", "newest"], "--version"),
        (["--model", "../secret"], "--model"),
        (["--drain-s", "nan"], "--drain-s"),
        (["--colour", "red"], "--colour"),
        (["dance"], "there is no command 'dance'"),
    ],
)
def test_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    """A wrong flag or value is one line on standard error and exit code 2, before anything starts."""
    assert levi_serve(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1


def test_port_in_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], entity_toy_repository: Path
) -> None:
    """A port that another process holds is one line and exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert levi_serve(monkeypatch, "--model-repo", entity_toy_repository, "--port", port) == 1
    assert capsys.readouterr().err == f"levi-serve: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_missing_gpu_ends_the_process(entity_toy_repository: Path) -> None:
    """`--device cuda` without a GPU runtime ends the server with exit code 1 and a line; it does not fall back."""
    command = [sys.executable, "-m", "levi_serve.cli", "--model-repo", str(entity_toy_repository), "--port", "0"]
    command += ["--device", "cuda"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert "levi-serve: device cuda: the installed ONNX Runtime has no CUDAExecutionProvider" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_wrong_token_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What is said about a token that cannot be one does not show it; nor does a file that is no text."""
    assert levi_serve(monkeypatch, "--token", "my secret") == 2
    assert "secret" not in capsys.readouterr().err
    (tmp_path / "token").write_bytes(b"\xff\xfesecret")
    assert levi_serve(monkeypatch, "--token-file", tmp_path / "token") == 2
    assert capsys.readouterr().err.startswith(f"levi-serve: --token-file {tmp_path}/token: is not UTF-8 text")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_address_that_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, workers: str
) -> None:
    """An address of another machine, or none at all, is one line and exit code 1."""
    for host, reason in (("192.0.2.1", "Cannot assign requested address"), ("no.such.host.invalid", "N")):
        arguments = ("--model-repo", tmp_path, "--host", host, "--workers", workers)
        assert levi_serve(monkeypatch, *arguments) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"levi-serve: cannot listen on {host}:8000: {reason}")
        assert said.count("\n") == 1


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` explains every flag of the server."""
    with pytest.raises(SystemExit, match="0"):
        levi_serve(monkeypatch, "--help")
    text = capsys.readouterr().out
    assert "--max-body-bytes" in text
    assert "Answer predictions over HTTP" in text
