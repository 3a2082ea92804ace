"""Puts this template under a project that was built on the old one: what is the old template's goes, what is the project's stays.

All is worked out first, then written on a branch of its own (or, without git, into a copy), with ADOPTED.md saying what was done.
"""
import ast
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from armature.errors import UserError
from tools import project_old as old
from tools.project import KEPT, MANIFEST, TEMPLATE, VERSION, files_below, stamp
from tools.project_git import commit, git, repository_of, require_clean, require_known
from tools.project_text import (
    add_argument,
    add_imports,
    graft,
    import_of,
    member_names,
    text_of,
    top_names,
)
from tools.project_update import STAGING, apply, recover

BRANCH, REPORT, OLD_STYLE = 'adopt-template', 'ADOPTED.md', 'utils/old_style.py'
# Where the old template keeps a class, and where this one does. A class with `rewritten` methods that the project has changed is
# kept with its whole file; other changed methods go into the new class.
CLASSES = {
    'base/base_trainer.py': {'BaseTrainer': ('base/base_trainer.py', {'__init__', 'train'})},
    'base/base_data_loader.py': {'BaseDataLoader': ('base/base_data_loader.py', {'__init__', '_split_sampler', 'split_validation'})},
    'base/base_model.py': {'BaseModel': ('base/base_model.py', {'__init__', 'forward'})},
    'logger/visualization.py': {'TensorboardWriter': ('logger/visualization.py', {'__init__', '__getattr__'})},
    'logger/logger.py': {},
    'parse_config.py': {'ConfigParser': ('parse_config.py', set(old.METHODS['ConfigParser'].split()) - {'get_logger'})},
    'utils/util.py': {'MetricTracker': ('armature/run/metrics.py', set())},
}
MOVED = {'utils.py': 'utils/util.py', 'logger.py': 'logger/logger.py', 'utils/parse_config.py': 'parse_config.py',
         'utils/visualization.py': 'logger/visualization.py', 'utils/logger.py': 'logger/logger.py'}
INITS = ('base/__init__.py', 'logger/__init__.py', 'utils/__init__.py')
WRITERS = ('WriterTensorboardX', 'WriterTensorboard')
SAVED_BY_US = {'lr_scheduler', 'scheduler', 'scaler', 'not_improved_count'}
TOUCHES_SUMS = 'it works on the table `_data`, of which MetricTracker now hands out copies'


@dataclass
class Adoption:
    """What adopting a project would do. The lists are lines of ADOPTED.md."""

    changes: dict[str, bytes | None] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    look_at: list[str] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)
    generation: str = ''

    @property
    def extra(self) -> list[str]:
        return [OLD_STYLE] if OLD_STYLE in self.changes else []


def adopt_project(folder: Path, dry_run: bool = False) -> str:
    """Adopt the project in `folder`; returns what to tell the user."""
    folder = folder.resolve()
    if not folder.is_dir():
        raise UserError(f'{folder} is no folder')
    if (folder / STAGING).is_dir() and recover(folder):
        return f'The adoption of {folder} that was interrupted is now finished: read {REPORT}, and commit.'
    if (folder / MANIFEST).is_file():
        raise UserError(f'{folder} has this template already: bring it up to date with --update')
    under_git = is_under_git(folder)
    if under_git and not dry_run:
        require_clean(folder)
    adoption = inspect(folder)
    if dry_run:
        return f'What --adopt would do to {folder}:\n\n{report(adoption, "BRANCH")}'
    if under_git:
        require_known(folder, adoption.changes)
        return on_branch(folder, adoption)
    return in_copy(folder, adoption)


def is_under_git(folder: Path) -> bool:
    """Whether a repository keeps this project: one further up that keeps none of its files does not."""
    return (shutil.which('git') is not None and repository_of(folder) is not None
            and bool(git(folder, 'ls-files', '--', '.').stdout))


