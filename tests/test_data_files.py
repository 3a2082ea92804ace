"""Laws of loaders that read files: tables, image folders, idx files.

Odd input is read right, said once, or one clear error.
"""

import json
import os
import re
import unicodedata

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from armature.batch import PairOf
from armature.checkpoint import files as checkpoint
from armature.errors import ConfigError, DataError, UserError
from base import BaseDataLoader
from data_loader.data_loaders import (
    ImageFolderDataLoader,
    MnistDataLoader,
    WeightedRandomSampler,
)
from data_loader.datasets import Standardize
from examples.tabular.data import CsvDataLoader
from tests.conftest import ROOT, run_script
from tools.run_curves import save
from tools.show_data import draw, drawn_classes, show, show_batch
from tools.use_inputs import TableInput

ROWS = [
    ('1', 'red', 'yes'),
    ('2', 'blue', 'no'),
    ('3', 'red', 'yes'),
    ('4', 'blue', 'no'),
    ('', 'red', 'yes'),
    ('6', '?', 'no'),
    ('7', 'red', 'yes'),
    ('8', 'blue', 'no'),
]
COLUMNS = {'target': 'bought', 'numeric': ['size'], 'categorical': ['colour']}


FORKING = """
import json, os, runpy, sys
import torch, torchvision, sklearn.model_selection, pandas, tqdm, torch.utils.tensorboard
torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))]).step()
for number, arguments in enumerate(json.loads(sys.argv[1])):
    sys.stdout.flush()
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        said = open(f'{sys.argv[2]}/{number}.txt').read()
        print(json.dumps([os.waitstatus_to_exitcode(status), said]))
    else:
        out = os.open(f'{sys.argv[2]}/{number}.txt', os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1), os.dup2(out, 2)
        sys.argv = arguments
        sys.path[0] = os.getcwd()
        runpy.run_path(arguments[0], run_name='__main__')
        break
"""


def run_all(folder, *commands):
    """[(exit code, output)] of `python command...` for each.

    Processes of their own, which share the seconds that imports take.
    """
    folder.mkdir(exist_ok=True)
    commands = json.dumps([[str(word) for word in command] for command in commands])
    return [
        json.loads(line) for line in run_script('-c', FORKING, commands, folder).stdout.splitlines()
    ]


def write(path, rows=ROWS, head='size,colour,bought'):
    path.write_text('\n'.join([head, *(','.join(row) for row in rows)]) + '\n')
    return str(path)


def table(path, **options):
    return CsvDataLoader(path, batch_size=3, **{**COLUMNS, **options})


# Tables


def test_table_is_standardised_with_the_training_part_only(tmp_path):
    loader = table(write(tmp_path / 'a.csv'), validation_split=3, shuffle=False)
    train = [index for index in range(8) if index not in loader.valid_sampler]
    sizes = np.array([float(ROWS[index][0]) for index in train if ROWS[index][0]])
    fitted = loader.state_dict()
    assert fitted['mean'] == pytest.approx([sizes.mean()]) and fitted['std'] == pytest.approx(
        [sizes.std()]
    )
    (numbers, codes), target = loader.dataset.tensors
    assert numbers[4] == 0  # missing: the mean
    assert numbers[0].item() == pytest.approx((1 - sizes.mean()) / sizes.std())
    assert codes[5] == 0 and {int(codes[0]), int(codes[1])} == {1, 2}  # missing: the unknown code
    assert target.tolist() == [1, 0] * 4
    assert [len(batch[1]) for batch in loader] == [3, 2]


def test_category_unseen_in_training_gets_the_unknown_code(tmp_path):
    test = table(
        write(tmp_path / 'a.csv'),
        test_path=write(tmp_path / 'b.csv', [('1', 'green', 'yes')]),
        training=False,
    )
    with pytest.raises(DataError, match='load_state_dict'):
        next(iter(test))
    test.load_state_dict(table(write(tmp_path / 'a.csv')).state_dict())
    (((numbers, codes), target),) = test
    assert codes.tolist() == [[0]] and target.tolist() == [1]


@pytest.mark.parametrize(
    'kind, shape, dtype',
    [('class', (8,), torch.long), ('binary', (8, 1), torch.float), ('number', (8, 1), torch.float)],
)
def test_target_has_the_shape_that_its_losses_want(tmp_path, kind, shape, dtype):
    rows = [(size or '0', colour, str(index % 2)) for index, (size, colour, _) in enumerate(ROWS)]
    target = table(write(tmp_path / 'a.csv', rows), target_kind=kind).dataset.tensors[1]
    assert (
        target.shape == shape and target.dtype == dtype and target.flatten().tolist() == [0, 1] * 4
    )


def test_rows_of_a_group_stay_together(tmp_path):
    rows = [(str(index), f'shop {index // 2}', ('yes', 'no')[index % 2]) for index in range(8)]
    loader = table(
        write(tmp_path / 'a.csv', rows), categorical=[], group_by='colour', validation_split=0.3
    )
    train, valid = (
        {rows[index][1] for index in part} for part in (loader.indices(0), loader.valid_sampler)
    )
    assert valid and not train & valid


@pytest.mark.parametrize(
    'rows, options, said',
    [
        (
            ROWS,
            {'numeric': ['weight']},
            r"a\.csv has no column 'weight': there are 'size', 'colour', 'bought'",
        ),
        ([*ROWS, ('1', 'red')], {}, r'a\.csv, line 10: 2 cells instead of 3'),
        ([*ROWS, ('1', 'red', 'no', 'no')], {}, r'a\.csv, line 10: 4 cells instead of 3'),
        (
            [*ROWS, ('big', 'red', 'no')],
            {},
            r"a\.csv, line 10, column 'size': 'big' is not a number",
        ),
        ([*ROWS, ('1', 'red', '')], {}, r"a\.csv, line 10, column 'bought': '' is missing"),
        (
            [*ROWS, ('1', 'red', 'perhaps')],
            {'target_kind': 'binary'},
            r"'bought' is \"binary\", and has 3 values",
        ),
        ([], {}, 'has no rows'),
        (ROWS, {'group_by': 'shop'}, "no column 'shop': there are"),
        (ROWS, {'numeric': [], 'categorical': []}, 'name the columns'),
    ],
    ids=lambda value: None if isinstance(value, (list, dict)) else value[:25],
)
def test_bad_tables_are_refused(tmp_path, rows, options, said):
    with pytest.raises(DataError, match=said):
        table(write(tmp_path / 'a.csv', rows), **options)


