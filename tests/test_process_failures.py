"""Jobs of several processes that go wrong end, and say why once.

tests/process_faults.py tries many more of them.
"""

import os
import subprocess
import sys

import pytest

from armature.errors import ConfigError
from armature.processes import devices
from armature.processes import launch as job
from tests import process_faults
from tests.conftest import ROOT


def test_a_process_that_is_killed_or_raises_ends_the_job_and_one_message_says_why(tmp_path):
    result = process_faults.faults(2, tmp_path)
    assert (result.held, result.tried) == (2, 2), result.failures


def test_stop_is_one_for_all_processes_and_resumes_exactly(tmp_path):
    result = process_faults.stops(1, tmp_path)
    assert (result.held, result.tried) == (1, 1), result.failures


@pytest.mark.parametrize(
    'change, said',
    [
        ({'MASTER_PORT': None}, 'MASTER_PORT is not set'),
        ({'RANK': 'one'}, "RANK is 'one'"),
        ({'RANK': '2'}, 'counted from 0'),
        ({}, '2 processes are started on this machine, which has 1 GPUs'),
    ],
)
def test_what_is_wrong_with_the_start_is_said_before_anything_waits(monkeypatch, change, said):
    given = {
        'RANK': '0',
        'WORLD_SIZE': '2',
        'LOCAL_RANK': '0',
        'LOCAL_WORLD_SIZE': '2',
        'MASTER_ADDR': 'localhost',
        'MASTER_PORT': '29999',
    }
    for name, value in {**given, **change}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(
            name, value
        )
    monkeypatch.setattr(job.torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(job.torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(ConfigError, match=said), job.joined():
        pass


KILLED = """
import os
from tests.process_parts import NoisyPoints
from base import BaseDataLoader

if __name__ == '__main__':
    options = {'num_workers': 1, 'multiprocessing_context': 'forkserver'}
    next(iter(BaseDataLoader(NoisyPoints(), 8, True, 0.0, **options)))
    os._exit(3)
"""


def test_worker_of_a_fork_server_leaves_when_its_trainer_is_gone(tmp_path):
    (tmp_path / 'killed.py').write_text(KILLED)
    done = subprocess.run(  # waits for all that hold its output
        [sys.executable, tmp_path / 'killed.py'],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 3, done.stderr


def test_data_is_kept_on_the_device_that_n_gpu_chose(monkeypatch):
    monkeypatch.setattr(devices.torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(devices, '_requested', [])
    monkeypatch.setattr(devices, '_prepared', [])
    assert devices.prepare_device(0)[0] == devices.prepared_device()
    assert devices.prepared_device().type == 'cpu'
    assert devices.prepare_device(1)[0] == devices.prepared_device()
    assert devices.prepared_device().type == 'cuda'