def on_branch(folder: Path, adoption: Adoption) -> str:
    before = git(folder, 'rev-parse', '--abbrev-ref', 'HEAD').stdout.strip()
    if before == 'HEAD':
        before = git(folder, 'rev-parse', '--short', 'HEAD').stdout.strip()
    made = git(folder, 'checkout', '-q', '-b', BRANCH)
    if made.returncode:
        raise UserError(f'git cannot make the branch {BRANCH} in {folder}: {made.stderr.strip()} '
                        f'(git branch -D {BRANCH} forgets an earlier attempt)')
    adoption.changes[REPORT] = report(adoption, before).encode()
    try:
        apply(folder, adoption.changes)
    except UserError:
        git(folder, 'checkout', '-q', before)
        git(folder, 'branch', '-q', '-d', BRANCH)
        raise
    removed = [path for path, content in adoption.changes.items() if content is None]
    commit(folder, f'Adopt template {VERSION}', adoption.changes, removed)
    return (f'{folder} is adopted, on the branch {BRANCH}. '
            f'Read {REPORT}, then train:\n\n    cd {folder}\n    python train.py -c config.json\n\n'
            f'Back to what it was: git checkout {before}')


def in_copy(folder: Path, adoption: Adoption) -> str:
    """Without git the original stays as it is; folders without code (data) are linked into the copy, not copied."""
    adopted, unfinished = folder.with_name(f'{folder.name}-adopted'), folder.with_name(f'.{folder.name}-adopted.unfinished')
    if adopted.exists():
        raise UserError(f'{adopted} exists: remove it, or put {folder} under git to adopt it on a branch')
    adoption.changes[REPORT] = report(adoption, '').encode()
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for path in sorted(folder.iterdir()):
            if path.is_file():
                shutil.copy2(path, unfinished)
            elif any(path.rglob('*.py')) or any(path.rglob('*.json')):
                shutil.copytree(path, unfinished / path.name, symlinks=True)
            else:
                (unfinished / path.name).symlink_to(path)
        apply(unfinished, adoption.changes)
        unfinished.rename(adopted)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise UserError(f'{adopted} cannot be made: {error.strerror or error}') from error
    return (f'{folder} is under no git: it is unchanged, and {adopted} is adopted. Read {adopted / REPORT}, then train:\n\n'
            f'    cd {adopted}\n    python train.py -c config.json')


# What to do with which file

def inspect(folder: Path) -> Adoption:
    """Work out the whole adoption without writing anything."""
    sources = {path: read(folder / path) for path in python_files(folder)}
    unreadable, trees = {}, {}
    for path, source in sources.items():
        try:
            trees[path] = old.parse(source)
        except SyntaxError as error:
            unreadable[path] = f'line {error.lineno}: {error.msg}, so this is not Python of today (Python 2?)'
    for path in unreadable:
        if path in MOVED or path in CLASSES or path.partition('/')[0] in KEPT:
            raise UserError(f'{folder / path}, {unreadable[path]}: mend it first; nothing was changed')
    base_trainer = old.find_class(trees.get('base/base_trainer.py', ast.Module([], [])), 'BaseTrainer')
    if base_trainer is None:
        raise UserError(f'{folder} is no project built on the old template, as far as one can see: there is no class BaseTrainer in '
                        'base/base_trainer.py. Start a new project and move your code there: python new_project.py NAME')
    adoption = Adoption(generation=generation_of(trees))
    adoption.look_at += [f'`{path}` {problem}' for path, problem in unreadable.items()]
    new = {path: content.decode() for path, content in files_below(TEMPLATE, KEPT).items()
           if path.endswith('.py') or not (folder / path).exists()}
    if any(path.startswith('tools/') for path in sources) or 'tools.py' in sources:
        adoption.left_alone.append('tools')
        adoption.kept.append('`tools`: you have a folder of that name, so the template\'s commands are not in it; '
                             'they run from the template\'s own folder')
        new = {path: source for path, source in new.items() if not path.startswith('tools/')}
    if adoption.generation.startswith('2018'):
        new[OLD_STYLE] = read(TEMPLATE / OLD_STYLE)
    for place in dict.fromkeys([*CLASSES, *sorted(new)]):
        for path in [place, *(path for path, target in MOVED.items() if target == place and place not in sources)]:
            if path in sources and path not in INITS and place not in adoption.left_alone:
                take_over(path, place, sources[path], trees[path], new, adoption)
    for path in INITS:
        if path in sources and path.partition('/')[0] not in adoption.left_alone:
            take_over_init(path, sources[path], trees[path], new, adoption)
    speak_the_generation(trees, new, adoption)
    for path in MOVED:
        if '/' in path and path in adoption.changes and adoption.changes[path] is None:
            leave_a_pointer(path, trees[path], new, adoption)
    provide_imported_names(trees, sources, new, adoption)
    for path, source in new.items():
        if path not in adoption.left_alone:
            old.parse(source)  # what is put together here must at least be Python
            adoption.changes[path] = source.encode()
    adoption.changes |= stamp(adoption.extra, adoption.left_alone)
    remark_habits({path: sources[path] for path in trees}, adoption)
    return adoption


