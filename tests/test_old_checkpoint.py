"""Laws of reading files that are not ours: the same content as torch would give, and nothing in
them is ever run."""

import collections
import io
import pathlib
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from armature.checkpoint import files as checkpoint
from armature.errors import CheckpointError
from tests import faults
from tests.conftest import SHARED
from tests.faults import (
    Config,
    Stranger,
    in_legacy,
    in_tar,
    in_zip,
    pickle_of,
    rezipped,
    same,
    small_state,
)

REAL = SHARED / 'data' / 'old-template-checkpoint' / 'checkpoint-epoch2.pth'
pytestmark = pytest.mark.filterwarnings(
    'ignore:This process .* is multi-threaded'
)  # the forks of faults.py start no thread


@pytest.fixture
def load(tmp_path):
    def load_bytes(content: bytes) -> dict:
        (tmp_path / 'old.pth').write_bytes(content)
        return checkpoint.load(tmp_path / 'old.pth')

    return load_bytes


class Object:
    """Pickles as an instance of a class that is not here, with some state, and entries as a class
    derived from dict has."""

    def __init__(self, name, state=None, entries=None):
        self.name, self.state, self.entries = name, state, entries

    def __reduce__(self):
        return (
            Stranger(self.name),
            (),
            self.state,
            None,
            iter(self.entries.items()) if self.entries else None,
        )


@pytest.mark.skipif(
    not REAL.is_file(), reason='the checkpoint written by the old template is not on this machine'
)
def test_a_checkpoint_of_the_old_template_is_read_whole():
    state = checkpoint.load(REAL)
    assert state.keys() == {'arch', 'epoch', 'state_dict', 'optimizer', 'monitor_best', 'config'}
    assert (state['arch'], state['epoch'], state['monitor_best']) == (
        'MnistModel',
        2,
        0.31524068117141724,
    )
    assert state['config']['lr_scheduler'] == {
        'type': 'StepLR',
        'args': {'step_size': 50, 'gamma': 0.1},
    }
    assert sum(value.numel() for value in state['state_dict'].values()) == 21840
    optimizer = torch.optim.Adam(torch.nn.ParameterList(state['state_dict'].values()).parameters())
    optimizer.load_state_dict(state['optimizer'])
    assert optimizer.param_groups[0]['lr'] == 0.001 and len(optimizer.state) == 8


@pytest.mark.parametrize('form', ['old zip', 'old legacy'])
def test_the_old_keys_are_read_from_both_formats(load, form):
    state, expected = load(faults.sample_files(small_state())[form]), small_state()
    assert state.keys() == {'arch', 'epoch', 'state_dict', 'optimizer', 'monitor_best', 'config'}
    assert all(
        same(state[key], expected[key]) for key in ('arch', 'epoch', 'state_dict', 'optimizer')
    )
    assert (
        state['monitor_best'] == 0.25
        and type(state['monitor_best']) is float
        and state['config'] == {'name': 'old'}
    )


OLD_DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
]
NEW_DTYPES = [
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float8_e4m3fn,
]  # torch itself cannot read them in the legacy format


@pytest.mark.parametrize(
    'write, dtypes', [(in_zip, OLD_DTYPES + NEW_DTYPES), (in_legacy, OLD_DTYPES)]
)
def test_tensors_of_every_type_and_layout_are_read_as_torch_reads_them(load, write, dtypes):
    numbers, table = torch.arange(24), torch.randn(4, 6)
    tensors = {str(dtype): numbers.to(dtype) for dtype in dtypes}
    tensors |= {
        'part': numbers[5:9],
        'transposed': table.t(),
        'steps': table[::2, 1::2],
        'same memory': table[1],
        'number': table[0, 0],
        'empty': torch.empty(0, 3),
        'expanded': torch.ones(1).expand(5),
    }
    content = write({'state_dict': tensors})
    expected = torch.load(io.BytesIO(content), weights_only=True)['state_dict']
    ours = load(content)['state_dict']
    assert same(ours, expected)
    assert all(ours[name].stride() == expected[name].stride() for name in expected)


def test_tensors_of_a_gpu_are_read_onto_the_cpu(load):
    for state in (small_state(), small_state() | {'config': Config()}):
        content = in_zip(state)
        moved = rezipped(content, pickle_of(content).replace(b'X\3\0\0\0cpu', b'X\6\0\0\0cuda:0'))
        assert same(load(moved)['state_dict'], small_state()['state_dict'])


@pytest.mark.parametrize('write', [in_zip, in_legacy])
@pytest.mark.parametrize(
    'prefix', ['', 'module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.']
)
def test_a_bare_state_dict_is_a_checkpoint_and_prefixes_of_wrappers_are_stripped(
    load, write, prefix
):
    model = torch.nn.Linear(2, 2)
    content = collections.OrderedDict(
        (prefix + name, value) for name, value in model.named_parameters()
    )
    state = load(write(content))
    assert state.keys() == {'state_dict'} and type(state['state_dict']) is dict
    assert same(
        state['state_dict'], {name: value.detach() for name, value in model.named_parameters()}
    )
    assert not any(value.requires_grad for value in state['state_dict'].values())


