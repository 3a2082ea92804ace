"""PadCollate: a batch of sequences of different length, which torch's default_collate refuses."""

from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from tools.use_inputs import Padded as Padded


class PadCollate:
    """Batches of (sequence, target) samples, padded with `padding` to the longest of each batch.

    A sequence is a tensor (length, ...). A target is a number or tensor; with `pad_targets`, a
    sequence too, padded with that number (-100 is what torch's cross_entropy leaves out).
    """

    def __init__(self, padding: float = 0, pad_targets: int | None = None):
        self.padding, self.pad_targets = padding, pad_targets

    def __call__(self, samples: list[tuple[Any, Any]]) -> list:
        sequences, targets = (
            [torch.as_tensor(each) for each in column] for column in zip(*samples)
        )
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        values = pad_sequence(sequences, batch_first=True, padding_value=self.padding)
        if self.pad_targets is None:
            targets = torch.stack(targets)
        else:
            targets = pad_sequence(targets, batch_first=True, padding_value=self.pad_targets)
        return [Padded(values, lengths), targets]
