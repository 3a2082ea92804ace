"""What needs a GPU, tried by one command, most valuable first: python -m tests.gpu --out DIR

DIR/gpu.md and DIR/gpu.json hold a row for each thing that was asked, from the first part on, so
that a stop leaves the table; DIR/logs.txt what each part said. Every part is a process of its own,
forked from this one, which has imported everything and never touches the GPU; it is ended at its
limit. What is asked stands in tests/gpu_parts.py. `--dry-run` does all of it on the CPU, with tiny
sizes, and names what it cannot.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests import warm

# torch.cuda.is_available() by the driver's library: asked otherwise, CUDA could not begin in a fork
ASK_DRIVER = 'PYTORCH_NVML_BASED_CUDA_CHECK'
os.environ[ASK_DRIVER] = '1'
ROOT = Path(__file__).resolve().parent.parent
SIDE_BY_SIDE = 6 if len(os.sched_getaffinity(0)) >= 12 else 2  # parts that measure no time
LOG_CHARACTERS = 60_000  # of each part, from its end


class Part:
    """One part in its process: its rows so far are in a file, a line each.

    is_fresh: start Python anew there, where a fork cannot use the GPU.
    """

    def __init__(self, name: str, function, limit_s: float, folder: Path, is_fresh: bool):
        self.name, self.limit_s = name, limit_s
        self.rows_file, self.log = folder / f'{name}.rows', folder / f'{name}.log'
        self.end, self.begun = '', time.monotonic()
        self.pid = os.fork()
        os.setpgid(self.pid, self.pid)  # a group of its own, whichever of both is first
        if self.pid == 0:
            try:
                _begin(self.log)
                if is_fresh:
                    command = [sys.executable, '-m', 'tests.gpu', '--part', name]
                    os.execv(sys.executable, [*command, str(self.rows_file)])
                run_part(function, self.rows_file)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)  # what stands below this in the stack is not this process's

    def is_over(self) -> bool:
        """Whether it has ended; ends it, with all that it started, at its limit."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid and time.monotonic() - self.begun > self.limit_s:
            self.end = f'stopped at its limit of {self.limit_s:.0f} s'
            self.kill()
            os.waitpid(self.pid, 0)
        elif pid and status:
            code = os.waitstatus_to_exitcode(status)
            by = signal.Signals(-code).name if code < 0 else f'itself, with {code}'
            self.end = f'ended by {by}'
        elif not pid:
            return False
        self.kill()  # workers that are left
        return True

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def rows(self) -> list[dict]:
        lines = self.rows_file.read_text().splitlines() if self.rows_file.exists() else []
        told = [json.loads(line) for line in lines if line.endswith('}')]
        rows = [{'part': self.name, **each} for each in told if 'seen' in each]
        if self.end:
            asked = told[-1]['asked'] if told and 'seen' not in told[-1] else 'the part'
            rows.append(row_of(asked, f'failed: {self.end}', False, 0, part=self.name))
        return rows


def row_of(asked: str, seen: str, holds: bool | None, seconds: float, **part: str) -> dict:
    return {**part, 'asked': asked, 'seen': seen, 'holds': holds, 'seconds': round(seconds, 1)}


