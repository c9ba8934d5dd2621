"""Several data sets of the same classes as one."""
import numpy as np

from util.datasets.base import Example, Labels, Photos


class Mixed(Photos):
    """The images of the first data set, then those of the next."""

    def __init__(self, sets: list[Photos]):
        self.sets = sets
        self.class_names = sets[0].class_names
        self.flip_pairs = sets[0].flip_pairs
        self.ids = [i for dataset in sets for i in dataset.ids]
        self.starts = np.cumsum([0] + [len(dataset) for dataset in sets])

    def place(self, i: int) -> tuple[Photos, int]:
        """The data set that has image i, and its number there."""
        n = int(np.searchsorted(self.starts, i, side='right')) - 1
        return self.sets[n], int(i - self.starts[n])

    def size(self, i: int) -> tuple[int, int]:
        dataset, k = self.place(i)
        return dataset.size(k)

    def is_wide(self, i: int) -> bool:
        dataset, k = self.place(i)
        return dataset.is_wide(k)

    def read(self, i: int, seed: int = 0, epoch: int = 0) -> Example:
        dataset, k = self.place(i)
        return dataset.read(k, seed, epoch)

    def read_parsing(self, i: int, seed: int = 0, epoch: int = 0) -> Labels:
        dataset, k = self.place(i)
        return dataset.read_parsing(k, seed, epoch)
