"""The one table of the config keys we know, and what a signature says about arguments.

The checker, --print-config, tools/schema.py and the table in docs/config.md read it; `settings_of`
fills in its defaults. A schema here is a small subset of JSON Schema: type, enum, minimum,
exclusiveMinimum, maximum, pattern, minLength, anyOf, items, properties, default, description.
"""

import ast
import collections.abc
import inspect
import os
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import torch

from armature.config.read import Problem, did_you_mean, show, show_path
from armature.errors import ConfigError

INTEGER, NUMBER, BOOLEAN, STRING, NULL, OBJECT, ARRAY = (
    {'type': name} for name in ('integer', 'number', 'boolean', 'string', 'null', 'object', 'array')
)
COUNT = {**INTEGER, 'minimum': 1}
ABOVE_0 = {**NUMBER, 'exclusiveMinimum': 0}
TEXTS = {**ARRAY, 'items': STRING}
TENSOR = {**ARRAY, 'items': NUMBER}  # numbers that become a torch.Tensor
ENTRY = {'anyOf': [STRING, OBJECT]}  # a name, or {"type", "args"}
PARTS = {'anyOf': [STRING, TEXTS]}
# A folder's name on every system: no hidden one, none that Windows refuses or keeps for itself.
FOLDER_NAME = {
    **STRING,
    'pattern': (
        r'^(?!\.)'
        r'(?!([cC][oO][nN]|[pP][rR][nN]|[aA][uU][xX]|[nN][uU][lL])(\.|$))'
        r'(?!([cC][oO][mM]|[lL][pP][tT])\d(\.|$))'
        r'[^<>:"/\\|?*\x00-\x1f]{0,199}[^<>:"/\\|?*\x00-\x1f. ]$'
    ),
}
NOUNS = {
    'integer': 'a whole number',
    'number': 'a number',
    'boolean': 'true or false',
    'string': 'a string',
    'null': 'null',
    'object': 'an object {...}',
    'array': 'a list [...]',
}
CLASSES = {
    'integer': int,
    'number': (int, float),
    'boolean': bool,
    'string': str,
    'null': type(None),
    'object': dict,
    'array': (list, tuple),
}
REQUIRED = object()


def _key(schema: dict, description: str, default=REQUIRED, **more) -> dict:
    more |= {} if default is REQUIRED else {'default': default}
    return {**schema, 'description': description, **more}


def _one_of(*choices) -> dict:
    return {'enum': list(choices)}


SECTION = {
    'type': _key(STRING, 'name of the class or function'),
    'args': _key(OBJECT, 'its arguments by name', {}),
}
SCHEDULER = {
    **SECTION,
    'interval': _key(_one_of('epoch', 'step'), 'when the scheduler steps', 'epoch'),
    'warmup_steps': _key(
        COUNT, 'optimizer steps in which the learning rate rises to what the scheduler says', None
    ),
}
OPTIMIZER = {
    **SECTION,
    'groups': _key(
        {**ARRAY, 'items': OBJECT},
        '[{"match": "*.bias|*norm*", "weight_decay": 0}]: other settings for some parameters',
        None,
    ),
}
METRIC = {**SECTION, 'name': _key(STRING, 'what it is called in the log', None)}
TERM = {
    **METRIC,
    'weight': _key(NUMBER, 'what the term is multiplied by, in a list of losses', 1.0),
}
COMPILE_MODES = ('default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs')

