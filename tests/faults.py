"""Fault campaigns with counts: python -m tests.faults [--flips 2000] [--truncations 500] ...

Each campaign damages files or ends processes many times and counts how often the promise held.
Without flags all run in full; with flags, those named. Trials run in processes forked from one that
has torch loaded. Exit code 1 unless all are n/n.
"""

import argparse
import ast
import ctypes
import io
import json
import logging
import os
import pickle
import pickletools
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import torch
from torch.distributed.tensor import Shard

from armature.checkpoint import files as checkpoint
from armature.config.keys import settings_of
from armature.errors import CheckpointError, UserError
from armature.run import saving
from armature.run.folder import claim
from armature.run.record import RunRecord

TRIAL_S = 60
MEMORY_BYTES = 256 * 2**20  # more than any file of these campaigns may cost


class Result(NamedTuple):
    """held of tried trials went as promised; `failures` describes the others; `note` says how the
    good ones went."""

    tried: int
    held: int
    failures: list[str]
    note: str = ''


def tally(outcomes: dict[str, str], good: set[str]) -> Result:
    """From {trial: outcome} to a Result."""
    failures = [
        f'{trial}: {outcome}'
        for trial, outcome in outcomes.items()
        if outcome.partition(':')[0] not in good
    ]
    counts = Counter(outcome.partition(':')[0] for outcome in outcomes.values())
    return Result(
        len(outcomes),
        len(outcomes) - len(failures),
        failures,
        ', '.join(f'{n} {name}' for name, n in counts.items()),
    )


