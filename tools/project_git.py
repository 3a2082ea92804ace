"""The only place that runs git for new_project.py.

In the repository of the folder it is given, and in no other.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote

from armature.errors import UserError

# Of the user's settings these must not take part in what we do: hooks could refuse or change a
# commit, a signature could ask
# for a passphrase, and the others change what a command accepts or prints.
SETTINGS = (
    f'core.hooksPath={os.devnull}',
    'commit.gpgSign=false',
    'core.safecrlf=false',
    'core.sparseCheckout=false',
    'core.quotePath=false',
    'merge.conflictStyle=merge',
)
UNDER_WAY = {
    'MERGE_HEAD': 'merge',
    'CHERRY_PICK_HEAD': 'cherry-pick',
    'REVERT_HEAD': 'revert',
    'rebase-merge': 'rebase',
    'rebase-apply': 'rebase',
}  # what starting a branch in between would end, or take into it
IDENTITY = ('-c', 'user.name=new_project', '-c', 'user.email=new_project@localhost')


def environment() -> dict[str, str]:
    """The variables for what we start. git sets GIT_DIR, GIT_INDEX_FILE and others for what it
    starts itself (hooks, aliases, rebase --exec); they point at the repository that it was started
    in, which is not ours to touch."""
    return {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}


def git(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Run git in `folder`, with paths taken as they are; a UserError when git is not installed."""
    settings = [part for setting in SETTINGS for part in ('-c', setting)]
    try:
        return subprocess.run(
            ['git', '-C', str(folder), '--literal-pathspecs', *settings, *arguments],
            env=environment() | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding=sys.getfilesystemencoding(),  # it names files
            errors='surrogateescape',
        )
    except FileNotFoundError as error:
        raise UserError('git is needed for this and is not installed') from error


def repository_of(folder: Path) -> Path | None:
    """The top folder of the repository that the files in `folder` belong to; None when there is
    none.

    Raises UserError, with git's own words, when there is one and git refuses to use it (another
    owner, damaged).
    """
    found = git(folder, 'rev-parse', '--show-toplevel')
    if found.returncode:
        if any((each / '.git').exists() for each in (folder, *folder.parents)):
            raise UserError(f'git refuses to work in {folder}:\n{found.stderr.strip()}')
        return None
    top = Path(found.stdout.rstrip('\n')).resolve()
    if not folder.resolve().is_relative_to(top):
        raise UserError(
            f'the repository of {folder} keeps its files in {top} (core.worktree in its config); '
            'nothing was changed'
        )
    return top


def require_clean(folder: Path) -> None:
    """UserError unless git could bring back every file in `folder` that it knows, as it is now."""
    if repository_of(folder) is None:
        raise UserError(
            f'{folder} is in no git repository, so an update could not be undone. In it: '
            'git init && git add -A && git commit -m "Before the update"'
        )
    if git(folder, 'rev-parse', 'HEAD').returncode:
        raise UserError(
            f'{folder} has no commit yet, so an update could not be undone. In it: git add -A && '
            'git commit'
        )
    if unseen := [
        path for path, tag in tracked(folder) if tag == 'S' and not (folder / path).exists()
    ]:
        raise UserError(
            f'{folder} is not whole: git leaves out {", ".join(unseen[:3])}'
            f'{", ..." * (len(unseen) > 3)} (a sparse checkout). In it: git sparse-checkout disable'
        )
    git_folder = Path(git(folder, 'rev-parse', '--absolute-git-dir').stdout.rstrip('\n'))
    if under_way := [name for name in UNDER_WAY if (git_folder / name).exists()]:
        raise UserError(
            f'{folder}: a {UNDER_WAY[under_way[0]]} is under way in its repository: end it first, '
            'git status says how'
        )
    changed = git(
        folder, 'status', '--porcelain', '--untracked-files=all', '--', '.'
    ).stdout.splitlines()
    if changed:
        listed = '\n'.join(changed[:10]) + '\n...' * (len(changed) > 10)
        raise UserError(
            f'{folder} has changes that are not committed; commit them first (or let .gitignore '
            f'name what git should not keep), so that git can undo the update:\n{listed}'
        )


