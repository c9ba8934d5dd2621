"""Photos on their way through a network into files.

Threads read the next photos and write the last results while the network runs.
"""
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from util.files import check_failures, check_target, make_folder, printable, result_names
from util.images import read_photo
from util.results import Parsing
from util.index import write_index
from util.run import sum_over_processes

AHEAD = 4                                     # photos in the queue for reading, and for writing


@dataclass
class PhotoJob:
    """A photo on its way through a pipeline.

    `PhotoPipeline.read` sets photo and input, or error; `PhotoPipeline.parse` replaces the input by
    the output.
    """
    path: str | Path                          # file of the photo
    name: str                                 # of its results, without an ending
    photo: Image.Image | None = None          # as the network sees it: turned upright, reduced
    input: Any = None                         # of the network
    out: Any = None                           # of the network
    error: str | None = None                  # why the photo could not be read or parsed


def ahead(pool: Executor, function: Callable, items: Iterable, most: int = AHEAD) -> Iterator:
    """Yields function(item) of each item, in order; threads work on the next `most` meanwhile."""
    futures = deque()
    for item in items:
        futures.append(pool.submit(function, item))
        if len(futures) > most:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def share_of_process(jobs: list) -> list:
    """The jobs of this process: the processes of torchrun share them."""
    world = int(os.environ.get('WORLD_SIZE', 1))
    rank = int(os.environ['RANK']) if world > 1 else 0
    return jobs[rank::world]


def name_jobs(paths: list[Path]) -> list[PhotoJob]:
    """One job per photo; each has a name for its results that no other job has."""
    return [PhotoJob(path, name) for path, name in zip(paths, result_names(paths))]


class PhotoPipeline:
    """Photos through a network into a folder.

    A subclass defines the network's input (`prepare`), its output (`outputs`), the results
    (`write`), and the endings of their names, or their paths (`targets`).

    folder    for the results
    device    of the network
    max_size  larger photos are reduced to this long side, in pixels
    """
    endings = ()

    def __init__(self, folder: str | Path, device: torch.device, max_size: int | None = None):
        self.folder = Path(folder)
        self.max_size = max_size
        self.inputs = set()                   # real paths of all photos: no result may replace one
        self.owners = {}                      # path of each result of a run: name of its photo
        # MPS works in one thread alone
        self.turn = threading.Lock() if device.type == 'mps' else nullcontext()

    # ---- what a subclass defines ---------------------------------------------------------------

    def targets(self, name: str) -> list[Path]:
        """Paths of the results of this name."""
        return [self.folder / (name + ending) for ending in self.endings]

    def open(self, path: str | Path) -> Image.Image:
        return read_photo(path)

    def prepare(self, photo: Image.Image) -> Any:
        """The network's input for a photo."""
        raise NotImplementedError

    def outputs(self, inputs: list) -> list:
        """The network's output for each input."""
        raise NotImplementedError

    def find(self, out: Any, photo: Image.Image) -> Parsing:
        """The network's output for a frame of a video -> its visible people."""
        raise NotImplementedError

    def kernels(self, out: Any, found: Parsing) -> np.ndarray | None:
        """Unit vectors (N, C) of the people that `find` returned, similar in the next frame; None
        where the system has none."""
        return None

    def write(self, job: PhotoJob) -> tuple[str, int | None]:
        """Writes the results of a job with an output.

        Returns a message about the photo, and its number of people (None after an error).
        """
        raise NotImplementedError

    # ---- the way of a photo --------------------------------------------------------------------

    def check(self, job: PhotoJob):
        """Raises a ValueError if a result would replace a file of the user's."""
        try:
            self.check_targets(job.name)
        except ValueError as error:
            raise ValueError(f'{printable(job.path)} is left out: {error}') from None

    def check_targets(self, name: str):
        for path in self.targets(name):
            # a_mask.png may be the mask of a.jpg, or the label map of a_mask.jpg.
            if self.owners.get(path, name) != name:
                raise ValueError(f'{printable(path)} would be a result of two photos; rename one')
            self.check_target(path)

    def check_target(self, path: Path):
        check_target(path, self.inputs)

    def read(self, job: PhotoJob) -> PhotoJob:
        """The job with its photo and the network's input.

        Or with an error: the photo cannot be read, or its results would replace other files.
        """
        try:
            self.check(job)
            photo = self.fit(self.open(job.path))
            return replace(job, photo=photo, input=self.prepare(photo))
        except (OSError, ValueError) as error:
            return replace(job, error=str(error))

    def fit(self, photo: Image.Image) -> Image.Image:
        """Reduces a photo to max_size, in place."""
        if self.max_size:
            photo.thumbnail((self.max_size, self.max_size), Image.BILINEAR)
        return photo

    def parse(self, jobs: Iterable[PhotoJob], batch_size: int = 1) -> Iterator[PhotoJob]:
        """Yields the jobs of `read` in their order, each with its output or an error."""
        batch = []
        for job in jobs:
            batch.append(job)
            if len(batch) == batch_size:
                yield from self.parse_batch(batch)
                batch = []
        yield from self.parse_batch(batch)

    def parse_batch(self, batch: list[PhotoJob]) -> Iterator[PhotoJob]:
        """Runs the network on the photos of a batch that could be read; yields all its jobs."""
        good = [job for job in batch if job.error is None]
        with self.turn:
            outputs = self.outputs([job.input for job in good]) if good else []
        for job, out in zip(good, outputs):
            job.out = out
            job.input = None                  # its memory is needed for the next photos
        yield from batch

    def finish(self, job: PhotoJob) -> tuple[str, int | None]:
        """Writes the results of a job; returns what `write` returns, or the error and None."""
        if job.error is not None:
            return f'error: {job.error}', None
        return self.write(job)

    def run(self, jobs: list[PhotoJob], batch_size: int = 1) -> list[int | None]:
        """Parses photos and writes their results.

        Returns the number of people of each photo, None for those that were not parsed.
        """
        make_folder(self.folder)
        self.inputs = {os.path.realpath(job.path) for job in jobs}
        for job in jobs:
            for path in self.targets(job.name):
                self.owners.setdefault(path, job.name)
        counts = []
        bar = tqdm(total=len(jobs), disable=len(jobs) < 2 or None, unit='photo')
        with ThreadPoolExecutor(4) as pool, bar:
            parsed = self.parse(ahead(pool, self.read, jobs), batch_size)
            for message, number in ahead(pool, self.finish, parsed):
                bar.write(message, file=sys.stderr if number is None else None)
                bar.update()
                counts.append(number)
        return counts


def end_run(folder: str | Path, failed: int, kind: str = 'photo'):
    """Ends a run when all its jobs are done: the first process writes index.html, with the results
    of all. Raises a ValueError if photos, or files of another kind, were not parsed.

    failed: their number in this process
    """
    finish_run(folder, sum_over_processes(failed), kind)


def finish_run(folder: str | Path, failed: int, kind: str = 'photo'):
    """The same when the number of all processes is known."""
    if int(os.environ.get('RANK', 0)) == 0:
        write_index(folder)
    check_failures(failed, kind)