def test_what_a_table_learned_is_saved_with_the_run_and_used_by_test(tmp_path):
    cars = tmp_path / 'cars.csv'
    cars.write_text((ROOT / 'examples/tabular/cars.csv').read_text())
    settings = [
        f'trainer.save_dir={tmp_path}',
        'trainer.epochs=1',
        'trainer.monitor=off',
        f'data_loader.args.path={cars}',
    ]
    run_script(
        'train.py',
        '-c',
        'examples/tabular/config.json',
        *(word for setting in settings for word in ('--set', setting)),
    )
    (file,) = tmp_path.rglob('checkpoint-last.pth')
    fitted = checkpoint.load(file)['parts']['data_loader']
    assert (
        fitted['classes'] == ['acceptable', 'good', 'no', 'very good'] and len(fitted['mean']) == 1
    )
    (tmp_path / 'cut.py').write_text(
        f'text = open({str(cars)!r}).read()\n'
        f'open({str(cars)!r}, "w").write(text[:5000].rpartition("\\n")[0])'
    )
    before, cut, after = run_all(
        tmp_path / 'out', ['test.py', '-r', file], [tmp_path / 'cut.py'], ['test.py', '-r', file]
    )
    assert before == after and before[0] == cut[0] == 0 and 'accuracy' in before[1]
    assert len(cars.read_text()) < 5000


def csv_file(path, head, rows, separator=','):
    path.write_text('\n'.join(separator.join(map(str, row)) for row in (head, *rows)) + '\n')
    return str(path)


def test_tabular_loader_is_found_where_the_first_version_had_it():
    from data_loader import data_loaders

    assert data_loaders.CsvDataLoader is CsvDataLoader


@pytest.mark.parametrize('cell', ['Infinity', '-inf', '1e999', '1e300', '3.5e38'])
def test_cell_that_float32_cannot_hold_is_missing_and_said(tmp_path, caplog, cell):
    rows = [(cell if row == 7 else row, 'ab'[row % 2]) for row in range(100)]
    path = csv_file(tmp_path / 'a.csv', ('rate', 'kind'), rows)
    loader = CsvDataLoader(path, 'kind', 10, numeric=['rate'])
    column = loader.dataset.tensors[0][0][:, 0]
    assert column[7] == 0 and column.isfinite().all() and column.std() == pytest.approx(1, abs=0.1)
    assert caplog.messages == [
        f"{path}, line 9, column 'rate': {cell!r} (one of 1) is too large for a number: missing"
    ]
    with pytest.raises(DataError, match='too large for a target'):
        CsvDataLoader(path, 'rate', 10, categorical=['kind'], target_kind='number')


def test_cell_far_from_all_others_is_said(tmp_path, caplog):
    rows = [('1e20' if row == 7 else row, row % 2) for row in range(100)]
    CsvDataLoader(csv_file(tmp_path / 'a.csv', 'xy', rows), 'y', 10, numeric=['x'])
    assert "line 9, column 'x': '1e20' is so far out that the others look alike" in caplog.text
    caplog.clear()
    rows = [(int(row == 7), row % 2) for row in range(100)]  # a rare event
    CsvDataLoader(csv_file(tmp_path / 'b.csv', 'xy', rows), 'y', 10, numeric=['x'])
    assert not caplog.text


@pytest.mark.parametrize(
    'values', [[0.1], [1e6], [0], [''], [0.1, 0.10000000149], [1e15, 1e15 + 1]], ids=str
)
def test_column_that_does_not_vary_is_ignored_and_said_once(tmp_path, caplog, values):
    rows = [(values[row % len(values)], row, 'ab'[row % 3 == 0]) for row in range(1000)]
    train = csv_file(tmp_path / 'a.csv', ('gain', 'x', 'kind'), rows)
    test = csv_file(tmp_path / 'b.csv', ('gain', 'x', 'kind'), [(0.2, 1, 'a'), (7e5, 2, 'b')])
    columns = {'target': 'kind', 'batch_size': 10, 'numeric': ['gain', 'x']}
    loader = CsvDataLoader(train, **columns)
    tested = CsvDataLoader(train, test_path=test, training=False, **columns)
    for _ in range(2):
        tested.load_state_dict(loader.state_dict())
    for each in (loader, tested):
        assert each.dataset.tensors[0][0][:, 0].abs().max() < 1e-6
        assert sum('does not vary' in note for note in each.notes()) == 1
    assert caplog.text.count("column 'gain' does not vary") == 2  # in each of two files


def test_column_that_varies_little_but_truly_is_kept(tmp_path):
    rows = [(1.7e9 + 3600 * row, row % 2) for row in range(50)]  # seconds since 1970
    loader = CsvDataLoader(csv_file(tmp_path / 'a.csv', 'xy', rows), 'y', 10, numeric=['x'])
    assert loader.dataset.tensors[0][0].std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    'cells, classes',
    [
        (['10', '9', '2', '1'], ['1', '2', '9', '10']),
        (['1', '1.0', '" 1"', '2.'], ['1', '2']),
        (['-1', '1', '+1', '0', '-0', '-0.0'], ['-1', '0', '1']),
        (['0.5', '10', '2.5'], ['0.5', '2.5', '10']),
        (['01', '1', '1.0'], ['01', '1']),  # such as a postcode
        (['b', 'a', '10', '9'], ['10', '9', 'a', 'b']),
    ],
)
def test_classes_are_in_numeric_order_and_one_however_they_are_written(tmp_path, cells, classes):
    rows = [(row, cell) for row, cell in enumerate(cells * 3)]
    path = csv_file(tmp_path / 'a.csv', ('x', 'kind'), rows)
    loader = CsvDataLoader(path, 'kind', 4, numeric=['x'], categorical=['kind'])
    assert loader.class_names == classes == loader.state_dict()['categories']['kind']
    tested = CsvDataLoader(path, 'kind', 4, numeric=['x'], test_path=path, training=False)
    old = {'mean': [0.0], 'std': [1.0], 'categories': {}, 'classes': ['1.0', '2.0']}
    if set(classes) == {'1', '2'}:  # as an older run wrote them
        tested.load_state_dict(old)
        assert tested.dataset.tensors[1].tolist() == [0, 0, 0, 1] * 3


