"""tools.submit: scripts for a queue and for a shell, run as they are with stand-ins for SLURM."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from armature.checkpoint import files as checkpoint
from armature.compare import first_difference
from tests import warm
from tests.conftest import ROOT, run_script
from tools import submit

# What they do of what SLURM does: the job runs until it is told that its time is nearly over, then
# again when it has asked for it; a step runs on each "machine", and is sent what srun is sent.
STAND_INS = {
    'sbatch': """
        echo "$*" > "$STAND_IN/sbatch"
        grep -q '^#SBATCH --requeue$' "$1" && grep -q '^#SBATCH --signal=B:USR1@300$' "$1" || exit 1
        export SLURM_JOB_ID=$$ SLURM_JOB_NODELIST=localhost SLURM_CPUS_PER_TASK=1
        export SLURM_NNODES=$(sed -n 's/^#SBATCH --nodes=//p' "$1")
        for SLURM_RESTART_COUNT in '' 1 2; do
            export SLURM_RESTART_COUNT
            rm -f "$STAND_IN/requeue"
            bash "$1" & job=$!
            if [ "$SLURM_RESTART_COUNT" = '' ]; then
                until ls "$STAND_IN"/models/*/*/checkpoint-epoch2.pth 2> /dev/null; do
                    kill -0 $job || exit 1
                    sleep 0.02
                done
                kill -USR1 $job
            fi
            wait $job; echo $? >> "$STAND_IN/codes"
            [ -e "$STAND_IN/requeue" ] || break
        done""",
    'srun': """
        trap 'kill -USR1 $steps' USR1
        for machine in $(seq "$SLURM_NNODES"); do "$@" & steps="$steps $!"; done
        code=0
        for step in $steps; do
            wait $step; while kill -0 $step 2> /dev/null; do wait $step; done
            wait $step || code=$?
        done
        exit $code""",
    'scontrol': """
        if [ "$1" = requeue ]; then echo "$2" > "$STAND_IN/requeue"; else echo localhost; fi""",
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The folder of the runs, where the stand-ins note what they were asked for."""
    for name, body in STAND_INS.items():
        program = tmp_path / 'bin' / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/bash{body}\n')
        program.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')
    monkeypatch.setenv('STAND_IN', str(tmp_path))
    return tmp_path


def settings_of(folder, epochs=25):
    settings = {'save_dir': folder, 'tensorboard': 'false', 'epochs': epochs, 'len_epoch': 4}
    return ['--set', *(f'trainer.{name}={value}' for name, value in settings.items())]


def submitted(folder, *arguments, check=True, **settings):
    script = folder / 'my jobs' / "it's.sh"
    arguments = ['--script', script, *arguments, *settings_of(folder, **settings)]
    done = run_script('-m', 'tools.submit', '-c', 'config.json', *arguments, check=check)
    return script, done


def finished(folder):
    """The last state of the only run there, which took all its epochs, and when it was saved."""
    (run,) = folder.glob('models/*/*')
    state = checkpoint.load(run / checkpoint.LAST)
    assert state['finished']
    return {name: state[name] for name in ('state_dict', 'optimizer', 'step', 'monitor_best')}


