"""What holds after a resume: settings from the config, progress from the checkpoint.

"As built" is what config and code made before the first step. It is saved beside the live state:

    optimizer, and each further one by its name   class and options of every group
    lr_scheduler, and each further one            class, state, the optimizer that it steers,
                                                  schedulers and functions inside it
    schedule                                      interval, warm-up, metric of a plateau
    weight_average                                its kind and settings
    criterion                                     class, buffers
    pace                                          samples a batch, batches an epoch
    order                                         how the loader goes through its samples

Where as built then and now are equal, the live state is loaded, whoever moved it. Where they
differ, what is built now stands, and the schedule is replayed to where the run is, which goes on as
one that had the new settings from the start. What cannot be replayed is refused. All other keys of
the config hold as they are now, and a line tells each that has changed. docs/changes.md has the
table of what may change between stop and resume.
"""

import copy
import csv
import functools
import inspect
import re
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from armature.checkpoint import files as checkpoint
from armature.checkpoint.files import to_plain
from armature.checkpoint.weights import bare, load_weights
from armature.compare import ABSENT, differences, first_difference
from armature.config.build import find, kind_of, name_of, type_of
from armature.config.keys import NO_HYPERPARAMETER, TERM, TOP, TRAINER, settings_of
from armature.data import identity
from armature.errors import CheckpointError, ConfigError
from armature.processes import dist
from armature.run.record import as_read
from armature.run.saving import NAMES, load_part, state_of_part, stateful_of
from armature.run_files import TABLE, read_table, values_of
from armature.seed import AT_START, set_rng_state
from armature.step.average import Average
from armature.step.optimizers import owners
from armature.step.schedule import Schedule, replay

# In an optimizer's group, a scheduler's state or a loss: an option, and a place inside its value.
OPTION = re.compile(
    r'(?:groups\.\d+\.|state(?:\._schedulers\.\d+)*\.|(?=buffers\.))(?!_schedulers\b)([^.]+)(\..+)?'
)
DERIVED = {'initial_lr', '_last_lr'}  # from other options
# So are these, but for the base_lr of a CyclicLR inside another, pct_start and three_phase.
MOSTLY_DERIVED = {'base_lrs', '_schedule_phases'}
MATTERS = {  # of what made a run: what can change a result
    'git.commit', 'git.changes', 'versions.python', 'versions.torch',
    'hardware.device', 'hardware.machine', 'hardware.threads', 'hardware.processes',
}  # fmt: skip
# Nothing for a resume, or said already.
SILENT = re.compile(rf'init_from|sweep|seed$|{NO_HYPERPARAMETER.pattern}')
OR_NEW_RUN = 'or start a new run from the weights alone ("init_from")'


# Kinds of parts


def _is_optimizer(part):
    return hasattr(part, 'param_groups')


def _is_reset(part):
    """Whether the beginning of an epoch resets it, as it does sums of values."""
    return hasattr(part, 'reset') and not _is_optimizer(part)


def _steering(optimizer, parts):
    """Of these parts, by their names, the scheduler of an optimizer and the Schedule of that."""
    found = {}
    for name, part in parts.items():
        scheduler = part.scheduler if isinstance(part, Schedule) else part
        if isinstance(scheduler, LRScheduler) and scheduler.optimizer is optimizer:
            found[name] = part
    return found


# As built


def optimizer_as_built(optimizer: Any) -> dict:
    """Class and options of each group of an optimizer that no step or checkpoint has changed."""
    groups = []
    for group, owner in zip(getattr(optimizer, 'param_groups', []), owners(optimizer)):
        options = {key: value for key, value in group.items() if key != 'params'}
        groups.append({'type': type(owner).__name__, **to_plain(copy.deepcopy(options))})
    return {'groups': groups}


