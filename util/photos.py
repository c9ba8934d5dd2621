"""Photos through a network into files: threads read the next photos and write the last results while it runs."""
import os
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from util.files import check_target, make_folder, printable, read_photo, result_names

AHEAD = 4                                                # photos in the queue for reading, and for writing


def ahead(pool, function, items):
    """function(item) of each item, in their order; threads work on the next AHEAD meanwhile."""
    futures = deque()
    for item in items:
        futures.append(pool.submit(function, item))
        if len(futures) > AHEAD:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def share_of_process(jobs):
    """The jobs of this process: torchrun's processes share them."""
    world = int(os.environ.get('WORLD_SIZE', 1))
    return jobs[int(os.environ['RANK']) if world > 1 else 0::world]


def name_jobs(paths):
    """Paths -> jobs: (path, name of the results)."""
    return list(zip(paths, result_names(paths)))


class PhotoPipeline:
    """Photos through a network into a folder. A job is (path, name of the results). A subclass defines the network's
    input (`prepare`), its output (`outputs`), the results (`write`) and the endings of their names, or their paths
    (`targets`). max_size: larger photos are reduced to this long side."""
    endings = ()

    def __init__(self, folder, device, max_size=None):
        self.folder, self.max_size, self.inputs = Path(folder), max_size, set()
        self.turn = threading.Lock() if device.type == 'mps' else nullcontext()             # MPS is single-threaded

    def targets(self, name):
        """Paths of the results of this name."""
        return [self.folder / (name + ending) for ending in self.endings]

    def check(self, job):
        """ValueError where a result would replace a file of the user's."""
        try:
            for path in self.targets(job[1]):
                self.check_target(path)
        except ValueError as error:
            raise ValueError(f'{printable(job[0])} is left out: {error}') from None

    def check_target(self, path):
        check_target(path, self.inputs)

    def open(self, path):
        """-> Pillow photo."""
        return read_photo(path)

    def prepare(self, photo):
        """Pillow photo -> the network's input."""
        raise NotImplementedError

    def outputs(self, inputs):
        """List of inputs -> list of outputs."""
        raise NotImplementedError

    def write(self, result):
        """(job, photo, output) -> a message about the photo, and its number of people; (job, error, None) -> the error,
        and None."""
        raise NotImplementedError

    def read(self, job):
        """-> job, photo, network input; or job, error, None if the photo cannot be read or its results would replace
        other files."""
        try:
            self.check(job)
            photo = self.fit(self.open(job[0]))
            return job, photo, self.prepare(photo)
        except (OSError, ValueError) as error:
            return job, error, None

    def fit(self, photo):
        """Reduces a photo to max_size, in place."""
        if self.max_size:
            photo.thumbnail((self.max_size,) * 2, Image.BILINEAR)
        return photo

    def parse(self, photos, batch_size=1):
        batch = []
        for job, photo, image in photos:
            batch.append((job, photo, image))
            if len(batch) == batch_size:
                yield from self.parse_batch(batch)
                batch = []
        yield from self.parse_batch(batch)

    def parse_batch(self, batch):
        """Outputs of a batch, in its order."""
        inputs = [image for _, _, image in batch if image is not None]
        with self.turn:
            outputs = iter(self.outputs(inputs) if inputs else [])
        for job, photo, image in batch:
            yield job, photo, None if image is None else next(outputs)

    def run(self, jobs, batch_size=1):
        """-> the numbers of people by photo, None for photos that were not parsed."""
        make_folder(self.folder)
        self.inputs, counts = {os.path.realpath(path) for path, _ in jobs}, []
        with ThreadPoolExecutor(4) as pool, tqdm(total=len(jobs), disable=len(jobs) < 2 or None, unit='photo') as bar:
            for message, number in ahead(pool, self.write, self.parse(ahead(pool, self.read, jobs), batch_size)):
                bar.write(message, file=sys.stderr if number is None else None)
                bar.update()
                counts.append(number)
        return counts


def check_failures(failed, kind='photo'):
    """ValueError where photos, or files of another kind, were not parsed, after all others are done."""
    if failed:
        raise ValueError(f'{failed} {kind}{"s were" if failed > 1 else " was"} not parsed')