def require_known(folder: Path, paths: Iterable[str]) -> None:
    """UserError unless git could bring back each of these files that exists.

    One that it ignores would be lost, and so would edits that it was told not to look at.
    """
    existing = {path for path in paths if (folder / path).is_file()}
    known = dict(tracked(folder))
    if unknown := sorted(existing - known.keys()):
        raise UserError(
            'git does not keep these files (an ignore file names them, or they are of a '
            'submodule), so their change could not be undone: '
            f'{", ".join(unknown[:10])}. In {folder}: git add -f and commit them, or move them away'
        )
    if unseen := sorted(path for path in existing if known[path] != 'H'):
        raise UserError(
            f'git was told not to see changes of {", ".join(unseen)}, so they could not be undone. '
            f'In {folder}: git update-index --no-assume-unchanged --no-skip-worktree '
            f'{" ".join(map(quote, unseen))}; then commit what has changed'
        )


def tracked(folder: Path) -> list[tuple[str, str]]:
    """[(path, how git sees it)]: 'H' as usual, 'S' or a small letter when it does not look."""
    lines = git(folder, 'ls-files', '-v', '-z', '--', '.').stdout.split('\0')
    return [(line[2:], line[0]) for line in lines if line]


def start_repository(folder: Path) -> None:
    """An empty repository in `folder`, without what the user's template for repositories holds."""
    made = git(folder, 'init', '-q', '--template=')
    if made.returncode or repository_of(folder) != folder.resolve():
        raise UserError(f'git cannot make a repository in {folder}: {made.stderr.strip()}')


def commit(folder: Path, message: str, paths: Iterable[str], removed: Iterable[str] = ()) -> None:
    """Commit the files `paths` of `folder` as they are now, ignored or not, and nothing else.

    removed: those of `paths` that are meant to be gone; any other that is missing is an error,
    never a commit.
    """
    paths, removed = list(paths), set(removed)
    if lost := [path for path in paths if path not in removed and not (folder / path).is_file()]:
        raise UserError(f'{", ".join(lost)} vanished from {folder}; nothing was committed')
    paths = [
        path for path in paths if path not in removed or git(folder, 'ls-files', '--', path).stdout
    ]
    must(folder, 'add', '-f', '--', *paths)
    must(folder, *identity(folder), 'commit', '-q', '-m', message, '--', *paths)


def identity(folder: Path) -> Sequence[str]:
    """A name of our own, only where git knows none of the user's."""
    known = [git(folder, 'config', f'user.{part}').stdout.strip() for part in ('name', 'email')]
    return () if all(known) else IDENTITY


def must(folder: Path, *arguments: str, **variables: str) -> str:
    """What git prints; a UserError with its own words when it fails."""
    done = git(folder, *arguments, **variables)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(f'git could not commit in {folder}:\n' + '\n'.join(said[:5]))
    return done.stdout.strip()


def switch_to_new(
    folder: Path, branch: str, steps: Sequence[tuple[str, Mapping[str, bytes]]]
) -> None:
    """Make `branch` from HEAD, with a commit for each (message, {path: content}); check it out.

    The branch is there with all its commits or not at all: they are made beside, in an index and a
    folder of their own, and until the checkout nothing that is checked out changes.
    """
    top = repository_of(folder)
    newest = must(folder, 'rev-parse', 'HEAD')
    with tempfile.TemporaryDirectory() as apart:
        tree = Path(apart) / 'tree'
        tree.mkdir()
        beside = {
            'GIT_DIR': must(folder, 'rev-parse', '--absolute-git-dir'),
            'GIT_WORK_TREE': str(tree),
            'GIT_INDEX_FILE': f'{apart}/index',
        }
        there = ('-C', str(tree))
        must(folder, 'read-tree', newest, **beside)
        for message, files in steps:
            paths = {path: (folder / path).relative_to(top) for path in files}
            for path, inside in paths.items():
                (tree / inside).parent.mkdir(parents=True, exist_ok=True)
                (tree / inside).write_bytes(files[path])
                if (folder / path).is_file():
                    shutil.copymode(folder / path, tree / inside)
            must(folder, *there, 'add', '-f', '--', *map(str, paths.values()), **beside)
            made = must(folder, 'write-tree', **beside)
            newest = must(
                folder, *identity(folder), 'commit-tree', made, '-p', newest, '-m', message
            )
    files = {path for _, each in steps for path in each}
    places = {folder / each for path in files for each in (path, *Path(path).parents)}
    new = [place for place in places if not os.path.lexists(place)]
    must(folder, 'branch', branch, newest)
    try:
        must(folder, 'checkout', '-q', branch)
    except BaseException:  # git leaves what it has written until the disk was full
        for place in sorted(new, reverse=True):  # what is in a folder first
            with suppress(OSError):
                place.rmdir() if place.is_dir() else place.unlink()
        git(folder, 'checkout', '-q', 'HEAD', '--', *(files & dict(tracked(folder)).keys()))
        git(folder, 'branch', '-q', '-D', branch)
        raise
