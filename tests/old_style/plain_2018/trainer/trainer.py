import numpy as np
import torch
from base import BaseTrainer


class Trainer(BaseTrainer):
    def __init__(self, model, loss, metrics, optimizer, resume, config, data_loader, valid_data_loader=None, train_logger=None):
        super(Trainer, self).__init__(model, loss, metrics, optimizer, resume, config, train_logger)
        self.config = config
        self.batch_size = data_loader.batch_size
        self.data_loader = data_loader
        self.valid_data_loader = valid_data_loader
        self.valid = True if self.valid_data_loader is not None else False

    def _eval_metrics(self, output, target):
        return np.array([metric(output, target) for metric in self.metrics])

    def _train_epoch(self, epoch):
        self.model.train()
        total_loss, total_metrics = 0, np.zeros(len(self.metrics))
        for data, target in self.data_loader:
            data, target = data.to(self.device), target.to(self.device)
            self.optimizer.zero_grad()
            output = self.model(data)
            loss = self.loss(output, target)
            loss.backward()
            self.optimizer.step()
            total_loss += loss.item()
            total_metrics += self._eval_metrics(output, target)
            if self.verbosity >= 2:
                self.logger.info('loss {:.6f}'.format(loss.item()))
        log = {'loss': total_loss / len(self.data_loader), 'metrics': (total_metrics / len(self.data_loader)).tolist()}
        if self.valid:
            log = {**log, **self._valid_epoch()}
        return log

    def _valid_epoch(self):
        self.model.eval()
        total_loss, total_metrics = 0, np.zeros(len(self.metrics))
        with torch.no_grad():
            for data, target in self.valid_data_loader:
                data, target = data.to(self.device), target.to(self.device)
                output = self.model(data)
                total_loss += self.loss(output, target).item()
                total_metrics += self._eval_metrics(output, target)
        return {'val_loss': total_loss / len(self.valid_data_loader),
                'val_metrics': (total_metrics / len(self.valid_data_loader)).tolist()}
