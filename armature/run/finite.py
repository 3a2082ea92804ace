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
    """Names of weights that are not finite.

    What does not train may be infinite on purpose, as masks are: there only a nan counts.
    """
    trained = {
        name: dist.part(parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    others = [*model.named_parameters(), *model.named_buffers()]
    return non_finite(trained) + [
        name for name, value in others if name not in trained and dist.part(value).isnan().any()
    ]
