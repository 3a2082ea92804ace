"""Names: a config can name a model, never os.system."""

import functools
import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch

import model.loss
import model.metric
import model.model
from armature.batch import takes
from armature.config import build as config_types
from armature.config.build import KINDS, OWN, find, kind_of
from armature.config.values import hint_of, parameters, violation
from armature.errors import ConfigError
from armature.step.micro_batches import Reduction
from examples.tabular.data import CsvDataLoader
from examples.tabular.model import TabularModel
from parse_config import ROOT, ConfigParser

MODULES = [
    'os',
    'sys',
    'subprocess',
    'torch',
    'torch.os',
    'torch.hub',
    'torch.nn',
    'torch.utils',
    'builtins',
    'importlib',
    'pickle',
    'shutil',
    'model.model.torch',
    'model.loss.torch.os',
    'utils.util',
    'armature.processes.dist',
    'armature.processes.launch',
    'armature.config.build',
    'armature.checkpoint.files',
    'base',
    'tests.fuzz_config',
    'parse_config',
    'model.model.__builtins__',
    'data_loader.data_loaders.Path',
    'trainer.trainer.time',
    '..model',
    'model..model',
]
CALLS = [
    'system',
    'popen',
    'exit',
    'run',
    'load',
    'save',
    'eval',
    'exec',
    '__import__',
    'import_module',
    '__class__',
    '__init__',
    'find',
    'rmtree',
    'ensure_dir',
    'write_json',
    'unlink',
]
HOSTILE = sorted(
    {f'{module}.{call}' for module in MODULES for call in CALLS}
    | set(CALLS)
    | set(MODULES)
    | {
        '',
        ' ',
        '.',
        'os.system("x")',
        'lambda: 0',
        '__builtins__',
        '__doc__',
        'torch',
        'nn',
        'F',
        'Path',
        'BaseModel',
        'abstractmethod',
        'x\0',
    }
)


def test_no_hostile_name_reaches_anything(monkeypatch):
    calls = []

    def note(name, *args, **kwargs):
        # Libraries and what goes away remove files of their own.
        file = Path(sys._getframe(1).f_code.co_filename)
        if file.is_relative_to(config_types.ROOT) and 'site-packages' not in file.parts:
            calls.append(name)

    for module, name in [
        (os, 'system'),
        (torch, 'load'),
        (torch.hub, 'load'),
        (subprocess, 'run'),
        (os, 'unlink'),
        (os, 'popen'),
    ]:
        monkeypatch.setattr(module, name, functools.partial(note, name))
    loaded = set(sys.modules)
    for section in (
        'arch',
        'loss',
        'metrics',
        'optimizer',
        'lr_scheduler',
        'data_loader',
        'own_section',
    ):
        module = {'arch': model.model, 'metrics': model.metric}.get(
            section, model.loss if section == 'own_section' else None
        )
        for name in HOSTILE:
            config = ConfigParser({'name': 'x', section: {'type': name, 'args': {}}})
            with pytest.raises(ConfigError):
                config.init_obj(section, module)
            with pytest.raises(ConfigError):
                find(name, config_types.kind_of(section, module).inside())
    new = {
        name
        for name in set(sys.modules) - loaded
        if not name.startswith(('torch', 'torchvision', 'PIL', 'lightning', 'numpy'))
    }
    assert calls == [] and not {'tests.hostile', 'antigravity', 'this'} & new
    assert len(HOSTILE) >= 200
    print(f'{len(HOSTILE)} names refused in each of 7 sections')


def module_from(source: str) -> types.ModuleType:
    """A module as the user of this project would write it, at model/loss.py."""
    module = types.ModuleType('model.loss')
    module.__file__ = str(ROOT / 'model' / 'loss.py')
    exec(textwrap.dedent(source), vars(module))
    return module


