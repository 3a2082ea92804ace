"""Pictures of how a classifier does on the validation data: confusion matrix, precision, recall and F1 of each class, ROC."""

from typing import Any

import numpy as np
import torch

from armature.batch import NO_BATCH
from armature.errors import ConfigError
from armature.processes import dist

KINDS = ('confusion_matrix', 'precision', 'recall', 'f1', 'roc')
INK, PAPER, CELL, BAR, SIDE = (20, 20, 20), (255, 255, 255), 36, 24, 360
N_THRESHOLDS = 201


class Pictures:
    """Gathers the outputs of a pass over data and draws what `kinds` names. Without any it does nothing, and is false.

    Outputs are (batch, classes) scores, targets (batch,) class indices.
    """

    def __init__(self, kinds: list[str]):
        unknown = set(kinds) - set(KINDS)
        if unknown:
            raise ConfigError(
                f'trainer.pictures: no picture is called {sorted(unknown)[0]!r}: expected some of {", ".join(KINDS)}'
            )
        self.kinds = kinds
        self._metrics = None
        self.batch = NO_BATCH

    def __bool__(self) -> bool:
        return bool(self.kinds)

    def reset(self) -> None:
        self._metrics = None

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        if output.dim() != 2 or output.shape[1] < 2 or target.dim() != 1:
            raise ConfigError(
                f'trainer.pictures are for outputs (batch, classes) and targets (batch,), and these are '
                f'{tuple(output.shape)} and {tuple(target.shape)}: leave them out'
            )
        if self._metrics is None:
            self._metrics = self._make(output.shape[1], output.device)
        if self.batch.share.is_borrowed:
            return
        for metric in self._metrics.values():
            metric.update(output.detach().float(), target)

    def _make(self, n_classes: int, device: torch.device) -> dict[str, Any]:
        from torchmetrics import classification

        each = {'num_classes': n_classes, 'average': None, 'validate_args': False}
        made = {
            'confusion_matrix': lambda: classification.MulticlassConfusionMatrix(
                n_classes, validate_args=False
            ),
            'precision': lambda: classification.MulticlassPrecision(**each),
            'recall': lambda: classification.MulticlassRecall(**each),
            'f1': lambda: classification.MulticlassF1Score(**each),
            'roc': lambda: classification.MulticlassROC(
                n_classes, thresholds=N_THRESHOLDS, validate_args=False
            ),
        }
        metrics = {kind: made[kind]().to(device) for kind in self.kinds}
        for metric in metrics.values():
            metric.dist_sync_fn = dist.gather_tensors
        return metrics

    def draw(self) -> dict[str, np.ndarray]:
        """Each picture by its name, as (height, width, 3) bytes; none before the first update."""
        drawn = {}
        for kind, metric in (self._metrics or {}).items():
            value = metric.compute()
            if kind == 'confusion_matrix':
                drawn[kind] = matrix_picture(value.cpu())
            elif kind == 'roc':
                drawn[kind] = curves_picture(
                    [(x.tolist(), y.tolist()) for x, y in zip(value[0], value[1])]
                )
            else:
                drawn[kind] = bars_picture(kind, value.tolist())
        return drawn


def save_pictures(drawn: dict[str, np.ndarray], folder: Any) -> list:
    """Write each picture as PNG into `folder`; returns the files."""
    from PIL import Image

    files = [folder / f'{name}.png' for name in drawn]
    for file, picture in zip(files, drawn.values()):
        Image.fromarray(picture).save(file)
    return files


def matrix_picture(matrix: torch.Tensor) -> np.ndarray:
    """Counts by true class (rows) and predicted class (columns); a cell is as dark as its share of the row."""
    n_classes = len(matrix)
    image, draw = _canvas((n_classes + 2) * CELL, (n_classes + 2) * CELL)
    draw.text((2 * CELL, 8), 'predicted', fill=INK)
    draw.text((4, 2 * CELL - 12), 'true', fill=INK)
    shares = matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1)
    for row in range(n_classes):
        draw.text((CELL + 8, (row + 2) * CELL + 10), str(row), fill=INK)
        draw.text(((row + 2) * CELL + 10, CELL + 10), str(row), fill=INK)
        for column in range(n_classes):
            share, left, top = float(shares[row, column]), (column + 2) * CELL, (row + 2) * CELL
            draw.rectangle((left, top, left + CELL - 2, top + CELL - 2), fill=_shade(share))
            draw.text(
                (left + 4, top + 10),
                str(int(matrix[row, column])),
                fill=PAPER if share > 0.5 else INK,
            )
    return np.asarray(image)


def bars_picture(title: str, values: list[float]) -> np.ndarray:
    """A bar from 0 to 1 for each class."""
    image, draw = _canvas(SIDE + 140, (len(values) + 2) * BAR)
    draw.text((60, 6), f'{title} of each class', fill=INK)
    for index, value in enumerate(values):
        top = (index + 1) * BAR + 6
        draw.text((10, top + 4), str(index), fill=INK)
        draw.rectangle((60, top, 60 + int(SIDE * value), top + BAR - 6), fill=_shade(0.7))
        draw.text((66 + int(SIDE * value), top + 4), f'{value:.3f}', fill=INK)
    return np.asarray(image)


def curves_picture(
    curves: list[tuple[list[float], list[float]]],
    mark: tuple[float, float] | None = None,
    labels: tuple[str, str] = ('false positive rate', 'true positive rate'),
    x_ticks: list[tuple[float, str]] = (),
    y_ticks: list[tuple[float, str]] = (),
) -> np.ndarray:
    """Curves of points in [0, 1] x [0, 1], the axes from the lower left; `mark` is a point to be seen."""
    image, draw = _canvas(SIDE + 100, SIDE + 80)

    def place(x: float, y: float) -> tuple[float, float]:
        return 70 + SIDE * x, 20 + SIDE * (1 - y)

    draw.rectangle((*place(0, 1), *place(1, 0)), outline=INK)
    draw.text((70, SIDE + 52), labels[0], fill=INK)
    draw.text((4, 4), labels[1], fill=INK)
    for x, text in x_ticks or [(0, '0'), (1, '1')]:
        draw.text((place(x, 0)[0] - 8, SIDE + 28), text, fill=INK)
    for y, text in y_ticks or [(0, '0'), (1, '1')]:
        draw.text((6, place(0, y)[1] - 6), text, fill=INK)
    for index, (xs, ys) in enumerate(curves):
        draw.line([place(x, y) for x, y in zip(xs, ys)], fill=_color(index, len(curves)), width=2)
    if mark is not None:
        x, y = place(*mark)
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(200, 30, 30))
    return np.asarray(image)


def _canvas(width: int, height: int) -> tuple[Any, Any]:
    from PIL import Image, ImageDraw

    image = Image.new('RGB', (int(width), int(height)), PAPER)
    return image, ImageDraw.Draw(image)


def _shade(share: float) -> tuple[int, int, int]:
    return tuple(int(255 - share * (255 - ink)) for ink in (20, 60, 120))


def _color(index: int, n_colors: int) -> tuple[int, int, int]:
    import colorsys

    return tuple(
        int(255 * part) for part in colorsys.hls_to_rgb(index / max(1, n_colors), 0.4, 0.7)
    )
