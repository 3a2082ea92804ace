"""What seeds say of settings: means with Student's t intervals, and paired differences."""

import math
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from armature.config.spelling import did_you_mean
from armature.errors import UserError
from tools.run_records import (
    SEED,
    Run,
    as_text,
    by_seed,
    counting_last,
    differing,
    print_table,
    shared_settings,
    show_value,
)

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean of n values; `margin` to both sides is its interval, None for a single value."""

    mean: float
    margin: float | None
    n: int

    def __str__(self) -> str:
        if self.margin is None:
            return f'{self.mean:.4g} (one seed: no interval)'
        return f'{self.mean:.4g} ± {self.margin:.2g}'


def estimate(values: Iterable[float]) -> Estimate:
    """The mean of independent values and its 95 % interval.

    Student's t with n - 1 degrees of freedom: the mean lies within t * s / sqrt(n) of the true one,
    s being the standard deviation of the values (Student, "The probable error of a mean", 1908).
    """
    values = list(values)
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Estimate(mean, None, n)
    from scipy.special import stdtrit  # the inverse of Student's distribution

    t = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2))
    return Estimate(mean, t * statistics.stdev(values) / math.sqrt(n), n)


def by_settings(runs: list[Run], metric: str | None, *without: str) -> dict[str, Run]:
    """{all settings but `without`: the run that counts}, which says seed, fold and what differs."""
    runs = [run for run in runs if run.value(metric) is not None]
    return {shared_settings(run, *without): run for run in counting_last(runs)}


def judge(runs: list[Run], metric: str | None) -> tuple[str, bool]:
    """(the name of what is compared, whether a higher one is better); UserError when unclear."""
    known = [run for run in runs if run.value(metric) is not None]
    if not known:
        names = {name for run in runs for name in ((run.record['best'] or {}).get('values') or {})}
        names = sorted(names | {f'test.{name}' for run in runs for name in run.test})
        near, there = did_you_mean(metric or '', names), ', '.join(names) or 'none'
        wanted = metric or 'what trainer.monitor names'
        raise UserError(
            f'none of these runs has a value of {wanted}{near}: say '
            f'another with --metric; there are {there}'
        )
    rules = sorted({run.record['monitor'] for run in known})
    if len(rules) > 1 and metric is None:
        raise UserError(f'these runs monitor {", ".join(rules)}: say one with --metric')
    name, monitored = metric or known[0].metric, known[0].metric
    # test.py says "accuracy" where training says "val_accuracy".
    names = (monitored, f'test.{monitored.removeprefix("val_")}')
    return name, known[0].mode == 'max' and name in names


def print_by(key: str, runs: list[Run], metric: str | None) -> None:
    """One row for each value of the setting `key`: n, mean, interval, difference to the best."""
    name, is_higher_better = judge(runs, metric)
    groups = {}
    for run in runs:
        groups.setdefault(show_value(run, key), []).append(run)
    counted = {value: by_settings(group, metric, key) for value, group in groups.items()}
    found = {
        value: {settings: run.value(metric) for settings, run in group.items()}
        for value, group in counted.items()
        if group
    }
    order = sorted(
        found,
        key=lambda value: statistics.fmean(found[value].values()),
        reverse=is_higher_better,
    )
    best, title = found[order[0]], f'config.{key}' if key in ('n', name) else key
    rows = []
    for value in order:
        pairs = [found[value][seed] - best[seed] for seed in found[value].keys() & best.keys()]
        made = estimate(found[value].values())
        difference = str(estimate(pairs)) if pairs and value != order[0] else ''
        if value != order[0] and not pairs:
            difference = 'no seed in common'
        row = {title: value, 'n': str(made.n), name: str(made), 'to the first, paired': difference}
        rows.append(row)
    print_table(rows, len(rows[0]))
    print(f'Mean and {CONFIDENCE:.0%} interval (Student) over n runs')
    if others := {each for value in order for each in differing(groups[value])} - {SEED, key}:
        print(f'Within a row these differ too, not only the seed: {", ".join(sorted(others))}')
    if left_out := len(runs) - sum(map(len, found.values())):
        print(f'{left_out} runs are left out: repeated under the same settings, or without a value')
    say_of_doubt([run for group in counted.values() for run in group.values()])


def print_pair(pair: list[tuple[str, list[Run]]], metric: str | None) -> None:
    """Two configs, each given as (name, its runs): means, and the difference over common seeds."""
    name, _ = judge([run for _, runs in pair for run in runs], metric)
    values, counted = [], []
    for title, runs in pair:
        known = by_seed([run for run in runs if run.value(metric) is not None])
        if not known:
            raise UserError(f'{title} has no value of {name}')
        counted += known.values()
        values.append({seed: run.value(metric) for seed, run in known.items()})
        seeds = ', '.join(sorted(known, key=lambda seed: (len(seed), seed)))
        print(f'{title}: {name} {estimate(values[-1].values())}, seeds {seeds}')
    common = sorted(values[0].keys() & values[1].keys())
    if not common:
        raise UserError('these have no seed in common: train both with the same seeds')
    difference = estimate(values[1][seed] - values[0][seed] for seed in common)
    print(f'difference (second - first), paired over {len(common)} seeds: {difference}')
    if difference.margin is None:
        print('One seed in common cannot tell a difference from chance')
    elif abs(difference.mean) <= difference.margin:
        print(f'The {CONFIDENCE:.0%} interval holds 0: these seeds do not tell the two apart')
    else:
        direction = 'higher' if difference.mean > 0 else 'lower'
        print(f'The {CONFIDENCE:.0%} interval does not hold 0: the second is {direction}')
    say_of_doubt(counted)


def say_of_doubt(runs: list[Run]) -> None:
    """What runs that were counted together do not share, beside their settings."""
    if unfinished := [run for run in runs if run.record['state'] != 'finished']:
        states = ', '.join(f'{run.name} ({run.record["state"]})' for run in unfinished[:5])
        more = ', ...' if len(unfinished) > 5 else ''
        print(f'Not finished, and counted with what they reached: {states}{more}')
    codes = {run.code for run in runs}
    data = {as_text(run.record['data'].get('fingerprint')) for run in runs}
    for what, states in (('code', codes), ('data', data)):
        if len(states) > 1:
            print(f'{what}: {len(states)} states of it, too: tools.runs diff RUN RUN says which')
