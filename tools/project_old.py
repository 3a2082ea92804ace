"""What is known about the old template, and by it: which parts of a project's files are copies.

`project_files/old_template.json` holds, of every version from 2018 to 2020, what its definitions
are called, the names they use, and a fingerprint of each. A definition is the same when its
fingerprint is known; nearly the same when it only uses names that the old template uses there.
Comments, messages, annotations and layout do not count for either.
"""

import ast
import builtins
import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

KNOWN = json.loads(
    (Path(__file__).parent / 'project_files/old_template.json').read_text(encoding='utf-8')
)
METHODS = {name: set(methods.split()) for name, methods in KNOWN['methods'].items()}
FUNCTIONS = set(KNOWN['functions'].split())
WORDS = {name: set(' '.join(lines).split()) for name, lines in KNOWN['words'].items()}
FINGERPRINTS = {name: set(' '.join(lines).split()) for name, lines in KNOWN['fingerprints'].items()}
WRITERS = ('TensorboardWriter', 'WriterTensorboardX', 'WriterTensorboard')  # one class, three names
# What says nothing about where a function comes from.
COMMON = {'self', 'super', *dir(builtins), *dir(str), *dir(dict), *dir(list), *dir(Path)}
COMMON |= {'non_blocking', 'weights_only'}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Part(NamedTuple):
    """A definition in a project's file; is_known: the old template has one of that name there.

    words: the names it uses and the old template's does not, with their line numbers.
    """

    name: str
    node: ast.AST
    is_known: bool = False
    is_same: bool = False
    words: dict[str, int] = {}

    @property
    def is_copy(self) -> bool:
        """The same, or nearly so."""
        return self.is_known and not self.words


def parse(source: str) -> ast.Module:
    """The tree of a file; what Python would warn of there is its author's business."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return ast.parse(source)


def parts(owner: ast.Module | ast.ClassDef) -> list[Part]:
    """The statements of a module or a class, but for imports and docstrings.

    What defines nothing is named by its text.
    """
    class_name = template_name(owner.name) if isinstance(owner, ast.ClassDef) else ''
    known = METHODS.get(class_name, set()) if class_name else FUNCTIONS | METHODS.keys()
    found = []
    for node in owner.body:
        if isinstance(node, DEFINITIONS):
            name = template_name(node.name)
            if isinstance(node, ast.ClassDef) or name not in known:
                found.append(Part(node.name, node, name in known))
                continue
            key = f'{class_name}.{name}' if class_name else name
            is_same = fingerprint(node) in FINGERPRINTS.get(key, ())
            found.append(
                Part(name, node, True, is_same, {} if is_same else foreign(node, class_name))
            )
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            found.append(Part(ast.unparse(target), node))
        elif not isinstance(node, (ast.Import, ast.ImportFrom, ast.Pass)) and not is_docstring(
            node
        ):
            found.append(Part(ast.unparse(node).partition('\n')[0][:40], node))
    return found


def template_name(name: str) -> str:
    """Under which name a class is known here."""
    return 'TensorboardWriter' if name in WRITERS else name


def is_same_class(node: ast.ClassDef) -> bool:
    """Whether a class is the old template's, to the last expression."""
    return all(part.is_same for part in parts(node))


def fingerprint(node: ast.AST) -> str:
    return hashlib.sha1(shape(node).encode()).hexdigest()[:8]


def shape(node: object) -> str:
    """A tree as text, without docstrings, annotations, and what messages say.

    Alike in every Python.
    """
    if isinstance(node, list):
        inner = [shape(each) for each in node if not is_docstring(each)]
        return f'[{",".join(inner)}]' if inner else ''
    if isinstance(node, ast.Call) and is_message(node):
        return 'message'
    if isinstance(node, ast.AST):
        left_out = ('ctx', 'annotation', 'returns', 'type_comment', 'kind')
        fields = [
            (name, shape(value)) for name, value in ast.iter_fields(node) if name not in left_out
        ]
        inner = ','.join(f'{name}={text}' for name, text in fields if text)
        return f'{type(node).__name__}({inner})'
    return '' if node is None else repr(node)


def is_docstring(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def foreign(function: ast.AST, class_name: str) -> dict[str, int]:
    """{name: line} of what `function` uses and the old template's of that name does not."""
    known = WORDS[class_name or 'functions'] | METHODS.get(class_name, set()) | METHODS.keys()
    known = known | {function.name, *WRITERS}
    known |= {
        node.id
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return {
        word: line
        for word, line, is_key in words(function)
        if word not in known and (is_key or word not in COMMON)
    }


def words(tree: ast.AST) -> Iterator[tuple[str, int, bool]]:
    """(name, line, whether it is a string key) outside messages and annotations."""
    if is_docstring(tree) or isinstance(tree, ast.Call) and is_message(tree):
        return
    line = getattr(tree, 'lineno', 0)
    if isinstance(tree, ast.Name):
        yield tree.id, line, False
    elif isinstance(tree, ast.Attribute):
        yield tree.attr, line, False
    elif isinstance(tree, (ast.arg, ast.keyword)) and tree.arg:
        yield tree.arg, line, False
    elif isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        is_name = len(tree.value) > 2 and tree.value.isidentifier()
        yield from [(tree.value, line, True)] if is_name else []
    for field, child in ast.iter_fields(tree):
        if field in ('annotation', 'returns'):
            continue
        for each in child if isinstance(child, list) else [child]:
            if isinstance(each, ast.AST):
                yield from words(each)


def is_message(call: ast.Call) -> bool:
    name = called(call)
    return name in ('print', 'warnings.warn') or (
        name.rpartition('.')[2] in ('info', 'debug', 'warning') and 'logg' in name
    )


def called(node: ast.AST) -> str:
    """'torch.load' for a call of it, or for the name itself; '' for what has no such name."""
    target = node.func if isinstance(node, ast.Call) else node
    if isinstance(target, ast.Attribute):
        inner = called(target.value) if not isinstance(target.value, ast.Call) else '()'
        return f'{inner}.{target.attr}'
    return target.id if isinstance(target, ast.Name) else ''


def find_class(tree: ast.Module, name: str) -> ast.ClassDef | None:
    return next(
        (
            node
            for node in tree.body
            if isinstance(node, ast.ClassDef) and template_name(node.name) == name
        ),
        None,
    )


def arguments(owner: ast.ClassDef | None, method: str = '__init__') -> list[str]:
    """Names of a method's arguments without self; none when there is no such method."""
    for node in owner.body if owner else []:
        if isinstance(node, ast.FunctionDef) and node.name == method:
            given = node.args
            return [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)][1:]
    return []


def members(owner: ast.ClassDef | None) -> set[str]:
    """Names of what a class defines itself."""
    return {part.name for part in parts(owner)} if owner else set()


def bound_names(tree: ast.Module, with_imports: bool = True) -> set[str]:
    """Names that a module binds outside functions and classes."""
    names, waiting = set(), list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, DEFINITIONS):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            if with_imports:
                names |= {(each.asname or each.name).partition('.')[0] for each in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        else:
            waiting += ast.iter_child_nodes(node)
    return names
