"""The only place that reads a config file.

JSON with comments and `base` files, and for each value where it was written.
"""

import json
import json.scanner
import math
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from armature.errors import ConfigError

MAX_DEPTH = 64
MAX_BASES = 32
STRING = r'"(?:[^"\\\n]|\\.)*"'
COMMENT = re.compile(rf'({STRING})|//[^\n]*|/\*.*?\*/', re.DOTALL)
LAST_COMMA = re.compile(rf'({STRING})|,(?=\s*[]}}])')
TOKEN = re.compile(rf'{STRING}|[\w.+-]+|.|$', re.DOTALL)  # what an error message shows
NO_TEXT = re.compile('[\0\ud800-\udfff]')
# A text that is meant as JSON, even where it is none; any other is the string that it is.
JSON = re.compile(r'\s*[{\["].*|-?(NaN|Infinity|\d+(\.\d*)?([eE][+-]?\d+)?)', re.DOTALL)
DELETE = {'delete': True}
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
        """Set one value, with the sections on the way to it."""
        node = self.values
        for depth, key in enumerate(path[:-1], 1):
            if isinstance(node, dict) and node.get(key) is None:
                node[key] = {}
            node = node[key]
            if not isinstance(node, list if isinstance(path[depth], int) else dict):
                here = show_path(path[:depth])
                raise ConfigError(f'{origin}: {show_path(path)}: {here} is {show(node)}')
        node[path[-1]] = value
        self.mark(path, value, origin)

    def mark(self, path: tuple, value, origin: str) -> None:
        """Say that `value`, with all that is in it, came from `origin`."""
        self.origins[path] = origin
        self.origins |= {(*path, *inner): origin for inner in all_paths(value)}

    def line(self, problem: Problem) -> str:
        """'config.json:14: trainer.epochs: expected ...'"""
        origin, path, text = self.origin(problem.path), show_path(problem.path), problem.text
        text = text if len(text) <= 400 else f'{text[:397]}...'
        value = lookup(self.values, problem.path)
        if origin == '--set' and 'expected a string' in text and isinstance(value, (int, float)):
            text += f' (as text: --set \'{path}="{show(value)}"\')'
        return f'{origin}{origin and ": "}{path or "the config"}: {text}'

    def refuse(self, problems: Iterable[Problem]) -> None:
        """A ConfigError with a line for each problem, in the order of the files, if any is one."""
        wrong = [problem for problem in problems if not problem.is_note]
        if wrong:
            raise ConfigError('\n'.join(map(self.line, sorted(wrong, key=self._place))))

    def _place(self, problem: Problem) -> tuple:
        file, _, line = self.origin(problem.path).rpartition(':')
        return file, int(line) if line.isdecimal() else 0


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
    parts = [str(part) for part in path]
    parts = [part if part and part.isprintable() else json.dumps(part) for part in parts]
    return '.'.join(parts)[:200]


def show(value) -> str:
    """A value as it stands in a config, on one line and not too long."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(repr(value))
    return text if len(text) <= 60 else f'{text[:57]}...'


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` was most likely meant to be, if any looks like it."""
    # Of names that differ only in their case the first: the project's own.
    by_lower = {str(candidate).lower(): candidate for candidate in reversed(list(names))}
    lower = str(name)[:100].lower()
    initials = ''.join(word[:1] for word in lower.split('_'))  # learning_rate: lr
    found = get_close_matches(lower, by_lower, n=1, cutoff=0.7) or [
        each for each in by_lower if each == initials or each.startswith(f'{lower}_')
    ]
    return by_lower[found[0]] if found else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """' (did you mean 'lr'?)', or nothing."""
    near = nearest(name, names)
    return f' (did you mean {near!r}?)' if near is not None else ''


def parse(text: str, name: str) -> Document:
    """Read a JSON text; `name` is what its places are called (a file name, or '--set').

    What is no JSON raises at once; all values that a config may not hold are reported together.
    """
    text = LAST_COMMA.sub(_blank, COMMENT.sub(_blank, text))
    line_starts = [match.end() for match in re.finditer('\n', text)]

    def place(at: int) -> str:
        # What came from the command line has no lines.
        return name if name[:2] == '--' else f'{name}:{bisect_right(line_starts, at) + 1}'

    try:
        value, starts = _decoded(text)
    except json.JSONDecodeError as error:
        found = TOKEN.match(text, error.pos)[0]
        shown = found[:40] if found.isprintable() else show(found)
        reason = f'{error.msg}, found {shown or "the end of the file"}{HINTS.get(found, "")}'
        raise ConfigError(f'{place(error.pos)}: {reason}') from None
    except RecursionError:
        raise ConfigError(f'{name}: nested deeper than {MAX_DEPTH} levels') from None
    document, problems, starts = Document({}), [], iter(starts)

    def settled(value, path: tuple):
        """The value as plain data, once its place is noted and what is wrong with it."""
        at = next(starts)
        document.origins[path] = place(at)
        if len(path) > MAX_DEPTH:
            raise ConfigError(f'{place(at)}: nested deeper than {MAX_DEPTH} levels')
        if isinstance(value, _Members):
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
        if isinstance(value, str) and NO_TEXT.search(value):
            problems.append(Problem(path, 'a string may not hold NUL or half of a surrogate pair'))
        largest = 2**64 if isinstance(value, int) else math.inf
        if isinstance(value, (int, float)) and not abs(value) < largest:
            wrong = f'{TOKEN.match(text, at)[0][:20]} is too large, or no number'
            problems.append(Problem(path, wrong))
        return value

    document.values = settled(value, ())
    document.refuse(problems)
    return document