def python_files(folder: Path) -> list[str]:
    paths = [path.relative_to(folder) for path in folder.rglob('*.py') if path.is_file()]
    skipped = ('saved', 'venv', 'env')
    return sorted(path.as_posix() for path in paths if not any(part.startswith('.') or part in skipped for part in path.parts))


def read(path: Path) -> str:
    return path.read_bytes().decode('utf-8-sig', errors='replace').replace('\r\n', '\n')


def generation_of(trees: dict[str, ast.Module]) -> str:
    """Which of the old template's generations the project speaks, by the arguments of its own copies."""
    trainer = old.arguments(old.find_class(trees['base/base_trainer.py'], 'BaseTrainer'))
    config = next((found for path in ('parse_config.py', 'utils/parse_config.py') if path in trees
                   and (found := old.find_class(trees[path], 'ConfigParser'))), None)
    if 'resume' in trainer:
        return '2018, with optimizer' if 'optimizer' in trainer else '2018, without optimizer'
    if 'args' in old.arguments(config):
        return '2019, first half'
    return '2020' if 'modification' in old.arguments(config) else '2019, second half'


def take_over(path: str, place: str, source: str, tree: ast.Module, new: dict[str, str], adoption: Adoption) -> None:
    """Bring the project's additions from its file `path` into the new file `place`, or keep its file."""
    owners = {'WriterTensorboardX': 'TensorboardWriter', 'WriterTensorboard': 'TensorboardWriter'}
    classes = CLASSES.get(place, {})
    additions, kept_because, lines = [], {}, []
    for part in old.parts(tree):
        name = owners.get(part.name, part.name)
        if isinstance(part.node, ast.ClassDef) and name in classes:
            target, rewritten = classes[name]
            for member in old.parts(part.node, part.name):
                gone = gone_attributes(member.node, part.name, new[target])
                if member.changed and (member.name in rewritten or gone):
                    kept_because |= {line: f'{part.name}.{member.name}: {word}' for word, line in member.words.items()}
                elif member.changed or not member.known:
                    lines.append(carry(path, source, member, target, name, new, additions))
        elif part.name == 'MetricTracker' or (part.name == 'Logger' and adoption.generation.startswith('2018')):
            continue  # elsewhere in the template, or in old_style.py
        elif part.known and part.name.startswith('_') and part.name not in top_names(new[place]):
            continue  # a helper of what is replaced
        elif part.changed or not part.known:
            lines.append(carry(path, source, part, place, None, new, additions))
    if kept_because:
        keep(path, place, source, tree, kept_because, new, adoption)
        return
    clashes = [f'{target}: {name}' for target, owner, name, _ in additions
               if owner is None and name in top_names(new[target]) and name not in old.FUNCTIONS]
    if clashes:
        raise UserError(f'{path} defines names that the template uses there itself: {", ".join(clashes)}. Rename yours; '
                        'nothing was changed')
    for target, owner, name, text in additions:
        new[target] = graft(new[target], owner, name, text)
        new[target] = add_imports(new[target], text, tree, source)
    if path != place:
        adoption.changes[path] = None
    adoption.replaced.append(f'`{path}`' + (f' (now `{place}`)' if path != place else ''))
    adoption.carried += [line for line in lines if line]


