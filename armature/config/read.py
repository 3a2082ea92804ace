"""The only place that reads a config file: JSON with comments, `base` files, `--set`, and where each value came from."""

import json
import os
import re
from bisect import bisect_right
from copy import deepcopy
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from armature.errors import ConfigError

MAX_BYTES = 4 * 2**20
MAX_DEPTH = 64
MAX_BASES = 32
TOKEN = re.compile(
    r"""
    (?P<skip>    [ \t\r\n]+ | //[^\n]* | /\*.*?\*/ )
  | (?P<string>  "[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*" )
  | (?P<number>  -?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)? )
  | (?P<word>    -?[A-Za-z_][A-Za-z_0-9]* )
  | (?P<mark>    [{}\[\],:] )""",
    re.VERBOSE | re.DOTALL,
)
WORDS = {'true': True, 'false': False, 'null': None}
NOT_FINITE = ('NaN', 'Infinity', '-Infinity')
DELETE = {'delete': True}


@dataclass
class Document:
    """A config, and for the path of each value in it where that was written: 'config.json:14', '--set', '--lr'.

    Paths are tuples of keys and list indices. `origins` may still name paths that a later file removed.
    """

    values: dict
    origins: dict = field(default_factory=dict)

    def origin(self, path: tuple) -> str:
        """Where the value at `path` was written; for one that is missing, where the section around it was."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path, '')

    def put(self, path: tuple, value, origin: str) -> None:
        """Set one value, with the sections on the way to it."""
        node = self.values
        for depth, key in enumerate(path[:-1]):
            if isinstance(node, dict) and key not in node:
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


def entries(value):
    """The (key, value) pairs of a dict, the (index, value) pairs of a list, nothing for all else."""
    return (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value))
        if isinstance(value, list)
        else []
    )


def show_path(path: tuple) -> str:
    """A key path as people write it: trainer.epochs, metrics.0."""
    parts = [str(part) for part in path]
    return '.'.join(part if part and part.isprintable() else json.dumps(part) for part in parts)[
        :200
    ]


def show(value) -> str:
    """A value as it stands in a config, on one line and not too long."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(repr(value))
    return text if len(text) <= 60 else f'{text[:57]}...'


def nearest(name: str, names) -> str | None:
    """The one of `names` that `name` was most likely meant to be, if any looks like it."""
    by_lower = {
        str(candidate).lower(): candidate for candidate in reversed(list(names))
    }  # of twins the first: the project's own
    lower = str(name)[:100].lower()
    words = lower.split('_')
    found = (
        get_close_matches(lower, by_lower, n=1, cutoff=0.7)
        or [each for each in by_lower if each == ''.join(word[:1] for word in words)]
        or [each for each in by_lower if len(lower) > 2 and set(words) < set(each.split('_'))]
    )
    return by_lower[found[0]] if found else None


def did_you_mean(name: str, names) -> str:
    """' (did you mean 'lr'?)', or nothing."""
    near = nearest(name, names)
    return f' (did you mean {near!r}?)' if near is not None else ''


