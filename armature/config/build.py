"""The only place where a class or function is looked up by a name that a config gives.

A config is data that people pass around, so a name in it may reach only what its section is for: what the project's own module
for that section offers, then one fixed list of libraries. Nothing is imported, and nothing is called, because a config named it.
"""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType, ModuleType
from urllib.error import URLError

import torch

from armature.config.keys import is_tensor_argument, parameters
from armature.config.read import did_you_mean, nearest, show, show_path
from armature.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
# What these define handles files and processes; a config has no business there. (utils also holds the users' helpers.)
CORE = (
    'armature',
    'base',
    'logger',
    'tools',
    'tests',
    'benchmarks',
    'parse_config',
    'new_project',
    'train',
    'test',
    'utils.util',
)


def _optimizers() -> dict:
    return _subclasses(torch.optim, torch.optim.Optimizer)


def _schedulers() -> dict:
    from torch.optim import lr_scheduler

    return _subclasses(lr_scheduler, lr_scheduler.LRScheduler)


def _losses() -> dict:
    functions = {
        name: value
        for name, value in vars(torch.nn.functional).items()
        if isinstance(value, FunctionType) and _takes_input_and_target(value)
    }
    module = torch.nn.modules.loss
    classes = {
        name: value
        for name, value in _subclasses(module, torch.nn.Module).items()
        if value.__module__ == module.__name__
    }
    return functions | classes


def _takes_input_and_target(function: FunctionType) -> bool:
    parameters = list(inspect.signature(function).parameters.values())
    has_defaults = all(each.default is not each.empty for each in parameters[2:])
    return [each.name for each in parameters[:2]] == ['input', 'target'] and has_defaults


def _models() -> dict:
    from torchvision import models

    return {name: models.get_model_builder(name) for name in models.list_models()}


def _metrics() -> dict:
    import torchmetrics
    import torchmetrics.classification
    import torchmetrics.regression

    parts = (torchmetrics.regression, torchmetrics.classification, torchmetrics)
    return {
        name: value
        for part in parts
        for name, value in _subclasses(part, torchmetrics.Metric).items()
    }


def _transforms() -> dict:
    from torchvision.transforms import v2

    return {
        name: value
        for name, value in vars(v2).items()
        if _is_public_class(name, value)
        and value.__module__.startswith('torchvision.transforms.v2.')
    }


def _loader_parts() -> dict:
    data = torch.utils.data
    return _subclasses(data, data.Sampler) | _subclasses(data, data.Dataset)


def _subclasses(module: ModuleType, base: type) -> dict:
    return {
        name: value
        for name, value in vars(module).items()
        if _is_public_class(name, value) and issubclass(value, base) and value is not base
    }


def _is_public_class(name: str, value) -> bool:
    return inspect.isclass(value) and not name.startswith('_')


@dataclass(frozen=True)
class Kind:
    """What one section may name: where it is looked up, and what has to come out."""

    noun: str
    module: str = ''  # the project's own module for it
    libraries: tuple[
        Callable[[], dict], ...
    ] = ()  # each gives name -> object, and is asked only when needed
    bases: tuple[type, ...] = ()  # what a class has to be,
    method: str = ''  # or, for the project's own classes, has to have
    nested: tuple[
        Callable[[], dict], ...
    ] = ()  # further libraries for {"type", "args"} inside its args
    nested_bases: tuple[type, ...] = ()

    def inside(self) -> 'Kind':
        """The kind of an object nested in the args of one of this kind."""
        return replace(
            self,
            noun=f'{self.noun} or a part of one',
            libraries=self.libraries + self.nested,
            bases=self.bases + self.nested_bases,
            method='__init__',
        )