def as_built(trainer: Any, parts: dict[str, Any]) -> dict[str, dict]:
    """As built, of these parts of a trainer, by their names; before the first step."""
    loader = getattr(trainer, 'data_loader', None)
    built = {
        'pace': {
            'batch_size': getattr(loader, 'batch_size', None),
            'len_epoch': getattr(trainer, 'len_epoch', None),
        },
        'order': {
            'shuffle': getattr(loader, 'shuffle', None),
            'sampler': type(getattr(loader, 'sampler', None)).__name__,
            'n_samples': getattr(loader, 'n_samples', None),
        },
    }
    names = {id(part): name for name, part in parts.items()}
    for name, part in parts.items():
        if _is_optimizer(part):
            built[name] = optimizer_as_built(part)
            for each in _steering(part, parts).values():
                rates = getattr(each, 'rates_as_built', ())  # of a Schedule: its warm-up has begun
                for group, rate in zip(built[name]['groups'], rates):
                    group['lr'] = copy.deepcopy(rate)
        elif isinstance(part, LRScheduler):
            built[name] = {
                'type': type(part).__name__,
                'optimizer': names.get(id(part.optimizer), ''),
                'inside': _inside(part),
                'state': to_plain(copy.deepcopy(state_of_part(part))),
            }
        elif isinstance(part, (Schedule, Average)):
            built[name] = part.as_built()
        elif name == 'criterion' and isinstance(part, nn.Module):
            buffers = {name: buffer.detach().cpu().clone() for name, buffer in part.named_buffers()}
            built[name] = {'type': type(part).__name__, 'buffers': buffers}
    return built


def _inside(scheduler):
    """What the state of a scheduler does not tell, as a text: its functions, by their names and
    what they enclose, and the schedulers in it."""
    found = []
    for each in (*getattr(scheduler, 'lr_lambdas', ()), getattr(scheduler, '_scale_fn_custom', 0)):
        enclosed = {}
        while isinstance(each, functools.partial):
            enclosed |= {**dict(enumerate(each.args)), **each.keywords}
            each = each.func
        if inspect.isfunction(each):
            enclosed |= inspect.getclosurevars(each).nonlocals
            plain = {k: v for k, v in enclosed.items() if isinstance(v, int | float | str)}
            found.append(f'{each.__qualname__} {plain}')
    for each in getattr(scheduler, '_schedulers', ()):
        found.append(f'{type(each).__name__}({_inside(each)})')
    return ', '.join(found)


def changes(then: Any, now: Any, name: str = '') -> list[str]:
    """A line for each value of a part that is built otherwise than it was; [] when it is the same.

    An option that only one of the two has counts as equal: versions of torch add options. What
    follows from other options is left out.
    """
    lines = {False: [], True: []}
    for place, before, after in differences(then, now, name):
        match = OPTION.fullmatch(place[len(name) :].lstrip('.'))
        option, inside = match.groups() if match else ('', None)
        is_new = before is ABSENT or after is ABSENT
        if option not in DERIVED and (inside or not is_new):
            lines[option in MOSTLY_DERIVED].append(_line(place, before, after))
    return lines[False] or lines[True]


def _line(place, before, after):
    return f'{place}: {_short(before)} in the checkpoint, {_short(after)} from here on'


def _short(value):
    text = 'nothing' if value is ABSENT else repr(value)
    return text if len(text) < 60 else f'{text[:57]}...'


def _refuse_another_config(state, config):
    """For checkpoints that do not say what was built, where it counts as built as it is now."""
    names = ['optimizer', 'lr_scheduler', 'loss'] if 'parts' in state else ['optimizer']
    before = state.get('config') or config
    then, now = ({name: each.get(name) for name in names} for each in (before, config))
    if "'auto'" in f'{then} {now}':
        then['trainer.epochs'] = before['trainer'].get('epochs')
        now['trainer.epochs'] = config['trainer'].get('epochs')
    if name := first_difference(then, now):
        raise ConfigError(
            f'{name}: the config has another one than the checkpoint, which is of the first '
            'version or the old template and does not say what was built from it: keep it, '
            f'{OR_NEW_RUN}'
        )


