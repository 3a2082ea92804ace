"""The only place that judges a whole config: against the key table and the signatures of what it names, before any work."""

import ast
import inspect
import json
import re
import sys
import warnings
from collections import namedtuple
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import torch

from armature.config import build as config_types
from armature.config.keys import (
    GONE,
    OPTIMIZER,
    SCHEDULER,
    SECTION,
    TERM,
    TOP,
    argument_schema,
    is_near_miss,
    json_default,
    parameters,
    violation,
)
from armature.config.read import Document, did_you_mean, entries, lookup, nearest, show, show_path
from armature.errors import ConfigError

# How the script builds a section: from which module, with what of its own. Unknown code may give anything.
Call = namedtuple('Call', 'module positional keywords is_known', defaults=(None, 0, (), False))
ONLY_IF_ASKED = (
    'arch',
    'data_loader',
    'optimizer',
    'loss',
)  # projects laid out differently do without
ANY_LENGTH = 10**6  # stands for "auto" until the data has told
BUILDERS = ('init_obj', 'init_ftn', 'initialize', 'initialize_ftn')


def check(document: Document, script: ModuleType | None = None) -> list[str]:
    """Raise a ConfigError with every problem of a config, one a line; return notes on what is legal but odd.

    script: the module of train.py or test.py; its source tells which sections it builds and what it passes to them.
    """
    checker = _Check(document, script if script is not None else sys.modules['__main__'])
    checker.keys(document.values, TOP, ())
    checker.sections()
    checker.monitor()
    checker.schedule()
    if checker.problems:
        raise ConfigError(
            '\n'.join(text for _, text in sorted(checker.problems, key=lambda problem: problem[0]))
        )
    return checker.notes