_DATA = torch.utils.data
KINDS = {
    'arch': Kind('a model', 'model.model', (_models,), (torch.nn.Module,), 'parameters'),
    'loss': Kind('a loss', 'model.loss', (_losses,), (torch.nn.Module,), '__call__'),
    'metrics': Kind('a metric', 'model.metric', (_metrics,), (torch.nn.Module,), '__call__'),
    'optimizer': Kind('an optimizer', '', (_optimizers,), (torch.optim.Optimizer,), 'step'),
    'lr_scheduler': Kind(
        'a scheduler', '', (_schedulers,), (torch.optim.lr_scheduler.LRScheduler,), 'step'
    ),
    'trainer': Kind('a trainer', 'trainer.trainer', method='_train_epoch'),
    'data_loader': Kind(
        'a data loader',
        'data_loader.data_loaders',
        (),
        (_DATA.DataLoader,),
        '__iter__',
        (_transforms, _loader_parts),
        (_DATA.Dataset, _DATA.Sampler, torch.nn.Module),
    ),
}
OWN = Kind(
    'a class or function of the project',
    bases=(
        torch.nn.Module,
        torch.optim.Optimizer,
        torch.optim.lr_scheduler.LRScheduler,
        _DATA.DataLoader,
        _DATA.Dataset,
        _DATA.Sampler,
    ),
)
_KIND_OF_MODULE = {kind.module: name for name, kind in KINDS.items() if kind.module} | {
    'torch.optim': 'optimizer',
    'torch.optim.lr_scheduler': 'lr_scheduler',
    'torchvision.models': 'arch',
}


def kind_of(section: str, module: ModuleType | None = None) -> Kind:
    """The kind of a config's section: by its name (valid_data_loader is a data_loader), else by the module given for it."""
    if section.endswith('data_loader'):
        return KINDS['data_loader']
    return KINDS.get(section) or KINDS.get(
        _KIND_OF_MODULE.get(getattr(module, '__name__', ''), ''), OWN
    )


def project_packages() -> list[str]:
    """The packages whose contents a config may name: the folders beside parse_config.py with Python files, less the core's."""
    return sorted(
        folder.name
        for folder in ROOT.iterdir()
        if folder.name.isidentifier() and folder.name not in CORE and any(folder.glob('*.py'))
    )


def is_core(module: str) -> bool:
    return module in CORE or module.split('.')[0] in CORE


def is_projects_own(value) -> bool:
    """Whether a class or function is defined in the user's part of this project (not in an environment that lies inside it)."""
    module = getattr(value, '__module__', None) or ''
    file = getattr(sys.modules.get(module), '__file__', None)
    if file is None or is_core(module):
        return False
    path = Path(file).resolve()
    return path.is_relative_to(ROOT) and 'site-packages' not in path.parts


def find(name: str, kind: Kind, module: ModuleType | None = None):
    """What `name` stands for: the class or function. A ConfigError when nothing does, or when it is not what `kind` needs."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f'expected the name of {kind.noun}, got {show(name)}')
    if '.' in name:
        return _find_dotted(name, kind)
    if module is None and kind.module:
        module = import_project_module(kind.module)
    if name.isidentifier() and not name.startswith('_'):
        is_there = module is not None and name in vars(module)
        if is_there and _is_acceptable(vars(module)[name], kind, module):
            return _concrete(vars(module)[name], name)
        for library in kind.libraries:
            if name in (members := library()):
                return members[name]
        if is_there:
            raise ConfigError(f'{show(name)} is in {module.__name__}, but is not {kind.noun}')
    raise ConfigError(
        f'no {kind.noun.split(" ", 1)[1]} is called {show(name)}{did_you_mean(name, names(kind, module))}'
    )


def names(kind: Kind, module: ModuleType | None = None) -> list[str]:
    """Every name that may stand in a section of this kind."""
    members = vars(module).items() if module is not None else ()
    own = [
        name
        for name, value in members
        if not name.startswith('_') and _is_acceptable(value, kind, module)
    ]
    return own + [name for library in kind.libraries for name in library()]


def import_project_module(name: str) -> ModuleType | None:
    """One of the modules of section 'your code' (model.loss, ...), None in a project that is laid out without it."""
    if not (ROOT / Path(*name.split('.'))).with_suffix('.py').is_file():
        return None
    return importlib.import_module(name)


def _find_dotted(name: str, kind: Kind):
    """examples.gan.model.Generator: only inside the project's own packages, and only what is defined there."""
    module_name, _, attribute = name.rpartition('.')
    parts = module_name.split('.')
    if not all(part.isidentifier() and not part.startswith('_') for part in (*parts, attribute)):
        raise ConfigError(f'{show(name)} is not the name of {kind.noun}')
    file = ROOT.joinpath(*parts)
    if parts[0] not in project_packages() or not (
        file.with_suffix('.py').is_file() or (file / '__init__.py').is_file()
    ):
        raise ConfigError(
            f'{show(name)} is not in this project: a name with dots may only lead into its own packages'
        )
    module = importlib.import_module(module_name)
    if attribute not in vars(module):
        raise ConfigError(
            f'{module_name} has no {show(attribute)}{did_you_mean(attribute, names(kind, module))}'
        )
    if not _is_acceptable(vars(module)[attribute], kind, module):
        raise ConfigError(f'{show(name)} is not {kind.noun}')
    return _concrete(vars(module)[attribute], name)


