"""The only file that knows about processes. In a single process every function does nothing, or says so.

The processes are started by torchrun, or by `launch` for `-d 0,1`, and talk through torch.distributed: NCCL between GPUs, gloo on
the CPU. All of them run the same script, take a share of each batch and keep the same weights; the main one (rank 0) writes.
"""
import atexit
import functools
import inspect
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DistributedSampler

from utils.batch import length
from utils.compare import first_difference
from utils.errors import ConfigError, DataError, UserError

VARIABLES = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')  # what torchrun tells each process
REPORT_S = 3.0       # how long processes wait for each other's last words
WATCH_S = 1.0        # how often a process looks after the others, and after the one that started it
START_S = 30.0       # how long torchrun may take to answer
MEET_S = 60.0        # how much later one process may start than another, at least
LEAVE_S = 20.0       # how long a process may go on when another has failed; torchrun ends it after 30
LAST_STEP_S = 300.0  # for the step in progress and a checkpoint, when all are to stop
_exit_code = 1       # of a process that has joined, until it has left as it should
_store = None        # a few words that all processes can read, also when no collective works any more
_names = []          # machine and pid of each process
_agents = []         # what each process was started by
_failed_at = math.inf  # when this process saw that another has failed and said so
_is_leaving = _is_agreed = False


# Who am I?

def is_started() -> bool:
    """Whether this is one of several processes of a job, also before it has joined them."""
    return 'RANK' in os.environ or 'WORLD_SIZE' in os.environ


def is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if is_joined() else _number('RANK', 0)


def n_processes() -> int:
    return dist.get_world_size() if is_joined() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and reports."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process on its machine, from 0."""
    return _number('LOCAL_RANK', 0)


def n_local() -> int:
    """The processes of the job on this machine."""
    return _number('LOCAL_WORLD_SIZE', 1)


def _number(variable: str, otherwise: int) -> int:
    text = os.environ.get(variable) or str(otherwise)
    if not text.isdecimal():
        raise ConfigError(f'the variable {variable} is {text!r}: torchrun sets it to a whole number')
    return int(text)


def is_first_here() -> bool:
    """Whether this is the first process of the job on its machine: its voice, before the processes have met."""
    return (os.environ.get('LOCAL_RANK') or '0') == '0'


def agent() -> str:
    """Names the torchrun that has started this process, and starts it again when it fails; empty without one."""
    return os.environ.get('TORCHELASTIC_ERROR_FILE', '').partition('/attempt_')[0]


def agents() -> list[str]:
    """Those of all processes: one on each machine."""
    return sorted(set(_agents) - {''})


# Starting, joining, leaving

