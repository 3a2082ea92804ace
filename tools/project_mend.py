"""Habits of old code that cost something today: named with their lines, and mended where that is
safe.

`remarks` names them all. `mend` rewrites, only when asked, those for which one text always means
what the old one meant.
"""

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

from tools.project_old import called, parse
from tools.project_text import Source

NUMPY = {
    **dict.fromkeys(('float', 'int', 'bool', 'object', 'str'), ''),  # Python's own
    'long': 'int',
    'Inf': 'inf',
    'infty': 'inf',
    'Infinity': 'inf',
    'NaN': 'nan',
    'NAN': 'nan',
    'product': 'prod',
    'cumproduct': 'cumprod',
    'sometrue': 'any',
    'alltrue': 'all',
    'float_': 'float64',
    'complex_': 'complex128',
    'unicode_': 'str_',
    'string_': 'bytes_',
    'row_stack': 'vstack',
    'trapz': 'trapezoid',
}
ABC = (
    'Mapping',
    'MutableMapping',
    'Sequence',
    'MutableSequence',
    'Iterable',
    'Iterator',
    'Callable',
    'Hashable',
    'Sized',
    'Container',
    'Set',
    'MutableSet',
)
OUTDATED = "is gone from today's"

# What is only named.
PER_STEP = 'a .item() in every step waits for the device; give the tensor to the tracker instead'
ONE_TOO_MANY = (
    'with len_epoch this runs one batch too many: test `batch_idx + 1 == self.len_epoch`, or leave '
    'it to self.batches(epoch)'
)
GRID = 'a grid of images for every validation batch takes seconds: draw one, for batch_idx == 0'
UNWEIGHTED = (
    'an average of batch averages: a smaller last batch counts as much as a full one; '
    'MetricTracker.update takes n=len(target)'
)
PARALLEL = 'DataParallel is slow and leaves the first GPU as a bottleneck'
EVAL = 'text from a config is run as code: use getattr(module, name)'
HARD_CODED = 'loader arguments written into the code: those of the config are not used here'
GLOBAL_SEED = 'numpy is reseeded for the whole program'
LOADER_LENGTH = r'len\((self\.)?\w*loader\)'
CUDA = '.cuda() fails on a machine without a GPU: use .to(self.device)'
LOAD = (
    'torch.load takes plain data only since torch 2.6; what this project saves from now on is '
    'plain. '
    'Checkpoints from before: `python -m tools.convert_checkpoint OLD NEW`'
)


class Mend(NamedTuple):
    """A file with what is outdated in it mended; lines: what was done, for the report."""

    path: str
    text: str
    lines: list[str]


class Finding(NamedTuple):
    """A habit in a file. text: what to write in place of `node`; None when it is only named.

    imports: what `text` needs. The remark says what is wrong.
    """

    node: ast.AST
    remark: str
    text: str | None = None
    imports: tuple[str, ...] = ()


def remarks(sources: dict[str, str], is_mended: bool) -> dict[str, list[str]]:
    """{remark: places} of what is outdated or costly.

    Without what `mend` sees to when `is_mended`.
    """
    found = {}
    for path, text in sources.items():
        source = Source(text)
        for finding in sorted(findings(source), key=lambda each: each.node.lineno):
            if finding.text is None or not is_mended:
                more = '' if finding.text is None else ' (--mend writes it anew)'
                places = found.setdefault(finding.remark + more, [])
                if (place := f'`{path}` line {finding.node.lineno}') not in places:
                    places.append(place)
    return found


def mend(sources: dict[str, str]) -> list[Mend]:
    """Every file of the project in which something can be mended."""
    mends = []
    for path, text in sources.items():
        source, lines, imports = Source(text), [], set()
        todo = [each for each in findings(source) if each.text is not None]
        for finding in outermost(todo):
            lines.append(
                f'`{path}` line {finding.node.lineno}: `{short(source.of(finding.node))}` -> '
                f'`{short(finding.text)}`'
            )
            source.replace(finding.node, finding.text)
            imports |= set(finding.imports)
        if imports:
            source.import_first(sorted(imports))
        if lines:
            parse(source.text())  # a mend must at least be Python
            mends.append(Mend(path, source.text(), lines))
    return mends


def outermost(found: list[Finding]) -> list[Finding]:
    """Those that are not inside another: two changes of one place would not fit together."""
    inside = {
        id(inner) for each in found for inner in ast.walk(each.node) if inner is not each.node
    }
    unique = {id(each.node): each for each in found}
    return sorted(
        (each for each in unique.values() if id(each.node) not in inside),
        key=lambda each: each.node.lineno,
    )


def short(text: str) -> str:
    text = ' '.join(text.split())
    return text if len(text) <= 70 else f'{text[:67]}...'


def mend_tables(source: Source, owner: ast.AST) -> bool:
    """Let writes through pandas' views, which pandas refuses now, go into the table itself."""
    found = [each for each in table_writes(source, owner) if each.text]
    for finding in found:
        source.replace(finding.node, finding.text)
    return bool(found)


