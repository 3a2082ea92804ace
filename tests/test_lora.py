"""Laws of LoRA and compiled blocks: names, first outputs, what trains, what is left in the end."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from armature.checkpoint import files as checkpoint
from armature.checkpoint.weights import LORA, load_tested, merged, named_parameters
from armature.compare import first_difference
from armature.errors import CheckpointError, ConfigError
from armature.step.lora import put_on
from armature.step.parameters import init_weights
from armature.step.prepare import compile_blocks
from tests.conftest import PointModel
from tests.test_resume import run, stopped_after
from tests.test_training_range import settings_of

ADAPTED = {'lora': {'match': 'hidden*|out*', 'rank': 2, 'alpha': 3}}


class Layers(nn.Module):
    """Every kind of matrix: of convolutions, attention, embeddings; layers that are alike."""

    def __init__(self):
        super().__init__()
        self.conv, self.words = nn.Conv2d(3, 4, 3), nn.Embedding(9, 4)
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def shard_blocks(self):
        return [self.conv, *self.layers.layers]

    def forward(self, pictures, words):
        pixels = self.conv(pictures).flatten(2).transpose(1, 2)
        return self.layers(torch.cat([pixels, self.words(words)], dim=1))


def adapted(match='*', rank=2, alpha=5.0, model=Layers):
    torch.manual_seed(0)
    model = model()
    put_on(model, SimpleNamespace(match=match, rank=rank, alpha=alpha))
    return model


def trained_a_little(model):
    """The factors as training leaves them: none of them zero."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return model


INPUTS = torch.ones(2, 3, 4, 5), torch.tensor([[1, 2, 3], [4, 5, 6]])


def test_first_output_is_the_base_models_and_no_randomness_moves():
    torch.manual_seed(0)
    plain, expected = Layers(), torch.rand(3)
    model = adapted()
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(model(*INPUTS), plain(*INPUTS))
    names = [name for name in model.state_dict() if not name.endswith(LORA)]
    assert sorted(names) == sorted(plain.state_dict())
    assert first_difference(merged(model.state_dict()), {**plain.state_dict()}) == ''
    factors = {name: each for name, each in named_parameters(model).items() if 'lora_A' in name}
    assert len(factors) == 2 + 3 * 4 and len({each.sum().item() for each in factors.values()}) == 14
    again = named_parameters(adapted())
    assert all(torch.equal(again[name], each) for name, each in factors.items())


@pytest.mark.parametrize('is_training', [True, False])
def test_merged_weights_give_what_the_adapted_model_gives(is_training):
    model = trained_a_little(adapted())
    plain = Layers()
    assert not torch.allclose(plain(*INPUTS), model(*INPUTS), atol=1e-2)
    plain.load_state_dict(merged(model.state_dict()))
    with torch.set_grad_enabled(is_training):  # in eval mode attention has a way of its own
        output = model.train(is_training)(*INPUTS)
        torch.testing.assert_close(plain.train(is_training)(*INPUTS), output, rtol=1e-6, atol=1e-6)
    loaded = adapted()
    loaded.load_state_dict(model.state_dict())
    for each in (loaded, copy.deepcopy(model)):
        assert first_difference(dict(each.state_dict()), dict(model.state_dict())) == ''
        with torch.set_grad_enabled(is_training):
            assert torch.equal(each.train(is_training)(*INPUTS), output)


def test_factors_of_a_layer_of_ones_own_are_left_alone():
    weights = {f'layer.{name}': torch.ones(2, 2) for name in ('weight', *LORA)}
    assert merged(weights) == weights


def test_only_factors_train_and_what_nothing_freezes():
    model = PointModel()
    (group,) = settings_of(
        model,
        [{'match': '*lora_A', 'lr': 1}, {'match': '*lora_B', 'lr': 1}],
        freeze=['*'],
        **ADAPTED,
    )
    assert [name for name, _ in group['params']] == [
        f'{layer}.weight.{part}' for layer in ('hidden', 'out') for part in LORA[:2]
    ]
    groups = settings_of(PointModel(), freeze=['norm*'], **ADAPTED)
    assert {name for name, _ in groups if 'lora' not in name} == {'hidden.bias', 'out.bias'}


OPTIONS = {
    'lora': {'match': 'hidden*|out*', 'rank': 2},
    'freeze': ['hidden.*|norm.*'],
    'unfreeze_at': {'epoch': 2},
    'ema_decay': 0.9,
    'precision': 'bf16',
    'max_grad_norm': 0.5,
    'max_steps': 10,
}


def test_resumed_run_equals_uninterrupted_run(experiment):
    whole = run(experiment.trainer(**OPTIONS))
    resumed = run(experiment.trainer(stopped_after(experiment, 7, **OPTIONS), **OPTIONS))
    assert first_difference(resumed, whole) == ''
    torch.manual_seed(3)
    fresh = PointModel().state_dict()
    state = whole['state_dict']
    for name in ('hidden.weight', 'out.weight'):  # frozen also where freezing ends
        assert torch.equal(state[name], fresh[name]) and state[f'{name}.lora_B'].abs().sum() > 0
    assert not torch.equal(state['hidden.bias'], fresh['hidden.bias'])


