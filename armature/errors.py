"""What users can mend: the error classes, and how a script ends (one message, an exit code)."""

import argparse
import os
import signal
import sys
import traceback
from contextlib import contextmanager

# The signals that ask for a clean stop, and the exit codes that a shell expects after them.
STOP_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
if hasattr(signal, 'SIGUSR1'):  # Windows has none
    STOP_CODES[signal.SIGUSR1] = 143


class UserError(ValueError):
    """A mistake the user can mend.

    The text is the whole message: what, where, what was expected, what to do.
    """

    exit_code = 2

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows instead of a traceback."""
        return [f'{type(self).__name__}: {self}']


class ConfigError(UserError):
    """Something in a config file or on the command line."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or not one."""


class DataError(UserError):
    """Data that is missing or cannot be read."""


class NonFiniteError(UserError):
    """A loss, gradient or weight that became nan or infinite."""

    exit_code = 1


def positive(text: str) -> int:
    """A whole number above 0, as an argparse type."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number above 0')
    return int(text)


@contextmanager
def exit_on_user_error():
    """Inside, a mistake of the user's ends the process with its message and its exit code.

    Ctrl-C ends it without a word. stdout and stderr are as `steady_streams` makes them.
    """
    steady_streams()
    try:
        yield
    except (UserError, KeyboardInterrupt) as error:
        sys.exit(report(error))


def report(error: BaseException) -> int:
    """Say on stderr why a script ends, and return its exit code."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, UserError):
        print(f'error: {error}', file=sys.stderr)
        return error.exit_code
    if isinstance(error, SystemExit):
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    traceback.print_exception(error)
    return 1


def steady_streams() -> None:
    """Let a run go on when nobody listens: stdout and stderr closed, cut off, or ASCII only."""
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if isinstance(stream, _SteadyStream):
            continue
        if stream is None:  # a daemon, cron, pythonw
            stream = open(os.devnull, 'w', encoding='utf-8')  # noqa: SIM115 (until the end)
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='replace')
        setattr(sys, name, _SteadyStream(stream))


class _SteadyStream:
    """A text stream that leads nowhere from the moment when it cannot be written to any more."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text):
        return self._do(self._stream.write, text)

    def flush(self):
        self._do(self._stream.flush)

    def _do(self, action, *args):
        try:
            return action(*args)
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what waits in its buffer goes there as well
            os.close(nowhere)
            return 0

    def __getattr__(self, name):
        return getattr(self._stream, name)
