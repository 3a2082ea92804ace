"""Run by tests/test_processes.py in 1, 2 and 3 processes: torchrun ... tests/process_cases.py
FOLDER BEFORE CASE [CASE ...]

A case is a function; what it returns in the main process is written to FOLDER/CASE.json. BEFORE is
such a folder of another number of processes, whose interrupted runs some cases resume.
"""

import json
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from armature.batch import CPU, PairOf
from armature.data.order import one_pass
from armature.data.stream import StreamDataLoader
from armature.errors import UserError, exit_on_user_error
from armature.processes import dist
from armature.processes.launch import joined
from armature.seed import seed_everything
from armature.step.average import Average
from armature.step.optimizers import SeveralOptimizers
from base import BaseDataLoader, BaseModel
from model.metric import accuracy, top_k_acc
from parse_config import ConfigParser
from trainer import Trainer
from trainer.trainer import evaluate
from utils import MetricTracker

N_SAMPLES, N_VALID = (
    101,
    23,
)  # 78 to train on: batches of 16 and a last one of 14; of 11 and a last one of 1


class Plain(BaseModel):
    """Nothing that depends on how a batch is shared: no dropout, no BatchNorm."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(6, 9), nn.Linear(9, 3)

    def forward(self, x):
        return F.log_softmax(self.out(F.relu(self.hidden(x))), dim=1)


def points():
    generator = torch.Generator().manual_seed(5)
    classes = torch.arange(N_SAMPLES) % 3
    return torch.randn(N_SAMPLES, 6, generator=generator) + 0.5 * classes.unsqueeze(1), classes


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(*points())


def config_of(folder, resume=None, distributed=None, **settings):
    return ConfigParser(
        {
            'name': 'points',
            'n_gpu': 0,
            'distributed': distributed or {},
            'trainer': {
                'epochs': 2,
                'save_dir': str(folder),
                'verbosity': 0,
                'monitor': 'min val_loss',
                **settings,
            },
        },
        resume,
    )


def loader_of(batch_size=16, in_memory=True, num_workers=0, **options):
    dataset = TensorDataset(*points())
    if not in_memory:
        dataset = [tuple(row) for row in dataset]
    return BaseDataLoader(
        dataset,
        batch_size,
        shuffle=True,
        validation_split=N_VALID,
        num_workers=num_workers,
        seed=3,
        **options,
    )


def trainer_of(
    folder,
    loader=None,
    resume=None,
    distributed=None,
    criterion=F.nll_loss,
    metrics=(accuracy,),
    model=Plain,
    optimizer=lambda parameters: torch.optim.AdamW(parameters, 0.01),
    trainer_class=Trainer,
    **settings,
):
    config = config_of(folder, resume, distributed, **settings)
    seed_everything(3)
    loader = loader or loader_of()
    model = config.wrap(model(), torch.device('cpu'))
    criterion = criterion() if isinstance(criterion, type) else criterion
    parameters = [
        *model.parameters(),
        *(criterion.parameters() if isinstance(criterion, nn.Module) else ()),
    ]
    optimizer = optimizer(parameters)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    own_validation = getattr(loader, 'split_validation', lambda: None)()
    return trainer_class(
        model,
        criterion,
        list(metrics),
        optimizer,
        config,
        torch.device('cpu'),
        loader,
        own_validation or loader_of().split_validation(),
        scheduler,
    )


def outcome(trainer):
    """The history and the weights after training, as plain data."""
    state = dict(trainer.model.state_dict())
    weights = {name: dist.whole(value) for name, value in state.items()}
    for name, value in state.items():
        in_main = dist.whole(value, only_in_main=True)
        is_left_out = hasattr(value, 'full_tensor') and not dist.is_main()
        assert is_left_out if in_main is None else torch.equal(in_main, weights[name])
    return {
        'history': trainer.history,
        'step': trainer.step,
        'run': str(trainer.checkpoint_dir),
        'weights': {
            name.removeprefix('module.'): value.tolist() for name, value in weights.items()
        },
    }


def trained(folder, **options):
    trainer = trainer_of(folder, **options)
    trainer.train()
    return outcome(trainer)


class Center(nn.Module):
    """A loss with weights of its own."""

    def __init__(self):
        super().__init__()
        self.centers = nn.Parameter(torch.zeros(3))

    def forward(self, output, target):
        return F.nll_loss(output + self.centers, target)


def train_even(folder):
    return trained(folder, loader=loader_of(batch_size=13))


def train_last_batch_of_one(folder):
    return trained(folder, loader=loader_of(batch_size=11))


def train_workers(folder):
    options = {'num_workers': 1, 'persistent_workers': False}  # they leave with each pass
    return trained(folder, loader=loader_of(batch_size=11, in_memory=False, **options))


def train_micro_batches(folder):
    return trained(
        folder, loader=loader_of(batch_size=11), microbatch_size=2, max_grad_norm=0.5, ema_decay=0.9
    )


def train_epochs_across_passes(folder):
    return trained(folder, loader=loader_of(batch_size=11), len_epoch=9)


def train_stream(folder):
    return trained(
        folder, loader=StreamDataLoader(Stream(), 10, seed=3), len_epoch=13
    )  # ends with one of a single sample


def train_sum_of_losses(folder):
    return trained(
        folder,
        loader=loader_of(batch_size=11),
        criterion=nn.NLLLoss(reduction='sum'),
        microbatch_size=3,
    )


def train_class_weights(folder):
    """Now and then all targets that a process has are ignored."""
    return trained(
        folder,
        loader=loader_of(batch_size=6),
        criterion=nn.NLLLoss(torch.tensor([1.0, 3.0, 2.0]), ignore_index=2),
        microbatch_size=2,
    )


def weighted(output, target, weight):
    return F.nll_loss(output, target, weight)


def train_loss_with_weights(folder):
    return trained(folder, criterion=Center)


def train_average(folder):
    return trained(folder, distributed={'strategy': 'fsdp'}, swa_start=1)


def train_skipping(folder):
    return trained(folder, on_nan='skip')


def train_sharded(folder):
    return trained(
        folder,
        loader=loader_of(batch_size=11),
        distributed={'strategy': 'fsdp'},
        microbatch_size=4,
        max_grad_norm=0.5,
        ema_decay=0.9,
    )


def muon_beside_adamw(parameters):
    """Muon computes in bf16: with small steps what rounds otherwise there stays small."""
    matrices = [each for each in parameters if each.ndim == 2]
    others = [each for each in parameters if each.ndim != 2]
    return SeveralOptimizers(
        [torch.optim.AdamW(others, 0.01), torch.optim.Muon(matrices, 1e-4, weight_decay=0.0)]
    )


def train_with_muon(folder):
    options = {'loader': loader_of(batch_size=11), 'microbatch_size': 4, 'max_grad_norm': 0.5}
    return trained(folder, optimizer=muon_beside_adamw, **options)


def train_with_muon_in_shards(folder):
    """Stopped inside the second epoch, saved in parts, gone on from them."""
    options = {'distributed': {'strategy': 'fsdp', 'checkpoint': 'sharded'}, 'microbatch_size': 4}
    options |= {'optimizer': muon_beside_adamw, 'max_grad_norm': 0.5}
    first = trainer_of(folder, loader_of(batch_size=11), max_steps=11, **options)
    first.train()
    last = first.checkpoint_dir / 'checkpoint-last.pth'
    resumed = trained(folder, loader=loader_of(batch_size=11), resume=last, **options)
    whole = trained(folder, loader=loader_of(batch_size=11), **options)
    return {**resumed, 'uninterrupted': whole['weights']}


def train_uneven_micro_batches(folder):
    """One process has a micro-batch more than the others, and with FSDP all have to make as many
    passes.
    """
    return trained(
        folder,
        loader=loader_of(batch_size=9),
        distributed={'strategy': 'fsdp'},
        microbatch_size=2,
        model=Listed,
        criterion=loss_and_parts,
    )


def loss_and_parts(output, target):
    loss = F.nll_loss(output, target)
    return loss, {'nll': loss}


def loss_of_three(output, target):
    """There is no memory for the gradients of more than three samples."""
    if len(target) > 3 and torch.is_grad_enabled():
        raise torch.OutOfMemoryError
    return F.nll_loss(output, target)


def train_micro_batches_that_fit(folder):
    """Each process finds a size of its own."""
    trainer = trainer_of(
        folder, loader_of(batch_size=9), microbatch_size='auto', criterion=loss_of_three
    )
    trainer.train()
    assert trainer.stepper.microbatch_size in (2, 3)
    return outcome(trainer)


class Listed(Plain):
    """Blocks in a list, as transformers have them."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)])

    def forward(self, x):
        for layer in self.layers:
            x = x + F.relu(layer(x))
        return super().forward(x)


