"""Label maps and masks: boxes, outlines, overlaps. Needs no torch."""
from copy import copy

import numpy as np
from PIL import Image

from util.files import UNKNOWN
from util.polygons import fill_polygon
from util.rle import decode_rle

MASK_SIDE = 256                                   # pixels: DensePose's part masks are squares


# ---- label maps of people ----------------------------------------------------------------------


def stack_people(maps: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Label maps (H, W) -> uint8 (N, H, W), without empty people (as in MHP's evaluator).

    size: (width, height), for a list without people.
    """
    return np.array([m for m in maps if m.any()], np.uint8).reshape(-1, size[1], size[0])


def as_label_maps(maps, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Array-like label maps of this shape (H, W) -> uint8 (N, H, W)."""
    maps = np.asarray(maps)
    if maps.size == 0 and (shape or maps.ndim == 3):
        return np.zeros((0, *(shape or maps.shape[1:])), np.uint8)
    if maps.ndim != 3 or maps.dtype.kind not in 'iub' or maps.min() < 0 or maps.max() > 255:
        raise ValueError(f'label maps are integers 0..255 of shape (N, H, W), not {maps.dtype} '
                         f'{maps.shape}')
    if shape and maps.shape[1:] != shape:
        raise ValueError(f'the predicted label maps are {maps.shape[1:]}, the ground truth is '
                         f'{shape}')
    return maps.astype(np.uint8, copy=False)


def flatten_people(parsing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """People (N, H, W), best first -> class map (H, W) uint8 and person map (H, W).

    The better person covers the others; person ids are 1, 2 .., uint16 above 255.
    """
    parts = np.zeros(parsing.shape[1:], np.uint8)
    people = np.zeros(parsing.shape[1:], np.uint8 if len(parsing) < 256 else np.uint16)
    for n in range(len(parsing) - 1, -1, -1):
        if parsing[n].any():
            x, y, w, h = box_of(parsing[n])
            box = slice(y, y + h), slice(x, x + w)
            labels = parsing[n][box]
            np.copyto(parts[box], labels, where=labels > 0)
            np.copyto(people[box], n + 1, where=labels > 0)
    return parts, people


def without_unknown(parsing: np.ndarray) -> np.ndarray:
    """Label maps uint8 with 0 in place of 255: for evaluators, and for pictures of parts."""
    return np.where(parsing == UNKNOWN, np.uint8(0), parsing)


# ---- boxes -------------------------------------------------------------------------------------


def box_of(mask: np.ndarray) -> list[int]:
    """Smallest box [x, y, width, height] in pixels around a mask (H, W) that is not empty."""
    rows = np.flatnonzero(mask.any(1))
    columns = np.flatnonzero(mask[rows[0]:rows[-1] + 1].any(0))
    return [int(columns[0]), int(rows[0]),
            int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]


class CroppedMap:
    """A label map (H, W) uint8 cropped to the box of its labels, with their numbers of pixels.

    y0, y1, x0, x1  the box in the image; box: its slices
    labels, mask    in the box: label map; bool, where it is not 0
    counts          pixels of each label 0..n - 1; 0 for label 0
    area            labeled pixels; unknown: those of labels from n on

    The arguments y0 and x0 are the start of the given map, if it is itself a crop of the image.
    """

    def __init__(self, label_map: np.ndarray, n: int, y0: int = 0, x0: int = 0):
        rows = np.flatnonzero(label_map.max(1))
        top, bottom = (rows[0], rows[-1] + 1) if len(rows) else (0, 0)
        columns = np.flatnonzero(label_map[top:bottom].max(0, initial=0))
        left, right = (columns[0], columns[-1] + 1) if len(columns) else (0, 0)
        self.y0 = y0 + top
        self.y1 = y0 + bottom
        self.x0 = x0 + left
        self.x1 = x0 + right
        self.box = slice(self.y0, self.y1), slice(self.x0, self.x1)
        self.count(label_map[top:bottom, left:right], n)

    def count(self, labels: np.ndarray, n: int):
        self.labels = labels
        self.mask = labels != 0
        counts = np.bincount(labels[self.mask], minlength=n)
        self.counts = counts[:n]
        self.area = int(counts.sum())
        self.unknown = int(counts[n:].sum())

    def relabel(self, labels: np.ndarray, n: int) -> 'CroppedMap':
        """The same box with other labels."""
        crop = copy(self)
        crop.count(labels, n)
        return crop


def split_map(ids: np.ndarray, rows: list[tuple[int, float, int]],
              n: int) -> tuple[list[CroppedMap], list[float], int]:
    """A map of ids (H, W) and rows (id, score, label) -> a cropped map of the label for each id.

    Returns the maps and scores of the ids that have pixels, and the number of ids without.
    """
    from scipy import ndimage                     # here: tools/onnx_parse.py works without scipy

    whole = slice(None), slice(None)
    boxes = {0: whole} | dict(enumerate(ndimage.find_objects(ids), 1))
    maps = []
    scores = []
    for i, score, label in rows:
        box = boxes.get(i)
        if not box:                               # None, or no such id: no pixel
            continue
        mask = (ids[box] == i) * np.uint8(label)
        crop = CroppedMap(mask, n, box[0].start or 0, box[1].start or 0)
        if crop.area:
            maps.append(crop)
            scores.append(score)
    return maps, scores, len(rows) - len(maps)


# ---- outlines of COCO and DensePose ------------------------------------------------------------


def coco_mask(segmentation, size: tuple[int, int]) -> np.ndarray:
    """COCO's polygons [[x, y, x, y, ..], ..] or run lengths -> bool (H, W).

    size: (width, height).
    """
    if isinstance(segmentation, dict):
        return decode_rle(segmentation['counts'], *size)
    mask = np.zeros(size[::-1], bool)
    for polygon in segmentation or ():
        mask |= fill_polygon(np.reshape(polygon, (-1, 2)), size)
    return mask


def paste_masks(masks: list, box: list[float], size: tuple[int, int]) -> np.ndarray:
    """DensePose's 14 part masks in run lengths ([]: absent) -> label map (H, W).

    The masks of 256 x 256 pixels are scaled to the box (x, y, width, height), in pixels. size:
    (width, height) of the image.
    """
    labels = np.zeros((MASK_SIDE, MASK_SIDE), np.uint8)
    for part, counts in enumerate(masks, 1):
        if counts:
            labels[decode_rle(counts, MASK_SIDE, MASK_SIDE)] = part
    x0, y0, w, h = map(int, box)
    x1 = min(x0 + w, size[0])                     # as in DensePose's notebook
    y1 = min(y0 + h, size[1])
    full = np.zeros(size[::-1], np.uint8)
    if x1 > x0 and y1 > y0:
        scaled = Image.fromarray(labels).resize((x1 - x0, y1 - y0), Image.NEAREST)
        full[y0:y1, x0:x1] = scaled
    return full


# ---- overlaps ----------------------------------------------------------------------------------


def mask_ious(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of masks (N, H, W) and (M, H, W), bool -> (N, M) float."""
    pixels = int(np.prod(first.shape[1:]))
    a = first.reshape(len(first), pixels).astype(np.float32)
    b = second.reshape(len(second), pixels).astype(np.float32)
    shared = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1) - shared
    return shared / np.maximum(union, 1)


def matrix_nms(masks: np.ndarray, scores: np.ndarray, kernel: str = 'gaussian',
               sigma: float = 2.0) -> np.ndarray:
    """Decayed scores (N,) of people, best first (SOLOv2, Wang et al. 2020, Sec. 3.3).

    masks (N, H, W) bool. decay_j = min over the better i of f(iou_ij) / f(iou of i and the better
    one most like it); kernel gaussian: f = exp(-sigma iou^2), linear: f = 1 - iou. sigma is that of
    its configuration.
    """
    flat = masks.reshape(len(masks), masks[0].size if len(masks) else 0).astype(np.float32)
    shared = flat @ flat.T
    area = flat.sum(1)
    union = area + area[:, None] - shared
    iou = np.triu(shared / np.maximum(union, 1), 1)           # row: better, column: worse
    own = iou.max(0, initial=0)[:, None]
    if kernel == 'gaussian':
        decay = np.exp(sigma * (own ** 2 - iou ** 2))
    else:
        decay = (1 - iou) / np.maximum(1 - own, 1e-6)
    better = np.triu(np.ones_like(iou), 1) > 0
    return scores * np.where(better, decay, 1).min(0, initial=1)
