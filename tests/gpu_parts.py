"""What tests/gpu.py asks of a GPU, in PARTS: functions of a folder that yield (asked, check)."""

import contextlib
import csv
import ctypes
import gc
import glob
import json
import multiprocessing
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset, TensorDataset

import train
from armature.checkpoint import files
from armature.config.read import read_config
from armature.processes.devices import prepare_device
from armature.processes.launch import PR_SET_PDEATHSIG
from armature.run.metric_tracker import MetricTracker
from base import BaseDataLoader, BaseModel
from model.metric import accuracy, top_k_acc
from model.model import MnistModel
from parse_config import ConfigParser
from tests import gpu_optimizers, warm

ROOT = Path(__file__).resolve().parent.parent
HERE = sys.modules[__name__]
ON_GPU = True  # False in a dry run
BUILDS = train.BUILDS | {'arch': HERE, 'data_loader': HERE}


class NotHere(Exception):
    """What cannot be tried on this machine; the text says why."""


def needs_gpu(what: str = 'a GPU') -> None:
    if not ON_GPU:
        raise NotHere(f'needs {what}')


def device() -> str:
    return 'cuda' if ON_GPU else 'cpu'


def sized(on_gpu: int, dry: int) -> int:
    return on_gpu if ON_GPU else dry


# What is trained


