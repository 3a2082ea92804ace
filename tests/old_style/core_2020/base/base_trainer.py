import os
import torch
from abc import abstractmethod
from numpy import inf
from logger import TensorboardWriter


class BaseTrainer:
    def __init__(self, model, criterion, metric_ftns, optimizer, config):
        cfg_trainer = config['trainer']
        self.config = config
        self.logger = config.get_logger('trainer', cfg_trainer['verbosity'])
        self.model, self.criterion, self.metric_ftns, self.optimizer = model, criterion, metric_ftns, optimizer
        self.epochs = cfg_trainer['epochs']
        self.save_period = cfg_trainer['save_period']
        self.monitor = cfg_trainer.get('monitor', 'off')
        self.mnt_mode, self.mnt_best = 'off', 0
        if self.monitor != 'off':
            self.mnt_mode, self.mnt_metric = self.monitor.split()
            self.mnt_best = inf if self.mnt_mode == 'min' else -inf
            self.early_stop = cfg_trainer.get('early_stop', inf)
        self.start_epoch = 1
        self.checkpoint_dir = config.save_dir
        self.writer = TensorboardWriter(config.log_dir, self.logger, cfg_trainer['tensorboard'])
        if config.resume is not None:
            self._resume_checkpoint(config.resume)

    @abstractmethod
    def _train_epoch(self, epoch):
        raise NotImplementedError

    def train(self):
        not_improved_count = 0
        for epoch in range(self.start_epoch, self.epochs + 1):
            result = self._train_epoch(epoch)
            log = {'epoch': epoch}
            log.update(result)
            for key, value in log.items():
                self.logger.info('{}: {}'.format(key, value))
            best = False
            if self.mnt_mode != 'off':
                value = log[self.mnt_metric]
                improved = value <= self.mnt_best if self.mnt_mode == 'min' else value >= self.mnt_best
                if improved:
                    self.mnt_best, best, not_improved_count = value, True, 0
                else:
                    not_improved_count += 1
                if not_improved_count > self.early_stop:
                    break
            if epoch % self.save_period == 0:
                self._save_checkpoint(epoch, save_best=best)

    def _save_checkpoint(self, epoch, save_best=False):
        state = {
            'arch': type(self.model).__name__,
            'epoch': epoch,
            'state_dict': self.model.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'monitor_best': self.mnt_best,
            'config': self.config,
        }
        filename = str(self.checkpoint_dir / 'checkpoint-epoch{}.pth'.format(epoch))
        torch.save(state, filename)
        self._delete_checkpoint(epoch - 3)
        if save_best:
            torch.save(state, str(self.checkpoint_dir / 'model_best.pth'))

    # keeps the disk from filling up
    def _delete_checkpoint(self, epoch):
        path = os.path.join(self.checkpoint_dir, 'checkpoint-epoch%d.pth' % epoch)
        if os.path.exists(path):
            os.remove(path)

    def _resume_checkpoint(self, resume_path):
        checkpoint = torch.load(str(resume_path))
        self.start_epoch = checkpoint['epoch'] + 1
        self.mnt_best = checkpoint['monitor_best']
        self.model.load_state_dict(checkpoint['state_dict'])
        self.optimizer.load_state_dict(checkpoint['optimizer'])
