"""Tensor functions that the paper's and the released recipe share."""
import numpy as np
import torch
import torch.nn.functional as F


def resize_map(x, size):
    """Bilinear, corners aligned, as the released code resizes feature maps. (B, C, h, w) -> (B, C, *size)."""
    return F.interpolate(x, size=size, mode='bilinear', align_corners=True)


def pad_to(labels, size):
    """(..., h', w') zero-padded at the right and bottom to size: the released light map is larger than the labels."""
    return F.pad(labels, (0, size[1] - labels.shape[-1], 0, size[0] - labels.shape[-2]))


def middle_and_extent(count):
    """Number of pixels at each of n positions (..., n) -> their mean position, truncated; the largest minus the
    smallest position."""
    index, some = torch.arange(count.shape[-1], device=count.device), (count > 0).int()
    middle = (count * index).sum(-1) // count.sum(-1).clamp(min=1)
    return middle, (len(index) - 1 - some.flip(-1).argmax(-1) - some.argmax(-1)).clamp(min=0)


def bilinear_taps(cells, used, pixels):
    """Bilinear weights along one axis, centers on centers, where `used` (real) of the map's `cells` cover `pixels`:
    the lower cell of each pixel, the upper cell, and the weight of the upper, as arrays."""
    source = (np.arange(pixels) + 0.5) * (used / pixels) - 0.5
    source = source.clip(0, cells - 1)
    low = np.floor(source).astype(np.int64)
    return low, np.minimum(low + 1, cells - 1), (source - low).astype(np.float32)
