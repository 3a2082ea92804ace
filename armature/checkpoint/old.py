"""Reads checkpoints that we did not write, as data: the only place that interprets a pickle.

The old template's files hold a pickled ConfigParser, a PosixPath, numpy scalars; reading them with `pickle` would run whatever
else they hold. Here nothing that a file names is imported or called: of tensors, dicts and numpy numbers we know what is meant
and build it ourselves, everything else becomes an inert `Stub`. Sizes are checked against the file before memory is taken.
"""

import io
import logging
import math
import pickle
import re
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch

from armature.errors import CheckpointError

KEYS = {
    'arch',
    'epoch',
    'state_dict',
    'optimizer',
    'monitor_best',
    'config',
}  # what is taken over from a file that is not ours
MAX_DEPTH, MAX_VALUES = 100, 10**7
MAX_PICKLE_BYTES = 32 * 2**20  # an empty list is one byte in a pickle and a hundred in memory
logger = logging.getLogger(__name__)
FOLDER = 0x10  # the attribute in a zip file
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001

DTYPES = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
STORAGES = {
    'FloatStorage': torch.float32,
    'DoubleStorage': torch.float64,
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'LongStorage': torch.int64,
    'IntStorage': torch.int32,
    'ShortStorage': torch.int16,
    'CharStorage': torch.int8,
    'ByteStorage': torch.uint8,
    'BoolStorage': torch.bool,
    'UntypedStorage': torch.uint8,
    'ComplexFloatStorage': torch.complex64,
    'ComplexDoubleStorage': torch.complex128,
}

# A call into these is refused when we do not know it, rather than quietly left undone; INERT are at home in pickled objects.
LIBRARIES = sys.stdlib_module_names | {'torch', 'torchvision', 'numpy', 'commands', 'urllib2'}
INERT = (
    'argparse.Namespace',
    'builtins.object',
    'collections.deque',
    'copyreg._reconstructor',
    'datetime.',
    'logging.getLogger',
    'numpy.random.',
    're._compile',
    'torch.nn.',
    'torch.optim.',
    'torchvision.',
    'types.SimpleNamespace',
)


class Named:
    """What the pickle calls by its module and name; never looked up."""

    def __init__(self, module: str, name: str):
        self.name, self.library = f'{module}.{name}', module.partition('.')[0]


class Stub:
    """Stands for an object of a class that is not ours to build: the class's name, and the plain state it was given."""

    def __init__(self, name: str):
        self.name, self.attributes, self.items = name, {}, {}


class Array:
    """A numpy array; `tensor` is there once the pickle has given its content."""

    tensor = None


class Storage(NamedTuple):
    """The memory of one or several tensors; `data` is None when only the structure of a file is wanted."""

    dtype: torch.dtype
    n_elements: int
    data: torch.UntypedStorage | None