def launch(n: int) -> None:
    """Run this command in `n` processes on this machine and leave with their exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run
    os.environ.setdefault('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', f'{LAST_STEP_S:.0f}')
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // n)))
    try:
        run(parse_args(['--standalone', f'--nproc-per-node={n}', '--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1', *sys.argv]))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode < 0:
            sys.stderr.write(f'process {failure.local_rank} of {n} was ended by signal {-failure.exitcode}\n')
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    except SignalException as error:
        sys.exit(143 if error.sigval == signal.SIGUSR1 else 128 + error.sigval)
    sys.exit(0)


@contextmanager
def processes(n: int, timeout_s: float = 600, on_cpu: bool = False):
    """Inside, this process is one of those that torchrun started, and leaves with them. Without torchrun `n` of them are started here.

    timeout_s: how long one waits for the others before it takes them for lost. on_cpu: use no GPU.
    """
    if not is_started() and n > 1:
        launch(n)
    if not is_started():
        yield
        return
    try:
        _join(timeout_s, on_cpu)
        yield
        _leave()
    except KeyboardInterrupt:
        raise
    except UserError:
        _tell('over')
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and 'find_unused_parameters' in str(error):
            _tell('over')
            raise ConfigError('some parameters take no part in the loss, and the processes wait for their gradients: say "distributed": '
                              '{"find_unused_parameters": true}, or freeze them') from error
        _report(error)
        leave_at_once(1)
    except SystemExit as stop:
        if not _is_agreed:
            _leave_alone(stop.code)
        _leave(stop.code)
        raise


def _join(timeout_s: float, on_cpu: bool) -> None:
    global _store, _names, _agents
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing:
        raise ConfigError(f'{", ".join(missing)} {"is" if len(missing) == 1 else "are"} not set, and other variables of torchrun are: '
                          f'start with torchrun --nproc-per-node N {" ".join(sys.argv)}, or unset RANK and WORLD_SIZE to train in one '
                          'process')
    n, numbers = _number('WORLD_SIZE', 1), [_number(name, 0) for name in ('RANK', 'LOCAL_RANK', 'MASTER_PORT')]
    if numbers[0] >= n:
        raise ConfigError(f'RANK is {numbers[0]} and WORLD_SIZE {n}: processes are counted from 0')
    use_cuda = torch.cuda.is_available() and not on_cpu
    if use_cuda and n_local() > torch.cuda.device_count():
        raise ConfigError(f'{n_local()} processes are started on this machine, which has {torch.cuda.device_count()} GPUs: start as many '
                          'processes as GPUs, or say -d cpu')
    if use_cuda:
        torch.cuda.set_device(local_rank())
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    timeout = timedelta(seconds=timeout_s)
    store, word, number, n = _meet(max(timeout, timedelta(seconds=MEET_S)))
    _store = dist.PrefixStore(f'armature/{word}', store)
    dist.init_process_group('cpu:gloo,cuda:nccl' if use_cuda else 'gloo', store=dist.PrefixStore(f'torch/{word}', store),
                            rank=number, world_size=n, timeout=timeout)
    atexit.register(_end)  # early, so that it comes last
    # until all have met, one that leaves would take the others for late
    _names, _agents = zip(*gather((f'{socket.gethostname()}, pid {os.getpid()}', agent())))
    _store.set_timeout(timedelta(seconds=REPORT_S))


def _meet(timeout: timedelta) -> tuple[Any, str, int, int]:
    """(store, word, rank, processes): a store that all processes can read, and a word that no earlier attempt has used there.

    torchrun keeps one store for all attempts, and what the last one has left would be taken for news. So each process writes a word it
    has just made up, and the main one answers it with the word for all.
    """
    from torch.distributed.rendezvous import rendezvous
    mine, me, n = uuid.uuid4().hex, int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])
    try:
        # torchrun is there before its processes are: when it is silent, it was killed meanwhile
        patience = min(timeout, timedelta(seconds=START_S)) if _is_store_of_torchrun() else timeout
        store, *_ = next(rendezvous('env://', timeout=patience))
        store.set_timeout(timeout)
        if me != 0:
            store.set(f'hello/{me}', mine)
            word = store.get(f'answer/{mine}').decode()
            store.set(f'{word}/{me}', '')
            return store, word, me, n
        deadline, missing = time.monotonic() + timeout.total_seconds(), set(range(1, n))
        while missing and time.monotonic() < deadline:
            for each in [each for each in missing if store.check([f'hello/{each}'])]:
                store.set(f'answer/{store.get(f"hello/{each}").decode()}', mine)
            missing = {each for each in missing if not store.check([f'{mine}/{each}'])}
            time.sleep(0.02)
    except (RuntimeError, ValueError) as error:
        raise UserError(f'the processes do not find each other at {os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}: '
                        f'{str(error).splitlines()[0]}') from error
    if missing:
        raise UserError(f'process {" and ".join(map(str, sorted(missing)))} of {n} has not come within {timeout.total_seconds():g} s '
                        '(distributed.timeout_s): start all of them, with the same command')
    return store, mine, me, n


def _is_store_of_torchrun() -> bool:
    """Else the main process keeps it, and takes it along when it leaves."""
    return os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'


def _leave(exit_code: int = 0) -> None:
    global _exit_code
    _tell(f'ended/{rank()}')
    dist.barrier()  # one that is gone while others still talk aborts them
    _last_look()
    dist.destroy_process_group()
    _exit_code = exit_code


def exit_together(exit_code: int) -> None:
    """Leave with an exit code that all processes have agreed on."""
    global _is_agreed
    _is_agreed = True
    sys.exit(exit_code)


def _leave_alone(code: int | str | None) -> None:
    """Leave by a sys.exit() of which the others may not know: when they do not come, it is a failure."""
    _tell(f'ended/{rank()}')
    all_ended = _wait_for('ended', REPORT_S)
    if not all_ended and _tell('over'):
        sys.stderr.write(f'error: {_name(rank())} left by sys.exit({code!r}), and the others did not\n')
    elif isinstance(code, str) and is_first_to_say(code):
        sys.stderr.write(f'{code}\n')
    exit_code = code if isinstance(code, int) else int(code is not None)
    leave_at_once(exit_code if all_ended else exit_code or 1)


def _end() -> None:
    """The end of the process, when everybody else has had a last word: gloo's threads may abort an interpreter that winds down."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_exit_code or hasattr(sys, 'last_value'))  # that is there after a traceback


