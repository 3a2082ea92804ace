"""Jobs of two processes that go wrong, with counts: python -m tests.process_faults [--kills 10] ...

Each job is train.py in a small project, started in one of LAUNCHERS. Without flags all campaigns
run in full; with flags, those named. Exit code 1 unless all are n/n.
"""

import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from armature.checkpoint import files as checkpoint
from armature.compare import first_difference
from tests import warm
from tests.conftest import ROOT
from tests.faults import Result, run_campaigns, tally
from tools.check_resume import COMPARED
from tools.project import KEPT, files_below, write_files

CONFIG = {
    'name': 'points',
    'n_gpu': 0,
    'arch': {'type': 'points.parts.Net'},
    'data_loader': {'type': 'points.parts.Points'},
    'optimizer': {'type': 'Adam', 'args': {'lr': 0.01}},
    'loss': 'nll_loss',
    'metrics': ['accuracy'],
    'lr_scheduler': {'type': 'StepLR', 'args': {'step_size': 1, 'gamma': 0.7}},
    'trainer': {
        'epochs': 3,
        'save_dir': 'saved',
        'verbosity': 1,
        'monitor': 'min val_loss',
        'tensorboard': False,
        'save_every_steps': 2,
    },
}
STATES = (*COMPARED, 'rng_of_others', 'finished')
LAUNCHERS = ('-d', 'torchrun', 'by hand')
TORCHRUN = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2')
LEAVE_S = 45  # how long processes may take to end after one of them was killed


def make_project(folder: Path) -> Path:
    """A project in `folder` that trains the points of tests/process_parts.py."""
    files = files_below(ROOT, (*KEPT, 'model', 'data_loader', 'trainer', 'train.py'))
    files['points/__init__.py'] = b''
    files['points/parts.py'] = (ROOT / 'tests' / 'process_parts.py').read_bytes()
    files['config.json'] = json.dumps(CONFIG).encode()
    write_files(folder, files)
    return folder


def start(
    project: Path,
    *arguments: object,
    prefix: tuple = (),
    cwd: Path | None = None,
    **environment: object,
) -> subprocess.Popen:
    """`python arguments...` in the project, in a process group of its own, as a shell does."""
    known = {
        name: value for name, value in os.environ.items() if name != 'PYTHONDONTWRITEBYTECODE'
    }  # it is imported often
    return subprocess.Popen(
        [*prefix, sys.executable, *map(str, arguments)],
        cwd=cwd or project,
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={
            **known,
            'OMP_NUM_THREADS': '1',
            **{name: str(value) for name, value in environment.items()},
        },
    )


def launch(
    project: Path, launcher: str, *arguments: object, **environment: object
) -> list[subprocess.Popen]:
    """train.py in two processes: what has been started, a launcher or the processes themselves."""
    if launcher == 'torchrun':
        return [start(project, *TORCHRUN, 'train.py', *arguments, **environment)]
    if launcher == '-d':  # typed in another folder
        script, devices = f'{project.name}/train.py', ('-d', 'cpu,cpu')
        return [start(project, script, *arguments, *devices, cwd=project.parent, **environment)]
    return by_hand(project, arguments, arguments, **environment)


