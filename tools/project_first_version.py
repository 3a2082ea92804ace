"""What a project of the first version needs to be updated: its files in the rooms of today.

The first version had the frame's parts in `base/` and `utils/`. Here they are followed to where
they are now, imports of them are written anew in every file of the project, and what was the user's
own to edit (train.py, trainer/, ...) is merged too, since it was written for that version's parts.
"""

import ast
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from tools.project import OWNED, TEMPLATE, digest, files_below
from tools.project_old import bound_names
from tools.project_take_over import ASIDE, OLD_STYLE, dotted, origin, python_files
from tools.project_text import Source, decoded, encoded_as

RENAMED = {
    'base/average.py': 'armature/step/average.py',
    'base/checkpoint.py': 'armature/checkpoint/files.py',
    'base/fetching.py': 'armature/data/reading.py',
    'base/finite.py': 'armature/run/checks.py',
    'base/fitting.py': 'armature/step/micro_batches.py',
    'base/in_memory.py': 'armature/data/memory.py',
    'base/losses.py': 'armature/step/losses.py',
    'base/monitor.py': 'armature/run/monitor.py',
    'base/old_checkpoint.py': 'armature/checkpoint/old.py',
    'base/prepare.py': 'armature/step/prepare.py',
    'base/resume.py': 'armature/run/resume.py',
    'base/run_record.py': 'armature/run/record.py',
    'base/samplers.py': 'armature/data/order.py',
    'base/schedule.py': 'armature/step/schedule.py',
    'base/sharded.py': 'armature/checkpoint/sharded.py',
    'base/splits.py': 'armature/data/split.py',
    'base/stop.py': 'armature/run/stop.py',
    'base/stream.py': 'armature/data/stream.py',
    'base/transfer.py': 'armature/step/parameters.py',
    'base/weights.py': 'armature/checkpoint/weights.py',
    'data_loader/tables.py': 'examples/tabular/table.py',
    'logger/pictures.py': 'armature/run/plots.py',
    'utils/batch.py': 'armature/batch.py',
    'utils/compare.py': 'armature/compare.py',
    'utils/config_check.py': 'armature/config/check.py',
    'utils/config_file.py': 'armature/config/read.py',
    'utils/config_schema.py': 'armature/config/keys.py',
    'utils/config_types.py': 'armature/config/build.py',
    'utils/dist.py': 'armature/processes/dist.py',
    'utils/errors.py': 'armature/errors.py',
    'utils/job.py': 'armature/processes/launch.py',
    'utils/metrics.py': 'armature/run/metric_tracker.py',
    'utils/old_style.py': f'{ASIDE}/old_style.py',
    'utils/seed.py': 'armature/seed.py',
}
# The first version's train.py, trainer/ and so on: what edits of theirs are compared with.
ORIGINALS = Path(__file__).parent / 'project_files/first_version.tar.xz'
TEMPLATE_ROOMS = ('base', 'logger', 'utils', 'tools', 'armature', 'parse_config')


@dataclass
class Move:
    """A project as if it had always had the rooms of today, ready to be merged."""

    pristine: dict[str, bytes]
    mine: dict[str, bytes]
    offered: dict[str, bytes]
    old_paths: list[str] = field(default_factory=list)  # where files were that are elsewhere now
    rewritten: dict[str, bytes] = field(default_factory=dict)  # the user's own files, imports anew
    gone: list[str] = field(default_factory=list)  # imports of what is no longer there


def layout(manifest: dict) -> tuple[dict[str, str], list[str]]:
    """(moved, left_alone) of a manifest of the first version, as a manifest of today has them."""
    moved = {OLD_STYLE: f'{ASIDE}/old_style.py'} if manifest.get('extra') else {}
    return moved, manifest.get('left_alone', [])


def move_rooms(
    folder: Path, manifest: dict, pristine: dict[str, bytes], offered: dict[str, bytes]
) -> Move:
    """Bring the three sides of a merge into the rooms of today."""
    pristine = pristine | originals(manifest)
    offered = offered | owned_today(pristine)
    renamed = {old: new for old, new in RENAMED.items() if new in offered and old in pristine}
    imports = Imports(offered, pristine)
    move = Move({}, {}, offered)
    for path, content in pristine.items():
        move.pristine[renamed.get(path, path)] = imports.anew(path, content)
    for path in pristine.keys() | offered.keys():
        if (folder / path).is_file():
            content = (folder / path).read_bytes()
            move.mine[renamed.get(path, path)] = imports.anew(path, content)
            if path in pristine and path in offered and is_users(path):
                added = set(content.splitlines()) - set(pristine[path].splitlines())
                offered[path] = imports.with_lost(path, offered[path], b'\n'.join(added))
    move.old_paths = [path for path in renamed if (folder / path).is_file()]
    for path in python_files(folder):
        if path not in pristine and path not in offered:
            content = (folder / path).read_bytes()
            anew = imports.anew(path, content, move.gone)
            if anew != content:
                move.rewritten[path] = anew
    return move


def originals(manifest: dict) -> dict[str, bytes]:
    """The files of the user's own as the project got them, where those were the first version's."""
    with tarfile.open(ORIGINALS) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}
    yours = manifest.get('yours', {})
    return {path: content for path, content in files.items() if yours.get(path) == digest(content)}