def test_functions_are_taken_only_from_where_they_are_defined():
    module = module_from("""
        from os import system, makedirs
        from subprocess import Popen
        from torch import nn
        from torch.nn import MSELoss
        def mine(output, target): return 1
        class Mine:
            def __call__(self, output, target): return 2
        ready = nn.L1Loss()
        import functools, os
        smooth = functools.partial(nn.functional.cross_entropy, label_smoothing=0.1)
        instance = Mine()
        def scaled(factor, output, target): return factor
        double = functools.partial(scaled, 2)
        @functools.lru_cache
        def cached(output, target): return 3
    """)
    losses = kind_of('loss', module)
    assert find('mine', losses)(0, 0) == 1
    assert find('MSELoss', losses) is torch.nn.MSELoss
    for name in ('ready', 'smooth', 'instance', 'cached'):
        assert find(name, losses) is getattr(module, name)
        assert callable(ConfigParser({'name': 'x', 'loss': name}).init_loss(module))
    assert ConfigParser({'name': 'x', 'loss': 'double'}).init_loss(module)(0, 0) == 2
    assert ConfigParser({'name': 'x', 'loss': 'Mine'}).init_loss(module)(0, 0) == 2
    for name in ('system', 'makedirs', 'Popen', 'nn'):
        for kind in (KINDS['loss'], OWN):
            with pytest.raises(ConfigError):
                find(name, kind._replace(module=module))


def test_the_projects_own_comes_before_the_library():
    module = module_from('def cross_entropy(output, target): return "mine"')
    losses = kind_of('loss', module)
    assert find('cross_entropy', losses)(0, 0) == 'mine'
    assert find('mse_loss', losses) is torch.nn.functional.mse_loss