class _Reader:
    """One pass over a JSON text. Problems that leave the structure readable are collected, the rest raise at once."""

    def __init__(self, text: str, name: str):
        self.text, self.name = text, name
        self.line_starts = [match.end() for match in re.finditer('\n', text)]
        self.origins, self.problems = {}, []
        self.end = 0
        self.advance()

    def read(self) -> Document:
        value = self.value(())
        if self.kind != 'end':
            self.fail('the end of the file')
        if self.problems:
            raise ConfigError('\n'.join(self.problems))
        return Document(value, self.origins)

    def place(self, position: int) -> str:
        # What came from the command line has no lines.
        line = bisect_right(self.line_starts, position)
        return f'{self.name}:{line + 1}' if not self.name.startswith('--') else self.name

    def problem(self, path: tuple, text: str) -> None:
        self.problems.append(
            f'{self.place(self.start)}: {show_path(path) or "the whole file"}: {text}'
        )

    def fail(self, expected: str):
        line = bisect_right(self.line_starts, self.start)
        column = self.start - (self.line_starts[line - 1] if line else 0) + 1
        found = {'end': 'the end of the file', 'bad': show(self.token)}.get(
            self.kind, self.token[:40]
        )
        hint = {
            '"': ' (does the string end on its line?)',
            "'": ' (strings stand in double quotes)',
            'True': ' (did you mean true?)',
            'False': ' (did you mean false?)',
            'None': ' (did you mean null?)',
        }.get(self.token, '')
        place = self.place(self.start)
        raise ConfigError(
            f'{place}{"" if place == self.name else f":{column}"}: expected {expected}, found {found}{hint}'
        )

    def advance(self) -> None:
        """Step to the next token: its kind, its text and where it starts."""
        while True:
            match, self.start = TOKEN.match(self.text, self.end), self.end
            if match is None:
                self.kind, self.token = (
                    'end' if self.end == len(self.text) else 'bad',
                    self.text[self.end : self.end + 1],
                )
                return
            self.kind, self.token, self.end = match.lastgroup, match.group(), match.end()
            if self.kind != 'skip':
                return

    def value(self, path: tuple):
        if len(path) > MAX_DEPTH:
            raise ConfigError(
                f'{self.place(self.start)}: {show_path(path[:3])}...: nested deeper than {MAX_DEPTH} levels'
            )
        self.origins.setdefault(path, self.place(self.start))
        if self.token == '{' and self.kind == 'mark':
            return self.members(path)
        if self.token == '[' and self.kind == 'mark':
            return self.items(path)
        if self.kind == 'string':
            value = self.string(path)
        elif self.kind == 'number':
            value = self.number(path)
        elif self.kind == 'word' and self.token in WORDS:
            value = WORDS[self.token]
        elif self.kind == 'word' and self.token in NOT_FINITE:
            value = self.problem(path, f'{self.token} is not a number that a config may hold')
        else:
            self.fail('a value')
        self.advance()
        return value

    def members(self, path: tuple) -> dict:
        found = {}
        self.advance()
        while self.token != '}' or self.kind != 'mark':
            if self.kind != 'string':
                self.fail("a key in double quotes or '}'")
            key = self.string(path)
            inner = (*path, key)
            if key in found:
                self.problem(inner, f'given twice, first at {self.origins[inner]}')
            self.origins[inner] = self.place(self.start)
            self.advance()
            if self.token != ':' or self.kind != 'mark':
                self.fail("':'")
            self.advance()
            found[key] = self.value(inner)
            self.separator('}')
        self.advance()
        return found

    def items(self, path: tuple) -> list:
        found = []
        self.advance()
        while self.token != ']' or self.kind != 'mark':
            found.append(self.value((*path, len(found))))
            self.separator(']')
        self.advance()
        return found

    def separator(self, closing: str) -> None:
        if self.kind == 'mark' and self.token == ',':
            self.advance()
        elif self.kind != 'mark' or self.token != closing:
            self.fail(f"',' or '{closing}'")

    def string(self, path: tuple) -> str:
        try:
            value = json.loads(self.token)
        except ValueError:
            self.fail('a string with valid escapes')
        if '\0' in value or any('\ud800' <= char <= '\udfff' for char in value):
            self.problem(path, 'a string may not hold NUL or half of a surrogate pair')
        return value

    def number(self, path: tuple) -> int | float | None:
        is_whole = not any(mark in self.token for mark in '.eE')
        # Nothing here counts beyond 64 bits, and Python itself refuses to read thousands of digits.
        if len(self.token) < 400:
            value = int(self.token) if is_whole else float(self.token)
            if abs(value) < (2**64 if is_whole else float('inf')):
                return value
        return self.problem(path, f'the number {self.token[:20]}... is too large')


def parse(text: str, name: str) -> Document:
    """Read a JSON text; `name` is what its places are called (a file name, or '--set')."""
    return _Reader(text, name).read()


def read_text(path: Path, name: str) -> str:
    """The text of a config file; every way in which that can fail is a ConfigError."""
    try:
        with path.open('rb') as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        near = (
            nearest(path.name, (each.name for each in path.parent.glob('*.json')))
            if path.parent.is_dir()
            else None
        )
        raise ConfigError(
            f'{name}: no such config file' + (f' (did you mean {near!r}?)' if near else '')
        ) from None
    except IsADirectoryError:
        raise ConfigError(f'{name}: is a folder, expected a config file') from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f'{show_path((name,))}: cannot be read: {getattr(error, "strerror", None) or error}'
        ) from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f'{name}: larger than {MAX_BYTES // 2**20} MB, which no config is')
    try:
        return content.decode('utf-8-sig')  # Windows editors put a byte order mark first
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b'\n') + 1
        raise ConfigError(f'{name}:{line}: not UTF-8 text') from None


