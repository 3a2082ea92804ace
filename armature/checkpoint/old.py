"""What a file names and is not ours, as plain data: nothing that a pickle names is imported or run.

The old template pickled its ConfigParser, paths and numpy numbers into a checkpoint. Here
`names_in` lists what a pickle names before anything reads it, torch.load(weights_only=True) is
given a harmless `stand_in` under each of those names, and `as_checkpoint` turns what comes out into
plain data.
"""

import itertools
import logging
import pickletools
import re
import sys
from collections import OrderedDict
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import torch

from armature.checkpoint.plain import LEAVES, MAX_DEPTH, ROWS, mapped
from armature.errors import CheckpointError

KINDS = {  # what is taken over from a file that is not ours
    'arch': str,
    'epoch': int,
    'state_dict': dict,
    'optimizer': dict,
    'monitor_best': int | float,
    'config': dict,
}
MAX_VALUES = 3 * 10**6

# A call into these is refused when we do not know it, rather than quietly left undone. INERT are
# at home in pickled objects: calling their stand-ins loses nothing that a checkpoint needs.
LIBRARIES = sys.stdlib_module_names | {'torch', 'torchvision', 'numpy', 'commands', 'urllib2'}
INERT = (
    'argparse.Namespace',
    'builtins.object',
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
# torch builds these by itself, with or without a stand-in; no checkpoint needs them, and some take
# any amount of memory.
REFUSED = re.compile(
    r'(os|posix|nt|sys)\..*|builtins\.bytearray|torch\.(\w+\.)*\w*Tensor'
    r'|torch\._(tensor|utils)\.(?!_rebuild_(tensor|tensor_v2|tensor_v3|sparse_tensor'
    r'|parameter|parameter_with_state)$).*'
)
STANDS_FOR = 'stands for'  # the attribute of a stand-in with the name that the file gave it
logger = logging.getLogger(__name__)


# Before a pickle is read


def names_in(stream: BinaryIO) -> set[str]:
    """What the pickle that begins here names, as 'module.name'; `stream` is then behind it.

    Raises ValueError where tuples are nested so deeply that hashing them would crash Python. To
    see that, it follows how high each tuple on the pickle's stack is.
    """
    names, stack, memo = set(), [], {}  # None on the stack is a mark
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == 'GLOBAL':
            module, _, name = argument.partition(' ')
            module = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}.get(module, module)
            names.add(f'{module}.{name}')
        if opcode.name.endswith('PUT'):
            memo[argument] = stack[-1]
        elif opcode.name.endswith('GET'):
            stack.append(memo[argument])
        elif opcode.name == 'MARK':
            stack.append(None)
        else:
            taken = []
            for kind in reversed(opcode.stack_before):
                if kind is pickletools.markobject:
                    while (top := stack.pop()) is not None:
                        taken.append(top)
                elif kind is not pickletools.stackslice:  # what is above the mark
                    taken.append(stack.pop())
            height = 1 + max(taken, default=0) if 'TUPLE' in opcode.name else 0
            if height > MAX_DEPTH:
                raise ValueError('it is nested too deeply')
            stack += [height] * len(opcode.stack_after)
    for name in names:
        if REFUSED.fullmatch(name):
            raise CheckpointError(_asks_to_run(name))
    return names


def _asks_to_run(name):
    return f'it asks to run {name}, which no checkpoint needs. Nothing was run; do not trust it'


# While it is read


def stand_in(name: str) -> Any:
    """What torch.serialization.safe_globals is to give for a name that torch does not know.

    That is a class whose instances keep the entries and attributes that an object is given. They
    are ordered dicts because torch adds entries to nothing else.
    """
    known = KNOWN.get(name.replace('._core.', '.core.').replace('._local.', '.'))
    if known is not None:
        return known
    is_refused = name.partition('.')[0] in LIBRARIES and not name.startswith(INERT)

    class StandIn:
        def __new__(cls, *_):
            if is_refused:
                raise CheckpointError(_asks_to_run(name))
            instance = OrderedDict()
            instance.__dict__[STANDS_FOR] = name
            return instance

    return StandIn


class NumpyType:
    """Stands for numpy.dtype: numbers only."""

    def __init__(self, code: str, *_: Any):
        if not re.fullmatch(r'[<|=]?[fiubc]\d{1,2}', code):
            raise ValueError('an array of something else than numbers')
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if state[1] == '>':
            raise ValueError('its numbers are big-endian')


