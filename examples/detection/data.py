"""Pictures with one to three shapes, and the boxes around those: a list for each picture."""

import torch
from torch.utils.data import Dataset

SIZE = 64


class Scenes(Dataset):
    """n_pictures of (image (1, 64, 64), {'boxes': (n, 4), 'labels': (n,)}); n differs.

    boxes: left, top, right, bottom in pixels. labels: 0 full, 1 hollow; more by first_label, since
    torchvision's detectors take 0 for the background. first: the number of the first picture.
    """

    def __init__(self, n_pictures: int, first: int = 0, first_label: int = 0):
        self.n_pictures, self.first, self.first_label = n_pictures, first, first_label

    def __len__(self) -> int:
        return self.n_pictures

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(self.first + index)

        def draw(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=generator))

        image = 0.2 * torch.randn(1, SIZE, SIZE, generator=generator)
        boxes, labels = [], []
        for quarter in torch.randperm(4, generator=generator)[: draw(1, 4)].tolist():
            width, height, label = draw(10, 24), draw(10, 24), draw(0, 2)
            left = SIZE // 2 * (quarter % 2) + draw(0, SIZE // 2 - width)
            top = SIZE // 2 * (quarter // 2) + draw(0, SIZE // 2 - height)
            image[:, top : top + height, left : left + width] += 1
            if label:
                image[:, top + 3 : top + height - 3, left + 3 : left + width - 3] -= 1
            boxes.append([left, top, left + width, top + height])
            labels.append(self.first_label + label)
        return image, {'boxes': torch.tensor(boxes).float(), 'labels': torch.tensor(labels)}


class ListsOfTargets:
    """Images as one tensor, targets as a list: they have different numbers of boxes."""

    def __call__(self, samples: list) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
        images, targets = zip(*samples)
        return torch.stack(images), list(targets)
