"""What can end a run early, and the exit status each case has."""

EXIT_USAGE = 2
EXIT_DIVERGED = 3
EXIT_STORAGE = 74  # EX_IOERR of sysexits.h.
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: the same command continues.


class UsageError(ValueError):
    """What the user asked for cannot be done; nothing has been touched."""


class DivergedError(RuntimeError):
    """The loss is not finite; the last good checkpoint is kept."""


class StorageError(RuntimeError):
    """Something could not be read or written; what was written before is kept."""


class InterruptedRun(Exception):
    """A termination signal arrived and the state has been saved."""


def one_line(error: BaseException) -> str:
    """The message of an exception on a single line.

    >>> one_line(ValueError("first " + chr(10) + " second"))
    'first second'
    """
    text = str(error) or type(error).__name__
    return " ".join(text.split())
