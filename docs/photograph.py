"""Makes the pictures of real runs and lessons: python -m docs.photograph (some minutes)"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / 'docs' / 'pictures'
# Three learning rates of the default experiment, side by side.
RATES = (0.0005, 0.002, 0.01)


def python(*arguments: str, cwd: Path = ROOT) -> None:
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'MPLBACKEND': 'agg'}
    subprocess.run([sys.executable, *arguments], check=True, cwd=cwd, env=environment)


def curves(folder: Path) -> None:
    for rate in RATES:
        short = ['trainer.epochs=30', 'trainer.tensorboard=false', f'trainer.save_dir={folder}']
        python('train.py', '-c', 'config.json', '--lr', str(rate), '--set', *short)
    file = str(PICTURES / 'curves.png')
    python('-m', 'tools.runs', 'plot', '--save-dir', str(folder), '-o', file)


def lessons(folder: Path) -> None:
    for name in ('schedulers', 'figure'):
        python('-m', f'examples.course.{name}', cwd=folder)
    for picture in (folder / 'saved').glob('*.png'):
        shutil.copy(picture, PICTURES)


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as temporary:
        lessons(Path(temporary))
        curves(Path(temporary))
