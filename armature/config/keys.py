"""The one table of the config keys we know.

The checker, --print-config, tools/schema.py and the table in docs/config.md read it; `settings_of`
fills in its defaults.
"""

import functools
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple

from armature.config.read import show
from armature.config.values import Limit, violation
from armature.errors import ConfigError
from armature.processes.launch import TIMEOUT_S


class Key(NamedTuple):
    """One key. hint: an annotation of its value, or the table of the section that stands there.

    default: what leaving the key out means; ... when it may not be left out. members: the table of
    an object that may stand there, or of those in a list.
    """

    hint: Any
    description: str
    default: Any = ...
    members: dict | None = None


COUNT = Annotated[int, Limit('minimum', 1)]
COUNT_FROM_0 = Annotated[int, Limit('minimum', 0)]
ABOVE_0 = Annotated[float, Limit('exclusiveMinimum', 0)]
ENTRY = str | dict  # a name, or {"type", "args"}
# A folder's name on every system: no hidden one, none that Windows refuses or keeps for itself.
FOLDER_NAME = Annotated[
    str,
    Limit(
        'pattern',
        r'^(?!\.)'
        r'(?!([cC][oO][nN]|[pP][rR][nN]|[aA][uU][xX]|[nN][uU][lL])(\.|$))'
        r'(?!([cC][oO][mM]|[lL][pP][tT])\d(\.|$))'
        r'[^<>:"/\\|?*\x00-\x1f\ud800-\udfff]{0,199}[^<>:"/\\|?*\x00-\x1f\ud800-\udfff. ]$',
        'a folder name that is plain on every system: without / \\ : * ? " < > |, without a dot '
        'at either end, and none that Windows keeps for itself, such as CON',
    ),
]
PATH = Annotated[str, Limit('pattern', r'(?s).+', 'a path that is not empty')]
MONITOR = Annotated[
    str, Limit('pattern', r'off|(min|max) +\S.*', "'min <metric>', 'max <metric>' or 'off'")
]

SECTION = {
    'type': Key(str, 'name of the class or function'),
    'args': Key(dict, 'its arguments by name', {}),
}
SCHEDULER = {
    **SECTION,
    'interval': Key(Literal['epoch', 'step'], 'when the scheduler steps', 'epoch'),
    'warmup_steps': Key(
        COUNT_FROM_0,
        'optimizer steps in which the learning rate rises to what the scheduler says',
        None,
    ),
}
OPTIMIZER = {
    **SECTION,
    'groups': Key(
        list[dict],
        '[{"match": "*.bias|*norm*", "weight_decay": 0}]: other settings for some parameters; '
        '"type": another optimizer, "ndim": 2: matrices only',
        None,
    ),
}
GROUP = {  # beside which the optimizer's own options stand
    'match': Key(str, 'a pattern of parameter names, such as "*.bias|*norm*"'),
    'ndim': Key(COUNT_FROM_0, 'only parameters of so many dimensions', None),
    'type': Key(str, 'an optimizer of their own: torch.optim', None),
}
METRIC = {**SECTION, 'name': Key(str, 'what it is called in the log', None)}
TERM = {
    **METRIC,
    'weight': Key(float, 'what the term is multiplied by, in a list of losses', 1.0),
}
INIT_FROM = {
    'file': Key(str, 'checkpoint to take only the weights from'),
    'ignore': Key(list[str], 'patterns of parameters that keep their fresh values', []),
}
LORA = {
    'match': Key(str, 'pattern of the weights that are adapted'),
    'rank': Key(COUNT, 'of their factors'),
    'alpha': Key(ABOVE_0, 'the factors count alpha / rank; null: rank', None),
}
COMPILE_MODES = ('default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs')

