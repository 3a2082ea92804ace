"""Files and folders that a command makes: there whole, or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from armature.errors import ConfigError


def refuse_existing(folder: Path) -> None:
    if os.path.lexists(folder):
        raise ConfigError(f'{folder} exists: name a folder that is not there yet with -o')


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Inside, where to make what is renamed to `path` when it is whole; what stays there goes away.

    It has the name of `path`, in a folder beside it that was nobody's before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.unfinished-', dir=path.parent) as apart:
        yield Path(apart) / path.name


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Inside, a folder to write into, which is `folder` afterwards; after an error it is gone."""
    try:
        with unfinished(folder) as made:
            made.mkdir()  # as the umask says: the folder around it is private
            yield made
            os.replace(made, folder)
    except OSError as error:
        raise ConfigError(f'{folder} cannot be written: {error.strerror or error}') from error
