"""Python processes that have imported the libraries already: a script starts in a moment.

Each is a process of its own (arguments, folder, environment, output, exit code), forked from one
that has imported libraries and nothing of the project. Importing torch takes seconds, and tests
start a hundred scripts; one test of each script starts a fresh Python instead.
"""

import atexit
import gc
import importlib
import io
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TextIO

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


class Started:
    """A process that has been started here, used as a `subprocess.Popen`."""

    def __init__(self, command: list[str], folder: str, answers: TextIO):
        self.args, self._folder, self._answers = command, folder, answers
        self.returncode: int | None = None
        self.pid = int(answers.readline())

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; `subprocess.TimeoutExpired` when it takes longer than so many seconds."""
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._answers.readline())
            self._answers.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit code; None as long as it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """(what it wrote to stdout, to stderr) when it has ended."""
        self.wait(timeout)
        said = (Path(self._folder, name) for name in ('stdout', 'stderr'))
        texts = [path.read_text(encoding='utf-8', errors='replace') for path in said]
        shutil.rmtree(self._folder)
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def start(
    command: list,
    *,
    cwd,
    env: dict | None = None,
    n_processes: int | None = None,
    terminal: str = '',
) -> Started:
    """What `subprocess.Popen` gives for [sys.executable, ...], in a session of its own.

    n_processes: run it in so many that know of each other, as torchrun would start them.
    terminal: the device file that it reads and writes instead of files.
    """
    global _server
    if _server is None or _server.poll() is not None:
        _server = start_server()
    command = [str(word) for word in command]
    folder = Path(tempfile.mkdtemp())
    os.mkfifo(folder / 'answers')
    job = {
        'arguments': command[1:],
        'cwd': str(cwd),
        'env': dict(os.environ if env is None else env),
        'streams': [terminal or str(folder / name) for name in ('stdin', 'stdout', 'stderr')],
        'answers': str(folder / 'answers'),
        'n_processes': n_processes,
    }
    _server.stdin.write(json.dumps(job) + '\n')
    _server.stdin.flush()
    return Started(command, str(folder), open(folder / 'answers'))


def run(
    command: list, *, cwd, env: dict | None = None, timeout: float, n_processes: int | None = None
) -> subprocess.CompletedProcess:
    """What `subprocess.run` gives for [sys.executable, ...], with its output as text."""
    process = start(command, cwd=cwd, env=env, n_processes=n_processes)
    try:
        out, err = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise subprocess.TimeoutExpired(command, timeout, out, err) from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def start_server() -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        text=True,
        env={**environment, 'OMP_NUM_THREADS': '1'},
    )
    atexit.register(server.communicate)  # it leaves at the end of its input
    return server


# The process that forks


def serve() -> None:
    """Fork for each job on stdin; return in the forked one."""
    signal.signal(signal.SIGCHLD, lambda *_: os.waitpid(-1, os.WNOHANG))
    for line in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            become(json.loads(line))
            return
    os._exit(0)


def become(job: dict) -> None:
    """Return as the job, with its folder, environment, arguments and streams.

    Its parent says the job's number, and its exit code as subprocess gives it.
    """
    streams = [os.open(path, os.O_RDWR | os.O_CREAT) for path in job['streams']]
    with open(job['answers'], 'w') as answers:
        pid = os.fork()
        if pid:
            print(pid, file=answers, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)
            os._exit(0)
    os.setsid()  # what a test ends is this process and those that it starts
    os.chdir(job['cwd'])
    os.environ.clear()
    os.environ.update(job['env'])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdin, sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, mode), encoding='utf-8', write_through=True)
        for number, mode in enumerate(('r', 'w', 'w'))
    )
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    sys.argv = job['arguments']
    if job['n_processes'] is not None:
        fork_together(job['n_processes'])


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
    gc.freeze()  # what was imported stays
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
