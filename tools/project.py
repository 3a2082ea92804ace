"""What a project made from this template consists of, and the making of one.

A project carries `.template.json` (which template it has, and a hash of each file that the template
keeps up to date) and `.template.tar.xz` (those files as they came: the common ancestor when both
sides have changed, so that no network is needed).
"""

import hashlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from armature.config.read import read_config
from armature.errors import UserError
from tools.new_folder import unfinished
from tools.project_git import commit, start_repository

TEMPLATE = Path(__file__).resolve().parent.parent
VERSION = '2.0.0'
KEPT = (
    'armature',
    'base',
    'logger',
    'utils',
    'tools',
    'parse_config.py',
)  # by the template, up to date
OWNED = (
    'model',
    'data_loader',
    'trainer',
    'configs',
    'config.json',
    'train.py',
    'test.py',
    'predict.py',
    'pyproject.toml',
    'requirements.txt',
    'requirements-dev.txt',
    'requirements-export.txt',
    'requirements-serve.txt',
    'requirements-sweep.txt',
    'requirements-timm.txt',
    'requirements-trackers.txt',
    '.gitignore',
)  # by the user
NOTHING: Mapping[str, str] = MappingProxyType({})
TEMPLATE_ONLY = re.compile(
    r'tools/project.*|(.*/)?(__pycache__|\.[^/]+)/.*|(.*/)?\.(?!gitignore$)[^/]*|.*\.pyc'
)
MANIFEST, PRISTINE = '.template.json', '.template.tar.xz'
EVERY, BARE = (
    'tools/project_files/every',
    'tools/project_files/bare',
)  # what stands at another place, or not at all, in the template

README = """# {name}

```
pip install -r requirements-dev.txt
python train.py -c config.json
python -m pytest
```

`python train.py -r saved/models/NAME/RUN` goes on with a run;
`python test.py -r saved/models/NAME/RUN/best` measures it, and
`python predict.py -r saved/models/NAME/RUN FILES -o predictions.csv` uses it.

Yours: {owned}.
Kept up to date by the template, `python TEMPLATE/new_project.py --update .`: {kept}.
Change those too when you need to: an update merges.
"""


def create(folder: Path, example: str | None = None, bare: bool = False) -> Path:
    """Make a new project in `folder`, which must not exist, or be empty but for a repository.

    It appears whole or not at all.
    """
    folder = Path(os.path.realpath(folder))
    is_there = os.path.isdir(folder)
    there = os.listdir(folder) if is_there else [folder.name] * os.path.lexists(folder)
    if found := sorted({*there} - {'.git'}):  # what was cloned may be empty
        raise UserError(
            f'{folder} exists and is not an empty folder, {found[0]} is there: choose another '
            'name, or move what is there away'
        )
    files = files_below(TEMPLATE, KEPT + OWNED) | files_below(TEMPLATE / EVERY, ('tests',))
    if bare:
        files = {
            path: content for path, content in files.items() if not path.startswith('configs/')
        }
        files |= files_below(TEMPLATE / BARE, ('model', 'data_loader', 'config.json'))
    if example is not None:
        files |= example_files(example)
    if (TEMPLATE / 'LICENSE').is_file():
        files['LICENSE.template'] = (TEMPLATE / 'LICENSE').read_bytes()
    kept = ', '.join(f'`{name}`' for name in KEPT)
    owned = ', '.join(
        sorted({f'`{path.partition("/")[0]}`' for path in files} - {f'`{name}`' for name in KEPT})
    )
    readme = README.format(name=folder.name, kept=kept, owned=owned)
    files['README.md'] = readme.encode(errors='surrogateescape')  # the bytes of the folder's name
    files |= stamp(
        yours=[
            path
            for path, content in files_below(TEMPLATE, OWNED).items()
            if files.get(path) == content
        ]
    )
    try:
        # An empty folder that is there stays the same one: it may be mounted, somebody may stand in
        # it, its owner may write nowhere else.
        with unfinished(folder / folder.name if is_there else folder) as made:
            write_files(made, files)
            (made / 'saved').mkdir()
            if is_there:
                for path in made.iterdir():
                    path.rename(folder / path.name)
            else:
                made.rename(folder)
    except OSError as error:
        raise UserError(f'{folder} cannot be made: {error.strerror or error}') from error
    commit_first(folder, files)
    return folder


