"""Your datasets: what data loaders read from."""
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

N_TEST = 360
MEAN, STD = 0.3056, 0.3247  # of the training pixels, after scaling to [0, 1] and resizing


def digits(training: bool) -> TensorDataset:
    """scikit-learn's handwritten digits; images (n, 1, 28, 28) standardised, classes (n,).

    Source: UCI ML repository, "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998).
    """
    from sklearn.datasets import load_digits
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))  # the same split, always
    part = order[N_TEST:] if training else order[:N_TEST]
    images = torch.from_numpy(data.images[part]).float().unsqueeze(1) / 16                            # (n, 1, 8, 8)
    images = F.interpolate(images, size=(28, 28), mode='bilinear', align_corners=False)               # (n, 1, 28, 28)
    return TensorDataset((images - MEAN) / STD, torch.from_numpy(data.target[part]).long())
