"""Decides what of an old project's files is the old template's, and writes those files anew.

Read `take_over` first: judge each file, settle where the template's own files go, write.
"""

import ast
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from armature.errors import UserError
from tools import project_old as old
from tools.project import KEPT, TEMPLATE, files_below, is_below, stamp, template_files
from tools.project_mend import mend_tables
from tools.project_text import Source, decoded, encoded_as

ROOMS = ('base', 'logger', 'utils')  # the packages of the old template
# Where this template has what an old project may hold a copy of.
HOMES = {
    'BaseTrainer': 'base/base_trainer.py',
    'BaseDataLoader': 'base/base_data_loader.py',
    'BaseModel': 'base/base_model.py',
    'TensorboardWriter': 'logger/visualization.py',
    'setup_logging': 'logger/logger.py',
    'ConfigParser': 'parse_config.py',
    'MetricTracker': 'utils/util.py',
    **{name: 'utils/util.py' for name in old.FUNCTIONS - {'setup_logging'} if name[0] != '_'},
}
# What this template has written anew: a class whose version of these is changed is kept whole.
REWRITTEN = {
    'BaseTrainer': {'__init__', 'train'},
    'BaseDataLoader': {'__init__', '_split_sampler', 'split_validation'},
    'BaseModel': {'__init__', 'forward'},
    'TensorboardWriter': {'__init__', '__getattr__'},
    'ConfigParser': old.METHODS['ConfigParser'] - {'get_logger'},
}
# Where the template's version of a file goes when the project's stays in its place.
ASIDE = 'armature/template'
OLD_STYLE = 'tools/project_files/old_style.py'
SAVED_BY_US = {'lr_scheduler', 'scheduler', 'scaler', 'not_improved_count'}
PLAIN_BASES = {'object', 'DataLoader', 'nn.Module', 'torch.nn.Module', 'ABC', 'abc.ABC'}
# Methods that the template calls and a class of the project's own may lack.
NEEDED = {
    'ConfigParser': {
        'get': 'def get(self, name, default=None):\n    return self.config.get(name, default)\n',
        '__contains__': 'def __contains__(self, name):\n    return name in self.config\n',
        'config': '@property\ndef config(self):\n    return self._config\n',
        '__reduce__': 'def __reduce__(self):  # a checkpoint holds it as plain data\n'
        '    import json\n'
        '    from collections import OrderedDict\n'
        '    plain = json.loads(json.dumps(self.config, default=lambda value: None))\n'
        '    return OrderedDict, (), None, None, iter(plain.items())\n',
    },
    'TensorboardWriter': {
        'close': 'def close(self):\n    if self.writer:\n        self.writer.close()\n',
    },
}


@dataclass
class Adoption:
    """What adopting a project would do."""

    before: dict[str, bytes]  # the project's Python files
    changes: dict[str, bytes] = field(default_factory=dict)
    generation: str = ''
    # Its own files, as they will be.
    sources: dict[str, str] = field(default_factory=dict)
    # Lines of the report.
    replaced: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    near: dict[str, list[str]] = field(default_factory=dict)  # taken for copies, and not quite
    look_at: list[str] = field(default_factory=list)


@dataclass
class Verdict:
    """What is whose in one file of the project."""

    copies: list[old.Part] = field(default_factory=list)  # the old template's
    extended: list[tuple[old.Part, list[old.Part]]] = field(
        default_factory=list
    )  # (class, what stays)
    kept: list[old.Part] = field(default_factory=list)  # classes that are more than extended
    own: list[old.Part] = field(default_factory=list)


class Places:
    """Where the template's own files go.

    To their place, or aside where a file of the project's stays.
    """

    def __init__(self, occupied: set[str]):
        self.occupied = occupied
        self.moved = {}  # {path in the template: path in the project}

    def module(self, path: str) -> str:
        """The module to import from what the template has in `path`."""
        if path == OLD_STYLE:
            self.moved[path] = f'{ASIDE}/old_style.py'
        elif path in self.occupied:
            self.moved[path] = f'{ASIDE}/{path}'
        return dotted(self.moved.get(path, path))


