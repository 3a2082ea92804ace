"""The only place where a class or function is looked up by a name that a config gives.

A config is data that people pass around, so a name in it may reach only what its section is for:
what the project's own module for that section offers, then one fixed list of libraries. Nothing is
imported, and nothing is called, because a config named it.
"""

import functools
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any, NamedTuple
from urllib.error import URLError

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler

from armature.config.keys import expanded
from armature.config.read import Document, Problem, entries, lookup, show
from armature.config.spelling import did_you_mean, is_slip, nearest
from armature.config.values import (
    ANY_PARAMETER,
    OBJECTS,
    hint_of,
    is_called,
    parameters,
    takes,
    violation,
)
from armature.errors import ConfigError, UserError

ROOT = Path(__file__).resolve().parents[2]
# These handle files and processes; a config has no business there.
CORE = ('armature', 'base', 'logger', 'tools', 'tests', 'benchmarks')
CORE += ('parse_config', 'new_project', 'train', 'test', 'predict')
MOVED = {  # a name of the first version's configs
    'CsvDataLoader': 'examples.tabular.data.CsvDataLoader',
    'TabularModel': 'examples.tabular.model.TabularModel',
}
# Classes of these kinds may be named, whoever wrote them.
BASES = (nn.Module, Optimizer, LRScheduler, DataLoader, Dataset, Sampler)
PARTS = ('torchvision.transforms.v2', 'torch.utils.data', 'timm.data')  # of a data loader
MODEL_BUILDERS = {'torchvision.models': 'get_model_builder', 'timm': 'model_entrypoint'}
AUTO_LENGTHS = ('T_max', 'total_steps', 'total_iters')  # "auto" is as long as the run


class Kind(NamedTuple):
    """What one section may name: where it is looked up, and what has to come out."""

    noun: str
    module: ModuleType | str = ''  # the project's own module for it, or its name
    libraries: tuple[str, ...] = ()  # and others
    method: str = '__init__'  # a class needs it
    given: str = ''  # the argument that the code gives first, whatever its place
    hint: str = ''  # where a name is none
    is_called: bool = False  # what comes out

    def inside(self) -> 'Kind':
        """The kind of an object nested in the args of one of this kind."""
        return Kind(
            f'{self.noun} or part of one',
            self.module,
            self.libraries + (PARTS if self.noun == 'data loader' else ()),
            given=self.given,
            hint='. For an object that the class reads by itself, annotate the parameter as dict',
        )


KINDS = {
    'arch': Kind('model', 'model.model', ('torchvision.models', 'timm'), 'parameters'),
    'loss': Kind(
        'loss', 'model.loss', ('torch.nn.functional', 'torch.nn.modules.loss'), '__call__'
    ),
    'metrics': Kind(
        'metric',
        'model.metric',
        ('torchmetrics', 'torchmetrics.classification', 'torchmetrics.regression'),
        '__call__',
    ),
    'optimizer': Kind('optimizer', '', ('torch.optim',), 'step', 'params'),
    'lr_scheduler': Kind('scheduler', '', ('torch.optim.lr_scheduler',), 'step', 'optimizer'),
    'trackers': Kind('tracker', '', ('armature.run.trackers',), 'log'),
    'trainer': Kind('trainer', 'trainer.trainer', (), '_train_epoch'),
    'data_loader': Kind('data loader', 'data_loader.data_loaders', (), '__iter__'),
}
OWN = Kind('class or function of the project')
NOTHING = MappingProxyType({})


def kind_of(section: str, module: ModuleType | None = None) -> Kind:
    """The kind of a section: by its name (valid_data_loader is a data_loader), or its module.

    module: where its names are looked up first, instead of the project's own module for it.
    """
    where = getattr(module, '__name__', None)
    of_module = (kind for kind in KINDS.values() if where in (kind.module, *kind.libraries))
    name = 'data_loader' if section.endswith('data_loader') else section
    kind = KINDS.get(name) or next(of_module, OWN)
    return kind._replace(module=module or kind.module)


# Names