def test_heavy_libraries_are_not_imported_for_names_of_the_project():
    code = (
        'import sys, model.model, model.loss, model.metric\n'
        'from armature.config.build import find, kind_of\n'
        "find('MnistModel', kind_of('arch', model.model))\n"
        "find('accuracy', kind_of('metrics', model.metric))\n"
        "find('Adam', kind_of('optimizer'))\n"
        "heavy = ('torchvision', 'torchmetrics', 'pandas', 'sklearn')\n"
        'print([name for name in heavy if name in sys.modules])'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == '[]'


def test_loader_and_model_of_tables_are_found_by_their_old_names_or_their_folder_is_asked_for(
    tmp_path, monkeypatch
):
    loaders = KINDS['data_loader']
    assert find('CsvDataLoader', loaders) is CsvDataLoader
    assert find('TabularModel', KINDS['arch']) is TabularModel
    monkeypatch.setattr(config_types, 'ROOT', tmp_path)  # a project without examples
    with pytest.raises(ConfigError, match="put it there .the template's examples/"):
        find('CsvDataLoader', loaders)


def test_an_import_error_in_the_users_module_is_not_swallowed(tmp_path, monkeypatch):
    package = tmp_path / 'broken_package'
    package.mkdir()
    (package / '__init__.py').touch()
    (package / 'nets.py').write_text('import no_such_module_anywhere\nclass Net: pass\n')
    monkeypatch.setattr(config_types, 'ROOT', tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match='no_such_module_anywhere'):
        find('broken_package.nets.Net', KINDS['arch'])


def test_objects_in_args_are_built_inside_out():
    module = module_from("""
        import torch
        class Loader:
            def __init__(self, batch_size, transform=None, options=None):
                self.__dict__.update(locals())
            def __iter__(self): return iter(())
    """)
    transform = {
        'type': 'Compose',
        'args': {
            'transforms': [
                {'type': 'ToImage', 'args': {}},
                {'type': 'ToDtype', 'args': {'dtype': 'torch.float32', 'scale': True}},
            ]
        },
    }
    args = {'batch_size': 3, 'transform': transform, 'options': {'type': 'sgd', 'momentum': 1}}
    loader = ConfigParser({'name': 'x', 'data_loader': {'type': 'Loader', 'args': args}}).init_obj(
        'data_loader', module
    )
    assert (
        loader.transform(torch.zeros(1, 2, 2, dtype=torch.uint8).numpy().transpose(1, 2, 0)).dtype
        == torch.float32
    )
    assert loader.options == {'type': 'sgd', 'momentum': 1}


def test_an_object_that_a_class_reads_by_itself_is_left_alone():
    module = module_from("""
        class Loader:
            def __init__(self, head=None, options: dict | None = None):
                self.__dict__.update(locals())
            def __iter__(self): return iter(())
    """)

    def built(**args):
        config = ConfigParser({'name': 'x', 'data_loader': {'type': 'Loader', 'args': args}})
        return config.init_obj('data_loader', module)

    own = {'type': 'mlp', 'args': {'width': 3}}
    resize = {'type': 'Resize', 'args': {'size': 3}}
    loader = built(head={'type': 'mlp'}, options=resize)
    assert (loader.head, loader.options) == ({'type': 'mlp'}, resize)
    assert built(options=own).options == own
    with pytest.raises(ConfigError, match=r'is called "mlp".*annotate the parameter as dict'):
        built(head=own)
    assert type(built(head=resize).head).__name__ == 'Resize'
    with pytest.raises(ConfigError, match=r"did you mean 'Resize'.*annotate the parameter as dict"):
        built(head={'type': 'Resise', 'args': {'size': 3}})
    unknown = {'type': 'Compose', 'args': {'transforms': [{'type': 'Whatever', 'args': {}}]}}
    with pytest.raises(ConfigError, match='is called "Whatever"'):  # no class of the project
        built(head=unknown)


def test_a_section_is_judged_with_what_the_code_gives_when_it_is_built():
    module = module_from("""
        class Mine:
            def __init__(self, size: int, logger: list): self.size, self.logger = size, logger
            def __call__(self, output, target): return 0
    """)
    config = ConfigParser({'name': 'x', 'loss': {'type': 'Mine', 'args': {'siz': 'a'}}})
    with pytest.raises(ConfigError) as caught:
        config.init_obj('loss', module)
    assert str(caught.value).splitlines() == [
        "loss.args.siz: Mine has no 'siz' (did you mean 'size'?)",
        'loss.args.logger: is missing: Mine needs it',
    ]
    config['loss']['args'] = {'size': 3, 'logger': test_metrics_have_names}  # filled in by a script
    assert config.init_obj('loss', module).size == 3
    config['loss']['args'] = {}
    assert config.init_ftn('loss', module)(3, logger=None).size == 3
    assert 'logger' not in config.as_read['loss']['args']


@pytest.mark.parametrize(
    ('args', 'expected'),
    [({'lr': -1}, 'Invalid learning rate: -1'), ({'betas': [0.9]}, 'list index out of range')],
)
def test_what_a_library_refuses_is_one_line(args, expected):
    config = ConfigParser({'name': 'x', 'optimizer': {'type': 'Adam', 'args': args}})
    with pytest.raises(ConfigError, match=f'^optimizer: Adam refuses: {expected}') as caught:
        config.init_obj('optimizer', torch.optim, [torch.nn.Parameter(torch.zeros(1))])
    assert '\n' not in str(caught.value)


def loss_of(name, **args):
    return ConfigParser({'name': 'x', 'loss': {'type': name, 'args': args}}).init_loss(None)


def test_a_list_for_a_tensor_becomes_one_of_floats():
    torch.manual_seed(0)
    output, target, weight = torch.randn(6, 3), torch.arange(6) % 3, [1, 5, 1]
    as_module = loss_of('CrossEntropyLoss', weight=weight)
    as_function = loss_of('cross_entropy', weight=weight)
    assert torch.equal(as_module.weight, torch.tensor([1.0, 5.0, 1.0]))
    assert as_function(output, target) == as_module(output, target)
    assert Reduction(as_function).count(target, 6) == 14
    assert loss_of('multi_margin_loss', weight=weight)(output, target) > 0
    binary = loss_of('binary_cross_entropy_with_logits', pos_weight=weight)
    assert binary(output, torch.eye(3)[target]) > 0
    assert as_function(output.to('meta'), target.to('meta')).device.type == 'meta'  # they follow


def test_a_loss_that_needs_a_tensor_takes_a_list_or_a_matrix():
    module = module_from("""
        import torch
        def cost(output, target, matrix: torch.Tensor):
            return matrix[target].mean()
    """)
    section = {'type': 'cost', 'args': {'matrix': [[0, 1], [5, 0]]}}
    loss = ConfigParser({'name': 'x', 'loss': section}).init_loss(module)
    assert takes(loss, 0, 0) and loss(torch.eye(2), torch.tensor([1, 1])) == 2.5
    matrix = parameters(module.cost)[0]['matrix']
    assert violation([[1, 2], [3]], hint_of(matrix)) == 'a number as item 0'


class Deep:
    def __init__(self, hidden, depth: int = 0.5, pretrained=False):
        pass


class Open(Deep):
    def __init__(self, width=1, **options):
        super().__init__(**options)


def test_arguments_are_judged_by_what_is_known_of_them():
    named, is_open = parameters(Open)  # its base's, too, and those that it does not give itself
    assert [*named] == ['width', 'hidden', 'depth', 'pretrained'] and not is_open
    assert named['hidden'].default is not named['hidden'].empty
    fine = {'hidden': 3, 'depth': 0.2, 'pretrained': 'imagenet'}
    for name, value in [*fine.items(), ('pretrained', 0.5), ('pretrained', [1])]:
        assert violation(value, hint_of(named[name])) is None
    assert violation('No', hint_of(named['pretrained'])).startswith('true or false')


def test_a_weight_of_null_is_that_of_the_table():
    terms = ['mse_loss', {'type': 'l1_loss', 'weight': None}, {'type': 'huber_loss', 'weight': 2}]
    assert ConfigParser({'name': 'x', 'loss': terms}).init_loss(None).weights == [1.0, 1.0, 2]


def test_a_schedule_over_an_endless_stream_needs_a_length():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])

    def scheduler(**trainer):
        args = {'type': 'CosineAnnealingLR', 'args': {'T_max': 'auto'}, 'interval': 'step'}
        config = {'name': 'x', 'lr_scheduler': args, 'trainer': {'epochs': 3, **trainer}}
        return ConfigParser(config).init_scheduler(optimizer, iter(()))

    with pytest.raises(ConfigError, match='lr_scheduler.args.T_max: "auto" has no length to go by'):
        scheduler()
    assert scheduler(max_steps=7).T_max == 7 and scheduler(len_epoch=5).T_max == 15


