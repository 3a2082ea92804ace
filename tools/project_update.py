"""Brings the template's newer files into a project: replaced where untouched, merged three ways
where both sides have changed.

All is worked out before anything is written. Writing is in two steps, into a folder beside and then
by renaming, so that an update that was interrupted is finished by the next call.
"""

import io
import json
import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from importlib.util import find_spec
from pathlib import Path
from shlex import quote

from armature.errors import UserError
from tools.project import MANIFEST, PRISTINE, TEMPLATE, VERSION, digest, stamp, template_files
from tools.project_first_version import RENAMED, Move, layout, move_rooms
from tools.project_git import environment, git, require_clean, require_known

STAGING = '.template-update'
MANY = 12  # paths; more are shown as folders
HEADINGS = {
    'added': 'Added',
    'replaced': 'Replaced (you had not changed them)',
    'removed': 'Removed (you had not changed them)',
    'merged': 'Merged with your changes',
    'conflict': 'CONFLICTS: look for <<<<<<< in',
    'kept': 'No longer in the template; kept, since you have changed them',
    'deleted': 'Changed in the template, but deleted by you; not brought back',
    'moved': 'Changed by you, and elsewhere now',
    'rewritten': 'Yours, with imports of what is elsewhere written anew',
    'gone': 'IMPORTED BY YOU AND GONE',
    'yours': 'Changed in the template, but yours; left alone',
}


def update_project(folder: Path, dry_run: bool = False) -> tuple[str, bool]:
    """(summary, whether everything could be merged)."""
    folder = Path(os.path.realpath(folder))
    if not (folder / MANIFEST).is_file() and not (folder / STAGING).is_dir():
        raise UserError(
            f'{folder} is no project made from this template: it has no {MANIFEST}. '
            + (
                f'If it was copied: copy {MANIFEST} and {PRISTINE} too, which are hidden. A clone '
                'of the template itself: git pull'
                if (folder / 'armature').is_dir()
                else 'A project of the old template is taken over with --adopt'
            )
        )
    if recover(folder):
        return (
            f'The update of {folder} that was interrupted is now finished. Look at `git diff`, '
            'commit, and update again.',
            False,
        )
    manifest = read_manifest(folder)
    require_clean(folder)
    pristine = read_pristine(folder, manifest)
    if manifest['version'].startswith('1.'):
        moved, left_alone = layout(manifest)
        move = move_rooms(folder, manifest, pristine, template_files(moved, left_alone))
    else:
        moved, left_alone = manifest['moved'], manifest['left_alone']
        offered = template_files(moved, left_alone)
        move = Move(pristine, contents(folder, pristine | offered), offered)

    names = f'template {manifest["version"]}', f'template {VERSION}'
    changes, report = plan(move.mine, move.pristine, move.offered, *names)
    # What is elsewhere now goes there, also when nothing else has changed in it.
    changes |= {
        path: content
        for path, content in move.mine.items()
        if path not in changes and content != contents(folder, [path]).get(path)
    }
    changes |= move.rewritten | dict.fromkeys(move.old_paths)
    report['moved'] = [
        f'{old} -> {RENAMED[old]}'
        for old in move.old_paths
        if not equal(move.mine[RENAMED[old]], move.pristine[RENAMED[old]])
    ]
    report['rewritten'], report['gone'] = sorted(move.rewritten), move.gone

    yours = {
        path: before
        for path, before in manifest.get('yours', {}).items()
        if (TEMPLATE / path).is_file()
    }
    report['yours'] = [
        path
        for path, before in yours.items()
        if path not in move.offered and digest((TEMPLATE / path).read_bytes()) != before
    ]
    if changes or report['yours'] or manifest['version'] != VERSION:
        changes |= stamp(moved, left_alone, list(yours))
    summary = describe(folder, report, changes, dry_run)
    if dry_run:
        require_room(folder, changes)
    else:
        require_known(folder, changes)
        apply(folder, changes)
    return summary, not report['conflict']


def contents(folder: Path, paths: Iterable[str]) -> dict[str, bytes]:
    """What is in those of the files that are there."""
    return {path: (folder / path).read_bytes() for path in paths if (folder / path).is_file()}


