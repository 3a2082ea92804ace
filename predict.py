"""Predict for files without targets: python predict.py -r saved/models/NAME/RUN INPUT..."""

import argparse
import os
import sys
from pathlib import Path

import armature.packages  # noqa: F401 (says what to type where a package is missing)

# isort: split
import model.loss as module_loss
import model.model as module_arch
from armature.config.command import add_flags
from armature.errors import exit_on_user_error, positive
from armature.processes import dist
from armature.processes.devices import prepare_device
from armature.processes.launch import processes
from parse_config import ConfigParser
from tools.use_files import Predictions, check_output, files_of, loader_of, write
from tools.use_run import Run
from tools.use_run import load_run as load_run  # for notebooks and scripts
from trainer.trainer import evaluate

BUILDS = {'arch': module_arch, 'loss': module_loss}


def main(config):
    """Write a row for each input; the number of those that cannot be read."""
    given = config.arguments
    device, _ = prepare_device(config.get('n_gpu'))
    run = Run(config, device)
    os.chdir(config.started_in)  # what the command names is named from there
    files, others = files_of(given.inputs, run.input_format)
    check_output(given.output, [*files, config.resume])
    names, sources = zip(*(pair for file in files for pair in run.input_format.sources(Path(file))))

    loader = loader_of(sources, run, given.batch_size, given.workers)
    predictions = Predictions(run, given.top)
    batches = predictions.batches(loader)
    rows = evaluate(run.model, batches, lambda output, target: None, predictions)
    n_unreadable = sum('error' in row for row in rows)
    if dist.is_main():
        for note in [*run.notes, *run.input_format.notes(sources), *others]:
            sys.stderr.write(f'note: {note}\n')
        write([{'input': name, **row} for name, row in zip(names, rows)], given)
        failed = f', {n_unreadable:,} of them cannot be read' if n_unreadable else ''
        sys.stderr.write(f'{len(names):,} inputs{failed}: {given.output or "the rows above"}\n')
    return n_unreadable


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='Predict for files without targets.')
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='INPUT',
        help='image files, CSV tables, texts (a line each), .npy arrays; folders of them; globs',
    )
    add_flags(parser, best_first=True)
    parser.add_argument(
        '-o', '--output', metavar='FILE', help='where the rows go; without it they are printed'
    )
    parser.add_argument('--json', action='store_true', help='JSON, a line each, instead of CSV')
    parser.add_argument(
        '--top', type=positive, default=1, metavar='N', help='so many classes for each input'
    )
    parser.add_argument('-b', '--batch_size', type=positive, metavar='N')
    parser.add_argument('-w', '--workers', type=int, metavar='N', help='processes that read files')
    with exit_on_user_error():
        config = ConfigParser.from_args(parser, builds=BUILDS)
        with processes(config):
            n_unreadable = main(config)
    sys.exit(1 if n_unreadable else 0)
