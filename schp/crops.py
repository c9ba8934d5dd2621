"""Crops of photos by 2x3 matrices, as cv2.warpAffine makes them, without cv2.

A matrix maps pixel (x, y) of the source to pixel (x, y) of the result. Pixel centers have integer
coordinates. Sizes are (height, width).
"""
import math

import numpy as np
import torch
import torch.nn.functional as F

# Of B, G, R in 0..1: the input of SCHP's networks.
MEAN = (0.406, 0.456, 0.485)
STD = (0.225, 0.224, 0.229)

# Pixels of a band of rows in `label_map`.
BAND = 2 ** 20


def crop_matrix(photo_size: tuple, size: tuple, scale: float = 1.0, rotation: float = 0.0,
                integer_center: bool = False) -> np.ndarray:
    """The matrix (2, 3), float64, that fits a photo of photo_size into a crop, as SCHP does.

    The photo's box (0, 0, width - 1, height - 1) is enlarged on one side to the aspect ratio of the
    crop, then by `scale`, and turned by `rotation` degrees about its center. Its width becomes
    width - 1 pixels of the crop.

    integer_center: truncate the center, as the released evaluation does. Maps that are warped back
    are then half a pixel off where a side of the photo is even."""
    height, width = photo_size
    crop_height, crop_width = size
    center = np.array([(width - 1) / 2, (height - 1) / 2])
    if integer_center:
        center = np.trunc(center)

    # The extent is at least 1 pixel: a photo may have a single one.
    extent = max(width - 1, (height - 1) * crop_width / crop_height, 1) * scale
    k = (crop_width - 1) / extent
    turn = math.radians(rotation)
    cos = math.cos(turn)
    sin = math.sin(turn)
    linear = k * np.array([[cos, sin], [-sin, cos]])
    shift = np.array([crop_width - 1, crop_height - 1]) / 2 - linear @ center
    return np.column_stack([linear, shift])


def invert(matrix: np.ndarray) -> np.ndarray:
    """The matrix (2, 3) of the way back."""
    return np.linalg.inv(np.vstack([matrix, (0, 0, 1)]))[:2]


def warp(image: torch.Tensor, matrix: np.ndarray, size: tuple, mode: str = 'bilinear',
         fill: float = 0) -> torch.Tensor:
    """image (C, H, W), float -> (C, *size): the value at pixel p is the image's at matrix^-1 p.

    mode: 'bilinear' or 'nearest' (for label maps); fill: the value outside the image. Equals cv2 up
    to rounding. cv2 before version 5 rounds bilinear weights to 1/32 pixel."""
    # The source of every pixel of the result, (H, W, 2) as (x, y), in pixels.
    y = np.arange(size[0])[:, None]
    x = np.arange(size[1])
    source = np.stack([a * x + b * y + c for a, b, c in invert(matrix)], -1)
    if mode == 'nearest':
        # cv2 rounds halves up.
        source = np.floor(source + 0.5)

    # In the units of grid_sample without aligned corners, which takes sides of 1 pixel, too.
    grid = (2 * source + 1) / (image.shape[2], image.shape[1]) - 1
    grid = torch.from_numpy(grid.astype(np.float32)).to(image.device)[None].to(image.dtype)
    result = F.grid_sample(image[None] - fill, grid, mode, 'zeros', align_corners=False)
    return result[0] + fill


def label_map(logits: torch.Tensor, matrix: np.ndarray, size: tuple) -> torch.Tensor:
    """logits (C, h, w), warped by `matrix` -> the class of the largest one, uint8 (*size).

    Works in bands of rows: C planes of a photo of 24 megapixels need too much memory at once."""
    rows = max(1, BAND // size[1])
    bands = []
    for top in range(0, size[0], rows):
        moved = matrix - [[0, 0, 0], [0, 0, top]]
        warped = warp(logits, moved, (min(rows, size[0] - top), size[1]))
        bands.append(warped.argmax(0).to(torch.uint8))
    return torch.cat(bands)


def crop(photo: np.ndarray, matrix: np.ndarray, size: tuple,
         device: str | torch.device = 'cpu') -> torch.Tensor:
    """RGB photo (H, W, 3), uint8 -> the network's input (3, *size), float32: warped, BGR,
    normalized. It is black outside the photo."""
    image = torch.tensor(photo, device=device).permute(2, 0, 1).float()
    image = warp(image, matrix, size).flip(0) / 255
    mean = image.new_tensor(MEAN)[:, None, None]
    std = image.new_tensor(STD)[:, None, None]
    return (image - mean) / std
