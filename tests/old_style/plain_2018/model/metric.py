import numpy as np


def mean_gap(output, target):
    return float(np.abs(output.detach().cpu().numpy() - target.cpu().numpy()).mean())
