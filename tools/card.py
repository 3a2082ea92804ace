"""Pack a run for others: python -m tools.card saved/models/NAME/RUN

Writes a folder with the tested weights (weights.safetensors), the config, the names of the classes
and a model card (README.md) to publish. load_run and predict.py -r take that folder.
"""

import argparse
import csv
import hashlib
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from armature.checkpoint import files as checkpoint
from armature.checkpoint import packed
from armature.checkpoint.weights import tested_weights
from armature.config.build import ROOT
from armature.errors import ConfigError, exit_on_user_error
from armature.run_files import TABLE, read_table, values_of
from tools import packing
from tools.new_folder import new_folder, refuse_existing
from tools.run_files import read_record, read_test

SHARES = ('accuracy', 'binary_accuracy', 'top_k_acc')  # of the samples, as model/metric.py has them
Z = 1.96  # of a 95 % interval


def pack(run: str | Path, folder: Path | None = None) -> Path:
    """The folder that was written; without one, RUN/card."""
    path = checkpoint.find(str(run), ROOT, best_first=True).resolve()
    folder = folder or path.parent / 'card'
    refuse_existing(folder)
    state = checkpoint.load(path)
    if not isinstance(state.get('config'), dict):
        raise ConfigError(f'{path} holds no config, which says what its model is')
    with new_folder(folder) as unfinished:
        packing.write(state, unfinished / packed.FILE)
        classes = (state.get('data') or {}).get('class_names')
        for name, content in (('config.json', state['config']), ('classes.json', classes)):
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (unfinished / name).write_text(text + '\n', encoding='utf-8')
        text = card(state, read_record(path.parent), *measured(path, state))
        (unfinished / 'README.md').write_text(text, encoding='utf-8')
    return folder


def measured(path: Path, state: dict) -> tuple[dict | None, dict | None]:
    """(what test.py, what the validation found of this checkpoint); None where of another one."""
    test, rows = read_test(path.parent), []
    with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    match test:
        case {'checkpoint': {'sha256': found}} if found == digest:
            pass
        case _:
            test = None
    record = read_record(path.parent)
    with suppress(OSError, csv.Error):
        rows = [{**row, 'values': values_of(row)} for row in read_table(path.parent / TABLE)]
    known = [each for each in (record['best'], record['last'], *rows) if each]
    here = [each['values'] for each in known if each.get('epoch') == state.get('epoch')]
    return test, here[0] if here and not state.get('samples') else None


def card(
    state: dict, record: dict[str, Any], test: dict[str, Any] | None, validated: dict | None
) -> str:
    """The text of a model card. test, validated: what was measured of this checkpoint."""
    config, weights = state['config'], tested_weights(state)
    name, arch, data = (config.get(each) or {} for each in ('name', 'arch', 'data_loader'))
    classes = (state.get('data') or {}).get('class_names')
    n_parameters = sum(each.numel() for each in weights.values() if hasattr(each, 'numel'))
    fingerprint = (state.get('data') or {}).get('fingerprint') or {}
    versions, hardware = record.get('versions') or {}, record.get('hardware') or {}
    told = {
        'model': f'{arch.get("type", state.get("arch"))}, {n_parameters:,} numbers',
        'classes': ', '.join(map(str, classes or [])),
        'trained on': f'{data.get("type")}, {fingerprint.get("number of samples", "?")} samples',
        'epochs': state.get('epoch'),
        'seed': state.get('seed'),
        'seconds of training': _round(record.get('seconds')),
        'device': hardware.get('device'),
        'commit': (record.get('git') or {}).get('commit'),
        'versions': ', '.join(f'{each} {versions[each]}' for each in versions if each == 'torch'),
        'date': record.get('ended') or record.get('begun'),
    }
    facts = '\n'.join(f'- {key}: {value}' for key, value in told.items() if value)
    return f"""# {name}

What it is for, and what it must not be used for: yours to write.

{facts}

## Results

{results(test, validated)}

## Use

In a copy of the project that trained it (it has the code of `{arch.get('type')}`):

```python
from predict import load_run

run = load_run('path/of/this/folder')
print(run.predict(['an input']))
```

or `python predict.py -r path/of/this/folder INPUT... -o predictions.csv`. `weights.safetensors` is
a plain dict of tensors for any other program.

## Config

```json
{json.dumps(config, indent=2, ensure_ascii=False)}
```
"""


def results(test: dict[str, Any] | None, validated: dict | None) -> str:
    """A table of what was measured, on test data where it was."""
    if test and test.get('values'):
        n = test.get('n_samples')
        values, where = test['values'], f'{n:,} test samples' if n else 'the test data'
    else:
        values, n = validated or {}, None
        where = 'the validation data; `python test.py` measures on test data'
    rows = [
        f'| {name} | {_round(value)} | {interval(name, value, n)} |'
        for name, value in values.items()
    ]
    if not rows:
        return 'Not measured.'
    head = ['| | value | 95 % interval |', '|---|---|---|']
    return '\n'.join([f'On {where}:', '', *head, *rows])


def interval(name: str, value: Any, n: int | None) -> str:
    """Of a share of n samples (Wilson, 1927); '' of anything else."""
    if name not in SHARES or not n or not isinstance(value, (int, float)):
        return ''
    middle = (value + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(value * (1 - value) / n + Z * Z / (4 * n * n))
    return f'{middle - half:.4g} to {middle + half:.4g}'


def _round(value: Any) -> Any:
    return f'{value:.4g}' if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('run', metavar='RUN', help='a run folder, or a checkpoint')
    parser.add_argument('-o', '--output', metavar='FOLDER', help='a new one; RUN/card, without it')
    with exit_on_user_error():
        given = parser.parse_args()
        folder = pack(given.run, Path(given.output).expanduser() if given.output else None)
        print(f'{folder} is packed: README.md is the card')


if __name__ == '__main__':
    main()
