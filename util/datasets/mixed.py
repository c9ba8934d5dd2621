"""Several data sets of the same classes as one."""
import numpy as np

from util.datasets.base import Example, Labels, Photos


class Mixed(Photos):
    """The images of the first data set, then those of the next."""

    def __init__(self, parts: list[Photos]):
        self.parts = parts
        self.class_names = parts[0].class_names
        self.flip_pairs = parts[0].flip_pairs
        self.ids = [i for part in parts for i in part.ids]
        self.starts = np.cumsum([0] + [len(part) for part in parts])

    def place(self, i: int) -> tuple[Photos, int]:
        """The data set that has image i, and its number there."""
        n = int(np.searchsorted(self.starts, i, side='right')) - 1
        return self.parts[n], int(i - self.starts[n])

    def size(self, i: int) -> tuple[int, int]:
        part, k = self.place(i)
        return part.size(k)

    def is_wide(self, i: int) -> bool:
        part, k = self.place(i)
        return part.is_wide(k)

    def read(self, i: int, seed: int = 0, epoch: int = 0) -> Example:
        part, k = self.place(i)
        return part.read(k, seed, epoch)

    def read_parsing(self, i: int, seed: int = 0, epoch: int = 0) -> Labels:
        part, k = self.place(i)
        return part.read_parsing(k, seed, epoch)
