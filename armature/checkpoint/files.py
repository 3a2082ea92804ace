"""Checkpoint files: the only `torch.save` and `torch.load`. Written whole or not at all, verified
before use.

A file's digest is inside it, as the comment of the zip archive that torch writes: it cannot be
lost in a copy. The first version kept it beside it, in NAME.pth.sha256, which is still honoured.
"""

import hashlib
import io
import logging
import math
import os
import pickle
import shutil
import struct
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from armature.checkpoint import old, packed
from armature.checkpoint.weights import tested_weights
from armature.errors import CheckpointError, ConfigError
from armature.processes import dist
from armature.record import CONFIG, RECORD, read_object

FORMAT = 2
FORMATS = (1, 2)  # those that are read; 1 is the first version's
LAST, BEST = 'checkpoint-last.pth', 'model_best.pth'
WEIGHTS = 'weights.pth'  # the tested weights alone
CONTENT = {
    int: ('format', 'epoch', 'step', 'samples', 'seed'),
    (int, float): ('monitor_best',),
    str: ('arch',),
    list: ('history', 'rng_of_others'),
    dict: (
        'state_dict', 'tested', 'optimizer', 'config', 'parts', 'as_built', 'data', 'rng',
        'made_by', 'shards', 'run',
    ),
}  # fmt: skip
LEAVES = {bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.Size}
DIGEST_PREFIX = b'sha256:'
DIGEST_BYTES = len(DIGEST_PREFIX) + 64  # the comment at the end of every file that we write
END_RECORD = b'PK\x05\x06'  # begins a zip archive's last record
END_RECORD_BYTES = 22  # its size without a comment
FOLDER = 0x10  # the attribute of a record that is a folder under DOS
MAX_PICKLE_BYTES = 32 * 2**20  # an empty list is one byte in a pickle and a hundred in memory
REPLACE_S = 1.0  # how long a file may be open elsewhere before replacing it counts as failed
logger = logging.getLogger(__name__)


# Writing


def save(state: dict, path: Path, *also: Path) -> None:
    """Write `state` (brought to plain data here) to `path`, and under the names `also` beside it.

    The names share one file where the file system can: replace a checkpoint, do not write into it.
    Raises CheckpointError when it cannot be written; what was there before is then still there,
    and nothing else.
    """
    _save({'format': FORMAT, **to_plain(state)}, [Path(each) for each in (path, *also)])


def save_weights(state: dict, path: Path) -> None:
    """Write the tested weights of a state to `path` as torch's own plain state dict, on the CPU."""
    weights = to_plain(tested_weights(state))
    _save(
        {name: value.cpu() if torch.is_tensor(value) else value for name, value in weights.items()},
        [path],
    )


def _save(state: dict, paths: list[Path]) -> None:
    # Serialise to memory first: a full disk is then an honest OSError while we write bytes. Inside
    # torch.save it would be a confusing complaint about positions in an archive.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        _pickle_in(buffer)  # what load() would not take is not written in the first place
    except ValueError as error:
        raise CheckpointError(f'the state cannot be saved: {error}') from error
    add_digest(buffer)
    try:
        with buffer.getbuffer() as content:
            _write_all(paths, content)
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
    buffer.seek(-END_RECORD_BYTES, io.SEEK_END)
    assert buffer.read(4) == END_RECORD, 'torch.save writes no comment'
    buffer.seek(-2, io.SEEK_END)
    buffer.write(struct.pack('<H', DIGEST_BYTES))  # the length of the comment
    with buffer.getbuffer() as body:
        digest = hashlib.sha256(body).hexdigest()
    buffer.write(DIGEST_PREFIX + digest.encode())


