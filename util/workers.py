"""The processes that read training samples, around torch's DataLoader: batches of an epoch, stops, errors and deaths.

`loader` makes a DataLoader. `read_batches` and `workers_of` are used around its loop.
"""
import atexit
import re
import signal
import sys
import weakref
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm


def batches(groups, batch_size, seed, epoch, rank=0, world=1):
    """The batches of one process in an epoch, lists of (epoch, index), each from one of the groups, in random order.

    All processes have the same number of batches and different images, except those that fill up the last batches.
    """
    rng = np.random.default_rng((5, seed, epoch))
    chunks = []
    for group in groups:
        # np.resize repeats the first images until the last batch is full.
        length = -(-len(group) // batch_size) * batch_size
        order = np.resize(rng.permutation(group), length)
        chunks += order.reshape(-1, batch_size).tolist()
    # The last round of the processes is filled up in the same way.
    length = -(-len(chunks) // world) * world
    order = np.resize(rng.permutation(len(chunks)), length)
    return [[(epoch, index) for index in chunks[k]] for k in order[rank::world]]


class EpochBatches:
    """Batch sampler over groups of indices. A new one stands at the begin of epoch 0."""

    def __init__(self, groups, batch_size, seed, rank=0, world=1):
        self.groups = groups
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.set_epoch(0)

    def set_epoch(self, epoch, start=0):
        """Goes to batch `start` of an epoch."""
        self.batches = batches(self.groups, self.batch_size, self.seed, epoch, self.rank, self.world)
        self.start = start

    def total(self):
        """The number of batches of the whole epoch."""
        return len(self.batches)

    def __len__(self):
        return len(self.batches) - self.start

    def __iter__(self):
        return iter(self.batches[self.start:])


def ignore_signals(worker):
    """Called in each new worker. The main process handles a stop: it saves, then ends the workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def loader(samples, config, batch_size, rank=0, world=1, device='cpu') -> DataLoader:
    """DataLoader of samples such as `data.Samples`. Before each epoch call loader.batch_sampler.set_epoch(epoch, start).

    samples: samples[epoch, index], groups(), collate(list), and busy, in which each worker notes what it reads.
    config: workers, seed. batch_size: of this process, one of `world`.
    """
    # Per worker: its process and the index of the image that it reads.
    samples.busy = torch.zeros(config.workers, 2, dtype=torch.long).share_memory_()
    sampler = EpochBatches(samples.groups(), batch_size, config.seed, rank, world)
    made = DataLoader(
        samples,
        batch_sampler=sampler,
        collate_fn=samples.collate,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        worker_init_fn=ignore_signals,
        pin_memory=torch.device(device).type == 'cuda',
        # Its own, so that the global one stays as it is.
        generator=torch.Generator())
    # At exit Python would send SIGTERM to the workers, which they ignore, and then wait without end.
    reference = weakref.ref(made)
    atexit.register(lambda: end_workers(reference()))
    return made


def end_workers(loader):
    """Ends the processes of a loader, if it has any. loader: may be None."""
    if loader is None or loader._iterator is None:
        return
    loader._iterator._shutdown_workers()
    for worker in loader._iterator._workers:
        worker.kill()


def read_batches(loader):
    """Yields the batches of a loader. A skipped image is named once; an error in place of a batch is raised."""
    named = loader.dataset.named
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        for info in batch['infos']:
            for sentence in info['bad']:
                if sentence not in named:
                    named.add(sentence)
                    tqdm.write(f'skipped: {sentence}', file=sys.stderr)
        yield batch


@contextmanager
def workers_of(loader):
    """Ends the workers in any case. If one died, the error names the image that it was reading."""
    try:
        yield
    except RuntimeError as error:
        # torch notices a death at any point of the main process.
        found = re.match(r'DataLoader worker \(pid\D* ([\d, ]+)\)', str(error))
        if not found:
            raise
        dead = {int(pid) for pid in found[1].split(',')}
        samples = loader.dataset
        names = [str(samples.dataset.ids[index]) for pid, index in samples.busy.tolist() if pid in dead]
        raise ValueError(f'a worker process died while it read {" and ".join(names) or "its first image"}; if the '
                         'machine ran out of memory, take fewer --workers, else look at that image') from None
    finally:
        end_workers(loader)
