"""predict.py and load_run: files without targets through a trained model, as test.py measures."""

import argparse
import csv
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from armature.checkpoint import files as checkpoint
from armature.errors import CheckpointError, ConfigError, DataError
from armature.step.losses import WeightedLosses
from data_loader.data_loaders import CifarDataLoader, MnistDataLoader
from data_loader.datasets import Standardize
from predict import load_run
from tests import warm
from tests.conftest import ROOT
from tests.first_version.resume import unpack_run
from tests.trained import copy_of, inputs_of, measured, run_here, train_run
from tools.use_files import check_output, files_of, write
from tools.use_inputs import (
    ArrayInput,
    ImageInput,
    TableInput,
    TextInput,
    describe,
    described,
    readable,
    rows_for,
)
from tools.use_meaning import meanings_of
from tools.use_outputs import CLASSES, LOGITS, NUMBERS, PROBABILITIES, answers
from tools.use_run import input_format_of

KINDS = ('images', 'tabular', 'sequence', 'own_dataset')


@pytest.fixture(scope='module')
def run_of(tmp_path_factory):
    folder, runs = tmp_path_factory.mktemp('runs'), {}
    return lambda kind: runs.get(kind) or runs.setdefault(kind, train_run(kind, folder))


def rows_of(path: Path) -> list[dict]:
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize('kind', KINDS)
def test_predictions_for_test_files_are_as_right_as_test_says(kind, run_of, tmp_path, monkeypatch):
    run, (inputs, right) = run_of(kind), inputs_of(kind, tmp_path)
    monkeypatch.chdir(tmp_path)
    options = ('-o', 'found.csv', '--workers', 0)
    assert (
        run_here('predict.py', '-r', run / 'best', inputs, *options, monkeypatch=monkeypatch) == 0
    )
    rows = rows_of(tmp_path / 'found.csv')
    assert len(rows) == len(right)
    accuracy = np.mean([row['prediction'] == answer for row, answer in zip(rows, right)])
    assert accuracy == pytest.approx(measured(run), abs=1e-6)
    assert all(0 <= float(row['probability']) <= 1 for row in rows)


def test_a_run_in_a_notebook_needs_no_training_data(run_of, tmp_path):
    """Three lines, and rows as JSON would have them."""
    run = load_run(copy_of(run_of('tabular'), tmp_path))
    row = {'price': 'low', 'upkeep': 'low', 'doors': 4, 'seats': '4', 'safety': 'high'}
    found = run.predict([row | {'thousand_km': 20}, row | {'thousand_km': None}, {}], top=2)
    assert found[0].keys() == {'prediction', 'probability', 'prediction_2', 'probability_2'}
    assert found[0]['prediction'] in run.class_names and found[1]['prediction'] in run.class_names
    assert found[2] == {'error': "there is no column 'thousand_km': there are none"}
    assert not run.model.training