def gone_attributes(node: ast.AST, class_name: str, new_source: str) -> list[str]:
    """The old template's attributes of self that a method uses and the new class no longer has."""
    used = {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute) and old.called(each) == f'self.{each.attr}'}
    of_old = {name for name in used & set(old.WORDS.get(class_name, '').split()) if not name.startswith('add_')}
    return sorted(name for name in of_old if not re.search(rf'\b{name}\b', new_source))


def leave_a_pointer(path: str, tree: ast.Module, new: dict[str, str], adoption: Adoption) -> None:
    """Where a module of the old template stood, one that imports its names from their place now."""
    names = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))} & top_names(new[MOVED[path]])
    module = MOVED[path][:-3].replace('/', '.')
    adoption.changes[path] = f'from {module} import {", ".join(sorted(names))}  # noqa: F401\n'.encode() if names else None
    adoption.left_alone.append(path)


def carry(path: str, source: str, part: old.Part, target: str, owner: str | None, new: dict[str, str], additions: list) -> str:
    """Note a definition for `target`; returns the line for the report, '' when it is not worth one."""
    where = f'`{path}` line {part.node.lineno}: `{f"{owner}." if owner else ""}{part.name}`'
    if owner and not part.known and part.name in member_names(new[target], owner):
        return f'{where}: the template has one too, which replaces it'
    if owner == 'MetricTracker' and part.changed and '_data' in ast.unparse(part.node):
        return f'{where}: the template\'s replaces it ({TOUCHES_SUMS}). Yours used: {", ".join(part.words)}'
    if part.name in ('_save_checkpoint', '_resume_checkpoint') and part.words.keys() <= SAVED_BY_US:
        return f'{where}: the template\'s replaces it, and saves and restores {", ".join(part.words)} too'
    additions.append((target, owner, part.name, text_of(source, part.node)))
    line = f'{where} is in `{target}` now'
    if gone := gone_attributes(part.node, owner or '', new[target]):
        line += f'; look at it: {", ".join(gone)} of the old template is gone'
    if owner == 'MetricTracker' and '_data' in ast.unparse(part.node):
        line += f'; look at it, {TOUCHES_SUMS}'
    if part.changed:
        line += f', in place of the template\'s, since you had changed it ({", ".join(part.words)})'
    return line


def keep(path: str, place: str, source: str, tree: ast.Module, because: dict[int, str], new: dict[str, str], adoption: Adoption) -> None:
    """Leave the project's file, which is more than a copy, in its place; the core must be able to use it."""
    reasons = ', '.join(f'line {line} ({word})' for line, word in sorted(because.items())[:6])
    adoption.kept.append(f'`{path}`: you had changed what the template has written anew: {reasons}'
                         + (' ...' if len(because) > 6 else ''))
    adoption.left_alone.append(place)
    new.pop(place, None)
    before = source
    class_name = next((name for name in (*CLASSES[place], *WRITERS) if old.find_class(tree, name)), '')
    missing = [name for name in NEEDED.get(place, {}) if name not in member_names(source, class_name)]
    if missing:
        for name in missing:
            source = graft(source, class_name, name, NEEDED[place][name])
        adoption.kept.append(f'`{path}` got the methods {", ".join(missing)}, which the core uses')
    if place == 'logger/visualization.py':
        source = add_argument(source, class_name, 'purge_step=None')
        adoption.kept.append(f'`{path}`: its __init__ got the argument purge_step, which the core gives when a run is resumed; '
                             'hand it to SummaryWriter')
    if source != before:
        adoption.changes[path] = source.encode()
    if place == 'parse_config.py':
        adoption.look_at.append('Your own `parse_config.py` is in use: configs are not checked before a run, and a run id that exists '
                                'already (two starts in a second) overwrites')
    elif place == 'base/base_trainer.py':
        adoption.look_at.append('Your own `base/base_trainer.py` is in use: resuming, stopping and saving are as they were, with the old '
                                'template\'s faults (README, "Coming from the old template?"). Compare it with the template\'s and move '
                                'your changes into `trainer/`')


