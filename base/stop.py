"""StopRequest: who asked the run to stop (a signal or the time limit), noted for the next safe moment."""
import signal
import sys
import time
from contextlib import contextmanager

# The signals that ask for a clean stop, and the exit codes that a shell expects after them.
EXIT_CODES = {name: code for name, code in (('SIGTERM', 143), ('SIGINT', 130), ('SIGUSR1', 143)) if hasattr(signal, name)}
STOP_SIGNALS = {getattr(signal, name) for name in EXIT_CODES}
DEBOUNCE_S = 1.0  # torchrun delivers one Ctrl-C twice


class Stopped(Exception):
    """The run was stopped on request and is saved."""


class StopRequest:
    """`reason` is empty until a signal arrives or `max_minutes` are over.

    Handlers only set it: the step in progress is finished and saved first. A second Ctrl-C, a second later, leaves at once.
    """

    def __init__(self, max_minutes: float | None = None):
        self.max_minutes = max_minutes
        self.exit_code = 0
        self._signal = ''
        self._received_at = 0.0
        self._deadline = float('inf')

    @property
    def reason(self) -> str:
        if self._signal or time.monotonic() < self._deadline:
            return self._signal
        return f'trainer.max_minutes ({self.max_minutes})'

    @contextmanager
    def listening(self):
        """Inside, the signals are noted instead of killing the process, and the time runs."""
        if self.max_minutes is not None:
            self._deadline = time.monotonic() + 60 * self.max_minutes
        previous = {}
        try:
            for number in STOP_SIGNALS:
                previous[number] = signal.signal(number, self._note)
        except ValueError:
            pass  # not the main thread: signals are its business
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._signal and number == signal.SIGINT and now - self._received_at > DEBOUNCE_S:
            raise KeyboardInterrupt
        if not self._signal:
            self._signal, self._received_at = signal.Signals(number).name, now
            self.exit_code = EXIT_CODES[self._signal]
            sys.stderr.write(f'\n{self._signal}: saving after this step; Ctrl-C again leaves at once\n')
