"""The only place that speaks to Optuna: what a trial tries, when it is pruned, and the journal in
which all who work on a sweep note what came out.

What trial number k tries is a function of the sweep's settings, its seed, k, and what came out of
the trials up to k - parallel. So an interrupted sweep, and one that several processes work on, try
the same as one that ran undisturbed.
"""

import inspect
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from armature.config.read import show
from armature.config.spelling import did_you_mean
from armature.errors import ConfigError, UserError
from armature.seed import key

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

optuna.logging.set_verbosity(optuna.logging.ERROR)
RANGE_KEYS = {'low', 'high', 'log', 'step'}
# They count what they have given out, and would count from the beginning for each trial.
UNFIT = ('GridSampler', 'QMCSampler')
KINDS = {
    'sampler': (optuna.samplers, optuna.samplers.BaseSampler),
    'pruner': (optuna.pruners, optuna.pruners.BasePruner),
}


def distribution(wanted: list | dict) -> Any:
    """What a parameter may be: a list of values, or {"low", "high", "log", "step"}.

    Values that are lists or sections are known to Optuna by their place in the list.
    """
    if isinstance(wanted, list):
        if not wanted:
            raise ConfigError('is empty: give at least one value')
        if again := [each for place, each in enumerate(wanted) if each in wanted[:place]]:
            raise ConfigError(
                f'{show(again[0])} is there twice (as 0, 0.0 and false are): leave one out'
            )
        return CategoricalDistribution(as_choices(wanted))
    if not isinstance(wanted, dict) or not {'low', 'high'} <= wanted.keys() <= RANGE_KEYS:
        raise ConfigError(
            f'{show(wanted)} is no list of values and no range: write such as [16, 32], or '
            '{"low": 1e-5, "high": 0.1}, with "log": true or "step" where wanted'
        )
    bounds = [wanted['low'], wanted['high']]
    if any(isinstance(bound, bool) or not isinstance(bound, (int, float)) for bound in bounds):
        raise ConfigError(f'{show(wanted)}: low and high have to be numbers: give such')
    is_whole = all(isinstance(bound, int) for bound in bounds)
    options = {name: wanted[name] for name in ('log', 'step') if name in wanted}
    try:
        return (IntDistribution if is_whole else FloatDistribution)(*bounds, **options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f'{show(wanted)}: {" ".join(str(error).split())}') from None


def as_choices(values: list) -> list:
    is_plain = all(isinstance(value, (int, float, str, bool, type(None))) for value in values)
    return values if is_plain else list(range(len(values)))


def settings_of(role: str, entry: str | dict) -> dict:
    """A sampler or pruner with every setting written out, so that it stays what it is."""
    given = entry if isinstance(entry, dict) else {'type': entry}
    found, args = _class_of(role, given.get('type')), given.get('args') or {}
    known = inspect.signature(found).parameters
    for name in args:
        if name not in known:
            raise ConfigError(
                f'sweep.{role}.args.{name}: {found.__name__} has no {name!r}'
                f'{did_you_mean(name, known)}'
            )
    defaults = {
        name: each.default
        for name, each in known.items()
        if isinstance(each.default, (int, float, str, bool, type(None)))
    }
    settings = {'type': given['type'], 'args': defaults | args}
    make(role, settings)
    return settings


def _class_of(role: str, name: Any) -> type:
    module, base = KINDS[role]
    classes = {each: getattr(module, each) for each in module.__all__}
    names = [
        each
        for each, value in classes.items()
        if inspect.isclass(value) and issubclass(value, base) and value is not base
    ]
    if name in UNFIT:
        raise ConfigError(
            f'sweep.{role}: {name} counts what it has given out, which no trial can know: take '
            'RandomSampler, or say "grid": true'
        )
    if name not in names:
        near = did_you_mean(str(name), names) or f': there are {", ".join(names)}'
        raise ConfigError(f'sweep.{role}: Optuna has no {role} {show(name)}{near}')
    return classes[name]


def make(role: str, settings: dict, **more: Any) -> Any:
    """The sampler or pruner that settings describe; one inside its args is made first."""
    found, args = _class_of(role, settings['type']), dict(settings.get('args') or {})
    for name, value in args.items():
        if isinstance(value, dict) and 'type' in value:  # a pruner that wraps another
            args[name] = make(role, value)
    if 'seed' in inspect.signature(found).parameters:
        args |= more
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # that a setting is experimental
            return found(**args)
    except Exception as error:  # whatever it raises, it says that these settings will not do
        text = ' '.join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f'sweep.{role}: {found.__name__} refuses: {text}. Change its args'
        ) from None


