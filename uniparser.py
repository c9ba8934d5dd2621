"""UniParser: Multi-Human Parsing with Unified Correlation Representation Learning (Chu et al. 2023,
arXiv:2310.08984).

A photo passes through a ResNet and an FPN. Three small branches read the pyramid, and `decode`
turns their outputs into one label map per person.

    paper    here      shape        meaning                                              where
    F_neck   f_neck    (B,256,h,w)  the compressed pyramid, h = H/4, w = W/4             Sec. 3.1
    H_c      heatmap   (B,1,S,S)    logits of "a person's barycenter lies in this cell"  Eq. (1)
    F_ins    f_ins     (B,C,h,w)    unit vectors, similar in one person                  Eq. (2)
    f_xy     k_ins     (B,C,S,S)    the vector of F_ins by which a cell finds its person Eq. (2)
    F_cate   f_cate    (B,C,h,w)    unit vectors, similar in one category                Eq. (3)
    K_cate   k_cate    (K,C)        one learned unit vector per category                 Eq. (3)
    Q_ins    q_ins     (N,h,w)      correlations of people's kernels with F_ins          Eq. (2)
    Q_cate   q_cate    (K,h,w)      correlations of categories' kernels with F_cate      Eq. (3)

    H_c    -> cells above theta_center, each the maximum of 5x5 cells  find_centers  Eq. (2), WHERE
    Q_ins  -> the person's pixels: correlations above theta_mask       find_people   Sec. 3.4, index
    Q_cate -> the classes that correlate well enough in the person     part_scores
           -> at the photo's size, the class of the largest one        paint_parts

Labels: parsing (N,H,W) uint8, one map per person: 0 not this person, 1..K part, 255 this person,
part unknown. Settings and presets are in util/config.py; their defaults are the paper's text on
MHPv2.0. Three settings of inference are not in the paper: theta_same (two peaks of one person),
theta_part and peaks. `config.choose(paper, released)` stands where the authors' released code
differs (released.py); docs/differences.md lists every such place.
"""
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

import released
from backbone import Backbone
from correlation import correlate, to_space
from data import Geometry, input_geometry, list_photos, network_input, path_of, to_photo
from util.beyond import (averaged, distinct, keep_whole, map_quality, mixture, parsing_quality,
                         unsure_sides)
from util.checkpoints import (FORMAT, check_settings, load_pretrained, load_strictly, name_command,
                              read_checkpoint, reading, write_checkpoint)
# Settings are part of this module's interface.
from util.config import INFERENCE, PRESETS, Config, get_config  # noqa: F401
from util.fast import convolve_with_coordinates, paint
from util.labels import check_flip_pairs
from util.results import Parsing
from util.run import find_device
from util.tensors import resize_map

# The heat map starts at 0.01, as the focal loss [33] proposes.
CENTER_BIAS = math.log(0.01 / 0.99)


# -------------------------------------------------------------------------------------------------
# Neck: F_neck


