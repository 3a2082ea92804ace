"""What a sweep has found: a table of its trials, what matters, a picture, and the best config."""

import itertools
from shlex import quote
from typing import Any

from armature.config.build import ROOT
from armature.config.read import show
from armature.errors import UserError
from armature.run.record import write_json
from tools.run_curves import plain, save
from tools.run_files import find_runs
from tools.run_records import Run, duration, print_table, readable, short_names

STATES = {
    'COMPLETE': 'finished',
    'PRUNED': 'pruned',
    'FAIL': 'failed',
    'RUNNING': 'under way',
    'WAITING': 'waiting',
}
MOST_DRAWN = 5  # parameters
FEWEST = 4  # finished trials, of which one can say what matters


def print_report(plan: Any, results: Any) -> None:
    """Print the trials, the best first, and write best.json and sweep.png into the sweep's folder.

    Raises UserError when no trial was finished.
    """
    trials = results.trials()[: plan.n_trials]
    sign = 1 if plan.mode == 'min' else -1
    finished = [each for each in trials if each.state.name == 'COMPLETE']
    order = sorted(finished, key=lambda each: sign * each.value)
    order += [each for each in trials if each not in finished]
    print_table([row_of(plan, trial) for trial in order], 3)
    if not finished:
        raise UserError(f'no trial of {plan.name} was finished: look at the reasons above')
    folders = [path for path in find_runs(plan.save_dir) if path.parent == plan.runs_folder]
    if (n_states := len({Run(path).code for path in folders})) > 1:
        print(f'note: the code was changed meanwhile: {n_states} states of it trained these runs')
    importances = results.importances() if len(finished) >= FEWEST else {}
    if importances:
        shares = (f'{name} {share:.0%}' for name, share in importances.items())
        print(f'What matters: {", ".join(shares)}')
    best, file = order[0], plan.folder / 'best.json'
    write_json(plan.best(plan.values(best.params)), file)
    draw(plan, trials, list(importances or plan.paths)[:MOST_DRAWN])
    print(f'Best: trial {best.number:03}, {plan.metric} {best.value:.4g}. {plan.folder}/sweep.png')
    print(f'Train with it: python train.py -c {quote(str(file))}')
    where = '' if plan.save_dir == ROOT / 'saved' else f' --save-dir {quote(str(plan.save_dir))}'
    print(f'See its runs: python -m tools.runs --name {quote(plan.name)}{where}')


def row_of(plan: Any, trial: Any) -> dict[str, str]:
    taken = ('trial', 'state', plan.metric, 'time', 'why')
    names, values = short_names(list(plan.paths), taken), plan.values(trial.params)
    return {
        'trial': f'{trial.number:03}',
        'state': STATES[trial.state.name],
        plan.metric: readable(trial.value),
        'time': duration(trial.user_attrs.get('seconds')),
        **{names[name]: readable(values.get(name)) for name in plan.paths},
        'why': trial.user_attrs.get('reason', ''),
    }


def show_values(values: dict[str, Any]) -> str:
    names = short_names(list(values))
    return ', '.join(f'{names[name]} {readable(value)}' for name, value in values.items())


def draw(plan: Any, trials: list, names: list[str]) -> None:
    """The values by trial, with the best so far, and against each of the parameters `names`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * (1 + len(names)), 3.5), layout='constrained')
    first, *others = figure.subplots(1, 1 + len(names), sharey=True, squeeze=False)[0]
    for state, look in (('COMPLETE', 'C0o'), ('PRUNED', 'C7x')):
        shown = [each for each in trials if each.state.name == state]
        values = [each.value for each in shown]
        first.plot([each.number for each in shown], values, look, label=STATES[state])
        for axes, name in zip(others, names):
            wanted = plan.settings.params[name]
            tried = [plan.values(each.params)[name] for each in shown]
            places = [wanted.index(each) for each in tried] if isinstance(wanted, list) else tried
            axes.plot(places, values, look)
    for axes, name in zip(others, names):
        wanted = plan.settings.params[name]
        axes.set_xlabel(plain(name))
        if isinstance(wanted, list):
            axes.set_xticks(range(len(wanted)), [plain(show(each)[:12]) for each in wanted])
        elif wanted.get('log'):
            axes.set_xscale('log')
    finished = [each for each in trials if each.state.name == 'COMPLETE']
    choose = min if plan.mode == 'min' else max
    best = list(itertools.accumulate((each.value for each in finished), choose))
    first.step([each.number for each in finished], best, 'C1', where='post', label='best so far')
    first.set(xlabel='trial', ylabel=plain(plan.metric), title=plain(plan.name[:40]))
    first.xaxis.get_major_locator().set_params(integer=True)
    first.legend(fontsize='small')
    for axes in (first, *others):
        axes.grid(alpha=0.3)
    save(figure, plan.folder / 'sweep.png')
