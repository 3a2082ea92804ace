"""notebooks/quickstart.ipynb runs from top to bottom, as a notebook would run it."""

import json
import shutil

from tests.conftest import ROOT, run_script

CELLS = json.loads((ROOT / 'notebooks' / 'quickstart.ipynb').read_text(encoding='utf-8'))['cells']
NOT_COPIED = shutil.ignore_patterns('saved', '.git', '.venv', '__pycache__', '.*_cache')
# IPython calls this method of an exception, where it has one.
RUN_CELLS = """
import json, sys
import matplotlib
matplotlib.use('agg')
for source in json.load(open(sys.argv[1])):
    try:
        exec(source, globals())
    except Exception as error:
        print('\\n'.join(error._render_traceback_()))
"""


def test_notebook_runs(tmp_path):
    folder, cells = tmp_path, []
    for cell in CELLS:
        source = ''.join(cell['source'])
        if cell['cell_type'] != 'code':
            continue
        if source[0] not in '!%':
            cells.append(source)
            continue
        for line in source.splitlines():
            program, *arguments = line.split()
            if program == '!python':
                said = run_script(*arguments, cwd=folder, script_folder=folder).stdout
            elif program == '%cd':
                folder /= arguments[0]
            elif program == '!git':
                shutil.copytree(ROOT, folder / arguments[-1], ignore=NOT_COPIED)
            else:
                assert program == '!pip'
    assert 'Training ends' in said
    (tmp_path / 'cells.json').write_text(json.dumps(cells))
    (folder / 'run_cells.py').write_text(RUN_CELLS)
    said = run_script('run_cells.py', tmp_path / 'cells.json', cwd=folder, script_folder=folder)
    assert 'Traceback' not in said.stderr
    assert said.stdout.splitlines()[-2:] == [
        "ConfigError: trainer.epoch: unknown key (did you mean 'epochs'?)",
        "optimizer.args.learning_rate: SGD has no 'learning_rate' (did you mean 'lr'?)",
    ]


def test_notebook_is_kept_as_text():
    for cell in CELLS:
        assert not cell.get('outputs') and not cell.get('execution_count')