def train_lora(folder):
    lora = {'match': 'layers*|hidden*', 'rank': 2}
    return trained(folder, model=Listed, lora=lora, microbatch_size=4, ema_decay=0.9)


def train_lora_in_compiled_blocks(folder):
    """In parts, too, and computed again."""
    compile_it = torch.compile
    torch.compile = partial(compile_it, backend='aot_eager')  # inductor takes a minute
    try:
        return trained(
            folder,
            model=Listed,
            distributed={'strategy': 'fsdp', 'checkpoint': 'sharded'},
            lora={'match': 'layers*|hidden*', 'rank': 2},
            compile='blocks',
            activation_checkpointing=True,
            microbatch_size=4,
            ema_decay=0.9,
        )
    finally:
        torch.compile = compile_it


def train_stream_of_whole_batches(folder):
    return trained(
        folder, loader=StreamDataLoader(Stream(), 8, seed=3, drop_last=True), len_epoch=14
    )  # passes of 12


def train_in_shards(folder):
    """Stopped inside the second epoch, saved in parts, gone on from them."""
    options = {
        'loader': loader_of(batch_size=11),
        'microbatch_size': 4,
        'max_grad_norm': 0.5,
        'ema_decay': 0.9,
    }
    sharing = {'strategy': 'fsdp', 'checkpoint': 'sharded'}
    first = trainer_of(folder, distributed=sharing, max_steps=11, **options)
    first.train()
    options['loader'] = loader_of(batch_size=11)
    return trained(
        folder,
        resume=first.checkpoint_dir / 'checkpoint-last.pth',
        distributed=sharing,
        **options,
    )


