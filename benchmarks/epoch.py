"""One epoch of MnistModel on 60,000 MNIST-sized images of bytes, batch 128: train.py against a
hand-written loop, and against the ideal one: images that are floats already, in order.

    python benchmarks/epoch.py

All are run as fresh processes, in turn, on the same random idx files, with 6,000 images for
validation, and with the default number of threads. "Loop" is the time from the first batch to the
end of the epoch's training, as each process measures it itself; figures are medians, ratios medians
of the rounds'. Bounds: 1.0 of the hand-written loop and its whole process, 1.2 of the ideal loop.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
N_IMAGES = 60_000

BY_HAND = """
import sys, time
import torch
import torch.nn.functional as F
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from model.model import MnistModel

def read(name, start, *shape):
    content = bytearray((Path(sys.argv[1]) / 'MNIST' / 'raw' / name).read_bytes())
    return torch.frombuffer(content, dtype=torch.uint8, offset=start).view(shape)

torch.manual_seed(0)
n_valid = 6000
images = read('train-images-idx3-ubyte', 16, -1, 1, 28, 28)
labels = read('train-labels-idx1-ubyte', 8, -1).long()
model = MnistModel()
optimizer = torch.optim.Adam(model.parameters(), lr=0.001, amsgrad=True)

def prepared(indices):
    return images.index_select(0, indices).float().div_(255).sub_(0.1307).div_(0.3081)

order = (torch.randperm(len(images) - n_valid) + n_valid).split(128)
if sys.argv[3] == 'ideal':
    floats = prepared(torch.arange(len(images)))
    order = torch.arange(n_valid, len(images)).split(128)
    prepared = lambda indices: floats[indices[0]:indices[-1] + 1]

model.train()
started = time.perf_counter()
loss_sum = n_correct = 0
for indices in order:
    target = labels[indices]
    output = model(prepared(indices))
    loss = F.nll_loss(output, target)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    loss_sum += loss.detach() * len(target)
    n_correct += (output.argmax(1) == target).sum()
float(loss_sum), float(n_correct)
print('loop', time.perf_counter() - started)
model.eval()
with torch.no_grad():
    for indices in torch.arange(n_valid).split(128):
        output = model(prepared(indices))
        loss_sum += F.nll_loss(output, labels[indices])
        n_correct += (output.argmax(1) == labels[indices]).sum()
torch.save(model.state_dict(), sys.argv[1] + '/by_hand.pth')
"""

# train.py as it is, with a clock around the batches.
TIMED = """
import runpy, sys, time
sys.path.insert(0, sys.argv.pop(1))
from base import BaseTrainer
batches = BaseTrainer.batches
def timed(self, epoch):
    started = time.perf_counter()
    yield from batches(self, epoch)
    print('loop', time.perf_counter() - started)
BaseTrainer.batches = timed
sys.argv[0] = 'train.py'
runpy.run_path('train.py', run_name='__main__')
"""


def write_idx(folder: Path) -> None:
    import numpy as np

    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, values in (
        ('train-images-idx3-ubyte', random.integers(0, 256, (N_IMAGES, 28, 28), dtype=np.uint8)),
        ('train-labels-idx1-ubyte', random.integers(0, 10, N_IMAGES, dtype=np.uint8)),
    ):
        head = bytes([0, 0, 8, values.ndim]) + b''.join(
            size.to_bytes(4, 'big') for size in values.shape
        )
        (folder / name).write_bytes(head + values.tobytes())
        # torchvision reads a part when both are there.
        (folder / name.replace('train', 't10k')).write_bytes(head + values.tobytes())


def seconds(*arguments: str) -> tuple[float, float]:
    """(loop, whole process)"""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, '-c', *arguments], cwd=ROOT, text=True, capture_output=True
    )
    whole = time.perf_counter() - started
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return float(re.search(r'^loop (\S+)', done.stdout, flags=re.MULTILINE)[1]), whole


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        write_idx(Path(folder) / 'MNIST' / 'raw')
        settings = {
            'data_loader.args.data_dir': folder,
            'data_loader.args.validation_split': 0.1,
            'trainer.epochs': 1,
            'trainer.save_dir': folder,
            'data_loader.args.batch_size': 128,
        }
        train = [
            TIMED,
            str(ROOT),
            '-c',
            'configs/mnist.json',
            '-d',
            'cpu',
            *(word for name, value in settings.items() for word in ('--set', f'{name}={value}')),
        ]
        times = {'by hand': [], 'ideal': [], 'train.py': []}
        for _ in range(rounds):
            for way in ('by hand', 'ideal'):
                times[way].append(seconds(BY_HAND, folder, str(ROOT), way))
            times['train.py'].append(seconds(*train))
    print(f'{"":18s}{"loop":>9s}{"whole process":>16s}')
    for way, rows in times.items():
        loop, whole = map(statistics.median, zip(*rows))
        print(f'{way:18s}{loop:7.2f} s{whole:14.2f} s')
    for way, bounds in (('by hand', 'bounds 1.0 and 1.0'), ('ideal', 'bound 1.2 of the loop')):
        pairs = zip(times['train.py'], times[way])
        ratios = [(ours[0] / theirs[0], ours[1] / theirs[1]) for ours, theirs in pairs]
        loop, whole = map(statistics.median, zip(*ratios))
        print(
            f'train.py / {way:8s}{loop:8.2f}{whole:16.2f}   (medians of {rounds} rounds; {bounds})'
        )


if __name__ == '__main__':
    main()