def forked(trials: dict[str, Callable[[], str]]) -> dict[str, str]:
    """What each trial returns; 'traceback: ...', 'crash: signal' or 'memory: bytes' when it goes
    wrong. A crash ends no other."""
    names, outcomes = list(trials), {}
    while names:
        batch = names[:100]
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            torch.set_num_threads(1)  # the threads of a pool do not survive a fork
            for name in batch:
                os.write(writer, f'{measured(trials[name])[:500]!r}\n'.encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            results = [ast.literal_eval(line) for line in pipe]
        status = os.waitpid(pid, 0)[1]
        if len(results) < len(batch):
            ended_by = (
                signal.Signals(os.WTERMSIG(status)).name
                if os.WIFSIGNALED(status)
                else f'exit {status}'
            )
            results.append(f'crash: {ended_by}')
        outcomes |= zip(batch, results)
        names = names[len(results) :]
    return outcomes


def measured(trial: Callable[[], str]) -> str:
    signal.alarm(TRIAL_S)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        outcome = trial()
    except BaseException as error:
        outcome = f'traceback: {type(error).__name__}: {error}'
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return f'memory: {grown:,} bytes' if grown > MEMORY_BYTES else outcome


def loading(path: Path, expected: dict | None = None) -> str:
    """'refused', or when it loads 'equal' or 'loaded' (another content than expected)."""
    logging.disable()
    try:
        state = checkpoint.load(path)
    except CheckpointError:
        return 'refused'
    return 'equal' if expected is not None and same(state, expected) else 'loaded'


def same(a, b) -> bool:
    """Whether two states are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return (
            type(a) is type(b) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        )
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def small_state(epoch: int = 1) -> dict:
    """A state with something of everything, as a trainer writes it."""
    torch.manual_seed(epoch)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2)
    )
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    return checkpoint.to_plain(
        {
            'format': 1,
            'arch': 'Sequential',
            'epoch': epoch,
            'state_dict': model.state_dict(),
            'optimizer': optimizer.state_dict(),
            'monitor_best': 0.25,
            'config': {'name': 'small', 'arch': {'type': 'Sequential', 'args': {}}},
            'step': 10 * epoch,
            'samples': 0,
            'seed': 123,
            'parts': {'lr_scheduler': scheduler.state_dict()},
            'history': [{'epoch': 1, 'loss': 0.5}],
            'rng': {
                'torch': torch.get_rng_state()[:64],
                'python': random.Random(0).getstate()[1][:8],
            },
            'made_by': {'torch': '2.15'},
        }
    )


def saver_in(run: Path, is_sharded: bool = False, **settings) -> saving.Saver:
    """The Saver of a run with these settings; sharded, in this one process."""
    saver = saving.Saver(run, settings_of(settings))
    saver.is_sharded = is_sharded
    return saver


def state_in_rows(epoch: int) -> dict:
    """`small_state` whose weights say that the processes, one here, share their rows."""
    state = small_state(epoch)
    for tensor in state['state_dict'].values():
        tensor.placements = [Shard(0)]
    return state


# Damaged files


def flips(n: int, folder: Path) -> Result:
    """One flipped bit in a file of ours is noticed."""
    state, path = small_state(), folder / 'checkpoint-last.pth'
    checkpoint.save(state, path)
    return _flips(n, path, state, good={'refused'})


def foreign_flips(n: int, folder: Path) -> Result:
    """One flipped bit in a file that torch.save wrote without us is noticed, or harmless."""
    state, path = small_state(), folder / 'foreign.pth'
    torch.save(state, path)
    return _flips(n, path, state, good={'refused', 'equal'})


def _flips(n: int, path: Path, state: dict, good: set[str]) -> Result:
    whole, rng = path.read_bytes(), random.Random(0)

    def trial(bit: int) -> str:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        return loading(path, state)

    return tally(
        forked(
            {
                f'flip {index}: bit {bit}': partial(trial, bit)
                for index, bit in enumerate(rng.randrange(8 * len(whole)) for _ in range(n))
            }
        ),
        good,
    )


def truncations(n: int, folder: Path) -> Result:
    """A file cut off anywhere is noticed: ours, one of torch.save without us, the old formats."""
    rng, state, path = random.Random(1), small_state(), folder / 'checkpoint-last.pth'
    checkpoint.save(state, path)
    kinds = {'ours': path.read_bytes(), **sample_files(state)}

    def trial(kind: str, length: int) -> str:
        cut = folder / 'cut.pth'
        cut.write_bytes(kinds[kind][:length])
        return loading(cut)

    cuts = [(kind, rng.randrange(len(kinds[kind]))) for kind, _ in zip(cycle(kinds), range(n))]
    return tally(
        forked(
            {
                f'{index}: {kind} cut to {length}': partial(trial, kind, length)
                for index, (kind, length) in enumerate(cuts)
            }
        ),
        {'refused'},
    )


def sample_files(state: dict) -> dict[str, bytes]:
    """Good files of every form that torch.save has written."""
    old = {key: state[key] for key in ('arch', 'epoch', 'state_dict', 'optimizer')}
    old |= {'monitor_best': Number(), 'config': Config()}
    return {'zip': in_zip(state), 'old zip': in_zip(old), 'old legacy': in_legacy(old)}


class Config:
    """Pickles as the old template's ConfigParser did: an object of a class in a module of the
    project."""

    def __reduce__(self):
        return (
            Stranger('parse_config.ConfigParser'),
            (),
            {'_config': {'name': 'old'}, '_save_dir': Path('saved/models')},
        )


class Number:
    """Pickles as numpy's float64 did before it had another module name."""

    def __reduce__(self):
        return Stranger('numpy.core.multiarray.scalar'), (Type(), struct.pack('<d', 0.25))


class Type:
    def __reduce__(self):
        return Stranger('numpy.dtype'), ('f8', 0, 1), (3, '<', None, None, None, -1, -1, 0)


class Stranger:
    """Pickles as a reference to a function or class that need not exist here."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self):  # pickle wants to see a callable
        raise AssertionError


class Forger:
    """Stands in for the pickle module in torch.save: writes a `Stranger` as the name it carries."""

    dump, HIGHEST_PROTOCOL = staticmethod(pickle.dump), pickle.HIGHEST_PROTOCOL

    class Pickler(pickle._Pickler):
        def save(self, thing, save_persistent_id=True):
            if isinstance(thing, Stranger):
                self.write(pickle.GLOBAL + '{}\n{}\n'.format(*thing.name.rsplit('.', 1)).encode())
            else:
                super().save(thing, save_persistent_id)


def in_zip(state) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, pickle_module=Forger)
    return buffer.getvalue()


def in_legacy(state) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, pickle_module=Forger, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def rezipped(content: bytes, data_pkl: bytes) -> bytes:
    """The zip file `content` with another pickle in it, checksums and all in order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(buffer, 'w') as after:
        for info in before.infolist():
            after.writestr(
                zipfile.ZipInfo(info.filename),
                data_pkl if info.filename.endswith('/data.pkl') else before.read(info),
            )
    return buffer.getvalue()


def pickle_of(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read('archive/data.pkl')


def fuzz(n: int, folder: Path) -> Result:
    """A file with random changes loads or is refused: never another error, a crash of the
    interpreter or a flood of memory."""
    kinds = sample_files(small_state())

    def trial(index: int, kind: str) -> str:
        rng, content, path = random.Random(index), kinds[kind], folder / 'fuzzed.pth'
        if 'legacy' not in kind and rng.random() < 0.7:  # past the checksums, into the pickle
            content = rezipped(content, fuzzed(pickle_of(content), rng))
        else:
            content = fuzzed(content, rng)
        path.write_bytes(content)
        return loading(path)

    return tally(
        forked(
            {
                f'{index}: {kind}': partial(trial, index, kind)
                for index, kind in zip(range(n), cycle(kinds))
            }
        ),
        {'refused', 'loaded'},
    )


def fuzzed(content: bytes, rng: random.Random) -> bytes:
    """`content` with one to eight random edits, sparing no length field and no opcode."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        at, length = rng.randrange(len(content)), rng.choice((1, 1, 1, 2, 4, 8, 50))
        edit = rng.randrange(5)
        if edit == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif edit == 1:
            content[at : at + length] = rng.randbytes(length)
        elif edit == 2:
            content[at : at + length] = rng.choice((b'\xff', b'\0', b'\x7f')) * length
        elif edit == 3:
            del content[at : at + length]
        else:
            content[at:at] = (
                rng.choice(OPCODES) if rng.random() < 0.5 else content[at : at + length]
            )
    return bytes(content) or b'\0'


OPCODES = [opcode.code.encode('latin1') for opcode in pickletools.opcodes]


# Hostile pickles


def hostile(n: int, folder: Path) -> Result:
    """A pickle that would run code is refused, in each of torch's formats, alone and inside a good
    checkpoint, and runs nothing.

    n: at most so many of the files; 0 for all.
    """
    marker, path = folder / 'it-ran', folder / 'hostile.pth'

    def trial(content: bytes) -> str:
        path.write_bytes(content)
        modules = set(sys.modules)
        outcome = loading(path)
        imported = sorted(set(sys.modules) - modules)
        return (
            f'side effect: {marker.exists()} {imported}' if marker.exists() or imported else outcome
        )

    files = list(hostile_files(str(marker)).items())
    return tally(
        forked({name: partial(trial, content) for name, content in files[: n or None]}), {'refused'}
    )


def hostile_files(marker: str) -> dict[str, bytes]:
    """Each payload as all of a file and as one more entry of a good checkpoint, in the three
    formats that torch has had."""
    good = in_zip(small_state())
    entry = text('arch')
    files = {}
    for name, payload in payloads(marker).items():
        alone = b'\x80\x02' + payload + b'.'
        inside = pickle_of(good).replace(entry, text('extra') + payload + entry, 1)
        for place, data in (('alone', alone), ('inside', inside)):
            files[f'{name}, {place}, zip'] = rezipped(good, data)
            files[f'{name}, {place}, legacy'] = LEGACY_HEAD + data + pickle.dumps([], 2)
            files[f'{name}, {place}, tar'] = in_tar(data)
    return files


LEGACY_HEAD = b''.join(
    pickle.dumps(each, 2)
    for each in (
        0x1950A86A20F9469CFC6C,  # torch's magic number and version
        1001,
        {'protocol_version': 1001, 'little_endian': True},
    )
)


def in_tar(data: bytes) -> bytes:
    """The format of torch 0.1."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as archive:
        for name, content in (
            ('sys_info', data),
            ('pickle', data),
            ('storages', data),
            ('tensors', data),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def text(value: str) -> bytes:
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def call(function: str, *arguments: bytes) -> bytes:
    """GLOBAL, a tuple, REDUCE; arguments are pickled already."""
    return named(function) + b'(' + b''.join(arguments) + b'tR'


def named(function: str) -> bytes:
    return 'c{}\n{}\n'.format(*function.rsplit('.', 1)).encode()


def payloads(marker: str) -> dict[str, bytes]:
    """Pickle fragments that leave one value on the stack; with pickle.load each would touch
    `marker` or do as badly."""
    shell, code = f'touch {marker}', f'open({marker!r}, "w").close()'
    touch = b'](' + text('touch') + text(marker) + b'e'  # a list
    one_call = {
        'os.system': [text(shell)],
        'posix.system': [text(shell)],
        'nt.system': [text(shell)],
        'os.popen': [text(shell)],
        'os.execvp': [text('touch'), touch],
        'os.mkdir': [text(marker)],
        'os.unlink': [text(marker)],
        'os.kill': [b'K\x00', b'K\x09'],
        'os._exit': [b'K\x00'],
        'os.abort': [],
        'builtins.eval': [text(code)],
        'builtins.exec': [text(code)],
        'builtins.compile': [text(code), text('x'), text('exec')],
        'builtins.open': [text(marker), text('w')],
        'io.open': [text(marker), text('w')],
        '__builtin__.eval': [text(code)],
        '__builtin__.execfile': [text(marker)],
        'builtins.__import__': [text('antigravity')],
        'builtins.breakpoint': [],
        'builtins.input': [],
        'importlib.import_module': [text('antigravity')],
        'runpy.run_path': [text(marker)],
        'subprocess.Popen': [touch],
        'subprocess.call': [touch],
        'subprocess.check_output': [touch],
        'commands.getoutput': [text(shell)],
        'pty.spawn': [touch],
        'shutil.rmtree': [text(marker)],
        'shutil.copyfile': [text('/etc/hostname'), text(marker)],
        'pathlib.Path.touch': [text(marker)],
        'ctypes.CDLL': [text('libc.so.6')],
        'socket.create_connection': [text('localhost')],
        'webbrowser.open': [text('http://localhost')],
        'pickle.loads': [text('cos\nsystem\n.')],
        'marshal.loads': [text('x')],
        'code.interact': [],
        'timeit.timeit': [text(code)],
        'cProfile.run': [text(code)],
        'pdb.run': [text(code)],
        'asyncio.create_subprocess_shell': [text(shell)],
        'logging.config.listen': [],
        'functools.partial': [named('os.system'), text(shell)],
        'operator.methodcaller': [text('system'), text(shell)],
        'builtins.map': [named('os.system'), b'](' + text(shell) + b'e'],
        'types.FunctionType': [b'N', b'}'],
        'torch.load': [text(marker)],
        'torch.hub.load': [text('a/b'), text('c')],
        'torch.jit.load': [text(marker)],
        'torch.utils.cpp_extension.load': [text('x'), text(marker)],
        'numpy.load': [text(marker)],
        'numpy.fromfile': [text(marker)],
        'numpy.testing._private.utils.runstring': [text(code), b'}'],
        'builtins.bytearray': [b'\x8a\x06\0\0\0\0\0\x01'],
        'torch.FloatStorage': [b'J\0\0\0\x40'],  # terabytes of zeros
    }
    run, evaluate = named('os.system'), b'(' + text(shell) + b'tR'
    ran = run + evaluate
    tricks = {
        'a chain of getattr': call(
            'builtins.getattr', call('builtins.__import__', text('os')), text('system')
        )
        + evaluate,
        'a function from memory': run + b'q\xf0' + b'0h\xf0' + evaluate,
        'NEWOBJ': named('subprocess.Popen') + b'(' + touch + b't\x81',
        'NEWOBJ_EX': named('subprocess.Popen') + b'(' + touch + b't}\x92',
        'OBJ': b'(' + run + text(shell) + b'o',
        'INST': b'(' + text(shell) + b'ios\nsystem\n',
        'STACK_GLOBAL': text('os') + text('system') + b'\x93' + evaluate,
        'STACK_GLOBAL with a dotted name': text('builtins')
        + text('eval.__call__')
        + b'\x93('
        + text(code)
        + b'tR',
        'EXT1': b'\x82\x01' + evaluate,
        'EXT2': b'\x83\x01\x01' + evaluate,
        'EXT4': b'\x84\x01\0\0\0' + evaluate,
        'BUILD with __setstate__': run
        + b'}('
        + text('__setstate__')
        + run
        + b'ub'
        + text(shell)
        + b'b'
        + evaluate,
        'BUILD of a library object': named('threading.Thread')
        + b')\x81}('
        + text('_target')
        + run
        + b'ub',
        'a persistent id that is a call': ran + b'Q',
        'a persistent id of a module': b'(' + text('module') + ran + text('a') + text('b') + b'tQ',
        'a persistent id in text': f'P{shell}\n'.encode(),
        'a function as the type of a storage': b'('
        + text('storage')
        + run
        + text('0')
        + text('cpu')
        + b'K\x01tQ',
        'a call as the type of a storage': b'('
        + text('storage')
        + ran
        + text('0')
        + text('cpu')
        + b'K\x01tQ',
        'a hook of a tensor': call('collections.OrderedDict', b'](](' + text('x') + ran + b'ee'),
        'a call as the type of a number': call('numpy.core.multiarray.scalar', ran, text('x')),
        'a number of type object': call(
            'numpy.core.multiarray.scalar', call('numpy.dtype', text('O8')), text('x' * 8)
        ),
        'a container that is extended': call('collections.deque') + b'(' + ran + b'e',
        'a type as a flag of a tensor': tensor(numel=32, size=100, flag=named('torch.uint8')),
        'a defaultdict': call('collections.defaultdict', run) + ran + b'0',
        'a wild place in memory': b'Nr\xff\xff\xff\x7f' + ran,
        'a text of 4 GB': b'X\xff\xff\xff\xff',
        'bytes of a petabyte': b'\x8e' + struct.pack('<Q', 2**50),
        'a bytearray of a petabyte': b'\x96' + struct.pack('<Q', 2**50),
        'a frame of a petabyte': b'\x95' + struct.pack('<Q', 2**50),
        'a tensor of 10 TB': tensor(numel=10**13 // 4, size=10**13 // 4),
        'a tensor of 10 TB in one number': tensor(numel=1, size=10**13, stride=0),
        'a tensor beyond its storage': tensor(numel=32, size=33),
        'a tensor before its storage': tensor(numel=32, size=2, stride=-1),
        'a tensor with a wild offset': tensor(numel=32, size=1, offset=2**40),
        'keys nested deeply': b'})' + b'\x85' * 200_000 + b'Ns',
        'lists nested deeply': b']' * 200_000 + b'a' * 199_999,
        'a list that contains itself': b']q\xf1h\xf1a',
        'a billion laughs': b']q\xf2'
        + b''.join(b'](' + b'h\xf2' * 10 + b'eq\xf2' for _ in range(30)),
        'no object': b'0',
        'a mark without end': b'(' * 1000,
    }
    return {name: call(name, *arguments) for name, arguments in one_call.items()} | tricks


def tensor(numel: int, size: int, stride: int = 1, offset: int = 0, flag: bytes = b'\x89') -> bytes:
    def whole(number: int) -> bytes:
        return b'\x8a\x08' + struct.pack('<q', number)

    storage = (
        b'('
        + text('storage')
        + named('torch.FloatStorage')
        + text('0')
        + text('cpu')
        + whole(numel)
        + b'tQ'
    )
    return call(
        'torch._utils._rebuild_tensor_v2',
        storage,
        whole(offset),
        whole(size) + b'\x85',
        whole(stride) + b'\x85',
        flag,
        call('collections.OrderedDict'),
    )


# Processes that die


def save_crashes(n: int, folder: Path) -> Result:
    """Killed at any system call of a save: every file loads, each an old or a new whole state, and
    the next save cleans up.

    n: at most so many of the calls, spread evenly; 0 for all.
    """
    old, new, after = small_state(1), small_state(2), small_state(3)
    names = ('checkpoint-last.pth', 'model_best.pth', 'checkpoint-epoch2.pth')

    def prepare(run: Path) -> None:
        checkpoint.save(old, *(run / name for name in (*names[:2], 'checkpoint-epoch1.pth')))

    def check(run: Path) -> str:
        found = {path.name: checkpoint.load(path) for path in run.glob('*.pth')}
        wrong = [
            name for name, state in found.items() if not same(state, old) and not same(state, new)
        ]
        newest = checkpoint.newest(run)[0]
        checkpoint.save(after, *(run / name for name in names))
        left = [path.name for path in run.iterdir() if path.suffix != '.pth']
        damaged = [
            path.name
            for path in run.glob('*.pth')
            if path.name in names and not same(checkpoint.load(path), after)
        ]
        if (
            wrong
            or left
            or damaged
            or newest is None
            or not {*names[:2], 'checkpoint-epoch1.pth'} <= found.keys()
        ):
            return f'broken: {wrong} {left} {damaged} {newest} {sorted(found)}'
        return 'new' if same(found['checkpoint-last.pth'], new) else 'old'

    return _crashes(
        n, folder, prepare, lambda run: checkpoint.save(new, *(run / name for name in names)), check
    )


def prune_crashes(n: int, folder: Path) -> Result:
    """Killed at any system call of a prune: what is to stay is there, what is there loads, and the
    next prune ends the work."""
    states = {epoch: small_state(epoch) for epoch in range(1, 6)}

    def prepare(run: Path) -> None:
        for epoch, state in states.items():
            checkpoint.save(
                state,
                run / f'checkpoint-epoch{epoch}.pth',
                *[run / 'model_best.pth'] * (epoch == 1),
            )

    def check(run: Path) -> str:
        found = {path.name: checkpoint.load(path) for path in run.glob('*.pth')}
        kept = {'model_best.pth', 'checkpoint-epoch4.pth', 'checkpoint-epoch5.pth'}
        saving.prune(run, keep=2)
        left = {path.name for path in run.iterdir()}
        if not kept <= found.keys() or left != kept:
            return f'broken: {sorted(found)} {sorted(left)}'
        return f'{len(found)} files'

    return _crashes(n, folder, prepare, lambda run: saving.prune(run, keep=2), check)


def going_back_crashes(n: int, folder: Path) -> Result:
    """Killed at any system call of going back: what was there is untouched, the new run holds
    only whole files, and going back again works."""

    def prepare(run: Path) -> None:
        saver = saver_in(run)
        for epoch in range(1, 5):
            best = [checkpoint.BEST] * (epoch == 2)
            saver.write(
                small_state(epoch), [checkpoint.LAST, f'checkpoint-epoch{epoch}.pth', *best]
            )
        for number in (1, 2):
            (run / f'new{number}').mkdir()

    def go_back(run: Path, new: str = 'new1') -> None:
        path = run / 'checkpoint-epoch3.pth'
        saver = saver_in(run / new)
        saver.go_on_from(checkpoint.load(path), path)
        saver.bring_best()
        saver.write(small_state(4), [checkpoint.LAST])

    def check(run: Path) -> str:
        old = [checkpoint.load(path).get('epoch') for path in run.glob('*.pth')]
        new = {path.name: checkpoint.load(path) for path in (run / 'new1').glob('*.pth')}
        go_back(run, 'new2')
        again = {path.name for path in (run / 'new2').glob('*.pth')}
        if len(old) != 7 or again != {checkpoint.LAST, checkpoint.BEST, checkpoint.WEIGHTS}:
            return f'broken: {old} {sorted(new)} {sorted(again)}'
        return f'{3 + len(new)} files'

    return _crashes(n, folder, prepare, go_back, check)


def sharded_crashes(n: int, folder: Path) -> Result:
    """Killed at any system call of a sharded save and its prune: every head has all of its
    parts."""

    def write(run: Path, epoch: int) -> None:
        saver = saver_in(run, is_sharded=True, keep_last=1)
        saver.write(state_in_rows(epoch), [checkpoint.LAST, f'checkpoint-epoch{epoch}.pth'])

    def check(run: Path) -> str:
        states = [checkpoint.load(path) for path in run.glob('*.pth')]
        right = all(
            same(state['state_dict'], small_state(state['epoch'])['state_dict']) for state in states
        )
        newest = checkpoint.load(checkpoint.newest(run)[0])['epoch']
        write(run, 3)
        n_folders = len(list(run.glob('shards-*')))
        if not right or n_folders != 1:
            return f'broken: {right} {n_folders} folders'
        return 'new' if newest == 2 else 'old'

    return _crashes(n, folder, lambda run: write(run, 1), lambda run: write(run, 2), check)


def parts(n: int, folder: Path) -> Result:
    """A sharded checkpoint whose parts are damaged or missing is refused, and passed over."""
    rng, outcomes = random.Random(2), {}

    def damaged(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)

    def unlisted(path: Path) -> None:
        head = checkpoint.load_head(run / checkpoint.LAST)
        head['shards']['n_parts'] -= 1
        path.unlink()
        checkpoint.save(head, run / checkpoint.LAST)

    kinds = cycle(
        (Path.unlink, damaged, unlisted, lambda path: os.truncate(path, rng.choice((0, 3))))
    )
    for trial, damage in zip(range(n), kinds):
        run = folder / str(trial)
        run.mkdir()
        saver = saver_in(run, is_sharded=True)
        saver.write(state_in_rows(1), ['checkpoint-epoch1.pth'])
        saver.write(state_in_rows(2), [checkpoint.LAST])
        place = run / checkpoint.load_head(run / checkpoint.LAST)['shards']['folder']
        victim = rng.choice(sorted(place.iterdir()))
        damage(victim)
        outcome = loading(run / checkpoint.LAST)
        newest = checkpoint.newest(run)[0]
        logging.disable(logging.NOTSET)
        passed_over = newest is not None and newest.name == 'checkpoint-epoch1.pth'
        outcomes[f'{trial}: {victim.name}'] = outcome if passed_over else f'chosen: {newest}'
        shutil.rmtree(run)
    return tally(outcomes, {'refused'})


def full_disks(n: int, folder: Path) -> Result:
    """Where a file may have so many bytes and no more, a run refuses to begin in one line or goes
    on with a warning; what was there before stays whole."""

    def trial(run: Path, n_bytes: int) -> str:
        logging.disable()
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
        run_folder = RunRecord(run)
        try:
            with run_folder.training():
                run_folder.rows = {1: {'epoch': 1, 'loss': 0.5}}
                run_folder.begin({'name': 'after'}, command=['x' * 99])
                for epoch in range(2, 40):
                    run_folder.add_row({'epoch': epoch, 'loss': 0.5})
                saver = saver_in(run, on_save_error='warn')
                saved = saver.write(small_state(2), [checkpoint.LAST])
                run_folder.note(last={'epoch': 2})
            outcome = 'saved' if saved else 'warned'
        except UserError as error:
            outcome = 'refused' if 'cannot be written: File too large' in str(error) else str(error)
        json.loads((run / 'config.json').read_text())
        json.loads((run / 'run.json').read_text())
        checkpoint.load(run / checkpoint.LAST)
        left = [path.name for path in run.glob('.*.tmp')]
        return f'left over: {left}' if left else outcome

    trials = {}
    for index in range(n):
        run = claim(folder, f'run{index}')
        (run / 'config.json').write_text('{"name": "before"}')
        checkpoint.save(small_state(1), run / checkpoint.LAST)
        n_bytes = int(1.35**index)
        trials[f'{index}: {n_bytes} bytes'] = partial(trial, run, n_bytes)
    return tally(forked(trials), {'refused', 'warned', 'saved'})


def _crashes(n: int, folder: Path, prepare: Callable, act: Callable, check: Callable) -> Result:
    warned = []
    checkpoint.logger.addHandler(handler := logging.Handler())
    handler.emit = lambda record: warned.append(record.getMessage())
    outcomes, stops = {}, _killed_at(None, prepare, act, folder / 'count')
    every = max(1, stops // n) if n else 1
    for stop in range(1, stops + 1, every):
        run = folder / str(stop)
        reached = _killed_at(stop, prepare, act, run)
        try:
            outcome = check(run) if reached == stop else 'over before'
        except CheckpointError as error:
            outcome = f'broken: {error}'
        outcomes[f'stop {stop} of {stops}'] = f'warned: {warned}' if warned else outcome
        shutil.rmtree(run)
    checkpoint.logger.removeHandler(handler)
    return tally(outcomes, {'old', 'new', *(f'{k} files' for k in range(3, 7)), 'over before'})


def _killed_at(stop: int | None, prepare: Callable, act: Callable, run: Path) -> int:
    """Run `act(run)` in a fork that is killed at its `stop`-th entry to or return from a system
    call; how many it came to."""
    run.mkdir()
    prepare(run)
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    trace_me, next_call = 0, 24
    pid = os.fork()
    if pid == 0:
        ptrace(trace_me, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        act(run)
        os._exit(0)
    status, n_stops = os.waitpid(pid, 0)[1], 0
    while os.WIFSTOPPED(status):
        if n_stops == stop:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            break
        if ptrace(next_call, pid, None, None):
            raise OSError(ctypes.get_errno(), 'no tracing of processes here')
        status, n_stops = os.waitpid(pid, 0)[1], n_stops + 1
    return n_stops


def kills(n: int, folder: Path) -> Result:
    """A run killed at a random moment and resumed equals, bit for bit, one that was never
    stopped."""
    from tests import faults_runs

    return tally(faults_runs.kills(n, folder), {'equal'})


def every_step(n: int, folder: Path) -> Result:
    """A run of n steps resumed after each of them, with 0 and 2 workers, equals, bit for bit, one
    that was never stopped."""
    from tests import faults_runs

    return tally(faults_runs.every_step(n, folder), {'equal'})


def mutations(n: int, folder: Path) -> Result:
    """Every saved piece matters: a run resumed without it is noticed to differ."""
    from tests import faults_runs

    return tally(faults_runs.mutations(n, folder), {'noticed'})


CAMPAIGNS = {
    'kills': (kills, 200),
    'every-step': (every_step, 48),
    'mutations': (mutations, 0),
    'flips': (flips, 2000),
    'foreign-flips': (foreign_flips, 2000),
    'truncations': (truncations, 500),
    'hostile': (hostile, 0),
    'fuzz': (fuzz, 2000),
    'save-crashes': (save_crashes, 0),
    'prune-crashes': (prune_crashes, 0),
    'going-back-crashes': (going_back_crashes, 0),
    'sharded-crashes': (sharded_crashes, 0),
    'parts': (parts, 200),
    'full-disks': (full_disks, 40),
}


def run_campaigns(
    campaigns: dict[str, tuple],
    description: str,
    prepare: Callable[[Path], None] = lambda folder: None,
) -> int:
    """Run the campaigns that the command line names with a count, or all in full; the exit code: 1
    unless all are n/n.

    campaigns: {flag: (campaign, full count; 0 means all there are)}. prepare: called with each
    campaign's folder before it.
    """
    parser = argparse.ArgumentParser(description=description.partition('\n')[0])
    for flag, (campaign, full) in campaigns.items():
        promise = ' '.join(campaign.__doc__.partition('\n\n')[0].split())
        parser.add_argument(f'--{flag}', type=int, metavar='N', help=f'{promise} ({full or "all"})')
    given = vars(parser.parse_args())
    chosen = {flag: given[flag.replace('-', '_')] for flag in campaigns}
    if all(count is None for count in chosen.values()):
        chosen = {flag: full for flag, (_, full) in campaigns.items()}
    failed = False
    for flag, count in chosen.items():
        if count is None:
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder))
            result = campaigns[flag][0](count, Path(folder))
        print(
            f'{flag:18} {result.held:5} / {result.tried:<5} '
            f'{time.monotonic() - started:6.1f} s   {result.note}',
            flush=True,
        )
        for failure in result.failures[:10]:
            print(f'    {failure}')
        failed |= result.held < result.tried
    return int(failed)


def warm_up(folder: Path) -> None:
    """Load a file of each form once, so that forks have every module that loading imports."""
    good = in_zip(small_state())
    for content in (*sample_files(small_state()).values(), rezipped(good, pickle_of(good))):
        (folder / 'warm.pth').write_bytes(content)
        checkpoint.load(folder / 'warm.pth')
        (folder / 'warm.pth').unlink()


if __name__ == '__main__':
    torch.set_num_threads(
        1
    )  # before any operation, so that no pool of threads is there when we fork
    sys.exit(run_campaigns(CAMPAIGNS, __doc__, warm_up))
