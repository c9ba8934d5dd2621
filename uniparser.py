"""UniParser: Multi-Human Parsing with Unified Correlation Representation Learning (Chu et al. 2023, arXiv:2310.08984).

A photo passes through a ResNet and an FPN. Three small branches read the pyramid, and `decode` turns their outputs into
one label map per person.

    paper      here       shape          meaning                                                  where
    F_neck     f_neck     (B,256,h,w)    the compressed pyramid, h = H/4, w = W/4                 Sec. 3.1
    H_c        heatmap    (B,1,S,S)      logits of "a person's barycenter lies in this cell"      Eq. (1)
    F_ins      f_ins      (B,C,h,w)      unit vectors, similar in one person                      Eq. (2)
    f_xy       k_ins      (B,C,S,S)      the vector of F_ins with which a cell finds its person   Eq. (2)
    F_cate     f_cate     (B,C,h,w)      unit vectors, similar in one category                    Eq. (3)
    K_cate     k_cate     (K,C)          one learned unit vector per category                     Eq. (3)
    Q_*        q_ins, q_cate, q_parsing  correlations of kernels and features                     Eqs. (2), (3)

    H_c    -> cells above theta_center that are the maximum of 5x5 cells    find_centers   Eq. (2), WHERE
    Q_ins  -> the person's pixels: correlations above theta_mask            decode         Eq. (2), Sec. 3.4, index
    Q_cate -> the classes that correlate well enough inside the person      part_scores
           -> at the photo's size, the class of the largest correlation     paint

Labels: parsing (N,H,W) uint8, one map per person: 0 not this person, 1..K part, 255 this person, part unknown.
The defaults of `Config` are the paper's text on MHPv2.0. `recipe` decides between that text and the authors' released
code (released.py) what no other field does; docs/differences.md lists every such place.
"""
import math
import os
from dataclasses import replace

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from data import input_size, network_input, to_photo
import released
from backbone import Backbone
from util.beyond import averaged, distinct, mixture, parsing_quality
from util.checkpoints import (FORMAT, check_settings, load_pretrained, load_strictly, name_command, read_checkpoint,
                              reading, write_checkpoint)
from util.config import INFERENCE, PRESETS, Config, get_config  # noqa: F401: part of this module's interface
from util.results import Parsing
from util.run import find_device
from util.tensors import bilinear_taps, resize_map


# ---------------------------------------------------------------------------------------------------------------
# Neck: F_neck


class Neck(nn.Module):
    """F_neck (Sec. 3.1): P2..P6, resized to P2 and concatenated, compressed by one convolution; light: P2 alone.

    A 1x1 convolution commutes with bilinear interpolation, so each level is compressed at its own size, resized and
    summed: the same numbers without the 1280-channel map. The released light variant pads its 1x1 convolution by 1,
    so that its maps are two cells larger.
    """

    def __init__(self, config):
        super().__init__()
        self.light, k = config.light, 1 if config.light else config.compress_kernel
        padding = int(config.recipe == 'released') if config.light else k // 2
        inputs = config.neck_channels * (1 if config.light else 5)
        self.conv = nn.Conv2d(inputs, config.neck_channels, k, padding=padding)

    def forward(self, pyramid):                                              # P2..P6, (B, 256, ., .) each
        size = pyramid[0].shape[-2:]
        if self.light:
            return self.conv(pyramid[0])
        if self.conv.kernel_size != (1, 1):
            return self.conv(torch.cat([resize_map(p, size) for p in pyramid], dim=1))
        weights = self.conv.weight.chunk(5, dim=1)
        f_neck = F.conv2d(pyramid[0], weights[0], self.conv.bias)
        for p, weight in zip(pyramid[1:], weights[1:]):
            f_neck = f_neck + resize_map(F.conv2d(p, weight), size)
        return f_neck                                                        # (B, 256, h, w)


# ---------------------------------------------------------------------------------------------------------------
# Branches: Eqs. (1)-(3)


