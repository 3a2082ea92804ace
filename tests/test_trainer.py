"""Laws of a run: lengths, best, patience, averages, what is written, what stops it."""

import cProfile
import csv
import math
import time

import pytest
import torch
from torch.utils.data import TensorDataset

from armature.checkpoint import files as checkpoint
from armature.compare import first_difference
from armature.errors import CheckpointError, ConfigError, NonFiniteError, UserError
from armature.run import saving
from armature.seed import rng_state, set_rng_state
from base import BaseDataLoader, BaseModel, BaseTrainer
from model.metric import accuracy
from tests.conftest import NoisyPoints
from tools.run_files import read_record
from trainer import Trainer
from trainer.trainer import evaluate
from utils import MetricTracker


class Scripted(BaseTrainer):
    """Reports the given values of val_loss, one an epoch."""

    values = ()

    def _train_epoch(self, epoch):
        return {'loss': 0.5, 'val_loss': self.values[epoch - 1]}


def scripted(experiment, values, **settings):
    def build(*arguments):
        return type('ScriptedTrainer', (Scripted,), {'values': values})(*arguments[:6])

    return experiment.trainer(trainer_class=build, **{'epochs': len(values), **settings})


def names(trainer):
    return {path.name for path in trainer.checkpoint_dir.glob('*.pth')} - {'weights.pth'}


def test_len_epoch_runs_exactly_so_many_steps(experiment):
    trainer = experiment.trainer(len_epoch=3, epochs=2)
    trainer.train()
    assert trainer.step == 6


def test_early_stop_ends_after_exactly_so_many_bad_epochs(experiment):
    trainer = scripted(experiment, [1.0, 2.0, 2.0, 2.0, 2.0, 2.0], early_stop=3)
    trainer.train()
    assert trainer.epochs_done == 4


def test_equal_value_is_not_better(experiment):
    trainer = scripted(experiment, [1.0, 1.0, 1.0, 1.0], early_stop=2)
    trainer.train()
    assert trainer.epochs_done == 3
    assert checkpoint.load(trainer.checkpoint_dir / 'model_best.pth')['epoch'] == 1


def test_patience_counts_on_after_a_resume(experiment):
    first = scripted(experiment, [1.0, 2.0, 2.0], early_stop=3)
    first.train()
    path = first.checkpoint_dir / 'checkpoint-last.pth'
    resumed = scripted(experiment, [1.0, 2.0, 2.0, 2.0, 2.0, 2.0], early_stop=3, resume=path)
    resumed.train()
    assert resumed.epochs_done == 4


def test_best_is_saved_whenever_better_whatever_the_save_period(experiment):
    trainer = scripted(experiment, [3.0, 2.0, 4.0, 5.0, 6.0], save_period=5)
    trainer.train()
    assert names(trainer) == {'checkpoint-epoch5.pth', 'checkpoint-last.pth', 'model_best.pth'}
    assert checkpoint.load(trainer.checkpoint_dir / 'model_best.pth')['epoch'] == 2
    assert checkpoint.load(trainer.checkpoint_dir / 'checkpoint-last.pth')['epoch'] == 5


def test_monitor_that_no_epoch_reports_is_an_error_before_the_second_epoch(experiment):
    trainer = scripted(experiment, [1.0, 1.0], monitor='min val_lose')
    with pytest.raises(ConfigError, match='loss, val_loss'):
        trainer.train()
    assert trainer.epochs_done == 1 and 'checkpoint-last.pth' in names(trainer)


def test_nan_is_never_the_best(experiment):
    trainer = scripted(experiment, [math.nan, 2.0, math.nan], monitor='max val_loss')
    trainer.train()
    assert trainer.mnt_best == 2.0


def test_keep_last_prunes_numbered_checkpoints_but_never_the_best(experiment):
    trainer = scripted(experiment, [1.0, 2.0, 3.0, 4.0, 5.0], keep_last=2)
    trainer.train()
    assert names(trainer) == {
        'checkpoint-epoch4.pth',
        'checkpoint-epoch5.pth',
        'checkpoint-last.pth',
        'model_best.pth',
    }


def test_log_may_hold_tensors_numpy_numbers_and_old_lists(experiment):
    import numpy as np

    class OldLog(BaseTrainer):
        def _train_epoch(self, epoch):
            return {
                'loss': torch.tensor(0.5),
                'metrics': np.array([0.25]),
                'val_loss': np.float32(2),
                'val_metrics': [0.75],
            }

    trainer = experiment.trainer(trainer_class=lambda *arguments: OldLog(*arguments[:6]), epochs=1)
    trainer.train()
    assert trainer.history == [
        {'epoch': 1, 'loss': 0.5, 'accuracy': 0.25, 'val_loss': 2.0, 'val_accuracy': 0.75}
    ]


