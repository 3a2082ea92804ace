"""What a model's outputs mean: its loss knows, by the function of torch that it gives them to."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from armature.run.checks import ELEMENTWISE, OF_CLASSES
from tools.use_outputs import CLASSES, LOGITS, NUMBERS, PROBABILITIES, by_task

MEANINGS = dict.fromkeys(OF_CLASSES, CLASSES) | dict.fromkeys(ELEMENTWISE, NUMBERS)
MEANINGS |= {
    F.binary_cross_entropy_with_logits: LOGITS,
    F.binary_cross_entropy: PROBABILITIES,
    F.multilabel_soft_margin_loss: LOGITS,
    F.soft_margin_loss: LOGITS,
    F.kl_div: CLASSES,  # of their logarithms
    # What losses of the project's own are made of.
    F.log_softmax: CLASSES,
    F.softmax: CLASSES,
    F.logsigmoid: LOGITS,
    torch.log_softmax: CLASSES,
    torch.softmax: CLASSES,
    torch.sigmoid: LOGITS,
    torch.Tensor.log_softmax: CLASSES,
    torch.Tensor.softmax: CLASSES,
    torch.Tensor.sigmoid: LOGITS,
}


def meanings_of(criterion: Callable, output: Any) -> tuple[dict[str, str], list[str]]:
    """({task: what its output means}, the tasks of which the loss does not tell: numbers)."""
    tasks = by_task(output)
    watch = _Watch(tasks)
    target = {name: each.new_zeros(len(each), dtype=torch.long) for name, each in tasks.items()}
    if isinstance(output, torch.Tensor):
        target = target['']
    elif isinstance(output, (list, tuple)):
        target = list(target.values())
    try:
        with torch.no_grad(), warnings.catch_warnings(action='ignore'), watch:
            criterion(output, target)
    except Exception:  # targets of its own shape: what it did until here counts
        pass
    unknown = [name for name in tasks if name not in watch.found]
    return {name: watch.found.get(name, NUMBERS) for name in tasks}, unknown


class _Watch(TorchFunctionMode):
    """Inside, notes what is done to the outputs `tasks`, and does not compute the losses."""

    def __init__(self, tasks: dict[str, torch.Tensor]):
        super().__init__()
        self.tasks, self.found = tasks, {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = args[0] if args else kwargs.get('input')
        if function not in MEANINGS or not isinstance(given, torch.Tensor):
            return function(*args, **kwargs)
        for name, output in self.tasks.items():
            # As it is or in another form, such as output.squeeze(1).
            is_it = len(self.tasks) == 1 or given.data_ptr() == output.data_ptr()
            if is_it and given.numel() == output.numel():
                self.found.setdefault(name, MEANINGS[function])
        is_loss = function in OF_CLASSES or function in ELEMENTWISE
        return given.new_zeros(()) if is_loss else function(*args, **kwargs)