def _write_all(paths, content):
    """Everything that takes space goes into temporary files first; then names are exchanged."""
    # Names that nobody reads until the bytes are safe, in the same folder because a rename is
    # atomic only within one file system.
    unfinished = [path.with_name(f'.{path.name}.tmp') for path in paths]
    try:
        for each in unfinished:  # what a process that was killed has left
            each.unlink(missing_ok=True)
        _write(unfinished[0], content)
        for each in unfinished[1:]:
            _second_name(unfinished[0], each)
        for each, path in zip(unfinished, paths):
            replace(each, path)  # readers see the old file or the new one, never half of one
        sync_folder(paths[0].parent)  # the renames themselves survive a power cut
        for path in paths:  # the first version's, of the file that was there before
            _sidecar(path).unlink(missing_ok=True)
    finally:
        for each in unfinished:
            with suppress(OSError):  # the folder is gone or read-only: the first error says so
                each.unlink(missing_ok=True)


def _write(path, content):
    # Never into a file that is there: it may be a second name of a good one.
    with path.open('xb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _second_name(path, name):
    try:
        os.link(path, name)
    except OSError:  # no hard links here
        _write(name, path.read_bytes())


def replace(source: Path, target: Path) -> None:
    """os.replace, which Windows refuses while somebody reads `target`: tried for a second."""
    give_up = time.monotonic() + REPLACE_S
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.05)


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


def to_plain(value: Any, where: str = '', depth: int = 0) -> Any:
    """A copy of `value` in tensors, dicts, lists, tuples, sets, strings and numbers.

    numpy's numbers and arrays become numbers and tensors, a Path a string, an OrderedDict a dict,
    and an object with a dict `config` (ConfigParser) that dict. A tensor that shows a part of a
    bigger one leaves the rest behind. A CheckpointError names what is none of these.
    """
    kind = type(value)
    if kind in LEAVES:
        return value
    if depth > old.MAX_DEPTH:
        raise CheckpointError(
            f'the state cannot be saved: {where[:60]}... is nested too deeply, or contains itself'
        )

    def inner(each, name):
        return to_plain(each, f'{where}.{name}'.lstrip('.'), depth + 1)

    if kind in (torch.Tensor, torch.nn.Parameter):
        value = value.detach()
        if value.layout == torch.sparse_coo:
            return value
        if value.layout == torch.strided:
            is_whole = value.nbytes == value.untyped_storage().nbytes()
            return value if is_whole else value.clone()
    elif isinstance(value, dict):
        plain = {inner(key, 'key'): inner(each, key) for key, each in value.items()}
        return Counter(plain) if kind is Counter else plain
    elif kind in (list, tuple, set):
        return kind([inner(each, index) for index, each in enumerate(value)])
    elif isinstance(value, np.generic) and type(value.item()) in LEAVES:
        return value.item()
    elif isinstance(value, np.ndarray) and value.dtype.isnative:
        with suppress(TypeError):  # of something else than numbers
            return torch.from_numpy(value.copy())
    elif isinstance(value, Path):
        return str(value)
    elif isinstance(getattr(value, 'config', None), dict):
        return to_plain(value.config, where, depth + 1)
    raise CheckpointError(
        f'the state cannot be saved: {where or "it"} is a {kind.__module__}.{kind.__qualname__}; '
        'keep numbers, strings, tensors, lists or dicts there'
    )


# Reading


def load(
    path: Path, model: torch.nn.Module | None = None, optimizer: torch.optim.Optimizer | None = None
) -> dict:
    """The checkpoint in `path`, verified, on the CPU; no code that it holds is run.

    model, optimizer: what a sharded checkpoint is read for, in all processes together. Raises
    CheckpointError, whatever is wrong with the file.
    """
    path, head = Path(path), load_head(path)
    if not head.get('shards'):
        return head
    from armature.checkpoint import sharded  # torch's own part takes a while to import

    with _saying_what_is_wrong(path):
        return sharded.read(head, path.parent, model, optimizer)