class _Check:
    def __init__(self, document: Document, script: ModuleType):
        self.document, self.config = document, document.values
        self.uses = _Uses(script)
        self.problems, self.notes = [], []

    def problem(self, path: tuple, text: str) -> None:
        place, line = self.document.origin(path), 0
        if re.search(r':\d+$', place):
            line = int(place.rpartition(':')[2])
        text = text if len(text) <= 400 else f'{text[:397]}...'
        line_of_text = f'{place}{": " if place else ""}{show_path(path) or "the config"}: {text}'
        self.problems.append(((place.rpartition(':')[0], line), line_of_text))

    def note(self, path: tuple, text: str) -> None:
        self.notes.append(f'{self.document.origin(path)}: {show_path(path)}: {text}')

    # The keys of the table

    def keys(self, section: dict, properties: dict, path: tuple) -> None:
        for key, value in section.items():
            here, schema = (*path, key), properties.get(key)
            if schema is None:
                self.unknown_key(here, properties)
            elif value is None and 'default' in schema:
                continue
            elif (expected := violation(value, schema)) is not None:
                self.problem(here, f'expected {expected}, got {show(value)}')
            elif isinstance(value, dict) and 'properties' in schema:
                self.keys(value, schema['properties'], here)
        for key, schema in properties.items():
            if len(path) == 1 and path[0] != 'trainer' and path[0] not in self.uses.calls:
                continue  # the script reads this section by itself
            is_misspelt = any(is_near_miss(given, key) for given in section)
            is_needed = 'default' not in schema and (
                path or key not in ONLY_IF_ASKED or self.uses.needs(key)
            )
            if key not in section and is_needed and not is_misspelt:
                self.problem((*path, key), f'is missing ({schema["description"]})')

    def unknown_key(self, path: tuple, properties: dict) -> None:
        """A key that no code mentions is a mistake when it is one letter away from one of ours; others are the project's own."""
        near = [known for known in properties if is_near_miss(path[-1], known)]
        if show_path(path) in GONE:
            self.note(path, GONE[show_path(path)])
        elif near and not mentions(re.escape(path[-1])):
            self.problem(path, f'unknown key (did you mean {near[0]!r}?)')
        elif path[0] == 'trainer' and not mentions(re.escape(path[-1]), with_core=True):
            self.note(
                path,
                f'not a key of ours, and no code of this project mentions it{did_you_mean(path[-1], properties)}',
            )

    # What the sections name

    def sections(self) -> None:
        for name, section in self.config.items():
            if name != 'trainer' and not self.is_built_by_us(name):
                continue
            if name == 'loss' and isinstance(section, list):
                for index, term in enumerate(section):
                    self.entry(('loss', index), term, self.uses.call(name))
            elif name == 'loss':
                self.entry(('loss',), section, self.uses.call(name))
            elif name == 'metrics' and isinstance(section, list):
                for index, metric in enumerate(section):
                    self.entry(('metrics', index), metric, self.uses.call(name))
            elif isinstance(section, dict) and 'type' in section and name != 'trainer':
                if name not in TOP:
                    self.keys(section, SECTION, (name,))
                section = (
                    config_types.with_lengths(section, ANY_LENGTH)
                    if name == 'lr_scheduler'
                    else section
                )
                self.entry((name,), section, self.uses.call(name))
            if name == 'optimizer' and isinstance(section, dict):
                self.groups(section)
            if (
                name == 'trainer'
                and isinstance(section, dict)
                and isinstance(section.get('type'), str)
            ):
                self.trainer_type(section['type'])

    def is_built_by_us(self, name: str) -> bool:
        """Whether a section is for our builders to judge; else the script makes of it what it likes."""
        if name in ('loss', 'metrics'):
            return self.uses.call(name).is_known
        return name in TOP or name in self.uses.calls

    def groups(self, section: dict) -> None:
        """What a group of parameters says beside its pattern has to be an argument of the optimizer."""
        groups = section.get('groups') if isinstance(section.get('groups'), list) else []
        for index, group in enumerate(groups):
            path = ('optimizer', 'groups', index)
            if not isinstance(group, dict):
                continue  # the key table has said so
            if not isinstance(group.get('match'), str):
                self.problem(
                    (*path, 'match'),
                    'expected a pattern of parameter names, such as "*.bias|*norm*"',
                )
            if isinstance(section.get('type'), str):
                try:
                    found = config_types.find(
                        section['type'],
                        config_types.KINDS['optimizer'],
                        self.uses.call('optimizer').module,
                    )
                except ConfigError:
                    return
                named, _ = parameters(found)
                for key in group.keys() - {'match'}:
                    if key not in named or key == next(iter(named), ''):
                        self.problem(
                            (*path, key),
                            f'{found.__name__} has no {key!r}{did_you_mean(key, named)}',
                        )
                    elif (
                        expected := violation(group[key], argument_schema(found, named[key]))
                    ) is not None:
                        self.problem((*path, key), f'expected {expected}, got {show(group[key])}')

    def trainer_type(self, name: str) -> None:
        try:
            config_types.find(name, config_types.KINDS['trainer'])
        except ConfigError as error:
            self.problem(('trainer', 'type'), str(error))

    def entry(self, path: tuple, entry, call: Call, kind: config_types.Kind | None = None) -> None:
        """One thing to build: a name, or {"type", "args"}."""
        kind = kind or config_types.kind_of(path[0], call.module)
        if kind is config_types.OWN and call.module is None:
            return  # built by code that we cannot see
        name = entry.get('type') if isinstance(entry, dict) else entry
        if isinstance(entry, dict) and (path[0] in ('loss', 'metrics') or len(path) > 1):
            self.keys(entry, TERM if path[0] == 'loss' and len(path) == 2 else SECTION, path)
        if not isinstance(name, str):
            return  # the key table has said so
        args = self.args_of(entry)
        try:
            found = config_types.find(name, kind, call.module)
        except ConfigError as error:
            self.problem((*path, 'type') if isinstance(entry, dict) else path, str(error))
            return
        n_before = len(self.problems)
        self.arguments(path, found, args, kind, call)
        if len(self.problems) == n_before:
            self.try_out(path, entry, found, args)

    @staticmethod
    def args_of(entry):
        """The arguments of an entry; none when the entry or its args are of the wrong kind, which the key table says."""
        args = entry.get('args') if isinstance(entry, dict) else None
        return args if isinstance(args, dict) else {}

    def arguments(
        self, path: tuple, found, args: dict, kind: config_types.Kind, call: Call
    ) -> None:
        named, is_open = parameters(found)
        name = getattr(found, '__name__', type(found).__name__)
        from_code = set(list(named)[: self.given_by_position(path, found, call)]) | set(
            call.keywords
        )
        if 'optimizer' in named and path[0] == 'lr_scheduler':
            from_code.add('optimizer')
        misspelt = set()  # one mistake is one line
        for key, value in args.items():
            here = (*path, 'args', key)
            if key in from_code:
                self.problem(here, 'is given by the code, so the config may not give it too')
            elif key in named:
                expected = violation(value, argument_schema(found, named[key]))
                if expected is not None:
                    self.problem(here, f'expected {expected}, got {show(value)}')
            elif not is_open:
                self.problem(
                    here, f'{name} has no {key!r}{did_you_mean(key, named.keys() - from_code)}'
                )
                misspelt.add(nearest(key, named.keys() - from_code))
            elif any(is_near_miss(key, other) for other in named):
                self.note(
                    here,
                    f'{name} takes any key, but has none of that name{did_you_mean(key, named)}',
                )
            self.nested(here, value, kind, call.module)
        if call.is_known or path[0] in ('loss', 'metrics') or len(path) > 2:
            known = config_types.known_arguments(found, self.config)
            for key, parameter in named.items():
                if (
                    parameter.default is parameter.empty
                    and key not in from_code | args.keys() | known.keys() | misspelt
                    and (*path, 'args', key) not in self.uses.filled_in
                ):
                    self.problem((*path, 'args', key), f'is missing: {name} needs it')

    @staticmethod
    def given_by_position(path: tuple, found, call: Call) -> int:
        if path[0] == 'lr_scheduler' and next(iter(parameters(found)[0]), '') != 'optimizer':
            return 0  # ChainedScheduler gets it by name
        if path[0] in ('loss', 'metrics'):
            return 0 if inspect.isclass(found) else 2  # (output, target)
        return call.positional or (1 if path == ('optimizer',) else 0)

    def nested(self, path: tuple, value, kind: config_types.Kind, module) -> None:
        if config_types.is_nested_object(value, kind, module):
            self.entry(path, value, Call(module), kind.inside())
        else:
            for key, inner in entries(value):
                self.nested((*path, key), inner, kind, module)

    def try_out(self, path: tuple, entry, found, args: dict) -> None:
        """Build what torch itself provides, for a model of one number: its own checks of values count as ours."""
        from_torch = inspect.isclass(found) and found.__module__.startswith(
            ('torch.', 'torchmetrics.')
        )
        if not from_torch or (len(path) > 1 and path[0] not in ('metrics', 'loss')):
            return
        reason = self.refusal(path, entry)
        if reason is not None:
            # The culprit is the argument without which that complaint is gone.
            culprit = [
                key
                for key in args
                if self.refusal(
                    path, {**entry, 'args': {k: v for k, v in args.items() if k != key}}
                )
                != reason
            ]
            here = (*path, 'args', *(culprit if len(culprit) == 1 else ()))
            self.problem(here, f'{found.__name__} refuses: {reason}')

    def refusal(self, path: tuple, entry) -> str | None:
        """Why an entry cannot be built; None when it can."""
        section, dummy = path[0], torch.nn.Parameter(torch.zeros(1, 1))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                if section in ('loss', 'metrics'):
                    config_types.build_callable(
                        entry, section, path, None, Document({'arch': self.config.get('arch')})
                    )
                elif section == 'lr_scheduler':
                    optimizer = self.some_optimizer(dummy)
                    scheduler = config_types.prepare(
                        entry, section, torch.optim.lr_scheduler, (optimizer,), {}, Document({})
                    )()
                    if not isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                        scheduler.step()  # a period of zero shows only here
                elif section == 'optimizer':
                    config_types.prepare(
                        entry, section, torch.optim, ([dummy],), {}, Document({})
                    )()
        except (
            Exception
        ) as error:  # whatever a constructor raises, it says that these values will not do
            text = ' '.join(str(error).split()) or type(error).__name__
            return text.partition(' refuses: ')[2] or text
        return None

    def some_optimizer(self, dummy: torch.nn.Parameter) -> torch.optim.Optimizer:
        """The config's optimizer, or one that every scheduler can work with when that cannot be built here."""
        try:
            return config_types.prepare(
                self.config['optimizer'], 'optimizer', torch.optim, ([dummy],), {}, self.document
            )()
        except Exception:  # has its own line in the report, or is the project's own
            return torch.optim.SGD([dummy], momentum=0.9)

    # What only several keys together can tell

    def monitor(self) -> None:
        rule = (
            self.config['trainer'].get('monitor')
            if isinstance(self.config.get('trainer'), dict)
            else None
        )
        if not isinstance(rule, str) or rule == 'off':
            return
        path = ('trainer', 'monitor')
        mode, _, metric = rule.partition(' ')
        metric = metric.strip()
        if mode not in ('min', 'max') or not metric:
            self.problem(
                path, f"expected 'min <metric>', 'max <metric>' or 'off', got {show(rule)}"
            )
            return
        metrics = self.config.get('metrics') if isinstance(self.config.get('metrics'), list) else []
        base = ['loss'] + [
            each.get('name') or each.get('type') if isinstance(each, dict) else each
            for each in metrics
        ]
        if isinstance(terms := self.config.get('loss'), list):
            base += [
                each.get('name') or each.get('type') if isinstance(each, dict) else each
                for each in terms
            ]
        base = [name.rpartition('.')[2] for name in base if isinstance(name, str)]
        known = [*base, *(f'val_{name}' for name in base)]
        if metric not in known and not may_report(metric, base):
            self.problem(
                path,
                f'no epoch reports {metric!r}{did_you_mean(metric, known)}: there are {", ".join(known)}',
            )
        elif metric.startswith('val_') and metric in known and self.has_no_validation():
            self.problem(
                path,
                f'{metric!r} needs validation data, and data_loader.args.validation_split is 0: set it, '
                f'or say "{mode} {metric[4:]}"',
            )

    def has_no_validation(self) -> bool:
        """Only when the script's one source of validation data is the split, and the config has none."""
        if not self.uses.splits or any('val' in key for key in self.config):
            return False
        section = self.config.get('data_loader')
        if not isinstance(section, dict) or not isinstance(section.get('type'), str):
            return False
        args = self.args_of(section)
        if args.get('validation_split') or args.get('n_folds'):
            return False
        try:
            found = config_types.find(
                section['type'],
                config_types.KINDS['data_loader'],
                self.uses.call('data_loader').module,
            )
        except ConfigError:
            return False
        if 'split_validation' in vars(
            found
        ):  # it may know of validation data that the config does not name
            return False
        parameter = parameters(found)[0].get('validation_split')
        return (
            'validation_split' in args or parameter is not None and parameter.default in (0, None)
        )

    def schedule(self) -> None:
        section, trainer = self.config.get('lr_scheduler'), self.config.get('trainer')
        if (
            not isinstance(section, dict)
            or not isinstance(section.get('type'), str)
            or not isinstance(trainer, dict)
        ):
            return
        name, args, interval = (
            section['type'],
            self.args_of(section),
            section.get('interval', 'epoch'),
        )
        if name == 'ReduceLROnPlateau':
            self.plateau(interval, args, trainer.get('monitor', 'off'))
            return
        epochs, batches = (
            trainer.get('epochs'),
            trainer.get('len_epoch') if interval == 'step' else 1,
        )
        if not all(isinstance(each, int) for each in (epochs, batches)):
            return  # only the data can tell how many steps there will be
        n_steps, unit = epochs * batches, 'steps' if interval == 'step' else 'epochs'
        span = {
            key: args[key]
            for key in ('T_max', 'total_steps', 'total_iters')
            if isinstance(args.get(key), int)
        }
        for key, length in span.items():
            here = ('lr_scheduler', 'args', key)
            if length > n_steps and (interval == 'step' or key == 'total_steps'):
                self.problem(here, f'{length} {unit} are not reached: the run has {n_steps}')
            elif length > n_steps:
                self.note(
                    here,
                    f'{length} epochs are not reached: the run has {n_steps} (for steps, say "interval": "step")',
                )
            elif key == 'total_steps' and length < n_steps:
                self.problem(
                    here, f'OneCycleLR ends after {length} {unit}, and the run has {n_steps}'
                )
        if interval == 'epoch' and name == 'CyclicLR':
            self.note(
                ('lr_scheduler', 'interval'),
                f'{name} counts steps, and is stepped once an epoch: say "interval": "step"',
            )

    def plateau(self, interval, args: dict, rule) -> None:
        if interval == 'step':
            self.problem(
                ('lr_scheduler', 'interval'),
                'ReduceLROnPlateau waits for the value of an epoch: expected "epoch"',
            )
        mode = rule.partition(' ')[0] if isinstance(rule, str) else 'off'
        if mode == 'off' and self.uses.call('lr_scheduler').is_known:
            self.problem(
                ('lr_scheduler', 'type'),
                "ReduceLROnPlateau needs a trainer.monitor, such as 'min val_loss'",
            )
        elif mode in ('min', 'max') and args.get('mode', 'min') != mode:
            self.problem(
                ('lr_scheduler', 'args', 'mode'),
                f'is {show(args.get("mode", "min"))}, but trainer.monitor is {show(rule)}',
            )


