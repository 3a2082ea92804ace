"""The only place that reads a config file.

JSON with comments, `base` files and `--set`, and for each value where it was written.
"""

import json
import json.scanner
import math
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from armature.errors import ConfigError

MAX_BYTES = 4 * 2**20
MAX_DEPTH = 64
MAX_BASES = 32
BLANK = re.compile(r'(?:[ \t\r\n]+|//[^\n]*|/\*.*?\*/)*', re.DOTALL)
TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"?|[\w.+-]+|.|$', re.DOTALL)  # what an error message shows
NOT_FINITE = ('NaN', 'Infinity', '-Infinity')
DELETE = {'delete': True}
HINTS = {
    "'": ' (strings stand in double quotes)',
    'True': ' (did you mean true?)',
    'False': ' (did you mean false?)',
    'None': ' (did you mean null?)',
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
        for depth, key in enumerate(path[:-1]):
            if isinstance(node, dict) and node.get(key) is None:
                node[key] = {}
                self.origins[path[: depth + 1]] = origin
            node = node[key]
        node[path[-1]] = value
        self.mark(path, value, origin)

    def can_hold(self, path: tuple) -> bool:
        """Whether every section on the way to `path` is one, or not there yet."""
        return all(
            isinstance(lookup(self.values, path[:depth]), (dict, type(None)))
            for depth in range(1, len(path))
        )

    def mark(self, path: tuple, value, origin: str) -> None:
        """Say that `value`, with all that is in it, came from `origin`."""
        self.origins[path] = origin
        for key, inner in entries(value):
            self.mark((*path, key), inner, origin)

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
    words = lower.split('_')
    found = (
        get_close_matches(lower, by_lower, n=1, cutoff=0.7)
        or [each for each in by_lower if each == ''.join(word[:1] for word in words)]
        or [each for each in by_lower if len(lower) > 2 and set(words) < set(each.split('_'))]
    )
    return by_lower[found[0]] if found else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """' (did you mean 'lr'?)', or nothing."""
    near = nearest(name, names)
    return f' (did you mean {near!r}?)' if near is not None else ''


class _Decoder(json.JSONDecoder):
    """The standard library's decoder, with comments, trailing commas and the place of each value.

    Problems that leave the structure readable are collected, the rest raise at once.
    """

    def __init__(self, text: str, name: str):
        number = self.number
        super().__init__(parse_int=number, parse_float=number, parse_constant=self.not_finite)
        self.parse_string, self.parse_object, self.parse_array = (
            self.string,
            self.members,
            self.items,
        )
        self.scan_once = json.scanner.py_make_scanner(self)
        self.text, self.name = text, name
        self.line_starts = [match.end() for match in re.finditer('\n', text)]
        self.origins, self.problems = {}, []
        self.path, self.at = (), 0  # of the value that is being read

    def read(self) -> Document:
        value, end = self.value(0, ())
        if self.after_blank(end) < len(self.text):
            self.fail(end, 'the end of the file')
        if self.problems:
            raise ConfigError('\n'.join(self.problems))
        return Document(value, self.origins)

    # Each of these gets a position in the text, and returns what it read and the position behind.

    def value(self, at: int, path: tuple):
        self.at, self.path = at, path = self.after_blank(at), path
        if len(path) > MAX_DEPTH:
            place = f'{self.place(at)}: {show_path(path[:3])}...'
            raise ConfigError(f'{place}: nested deeper than {MAX_DEPTH} levels')
        self.origins.setdefault(path, self.place(at))
        try:
            return self.scan_once(self.text, at)
        except StopIteration:
            self.fail(at, 'a value')

    def members(self, start: tuple[str, int], *_):
        found, path, at = {}, self.path, self.after_blank(start[1])
        while not self.text.startswith('}', at):
            if not self.text.startswith('"', at):
                self.fail(at, "a key in double quotes or '}'")
            self.at, self.path = at, path
            key, end = self.string(self.text, at + 1)
            inner = (*path, key)
            if key in found:
                self.path = inner
                self.problem(f'given twice, first at {self.origins[inner]}')
            self.origins[inner] = self.place(at)
            end = self.after_blank(end)
            if not self.text.startswith(':', end):
                self.fail(end, "':'")
            found[key], end = self.value(end + 1, inner)
            at = self.after_comma(end, '}')
        return found, at + 1

    def items(self, start: tuple[str, int], *_):
        found, path, at = [], self.path, self.after_blank(start[1])
        while not self.text.startswith(']', at):
            value, end = self.value(at, (*path, len(found)))
            found.append(value)
            at = self.after_comma(end, ']')
        return found, at + 1

    def string(self, text: str, at: int, strict: bool = True):
        try:
            value, end = json.decoder.scanstring(text, at, strict)
        except json.JSONDecodeError:
            self.fail(at - 1, 'a string with valid escapes')
        if is_no_text(value):
            self.problem('a string may not hold NUL or half of a surrogate pair')
        return value, end

    def number(self, text: str) -> int | float | None:
        is_whole = not any(mark in text for mark in '.eE')
        # Nothing here counts beyond 64 bits, and Python refuses to read thousands of digits.
        if len(text) < 400:
            value = int(text) if is_whole else float(text)
            if abs(value) < (2**64 if is_whole else float('inf')):
                return value
        return self.problem(f'the number {text[:20]}... is too large')

    def not_finite(self, text: str) -> None:
        self.problem(f'{text} is not a number that a config may hold')

    def after_blank(self, at: int) -> int:
        return BLANK.match(self.text, at).end()

    def after_comma(self, at: int, closing: str) -> int:
        at = self.after_blank(at)
        if self.text.startswith(',', at):
            return self.after_blank(at + 1)
        if not self.text.startswith(closing, at):
            self.fail(at, f"',' or '{closing}'")
        return at

    def place(self, at: int) -> str:
        # What came from the command line has no lines.
        line = bisect_right(self.line_starts, at) + 1
        return self.name if self.name.startswith('--') else f'{self.name}:{line}'

    def problem(self, text: str) -> None:
        path = show_path(self.path) or 'the whole file'
        self.problems.append(f'{self.place(self.at)}: {path}: {text}')

    def fail(self, at: int, expected: str):
        at = self.after_blank(at)
        place = self.place(at)
        if place != self.name:
            place += f':{at - ([0, *self.line_starts][bisect_right(self.line_starts, at)]) + 1}'
        found = TOKEN.match(self.text, at).group() or 'the end of the file'
        is_open = found == '"' or found[0] == '"' != found[-1]
        hint = ' (does the string end on its line?)' if is_open else HINTS.get(found, '')
        found = found[:40] if found.isprintable() else show(found)
        raise ConfigError(f'{place}: expected {expected}, found {found}{hint}')


def is_no_text(value: str) -> bool:
    return '\0' in value or any('\ud800' <= char <= '\udfff' for char in value)


def parse(text: str, name: str) -> Document:
    """Read a JSON text; `name` is what its places are called (a file name, or '--set')."""
    return _Decoder(text, name).read()


def read_text(path: Path, name: str) -> str:
    """The text of a config file or a pipe; every way in which that can fail is a ConfigError."""
    try:
        with path.open('rb') as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        others = path.parent.glob('*.json') if path.parent.is_dir() else ()
        near = did_you_mean(path.name, [each.name for each in others])
        raise ConfigError(f'{name}: no such config file{near}') from None
    except IsADirectoryError:
        raise ConfigError(f'{name}: is a folder, expected a config file') from None
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise ConfigError(f'{show_path((name,))}: cannot be read: {reason}') from None
    if not content and not path.is_file():
        raise ConfigError(
            f'{name}: nothing came through this pipe. Only one process can read it: where several '
            'train together, write the config to a file'
        )
    if len(content) > MAX_BYTES:
        raise ConfigError(f'{name}: larger than {MAX_BYTES // 2**20} MB, which no config is')
    try:
        return content.decode('utf-8-sig')  # Windows editors put a byte order mark first
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b'\n') + 1
        raise ConfigError(f'{name}:{line}: not UTF-8 text') from None


