"""The only place that reads the command line: its flags, the config it names, what lies over it."""

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import redirect_stderr, suppress
from pathlib import Path

from armature.checkpoint import files as checkpoint
from armature.config.build import ROOT
from armature.config.keys import TOP, paths_of
from armature.config.read import (
    DELETE,
    Document,
    all_paths,
    entries,
    is_unfit_number,
    lookup,
    parse_value,
    read_config,
    show_path,
)
from armature.config.spelling import nearest
from armature.errors import ConfigError
from armature.processes import dist
from armature.processes.devices import select_devices

FLAGS = {  # of every script that reads a config, unless it has one of that name
    '--set': {
        'nargs': '+',
        'action': 'extend',
        'metavar': 'KEY=VALUE',
        'help': 'change values of the config',
    },
    '--print-config': {
        'action': 'store_true',
        'help': 'show where each value comes from, and leave',
    },
    '--run-id': {'help': argparse.SUPPRESS},  # a sweep's, of any train.py
}


ONCE = {
    'config': 'config. It can start from another one: "base": "FILE"',
    'resume': 'checkpoint',
    'device': 'place, such as -d 0,1',
}

# What we ask of a command, which a script's own parser need not know.
ASKED = (*ONCE, 'best_first', 'resume_or_start', 'run_id', 'print_config', 'set')


def read_command(
    parser: argparse.ArgumentParser, options: Iterable
) -> tuple[argparse.Namespace, Document, Path | None]:
    """What was typed, the config with all that lies over it, and the checkpoint to go on from.

    parser: with -c, -r and -d, or what it has parsed; `best_first` as one of its defaults lets a
    run folder mean its best checkpoint. options: CustomArgs.
    """
    changes, given = {}, parser
    if isinstance(parser, argparse.ArgumentParser):
        for option in options:
            action = parser.add_argument(*option.flags, type=option.type)
            changes[action.dest] = option
        for flag, settings in FLAGS.items():
            with suppress(argparse.ArgumentError):
                parser.add_argument(flag, **settings)
        given = _parsed(parser)
    said = given._asdict() if hasattr(given, '_asdict') else vars(given)
    given = argparse.Namespace(**dict.fromkeys(ASKED) | said)
    _select_devices(given.device)
    resume, config = given.resume, given.config
    if resume is not None:
        resume = checkpoint.find(resume, ROOT, given.best_first).resolve()
    if config is not None:
        # Relative to the folder in which the command is typed, or else to the project.
        document = read_config(Path(config) if os.path.exists(config) else ROOT / config, config)
    elif resume is not None:
        document = _config_of(resume)
    else:
        raise ConfigError('which config? Give one with -c config.json, or a checkpoint with -r')
    for dest, option in changes.items():
        set_option(document, option.target, said[dest], option.flags[-1])
    for assignment in given.set or ():
        set_value(document, assignment)
    return given, document, resume


def _parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was typed; a ConfigError when one of ONCE was given twice, in whatever spelling."""
    n_set = Counter()

    class Counting(argparse.Namespace):
        def __setattr__(self, name, value):
            n_set[name] += 1
            super().__setattr__(name, value)

    # A mistake is shown once, not by each process.
    with redirect_stderr(sys.stderr if dist.is_first_here() else None):
        given = parser.parse_args(namespace=Counting())
    # argparse sets the default first, and would silently take the last of two.
    for name, what in ONCE.items():
        if (n := n_set[name] - 1) > 1:
            raise ConfigError(f'-{name[0]} is given {n} times: name one {what}')
    return given


def add_flags(parser: argparse.ArgumentParser, best_first: bool = False) -> None:
    """-c, -r and -d. best_first: -r is required, and a run folder means its best checkpoint."""
    resume = 'go on from a run folder, or a checkpoint'
    if best_first:
        resume = 'a run folder, of which the best checkpoint is taken, or a checkpoint'
    parser.add_argument(
        '-c', '--config', metavar='FILE', help='the experiment, or another than in the checkpoint'
    )
    parser.add_argument('-r', '--resume', metavar='CHECKPOINT', required=best_first, help=resume)
    parser.add_argument(
        '-d', '--device', metavar='DEVICE', help='GPUs such as 0 or 0,1; cpu, mps, xpu:0'
    )
    parser.set_defaults(best_first=best_first)


def _select_devices(device: str | None) -> None:
    try:
        if device is not None:
            select_devices(device)  # before anything asks torch for CUDA
    except ConfigError as error:
        # Many a script of the old template has "0" as its default: nobody asked for a GPU then.
        if any(re.fullmatch('-d.*|--device(=.*)?', each) for each in sys.argv[1:]):
            raise
        sys.stderr.write(
            f'note: {error}; that is only the default of -d in this script, going on without\n'
        )


def _config_of(path: Path) -> Document:
    config = checkpoint.load_head(path).get('config')
    if not isinstance(config, dict):
        raise ConfigError(f'{path}: this checkpoint holds no config: give one with -c config.json')
    return Document(config, {(): f'checkpoint {path}'})


# What lies over the config


def set_value(document: Document, assignment: str) -> None:
    """Carry out one --set: 'a.b=value' changes a key, 'a.b+=value' adds one or appends to a list.

    A key of ours may be given although the config does not hold it yet.
    """
    left, equals, text = assignment.partition('=')
    adds, left = left.endswith('+'), left.rstrip('+').strip()
    if not equals or not all(left.split('.')):
        raise ConfigError(f"--set {show_path((assignment,))}: expected 'section.key=value'")
    value = parse_value(text, f'--set {left}')
    path, node = (), document.values
    for word in left.split('.'):
        keys = {str(key): key for key, _ in entries(node)}
        path = (*path, keys.get(word, word))
        parent, node = node, lookup(node, path[-1:])
    exists, known = word in keys, list(paths_of(TOP))
    # An argument that the config leaves out may be given; the signature of its class decides.
    is_argument = 'args' in path[1:-1] and (path[0] in document.values or path[:1] in known)
    is_argument |= path[0] == 'sweep'  # whose own table does
    if adds and isinstance(node, list):
        node.append(None)
        document.put((*path, len(node) - 1), value, '--set')
    elif exists and adds:
        raise ConfigError(f"--set: {show_path(path)}: is there already: write '=' to change it")
    elif exists and value == DELETE:
        del parent[path[-1]]
    elif exists or adds or is_argument or path in known:
        document.put(path, value, '--set')
    else:
        there = [show_path(each) for each in (*all_paths(document.values), *known)]
        near = next((each for each in there if each.endswith(f'.{left}')), nearest(left, there))
        hint = f'did you mean {near!r}?' if near else f"to add it, write '{left}+=...'"
        raise ConfigError(f'--set: {show_path(path)}: the config has no such key ({hint})')


def set_option(document: Document, target: str | Iterable[str], value, origin: str) -> None:
    """Lay a value from the command line over the config; None is none.

    target: 'optimizer;args;lr', or a sequence of keys.
    """
    if value is None:
        return
    path = tuple(target.split(';') if isinstance(target, str) else target)
    place = f'{origin}: {".".join(path)}'
    if is_unfit_number(value):
        raise ConfigError(f'{place}: {value} is not a number that a config may hold')
    if len(path) > 1 and path[0] not in document.values:
        raise ConfigError(f'{place}: the config has no section {path[0]!r}')
    document.put(path, value, origin)
