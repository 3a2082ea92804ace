"""tools.sweep: what is tried, that it is the same however it was interrupted and shared, and what
is refused. Most sweeps here start a train.py that trains nothing and takes milliseconds.
"""

import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import pytest

from armature.config.read import read_config
from tests.conftest import ROOT, run_script
from tests.faults_runs import in_fork
from tools.run_files import read_record

pytest.importorskip('optuna', reason='needs Optuna: pip install -r requirements-sweep.txt')

import tools.sweep as sweep
from tools import sweep_plan
from tools.sweep_search import optuna

# A run whose curve depends on its config only, as a real one does.
TRAIN = """
import json, pathlib, sys, time
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
config = json.loads(pathlib.Path(given['-c']).read_text())
trainer, lr = config['trainer'], config['optimizer']['args']['lr']
run = pathlib.Path(trainer['save_dir']) / 'models' / config['name'] / given['--run-id']
run.mkdir(parents=True)
(run / 'config.json').write_text(json.dumps(config))
def note(state, reason=None):
    (run / 'run.json').write_text(json.dumps({'version': 1, 'state': state, 'reason': reason}))
note('running')
if lr > trainer['fails_above']:
    note('failed', 'NonFiniteError: the loss is nan')
    sys.exit(1)
table = (run / 'metrics.csv').open('w')
print('epoch,val_loss', file=table, flush=True)
for epoch in range(1, trainer['epochs'] + 1):
    time.sleep(0.01)
    fold = config['data_loader']['args'].get('fold', 0)
    value = (lr - 0.03) ** 2 + 1 / epoch + 0.001 * config['seed'] + fold
    print(f'{epoch},{value!r}', file=table, flush=True)
note('finished')
print('trained', flush=True)
"""
RANGE = {'low': 1e-4, 'high': 0.1, 'log': True}
SWEEP = {
    'params': {'optimizer.args.lr': RANGE, 'data_loader.args.batch_size': [16, 32]},
    'n_trials': 12,
    'sampler': {'type': 'TPESampler', 'args': {'n_startup_trials': 3}},
    'pruner': {'type': 'MedianPruner', 'args': {'n_startup_trials': 2}},
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Sweeps in tmp_path by a train.py that trains nothing. Returns how to start one."""
    (tmp_path / 'train.py').write_text(TRAIN)
    for module in (sweep, sweep_plan):
        monkeypatch.setattr(module, 'ROOT', tmp_path)
    monkeypatch.setattr(sweep, 'POLL_S', 0.005)

    report = sweep.print_report
    monkeypatch.setattr(sweep, 'print_report', lambda *_: None)  # drawing takes its time

    def start(save_dir, settings=SWEEP, *arguments, shows=False, **changes):
        if shows:
            monkeypatch.setattr(sweep, 'print_report', report)
        trainer = {'epochs': 3, 'save_dir': str(tmp_path / save_dir), 'fails_above': 1}
        config = {'base': str(ROOT / 'config.json'), 'name': 'x', 'trainer': trainer | changes}
        config |= {'sweep': settings} if settings else {}
        (tmp_path / 'config.json').write_text(json.dumps(config))
        words = ['sweep', '-c', str(tmp_path / 'config.json'), *map(str, arguments)]
        monkeypatch.setattr(sys, 'argv', words)
        sweep.main()

    return start


@pytest.fixture
def refused(project, capsys):
    """What a sweep says on stderr when it leaves with exit code 2."""

    def ask(*arguments, **changes):
        with pytest.raises(SystemExit) as left:
            project(*arguments, **changes)
        said = capsys.readouterr().err
        assert left.value.code == 2 and 'Traceback' not in said
        return said.splitlines()[-1]

    return ask


def trials(save_dir: Path, name='x_sweep') -> list[tuple]:
    """(number, state, params, value, curve) of each trial, as the journal has it."""
    backend = optuna.storages.journal.JournalFileBackend(
        str(save_dir / 'sweeps' / name / 'journal.log')
    )
    storage = optuna.storages.JournalStorage(backend)
    return [
        (each.number, each.state.name, each.params, each.value, each.intermediate_values)
        for each in optuna.load_study(study_name=name, storage=storage).trials
    ]


# The same however it runs


def test_any_number_of_jobs_tries_the_same_and_finds_the_same(project, tmp_path):
    for n_jobs in (1, 2, 4):
        project(f'jobs{n_jobs}', SWEEP, '--jobs', n_jobs)
    expected = trials(tmp_path / 'jobs1')
    assert trials(tmp_path / 'jobs2') == trials(tmp_path / 'jobs4') == expected
    states = [state for _, state, *_ in expected]
    assert states.count('PRUNED') > 1 and states.count('COMPLETE') > 4
    rates = {params['optimizer.args.lr'] for _, _, params, *_ in expected}
    assert len(rates) == 12


def test_killed_at_random_moments_it_ends_as_the_undisturbed_one(project, tmp_path):
    started = time.monotonic()
    project('whole')
    duration_s, rng = time.monotonic() - started, random.Random(1)
    for _ in range(5):
        in_fork(lambda: project('killed'), rng.uniform(0.1, 0.5) * duration_s)
    project('killed')
    assert trials(tmp_path / 'killed') == trials(tmp_path / 'whole')


def test_several_processes_share_a_sweep(project, tmp_path):
    project('alone')
    children = []
    for _ in range(2):
        if (child := os.fork()) == 0:
            try:
                project('shared')
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert trials(tmp_path / 'shared') == trials(tmp_path / 'alone')
    logs = (tmp_path / 'shared' / 'sweeps' / 'x_sweep' / 'trials').glob('*.log')
    assert all(log.read_text().count('trained') <= 1 for log in logs)


def test_stopped_by_a_signal_it_says_how_to_go_on(project, tmp_path, capsys, monkeypatch):
    pid = os.getpid()
    noted = sweep.print_trial
    monkeypatch.setattr(sweep, 'print_trial', lambda *_: os.kill(pid, signal.SIGTERM))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        project('a')
    assert left.value.code == 143 and 'The same command goes on' in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is handler
    monkeypatch.setattr(sweep, 'print_trial', noted)
    project('a')
    project('b')
    assert '12 trials, 1 of them over' in capsys.readouterr().out
    assert trials(tmp_path / 'a') == trials(tmp_path / 'b')


def test_a_full_disk_is_one_line_and_nothing_is_lost(project, tmp_path, capfd):
    def on_a_small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        project('small')

    assert in_fork(on_a_small_disk)
    said = capfd.readouterr().err
    assert 'cannot be written: File too large' in said and 'Traceback' not in said
    project('small')
    project('roomy')
    assert trials(tmp_path / 'small') == trials(tmp_path / 'roomy')


def test_more_trials_can_follow(project, tmp_path):
    project('a', SWEEP | {'n_trials': 5})
    project('a')
    project('b')
    assert trials(tmp_path / 'a') == trials(tmp_path / 'b')


def test_without_its_journal_a_sweep_finds_its_runs_again(project, tmp_path, capsys):
    project('a')
    before = trials(tmp_path / 'a')
    folder = tmp_path / 'a' / 'sweeps' / 'x_sweep'
    (folder / 'journal.log').write_text('{"of": "another version"}\n')
    with pytest.raises(SystemExit):
        project('a')
    assert 'cannot be read by Optuna' in capsys.readouterr().err
    (folder / 'journal.log').unlink()
    for log in (folder / 'trials').glob('*.log'):
        log.unlink()
    project('a')
    finished = {number for number, state, *_ in before if state == 'COMPLETE'}
    assert trials(tmp_path / 'a') == before
    logs = {int(log.stem): log.read_text() for log in (folder / 'trials').glob('*.log')}
    assert not any(logs[number] for number in finished)


# What is tried


def test_a_grid_is_every_combination(project, tmp_path, capsys):
    quick = ['--param', 'seed=1,2,3', '--param', 'optimizer.args.lr=0.1,0.01', '--jobs', 6]
    project('a', None, *quick, shows=True)
    found = trials(tmp_path / 'a')
    assert [tuple(params.values()) for _, _, params, *_ in found] == [
        (seed, lr) for seed in (1, 2, 3) for lr in (0.1, 0.01)
    ]
    said = capsys.readouterr().out
    assert '\n001    finished  0.33' in said and 'Best: trial 001, val_loss 0.33' in said
    folder = tmp_path / 'a' / 'sweeps' / 'x_sweep'
    best = read_config(folder / 'best.json', 'best.json').values
    assert best['name'] == 'x' and best['optimizer']['args']['lr'] == 0.01 and best['seed'] == 1
    assert (folder / 'sweep.png').is_file()
    assert read_record(tmp_path / 'a' / 'models' / 'x_sweep' / '001')['state'] == 'finished'


def test_bare_words_and_sections_are_values_too(project, tmp_path):
    losses = ['nll_loss', {'type': 'NLLLoss', 'args': {'ignore_index': 3}}]
    params = {'loss': losses, 'metrics.0': ['accuracy'], 'optimizer.type': ['SGD', 'Adam']}
    params['optimizer.args'] = [{'lr': 0.1}]
    project('a', {'params': params, 'grid': True}, shows=True)
    runs = tmp_path / 'a' / 'models' / 'x_sweep'
    configs = [json.loads((runs / f'00{number}/config.json').read_text()) for number in range(4)]
    assert [config['loss'] for config in configs] == [losses[0], losses[0], losses[1], losses[1]]
    assert [config['optimizer']['type'] for config in configs] == ['SGD', 'Adam'] * 2
    assert configs[0]['metrics'] == ['accuracy', 'top_k_acc']
    best = read_config(tmp_path / 'a' / 'sweeps' / 'x_sweep' / 'best.json', 'best.json').values
    assert best == configs[0] | {'name': 'x'}


def test_a_train_script_of_the_old_template_is_swept_too(project, tmp_path, monkeypatch):
    monkeypatch.delattr(sweep.train, 'BUILDS')
    project('a', None, '--param', 'seed=1,2')
    assert [state for _, state, *_ in trials(tmp_path / 'a')] == ['COMPLETE'] * 2


def test_seeds_and_folds_count_by_their_mean(project, tmp_path):
    params = {'optimizer.args.lr': [0.03]}
    project('a', {'params': params, 'grid': True, 'seeds': [10, 20], 'folds': 3})
    ((*_, value, curve),) = trials(tmp_path / 'a')
    assert value == pytest.approx(1 / 3 + 0.015 + 1) and curve[3] == pytest.approx(1 / 3 + 0.01)
    runs = tmp_path / 'a' / 'models' / 'x_sweep'
    assert len(list(runs.iterdir())) == 6
    config = json.loads((runs / '000-seed20-fold2' / 'config.json').read_text())
    assert (
        config['seed'] == 20
        and config['data_loader']['args'] | {'n_folds': 3, 'fold': 2}
        == (config['data_loader']['args'])
    )
    assert 'validation_split' not in config['data_loader']['args']


@pytest.mark.parametrize(
    'settings',
    [
        {'sampler': 'RandomSampler', 'pruner': 'HyperbandPruner'},
        {'sampler': 'NSGAIISampler'},
        {
            'pruner': {
                'type': 'PatientPruner',
                'args': {'wrapped_pruner': {'type': 'MedianPruner'}, 'patience': 1},
            }
        },
    ],
)
def test_samplers_and_pruners_by_name(project, tmp_path, settings):
    params = {'params': {'optimizer.args.lr': RANGE}, 'n_trials': 4}
    for name, n_jobs in (('a', 1), ('b', 4)):
        project(name, params | settings, '--jobs', n_jobs)
    assert trials(tmp_path / 'a') == trials(tmp_path / 'b')
    journal = (tmp_path / 'a' / 'sweeps' / 'x_sweep' / 'journal.log').read_text()
    assert '"sampler":{"type":' in journal


# What goes wrong


def test_a_failed_trial_is_told_and_the_sweep_goes_on(project, tmp_path, capsys):
    project('a', None, '--param', 'optimizer.args.lr=0.5,0.1,0.01', shows=True, fails_above=0.3)
    assert [state for _, state, *_ in trials(tmp_path / 'a')] == ['FAIL', 'COMPLETE', 'COMPLETE']
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith('000 ')]
    assert 'failed' in rows[0] and rows[0].endswith('NonFiniteError: the loss is nan')


def test_when_all_fail_it_stops_after_three(refused, tmp_path):
    quick = ['--param', 'optimizer.args.lr=0.1,0.2,0.3,0.4,0.5']
    said = refused('a', None, *quick, fails_above=0)
    assert '3 trials failed and none went well: NonFiniteError' in said and 'remove' in said
    assert '/trials/*.log' in said and list(tmp_path.glob('a/sweeps/x_sweep/trials/*.log'))
    states = [state for _, state, *_ in trials(tmp_path / 'a')]
    assert states == ['FAIL'] * 3 + ['WAITING'] * 2


def test_a_run_that_is_killed_from_outside_says_so(project, tmp_path, capsys):
    text = (tmp_path / 'train.py').read_text()
    kill = 'import os; config["seed"] == 2 and os.kill(os.getpid(), 9)\n'
    (tmp_path / 'train.py').write_text(text.replace("note('finished')", kill + "note('finished')"))
    project('a', None, '--param', 'seed=1,2', shows=True)
    assert 'ended by SIGKILL' in capsys.readouterr().out


def test_another_sweep_of_the_same_name_is_refused(project, refused):
    project('a', None, '--param', 'seed=1')
    said = refused('a', None, '--param', 'seed=2')
    assert 'params.seed' in said and '--set sweep.name=NAME' in said
    project('a', None, '--param', 'seed=2', '--set', 'sweep.name=다른 것')


def test_a_run_of_something_else_is_not_touched(project, refused, tmp_path):
    run = tmp_path / 'a' / 'models' / 'x_sweep' / '000'
    run.mkdir(parents=True)
    (run / 'config.json').write_text('{"name": "mine"}')
    assert 'is of another sweep' in refused('a')
    assert (run / 'config.json').read_text() == '{"name": "mine"}'
    (run / 'config.json').rename(run / 'mine.txt')
    (tmp_path / 'a' / 'sweeps' / 'x_sweep' / 'journal.log').unlink()
    assert 'another mine.txt' in refused('a') and (run / 'mine.txt').is_file()


def changed(**settings):
    return SWEEP | settings


@pytest.mark.parametrize(
    'settings, arguments, expected',
    [
        (None, [], 'the config has no "sweep"'),
        ({'params': {}, 'n_trials': 2}, [], 'names nothing'),
        (changed(n_trials=None), [], 'sweep.n_trials: is missing'),
        (changed(params={'optimizer.args.lrr': [1]}), [], "did you mean 'lr'"),
        (changed(params={'optimiser.args.lr': [1]}), [], "did you mean 'optimizer.args.lr'"),
        (changed(params={'optimizer.args.lr': [0.1, 'x']}), [], 'expected a number, got "x"'),
        (changed(params={'optimizer.args.lr': {'low': 2, 'high': 1}}), [], '"low": 2'),
        (changed(params={'optimizer.args.lr': {'lo': 2, 'high': 1}}), [], 'no list of values'),
        (changed(params={'optimizer.args.lr': []}), [], 'at least one value'),
        (changed(params={'name': ['a', 'b']}), [], 'leave it out'),
        (changed(params={'seed': [1]}, seeds=[1, 2]), [], 'sweep.seeds says'),
        (changed(grid=True), [], 'a grid takes no range'),
        (changed(sampler='TPESampl'), [], "did you mean 'TPESampler'"),
        (changed(sampler='QMCSampler'), [], 'take RandomSampler'),
        (changed(sampler={'type': 'TPESampler', 'args': {'n_startup': 1}}), [], 'n_startup_trials'),
        (changed(pruner={'type': 'MedianPruner', 'args': {'n_startup_trials': -1}}), [], 'refuses'),
        (changed(n_trial=3), [], "did you mean 'n_trials'"),
        (changed(folds=1), [], 'at least 2'),
        (changed(seeds=[1, 2, 1]), [], 'leave one out'),
        (changed(params={'optimizer.args.weight_decay': [0, 0.0]}), [], '0.0 is there twice'),
        (SWEEP, ['--param', 'seed=1', '--param', 'seed=2'], 'seed is given twice'),
        (SWEEP, ['--param', 'optimizer.type=SGD, Adm'], 'called "Adm"'),
        (SWEEP, ['--set', 'trainer.monitor=off'], 'trainer.monitor'),
        (SWEEP, ['--jobs', 8], '--set sweep.parallel=8'),
        (SWEEP, ['--devices', '93'], "'93' is not here"),
        (SWEEP, ['--param', 'seed'], 'expected KEY=VALUE,VALUE'),
        (SWEEP, ['--set', 'sweep.name=../x'], 'sweep.name'),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    refused, tmp_path, settings, arguments, expected
):
    assert expected in refused('a', settings, *arguments)
    assert not (tmp_path / 'a').exists()


def test_all_that_is_wrong_is_said_at_once(project, capsys):
    params = {'optimizer.args.lr': ['x', 'y'], 'trainer.epochs': [0], 'seed': [1, 2]}
    with pytest.raises(SystemExit):
        project('a', {'params': params, 'grid': True})
    said = capsys.readouterr().err
    assert said.count('config.json:1: optimizer.args.lr') == 2 and 'trainer.epochs' in said


def test_without_optuna_it_says_what_to_install(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, 'optuna', None)
    for name in ('plan', 'search', 'report'):
        monkeypatch.delitem(sys.modules, f'tools.sweep_{name}', raising=False)
    assert 'pip install -r requirements-sweep.txt' in refused('a')


# Really


def test_a_sweep_of_real_runs(tmp_path):
    given = [
        '--set',
        f'trainer.save_dir={tmp_path}',
        'trainer.epochs=1',
        'trainer.tensorboard=false',
    ]
    done = run_script('-m', 'tools.sweep', '-c', 'config.json', '--param', 'seed=1,2', *given)
    assert 'trial 001 finished: val_loss' in done.stdout
    runs = tmp_path / 'models' / 'Digits_LeNet_sweep'
    records = [read_record(runs / name) for name in ('000', '001')]
    assert [record['state'] for record in records] == ['finished'] * 2
    assert [record['seed'] for record in records] == [1, 2]
    values = [record['best']['values']['val_loss'] for record in records]
    assert [value for *_, value, _ in trials(tmp_path, 'Digits_LeNet_sweep')] == values