def test_what_a_run_leaves_behind_fits_the_plain_model(experiment):
    trainer = experiment.trainer(epochs=1, ema_decay=0.5, **ADAPTED)
    trainer.train()
    n_train = sum(each.numel() for each in trainer.model.parameters() if each.requires_grad)
    said = (trainer.config.log_dir / 'info.log').read_text(encoding='utf-8')
    assert f' {n_train} train' in said
    state = checkpoint.load(trainer.checkpoint_dir / 'checkpoint-last.pth')
    model, inputs = PointModel(), torch.randn(9, 4)
    load_tested(model, None, state, 'the checkpoint')
    with trainer.stepper.tested_weights():
        trainer.model.eval()
        assert torch.equal(model.eval()(inputs), trainer.model(inputs))
    weights = torch.load(trainer.checkpoint_dir / 'weights.pth', weights_only=True)
    assert first_difference(weights, dict(model.state_dict())) == ''
    begun = PointModel()
    init_weights(begun, str(trainer.checkpoint_dir / 'checkpoint-last.pth'), logging.getLogger('x'))
    assert first_difference(dict(begun.state_dict()), weights) == ''


@pytest.mark.parametrize(
    'lora, said',
    [
        ({'match': 'hidden*|out*', 'rank': 3}, 'of another shape: hidden.weight.lora_A'),
        (None, 'not in the model: hidden.weight.lora_A'),
        ({'match': 'hidden*|out*', 'rank': 2, 'alpha': 1}, 'alpha / rank is 0.5, .* with 1.5'),
    ],
)
def test_resume_with_other_factors_is_refused(experiment, lora, said):
    stopped = stopped_after(experiment, 3, **ADAPTED)
    with pytest.raises((ConfigError, CheckpointError), match=said):
        experiment.trainer(stopped, lora=lora)


def tied():
    model = nn.ModuleDict({'one': nn.Linear(3, 3), 'other': nn.Linear(3, 3)})
    model.one.weight = model.other.weight
    return model


@pytest.mark.parametrize(
    'match, model, said',
    [
        ('attn*', Layers, "nothing is named like 'attn\\*'; there are conv.weight"),
        ('*.bias', Layers, 'names no matrix of floats'),
        ('one*', tied, 'one.weight cannot be adapted'),
        ('*', lambda: nn.LSTM(2, 3), 'weight_ih_l0 cannot be adapted, since LSTM'),
        ('*', lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)), 'cannot be adapted'),
    ],
)
def test_what_cannot_be_adapted_is_named(match, model, said):
    with pytest.raises(ConfigError, match=f'trainer.lora.match: .*{said}'):
        adapted(match, model=model)


def test_a_script_that_never_wraps_its_model_is_refused(experiment, monkeypatch):
    monkeypatch.setattr('parse_config.ConfigParser.wrap', lambda self, model, device: model)
    with pytest.raises(ConfigError, match='trainer.lora is done by config.wrap'):
        experiment.trainer(**ADAPTED)


# Compiled blocks


@pytest.mark.filterwarnings('ignore:The .grad attribute')  # torch's own look at it
def test_alike_blocks_are_compiled_once_also_with_lora(monkeypatch):
    compile_it, graphs = torch.compile, []

    def counted(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, 'compile', lambda forward: compile_it(forward, backend=counted))
    for match in (None, '*'):
        torch.compiler.reset()
        graphs.clear()
        torch.manual_seed(0)
        plain = Layers()
        model = copy.deepcopy(plain)
        if match:
            model = trained_a_little(adapted())
            plain.load_state_dict(merged(model.state_dict()))
        names = list(model.state_dict())
        compile_blocks(model)
        torch.testing.assert_close(model(*INPUTS), plain(*INPUTS), rtol=1e-5, atol=1e-6)
        assert len(graphs) == 1, 'for three layers'
        assert list(model.state_dict()) == names


def test_blocks_of_which_none_repeats_are_refused():
    with pytest.raises(ConfigError, match='no two blocks of PointModel are alike'):
        settings_of(PointModel(), compile='blocks')


class Rows(PointModel):
    """Two layers that are alike, with dropout."""

    def __init__(self):
        super().__init__()
        self.rows = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)) for _ in 'ab')

    def forward(self, x):
        for row in self.rows:
            x = x + row(x)
        return super().forward(x)

    def shard_blocks(self):
        return list(self.rows)


@pytest.mark.filterwarnings('ignore:The .grad attribute')
def test_run_goes_on_with_compiled_blocks_and_back(experiment, monkeypatch):
    compile_it, compiled = torch.compile, []

    def counted(forward):
        compiled.append(forward)
        return compile_it(forward, backend='eager')

    monkeypatch.setattr(torch, 'compile', counted)
    whole = run(experiment.trainer(model=Rows))
    stopped = stopped_after(experiment, 4, model=Rows)
    blocks = {'model': Rows, 'compile': 'blocks', 'activation_checkpointing': True}
    stopped = stopped_after(experiment, 11, resume=stopped, **blocks)
    assert len(compiled) == 2
    resumed = run(experiment.trainer(stopped, model=Rows))
    assert first_difference(resumed['state_dict'], whole['state_dict']) == ''
