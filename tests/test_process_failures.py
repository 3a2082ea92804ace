"""Jobs of several processes that go wrong end, and say why once.

tests/process_faults.py tries many more of them.
"""

import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from armature.errors import ConfigError, UserError
from armature.processes import devices, dist
from armature.processes import launch as job
from base import BaseDataLoader
from tests import process_faults, warm
from tests.conftest import ROOT


def start(project, *arguments, cwd=None, **environment):
    """As process_faults does, forked from a process that has imported torch."""
    environment = {name: str(value) for name, value in environment.items()}
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', **environment}
    return warm.start([sys.executable, *arguments], cwd=cwd or project, env=environment)


def finish(processes):
    said = [''.join(process.communicate(300)) for process in processes]
    return [process.returncode for process in processes], '\n'.join(said)


def test_a_process_that_is_killed_or_raises_ends_the_job_and_one_message_says_why(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(process_faults, 'start', start)
    monkeypatch.setattr(process_faults, 'finish', finish)
    result = process_faults.faults(2, tmp_path)
    assert (result.held, result.tried) == (2, 2), result.failures


@pytest.mark.parametrize(
    'change, said',
    [
        ({'MASTER_PORT': None}, 'MASTER_PORT is not set'),
        ({'RANK': 'one'}, 'RANK one'),
        ({'RANK': '2'}, 'RANK counts from 0'),
        ({'LOCAL_WORLD_SIZE': '2'}, '2 processes are started on this machine, with 1 GPUs'),
    ],
)
def test_what_is_wrong_with_the_start_is_said_before_anything_waits(monkeypatch, change, said):
    given = {
        'RANK': '0',
        'WORLD_SIZE': '2',
        'LOCAL_RANK': '0',
        'LOCAL_WORLD_SIZE': '1',
        'MASTER_ADDR': 'localhost',
        'MASTER_PORT': '29999',
    }
    for name, value in {**given, **change}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(
            name, value
        )
    pretend(monkeypatch, 'cuda', 1)
    with pytest.raises(UserError, match=said), job.joined():
        pass


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere nobody tells a process')
def test_process_whose_torchrun_is_gone_before_it_begins_leaves_at_once(monkeypatch):
    with socket.create_server(('localhost', 0)) as server:  # a port that nobody listens at then
        port = server.getsockname()[1]
    given = {
        'RANK': '0',
        'WORLD_SIZE': '2',
        'LOCAL_RANK': '0',
        'LOCAL_WORLD_SIZE': '2',
        'MASTER_ADDR': 'localhost',
        'MASTER_PORT': str(port),
        'TORCHELASTIC_USE_AGENT_STORE': 'True',
        'TORCHELASTIC_ERROR_FILE': '/tmp/none/attempt_0/0/error.json',
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(job.ctypes, 'CDLL', lambda _: SimpleNamespace(prctl=lambda *_: 0))
    said = 'the torchrun that lets the processes meet at'
    with pytest.raises(UserError, match=said), job.joined(n_gpu=0):
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


def pretend(monkeypatch, kind, n_gpu):
    """A machine with so many GPUs of a kind, and nothing asked for yet; returns the current one."""
    current = []
    monkeypatch.setattr(torch.accelerator, 'current_accelerator', lambda: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, 'device_count', lambda: n_gpu)
    monkeypatch.setattr(torch.accelerator, 'set_device_index', current.append)
    monkeypatch.setattr(devices, '_requested', [])
    monkeypatch.setattr(devices, '_prepared', [])
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    return current


@pytest.mark.parametrize(
    'kind, request_, visible, device',
    [
        ('cuda', '0', '0', 'cuda:0'),
        ('cuda', 'cuda', '0', 'cuda:0'),
        ('cuda', 'cuda:1', '1', 'cuda:0'),  # the others are hidden
        ('cuda', 'cpu', '', 'cpu'),
        ('xpu', 'xpu', '', 'xpu:0'),
        ('xpu', '1', '', 'xpu:1'),
        ('xpu', 'xpu:1', '', 'xpu:1'),
        ('mps', 'mps', '', 'mps:0'),
    ],
)
def test_d_chooses_one_device_of_any_kind(monkeypatch, kind, request_, visible, device):
    current = pretend(monkeypatch, kind, 2)
    devices.select_devices(request_)
    assert os.environ['CUDA_VISIBLE_DEVICES'] == visible
    prepared, several = devices.prepare_device(1)
    assert str(prepared) == device and len(several) <= 1
    assert current == [1] * (device == 'xpu:1')  # it is where torch allocates without being told
    assert devices.n_processes_wanted(2) == 1


@pytest.mark.parametrize('kind', ['cuda', 'xpu'])
def test_each_process_has_one_of_the_devices_that_d_names(monkeypatch, kind):
    pretend(monkeypatch, kind, 3)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,7,9')
    devices.select_devices(f'2,{kind}:0')
    assert devices.n_processes_wanted(1) == 2
    for variable, value in {'RANK': 1, 'LOCAL_RANK': 1, 'LOCAL_WORLD_SIZE': 2}.items():
        monkeypatch.setenv(variable, str(value))
    devices.select_devices(f'2,{kind}:0')
    is_hidden = kind == 'cuda'
    assert os.environ['CUDA_VISIBLE_DEVICES'] == ('9,5' if is_hidden else '5,7,9')
    assert devices.prepare_device(1)[0] == torch.device(kind, 1 if is_hidden else 0)


@pytest.mark.parametrize('request_', ['3', 'mps', '0,0', '0,cuda:0', '0,cpu', '0,', ''])
def test_d_names_devices_that_are_there_each_once(monkeypatch, request_):
    pretend(monkeypatch, 'cuda', 2)
    with pytest.raises(ConfigError, match='this machine has 0, 1, cuda:0, cuda:1, cuda, cpu'):
        devices.select_devices(request_)


def test_job_of_one_process_has_nobody_to_join(experiment, monkeypatch):
    for variable, value in {'RANK': '0', 'WORLD_SIZE': '1'}.items():
        monkeypatch.setenv(variable, value)
    experiment.trainer()
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ConfigError, match='started in several processes'):
        experiment.trainer()


def test_sampler_is_found_behind_batches_of_ones_own():
    sampler = DistributedSampler(range(8), 2, 0)
    batches = BatchSampler(sampler, 2, False)
    for options in ({'sampler': sampler}, {'batch_sampler': batches}):
        assert dist.sampler_of(DataLoader(range(8), **options)) is sampler
    loader = DataLoader(range(8), sampler=batches, batch_size=None)
    assert dist.sampler_of(loader) is batches


def test_several_macs_train_on_their_cpus(monkeypatch):
    pretend(monkeypatch, 'mps', 1)
    assert devices.prepare_device(1)[0].type == 'mps'
    monkeypatch.setenv('RANK', '0')
    assert devices.prepare_device(1)[0].type == 'cpu'


def test_data_is_kept_and_pinned_for_the_device_that_n_gpu_chose(monkeypatch):
    def loader():
        return BaseDataLoader([0], 1, False, 0.0, 0)

    pretend(monkeypatch, 'cuda', 1)
    assert devices.prepare_device(0)[0] == devices.prepared_device()
    assert devices.prepared_device().type == 'cpu' and not loader().pin_memory
    assert devices.prepare_device(1)[0] == devices.prepared_device()
    assert devices.prepared_device().type == 'cuda' and loader().pin_memory
