"""What a sweep tries, checked as a whole before anything runs: from the config's "sweep" section to
the config of each run.
"""

import copy
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

from armature.config.build import ROOT
from armature.config.check import check, judge_keys
from armature.config.command import set_value
from armature.config.keys import settings_of
from armature.config.read import DELETE, Document, lookup, parse_value
from armature.errors import ConfigError
from armature.run.folder import plain_name
from armature.run.monitor import Monitor
from tools import sweep_search as search
from tools.run_records import SEED, is_below
from tools.sweep_keys import SWEEP

FIXED = ('name', 'trainer.save_dir', 'trainer.monitor', 'sweep')  # what may not vary
MOST_CHECKED = 300  # combinations; of more, each value is checked by itself
LOADER = ('data_loader', 'args')


@dataclass
class Plan:
    """A sweep: `document` is the config without its "sweep", `settings` that section.

    paths: of each parameter, where it is in the config. distributions: what it may be. runs: the
    name and the changed values of each run of a trial; there are several with seeds or folds.
    """

    document: Document
    settings: SimpleNamespace
    name: str
    paths: dict[str, tuple]
    distributions: dict[str, Any]
    combinations: list[tuple]  # of a grid
    runs: list[tuple[str, dict]]

    def __post_init__(self):
        config = self.document.values
        trainer = settings_of(config['trainer'])
        monitor = Monitor(trainer.monitor)
        self.metric, self.mode, self.seed = monitor.metric, monitor.mode, config.get(SEED, 123)
        self.direction = {'min': 'minimize', 'max': 'maximize'}[self.mode]
        self.save_dir = ROOT / trainer.save_dir
        self.folder = self.save_dir / 'sweeps' / self.name
        self.runs_folder = self.save_dir / 'models' / self.name
        self.sampler = search.settings_of('sampler', self.settings.sampler)
        self.pruner = search.settings_of('pruner', self.settings.pruner)
        self.n_trials = self.settings.n_trials or len(self.combinations)
        if self.settings.grid:
            self.n_trials = min(self.n_trials, len(self.combinations))
        # Whether what came out of earlier trials has a say in the later ones.
        is_random = self.settings.grid or self.sampler['type'] == 'RandomSampler'
        self.learns = not is_random or self.pruner['type'] != 'NopPruner'

    def n_known(self, number: int) -> int:
        """How many trials have to be over before trial `number` can begin: it knows these."""
        return max(0, number - self.settings.parallel + 1) if self.learns else 0

    @property
    def facts(self) -> dict:
        """What makes this sweep the one that it is, as plain data."""
        facts = {
            'config': self.document.values,
            'params': self.settings.params,
            'grid': self.settings.grid,
            'sampler': self.sampler,
            'pruner': self.pruner,
            'seeds': self.settings.seeds,
            'folds': self.settings.folds,
            'parallel': self.settings.parallel,
        }
        return json.loads(json.dumps(facts))

    def told(self, number: int) -> dict[str, Any] | None:
        """What trial `number` of a grid has to try, as Optuna knows it."""
        if not self.settings.grid:
            return None
        return {
            name: self.distributions[name].choices[place]
            for name, place in zip(self.paths, self.combinations[number])
        }

    def values(self, params: dict[str, Any]) -> dict[str, Any]:
        """What Optuna's params stand for: a choice that is a list or a section has a number."""
        found = {}
        for name, value in params.items():
            wanted = self.settings.params[name]
            is_numbered = isinstance(wanted, list) and search.as_choices(wanted) is not wanted
            found[name] = wanted[value] if is_numbered else value
        return found

    def with_values(self, values: dict[str, Any], changes: dict | None = None) -> Document:
        """The config of a trial, or of one of its runs."""
        document = copy.deepcopy(self.document)
        # A section goes before what is in it.
        for name in sorted(values, key=lambda name: len(self.paths[name])):
            origin = self.document.origin(('sweep', 'params', name)) or '--param'
            document.put(self.paths[name], copy.deepcopy(values[name]), origin)
        for path, value in (changes or {}).items():
            if value == DELETE:
                (lookup(document.values, path[:-1]) or {}).pop(path[-1], None)
            else:
                document.put(path, value, self.document.origin(('sweep',)))
        return document

    def best(self, values: dict[str, Any]) -> dict:
        """A config that starts from config.json beside it and says what a trial changes."""
        return {
            'base': 'config.json',
            **changed(self.document.values, self.with_values(values).values),
        }


