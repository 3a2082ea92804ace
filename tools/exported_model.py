"""A model that tools.export wrote as ONNX: used without torch."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from armature.errors import ConfigError
from tools.use_inputs import ArrayInput, described, leaves, rows_for
from tools.use_outputs import answers

KEY = 'armature'  # of our part of the file's metadata
DTYPES = {'tensor(float)': 'float32', 'tensor(double)': 'float64', 'tensor(int64)': 'int64'}


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
        self.input_format = self._format()
        self.notes = []

    def _format(self) -> Any:
        if self.about['input_format'] is not None:
            return described(self.about['input_format'])
        first, *others = self._session.get_inputs()
        if others or not all(isinstance(size, int) for size in first.shape[1:]):
            raise ConfigError(
                'this model was exported without the format of its inputs, and takes several '
                'tensors: write input_format for its loader, and export it again'
            )
        return ArrayInput(list(first.shape[1:]), DTYPES.get(first.type, 'float32'))

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """The outputs of a batch: arrays in the order of about['inputs'] and about['outputs']."""
        given = dict(zip(self.about['inputs'], arrays))
        return self._session.run(None, {name: given[name] for name in self._wanted})

    def predict(self, sources: Iterable[Any], top: int = 1) -> list[dict[str, Any]]:
        def answer(samples: list) -> list[dict[str, Any]]:
            outputs = self.run(leaves(self.input_format.batch(samples)))
            named = dict(zip(self.about['outputs'], outputs))
            return answers(named, self.about['meanings'], self.class_names, top)

        return rows_for(self.input_format, sources, answer)
