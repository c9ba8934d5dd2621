"""The `released` recipe: what the authors' released code does differently from the paper, with its defects fixed
(docs/differences.md lists both), and the conversion of its checkpoints.
"""
import re
from collections import defaultdict

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from util.datasets import CIHP, MHP
from util.tensors import middle_and_extent, pad_to

NAMES = [(re.compile(released), here) for released, here in (
    (r'^neck\.lateral_convs\.(\d)\.conv\.', r'fpn.inner_blocks.\1.0.'),
    (r'^neck\.fpn_convs\.(\d)\.conv\.', r'fpn.layer_blocks.\1.0.'),
    (r'^(backbone\..*\.conv2)_offset\.', r'\1.conv_offset.'),                # as mmcv wrote it before version 2
    (r'^mask_head\.dekr_convs\.', 'neck.conv.'),
    (r'^mask_head\.segment_converts\.', 'category_neck.conv.'),
    (r'^mask_head\.center_heatmap\.', 'center_locator.heatmap.'),
    (r'^mask_head\.center_convs\.', 'center_locator.tower.convs.'),
    (r'^mask_head\.instance_convs\.', 'instance_builder.tower.convs.'),
    (r'^mask_head\.semantic_convs\.', 'category_builder.tower.convs.'),
    (r'^mask_head\.seg_kernels$', 'category_builder.k_cate'))]
UNUSED = 'mask_head.ins_coord_conv.'                                         # 2,306 weights that no forward uses
BLOCKS = {(2, 2, 2, 2): 'resnet18', (3, 4, 6, 3): 'resnet50', (3, 4, 23, 3): 'resnet101', (3, 8, 36, 3): 'resnet152'}
SETS = {58: MHP, 19: CIHP}                                                   # by number of classes


# ---- photos and labels -------------------------------------------------------------------------------------


def resize_photo(photo, size):
    """Pillow image -> size (width, height), bilinear without antialiasing."""
    scale = photo.width / size[0], 0, 0, 0, photo.height / size[1], 0
    return photo.transform(size, Image.AFFINE, scale, Image.BILINEAR)