TRAINER = {
    'epochs': _key(COUNT, 'epochs to train'),
    'save_dir': _key(STRING, 'folder for runs, relative to the project', 'saved/', minLength=1),
    'save_period': _key(COUNT, 'keep a checkpoint every so many epochs', 1),
    'verbosity': _key(_one_of(0, 1, 2), 'log 0: warnings, 1: information, 2: everything', 2),
    'monitor': _key(
        STRING, "'min <metric>' or 'max <metric>' says which epoch is best; 'off'", 'off'
    ),
    'early_stop': _key(
        NUMBER, 'epochs without a better value until training stops; 0: never', None, minimum=0
    ),
    'tensorboard': _key(BOOLEAN, 'write TensorBoard logs', False),
    'trackers': _key(
        {**ARRAY, 'items': ENTRY},
        'services beside it: wandb, trackio, or a class of your own',
        None,
    ),
    'tensorboardX': _key(BOOLEAN, 'older name of tensorboard', None, deprecated=True),
    'len_epoch': _key(COUNT, 'batches an epoch has; null: one pass over the data', None),
    'max_steps': _key(COUNT, 'end the run, saved, after so many optimizer steps', None),
    'log_step': _key(COUNT, 'log every so many steps; null: ten times an epoch', None),
    'log_images': _key(BOOLEAN, 'one grid of validation images an epoch to TensorBoard', False),
    'log_histograms': _key(BOOLEAN, 'histograms of the parameters to TensorBoard', False),
    'log_graph': _key(
        BOOLEAN, 'the graph of the model to TensorBoard (one process, with validation)', False
    ),
    'save_every_steps': _key(COUNT, 'also save checkpoint-last.pth every so many steps', None),
    'save_every_minutes': _key(
        ABOVE_0, 'also save checkpoint-last.pth every so many minutes', None
    ),
    'keep_last': _key(COUNT, 'keep only the newest so many checkpoint-epoch files', None),
    'max_minutes': _key(ABOVE_0, 'save and leave after so many minutes', None),
    'on_nan': _key(_one_of('stop', 'skip'), 'what to do when the loss is not finite', 'stop'),
    'max_nan_skips': _key(COUNT, 'stop all the same after so many skipped steps in a row', 10),
    'on_save_error': _key(
        _one_of('stop', 'warn'), 'what to do when a checkpoint cannot be written', 'stop'
    ),
    'type': _key(STRING, 'the Trainer class: trainer/trainer.py, or a name with dots', 'Trainer'),
    'validate_every_steps': _key(COUNT, 'also validate inside an epoch, for the log', None),
    'precision': _key(_one_of('fp32', 'bf16', 'fp16'), 'number format of the forward pass', 'fp32'),
    'matmul_precision': _key(
        _one_of('highest', 'high', 'medium'),
        'of fp32 matrix products on a GPU; high: TF32',
        None,
    ),
    'microbatch_size': _key(
        {'anyOf': [COUNT, _one_of('auto')]},
        'samples in memory at a time; the result stays the same',
        None,
    ),
    'max_grad_norm': _key(ABOVE_0, 'clip the gradient to this norm', None),
    'max_grad_value': _key(ABOVE_0, 'clip each number of the gradient to this size', None),
    'compile': _key(
        {'anyOf': [BOOLEAN, _one_of(*COMPILE_MODES)]},
        'torch.compile the model: true, or a mode of it',
        False,
    ),
    'activation_checkpointing': _key(
        BOOLEAN, 'compute blocks again in the backward pass, to save memory', False
    ),
    'channels_last': _key(BOOLEAN, 'the memory layout that GPUs convolve fastest in', False),
    'ema_decay': _key(
        ABOVE_0, 'validate and test a moving average of the weights', None, maximum=1
    ),
    'swa_start': _key(
        COUNT,
        'validate and test the average of the weights after this epoch and each later one',
        None,
    ),
    'freeze': _key(TEXTS, 'patterns of parameters that do not train', None),
    'unfreeze_at': _key(
        OBJECT,
        '{"epoch": 3}: with that epoch they train',
        None,
        properties={'epoch': _key(INTEGER, 'the first epoch in which they train', minimum=2)},
    ),
    'pictures': _key(
        {**ARRAY, 'items': _one_of('confusion_matrix', 'precision', 'recall', 'f1', 'roc', 'pr')},
        'pictures of the validation for TensorBoard',
        None,
    ),
}

DISTRIBUTED = {
    'strategy': _key(
        _one_of('ddp', 'fsdp'), 'ddp: the model in each process; fsdp: a part of each weight', 'ddp'
    ),
    'sync_bn': _key(BOOLEAN, 'BatchNorm over the samples of all processes (on GPUs)', True),
    'find_unused_parameters': _key(
        BOOLEAN, 'for models that do not use every parameter in each step (ddp)', False
    ),
    'mixed_precision': _key(_one_of('bf16'), 'what fsdp computes and sends in', None),
    'checkpoint': _key(
        _one_of('whole', 'sharded'), 'sharded: each process writes its part (fsdp)', 'whole'
    ),
    'timeout_s': _key(ABOVE_0, 'seconds a process waits for the others', 600),
}
BATCH = {
    'data': _key(PARTS, 'name of the input, or a list of names'),
    'target': _key(PARTS, 'name of the target, or a list of names'),
}
SWEEP = {
    'params': _key(
        OBJECT,
        '{"optimizer.args.lr": {"low": 1e-5, "high": 0.1, "log": true}}: ranges, or lists of '
        'values',
        {},
    ),
    'name': _key(FOLDER_NAME, 'name of the runs; <name>_sweep when not given', None),
    'grid': _key(BOOLEAN, 'try all combinations of the lists', False),
    'n_trials': _key(COUNT, 'how many settings are tried; with a grid: all', None),
    'sampler': _key(ENTRY, 'optuna.samplers', 'TPESampler'),
    'pruner': _key(ENTRY, 'optuna.pruners: ends trials that do badly', 'NopPruner'),
    'seeds': _key(
        {**ARRAY, 'items': {**INTEGER, 'minimum': 0}},
        'each trial runs once with each, and counts by the mean',
        None,
    ),
    'folds': _key(
        {**INTEGER, 'minimum': 2},
        'cross-validation: each trial runs once on each of so many folds',
        None,
    ),
    'parallel': _key(
        COUNT, 'trials that may run at a time; the search for one knows none of these', 4
    ),
}

