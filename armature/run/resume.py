"""What holds after a resume: settings from the config, progress from the checkpoint.

"As built" is what config and code made before the first step. It is saved beside the live state:

    optimizer, and each further one by its name   class, options of every group
    lr_scheduler, and each further one            class, state, the optimizer that it steers
    schedule                                      interval, warm-up, metric of a plateau
    weight_average                                its kind and settings
    criterion                                     class, buffers
    monitor                                       its rule
    pace                                          samples a batch, batches an epoch
    order                                         how the loader goes through its samples

Where as built then and now are equal, the live state is loaded, whoever moved it. Where they
differ, what is built now stands, and the schedule is replayed to where the run is, which goes on as
one that had the new settings from the start. What cannot be replayed is refused. docs/changes.md
has the table of what may change between stop and resume.
"""

import copy
import inspect
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from armature.checkpoint import files as checkpoint
from armature.checkpoint.files import to_plain
from armature.checkpoint.weights import bare, load_weights
from armature.compare import ABSENT, differences
from armature.data import identity
from armature.errors import CheckpointError, ConfigError
from armature.processes import dist
from armature.record import TABLE, read_table, values_of
from armature.run.folder import differences as changes_of_machine
from armature.seed import AT_START, set_rng_state
from armature.step.average import Average
from armature.step.optimizers import SeveralOptimizers, owners
from armature.step.schedule import Schedule, replay

DERIVED = ('initial_lr', 'base_lrs', '_last_lr', '_schedule_phases')  # from other options
MISFITS = (ValueError, KeyError, RuntimeError, TypeError)  # what load_state_dict raises
# Attributes, or names in earlier checkpoints, and the names that their states are saved under.
NAMES = {
    '_monitor': 'monitor',
    'stepper.schedule': 'schedule',
    'stepper.average': 'weight_average',
}
LENGTHS = ('T_max', 'total_steps', 'total_iters')  # that a config may leave to the run ("auto")
OR_NEW_RUN = 'or start a new run from the weights alone ("init_from")'


# Which parts have state


def parts_of(trainer: Any) -> dict[str, Any]:
    """Every object with state that is an attribute of `trainer`, by its name.

    Also an entry of a list, tuple or dict there. The model and the optimizer are left out:
    checkpoints have keys of their own for them.
    """
    found = {}
    wrapped = getattr(trainer.model, 'module', None)
    # history: a row of numbers for each epoch, which looking through would take longer each time
    known = trainer.model, wrapped, trainer.optimizer, getattr(trainer, 'history', None)
    seen = set(map(id, known))

    def visit(name, value):
        if id(value) in seen:
            return
        if hasattr(value, 'state_dict') and hasattr(value, 'load_state_dict'):
            seen.add(id(value))
            found[NAMES.get(name, name)] = value
        elif isinstance(value, dict):
            for key, each in value.items():
                visit(f'{name}.{key}', each)
        elif isinstance(value, (list, tuple)):
            for index, each in enumerate(value):
                visit(f'{name}.{index}', each)

    for name, value in vars(trainer).items():
        visit(name, value)
    for name, value in list(found.items()):  # what a stepper holds
        visit(f'{name}.schedule', getattr(value, 'schedule', None))
        visit(f'{name}.average', getattr(value, 'average', None))
    return found


def optimizers_of(trainer: Any) -> dict[str, Any]:
    parts = {'optimizer': trainer.optimizer, **parts_of(trainer)}
    return {name: part for name, part in parts.items() if hasattr(part, 'param_groups')}


def tested_weights_of(trainer: Any) -> dict | None:
    """What a checkpoint has as "tested": the averaged weights, where the live ones are not it."""
    averages = [part for part in parts_of(trainer).values() if isinstance(part, Average)]
    return next((each.tested() for each in averages if each.is_of(trainer.model)), None)


def _steers(part, optimizer):
    return isinstance(part, LRScheduler) and part.optimizer is optimizer


# As built


def optimizer_as_built(optimizer: Any) -> dict:
    """Class and options of an optimizer that no step, warm-up or checkpoint has changed.

    Of several that are one to the run, the class for each group.
    """
    groups = [
        {key: value for key, value in group.items() if key != 'params'}
        for group in getattr(optimizer, 'param_groups', [])
    ]
    is_one = not isinstance(optimizer, SeveralOptimizers)
    names = [type(each).__name__ for each in owners(optimizer)]
    return {
        'type': type(optimizer).__name__ if is_one else names,
        'groups': to_plain(copy.deepcopy(groups)),
    }