class Plain(nn.Module):
    """A network without anything random."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 16, 5, stride=2), nn.Linear(16 * 12 * 12, 10)

    def forward(self, x):
        return F.log_softmax(self.out(F.relu(self.conv(x)).flatten(1)), dim=1)


class Blocks(BaseModel):
    """A transformer over (batch, length, width)."""

    def __init__(self, n_blocks: int = 4, width: int = 64):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True, norm_first=True)
            for _ in range(n_blocks)
        )
        self.out = nn.Linear(width, 10)

    def shard_blocks(self):
        return list(self.blocks)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return F.log_softmax(self.out(x.mean(1)), dim=1)


class OneByOne(Dataset):
    """Samples that stay out of memory: workers read them, with noise."""

    def __init__(self, images, labels):
        self.images, self.targets = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index] + 0.1 * torch.randn(()), self.targets[index]


class Images(BaseDataLoader):
    """Ten classes of random patterns with noise."""

    def __init__(
        self,
        batch_size: int,
        n_samples: int | None = None,
        shape: list = (1, 28, 28),
        one_by_one: bool = False,
        **options,
    ):
        n_samples = n_samples or sized(1920, 384)  # 30 batches of 64, or 6
        random = torch.Generator().manual_seed(0)
        labels = torch.randint(10, (n_samples,), generator=random)
        images = torch.randn(10, *shape, generator=random)[labels]
        images += torch.randn(n_samples, *shape, generator=random)
        dataset = (OneByOne if one_by_one else TensorDataset)(images, labels)
        super().__init__(dataset, batch_size, **options)


class Lengths(BaseDataLoader):
    """A batch of short sequences, then one of long ones."""

    def __init__(self, batch_size: int, width: int, short: int, long: int, **options):
        samples = [(torch.randn(short, width), 0)] * batch_size
        samples += [(torch.randn(long, width), 1)] * batch_size
        super().__init__(samples, batch_size, shuffle=False, **options)


def experiment(folder: Path, arch='MnistModel', data=None, trainer=None, **sections) -> dict:
    """A config of two epochs at most on small synthetic data."""
    return {
        'name': 'gpu',
        'n_gpu': int(ON_GPU),
        'arch': arch if isinstance(arch, dict) else {'type': arch},
        'data_loader': {'type': 'Images', 'args': {'batch_size': 64, **(data or {})}},
        'optimizer': {'type': 'Adam', 'args': {'lr': 0.001}},
        'loss': 'nll_loss',
        'metrics': ['accuracy'],
        'trainer': {
            'epochs': 1,
            'save_dir': str(folder),
            'verbosity': 0,
            'log_step': sized(10, 2),
            **(trainer or {}),
        },
        **sections,
    }


def trainer_of(values: dict):
    train.module_arch = train.module_data = HERE
    return train.build(ConfigParser(values).check(BUILDS))


def trained(values: dict):
    trainer = trainer_of(values)
    trainer.train()
    return trainer


def weights_of(trainer) -> dict[str, torch.Tensor]:
    """Those that would be tested."""
    with trainer.stepper.tested_weights():
        state = trainer.model.state_dict()
        state = {name.removeprefix('_orig_mod.'): value for name, value in state.items()}
        return {name: value.cpu().clone() for name, value in state.items()}


def farthest(some: dict, others: dict) -> float:
    """The largest difference of two states, relative to the largest number of each tensor."""

    def gap(one, other):
        return float((one - other).abs().max() / other.abs().max().clamp(1e-6))

    return max(gap(some[name].double(), each.double()) for name, each in others.items())


def free() -> None:
    """The memory of earlier checks in this process."""
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


# The machine


def machine(folder):
    def looked_at():
        facts = [f'torch {torch.__version__}, Python {platform.python_version()}']
        facts += [f'{len(os.sched_getaffinity(0))} cores']
        if not ON_GPU:
            return ', '.join([f'a dry run on the CPU: {platform.machine()}', *facts]), None
        if not torch.cuda.is_available():
            raise RuntimeError('there is no GPU: --dry-run tries what it can without one')
        torch.ones(1, device='cuda').item()
        driver = 'unknown'
        if shutil.which('nvidia-smi'):
            query = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
            driver = subprocess.run(query, capture_output=True, text=True).stdout.strip()
        facts += [f'CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}']
        return ', '.join([torch.cuda.get_device_name(), *facts, f'driver {driver}']), True

    yield 'the card and its software', looked_at


# Nothing in the loop waits for the device


class Waits:
    """Counts where the host waits for the device while it is on, as 'ours:line -> inner:line'.

    By torch.cuda.set_sync_debug_mode('warn'), which shows all places where 'error' would show one.
    On the CPU, by the numbers that are read out of tensors.
    """

    def __init__(self):
        self.places, self.is_on = Counter(), False

    def __enter__(self):
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter('always')
        warnings.showwarning = self._heard
        if not ON_GPU:
            self._stack.enter_context(_Reads(self))
        return self

    def __exit__(self, *error):
        self.turn(False)
        self._stack.close()

    def turn(self, on: bool) -> None:
        self.is_on = on
        if ON_GPU:
            torch.cuda.set_sync_debug_mode('warn' if on else 'default')

    def _heard(self, message, *_, **__):
        if 'called a synchronizing' in str(message):
            self.note()

    def note(self):
        stack = traceback.extract_stack()[:-2]
        own = ('gpu_parts.py', 'warnings.py', '_dynamo/eval_frame.py', 'torch/_compile.py')
        frames = [frame for frame in stack if not frame.filename.endswith(own)]
        ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT)]
        place = ' -> '.join(dict.fromkeys(map(_place, [*ours[-1:], *frames[-1:]])))
        if place not in self.places:
            print(f'waits: {place}\n{"".join(traceback.format_list(frames[-12:]))}', flush=True)
        self.places[place] += 1


class _Reads(TorchDispatchMode):
    def __init__(self, waits: Waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.waits.is_on and function is torch.ops.aten._local_scalar_dense.default:
            read_in = {frame.filename for frame in traceback.extract_stack(limit=12)}
            # These read numbers that are on the CPU in any case.
            if not any('/torch/optim/' in file or '/torchvision/' in file for file in read_in):
                self.waits.note()
        return function(*args, **(kwargs or {}))


def _place(frame) -> str:
    path = Path(frame.filename)
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else '/'.join(path.parts[-3:])
    return f'{name}:{frame.lineno}'


def waits_of(values: dict, known: str = '') -> tuple[str, bool]:
    """Where the steps between two logs wait, and batches of the validation; known: may be."""
    trainer, n_steps = trainer_of(values), 0
    end_step, watched = trainer.end_step, trainer.watched

    def ended():
        nonlocal n_steps
        is_last = trainer.position + 1 == trainer.len_epoch
        is_due = is_last or (trainer.position + 1) % trainer.log_step == 0
        n_steps += waits.is_on
        if is_due:
            waits.turn(False)
        end_step()
        if is_due and not is_last:
            waits.turn(True)

    def seen(*given):
        try:
            for number, content in enumerate(watched(*given)):
                waits.turn(number > 0)
                yield content
        finally:  # also where nobody takes what comes after the last batch
            waits.turn(False)

    trainer.end_step, trainer.watched = ended, seen
    with Waits() as waits:
        trainer.train()
    places = [f'{place} ({count} times)' for place, count in waits.places.most_common(4)]
    # A known wait has to be found: else nothing would be.
    is_heard = n_steps > 0 and bool(places or not known or not ON_GPU)
    return f'{n_steps} steps: {", ".join(places) or "none waits"}', is_heard and all(
        known and known in place for place in waits.places
    )


ON_DEVICE, WORKERS = {'in_memory': 'device'}, {'one_by_one': True, 'num_workers': 2}
MICRO = {'type': 'MulticlassAccuracy', 'args': {'num_classes': 10, 'average': 'micro'}}
MACRO = {'type': 'MulticlassAccuracy', 'args': {'num_classes': 10}, 'name': 'macro'}
ONE_CYCLE = {
    'type': 'OneCycleLR',
    'args': {'max_lr': 0.01, 'total_steps': 100},
    'interval': 'step',
    'warmup_steps': 25,
}
FUSED = {'type': 'AdamW', 'args': {'lr': 0.001, 'fused': True}}
EVERYTHING = {
    'trainer': {'max_grad_norm': 1.0, 'max_grad_value': 1.0, 'ema_decay': 0.9, 'precision': 'bf16'},
    'lr_scheduler': ONE_CYCLE,
    'metrics': ['accuracy', 'top_k_acc', MICRO],
}
SYNC = {  # (what the config says, where a wait is known)
    'data on the device': ({'data': ON_DEVICE}, ''),
    'data in pinned memory': ({}, ''),
    'two workers': ({'data': WORKERS}, ''),
    'clipping, EMA, bf16, OneCycleLR by step with warm-up, torchmetrics; on the device': (
        {'data': ON_DEVICE, **EVERYTHING},
        '',
    ),
    'the same from pinned memory': (EVERYTHING, ''),
    'the same from two workers': ({'data': WORKERS, **EVERYTHING}, ''),
    'validation': ({'data': {**ON_DEVICE, 'validation_split': 0.2}, **EVERYTHING}, ''),
    'fp16 with scaler, fused AdamW': ({'trainer': {'precision': 'fp16'}, 'optimizer': FUSED}, ''),
    'fp16 with scaler, clipping, fused AdamW': (
        {'trainer': {'precision': 'fp16', 'max_grad_norm': 1.0}, 'optimizer': FUSED},
        '',
    ),
    'fp16 with scaler, AdamW as it is (torch reads whether gradients are finite)': (
        {'trainer': {'precision': 'fp16'}},
        'amp/grad_scaler.py',
    ),
    'micro-batches': ({'data': ON_DEVICE, 'trainer': {'microbatch_size': 16}}, ''),
    'weighted CrossEntropyLoss in micro-batches': (
        {
            'data': ON_DEVICE,
            'trainer': {'microbatch_size': 16},
            'loss': {
                'type': 'CrossEntropyLoss',
                'args': {'weight': [1.0, 2.0] * 5},
            },
        },
        '',
    ),
    'weighted CrossEntropyLoss with label_smoothing (torch reads the weights)': (
        {
            'data': ON_DEVICE,
            'loss': {
                'type': 'CrossEntropyLoss',
                'args': {'weight': [1.0, 2.0] * 5, 'label_smoothing': 0.1},
            },
        },
        'nn/functional.py',
    ),
    'a sum of two losses': (
        {
            'data': ON_DEVICE,
            'loss': [{'type': 'nll_loss'}, {'type': 'cross_entropy', 'weight': 0.5}],
        },
        '',
    ),
    'SWA': ({'data': ON_DEVICE, 'trainer': {'swa_start': 1, 'epochs': 2}}, ''),
    'augment on the device': (
        {
            'data': {
                **ON_DEVICE,
                'augment': [
                    {'type': 'RandomHorizontalFlip'},
                    {'type': 'RandomCrop', 'args': {'size': 28, 'padding': 2}},
                ],
            }
        },
        '',
    ),
    'torchmetrics by class (its bincount reads)': (
        {'data': ON_DEVICE, 'metrics': [MACRO]},
        'torchmetrics',
    ),
    'on_nan "skip" (documented: reads one number a step)': (
        {'data': ON_DEVICE, 'trainer': {'on_nan': 'skip'}},
        'base/stepper.py',
    ),
    'LBFGS (documented: torch reads)': (
        {
            'data': ON_DEVICE,
            'arch': 'Plain',
            'optimizer': {'type': 'LBFGS', 'args': {'lr': 0.01, 'max_iter': 2}},
        },
        'optim/lbfgs.py',
    ),
}


def no_sync(folder):
    for name, (settings, known) in SYNC.items():
        values = experiment(folder, **settings)
        yield f'no step waits for the device: {name}', partial(waits_of, values, known)


# Speed, against the loop that one would write


class ByHand:
    """Data, sums and order on the device; the mean is read as often as ours is logged."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable,
        tensors: tuple[torch.Tensor, torch.Tensor],
        loss: Callable,
        batch_size: int,
        log_step: int,
        metrics: tuple = (accuracy,),
        ema_decay: float | None = None,
        is_bf16: bool = False,
        is_compiled: bool = False,
        channels_last: bool = False,
        rows: torch.Tensor | None = None,
    ):
        self.images, self.labels = (each.to(device()) for each in tensors)
        self.rows = torch.arange(len(self.images)) if rows is None else rows
        self.rows = self.rows.to(device())
        self.model = model.to(device())
        if channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.parameters = list(self.model.parameters())
        if is_compiled:
            self.model = torch.compile(self.model)
        self.optimizer = optimizer(self.parameters)
        self.loss, self.metrics = loss, metrics
        self.batch_size, self.log_step, self.is_bf16 = batch_size, log_step, is_bf16
        self.ema_decay, self.is_benchmarked = ema_decay, False
        if ema_decay:
            self.average = [each.detach().clone() for each in self.parameters]

    def epoch(self) -> None:
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = self.is_benchmarked or before
        self.model.train()
        sums, n_seen = torch.zeros(1 + len(self.metrics), device=device()), 0
        order = self.rows[torch.randperm(len(self.rows), device=device())]
        for step, rows in enumerate(order.split(self.batch_size), 1):
            data, target = self.images[rows], self.labels[rows]
            with torch.autocast(device(), torch.bfloat16, enabled=self.is_bf16):
                output = self.model(data)
                loss = self.loss(output, target)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                if self.ema_decay:
                    torch._foreach_lerp_(self.average, self.parameters, 1 - self.ema_decay)
                values = [loss, *(metric(output, target) for metric in self.metrics)]
                sums += torch.stack([value.float() for value in values]) * len(target)
            n_seen += len(target)
            if step % self.log_step == 0:
                (sums / n_seen).tolist()
        (sums / n_seen).tolist()
        torch.backends.cudnn.benchmark = before


