"""A detector with one prediction for each cell of a grid, after YOLO (Redmon et al., 2016,
arXiv:1506.02640).
"""

import torch
from torch import nn

from base import BaseModel

CELL = 8  # pixels


class GridDetector(BaseModel):
    """(batch, 1, 64, 64) -> (batch, 7, 8, 8): for each cell whether the middle of a box lies in it
    (a score), the box (4 numbers), and what it is (2 scores).
    """

    def __init__(self, width: int = 16):
        super().__init__()
        layers, n_in = [], 1
        for n_out in (width, 2 * width, 4 * width):  # 64 -> 32 -> 16 -> 8 pixels
            layers += [
                nn.Conv2d(n_in, n_out, kernel_size=5, stride=2, padding=2),
                nn.BatchNorm2d(n_out),
                nn.ReLU(),
            ]
            n_in = n_out
        middle = nn.Conv2d(n_in, n_in, kernel_size=3, padding=1)
        self.layers = nn.Sequential(*layers, middle, nn.ReLU(), nn.Conv2d(n_in, 7, kernel_size=1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def boxes_of(output: torch.Tensor) -> torch.Tensor:
    """(batch, 7, rows, columns) -> (batch, rows, columns, 4): left, top, right, bottom in pixels.

    The four numbers are the distances from the middle of the cell, in cells, as logarithms.
    """
    distances = CELL * output[:, 1:5].exp().permute(0, 2, 3, 1)
    places = [CELL * (torch.arange(n, device=output.device) + 0.5) for n in output.shape[2:]]
    y, x = torch.meshgrid(*places, indexing='ij')
    left, top, right, bottom = distances.unbind(dim=3)
    return torch.stack([x - left, y - top, x + right, y + bottom], dim=3)