def test_history_is_a_table_with_a_row_an_epoch(experiment):
    trainer = experiment.trainer(epochs=2)
    trainer.train()
    with open(trainer.config.save_dir / 'metrics.csv') as handle:
        rows = list(csv.DictReader(handle))
    assert [row['epoch'] for row in rows] == ['1', '2']
    assert float(rows[1]['val_loss']) == trainer.history[1]['val_loss']


def test_epoch_after_many_does_as_much_as_one_after_few(experiment):
    def n_calls(n_epochs):
        trainer = experiment.trainer(epochs=1)
        trainer.train()
        trainer.history += trainer.history * n_epochs
        trainer._record.rows |= {-number: {'epoch': -number} for number in range(n_epochs)}
        calls = cProfile.Profile()
        calls.runcall(trainer._finish_epoch, 2, {'loss': 0.0, 'val_loss': 0.0})
        return sum(each.callcount for each in calls.getstats())

    few, many = n_calls(10), n_calls(1000)
    assert abs(many - few) < 100  # opening files is not always the same


def test_averages_are_those_over_all_samples():
    generator = torch.Generator().manual_seed(0)
    outputs, targets = (
        torch.randn(900, 10, generator=generator),
        torch.randint(10, (900,), generator=generator),
    )
    tracker = MetricTracker('loss', metrics=[accuracy])
    for output, target in zip(outputs.split(128), targets.split(128)):
        tracker.measure(torch.tensor(0.0), output, target)
    assert tracker.avg('accuracy') == pytest.approx(
        (outputs.argmax(1) == targets).double().mean().item(), abs=1e-8
    )


def test_averages_keep_no_graph_alive_and_do_not_depend_on_when_they_are_read():
    weight = torch.ones((), requires_grad=True)
    often, once = MetricTracker('loss'), MetricTracker('loss')
    for number in range(1, 50):
        for tracker in (often, once):
            tracker.update('loss', weight / number, n=number % 5 + 1)
        assert not often._pending[0][1].requires_grad
        often.recent()
    assert often.avg('loss') == once.avg('loss')


def test_metric_that_was_never_updated_is_nan_and_an_unknown_one_an_error():
    tracker = MetricTracker('loss')
    assert math.isnan(tracker.result()['loss'])
    with pytest.raises(KeyError, match='acuracy.*loss'):
        tracker.update('acuracy', 1)


def test_torchmetrics_are_computed_over_the_whole_epoch(experiment):
    from torchmetrics.classification import MulticlassF1Score

    metric = MulticlassF1Score(num_classes=2)
    metric.__name__ = 'f1'
    trainer = experiment.trainer(metrics=[metric], epochs=1)
    trainer.train()
    trainer.model.eval()
    batches = list(trainer.watched(trainer.valid_data_loader))
    with torch.no_grad():
        outputs = torch.cat([trainer.model(data) for data, _ in batches])
    expected = MulticlassF1Score(num_classes=2)(
        outputs, torch.cat([target for _, target in batches])
    )
    assert trainer.history[0]['val_f1'] == expected.item()


def test_validation_is_in_a_fixed_order_and_leaves_no_sample_out(experiment):
    trainer = experiment.trainer()
    seen = [
        torch.cat([target for _, target in trainer.watched(trainer.valid_data_loader)])
        for _ in range(2)
    ]
    assert torch.equal(*seen) and len(seen[0]) == 12
    assert set(trainer.data_loader.valid_sampler).isdisjoint(
        trainer.data_loader.indices(0).tolist()
    )


def test_loader_leaves_global_randomness_alone(experiment):
    import random

    import numpy as np

    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    loader = BaseDataLoader(NoisyPoints(), 7, shuffle=True, validation_split=0.2, num_workers=0)
    list(loader), list(loader.split_validation())
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


class TwoGpus:
    """What torch.cuda and torch.xpu are: generators of two devices."""

    def __init__(self):
        self.generators = [torch.Generator().manual_seed(index) for index in range(2)]

    def device_count(self):
        return len(self.generators)

    def get_rng_state(self, device):
        return self.generators[getattr(device, 'index', device)].get_state()

    def set_rng_state(self, state, device):
        self.generators[device].set_state(state)