class Ours:
    """The training part of an epoch by our Trainer, logging included."""

    def __init__(self, values: dict):
        self.trainer, self.n_epochs = trainer_of(values), 0
        self.trainer.do_validation = False

    def epoch(self) -> None:
        self.n_epochs += 1
        self.trainer.position = 0
        self.trainer._train_epoch(self.n_epochs)


def seconds_of(function: Callable) -> float:
    if ON_GPU:
        torch.cuda.synchronize()
    begun = time.perf_counter()
    function()
    if ON_GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def made(make: Callable) -> tuple:
    """(what make() gives, the most bytes that it has in its second epoch)."""
    free()
    before = torch.cuda.memory_allocated() if ON_GPU else 0
    loop = make()
    loop.epoch()
    if not ON_GPU:
        return loop, 0
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    loop.epoch()
    return loop, torch.cuda.max_memory_allocated() - before


def compared(ours: Callable, by_hand: Callable, n_images: int, n_rounds: int, n_epochs: int = 1):
    """Rows: images a second of ours over those by hand, and the peaks of memory."""
    loops = {}

    def seconds(name: str) -> float:
        return seconds_of(lambda: [loops[name].epoch() for _ in range(n_epochs)])

    def ratio(n_rounds: int = n_rounds) -> tuple:
        rounds = []
        for number in range(n_rounds):
            names = ('ours', 'hand') if number % 2 else ('hand', 'ours')
            rounds.append({name: seconds(name) for name in names})
        medians = {
            name: statistics.median(each[name] for each in rounds) for name in ('ours', 'hand')
        }
        ratios = [each['hand'] / each['ours'] for each in rounds]
        print('rounds (seconds):', rounds, flush=True)
        pace = {name: n_epochs * n_images / each for name, each in medians.items()}
        return statistics.median(ratios), min(ratios), max(ratios), pace

    def speed():
        # cuBLAS and cuDNN take memory of their own once, whoever is the first.
        layer = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 8)).to(device())
        for dtype in (None, torch.bfloat16):
            with torch.autocast(device(), dtype, enabled=dtype is not None):
                layer(torch.randn(4, 3, 3, 3, device=device())).float().sum().backward()
        loops['ours'], loops['ours peak'] = made(ours)
        loops['hand'], loops['hand peak'] = made(by_hand)
        middle, low, high, pace = ratio()
        seen = f'{middle:.3f} ({low:.3f} to {high:.3f}): {pace["ours"]:,.0f} against '
        return f'{seen}{pace["hand"]:,.0f} images a second', middle >= 0.98 if ON_GPU else None

    def memory():
        needs_gpu()
        peaks = loops['ours peak'], loops['hand peak']
        seen = f'{peaks[0] / 1e6:,.1f} MB against {peaks[1] / 1e6:,.1f}'
        return seen, peaks[0] <= 1.01 * peaks[1]

    def with_benchmark():
        needs_gpu()
        loops['hand'].is_benchmarked = True
        loops['hand'].epoch()
        middle, low, high, _ = ratio(3)
        loops['hand'].is_benchmarked = False
        return f'{middle:.3f} ({low:.3f} to {high:.3f})', None

    yield 'at least 0.98 of the images a second by hand', speed
    yield 'peak memory at most 1.01 of that by hand', memory
    yield 'the same, where the loop by hand sets cudnn.benchmark', with_benchmark