def undisturbed(folder, n_processes=None):
    command = ['train.py', '-c', 'config.json', '-d', 'cpu', *settings_of(folder)]
    command = [sys.executable, *map(str, command)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = warm.run(command, cwd=ROOT, env=environment, timeout=300, n_processes=n_processes)
    assert done.returncode == 0, done.stdout + done.stderr
    return finished(folder)


@pytest.mark.parametrize('machines, n_processes', [((), None), (('--nodes', 2), 2)])
def test_job_that_is_queued_again_equals_the_run_that_was_not(slurm, machines, n_processes):
    script, done = submitted(slurm, '--gpus', 0, *machines, '--hours', 2, '--now')
    assert (slurm / 'sbatch').read_text() == f'{script}\n', done.stdout + done.stderr
    first, second = map(int, (slurm / 'codes').read_text().split())
    assert first and second == 0, done.stdout + done.stderr
    assert 'SIGUSR1: saving' in done.stderr and 'Resume training' in done.stdout
    assert done.stdout.count('Stopped by SIGUSR1') == 1, 'by all together, in one step'
    expected = undisturbed(slurm / 'undisturbed', n_processes)
    assert first_difference(finished(slurm), expected) == ''


@pytest.mark.skipif(sys.platform != 'linux', reason='looks for the process in /proc')
def test_shell_script_starts_again_after_a_failure_and_stops_when_asked(tmp_path):
    script, done = submitted(tmp_path, '--gpus', 0, '--shell', epochs=4000)
    log = script.with_suffix('.log')
    typed = shlex.split(done.stdout.splitlines()[-1].partition(':')[2])
    assert typed == ['nohup', 'bash', str(script), '>>', str(log), '2>&1', '&']
    script.write_text(script.read_text().replace('sleep 10', 'sleep 0'))
    with log.open('w') as said:
        started = subprocess.Popen(['bash', script], stdout=said, stderr=said)
    try:
        wait_for(lambda: list(tmp_path.glob('models/*/*/checkpoint-epoch2.pth')))
        (child,) = Path(f'/proc/{started.pid}/task/{started.pid}/children').read_text().split()
        os.kill(int(child), signal.SIGKILL)
        # That line comes before the signals are listened to; this one after it.
        wait_for(lambda: 'Best:' in log.read_text().partition('Resume training')[2])
    finally:
        started.terminate()
        started.wait(60)
    said = log.read_text()
    assert started.returncode == 143 and 'Start 1 ended with exit code 137' in said, said
    assert 'SIGTERM: saving' in said and 'Start 2' not in said
    # What another job of this name would do is known before it waits in a queue
    script.unlink(), script.with_suffix('.json').unlink()
    _, done = submitted(tmp_path, '--hours', 1, epochs=4000)
    assert 'There is an unfinished run' in done.stdout
    script.unlink(), script.with_suffix('.json').unlink()
    _, done = submitted(tmp_path, '--hours', 1, epochs=3, check=False)
    assert done.returncode == 2 and 'trainer.epochs' in done.stderr and not script.exists()


def wait_for(found):
    deadline = time.monotonic() + 60
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def test_script_starts_as_many_processes_as_there_are_gpus(tmp_path):
    account = ('--option', 'account=abc', 'mem=64G', 'exclusive', '--partition', 'long')
    script, _ = submitted(tmp_path, '--gpus', 4, '--hours', 1.5, '--name', 'mine', *account)
    lines = script.read_text().splitlines()
    options = dict(line[10:].partition('=')[::2] for line in lines if line.startswith('#SBATCH'))
    expected = {'gpus-per-node': '4', 'cpus-per-task': '4', 'nodes': '1', 'time': '1:30:00'}
    expected |= {'account': 'abc', 'mem': '64G', 'exclusive': '', 'partition': 'long'}
    assert {name: options[name] for name in expected} == expected and options['job-name'] == 'mine'
    (srun,) = [line for line in lines if line.startswith('srun')]
    assert '--standalone --nproc-per-node 4 --signals-to-handle=SIGTERM' in srun
    assert 'train.py -c' in srun and srun.endswith('--resume-or-start &')


def test_config_in_the_queue_stays_as_it_was(tmp_path):
    script, _ = submitted(tmp_path, '--hours', 1)
    config = json.loads(script.with_suffix('.json').read_text())
    assert config['trainer']['epochs'] == 25
    before = script.read_text()
    submitted(tmp_path, '--hours', 1)  # the same again
    _, done = submitted(tmp_path, '--hours', 1, epochs=3, check=False)
    assert done.returncode == 2 and 'is there for something else' in done.stderr
    assert script.read_text() == before
    assert json.loads(script.with_suffix('.json').read_text()) == config


def test_config_beside_the_script_is_not_written_over(tmp_path):
    script, _ = submitted(tmp_path, '--hours', 1)
    script.unlink(), script.with_suffix('.json').unlink()
    script.with_suffix('.json').write_text('{"of": "mine"} // and what I say of it')
    _, done = submitted(tmp_path, '--hours', 1, check=False)
    assert done.returncode == 2 and f'{script.stem}.json beside it' in done.stderr
    assert script.with_suffix('.json').read_text().endswith('of it') and not script.exists()


@pytest.mark.parametrize(
    'arguments, said',
    [
        (['--hours', 1, '--set', 'optimizer.args.lr=true'], 'optimizer.args.lr'),
        (['--hours', 0.1], '--hours'),
        ([], '--hours'),
        (['--hours', 1, '--set', 'n_gpu=0'], '--gpus 0'),
        (['--shell', '--nodes', 2], 'for one machine'),
        (['--hours', 1, '--gpus', -1], '--gpus -1'),
        (['--hours', 1, '--name', 'a/b'], '--name'),
        (['--hours', 1, '--option', 'mem=1G', 'time=0:05:00'], 'the time is --hours'),
        (['--hours', 1, '--script', 'job.json'], 'that is its config'),
    ],
)
def test_mistake_is_one_line_and_nothing_is_written(tmp_path, arguments, said):
    script, done = submitted(tmp_path, *arguments, check=False)
    assert done.returncode == 2 and said in done.stderr and not script.parent.exists()
    assert 'Traceback' not in done.stderr


def test_two_experiments_of_one_name_get_two_scripts(tmp_path, monkeypatch):
    monkeypatch.setattr(submit, 'ROOT', tmp_path)
    monkeypatch.chdir(ROOT)
    names = []
    for epochs in (1, 2, 1):
        monkeypatch.setattr(
            sys,
            'argv',
            ['', '-c', 'config.json', '--hours', '1', *map(str, settings_of(tmp_path, epochs))],
        )
        submit.main()
    scripts = (tmp_path / 'saved/jobs').glob('*.sh')
    names = sorted(path.name for path in scripts)
    assert names == ['Digits_LeNet.sh', 'Digits_LeNet_2.sh']
