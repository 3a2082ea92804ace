"""Predictions for 10,000 small image files against the validation pass over the same files:
python benchmarks/predict.py [--workers 2]

In one process with the same batches, workers and model, in turn; the median of the rounds, in CPU
seconds without workers, else of the wall clock. Measured are the pass (bound: predicting takes at
most 1.1 times as long) and the whole of predict.py behind its imports: loading the model, finding
the files, the pass, writing the rows.
"""

import argparse
import contextlib
import functools
import io
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image

import predict
from armature.batch import to_device
from parse_config import ConfigParser
from train import build, build_data
from trainer.trainer import evaluate
from utils import MetricTracker

N_CLASSES, BATCH_SIZE = 10, 128
NAMES = (('validation', 'validate'), ('the pass', 'evaluate'), ('predict.py', 'predict_files'))


def write_images(folder: Path, n_images: int) -> None:
    draw = np.random.default_rng(0)
    for number in range(n_images):
        place = folder / str(number % N_CLASSES) / f'{number:05}.png'
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (28, 28), dtype=np.uint8)).save(place)


def config_of(folder: Path, n_workers: int) -> dict:
    return {
        'name': 'speed',
        'n_gpu': 1 if torch.cuda.is_available() else 0,
        'arch': {'type': 'MnistModel', 'args': {}},
        'data_loader': {
            'type': 'ImageFolderDataLoader',
            'args': {
                'data_dir': str(folder / 'images'),
                'size': 28,
                'mode': 'L',
                'batch_size': BATCH_SIZE,
                'num_workers': n_workers,
            },
        },
        'optimizer': {'type': 'SGD', 'args': {'lr': 0.01}},
        'loss': 'nll_loss',
        'metrics': ['accuracy'],
        'trainer': {
            'epochs': 1,
            'len_epoch': 1,
            'verbosity': 0,
            'save_dir': str(folder / 'saved'),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=10_000)
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(folder / 'images/train', given.images)
        write_images(folder / 'images/valid', given.images)
        write_images(folder / 'new', given.images)
        config = ConfigParser(config_of(folder, given.workers))
        trainer = build(config)
        trainer.train()
        _, loader = build_data(config)
        metrics = MetricTracker('loss', metrics=trainer.metric_ftns, loss=trainer.criterion)

        def validate() -> None:
            batches = (to_device(batch, trainer.device) for batch in loader)
            evaluate(trainer.model, batches, trainer.criterion, metrics)

        def predict_files() -> None:
            again = ConfigParser(config.config, resume=config.save_dir / 'checkpoint-last.pth')
            again.arguments = argparse.Namespace(
                inputs=[str(folder / 'new')],
                output=str(folder / 'found.csv'),
                batch_size=None,
                workers=None,
                json=False,
                top=1,
            )
            with contextlib.redirect_stderr(io.StringIO()):
                assert predict.main(again) == 0

        def timed(run: Callable, *arguments) -> Any:
            started = clock()
            found = run(*arguments)
            seconds[run.__name__].append(clock() - started)
            return found

        clock = time.perf_counter if given.workers else time.process_time
        seconds, passes = defaultdict(list), predict.evaluate
        predict.evaluate = functools.partial(timed, passes)
        for _ in range(given.rounds):
            timed(validate)
            timed(predict_files)
    validation = seconds['validate']
    for name, kind in NAMES:
        found = seconds[kind]
        ratio = statistics.median(b / a for a, b in zip(validation, found))
        print(f'{name:10} {statistics.median(found):6.2f} s, {ratio:.2f} times validation')


if __name__ == '__main__':
    main()
