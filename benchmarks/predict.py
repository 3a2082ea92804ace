"""Predictions for 10,000 small image files against the validation pass over the same files:
python benchmarks/predict.py [--workers 2]

Both in one process with the same batches, workers and model, in turn; seconds of the wall clock,
the median of the rounds. Bound: predicting takes at most 1.1 times as long.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

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

        seconds = {'validation': [], 'predict.py': []}
        for _ in range(given.rounds):
            for name, run in (('validation', validate), ('predict.py', predict_files)):
                started = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - started)
    for name, found in seconds.items():
        print(f'{name:12} {statistics.median(found):6.2f} s for {given.images:,} images')
    ratios = [b / a for a, b in zip(*seconds.values())]
    print(f'predict.py takes {statistics.median(ratios):.2f} times as long (bound: 1.1)')


if __name__ == '__main__':
    main()
