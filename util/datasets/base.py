"""What all data sets share."""
from functools import cached_property
from typing import NamedTuple

import numpy as np

from util.files import check_name
from util.images import read_labels, read_stored, stored_size
from util.masks import CroppedMap, stack_people

Labels = tuple[np.ndarray, np.ndarray]            # parsing (N, H, W) uint8, ignore (H, W) bool
Example = tuple[np.ndarray, np.ndarray, np.ndarray]           # image (H, W, 3) uint8, and Labels


class GroundTruth(NamedTuple):
    """What an evaluator compares the predictions of an image with.

    semantic, parts and humans come from official files; None stands for those of parsing.
    """
    parsing: np.ndarray                           # (M, H, W) uint8, a label map per person
    ignore: np.ndarray | None = None              # (H, W) bool; None: no pixel is ignored
    semantic: np.ndarray | None = None            # (H, W) uint8, the classes of all people
    parts: list[np.ndarray] | None = None         # label maps (H, W), each class once in a map
    humans: list[CroppedMap] | None = None        # a mask per person


class Photos:
    """The base of all data sets.

    A subclass sets class_names (the background first) and flip_pairs (ids of left and right that
    swap in a mirrored image). Its __init__(root, split) sets

    ids     unique names of the images: results are named after them
    photos  their paths
    people  {id: paths of the label maps of its people}; None if the split has no labels, so that
            all pixels are ignored

    or it overrides `read` and `read_parsing`. seed and epoch matter for drawn images alone.
    """
    class_names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    splits = 'train', 'val', 'test'
    skip_bad = False                              # leave unreadable images out, without an error
    read_photo = staticmethod(read_stored)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_truth(self) -> bool:
        """Whether the split has labels: those of MHP's and CIHP's test photos are not public."""
        return getattr(self, 'people', ()) is not None

    @property
    def has_parts(self) -> bool:
        """Whether labels of parts are known, or people alone."""
        return True

    def size(self, i: int) -> tuple[int, int]:
        """(width, height) of image i, without decoding it."""
        return stored_size(self.photos[i])

    @cached_property
    def landscape(self) -> np.ndarray:
        """bool (len,): the images that are wider than high."""
        return np.array([self.is_wide(i) for i in range(len(self))], bool)

    def is_wide(self, i: int) -> bool:
        try:
            width, height = self.size(i)
        except (OSError, ValueError):
            if not self.skip_bad:
                raise
            return False                          # reading its pixels raises the error again
        return width > height

    def read(self, i: int, seed: int = 0, epoch: int = 0) -> Example:
        """image (H, W, 3) uint8 RGB, parsing (N, H, W) uint8, ignore (H, W) bool."""
        image = np.array(self.read_photo(self.photos[i]))
        parsing, ignore = self.read_parsing(i)
        if image.shape[:2] != ignore.shape:
            raise ValueError(f'{self.photos[i]} is of size {image.shape[1::-1]}, its labels are of '
                             f'size {ignore.shape[::-1]}; unpack the download again')
        return image, parsing, ignore

    def read_parsing(self, i: int, seed: int = 0, epoch: int = 0) -> Labels:
        """parsing (N, H, W) uint8, ignore (H, W) bool; decodes no photo."""
        paths = self.people[self.ids[i]] if self.people is not None else []
        maps = [read_labels(path, len(self.class_names) - 1) for path in paths]
        size = maps[0].shape[::-1] if maps else self.size(i)
        for path, labels in zip(paths, maps):
            if labels.shape != maps[0].shape:
                raise ValueError(f'{path} and {paths[0]} differ in size; unpack the download again')
        ignore = np.full(size[::-1], self.people is None)
        return stack_people(maps, size), ignore

    def truth(self, i: int, parsing: np.ndarray, ignore: np.ndarray) -> GroundTruth:
        """The labels of image i, as read, in the form of the set's official evaluator."""
        return GroundTruth(parsing, ignore)


def swap_sides(parsing: np.ndarray, flip_pairs: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Swaps left and right labels, as a mirrored label map needs."""
    table = np.arange(256, dtype=np.uint8)
    for left, right in flip_pairs:
        table[left] = right
        table[right] = left
    return table.take(parsing)


def check_ids(ids: list[str], source: str):
    """ValueError if an id would leave its folder as a file name."""
    for i in ids:
        check_name(i, f'{source} has the image id', 'check the annotations')