def profiled(values: dict, n_epochs: int):
    """Where the host's time goes; only in the log."""
    import cProfile
    import pstats

    loop = Ours(values)
    loop.epoch()
    profile = cProfile.Profile()
    profile.runcall(lambda: [loop.epoch() for _ in range(n_epochs)])
    pstats.Stats(profile, stream=sys.stdout).sort_stats('tottime').print_stats(25)
    return 'in the log', None


def named(prefix: str, rows):
    for asked, check in rows:
        yield f'{prefix}: {asked}', check


def default_config(folder: Path, **trainer) -> dict:
    """config.json, written to `folder` for this machine."""
    values = read_config(ROOT / 'config.json', 'config.json').values
    values['n_gpu'] = int(ON_GPU)
    values['trainer'] |= {'save_dir': str(folder), 'verbosity': 0, **trainer}
    return values


def speed_digits(folder):
    """The default experiment, as it stands and with its data on the device."""
    from data_loader.data_loaders import DigitsDataLoader
    from model.loss import nll_loss

    HERE.DigitsDataLoader = DigitsDataLoader

    def by_hand(ours: Ours):
        loader = ours.trainer.data_loader
        return ByHand(
            MnistModel(),
            partial(torch.optim.Adam, lr=0.002, amsgrad=True),
            [each.cpu() for each in loader._memory.tensors],
            nll_loss,
            loader.batch_size,
            ours.trainer.log_step,
            metrics=(accuracy, top_k_acc),
            ema_decay=0.995,
            rows=loader.indices(0),
        )

    for name, args in (('as it stands', {}), ('data on the device', ON_DEVICE)):
        values = default_config(folder)
        values['data_loader']['args'] |= args
        kept = []

        def ours(values=values, kept=kept):
            kept[:] = [Ours(values)]
            return kept[0]

        rows = compared(ours, lambda kept=kept: by_hand(kept[0]), 1294, sized(9, 1), sized(8, 1))
        yield from list(named(f'default experiment, {name}', rows))[: 2 if args else 1]
    values['trainer']['tensorboard'] = False
    yield 'default experiment: profile', partial(profiled, values, sized(10, 1))


def speed_mnist(folder):
    """60,000 images of 1 x 28 x 28 on the device; floats."""
    n_samples = sized(60_000, 600)
    data = {'batch_size': 128, 'n_samples': n_samples, **ON_DEVICE}
    values = experiment(folder, data=data, trainer={'log_step': None, 'tensorboard': True})
    kept = []

    def ours():
        kept[:] = [Ours(values)]
        return kept[0]

    def by_hand():
        trainer = kept[0].trainer
        optimizer = partial(torch.optim.Adam, lr=0.001)
        tensors = [each.cpu() for each in trainer.data_loader._memory.tensors]
        return ByHand(MnistModel(), optimizer, tensors, F.nll_loss, 128, trainer.log_step)

    yield from named('an epoch of MNIST', compared(ours, by_hand, n_samples, sized(11, 1)))
    yield 'an epoch of MNIST: profile', partial(profiled, values, 1)


def speed_resnet(folder):
    """ResNet-50 on 224 x 224: bf16, channels_last, fused AdamW; as it is, and compiled."""
    from torchvision.models import resnet50

    size, n_samples, batch_size = sized(224, 32), sized(2048, 8), sized(256, 4)
    data = {'batch_size': batch_size, 'n_samples': n_samples, 'shape': [3, size, size]}
    for is_compiled in (False, True) if ON_GPU else (False,):
        values = experiment(
            folder,
            {'type': 'resnet50', 'args': {'num_classes': 10}},
            {**data, **ON_DEVICE},
            {'precision': 'bf16', 'channels_last': True, 'compile': is_compiled, 'log_step': 8},
            optimizer=FUSED,
            loss='cross_entropy',
        )
        kept = []

        def ours(values=values, kept=kept):
            kept[:] = [Ours(values)]
            return kept[0]

        def by_hand(kept=kept, is_compiled=is_compiled):
            return ByHand(
                resnet50(num_classes=10),
                partial(torch.optim.AdamW, lr=0.001, fused=True),
                [each.cpu() for each in kept[0].trainer.data_loader._memory.tensors],
                F.cross_entropy,
                batch_size,
                8,
                is_bf16=True,
                is_compiled=is_compiled,
                channels_last=True,
            )

        how = 'compiled' if is_compiled else 'eager'
        yield from named(
            f'ResNet-50, {how}', compared(ours, by_hand, n_samples, sized(5, 1), sized(2, 1))
        )
    if not ON_GPU:
        yield 'ResNet-50, compiled', partial(needs_gpu, 'a GPU: it takes minutes here')


# Features