def _concrete(value, name: str):
    if inspect.isabstract(value):
        raise ConfigError(
            f'{show(name)} is abstract: name one that implements {", ".join(sorted(value.__abstractmethods__))}'
        )
    return value


def _is_acceptable(value, kind: Kind, module: ModuleType) -> bool:
    """Classes of torch's own kinds may come from anywhere; all else has to be the project's own, or the given module's."""
    is_given = getattr(value, '__module__', None) == module.__name__ and not is_core(
        module.__name__
    )
    is_own = is_projects_own(value) or is_given
    if inspect.isclass(value):
        return issubclass(value, kind.bases) or (
            is_own and hasattr(value, kind.method or '__init__')
        )
    if isinstance(value, torch.nn.Module):
        return kind.method == '__call__'  # criterion = nn.CrossEntropyLoss() in model/loss.py
    return is_own and isinstance(value, FunctionType)


def prepare(
    section, name: str, module: ModuleType | None, args: tuple, kwargs: dict, document
) -> functools.partial:
    """The call that a section {"type", "args"} describes, still to be made; objects nested in its args are built first."""
    return _prepare(section, kind_of(name, module), (name,), module, args, kwargs, document)


AUTO_LENGTHS = ('T_max', 'total_steps', 'total_iters')


def with_lengths(section, n_steps: int):
    """A scheduler's section where "auto" for a length is `n_steps`, or what falls to it inside a SequentialLR."""
    args = section.get('args') if isinstance(section, dict) else None
    if not isinstance(args, dict):
        return section
    args = {
        key: n_steps if key in AUTO_LENGTHS and value == 'auto' else value
        for key, value in args.items()
    }
    if section.get('type') == 'SequentialLR' and isinstance(args.get('schedulers'), list):
        ends = [*(each for each in args.get('milestones') or [] if isinstance(each, int)), n_steps]
        spans = [end - begin for begin, end in zip([0, *ends], ends)]
        args['schedulers'] = [
            with_lengths(each, max(1, span)) for each, span in zip(args['schedulers'], spans)
        ] + args['schedulers'][len(spans) :]
    return {**section, 'args': args}


def make(call: functools.partial, path: tuple, document):
    """Make a call that a config describes. What a library refuses is the config's mistake; the project's own code raises."""
    try:
        return call()
    except URLError as error:
        raise ConfigError(
            f'{show_path(path)}: {call.func.__name__} cannot download its weights ({error.reason}). Put the file on this '
            'machine and name it: "weights": null in the args, and "init_from": "FILE"'
        ) from error
    except (TypeError, ValueError) as error:
        if is_projects_own(call.func) or isinstance(error, ConfigError):
            raise
        with located(document, (*path, 'args')):
            raise ConfigError(
                f'{call.func.__name__} refuses: {" ".join(str(error).split())}'
            ) from error


def build_callable(entry, section: str, path: tuple, module: ModuleType | None, document):
    """A loss or a metric from a config's entry (a name, or {"type", "args"}): a callable with a `__name__`."""
    kind = KINDS[section]
    name = entry['type'] if isinstance(entry, dict) else entry
    with located(document, path):
        found = find(name, kind, module)
    if inspect.isclass(found):
        entry = entry if isinstance(entry, dict) else {'type': entry}
        entry = {
            **entry,
            'args': known_arguments(found, document.values) | (entry.get('args') or {}),
        }
        found = _prepare(entry, kind, path, module, (), {}, document)
        found = make(found, path, document)
    elif isinstance(entry, dict) and entry.get('args'):
        found = functools.partial(found, **entry['args'])
    chosen = entry.get('name') if isinstance(entry, dict) else None
    if chosen and inspect.isroutine(found):
        found = functools.partial(found)  # the function itself keeps its name
    if chosen or not hasattr(found, '__name__'):
        found.__name__ = chosen or name.rpartition('.')[2]
    return found