def find(name: str, kind: Kind) -> Callable:
    """The class or function that `name` stands for; a ConfigError when it is not of the kind."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f'expected the name of a {kind.noun}, got {show(name)}')
    inside, _, last = name.rpartition('.')
    if inside:  # examples.gan.model.Generator
        kind = kind._replace(module=project_module(inside), libraries=())
        if kind.module is None:
            raise ConfigError(
                f'{show(name)} is not in this project, and a name with dots may only lead into its '
                "own packages: put it there (the template's examples/ with its __init__.py)"
            )
    for offer in offers(kind):
        if last in offer:
            if inspect.isabstract(found := offer[last]):
                missing = ', '.join(sorted(found.__abstractmethods__))
                raise ConfigError(f'{show(name)} is abstract: name one that implements {missing}')
            return found
    if name in MOVED:
        return find(MOVED[name], kind)
    near = did_you_mean(last, names(kind))
    if 'timm' in kind.libraries and not _is_installed('timm'):
        near += '; for names of timm: pip install -r requirements-timm.txt'
    raise ConfigError(f'no {kind.noun} is called {show(name)}{near}{kind.hint}')


def names(kind: Kind) -> list[str]:
    """Every name that may stand in a section of this kind."""
    return [name for offer in offers(kind) for name in offer]


def offers(kind: Kind) -> Iterator[dict[str, Callable]]:
    """What may be named, by name: first what the project offers, then each library."""
    module = project_module(kind.module) if isinstance(kind.module, str) else kind.module
    if module is not None:
        yield _public(module, lambda value: _may_be_named(value, kind, module))
    for library in kind.libraries:  # imported only when it is asked for
        if _is_installed(library.partition('.')[0]):
            yield _library(library)


def _public(module: ModuleType, is_fit: Callable) -> dict[str, Any]:
    members = vars(module).items()
    return {name: value for name, value in members if name[0] != '_' and is_fit(value)}


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def project_module(name: str) -> ModuleType | None:
    """A module in the project's own packages, less the core's; None when there is none."""
    parts = name.split('.')
    if _is_core(name) or not all(part.isidentifier() and part[0] != '_' for part in parts):
        return None
    file = ROOT.joinpath(*parts)
    files = (file.with_suffix('.py'), file / '__init__.py')
    if not any(each.is_file() and each.parent != ROOT for each in files):
        return None
    return importlib.import_module(name)


@functools.cache
def _library(name: str) -> dict[str, Callable]:
    module = importlib.import_module(name)
    if name in MODEL_BUILDERS:
        builder = getattr(module, MODEL_BUILDERS[name])
        return {each: builder(each) for each in module.list_models()}
    if name == 'armature.run.trackers':
        return module.TRACKERS
    if name == 'timm.data':
        return {'create_transform': module.create_transform}

    def is_fit(value: Any) -> bool:
        if isinstance(value, FunctionType):  # the losses among those of torch.nn.functional
            given = inspect.signature(value).parameters.values()
            needed = [each.name for each in given if each.default is each.empty]
            return needed == ['input', 'target']
        is_class = inspect.isclass(value) and issubclass(value, BASES) and value not in BASES
        return is_class and not inspect.isabstract(value) and value.__module__.startswith(name)

    return _public(module, is_fit)


def _may_be_named(value: Any, kind: Kind, module: ModuleType) -> bool:
    """Whether a config may name this member of a module.

    Classes of torch's own kinds may come from anywhere; all else has to be the project's own, or
    the given module's.
    """
    is_given = getattr(value, '__module__', None) == module.__name__
    is_own = is_projects_own(value) or is_given and not _is_core(module.__name__)
    if inspect.isclass(value):
        return hasattr(value, kind.method) and (is_own or issubclass(value, BASES))
    if isinstance(value, nn.Module):
        return kind.method == '__call__'  # criterion = nn.CrossEntropyLoss() in model/loss.py
    return isinstance(value, functools.partial) or is_own and callable(value)


def is_projects_own(value: Any) -> bool:
    """Whether a class or function is defined in the user's part of this project.

    (Not in an environment that lies inside it.)
    """
    module = getattr(value, '__module__', None) or ''
    file = Path(getattr(sys.modules.get(module), '__file__', None) or '/').resolve()
    is_here = file.is_relative_to(ROOT) and 'site-packages' not in file.parts
    return is_here and not _is_core(module)


def _is_core(module: str) -> bool:
    return module in CORE or module.split('.')[0] in CORE


# Reading what a section says


def type_of(entry: str | dict) -> Any:
    """What an entry names: a name alone, or {"type", "args"}."""
    return entry.get('type') if isinstance(entry, dict) else entry


class EntryReader:
    """Reads {"type", "args"}: what is wrong with it, or the call that it describes.

    n_steps: what "auto" stands for, infinite without an end. problems: all that was wrong so far.
    """

    def __init__(self, document: Document, n_steps: float | None = None):
        self.document, self.problems = document, []
        self.spans = {(): n_steps}  # by path, what "auto" stands for there and deeper
        self.builds = False  # else objects inside args are only judged

    def prepared(self, *what: Any) -> functools.partial:
        """As `call`, with the objects inside args built; a ConfigError when anything is wrong."""
        self.builds = True
        call = self.call(*what)
        self.document.refuse(self.problems)
        return call

    def problem(self, path: tuple, text: str) -> None:
        self.problems.append(Problem(path, text))

    def call(
        self,
        entry: str | dict,
        kind: Kind,
        path: tuple,
        positional: tuple = (),
        keywords: Mapping[str, Any] = NOTHING,
        is_all: bool = True,
    ) -> functools.partial | None:
        """The call of an entry, a name or {"type", "args"}; None when that is wrong.

        positional, keywords: what the code gives beside it, and is_all whether nothing more later.
        """
        name, args = type_of(entry), lookup(entry, ('args',)) or {}
        around = path
        while around not in self.spans:
            around = around[:-1]
        n_steps = self.spans[around]
        try:
            target = find(name, kind)
        except ConfigError as error:
            return self.problem((*path, 'type') if isinstance(entry, dict) else path, str(error))
        is_class = inspect.isclass(target)
        if kind.is_called and is_class and not issubclass(target, Callable):
            return self.problem(
                path, f'what {name} makes cannot be called: give the class a __call__'
            )
        # In a group of the optimizer they stand beside the type.
        path = path if path[:2] == ('optimizer', 'groups') else (*path, 'args')
        if not isinstance(args, dict):
            return self.problem(path, f'expected an object {{...}}, got {show(args)}')
        named, is_open = parameters(target)
        args = known_arguments(target, self.document.values) | args
        if name == 'SequentialLR' and n_steps is not None:
            ends = [each for _, each in entries(args.get('milestones')) if isinstance(each, int)]
            if ends != sorted(set(ends)):  # torch would leave out the schedulers between them
                self.problem((*path, 'milestones'), f'expected numbers that rise, got {show(ends)}')
            for index, (begin, end) in enumerate(pairwise([0, *ends, n_steps])):
                self.spans[(*path, 'schedulers', index)] = max(1, end - begin)
        inner = kind.inside()
        # Schedulers inside one share its optimizer.
        shared = positional if kind.given == 'optimizer' else ()
        # A class that we do not know may read by itself what has a name unknown to us.
        reads_some = kind.method == '__init__' and is_projects_own(target)
        is_function = kind.method == '__call__' and not is_class
        if positional and kind.given in [*named][1:]:  # ChainedScheduler takes the optimizer last
            keywords, positional = {kind.given: positional[0], **keywords}, positional[1:]
        n_given = len(positional) or 2 * is_function  # (output, target)
        from_code = {*[*named][:n_given], *keywords}
        open_names = [key for key in named if key not in from_code]
        values, settled = {}, {*args}
        for key, value in args.items():
            here, parameter = (*path, key), named.get(key, ANY_PARAMETER if is_open else None)
            is_auto = key in AUTO_LENGTHS and value == 'auto' and n_steps is not None
            value = n_steps if is_auto else value
            if key in from_code:
                self.problem(here, 'is given by the code, so the config may not give it too')
            elif parameter is None:
                self.problem(here, f'{name} has no {key!r}{did_you_mean(key, open_names)}')
                settled.add(nearest(key, open_names))  # one mistake is one line
            elif is_auto and math.isinf(value):
                self.problem(
                    here,
                    '"auto" has no length to go by, since this data has no end: say '
                    'trainer.len_epoch or trainer.max_steps, or a number here',
                )
            elif value is not parameter.default and (
                expected := violation(value, hint_of(parameter))
            ):
                self.problem(here, f'expected {expected}, got {show(value)}')
            elif isinstance(value, list) and takes(parameter, torch.Tensor):
                # [1, 5] for the weights of classes, in a loss, means floats
                dtype = torch.get_default_dtype() if kind.method == '__call__' else None
                values[key] = torch.tensor(value, dtype=dtype)
            elif isinstance(value, dict) and takes(parameter, *OBJECTS):
                values[key] = value
            else:
                part = inner._replace(is_called=is_called(parameter.annotation))
                may_read = reads_some and not part.is_called
                values[key] = self.value(value, part, here, may_read, shared)
        # A trainer of one's own may give its loss more than (output, target).
        for key in open_names if is_all and not is_function else ():
            if named[key].default is inspect.Parameter.empty and key not in settled:
                if kind.is_called and not is_class:
                    return self.problem(
                        path[:-1],
                        f'{name} is called here, and needs {key!r}: where the function itself is '
                        'meant, name a class whose __call__ does the same',
                    )
                self.problem((*path, key), f'is missing: {name} needs it')
        return functools.partial(target, *positional, **values, **keywords)

    def value(self, value: Any, kind: Kind, path: tuple, reads_some: bool, shared: tuple) -> Any:
        """A value inside args with the objects in it built, to which the code gives `shared`."""
        if isinstance(value, dict):
            others = value.keys() - {'type', 'args'}
            may_slip = 'type' in value and not reads_some
            for key in others:  # an object with others is none to build
                if kind.is_called or may_slip and is_slip(key, 'args'):
                    return self.problem((*path, key), "unknown key (did you mean 'args'?)")
            if not others and self.is_object(value, kind, reads_some):
                call = self.call(value, kind, path, shared)
                is_fine = self.builds and not self.problems
                return make(call, path, self.document) if is_fine else None
        if isinstance(value, str):
            dtype = getattr(torch, value[6:], None) if value.startswith('torch.') else None
            try:
                return dtype if isinstance(dtype, torch.dtype) else expanded(value)
            except ConfigError as error:
                self.problem(path, str(error))
        if isinstance(value, (list, dict)):
            built = {
                key: self.value(each, kind, (*path, key), reads_some, shared)
                for key, each in entries(value)
            }
            return built if isinstance(value, dict) else list(built.values())
        return value

    def is_object(self, value: dict, kind: Kind, reads_some: bool) -> bool:
        """Whether it is to be built: {"type", "args"}, or {"type"} of a known name.

        reads_some: what has an unknown name is left as it is.
        """
        if kind.is_called or 'args' in value and not reads_some:
            return True
        name = type_of(value)
        try:
            return find(name, kind) is not None
        except ConfigError:  # a slip of a name is built too, so that this is said
            is_near = isinstance(name, str) and ('.' in name or nearest(name, names(kind)))
            return bool(is_near) and not reads_some


def known_arguments(metric: Callable, config: dict) -> dict[str, Any]:
    """`num_classes` and `task` of a class of torchmetrics that needs them, as the model has them.

    That is the model's argument `num_classes` in the config, or the default of it.
    """
    if not metric.__module__.startswith('torchmetrics'):
        return {}
    n_classes = lookup(config, ('arch', 'args', 'num_classes'))
    if n_classes is None:
        try:
            model = find(lookup(config, ('arch', 'type')), KINDS['arch'])
            n_classes = parameters(model)[0]['num_classes'].default
        except (ConfigError, KeyError):  # it has none
            return {}
    if not isinstance(n_classes, int):
        return {}
    known = {'num_classes': n_classes, 'task': 'multiclass' if n_classes > 1 else 'binary'}
    named, unset = parameters(metric)[0], (inspect.Parameter.empty, None)
    return {key: known[key] for key in known if key in named and named[key].default in unset}


# Building it


def make(call: functools.partial, path: tuple, document: Document) -> Any:
    """Make a call that a config describes.

    What a library refuses is the config's mistake; the project's own code raises.
    """
    try:
        return call()
    except Exception as error:
        is_own, name = is_projects_own(call.func), getattr(call.func, '__name__', path[0])
        if path == ('arch',) and isinstance(error, URLError if is_own else OSError):
            raise ConfigError(
                f'arch: {name} cannot download its weights ({getattr(error, "reason", error)}). '
                'Put the file on this machine and name it: "init_from": "FILE", and "weights": '
                'null in the args (of timm: "pretrained": false)'
            ) from error
        if is_own or isinstance(error, UserError):
            raise
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise ConfigError(document.line(Problem(path, f'{name} refuses: {reason}'))) from error


def with_name(
    call: functools.partial, entry: str | dict, path: tuple, document: Document
) -> Callable:
    """The loss or metric of an entry, whose call that is: a callable with a `__name__`."""
    found, has_own = call.func, lookup(entry, ('name',)) is not None
    if inspect.isclass(found):
        found = make(call, path, document)
    elif call.args:  # of a partial
        found = call
    elif any(isinstance(each, torch.Tensor) for each in call.keywords.values()):
        found = with_tensors(found, call.keywords)
    elif call.keywords or has_own:
        found = call
    if has_own or not hasattr(found, '__name__'):
        found.__name__ = name_of(entry)
    return found


def with_tensors(function: Callable, given: dict[str, Any]) -> Callable:
    """A loss function (output, target) with further arguments, whose tensors follow the output."""

    @functools.wraps(function)
    def call(output, target, **others):
        for key, value in given.items() if isinstance(output, torch.Tensor) else ():
            if isinstance(value, torch.Tensor):
                given[key] = value.to(output.device)  # after the first time it is there
        return function(output, target, **given, **others)

    call.func, call.keywords = function, given  # as a partial has them
    call.__signature__ = inspect.signature(functools.partial(function, **given))
    return call


def name_of(entry: str | dict) -> str:
    """What the log calls a loss or a metric."""
    return str(lookup(entry, ('name',)) or str(type_of(entry) or entry).rpartition('.')[2])
