"""Predict for files without targets: python predict.py -r saved/models/NAME/RUN INPUT..."""

import argparse
import csv
import functools
import glob
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import armature.packages  # noqa: F401 (says what to type where a package is missing)

# isort: split
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

import data_loader.data_loaders as module_data
import model.loss as module_loss
import model.model as module_arch
from armature.batch import call_by_name, map_leaves, to_device
from armature.checkpoint import files as checkpoint
from armature.checkpoint.weights import load_tested
from armature.config import build
from armature.config.values import parameters
from armature.errors import ConfigError, DataError, exit_on_user_error, positive
from armature.processes import dist
from armature.processes.launch import processes
from armature.run.folder import write_text
from armature.use.inputs import InputFormat, readable, rows_for
from armature.use.meaning import meanings_of
from armature.use.outputs import CLASSES, answers, by_task, finite
from base import BaseDataLoader
from parse_config import ConfigParser
from trainer.trainer import evaluate
from utils import prepare_device

BUILDS = {'arch': module_arch, 'loss': module_loss}
N_PENDING = 64  # batches whose outputs stay on the device until they are read together


def load_run(path: str | Path, device: str | torch.device = 'cpu') -> 'Run':
    """The trained model of a run; path: its folder, of which the best checkpoint is taken;
    a checkpoint; or a folder that tools.card has packed.

    The training data is not needed.
    """
    file = checkpoint.find(str(path), build.ROOT, best_first=True).resolve()
    config = checkpoint.load_head(file).get('config')
    if not isinstance(config, dict):
        raise ConfigError(f'{file}: this checkpoint holds no config, which says what its model is')
    return Run(ConfigParser(config, resume=file), torch.device(device))


class Run:
    """A model with its tested weights in eval mode, and how raw input becomes a batch for it.

    class_names: None when the run has none. input_format: see armature/use/inputs.py; asking for it
    is a ConfigError where neither the loader nor its dataset says it.
    """

    def __init__(self, config: ConfigParser, device: torch.device):
        self.config, self.device = config, device
        self.model = config.init_obj('arch', module_arch).to(device)
        self.criterion = config.init_loss(module_loss)
        saved = checkpoint.load(config.resume)
        load_tested(self.model, self.criterion, saved, config.resume)
        self.model.eval()
        names = config.get('batch')
        if names and isinstance(names['data'], list):
            call_by_name(self.model, names['data'])
        self.loader_state = (saved.get('parts') or {}).get('data_loader') or {}
        # The first version has those of a table in the loader's state alone.
        names = (saved.get('data') or {}).get('class_names') or self.loader_state.get('classes')
        self.class_names = names or None
        self.notes, self._meanings = [], None

    @functools.cached_property
    def input_format(self) -> InputFormat:
        return input_format_of(self.config, self.loader_state)

    def predict(self, sources: Iterable[Any], top: int = 1) -> list[dict[str, Any]]:
        """A row for each: prediction and probability of the `top` classes, or value; or error.

        sources: files or bytes of images, rows {column: value}, sentences, arrays.
        """

        def answer(samples: list) -> list[dict[str, Any]]:
            batch = tensors_of(self.input_format, samples)
            with torch.no_grad():
                output = self.model(to_device(batch, self.device))
            return self.answers(output, top)

        return rows_for(self.input_format, sources, answer)

    def answers(self, output: Any, top: int = 1) -> list[dict[str, Any]]:
        outputs = {task: each.float().cpu().numpy() for task, each in by_task(output).items()}
        return answers(outputs, self.meanings(output), self.class_names, top)

    def meanings(self, output: Any) -> dict[str, str]:
        """What the loss says of each output: see armature/use/outputs.py."""
        if self._meanings is None:
            self._meanings, unknown = meanings_of(self.criterion, output)
            if unknown:
                self.notes.append('the loss does not tell what the outputs mean: they are numbers')
            elif CLASSES in self._meanings.values() and self.class_names is None:
                self.notes.append('this run has no names of its classes: they are numbers')
        return self._meanings


