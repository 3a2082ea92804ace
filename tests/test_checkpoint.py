"""Laws of checkpoint files: written whole or not at all, verified, plain data, the right one found,
the right ones kept."""

import hashlib
import logging
import os
import resource
import shutil
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from armature.checkpoint import files as checkpoint
from armature.compare import first_difference
from armature.errors import CheckpointError
from armature.run import saving
from tests import faults
from tests.conftest import run_script
from tests.faults import forked, same, small_state

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.filterwarnings(
    'ignore:This process .* is multi-threaded'
)  # the forks of faults.py start no thread


@pytest.fixture
def run(tmp_path):
    """A run folder with three epochs, the second the best."""
    folder = tmp_path / 'models' / 'name' / '20261121_120000'
    folder.mkdir(parents=True)
    for epoch in (1, 2, 3):
        names = ['checkpoint-last.pth', f'checkpoint-epoch{epoch}.pth'] + ['model_best.pth'] * (
            epoch == 2
        )
        checkpoint.save(small_state(epoch), *(folder / name for name in names))
    return folder


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.unlink()  # the names of one save share their file
    path.write_bytes(content)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Content


def test_a_saved_state_comes_back_equal(tmp_path):
    checkpoint.save(small_state(), tmp_path / 'a.pth')
    assert same(checkpoint.load(tmp_path / 'a.pth'), small_state())


@pytest.mark.parametrize(
    'make',
    [
        lambda: torch.optim.lr_scheduler.MultiStepLR,
        lambda: torch.optim.lr_scheduler.OneCycleLR,
        lambda: torch.optim.lr_scheduler.ReduceLROnPlateau,
        lambda: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts,
    ],
)
def test_a_schedulers_state_comes_back_equal(tmp_path, make):
    arguments = {
        'MultiStepLR': {'milestones': [2, 2, 5]},
        'OneCycleLR': {'max_lr': 1.0, 'total_steps': 9},
        'CosineAnnealingWarmRestarts': {'T_0': 3},
    }
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1, momentum=0.9)
    scheduler = make()(optimizer, **arguments.get(make().__name__, {}))
    checkpoint.save(
        {'state_dict': {}, 'parts': {'scheduler': scheduler.state_dict()}}, tmp_path / 'a.pth'
    )
    assert same(checkpoint.load(tmp_path / 'a.pth')['parts']['scheduler'], scheduler.state_dict())


@pytest.mark.parametrize(
    'value, plain',
    [
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_('x'), 'x'),
        (Path('a/b'), 'a/b'),
        (OrderedDict(a=np.float32(1)), {'a': 1.0}),
        ({1: (2, [3])}, {1: (2, [3])}),
        ({1, 2}, {1, 2}),
        (Counter('aab'), Counter('aab')),
        (torch.float16, torch.float16),
        (torch.Size([2]), torch.Size([2])),
        (2**300, 2**300),
        (1 + 2j, 1 + 2j),
        (None, None),
        ({np.int64(1): 2}, {1: 2}),
    ],
)
def test_plain_values(value, plain):
    result = checkpoint.to_plain(value)
    assert result == plain and type(result) is type(plain)


def test_arrays_become_tensors_and_parts_of_tensors_leave_the_rest_behind():
    assert torch.equal(
        checkpoint.to_plain(np.arange(6, dtype='u4')[::-2]),
        torch.tensor([5, 3, 1], dtype=torch.uint32),
    )
    part = checkpoint.to_plain(torch.arange(1000)[:3])
    assert part.untyped_storage().nbytes() == 24
    assert not checkpoint.to_plain(torch.nn.Parameter(torch.ones(1))).requires_grad


def itself():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    'value',
    [
        object(),
        print,
        b'x',
        np.datetime64('2026-01-01'),
        np.array([None]),
        frozenset(),
        np.longdouble(1),
        torch.eye(2).to_mkldnn(),
        itself(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_plain_is_named_with_its_place(value, tmp_path):
    with pytest.raises(CheckpointError, match=r'optimizer\.state\.0'):
        checkpoint.save({'state_dict': {}, 'optimizer': {'state': {0: value}}}, tmp_path / 'a.pth')
    assert not files(tmp_path)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'state_dict': None}, 'state_dict'),
        ({'state_dict': {0: 1}}, "'state_dict' has names that are no text"),
        ({'epoch': 'three'}, "'epoch' is a str"),
        ({'epoch': True}, "'epoch' is a bool"),
        ({'optimizer': [1]}, "'optimizer' is a list"),
        ({'config': 'x'}, "'config'"),
        ({'epoch': -1}, "'epoch' is -1, below 0"),
        ({'step': None}, "'step' is a NoneType"),
        ({'samples': 'x'}, "'samples' is a str"),
        ({'parts': None}, "'parts' is a NoneType"),
        ({'data': 'x'}, "'data' is a str"),
        ({'format': 3}, 'format 3'),
    ],
)
def test_content_of_another_shape_is_refused(tmp_path, change, message):
    torch.save({'format': 2} | small_state() | change, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path / 'a.pth')


