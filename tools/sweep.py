"""Search for the best settings: python -m tools.sweep -c config.json

The config says what is tried, under "sweep"; or try all combinations at once:

    python -m tools.sweep -c config.json --param seed=1,2,3 --param optimizer.args.lr=0.1,0.01

Each trial is an ordinary run of train.py. Interrupted anywhere, the same command goes on, and the
finished sweep equals one that was never interrupted. Several processes, also on several machines
with a shared disk, may work on one sweep: give the same command in each.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Generator
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

import train
from armature.checkpoint.files import newest
from armature.compare import first_difference
from armature.config.build import ROOT
from armature.config.command import read_command
from armature.errors import (
    CheckpointError,
    ConfigError,
    UserError,
    exit_on_user_error,
    positive,
)
from armature.processes.devices import devices_by_name
from armature.run.record import write_json
from armature.run_files import CHANGES, CONFIG, RECORD, TABLE, read_table
from tools.print_config import describe
from tools.run_files import read_config, read_record
from tools.run_records import number as number_or_none
from tools.sweep_report import STATES, print_report, show_values

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

POLL_S = 0.05
WAITING = object()  # what a trial yields until its process has done more
MOST_FAILURES = 3  # of the first trials
# train.py gets SIGTERM when its parent dies, however it dies (Linux): it then saves and leaves.
WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class Failed(Exception):
    """A run of a trial did not end well, for this reason."""


class Pruned(Exception):
    """The trial does worse than others and was ended."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('-c', '--config', required=True, metavar='FILE', help='the experiment')
    parser.add_argument(
        '--param',
        action='append',
        default=[],
        metavar='KEY=VALUE,VALUE',
        help='try each of these values; in all combinations when the config has no "sweep"',
    )
    parser.add_argument(
        '--jobs', type=positive, metavar='N', help='trials at a time; one for each device without'
    )
    parser.add_argument(
        '--devices', metavar='DEVICE,DEVICE', help='the -d of the trials, such as 0,1,2,3'
    )
    with exit_on_user_error():
        given, document, _ = read_command(parser, ())
        builds = getattr(train, 'BUILDS', None)  # one of the old template does not say
        if given.print_config:
            print(describe(document, builds), end='')
            return
        try:
            from tools.sweep_plan import make_plan
            from tools.sweep_search import Results
        except ModuleNotFoundError as error:
            if error.name != 'optuna':
                raise
            raise UserError(
                'a sweep needs Optuna: run python -m pip install -r requirements-sweep.txt'
            ) from None
        devices = devices_of(given.devices)
        plan = make_plan(document, given.param, builds)
        n_jobs = given.jobs or len(devices)
        if plan.learns and n_jobs > plan.settings.parallel:
            raise ConfigError(
                f'{n_jobs} trials at a time, but sweep.parallel is {plan.settings.parallel}: each '
                'trial learns from all but so many before it. Say --set '
                f'sweep.parallel={n_jobs}, or fewer --jobs'
            )
        try:
            (plan.folder / 'trials').mkdir(parents=True, exist_ok=True)
            results = Results(plan.folder / 'journal.log', plan, plan.facts)
            if different := first_difference(results.facts, plan.facts):
                raise UserError(
                    f'{plan.folder} holds another sweep of this name: {different} is another '
                    'there. Give this one its own: --set sweep.name=NAME'
                )
            write_json(plan.document.values, plan.folder / 'config.json')
            Sweep(plan, results, n_jobs, devices).work()
            print_report(plan, results)
        except OSError as error:
            raise UserError(
                f'{error.filename or plan.folder} cannot be written: {error.strerror or error}. '
                'Mend it and give the same command again: the sweep goes on'
            ) from error


def devices_of(text: str | None) -> list[str | None]:
    """What -d says in each trial; a ConfigError when one is not there."""
    if text is None:
        return [None]
    names, there = text.split(','), devices_by_name()
    if absent := [name for name in names if name not in there]:
        raise ConfigError(
            f'--devices {text}: {absent[0]!r} is not here: take some of {", ".join(there)}'
        )
    return names


