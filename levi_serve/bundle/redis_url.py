"""URLs of Redis: `redis://`, `rediss://` (TLS), `unix://`, and `redis+cluster://`, `rediss+cluster://` for a cluster.

    redis://USER:PASSWORD@HOST:6379/0        rediss://HOST:6380?ssl_ca_certs=/etc/ssl/redis.pem
    redis+cluster://HOST:7000                unix:///run/redis.sock?db=1

A cluster is given by any one of its nodes, which tells the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

_FORM = "it should look like redis://HOST:6379/0, with %2F, %3F and %23 for /, ? and # in a password"
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_OPTIONS = {
    "redis": (),
    "rediss": (*_FILES, "ssl_cert_reqs", "ssl_check_hostname"),
    "unix": ("db", "username", "password"),
}
"""What may stand behind the '?'."""
SCHEMES = ("redis", "rediss", "redis+cluster", "rediss+cluster", "unix")


def check_redis_url(url: str) -> str:
    """The URL itself, if it is one.

    Raises:
        ValueError: what is wrong with it. The message does not repeat it: it may hold a password.

    """
    scheme, found, _ = url.partition("://")
    if not found or scheme not in SCHEMES:
        raise ValueError(f"a Redis URL starts with {', '.join(f'{s}://' for s in SCHEMES[:-1])} or {SCHEMES[-1]}://")
    try:
        parts, port = urlsplit(url), urlsplit(url).port
        readable = not parts.fragment
    except ValueError:
        readable = False
    if not readable:
        raise ValueError(f"its host or port cannot be read; {_FORM}")
    _check_place(parts, port)
    _check_options(parts)
    return url


def is_cluster(url: str) -> bool:
    """Whether the URL leads to a Redis Cluster."""
    return url.partition("://")[0].endswith("+cluster")


def node_url(url: str) -> str:
    """The URL of the node itself, as Redis clients know it."""
    scheme, _, rest = url.partition("://")
    return f"{scheme.removesuffix('+cluster')}://{rest}"


def shown(url: str) -> str:
    """The URL without user, password and options, fit for logs."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def is_redis(place: str) -> bool:
    """Whether a place that may be a folder or a file is a Redis URL; one with another scheme is meant as one."""
    return "://" in place


def client_options(timeout_s: float, retry: type[Any]) -> dict[str, Any]:
    """What every client is made with: it waits no longer than `timeout_s` for a connection or an answer. `retry` is
    the client library's class for it.
    """
    from redis.backoff import NoBackoff  # noqa: PLC0415 - importing Redis takes 0.1 s, and most programs need none
    from redis.exceptions import ConnectionError as RedisConnectionError  # noqa: PLC0415
    from redis.maint_notifications import MaintNotificationsConfig  # noqa: PLC0415

    return {
        "protocol": 3,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        # Only for a connection that was cut while nobody used it: one that is refused or silent is not tried again.
        "retry": retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


def open_redis(url: str, timeout_s: float) -> Any:
    """A client whose calls block, for at most `timeout_s` each; it connects when it is first asked."""
    from redis import Redis, RedisCluster  # noqa: PLC0415 - see `client_options`
    from redis.retry import Retry  # noqa: PLC0415

    kind = RedisCluster if is_cluster(url) else Redis
    return kind.from_url(node_url(url), **client_options(timeout_s, Retry))


def _check_place(parts: SplitResult, port: int | None) -> None:
    if parts.scheme == "unix":
        if parts.hostname or len(parts.path) < 2:
            raise ValueError("a socket is given by its path: unix:///run/redis.sock")
        return
    if not parts.hostname or port == 0:
        raise ValueError(f"it names no host or no port; {_FORM}")
    database = parts.path.removeprefix("/")
    if database and not (database.isascii() and database.isdigit()):
        raise ValueError(f"what follows the host is no database, which is a number; {_FORM}")
    if parts.scheme.endswith("+cluster") and int(database or 0) > 0:
        raise ValueError("a cluster has no databases but 0")


def _check_options(parts: SplitResult) -> None:
    allowed = _OPTIONS[parts.scheme.removesuffix("+cluster")]
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in allowed:
            raise ValueError(f"it has an option that is none of {parts.scheme}://'s: {', '.join(allowed) or 'none'}")
        if name in _FILES and not Path(value).is_file():
            raise ValueError(f"{name}={value}: there is no such file")
        if name == "db" and not (value.isascii() and value.isdigit()):
            raise ValueError(f"db={value}: is no number")
