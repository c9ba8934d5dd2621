"""Label maps and masks: boxes, run lengths both ways, pasting. Needs no torch."""
from copy import copy

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage


def stack_people(maps, size):
    """Label maps (H, W) -> uint8 (N, H, W), leaving out empty people (as in MHP's evaluator)."""
    return np.array([m for m in maps if m.any()], np.uint8).reshape(-1, size[1], size[0])


def as_label_maps(maps, shape=None):
    """Array-like label maps of this shape (H, W) -> uint8 (N, H, W)."""
    maps = np.asarray(maps)
    if maps.size == 0 and (shape or maps.ndim == 3):
        return np.zeros((0, *(shape or maps.shape[1:])), np.uint8)
    if maps.ndim != 3 or maps.dtype.kind not in 'iub' or maps.min() < 0 or maps.max() > 255:
        raise ValueError(f'label maps are integers 0..255 of shape (N, H, W), not {maps.dtype} {maps.shape}')
    if shape and maps.shape[1:] != shape:
        raise ValueError(f'the predicted label maps are {maps.shape[1:]}, the ground truth is {shape}')
    return maps.astype(np.uint8, copy=False)


def box_of(mask):
    """Smallest box [x, y, width, height] in pixels around a mask (H, W) that is not empty."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(cols[0]), int(rows[0]), int(cols[-1] - cols[0] + 1), int(rows[-1] - rows[0] + 1)]


class CroppedMap:
    """A label map (H, W) uint8 cropped to the box of its labels, and the number of pixels of each label.
    y0, x0: where the given map starts, if it is itself a crop of the image."""

    def __init__(self, label_map, n, y0=0, x0=0):
        rows = np.flatnonzero(label_map.max(1))
        top, bottom = (rows[0], rows[-1] + 1) if len(rows) else (0, 0)
        cols = np.flatnonzero(label_map[top:bottom].max(0, initial=0))
        left, right = (cols[0], cols[-1] + 1) if len(cols) else (0, 0)
        self.y0, self.y1, self.x0, self.x1 = y0 + top, y0 + bottom, x0 + left, x0 + right
        self.box = slice(self.y0, self.y1), slice(self.x0, self.x1)
        self.count(label_map[top:bottom, left:right], n)

    def count(self, labels, n):
        self.labels, self.mask = labels, labels != 0
        counts = np.bincount(labels[self.mask], minlength=n)
        self.counts, self.area = counts[:n], int(counts.sum())
        self.unknown = int(counts[n:].sum())

    def relabel(self, labels, n):
        """The same box with other labels."""
        crop = copy(self)
        crop.count(labels, n)
        return crop


def split_map(ids, rows, n):
    """Ids (H, W) and rows [(id, score, label)] -> cropped maps and scores of the ids that have pixels, and the
    number of ids without."""
    boxes = dict(enumerate(ndimage.find_objects(ids), 1)) | {0: (slice(None), slice(None))}
    found = [(boxes[i], i, score, label) for i, score, label in rows if boxes.get(i)]
    found = [(CroppedMap((ids[box] == i) * np.uint8(label), n, box[0].start or 0, box[1].start or 0), score)
             for box, i, score, label in found]
    found = [(crop, score) for crop, score in found if crop.area]
    return [crop for crop, _ in found], [score for _, score in found], len(rows) - len(found)


def flatten_people(parsing):
    """People (N, H, W), best first -> class map and person map (H, W) uint8; the better person covers the others."""
    parts, people = np.zeros(parsing.shape[1:], np.uint8), np.zeros(parsing.shape[1:], np.uint8)
    for n in range(len(parsing) - 1, -1, -1):
        mask = parsing[n] > 0
        parts[mask], people[mask] = parsing[n][mask], n + 1
    return parts, people


def encode_rle(mask, x, y, size):
    """COCO's compressed run lengths of a mask (h, w) at (x, y) of a photo of this size (H, W). Runs go down the columns
    and begin with zeros. Each is written as its difference to the run before the last, in groups of 5 bits, lowest
    first, as characters from '0' on."""
    columns = np.zeros((mask.shape[1], mask.shape[0] + 1), bool)             # each ends with a zero
    columns[:, :-1] = mask.T
    col, row = np.divmod(np.flatnonzero(np.diff(columns.ravel(), prepend=False)), columns.shape[1])
    edges = (col + x) * size[0] + row + y                                    # of the runs of ones: first, end, first ..
    joined = np.flatnonzero(np.diff(edges) == 0)                             # a run over the end of a column
    edges = np.delete(edges, [joined, joined + 1])
    runs = np.diff(edges, prepend=0, append=size[0] * size[1]).tolist()
    runs = runs[:-1] if len(runs) > 1 and runs[-1] == 0 else runs
    text = []
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        while True:
            group, value = value & 31, value >> 5
            last = value == (-1 if group & 16 else 0)
            text.append(chr(48 + group + (0 if last else 32)))
            if last:
                break
    return {'size': list(size), 'counts': ''.join(text)}


def decode_rle(counts, width, height):
    """COCO's run lengths -> bool (H, W). The runs go down the columns; the first is of zeros.

    In a compressed string a character less 48 holds five bits; 32 says that more follow, 16 in the last is
    the sign; every number after the third is the difference to the last but one.
    """
    if not isinstance(counts, list):
        text, counts, value, shift = counts, [], 0, 0
        for c in text.encode():
            value |= (c - 48 & 31) << shift
            shift += 5
            if not c - 48 & 32:
                value -= (c - 48 & 16) << shift - 4
                counts.append(value + (counts[-2] if len(counts) > 2 else 0))
                value = shift = 0
    if sum(counts) != width * height or min(counts) < 0:       # or a short string could claim all memory
        raise ValueError(f'run lengths of {sum(counts)} pixels for {width}x{height}')
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def paste_masks(masks, box, size):
    """14 run-length masks of 256x256 ([]: absent) -> label map (H, W), scaled to box (x, y, w, h), pixels."""
    labels, full = np.zeros((256, 256), np.uint8), np.zeros(size[::-1], np.uint8)
    for part, counts in enumerate(masks, 1):
        if counts:
            labels[decode_rle(counts, 256, 256)] = part
    x0, y0, w, h = map(int, box)
    x1, y1 = min(x0 + w, size[0]), min(y0 + h, size[1])           # as in DensePose's notebook
    if x1 > x0 and y1 > y0:
        full[y0:y1, x0:x1] = Image.fromarray(labels).resize((x1 - x0, y1 - y0), Image.NEAREST)
    return full


def coco_mask(segmentation, size):
    """COCO's polygons [[x, y, x, y, ..], ..] or run lengths -> bool (H, W)."""
    if isinstance(segmentation, dict):
        return decode_rle(segmentation['counts'], *size)
    mask = Image.new('1', size)
    for polygon in segmentation or ():
        ImageDraw.Draw(mask).polygon(polygon, fill=1)
    return np.array(mask)


def matrix_nms(masks, scores, kernel='gaussian', sigma=2.0):
    """Decayed scores (N,) of people, best first (SOLOv2, Wang et al. 2020, Sec. 3.3; sigma as in its configuration).
    masks (N, H, W) bool. decay_j = min over the better i of f(iou_ij) / f(iou of i and the better one most like it);
    kernel gaussian: f = exp(-sigma iou^2), linear: f = 1 - iou."""
    flat = masks.reshape(len(masks), masks[0].size if len(masks) else 0).astype(np.float32)
    shared, area = flat @ flat.T, flat.sum(1)
    iou = np.triu(shared / np.maximum(area + area[:, None] - shared, 1), 1)              # row: better, column: worse
    own = iou.max(0, initial=0)[:, None]
    if kernel == 'gaussian':
        decay = np.exp(sigma * (own ** 2 - iou ** 2))
    else:
        decay = (1 - iou) / np.maximum(1 - own, 1e-6)
    better = np.triu(np.ones_like(iou), 1) > 0
    return scores * np.where(better, decay, 1).min(0, initial=1)
