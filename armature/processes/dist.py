"""The only place for process groups and collectives: what the processes of a job share.

All run the same script, take a share of each batch and keep the same weights, and talk through
torch.distributed: NCCL between GPUs (of CUDA), gloo on the CPU. The main one (rank 0) writes. How
they start and end is in armature/processes/launch.py. In a single process every function does
nothing.
"""

import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DistributedSampler

from armature.batch import Batch, Share
from armature.compare import first_difference
from armature.errors import ConfigError, DataError, UserError

ASK_EVERY_S = 0.5
MOST_STEPS = 30  # until the next time, for steps may become slower

# Who am I?


def is_started() -> bool:
    """Whether this is one of several processes of a job, also before it has joined them."""
    return 'RANK' in os.environ or 'WORLD_SIZE' in os.environ


def is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if is_joined() else int(os.environ.get('RANK') or 0)


def n_processes() -> int:
    return dist.get_world_size() if is_joined() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and reports."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process on its machine, from 0."""
    return int(os.environ.get('LOCAL_RANK') or 0)


def n_local() -> int:
    """The processes of the job on this machine."""
    return int(os.environ.get('LOCAL_WORLD_SIZE') or 1)


def is_first_here() -> bool:
    """Whether this is the first process of the job on its machine, which speaks for the others."""
    return local_rank() == 0


# Talking


def gather(value: Any) -> list[Any]:
    """What each process gave, by rank, in all of them."""
    if not is_joined():
        return [value]
    values = [None] * n_processes()
    dist.all_gather_object(values, value)
    return values


def refuse_differences(value: Any, what: str) -> None:
    """A ConfigError when the processes do not all have the same `value`."""
    first, *others = gather(value)
    for number, other in enumerate(others, 1):
        if different := first_difference(first, other):
            raise ConfigError(
                f'{what}: {different} in process {number} is another than in process 0. Start all '
                'processes with the same command, on the same files'
            )


def on_main(action: Callable, *args: Any) -> Any:
    """What `action(*args)` returns in the main process, in all of them; so is a UserError there."""
    if not is_joined():
        return action(*args)
    result, error = None, None
    if is_main():
        try:
            result = action(*args)
        except UserError as caught:
            error = caught
    said = [result, error]
    dist.broadcast_object_list(said, src=0, device=torch.device('cpu'))
    result, error = said
    if error is not None:
        raise error
    return result


def gather_tensors(tensor: torch.Tensor, group: Any = None) -> list[torch.Tensor]:
    """The tensor of each process, of whatever size: how torchmetrics gathers.

    Those without elements are left out, as long as some have.
    """
    found = [each.to(tensor.device) for each in gather(tensor.cpu())]
    return [each for each in found if each.numel()] or found[:1]


@contextmanager
def first_on_machine():
    """The first process of each machine goes through the body, a download; the others wait."""
    if is_joined() and not is_first_here():
        dist.barrier()
    try:
        yield
    finally:
        if is_joined() and is_first_here():
            dist.barrier()


# Sharing the data


