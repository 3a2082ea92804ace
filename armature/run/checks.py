"""Looks whether data, model and loss suit each other in the first step, and what breaks later."""

import copy
import functools
import inspect
import itertools
import logging
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from armature.batch import argument_names, cut, described, takes
from armature.checkpoint.files import LAST
from armature.checkpoint.weights import bare, sizeless
from armature.compare import first_difference
from armature.data.order import RandomSampler, SequentialSampler, samples_of
from armature.errors import ConfigError, DataError, NonFiniteError
from armature.processes import dist
from armature.run.metric_tracker import MetricTracker
from armature.seed import rng_state, set_rng_state
from armature.step.losses import total_and_terms
from armature.step.micro_batches import Reduction, weighted

# What goes into the loss

OF_CLASSES = (F.cross_entropy, F.nll_loss, F.multi_margin_loss)
FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)
ELEMENTWISE = (
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.poisson_nll_loss,
    F.kl_div,
    F.hinge_embedding_loss,
    F.soft_margin_loss,
    F.multilabel_soft_margin_loss,
)


class LossCheck(TorchFunctionMode):
    """Inside, what reaches a loss function of torch has to suit it, whoever calls it.

    So nobody guesses what a loss makes of output and target: one of the project's own may flatten
    both, compute scores from embeddings, or take the target for a count.
    name: of the loss in the config. known_labels(target): all labels that the loader knows, where
    `target` is a part of them. given: what the loss is called with.
    """

    def __init__(self, name: str, known_labels: Callable[[torch.Tensor], set[int]]):
        super().__init__()
        self.name, self.known_labels, self.given = name, known_labels, ()

    def _is_given(self, tensor):
        """Whether the loss has it as it is, and has not made it."""
        return any(each is tensor for each in self.given)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in OF_CLASSES or function in ELEMENTWISE:
            given = inspect.signature(function).bind(*args, **kwargs)
            given.apply_defaults()
            output, target, *_ = given.arguments.values()
            if not (isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor)):
                raise ConfigError(
                    f'loss {self.name}: {function.__name__} gets an output that is '
                    f'{described(output)}, and targets that are {described(target)}: it compares '
                    'one tensor with one. Write a loss (output, target) in model/loss.py that '
                    'says which parts count'
                )
            about = (
                f'loss {self.name}: {function.__name__} gets an output {_kind(output)} and '
                f'targets {_kind(target)}'
            )
            check = self._of_classes if function in OF_CLASSES else self._elementwise
            check(about, output, target, given.arguments)
            if function is F.binary_cross_entropy and ((output < 0) | (output > 1)).any():
                raise ConfigError(
                    f'loss {self.name}: binary_cross_entropy takes outputs from 0 to 1, and the '
                    f'model gives {output.min():.4g} to {output.max():.4g}: let it end in a '
                    'sigmoid, or take BCEWithLogitsLoss'
                )
        return function(*args, **kwargs)

    def _of_classes(self, about, output, target, given):
        dim = min(1, output.dim() - 1)  # the classes'
        n_classes, weight = output.shape[dim], given.get('weight')
        if n_classes == 1:
            raise ConfigError(
                f'{about}: over one class it is always 0. Give the model an output for each class, '
                'or, for yes or no in one number, take BCEWithLogitsLoss with targets of its shape'
            )
        if isinstance(weight, torch.Tensor) and (
            len(weight) != n_classes or not weight.is_floating_point()
        ):
            raise ConfigError(
                f'{about}, and weights {_kind(weight)}: expected a float, as 1.0, for each of '
                f'{n_classes} classes'
            )
        if target.is_floating_point():
            if target.shape != output.shape or 'label_smoothing' not in given:
                raise ConfigError(
                    f'{about}: expected the number of a class for each sample (int64), as '
                    'target.long() gives it, for a number in one column after target.squeeze(1)'
                )
            return
        expected = output.shape[:dim] + output.shape[dim + 1 :]
        if target.shape != expected:
            shape = target.shape
            spare = [at for at in range(len(shape)) if shape[:at] + shape[at + 1 :] == expected]
            raise ConfigError(
                f'{about}, and expects targets {tuple(expected)}, with classes in dimension 1 of '
                f'the output: target.squeeze({(spare or [-1])[0]}) takes a dimension of size 1 '
                'away, output.movedim(-1, 1) moves classes that come last'
            )
        if target.dtype not in (torch.int64, torch.uint8):
            raise ConfigError(f'{about}: expected int64 targets, as target.long() gives them')
        labels = set(target.unique().tolist())
        if self._is_given(target):
            labels |= self.known_labels(target)
        labels -= {given.get('ignore_index'), *range(n_classes)}
        if labels:
            raise DataError(
                f'the data has the label {max(labels, key=abs)}, and the model gives {n_classes} '
                f'scores, for the labels 0 to {n_classes - 1} (loss {self.name}): change the size '
                'of its output (arch.args), or the labels'
            )

    def _elementwise(self, about, output, target, given):
        are_given = self._is_given(output) and self._is_given(target)
        # A loss may compare with a mean, or make dimensions of size 1 to compare each with each.
        # Not where samples go with samples, and the numbers of one are repeated for the other.
        is_repeated = _repeats(target, output) or _repeats(output, target)
        is_slip = is_repeated and output.shape[:1] == target.shape[:1]
        is_meant = output.dim() == target.dim() or _repeats(target, output)
        if output.shape != target.shape and (are_given or is_slip or not is_meant):
            raise ConfigError(
                f'{about}. Of different shapes, each element of one would be compared with many of '
                'the other: bring one to the shape of the other, as output.squeeze(-1) in the '
                'model or target.squeeze(-1) in the dataset does'
            )
        for name in ('weight', 'pos_weight'):
            weight = given.get(name)
            if isinstance(weight, torch.Tensor) and not _repeats(weight, output):
                raise ConfigError(
                    f'{about}, and {name} {_kind(weight)}: expected one number for each output'
                )
        is_strict = {'delta', 'pos_weight', 'log_target'} & given.keys()
        if is_strict and not target.is_floating_point():
            raise ConfigError(f'{about}: expected targets of {output.dtype}, as target.float()')


