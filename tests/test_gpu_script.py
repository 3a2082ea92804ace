"""tests/gpu.py keeps its promises where something goes wrong: the table is written all the same."""

import json
import os
import signal
import sys
import time

import pytest

from tests import gpu, gpu_parts, warm
from tests.conftest import ROOT

ENDS = time.monotonic() + 10**6


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(gpu_parts, 'ON_GPU', False)
    monkeypatch.setenv(gpu.ASK_DRIVER, '1')


def says(text, holds=True):
    return lambda folder: iter([('what', lambda: (text, holds))])


def fails(folder):
    yield 'first', lambda: ('fine', True)
    yield 'second', lambda: 1 / 0
    yield 'third', lambda: ('fine', True)
    raise ValueError('between two checks')


def hangs(folder):
    yield 'first', lambda: ('fine', True)
    yield 'second', lambda: time.sleep(60)


def dies(folder):
    yield 'first', lambda: os.kill(os.getpid(), signal.SIGKILL)


def test_a_failed_or_endless_part_is_a_row_and_stops_no_other(on_cpu, tmp_path):
    parts = {
        'fails': (fails, 60, False),
        'hangs': (hangs, 1, True),
        'dies': (dies, 60, False),
        'last': (says('reached'), 60, True),
    }
    rows = gpu.try_all(parts, list(parts), tmp_path, ENDS)
    assert json.loads((tmp_path / 'gpu.json').read_text())['rows'] == rows
    seen = [(row['part'], row['asked'], row['seen'], row['holds']) for row in rows]
    assert seen == [
        ('fails', 'first', 'fine', True),
        ('fails', 'second', 'failed: ZeroDivisionError: division by zero', False),
        ('fails', 'third', 'fine', True),
        ('fails', 'the part', 'failed: ValueError: between two checks', False),
        ('hangs', 'first', 'fine', True),
        ('hangs', 'second', 'failed: stopped at its limit of 1 s', False),
        ('dies', 'first', 'failed: ended by SIGKILL', False),
        ('last', 'what', 'reached', True),
    ]
    assert 'ZeroDivisionError' in (tmp_path / 'logs.txt').read_text()
    assert (tmp_path / 'gpu.md').read_text().count('\n| ') == 1 + len(rows)


def starts(folder):
    yield 'says', lambda: (gpu_parts.must('-c', 'print("done")').strip(), True)
    yield 'leaves', lambda: (repr(gpu_parts.script('-c', 'raise SystemExit("why")')), True)
    tells = 'import os; os.write(1, os.environ["RANK"].encode())'
    yield 'several', lambda: (''.join(sorted(gpu_parts.must('-c', tells, n_processes=2))), True)


def test_a_part_starts_scripts(on_cpu, tmp_path):
    rows = gpu.try_all({'starts': (starts, 60, False)}, ['starts'], tmp_path, ENDS)
    assert [row['seen'] for row in rows] == ['done', r"(1, 'why\n')", '01']


def test_what_there_is_no_time_for_is_named(on_cpu, tmp_path):
    parts = {'long': (hangs, 60, True), 'late': (says('reached'), 60, True)}
    rows = gpu.try_all(parts, list(parts), tmp_path, time.monotonic() + 1)
    assert [row['seen'] for row in rows] == [
        'fine',
        'failed: stopped at its limit of 1 s',
        'not tried: no time was left',
    ]


def test_a_stop_from_outside_leaves_the_table(tmp_path):
    command = [sys.executable, '-m', 'tests.gpu', '--dry-run', '--only', 'machine', 'resume']
    process = warm.start([*command, '--out', str(tmp_path)], cwd=ROOT)
    table = tmp_path / 'gpu.json'
    while process.poll() is None and not table.is_file():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    found = json.loads(table.read_text())
    assert 'dry run' in found['header']
    by_part = {row['part']: row for row in found['rows']}
    assert by_part['machine']['seen'] == found['header']
    assert 'stopped from outside' in by_part['resume']['seen']  # begun, or not yet
