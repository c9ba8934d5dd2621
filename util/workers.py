"""The processes that read training samples: torch's DataLoader, and what it does not do itself.

An epoch can begin at any batch. Workers leave Ctrl-C to the main process. A sample that cannot be
read, or that ends its worker, is named.
"""
import atexit
import re
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm


def batches(groups: list, batch_size: int, seed: int, epoch: int, rank: int = 0,
            world: int = 1) -> list[list[tuple]]:
    """The batches of one process in an epoch, in random order: lists of (epoch, index).

    Each batch is from one of the groups, arrays of indices. All processes have the same number of
    batches and different images, except those that fill up the last batches.
    """
    rng = np.random.default_rng((5, seed, epoch))
    chunks = []
    for group in groups:
        # The first images are repeated until the last batch is full.
        length = -(-len(group) // batch_size) * batch_size
        order = np.resize(rng.permutation(group), length)
        chunks += order.reshape(-1, batch_size).tolist()
    # The first batches are repeated until each process has as many.
    length = -(-len(chunks) // world) * world
    order = np.resize(rng.permutation(len(chunks)), length)
    return [[(epoch, index) for index in chunks[k]] for k in order[rank::world]]


class EpochBatches:
    """Batch sampler, see `batches`. A new one stands at the first batch of epoch 0."""

    def __init__(self, groups: list, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        self.groups = groups
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start: int = 0):
        """Goes to batch `start` of an epoch."""
        self.batches = batches(self.groups, self.batch_size, self.seed, epoch, self.rank,
                               self.world)
        self.start = start

    def total(self) -> int:
        """The number of batches of the whole epoch."""
        return len(self.batches)

    def __len__(self):
        return len(self.batches) - self.start

    def __iter__(self):
        return iter(self.batches[self.start:])


@dataclass
class BadSample:
    """What stands in the place of a sample that cannot be read. Raised in a worker, an error would
    arrive as a traceback."""
    error: str


def collate_good(collate: Callable, samples: list) -> dict | BadSample:
    """collate(samples), unless one of them is bad: then that one."""
    for sample in samples:
        if isinstance(sample, BadSample):
            return sample
    return collate(samples)


def ignore_signals(worker):
    """Called in each new worker. The main process handles a stop: it saves and ends the workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def open_loader(samples, config, batch_size: int, rank: int = 0, world: int = 1,
                device: str | torch.device = 'cpu') -> DataLoader:
    """DataLoader of samples such as `data.Samples`.

    Before each epoch call loader.batch_sampler.set_epoch(epoch, start).

    samples: samples[epoch, index], groups(), collate(list), and `busy`, where each worker notes
        what it reads.
    config: its workers and seed.
    batch_size: of this process, the one with number `rank` of `world`.
    """
    # Per worker: its process and the index of the image that it reads.
    samples.busy = torch.zeros(config.workers, 2, dtype=torch.long).share_memory_()
    sampler = EpochBatches(samples.groups(), batch_size, config.seed, rank, world)
    loader = DataLoader(
        samples,
        batch_sampler=sampler,
        collate_fn=partial(collate_good, samples.collate),
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        worker_init_fn=ignore_signals,
        pin_memory=torch.device(device).type == 'cuda',
        # Its own, so that the global one stays as it is.
        generator=torch.Generator())
    # At exit Python would send SIGTERM to the workers, which they ignore, and wait without end.
    reference = weakref.ref(loader)
    atexit.register(lambda: end_workers(reference()))
    return loader


def end_workers(loader: DataLoader | None):
    """Ends the processes of a loader, if it has any."""
    if loader is None or loader._iterator is None:
        return
    loader._iterator._shutdown_workers()
    for worker in loader._iterator._workers:
        worker.kill()


def read_batches(loader: DataLoader) -> Iterator[dict]:
    """Yields the batches of a loader. A skipped image is named once; a bad sample is an
    error."""
    named = loader.dataset.named
    for batch in loader:
        if isinstance(batch, BadSample):
            raise ValueError(batch.error)
        for info in batch['infos']:
            for sentence in info['bad']:
                if sentence not in named:
                    named.add(sentence)
                    tqdm.write(f'skipped: {sentence}', file=sys.stderr)
        yield batch


@contextmanager
def workers_of(loader: DataLoader):
    """Ends the workers when its block ends, in any case. If one died, the error names the image
    that it was reading."""
    try:
        yield
    except RuntimeError as error:
        # torch notices a death at any point of the main process.
        found = re.match(r'DataLoader worker \(pid\D* ([\d, ]+)\)', str(error))
        if not found:
            raise
        dead = {int(pid) for pid in found[1].split(',')}
        samples = loader.dataset
        names = [str(samples.dataset.ids[index])
                 for pid, index in samples.busy.tolist() if pid in dead]
        raise ValueError(
            f'a worker process died while it read {" and ".join(names) or "its first image"}; if '
            'the machine ran out of memory, take fewer --workers, else look at that image'
        ) from None
    finally:
        end_workers(loader)