def read_manifest(folder: Path) -> dict:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding='utf-8'))
        version = tuple(map(int, manifest['version'].split('.')))
        kinds = {'files': dict}
        if version >= (2,):
            kinds |= {'moved': dict, 'left_alone': list}
        if manifest['template'] != 'armature' or not all(
            isinstance(manifest[key], kind) for key, kind in kinds.items()
        ):
            raise KeyError
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{folder / MANIFEST} is not what this template writes, so it cannot be told what the '
            'project was made '
            f'from. {bring_back(folder)}'
        ) from error
    if version > tuple(map(int, VERSION.split('.'))):
        raise UserError(
            f'{folder} has template {manifest["version"]}, this one is {VERSION}: get a newer '
            'template first'
        )
    return manifest


def read_pristine(folder: Path, manifest: dict) -> dict[str, bytes]:
    """The template's files as the project got them; checked against their hashes."""
    try:
        with tarfile.open(fileobj=io.BytesIO((folder / PRISTINE).read_bytes())) as archive:
            files = {
                member.name: archive.extractfile(member).read()
                for member in archive
                if member.isfile()
            }
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
        raise UserError(
            f'{folder / PRISTINE} cannot be read ({error}). {bring_back(folder)}'
        ) from error
    if {path: digest(content) for path, content in files.items()} != manifest['files']:
        raise UserError(
            f'{folder / PRISTINE} and {MANIFEST} do not belong together. {bring_back(folder)}'
        )
    return files


def bring_back(folder: Path) -> str:
    here = f'git -C {quote(str(folder))}'
    return (
        f'Bring both back from the newest commit that had them whole: {here} log -- {MANIFEST}, '
        f'then {here} checkout COMMIT -- {MANIFEST} {PRISTINE}'
    )


def plan(
    all_mine: dict[str, bytes],
    pristine: dict[str, bytes],
    offered: dict[str, bytes],
    before: str,
    now: str,
) -> tuple[dict[str, bytes | None], dict[str, list[str]]]:
    """({path: new content, None to remove it}, {heading: paths})."""
    changes, report = {}, {heading: [] for heading in HEADINGS}

    def note(heading: str, path: str, content: bytes | None) -> None:
        report[heading].append(path)
        changes[path] = content

    for path in sorted(pristine.keys() | offered.keys()):
        base, theirs, mine = pristine.get(path), offered.get(path), all_mine.get(path)
        if equal(mine, theirs) or equal(base, theirs):
            continue
        if mine is None and base is None:
            note('added', path, theirs)
        elif mine is None:
            report['deleted'].append(path)
        elif theirs is None and equal(mine, base):
            note('removed', path, None)
        elif theirs is None:
            report['kept'].append(path)
        elif equal(mine, base):
            note('replaced', path, with_line_ends_of(mine, theirs))
        else:
            merged, n_conflicts = merge(mine, base or b'', theirs, before, now)
            note('conflict' if n_conflicts else 'merged', path, merged)
    return changes, report


def equal(one: bytes | None, other: bytes | None) -> bool:
    return one is other if one is None or other is None else digest(one) == digest(other)


def with_line_ends_of(mine: bytes, content: bytes) -> bytes:
    content = content.replace(b'\r\n', b'\n')
    return content.replace(b'\n', b'\r\n') if b'\r\n' in mine else content


def merge(mine: bytes, base: bytes, theirs: bytes, before: str, now: str) -> tuple[bytes, int]:
    """(both sides' changes, number of conflicts), by git merge-file."""
    with tempfile.TemporaryDirectory() as temporary:
        for name, content in (('mine', mine), ('base', base), ('theirs', theirs)):
            (Path(temporary) / name).write_bytes(with_line_ends_of(mine, content))
        labels = ('-L', 'yours', '-L', before, '-L', now)
        done = git(Path(temporary), 'merge-file', '--diff3', *labels, 'mine', 'base', 'theirs')
        if not 0 <= done.returncode < 128:
            raise UserError(f'git merge-file failed: {done.stderr.strip()}')
        merged = (Path(temporary) / 'mine').read_bytes()
    return settle_conflicts(merged) if done.returncode else (merged, 0)