@pytest.mark.parametrize('kind', ['cuda', 'xpu', 'mps'])
def test_generators_of_any_kind_of_gpu_are_saved_and_put_back(monkeypatch, kind):
    gpus, device = TwoGpus(), torch.device(kind, 0)
    monkeypatch.setattr(torch, 'get_device_module', lambda device: gpus)
    saved = rng_state(device)

    def draw():
        return [torch.rand(3, generator=each).tolist() for each in gpus.generators]

    drawn = draw()
    assert first_difference(rng_state(device), saved) == f'{kind}.0'
    set_rng_state(saved, device)
    assert first_difference(rng_state(device), saved) == '' and draw() == drawn
    set_rng_state({**saved, kind: saved[kind] * 2}, device)  # of a machine with more of them
    assert draw() == drawn
    set_rng_state(rng_state(torch.device('cpu')), device)  # of a machine without any
    set_rng_state(saved, torch.device('cpu'))
    assert first_difference(rng_state(torch.device('cpu')), saved) == kind


@pytest.mark.parametrize('n_workers', [2])
def test_samples_are_the_same_for_any_number_of_workers(n_workers):
    alone, helped = (BaseDataLoader(NoisyPoints(), 7, True, 0.2, n, seed=5) for n in (0, n_workers))
    for _ in range(2):
        assert all(
            torch.equal(a, b) for one, other in zip(alone, helped) for a, b in zip(one, other)
        )


def test_tensors_in_memory_give_the_same_batches_as_one_by_one():
    class OneByOne(TensorDataset):
        pass

    tensors = torch.randn(20, 3), torch.arange(20)
    fast, slow = (
        BaseDataLoader(kind(*tensors), 6, True, 5, 0, seed=5) for kind in (TensorDataset, OneByOne)
    )
    for one, other in zip(fast, slow, strict=True):
        assert type(one) is type(other) and all(torch.equal(a, b) for a, b in zip(one, other))


@pytest.mark.parametrize('split', [0.0001, 1.0, -0.1, 52])
def test_split_that_leaves_a_part_empty_is_an_error(split):
    with pytest.raises(ConfigError, match='validation_split'):
        BaseDataLoader(NoisyPoints(), 7, True, split, 0)


def test_stratified_split_keeps_the_shares():
    loader = BaseDataLoader(NoisyPoints(), 7, True, 12, 0, stratify=True)
    assert sum(loader.dataset.targets[loader.valid_sampler]) == 6


@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
def test_loss_that_is_not_finite_stops_the_run_and_names_its_samples(experiment, precision):
    class Poisoned(NoisyPoints):
        def __getitem__(self, index):
            data, target = super().__getitem__(index)
            return (data * torch.nan if index == 5 else data), target

    loader = BaseDataLoader(Poisoned(), 7, True, 0, 0)
    trainer = experiment.trainer(loader=loader, monitor='off', precision=precision)
    bad_step = next(
        step for step, indices in enumerate(loader.indices(0).split(7), start=1) if 5 in indices
    )
    with pytest.raises(NonFiniteError, match=rf'epoch 1, step {bad_step}: .*\b5\b'):
        trainer.train()
    assert not names(trainer) and NonFiniteError.exit_code == 1


def test_step_that_is_not_finite_is_left_out_when_asked(experiment):
    trainer = experiment.trainer(on_nan='skip')
    nll_loss = trainer.criterion
    trainer.criterion = lambda output, target: (
        nll_loss(output, target) * (torch.nan if trainer.step == 4 else 1)
    )
    before = {}
    take_step = trainer.stepper.step

    def step():
        before[trainer.step] = trainer.model.out.weight.clone()
        take_step()

    trainer.stepper.step = step
    trainer.train()
    assert trainer.epochs_done == 3 and trainer.stepper.n_skipped == 1
    assert torch.equal(before[4], before[5]) and not torch.equal(before[5], before[6])
    assert all(math.isfinite(row['loss']) for row in trainer.history)


def test_too_many_skipped_steps_in_a_row_stop_the_run(experiment):
    trainer = experiment.trainer(on_nan='skip', max_nan_skips=2)
    trainer.criterion = lambda output, target: output.mean() * torch.nan
    with pytest.raises(NonFiniteError, match='3 steps in a row'):
        trainer.train()


def test_weights_that_are_not_finite_are_not_saved(experiment):
    trainer = experiment.trainer(epochs=1)
    trainer.train()
    before = checkpoint.load(trainer.checkpoint_dir / 'checkpoint-last.pth')
    with torch.no_grad():
        trainer.model.out.bias[0] = torch.inf
    trainer.step += 1
    with pytest.raises(NonFiniteError, match='epoch 1, step 7: .*out.bias'):
        trainer._save_last()
    assert torch.equal(
        checkpoint.load(trainer.checkpoint_dir / 'checkpoint-last.pth')['state_dict']['out.bias'],
        before['state_dict']['out.bias'],
    )