# Finding


def findings(source: Source) -> Iterator[Finding]:
    tree = source.tree
    names = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    names |= {
        alias.asname or alias.name: f'{node.module}.{alias.name}'
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level
        for alias in node.names
    }
    yield from table_writes(source, tree)
    targets = {
        id(node.value): node.targets[0] for node in ast.walk(tree) if isinstance(node, ast.Assign)
    }
    # What goes into a model as it was loaded: weights alone, which a checkpoint holds by a name.
    bare = {
        source.of(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and called(node).endswith('load_state_dict')
        for argument in node.args
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            target = targets.get(id(node))
            is_bare = source.of(node) in bare or target is not None and source.of(target) in bare
            is_taken_apart = isinstance(target, (ast.Tuple, ast.List))
            for found in in_call(source, node, full_name(node, names)):
                changes_meaning = (
                    found.remark == LOAD
                    and is_bare
                    or 'getargspec' in found.remark
                    and is_taken_apart
                )  # getfullargspec gives seven things
                yield found._replace(text=None, imports=()) if changes_meaning else found
        elif isinstance(node, ast.Attribute):
            yield from in_name(node, full_name(node, names))
        elif isinstance(node, ast.ImportFrom):
            yield from in_import(node)
        elif isinstance(node, ast.Assign):
            yield from in_assignment(source, node)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            if re.fullmatch(LOADER_LENGTH, ast.unparse(node.right)):
                yield Finding(node, UNWEIGHTED)
        elif isinstance(node, ast.If) and is_late_break(node):
            yield Finding(node, ONE_TOO_MANY)
        elif isinstance(node, ast.FunctionDef) and 'epoch' in node.name:
            yield from in_loop(node)


def full_name(node: ast.AST, names: dict[str, str]) -> str:
    """'numpy.float' for np.float, by the file's imports."""
    first, dot, rest = called(node).partition('.')
    return f'{names.get(first, first)}{dot}{rest}'


def in_call(source: Source, node: ast.Call, name: str) -> Iterator[Finding]:
    given = {each.arg: each.value for each in node.keywords}
    method = name.rpartition('.')[2]
    text = source.of(node)
    if name == 'torch.load' and 'weights_only' not in given:
        what = source.of(node.args[0]) if node.args else ''
        if re.search(
            'resume|checkpoint|ckpt', what
        ):  # reads old ones too, and runs nothing in them
            yield Finding(
                node,
                LOAD,
                f'load_any_checkpoint({what})',  # a name that nobody has
                ('from armature.checkpoint.files import load as load_any_checkpoint',),
            )
        else:
            yield Finding(node, LOAD)
    elif name == 'yaml.load' and len(node.args) == 1 and not given:
        yield Finding(node.func, f'yaml.load without a Loader {OUTDATED} PyYAML', 'yaml.safe_load')
    elif name == 'inspect.getargspec':
        yield Finding(node.func, f'inspect.getargspec {OUTDATED} Python', 'inspect.getfullargspec')
    elif name in ('scipy.misc.imread', 'scipy.misc.imresize', 'scipy.misc.imsave'):
        yield Finding(node, f'{name} {OUTDATED} scipy: use imageio or PIL')
    elif re.fullmatch(r'torchvision\.models\.\w+', name) and 'pretrained' in given:
        value = given['pretrained']
        keyword = next(each for each in node.keywords if each.arg == 'pretrained')
        weights = {'True': "'IMAGENET1K_V1'", 'False': 'None'}.get(
            source.of(value), f"'IMAGENET1K_V1' if {source.of(value)} else None"
        )
        yield Finding(keyword, f'pretrained= {OUTDATED} torchvision', f'weights={weights}')
    elif method == 'next' and not node.args and not given and isinstance(node.func, ast.Attribute):
        inner = node.func.value
        is_iterator = isinstance(inner, ast.Call) and called(inner) == 'iter'
        yield Finding(
            node,
            f'.next() of an iterator {OUTDATED} Python: write next(iterator)',
            f'next({source.of(inner)})' if is_iterator else None,
        )
    elif method == 'cuda' and isinstance(node.func, ast.Attribute):
        yield Finding(node, CUDA)
    elif name.endswith('DataParallel') and 'Distributed' not in name:
        yield Finding(node, PARALLEL)
    elif name == 'eval' and 'config' in text:
        yield Finding(node, EVAL)
    elif name == 'numpy.random.seed' and any(
        'DataLoader' in each.name for each in source.tree.body if isinstance(each, ast.ClassDef)
    ):
        yield Finding(node, GLOBAL_SEED)
    elif method == 'update' and 'n' not in given and names_a_metric(node.args):
        yield Finding(node, UNWEIGHTED)
    elif isinstance(node.func, ast.Call) and 'module_data' in ast.unparse(node.func):
        if isinstance(given.get('batch_size'), ast.Constant):
            yield Finding(node, HARD_CODED)
    elif 'volatile' in given:
        yield Finding(node, f'volatile {OUTDATED} torch: use torch.no_grad()')


def in_name(node: ast.Attribute, name: str) -> Iterator[Finding]:
    package, _, last = name.rpartition('.')
    if package == 'numpy' and last in NUMPY:
        new = f'{ast.unparse(node.value)}.{NUMPY[last]}' if NUMPY[last] else last
        yield Finding(node, f'numpy.{last} {OUTDATED} numpy', 'int' if last == 'long' else new)
    elif package == 'collections' and last in ABC:
        yield Finding(
            node,
            f'collections.{last} {OUTDATED} Python',
            f'collections.abc.{last}',
            ('import collections.abc',),
        )


def in_import(node: ast.ImportFrom) -> Iterator[Finding]:
    names = {alias.name for alias in node.names}
    if node.module == 'collections' and names & set(ABC):
        old, new = (
            [each for each in node.names if each.name not in ABC],
            [each for each in node.names if each.name in ABC],
        )
        lines = [
            ast.unparse(ast.ImportFrom(module, part, 0))
            for module, part in (('collections', old), ('collections.abc', new))
            if part
        ]
        yield Finding(
            node,
            f'collections.{sorted(names & set(ABC))[0]} {OUTDATED} Python',
            f'\n{" " * node.col_offset}'.join(lines),
        )
    elif node.module == 'sklearn.externals':
        is_joblib = names == {'joblib'}
        yield Finding(
            node,
            f'sklearn.externals {OUTDATED} scikit-learn',
            ast.unparse(ast.Import(node.names)) if is_joblib else None,
        )


def in_assignment(source: Source, node: ast.Assign) -> Iterator[Finding]:
    """`table = table.append({...})`: a list's append gives nothing back, so this is pandas'."""
    call = node.value
    if not (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == 'append'
        and len(call.args) == 1
        and source.of(node.targets[0]) == source.of(call.func.value)
    ):
        return
    table, row = source.of(call.func.value), source.of(call.args[0])
    # Anything but a dict may be a row, a table or a column; or it is torch's ModuleList.
    row = f'pandas.DataFrame([{row}])' if isinstance(call.args[0], ast.Dict) else ''
    options = ''.join(f', {source.of(each)}' for each in call.keywords)
    yield Finding(
        call,
        f'DataFrame.append {OUTDATED} pandas: use pandas.concat',
        f'pandas.concat([{table}, {row}]{options})' if row else None,
        ('import pandas',),
    )


def table_writes(source: Source, owner: ast.AST) -> Iterator[Finding]:
    """Writes into `self._data.column[row]` or a column's `.values`, in MetricTracker's way."""
    for node in ast.walk(owner):
        if not isinstance(node, (ast.Assign, ast.AugAssign)):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if not isinstance(target, ast.Subscript):
            continue
        remark = 'a write through a view of a table, which pandas refuses: write into table.loc'
        column = target.value
        if not isinstance(column, ast.Attribute):
            continue
        if called(column.value) == 'self._data' and column.attr not in ('loc', 'at', 'iloc', 'iat'):
            row = source.of(target.slice)
            yield Finding(target, remark, f"self._data.loc[{row}, '{column.attr}']")
        elif column.attr == 'values' and isinstance(column.value, ast.Subscript):
            table, name = column.value.value, source.of(column.value.slice)
            if called(table) == 'self._data' and source.of(target.slice) == ':':
                yield Finding(target, remark, f'self._data.loc[:, {name}]')


def names_a_metric(args: list[ast.expr]) -> bool:
    """Whether these are the arguments of MetricTracker.update without the number of samples."""
    return len(args) == 2 and (
        isinstance(args[0], ast.Constant)
        and isinstance(args[0].value, str)
        or called(args[0]).endswith('.__name__')
    )


def in_loop(function: ast.FunctionDef) -> Iterator[Finding]:
    for loop in ast.walk(function):
        if not isinstance(loop, (ast.For, ast.While)):
            continue
        for node in (each for statement in loop.body for each in ast.walk(statement)):
            name = called(node) if isinstance(node, ast.Call) else ''
            if name.endswith('.item') and 'train' in function.name:
                yield Finding(node, PER_STEP)
            elif name.endswith('make_grid') and 'valid' in function.name:
                yield Finding(node, GRID)


def is_late_break(node: ast.If) -> bool:
    """if batch_idx == self.len_epoch: break"""
    test = node.test
    return (
        any(isinstance(each, ast.Break) for each in node.body)
        and isinstance(test, ast.Compare)
        and isinstance(test.left, ast.Name)
        and isinstance(test.ops[0], (ast.Eq, ast.Gt, ast.GtE))
        and called(test.comparators[0]) == 'self.len_epoch'
    )