def owned_today(pristine: dict[str, bytes]) -> dict[str, bytes]:
    """Today's version of what stands beside those files."""
    places = {path.partition('/')[0] for path in pristine} & set(OWNED)
    if {'data_loader', 'model'} & places:  # where CsvDataLoader and TabularModel are now
        places |= {'examples/__init__.py', 'examples/tabular'}
    files = files_below(TEMPLATE, tuple(places))
    return {path: content for path, content in files.items() if path.endswith('.py')}


class Imports:
    """Writes imports of the first version's modules anew."""

    def __init__(self, offered: dict[str, bytes], pristine: dict[str, bytes]):
        trees = {
            path: Source(content.decode()).tree
            for path, content in offered.items()
            if path.endswith('.py')
        }
        self.names = {dotted(path): bound_names(tree) for path, tree in trees.items()}
        self.homes = {}  # {name: modules that define it}
        for path, tree in trees.items():
            for name in bound_names(tree, with_imports=False):
                self.homes.setdefault(name, []).append(dotted(path))
        self.renamed = {dotted(old): dotted(new) for old, new in RENAMED.items()}
        self.of_template = {dotted(path) for path in pristine} | self.names.keys()
        # What files of the user's own offered, before he edited them.
        self.offered_before = {
            dotted(path): bound_names(Source(content.decode()).tree)
            for path, content in pristine.items()
            if path.endswith('.py') and is_users(path)
        }

    def with_lost(self, path: str, content: bytes, added: bytes) -> bytes:
        """The file with imports of what it had before, where the user's lines speak of it."""
        if not path.endswith('.py'):
            return content
        tree = ast.parse(content)
        found = [
            f'from {self.homes[name][0]} import {name}\n'.encode()
            for name in sorted(self.offered_before[dotted(path)] - bound_names(tree))
            if len(self.homes.get(name, ())) == 1 and re.search(rf'\b{name}\b'.encode(), added)
        ]
        imports = [each for each in tree.body if isinstance(each, (ast.Import, ast.ImportFrom))]
        place = imports[-1].end_lineno if imports else 0
        lines = content.splitlines(keepends=True)
        return b''.join([*lines[:place], *found, *lines[place:]])

    def anew(self, path: str, content: bytes, gone: list[str] | None = None) -> bytes:
        """The file with its imports as they have to be now.

        `gone` gets a line for each that cannot.
        """
        if not path.endswith('.py') or b'import' not in content:
            return content
        try:
            source = Source(decoded(content))
        except (SyntaxError, ValueError):
            return content
        is_changed = False
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ImportFrom):
                wanted = [self.place(origin(node, path), alias) for alias in node.names]
                before = [(origin(node, path), alias.name, alias.asname) for alias in node.names]
            elif isinstance(node, ast.Import):
                before = [('', alias.name, alias.asname) for alias in node.names]
                wanted = [
                    ('', self.renamed.get(alias.name, alias.name), alias.asname)
                    for alias in node.names
                ]
            else:
                continue
            for place, (module, name, _) in zip(wanted, before):
                if gone is not None and place is None:
                    gone.append(f'{path} line {node.lineno}: {module}.{name}')
            wanted = [place or old for place, old in zip(wanted, before)]
            if wanted != before:
                source.replace(node, written(wanted, node.col_offset))
                is_changed = True
        return encoded_as(content, source.text()) if is_changed else content

    def place(self, module: str, alias: ast.alias) -> tuple[str, str, str | None] | None:
        """(module, name, as) of today for a name imported from a module; None when it is gone."""
        whole = f'{module}.{alias.name}'
        if whole in self.renamed:  # a module from its package
            package, _, name = self.renamed[whole].rpartition('.')
            bound_as = alias.asname or alias.name
            return package, name, None if bound_as == name else bound_as
        is_owned = is_users(module)
        if (
            module not in self.of_template | self.renamed.keys()
            or is_owned
            and alias.name not in self.offered_before.get(module, ())
        ):
            return module, alias.name, alias.asname
        now = self.renamed.get(module, module)
        if alias.name == '*' or whole in self.of_template or alias.name in self.names.get(now, ()):
            return now, alias.name, alias.asname
        homes = [
            home
            for home in self.homes.get(alias.name, ())
            if is_owned or home.partition('.')[0] in TEMPLATE_ROOMS
        ]
        return (homes[0], alias.name, alias.asname) if len(homes) == 1 else None


def is_users(place: str) -> bool:
    """Whether a file or module is the user's own to edit, by its first folder."""
    return re.split('[./]', place)[0] not in TEMPLATE_ROOMS


def written(places: list[tuple[str, str, str | None]], margin: int) -> str:
    """The import statements for (module, name, as)."""
    modules = {}
    for module, name, bound_as in places:
        modules.setdefault(module, []).append(f'{name} as {bound_as}' if bound_as else name)
    lines = [
        f'from {module} import {", ".join(names)}' if module else f'import {", ".join(names)}'
        for module, names in modules.items()
    ]
    return f'\n{" " * margin}'.join(lines)