class _Uses:
    """What a script's source says about how it uses the config."""

    def __init__(self, script: ModuleType):
        self.calls, self.read, self.optional, self.splits = {}, set(), set(), False
        self.filled_in = set()  # paths that the script writes into the config
        try:
            tree = ast.parse(Path(script.__file__).read_text(encoding='utf-8'))
        except (AttributeError, OSError, ValueError, SyntaxError):
            return  # an interactive session: nothing to learn
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                self.look_at_call(node, node.func.attr, script)
            elif (
                isinstance(node, ast.Subscript)
                and isinstance(node.slice, ast.Constant)
                and 'config' in ast.unparse(node.value)
            ):
                self.read.add(node.slice.value)
                if isinstance(node.ctx, ast.Store):
                    self.filled_in.add(_path_of(node))
            elif isinstance(node, ast.Compare) and isinstance(node.left, ast.Constant):
                self.optional.add(node.left.value)

    def look_at_call(self, node: ast.Call, method: str, script: ModuleType) -> None:
        first = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        self.splits = self.splits or method == 'split_validation'
        if method in BUILDERS and isinstance(first, str):
            is_known = not any(isinstance(each, ast.Starred) for each in node.args) and all(
                each.arg for each in node.keywords
            )
            call = Call(
                _value_of(node.args[1], script) if len(node.args) > 1 else None,
                max(0, len(node.args) - 2),
                tuple(each.arg for each in node.keywords if each.arg),
                is_known,
            )
            self.calls.setdefault(first, call)
        elif method in ('init_loss', 'init_metrics'):
            self.calls[method.removeprefix('init_')] = Call(
                _value_of(node.args[0], script) if node.args else None, is_known=True
            )
        elif method == 'init_scheduler':
            self.calls['lr_scheduler'] = Call(torch.optim.lr_scheduler, 1, is_known=True)
        elif method == 'get' and first is not None:
            self.optional.add(first)

    def call(self, section: str) -> Call:
        return self.calls.get(section, Call())

    def needs(self, section: str) -> bool:
        return (section in self.calls or section in self.read) and section not in self.optional


