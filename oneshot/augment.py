"""Photos and label maps on their way into one-shot human parsing: checks, sizes, augmentation, the network's range."""
import numpy as np
from PIL import Image

from util.datasets import swap_sides
from oneshot.episodes import IGNORE, merge


def as_photo(photo):
    """A Pillow image, or a uint8 RGB array (H,W,3), as a Pillow RGB image."""
    if isinstance(photo, Image.Image):
        return photo.convert('RGB')
    if not isinstance(photo, np.ndarray) or photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
        raise ValueError('a photo is neither a Pillow image nor a uint8 array (H,W,3)')
    return Image.fromarray(photo)


def reduced(photo, long_side):
    """A Pillow photo whose longer side has at most `long_side` pixels."""
    scale = long_side / max(photo.size)
    size = [max(1, round(side * scale)) for side in photo.size]
    return photo if scale >= 1 else photo.resize(size, Image.BILINEAR)


def reduced_pair(image, labels, long_side):
    """The same for an image (H,W,3) and its labels (H,W), arrays; long_side 0 = as they are."""
    if not 0 < long_side < max(labels.shape):
        return image, labels
    image = reduced(Image.fromarray(image), long_side)
    return np.asarray(image), np.asarray(Image.fromarray(labels).resize(image.size, Image.NEAREST))


def label_rows(masks, most, stored):
    """The ids that uint8 label maps name, and a table (256) from id to row of the prototypes, 255 -> 255.

    The model has `most` classes. With `stored`, rows are the ids; else the ids in their order have the rows 1, 2, ..
    """
    for mask in masks:
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise ValueError(f'a mask has the form {mask.shape} {mask.dtype}; give label maps (H,W) of uint8')
    ids = [int(i) for i in np.unique(np.concatenate([np.unique(mask) for mask in masks])) if 0 < i < IGNORE]
    if not ids:
        raise ValueError('no mask has a class; label pixels of the support photo with ids from 1')
    if (max(ids) if stored else len(ids)) > most:
        raise ValueError(f'the masks name the ids {ids}; this model has {most} classes')
    rows = np.zeros(256, np.uint8)
    rows[ids], rows[IGNORE] = ids if stored else range(1, len(ids) + 1), IGNORE
    return ids, rows


def normalize(image):
    """uint8 RGB (H,W,3) -> float32 BGR (3,H,W) in -1..1, what the network reads."""
    return np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1) * np.float32(2 / 255) - 1)


def flip(image, labels, pairs):
    """Mirror (H,W,3) and (H,W) and swap the left and right ids of `pairs`: only for labels before `merge`."""
    return image[:, ::-1], swap_sides(labels[:, ::-1], pairs)


def scale_and_crop(image, labels, rng, size=512):
    """Scale width and height by independent factors of 0.5..2 and cut out a random square -> (size,size,3) and
    (size,size). What is missing on the right and at the bottom is black and IGNORE."""
    shape = [max(1, round(side * factor)) for side, factor in zip(labels.shape, rng.uniform(0.5, 2, 2))]
    top, left = (int(rng.integers(max(0, side - size) + 1)) for side in shape)
    box = (left, top, left + size, top + size)
    scaled = [Image.fromarray(np.ascontiguousarray(array)).resize(shape[::-1], method).crop(box) for array, method
              in ((image, Image.BILINEAR), (labels, Image.NEAREST))]
    image, labels = (np.array(picture) for picture in scaled)       # Pillow fills with 0, black
    labels[shape[0] - top:], labels[:, shape[1] - left:] = IGNORE, IGNORE
    return image, labels


def augment(image, labels, fold, rng, size=512):
    """What training does to a photo, query or support, and its labels as read -> merged labels; `normalize` is next."""
    if rng.random() < 0.5:
        image, labels = flip(image, labels, fold.merges.items())
    return scale_and_crop(image, merge(labels, fold), rng, size)
