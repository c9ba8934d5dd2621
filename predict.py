"""From photos to people: the network's input, its outputs, and how they become one label map a person.

    H_c   -> cells above theta_center that are the maximum of 5x5 cells     find_centers   Eq. (2), WHERE
    Q_ins -> a person is where its correlation is above theta_mask          decode         Eq. (2), Sec. 3.4, index
    Q_cate -> classes that correlate well enough inside the person          part_scores
          -> at the photo's size, the class of the largest correlation      paint

People are capped before anything is enlarged, only the classes a person has are, only in the person's box, and what
leaves the device is uint8: no map of N people times K classes is built.
"""
import os
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from data import normalize, read_photo, resize_photo, scaled_size, to_rgb
from uniparser import correlate


class Parsing(NamedTuple):
    """People of one photo, best first. parsing (N, H0, W0) uint8, scores (N,) in 0..1, centers (N, 2) pixels (x, y)."""
    parsing: np.ndarray
    scores: np.ndarray
    centers: np.ndarray


@torch.no_grad()
def predict(model, photos, batch_size=8):
    """People of one photo or of a list of photos -> list of Parsing, each at its photo's own size.

    A photo is a path, a PIL image, an RGB array (H, W, 3) or (H, W) uint8, or a tensor (3, H, W), uint8 or float in
    0..1. Photos are batched only with those that fill the same padded size, so that no result depends on the company.
    Errors: FileNotFoundError, ValueError naming the photo.
    """
    single = isinstance(photos, (str, os.PathLike, Image.Image)) or getattr(photos, 'ndim', 4) < 4
    photos = [to_photo(photo) for photo in ([photos] if single else photos)]
    groups, results = {}, [None] * len(photos)
    for i, photo in enumerate(photos):
        groups.setdefault(input_size(photo, model.config)[0], []).append(i)
    for members in groups.values():
        for start in range(0, len(members), batch_size):
            chunk = members[start:start + batch_size]
            out = outputs(model, torch.cat([prepare(photos[i], model.config) for i in chunk]))
            for k, i in enumerate(chunk):
                results[i] = decode(out, k, photos[i], model.config)
    return results


