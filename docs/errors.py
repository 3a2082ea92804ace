"""The index of error messages in docs/errors.md, from the code that raises them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from docs.ways import WAYS

ROOT = Path(__file__).resolve().parent.parent
RAISED = ('ConfigError', 'DataError', 'CheckpointError', 'NonFiniteError', 'UserError', 'Problem')
RAISED += ('self.problem',)
# Heading, and where the messages below it come from; the first that fits.
SECTIONS = (
    ('The config', r'armature/config/|parse_config'),
    ('Data', r'armature/data/|armature/batch|base/base_data|data_loader/|examples/'),
    (
        'Model, loss, metrics, step',
        r'armature/step/|armature/run/(checks|metrics)|base/step|model/',
    ),
    ('Several processes', r'armature/processes/'),
    (
        'Checkpoints, runs, resuming',
        r'armature/(checkpoint|run|epoch|resume)|base/|trainer/|logger/',
    ),
    ('Predict, export, serve', r'predict|tools/(use_|export|serve|card|run_pt2)'),
    ('Comparing, searching', r'tools/(run|sweep)'),
    ('Projects', r'tools/project|new_project'),
    ('Scripts and other tools', r''),
)
# Where in a message the part begins that says what to do.
VERBS = """
    say take give name leave make set put write start look let mend use try remove bring choose
    commit get move train finish rename add install keep expected run change did do there to git
    lower only resume test see both measure pass pip
"""
ADVICE = re.compile(rf'(?:[:;.,] (?:or )?|\()(?=(?:{"|".join(VERBS.split())})\b)', re.IGNORECASE)


def messages() -> Iterator[tuple[str, str]]:
    """(file, message) of each error that the code raises; what is filled in is …"""
    files = list(ROOT.glob('*.py'))
    for folder in (
        'armature',
        'base',
        'data_loader',
        'model',
        'trainer',
        'logger',
        'tools',
        'examples',
    ):
        files += (ROOT / folder).rglob('*.py')
    for path in sorted(files):
        file = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in RAISED and node.args:
                text = re.sub(r'(…\W{0,3})+…', '…', template(node.args[-1]))
                if len(re.findall(r'\w\w+', text)) > 1:  # more than what another function says
                    yield file, ' '.join(text.split())


def template(node: ast.AST) -> str:
    """The text that an expression makes, with … for what is known only when it runs."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return ''.join(map(template, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return '…'


def rows() -> dict[str, list[tuple[str, str]]]:
    """{heading: [(message, way out)]}; '' where neither the message nor WAYS says one."""
    found = {heading: set() for heading, _ in SECTIONS}
    for file, text in messages():
        heading = next(heading for heading, places in SECTIONS if re.match(places, file))
        found[heading].add(row(text))
    return {heading: sorted(each) for heading, each in found.items() if each}


def row(text: str) -> tuple[str, str]:
    advice = ADVICE.search(text)
    if advice:
        return plain(text[: advice.start()]), plain(text[advice.end() :].rstrip('.)'))
    return plain(text), next((way for words, way in WAYS.items() if words in text), '')


def plain(text: str) -> str:
    """Text that Markdown shows as it stands."""
    return re.sub(r'([|<>*_`\[\]])', r'\\\1', text)


PAGE = """# When something fails

A mistake that you can mend is one line: what, where, what was expected, what to do. The exit code
is 2, or 1 where a loss became nan. An error of your own code keeps its traceback, and gains a line
that says in which epoch, step and samples it was.

| I see | I do |
|---|---|
| a line that is not clear | `--print-config` shows every value and where it comes from |
| an error late in a run | `python train.py -c config.json --smoke` finds most in seconds, before |
| a loss that does not fall | `python train.py -c config.json --overfit 2`: two batches by heart |
| nan | look at the samples that are named; `trainer.max_grad_norm`, a lower learning rate |
| bad data | `python -m tools.show_data -c config.json` |

Every message follows. Search for some of its words; `…` stands for a name or value of yours.
"""


def page() -> str:
    parts = [PAGE]
    for heading, found in rows().items():
        parts.append(f'\n## {heading}\n\n| message | what to do |\n|---|---|\n')
        parts += [f'| {message} | {way} |\n' for message, way in found]
    return ''.join(parts)
