import numpy as np
import torch
import torch.nn.functional as F
from base.base_trainer import BaseTrainer
from utils import inf_loop, MetricTracker


class GanTrainer(BaseTrainer):
    def __init__(self, generator, discriminator, optim_g, optim_d, config, data_loader, len_epoch):
        super().__init__(generator, None, [], optim_g, config)
        self.discriminator = discriminator.to(self.device)
        self.optim_d = optim_d
        if config.resume is not None:
            extra = torch.load(config.resume)
            self.discriminator.load_state_dict(extra['discriminator'])
            self.optim_d.load_state_dict(extra['optim_d'])
        self.batch_size = data_loader.batch_size
        self.data_loader = inf_loop(data_loader)
        self.len_epoch = len_epoch
        self.train_metrics = MetricTracker('loss/generator', 'loss/discriminator', writer=self.writer)

    def _train_epoch(self, epoch):
        self.train_metrics.reset()
        assert self.train_metrics.contains('loss/generator')
        for batch_idx, (real,) in enumerate(self.data_loader):
            if batch_idx == self.len_epoch:
                break
            real = real.to(self.device)
            fake = self.model(torch.randn(len(real), self.model.latent, device=self.device))
            ones, zeros = torch.ones(len(real), 1, device=self.device), torch.zeros(len(real), 1, device=self.device)

            self.optim_d.zero_grad()
            loss_d = F.binary_cross_entropy_with_logits(self.discriminator(real), ones) \
                + F.binary_cross_entropy_with_logits(self.discriminator(fake.detach()), zeros)
            loss_d.backward()
            self.optim_d.step()

            self.optimizer.zero_grad()
            loss_g = F.binary_cross_entropy_with_logits(self.discriminator(fake), ones)
            loss_g.backward()
            self.optimizer.step()

            self.writer.set_step((epoch - 1) * self.len_epoch + batch_idx)
            self.train_metrics.update('loss/generator', loss_g, len(real))
            self.train_metrics.update('loss/discriminator', loss_d.detach().cpu().numpy(), n=len(real))
        log = self.train_metrics.result()
        log['spread'] = np.float32(fake.std().item())
        log['last'] = loss_g.detach()
        return log

    def _save_checkpoint(self, epoch, save_best=False):
        state = {
            'arch': type(self.model).__name__,
            'epoch': epoch,
            'state_dict': self.model.state_dict(),
            'discriminator': self.discriminator.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'optim_d': self.optim_d.state_dict(),
            'monitor_best': float(self.mnt_best),
            'config': self.config,
        }
        torch.save(state, str(self.checkpoint_dir / 'checkpoint-epoch{}.pth'.format(epoch)))
        if save_best:
            torch.save(state, str(self.checkpoint_dir / 'model_best.pth'))

    def _resume_checkpoint(self, path):
        saved = torch.load(path)
        self.start_epoch = saved['epoch'] + 1
        self.mnt_best = saved['monitor_best']
        self.model.load_state_dict(saved['state_dict'])
        self.optimizer.load_state_dict(saved['optimizer'])