TRAINER = {
    'epochs': Key(COUNT, 'epochs to train'),
    'save_dir': Key(PATH, 'folder for runs, relative to the project', 'saved/'),
    'save_period': Key(COUNT, 'keep a checkpoint every so many epochs', 1),
    'verbosity': Key(Literal[0, 1, 2], 'log 0: warnings, 1: information, 2: everything', 2),
    'monitor': Key(
        MONITOR, "'min <metric>' or 'max <metric>' says which epoch is best; 'off'", 'off'
    ),
    'early_stop': Key(float, 'epochs without a better value until training stops; 0: never', None),
    'tensorboard': Key(bool, 'write TensorBoard logs', False),
    'trackers': Key(
        list[ENTRY], 'services beside it: wandb, trackio, or a class of your own', None, SECTION
    ),
    'tensorboardX': Key(bool, 'older name of tensorboard', None),
    'len_epoch': Key(COUNT, 'batches an epoch has; null: one pass over the data', None),
    'max_steps': Key(COUNT, 'end the run, saved, after so many optimizer steps', None),
    'log_step': Key(
        COUNT, 'log every so many steps; null: ten times an epoch, at least ten steps apart', None
    ),
    'log_images': Key(bool, 'one grid of validation images an epoch to TensorBoard', False),
    'log_histograms': Key(bool, 'histograms of the parameters to TensorBoard', False),
    'save_every_steps': Key(COUNT, 'also save checkpoint-last.pth every so many steps', None),
    'save_every_minutes': Key(ABOVE_0, 'also save checkpoint-last.pth every so many minutes', None),
    'keep_last': Key(COUNT, 'keep only the newest so many checkpoint-epoch files', None),
    'max_minutes': Key(ABOVE_0, 'save and leave after so many minutes', None),
    'on_nan': Key(Literal['stop', 'skip'], 'what to do when the loss is not finite', 'stop'),
    'max_nan_skips': Key(COUNT, 'stop all the same after so many skipped steps in a row', 10),
    'on_save_error': Key(
        Literal['stop', 'warn'], 'what to do when a checkpoint cannot be written', 'stop'
    ),
    'type': Key(str, 'the Trainer class: trainer/trainer.py, or a name with dots', 'Trainer'),
    'validate_every_steps': Key(COUNT, 'also validate inside an epoch, for the log', None),
    'precision': Key(Literal['fp32', 'bf16', 'fp16'], 'number format of the forward pass', 'fp32'),
    'matmul_precision': Key(
        Literal['highest', 'high', 'medium'],
        'of fp32 matrix products on a GPU; high: TF32',
        None,
    ),
    'deterministic': Key(
        bool, 'on a GPU too, only operations that give the same bits each time', False
    ),
    'microbatch_size': Key(
        COUNT | Literal['auto'],
        'samples in memory at a time; the result stays the same, but for dropout and BatchNorm',
        None,
    ),
    'max_grad_norm': Key(ABOVE_0, 'clip the gradient to this norm', None),
    'max_grad_value': Key(ABOVE_0, 'clip each number of the gradient to this size', None),
    'compile': Key(
        bool | Literal['blocks', *COMPILE_MODES],
        'torch.compile the model: true, or a mode of it; or only the blocks that repeat',
        False,
    ),
    'activation_checkpointing': Key(
        bool, 'compute blocks again in the backward pass, to save memory', False
    ),
    'channels_last': Key(bool, 'the memory layout that GPUs convolve fastest in', False),
    'ema_decay': Key(
        Annotated[ABOVE_0, Limit('maximum', 1)],
        'validate and test a moving average of the weights',
        None,
    ),
    'swa_start': Key(
        COUNT,
        'validate and test the average of the weights after this epoch and each later one',
        None,
    ),
    'freeze': Key(list[str], 'patterns of parameters that do not train', None),
    'unfreeze_at': Key(
        {'epoch': Key(Annotated[int, Limit('minimum', 2)], 'the first epoch in which they train')},
        '{"epoch": 3}: with that epoch they train',
        None,
    ),
    'lora': Key(
        LORA,
        '{"match": "*.attn*|fc*", "rank": 8}: these weights stay, two factors each train',
        None,
    ),
    'pictures': Key(
        list[Literal['confusion_matrix', 'roc', 'pr']],
        'pictures of the validation for TensorBoard',
        None,
    ),
}