TOP = {
    'name': _key(FOLDER_NAME, 'name of the experiment, and of its folder'),
    'n_gpu': _key(INTEGER, 'GPUs to use; 0: the CPU', 1, minimum=0),
    'seed': _key(INTEGER, 'seed of all randomness', 123, minimum=0),
    'arch': _key(OBJECT, 'the model: model/model.py, torchvision.models', properties=SECTION),
    'data_loader': _key(
        OBJECT, 'the training data: data_loader/data_loaders.py', properties=SECTION
    ),
    'valid_data_loader': _key(
        OBJECT, 'validation data of its own, instead of a split', None, properties=SECTION
    ),
    'test_data_loader': _key(OBJECT, 'test data of its own', None, properties=SECTION),
    'optimizer': _key(OBJECT, 'torch.optim', properties=OPTIMIZER),
    'loss': _key(
        {'anyOf': [*ENTRY['anyOf'], {**ARRAY, 'items': ENTRY}]},
        'model/loss.py, torch.nn losses, torch.nn.functional',
    ),
    'metrics': _key(ARRAY, 'model/metric.py, torchmetrics', [], items=ENTRY),
    'batch': _key(
        OBJECT,
        'which parts of a batch are data and target, where it is no pair',
        None,
        properties=BATCH,
    ),
    'data_changed': _key(
        _one_of('refuse', 'continue'),
        'what a resumed run does when the data is another than before',
        'refuse',
    ),
    'lr_scheduler': _key(OBJECT, 'torch.optim.lr_scheduler', None, properties=SCHEDULER),
    'trainer': _key(OBJECT, 'the run', properties=TRAINER),
    'distributed': _key(OBJECT, 'when several processes train', {}, properties=DISTRIBUTED),
    'sweep': _key(OBJECT, 'a search: python -m tools.sweep', None, properties=SWEEP),
    'init_from': _key(
        ENTRY,
        'checkpoint to take only the weights from, or {"file", "ignore": [patterns]}',
        None,
    ),
}
FILE_ONLY = {
    'base': _key(
        {'anyOf': [STRING, ARRAY]},
        'config file or files to start from, relative to this one',
        None,
    ),
    '$schema': _key(STRING, 'JSON Schema for your editor, see tools/schema.py', None),
}
GONE = {  # keys of the first version
    ('distributed', 'write_in_background'): 'is gone: a sharded checkpoint is written '
    'before the training goes on. Leave the key out',
}


def paths_of(table: dict, path: tuple = ()) -> Iterator[tuple]:
    """The path of every key in a table, sections included."""
    for key, schema in table.items():
        yield (*path, key)
        yield from paths_of(schema.get('properties', {}), (*path, key))


def settings_of(section: dict | None, table: dict = TRAINER) -> types.SimpleNamespace:
    """What a section says, with the table's defaults for what it leaves out, as attributes.

    The keys of one's own are there too. A null stands for the default.
    """
    defaults = {key: schema['default'] for key, schema in table.items() if 'default' in schema}
    given = {key: value for key, value in (section or {}).items() if value is not None}
    if 'tensorboardX' in given:  # the older name
        given.setdefault('tensorboard', given['tensorboardX'])
    settings = types.SimpleNamespace(**defaults | given)
    if table is TRAINER:
        settings.save_dir = expanded(settings.save_dir)
    return settings


def without_nulls(values: dict, table: dict = TOP) -> dict:
    """The same config, where null at a key of the table means what leaving it out means."""
    kept = {}
    for key, value in values.items():
        if value is None and key in table:
            continue
        properties = table.get(key, {}).get('properties')
        if properties and isinstance(value, dict):
            value = without_nulls(value, properties)
        kept[key] = value
    return kept