class Search:
    """What one trial tries, and whether it is to be pruned, seen from the trials known to it.

    known: the trials that came out, by number. fixed: what it has been told to try. All is computed
    in memory: whoever makes it anew, and reports the same values, gets the same answers.
    """

    def __init__(self, plan: Any, number: int, known: dict[int, FrozenTrial], fixed: dict | None):
        sampler = plan.sampler
        seed = key(sampler['args'].get('seed') or plan.seed, 'sweep', number) % 2**32
        self._study = optuna.create_study(
            study_name=plan.name,
            direction=plan.direction,
            sampler=make('sampler', sampler, seed=seed),
            pruner=make('pruner', plan.pruner),
        )
        # A failed trial tells nothing: one stands for each that is not known.
        for earlier in range(number):
            self._study.add_trial(known.get(earlier) or create_trial(state=TrialState.FAIL))
        if fixed:
            self._study.enqueue_trial(fixed)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            self._trial = self._study.ask(plan.distributions)
        assert self._trial.number == number

    @property
    def params(self) -> dict[str, Any]:
        return self._trial.params

    @property
    def last_value(self) -> float:
        return self.frozen.intermediate_values[self.frozen.last_step]

    def reports(self, epoch: int, value: float) -> bool:
        """Note what an epoch reported; returns whether the trial is to be pruned now."""
        self._trial.report(value, epoch)
        return self._trial.should_prune()

    @property
    def frozen(self) -> FrozenTrial:
        return self._study.trials[self._trial.number]


# What came out


class Results:
    """The trials of a sweep in a journal that several processes read and write.

    Trials are numbered from 0. All are there from the beginning, waiting.
    """

    def __init__(self, file: Path, plan: Any, facts: dict):
        self.file = file
        with self._reading(), locked(file.with_name('.lock')):
            self.storage = optuna.storages.JournalStorage(Journal(file))
            self.study = optuna.create_study(
                study_name=plan.name,
                direction=plan.direction,
                storage=self.storage,
                load_if_exists=True,
            )
            before = self.study.user_attrs
            if 'sweep' not in before:
                self.study.set_user_attr('sweep', facts)
                self.study.set_user_attr('optuna', optuna.__version__)
            self.facts = before.get('sweep', facts)
            self.version = before.get('optuna', optuna.__version__)
            for _ in range(len(self.study.get_trials(deepcopy=False)), plan.n_trials):
                self.study.add_trial(create_trial(state=TrialState.WAITING))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Whatever Optuna raises about the content of the journal is said in one line."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            raise UserError(
                f'{self.file} cannot be read by Optuna {optuna.__version__} '
                f'({type(error).__name__}: {error}): it is damaged, or another version wrote it. '
                'Move it away and give the same command again: what was trained is found again '
                'in the run folders'
            ) from error

    def trials(self) -> list[FrozenTrial]:
        with self._reading():
            return self.study.get_trials(deepcopy=False)

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(
            self.storage.get_study_id_from_name(self.study.study_name), number
        )

    def begin(self, number: int, plan: Any, params: dict[str, Any]) -> None:
        """Note what a trial tries."""
        trial, before = self._id(number), self.trials()[number]
        if before.state == TrialState.WAITING:
            self.storage.set_trial_state_values(trial, TrialState.RUNNING)
        for name, wanted in plan.distributions.items():
            if name not in before.params:
                inner = wanted.to_internal_repr(params[name])
                self.storage.set_trial_param(trial, name, inner, wanted)

    def end(
        self, number: int, search: Search, state: TrialState, value: float | None, **facts: Any
    ) -> None:
        """Note what came out of a trial: all its epochs, then how it ended."""
        trial, frozen = self._id(number), search.frozen
        for epoch, reported in frozen.intermediate_values.items():
            self.storage.set_trial_intermediate_value(trial, epoch, reported)
        for name, attribute in frozen.system_attrs.items():
            if name != 'fixed_params':  # only that it was told what to try
                self.storage.set_trial_system_attr(trial, name, attribute)
        for name, attribute in facts.items():
            self.storage.set_trial_user_attr(trial, name, attribute)
        self.storage.set_trial_state_values(trial, state, None if value is None else [value])

    def importances(self) -> dict[str, float]:
        """How much each parameter matters (fANOVA), in shares; empty with too few trials."""
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                return get_param_importances(
                    self.study, evaluator=FanovaImportanceEvaluator(seed=0)
                )
        except (ValueError, RuntimeError):  # too few trials, or all of one value
            return {}


class Journal(JournalFileBackend):
    """Optuna's journal, appended to under a lock that goes with the process that holds it.

    Optuna's own locks outlive a killed process by half a minute. Nothing waits for the disk: what a
    power cut takes is in the run folders.
    """

    def __init__(self, file: Path):
        super().__init__(str(file))
        self._file = file

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = ''.join(json.dumps(log, separators=(',', ':')) + '\n' for log in logs)
        with self._file.open('r+b') as file:
            lock(file)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            if file.read() not in (b'', b'\n'):
                # A full disk has left an unfinished line: behind it, another could not be read.
                file.seek(0)
                file.truncate(file.read().rfind(b'\n') + 1)
                file.seek(0, os.SEEK_END)
            file.write(lines.encode())


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Inside, no other process is inside."""
    with file.open('a') as handle:
        lock(handle)
        yield


def lock(file: IO) -> None:
    """Wait for the lock of an open file, which is held until it is closed. Windows: nothing."""
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX)
