"""Notices what is nan or infinite, without waiting for the device at each step."""

import torch
from torch import nn

from armature.checkpoint.files import non_finite
from armature.processes import dist


class LossWatch:
    """Keeps each step's loss until somebody asks for the first that is not finite; all are then read at once."""

    def __init__(self):
        self._unread = []

    def note(self, step: int, loss: torch.Tensor | None) -> None:
        """loss: 0-dim tensor; None is left out."""
        if loss is not None:
            self._unread.append((step, loss))

    def first_broken(self) -> tuple[int, float] | None:
        """(step, loss) of the first loss since the last call that is not finite; None when all are."""
        unread, self._unread = self._unread, []
        if unread:
            losses = torch.stack([loss for _, loss in unread])
            finite = losses.isfinite().tolist()
            if not all(finite):
                first = finite.index(False)
                return unread[first][0], losses[first].item()
        return None


def broken_weights(model: nn.Module) -> list[str]:
    """Names of parameters that are not finite and of buffers that hold a nan (infinite buffers may be meant: masks)."""
    parameters = {name: dist.part(parameter) for name, parameter in model.named_parameters()}
    return non_finite(parameters) + [
        name for name, buffer in model.named_buffers() if buffer.isnan().any()
    ]