def resize_labels(parsing, ignore, size):
    """The label under the upper left corner of each new pixel. size: (width, height)."""
    rows, cols = [np.arange(new) * old // new for new, old in zip(size[::-1], ignore.shape)]
    return parsing[:, rows[:, None], cols], ignore[rows[:, None], cols]


# ---- network -----------------------------------------------------------------------------------------------


def kernels(f, grid, training):
    """Features f (B, C, h, w) at the cells of the grid: in training f resized, in inference the pixel at each cell's
    upper left corner -> (B, C, S, S)."""
    if training:
        return F.interpolate(f, size=(grid, grid), mode='bilinear', align_corners=False)
    rows, cols = [torch.arange(grid, device=f.device) * n // grid for n in f.shape[-2:]]
    return f[:, :, rows][..., cols]


# ---- targets and losses ------------------------------------------------------------------------------------


def part_targets(parsing, size, num_classes):
    """Masks at stride 4, from the 4x4 pixels of a cell: a person where the middle 2x2 pixels are all its own; a part
    where two of them are, or, if that leaves the part without a cell, where any of the 16 is. Parts one pixel wide or
    high are left out. Returns persons (N, h, w), parts (N, K, h, w) bool, middles (N, K): the cell of a part's mean."""
    N, (h, w), K = len(parsing), (n // 4 for n in parsing.shape[1:]), num_classes
    labels = torch.where(parsing > K, K + 1, parsing.long())
    blocks = labels.view(N, h, 4, w, 4).permute(0, 2, 4, 1, 3)               # (N, 4, 4, h, w)
    middle, part = blocks[:, 1:3, 1:3].flatten(1, 2), labels.new_zeros(N, K + 2, h, w, dtype=torch.uint8)
    part = part.scatter_add(1, middle, torch.ones_like(middle, dtype=torch.uint8))[:, 1:-1] >= 2        # (N, K, h, w)
    some = labels.new_zeros(N, K + 2, h, w, dtype=torch.bool).scatter(1, blocks.flatten(1, 2), True)[:, 1:-1]
    part = torch.where(part.flatten(2).any(2)[:, :, None, None], part, some)
    (rows, height), (cols, width) = (part_extents(labels, K, axis) for axis in (1, 2))
    parts = pad_to(part & (height * width >= 1)[:, :, None, None], size)
    return dict(persons=pad_to((middle > 0).all(1), size), parts=parts, middles=rows // 4 * size[1] + cols // 4)


def part_extents(labels, K, axis):
    """Mean position and extent of each part along an axis of labels (N, H, W) -> (N, K) each."""
    N, n = len(labels), labels.shape[axis]
    position = torch.arange(n, device=labels.device).view((-1, 1) if axis == 1 else (1, -1))
    where = (torch.arange(N, device=labels.device).view(-1, 1, 1) * (K + 2) + labels) * n + position
    count = labels.new_zeros(N * (K + 2) * n).scatter_add(0, where.flatten(), torch.ones_like(labels).flatten())
    return middle_and_extent(count.view(N, K + 2, n)[:, 1:-1])


def person_maps(correlations, target):
    """The largest correlation with any positive cell of each person, at most 3x3 around the barycenter's: (N, h, w).
    correlations: cells (n,) -> (n, h, w)."""
    S, cells = target['regions'].shape[-1], target['cells'][:, None]
    step = torch.arange(-1, 2, device=cells.device)
    rows, cols = cells // S + step.repeat_interleave(3), cells % S + step.repeat(3)                     # (N, 9)
    near = rows.clamp(0, S - 1) * S + cols.clamp(0, S - 1)
    own = (rows >= 0) & (rows < S) & (cols >= 0) & (cols < S) & target['regions'].flatten(1).gather(1, near)
    q = correlations(near.flatten()).unflatten(0, (-1, 9))
    return (q * own[:, :, None, None]).amax(1)


def absent_category_loss(maps, targets, visible):
    """The mean square of the correlations above 0.1 with categories that are not visible (B, K)."""
    squares = count = 0
    for m, t, seen in zip(maps, targets, visible):
        q = m['q_cate'].flatten(1)
        high = (q > 0.1) * t['category_known']
        squares, count = squares + (q.square() * high).sum(1) @ (~seen).float(), count + (high.sum(1) * ~seen).sum()
    return squares / count.clamp(min=1)


def part_sums(parts, q_ins, q_cate):
    """Sums of t and of p*t for masks (N, K, h, w) that may overlap -> (N, K) each."""
    parts = parts.flatten(2).float()
    return parts.sum(2), torch.einsum('nkp,np,kp->nk', parts, q_ins, q_cate)


def metric_terms(out, targets, pull):
    """cos^2 of the pairs of categories, and of people of one image; with `pull` (CIHP) also (1 - s)^2 of the parts, s
    being the mean cosine of a part's pixels with the pixel at its mean. Those with cos, or 1 - s, above 0.04 count:
    returns lists of values and of weights for their mean."""
    values = []
    for kernels in [out['k_cate'], *(k.flatten(1).T[t['cells']] for k, t in zip(out['k_ins'], targets))]:
        values.append((kernels @ kernels.T).tril(-1).flatten())
    for f_cate, t in zip(out['f_cate'], targets) if pull else ():
        f, parts = f_cate.flatten(1).T, t['parts'].flatten(2).float()        # (hw, C), (N, K, hw)
        area = parts.sum(2)
        s = ((parts @ f) * f[t['middles']]).sum(2) / area.clamp(min=1)
        values.append(torch.where(area > 0, 1 - s, 0).flatten())
    return [v.square() for v in values], [v > 0.04 for v in values]


# ---- inference ---------------------------------------------------------------------------------------------


def is_corner_peak(heat):
    """Cells (S, S) that are the maximum of their 2x2 cells up and left: bool."""
    return heat == F.max_pool2d(heat[None], 2, 1, 1)[0, :-1, :-1]


def paint(parsing, maps, classes, size, theta):
    """Writes one person's labels into parsing (H0, W0) uint8: maps (k, h, w) x4 bilinear and cropped to the input's
    size; then bilinear to a smaller photo, or the labels by nearest to a larger one."""
    maps = F.interpolate(maps[None], scale_factor=4, mode='bilinear', align_corners=False)[..., :size[0], :size[1]]
    (H0, W0), (H, W) = parsing.shape, maps.shape[-2:]
    if H0 * W0 < H * W:
        maps = F.interpolate(maps, size=(H0, W0), mode='bilinear', align_corners=False)
    value, index = maps[0].max(0)
    label = torch.where(value > theta, classes[index] + 1, 0).to(torch.uint8)
    if H0 * W0 > H * W:
        label = F.interpolate(label[None, None], size=(H0, W0), mode='nearest')[0, 0]
    parsing[:] = label.cpu().numpy()


# ---- checkpoints -------------------------------------------------------------------------------------------


def is_released(state):
    """Whether a checkpoint is the released code's: {meta, state_dict, optimizer}, or the state_dict alone."""
    return any(str(k).removeprefix('module.') == 'mask_head.seg_kernels' for k in state.get('state_dict', state))


def convert(state, path):
    """A released checkpoint, as read from `path` -> preset, its changed settings, class names (or None), flip pairs,
    and the weights under our names."""
    weights = rename(state)
    shape = defaultdict(tuple, {k: tuple(v.shape) for k, v in weights.items()})
    num_classes, channels = shape['category_builder.k_cate']
    backbone = read_backbone(shape)
    if backbone is None or len(shape['neck.conv.weight']) != 4:
        raise ValueError(f'{path} looks like a checkpoint of the released UniParser but has no ResNet or no head')
    light, cihp = shape['neck.conv.weight'][2:] == (1, 1), num_classes == 19
    center = 0.1 if cihp else 0.3 if light else 0.2 if backbone == 'resnet50' else 0.1     # those of its configs
    changes = dict(num_classes=num_classes, backbone=backbone, light=light, theta_center=center, channels=channels,
                   neck_channels=shape['neck.conv.weight'][0], dcn=any('conv_offset' in k for k in weights),
                   pretrained_stages=4)
    names = SETS.get(num_classes)
    return ('cihp_released' if cihp else 'mhp_released', changes, names and names.class_names,
            names.flip_pairs if names else (), weights)


def rename(state):
    """The weights under our names, without those that no forward uses."""
    weights = {}
    for key, value in state.get('state_dict', state).items():
        key = key.removeprefix('module.')
        for released, here in NAMES:
            key = released.sub(here, key)
        if not key.startswith(UNUSED):
            weights[key] = value
    return weights


def read_backbone(shape):
    """The ResNet with as many blocks per stage; None if there is none."""
    blocks = [set(), set(), set(), set()]
    for key in shape:
        if match := re.match(r'backbone\.layer([1-4])\.(\d+)\.', key):
            blocks[int(match[1]) - 1].add(match[2])
    name = BLOCKS.get(tuple(map(len, blocks)))
    return 'resnet34' if name == 'resnet50' and 'backbone.layer1.0.conv3.weight' not in shape else name