def by_hand(project: Path, *commands: tuple, **environment: object) -> list[subprocess.Popen]:
    """A process of one job for each of the `commands`."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        shared = {
            'WORLD_SIZE': len(commands),
            'MASTER_ADDR': '127.0.0.1',
            'MASTER_PORT': server.getsockname()[1],
        }
    return [
        start(
            project, 'train.py', *arguments, **shared, RANK=number, LOCAL_RANK=number, **environment
        )
        for number, arguments in enumerate(commands)
    ]


def finish(processes: list[subprocess.Popen]) -> tuple[list[int], str]:
    """(exit codes, what was said)."""
    said = [process.communicate(timeout=300)[0] for process in processes]
    return [process.returncode for process in processes], '\n'.join(said)


def train(project: Path, *arguments: object, **environment: object) -> str:
    """What train.py says in two processes; it has to succeed."""
    done = warm.run(
        [sys.executable, str(project / 'train.py'), *map(str, arguments)],
        cwd=project,
        env={
            **os.environ,
            'OMP_NUM_THREADS': '1',
            **{name: str(value) for name, value in environment.items()},
        },
        timeout=300,
        n_processes=2,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def in_own_folder(project: Path, name: object) -> tuple:
    """Arguments that start a run whose folder lies in project/NAME."""
    return '-c', 'config.json', '--set', f'trainer.save_dir={project / str(name)}'


def run_folder(project: Path, name: object) -> Path | None:
    """The one run folder that lies there; None without any."""
    found = list((project / str(name)).glob('models/points/*'))
    assert len(found) < 2, found
    return found[0] if found else None


def outcome(run: Path) -> dict:
    """What a run has come to.

    All of its newest checkpoint that has to be the same whatever happened on the way.
    """
    state = checkpoint.load(run / checkpoint.LAST)
    return {name: state[name] for name in STATES}


def workers_of(process: subprocess.Popen) -> list[int]:
    """The processes that a torchrun has started, as long as it lives."""
    try:
        return [
            int(each)
            for each in Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
        ]
    except OSError:
        return []


def is_alive(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(') ')[2][0] != 'Z'
    except OSError:
        return False


def killed(
    project: Path,
    rng: random.Random,
    after_s: float,
    *arguments: object,
    whom: tuple = ('agent', '0', '1'),
) -> tuple[str, str]:
    """Start a job and SIGKILL its torchrun or one of its processes after so many seconds.

    (who it was, what went wrong then).
    """
    process, who, started = (
        start(project, *arguments, PACE_S=0.01),
        rng.choice(whom),
        time.monotonic(),
    )

    def is_early():
        n_there = len(workers_of(process))
        has_begun = n_there == 2 or n_there == 0 and 'agent' in whom
        return not has_begun or time.monotonic() - started < after_s

    while process.poll() is None and is_early():
        time.sleep(0.01)
    workers = workers_of(process)
    victim = process.pid if who == 'agent' or len(workers) < 2 else workers[int(who)]
    os.kill(victim, signal.SIGKILL)
    said, _ = process.communicate(
        timeout=300
    )  # the processes hold the other end of the pipe: all have left, or said something
    deadline = time.monotonic() + LEAVE_S
    while (left := [pid for pid in workers if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return who if victim != process.pid else 'agent', f'{left} are still there' if left else ''


def kills(n: int, folder: Path) -> Result:
    """A job that is killed at a random moment and resumed ends as one that was never stopped does,
    bit for bit.
    """
    project, rng, outcomes = make_project(folder / 'project'), random.Random(1), {}
    expected, start_s, end_s = measured(project)
    for trial in range(n):
        after_s = rng.uniform(start_s - 1, end_s)
        who, wrong = killed(
            project, rng, after_s, *TORCHRUN, 'train.py', *in_own_folder(project, trial)
        )
        run = run_folder(project, trial)
        newest = checkpoint.newest(run)[0] if run else None
        step = checkpoint.load(newest)['step'] if newest else None
        if newest is None:
            train(project, *in_own_folder(project, f'{trial}-again'))
            run = run_folder(project, f'{trial}-again')
        else:
            train(project, '-r', run)
        wrong = wrong or first_difference(expected, outcome(run))
        outcomes[f'{trial}: {who} killed after {after_s:.2f} s, resumed at step {step}'] = (
            f'differs: {wrong}' if wrong else 'equal'
        )
    return tally(outcomes, {'equal'})


def restarts(n: int, folder: Path) -> Result:
    """A job one of whose processes is killed at a random moment goes on by itself, in one run
    folder, and ends the same.
    """
    project, rng, outcomes = make_project(folder / 'project'), random.Random(2), {}
    expected, start_s, end_s = measured(project)
    for trial in range(n):
        after_s = rng.uniform(start_s - 1, end_s)
        arguments = (*TORCHRUN, '--max-restarts=3', 'train.py', *in_own_folder(project, trial))
        who, wrong = killed(project, rng, after_s, *arguments, whom=('0', '1'))
        wrong = wrong or first_difference(expected, outcome(run_folder(project, trial)))
        outcomes[f'{who} killed after {after_s:.2f} s'] = f'differs: {wrong}' if wrong else 'equal'
    return tally(outcomes, {'equal'})


def measured(project: Path) -> tuple[dict, float, float]:
    """(outcome, seconds until the training begins, seconds until it ends) of a job that nothing
    happens to.
    """
    train(project, *in_own_folder(project, 'warm'))  # leaves compiled modules
    started = time.time()
    train(project, *in_own_folder(project, 'whole'), PACE_S=0.01)
    run = run_folder(project, 'whole')
    return (
        outcome(run),
        (run / 'config.json').stat().st_mtime - started,
        (run / checkpoint.LAST).stat().st_mtime - started,
    )


def ends(n: int, folder: Path) -> Result:
    """A job that nothing happens to leaves with 0 and says nothing on the way out."""
    project, outcomes = make_project(folder / 'project'), {}
    for trial, launcher in zip(range(n), itertools.cycle(('torchrun', 'by hand'))):
        codes, said = finish(launch(project, launcher, *in_own_folder(project, trial)))
        is_quiet = all(
            line.startswith(('Measure it', 'To train longer', 'warning: BatchNorm'))
            for line in said.strip().splitlines()[-1:]
        )
        outcomes[f'{trial}: {launcher}'] = (
            'left' if set(codes) == {0} and is_quiet else f'exit codes {codes}: {said[-500:]}'
        )
    return tally(outcomes, {'left'})


# fault: what is said with -d (where {} is the process), its exit code, tracebacks of the training
FAULTS = {
    'kill': (r'error: process {} of 2 was ended by SIGKILL', 137, 0),
    'raise': (r'error: process {} of 2 failed\n', 1, 1),
    'refuse': (r'error: sample \d+: points.csv holds no number', 2, 0),
    'exit': (r'error: process \d of 2 failed\n', 1, 1),  # the other one, which is left alone
    'vanish': (r'error: process \d of 2 failed\n', 1, 1),
    'hang': (r'error: process \d of 2 failed\n', 1, 1),
}
TIMEOUT_S = 8
LIMITS_S = {'hang': TIMEOUT_S + 45}  # torchrun kills what does not leave within 30 s
OWN_WORDS = ('SignalException', 'in _run_module_as_main')  # torchrun's, after those of the training


def faults(n: int, folder: Path) -> Result:
    """A process that fails ends the job, and one message says why; started by hand, all leave.

    But one that hangs: without torchrun it is for whoever has started it (srun) to end it.
    """
    project, outcomes, longest_s = make_project(folder / 'project'), {}, {}
    trials = [
        (launcher, process, kind)
        for launcher, process, kind in itertools.product(LAUNCHERS, (1, 0), FAULTS)
        if (launcher, kind) != ('by hand', 'hang')
    ]
    for launcher, process, kind in trials[: n or None]:
        fault, (pattern, code, n_tracebacks) = f'{kind}:{process}:30', FAULTS[kind]
        arguments = in_own_folder(project, f'{launcher}-{fault}')
        timeout = ('--set', f'distributed.timeout_s={TIMEOUT_S}')
        codes, said = finish(launch(project, launcher, *arguments, *timeout, FAULT=fault))
        took_s = time.time() - (project / f'wrong-{fault}').stat().st_mtime
        longest_s[kind] = max(longest_s.get(kind, 0), took_s)
        is_good = took_s < LIMITS_S.get(kind, 20)
        if launcher == 'by hand':
            is_good &= codes[1 - process] == 1 and (
                codes[process] != 0 or kind in ('exit', 'vanish')
            )
        else:
            if launcher == 'torchrun':
                code = 1
                for words in OWN_WORDS:
                    said = said.partition(words)[0]
                pattern = 'error: ' if kind != 'kill' else ''
                n_tracebacks += 1  # the beginning of torchrun's
            is_good &= codes == [code] and re.search(pattern.format(process), said) is not None
            is_good &= said.count('Traceback') <= n_tracebacks and said.count('error: ') <= 1
        outcomes[f'{launcher}, {fault}'] = (
            'ended' if is_good else f'exit codes {codes} after {took_s:.1f} s: {said}'
        )
    times = ', '.join(f'{kind} {seconds:.1f}' for kind, seconds in longest_s.items())
    return tally(outcomes, {'ended'})._replace(note=f'seconds to the end, at most: {times}')


STARTS_WORKERS = """
import os, sys
from armature.processes import dist
from armature.processes.launch import joined
from points.parts import Points

