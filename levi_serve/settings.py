"""The server's settings: each a flag, a LEVI_… variable and a line of docs/settings.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, CliPositionalArg, NoDecode

from levi_serve.bundle.commands import Command
from levi_serve.bundle.redis_url import check_redis_url, is_redis
from levi_serve.repository import Policy


def _split(names: Any) -> Any:
    return tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else names


def _policy(version: Any) -> str:
    Policy.parse(str(version))
    return str(version)


def _place(place: str) -> str:
    return check_redis_url(place) if is_redis(place) else place


_POSITIONAL = get_args(CliPositionalArg[Path])[-1]
"""What marks a field that has a place on the command line and no flag."""
_TOKENS = ("token", "admin_token")
VersionPolicy: TypeAlias = Annotated[str, BeforeValidator(_policy)]
RedisUrl: TypeAlias = Annotated[str, AfterValidator(check_redis_url)]
Place: TypeAlias = Annotated[str, BeforeValidator(str), Field(min_length=1), AfterValidator(_place)]
"""On this machine, or in Redis."""
Names: TypeAlias = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""One flag per name, or names with commas between them."""


class BundleSettings(Command):
    """Which model."""

    model_repo: Path = Field(Path("model_repo"), description="Folder of the exported models.")
    model: str = Field(
        "levi", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Name of the model, a folder of the repository."
    )
    version: Literal["latest"] | PositiveInt = Field("latest", description="Version: `latest` or a number.")


class ModelSettings(BundleSettings):
    """Which model, and what runs it."""

    device: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="What runs the graphs. `cuda` needs the extra `gpu` and fails at start without a working GPU; we "
        "have not run it on one: `python -m benchmarks.cuda` checks yours.",
    )
    threads: PositiveInt | None = Field(
        None,
        description="Threads that run one backbone batch together; unset, each worker's share of the cores that the "
        "affinity mask and the cgroup quota allow.",
    )


class Budget(Command):
    """How often the shift monitor may be wrong."""

    monitor_days: PositiveFloat = Field(
        30.0,
        le=36_500,
        allow_inf_nan=False,
        description="Days between two false shift alarms, on average and at least.",
    )
    monitor_rate: PositiveFloat = Field(
        1000.0,
        le=1e9,
        allow_inf_nan=False,
        description="Predictions a second that `monitor_days` is reckoned with. Of more, the server watches so many: "
        "what a second asks for beyond that is neither evidence nor shown.",
    )


