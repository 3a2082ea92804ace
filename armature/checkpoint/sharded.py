"""Sharded checkpoints: each process writes its part of model and optimizer into a fresh folder.

Beside the folder stands an ordinary checkpoint file, the head, with everything else and the sha256
of each part. The parts are read by any number of processes, also by one; nothing of them is looked
at before its bytes are verified, and no code in them is run.
"""

import hashlib
import pickle
import secrets
import shutil
import warnings
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException  # derives from BaseException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from armature.errors import CheckpointError
from armature.processes import dist

METADATA = '.metadata'
# What the list of parts may be made of: torch keeps it as a pickle, which could name anything.
KNOWN = {
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
}
# Where the parts were written, by whatever Python and system (3.13 calls the module _local).
PATHS = {
    f'{module}.{system}Path': path
    for module in ('pathlib', 'pathlib._local')
    for system, path in (('Posix', PurePosixPath), ('Windows', PureWindowsPath))
}
PLACES = (('state_dict',), ('tested',), ('optimizer', 'state'))  # where a state is large


def write(state: dict, run: Path) -> dict:
    """Write the tensors in PLACES, in all processes together; returns the head that names them.

    Raises CheckpointError when a process could not write its part.
    """
    tensors, places = {}, {}

    def without_tensors(value, path):
        if isinstance(value, torch.Tensor) and any(
            path[: len(place)] == [*place] for place in PLACES
        ):
            name = '.'.join(map(str, path))
            tensors[name], places[name] = value, path
            return None
        if not isinstance(value, dict):
            return value
        left = {key: without_tensors(each, [*path, key]) for key, each in value.items()}
        return {key: each for key, each in left.items() if each is not None or value[key] is None}

    head = dist.whole(without_tensors(state, []))
    folder = dist.on_main(_make_fresh, run / f'shards-epoch{state["epoch"]}-step{state["step"]}')
    digests, error = {}, None
    try:
        # With more threads torch can report success after a failed write.
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder, thread_count=1))
        mine = [*folder.glob(f'__{dist.rank()}_*'), *[folder / METADATA] * dist.is_main()]
        digests = {path.name: _sha256(path) for path in mine}
    except (Exception, CheckpointException) as caught:  # torch wraps what each process met
        error = str(caught).strip().splitlines()[-1]
    said = dist.gather((digests, error))
    for number, (_, error) in enumerate(said):
        if error is not None:
            dist.on_main(shutil.rmtree, folder, True)
            raise CheckpointError(
                f'{folder} could not be written by process {number}: {error}. The checkpoints that '
                'are there are whole'
            )
    files = {name: digest for digests, _ in said for name, digest in digests.items()}
    return {**head, 'shards': {'folder': folder.name, 'files': files, 'tensors': places}}


def _make_fresh(folder):
    """`folder` with an ending that no other has: torch mixes what it writes into an old one."""
    fresh = folder.with_name(f'{folder.name}-{secrets.token_hex(4)}')
    try:
        fresh.mkdir()
    except OSError as error:
        raise CheckpointError(f'{fresh} cannot be made: {error.strerror}') from error
    return fresh


def problem(head: dict, run: Path, one: int = 0, of: int = 1) -> str | None:
    """What is wrong with the parts that `head` names; verifies every `of`-th, from `one` on."""
    folder, files = run / str(head['shards'].get('folder')), head['shards'].get('files', {})
    if folder.parent != run or not folder.name.startswith('shards-'):
        return f'it names {folder} as the folder of its parts'
    for number, (name, digest) in enumerate(files.items()):
        path = folder / str(name)
        if path.parent != folder or not path.is_file():
            return f'its part {path} is missing'
        if (number % of == one or name == METADATA) and _sha256(path) != digest:
            return f'its part {path} is damaged'
    # The list of parts has to be among them, and names what else is needed.
    needed = [METADATA]
    if METADATA in files:
        needed = [info.relative_path for info in _metadata(folder).storage_data.values()]
    for name in needed:
        if name not in files:
            return f'its part {folder / name} is missing'
    return None


def read(
    head: dict,
    run: Path,
    model: torch.nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> dict:
    """The state that `head` and its parts are.

    Its tensors are whole and on the CPU, or in parts as those of `model` and `optimizer` are.
    """
    if model is None:
        problems = [problem(head, run)]
    else:  # all processes are here, and those of a machine share the work
        problems = dist.gather(problem(head, run, dist.local_rank(), dist.n_local()))
    for broken in filter(None, problems):
        raise ValueError(
            f'{broken}. A copied checkpoint needs its folder {head["shards"].get("folder")} beside '
            'it'
        )
    folder = run / head['shards']['folder']
    known = _metadata(folder).state_dict_metadata
    if not all(isinstance(each, TensorStorageMetadata) for each in known.values()):
        raise ValueError('its parts hold something else than tensors')
    paths = head['shards'].get('tensors')
    if paths is None or paths.keys() != known.keys():
        raise ValueError('its parts are not those that it describes')
    weights = model.state_dict() if model is not None else {}
    groups = optimizer.param_groups if optimizer is not None else []
    parameters = dict(enumerate(parameter for group in groups for parameter in group['params']))

    def like(path):
        """What the model or its optimizer holds in that place."""
        return parameters.get(path[2]) if path[0] == 'optimizer' else weights.get(path[-1])

    tensors = {
        name: dist.empty(each.size, each.properties.dtype, like(paths[name]))
        for name, each in known.items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore')  # that a single process reads them as well
        try:
            dcp.load(tensors, storage_reader=_Reader(folder))
        except CheckpointException as error:
            raise ValueError(str(error).strip().splitlines()[-1]) from error
    for name, tensor in tensors.items():
        *places, last = paths[name]
        place = head
        for key in places:
            place = place.setdefault(key, {})
        place[last] = tensor
    return head


class _Reader(dcp.FileSystemReader):
    """torch's reader, which trusts the list of parts, with one that does not."""

    def read_metadata(self, *args, **kwargs):
        return _metadata(Path(self.path))


def _metadata(folder):
    """torch's list of parts."""
    with (folder / METADATA).open('rb') as file:
        try:
            metadata = _Unpickler(file).load()
        except ValueError:
            raise
        except Exception as error:  # a malformed pickle raises nearly everything
            raise ValueError(f'its list of parts is malformed: {error}') from error
    metadata.storage_meta = None
    for info in metadata.storage_data.values():
        if Path(info.relative_path).name != info.relative_path:
            raise ValueError('its list of parts names files elsewhere')
    return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        is_dtype = module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in KNOWN.get(module, ()):
            return super().find_class(module, name)
        if f'{module}.{name}' in PATHS:
            return PATHS[f'{module}.{name}']
        raise ValueError(f'its list of parts names {module}.{name}')


def _sha256(path):
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
