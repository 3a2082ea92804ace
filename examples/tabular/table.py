"""Tables: a CSV file as tensors. What is learned from the training rows is a dict for the run."""

import hashlib
from typing import Any, Literal

import numpy as np
import torch

from armature.data.reading import InMemory
from armature.errors import DataError
from tools.use_cells import (
    LARGEST,
    UNKNOWN,
    Decimal,
    category,
    codes_of,
    is_flat,
    is_missing,
    number,
    read_rows,
    standardized,
)

FAR = 1e4  # times as much as half of the rows: one row makes the others look alike

TargetKind = Literal['class', 'binary', 'number']


class Table:
    """The cells of a CSV file, as text, in the columns that a config names.

    decimal: what stands before the decimals where groups of three digits are separated, too.
    numbers: (n, numeric) of the numeric columns; nan where missing, infinite or beyond float32.
    """

    def __init__(
        self,
        path: str,
        numeric: list[str],
        categorical: list[str],
        target: str,
        target_kind: TargetKind,
        group_by: str | None = None,
        encoding: str | None = None,
        decimal: Decimal = None,
    ):
        if not numeric and not categorical:
            raise DataError(
                f'{path}: name the columns to learn from in "numeric" and "categorical"'
            )
        self.path, self.numeric, self.categorical = path, numeric, categorical
        self.target, self.target_kind, self.decimal = target, target_kind, decimal
        needed = [*numeric, *categorical, target, *([group_by] if group_by else [])]
        self.lines, self.cells = read_cells(path, needed, encoding)
        for name in categorical if target_kind == 'number' else [*categorical, target]:
            self.cells[name] = [category(cell) for cell in self.cells[name]]
        for row, cell in enumerate(self.cells[target]):
            if is_missing(cell):
                raise DataError(f'{self._place(row, target)} is missing, and it is the target')
        self._too_large = []
        self.numbers = np.empty((len(self.lines), len(numeric)))
        for place, name in enumerate(numeric):
            self.numbers[:, place] = self._parsed(name)

    def fit(self, rows: list[int]) -> dict[str, Any]:
        """What encoding needs, from these rows: mean, deviation, categories, classes."""
        numbers = self.numbers[rows]
        count = np.maximum(1, (~np.isnan(numbers)).sum(0))
        mean = np.nansum(numbers, 0) / count
        std = np.sqrt(np.nansum((numbers - mean) ** 2, 0) / count)

        def values(name: str) -> list[str]:
            cells = {self.cells[name][row] for row in rows}
            return in_order({cell for cell in cells if not is_missing(cell)})

        classes = [] if self.target_kind == 'number' else values(self.target)
        if self.target_kind == 'binary' and len(classes) != 2:
            raise DataError(
                f'{self.path}: the target {self.target!r} is "binary", and has {len(classes)} '
                f'values: {", ".join(classes[:5])}'
            )
        return {
            'mean': mean.tolist(),
            'std': std.tolist(),
            'categories': {name: values(name) for name in self.categorical},
            'classes': classes,
        }

    def encode(self, fitted: dict[str, Any]) -> InMemory:
        """[[numbers, codes], target].

        numbers: (n, numeric) standardised; 0, which is the mean, for missing ones and in columns
        that did not vary. codes: (n, categorical), 0 for unknown ones. target: (n,) classes, or
        (n, 1) numbers for 'number' and 'binary' (0. and 1.), as losses of one output want them.
        """
        mean, std = fitted['mean'], fitted['std']
        if len(mean) != len(self.numeric) or list(fitted['categories']) != self.categorical:
            raise DataError(
                f'{self.path}: training had {len(mean)} numeric columns, and the categorical ones '
                f'{list(fitted["categories"])}: name the same columns here'
            )
        numbers = standardized(self.numbers, mean, std)
        codes = np.empty((len(self.lines), len(self.categorical)), dtype=np.int64)
        for place, name in enumerate(self.categorical):
            codes[:, place] = self._codes(name, fitted['categories'][name])
        if self.target_kind == 'number':
            target = self._parsed(self.target)
        else:
            target = self._codes(self.target, fitted['classes']) - 1
            if target.min() < 0:
                raise DataError(
                    f'{self._place(target.argmin(), self.target)} is none of the classes seen in '
                    f'training ({", ".join(fitted["classes"])}): train with such rows, correct '
                    'the cell or, where the validation part got all of them, say "stratify": true'
                )
        target = torch.from_numpy(target)
        if self.target_kind != 'class':
            target = target.float().unsqueeze(1)
        return InMemory([[torch.from_numpy(numbers), torch.from_numpy(codes)], target])

    def notes(self, fitted: dict[str, Any]) -> list[tuple[str, bool]]:
        """[(what a reader of the file may not expect of its encoding, whether to warn of it)]."""
        notes = [(f'{place} is too large for a number: missing', True) for place in self._too_large]
        for place, name in enumerate(self.numeric):
            column, mean = self.numbers[:, place], fitted['mean'][place]
            if is_flat(mean, fitted['std'][place]):
                note = f'{self.path}: column {name!r} does not vary in the training rows: ignored'
                notes.append((note, True))
            elif 0 < np.subtract(*np.nanquantile(column, [0.75, 0.25])) * FAR < np.nanstd(column):
                where = self._place(np.nanargmax(np.abs(column - mean)), name)
                notes.append((f'{where} is so far out that the others look alike', True))
        for name in self.categorical:
            codes = self._codes(name, fitted['categories'][name])
            cells = [self.cells[name][row] for row in np.flatnonzero(codes == UNKNOWN)]
            if unseen := [cell for cell in cells if not is_missing(cell)]:
                note = (
                    f'{self.path}: column {name!r}: training does not have the category of '
                    f'{len(unseen)} of {len(codes)} rows (such as {unseen[0]!r}), which count as '
                    'missing'
                )
                notes.append((note, 2 * len(unseen) > len(codes)))
        return notes

    def fingerprint(self) -> dict[str, Any]:
        cells = repr(list(self.cells.values())).encode()
        return {
            'number of samples': len(self.lines),
            'columns': list(self.cells),
            'cells': hashlib.blake2b(cells, digest_size=8).hexdigest(),
        }

    def _codes(self, name: str, categories: list[str]) -> np.ndarray:
        codes = codes_of(categories)
        return np.array([codes.get(cell, UNKNOWN) for cell in self.cells[name]])

    def _parsed(self, name: str) -> np.ndarray:
        numbers = np.full(len(self.lines), np.nan)
        for row, cell in enumerate(self.cells[name]):
            try:
                numbers[row] = number(cell, self.decimal)
            except ValueError as error:
                raise DataError(f'{self._place(row, name)} {error}') from None
        too_large = np.flatnonzero(np.abs(numbers) > LARGEST)
        if len(too_large):
            place = self._place(too_large[0], name)
            if name == self.target:
                raise DataError(f'{place} is too large for a target')
            self._too_large.append(f'{place} (one of {len(too_large)})')
            numbers[too_large] = np.nan
        return numbers

    def _place(self, row: int, name: str) -> str:
        return f'{self.path}, line {self.lines[row]}, column {name!r}: {self.cells[name][row]!r}'


def in_order(values: set[str]) -> list[str]:
    """Sorted: by number when all are numbers, so that 10 comes after 9."""
    try:
        return sorted(values, key=lambda value: (float(value), value))
    except ValueError:
        return sorted(values)


def read_cells(
    path: str, needed: list[str], encoding: str | None
) -> tuple[list[int], dict[str, list[str]]]:
    """(the line of each row, {column: its cells}) of a CSV file that has the columns `needed`."""
    names, rows = read_rows(path, needed, encoding)
    for line, row in rows:
        if len(row) != len(names):
            raise DataError(f'{path}, line {line}: {len(row)} cells instead of {len(names)}')
    lines, rows = zip(*rows)
    return list(lines), {name: list(column) for name, column in zip(names, zip(*rows))}
