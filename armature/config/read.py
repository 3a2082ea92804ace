"""The only place that reads a config file.

JSON with comments and `base` files, and for each value where it was written.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from armature.config.spelling import did_you_mean
from armature.errors import ConfigError

MAX_DEPTH = 64
STRING = r'"(?:[^"\\\n]|\\.)*"'
COMMENT = re.compile(rf'({STRING})|//[^\n]*|/\*.*?\*/', re.DOTALL)
LAST_COMMA = re.compile(rf'({STRING})|,(?=\s*[]}}])')
VALUE = re.compile(rf'{STRING}\s*:|({STRING}|[\w.+-]+|[\[{{])')  # where one begins, after its key
TOKEN = re.compile(rf'{STRING}|[\w.+-]+|.|$', re.DOTALL)  # what an error message shows
DELETE = {'delete': True}
OF_A_PIPE = ' (only one process can read a pipe: write the config to a file)'
HINTS = {
    "'": ' (strings stand in double quotes)',
    'True': ' (did you mean true?)',
    'False': ' (did you mean false?)',
    'None': ' (did you mean null?)',
    '\n': ' (does the string end on its line?)',
}


class Problem(NamedTuple):
    """Something wrong with the value at a path; a note when it is only odd."""

    path: tuple
    text: str
    is_note: bool = False


@dataclass
class Document:
    """A config, and for the path of each value in it where that was written: 'config.json:14'.

    Paths are tuples of keys and list indices. What the command line changed comes from '--set' or
    '--lr'. `origins` may still name paths that a later file removed.
    """

    values: dict
    origins: dict = field(default_factory=dict)

    def origin(self, path: tuple) -> str:
        """Where the value at `path` was written; for a missing one, the section around it."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path, '')

    def put(self, path: tuple, value, origin: str) -> None:
        """Set one value, with the sections on the way to it; all in it came from `origin`."""
        node = self.values
        try:
            for key in path[:-1]:
                if isinstance(node, dict) and node.get(key) is None:
                    node[key] = {}
                node = node[key]
            node[path[-1]] = value
        except TypeError:
            raise ConfigError(
                f'{origin}: {show_path(path)}: there is no section, but {show(node)}'
            ) from None
        self.origins[path] = origin
        self.origins |= {(*path, *inner): origin for inner in all_paths(value)}

    def line(self, problem: Problem) -> str:
        """'config.json:14: trainer.epochs: expected ...'"""
        origin, path, text = self.origin(problem.path), show_path(problem.path), problem.text[:400]
        value = lookup(self.values, problem.path)
        if origin == '--set' and 'expected a string' in text and isinstance(value, (int, float)):
            text += f' (as text: --set \'{path}="{show(value)}"\')'
        return f'{origin}{origin and ": "}{path or "the config"}: {text}'

    def refuse(self, problems: Iterable[Problem]) -> None:
        """A ConfigError with a line for each place, in the order of the files, if any is wrong."""
        wrong = {}
        for problem in problems:
            if not problem.is_note:
                wrong.setdefault(problem.path, problem)
        if wrong:
            raise ConfigError('\n'.join(map(self.line, sorted(wrong.values(), key=self._place))))

    def _place(self, problem: Problem) -> tuple:
        file, _, line = self.origin(problem.path).rpartition(':')
        return file, len(line), line


def entries(value) -> list[tuple]:
    """The (key, value) pairs of a dict or the (index, value) pairs of a list; else nothing."""
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


def lookup(values, path: tuple):
    """The value at a path, None when there is none."""
    for key in path:
        values = dict(entries(values)).get(key)
    return values


