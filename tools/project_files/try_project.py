"""Run inside a copy of a project: imports its modules, then lets its script train for two steps.

    python try_project.py RESULTS SCRIPT CONFIG MODULE...

Writes a line of JSON for each thing tried, at once: [what, '' or what went wrong].
"""

import importlib
import json
import os
import runpy
import socket
import sys
import time
import traceback

results, script, config, *modules = sys.argv[1:]
PROJECT = os.getcwd()
FIRST_STEPS = 'the first steps'


def write(what: str, problem: str = '') -> None:
    with open(results, 'a', encoding='utf-8') as file:
        file.write(json.dumps([what, problem]) + '\n')


def described(error: BaseException) -> str:
    """The error in a line, with the last place in the project's own files."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [
        f'{os.path.relpath(frame.filename, PROJECT)}:{frame.lineno}: '
        for frame in frames
        if frame.filename[0] != '<'
        and os.path.realpath(frame.filename).startswith(os.path.realpath(PROJECT) + os.sep)
    ]
    text = ' '.join(str(error).split())[:200]
    return f'{places[-1] if places else ""}{type(error).__name__}: {text}'


def connect(self: socket.socket, address: object) -> None:
    """Nothing is downloaded or reported in a trial."""
    if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith('127.'):
        raise OSError('there is no network in this trial')
    connect_anywhere(self, address)


def guard(event: str, args: tuple) -> None:
    """Nothing that was there before is changed outside of the copies: large data is linked."""
    if event == 'open' and args[2] & (os.O_WRONLY | os.O_RDWR) or event == 'os.truncate':
        targets = [os.path.realpath(each) for each in args[:1] if not isinstance(each, int)]
    elif event in (
        'os.remove',
        'os.rename',
        'shutil.rmtree',
    ):  # of a link itself, not of what it leads to
        targets = [
            os.path.join(os.path.realpath(os.path.dirname(each)), os.path.basename(each))
            for each in map(os.fsdecode, args[: 1 + (event == 'os.rename')])
        ]
    else:
        return
    for target in map(os.fsdecode, targets):
        is_there = os.path.isdir(target) or os.path.isfile(target) and os.path.getsize(target)
        if is_there and not target.startswith(COPIES) and os.stat(target).st_mtime < STARTED:
            raise PermissionError(f'{target}: a trial changes nothing outside of its copy')


COPIES = os.path.realpath(os.path.dirname(os.path.dirname(results))) + os.sep
STARTED = time.time() - 1  # what the trial has made itself it may change
sys.addaudithook(guard)
connect_anywhere, socket.socket.connect = socket.socket.connect, connect
sys.path[0] = PROJECT

for module in modules:
    try:
        importlib.import_module(module)
        write(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a script may leave, a library may raise anything
        write(module, described(error))

if script:
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    n_steps = 0

    def after_step(*_: object) -> None:
        """The second step shows that what follows the first one works too."""
        global n_steps
        n_steps += 1
        if n_steps == 2:
            write(FIRST_STEPS)
            os._exit(0)

    register_optimizer_step_post_hook(after_step)
    torch.set_num_threads(1)
    sys.argv = [script, '-c', config]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    try:
        runpy.run_path(script, run_name='__main__')
        write(FIRST_STEPS)
    except SystemExit as error:
        write(FIRST_STEPS, f'it left with {error.code}' if error.code else '')
    except Exception as error:
        write(FIRST_STEPS, described(error))
    os._exit(0)  # threads of loaders and writers would keep it