class Neck(nn.Module):
    """F_neck (Sec. 3.1): P2..P6, resized to P2 and concatenated, compressed by one convolution;
    light: P2 alone.

    A 1x1 convolution commutes with bilinear interpolation, so each level is compressed at its own
    size, resized and summed: the same numbers without the map of 1280 channels. The paper's "last
    stage", which light keeps, is taken to be P2, as in the released code.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.light = config.light
        channels = config.neck_channels
        if config.light:
            # The released light variant pads its 1x1 convolution, so that its maps are two cells
            # larger.
            self.conv = nn.Conv2d(channels, channels, 1, padding=config.choose(0, 1))
        else:
            kernel = config.compress_kernel
            self.conv = nn.Conv2d(5 * channels, channels, kernel, padding=kernel // 2)

    def forward(self, pyramid):                                 # P2..P6, (B, 256, ., .) each
        size = pyramid[0].shape[-2:]
        if self.light:
            return self.conv(pyramid[0])
        if self.conv.kernel_size != (1, 1):
            levels = [resize_map(level, size) for level in pyramid]
            return self.conv(torch.cat(levels, dim=1))
        weights = self.conv.weight.chunk(5, dim=1)
        f_neck = F.conv2d(pyramid[0], weights[0], self.conv.bias)
        for level, weight in zip(pyramid[1:], weights[1:]):
            f_neck = f_neck + resize_map(F.conv2d(level, weight), size)
        return f_neck                                           # (B, 256, h, w)


# -------------------------------------------------------------------------------------------------
# Branches: Eqs. (1)-(3)


class ConvModule(nn.Module):
    """3x3 convolution, group norm, ReLU. coords: two more inputs, the relative coordinates x and y
    in -1..1."""

    def __init__(self, in_channels: int, channels: int, coords: bool = False):
        super().__init__()
        self.coords = coords
        self.conv = nn.Conv2d(in_channels + 2 * coords, channels, 3, padding=1, bias=False)
        self.gn = nn.GroupNorm(min(32, channels), channels)

    def forward(self, x):
        x = convolve_with_coordinates(x, self.conv.weight) if self.coords else self.conv(x)
        return F.relu(self.gn(x))


class ConvTower(nn.Module):
    """g(.) of Eqs. (1)-(3): stacked convolutions; with `coords`, the relative coordinates join the
    input."""

    def __init__(self, in_channels: int, channels: int, depth: int, coords: bool):
        super().__init__()
        first = ConvModule(in_channels, channels, coords)
        others = [ConvModule(channels, channels) for _ in range(depth - 1)]
        self.convs = nn.ModuleList([first, *others])

    def forward(self, x):                                       # (B, 256, h, w)
        for conv in self.convs:
            x = conv(x)
        return x                                                # (B, C, h, w)


class CenterLocator(nn.Module):
    """H_c = Sigmoid(g_CL(Resize(F_neck, (S, S))))     Eq. (1)

    The sigmoid is left to the loss and to `find_centers`.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.grid = config.grid
        self.tower = ConvTower(config.neck_channels, config.channels, config.center_depth,
                               coords=True)
        self.heatmap = nn.Conv2d(config.channels, 1, 3, padding=1)

    def forward(self, f_neck):                                  # (B, 256, h, w)
        f = resize_map(f_neck, (self.grid, self.grid))          # (B, 256, S, S)
        return self.heatmap(self.tower(f))                      # (B, 1, S, S)   Eq. (1)


class InstanceFeatureSpaceBuilder(nn.Module):
    """F_ins = Normalize(g_IFSB(F_neck)),  f_xy = F_ins[x, y],  Q_ins = Concat(f_xy) * F_ins
    Eq. (2)

    The paper does not say which pixel is "[x, y]" for a cell of the S x S grid. Here it is the
    pixel in its middle. Q_ins is computed where it is used: in `find_people`, and for the losses in
    `UniParserLoss.correlations`.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.grid = config.grid
        self.space = config.space
        self.sample = config.choose(middle_pixels, released.corner_pixels)
        self.tower = ConvTower(config.neck_channels, config.channels, config.depth, coords=True)

    def kernels(self, f):                                       # (B, C, h, w) -> (B, C, S, S)
        return self.sample(f, self.grid, self.training)

    def forward(self, f_neck):                                  # (B, 256, h, w)
        f = self.tower(f_neck)
        # The kernels are sampled before they are normalized: for the middle pixel that is the same,
        # and the released recipe resizes in between.
        f_ins = to_space(f, self.space)                         # (B, C, h, w)   Eq. (2)
        k_ins = to_space(self.kernels(f), self.space)           # (B, C, S, S)   Eq. (2)
        return f_ins, k_ins


def middle_pixels(f: torch.Tensor, grid: int, training: bool) -> torch.Tensor:
    """The pixel in the middle of each cell: f (B, C, h, w) -> (B, C, S, S). training: only
    `released.corner_pixels` needs it."""
    cell = torch.arange(grid, device=f.device)
    rows = (2 * cell + 1) * f.shape[-2] // (2 * grid)
    cols = (2 * cell + 1) * f.shape[-1] // (2 * grid)
    return f[:, :, rows][..., cols]


class CategoryFeatureSpaceBuilder(nn.Module):
    """F_cate = Normalize(g_CFSB(F_neck)),  Q_cate = K_cate * F_cate     Eq. (3)

    K_cate is normalized, too (Sec. 3.3). Q_cate is computed where it is used: in `decode`, and for
    the losses in `UniParserLoss.correlations`.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.space = config.space
        self.tower = ConvTower(config.neck_channels, config.channels, config.depth,
                               coords=config.category_coords)
        # Sec. 6.1: a normal distribution.
        self.k_cate = nn.Parameter(torch.randn(config.num_classes, config.channels) * 0.01)

    def forward(self, f_neck):                                  # (B, 256, h, w)
        f_cate = to_space(self.tower(f_neck), self.space)       # (B, C, h, w)   Eq. (3)
        k_cate = to_space(self.k_cate, self.space)              # (K, C)
        return f_cate, k_cate


