"""What the pages say is so: links, commands, configs, files and names in them are real."""

import ast
import contextlib
import functools
import io
import json
import re
import runpy
import shlex
import sys
import textwrap

import pytest

import docs.make
import model.model
import train
import trainer.trainer
from armature.config.keys import TOP, paths_of
from armature.config.read import read_config
from parse_config import ConfigParser
from tests.conftest import ROOT
from tools.sweep_keys import ALL

PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob('*.md'), ROOT / 'examples/README.md', *ROOT.glob('docs/**/*.md'))
]
DOCS = [page for page in PAGES if page.startswith('docs/')]
# Lists to look something up in may be longer than two screens.
REFERENCE = {'docs/keys.md', 'docs/errors.md', 'docs/evidence.md', 'docs/gpu.md'}
TWO_SCREENS = 110  # lines
MADE_LATER = ('data/', 'saved/', 'armature/template/')


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding='utf-8')


def blocks(page: str, *languages: str) -> list[str]:
    fenced = re.findall(r'^```(\w*)\n(.*?)^```$', text_of(page), flags=re.DOTALL | re.MULTILINE)
    return [body for language, body in fenced if language in languages]


def prose(page: str) -> str:
    return re.sub(r'^```.*?^```$', '', text_of(page), flags=re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r'^#+ (.*)$', prose(page), flags=re.MULTILINE)
    return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
        if link.startswith(('http://', 'https://')):
            continue
        file, _, anchor = link.partition('#')
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.resolve().relative_to(ROOT).as_posix()), link


def test_every_page_is_in_the_table_of_contents():
    listed = set(re.findall(r'\]\(([\w/]+\.md)', text_of('docs/README.md')))
    assert {page.removeprefix('docs/') for page in DOCS} - {'README.md'} <= listed


@pytest.mark.parametrize('page', sorted({*DOCS, 'README.md', 'CONTRIBUTING.md'} - REFERENCE))
def test_page_has_at_most_two_screens(page):
    lines = text_of(page).splitlines()
    assert len(lines) <= TWO_SCREENS or page == 'README.md'
    assert not re.search(r'\b[Tt]his (page|document)\b', prose(page))


# Commands


def commands(page: str) -> list[list[str]]:
    """The words of each command `python ...` in the page's blocks and lines."""
    shell = '\n'.join(blocks(page, 'sh', '')).replace('\\\n', ' ').splitlines()
    shell += re.findall(r'`(python [^`]+)`', prose(page))
    found = []
    for line in shell:
        line = line.strip().removeprefix('$ ')
        if re.match(r'python (-m )?[\w./]+', line) and '...' not in line:
            found.append(shlex.split(line, comments=True)[1:])
    return found


def run_here(monkeypatch, *arguments: str) -> tuple[int, str]:
    """Exit code and output of `python arguments...`, run in this process."""
    is_module = arguments[0] == '-m'
    name, *rest = arguments[1:] if is_module else arguments
    monkeypatch.setattr(sys, 'argv', [name, *rest])
    said = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            if is_module:
                runpy.run_module(name, run_name='__main__')
            else:
                runpy.run_path(str(ROOT / name), run_name='__main__')
        except SystemExit as left:
            code = left.code
    return code or 0, said.getvalue()


HELP = {}


def options_of(monkeypatch, script: tuple[str, ...]) -> set[str]:
    if script not in HELP:
        code, said = run_here(monkeypatch, *script, '--help')
        assert code == 0, said
        HELP[script] = set(re.findall(r'(?<![\w-])--?\w[\w-]*', said))
    return HELP[script]


WITH_OPTIONS = re.compile(r'(train|test|predict|new_project)\.py|tools\.\w+')


