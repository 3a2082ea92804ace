"""Loss and metric over lists of targets."""

import torch
import torch.nn.functional as F
from torchvision.ops import box_iou, generalized_box_iou_loss, nms

from examples.detection.model import CELL, boxes_of


def detection_loss(output: torch.Tensor, targets: list[dict]) -> dict[str, torch.Tensor]:
    """The parts of the loss by name; their sum is trained on, each is in the log."""
    boxes = torch.cat([target['boxes'] for target in targets])  # (n, 4), of all pictures
    labels = torch.cat([target['labels'] for target in targets])
    n_boxes = torch.tensor([len(target['boxes']) for target in targets], device=output.device)
    picture = torch.arange(len(targets), device=output.device).repeat_interleave(n_boxes)

    # The cell that the middle of a box lies in answers for it.
    column, row = ((boxes[:, :2] + boxes[:, 2:]) / 2 / CELL).long().unbind(dim=1)
    is_there = torch.zeros_like(output[:, 0])
    is_there[picture, row, column] = 1
    found = boxes_of(output)[picture, row, column]
    return {
        'there': 10 * F.binary_cross_entropy_with_logits(output[:, 0], is_there),
        'box': generalized_box_iou_loss(found, boxes, reduction='mean'),
        'label': F.cross_entropy(output[picture, 5:, row, column], labels),
    }


def detect(output: torch.Tensor, threshold: float = 0.5) -> list[dict]:
    """For each picture what was found: 'boxes' (n, 4), 'labels' (n,), 'scores' (n,)."""
    detections = []
    for scores, boxes, labels in zip(
        output[:, 0].sigmoid(), boxes_of(output), output[:, 5:].argmax(dim=1)
    ):
        is_found = scores > threshold  # (rows, columns)
        scores, boxes, labels = scores[is_found], boxes[is_found], labels[is_found]
        best = nms(boxes, scores, iou_threshold=0.5)
        detections.append({'boxes': boxes[best], 'labels': labels[best], 'scores': scores[best]})
    return detections


def f1(output: torch.Tensor, targets: list[dict]) -> torch.Tensor:
    """2 right / (found + there): right is a box of the right class that overlaps by half."""
    values = []
    for found, there in zip(detect(output), targets):
        overlap = box_iou(found['boxes'], there['boxes']) > 0.5  # (n found, n there)
        is_same = found['labels'].unsqueeze(1) == there['labels']
        n_right = (overlap & is_same).any(dim=0).sum()
        values.append(2 * n_right / (len(found['boxes']) + len(there['boxes'])))
    return torch.stack(values).mean()
