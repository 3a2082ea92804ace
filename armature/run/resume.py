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
one that had the new settings from the start. What cannot be replayed is refused. docs/resume.md
has the table of what may change between stop and resume.
"""

import copy
import inspect
import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from armature.checkpoint.files import to_plain
from armature.compare import first_difference
from armature.errors import CheckpointError, ConfigError
from armature.processes import dist
from armature.step.average import Average
from armature.step.schedule import Schedule, replay

DERIVED = ('initial_lr', 'base_lrs', '_last_lr', '_schedule_phases')  # from other options
MISFITS = (ValueError, KeyError, RuntimeError, TypeError)  # what load_state_dict raises
# Attributes, or names in earlier checkpoints, and the names that their states are saved under.
NAMES = {
    '_monitor': 'monitor',
    'stepper.schedule': 'schedule',
    'stepper.average': 'weight_average',
}
SECTIONS = {'schedule': 'lr_scheduler', 'criterion': 'loss'}  # part: its section of the config
LENGTHS = ('T_max', 'total_steps', 'total_iters')  # that a config may leave to the run ("auto")

# Which parts have state


def parts_of(trainer: Any) -> dict[str, Any]:
    """Every object with state that is an attribute of `trainer`, by its name.

    Also an entry of a list, tuple or dict there. The model and the optimizer are left out:
    checkpoints have keys of their own for them.
    """
    found = {}
    seen = {id(trainer.model), id(getattr(trainer.model, 'module', None)), id(trainer.optimizer)}

    def visit(name: str, value: Any) -> None:
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


def is_optimizer(part: Any) -> bool:
    return hasattr(part, 'param_groups')


# As built


def optimizer_as_built(optimizer: Any) -> dict:
    """Class and options of an optimizer that no step, warm-up or checkpoint has changed."""
    groups = [
        {key: value for key, value in group.items() if key != 'params'}
        for group in getattr(optimizer, 'param_groups', [])
    ]
    return {'type': type(optimizer).__name__, 'groups': to_plain(copy.deepcopy(groups))}


def as_built(trainer: Any) -> dict[str, dict]:
    """As built, of all parts but the trainer's first optimizer; before the first step."""
    parts = {'optimizer': trainer.optimizer, **parts_of(trainer)}
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
        if is_optimizer(part) and name != 'optimizer':
            built[name] = optimizer_as_built(part)
            for schedule in parts.values():  # a warm-up has begun when the schedule was made
                if isinstance(schedule, Schedule) and _steers(schedule.scheduler, part):
                    for group, rate in zip(built[name]['groups'], schedule.rates_as_built):
                        group['lr'] = copy.deepcopy(rate)
        elif isinstance(part, LRScheduler):
            steered = [each for each in parts if _steers(part, parts[each])]
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
    return built


def _steers(part: Any, optimizer: Any) -> bool:
    return isinstance(part, LRScheduler) and part.optimizer is optimizer


def changes(then: Any, now: Any, name: str) -> list[str]:
    """A line for each value of a part that is built otherwise than it was; [] when it is the same.

    An option that only one of the two has counts as equal: versions of torch add options.
    """
    if isinstance(then, dict) and all(isinstance(key, str) for key in then):
        return [
            line
            for key in then
            if key in now
            for line in changes(then[key], now[key], f'{name}.{key}')
        ]
    are_lists = isinstance(then, (list, tuple)) and isinstance(now, (list, tuple))
    if are_lists and len(then) == len(now):
        pairs = enumerate(zip(then, now))
        return [line for index, pair in pairs for line in changes(*pair, f'{name}.{index}')]
    if first_difference(then, now) == '':
        return []
    return [f'{name}: {_short(then)} in the checkpoint, {_short(now)} from here on']


def _short(value: Any) -> str:
    text = repr(value.tolist() if isinstance(value, torch.Tensor) else value)
    return text if len(text) < 60 else f'{text[:57]}...'


