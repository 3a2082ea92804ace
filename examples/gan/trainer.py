"""A GAN: two models, two optimizers, two steppers. `model` is the generator.

Its rival is a section of the config too.
"""

import torch
from torchvision.utils import make_grid

import model.model as module_arch
from armature.checkpoint.weights import bare
from armature.run.metric_tracker import MetricTracker
from base.stepper import Stepper
from trainer import Trainer


class GanTrainer(Trainer):
    """What is an attribute here and has state is saved and resumed.

    The rival, its optimizer, its stepper.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.discriminator = self.config.init_obj('discriminator', module_arch).to(self.device)
        self.optimizer_d = self.config.init_obj(
            'optimizer_d', torch.optim, self.discriminator.parameters()
        )
        self.stepper_d = Stepper(
            self.optimizer_d, device=self.device, microbatch_size=self.settings.microbatch_size
        )
        self.train_metrics = MetricTracker('loss', 'loss_d')
        self.n_latent = bare(self.model).n_latent
        self.samples_from = torch.randn(
            64, self.n_latent, generator=torch.Generator().manual_seed(0)
        ).to(self.device)

    def _train_epoch(self, epoch):
        """A step of the discriminator and one of the generator for each batch."""
        self.model.train()
        self.discriminator.train()
        self.train_metrics.reset()
        for batch in self.batches(epoch):
            for images, _ in self.stepper_d.micro_batches(batch):
                with torch.no_grad():
                    fakes = self.model(self.noise(images))
                loss = (self.judge(images, 1.0) + self.judge(fakes, 0.0)) / 2
                self.stepper_d.backward(loss)
                self.train_metrics.update('loss_d', loss, len(images))
            self.stepper_d.step()

            for images, _ in self.stepper.micro_batches(batch):
                loss = self.judge(self.model(self.noise(images)), 1.0)
                self.stepper.backward(loss)
                self.train_metrics.update('loss', loss, len(images))
            self.stepper.step()
            self.optimizer_d.zero_grad()  # the generator's loss has gone through the discriminator
        self.log_samples()
        return self.train_metrics.result()

    def judge(self, images, is_real):
        """The discriminator's loss when these images count as real (1) or fake (0)."""
        scores = self.discriminator(images)
        return self.criterion(scores, torch.full_like(scores, is_real))

    def noise(self, images):
        return torch.randn(len(images), self.n_latent, device=self.device)

    @torch.no_grad()
    def log_samples(self):
        self.model.eval()
        self.writer.add_image(
            'samples', make_grid(self.model(self.samples_from).cpu(), nrow=8, normalize=True)
        )