class ConvModule(nn.Module):
    """3x3 convolution, group norm, ReLU."""

    def __init__(self, in_channels, channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.gn = nn.GroupNorm(min(32, channels), channels)

    def forward(self, x, share=None):
        x = self.conv(x) if share is None else F.conv2d(x, self.conv.weight[:, :-2], padding=1) + share
        return F.relu(self.gn(x))


class ConvTower(nn.Module):
    """g(.) of Eqs. (1)-(3): stacked convolutions; with `coords`, two maps with the relative coordinates x and y in
    -1..1 join the input. Their share of the first convolution depends on the size alone: it is added, not
    concatenated, and kept between calls once the weights are fixed (`UniParser.fold`)."""

    def __init__(self, in_channels, channels, depth, coords):
        super().__init__()
        self.coords, self.cache = coords, None
        inputs = [in_channels + 2 * coords] + [channels] * (depth - 1)
        self.convs = nn.ModuleList(ConvModule(c, channels) for c in inputs)

    def coordinate_share(self, x):
        size = x.shape[-2:]
        y, x = (torch.arange(n, dtype=torch.float32, device=x.device) for n in size)
        y, x = (2 * v / v[-1:].clamp(min=1) - 1 for v in (y, x))             # linspace, but ONNX would fix its length
        y, x = y.view(-1, 1).expand(1, 1, *size), x.expand(1, 1, *size)
        weight = self.convs[0].conv.weight[:, -2:]
        return F.conv2d(torch.cat([x, y], dim=1).to(weight.dtype), weight, padding=1)

    def forward(self, x):                                                    # (B, 256, h, w) -> (B, C, h, w)
        share = None
        if self.coords:
            key, cache = (x.shape[-2:], x.device, x.dtype), self.cache
            share = cache[1] if cache and cache[0] == key else self.coordinate_share(x)
            if cache:
                self.cache = key, share
        x = self.convs[0](x, share)
        for conv in self.convs[1:]:
            x = conv(x)
        return x


def to_space(x, space):
    """Where kernels and features live (Tab. 4 c). x: (B, C, ...). Cosine: unit length along the channels."""
    if space == 'cosine':
        return F.normalize(x, dim=1)
    return x.sigmoid() if space == 'sigmoid_before' else x


def correlate(kernels, features, space):
    """The * of Eqs. (2) and (3), a 1x1 convolution: kernels (N, C), features (..., C, h, w) -> (..., N, h, w)."""
    q = torch.einsum('nc,...chw->...nhw', kernels, features)
    return q.sigmoid() if space == 'sigmoid_after' else q


class CenterLocator(nn.Module):
    """H_c = Sigmoid(g_CL(Resize(F_neck, (S, S))))     Eq. (1); the sigmoid is left to loss and `find_centers`."""

    def __init__(self, config):
        super().__init__()
        self.grid = config.grid
        self.tower = ConvTower(config.neck_channels, config.channels, config.center_depth, coords=True)
        self.heatmap = nn.Conv2d(config.channels, 1, 3, padding=1)

    def forward(self, f_neck):                                               # (B, 256, h, w) -> (B, 1, S, S)
        return self.heatmap(self.tower(resize_map(f_neck, (self.grid, self.grid))))            # Eq. (1)


class InstanceFeatureSpaceBuilder(nn.Module):
    """F_ins = Normalize(g_IFSB(F_neck)),  f_xi,yi = F_ins[xi, yi],  Q_ins = Concat(f_xy) * F_ins     Eq. (2)

    The paper does not say which pixel is "[x, y]" for a cell of the S x S grid. Here it is the pixel in its middle.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tower = ConvTower(config.neck_channels, config.channels, config.depth, coords=True)

    def kernels(self, f):
        S = self.config.grid
        if self.config.recipe == 'released':
            return released.kernels(f, S, self.training)
        rows, cols = [(2 * torch.arange(S, device=f.device) + 1) * n // (2 * S) for n in f.shape[-2:]]
        return f[:, :, rows][..., cols]

    def forward(self, f_neck):                                               # (B, 256, h, w)
        f = self.tower(f_neck)
        f_ins = to_space(f, self.config.space)                               # (B, C, h, w)      Eq. (2)
        k_ins = to_space(self.kernels(f), self.config.space)                 # (B, C, S, S)      Eq. (2)
        return f_ins, k_ins


class CategoryFeatureSpaceBuilder(nn.Module):
    """F_cate = Normalize(g_CFSB(F_neck)),  Q_cate = K_cate * F_cate     Eq. (3), K_cate normalized too (Sec. 3.3)."""

    def __init__(self, config):
        super().__init__()
        self.space = config.space
        self.tower = ConvTower(config.neck_channels, config.channels, config.depth, coords=config.category_coords)
        self.k_cate = nn.Parameter(torch.randn(config.num_classes, config.channels) * 0.01)       # Sec. 6.1

    def forward(self, f_neck):                                               # (B, 256, h, w)
        f_cate = to_space(self.tower(f_neck), self.space)                    # (B, C, h, w)      Eq. (3)
        return f_cate, to_space(self.k_cate, self.space)                     # (K, C)


class Fusion(nn.Module):
    """g_fusion (Sec. 3.4, Tab. 4 d): the parsing of each person from its map q_ins and the categories.

    index   q_ins * q_cate: no weights; in inference q_ins > theta_mask selects from q_cate (`decode`)
    convs   convolutions over q_ins concatenated with f_cate
    multi   convolutions over q_ins times f_cate
    The number of convolutions is in the paper's Fig. 5, which its text does not give: here one module and an output.
    """

    def __init__(self, config):
        super().__init__()
        self.kind = config.fusion
        if self.kind != 'index':
            self.conv = ConvModule(config.channels + (self.kind == 'convs'), config.channels)
            self.out = nn.Conv2d(config.channels, config.num_classes, 3, padding=1)

    def forward(self, q_ins, q_cate, f_cate):                                # (N, h, w), (K, h, w), (C, h, w)
        q_ins = q_ins[:, None]
        if self.kind == 'index':
            return q_ins * q_cate                                            # (N, K, h, w)
        x = torch.cat([f_cate.expand(len(q_ins), *f_cate.shape), q_ins], 1) if self.kind == 'convs' else q_ins * f_cate
        return self.out(self.conv(x)).sigmoid()                              # (N, K, h, w)


# ---------------------------------------------------------------------------------------------------------------
# The model


class UniParser(nn.Module):
    """model(images (B, 3, H, W), normalized, H and W multiples of 32) -> dict of heatmap, f_ins, k_ins, f_cate, k_cate
    (shapes above); model.predict(photos) -> list of Parsing. class_names[0] is 'background'; flip_pairs are (left,
    right) ids."""

    def __init__(self, config, class_names=None, flip_pairs=()):
        super().__init__()
        self.config = config
        self.class_names = list(class_names or ['background'] + [f'part {i + 1}' for i in range(config.num_classes)])
        self.flip_pairs = [list(pair) for pair in flip_pairs]
        if len(self.class_names) != config.num_classes + 1:
            raise ValueError(f'{config.num_classes} classes need {config.num_classes + 1} names, the background first, '
                             f'not {len(self.class_names)}')
        self.backbone = Backbone(config.backbone, config.dcn, config.pretrained_stages)
        self.fpn = FeaturePyramidNetwork(self.backbone.channels, config.neck_channels, LastLevelMaxPool())
        self.fpn.layer_blocks[1:].requires_grad_(not config.light)           # unused there, but in released files
        self.neck = Neck(config)
        self.category_neck = None if config.share_compression else Neck(config)
        self.center_locator = CenterLocator(config)
        self.instance_builder = InstanceFeatureSpaceBuilder(config)
        self.category_builder = CategoryFeatureSpaceBuilder(config)
        self.fusion = Fusion(config)
        self.folded = False
        self.init_weights()

    def init_weights(self):
        """As in the released code: FPN Xavier-uniform; the rest normal(0, 0.01), bias 0; the heat map starts at 0.01,
        and with recipe `released` the category branch's compression too."""
        for module in self.fpn.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
        heads = (self.neck, self.category_neck, self.center_locator, self.instance_builder, self.category_builder,
                 self.fusion)
        for module in (m for head in heads if head is not None for m in head.modules()):
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.center_locator.heatmap.bias, float(np.log(0.01 / 0.99)))
        if self.config.recipe == 'released' and self.category_neck is not None:
            nn.init.constant_(self.category_neck.conv.bias, float(np.log(0.01 / 0.99)))

    @property
    def device(self):
        return self.category_builder.k_cate.device

    def load_pretrained(self):
        """Starts from config.pretrained, and notes in self.config which stages keep their ImageNet statistics."""
        self.config = replace(self.config, pretrained_stages=load_pretrained(self, self.config.pretrained))

    def forward(self, images):                                               # (B, 3, H, W)
        return self.heads(self.pyramid(self.backbone(images)))

    def pyramid(self, features):                                             # C2..C5
        if not self.config.light:
            return list(self.fpn(dict(enumerate(features))).values())        # P2..P6
        x = self.fpn.inner_blocks[3](features[3])                            # the same P2, and no other level
        for i in (2, 1, 0):
            x = self.fpn.inner_blocks[i](features[i]) + F.interpolate(x, size=features[i].shape[-2:])
        return [self.fpn.layer_blocks[0](x)]

    def heads(self, pyramid):                                                # P2..P6: (B, 256, h, w), ..
        f_neck = self.neck(pyramid)                                          # (B, 256, h, w)
        heatmap = self.center_locator(f_neck)                                # (B, 1, S, S)           Eq. (1)
        f_ins, k_ins = self.instance_builder(f_neck)                         # (B,C,h,w), (B,C,S,S)   Eq. (2)
        if self.category_neck is not None:
            f_neck = self.category_neck(pyramid)
        f_cate, k_cate = self.category_builder(f_neck)                       # (B, C, h, w), (K, C)   Eq. (3)
        return dict(heatmap=heatmap, f_ins=f_ins, k_ins=k_ins, f_cate=f_cate, k_cate=k_cate)

    def fold(self):
        """Fixes the weights for inference: BatchNorm goes into the convolutions, and the shares of the coordinates are
        kept. Same numbers, fewer operations; not for training."""
        if self.folded:
            return self
        self.folded = True
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.backbone.fold()
        for module in self.modules():
            if isinstance(module, ConvTower):
                module.cache = (None, None)
        return self

    @torch.no_grad()
    def outputs(self, images):
        """`forward` on the model's device and in its precision, which leaves the model in eval mode; the outputs are
        float32. images: (B, 3, H, W), see `data.network_input`."""
        images = images.to(self.device, self.category_builder.k_cate.dtype, memory_format=torch.channels_last)
        out = self.eval()(images)
        if self.config.flip_test:
            out = averaged(out, self(images.flip(3)), self.flip_pairs)
        return {k: v.float() for k, v in out.items()}

    @torch.no_grad()
    def predict(self, photos, batch_size=8):
        """People of one photo or of a list of photos -> list of Parsing, each at its photo's own size and with the
        photo and the class names attached (util/results.py).

        A photo is a path, a PIL image, an RGB array (H, W, 3) or (H, W) uint8, or a tensor (3, H, W), uint8 or float in
        0..1; four dimensions are a list of photos. Only photos of the same padded size share a batch, so that no result
        depends on the other photos. Errors: FileNotFoundError, ValueError naming the photo.
        """
        if batch_size < 1:
            raise ValueError(f'batch_size is {batch_size}; it is at least 1')
        single = not isinstance(photos, (list, tuple)) and getattr(photos, 'ndim', 0) < 4
        given = [photos] if single else photos
        photos = [to_photo(photo) for photo in given]
        groups, results = {}, [None] * len(photos)
        for i, photo in enumerate(photos):
            groups.setdefault(input_size(photo, self.config)[0], []).append(i)
        for members in groups.values():
            for start in range(0, len(members), batch_size):
                chunk = members[start:start + batch_size]
                out = self.outputs(torch.cat([network_input(photos[i], self.config) for i in chunk]))
                with torch.autocast(self.device.type, enabled=False):        # the caller's is for the network alone
                    for k, i in enumerate(chunk):
                        found = decode(out, k, photos[i], self.config, self.fusion)
                        path = given[i] if isinstance(given[i], (str, os.PathLike)) else None
                        results[i] = found.attach(photos[i], self.class_names, path)
        return results

    def save(self, path, **more):
        """Writes weights, config, class names and flip pairs to one file, atomically; `more` is stored beside them."""
        if self.folded:
            raise ValueError('a folded model cannot be saved; save it before fold()')
        write_checkpoint(path, 'uniparser', self.config, self.state_dict(), class_names=self.class_names,
                         flip_pairs=self.flip_pairs, **more)

    @classmethod
    def from_pretrained(cls, path, device='cpu', **changes):
        """The model in a file written by `save` or by the released code, in eval mode. `changes` are config fields,
        such as theta_center."""
        replace(Config(), **changes)                      # a mistake in `changes` is not the file's
        device = find_device(device)
        state = read_checkpoint(path)
        if command := name_command(state, 'uniparser'):
            raise ValueError(f'{path} {command}')
        with reading(path):
            if released.is_released(state):
                preset, values, names, flip_pairs, weights = released.convert(state, path)
                config = get_config(preset, **{**values, **changes})
            else:
                if state.get('format') != FORMAT:
                    raise ValueError(f'{path} is not a UniParser checkpoint of this version (its "format" is '
                                     f'{state.get("format")!r}); give a file of train.py or of the released code')
                check_settings(state['config'], Config)
                config = replace(Config(**state['config']), **changes)
                names, flip_pairs, weights = state['class_names'], state['flip_pairs'], state['model']
            with torch.device('meta'):                    # takes no memory, whatever sizes the file claims
                model = cls(config, names and [*map(str, names)], flip_pairs)
            load_strictly(model, weights, path)
            return model.to(device).eval()