def _types(built):
    """The class that steps each group of an optimizer, as built."""
    found = built['type']
    return found if isinstance(found, list) else [found] * max(1, len(built['groups']))


def as_built(trainer: Any) -> dict[str, dict]:
    """As built, of all parts but the trainer's first optimizer; before the first step."""
    parts, optimizers = parts_of(trainer), optimizers_of(trainer)
    loader = getattr(trainer, 'data_loader', None)
    built = {
        'monitor': {'rule': trainer.monitor},
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
    for name, part in parts.items():
        if name in optimizers:
            built[name] = optimizer_as_built(part)
        elif isinstance(part, LRScheduler):
            steered = [each for each, optimizer in optimizers.items() if _steers(part, optimizer)]
            built[name] = {
                'type': type(part).__name__,
                'optimizer': next(iter(steered), ''),
                'state': to_plain(copy.deepcopy(part.state_dict())),
            }
        elif isinstance(part, (Schedule, Average)):
            built[name] = part.as_built()
        elif name == 'criterion' and isinstance(part, nn.Module):
            buffers = {name: buffer.detach().cpu().clone() for name, buffer in part.named_buffers()}
            built[name] = {'type': type(part).__name__, 'buffers': buffers}
    for schedule in parts.values():  # a warm-up has begun when the schedule was made
        for name, optimizer in optimizers.items() if isinstance(schedule, Schedule) else ():
            if name in built and _steers(schedule.scheduler, optimizer):
                for group, rate in zip(built[name]['groups'], schedule.rates_as_built):
                    group['lr'] = copy.deepcopy(rate)
    return built


def changes(then: Any, now: Any, name: str = '') -> list[str]:
    """A line for each value of a part that is built otherwise than it was; [] when it is the same.

    An option that only one of the two has counts as equal: versions of torch add options.
    """
    return [
        f'{place}: {_short(before)} in the checkpoint, {_short(after)} from here on'
        for place, before, after in differences(then, now, name)
        if before is not ABSENT and after is not ABSENT
    ]


def _short(value):
    text = repr(value.tolist() if isinstance(value, torch.Tensor) else value)
    return text if len(text) < 60 else f'{text[:57]}...'


def built_then(state: dict, now: dict, config: Any) -> dict:
    """As built when a checkpoint was written.

    Those of the first version and of the old template do not say. There it counts as built as it is
    now, and a section that the config has otherwise is refused.
    """
    if 'as_built' in state:
        return state['as_built']
    then, before, parts = dict(now), state.get('config') or {}, state.get('parts')
    for section in ('optimizer',) if parts is None else ('optimizer', 'lr_scheduler', 'loss'):
        if before and before.get(section) != config.get(section):
            raise ConfigError(
                f'{section}: the config has another one than the checkpoint, which is of the first '
                'version or the old template and does not say what was built from it: keep it, '
                f'{OR_NEW_RUN}'
            )
    if rule := (before.get('trainer') or {}).get('monitor'):
        then['monitor'] = {'rule': rule}
    for name, built in now.items():
        saved = (parts or {}).get(name)
        if 'state' in built and isinstance(saved, dict):
            lengths = {key: saved[key] for key in LENGTHS if key in saved}
            then[name] = {**built, 'state': {**built['state'], **lengths}}
    return then


# Optimizers


def load_optimizer(name: str, optimizer: Any, saved: dict, then: dict, now: dict) -> list[str]:
    """Load an optimizer: the options as built now if they have changed, and its state by name.

    then, now: as built, by the parts' names. Returns what the user should know.
    """
    before = then.get(name, now[name])
    if not {*_types(before)} & {*_types(now[name])}:
        return [f'{name}: {now[name]["type"]} instead of {before["type"]}: it starts fresh.']
    notes = changes(before, now[name], name)
    if notes:
        saved, n_fresh = _renewed(name, optimizer, saved, before, now[name])
        notes += [f'{name}: {n_fresh} parameters have no state yet'] * bool(n_fresh)
    _load(name, optimizer, _sharded(saved, optimizer))
    return notes


def _renewed(name, optimizer, saved, before, now):
    """The saved state with the groups and options as built now.

    Returns it with the number of parameters that have no state in it.
    """
    groups, old_groups = optimizer.state_dict()['param_groups'], saved['param_groups']
    is_named = all('param_names' in group for group in (*groups, *old_groups))
    sizes, old_sizes = ([len(each['params']) for each in both] for both in (groups, old_groups))
    if not is_named and sizes != old_sizes:
        raise CheckpointError(
            f'{name}: its groups have {sizes} parameters, and {old_sizes} in the checkpoint, and '
            f'not both name them. Keep the groups as they were, {OR_NEW_RUN}'
        )
    numbers, old_numbers = (_numbers(each, is_named) for each in (groups, old_groups))
    if isinstance(optimizer, torch.optim.LBFGS) and list(numbers) != list(old_numbers):
        raise CheckpointError(
            f'{name}: LBFGS keeps one history of all its parameters together, and these are others '
            f'than in the checkpoint. Keep them, {OR_NEW_RUN}'
        )
    types, old_types = _types(now), _types(before)
    type_of, old_type_of = (
        {number: kind for group, kind in zip(*both) for number in group['params']}
        for both in ((groups, types), (old_groups, old_types))
    )
    state = {
        numbers[each]: saved['state'][number]
        for each, number in old_numbers.items()
        if number in saved['state'] and type_of.get(numbers.get(each)) == old_type_of[number]
    }
    renewed = []
    for index, (group, owner) in enumerate(zip(groups, owners(optimizer))):
        # What the optimizer counts in its groups is progress, as in each of them.
        like = [old for old, kind in zip(old_groups, old_types) if kind == types[index]]
        old_group = like[min(types[:index].count(types[index]), len(like) - 1)] if like else {}
        counted = {
            key: value
            for key, value in old_group.items()
            if key not in ('params', 'param_names') and is_counted(key, owner, before)
        }
        renewed.append({**group, **copy.deepcopy(now['groups'][index]), **counted})
    n_fresh = len(numbers) - len(state) if saved['state'] else 0
    return {'state': state, 'param_groups': renewed}, n_fresh


def _numbers(groups, is_named=False):
    """{name of a parameter, or its place: its number} in an optimizer's state."""
    numbers = [number for group in groups for number in group['params']]
    if not is_named:
        return dict(enumerate(numbers))
    return dict(zip((name for group in groups for name in group['param_names']), numbers))


def is_counted(key: str, optimizer: Any, built: dict) -> bool:
    """Whether an option of a group is no setting but progress, as `k` of schedule-free optimizers.

    That is no argument of the constructor, and either one of the optimizer's own defaults or not
    there as built. (What schedulers add when they are built, such as initial_lr, is neither.)
    """
    constructors = [kind.__init__ for kind in type(optimizer).__mro__[:-1]]
    if any(key in inspect.signature(each).parameters for each in constructors):
        return False
    is_new = not any(key in group for group in built['groups'])
    return is_new or key in getattr(optimizer, 'defaults', {})


def _sharded(saved, optimizer):
    """An optimizer's state, whole in a checkpoint, in parts where the parameters are."""
    mine = [parameter for group in optimizer.param_groups for parameter in group['params']]
    like = dict(zip(_numbers(saved['param_groups']).values(), mine))
    state = {
        number: {name: dist.sharded_like(each, like.get(number)) for name, each in values.items()}
        for number, values in saved['state'].items()
    }
    return {**saved, 'state': state}


# The run that goes on


class Saved(NamedTuple):
    """A checkpoint, the states of its parts by today's names, and what was and is built."""

    state: dict
    parts: dict
    then: dict
    now: dict

    def progress_of(self, name: str, schedule: Schedule) -> dict:
        """The state of a Schedule; from the run's own where the first version saved less."""
        saved, state = self.parts.get(name) or {}, self.state
        if 'n_epochs' in saved:
            return saved
        n_steps, n_epochs = state.get('step', 0), state.get('epoch', 0)
        history = state.get('history', []) if schedule.on_plateau else []
        values = [log[schedule.metric] for log in history if schedule.metric in log]
        planned = saved.get('planned' if n_steps + 1 < schedule.warmup_steps else 'put', [])
        return {'n_steps': n_steps, 'n_epochs': n_epochs, 'values': values, 'planned': planned}


class Resume:
    """How a trainer goes on: what its checkpoint holds, and by what a later resume will compare.

    state: the checkpoint, until the first epoch after it is over; empty in a new run.
    """

    def __init__(self, trainer: Any):
        self.trainer, self.state = trainer, {}
        self.as_built = {
            'optimizer': optimizer_as_built(trainer.optimizer),
            'monitor': {'rule': trainer.monitor},
        }
        self.data = None  # which data this is, looked up before it is trained on
        self.made_by = trainer._folder.made_by(trainer.seed, trainer.device)
        self.rows = []  # of metrics.csv, of the epochs that are done

    def is_over(self) -> None:
        self.state = {}

    def take_over(self, path: Path) -> None:
        """Model, optimizer, epoch and best. The other parts follow when all of them exist."""
        trainer = self.trainer
        state = self.state = checkpoint.load(path, bare(trainer.model), trainer.optimizer)
        load_weights(trainer.model, state['state_dict'], path)
        then, now = built_then(state, self.as_built, trainer.config), self.as_built
        if state.get('optimizer') and hasattr(trainer.optimizer, 'load_state_dict'):
            saved = state['optimizer']
            self._tell(load_optimizer('optimizer', trainer.optimizer, saved, then, now))
        trainer.epochs_done, trainer.step = state.get('epoch', 0), state.get('step', 0)
        trainer.start_epoch = trainer.epochs_done + 1
        table = path.parent / TABLE  # the first version kept it in the state
        self.rows = state.get('history') or read_table(table, trainer.epochs_done)
        trainer.history = [{'epoch': row.get('epoch'), **values_of(row)} for row in self.rows]
        if trainer.mnt_mode != 'off' and then.get('monitor') == now['monitor']:
            trainer.mnt_best = state.get('monitor_best', trainer.mnt_best)
        trainer._saver.go_on_from(state, path)
        samples = state.get('samples', 0)
        place = {'epoch': trainer.epochs_done, 'step': trainer.step, 'samples': samples}
        dist.refuse_differences(place, str(path))
        if changed := changes_of_machine(state.get('made_by', {}), self.made_by):
            trainer.logger.warning(
                f'Since the checkpoint was written, these have changed: {changed}. '
                'The run goes on; its numbers may differ in the last digits.'
            )
        trainer.logger.info(
            f'{path} is loaded. Resume training from epoch {trainer.start_epoch}'
            + (f', after step {trainer.step}' if samples else '')
        )

    def _tell(self, notes):
        """Say what is new; what follows from other options is left out."""
        for note in notes:
            if not set(note.split(': ')[0].split('.')) & set(DERIVED):
                self.trainer.logger.info(note)

    def restore_parts(self) -> None:
        """What the checkpoint holds beside model and optimizer, and the place inside the epoch."""
        trainer, state = self.trainer, self.state
        self.as_built |= as_built(trainer)
        if not state:
            return
        self._keep_seed()
        if 'parts' in state:
            saved = self._saved()
            self._refuse_another_order(saved)
            self._tell(self._restored(saved))
        else:
            trainer.logger.info(
                'The checkpoint is of the old template, which saves no scheduler and no patience: '
                'both start fresh.'
            )
        samples, batch_size = state.get('samples', 0), trainer._batch_size()
        trainer.position, rest = divmod(samples, batch_size)
        if rest:
            raise ConfigError(
                f'The checkpoint stands inside epoch {trainer.start_epoch}, {samples} samples in, '
                f'which is no whole number of batches of {batch_size}: finish the epoch with the '
                'batch size it was begun with, or resume from the checkpoint of a whole epoch.'
            )
        self.restore_rng()

    def _keep_seed(self) -> None:
        """Where no script has chosen a seed, go on with the one that torch chose for the run."""
        trainer, seed = self.trainer, self.state.get('seed')
        if seed is None or trainer.seed != AT_START:
            return
        trainer.seed = self.made_by['seed'] = seed
        for name in ('data_loader', 'valid_data_loader'):
            loader = getattr(trainer, name, None)
            if hasattr(loader, 'reseed') and loader.seed == AT_START:
                loader.reseed(seed)

    def _saved(self):
        parts = {NAMES.get(name, name): part for name, part in self.state['parts'].items()}
        then = built_then(self.state, self.as_built, self.trainer.config)
        return Saved(self.state, parts, then, self.as_built)

    def restore_sums(self) -> None:
        """Put back, inside an epoch, what its beginning has just reset: sums of values."""
        saved = self._saved().parts
        for name, part in parts_of(self.trainer).items():
            if hasattr(part, 'reset') and name in saved:
                _load(name, part, saved[name], is_inside=True)

    def restore_rng(self) -> None:
        if 'rng' in self.state:
            saved = [self.state['rng'], *self.state.get('rng_of_others', [])]
            if dist.rank() < len(saved):
                set_rng_state(saved[dist.rank()], self.trainer.device)

    def data_now(self) -> dict:
        """Which data is trained on; when a run goes on, a ConfigError for another than before."""
        trainer, loader = self.trainer, getattr(self.trainer, 'data_loader', None)
        if self.data is None and loader is not None:
            self.data = dist.on_main(identity.identity_of, loader)
            path = trainer.config.resume
            before = identity.data_of(self.state, Path(path)) if self.state else {}
            may_change = trainer.config.get('data_changed') == 'continue'
            for note in identity.refuse_changes(before, self.data, may_change):
                trainer.logger.warning(note)
        return self.data or {}

    def _refuse_another_order(self, saved):
        """Inside an epoch, another seed or order would give some samples twice, others never."""
        trainer = self.trainer
        before = {'seed': saved.state.get('seed', trainer.seed), **saved.then.get('order', {})}
        changed = changes(before, {'seed': trainer.seed, **saved.now['order']}, 'data_loader')
        if changed and saved.state.get('samples'):
            raise ConfigError(
                f'The checkpoint stands inside epoch {trainer.start_epoch}, which these give '
                f'another order: {"; ".join(changed)}. Keep them, or go on from the checkpoint of '
                'a whole epoch'
            )

    def _restored(self, saved):
        """Put back all parts but the first optimizer, once; what the user should know.

        Inside an epoch, what the epoch's beginning resets is left to `restore_sums`.
        """
        parts, optimizers = parts_of(self.trainer), optimizers_of(self.trainer)
        is_inside, notes = saved.state.get('samples', 0) > 0, []
        loaded = parts.keys() & optimizers.keys() & saved.parts.keys()
        for name in loaded:
            notes += load_optimizer(name, parts[name], saved.parts[name], saved.then, saved.now)
        for name, optimizer in optimizers.items():
            notes += self._restore_rates(name, optimizer, saved)
        for name, part in parts.items():
            if name in loaded or isinstance(part, LRScheduler):
                continue
            if isinstance(part, Schedule):
                if part.scheduler is None:
                    part.load_state_dict(saved.progress_of(name, part))
                continue
            changed = changes(saved.then.get(name, {}), saved.now.get(name, {}), name)
            state = saved.parts.get(name)
            if state is None:
                if part.state_dict():
                    notes.append(f'The checkpoint holds no state for {name}: it starts fresh.')
            elif name == 'monitor' and changed:
                notes += [f'{line}: a new best begins' for line in changed]
            elif isinstance(part, Average):
                _refuse_another_average(part, state, changed)
                # The first version kept the weights with the counts.
                _load(name, part, {'model': saved.state.get('tested'), **state})
                notes += changed
            elif name == 'criterion' and changed:
                notes += changed + _restore_loss(part, state, saved.then[name], saved.now[name])
            elif not (is_inside and hasattr(part, 'reset')):
                notes += _load(name, part, state, is_inside)
        return notes + [
            f'The checkpoint holds a state for {name}, which this trainer does not have.'
            for name in saved.parts.keys() - parts.keys() - {'lr_scheduler'}
        ]

    def _restore_rates(self, name, optimizer, saved):
        """Put the schedulers of one optimizer, and the rates that they set, to where the run is.

        The live ones, when all of these are built as they were; else what is built now, stepped as
        often as the run has.
        """
        parts, then, now = parts_of(self.trainer), saved.then, saved.now
        schedulers = {each: part for each, part in parts.items() if _steers(part, optimizer)}
        schedules = {
            each: part
            for each, part in parts.items()
            if isinstance(part, Schedule) and _steers(part.scheduler, optimizer)
        }
        for each, schedule in schedules.items():
            self._refuse_another_pace(each, schedule, saved)
        notes = [
            f'{each}: not there any more'
            for each, built in then.items()
            if built.get('optimizer') == name and each not in schedulers
        ]
        for each in (*schedulers, *schedules):
            notes += changes(then[each], now[each], each) if each in then else [f'{each}: new']
        if not notes and not changes(then.get(name, {}), now[name], name):
            for each, scheduler in schedulers.items():
                _load(each, scheduler, saved.parts[each])
                # It has stepped, in another process: torch would warn of a schedule begun early.
                optimizer._opt_called = True
            for each, schedule in schedules.items():
                schedule.load_state_dict(saved.progress_of(each, schedule))
            return []

        why = f'it cannot be replayed with {"; ".join(notes or ["other options"])}'
        each_group = zip(optimizer.param_groups, now[name]['groups'], owners(optimizer))
        for group, built, owner in each_group:
            group |= {
                key: copy.deepcopy(value)
                for key, value in built.items()
                if not is_counted(key, owner, now[name])
            }
        if len(schedulers) > 1:
            raise ConfigError(
                f'{", ".join(schedulers)} all set the learning rates of {name}, in an order that '
                f'is not known: {why}. Keep the settings of the checkpoint, {OR_NEW_RUN}'
            )
        for each, scheduler in schedulers.items():
            _replay(each, scheduler, schedules, saved, why)
            notes.append(f'{each}: replayed to step {saved.state.get("step", 0)}')
        return notes

    def _refuse_another_pace(self, name, schedule, saved):
        """Steps of another size, or more of them an epoch, are no place in a schedule of steps."""
        progress, pace = saved.progress_of(name, schedule), saved.now['pace']
        n_steps = progress['n_steps']
        n_steps_of_epochs = progress['n_epochs'] * (pace['len_epoch'] or 1)
        is_warm = min(n_steps, n_steps_of_epochs) >= schedule.warmup_steps
        changed = changes(saved.then.get('pace', {}), pace)
        may_change = self.trainer.config.get('data_changed') == 'continue'
        if n_steps and changed and not may_change and (schedule.each_step or not is_warm):
            raise ConfigError(
                f'The learning rate follows the steps (lr_scheduler.interval "step" or '
                f'warmup_steps), and these have changed: {"; ".join(changed)}. The step that the '
                'run has reached is then another place in the schedule: keep '
                f'data_loader.args.batch_size and trainer.len_epoch, {OR_NEW_RUN}'
            )


def _replay(name, scheduler, schedules, saved, why):
    """Step a scheduler that is as built now as often as the run has."""
    stands = False
    for each, schedule in schedules.items():
        at = saved.progress_of(each, schedule)
        is_told = saved.then.get(each, {}).get('metric') == schedule.metric
        if schedule.on_plateau and not (is_told and len(at['values']) == at['n_epochs']):
            raise ConfigError(
                f'{name}: ReduceLROnPlateau follows {schedule.metric}, whose values in the epochs '
                'so far are not in the checkpoint. Keep trainer.monitor and the scheduler as they '
                f'were, {OR_NEW_RUN}'
            )
        schedule.replay(at['n_steps'], at['n_epochs'], at['values'])
        stands = stands or at['n_steps'] or at['n_epochs']
    if stands:
        return
    # A loop of one's own steps it, past its schedule.
    n_calls = _n_calls(saved.parts.get(name, {})) - _n_calls(saved.now[name]['state'])
    if math.isnan(n_calls) or isinstance(scheduler, ReduceLROnPlateau):
        raise ConfigError(
            f'{name}: {why}, because the trainer steps it by values of its own. Keep the settings '
            f'of the checkpoint, {OR_NEW_RUN}'
        )
    replay(scheduler, [None] * int(n_calls))


def _load(name, part, saved, is_inside=False):
    try:
        part.load_state_dict(saved)
    except ConfigError as error:
        if not is_inside:
            return [f'{name} starts fresh: {error}.']
        raise CheckpointError(f'{name}: {error}. Or take a checkpoint of a whole epoch') from error
    except MISFITS as error:
        raise CheckpointError(f'the state of {name} in the checkpoint does not fit: {error}') from (
            error
        )
    return []


def _refuse_another_average(average, saved, changed):
    if changed and saved['n_averaged'] and (average.is_swa or average.ema_decay is None):
        raise ConfigError(
            f'{"; ".join(changed)}. The weights of steps that are behind us cannot be averaged '
            f'anew: keep trainer.swa_start, {OR_NEW_RUN}'
        )


def _restore_loss(criterion, saved, before, now):
    """What the loss has learned from the checkpoint; buffers that are built otherwise stay."""
    if before['type'] != now['type']:
        return ['criterion: it starts fresh']
    places = (place for place, *_ in differences(before['buffers'], now['buffers']))
    mine = criterion.state_dict()
    kept = {name: mine[name] for name in places if name in mine}
    return _load('criterion', criterion, saved | kept)


def _n_calls(state):
    """How often a scheduler has been stepped, by its state; nan when it does not say."""
    if 'last_epoch' not in state and state.get('_schedulers'):  # chained ones step together
        return _n_calls(state['_schedulers'][0])
    is_between = state.get('T_cur', 0) % 1  # step(2.5), of CosineAnnealingWarmRestarts
    return math.nan if is_between else state.get('last_epoch', math.nan)
