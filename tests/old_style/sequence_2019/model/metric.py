import torch


def share_right(output, target):
    with torch.no_grad():
        return torch.sum(torch.argmax(output, dim=1) == target).item() / len(target)


def mean_confidence(output, target):
    return output.softmax(1).max(1)[0].mean().item()