class NumpyArray:
    """Stands for numpy.ndarray; `tensor` is there once the pickle has given its content."""

    tensor = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, by_column, content = state
        array = np.frombuffer(content, kind.dtype).reshape(shape, order='F' if by_column else 'C')
        self.tensor = torch.from_numpy(array.copy())


def _numpy_number(kind, content):
    return np.frombuffer(content, kind.dtype, count=1)[0].item()


def _path(*parts):
    return str(PurePosixPath(*parts))


KNOWN = {  # under the names that numpy 1 and Python before 3.13 give them
    'builtins.bytes': lambda: b'',
    'builtins.dict': lambda *_: OrderedDict(),
    'collections.defaultdict': lambda *_: OrderedDict(),
    'collections.deque': lambda *_: [],
    'numpy.dtype': NumpyType,
    'numpy.ndarray': NumpyArray,
    'numpy.core.multiarray.scalar': _numpy_number,
    'numpy.core.multiarray._reconstruct': lambda *_: NumpyArray(),
    'pathlib.PosixPath': _path,
    'pathlib.PurePosixPath': _path,
    'pathlib.PureWindowsPath': _path,
    'pathlib.WindowsPath': _path,
}


# After it is read


def as_checkpoint(content: Any, n_bytes: int, is_ours: bool) -> dict:
    """`content` of a file of `n_bytes` with plain values only.

    What cannot be plain is left out with a warning. A bare state dict becomes a checkpoint. Of a
    file without 'format' the keys of the old template count, and names lose the prefixes of
    wrappers, unless it is ours: weights alone.
    """
    if not isinstance(content, dict):
        raise ValueError(f'it holds a {type(content).__name__}')
    if name := getattr(content, '__dict__', {}).get(STANDS_FOR):
        raise ValueError(f'it holds an object of class {name} as a whole; save its state_dict()')
    if content and all(
        isinstance(value, torch.Tensor) or str(name).endswith('_extra_state')
        for name, value in content.items()
    ):
        content = {'state_dict': content}
    state, convert = {}, _converter(n_bytes)
    for key in content if 'format' in content else content.keys() & KINDS:
        value = _config_of(content[key]) if key == 'config' else content[key]
        if value is None and key in KINDS:
            continue
        try:
            state[key] = mapped(value, convert)
        except TypeError as error:
            logger.warning(f'This is no plain data and left out: {key} (for {error})')
    weights = state.get('state_dict')
    if 'format' not in state and isinstance(weights, dict):
        # What DataParallel, DistributedDataParallel and torch.compile put before names
        for prefix in () if is_ours else ('module.', '_orig_mod.', 'module.'):
            if weights and all(type(name) is str and name.startswith(prefix) for name in weights):
                weights = {name.removeprefix(prefix): value for name, value in weights.items()}
        state['state_dict'] = weights
        if torch.is_tensor(best := state.get('monitor_best')):
            state['monitor_best'] = best.item()
    return state


def _converter(n_bytes):
    """For `mapped`: makes the values in a file of `n_bytes` plain; a TypeError names what has no
    plain form.

    It refuses few objects used so often that a copy would be huge, and tensors that the file
    cannot hold.
    """
    counted, storages = itertools.count(1), {}

    def convert(value, _):
        if next(counted) > MAX_VALUES:
            raise ValueError('it holds too many values')
        kind, name = type(value), getattr(value, '__dict__', {}).get(STANDS_FOR)
        if isinstance(value, torch.Tensor):
            for part in [value._indices(), value._values()] if value.is_sparse else [value]:
                storage = part.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
                if max(part.nbytes, sum(storages.values())) > n_bytes:
                    shape = list(value.shape)
                    raise ValueError(f'it describes a tensor {shape} that it does not hold')
            return value.detach()
        if kind is NumpyArray:
            return value.tensor
        if isinstance(value, dict) and (value or not name) or kind in LEAVES | ROWS:
            return value
        raise TypeError(name or getattr(value, '__name__', kind.__name__))

    return convert


def _config_of(value):
    """The dict inside a pickled ConfigParser, whatever its version called it."""
    attributes = getattr(value, '__dict__', {})
    if STANDS_FOR in attributes:
        for name in ('_config', 'config', '_ConfigParser__config'):
            if name in attributes:
                return attributes[name]
    return value