def features(folder):
    """Numbers as on the CPU, and the kinds of precision."""
    if ON_GPU:
        torch.backends.cudnn.allow_tf32 = False
    plain = {'arch': 'Plain', 'optimizer': {'type': 'SGD', 'args': {'lr': 0.05, 'momentum': 0.9}}}

    def same(settings: dict, others: dict, bound: float = 1e-3):
        ours = weights_of(trained(experiment(folder, **{**plain, **settings})))
        theirs = weights_of(trained(experiment(folder, **{**plain, **others})))
        gap = farthest(ours, theirs)
        return f'{gap:.1e}', gap <= bound

    def as_on_cpu(**settings):
        return same(settings, {**settings, 'n_gpu': 0})

    for name, settings in {
        'SGD': {},
        'EMA': {'trainer': {'ema_decay': 0.9}},
        'SWA': {'trainer': {'swa_start': 1, 'epochs': 3}},
        'clipping, OneCycleLR by step': {
            'trainer': {'max_grad_norm': 0.5},
            'lr_scheduler': ONE_CYCLE,
        },
        'data on the device': {'data': ON_DEVICE},
    }.items():
        yield f'weights as on the CPU to 1e-3: {name}', partial(as_on_cpu, **settings)
    micro = {'trainer': {'microbatch_size': 16}}
    yield 'micro-batches of 16 as the whole batch of 64, to 1e-4', partial(same, micro, {}, 1e-4)

    reached = {}

    def learns(name: str, **settings):
        trainer = trained(
            experiment(
                folder,
                data={'validation_split': 0.2, **ON_DEVICE},
                **{**settings, 'trainer': {'epochs': 3, **settings.get('trainer', {})}},
            )
        )
        reached[name] = value = trainer.history[-1]['val_accuracy']
        scaler, seen = trainer.stepper.scaler, f'accuracy {value:.3f}'
        if scaler.is_enabled():
            seen += f', loss scale {scaler.get_scale():g}'
        return seen, value >= reached['fp32'] - 0.02

    yield 'fp32 learns', partial(learns, 'fp32')
    for name, settings in {
        'bf16': {'trainer': {'precision': 'bf16'}},
        'fp16 with scaler': {'trainer': {'precision': 'fp16'}},
        'fp16 with scaler, clipping, fused AdamW': {
            'trainer': {'precision': 'fp16', 'max_grad_norm': 1.0},
            'optimizer': FUSED,
        },
        'TF32': {'trainer': {'matmul_precision': 'high'}},
        'channels_last': {'trainer': {'channels_last': True}},
        'LBFGS': {
            'arch': 'Plain',
            'optimizer': {'type': 'LBFGS', 'args': {'lr': 0.1, 'max_iter': 4}},
        },
        'on_nan "skip"': {'trainer': {'on_nan': 'skip'}},
        'Muon beside AdamW': MUON,
    }.items():
        yield f'learns as fp32, to 0.02: {name}', partial(learns, name, **settings)

    def lora():
        trainer = trained(
            experiment(
                folder,
                data=ON_DEVICE,
                trainer={'epochs': 3, 'lora': {'match': 'fc*', 'rank': 4}},
            )
        )
        first, *_, last = (row['loss'] for row in trainer.history)
        n_training = sum(each.numel() for each in trainer.model.parameters() if each.requires_grad)
        return f'{n_training} numbers train, loss {first:.3f} to {last:.3f}', last < first

    yield 'LoRA on the fully connected layers: the loss falls', lora

    def tf32():
        needs_gpu()
        a, b = torch.randn(2, 1024, 1024, device='cuda').unbind()
        gaps = {}
        for how in ('highest', 'high'):
            trainer_of(experiment(folder, trainer={'matmul_precision': how}))
            exact = a.double() @ b.double()
            gaps[how] = float(((a @ b) - exact).abs().max() / exact.abs().max())
        return str({how: f'{gap:.0e}' for how, gap in gaps.items()}), (
            gaps['highest'] < 1e-5 < gaps['high'] < 1e-2
        )

    yield 'matmul_precision "high" is TF32, "highest" is not', tf32


MUON = {
    'optimizer': {
        'type': 'AdamW',
        'args': {'lr': 0.001},
        'groups': [{'match': 'fc*.weight', 'type': 'Muon', 'lr': 0.01}],
    }
}


def compiling(folder):
    """Compile modes give the numbers of the eager model."""
    plain = {'arch': 'Blocks', 'data': {'shape': [16, 64], 'n_samples': 640, **ON_DEVICE}}
    eager = []

    def losses(**trainer) -> list[float]:
        torch.compiler.reset()
        made = trained(experiment(folder, trainer={'epochs': 2, **trainer}, **plain))
        return [row['loss'] for row in made.history]

    def as_eager(**trainer):
        needs_gpu('a GPU: compiling takes minutes here')
        if not eager:
            eager[:] = losses()
        begun = time.perf_counter()
        found = losses(**trainer)
        gap = max(abs(a - b) for a, b in zip(found, eager))
        return f'{gap:.1e}, {time.perf_counter() - begun:.0f} s', gap < 1e-2

    for mode in (True, 'reduce-overhead', 'blocks'):
        yield f'loss as eager to 1e-2: compile {mode}', partial(as_eager, compile=mode)
        more = {'ema_decay': 0.9, 'max_grad_norm': 9.0}
        if mode != 'reduce-overhead':
            more['microbatch_size'] = 16
        words = ', '.join(more)
        yield (
            f'loss as eager to 1e-2: compile {mode}, {words}',
            partial(as_eager, compile=mode, **more),
        )


def cold_start(folder):
    """Seconds of the first epoch, compiled whole and by blocks, without anything cached."""
    n_blocks, width = sized(24, 2), sized(512, 32)
    data = {'shape': [sized(128, 8), width], 'n_samples': 64, 'batch_size': 32}
    arch = {'type': 'Blocks', 'args': {'n_blocks': n_blocks, 'width': width}}
    took = {}

    def first(mode):
        needs_gpu('a GPU: compiling takes minutes here')
        values = experiment(folder, arch, data, {'compile': mode, 'precision': 'bf16'})
        with ProcessPoolExecutor(1, multiprocessing.get_context('fork')) as fork:
            took[mode] = fork.submit(cold_seconds_of, values, folder / str(mode)).result()
        return f'{took[mode]:.1f} s', took[mode] < took[True] if mode == 'blocks' else None

    yield f'{n_blocks} blocks: first epoch, compile true', partial(first, True)
    yield 'the same, compile "blocks": less', partial(first, 'blocks')


def cold_seconds_of(values: dict, cache: Path) -> float:
    os.environ['TORCHINDUCTOR_CACHE_DIR'] = str(cache)
    return seconds_of(partial(trained, values))


