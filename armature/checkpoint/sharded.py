"""Sharded checkpoints: each process writes its part of model and optimizer (torch.distributed.checkpoint) into a fresh folder.

Beside the folder stands an ordinary checkpoint file, the head, with everything else and the sha256 of each part. The parts are read
by any number of processes, also by one; nothing of them is looked at before its bytes are verified, and no code in them is run.
"""

import hashlib
import pickle
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from armature.checkpoint.files import sync_folder
from armature.errors import CheckpointError
from armature.processes import dist

# What the list of parts may be made of: torch keeps it as a pickle, which could name anything.
METADATA = {
    'torch.distributed.checkpoint.metadata': {
        'Metadata',
        'TensorStorageMetadata',
        'TensorProperties',
        '_MEM_FORMAT_ENCODING',
        'ChunkStorageMetadata',
        'MetadataIndex',
        'StorageMeta',
    },
    'torch.distributed.checkpoint.filesystem': {'_StorageInfo'},
    'torch.serialization': {'_get_layout'},
    'torch': {'Size'},
    'pathlib': {'PosixPath', 'WindowsPath'},
}
PLACES = (
    ('state_dict',),
    ('optimizer', 'state'),
    ('parts', 'weight_average', 'model'),
)  # where a state is large


def take_out(state: dict) -> tuple[dict, dict[str, torch.Tensor], dict[str, list]]:
    """(state without the tensors in PLACES, those by name, the path in the state to each)."""
    tensors, paths = {}, {}

    def without(value: Any, path: list) -> Any:
        if isinstance(value, torch.Tensor) and any(
            path[: len(place)] == [*place] for place in PLACES
        ):
            name = '.'.join(map(str, path))
            tensors[name], paths[name] = value, path
            return None
        if not isinstance(value, dict):
            return value
        left = {key: without(each, [*path, key]) for key, each in value.items()}
        return {key: each for key, each in left.items() if each is not None or value[key] is None}

    return without(state, []), tensors, paths


class Writing:
    """The parts on their way into `folder`, which is made here; `finish` waits for them and then calls then(folder, files).

    files: the sha256 of each by name. in_background: the training goes on meanwhile. To be made and finished in all processes together.
    """

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        folder: Path,
        then: Callable[[str, dict], None],
        in_background: bool = False,
    ):
        self.folder, self._then = dist.on_main(_make_fresh, folder), then
        self._files, self._error = None, None
        writer = dcp.FileSystemWriter(
            self.folder, thread_count=1
        )  # with more, torch can report success after a failed write
        try:
            if in_background:
                future = dcp.async_save(
                    tensors, storage_writer=writer, process_group=dist.quiet_group()
                )
                future.add_done_callback(self._written)
            else:
                dcp.save(tensors, storage_writer=writer)
                self._written()
        except Exception as error:  # torch wraps what each process met
            self._error = error

    def _written(self, future: Any = None) -> None:
        try:
            if future is not None:
                future.result()
            mine = [
                *self.folder.glob(f'__{dist.rank()}_*'),
                *([self.folder / '.metadata'] if dist.is_main() else []),
            ]
            self._files = {path.name: _sha256(path) for path in mine}
        except Exception as error:
            self._error = error

    @property
    def is_under_way(self) -> bool:
        return self._files is None and self._error is None

    def finish(self) -> None:
        """Raises CheckpointError when a process could not write its part."""
        while self.is_under_way:
            time.sleep(0.01)
        said = dist.gather(
            (
                self._files,
                None if self._error is None else str(self._error).strip().splitlines()[-1],
            )
        )
        errors = {number: error for number, (_, error) in enumerate(said) if error}
        if errors:
            number, error = next(iter(errors.items()))
            dist.on_main(shutil.rmtree, self.folder, True)
            raise CheckpointError(
                f'{self.folder} could not be written by process {number}: {error}. The checkpoints that are there '
                'are whole'
            )
        sync_folder(self.folder)
        self._then(
            self.folder.name, {name: digest for files, _ in said for name, digest in files.items()}
        )


def _make_fresh(folder: Path) -> Path:
    """`folder`, or one with a number behind its name: torch mixes what it writes into a folder that is there."""
    for count in range(1, 1000):
        fresh = folder if count == 1 else folder.with_name(f'{folder.name}-{count}')
        try:
            fresh.mkdir()
            return fresh
        except FileExistsError:
            continue
        except OSError as error:
            raise CheckpointError(f'{fresh} cannot be made: {error.strerror}') from error
    raise CheckpointError(f'{folder} is there, a thousand times')


def problem(head: dict, run: Path, one: int = 0, of: int = 1) -> str | None:
    """What is wrong with the parts that `head` names; looks into every `of`-th of them, from `one` on."""
    folder = run / str(head['shards'].get('folder'))
    if folder.parent != run or not folder.name.startswith('shards-'):
        return f'it names {folder} as the folder of its parts'
    for number, (name, digest) in enumerate(head['shards'].get('files', {}).items()):
        path = folder / str(name)
        if path.parent != folder or not path.is_file():
            return f'its part {path} is missing'
        if number % of == one and _sha256(path) != digest:
            return f'its part {path} is damaged'
    return None


def read(
    head: dict,
    run: Path,
    model: torch.nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> dict:
    """The state that `head` and its parts are: whole tensors on the CPU, or in parts as those of `model` and `optimizer` are."""
    if model is None:
        problems = [problem(head, run)]
    else:  # all processes are here, and those of a machine share the work
        problems = dist.gather(problem(head, run, dist.local_rank(), dist.n_local()))
    for broken in filter(None, problems):
        raise ValueError(
            f'{broken}. A copied checkpoint needs its folder {head["shards"].get("folder")} beside it'
        )
    reader = _Reader(run / head['shards']['folder'])
    known = reader.read_metadata().state_dict_metadata
    if not all(isinstance(each, TensorStorageMetadata) for each in known.values()):
        raise ValueError('its parts hold something else than tensors')
    paths = head['shards'].get('tensors')
    if paths is None:
        raise ValueError('an earlier version has written its parts, which this one cannot read')
    weights = model.state_dict() if model is not None else {}
    groups = optimizer.param_groups if optimizer is not None else []
    parameters = dict(enumerate(parameter for group in groups for parameter in group['params']))

    def like(path: list) -> torch.Tensor | None:
        """What the model or its optimizer holds in that place."""
        return parameters.get(path[2]) if path[0] == 'optimizer' else weights.get(path[-1])

    tensors = {
        name: dist.empty(each.size, each.properties.dtype, like(paths[name]))
        for name, each in known.items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings(
            'ignore', 'torch.distributed is disabled'
        )  # a single process reads them as well
        dcp.load(tensors, storage_reader=reader)
    for name, tensor in tensors.items():
        *places, last = paths[name]
        place = head
        for key in places:
            place = place.setdefault(key, {})
        place[last] = tensor
    return head


class _Reader(dcp.FileSystemReader):
    """torch's reader, which trusts the list of parts, with one that does not."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        with (Path(self.path) / '.metadata').open('rb') as file:
            metadata = _Unpickler(file).load()
        metadata.storage_meta = None
        folder = Path(self.path).resolve()
        if any(
            (folder / info.relative_path).resolve().parent != folder
            for info in metadata.storage_data.values()
        ):
            raise ValueError('its list of parts names files elsewhere')
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (
            name in METADATA.get(module, ())
            or module == 'torch'
            and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise ValueError(f'its list of parts names {module}.{name}')


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