def known_arguments(found, config: dict) -> dict:
    """`num_classes` and `task` of a torchmetrics class, where the model's arguments tell them."""
    arch = config.get('arch')
    if not getattr(found, '__module__', '').startswith('torchmetrics') or not isinstance(
        arch, dict
    ):
        return {}
    n_classes = (arch.get('args') or {}).get('num_classes')
    if n_classes is None:
        try:
            n_classes = parameters(find(arch.get('type'), KINDS['arch']))[0]['num_classes'].default
        except (ConfigError, KeyError):
            return {}
    if not isinstance(n_classes, int):
        return {}
    known = {'num_classes': n_classes, 'task': 'multiclass' if n_classes > 1 else 'binary'}
    named, _ = parameters(found)
    return {
        key: value
        for key, value in known.items()
        if key in named and named[key].default in (inspect.Parameter.empty, None)
    }


def _prepare(
    section, kind: Kind, path: tuple, module, args: tuple, kwargs: dict, document
) -> functools.partial:
    entry = {'type': section} if isinstance(section, str) else section
    if not isinstance(entry, dict) or 'type' not in entry:
        raise ConfigError(
            f'{show_path(path)}: expected {{"type": ..., "args": {{...}}}}, got {show(section)}'
        )
    with located(document, (*path, 'type') if isinstance(section, dict) else path):
        target = find(entry['type'], kind, module)
    given = entry.get('args') or {}
    twice = [key for key in kwargs if key in given]
    if twice:
        raise ConfigError(
            f'{show_path((*path, "args", twice[0]))}: is given by the code, so the config may not give it too'
        )
    named, _ = parameters(target)
    given = {
        key: _build_nested(value, kind, (*path, 'args', key), module, args, document)
        for key, value in given.items()
    }
    for key in given.keys() & named.keys():
        if is_tensor_argument(target, named[key]) and isinstance(given[key], list):
            given[key] = torch.tensor(given[key])
    if (
        kind.libraries == KINDS['lr_scheduler'].libraries
        and args
        and next(iter(named), '') != 'optimizer'
    ):
        return functools.partial(
            target, *args[1:], optimizer=args[0], **given, **kwargs
        )  # ChainedScheduler takes it last
    return functools.partial(target, *args, **given, **kwargs)


def _build_nested(value, kind: Kind, path: tuple, module, args: tuple, document):
    if isinstance(value, list):
        return [
            _build_nested(each, kind, (*path, index), module, args, document)
            for index, each in enumerate(value)
        ]
    if isinstance(value, str):
        dtype = getattr(torch, value[6:], None) if value.startswith('torch.') else None
        return dtype if isinstance(dtype, torch.dtype) else value
    if not isinstance(value, dict):
        return value
    if is_nested_object(value, kind, module):
        inner_args = (
            args if kind.libraries == KINDS['lr_scheduler'].libraries else ()
        )  # nested ones share the optimizer
        return make(
            _prepare(value, kind.inside(), path, module, inner_args, {}, document), path, document
        )
    return {
        key: _build_nested(each, kind, (*path, key), module, args, document)
        for key, each in value.items()
    }


def is_nested_object(value, kind: Kind, module: ModuleType | None) -> bool:
    """Whether a value inside args is to be built: {"type", "args"}, or {"type"} alone when its name says something to us."""
    if not (
        isinstance(value, dict)
        and isinstance(value.get('type'), str)
        and set(value) <= {'type', 'args'}
    ):
        return False
    if (
        'args' in value
        or value['type'].partition('.')[0] in project_packages()
        and '.' in value['type']
    ):
        return True
    known = names(kind.inside(), module)
    return value['type'] in known or nearest(value['type'], known) is not None


@contextmanager
def located(document, path: tuple):
    """Puts the place and the key path before the message of a ConfigError."""
    try:
        yield
    except ConfigError as error:
        origin = document.origin(path)
        raise ConfigError(f'{origin}{": " if origin else ""}{show_path(path)}: {error}') from None