def _path_of(node: ast.AST) -> tuple:
    """('arch', 'args', 'width') for config['arch']['args']['width']."""
    path = ()
    while isinstance(node, ast.Subscript):
        path, node = (getattr(node.slice, 'value', None), *path), node.value
    return path


def _value_of(node: ast.AST, script: ModuleType) -> ModuleType | None:
    """The module that `module_arch` or `torch.optim` stands for in a script."""
    value = script
    for name in ast.unparse(node).split('.'):
        value = getattr(value, name, None)
    return value if isinstance(value, ModuleType) else None


@lru_cache
def _sources(with_core: bool) -> str:
    """The source text of the project, or only of what is not the template's own machinery."""
    others = (
        ('tests', 'tools')
        if with_core
        else ('tests', 'tools', 'armature', 'base', 'logger', 'utils')
    )
    packages = [
        folder
        for folder in config_types.ROOT.iterdir()
        if folder.name not in others and any(folder.glob('*.py'))
    ]
    files = [file for folder in packages for file in folder.rglob('*.py')]
    return '\n'.join(
        file.read_text(encoding='utf-8', errors='replace')
        for file in [*config_types.ROOT.glob('*.py'), *files]
    )


def mentions(pattern: str, with_core: bool = False) -> bool:
    """Whether the project's code holds this text in quotes, as code does that reads a key or reports a value of that name."""
    return re.search(rf"""['"]{pattern}['"]""", _sources(with_core)) is not None