def interrupted_in_shards(folder):
    trainer = trainer_of(
        folder,
        distributed={'strategy': 'fsdp', 'checkpoint': 'sharded'},
        loader=loader_of(batch_size=11),
        max_steps=11,
    )
    trainer.train()
    return {
        'run': str(trainer.checkpoint_dir),
        'position': trainer.position,
        'weights': outcome(trainer)['weights'],
    }


def resumed_from_shards(folder):
    """As the interrupted run was, but in whatever number of processes there are now.

    With FSDP in several, plain in one.
    """
    run = json.loads((BEFORE / 'interrupted_in_shards.json').read_text())['run']
    return trained(
        folder,
        loader=loader_of(batch_size=11),
        resume=Path(run) / 'checkpoint-last.pth',
        distributed={'strategy': 'fsdp'} if dist.n_processes() > 1 else None,
    )


def train_checkpointed(folder):
    return trained(folder, loader=loader_of(batch_size=11), activation_checkpointing=True)


def evaluate_exactly(folder):
    """Metrics of 101 samples, and how many were counted."""
    from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

    made = [MulticlassAccuracy(3), MulticlassAUROC(3)]
    for metric in made:
        metric.__name__ = type(metric).__name__
    results = {}
    for batch_size in (50, 101, 7):
        seed_everything(1)
        loader = BaseDataLoader(TensorDataset(*points()), batch_size, False, 0.0, 0)
        metrics = MetricTracker('loss', metrics=[accuracy, top_k_acc, *made])
        batches = one_pass(loader, PairOf(None), CPU, metrics)
        results[str(batch_size)] = evaluate(Plain(), batches, F.nll_loss, metrics)
        counted = {key: sums[1] for key, sums in metrics._sums_of_all().items()}
        results[f'{batch_size} counted'] = counted
    return results


