"""Laws of loaders that read files: tables, image folders, idx files; what is wrong with them is one clear error. And the examples."""

import json
import re
import shlex

import numpy as np
import pytest
import torch

from armature.checkpoint import files as checkpoint
from armature.errors import ConfigError, DataError
from data_loader.data_loaders import CsvDataLoader, ImageFolderDataLoader, MnistDataLoader
from tests.conftest import ROOT, run_script

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
        print(json.dumps([os.waitstatus_to_exitcode(status), open(f'{sys.argv[2]}/{number}.txt').read()]))
    else:
        out = os.open(f'{sys.argv[2]}/{number}.txt', os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1), os.dup2(out, 2)
        sys.argv = arguments
        sys.path[0] = os.getcwd()
        runpy.run_path(arguments[0], run_name='__main__')
        break
"""


def run_all(folder, *commands):
    """[(exit code, output)] of `python command...` for each: processes of their own that share the seconds which imports take."""
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
        (ROWS, {'group_by': 'shop'}, "no column 'shop' to group by"),
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
        f'text = open({str(cars)!r}).read()\nopen({str(cars)!r}, "w").write(text[:5000].rpartition("\\n")[0])'
    )
    before, cut, after = run_all(
        tmp_path / 'out', ['test.py', '-r', file], [tmp_path / 'cut.py'], ['test.py', '-r', file]
    )
    assert before == after and before[0] == cut[0] == 0 and 'accuracy' in before[1]
    assert len(cars.read_text()) < 5000


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


def test_image_that_cannot_be_read_is_named_or_skipped(tmp_path, caplog):
    write_images(tmp_path)
    (tmp_path / 'dog' / '1.png').write_bytes(b'not an image')
    with pytest.raises(DataError, match=r'dog/1\.png cannot be read as an image'):
        list(ImageFolderDataLoader(str(tmp_path), 4))
    assert (
        sum(len(labels) for _, labels in ImageFolderDataLoader(str(tmp_path), 4, on_error='skip'))
        == 5
    )
    assert '1 of 6 samples cannot be read' in caplog.text


def test_empty_folder_and_missing_test_folder_are_errors(tmp_path):
    with pytest.raises(DataError, match='holds no images'):
        ImageFolderDataLoader(str(tmp_path), 4)
    with pytest.raises(DataError, match='no folder "test"'):
        ImageFolderDataLoader(str(tmp_path), 4, training=False)


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
        'type': 'CsvDataLoader',
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
        cut_short: r'train-images-idx3-ubyte is damaged: its head promises 15680 bytes \(20 x 28 x 28\), and 8984 follow',
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
    """The loader reads scikit-learn's file by itself; this notices when a new version keeps it elsewhere."""
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


# Examples

COMMANDS = re.findall(
    r'^\| `(python .*?)`', (ROOT / 'examples' / 'README.md').read_text(), flags=re.MULTILINE
)


def test_every_example_trains(tmp_path):
    commands = []
    for number, command in enumerate(COMMANDS):
        few_steps = [
            'trainer.epochs=1',
            'trainer.max_steps=8',
            f'trainer.save_dir={tmp_path / str(number)}',
        ]
        commands.append(
            [
                *shlex.split(command)[1:],
                '-d',
                'cpu',
                *(word for each in few_steps for word in ('--set', each)),
            ]
        )
    assert len(commands) >= 7
    for number, (code, output) in enumerate(run_all(tmp_path / 'out', *commands)):
        assert code == 0 and list((tmp_path / str(number)).rglob('checkpoint-last.pth')), (
            f'{COMMANDS[number]}\n{output}'
        )


def test_regression_recovers_the_line(tmp_path):
    run_script(
        'train.py', '-c', 'examples/regression/config.json', '--set', f'trainer.save_dir={tmp_path}'
    )
    line = checkpoint.load(next(tmp_path.rglob('model_best.pth')))['state_dict']
    assert line['line.weight'].item() == pytest.approx(0.7, abs=0.01) and line[
        'line.bias'
    ].item() == pytest.approx(0.3, abs=0.01)


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
    )
