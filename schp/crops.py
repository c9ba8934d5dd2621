"""Crops of photos by 2x3 matrices, as cv2.warpAffine makes them, without cv2.

A matrix maps pixel (x, y) of the source to pixel (x, y) of the result; pixel centers have integer coordinates.
"""
import math

import numpy as np
import torch
import torch.nn.functional as F

MEAN, STD = (0.406, 0.456, 0.485), (0.225, 0.224, 0.229)  # of B, G, R in 0..1: the input of SCHP's networks


def as_array(photo):
    """A Pillow image or uint8 array -> uint8 (H,W,3), RGB."""
    array = photo if isinstance(photo, np.ndarray) else np.asarray(photo.convert('RGB'))
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f'photos are RGB Pillow images or uint8 arrays (H, W, 3), not {array.dtype} {array.shape}')
    return array


def crop_matrix(photo_size, size, scale=1.0, rotation=0.0, integer_center=False):
    """The matrix (2, 3) float64 that fits a photo of photo_size (H, W) into a crop of size (H, W), as SCHP's code does.

    The photo's box (0, 0, w-1, h-1) is enlarged on one side to the crop's aspect ratio, times `scale`, turned by
    `rotation` degrees about its center, and its width becomes size_w - 1 pixels. `integer_center` truncates the
    center, as the released evaluation does: maps warped back with it are half a pixel off where a side is even."""
    (height, width), (size_h, size_w) = photo_size, size
    center = np.array([(width - 1) / 2, (height - 1) / 2])
    center = np.trunc(center) if integer_center else center
    extent = max(width - 1, (height - 1) * size_w / size_h, 1) * scale           # 1: a photo of a single pixel
    k, turn = (size_w - 1) / extent, math.radians(rotation)
    linear = k * np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    return np.column_stack([linear, np.array([size_w - 1, size_h - 1]) / 2 - linear @ center])


def invert(matrix):
    """The matrix (2, 3) of the way back."""
    return np.linalg.inv(np.vstack([matrix, (0, 0, 1)]))[:2]


def warp(image, matrix, size, mode='bilinear', fill=0):
    """image (C, H, W) float tensor -> (C, *size): the value at result pixel p is the image's at matrix^-1 p.

    mode: 'bilinear' or 'nearest' (label maps); `fill` lies outside the image. Equals cv2 up to rounding; cv2 before
    version 5 quantizes bilinear weights to 1/32 pixel."""
    inverse = invert(matrix)
    y, x = np.arange(size[0])[:, None], np.arange(size[1])
    source = np.stack([a * x + b * y + c for a, b, c in inverse], -1)            # (H, W, 2) as (x, y), in pixels
    if mode == 'nearest':
        source = np.floor(source + 0.5)                                          # cv2 rounds halves up
    grid = (2 * source + 1) / (image.shape[2], image.shape[1]) - 1               # sides of 1 pixel work, too
    grid = torch.from_numpy(grid.astype(np.float32)).to(image.device)
    result = F.grid_sample(image[None] - fill, grid[None].to(image.dtype), mode, 'zeros', align_corners=False)
    return result[0] + fill


def label_map(logits, matrix, size):
    """logits (C, h, w) -> uint8 (*size): the class of the largest logit, warped by `matrix`.

    Works in bands of rows, so a photo of 24 megapixels does not need C planes of that size at once."""
    rows = max(1, 2 ** 20 // size[1])
    bands = []
    for top in range(0, size[0], rows):
        moved = matrix - [[0, 0, 0], [0, 0, top]]
        bands.append(warp(logits, moved, (min(rows, size[0] - top), size[1])).argmax(0).to(torch.uint8))
    return torch.cat(bands)


def crop(array, matrix, size, device='cpu'):
    """RGB uint8 (H,W,3) -> the network's input (3,*size): warped, BGR, normalized; black outside the photo."""
    image = torch.tensor(array, device=device).permute(2, 0, 1).float()
    image = warp(image, matrix, size).flip(0) / 255
    return (image - image.new_tensor(MEAN)[:, None, None]) / image.new_tensor(STD)[:, None, None]
