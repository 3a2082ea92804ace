"""What a trial of a sweep costs beyond train.py alone.

python benchmarks/sweep.py: the runs of a sweep and runs of train.py alone, in turn (the sweep is
halted meanwhile); figures are medians. What a sweep needs once, at its start and its end, is not
counted. The bound is 5 %.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--epochs', type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = ['-c', 'config.json', '--set', f'trainer.save_dir={folder}']
        settings += [f'trainer.epochs={given.epochs}']
        seeds = ','.join(map(str, range(given.rounds + 2)))
        command = [sys.executable, '-u', '-m', 'tools.sweep', *settings, '--param', f'seed={seeds}']
        sweep = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        alone, trials, begun = [], [], None
        for line in sweep.stdout:
            if not line.startswith('trial 0') or len(alone) == given.rounds + 1:
                continue
            # The next trial has just begun.
            if begun is not None:
                trials.append(time.perf_counter() - begun)
            os.killpg(sweep.pid, signal.SIGSTOP)
            alone.append(seconds(*settings, f'seed={len(alone)}'))
            os.killpg(sweep.pid, signal.SIGCONT)
            begun = time.perf_counter()
        assert sweep.wait() == 0
    trial_s, alone_s = statistics.median(trials), statistics.median(alone)
    # Of neighbours in time, since a machine is not always as busy.
    more_s = statistics.median(one - other for one, other in zip(trials, alone))
    print(f'train.py alone       {alone_s:6.2f} s')
    print(f'a trial of a sweep   {trial_s:6.2f} s')
    print(f'overhead             {more_s / alone_s:6.1%}  (bound 5 %)')


def seconds(*arguments: str) -> float:
    started = time.perf_counter()
    command = [sys.executable, 'train.py', *arguments]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == '__main__':
    main()
