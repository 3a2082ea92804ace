"""tools.serve: answers as the model does, refuses with a word, and lives through all of it."""

import argparse
import contextlib
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from predict import load_run
from tests.browser import Page, browser
from tests.conftest import ROOT
from tests.serve_faults import attack
from tests.test_export import exported
from tests.trained import inputs_of, measured, train_run
from tools.arguments import positive_number

httpx = pytest.importorskip('httpx', reason='needs requirements-dev.txt')
pytest.importorskip('fastapi', reason='needs requirements-serve.txt')
from fastapi.testclient import TestClient  # noqa: E402

from tools.serve import Limits, create_app  # noqa: E402

# Runs a module where torch cannot be imported.
WITHOUT_TORCH = 'import runpy, sys; sys.modules["torch"] = None; runpy.run_module(sys.argv.pop(1), '
WITHOUT_TORCH += 'run_name="__main__", alter_sys=True)'


@pytest.fixture(scope='module')
def run_of(tmp_path_factory):
    folder, runs = tmp_path_factory.mktemp('runs'), {}
    return lambda kind: runs.get(kind) or runs.setdefault(kind, train_run(kind, folder))


@contextlib.contextmanager
def served(model: Path, without_torch: bool = False) -> Iterator[tuple]:
    """(its address, the process) of a server, as a user starts one."""
    start = ['-c', WITHOUT_TORCH] if without_torch else ['-m']
    process = subprocess.Popen(
        [sys.executable, *start, 'tools.serve', '-r', str(model), '--port', '0'],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield re.search(r'http://\S+', line)[0], process
    finally:
        process.kill()
        process.communicate()


def png(pixels: np.ndarray | None = None) -> bytes:
    file = io.BytesIO()
    pixels = np.zeros((28, 28), np.uint8) if pixels is None else pixels
    Image.fromarray(pixels).save(file, 'png')
    return file.getvalue()


@pytest.mark.parametrize('kind', ['images', 'tabular', 'sequence', 'own_dataset'])
def test_a_served_run_is_as_right_as_test_says(kind, run_of, tmp_path):
    run, (inputs, right) = load_run(run_of(kind)), inputs_of(kind, tmp_path)
    client, rows = TestClient(create_app(run)), []
    format_ = run.input_format
    sources = [each for file in format_.files_in(inputs) for _, each in format_.sources(file)]
    for first in range(0, len(sources), 200):
        some = sources[first : first + 200]
        if kind == 'images':
            answer = client.post(
                '/predict', files=[('file', Path(each).read_bytes()) for each in some]
            )
        else:
            some = [each.tolist() if isinstance(each, np.ndarray) else each for each in some]
            answer = client.post('/predict', json={'inputs': some})
        rows += answer.json()['predictions']
    accuracy = np.mean([row['prediction'] == answer for row, answer in zip(rows, right)])
    assert len(rows) == len(right)
    assert accuracy == pytest.approx(measured(run_of(kind)), abs=1e-6)


def test_what_is_too_much_or_wrong_is_refused_with_a_word(run_of):
    limits = Limits(max_bytes=10_000, max_pixels=1000, max_inputs=2)
    client = TestClient(create_app(load_run(run_of('images')), limits))

    def refused(**request) -> tuple[int, str]:
        answer = client.post('/predict', **request)
        return answer.status_code, answer.json()['detail']

    assert client.post('/predict', content=png()).status_code == 200
    assert refused(content=bytes(10_001)) == (413, 'more than 10,000 bytes')
    status, why = refused(content=png(np.zeros((40, 40), np.uint8)))
    assert (status, why) == (422, 'the image has 40 x 40 pixels: at most 1,000')
    assert refused(content=b'') == (422, 'the image cannot be read as an image (it is empty)')
    assert refused(json=[1])[0] == 422
    assert refused(files=[('file', png())] * 3)[0] == 413
    both = client.post('/predict', files=[('file', png()), ('file', b'no image')])
    assert 'prediction' in both.json()['predictions'][0]
    assert 'cannot be read' in both.json()['predictions'][1]['error']
    counted = client.get('/metrics').text
    assert 'predict_requests_total{status="413"} 2' in counted
    assert 'predict_latency_seconds{quantile="0.99"}' in counted
    assert '/predict' in client.get('/openapi.json').json()['paths']


def test_rows_are_asked_for_as_json_and_unknown_categories_are_said(run_of):
    client = TestClient(create_app(load_run(run_of('tabular'))))
    row = {'thousand_km': 9, 'price': 'low', 'upkeep': 'low', 'doors': 4, 'seats': 4, 'safety': 'x'}
    as_curl = {'Content-Type': 'application/x-www-form-urlencoded'}  # without its -H
    refused = client.post('/predict', content=json.dumps(row), headers=as_curl)
    assert refused.json()['detail'].endswith('with the header Content-Type: application/json')
    none = client.post('/predict', json={'inputs': []})
    assert (none.status_code, none.json()['detail']) == (422, 'expected 1 to 256 inputs')
    (note,) = client.post('/predict', json=row).json()['notes']
    assert "'safety': training does not have the category of 1 of 1 rows (such as 'x')" in note
    assert 'notes' not in client.post('/predict', json=row | {'safety': 'high'}).json()


def test_requests_beyond_the_queue_or_the_time_are_refused():
    """With a model that takes as long as it is told to."""
    from tools.use_inputs import ArrayInput

    class Slow:
        input_format, class_names = ArrayInput([1]), None
        may_go_on = threading.Event()

        def predict(self, sources, top):
            self.may_go_on.wait(20)
            return [{'value': float('nan')} for _ in sources]

    model = Slow()
    with TestClient(create_app(model, Limits(timeout_s=0.2))) as client:
        late = client.post('/predict', json=[1])
        assert (late.status_code, late.headers['retry-after']) == (503, '1')
        assert 'not done within 0.2 seconds' in late.json()['detail']
        model.may_go_on.set()
    model.may_go_on.clear()
    with TestClient(create_app(model, Limits(max_queue=1))) as client:
        first = threading.Thread(target=client.post, args=('/predict',), kwargs={'json': [1]})
        first.start()
        while client.get('/health').json()['waiting'] == 0:
            pass
        busy = client.post('/predict', json=[1])
        assert (busy.status_code, busy.json()['detail'][:17]) == (503, '1 requests wait a')
        model.may_go_on.set()
        first.join()
        assert client.post('/predict', json=[1]).json() == {'predictions': [{'value': None}]}


@pytest.mark.parametrize('kind', ['images', 'tabular', 'sequence', 'own_dataset'])
def test_hostile_requests_leave_the_server_answering(kind, run_of):
    honest = {
        'images': {'content': png()},
        'tabular': {
            'json': dict.fromkeys(
                ['thousand_km', 'price', 'upkeep', 'doors', 'seats', 'safety'], None
            )
        },
        'sequence': {'json': 'the soup is good'},
        'own_dataset': {'json': [0.5] * 32},
    }[kind]
    client = TestClient(create_app(load_run(run_of(kind))))
    counts = attack(client, {'method': 'POST', 'url': '/predict', **honest}, 200)
    assert counts[422] > 50


def test_an_exported_model_is_served_without_torch_and_ends_its_work(run_of, tmp_path, monkeypatch):
    exported(run_of('images'), 'onnx', tmp_path / 'out', monkeypatch)
    with served(tmp_path / 'out', without_torch=True) as (url, process):
        (found,) = httpx.post(f'{url}/predict?top=3', content=png()).json()['predictions']
        (expected,) = load_run(run_of('images') / 'best').predict([png()], top=3)
        assert found == pytest.approx(expected, abs=1e-5)
        # Half of a request, then SIGTERM: it is answered all the same, and nothing new is taken.
        host, port = url.removeprefix('http://').split(':')
        with socket.create_connection((host, int(port))) as line:
            body = png()
            head = f'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n'
            line.sendall(head.encode() + body[:50])
            assert httpx.get(f'{url}/health').json()['status'] == 'ok'  # it has read that much
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(httpx.TransportError):
                while httpx.get(f'{url}/health').status_code:
                    pass
            line.sendall(body[50:])
            assert b'200 OK' in line.recv(100_000)
        assert process.wait(30) in (0, -signal.SIGTERM)


def test_a_port_in_use_is_one_line(run_of, tmp_path, monkeypatch):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / 'gone.onnx').touch()
        done = subprocess.run(
            [sys.executable, '-m', 'tools.serve', '-r', run_of('own_dataset'), '--port', str(port)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    assert (done.returncode, done.stderr.count('\n')) == (2, 1), done.stderr
    assert f'127.0.0.1:{port} cannot be had' in done.stderr and '--port' in done.stderr


@pytest.mark.skipif(browser() is None, reason='needs Chromium (apt-get install chromium)')
def test_the_page_shows_bars_for_what_is_drawn_and_chosen(run_of, tmp_path):
    with served(run_of('images')) as (url, _), Page(url, tmp_path / 'profile') as page:
        page.wait('document.querySelector("canvas") !== null')
        box = page.run(
            '(({x, y}) => [x, y])(document.querySelector("canvas").getBoundingClientRect())'
        )
        for kind, across, down in (
            ('mousePressed', 98, 30),
            ('mouseMoved', 98, 100),
            ('mouseMoved', 98, 170),
            ('mouseReleased', 98, 170),
        ):
            page.mouse(kind, box[0] + across, box[1] + down)
        drawn = page.wait('document.querySelectorAll(".bar").length')
        assert drawn == 10
        assert page.run('document.getElementById("error").textContent') == ''
        # A file that is no image: its reason is shown.
        page.run("""(() => {
            const files = new DataTransfer()
            files.items.add(new File(['no image'], 'a.png'))
            const choose = document.getElementById('file')
            choose.files = files.files
            choose.onchange()
        })()""")
        assert 'cannot be read' in page.wait('document.getElementById("error").textContent')
        outside = page.run('performance.getEntriesByType("resource").map(each => each.name)')
        assert all(each.startswith((url, 'blob:')) for each in outside), outside


@pytest.mark.skipif(browser() is None, reason='needs Chromium (apt-get install chromium)')
def test_the_page_has_a_field_for_each_column(run_of, tmp_path):
    with served(run_of('tabular')) as (url, _), Page(url, tmp_path / 'profile') as page:
        page.wait('document.querySelector("form") !== null')
        page.run("""(() => {
            document.querySelector('[name=thousand_km]').value = '20'
            document.querySelector('[name=price]').value = 'low'
            document.querySelector('form button').click()
        })()""")
        assert page.wait('document.querySelectorAll(".bar").length') == 4
        page.run("show({'probability_0': 0.2, 'probability_1': 0.9})")  # labels without names
        assert page.run('document.querySelectorAll(".bar").length') == 6


@pytest.mark.parametrize('text', ['nan', '-3', '0', 'inf', 'x'])
def test_a_limit_is_a_number_above_0(text):
    with pytest.raises(argparse.ArgumentTypeError, match='is not a number above 0'):
        positive_number(text)
    assert positive_number('0.5') == 0.5