def all_paths(values, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value in a config, sections included."""
    for key, value in entries(values):
        yield (*path, key)
        yield from all_paths(value, (*path, key))


def show_path(path: tuple) -> str:
    """A key path as people write it: trainer.epochs, metrics.0."""
    parts = map(str, path)
    shown = (part if part and part.isprintable() else json.dumps(part) for part in parts)
    return '.'.join(shown)[:200]


def show(value) -> str:
    """A value as it stands in a config, on one line and not too long."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(repr(value))
    return text if len(text) <= 60 else f'{text[:57]}...'


def parse(text: str, name: str) -> Document:
    """Read a JSON text; `name` is what its places are called (a file name, or '--set').

    What is no JSON raises at once; all values that a config may not hold are reported together.
    """
    text = LAST_COMMA.sub(_blank, COMMENT.sub(_blank, text))
    document, problems = Document({}), []
    starts = (match.start() for match in VALUE.finditer(text) if match[1])

    def place(at: int) -> str:
        line = text.count('\n', 0, at) + 1
        return name if name[:2] == '--' else f'{name}:{line}'  # a command line has no lines

    def settled(value, path: tuple):
        """The value as plain data, once its place is noted and what is wrong with it."""
        at = next(starts)  # the values come in the order of the text
        document.origins[path] = place(at)
        if len(path) > MAX_DEPTH:
            raise RecursionError
        if isinstance(value, tuple):  # the members of an object, a key perhaps twice
            members = {}
            for key, inner in value:
                here = (*path, key)
                if key in members:
                    wrong = f'given twice, first at {document.origins[here]}'
                    problems.append(Problem(here, wrong))
                members[key] = settled(inner, here)
            return members
        if isinstance(value, list):
            return [settled(inner, (*path, index)) for index, inner in enumerate(value)]
        if is_unfit_number(value):
            wrong = f'{TOKEN.match(text, at)[0][:20]} is too large, or no number'
            problems.append(Problem(path, wrong))
        return value

    decoder = json.JSONDecoder(
        object_pairs_hook=tuple,
        # Python reads only so many digits, and these tell that it is too large.
        parse_int=lambda digits: int(digits[:21]),
    )
    try:
        document.values = settled(decoder.decode(text), ())
    except json.JSONDecodeError as error:
        found = TOKEN.match(text, error.pos)[0]
        shown = found[:40] if found.isprintable() else show(found)
        reason = f'{error.msg}, found {shown or "the end of the file"}{HINTS.get(found, "")}'
        raise ConfigError(f'{place(error.pos)}: {reason}') from None
    except RecursionError:
        raise ConfigError(f'{name}: nested deeper than {MAX_DEPTH} levels') from None
    document.refuse(problems)
    return document


def is_unfit_number(value) -> bool:
    """Whether it is a number that no config may hold: not finite, or a whole one beyond 64 bits."""
    if isinstance(value, int):
        return abs(value) >= 2**63
    return isinstance(value, float) and not math.isfinite(value)


def _blank(match: re.Match) -> str:
    """A string as it is; else spaces, so that all that follows keeps its line and column."""
    return match[1] or re.sub(r'[^\n]', ' ', match[0])


def parse_value(text: str, name: str = '--set'):
    """A value from the command line: JSON, or a bare word as the string it is."""
    if not text.lstrip().startswith(('{', '[', '"')):
        try:
            json.loads(text)
        except ValueError:
            text = json.dumps(text)
    return parse(text, name).values


def read_config(path: Path, name: str, above: tuple = (), known: dict | None = None) -> Document:
    """Read a config file with the files its `base` names merged under it.

    name: the path as the user wrote it. above, known: the names of the files that lead here, and
    the documents that are read already: a file that many lead to is read once.
    """
    known = {} if known is None else known
    document = parse(_read_text(path, name), name)
    if not isinstance(document.values, dict):
        shown = show(document.values)
        document.refuse([Problem((), f'expected an object {{...}} as the whole file, got {shown}')])
    document.values.pop('$schema', None)
    bases = document.values.pop('base', None) or []
    below, chain = Document({}), (*above, name)
    for base in bases if isinstance(bases, list) else [bases]:
        base_path = path.parent / str(base)
        base_name = os.path.normpath(os.path.join(os.path.dirname(name), str(base)))
        if base_name in chain:
            loop = f'{" -> ".join((*chain, base_name))} is a loop'
            document.refuse([Problem(('base',), loop)])
        if not os.path.isfile(base_path):  # is_file() raises for a name that is too long
            missing = f'{show(base)}: no such config file (looked for {base_name})'
            document.refuse([Problem(('base',), missing)])
        if base_name not in known:
            known[base_name] = read_config(base_path, base_name, chain, known)
        below = merge(below, known[base_name])
    return merge(below, document)


def _read_text(path: Path, name: str) -> str:
    """The text of a config file or a pipe; every way in which that can fail is a ConfigError."""
    try:
        content = path.read_bytes()
        if not content:
            raise ValueError(f'empty{OF_A_PIPE}')
        return content.decode('utf-8-sig')  # Windows editors put a byte order mark first
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b'\n') + 1
        raise ConfigError(f'{name}:{line}: not UTF-8 text') from None
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or error
        others = path.parent.glob('*.json') if isinstance(error, FileNotFoundError) else ()
        is_pipe = name.startswith('/dev/fd/')
        near = OF_A_PIPE if is_pipe else did_you_mean(path.name, [each.name for each in others])
        raise ConfigError(f'{show_path((name,))}: cannot be read: {reason}{near}') from None


def merge(below: Document, above: Document) -> Document:
    """A new document: `above` laid over `below`.

    Sections merge, {"delete": true} removes, and all else replaces, null too.
    """

    def merged(under: dict, over: dict, path: tuple) -> dict:
        found = dict(under)
        if 'type' in over and over['type'] != under.get('type', over['type']):
            found.pop('args', None)  # they belong to the other type
        for key, value in over.items():
            here, inner = (*path, key), found.get(key)
            if value == DELETE:
                if key not in under:
                    text = f'nothing here to delete{did_you_mean(key, under)}'
                    above.refuse([Problem(here, text)])
                found.pop(key, None)
            elif isinstance(value, dict):
                found[key] = merged(inner if isinstance(inner, dict) else {}, value, here)
            else:
                found[key] = value
        return found

    return Document(merged(below.values, above.values, ()), below.origins | above.origins)
