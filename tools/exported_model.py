"""A model that tools.export wrote as ONNX: used without torch."""

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from armature.errors import ConfigError
from tools.use_inputs import ArrayInput, described, leaves, rows_for
from tools.use_outputs import answers, check_rows

KEY = 'armature'  # of our part of the file's metadata
DTYPES = {'float': 'float32', 'double': 'float64'}  # others are called as numpy has them


class ExportedModel:
    """Has `predict`, `class_names` and `input_format` as a run (predict.py) has them.

    about: what tools.export wrote of it. Raises ConfigError for any other file.
    """

    def __init__(self, file: Path):
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError(
                'onnxruntime is not installed: pip install -r requirements-export.txt'
            ) from error
        try:
            self._session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
            self.about = json.loads(self._session.get_modelmeta().custom_metadata_map[KEY])
        except Exception as error:  # onnxruntime raises its own kinds
            reason = str(error).splitlines()[0][:300]
            raise ConfigError(f'{file} is no model of tools.export ({reason})') from error
        self._wanted = [each.name for each in self._session.get_inputs()]
        self.class_names = self.about['classes']
        self.notes = []

    @functools.cached_property
    def input_format(self) -> Any:
        """A ConfigError where the file does not say it."""
        if self.about['input_format'] is not None:
            return described(self.about['input_format'])
        first, *others = self._session.get_inputs()
        if others or not all(isinstance(size, int) for size in first.shape[1:]):
            raise ConfigError(
                'this file holds no input_format (it has none, or is code of the project), and its '
                'model takes several tensors: give tools.serve -r the run in its place'
            )
        kind = first.type.removeprefix('tensor(').removesuffix(')')
        return ArrayInput(list(first.shape[1:]), DTYPES.get(kind, kind))

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """The outputs of a batch: arrays in the order of about['inputs'] and about['outputs']."""
        given = dict(zip(self.about['inputs'], arrays))
        return self._session.run(None, {name: given[name] for name in self._wanted})

    def predict(self, sources: Iterable[Any], top: int = 1) -> list[dict[str, Any]]:
        def answer(samples: list) -> list[dict[str, Any]]:
            outputs = self.run(leaves(self.input_format.batch(samples)))
            named = dict(zip(self.about['outputs'], outputs))
            check_rows(named, len(samples))
            return answers(named, self.about['meanings'], self.class_names, top)

        return rows_for(self.input_format, sources, answer)