def _repeats(one, other):
    """Whether torch repeats `one` until it has the shape of `other`."""
    sizes = zip(one.shape[::-1], other.shape[::-1])
    return one.dim() <= other.dim() and all(size in (1, wanted) for size, wanted in sizes)


def _kind(tensor):
    return f'{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix("torch.")}'


def check_first_step(trainer: Any) -> None:
    """Let the first step say whether data, model and loss suit each other."""
    is_of_validation = trainer.mnt_metric.startswith('val_')
    if is_of_validation and trainer.takes_pairs and not getattr(trainer, 'do_validation', True):
        raise ConfigError(
            f'trainer.monitor is {trainer.monitor!r}, and there is no validation data: set '
            f'data_loader.args.validation_split, or say "{trainer.mnt_mode} '
            f'{trainer.mnt_metric.removeprefix("val_")}"'
        )
    criterion = trainer.criterion
    name = getattr(criterion, '__name__', type(criterion).__name__)
    if trainer.takes_pairs:
        _refuse_more_inputs(bare(trainer.model))
        _refuse_more_than_pairs(name, getattr(criterion, 'forward', criterion))
    check = LossCheck(name, functools.partial(_known_labels, trainer))
    look = functools.partial(_look_at_loss, trainer, name, criterion)
    if isinstance(criterion, nn.Module) and not isinstance(criterion, torch.jit.ScriptModule):
        _check_module_once(criterion, check, look)
    elif isinstance(criterion, FUNCTIONS):  # others have methods

        @functools.wraps(criterion)
        def checked(*args, **kwargs):
            trainer.criterion, check.given = criterion, args
            with check:
                loss = criterion(*args, **kwargs)
            look(args, loss)
            return loss

        # What else looks at the loss meanwhile sees the same function and arguments.
        checked.func = getattr(criterion, 'func', criterion)
        checked.keywords = getattr(criterion, 'keywords', {})
        trainer.criterion = checked

    if isinstance(trainer.model, nn.Module):
        trainer._broken_before = _broken_on_purpose(bare(trainer.model))
        _refuse_late_layers(bare(trainer.model), trainer.optimizer)
        cause = _lone_sample(trainer)
        for norm in dist.norms_of(trainer.model) if cause else ():
            _refuse_lone_samples(norm, cause, trainer)