class ServeSettings(Budget, ModelSettings):
    """The server."""

    version: VersionPolicy = Field(  # type: ignore[assignment] # the other commands want one version, this one takes more
        "latest",
        description="Versions to load: `latest`, `latest:2` (the two newest that can be used), a number, or several "
        "with commas between them.",
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; `0.0.0.0` for every interface.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one and logs it.")
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="Processes that serve on this port. Above 1, one more starts them, replaces those that die, and "
        "ends them.",
    )
    max_batch: PositiveInt = Field(64, description="Pairs in one run of the model, at most.")
    max_tokens: PositiveInt = Field(
        256,
        description="Tokens in one run of the backbone over pairs' sentences (pair views), padding included, at most. "
        "On a CPU more are not faster and take longer; a GPU likes 4096.",
    )
    encode_batch: PositiveInt = Field(
        8,
        description="New entities in one run of the backbone (entity views), at most. On a CPU more are not faster and "
        "take more memory; a GPU likes 64.",
    )
    max_queue: PositiveInt = Field(
        2000,
        description="Pairs that may wait for a run; more are refused with 429 and Retry-After. Requests are let in "
        "while half of the queue is free.",
    )
    timeout_ms: PositiveInt = Field(
        2000,
        le=999_999_999,
        description="Milliseconds that a request gets which does not say X-Request-Timeout-Ms; after that it is a 504.",
    )
    max_pairs: PositiveInt = Field(1000, description="Pairs in one POST, at most.")
    max_k: PositiveInt = Field(1000, description="Recommendations in one answer, at most.")
    max_body_bytes: PositiveInt = Field(1 << 20, description="Size of a request body, at most.")
    cache_mib: NonNegativeInt = Field(
        64,
        description="Memory for entity rows that came from Redis or were encoded, at most, in MiB; taken as rows come.",
    )
    backend: Literal["onnx", "triton"] = Field(
        "onnx", description="What runs the graphs: ONNX Runtime in this process, or an NVIDIA Triton server."
    )
    triton_url: str = Field(
        "127.0.0.1:8001", min_length=1, description="Host and gRPC port of a Triton that serves the same repository."
    )
    triton_timeout_ms: PositiveFloat = Field(
        1000.0, le=60_000, allow_inf_nan=False, description="A call of Triton may take this long."
    )
    triton_fallback: bool = Field(
        False,
        description="Run a graph in this process while Triton does not answer, instead of a 503. It then takes the "
        "memory here as well.",
    )
    redis: RedisUrl | None = Field(
        None,
        description="Redis that holds entity rows (`levi-serve publish` puts them there) and shares those of new "
        "entities: `redis://`, `rediss://`, `unix://`, or `redis+cluster://`, `rediss+cluster://` and any node.",
    )
    redis_timeout_ms: PositiveFloat = Field(
        50.0,
        le=10_000,
        allow_inf_nan=False,
        description="A request waits this long for Redis, at most. After three failures in a row Redis is left alone "
        "until it answers again.",
    )
    redis_ttl_s: PositiveInt = Field(86_400, description="Seconds that Redis keeps the row of a new entity.")
    remote_only: Names = Field(
        (),
        description="Entities, such as `user`, whose table is not opened here: their rows are in Redis only. Several "
        "have commas between them.",
    )
    absent_s: NonNegativeFloat = Field(
        5.0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds until Redis is asked again for an id that it did not have.",
    )
    on_missing: Literal["degrade", "error"] = Field(
        "degrade",
        description="What to do about a `--remote-only` entity while Redis cannot say who it is: `degrade` answers as "
        "for an unknown one and marks the answer, `error` refuses with 503.",
    )
    feedback: Place | None = Field(
        None,
        description="Folder of the feedback log, or the URL of a Redis that keeps it as a stream; unset, "
        "`POST /feedback` is refused.",
    )
    feedback_max_mib: PositiveInt = Field(
        1024, description="Size of the feedback log, at most; more is refused until retraining has taken it."
    )
    entities: Place | None = Field(
        None,
        description="File (SQLite, on a local disk) or Redis URL that keeps what `PUT` and `DELETE /entities` say; "
        "servers that share it share them. Unset, they are refused.",
    )
    entities_max: PositiveInt = Field(
        10_000,
        description="Entities on that list, erased ones included, at most. Each is encoded when a version is loaded.",
    )
    drain_s: float = Field(
        1.0,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="After SIGTERM, seconds during which /readyz says 503 and requests are still accepted, so that "
        "load balancers notice first.",
    )
    shutdown_s: int = Field(
        25,
        ge=0,
        le=3600,
        description="After that, seconds that requests in flight get; whatever is unanswered then is cut off.",
    )
    token: SecretStr | None = Field(
        None,
        description="Bearer token that every request but those to /livez and /readyz must carry. A flag can be read by "
        "others on the machine: better the variable, or `token_file`.",
    )
    token_file: Path | None = Field(None, description="File that holds the token.")
    monitor: bool = Field(
        True, description="Watch whether traffic is still like the data that the model was fitted on."
    )
    monitor_state: Path | None = Field(
        None,
        description="Folder where the shift monitor keeps evidence and alarms, a small file per model version; unset, "
        "a restart forgets them.",
    )
    admin_token: SecretStr | None = Field(
        None,
        description="Bearer token for `/entities` and for `/v2/repository`, which loads and unloads versions; it opens "
        "everything else as well. Without one nobody may.",
    )
    admin_token_file: Path | None = Field(None, description="File that holds the admin token.")
    stable: PositiveInt | None = Field(
        None, description="Version that answers, as soon as it is loaded; unset, the newest of `version`."
    )
    canary: PositiveInt | None = Field(
        None,
        description="Version to try beside it, if it is loaded: it answers those who name it, and `canary_share`.",
    )
    canary_share: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of the users that the canary answers, by a hash of the user: 0.05 is one in twenty.",
    )
    shadow_share: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of the users whose predictions are made by both versions, to compare them; one is answered. "
        "Costs about as much as answering these users twice, and they do without the express lane.",
    )
    watch_s: float = Field(
        1.0,
        ge=0.05,
        le=3600,
        allow_inf_nan=False,
        description="Seconds between two looks for new versions in the model repository. A new version is loaded when "
        "two looks see the same files.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe line to log.")
    log_format: Literal["text", "json"] = Field("text", description="Lines for people, or one JSON object per line.")
    access_log: bool = Field(
        False, description="Log a line for every request. `GET /predict` then costs several times as much."
    )

    @model_validator(mode="before")
    @classmethod
    def _read_tokens(cls, given: dict[str, Any]) -> dict[str, Any]:
        read = dict(given)
        for name in _TOKENS:
            if (file := given.get(f"{name}_file")) is not None:
                read[name] = _token_in(file, name, given)
        return read

    @model_validator(mode="after")
    def _sound_tokens(self) -> Self:
        # What it should have been is said, and not what it was.
        for name in _TOKENS:
            token = getattr(self, name)
            if token is not None and not re.fullmatch(r"[!-~]+", token.get_secret_value()):
                raise ValueError(
                    f"LEVI_{name.upper()} or {_flag(name)}-file must hold printable ASCII without spaces, "
                    "and not nothing"
                )
        return self

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.max_queue < 2 * self.max_pairs:
            raise ValueError("max_queue must be at least twice max_pairs: each pair may bring two new entities")
        return self

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.remote_only and self.redis is None:
            raise ValueError("remote_only needs redis: without a table and without Redis there are no rows")
        return self


