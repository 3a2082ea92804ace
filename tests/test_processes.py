"""Several processes train and test as one does.

The same samples in each step, the same numbers up to the order of additions.
"""

import io
import json
import math
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from armature.checkpoint import files as checkpoint
from armature.compare import first_difference
from armature.errors import CheckpointError
from tests import warm
from tests.conftest import ROOT

IN_THREE = [  # which share a batch as unevenly as can be
    'train_even',
    'train_last_batch_of_one',
    'train_micro_batches',
    'train_epochs_across_passes',
    'train_stream',
    'train_sum_of_losses',
    'train_class_weights',
    'train_loss_with_weights',
    'train_average',
    'train_skipping',
    'train_sharded',
    'train_in_shards',
    'train_checkpointed',
    'train_old_loop',
    'train_lora',
    'train_stream_of_whole_batches',
    'train_with_muon',
]
IN_TWO = [
    'train_workers',  # starting those of three takes 20 s
    'train_last_batch_of_one',
    'train_micro_batches',
    'train_uneven_micro_batches',
    'train_micro_batches_that_fit',
]
OTHERS = [
    'evaluate_exactly',
    'correlate_in_two_parts',
    'agree',
    'count_all_reduces',
    'count_bytes',
    'interrupted',
    'interrupted_in_shards',
]
RESUMED = ['resumed', 'resumed_from_shards']


