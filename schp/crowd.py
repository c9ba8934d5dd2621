"""Parsing of several people from networks for one person: SCHP's multi-person extension.

A global network has parsed the whole photo, a local one the crop of each person, and an instance
segmentation gives a map of person ids (`choose_people`). `fuse_logits` joins the logits, and
`parse_people` makes instances of the parts. Arrays are (H, W, ..).
"""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from util.masks import box_of

# Ids are uint8, and 0 is nobody.
MOST_PEOPLE = 255

# Of the boxes of people, for the crops.
ENLARGE = 1.2


class CrowdParsing(NamedTuple):
    parsing: np.ndarray                 # (H, W), uint8: class
    people: np.ndarray                  # (H, W), uint8: person id, 0 = nobody's pixel
    parts: np.ndarray                   # (H, W): part id 1..P, 0 = none; uint16 where P > 255
    part_classes: list                  # P class ids, by person and then by class
    part_people: list                   # P person ids
    confidences: list                   # P means over the part of person score * logit of the class


class Person(NamedTuple):
    score: float
    box: tuple                          # inclusive corners (x0, y0, x1, y1)
    crop: tuple                         # the same, enlarged: what the local network sees


def choose_people(masks: np.ndarray, scores: Sequence[float],
                  min_score: float = 0.5) -> tuple[np.ndarray, list[Person]]:
    """Masks (N, H, W), bool, and scores (N,) -> a map (H, W), uint8, of person ids 1..K, the best
    first, and the K people.

    Left out are people below min_score, empty masks, and masks more than half of which better
    people hold already."""
    people = np.zeros(masks.shape[1:], np.uint8)
    chosen = []
    for n in np.argsort(-np.asarray(scores, float), kind='stable'):
        if scores[n] < min_score or len(chosen) == MOST_PEOPLE:
            break
        area = masks[n].sum()
        taken = (masks[n] & (people > 0)).sum()
        if not area or taken > 0.5 * area:
            continue
        x, y, width, height = box_of(masks[n])
        corners = (x, y, x + width - 1, y + height - 1)
        crop = enlarge((x, y, width, height), people.shape)
        chosen.append(Person(float(scores[n]), corners, crop))
        people[masks[n] & (people == 0)] = len(chosen)
    return people, chosen


def enlarge(box: Sequence[int], size: tuple) -> tuple:
    """Box [x, y, width, height] -> inclusive corners (x0, y0, x1, y1) of the box enlarged about its
    center, inside a photo of this size (height, width)."""
    x, y, width, height = box
    # As in the released code, the corner x + width is one pixel outside the box, and halves are
    # rounded to even numbers.
    border_x = width * (ENLARGE - 1) / 2
    border_y = height * (ENLARGE - 1) / 2
    return (max(0, round(x - border_x)), max(0, round(y - border_y)),
            min(size[1] - 1, round(x + width + border_x)),
            min(size[0] - 1, round(y + height + border_y)))


def fuse_logits(global_logits: np.ndarray,
                crops: Sequence[tuple[tuple, np.ndarray]]) -> np.ndarray:
    """Logits (H, W, C) of the whole photo, and of crops -> their sum (H, W, C), float32.

    crops: pairs of a box, inclusive corners (x0, y0, x1, y1), and its logits. Where crops overlap,
    a class has the mean of their logits, and the background their minimum. Pixels outside all crops
    are background, with an infinite logit."""
    size = global_logits.shape[:2]
    local = np.zeros(global_logits.shape, np.float32)
    background = np.full(size, np.inf, np.float32)
    count = np.zeros((*size, 1), np.float32)
    for (x0, y0, x1, y1), logits in crops:
        area = slice(y0, y1 + 1), slice(x0, x1 + 1)
        if logits.shape != local[area].shape:
            raise ValueError(f'the logits of crop {x0, y0, x1, y1} have shape {logits.shape}, '
                             f'not {local[area].shape}')
        local[area] += logits
        count[area] += 1
        background[area] = np.minimum(background[area], logits[..., 0])
    local /= np.maximum(count, 1)
    local[..., 0] = background
    return local + global_logits


def parse_people(logits: np.ndarray, people: np.ndarray, scores: Sequence[float]) -> CrowdParsing:
    """Fused logits (H, W, C), a map (H, W) of person ids 1..K (0 = none) and K scores -> parts.

    A part is the pixels of one class within one person. Parts then grow into pixels of their class
    that belong to nobody. The released code takes the number of ids it meets for K, so it drops the
    last person when another has no visible pixel; here every id keeps its person."""
    if people.max(initial=0) > len(scores):
        raise ValueError(f'the person map has id {people.max()}, but there are {len(scores)} '
                         'scores')
    parsing = logits.argmax(2).astype(np.uint8)
    people = np.where(parsing == 0, 0, people).astype(np.uint8)

    # Number the pairs of a person and a class, in this order. Those of person 0 are no parts.
    pairs, parts = np.unique(people.astype(np.int64) * 256 + parsing, return_inverse=True)
    nobody = np.searchsorted(pairs, 256)
    pairs = pairs[nobody:]
    parts = np.maximum(parts.reshape(parsing.shape) - nobody + 1, 0)
    parts = grow(parts, parsing)

    # By part id; 0 is no part.
    owners = np.append(0, pairs // 256)
    classes = np.append(0, pairs % 256)

    # The logit of a pixel's class is infinite outside the crops.
    logit = np.take_along_axis(logits, parsing[..., None].astype(np.int64), 2)[..., 0]
    values = np.append(0, scores)[owners[parts]] * np.where(parts > 0, logit, 0)
    confidences = np.asarray(ndimage.mean(values, parts, np.arange(1, len(pairs) + 1)))
    dtype = np.uint8 if len(pairs) < 256 else np.uint16
    return CrowdParsing(parsing, owners[parts].astype(np.uint8), parts.astype(dtype),
                        classes[1:].tolist(), owners[1:].tolist(), confidences.tolist())


def grow(parts: np.ndarray, parsing: np.ndarray) -> np.ndarray:
    """Part ids (H, W), 0 = none, and classes (H, W) -> part ids.

    Each 8-connected region of pixels that have one class and no part joins a part of this class
    that it touches: the one whose touching pixel comes first, row by row."""
    parts = parts.copy()
    order = np.arange(parts.size).reshape(parts.shape)
    for c in np.unique(parsing[parsing > 0]):
        regions, count = ndimage.label((parsing == c) & (parts == 0), np.ones((3, 3)))
        # The first pixel with a part around each pixel; `size` where there is none.
        first = np.where((parsing == c) & (parts > 0), order, parts.size)
        first = ndimage.minimum_filter(first, 3, mode='constant', cval=parts.size)
        # The first one around each region, and its part; 0 where the region touches none.
        first = np.asarray(ndimage.minimum(first, regions, np.arange(1, count + 1)), np.int64)
        found = np.append(0, np.append(parts, 0)[first])
        parts = np.where(regions > 0, found[regions], parts)
    return parts