def _token_in(file: Path | str, name: str, given: dict[str, Any]) -> str:
    flag = f"{_flag(name)}-file"
    if given.get(name) is not None:
        raise ValueError(f"give {flag} or LEVI_{name.upper()}, not both")
    try:
        return Path(file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ValueError(f"{flag} {file}: {reason}") from None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


class PublishSettings(BundleSettings):
    """What goes where."""

    redis: RedisUrl = Field(description="Redis to fill; `redis+cluster://` and any node for a cluster.")
    entity: Names = Field((), description="Entities whose tables are written, such as `user`; unset, both.")
    ttl_s: PositiveInt | None = Field(None, description="Seconds until the rows expire, all together; unset, never.")


class ScoreSettings(BundleSettings):
    """What is rated, and where."""

    out: CliPositionalArg[Path] = Field(
        description="Folder of the Parquet parts with the ratings. Started again with the same, a job goes on."
    )
    pairs: Path | None = Field(
        None, description="Parquet file, or folder of such files, with a column of ids per entity, such as user, movie."
    )
    top_k: PositiveInt | None = Field(None, description="In place of pairs: the best so many items of every user.")
    exclude_rated: bool = Field(False, description="Leave out of the best what a user rated in training.")
    processes: PositiveInt | None = Field(
        None, description="Processes that score; unset, as many as there are usable cores, or 2 with Ray."
    )
    ray: str | None = Field(
        None,
        min_length=1,
        description="Ray cluster (extra `ray`): host:port of its head, `auto` for the one of this machine, or `local` "
        "to start one here. All its nodes must see the model, the pairs and the output under the same paths.",
    )

    @model_validator(mode="after")
    def _one_task(self) -> Self:
        if (self.pairs is None) == (self.top_k is None):
            raise ValueError("give either --pairs or --top-k")
        return self


class ReplaySettings(Budget, BundleSettings):
    """Which requests, and where the picture goes."""

    file: CliPositionalArg[Path] = Field(
        description='Requests: JSON lines such as {"user": 138, "movie": 357}, or CSV with such a header; a '
        "`rating` is taken as the true one."
    )
    plot: Path | None = Field(None, description="Draw the evidence into this SVG file.")


class ReplicasSettings(Budget, BundleSettings):
    """Which servers."""

    url: CliPositionalArg[list[Annotated[str, Field(pattern=r"^https?://")]]] = Field(
        description="Servers of this version, such as http://10.0.0.7:8000."
    )
    every_s: PositiveFloat = Field(1.0, allow_inf_nan=False, description="Seconds between two readings.")
    state: Path | None = Field(None, description="File that keeps evidence and alarms over a restart.")
    token: SecretStr | None = Field(None, description="Bearer token of the servers.")


COMMANDS: dict[str, type[BaseSettings]] = {
    "validate": ModelSettings,
    "publish": PublishSettings,
    "score": ScoreSettings,
    "replay": ReplaySettings,
    "monitor": ReplicasSettings,
}
"""Settings of the commands beside `serve`."""


def open_secrets(settings: ServeSettings) -> dict[str, Any]:
    """Every setting in JSON's types, secrets included: for the ears of a worker only."""
    dumped = settings.model_dump(mode="json")
    for name in _TOKENS:
        token = getattr(settings, name)
        dumped |= {name: token.get_secret_value() if token else None, f"{name}_file": None}
    return dumped


def masked(settings: ServeSettings) -> dict[str, Any]:
    """Every setting in JSON's types, without secrets: for the log."""
    return {name: _masked(value) for name, value in settings.model_dump(mode="json").items()}


def _masked(value: Any) -> Any:
    """Pydantic masks what it knows to be secret. A URL may hold a password before its host or in its parameters; with
    signs of both it cannot be told where one ends.
    """
    if not isinstance(value, str) or "://" not in value:
        return value
    scheme, _, rest = value.partition("://")
    if "@" in rest and "?" in rest:
        rest = "***"
    return f"{scheme}://" + re.sub(r"^.*(?=@)|(?<=\?).*$", "***", rest)


def reference() -> str:
    """docs/settings.md: run `python -m levi_serve.settings > docs/settings.md` after a change."""
    lines = [
        "# Settings of `levi-serve`",
        "",
        "Each setting is a flag, an environment variable and a line `LEVI_…=value` in the file given by `--env-file`;",
        "the flag wins over the environment, the environment over the file, the file over the default.",
        "",
        *_table(ServeSettings.model_fields),
    ]
    for name, settings in COMMANDS.items():
        own, alike = dict[str, FieldInfo](), []
        for field, told in settings.model_fields.items():
            known = ServeSettings.model_fields.get(field)
            if known is not None and told.description == known.description:
                alike.append(f"`{_flag(field)}`")
            else:
                own[field] = told
        lines += ["", f"## `levi-serve {name}`", "", f"As above: {', '.join(alike)}. Of its own:", "", *_table(own)]
    return "\n".join(lines) + "\n"


def _table(fields: Mapping[str, FieldInfo]) -> list[str]:
    lines = ["| flag | variable | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        default = "" if field.default in (None, PydanticUndefined, ()) else f"`{field.default}`"
        given = f"`{name.upper()}` |" if _POSITIONAL in field.metadata else f"`{_flag(name)}` | `LEVI_{name.upper()}`"
        lines.append(f"| {given} | {default} | {field.description} |")
    return lines


if __name__ == "__main__":
    print(reference(), end="")
