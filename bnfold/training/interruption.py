"""Let a loop finish its step when the user, or the machine's scheduler, asks the program to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether a signal has asked to stop."""

    def __init__(self) -> None:
        self.made = False

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.made and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: at once, and without a last checkpoint
        self.made = True


@contextmanager
def deferred_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM inside the block into a request to look at.

    A second SIGINT interrupts at once. Outside the main thread, where signals cannot be handled, nothing
    changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, request._handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            # None stands for a handler that was not set from Python and cannot be set back from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
