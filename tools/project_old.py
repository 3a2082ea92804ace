"""What is known about the old template: which parts of a project's copy are its own, and which old habits cost something today.

A copy is recognised by structure: known classes with known methods that use no words but the old template's (names, attributes,
keyword arguments and string keys of any of its versions, 2018 to 2020). Messages, comments and annotations do not count.
"""
import ast
import builtins
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

METHODS = {
    'BaseTrainer': '__init__ _train_epoch train _prepare_device _save_checkpoint _resume_checkpoint _log_info',
    'BaseDataLoader': '__init__ __len__ _split_sampler split_validation',
    'BaseModel': '__init__ forward __str__ summary',
    'TensorboardWriter': '__init__ set_step __getattr__',
    'ConfigParser': '__init__ from_args from_parser init_obj init_ftn initialize initialize_ftn __getitem__ get_logger config save_dir '
                    'log_dir _update_config _name',
    'MetricTracker': '__init__ reset update avg result',
    'Logger': '__init__ add_entry __str__',
}
METHODS['WriterTensorboardX'] = METHODS['WriterTensorboard'] = METHODS['TensorboardWriter']
FUNCTIONS = {'ensure_dir', 'read_json', 'write_json', 'inf_loop', 'prepare_device', 'setup_logging', '_update_config',
             '_get_opt_name', '_set_by_path', '_get_by_path'}
WORDS = {
    'BaseTrainer': """
        model criterion metric_ftns optimizer config loss metrics resume train_logger logger logging getLogger basicConfig level INFO
        DEBUG get_logger trainer verbosity device device_ids _prepare_device n_gpu n_gpu_use list_ids to torch nn DataParallel
        cfg_trainer epochs save_period save_freq monitor get off min max mnt_mode mnt_metric mnt_best split inf math np Inf early_stop
        start_epoch checkpoint_dir save_dir os path join datetime now strftime start_time name writer TensorboardWriter
        WriterTensorboardX WriterTensorboard log_dir tensorboard tensorboardX writer_dir visualization _resume_checkpoint
        _train_epoch epoch NotImplementedError train not_improved_count range result log update items key value enumerate i mtr best
        improved KeyError warning _save_checkpoint save_best val_ val_metrics arch type state state_dict monitor_best filename save
        best_path resume_path checkpoint load load_state_dict optimizer_type cuda gpu with_cuda device_count is_available
        monitor_mode min_epoch json dump open handle f indent sort_keys ensure_dir lr_scheduler lr_scheduler_type lr_scheduler_freq
        getattr optim parameters filter p requires_grad add_entry map_location storage loc values isinstance Tensor k v list abstractmethod
        step _log_info identity base checkpoint_path parent mkdir Path cpu""",
    'BaseDataLoader': """
        dataset batch_size shuffle validation_split num_workers collate_fn default_collate batch_idx n_samples sampler valid_sampler
        init_kwargs _split_sampler split idx_full np arange random seed isinstance int len_valid valid_idx train_idx delete array
        SubsetRandomSampler train_sampler split_validation DataLoader kwargs n_cpu""",
    'BaseModel': """
        forward inputs input NotImplementedError model_parameters filter p requires_grad parameters params sum np prod size summary logger
        logging getLogger info abstractmethod config state_dict""",
    'TensorboardWriter': """
        log_dir logger enabled enable writer selected_module succeeded module importlib import_module SummaryWriter ImportError warning
        message msg step mode train tb_writer_ftns tag_mode_exceptions timer datetime now Timer set_step duration total_seconds check
        add_scalar add_scalars add_image add_images add_audio add_text add_histogram add_pr_curve add_embedding steps_per_sec name
        getattr add_data wrapper tag data args kwargs set_tag attr object AttributeError type reset log_path tensorboardX
        tensorboard_writer_ftns ModuleNotFoundError config visualization join path os""",
    'ConfigParser': """
        args options timestamp parser add_argument opt flags default type parse_args device os environ CUDA_VISIBLE_DEVICES resume Path
        cfg_fname config parent msg_no_cfg read_json _config _update_config _save_dir _log_dir save_dir log_dir trainer_config trainer
        exper_name run_id datetime now strftime mkdir parents exist_ok write_json setup_logging log_levels logging WARNING INFO DEBUG
        modification cls _get_opt_name flag lstrip replace split target from_args from_parser init_obj init_ftn initialize
        initialize_ftn name module module_name module_args module_cfg dict kwargs update getattr partial reduce getitem operator
        _get_by_path _set_by_path tree keys key value get_logger verbosity msg_verbosity logger getLogger setLevel items k v all
        isinstance tuple models log startswith args_k names is_file exists f handle json load open object_hook OrderedDict timestamp
        property classmethod setattr hasattr path join""",
    'MetricTracker': """
        keys key writer pd DataFrame index columns _data reset col values value n update add_scalar total counts average avg result
        dict loc""",
    'Logger': 'entries add_entry entry json dumps sort_keys indent',
    None: """
        dirname path Path is_dir mkdir parents exist_ok os exists makedirs fname handle open rt wt f json load object_hook OrderedDict
        content dump indent sort_keys data_loader loader repeat n_gpu_use n_gpu torch cuda device_count device list_ids range
        save_dir log_config default_level logging INFO is_file read_json config items handlers handler filename dictConfig basicConfig
        level modification k v _set_by_path flags flag startswith lstrip replace tree keys key value _get_by_path reduce getitem
        split str logger cpu""",
}
WORDS['WriterTensorboardX'] = WORDS['WriterTensorboard'] = WORDS['TensorboardWriter']
# What says nothing about where a function comes from.
COMMON = {'self', 'super', *dir(builtins), *dir(str), *dir(dict), *dir(list), *dir(Path), 'non_blocking', 'weights_only'}