IMPORT = re.compile(rb'\s*(from \S+ )?import [^(\\]+$')
CONFLICT = re.compile(
    rb'^<<<<<<< [^\n]*\n(.*?)^\|\|\|\|\|\|\| [^\n]*\n(.*?)^=======\r?\n(.*?)^>>>>>>> [^\n]*\n',
    re.DOTALL | re.MULTILINE,
)


def settle_conflicts(merged: bytes) -> tuple[bytes, int]:
    """(the text with each conflict settled in which the user's changes have one place, number
    left).

    What both had before is left out of those that are left: two sides, as git usually shows them.
    """
    n_left = 0

    def settle(found: re.Match) -> bytes:
        nonlocal n_left
        settled = applied(*(part.splitlines(keepends=True) for part in found.groups()))
        if settled is not None:
            return b''.join(settled)
        n_left += 1
        before, _, rest = found[0].partition(b'|||||||')
        return before + rest[rest.index(b'\n=======') + 1 :]

    return CONFLICT.sub(settle, merged), n_left


def applied(mine: list[bytes], base: list[bytes], theirs: list[bytes]) -> list[bytes] | None:
    """`theirs` with what the user changed from `base` to `mine`; None when that has no clear place.

    A changed line goes where the template still has the line that it was. Added lines go after the
    line that they followed, or to the end if they stood there; imports can stand anywhere.
    """
    result = list(theirs)
    for kind, start, end, mine_start, mine_end in SequenceMatcher(
        None, base, mine, autojunk=False
    ).get_opcodes():
        new = mine[mine_start:mine_end]
        if kind == 'replace' and len(new) == end - start:
            for old_line, new_line in zip(base[start:end], new):
                if result.count(old_line) != 1:
                    return None
                result[result.index(old_line)] = new_line
        elif kind == 'insert' and base:
            before = base[start - 1] if start else b''
            if before.strip() and result.count(before) == 1:
                place = result.index(before) + 1
            elif start == len(base) or all(IMPORT.match(line) for line in new):
                place = len(result)
            elif not theirs and not b''.join(base[:start]).strip():
                place = 0  # before all that is gone
            else:
                return None
            result[place:place] = new
        elif kind != 'equal':
            return None
    return result


def describe(
    folder: Path, report: dict[str, list[str]], changes: Iterable[str], dry_run: bool
) -> str:
    lines = [
        f'{HEADINGS[heading]}:\n' + '\n'.join(f'    {each}' for each in shortened(heading, paths))
        for heading, paths in report.items()
        if paths
    ]
    changing = ('added', 'replaced', 'removed', 'merged', 'conflict', 'moved', 'rewritten')
    if any(report[heading] for heading in changing):
        did = 'what an update would do' if dry_run else 'updated'
        lines.insert(0, f'{folder}: {did} (template {VERSION})')
    else:
        lines.insert(0, f'{folder} is up to date with template {VERSION}.')
    if changes and not dry_run:
        here = f'git -C {quote(str(folder))}'  # else followed where it is typed
        old = {path.partition('/')[0] for path in changes if (folder / path).is_file()}
        new = {
            path.rpartition('/')[0] or path for path in changes if not (folder / path).is_file()
        }  # what is not of the update stays, whenever it was written
        undo = f'{here} checkout -- {shlex.join(sorted(old))}'
        undo += f' && {here} clean -fd -- {shlex.join(sorted(new))}' * bool(new)
        lines.append(f'See it with `{here} diff`; `{undo}` undoes it; commit when you are content.')
    return '\n'.join(lines)


def shortened(heading: str, paths: list[str]) -> list[str]:
    """Paths by folder where there are many, and none of them needs a look."""
    if heading not in ('added', 'replaced', 'removed') or len(paths) <= MANY:
        return paths
    counts = Counter(path.rpartition('/')[0] + '/' * ('/' in path) for path in paths)
    return [f'{count} files in {place or "the project itself"}' for place, count in counts.items()]