def load_head(path: Path) -> dict:
    """As `load`, of a sharded checkpoint everything but the tensors of model and optimizer."""
    path = Path(path)
    with _saying_what_is_wrong(path):
        if path.suffix == '.safetensors':
            return _checked(packed.read(path))
        with path.open('rb') as file:
            verified = is_whole(file, path)
            if verified is False:
                raise ValueError('it is damaged: its content is not what was written')
            return _checked(_read(file, verified))


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


def is_whole(file: BinaryIO, path: Path) -> bool | None:
    """Whether the bytes are those that were written; None when nothing in or beside it tells.

    A zip archive without our comment counts as somebody else's only when it ends exactly as such
    an archive ends: else cutting off our comment would hide any other damage.
    """
    n_bytes = file.seek(0, io.SEEK_END)
    file.seek(max(0, n_bytes - DIGEST_BYTES))
    end = file.read()
    file.seek(0)
    if end.startswith(DIGEST_PREFIX):
        digest, n_left = hashlib.sha256(), n_bytes - DIGEST_BYTES
        while chunk := file.read(min(n_left, 2**20)):
            digest.update(chunk)
            n_left -= len(chunk)
        return end[len(DIGEST_PREFIX) :] == digest.hexdigest().encode()
    if _sidecar(path).is_file():
        digest = _sidecar(path).read_bytes()[:64].decode('ascii', 'replace')
        return hashlib.file_digest(file, 'sha256').hexdigest() == digest
    ends_plainly = end[-END_RECORD_BYTES:].startswith(END_RECORD) and end[-2:] == b'\0\0'
    return None if ends_plainly or not _is_zip(file) else False


def _is_zip(file):
    file.seek(0)
    return file.read(4) == b'PK\3\4'


def _read(file, verified):
    if _is_zip(file):
        names = old.names_in(_pickle_in(file, check_sums=not verified))
    else:  # torch's format until 1.5: five pickles, then the tensors
        file.seek(0)
        stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
        names = set().union(*(old.names_in(stream) for _ in range(5)))
    n_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    with (
        warnings.catch_warnings(),
        torch.sparse.check_sparse_tensor_invariants(),
        torch.serialization.safe_globals(old.stand_ins(names)),
    ):
        warnings.filterwarnings('ignore')  # about torch's own ways of reading
        content = torch.load(file, map_location='cpu', weights_only=True)
    return old.as_checkpoint(content, n_bytes)


def _pickle_in(file, check_sums=False):
    """The structure of a file of torch: its records are stored as they are, side by side, each
    name once, so that none takes more memory than the file has bytes.

    zipfile and torch read a sound directory alike; in a crafted one they could see two files.
    """
    archive = zipfile.ZipFile(file)
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    names = [info.filename for info in infos]
    roots = {name.partition('/')[0] for name in names}
    starts = [info.header_offset for info in infos] + [archive.start_dir]
    ends = [0] + [
        info.header_offset + 30 + len(info.filename) + info.compress_size for info in infos
    ]
    if (
        starts[0] != 0
        or any(end > start for end, start in zip(ends, starts))
        or len(roots) != 1
        or len({name.lower() for name in names}) < len(names)
        or any(not each.filename.isascii() or each.filename != each.orig_filename for each in infos)
    ):
        raise ValueError('its directory of records is wrong')
    if any(info.compress_type or info.compress_size != info.file_size for info in infos):
        raise ValueError('it holds compressed records, which torch never writes')
    if any(info.external_attr & FOLDER for info in infos):
        raise ValueError(
            'a record of it is marked as a folder, for which torch would read whatever was in '
            'memory'
        )
    structure = archive.getinfo(f'{roots.pop()}/data.pkl')
    if structure.file_size > MAX_PICKLE_BYTES:
        raise ValueError(f'it holds more than {MAX_PICKLE_BYTES >> 20} MiB beside its tensors')
    if check_sums and (broken := archive.testzip()):
        raise ValueError(f'its record {broken} is damaged')
    return io.BytesIO(archive.read(structure))