@pytest.mark.parametrize('nan', ['NAN', 'Nan', '-nan', '+NaN'])
def test_nan_is_missing_however_it_is_written_and_never_a_class(tmp_path, nan):
    rows = [(row, cell, row) for row, cell in enumerate([nan, '2', '10', '1'])]
    path = csv_file(tmp_path / 'a.csv', ('x', 'kind', 'y'), rows)
    columns = {'numeric': ['x'], 'categorical': ['kind']}
    loader = CsvDataLoader(path, 'y', 4, **columns)
    categories = loader.state_dict()['categories']
    assert categories == {'kind': ['1', '2', '10']}
    used = TableInput(**columns, mean=[0], std=[1], categories=categories)
    assert used.notes([{'kind': nan}]) == []
    for target in ('class', 'number'):
        with pytest.raises(DataError, match='is missing, and it is the target'):
            CsvDataLoader(path, 'kind', 4, numeric=['x'], target_kind=target)


def test_class_of_the_validation_part_alone_is_told_the_way_out(tmp_path):
    rows = [(row, 'rare' if row == 0 else 'ab'[row % 2]) for row in range(40)]
    path = csv_file(tmp_path / 'a.csv', ('x', 'kind'), rows)
    with pytest.raises(DataError, match='\'rare\' is none of the classes .* "stratify": true'):
        for n_valid in range(1, 40):
            CsvDataLoader(path, 'kind', 4, numeric=['x'], validation_split=n_valid)
    CsvDataLoader(path, 'kind', 4, numeric=['x'], validation_split=n_valid, stratify=True)


def test_categories_that_training_does_not_have_are_counted(tmp_path, caplog):
    columns = {'target': 'y', 'batch_size': 4, 'categorical': ['x']}
    loader = CsvDataLoader(csv_file(tmp_path / 'a.csv', 'xy', [('red', 0), ('7', 1)]), **columns)
    for cells, n_unseen, level in (
        (['blue', 'green', '', 'red'], 2, 'INFO'),
        (['blue', 'green', 'red', 'pink'], 3, 'WARNING'),
        (['7.0', '7', 'red', '?'], 0, None),
    ):
        caplog.clear()
        caplog.set_level('INFO', 'data')
        test = csv_file(tmp_path / 'b.csv', 'xy', [(cell, 0) for cell in cells])
        tested = CsvDataLoader('a.csv', test_path=test, training=False, **columns)
        tested.load_state_dict(loader.state_dict())
        said = [each for each in caplog.records if 'training does not have' in each.message]
        assert [each.levelname for each in said] == [level] * (level is not None)
        assert not said or f'the category of {n_unseen} of 4 rows' in said[0].message


@pytest.mark.parametrize(
    'cell, decimal, value',
    [
        ('3,5', ',', 3.5),
        ('1.234,5', ',', 1234.5),
        ('-1.234.567', ',', -1234567),
        ('1,234.5', '.', 1234.5),
        ("1'234.5", '.', 1234.5),
        ('1 234', '.', 1234),
        ('3.5', ',', None),
        ('0.123', ',', None),
        ('3,5', '.', None),
        ('1,234', None, None),
        ('1_000', None, None),
    ],
)
def test_separators_in_numbers_are_those_that_the_config_says(tmp_path, cell, decimal, value):
    path = csv_file(tmp_path / 'a.csv', 'xy', [(cell, 0), (0, 1)], separator=';')
    if value is None:
        with pytest.raises(DataError, match=f"line 2, column 'x': .*{cell}.* is not a number"):
            CsvDataLoader(path, 'y', 2, numeric=['x'], decimal=decimal)
    else:
        loader = CsvDataLoader(path, 'y', 2, numeric=['x'], decimal=decimal)
        assert loader.state_dict()['mean'] == [value / 2]


@pytest.mark.parametrize(
    'cell, said',
    [
        ('2024-01-05', 'write dates as numbers'),
        ('5.1.24 12:30', 'write dates as numbers'),
        ('01/05/2024', 'write dates as numbers'),
        ('True', 'name the column in "categorical"'),
        ('no', 'name the column in "categorical"'),
        ('1,5', 'say in "decimal"'),
        ('12 %', 'leave a cell empty'),
        ('-', 'leave a cell empty'),
    ],
)
def test_what_is_no_number_is_refused_with_what_to_do(tmp_path, cell, said):
    path = csv_file(tmp_path / 'a.csv', 'xy', [(1, 0), (cell, 1)], separator=';')
    with pytest.raises(DataError, match=f"line 3, column 'x': .* is not a number: .*{said}"):
        CsvDataLoader(path, 'y', 2, numeric=['x'])


