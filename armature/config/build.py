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
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple
from urllib.error import URLError

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler

from armature.config.keys import expanded
from armature.config.read import Document, Problem, did_you_mean, entries, nearest, show, show_path
from armature.config.values import OBJECTS, hint_of, parameters, takes, violation
from armature.errors import ConfigError, UserError

ROOT = Path(__file__).resolve().parents[2]
# These handle files and processes; a config has no business there. (utils also holds users' code.)
CORE = ('armature', 'base', 'logger', 'tools', 'tests', 'benchmarks', 'utils.util')
CORE += ('parse_config', 'new_project', 'train', 'test', 'predict')
MOVED = {  # a name of the first version's configs
    'CsvDataLoader': 'examples.tabular.data.CsvDataLoader',
    'TabularModel': 'examples.tabular.model.TabularModel',
}
AUTO_LENGTHS = ('T_max', 'total_steps', 'total_iters')


@dataclass(frozen=True)
class Kind:
    """What one section may name: where it is looked up, and what has to come out."""

    noun: str
    module: str = ''  # the project's own module for it
    libraries: tuple[str, ...] = ()  # and others, whose classes of these
    bases: tuple[type, ...] = ()  # kinds may be named;
    method: str = '__init__'  # a class of the project's own needs only this method
    given: str = ''  # the argument that the code gives first, whatever its place
    parts: tuple[str, ...] = ()  # more libraries for the objects inside its args

    def inside(self) -> 'Kind':
        """The kind of an object nested in the args of one of this kind."""
        return replace(
            self,
            noun=f'{self.noun} or part of one',
            libraries=self.libraries + self.parts,
            bases=(*self.bases, Dataset, Sampler, nn.Module),
            method='__init__',
            given='optimizer' if self.given == 'optimizer' else '',
        )


KINDS = {
    'arch': Kind(
        'model', 'model.model', ('torchvision.models', 'timm'), (nn.Module,), 'parameters'
    ),
    'loss': Kind(
        'loss',
        'model.loss',
        ('torch.nn.functional', 'torch.nn.modules.loss'),
        (nn.Module,),
        '__call__',
    ),
    'metrics': Kind(
        'metric',
        'model.metric',
        ('torchmetrics', 'torchmetrics.classification', 'torchmetrics.regression'),
        (nn.Module,),
        '__call__',
    ),
    'optimizer': Kind('optimizer', '', ('torch.optim',), (Optimizer,), 'step', 'params'),
    'lr_scheduler': Kind(
        'scheduler', '', ('torch.optim.lr_scheduler',), (LRScheduler,), 'step', 'optimizer'
    ),
    'trackers': Kind('tracker', '', ('armature.run.trackers',), method='log'),
    'trainer': Kind('trainer', 'trainer.trainer', method='_train_epoch'),
    'data_loader': Kind(
        'data loader',
        'data_loader.data_loaders',
        bases=(DataLoader,),
        method='__iter__',
        parts=('torchvision.transforms.v2', 'torch.utils.data', 'timm.data'),
    ),
}
OWN = Kind(
    'class or function of the project',
    bases=(nn.Module, Optimizer, LRScheduler, DataLoader, Dataset, Sampler),
)


def kind_of(section: str, module: ModuleType | None = None) -> Kind:
    """The kind of a section: by its name (valid_data_loader is a data_loader), or its module."""
    if section.endswith('data_loader'):
        return KINDS['data_loader']
    where = getattr(module, '__name__', None)
    of_module = (kind for kind in KINDS.values() if where in (kind.module, *kind.libraries))
    return KINDS.get(section) or next(of_module, OWN)


# Names