def _checked(state):
    """`state`, if it is shaped like a checkpoint: no use of it can then fail half-way."""
    if not isinstance(state.get('state_dict'), dict):
        raise ValueError("it has no 'state_dict'")
    if state.get('format', FORMAT) not in FORMATS:
        raise ValueError(f'it has format {state["format"]!r}, this program knows {FORMATS}')
    for kind, keys in CONTENT.items():
        for key in keys:
            value = state.get(key)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise ValueError(f'its {key!r} is a {type(value).__name__}')
            if kind is int and key != 'seed' and (value or 0) < 0:
                raise ValueError(f'its {key!r} is {value}')
    if not all(isinstance(row, dict) for row in state.get('history') or []):
        raise ValueError("its 'history' is no list of rows")
    for name, value in state['state_dict'].items():
        is_tensor = isinstance(value, torch.Tensor)
        if not isinstance(name, str) or not (is_tensor or name.endswith('_extra_state')):
            raise ValueError(f"its 'state_dict' is none: {name!r} is a {type(value).__name__}")
    return state


# A run's line of checkpoints


class Saver:
    """Brings the state of a run to the disk; to be called in all processes together.

    is_sharded: each process writes its part. stops: whether a checkpoint that cannot be written is
    an error, or only a warning. keep_last: see `prune`. every_s: how old the newest checkpoint may
    become until another one is due.
    """

    def __init__(
        self,
        folder: Path,
        logger: logging.Logger,
        *,
        is_sharded: bool = False,
        stops: bool = True,
        keep_last: int | None = None,
        every_s: float = math.inf,
    ):
        self.folder, self.logger = folder, logger
        self.is_sharded, self.stops, self.keep_last = is_sharded, stops, keep_last
        self.every_s, self._due = every_s, time.monotonic() + every_s
        self.saved = None  # (epochs, steps) of the newest
        self.line = {'best': None, 'parent': None}  # (epochs, steps), file that it went on from
        self._numbered = None  # the numbered files, read from the folder once
        self._has_parts = is_sharded
        self._gone_back_to, self._moment = None, [0, 0]

    @classmethod
    def from_config(cls, config: Any, settings: Any, logger: logging.Logger) -> 'Saver':
        """As the sections `trainer` (with its defaults: `settings`) and `distributed` say."""
        sharing = (config.get('distributed') or {}) if dist.is_joined() else {}
        return cls(
            config.save_dir,
            logger,
            is_sharded=sharing.get('checkpoint') == 'sharded',
            stops=settings.on_save_error == 'stop',
            keep_last=settings.keep_last,
            every_s=60 * (settings.save_every_minutes or math.inf),
        )

    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    def go_on_from(self, state: dict, path: Path) -> None:
        """The run goes on from `state`, which was read from `path`: in its line, when that is in
        this folder, else in a new one that names its parent."""
        if path.resolve().parent != self.folder.resolve():
            self.line['parent'] = str(path)
            return
        self.line |= state.get('run') or {}
        if path.name != LAST:  # behind which everything is
            self._gone_back_to = self.folder / path.name
            self._moment = [state.get('epoch', 0), state.get('step', 0)]

    def set_aside(self) -> None:
        """After going back, move the checkpoints ahead into a folder of their own, in one process.

        One line of files is left: the best, the last and those that `keep_last` counts are of it.
        """
        if self._gone_back_to is None:
            return
        weights, best = self.folder / WEIGHTS, self.folder / BEST
        places = {path: _place(path) for path in self.folder.glob('*.pth') if path != weights}
        ahead = {
            path for path, (moment, _) in places.items() if (moment or [math.inf]) > self._moment
        }
        if not ahead:
            return
        left = places.keys() - ahead
        weights_of_best = [WEIGHTS] if best in ahead and weights.exists() else []
        parts = {places[path][1] for path in ahead} - {places[path][1] for path in left} - {None}
        count = 1
        while (aside := self.folder / f'set-aside-{count}').exists():
            count += 1
        try:
            aside.mkdir()
            for name in [*weights_of_best, *sorted(path.name for path in ahead), *parts]:
                os.replace(self.folder / name, aside / name)
            # The best of the line that goes on may be left as the checkpoint of its epoch.
            for path in left:
                if places[path][0] == self.line['best'] and not best.exists():
                    _second_name(path, best)
        except OSError as error:
            raise CheckpointError(
                f'{self.folder}: what is ahead of {self._gone_back_to.name} cannot be moved to '
                f'{aside}: {error.strerror or error}'
            ) from error
        self.logger.info(
            f'Going back to {self._gone_back_to.name}: what was ahead of it is in {aside} now'
        )

    def write(self, state: dict, names: list[str]) -> bool:
        """Write `state` under `names`; False when it could not be written and that is not to stop
        the training."""
        line = self.line
        if BEST in names:
            line = {**line, 'best': [state['epoch'], state['step']]}
        state = {**state, 'run': line}
        paths = [self.folder / name for name in names]
        try:
            if self.is_sharded:
                from armature.checkpoint import sharded

                head = sharded.write(state, self.folder)
                dist.on_main(_save_head, head, *paths)
            else:
                dist.on_main(self._save, dist.whole(state, only_in_main=True), paths)
        except CheckpointError as error:
            if self.stops:
                raise
            self.logger.warning(f'{error}\nGoing on without it (trainer.on_save_error is "warn").')
            return False
        self.saved, self.line = (state['epoch'], state['step']), line
        self._due = time.monotonic() + self.every_s
        if self.keep_last is not None:
            dist.on_main(self._prune, paths)
        return True

    def _prune(self, written):
        """Looks into the folder only once: it may hold thousands of files."""
        if self._numbered is None:
            self._numbered = numbered(self.folder)
            self._has_parts |= any(self.folder.glob('shards-*'))
        found = by_number([*self._numbered, *written])
        self._numbered = prune(found, self.keep_last, self._has_parts)

    def _save(self, state: dict, paths: list[Path]) -> None:
        weights, best = self.folder / WEIGHTS, self.folder / BEST
        # First, so that a kill leaves none that are older than the best; a resume repeats the step.
        if best in paths:
            save_weights(state, weights)
        elif state.get('finished') and not (best.exists() and weights.exists()):
            save_weights(load(best) if best.exists() else state, weights)
        save(state, *paths)


