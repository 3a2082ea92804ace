"""Checkpoint files: the only `torch.save` and `torch.load`. A file is written whole or not at all, and verified before use.

Beside NAME.pth stands NAME.pth.sha256 (as `sha256sum -c` reads it). Saving removes it, replaces the file, then writes the new
one: whenever that stops, what is there fits together. A file without one, say after a copy, is checked by its own checksums.
"""

import glob
import hashlib
import io
import logging
import os
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armature.checkpoint import old as old_checkpoint
from armature.errors import CheckpointError

FORMAT = 1
LAST, BEST = 'checkpoint-last.pth', 'model_best.pth'
CONTENT = {
    'format': int,
    'arch': str,
    'epoch': int,
    'state_dict': dict,
    'optimizer': dict,
    'monitor_best': (int, float),
    'config': dict,
    'step': int,
    'samples': int,
    'seed': int,
    'parts': dict,
    'history': list,
    'rng': dict,
    'rng_of_others': list,
    'made_by': dict,
    'shards': dict,
    'run': dict,
}
LEAVES = {bool, int, float, complex, str, type(None), torch.dtype, torch.device}
NUMPY_DTYPES = [
    np.dtype(code)
    for code in ('?', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8', 'c8', 'c16')
]
logger = logging.getLogger(__name__)


# Writing


def save(state: dict, path: Path, *also: Path) -> None:
    """Write `state` (brought to plain data here) to `path`, and under the names `also` in the same folder, for one price.

    The names share one file where the file system can: replace a checkpoint, do not write into it.
    Raises CheckpointError when it cannot be written; what was there before is then still there, and nothing else.
    """
    state, buffer = {'format': FORMAT, **to_plain(state)}, io.BytesIO()
    torch.save(state, buffer)
    try:  # what load() would not take is not written in the first place
        old_checkpoint.check_extent(state, {})
        if not old_checkpoint.Archive(buffer).is_plain():
            raise ValueError('it is no plain data')
    except ValueError as error:
        raise CheckpointError(f'the state cannot be saved: {error}') from error
    content = buffer.getbuffer()
    digest = hashlib.sha256(content).hexdigest()
    paths = [Path(each) for each in (path, *also)]
    try:
        _write_all(paths, content, digest)
    except OSError as error:
        raise CheckpointError(
            f'{path} could not be written: {error.strerror or error}. It needs {len(content):,} bytes; '
            f'{_free_bytes(paths[0].parent)} are free. The files that are there are whole.'
        ) from error


def save_head(head: dict, *paths: Path) -> None:
    """`save` the head of a sharded checkpoint whose parts are there, and remove the parts that no head names any more."""
    save(head, *paths)
    _remove_unused_parts(paths[0].parent)


def _remove_unused_parts(run: Path) -> None:
    try:
        ours = [path for path in (run / LAST, run / BEST, *_numbered(run)) if path.is_file()]
        used = {(load_head(path).get('shards') or {}).get('folder') for path in ours}
    except CheckpointError:
        return  # what a damaged one needs, nobody can tell
    for folder in run.glob('shards-*'):
        if folder.name not in used:
            shutil.rmtree(folder, ignore_errors=True)


def _write_all(paths: list[Path], content: memoryview, digest: str) -> None:
    """Everything that takes space goes into temporary files first; then names are exchanged."""
    folder, temporaries = paths[0].parent, []

    def temporary(path: Path) -> Path:
        for left_over in path.parent.glob(
            f'.{glob.escape(path.name)}.*.tmp'
        ):  # of a process that was killed
            left_over.unlink(missing_ok=True)
        temporaries.append(path.with_name(f'.{path.name}.{os.getpid()}.tmp'))
        return temporaries[-1]

    try:
        files = [temporary(path) for path in paths]
        _write(files[0], content)
        for each in files[1:]:
            try:
                os.link(files[0], each)
            except OSError:  # no hard links here
                _write(each, content)
        sidecars = [temporary(_sidecar(path)) for path in paths]
        for each, path in zip(sidecars, paths):
            _write(each, f'{digest}  {path.name}\n'.encode())
        for path in paths:
            _sidecar(path).unlink(missing_ok=True)
        sync_folder(folder)
        for each, path in zip(files, paths):
            os.replace(each, path)
        sync_folder(folder)
        for each, path in zip(sidecars, paths):
            os.replace(each, _sidecar(path))
        sync_folder(folder)
    finally:
        for each in temporaries:
            try:
                each.unlink(missing_ok=True)
            except OSError:  # the folder is gone or became read-only: the first error says so
                pass


def _write(path: Path, content: bytes | memoryview) -> None:
    with path.open(
        'xb'
    ) as file:  # never into a file that is there: it may be a second name of a good one
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    if os.name == 'nt':  # has no such thing
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_bytes(folder: Path) -> str:
    try:
        return f'{shutil.disk_usage(folder).free:,}'
    except OSError:
        return 'none'


def _sidecar(path: Path) -> Path:
    return path.with_name(f'{path.name}.sha256')


def to_plain(value: Any, where: str = '', depth: int = 0) -> Any:
    """A copy of `value` in tensors, dicts, lists, tuples, sets, strings and numbers; CheckpointError names what is none of these.

    numpy's numbers and arrays become numbers and tensors, a Path a string, an OrderedDict a dict, and an object with a dict
    `config` (ConfigParser) that dict. A tensor that shows a part of a bigger one leaves the rest behind.
    """
    kind = type(value)
    if kind in LEAVES:
        return value
    if depth > old_checkpoint.MAX_DEPTH:
        raise CheckpointError(
            f'the state cannot be saved: {where[:60]}... is nested too deeply, or contains itself'
        )

    def inner(each: Any, name: Any) -> Any:
        return to_plain(each, f'{where}.{name}'.lstrip('.'), depth + 1)

    if kind in (torch.Tensor, torch.nn.Parameter) and value.layout in (
        torch.strided,
        torch.sparse_coo,
    ):
        value = value.detach()
        is_part = value.layout == torch.strided and value.nbytes < value.untyped_storage().nbytes()
        return value.clone() if is_part else value
    if kind is torch.Size:
        return value
    if isinstance(value, dict):
        plain = {inner(key, 'key'): inner(each, key) for key, each in value.items()}
        return Counter(plain) if kind is Counter else plain
    if kind in (list, tuple, set):
        return kind([inner(each, index) for index, each in enumerate(value)])
    if isinstance(value, np.generic) and type(value.item()) in LEAVES:
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype in NUMPY_DTYPES:
        return torch.from_numpy(value.copy())
    if isinstance(value, Path):
        return str(value)
    if isinstance(getattr(value, 'config', None), dict):
        return to_plain(value.config, where, depth + 1)
    raise CheckpointError(
        f'the state cannot be saved: {where or "it"} is a {kind.__module__}.{kind.__qualname__}; '
        'keep numbers, strings, tensors, lists or dicts there'
    )


# Reading


def load(
    path: Path, model: torch.nn.Module | None = None, optimizer: torch.optim.Optimizer | None = None
) -> dict:
    """The checkpoint in `path`, verified, on the CPU; one of the old template is read without running any code it holds.

    model, optimizer: what a sharded checkpoint is read for, in all processes together. Raises CheckpointError, whatever is wrong
    with the file.
    """

    def complete(head):
        if not head.get('shards'):
            return head
        from armature.checkpoint import sharded  # torch's own part takes a while to import

        return sharded.read(head, Path(path).parent, model, optimizer)

    return _load(Path(path), complete)


def load_head(path: Path) -> dict:
    """As `load`, of a sharded checkpoint without its parts: everything but the tensors of model and optimizer."""
    return _load(Path(path), lambda head: head)


def _load(path: Path, complete: Callable[[dict], dict]) -> dict:
    for _ in range(
        3
    ):  # a training that writes this very file meanwhile may exchange it between our looks at it
        try:
            with path.open('rb') as file:
                verified = _matches_sidecar(file, path)
                if verified is False and not _is_still(file, path):
                    continue
                if verified is False:
                    raise ValueError(
                        f'it has changed since {_sidecar(path).name} was written (remove that if it was you)'
                    )
                return complete(_checked(_read(file, verified)))
        except OSError as error:
            raise CheckpointError(f'{path} cannot be read: {error.strerror or error}') from error
        except Exception as error:  # malformed files raise nearly everything
            known = type(error) in (ValueError, CheckpointError)
            reason = (
                str(error)
                if known
                else f'its content is malformed ({type(error).__name__}: {error})'
            )
            raise CheckpointError(
                f'{path} is no checkpoint that can be used: {reason[:500].rstrip(".")}.\n'
                'Take another one; -r RUN_FOLDER takes the newest good one of a run.'
            ) from error
    raise CheckpointError(
        f'{path} keeps changing while it is read; try again when its training has ended'
    )


def _matches_sidecar(file: Any, path: Path) -> bool | None:
    """Whether the bytes are those that were written; None when nothing beside the file tells."""
    try:
        digest = _sidecar(path).read_bytes()[:64].decode('ascii', 'replace')
    except FileNotFoundError:
        return None
    return hashlib.file_digest(file, 'sha256').hexdigest() == digest


def _is_still(file: Any, path: Path) -> bool:
    return os.path.samestat(os.fstat(file.fileno()), os.stat(path))


def _read(file: Any, verified: bool | None) -> Any:
    if not old_checkpoint.is_zip(file):
        return old_checkpoint.read(file)
    archive = old_checkpoint.Archive(file)
    if not verified:
        broken = archive.zip.testzip()
        if broken:
            raise ValueError(f'its record {broken} is damaged')
    if not archive.is_plain():
        return old_checkpoint.read(file)
    file.seek(0)
    with warnings.catch_warnings(), torch.sparse.check_sparse_tensor_invariants():
        warnings.filterwarnings(
            'ignore', 'Validating sparse tensor invariants'
        )  # as if checking were a fault
        return old_checkpoint.as_checkpoint(torch.load(file, map_location='cpu', weights_only=True))


def _checked(state: dict) -> dict:
    """`state`, if it is shaped like a checkpoint: no use of it can then fail half-way."""
    if not isinstance(state.get('state_dict'), dict):
        raise ValueError("it has no 'state_dict'")
    if state.get('format', FORMAT) != FORMAT:
        raise ValueError(f'it has format {state["format"]!r}, this program knows {FORMAT}')
    for key, kind in CONTENT.items():
        value = state.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ValueError(f'its {key!r} is a {type(value).__name__}')
        if kind is int and key != 'seed' and value is not None and value < 0:
            raise ValueError(f'its {key!r} is {value}')
    if not all(isinstance(row, dict) for row in state.get('history') or []):
        raise ValueError("its 'history' is no list of rows")
    for name, value in state['state_dict'].items():
        if type(name) is not str or not (
            isinstance(value, torch.Tensor) or name.endswith('_extra_state')
        ):
            raise ValueError(f"its 'state_dict' is none: {name!r} is a {type(value).__name__}")
    return state


def non_finite(tensors: dict[str, Any]) -> list[str]:
    """Names of the entries that hold a nan or an infinity."""
    return [
        name
        for name, value in tensors.items()
        if isinstance(value, torch.Tensor) and not value.isfinite().all()
    ]


# Choosing and removing


def find(text: str, root: Path = Path()) -> Path:
    """The file that `-r text` means, looked for from the working directory, then from `root`.

    A file means itself. A run folder, or RUN/last, means its newest good checkpoint: checkpoint-last.pth, else the highest epoch,
    else model_best.pth; what is damaged is passed over with a warning. RUN/best means its model_best.pth.
    """
    for path in (Path(text), root / text):
        if path.is_file():
            return path
        folder = path.parent if path.name in ('last', 'best') and not path.exists() else path
        if not folder.is_dir():
            continue
        if folder != path and path.name == 'best':
            if (folder / BEST).is_file():
                return folder / BEST
            raise CheckpointError(f'{folder} holds no {BEST}')
        newest = newest_valid(folder)
        if newest:
            return newest
        run = newest_run(folder)
        raise CheckpointError(
            f'{folder} holds no checkpoint'
            + (f'; do you mean its newest run, {run}?' if run else '')
        )
    raise CheckpointError(
        f'{text} is not there: -r takes a checkpoint, a run folder, or RUN/last or RUN/best'
    )


def newest_valid(folder: Path) -> Path | None:
    """The newest checkpoint of a run folder that is whole; None when it holds none, CheckpointError when all are damaged."""
    damaged = []
    for path in [folder / LAST, *_numbered(folder), folder / BEST]:
        if not path.is_file():
            continue
        problem = _problem(path)
        if problem is None:
            if damaged:
                logger.warning(
                    f'{" and ".join(map(str, damaged))} is damaged: falling back on {path}'
                )
            return path
        damaged.append(path)
    if damaged:
        raise CheckpointError(
            f'every checkpoint in {folder} is damaged: {", ".join(path.name for path in damaged)}.\n{problem}'
        )
    return None


def newest_run(folder: Path) -> Path | None:
    """The run folder under saved/models/NAME that was begun last, whether or not it holds a checkpoint."""
    runs = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return max(runs, key=_begun, default=None)


def _begun(run: Path) -> tuple[float, int]:
    """When a run was begun: as its id says, or, under an id of the user's own, as its config file does; and the id's counter."""
    match = re.fullmatch(r'(\d{8}_\d{6})(?:_(\d+))?', run.name)
    try:
        return datetime.strptime(match[1], '%Y%m%d_%H%M%S').timestamp(), int(match[2] or 0)
    except (TypeError, ValueError):
        config = run / 'config.json'
        return (config if config.is_file() else run).stat().st_mtime, 0


def prune(folder: Path, keep: int) -> None:
    """Remove the numbered checkpoints but the newest `keep`, once one of those is verified. model_best.pth always stays."""
    assert keep >= 1
    numbered = _numbered(folder)
    if len(numbered) <= keep or all(_problem(path) for path in numbered[:keep]):
        return
    try:
        for path in reversed(numbered[keep:]):
            _sidecar(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f'{path} could not be removed: {error.strerror or error}') from error
    if any(folder.glob('shards-*')):
        _remove_unused_parts(folder)


def _numbered(folder: Path) -> list[Path]:
    """checkpoint-epoch{N}.pth, the highest N first."""
    found = {
        path: re.fullmatch(r'checkpoint-epoch(\d+)\.pth', path.name)
        for path in folder.glob('checkpoint-epoch*.pth')
    }
    return sorted(
        (path for path, match in found.items() if match),
        key=lambda path: int(found[path][1]),
        reverse=True,
    )


def _problem(path: Path) -> str | None:
    """What is wrong with a file; its bytes are compared where a sidecar stands, else it is loaded."""
    try:
        with path.open('rb') as file:
            if not _matches_sidecar(file, path):
                load_head(path)
        if any(path.parent.glob('shards-*')) and (head := load_head(path)).get('shards'):
            from armature.checkpoint import sharded

            return sharded.problem(head, path.parent)
    except (CheckpointError, OSError) as error:
        return str(error)
    return None
