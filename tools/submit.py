"""Hand an experiment to SLURM: python -m tools.submit -c config.json --gpus 4 --hours 8

Writes a script for sbatch, and beside it the config as it is now, so that what waits in the queue
stays what it is. The run saves before its time is over, is queued again and goes on, until it is
finished. With --now it is handed over too.

    python -m tools.submit -c config.json --gpus 4 --shell

is for a machine without SLURM: a script that starts training again after a failure.
"""

import argparse
import itertools
import math
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import train
from armature.errors import ConfigError, UserError, exit_on_user_error, positive
from armature.processes.launch import SIGNALS
from armature.run.folder import plain_name
from armature.run.record import read_json, write_json, write_text
from parse_config import ROOT, ConfigParser
from tools.arguments import positive_number

NOTICE_S = 300  # before its time is over, a run is told to stop
SAVING_S = 240  # of these, what the step in progress and its checkpoint may take
# So that what never ends well does not go on for ever
MOST_REQUEUES, MOST_STARTS = 100, 10

SLURM = """\
#!/bin/bash
{options}

cd {root} || exit
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={saving_s} SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
{meet}
# Before the time is over, SLURM tells this shell alone. srun passes SIGUSR1 on, and the run saves.
# Of a preemption or scancel the run hears by itself; this shell only waits for it.
trap 'is_over=1; kill -USR1 "$run"' USR1
trap : TERM
srun {command} &
run=$!
{wait}
if [ -n "$is_over" ] && [ "$code" -ne 0 ]; then
    [ "${{SLURM_RESTART_COUNT:-0}}" -lt {most_requeues} ] && scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
MEET = """\
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
"""
# Where the machines of a job find each other
MEETING = (
    '--nnodes "$SLURM_NNODES" --rdzv-backend c10d --rdzv-endpoint "$first:$port" '
    '--rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"'
)
SHELL = """\
#!/bin/bash
cd {root} || exit
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={saving_s}
trap 'is_over=1; kill -TERM "$run"' TERM INT
for start in $(seq {most_starts}); do
    {command} &
    run=$!
    {wait}
    # Finished, a mistake in the config, or asked to stop
    if [ "$code" -eq 0 ] || [ "$code" -eq 2 ] || [ -n "$is_over" ]; then
        break
    fi
    echo "Start $start ended with exit code $code. Going on with the last checkpoint." >&2
    sleep 10