def leave_at_once(exit_code: int) -> None:
    """Leave, without waiting for other processes to come to the same place."""
    global _exit_code
    if not is_joined():
        sys.exit(exit_code)
    _exit_code = exit_code
    _last_look()
    _end()


def _last_look() -> None:
    """When the main process keeps the store, let the others look into it once more."""
    global _is_leaving
    if not _is_store_of_torchrun() and _failed_at == math.inf:
        _tell(f'out/{rank()}')
        if is_main():
            _wait_for('out', REPORT_S)
    _is_leaving = True


def _watch(parent: int) -> None:
    """In a thread: end this process when nobody else would: its torchrun is gone, or the others have given it up."""
    global _failed_at
    while not _is_leaving:
        time.sleep(WATCH_S)
        if agent() and os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(LAST_STEP_S)
            os._exit(1)
        if _is_set('trouble'):
            _tell(f'here/{rank()}')
        if _is_set('over'):
            _failed_at = min(_failed_at, time.monotonic())
        if _is_set(f'lost/{rank()}') or time.monotonic() > _failed_at + LEAVE_S:
            place = ''.join(traceback.format_stack(sys._current_frames()[threading.main_thread().ident]))
            sys.stderr.write(f'{_name(rank())} has not come to an end with the others. It is here:\n{place}')
            sys.stderr.flush()
            _tell(f'out/{rank()}')
            os._exit(1)


# When something fails

def is_first_to_say(message: str) -> bool:
    """Whether no other process has said this yet: what all of them find wrong is shown once."""
    if _store is None:
        return is_first_here() or not is_started()
    try:
        return _store.compare_set(f'said/{zlib.crc32(message.encode())}', '', str(rank())) == str(rank()).encode()
    except RuntimeError:  # the store is gone
        return True


def _report(error: Exception) -> None:
    """Say what has failed and in which process: the one whose error it is, or, when it is silent, the first of the others."""
    for number in (signal.SIGTERM, signal.SIGINT):  # torchrun has noticed too: this takes only a moment
        signal.signal(number, signal.SIG_IGN)
    timer = threading.Timer(4 * REPORT_S, os._exit, [1])  # the store may be on a machine that is away
    timer.daemon = True
    timer.start()
    lost_touch = isinstance(error, dist.DistError) or type(error) is RuntimeError and any(
        word in str(error) for word in ('gloo', 'Gloo', 'NCCL'))
    if not lost_touch:
        is_first = is_first_to_say('a failure')
        _tell('over')
        if is_first_to_say(repr(error)):
            said = ''.join(traceback.format_exception(error)) if is_first else f'{type(error).__name__}: {error}\n'
            sys.stderr.write(f'error: {_name(rank())} failed{":" if is_first else " too:"}\n{said}')
        return
    if _failed_at < math.inf:
        return
    _tell('trouble', f'here/{rank()}', f'met/{rank()}')
    others, deadline = range(n_processes()), time.monotonic() + REPORT_S
    while _store is not None and time.monotonic() < deadline:
        if _is_set('over'):
            return
        time.sleep(0.1)
    gone = [each for each in others if not _is_set(f'here/{each}')]
    ended = [each for each in others if _is_set(f'ended/{each}')]
    silent = [each for each in others if not _is_set(f'met/{each}')]
    if _store is None:
        text = (f'{_name(rank())} has lost touch with {_name(0)} or its torchrun, through which all find each other: it was killed, has '
                'left, or its machine is away')
    elif gone:
        text = f'{_name(*gone)} does not answer any more: it was killed, has left, or is stuck, or its machine is away'
    elif silent:
        text = f'{_name(*silent)} hangs: the others have waited for it (distributed.timeout_s)'
        _tell(*(f'lost/{each}' for each in silent))
    elif ended:
        text = f'{_name(*ended)} came to its end, and the others did not'
    else:
        text = f'the processes cannot talk to each other: {error}'
    if _store is None or is_first_to_say(text):
        sys.stderr.write(f'error: {text}\n')
    _tell('over')