def then_and_now(state: dict, now: dict, config: Any) -> tuple[dict, dict]:
    """(as built then, as built now), for a checkpoint and a trainer.

    A checkpoint of the first version or of the old template does not say what was built: it counts
    as built as it is now, but for the sections that its config has otherwise.
    """
    if 'as_built' in state:
        return state['as_built'], now
    old_config, saved = state.get('config') or {}, state.get('parts') or {}
    then, now = dict(now), dict(now)
    for name in now:
        section = SECTIONS.get(name, name)
        before = old_config.get(section)
        if name == 'monitor':
            rule = (old_config.get('trainer') or {}).get('monitor')
            then[name] = now[name] if rule is None else {'rule': rule}
        elif before is not None and before != config.get(section):
            before = before if isinstance(before, dict) else {'type': before}
            then[name] = {**now[name], **before}
            now[name] = {**now[name], 'args': (config.get(section) or {}).get('args')}
        elif isinstance(saved.get(name), dict) and 'state' in now[name]:
            lengths = {key: saved[name][key] for key in LENGTHS if key in saved[name]}
            then[name] = {**now[name], 'state': {**now[name]['state'], **lengths}}
    for name in saved:
        if SECTIONS.get(name, name) == 'lr_scheduler' and name not in now:
            then[name] = {'optimizer': 'optimizer'}
    return then, now


# Restoring


def load_optimizer(name: str, optimizer: Any, saved: dict, then: dict, now: dict) -> list[str]:
    """Load an optimizer: the options as built now if they have changed, and its state by name.

    then, now: as built, by the parts' names. Returns what the user should know.
    """
    before = then.get(name, now[name])
    if before['type'] != now[name]['type']:
        return [f'{name}: {now[name]["type"]} instead of {before["type"]}: it starts fresh.']
    notes = changes(before, now[name], name)
    if notes:
        saved, n_fresh = _renewed(name, optimizer, saved, before, now[name])
        notes += [f'{name}: {n_fresh} parameters have no state yet'] * bool(n_fresh)
    try:
        optimizer.load_state_dict(_sharded(saved, optimizer))
    except MISFITS as error:
        raise CheckpointError(
            f'the state of {name} in the checkpoint does not fit: {error}'
        ) from error
    return notes


def _renewed(name: str, optimizer: Any, saved: dict, before: dict, now: dict) -> tuple[dict, int]:
    """The saved state with the groups and options as built now.

    Returns it with the number of parameters that have no state in it.
    """
    mine = optimizer.state_dict()
    numbers, old_numbers = _numbers(mine), _numbers(saved)
    if numbers is None or old_numbers is None:  # one was made without names: then by place
        sizes, old_sizes = (
            [len(group['params']) for group in each['param_groups']] for each in (mine, saved)
        )
        if sizes != old_sizes:
            raise CheckpointError(
                f'{name}: its groups have {sizes} parameters, and {old_sizes} in the checkpoint, '
                'which does not name them. Keep the groups as they were, or start a new run from '
                'the weights alone ("init_from")'
            )
        numbers, old_numbers = (
            dict(enumerate(number for group in each['param_groups'] for number in group['params']))
            for each in (mine, saved)
        )
    if isinstance(optimizer, torch.optim.LBFGS) and list(numbers) != list(old_numbers):
        raise CheckpointError(
            f'{name}: LBFGS keeps one history of all its parameters together, and these are others '
            'than in the checkpoint. Keep them, or start a new run from the weights alone '
            '("init_from")'
        )
    state = {
        numbers[each]: saved['state'][number]
        for each, number in old_numbers.items()
        if each in numbers and number in saved['state']
    }
    groups = []
    for index, group in enumerate(mine['param_groups']):
        # What the optimizer counts in its groups is progress, as in each of them.
        old_group = saved['param_groups'][min(index, len(saved['param_groups']) - 1)]
        counted = {
            key: value
            for key, value in old_group.items()
            if key not in ('params', 'param_names') and is_counted(key, optimizer, before)
        }
        groups.append({**group, **copy.deepcopy(now['groups'][index]), **counted})
    n_fresh = len(numbers) - len(state) if saved['state'] else 0
    return {'state': state, 'param_groups': groups}, n_fresh