# ---------------------------------------------------------------------------------------------------------------
# From outputs to people


def decode(out, i, photo, config, fusion=None):
    """Outputs for image i, which was `photo` (only its width and height are used) -> Parsing. fusion: the model's,
    which `convs` and `multi` need. People are capped before anything is enlarged, and only a person's own classes are
    enlarged, in the person's box: no map of N people times K classes is built."""
    padded, size = input_size(photo, config)
    cells, scores = find_centers(out['heatmap'][i, 0], config)                             # (N,), (N,)
    k_ins = out['k_ins'][i].flatten(1).T[cells]                                            # (N, C)
    q_ins = correlate(k_ins, out['f_ins'][i], config.space)                                # (N, h, w)  Eq. (2)
    q_cate = correlate(out['k_cate'], out['f_cate'][i], config.space)                      # (K, h, w)  Eq. (3)
    kept = distinct(q_ins > config.theta_mask, config.theta_same)
    cells, scores, q_ins = cells[kept], scores[kept], q_ins[kept]
    if config.score == 'parsing':
        scores = parsing_quality(q_ins > config.theta_mask, q_ins, q_cate)
        best = scores.argsort(descending=True, stable=True)[:(scores > config.theta_score).sum()]
        cells, scores, q_ins = cells[best], scores[best], q_ins[best]
    theta_paint = config.theta_paint or config.theta_mask
    inside = q_ins > (config.theta_mask if config.fusion == 'index' else -math.inf)        # (N, h, w)
    parsing = np.zeros((len(cells), photo.height, photo.width), np.uint8)
    if config.fusion == 'index' and config.assign == 'correlation':
        mean_cate = part_scores(inside, q_cate, theta_paint)                               # (N, K)
    for n in range(len(cells)):
        if config.assign == 'mixture':
            maps, mean = mixture(q_cate, inside[n], config.theta_part)                     # (K, h, w), (K,)
        elif config.fusion == 'index':
            maps, mean = q_cate, mean_cate[n]                                              # (K, h, w), (K,)
        else:
            maps = fusion(q_ins[n:n + 1], q_cate, out['f_cate'][i])[0]
            mean = part_scores(inside[n:n + 1], maps, theta_paint)[0]
        classes = (mean > config.theta_part).nonzero()[:, 0]
        if len(classes):
            (paint if config.recipe == 'paper' else released.paint)(
                parsing[n], inside[n] * maps[classes], classes, size, theta_paint)   # Sec. 3.4
    x, y = ((2 * cell + 1) / (2 * config.grid) for cell in (cells % config.grid, cells // config.grid))
    centers = torch.stack([x * padded[1] / size[1] * photo.width, y * padded[0] / size[0] * photo.height], 1)
    people = Parsing(parsing, scores.cpu().numpy(), centers.cpu().numpy())
    return people if config.recipe == 'released' else people.visible()      # the released code returns empty people


def find_centers(heatmap, config):
    """Sigmoid of Eq. (1) and WHERE(H_c > theta_c) of Eq. (2), kept to local maxima of 5x5 cells: the target of a person
    is a rectangle. Logits (S, S) -> cells (N,) = row * S + column, scores (N,) descending, at most max_people."""
    logits, cells = keep_peaks(heatmap.float(), config).flatten().sort(descending=True, stable=True)
    scores = logits.sigmoid()
    found = (scores > config.theta_center).nonzero()[:config.max_people, 0]
    return cells[found], scores[found]


def keep_peaks(heatmap, config):
    """Logits (S, S) -> the same, -inf where they are not the maximum of 5x5 cells (config.peaks). Logits, because the
    sigmoid of confident cells saturates: a plateau of 1.0 would be many people."""
    if config.recipe == 'released':
        heatmap = heatmap.masked_fill(~released.is_corner_peak(heatmap), -torch.inf)
    highest = F.max_pool2d(heatmap[None], config.peaks, 1, config.peaks // 2)[0]
    return heatmap.masked_fill(heatmap != highest, -torch.inf)


def part_scores(gate, q, theta):
    """Mean correlation of each class inside each person (released code, "maskness"): the sum of those above theta over
    the number of those above 0.1. gate (N, h, w) bool, q (K, h, w) -> (N, K)."""
    gate = gate.flatten(1).float()
    q = q.flatten(1)
    return gate @ (q * (q > theta)).T / (gate @ (q > 0.1).float().T + 1e-5)


def paint(parsing, maps, classes, size, theta):
    """Writes one person's labels into parsing (H0, W0) uint8. maps (k, h, w): correlations of the given classes
    (0-based), zero outside the person; size (h, w): of the network's input without padding, in pixels. A pixel takes
    the class of the largest value where that exceeds theta. Few rows at a time: there few classes and columns count."""
    above, names = (maps > theta).cpu().numpy(), (classes + 1).to(torch.uint8)
    y, x = (bilinear_taps(maps.shape[d + 1], size[d] / 4, parsing.shape[d]) for d in (0, 1))
    values = 2 ** (18 if maps.device.type == 'cpu' else 24)                  # at a time: what a cache or 64 MB hold
    step = max(1, values * maps.shape[1] // (len(maps) * parsing.size))      # rows of the maps
    edges = np.flatnonzero(np.diff(y[0] // step, prepend=-1, append=-1))
    for top, bottom in zip(edges[:-1], edges[1:]):
        near = above[:, y[0][top]:y[1][bottom - 1] + 1].any(1)               # a pixel above theta is beside such a cell
        some, cols = (np.flatnonzero(near.any(axis)) for axis in (1, 0))
        if not len(some):
            continue
        left, right = np.searchsorted(x[1], cols[0]), np.searchsorted(x[0], cols[-1], side='right')
        y0, y1, wy = (torch.from_numpy(tap[top:bottom]).to(maps.device) for tap in y)
        x0, x1, wx = (torch.from_numpy(tap[left:right]).to(maps.device) for tap in x)
        rows = torch.lerp(*(maps[some].index_select(1, tap) for tap in (y0, y1)), wy[:, None])
        value, index = torch.lerp(*(rows.index_select(2, tap) for tap in (x0, x1)), wx).max(0)
        parsing[top:bottom, left:right] = (names[some][index] * (value > theta)).cpu().numpy()
