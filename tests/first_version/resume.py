"""Goes on with the runs that the first version left here, with whatever code stands on sys.path.

Uses only what stays from version to version: `train.build`, `ConfigParser.from_args`, torch's own
names. As a command, `python resume.py RUN_FOLDER` prints what a run reaches: for the project's run,
whose code is its own.
"""

import argparse
import contextlib
import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import torch

HERE = Path(__file__).resolve().parent


def unpack_run(name: str, save_dir: Path) -> Path:
    """A copy of the interrupted run `name` in `save_dir`, where a run of that name belongs."""
    return Path(shutil.copytree(HERE / 'runs' / name, save_dir / 'models' / name / 'run'))


def unpack_project(folder: Path) -> Path:
    """Make `folder` the first version's project, all committed, and return its interrupted run.

    Its user has added a method to base/base_trainer.py, changed a number in base/average.py, made
    base/mine.py, and uses all three in trainer/, model/ and config.json.
    """
    bundle = HERE / 'project' / 'project.bundle'
    subprocess.run(['git', 'clone', '--quiet', bundle, folder], check=True)
    subprocess.run(['git', 'remote', 'remove', 'origin'], cwd=folder, check=True)
    run = folder / 'saved' / 'models' / 'own' / 'run'
    return Path(shutil.copytree(HERE / 'project' / 'run', run))


def resumed(run: Path) -> dict:
    """What the run in the folder `run` reaches when `python train.py -r run` goes on with it.

    epochs: of each epoch that was still to be trained, the averages by name, and under 'lr' the
    learning rate of each parameter group after it. best: of the monitored value. weights: the norm
    of all parameters together at the end (a bias before BatchNorm follows rounding errors alone, so
    single tensors would differ between machines). history: the loss of every epoch of the run, as
    metrics.csv has it. valid_rows: see `rows`.
    """
    import train
    from parse_config import ConfigParser

    parser = argparse.ArgumentParser()
    for flags in (('-c', '--config'), ('-r', '--resume'), ('-d', '--device')):
        parser.add_argument(*flags)
    save_dir = run.parent.parent.parent
    arguments = ['train.py', '-r', str(run), '-d', 'cpu', '--set', f'trainer.save_dir={save_dir}']
    epochs = []
    with mock.patch.object(sys, 'argv', arguments), contextlib.chdir('.'):
        trainer = train.build(ConfigParser.from_args(parser))
        train_epoch = trainer._train_epoch

        def recorded(epoch: int) -> dict:
            log = train_epoch(epoch)
            rates = [group['lr'] for group in trainer.optimizer.param_groups]
            averages = {name: float(value) for name, value in log.items()}
            epochs.append({'epoch': epoch, **averages, 'lr': rates})
            return log

        trainer._train_epoch = recorded
        trainer.train()
        assert trainer.checkpoint_dir == run, 'the run goes on in its own folder'
    weights = torch.cat([each.detach().double().flatten() for each in trainer.model.parameters()])
    return {
        'epochs': epochs,
        'history': history(save_dir),
        'best': float(trainer.mnt_best),
        'weights': float(weights.norm()),
        'valid_rows': rows(trainer.valid_data_loader) if trainer.do_validation else [],
    }


def history(save_dir: Path) -> list[float]:
    """The loss of each epoch in the metrics.csv of the only run below `save_dir`."""
    (table,) = save_dir.rglob('metrics.csv')
    with table.open(newline='') as file:
        return [float(row['loss']) for row in csv.DictReader(file)]


def loss_said_in(output: str) -> float:
    """The loss that test.py has said."""
    return float(re.search(r'\bloss\b[ :|]+(\d+\.\d+)', output)[1])


def rows(loader) -> list[int]:
    """Which samples of its dataset a loader goes through, sorted: found by their content.

    Where several samples are the same, the first of them stands for all.
    """
    index_of = {}
    for index in range(len(loader.dataset)):
        index_of.setdefault(content(loader.dataset[index]), index)
    return sorted(index_of[content(sample)] for batch in loader for sample in samples_of(batch))


def samples_of(batch) -> list:
    """The samples of a batch, nested as the batch is."""
    if isinstance(batch, torch.Tensor):
        return list(batch)
    return list(zip(*map(samples_of, batch)))


def content(sample) -> tuple:
    """The numbers in a sample, as one flat tuple."""
    if isinstance(sample, (tuple, list)):
        return sum(map(content, sample), ())
    return tuple(torch.as_tensor(sample).flatten().tolist())


if __name__ == '__main__':
    reached = resumed(Path(sys.argv[1]).resolve())
    print(json.dumps({**reached, 'code': sys.modules['train'].__file__}))
