"""A real browser, driven through a pipe by the DevTools protocol: only Chromium is needed."""

import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')


def browser() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A page of a headless Chromium: Page(url, profile folder), `with` ends it."""

    def __init__(self, url: str, profile: Path):
        self._numbers = itertools.count(1)
        (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
        # Chromium reads commands from descriptor 3 and answers on 4.
        quiet = '--headless --no-sandbox --disable-gpu --disable-background-networking'
        command = (
            f'exec {browser()} {quiet} --disable-dev-shm-usage --user-data-dir={profile} '
            f'--remote-debugging-pipe about:blank 3<&{theirs_in} 4>&{theirs_out}'
        )
        self._process = subprocess.Popen(
            ['bash', '-c', command],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._out, self._in, self._session = os.fdopen(ours_out, 'wb'), os.fdopen(ours_in, 'rb'), {}
        target = self._ask('Target.createTarget', url=url)['targetId']
        session = self._ask('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        self._session = {'sessionId': session}
        self._ask('Runtime.enable')

    def _ask(self, method: str, **params) -> dict:
        number = next(self._numbers)
        message = {'id': number, 'method': method, 'params': params, **self._session}
        self._out.write(json.dumps(message).encode() + b'\0')
        self._out.flush()
        while True:
            said = bytearray()
            while (byte := self._in.read(1)) != b'\0':
                assert byte, 'the browser has ended'
                said += byte
            answer = json.loads(said)
            if answer.get('id') == number:
                assert 'error' not in answer, answer
                return answer['result']

    def run(self, script: str):
        """The value of a JavaScript expression on the page; promises are waited for."""
        options = {'returnByValue': True, 'awaitPromise': True}
        found = self._ask('Runtime.evaluate', expression=script, **options)
        assert 'exceptionDetails' not in found, found
        return found['result'].get('value')

    def wait(self, script: str, timeout_s: float = 30):
        """The value of the expression as soon as it is true."""
        give_up = time.monotonic() + timeout_s
        while not (value := self.run(script)):
            assert time.monotonic() < give_up, f'{script}: {self.run("document.body.innerText")}'
            time.sleep(0.05)
        return value

    def mouse(self, kind: str, x: float, y: float) -> None:
        """kind: 'mousePressed', 'mouseMoved' or 'mouseReleased'."""
        options = {'button': 'left', 'buttons': 1, 'clickCount': 1}
        self._ask('Input.dispatchMouseEvent', type=kind, x=x, y=y, **options)

    def __enter__(self) -> 'Page':
        return self

    def __exit__(self, *_) -> None:
        self._out.close()
        self._process.terminate()
        self._process.wait(20)
        self._in.close()