@pytest.mark.parametrize('separator', [',', ';', '\t', '|'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be'])
def test_separators_and_unicode_files_are_recognised(tmp_path, separator, encoding):
    path = csv_file(tmp_path / 'a.csv', ('rate', 'kind'), [(1, '한글'), (2, 'é')], separator)
    text = (tmp_path / 'a.csv').read_text(encoding='utf-8')
    (tmp_path / 'a.csv').write_text(text, encoding=encoding)
    named = {'encoding': 'cp949'} if encoding in ('utf-8-sig', 'utf-16') else {}  # a mark is truer
    loader = CsvDataLoader(path, 'kind', 2, numeric=['rate'], **named)
    assert loader.class_names == ['é', '한글']
    with pytest.raises(DataError, match="no column 'rat': there are 'rate', 'kind'"):
        CsvDataLoader(path, 'kind', 2, numeric=['rat'])


def test_hangul_is_the_same_text_by_letters_and_by_syllables(tmp_path):
    path = csv_file(tmp_path / 'a.csv', ('도시', '등급'), [('서울', '가'), ('부산', '나')])
    loader = CsvDataLoader(path, '등급', 2, categorical=['도시'])
    text = (tmp_path / 'a.csv').read_text(encoding='utf-8')
    (tmp_path / 'b.csv').write_text(unicodedata.normalize('NFD', text), encoding='utf-8')
    again = CsvDataLoader(str(tmp_path / 'b.csv'), '등급', 2, categorical=['도시'])
    assert again.state_dict() == loader.state_dict() and loader.class_names == ['가', '나']


@pytest.mark.parametrize('encoding, cell', [('cp949', '서울'), ('cp1252', 'é'), ('cp1251', 'Я')])
def test_other_encodings_are_asked_for(tmp_path, encoding, cell):
    path = csv_file(tmp_path / 'a.csv', 'xy', [(1, 'a'), (2, cell)])
    (tmp_path / 'a.csv').write_bytes((tmp_path / 'a.csv').read_text('utf-8').encode(encoding))
    with pytest.raises(DataError, match=r'a\.csv, line 3 is not utf-8: .*"encoding" of a table'):
        CsvDataLoader(path, 'y', 2, numeric=['x'])
    loader = CsvDataLoader(path, 'y', 2, numeric=['x'], encoding=encoding)
    assert cell in loader.class_names
    with pytest.raises(DataError, match='unknown encoding: utf8000'):
        CsvDataLoader(path, 'y', 2, numeric=['x'], encoding='utf8000')


@pytest.mark.parametrize(
    'text, said',
    [
        ('x,y,,\n1,a,,\n2,b,,\n', None),  # as spreadsheets write empty columns
        ('x,y,note,note\n1,a,c,d\n2,b,e,LONG\n', None),
        ('x,y,x\n1,a,1\n', "several columns have the same name, 'x'"),
        ('x,y,note\n1,a,"cut\n2,b,d\n', 'line 3: .*A cell that begins with a quote ends with one'),
        ('x,y,note\n1,a,"cut\n2,b,"d\n', 'line 3: .*A cell that begins with a quote ends with one'),
        ('x,y,note\n1,a,"a ""b"", c\nd"\n2,b,5"\n', None),
    ],
)
def test_no_row_is_lost_and_no_column_taken_for_another(text, said, tmp_path):
    (tmp_path / 'a.csv').write_text(text.replace('LONG', 200_000 * 'f'))
    if said is None:
        assert CsvDataLoader(str(tmp_path / 'a.csv'), 'y', 2, numeric=['x']).n_samples == 2
    else:
        with pytest.raises(DataError, match=said):
            CsvDataLoader(str(tmp_path / 'a.csv'), 'y', 2, numeric=['x'])


@pytest.mark.parametrize('columns', [{'numeric': ['size', 'size']}, {'categorical': []}], ids=str)
def test_other_columns_than_in_training_are_refused(tmp_path, columns):
    path = write(tmp_path / 'a.csv')
    tested = table(path, test_path=path, training=False, **columns)
    with pytest.raises(DataError, match=r"training had 1 numeric .* \['colour'\]: name the same"):
        tested.load_state_dict(table(path).state_dict())


def test_fingerprint_of_a_table_is_of_its_cells(tmp_path):
    one, same, other = (
        table(write(tmp_path / f'{name}.csv', rows), validation_split=split).fingerprint()
        for name, rows, split in (('a', ROWS, 0), ('b', ROWS, 2), ('c', [*ROWS[:-1], ROWS[0]], 0))
    )
    assert one == same and one['number of samples'] == 8 and one != other


# Images and idx files


def write_images(folder, n=3):
    from PIL import Image

    for name in ('cat', 'dog'):
        (folder / name).mkdir(parents=True)
        for number in range(n):
            Image.fromarray(np.full((9, 7, 3), 40 * number, dtype=np.uint8)).save(
                folder / name / f'{number}.png'
            )


def test_image_folders_for_training_validation_and_test(tmp_path):
    for part, n in (('train', 4), ('valid', 2), ('test', 1)):
        write_images(tmp_path / part, n)
    loader = ImageFolderDataLoader(str(tmp_path), 8, size=6, shuffle=False)
    ((images, labels),) = loader
    assert (
        images.shape == (8, 3, 6, 6)
        and images.dtype == torch.float
        and labels.tolist() == [0] * 4 + [1] * 4
    )
    assert images[1, 0, 0, 0].item() == pytest.approx((40 / 255 - 0.5) / 0.25)
    assert len(loader.split_validation().dataset) == 4
    assert len(ImageFolderDataLoader(str(tmp_path), 8, training=False).dataset) == 2
    with pytest.raises(ConfigError, match='has a folder "valid"'):
        ImageFolderDataLoader(str(tmp_path), 8, validation_split=0.5)
    (tmp_path / 'test' / 'fox').mkdir()
    with pytest.raises(DataError, match="'fox', which the training data does not have"):
        ImageFolderDataLoader(str(tmp_path), 8, training=False)


def test_image_that_cannot_be_read_is_named(tmp_path):
    write_images(tmp_path)
    (tmp_path / 'dog' / '1.png').write_bytes(b'not an image')
    with pytest.raises(DataError, match=r'dog/1\.png cannot be read as an image'):
        list(ImageFolderDataLoader(str(tmp_path), 4))


def test_empty_folder_and_missing_test_folder_are_errors(tmp_path):
    with pytest.raises(DataError, match='holds no images'):
        ImageFolderDataLoader(str(tmp_path), 4)
    with pytest.raises(DataError, match='no folder "test"'):
        ImageFolderDataLoader(str(tmp_path), 4, training=False)


def save_image(path, values, **options):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    image = values if isinstance(values, Image.Image) else Image.fromarray(np.asarray(values))
    image.save(path, **options)


def folders_of(root, *paths):
    """Black pictures at these paths."""
    for path in paths:
        save_image(root / path, np.zeros((8, 8, 3), np.uint8))
    return ImageFolderDataLoader(str(root), 2, size=8)


@pytest.mark.parametrize(
    'litter',
    [
        'train/.ipynb_checkpoints/0.png',
        'train/cat/._0.png',
        'train/cat/.thumbs/0.png',
        '__MACOSX/train/cat/0.png',
        'train/dog/@eaDir/0.png',
        'train/cat/notes.txt',
        '.git/0.png',
        'lost+found/0.png',
        'train/$RECYCLE.BIN/0.png',
    ],
)
def test_what_systems_leave_in_folders_is_skipped(tmp_path, litter):
    (tmp_path / litter).parent.mkdir(parents=True)
    (tmp_path / litter).write_bytes(b'\0\5\x16\7')
    loader = folders_of(
        tmp_path, *(f'{part}/{name}/0.png' for part in ('train', 'test') for name in ('cat', 'dog'))
    )
    assert loader.class_names == ['cat', 'dog'] and len(loader.dataset) == 2
    assert len(list(loader)) == 1
    if litter.startswith('train/cat/notes'):
        assert '1 files .txt left out' in loader.dataset.notes()


@pytest.mark.parametrize(
    'train, valid, test',
    [('Train', 'val', 'TEST'), ('training', 'Validation', 'testing'), ('TRAIN', 'VAL', 'Test')],
)
def test_parts_are_found_in_whatever_spelling(tmp_path, train, valid, test):
    loader = folders_of(
        tmp_path,
        *(f'{part}/{name}/{part}.PNG' for part in (train, valid, test) for name in ('cat', 'dog')),
    )
    tested = ImageFolderDataLoader(str(tmp_path), 2, size=8, training=False)
    for part, each in ((train, loader), (valid, loader.split_validation()), (test, tested)):
        assert [path.rpartition('/')[2] for path in each.dataset.paths] == [f'{part}.PNG'] * 2
        assert each.dataset.targets == [0, 1]


@pytest.mark.parametrize(
    'files, said',
    [
        (['train/a/0.png', 'Train/a/0.png'], 'Train and train: leave one'),
        (['pets/a/0.png', 'pets/b/0.png'], 'is .*/pets the folder that you mean'),
        (['train/pets/a/0.png', 'train/pets/b/0.png'], 'is .*/train/pets the folder that you mean'),
        (['pets/train/a/0.png', 'pets/test/a/0.png'], 'is .*/pets the folder that you mean'),
        (['0.png', '1.png'], 'holds no images: expected a folder for each class'),
        (['train/0.png', 'val/0.png'], 'train has no class folders: expected one for each class'),
        (['a/0.png', 'b/0.png', 'test/a/0.png'], "the folder 'test' .* beside it 'a', 'b'"),
        (['train/steam/0.png', 'bus/0.png'], "'train' .* beside it 'bus', .* or put both into"),
        (['train/a/0.png', 'test/0.png'], "beside it 'test', .* with class folders: make it one"),
        (['train/a/0.png', 'c/notes.txt', 'dev/a/0.png'], "beside it 'dev', .* move it elsewhere"),
        (['test/a/0.png', 'val/a/0.png'], 'beside it no training data'),
        (['a/0.png', 'b/notes.txt'], '/b holds no images'),
        (['a/0.png', 'b/.0.png'], '/b holds no images'),
    ],
)
def test_folders_that_could_mean_two_things_are_one_clear_line(tmp_path, files, said):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b'')
    with pytest.raises(DataError, match=said) as error:
        ImageFolderDataLoader(str(tmp_path), 2)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['train', 'test', 'val'])
