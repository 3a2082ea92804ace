"""Puts this template under a project that was built on the old one.

The project's files stay where they are. What in them is a copy of the old template becomes an
import of today's; a class that the project has extended becomes a subclass of today's with what
the project added; all else stays as it stands. A file that holds nothing else is replaced.

All is worked out first and tried in a copy, then written on a branch of its own (without git: into
a copy beside), with ADOPTED.md saying what was done.
"""

import os
import re
import shutil
from pathlib import Path
from shlex import quote

from armature.errors import UserError
from tools.new_folder import unfinished
from tools.project import MANIFEST, VERSION
from tools.project_git import (
    git,
    repository_of,
    require_clean,
    require_known,
    switch_to_new,
    tracked,
)
from tools.project_mend import mend
from tools.project_prove import Proof, copy_project, find_command, prove
from tools.project_report import REPORT, Report
from tools.project_take_over import Adoption, take_over
from tools.project_text import encoded_as
from tools.project_update import apply, require_room

BRANCH = 'adopt-template'


def adopt_project(
    folder: Path, dry_run: bool = False, with_mends: bool = False, is_tried: bool = True
) -> tuple[str, bool]:
    """Adopt the project in `folder`; returns (what to tell the user, whether all works that did).

    with_mends: also repair what has become outdated in the project's own code, in a second commit.
    is_tried: whether the project is run in a copy, before and after.
    """
    folder = Path(os.path.realpath(folder))
    if not folder.is_dir():
        raise UserError(f'{folder} is no folder')
    is_kept_by_git = is_under_git(folder)
    branch = branch_of(folder) if is_kept_by_git else ''
    refuse_second(folder, branch)
    if is_kept_by_git and not dry_run:
        require_clean(folder)

    adoption = take_over(folder)
    # What git does not keep, as an ignored file or a submodule's, could not be brought back.
    kept = dict(tracked(folder)) if is_kept_by_git else adoption.sources
    sources = {path: text for path, text in adoption.sources.items() if path in kept}
    mends = mend(sources) if with_mends else []
    command = find_command(folder)
    mended = {each.path: encoded_as(adoption.before[each.path], each.text) for each in mends}
    changes = adoption.changes | mended
    require_room(folder, [*changes, REPORT])
    proof = prove(folder, changes, command) if is_tried else Proof()
    report = Report(adoption, mends, proof, command)
    if dry_run:
        return (
            f'What --adopt would do to {folder}:\n\n{report.text("BRANCH", branch)}',
            proof.is_good,
        )
    if not is_kept_by_git:
        copy = in_copy(folder, changes, report)
        where, back = f'{folder} is under no git: it is unchanged, and {copy} is adopted.', ''
    else:
        require_known(folder, changes)
        before = on_branch(folder, branch, adoption, mended, report)
        copy, where = folder, f'{folder} is adopted, on the branch {branch}.'
        back = f'\nBack to what it was: git -C {quote(str(folder))} checkout {quote(before)}'
    return f'{where}\n\n{report.summary(copy)}{back}', proof.is_good


def is_under_git(folder: Path) -> bool:
    """Whether a repository keeps this project.

    One further up that keeps none of its files does not.
    """
    return (
        shutil.which('git') is not None
        and repository_of(folder) is not None
        and bool(git(folder, 'ls-files', '--', '.').stdout)
    )


def branch_of(folder: Path) -> str:
    """The branch for the adoption; each project in a repository of several has its own."""
    inside = folder.relative_to(repository_of(folder)).parts
    return re.sub(r'[^\w-]+', '-', '-'.join([BRANCH, *inside]))  # git refuses a space and more


def refuse_second(folder: Path, branch: str) -> None:
    """UserError when this project has the template already, or has it on its other branch."""
    if (folder / MANIFEST).is_file():
        raise UserError(
            f'{folder} has this template already ({MANIFEST} is there). To bring it up to date: '
            f'python new_project.py --update {quote(str(folder))}'
        )
    exists = branch and git(folder, 'rev-parse', '-q', '--verify', f'refs/heads/{branch}')
    if exists and exists.returncode == 0:
        raise UserError(
            f'{folder} was adopted before, on the branch {branch}. To go on there: '
            f'git -C {quote(str(folder))} checkout {quote(branch)}. To forget that and adopt it '
            f'anew: git -C {quote(str(folder))} branch -D {quote(branch)}'
        )


def on_branch(folder: Path, branch: str, adoption: Adoption, mended: dict, report: Report) -> str:
    """Commit the adoption, then the mends, on a new branch; returns the way back."""
    before = git(folder, 'symbolic-ref', '-q', '--short', 'HEAD').stdout.strip()
    if not before:
        before = git(folder, 'rev-parse', '--short', 'HEAD').stdout.strip()
    adoption.changes[REPORT] = report.text(before, branch).encode(errors='replace')
    steps = [(f'Adopt template {VERSION}', adoption.changes)]
    if mended:
        steps.append(('Mend what has become outdated', mended))
    switch_to_new(folder, branch, steps)
    return before


def in_copy(folder: Path, changes: dict[str, bytes], report: Report) -> Path:
    """Without git the original stays as it is; data is linked into the copy, not copied."""
    adopted = folder.with_name(f'{folder.name}-adopted')
    if os.path.lexists(adopted):
        raise UserError(f'{adopted} exists: remove it, or put {folder} under git')
    try:
        with unfinished(adopted) as made:
            copy_project(folder, made)
            apply(made, changes | {REPORT: report.text('', '').encode(errors='replace')})
            made.rename(adopted)
    except OSError as error:
        raise UserError(f'{adopted} cannot be made: {error.strerror or error}') from error
    return adopted
