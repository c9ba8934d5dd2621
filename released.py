"""The recipe `released`: every place where the authors' released code differs from the paper by
more than a number, and the conversion of its checkpoints.

Its numbers and switches are the presets `mhp_released` and `cihp_released` of util/config.py.
`config.choose(paper, released)` picks between the paper's function and the one here. Defects of the
released code are corrected; docs/differences.md lists both, differences and defects.

    what                     paper, or usual          released code               here
    resizing of photos       antialiased              plain bilinear              resize_photo
    resizing of labels       each new pixel's middle  its upper left corner       resize_labels
    pixel of a cell          the middle one           the corner one, or resized  corner_pixels
    maximum of the heat map  of 5x5 cells             also of 2x2 cells           keep_corner_peaks
    painting                 at the photo's size      x4, then the photo's paint
    padding of light's 1x1   none                     1, so maps are larger       uniparser.Neck
    bias of the category     0                        that of the heat map        UniParser
      branch's compression
    people without pixels    left out                 returned                    uniparser.decode
    positive cells           of one person each       may be shared               ReleasedLoss
    a person's map           its barycenter's kernel  largest of up to 9 kernels  ReleasedLoss
    labels at stride 4       pixel (2, 2) of 4x4      pixel (0, 0)                ReleasedLoss
    part masks at stride 4   pixel (2, 2) of 4x4      the middle four, or any     part_targets
    parts one pixel wide     count                    left out                    part_targets
    people without a pixel   out of Eq. (5)           in it                       ReleasedLoss
      at stride 4
    Eq. (5), categories      mean over all            mean over the visible ones  ReleasedLoss
    Eq. (5), absent classes  l1                       mean square above 0.1       ReleasedLoss
    Eq. (6)                  l1 to the identity       mean square above 0.04      ReleasedLoss
    Sec. 6.5, pull           a term of its own        inside the metric loss      ReleasedLoss
"""
import re
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from correlation import correlate
from losses import (Targets, UniParserLoss, masked_mean, middle_and_extent, pad_to,
                    positive_cells)
from util.datasets import CIHP, MHP

# -------------------------------------------------------------------------------------------------
# Photos and labels


def resize_photo(photo: Image.Image, size: tuple) -> Image.Image:
    """Pillow image -> size (width, height), bilinear without antialiasing."""
    scale = photo.width / size[0], 0, 0, 0, photo.height / size[1], 0
    return photo.transform(size, Image.AFFINE, scale, Image.BILINEAR)


def resize_labels(parsing: np.ndarray, ignore: np.ndarray,
                  size: tuple) -> tuple[np.ndarray, np.ndarray]:
    """The label under the upper left corner of each new pixel. size: (width, height)."""
    width, height = size
    rows = np.arange(height) * ignore.shape[0] // height
    cols = np.arange(width) * ignore.shape[1] // width
    return parsing[:, rows[:, None], cols], ignore[rows[:, None], cols]


# -------------------------------------------------------------------------------------------------
# Network and inference


def corner_pixels(f: torch.Tensor, grid: int, training: bool) -> torch.Tensor:
    """Features f (B, C, h, w) at the cells of the grid: in training f resized, in inference the
    pixel at each cell's upper left corner -> (B, C, S, S)."""
    if training:
        return F.interpolate(f, size=(grid, grid), mode='bilinear', align_corners=False)
    cell = torch.arange(grid, device=f.device)
    rows = cell * f.shape[-2] // grid
    cols = cell * f.shape[-1] // grid
    return f[:, :, rows][..., cols]


def keep_corner_peaks(heatmap: torch.Tensor) -> torch.Tensor:
    """Logits (S, S) -> the same, -inf where they are not the maximum of the 2x2 cells up and
    left."""
    highest = F.max_pool2d(heatmap[None], 2, 1, 1)[0, :-1, :-1]
    return heatmap.masked_fill(heatmap != highest, -torch.inf)