def _place(path):
    """([epochs done, steps done], the folder of its parts) of a checkpoint, where it has them.

    A damaged one has neither.
    """
    try:
        head = load_head(path)
    except CheckpointError:
        return None, None
    return [head.get('epoch', 0), head.get('step', 0)], (head.get('shards') or {}).get('folder')


def _save_head(head, *paths):
    sync_folder(paths[0].parent / head['shards']['folder'])
    save(head, *paths)
    _remove_unused_parts(paths[0].parent)


# Choosing and removing


def find(text: str, root: Path = Path(), best_first: bool = False) -> Path:
    """The file that `-r text` means, looked for from the working directory, then from `root`.

    A file means itself. A run folder, or RUN/last, means its newest good checkpoint:
    checkpoint-last.pth, else the highest epoch, else model_best.pth; what is damaged is passed
    over with a warning. RUN/best means its model_best.pth, and so does RUN with `best_first`, where
    there is a good one. A folder that tools.card has packed means its weights.
    """
    try:
        return _find(text, root, best_first)
    except OSError as error:  # no right to look there, a name that is too long
        raise CheckpointError(f'{text} cannot be read: {error.strerror or error}') from error


def _find(text: str, root: Path, best_first: bool) -> Path:
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
        if newest := newest_valid(folder, best_first and folder == path):
            return newest
        if (folder / packed.FILE).is_file():
            return folder / packed.FILE
        run = newest_run(folder)
        hint = f'; do you mean its newest run, {run}?' if run else ''
        hint = hint or ': -r takes a checkpoint, or the folder of a run'
        raise CheckpointError(f'{folder} holds no checkpoint{hint}')
    raise CheckpointError(
        f'{text} is not there: -r takes a checkpoint, a run folder, or RUN/last or RUN/best'
    )


