"""The one table of the config keys we know, and the JSON Schema of everything else a config can say: the arguments of classes.

The checker, --print-config, tools/schema.py and the table in docs/config.md all read it. A schema here is a small subset of JSON
Schema: type, enum, minimum, exclusiveMinimum, anyOf, items, default, description.
"""

import ast
import collections.abc
import inspect
import math
import re
import textwrap
import types
import typing
from pathlib import Path

import torch

from armature.config.read import show

INTEGER, NUMBER, BOOLEAN, STRING, NULL = (
    {'type': name} for name in ('integer', 'number', 'boolean', 'string', 'null')
)
OBJECT, ARRAY = {'type': 'object'}, {'type': 'array'}
TENSOR = {'type': 'array', 'items': NUMBER}  # numbers that become a torch.Tensor
PARTS = {'anyOf': [STRING, {**ARRAY, 'items': STRING}]}
ENTRY = {'anyOf': [STRING, OBJECT]}  # a name, or {"type", "args"}
FOLDER_NAME = r'^(?!\.)[^/\\\x00-\x1f]{1,200}$'
NOUNS = {
    'integer': 'a whole number',
    'number': 'a number',
    'boolean': 'true or false',
    'string': 'a string',
    'null': 'null',
    'object': 'an object {...}',
    'array': 'a list [...]',
}


def _key(schema: dict, description: str, **more) -> dict:
    return {**schema, **more, 'description': description}


SECTION = {
    'type': _key(STRING, 'name of the class or function'),
    'args': _key(OBJECT, 'its arguments by name', default={}),
}
SCHEDULER = {
    **SECTION,
    'interval': _key(STRING, 'when the scheduler steps', enum=['epoch', 'step'], default='epoch'),
    'warmup_steps': _key(
        INTEGER,
        'optimizer steps in which the learning rate rises to what the scheduler says',
        minimum=1,
        default=None,
    ),
}
OPTIMIZER = {
    **SECTION,
    'groups': _key(
        {**ARRAY, 'items': OBJECT},
        '[{"match": "*.bias|*norm*", "weight_decay": 0}]: other settings for some parameters',
        default=None,
    ),
}
TERM = {
    **SECTION,
    'weight': _key(NUMBER, 'what the term is multiplied by, in a list of losses', default=1.0),
    'name': _key(STRING, 'what the term is called in the log', default=None),
}