def test_class_may_be_called_like_a_part(tmp_path, name):
    assert folders_of(tmp_path, f'{name}/0.png', 'bus/0.png', 'car/0.png').class_names == sorted(
        [name, 'bus', 'car']
    )
    inside = [f'train/{each}/0.png' for each in (name, 'bus')]
    assert folders_of(tmp_path / 'two', *inside).class_names == sorted([name, 'bus'])


def test_links_are_followed_and_loops_end(tmp_path):
    folders_of(tmp_path / 'elsewhere', 'fox/0.png', 'fox/deep/1.png', 'hen/2.png')
    root = tmp_path / 'root'
    folders_of(root, 'cat/0.png', 'dog/0.png')
    (root / 'fox').symlink_to(tmp_path / 'elsewhere' / 'fox')  # a class
    (root / 'dog' / 'hens').symlink_to(tmp_path / 'elsewhere' / 'hen')  # a folder in one
    (root / 'cat' / 'round').symlink_to(root / 'cat')  # a loop
    (root / 'cat' / '1.png').symlink_to(tmp_path / 'elsewhere' / 'hen' / '2.png')
    (root / 'cat' / 'images.png').mkdir()  # a folder with an image's ending
    loader = ImageFolderDataLoader(str(root), 2, size=8)
    assert loader.class_names == ['cat', 'dog', 'fox']
    assert loader.dataset.targets == [0, 0, 1, 1, 2, 2] and len(list(loader)) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_folder_that_may_not_be_read_is_named(tmp_path):
    folders_of(tmp_path, 'cat/0.png', 'dog/deep/0.png')
    (tmp_path / 'dog' / 'deep').chmod(0)
    with pytest.raises(DataError, match='deep cannot be read: Permission denied'):
        ImageFolderDataLoader(str(tmp_path), 2)


def test_test_folder_without_a_class_keeps_the_numbers_of_training(tmp_path):
    folders_of(
        tmp_path,
        'train/ant/0.png',
        'train/bee/0.png',
        'train/cat/0.png',
        'test/bee/0.png',
        'test/cat/0.png',
        'val/cat/0.png',
    )
    (tmp_path / 'test' / 'ant').mkdir()
    loader = ImageFolderDataLoader(str(tmp_path), 2, size=8)
    tested = ImageFolderDataLoader(str(tmp_path), 2, size=8, training=False)
    assert tested.dataset.targets == [1, 2] and loader.split_validation().dataset.targets == [2]
    assert tested.class_names == ['ant', 'bee', 'cat']
    assert "no images of the class 'ant'" in tested.dataset.notes()