def _refuse_another_arch(before, config):
    """Weights that fit another class by chance are not its own; one that is gone was renamed."""
    then, now = (type_of(each.get('arch')) for each in (before, config))
    if not (then and now) or str(then).rpartition('.')[2] == str(now).rpartition('.')[2]:
        return
    try:
        find(then, kind_of('arch'))
    except ConfigError:
        return
    raise ConfigError(
        f'arch.type: the config has {now!r}, and the checkpoint {then!r}: keep it, or start a '
        'new run with "init_from", which takes the weights that fit'
    )


def _in_full(config):
    """A config with the defaults of the keys that we know."""

    def filled(section, table):  # whatever they are: an old project has sections of its own form
        given = {name: value for name, value in section.items() if value is not None}
        return vars(settings_of(None, table)) | given

    return filled(config, TOP) | {'trainer': filled(config.get('trainer') or {}, TRAINER)}


def _judged_by(monitor, config):
    """The rule by which epochs are judged, with the metric, or else the loss, that it names."""
    mode, _, name = monitor.partition(' ')
    if mode == 'off':
        return []
    name, loss = name.strip().removeprefix('val_'), config.get('loss')
    found = [
        each for each in config.get('metrics') or () if f'{name}_'.startswith(f'{name_of(each)}_')
    ]
    found = found or (loss if isinstance(loss, list) else [loss])
    entries = [each if isinstance(each, dict) else {'type': each} for each in found]
    return [monitor, *(vars(settings_of(each, TERM)) for each in entries)]


# Optimizers


def load_optimizer(name: str, optimizer: Any, saved: dict, before: dict, now: dict) -> list[str]:
    """Load an optimizer: where it is built otherwise, its options as built now, and its state by
    name.

    before, now: as built. Returns what the user should know.
    """
    notes = changes(before, now, name)
    if notes:
        saved, n_fresh = _fitted(name, optimizer, saved, before, now)
        notes += [f'{name}: {n_fresh} parameters have no state yet'] * bool(n_fresh)
    like = dict(enumerate(each for group in optimizer.param_groups for each in group['params']))
    state = {  # whole in a checkpoint, in parts where the parameters are
        number: {key: dist.sharded_like(each, like.get(number)) for key, each in values.items()}
        for number, values in saved['state'].items()
    }
    _load(name, optimizer, {**saved, 'state': state})
    return notes


def _fitted(name, optimizer, saved, before, now):
    """The saved state for the groups as they are now, with their options as built now.

    A parameter keeps its state where the same class steps it, with options that need no other
    state. Returns the state, and how many parameters have none in it.
    """
    groups, old_groups = optimizer.state_dict()['param_groups'], saved['param_groups']
    kinds = [each['type'] for each in now['groups']]
    old_kinds = [each['type'] for each in before['groups']]
    are_named = all('param_names' in group for group in (*groups, *old_groups))
    key = 'param_names' if are_named else 'params'
    names, old_names = ([each[key] for each in both] for both in (groups, old_groups))
    are_one = not are_named or 'LBFGS' in kinds and 'LBFGS' in old_kinds
    if are_one and names != old_names:
        raise CheckpointError(
            f'{name}: its groups hold {_short(names)}, and {_short(old_names)} in the checkpoint, '
            'where the state of each cannot be found by its name: LBFGS keeps one history of all '
            'its parameters together, and without named_parameters() they have no names. Keep the '
            f'groups as they were, {OR_NEW_RUN}'
        )
    state, fitted = {}, []
    for index, group in enumerate(groups):
        for old, options in zip(old_groups, before['groups']):
            old_numbers = dict(zip(old[key], old['params']))
            shared = {
                number: saved['state'][old_numbers[name]]
                for name, number in zip(group[key], group['params'])
                if old_numbers.get(name) in saved['state']
            }
            if shared and _takes_state(optimizer, index, options, now['groups'][index]):
                state |= shared
    for group, kind, settings in zip(groups, kinds, _settings(optimizer, now)):
        # What an optimizer counts in its groups goes on as in the old ones of its class, in turn.
        alike = [each for each, old_kind in zip(old_groups, old_kinds) if old_kind == kind]
        rank = kinds[: len(fitted)].count(kind)
        old = alike[min(rank, len(alike) - 1)] if alike else {}
        fitted.append({**group, **old, **settings, 'params': group['params']})
    n_fresh = sum(len(group['params']) for group in groups) - len(state) if saved['state'] else 0
    return {'state': state, 'param_groups': fitted}, n_fresh