def _blank(match: re.Match) -> str:
    """A string as it is; else spaces, so that all that follows keeps its line and column."""
    return match[1] or re.sub(r'[^\n]', ' ', match[0])


class _Members(list):
    """The (key, value) pairs of an object as it is written, a key perhaps twice."""


def _decoded(text: str) -> tuple:
    """What a JSON text says, objects as _Members; and where each value begins, in their order."""
    decoder, starts = json.JSONDecoder(object_pairs_hook=_Members, parse_int=_whole_number), []

    def scan(text: str, at: int):
        starts.append(at)
        return scan_any(text, at)

    # The standard library's own functions, which come to the values inside through `scan`.
    decoder.parse_object = lambda start, strict, _, *hooks: json.decoder.JSONObject(
        start, strict, scan, *hooks
    )
    decoder.parse_array = lambda start, _: json.decoder.JSONArray(start, scan)
    decoder.scan_once, scan_any = scan, json.scanner.py_make_scanner(decoder)
    return decoder.decode(text), starts


def _whole_number(digits: str) -> float:
    return int(digits) if len(digits) < 400 else math.inf  # Python refuses thousands of digits


def parse_value(text: str, name: str = '--set'):
    """A value from the command line: JSON, or a bare word as the string it is."""
    try:
        return parse(text, name).values
    except ConfigError:
        if JSON.fullmatch(text):
            raise
        return parse(json.dumps(text), name).values


def read_config(path: Path, name: str, above: tuple = (), known: dict | None = None) -> Document:
    """Read a config file with the files its `base` names merged under it.

    name: the path as the user wrote it. above, known: the names of the files that lead here, and
    those that are read already.
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
        wrong = ''
        if isinstance(base, str):
            is_file = path.is_file()  # a pipe lies in no folder
            base_name = os.path.normpath(
                os.path.join(os.path.dirname(name) if is_file else '', base)
            )
            base_path = path.parent / base if is_file else Path(base)
            if base_name in chain or len(chain) > MAX_BASES:
                wrong = f'{" -> ".join((*chain, base_name))} is a loop'
            elif not os.path.isfile(base_path):  # is_file() raises for a name that is too long
                wrong = f'{show(base)}: no such config file (looked for {base_name})'
        else:
            wrong = f'expected the path of a config file or a list of such, got {show(base)}'
        if wrong:
            document.refuse([Problem(('base',), wrong)])
        if base_name not in known:
            known[base_name] = read_config(base_path, base_name, chain, known)
        below = merge(below, known[base_name])
    return merge(below, document)


def _read_text(path: Path, name: str) -> str:
    """The text of a config file or a pipe; every way in which that can fail is a ConfigError."""
    try:
        content = path.read_bytes()
        if not content:
            raise ValueError('empty (only one process can read a pipe: write the config to a file)')
        return content.decode('utf-8-sig')  # Windows editors put a byte order mark first
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b'\n') + 1
        raise ConfigError(f'{name}:{line}: not UTF-8 text') from None
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or error
        others = path.parent.glob('*.json') if isinstance(error, FileNotFoundError) else ()
        near = did_you_mean(path.name, [each.name for each in others])
        raise ConfigError(f'{show_path((name,))}: cannot be read: {reason}{near}') from None


def merge(below: Document, above: Document) -> Document:
    """A new document: `above` laid over `below`.

    Sections merge, {"delete": true} removes, and all else replaces, null too.
    """
    problems = []
    values = _merged(below.values, above.values, (), problems)
    above.refuse(problems)
    return Document(values, below.origins | above.origins)


def _merged(below: dict, above: dict, path: tuple, problems: list[Problem]) -> dict:
    merged = dict(below)
    if 'type' in above and above['type'] != below.get('type', above['type']):
        merged.pop('args', None)  # they belong to the other type
    for key, value in above.items():
        here, under = (*path, key), merged.get(key)
        if value == DELETE:
            if key not in below:
                text = f'nothing here to delete{did_you_mean(key, below)}'
                problems.append(Problem(here, text))
            merged.pop(key, None)
        elif isinstance(value, dict):
            under = under if isinstance(under, dict) else {}
            merged[key] = _merged(under, value, here, problems)
        else:
            merged[key] = value
    return merged
