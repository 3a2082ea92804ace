"""Tables: a CSV file as tensors. What is learned from the training rows (means, categories, classes) is a dict that can be saved."""

import csv
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from armature.data.memory import InMemory
from armature.errors import DataError

MISSING = ['', 'NA', 'N/A', 'NaN', 'nan', 'null', '?']
UNKNOWN = 0  # the code of a category that is missing or was not seen in training

TargetKind = Literal['class', 'binary', 'number']


class Table:
    """The cells of a CSV file, as text, in the columns `numeric`, `categorical` and `target`.

    Each can be told by line: an error names the line of the file and the column.
    """

    def __init__(
        self,
        path: str,
        numeric: list[str],
        categorical: list[str],
        target: str,
        target_kind: TargetKind,
    ):
        self.path, self.numeric, self.categorical, self.target, self.target_kind = (
            path,
            numeric,
            categorical,
            target,
            target_kind,
        )
        self.cells = read_cells(path)
        missing = [name for name in (*numeric, *categorical, target) if name not in self.cells]
        if missing:
            raise DataError(
                f'{path} has no column {missing[0]!r}: there are {", ".join(map(repr, self.cells))}'
            )
        if not numeric and not categorical:
            raise DataError(
                f'{path}: name the columns to learn from in "numeric" and "categorical"'
            )
        self.is_missing = self.cells.isin(MISSING)
        if self.is_missing[target].any():
            raise DataError(
                f'{self._place(self.is_missing[target], target)} is missing, and it is the target'
            )
        self.numbers = (
            torch.stack([self._parsed(name) for name in numeric], 1)
            if numeric
            else torch.empty(len(self.cells), 0)
        )

    def fit(self, rows: list[int]) -> dict[str, Any]:
        """What encoding needs, from these rows: mean and standard deviation a numeric column, categories, classes."""
        numbers = self.numbers[rows]
        known = ~numbers.isnan()
        count = known.sum(0).clamp(min=1)
        mean = numbers.nan_to_num().sum(0) / count
        variance = ((numbers - mean).nan_to_num() ** 2).sum(0) / count
        cells, is_missing = self.cells.iloc[rows], self.is_missing.iloc[rows]
        categories = {
            name: sorted(cells[name][~is_missing[name]].unique().tolist())
            for name in self.categorical
        }
        classes = (
            sorted(cells[self.target].unique().tolist()) if self.target_kind != 'number' else []
        )
        if self.target_kind == 'binary' and len(classes) != 2:
            raise DataError(
                f'{self.path}: the target {self.target!r} is "binary", and has {len(classes)} values: {", ".join(classes[:5])}'
            )
        return {
            'mean': mean.tolist(),
            'std': [value or 1.0 for value in variance.sqrt().tolist()],
            'categories': categories,
            'classes': classes,
        }

    def encode(self, fitted: dict[str, Any]) -> InMemory:
        """[[numbers, codes], target]: (n, numeric) standardised, missing ones 0 (the mean); (n, categorical), unknown ones 0; and
        (n,) classes, or (n, 1) numbers for 'number' and 'binary' (0. and 1.), as losses of one output want them."""
        numbers = (self.numbers - torch.tensor(fitted['mean'], dtype=torch.double)) / torch.tensor(
            fitted['std'], dtype=torch.double
        )
        codes = (
            torch.stack(
                [self._codes(name, fitted['categories'][name]) for name in self.categorical], 1
            )
            if self.categorical
            else torch.empty(len(self.cells), 0, dtype=torch.long)
        )
        if self.target_kind == 'number':
            target = self._parsed(self.target).float().unsqueeze(1)
        else:
            target = self._codes(self.target, fitted['classes']) - 1
            if (target < 0).any():
                place = self._place((target < 0).numpy(), self.target)
                raise DataError(
                    f'{place} is none of the classes seen in training: {", ".join(fitted["classes"])}'
                )
            target = target if self.target_kind == 'class' else target.float().unsqueeze(1)
        return InMemory([[numbers.nan_to_num().float(), codes], target])

    def _codes(self, name: str, categories: list[str]) -> torch.Tensor:
        codes = {category: code for code, category in enumerate(categories, start=1)}
        return torch.tensor([codes.get(cell, UNKNOWN) for cell in self.cells[name]])

    def _parsed(self, name: str) -> torch.Tensor:
        import pandas

        numbers = pandas.to_numeric(self.cells[name].mask(self.is_missing[name]), errors='coerce')
        is_text = numbers.isna() & ~self.is_missing[name]
        if is_text.any():
            raise DataError(f'{self._place(is_text, name)} is not a number')
        return torch.tensor(numbers.to_numpy(dtype='float64', na_value=float('nan')))

    def _place(self, is_bad: Any, name: str) -> str:
        row = int(np.asarray(is_bad).argmax())
        return f'{self.path}, line {self.cells.index[row]}, column {name!r}: {self.cells[name].iloc[row]!r}'


def read_cells(path: str) -> Any:
    """The file as a pandas table of text, indexed by line; a DataError when a row has too few or too many cells."""
    import pandas

    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            reader = csv.reader(file, skipinitialspace=True)
            names = next(reader, [])
            lines, rows = [], []
            for row in reader:
                if len(row) not in (0, len(names)):
                    raise DataError(
                        f'{path}, line {reader.line_num}: {len(row)} cells instead of {len(names)}'
                    )
                if row:
                    lines.append(reader.line_num)
                    rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f'{Path(path).resolve()} cannot be read as a CSV table: {error}') from error
    if not rows:
        raise DataError(f'{Path(path).resolve()} has no rows')
    if len(set(names)) < len(names):
        raise DataError(f'{path}: several columns have the same name')
    return pandas.DataFrame(rows, index=lines, columns=names)