def take_over(folder: Path) -> Adoption:
    """Work out the adoption of the project in `folder` without writing anything."""
    adoption = Adoption({path: (folder / path).read_bytes() for path in python_files(folder)})
    sources = {}
    trees = parse_all(folder, sources, adoption)
    adoption.generation = generation_of(folder, trees)
    ours = {path: content.decode() for path, content in files_below(TEMPLATE, KEPT).items()}
    left_alone = names_taken(folder, ours, adoption)
    ours = {path: text for path, text in ours.items() if not is_below(path, left_alone)}

    # Whose is what?
    verdicts = {
        path: judge(path, tree, ours, adoption)
        for path, tree in trees.items()
        if is_room(path) or any(old.find_class(tree, name) for name in REWRITTEN)
    }

    # Where a file holds only copies, the template's own comes into its place; else it goes aside.
    asked = Asked(trees)
    replaced = {
        path
        for path, verdict in verdicts.items()
        if is_whole_copy(path, verdict, ours, adoption.generation)
        and asked.of(path) <= old.bound_names(old.parse(ours[path]))
    }
    replaced |= {
        path
        for path in trees
        if is_plain_init(path, trees, ours, replaced)
        and asked.of(path) <= old.bound_names(old.parse(ours[path]))
    }
    occupied = {
        path
        for path in ours
        if path in trees
        and path not in replaced
        or shadowing(path, trees)
        or not path.endswith('.py')
        and (folder / path).is_file()
    }

    # What stays is written anew.
    places = Places(occupied)
    texts = {path: Source(sources[path]) for path in trees if path not in replaced}
    for path, verdict in verdicts.items():
        if path in texts:
            write(path, texts[path], verdict, places, adoption)
    provide(texts, ours, places)

    adoption.replaced = [f'`{path}`' for path in sorted(replaced)]
    adoption.sources = {path: source.text() for path, source in texts.items()}
    adoption.changes = {
        path: encoded_as(adoption.before[path], text)
        for path, text in adoption.sources.items()
        if text != sources[path]
    }
    left_alone += sorted(occupied - places.moved.keys())
    adoption.changes |= template_files(places.moved, left_alone)
    adoption.changes |= stamp(places.moved, left_alone)
    for path, content in adoption.changes.items():
        if path.endswith('.py'):
            old.parse(decoded(content))  # what is put together here must at least be Python
    return adoption


# Reading the project


def python_files(folder: Path) -> list[str]:
    found, skipped = [], ('saved', 'venv', 'env', 'node_modules')
    for place, folders, names in os.walk(folder):
        inside = Path(place).relative_to(folder)
        folders[:] = [
            name
            for name in folders
            if name[0] != '.' and name not in skipped and not is_environment(Path(place, name))
        ]
        found += [
            inside / name
            for name in names
            if name.endswith('.py') and name[0] != '.' and Path(place, name).is_file()
        ]
    return sorted(path.as_posix() for path in found)


def is_environment(folder: Path) -> bool:
    """Whether a folder is an installed Python, by venv, virtualenv or conda."""
    return (folder / 'pyvenv.cfg').is_file() or (folder / 'conda-meta').is_dir()


def read(path: Path) -> str:
    """A file's text, to look into and not to write back."""
    return path.read_bytes().decode('utf-8-sig', errors='replace').replace('\r\n', '\n')


def parse_all(folder: Path, sources: dict[str, str], adoption: Adoption) -> dict[str, ast.Module]:
    trees = {}
    for path, content in adoption.before.items():
        try:
            sources[path] = decoded(content)
            trees[path] = old.parse(sources[path])
        except (SyntaxError, ValueError) as error:
            problem = (
                'is not Python of today (Python 2? another encoding than it says?): line '
                f'{getattr(error, "lineno", None) or 1}: {error}'
            )
            if is_room(path):
                raise UserError(
                    f'{folder / path} {problem}. Mend it first; nothing was changed'
                ) from None
            adoption.look_at.append(f'`{path}`: it {problem}')
    return trees


def is_room(path: str) -> bool:
    return is_below(path, (*ROOMS, *(f'{room}.py' for room in ROOMS), 'parse_config.py'))


def generation_of(folder: Path, trees: dict[str, ast.Module]) -> str:
    """Which of the old template's generations the project speaks, by its copies' arguments."""

    def arguments(name):
        found = [owner for tree in trees.values() if (owner := old.find_class(tree, name))]
        return old.arguments(found[0]) if found else None

    if not any(
        path.startswith('base/') and old.find_class(tree, 'BaseTrainer')
        for path, tree in trees.items()
    ):
        inner = sorted(path.parent.parent.name for path in folder.glob('*/base/*trainer*.py'))
        raise UserError(
            f'{folder} is no project built on the old template, as far as one can see: there is no '
            'class BaseTrainer in base/. '
            + (
                f'Is it {folder / inner[0]}?'
                if inner
                else 'Start a new project and move your code there: python new_project.py NAME'
            )
        )
    trainer, config = arguments('BaseTrainer'), arguments('ConfigParser') or []
    if 'resume' in trainer:
        return '2018, with optimizer' if 'optimizer' in trainer else '2018, without optimizer'
    if 'args' in config:
        return '2019, first half'
    return '2020' if 'modification' in config else '2019, second half'


