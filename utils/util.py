"""The small helpers of the old template, under the names that its projects import."""

from collections.abc import Iterable

from armature.processes.devices import prepare_device as prepare_device
from armature.run.metric_tracker import MetricTracker as MetricTracker
from armature.run.record import ensure_dir as ensure_dir
from armature.run.record import read_json as read_json
from armature.run.record import write_json as write_json


class inf_loop:  # a class with a function's name: old code calls it as a function
    """The batches of `data_loader` again and again, a new pass when one ends.

    Its position is part of a checkpoint when it is an attribute of a trainer.
    """

    def __init__(self, data_loader: Iterable):
        self.data_loader = data_loader
        self.n_passes = self.n_batches = 0
        self._iterator = None

    def __iter__(self):
        return self

    def __next__(self):
        for _ in range(2):  # the rest of this pass, or the next pass
            if self._iterator is None:
                if hasattr(self.data_loader, 'seek'):
                    self.data_loader.seek(self.n_passes, self.n_batches)
                self._iterator = iter(self.data_loader)
            for batch in self._iterator:
                self.n_batches += 1
                return batch
            self._iterator, self.n_passes, self.n_batches = None, self.n_passes + 1, 0
        raise StopIteration  # there is nothing in it

    def state_dict(self) -> dict:
        return {'n_passes': self.n_passes, 'n_batches': self.n_batches}

    def load_state_dict(self, state: dict) -> None:
        self.n_passes, self.n_batches = state['n_passes'], state['n_batches']
        self._iterator = None
