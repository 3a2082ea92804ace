"""tools.export and tools.card: what leaves the project is what was trained, and proves it."""

import itertools
import json
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from armature.checkpoint import files as checkpoint
from armature.checkpoint import packed
from armature.errors import CheckpointError, ConfigError
from armature.run_files import read_table, values_of
from examples.own_dataset.data import Waves
from examples.own_dataset.model import WaveModel
from parse_config import ConfigParser
from predict import load_run
from tests.trained import copy_of, inputs_of, measured, read_config_of, run_here, train_run
from tools import packing
from tools.card import interval, pack
from tools.card import measured as measured_of
from tools.export import ExportError, export, write_onnx
from tools.exported_model import ExportedModel
from tools.new_folder import new_folder

pytest.importorskip('onnxscript', reason='needs requirements-export.txt')


@pytest.fixture(scope='module')
def run_of(tmp_path_factory):
    folder, runs = tmp_path_factory.mktemp('runs'), {}
    return lambda kind: runs.get(kind) or runs.setdefault(kind, train_run(kind, folder))


def exported(run: Path, kind: str, folder: Path, monkeypatch, **options) -> dict:
    """The export.json of a run's export as `kind`."""
    monkeypatch.chdir(Path(__file__).parent.parent)
    config = ConfigParser(read_config_of(run), resume=run / 'model_best.pth')
    export(config, kind, folder, **options)
    return json.loads((folder / 'export.json').read_text())


@pytest.mark.parametrize('kind', ['images', 'tabular', 'sequence'])
def test_an_exported_model_is_as_right_without_torch_as_test_says(
    kind, run_of, tmp_path, monkeypatch
):
    run, (inputs, right) = run_of(kind), inputs_of(kind, tmp_path)
    if kind == 'sequence' and torch.__version__ < '2.11':
        with pytest.raises(ExportError, match='has fixed a size'):
            exported(run, 'onnx', tmp_path / 'out', monkeypatch)
        assert not (tmp_path / 'out').exists()
        return
    report = exported(run, 'onnx', tmp_path / 'out', monkeypatch)
    assert report['largest_difference'] < 1e-5
    assert report['batch_sizes'][:2] == [1, 2]
    assert report['metrics_exported']['accuracy'] == report['metrics']['accuracy']
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'export.json',
        'model.onnx',
    ]
    model = ExportedModel(tmp_path / 'out/model.onnx')
    sources = [
        source
        for file in model.input_format.files_in(inputs)
        for _, source in model.input_format.sources(file)
    ]
    rows = model.predict(sources)
    accuracy = np.mean([row['prediction'] == answer for row, answer in zip(rows, right)])
    assert accuracy == pytest.approx(measured(run), abs=1e-6)


@pytest.mark.filterwarnings('ignore:The given buffer is not writable')  # torch 2.10, of its own
def test_pt2_runs_in_a_fresh_process(run_of, tmp_path, monkeypatch):
    report = exported(run_of('own_dataset'), 'pt2', tmp_path / 'out', monkeypatch)
    assert report['largest_difference'] < 1e-5 and report['n_equal_predictions'] > 20
    program = torch.export.load(tmp_path / 'out/model.pt2')
    waves = torch.stack([Waves(7)[index][0] for index in range(7)])
    assert program.module()(waves)[0].shape == (7, 2)  # a size that no proof has tried


def test_safetensors_hold_all_that_a_run_needs(run_of, tmp_path, monkeypatch):
    run = run_of('tabular')
    exported(run, 'safetensors', tmp_path / 'out', monkeypatch)
    file = tmp_path / 'out' / packed.FILE
    row = {'price': 'low', 'upkeep': 'low', 'doors': 4, 'seats': 4, 'safety': 'high'}
    rows = [load_run(each).predict([row | {'thousand_km': 9}]) for each in (file, run / 'best')]
    assert rows[0] == rows[1] and rows[0][0]['prediction'] in load_run(file).class_names
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match='damaged'):
        load_run(file)


