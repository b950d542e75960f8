"""SIGTERM as a flag that training looks at between calls of compiled code."""

import signal
import threading
from types import FrameType


class StopRequest:
    """Notes a termination signal instead of dying from it.

    As a context manager it holds the handler for its duration; outside the main
    thread, where handlers cannot be set, it never asks to stop. Within another one it
    shares what either notes: a run that a sweep's worker trains is asked to stop with
    the worker, and the worker with it.

    >>> with StopRequest() as worker:
    ...     with StopRequest() as run:
    ...         signal.raise_signal(signal.SIGTERM)
    >>> run.requested, worker.requested
    (True, True)
    """

    def __init__(self):
        self._noted = False
        self._outer: StopRequest | None = None
        self._previous = None

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._noted or (self._outer is not None and self._outer.requested)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True
        if self._outer is not None:
            self._outer._note(number, frame)

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
            owner = getattr(self._previous, "__self__", None)
            self._outer = owner if isinstance(owner, StopRequest) else None
        return self

    def __exit__(self, *unused: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