def test_nothing_in_a_file_of_somebody_else_is_as_if_it_were_not_there(tmp_path):
    torch.save({'state_dict': {}, 'epoch': None, 'optimizer': None}, tmp_path / 'a.pth')
    assert checkpoint.load(tmp_path / 'a.pth') == {'state_dict': {}}


# Damage


def test_flipped_bits_are_noticed(tmp_path):
    assert_held(faults.flips(150, tmp_path))


def test_flipped_bits_in_a_file_of_somebody_else_are_noticed_or_harmless(tmp_path):
    assert_held(faults.foreign_flips(150, tmp_path))


def test_truncations_are_noticed(tmp_path):
    assert_held(faults.truncations(60, tmp_path))


def test_fuzzed_files_load_or_are_refused(tmp_path):
    assert_held(faults.fuzz(150, tmp_path))


def test_a_save_that_is_killed_leaves_whole_files(tmp_path):
    assert_held(faults.save_crashes(25, tmp_path))


def test_a_prune_that_is_killed_leaves_what_is_to_stay(tmp_path):
    assert_held(faults.prune_crashes(10, tmp_path))


def test_going_back_that_is_killed_leaves_what_was_there(tmp_path):
    assert_held(faults.going_back_crashes(10, tmp_path))


def test_a_sharded_save_that_is_killed_leaves_heads_with_all_of_their_parts(tmp_path):
    assert_held(faults.sharded_crashes(10, tmp_path))


def test_a_head_whose_parts_are_damaged_or_missing_does_not_count(tmp_path):
    assert_held(faults.parts(12, tmp_path))


def test_a_full_disk_is_one_line_and_damages_nothing(tmp_path):
    assert_held(faults.full_disks(40, tmp_path))


def assert_held(result):
    assert result.held == result.tried > 0, result.failures[:3]


def test_the_digest_is_in_the_file_and_torch_reads_it_also_with_mmap(tmp_path):
    path = tmp_path / 'a.pth'
    checkpoint.save(small_state(), path)
    content = path.read_bytes()
    assert content[-71:] == b'sha256:' + hashlib.sha256(content[:-71]).hexdigest().encode()
    assert list(tmp_path.iterdir()) == [path]
    for mmap in (False, True):
        assert same(torch.load(path, weights_only=True, mmap=mmap), small_state())


def test_a_file_whose_digest_was_cut_off_is_damaged(tmp_path):
    checkpoint.save(small_state(), tmp_path / 'a.pth')
    content = (tmp_path / 'a.pth').read_bytes()
    (tmp_path / 'a.pth').write_bytes(content[:-71])
    with pytest.raises(CheckpointError, match='damaged'):
        checkpoint.load(tmp_path / 'a.pth')


def test_a_sha256_of_the_first_version_beside_a_file_is_honoured_and_goes_with_it(tmp_path):
    path, sidecar = tmp_path / 'a.pth', tmp_path / 'a.pth.sha256'
    torch.save(small_state(), path)
    sidecar.write_text(f'{hashlib.sha256(path.read_bytes()).hexdigest()}  a.pth\n')
    assert same(checkpoint.load(path), small_state())
    torch.save(small_state(2), path)  # whole, and another than was written
    with pytest.raises(CheckpointError, match='damaged'):
        checkpoint.load(path)
    checkpoint.save(small_state(3), path)
    assert not sidecar.exists() and checkpoint.load(path)['epoch'] == 3


def test_a_file_for_which_torch_would_return_uninitialized_memory_is_refused(tmp_path):
    checkpoint.save(small_state(), tmp_path / 'a.pth')
    with (
        zipfile.ZipFile(tmp_path / 'a.pth') as before,
        zipfile.ZipFile(tmp_path / 'b.pth', 'w') as after,
    ):
        for info in before.infolist():
            content, info.external_attr = (
                before.read(info),
                0x10 * info.filename.endswith('/data/0'),
            )
            after.writestr(info, content)
    with pytest.raises(CheckpointError, match='marked as a folder'):
        checkpoint.load(tmp_path / 'b.pth')


