"""Changes in a Python file at the positions that its tree has.

All that is not changed stays as it stands.
"""

import ast
import io
import re
import textwrap
import tokenize

from tools.project_old import is_docstring, parse

IMPORTS = (ast.Import, ast.ImportFrom)
FIRST_LINE = re.compile(rb'#!|#.*coding[:=]')  # has to stay where it is


def decoded(content: bytes) -> str:
    """A Python file's text, in the encoding that it says, with plain line ends.

    A SyntaxError or ValueError when it is in another.
    """
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    return content.decode(encoding).replace('\r\n', '\n').replace('\r', '\n')


def encoded_as(before: bytes, text: str) -> bytes:
    """`text` in the encoding and with the line ends of the file that it was."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(before).readline)
    return (text.replace('\n', '\r\n') if b'\r\n' in before else text).encode(encoding)


class Source:
    """A file's text, its tree, and the changes to be made; `text()` is the file with them."""

    def __init__(self, text: str):
        self.tree = parse(text)
        self._bytes = text.encode()
        self._starts = [0]  # of each line, in bytes: the tree counts columns in bytes
        for line in self._bytes.split(b'\n'):
            self._starts.append(self._starts[-1] + len(line) + 1)
        self._changes = []  # (start, end, new bytes)
        self._more = ''  # at the end

    def text(self) -> str:
        result = self._bytes
        for start, end, new in sorted(self._changes, key=lambda each: each[:2], reverse=True):
            result = result[:start] + new + result[end:]
        text = result.decode()
        return f'{text.rstrip()}\n{self._more}' if self._more else text

    def of(self, node: ast.AST) -> str:
        """The text of a node."""
        start, end = self._span(node)
        return self._bytes[start:end].decode()

    def replace(self, node: ast.AST, text: str, up_to: ast.AST | None = None) -> None:
        """`text` in place of a node, or of all from `node` up to the node `up_to`."""
        self._changes.append((self._span(node)[0], self._span(up_to or node)[1], text.encode()))

    def header(self, node: ast.ClassDef) -> str:
        """`class Name():` as it stands, for a class without bases."""
        return re.match(rb'class\s+\w+\s*(\(\s*\))?\s*:', self._bytes[self._span(node)[0] :])[
            0
        ].decode()

    def replace_in(self, node: ast.AST, before: str, after: str) -> None:
        """`after` in place of the first `before` in the text from a node's beginning on."""
        start = self._bytes.index(before.encode(), self._span(node)[0])
        self._changes.append((start, start + len(before.encode()), after.encode()))

    def remove(self, node: ast.AST) -> None:
        """Take a definition away, with its decorators, the comments above it and the blank lines
        after.
        """
        lines = self._bytes.split(b'\n')
        first = (
            min([node.lineno, *(each.lineno for each in getattr(node, 'decorator_list', []))]) - 1
        )
        margin = lines[node.lineno - 1][: node.col_offset]
        while first > 0 and lines[first - 1].startswith(margin + b'#'):
            if FIRST_LINE.match(lines[first - 1]):
                break
            first -= 1
        last = node.end_lineno
        while last < len(lines) and not lines[last].strip():
            last += 1
        end = min(self._starts[last], len(self._bytes))
        self._changes.append((self._starts[first], end, b''))

    def import_first(self, statements: list[str]) -> None:
        """Put imports after those at the top of the file.

        They win over imports of the same names.
        """
        top = 0
        lines = self._bytes.split(b'\n')
        while FIRST_LINE.match(lines[top]) and top < min(2, len(lines) - 1):
            top += 1
        for node in self.tree.body:
            if not isinstance(node, IMPORTS) and not is_docstring(node):
                break
            top = node.end_lineno
        block = ''.join(f'{each}\n' for each in statements)
        if top and self._starts[top] > len(self._bytes):  # the last line has no line end
            block = '\n' + block
        at = min(self._starts[top], len(self._bytes))
        self._changes.append((at, at, block.encode()))

    def append(self, text: str) -> None:
        self._more += text

    def add_method(self, owner: ast.ClassDef, text: str) -> None:
        """A method at the end of a class."""
        margin = ' ' * owner.body[0].col_offset
        end = self._span(owner.body[-1])[1]
        self._changes.append((end, end, f'\n\n{textwrap.indent(text.rstrip(), margin)}'.encode()))

    def add_argument(self, function: ast.FunctionDef, argument: str) -> None:
        """One more argument, written as name=default, at the end of a function's."""
        given = function.args
        if given.kwarg is not None:
            return
        last = max(
            [*given.args, *given.kwonlyargs, *given.defaults, *filter(None, given.kw_defaults)],
            key=lambda each: self._span(each)[1],
        )
        end = self._span(last)[1]
        self._changes.append((end, end, f', {argument}'.encode()))

    def _span(self, node: ast.AST) -> tuple[int, int]:
        return (
            self._starts[node.lineno - 1] + node.col_offset,
            self._starts[node.end_lineno - 1] + node.end_col_offset,
        )
