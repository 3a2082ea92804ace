"""Moves definitions from one source file into another, as they stand: with their comments, decorators and imports."""
import ast
import copy
import textwrap

from tools.project_old import find_class, parse, parts


def text_of(source: str, node: ast.AST) -> str:
    """A definition as it stands in the file, with its decorators and the comments above it, its first column at the margin."""
    lines = source.split('\n')
    first = min([node.lineno, *(each.lineno for each in getattr(node, 'decorator_list', []))]) - 1
    while first > 0 and lines[first - 1].strip().startswith('#') \
            and indentation(lines[first - 1]) == indentation(lines[node.lineno - 1]):
        first -= 1
    text = textwrap.dedent('\n'.join(lines[first:node.end_lineno])) + '\n'
    return text if same(text, node) else f'{ast.unparse(node)}\n'


def indentation(line: str) -> str:
    return line[:len(line) - len(line.lstrip())]


def same(text: str, node: ast.AST) -> bool:
    """Whether shifting the text has changed nothing but docstrings: a string over several lines could have moved."""
    try:
        return ast.dump(without_docstrings(parse(text).body[0])) == ast.dump(without_docstrings(node))
    except (SyntaxError, IndexError):
        return False


def without_docstrings(node: ast.AST) -> ast.AST:
    node = copy.deepcopy(node)
    for each in ast.walk(node):
        if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant) and isinstance(each.value.value, str):
            each.value.value = ''
    return node


def graft(source: str, owner: str | None, name: str, text: str) -> str:
    """`source` with the definition `text` in the class `owner` (or the module): in place of that `name`, or at the end."""
    tree = parse(source)
    body = find_class(tree, owner) if owner else tree
    lines = source.rstrip('\n').split('\n')
    indented = textwrap.indent(text, '    ').rstrip('\n').split('\n') if owner else text.rstrip('\n').split('\n')
    existing = next((each for each in body.body if getattr(each, 'name', None) == name), None)
    if existing is not None:
        first = min([existing.lineno, *(each.lineno for each in existing.decorator_list)]) - 1
        lines[first:existing.end_lineno] = indented
    elif owner:
        lines[body.end_lineno:body.end_lineno] = ['', *indented]
    else:
        lines += ['', '', *indented]
    return '\n'.join(lines) + '\n'


def add_argument(source: str, class_name: str, argument: str) -> str:
    """`source` with one more argument, written as name=default, at the end of a class's __init__."""
    owner = find_class(parse(source), class_name)
    given = next(node.args for node in owner.body if getattr(node, 'name', None) == '__init__')
    if given.kwarg is not None:
        return source
    last = max([*given.args, *given.kwonlyargs, *given.defaults, *filter(None, given.kw_defaults)],
               key=lambda each: (each.end_lineno, each.end_col_offset))
    lines = source.split('\n')
    line = lines[last.end_lineno - 1].encode()
    lines[last.end_lineno - 1] = (line[:last.end_col_offset] + f', {argument}'.encode() + line[last.end_col_offset:]).decode()
    return '\n'.join(lines)


def add_imports(source: str, text: str, tree: ast.Module, original: str) -> str:
    """`source` with the project's imports of what `text` uses, after its own imports."""
    used = {node.id for node in ast.walk(parse(text)) if isinstance(node, ast.Name)}
    for name in sorted(used - top_names(source)):
        statement = import_of(name, tree, original)
        if statement:
            body = parse(source).body
            last = max((node.end_lineno for node in body if isinstance(node, (ast.Import, ast.ImportFrom))), default=0)
            lines = source.split('\n')
            lines.insert(last, statement.rstrip('\n'))
            source = '\n'.join(lines)
    return source


def import_of(name: str, tree: ast.Module, source: str) -> str:
    """The import that binds `name` in a file, alone; '' when none does."""
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                if (alias.asname or alias.name.partition('.')[0]) == name:
                    alone = copy.deepcopy(node)
                    alone.names = [alias]
                    return f'{ast.unparse(alone)}\n'
    return ''


def top_names(source: str, imported: bool = True) -> set[str]:
    """Names that a module binds outside functions and classes."""
    names, waiting = set(), list(parse(source).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).partition('.')[0] for alias in node.names} if imported else set()
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        else:
            waiting += ast.iter_child_nodes(node)
    return names


def member_names(source: str, class_name: str) -> set[str]:
    owner = find_class(parse(source), class_name)
    return {part.name for part in parts(owner, class_name)} if owner else set()
