"""Buffers that are kept before a pass and put back after it, which then leaves no trace in them."""

from collections.abc import Collection

import torch
from torch import nn
from torch.nn.parameter import is_lazy


class KeptBuffers:
    """Those of the modules among `parts`, as they are now.

    By module and name: a forward pass may put another tensor in the place of one, as in
    self.seen = self.seen + 1.
    """

    def __init__(self, *parts: object):
        self._kept = [
            (module, name, buffer, _value(buffer))
            for part in parts
            if isinstance(part, nn.Module)
            for module in part.modules()
            for name, buffer in module._buffers.items()
        ]

    @torch.no_grad()
    def put_back(self, but: Collection[torch.Tensor] = ()) -> None:
        """but: buffers that stay as they have become."""
        for module, name, buffer, value in self._kept:
            if buffer in but:
                continue
            setattr(module, name, buffer)
            if value is None:
                has_size_since = buffer is not None and not is_lazy(buffer)
                if has_size_since and hasattr(module, 'reset_running_stats'):  # a lazy norm
                    module.reset_running_stats()
            elif not torch.equal(buffer, value):  # else a backward pass may need it as it is
                buffer.copy_(value)


def _value(buffer):
    if buffer is None or is_lazy(buffer):
        return None
    # Masks, of bool, may be large, and no pass counts in them.
    return buffer if buffer.dtype == torch.bool else buffer.detach().clone()
