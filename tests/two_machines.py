"""Two machines on one: python -m tests.two_machines (as root, on Linux, with iproute2)

Two network namespaces stand for the machines, a pair of virtual network cards for the cable; they
share the file system, as a cluster shares a folder. A torchrun in each starts one process. The job
has to end as one of two processes on one machine does, bit for bit: when nothing happens, when all
of the second machine is killed and started again, and when the cable is pulled out for a while.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from armature.compare import first_difference
from tests.process_faults import (
    in_own_folder,
    is_alive,
    make_project,
    outcome,
    run_folder,
    start,
    train,
    workers_of,
)

NAMES = [f'armature{os.getpid()}{letter}' for letter in 'ab']
CARDS = [f'v{os.getpid()}{letter}' for letter in 'ab']  # 15 letters at most
ADDRESSES = ['10.77.0.1', '10.77.0.2']
PORT = 29400
TIMEOUT_S, JOB_S = 10, 180


def ip(*arguments: str) -> None:
    subprocess.run(['ip', *arguments], check=True, capture_output=True, text=True)


def connect() -> str:
    """Make the two machines and the cable; why that cannot be done here, empty when it is done."""
    if shutil.which('ip') is None:
        return 'the command ip is not there (Debian: apt-get install iproute2)'
    try:
        for name in NAMES:
            ip('netns', 'add', name)
        ip(
            'link',
            'add',
            CARDS[0],
            'netns',
            NAMES[0],
            'type',
            'veth',
            'peer',
            'name',
            CARDS[1],
            'netns',
            NAMES[1],
        )
        for name, card, address in zip(NAMES, CARDS, ADDRESSES):
            ip('-n', name, 'addr', 'add', f'{address}/24', 'dev', card)
            ip('-n', name, 'link', 'set', card, 'up')
            ip('-n', name, 'link', 'set', 'lo', 'up')
    except subprocess.CalledProcessError as error:
        disconnect()
        return f'{" ".join(error.cmd)}: {error.stderr.strip()}'
    return ''


def disconnect() -> None:
    for name in NAMES:
        subprocess.run(['ip', 'netns', 'del', name], capture_output=True)


class Job:
    """A torchrun on each of the two machines, with one process each.

    `two` are the newest of them.
    """

    def __init__(self, project: Path, name: str):
        self.project, self.name = project, name
        self.arguments = in_own_folder(project, name)
        self.two = [self.start(0), self.start(1)]
        deadline = time.monotonic() + JOB_S
        while (
            not list((project / name).glob('models/*/*/checkpoint-epoch*.pth'))
            and time.monotonic() < deadline
        ):
            time.sleep(0.05)

    def start(self, number: int) -> subprocess.Popen:
        # torch 2.15 lets no new machine in while torchrun shares its store with the training.
        return start(
            self.project,
            '-m',
            'torch.distributed.run',
            '--nnodes=2',
            '--nproc-per-node=1',
            '--max-restarts=3',
            '--rdzv-backend=c10d',
            f'--rdzv-endpoint={ADDRESSES[0]}:{PORT}',
            f'--rdzv-id={self.name}',
            f'--rdzv-conf=is_host={int(number == 0)}',
            f'--local-addr={ADDRESSES[number]}',
            'train.py',
            *self.arguments,
            '--set',
            f'distributed.timeout_s={TIMEOUT_S}',
            prefix=('ip', 'netns', 'exec', NAMES[number]),
            PACE_S=0.02,
            GLOO_SOCKET_IFNAME=CARDS[number],
            TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1,
        )

    def kill(self, number: int) -> None:
        """What a power cut does to a machine, but for the silence of its network."""
        for pid in [*workers_of(self.two[number]), self.two[number].pid]:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.two[number].communicate()

    def end(self) -> str:
        """Wait for the end; what was said when it was no good one."""
        said = []
        for number, process in enumerate(self.two):
            try:
                said.append(process.communicate(timeout=JOB_S)[0])
            except subprocess.TimeoutExpired:
                self.kill(number)
                said.append('it did not end')
        return '\n'.join(said) if any(process.returncode for process in self.two) else ''


def nothing(job: Job) -> None:
    """Nothing happens."""


def power_cut(job: Job) -> None:
    """The second machine is killed, and started again."""
    job.kill(1)
    job.two[1] = job.start(1)


def pulled_cable(job: Job) -> None:
    """The cable is pulled until both have noticed; then the second machine is started again."""
    ip('-n', NAMES[1], 'link', 'set', CARDS[1], 'down')
    time.sleep(3 * TIMEOUT_S)
    job.kill(1)
    ip('-n', NAMES[1], 'link', 'set', CARDS[1], 'up')
    job.two[1] = job.start(1)


def lost_host(job: Job) -> None:
    """The machine where torchruns meet is killed.

    The other one gives up, and both are started again with -r.
    """
    job.kill(0)
    job.two[1].communicate(timeout=JOB_S)
    job.arguments = ('-r', run_folder(job.project, job.name))
    job.two = [job.start(0), job.start(1)]


def main() -> int:
    if reason := connect():
        print(f'skipped: {reason}')
        return 0
    failed = False
    try:
        with tempfile.TemporaryDirectory() as folder:
            project = make_project(Path(folder) / 'project')
            train(
                project,
                *in_own_folder(project, 'one'),
                '--set',
                f'distributed.timeout_s={TIMEOUT_S}',
            )
            expected = outcome(run_folder(project, 'one'))
            for event in (nothing, power_cut, pulled_cable, lost_host):
                started, job = time.monotonic(), Job(project, event.__name__)
                event(job)
                wrong = job.end() or first_difference(
                    expected, outcome(run_folder(project, event.__name__))
                )
                print(
                    f'{event.__doc__:105} {"differs" if wrong else "equal":7} '
                    f'{time.monotonic() - started:6.1f} s',
                    flush=True,
                )
                print(wrong, end='')
                failed |= bool(wrong)
    finally:
        disconnect()
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
