"""Metrics of each batch, and over all batches: their mean is not always the same."""

import torch
from torchmetrics.classification import BinaryF1Score

from armature.run.metric_tracker import MetricTracker

torch.manual_seed(0)
target = (torch.rand(100) < 0.2).long()  # one in five is 1
output = (target + 0.6 * torch.randn(100) > 0.5).long()
batches = list(zip(output.split(32), target.split(32)))  # 32, 32, 32 and 4 samples


def accuracy(output, target):
    return (output == target).float().mean()


# A mean over samples: the batches have to be weighted by their size.
tracker = MetricTracker('accuracy')
for output_part, target_part in batches:
    tracker.update('accuracy', accuracy(output_part, target_part), n=len(target_part))
of_batches = torch.stack([accuracy(*batch) for batch in batches]).mean()
print(f'accuracy: over all {accuracy(output, target):.4f}')
print(f'          of the tracker {tracker.avg("accuracy"):.4f}: the same')
print(f'          mean of the batches without weights {of_batches:.4f}: not the same')

# F1, recall and precision are no means over samples. A metric of torchmetrics counts on.
f1 = BinaryF1Score()
of_batches = torch.stack([f1(*batch) for batch in batches]).mean()
print(f'F1: over all {f1.compute():.4f}, mean of the batches {of_batches:.4f}: wrong')
