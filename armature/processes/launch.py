"""The only place that starts processes which train together, lets them meet, and lets them leave.

torchrun does most of it: it starts them, ends all when one has failed, and starts them again with
--max-restarts. For a single process every function does nothing.
"""

import ctypes
import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from armature.errors import STOP_CODES, UserError, report
from armature.processes import devices
from armature.processes.dist import (
    gather,
    is_first_here,
    is_joined,
    is_started,
    n_processes,
    rank,
    refuse_differences,
)

VARIABLES = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')  # of torchrun
TIMEOUT_S = 600
LAST_STEP_S = 300  # for the step in progress and a checkpoint, when all are to stop
# Of torchrun, which would die of a SIGUSR1 by itself and leave its processes behind
SIGNALS = '--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1'
CONNECT_S = 5.0  # for reaching torchrun's store, where a machine does not answer at all
ECHO_S = 2.0  # within this time torchrun notices a process that has ended, and ends the others
PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent dies

agents = []  # names of the torchruns that have started the processes: one on each machine
# What a torch DataLoader with workers has to be given where several processes train. A process with
# threads, as these are, must not fork: in 1 of 14 starts the worker inherited a lock that was held
# at that moment, and waited for it for ever.
worker_options = {}


@contextmanager
def processes(config: Any):
    """Inside, this is one of the processes that train together, and it leaves with them.

    torchrun has started them; or `-d` or n_gpu of the config asks for several, and they are started
    here. What fails inside is shown once, and ends the process.
    """
    n_gpu, settings = config.get('n_gpu', 1), config.get('distributed') or {}
    if not is_started():
        n_wanted = devices.n_processes_wanted(n_gpu)
        if n_wanted > 1:
            launch(n_wanted, config.started_in)
        yield
        return
    with joined(settings.get('timeout_s') or TIMEOUT_S, n_gpu):
        refuse_differences({'-r': config.resume is not None, **config.config}, 'the config')
        config.place.go_on_after_restart(agents)
        yield


def launch(n: int, folder: str) -> None:
    """Run this command, typed in `folder`, in `n` processes here; leave with their exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.chdir(folder)  # the script's own path may be relative
    logging.getLogger('torch.distributed.elastic').setLevel(logging.CRITICAL)  # we say it below
    os.environ.setdefault('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', str(LAST_STEP_S))
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // n)))
    try:
        run(parse_args(['--standalone', f'--nproc-per-node={n}', SIGNALS, *sys.argv]))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode > 0:  # it has said why
            sys.exit(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        sys.stderr.write(f'error: process {failure.local_rank} of {n} was ended by {name}\n')
        sys.exit(128 - failure.exitcode)
    except SignalException as error:
        sys.exit(STOP_CODES.get(error.sigval, 128 + error.sigval))
    sys.exit(0)


@contextmanager
def joined(timeout_s: float = TIMEOUT_S, n_gpu: int = 1):
    """Inside, this process, which torchrun has started, is in touch with the others.

    timeout_s: how long one waits for the others before it takes them for lost. n_gpu: 0 for none.
    """
    try:
        _join(timeout_s, n_gpu)
        yield
        _leave()
    except BaseException as error:
        # torchrun ends this process meanwhile when another one has failed. For what is wrong in all
        # of them the first speaks; and a collective fails, by RuntimeError, when somebody is gone.
        if isinstance(error, Exception):
            time.sleep(ECHO_S * (isinstance(error, RuntimeError) + (not is_first_here())))
        if not is_joined():
            raise
        # Leave at once and alone: a barrier, or the end of a process group, would wait for others.
        if isinstance(error, Exception) and not isinstance(error, UserError):
            sys.stderr.write(f'error: process {rank()} of {n_processes()} failed\n')
        _exit_now(report(error))


def _join(timeout_s, n_gpu):
    kind, backend = devices.prepare_device(n_gpu)[0].type, 'gloo'
    if kind != 'cpu':
        backend = f'cpu:gloo,{kind}:{dist.get_default_backend_for_device(kind)}'
    if sys.platform == 'linux' and agent():  # without torchrun nobody would end this process
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        _refuse_without_agent()  # no signal comes when it was gone before
    try:
        if rank() >= int(os.environ.get('WORLD_SIZE', 0)):
            raise ValueError('RANK counts from 0, WORLD_SIZE from 1')
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    except (RuntimeError, ValueError) as error:
        given = ', '.join(f'{name} {os.environ.get(name, "is not set")}' for name in VARIABLES)
        raise UserError(
            f'process {os.environ.get("RANK")} does not find the others within {timeout_s:g} s '
            f'(distributed.timeout_s): {str(error).splitlines()[0]}. The variables of torchrun are '
            f'{given}: start with torchrun --nproc-per-node N {" ".join(sys.argv)}, all with the '
            'same command, or unset RANK and WORLD_SIZE to train in one process'
        ) from error
    agents[:] = sorted(set(gather(agent())) - {''})
    if sys.platform == 'linux':  # elsewhere they are spawned
        worker_options['multiprocessing_context'] = 'forkserver'
        slow = ('torch', 'torchvision', 'pandas')  # what the server imports once for all workers
        multiprocessing.set_forkserver_preload([name for name in slow if name in sys.modules])
    worker_options['timeout'] = timeout_s


def _refuse_without_agent():
    """A UserError at once where torch would look for a torchrun that is gone until the timeout."""
    if os.environ.get('TORCHELASTIC_USE_AGENT_STORE') != 'True':
        return  # one of the processes lets the others meet, and may not be there yet
    try:
        place = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
        socket.create_connection(place, CONNECT_S).close()
    except ConnectionRefusedError as error:
        raise UserError(
            f'the torchrun that lets the processes meet at {place[0]}:{place[1]} is gone: start it '
            'again'
        ) from error
    except (OSError, KeyError, ValueError):
        pass  # what is wrong is said when the processes meet


def _leave():
    """Together: one that is gone while others still talk would abort them."""
    # A trainer is full of circles, and what it holds keeps the group's threads alive: one that
    # still runs when Python is gone ends the process by SIGABRT.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def _exit_now(exit_code):
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def exit_together(exit_code: int) -> None:
    """Leave with an exit code that all processes have agreed on."""
    if is_joined():
        _leave()
        _exit_now(exit_code)  # the caller holds the trainer, see `_leave`
    sys.exit(exit_code)


def agent() -> str:
    """Names the torchrun that has started this process, and may start it again; '' without one."""
    return os.environ.get('TORCHELASTIC_ERROR_FILE', '').partition('/attempt_')[0]
