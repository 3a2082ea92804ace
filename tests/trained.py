"""Tiny runs that were really trained, and inputs with their right answers: for predict, export,
serve and the card, whose test files each train once."""

import contextlib
import csv
import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np

import test
from examples.images.data import write_digits
from examples.own_dataset.data import Waves
from examples.sequence.data import WORDS, Opinions
from parse_config import ConfigParser
from tools.run_files import read_test
from train import build

ROOT = Path(__file__).resolve().parent.parent
CPU = {'n_gpu': 0}


def config_of(kind: str, folder: Path) -> dict:
    """The example's config, made smaller; digits are files, as in examples/images."""
    from armature.config.read import read_config

    config = CPU | read_config(ROOT / 'examples' / kind / 'config.json', kind).values
    config['trainer'] |= {'save_dir': str(folder / 'saved'), 'epochs': 2, 'verbosity': 0}
    if kind == 'images':
        config['data_loader']['args'] |= {'data_dir': str(digit_files(folder)), 'batch_size': 64}
    return config


def digit_files(folder: Path) -> Path:
    """Written once for all tests of a process."""
    files = folder.parent / 'digit_files'
    write_digits(files)
    return files


def train_run(kind: str, folder: Path) -> Path:
    """The folder of a run of examples/`kind`."""
    with contextlib.chdir(ROOT):  # as from_args does
        config = ConfigParser(config_of(kind, folder))
        build(config).train()
    return config.save_dir


def measured(run: Path, name: str = 'accuracy') -> float:
    """What test.py says of a run."""
    with contextlib.chdir(ROOT):
        test.main(ConfigParser(read_config_of(run), resume=run / 'model_best.pth'))
    return read_test(run)['values'][name]


def read_config_of(run: Path) -> dict:
    return json.loads((run / 'config.json').read_text())


def inputs_of(kind: str, folder: Path) -> tuple[Path, list[str]]:
    """(a file or folder of the test data without targets, the right answer for each)."""
    if kind == 'images':
        files = digit_files(folder) / 'test'
        return files, [file.parent.name for file in sorted(files.rglob('*.png'))]
    if kind == 'tabular':
        with open(ROOT / 'examples/tabular/cars_test.csv', newline='') as file:
            rows = list(csv.DictReader(file))
        answers = [row.pop('verdict') for row in rows]
        with open(folder / 'cars.csv', 'w', newline='') as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return folder / 'cars.csv', answers
    if kind == 'sequence':
        opinions = Opinions(2000, first=2000)
        lines = [' '.join(WORDS[number] for number in sentence) for sentence in opinions.sentences]
        (folder / 'opinions.txt').write_text('\n'.join(lines))
        return folder / 'opinions.txt', [opinions.classes[target] for target in opinions.targets]
    waves = Waves(200, first=1_000_000)
    np.save(folder / 'waves.npy', np.stack([waves[index][0].numpy() for index in range(200)]))
    return folder / 'waves.npy', [Waves.classes[waves[index][1]] for index in range(200)]


def run_here(script: str, *arguments, monkeypatch) -> int:
    """The exit code of `python script arguments...`, run in this process."""
    monkeypatch.setattr(sys, 'argv', [script, *map(str, arguments)])
    module = script.removesuffix('.py')
    try:
        if script.endswith('.py'):
            runpy.run_path(str(ROOT / script), run_name='__main__')
        else:
            sys.modules.pop(module, None)  # runpy warns of one that is imported already
            runpy.run_module(module, run_name='__main__')
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def copy_of(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / run.name))
