"""Start a project from this template, bring its newer files into one, or put it under a project of
the old template.

python new_project.py NAME [--example X | --bare]
python new_project.py --update PATH [--dry-run]
python new_project.py --adopt PATH [--mend] [--dry-run]
"""

import argparse
import sys
from pathlib import Path
from shlex import quote

import armature.packages  # noqa: F401 (says what to type where Python is too old)
from armature.errors import UserError, exit_on_user_error
from tools.project import create
from tools.project_adopt import adopt_project
from tools.project_update import run_tests, update_project


def start(arguments):
    folder = create(Path(arguments.name), arguments.example, arguments.bare)
    print(
        f'{folder} is ready:\n\n    cd {quote(str(folder))}\n    python train.py -c config.json\n'
        '    python -m pytest'
    )


def update(arguments):
    summary, complete = update_project(Path(arguments.update), arguments.dry_run)
    print(summary)
    if not arguments.dry_run:
        sys.exit(run_tests(Path(arguments.update)) if complete else 1)


def adopt(arguments):
    summary, is_good = adopt_project(Path(arguments.adopt), arguments.dry_run, arguments.mend)
    print(summary)
    sys.exit(0 if is_good else 1)


def main(command_line=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('name', nargs='?', metavar='NAME', help='folder of the new project')
    parser.add_argument('--example', metavar='X', help='start from examples/X')
    parser.add_argument(
        '--bare',
        action='store_true',
        help='start without the digits: a model and data of a few lines',
    )
    parser.add_argument(
        '--update', metavar='PATH', help='bring newer template files into the project in PATH'
    )
    parser.add_argument(
        '--adopt', metavar='PATH', help='put this template under the old project in PATH'
    )
    parser.add_argument(
        '--mend',
        action='store_true',
        help='with --adopt: also write anew what is outdated in your code, in a commit of its own',
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='with --update or --adopt: say what would change, change nothing',
    )
    given = parser.parse_args(command_line)
    actions = [
        action
        for action, wanted in ((start, given.name), (update, given.update), (adopt, given.adopt))
        if wanted
    ]
    if len(actions) != 1:
        parser.error('say one of: NAME, --update PATH, --adopt PATH')
    if (given.example and given.bare) or (
        actions[0] is not start and (given.example or given.bare)
    ):
        parser.error('--example and --bare exclude each other and go with NAME')
    if given.mend and actions[0] is not adopt:
        parser.error('--mend goes with --adopt')
    if given.dry_run and actions[0] is start:
        parser.error('--dry-run goes with --update or --adopt')
    with exit_on_user_error():
        try:
            actions[0](given)
        except OSError as error:
            where = error.filename2 or error.filename or given.update or given.adopt or given.name
            raise UserError(
                f'{where}: {error.strerror or error}. Mend that, then give the same command again'
            ) from error


if __name__ == '__main__':
    main()
