import numpy as np
import torch


def accuracy(output, target):
    with torch.no_grad():
        hits = torch.argmax(output, dim=1).cpu().numpy() == target.cpu().numpy()
        return np.mean(hits)