def _begin(log: Path) -> None:
    """In a new process, whose output goes to `log`."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(ROOT)
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    # In a script that is forked from here others take their place: the files stay open.
    streams = (io.FileIO(number, 'w', closefd=False) for number in (1, 2))
    sys.stdout, sys.stderr = (io.TextIOWrapper(each, line_buffering=True) for each in streams)


def run_part(function, rows_file: Path) -> None:
    """Make the checks that `function(folder)` yields as (asked, check), a row each, and leave.

    check() -> (seen, whether it holds; None where nothing was promised).
    """
    from tests.gpu_parts import NotHere

    del os.environ[ASK_DRIVER]
    folder = Path(tempfile.mkdtemp(prefix='gpu'))

    def tell(told: dict) -> None:
        with open(rows_file, 'a') as file:
            file.write(json.dumps(told) + '\n')

    def attempt(check):
        begun = time.monotonic()
        try:
            seen, holds = check()
        except NotHere as reason:
            seen, holds = f'not tried: {reason}', None
        except BaseException as error:
            traceback.print_exc()
            last = [line for line in str(error).splitlines() if line.strip()] or ['']
            seen, holds = f'failed: {type(error).__name__}: {last[-1]}'[:300], False
        return seen, holds, time.monotonic() - begun

    def next_check():
        nonlocal due
        due = next(checks, None)
        return '', None

    checks, due = function(folder), None
    while True:
        seen, holds, seconds = attempt(next_check)  # what a part does between its checks may fail
        if seen:
            tell(row_of('the part', seen, holds, seconds))
        if seen or due is None:
            break
        asked, check = due
        print(f'--- {asked}', flush=True)
        tell({'asked': asked})
        tell(row_of(asked, *attempt(check)))
        sys.stdout.flush()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def write(out: Path, rows: list[dict]) -> None:
    """gpu.json and gpu.md, each whole or not at all."""
    header = next((row['seen'] for row in rows if row['part'] == 'machine'), '')
    marks = {True: 'yes', False: '**no**', None: '-'}
    columns = ('part', 'asked', 'seen', 'holds', 'seconds')
    lines = [header, '', f'| {" | ".join(columns)} |', '|---|---|---|---|---|']
    for row in rows:
        cells = [row['part'], row['asked'], row['seen'], marks[row['holds']], str(row['seconds'])]
        lines.append(f'| {" | ".join(each.replace("|", "/") for each in cells)} |')
    table = json.dumps({'header': header, 'rows': rows}, indent=1)
    for name, text in (('gpu.json', table), ('gpu.md', '\n'.join(lines) + '\n')):
        unfinished = out / f'.{name}'
        unfinished.write_text(text)
        os.replace(unfinished, out / name)


def write_logs(out: Path, parts: list[Part]) -> None:
    with open(out / 'logs.txt', 'w') as file:
        for part in parts:
            text = part.log.read_text(errors='replace') if part.log.exists() else ''
            file.write(f'\n===== {part.name}\n{text[-LOG_CHARACTERS:]}\n')


def try_all(parts: dict, names: list[str], out: Path, ends_at: float, limits: float = 1) -> list:
    """Try the parts in order, those that are alone by themselves; returns the rows."""
    folder, begun, waiting, running = Path(tempfile.mkdtemp()), [], list(names), []
    is_fresh = is_stopped = False

    def save() -> list[dict]:
        rows = [row for part in begun for row in part.rows()]
        late = 'no time was left' if time.monotonic() > ends_at else ''
        if reason := 'stopped from outside' if is_stopped else late:
            reason = f'not tried: {reason}'
            rows += [row_of('the part', reason, None, 0, part=name) for name in waiting]
        write(out, rows)
        return rows

    try:
        while running or waiting and time.monotonic() < ends_at:
            while waiting and time.monotonic() < ends_at:
                function, limit_s, is_alone = parts[waiting[0]]
                n_most = (
                    1 if is_alone or any(parts[each.name][2] for each in running) else SIDE_BY_SIDE
                )
                if len(running) >= n_most:
                    break
                limit_s = max(1.0, min(limit_s * limits, ends_at - time.monotonic()))
                running.append(Part(waiting[0], function, limit_s, folder, is_fresh))
                begun.append(running[-1])
                waiting.pop(0)
            over = [part for part in running if part.is_over()]
            for part in over:
                running.remove(part)
                if part.name == 'machine' and part.rows()[-1]['holds'] is False:
                    if is_fresh:  # there is no GPU, or torch cannot use it
                        waiting.clear()
                    else:
                        is_fresh = True
                        waiting.insert(0, begun.pop().name)
                        part.rows_file.unlink()
                took = time.monotonic() - part.begun
                print(f'{part.name}: {took:.0f} s {part.end}', flush=True)
            if over:
                save()
                write_logs(out, begun)
            time.sleep(0.1)
    except SystemExit:
        is_stopped = True
        raise
    finally:
        for part in running:
            part.kill()
            part.end = 'stopped from outside'
        rows = save()
        write_logs(out, begun)
        shutil.rmtree(folder, ignore_errors=True)
    return rows


def main() -> None:
    from tests import gpu_parts

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=8, help='for all parts together')
    parser.add_argument('--out', type=Path, help='folder of the table')
    parser.add_argument('--dry-run', action='store_true', help='on the CPU, with tiny sizes')
    parser.add_argument('--only', nargs='+', metavar='PART', choices=gpu_parts.PARTS, default=None)
    parser.add_argument('--limits', type=float, default=1, help="times each part's limit")
    parser.add_argument('--part', nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    ends_at = time.monotonic() + 60 * given.minutes
    if given.part:
        run_part(gpu_parts.PARTS[given.part[0]][0], Path(given.part[1]))
    if given.out is None:
        parser.error('--out DIR is missing: where the table goes')
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for name in warm.LIBRARIES:
        importlib.import_module(name)
    gpu_parts.ON_GPU = not given.dry_run
    given.out.mkdir(parents=True, exist_ok=True)
    names = given.only or list(gpu_parts.PARTS)
    names = ['machine', *(name for name in names if name != 'machine')]
    rows = try_all(gpu_parts.PARTS, names, given.out, ends_at, given.limits)
    n_held, n_broken = (sum(row['holds'] is what for row in rows) for what in (True, False))
    print(f'{n_held} hold, {n_broken} do not: {given.out / "gpu.md"}')
    sys.exit(n_broken > 0)


if __name__ == '__main__':
    main()