def input_size(photo, config):
    """(H, W) of the network's input for a Pillow image: padded to multiples of 32, and without the padding."""
    w, h = scaled_size(photo.width, photo.height, config.test_short_side, config.long_side)
    return (-(-h // 32) * 32, -(-w // 32) * 32), (h, w)


def prepare(photo, config):
    """Pillow image -> the network's input (1, 3, H, W) float32, padded with zeros."""
    padded, (h, w) = input_size(photo, config)
    image = torch.zeros(1, 3, *padded)
    image[0, :, :h, :w] = normalize(resize_photo(photo, (w, h), config.recipe))
    return image


@torch.no_grad()
def outputs(model, images):
    """What the network returns for its input (B, 3, H, W), as float32."""
    out = model.eval()(images.to(model.device, memory_format=torch.channels_last))
    return {k: v.float() if torch.is_tensor(v) else v for k, v in out.items()}


def decode(out, i, photo, config):
    """Outputs for image i, which was `photo` (only its width and height are used) -> Parsing."""
    padded, size = input_size(photo, config)
    cells, scores = find_centers(out['heatmap'][i, 0], config)                             # (N,), (N,)
    k_ins = out['k_ins'][i].flatten(1).T[cells]                                            # (N, C)
    q_ins = correlate(k_ins, out['f_ins'][i], config.space)                                # (N, h, w)  Eq. (2)
    q_cate = correlate(out['k_cate'], out['f_cate'][i], config.space)                      # (K, h, w)  Eq. (3)
    parsing = np.zeros((len(cells), photo.height, photo.width), np.uint8)
    if config.fusion == 'index':
        inside = q_ins > config.theta_mask
        kept = part_scores(inside, q_cate, config.theta_mask) > config.theta_part          # (N, K)
    for n in range(len(cells)):
        if config.fusion == 'index':
            classes = kept[n].nonzero()[:, 0]
            maps = inside[n] * q_cate[classes]                                             # Sec. 3.4
        else:
            maps = out['fuse'](q_ins[n:n + 1], q_cate, out['f_cate'][i])[0]
            everywhere = torch.ones_like(maps[:1], dtype=torch.bool)
            classes = (part_scores(everywhere, maps, config.theta_mask)[0] > config.theta_part).nonzero()[:, 0]
            maps = maps[classes]
        if len(classes):
            (paint if config.recipe == 'paper' else paint_released)(parsing[n], maps, classes, size, config.theta_mask)
    x, y = ((2 * cell + 1) / (2 * config.grid) for cell in (cells % config.grid, cells // config.grid))
    centers = torch.stack([x * padded[1] / size[1] * photo.width, y * padded[0] / size[0] * photo.height], 1)
    found = parsing.any(axis=(1, 2)) | (config.recipe == 'released')                       # it returns the empty ones
    people = parsing, scores.cpu().numpy(), centers.cpu().numpy()
    return Parsing(*people) if found.all() else Parsing(*(a[found] for a in people))       # a copy is all of it twice


def find_centers(heatmap, config):
    """Sigmoid of Eq. (1) and WHERE(H_c > theta_c) of Eq. (2), kept to local maxima of 5x5 cells: the target of a person
    is a rectangle of cells, so without that each would be found many times. heatmap (S, S) logits -> cells (N,) =
    row * S + column, scores (N,) descending, at most max_people."""
    scores, cells = keep_peaks(heatmap.float().sigmoid(), config).flatten().sort(descending=True, stable=True)
    found = (scores > config.theta_center).nonzero()[:config.max_people, 0]
    return cells[found], scores[found]


def keep_peaks(heat, config):
    """Heat map (S, S) -> the same, 0 where it is not the maximum of 5x5 cells."""
    if config.recipe == 'released':                       # ... and of the 2x2 cells up and left, before the 5x5 test
        heat = heat * (heat == F.max_pool2d(heat[None], 2, 1, 1)[0, :-1, :-1])
    return heat * (heat == F.max_pool2d(heat[None], 5, 1, 2)[0])


def part_scores(gate, q, theta):
    """Mean correlation of each class inside each person (released code, "maskness"): the sum of those above theta over
    the number of those above 0.1. gate (N, h, w) bool, q (K, h, w) -> (N, K)."""
    gate = gate.flatten(1).float()
    q = q.flatten(1)
    return gate @ (q * (q > theta)).T / (gate @ (q > 0.1).float().T + 1e-5)


def paint(parsing, maps, classes, size, theta):
    """Writes one person's labels into parsing (H0, W0) uint8. maps (k, h, w): correlations of the given classes
    (0-based), zero outside the person. A pixel takes the class of the largest value where that exceeds theta."""
    best = maps.amax(0) > theta                                              # where all are below, so are their means
    rows, cols = (best.any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
    if not rows:
        return
    y = bilinear_taps(maps.shape[1], size[0] / 4, parsing.shape[0], rows[0], rows[-1], maps.device)
    x = bilinear_taps(maps.shape[2], size[1] / 4, parsing.shape[1], cols[0], cols[-1], maps.device)
    strip = max(1, 2 ** 24 // (len(maps) * len(x[1])))                       # rows at a time: 64 MB
    for start in range(0, len(y[1]), strip):
        y0, y1, wy = (tap[start:start + strip] for tap in y[1:])
        part = torch.lerp(maps[:, y0], maps[:, y1], wy[:, None])
        value, index = torch.lerp(part[..., x[1]], part[..., x[2]], x[3]).max(0)
        label = torch.where(value > theta, classes[index] + 1, 0).to(torch.uint8).cpu().numpy()
        parsing[y[0] + start:y[0] + start + len(y0), x[0]:x[0] + len(x[1])] = label


def bilinear_taps(cells, used, pixels, first, last, device):
    """Along one axis: `used` (real) of the feature map's `cells` cover the photo's `pixels`. For the pixels that cells
    first..last reach: (first pixel, lower cell, upper cell, weight of the upper), centers on centers."""
    source = (np.arange(pixels) + 0.5) * (used / pixels) - 0.5
    source = source.clip(0, cells - 1)
    low = np.floor(source).astype(np.int64)
    high = np.minimum(low + 1, cells - 1)
    start, stop = np.searchsorted(high, first), np.searchsorted(low, last, side='right')
    low, high, weight = low[start:stop], high[start:stop], (source - low)[start:stop].astype(np.float32)
    return int(start), *(torch.from_numpy(a).to(device) for a in (low, high, weight))


def paint_released(parsing, maps, classes, size, theta):
    """As the released code: x4 bilinear and cropped to the input's size; then bilinear to a smaller photo, or the
    labels by nearest to a larger one."""
    maps = F.interpolate(maps[None], scale_factor=4, mode='bilinear', align_corners=False)[..., :size[0], :size[1]]
    (H0, W0), (H, W) = parsing.shape, maps.shape[-2:]
    if H0 * W0 < H * W:
        maps = F.interpolate(maps, size=(H0, W0), mode='bilinear', align_corners=False)
    value, index = maps[0].max(0)
    label = torch.where(value > theta, classes[index] + 1, 0).to(torch.uint8)
    if H0 * W0 > H * W:
        label = F.interpolate(label[None, None], size=(H0, W0), mode='nearest')[0, 0]
    parsing[:] = label.cpu().numpy()


def to_photo(photo):
    """Path, PIL image, array or tensor -> upright RGB PIL image."""
    if isinstance(photo, (str, os.PathLike)):
        return read_photo(photo)
    if isinstance(photo, Image.Image):
        return to_rgb(photo)
    if isinstance(photo, torch.Tensor) and photo.ndim == 3:
        if photo.is_floating_point() and photo.numel() and 0 <= photo.min() and photo.max() <= 1:
            photo = (photo * 255).round().to(torch.uint8)
        photo = photo.permute(1, 2, 0).cpu().numpy()
    if not isinstance(photo, np.ndarray) or photo.dtype != np.uint8 or photo.shape[2:] not in ((), (3,)):
        kind = f'{getattr(photo, "dtype", "")} {getattr(photo, "shape", type(photo).__name__)}'
        raise ValueError('a photo is a path, a PIL image, an array (H, W, 3) uint8 or a tensor (3, H, W) uint8 or '
                         f'float in 0..1, not {kind}')
    return to_rgb(Image.fromarray(photo))