def paint(parsing: np.ndarray, maps: torch.Tensor, classes: torch.Tensor, size: tuple,
          theta: float):
    """Writes one person's labels into parsing (H0, W0) uint8, and nothing elsewhere: maps (k, h, w)
    x4 bilinear and cropped to the input's size; then bilinear to a smaller photo, or the labels by
    nearest to a larger one."""
    maps = F.interpolate(maps[None], scale_factor=4, mode='bilinear', align_corners=False)
    maps = maps[..., :size[0], :size[1]]
    pixels = maps.shape[-2] * maps.shape[-1]
    if parsing.size < pixels:
        maps = F.interpolate(maps, size=parsing.shape, mode='bilinear', align_corners=False)
    value, index = maps[0].max(0)
    label = torch.where(value > theta, classes[index] + 1, 0).to(torch.uint8)
    if parsing.size > pixels:
        label = F.interpolate(label[None, None], size=parsing.shape, mode='nearest')[0, 0]
    label = label.cpu().numpy()
    np.copyto(parsing, label, where=label > 0)


# -------------------------------------------------------------------------------------------------
# Losses


@dataclass
class ReleasedTargets(Targets):
    """Besides those of the paper:

    parts            (N, K, h, w) bool    the pixels of each part, which may overlap
    middles          (N, K) int64         the cell row * w + column of each part's mean
    """
    parts: torch.Tensor
    middles: torch.Tensor


class ReleasedLoss(UniParserLoss):
    """The losses of the released code."""
    first_pixel = 0

    def __init__(self, config, fusion=None):
        # CIHP: the metric loss pulls the pixels of a part together, and there is no term of its own
        # for it.
        super().__init__(replace(config, lambda_pull=0.0), fusion)
        self.pull = config.lambda_pull > 0

    def make_targets(self, parsing, ignore, size):
        targets = vars(super().make_targets(parsing, ignore, size))
        persons, parts, middles = part_targets(parsing, size, self.config.num_classes)
        return ReleasedTargets(**{**targets, 'persons': persons}, parts=parts, middles=middles)

    def center_cells(self, parsing, size):
        """A cell belongs to everyone whose rectangle holds it."""
        return positive_cells(parsing, size, self.config)

    def person_maps(self, k_ins, f_ins, target):
        """The largest correlation with any positive cell of each person, at most 3x3 around the
        barycenter's."""
        S = self.config.grid
        step = torch.arange(-1, 2, device=target.cells.device)
        rows = target.cells[:, None] // S + step.repeat_interleave(3)  # (N, 9)
        cols = target.cells[:, None] % S + step.repeat(3)
        near = rows.clamp(0, S - 1) * S + cols.clamp(0, S - 1)
        is_own = (rows >= 0) & (rows < S) & (cols >= 0) & (cols < S)
        is_own = is_own & target.regions.flatten(1).gather(1, near)
        q = correlate(k_ins[near.flatten()], f_ins, self.config.space).unflatten(0, (-1, 9))
        return (q * is_own[:, :, None, None]).amax(1)

    def is_seen(self, target, area):
        """Also people without pixels at stride 4."""
        return (area > 0) | ~target.persons.flatten(1).any(1)

    def category_loss(self, maps, targets):
        """The mean over the visible categories instead of all; of all others, the mean square of
        the correlations above 0.1."""
        dice, visible = self.category_dice(maps, targets)
        squares = 0
        count = 0
        for m, t, seen in zip(maps, targets, visible):
            q = m.q_cate.flatten(1)
            high = (q > 0.1) * t.category_known
            squares = squares + (q.square() * high).sum(1) @ (~seen).float()
            count = count + (high.sum(1) * ~seen).sum()
        return masked_mean([dice], [visible]), squares / count.clamp(min=1)

    def parsing_sums(self, m, t, f_cate):
        """Parts may overlap, unlike labels."""
        pt, pp, area = super().parsing_sums(m, t, f_cate)
        if self.config.fusion == 'index':
            parts = (t.parts * t.known).flatten(2).float()      # (N, K, hw)
            area = parts.sum(2)
            q_ins = m.q_ins.flatten(1)
            q_cate = F.relu(m.q_cate.flatten(1))
            pt = torch.einsum('nkp,np,kp->nk', parts, q_ins, q_cate)
        return pt, pp, area

    def metric_loss(self, out, targets):
        """cos^2 of the pairs of categories, and of people of one image; with `pull` (CIHP) also (1
        - s)^2 of the parts, s being the mean cosine of a part's pixels with the pixel at its mean.
        The mean over those with cos, or 1 - s, above 0.04."""
        people = [k_ins.flatten(1).T[t.cells] for k_ins, t in zip(out['k_ins'], targets)]
        values = []
        for kernels in [out['k_cate'], *people]:
            values.append((kernels @ kernels.T).tril(-1).flatten())
        if self.pull:
            for f_cate, t in zip(out['f_cate'], targets):
                f = f_cate.flatten(1).T                         # (hw, C)
                parts = t.parts.flatten(2).float()              # (N, K, hw)
                area = parts.sum(2)
                s = ((parts @ f) * f[t.middles]).sum(2) / area.clamp(min=1)
                values.append(torch.where(area > 0, 1 - s, 0).flatten())
        return masked_mean([v.square() for v in values], [v > 0.04 for v in values])


