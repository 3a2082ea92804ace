"""Pictures: how a classifier does on data, class by class, drawn by matplotlib."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armature.errors import ConfigError
from armature.processes import dist

CURVE = {'thresholds': 201}
KINDS = {  # the metric of torchmetrics behind each, and its arguments
    'confusion_matrix': ('MulticlassConfusionMatrix', {}),
    'roc': ('MulticlassROC', CURVE),
    'pr': ('MulticlassPrecisionRecallCurve', CURVE),
}
READABLE = 20  # classes: with more of them, cells hold no numbers and curves have no legend


class Pictures:
    """Gathers the outputs of a pass over data and draws `kinds` of pictures of them.

    Outputs are (batch, classes) scores, targets (batch,) class indices.
    """

    def __init__(self, kinds: Iterable[str], class_names: list[str] | None = None):
        self.kinds, self.class_names = kinds, class_names
        self.reset()

    def reset(self) -> None:
        self._metrics = {}

    def update(self, output: torch.Tensor, target: torch.Tensor, counts: bool = True) -> None:
        if not self.kinds:
            return
        mine, theirs = (tuple(getattr(each, 'shape', ())) for each in (output, target))
        if len(mine) != 2 or mine[1] < 2 or len(theirs) != 1:
            raise ConfigError(
                'trainer.pictures are for outputs (batch, classes) and targets (batch,), and these '
                f'are {mine} and {theirs}: leave them out'
            )
        from torchmetrics import classification

        for kind in self.kinds:
            if kind not in self._metrics:
                name, options = KINDS[kind]
                make = getattr(classification, name)
                metric = make(output.shape[1], validate_args=False, **options).to(output.device)
                metric.dist_sync_fn = dist.gather_tensors
                self._metrics[kind] = metric
            if counts:
                self._metrics[kind].update(output.float(), target)

    def draw(self) -> dict[str, Any]:
        """Each picture by its name, as a matplotlib Figure; none before the first update."""
        drawn = {}
        for kind, metric in self._metrics.items():
            names = self.class_names or list(map(str, range(metric.num_classes)))
            size = min(14, 5 + 0.2 * len(names)) if kind == 'confusion_matrix' else 6
            drawn[kind], axes = new_figure(kind.replace('_', ' '), size)
            value = metric.compute()
            if kind == 'confusion_matrix':
                show_matrix(axes, names, value.cpu())
            elif kind == 'roc':
                show_curves(axes, names, value[0].cpu(), value[1].cpu())
                axes.set(xlabel='false positive rate', ylabel='true positive rate')
            else:
                show_curves(axes, names, value[1].cpu(), value[0].cpu())
                axes.set(xlabel='recall', ylabel='precision')
        return drawn


def new_figure(title: str, size: float = 6) -> tuple[Any, Any]:
    """A figure of its own (nothing of pyplot's, which keeps all of them) and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size, size * 0.8), layout='constrained')
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def show_matrix(axes: Any, names: list[str], matrix: torch.Tensor) -> None:
    """Counts by true class (rows) and predicted one; a cell is as dark as its share of its row."""
    shares = matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap='Blues', vmin=0, vmax=1)
    axes.set(xlabel='predicted class', ylabel='true class')
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    for row, column in matrix.nonzero().tolist() if len(names) <= READABLE else ():
        color = 'white' if shares[row, column] > 0.5 else 'black'
        count = int(matrix[row, column])
        axes.text(column, row, count, ha='center', va='center', color=color)


def show_curves(axes: Any, names: list[str], xs: torch.Tensor, ys: torch.Tensor) -> None:
    """xs, ys: (classes, points). The legend says the area under each curve."""
    for name, x, y in zip(names, xs, ys):
        is_known = y.isfinite()  # precision is not where nothing is predicted
        x, y = x[is_known], y[is_known]
        axes.plot(x.numpy(), y.numpy(), label=f'{name}: area {torch.trapezoid(y, x).abs():.3f}')
    axes.grid(alpha=0.3)
    if len(names) <= READABLE:
        axes.legend(fontsize='small')


def save_pictures(drawn: dict[str, Any], folder: Path) -> list[Path]:
    """Write each picture as PNG into `folder`; returns the files."""
    files = [folder / f'{name}.png' for name in drawn]
    for file, figure in zip(files, drawn.values()):
        figure.savefig(file, dpi=100)
    return files


def pixels_of(figure: Any) -> np.ndarray:
    """A matplotlib Figure as uint8 pixels, (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
