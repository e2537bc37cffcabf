"""What a user of the command line can cause and mend.

UsageError          exit 2: the request or the data is wrong; one line says what, where and what to do
  DataError         a data file is missing, truncated, mislabelled or inconsistent
RunError            exit 1: the work failed although the request was right (disk, memory, parity)
"""


class UsageError(Exception):
    """The command cannot do what was asked; nothing was written."""


class DataError(UsageError):
    """A dataset is not what it says; the message names file and line or column."""


class RunError(Exception):
    """The work failed; nothing that looks finished was left behind."""
