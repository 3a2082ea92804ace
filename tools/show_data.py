"""Look at the data of an experiment: python -m tools.show_data -c config.json

Prints for each split how many samples and classes it has, what was skipped, converted or could not
be read, and its first batch; then which samples stand in two splits. Draws the first training batch
as the model will see it to data.png, or prints its first samples where it holds no images; and how
many samples of each class the splits have to data_classes.png.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

import data_loader.data_loaders as module_data
from armature.batch import PairOf, is_structure, length, map_tensors
from armature.data.identity import class_names_of, digest
from armature.data.order import Order
from armature.errors import UserError, exit_on_user_error
from armature.seed import own_randomness, seed_everything
from parse_config import ConfigParser
from tools.run_curves import plain, save


def splits(config: ConfigParser) -> dict[str, Any]:
    """The loaders of the experiment by name; without test data where the config has none."""
    train = config.init_obj('data_loader', module_data)
    valid = None
    if 'valid_data_loader' in config:
        valid = config.init_obj('valid_data_loader', module_data)
    elif hasattr(train, 'split_validation'):
        valid = train.split_validation()
    found = {'train': train} | ({'valid': valid} if valid is not None else {})
    try:
        if 'test_data_loader' not in config:
            section = config['data_loader']
            args = {**section['args'], 'shuffle': False, 'validation_split': 0.0, 'training': False}
            config['test_data_loader'] = {**section, 'args': args}
        found['test'] = config.init_obj('test_data_loader', module_data)
    except (UserError, TypeError) as error:
        print(f'test: none ({error})')
    for loader in list(found.values())[1:]:
        if hasattr(train, 'state_dict') and hasattr(loader, 'load_state_dict'):
            loader.load_state_dict(train.state_dict())
        if hasattr(loader, 'use_class_names'):
            loader.use_class_names(train.class_names)
    return found


def held_by(loader: Any) -> torch.Tensor | None:
    """The samples that a split holds, however often a sampler draws each; None for a stream."""
    if not hasattr(loader, 'indices'):
        return None
    sampler = loader.sampler
    return (sampler.indices if isinstance(sampler, Order) else loader.indices(0)).unique()


def class_counts(loader: Any, indices: torch.Tensor) -> dict[str, int]:
    """How many of these samples are of each class; empty when the targets are no classes."""
    classes = np.asarray(loader.sample_classes())
    names = class_names_of(loader.dataset) or loader.class_names
    kinds = 'iubU' if names is None else 'iubf'
    if not classes.ndim or classes.size > len(classes) or classes.dtype.kind not in kinds:
        return {}
    counts = Counter(classes.flatten()[indices.numpy()].tolist())
    return {name_of(each, names): count for each, count in sorted(counts.items())}


def name_of(number: Any, names: list[str] | None) -> str:
    """What a class is called; a number that no class has (-1: not labelled) stands for itself."""
    return names[int(number)] if names and 0 <= number < len(names) else str(number)


def listed(counts: dict[str, int]) -> str:
    shown = [f'{name}: {count:,}' for name, count in counts.items()]
    return ', '.join(shown[:20]) + ' ...' * (len(shown) > 20)


def describe(batch: Any, has_classes: bool) -> list[str]:
    """One line for each tensor of a batch: place, shape, dtype, range (but not that of classes)."""
    is_pair = isinstance(batch, (list, tuple)) and len(batch) == 2
    lines = []
    for place, tensor in leaves(dict(zip(('input', 'target'), batch)) if is_pair else batch):
        line = f'{place or "the batch":12s} {tuple(tensor.shape)} {tensor.dtype}'
        if tensor.numel() and not tensor.is_complex() and not (has_classes and place == 'target'):
            line += f', from {tensor.min().item():.4g} to {tensor.max().item():.4g}'
        if tensor.is_floating_point() and not tensor.isfinite().all():
            line += ', NOT ALL FINITE'
        lines.append(line.replace('torch.', ''))
    return lines


def leaves(content: Any, place: str = '') -> Iterator[tuple[str, torch.Tensor]]:
    """(where it stands, tensor) of each tensor in a batch."""
    if isinstance(content, torch.Tensor):
        yield place, content
    elif is_structure(content):
        if hasattr(content, '_asdict'):
            content = content._asdict()
        elif not isinstance(content, (list, tuple, Mapping)):
            content = vars(content)
        parts = content.items() if isinstance(content, Mapping) else enumerate(content)
        for name, each in parts:
            yield from leaves(each, f'{place}.{name}'.lstrip('.'))


def read_all(loader: Any, held: torch.Tensor) -> tuple[dict[str, int], list[str]]:
    """({digest of a sample's input, without augmentation: its index}, what cannot be read)."""
    found, unreadable = {}, []
    with own_randomness(0):
        for index in held.tolist():
            try:
                sample = loader.dataset[index]
            except UserError as error:
                unreadable.append(str(error))
                continue
            found[digest(sample[0] if isinstance(sample, (list, tuple)) else sample)] = index
    return found, unreadable


def show(name: str, loader: Any, parts: PairOf) -> tuple[Any, dict[str, int], dict[str, int]]:
    """Print what a split holds.

    Returns (its first batch, {digest of an input: its index}, {class: how many samples}).
    """
    held, indexed = held_by(loader), {}
    how_many = 'a stream' if held is None else f'{len(held):,} samples'
    print(f'{name}: {how_many}, batches of {loader.batch_size}')
    counts = {}
    if held is not None:
        counts, drawn = class_counts(loader, held), loader.indices(0)
        if counts:
            print(f'    classes      {listed(counts)}')
        if len(drawn) != len(held) or len(drawn.unique()) != len(held):
            of_classes = f': {listed(class_counts(loader, drawn))}' if counts else ''
            print(f'    an epoch     draws {len(drawn):,} samples{of_classes}')
        indexed, unreadable = read_all(loader, held)
        if len(indexed) + len(unreadable) < len(held):
            print(f'    {len(held) - len(indexed) - len(unreadable)} samples are there twice')
        if unreadable:
            print(f'    {len(unreadable)} samples cannot be read: {"; ".join(unreadable[:3])}')
    for each in (loader, getattr(loader, 'dataset', None)):
        for note in each.notes() if hasattr(each, 'notes') else []:
            print(f'    {note}')
    try:
        batch = next(iter(loader), None)
    except UserError as error:
        print(f'    no batch: {error}')
        return None, indexed, counts
    batch = batch if batch is None else parts.of(batch)
    print('    the first batch:')
    print('\n'.join(f'        {line}' for line in describe(batch, bool(counts))))
    return batch, indexed, counts


def main(config: ConfigParser, file: str) -> None:
    seed_everything(config.get('seed'))
    parts = PairOf(config.get('batch'), pairs_only=False)
    loaders = splits(config)
    shown = {name: show(name, loader, parts) for name, loader in loaders.items()}
    for (one, (_, ours, _)), (other, (_, theirs, _)) in combinations(shown.items(), 2):
        if ours and theirs:
            shared = [each for each in ours if each in theirs]
            pairs = ', '.join(f'{ours[each]} = {theirs[each]}' for each in shared[:5])
            such = f' (such as {pairs})' if shared else ''
            print(f'in {one} and in {other}: {len(shared)} samples{such}')
    names = getattr(loaders['train'], 'class_names', None)
    show_batch(shown['train'][0], names, file, f'{config["name"]}: the first training batch')
    counts = {name: counts for name, (*_, counts) in shown.items() if counts}
    if counts:
        path = Path(file)
        path = path.with_name(f'{path.stem}_classes{path.suffix}')
        save(drawn_classes(counts, f'{config["name"]}: samples of each class'), path)
        print(f'the classes of the splits are in {path}')


def show_batch(batch: Any, names: list[str] | None, file: str, title: str) -> None:
    """Draw the images of a batch to `file`; where it holds none, print its first samples."""
    data, labels = batch if isinstance(batch, (list, tuple)) and len(batch) == 2 else (batch, None)
    if isinstance(data, torch.Tensor) and data.dim() == 4 and data.shape[1] in (1, 3, 4):
        has_labels = isinstance(labels, torch.Tensor) and labels.dim() == 1
        labels = labels.tolist() if has_labels else [''] * len(data)
        if has_labels and names and all(isinstance(each, int) for each in labels):
            labels = [name_of(number, names) for number in labels]
        draw(data[:64], labels, file, title)
        print(f'the first training batch is in {file}')
        return
    print('the first training samples:')
    for index in range(min(5, length(batch))):
        sample = map_tensors(lambda tensor, index=index: tensor[index].tolist(), batch)
        print(f'    {str(sample)[:160]}')


def draw(images: torch.Tensor, labels: list, file: str, title: str) -> None:
    """Images (n, channels, height, width), each from its darkest to its brightest, and labels."""
    from matplotlib.figure import Figure

    n_columns = min(8, len(images))
    n_rows = -(-len(images) // n_columns)
    figure = Figure(figsize=(1.2 * n_columns, 1.4 * n_rows), layout='constrained')
    axes = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
    figure.suptitle(
        f'{plain(title)}, as the model sees it\n'
        '(labels above; each from its darkest to its brightest)'
    )
    for axis in axes:
        axis.set_axis_off()
    for axis, image, label in zip(axes, images.cpu().float(), labels):
        image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-6)
        axis.imshow(image[:3].permute(1, 2, 0).numpy(), cmap='gray')  # the map of one channel
        axis.set_title(plain(str(label)[:12]), fontsize=8)
    save(figure, Path(file))


def drawn_classes(counts: dict[str, dict[str, int]], title: str) -> Any:
    """Which share of each split is of each class; the rarest class of the first is marked."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for of_split in counts.values() for name in of_split))
    figure = Figure(figsize=(min(16, 5 + 0.3 * len(names)), 4.5), layout='constrained')
    axes, width = figure.subplots(), 0.8 / len(counts)
    for index, (split, of_split) in enumerate(counts.items()):
        n_samples = sum(of_split.values())
        places = [place + (index - (len(counts) - 1) / 2) * width for place in range(len(names))]
        shares = [of_split.get(name, 0) / n_samples for name in names]
        axes.bar(places, shares, width, label=f'{split}: {n_samples:,} samples')
    axes.axhline(1 / len(names), color='black', linestyle='--', label='if all were alike')
    split, of_split = next(iter(counts.items()))
    rarest = min(names, key=lambda name: of_split.get(name, 0))
    axes.set_title(plain(f'{title} (rarest in {split}: {rarest}, {of_split.get(rarest, 0):,})'))
    axes.set(xlabel='class', ylabel='share of the split')
    axes.set_xticks(range(len(names)), map(plain, names), rotation=90 if len(names) > 12 else 0)
    axes.get_xticklabels()[names.index(rarest)].set_color('red')
    axes.margins(y=0.3)  # room for the legend
    axes.grid(axis='y', alpha=0.3)
    axes.legend()
    return figure


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