if __name__ == '__main__':
    with joined(timeout_s=60, n_gpu=0):
        for number in range(int(sys.argv[1])):
            n_batches = len(list(Points(num_workers=2)))  # while the processes talk
            assert dist.gather(n_batches) == [5, 5]
            if dist.is_main():
                print('started', flush=True)
"""


def workers(n: int, folder: Path) -> Result:
    """Loader workers start so often in each of two processes, and none hangs."""
    project = make_project(folder / 'project')
    (project / 'start_workers.py').write_text(STARTS_WORKERS)
    process = start(project, *TORCHRUN, 'start_workers.py', n)
    try:
        said = process.communicate(timeout=60 + 2 * n)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate()[0] + 'it hangs'
    n_started = said.splitlines().count('started')
    failures = [] if n_started == n and process.returncode == 0 else [said]
    return Result(n, n_started, failures)


# (launcher, what is sent, exit codes)
STOPS = [
    ('torchrun', 'SIGTERM', [1]),
    ('-d', 'SIGTERM', [143]),
    ('by hand', 'self-SIGTERM', [143, 143]),
    ('torchrun', 'group-SIGINT', [1]),
    ('-d', 'group-SIGINT', [130]),
    ('by hand', 'self-SIGINT', [130, 130]),
    ('-d', 'SIGUSR1', [143]),
    ('torchrun', 'SIGKILL', [-9]),
    ('-d', 'SIGKILL', [-9]),
]


def stops(n: int, folder: Path) -> Result:
    """Asked to stop, all processes do so in the same step, with one checkpoint from which the run
    ends as if it had not been.
    """
    project, outcomes = make_project(folder / 'project'), {}
    train(project, *in_own_folder(project, 'whole'))
    expected = outcome(run_folder(project, 'whole'))
    for launcher, sent, expected_codes in STOPS[: n or None]:
        name = f'{launcher}-{sent}'
        codes, said = finish(
            launch(
                project, launcher, *in_own_folder(project, name), FAULT=f'{sent}:1:36', PACE_S=0.02
            )
        )
        took_s, run = (
            time.time() - (project / f'wrong-{sent}:1:36').stat().st_mtime,
            run_folder(project, name),
        )
        step = checkpoint.load(run / checkpoint.LAST)['step']
        train(project, '-r', run)
        is_good = (
            codes == expected_codes
            and said.count('Stopped by SIG') == 1 >= said.count('saving after this step')
            and f'after {step} steps' in said
            and step < expected['step']
            and took_s < 15
            and 'error: ' not in said
        )
        different = first_difference(expected, outcome(run))
        outcomes[f'{name} at step {step}, {took_s:.1f} s'] = (
            'equal' if is_good and not different else f'{different} {codes}: {said}'
        )
    return tally(outcomes, {'equal'})


CAMPAIGNS = {
    'kills': (kills, 10),
    'restarts': (restarts, 10),
    'ends': (ends, 20),
    'faults': (faults, 0),
    'stops': (stops, 0),
    'workers': (workers, 200),
}


if __name__ == '__main__':
    sys.exit(run_campaigns(CAMPAIGNS, __doc__))
