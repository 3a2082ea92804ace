"""Find a learning rate: python -m tools.find_lr -c config.json

Trains from scratch while the learning rate rises exponentially, draws the loss against it as PNG,
and suggests the rate where the loss falls most steeply (Smith, "Cyclical Learning Rates for
Training Neural Networks", 2017, arXiv:1506.01186).
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import train
from armature.errors import UserError, exit_on_user_error, positive
from armature.run.plots import new_figure
from parse_config import ConfigParser
from tools.rehearse import parser_of, quiet_trainer, rehearsal
from tools.run_curves import plain, save

LOWEST, HIGHEST = 1e-6, 10.0
SMOOTHING = 0.9
DIVERGED = 4.0  # times the best loss
LEAST_STEPS = 10
LEAST_FALL = 0.05  # of the first loss; less is noise


def main() -> None:
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument(
        '--steps',
        type=positive,
        default=150,
        help='optimizer steps between the lowest and the highest rate',
    )
    with exit_on_user_error():
        config = ConfigParser.from_args(parser, builds=train.BUILDS)
        find_lr(train.build, config.config, config.arguments.steps, Path('saved') / 'find_lr')


def find_lr(build: Callable, config: dict, n_steps: int, folder: Path) -> float:
    """Print and return the suggestion; the curve is drawn into `folder`."""
    if n_steps < LEAST_STEPS:
        raise UserError(f'--steps {n_steps}: too few for a curve, give at least {LEAST_STEPS}')
    rates = [LOWEST * (HIGHEST / LOWEST) ** (index / (n_steps - 1)) for index in range(n_steps)]
    with rehearsal() as temporary:
        trainer = quiet_trainer(
            build,
            config,
            temporary,
            epochs=1,
            len_epoch=n_steps,
            log_step=n_steps,
            max_steps=None,
            on_nan='stop',
        )
        losses = rising(trainer, rates)
        trainer.writer.close()
    smooth = smoothed(losses)
    if len(smooth) < LEAST_STEPS or smooth[0] - min(smooth[5:]) < LEAST_FALL * abs(smooth[0]):
        raise UserError(
            f'the loss never fell, at no learning rate between {LOWEST:g} and {HIGHEST:g}: '
            'try --overfit first'
        )
    suggestion = steepest(rates, smooth)
    file = folder / f'{config["name"]}.png'
    save(drawn(plain(config['name']), rates, losses, suggestion), file)
    print(
        f'Suggested learning rate: {suggestion:.2g} (the loss falls most steeply there; it was '
        f'{min(smooth):.4g} at best, '
        f'at {rates[smooth.index(min(smooth))]:.2g}). The curve is in {file}'
    )
    return suggestion


def rising(trainer, rates: list[float]) -> list[float]:
    """The loss of each step, until it diverges, while every group's rate rises in proportion."""

    class Diverged(Exception):
        pass

    losses, take_step = [], trainer.stepper.step
    groups = trainer.optimizer.param_groups
    if not groups[0]['lr']:
        raise UserError('lr of the first group is 0: give another, the groups keep their ratios')
    shares = [group['lr'] / groups[0]['lr'] for group in groups]

    def step() -> None:
        losses.append(float(trainer.stepper.loss))
        if (
            not math.isfinite(losses[-1])
            or losses[-1] > DIVERGED * abs(min(losses)) + 1e-9
            and len(losses) > 10
        ):
            raise Diverged
        for group, share in zip(groups, shares):
            group['lr'] = rates[len(losses) - 1] * share
        take_step()

    trainer.stepper.step = step
    try:
        trainer._train_epoch(1)
    except Diverged:
        losses.pop()
    return losses


def smoothed(losses: list[float]) -> list[float]:
    """Exponential average without the pull to zero at the beginning."""
    mean, result = 0.0, []
    for index, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        result.append(mean / (1 - SMOOTHING**index))
    return result


def steepest(rates: list[float], losses: list[float]) -> float:
    """The rate, before the lowest loss, at which the loss falls most from step to step."""
    end = max(2, losses.index(min(losses)))
    falls = [losses[index + 1] - losses[index - 1] for index in range(1, end)]
    return rates[1 + falls.index(min(falls))]


def drawn(name: str, rates: list[float], losses: list[float], suggestion: float) -> Any:
    """Each step's loss against the rate, smoothed too; the suggestion and the lowest are marked.

    What diverges is cut off.
    """
    figure, axes = new_figure(f'{name}: where the loss falls while the learning rate rises')
    smooth, rates = smoothed(losses), rates[: len(losses)]
    axes.semilogx(rates, losses, color='tab:blue', alpha=0.3, label='loss of each step')
    axes.semilogx(rates, smooth, color='tab:blue', label='smoothed')
    at, lowest = rates.index(suggestion), smooth.index(min(smooth))
    text = f'falls most steeply: {suggestion:.2g}'
    axes.axvline(suggestion, color='tab:red', linestyle='--', label=text)
    axes.plot(suggestion, smooth[at], 'o', color='tab:red')
    text = f'lowest, {min(smooth):.4g}, at {rates[lowest]:.2g}'
    axes.plot(rates[lowest], smooth[lowest], 'v', color='black', label=text)
    low, high = min(smooth), min(max(smooth), 1.5 * abs(smooth[0]))
    margin = 0.1 * (high - low)
    axes.set(xlabel='learning rate', ylabel='loss', ylim=(low - margin, high + margin))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == '__main__':
    main()
