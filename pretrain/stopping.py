"""Signals that ask a training to end -> a flag that it looks at between two steps, so that it ends with a save."""

import signal
import threading
from types import FrameType

ASKING = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While inside, SIGUSR1, SIGTERM and the first Ctrl-C only set `asked`; a second Ctrl-C is KeyboardInterrupt.

    `asked` is the first signal's name, or None. A handler that did more could strike while other ranks wait for this
    one. When it is left, handlers are those from before, but for signals that someone else has taken over meanwhile.
    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self):
        self.asked: str | None = None
        self._interrupted = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in ASKING}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._note:
                # None: not set from Python, and so not to be set back from it
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = self.asked or signal.Signals(number).name
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