# `make_loss` of losses.py chooses between both, but this file imports that one.
UniParserLoss.released = ReleasedLoss


def part_targets(parsing: torch.Tensor, size: tuple,
                 num_classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Masks at stride 4, from the 4x4 pixels of a cell: a person where the middle 2x2 pixels are
    all its own; a part where two of them are, or, if that leaves the part without a cell, where any
    of the 16 is. Parts one pixel wide or high are left out. Returns persons (N, h, w), parts (N, K,
    h, w) bool, middles (N, K): the cell of a part's mean."""
    N = len(parsing)
    K = num_classes
    h = parsing.shape[1] // 4
    w = parsing.shape[2] // 4
    labels = torch.where(parsing > K, K + 1, parsing.long())
    blocks = labels.view(N, h, 4, w, 4).permute(0, 2, 4, 1, 3)  # (N, 4, 4, h, w)
    middle = blocks[:, 1:3, 1:3].flatten(1, 2)                  # (N, 4, h, w)

    # Two of the middle four pixels; else any of the 16.
    votes = labels.new_zeros(N, K + 2, h, w, dtype=torch.uint8)
    votes = votes.scatter_add(1, middle, torch.ones_like(middle, dtype=torch.uint8))[:, 1:-1]
    part = votes >= 2                                           # (N, K, h, w)
    some = labels.new_zeros(N, K + 2, h, w, dtype=torch.bool)
    some = some.scatter(1, blocks.flatten(1, 2), True)[:, 1:-1]
    part = torch.where(part.flatten(2).any(2)[:, :, None, None], part, some)

    rows, height = part_extents(labels, K, axis=1)
    cols, width = part_extents(labels, K, axis=2)
    wide = (height * width >= 1)[:, :, None, None]
    persons = pad_to((middle > 0).all(1), size)
    return persons, pad_to(part & wide, size), rows // 4 * size[1] + cols // 4


def part_extents(labels, K, axis):
    """Mean position and extent of each part along an axis of labels (N, H, W) -> (N, K) each."""
    N = len(labels)
    n = labels.shape[axis]
    position = torch.arange(n, device=labels.device).view((-1, 1) if axis == 1 else (1, -1))
    person = torch.arange(N, device=labels.device).view(-1, 1, 1)
    # The number of pixels of each person, label and position.
    where = (person * (K + 2) + labels) * n + position
    count = labels.new_zeros(N * (K + 2) * n)
    count = count.scatter_add(0, where.flatten(), torch.ones_like(labels).flatten())
    return middle_and_extent(count.view(N, K + 2, n)[:, 1:-1])


# -------------------------------------------------------------------------------------------------
# Checkpoints

# Names in released files -> names here.
NAMES = [
    (r'^neck\.lateral_convs\.(\d)\.conv\.', r'fpn.inner_blocks.\1.0.'),
    (r'^neck\.fpn_convs\.(\d)\.conv\.', r'fpn.layer_blocks.\1.0.'),
    (r'^(backbone\..*\.conv2)_offset\.', r'\1.conv_offset.'),   # as mmcv wrote it before version 2
    (r'^mask_head\.dekr_convs\.', 'neck.conv.'),
    (r'^mask_head\.segment_converts\.', 'category_neck.conv.'),
    (r'^mask_head\.center_heatmap\.', 'center_locator.heatmap.'),
    (r'^mask_head\.center_convs\.', 'center_locator.tower.convs.'),
    (r'^mask_head\.instance_convs\.', 'instance_builder.tower.convs.'),
    (r'^mask_head\.semantic_convs\.', 'category_builder.tower.convs.'),
    (r'^mask_head\.seg_kernels$', 'category_builder.k_cate')]
# 2,306 weights that no forward uses.
UNUSED = 'mask_head.ins_coord_conv.'
BLOCKS = {(2, 2, 2, 2): 'resnet18', (3, 4, 6, 3): 'resnet50', (3, 4, 23, 3): 'resnet101',
          (3, 8, 36, 3): 'resnet152'}
# Data sets by their number of classes.
SETS = {58: MHP, 19: CIHP}


def is_released(state: dict) -> bool:
    """Whether a checkpoint is the released code's: {meta, state_dict, optimizer}, or the state_dict
    alone."""
    keys = state.get('state_dict', state)
    return any(str(key).removeprefix('module.') == 'mask_head.seg_kernels' for key in keys)


def convert(state: dict, path) -> tuple[str, dict, tuple | None, tuple, dict]:
    """A released checkpoint, as read from `path` -> preset, its changed settings, class names (or
    None), flip pairs, and the weights under our names."""
    weights = rename(state)
    shape = defaultdict(tuple, {key: tuple(value.shape) for key, value in weights.items()})
    num_classes, channels = shape['category_builder.k_cate']
    backbone = read_backbone(shape)
    if backbone is None or len(shape['neck.conv.weight']) != 4:
        raise ValueError(f'{path} looks like a checkpoint of the released UniParser but has no '
                         'ResNet or no head')
    light = shape['neck.conv.weight'][2:] == (1, 1)
    cihp = num_classes == 19
    # The thresholds of its configs.
    if cihp:
        theta_center = 0.1
    elif light:
        theta_center = 0.3
    else:
        theta_center = 0.2 if backbone == 'resnet50' else 0.1
    changes = dict(num_classes=num_classes, backbone=backbone, light=light,
                   theta_center=theta_center, channels=channels,
                   neck_channels=shape['neck.conv.weight'][0],
                   dcn=any('conv_offset' in key for key in weights), pretrained_stages=4)
    preset = 'cihp_released' if cihp else 'mhp_released'
    dataset = SETS.get(num_classes)
    if dataset is None:
        return preset, changes, None, (), weights
    return preset, changes, dataset.class_names, dataset.flip_pairs, weights


def rename(state: dict) -> dict:
    """The weights under our names, without those that no forward uses."""
    weights = {}
    for key, value in state.get('state_dict', state).items():
        key = key.removeprefix('module.')
        for released, here in NAMES:
            key = re.sub(released, here, key)
        if not key.startswith(UNUSED):
            weights[key] = value
    return weights


def read_backbone(shape: dict) -> str | None:
    """The ResNet with as many blocks per stage; None if there is none."""
    blocks = [set(), set(), set(), set()]
    for key in shape:
        if match := re.match(r'backbone\.layer([1-4])\.(\d+)\.', key):
            blocks[int(match[1]) - 1].add(match[2])
    name = BLOCKS.get(tuple(len(stage) for stage in blocks))
    # ResNet-34 has as many blocks as ResNet-50, but of two convolutions.
    if name == 'resnet50' and 'backbone.layer1.0.conv3.weight' not in shape:
        return 'resnet34'
    return name