def test_folder_of_other_data_takes_the_numbers_of_training_by_name(tmp_path):
    trained = folders_of(tmp_path / 'all', 'ant/0.png', 'bee/0.png', 'cat/0.png')
    later = folders_of(tmp_path / 'later', 'bee/0.png', 'cat/0.png')
    later.use_class_names(trained.class_names)
    assert sorted(label for _, labels in later for label in labels.tolist()) == [1, 2]
    other = folders_of(tmp_path / 'other', 'bee/0.png', 'fox/0.png')
    with pytest.raises(DataError, match="the class 'fox'"):
        other.use_class_names(trained.class_names)


def test_class_of_one_image_is_trained_on_when_split_by_class(tmp_path):
    folders_of(
        tmp_path,
        *(f'cat/{n}.png' for n in range(9)),
        *(f'dog/{n}.png' for n in range(9)),
        'fox/0.png',
    )
    loader = ImageFolderDataLoader(str(tmp_path), 2, validation_split=0.3, stratify=True)
    trained = [loader.dataset.targets[index] for index in loader.indices(0)]
    assert trained.count(2) == 1 and 3 <= trained.count(0) <= 7


def grey(value, dtype=np.uint8):
    return np.full((8, 8), value, dtype)


def coloured(mode, *value):
    from PIL import Image

    return Image.new(mode, (8, 8), value)


def palette(first, **info):
    image = coloured('P', 1)
    image.putpalette([*first, 10, 200, 30])
    image.info.update(info)
    return image


@pytest.mark.parametrize(
    'file, image, mode, expected',
    [
        ('a.png', grey(8000, np.uint16), 'L', [31]),
        ('b.png', grey(65535, np.uint16), 'RGB', [255, 255, 255]),
        ('c.tif', grey(48000, np.uint16), 'L', [187]),
        ('d.tif', grey(48000, '>u2'), 'L', [187]),
        ('e.pgm', grey(48000, np.uint16), 'L', [187]),
        ('f.tif', grey(0.2, np.float32), 'L', [51]),
        ('w.tif', grey(1.0000001, np.float32), 'L', [255]),
        ('z.tif', grey(-1e-7, np.float32), 'L', [0]),
        ('g.png', palette([0, 0, 0]), 'RGB', [10, 200, 30]),
        ('h.gif', palette([0, 0, 0]), 'RGB', [10, 200, 30]),
        ('i.tif', coloured('CMYK', 0, 255, 255, 0), 'RGB', [255, 0, 0]),
        ('r.tif', coloured('LAB', 255, 128, 128), 'L', [255]),
        ('j.jpg', coloured('CMYK', 0, 0, 0, 255), 'L', [0]),
        ('k.png', coloured('RGBA', 9, 9, 9, 0), 'RGB', [255, 255, 255]),
        ('l.webp', coloured('RGBA', 0, 0, 0, 0), 'L', [255]),
        ('m.png', coloured('LA', 50, 255), 'L', [50]),
        ('n.png', coloured('RGBA', 1, 2, 3, 255), 'RGB', [1, 2, 3]),
        ('o.png', palette([0, 0, 0], transparency=1), 'RGB', [255, 255, 255]),
        ('p.bmp', coloured('1', 1), 'L', [255]),
        ('q.png', grey(77), 'RGB', [77, 77, 77]),
    ],
    ids=lambda value: value if isinstance(value, str) and value[1:2] == '.' else '',
)
def test_pixels_are_scaled_by_their_mode(tmp_path, file, image, mode, expected):
    for name in ('cat', 'dog'):
        save_image(tmp_path / name / file, image)
    loader = ImageFolderDataLoader(str(tmp_path), 2, size=4, mode=mode)
    assert loader.dataset[1][0][:, 2, 2].tolist() == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(
    'file, image, said',
    [
        ('a.tif', grey(70000, np.int32), 'pixels go from 70000 to 70000'),
        ('b.tif', grey(200, np.float32), 'pixels go from 200 to 200'),
        ('c.tif', grey(np.nan, np.float32), 'pixels go from'),
        ('d.tif', grey(1.001, np.float32), 'pixels go from 1.001 to 1.001'),
        ('e.png', None, 'it is empty'),
        ('f.png', b'<html>not found', 'cannot identify'),
        ('g.png', b'\x89PNG\r\n\x1a\n', 'cannot identify'),
    ],
    ids=lambda value: value if isinstance(value, str) and value[1:2] == '.' else '',
)
def test_image_whose_scale_nobody_knows_is_named(tmp_path, file, image, said):
    folders_of(tmp_path, 'cat/0.png', 'dog/0.png')
    if isinstance(image, bytes) or image is None:
        (tmp_path / 'cat' / file).write_bytes(image or b'')
    else:
        save_image(tmp_path / 'cat' / file, image)
    with pytest.raises(DataError, match=f'cat/{file} cannot be read as an image .*{said}'):
        list(ImageFolderDataLoader(str(tmp_path), 3, size=8))


@pytest.mark.parametrize('ending', ['jpg', 'tif', 'png', 'webp'])
def test_image_is_turned_as_its_exif_says(tmp_path, ending):
    from PIL import Image

    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255  # light above; orientation 6 is shown turned clockwise: light on the right
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ('cat', 'dog'):
        save_image(tmp_path / name / f'0.{ending}', pixels, exif=exif)
    (image, _) = ImageFolderDataLoader(str(tmp_path), 2, size=32).dataset[0]
    assert image[:, :, 20:].min() > 200 and image[:, :, :12].max() < 50


@pytest.mark.parametrize('ending', ['gif', 'png', 'webp', 'tif'])
def test_first_frame_of_several_is_taken(tmp_path, ending):
    from PIL import Image

    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (50, 150, 250)]
    for name in ('cat', 'dog'):
        save_image(
            tmp_path / name / f'0.{ending}', frames[0], save_all=True, append_images=frames[1:]
        )
    (image, _) = ImageFolderDataLoader(str(tmp_path), 2, size=8).dataset[0]
    assert image.float().mean() == pytest.approx(50, abs=2)


def write_idx(folder, n=20, part='train', rows=28):
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (n, rows, 28), dtype=np.uint8)
    for name, values in (
        (f'{part}-images-idx3-ubyte', images),
        (f'{part}-labels-idx1-ubyte', np.arange(n, dtype=np.uint8) % 10),
    ):
        head = bytes([0, 0, 8, values.ndim]) + b''.join(
            size.to_bytes(4, 'big') for size in values.shape
        )
        (folder / name).write_bytes(head + values.tobytes())
    return images


