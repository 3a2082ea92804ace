"""What a run has left behind, whatever is missing or damaged. Needs the standard library only."""

import csv
import math
from pathlib import Path
from typing import Any

from armature.run_files import (
    CONFIG,
    RECORD,
    TABLE,
    TEST,
    VERSION,
    is_trained,
    read_object,
    read_table,
    values_of,
)

TEXTS = ('state', 'reason', 'begun', 'ended', 'monitor', 'resumed_from')  # null where unknown
OBJECTS = ('git', 'versions', 'hardware', 'data', 'trackers')  # empty where unknown


def find_runs(save_dir: str | Path) -> list[Path]:
    """All run folders below trainer.save_dir, by experiment and name."""
    runs = Path(save_dir) / 'models'
    files = [path for name in (RECORD, CONFIG, '*.pth') for path in runs.glob(f'*/*/{name}')]
    return sorted({path.parent for path in files})


def read_record(folder: str | Path) -> dict[str, Any]:
    """The run.json of a run, with its state as it is now; every key is there.

    A run that is "running" although nobody trains in its folder is "killed". What is missing or
    damaged is filled in from config.json and metrics.csv, or is None; "note" then says so. Never
    raises.
    """
    folder = Path(folder)
    found, note = read_object(folder / RECORD)
    if found and found.get('version') != VERSION:
        note = f'{RECORD} is of version {found.get("version")}, this program knows {VERSION}'
    kinds = dict.fromkeys(TEXTS, str) | dict.fromkeys((*OBJECTS, 'best', 'last'), dict)
    kinds |= {'command': list, 'seconds': (int, float)}
    for key, kind in kinds.items():
        if not isinstance(found.get(key), kind):
            found[key] = {} if key in OBJECTS else None
    for key in ('best', 'last'):
        if found[key] is not None and not isinstance(found[key].get('values'), dict):
            found[key] = None
    for key, kind in (('commit', str), ('changes', str), ('left_out', list)):
        if not isinstance(found['git'].get(key), kind):
            found['git'].pop(key, None)
    record = {'version': VERSION, 'run': folder.resolve().name, 'seed': None} | found
    classes = record['data'].get('class_names')
    record['classes'] = classes if isinstance(classes, list) else None
    config, rows = read_config(folder), []
    record['name'] = str(record.get('name') or folder.resolve().parent.name)
    settings = config.get('trainer')
    if record['monitor'] is None:
        record['monitor'] = str(settings.get('monitor') if isinstance(settings, dict) else 'off')
    if None in (record['last'], record['best']):  # reading a long table takes a while
        try:
            rows = read_table(folder / TABLE)
        except (OSError, csv.Error) as error:
            note = f'{TABLE} cannot be read: {error}'
    for key, row in (('last', rows[-1] if rows else None), ('best', best_of(rows, record))):
        if record[key] is None and row is not None:
            where = {'epoch': row['epoch'], 'step': row.get('step')}
            record[key] = where | {'values': values_of(row)}
    if record['state'] == 'running' and not is_trained(folder):
        record['state'] = 'killed'
    return record | {'state': record['state'] or 'unknown', 'note': note}


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config of a run; empty where it is missing or damaged."""
    return read_object(Path(folder) / CONFIG)[0]


def read_test(folder: str | Path) -> dict[str, Any] | None:
    """What test.py found of a run; None where it is missing or damaged."""
    found = read_object(Path(folder) / TEST)[0]
    return found if isinstance(found.get('values'), dict) else None


def best_of(rows: list[dict], record: dict) -> dict | None:
    """The row that is best by the monitor of a record, the first of equals; None without any."""
    mode, _, metric = record['monitor'].partition(' ')
    known = [row for row in rows if isinstance(row.get(metric), (int, float))]
    known = [row for row in known if not math.isnan(row[metric])]
    if not known or mode not in ('min', 'max'):
        return None
    return {'min': min, 'max': max}[mode](known, key=lambda row: row[metric])