def share(indices: torch.Tensor) -> tuple[torch.Tensor, Share]:
    """Of the samples of a batch this process's: every n-th. Without any, one of another's."""
    n = n_processes()
    mine = indices[rank() :: n]
    is_padding, largest = not len(mine), -(-len(indices) // n)
    its_share = Share(len(mine) * n / len(indices), is_padding, largest)
    return (indices[:1] if is_padding else mine), its_share


def sampler_of(loader: Any) -> Any:
    """The sampler of samples of a loader, also of one with a batch_sampler of its own."""
    of_batches = getattr(loader, 'batch_sampler', None)
    return getattr(of_batches, 'sampler', getattr(loader, 'sampler', None))


def in_step(
    batches: Iterator[Batch], loader: Any, count: Callable[[Any, int], Any] | None = None
) -> Iterator[Batch]:
    """The batches of `loader` with this process's share of what all of them take together.

    A share weighs as much as the `count` of its content (None: its samples). Where no process can
    know that of the others, they exchange them.
    """
    if n_processes() == 1:
        return batches
    has_sampler = isinstance(sampler_of(loader), DistributedSampler)
    if not has_sampler and not hasattr(loader, 'share'):
        raise ConfigError(
            f'{n_processes()} processes train, and a {type(loader).__name__} gives each of them '
            'all of the data: make it a BaseDataLoader, or a StreamDataLoader of a stream, or give '
            'it a DistributedSampler; where its data is a share already, say loader.share = '
            'armature.batch.WHOLE'
        )
    refuse_differences({'number of samples': getattr(loader, 'n_samples', None)}, 'the data')
    knows = count is None and getattr(loader, 'knows_shares', False)
    return batches if knows else _exchanged(batches, count)


def _exchanged(batches, count):
    """The batches. While they compute with one, the processes exchange facts of the next."""
    batch, (upcoming, facts, exchange) = None, _next(batches, count)
    while True:
        exchange.wait()
        have_batches, counts, n_samples = facts.T.tolist()  # of each process
        if not any(have_batches):
            return
        # One whose stream has ended goes through its last batch again, for nothing.
        batch = upcoming or batch
        if batch is None or not any(n_samples):
            raise DataError(
                f'process {rank()} of {n_processes()} has no batch while others have, or a batch '
                'holds no tensors that tell how many samples it has: is there too little data?'
            )
        upcoming, facts, exchange = _next(batches, count)
        # The loss over a share counts for this in the mean over processes: nan as of nothing.
        weight = counts[rank()] * n_processes() / sum(counts) if any(counts) else math.nan
        its_share = Share(weight, not n_samples[rank()], int(max(n_samples)))
        yield dataclasses.replace(batch, share=its_share)


def _next(batches, count):
    """The next batch, None after the last; facts of it, (processes, 3); and their exchange."""
    batch = next(batches, None)
    facts = torch.zeros(n_processes(), 3, dtype=torch.float64)
    if batch is not None:
        n_samples = 0 if batch.share.is_padding else batch.n_samples
        counted = float(count(batch.content, n_samples)) if count and n_samples else n_samples
        facts[rank()] = torch.tensor([1, counted, n_samples])
    return batch, facts, dist.all_reduce(facts, async_op=True)


class Agreement:
    """What any process requests, all of them do after the same step, at most a second later.

    They ask each other about twice a second, at least in every 30th step, in one that they have
    agreed on by the time that steps take: in all others, none waits for another.
    """

    def __init__(self):
        self._is_alone = n_processes() == 1
        self._n_left = self._n_steps = 1  # until they ask each other again; since they did
        self._since = time.monotonic()

    def after_step(self, *requests: int) -> Sequence[int]:
        """The largest of each request of any process; zeros when nobody asked after this step."""
        if self._is_alone:
            return requests
        self._n_left -= 1
        if self._n_left > 0:
            return [0] * len(requests)
        now = time.monotonic()
        largest = torch.tensor([*requests, now - self._since], dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        *agreed, took_s = largest.tolist()
        step_s = max(took_s / self._n_steps, ASK_EVERY_S / MOST_STEPS)
        self._n_left = self._n_steps = max(1, int(ASK_EVERY_S / step_s))
        self._since = now
        return list(map(int, agreed))


# Sharing the model


def wrap(model: nn.Module, device: torch.device, sharing: SimpleNamespace) -> nn.Module:
    """The model on `device`, whose gradients become the mean over the processes.

    sharing: the section `distributed`. strategy: 'ddp' (DistributedDataParallel) keeps all of the
    model in each process; 'fsdp' (FSDP2) keeps a part of each weight, and puts a block
    (`shard_blocks()` of the model, its direct children without one) together while it computes.
    mixed_precision: 'bf16' lets FSDP compute and send in it. sync_bn: BatchNorm over the samples of
    all processes (on GPUs). find_unused_parameters: for models that do not use all of their
    parameters in each step.
    """
    if not is_joined():
        return model.to(device)
    if sharing.sync_bn and device.type != 'cpu':
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    elif has_batch_norm(model) and n_processes() > 1 and is_main():
        sys.stderr.write(
            "warning: BatchNorm normalises each process's share of a batch by itself here, so the "
            'number of processes does change the result (distributed.sync_bn needs GPUs)\n'
        )
    if sharing.strategy == 'fsdp':
        return _sharded(model, device, sharing.mixed_precision)
    shared = nn.parallel.DistributedDataParallel(
        model.to(device),
        find_unused_parameters=sharing.find_unused_parameters,
        gradient_as_bucket_view=True,
    )
    # They are shared where it matters, by share_buffers: then one process can run forward alone.
    shared.broadcast_buffers = False
    return shared


def _sharded(model, device, mixed_precision):
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = dist.init_device_mesh(device.type, (n_processes(),))
    types = {'bf16': (torch.bfloat16, torch.float32)}.get(mixed_precision, ())
    try:
        for block in [*blocks_of(model), model]:
            fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy(*types))
    except ValueError as error:
        raise ConfigError(
            f'{type(model).__name__} cannot be kept in parts (distributed.strategy "fsdp"): '
            f'{error}. Its shard_blocks() says which blocks are to be; blocks that share weights '
            'belong to none of them'
        ) from error
    return model.to(device)  # buffers, which are not sharded


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The parts of a model that make sense to keep in memory one at a time."""
    found = []
    for block in model.shard_blocks() if hasattr(model, 'shard_blocks') else model.children():
        is_list = isinstance(block, (nn.ModuleList, nn.ModuleDict))  # without a forward pass
        # In a library's model, a row of layers of one kind.
        is_row = isinstance(block, nn.Sequential) and len({*map(type, block)}) == 1 < len(block)
        found += blocks_of(block) if is_list or is_row else [block]
    return [block for block in found if list(block.parameters())]


def refuse_to_train_apart(model: nn.Module) -> None:
    """A ConfigError when several processes are started and would each train by itself."""
    if is_started() and os.environ.get('WORLD_SIZE') != '1' and not is_joined():
        raise ConfigError(
            'this script is started in several processes and does not join them: put '
            '"with processes(config):" around what it does, as train.py of a new project does'
        )
    if is_joined() and _wrapper_of(model) is None:
        raise ConfigError(
            'several processes train, and each would train a model of its own: say '
            'model = config.wrap(model, device) before the optimizer is made'
        )


def is_sharded(model: nn.Module | None) -> bool:
    return hasattr(model, 'set_requires_gradient_sync')


def has_batch_norm(module: nn.Module) -> bool:
    """Whether what comes out of it depends on which samples are together (not of a frozen one)."""
    norms = [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    # Frozen takes train() from those that stay as they are; a model may arrive in eval mode.
    return any('train' not in vars(each) for each in norms)


def norms_of(model: nn.Module) -> list[nn.Module]:
    """Its layers that keep running statistics: BatchNorm, and others of their kind."""
    return [each for each in model.modules() if isinstance(each, nn.modules.batchnorm._NormBase)]


def needs_equal_passes(model: nn.Module | None) -> bool:
    """Whether the processes talk in each forward pass, and wait when one makes more of them."""
    if n_processes() == 1 or model is None:
        return False
    return is_sharded(model) or any(isinstance(each, nn.SyncBatchNorm) for each in model.modules())


def _wrapper_of(model):
    """The wrapper of DDP, or FSDP's root module, also under torch.compile; None without one."""
    model = getattr(model, '_orig_mod', model)
    is_shared = isinstance(model, nn.parallel.DistributedDataParallel) or is_sharded(model)
    return model if is_shared else None


def sync_gradients(model: nn.Module | None, wanted: bool) -> None:
    """Say whether the next backward pass sends gradients: a step's last micro-batch has to."""
    shared = _wrapper_of(model)
    if is_sharded(model):
        shared.set_requires_gradient_sync(wanted)
    elif shared is not None:
        shared.require_backward_grad_sync = wanted  # as no_sync() of DDP does


def unsynced(parameters: list[torch.Tensor], model: nn.Module | None) -> list[torch.Tensor]:
    """Those of `parameters` whose gradients the wrapper of `model` does not share."""
    if n_processes() == 1:
        return []
    wrapper = _wrapper_of(model)
    shared = set() if wrapper is None else set(wrapper.parameters())
    return [parameter for parameter in parameters if parameter not in shared]


def refuse_unused(model: nn.Module | None) -> None:
    """A ConfigError when a backward pass gave some parameters no gradient, and DDP waits for it."""
    wrapper = _wrapper_of(model)
    if getattr(wrapper, 'find_unused_parameters', True):  # nobody waits, as without DDP
        return
    named = wrapper.module.named_parameters()
    unused = [name for name, each in named if each.requires_grad and each.grad is None]
    if unused:
        raise ConfigError(
            f'{len(unused)} parameters take no part in the loss ({unused[0]}), and the processes '
            'would wait for their gradients: say "distributed": {"find_unused_parameters": true}, '
            'or freeze them'
        )


def mean_gradients(parameters: list[torch.Tensor]) -> None:
    """Make each gradient the mean over the processes."""
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= n_processes()


def share_buffers(model: nn.Module) -> None:
    """Give all the main one's buffers, such as running means, before they are tested or saved."""
    for buffer in model.buffers() if n_processes() > 1 else ():
        values = buffer.detach().contiguous()
        # As bytes: gloo does not know every type of numbers.
        dist.broadcast(values.flatten().view(torch.uint8), src=0)
        buffer.copy_(values)


def whole(value: Any, only_in_main: bool = False) -> Any:
    """A sharded tensor put together, in all processes; what is none as it is.

    only_in_main: on the CPU there, and None in the others, so that they hold one at a time.
    """
    if not hasattr(value, 'full_tensor'):
        return value
    tensor = value.full_tensor()
    if not only_in_main:
        return tensor
    return tensor.cpu() if is_main() else None


def part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if hasattr(tensor, 'to_local') else tensor


def is_in_rows(tensor: torch.Tensor) -> bool:
    """Whether each process holds some of its rows, in the order of their ranks: as FSDP2 cuts."""
    return [each.is_shard(0) for each in getattr(tensor, 'placements', [])] == [True]


def reshard(model: nn.Module) -> None:
    """Let the next forward pass put together what has been written into the parameters."""
    for module in model.modules():
        if hasattr(module, 'reshard'):  # of FSDP
            module.reshard()


def sharded_like(tensor: Any, like: Any) -> Any:
    """`tensor`, which is whole, in parts as `like` is, when it has the same shape."""
    if (
        not hasattr(like, 'full_tensor')
        or hasattr(tensor, 'full_tensor')
        or getattr(tensor, 'shape', None) != like.shape
    ):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )
