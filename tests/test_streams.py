"""A run goes on when nobody listens: closed, cut off or ASCII-only standard streams."""

import io
import logging
import os
import subprocess
import sys

from armature.errors import steady_streams
from tests.conftest import ROOT


def cut_off():
    """A text stream into a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    stream = os.fdopen(writer, 'w', encoding='utf-8')
    os.close(reader)
    return stream


def test_stream_that_nobody_reads_is_written_to_without_an_error(monkeypatch):
    said = []
    with cut_off() as out, cut_off() as err:
        monkeypatch.setattr(sys, 'stdout', out)
        monkeypatch.setattr(sys, 'stderr', err)
        steady_streams()
        handler = logging.StreamHandler(sys.stdout)
        handler.handleError = said.append
        for _ in range(3):
            print('a line', flush=True)
            handler.emit(logging.makeLogRecord({'msg': 'a line'}))
        sys.stderr.write('x' * 100_000)
        sys.stdout.flush()  # as the interpreter does at its end
        sys.stderr.flush()
    assert not said


def test_stream_that_takes_ascii_only_gets_question_marks(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(raw, encoding='ascii'))
    monkeypatch.setattr(sys, 'stderr', io.TextIOWrapper(io.BytesIO(), encoding='ascii'))
    steady_streams()
    print('naïve', flush=True)
    assert raw.getvalue() == b'na?ve\n'


def test_streams_that_are_closed_lead_nowhere_and_leave_their_numbers_to_nobody():
    script = (
        'import os, sys; from armature.errors import exit_on_user_error\n'
        'with exit_on_user_error():\n'
        '    print(1); sys.stderr.isatty(); sys.exit(7 if os.open(os.devnull, 0) > 2 else 8)'
    )
    command = f'exec {sys.executable} -c "$0" >&- 2>&-'
    done = subprocess.run(['sh', '-c', command, script], cwd=ROOT, stdin=subprocess.DEVNULL)
    assert done.returncode == 7