def require_room(folder: Path, paths: Iterable[str]) -> None:
    """UserError unless each of these files of `folder` can be written where it belongs."""
    for path in paths:
        target = folder / path
        above = [folder / each for each in reversed(Path(path).parents)]
        there = [each for each in above if os.path.lexists(each)]
        if not Path(os.path.realpath(target)).is_relative_to(folder):
            raise UserError(f'{target} is a link that leaves the project; nothing was changed')
        for each in there:
            if not each.is_dir():
                raise UserError(
                    f'{each} stands where the template has a folder: move it away; nothing was '
                    'changed'
                )
        if os.path.lexists(target) and not target.is_file():
            raise UserError(
                f'{target} stands where the template has a file: move it away; nothing was changed'
            )
        if not os.access(there[-1], os.W_OK):
            raise UserError(
                f'{target} cannot be written: make {there[-1]} writable; nothing was changed'
            )


def apply(folder: Path, changes: dict[str, bytes | None]) -> None:
    """Make all `changes` in `folder`; what is interrupted half-way `recover` finishes."""
    require_room(folder, changes)
    staging = folder / STAGING
    try:
        shutil.rmtree(staging, ignore_errors=True)
        todo = {}
        for path, content in changes.items():
            target, staged = folder / path, staging / 'files' / path
            old = target.read_bytes() if target.is_file() else None
            todo[path] = [None if each is None else digest(each) for each in (old, content)]
            staged.parent.mkdir(parents=True, exist_ok=True)
            if content is not None:
                staged.write_bytes(content)
                if old is not None:
                    shutil.copymode(target, staged)
        staging.mkdir(exist_ok=True)
        (staging / 'todo.tmp').write_text(json.dumps(todo), encoding='utf-8')
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise UserError(
            f'{folder} cannot be written: {error.strerror or error}; nothing was changed'
        ) from error
    os.replace(staging / 'todo.tmp', staging / 'todo.json')
    finish(folder)


def recover(folder: Path) -> bool:
    """Finish what an interrupted `apply` left; whether there was something.

    One that had not begun to rename is forgotten.
    """
    if not (folder / STAGING).is_dir():
        return False
    if (folder / STAGING / 'todo.json').is_file():
        finish(folder)
        return True
    if foreign := {each.name for each in (folder / STAGING).iterdir()} - {'files', 'todo.tmp'}:
        raise UserError(
            f'{folder / STAGING} holds what no update has written ({", ".join(sorted(foreign))}): '
            'move it away, for updates need this name'
        )
    shutil.rmtree(folder / STAGING)
    return False


def finish(folder: Path) -> None:
    staging = folder / STAGING
    try:
        todo = json.loads((staging / 'todo.json').read_text(encoding='utf-8'))
    except ValueError as error:  # the machine went off before it was on the disk
        raise UserError(
            f'{staging / "todo.json"} is damaged: remove {staging}, bring the project back with '
            f'git -C {quote(str(folder))} checkout -- . and update again'
        ) from error

    def state(path: str) -> str | None:
        return digest((folder / path).read_bytes()) if (folder / path).is_file() else None

    changed = [path for path, versions in todo.items() if state(path) not in versions]
    if changed:
        raise UserError(
            f'an update of {folder} was interrupted, and since then these were changed: '
            f'{", ".join(changed)}. '
            f'Bring them back with git -C {quote(str(folder))} checkout, or remove {staging} to '
            'give the update up'
        )
    for path, (_, new) in todo.items():
        target = folder / path
        if new is None:
            target.unlink(missing_ok=True)
        elif (staging / 'files' / path).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / 'files' / path, target)
    shutil.rmtree(staging)


def run_tests(folder: Path, call: Callable = subprocess.call) -> int:
    """The exit code of the project's own tests; 0 when it has none, or nothing to run them."""
    if not (folder / 'tests').is_dir():
        return 0
    if find_spec('pytest') is None:
        print('Its tests were not run: pytest is not installed (requirements-dev.txt)')
        return 0
    sys.stdout.flush()
    code = call([sys.executable, '-m', 'pytest'], cwd=folder, env=environment())
    return 0 if code == 5 else code  # 5: there is no test