def _takes_state(optimizer, index, before, now):
    """Whether a group with the options `now` goes on with the state that those `before` have made.

    A first step without a gradient shows what options put into the state: a buffer (amsgrad), or
    their own value (the lr of Rprop).
    """
    if before['type'] != now['type']:
        return False
    group, owner = optimizer.param_groups[index], owners(optimizer)[index]

    def first(options):
        probe = copy.copy(owner)  # without hooks
        parameter = torch.zeros_like(group['params'][0])
        parameter.grad = torch.zeros_like(parameter)
        probe.param_groups = [{**group, **options, 'params': [parameter]}]
        probe.state, probe.defaults = defaultdict(dict), {**owner.defaults, **options}
        probe.step()
        return to_plain(dict(probe.state[parameter]))

    with suppress(Exception):  # LBFGS, or one's own, may need more for a step
        found = differences(first(before), first(now))
        return all(after is ABSENT for _, _, after in found)
    return True


def _settings(optimizer, built):
    """For each group its options as built, less those that are no setting but progress.

    These are what an optimizer counts there (`k` of schedule-free ones): among its defaults, and no
    argument of its constructor. What schedulers add (such as initial_lr) is no default.
    """
    found = []
    for group, owner in zip(built['groups'], owners(optimizer)):
        constructors = [kind.__init__ for kind in type(owner).__mro__]
        arguments = {key for each in constructors for key in inspect.signature(each).parameters}
        counted = getattr(owner, 'defaults', {}).keys() - arguments | {'type'}
        found.append({key: group[key] for key in group if key not in counted})
    return copy.deepcopy(found)


# The run that goes on