def _numbers(state: dict) -> dict[str, int] | None:
    """{name of a parameter: its number} of an optimizer's state, None when it has no names."""
    if not all('param_names' in group for group in state['param_groups']):
        return None
    return {
        name: number
        for group in state['param_groups']
        for name, number in zip(group['param_names'], group['params'])
    }


def is_counted(key: str, optimizer: Any, built: dict) -> bool:
    """Whether an option of a group is no setting but progress, as `k` of schedule-free optimizers.

    That is no argument of the constructor, and either one of the optimizer's own defaults or not
    there as built. (What schedulers add when they are built, such as initial_lr, is neither.)
    """
    constructors = [kind.__init__ for kind in type(optimizer).__mro__[:-1]]
    if any(key in inspect.signature(each).parameters for each in constructors):
        return False
    return key in getattr(optimizer, 'defaults', {}) or not any(
        key in group for group in built['groups']
    )


def _sharded(saved: dict, optimizer: torch.optim.Optimizer) -> dict:
    """An optimizer's state, whole in a checkpoint, in parts where the parameters are."""
    numbers = [number for group in saved['param_groups'] for number in group['params']]
    mine = [parameter for group in optimizer.param_groups for parameter in group['params']]
    parameters = dict(zip(numbers, mine))
    state = {
        number: {
            name: dist.sharded_like(value, parameters.get(number)) for name, value in values.items()
        }
        for number, values in saved['state'].items()
    }
    return {**saved, 'state': state}


def told(lines: list[str]) -> list[str]:
    """The lines that say something new: what follows from other options is left out."""
    return [line for line in lines if not set(line.split(': ')[0].split('.')) & set(DERIVED)]


def restore_parts(trainer: Any, state: dict, then: dict, now: dict) -> list[str]:
    """Put back what a checkpoint holds beside the model and the first optimizer, once.

    then, now: as built. Inside an epoch, what the epoch's beginning resets is left to
    `restore_sums`. Returns what the user should know.
    """
    parts, saved = parts_of(trainer), saved_parts(state)
    is_inside = state.get('samples', 0) > 0
    optimizers = {name: part for name, part in parts.items() if is_optimizer(part)}
    notes = []
    for name, optimizer in optimizers.items():
        if name in saved:
            notes += load_optimizer(name, optimizer, saved[name], then, now)
    for name, optimizer in {'optimizer': trainer.optimizer, **optimizers}.items():
        if is_optimizer(optimizer):
            notes += _restore_rates(trainer, name, optimizer, state, then, now)

    for name, part in parts.items():
        if isinstance(part, LRScheduler) or name in optimizers and name in saved:
            continue
        if isinstance(part, Schedule):
            if part.scheduler is None:
                part.load_state_dict(progress_of(part, saved.get(name), state))
            continue
        changed = changes(then.get(name, {}), now.get(name, {}), name)
        if name not in saved:
            if part.state_dict():
                notes.append(f'The checkpoint holds no state for {name}: it starts fresh.')
        elif name == 'monitor' and changed:
            notes += [f'{line}: a new best begins' for line in changed]
        elif isinstance(part, Average):
            notes += _restore_average(name, part, saved[name], state.get('tested'), changed)
        elif name == 'criterion' and changed:
            notes += changed + _restore_loss(part, saved[name], then[name], now[name])
        elif not (is_inside and is_reset(part)):
            notes += _load(name, part, saved[name], is_inside)
    return notes + [
        f'The checkpoint holds a state for {name}, which this trainer does not have.'
        for name in saved.keys() - parts.keys() - {'lr_scheduler'}
    ]


def restore_sums(trainer: Any, state: dict) -> None:
    """Put back, inside an epoch, what its beginning has just reset: sums of losses and metrics."""
    saved = saved_parts(state)
    for name, part in parts_of(trainer).items():
        if is_reset(part) and name in saved:
            _load(name, part, saved[name], is_inside=True)


def is_reset(part: Any) -> bool:
    """Whether the beginning of an epoch resets it."""
    return hasattr(part, 'reset')


def saved_parts(state: dict) -> dict:
    """The states of the parts by the names that they have today."""
    return {NAMES.get(name, name): part for name, part in state['parts'].items()}


