"""A trained model in use: its tested weights, and how raw input becomes a batch for it."""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import data_loader.data_loaders as module_data
import model.loss as module_loss
import model.model as module_arch
from armature.batch import call_by_name, map_leaves, to_device
from armature.checkpoint import files as checkpoint
from armature.checkpoint.weights import load_tested
from armature.config import build
from armature.config.values import parameters
from armature.errors import ConfigError
from parse_config import ConfigParser
from tools.use_inputs import InputFormat, rows_for
from tools.use_meaning import meanings_of
from tools.use_outputs import CLASSES, answers, by_task, check_rows


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

    class_names: None when the run has none. input_format: see tools/use_inputs.py; asking for it
    is a ConfigError where neither the loader nor its dataset says it.
    """

    def __init__(self, config: ConfigParser, device: torch.device):
        self.config, self.device = config, device
        self.model = config.init_obj('arch', module_arch).to(device)
        self.criterion = config.init_loss(module_loss)
        saved = checkpoint.load(config.resume)
        load_tested(self.model, self.criterion, saved, config.resume)
        self.model.eval()
        call_by_name(self.model, config.get('batch'))
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
            return self.answers(output, len(samples), top)

        return rows_for(self.input_format, sources, answer)

    def answers(self, output: Any, n_samples: int, top: int = 1) -> list[dict[str, Any]]:
        outputs = {task: each.float().cpu().numpy() for task, each in by_task(output).items()}
        check_rows(outputs, n_samples)
        return answers(outputs, self.meanings(output), self.class_names, top)

    def meanings(self, output: Any) -> dict[str, str]:
        """What the loss says of each output: see tools/use_outputs.py."""
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
    section, kind = config.get('data_loader'), build.kind_of('data_loader', module_data)
    if not isinstance(section, dict):
        raise ConfigError(
            'the config of this run has no "data_loader", which says how raw input becomes a '
            'batch: use load_run in a script of your own (docs/use.md)'
        )
    dataset = (section.get('args') or {}).get('dataset')
    found = build.find(section['type'], kind)
    if hasattr(found, 'input_format'):
        args = config.init_ftn('data_loader', module_data).keywords
    elif isinstance(dataset, dict):
        found = build.find(dataset.get('type'), kind.inside())
        args = dataset.get('args') or {}
    if not hasattr(found, 'input_format'):
        raise ConfigError(
            f'{found.__name__} does not say how raw input becomes a batch: write its class method '
            'input_format(args, state), as examples/own_dataset/data.py does (docs/use.md)'
        )
    named, _ = parameters(found)
    defaults = {name: each.default for name, each in named.items()}
    return found.input_format(defaults | args, state)