# Methods that the core calls and a kept class may lack.
NEEDED = {
    'parse_config.py': {
        'get': 'def get(self, name, default=None):\n    return self.config.get(name, default)\n',
        '__contains__': 'def __contains__(self, name):\n    return name in self.config\n',
        'config': '@property\ndef config(self):\n    return self._config\n',
    },
    'logger/visualization.py': {
        'close': 'def close(self):\n    if self.writer:\n        self.writer.close()\n',
    },
}


def take_over_init(path: str, source: str, tree: ast.Module, new: dict[str, str], adoption: Adoption) -> None:
    """The project's own exports, after the template's."""
    package = path.partition('/')[0]
    mine = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and is_of_template(node, package):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        mine.append(text_of(source, node))
    if mine:
        new[path] = f'{new[path].rstrip()}\n\n# This project\'s own\n' + ''.join(with_noqa(text) for text in mine)
        adoption.carried.append(f'`{path}`: {len(mine)} line{"s" * (len(mine) > 1)} of yours follow the template\'s')
    adoption.replaced.append(f'`{path}`')
    for place, classes in CLASSES.items():  # a kept file may export more than the template's
        if place in adoption.left_alone and place.startswith(f'{package}/'):
            for name in classes:
                if name not in new[path]:
                    new[path] += f'from {place[:-3].replace("/", ".")} import {name}  # noqa: F401\n'


def with_noqa(text: str) -> str:
    return re.sub(r'(?m)^((?:from|import) [^#\n(]*?)[ \t]*$', r'\1  # noqa: F401, F403', text)


def is_of_template(node: ast.ImportFrom, package: str) -> bool:
    """Whether an import in a package's __init__ is the old template's."""
    module = (node.module or '').removeprefix(f'{package}.')
    return node.module == package or f'{package}/{module}.py' in CLASSES


def speak_the_generation(trees: dict[str, ast.Module], new: dict[str, str], adoption: Adoption) -> None:
    """What only an early generation needs, from utils/old_style.py."""
    writer = next((name for tree in trees.values() for node in ast.walk(tree) for name in WRITERS
                   if isinstance(node, (ast.ClassDef, ast.alias)) and node.name == name), None)
    if writer and 'logger/visualization.py' in new:
        new['logger/visualization.py'] += f'\n\n{writer} = TensorboardWriter  # this project\'s name for it\n'
        new['logger/__init__.py'] += f'from logger.visualization import {writer}  # noqa: E402, F401\n'
    if not adoption.generation.startswith('2018'):
        return
    if 'base/base_trainer.py' in new:
        wrapper = 'with_resume' if 'with' in adoption.generation and 'without' not in adoption.generation else 'with_own_optimizer'
        new['base/base_trainer.py'] += (f'\n\nfrom utils import old_style  # noqa: E402\n\n'
                                        f'BaseTrainer = old_style.{wrapper}(BaseTrainer)  # the arguments of 2018\n')
    if 'base/base_model.py' in new and 'summary' not in member_names(new['base/base_model.py'], 'BaseModel'):
        new['base/base_model.py'] = graft(new['base/base_model.py'], 'BaseModel', 'summary',
                                          'def summary(self) -> None:\n    print(self)\n')
    for path in ('logger/logger.py', 'logger/__init__.py'):
        if path in new:
            new[path] += '\nfrom utils.old_style import Logger  # noqa: E402, F401\n'


def provide_imported_names(trees: dict[str, ast.Module], sources: dict[str, str], new: dict[str, str], adoption: Adoption) -> None:
    """See to it that whatever the project imports from the replaced modules is still there; name what is not."""
    for path, tree in trees.items():
        if path in new or path in adoption.changes:
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or not node.module or node.level and path.count('/') != node.level:
                continue
            place = next((each for each in (f'{node.module.replace(".", "/")}.py', f'{node.module.replace(".", "/")}/__init__.py')
                          if each in new), None)
            if place is None:
                continue
            for alias in node.names:
                provide(alias.name, place, path, node.lineno, trees, sources, new, adoption)


