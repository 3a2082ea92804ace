"""The lessons of docs/course.md run, and the pictures in it are what they draw."""

import re
import runpy
import sys

import pytest
import torch

from tests.conftest import ROOT

COURSE = ''.join(
    (ROOT / 'docs' / name).read_text(encoding='utf-8') for name in ('course.md', 'course_2.md')
)
LESSONS = sorted(path.stem for path in ROOT.glob('examples/course/[a-z]*.py'))


@pytest.fixture
def lesson(monkeypatch, tmp_path):
    """Run a lesson by name as `python -m` does, in an empty folder."""
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use('agg')
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        with torch.random.fork_rng():
            runpy.run_module(f'examples.course.{name}', run_name='__main__')
        plt.close('all')

    return run


@pytest.mark.filterwarnings('ignore:.*torch.jit.trace:FutureWarning')
@pytest.mark.parametrize('name', [each for each in LESSONS if each != 'checkpoints'])
def test_lesson_runs(lesson, name, tmp_path, capsys):
    lesson(name)
    assert capsys.readouterr().out
    for picture in (tmp_path / 'saved').glob('*.png'):
        assert (ROOT / 'docs' / 'pictures' / picture.name).stat().st_size > 1000


def test_lesson_of_checkpoints_shows_what_a_run_has_left(lesson, experiment, capsys):
    trainer = experiment.trainer(epochs=1)
    trainer.train()
    lesson('checkpoints', trainer.checkpoint_dir)
    assert 'hidden.weight        (8, 4)' in capsys.readouterr().out


def test_course_names_every_lesson():
    assert sorted(set(re.findall(r'examples\.course\.(\w+)', COURSE))) == LESSONS
    numbers = [int(number) for number in re.findall(r'^\*\*(\d+)\.', COURSE, re.M)]
    assert numbers == list(range(1, len(numbers) + 1))
