"""ConfigParser: from a command line and a JSON file to a checked config and what it describes."""

import argparse
import copy
import copyreg
import functools
import logging
import math
import os
import sys
from collections import OrderedDict, UserDict, namedtuple
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace

import torch

from armature.config import build
from armature.config.check import check
from armature.config.command import read_command, set_option
from armature.config.keys import TERM, TOP, settings_of
from armature.config.read import Document, entries
from armature.config.spelling import did_you_mean
from armature.data.identity import resuming
from armature.data.order import batches_per_pass
from armature.errors import ConfigError, UserError, steady_streams
from armature.processes import dist, launch
from armature.run.folder import RunPlace
from armature.seed import be_deterministic
from armature.step.losses import WeightedLosses
from armature.step.optimizers import optimizer_of
from armature.step.prepare import prepared

ROOT = build.ROOT
CustomArgs = namedtuple('CustomArgs', 'flags type target')


class ConfigParser(UserDict):
    """The config of one run, a dict: read, checked, and the objects that it describes.

    Building one touches no disk: `save_dir` and `log_dir` claim the run's folders when first asked
    for.

    config: the config as a dict. resume: the checkpoint to go on from.
    modification: {'optimizer;args;lr': value} laid over it. run_id: name of the run's folder; the
    time of day when not given.
    """

    arguments = None  # what the command line said, for the script
    started_in = os.curdir  # the folder in which it was typed
    wrapped = False  # whether `wrap` has seen the model
    # Scripts of old projects do with what they build as they like: it may be of any class.
    _takes_any_class = False

    def __init__(self, config: dict, resume=None, modification=None, run_id: str | None = None):
        if isinstance(config, argparse.ArgumentParser):
            # How projects of early 2019 call it: (parser, options).
            self.__dict__.update(vars(type(self).from_args(config, resume or '')))
            self.place.config = self
            return
        self._document = config if isinstance(config, Document) else Document(dict(config))
        for target, value in (modification or {}).items():
            set_option(self._document, target, value, 'modification')
        self.data = self._document.values
        # What the script puts in later, it puts in anew after a resume: no part of the experiment.
        self.as_read = copy.deepcopy(self.data)
        self.resume = None if resume is None else Path(resume)
        self.run_id = run_id
        self.name = self.data.get('name')
        from logger import setup_logging  # a project's own may import this file

        self.place = RunPlace(self, setup_logging)

    @classmethod
    def from_args(cls, args: argparse.ArgumentParser, options='', *_, builds: dict | None = None):
        """Parse the command line, read and check the config.

        options: CustomArgs, flags that change a value of the config. builds: the sections that the
        script builds, each with the module for its names; they are judged now, and any other when
        it is built. What the user can mend is printed, a line each, with exit code 2.
        """
        steady_streams()
        try:
            given, document, resume = read_command(args, options)
            say_notes(check(document, builds))
            if given.print_config:
                from tools.print_config import describe

                sys.stdout.write(describe(document, builds))
                sys.exit(0)
            config = cls(document, resume, run_id=given.run_id)
            config.arguments, config.started_in = given, os.getcwd()
            config._takes_any_class = builds is None
            # Paths in a config are relative to the project, wherever the command was typed.
            os.chdir(ROOT)
            config.place.choose(given)
            return config
        except UserError as error:
            if dist.is_first_here():  # all processes find the same
                sys.stderr.write(f'{error}\n')
            sys.exit(2)

    def check(self, builds: dict | None = None) -> 'ConfigParser':
        """Judge the whole config now, as from_args does; for a config that is a dict in a notebook.

        Raises a ConfigError with a line for each mistake.
        """
        say_notes(check(self._document, builds))
        return self

    # Which run this is

    processes = launch.processes  # what train.py of the first version says

    @property
    def save_dir(self) -> Path:
        """Where checkpoints go: <trainer.save_dir>/models/<name>/<run>/. It exists."""
        return self.place.folders[0]

    @property
    def log_dir(self) -> Path:
        """Where logs go: <trainer.save_dir>/log/<name>/<run>/. It exists."""
        return self.place.folders[1]

    _save_dir, _log_dir = save_dir, log_dir

    # Building what the config describes

    def wrap(self, model, device):
        """The model on its device as it trains: frozen, laid out, shared by processes, compiled."""
        self.wrapped = True
        return prepared(model, self, device)

    def init_obj(self, name: str, module, *args, **kwargs):
        """`config['name']` says {"type", "args"}: type(*args, **kwargs, **args).

        The type is looked up in `module` first.
        """
        make = functools.partial(self._made, module)
        if name == 'optimizer':
            return optimizer_of(self.data.get(name), make, args, kwargs)
        return make((name,), args, kwargs)

    def _made(self, module, path: tuple, args: tuple, kwargs: dict, **more):
        call = self._call(module, path, args, kwargs, **more)
        # A run that goes on keeps its split, also one that was made in another way.
        with resuming(self.resume if path == ('data_loader',) else None):
            return build.make(call, path, self._document)

    def _call(self, module, path: tuple, *given, entry=..., n_steps=None):
        """The call that `entry`, or the section at `path`, describes, when nothing is wrong."""
        name, *_ = path
        if name not in self:
            near = did_you_mean(name, filter(self.__contains__, self))
            raise ConfigError(f'{name}: the config has no such section{near}')
        if self.settings.deterministic:
            be_deterministic()
        kind = build.kind_of(name, module)
        if entry is ...:
            entry = self.data[name]
            if self._takes_any_class:
                kind = kind._replace(method='__init__')
        return build.EntryReader(self._document, n_steps).prepared(entry, kind, path, *given)

    def init_ftn(self, name: str, module, *args, **kwargs):
        """Like init_obj, but return the call still to be made: a functools.partial."""
        return self._call(module, (name,), args, kwargs, False)

    initialize = init_obj
    initialize_ftn = init_ftn

    def init_loss(self, module):
        """The loss as a callable (output, target) -> loss: a function, or an nn.Module."""
        section = self.data['loss']
        if not isinstance(section, list):
            return self._function(module, ('loss',), section)
        terms = []
        for index, entry in enumerate(section):
            term = self._function(module, ('loss', index), entry)
            terms.append((term.__name__, term, settings_of(dict(entries(entry)), TERM).weight))
        return WeightedLosses(terms)

    def init_metrics(self, module) -> list:
        """The metrics as callables (output, target) with a `__name__`.

        Those of torchmetrics have update() and compute().
        """
        return [
            self._function(module, ('metrics', index), entry)
            for index, entry in enumerate(self.get('metrics'))
        ]

    def _function(self, module, path: tuple, entry):
        call = self._call(module, path, entry=entry)
        return build.with_name(call, entry, path, self._document)

    def init_scheduler(self, optimizer, data_loader):
        """The learning rate scheduler, None without one.

        A length of "auto" is what the run has of its steps (or epochs).
        """
        section, settings = self.data.get('lr_scheduler'), self.settings
        if not section:
            return None
        n_steps = settings.epochs
        if section.get('interval') == 'step':
            n_batches = settings.len_epoch or batches_per_pass(data_loader) or math.inf
            n_steps = min(n_steps * n_batches, settings.max_steps or math.inf)
        return self._made(
            torch.optim.lr_scheduler, ('lr_scheduler',), (optimizer,), {}, n_steps=n_steps
        )

    def trainer_class(self, module):
        """The class that trains: `trainer.type`, looked up in `module` first."""
        return build.find(self.settings.type, build.kind_of('trainer', module))

    # Reading it like a dict

    @property
    def config(self) -> dict:
        return self.data

    _config = config

    @property
    def settings(self) -> SimpleNamespace:
        """The trainer section with the defaults of the key table filled in."""
        return settings_of(self.get('trainer'))

    __hash__ = object.__hash__

    def __contains__(self, name) -> bool:
        """Whether the config says something of it: of our keys null means what leaving it out
        means."""
        return name in self.data and not (name in TOP and self.data[name] is None)

    def get(self, name, default=...):
        """The section or value `name`; without it `default`, or that of the key table."""
        if default is ...:
            default = copy.copy(vars(settings_of(None, TOP)).get(name))
        return self.data[name] if name in self else default

    def __copy__(self):
        """Another config, that trains in a folder of its own."""
        copied = super().__copy__()
        copied.place = copy.copy(self.place)
        copied.place.config = copied
        return copied

    def __deepcopy__(self, memo):
        copied = copy.copy(self)
        copied.data = copy.deepcopy(self.data, memo)
        return copied

    def __reduce__(self):
        """Pickled as its plain config, which torch.load reads with weights_only."""
        return OrderedDict, (), None, None, iter(self.as_read.items())

    def get_logger(self, name: str, verbosity: int = 2) -> logging.Logger:
        """A logger that shows warnings (0), information (1) or everything (2)."""
        levels = (logging.WARNING, logging.INFO, logging.DEBUG)
        if not logging.root.handlers:
            who = '' if dist.is_main() else f'[process {dist.rank()}] '
            logging.basicConfig(format=f'{who}%(message)s', stream=sys.stdout)
        logger = logging.getLogger(name)
        logger.setLevel(levels[verbosity if dist.is_main() else 0])
        return logger


def _as_it_is(config: ConfigParser) -> tuple:
    """How it goes to a process that is started with it, as by torch.multiprocessing.spawn."""
    return copyreg.__newobj__, (ConfigParser,), vars(config)


ForkingPickler.register(ConfigParser, _as_it_is)


def say_notes(notes: list[str]) -> None:
    if dist.is_main():
        for note in notes:
            sys.stderr.write(f'note: {note}\n')