def read_config(path: Path, name: str, chain: tuple = (), known: dict | None = None) -> Document:
    """Read a config file with the files its `base` names merged under it. `name` is the path as the user wrote it."""
    known = {} if known is None else known
    identity = os.path.realpath(path)
    if identity in known:
        return known[identity]
    document = parse(read_text(path, name), name)
    if not isinstance(document.values, dict):
        raise ConfigError(
            f'{document.origin(())}: the whole file: expected an object {{...}}, got {show(document.values)}'
        )
    document.values.pop('$schema', None)
    bases = document.values.pop('base', [])
    below = Document({})
    chain = (*chain, (identity, name))
    for index, base in enumerate(bases if isinstance(bases, list) else [bases]):
        place = document.origin(('base', index))
        if not isinstance(base, str) or not base:
            raise ConfigError(
                f'{place}: base: expected the path of a config file or a list of such, got {show(base)}'
            )
        base_path, base_name = (
            path.parent / base,
            os.path.normpath(os.path.join(os.path.dirname(name), base)),
        )
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
    """A new document: `above` laid over `below`. Dicts merge, null and {"delete": true} remove, all else replaces."""
    problems = []
    values = _merge(below.values, above.values, above, (), problems)
    if problems:
        raise ConfigError('\n'.join(problems))
    return Document(values, below.origins | above.origins)


def _merge(below: dict, above: dict, document: Document, path: tuple, problems: list) -> dict:
    merged = {key: deepcopy(value) for key, value in below.items()}
    if 'type' in above and above['type'] != below.get('type', above['type']):
        merged.pop('args', None)  # they belong to the other type
    for key, value in above.items():
        inner = (*path, key)
        if value == DELETE or (value is None and key in below):
            if key not in below:
                near = did_you_mean(key, below)
                problems.append(
                    f'{document.origin(inner)}: {show_path(inner)}: nothing here to delete{near}'
                )
            merged.pop(key, None)
        elif isinstance(value, dict):
            under = merged.get(key)
            merged[key] = _merge(
                under if isinstance(under, dict) else {}, value, document, inner, problems
            )
        else:
            merged[key] = deepcopy(value)
    return merged


def set_value(document: Document, assignment: str, is_known=lambda path: False) -> tuple:
    """Carry out one --set: 'a.b=value' changes a key, 'a.b+=value' adds one, or appends to a list. Returns its path.

    is_known(path) tells which keys may be given although the config does not hold them yet.
    """
    left, equals, text = assignment.partition('=')
    adds = left.endswith('+')
    keys = left.rstrip('+').strip().split('.')
    if not equals or not all(keys):
        raise ConfigError(f"--set {show_path((assignment,))}: expected 'section.key=value'")
    value = parse_value(text, '--set')
    path, node = (), document.values
    for key in keys:
        if isinstance(node, list):
            if not re.fullmatch('[0-9]{1,6}', key) or int(key) >= len(node):
                raise ConfigError(
                    f'--set: {show_path((*path, key))}: {show_path(path)} is a list of {len(node)}'
                )
            key = int(key)
        path = (*path, key)
        node = (
            node[key]
            if isinstance(node, list) or (isinstance(node, dict) and key in node)
            else None
        )
    parent = lookup(document.values, path[:-1])
    exists = isinstance(parent, (dict, list)) and (isinstance(parent, list) or path[-1] in parent)
    if adds and isinstance(node, list):
        node.append(value)
        document.mark((*path, len(node) - 1), value, '--set')
    elif exists and adds:
        raise ConfigError(f"--set: {show_path(path)}: is there already: write '=' to change it")
    elif exists and value is None and isinstance(parent, dict):
        del parent[path[-1]]
    elif exists or ((adds or is_known(path)) and document.can_hold(path)):
        document.put(path, value, '--set')
    else:
        near = nearest(left, [show_path(each) for each in all_paths(document.values)])
        hint = f'did you mean {near!r}?' if near else 'to add it, write'
        raise ConfigError(
            f'--set: {show_path(path)}: the config has no such key ({hint}'
            + (')' if near else f" '{show_path(path)}+=...')")
        )
    return path


def parse_value(text: str, name: str):
    """A value from the command line: JSON, or a bare word as the string it is."""
    try:
        return parse(text, name).values
    except ConfigError:
        if (
            text.lstrip()[:1] in ('{', '[', '"')
            or text in NOT_FINITE
            or TOKEN.fullmatch(text)
            and text[0] in '-0123456789'
        ):
            raise
    if '\0' in text or any('\ud800' <= char <= '\udfff' for char in text):
        raise ConfigError(f'{name}: {json.dumps(text)}: not UTF-8 text')
    return text


def lookup(values, path: tuple):
    """The value at a path, None when there is none."""
    for key in path:
        if not (
            isinstance(values, dict)
            and key in values
            or isinstance(values, list)
            and isinstance(key, int)
        ):
            return None
        values = values[key]
    return values


def all_paths(values, path: tuple = ()):
    """The path of every value in a config, sections included."""
    for key, value in entries(values):
        yield (*path, key)
        yield from all_paths(value, (*path, key))
