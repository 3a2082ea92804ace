"""What a real browser shows of a run in TensorBoard."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from urllib.request import urlopen

import pytest

from tests.conftest import going_on

BROWSER = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), ''
)
FLAGS = '--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run'
# The text of a page, with what stands in shadow roots, and the width of each picture in it.
SEEN = """(() => {
    const texts = [], widths = [];
    const visit = (node) => {
        if (node.nodeType === Node.TEXT_NODE) texts.push(node.textContent.trim());
        if (node.tagName === 'IMG' || node.tagName === 'image') widths.push(node.naturalWidth || 0);
        if (node.shadowRoot) visit(node.shadowRoot);
        if (node.tagName !== 'STYLE' && node.tagName !== 'SCRIPT') node.childNodes.forEach(visit);
    };
    visit(document.body);
    return JSON.stringify([texts.filter(Boolean).join(' '), widths]);
})()"""


@contextmanager
def running(command, **options):
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


class Browser:
    """Chromium without a window, asked over a pipe (its DevTools protocol)."""

    def __init__(self, profile):
        (read, self._to), (self._from, write) = os.pipe(), os.pipe()
        launch = 'import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); '
        launch += 'os.execv(sys.argv[3], sys.argv[3:])'
        command = [sys.executable, '-c', launch, str(read), str(write), BROWSER, *FLAGS.split()]
        command += ['--remote-debugging-pipe', f'--user-data-dir={profile}', 'about:blank']
        self.process = running(command, pass_fds=(3, 4, read, write), stderr=subprocess.DEVNULL)
        self._fds, self._number, self._rest = (read, write), 0, b''

    def __enter__(self):
        self.process.__enter__()
        for fd in self._fds:
            os.close(fd)
        return self

    def __exit__(self, *error):
        os.close(self._to)
        self.process.__exit__(*error)
        os.close(self._from)

    def ask(self, method, session=None, **params):
        self._number += 1
        message = {'id': self._number, 'method': method, 'params': params}
        message |= {'sessionId': session} if session else {}
        os.write(self._to, json.dumps(message).encode() + b'\0')
        while True:
            while b'\0' not in self._rest:
                self._rest += os.read(self._from, 2**16) or pytest.fail('the browser has ended')
            answer, _, self._rest = self._rest.partition(b'\0')
            answer = json.loads(answer)
            if answer.get('id') == self._number:
                assert 'error' not in answer, answer
                return answer['result']

    def wait_for(self, url, *texts, n_pictures=0):
        """Open a page and wait until it shows `texts` and so many loaded pictures."""
        target = self.ask('Target.createTarget', url=url)['targetId']
        session = self.ask('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        deadline = time.monotonic() + 30
        while True:
            answer = self.ask('Runtime.evaluate', session, expression=SEEN)
            text, widths = json.loads(answer['result'].get('value') or '["", []]')
            if all(each in text for each in texts) and sum(w > 50 for w in widths) >= n_pictures:
                return
            assert time.monotonic() < deadline, f'{url} shows {widths} and only: {text}'
            time.sleep(0.2)


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    if not BROWSER:
        pytest.skip('needs Chromium (apt-get install chromium), which is not here')
    with Browser(tmp_path_factory.mktemp('profile')) as browser:
        yield browser


@contextmanager
def tensorboard(folder):
    """The address of a TensorBoard that shows a folder."""
    command = [sys.executable, '-m', 'tensorboard.main', '--logdir', folder, '--port', '0']
    command += ['--host', '127.0.0.1']
    streams = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    with running(command, **streams) as process, process.stdout:
        said = ''
        for line in process.stdout:
            said += line
            if found := re.search(r'http://\S+', line.partition(' at ')[2]):
                yield found[0]
                return
        pytest.fail(said)


def test_browser_shows_scalars_hyperparameters_and_figures(experiment, browser):
    settings = {'tensorboard': True, 'log_step': 2, 'pictures': ['confusion_matrix', 'roc', 'pr']}
    half = experiment.trainer(epochs=1, **settings)
    half.train()
    going_on(experiment, half, epochs=2, **settings).train()
    run = half.checkpoint_dir.name
    with tensorboard(half.config.log_dir.parent) as address:
        url = f'{address}data/plugin/scalars/scalars?run={run}&tag='
        for tag, steps in {
            'loss%2Ftrain': [2, 4, 6, 8, 10, 12],  # none twice, and all in one run
            'accuracy%2Fvalid': [6, 12],
        }.items():
            with urlopen(url + tag) as answer:
                assert [step for _, step, _ in json.load(answer)] == steps
        browser.wait_for(f'{address}#scalars', 'accuracy/train', 'best/val_loss', run)
        browser.wait_for(f'{address}#hparams', 'optimizer.lr', 'StepLR', 'best/val_loss', run)
        for name in settings['pictures']:
            filtered = f'{address}#images&tagFilter={name}'
            browser.wait_for(filtered, f'{name}/valid', 'step 12', n_pictures=1)
