"""The only file that starts processes which train together, watches them, names the one that fails, and ends them.

They are started by torchrun, or by `launch` for `-d 0,1`. Without torchrun every function does nothing, or says so.
"""

import atexit
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
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from armature.errors import ConfigError, UserError
from armature.processes.dist import (
    gather,
    is_first_here,
    is_joined,
    is_main,
    is_started,
    local_rank,
    n_local,
    n_processes,
    number_in,
    rank,
)

VARIABLES = (
    'RANK',
    'WORLD_SIZE',
    'LOCAL_RANK',
    'MASTER_ADDR',
    'MASTER_PORT',
)  # what torchrun tells each process
# what torch says in a plain RuntimeError when a collective fails, since another process is gone or too late
LOST_TOUCH = (
    'gloo',
    'Gloo',
    'NCCL',
    'pair closure',
    'Timed out waiting',
    'Connection closed by peer',
    'Connection reset by peer',
    'Broken pipe',
)
REPORT_S = 3.0  # how long processes wait for each other's last words
WATCH_S = 1.0  # how often a process looks after the others, and after the one that started it
START_S = 30.0  # how long torchrun may take to answer
MEET_S = 60.0  # how much later one process may start than another, at least
LEAVE_S = 20.0  # how long a process may go on when another has failed; torchrun ends it after 30
LAST_STEP_S = 300.0  # for the step in progress and a checkpoint, when all are to stop

# What they tell each other through _store, which they can all read, also when no collective works any more. N is a process:
#   ended/N    it has come to its end
#   trouble    somebody has lost touch: who is there?
#   here/N     it is there: its watch says so, whatever its training does
#   met/N      its training has lost touch as well, so that it does not hang
#   lost/N     it hangs, and may leave
#   over       the job has failed, and somebody has said why
#   out/N      it looks at the store no more
#   said/TEXT  TEXT has been shown
_store = None
_exit_code = 1  # of a process that has joined, until it has left as it should
_names = []  # machine and pid of each process
_agents = []  # what each process was started by
_failed_at = math.inf  # when this process saw that another has failed and said so
_is_leaving = _is_agreed = False


# Starting, joining, leaving


def agent() -> str:
    """Names the torchrun that has started this process, and starts it again when it fails; empty without one."""
    return os.environ.get('TORCHELASTIC_ERROR_FILE', '').partition('/attempt_')[0]


def agents() -> list[str]:
    """Those of all processes: one on each machine."""
    return sorted(set(_agents) - {''})


def launch(n: int) -> None:
    """Run this command in `n` processes on this machine and leave with their exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ.setdefault('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', f'{LAST_STEP_S:.0f}')
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // n)))
    try:
        run(
            parse_args(
                [
                    '--standalone',
                    f'--nproc-per-node={n}',
                    '--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1',
                    *sys.argv,
                ]
            )
        )
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode < 0:
            sys.stderr.write(
                f'process {failure.local_rank} of {n} was ended by signal {-failure.exitcode}\n'
            )
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
            raise ConfigError(
                'some parameters take no part in the loss, and the processes wait for their gradients: say "distributed": '
                '{"find_unused_parameters": true}, or freeze them'
            ) from error
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
        raise ConfigError(
            f'{", ".join(missing)} {"is" if len(missing) == 1 else "are"} not set, and other variables of torchrun are: '
            f'start with torchrun --nproc-per-node N {" ".join(sys.argv)}, or unset RANK and WORLD_SIZE to train in one '
            'process'
        )
    n, numbers = (
        number_in('WORLD_SIZE', 1),
        [number_in(name, 0) for name in ('RANK', 'LOCAL_RANK', 'MASTER_PORT')],
    )
    if numbers[0] >= n:
        raise ConfigError(f'RANK is {numbers[0]} and WORLD_SIZE {n}: processes are counted from 0')
    use_cuda = torch.cuda.is_available() and not on_cpu
    if use_cuda and n_local() > torch.cuda.device_count():
        raise ConfigError(
            f'{n_local()} processes are started on this machine, which has {torch.cuda.device_count()} GPUs: start as many '
            'processes as GPUs, or say -d cpu'
        )
    if use_cuda:
        torch.cuda.set_device(local_rank())
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    timeout = timedelta(seconds=timeout_s)
    store, word, number, n = _meet(max(timeout, timedelta(seconds=MEET_S)))
    _store = dist.PrefixStore(f'armature/{word}', store)
    dist.init_process_group(
        'cpu:gloo,cuda:nccl' if use_cuda else 'gloo',
        store=dist.PrefixStore(f'torch/{word}', store),
        rank=number,
        world_size=n,
        timeout=timeout,
    )
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
        raise UserError(
            f'the processes do not find each other at {os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}: '
            f'{str(error).splitlines()[0]}'
        ) from error
    if missing:
        raise UserError(
            f'process {" and ".join(map(str, sorted(missing)))} of {n} has not come within {timeout.total_seconds():g} s '
            '(distributed.timeout_s): start all of them, with the same command'
        )
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
        sys.stderr.write(
            f'error: {_name(rank())} left by sys.exit({code!r}), and the others did not\n'
        )
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
    if not _is_store_of_torchrun():
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
            place = ''.join(
                traceback.format_stack(sys._current_frames()[threading.main_thread().ident])
            )
            sys.stderr.write(
                f'{_name(rank())} has not come to an end with the others. It is here:\n{place}'
            )
            sys.stderr.flush()
            _tell(f'out/{rank()}')
            os._exit(1)


# When something fails


def is_first_to_say(message: str) -> bool:
    """Whether no other process has said this yet: what all of them find wrong is shown once."""
    if _store is None:
        return is_first_here() or not is_started()
    try:
        return (
            _store.compare_set(f'said/{zlib.crc32(message.encode())}', '', str(rank()))
            == str(rank()).encode()
        )
    except RuntimeError:  # the store is gone
        return True


def _report(error: Exception) -> None:
    """Say what has failed and in which process: the one whose error it is, or, when it is silent, the first of the others."""
    for number in (
        signal.SIGTERM,
        signal.SIGINT,
    ):  # torchrun has noticed too: this takes only a moment
        signal.signal(number, signal.SIG_IGN)
    timer = threading.Timer(
        4 * REPORT_S, os._exit, [1]
    )  # the store may be on a machine that is away
    timer.daemon = True
    timer.start()
    lost_touch = (
        isinstance(error, dist.DistError)
        or type(error) is RuntimeError
        and any(words in str(error) for words in LOST_TOUCH)
    )
    if not lost_touch:
        is_first = is_first_to_say('a failure')
        _tell('over')
        if is_first_to_say(repr(error)):
            said = (
                ''.join(traceback.format_exception(error))
                if is_first
                else f'{type(error).__name__}: {error}\n'
            )
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
        text = (
            f'{_name(rank())} has lost touch with {_name(0)} or its torchrun, through which all find each other: it was killed, has '
            'left, or its machine is away'
        )
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
    while (
        not (all_have := all(_is_set(f'{word}/{each}') for each in range(n_processes())))
        and time.monotonic() < deadline
    ):
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
