"""Kill a sweep at random moments: python -m tests.sweep_faults --kills 5

A sweep of 12 trials of 2 epochs on digits runs undisturbed. Another is killed (SIGKILL, every other
time with its trials) so many times, started again each time, and left to finish. Each trial has to
be equal: what it tried, each epoch's value, how it ended, and the weights that it has saved.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna

from armature.checkpoint import files as checkpoint
from armature.compare import first_difference
from armature.errors import positive

ROOT = Path(__file__).resolve().parent.parent
NAME = 'Digits_LeNet_sweep'
SWEEP = {
    'params': {
        'optimizer.args.lr': {'low': 1e-4, 'high': 0.1, 'log': True},
        'data_loader.args.batch_size': [16, 32, 64],
    },
    'n_trials': 12,
    'sampler': {'type': 'TPESampler', 'args': {'n_startup_trials': 3}},
    'pruner': {'type': 'MedianPruner', 'args': {'n_startup_trials': 2}},
    'parallel': 2,
}
PARTS = ('epoch', 'step', 'state_dict', 'optimizer', 'monitor_best', 'parts', 'rng')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=positive, default=5, metavar='N')
    parser.add_argument('--jobs', type=positive, default=2, metavar='N')
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, 'whole'), Path(folder, 'killed')
        started = time.monotonic()
        assert start(whole, given.jobs).wait() == 0, 'the undisturbed sweep failed'
        duration_s, rng, n_killed = time.monotonic() - started, random.Random(), 0
        print(f'undisturbed: {duration_s:.0f} s', flush=True)
        for number in range(given.kills):
            process = start(killed, given.jobs)
            after_s = rng.uniform(0, 2 * duration_s / given.kills)
            try:
                process.wait(after_s)
            except subprocess.TimeoutExpired:
                n_killed += 1
                with_trials = number % 2
                (os.killpg if with_trials else os.kill)(process.pid, signal.SIGKILL)
                process.wait()
                print(
                    f'killed after {after_s:.1f} s' + ' with its trials' * with_trials, flush=True
                )
        assert start(killed, given.jobs).wait() == 0, 'the killed sweep failed'
        wrong = first_difference(found(whole), found(killed))
    print(f'{n_killed} kills: ' + (f'{wrong} differs' if wrong else 'every trial is equal'))
    sys.exit(bool(wrong))


def start(save_dir: Path, n_jobs: int) -> subprocess.Popen:
    save_dir.mkdir(exist_ok=True)
    trainer = {'epochs': 2, 'save_dir': str(save_dir), 'tensorboard': False}
    config = {'base': str(ROOT / 'config.json'), 'trainer': trainer, 'sweep': SWEEP}
    (save_dir / 'config.json').write_text(json.dumps(config))
    command = [sys.executable, '-m', 'tools.sweep', '-c', str(save_dir / 'config.json')]
    with (save_dir / 'output.txt').open('a') as output:
        return subprocess.Popen(
            [*command, '--jobs', str(n_jobs)], cwd=ROOT, stdout=output, start_new_session=True
        )


def found(save_dir: Path) -> dict:
    """What each trial tried, found and saved."""
    journal = save_dir / 'sweeps' / NAME / 'journal.log'
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    study = optuna.load_study(study_name=NAME, storage=optuna.storages.JournalStorage(backend))
    trials = {}
    for trial in study.trials:
        said = [trial.state.name, trial.params, trial.value, trial.intermediate_values]
        if trial.state.name == 'COMPLETE':  # one that is pruned may train on for a moment
            run = save_dir / 'models' / NAME / f'{trial.number:03}'
            state = checkpoint.load(run / checkpoint.LAST)
            said.append({name: state[name] for name in PARTS})
        trials[trial.number] = said
    return trials


if __name__ == '__main__':
    main()