def _name(*ranks: int) -> str:
    """Such as 'process 1 of 2 (a-machine, pid 123)'."""
    places = f' ({"; ".join(_names[each] for each in ranks)})' if _names else ''
    return f'process {" and ".join(map(str, ranks))} of {os.environ["WORLD_SIZE"]}{places}'


def _tell(*names: str) -> bool:
    """Set `names` for all processes to see; whether that could be done."""
    return all(_ask(lambda store, name=name: store.set(name, '') or True) for name in names)


def _wait_for(word: str, limit_s: float) -> bool:
    """Whether all processes have told `word`, for which they have so many seconds."""
    deadline = time.monotonic() + limit_s
    while not (all_have := all(_is_set(f'{word}/{each}') for each in range(n_processes()))) and time.monotonic() < deadline:
        time.sleep(0.05)
    return all_have


def _is_set(name: str) -> bool:
    return _ask(lambda store: store.check([name]))


def _ask(question: Callable[[Any], bool]) -> bool:
    """The store's answer; False when there is none yet, and for good when it is silent once."""
    global _store
    try:
        return _store is not None and not _is_leaving and question(_store)
    except RuntimeError:
        _store = None
        return False


# Talking

def gather(value: Any) -> list[Any]:
    """What each process gave, by rank, in all of them."""
    if not is_joined():
        return [value]
    values = [None] * n_processes()
    dist.all_gather_object(values, value)
    return values


def refuse_differences(value: Any, what: str) -> None:
    """A ConfigError when the processes do not all have the same `value`."""
    first, *others = gather(value)
    for number, other in enumerate(others, 1):
        if different := first_difference(first, other):
            raise ConfigError(f'{what}: {different} in process {number} is another than in process 0. Start all processes with the same '
                              'command, on the same files')


def on_main(action: Callable, *args: Any) -> Any:
    """What `action(*args)` returns in the main process, in all of them; a UserError there is raised in all."""
    if not is_joined():
        return action(*args)
    result, error = None, None
    if is_main():
        try:
            result = action(*args)
        except UserError as caught:
            error = caught
    said = [result, error]
    dist.broadcast_object_list(said, src=0, device=torch.device('cpu'))
    if said[1] is not None:
        raise said[1]
    return said[0]


def sums(numbers: list[float]) -> list[float]:
    """The sum over the processes of each number, in float64."""
    if not is_joined() or not numbers:
        return numbers
    total = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def gather_tensors(tensor: torch.Tensor, group: Any = None) -> list[torch.Tensor]:
    """The tensor of each process, of whatever size: how torchmetrics gathers. Those without elements are left out, as long as some have."""
    found = [each.to(tensor.device) for each in gather(tensor.cpu())]
    return [each for each in found if each.numel()] or found[:1]


@contextmanager
def first_on_machine():
    """The first process of each machine goes through the body while the others wait, such as to download."""
    if is_joined() and not is_first_here():
        dist.barrier()
    try:
        yield
    finally:
        if is_joined() and is_first_here():
            dist.barrier()


@functools.cache
def quiet_group() -> Any:
    """A second group of all processes, for a thread that must not mix its words with the training's."""
    return dist.new_group(backend='gloo')


class Exchange:
    """A few whole numbers from each process to all, under way while the caller computes."""

    def start(self, *numbers: int) -> None:
        self._numbers = torch.zeros(n_processes(), len(numbers), dtype=torch.int64)
        self._numbers[rank()] = torch.tensor(numbers)
        self._work = dist.all_reduce(self._numbers, async_op=True)

    def result(self) -> list[list[int]]:
        """(processes, numbers)"""
        self._work.wait()
        return self._numbers.tolist()


# Sharing the data