def _refuse_more_inputs(model):
    """A ConfigError when model(data) cannot call its forward, which needs several arguments."""
    # A hook, or a __call__ of its own, may make several of one.
    is_plain = type(model).__call__ is nn.Module.__call__
    if is_plain and not model._forward_pre_hooks and not takes(model.forward, None):
        raise ConfigError(
            f'{type(model).__name__}.forward takes {argument_names(model.forward)}, and a batch '
            'gives it one argument: let the dataset return a dict and name these of its parts in '
            'the config ("batch": {"data": [...], "target": ...}), or let forward take one'
        )


def _refuse_more_than_pairs(name, function):
    """A ConfigError when the loss cannot be called with (output, target)."""
    if callable(function) and not takes(function, None, None):
        raise ConfigError(
            f'loss {name} takes {argument_names(function)}, and is given (output, target): write a '
            'function (output, target) in model/loss.py that calls it'
        )


def _look_at_loss(trainer, name, criterion, args, loss):
    """What the first value of a loss tells: whether it trains, and whether it adds up from parts.

    In parts, that of a batch is put together from those of micro-batches, or of processes.
    """
    if not (trainer.takes_pairs or isinstance(loss, torch.Tensor)):
        return  # a loop of one's own takes the loss apart as it likes
    total, _ = total_and_terms(loss)
    if trainer.takes_pairs and torch.is_grad_enabled() and not total.requires_grad:
        raise ConfigError(
            f'loss {name}: no gradient leads from it to the model: leave out detach(), item() and '
            'no_grad() there'
        )
    n_samples = _n_samples(trainer)
    is_in_parts = trainer.settings.microbatch_size or dist.n_processes() > 1
    # In all processes or in none: the loss may let them talk.
    if not is_in_parts or len(args) != 2 or min(dist.gather(n_samples)) < 2:
        return
    before = rng_state(trainer.device)
    try:
        together = _from_halves(copy.deepcopy(criterion), args, n_samples)
    except Exception:  # such as CannotCut: it may want an even number, or more than one sample
        together = None
    draws = first_difference(before, rng_state(trainer.device))
    set_rng_state(before, trainer.device)
    if draws or together is None:  # random numbers, which are others for halves
        return
    of_all, together = (each.detach().cpu().double() for each in (total, together))  # MPS has none
    tolerance = 1e-3 if trainer.settings.precision == 'fp32' else 0.05
    if not torch.allclose(together, of_all, tolerance, tolerance, equal_nan=True):
        logging.getLogger('trainer').warning(
            f'loss {name}: over the first {n_samples} samples it is {of_all:.6g}, and '
            f'{together:.6g} put together from their halves, so micro-batches '
            '(trainer.microbatch_size) or several processes change the result. Where it adds its '
            'samples up, let it have the attribute or argument "reduction" with the value "sum"'
        )


def _n_samples(trainer):
    """Of the part of a batch that is due, in this process."""
    return trainer._epoch.batch.n_now or trainer._epoch.batch.n_samples


@torch.no_grad()
def _from_halves(criterion, args, n_samples):
    """The loss of a batch, put together from its halves. criterion: a copy, which may count."""
    reduction, together, middle = Reduction(criterion), 0, n_samples // 2
    n_counted = reduction.count_in(args, n_samples)
    for rows in (slice(0, middle), slice(middle, n_samples)):
        part = [cut(each, n_samples, rows) for each in args]
        n_part = reduction.count_in(part, rows.stop - rows.start)
        together = together + weighted(criterion(*part), n_part / n_counted)
    return together