@pytest.mark.filterwarnings('ignore:.*found in sys.modules:RuntimeWarning')
@pytest.mark.parametrize('page', PAGES)
def test_commands_exist_with_their_options(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        is_module = words[0] == '-m'
        name = words[1] if is_module else words[0]
        file = ROOT / (name.replace('.', '/') + '.py' if is_module else name)
        if name in ('pytest', 'pip') or not name.startswith(('tools', 'tests')) and is_module:
            continue
        assert file.exists(), words
        if WITH_OPTIONS.fullmatch(name):
            given = {word.partition('=')[0] for word in words if re.match(r'--?[a-zA-Z]', word)}
            script = ('-m', name) if is_module else (name,)
            assert given - {'-m'} <= options_of(monkeypatch, script), words


@pytest.mark.parametrize('page', PAGES)
def test_configs_and_settings_in_commands_are_right(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        config = words[words.index('-c') + 1] if '-c' in words else ''
        if words[0] != 'train.py' or not (ROOT / config).is_file():
            continue
        words = words[: words.index('-d')] if '-d' in words else words
        code, said = run_here(monkeypatch, *words, '--print-config')
        assert code == 0, said


# Configs


def objects(block: str) -> list[dict]:
    """A block of JSON: a config, some of its keys, or several of either under one another."""
    decoder = json.JSONDecoder(strict=False)
    text = re.sub(r'^\s*//.*$', '', block, flags=re.MULTILINE).strip().rstrip(',')
    if text.startswith('"'):
        pairs = [f'{{{each}}}' for each in re.split(r',?\n(?=")', text)]
        return [json.loads(each) for each in pairs]
    value, end = decoder.raw_decode(text)
    assert not text[end:].strip(), text[end:]
    return [value]


BAD_CONFIG = """{
    "name": "bad",
    "arch": {"type": "MnistModl"},
    "data_loader": {
        "type": "DigitsDataLoader",
        "args": {"batch_size": 32, "validation_split": 0.1}
    },
    "optimizer": {
        "type": "Adam",
        "args": {"learning_rate": 0.001}
    },
    "loss": "nll_loss",
    "metrics": ["accuracy"],
    "trainer": {
        "epochs": 3,
        "monitor": "min val_los",
        "earlystopp": 3
    }
}"""


def test_report_in_the_page_on_configs_is_what_a_bad_config_gives(monkeypatch, tmp_path):
    (tmp_path / 'bad.json').write_text(BAD_CONFIG)
    monkeypatch.chdir(tmp_path)
    code, said = run_here(monkeypatch, 'train.py', '-c', 'bad.json')
    (shown,) = [block for block in blocks('docs/config.md', '') if 'bad.json' in block]
    assert (code, f'$ python train.py -c bad.json\n{said}') == (2, shown)


def own_names(page: str) -> set[str]:
    """The classes and functions that a page shows as its reader's."""
    trees = [ast.parse(textwrap.dedent(block)) for block in blocks(page, 'python')]
    kinds = (ast.ClassDef, ast.FunctionDef)
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)}