def _load(name: str, part: Any, saved: Any, is_inside: bool) -> list[str]:
    try:
        part.load_state_dict(saved)
    except ConfigError as error:
        if is_inside:
            raise CheckpointError(
                f'{name}: {error}. Or take a checkpoint of a whole epoch'
            ) from error
        return [f'{name} starts fresh: {error}.']
    except MISFITS as error:
        raise CheckpointError(
            f'the state of {name} in the checkpoint does not fit: {error}'
        ) from error
    return []


def _restore_average(
    name: str, average: Average, saved: dict, tested: dict | None, changed: list[str]
) -> list[str]:
    """Its counts, and its weights: the checkpoint's tested ones."""
    if changed and saved['n_averaged'] and (average.is_swa or average.ema_decay is None):
        raise ConfigError(
            f'{name}: {_listed(changed)}. The weights of steps that are behind us cannot be '
            'averaged anew: keep trainer.swa_start, or start a new run ("init_from")'
        )
    # The first version kept the weights with the counts.
    return changed + _load(name, average, {'model': tested, **saved}, is_inside=False)


def _restore_loss(criterion: nn.Module, saved: dict, before: dict, now: dict) -> list[str]:
    """What the loss has learned from the checkpoint; buffers that are built otherwise stay."""
    if before['type'] != now['type']:
        return ['criterion: it starts fresh']
    kept = {
        name
        for name, buffer in now['buffers'].items()
        if first_difference(before['buffers'].get(name), buffer)
    }
    mine = criterion.state_dict()
    return _load(
        'criterion',
        criterion,
        {name: mine[name] if name in kept else value for name, value in saved.items()},
        is_inside=False,
    )


def _restore_rates(
    trainer: Any, name: str, optimizer: Any, state: dict, then: dict, now: dict
) -> list[str]:
    """Put the schedulers of one optimizer, and the rates that they set, to where the run is.

    The live ones, when all of these are built as they were; else what is built now, stepped as
    often as the run has.
    """
    parts, saved = parts_of(trainer), saved_parts(state)
    schedulers = {each: part for each, part in parts.items() if _steers(part, optimizer)}
    schedules = {
        each: part
        for each, part in parts.items()
        if isinstance(part, Schedule) and _steers(part.scheduler, optimizer)
    }
    notes = [
        f'{each}: not there any more'
        for each, built in then.items()
        if built.get('optimizer') == name and each not in schedulers
    ]
    for each in (*schedulers, *schedules):
        notes += changes(then[each], now[each], each) if each in then else [f'{each}: new']
    is_same = not notes and not changes(then.get(name, {}), now[name], name)
    for each, schedule in schedules.items():
        progress = progress_of(schedule, saved.get(each), state)
        _refuse_another_pace(trainer, schedule, progress, then, now)

    if is_same:
        for each, scheduler in schedulers.items():
            notes += _load(each, scheduler, saved[each], is_inside=False)
            # It has stepped, in another process: torch would warn of a schedule begun too early.
            optimizer._opt_called = True
        for each, schedule in schedules.items():
            schedule.load_state_dict(progress_of(schedule, saved.get(each), state))
        return notes

    for group, built in zip(optimizer.param_groups, now[name]['groups']):
        group |= {
            key: copy.deepcopy(value)
            for key, value in built.items()
            if not is_counted(key, optimizer, now[name])
        }
    if len(schedulers) > 1:
        raise ConfigError(
            f'{", ".join(schedulers)} all set the learning rates of {name}, and it is not known in '
            f'which order: they cannot be replayed with {_listed(notes or ["other options"])}. '
            'Keep the settings of the checkpoint, or start a new run ("init_from")'
        )
    for each, scheduler in schedulers.items():
        for schedule_name, schedule in schedules.items():
            progress = progress_of(schedule, saved.get(schedule_name), state)
            before = then.get(schedule_name, {}).get('metric')
            if schedule.on_plateau and (
                before != schedule.metric or len(progress['values']) != progress['n_epochs']
            ):
                raise ConfigError(
                    f'{each}: ReduceLROnPlateau follows {schedule.metric}, whose values in the '
                    'epochs so far are not in the checkpoint. Keep trainer.monitor and the '
                    'scheduler as they were, or start a new run ("init_from")'
                )
            schedule.replay(progress['n_steps'], progress['n_epochs'], progress['values'])
        if not schedules:  # the trainer's own code steps it
            n_calls = _n_calls(saved.get(each, {})) - _n_calls(now[each]['state'])
            if n_calls != n_calls // 1 or isinstance(scheduler, ReduceLROnPlateau):
                raise ConfigError(
                    f'{each}: it cannot be replayed with {_listed(notes or ["other options"])}, '
                    'because the trainer steps it by values of its own. Keep the settings of the '
                    'checkpoint, or start a new run ("init_from")'
                )
            replay(scheduler, [None] * int(n_calls))
        notes.append(f'{each}: replayed to step {state.get("step", 0)}')
    return notes