def provide(name: str, place: str, path: str, line: int, trees: dict, sources: dict, new: dict[str, str], adoption: Adoption) -> None:
    package = place.partition('/')[0]
    if name == '*':
        if place in ('utils/util.py', 'utils/__init__.py'):
            star_exports(place, trees, sources, new)
        return
    if name in top_names(new[place]) or f'{package}/{name}.py' in new or f'{package}/{name}.py' in sources \
            or f'{package}/{name}/__init__.py' in sources:
        return
    for other in sorted(each for each in new if each.startswith(f'{package}/') and each != place):
        if name in top_names(new[other], imported=False):
            new[place] += f'from {other[:-3].replace("/", ".")} import {name}  # noqa: E402, F401\n'
            return
    for other, tree in trees.items():  # something that the old module had merely imported itself
        origin = MOVED.get(other, other)
        if origin in CLASSES and origin.partition('/')[0] == package and (text := import_of(name, tree, sources[other])):
            new[place] += with_noqa(text)
            return
    adoption.look_at.append(f'`{path}` line {line}: `{name}` is not in `{place}` any more')


def star_exports(place: str, trees: dict, sources: dict, new: dict[str, str]) -> None:
    """`from utils import *` used to bring everything, also what util.py had imported."""
    old_path = next((path for path in ('utils/util.py', 'utils.py') if path in trees), None)
    if old_path is None or 'everything, as before' in new[place]:
        return
    names = [alias.asname or alias.name for node in trees[old_path].body if isinstance(node, (ast.Import, ast.ImportFrom))
             for alias in node.names if alias.name != '*' and '.' not in alias.name]
    missing = [name for name in names if name not in top_names(new[place])]
    new[place] += ''.join(with_noqa(import_of(name, trees[old_path], sources[old_path])) for name in missing)
    own = [part.name for part in old.parts(trees[old_path]) if part.name in top_names(new['utils/util.py']) - top_names(new[place])]
    if own and place == 'utils/__init__.py':
        new[place] += f'from utils.util import {", ".join(own)}  # noqa: E402, F401\n'
    new[place] += "__all__ = [name for name in globals() if not name.startswith('_')]  # everything, as before\n"


def remark_habits(sources: dict[str, str], adoption: Adoption) -> None:
    for path, source in sources.items():
        if path not in adoption.changes or path in CLASSES and path in adoption.left_alone:
            adoption.look_at += [f'`{path}` line {line}: {remark}' for line, remark in old.habits(source)]


# The report

def report(adoption: Adoption, before: str) -> str:
    """ADOPTED.md"""
    way_back = 'Remove this copy; the original is unchanged.'
    if before:
        way_back = f'`git checkout {before}`; `git branch -D {BRANCH}` forgets this.'
    sections = {
        f'# Adopted: template {VERSION} under a project of the old template ({adoption.generation})': [],
        "## Replaced by the template's": adoption.replaced,
        '## Yours, carried over into the new files': adoption.carried,
        '## Yours, kept as it is': [*adoption.kept, 'Everything else: `train.py`, `model/`, `data_loader/`, `trainer/`, configs, ...'],
        '## Look at': adoption.look_at,
        '## Old checkpoints': [
            "`train.py -r` reads the old template's files without running what is in them. Your own `torch.load` refuses those that hold "
            'a pickled ConfigParser: convert them once with `python -m tools.convert_checkpoint OLD NEW`'],
        '## What adoption cannot do': ['See docs/adopt.md of the template'],
        '## Back': [way_back],
    }
    return '\n\n'.join('\n'.join([title, *([''] if lines else []), *(f'- {line}' for line in lines)])
                       for title, lines in sections.items() if lines or title.startswith('# ')) + '\n'