class Part(NamedTuple):
    """A definition in a project's file. words: those that the old template does not use there, with their line numbers."""

    name: str
    node: ast.AST
    known: bool
    words: dict[str, int]

    @property
    def changed(self) -> bool:
        return self.known and bool(self.words)


def parse(source: str) -> ast.Module:
    """The tree of a file; what Python would warn of there is its author's business."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return ast.parse(source)


def parts(owner: ast.AST, class_name: str | None = None) -> list[Part]:
    """The statements of a module or of one class, but for imports and docstrings; what has no name is named by its text."""
    known = set(METHODS.get(class_name, '').split()) if class_name else FUNCTIONS | METHODS.keys()
    found = []
    for node in owner.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            is_known = node.name in known
            words = foreign(node, class_name) if is_known and not isinstance(node, ast.ClassDef) else {}
            found.append(Part(node.name, node, is_known, words))
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            name = next((target.id for target in targets if isinstance(target, ast.Name)), ast.unparse(targets[0]))
            found.append(Part(name, node, name in WORDS.get(class_name, '').split(), {}))
        elif not isinstance(node, (ast.Import, ast.ImportFrom, ast.Pass)) and not is_docstring(node):
            found.append(Part(ast.unparse(node).partition('\n')[0][:40], node, False, {}))
    return found


def is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def foreign(function: ast.AST, class_name: str | None) -> dict[str, int]:
    """{word: line} of what `function` uses and the old template's function of that name does not."""
    known = set(WORDS[class_name].split()) | set(METHODS.get(class_name, '').split()) | {function.name, *METHODS}
    known |= {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return {word: line for word, line, is_key in words(function) if word not in known and (is_key or word not in COMMON)}


def words(tree: ast.AST) -> Iterator[tuple[str, int, bool]]:
    """(word, line, whether it is a string key) of the names, attributes, arguments and keys outside messages and annotations."""
    if is_docstring(tree):
        return
    if isinstance(tree, ast.Call) and is_message(tree):
        return
    line = getattr(tree, 'lineno', 0)
    if isinstance(tree, ast.Name):
        yield tree.id, line, False
    elif isinstance(tree, ast.Attribute):
        yield tree.attr, line, False
    elif isinstance(tree, (ast.arg, ast.keyword)) and tree.arg:
        yield tree.arg, line, False
    elif isinstance(tree, ast.Constant) and isinstance(tree.value, str) and len(tree.value) > 2 and tree.value.isidentifier():
        yield tree.value, line, True
    for field, child in ast.iter_fields(tree):
        if field in ('annotation', 'returns'):
            continue
        for each in child if isinstance(child, list) else [child]:
            if isinstance(each, ast.AST):
                yield from words(each)


def is_message(call: ast.Call) -> bool:
    name = called(call)
    return name in ('print', 'warnings.warn') or name.rpartition('.')[2] in ('info', 'debug', 'warning') and 'logg' in name


def called(node: ast.AST) -> str:
    """'torch.load' for a call of it; '' for what has no such name."""
    target = node.func if isinstance(node, ast.Call) else node
    if isinstance(target, ast.Attribute):
        inner = called(target.value) if not isinstance(target.value, ast.Call) else '()'
        return f'{inner}.{target.attr}'
    return target.id if isinstance(target, ast.Name) else ''


def find_class(tree: ast.Module, *names: str) -> ast.ClassDef | None:
    return next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in names), None)


def arguments(owner: ast.ClassDef | None, method: str = '__init__') -> list[str]:
    """Names of a method's arguments without self; none when there is no such method."""
    for node in owner.body if owner else []:
        if isinstance(node, ast.FunctionDef) and node.name == method:
            return [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)][1:]
    return []


# Old habits

ALIASES = {'np.float', 'np.int', 'np.bool', 'np.object', 'np.str', 'np.long', 'np.Inf', 'np.infty', 'np.NaN', 'np.product',
           'np.float_', 'np.unicode_'}