def share(indices: torch.Tensor) -> torch.Tensor:
    """The samples of a batch that are this process's: every n-th. When there are none, one of another's, to keep step."""
    if n_processes() == 1:
        return indices
    mine = indices[rank()::n_processes()]
    return mine if len(mine) else indices[:1]


def is_borrowed(n_samples: int) -> bool:
    """Whether the share of a batch of `n_samples` is another's."""
    return rank() >= n_samples and n_processes() > 1


def in_step(batches: Iterable[Any], loader: Any, weighed: Iterable[Any] = (), wishes: Callable[[], tuple] = tuple,
            obey: Callable[..., None] = lambda *_: None) -> Iterator[Any]:
    """A batch for each step that the processes take together: this process's share of it.

    Before each, `weight` of the objects in `weighed` becomes what the mean over the share counts for in the mean over processes: 1 when
    all have the same number of samples, 0 when the share is borrowed; `largest_share` is the size of the largest. After each, `obey`
    is called with the largest of each of `wishes()` (numbers) that any process had, in several processes with those from the beginning
    of the step.
    """
    if not is_joined():
        for batch in batches:
            yield batch
            obey(*wishes())
        return
    if n_processes() > 1 and not hasattr(loader, 'is_borrowed') and not isinstance(getattr(loader, 'sampler', None), DistributedSampler):
        raise ConfigError(f'{n_processes()} processes train, and a {type(loader).__name__} gives each of them all of the data: make it a '
                          'BaseDataLoader, or give it a DistributedSampler')
    batches, exchange, batch = iter(batches), Exchange(), None

    def following():
        upcoming = next(batches, None)
        n_samples = 0 if upcoming is None or getattr(loader, 'is_borrowed', False) else length(upcoming)
        exchange.start(upcoming is not None, n_samples, *map(int, wishes()))
        return upcoming

    upcoming = following()
    while True:
        said = exchange.result()
        have_batches, n_samples, *wished = zip(*said)
        obey(*map(max, wished))
        if not any(have_batches):
            for each in weighed:
                each.weight = 1.0
            return
        if not any(n_samples):
            raise DataError('a batch holds no tensors, so that nobody can tell how many samples each process has of it')
        batch = batch if upcoming is None else upcoming  # one whose stream has ended goes through its last batch again, for nothing
        if batch is None:
            raise DataError(f'process {rank()} of {n_processes()} has no batch while others have: is there too little data?')
        upcoming = following()
        for each in weighed:
            each.weight, each.largest_share = n_samples[rank()] * n_processes() / sum(n_samples), max(n_samples)
        yield batch


# Sharing the model

def wrap(model: nn.Module, device: torch.device, *, strategy: str = 'ddp', sync_bn: bool = True, find_unused_parameters: bool = False,
         mixed_precision: str | None = None, **_: Any) -> nn.Module:
    """The model on `device`, whose gradients become the mean over the processes: DistributedDataParallel, or FSDP2.

    strategy: 'ddp' keeps all of the model in each process; 'fsdp' keeps a part of each weight, and puts a block (`shard_blocks()` of
    the model, its direct children without one) together while it computes. mixed_precision: 'bf16' lets FSDP compute and
    send in it. sync_bn: BatchNorm over the samples of all processes (on GPUs). find_unused_parameters: for models that do not use
    all of their parameters in each step.
    """
    if not is_joined():
        return model.to(device)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if sync_bn and device.type == 'cuda':
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    elif norms and n_processes() > 1 and is_main():
        sys.stderr.write('warning: BatchNorm normalises each process\'s share of a batch by itself here, so the number of processes does '
                         'change the result (distributed.sync_bn needs GPUs)\n')
    if strategy == 'fsdp':
        return _sharded(model, device, mixed_precision)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError('the model has no parameters to train')
    # Buffers are shared where it matters, by share_buffers: then forward passes without gradients need no company.
    options = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    no_buffers = {'forward_sync_buffers' if 'forward_sync_buffers' in options else 'broadcast_buffers': False}
    return nn.parallel.DistributedDataParallel(model.to(device), [device] if device.type == 'cuda' else None,
                                               find_unused_parameters=find_unused_parameters, gradient_as_bucket_view=True, **no_buffers)


