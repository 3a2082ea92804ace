"""Folders that a command makes: there whole, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from armature.errors import ConfigError


def refuse_existing(folder: Path) -> None:
    if folder.exists():
        raise ConfigError(f'{folder} exists: name a folder that is not there yet with -o')


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Inside, a folder to write into, which is `folder` afterwards; after an error it is gone."""
    unfinished = folder.with_name(f'.{folder.name}.tmp')
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        os.replace(unfinished, folder)
    except OSError as error:
        raise ConfigError(f'{folder} cannot be written: {error.strerror or error}') from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
