"""Asked to stop, a run finishes its step, saves, and leaves with the code a shell expects.

Then it goes on as if nothing was.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from armature.checkpoint import files as checkpoint
from armature.run.stop import DEBOUNCE_S, Stopped, StopRequest
from tests import warm
from tests.conftest import ROOT, run_script


def start(tmp_path, n_workers=0, method='fork', fresh=False):
    """train.py on the digits in a process group of its own, as a shell starts it.

    fresh: in a Python that has imported nothing yet.
    """
    (tmp_path / 'slow.json').write_text(f'''{{"base": "{ROOT}/config.json", "name": "slow",
        "data_loader": {{"args": {{"num_workers": {n_workers}}}}},
        "trainer": {{"save_dir": "{tmp_path}", "epochs": 2000,
                     "early_stop": 0, "tensorboard": false}}}}''')
    program = (
        f'import sys, runpy, torch; sys.argv[0] = "train.py"; sys.path.insert(0, {str(ROOT)!r})\n'
    )
    if n_workers:  # the digits are tensors in memory, which need no workers: read them one by one
        program += 'import torch.multiprocessing as mp\n'
        program += f'if __name__ == "__main__": mp.set_start_method({method!r})\n'
        program += (
            'import base.base_data_loader as loader; loader.TensorDataset = type("Other", (), {})\n'
        )
    script = str(ROOT / 'train.py')
    program += f'if __name__ == "__main__": runpy.run_path({script!r}, run_name="__main__")\n'
    script = tmp_path / 'start.py'
    script.write_text(program)
    command = [sys.executable, script, '-c', tmp_path / 'slow.json']
    where = {'cwd': ROOT, 'env': {**os.environ, 'OMP_NUM_THREADS': '1'}}
    if fresh:
        return subprocess.Popen(command, start_new_session=True, **where)
    return warm.start(command, **where)


def wait_for_epoch(tmp_path, epoch, process):
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(f'models/slow/*/checkpoint-epoch{epoch}.pth')):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize(
    'number, code, n_workers, method',
    [
        (signal.SIGUSR1, 143, 0, 'fork'),
        (signal.SIGINT, 130, 2, 'fork'),
        (signal.SIGTERM, 143, 1, 'spawn'),
        (signal.SIGTERM, 143, 1, 'forkserver'),
    ],
)
def test_signal_to_the_whole_group_saves_and_leaves_with_its_code(
    tmp_path, number, code, n_workers, method
):
    process = start(tmp_path, n_workers=n_workers, method=method)
    wait_for_epoch(tmp_path, 1, process)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    assert 'Traceback' not in err and 'To go on:        python train.py -r' in out
    (run,) = tmp_path.glob('models/slow/*')
    state = checkpoint.load(run / 'checkpoint-last.pth')
    assert state['epoch'] >= 1 and state['samples'] % 32 == 0
    assert not list(run.glob('.*pth*'))


def test_second_ctrl_c_a_second_later_leaves_at_once():
    stop, before = StopRequest(), signal.getsignal(signal.SIGINT)
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # torchrun delivers one Ctrl-C twice
        with pytest.raises(Stopped, match='SIGINT'):
            stop.grant(stop.request)
        assert (stop.reason, stop.exit_code) == ('SIGINT', 130)
        stop._received_at -= DEBOUNCE_S
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is before


def test_interrupt_leaves_a_script_without_a_traceback():
    done = run_script(
        '-c',
        'from armature.errors import exit_on_user_error\nwith exit_on_user_error(): raise '
        'KeyboardInterrupt',
        check=False,
    )
    assert done.returncode == 130 and 'Traceback' not in done.stderr


def test_signal_at_start_up_leaves_nothing_half_written(tmp_path):
    process = start(tmp_path, fresh=True)
    time.sleep(0.5)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode in (143, -signal.SIGTERM)
    assert not list(tmp_path.glob('models/slow/*/*.pth'))


def test_time_limit_saves_and_leaves_with_zero_and_resume_or_start_goes_on(tmp_path):
    settings = [
        '--set',
        f'trainer.save_dir={tmp_path}',
        '--set',
        'trainer.tensorboard=false',
        '--set',
        'trainer.max_minutes=0.01',
    ]
    first = run_script('train.py', '-c', 'config.json', '--resume-or-start', *settings)
    assert 'Stopped by trainer.max_minutes' in first.stdout
    second = run_script('train.py', '-c', 'config.json', '--resume-or-start', *settings)
    assert 'Resume training' in second.stdout and len(list(tmp_path.glob('models/*/*'))) == 1
    named = ['--resume-or-start', '--run-id', 'another']
    elsewhere = run_script('train.py', '-c', 'config.json', *named, *settings, check=False)
    assert elsewhere.returncode == 2 and 'the unfinished run is' in elsewhere.stderr
    both = ['-r', next(tmp_path.glob('models/*/*'))]
    refused = run_script('train.py', *both, '--resume-or-start', check=False)
    assert refused.returncode == 2 and 'say both where to go on: give one' in refused.stderr
    other = run_script(
        'train.py', '-c', 'config.json', '--resume-or-start', *settings, '--lr', '0.5', check=False
    )
    assert other.returncode == 2 and 'optimizer.args.lr' in other.stderr
