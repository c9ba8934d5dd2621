"""How well a model finds people whose masks and keypoints are known, but not their parts.

found: people of at least 1 % of the photo with whom a detection has a mask IoU above 0.5 (for a
folder of photos, tools/count_people.py asks for at least 0.5).

false: detections whose mask has an IoU of at most 0.5 with everyone and is not half ignored.

keypoints right: the share of the visible keypoints of the people of at least 1 % at which the
person's best detection has a label that can be there (`skeleton.CAN_BE`). Those of people who are
not found are wrong.

side right: of the labels of arms, legs and shoes at elbows, wrists, knees and ankles of people who
are found, the share on the person's own side.
"""
import math
from dataclasses import dataclass, fields

import numpy as np

from util.datasets.coco import Person
from util.datasets.coco_file import KEYPOINTS
from util.masks import mask_ious
from util.skeleton import OUTER, VISIBLE, labels_at, side_of, split_name

SMALLEST_SHARE = 0.01                             # of the photo: smaller people are not looked for
IOU = 0.5                                         # of masks, above which a person is found


@dataclass
class Counts:
    """Sums over photos."""

    photos: int = 0
    people: int = 0                               # of at least 1 % of the photo
    found: int = 0
    detections: int = 0
    false: int = 0
    keypoints: int = 0                            # visible ones
    right: int = 0
    sided: int = 0                                # labels with a side where a side is judged
    own_side: int = 0

    def __add__(self, other: 'Counts') -> 'Counts':
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Counts(**sums)

    def shares(self) -> dict[str, float]:
        """The counts as metrics of a training: shares in 0..1, nan of nothing, and false people per
        180 photos."""
        return dict(
            keypoints_right=share(self.right, self.keypoints),
            found=share(self.found, self.people),
            false_per_180=180 * share(self.false, self.photos),
            side_right=share(self.own_side, self.sided))

    def summary(self) -> str:
        """One line of text."""
        per_180 = 180 * self.false / max(self.photos, 1)
        found = percent(self.found, self.people)
        return (f'{self.photos} photos: found {found} of {self.people} people, {self.false} of '
                f'{self.detections} detections false ({per_180:.0f} per 180 photos), keypoints '
                f'right {percent(self.right, self.keypoints)} of {self.keypoints}, side right '
                f'{percent(self.own_side, self.sided)} of {self.sided}')


class CountMetrics:
    """The counts of the images of a data set, with the methods of `evaluate.ParsingMetrics`."""

    def __init__(self):
        self.records = {}                         # {index: Counts of the image}

    def add(self, index: int, prediction, truth: tuple[list[Person], np.ndarray]):
        """Adds an image. prediction: with parsing (N, H, W) uint8. truth: people and ignore (H, W)
        bool, of `COCO.persons`."""
        self.records[index] = count_photo(prediction.parsing, *truth)

    def merge(self, other: 'CountMetrics'):
        """Adds the images of another CountMetrics."""
        self.records.update(other.records)

    def result(self) -> dict[str, float]:
        """`Counts.shares` of all images."""
        return sum(self.records.values(), Counts()).shares()


def share(part: int, whole: int) -> float:
    """In 0..1; nan of nothing."""
    return part / whole if whole else math.nan


def percent(part: int, whole: int) -> str:
    """The share of a part, as text; 'none' of nothing."""
    return f'{100 * part / whole:.1f} %' if whole else 'none'


def count_photo(parsing: np.ndarray, people: list[Person], ignore: np.ndarray) -> Counts:
    """Counts of one photo.

    parsing (N, H, W) uint8: label maps of the detections; people: those that are known; ignore
    (H, W) bool.
    """
    detections = parsing > 0
    masks = np.array([person.mask for person in people], bool).reshape(-1, *ignore.shape)
    ious = mask_ious(detections, masks)           # (N, M)
    counts = Counts(photos=1, detections=len(parsing))

    # A detection of nobody is false, unless half of it is ignored.
    for mask, row in zip(detections, ious):
        ignored = np.count_nonzero(mask & ignore) >= 0.5 * np.count_nonzero(mask)
        counts.false += int(row.max(initial=0) <= IOU and not ignored)

    # Each person who is large enough is found or not, and judged at the keypoints.
    for n, person in enumerate(people):
        if np.count_nonzero(person.mask) < SMALLEST_SHARE * ignore.size:
            continue
        found = ious[:, n].max(initial=0) > IOU
        counts.people += 1
        counts.found += int(found)
        if person.keypoints is not None:
            labels = parsing[ious[:, n].argmax()] if found else None
            count_keypoints(counts, labels, person.keypoints)
    return counts


def count_keypoints(counts: Counts, labels: np.ndarray | None, points: np.ndarray):
    """Adds the visible keypoints (17, 3) of one person to the counts. labels: the person's label
    map (H, W), or None if the person is not found."""
    for name, (x, y, v) in zip(KEYPOINTS, points):
        if v < VISIBLE:
            continue
        counts.keypoints += 1
        if labels is None:
            continue
        row = min(max(int(y), 0), labels.shape[0] - 1)
        column = min(max(int(x), 0), labels.shape[1] - 1)
        label = int(labels[row, column])
        counts.right += label in labels_at(name)
        side, joint = split_name(name)
        if joint in OUTER and side_of(label):
            counts.sided += 1
            counts.own_side += side_of(label) == side