TRAINER = {
    'epochs': _key(INTEGER, 'epochs to train', minimum=1),
    'save_dir': _key(
        STRING, 'folder for runs, relative to the project', default='saved/', minLength=1
    ),
    'save_period': _key(INTEGER, 'keep a checkpoint every so many epochs', minimum=1, default=1),
    'verbosity': _key(
        INTEGER, 'log 0: warnings, 1: information, 2: everything', enum=[0, 1, 2], default=2
    ),
    'monitor': _key(
        STRING, "'min <metric>' or 'max <metric>' says which epoch is best; 'off'", default='off'
    ),
    'early_stop': _key(
        NUMBER,
        'epochs without a better value until training stops; 0: never',
        minimum=0,
        default=None,
    ),
    'tensorboard': _key(BOOLEAN, 'write TensorBoard logs', default=False),
    'tensorboardX': _key(BOOLEAN, 'older name of tensorboard', default=None, deprecated=True),
    'len_epoch': _key(
        INTEGER, 'batches an epoch has; null: one pass over the data', minimum=1, default=None
    ),
    'max_steps': _key(
        INTEGER, 'end the run, saved, after so many optimizer steps', minimum=1, default=None
    ),
    'log_step': _key(
        INTEGER, 'log every so many steps; null: ten times an epoch', minimum=1, default=None
    ),
    'log_images': _key(
        BOOLEAN, 'one grid of validation images an epoch to TensorBoard', default=False
    ),
    'log_histograms': _key(BOOLEAN, 'histograms of the parameters to TensorBoard', default=False),
    'save_every_steps': _key(
        INTEGER, 'also save checkpoint-last.pth every so many steps', minimum=1, default=None
    ),
    'save_every_minutes': _key(
        NUMBER,
        'also save checkpoint-last.pth every so many minutes',
        exclusiveMinimum=0,
        default=None,
    ),
    'keep_last': _key(
        INTEGER, 'keep only the newest so many checkpoint-epoch files', minimum=1, default=None
    ),
    'max_minutes': _key(
        NUMBER, 'save and leave after so many minutes', exclusiveMinimum=0, default=None
    ),
    'on_nan': _key(
        STRING, 'what to do when the loss is not finite', enum=['stop', 'skip'], default='stop'
    ),
    'max_nan_skips': _key(
        INTEGER, 'stop all the same after so many skipped steps in a row', minimum=1, default=10
    ),
    'on_save_error': _key(
        STRING,
        'what to do when a checkpoint cannot be written',
        enum=['stop', 'warn'],
        default='stop',
    ),
    'type': _key(
        STRING, 'the Trainer class: trainer/trainer.py, or a name with dots', default='Trainer'
    ),
    'validate_every_steps': _key(
        INTEGER, 'also validate inside an epoch, for the log', minimum=1, default=None
    ),
    'precision': _key(
        STRING, 'number format of the forward pass', enum=['fp32', 'bf16', 'fp16'], default='fp32'
    ),
    'matmul_precision': _key(
        STRING,
        'of fp32 matrix products on a GPU; high: TF32',
        enum=['highest', 'high', 'medium'],
        default=None,
    ),
    'microbatch_size': _key(
        {'anyOf': [{**INTEGER, 'minimum': 1}, {'enum': ['auto']}]},
        'samples in memory at a time; the result stays the same',
        default=None,
    ),
    'max_grad_norm': _key(
        NUMBER, 'clip the gradient to this norm', exclusiveMinimum=0, default=None
    ),
    'max_grad_value': _key(
        NUMBER, 'clip each number of the gradient to this size', exclusiveMinimum=0, default=None
    ),
    'compile': _key(
        {'anyOf': [BOOLEAN, STRING]},
        'torch.compile the model: true, or a mode of it',
        default=False,
    ),
    'activation_checkpointing': _key(
        BOOLEAN, 'compute blocks again in the backward pass, to save memory', default=False
    ),
    'channels_last': _key(
        BOOLEAN, 'the memory layout that GPUs convolve fastest in', default=False
    ),
    'ema_decay': _key(
        {**NUMBER, 'exclusiveMinimum': 0, 'maximum': 1},
        'validate and test a moving average of the weights',
        default=None,
    ),
    'swa_start': _key(
        INTEGER,
        'validate and test the average of the weights after this epoch and each later one',
        minimum=1,
        default=None,
    ),
    'freeze': _key(
        {**ARRAY, 'items': STRING}, 'patterns of parameters that do not train', default=None
    ),
    'unfreeze_at': _key(
        OBJECT,
        '{"epoch": 3}: with that epoch they train',
        default=None,
        properties={'epoch': _key(INTEGER, 'the first epoch in which they train', minimum=2)},
    ),
    'pictures': _key(
        {**ARRAY, 'items': {'enum': ['confusion_matrix', 'precision', 'recall', 'f1', 'roc']}},
        'pictures of the validation for TensorBoard',
        default=None,
    ),
}

DISTRIBUTED = {
    'strategy': _key(
        STRING,
        'ddp: the model in each process; fsdp: a part of each weight',
        enum=['ddp', 'fsdp'],
        default='ddp',
    ),
    'sync_bn': _key(BOOLEAN, 'BatchNorm over the samples of all processes (on GPUs)', default=True),
    'find_unused_parameters': _key(
        BOOLEAN, 'for models that do not use every parameter in each step (ddp)', default=False
    ),
    'mixed_precision': _key(STRING, 'what fsdp computes and sends in', enum=['bf16'], default=None),
    'checkpoint': _key(
        STRING,
        'sharded: each process writes its part (fsdp)',
        enum=['whole', 'sharded'],
        default='whole',
    ),
    'timeout_s': _key(
        NUMBER, 'seconds a process waits for the others', exclusiveMinimum=0, default=600
    ),
}

# Keys of the first version that do nothing any more.
GONE = {
    'distributed.write_in_background': 'is gone: a sharded checkpoint is written before the '
    'training goes on. Leave the key out',
}

