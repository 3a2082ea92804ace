"""Trains models that compute their losses themselves, as torchvision's detectors do."""

from armature.run.metric_tracker import MetricTracker
from trainer import Trainer


class DetectorTrainer(Trainer):
    """The model gives {name: loss} for (images, targets) in training, else what it has found."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.train_metrics = MetricTracker('loss')  # what is found is known in validation only

    def _train_epoch(self, epoch):
        self.model.train()
        self.train_metrics.reset()
        for batch in self.batches(epoch):
            for images, targets in self.stepper.micro_batches(batch):
                with self.stepper.autocast():
                    losses = self.model(images, targets)
                self.stepper.backward(losses)  # their sum
                self.train_metrics.measure(losses, None, targets)
            self.stepper.step()
            self.end_step()
        log = self.train_metrics.result()
        log |= {f'val_{name}': value for name, value in self._valid_epoch(epoch).items()}
        self.stepper.end_epoch(log)
        return log
