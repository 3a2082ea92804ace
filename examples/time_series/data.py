"""A series of hourly readings. Validated and tested on what comes later, as it would be used."""

import math

import torch
from torch.utils.data import Dataset


def hourly_readings(n_days: int) -> torch.Tensor:
    """(24 n_days,) readings: a daily and a weekly rhythm, weather, noise."""
    hours = torch.arange(24 * n_days)
    daily = torch.sin(2 * math.pi * hours / 24)
    weekly = 0.5 * torch.sin(2 * math.pi * hours / (24 * 7))
    generator = torch.Generator().manual_seed(0)
    weather = torch.randn(n_days, generator=generator).repeat_interleave(24)
    noise = 0.1 * torch.randn(len(hours), generator=generator)
    return daily + weekly + 0.3 * weather + noise


class Windows(Dataset):
    """((n_before, 1) readings, (n_after,) the next ones), from every hour of the days given."""

    def __init__(self, first_day: int, last_day: int, n_before: int = 48, n_after: int = 6):
        self.readings = hourly_readings(n_days=last_day)[24 * first_day :]
        self.n_before, self.n_after = n_before, n_after

    def __len__(self) -> int:
        return len(self.readings) - self.n_before - self.n_after + 1

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        now = index + self.n_before
        return self.readings[index:now].unsqueeze(1), self.readings[now : now + self.n_after]