def expanded(path: str) -> str:
    """A path where the `~` or `$NAME` that it begins with is filled in; another text as it is."""
    if not re.match(r'(~|\$[A-Z_][A-Z0-9_]*|\$\{[A-Z_][A-Z0-9_]*\})(/|$)', path):
        return path
    full = os.path.expandvars(os.path.expanduser(path))
    if full.startswith(('$', '~')):
        raise ConfigError(f'{show(path)}: the environment has no {path.partition("/")[0]}')
    return full


def judge_keys(
    section: dict,
    table: dict,
    path: tuple,
    needed: typing.Container[str] | None = None,
    is_strict: bool = True,
) -> Iterator[Problem]:
    """What is wrong with the keys of a section and their values.

    needed: the keys that may not be missing (None: all without a default). is_strict: what is
    almost a key of the table is a mistake; else the code may have a key of that name.
    """
    unknown = []
    for key, value in section.items():
        here, schema = (*path, key), table.get(key)
        if schema is None:
            near = next((known for known in table if is_near_miss(key, known)), None)
            if near and is_strict:
                yield Problem(here, f'unknown key (did you mean {near!r}?)')
            elif here in GONE:
                yield Problem(here, GONE[here], is_note=True)
            else:
                unknown.append(show_path((key,)) + did_you_mean(key, table))
        elif value is None and 'default' in schema:
            continue
        elif (expected := violation(value, schema)) is not None:
            yield Problem(here, f'expected {expected}, got {show(value)}')
        elif isinstance(value, dict) and 'properties' in schema:
            yield from judge_keys(value, schema['properties'], here, None, is_strict)
    if unknown:
        text = f'no key of ours, so it is for your own code to read: {", ".join(unknown)}'
        yield Problem(path, text, is_note=True)
    for key, schema in table.items():
        is_missing = key not in section and 'default' not in schema
        is_misspelt = any(is_near_miss(given, key) for given in section)
        if is_missing and not is_misspelt and (needed is None or key in needed):
            yield Problem((*path, key), f'is missing ({schema["description"]})')


def near_miss(key: str) -> str:
    """A regular expression for the ways to miss `key` by one letter, `_` not counting.

    A letter may be left out, added, changed or swapped. A digit or a `_word` after a key is no typo
    but a second one of its kind: arch2, optimizer_d.
    """
    letters = ['[_-]?' if letter == '_' else re.escape(letter) for letter in key]
    misses = {''.join(letters), ''.join(letters) + '[^0-9_-]'}
    for i, here in enumerate(letters):
        before, after = ''.join(letters[:i]), ''.join(letters[i + 1 :])
        misses |= {f'{before}.?{after}', f'{before}.{here}{after}'}
        if i + 1 < len(letters):
            misses.add(f'{before}{letters[i + 1]}{here}{"".join(letters[i + 2 :])}')
    return f'^(?:{"|".join(sorted(misses))})$'


def is_near_miss(name: str, key: str) -> bool:
    """Whether `name` is another spelling of `key` and not a word of its own."""
    is_as_long = name != key and abs(len(name) - len(key)) < 5
    return is_as_long and re.match(near_miss(key), name.lower()) is not None


def violation(value, schema: dict) -> str | None:
    """What `value` should have been, when `schema` forbids it; None when it is fine."""
    if value is not None and not isinstance(value, (bool, int, float, str, dict, list, tuple)):
        return None  # an object that the script has put in
    if 'anyOf' in schema:
        expected = [violation(value, each) for each in schema['anyOf']]
        return None if None in expected else ' or '.join(dict.fromkeys(expected))
    if 'enum' in schema:  # 1 is not true, 2.0 is not 2
        is_one = any(value == each and type(value) is type(each) for each in schema['enum'])
        return None if is_one else ' or '.join(show(choice) for choice in schema['enum'])
    kind = schema.get('type')
    if kind is None:
        return None
    is_boolean = isinstance(value, bool)
    if not isinstance(value, CLASSES[kind]) or is_boolean and kind != 'boolean':
        return NOUNS[kind]
    if 'pattern' in schema and (
        not re.fullmatch(schema['pattern'], value) or len(value.encode('utf-8', 'replace')) > 200
    ):
        return (
            'a folder name that is plain on every system: without / \\ : * ? " < > |, without a '
            'dot at either end, and none that Windows keeps for itself, such as CON'
        )
    if 'minLength' in schema and len(value) < schema['minLength']:
        return 'a text that is not empty'
    if 'minimum' in schema and value < schema['minimum']:
        return f'{NOUNS[kind]} of at least {schema["minimum"]}'
    if 'maximum' in schema and value > schema['maximum']:
        return f'{NOUNS[kind]} of at most {schema["maximum"]}'
    if 'exclusiveMinimum' in schema and value <= schema['exclusiveMinimum']:
        return f'{NOUNS[kind]} above {schema["exclusiveMinimum"]}'
    for index, item in enumerate(value if 'items' in schema else ()):
        if (expected := violation(item, schema['items'])) is not None:
            return f'{expected} as item {index}'
    return None


