"""StopRequest: who asked the run to stop (a signal, the time limit), noted for a safe moment."""

import contextlib
import math
import os
import signal
import threading
import time
from contextlib import contextmanager

from armature.errors import STOP_CODES
from armature.processes import dist

TIME = 1  # the request to stop because the time is over; others are the numbers of STOP_CODES
DEBOUNCE_S = 1.0  # torchrun delivers one Ctrl-C twice


class Stopped(Exception):
    """The run was stopped on request and is saved."""


class StopRequest:
    """`reason` is empty until the run has to stop.

    A signal or the end of `max_minutes` is only a `request`, which is granted when the step in
    progress is finished, and saved; of several processes all grant the same one in the same step.
    A second Ctrl-C, a second later, leaves at once.
    """

    def __init__(self, max_minutes: float | None = None):
        self.max_minutes = max_minutes
        self.request = 0  # the number of the signal that asks for it; 0: none
        self._until = math.inf  # of time.monotonic
        self.reason = ''
        self.exit_code = 0
        self._received_at = 0.0

    @contextmanager
    def listening(self):
        """Inside, the signals are noted instead of killing the process, and the time runs."""
        self._until = time.monotonic() + 60 * (self.max_minutes or math.inf)
        previous = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere they are not ours
            previous = {number: signal.signal(number, self._note) for number in STOP_CODES}
        has_failed = True
        try:
            yield
            has_failed = False
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            if has_failed and self.request and not self.reason and dist.n_processes() > 1:
                # torchrun ends this process, in which a step has failed since another is gone.
                signal.raise_signal(self.request)

    def requested(self) -> int:
        """The number of a signal that has come, TIME when the time is over; 0 when nothing is."""
        return self.request or TIME * (time.monotonic() >= self._until)

    def grant(self, request: int) -> None:
        """Raise Stopped for `request`, if it is one, and when there is a reason already."""
        if request and not self.reason:
            self.reason = f'trainer.max_minutes ({self.max_minutes})'
            if request != TIME:
                self.reason, self.exit_code = signal.Signals(request).name, STOP_CODES[request]
        if self.reason:
            raise Stopped(self.reason)

    def _note(self, number, frame):
        now = time.monotonic()
        if not self.request:
            self.request, self._received_at = number, now
            if dist.is_first_here():
                name = signal.Signals(number).name
                text = f'\n{name}: saving after this step; Ctrl-C again leaves at once\n'
                with contextlib.suppress(OSError):  # nobody listens
                    os.write(2, text.encode())
        elif number == signal.SIGINT and now - self._received_at > DEBOUNCE_S:
            raise KeyboardInterrupt
