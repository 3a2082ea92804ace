"""The only place that reads the command line: its flags, the config it names, what lies over it."""

import argparse
import os
import sys
from collections.abc import Iterable
from contextlib import redirect_stderr
from pathlib import Path

from armature.checkpoint import files as checkpoint
from armature.config.build import ROOT
from armature.config.keys import TOP, paths_of, without_nulls
from armature.config.read import Document, read_config, set_option, set_value
from armature.errors import ConfigError
from armature.processes import dist
from armature.processes.devices import select_devices


def read_command(
    parser: argparse.ArgumentParser, options: Iterable
) -> tuple[argparse.Namespace, Document, Path | None]:
    """What was typed, the config with all that lies over it, and the checkpoint to go on from.

    parser: with -c, -r and -d, or what it has parsed already; `best_first` as one of its defaults
    lets a run folder mean its best checkpoint. options: CustomArgs.
    """
    given, flags = parser, {}
    if isinstance(parser, argparse.ArgumentParser):
        for option in options:
            action = parser.add_argument(*option.flags, default=None, type=option.type)
            flags[action.dest] = option
        given = _parsed(parser)
    resume, config = getattr(given, 'resume', None), getattr(given, 'config', None)
    _select_devices(parser, getattr(given, 'device', None))
    if resume is not None:
        resume = checkpoint.find(resume, ROOT, getattr(given, 'best_first', False)).resolve()
    if config is not None:
        # Relative to the folder in which the command is typed, or else to the project.
        path = Path(config) if os.path.exists(config) else ROOT / config
        document = read_config(path, config)
    elif resume is not None:
        document = _config_of(resume)
    else:
        raise ConfigError('which config? Give one with -c config.json, or a checkpoint with -r')
    for assignment in getattr(given, 'set', None) or []:
        set_value(document, assignment, list(paths_of(TOP)))
    for dest, option in flags.items():
        if (value := getattr(given, dest)) is not None:
            set_option(document, option.target, value, option.flags[-1])
    document.values = without_nulls(document.values)
    return given, document, resume


def _parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    more = {'nargs': '+', 'action': 'extend', 'default': [], 'metavar': 'KEY=VALUE'}
    _add_if_absent(parser, '--set', help='change values of the config', **more)
    help_text = 'show where each value comes from, and leave'
    _add_if_absent(parser, '--print-config', action='store_true', help=help_text)
    _add_if_absent(parser, '--run-id', help=argparse.SUPPRESS)  # a sweep's, of any train.py
    # A mistake is shown once, not by each process.
    with redirect_stderr(sys.stderr if dist.is_first_here() else None):
        given = parser.parse_args()
    # argparse would silently take the last of two configs.
    twice = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    twice.add_argument('-c', '--config', action='append', default=[])
    configs = twice.parse_known_args()[0].config
    if len(configs) > 1:
        raise ConfigError(
            f'-c is given {len(configs)} times ({", ".join(configs)}): name one config. It can '
            'start from another one: "base": "FILE"'
        )
    return given


def _add_if_absent(parser: argparse.ArgumentParser, flag: str, **settings) -> None:
    try:
        parser.add_argument(flag, **settings)
    except argparse.ArgumentError:
        pass  # the project's own train.py has it


def _select_devices(parser: argparse.ArgumentParser, device: str | None) -> None:
    try:
        if device is not None:
            select_devices(device)  # before anything asks torch for CUDA
    except ConfigError as error:
        # Many a script of the old template has "0" as its default: nobody asked for a GPU then.
        if not isinstance(parser, argparse.ArgumentParser):
            raise
        is_default = parser.get_default('device') == device
        parser.set_defaults(device=None)
        if not is_default or parser.parse_args().device is not None:
            raise
        sys.stderr.write(
            f'note: {error}; that is only the default of -d in this script, going on without\n'
        )


def _config_of(path: Path) -> Document:
    config = checkpoint.load_head(path).get('config')
    if not isinstance(config, dict):
        raise ConfigError(f'{path}: this checkpoint holds no config: give one with -c config.json')
    document = Document(config)
    document.mark((), config, f'checkpoint {path}')
    return document