def newest_valid(folder: Path, best_first: bool = False) -> Path | None:
    """The newest checkpoint of a run folder that is whole, or its best; None when it holds none.

    A CheckpointError when all are damaged.
    """
    damaged = []
    best = [folder / BEST]
    for path in dict.fromkeys([*best * best_first, folder / LAST, *numbered(folder), *best]):
        if not path.is_file():
            continue
        problem = _problem(path, has_parts=any(folder.glob('shards-*')))
        if problem is None:
            if damaged:
                names = ' and '.join(map(str, damaged))
                logger.warning(f'{names} is damaged: falling back on {path}')
            return path
        damaged.append(path)
    if damaged:
        names = ', '.join(path.name for path in damaged)
        raise CheckpointError(f'every checkpoint in {folder} is damaged: {names}.\n{problem}')
    return None


def prune(found: list[Path], keep: int, has_parts: bool = True) -> list[Path]:
    """Remove of numbered checkpoints all but the first `keep`, once one of those is verified.

    has_parts: whether some are sharded. Returns those that are left. model_best.pth always stays.
    """
    assert keep >= 1
    if len(found) <= keep or all(_problem(path, has_parts) for path in found[:keep]):
        return found
    try:
        for path in reversed(found[keep:]):
            _sidecar(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f'{path} could not be removed: {error.strerror or error}') from error
    if has_parts:
        _remove_unused_parts(path.parent)
    return found[:keep]


def _remove_unused_parts(folder):
    """Remove the folders of parts that no head names any more.

    One that is newer than all that are named may still be waiting for its head.
    """
    parts = set(folder.glob('shards-*'))
    places = [_place(path) for path in folder.glob('*.pth')] if parts else []
    if any(moment is None for moment, _ in places):
        return  # what a damaged one needs, nobody can tell
    named = {folder / name for _, name in places if name}
    newest = max((part.stat().st_mtime for part in parts & named), default=0)
    for part in parts - named:
        if part.stat().st_mtime < newest:
            shutil.rmtree(part, ignore_errors=True)


def numbered(folder: Path) -> list[Path]:
    """checkpoint-epoch{N}.pth, the highest N first."""
    return by_number(folder.glob('checkpoint-epoch*.pth'))


def by_number(paths: Iterable[Path]) -> list[Path]:
    found = {}
    for path in paths:
        number = path.stem.removeprefix('checkpoint-epoch')
        if number.isdecimal():
            found[int(number)] = path
    return [found[epoch] for epoch in sorted(found, reverse=True)]


def _problem(path, has_parts):
    """What is wrong with a file; its bytes are compared where its digest is known, else it is
    loaded."""
    try:
        with path.open('rb') as file:
            if not is_whole(file, path):
                load_head(path)
        if has_parts and (head := load_head(path)).get('shards'):
            from armature.checkpoint import sharded

            return sharded.problem(head, path.parent)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def newest_run(folder: Path) -> Path | None:
    """The run folder under saved/models/NAME that was begun last, with a checkpoint or without."""
    runs = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return max(runs, key=begun, default=None)


def begun(run: Path) -> datetime:
    """When a run was begun, by its record; without one (the first version) by its files."""
    with suppress(ValueError, TypeError):
        return datetime.fromisoformat(read_object(run / RECORD)[0].get('begun'))
    config = run / CONFIG
    seconds = (config if config.is_file() else run).stat().st_mtime
    return datetime.fromtimestamp(seconds, UTC)