def progress_of(schedule: Schedule, saved: dict | None, state: dict) -> dict:
    """The state of a Schedule; from the run's own where the first version saved less."""
    if saved and 'n_epochs' in saved:
        return saved
    n_steps, n_epochs = state.get('step', 0), state.get('epoch', 0)
    history = state.get('history', []) if schedule.on_plateau else []
    values = [log[schedule.metric] for log in history if schedule.metric in log]
    is_scaled = n_steps + 1 < schedule.warmup_steps
    planned = (saved or {}).get('planned' if is_scaled else 'put', [])
    return {'n_steps': n_steps, 'n_epochs': n_epochs, 'values': values, 'planned': planned}


def _n_calls(state: dict) -> float:
    """How often a scheduler has been stepped, by its state; nan when it does not say."""
    if 'last_epoch' not in state and state.get('_schedulers'):  # chained ones step together
        return _n_calls(state['_schedulers'][0])
    is_between = state.get('T_cur', 0) % 1  # step(2.5), of CosineAnnealingWarmRestarts
    return math.nan if is_between else state.get('last_epoch', math.nan)


def _refuse_another_pace(
    trainer: Any, schedule: Schedule, progress: dict, then: dict, now: dict
) -> None:
    """Steps of another size, or more of them in an epoch, are no place in a schedule of steps."""
    n_steps, len_epoch = progress['n_steps'], now['pace']['len_epoch'] or 1
    is_warm = min(n_steps, progress['n_epochs'] * len_epoch) >= schedule.warmup_steps
    if not n_steps or not schedule.each_step and is_warm:
        return
    changed = changes(then.get('pace', {}), now['pace'], '')
    if changed and trainer.config.get('data_changed') != 'continue':
        raise ConfigError(
            f'The learning rate follows the steps (lr_scheduler.interval "step" or warmup_steps), '
            f'and these have changed: {_listed(changed)}. The step that the run has reached is '
            'then another place in the schedule: keep data_loader.args.batch_size and '
            'trainer.len_epoch, or start a new run from the weights alone ("init_from")'
        )


def _listed(lines: list[str]) -> str:
    return '; '.join(line.removeprefix('.') for line in lines)


def refuse_another_order(trainer: Any, state: dict, then: dict, now: dict) -> None:
    """Inside an epoch, another seed or order would give some samples twice and others never."""
    if not state.get('samples'):
        return
    seed = state.get('seed', trainer.seed)
    changed = changes({'seed': seed}, {'seed': trainer.seed}, '')
    changed += changes(then.get('order', {}), now['order'], 'data_loader')
    if changed:
        raise ConfigError(
            f'The checkpoint stands inside epoch {trainer.start_epoch}, which these give another '
            f'order: {_listed(changed)}. Keep them, or go on from the checkpoint of a whole epoch'
        )


def tested_weights_of(trainer: Any) -> dict | None:
    """What a checkpoint has as "tested": the averaged weights, where the live ones are not it."""
    averages = [part for part in parts_of(trainer).values() if isinstance(part, Average)]
    return next((each.tested() for each in averages if each.is_of(trainer.model)), None)
