"""What a script says that is started without its packages: one line with what to type instead.

Scripts import this before anything else. It needs nothing but Python, and an old one will do.
"""

import importlib.util
import os
import shlex
import sys
import traceback
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
OLDEST = (3, 11)


def explain(kind, error, trace) -> None:
    """A sys.excepthook that says in one line which package an import of the project did not find.

    Anything else keeps its traceback: also what a broken torch raises inside itself.
    """
    if issubclass(kind, ModuleNotFoundError) and '.' not in (error.name or '.'):
        frame, line = list(traceback.walk_tb(trace))[-1]
        file = Path(frame.f_code.co_filename).resolve()
        if PROJECT in file.parents and 'site-packages' not in file.parts:
            place = f'{file.relative_to(PROJECT)}, line {line}, imports it'
            leave(f'{error.name} is not installed for {sys.executable} ({place})')
    sys.__excepthook__(kind, error, trace)


def leave(why: str) -> None:
    """Say why, and the commands that install what is needed and begin the same script again."""
    is_system = sys.prefix == sys.base_prefix and 'CONDA_PREFIX' not in os.environ
    programs = f'.venv/{"Scripts" if os.name == "nt" else "bin"}'
    python = f'{programs}/python'
    if sys.version_info < OLDEST:
        pip = 'uv venv -p ">=3.11" && uv pip'
    elif is_system:  # never into the system's own Python, which Debian and others forbid
        pip = f'python3 -m venv .venv && {programs}/pip'
    else:
        python = shlex.quote(sys.executable)
        has_pip = importlib.util.find_spec('pip') is not None  # uv makes environments without it
        pip = f'{python} -m pip' if has_pip else 'uv pip'
    wanted = shlex.quote(os.path.relpath(PROJECT / 'requirements.txt'))
    typed = shlex.join(getattr(sys, 'orig_argv', ['python', *sys.argv])[1:])
    sys.stderr.write(f'error: {why}. Type:\n    {pip} install -r {wanted} && {python} {typed}\n')
    sys.exit(2)


sys.excepthook = explain
if sys.version_info < OLDEST:
    leave(f'{sys.executable} is too old: this needs Python 3.11')