def memory(folder):
    """What fits: "auto", and activation checkpointing."""

    def peak_of(values: dict) -> tuple[float, dict]:
        free()
        trainer = trained(values)
        peak = torch.cuda.max_memory_allocated() if ON_GPU else 1
        return peak, weights_of(trainer)

    def blocks(**trainer):
        length, width = sized(256, 8), sized(512, 32)
        return experiment(
            folder,
            {'type': 'Blocks', 'args': {'n_blocks': sized(12, 2), 'width': width}},
            {'shape': [length, width], 'n_samples': 128, 'batch_size': 64},
            trainer,
            optimizer={'type': 'SGD', 'args': {'lr': 0.01}},
        )

    def checkpointing():
        (kept, whole), (less, again) = (
            peak_of(blocks(activation_checkpointing=on)) for on in (False, True)
        )
        gap = farthest(again, whole)
        seen = f'{less / 1e6:,.0f} MB against {kept / 1e6:,.0f}, weights to {gap:.0e}'
        return seen, gap < 1e-3 and (less < 0.6 * kept or not ON_GPU)

    yield 'activation_checkpointing: below 0.6 of the memory, weights to 1e-3', checkpointing

    @contextlib.contextmanager
    def room_for(values: dict, times: float):
        """Memory for so many times what `values` takes beside its model and data."""
        needs_gpu('a limit of memory')
        free()
        before = torch.cuda.memory_allocated()
        trainer = trainer_of(values)
        held = torch.cuda.memory_allocated() - before
        trainer.train()
        taken = torch.cuda.max_memory_allocated() - before - held
        del trainer
        free()
        limit = torch.cuda.memory_allocated() + held + times * taken
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(limit / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)

    def auto():
        def pictures(batch_size, **trainer):
            data = {'shape': [3, 128, 128], 'n_samples': 512, 'batch_size': batch_size}
            arch = {'type': 'resnet18', 'args': {'num_classes': 10}}
            return experiment(folder, arch, data, trainer, loss='cross_entropy')

        with room_for(pictures(64), 1.45):
            trainer = trained(pictures(256, microbatch_size='auto'))
        size = trainer.stepper.microbatch_size
        return f'{size} of 256, after {trainer.step} steps', size == 64 and trainer.step == 2

    yield 'microbatch_size "auto", with memory for 64 of 256: finds 64 and trains', auto

    def later():
        def sequences(batch_size, **args):
            values = experiment(
                folder,
                {'type': 'Blocks', 'args': {'n_blocks': 6, 'width': 256}},
                trainer={'microbatch_size': 'auto'},
            )
            args |= {'batch_size': batch_size, 'width': 256}
            values['data_loader'] = {'type': 'Lengths', 'args': args}
            return values

        with room_for(sequences(8, short=1024, long=1024), 2.6):
            trainer = trained(sequences(64, short=64, long=1024))
        size = trainer.stepper.microbatch_size
        return f'micro-batches of {size} at the end, {trainer.step} steps', size == 16

    yield '"auto" survives out of memory in a later batch of longer sequences', later


# The scripts, as a user runs them


