"""Parsing of several people from single-person networks: SCHP's multi-person extension.

A global network has parsed the whole photo, a local one the crop of each person, and an instance segmentation gives a
map of person ids (`choose_people`). `fuse_logits` joins the logits, `parse_people` makes instances of the parts. Arrays
are (H,W,..).
"""
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from util.masks import box_of


class CrowdParsing(NamedTuple):
    parsing: np.ndarray                 # uint8 (H,W): class
    people: np.ndarray                  # uint8 (H,W): person id, 0 = nobody's pixel
    parts: np.ndarray                   # (H,W): part id 1..P, 0 = none; uint8, or uint16 where P > 255
    part_classes: list                  # P class ids, by person and then by class
    part_people: list                   # P person ids
    confidences: list                   # P means over the part's pixels of person score * logit of the class


def choose_people(masks, scores, min_score=0.5):
    """Masks bool (N,H,W) and scores (N,) -> person map uint8 (H,W) of ids 1..K, best first, and K tuples (score, box,
    crop), inclusive corners (x0, y0, x1, y1); the crop is the box enlarged by 1.2.

    Left out are people below min_score, empty masks and those of which better people hold more than half."""
    people, chosen = np.zeros(masks.shape[1:], np.uint8), []
    for n in np.argsort(-np.asarray(scores, float), kind='stable'):
        area, taken = masks[n].sum(), (masks[n] & (people > 0)).sum()
        if scores[n] < min_score or len(chosen) == 255:
            break
        if not area or taken > 0.5 * area:
            continue
        x, y, w, h = box = box_of(masks[n])
        chosen.append((float(scores[n]), (x, y, x + w - 1, y + h - 1), enlarge(box, people.shape)))
        people[masks[n] & (people == 0)] = len(chosen)
    return people, chosen


def enlarge(box, size, factor=1.2):
    """Box [x, y, width, height] -> inclusive corners (x0, y0, x1, y1) of the box enlarged about its center, inside a
    photo of this size (H, W)."""
    x, y, w, h = box
    cx, cy, rx, ry = x + (w - 1) / 2, y + (h - 1) / 2, factor * w / 2, factor * h / 2
    return (max(0, int(cx - rx)), max(0, int(cy - ry)), min(size[1] - 1, int(cx + rx)),
            min(size[0] - 1, int(cy + ry)))


def fuse_logits(global_logits, crops):
    """global_logits (H,W,C) + local ones -> float32 (H,W,C). crops: list of (box, logits (h,w,C)); a box is inclusive
    (x0, y0, x1, y1), h = y1 - y0 + 1.

    Where crops overlap, a class has the mean of their logits and the background their minimum. Pixels outside all
    crops are background, with an infinite logit."""
    local = np.zeros(global_logits.shape, np.float32)
    background = np.full(global_logits.shape[:2], np.inf, np.float32)
    count = np.zeros((*global_logits.shape[:2], 1), np.float32)
    for (x0, y0, x1, y1), logits in crops:
        area = slice(y0, y1 + 1), slice(x0, x1 + 1)
        if logits.shape != local[area].shape:
            raise ValueError(f'the logits of crop {x0, y0, x1, y1} have shape {logits.shape}, not {local[area].shape}')
        local[area] += logits
        count[area] += 1
        background[area] = np.minimum(background[area], logits[..., 0])
    local /= np.maximum(count, 1)
    local[..., 0] = background
    return local + global_logits


def parse_people(logits, people, scores):
    """Fused logits (H,W,C), person map (H,W) of ids 1..K (0 = none), scores of the K people -> CrowdParsing.

    A part is the pixels of one class within one person. Parts then grow into pixels of their class that belong to
    nobody. The released code takes the number of ids it meets for K, so it drops the last person when another has no
    visible pixel; here every id keeps its person."""
    if people.max(initial=0) > len(scores):
        raise ValueError(f'the person map has id {people.max()}, but there are {len(scores)} scores')
    parsing = logits.argmax(2).astype(np.uint8)
    people = np.where(parsing == 0, 0, people).astype(np.uint8)
    pairs, parts = np.unique(people.astype(np.int64) * 256 + parsing, return_inverse=True)    # sorted: person, class
    nobody = np.searchsorted(pairs, 256)                  # pairs below 256 belong to person 0
    pairs, parts = pairs[nobody:], np.maximum(parts.reshape(parsing.shape) - nobody + 1, 0)
    parts = grow(parts, parsing)
    owners, classes = np.append(0, pairs // 256), np.append(0, pairs % 256)                   # by part id
    logit = np.take_along_axis(logits, parsing[..., None].astype(np.int64), 2)[..., 0]
    values = np.append(0, scores)[owners[parts]] * np.where(parts > 0, logit, 0)              # inf outside the crops
    confidences = np.asarray(ndimage.mean(values, parts, np.arange(1, len(pairs) + 1)))
    dtype = np.uint8 if len(pairs) < 256 else np.uint16
    return CrowdParsing(parsing, owners[parts].astype(np.uint8), parts.astype(dtype),
                        classes[1:].tolist(), owners[1:].tolist(), confidences.tolist())


def grow(parts, parsing):
    """Part ids (H,W), 0 = none, and classes (H,W) -> part ids. Each 8-connected region of pixels that have one class
    and no part joins a part of this class that it touches: the one whose touching pixel comes first, row by row."""
    parts = parts.copy()
    order, touching = np.arange(parts.size).reshape(parts.shape), np.ones((3, 3))
    for c in np.unique(parsing[parsing > 0]):
        regions, count = ndimage.label((parsing == c) & (parts == 0), touching)
        first = np.where((parsing == c) & (parts > 0), order, parts.size)
        first = ndimage.minimum_filter(first, 3, mode='constant', cval=parts.size)
        first = np.asarray(ndimage.minimum(first, regions, np.arange(1, count + 1)), np.int64)
        found = np.append(0, np.append(parts, 0)[first])  # the part of each region; 0 where it touches none
        parts = np.where(regions > 0, found[regions], parts)
    return parts