def names_taken(folder: Path, ours: dict[str, str], adoption: Adoption) -> list[str]:
    """Folders of the template's that the project has one of its own for."""
    if (folder / 'armature').exists() or (folder / 'armature.py').exists():
        raise UserError(
            f'{folder} has something called armature, as the template has: rename it first, unless '
            'it is the template: then --update says how to go on'
        )
    if not (folder / 'tools').exists() and not (folder / 'tools.py').exists():
        return []
    adoption.kept.append(
        "`tools`: the template's commands of that name run from its own folder only"
    )
    return ['tools']


class Asked:
    """Which names of a module the project's other files ask for."""

    def __init__(self, trees: dict[str, ast.Module]):
        self.trees = trees
        self.imports = [
            (path, node)
            for path, tree in trees.items()
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
        ]

    def of(self, path: str, seen: tuple[str, ...] = ()) -> set[str]:
        names = set()
        for other, node in self.imports:
            for alias in node.names if other != path else ():
                module = alias.name if isinstance(node, ast.Import) else origin(node, other)
                if isinstance(node, ast.ImportFrom) and module == dotted(path):
                    if alias.name != '*':
                        names.add(alias.name)
                    elif other.endswith('__init__.py') and other not in seen:  # it only passes on
                        names |= self.of(other, (*seen, path))
                    else:
                        names |= {
                            name for name in old.bound_names(self.trees[path]) if name[0] != '_'
                        }
                elif dotted(path) in (module, f'{module}.{alias.name}'):
                    prefix = alias.asname or alias.name
                    names |= {
                        each.attr
                        for each in ast.walk(self.trees[other])
                        if isinstance(each, ast.Attribute) and old.called(each.value) == prefix
                    }
        return names & self.bound(path)

    def bound(self, path: str, seen: tuple[str, ...] = ()) -> set[str]:
        """The names that a module has, those included that it takes from others with a star."""
        names = set(old.bound_names(self.trees[path]))
        for node in self.trees[path].body:
            if isinstance(node, ast.ImportFrom) and node.names[0].name == '*':
                file = origin(node, path).replace('.', '/')
                for other in {f'{file}.py', f'{file}/__init__.py'} & self.trees.keys() - {*seen}:
                    names |= {name for name in self.bound(other, (*seen, path)) if name[0] != '_'}
        return names


def dotted(path: str) -> str:
    return path.removesuffix('.py').removesuffix('/__init__').replace('/', '.')


def origin(node: ast.ImportFrom, path: str) -> str:
    """The module that `from ... import` in the file `path` names, without dots in front."""
    package = path.split('/')[:-1]
    start = package[: len(package) - node.level + 1] if node.level else []
    return '.'.join([*start, *([node.module] if node.module else [])])


# Judging


def judge(path: str, tree: ast.Module, ours: dict[str, str], adoption: Adoption) -> Verdict:
    verdict = Verdict()
    for part in old.parts(tree):
        is_class = isinstance(part.node, ast.ClassDef)
        if is_class and old.template_name(part.name) in REWRITTEN:
            judge_class(
                path, part._replace(name=old.template_name(part.name)), ours, verdict, adoption
            )
        elif (
            part.name == 'MetricTracker'
            and is_class
            or part.name == 'Logger'
            and is_class
            and adoption.generation.startswith('2018')
        ):
            (verdict.copies if old.is_same_class(part.node) else verdict.own).append(part)
        elif part.is_copy and not is_class and (part.name in HOMES or part.name.startswith('_')):
            verdict.copies.append(part)
            note_near(path, part, '', adoption)
        else:
            verdict.own.append(part)
    return verdict


