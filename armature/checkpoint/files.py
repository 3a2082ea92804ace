"""Checkpoint files: the only `torch.save` and `torch.load`. Written whole or not at all, verified
before use.

A file's digest is inside it, as the comment of the zip archive that torch writes: it cannot be
lost in a copy. The first version kept it beside it, in NAME.pth.sha256, which is still honoured.
"""

import hashlib
import io
import itertools
import logging
import os
import pickle
import shutil
import time
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from armature.checkpoint import old, packed, sharded
from armature.checkpoint.plain import to_plain
from armature.checkpoint.weights import tested_weights
from armature.errors import CheckpointError, ConfigError
from armature.processes import dist
from armature.run_files import CONFIG, RECORD, read_object

FORMAT = 2
FORMATS = (1, FORMAT)  # those that are read; 1 is the first version's
LAST, BEST = 'checkpoint-last.pth', 'model_best.pth'
WEIGHTS = 'weights.pth'  # the tested weights alone
DIGEST_PREFIX = b'sha256:'
DIGEST_BYTES = len(DIGEST_PREFIX) + 64  # the comment at the end of every file that we write
ZIP = b'PK\3\4'  # begins a zip archive
END_RECORD = b'PK\x05\x06'  # begins a zip archive's last record
END_RECORD_BYTES = 22  # its size without a comment
FOLDER = 0x10  # the attribute of a record that is a folder under DOS
MAX_PARTS = 2**16
KINDS = old.KINDS | {  # of what a checkpoint may hold
    'step': int,
    'samples': int,
    'seed': int,
    'parts': dict,
    'as_built': dict,
    'data': dict,
    'rates': dict,
    'run': dict,
    'rng': dict,
    'rng_of_others': list,
    'made_by': dict,
    'history': list,
    'shards': dict,
}
COUNTS = 'epoch', 'step', 'samples'
MAX_PICKLE_BYTES = 32 * 2**20  # an empty list is one byte in a pickle and a hundred in memory
REPLACE_TRIES = 20  # of replacing a file that is open elsewhere, in a second
logger = logging.getLogger(__name__)


# Writing


def save(state: dict, *paths: Path) -> None:
    """Write `state` (brought to plain data here) under each of these names, in one folder.

    The names share one file where the file system can: replace a checkpoint, do not write into it.
    Raises CheckpointError when it cannot be written; what was there before is then still there,
    and nothing else.
    """
    _to_disk({'format': FORMAT, **to_plain(state)}, paths)


def save_weights(state: dict, path: Path) -> None:
    """Write the tested weights of a state to `path` as torch's own plain state dict, on the CPU."""
    weights = to_plain(tested_weights(state))
    _to_disk(
        {name: value.cpu() if torch.is_tensor(value) else value for name, value in weights.items()},
        [path],
    )


def _to_disk(state, paths):
    # Serialise to memory first: a full disk is then an honest OSError while we write bytes. Inside
    # torch.save it would be a confusing complaint about positions in an archive.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    _pickle_in(buffer)  # what load() would not take is not written in the first place
    add_digest(buffer)
    try:
        _replace_all(paths, buffer.getbuffer())
    except OSError as error:
        raise CheckpointError(
            f'{paths[0]} could not be written: {error.strerror or error}. It needs '
            f'{buffer.tell():,} bytes; {free_bytes(paths[0].parent)} are free. The files that are '
            'there are whole.'
        ) from error


def add_digest(buffer: io.BytesIO) -> None:
    """Make the sha256 of all other bytes the comment of the zip archive that torch.save wrote.

    torch.load reads such a file like any other, also with mmap.
    """
    buffer.seek(-2, io.SEEK_END)
    buffer.write(DIGEST_BYTES.to_bytes(2, 'little'))  # the length of the comment
    with buffer.getbuffer() as body:
        digest = _digest(body)
    buffer.write(digest)


def _digest(content):
    return DIGEST_PREFIX + hashlib.sha256(content).hexdigest().encode()