def read_config(path: Path, name: str, chain: tuple = (), known: dict | None = None) -> Document:
    """Read a config file with the files its `base` names merged under it.

    name: the path as the user wrote it. chain, known: the files that lead here and those read.
    """
    known = {} if known is None else known
    identity = os.path.realpath(path)
    if identity in known:
        return known[identity]
    document = parse(read_text(path, name), name)
    if not isinstance(document.values, dict):
        raise ConfigError(
            f'{document.origin(())}: the whole file: expected an object {{...}}, '
            f'got {show(document.values)}'
        )
    document.values.pop('$schema', None)
    bases = document.values.pop('base', None) or []
    below = Document({})
    chain = (*chain, (identity, name))
    folder = path.parent if path.is_file() else Path()  # a pipe lies in no folder
    for index, base in enumerate(bases if isinstance(bases, list) else [bases]):
        place = document.origin(('base', index))
        if not isinstance(base, str) or not base:
            raise ConfigError(
                f'{place}: base: expected the path of a config file or a list of such, '
                f'got {show(base)}'
            )
        base_path = folder / base
        base_name = os.path.normpath(os.path.join(os.path.dirname(name), base))
        if os.path.realpath(base_path) in dict(chain):
            names = ' -> '.join([shown for _, shown in chain] + [base_name])
            raise ConfigError(f'{place}: base: {names} is a loop')
        if len(chain) > MAX_BASES:
            raise ConfigError(f'{place}: base: more than {MAX_BASES} files deep')
        if not os.path.isfile(base_path):
            raise ConfigError(
                f'{place}: base: {show(base)}: no such config file (looked for {base_name})'
            )
        below = merge(below, read_config(base_path, base_name, chain, known))
    known[identity] = merge(below, document)
    return known[identity]


