"""The rooms keep their walls: who imports whom, and who alone may say a dangerous word."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FRAME = ROOT / 'armature'
SHELVES = ('errors', 'seed', 'batch', 'compare', 'run_files')  # files that stand in no room
# Each room, and those that it may import from; all may import from the shelves.
BELOW = {
    'processes': (),
    'checkpoint': ('processes',),
    'config': ('processes', 'checkpoint'),
    'data': ('processes', 'checkpoint', 'config'),
    'step': ('processes', 'checkpoint', 'config'),
    'run': ('processes', 'checkpoint', 'config', 'data', 'step'),
}
PROJECT = {'base', 'trainer', 'model', 'data_loader', 'logger', 'utils', 'tools', 'parse_config'}
HEAVY = {'torchvision', 'torchmetrics', 'tensorboard', 'pandas', 'sklearn', 'matplotlib'}


def trees(*folders: Path):
    for folder in folders:
        for path in [folder] if folder.is_file() else sorted(folder.rglob('*.py')):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding='utf-8'))


def imported(tree: ast.AST) -> list[str]:
    """Every module that is imported, those inside functions too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f'{node.module}.{alias.name}' for alias in node.names]
    return found


def test_arrows_between_the_rooms_point_only_downward():
    for path, tree in trees(FRAME):
        room = path.split('/')[1].removesuffix('.py')
        allowed = (*SHELVES, room, *BELOW.get(room, ()))
        for name in imported(tree):
            top, *rest = name.split('.')
            assert top not in PROJECT, f'{path} imports {name}, of the project: pass it in'
            if top == 'armature' and rest:
                assert rest[0] in allowed, f'{path} imports {name}'


def test_no_file_of_the_frame_imports_itself_in_a_circle():
    of = {
        path.removesuffix('.py').replace('/', '.'): [
            name for name in imported(tree) if name.startswith('armature.')
        ]
        for path, tree in trees(FRAME)
    }

    def reach(module: str, way: tuple) -> None:
        assert module not in way, ' -> '.join([*way, module])
        for name in of[module]:
            target = name if name in of else name.rpartition('.')[0]
            if target in of and not target.endswith('__init__') and target != module:
                reach(target, (*way, module))

    for module in of:
        reach(module, ())


@pytest.mark.parametrize(
    'word, owner',
    [
        ('torch.save', 'armature/checkpoint/files.py'),
        ('torch.load', 'armature/checkpoint/files.py'),
        ('SummaryWriter', 'logger/visualization.py'),
        ('init_process_group', 'armature/processes/'),
        ('all_reduce', 'armature/processes/dist.py'),
    ],
)
def test_a_dangerous_word_has_one_owner(word, owner):
    places = [ROOT / name for name in ('train.py', 'test.py', 'parse_config.py')]
    places += [ROOT / name for name in ('armature', 'base', 'trainer', 'logger', 'utils')]
    for path, tree in trees(*places):
        used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if path.startswith(owner):
            continue
        assert not any(each == word or each.endswith(f'.{word}') for each in used), path


def test_heavy_libraries_are_imported_where_they_are_used():
    for path, tree in trees(FRAME, *(ROOT / name for name in ('base', 'trainer', 'utils'))):
        at_the_top = [
            name
            for node in tree.body
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in imported(node)
        ]
        assert not HEAVY & {name.split('.')[0] for name in at_the_top}, path