class Fusion(nn.Module):
    """g_fusion (Sec. 3.4, Tab. 4 d): the parsing of each person from its map q_ins and the
    categories.

    index   q_ins * q_cate: no weights. Training and inference get by without these N x K maps:
            `part_sums` has their sums, and in `paint_parts` q_ins > theta_mask selects from q_cate
    convs   convolutions over q_ins concatenated with f_cate
    multi   convolutions over q_ins times f_cate
    The number of convolutions is in the paper's Fig. 5, which its text does not give: here one
    module and an output.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.kind = config.fusion
        if self.kind != 'index':
            inputs = config.channels + 1 if self.kind == 'convs' else config.channels
            self.conv = ConvModule(inputs, config.channels)
            self.out = nn.Conv2d(config.channels, config.num_classes, 3, padding=1)

    def forward(self, q_ins, q_cate, f_cate):                   # (N, h, w), (K, h, w), (C, h, w)
        q_ins = q_ins[:, None]
        if self.kind == 'index':
            return q_ins * q_cate                               # (N, K, h, w)
        if self.kind == 'convs':
            x = torch.cat([f_cate.expand(len(q_ins), *f_cate.shape), q_ins], dim=1)
        else:
            x = q_ins * f_cate
        return self.out(self.conv(x)).sigmoid()                 # (N, K, h, w)


# -------------------------------------------------------------------------------------------------
# The model


class UniParser(nn.Module):
    """model(images (B, 3, H, W), normalized, H and W multiples of 32) -> dict of heatmap, f_ins,
    k_ins, f_cate, k_cate (shapes above); model.predict(photos) -> list of Parsing. class_names[0]
    is 'background'; flip_pairs are (left, right) ids."""

    def __init__(self, config: Config, class_names=None, flip_pairs=()):
        super().__init__()
        self.config = config
        if not class_names:
            class_names = ['background', *(f'part {i + 1}' for i in range(config.num_classes))]
        self.class_names = list(class_names)
        self.flip_pairs = [list(pair) for pair in flip_pairs]
        if len(self.class_names) != config.num_classes + 1:
            raise ValueError(f'{config.num_classes} classes need {config.num_classes + 1} names, '
                             f'the background first, not {len(self.class_names)}')
        self.backbone = Backbone(config.backbone, config.dcn, config.pretrained_stages)
        self.fpn = FeaturePyramidNetwork(self.backbone.channels, config.neck_channels,
                                         LastLevelMaxPool())
        # The light variant does not use these, but its released files hold them.
        self.fpn.layer_blocks[1:].requires_grad_(not config.light)
        self.neck = Neck(config)
        self.category_neck = None if config.share_compression else Neck(config)
        self.center_locator = CenterLocator(config)
        self.instance_builder = InstanceFeatureSpaceBuilder(config)
        self.category_builder = CategoryFeatureSpaceBuilder(config)
        self.fusion = Fusion(config)
        self.folded = False
        self.init_weights()

    def init_weights(self):
        """As in the released code: FPN Xavier-uniform; the other convolutions normal(0, 0.01), bias
        0; the heat map starts at 0.01, and with recipe `released` the category branch's
        compression, too."""
        for module in self.fpn.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
        heads = [self.neck, self.center_locator, self.instance_builder, self.category_builder,
                 self.fusion]
        if self.category_neck is not None:
            heads.insert(1, self.category_neck)
        for head in heads:
            for module in head.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.normal_(module.weight, std=0.01)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        nn.init.constant_(self.center_locator.heatmap.bias, CENTER_BIAS)
        if self.category_neck is not None:
            bias = self.config.choose(0.0, CENTER_BIAS)
            nn.init.constant_(self.category_neck.conv.bias, bias)

    @property
    def device(self) -> torch.device:
        return self.category_builder.k_cate.device

    def load_pretrained(self) -> bool:
        """Starts from config.pretrained, and notes in self.config which stages keep their ImageNet
        statistics. Returns whether the file is a whole UniParser."""
        stages, whole = load_pretrained(self, self.config.pretrained)
        self.config = replace(self.config, pretrained_stages=stages)
        return whole

    def forward(self, images):                                  # (B, 3, H, W)
        features = self.backbone(images)                        # C2..C5
        pyramid = self.pyramid(features)                        # P2..P6: (B, 256, h, w), ..
        return self.heads(pyramid)

    def pyramid(self, features) -> list[torch.Tensor]:
        if not self.config.light:
            return list(self.fpn(dict(enumerate(features))).values())
        # The same P2, and no other level.
        x = self.fpn.inner_blocks[3](features[3])
        for i in (2, 1, 0):
            x = F.interpolate(x, size=features[i].shape[-2:])
            x = self.fpn.inner_blocks[i](features[i]) + x
        return [self.fpn.layer_blocks[0](x)]

    def heads(self, pyramid) -> dict:
        f_neck = self.neck(pyramid)                             # (B, 256, h, w)
        heatmap = self.center_locator(f_neck)                   # (B, 1, S, S)   Eq. (1)
        f_ins, k_ins = self.instance_builder(f_neck)            # (B,C,h,w), (B,C,S,S)   Eq. (2)
        if self.category_neck is not None:
            f_neck = self.category_neck(pyramid)
        f_cate, k_cate = self.category_builder(f_neck)          # (B, C, h, w), (K, C)   Eq. (3)
        return dict(heatmap=heatmap, f_ins=f_ins, k_ins=k_ins, f_cate=f_cate, k_cate=k_cate)

    def fold(self) -> 'UniParser':
        """Folds every BatchNorm into its convolution, in place, and returns the model. Same
        numbers, fewer operations; not for training."""
        if not self.folded:
            self.folded = True
            self.eval().requires_grad_(False).to(memory_format=torch.channels_last)
            self.backbone.fold()
        return self

    @torch.no_grad()
    def outputs(self, images: torch.Tensor) -> dict:
        """`forward` on the model's device and in its precision, which leaves the model in eval
        mode; the outputs are float32. flip_pairs (P, 2), those of the model, are added. images:
        (B, 3, H, W), see `data.network_input`."""
        precision = self.category_builder.k_cate.dtype
        images = images.to(self.device, precision, memory_format=torch.channels_last)
        self.eval()
        out = self(images)
        if self.config.flip_test:
            out = averaged(out, self(images.flip(3)), self.flip_pairs)
        out = {name: value.float() for name, value in out.items()}
        return {**out, 'flip_pairs': torch.tensor(self.flip_pairs).reshape(-1, 2)}

    @torch.no_grad()
    def predict(self, photos, *, batch_size: int = 8) -> list[Parsing]:
        """People of one photo or of a list of photos -> list of Parsing, each at its photo's own
        size and with the photo and the class names attached (util/results.py).

        A photo is a path, a PIL image, an RGB array (H, W, 3) or (H, W) uint8, or a tensor (3, H,
        W), uint8 or float in 0..1; four dimensions are a list of photos. Only photos of the same
        padded size share a batch, so that no label depends on the other photos; scores may
        differ by rounding. Errors: FileNotFoundError, ValueError naming the photo.
        """
        if batch_size < 1:
            raise ValueError(f'batch_size is {batch_size}; it is at least 1')
        given = list_photos(photos)
        photos = [to_photo(photo) for photo in given]
        geometries = [input_geometry(photo, self.config) for photo in photos]

        # Photos of the same padded size, in batches.
        groups = {}
        for i, geometry in enumerate(geometries):
            groups.setdefault(geometry.padded, []).append(i)
        batches = [members[start:start + batch_size] for members in groups.values()
                   for start in range(0, len(members), batch_size)]

        results = [None] * len(photos)
        for members in batches:
            images = [network_input(photos[i], self.config, geometries[i]) for i in members]
            out = self.outputs(torch.cat(images))
            # The caller's autocast is for the network alone.
            with torch.autocast(self.device.type, enabled=False):
                for k, i in enumerate(members):
                    found = decode(out, k, geometries[i], self.config, self.fusion)
                    path = path_of(given[i])
                    results[i] = replace(found, class_names=self.class_names, photo=photos[i],
                                         path=path)
        return results

    def save(self, path, **more):
        """Writes weights, config, class names and flip pairs to one file, atomically; `more` is
        stored beside them."""
        if self.folded:
            raise ValueError('a folded model cannot be saved; save it before fold()')
        write_checkpoint(path, 'uniparser', self.config, self.state_dict(),
                         class_names=self.class_names, flip_pairs=self.flip_pairs, **more)

    @classmethod
    def from_pretrained(cls, path, device='cpu', **changes) -> 'UniParser':
        """The model in a file written by `save` or by the released code, in eval mode. `changes`
        are config fields, such as theta_center. Errors: OSError, ValueError naming the file."""
        # Checked before the file is read, so that its name is in no sentence about `changes`.
        replace(Config(), **changes)
        device = find_device(device)
        state = read_checkpoint(path)
        command = name_command(state, 'uniparser')
        if command:
            raise ValueError(f'{path} {command}')
        with reading(path):
            if released.is_released(state):
                preset, settings, names, flip_pairs, weights = released.convert(state, path)
                config = get_config(preset, **{**settings, **changes})
            else:
                if state.get('format') != FORMAT:
                    raise ValueError(f'{path} is not a UniParser checkpoint of this version (its '
                                     f'"format" is {state.get("format")!r}); give a file of '
                                     'train.py or of the released code')
                check_settings(state['config'], Config)
                config = replace(Config(**state['config']), **changes)
                names = [str(name) for name in state['class_names']]
                flip_pairs = state['flip_pairs']
                weights = state['model']
            check_flip_pairs(flip_pairs, config.num_classes + 1)
            # The meta device takes no memory, whatever sizes the file claims.
            with torch.device('meta'):
                model = cls(config, names, flip_pairs)
            load_strictly(model, weights, path)
            return model.to(device).eval()


# -------------------------------------------------------------------------------------------------
# From outputs to people


@dataclass
class People:
    """People found in one image, best first."""
    cells: torch.Tensor                 # (N,) int64: row * S + column of the heat map
    scores: torch.Tensor                # (N,) in 0..1
    q_ins: torch.Tensor                 # (N, h, w): their maps, Eq. (2)

    def take(self, kept) -> 'People':
        """The people with these indices, in this order."""
        return People(self.cells[kept], self.scores[kept], self.q_ins[kept])


def decode(out: dict, i: int, geometry: Geometry, config: Config,
           fusion: Fusion | None = None) -> Parsing:
    """Outputs for image i of a batch -> Parsing at the photo's size. out: of `UniParser.outputs`;
    geometry: of the photo, or the photo itself; fusion: of the model, for `convs` and `multi`.

    People are capped before anything is enlarged, and only a person's own classes are enlarged, in
    the person's box: no map of N people times K classes is built.
    """
    if not isinstance(geometry, Geometry):
        geometry = input_geometry(geometry, config)
    f_cate = out['f_cate'][i]
    q_cate = correlate(out['k_cate'], f_cate, config.space)     # (K, h, w)  Eq. (3)
    people = find_people(out, i, config)
    people = rank_people(people, q_cate, config)
    unsure = None
    if config.theta_side:
        unsure = unsure_sides(q_cate, out['flip_pairs'], config.theta_side)
    parsing = paint_parts(people, q_cate, f_cate, geometry, config, fusion, unsure)
    centers = geometry.cell_centers(people.cells, config.grid)
    found = Parsing(parsing, people.scores.cpu().numpy(), centers.cpu().numpy())
    # The released code also returns people without pixels.
    return found if config.choose(False, True) else found.visible()


# ---- find people


def find_people(out: dict, i: int, config: Config) -> People:
    """Peaks of the heat map and their maps, each person once."""
    cells, scores = find_centers(out['heatmap'][i, 0], config)  # (N,), (N,)
    k_ins = out['k_ins'][i].flatten(1).T[cells]                 # (N, C)
    q_ins = correlate(k_ins, out['f_ins'][i], config.space)     # (N, h, w)  Eq. (2)
    people = People(cells, scores, q_ins)
    return people.take(distinct(q_ins > config.theta_mask, config.theta_same))


def find_centers(heatmap: torch.Tensor, config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """Sigmoid of Eq. (1) and WHERE(H_c > theta_c) of Eq. (2), kept to local maxima of 5x5 cells:
    the target of a person is a rectangle. Logits (S, S) -> cells (N,) = row * S + column, scores
    (N,) descending, at most max_people."""
    logits = keep_peaks(heatmap.float(), config)
    logits, cells = logits.flatten().sort(descending=True, stable=True)
    scores = logits.sigmoid()
    found = (scores > config.theta_center).nonzero()[:config.max_people, 0]
    return cells[found], scores[found]


def keep_peaks(heatmap: torch.Tensor, config: Config) -> torch.Tensor:
    """Logits (S, S) -> the same, -inf where they are not the maximum of 5x5 cells (config.peaks).
    Logits, because the sigmoid of confident cells saturates: a plateau of 1.0 would be many
    people."""
    if config.choose(False, True):
        heatmap = released.keep_corner_peaks(heatmap)
    highest = F.max_pool2d(heatmap[None], config.peaks, 1, config.peaks // 2)[0]
    return heatmap.masked_fill(heatmap != highest, -torch.inf)


def kernels_at(out: dict, i: int, centers: np.ndarray, geometry: Geometry,
               config: Config) -> np.ndarray:
    """The kernels of people of image i whose centers (N, 2) `decode` gave: k_ins at their cells,
    (N, C), of unit length in each space."""
    cells = geometry.cells_at(torch.from_numpy(centers), config.grid)
    k_ins = out['k_ins'][i].flatten(1).T.cpu()[cells]
    return F.normalize(k_ins, dim=1).numpy()


# ---- rank them


def rank_people(people: People, q_cate: torch.Tensor, config: Config) -> People:
    """--score center: unchanged. --score parsing, an option of ours: by the clarity of their
    parts. --theta-person, another: only people with a clear center and map."""
    if config.theta_person:
        quality = map_quality(people.q_ins > config.theta_mask, people.q_ins, people.scores)
        people = people.take(quality > config.theta_person)
    if config.score == 'center':
        return people
    scores = parsing_quality(people.q_ins > config.theta_mask, people.q_ins, q_cate)
    best = scores.argsort(descending=True, stable=True)
    number = (scores > config.theta_score).sum()
    return People(people.cells, scores, people.q_ins).take(best[:number])


# ---- paint their parts


def paint_parts(people: People, q_cate: torch.Tensor, f_cate: torch.Tensor, geometry: Geometry,
                config: Config, fusion: Fusion | None,
                unsure: torch.Tensor | None = None) -> np.ndarray:
    """Sec. 3.4, index: the map of a person selects from the maps of the categories. Returns parsing
    (N, H0, W0) uint8, at the photo's size. unsure (K, h, w) bool: where a class is not painted."""
    theta_paint = config.theta_paint or config.theta_mask
    paint_person = config.choose(paint, released.paint)
    index = config.fusion == 'index'
    # A learned fusion decides everywhere; index decides in the person's pixels.
    theta_mask = config.theta_mask if index else -math.inf
    inside = people.q_ins > theta_mask                          # (N, h, w)
    if index and config.assign == 'correlation':
        scores = part_scores(inside, q_cate, theta_paint)       # (N, K)
    parsing = np.zeros((len(inside), *geometry.photo), np.uint8)
    for n in range(len(inside)):
        # The maps of the classes in this person, (K, h, w), and how clear each class is, (K,).
        if config.assign == 'mixture':
            maps, score = mixture(q_cate, inside[n], config.theta_part)
        elif index:
            maps = q_cate
            score = scores[n]
        else:
            maps = fusion(people.q_ins[n:n + 1], q_cate, f_cate)[0]
            score = part_scores(inside[n:n + 1], maps, theta_paint)[0]
        if unsure is not None:
            maps = maps.masked_fill(unsure, 0)
        classes = (score > config.theta_part).nonzero()[:, 0]
        if config.whole:
            keep_whole(parsing[n], people.q_ins[n], geometry.size, config.theta_mask)
        if len(classes):
            paint_person(parsing[n], inside[n] * maps[classes], classes, geometry.size, theta_paint)
    return parsing


def part_scores(inside: torch.Tensor, q: torch.Tensor, theta: float) -> torch.Tensor:
    """How clear each class is inside each person (released code, "maskness"): the sum of its
    correlations above theta over the number of those above 0.1. inside (N, h, w) bool, q (K, h, w)
    -> (N, K)."""
    inside = inside.flatten(1).float()
    q = q.flatten(1)
    sums = inside @ (q * (q > theta)).T
    counts = inside @ (q > 0.1).float().T
    return sums / (counts + 1e-5)