def tensors_of(input_format: InputFormat, samples: list) -> Any:
    """What the model takes, of what `input_format.sample` gave."""
    return map_leaves(torch.from_numpy, input_format.batch(samples))


def input_format_of(config: ConfigParser, state: dict) -> InputFormat:
    """How raw input becomes a batch: the loader of the config says it, or else its dataset.

    state: what the checkpoint holds of the loader.
    """
    section = config['data_loader']
    kind, dataset = build.KINDS['data_loader'], (section.get('args') or {}).get('dataset')
    found = build.find(section['type'], kind, module_data)
    if hasattr(found, 'input_format'):
        args = config.init_ftn('data_loader', module_data).keywords
    elif isinstance(dataset, dict):
        found = build.find(dataset.get('type'), kind.inside(), module_data)
        args = dataset.get('args') or {}
    if not hasattr(found, 'input_format'):
        raise ConfigError(
            f'{found.__name__} does not say how raw input becomes a batch: write its class method '
            'input_format(args, state), as examples/own_dataset/data.py does (docs/use.md)'
        )
    named, _ = parameters(found)
    defaults = {name: each.default for name, each in named.items()}
    return found.input_format(defaults | args, state)


class Inputs(Dataset):
    """Sources as samples; one that cannot be read is the DataError that says why."""

    def __init__(self, input_format: InputFormat, sources: list):
        self.input_format, self.sources = input_format, sources

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Any:
        samples, reasons = readable(self.input_format, [self.sources[index]])
        return samples[0] if samples else reasons[0]


class Predictions:
    """Gathers the answers of a pass, in the place of metrics."""

    def __init__(self, run: Run, top: int):
        self.run, self.top = run, top

    def reset(self) -> None:
        self.rows, self._pending = {}, []

    def measure(self, loss: None, output: Any, indices: list[int]) -> None:
        self._pending.append((output, indices))
        if len(self._pending) >= N_PENDING:
            self.result()

    def result(self) -> dict[int, dict[str, Any]]:
        """The row of each input that could be read, by its index."""
        for output, indices in self._pending:
            self.rows |= zip(indices, self.run.answers(output, self.top))
        self._pending.clear()
        return self.rows


def main(config: ConfigParser) -> int:
    """Write a row for each input; the number of those that cannot be read."""
    given = config.arguments
    device, _ = prepare_device(config.get('n_gpu', 1))
    run = Run(config, device)
    os.chdir(config.started_in)  # what the command names is named from there
    check_output(given.output)
    names, sources = zip(*sources_of(given.inputs, run.input_format))
    settings = config['data_loader'].get('args') or {}
    loader = BaseDataLoader(
        Inputs(run.input_format, sources),
        given.batch_size or settings.get('batch_size', N_PENDING),
        num_workers=settings.get('num_workers', 0) if given.workers is None else given.workers,
        collate_fn=functools.partial(collated, run.input_format),
        evaluation=True,
    )
    rows, predictions = {}, Predictions(run, given.top)
    batches = readable_batches(loader, device, rows)
    rows |= evaluate(run.model, batches, lambda output, target: None, predictions)
    rows = {index: row for part in dist.gather(rows) for index, row in part.items()}
    n_unreadable = sum('error' in row for row in rows.values())
    if dist.is_main():
        for note in [*run.notes, *run.input_format.notes(sources)]:
            sys.stderr.write(f'note: {note}\n')
        write([{'input': name, **rows[index]} for index, name in enumerate(names)], given)
        failed = f', {n_unreadable:,} of them cannot be read' if n_unreadable else ''
        sys.stderr.write(f'{len(names):,} inputs{failed}: {given.output or "the rows above"}\n')
    return n_unreadable