done
exit "$code"
"""
# A trap ends `wait` early; afterwards it gives the code of a process that has ended long ago.
WAIT = 'wait "$run"; while kill -0 "$run" 2> /dev/null; do wait "$run"; done; wait "$run"; code=$?'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('-c', '--config', required=True, metavar='FILE', help='the experiment')
    parser.add_argument(
        '--gpus', type=int, default=1, metavar='N', help='of each machine (1); 0: the CPU'
    )
    parser.add_argument('--nodes', type=positive, default=1, metavar='N', help='machines (1)')
    parser.add_argument('--hours', type=positive_number, help='time limit of the job')
    parser.add_argument('--partition', metavar='NAME', help='of the cluster')
    parser.add_argument(
        '--option',
        nargs='+',
        action='extend',
        default=[],
        metavar='KEY=VALUE',
        help='more options of sbatch, such as account=ABC mem=64G',
    )
    parser.add_argument('--name', help="of the job and its script; the experiment's when not given")
    parser.add_argument('--script', type=Path, metavar='FILE', help='instead of saved/jobs/NAME.sh')
    parser.add_argument('--shell', action='store_true', help='for one machine without SLURM')
    parser.add_argument('--now', action='store_true', help='hand it over, or start it')
    # An unfinished run of this name that the job could not go on with is refused now
    parser.set_defaults(resume_or_start=True)
    with exit_on_user_error():
        config = ConfigParser.from_args(parser, builds=train.BUILDS)
        given = config.arguments
        refuse(given, config)
        script = write(given, config)
        if config.resume is not None:
            print(f'There is an unfinished run, {config.resume.parent}: the job goes on with it.')
        hand_over(script, given.shell, given.now)


def refuse(given: argparse.Namespace, config: ConfigParser) -> None:
    if given.gpus < 0:
        raise ConfigError(f'--gpus {given.gpus}: expected a number from 0')
    if given.gpus and config.get('n_gpu') == 0:
        raise ConfigError(
            'n_gpu is 0 in the config, so no GPU would be used: say --gpus 0, or --set n_gpu=1'
        )
    if given.shell and (given.nodes > 1 or given.hours or given.partition or given.option):
        raise ConfigError(
            '--shell is for one machine: leave --nodes, --hours, --partition and --option out'
        )
    for option in given.option:
        if option.lstrip('-').partition('=')[0] in ('', 'time'):
            raise ConfigError(f'--option {option}: expected KEY=VALUE; the time is --hours')
    if given.script is not None and given.script.suffix == '.json':
        raise ConfigError(f'--script {given.script}: that is its config: name such as job.sh')
    if not given.shell and 3600 * (given.hours or 0) < 2 * NOTICE_S:
        raise ConfigError(
            f'--hours: give the time limit of the job, at least {2 * NOTICE_S / 3600:.2g}; '
            f'{NOTICE_S // 60} minutes before it the run is told to save'
        )


def write(given: argparse.Namespace, config: ConfigParser) -> Path:
    """The script, with its config beside it; one that is there for something else stays as it is.

    A job that waits is going to read its config.
    """
    name = plain_name('--name', given.name or config.name)
    names = itertools.chain([name], (f'{name}_{number}' for number in itertools.count(2)))
    scripts = (ROOT / 'saved' / 'jobs' / f'{each}.sh' for each in names)
    if given.script is not None:
        scripts = [Path(config.started_in) / given.script]
    try:
        for script in scripts:
            saved, text = script.with_suffix('.json'), script_text(given, config, name, script)
            if is_new := not (script.exists() or saved.exists()):
                script.parent.mkdir(parents=True, exist_ok=True)
                write_json(config.as_read, saved)
                write_text(script, text)
            if is_new or (
                script.exists()
                and script.read_bytes() == text.encode()
                and read_json(saved) == config.as_read
            ):
                return script
    except OSError as error:
        raise UserError(f'{script} cannot be written: {error.strerror or error}') from error
    raise ConfigError(
        f'--script: {script}, or {saved.name} beside it, is there for something else: name another '
        'file'
    )


def script_text(given: argparse.Namespace, config: ConfigParser, name: str, script: Path) -> str:
    words = ['train.py', '-c', script.with_suffix('.json'), '--resume-or-start']
    words += ['-d', 'cpu'] * (given.gpus == 0)
    command, python = quoted(words), quoted([sys.executable])
    if max(given.gpus, given.nodes) > 1:
        meeting = MEETING if given.nodes > 1 else '--standalone'
        n_processes = f'--nproc-per-node {max(given.gpus, 1)}'
        command = f'-m torch.distributed.run {meeting} {n_processes} {SIGNALS} {command}'
    template = SHELL if given.shell else SLURM
    return template.format(
        root=quoted([ROOT]),
        command=f'{python} {command}',
        options='\n'.join(options_of(given, config, name, script)),
        meet=MEET if given.nodes > 1 else '',
        wait=WAIT,
        saving_s=SAVING_S,
        most_requeues=MOST_REQUEUES,
        most_starts=MOST_STARTS,
    )


def options_of(
    given: argparse.Namespace, config: ConfigParser, name: str, script: Path
) -> Iterator[str]:
    """The lines for sbatch."""
    minutes = math.ceil(60 * (given.hours or 0))
    n_workers = config['data_loader'].get('args', {}).get('num_workers', 0)
    options = {
        'job-name': name,
        'output': f'{script.with_suffix("")}'.replace('%', '%%') + '-%j.out',
        'open-mode': 'append',
        'time': f'{minutes // 60}:{minutes % 60:02}:00',
        'nodes': given.nodes,
        'ntasks-per-node': 1,
        'gpus-per-node': given.gpus or None,
        'cpus-per-task': max(given.gpus, 1) * (1 + n_workers),
        'partition': given.partition,
        'requeue': '',
        'signal': f'B:USR1@{NOTICE_S}',
    }
    for option in given.option:
        key, _, value = option.lstrip('-').partition('=')
        options[key] = value
    for key, value in options.items():
        if value is not None:
            yield f'#SBATCH --{key}' + (f'={quoted([value])}' if value != '' else '')


def quoted(words: list) -> str:
    return shlex.join(map(str, words))


def hand_over(script: Path, is_shell: bool, now: bool) -> None:
    log = script.with_suffix('.log')
    command = ['bash' if is_shell else 'sbatch', str(script)]
    typed = f'nohup {quoted(command)} >> {quoted([log])} 2>&1 &' if is_shell else quoted(command)
    print(f'Wrote {script}, and the config as it is now beside it.')
    if not now:
        print(f'{"Start it" if is_shell else "Hand it over"}:  {typed}')
    elif is_shell:
        with log.open('a') as said:
            streams = {'stdin': subprocess.DEVNULL, 'stdout': said, 'stderr': said}
            started = subprocess.Popen(command, start_new_session=True, **streams)
        print(f'Started, and says what it does in {log}. To stop and save:  kill {started.pid}')
    else:
        try:
            code = subprocess.run(command).returncode
        except FileNotFoundError:
            raise UserError('there is no sbatch here: give the command where SLURM is') from None
        if code:
            raise UserError(f'sbatch refused {script} (exit code {code}): look at what it says')


if __name__ == '__main__':
    main()
