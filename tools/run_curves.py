"""Curves of runs: one line a run, or the mean of the seeds of one config with the band of all."""

import os
import statistics
import warnings
from pathlib import Path

from armature.config.spelling import did_you_mean
from armature.errors import UserError
from tools.new_folder import unfinished
from tools.run_records import (
    SEED,
    Run,
    by_seed,
    differing,
    number,
    shared_settings,
    short_names,
    show_value,
    width,
)

DASHES = ('-', '--', ':', '-.')
MOST_LINES = 10 * len(DASHES)
FEW_LINES = 8
WIDEST = 90  # columns of a name in a legend
MOST_NAMED = 10  # settings that a legend can say
# For names in Korean, and much else, where one of these is installed.
FONTS = ('Noto Sans CJK KR', 'NanumGothic', 'Malgun Gothic', 'AppleGothic')


def draw(runs: list[Run], metric: str | None, file: Path, are_named: bool = False) -> None:
    """Draw `metric` (the monitored value without one) over the epochs into an image file.

    are_named: each was asked for, so that those that repeat each other have a line each.
    """
    from matplotlib.figure import Figure

    metric = metric or next((run.metric for run in runs if run.metric), '')
    if not any(curve_of(run, metric) for run in runs):
        known = sorted({name for run in runs for row in run.rows for name in row})
        near = did_you_mean(metric, known)
        said = f'{near}: there are {", ".join(known)}' if known else ', nor has any ended an epoch'
        raise UserError(f'none of these runs reports {metric!r}{said}')
    modes = {run.mode for run in runs if run.metric == metric}  # none: nobody says what is best
    choose = {'min': min, 'max': max}[modes.pop()] if len(modes) == 1 else None
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.subplots()
    groups = {}
    for run in runs:
        groups.setdefault(shared_settings(run, SEED), []).append(run)
    lines = []
    for group in groups.values():
        repeats = are_named and len(by_seed(group)) < len(group)
        lines += [[run] for run in group] if repeats else [group]
    points, n_drawn = [], 0  # (value, epoch, color) of the best of each line
    shown = 0
    for group, title in zip(lines, titles(lines)):
        known = by_seed([run for run in group if curve_of(run, metric)]).values()
        curves = [curve_of(run, metric) for run in known]
        if not curves:
            continue
        n_drawn += len(curves)
        epochs = sorted({epoch for curve in curves for epoch in curve})
        columns = [[curve[epoch] for curve in curves if epoch in curve] for epoch in epochs]
        # Where a seed has ended already, a mean of the others would be another line.
        means = {
            epoch: statistics.fmean(column)
            for epoch, column in zip(epochs, columns)
            if len(column) == len(curves)
        }
        if len(curves) > 1:
            title += f', mean of {len(curves)} seeds, lowest to highest'
        color, dashes = f'C{shown % 10}', DASHES[shown // 10 % len(DASHES)]
        if shown >= MOST_LINES:  # there are no more looks that can be told apart
            color, title = '0.8', ''
        shown += 1
        marker = '.' if len(means) == 1 else None  # a line of one point is not seen
        axes.plot(list(means), list(means.values()), dashes, c=color, marker=marker, label=title)
        axes.fill_between(
            epochs, *zip(*((min(c), max(c)) for c in columns)), color=color, alpha=0.2
        )
        if choose and means:
            epoch = choose(means, key=means.get)
            points.append((means[epoch], epoch, color))
    if points:
        value, epoch, color = choose(points, key=lambda point: point[0])
        axes.plot(epoch, value, 'o', color=color, label=f'best: {value:.4g} in epoch {epoch}')
    if left_out := len(runs) - n_drawn:
        print(f'{left_out} runs are left out: repeated under the same settings, or no {metric}')
    names = ', '.join(sorted({run.record['name'] for run in runs}))
    axes.set(title=plain(f'{metric} of {names[:60]}'), xlabel='epoch', ylabel=plain(metric))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    if shown <= FEW_LINES:
        axes.legend(fontsize='small')
    else:  # below the curves instead of on them
        figure.set_size_inches(8, 5 + 0.2 * min(shown, MOST_LINES))
        figure.legend(fontsize='small', loc='outside lower left')
    if shown > MOST_LINES:
        print(f'{shown - MOST_LINES} of the lines are grey and have no name: choose with --best N')
    save(figure, file)


def curve_of(run: Run, metric: str) -> dict[int, float]:
    """{epoch: value}, without those that are missing or nan."""
    return {row['epoch']: row[metric] for row in run.rows if number(row.get(metric)) is not None}


def titles(groups: list[list[Run]]) -> list[str]:
    """What a legend calls each group: its run, or its experiment, and the settings that differ."""
    keys = [key for key in differing([runs[0] for runs in groups]) if key != SEED][:MOST_NAMED]
    names = short_names(keys)
    made = []
    for runs in groups:
        name = runs[0].name if len(runs) == 1 else runs[0].record['name']
        settings = [f'{names[key]} {show_value(runs[0], key)}' for key in keys]
        made.append(plain(shortened(', '.join([name, *settings]))))
    return made


def shortened(text: str) -> str:
    """A text without its middle where it is too wide."""
    if width(text) <= WIDEST:
        return text
    n_letters = WIDEST * len(text) // width(text) // 2
    return f'{text[:n_letters]}...{text[-n_letters:]}'


def plain(text: str) -> str:
    """A text that matplotlib draws as it is: no formula, and no label that is left out."""
    return text.replace('$', r'\$').lstrip('_')


def save(figure, file: Path) -> None:
    """Write an image file, whole or not at all; UserError where that is not possible."""
    from matplotlib import font_manager, rc_context

    installed = {font.name for font in font_manager.fontManager.ttflist}
    family = ['sans-serif', *(font for font in FONTS if font in installed)]
    if not file.suffix or os.path.isdir(file):
        raise UserError(f'{file} names no picture: expected a file such as {file / "curves.png"}')
    try:
        with unfinished(file) as made:
            with rc_context({'font.family': family}), warnings.catch_warnings():
                warnings.simplefilter('ignore')  # a letter that no font has is drawn as a box
                figure.savefig(made, dpi=150)
            os.replace(made, file)
    except (OSError, ValueError) as error:  # an ending that matplotlib does not know
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{file}: the picture cannot be written: {reason}') from None
