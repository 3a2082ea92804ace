import numpy as np
import torch
from base import BaseTrainer


class Trainer(BaseTrainer):
    def __init__(self, model, loss, metrics, optimizer, config, data_loader, valid_data_loader=None, lr_scheduler=None):
        super(Trainer, self).__init__(model, loss, metrics, optimizer, config)
        self.config = config
        self.data_loader = data_loader
        self.valid_data_loader = valid_data_loader
        self.do_validation = self.valid_data_loader is not None
        self.lr_scheduler = lr_scheduler
        self.log_step = int(np.sqrt(data_loader.batch_size))

    def _eval_metrics(self, output, target):
        values = np.zeros(len(self.metrics))
        for i, metric in enumerate(self.metrics):
            values[i] += metric(output, target)
            self.writer.add_scalar(metric.__name__, values[i])
        return values

    def _train_epoch(self, epoch):
        self.model.train()
        total_loss, total_metrics = 0, np.zeros(len(self.metrics))
        for batch_idx, (x, lengths, target) in enumerate(self.data_loader):
            x, lengths, target = x.to(self.device), lengths.to(self.device), target.to(self.device)
            self.optimizer.zero_grad()
            output = self.model(x, lengths)
            loss = self.loss(output, target)
            loss.backward()
            self.optimizer.step()
            self.writer.set_step((epoch - 1) * len(self.data_loader) + batch_idx)
            self.writer.add_scalar('loss', loss.item())
            total_loss += loss.item()
            total_metrics += self._eval_metrics(output, target)
            if batch_idx % self.log_step == 0:
                self.logger.debug('epoch {} sample {}/{}'.format(epoch, batch_idx * self.data_loader.batch_size,
                                                                 self.data_loader.n_samples))
        log = {'loss': total_loss / len(self.data_loader), 'metrics': (total_metrics / len(self.data_loader)).tolist()}
        if self.do_validation:
            log = {**log, **self._valid_epoch(epoch)}
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        return log

    def _valid_epoch(self, epoch):
        self.model.eval()
        total_loss, total_metrics = 0, np.zeros(len(self.metrics))
        with torch.no_grad():
            for batch_idx, (x, lengths, target) in enumerate(self.valid_data_loader):
                x, lengths, target = x.to(self.device), lengths.to(self.device), target.to(self.device)
                output = self.model(x, lengths)
                self.writer.set_step((epoch - 1) * len(self.valid_data_loader) + batch_idx, 'valid')
                total_loss += self.loss(output, target).item()
                total_metrics += self._eval_metrics(output, target)
        return {'val_loss': total_loss / len(self.valid_data_loader),
                'val_metrics': (total_metrics / len(self.valid_data_loader)).tolist()}