def _sharded(model: nn.Module, device: torch.device, mixed_precision: str | None) -> nn.Module:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    mesh = dist.init_device_mesh(device.type, (n_processes(),))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if mixed_precision == 'bf16' else MixedPrecisionPolicy()
    try:
        for block in blocks_of(model):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
    except ValueError as error:
        raise ConfigError(f'{type(model).__name__} cannot be kept in parts (distributed.strategy "fsdp"): {error}. Its shard_blocks() says '
                          'which blocks are to be; blocks that share weights belong to none of them') from error
    return model.to(device)  # buffers, which are not sharded


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The parts of a model that make sense to keep in memory one at a time."""
    blocks = list(model.shard_blocks() if hasattr(model, 'shard_blocks') else model.children())
    while any(isinstance(block, (nn.ModuleList, nn.ModuleDict)) for block in blocks):  # those have no forward pass
        blocks = [each for block in blocks
                  for each in (block.children() if isinstance(block, (nn.ModuleList, nn.ModuleDict)) else [block])]
    return [block for block in blocks if any(True for _ in block.parameters())]


def is_wrapped(model: nn.Module) -> bool:
    """Whether the gradients of `model` are shared."""
    return not is_joined() or _shared_part(model) is not None


def is_sharded(model: nn.Module) -> bool:
    return is_joined() and model is not None and hasattr(_shared_part(model), 'set_requires_gradient_sync')


def needs_equal_passes(model: nn.Module | None) -> bool:
    """Whether the processes talk in each forward pass, and wait for ever when one makes more of them."""
    return n_processes() > 1 and model is not None and (
        is_sharded(model) or any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()))


def _shared_part(model: nn.Module) -> nn.Module | None:
    """The wrapper of DDP, or the root module of FSDP, also under torch.compile; None without one."""
    model = getattr(model, '_orig_mod', model)
    is_shared = isinstance(model, nn.parallel.DistributedDataParallel) or hasattr(model, 'set_requires_gradient_sync')
    return model if is_shared else None


def share_gradients(model: nn.Module | None, wanted: bool) -> None:
    """Say whether the next backward pass sends gradients: only the last micro-batch of a step has to."""
    if model is None or not is_joined():
        return
    shared = _shared_part(model)
    if isinstance(shared, nn.parallel.DistributedDataParallel):
        shared.require_backward_grad_sync = wanted
    elif shared is not None:
        shared.set_requires_gradient_sync(wanted)


def unshared(parameters: list[torch.Tensor], model: nn.Module | None) -> list[torch.Tensor]:
    """Those of `parameters` whose gradients the wrapper of `model` does not share."""
    if n_processes() == 1:
        return []
    shared = set(map(id, model.parameters())) if model is not None and is_wrapped(model) else set()
    return [parameter for parameter in parameters if id(parameter) not in shared]


def mean_gradients(parameters: list[torch.Tensor]) -> None:
    """Make each gradient the mean over the processes."""
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(parameter.grad)
            parameter.grad /= n_processes()


def share_buffers(model: nn.Module) -> None:
    """Give all processes the main one's buffers, such as running means, before they are tested or saved."""
    if n_processes() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def whole(state: Any) -> Any:
    """A state with the parts of each sharded tensor put together; to be called in all processes."""
    if isinstance(state, torch.Tensor):
        return state.full_tensor() if hasattr(state, 'full_tensor') else state
    if isinstance(state, dict) and is_joined():
        return {name: whole(value) for name, value in state.items()}
    return type(state)(map(whole, state)) if type(state) in (list, tuple) and is_joined() else state


def empty(size: torch.Size, dtype: torch.dtype, like: Any = None) -> torch.Tensor:
    """A tensor to be filled: in parts as `like` is, when that has the same size, else whole and on the CPU."""
    if hasattr(like, 'full_tensor') and like.shape == size:
        return torch.zeros_like(like, dtype=dtype, requires_grad=False)
    return torch.zeros(size, dtype=dtype)


def part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if hasattr(tensor, 'to_local') else tensor


def sharded_like(tensor: Any, like: Any) -> Any:
    """`tensor`, which is whole, in parts as `like` is, when it has the same shape."""
    if not hasattr(like, 'full_tensor') or hasattr(tensor, 'full_tensor') or getattr(tensor, 'shape', None) != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