def run_cases(n_processes, folder, before, *cases):
    folder.mkdir()
    script = ROOT / 'tests' / 'process_cases.py'
    done = warm.run(
        [sys.executable, *map(str, (script, folder, before, *cases))],
        cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        timeout=300,
        n_processes=n_processes,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {case: json.loads((folder / f'{case}.json').read_text()) for case in cases}


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """What each case gave, by the number of processes: 3, then 2 that also go on from where 3
    stopped, then one that goes on from 2.

    None is a run without torchrun.
    """
    folder = tmp_path_factory.mktemp('processes')
    in_three = [*IN_THREE, *OTHERS]
    in_two = [*IN_TWO, *OTHERS, *RESUMED, 'train_with_muon_in_shards', 'refusals']
    in_two += ['train_lora_in_compiled_blocks']  # each process compiles
    in_one = dict.fromkeys([*IN_THREE, *IN_TWO])
    in_one = [*in_one, *OTHERS, *RESUMED, 'train_with_muon_in_shards']
    in_one += ['uninterrupted', 'uninterrupted_plainly']
    return {
        3: run_cases(3, folder / '3', '-', *in_three),
        2: run_cases(2, folder / '2', folder / '3', *in_two),
        None: run_cases(None, folder / '1', folder / '2', *in_one),
    }


def differences(one, other, place=''):
    """(place, how far apart) of every number in two nests."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return [
            each
            for key in one.keys() - {'run'}
            for each in differences(one[key], other[key], f'{place}.{key}')
        ]
    if isinstance(one, list):
        assert len(one) == len(other)
        return [
            each
            for index, pair in enumerate(zip(one, other))
            for each in differences(*pair, f'{place}.{index}')
        ]
    return [
        (
            place,
            0.0 if one == other else abs(one - other) if math.isfinite(one - other) else math.inf,
        )
    ]


def assert_equal_up_to_rounding(one, other):
    place, distance = max(differences(one, other), key=lambda each: each[1])
    assert distance < 2e-6, f'{place} is {distance} apart'


@pytest.mark.parametrize(
    'case, n_processes', [(case, 2) for case in IN_TWO] + [(case, 3) for case in IN_THREE]
)
def test_processes_train_as_one_does(results, case, n_processes):
    assert len(results[None][case]['history']) == 2
    assert_equal_up_to_rounding(results[None][case], results[n_processes][case])


def test_sharded_model_trains_as_a_whole_one_does(results):
    # Differs in the size of micro-batches only, which changes nothing
    whole = results[3]['train_micro_batches']
    assert_equal_up_to_rounding(whole, results[3]['train_sharded'])
    assert_equal_up_to_rounding(whole, results[3]['train_in_shards'])


def test_muon_on_parts_of_a_matrix_is_muon_but_for_its_bf16(results):
    """Of a way of up to 16 steps of 1e-4; and it resumes exactly."""
    whole, parts = (results[n]['train_with_muon_in_shards'] for n in (None, 2))
    assert max(each for _, each in differences(whole['weights'], parts['weights'])) < 1e-4
    assert parts['uninterrupted'] == parts['weights']


def test_lora_in_compiled_blocks_in_parts_trains_as_plain_lora_does(results):
    compiled = results[2]['train_lora_in_compiled_blocks']
    assert_equal_up_to_rounding(results[None]['train_lora'], compiled)


@pytest.mark.parametrize('case', ['train_even', 'train_sharded', 'train_in_shards'])
def test_checkpoint_of_any_strategy_is_the_plain_models(results, case):
    for n_processes in (None, 3):
        result = results[n_processes][case]
        state = checkpoint.load(Path(result['run']) / 'checkpoint-last.pth')
        assert {name: value.tolist() for name, value in state['state_dict'].items()} == result[
            'weights'
        ]
        assert state['optimizer']['state'].keys() == {0, 1, 2, 3}


@pytest.mark.parametrize('n_processes', [2, 3])
def test_each_sample_is_evaluated_once(results, n_processes):
    for name, value in results[n_processes]['evaluate_exactly'].items():
        if name.endswith('counted'):
            assert set(value.values()) == {101}
    assert_equal_up_to_rounding(
        results[None]['evaluate_exactly'], results[n_processes]['evaluate_exactly']
    )


@pytest.mark.parametrize('n_processes', [None, 2, 3])
def test_metric_that_is_of_each_process_goes_on_in_as_many(results, n_processes):
    value, expected, said = results[n_processes]['correlate_in_two_parts']
    assert (
        value == pytest.approx(expected, abs=1e-6)
        and 'in as many processes as it was measured in, 9' in said
    )


@pytest.mark.parametrize('n_processes', [None, 2, 3])
def test_what_one_process_wishes_for_is_granted_to_all_after_the_same_step(results, n_processes):
    steps, granted = results[n_processes]['agree']
    assert granted == [143, 1] and len(set(steps)) == 1 and 5 <= steps[0] < 1500


@pytest.mark.parametrize('n_processes', [2, 3])
def test_gradients_cross_once_a_step(results, n_processes):
    assert results[n_processes]['count_all_reduces'] == {'None': 1, '8': 1, '2': 1}


def test_what_processes_cannot_do_is_said(results):
    expected = {
        'fp16': 'trainer.precision',
        'fitting': 'trainer.microbatch_size',
        'unfreezing': 'trainer.unfreeze_at',
        'small batches': 'batch_size is 1',
        'a loader that does not share': 'BaseDataLoader',
        'a closure': 'LBFGS',
        'class weights': '"reduction": "sum"',
        'a model of its own': 'config.wrap',
        'another config': 'trainer.save_period in process 1',
        'an unused parameter': 'find_unused_parameters',
        'a pass over nothing': 'Nothing gives no batches',
    }
    said = results[2]['refusals']
    assert said.keys() == expected.keys() and all(
        words in said[name] for name, words in expected.items()
    )


def test_memory_is_what_docs_scale_says(results):
    assert results[None]['count_bytes']['ddp'] == results[2]['count_bytes']['ddp'] == [4, 4, 8, 4]
    assert results[2]['count_bytes']['fsdp'] == [2, 2, 4, 2]
    assert results[3]['count_bytes']['fsdp'] == pytest.approx([4 / 3, 4 / 3, 8 / 3, 4 / 3])


@pytest.mark.parametrize('before, after', [(3, 2), (2, None)])
def test_run_goes_on_in_another_number_of_processes_inside_an_epoch(results, before, after):
    assert (
        results[before]['interrupted']['position']
        == results[before]['interrupted_in_shards']['position']
        == 3
    )
    assert_equal_up_to_rounding(results[None]['uninterrupted'], results[after]['resumed'])
    assert_equal_up_to_rounding(
        results[None]['uninterrupted_plainly'], results[after]['resumed_from_shards']
    )


# What can be wrong with the parts of a sharded checkpoint


@pytest.fixture
def sharded_run(results, tmp_path):
    """A copy of a run folder with a sharded checkpoint."""
    return Path(shutil.copytree(results[2]['interrupted_in_shards']['run'], tmp_path / 'run'))


def parts_of_last(run):
    return run / checkpoint.load_head(run / 'checkpoint-last.pth')['shards']['folder']


def test_sharded_checkpoint_is_a_whole_one_in_a_single_process(results, sharded_run):
    state = checkpoint.load(sharded_run / 'checkpoint-last.pth')
    weights = {name: value.tolist() for name, value in state['state_dict'].items()}
    assert (
        weights == results[2]['interrupted_in_shards']['weights']
        and len(state['optimizer']['state']) == 4
    )


@pytest.mark.parametrize(
    'damage',
    [lambda part: part.unlink(), lambda part: part.write_bytes(part.read_bytes()[:-1] + b'?')],
)
def test_missing_or_damaged_part_is_named_and_passed_over(sharded_run, damage, caplog):
    folder = parts_of_last(sharded_run)
    part = sorted(folder.glob('rank*.pth'))[-1]
    damage(part)
    with pytest.raises(CheckpointError, match=f'{part.name} is (missing|damaged)'):
        checkpoint.load(sharded_run / 'checkpoint-last.pth')
    assert (
        checkpoint.find(str(sharded_run)).name == 'checkpoint-epoch1.pth'
        and 'falling back' in caplog.text
    )


def test_parts_run_no_code(sharded_run, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / 'it ran',)

    # Whoever writes a part can write its digest, too.
    evil = io.BytesIO()
    torch.save({'format': 2, 'state_dict': {}, 'parts': Evil()}, evil)
    checkpoint.add_digest(evil)
    (parts_of_last(sharded_run) / 'rank0.pth').write_bytes(evil.getvalue())
    with pytest.raises(CheckpointError, match='it asks to run'):
        checkpoint.load(sharded_run / 'checkpoint-last.pth')
    assert not (tmp_path / 'it ran').exists()


@pytest.mark.parametrize('shards', [{'folder': '../run'}, {'n_parts': 0}, {'n_parts': 10**9}])
def test_head_cannot_name_parts_elsewhere_or_any_number_of_them(sharded_run, shards):
    head = checkpoint.load_head(sharded_run / 'checkpoint-last.pth')
    changed = {**head, 'shards': head['shards'] | shards}
    checkpoint.save(changed, sharded_run / 'checkpoint-last.pth')
    with pytest.raises(CheckpointError, match='in no form that is read here'):
        checkpoint.load(sharded_run / 'checkpoint-last.pth')


def test_whole_checkpoint_can_be_made_of_a_sharded_one(sharded_run, tmp_path):
    state = checkpoint.load(sharded_run / 'checkpoint-last.pth')
    checkpoint.save(state, tmp_path / 'whole.pth')
    assert first_difference(checkpoint.load(tmp_path / 'whole.pth'), state) == ''