def make_plan(document: Document, quick: list[str], builds: dict[str, ModuleType] | None) -> Plan:
    """The plan of a config's "sweep" and the `--param KEY=VALUE,VALUE` of a command line.

    Raises a ConfigError with all that is wrong, a line each.
    """
    add_quick(document, quick)
    if not document.values.get('sweep'):
        raise ConfigError(
            'the config has no "sweep": say what to try, such as "sweep": {"grid": true, "params": '
            '{"optimizer.args.lr": [0.1, 0.01]}}, or --param optimizer.args.lr=0.1,0.01'
        )
    document.refuse(judge_keys(document.values['sweep'], SWEEP, ('sweep',)))
    for note in check(document, builds):
        sys.stderr.write(f'note: {note}\n')
    settings = settings_of(document.values.pop('sweep'), SWEEP)
    if not settings.params:
        raise ConfigError('sweep.params names nothing: say what to try')
    paths, distributions, problems = {}, {}, []
    for name, wanted in settings.params.items():
        place = f'{document.origin(("sweep", "params", name))}: sweep.params.{name}'
        try:
            paths[name] = path_of(document, name)
            distributions[name] = search.distribution(wanted)
            if settings.grid and not isinstance(wanted, list):
                raise ConfigError('a grid takes no range: give a list of values')
            if name == SEED and settings.seeds:
                raise ConfigError('sweep.seeds says the seeds already: leave one of the two out')
        except ConfigError as error:
            problems.append(f'{place}: {error}')
    if settings.seeds and len(set(settings.seeds)) < len(settings.seeds):
        place = document.origin(('sweep', 'seeds'))
        problems.append(f'{place}: sweep.seeds holds a seed twice, which is one run: leave one out')
    if problems:
        raise ConfigError('\n'.join(problems))
    if settings.n_trials is None and not settings.grid:
        raise ConfigError('sweep.n_trials: is missing: say how many settings are tried')
    if settings_of(document.values['trainer']).monitor == 'off':
        raise ConfigError('trainer.monitor: a sweep is judged by it: say such as "min val_loss"')
    places = [range(len(settings.params[name])) for name in paths] if settings.grid else []
    plan = Plan(
        document,
        settings,
        plain_name('sweep.name', settings.name or f'{document.values["name"]}_sweep'),
        paths,
        distributions,
        list(itertools.product(*places)) if settings.grid else [],
        list(runs_of(settings)),
    )
    judge(plan, builds)
    return plan


def add_quick(document: Document, quick: list[str]) -> None:
    """Put `--param KEY=VALUE,VALUE` into the config; where nothing else is tried, it is a grid."""
    if quick and not lookup(document.values, ('sweep', 'params')):
        document.put(('sweep', 'grid'), True, '--param')
    given = set()
    for text in quick:
        name, equals, values = text.partition('=')
        if not equals or not name or not values:
            raise ConfigError(f'--param {text}: expected KEY=VALUE,VALUE')
        if name in given:
            raise ConfigError(f'--param {name} is given twice: write all its values in one')
        given.add(name)
        try:
            found = json.loads(f'[{values}]')
        except ValueError:  # bare words, such as SGD,Adam
            found = [parse_value(each.strip(), '--param') for each in values.split(',')]
        document.put(('sweep', 'params', name), found, '--param')


def path_of(document: Document, name: str) -> tuple:
    """Where in the config `name` is; a ConfigError unless --set could change it."""
    if is_below(name, FIXED):
        raise ConfigError('is the same in all trials: leave it out')
    try:
        set_value(copy.deepcopy(document), f'{name}=0')
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix('--set: ')) from None
    path, node = (), document.values
    for each in name.split('.'):
        each = int(each) if isinstance(node, list) else each
        path, node = (*path, each), lookup(node, (each,))
    return path


def runs_of(settings: SimpleNamespace) -> Iterator[tuple[str, dict]]:
    """(end of its name, changed values) of each run of a trial."""
    for seed in settings.seeds or [None]:
        for fold in range(settings.folds) if settings.folds else [None]:
            name, changes = '', {}
            if seed is not None:
                name, changes = f'-seed{seed}', {(SEED,): seed}
            if fold is not None:
                name += f'-fold{fold}'
                changes |= {
                    (*LOADER, 'validation_split'): DELETE,
                    (*LOADER, 'n_folds'): settings.folds,
                    (*LOADER, 'fold'): fold,
                }
            yield name, changes


def judge(plan: Plan, builds: dict[str, ModuleType] | None) -> None:
    """Check the config of every trial; of very many, or of ranges, each value and both ends."""
    each = {
        name: wanted if isinstance(wanted, list) else [wanted['low'], wanted['high']]
        for name, wanted in plan.settings.params.items()
    }
    n_combinations = 1
    for values in each.values():
        n_combinations *= len(values)
    if n_combinations <= MOST_CHECKED:
        tried = [dict(zip(each, values)) for values in itertools.product(*each.values())]
    else:
        tried = [{name: value} for name, values in each.items() for value in values]
    lines = {}
    for values in tried:
        try:
            check(plan.with_values(values, plan.runs[0][1]), builds)
        except ConfigError as error:
            lines |= dict.fromkeys(str(error).splitlines())
    if lines:
        raise ConfigError('\n'.join(lines))


def changed(before: dict, now: dict) -> dict:
    """What laid over `before`, as a config over its "base", makes `now`."""
    if before.get('type', now.get('type')) != now.get('type'):
        before = {key: value for key, value in before.items() if key != 'args'}
    found = {key: DELETE for key in before if key not in now}
    for key, value in now.items():
        if isinstance(value, dict) and isinstance(before.get(key), dict):
            if inner := changed(before[key], value):
                found[key] = inner
        elif key not in before or before[key] != value:
            found[key] = value
    return found
