"""Python processes that have imported the libraries already: a script starts in a moment.

Each is a process of its own (arguments, folder, environment, output, exit code), forked from one
that has imported libraries and nothing of the project. Importing torch takes seconds, and tests
start a hundred scripts; one test of each script starts a fresh Python instead.
"""

import atexit
import importlib
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

LIBRARIES = (
    'matplotlib.pyplot',
    'pandas',
    'sklearn.datasets',
    'tensorboard.summary',
    'torch._dynamo',  # which the first optimizer imports
    'torch.utils.tensorboard',
    'torchmetrics',
    'torchvision',
)
_server = None


def run(
    command: list[str], *, cwd, env, timeout: float, n_processes: int | None = None
) -> subprocess.CompletedProcess:
    """What `subprocess.run` gives for [sys.executable, ...], with its output as text.

    n_processes: run it in so many that know of each other, as torchrun would start them.
    """
    global _server
    if _server is None or _server.poll() is not None:
        _server = start_server()
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder, name) for name in ('stdout', 'stderr')]
        job = {
            'arguments': command[1:],
            'cwd': str(cwd),
            'env': env,
            'output': [str(path) for path in said],
            'timeout': timeout,
            'n_processes': n_processes,
        }
        _server.stdin.write(json.dumps(job) + '\n')
        _server.stdin.flush()
        answer = _server.stdout.readline()
        if not answer:
            raise RuntimeError(f'the process that forks has died; it was to run {command}')
        if (returncode := json.loads(answer)) is None:
            raise subprocess.TimeoutExpired(command, timeout)
        texts = [path.read_text(encoding='utf-8', errors='replace') for path in said]
    return subprocess.CompletedProcess(command, returncode, *texts)


def start_server() -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, 'OMP_NUM_THREADS': '1'},
    )
    atexit.register(server.communicate)  # it leaves at the end of its input
    return server


# The process that forks


def serve() -> None:
    """Fork for each job on stdin and print its exit code; return in the forked one."""
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(job)
            if job['n_processes'] is not None:
                fork_together(job['n_processes'])
            return
        print(json.dumps(wait_for(pid, job['timeout'])), flush=True)
    os._exit(0)


def wait_for(pid: int, timeout: float) -> int | None:
    """The exit code as subprocess gives it; None when it took too long, and was ended."""

    def end(*_):
        os.killpg(pid, signal.SIGKILL)
        raise TimeoutError

    signal.signal(signal.SIGALRM, end)
    signal.alarm(int(timeout))
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except TimeoutError:
        os.waitpid(pid, 0)
        return None
    finally:
        signal.alarm(0)


def become(job: dict) -> None:
    """Take over the job's folder, environment, arguments and output."""
    os.setsid()  # what a test ends is this process and those that it starts
    os.chdir(job['cwd'])
    os.environ.clear()
    os.environ.update(job['env'])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(job['output'], start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdin, sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, mode), encoding='utf-8', write_through=True)
        for number, mode in enumerate(('r', 'w', 'w'))
    )
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    sys.argv = job['arguments']


def fork_together(n_processes: int) -> None:
    """Fork the processes of a job and leave with the worst of their codes; return in the forked."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    os.environ.update(
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
        WORLD_SIZE=str(n_processes),
        LOCAL_WORLD_SIZE=str(n_processes),
    )
    forked = []
    for rank in range(n_processes):
        os.environ['RANK'] = os.environ['LOCAL_RANK'] = str(rank)
        forked.append(os.fork())
        if forked[-1] == 0:
            return
    os._exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) % 256 for pid in forked))


def run_script() -> None:
    """Run sys.argv as Python would: a script, -m module or -c code."""
    first, *rest = sys.argv
    path = os.environ.get('PYTHONPATH', '')
    sys.path[:1] = ['', *filter(None, path.split(os.pathsep))]
    if first == '-c':
        sys.argv = ['-c', *rest[1:]]
        exec(compile(rest[0], '<string>', 'exec'), {'__name__': '__main__'})
    elif first == '-m':
        sys.path[0] = os.getcwd()
        sys.argv = rest
        runpy.run_module(rest[0], run_name='__main__', alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.realpath(first))
        runpy.run_path(first, run_name='__main__')


def leave() -> None:
    """End without taking hundreds of libraries apart, which takes seconds in a forked process."""
    sys.stdout.flush()
    os._exit(_exit_code)


if __name__ == '__main__':
    _exit_code = 0
    atexit.register(leave)  # the first to be registered is the last to be called

    for name in LIBRARIES:
        importlib.import_module(name)
    serve()
    try:
        run_script()
    except SystemExit as left:
        _exit_code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if _exit_code and not isinstance(left.code, int):
            sys.stderr.write(f'{left.code}\n')
    except BaseException:
        _exit_code = 1
        traceback.print_exc()
