"""How a sharded checkpoint is taken apart and put together; files.py writes and reads it.

It is an ordinary checkpoint, the head, without the tensors whose rows the processes share, and a
folder beside it with the parts: of each process one file with its rows. Any number of processes can
put them together, also one.
"""

import torch

from armature.checkpoint.plain import mapped
from armature.processes import dist


def split(state: dict) -> tuple[dict, dict]:
    """(head, this process's part): of the tensors in rows, the head has the shapes."""
    shapes, part = {}, {}

    def without_rows(value, name):
        if not dist.is_in_rows(value):
            return value
        shapes[name], part[name] = list(value.shape), dist.part(value)
        return torch.empty(0)

    head = mapped(state, without_rows)
    return {**head, 'shards': {'shapes': shapes}}, part


def joined(head: dict, parts: list[dict], model: torch.nn.Module | None) -> dict:
    """The state that `split` has taken apart.

    Its tensors are whole and on the CPU; in rows, one after the other, where `model` has its
    weights of that shape in rows.
    """
    shapes = head['shards']['shapes']
    weights = model.state_dict().values() if model is not None else ()
    in_rows = {each.shape: each for each in weights if dist.is_in_rows(each)}

    def with_rows(value, name):
        if not isinstance(value, torch.Tensor) or name not in shapes:
            return value
        rows = torch.cat([part[name].flatten() for part in parts])
        whole = rows.view(shapes[name])
        return dist.sharded_like(whole, in_rows.get(whole.shape))

    state = mapped(head, with_rows)
    del state['shards']
    return state
