"""How the parts of a checkpoint find back to their objects, also when the config has changed in between."""

import logging
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from armature.errors import CheckpointError, ConfigError
from armature.processes import dist


def parts_of(trainer: Any) -> dict[str, Any]:
    """Every object with state that is an attribute of `trainer` (or an entry of a list, tuple or dict there), by its name.

    The model and the optimizer are left out: checkpoints have keys of their own for them.
    """
    found, seen = (
        {},
        {id(trainer.model), id(getattr(trainer.model, 'module', None)), id(trainer.optimizer)},
    )

    def visit(name: str, value: Any) -> None:
        if id(value) in seen:
            return
        if hasattr(value, 'state_dict') and hasattr(value, 'load_state_dict'):
            seen.add(id(value))
            found[name] = value
        elif isinstance(value, dict):
            for key, each in value.items():
                visit(f'{name}.{key}', each)
        elif isinstance(value, (list, tuple)):
            for index, each in enumerate(value):
                visit(f'{name}.{index}', each)

    for name, value in vars(trainer).items():
        visit(name, value)
    return found


def restore_parts(
    trainer: Any, saved: dict[str, Any], old_config: dict, inside_epoch: bool = False
) -> list[str]:
    """Load each part; returns what the user should know: parts that only the checkpoint or only the trainer has, changed arguments."""
    mine, notes = parts_of(trainer), []
    for name, part in mine.items():
        if name not in saved:
            if part.state_dict():
                notes.append(f'The checkpoint holds no state for {name}: it starts fresh.')
        elif isinstance(part, LRScheduler):
            notes += load_scheduler(part, name, saved[name], old_config, trainer.config)
        else:
            try:
                part.load_state_dict(saved[name])
            except ConfigError as error:
                if inside_epoch:
                    raise CheckpointError(
                        f'{name}: {error}. Or take a checkpoint of a whole epoch'
                    ) from error
                notes.append(f'{name} starts fresh: {error}.')
            except (ValueError, KeyError, RuntimeError, TypeError) as error:
                raise CheckpointError(
                    f'the state of {name} in the checkpoint does not fit: {error}'
                ) from error
    return notes + [
        f'The checkpoint holds a state for {name}, which this trainer does not have.'
        for name in saved.keys() - mine.keys()
    ]


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    saved: dict,
    old_config: dict,
    config: Any,
    logger: logging.Logger,
) -> None:
    """Load the optimizer's state; what the config says differently from when it was saved holds.

    A changed learning rate keeps the schedule's shape: the present one is scaled by new / old.
    """
    if changed_type('optimizer', old_config, config):
        logger.warning('The optimizer is another one than in the checkpoint: it starts fresh.')
        return
    changed = changed_args('optimizer', old_config, config)
    try:
        optimizer.load_state_dict(_sharded(saved, optimizer))
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f'the optimizer state in the checkpoint does not fit: {error}'
        ) from error
    for name, (before, now) in changed.items():
        for group in optimizer.param_groups:
            if name == 'lr' and before:
                group['initial_lr'] = group.get('initial_lr', before) * now / before
                group['lr'] = group['lr'] * now / before
            elif name in group:
                group[name] = now
        logger.info(f'optimizer.args.{name}: {before} in the checkpoint, {now} from here on')


def _sharded(saved: dict, optimizer: torch.optim.Optimizer) -> dict:
    """An optimizer's state, which is whole in a checkpoint, in parts where the parameters are."""
    numbers = [number for group in saved['param_groups'] for number in group['params']]
    parameters = dict(
        zip(
            numbers,
            (parameter for group in optimizer.param_groups for parameter in group['params']),
        )
    )
    return {
        **saved,
        'state': {
            number: {
                name: dist.sharded_like(value, parameters.get(number))
                for name, value in state.items()
            }
            for number, state in saved['state'].items()
        },
    }


def load_scheduler(
    scheduler: LRScheduler, name: str, saved: dict, old_config: dict, config: Any
) -> list[str]:
    """Load the scheduler's state; what the config says differently from when it was saved holds. Returns what the user should know."""
    if changed_type('lr_scheduler', old_config, config):
        return [f'{name} is another one than in the checkpoint: the schedule starts fresh.']
    changed = changed_args('lr_scheduler', old_config, config)
    notes = [
        f'lr_scheduler.args.{key}: {before} in the checkpoint, {now} from here on'
        for key, (before, now) in changed.items()
    ]
    state = {key: value for key, value in saved.items() if key not in changed}
    lengths = [
        key
        for key in ('T_max', 'total_steps', 'total_iters')
        if key in saved and saved[key] != getattr(scheduler, key)
    ]
    if ((config.get('lr_scheduler') or {}).get('args') or {}).get(
        next(iter(lengths), '')
    ) == 'auto':
        state = {
            key: value for key, value in state.items() if key not in (*lengths, '_schedule_phases')
        }
        notes.append(
            f'{name}: the run has another length than in the checkpoint, {saved[lengths[0]]} before and '
            f'{getattr(scheduler, lengths[0])} now; the schedule goes on as if it had been so from the beginning'
        )
    if hasattr(scheduler, 'base_lrs') and changed_args('optimizer', old_config, config).get('lr'):
        state['base_lrs'] = [group['initial_lr'] for group in scheduler.optimizer.param_groups]
    scheduler.load_state_dict(state)
    if lengths and lengths[0] not in state and hasattr(scheduler, '_get_closed_form_lr'):
        for group, rate in zip(scheduler.optimizer.param_groups, scheduler._get_closed_form_lr()):
            group['lr'] = (
                rate  # it computes each rate from the one before, so that the end of the old schedule would stay
            )
    scheduler.optimizer._opt_called = (
        True  # it has stepped, in another process: torch would warn of a schedule begun too early
    )
    return notes


def changed_type(section: str, old_config: dict, config: Any) -> bool:
    """Whether the section names another type than the checkpoint's config; an unrecorded one counts as the same."""
    before = (old_config.get(section) or {}).get('type')
    return before is not None and before != (config.get(section) or {}).get('type')


def changed_args(section: str, old_config: dict, config: Any) -> dict[str, tuple[Any, Any]]:
    """{name: (before, now)} of the section's arguments that both configs have and that differ."""
    before = (old_config.get(section) or {}).get('args') or {}
    now = (config.get(section) or {}).get('args') or {}
    return {
        name: (before[name], now[name])
        for name in before.keys() & now.keys()
        if before[name] != now[name]
    }