def judge_class(
    path: str, part: old.Part, ours: dict[str, str], verdict: Verdict, adoption: Adoption
) -> None:
    """Whether a class is a copy, an extended copy, or so much changed that it is kept whole."""
    name, home = part.name, old.parse(ours[HOMES[part.name]])
    new_members = old.members(old.find_class(home, name))
    stays, reasons, remarks = [], [], []
    for member in old.parts(part.node):
        where = f'`{path}` line {member.node.lineno}: `{name}.{member.name}`'
        gone = gone_attributes(member.node, name, ours[HOMES[name]])
        if member.is_copy:
            if member.name[0] != '_' and member.name not in ours[HOMES[name]]:
                stays.append(member)
                if gone and name not in wrappers(adoption.generation):
                    reasons.append(f'line {member.node.lineno} ({name}.{member.name}: {gone[0]})')
        elif not member.is_known and member.name in new_members:
            remarks.append(f'{where}: the template has one too, which replaces it')
        elif not member.is_known:
            stays.append(member)
            if gone:
                remarks.append(f'{where} uses {", ".join(gone)}, which the template no longer has')
        elif member.name in REWRITTEN[name] or gone:
            reasons += [
                f'line {line} ({name}.{member.name}: {word})' for word, line in member.words.items()
            ]
        elif (
            member.name in ('_save_checkpoint', '_resume_checkpoint')
            and member.words.keys() <= SAVED_BY_US
        ):
            remarks.append(
                f"{where}: the template's replaces it; it saves {', '.join(member.words)} too"
            )
        else:
            stays.append(member)
    if reasons:
        more = ' ...' if len(reasons) > 5 else ''
        adoption.kept.append(
            f'`{path}`: `{part.node.name}`, in which you had changed what the template has written '
            f'anew: {", ".join(reasons[:5])}{more}'
        )
        verdict.kept.append(part)
        return
    adoption.look_at += remarks
    for member in old.parts(part.node):
        if member.is_copy and member not in stays:
            note_near(path, member, f'{name}.', adoption)
    if stays:
        verdict.extended.append((part, stays))
        adoption.shared.append(
            f"`{path}`: `{part.node.name}` is the template's, with your "
            + ', '.join(member.name for member in stays)
        )
    else:
        verdict.copies.append(part)


def note_near(path: str, part: old.Part, owner: str, adoption: Adoption) -> None:
    if not part.is_same and not isinstance(part.node, ast.Assign):
        place = f'{owner}{part.name} line {part.node.lineno}'
        adoption.near.setdefault(path, []).append(place)


def gone_attributes(node: ast.AST, class_name: str, new_source: str) -> list[str]:
    """The old template's attributes of self that a method uses and the new class no longer has."""
    used = {
        each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute) and old.called(each) == f'self.{each.attr}'
    }
    of_old = {name for name in used & old.WORDS[class_name] if not name.startswith('add_')}
    return sorted(name for name in of_old if not re.search(rf'\b{name}\b', new_source))


def is_whole_copy(path: str, verdict: Verdict, ours: dict[str, str], generation: str) -> bool:
    """Whether a file holds nothing but copies of what the template has in that very file."""
    names = {part.name for part in verdict.copies if part.name[0] != '_'}
    return (
        path in ours
        and bool(names)
        and not (verdict.own or verdict.extended or verdict.kept)
        and not any(name in wrappers(generation) for name in names)
        and all(HOMES.get(name) == path for name in names)
    )


def is_plain_init(path: str, trees: dict, ours: dict[str, str], replaced: set[str]) -> bool:
    """Whether a package's __init__ only passes on what files that are replaced have."""
    if path not in ours or not path.endswith('/__init__.py'):
        return False
    for node in trees[path].body:
        if old.is_docstring(node):
            continue
        if not isinstance(node, ast.ImportFrom):
            return False
        file = origin(node, path).replace('.', '/') + '.py'
        if file not in ours or file in trees and file not in replaced:
            return False
    return True


def shadowing(path: str, trees: dict[str, ast.Module]) -> bool:
    """Whether the project has a module where the template has a package of that name."""
    package = path.partition('/')[0]
    return '/' in path and path.endswith('.py') and f'{package}.py' in trees


# Writing


def wrappers(generation: str) -> dict[str, str]:
    """What of old_style.py makes of a class what the projects of 2018 expect."""
    if not generation.startswith('2018'):
        return {}
    trainer = 'with_own_optimizer' if 'without' in generation else 'with_resume'
    return {'BaseTrainer': trainer, 'BaseModel': 'with_summary'}


