import torch
from abc import abstractmethod
from numpy import inf
from logger import WriterTensorboardX


class BaseTrainer:
    def __init__(self, model, loss, metrics, optimizer, config):
        cfg_trainer = config['trainer']
        self.config = config
        self.logger = config.get_logger('trainer', cfg_trainer['verbosity'])
        self.device, device_ids = self._prepare_device(config['n_gpu'])
        self.model = model.to(self.device)
        if len(device_ids) > 1:
            self.model = torch.nn.DataParallel(model, device_ids=device_ids)
        self.loss, self.metrics, self.optimizer = loss, metrics, optimizer
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
        self.writer = WriterTensorboardX(config.log_dir, self.logger, cfg_trainer['tensorboardX'])
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
            for key, value in result.items():
                if key == 'metrics':
                    log.update({mtr.__name__: value[i] for i, mtr in enumerate(self.metrics)})
                elif key == 'val_metrics':
                    log.update({'val_' + mtr.__name__: value[i] for i, mtr in enumerate(self.metrics)})
                else:
                    log[key] = value
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
        if save_best:
            torch.save(state, str(self.checkpoint_dir / 'model_best.pth'))

    def _prepare_device(self, n_gpu_use):
        n_gpu = torch.cuda.device_count()
        if n_gpu_use > n_gpu:
            self.logger.warning('only {} GPUs here'.format(n_gpu))
            n_gpu_use = n_gpu
        return torch.device('cuda:0' if n_gpu_use > 0 else 'cpu'), list(range(n_gpu_use))

    def _resume_checkpoint(self, resume_path):
        checkpoint = torch.load(str(resume_path))
        self.start_epoch = checkpoint['epoch'] + 1
        self.mnt_best = checkpoint['monitor_best']
        self.model.load_state_dict(checkpoint['state_dict'])
        self.optimizer.load_state_dict(checkpoint['optimizer'])
