"""A script that is started without its packages says what to type."""

import subprocess
import sys
import venv

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope='module')
def bare_python(tmp_path_factory):
    """The Python of a fresh environment that holds nothing, not even pip, as uv makes them."""
    folder = tmp_path_factory.mktemp('environment')
    venv.create(folder, with_pip=False)
    return folder / ('Scripts/python.exe' if sys.platform == 'win32' else 'bin/python')


def run(python, *arguments, **environment):
    return subprocess.run(
        [python, *arguments], cwd=ROOT, text=True, capture_output=True, env=environment
    )


@pytest.mark.parametrize(
    'script',
    [
        ['train.py', '-c', 'config.json'],
        ['test.py', '-r', 'RUN'],
        ['predict.py', '-r', 'RUN', 'image.png'],
        ['-m', 'tools.find_lr', '-c', 'config.json'],
    ],
)
def test_script_without_its_packages_says_in_one_line_what_to_type(bare_python, script):
    done = run(bare_python, *script)
    said, command = done.stderr.splitlines()
    assert done.returncode == 2
    assert said.startswith(f'error: torch is not installed for {bare_python} (')
    typed = ' '.join(script)
    assert command == f'    uv pip install -r requirements.txt && {bare_python} {typed}'


@pytest.mark.parametrize('script', ['train', 'test', 'predict', 'new_project'])
def test_what_an_old_python_reads_first_is_what_says_so(script):
    imports = [
        line for line in (ROOT / f'{script}.py').read_text().splitlines() if 'import ' in line
    ]
    ours = [
        each for each in imports if each.split()[1].split('.')[0] not in sys.stdlib_module_names
    ]
    assert ours[0].startswith('import armature.packages')


def test_without_an_environment_the_line_of_the_readme_is_said():
    system = getattr(sys, '_base_executable', sys.executable)  # not the environment's
    done = run(system, '-S', 'train.py')  # -S: without whatever is installed for it
    line = (ROOT / 'README.md').read_text().split('```sh\n')[1].splitlines()[0]
    install = line.rpartition(' && ')[0]
    assert done.returncode == 2
    assert install in done.stderr


def test_broken_package_keeps_its_own_traceback(bare_python, tmp_path):
    (tmp_path / 'torch').mkdir()
    (tmp_path / 'torch/__init__.py').write_text('import sympy_of_torch\n')
    done = run(bare_python, 'train.py', PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith('Traceback') and "No module named 'sympy_of_torch'" in done.stderr
    assert 'pip install' not in done.stderr


def test_new_project_needs_nothing_but_python(bare_python, tmp_path):
    done = run(bare_python, 'new_project.py', str(tmp_path / 'mine'), '--bare')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'mine/train.py').is_file()
