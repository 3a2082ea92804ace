"""What a script says that is started without its packages: one line with what to type instead.

Scripts import this before anything else. It needs nothing but Python, and an old one will do.
"""

import importlib.util
import os
import shlex
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
OLDEST = (3, 11)


def explain(kind, error, trace) -> None:
    """A sys.excepthook that says in one line which package an import of the project did not find.

    Anything else keeps its traceback: also what a broken torch raises inside itself.
    """
    place = trace
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    file = Path(place.tb_frame.f_code.co_filename).resolve() if place is not None else Path()
    is_ours = PROJECT in file.parents and 'site-packages' not in file.parts
    if not issubclass(kind, ModuleNotFoundError) or '.' in (error.name or '.') or not is_ours:
        sys.__excepthook__(kind, error, trace)
        return
    leave(
        f'{error.name} is not installed for {sys.executable} ({file.relative_to(PROJECT)}, line '
        f'{place.tb_lineno}, imports it)'
    )


def leave(why: str) -> None:
    sys.stderr.write(f'error: {why}. Type:\n    {what_to_type()}\n')
    sys.exit(2)


def what_to_type() -> str:
    """Commands that install what requirements.txt names and begin the same script again."""
    wanted = shlex.quote(os.path.relpath(PROJECT / 'requirements.txt'))
    typed = shlex.join(getattr(sys, 'orig_argv', ['python', *sys.argv])[1:])
    programs = f'.venv/{"Scripts" if os.name == "nt" else "bin"}'
    python = f'{programs}/python'
    if sys.version_info < OLDEST:
        install = f'uv venv -p ">=3.11" && uv pip install -r {wanted}'
    elif sys.prefix == sys.base_prefix and 'CONDA_PREFIX' not in os.environ:
        # Never into the system's own Python, which Debian and others forbid.
        install = f'python3 -m venv .venv && {programs}/pip install -r {wanted}'
    else:
        python = shlex.quote(sys.executable)
        has_pip = importlib.util.find_spec('pip') is not None  # uv makes environments without it
        install = (
            f'{python} -m pip install -r {wanted}' if has_pip else f'uv pip install -r {wanted}'
        )
    return f'{install} && {python} {typed}'


sys.excepthook = explain
if sys.version_info < OLDEST:
    found = '.'.join(map(str, sys.version_info[:3]))
    leave(f'{sys.executable} is Python {found}, and this needs 3.11 or newer')
