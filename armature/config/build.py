"""The only place where a class or function is looked up by a name that a config gives.

A config is data that people pass around, so a name in it may reach only what its section is for:
what the project's own module for that section offers, then one fixed list of libraries. Nothing is
imported, and nothing is called, because a config named it.
"""

import functools
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType, ModuleType
from urllib.error import URLError

import torch

from armature.config.keys import (
    OBJECT,
    TENSOR,
    argument_schema,
    expanded,
    is_near_miss,
    parameters,
    takes,
    violation,
)
from armature.config.read import (
    Document,
    Problem,
    did_you_mean,
    entries,
    lookup,
    nearest,
    show,
    show_path,
)
from armature.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
# These handle files and processes; a config has no business there. (utils also holds users' code.)
CORE = ('armature', 'base', 'logger', 'tools', 'tests', 'benchmarks', 'utils.util')
CORE += ('parse_config', 'new_project', 'train', 'test', 'predict')


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


def _trackers() -> dict:
    module = import_project_module('logger.trackers')
    return {} if module is None else module.TRACKERS


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
    libraries: tuple[Callable[[], dict], ...] = ()  # each gives name -> object, when it is needed
    bases: tuple[type, ...] = ()  # what a class has to be,
    method: str = ''  # or, for the project's own classes, has to have
    nested: tuple[Callable[[], dict], ...] = ()  # more libraries for the objects inside its args
    nested_bases: tuple[type, ...] = ()
    n_given: int = 0  # how many arguments come from the code, by position
    is_scheduler: bool = False
    is_library: bool = False  # inside a library's class, which reads no object by itself

    def inside(self) -> 'Kind':
        """The kind of an object nested in the args of one of this kind."""
        return replace(
            self,
            noun=f'{self.noun} or a part of one',
            libraries=self.libraries + self.nested,
            bases=self.bases + self.nested_bases,
            method='__init__',
            n_given=0,
        )


_DATA = torch.utils.data
_SCHEDULER, _OPTIMIZER = torch.optim.lr_scheduler.LRScheduler, torch.optim.Optimizer
_MODULE = torch.nn.Module
KINDS = {
    'arch': Kind('a model', 'model.model', (_models,), (_MODULE,), 'parameters'),
    'loss': Kind('a loss', 'model.loss', (_losses,), (_MODULE,), '__call__'),
    'metrics': Kind('a metric', 'model.metric', (_metrics,), (_MODULE,), '__call__'),
    'optimizer': Kind('an optimizer', '', (_optimizers,), (_OPTIMIZER,), 'step', n_given=1),
    'lr_scheduler': Kind(
        'a scheduler', '', (_schedulers,), (_SCHEDULER,), 'step', is_scheduler=True
    ),
    'trackers': Kind('a tracker', '', (_trackers,), method='log'),
    'trainer': Kind('a trainer', 'trainer.trainer', method='_train_epoch'),
    'data_loader': Kind(
        'a data loader',
        'data_loader.data_loaders',
        (),
        (_DATA.DataLoader,),
        '__iter__',
        (_transforms, _loader_parts),
        (_DATA.Dataset, _DATA.Sampler, _MODULE),
    ),
}
OWN = Kind(
    'a class or function of the project',
    bases=(_MODULE, _OPTIMIZER, _SCHEDULER, _DATA.DataLoader, _DATA.Dataset, _DATA.Sampler),
)
_KIND_OF_MODULE = {kind.module: name for name, kind in KINDS.items() if kind.module} | {
    'torch.optim': 'optimizer',
    'torch.optim.lr_scheduler': 'lr_scheduler',
    'torchvision.models': 'arch',
}


def kind_of(section: str, module: ModuleType | None = None) -> Kind:
    """The kind of a section: by its name (valid_data_loader is a data_loader), or its module."""
    if section.endswith('data_loader'):
        return KINDS['data_loader']
    return KINDS.get(section) or KINDS.get(
        _KIND_OF_MODULE.get(getattr(module, '__name__', ''), ''), OWN
    )


def project_packages() -> list[str]:
    """The packages whose contents a config may name: the project's, less the core's."""
    return sorted(
        folder.name
        for folder in ROOT.iterdir()
        if folder.name.isidentifier() and folder.name not in CORE and any(folder.glob('*.py'))
    )


