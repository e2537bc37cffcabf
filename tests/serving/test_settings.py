"""levi_serve.settings and docs/settings.md."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from levi_serve.bundle.commands import UsageError, parse
from levi_serve.cli import Monitor, Replay, Serve, main
from levi_serve.settings import COMMANDS, Budget, ServeSettings, masked, open_secrets, reference

from .conftest import ROOT, settings


def test_every_setting_is_described() -> None:
    """Every setting has a sentence that says what it does."""
    for command in (ServeSettings, *COMMANDS.values()):
        for name, field in command.model_fields.items():
            assert field.description, name
            assert field.description.endswith("."), name


def test_documentation_is_up_to_date() -> None:
    """docs/settings.md is what the settings generate; if not: python -m levi_serve.settings > docs/settings.md."""
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == reference()


def test_documentation_lists_every_setting() -> None:
    """Flag, variable and meaning of every setting are in the table."""
    text = reference()
    for name, field in ServeSettings.model_fields.items():
        assert f"| `--{name.replace('_', '-')}` | `LEVI_{name.upper()}` |" in text.partition("## `")[0]
        assert str(field.description) in text


def test_documentation_lists_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command has a chapter with each of its settings: in its table, or among those that are the server's, too."""
    monkeypatch.setattr(sys, "argv", ["levi-serve", "help"])
    assert main() == 2
    *others, last = re.findall(r"there are (.*)", capsys.readouterr().err)[0].split(", ")
    assert ["serve", *COMMANDS] == [*others, last]
    _, *chapters = re.split(r"^## `levi-serve (?=.*`$)", reference(), flags=re.MULTILINE)
    assert [chapter.partition("`")[0] for chapter in chapters] == list(COMMANDS)
    for chapter, command in zip(chapters, COMMANDS.values(), strict=True):
        for name, field in command.model_fields.items():
            flag = f"--{name.replace('_', '-')}"
            own = f"| `{flag}` | `LEVI_{name.upper()}` |" in chapter or f"| `{name.upper()}` | |" in chapter
            assert (own and str(field.description) in chapter) or f"`{flag}`" in chapter.partition("Of its own")[0]


def test_commands_read_the_servers_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server is told of false alarms holds for those commands as well that apply its test."""
    monkeypatch.setenv("LEVI_MONITOR_DAYS", "7")
    monkeypatch.setenv("LEVI_MONITOR_RATE", "250")
    for command, arguments in ((Serve, []), (Replay, ["requests.jsonl"]), (Monitor, ["http://127.0.0.1:1"])):
        told = parse(command, "levi-serve", arguments)
        assert isinstance(told, Budget)
        assert (told.monitor_days, told.monitor_rate) == (7, 250)
        told = parse(command, "levi-serve", [*arguments, "--monitor-days", "9"])
        assert isinstance(told, Budget)
        assert told.monitor_days == 9
    with pytest.raises(UsageError, match="--monitor-days"):
        parse(Replay, "levi-serve", ["requests.jsonl", "--monitor-days", "0"])


def test_precedence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A flag wins over the environment, the environment over the file, the file over the default."""
    file = tmp_path / "levi.env"
    file.write_text("LEVI_PORT=1\nLEVI_MAX_BATCH=1\nLEVI_HOST=file\n")
    monkeypatch.setenv("LEVI_PORT", "2")
    monkeypatch.setenv("LEVI_MAX_BATCH", "2")
    settings = parse(Serve, "levi-serve", ["--port", "3", "--env-file", str(file)])
    assert isinstance(settings, Serve)
    assert (settings.port, settings.max_batch, settings.host, settings.model) == (3, 2, "file", "levi")


def test_loopback_is_the_default() -> None:
    """Without settings the server cannot be reached from other machines."""
    assert ServeSettings.model_fields["host"].default == "127.0.0.1"


@pytest.mark.parametrize("version", ["latest", "latest:2", "3", "1,3"])
def test_versions(version: str) -> None:
    """The newest, or some of them, or some by their numbers."""
    settings = parse(Serve, "levi-serve", ["--version", version])
    assert isinstance(settings, Serve)
    assert settings.version == version