def correlate_in_two_parts(folder):
    """[A metric whose state no process can tell for all, saved and loaded half-way, what it should
    be, what is said when it cannot be].
    """
    from torchmetrics.regression import PearsonCorrCoef

    metric = PearsonCorrCoef()
    metric.__name__ = 'correlation'
    points = torch.randn(2, 40, generator=torch.Generator().manual_seed(1)).cumsum(0)
    halves = [half[:, dist.rank() :: dist.n_processes()] for half in points.split(20, dim=1)]
    first, second = MetricTracker('loss', metrics=[metric]), MetricTracker('loss', metrics=[metric])
    first.measure(torch.ones(()), *halves[0])
    state = first.state_dict()
    second.load_state_dict(state)
    second.measure(torch.ones(()), *halves[1])
    try:
        state['stateful']['correlation']['n_total'] = (torch.ones(1),) * 9
        first.load_state_dict(state)
    except UserError as error:
        return [second.result()['correlation'], torch.corrcoef(points)[0, 1].item(), str(error)]


def agree(folder):
    """[After which step each process did what only the last one requested, which request]."""
    agreement, is_last = dist.Agreement(), dist.rank() == dist.n_processes() - 1
    step, granted = 0, ()
    while not any(granted):
        step += 1
        time.sleep(0.001 * (dist.rank() + 1))
        granted = agreement.after_step(*((143, 1) if is_last and step >= 5 else (0, 0)))
    return [dist.gather(step), granted]


def count_all_reduces(folder):
    """How often gradients cross in a step, whatever the number of micro-batches."""
    counts = {}
    for size in (None, 8, 2):
        trainer, n_calls = trainer_of(folder, microbatch_size=size, epochs=1), []
        if dist.n_processes() > 1:
            trainer.model.register_comm_hook(n_calls, count_and_reduce)
        trainer.train()
        counts[str(size)] = len(n_calls) / trainer.step
    return counts


class OldTrainer(Trainer):
    """A loop as old projects have it."""

    def _train_epoch(self, epoch):
        self.model.train()
        self.train_metrics.reset()
        for data, target in self.data_loader:
            self.optimizer.zero_grad()
            loss = self.criterion(self.model(data), target)
            loss.backward()
            self.optimizer.step()
            self.train_metrics.update('loss', loss.item(), n=len(target))
        log = {'loss': self.train_metrics.avg('loss')}
        log.update(**{'val_' + name: value for name, value in self._valid_epoch(epoch).items()})
        self.lr_scheduler.step()
        return log


def train_old_loop(folder):
    """Batches that all processes have the same share of: such a loop knows nothing of weights."""
    return trained(folder, loader=loader_of(batch_size=6), trainer_class=OldTrainer)


