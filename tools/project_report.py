"""ADOPTED.md: what adopting a project has done, the most important first."""

from pathlib import Path
from shlex import quote

from tools.project import VERSION
from tools.project_mend import Mend, remarks
from tools.project_prove import FIRST_STEPS, Command, Proof
from tools.project_take_over import Adoption

REPORT = 'ADOPTED.md'
N_SHOWN = 5


class Report:
    def __init__(
        self, adoption: Adoption, mends: list[Mend], proof: Proof, command: Command | None
    ):
        self.adoption, self.mends, self.proof, self.command = adoption, mends, proof, command
        mended = {each.path: each.text for each in mends}
        self.habits = remarks(adoption.sources | mended, is_mended=bool(mends))

    def summary(self, folder: Path) -> str:
        """What the terminal shows."""
        lines = [
            *self.tried(),
            f'Read {folder / REPORT}' + ('.' if not self.command else ', then train:'),
        ]
        if self.command:
            lines += ['', f'    cd {quote(str(folder))}', f'    {self.command}', '']
        return '\n'.join(lines)

    def text(self, before: str, branch: str) -> str:
        """The whole file; before, branch: the way back, '' without git."""
        adoption = self.adoption
        back = 'remove this copy; the original is unchanged'
        if before:
            back = f'`git checkout {quote(before)}`; `git branch -D {quote(branch)}` forgets this'
        n_places = sum(len(places) for places in self.habits.values())
        first = [
            f'# Adopted: template {VERSION} under a project of the old template '
            f'({adoption.generation})',
            *self.tried(),
            f'Train: `{self.command}`' if self.command else 'No script with a config was found.',
            '\n'.join(
                [
                    f"- {len(adoption.replaced)} files are the template's now; "
                    f'{len(adoption.shared)} '
                    'times yours takes from it what had been copied; all else stands as it was.',
                    f'- To look at: {len(adoption.look_at) + len(self.near())} remarks on the '
                    'adoption, '
                    f'{len(self.habits)} on what is outdated in your code ({n_places} places)'
                    + ('' if self.mends else '; `--adopt --mend` writes anew what is safe to')
                    + '.',
                    f'- Back: {back}.',
                ]
            ),
        ]
        sections = {
            'Look at': [*adoption.look_at, *self.near()],
            "Replaced by the template's": adoption.replaced,
            'Yours, with the template under it': adoption.shared,
            'Yours, kept whole': adoption.kept,
            'Mended': [line for each in self.mends for line in each.lines],
            'Outdated or costly in your code': [
                f'{remark}: {", ".join(places)}' for remark, places in self.habits.items()
            ],
            'Failed before, and still does': [
                f'{what}: {problem}' for what, problem in self.proof.failing.items()
            ],
            'Old checkpoints': [
                "`train.py -r` reads the old template's files without running what is in them. A "
                '`torch.load` of your own refuses those that hold a pickled ConfigParser: convert '
                'them once, `python -m tools.convert_checkpoint OLD NEW`',
                'What adoption cannot do: docs/adopt.md of the template',
            ],
        }
        details = [
            '\n'.join([f'## {title}', '', *(f'- {line}' for line in lines)])
            for title, lines in sections.items()
            if lines
        ]
        return '\n\n'.join([*first, *details]) + '\n'

    def near(self) -> list[str]:
        if not self.adoption.near:
            return []
        places = '; '.join(
            f'`{path}` {", ".join(each)}' for path, each in self.adoption.near.items()
        )
        return [
            "These were nearly the old template's, and are the template's now. See whether you had "
            f'changed something that matters: {places}'
        ]

    def tried(self) -> list[str]:
        """What the trial showed, what is broken first."""
        proof, lines = self.proof, []
        if not proof.before and not proof.after:
            return ['It was not tried.']
        if proof.broken:
            lines.append(f'WORKED BEFORE AND DOES NOT NOW ({len(proof.broken)}):')
            lines += [
                f'- {what}: {problem}' for what, problem in list(proof.broken.items())[:N_SHOWN]
            ]
            if len(proof.broken) > N_SHOWN:
                lines.append(f'- and {len(proof.broken) - N_SHOWN} more')
        counts = []
        for found in (proof.before, proof.after):
            modules = {what: problem for what, problem in found.items() if what != FIRST_STEPS}
            counts.append(f'{list(modules.values()).count("")} of {len(modules)}')
        lines.append(
            f'Tried in a copy: {counts[1]} modules can be imported (before: {counts[0]}). '
            f'First training steps: {self.steps(proof.after)} (before: {self.steps(proof.before)}).'
        )
        return ['\n'.join(lines)]

    @staticmethod
    def steps(found: dict[str, str]) -> str:
        if FIRST_STEPS not in found:
            return 'not tried, or too slow to tell'
        return found[FIRST_STEPS] or 'good'
