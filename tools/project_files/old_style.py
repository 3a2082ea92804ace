"""What only projects of 2018 need; adoption puts this file into them, and the template itself never
imports it.

There a trainer got its config as a dict, the checkpoint to resume from as `resume`, and a
`train_logger` that keeps the epochs' logs.
"""

import json
import logging
from typing import Any

import torch


class Logger:
    """The epochs' logs by number, as `train_logger` keeps them."""

    def __init__(self):
        self.entries = {}

    def add_entry(self, entry: dict) -> None:
        self.entries[len(self.entries) + 1] = entry

    def __str__(self) -> str:
        return json.dumps(self.entries, sort_keys=True, indent=4, default=str)


def run_config(config: Any, resume: Any) -> Any:
    """A ConfigParser with what a dict of 2018 says, in today's words too.

    The dict's own keys stay.
    """
    from parse_config import ConfigParser

    if not isinstance(config, dict):
        return config
    settings = config['trainer']
    monitor = settings.get('monitor', 'off')
    if monitor != 'off' and ' ' not in monitor:
        monitor = f'{settings.get("monitor_mode", "min")} {monitor}'
    settings = {
        **settings,
        'monitor': monitor,
        'save_period': settings.get('save_period', settings.get('save_freq', 1)),
    }
    if 'visualization' in config:
        settings.setdefault('tensorboardX', config['visualization'].get('tensorboardX', False))
    n_gpu = config.get('n_gpu', int(config.get('cuda', torch.cuda.is_available())))
    return ConfigParser({**config, 'n_gpu': n_gpu, 'trainer': settings}, resume=resume or None)


def with_resume(base_trainer: type) -> type:
    """`base_trainer` with the arguments of late 2018.

    (model, loss, metrics, optimizer, resume, config, train_logger=None).
    """

    class BaseTrainer(base_trainer):
        def __init__(self, model, loss, metrics, optimizer, resume, config, train_logger=None):
            self.train_logger = train_logger
            config = run_config(config, resume)
            super().__init__(model, loss, metrics, optimizer, config)
            self.logger = logging.getLogger(type(self).__name__)
            self.verbosity = config['trainer'].get('verbosity', 2)
            self.save_freq = self.save_period
            self.with_cuda = self.device.type == 'cuda'
            self.gpu = self.device

        @property
        def config(self):
            return self._run_config

        @config.setter
        def config(self, value):
            if not isinstance(
                value, dict
            ):  # subclasses assign their dict once more: it says nothing new
                self._run_config = value

        def _finish_epoch(self, epoch: int, averages: dict) -> None:
            super()._finish_epoch(epoch, averages)
            if self.train_logger is not None:
                self.train_logger.add_entry(self.history[-1])

    return BaseTrainer


def with_own_optimizer(base_trainer: type) -> type:
    """`base_trainer` with the arguments of early 2018: (model, loss, metrics, resume, config,
    train_logger=None).

    Optimizer and scheduler are made here, from optimizer_type, optimizer, lr_scheduler_type,
    lr_scheduler and lr_scheduler_freq.
    """

    class BaseTrainer(with_resume(base_trainer)):
        def __init__(self, model, loss, metrics, resume, config, train_logger=None):
            trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = getattr(torch.optim, config['optimizer_type'])(
                trainable, **config['optimizer']
            )
            scheduler = getattr(
                torch.optim.lr_scheduler, config.get('lr_scheduler_type') or '', None
            )
            self.lr_scheduler = (
                scheduler(optimizer, **config['lr_scheduler']) if scheduler else None
            )
            self.lr_scheduler_freq = config.get('lr_scheduler_freq', 1)
            super().__init__(model, loss, metrics, optimizer, resume, config, train_logger)

        def _finish_epoch(self, epoch: int, averages: dict) -> None:
            if self.lr_scheduler is not None and epoch % self.lr_scheduler_freq == 0:
                self.lr_scheduler.step()
            super()._finish_epoch(epoch, averages)

    return BaseTrainer


def with_summary(base_model: type) -> type:
    """`base_model` with the method and the logger that models of 2018 have."""

    class BaseModel(base_model):
        def __init__(self, config=None):
            super().__init__()
            self.config = config
            self.logger = logging.getLogger(type(self).__name__)

        def summary(self) -> None:
            self.logger.info(self)

    return BaseModel