def test_constants_of_standardising_are_moved_to_a_device_once():
    """A copy to a GPU in each step would wait for it."""
    standardize = Standardize([0.5], [0.5])
    scales = []
    for _ in range(2):
        images = torch.zeros(2, 1, 3, 3, dtype=torch.uint8, device='meta')
        assert standardize(images).device.type == 'meta'
        scales.append(standardize._scales[images.device][0])
    assert scales[0] is scales[1]
    assert torch.equal(standardize(torch.zeros(1, 2, 2)), torch.full((1, 2, 2), -1.0))


def test_floats_are_standardised_as_they_are_and_bytes_are_scaled():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    standardize, given = Standardize([0.3], [0.2]), pixels / 255
    assert torch.equal(standardize(pixels), standardize(given))
    assert given.max() == 1, 'what is given stays as it is'


def test_mnist_is_read_and_standardised_as_torchvision_does(tmp_path):
    from torchvision import datasets, transforms

    write_idx(tmp_path / 'MNIST' / 'raw')
    write_idx(tmp_path / 'MNIST' / 'raw', part='t10k')
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    theirs = datasets.MNIST(str(tmp_path), transform=transform)
    ((images, labels),) = MnistDataLoader(str(tmp_path), 20, shuffle=False)
    assert torch.equal(images, torch.stack([image for image, _ in theirs])) and labels.tolist() == [
        label for _, label in theirs
    ]


def cut_short(folder):
    write_idx(folder / 'MNIST' / 'raw')
    write_idx(folder / 'MNIST' / 'raw', part='t10k')
    path = folder / 'MNIST' / 'raw' / 'train-images-idx3-ubyte'
    path.write_bytes(path.read_bytes()[:9000])
    return {'type': 'MnistDataLoader', 'args': {'data_dir': str(folder), 'batch_size': 4}}


def unreadable(folder):
    write_images(folder / 'images')
    (folder / 'images' / 'cat' / '0.png').write_bytes(b'\x89PNG\r\n\x1a\n')
    return {
        'type': 'ImageFolderDataLoader',
        'args': {
            'data_dir': str(folder / 'images'),
            'batch_size': 6,
            'num_workers': 2,
            'mode': 'L',
            'size': 28,
        },
    }


def ragged(folder):
    return {
        'type': 'examples.tabular.data.CsvDataLoader',
        'args': {'path': write(folder / 'a.csv', [*ROWS, ('1',)]), 'batch_size': 4, **COLUMNS},
    }


def too_many_classes(folder):
    for number in range(12):
        write_images(folder / 'many' / str(number), 1)
    for path in list((folder / 'many').glob('*/cat/0.png')):
        path.rename(path.parent.parent / '0.png')
    return {
        'type': 'ImageFolderDataLoader',
        'args': {'data_dir': str(folder / 'many'), 'batch_size': 6, 'mode': 'L', 'size': 28},
    }


def test_train_says_what_is_wrong_with_data_in_one_line(tmp_path):
    cases = {
        cut_short: r'MNIST in .* can be neither read nor downloaded',
        unreadable: r'sample 0: .*cat/0\.png cannot be read as an image',
        ragged: r'a\.csv, line 10: 1 cells instead of 3',
        too_many_classes: 'the data has the label 11, and the model gives 10 scores',
    }
    commands = []
    for bad in cases:
        config = {
            'name': 'bad',
            'arch': {'type': 'MnistModel'},
            'data_loader': bad(tmp_path),
            'loss': 'nll_loss',
            'optimizer': {'type': 'SGD', 'args': {'lr': 0.1}},
            'trainer': {'epochs': 1, 'save_dir': str(tmp_path / 'saved'), 'verbosity': 0},
        }
        (tmp_path / f'{bad.__name__}.json').write_text(json.dumps(config))
        commands.append(['train.py', '-c', tmp_path / f'{bad.__name__}.json', '-d', 'cpu'])
    for (code, output), said in zip(run_all(tmp_path / 'out', *commands), cases.values()):
        assert code == 2 and 'Traceback' not in output
        errors = [line for line in output.splitlines() if line.startswith('error')]
        assert (
            len(errors) == 1 and re.search(said, errors[0]) and output.strip().endswith(errors[0])
        )


def test_digits_are_those_of_scikit_learn():
    """The loader reads scikit-learn's file itself: would a new version keep it elsewhere?"""
    from sklearn.datasets import load_digits

    from data_loader.datasets import MEAN, STD, digits

    classes = torch.cat([digits(True).tensors[1], digits(False).tensors[1]])
    brightness = (
        torch.cat([digits(True).tensors[0], digits(False).tensors[0]])
        .mul(STD)
        .add(MEAN)
        .mean(dim=(1, 2, 3))
    )
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    order = torch.cat([order[360:], order[:360]])
    assert torch.equal(classes, torch.from_numpy(data.target)[order])
    assert torch.allclose(
        brightness, torch.from_numpy(data.images / 16).float().mean(dim=(1, 2))[order], atol=0.02
    )


# What show_data says


def shown(capsys, loader):
    show('train', loader, PairOf(None, pairs_only=False))
    return capsys.readouterr().out