def is_core(module: str) -> bool:
    return module in CORE or module.split('.')[0] in CORE


def is_projects_own(value) -> bool:
    """Whether a class or function is defined in the user's part of this project.

    (Not in an environment that lies inside it.)
    """
    module = getattr(value, '__module__', None) or ''
    file = getattr(sys.modules.get(module), '__file__', None)
    if file is None or is_core(module):
        return False
    path = Path(file).resolve()
    return path.is_relative_to(ROOT) and 'site-packages' not in path.parts


def find(name: str, kind: Kind, module: ModuleType | None = None):
    """The class or function that `name` stands for; a ConfigError when it is not of the kind."""
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
    near = did_you_mean(name, names(kind, module))
    raise ConfigError(f'no {kind.noun.split(" ", 1)[1]} is called {show(name)}{near}')


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
    """model.loss and the like; None in a project that is laid out without it."""
    if not (ROOT / Path(*name.split('.'))).with_suffix('.py').is_file():
        return None
    return importlib.import_module(name)


def _find_dotted(name: str, kind: Kind):
    """examples.gan.model.Generator: only inside the project's own packages."""
    module_name, _, attribute = name.rpartition('.')
    parts = module_name.split('.')
    if not all(part.isidentifier() and not part.startswith('_') for part in (*parts, attribute)):
        raise ConfigError(f'{show(name)} is not the name of {kind.noun}')
    file = ROOT.joinpath(*parts)
    if parts[0] not in project_packages() or not (
        file.with_suffix('.py').is_file() or (file / '__init__.py').is_file()
    ):
        raise ConfigError(
            f'{show(name)} is not in this project: a name with dots may only lead into its own '
            'packages'
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
        missing = ', '.join(sorted(value.__abstractmethods__))
        raise ConfigError(f'{show(name)} is abstract: name one that implements {missing}')
    return value


def _is_acceptable(value, kind: Kind, module: ModuleType) -> bool:
    """Whether a member of a module may be used.

    Classes of torch's own kinds may come from anywhere; all else has to be the project's own, or
    the given module's.
    """
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


AUTO_LENGTHS = ('T_max', 'total_steps', 'total_iters')


def with_lengths(section, n_steps: float):
    """A scheduler's section where "auto" for a length is `n_steps`.

    Inside a SequentialLR it is what falls to each. n_steps: infinite when nobody can tell.
    """
    args = section.get('args') if isinstance(section, dict) else None
    if not isinstance(args, dict):
        return section
    args = dict(args)
    for key in AUTO_LENGTHS:
        if args.get(key) == 'auto':
            if n_steps == math.inf:
                raise ConfigError(
                    f'lr_scheduler.args.{key}: "auto" has no length to go by, since this data has '
                    'no end: say trainer.len_epoch or trainer.max_steps, or a number here'
                )
            args[key] = n_steps
    if section.get('type') == 'SequentialLR' and isinstance(args.get('schedulers'), list):
        ends = [*(each for each in args.get('milestones') or [] if isinstance(each, int)), n_steps]
        spans = [max(1, end - begin) for begin, end in zip([0, *ends], ends)]
        parts = args['schedulers']
        args['schedulers'] = [*map(with_lengths, parts, spans), *parts[len(spans) :]]
    return {**section, 'args': args}


# Judging what a section says, before anything is built


def judge(
    entry,
    kind: Kind,
    path: tuple,
    module: ModuleType | None,
    config: dict,
    n_given: int | None = None,
    keywords: Iterable[str] = (),
    is_complete: bool = True,
) -> Iterator[Problem]:
    """What is wrong with an entry, a name or {"type", "args"}: its name and its arguments.

    n_given, keywords: what the code gives, by position (None: as our scripts do) and by name.
    is_complete: whether the code gives nothing more later.
    """
    is_section = isinstance(entry, dict)
    name, args = (entry.get('type'), entry.get('args') or {}) if is_section else (entry, {})
    try:
        target = find(name, kind, module)
    except ConfigError as error:
        hint = ''
        if kind.method == '__init__':
            hint = '. For an object that the class reads by itself, annotate the parameter as dict'
        yield Problem((*path, 'type') if is_section else path, f'{error}{hint}')
        return
    kind = replace(kind, is_library=not is_projects_own(target))
    if not isinstance(args, dict):
        yield Problem((*path, 'args'), f'expected an object {{...}}, got {show(args)}')
        return
    named, is_open = parameters(target)
    label = getattr(target, '__name__', type(target).__name__)
    is_function_of_output = kind.method == '__call__' and not inspect.isclass(target)
    if n_given is None:
        n_given = 2 if is_function_of_output else kind.n_given
    # ChainedScheduler takes the optimizer last, and is given it by name.
    from_code = {'optimizer'} if kind.is_scheduler else set(list(named)[:n_given])
    from_code |= set(keywords)
    open_names = [key for key in named if key not in from_code]
    misspelt = set()  # one mistake is one line
    for key, value in args.items():
        here = (*path, 'args', key)
        if key in from_code:
            yield Problem(here, 'is given by the code, so the config may not give it too')
        elif key in named:
            expected = violation(value, argument_schema(named[key]))
            if expected is not None:
                yield Problem(here, f'expected {expected}, got {show(value)}')
        elif not is_open:
            yield Problem(here, f'{label} has no {key!r}{did_you_mean(key, open_names)}')
            misspelt.add(nearest(key, open_names))
        elif any(is_near_miss(key, other) for other in named):
            text = f'{label} takes any key, but has none of that name{did_you_mean(key, named)}'
            yield Problem(here, text, is_note=True)
        if not reads_itself(named.get(key)):
            yield from _judge_nested(value, kind, here, module, config)
    if not is_complete or is_function_of_output:
        return  # a trainer of one's own may give its loss more than (output, target)
    given = from_code | args.keys() | misspelt | known_arguments(target, config).keys()
    for key, parameter in named.items():
        if parameter.default is parameter.empty and key not in given:
            yield Problem((*path, 'args', key), f'is missing: {label} needs it')


def _judge_nested(value, kind: Kind, path: tuple, module, config: dict) -> Iterator[Problem]:
    if is_nested_object(value, kind, module):
        yield from judge(value, kind.inside(), path, module, config)
    elif isinstance(value, str):
        try:
            expanded(value)
        except ConfigError as error:
            yield Problem(path, str(error))
    else:
        for key, inner in entries(value):
            yield from _judge_nested(inner, kind, (*path, key), module, config)


def reads_itself(parameter: inspect.Parameter | None) -> bool:
    """Whether an object for this parameter is left as it is: its annotation says dict."""
    return parameter is not None and takes(parameter, OBJECT)


def is_nested_object(value, kind: Kind, module: ModuleType | None) -> bool:
    """Whether a value inside args is to be built: {"type", "args"} or {"type"} of a known name.

    A name that looks like one of ours is a mistake; any other is for a class of the project to
    read by itself.
    """
    if not (isinstance(value, dict) and set(value) <= {'type', 'args'}):
        return False
    name = value.get('type')
    if not isinstance(name, str):
        return False
    if '.' in name and name.partition('.')[0] in project_packages():
        return True
    known = names(kind.inside(), module)
    is_all_built = kind.is_library and 'args' in value
    return is_all_built or name in known or nearest(name, known) is not None


# Building it


def prepare(
    section,
    name: str,
    module: ModuleType | None,
    args: tuple,
    kwargs: dict,
    document: Document,
    is_complete: bool = True,
) -> functools.partial:
    """The call that a section {"type", "args"} describes; objects in its args are built first."""
    kind, path = kind_of(name, module), (name,)
    config = document.values
    document.refuse(judge(section, kind, path, module, config, len(args), kwargs, is_complete))
    return _call(section, kind, path, module, args, kwargs, document)


def _call(entry, kind: Kind, path: tuple, module, args: tuple, kwargs: dict, document: Document):
    entry = {'type': entry} if isinstance(entry, str) else entry
    target = find(entry['type'], kind, module)
    kind = replace(kind, is_library=not is_projects_own(target))
    named, _ = parameters(target)
    given = {}
    for key, value in (entry.get('args') or {}).items():
        parameter = named.get(key)
        if not reads_itself(parameter):
            value = _value(value, kind, (*path, 'args', key), module, args, document)
        if isinstance(value, list) and parameter and takes(parameter, TENSOR):
            # [1, 5] for the weights of classes means numbers, as torch's losses want them.
            dtype = torch.get_default_dtype() if kind.method == '__call__' else None
            value = torch.tensor(value, dtype=dtype)
        given[key] = value
    if kind.is_scheduler and args and next(iter(named), '') != 'optimizer':
        args, kwargs = args[1:], {'optimizer': args[0], **kwargs}
    return functools.partial(target, *args, **given, **kwargs)


def _value(value, kind: Kind, path: tuple, module, args: tuple, document: Document):
    """A value inside args with the objects in it built."""
    if is_nested_object(value, kind, module):
        inner_args = args if kind.is_scheduler else ()  # nested schedulers share the optimizer
        call = _call(value, kind.inside(), path, module, inner_args, {}, document)
        return make(call, path, document)
    if isinstance(value, str):
        dtype = getattr(torch, value[6:], None) if value.startswith('torch.') else None
        return dtype if isinstance(dtype, torch.dtype) else expanded(value)
    if isinstance(value, (list, dict)):
        built = {
            key: _value(each, kind, (*path, key), module, args, document)
            for key, each in entries(value)
        }
        return built if isinstance(value, dict) else list(built.values())
    return value


def make(call: functools.partial, path: tuple, document: Document):
    """Make a call that a config describes.

    What a library refuses is the config's mistake; the project's own code raises.
    """
    try:
        return call()
    except URLError as error:
        raise ConfigError(
            f'{show_path(path)}: {call.func.__name__} cannot download its weights '
            f'({error.reason}). Put the file on this machine and name it: "weights": null in the '
            'args, and "init_from": "FILE"'
        ) from error
    except (TypeError, ValueError) as error:
        if is_projects_own(call.func) or isinstance(error, ConfigError):
            raise
        text = f'{call.func.__name__} refuses: {" ".join(str(error).split())}'
        raise ConfigError(document.line(Problem((*path, 'args'), text))) from error


def build_callable(entry, path: tuple, module: ModuleType | None, document: Document):
    """A loss or a metric, as `path` says, from an entry: a callable with a `__name__`."""
    kind = KINDS[path[0]]
    document.refuse(judge(entry, kind, path, module, document.values))
    entry = {'type': entry} if isinstance(entry, str) else entry
    found = find(entry['type'], kind, module)
    if inspect.isclass(found):
        args = known_arguments(found, document.values) | (entry.get('args') or {})
        found = make(
            _call({**entry, 'args': args}, kind, path, module, (), {}, document), path, document
        )
    elif entry.get('args') or entry.get('name'):
        found = _call(entry, kind, path, module, (), {}, document)
        if any(isinstance(each, torch.Tensor) for each in found.keywords.values()):
            found = FunctionWithTensors(found)
    if entry.get('name') or not hasattr(found, '__name__'):
        found.__name__ = entry.get('name') or entry['type'].rpartition('.')[2]
    return found


class FunctionWithTensors(torch.nn.Module):
    """A function of (output, target) whose further arguments move to the device with it."""

    def __init__(self, call: functools.partial):
        super().__init__()
        self.func, self._others = call.func, {}
        for key, value in call.keywords.items():
            if isinstance(value, torch.Tensor):
                self.register_buffer(key, value, persistent=False)
            else:
                self._others[key] = value

    @property
    def keywords(self) -> dict:
        return self._others | dict(self.named_buffers())

    def forward(self, output, target):
        return self.func(output, target, **self.keywords)


def known_arguments(found, config: dict) -> dict:
    """`num_classes` and `task` of a torchmetrics class, where the model's arguments tell them."""
    if not getattr(found, '__module__', '').startswith('torchmetrics'):
        return {}
    n_classes = lookup(config, ('arch', 'args', 'num_classes'))
    if n_classes is None:
        try:
            model = find(lookup(config, ('arch', 'type')), KINDS['arch'])
            n_classes = parameters(model)[0]['num_classes'].default
        except (ConfigError, KeyError):
            return {}
    if not isinstance(n_classes, int):
        return {}
    known = {'num_classes': n_classes, 'task': 'multiclass' if n_classes > 1 else 'binary'}
    named, _ = parameters(found)
    unset = (inspect.Parameter.empty, None)
    return {key: known[key] for key in known if key in named and named[key].default in unset}