# What a signature says


def parameters(target) -> tuple[dict[str, inspect.Parameter], bool]:
    """The parameters that can be given by name, in order, and whether any others are taken too.

    A class that only passes `**options` on to its base's constructor has the base's optional
    parameters as well.
    """
    found = _signature(target)
    if found is None:
        return {}, True
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {each.name: each for each in found if each.kind in by_name}
    others = next((each.name for each in found if each.kind == each.VAR_KEYWORD), None)
    is_class = inspect.isclass(target)
    if others is None or not is_class or not _only_passes_on(target.__init__, others):
        return named, others is not None
    owners = [each for each in target.__mro__ if '__init__' in vars(each)]
    inherited, is_open = parameters(owners[1])
    optional = {
        name: each
        for name, each in inherited.items()
        if name not in named and each.default is not each.empty
    }
    return named | optional, is_open


def _signature(target) -> list[inspect.Parameter] | None:
    """Its parameters, annotations that are text evaluated; None for what is written in C."""
    try:
        return list(inspect.signature(target, eval_str=True).parameters.values())
    except Exception:  # names in annotations may stand there only for type checkers
        pass
    try:
        return list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return None


def _only_passes_on(function, name: str) -> bool:
    """Whether the one thing that `function` does with **name is super().__init__(..., **name)."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return False
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name]
    passed_on = [
        keyword.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == 'super().__init__'
        for keyword in node.keywords
        if keyword.arg is None
    ]
    return len(uses) == 1 and uses[0] in passed_on


def argument_schema(parameter: inspect.Parameter) -> dict:
    """What a config may give for a parameter: by its annotation, or as its default tells."""
    default = parameter.default
    if parameter.annotation is not parameter.empty:
        schema = _of_annotation(parameter.annotation)
        return _union([schema, NULL]) if default is None else schema
    if isinstance(default, bool):  # "yes" would count as true, and so would "no"
        return {'anyOf': [BOOLEAN, INTEGER, NULL, OBJECT]}
    return {}


def takes(parameter: inspect.Parameter, schema: dict) -> bool:
    """Whether a parameter is annotated so that it may be given this (TENSOR, or OBJECT)."""
    options = argument_schema(parameter)
    is_annotated = parameter.annotation is not parameter.empty
    return is_annotated and schema in options.get('anyOf', [options])


PLAIN = {
    int: INTEGER,
    float: NUMBER,
    bool: BOOLEAN,
    str: STRING,
    Path: STRING,
    type(None): NULL,
    None: NULL,
    dict: OBJECT,
    collections.abc.Mapping: OBJECT,
    torch.Tensor: TENSOR,
}
LISTS = (list, tuple, set, collections.abc.Sequence, collections.abc.Iterable)


def _of_annotation(annotation) -> dict:
    origin, inner = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin is typing.Annotated:
        return _of_annotation(inner[0])
    if origin in (typing.Union, types.UnionType):
        options = [_of_annotation(each) for each in inner]
        # Where a number will do, a tensor means the number in one.
        return _union([each for each in options if each is not TENSOR or NUMBER not in options])
    if origin is typing.Literal:
        return {'enum': list(inner)}
    if origin in LISTS:
        kinds = {each for each in inner if each is not ...}
        items = _of_annotation(inner[0]) if len(kinds) == 1 else {}
        return {**ARRAY, 'items': items} if items else ARRAY
    try:
        return PLAIN.get(origin, {})
    except TypeError:  # an annotation may be anything
        return {}


def _union(options: list[dict]) -> dict:
    flat = [each for option in options for each in option.get('anyOf', [option])]
    unique = [each for index, each in enumerate(flat) if each not in flat[:index]]
    return {} if {} in unique else unique[0] if len(unique) == 1 else {'anyOf': unique}