def _refuse_late_layers(model, optimizer):
    """Let the first step end in a ConfigError when layers were made in it, which never train."""
    before = {*model.parameters()}

    def look(optimizer, *_):
        handle.remove()
        known = before.union(*(group['params'] for group in optimizer.param_groups))
        named = model.named_parameters()
        late = [name for name, each in named if each.grad is not None and each not in known]
        if late:
            raise ConfigError(
                f'{type(model).__name__} makes {late[0]} in its first forward pass, after the '
                'optimizer was made, so it would never train: make layers in __init__ (where a '
                'size is not known there, nn.LazyLinear and others of its kind)'
            )

    # One of the project's own may know no hooks, and a wrapper may not have called __init__.
    with suppress(AttributeError):
        handle = optimizer.register_step_post_hook(look)


def _check_module_once(criterion, check, look):
    def begin(_, args):
        before.remove()
        check.given = args
        check.__enter__()

    def end(_, args, loss):
        after.remove()
        check.__exit__(None, None, None)
        if loss is not None:  # it has not raised
            look(args, loss)

    before = criterion.register_forward_pre_hook(begin)
    after = criterion.register_forward_hook(end, always_call=True)


def _known_labels(trainer, target):
    """All labels of the loader's data, where `target` is that of the batch in progress.

    Of data that is read as a whole and as it is: other samplers, a collate_fn, or a loop of one's
    own, may leave some labels out.
    """
    loader, indices = getattr(trainer, 'data_loader', None), trainer._epoch.batch.indices
    is_read_whole = type(getattr(loader, 'sampler', None)) in (RandomSampler, SequentialSampler)
    is_due = indices is not None  # and none is in a validation
    if not (is_due and is_read_whole and trainer.takes_pairs and loader.knows_shares):
        return set()
    try:
        classes = loader.sample_classes()
    except (TypeError, ValueError):  # several for each sample
        return set()
    # Some datasets list their classes under the name that others have for those of the samples.
    if classes is None or classes.shape != (len(loader.dataset),) or classes.dtype.kind not in 'iu':
        return set()
    theirs = classes[indices[: len(target)].cpu().numpy()]  # they may be on a GPU
    return set(classes.tolist()) if np.array_equal(theirs, target.cpu()) else set()


# A batch of one sample


def _refuse_lone_samples(norm, cause, trainer):
    """Let the first pass through a BatchNorm end in a ConfigError if a later one has one value a
    channel.

    BatchNorm cannot train on that, as torch would say in the middle of the epoch. Only where a
    channel has one value for each sample: a picture has many, a graph one for each of its nodes.
    """

    def look(norm, inputs):
        handle.remove()
        # A copy by DataParallel has a part of the samples; a loop over the loader itself says none.
        shape = inputs[0].shape
        n_values, n_samples = (shape[:1] + shape[2:]).numel(), _n_samples(trainer) or shape[0]
        if norm.training and n_values <= n_samples:
            raise ConfigError(
                f'{cause}, and BatchNorm cannot train on one sample: set '
                'data_loader.args.drop_last to true, or take another batch_size or '
                'trainer.microbatch_size'
            )

    handle = norm.register_forward_pre_hook(look)  # which copies by DataParallel share