def refusals(folder):
    """What several processes cannot do, by the words that say so."""
    fsdp = {'strategy': 'fsdp'}
    attempts = {
        'fp16': lambda: trainer_of(folder, distributed=fsdp, precision='fp16'),
        'fitting': lambda: trainer_of(folder, distributed=fsdp, microbatch_size='auto'),
        'unfreezing': lambda: trainer_of(folder, distributed=fsdp, unfreeze_at={'epoch': 2}),
        'small batches': lambda: loader_of(batch_size=1),
        'a loader that does not share': lambda: trained(
            folder, loader=torch.utils.data.DataLoader(TensorDataset(*points()), 8)
        ),
        'a closure': lambda: trainer_of(folder, optimizer=torch.optim.LBFGS),
        'class weights': lambda: trainer_of(
            folder, criterion=partial(weighted, weight=torch.ones(3))
        ),
        'a model of its own': lambda: Trainer(
            Plain(), F.nll_loss, [], None, config_of(folder), torch.device('cpu'), loader_of()
        ),
        'another config': lambda: dist.refuse_differences(
            config_of(folder, save_period=1 + dist.rank()).config, 'the config'
        ),
        'an unused parameter': lambda: trained(folder, model=HalfUsed),
        'a pass over nothing': lambda: list(
            one_pass(StreamDataLoader(Nothing(), 8), PairOf(None), CPU)
        ),
    }
    said = {}
    for name, attempt in attempts.items():
        try:
            attempt()
            said[name] = ''
        except UserError as error:
            said[name] = str(error)
    return said


class Nothing(IterableDataset):
    def __iter__(self):
        return iter(())


class HalfUsed(Plain):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 2)


def count_bytes(folder):
    """Bytes for each parameter that this process keeps between steps.

    [weights, gradients, optimizer, average], by strategy.
    """
    found = {}
    for strategy in ('ddp', 'fsdp'):
        config = config_of(folder, distributed={'strategy': strategy})
        model = nn.Sequential(*(nn.Linear(60, 60) for _ in range(4)))
        n_parameters = sum(parameter.numel() for parameter in model.parameters())
        model = config.wrap(model, torch.device('cpu'))
        optimizer, average = torch.optim.AdamW(model.parameters()), Average(model, 0.9)
        model(torch.randn(2, 60)).sum().backward()
        optimizer.step()
        kinds = [
            list(model.parameters()),
            [parameter.grad for parameter in model.parameters()],
            [
                value
                for state in optimizer.state.values()
                for name, value in state.items()
                if name != 'step'
            ],
            average._mine.values(),
        ]
        found[strategy] = [
            sum(dist.part(tensor).nbytes for tensor in tensors) / n_parameters for tensors in kinds
        ]
    return found


def count_and_reduce(n_calls, bucket):
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    n_calls.append(1)
    return allreduce_hook(None, bucket)


def interrupted(folder):
    """Stops inside the second epoch."""
    trainer = trainer_of(
        folder, loader=loader_of(batch_size=11), metrics=[accuracy, _auroc()], max_steps=11
    )
    trainer.train()
    return {'step': trainer.step, 'position': trainer.position, 'run': str(trainer.checkpoint_dir)}


def resumed(folder):
    run = json.loads((BEFORE / 'interrupted.json').read_text())['run']
    return trained(
        folder,
        loader=loader_of(batch_size=11),
        metrics=[accuracy, _auroc()],
        resume=Path(run) / 'checkpoint-last.pth',
    )


def uninterrupted_plainly(folder):
    return trained(folder, loader=loader_of(batch_size=11))


def uninterrupted(folder):
    return trained(folder, loader=loader_of(batch_size=11), metrics=[accuracy, _auroc()])


def _auroc():
    from torchmetrics.classification import MulticlassAUROC

    metric = MulticlassAUROC(3)
    metric.__name__ = 'auroc'
    return metric


def main(folder, cases):
    torch.set_num_threads(1)
    for case in cases:
        result = globals()[case](Path(folder) / case)
        if dist.is_main():
            (Path(folder) / f'{case}.json').write_text(json.dumps(result))


if __name__ == '__main__':
    BEFORE = Path(sys.argv[2])
    together = joined(timeout_s=60, n_gpu=0) if dist.is_started() else nullcontext()
    with exit_on_user_error(), together:
        main(sys.argv[1], sys.argv[3:])