def test_compressed_records_are_refused_before_they_are_inflated(tmp_path):
    torch.save({'state_dict': {'a': torch.zeros(10**6)}}, tmp_path / 'a.pth')
    with (
        zipfile.ZipFile(tmp_path / 'a.pth') as before,
        zipfile.ZipFile(tmp_path / 'b.pth', 'w', zipfile.ZIP_DEFLATED) as after,
    ):
        for name in before.namelist():
            after.writestr(name, before.read(name))
    with pytest.raises(CheckpointError, match='compressed'):
        checkpoint.load(tmp_path / 'b.pth')


def test_records_that_share_their_bytes_are_refused(tmp_path):
    torch.save({'state_dict': {'a': torch.zeros(9), 'b': torch.zeros(9)}}, tmp_path / 'a.pth')
    with (
        zipfile.ZipFile(tmp_path / 'a.pth') as before,
        zipfile.ZipFile(tmp_path / 'b.pth', 'w') as after,
    ):
        for info in before.infolist():
            after.writestr(zipfile.ZipInfo(info.filename), before.read(info))
        first, second = (after.getinfo(f'a/data/{key}') for key in '01')
        second.header_offset = first.header_offset
    with pytest.raises(CheckpointError, match='directory of records'):
        checkpoint.load(tmp_path / 'b.pth')


@pytest.mark.parametrize(
    'content', [b'', b'PK\3\4', b'{"epoch": 1}', b'\x80\x02}.', b'PK\5\6' + bytes(18), bytes(1000)]
)
def test_what_is_no_checkpoint_is_one_error_that_names_the_file(tmp_path, content):
    (tmp_path / 'a.pth').write_bytes(content)
    with pytest.raises(CheckpointError, match='a.pth is no checkpoint'):
        checkpoint.load(tmp_path / 'a.pth')


def test_a_folder_or_nothing_is_one_error(tmp_path):
    for path in (tmp_path, tmp_path / 'absent.pth'):
        with pytest.raises(CheckpointError, match='cannot be read'):
            checkpoint.load(path)


# Disks that do not take it


def test_when_the_disk_is_full_the_previous_generation_stays(run):
    before = files(run)

    def trial():
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (5000, 5000)
        )  # as a full disk: a write ends half-way
        try:
            checkpoint.save(small_state(4), run / 'checkpoint-last.pth', run / 'model_best.pth')
        except CheckpointError as error:
            return str(error)

    message = forked({'full': trial})['full']
    assert (
        'checkpoint-last.pth could not be written' in message
        and 'bytes; ' in message
        and 'are free' in message
    )
    assert files(run) == before


def test_in_a_folder_that_has_vanished_it_is_one_error(run):
    shutil.rmtree(run)
    with pytest.raises(CheckpointError, match='could not be written'):
        checkpoint.save(small_state(), run / 'checkpoint-last.pth')


@pytest.mark.parametrize('function', ['fsync', 'replace', 'unlink', 'open'])
@pytest.mark.parametrize('failing', range(1, 8))
def test_whichever_call_fails_every_file_is_whole_and_nothing_is_left_over(
    run, monkeypatch, function, failing
):
    real, calls = getattr(os, function), []

    def fails_once(*args, **kwargs):
        calls.append(args)
        if len(calls) == failing:
            raise OSError(30, 'Read-only file system')
        return real(*args, **kwargs)

    monkeypatch.setattr(os, function, fails_once)
    try:
        checkpoint.save(small_state(4), run / 'checkpoint-last.pth', run / 'checkpoint-epoch4.pth')
    except CheckpointError as error:
        assert 'Read-only' in str(error)
    else:
        assert (
            len(calls) < failing or function == 'unlink'
        )  # not being able to remove left-overs is no reason to stop
    monkeypatch.undo()
    states = [checkpoint.load(path) for path in run.glob('*.pth')]
    assert (
        all(any(same(state, small_state(epoch)) for epoch in (1, 2, 3, 4)) for state in states)
        and len(states) >= 5
    )
    assert not [path for path in run.iterdir() if path.suffix == '.tmp'] or function == 'unlink'


