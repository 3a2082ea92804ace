"""Several processes train and test as one does: the same samples in each step, the same numbers up to the order of additions."""
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

TRAININGS = ['train_even', 'train_last_batch_of_one', 'train_workers', 'train_micro_batches', 'train_epochs_across_passes', 'train_stream',
             'train_sum_of_losses', 'train_loss_with_weights', 'train_average', 'train_skipping', 'train_sharded', 'train_checkpointed']
OTHERS = ['evaluate_exactly', 'count_all_reduces', 'interrupted', 'uninterrupted']


def start(n_processes, script, *arguments, **environment):
    """`script` in so many processes: by torchrun, also for one; None is plain python."""
    torchrun = [] if n_processes is None else ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={n_processes}']
    return subprocess.Popen([sys.executable, *torchrun, str(script), *map(str, arguments)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, env={**os.environ, 'OMP_NUM_THREADS': '1', **environment})


def run_cases(n_processes, folder, *cases):
    folder.mkdir(parents=True, exist_ok=True)
    process = start(n_processes, ROOT / 'tests' / 'process_cases.py', folder, *cases)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return {case: json.loads((folder / f'{case}.json').read_text()) for case in cases}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('processes')


@pytest.fixture(scope='module')
def results(folder):
    """What each case gave, by the number of processes; None is a run without torchrun."""
    return {n: run_cases(n, folder / str(n), *TRAININGS, *OTHERS) for n in (None, 2, 3)}


def differences(one, other, place=''):
    """(place, how far apart) of every number in two nests."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return [each for key in one for each in differences(one[key], other[key], f'{place}.{key}')]
    if isinstance(one, list):
        assert len(one) == len(other)
        return [each for index, pair in enumerate(zip(one, other)) for each in differences(*pair, f'{place}.{index}')]
    return [(place, 0.0 if one == other else abs(one - other) if math.isfinite(one - other) else math.inf)]


def assert_equal_up_to_rounding(one, other):
    place, distance = max(differences(one, other), key=lambda each: each[1])
    assert distance < 2e-6, f'{place} is {distance} apart'


@pytest.mark.parametrize('n_processes', [2, 3])
@pytest.mark.parametrize('case', TRAININGS)
def test_processes_train_as_one_does(results, case, n_processes):
    assert results[None][case]['step'] > 0
    assert_equal_up_to_rounding(results[None][case], results[n_processes][case])


def test_sharded_model_trains_as_a_whole_one_does(results):
    whole = run = results[2]['train_micro_batches']  # differs in the size of micro-batches only, which changes nothing
    assert run is whole and len(whole['weights']) == 4
    assert_equal_up_to_rounding(whole, results[2]['train_sharded'])


@pytest.mark.parametrize('n_processes', [2, 3])
def test_each_sample_is_evaluated_once(results, n_processes):
    for name, value in results[n_processes]['evaluate_exactly'].items():
        if name.endswith('counted'):
            assert set(value.values()) == {101}
    assert_equal_up_to_rounding(results[None]['evaluate_exactly'], results[n_processes]['evaluate_exactly'])


@pytest.mark.parametrize('n_processes', [2, 3])
def test_gradients_cross_once_a_step(results, n_processes):
    assert results[n_processes]['count_all_reduces'] == {'None': 1, '8': 1, '2': 1}


@pytest.mark.parametrize('before, after', [(3, 2), (2, None), (None, 2)])
def test_run_goes_on_in_another_number_of_processes_inside_an_epoch(results, folder, tmp_path, before, after):
    assert results[before]['interrupted']['position'] == 3
    (tmp_path / 'interrupted').mkdir()
    (tmp_path / 'interrupted' / 'interrupted.json').write_text(json.dumps(results[before]['interrupted']))
    resumed = run_cases(after, tmp_path / 'resumed', 'resumed')['resumed']
    assert_equal_up_to_rounding(results[None]['uninterrupted'], resumed)