def test_broken_inputs_are_rows_with_the_reason(run_of, tmp_path, monkeypatch, capsys):
    folder = tmp_path / 'pictures'
    (folder / 'below').mkdir(parents=True)
    grey = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    Image.fromarray((grey // 256).astype(np.uint8)).convert('CMYK').save(folder / 'a.jpg')
    (folder / 'b.png').write_bytes(b'no picture')
    (folder / 'c.png').touch()
    Image.fromarray(grey).save(folder / 'below/d.png')  # 16 bits
    Image.new('RGBA', (5, 900), (255, 0, 0, 90)).save(folder / 'e.webp')
    Image.new('P', (1, 1)).save(folder / 'f.gif')
    (folder / 'photo.HEIC').write_text('left out')
    monkeypatch.chdir(tmp_path)
    options = ('-r', run_of('images'), 'pictures', '-o', 'found.jsonl', '--json', '--top', 3)
    assert run_here('predict.py', *options, '-b', 2, monkeypatch=monkeypatch) == 1
    rows = [json.loads(line) for line in (tmp_path / 'found.jsonl').read_text().splitlines()]
    assert [row['input'] for row in rows] == [
        f'pictures/{name}' for name in ('a.jpg', 'b.png', 'below/d.png', 'c.png', 'e.webp', 'f.gif')
    ]
    assert [('error' in row) for row in rows] == [False, True, False, True, False, False]
    assert 'cannot be read as an image (it is empty)' in rows[3]['error']
    assert rows[0]['probability'] >= rows[0]['probability_2'] >= rows[0]['probability_3']
    said = capsys.readouterr().err
    assert '6 inputs, 2 of them cannot be read: found.jsonl' in said
    assert 'note: 1 files .heic are left out' in said


def test_rows_of_a_table_are_taken_as_training_took_them(run_of, tmp_path, monkeypatch, capsys):
    (tmp_path / 'new.csv').write_text(
        'id;thousand_km;price;upkeep;doors;seats;safety\n'
        '1;20;low;low;4;4;high\n'
        '2;many;low;low;4;4;high\n'
        '3;20;low;low;4\n'
        '4;;unheard of;low;4.0;4;high\n'
    )
    monkeypatch.chdir(tmp_path)
    assert run_here('predict.py', '-r', run_of('tabular'), '*.csv', monkeypatch=monkeypatch) == 1
    said = capsys.readouterr()
    header, *rows = said.out.splitlines()
    assert header == 'input,prediction,probability,error'
    assert rows[0].startswith('new.csv:2,')
    assert "column 'thousand_km': 'many' is not a number" in rows[1]
    assert '5 cells instead of 7' in rows[2]
    assert rows[3].endswith(',')
    assert "column 'price': training does not have the category of 1 of 3" in said.err


@pytest.mark.parametrize(
    'kind, content, expected',
    [
        ('tabular', 'price,upkeep\nlow,low\n', "new.csv has no column 'thousand_km'"),
        ('tabular', '', 'new.csv is empty: expected a first line'),
        ('sequence', '\n\n', 'new.txt holds no text'),
        ('images', None, 'new holds no files that end in .png, .jpg'),
        ('sequence', '가'.encode('cp949'), 'new.txt, line 1 is not utf-8: save it as UTF-8'),
        ('sequence', None, 'new holds no files that end in .txt'),
        ('images', 'nothing', 'is no such file'),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    kind, content, expected, run_of, tmp_path, monkeypatch, capsys
):
    name = 'new' if content is None else {'tabular': 'new.csv', 'sequence': 'new.txt'}.get(kind)
    monkeypatch.chdir(tmp_path)
    if content is None:
        (tmp_path / name).mkdir()
    elif name:
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(content)
    code = run_here('predict.py', '-r', run_of(kind), name or 'gone', monkeypatch=monkeypatch)
    error = capsys.readouterr().err
    assert (code, error.count('\n')) == (2, 1), error
    assert expected in error


@pytest.mark.parametrize('output', ['.', 'gone/out.csv'])
def test_a_place_that_cannot_be_written_is_refused_before_the_pass(output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match='expected a file to write, in a folder that is there'):
        check_output(output, [])
    with pytest.raises(DataError, match='cannot be written: File name too long'):
        check_output(300 * 'x', [])
    check_output('out.csv', [])
    check_output(os.devnull, [os.devnull])


@pytest.mark.parametrize(
    'output', ['tab.csv', 'below/../tab.csv', 'link.csv', 'best.pth', 'b.csv', 'config.json']
)
def test_output_never_takes_the_place_of_an_input(output, run_of, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = copy_of(run_of('tabular'), tmp_path)
    inputs_of('tabular', tmp_path)[0].rename('tab.csv')
    Path('below').mkdir()
    Path('link.csv').symlink_to('tab.csv')
    Path('best.pth').symlink_to(run / 'model_best.pth')
    Path('config.json').symlink_to(run / 'config.json')
    Path('b.csv').write_text('a,b')  # -o *.csv gives -o the first of them
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    options = ('-r', run / 'best', 't*.csv', '-o', output)
    assert run_here('predict.py', *options, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'name another file' in error
    assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before


def test_folders_are_searched_alike_whatever_they_hold(tmp_path):
    """What systems leave in folders is no input; a link to a folder is one."""
    (tmp_path / 'in/.ipynb_checkpoints').mkdir(parents=True)
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'in/linked').symlink_to(tmp_path / 'elsewhere')
    for name in ('a.npy', '._a.npy', '.ipynb_checkpoints/a.npy', 'linked/b.npy', 'c.npz'):
        (tmp_path / 'in' / name).touch()
    left_out = Counter()
    found = ArrayInput([1]).files_in(tmp_path / 'in', left_out)
    assert [os.path.relpath(each, tmp_path / 'in') for each in found] == ['a.npy', 'linked/b.npy']
    assert left_out == {'hidden': 1, '.npz': 1}
    twice, _ = files_of([str(tmp_path / 'in/**')], ArrayInput([1]))
    assert len(twice) == len(set(twice)) and set(found) < set(twice)


@pytest.mark.parametrize('as_json', [False, True])
def test_names_of_files_that_are_no_unicode_lose_no_answer(tmp_path, as_json):
    name = os.fsdecode('서울.png'.encode('cp949'))
    output = tmp_path / (80 * '한' + '.csv')  # as long as a name may be
    write([{'input': name, 'prediction': '한글'}], argparse.Namespace(output=output, json=as_json))
    text = output.read_text(encoding='utf-8')
    assert '한글' in text and '.png' in text
    assert not as_json or json.loads(text)['input'] == name


@pytest.mark.parametrize(
    'given, dtype, reason',
    [
        ([[1, 2.5]], 'int64', 'expected whole numbers'),
        ([[1, 300]], 'uint8', 'expected whole numbers'),
        ([[1j, 2]], 'float32', 'expected numbers, and these are of the kind complex128'),
        (np.array([['2020-01-01', '2021-01-01']], 'datetime64[D]'), 'float32', 'of the kind date'),
        ([['1_5', '2']], 'float32', 'of the kind <U3'),
        ([[1e39, 2]], 'float32', 'expected finite numbers'),
        (np.zeros((0, 2)), 'float32', 'holds no arrays'),
        ([[1, 2.0]], 'int64', None),
    ],
)
def test_arrays_are_taken_as_they_are_or_not_at_all(given, dtype, reason, tmp_path):
    np.save(tmp_path / 'a.npy', np.array(given))
    input_format = ArrayInput([2], dtype)
    ((_, source),) = input_format.sources(tmp_path / 'a.npy')
    (why,) = readable(input_format, [source])[1]
    assert why is None if reason is None else reason in str(why)


def test_a_line_of_a_text_ends_where_editors_end_it(tmp_path):
    (tmp_path / 'a.txt').write_bytes('a\x0cb\u2028c\x85\r\n\nd\re'.encode())
    sources = TextInput(list('abcde')).sources(tmp_path / 'a.txt')
    assert [name.rpartition(':')[2] for name, _ in sources] == ['1', '3', '4']


def test_one_input_in_the_place_of_a_list_is_refused():
    for one in ('a.png', b'a', Path('a.png'), {'price': 3}):
        with pytest.raises(DataError, match='put it in'):
            rows_for(None, one, None)
    (row,) = rows_for(ImageInput(2, 'L', [0], [1]), [np.zeros((2, 2))], None)
    assert row == {'error': 'this is a ndarray: give the path of an image file, or its bytes'}


def test_what_is_not_a_row_for_each_input_is_refused(run_of):
    """A squeeze() turns (1, classes) into (classes,): as many answers, of one class each."""
    run = load_run(run_of('own_dataset') / 'best')
    whole = run.model
    for output, reason in (
        (lambda x: whole(x).squeeze(), r'gives \(2,\) for a batch of 1.*squeeze'),
        (lambda x: whole(x).sum(), r'gives \(\) for a batch of 1'),
        (lambda x: (whole(x), (x, x)), "output '1' of the model is a tuple"),
    ):
        run.model = output
        with pytest.raises(DataError, match=reason):
            run.predict([[0.5] * 32])


def changed(run: Path, folder: Path, change) -> Path:
    """A copy of the run whose checkpoint `change(state)` has been to."""
    path = copy_of(run, folder) / 'model_best.pth'
    state = checkpoint.load(path)
    change(state)
    path.unlink()
    checkpoint.save(state, path)
    return path


def test_a_checkpoint_without_class_names_gives_numbers_and_says_so_once(
    run_of, tmp_path, monkeypatch, capsys
):
    path = changed(run_of('sequence'), tmp_path, lambda state: state.pop('data'))
    (tmp_path / 'new.txt').write_text('the soup is good\nthe soup is bad\nthe fish is bad\n')
    code = run_here('predict.py', '-r', path, tmp_path / 'new.txt', monkeypatch=monkeypatch)
    said = capsys.readouterr()
    rows = list(csv.DictReader(said.out.splitlines()))
    assert code == 1 and {row['prediction'] for row in rows} <= {'0', '1', ''}
    assert rows[2]['error'] == "training does not have the word 'fish'"
    assert said.err.count('this run has no names of its classes') == 1


def test_runs_of_the_first_version_predict(tmp_path):
    run = load_run(unpack_run('tabular', tmp_path) / 'checkpoint-last.pth')
    row = {'price': 'low', 'upkeep': 'low', 'doors': 4, 'seats': 4, 'safety': 'high'}
    (found,) = run.predict([row | {'thousand_km': 20}])
    assert found['prediction'] in ('no', 'acceptable', 'good', 'very good')
    assert load_run(unpack_run('plateau', tmp_path)).predict([[0.5] * 32])[0]['prediction'] in '01'


def test_a_model_whose_code_changed_names_the_tensor(run_of, tmp_path):
    def rename(state):
        state['state_dict']['layers.9.weight'] = state['state_dict'].pop('layers.0.weight')

    with pytest.raises(CheckpointError, match=r'missing: layers\.0\.weight'):
        load_run(changed(run_of('own_dataset'), tmp_path, rename))


@pytest.mark.parametrize(
    'loader, reason',
    [
        ({'type': 'examples.shards.data.DigitShardsDataLoader'}, 'input_format'),
        (None, 'has no "data'),
    ],
)
def test_a_loader_of_ones_own_is_told_which_method_to_write(loader, reason, run_of, tmp_path):
    def rename(state):
        del state['config']['data_loader']
        state['config'] |= {'data_loader': loader} if loader else {}

    with pytest.raises(ConfigError, match=reason) as refused:
        _ = load_run(changed(run_of('own_dataset'), tmp_path, rename)).input_format
    assert '\n' not in str(refused.value)


def test_two_processes_write_what_one_does(run_of, tmp_path):
    run, (inputs, _) = run_of('sequence'), inputs_of('sequence', tmp_path)
    with open(inputs, 'a') as file:
        file.write('\nthe fish is bad\n')
    for n_processes in (1, 2):
        command = ['python', ROOT / 'predict.py', '-r', run, inputs, '-b', 101, '-d', 'cpu']
        command += ['-o', tmp_path / f'{n_processes}.csv']
        done = warm.run(
            [str(word) for word in command],
            cwd=tmp_path,
            env=dict(os.environ),
            timeout=100,
            n_processes=n_processes if n_processes > 1 else None,
        )
        assert 'of them cannot be read' in done.stderr, done.stderr
        assert done.returncode == 1
    one, two = (rows_of(tmp_path / f'{number}.csv') for number in (1, 2))
    assert [(row['input'], row['prediction'], row['error']) for row in one] == [
        (row['input'], row['prediction'], row['error']) for row in two
    ]


def test_pixels_are_standardized_to_the_bit_as_in_training():
    images = torch.randint(256, (7, 3, 9, 9), dtype=torch.uint8)
    mean, std = CifarDataLoader.mean, CifarDataLoader.std
    made = ImageInput(9, 'RGB', mean, std).batch(list(images.numpy()))
    assert torch.equal(torch.from_numpy(made), Standardize(mean, std)(images))


def test_each_shipped_loader_says_how_raw_input_becomes_a_batch():
    def format_of(name: str, state=None, **args):
        from parse_config import ConfigParser

        config = ConfigParser({'name': 'x', 'data_loader': {'type': name, 'args': args}})
        return input_format_of(config, state or {})

    assert format_of('MnistDataLoader') == ImageInput(
        28, 'L', MnistDataLoader.mean, MnistDataLoader.std
    )
    assert format_of('FashionMnistDataLoader').mean == [0.2860]
    assert format_of('CifarDataLoader').size == 32
    assert format_of('DigitsDataLoader').size == 28
    folder = format_of('ImageFolderDataLoader', mode='L')
    assert folder == ImageInput(64, 'L', [0.5], [0.25])
    assert described(describe(folder)) == folder
    learned = {'mean': [1.0], 'std': [2.0], 'categories': {'b': ['x']}, 'classes': []}
    table = format_of(
        'examples.tabular.data.CsvDataLoader', learned, numeric=['a'], categorical=['b']
    )
    assert table.sample({'a': '3', 'b': 'x'}) == ([3.0], [1])
    assert described(describe(table)) == table
    flip = {'type': 'RandomHorizontalFlip', 'args': {'p': 1.0}}
    turned = format_of('ImageFolderDataLoader', transform=flip, size=2)
    assert describe(turned) is None  # it is code


def test_a_transform_of_the_loader_is_applied():
    import io

    file = io.BytesIO()
    Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).resize((2, 2)).save(file, 'png')
    plain = ImageInput(2, 'L', [0.0], [1.0]).sample(file.getvalue())
    turned = ImageInput(2, 'L', [0.0], [1.0], lambda image: image.flip(-1)).sample(file.getvalue())
    assert (turned == plain[..., ::-1]).all() and not (turned == plain).all()


def focal_loss(output, target):
    log_p = F.log_softmax(output, dim=1).gather(1, target.unsqueeze(1))
    return (-((1 - log_p.exp()) ** 2) * log_p).mean()


@pytest.mark.parametrize(
    'loss, shape, meaning',
    [
        (nn.CrossEntropyLoss(), (4, 3), CLASSES),
        (nn.NLLLoss(), (4, 3), CLASSES),
        (focal_loss, (4, 3), CLASSES),
        (nn.BCEWithLogitsLoss(), (4, 1), LOGITS),
        (nn.BCELoss(), (4, 5), PROBABILITIES),
        (nn.MultiLabelSoftMarginLoss(), (4, 5), LOGITS),
        (nn.KLDivLoss(), (4, 3), CLASSES),
        (lambda output, target: nn.BCEWithLogitsLoss()(output.squeeze(1), target), (4, 1), LOGITS),
        (nn.MSELoss(), (4, 2), NUMBERS),
        (
            WeightedLosses([('a', nn.CrossEntropyLoss(), 0.5), ('b', focal_loss, 1)]),
            (4, 3),
            CLASSES,
        ),
        (lambda output, target: (output - target).abs().mean(), (4, 1), None),
    ],
)
def test_the_loss_knows_what_an_output_means(loss, shape, meaning):
    found, unknown = meanings_of(loss, torch.rand(shape))
    assert found == {'': meaning or NUMBERS}
    assert unknown == ([] if meaning else [''])


def test_several_outputs_have_columns_of_their_own():
    def loss(output, target):
        colours = F.cross_entropy(output['colour'], target['colour'])
        return colours + F.mse_loss(output['size'].squeeze(1), target['size'].float())

    output = {
        'colour': torch.tensor([[0.0, 2.0], [1.0, 0.0]]),
        'size': torch.tensor([[3.0], [4.0]]),
    }
    meanings, unknown = meanings_of(loss, output)
    assert meanings == {'colour': CLASSES, 'size': NUMBERS} and not unknown
    rows = answers({name: each.numpy() for name, each in output.items()}, meanings, ['red', 'blue'])
    assert [row['colour_prediction'] for row in rows] == ['blue', 'red']
    assert [row['size_value'] for row in rows] == [3.0, 4.0]


def test_names_of_classes_that_could_be_of_two_outputs_are_of_none():
    scores = np.array([[0.0, 2.0]])
    meanings = {'colour': CLASSES, 'shape': CLASSES, 'place': NUMBERS}
    (row,) = answers(dict.fromkeys(meanings, scores), meanings, ['red', 'blue'])
    assert row['colour_prediction'] == row['shape_prediction'] == '1'
    (row,) = answers({'colour': scores, 'place': scores}, meanings, ['red', 'blue'])
    assert row['colour_prediction'] == 'blue' and row['place_value_1'] == 2


@pytest.mark.parametrize('meaning', [CLASSES, LOGITS, NUMBERS])
def test_nan_is_no_answer(meaning):
    rows = answers({'': np.array([[np.nan, 1], [-np.inf, 1]])}, {'': meaning}, ['a', 'b'])
    assert rows[0] == {'error': 'the model gives nan, which is no number'}
    assert 'error' not in rows[1]


def test_yes_or_no_and_labels_and_numbers():
    one = answers({'': np.array([[-2000.0], [3.0]])}, {'': LOGITS}, ['no', 'yes'], top=5)
    assert [row['prediction'] for row in one] == ['no', 'yes']
    assert one[0]['probability'] == 1 and one[0]['prediction_2'] == 'yes'
    several = answers({'': np.array([[0.0, 9.0]])}, {'': LOGITS}, ['hat', 'coat'])
    assert several[0]['probability_hat'] == 0.5 and several[0]['probability_coat'] > 0.99
    assert answers({'': np.array([1.5])}, {'': NUMBERS}) == [{'value': 1.5}]
    assert answers({'': np.array([[1.0, 2.0]])}, {'': NUMBERS}) == [
        {'value_0': 1.0, 'value_1': 2.0}
    ]


def test_text_and_tables_refuse_what_is_none():
    assert TextInput(['a', 'b']).batch([np.array([1]), np.array([0, 1])]).values.tolist() == [
        [1, 0],
        [0, 1],
    ]
    with pytest.raises(ValueError, match='at least one word'):
        TextInput(['a']).sample('  ')
    with pytest.raises(ValueError, match='expected a row'):
        TableInput(['a'], [], [0.0], [1.0], {}).sample([1, 2])
