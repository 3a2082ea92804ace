"""Look at the data of an experiment: python -m tools.show_data -c config.json

Prints shapes, kinds of numbers, ranges and classes of each split, and the samples that stand in two of them; writes a batch as the
model will see it to data.png (images with their labels) or prints its first rows.
"""

import argparse
import hashlib
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import data_loader.data_loaders as module_data
from armature.batch import length, map_tensors
from armature.errors import UserError, exit_on_user_error
from armature.seed import own_randomness, seed_everything
from parse_config import ConfigParser

TILE = 84  # pixels of an image in the grid


def splits(config: ConfigParser) -> dict[str, Any]:
    """The loaders of the experiment by name; without test data where the config has none."""
    train = config.init_obj('data_loader', module_data)
    found = {'train': train}
    valid = (
        config.init_obj('valid_data_loader', module_data)
        if 'valid_data_loader' in config
        else train.split_validation()
    )
    if valid is not None:
        found['valid'] = valid
    try:
        if 'test_data_loader' not in config:
            section = config['data_loader']
            args = {**section['args'], 'shuffle': False, 'validation_split': 0.0, 'training': False}
            config['test_data_loader'] = {**section, 'args': args}
        found['test'] = config.init_obj('test_data_loader', module_data)
    except (UserError, TypeError) as error:
        print(f'test: none ({error})')
    for loader in found.values():
        if (
            loader is not train
            and hasattr(train, 'state_dict')
            and hasattr(loader, 'load_state_dict')
        ):
            loader.load_state_dict(train.state_dict())
    return found


def describe(batch: Any) -> list[str]:
    """One line for each tensor of a batch: place, shape, dtype, range."""
    lines = []

    def visit(value: Any, place: str) -> None:
        if isinstance(value, torch.Tensor):
            bounds = (
                f', from {value.min().item():.4g} to {value.max().item():.4g}'
                if value.numel()
                else ''
            )
            finite = (
                ''
                if not value.is_floating_point() or value.isfinite().all()
                else ', NOT ALL FINITE'
            )
            lines.append(
                f'{place or "the batch":12s} {tuple(value.shape)} {str(value.dtype).removeprefix("torch.")}{bounds}{finite}'
            )
        elif (
            isinstance(value, dict)
            or hasattr(value, '_asdict')
            or hasattr(value, '__dataclass_fields__')
        ):
            fields = (
                value._asdict()
                if hasattr(value, '_asdict')
                else value
                if isinstance(value, dict)
                else vars(value)
            )
            for name, each in fields.items():
                visit(each, f'{place}.{name}'.lstrip('.'))
        elif isinstance(value, (list, tuple)):
            for index, each in enumerate(value):
                visit(each, f'{place}.{index}'.lstrip('.'))

    names = ('input', 'target') if isinstance(batch, (list, tuple)) and len(batch) == 2 else None
    for name, part in zip(names, batch) if names else [('', batch)]:
        visit(part, name)
    return lines


def class_counts(loader: Any) -> Counter | None:
    """How many samples of each class the split has; None when its targets are no classes."""
    classes = loader.sample_classes() if hasattr(loader, 'sample_classes') else None
    if classes is None or not all(isinstance(each, (int, bool)) for each in classes):
        return None
    return Counter(classes[index] for index in set(loader.indices(0).tolist()))


def fingerprints(loader: Any) -> dict[bytes, int]:
    """{hash of a sample's input: its index in the dataset}, as the dataset gives it (without augmentation)."""
    found = {}
    with own_randomness(0):
        for index in sorted(set(loader.indices(0).tolist())):
            try:
                sample = loader.dataset[index]
            except UserError:
                continue
            digest = hashlib.blake2b(digest_size=16)
            data = sample[0] if isinstance(sample, (list, tuple)) else sample
            map_tensors(
                lambda tensor, digest=digest: digest.update(
                    tensor.contiguous().cpu().view(-1).numpy().tobytes()
                ),
                data,
            )
            if not isinstance(data, (torch.Tensor, list, tuple, dict)):
                digest.update(repr(data).encode())
            found[digest.digest()] = index
    return found


def draw(images: torch.Tensor, labels: list, file: str) -> None:
    """A grid of images (batch, channels, height, width) with their labels below them, each image from its darkest to its brightest."""
    import numpy as np
    from PIL import Image, ImageDraw

    n_columns = min(8, len(images))
    grid = Image.new('RGB', (n_columns * TILE, -(-len(images) // n_columns) * (TILE + 14)), 'white')
    pen = ImageDraw.Draw(grid)
    for place, (image, label) in enumerate(zip(images, labels)):
        image = image.float()
        image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-6) * 255
        pixels = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
        tile = Image.fromarray(
            pixels.byte().permute(1, 2, 0).cpu().numpy().astype(np.uint8)
        ).resize((TILE - 4, TILE - 4))
        left, top = place % n_columns * TILE, place // n_columns * (TILE + 14)
        grid.paste(tile, (left + 2, top + 2))
        pen.text((left + 4, top + TILE - 1), str(label)[:12], fill='black')
    grid.save(file)


def main(config: ConfigParser, file: str) -> None:
    seed_everything(config.get('seed', 123))
    loaders = splits(config)
    first = None
    for name, loader in loaders.items():
        batch = next(iter(loader), None)
        if batch is None:
            print(f'{name}: no batches')
            continue
        first = batch if first is None else first
        print(
            f'{name}: {len(loader.indices(0)):,} samples, batches of {loader.batch_size}'
            if hasattr(loader, 'indices')
            else f'{name}: a stream, batches of {loader.batch_size}'
        )
        print('\n'.join(f'    {line}' for line in describe(batch)))
        counts = class_counts(loader)
        if counts:
            shown = ', '.join(f'{each}: {count}' for each, count in sorted(counts.items())[:20])
            print(f'    classes      {shown}{" ..." if len(counts) > 20 else ""}')
    indexed = {
        name: fingerprints(loader) for name, loader in loaders.items() if hasattr(loader, 'indices')
    }
    for one, other in (('train', 'valid'), ('train', 'test'), ('valid', 'test')):
        if one in indexed and other in indexed:
            shared = indexed[one].keys() & indexed[other].keys()
            pairs = ', '.join(
                f'{indexed[one][each]} = {indexed[other][each]}' for each in islice(shared, 5)
            )
            print(
                f'in {one} and in {other}: {len(shared)} samples'
                + f' (such as {pairs})' * bool(shared)
            )
    show_batch(first, file)


def show_batch(batch: Any, file: str) -> None:
    data, labels = batch if isinstance(batch, (list, tuple)) and len(batch) == 2 else (batch, None)
    is_images = isinstance(data, torch.Tensor) and data.dim() == 4 and data.shape[1] in (1, 3, 4)
    if is_images:
        labels = (
            labels.tolist()
            if isinstance(labels, torch.Tensor) and labels.dim() == 1
            else [''] * length(data)
        )
        draw(data[:64], labels[:64], file)
        print(f'the first training batch is in {file}')
    else:
        print('the first training samples:')
        for index in range(min(5, length(batch))):
            sample = map_tensors(lambda tensor, index=index: tensor[index].tolist(), batch)
            print(f'    {str(sample)[:160]}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('-c', '--config', metavar='FILE', required=True, help='the experiment')
    parser.add_argument(
        '-o', '--output', metavar='FILE', default='data.png', help='where the images go (data.png)'
    )
    here = Path.cwd()  # which from_args leaves
    with exit_on_user_error():
        config = ConfigParser.from_args(parser)
        main(config, str(here / config.arguments.output))