def write(path: str, source: Source, verdict: Verdict, places: Places, adoption: Adoption) -> None:
    """The project's file with imports of the template's in place of copies."""
    imports = {}  # {module: names}
    wrapper_of = wrappers(adoption.generation)
    stays = [part.node for part in [*verdict.own, *verdict.kept]]
    stays += [member.node for _, members in verdict.extended for member in members]
    helpers = [part for part in verdict.copies if part.name[0] == '_']  # of what is replaced
    while more := [each for each in helpers if each.name in used_in(stays)]:
        stays += [each.node for each in more]
        helpers = [each for each in helpers if each not in more]

    def imported(name: str, under: str) -> str:
        home = OLD_STYLE if name == 'Logger' or name in wrapper_of.values() else HOMES[name]
        names = imports.setdefault(places.module(home), [])
        names.append(name if name == under else f'{name} as {under}')
        return under

    def template_class(name: str) -> str:
        inner = imported(name, f'Template{name}')
        if name not in wrapper_of:
            return inner
        return f'{imported(wrapper_of[name], wrapper_of[name])}({inner})'

    for part in verdict.copies:
        if part.name[0] == '_':
            if part in helpers:
                source.remove(part.node)
        elif part.name in wrapper_of:
            source.replace(part.node, f'{part.name} = {template_class(part.name)}  # as in 2018')
        else:
            source.remove(part.node)
            imported(part.name, getattr(part.node, 'name', part.name))
    for part, members in verdict.extended:
        inherit(source, part.node, template_class(part.name))
        for member in old.parts(part.node):
            if member.node not in [each.node for each in members]:
                source.remove(member.node)
    for part in verdict.kept:
        complete(path, source, part, adoption)
    for part in verdict.own:
        if part.name == 'MetricTracker':
            mended = mend_tables(source, part.node)
            adoption.kept.append(
                f"`{path}`: `MetricTracker`, which is not quite the old template's"
                + ("; its writes through pandas' views are mended" if mended else '')
            )
    if imports:
        source.import_first(
            [
                f'from {module} import {", ".join(sorted(names))}'
                for module, names in imports.items()
            ]
        )
        names = sorted({part.name for part in verdict.copies if part.name[0] != '_'})
        if names:
            adoption.shared.append(f'`{path}`: from the template now: {", ".join(names)}')


def used_in(nodes: list[ast.AST]) -> set[str]:
    return {word for node in nodes for word, _, _ in old.words(node)}


def inherit(source: Source, node: ast.ClassDef, base: str) -> None:
    """Make a class a subclass of `base`, in place of what the old template derived it from."""
    bases = [source.of(each) for each in node.bases if source.of(each) not in PLAIN_BASES]
    text = ', '.join([base, *bases])
    given = [*node.bases, *node.keywords]
    if given:
        source.replace(given[0], text, up_to=given[-1])
    else:
        header = source.header(node)
        source.replace_in(node, header, f'class {node.name}({text}):')


def complete(path: str, source: Source, part: old.Part, adoption: Adoption) -> None:
    """Give a class that is kept what the template calls and it lacks."""
    missing = {
        name: text
        for name, text in NEEDED.get(part.name, {}).items()
        if name not in old.members(part.node)
    }
    for text in missing.values():
        source.add_method(part.node, text)
    if missing:
        adoption.kept.append(
            f'`{path}`: `{part.node.name}` got {", ".join(missing)}, which the template calls'
        )
    if part.name == 'TensorboardWriter':
        init = next(
            (each for each in part.node.body if getattr(each, 'name', '') == '__init__'), None
        )
        if init is not None:
            source.add_argument(init, 'purge_step=None')
            adoption.look_at.append(
                f'`{path}`: its __init__ got the argument purge_step, which is given when a run is '
                'resumed: hand it to SummaryWriter'
            )
    elif part.name == 'ConfigParser':
        adoption.look_at.append(
            f'`{path}`: your own ConfigParser is in use: configs are not checked before a run, and '
            'a run id that exists already overwrites'
        )
    elif part.name == 'BaseTrainer':
        adoption.look_at.append(
            f'`{path}`: your own BaseTrainer is in use: resuming, stopping and saving are as they '
            "were, with the old template's faults. Move your changes into `trainer/`, and take the "
            "template's"
        )


def provide(texts: dict[str, Source], ours: dict[str, str], places: Places) -> None:
    """See to it that what the template's own files import is there in the project's files."""
    for path, text in ours.items():
        if not path.endswith('.py'):
            continue
        for node in ast.walk(old.parse(text)):
            if not isinstance(node, ast.ImportFrom) or not is_room(
                f'{(node.module or "").replace(".", "/")}.py'
            ):
                continue
            file = node.module.replace('.', '/')
            target = next(
                (each for each in (f'{file}.py', f'{file}/__init__.py') if each in texts), None
            )
            for alias in node.names if target else ():
                if (
                    alias.name not in old.bound_names(old.parse(texts[target].text()))
                    and f'{file}/{alias.name}.py' not in ours | texts
                ):
                    home = places.module(home_of(alias.name, f'{file}.py', ours))
                    texts[target].append(f'from {home} import {alias.name}  # noqa: E402, F401\n')


def home_of(name: str, first: str, ours: dict[str, str]) -> str:
    """The file of the template's that defines `name`; `first` when it is that one."""
    files = [path for path in ours if is_room(path) and path.endswith('.py')]
    for path in sorted(files, key=lambda path: path != first):
        if name in old.bound_names(old.parse(ours[path]), with_imports=False):
            return path
    return first
