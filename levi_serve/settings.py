"""The server's settings: each a flag, a LEVI_… variable and a line of docs/settings.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic_core import PydanticUndefined
from pydantic_settings import NoDecode

from levi_serve.bundle.commands import Command
from levi_serve.redis_url import check_redis_url


def _split(names: Any) -> Any:
    return tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else names


RedisUrl: TypeAlias = Annotated[str, AfterValidator(check_redis_url)]
Names: TypeAlias = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""One flag per name, or names with commas between them."""


class BundleSettings(Command):
    """Which model."""

    model_repo: Path = Field(Path("model_repo"), description="Folder of the exported models.")
    model: str = Field(
        "levi", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Name of the model, a folder of the repository."
    )
    version: Literal["latest"] | PositiveInt = Field("latest", description="Version to serve: `latest` or a number.")


class ModelSettings(BundleSettings):
    """Which model, and what runs it."""

    device: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="What runs the graphs. `cuda` needs the extra `gpu` and fails at start without a working GPU.",
    )
    threads: PositiveInt | None = Field(
        None,
        description="Threads that run one backbone batch together; unset, as many cores as the affinity mask and the "
        "cgroup quota allow.",
    )


class ServeSettings(ModelSettings):
    """The server."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; `0.0.0.0` for every interface.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one and logs it.")
    max_batch: PositiveInt = Field(32, description="Pairs in one run of the model, at most.")
    encode_batch: PositiveInt = Field(
        8,
        description="New entities in one run of the backbone (entity views), at most. On a CPU more are not faster and "
        "take more memory; a GPU likes 64.",
    )
    max_queue: PositiveInt = Field(
        2000, description="Pairs that may wait for a run; more are refused with 429 and Retry-After."
    )
    max_pairs: PositiveInt = Field(1000, description="Pairs in one POST, at most.")
    max_body_bytes: PositiveInt = Field(1 << 20, description="Size of a request body, at most.")
    cache_mib: NonNegativeInt = Field(
        64,
        description="Memory for entity rows that came from Redis or were encoded, at most, in MiB; taken as rows come.",
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
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe line to log.")

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


class PublishSettings(BundleSettings):
    """What goes where."""

    redis: RedisUrl = Field(description="Redis to fill; `redis+cluster://` and any node for a cluster.")
    entity: Names = Field((), description="Entities whose tables are written, such as `user`; unset, both.")
    ttl_s: PositiveInt | None = Field(None, description="Seconds until the rows expire, all together; unset, never.")


def reference() -> str:
    """docs/settings.md: run `python -m levi_serve.settings > docs/settings.md` after a change."""
    lines = [
        "# Settings of `levi-serve`",
        "",
        "Each setting is a flag, an environment variable and a line `LEVI_…=value` in the file given by `--env-file`;",
        "the flag wins over the environment, the environment over the file, the file over the default.",
        "",
        "| flag | variable | default | meaning |",
        "|---|---|---|---|",
    ]
    for name, field in ServeSettings.model_fields.items():
        default = "" if field.default in (None, PydanticUndefined) else f"`{field.default}`"
        flag = f"--{name.replace('_', '-')}"
        lines.append(f"| `{flag}` | `LEVI_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
