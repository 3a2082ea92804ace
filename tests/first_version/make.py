"""Makes the test data of this folder, by the code at the git tag first-version: python make.py

runs/NAME: a run that SIGTERM interrupted, as it was left: config.json and its newest checkpoint.
project/: a project from new_project.py whose user has changed and added files, as a git bundle, and
an interrupted run of it. expected.json: what the first version itself reaches when it goes on with
each of them, in one process (resume.py says what the numbers are).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from copy import deepcopy
from pathlib import Path

import torch
from resume import HERE, loss_said_in, resumed, unpack_project, unpack_run

TAG = 'first-version'

# (the config that it starts from, what the run changes in it, where the signal arrives): after so
# many epochs, or after so many steps, inside an epoch. Small models and few states of an optimizer
# keep the files small.
RUNS = {
    'plain': (
        'config.json',
        {
            'optimizer': {'type': 'SGD', 'args': {'lr': 0.05, 'momentum': 0.9}},
            'lr_scheduler': {'type': 'StepLR', 'args': {'step_size': 3, 'gamma': 0.5}},
            'trainer': {'epochs': 4, 'ema_decay': None, 'tensorboard': False},
        },
        {'epoch': 2},
    ),
    'ema': ('config.json', {'trainer': {'epochs': 3}}, {'epoch': 1}),
    'inside': (
        'config.json',
        {
            'data_loader': {'args': {'batch_size': 64}},
            'optimizer': {'type': 'SGD', 'args': {'lr': 0.05, 'momentum': 0.9}},
            'lr_scheduler': {
                'type': 'OneCycleLR',
                'args': {'max_lr': 0.1, 'total_steps': 'auto'},
                'interval': 'step',
            },
            'trainer': {
                'epochs': 3,
                'microbatch_size': 16,
                'max_grad_norm': 1.0,
                'ema_decay': None,
                'tensorboard': False,
            },
        },
        {'step': 30},
    ),
    'tabular': (
        'examples/tabular/config.json',
        {
            'arch': {'args': {'hidden': [8, 4]}},
            'trainer': {'epochs': 6},
        },
        {'epoch': 3},
    ),
    'groups': (
        'examples/tabular/config.json',
        {
            'arch': {'args': {'hidden': [8, 4]}},
            'data_loader': {'args': {'stratify': None, 'group_by': 'price'}},
            'trainer': {'epochs': 4},
        },
        {'epoch': 2},
    ),
    'swa': (
        'examples/regression/config.json',
        {
            'trainer': {'epochs': 6, 'swa_start': 2},
        },
        {'epoch': 4},
    ),
    'gan': (
        'examples/gan/config.json',
        {
            'arch': {'args': {'n_latent': 2}},
            'data_loader': {'args': {'batch_size': 128}},
            'trainer': {'epochs': 3},
        },
        {'step': 18},
    ),
    # Stops when three epochs of early_stop's five and one of the scheduler's patience are used up.
    'plateau': (
        'examples/own_dataset/config.json',
        {
            'data_loader': {'args': {'validation_split': 0, 'n_folds': 5, 'fold': 2}},
            'lr_scheduler': {
                'type': 'ReduceLROnPlateau',
                'args': {'mode': 'max', 'factor': 0.5, 'patience': 1},
            },
            'trainer': {'epochs': 40, 'early_stop': 5},
        },
        {'epoch': 10},
    ),
    # The processes agree on the stop some steps later, still in the same epoch.
    'sharded': (
        'examples/own_dataset/config.json',
        {
            'data_loader': {'args': {'dataset': {'args': {'n_waves': 400}}}},
            'distributed': {'strategy': 'fsdp', 'checkpoint': 'sharded'},
            'trainer': {'epochs': 3},
        },
        {'step': 18},
    ),
}
TWO_PROCESSES = ('sharded',)

# What the project's user did. Each edit is (file, text that is there, text that takes its place).
EDITS = [
    (
        'base/base_trainer.py',
        '    # One epoch\n',
        '''    # One epoch

    def share_done(self) -> float:
        """The share of the run that is behind us."""
        return self.step / (self.epochs * self.len_epoch)
''',
    ),
    ('base/average.py', 'else (1, 1)', 'else (5, 1)  # the first steps only disturb the average'),
    (
        'model/model.py',
        'class TabularModel(',
        '''class Small(BaseModel):
    """(batch, 1, 28, 28) -> (batch, 10) log-probabilities"""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(49, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.log_softmax(self.out(F.avg_pool2d(x, 4).flatten(1)), dim=1)


class TabularModel(''',
    ),
    (
        'trainer/trainer.py',
        'from base.losses import is_sum\n',
        'from base.losses import is_sum\nfrom base.mine import in_percent\n',
    ),
    (
        'trainer/trainer.py',
        '        self.schedule.end_epoch(log)\n',
        '        self.schedule.end_epoch(log)\n'
        "        log['done'] = in_percent(self.share_done())\n",
    ),
]
ADDED = {
    'base/mine.py': '''"""Helpers of our own."""


def in_percent(share: float) -> float:
    return 100 * share
'''
}
PROJECT_CONFIG = {'name': 'own', 'arch': {'type': 'Small'}, 'trainer': {'epochs': 4}}


def main() -> None:
    repository = HERE.parent.parent
    with tempfile.TemporaryDirectory() as temporary:
        first = Path(temporary) / 'first'
        subprocess.run(
            ['git', 'worktree', 'add', '--quiet', '--detach', first, TAG],
            cwd=repository,
            check=True,
        )
        try:
            make_all(first, Path(temporary))
        finally:
            subprocess.run(
                ['git', 'worktree', 'remove', '--force', first], cwd=repository, check=True
            )


def make_all(first: Path, temporary: Path) -> None:
    for made in (HERE / 'runs', HERE / 'project'):
        shutil.rmtree(made, ignore_errors=True)
    expected = {}

    for name, (config, changes, where) in RUNS.items():
        config = changed(read_with_comments(first / config), {'name': name, **changes})
        with_code_of(first, 'interrupt', config, where, n_processes=1 + (name in TWO_PROCESSES))
        keep_run(first / 'saved/models' / name / 'run', HERE / 'runs' / name)
        expected[name] = with_code_of(first, 'resume', str(unpack_run(name, temporary / name)))

    project = make_project(first, temporary / 'project')
    with_code_of(
        project, 'interrupt', json.loads((project / 'config.json').read_text()), {'epoch': 2}
    )
    keep_run(project / 'saved/models/own/run', HERE / 'project' / 'run')
    expected['project'] = with_code_of(
        project, 'resume', str(unpack_project(temporary / 'unpacked'))
    )

    command = [sys.executable, first / 'test.py', '-r', HERE / 'runs/ema', '-d', 'cpu']
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expected['ema']['test_loss'] = loss_said_in(done.stdout)
    lines = ',\n'.join(f'"{name}": {json.dumps(reached)}' for name, reached in expected.items())
    (HERE / 'expected.json').write_text(f'{{\n{lines}\n}}\n')  # one line for each run


def make_project(first: Path, folder: Path) -> Path:
    """A project of the first version that its user has worked on; project.bundle is its history."""
    git = ['git', '-c', 'user.name=user', '-c', 'user.email=user@localhost']
    subprocess.run([sys.executable, first / 'new_project.py', folder], check=True)
    for path, before, after in EDITS:
        text = (folder / path).read_text()
        assert text.count(before) == 1, (path, before)
        (folder / path).write_text(text.replace(before, after))
    for path, content in ADDED.items():
        (folder / path).write_text(content)
    config = changed(json.loads((folder / 'config.json').read_text()), PROJECT_CONFIG)
    (folder / 'config.json').write_text(json.dumps(config, indent=4) + '\n')
    subprocess.run([*git, 'add', '-A'], cwd=folder, check=True)
    subprocess.run([*git, 'commit', '--quiet', '-m', 'Our experiment'], cwd=folder, check=True)
    (HERE / 'project').mkdir()
    bundle = HERE / 'project' / 'project.bundle'
    subprocess.run(
        ['git', 'bundle', 'create', '--quiet', bundle, 'HEAD', '--all'], cwd=folder, check=True
    )
    return folder


def keep_run(run: Path, kept: Path) -> None:
    """Copy what a run is resumed from; its older and best checkpoints would only take space."""
    unneeded = shutil.ignore_patterns('.lock', 'checkpoint-epoch*', 'model_best*')
    shutil.copytree(run, kept, ignore=unneeded)
    head = torch.load(kept / 'checkpoint-last.pth', weights_only=True)
    for parts in kept.glob('shards-*'):
        if parts.name != head['shards']['folder']:
            shutil.rmtree(parts)


def changed(config: dict, changes: dict) -> dict:
    """`config` with `changes` laid over it, section by section; None removes a key.

    A section with another "type" is replaced whole.
    """
    config = deepcopy(config)
    for key, value in changes.items():
        is_section = isinstance(value, dict) and isinstance(config.get(key), dict)
        if value is None:
            config.pop(key, None)
        elif is_section and value.get('type') in (None, config[key].get('type')):
            config[key] = changed(config[key], value)
        else:
            config[key] = value
    return config


def read_with_comments(path: Path) -> dict:
    lines = path.read_text().splitlines()
    return json.loads('\n'.join(line for line in lines if not line.lstrip().startswith('//')))


def with_code_of(folder: Path, action: str, *arguments, n_processes: int = 1):
    """Run one of the functions below in processes that import the code in `folder`."""
    launch = [sys.executable]
    if n_processes > 1:
        launch += ['-m', 'torch.distributed.run', '--nproc-per-node', str(n_processes)]
    environment = {**os.environ, 'PYTHONPATH': str(folder), 'OMP_NUM_THREADS': '1'}
    with tempfile.TemporaryDirectory() as answers:
        answer = Path(answers) / 'answer.json'
        command = [*launch, __file__, action, json.dumps(arguments), str(answer)]
        done = subprocess.run(command, cwd=folder, env=environment, timeout=300)
        assert answer.is_file(), f'{command} left with {done.returncode}'
        return json.loads(answer.read_text())


def interrupt(config: dict, where: dict) -> None:
    """Train `config` until SIGTERM arrives at `where`; the run's folder is called 'run'."""
    import train
    from parse_config import ConfigParser

    parser = ConfigParser(config, run_id='run')
    with parser.processes():
        trainer = train.build(parser)
        finish_epoch, step = trainer._finish_epoch, trainer.stepper.step

        def finish_epoch_and_stop(epoch: int, averages: dict) -> None:
            finish_epoch(epoch, averages)
            if epoch == where.get('epoch'):
                signal.raise_signal(signal.SIGTERM)

        def step_and_stop() -> None:
            step()
            if trainer.step == where.get('step'):
                signal.raise_signal(signal.SIGTERM)

        trainer._finish_epoch, trainer.stepper.step = finish_epoch_and_stop, step_and_stop
        try:
            trainer.train()
        except SystemExit as left:
            assert left.code == 143


def resume(run: str) -> dict:
    return resumed(Path(run))


if __name__ == '__main__':
    if len(sys.argv) == 1:
        main()
    else:
        action, arguments, answer = sys.argv[1:]
        result = {'interrupt': interrupt, 'resume': resume}[action](*json.loads(arguments))
        Path(answer).write_text(json.dumps(result))