@pytest.mark.parametrize(
    'sampler',
    [
        WeightedRandomSampler('balanced'),
        WeightedRandomSampler('balanced', num_samples=50),
        WeightedRandomSampler([1, 1, 1, 1]),
        None,
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_show_data_counts_the_classes_that_are_there_whatever_a_sampler_draws(capsys, sampler):
    classes = torch.tensor([0] * 322 + [1] * 57 + [2] * 714 + [3] * 27)
    data = TensorDataset(torch.randn(len(classes), 2), classes)
    loader = BaseDataLoader(data, 100, True, 0.0, 0, sampler=sampler)
    said = shown(capsys, loader)
    assert 'train: 1,120 samples, batches of 100' in said
    assert 'classes      0: 322, 1: 57, 2: 714, 3: 27\n' in said
    drawn = torch.bincount(classes[loader.indices(0)], minlength=4).tolist()
    line = ', '.join(f'{number}: {count}' for number, count in enumerate(drawn))
    assert (f'draws {sum(drawn):,} samples: {line}\n' in said) == (sampler is not None)
    # No range of one batch beside the classes of all.
    assert f'target       ({min(100, sum(drawn))},) int64\n' in said


def test_show_data_counts_only_the_part_and_names_its_classes(tmp_path, capsys):
    rows = [(row, 'cat' if row % 3 else 'dog') for row in range(30)]
    path = csv_file(tmp_path / 'a.csv', ('size', 'kind'), rows)
    options = {'validation_split': 6, 'stratify': True, 'numeric': ['size']}
    loader = CsvDataLoader(path, 'kind', 4, **options)
    said = shown(capsys, loader) + shown(capsys, loader.split_validation())
    assert re.findall('classes +(.*)', said) == ['cat: 16, dog: 8', 'cat: 4, dog: 2']
    binary = CsvDataLoader(path, 'kind', 4, target_kind='binary', numeric=['size'])
    assert 'classes      cat: 20, dog: 10' in shown(capsys, binary)
    number = CsvDataLoader(path, 'size', 4, target_kind='number', categorical=['kind'])
    assert 'classes' not in shown(capsys, number)


def test_show_data_gives_no_class_to_what_has_none(capsys, tmp_path):
    data = TensorDataset(torch.rand(6, 1, 4, 4), torch.tensor([0, 1, 1, -1, -1, 7]))
    data.classes = ['$0-$10', '_숫자']
    said = shown(capsys, loader := BaseDataLoader(data, 6, False, 0.0, 0))
    assert 'classes      -1: 2, $0-$10: 1, _숫자: 2, 7: 1\n' in said
    show_batch(next(iter(loader)), data.classes, str(tmp_path / 'a.png'), 'of $1 to $2')
    figure = drawn_classes({'train': {'$0-$10': 1, '_숫자': 2}}, 'of $1 to $2')
    save(figure, tmp_path / 'b.png')
    assert (tmp_path / 'a.png').is_file() and (tmp_path / 'b.png').is_file()


def test_show_data_says_what_was_left_out_and_unreadable(tmp_path, capsys):
    rows = [('inf', 1, 'a'), (2, 1, 'b'), (3, 1, 'a')]
    path = csv_file(tmp_path / 'a.csv', ('x', 'flat', 'kind'), rows)
    said = shown(capsys, CsvDataLoader(path, 'kind', 4, numeric=['x', 'flat']))
    assert "'inf' (one of 1) is too large" in said and "'flat' does not vary" in said

    folders_of(tmp_path / 'images', *(f'{name}/{n}.png' for name in 'ab' for n in range(3)))
    for n in (3, 4):
        save_image(tmp_path / 'images' / 'a' / f'{n}.png', grey(9000 + 9000 * n, np.uint16))
    (tmp_path / 'images' / 'a' / 'notes.txt').write_text('')
    (tmp_path / 'images' / 'b' / '.0.png').write_text('')
    (tmp_path / 'images' / 'b' / '5.jpg').write_bytes(b'')
    loader = ImageFolderDataLoader(str(tmp_path / 'images'), 4, size=8, shuffle=False)
    said = shown(capsys, loader)
    for each in (
        '9 samples',
        'classes      a: 5, b: 4',
        '1 samples cannot be read: ',
        'b/5.jpg cannot be read as an image (it is empty)',
        '1 files .txt left out',
        '1 files hidden left out',
        '5 samples are there twice',
    ):
        assert each in said


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_pictures_of_a_batch_are_drawn(tmp_path, channels):
    from PIL import Image

    images = torch.rand(9, channels, 6, 5)
    draw(images, list(range(9)), str(tmp_path / 'data.png'), 'nine')
    with Image.open(tmp_path / 'data.png') as picture:
        assert picture.width > 8 * 80 and picture.height > 2 * 80
    with pytest.raises(UserError, match='data.xyz: the picture cannot be written'):
        draw(images, list(range(9)), str(tmp_path / 'data.xyz'), 'nine')


def test_show_data_draws_a_batch_and_finds_samples_in_two_splits(tmp_path):
    write_images(tmp_path / 'train', 4)
    write_images(tmp_path / 'test', 1)  # black ones, as the first of each training class
    section = {
        'type': 'ImageFolderDataLoader',
        'args': {'data_dir': str(tmp_path), 'batch_size': 8, 'size': 16, 'validation_split': 2},
    }
    config = {
        'name': 'shown',
        'arch': {'type': 'MnistModel'},
        'data_loader': section,
        'loss': 'nll_loss',
        'optimizer': {'type': 'SGD', 'args': {'lr': 0.1}},
        'trainer': {'epochs': 1},
    }
    (tmp_path / 'config.json').write_text(json.dumps(config))
    said = run_script(
        '-m', 'tools.show_data', '-c', tmp_path / 'config.json', '-o', tmp_path / 'data.png'
    ).stdout
    assert (
        'train: 6 samples, batches of 8' in said
        and 'input        (6, 3, 16, 16) float32, from -2 to -0.' in said
    )
    assert (
        re.search(r'in (train|valid) and in test: 1 samples \(such as \d = \d\)', said)
        and (tmp_path / 'data.png').is_file()
        and (tmp_path / 'data_classes.png').is_file()
    )


def test_picture_of_the_classes_names_axes_and_splits_and_marks_the_rarest():
    counts = {'train': {'cat': 30, 'dog': 10}, 'test': {'cat': 1, 'dog': 3}}
    (axes,) = drawn_classes(counts, 'Pets').axes
    assert axes.get_title() == 'Pets (rarest in train: dog, 10)'
    assert (axes.get_xlabel(), axes.get_ylabel()) == ('class', 'share of the split')
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(legend) == ['if all were alike', 'test: 4 samples', 'train: 40 samples']
    assert [bar.get_height() for bar in axes.patches] == [0.75, 0.25, 0.25, 0.75]
    assert [label.get_color() for label in axes.get_xticklabels()] == ['black', 'red']
