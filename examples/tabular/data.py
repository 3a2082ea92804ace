"""Rows of a CSV file as batches for TabularModel."""

import logging
from collections.abc import Iterator
from typing import Any

from armature.batch import Batch
from armature.errors import ConfigError, DataError
from base import BaseDataLoader
from examples.tabular.table import Table, TargetKind
from tools.use_cells import Decimal
from tools.use_inputs import InputFormat, TableInput


class CsvDataLoader(BaseDataLoader):
    """A CSV file with a head: ((numbers, codes), target) for TabularModel.

    numeric: columns, standardised with mean and standard deviation of the training part; missing
    values become the mean. categorical: columns, as codes from 1; 0 stands for missing ones and
    those that the training part does not have.
    target_kind: 'class', 'binary' (for one output and BCEWithLogitsLoss) or 'number'. group_by: a
    column; rows that agree in it stay in the same part. test_path: the file that test.py reads.
    decimal: what stands before decimals, where digits are in groups of three or it is a comma.
    encoding: of the file, where it is not Unicode.
    What is learned from the training part is saved with the run, and used again by test.py.
    """

    def __init__(
        self,
        path: str,
        target: str,
        batch_size: int,
        numeric: list[str] = (),
        categorical: list[str] = (),
        *,
        target_kind: TargetKind = 'class',
        training: bool = True,
        test_path: str | None = None,
        group_by: str | None = None,
        encoding: str | None = None,
        decimal: Decimal = None,
        **options: Any,
    ):
        if not training and test_path is None:
            raise ConfigError(
                'say where the test data is: data_loader.args.test_path, or a "test_data_loader"'
            )
        self._table = Table(
            path if training else test_path,
            list(numeric),
            list(categorical),
            target,
            target_kind,
            group_by,
            encoding,
            decimal,
        )
        everybody = range(len(self._table.lines))
        self._fitted, self._said = None, []
        super().__init__(
            self._table.encode(self._table.fit(everybody)),  # until the split is known
            batch_size,
            groups=self._table.cells.get(group_by),
            evaluation=not training,
            **options,
        )
        if training:
            validated = set(self.valid_sampler or ())
            self.load_state_dict(
                self._table.fit([row for row in everybody if row not in validated])
            )
            sizes = [len(values) + 1 for values in self._fitted['categories'].values()]
            logging.getLogger('data').debug(
                f'{path}: n_numeric {len(numeric)}, n_categories {sizes}, '
                f'{len(self._fitted["classes"])} classes {self._fitted["classes"]}, for arch.args'
            )

    @classmethod
    def input_format(cls, args: dict, state: dict) -> InputFormat:
        learned = {name: state[name] for name in ('mean', 'std', 'categories')}
        how = {name: args[name] for name in ('decimal', 'encoding')}
        return TableInput(list(args['numeric']), list(args['categorical']), **learned, **how)

    def batches(self, *which: int) -> Iterator[Batch]:
        if self._fitted is None:
            raise DataError(
                'test rows are encoded as the training rows were: load_state_dict with what the '
                'checkpoint holds for them'
            )
        return super().batches(*which)

    def state_dict(self) -> dict:
        return self._fitted or {}

    def load_state_dict(self, state: dict) -> None:
        self._fitted = state
        self.class_names = state['classes'] or None
        encoded = self._table.encode(state)
        self.dataset.tensors = encoded.tensors
        if self._memory is not None and self._memory is not self.dataset:
            self._memory.tensors = encoded.to(self._memory.device).tensors
        for note, is_warning in self._table.notes(state):
            if note not in self._said:
                self._said.append(note)
                level = logging.WARNING if is_warning else logging.INFO
                logging.getLogger('data').log(level, note)

    def fingerprint(self) -> dict[str, Any]:
        return self._table.fingerprint()

    def notes(self) -> list[str]:
        """What a reader of the file may not expect of its encoding."""
        return self._said
