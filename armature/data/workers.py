"""Workers: torch's own loader, which lets other processes read, or none.

What they do about signals, and about an end that comes early.
"""

import atexit
import functools
import multiprocessing
import os
import pickle
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from armature.errors import STOP_CODES, ConfigError, DataError, UserError

NOT_PICKLABLE = (AttributeError, TypeError, pickle.PicklingError)  # it depends on the Python
_started = weakref.WeakSet()


class Workers(DataLoader):
    """torch's DataLoader as what runs a `reader` in workers, or in this process without any.

    reader: a Dataset that answers requests in `__getitem__`, or a stream of answers.
    seed: where `get_worker_info().seed` comes from; None: from torch's own first one.
    """

    def __init__(self, reader: Dataset, options: dict, seed: int | None = None):
        self._requests, generator = _Requests(), torch.Generator()
        if seed is not None:
            generator.manual_seed(seed)
        start = functools.partial(start_worker, options.get('worker_init_fn'))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the loader that asks has said it, such as too many
            super().__init__(
                reader,
                batch_size=None,
                sampler=None if isinstance(reader, IterableDataset) else self._requests,
                collate_fn=as_it_is,
                generator=generator,
                **options | {'worker_init_fn': start},
            )

    def answers(self, requests: Iterable[tuple] = ()) -> Iterator[Any]:
        """What the reader makes of each request, in their order; a UserError is raised."""
        self._requests.due = requests
        iterator = self._begun()
        try:
            for answer in iterator:
                if isinstance(answer, UserError):
                    raise answer
                yield answer
        except RuntimeError as error:
            if not str(error).startswith(('DataLoader worker (pid', 'DataLoader timed out')):
                raise
            raise DataError(
                f'{error}: a worker of the data loader died or fell silent. When memory is short, '
                'fewer num_workers or a smaller prefetch_factor help'
            ) from error
        finally:
            self._requests.due = ()
            if not self.persistent_workers:
                _end(iterator)

    def _begun(self) -> Iterator[Any]:
        """iter(loader), in which the workers start."""
        # The signals that stop a run wait until the workers can say what they do about them.
        has_masks = hasattr(signal, 'pthread_sigmask')
        held = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_CODES) if has_masks else None
        try:
            with warnings.catch_warnings():
                # torch's, where it cannot pickle what workers need: what is raised then is clearer
                warnings.simplefilter('ignore', UserWarning)
                iterator = iter(self)
        except NOT_PICKLABLE:
            self._refuse_what_cannot_be_sent()
            raise
        finally:
            if has_masks:
                signal.pthread_sigmask(signal.SIG_SETMASK, held)
        _started.add(iterator)
        return iterator

    def _refuse_what_cannot_be_sent(self) -> None:
        try:
            ForkingPickler.dumps((self.dataset, self.worker_init_fn))
        except NOT_PICKLABLE as error:
            raise ConfigError(
                'the workers of the loader are started anew here, not forked, so all that they '
                f'need is pickled, and this cannot be: {error}. Use functions and classes of a '
                'module instead of lambdas and local ones, or num_workers 0'
            ) from error


class _Requests:
    """What is requested, as torch's loader asks its sampler; others in each iteration."""

    due = ()

    def __iter__(self) -> Iterator[tuple]:
        return iter(self.due)


def as_it_is(answer: Any) -> Any:
    """For torch's loader, which would make tensors of arrays and numbers."""
    return answer


def _end(iterator: Iterator) -> None:
    """Let the workers leave now.

    When an error's traceback keeps their iterator, garbage collection is too late to tell them.
    """
    getattr(iterator, '_shutdown_workers', lambda: None)()


@atexit.register
def _end_workers() -> None:
    """At exit: Python would send the workers that are left one SIGTERM, and wait for ever.

    They live through it (see `start_worker`).
    """
    for iterator in list(_started):
        _end(iterator)


def start_worker(worker_init_fn: Callable[[int], None] | None, worker_id: int) -> None:
    """Let a worker live through a signal sent to the whole process group.

    The trainer needs it for the step it finishes. SIGINT and SIGUSR1 are left to the trainer, and
    so is the first SIGTERM; a second one ends the worker.
    """
    for each in STOP_CODES:
        signal.signal(each, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, lambda *_: os._exit(0)))
    if hasattr(signal, 'pthread_sigmask'):  # not on Windows
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_CODES)
    info = get_worker_info()
    if info is not None:  # of the dataset that is read, and not of what reads it
        reader = info.dataset
        let_worker_say(info, dataset=reader.dataset)
        if isinstance(reader, IterableDataset):
            # It parts the stream, so whoever parts it by the worker's number gives it whole.
            reader.worker = info.id, info.num_workers
            let_worker_say(info, id=0, num_workers=1, seed=info.seed - info.id)
            worker_id = 0
    trainer = multiprocessing.parent_process()
    if trainer is not None and trainer.pid != os.getppid():
        # Of a fork server: torch looks whether that lives, and it lives as long as a worker.
        threading.Thread(target=_leave_after, args=(trainer,), daemon=True).start()
    if worker_init_fn is not None:
        worker_init_fn(worker_id)


def let_worker_say(info: Any, **facts: Any) -> None:
    """Let torch's `get_worker_info` give these; itself it lets nobody assign."""
    for name, value in facts.items():
        object.__setattr__(info, name, value)


def _leave_after(trainer: Any) -> None:
    trainer.join()
    os._exit(1)
