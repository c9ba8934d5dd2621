"""Layers of SCHP's two networks: the norm, convolutions with it, the edge branch, and the folding of norms."""
import copy
import itertools

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

EPS, SLOPE, MOMENTUM = 1e-5, 0.01, 0.1


class InPlaceABN(nn.Module):
    """Batch norm and activation with the meaning of InPlaceABN's weights (Rota Bulo et al. 2018, arXiv:1712.02616):

        y = act((x - mean) / sqrt(var + eps) * (|weight| + eps) + bias),   act: leaky ReLU with slope 0.01, or None

    x: (B, num_features, H, W). InPlaceABN recovers its input from its output, which needs a positive scale; so it uses
    |weight| + eps, and stored weights may be negative. A loader for plain batch norm must not copy `weight`: a quarter
    of negative scales changes every fifteenth pixel's label. It trains as BatchNorm2d does, except that the scale's
    gradient is that of |weight|. Checkpoints hold weight, bias, running_mean and running_var, and no
    num_batches_tracked.
    """

    def __init__(self, num_features, activation='leaky_relu', eps=EPS, momentum=MOMENTUM):
        if activation not in ('leaky_relu', None):
            raise ValueError(f'activation is {activation!r}; it can be leaky_relu or None')
        super().__init__()
        self.activation, self.eps, self.momentum = activation, eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        self.register_buffer('running_mean', torch.zeros(num_features))
        self.register_buffer('running_var', torch.ones(num_features))

    def forward(self, x):
        if self.training and x.numel() == x.shape[1]:
            raise ValueError('norms need batches of at least two images in training: one value has no variance')
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight.abs() + self.eps, self.bias,
                         self.training, self.momentum, self.eps)
        return F.leaky_relu(x, SLOPE) if self.activation else x


def conv(channels, out, kernel=1, stride=1, dilation=1, bias=False):
    return nn.Conv2d(channels, out, kernel, stride, dilation * (kernel // 2), dilation, bias=bias)


def bare_norm(channels):
    return InPlaceABN(channels, activation=None)


def unit(channels, out, kernel=1):
    """Convolution, norm and leaky ReLU, as a list of two modules."""
    return [conv(channels, out, kernel), InPlaceABN(out)]


def resize(x, size):
    return F.interpolate(x, size, mode='bilinear', align_corners=True)


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
