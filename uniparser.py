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
code (util/released.py) what no other field does; docs/differences.md lists every such place.
"""
import preflight
preflight.require('data', 'util')

import difflib
import math
import os
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from data import input_size, network_input, to_photo
from util import released
from util.backbone import Backbone
from util.beyond import averaged, distinct, fitting, map_quality, mixture, parsing_quality
from util.checkpoints import (FORMAT, check_settings, load_pretrained, load_strictly, name_command, read_checkpoint,
                              reading, write_checkpoint)
from util.results import Parsing
from util.run import check_ranges, find_device
from util.tensors import bilinear_taps, resize_map
from util.whole import keep_whole


# ---------------------------------------------------------------------------------------------------------------
# Configuration: one flat dataclass; presets are differences from it


@dataclass(frozen=True)
class Config:
    recipe: str = 'paper'               # paper | released: follow the text or the released code; see RELEASED
    # data
    data: str = 'MHP'
    num_classes: int = 58               # K: parts, without the background
    short_side: tuple = (640, 800)      # Sec. 4.1; two values: a range, else: choices
    long_side: int = 1333               # at most
    test_short_side: int = 800
    flip: float = 0.5                   # probability
    crop: float = 0.0                   # probability of a random crop
    crop_min: float = 0.5               # its smallest share of the width, and of the height
    color_jitter: float = 0.0           # strength; 0 = off
    degrade: float = 0.0                # probability of gray, dark, blurred and compressed images, of each
    # network
    backbone: str = 'resnet50'          # any torchvision ResNet
    pretrained: str = 'imagenet'        # imagenet | '' = from scratch | file: torchvision's keys, or a UniParser
    pretrained_stages: int = 0          # set on loading: the stages that keep their ImageNet BatchNorm statistics
    dcn: bool = True                    # modulated deformable convolution in stages 2-4 (Sec. 6.1)
    light: bool = False                 # UniParser_light: P2 alone instead of the pyramid (Sec. 4.2)
    neck_channels: int = 256            # of the pyramid and of F_neck
    compress_kernel: int = 1            # Sec. 3.1; released code: 3
    share_compression: bool = True      # one F_neck for all branches; released code: the category branch has its own
    channels: int = 128                 # C (Sec. 6.1)
    center_depth: int = 4               # plus the output convolution makes 5 (Sec. 3.2)
    depth: int = 5                      # convolutions of the other two branches; released code: 4
    category_coords: bool = False       # relative coordinates in the category branch too; released code: True
    space: str = 'cosine'               # cosine | inner | sigmoid_after | sigmoid_before (Tab. 4 c)
    fusion: str = 'index'               # index | convs | multi (Tab. 4 d)
    # targets (Secs. 3.2, 6.1)
    grid: int = 40                      # S
    sigma: float = 0.2
    center_radius: int = 0              # largest distance, in cells, from the barycenter's; 0 = any; released: 1
    # loss weights (Sec. 6.2); 0 switches a term off (Tabs. 4, 5)
    lambda_center: float = 1.0
    lambda_ins: float = 3.0             # lambda_aux, for each of the three parts of Eq. (5)
    lambda_cate: float = 3.0
    lambda_neg: float = 3.0
    lambda_par: float = 3.0
    lambda_metric: float = 1.0
    lambda_cross: float = 0.0           # of a class-balanced cross-entropy of the categories; not in the paper
    lambda_pull: float = 0.0            # Sec. 6.5, CIHP; recipe released: only whether it is 0 counts
    # inference (Sec. 6.2)
    theta_center: float = 0.1
    theta_mask: float = 0.5
    theta_paint: float = 0.0            # correlation (mixture: posterior) a pixel's class must reach; 0 = theta_mask
    theta_part: float = 0.3             # its mean that a part must reach; from the released code
    theta_same: float = 0.6             # mask IoU above which two detections are the same person; 1 = never
    peaks: int = 5                      # a center is the maximum of this many cells squared; 1 = every cell
    max_people: int = 100
    score: str = 'center'               # center | parsing: of a person, see `parsing_quality`
    theta_score: float = 0.0            # --score parsing: people below it are left out
    theta_person: float = 0.0           # people whose `map_quality` is below it are left out
    assign: str = 'correlation'         # correlation | mixture: of classes to a person's pixels, see `mixture`
    whole: bool = False                 # pixels of a person that no class claims are 255, not 0
    flip_test: bool = False             # average the photo with its mirror image: twice the time
    # training (Secs. 4.1, 6.2)
    batch_size: int = 8                 # images per step, over all processes
    accumulate: int = 1                 # passes per step, each with a share of its images
    epochs: int = 12
    milestones: tuple = ()              # epochs after which the rate is divided by 10; () = at 3/4 and 11/12
    optimizer: str = 'sgd'              # sgd | adamw
    lr: float = 6.25e-4                 # per image of the batch
    backbone_lr: float = 1.0            # factor on the backbone's rate
    schedule: str = 'step'              # step | cosine
    warmup: int = 500                   # iterations
    weight_decay: float = 1e-4
    clip: float = 35.0                  # gradients are clipped to this norm; 0 = never
    samples: int = 0                    # training images per epoch of CCP and synthetic; 0 = their default
    backgrounds: str = ''               # CCP: folder of photos without people, for a fifth of the scenes
    people: str = ''                    # CCP: folder of images/ and instances/, people without parts, for a tenth
    tagged: str = ''                    # CCP: folder of label maps of further photos, see util/tagged.py
    rare: float = 0.0                   # CCP: people with classes of a smaller share are drawn more often; 0 = off
    things: float = 0.0                 # CCP: share of scenes with blobs, mostly of clothes, that are nobody
    coco: str = ''                      # CCP: folder of COCO, whose photos of people are a share of the images
    coco_share: float = 0.5             # that share
    licenses: str = ''                  # of COCO's photos: free, or ids such as 4,5; '' = all
    parts: str = ''                     # folder of label maps of COCO's people, see util/keypoints.py
    val_every: int = 1                  # epochs
    val_images: int = 0                 # 0 = all
    workers: int = 4
    seed: int = 0

    def __post_init__(self):
        check_ranges(self, RANGES, CHOICES)
        if not self.short_side or len(self.short_side) == 2 and self.short_side[0] > self.short_side[1]:
            raise ValueError(f'--short-side is {" ".join(map(str, self.short_side)) or "empty"}; give a range, the '
                             'smaller value first, such as 640 800, or one value, or several')
        if self.fusion != 'index' and (self.flip_test or self.assign == 'mixture'):
            raise ValueError(f'--flip-test and --assign mixture are for --fusion index, not {self.fusion}')


THETAS = 'theta_center', 'theta_mask', 'theta_paint', 'theta_part', 'theta_same', 'theta_score', 'theta_person'
INFERENCE = *THETAS, 'peaks', 'max_people', 'score', 'assign', 'whole', 'flip_test', 'test_short_side', 'long_side'
CHOICES = dict(recipe=('paper', 'released'), space=('cosine', 'inner', 'sigmoid_after', 'sigmoid_before'),
               fusion=('index', 'convs', 'multi'), optimizer=('sgd', 'adamw'), score=('center', 'parsing'),
               assign=('correlation', 'mixture'), schedule=('step', 'cosine'),
               **dict.fromkeys(('compress_kernel', 'peaks'), (1, 3, 5, 7)))
RANGES = dict(
    num_classes=(1, 254), short_side=(1, 10000), long_side=(1, 10000), test_short_side=(1, 10000), grid=(2, 1000),
    pretrained_stages=(0, 4), neck_channels=(1, 4096), channels=(1, 4096), center_depth=(1, 50), depth=(1, 50),
    sigma=(0, 100), center_radius=(0, 1000), max_people=(1, 255), batch_size=(1, 10 ** 6), accumulate=(1, 10 ** 6),
    epochs=(1, 10 ** 6), milestones=(0, 10 ** 6), lr=(0, 1000), backbone_lr=(0, 1000), warmup=(0, 10 ** 9),
    weight_decay=(0, 1000), clip=(0, 10 ** 9), samples=(0, 10 ** 9), val_every=(1, 10 ** 6), val_images=(0, 10 ** 9),
    workers=(0, 1000), seed=(0, 2 ** 32), **{f.name: (0, 10 ** 6) for f in fields(Config) if f.name[:6] == 'lambda'},
    **dict.fromkeys((*THETAS, 'flip', 'crop', 'crop_min', 'color_jitter', 'degrade', 'rare', 'things',
                     'coco_share'), (0, 1)))
RELEASED = dict(recipe='released', short_side=(640, 672, 704, 736, 768, 800), compress_kernel=3, depth=4,
                share_compression=False, category_coords=True, center_radius=1, lambda_neg=2.0, theta_same=1.0)
SYNTHETIC = dict(data='synthetic', num_classes=6, short_side=(96,), long_side=128, test_short_side=96, workers=0,
                 backbone='resnet10', pretrained='', dcn=False, neck_channels=64, channels=32, depth=3, center_depth=3,
                 center_radius=1, epochs=2, optimizer='adamw', lr=3.75e-4, schedule='cosine', warmup=50, samples=1600)
CROWD = dict(SYNTHETIC, data='crowd', num_classes=12, center_radius=0, epochs=1, batch_size=4, lr=7.5e-4, samples=1600)
CIHP = dict(data='CIHP', num_classes=19, epochs=75, milestones=(50, 65), lambda_neg=0.0, lambda_pull=1.0)   # Sec. 6.5
CCP = dict(data='CCP', num_classes=19, short_side=(240, 320), long_side=320, test_short_side=320, color_jitter=0.3,
           crop=0.4, crop_min=0.35, degrade=0.05, backbone='resnet18', dcn=False, neck_channels=128, channels=64,
           depth=3, center_depth=3, center_radius=1, lambda_cross=1.0, score='parsing', theta_score=0.25,
           assign='mixture', theta_paint=0.45, theta_part=0.65, epochs=20, optimizer='adamw', lr=1.25e-4,
           backbone_lr=0.3, schedule='cosine', warmup=100, val_every=5, workers=1)
PRESETS = {
    'mhp': {}, 'cihp': CIHP, 'synthetic': SYNTHETIC, 'crowd': CROWD,
    'densepose': dict(data='DensePose', num_classes=14), 'mhp_released': dict(RELEASED, epochs=36, theta_center=0.2),
    'cihp_released': dict(CIHP, **dict(RELEASED, lambda_neg=0.0), backbone='resnet101', light=True, lambda_center=0.2,
                          lr=2.25e-4, warmup=0, theta_part=0.275),
    'ccp': CCP, 'coco': dict(CCP, data='COCO'),
    'crowd_released': dict(CROWD, **dict(RELEASED, short_side=(96,), depth=3))}


def get_config(preset='mhp', **changes):
    """Config of a preset with some fields changed; ValueError on unknown names."""
    if preset not in PRESETS:
        raise ValueError(f'unknown preset {preset!r}; choose one of {", ".join(PRESETS)}')
    names = [f.name for f in fields(Config)]
    for name in (name for name in changes if name not in names):
        close = difflib.get_close_matches(name, names, 1)
        raise ValueError(f'unknown setting {name!r}' + (f'; did you mean {close[0]!r}?' if close else ''))
    return replace(Config(), **{**fitting(PRESETS[preset], changes), **changes})


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
    if config.theta_person:
        sure = map_quality(q_ins > config.theta_mask, q_ins, scores) > config.theta_person
        cells, scores, q_ins = cells[sure], scores[sure], q_ins[sure]
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
        if config.whole:
            keep_whole(parsing[n], paint_person(q_ins[n], photo, size, config.theta_mask))
    x, y = ((2 * cell + 1) / (2 * config.grid) for cell in (cells % config.grid, cells // config.grid))
    centers = torch.stack([x * padded[1] / size[1] * photo.width, y * padded[0] / size[0] * photo.height], 1)
    people = Parsing(parsing, scores.cpu().numpy(), centers.cpu().numpy())
    return people if config.recipe == 'released' else people.visible()      # the released code returns empty people


def paint_person(q_ins, photo, size, theta):
    """Mask (H0, W0) uint8 of the person with the map q_ins (h, w). size: as of `paint`."""
    mask = np.zeros((photo.height, photo.width), np.uint8)
    paint(mask, q_ins[None], torch.zeros(1), size, theta)
    return mask


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