def example_files(name: str) -> dict[str, bytes]:
    """The files of examples/`name`, its config.json also as the project's default experiment."""
    examples = TEMPLATE / 'examples'
    names = sorted(path.parent.name for path in examples.glob('*/config.json'))
    if name not in names:
        raise UserError(
            f'--example {name}: expected one of '
            f'{", ".join(names) or "(this template has no examples)"}'
        )
    files = files_below(TEMPLATE, (f'examples/{name}', 'examples/__init__.py'))
    config = read_config(examples / name / 'config.json', name).values  # with what its "base" says
    files['config.json'] = (json.dumps(config, indent=4) + '\n').encode()
    return files


def files_below(
    root: Path, names: tuple[str, ...], left_out: re.Pattern = TEMPLATE_ONLY
) -> dict[str, bytes]:
    """{path relative to root: content} of the files named and of all files in the folders named."""
    found = [
        path
        for name in names
        for path in ([root / name] if (root / name).is_file() else sorted((root / name).rglob('*')))
    ]
    paths = {path.relative_to(root).as_posix(): path for path in found if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if not left_out.fullmatch(name)}


def template_files(
    moved: Mapping[str, str] = NOTHING, left_alone: Sequence[str] = ()
) -> dict[str, bytes]:
    """The files that the template keeps up to date in a project.

    moved: {path in the template: path in this project} of those that are elsewhere there, or that
    only this project has; left_alone: paths that the project has files of its own for.
    """
    files = files_below(TEMPLATE, KEPT)
    files |= {path: (TEMPLATE / path).read_bytes() for path in moved if (TEMPLATE / path).is_file()}
    return {
        moved.get(path, path): files[path]
        for path in sorted(files)
        if path in moved or not is_below(path, left_alone)
    }


def stamp(
    moved: Mapping[str, str] = NOTHING, left_alone: Sequence[str] = (), yours: Sequence[str] = ()
) -> dict[str, bytes]:
    """The two files that let a later update merge: what the template's files are now.

    moved, left_alone: as for template_files; yours: files that are the user's since, of which an
    update says when they have changed in the template.
    """
    kept = template_files(moved, left_alone)
    manifest = {
        'template': 'armature',
        'version': VERSION,
        'moved': dict(moved),
        'left_alone': list(left_alone),
        'files': {path: digest(content) for path, content in kept.items()},
        'yours': {path: digest((TEMPLATE / path).read_bytes()) for path in yours},
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:xz') as archive:
        for path, content in kept.items():
            member = tarfile.TarInfo(path)  # no date, no owner: the same files give the same bytes
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return {
        MANIFEST: (json.dumps(manifest, indent=1) + '\n').encode(),
        PRISTINE: buffer.getvalue(),
    }


def is_below(path: str, places: Sequence[str]) -> bool:
    return any(path == place or path.startswith(f'{place}/') for place in places)


def digest(content: bytes) -> str:
    """sha256, the same whatever the line ends: git may rewrite those."""
    return hashlib.sha256(content.replace(b'\r\n', b'\n')).hexdigest()


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():  # it may lead out of `folder`
            path.unlink()
        path.write_bytes(content)


def commit_first(folder: Path, files: Iterable[str]) -> None:
    """A repository of its own with `files` in it.

    Without git there is none, and the project is whole all the same.
    """
    if shutil.which('git') is None:
        print(
            'git is not installed: the project has no repository yet; updates will need one',
            file=sys.stderr,
        )
        return
    try:
        start_repository(folder)
        commit(folder, f'Start from the template, version {VERSION}', files)
    except UserError as error:
        print(
            f'{error}\nThe project is complete: commit it yourself before the first update.',
            file=sys.stderr,
        )