class Resume:
    """How a trainer goes on: what its checkpoint holds, and by what a later resume will compare.

    state: the checkpoint, until the first epoch after it is over; empty in a new run.
    """

    def __init__(self, trainer: Any):
        self.trainer, self.state, self.config_then, self.data_then = trainer, {}, {}, {}
        self.as_built = {'optimizer': optimizer_as_built(trainer.optimizer)}
        self.data = None  # which data this is, looked up before it is trained on
        self.seed = torch.initial_seed()
        self.made_by = trainer._record.made_by(trainer.device)

    def take_over(self, path: Path) -> None:
        """Model, optimizer, epoch and best. The other parts follow when all of them exist."""
        trainer = self.trainer
        state = self.state = checkpoint.load(path, bare(trainer.model))
        self.config_then = state.get('config', {})
        self.data_then = identity.data_of(state, path)
        if 'as_built' not in state:
            _refuse_another_config(state, trainer.config)
        _refuse_another_arch(self.config_then, trainer.config)
        load_weights(trainer.model, state['state_dict'], path)
        if state.get('optimizer') and hasattr(trainer.optimizer, 'load_state_dict'):
            self._restore('optimizer', trainer.optimizer, state['optimizer'])
        trainer.epochs_done, trainer.step = state.get('epoch', 0), state.get('step', 0)
        trainer.start_epoch = trainer.epochs_done + 1
        rows = state.get('history') or []  # the first version kept them there
        with suppress(OSError, csv.Error):  # RunRecord.begin will say so
            rows = rows or read_table(path.parent / TABLE, trainer.epochs_done)
        trainer._record.rows = {row['epoch']: row for row in rows}
        trainer.history = [{'epoch': row['epoch'], **values_of(row)} for row in rows]
        if not self._reason_for_new_best():
            trainer.mnt_best = state.get('monitor_best', trainer.mnt_best)
        trainer._saver.go_on_from(state, path)
        place = {key: state.get(key) for key in checkpoint.COUNTS}
        dist.refuse_differences(place, str(path))
        made_by = changes(state.get('made_by', {}), self.made_by)
        changed = [line for line in made_by if line.partition(':')[0] in MATTERS]
        if changed:
            trainer.logger.warning(
                f'{"; ".join(changed)}. The run goes on; its numbers may differ in the last digits.'
            )
        self._say(
            f'{path} is loaded. Resume training from epoch {trainer.start_epoch}, after step '
            f'{trainer.step}'
        )

    def restore_parts(self) -> None:
        """What the checkpoint holds beside model and optimizer, and the place inside the epoch."""
        trainer, state = self.trainer, self.state
        parts = {'optimizer': trainer.optimizer, **stateful_of(trainer)}
        self.as_built = as_built(trainer, parts) | self.as_built
        if not state:
            return
        self._keep_seed()
        self._say_changes()
        samples, batch_size = state.get('samples', 0), trainer._batch_size()
        if samples:
            self._refuse_another_order()
        saved, done, fresh = self._saved(), [], []
        for name in sorted(parts, key=lambda name: not _is_optimizer(parts[name])):
            part = parts[name]
            if name in done or (samples and _is_reset(part)):  # see `restore_sums`
                continue
            if name in saved:
                self._restore(name, part, saved[name])
            elif name != 'optimizer' and part.state_dict():
                fresh.append(name)
            then, now = self._then.get(name), self.as_built.get(name)
            if isinstance(part, Average) and (name not in saved or changes(then, now)):
                part.count_from(trainer.epochs_done, samples // batch_size)
            if _is_optimizer(part):
                done += self._replay_if_changed(name, part, _steering(part, parts))
        if fresh:
            self._say(f'Without a state in the checkpoint, fresh from here on: {", ".join(fresh)}')
        for name in saved.keys() - parts.keys():
            self._say(f'The checkpoint holds a state for {name}, which this trainer does not have.')
        trainer.position, rest = divmod(samples, batch_size)
        if rest:
            raise ConfigError(
                f'The checkpoint stands inside epoch {trainer.start_epoch}, {samples} samples in, '
                f'which is no whole number of batches of {batch_size}: finish the epoch with the '
                'batch size it was begun with, or resume from the checkpoint of a whole epoch.'
            )
        self.restore_rng()

    def restore_sums(self) -> None:
        """Put back, inside an epoch, what its beginning has just reset: sums of values, rates."""
        saved, epoch = self._saved(), self.trainer._epoch
        epoch.rates = self.state.get('rates', epoch.rates)
        for name, part in stateful_of(self.trainer).items():
            if _is_reset(part) and name in saved:
                _load(name, part, saved[name])

    def restore_rng(self) -> None:
        saved = [self.state.get('rng'), *self.state.get('rng_of_others', [])]
        mine = dict(enumerate(saved)).get(dist.rank())
        if mine:
            set_rng_state(mine, self.trainer.device)

    def data_now(self) -> dict:
        """Which data this is; when a run goes on, a ConfigError for another than before."""
        trainer, loader = self.trainer, getattr(self.trainer, 'data_loader', None)
        if self.data is None and loader is not None:
            valid = getattr(trainer, 'valid_data_loader', None)
            is_part = getattr(loader, 'split', None) and 'valid_data_loader' not in trainer.config
            if is_part or getattr(valid, 'dataset', ...) is getattr(loader, 'dataset', None):
                valid = None  # of the training data
            self.data = dist.on_main(identity.identity_of, loader, valid)
            may_change = trainer.config.get('data_changed') == 'continue'
            for note in identity.refuse_changes(self.data_then, self.data, may_change):
                trainer.logger.warning(note)
        return self.data or {}

    # What the checkpoint says

    def _saved(self):
        """The states of its parts, by today's names."""
        return {NAMES.get(name, name): part for name, part in self.state.get('parts', {}).items()}

    @property
    def _then(self):
        """As built when it was written; as now, where an earlier version did not say."""
        return self.state.get('as_built') or self.as_built

    def _progress(self, name, schedule):
        """The state of a Schedule; from the run's own where the first version saved less."""
        state, saved = self.state, self._saved().get(name) or {}
        if 'n_epochs' in saved:
            return saved
        n_steps, n_epochs = state.get('step', 0), state.get('epoch', 0)
        planned = saved.get('planned' if n_steps < schedule.warmup_steps else 'put', [])
        return {'n_steps': n_steps, 'n_epochs': n_epochs, 'values': [], 'planned': planned}

    def _reason_for_new_best(self):
        """Why the best so far was measured otherwise than it would be now; '' when it was not."""
        # A script may have put the rule in: what it was then, its config does not say.
        before = settings_of(self.config_then.get('trainer')).monitor
        then = _judged_by(before, self.config_then)
        now = _judged_by(self.trainer.monitor, as_read(self.trainer.config))
        if then != now:
            return 'trainer.monitor, or what it names, is another'
        if now and self.data and identity.validation_changes(self.data_then, self.data):
            return 'Other data is validated on than before'
        return ''

    def _say(self, *notes):
        for note in notes:
            self.trainer.logger.info(note)

    # The parts

    def _keep_seed(self) -> None:
        """Where no script has chosen a seed, go on with the one that torch chose for the run."""
        trainer, seed = self.trainer, self.state.get('seed', AT_START)
        if trainer.seed != AT_START:
            return
        trainer.seed = seed
        for name in ('data_loader', 'valid_data_loader'):
            loader = getattr(trainer, name, None)
            if getattr(loader, 'seed', None) == AT_START:
                loader.seed = seed

    def _say_changes(self):
        """A line for each key of the config that is another one, and for what the loader was built
        with."""
        trainer = self.trainer
        self._say(*changes(self._then.get('pace', {}), self.as_built['pace']))
        self._say(*self._order_changes())
        configs = [_in_full(each) for each in (self.config_then, as_read(trainer.config))]
        for place, *values in differences(*configs) if self.config_then else ():
            if all(each is ABSENT or each in (None, {}) for each in values):
                continue  # a null means what leaving the key out means
            line = _line(place, *values)
            if place.startswith('arch.'):
                trainer.logger.warning(
                    f'{line}; weights and buffers are those of the checkpoint, whatever was built'
                )
            elif not SILENT.match(place):
                self._say(line)

    def _order_changes(self):
        seed, order = self.trainer.seed, self.as_built['order']
        before = {'seed': self.state.get('seed', seed), **self._then.get('order', {})}
        return changes(before, {'seed': seed, **order})

    def _refuse_another_order(self):
        """Inside an epoch, another order would give some samples twice, others never."""
        changed = self._order_changes()
        changed += identity.training_changes(self.data_then, self.data or {})
        if changed:
            raise ConfigError(
                f'The checkpoint stands inside epoch {self.trainer.start_epoch}, which these give '
                f'another order: {"; ".join(changed)}. Keep them, or go on from the checkpoint of '
                'a whole epoch'
            )

    def _restore(self, name, part, saved):
        """Load the state of a part, and say what is built otherwise."""
        now = self.as_built.get(name, {})
        then = self._then.get(name, now)
        if _is_optimizer(part):
            self._say(*load_optimizer(name, part, saved, then, now))
            return
        if name == 'monitor' and (reason := self._reason_for_new_best()):
            self._say(f'{reason}: a new best begins')
            part.begin()
            return
        changed = changes(then, now, name)
        if isinstance(part, Schedule):
            saved = self._progress(name, part)
            self._refuse_another_pace(part, saved['n_steps'])
        elif isinstance(part, Average):
            # The first version kept the weights with the counts.
            saved = {'model': self.state.get('tested'), **saved}
            if part.is_swa and then['ema_decay'] is not None:
                saved['n_averaged'] = 0  # of another kind
        elif name == 'criterion' and 'buffers' in now:
            # What a loss has learned goes on, and its buffers that are built otherwise stay.
            mine = part.state_dict()
            otherwise = {place for place, *_ in differences(then['buffers'], now['buffers'])}
            learned = {place: saved[place] for place in saved.keys() - otherwise}
            stay = {place: mine[place] for place in mine.keys() & otherwise}
            saved = learned | stay if then['type'] == now['type'] else mine
        self._say(*changed)
        _load(name, part, saved)

    def _replay_if_changed(self, name, optimizer, steering):
        """Where an optimizer or its schedule is built otherwise, step what is built now as often as
        the run has.

        steering: see `_steering`. Returns the names of the parts that are where the run is then.
        """
        then, now = self._then, self.as_built
        gone = [each for each in then if then[each].get('optimizer') == name]
        changed, own = [], changes(then.get(name, now[name]), now[name])
        for each in dict.fromkeys([*steering, *gone]):
            changed += changes(then.get(each), now.get(each), each)
        if not changed and not own:
            # It has stepped, in another process: torch would warn of a schedule begun early.
            optimizer._opt_called = True
            return []
        self._say(*(line for line in changed if not own or '.base_lrs' not in line))
        for group, settings in zip(optimizer.param_groups, _settings(optimizer, now[name])):
            group |= settings
        schedulers = [each for each in steering if isinstance(steering[each], LRScheduler)]
        if len(schedulers) > 1:
            raise ConfigError(
                f'{", ".join(schedulers)} all set the learning rates of {name}, in an order that '
                'is not known: they cannot be replayed with other settings. Keep those of the '
                f'checkpoint, {OR_NEW_RUN}'
            )
        for each in schedulers:
            self._replay(each, steering.pop(each), steering)
        return [*schedulers, *steering]

    def _replay(self, name, scheduler, schedules):
        """Step a scheduler that is as built now as often as the run has.

        schedules: its Schedule, by its name.
        """
        self._say(f'{name}: replayed to step {self.state.get("step", 0)}')
        for each, schedule in schedules.items():
            at, then = self._progress(each, schedule), self._then.get(each, {})
            is_known = then.get('metric') == schedule.metric
            if schedule.on_plateau and not (is_known and len(at['values']) == at['n_epochs']):
                raise ConfigError(
                    f'{name}: ReduceLROnPlateau follows {schedule.metric}, whose values in the '
                    'epochs so far are not in the checkpoint. Keep trainer.monitor and the '
                    f'scheduler as they were, {OR_NEW_RUN}'
                )
            self._refuse_another_pace(schedule, at['n_steps'])
            schedule.replay(at)
            if at['n_steps'] or at['n_epochs']:
                return
        # A loop of one's own steps it, past its schedule.
        saved = self._saved().get(name, {})
        is_between = saved.get('T_cur', 0) % 1  # step(2.5), of CosineAnnealingWarmRestarts
        on_plateau = isinstance(scheduler, ReduceLROnPlateau)
        if is_between or on_plateau or 'last_epoch' not in saved:
            raise ConfigError(
                f'{name}: the trainer steps it by values of its own, so it cannot be replayed with '
                f'other settings. Keep those of the checkpoint, {OR_NEW_RUN}'
            )
        replay(scheduler, [()] * (saved['last_epoch'] - scheduler.last_epoch))

    def _refuse_another_pace(self, schedule, n_steps):
        """Steps of another size, or more of them an epoch, are no place in a schedule of steps."""
        changed = changes(self._then.get('pace', {}), self.as_built['pace'])
        follows = schedule.each_step or n_steps < schedule.warmup_steps
        if not (n_steps and changed and follows):
            return
        if not identity.training_changes(self.data_then, self.data_now()):
            raise ConfigError(
                'The learning rate follows the steps (lr_scheduler.interval "step" or '
                f'warmup_steps), and these have changed: {"; ".join(changed)}. The step that the '
                'run has reached is then another place in the schedule: keep '
                f'data_loader.args.batch_size and trainer.len_epoch, {OR_NEW_RUN}'
            )


def _load(name, part, saved):
    try:
        load_part(part, saved)
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f'the state of {name} in the checkpoint does not fit: {error}') from (
            error
        )
