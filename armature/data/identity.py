"""Which data this is, which class is which, and what a run that goes on knows of both.

A checkpoint's "data" holds `identity_of` the loaders: the fingerprint of the training data, the
names of its classes and its split, and the fingerprint of validation data that is no part of it.
Loaders that are built while a run goes on ask `resumed()`.
"""

import contextlib
import copy
import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armature.checkpoint.files import load_head
from armature.errors import ConfigError, DataError
from armature.run_files import RECORD, read_object
from armature.seed import own_randomness

N_READ = 64  # samples whose content stands for that of all
READING_S = 2  # and how long reading them may take
N_SIZES = 10_000  # files whose size is looked at
N_SAID = 3  # changes that are listed
NO_SPLIT = {'validation_split': 0, 'n_folds': None}
KINDS = {'fingerprint': dict, 'class_names': list, 'split': dict, 'validation': dict}

_resumed = ContextVar('the data of the run that goes on; empty for a new run')


@contextlib.contextmanager
def resuming(checkpoint: Path | None) -> Iterator[None]:
    """Inside, loaders are built for the run that goes on from `checkpoint`, if there is one."""
    token = _resumed.set(data_of(load_head(checkpoint), checkpoint) if checkpoint else {})
    try:
        yield
    finally:
        _resumed.reset(token)


def resumed() -> dict:
    """The "data" of the checkpoint that a run goes on from; empty for a new run."""
    return _resumed.get({})


def data_of(checkpoint: dict, path: Path) -> dict:
    """The "data" of a checkpoint that is in the file `path`.

    Where a trainer writes files of its own kind, the run's record beside it tells. Of those from
    before either, the kind of the split is known.
    """
    data = checkpoint.get('data')
    if data is None and 'parts' not in checkpoint:
        data = read_object(path.parent / RECORD)[0].get('data')
    if not isinstance(data, dict):
        return {'split': {'version': 1 if 'parts' in checkpoint else 0}}
    # A run.json may have been edited: what is of another form is not known.
    known = {
        name: value
        for name, value in data.items()
        if value is None or isinstance(value, KINDS.get(name, object))
    }
    if not _is_split(known.get('split') or {}):
        del known['split']
    return known


def _is_split(split):
    settings, bounds = split.get('settings', {}), split.get('bounds', {})
    if not isinstance(settings, dict) or not isinstance(bounds, dict):
        return False
    return all(type(each) is list and [*map(type, each)] == [int, int] for each in bounds.values())


def identity_of(loader: Any, valid: Any = None) -> dict:
    """What a checkpoint keeps of the data, as plain data.

    valid: the loader of the validation data, where that is no part of the loader's.
    """
    split = getattr(loader, 'split', None)
    return {
        'fingerprint': _fingerprint_of(loader),
        'class_names': getattr(loader, 'class_names', None),
        'split': split if isinstance(split, dict) and 'version' in split else None,
        'validation': _fingerprint_of(valid),
    }


def changes(before: dict, now: dict) -> list[str]:
    """What is different in the data, in words; what one of the two does not tell is not."""

    def facts(identity: dict) -> dict:
        validation = identity.get('validation') or {}
        known = {
            **(identity.get('fingerprint') or {}),
            **{f'{name} (validation)': value for name, value in validation.items()},
            'classes': identity.get('class_names'),
        }
        split = identity.get('split', {})  # without settings where they are not known
        settings = NO_SPLIT if split is None else split.get('settings') or {}
        return {name: value for name, value in known.items() if value is not None} | settings

    new = facts(now)
    found = [
        f'{name}: {value} before, {new[name]} now'
        for name, value in facts(before).items()
        if name in new and new[name] != value
    ]
    if len(found) > N_SAID:
        found[N_SAID:] = [f'{len(found) - N_SAID} more of what was looked at']
    return found


def training_changes(before: dict, now: dict) -> list[str]:
    """`changes`, less those of validation data that is no part of the training data."""
    return changes({**before, 'validation': None}, now)


def validation_changes(before: dict, now: dict) -> list[str]:
    """`changes` by which other samples are validated on."""
    if not now.get('split'):
        before = {**before, 'fingerprint': None, 'class_names': None}
    return changes(before, now)


def refuse_changes(before: dict, now: dict, may_change: bool) -> list[str]:
    """A ConfigError when the data is another than in the checkpoint, or what to say of it.

    before, now: `identity_of` the loaders then and now; before is empty in a new run.
    """
    found, has_split = changes(before, now), before.get('split') or now.get('split')
    sides = ''
    if training_changes(before, now) and has_split:
        sides = (
            'With it, samples that were validated on may be trained on, and the reverse '
            '(docs/loaders.md: which stay)'
        )
    if found and not may_change:
        raise ConfigError(
            f'the data is another than in the checkpoint: {"; ".join(found)}. Take the data (and '
            'its arguments) as it was; or set "data_changed": "continue" to go on with this '
            f'one{sides and ". " + sides}'
        )
    notes = [f'The data is another than in the checkpoint: {each}' for each in found]
    notes += [sides] * bool(sides)
    splits = [each.get('split') or {} for each in (before, now)]
    if before and splits[1] and splits[0].get('version') != splits[1]['version']:
        notes.append(
            'The checkpoint was trained with another kind of split, so that samples it was trained '
            'on are validated on now: let config.init_obj build the loader, which keeps the split'
        )
    if not now.get('fingerprint'):
        notes.append(
            'The data does not tell which it is (a stream may, in fingerprint()), so a resumed '
            'run cannot notice a change of it'
        )
    return notes


