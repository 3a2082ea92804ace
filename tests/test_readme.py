"""What users copy is code.

The README's blocks are run, and what it shows of our code stands there.
"""

import re
import shutil

from tests.conftest import ROOT, run_script

README = (ROOT / 'README.md').read_text(encoding='utf-8')
NOT_COPIED = shutil.ignore_patterns('saved', '.git', '.venv', '__pycache__', '.*_cache')


def blocks(language):
    fenced = README.split('```')[1::2]
    return [block.partition('\n')[2] for block in fenced if block.partition('\n')[0] == language]


def test_training_step_in_the_readme_is_the_real_one():
    (step,) = (block for block in blocks('python') if '_train_epoch' in block)
    assert step.strip() in (ROOT / 'trainer' / 'trainer.py').read_text(encoding='utf-8')


def test_continuous_integration_runs_the_line_of_the_readme_for_tests():
    pattern = re.search("'(.*)'", (ROOT / '.ci/run').read_text())[1]
    (line,) = re.findall(pattern, README, re.MULTILINE)
    *install, tests = line.split(' && ')
    others = [block.splitlines()[0].split(' && ') for block in blocks('sh')[:4]]
    assert others[2] == [*install, tests]
    assert [(first[0], first[-1]) for first in (others[0], others[2])] == [
        ('python3 -m venv .venv', '.venv/bin/python train.py -c config.json'),
        ('python3 -m venv .venv', tests),
    ]
    # With uv beside each, which does the same.
    assert [other[-1] for other in others] == [others[0][-1]] * 2 + [tests] * 2


def test_every_path_in_the_readme_exists():
    (tree,) = (block for block in blocks('') if block.startswith('train.py'))
    names = re.findall(
        r'[\w/]+(?:\.py|\.json|/)(?=\s)', '\n'.join(line[:24] + ' ' for line in tree.splitlines())
    )
    names += re.findall(r'\]\(([^)]+)\)', README) + re.findall(r'python (\S+\.py)', README)
    assert len(names) > 20
    assert [name for name in names if not (ROOT / name).exists() and name != 'saved/'] == []


def test_commands_of_the_readme_run(tmp_path):
    project = tmp_path / 'clone'
    shutil.copytree(ROOT, project, ignore=NOT_COPIED)
    config = project / 'config.json'
    config.write_text(
        re.sub(r'"epochs": \d+', '"epochs": 2', config.read_text())
    )  # the only change: shorter
    run_script('train.py', '-c', 'config.json', cwd=project, script_folder=project, fresh=True)
    (run,) = (project / 'saved' / 'models' / 'Digits_LeNet').iterdir()
    shutil.copy(run / 'checkpoint-epoch1.pth', tmp_path / 'checkpoint.pth')
    (commands,) = (block for block in blocks('sh') if 'anywhere' in block)
    said = {}
    for command in commands.splitlines():
        program, *arguments = (
            command.partition('#')[0]
            .replace('anywhere', str(tmp_path))
            .replace('RUN', run.name)
            .split()
        )
        if program == 'python' and arguments[1:] != ['-c', 'config.json']:
            said[command] = run_script(
                *arguments,
                cwd=project,
                script_folder=project,
                fresh=arguments[0] == 'test.py',
            ).stdout
    going_on, copied, smoke, or_start, test = list(said.values())[2:]
    assert 'This run is finished: all 2 epochs' in going_on and '--set trainer.epochs=' in going_on
    assert 'Resume training from epoch 2' in copied
    assert 'The rehearsal went well' in smoke
    assert 'Training ends' in or_start and 'Resume' not in or_start
    assert 'accuracy' in test and '-> ' not in test
    # A new run, one with --lr, one with --set, the copied checkpoint, and the one begun because the
    # newest was finished
    assert len(list((project / 'saved' / 'models' / 'Digits_LeNet').iterdir())) == 5
    assert list((project / 'saved' / 'log').rglob('events.out.tfevents.*')) and list(
        (project / 'saved' / 'log').rglob('info.log')
    )
    assert len((run / 'metrics.csv').read_text().splitlines()) == 3
