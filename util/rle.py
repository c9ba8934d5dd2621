"""COCO's run lengths, both ways. Needs no torch."""
from copy import copy

import numpy as np


class Runs:
    """The runs of equal labels down the columns of a label map, found in one pass: areas, boxes and
    COCO's run lengths of all its labels.

    label          (R,) uint8: that of each run, never 0
    column, row    (R,): its first pixel, in pixels of the photo
    length         (R,) in pixels

    The arguments are a label map (h, w), its place (x, y) in the photo, and the size (H, W) of the
    photo.
    """

    def __init__(self, labels: np.ndarray, x: int, y: int, size: tuple[int, int]):
        self.size = size
        # A label that differs from the one above starts a run; zeros lie around the map.
        padded = np.pad(labels, ((1, 1), (0, 0)))
        starts = np.flatnonzero(padded[1:] != padded[:-1])
        row, column = np.divmod(starts, max(1, labels.shape[1]))
        order = np.argsort(column, kind='stable')
        row = row[order]
        column = column[order]
        label = padded[row + 1, column]
        length = np.diff(row, append=0)           # to the next start, which is in the same column
        some = label > 0
        self.label = label[some]
        self.length = length[some]
        self.column = column[some] + x
        self.row = row[some] + y

    def take(self, kept: np.ndarray) -> 'Runs':
        """The runs of a bool array (R,)."""
        runs = copy(self)
        for name in ('label', 'column', 'row', 'length'):
            setattr(runs, name, getattr(self, name)[kept])
        return runs

    def split(self) -> dict[int, 'Runs']:
        """{label: its runs}, in the order of the labels."""
        return {int(c): self.take(self.label == c) for c in np.unique(self.label)}

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.length.sum())

    @property
    def box(self) -> list[int]:
        """[x, y, width, height] in pixels of the photo. There must be a run."""
        x = int(self.column[0])
        y = int(self.row.min())
        return [x, y, int(self.column[-1]) - x + 1, int((self.row + self.length).max()) - y]

    def counts(self) -> np.ndarray:
        """COCO's run lengths of the mask of all labels: down the columns, zeros first."""
        first = self.column * self.size[0] + self.row
        edges = np.stack([first, first + self.length], 1).ravel()
        # Runs that touch are one: those of two labels, or over the end of a column.
        joined = np.flatnonzero(edges[1:] == edges[:-1])
        edges = np.delete(edges, [joined, joined + 1])
        pixels = self.size[0] * self.size[1]
        if len(edges) and edges[-1] == pixels:
            edges = edges[:-1]
        return np.diff(edges, prepend=0, append=pixels)


def write_counts(counts: list[np.ndarray]) -> list[str]:
    """Run lengths of masks -> COCO's compressed run lengths, as `read_counts` reads them.

    Several masks are written at once, because numpy's operations take as long for ten runs as for a
    thousand.
    """
    if not counts:
        return []
    values = np.concatenate(counts)
    ends = np.cumsum([len(runs) for runs in counts])
    # Of each mask, all runs but the first three are differences to the last but one.
    differ = np.ones(len(values), bool)
    for end, runs in zip(ends, counts):
        differ[end - len(runs):end - len(runs) + 3] = False
    differences = values.copy()
    differences[2:] -= values[:-2]
    values = np.where(differ, differences, values)

    # Groups of five bits, lowest first, as characters from '0' on; 32 says that more follow.
    groups = []
    while True:
        group = values & 31
        values = values >> 5
        # The sign bit of the last group says the rest.
        more = values != -(group >> 4)
        groups.append(group + 48 + 32 * more)
        if not more.any():
            break
    groups = np.stack(groups, 1).astype(np.uint8)                            # (R, G)
    follows = (groups - 48) & 32 > 0
    wanted = np.ones(groups.shape, bool)
    wanted[:, 1:] = np.logical_and.accumulate(follows, 1)[:, :-1]
    text = groups[wanted].tobytes().decode()
    places = np.cumsum(wanted.sum(1))[ends - 1].tolist()
    return [text[a:b] for a, b in zip([0, *places], places)]


def encode_runs(masks: list[Runs]) -> list[dict]:
    """COCO's compressed run lengths of masks: {size, counts} of each."""
    texts = write_counts([runs.counts() for runs in masks])
    return [{'size': list(runs.size), 'counts': text} for runs, text in zip(masks, texts)]


def encode_rle(mask: np.ndarray, x: int, y: int, size: tuple[int, int]) -> dict:
    """COCO's compressed run lengths of a mask (h, w) at (x, y) of a photo of this size (H, W)."""
    return encode_runs([Runs(mask > 0, x, y, size)])[0]


def read_counts(text: str) -> list[int]:
    """COCO's compressed run lengths -> run lengths.

    A character less 48 holds five bits; 32 says that more follow, 16 in the last is the sign; every
    number after the third is the difference to the last but one.
    """
    counts = []
    value = 0
    shift = 0
    for character in text.encode():
        group = character - 48
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:                        # the last group of a number
            value -= (group & 16) << shift - 4
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = 0
            shift = 0
    return counts


def decode_rle(counts: list[int] | str, width: int, height: int) -> np.ndarray:
    """COCO's run lengths -> bool (H, W). The runs go down the columns; the first is of zeros."""
    if not isinstance(counts, list):
        counts = read_counts(counts)
    if sum(counts) != width * height or min(counts) < 0:  # a short string could claim all memory
        raise ValueError(f'run lengths of {sum(counts)} pixels for {width}x{height}')
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T