def test_without_hard_links_the_names_get_files_of_their_own(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(95, 'Operation not supported')

    monkeypatch.setattr(os, 'link', no_links)
    checkpoint.save(small_state(), tmp_path / 'a.pth', tmp_path / 'b.pth')
    assert (tmp_path / 'a.pth').stat().st_nlink == 1
    assert all(same(checkpoint.load(tmp_path / name), small_state()) for name in ('a.pth', 'b.pth'))


def test_a_file_can_be_read_while_it_is_saved_again_and_again(tmp_path):
    path = tmp_path / 'checkpoint-last.pth'
    checkpoint.save(small_state(), path)
    writer = os.fork()
    if writer == 0:
        for epoch in range(2, 60):
            checkpoint.save(small_state(epoch), path)
        os._exit(0)
    loaded = 0
    while os.waitpid(writer, os.WNOHANG) == (0, 0):
        assert checkpoint.load(path)['epoch'] >= 1
        loaded += 1
    assert loaded > 3


# Choosing


def test_a_run_folder_means_its_newest(run, monkeypatch):
    assert (
        checkpoint.find(str(run))
        == checkpoint.find(str(run / 'last'))
        == run / 'checkpoint-last.pth'
    )
    assert checkpoint.find(str(run / 'best')) == run / 'model_best.pth'
    assert checkpoint.find(str(run / 'checkpoint-epoch1.pth')) == run / 'checkpoint-epoch1.pth'
    monkeypatch.chdir('/')
    assert checkpoint.find('models/name/20261121_120000/best', run.parents[2]).samefile(
        run / 'model_best.pth'
    )


def test_epochs_are_counted_not_spelled(tmp_path):
    for epoch in (9, 10):
        checkpoint.save(small_state(epoch), tmp_path / f'checkpoint-epoch{epoch}.pth')
    assert checkpoint.find(str(tmp_path)).name == 'checkpoint-epoch10.pth'


def test_a_damaged_newest_falls_back_with_one_warning_that_names_both(run, caplog):
    flip(run / 'checkpoint-last.pth')
    flip(run / 'checkpoint-epoch3.pth')
    assert checkpoint.find(str(run)) == run / 'checkpoint-epoch2.pth'
    assert len(caplog.records) == 1 and caplog.records[0].levelno == logging.WARNING
    assert all(
        name in caplog.text
        for name in ('checkpoint-last.pth', 'checkpoint-epoch3.pth', 'checkpoint-epoch2.pth')
    )


def test_when_all_are_damaged_or_none_is_there_it_is_one_error(run):
    for path in run.glob('*.pth'):
        flip(path)
    with pytest.raises(CheckpointError, match='every checkpoint'):
        checkpoint.find(str(run))
    with pytest.raises(CheckpointError, match='do you mean its newest run'):
        checkpoint.find(str(run.parent))
    with pytest.raises(CheckpointError, match='is not there'):
        checkpoint.find(str(run / 'absent.pth'))
    with pytest.raises(CheckpointError, match='cannot be read: File name too long'):
        checkpoint.find('x' * 5000)
    assert checkpoint.newest_valid(run.parent) is None


def test_a_folder_above_runs_names_the_newest_that_holds_a_checkpoint(run, tmp_path):
    later = run.with_name('later')
    (run.parent / 'empty').mkdir()
    shutil.copytree(run, later)
    (later / 'run.json').write_text('{"begun": "9998-01-01"}')
    (tmp_path / 'log' / 'name' / 'later').mkdir(parents=True)
    for folder in (run.parent, run.parent.parent, tmp_path):
        with pytest.raises(CheckpointError, match=f'do you mean its newest run, {later}[?]'):
            checkpoint.find(str(folder))
    with pytest.raises(CheckpointError, match='log holds no checkpoint: -r takes one, or'):
        checkpoint.find(str(tmp_path / 'log'))


def test_the_newest_run_is_the_one_begun_last(tmp_path):
    for age, name in enumerate(('20260101_000000', '20251231_235959_9', 'my_run')):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    (tmp_path / 'notes.txt').touch()
    assert checkpoint.newest_run(tmp_path).name == '20260101_000000'
    assert checkpoint.newest_run(tmp_path / 'absent') is None
    record = '{"begun": "2002-01-01T00:00:00+00:00"}'  # later than those files
    (tmp_path / 'my_run' / 'run.json').write_text(record)
    assert checkpoint.newest_run(tmp_path).name == 'my_run'


# Keeping


def test_prune_keeps_the_newest_and_the_best(run):
    saving.prune(run, keep=1)
    assert {path.name for path in run.glob('*.pth')} == {
        'checkpoint-last.pth',
        'checkpoint-epoch3.pth',
        'model_best.pth',
    }


def test_prune_removes_nothing_while_no_newer_file_is_whole(run):
    flip(run / 'checkpoint-epoch3.pth')
    before = files(run)
    saving.prune(run, keep=1)
    assert files(run) == before
    saving.prune(run, keep=2)
    assert not (run / 'checkpoint-epoch1.pth').exists() and (run / 'checkpoint-epoch2.pth').exists()


def test_a_saver_keeps_the_numbered_files_that_it_is_to_keep(tmp_path):
    saver = faults.saver_in(tmp_path, keep_last=2)
    for epoch in range(1, 6):
        saver.write(small_state(epoch), [checkpoint.LAST, f'checkpoint-epoch{epoch}.pth'])
    assert names_in(tmp_path) == {
        'checkpoint-last.pth', 'checkpoint-epoch4.pth', 'checkpoint-epoch5.pth'
    }  # fmt: skip


def test_saving_looks_into_a_folder_of_many_files_only_once(tmp_path, monkeypatch):
    looked, glob = [], Path.glob
    monkeypatch.setattr(Path, 'glob', lambda *args: looked.append(args) or glob(*args))
    saver = faults.saver_in(tmp_path)
    for epoch in range(1, 6):
        saver.write(small_state(epoch), [checkpoint.LAST, f'checkpoint-epoch{epoch}.pth'])
    assert len(looked) == 1


# Going back


@pytest.fixture
def line(tmp_path):
    """Five epochs, numbered by their Saver; the first and the fourth were the best so far."""
    folder = tmp_path / 'line'
    folder.mkdir()
    saver = faults.saver_in(folder)
    for epoch in range(1, 6):
        best = [checkpoint.BEST] * (epoch in (1, 4))
        names = [checkpoint.LAST, f'checkpoint-epoch{epoch}.pth', *best]
        assert saver.write(small_state(epoch), names)
    return folder


def go_on_in(folder, path):
    """A Saver in `folder` of a run that goes on from the checkpoint `path`."""
    folder.mkdir(exist_ok=True)
    saver = faults.saver_in(folder)
    saver.go_on_from(checkpoint.load(path), path)
    saver.bring_best()
    return saver


def names_in(folder):
    return {path.name for path in folder.glob('*.pth')} - {'weights.pth'}


def test_weights_alone_come_back_under_their_own_names(tmp_path):
    class Extra(torch.nn.Linear):
        def get_extra_state(self):
            return {'calls': 3}

    model = torch.nn.ModuleDict({'module': Extra(2, 2)})
    checkpoint.save_weights({'state_dict': model.state_dict()}, tmp_path / 'weights.pth')
    loaded = checkpoint.load(tmp_path / 'weights.pth')
    assert same(loaded['state_dict'], dict(model.state_dict()))
    wrapped = {'module.weight': torch.ones(1), 'module.bias': torch.ones(1)}
    torch.save(wrapped, tmp_path / 'other.pth')
    digest = hashlib.sha256((tmp_path / 'other.pth').read_bytes()).hexdigest()
    (tmp_path / 'other.pth.sha256').write_text(f'{digest}  other.pth')
    assert list(checkpoint.load(tmp_path / 'other.pth')['state_dict']) == ['weight', 'bias']


def test_weights_alone_are_those_of_the_best(line):
    plain = torch.load(line / 'weights.pth', weights_only=True)
    assert not first_difference(plain, checkpoint.load(line / 'model_best.pth')['state_dict'])


def test_weights_alone_are_the_last_where_nothing_is_monitored(tmp_path):
    saver = faults.saver_in(tmp_path)
    for epoch in (1, 2):
        saver.write(small_state(epoch), [checkpoint.LAST])
        assert not (tmp_path / 'weights.pth').exists()
        state = small_state(epoch) | {
            'format': 2,
            'finished': True,
            'tested': {'w': torch.full((2,), epoch)},
        }
        saver.write(state, [checkpoint.LAST])
        plain = torch.load(tmp_path / 'weights.pth', weights_only=True)
        assert plain['w'].tolist() == [epoch, epoch]
        (tmp_path / 'weights.pth').unlink()


def test_a_test_takes_the_best_of_a_run_where_it_is_whole(run, caplog):
    assert checkpoint.find(str(run), best_first=True) == run / 'model_best.pth'
    assert checkpoint.find(f'{run}/last', best_first=True) == run / 'checkpoint-last.pth'
    flip(run / 'model_best.pth')
    assert checkpoint.find(str(run), best_first=True) == run / 'checkpoint-last.pth'
    assert 'model_best.pth is damaged: falling back on' in caplog.text


def test_a_checkpoint_is_behind_when_one_that_is_whole_is_ahead_of_it(line):
    epochs = [line / f'checkpoint-epoch{epoch}.pth' for epoch in range(1, 6)]
    last, best = line / 'checkpoint-last.pth', line / 'model_best.pth'
    assert [checkpoint.is_behind(path) for path in (last, *epochs[3:], best)] == [
        False, True, False, True
    ]  # fmt: skip
    flip(last)
    flip(epochs[4])
    assert [checkpoint.is_behind(path) for path in (last, *epochs[2:], best)] == [
        False, True, False, False, False
    ]  # fmt: skip
    flip(epochs[3])
    assert checkpoint.is_behind(epochs[2])  # the best is of epoch 4


def test_going_on_in_the_same_folder_goes_on_with_its_line(line):
    before = files(line)
    saver = go_on_in(line, line / 'checkpoint-last.pth')
    assert files(line) == before and saver.line == {'best': [4, 40], 'parent': None}


@pytest.mark.parametrize('epoch, best', [(5, 4), (4, 4), (2, 1)])
def test_a_new_folder_names_its_parent_and_gets_the_best_of_the_line(line, tmp_path, epoch, best):
    before = files(line)
    parent = line / f'checkpoint-epoch{epoch}.pth'
    saver = go_on_in(tmp_path / 'new', parent)
    assert checkpoint.load(tmp_path / 'new' / checkpoint.BEST)['epoch'] == best
    plain = torch.load(tmp_path / 'new' / 'weights.pth', weights_only=True)
    assert not first_difference(plain, small_state(best)['state_dict'])
    saver.write(small_state(epoch + 1), [checkpoint.LAST])
    run = checkpoint.load(tmp_path / 'new' / checkpoint.LAST)['run']
    assert run == {'best': [best, 10 * best], 'parent': str(parent)}
    assert files(line) == before


def test_a_best_that_is_not_there_any_more_is_said(line, tmp_path, caplog):
    flip(line / 'checkpoint-epoch1.pth')  # model_best.pth is that of epoch 4
    saver = go_on_in(tmp_path / 'new', line / 'checkpoint-epoch2.pth')
    assert not names_in(tmp_path / 'new') and saver.line['best'] is None
    assert 'that of epoch 1' in caplog.text


def test_a_sharded_best_comes_along_with_its_parts(tmp_path):
    (tmp_path / 'line').mkdir()
    saver = faults.saver_in(tmp_path / 'line', is_sharded=True)
    saver.write(faults.state_in_rows(1), ['checkpoint-epoch1.pth', checkpoint.BEST])
    saver.write(faults.state_in_rows(2), [checkpoint.LAST, checkpoint.BEST])
    go_on_in(tmp_path / 'new', tmp_path / 'line' / 'checkpoint-epoch1.pth')
    best = checkpoint.load(tmp_path / 'new' / checkpoint.BEST)
    assert same(best['state_dict'], small_state(1)['state_dict'])


def test_a_run_of_the_first_version_brings_no_best(run, tmp_path):
    go_on_in(tmp_path / 'new', run / 'checkpoint-epoch1.pth')
    assert not names_in(tmp_path / 'new')


# Converting


def test_convert_checkpoint_writes_todays_format_and_overwrites_nothing(tmp_path):
    (tmp_path / 'old.pth').write_bytes(faults.sample_files(small_state())['old legacy'])
    command = ['-m', 'tools.convert_checkpoint', tmp_path / 'old.pth', tmp_path / 'new.pth']
    done = run_script(*command, check=False)
    assert done.returncode == 0, done.stderr
    new = checkpoint.load(tmp_path / 'new.pth')
    assert (
        new['format'] == checkpoint.FORMAT
        and new['config'] == {'name': 'old'}
        and same(new['state_dict'], small_state()['state_dict'])
    )
    again = run_script(*command, check=False)
    assert (
        again.returncode == 2
        and 'there already' in again.stderr
        and 'Traceback' not in again.stderr
    )
    nowhere = run_script(*command[:-1], tmp_path / 'no/new.pth', check=False)
    assert nowhere.returncode == 2 and 'no is no folder: make it first' in nowhere.stderr
