"""From the command to the first optimizer step of the default config, against `import torch`.

python benchmarks/startup.py: each round runs both in fresh processes, in turn; figures are medians.
The bound is `import torch` plus 2.5 s.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def seconds(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        first_step = (
            'train.py',
            '-c',
            'config.json',
            '--set',
            f'trainer.save_dir={folder}',
            '--set',
            'trainer.max_steps=1',
        )
        seconds('-c', 'import torch'), seconds(*first_step)
        times = [(seconds('-c', 'import torch'), seconds(*first_step)) for _ in range(rounds)]
    torch_s, train_s = (statistics.median(column) for column in zip(*times))
    print(f'import torch                         {torch_s:5.2f} s')
    print(f'train.py, first step, saved, left    {train_s:5.2f} s')
    more_s = statistics.median(b - a for a, b in times)
    print(f'difference                           {more_s:5.2f} s  ', end='')
    print(f'(median of {rounds} rounds; bound 2.5 s)')


if __name__ == '__main__':
    main()