def merge(below: Document, above: Document) -> Document:
    """A new document: `above` laid over `below`.

    Sections merge, {"delete": true} removes, and all else replaces, null too.
    """
    problems = []
    values = _merge(below.values, above.values, (), problems)
    above.refuse(problems)
    return Document(values, below.origins | above.origins)


def _merge(below: dict, above: dict, path: tuple, problems: list[Problem]) -> dict:
    merged = {key: deepcopy(value) for key, value in below.items()}
    if 'type' in above and above['type'] != below.get('type', above['type']):
        merged.pop('args', None)  # they belong to the other type
    for key, value in above.items():
        inner = (*path, key)
        if value == DELETE:
            if key not in below:
                text = f'nothing here to delete{did_you_mean(key, below)}'
                problems.append(Problem(inner, text))
            merged.pop(key, None)
        elif isinstance(value, dict):
            under = merged.get(key)
            merged[key] = _merge(under if isinstance(under, dict) else {}, value, inner, problems)
        else:
            merged[key] = deepcopy(value)
    return merged


def set_value(document: Document, assignment: str, known: Iterable[tuple] = ()) -> None:
    """Carry out one --set: 'a.b=value' changes a key, 'a.b+=value' adds one or appends to a list.

    known: paths of the keys that may be given although the config does not hold them yet.
    """
    left, equals, text = assignment.partition('=')
    adds = left.endswith('+')
    left = left.rstrip('+').strip()
    if not equals or not all(left.split('.')):
        raise ConfigError(f"--set {show_path((assignment,))}: expected 'section.key=value'")
    value = parse_value(text)
    path, node = (), document.values
    for key in left.split('.'):
        if isinstance(node, list):
            if not re.fullmatch('[0-9]{1,6}', key) or int(key) >= len(node):
                raise ConfigError(
                    f'--set: {show_path((*path, key))}: {show_path(path)} is a list of {len(node)}'
                )
            key = int(key)
        path, parent, node = (*path, key), node, lookup(node, (key,))
    exists = path[-1] in dict(entries(parent))
    # An argument that the config leaves out may be given; the signature of its class decides.
    is_argument = 'args' in path[1:-1] and (path[0] in document.values or path[:1] in known)
    if adds and isinstance(node, list):
        node.append(value)
        document.mark((*path, len(node) - 1), value, '--set')
    elif exists and adds:
        raise ConfigError(f"--set: {show_path(path)}: is there already: write '=' to change it")
    elif exists and value == DELETE:
        del parent[path[-1]]
    elif exists or ((adds or is_argument or path in known) and document.can_hold(path)):
        document.put(path, value, '--set')
    else:
        there = [show_path(each) for each in (*all_paths(document.values), *known)]
        same_key = [each for each in dict.fromkeys(there) if each.endswith(f'.{left}')]
        near = same_key[:1] or [nearest(left, there)]
        hint = f'did you mean {near[0]!r}?' if near[0] else f"to add it, write '{left}+=...'"
        raise ConfigError(f'--set: {show_path(path)}: the config has no such key ({hint})')


def set_option(document: Document, target, value, origin: str) -> None:
    """Lay a value from the command line over the config.

    target: 'optimizer;args;lr', or a sequence of keys.
    """
    path = tuple(target.split(';')) if isinstance(target, str) else tuple(target)
    place = f'{origin}: {".".join(path)}'
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f'{place}: {value} is not a number that a config may hold')
    is_there = len(path) == 1 or isinstance(document.values.get(path[0]), dict)
    if not is_there or not document.can_hold(path):
        raise ConfigError(f'{place}: the config has no section {path[0]!r} with such a key')
    document.put(path, value, origin)


def parse_value(text: str):
    """A value from the command line: JSON, or a bare word as the string it is."""
    try:
        return parse(text, '--set').values
    except ConfigError:
        is_number = json.scanner.NUMBER_RE.fullmatch(text)
        if text.lstrip()[:1] in ('{', '[', '"') or text in NOT_FINITE or is_number:
            raise
    if is_no_text(text):
        raise ConfigError(f'--set: {json.dumps(text)}: not UTF-8 text')
    return text