def test_code_and_config_may_not_give_the_same_argument():
    config = ConfigParser({'name': 'x', 'arch': {'type': 'MnistModel', 'args': {'num_classes': 3}}})
    with pytest.raises(ConfigError, match='arch.args.num_classes'):
        config.init_obj('arch', model.model, num_classes=4)
    assert config.init_ftn('arch', model.model)().fc2.out_features == 3
    assert config.initialize('arch', model.model).fc2.out_features == 3


def test_metrics_have_names():
    top_1 = {'type': 'top_k_acc', 'args': {'k': 1}}
    entries = ['accuracy', top_1, {**top_1, 'name': 'top_1'}, {'type': 'accuracy', 'name': 'hits'}]
    config = ConfigParser({'name': 'x', 'metrics': entries})
    first, second, *named = config.init_metrics(model.metric)
    assert [each.__name__ for each in named] == ['top_1', 'hits']
    output, target = torch.eye(3), torch.tensor([0, 1, 1])
    assert (first.__name__, second.__name__) == ('accuracy', 'top_k_acc')
    assert second(output, target) == first(output, target) and first(output, target) < 1


def test_one_annotation_that_cannot_be_known_takes_no_other_along():
    def build(sizes: 'Nowhere[int]', others: 'Sequence[int]' = (), bias: 'bool' = True):  # noqa: F821
        """Annotated as for type checkers only."""

    named, _ = parameters(build)
    expected = {name: violation('false', hint_of(each)) for name, each in named.items()}
    assert expected == {'sizes': None, 'others': 'a list [...]', 'bias': 'true or false'}