def find(name: str, kind: Kind, module: ModuleType | None = None) -> Callable:
    """The class or function that `name` stands for; a ConfigError when it is not of the kind."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f'expected the name of a {kind.noun}, got {show(name)}')
    inside, _, last = name.rpartition('.')
    if inside:  # examples.gan.model.Generator
        module, kind = project_module(inside), replace(kind, libraries=())
        if module is None:
            if inside.startswith('examples.'):
                raise ConfigError(
                    f"{show(name)} is not in this project: copy the template's "
                    f'examples/__init__.py and examples/{inside.split(".")[1]}/ into it'
                )
            raise ConfigError(
                f'{show(name)} is not in this project: a name with dots may only lead into its '
                'own packages'
            )
    for offer in offers(kind, module):
        if last in offer:
            if inspect.isabstract(found := offer[last]):
                missing = ', '.join(sorted(found.__abstractmethods__))
                raise ConfigError(f'{show(name)} is abstract: name one that implements {missing}')
            return found
    if name in MOVED:
        return find(MOVED[name], kind)
    near = did_you_mean(last, [*names(kind, module), *MOVED])
    if 'timm' in kind.libraries and not _is_installed('timm'):
        near += '; for names of timm: pip install -r requirements-timm.txt'
    raise ConfigError(f'no {kind.noun} is called {show(name)}{near}')


def names(kind: Kind, module: ModuleType | None = None) -> list[str]:
    """Every name that may stand in a section of this kind."""
    return [name for offer in offers(kind, module) for name in offer]


def offers(kind: Kind, module: ModuleType | None) -> Iterator[dict[str, Callable]]:
    """What may be named, by name: first what the project offers, then each library."""
    module = module or project_module(kind.module)
    if module is not None:
        yield {
            name: value
            for name, value in vars(module).items()
            if not name.startswith('_') and _may_be_named(value, kind, module)
        }
    for library in kind.libraries:  # imported only when it is asked for
        if _is_installed(library.partition('.')[0]):
            yield _library(library, kind.bases)


@functools.cache
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def project_module(name: str) -> ModuleType | None:
    """A module in the project's own packages, less the core's; None when there is none."""
    parts = name.split('.')
    file = ROOT.joinpath(*parts)
    is_plain = all(part.isidentifier() and not part.startswith('_') for part in parts)
    if not is_plain or _is_core(name) or not (ROOT / parts[0]).is_dir():
        return None
    if not file.with_suffix('.py').is_file() and not (file / '__init__.py').is_file():
        return None
    return importlib.import_module(name)


@functools.cache
def _library(name: str, bases: tuple[type, ...]) -> dict[str, Callable]:
    module = importlib.import_module(name)
    if name == 'armature.run.trackers':
        return module.TRACKERS
    if name == 'torchvision.models':
        return {each: module.get_model_builder(each) for each in module.list_models()}
    if name == 'timm':
        return {each: module.model_entrypoint(each) for each in module.list_models()}
    if name == 'timm.data':
        return {'create_transform': module.create_transform}
    members = {each: value for each, value in vars(module).items() if not each.startswith('_')}
    if name == 'torch.nn.functional':
        return {
            each: value
            for each, value in members.items()
            if isinstance(value, FunctionType)
            and list(inspect.signature(value).parameters)[:2] == ['input', 'target']
        }
    return {
        each: value
        for each, value in members.items()
        if inspect.isclass(value)
        and issubclass(value, bases)
        and value not in bases
        and not inspect.isabstract(value)
        and value.__module__.startswith(name)
    }


def _may_be_named(value: Any, kind: Kind, module: ModuleType) -> bool:
    """Whether a config may name this member of a module.

    Classes of torch's own kinds may come from anywhere; all else has to be the project's own, or
    the given module's.
    """
    is_given = getattr(value, '__module__', None) == module.__name__
    is_own = is_projects_own(value) or is_given and not _is_core(module.__name__)
    if inspect.isclass(value):
        return issubclass(value, kind.bases) or is_own and hasattr(value, kind.method)
    if isinstance(value, nn.Module):
        return kind.method == '__call__'  # criterion = nn.CrossEntropyLoss() in model/loss.py
    return is_own and isinstance(value, FunctionType)


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


class Given(NamedTuple):
    """What the code gives to a class or function, beside what the config says."""

    args: tuple = ()
    keywords: Mapping[str, Any] = {}
    is_all: bool = True  # whether it gives nothing more later


NOTHING = Given()


class Reader:
    """Reads {"type", "args"}: what is wrong with it, or the call that it describes.

    module: where names are looked up first. problems: all that was wrong so far.
    """

    def __init__(self, module: ModuleType | None, document: Document):
        self.module, self.document = module, document
        self.problems = []
        self.is_building = False  # else objects inside args are only judged

    def problem(self, path: tuple, text: str, is_note: bool = False) -> None:
        self.problems.append(Problem(path, text, is_note))

    def call(
        self, entry: str | dict, kind: Kind, path: tuple, given: Given = NOTHING
    ) -> functools.partial | None:
        """The call of an entry, a name or {"type", "args"}; None when that is wrong."""
        entry, at = (entry, (*path, 'type')) if isinstance(entry, dict) else ({'type': entry}, path)
        args = entry.get('args') or {}
        try:
            target = find(entry.get('type'), kind, self.module)
        except ConfigError as error:
            hint = '. For an object that the class reads by itself, annotate the parameter as dict'
            self.problem(at, f'{error}{hint if "part of one" in kind.noun else ""}')
            return None
        if not isinstance(args, dict):
            self.problem((*path, 'args'), f'expected an object {{...}}, got {show(args)}')
            return None
        return self.arguments(args, target, kind, args_of(path), given)

    def arguments(
        self, args: dict, target: Callable, kind: Kind, path: tuple, given: Given
    ) -> functools.partial:
        """The call of `target` with these arguments, which stand at `path`."""
        (positional, keywords, is_all) = given
        named, is_open = parameters(target)
        label = getattr(target, '__name__', type(target).__name__)
        is_function = kind.method == '__call__' and not inspect.isclass(target)
        if positional and kind.given in [*named][1:]:  # ChainedScheduler takes the optimizer last
            keywords, positional = {kind.given: positional[0], **keywords}, positional[1:]
        n_given = len(positional) or 2 * is_function  # (output, target)
        from_code = {*[*named][:n_given], *keywords}
        open_names = [key for key in named if key not in from_code]
        values, misspelt = {}, set()  # one mistake is one line
        for key, value in args.items():
            here, parameter = (*path, key), named.get(key)
            if key in from_code:
                self.problem(here, 'is given by the code, so the config may not give it too')
                continue
            if parameter is not None:
                expected = violation(value, hint_of(parameter))
                if expected is not None and value is not parameter.default:
                    self.problem(here, f'expected {expected}, got {show(value)}')
            elif not is_open:
                self.problem(here, f'{label} has no {key!r}{did_you_mean(key, open_names)}')
                misspelt.add(nearest(key, open_names))
            if not isinstance(value, dict) or not takes(parameter, *OBJECTS):
                value = self.value(value, kind, here, not is_projects_own(target), given.args)
            if isinstance(value, list) and takes(parameter, torch.Tensor) and self.is_building:
                # [1, 5] for the weights of classes means numbers, as torch's losses want them.
                dtype = torch.get_default_dtype() if kind.method == '__call__' else None
                value = torch.tensor(value, dtype=dtype)
            values[key] = value
        # A trainer of one's own may give its loss more than (output, target).
        for key in open_names if is_all and not is_function else ():
            is_needed = named[key].default is inspect.Parameter.empty
            if is_needed and key not in args and key not in misspelt:
                self.problem((*path, key), f'is missing: {label} needs it')
        return functools.partial(target, *positional, **values, **keywords)

    def value(self, value: Any, kind: Kind, path: tuple, in_library: bool, args: tuple) -> Any:
        """A value inside args with the objects in it built."""
        if self.is_object(value, kind, in_library):
            # Schedulers inside one share its optimizer.
            inner = Given(args if kind.given == 'optimizer' else ())
            call = self.call(value, kind.inside(), path, inner)
            return make(call, path, self.document) if self.is_building else None
        if isinstance(value, str):
            dtype = getattr(torch, value[6:], None) if value.startswith('torch.') else None
            try:
                return dtype if isinstance(dtype, torch.dtype) else expanded(value)
            except ConfigError as error:
                self.problem(path, str(error))
        if isinstance(value, dict) and {'type', 'args'} < value.keys():
            others = ', '.join(sorted(value.keys() - {'type', 'args'}))
            if value['type'] in names(kind.inside(), self.module):
                text = f'is not built, since it has more than "type" and "args": {others}'
                self.problem(path, text, is_note=True)
        if isinstance(value, (list, dict)):
            built = {
                key: self.value(each, kind, (*path, key), in_library, args)
                for key, each in entries(value)
            }
            return built if isinstance(value, dict) else list(built.values())
        return value

    def is_object(self, value: Any, kind: Kind, in_library: bool) -> bool:
        """Whether a value inside args is to be built: {"type", "args"} or {"type"} of a known name.

        A name that looks like one of ours is a mistake; any other is for a class of the project to
        read by itself.
        """
        if not isinstance(value, dict) or not value.keys() <= {'type', 'args'}:
            return False
        name = value.get('type')
        if not isinstance(name, str):
            return False
        is_dotted = project_module(name.rpartition('.')[0]) is not None
        if is_dotted or any(name in offer for offer in offers(kind.inside(), self.module)):
            return True  # before each library is asked for names like it
        is_near = nearest(name, names(kind.inside(), self.module)) is not None
        return is_near or in_library and 'args' in value


def args_of(path: tuple) -> tuple:
    """Where the arguments of the entry at `path` stand."""
    return path if path[:2] == ('optimizer', 'groups') else (*path, 'args')


# Building it


def prepare(
    entry: str | dict,
    kind: Kind,
    path: tuple,
    module: ModuleType | None,
    document: Document,
    given: Given = NOTHING,
) -> functools.partial:
    """The call that an entry describes, when nothing is wrong with it; objects in it are built."""
    reader = Reader(module, document)
    reader.call(entry, kind, path, given)
    document.refuse(reader.problems)
    reader.is_building = True
    return reader.call(entry, kind, path, given)


def make(call: functools.partial, path: tuple, document: Document) -> Any:
    """Make a call that a config describes.

    What a library refuses is the config's mistake; the project's own code raises.
    """
    try:
        return call()
    except Exception as error:
        is_own = is_projects_own(call.func)
        lacks_file = isinstance(error, OSError) and path == ('arch',) and not is_own
        if isinstance(error, URLError) or lacks_file:
            raise ConfigError(
                f'{show_path(path)}: {call.func.__name__} cannot download its weights '
                f'({getattr(error, "reason", error)}). Put the file on this machine and name it: '
                '"init_from": "FILE", and "weights": null in the args (of timm: "pretrained": '
                'false)'
            ) from error
        if is_own or isinstance(error, UserError):
            raise
        reason = ' '.join(str(error).split()) or type(error).__name__
        problem = Problem(args_of(path), f'{call.func.__name__} refuses: {reason}')
        raise ConfigError(document.line(problem)) from error


def build_callable(
    entry: str | dict, path: tuple, module: ModuleType | None, document: Document
) -> Callable:
    """A loss or a metric, as `path` says, from an entry: a callable with a `__name__`."""
    call = prepare(entry, KINDS[path[0]], path, module, document)
    entry = entry if isinstance(entry, dict) else {'type': entry}
    found, name = call.func, entry.get('name')
    if inspect.isclass(found):
        found = make(call, path, document)
    elif any(isinstance(each, torch.Tensor) for each in call.keywords.values()):
        found = with_tensors(found, call.keywords)
    elif call.keywords or name:
        found = call
    if name or not hasattr(found, '__name__'):
        found.__name__ = name or entry['type'].rpartition('.')[2]
    return found


def with_tensors(function: Callable, given: dict[str, Any]) -> Callable:
    """A loss function (output, target) with further arguments, whose tensors follow the output."""

    @functools.cache
    def on(device: torch.device) -> dict[str, Any]:
        return {
            key: value.to(device) if isinstance(value, torch.Tensor) else value
            for key, value in given.items()
        }

    @functools.wraps(function)
    def call(output, target):
        return function(output, target, **on(output.device))

    call.func, call.keywords = function, given  # as a partial has them
    return call


def with_lengths(section: dict, n_steps: float) -> dict:
    """A scheduler's section where "auto" for a length is `n_steps`, infinite without an end."""
    args = section.get('args') if isinstance(section, dict) else None
    autos = [key for key in AUTO_LENGTHS if isinstance(args, dict) and args.get(key) == 'auto']
    if autos and n_steps == math.inf:
        raise ConfigError(
            f'lr_scheduler.args.{autos[0]}: "auto" has no length to go by, since this data has no '
            'end: say trainer.len_epoch or trainer.max_steps, or a number here'
        )
    return {**section, 'args': args | dict.fromkeys(autos, n_steps)} if autos else section
