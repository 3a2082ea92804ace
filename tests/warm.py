"""Python processes that have imported the libraries already: a script starts in a moment.

Each is a process of its own (arguments, folder, environment, streams, exit code), forked from one
that has imported libraries and nothing of the project. Importing torch takes seconds, and tests
start a hundred scripts; one test of each script starts a fresh Python instead.

What such a process starts as sys.executable is forked too, through a stand-in: a small program that
asks for the process, passes signals on to it, and ends as it does.

    python tests/warm.py serve SOCKET_FD STAND_IN
    python tests/warm.py stand-in ADDRESS ARGUMENT...
"""

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

LIBRARIES = (
    'matplotlib.pyplot',
    'multiprocessing.spawn',  # keeps the real Python, which can be given more than three streams
    'pandas',
    'sklearn.datasets',
    'tensorboard.summary',
    'torch._dynamo',  # which the first optimizer imports
    'torch.utils.tensorboard',
    'torchmetrics',
    'torchvision',
)
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


class Server:
    """The process that forks; it leaves when this one does."""

    def __init__(self):
        self.folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, self.folder)
        self.address, self.stand_in = f'{self.folder}/socket', f'{self.folder}/python'
        stand_in = shlex.join([sys.executable, '-SE', __file__, 'stand-in', self.address])
        looking = f'[ "$1" = -ISc ] && exec {shlex.quote(sys.executable)} "$@"'  # at its parent
        Path(self.stand_in).write_text(f'#!/bin/sh\n{looking}\nexec {stand_in} "$@"\n')
        os.chmod(self.stand_in, 0o755)
        environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen(100)
            self.process = subprocess.Popen(
                [sys.executable, __file__, 'serve', str(listener.fileno()), self.stand_in],
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                env={**environment, 'OMP_NUM_THREADS': '1'},
            )
        atexit.register(self.process.communicate)


_server: Server | None = None


def server() -> Server:
    """Of this process; started when it is needed first."""
    global _server
    if _server is None or _server.process.poll() is not None:
        _server = Server()
    return _server


class Started:
    """A process that has been started here, used as a `subprocess.Popen`."""

    def __init__(self, address: str, job: dict, streams: list[int], said: list[Path] = ()):
        self.args, self._said, self.returncode = job['arguments'], said, None
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)
        socket.send_fds(self._connection, [b'.'], streams)
        self._connection.sendall(f'{json.dumps(job)}\n'.encode())
        self._answers = self._connection.makefile()
        self.pid = int(self._answers.readline())

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; `subprocess.TimeoutExpired` when it takes longer than so many seconds."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._answers.readline())
            self._answers.close()
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit code; None as long as it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout: float | None = None) -> tuple[str, ...]:
        """(what it wrote to stdout, to stderr) when it has ended."""
        self.wait(timeout)
        return tuple(file.read_text(encoding='utf-8', errors='replace') for file in self._said)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def start(
    command: list, *, cwd, env: dict | None = None, n_processes: int | None = None, terminal=None
) -> Started:
    """What `subprocess.Popen` gives for [sys.executable, ...], in a session of its own.

    n_processes: run it in so many that know of each other, as torchrun would start them.
    terminal: the file descriptor that it reads and writes instead of files.
    """
    job = {
        'arguments': [str(word) for word in command[1:]],
        'cwd': str(cwd),
        'env': dict(os.environ if env is None else env),
        'n_processes': n_processes,
    }
    if terminal is not None:
        return Started(server().address, job, [terminal] * 3)
    folder = Path(tempfile.mkdtemp(dir=server().folder))
    said = [folder / 'stdout', folder / 'stderr']
    with open(os.devnull) as nothing, said[0].open('w') as out, said[1].open('w') as err:
        streams = [file.fileno() for file in (nothing, out, err)]
        return Started(server().address, job, streams, said)


def run(command: list, *, timeout: float, **options) -> subprocess.CompletedProcess:
    """What `subprocess.run` gives for [sys.executable, ...], with its output as text.

    options: those of `start`.
    """
    process = start(command, **options)
    try:
        said = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise subprocess.TimeoutExpired(command, timeout, *process.communicate()) from None
    return subprocess.CompletedProcess(command, process.returncode, *said)


def stand_in(address: str, arguments: list[str]) -> None:
    """Be the process of these arguments, as far as others see it."""
    job = {'arguments': arguments, 'cwd': os.getcwd(), 'env': dict(os.environ)}
    process = Started(address, job, [0, 1, 2])

    def pass_on(number, _):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    code = process.wait()
    if code < 0:
        if -code in PASSED_ON:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


# The process that forks


def serve(listener: socket.socket) -> None:
    """Fork for each that connects; return in the forked one."""
    signal.signal(signal.SIGCHLD, lambda *_: os.waitpid(-1, os.WNOHANG))
    while True:
        if sys.stdin in select.select([listener, sys.stdin], [], [])[0]:
            os._exit(0)  # whoever has started this one is gone
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            become_job(connection)
            return
        connection.close()


def become_job(connection: socket.socket) -> None:
    """Return as the job that is asked for over a connection."""
    _, streams, *_ = socket.recv_fds(connection, 1, 3)
    with connection, connection.makefile('rw') as answers:
        job = json.loads(answers.readline())
        if pid := os.fork():
            keep(pid, connection, answers)
    become(job, streams)


def become(job: dict, streams: list[int]) -> None:
    """Take the folder, environment, arguments and streams of a job, in a session of its own."""
    os.setsid()  # what a test ends is this process and those that it starts
    os.chdir(job['cwd'])
    os.environ.clear()
    os.environ.update(job['env'])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, mode), encoding='utf-8', write_through=True)
        for number, mode in enumerate(('r', 'w', 'w'))
    )
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    sys.argv = job['arguments']
    if job.get('n_processes') is not None:
        fork_together(job['n_processes'])


def keep(pid: int, connection: socket.socket, answers: io.TextIOWrapper) -> None:
    """Say the job's number, and its exit code as subprocess gives it; leave with it.

    It is killed when whoever has started it is gone.
    """

    def kill_without_listener():
        connection.recv(1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    with contextlib.suppress(OSError):
        print(pid, file=answers, flush=True)
        threading.Thread(target=kill_without_listener, daemon=True).start()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)
    os._exit(0)


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
    if first == '-u':  # as torchrun says it; nothing is buffered here
        first, *rest = rest
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
        sys.argv = [first, *rest]
        sys.path[0] = os.path.dirname(os.path.realpath(first))
        runpy.run_path(first, run_name='__main__')


def leave() -> None:
    """End without taking hundreds of libraries apart, which takes seconds in a forked process."""
    sys.stdout.flush()
    os._exit(_exit_code)


if __name__ == '__main__':
    if sys.argv[1] == 'stand-in':
        stand_in(sys.argv[2], sys.argv[3:])
    _exit_code = 0
    atexit.register(leave)  # the first to be registered is the last to be called

    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # what was imported stays
    os.fsync = lambda _: None  # as in tests/conftest.py
    sys.executable = sys.argv[3]
    serve(socket.socket(fileno=int(sys.argv[2])))
    try:
        run_script()
    except SystemExit as left:
        _exit_code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if _exit_code and not isinstance(left.code, int):
            sys.stderr.write(f'{left.code}\n')
    except BaseException:
        _exit_code = 1
        traceback.print_exc()