def script(
    *words, n_processes: int | None = None, limit_s: float = 90, sent: int = 0, when=None, **env
) -> tuple[int, str]:
    """(exit code, output) of `python words`, run in a fork of this process.

    n_processes: as torchrun would start them. sent: the signal it gets as soon as when() is true.
    """
    assert not torch.cuda.is_initialized(), 'scripts cannot be forked from here any more'
    with tempfile.NamedTemporaryFile(mode='r', errors='replace') as said:
        pid = os.fork()
        if pid == 0:
            job = {'arguments': list(map(str, words)), 'cwd': ROOT, 'env': os.environ | env}
            _become_script({**job, 'n_processes': n_processes}, said.name)
        ends_at, code = time.monotonic() + limit_s, None
        while code is None:
            if sent and when():
                os.kill(pid, sent)
                sent = 0
            if time.monotonic() > ends_at:
                os.killpg(pid, signal.SIGKILL)
                limit_s = None
            ended, status = os.waitpid(pid, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if ended else None
            time.sleep(0.01)
        text = said.read()
    print(f'$ {" ".join(map(str, words))}  [{code}]\n{text[-6000:]}', flush=True)
    if limit_s is None:
        raise TimeoutError(f'{words[0]} took too long')
    return code, text


def _become_script(job: dict, said: str) -> None:
    """In the fork: run the script, with its output in the file `said`, and leave."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # as the part, when it is ended
        output = os.O_WRONLY | os.O_APPEND
        files = ((os.devnull, os.O_RDONLY), (said, output), (said, output))
        warm.become(job, [os.open(*each) for each in files])
        warm.run_script()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if code and not isinstance(left.code, int):
            print(left.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(folder: Path, run: str, *settings: str, **trainer) -> list:
    """train.py of the default experiment, made shorter, in the run folder `run`."""
    trainer = {'epochs': sized(8, 4), 'tensorboard': False, 'deterministic': True, **trainer}
    given = [f'n_gpu={int(ON_GPU)}', f'trainer.save_dir={folder}']
    given += [f'trainer.{name}={str(value).lower()}' for name, value in trainer.items()]
    words = [word for each in (*given, *settings) for word in ('--set', each)]
    return ['train.py', '-c', 'config.json', '--run-id', run, *words]


def run_in(folder: Path, run: str) -> Path:
    return folder / 'models' / 'Digits_LeNet' / run


def must(*words, **how) -> str:
    code, text = script(*words, **how)
    if code:
        raise RuntimeError(f'{words[0]} ended with {code}: {(text.split(chr(10)) or [""])[-2:]}')
    return text


def last_state(folder: Path, run: str) -> dict[str, torch.Tensor]:
    """The newest weights of a run, and what its optimizer keeps."""
    saved = files.load(run_in(folder, run) / files.LAST)
    state = dict(saved['state_dict'])
    for name, values in saved['optimizer']['state'].items():
        state |= {f'{name}.{key}': each for key, each in values.items()}
    return {name: each.cpu() for name, each in state.items() if isinstance(each, torch.Tensor)}


def alike(folder: Path, run: str, other: str, bound: float = 0) -> tuple[str, bool]:
    """Whether the states of two runs are equal; to `bound`, where torch is not deterministic."""
    some, others = last_state(folder, run), last_state(folder, other)
    equal = all(torch.equal(value, others[name]) for name, value in some.items())
    gap = farthest(some, others)
    return 'bitwise' if equal else f'to {gap:.1e}', equal or gap <= bound


def resume(folder):
    """What was stopped goes on as if it had not been."""

    def again():
        for run in ('whole', 'twice'):
            must(*command(folder, run))
        return alike(folder, 'whole', 'twice')

    yield 'the same run twice: equal, bitwise', again

    def stopped(run: str, number: int, expected: int, *settings: str):
        """Stopped in its second epoch, then gone on with."""
        go = command(folder, run, *settings, save_every_steps=5)
        file = run_in(folder, run) / files.LAST
        code, _ = script(*go, sent=number, when=file.is_file)
        must('train.py', '-r', run_in(folder, run))
        seen, equal = alike(folder, run, 'whole')
        return f'exit code {code}, then {seen}', equal and code == expected

    for number, expected in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        name = signal.Signals(number).name
        yield (
            f'{name} in the middle, then -r: equal to the whole run, bitwise',
            partial(stopped, name, number, expected),
        )

    def in_steps():
        code, _ = script(*command(folder, 'steps', max_steps=50))
        must('train.py', '-r', run_in(folder, 'steps'), '--set', 'trainer.max_steps=null')
        seen, equal = alike(folder, 'steps', 'whole')
        return f'{seen} (max_steps left with {code})', equal

    yield 'max_steps 50, then -r: equal to the whole run, bitwise', in_steps

    def on_cpu_and_back():
        must(*command(folder, 'moved', epochs=2))
        for epochs, where in ((3, 'cpu'), (sized(8, 4), '0' if ON_GPU else 'cpu')):
            run = run_in(folder, 'moved')
            must('train.py', '-r', run, '-d', where, '--set', f'trainer.epochs={epochs}')
        seen, _ = alike(folder, 'moved', 'whole')
        accuracies = [float(history(folder, run)[-1]['val_accuracy']) for run in ('moved', 'whole')]
        return f'{seen}, accuracy {accuracies[0]:.3f} against {accuracies[1]:.3f}', (
            abs(accuracies[0] - accuracies[1]) < 0.05
        )

    yield (
        'two epochs on the GPU, -r on the CPU, -r on the GPU: accuracy as the whole',
        on_cpu_and_back,
    )

    def tested():
        said = {}
        for where in ('0', 'cpu')[not ON_GPU :]:
            must('test.py', '-r', run_in(folder, 'whole'), '-d', where)
            values = (run_in(folder, 'whole') / 'test.json').read_text()
            said[where] = json.loads(values)['values']
        first, last = said[min(said)], said['cpu']
        gap = max(abs(value - last[name]) for name, value in first.items())
        return f'loss {first["loss"]:.4f}, to {gap:.0e} on the CPU', gap < 1e-3

    yield 'test.py on the GPU as on the CPU, to 1e-3', tested

    def predicted():
        from tests.trained import digit_files

        (folder / 'images').mkdir()
        pictures = digit_files(folder / 'images') / 'test'
        rows = {}
        for where in ('0', 'cpu')[not ON_GPU :]:
            file = folder / f'predicted_{where}.csv'
            must('predict.py', '-r', run_in(folder, 'whole'), '-d', where, '-o', file, pictures)
            rows[where] = [line.split(',')[1] for line in file.read_text().splitlines()[1:]]
        first, last = rows[min(rows)], rows['cpu']
        n_equal = sum(a == b for a, b in zip(first, last))
        return f'{n_equal} of {len(first)} answers equal', n_equal == len(first) == len(last) > 0

    yield 'predict.py on the GPU answers as on the CPU', predicted

    def trained_without(where: list, *settings):
        run = f'cpu{len(where)}'
        must(
            *command(folder, run, 'data_loader.args.in_memory="device"', *settings, epochs=1),
            *where,
        )
        return 'trains', True

    yield 'n_gpu 0 with data on "device": trains', partial(trained_without, [], 'n_gpu=0')
    yield '-d cpu with data on "device": trains', partial(trained_without, ['-d', 'cpu'])


def history(folder: Path, run: str) -> list[dict]:
    with open(run_in(folder, run) / 'metrics.csv', newline='') as file:
        return list(csv.DictReader(file))


def workers(folder):
    """The same results whoever reads the samples."""
    found = {}

    def with_workers(n: int):
        data = {'one_by_one': True, 'num_workers': n, 'n_samples': sized(1920, 128)}
        found[n] = weights_of(
            trained(experiment(folder, data=data, trainer={'deterministic': True}))
        )
        gap = farthest(found[n], found[0])
        return f'to {gap:.0e}', gap == 0

    for n in (0, 2, 4):
        yield f'num_workers {n}: weights as without workers, bitwise', partial(with_workers, n)


# Several processes, as far as one card goes


def processes(folder):
    fsdp = ('distributed.strategy="fsdp"',)
    sharded = (*fsdp, 'distributed.checkpoint="sharded"')
    on_gloo = '' if ON_GPU else ' (gloo here)'
    bound = 0.05

    def torchrun():
        must(*command(folder, 'alone'))
        must(
            '-m',
            'torch.distributed.run',
            '--standalone',
            '--nproc-per-node=1',
            *command(folder, 'torchrun'),
        )
        return alike(folder, 'torchrun', 'alone', bound)

    yield f'torchrun, NCCL with one process{on_gloo}: as without, to {bound}', torchrun

    def joined(run: str, *settings, **trainer):
        must(*command(folder, run, *settings, **trainer), n_processes=1)
        return alike(folder, run, 'alone', bound)

    for name, settings in {
        'DDP': (),
        'FSDP2': fsdp,
    }.items():
        yield (
            f'{name} with one process{on_gloo}: as without, to {bound}',
            partial(joined, name, *settings),
        )

    def learned(run: str, *settings, **trainer):
        must(*command(folder, run, *settings, **trainer), n_processes=1)
        value = float(history(folder, run)[-1]['val_accuracy'])
        before = float(history(folder, 'alone')[-1]['val_accuracy'])
        return f'accuracy {value:.3f} against {before:.3f}', value > before - 0.05

    for name, settings in {
        'FSDP2, mixed_precision bf16': (*fsdp, 'distributed.mixed_precision="bf16"'),
        'DDP, micro-batches (dropout draws anew)': ('trainer.microbatch_size=8',),
    }.items():
        yield f'{name}: accuracy as without, to 0.05', partial(learned, name[:4], *settings)

    def in_parts():
        must(*command(folder, 'parts', *sharded, epochs=2), n_processes=1)
        run = run_in(folder, 'parts')
        must('train.py', '-r', run, '--set', f'trainer.epochs={sized(8, 4)}', n_processes=1)
        must('test.py', '-r', run)
        n_files = len(glob.glob(str(run / '**' / 'rank*.pth'), recursive=True))
        value = float(history(folder, 'parts')[-1]['val_accuracy'])
        before = float(history(folder, 'alone')[-1]['val_accuracy'])
        return f'{n_files} parts, accuracy {value:.3f} against {before:.3f}', value > before - 0.05

    yield 'sharded checkpoints: two epochs, -r, test.py in one process', in_parts

    def two():
        needs_gpu('one GPU, and no more')
        code, text = script(*command(folder, 'two'), n_processes=2)
        lines = [line for line in text.splitlines() if 'processes are started' in line]
        # One line of each process at most: the second waits for torchrun to end it.
        return f'exit code {code}: {lines[0] if lines else text[-200:]}', code == 2 and lines != []

    yield 'two processes on one card: refused in one line', two


# Findings of a reader, for CUDA


def findings(folder):
    def pinned():
        needs_gpu()
        train.seed_everything(1)
        prepare_device(1)
        batch = next(iter(Images(64).batches()))
        is_pinned = all(each.is_pinned() for each in batch.content)
        return f'pinned: {is_pinned}', is_pinned

    yield 'pin_memory pins batches of data in memory', pinned

    def on_cpu():
        trainer = trained(experiment(folder, data=ON_DEVICE, n_gpu=0))
        places = trainer.data_loader._memory.device, next(trainer.model.parameters()).device
        return f'data on {places[0]}, model on {places[1]}', {each.type for each in places} == {
            'cpu'
        }

    yield 'n_gpu 0: data on "device" and the model are on the CPU', on_cpu

    def foreign_metric():
        def half(output, target):
            return torch.tensor(0.5)

        tracker = MetricTracker('loss', metrics=[half, accuracy])
        output, target = torch.randn(8, 10, device=device()), torch.arange(8, device=device())
        for _ in range(3):
            tracker.measure(output.mean(), output, target)
        value = tracker.result()['half']
        return f'{value}', value == 0.5

    yield 'a metric that returns a CPU tensor is averaged', foreign_metric

    def renumbered():
        values = experiment(folder, data={**ON_DEVICE, 'validation_split': 0.2})
        trainer = trainer_of(values)
        trainer.valid_data_loader._reader.class_map = torch.arange(10).flip(0)
        batch = next(iter(trainer.valid_data_loader.batches()))
        return f'on {batch.content[1].device}', batch.content[1].device.type == device()

    yield 'classes of another split are renumbered on the device', renumbered

    def nested():
        macro = {key: MACRO[key] for key in ('type', 'args')}
        best = {'type': 'MinMaxMetric', 'args': {'base_metric': macro}, 'name': 'ends'}
        trainer = trained(experiment(folder, data=ON_DEVICE, metrics=['accuracy', best, MICRO]))
        values = {name: float(value) for name, value in trainer.history[-1].items()}
        return f'{values}', all(0 <= value <= 1 for name, value in values.items() if 'ends' in name)

    yield 'a metric around another is measured on the device', nested


def finders(folder):
    """tools.find_workers and tools.find_batch: what they print is in the log."""

    def found(*words):
        text = must('-m', *words, '--set', f'n_gpu={int(ON_GPU)}', limit_s=60)
        return text.strip().splitlines()[-1].strip(), True

    waves = ('-c', 'examples/own_dataset/config.json', '--set', 'data_loader.args.in_memory=false')
    most = ('--max', sized(8, 1), '--seconds', sized(1, 0.2))
    yield 'tools.find_workers ends', partial(found, 'tools.find_workers', *waves, *most)
    most = ('--seconds', sized(1, 0.1))
    yield 'tools.find_batch ends', partial(found, 'tools.find_batch', '-c', 'config.json', *most)


def optimizers(folder):
    """Foreach and fused against what torch takes by itself; nothing is promised."""
    models = sized((*gpu_optimizers.MODELS,), ('LeNet',))
    for name, is_equal, ratio in gpu_optimizers.compare(device(), sized(7, 1), models):
        seen = 'bit for bit the same' if is_equal else 'rounds otherwise'
        row = (f'{seen}, {ratio} times as fast', None)
        yield f'{name}: beside the default', lambda row=row: row


PARTS = {  # function, limit in seconds, whether by itself; most valuable first
    'machine': (machine, 60, True),
    'no_sync': (no_sync, 90, False),
    'resume': (resume, 150, False),
    'processes': (processes, 150, False),
    'features': (features, 90, False),
    'compiling': (compiling, 150, False),
    'memory': (memory, 90, False),
    'speed_digits': (speed_digits, 45, True),
    'speed_mnist': (speed_mnist, 60, True),
    'speed_resnet': (speed_resnet, 200, True),
    'workers': (workers, 60, False),
    'findings': (findings, 45, False),
    'cold_start': (cold_start, 90, True),
    'finders': (finders, 60, True),
    'optimizers': (optimizers, 45, True),
}