DISTRIBUTED = {
    'strategy': Key(
        Literal['ddp', 'fsdp'], 'ddp: the model in each process; fsdp: a part of each weight', 'ddp'
    ),
    'sync_bn': Key(bool, 'BatchNorm over the samples of all processes (on GPUs)', True),
    'find_unused_parameters': Key(
        bool, 'for models that do not use every parameter in each step (ddp)', False
    ),
    'mixed_precision': Key(Literal['bf16'], 'what fsdp computes and sends in', None),
    'checkpoint': Key(
        Literal['whole', 'sharded'], 'sharded: each process writes its part (fsdp)', 'whole'
    ),
    'timeout_s': Key(ABOVE_0, 'seconds a process waits for the others', TIMEOUT_S),
}
BATCH = {
    'data': Key(str | list[str], 'name of the input, or a list of names'),
    'target': Key(str | list[str], 'name of the target, or a list of names'),
}
TOP = {
    'name': Key(FOLDER_NAME, 'name of the experiment, and of its folder'),
    'n_gpu': Key(COUNT_FROM_0, 'GPUs to use; 0: the CPU', 1),
    'seed': Key(COUNT_FROM_0, 'seed of all randomness', 123),
    'arch': Key(SECTION, 'the model: model/model.py, torchvision.models, timm'),
    'data_loader': Key(SECTION, 'the training data: data_loader/data_loaders.py'),
    'valid_data_loader': Key(SECTION, 'validation data of its own, instead of a split', None),
    'test_data_loader': Key(SECTION, 'test data of its own', None),
    'optimizer': Key(OPTIMIZER, 'torch.optim'),
    'loss': Key(
        ENTRY | list[ENTRY],
        'model/loss.py, torch.nn losses, torch.nn.functional',
        ...,
        TERM,
    ),
    'metrics': Key(list[ENTRY], 'model/metric.py, torchmetrics', [], METRIC),
    'batch': Key(
        BATCH,
        'which parts of a batch are data and target, where it is no pair',
        None,
    ),
    'data_changed': Key(
        Literal['refuse', 'continue'],
        'what a resumed run does when the data is another than before',
        'refuse',
    ),
    'lr_scheduler': Key(SCHEDULER, 'torch.optim.lr_scheduler', None),
    'trainer': Key(TRAINER, 'the run'),
    'distributed': Key(DISTRIBUTED, 'when several processes train', {}),
    'sweep': Key(dict, 'a search: python -m tools.sweep', None),
    'init_from': Key(
        ENTRY,
        'checkpoint to take only the weights from, or {"file", "ignore": [patterns]}',
        None,
        INIT_FROM,
    ),
}

NO_HYPERPARAMETER = re.compile(  # what changes no result
    r'name$|n_gpu$|trainer\.(save_|keep_|log_|verbosity|tensorboard|trackers|pictures)'
)


def paths_of(table: dict, path: tuple = ()) -> Iterator[tuple]:
    """The path of every key in a table, sections included."""
    for name, key in table.items():
        yield (*path, name)
        if isinstance(key.hint, dict):
            yield from paths_of(key.hint, (*path, name))


def unfit(value: Any, key: Key) -> str | None:
    """What the value of a key should have been; None when it is fine."""
    return violation(value, dict if isinstance(key.hint, dict) else key.hint)


def settings_of(section: dict | None, table: dict = TRAINER) -> SimpleNamespace:
    """What a section says, with the table's defaults for what it leaves out, as attributes.

    The keys of one's own are there too. A null stands for the default, and so does a value that is
    none of ours: an old project's own key of that name.
    """
    defaults = {name: key.default for name, key in table.items() if key.default is not ...}
    given = {}
    for name, value in section.items() if isinstance(section, Mapping) else ():
        expected = unfit(value, table[name]) if name in defaults else None
        if expected and value is not None:
            _say_own(name, show(value), expected)
        elif value is not None:
            given[name] = value
    if 'tensorboardX' in given:  # the older name
        given.setdefault('tensorboard', given['tensorboardX'])
    return SimpleNamespace(**defaults | given)


@functools.cache  # once, however often a section is read
def _say_own(name, shown, expected):
    logging.getLogger('config').warning(
        f'{name} is {shown} in the config: expected {expected}, so it is taken for a key of your '
        'own code and left aside here. Where it is meant for this, give it such a value'
    )


def expanded(path: str) -> str:
    """A path where the `~`, `~NAME` or `$NAME` that it begins with is filled in; another text as it
    is."""
    if not re.match(r'(~|~[\w.-]+(?=/)|\$[A-Z_][A-Z0-9_]*|\$\{[A-Z_][A-Z0-9_]*\})(/|$)', path):
        return path
    begin, slash, rest = path.partition('/')
    full = os.path.expandvars(os.path.expanduser(begin))
    if not full or full.startswith(('$', '~')):  # an empty one would lead to the root
        raise ConfigError(f'{show(path)}: the environment has no {begin}')
    return full + slash + rest


def hyperparameters(config: dict, where: str = '') -> dict[str, Any]:
    """The numbers, switches and texts of a config that can change a result, by name with dots."""
    found = {}
    for key, value in config.items():
        name = f'{where}{key}'
        if isinstance(value, dict):
            found |= hyperparameters(value, f'{name}.')
        elif value is not None and not NO_HYPERPARAMETER.match(name):
            is_list = isinstance(value, (list, tuple))
            found[name.replace('.args.', '.')] = json.dumps(value) if is_list else value
    return found