def _lone_sample(trainer):
    """Where an epoch has one sample alone, in words; '' when it has not or it is not known."""
    loader, size_at_once = getattr(trainer, 'data_loader', None), trainer.settings.microbatch_size
    batch_size, sampler = getattr(loader, 'batch_size', None), getattr(loader, 'sampler', None)
    if not batch_size or not hasattr(sampler, '__len__'):
        return ''
    last = 0 if getattr(loader, 'drop_last', False) else len(sampler) % batch_size
    for size, what in ((min(batch_size, len(sampler)), 'a batch'), (last, 'the last batch')):
        share = max(1, size // dist.n_processes())
        at_once = size_at_once if isinstance(size_at_once, int) else share + 1
        if size and 1 in (at_once, share % at_once):
            return f'{what} (size {size}) leaves one sample by itself'
    return ''


# What breaks later


def refuse_broken_losses(trainer: Any) -> None:
    """Raise NonFiniteError on the first loss since the last time that is not finite."""
    broken = dist.gather(trainer._epoch.look_at_losses())
    if any(broken) and _are_over_nothing(trainer):
        trainer._epoch.broken = None
    elif any(broken) and trainer.settings.on_nan == 'stop':
        step, loss = min(filter(None, broken))
        position = trainer.position - 1 - (trainer.step - step)
        raise NonFiniteError(
            f'epoch {trainer.epochs_done + 1}, step {step}: the loss is {loss}. '
            f'{way_back(trainer)} '
            f'Its samples: {_samples(trainer, position)}. Those of the step before, whose '
            f'gradients may have broken the weights: {_samples(trainer, position - 1)}.'
        )


def _are_over_nothing(trainer):
    """Whether losses that are nan counted for nothing, as those of targets that are all ignored:
    what was measured is a number all the same.
    """
    tracker = _tracker_of(trainer)
    n_measured = tracker.n_samples if tracker and len(trainer._epoch.steppers) == 1 else 0
    return sum(dist.gather(n_measured)) > 0 and tracker.has_finite_loss()


def refuse_broken_epoch(trainer: Any, loss: float) -> None:
    """Raise NonFiniteError for an epoch's loss that is not finite, unless nobody measured one."""
    tracker = _tracker_of(trainer)
    if tracker is None or not tracker.has_finite_loss():
        place = f'epoch {trainer.epochs_done}'
        raise NonFiniteError(f'{place}: the loss is {loss}. {way_back(trainer)}')


def _tracker_of(trainer):
    """What measures the training; None where that is a class of the project's own."""
    tracker = getattr(trainer, 'train_metrics', None)
    return tracker if isinstance(tracker, MetricTracker) else None


def refuse_broken_weights(trainer: Any) -> None:
    """Raise NonFiniteError when a weight is not finite that was before the first step.

    What does not train may be infinite on purpose, as masks are: there only a nan counts.
    """
    if lazy := sizeless(bare(trainer.model)):
        raise ConfigError(
            f'arch: {lazy[0]} is of a lazy layer that no forward pass has reached, so it has no '
            'weights to save: say its size, or leave the layer out'
        )
    if broken := _broken_since(trainer):
        epoch = trainer.epochs_done + (trainer.position > 0)  # between two epochs, that before it
        raise NonFiniteError(
            f'epoch {epoch}, step {trainer.step}: {len(broken)} weights are not finite '
            f'({", ".join(broken[:3])}); they are not saved. {way_back(trainer)}'
        )


def _broken_since(trainer):
    """Names of the weights that are not finite, and were before the first step, anywhere."""
    broken = {*broken_weights(bare(trainer.model))} - trainer._broken_before
    return sorted(set().union(*dist.gather(broken)))


def _broken_on_purpose(model):
    """`broken_weights` before the first step, less those that train and are nan: a fault."""
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    return {
        name
        for name in broken_weights(model)
        if name not in trained or not dist.part(trained[name]).isnan().any()
    }


def broken_weights(model: nn.Module) -> list[str]:
    """Names of the weights of which the part in this process is not finite."""
    broken = []
    for name, value in itertools.chain(model.named_parameters(), model.named_buffers()):
        mine = torch.empty(0) if is_lazy(value) else dist.part(value)
        if not mine.isfinite().all() and (value.requires_grad or mine.isnan().any()):
            broken.append(name)
    return broken


def way_back(trainer: Any) -> str:
    newest = trainer.checkpoint_dir / LAST
    there = f'The last good state is {newest}. ' if newest.is_file() else ''
    return (
        f'{there}Look at the samples and the learning rate; trainer.max_grad_norm bounds a step, '
        'trainer.on_nan "skip" leaves out one that is not finite.'
    )


def where(trainer: Any) -> str:
    """Where the training is, for what model, loss or data raise."""
    place = f'This was in epoch {trainer.epochs_done + 1}, after step {trainer.step}'
    if trainer._epoch.step_is_open:
        place += f' had begun, with the samples {_samples(trainer, trainer.position)}'
    return place


def _samples(trainer, position):
    """Those of a batch of the epoch in progress."""
    return samples_of(position, trainer.epochs_done + 1, trainer.len_epoch, trainer.data_loader)
