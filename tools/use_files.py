"""Files without targets: what a command names as samples, and a row for each of them."""

import argparse
import codecs
import csv
import functools
import glob
import io
import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from tqdm import tqdm

from armature.batch import takes, to_device
from armature.errors import DataError
from armature.processes import dist
from armature.run.record import write_text
from base import BaseDataLoader
from tools.use_inputs import InputFormat, readable
from tools.use_outputs import finite
from tools.use_run import Run, tensors_of

N_PENDING = 64  # batches whose outputs stay on the device until they are read together


def files_of(patterns: list[str], input_format: InputFormat) -> tuple[list[str], list[str]]:
    """(the files with inputs that a command names, notes on others in the folders that it names).

    As they are, by their folders, by globs.
    """
    files, left_out = [], Counter()
    counts = takes(input_format.files_in, None, None)  # a project's own may not
    for pattern in patterns:
        is_there = os.path.exists(pattern)
        paths = [pattern] if is_there else sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise DataError(f'{pattern}: there is no such file or folder, nor one that it matches')
        found = (input_format.files_in(Path(path), *[left_out] * counts) for path in paths)
        # A glob with ** matches folders and the files in them.
        files += dict.fromkeys(str(file) for some in found for file in some)
    return files, [f'{n:,} files {ending} are left out' for ending, n in left_out.items()]


class Inputs(Dataset):
    """Sources as samples; one that cannot be read is the DataError that says why."""

    def __init__(self, input_format: InputFormat, sources: list):
        self.input_format, self.sources = input_format, sources

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Any:
        samples, reasons = readable(self.input_format, [self.sources[index]])
        return samples[0] if samples else reasons[0]


def loader_of(
    sources: list, run: Run, batch_size: int | None, num_workers: int | None
) -> BaseDataLoader:
    """Batches of what can be read of `sources`; None: as many as in the training."""
    settings = run.config['data_loader'].get('args') or {}
    return BaseDataLoader(
        Inputs(run.input_format, sources),
        batch_size or settings.get('batch_size', N_PENDING),
        num_workers=settings.get('num_workers', 0) if num_workers is None else num_workers,
        collate_fn=functools.partial(collated, run.input_format),
        evaluation=True,
    )


def collated(input_format: InputFormat, samples: list) -> tuple[Any, list[DataError | None]]:
    """(the batch of the samples that could be read, for each why not)."""
    good = [each for each in samples if not isinstance(each, DataError)]
    reasons = [each if isinstance(each, DataError) else None for each in samples]
    return tensors_of(input_format, good) if good else None, reasons


class Predictions:
    """Gathers the answers of a pass over the batches of `loader_of`, in the place of metrics."""

    def __init__(self, run: Run, top: int):
        self.run, self.top = run, top

    def reset(self) -> None:
        self._rows, self._pending = {}, []

    def batches(self, loader: BaseDataLoader) -> Iterator[tuple]:
        """(batch on the device, the indices of its inputs) of what could be read."""
        bar = tqdm(total=len(loader.dataset), unit='inputs', disable=None, leave=False)
        for batch in loader.batches():
            if batch.share.is_padding:
                continue
            content, reasons = batch.content
            reasons = dict(zip(batch.indices.tolist(), reasons))
            self._rows |= {index: {'error': str(each)} for index, each in reasons.items() if each}
            if content is not None:
                good = [index for index, reason in reasons.items() if reason is None]
                yield to_device(content, self.run.device), good
            bar.update(len(reasons) * dist.n_processes())
        bar.close()

    def measure(self, loss: None, output: Any, indices: list[int]) -> None:
        self._pending.append((output, indices))
        if len(self._pending) >= N_PENDING:
            self._answer()

    def _answer(self) -> None:
        for output, indices in self._pending:
            self._rows |= zip(indices, self.run.answers(output, len(indices), self.top))
        self._pending.clear()

    def result(self) -> list[dict[str, Any]]:
        """A row for each input, in their order; of all processes."""
        self._answer()
        rows = {index: row for part in dist.gather(self._rows) for index, row in part.items()}
        return [rows[index] for index in sorted(rows)]


def check_output(output: str | None, read: Iterable[str | Path]) -> None:
    """Refuse a file that cannot be written, is `read`, or holds something else.

    Before a long pass, not after it.
    """
    if output is None:
        return
    folder = Path(os.path.realpath(output)).parent
    if os.path.isdir(output) or not os.path.isdir(folder):
        raise DataError(f'-o {output}: expected a file to write, in a folder that is there')
    try:
        if not stat.S_ISREG(os.stat(output).st_mode):
            return  # a device or a pipe
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DataError(f'-o {output} cannot be written: {error.strerror}') from error
    if not os.access(folder, os.W_OK):
        raise DataError(f'-o {output} cannot be written: make {folder} writable')
    for file in read:
        if os.path.exists(file) and os.path.exists(output) and os.path.samefile(file, output):
            raise DataError(
                f'-o {output} would take the place of {file}, which is read: name another file'
            )
    if os.access(output, os.R_OK):
        with open(output, 'rb') as file:
            begin = file.read(20).removeprefix(codecs.BOM_UTF8)
        if begin and not begin.startswith((b'input', b'{"input"')):  # as in -o *.csv
            raise DataError(f'-o {output} is there, and holds no predictions: name another file')


def write(rows: list[dict[str, Any]], given: argparse.Namespace) -> None:
    """The rows as CSV, or as JSON, a line each: into a file, whole or not at all, or to stdout."""
    content = io.StringIO()
    write_to(content, rows, given.json)
    # Names of files need not be Unicode: old Korean archives have them in CP949.
    text = content.getvalue().encode(errors='backslashreplace').decode()
    if given.output is None:
        sys.stdout.write(text)
        return
    try:
        write_text(Path(given.output), text)
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