@pytest.mark.parametrize('kind', ['noise', 'infinite'])
def test_a_model_that_gives_other_numbers_is_not_exported(kind, run_of, tmp_path, monkeypatch):
    forward, run = WaveModel.forward, run_of('own_dataset')
    noise, infinite = torch.Generator(), itertools.cycle([math.inf, -math.inf])

    def other(self, x):
        more = torch.rand(1, generator=noise) if kind == 'noise' else next(infinite)
        return forward(self, x) + more

    monkeypatch.setattr(WaveModel, 'forward', other)
    with pytest.raises(ExportError, match='in a batch of 1 .* from the original') as refused:
        exported(run, 'safetensors', tmp_path / 'out', monkeypatch)
    assert refused.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_batch_of_one_is_exported_and_proven_as_larger_ones_are(run_of, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    run = run_of('own_dataset')
    values = read_config_of(run)
    values['data_loader']['args']['batch_size'] = 1
    export(ConfigParser(values, resume=run / 'model_best.pth'), 'safetensors', tmp_path / 'out')
    report = json.loads((tmp_path / 'out/export.json').read_text())
    assert (report['batch_sizes'], report['n_samples']) == ([1, 2], 160)


def test_onnx_takes_several_tensors_and_outputs_called_as_inputs(tmp_path):
    class Both(nn.Module):
        def forward(self, given):
            return {'a': given[0] + given[1], 'b': given[0]}

    data, about = [torch.rand(2, 3), torch.rand(2, 3)], dict.fromkeys(('classes', 'input_format'))
    about |= {'inputs': ['a', 'b'], 'outputs': ['a', 'b'], 'dynamic': {}}
    write_onnx(SimpleNamespace(model=Both()), data, about, tmp_path / 'a.onnx')
    model = ExportedModel(tmp_path / 'a.onnx')
    ones = np.ones((5, 3), np.float32)
    assert [each[0, 0] for each in model.run([ones, 2 * ones])] == [3, 1]
    with pytest.raises(ConfigError, match='holds no input_format'):
        _ = model.input_format


def test_what_cannot_be_exported_is_named_with_its_layer(run_of, tmp_path, monkeypatch):
    class Stubborn(nn.AdaptiveAvgPool1d):
        def forward(self, x):
            return super().forward(x) if float(x.sum()) > 0 else super().forward(-x)

    def build(self):
        before(self)
        self.layers[4] = Stubborn(1)

    before, run = WaveModel.__init__, run_of('own_dataset')
    monkeypatch.setattr(WaveModel, '__init__', build)
    for kind in ('pt2', 'onnx'):
        with pytest.raises(ExportError, match=r'layers\.4 \(Stubborn\) cannot') as refused:
            exported(run, kind, tmp_path / 'out', monkeypatch)
        assert '\n' not in str(refused.value)


def test_an_export_folder_that_exists_is_left_alone(run_of, tmp_path, monkeypatch, capsys):
    (tmp_path / 'mine').mkdir()
    monkeypatch.chdir(tmp_path)
    code = run_here('tools.export', '-r', run_of('tabular'), '-o', 'mine', monkeypatch=monkeypatch)
    assert code == 2
    assert 'exists: name a folder that is not there yet with -o' in capsys.readouterr().err


def test_what_makes_a_folder_leaves_all_that_stands_beside_it(tmp_path):
    (tmp_path / '.ex.tmp').mkdir()
    (tmp_path / '.ex.tmp/mine').touch()
    with new_folder(tmp_path / 'ex') as made:
        (made / 'file').touch()
    with pytest.raises(ConfigError, match='File name too long'), new_folder(tmp_path / (300 * 'x')):
        pass
    assert sorted(os.listdir(tmp_path)) == ['.ex.tmp', 'ex']
    assert (tmp_path / '.ex.tmp/mine').is_file() and (tmp_path / 'ex/file').is_file()
    assert (tmp_path / 'ex').stat().st_mode == (tmp_path / '.ex.tmp').stat().st_mode


def test_a_file_that_is_no_export_is_refused(tmp_path):
    (tmp_path / 'a.onnx').write_bytes(b'no model')
    with pytest.raises(ConfigError, match='is no model of tools.export'):
        ExportedModel(tmp_path / 'a.onnx')


def test_a_packed_run_is_used_like_the_run(run_of, tmp_path, monkeypatch, capsys):
    run = run_of('sequence')
    accuracy = measured(run)
    monkeypatch.chdir(tmp_path)
    assert run_here('tools.card', run, '-o', 'card', monkeypatch=monkeypatch) == 0
    assert sorted(path.name for path in (tmp_path / 'card').iterdir()) == [
        'README.md',
        'classes.json',
        'config.json',
        'weights.safetensors',
    ]
    text = (tmp_path / 'card/README.md').read_text()
    assert '- classes: blame, praise' in text
    assert f'| accuracy | {accuracy:.4g} | {interval("accuracy", accuracy, 2000)} |' in text
    moved = Path(shutil.move(tmp_path / 'card', tmp_path / 'elsewhere'))
    sentences = ['the soup is not very good', 'the film was fine but the room is dull']
    assert load_run(moved).predict(sentences) == load_run(run / 'best').predict(sentences)
    (tmp_path / 'new.txt').write_text('\n'.join(sentences))
    assert run_here('predict.py', '-r', moved, 'new.txt', monkeypatch=monkeypatch) == 0
    assert 'new.txt:2,' in capsys.readouterr().out
    with pytest.raises(ConfigError, match='exists'):
        pack(run, moved)


def test_the_card_gives_numbers_of_the_checkpoint_that_it_packs_alone(run_of, tmp_path):
    run = copy_of(run_of('own_dataset'), tmp_path)
    test, validated = measured_of(run / 'model_best.pth', {'epoch': 1})
    assert test is None and validated == values_of(read_table(run / 'metrics.csv')[0])
    measured(run)
    assert measured_of(run / 'model_best.pth', {'epoch': 1, 'samples': 20})[1] is None
    assert measured_of(run / 'model_best.pth', {'epoch': 2})[0]['n_samples'] == 200
    with (run / 'model_best.pth').open('ab') as file:
        file.write(b'another')
    assert measured_of(run / 'model_best.pth', {'epoch': 9}) == (None, None)
    (run / 'test.json').write_text('{"values": {"accuracy": 1}, "checkpoint": "model_best.pth"}')
    assert measured_of(run / 'model_best.pth', {'epoch': 9}) == (None, None)


def test_what_is_no_tensor_is_not_packed_without_it(run_of, tmp_path):
    state = checkpoint.load(run_of('own_dataset') / 'model_best.pth')
    state['state_dict']['_extra_state'] = {'a': 1}
    with pytest.raises(
        CheckpointError, match='_extra_state of the model is no tensor: keep it as a buffer'
    ):
        packing.write(state, tmp_path / 'a')


def test_the_card_gives_an_interval_of_shares_alone():
    assert interval('accuracy', 0.5, 100) == '0.4038 to 0.5962'  # Wilson's
    assert interval('accuracy', 1.0, 50).endswith(' to 1')
    assert interval('loss', 0.5, 100) == interval('accuracy', 0.5, None) == ''