def test_a_prefix_that_not_all_names_have_stays(load):
    names = {'module.a': torch.ones(1), 'b': torch.ones(1)}
    assert (
        load(in_zip({'state_dict': names, 'config': Config()}))['state_dict'].keys() == names.keys()
    )


@pytest.mark.parametrize(
    'config',
    [
        Object('parse_config.ConfigParser', {'_config': {'name': 'a'}, 'resume': Path('x')}),
        Object('parse_config.ConfigParser', {'_ConfigParser__config': {'name': 'a'}}),
        Object(
            'utils.parse_config.ConfigParser',
            {'config': Object('easydict.EasyDict', None, {'name': 'a'})},
        ),
        collections.OrderedDict(name='a'),
        Object('easydict.EasyDict', {'name': 'a'}, {'name': 'a'}),
    ],
)
def test_the_config_is_found_in_whatever_held_it(load, config):
    assert load(in_zip({'state_dict': {}, 'config': config}))['config'] == {'name': 'a'}
    assert load(in_legacy({'state_dict': {}, 'config': config}))['config'] == {'name': 'a'}


def test_numbers_arrays_and_paths_become_plain(load):
    optimizer = {
        'f': np.float32(0.5),
        'i': np.int64(-3),
        'b': np.bool_(True),
        'array': np.arange(6.0).reshape(2, 3).T,
        'at': Path('a/b'),
        'windows': pathlib.PureWindowsPath('a/b'),
        'set': {1},
        'complex': 1j,
        'default': collections.defaultdict(dict, {1: 2}),
    }
    state = load(
        in_zip({'state_dict': {}, 'optimizer': optimizer, 'monitor_best': torch.tensor(0.5)})
    )
    assert torch.equal(
        state['optimizer'].pop('array'), torch.arange(6.0, dtype=torch.float64).view(2, 3).t()
    )
    assert state['optimizer'] == {
        'f': 0.5,
        'i': -3,
        'b': True,
        'at': 'a/b',
        'windows': 'a/b',
        'set': {1},
        'complex': 1j,
        'default': {1: 2},
    }
    assert type(state['optimizer']['i']) is int and state['monitor_best'] == 0.5


def test_what_cannot_be_plain_is_left_out_with_a_warning(load, caplog):
    optimizer = {'state': Object('project.Thing')}
    state = load(
        in_zip(
            {'state_dict': {}, 'epoch': 3, 'optimizer': optimizer, 'logger': Object('project.Log')}
        )
    )
    assert state == {'state_dict': {}, 'epoch': 3}
    assert len(caplog.records) == 1 and 'optimizer (for project.Thing)' in caplog.text


def test_objects_of_torch_beside_the_state_do_no_harm(load):
    model = torch.nn.Linear(2, 2)
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(model.parameters(), lr=0.1), 3)
    content = {'state_dict': model.state_dict(), 'model': model, 'lr_scheduler': scheduler}
    state = load(in_zip(content))
    assert state.keys() == {'state_dict'}
    assert same(state['state_dict'], dict(model.state_dict()))
    with pytest.raises(CheckpointError, match='more than plain data'):
        load(in_legacy(content))  # torch until 1.5 put a module's source text beside it


def test_a_pickled_model_is_refused_with_its_class(load):
    with pytest.raises(CheckpointError, match='model.model.MnistModel as a whole'):
        load(in_zip(Object('model.model.MnistModel', {'training': True})))


def test_no_module_that_a_file_names_is_imported(load, tmp_path, monkeypatch):
    (tmp_path / 'named.py').write_text('raise AssertionError')
    monkeypatch.syspath_prepend(tmp_path)
    assert load(
        in_zip(
            {
                'state_dict': {},
                'logger': Object('named.Log'),
                'config': Object('named.ConfigParser', {'config': {}}),
            }
        )
    )
    assert 'named' not in sys.modules


def test_the_form_of_the_first_torch_is_refused_without_being_opened(load):
    with pytest.raises(CheckpointError):
        load(in_tar(pickle.dumps({'state_dict': {}}, 2)))


def test_hostile_pickles_are_refused_and_run_nothing(tmp_path):
    result = faults.hostile(0, tmp_path)
    assert result.held == result.tried > 500, result.failures[:5]


def test_the_hostile_pickles_are_hostile(tmp_path):
    """The control: read by pickle, several of them do touch the marker."""
    marker, ran = tmp_path / 'it-ran', []

    def trial(payload):
        try:
            pickle.loads(b'\x80\x02' + payload + b'.')
        finally:
            return 'ran' if marker.exists() else 'did nothing'  # noqa: B012 (whatever it raised)

    payloads = faults.payloads(str(marker))
    for name in (
        'os.system',
        'builtins.eval',
        'builtins.open',
        'subprocess.call',
        'a chain of getattr',
        'INST',
        'OBJ',
        'a hook of a tensor',
    ):
        ran += [name] * (
            faults.forked({name: lambda name=name: trial(payloads[name])})[name] == 'ran'
        )
        marker.unlink(missing_ok=True)
    assert len(ran) == 8, ran
