"""Broken configs by the thousand: python -m tests.fuzz_config --count 5000

Each is the default config after a few mutations. The command line has to accept it or to leave with
exit code 2 and one line a problem; a traceback, another exit code, a stray line or a new file is a
failure.
"""

import argparse
import copy
import io
import json
import os
import sys
import tempfile
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import train
from armature.config.read import all_paths, lookup
from parse_config import ROOT, ConfigParser, CustomArgs

NAMES = [
    '',
    'Adam',
    'SGD',
    'MnistModel',
    'BaseModel',
    'os.system',
    'torch.load',
    '__class__',
    'nll_loss',
    'OneCycleLR',
    'SequentialLR',
    'ReduceLROnPlateau',
    'model.model.MnistModel',
    'utils.util.write_json',
    '..',
    'a/b',
    '\0',
    '\ud800',
    'é',
    'x' * 5000,
    'lambda: 0',
]
KEYS = [
    'type',
    'args',
    'lr',
    'epoch',
    'base',
    '$schema',
    'interval',
    'schedulers',
    'optimizer',
    '',
    'delete',
    'trainer',
    'a.b',
    '\n',
    'T_max',
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(NAMES),
    st.sampled_from([2**63, -(2**70), 10**400, 1e308, 5e-324, -0.0, -1, 0]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), inner, max_size=3),
        st.fixed_dictionaries({'type': inner, 'args': inner}),
    ),
    max_leaves=6,
)
TEXTS = [
    '\ufeff',
    '\0',
    '{',
    '}',
    ',',
    '"',
    '// x',
    '/*',
    '1e999',
    '-',
    'NaN',
    'Infinity',
    '"\\ud800"',
    '"name": 1,',
    '\udcff',
    '[' * 70,
    '9' * 5000,
    '\\',
]


def mutate(data, config: dict) -> str:
    """The text of a config after one to four mutations of its values, perhaps one of its text."""
    for _ in range(data.draw(st.integers(1, 4))):
        paths = list(all_paths(config)) or [()]
        path = data.draw(st.sampled_from(paths))
        if not path:
            break
        parent, how = (
            lookup(config, path[:-1]),
            data.draw(st.sampled_from(['replace', 'remove', 'rename', 'add', 'swap', 'deepen'])),
        )
        if how == 'replace':
            parent[path[-1]] = data.draw(VALUES)
        elif how == 'remove':
            del parent[path[-1]]
        elif how == 'rename' and isinstance(parent, dict):
            parent[
                data.draw(st.sampled_from([path[-1][:-1], f'{path[-1]}x', path[-1].upper(), *KEYS]))
            ] = parent.pop(path[-1])
        elif how == 'add' and isinstance(parent, dict):
            parent[data.draw(st.sampled_from(KEYS))] = data.draw(VALUES)
        elif how == 'swap':
            other = data.draw(st.sampled_from(paths))
            value = copy.deepcopy(lookup(config, other))
            parent[path[-1]] = value
        elif how == 'deepen':
            for _ in range(data.draw(st.sampled_from([1, 30, 100]))):
                parent[path[-1]] = [parent[path[-1]]]
    text = json.dumps(config, indent=4, ensure_ascii=data.draw(st.booleans()))
    if data.draw(st.integers(0, 3)) == 0:
        at = data.draw(st.integers(0, len(text)))
        text = (
            text[:at]
            + data.draw(st.sampled_from(TEXTS))
            + text[at + data.draw(st.integers(0, 2)) :]
        )
    return text


def run(path: str, *more: str) -> tuple[int, str]:
    """What `python train.py -c path --print-config` exits with and says, in this process."""
    parser = argparse.ArgumentParser()
    for flags in (('-c', '--config'), ('-r', '--resume'), ('-d', '--device')):
        parser.add_argument(*flags)
    errors, sys.argv = io.StringIO(), ['train.py', '-c', path, '--print-config', *more]
    try:
        with redirect_stderr(errors), redirect_stdout(io.StringIO()):
            options = [CustomArgs(['--lr'], float, 'optimizer;args;lr')]
            ConfigParser.from_args(parser, options, builds=train.BUILDS)
    except SystemExit as leaving:
        return leaving.code, errors.getvalue()
    raise AssertionError('--print-config did not leave')


def campaign(count: int) -> Counter:
    """Try `count` configs; what came of them. Raises what one of them raised."""
    outcomes, before = Counter(), _files()
    argv = sys.argv
    default = json.loads((ROOT / 'config.json').read_text())

    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def one(data):
        text = mutate(data, copy.deepcopy(default))
        Path('fuzz.json').write_bytes(text.encode('utf-8', 'surrogatepass'))
        try:
            code, said = run(str(Path('fuzz.json').resolve()))
        finally:
            os.chdir(folder)
        assert code in (0, 2), f'exit code {code}: {text}'
        lines = [line for line in said.splitlines() if not line.startswith('note: ')]
        assert bool(lines) == (code == 2), f'{said!r}: {text}'
        for line in lines:
            place, _, message = line.partition(': ')
            assert place.startswith(str(folder)) and message, f'{line!r}: {text}'
            assert 'Traceback' not in line and len(line) < 1000, line
        assert os.listdir(folder) == ['fuzz.json']
        outcomes['refused' if code else 'accepted'] += 1
        outcomes['lines'] += len(lines)

    with tempfile.TemporaryDirectory() as folder:
        folder, here = os.path.realpath(folder), os.getcwd()
        os.chdir(folder)
        try:
            one()
        finally:
            os.chdir(here)
            sys.argv = argv
    assert _files() == before, f'new files: {_files() - before}'
    return outcomes


def _files() -> set[str]:
    """What a config could have made; `.hypothesis` belongs to the library that makes them up."""
    beside = {path.name for path in ROOT.iterdir()} - {'.hypothesis'}
    return {str(path) for path in (ROOT / 'saved').rglob('*')} | beside


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--count', type=int, default=5000)
    count = parser.parse_args().count
    found = campaign(count)
    print(
        f'{found["refused"] + found["accepted"]} configs: {found["refused"]} refused with '
        f'{found["lines"]} lines, {found["accepted"]} accepted, 0 tracebacks, 0 files made'
    )