def sources_of(patterns: list[str], input_format: InputFormat) -> Iterator[tuple[str, Any]]:
    """(name, source) of all inputs in the files, folders and globs that a command names."""
    for pattern in patterns:
        is_there = os.path.exists(pattern)
        paths = [pattern] if is_there else sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise DataError(f'{pattern}: there is no such file or folder, nor one that it matches')
        for path in paths:
            for file in input_format.files_in(Path(path)):
                yield from input_format.sources(file)


def collated(input_format: InputFormat, samples: list) -> tuple[Any, list[DataError | None]]:
    """(the batch of the samples that could be read, for each why not)."""
    good = [each for each in samples if not isinstance(each, DataError)]
    reasons = [each if isinstance(each, DataError) else None for each in samples]
    return tensors_of(input_format, good) if good else None, reasons


def readable_batches(loader: BaseDataLoader, device: torch.device, rows: dict) -> Iterator[tuple]:
    """(batch on the device, the indices of its inputs); into `rows` goes what cannot be read."""
    bar = tqdm(total=len(loader.dataset), unit='inputs', disable=None, leave=False)
    for batch in loader.batches():
        if batch.share.is_borrowed:
            continue
        content, reasons = batch.content
        reasons = dict(zip(batch.indices.tolist(), reasons))
        rows |= {index: {'error': str(each)} for index, each in reasons.items() if each}
        if content is not None:
            yield to_device(content, device), [i for i, each in reasons.items() if each is None]
        bar.update(len(reasons) * dist.n_processes())
    bar.close()


def check_output(output: str | None) -> None:
    """Refuse a file that cannot be written, before a long pass and not after it."""
    if output is None:
        return
    folder = Path(output).parent
    if Path(output).is_dir() or not folder.is_dir():
        raise DataError(f'-o {output}: expected a file to write, in a folder that is there')
    if not os.access(folder, os.W_OK):
        raise DataError(f'-o {output} cannot be written: make {folder} writable')


def write(rows: list[dict[str, Any]], given: argparse.Namespace) -> None:
    """The rows as CSV, or as JSON, a line each: into a file, whole or not at all, or to stdout."""
    if given.output is None:
        return write_to(sys.stdout, rows, given.json)
    text = io.StringIO()
    write_to(text, rows, given.json)
    try:
        write_text(Path(given.output), text.getvalue())
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f'-o {given.output} cannot be written: {reason}') from error


def write_to(file: Any, rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        for row in rows:
            file.write(json.dumps(finite(row), ensure_ascii=False) + '\n')
        return
    columns = list(dict.fromkeys(name for row in rows for name in row if name != 'error'))
    columns += ['error'] * any('error' in row for row in rows)
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(columns)
    writer.writerows([row.get(name, '') for name in columns] for row in rows)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='Predict for files without targets.')
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='INPUT',
        help='image files, CSV tables, texts (a line each), .npy arrays; folders of them; globs',
    )
    parser.add_argument(
        '-r',
        '--resume',
        metavar='CHECKPOINT',
        required=True,
        help='a run folder, of which the best checkpoint is taken; a checkpoint; a packed folder',
    )
    parser.add_argument(
        '-o', '--output', metavar='FILE', help='where the rows go; without it they are printed'
    )
    parser.add_argument('--json', action='store_true', help='JSON, a line each, instead of CSV')
    parser.add_argument(
        '--top', type=positive, default=1, metavar='N', help='so many classes for each input'
    )
    parser.add_argument('-b', '--batch_size', type=positive, metavar='N')
    parser.add_argument('-w', '--workers', type=int, metavar='N', help='processes that read files')
    parser.add_argument(
        '-d', '--device', metavar='DEVICE', help='CUDA indices such as 0, or cpu, or mps'
    )
    parser.set_defaults(best_first=True)
    with exit_on_user_error():
        config = ConfigParser.from_args(parser, builds=BUILDS)
        with processes(config):
            n_unreadable = main(config)
    sys.exit(1 if n_unreadable else 0)
