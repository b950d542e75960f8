"""SIGTERM as a flag that training looks at between epochs."""

import signal
import threading
from types import FrameType


class StopRequest:
    """Notes a termination signal instead of dying from it.

    As a context manager it holds the handler for its duration; outside the main
    thread, where handlers cannot be set, it never asks to stop.
    """

    def __init__(self):
        self.requested = False
        self._previous = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *unused: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
