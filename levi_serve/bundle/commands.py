"""The command line of both programs: a command is a settings class whose fields are flags and LEVI_… variables.

Precedence: flag > environment > `--env-file` > default. Exit codes: 0 done, 1 failed while running, 2 wrong usage.
"""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError


class Command(BaseSettings, ABC):
    """One command: its docstring is the help text, its fields the flags, its call the work."""

    model_config = SettingsConfigDict(
        env_prefix="LEVI_",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        cli_hide_none_type=True,
        extra="ignore",
        frozen=True,
    )

    @abstractmethod
    def __call__(self) -> None:
        """Do the work; raise one of the program's usage or run-time errors if it can't be done."""


class UsageError(Exception):
    """Exit 2: the command cannot do what was asked; one line says what is wrong and where. Nothing was written."""


class RunError(Exception):
    """Exit 1: the request was right and the work failed. Nothing that looks finished was left behind."""


def parse(command: type[Command], prog: str, argv: Sequence[str]) -> Command:
    """Settings from flags, environment, the file after `--env-file` and defaults.

    Raises:
        UsageError: what is wrong, in one line.
        SystemExit: after `--help`.
    """
    arguments, env_file = _take_env_file(list(argv))
    try:
        return command(_cli_parse_args=arguments, _cli_prog_name=prog, _env_file=env_file)
    except UnicodeDecodeError:
        raise UsageError(f"--env-file {env_file}: is not UTF-8 text") from None
    except SettingsError as error:
        if listed := re.match('error parsing value for field "(.+?)"', str(error)):
            raise UsageError(_complaint(listed[1], "not a list of such values")) from None
        raise UsageError(str(error).removeprefix("error parsing CLI: ")) from None
    except ValidationError as error:
        raise UsageError(
            "; ".join(_complaint(str(e["loc"][0]) if e["loc"] else "", e["msg"]) for e in error.errors())
        ) from None


def run(
    program: str,
    summary: str,
    commands: Mapping[str, type[Command]],
    argv: Sequence[str],
    default: str | None = None,
) -> int:
    """Parse `argv`, run the command it names (or the default one), and return the exit code."""
    name, rest = _choose(commands, argv, default)
    if name is None:
        return _overview(program, summary, commands, argv)
    prog = program if name == default else f"{program} {name}"
    try:
        parse(commands[name], prog, rest)()
    except UsageError as error:
        print(f"{prog}: {_one_line(error)} (see {prog} --help)", file=sys.stderr)
        return 2
    except (RunError, OSError, MemoryError) as error:
        print(f"{prog}: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _choose(
    commands: Mapping[str, type[Command]], argv: Sequence[str], default: str | None
) -> tuple[str | None, Sequence[str]]:
    if argv and argv[0] in commands:
        return argv[0], argv[1:]
    if default is not None and (not argv or argv[0].startswith("-")):
        return default, argv
    return None, argv


def _overview(program: str, summary: str, commands: Mapping[str, type[Command]], argv: Sequence[str]) -> int:
    lines = [f"usage: {program} COMMAND [--help] ...", "", summary, "", "commands:"]
    lines += [f"  {name:<12} {(command.__doc__ or '').splitlines()[0]}" for name, command in commands.items()]
    if not argv or argv[0] in {"-h", "--help"}:
        print("\n".join(lines))
        return 0 if argv else 2
    print(f"{program}: there is no command '{argv[0]}'; there are {', '.join(commands)}", file=sys.stderr)
    return 2


def _take_env_file(argv: list[str]) -> tuple[list[str], str | None]:
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag == "--env-file":
            if not equals and i + 1 == len(argv):
                raise UsageError("--env-file: names no file")
            path = value if equals else argv[i + 1]
            try:
                with open(path, encoding="utf-8"):  # noqa: PTH123 - a missing settings file is an error, not ignored
                    pass
            except OSError as error:
                raise UsageError(f"--env-file {path}: {error.strerror}") from None
            return argv[:i] + argv[i + (1 if equals else 2) :], path
    return argv, None


def _complaint(field: str, message: str) -> str:
    name = field.lower().removeprefix("levi_")
    where = f"--{name.replace('_', '-')} (or LEVI_{name.upper()}): " if name else ""
    return where + message.removeprefix("Value error, ")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
