"""Building blocks of A-CE2P, the network of SCHP, its released files, and the folding of its norms. Names are those of
the released code.

Maps c1 .. c4 are the backbone's stages, at strides 4, 8, 16 and 16.
"""
import copy
import itertools

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from util.checkpoints import load_strictly, read_checkpoint
from schp.norms import EPS, SLOPE, InPlaceABN

def conv(channels, out, kernel=1, stride=1, dilation=1, bias=False):
    return nn.Conv2d(channels, out, kernel, stride, dilation * (kernel // 2), dilation, bias=bias)


def bare_norm(channels):
    return InPlaceABN(channels, activation=None)


def unit(channels, out, kernel=1):
    """Convolution, norm and leaky ReLU, as a list of two modules."""
    return [conv(channels, out, kernel), InPlaceABN(out)]


def resize(x, size):
    return F.interpolate(x, size, mode='bilinear', align_corners=True)


class Bottleneck(nn.Module):
    """ResNet's block with expansion 4; the 3x3 convolution carries stride and dilation."""

    def __init__(self, channels, planes, stride=1, dilation=1):
        super().__init__()
        self.conv1, self.bn1 = conv(channels, planes), bare_norm(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3, stride, dilation), bare_norm(planes)
        self.conv3, self.bn3 = conv(planes, 4 * planes), bare_norm(4 * planes)
        self.downsample = nn.Identity() if channels == 4 * planes else nn.Sequential(
            conv(channels, 4 * planes, stride=stride), bare_norm(4 * planes))

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu_()
        y = self.bn2(self.conv2(y)).relu_()
        return (self.bn3(self.conv3(y)) + self.downsample(x)).relu_()


class ContextEncoding(nn.Module):
    """Pyramid scene parsing: averages over 1, 4, 9 and 36 regions join every position of c4."""

    def __init__(self, channels, out):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(n), *unit(channels, out)) for n in (1, 2, 3, 6))
        self.bottleneck = nn.Sequential(*unit(channels + 4 * out, out, 3))

    def forward(self, c4):
        return self.bottleneck(torch.cat([*(resize(stage(c4), c4.shape[2:]) for stage in self.stages), c4], 1))


class Decoder(nn.Module):
    """The parsing branch: context (stride 16) and c1 (stride 4) -> feature (stride 4); conv4 classifies it."""

    def __init__(self, context, c1, mid, low, num_classes):
        super().__init__()
        self.conv1 = nn.Sequential(*unit(context, mid))
        self.conv2 = nn.Sequential(*unit(c1, low))
        self.conv3 = nn.Sequential(*unit(mid + low, mid), *unit(mid, mid))
        self.conv4 = conv(mid, num_classes, bias=True)

    def forward(self, context, c1):
        return self.conv3(torch.cat([resize(self.conv1(context), c1.shape[2:]), self.conv2(c1)], 1))


class EdgeBranch(nn.Module):
    """Features of c1, c2, c3 (each at its own size); edge logits (B,2,h,w) from all three, h and w those of c1."""

    def __init__(self, channels, mid):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Sequential(*unit(n, mid)) for n in channels)
        self.conv4 = conv(mid, 2, 3, bias=True)           # the same for the three scales
        self.conv5 = conv(6, 2, bias=True)

    def features(self, c1, c2, c3):
        return [self.conv1(c1), self.conv2(c2), self.conv3(c3)]

    def forward(self, features):
        return self.conv5(stack_maps([self.conv4(f) for f in features]))


def stack_maps(maps):
    """Maps of several scales -> their channels side by side at the size of the first."""
    return torch.cat([maps[0], *(resize(m, maps[0].shape[2:]) for m in maps[1:])], 1)


def convolve_stack(convolution, maps):
    """convolution(stack_maps(maps)) of a 1x1 convolution, without the stack: it commutes with resizing, so each map is
    convolved at its own size."""
    shares, size = convolution.weight.split([m.shape[1] for m in maps], 1), maps[0].shape[2:]
    total = F.conv2d(maps[0], shares[0], convolution.bias)
    for x, share in zip(maps[1:], shares[1:]):
        x = F.conv2d(x, share)
        total = total + (x if x.shape[2:] == size else resize(x, size))
    return total


def fold_norms(model):
    """A copy for inference whose norms are folded into the convolutions before them: the same outputs, faster."""
    model = copy.deepcopy(model).eval()
    for parent, conv_name, norm_name in list(conv_norm_pairs(model)):
        convolution, norm = getattr(parent, conv_name), getattr(parent, norm_name)
        scale = norm.weight.abs() + EPS if isinstance(norm, InPlaceABN) else norm.weight
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, scale, norm.bias)
        leaky = getattr(norm, 'activation', None)
        setattr(parent, norm_name, nn.LeakyReLU(SLOPE, inplace=True) if leaky else nn.Identity())
    return model.requires_grad_(False)


def conv_norm_pairs(model):
    """(parent, name of a convolution, name of the batch norm of either kind that follows it), of a model."""
    for parent in model.modules():
        for (first, convolution), (second, norm) in itertools.pairwise(parent.named_children()):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, (InPlaceABN, nn.BatchNorm2d)):
                yield parent, first, second


@torch.no_grad()
def convert_plain_norms(model):
    """Weights of plain BatchNorm -> of InPlaceABN, the same function: a negative scale moves into the convolution."""
    for parent, conv_name, norm_name in conv_norm_pairs(model):
        convolution, norm = getattr(parent, conv_name), getattr(parent, norm_name)
        sign = torch.where(norm.weight < 0, -1.0, 1.0)
        convolution.weight.mul_(sign[:, None, None, None])
        norm.running_mean.mul_(sign)
        norm.weight.copy_((norm.weight.abs() - EPS).clamp(min=0))


# ---- released files ----------------------------------------------------------------------------------------


def released_weights(state):
    """The dictionary of a file -> weights by our names, and whether their norms are plain BatchNorm.

    Two generations share the file names. Files of 2019 have plain BatchNorm with its counters, and outside the
    backbone a norm is a module `bn` within another; files since 2020 have InPlaceABN."""
    state = state.get('state_dict', state)
    state = {str(k).removeprefix('module.'): v for k, v in state.items()}
    plain = any(k.endswith('.num_batches_tracked') for k in state if not k.startswith('head.'))      # SegFormer's head
    return {k.replace('.bn.', '.') if plain else k: v for k, v in state.items()
            if not (plain and k.endswith('.num_batches_tracked'))}, plain


def load_imagenet(model, path):
    """ImageNet weights into the backbone: resnet101-imagenet.pth of MIT CSAIL (sceneparsing.csail.mit.edu), whose stem
    of three 3x3 convolutions torchvision's ResNet does not have. Its scales are read as |w| + eps, as in training."""
    heads = {k: v for k, v in model.state_dict().items() if not k.startswith(('conv', 'bn', 'layer'))}
    weights = {k: v for k, v in read_checkpoint(path).items()
               if not k.startswith('fc.') and not k.endswith('.num_batches_tracked')}
    load_strictly(model, {**heads, **weights}, path)