def test_second_trainer_of_a_run_folder_is_refused(experiment):
    import subprocess
    import sys

    trainer = experiment.trainer(epochs=1)
    holder = subprocess.Popen(
        [
            sys.executable,
            '-c',
            f"""
import sys
sys.path.insert(0, {str(experiment.folder)!r})
import fcntl
handle = open({str(trainer.checkpoint_dir / '.lock')!r}, "a")
fcntl.lockf(handle, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()""",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        holder.stdout.readline()
        with pytest.raises(UserError, match='another process'):
            trainer.train()
        holder.kill()
    trainer.train()
    assert trainer.epochs_done == 1


def test_saving_fails_as_the_config_says(experiment, monkeypatch):
    def full(*_):
        raise CheckpointError('disk full')

    monkeypatch.setattr(saving, 'save', full)
    with pytest.raises(CheckpointError):
        experiment.trainer(epochs=1).train()
    trainer = experiment.trainer(epochs=1, on_save_error='warn')
    trainer.train()
    assert trainer.epochs_done == 1


def test_best_that_could_not_be_written_is_not_said_to_be_there(experiment, monkeypatch):
    trainer = experiment.trainer(on_save_error='warn')
    save = checkpoint.save

    def full_in_epoch_2(state, *paths):
        if state['epoch'] == 2:
            raise CheckpointError('disk full')
        save(state, *paths)

    monkeypatch.setattr(saving, 'save', full_in_epoch_2)
    trainer._valid_epoch = lambda epoch: {'loss': [0, 2.0, 1.0, 3.0][epoch]}
    trainer.train()
    assert read_record(trainer.checkpoint_dir)['best']['epoch'] == 1
    assert checkpoint.load(trainer.checkpoint_dir / 'model_best.pth')['epoch'] == 1


def test_saves_inside_an_epoch_when_asked(experiment):
    class Dies(Exception):
        pass

    trainer = experiment.trainer(save_every_steps=2)
    step = trainer.stepper.step

    def dying_step():
        step()
        if trainer.step == 5:
            raise Dies

    trainer.stepper.step = dying_step
    with pytest.raises(Dies):
        trainer.train()
    assert checkpoint.load(trainer.checkpoint_dir / 'checkpoint-last.pth')['step'] == 4


def test_plateau_scheduler_gets_the_monitored_value(experiment):
    def plateau(optimizer):
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)

    trainer = experiment.trainer(scheduler=plateau, epochs=3)
    trainer._valid_epoch = lambda epoch: {'loss': float(epoch)}
    trainer.train()
    assert trainer.optimizer.param_groups[0]['lr'] == pytest.approx(0.01 * 0.25)
    with pytest.raises(ConfigError, match='monitor'):
        experiment.trainer(scheduler=plateau, monitor='off')


def test_base_model_enforces_forward_and_prints_its_parameters():
    with pytest.raises(TypeError):
        BaseModel()

    class Linear(BaseModel):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x)

    assert str(Linear()).endswith('Trainable parameters: 8')


