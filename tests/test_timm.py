"""Names of timm in a config: models, augmentations, and what is said where it is not there."""

import logging
import sys

import pytest
import torch

import model.model as module_arch
import train
from armature.config.build import KINDS, find
from armature.errors import ConfigError
from armature.processes.dist import blocks_of
from armature.step.parameters import init_weights
from armature.step.prepare import compile_blocks
from parse_config import ConfigParser
from tests.conftest import ROOT, run_script
from tools.smoke import load_script

ARCH = {
    'type': 'test_vit',
    'args': {'num_classes': 10, 'in_chans': 1, 'img_size': 28, 'patch_size': 7},
}


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ConfigError, match='of timm: pip install -r requirements-timm.txt'):
        find('vit_tiny_patch16_224', KINDS['arch'])


timm = pytest.importorskip('timm', reason='needs timm (requirements-timm.txt)')


def built(**arch):
    return ConfigParser({'name': 'x', 'trainer': {}, 'arch': arch}).init_obj('arch', module_arch)


def test_a_name_of_timm_is_its_model():
    torch.manual_seed(0)
    mine = built(**ARCH)
    torch.manual_seed(0)
    expected = timm.create_model('test_vit', **ARCH['args'])
    assert all(map(torch.equal, mine.parameters(), expected.parameters()))
    assert built(type='resnet18').__module__ == 'torchvision.models.resnet'  # the first that has it


def test_timm_is_imported_only_for_names_that_nobody_else_has():
    code = (
        'import sys, train\n'
        'from parse_config import ConfigParser\n'
        'flip = {"type": "RandomHorizontalFlip", "args": {}}\n'
        'data = {"type": "DigitsDataLoader", "args": {"batch_size": 4, "augment": [flip]}}\n'
        'for arch in ("MnistModel", "resnet18"):\n'
        '    config = {"name": "x", "arch": {"type": arch}, "data_loader": data,\n'
        '              "optimizer": {"type": "SGD", "args": {"lr": 1}}, "loss": "nll_loss",\n'
        '              "trainer": {"epochs": 1}}\n'
        '    ConfigParser(config).check(train.BUILDS).init_obj("arch", train.module_arch)\n'
        'print("timm" in sys.modules)\n'
    )
    assert run_script('-c', code).stdout == 'False\n'


@pytest.mark.parametrize(
    'arch, said',
    [
        ({'type': 'test_vitt'}, "did you mean 'test_vit'"),
        ({'type': 'test_vit', 'args': {'num_clases': 3}}, "refuses: .*'num_clases'"),
        ({'type': 'test_vit', 'args': {'pretrained': 'yes'}}, 'pretrained: expected true or false'),
    ],
)
def test_mistake_in_a_name_or_argument_is_one_line(arch, said):
    with pytest.raises(ConfigError, match=said) as caught:
        built(**arch)
    assert '\n' not in str(caught.value)


def test_weights_that_cannot_be_downloaded_are_said_in_one_line():
    done = run_script(
        *('train.py', '-c', 'config.json', '-d', 'cpu', '--set', 'trainer.save_dir="/nowhere"'),
        *('arch.type="test_vit"', 'arch.args={"pretrained": true}'),
        check=False,
        HF_HUB_OFFLINE='1',
    )
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert '"init_from": "FILE"' in done.stderr.splitlines()[-1]


def test_a_model_of_timm_trains_with_lora_and_is_tested(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    config = {
        'name': 'digits',
        'n_gpu': 0,
        'arch': ARCH,
        'data_loader': {
            'type': 'DigitsDataLoader',
            'args': {'batch_size': 16, 'validation_split': 0.1},
        },
        'optimizer': {'type': 'AdamW', 'args': {'lr': 0.001}},
        'loss': 'cross_entropy',
        'metrics': ['accuracy'],
        'trainer': {
            'epochs': 1,
            'max_steps': 3,
            'save_dir': str(tmp_path),
            'lora': {'match': '*attn.qkv*', 'rank': 2},
        },
    }
    train.build(ConfigParser(config).check(train.BUILDS)).train()
    (last,) = tmp_path.rglob('checkpoint-last.pth')
    load_script(ROOT / 'test.py').main(ConfigParser(config, resume=last), n_batches=1)
    assert 'accuracy' in capsys.readouterr().out
    weights = torch.load(last.with_name('weights.pth'), weights_only=True)
    built(**ARCH).load_state_dict(weights)


def test_weights_of_timm_come_from_its_file(tmp_path):
    from safetensors.torch import save_file

    weights = timm.create_model('test_vit', **ARCH['args'] | {'num_classes': 1000}).state_dict()
    save_file(weights, tmp_path / 'model.safetensors')
    mine = built(**ARCH)
    source = {'file': str(tmp_path / 'model.safetensors'), 'ignore': ['head.*']}
    init_weights(mine, source, logging.getLogger('x'))
    taken = {name: value for name, value in mine.state_dict().items() if name[:5] != 'head.'}
    assert all(torch.equal(weights[name], value) for name, value in taken.items())


def test_layers_of_a_library_s_model_are_its_blocks(monkeypatch):
    model = built(**ARCH)
    assert set(model.blocks) < set(blocks_of(model))
    monkeypatch.setattr(torch, 'compile', lambda forward: 'compiled')
    compile_blocks(model)
    compiled = [module for module in model.modules() if 'forward' in vars(module)]
    assert compiled == list(model.blocks)


def test_augmentations_of_timm_are_the_same_for_any_number_of_workers(tmp_path):
    from PIL import Image

    pixels = torch.randint(256, (8, 40, 40, 3), dtype=torch.uint8)
    for number, each in enumerate(pixels.numpy()):
        folder = tmp_path / f'class_{number % 2}'
        folder.mkdir(exist_ok=True)
        Image.fromarray(each).save(folder / f'{number}.png')
    augment = [
        {'type': 'ToPILImage'},
        {
            'type': 'create_transform',
            'args': {
                'input_size': 32,
                'is_training': True,
                'auto_augment': 'rand-m9-mstd0.5-inc1',
                'normalize': False,
            },
        },
    ]

    def first_batch(n_workers):
        args = {'data_dir': str(tmp_path), 'size': 40, 'batch_size': 4, 'num_workers': n_workers}
        section = {'type': 'ImageFolderDataLoader', 'args': {**args, 'augment': augment}}
        config = ConfigParser({'name': 'x', 'trainer': {}, 'data_loader': section})
        torch.manual_seed(0)
        loader = config.init_obj('data_loader', train.module_data)
        data, _ = next(iter(loader))
        return data

    one, other = first_batch(0), first_batch(1)
    assert one.shape == (4, 3, 32, 32) and one.dtype == torch.float32
    assert torch.equal(one, other) and -2 <= one.min() < 0 < one.max() <= 2