def _fingerprint_of(loader):
    """What the loader says itself, else that of its dataset."""
    return fingerprint(
        loader if hasattr(loader, 'fingerprint') else getattr(loader, 'dataset', None)
    )


def fingerprint(dataset: Any) -> dict | None:
    """{name: number or digest}, others when the dataset is; None when it does not tell.

    What `dataset.fingerprint()` says; else the number of samples, and the names and sizes of the
    files it reads from or, where it names none, what a few of its samples hold.
    """
    if hasattr(dataset, 'fingerprint'):
        return dataset.fingerprint()
    if not hasattr(dataset, '__len__') or not hasattr(dataset, '__getitem__'):
        return None
    found, paths = {'number of samples': len(dataset)}, _paths_of(dataset)
    if paths is None:
        return found | _contents(dataset)
    some = paths[:: -(-len(paths) // N_SIZES)]
    sizes = [os.path.getsize(path) if os.path.isfile(path) else None for path in some]
    return found | {'names of files': digest(names_of(dataset)), 'sizes of files': digest(sizes)}


def names_of(dataset: Any) -> list[str] | None:
    """The name of each sample: its file's, below the folder that all are in; None without files."""
    paths = _paths_of(dataset)
    if paths is None:
        return None
    root = str(getattr(dataset, 'root', ''))
    if not root or not all(path.startswith(root) for path in paths):
        try:
            root = os.path.commonpath({os.path.dirname(path) for path in paths})
        except ValueError:  # on several drives, or some absolute
            root = ''
    return [path[len(root) :].replace(os.sep, '/').lstrip('/') for path in paths]


def _paths_of(dataset: Any) -> list[str] | None:
    for attribute in ('samples', 'paths', 'files'):
        found = getattr(dataset, attribute, None)
        if not isinstance(found, Sequence) or not found or len(found) != len(dataset):
            continue
        if isinstance(found[0], tuple):  # as torchvision has them: (path, class)
            found = [each[0] for each in found]
        if isinstance(found[0], (str, os.PathLike)):
            return [os.fspath(each) for each in found]
    return None


def _contents(dataset: Any) -> dict[str, str]:
    """The digest of some samples: spread evenly, however many there is time for."""
    # By halves, quarters, eighths ...: those for which there was time are spread evenly, too.
    order = sorted(range(N_READ), key=lambda number: f'{number:06b}'[::-1])
    found, started, dataset = {}, time.monotonic(), _apart(dataset)
    for index in dict.fromkeys(number * len(dataset) // N_READ for number in order):
        content = _content(dataset, index)
        if not found and _content(dataset, index) != content:
            return {}  # it draws from a generator of its own, so that nothing can be compared
        found[f'content of sample {index}'] = content
        if time.monotonic() - started > READING_S:
            break
    return found


def _apart(dataset: Any) -> Any:
    """A shallow copy: a file that reading opens must not be shared by workers that fork later."""
    if not hasattr(dataset, '__dict__'):
        return dataset
    dataset = copy.copy(dataset)
    if 'dataset' in vars(dataset):  # a Subset, or what wraps another one
        dataset.dataset = _apart(dataset.dataset)
    return dataset


def _content(dataset: Any, index: int) -> str:
    with own_randomness(0):
        try:
            return digest(dataset[index])
        except Exception as error:  # whoever trains on it will hear of it
            return type(error).__name__


def digest(content: Any) -> str:
    """A short hash of what a sample holds."""
    hashed = hashlib.blake2b(digest_size=8)

    def add(content: Any) -> None:
        if isinstance(content, Mapping):
            content = [*content.keys(), *content.values()]
        if isinstance(content, (list, tuple)):
            for each in content:
                add(each)
        elif isinstance(content, (str, int, float, bytes, type(None))):
            hashed.update(f'{content!r} '.encode())
        elif hasattr(content, '__array__') or hasattr(content, '__array_interface__'):
            if isinstance(content, torch.Tensor):
                content = content.detach().cpu()
                # numpy does not have bfloat16
                content = content.float() if content.dtype == torch.bfloat16 else content
            array = np.ascontiguousarray(content)
            hashed.update(f'{array.dtype}{array.shape}'.encode() + array.tobytes())
        else:
            hashed.update(type(content).__name__.encode())

    add(content)
    return hashed.hexdigest()


# Classes


def class_names_of(dataset: Any) -> list[str] | None:
    """What the dataset calls its classes, in the order of their numbers; None when it does not."""
    names = getattr(dataset, 'class_names', None) or getattr(dataset, 'classes', None)
    if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
        return list(names)
    return None


def class_map(own: list[str] | None, wanted: list[str]) -> torch.Tensor | None:
    """(own classes,) the number that each has among those `wanted`; None when they are the same."""
    if own is None or own == wanted:
        return None
    unknown = [name for name in own if name not in wanted]
    if unknown:
        raise DataError(
            f'the data has the class {unknown[0]!r}, and training knows {", ".join(wanted)}: '
            'leave its samples out, or train with it'
        )
    return torch.tensor([wanted.index(name) for name in own])