def test_tensorboard_holds_each_tag_once_per_step_and_a_resumed_run_hides_what_it_repeats(
    experiment,
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = experiment.trainer(epochs=2, tensorboard=True, log_step=2, log_histograms=True)
    trainer.train()
    events = EventAccumulator(str(trainer.config.log_dir))
    events.Reload()
    assert set(events.Tags()['scalars']) >= {
        'loss/train',
        'accuracy/train',
        'learning_rate/train',
        'samples_per_second/train',
        'loss/valid',
        'accuracy/valid',
    }
    assert [event.step for event in events.Scalars('loss/train')] == [2, 4, 6, 8, 10, 12]
    assert events.Tags()['histograms'] and not events.Tags()['images']


def test_run_that_begins_again_in_its_folder_shows_each_value_once(experiment):
    """As torchrun starts one again that failed before its first checkpoint."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first, again = (experiment.trainer(epochs=1, tensorboard=True, log_step=2) for _ in range(2))
    again.writer._log_dir = first.writer._log_dir
    for each in (first, again):
        each.train()
    events = EventAccumulator(str(first.config.log_dir))
    events.Reload()
    assert [event.step for event in events.Scalars('loss/train')] == [2, 4, 6]


def test_pace_and_time_of_an_epoch_leave_out_what_was_before_it(experiment, monkeypatch):
    class SlowToValidate(Trainer):
        def _valid_epoch(self, epoch):
            time.sleep(0.5)
            return super()._valid_epoch(epoch)

    trainer = experiment.trainer(epochs=2, log_step=2, trainer_class=SlowToValidate)
    paces = []
    monkeypatch.setattr(
        trainer.writer,
        'add_scalar',
        lambda tag, value: paces.append(value) if tag == 'samples_per_second' else None,
        raising=False,
    )
    time.sleep(0.5)
    trainer.train()
    assert len(paces) == 6
    assert min(paces) > 2 * 7 / 0.5  # two batches of 7, if the waiting counted


def test_writer_that_fails_does_not_stop_the_training(experiment):
    trainer = experiment.trainer(epochs=1, tensorboard=True)

    def broken(*args, **kwargs):
        raise OSError('disk full')

    trainer.writer.writer.add_scalar = broken
    trainer.train()
    assert trainer.epochs_done == 1


def test_evaluate_equals_validation(experiment):
    trainer = experiment.trainer(epochs=1)
    trainer.train()
    again = evaluate(
        trainer.model,
        trainer.watched(trainer.valid_data_loader),
        trainer.criterion,
        MetricTracker('loss', metrics=[accuracy]),
    )
    assert again == {
        'loss': trainer.history[0]['val_loss'],
        'accuracy': trainer.history[0]['val_accuracy'],
    }


def test_subclass_with_the_old_loop_trains(experiment):
    class OldLoop(Trainer):
        def _train_epoch(self, epoch):
            self.model.train()
            self.train_metrics.reset()
            for batch_idx, (data, target) in enumerate(self.data_loader):
                data, target = data.to(self.device), target.to(self.device)
                self.optimizer.zero_grad()
                loss = self.criterion(self.model(data), target)
                loss.backward()
                self.optimizer.step()
                self.writer.set_step((epoch - 1) * self.len_epoch + batch_idx)
                self.train_metrics.update('loss', loss.item())
            self.lr_scheduler.step()
            return self.train_metrics.result()

    whole = experiment.trainer(trainer_class=OldLoop, monitor='min loss')
    whole.train()
    half = experiment.trainer(trainer_class=OldLoop, monitor='min loss', epochs=1)
    half.train()
    resumed = experiment.trainer(
        half.checkpoint_dir / 'checkpoint-last.pth', trainer_class=OldLoop, monitor='min loss'
    )
    resumed.train()
    assert resumed.optimizer.param_groups[0]['lr'] == pytest.approx(0.01 * 0.7**3)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values())
    )


def test_writer_passes_on_whatever_tensorboard_takes(experiment):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from logger import TensorboardWriter

    trainer = experiment.trainer(epochs=1)
    writer = TensorboardWriter(trainer.config.log_dir, trainer.logger, enabled=True)
    writer.set_step(4, 'valid')
    writer.add_scalar('plain', 1.0)
    writer.add_scalar('given', 2.0, 9)
    writer.add_scalar(tag='named', scalar_value=3.0, global_step=7)
    writer.add_scalars('many', {'a': 1.0, 'b': 2.0})
    writer.add_custom_scalars({'Losses': {'all': ['Multiline', ['loss/train', 'loss/valid']]}})
    writer.add_embedding(torch.eye(3), metadata=['a', 'b', 'c'])
    writer.add_histogram('weights', torch.arange(5), bins='auto')
    writer.add_text('note', 'a text')
    writer.add_hparams({'lr': 0.1}, {'best': 0.5})
    with pytest.raises(TypeError):
        writer.add_scalar('plain', 1.0, colour='red')
    with pytest.raises(AttributeError):
        writer.add_nonsense(1)
    writer.close()
    events = EventAccumulator(str(trainer.config.log_dir))
    events.Reload()
    steps = {tag: events.Scalars(tag)[0].step for tag in events.Tags()['scalars']}
    assert steps == {'plain/valid': 4, 'given/valid': 9, 'named/valid': 7}
    assert events.Tags()['histograms'] == ['weights'] and not writer._failed
    folders = {path.name for path in trainer.config.log_dir.iterdir() if path.is_dir()}
    assert {'many_valid_a', 'many_valid_b'} <= folders
    assert (trainer.config.log_dir / '00004/default').is_dir()


def test_start_epoch_stays_the_first_one_while_training(experiment):
    class Watching(Trainer):
        def _train_epoch(self, epoch):
            seen.append((epoch, self.start_epoch))
            return super()._train_epoch(epoch)

    seen = []
    trainer = experiment.trainer(trainer_class=Watching, epochs=2)
    trainer.train()
    last = trainer.checkpoint_dir / 'checkpoint-last.pth'
    experiment.trainer(last, trainer_class=Watching, epochs=4).train()
    assert seen == [(1, 1), (2, 1), (3, 3), (4, 3)]