@pytest.mark.parametrize('page', [page for page in PAGES if blocks(page, 'json')])
def test_configs_in_blocks_are_right(page, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    for block in blocks(page, 'json'):
        for values in objects(block):
            if not values.keys() <= TOP.keys() | {'base'}:
                continue  # an object inside a config
            values['base'] = str(ROOT / 'config.json')
            file = tmp_path / 'block.json'
            file.write_text(json.dumps(values))
            _, said = run_here(monkeypatch, 'train.py', '-c', str(file), '--print-config')
            wrong = [line for line in said.splitlines() if line.startswith(str(file))]
            mine = own_names(page)
            assert [each for each in wrong if not any(name in each for name in mine)] == [], block


@pytest.mark.parametrize('page', [page for page in PAGES if blocks(page, 'python')])
def test_python_blocks_import_what_is_there(page):
    for block in blocks(page, 'python'):
        tree = ast.parse(textwrap.dedent(block))
        imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = own_names(page)
        for node in imports:
            if not any(alias.name in names for alias in node.names):
                exec(compile(ast.Module([node], []), page, 'exec'), {})


def test_model_and_trainer_of_the_page_train(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    made = {}
    for block in blocks('docs/model.md', 'python'):
        exec(block, made)
    places = {'TinyNet': model.model, 'NoisyTrainer': trainer.trainer}
    for name, module in places.items():
        made[name].__module__ = module.__name__
        monkeypatch.setattr(module, name, made[name], raising=False)
    config = json.loads(text_of('config.json')) | {'n_gpu': 0, 'loss': 'CrossEntropyLoss'}
    config['arch'] = {'type': 'TinyNet', 'args': {'hidden': 8}}
    settings = {'type': 'NoisyTrainer', 'epochs': 1, 'len_epoch': 2, 'save_dir': str(tmp_path)}
    config['trainer'] |= settings
    train.build(ConfigParser(config).check(train.BUILDS)).train()
    assert list(tmp_path.rglob('model_best.pth'))


# Names


@functools.cache
def keys() -> set[str]:
    return {'.'.join(path) for path in paths_of(ALL)}


@pytest.mark.parametrize('page', PAGES)
def test_files_and_keys_in_the_text_exist(page):
    for name in re.findall(r'`([^`\n]+)`', prose(page)):
        if re.fullmatch(r'[\w.-]+(/[\w.-]+)*/?[\w-]+\.(py|json|md|ipynb)|[\w-]+/([\w-]+/)+', name):
            is_ours = (ROOT / name.split('/')[0]).exists() and '/' in name.rstrip('/')
            if is_ours and not name.startswith(MADE_LATER):
                assert (ROOT / name).exists(), name
        if re.fullmatch(r'(trainer|distributed|optimizer|lr_scheduler|batch)\.[a-z_]+', name):
            assert name in keys() or name.endswith(('.type', '.args', '.py')), name


# Pages that are made, pages in Korean


def test_pages_that_are_made_from_the_code_are_up_to_date():
    for name, content in docs.make.pages().items():
        assert text_of(f'docs/{name}') == content, f'python -m docs.make writes docs/{name} anew'


def test_every_error_message_has_a_way_out():
    without = [message for rows in docs.errors.rows().values() for message, way in rows if not way]
    assert without == [], 'let the message say what to do, or write it in docs/ways.py'
    texts = [text for _, text in docs.errors.messages()]
    for words in docs.ways.WAYS:
        assert any(words in text for text in texts), words


def test_a_batch_goes_the_way_that_the_page_says(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    config = read_config(ROOT / 'examples/images/config.json', 'images').values
    config['n_gpu'] = 0
    config['data_loader']['args']['in_memory'] = False
    config['trainer'] |= {'epochs': 1, 'len_epoch': 2, 'save_dir': str(tmp_path)}
    entered = set()
    sys.setprofile(lambda frame, event, _: entered.add(frame.f_code.co_filename))
    try:
        train.build(ConfigParser(config)).train()
    finally:
        sys.setprofile(None)
    way = docs.drawing.stations()
    assert list(way.values()) == list(range(1, 13))
    assert {file for file in way if str(ROOT / file) not in entered} == set()


KOREAN = [page for page in PAGES if page.startswith('docs/ko/')]


@pytest.mark.parametrize('page', KOREAN)
def test_korean_and_english_agree_on_commands_and_names(page):
    english = '\n'.join(text_of(each) for each in PAGES if each not in KOREAN)
    for words in commands(page):
        assert ' '.join(words) in english.replace("'", ''), words
    code = '\n'.join(path.read_text() for path in (ROOT / 'train.py', ROOT / 'parse_config.py'))
    code += '\n'.join(path.read_text() for path in ROOT.glob('*/*.py'))
    for name in re.findall(r'`([a-zA-Z_][\w.()\'"]*)`', prose(page)):
        assert name in english or name in code, name


def test_korean_course_has_the_lessons_of_the_english_one():
    english = [text_of(page) for page in PAGES if re.fullmatch(r'docs/course\w*\.md', page)]
    lessons = set(re.findall(r'python -m examples\.course\.\w+', '\n'.join(english)))
    assert lessons == set(
        re.findall(r'python -m examples\.course\.\w+', text_of('docs/ko/course.md'))
    )