class Sweep:
    """This process's part of the work on a sweep: it starts train.py, watches, and notes.

    A trial belongs to whoever has locked its log file. train.py writes there too, and inherits the
    lock with it: nobody else takes the trial while anything of it still runs.
    """

    def __init__(self, plan, results, n_jobs: int, devices: list[str | None]):
        self.plan, self.results = plan, results
        self.devices = [devices[place % len(devices)] for place in range(n_jobs)]
        self._under_way = {}  # number of a trial: the process that trains it, if any
        self._reasons = []  # why trials failed here
        self._signal = 0

    def work(self) -> None:
        """Train until every trial is over, here or elsewhere; leave with the code of a signal."""
        n_over = sum(each.state.is_finished() for each in self._trials())
        print(
            f'{self.plan.name}: {self.plan.n_trials} trials, {n_over} of them over, '
            f'{len(self.devices)} at a time; in {self.plan.folder}',
            flush=True,
        )
        if self.results.version != optuna_version():
            print(f'note: begun with Optuna {self.results.version}: its choices may differ')
        signals = (signal.SIGTERM, signal.SIGINT)
        before = {each: signal.signal(each, self._note_signal) for each in signals}
        is_waiting = False
        jobs = {}  # place: the trial that is trained there, which goes on a bit at each `next`
        try:
            while not self._signal:
                for place, device in enumerate(self.devices):
                    self._work_on(jobs, place, device)
                if not jobs and all(each.state.is_finished() for each in self._trials()):
                    return
                if not jobs and not is_waiting:
                    is_waiting = True
                    print('The trials that are left are under way elsewhere: waiting', flush=True)
                time.sleep(POLL_S)
        finally:
            processes = [process for process in self._under_way.values() if process is not None]
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
            for job in jobs.values():
                job.close()
            for each, handler in before.items():
                signal.signal(each, handler)
        name = signal.Signals(self._signal).name
        print(f'Stopped by {name}; all is saved. The same command goes on')
        sys.exit(128 + self._signal)

    def _work_on(self, jobs: dict[int, Generator], place: int, device: str | None) -> None:
        """Do what can be done at a place without waiting, and begin a trial where none is."""
        while place in jobs or (claimed := self._claim()):
            if place not in jobs:
                jobs[place] = self._train(*claimed, device)
            if next(jobs[place], None) is WAITING:
                return
            del jobs[place]

    def _note_signal(self, received: int, frame: object) -> None:
        self._signal = received

    def _trials(self) -> list:
        return self.results.trials()[: self.plan.n_trials]

    def _claim(self) -> tuple[int, BinaryIO] | None:
        """The next trial that nobody trains, and its locked log; None when there is none now."""
        is_over = [each.state.is_finished() for each in self._trials()]
        for number in range(len(is_over)):
            if not all(is_over[: self.plan.n_known(number)]):
                return None  # it has to know what comes out of them
            if is_over[number] or number in self._under_way:
                continue
            log = (self.plan.folder / 'trials' / f'{number:03}.log').open('ab')
            if is_locked_by_us(log) and not self._trials()[number].state.is_finished():
                self._under_way[number] = None
                return number, log
            log.close()
        return None

    def _train(self, number: int, log: BinaryIO, device: str | None) -> Generator[None]:
        """Train a trial and note what came out; yields while it waits."""
        from tools.sweep_search import Search, TrialState

        plan, trials, started = self.plan, self._trials(), time.monotonic()
        known = {each.number: each for each in trials[: plan.n_known(number)]}
        found, facts = [], {}
        with log:
            search = Search(plan, number, known, plan.told(number) or trials[number].params)
            self.results.begin(number, plan, search.params)
            values = plan.values(search.params)
            try:
                for ending, changes in plan.runs:
                    run = plan.runs_folder / f'{number:03}{ending}'
                    config = plan.with_values(values, changes).values | {'name': plan.name}
                    # With several runs the first one's curve decides about pruning: curves of the
                    # same seed and fold can be compared.
                    judged_by = search if not found else None
                    value = yield from self._run(number, run, config, log, device, judged_by)
                    found.append(value)
                state, value = TrialState.COMPLETE, statistics.fmean(found)
            except Pruned:
                state, value = TrialState.PRUNED, search.last_value
            except Failed as failure:
                state, value = TrialState.FAIL, None
                facts['reason'] = str(failure)
                self._reasons.append(str(failure))
            facts['seconds'] = time.monotonic() - started
            self.results.end(number, search, state, value, **facts)
            del self._under_way[number]
        print_trial(plan, number, values, state.name, value, facts.get('reason'))
        self._refuse_failures()

    def _run(
        self, number: int, run: Path, config: dict, log: BinaryIO, device: str | None, search
    ) -> Generator[None, None, float]:
        """Train one run, or go on with it; returns its best value. Raises Failed or Pruned."""
        curve, metric = {}, self.plan.metric

        def is_hopeless() -> bool:
            """Read on in metrics.csv; whether what is new there is to be pruned for."""
            for row in read_table(run / TABLE):
                value = number_or_none(row.get(metric))
                if value is None or row['epoch'] in curve:
                    continue
                curve[row['epoch']] = value
                if search is not None and search.reports(row['epoch'], value):
                    return True
            return False

        is_finished = self._is_finished(run, config)
        if is_hopeless():
            raise Pruned
        if not is_finished:
            process = self._start(run, config, log, device)
            self._under_way[number] = process
            seen, has_ended = None, False
            while not has_ended:
                yield WAITING
                has_ended = process.poll() is not None  # asked before the table is read
                if has_ended or state_of(run / TABLE) != seen:
                    seen = state_of(run / TABLE)
                    if is_hopeless():
                        process.terminate()
                        while process.poll() is None:
                            yield WAITING
                        raise Pruned
            if process.returncode != 0:
                while self._signal:  # it was meant for all of us
                    yield WAITING
                raise Failed(reason_of(run, process.returncode, Path(log.name)))
        if not curve:
            raise Failed(f'no epoch has a value of {metric}')
        return (min if self.plan.mode == 'min' else max)(curve.values())

    def _is_finished(self, run: Path, config: dict) -> bool:
        """Whether this run has been trained already; UserError when it is another one."""
        different = first_difference(config, read_config(run) or config)
        if not (run / CONFIG).exists():  # only what train.py writes before it may go
            names = {path.name for path in run.glob('[!.]*')} - {RECORD, CHANGES}
            different = min(names, default=different)
        if different:
            raise UserError(
                f'{run} has another {different}: it is of another sweep. Remove it, or give this '
                'sweep a name: --set sweep.name=NAME'
            )
        return run.exists() and read_record(run)['state'] == 'finished'

    def _start(self, run: Path, config: dict, log: BinaryIO, device) -> subprocess.Popen:
        """A process that trains `run`, or goes on with it."""
        command = ['train.py', '--run-id', run.name]
        if run.exists():
            try:
                path, _ = newest(run)
            except CheckpointError:
                path = None
            if path is not None:
                command = ['train.py', '-r', str(run)]
            else:  # it was killed before it had saved anything
                shutil.rmtree(run)
                shutil.rmtree(self.plan.save_dir / 'log' / run.parts[-2] / run.name, True)
        if '-r' not in command:
            file = self.plan.folder / 'trials' / f'{run.name}.json'
            write_json(config, file)
            command += ['-c', str(file)]
        if device is not None:
            command += ['-d', device]
        command = [sys.executable, *command]
        if sys.platform == 'linux':
            command = [sys.executable, '-ISc', WITH_PARENT, str(os.getpid()), *command[1:]]
        environment = dict(os.environ)
        if len(self.devices) > 1:  # else each would take all cores
            n_threads = max(1, (os.cpu_count() or 1) // len(self.devices))
            environment.setdefault('OMP_NUM_THREADS', str(n_threads))
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def _refuse_failures(self) -> None:
        """Go no further when the first trials all fail: what is wrong is wrong in all of them."""
        states = {each.state.name for each in self._trials()}
        if len(self._reasons) >= MOST_FAILURES and not states & {'COMPLETE', 'PRUNED'}:
            raise UserError(
                f'{len(self._reasons)} trials failed and none went well: {self._reasons[-1]} (all '
                f'of it is in {self.plan.folder}/trials/*.log). When it is mended, remove '
                f'{self.results.file} and give the same command again'
            )


def is_locked_by_us(file: BinaryIO) -> bool:
    """Whether the lock on an open file is ours now. Windows: one process at a time, unlocked."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def optuna_version() -> str:
    return metadata.version('optuna')


def state_of(file: Path) -> tuple | None:
    """Changes whenever the file's content does."""
    try:
        state = file.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino


def reason_of(run: Path, exit_code: int, log: Path) -> str:
    """Why train.py ended: what it said last."""
    if exit_code < 0:
        return f'ended by {signal.Signals(-exit_code).name}'
    record = read_record(run)
    if record['state'] == 'failed' and record['reason']:
        return record['reason'].splitlines()[0][:300]
    lines = log.read_text(encoding='utf-8', errors='replace').split('\n')
    said = [line.strip() for line in lines if line.strip()]
    return said[-1].removeprefix('error: ')[:300] if said else f'exit code {exit_code}'


def print_trial(plan, number: int, values: dict, state: str, value, reason: str | None) -> None:
    said = reason or f'{plan.metric} {value:.4g}'
    print(f'trial {number:03} {STATES[state]}: {said}; {show_values(values)}', flush=True)


if __name__ == '__main__':
    main()
