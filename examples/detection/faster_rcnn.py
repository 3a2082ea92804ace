"""torchvision's Faster R-CNN on a small network of one's own, and what is measured of it."""

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign, box_iou

SIZE, POOLED = 64, 4  # pixels of a picture's side, cells of a proposal's


class SmallFasterRCNN(FasterRCNN):
    """Images (batch, 1, 64, 64) -> for each {'boxes', 'labels', 'scores'}; with targets, while it
    trains, {name: loss}. n_classes: with the background, which is class 0.
    """

    def __init__(self, n_classes: int = 3, width: int = 32):
        layers, n_in = [], 1
        for n_out in (width // 4, width // 2, width):  # 64 -> 32 -> 16 -> 8 pixels
            layers += [
                nn.Conv2d(n_in, n_out, kernel_size=5, stride=2, padding=2),
                nn.BatchNorm2d(n_out),
                nn.ReLU(),
            ]
            n_in = n_out
        backbone = nn.Sequential(*layers)
        backbone.out_channels = width
        super().__init__(
            backbone,
            min_size=SIZE,
            max_size=SIZE,
            image_mean=[0.0],
            image_std=[1.0],
            rpn_anchor_generator=AnchorGenerator(sizes=((16,),), aspect_ratios=((1.0,),)),
            rpn_pre_nms_top_n_train=SIZE,
            rpn_pre_nms_top_n_test=SIZE,
            rpn_post_nms_top_n_train=16,
            rpn_post_nms_top_n_test=16,
            rpn_batch_size_per_image=32,
            box_roi_pool=MultiScaleRoIAlign(['0'], output_size=POOLED, sampling_ratio=2),
            box_head=TwoMLPHead(width * POOLED**2, 128),
            box_predictor=FastRCNNPredictor(128, n_classes),
            box_batch_size_per_image=16,
            box_score_thresh=0.3,
        )


def overlap(output: list[dict], targets: list[dict]) -> torch.Tensor:
    """How well the shapes are covered: the intersection over union of each with the best box of its
    class that was found, on average.
    """
    best = []
    for found, there in zip(output, targets):
        is_same = there['labels'].unsqueeze(1) == found['labels']  # (n there, n found)
        covered = box_iou(there['boxes'], found['boxes']) * is_same
        nothing = covered.new_zeros(len(covered), 1)
        best.append(torch.cat([covered, nothing], dim=1).amax(dim=1).mean())
    return torch.stack(best).mean()


def missed(output: list[dict], targets: list[dict]) -> torch.Tensor:
    """What validation and test report as the loss: a detector has none to offer there."""
    return 1 - overlap(output, targets)
