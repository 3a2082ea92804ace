"""The only place that runs git for new_project.py.

In the repository of the folder it is given, and in no other.
"""

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from armature.errors import UserError

# Of the user's settings these must not take part in what we do: hooks could refuse or change a
# commit, a signature could ask
# for a passphrase, and the others change what a command accepts or prints.
SETTINGS = (
    f'core.hooksPath={os.devnull}',
    'commit.gpgSign=false',
    'core.safecrlf=false',
    'merge.conflictStyle=merge',
)
IDENTITY = ('-c', 'user.name=new_project', '-c', 'user.email=new_project@localhost')


def environment() -> dict[str, str]:
    """The variables for what we start. git sets GIT_DIR, GIT_INDEX_FILE and others for what it
    starts itself (hooks, aliases, rebase --exec); they point at the repository that it was started
    in, which is not ours to touch."""
    return {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}


def git(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run git in `folder`, with paths taken as they are; a UserError when git is not installed."""
    settings = [part for setting in SETTINGS for part in ('-c', setting)]
    try:
        return subprocess.run(
            ['git', '-C', str(folder), '--literal-pathspecs', *settings, *arguments],
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors='replace',
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
    changed = git(
        folder, 'status', '--porcelain', '--untracked-files=all', '--', '.'
    ).stdout.splitlines()
    if changed:
        raise UserError(
            f'{folder} has changes that are not committed; commit them first, so that git can undo '
            'the update:\n' + '\n'.join(changed[:10]) + ('\n...' if len(changed) > 10 else '')
        )


def require_known(folder: Path, paths: Iterable[str]) -> None:
    """UserError unless git could bring back each of these files that exists.

    One that it ignores would be lost.
    """
    existing = [path for path in paths if (folder / path).is_file()]
    if not existing:
        return
    known = set(git(folder, 'ls-files', '-z', '--', *existing).stdout.split('\0'))
    if unknown := [path for path in existing if path not in known]:
        raise UserError(
            'git does not keep these files (an ignore file names them), so their change could not '
            'be undone: '
            f'{", ".join(unknown[:10])}. In {folder}: git add -f and commit them, or move them away'
        )


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
    # With a name of our own only where git knows none of the user's.
    is_known = all(
        git(folder, 'config', f'user.{part}').stdout.strip() for part in ('name', 'email')
    )
    for command in (
        ['add', '-f', '--', *paths],
        [*([] if is_known else IDENTITY), 'commit', '-q', '-m', message, '--', *paths],
    ):
        done = git(folder, *command)
        if done.returncode:
            raise UserError(
                f'git could not commit in {folder}:\n{(done.stderr or done.stdout).strip()}'
            )