TOP = {
    'name': _key(STRING, 'name of the experiment, and of its folder', pattern=FOLDER_NAME),
    'n_gpu': _key(INTEGER, 'GPUs to use; 0: the CPU', minimum=0, default=1),
    'seed': _key(INTEGER, 'seed of all randomness', minimum=0, default=123),
    'arch': _key(OBJECT, 'the model: model/model.py, torchvision.models', properties=SECTION),
    'data_loader': _key(
        OBJECT, 'the training data: data_loader/data_loaders.py', properties=SECTION
    ),
    'valid_data_loader': _key(
        OBJECT, 'validation data of its own, instead of a split', properties=SECTION, default=None
    ),
    'test_data_loader': _key(OBJECT, 'test data of its own', properties=SECTION, default=None),
    'optimizer': _key(OBJECT, 'torch.optim', properties=OPTIMIZER),
    'loss': _key(
        {'anyOf': [*ENTRY['anyOf'], {**ARRAY, 'items': ENTRY}]},
        'model/loss.py, torch.nn losses, torch.nn.functional',
    ),
    'metrics': _key(ARRAY, 'model/metric.py, torchmetrics', items=ENTRY, default=[]),
    'batch': _key(
        OBJECT,
        'which parts of a batch are data and target, where it is no pair',
        default=None,
        properties={
            'data': _key(PARTS, 'name of the input, or a list of names'),
            'target': _key(PARTS, 'name of the target, or a list of names'),
        },
    ),
    'data_changed': _key(
        STRING,
        'what a resumed run does when the data is another than before',
        enum=['refuse', 'continue'],
        default='refuse',
    ),
    'lr_scheduler': _key(OBJECT, 'torch.optim.lr_scheduler', properties=SCHEDULER, default=None),
    'trainer': _key(OBJECT, 'the run', properties=TRAINER),
    'distributed': _key(OBJECT, 'when several processes train', properties=DISTRIBUTED, default={}),
    'init_from': _key(
        ENTRY,
        'checkpoint to take only the weights from, or {"file", "ignore": [patterns]}',
        default=None,
    ),
}
FILE_ONLY = {
    'base': _key(
        {'anyOf': [STRING, ARRAY]},
        'config file or files to start from, relative to this one',
        default=None,
    ),
    '$schema': _key(STRING, 'JSON Schema for your editor, see tools/schema.py', default=None),
}


def settings_of(section: dict | None, table: dict = TRAINER) -> types.SimpleNamespace:
    """What a section says, with the table's defaults for what it leaves out, as attributes.

    The keys of one's own are there too. A null stands for the default.
    """
    defaults = {key: schema['default'] for key, schema in table.items() if 'default' in schema}
    given = {key: value for key, value in (section or {}).items() if value is not None}
    if 'tensorboardX' in given:  # the older name
        given.setdefault('tensorboard', given['tensorboardX'])
    return types.SimpleNamespace(**defaults | given)


def is_known(path: tuple) -> bool:
    """Whether `path` is a key we know, or an argument of a class (which its signature decides)."""
    properties = TOP
    for depth, key in enumerate(path):
        if depth and path[depth - 1] == 'args':
            return True
        if key not in properties:
            return False
        properties = properties[key].get('properties', {})
    return True


def without_nulls(values: dict) -> dict:
    """The same config, where null at a key of the table means what leaving it out means."""
    kept = {key: value for key, value in values.items() if value is not None or key not in TOP}
    if isinstance(kept.get('trainer'), dict):
        kept['trainer'] = {
            key: value
            for key, value in kept['trainer'].items()
            if value is not None or key not in TRAINER
        }
    return kept


