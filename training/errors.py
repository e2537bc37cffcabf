"""What a user of `levi-train` can cause and mend, beside the two errors that both programs share."""

from levi_serve.bundle.commands import RunError, UsageError

__all__ = ["DataError", "RunError", "UsageError"]


class DataError(UsageError):
    """A dataset is not what it says it is; the message names file and line or column."""