def may_report(metric: str, base: list[str]) -> bool:
    """Whether the project's own trainer may report `metric`: its code says that name, or the part before a known one."""
    if mentions(re.escape(metric)) or mentions(re.escape(metric.removeprefix('val_'))):
        return True
    prefixes = {metric[: -len(name)].rstrip('_-/ ') for name in base if metric.endswith(name)}
    return any(
        prefix and mentions(rf'{re.escape(prefix)}(?:[_/ -]?|[_/ -]\{{.*?)')
        for prefix in prefixes
        if prefix != 'val'
    )


def describe(document: Document, script: ModuleType | None = None) -> str:
    """The resolved config with the defaults it relies on, and behind each value where it comes from; itself a readable config."""
    uses = _Uses(script if script is not None else sys.modules['__main__'])
    lines = []

    def write(value, path: tuple, origin: str, tail: str) -> None:
        depth = '    ' * len(path)
        start = (
            f'{depth}{json.dumps(path[-1]) + ": " if path and isinstance(path[-1], str) else ""}'
        )
        members = (
            list(_with_defaults(value, path, document, uses))
            if isinstance(value, (dict, list))
            else []
        )
        if (
            not members
            or isinstance(value, list)
            and not any(isinstance(each, (dict, list)) for each in value)
        ):
            text = f'{start}{json.dumps(value)}{tail}'
            lines.append(f'{text:<56}  // {origin}' if origin else text)
            return
        opening, closing = '{}' if isinstance(value, dict) else '[]'
        lines.append(f'{start}{opening}')
        for index, (key, inner, inner_origin) in enumerate(members):
            write(inner, (*path, key), inner_origin, ',' if index < len(members) - 1 else '')
        lines.append(f'{depth}{closing}{tail}')

    write(document.values, (), '', '')
    return '\n'.join(lines) + '\n'


def _with_defaults(value, path: tuple, document: Document, uses: '_Uses'):
    """(key, value, origin) for what a section holds, then for what it leaves to a default."""
    for key, inner in entries(value):
        yield key, inner, document.origin((*path, key))
    properties = {
        (): TOP,
        ('trainer',): TOP['trainer']['properties'],
        ('lr_scheduler',): SCHEDULER,
        ('optimizer',): OPTIMIZER,
    }.get(path, {})
    for key, schema in properties.items():
        if key not in value and 'default' in schema and not schema.get('deprecated'):
            yield key, schema['default'], 'default'
    if path and path[-1] == 'args':
        call = uses.call(path[0])
        kind = config_types.kind_of(path[0], call.module)
        kind = kind.inside() if len(path) > 2 else kind
        try:
            found = config_types.find(
                lookup(document.values, (*path[:-1], 'type')), kind, call.module
            )
        except ConfigError:
            return  # a section of the project's own
        for key, parameter in parameters(found)[0].items():
            default = json_default(parameter)
            if key not in value and key not in call.keywords and default is not NotImplemented:
                yield key, default, f'default of {found.__name__}'