PER_STEP = "a .item() in every step waits for the device; give the tensor to the tracker instead: it reads it later"
ONE_TOO_MANY = 'with len_epoch this runs one batch too many: test `batch_idx + 1 == self.len_epoch`, or leave it to self.batches(epoch)'
GRID = 'draws a grid of images for every validation batch (seconds for large images): draw one, for batch_idx == 0'
UNWEIGHTED = 'an average of batch averages: a smaller last batch counts as much as a full one; MetricTracker.update takes n=len(target)'
LOAD = 'torch.load takes plain data only since torch 2.6: it reads what this project saves from now on; for older files see below'
PARALLEL = 'DataParallel is slow and leaves the first GPU as a bottleneck'
ALIAS = 'is gone from today\'s numpy: write float, int, bool, numpy.inf, ... instead'
VIEW = 'writes through a pandas view, which pandas 3 refuses: use MetricTracker of utils'
GONE = 'is gone from today\'s torch or Python'
EVAL = 'runs text from a config as code: use getattr(module, name)'
HARD_CODED = 'loader arguments written into the code: those of the config are not used here'
LOADER_LENGTH = r'len\((self\.)?\w*loader\)'
GLOBAL_SEED = 'reseeds numpy for the whole program'


def habits(source: str) -> list[tuple[int, str]]:
    """(line, remark) for each old habit in a file that costs something today."""
    found = set()
    for node in ast.walk(parse(source)):
        name = called(node) if isinstance(node, (ast.Call, ast.Attribute)) else ''
        line = getattr(node, 'lineno', 0)
        if isinstance(node, ast.Call):
            given = {each.arg for each in node.keywords}
            if name == 'torch.load' and 'weights_only' not in given:
                found.add((line, LOAD))
            elif name.endswith('DataParallel') and 'Distributed' not in name:
                found.add((line, PARALLEL))
            elif name == 'eval' and 'config' in ast.unparse(node):
                found.add((line, EVAL))
            elif name in ('np.random.seed', 'numpy.random.seed') and 'class' in source and 'DataLoader' in source:
                found.add((line, GLOBAL_SEED))
            elif name.endswith('.update') and 'n' not in given and names_a_metric(node.args):
                found.add((line, UNWEIGHTED))
            elif 'module_data' in ast.unparse(node.func) and isinstance(node.func, ast.Call) \
                    and any(isinstance(each.value, ast.Constant) and each.arg == 'batch_size' for each in node.keywords):
                found.add((line, HARD_CODED))
            elif name == 'Variable' and 'volatile' in given or name in ('torch.autograd.Variable',) and 'volatile' in given:
                found.add((line, f'volatile {GONE}: use torch.no_grad()'))
            elif name.endswith('.next') and not node.args:
                found.add((line, f'.next() of an iterator {GONE}: write next(iterator)'))
        elif isinstance(node, ast.Attribute):
            if name.replace('numpy.', 'np.') in ALIASES:
                found.add((line, f'{name} {ALIAS}'))
            elif name in ('collections.Mapping', 'collections.Iterable', 'collections.Sequence', 'collections.Callable'):
                found.add((line, f'{name} {GONE}: it lives in collections.abc'))
        elif isinstance(node, (ast.Assign, ast.AugAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Subscript) and called(target.value).startswith('self._data.') \
                    and not called(target.value).endswith(('.loc', '.at', '.iloc')):
                found.add((line, VIEW))
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and re.fullmatch(LOADER_LENGTH, ast.unparse(node.right)):
            found.add((line, UNWEIGHTED))
        elif isinstance(node, ast.If) and is_late_break(node):
            found.add((line, ONE_TOO_MANY))
        elif isinstance(node, ast.FunctionDef) and 'epoch' in node.name:
            found |= set(per_step_habits(node))
    return sorted(found)


def names_a_metric(args: list[ast.expr]) -> bool:
    """Whether these are the arguments of MetricTracker.update without the number of samples."""
    return len(args) == 2 and (isinstance(args[0], ast.Constant) and isinstance(args[0].value, str)
                               or called(args[0]).endswith('.__name__'))


def per_step_habits(function: ast.FunctionDef) -> Iterator[tuple[int, str]]:
    for loop in ast.walk(function):
        if isinstance(loop, (ast.For, ast.While)):
            for node in (each for statement in loop.body for each in ast.walk(statement)):
                if isinstance(node, ast.Call) and called(node).endswith('.item') and 'train' in function.name:
                    yield node.lineno, PER_STEP
                elif isinstance(node, ast.Call) and called(node).endswith('make_grid') and 'valid' in function.name:
                    yield node.lineno, GRID


def is_late_break(node: ast.If) -> bool:
    """if batch_idx == self.len_epoch: break"""
    test = node.test
    return (any(isinstance(each, ast.Break) for each in node.body) and isinstance(test, ast.Compare)
            and isinstance(test.left, ast.Name) and isinstance(test.ops[0], (ast.Eq, ast.Gt, ast.GtE))
            and called(test.comparators[0]) == 'self.len_epoch')