def test_what_is_no_version() -> None:
    with pytest.raises(UsageError, match=r"--version .*: must be latest, latest:2 .the two newest., a version number"):
        parse(Serve, "levi-serve", ["--version", "newest"])


def test_token_from_environment_and_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The token comes from the variable or the file, whose last line may end."""
    file = tmp_path / "token"
    file.write_text("from-file\n")
    assert parse(Serve, "levi-serve", ["--token-file", str(file)]).token == SecretStr("from-file")
    monkeypatch.setenv("LEVI_TOKEN_FILE", str(file))
    assert parse(Serve, "levi-serve", []).token == SecretStr("from-file")
    monkeypatch.delenv("LEVI_TOKEN_FILE")
    monkeypatch.setenv("LEVI_TOKEN", "from-variable")
    assert parse(Serve, "levi-serve", []).token == SecretStr("from-variable")


class Fuller(Serve):
    """With settings that may hold secrets in other forms."""

    redis: str | None = None
    password: SecretStr | None = None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:s3cret@host:6379/0", "redis://***@host:6379/0"),
        ("rediss://user:s3c/r@t@host", "rediss://***@host"),
        ("redis://host/0?password=s3cret&db=1", "redis://host/0?***"),
        ("redis://s3cret@host/0?password=s3cret", "redis://***"),
        ("redis://host/0?password=s@3cret", "redis://***"),
        ("redis://:s?3cret@host", "redis://***"),
        ("unix://user:s3cret@/run/redis.sock", "unix://***@/run/redis.sock"),
    ],
)
def test_no_secret_is_shown(url: str, shown: str) -> None:
    """What is logged at the start has every setting's value, and stars where there is a secret."""
    given = Fuller(_cli_parse_args=False, _env_file=None, redis=url, password="s3cret", token="s3cret")
    effective = masked(given)
    assert set(effective) == set(Fuller.model_fields)
    assert (effective["redis"], effective["token"], effective["password"]) == (shown, "**********", "**********")
    assert "3c" not in json.dumps(effective)
    assert (effective["port"], effective["model_repo"]) == (8000, "model_repo")


def test_a_worker_gets_every_setting(tmp_path: Path) -> None:
    """What the parent hands on makes the same settings again, whatever stands in the environment by then."""
    file = tmp_path / "token"
    file.write_text("t0ken")
    given = settings(tmp_path, token_file=file, workers=3, drain_s=0.5, log_format="json", version=7, timeout_ms=9)
    file.unlink()
    again = Serve(_cli_parse_args=False, _env_file=None, **json.loads(json.dumps(open_secrets(given))))
    assert again == given.model_copy(update={"token_file": None})
    assert again.token == SecretStr("t0ken")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--remote-only", "user"], "remote_only needs redis"),
        (["--redis", "localhost:6379"], "--redis (or LEVI_REDIS): a Redis URL starts with redis://"),
        (["--redis", "redis://h", "--redis-timeout-ms", "0"], "--redis-timeout-ms"),
        (["--redis", "redis://h", "--redis-timeout-ms", "inf"], "--redis-timeout-ms"),
        (["--redis-ttl-s", "0"], "--redis-ttl-s"),
        (["--absent-s", "-1"], "--absent-s"),
        (["--cache-mib", "-1"], "--cache-mib"),
        (["--on-missing", "guess"], "--on-missing"),
    ],
)
def test_wrong_stores(arguments: list[str], says: str) -> None:
    """Settings of the stores that make no sense are said at start."""
    with pytest.raises(UsageError) as caught:
        parse(Serve, "levi-serve", arguments)
    assert says in str(caught.value)


@pytest.mark.parametrize("given", [["user,movie"], ["user", "--remote-only", "movie"], ["user, movie"]])
def test_several_entities(given: list[str]) -> None:
    """Entities without a table are named with commas between them or by a flag each."""
    settings = parse(Serve, "levi-serve", ["--redis", "redis://h", "--remote-only", *given])
    assert isinstance(settings, Serve)
    assert settings.remote_only == ("user", "movie")