def near_miss(key: str) -> str:
    """A regular expression for the ways to miss `key` by one letter (left out, added, changed, swapped), `_` not counting.

    A digit or a `_word` after a key is no typo but a second one of its kind: arch2, optimizer_d.
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
    return (
        name != key
        and abs(len(name) - len(key)) < 5
        and re.match(near_miss(key), name.lower()) is not None
    )


def violation(value, schema: dict) -> str | None:
    """What `value` should have been, when `schema` forbids it; None when it is fine."""
    if 'anyOf' in schema:
        expected = [violation(value, each) for each in schema['anyOf']]
        return None if None in expected else ' or '.join(dict.fromkeys(expected))
    kind = schema.get('type')
    if kind is not None and not _is(value, kind):
        return NOUNS[kind] if 'enum' not in schema else _choices(schema)
    if 'enum' in schema and value not in schema['enum']:
        return _choices(schema)
    if 'pattern' in schema and (
        not re.fullmatch(schema['pattern'], value) or len(value.encode('utf-8', 'replace')) > 200
    ):
        return 'a plain folder name, without slashes and not starting with a dot'
    if 'minLength' in schema and len(value) < schema['minLength']:
        return 'a text that is not empty'
    if value is not None and kind in ('integer', 'number'):
        if 'minimum' in schema and value < schema['minimum']:
            return f'{NOUNS[kind]} of at least {schema["minimum"]}'
        if 'maximum' in schema and value > schema['maximum']:
            return f'{NOUNS[kind]} of at most {schema["maximum"]}'
        if 'exclusiveMinimum' in schema and value <= schema['exclusiveMinimum']:
            return f'{NOUNS[kind]} above {schema["exclusiveMinimum"]}'
    if kind == 'array' and 'items' in schema:
        for index, item in enumerate(value):
            if (expected := violation(item, schema['items'])) is not None:
                return f'{expected} as item {index}'
    return None


def _is(value, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == 'boolean'
    return isinstance(
        value,
        {
            'integer': int,
            'number': (int, float),
            'boolean': bool,
            'string': str,
            'null': type(None),
            'object': dict,
            'array': (list, tuple),
        }[kind],
    )


def _choices(schema: dict) -> str:
    return ' or '.join(show(choice) for choice in schema['enum'])


def parameters(target) -> tuple[dict[str, inspect.Parameter], bool]:
    """The parameters of a class or function that can be given by name, in order, and whether it takes any others too.

    A class that only passes `**options` on to its base's constructor has the base's optional parameters as well.
    """
    try:
        found = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # some written in C tell nothing
        return {}, True
    named = {
        each.name: each
        for each in found
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    }
    others = next((each.name for each in found if each.kind == each.VAR_KEYWORD), None)
    if (
        others is None
        or not inspect.isclass(target)
        or not _only_passes_on(target.__init__, others)
    ):
        return named, others is not None
    base = next(
        (
            each
            for each in target.__mro__[target.__mro__.index(_owner_of_init(target)) + 1 :]
            if '__init__' in vars(each)
        ),
        object,
    )
    inherited, is_open = parameters(base)
    return named | {
        name: each
        for name, each in inherited.items()
        if name not in named and each.default is not each.empty
    }, is_open


def _owner_of_init(target: type) -> type:
    return next(each for each in target.__mro__ if '__init__' in vars(each))


def _only_passes_on(function, name: str) -> bool:
    """Whether the one thing that `function` does with its **name is super().__init__(..., **name)."""
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


def argument_schema(target, parameter: inspect.Parameter) -> dict:
    """What a config may give for a parameter: by its annotation, or as far as its default tells."""
    default = parameter.default
    if parameter.annotation is not parameter.empty:
        schema = _of_annotation(_evaluated(parameter.annotation, target))
        return _union([schema, NULL]) if default is None else schema
    if isinstance(default, bool):
        return {
            'anyOf': [BOOLEAN, INTEGER, NULL, OBJECT]
        }  # "yes" would count as true, and so would "no"
    return {}


def is_tensor_argument(target, parameter: inspect.Parameter) -> bool:
    """Whether a list given for this parameter stands for a torch.Tensor, such as the class weights of a loss."""
    schema = argument_schema(target, parameter)
    return TENSOR in schema.get('anyOf', [schema])


def _evaluated(annotation, target):
    """Annotations may be text (`from __future__ import annotations`); one that cannot be read says nothing."""
    if not isinstance(annotation, str):
        return annotation
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    scope = vars(collections.abc) | vars(typing) | getattr(function, '__globals__', {})
    try:
        return eval(annotation, scope)  # source code of the class, not text of a config
    except Exception:  # whatever names stand there only for type checkers
        return typing.Any


def _of_annotation(annotation) -> dict:
    simple = {
        int: INTEGER,
        float: NUMBER,
        bool: BOOLEAN,
        str: STRING,
        type(None): NULL,
        None: NULL,
        dict: OBJECT,
        list: ARRAY,
        tuple: ARRAY,
        Path: STRING,
    }
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _of_annotation(inner[0])
    if origin in (typing.Union, types.UnionType):
        options = [_of_annotation(each) for each in inner]
        # Where a number will do, a tensor means the number in one.
        return _union([each for each in options if each is not TENSOR or NUMBER not in options])
    if origin is typing.Literal:
        return {'enum': list(inner)}
    if annotation in (int, float, bool, str, None, type(None), dict, list, tuple, Path):
        return simple[annotation]
    if origin in (list, tuple, set, collections.abc.Sequence, collections.abc.Iterable):
        items = (
            _of_annotation(inner[0])
            if inner and len({each for each in inner if each is not ...}) == 1
            else {}
        )
        return {**ARRAY, 'items': items} if items else ARRAY
    if origin in (dict, collections.abc.Mapping):
        return OBJECT
    return TENSOR if annotation is torch.Tensor else {}


def _union(options: list[dict]) -> dict:
    flat = [each for option in options for each in option.get('anyOf', [option])]
    unique = [each for index, each in enumerate(flat) if each not in flat[:index]]
    return {} if {} in unique else unique[0] if len(unique) == 1 else {'anyOf': unique}


def json_default(parameter: inspect.Parameter):
    """A parameter's default as a config would say it; NotImplemented when it cannot."""
    default = NotImplemented if parameter.default is parameter.empty else parameter.default
    if isinstance(default, tuple) and all(
        isinstance(each, (int, float, str, bool, type(None))) for each in default
    ):
        return list(default)
    is_plain = (
        default is None
        or isinstance(default, (bool, int, float, str))
        and type(default).__module__ == 'builtins'
    )
    return (
        default
        if is_plain and (not isinstance(default, float) or math.isfinite(default))
        else NotImplemented
    )