def _replace_all(paths, content):
    """Everything that takes space goes into temporary files first; then names are exchanged."""
    # Names that nobody reads until the bytes are safe, in the same folder because a rename is
    # atomic only within one file system.
    unfinished = [path.with_name(f'.{path.name}.tmp') for path in paths]
    try:
        for each in unfinished:
            each.unlink(missing_ok=True)  # what a process that was killed has left
            try:
                os.link(unfinished[0], each)
            except OSError:  # it is the first, or there are no hard links here
                with each.open('xb') as file:  # never into one that is there
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        for each, path in zip(unfinished, paths):
            replace(each, path)  # readers see the old file or the new one, never half of one
            _sidecar(path).unlink(missing_ok=True)  # of a file of the first version
        sync_folder(paths[0].parent)  # the renames themselves survive a power cut
    finally:
        for each in unfinished:
            with suppress(OSError):  # the folder is gone or read-only: the first error says so
                each.unlink(missing_ok=True)


def replace(source: Path, target: Path) -> None:
    """os.replace, which Windows refuses while somebody reads `target`: tried for a second."""
    for _ in range(REPLACE_TRIES):
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(0.05)
    return os.replace(source, target)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk. Windows has no such call and needs none."""
    if os.name == 'nt':
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> str:
    try:
        return f'{shutil.disk_usage(folder).free:,}'
    except OSError:
        return 'none'


def _sidecar(path):
    return path.with_name(f'{path.name}.sha256')


# Reading


def load(path: Path, model: torch.nn.Module | None = None) -> dict:
    """The checkpoint in `path`, verified, on the CPU; no code that it holds is run.

    model: what a sharded checkpoint is read for, in all processes together. Raises CheckpointError,
    whatever is wrong with the file.
    """
    path = Path(path)
    with _saying_what_is_wrong(path):
        state = _read(path)
        if state.get('shards'):
            files = _verified_parts(state, path, in_all=model is not None)
            # Looked at one tensor at a time: all of them together may not fit into memory.
            parts = [_read(file, is_verified=True, is_lazy=True)['state_dict'] for file in files]
            state = sharded.joined(state, parts, model)
        return state


def load_head(path: Path, with_parts: bool = False) -> dict:
    """As `load`, of a sharded checkpoint everything but the tensors of model and optimizer.

    The tensors stay in the file until they are looked at. with_parts: verify its parts, too.
    """
    path = Path(path)
    with _saying_what_is_wrong(path):
        head = _read(path, is_lazy=True)
        if with_parts and head.get('shards'):
            _verified_parts(head, path)
        return head


@contextmanager
def _saying_what_is_wrong(path):
    try:
        yield
    except ConfigError:  # safetensors is not installed
        raise
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read: {error.strerror or error}') from error
    except Exception as error:  # malformed files raise nearly everything
        reason = f'its content is malformed ({type(error).__name__}: {error})'
        if type(error) in (ValueError, CheckpointError):
            reason = str(error)
        elif isinstance(error, pickle.UnpicklingError):
            reason = 'it holds more than plain data and tensors; nothing in it was run'
        raise CheckpointError(
            f'{path} is no checkpoint that can be used: {reason[:500].rstrip(".")}.\n'
            'Take another one; -r RUN_FOLDER takes the newest good one of a run.'
        ) from error


def _verified_parts(head, path, in_all=False):
    """The files with the parts of a sharded checkpoint; a ValueError names one that is not whole.

    in_all: all processes are here, and those of a machine share the work.
    """
    shards = head['shards']
    folder, n_parts = path.parent / str(shards.get('folder')), shards.get('n_parts', 0)
    is_beside = folder.parent == path.parent and folder.name.startswith('shards-')
    if not is_beside or not 0 < n_parts <= MAX_PARTS:
        raise ValueError(
            f'its parts in {folder} are in no form that is read here. If an earlier version wrote '
            'them, go on with that one and "distributed.checkpoint": "whole" for an epoch'
        )
    files = [folder / part_name(number) for number in range(n_parts)]
    mine = files[dist.local_rank() :: dist.n_local()] if in_all else files
    broken = [file for file in mine if not file.is_file() or not is_whole(file)]
    if in_all:
        broken = [file for each in dist.gather(broken) for file in each]
    if broken:
        state = 'damaged' if broken[0].is_file() else 'missing'
        raise ValueError(
            f'its part {broken[0]} is {state}. A copied checkpoint needs its folder {folder.name} '
            'beside it'
        )
    return files


def part_name(number: int) -> str:
    return f'rank{number}.pth'


def is_whole(path: Path) -> bool | None:
    """Whether the bytes are those that were written; None when nothing in or beside it tells.

    A zip archive without our comment counts as somebody else's only when it ends exactly as such
    an archive ends: else cutting off our comment would hide any other damage.
    """
    if not path.stat().st_size:
        return False  # there is nothing to map
    content = np.memmap(path, mode='r')
    end = content[-DIGEST_BYTES:].tobytes()
    if end.startswith(DIGEST_PREFIX):
        return end == _digest(content[:-DIGEST_BYTES])
    if _sidecar(path).is_file():
        return DIGEST_PREFIX + _sidecar(path).read_bytes()[:64] == _digest(content)
    ends_plainly = end[-END_RECORD_BYTES:].startswith(END_RECORD) and end.endswith(b'\0\0')
    return None if ends_plainly or content[:4].tobytes() != ZIP else False


def _read(path, is_verified=False, is_lazy=False):
    """The content of a file in the form of a checkpoint."""
    if path.suffix == '.safetensors':
        return _checked({key: each for key, each in packed.read(path).items() if each is not None})
    is_verified = is_verified or is_whole(path)
    if is_verified is False:
        raise ValueError('it is damaged: its content is not what was written')
    with path.open('rb') as file:
        is_zip = file.read(4) == ZIP
        file.seek(0)
        if is_zip:
            names = old.names_in(_pickle_in(file, check_sums=not is_verified))
        else:  # torch's format until 1.5: five pickles, then the tensors
            stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
            names = set().union(*(old.names_in(stream) for _ in range(5)))
        file.seek(0)
        is_lazy = is_lazy and is_zip
        with (
            warnings.catch_warnings(action='ignore'),  # about torch's own ways of reading
            torch.sparse.check_sparse_tensor_invariants(),
            torch.serialization.safe_globals([(old.stand_in(name), name) for name in names]),
        ):
            content = torch.load(
                path if is_lazy else file, map_location='cpu', weights_only=True, mmap=is_lazy
            )
        n_bytes = file.seek(0, io.SEEK_END)
        file.seek(max(0, n_bytes - DIGEST_BYTES))
        is_ours = file.read().startswith(DIGEST_PREFIX)
    return _checked(old.as_checkpoint(content, n_bytes, is_ours))


def _pickle_in(file, check_sums=False):
    """The structure of a file of torch: its records are stored as they are, side by side, each
    name once, so that none takes more memory than the file has bytes.

    zipfile and torch read a sound directory alike; in a crafted one they could see two files.
    """
    archive = zipfile.ZipFile(file)
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    roots = {info.filename.partition('/')[0] for info in infos}
    is_sound, end, names = len(roots) == 1 and infos[0].header_offset == 0, 0, set()
    for info in infos:
        name = info.filename
        is_sound &= name.isascii() and name == info.orig_filename and name.lower() not in names
        is_sound &= info.header_offset >= end
        end = info.header_offset + 30 + len(name) + info.compress_size
        names.add(name.lower())
        if info.compress_type or info.compress_size != info.file_size:
            raise ValueError('it holds compressed records, which torch never writes')
        if info.external_attr & FOLDER:
            raise ValueError(
                'a record of it is marked as a folder, for which torch would read whatever was in '
                'memory'
            )
    if not is_sound or end > archive.start_dir:
        raise ValueError('its directory of records is wrong')
    structure = archive.getinfo(f'{roots.pop()}/data.pkl')
    if structure.file_size > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f'a checkpoint may hold {MAX_PICKLE_BYTES >> 20} MiB beside its tensors, not '
            f'{structure.file_size >> 20}: keep what is large in tensors'
        )
    if check_sums and (broken := archive.testzip()):
        raise ValueError(f'its record {broken} is damaged')
    return io.BytesIO(archive.read(structure))


def _checked(state):
    """`state`, if it is shaped like a checkpoint: no use of it can then fail half-way."""
    if state.get('format', FORMAT) not in FORMATS:
        raise ValueError(f'it has format {state["format"]!r}, this program knows {FORMATS}')
    for key, kind in KINDS.items():
        if key not in state:
            continue
        value = state[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f'its {key!r} is a {type(value).__name__}')
        if key in COUNTS and value < 0:
            raise ValueError(f'its {key!r} is {value}, below 0')
    if 'state_dict' not in state:
        raise ValueError("it has no 'state_dict'")
    if not all(isinstance(name, str) for name in state['state_dict']):
        raise ValueError("its 'state_dict' has names that are no text")
    return state


# Choosing


def find(text: str, root: Path = Path(), best_first: bool = False) -> Path:
    """The file that `-r text` means, looked for from the working directory, then from `root`.

    A file means itself. A run folder, or RUN/last, means its newest good checkpoint:
    checkpoint-last.pth, else the highest epoch, else model_best.pth; what is damaged is passed
    over with a warning. RUN/best means its model_best.pth, and so does RUN with `best_first`, where
    there is a good one. A folder that tools.card has packed means its weights.
    """
    try:
        for path in (Path(text), root / text):
            means = None if path.exists() else path.name
            if means == 'best':
                path = path.with_name(BEST)
            if path.is_file():
                return path
            folder = path.parent if means == 'last' else path
            if not folder.is_dir():
                continue
            found, _ = newest(folder, best_first and folder == path)
            if found is not None:
                return found
            if (folder / packed.FILE).is_file():
                return folder / packed.FILE
            hint = '-r takes one, or the folder of a run'
            places = '*', '*/*', 'models/*/*'  # below an experiment, models/ and save_dir
            runs = [path.parent for place in places for path in folder.glob(f'{place}/{LAST}')]
            if runs:
                hint = f'do you mean its newest run, {max(runs, key=begun)}?'
            raise CheckpointError(f'{folder} holds no checkpoint: {hint}')
    except OSError as error:  # no right to look there, a name that is too long
        raise CheckpointError(f'{text} cannot be read: {error.strerror or error}') from error
    raise CheckpointError(
        f'{text} is not there: -r takes a checkpoint, a run folder, or RUN/last or RUN/best'
    )


def newest_valid(folder: Path) -> Path | None:
    """The newest checkpoint of a run folder that is whole: a name that scripts of users have."""
    return newest(folder)[0]


def newest(folder: Path, best_first: bool = False) -> tuple[Path | None, dict]:
    """The newest checkpoint of a run folder that is whole, or its best, and its head.

    (None, {}) when the folder holds none; a CheckpointError when all are damaged.
    """
    damaged = []
    for path in _newest_first(folder, best_first):
        try:
            head = load_head(path, with_parts=True)
        except CheckpointError as error:
            damaged.append(str(path))
            problem = error
            continue
        if damaged:
            logger.warning(f'{" and ".join(damaged)} is damaged: falling back on {path}')
        return path, head
    if damaged:
        raise CheckpointError(f'every checkpoint is damaged: {" and ".join(damaged)}.\n{problem}')
    return None, {}


def moment(head: dict) -> list[int]:
    """[epochs done, steps done] of a checkpoint."""
    return [head.get('epoch', 0), head.get('step', 0)]


def is_behind(path: Path) -> bool:
    """Whether a checkpoint that is whole is ahead of this one, in its folder."""
    before = itertools.takewhile(lambda each: each != path, _newest_first(path.parent))
    try:
        here = moment(load_head(path))
    except CheckpointError:
        return False  # whoever reads it will hear of it
    heads = [next(whole_heads(paths), {}) for paths in (before, [path.with_name(BEST)])]
    return any(moment(head) > here for head in heads)


def whole_heads(paths: Iterable[Path]) -> Iterator[dict]:
    """The heads of those checkpoints that are whole."""
    for path in paths:
        with suppress(CheckpointError):
            yield load_head(path, with_parts=True)


def _newest_first(folder, best_first=False):
    order = [folder / LAST, *numbered(folder), folder / BEST]
    if best_first:
        order.insert(0, folder / BEST)
    return [path for path in dict.fromkeys(order) if path.is_file()]


def numbered(folder: Path) -> list[Path]:
    """checkpoint-epoch{N}.pth, the highest N first."""
    paths = folder.glob('checkpoint-epoch*.pth')
    found = {path.stem.removeprefix('checkpoint-epoch'): path for path in paths}
    epochs = sorted(filter(str.isdecimal, found), key=int, reverse=True)
    return [found[epoch] for epoch in epochs]


def newest_run(folder: Path) -> Path | None:
    """The run folder under saved/models/NAME that was begun last, with a checkpoint or without."""
    runs = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return max(runs, key=begun, default=None)


def begun(run: Path) -> datetime:
    """When a run was begun, by its record; without one (the first version) by its files."""
    with suppress(ValueError, TypeError):
        moment = datetime.fromisoformat(read_object(run / RECORD)[0].get('begun'))
        if moment.year < datetime.max.year:  # else none could be later
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    config = run / CONFIG
    return datetime.fromtimestamp((config if config.is_file() else run).stat().st_mtime, UTC)
