"""What users can mend: the error classes, and how a script leaves on one (one message, an exit code, no traceback)."""

import argparse
import sys
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake the user can mend; the text is the whole message: what, where, what was expected, what to do."""

    exit_code = 2


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
    """Inside, a UserError ends the process with its message on stderr and its exit code; so does Ctrl-C, without a word."""
    from armature.processes import launch as job

    try:
        yield
    except KeyboardInterrupt:
        job.leave_at_once(130)
    except UserError as error:
        if job.is_first_to_say(str(error)):
            print(f'error: {error}', file=sys.stderr)
        job.leave_at_once(error.exit_code)
