"""Seeded arrays that rebuild the inputs of the reference fixtures: weights, noise, photos, label maps.

seeded(name, shape) depends only on the key of the original state_dict and the shape (numpy's legacy RandomState), so a
checkpoint with the original keys is {k: torch.from_numpy(seeded(k, shape)) for k, shape in keys}.
"""
import zlib

import numpy as np


def seeded(name, shape, gain=1.0):
    """The array of a state_dict entry. A quarter of all norm scales are negative, on purpose."""
    r = np.random.RandomState(zlib.crc32(name.encode()) & 0x7fffffff)
    shape = tuple(shape)
    if name.endswith('num_batches_tracked'):
        return np.zeros(shape, np.int64)
    if name.endswith('running_mean'):
        a = 0.1 * r.standard_normal(shape)
    elif name.endswith('running_var'):
        a = 0.5 + r.random_sample(shape)
    elif name.endswith('bias'):
        a = 0.1 * r.standard_normal(shape)
    elif len(shape) == 1:                                 # scale of a norm
        a = (0.5 + r.random_sample(shape)) * np.where(r.random_sample(shape) < 0.25, -1.0, 1.0)
    elif len(shape) == 0:                                 # EOP-Net's scaler
        a = np.asarray(10.0)
    elif name.split('.')[-1] in ('prototype', 's1_prototype'):
        a = r.standard_normal(shape)
    else:
        a = gain * r.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return np.asarray(a, np.float32)


def noise(seed, shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def photo(seed, h, w):
    """A smooth picture, uint8 (h, w, 3), so that differences of resampling stay small."""
    r = np.random.RandomState(seed)
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    im = np.zeros((h, w, 3))
    for c in range(3):
        for _ in range(6):
            fy, fx, p, a = r.uniform(0, .15), r.uniform(0, .15), r.uniform(0, 6.28), r.uniform(10, 40)
            im[..., c] += a * np.sin(fy * y + fx * x + p)
    return np.clip(im + 128, 0, 255).astype(np.uint8)


def blobs(seed, h, w, ncls, n=40, ignore=None):
    """A label map of overlapping ellipses, uint8 (h, w); its first `ignore` columns are 255."""
    r = np.random.RandomState(seed)
    y, x = np.mgrid[0:h, 0:w]
    m = np.zeros((h, w), np.uint8)
    for _ in range(n):
        cy, cx, ry, rx, c = (r.uniform(0, h), r.uniform(0, w), r.uniform(2, h / 5), r.uniform(2, w / 5),
                             r.randint(0, ncls))
        m[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = c
    if ignore is not None:
        m[:, :ignore] = 255
    return m