class Reader(
    pickle._Unpickler
):  # the one written in Python: its steps can be replaced, and a wild memo index costs it nothing
    """Unpickles plain data and tensors. `plain` tells afterwards whether that was all: no stub, nothing of numpy's.

    storage(key, n_bytes): gives the memory of a tensor, or None; raises ValueError when the file does not hold that much.
    limit: bytes a single tensor may take (a stride of 0 makes a huge one out of one number).
    """

    def __init__(self, file: BinaryIO, storage: Callable | None = None, limit: int = 0):
        super().__init__(file, encoding='latin1')
        self.storage, self.limit, self.plain = storage, limit, True

    def find_class(self, module: str, name: str) -> Any:
        module = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}.get(module, module)
        return DTYPES[name] if module == 'torch' and name in DTYPES else Named(module, name)

    def persistent_load(self, pid: tuple) -> Any:
        if pid[0] == 'module':  # long ago torch kept the source text of modules beside them
            return pid[1]
        kind, named, key, _, n_elements, *view = (
            pid  # the fourth is where it was, perhaps a GPU: no matter
        )
        dtype = STORAGES[named.name.rpartition('.')[2]]
        if (
            kind != 'storage'
            or type(key) is not str
            or type(n_elements) is not int
            or n_elements < 0
            or any(view)
        ):
            raise ValueError('a tensor is described wrongly')
        return Storage(dtype, n_elements, self.storage(key, n_elements * dtype.itemsize))

    def call(self, function: Named, arguments: tuple) -> Any:
        """What comes of a function and its arguments in the file."""
        if type(function) is not Named or type(arguments) is not tuple:
            raise ValueError('it calls what is no function')
        if function.name in PLAIN:
            return PLAIN[function.name](self, *arguments)
        self.plain = False
        if function.name in FOREIGN:
            return FOREIGN[function.name](*arguments)
        if function.library in LIBRARIES and not function.name.startswith(INERT):
            raise CheckpointError(
                f'it asks to run {function.name}, which no checkpoint needs. Nothing was run; do not trust it'
            )
        return Stub(function.name)

    def tensor(
        self,
        source: Storage,
        offset: int,
        size: tuple,
        stride: tuple,
        dtype: torch.dtype | None = None,
        flags: dict | None = None,
    ) -> torch.Tensor | None:
        dtype = dtype or source.dtype
        if not (
            len(size) == len(stride)
            and all(type(n) is int and 0 <= n < 2**62 for n in (offset, *size, *stride))
        ):
            raise ValueError('a tensor is described wrongly')
        end = offset + sum((n - 1) * step for n, step in zip(size, stride)) + 1
        held, wanted = source.n_elements * source.dtype.itemsize, math.prod(size) * dtype.itemsize
        if wanted and (end * dtype.itemsize > held or wanted > self.limit):
            raise ValueError(f'it describes a tensor of shape {list(size)} that it does not hold')
        if source.data is None:
            return None
        if flags:
            raise ValueError('a tensor is conjugated or negated only when it is used')
        return torch.empty(0, dtype=dtype).set_(source.data, offset, size, stride)

    # The steps of the pickle machine that could do more than put plain data together

    def load_reduce(self):
        arguments = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], arguments)

    def load_newobj_ex(self):
        self.stack.pop()
        self.load_reduce()

    def load_build(self):
        """State for an object: kept by a stub, content for an array; of an ordered dict it is torch's version numbers."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Stub:
            for part in state if type(state) is tuple else (state,):
                target.attributes.update(part if type(part) is dict else {})
        elif type(target) is Array:
            _, shape, dtype, by_column, content = state
            array = np.frombuffer(as_bytes(content), typed(dtype)).reshape(
                shape, order='F' if by_column else 'C'
            )
            target.tensor = torch.from_numpy(array.copy())
        elif isinstance(target, np.dtype) and state[1] == '>':
            raise ValueError('its numbers are big-endian')

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        set_items(self.stack[-1], [key, value])

    def load_setitems(self):
        items = self.pop_mark()
        set_items(self.stack[-1], items)

    def load_append(self):
        extend(self.stack[-2], [self.stack.pop()])

    def load_appends(self):
        items = self.pop_mark()
        extend(self.stack[-1], items)

    dispatch = {
        code: step
        for code, step in pickle._Unpickler.dispatch.items()
        if bytes([code])
        not in (
            pickle.INST,
            pickle.OBJ,
            pickle.PERSID,
            pickle.EXT1,
            pickle.EXT2,
            pickle.EXT4,
            pickle.EMPTY_SET,
            pickle.ADDITEMS,
            pickle.FROZENSET,
            pickle.BYTEARRAY8,
            pickle.NEXT_BUFFER,
            pickle.READONLY_BUFFER,
        )
    }
    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
    }


def set_items(target: Any, items: list) -> None:
    target = target.items if type(target) is Stub else target
    if type(target) not in (dict, OrderedDict, Counter):
        raise ValueError('it adds entries to what is no dict')
    target.update(zip(map(flat, items[::2]), items[1::2], strict=True))


def extend(target: Any, items: list) -> None:
    if type(target) is list:
        target.extend(items)
    elif type(target) is not Stub:
        raise ValueError('it adds elements to what is no list')


def flat(key: Any) -> Any:
    """`key`, unless hashing it could go deep: the interpreter does not survive a million nested tuples."""
    if type(key) is tuple and any(type(each) is tuple for each in key):
        raise ValueError('a key of nested tuples')
    return key


def as_bytes(content: str | bytes) -> bytes:
    return (
        content.encode('latin1') if type(content) is str else content
    )  # Python 2 had one type for both


def typed(dtype: Any) -> np.dtype:
    if not isinstance(dtype, np.dtype):
        raise ValueError('an array without a type')
    return dtype


def number_type(code: str, *_: Any) -> np.dtype:
    if not re.fullmatch(r'[<|=]?[fiubc]\d{1,2}', as_bytes(code).decode('latin1')):
        raise ValueError('an array of something else than numbers')
    return np.dtype(code)


def sparse_tensor(layout: str, parts: tuple) -> torch.Tensor | None:
    if layout != 'torch.sparse_coo':
        raise ValueError(f'a tensor of layout {layout}')
    indices, values, size, *_ = parts
    return (
        None
        if values is None
        else torch.sparse_coo_tensor(indices, values, size, check_invariants=True)
    )


PLAIN = {
    'torch._utils._rebuild_tensor': Reader.tensor,
    'torch._utils._rebuild_tensor_v2': lambda self, source, offset, size, stride, _grad, _hooks, *flags: (
        self.tensor(source, offset, size, stride, None, *flags)
    ),
    'torch._utils._rebuild_tensor_v3': lambda self, source, offset, size, stride, _grad, _hooks, dtype, *flags: (
        self.tensor(source, offset, size, stride, dtype, *flags)
    ),
    'torch._utils._rebuild_sparse_tensor': lambda _, layout, parts: sparse_tensor(layout, parts),
    'torch.serialization._get_layout': lambda _, text: text,
    'torch.Size': lambda _, size: torch.Size(size),
    'torch.device': lambda _, *name: torch.device(*name),
    'collections.OrderedDict': lambda _, items=(): OrderedDict(
        (flat(key), value) for key, value in items
    ),
    'collections.Counter': lambda _, counts: Counter(dict(counts)),
    'builtins.set': lambda _, items: set(map(flat, items)),
    'builtins.complex': lambda _, real, imaginary: complex(real, imaginary),
}
FOREIGN = {
    'torch._utils._rebuild_parameter': lambda tensor, *_: tensor,
    'torch._utils._rebuild_parameter_with_state': lambda tensor, *_: tensor,
    'collections.defaultdict': lambda *_: {},
    'builtins.dict': dict,
    'builtins.bytes': lambda: b'',
    '_codecs.encode': lambda text, _: as_bytes(text),
    **{
        f'pathlib.{kind}': lambda *parts: str(PurePosixPath(*parts))
        for kind in (
            'Path',
            'PurePath',
            'PosixPath',
            'PurePosixPath',
            'WindowsPath',
            'PureWindowsPath',
        )
    },
    'numpy.dtype': number_type,
    **{
        f'numpy.{core}.multiarray.scalar': lambda dtype, content: np.frombuffer(
            as_bytes(content), typed(dtype), count=1
        )[0].item()
        for core in ('core', '_core')
    },
    **{f'numpy.{core}.multiarray._reconstruct': lambda *_: Array() for core in ('core', '_core')},
}


# The two file formats of torch


class Archive:
    """A checkpoint in torch's zip format whose directory is sound: records stored as they are, side by side, each name once.

    zipfile and torch read a sound directory alike; in a crafted one they could see two different files.
    """

    def __init__(self, file: BinaryIO):
        self.file_bytes = file.seek(0, io.SEEK_END)
        file.seek(max(0, self.file_bytes - 22))
        end = file.read()
        self.zip = zipfile.ZipFile(file)
        infos = sorted(self.zip.infolist(), key=lambda info: info.header_offset)
        names = [info.filename for info in infos]
        roots = {name.partition('/')[0] for name in names}
        ends = [info.header_offset + 30 + len(info.filename) + info.compress_size for info in infos]
        starts = [info.header_offset for info in infos[1:]] + [self.zip.start_dir]
        if (
            not end.startswith(b'PK\5\6')
            or end[-2:] != b'\0\0'
            or infos[0].header_offset
            or len(roots) != 1
            or len({name.lower() for name in names}) < len(names)
            or any(
                not name.isascii() or name != info.orig_filename for name, info in zip(names, infos)
            )
            or any(end > start for end, start in zip(ends, starts))
        ):
            raise ValueError('its directory of records is wrong')
        if any(
            info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size
            for info in infos
        ):
            raise ValueError('it holds compressed records, which torch never writes')
        if any(info.external_attr & FOLDER for info in infos):
            raise ValueError(
                'a record of it is marked as a folder, for which torch would read whatever was in memory'
            )
        self.root = roots.pop()
        self.sizes = {info.filename.removeprefix(f'{self.root}/'): info.file_size for info in infos}
        if 'constants.pkl' in self.sizes:
            raise ValueError('it is a TorchScript program')
        if self.sizes['data.pkl'] > MAX_PICKLE_BYTES:
            raise ValueError(f'it holds more than {MAX_PICKLE_BYTES >> 20} MiB beside its tensors')
        if 'byteorder' in self.sizes and self.record('byteorder') != b'little':
            raise ValueError('its numbers are big-endian')
        self.storages = {}

    def record(self, name: str) -> bytes:
        return self.zip.read(f'{self.root}/{name}')

    def is_plain(self) -> bool:
        """Whether it holds plain data and tensors only, as our own files do; looks at the structure alone."""
        reader = self._reader(self._check)
        reader.load()
        return reader.plain

    def load(self) -> Any:
        return self._reader(self._storage).load()

    def _reader(self, storage: Callable) -> Reader:
        return Reader(io.BytesIO(self.record('data.pkl')), storage, self.file_bytes)

    def _check(self, key: str, n_bytes: int) -> None:
        if self.sizes[f'data/{key}'] != n_bytes:
            raise ValueError('it describes a tensor of another size than it holds')

    def _storage(self, key: str, n_bytes: int) -> torch.UntypedStorage:
        self._check(key, n_bytes)
        if key not in self.storages:
            self.storages[key] = memory(self.record(f'data/{key}'))
        return self.storages[key]


def memory(content: bytes) -> torch.UntypedStorage:
    if not content:
        return torch.UntypedStorage(0)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage()


def load_legacy(file: BinaryIO) -> Any:
    """torch's format until 1.5: five pickles (magic, version, system, the object, keys of storages), then the storages' bytes."""
    file_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    storages = {}

    def storage(key: str, n_bytes: int) -> torch.UntypedStorage:
        if key not in storages:
            if n_bytes + sum(each.nbytes() for each in storages.values()) > file_bytes:
                raise ValueError('it describes tensors that it does not hold')
            storages[key] = torch.UntypedStorage(n_bytes)
        if storages[key].nbytes() != n_bytes:
            raise ValueError('it describes one tensor in two ways')
        return storages[key]

    magic, version, system = (Reader(stream).load() for _ in range(3))
    if magic != LEGACY_MAGIC or version != LEGACY_VERSION or not system['little_endian']:
        raise ValueError('it is no file of torch')
    result = Reader(stream, storage, file_bytes).load()
    keys = Reader(stream).load()
    if sorted(keys) != sorted(storages):
        raise ValueError('it describes tensors that it does not hold')
    file.seek(stream.tell())
    for key in keys:
        n_elements, n_bytes = int.from_bytes(file.read(8), 'little'), storages[key].nbytes()
        if n_elements * (n_bytes // n_elements if n_elements else 1) != n_bytes:
            raise ValueError('it describes a tensor of another size than it holds')
        content = file.read(n_bytes)
        if len(content) != n_bytes:
            raise ValueError('it is cut off')
        storages[key].copy_(memory(content))
    return result


# From what a file holds to a checkpoint


def read(file: BinaryIO) -> dict:
    """The checkpoint in `file`; see `as_checkpoint`."""
    return as_checkpoint(Archive(file).load() if is_zip(file) else load_legacy(file))


def is_zip(file: BinaryIO) -> bool:
    file.seek(0)
    return file.read(4) == b'PK\3\4'


def as_checkpoint(content: Any) -> dict:
    """`content` with plain values only; what cannot be plain is left out with a warning. A bare state dict becomes a checkpoint.

    Of a file without 'format', which is not ours, the keys of the old template count, and names lose the prefixes of wrappers.
    """
    check_extent(content, {})
    if type(content) is Stub:
        raise ValueError(
            f'it holds an object of class {content.name} as a whole; save its state_dict() instead'
        )
    if not isinstance(content, dict):
        raise ValueError(f'it holds a {type(content).__name__}')
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        content = {'state_dict': content}
    state, left_out = {}, []
    for key in content if 'format' in content else KEYS & content.keys():
        try:
            state[key] = plain(config_of(content[key]) if key == 'config' else content[key])
        except TypeError as error:
            left_out.append(f'{key} (for {error})')
    if left_out:
        logger.warning(
            f'Of an old checkpoint, this is no plain data and left out: {", ".join(left_out)}'
        )
    if 'format' not in state and isinstance(state.get('state_dict'), dict):
        state['state_dict'] = bare_names(state['state_dict'])
        best = state.get('monitor_best')
        if isinstance(best, torch.Tensor) and best.numel() == 1:
            state['monitor_best'] = best.item()
    return state


def check_extent(value: Any, known: dict, depth: int = 0) -> tuple[int, int]:
    """Refuse nesting too deep to walk, and few objects used so often that a copy would be huge.

    Returns (values, levels) in `value`; what occurs several times counts each time, but is visited once.
    """
    if type(value) is Stub:
        children = [value.items, value.attributes]
    elif isinstance(value, dict):
        children = [*value, *value.values()]
    elif type(value) in (list, tuple, set):
        children = value
    else:
        return 1, 0
    if id(value) not in known and depth <= MAX_DEPTH:
        extents = [check_extent(each, known, depth + 1) for each in children]
        known[id(value)] = (
            1 + sum(n for n, _ in extents),
            1 + max((levels for _, levels in extents), default=0),
        )
    n_values, levels = known.get(id(value), (0, MAX_DEPTH))
    if depth + levels > MAX_DEPTH or n_values > MAX_VALUES:
        raise ValueError('it is nested too deeply or holds too many values')
    return n_values, levels


def config_of(value: Any) -> Any:
    """The dict inside a pickled ConfigParser, whatever its version called it."""
    if type(value) is Stub:
        names = [
            name
            for name in ('_config', 'config', '_ConfigParser__config')
            if name in value.attributes
        ]
        return value.attributes[names[0]] if names else value
    return value


def plain(value: Any) -> Any:
    """`value` without stubs, arrays and ordered dicts; raises TypeError with the name of what cannot be replaced."""
    if type(value) is Stub and value.items:  # of a class derived from dict
        value = value.items
    if isinstance(value, dict) and type(value) is not Counter:
        return {key: plain(each) for key, each in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(map(plain, value))
    if type(value) is Array:
        return value.tensor
    if isinstance(value, (Stub, Named, Storage, np.dtype)):
        raise TypeError(getattr(value, 'name', type(value).__name__))
    return value


def bare_names(state_dict: dict) -> dict:
    """Without the prefixes that DataParallel, DistributedDataParallel and torch.compile put before every name."""
    for prefix in ('module.', '_orig_mod.', 'module.'):
        if state_dict and all(type(name) is str and name.startswith(prefix) for name in state_dict):
            state_dict = {name.removeprefix(prefix): value for name, value in state_dict.items()}
    return state_dict
