"""Layers that A-CE2P and its SegFormer variant share: the norm, the edge branch, the fusion layers.

Modules and parameters have the names of the released code, so its weights load by name. c1, c2 and
c3 are the first three maps of the backbone.
"""
import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F

from backbone import fold_norm
from util.tensors import resize_map

HEADS = ('parsing', 'fusion', 'edge')

# Of InPlaceABN, as released.
EPS = 1e-5
SLOPE = 0.01
MOMENTUM = 0.1


# ---- the norm ----------------------------------------------------------------------------------


class InPlaceABN(nn.Module):
    """Batch norm and activation, with the meaning of InPlaceABN's weights.

        y = act((x - mean) / sqrt(var + eps) * (|weight| + eps) + bias)

    x: (B, num_features, H, W). act: leaky ReLU with slope 0.01, or None.

    InPlaceABN (Rota Bulo et al. 2018, arXiv:1712.02616) recovers its input from its output, which
    needs a positive scale. So its scale is |weight| + eps, and stored weights may be negative.
    Never copy them to a plain batch norm: with a quarter of them negative, every fifteenth pixel
    gets another label. Training is that of BatchNorm2d, except that the gradient of the scale is
    that of |weight|. Checkpoints hold no num_batches_tracked.
    """

    def __init__(self, num_features: int, activation: str | None = 'leaky_relu'):
        if activation not in ('leaky_relu', None):
            raise ValueError(f'activation is {activation!r}; it can be leaky_relu or None')
        super().__init__()
        self.activation = activation
        self.eps = EPS
        # `reestimate_norms` changes it for a while.
        self.momentum = MOMENTUM
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer('running_mean', torch.zeros(num_features))
        self.register_buffer('running_var', torch.ones(num_features))

    def scale(self) -> torch.Tensor:
        """|weight| + eps, (num_features,)."""
        return self.weight.abs() + self.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and x.numel() == x.shape[1]:
            raise ValueError('norms need batches of at least two images in training: one value has '
                             'no variance')
        x = F.batch_norm(x, self.running_mean, self.running_var, self.scale(), self.bias,
                         self.training, self.momentum, self.eps)
        return F.leaky_relu(x, SLOPE) if self.activation else x


def conv_norm_pairs(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """All pairs of a convolution and the norm right behind it: (their parent, its name of the
    convolution, its name of the norm)."""
    for parent in model.modules():
        children = parent.named_children()
        for (conv_name, convolution), (norm_name, norm) in itertools.pairwise(children):
            is_norm = isinstance(norm, (InPlaceABN, nn.BatchNorm2d))
            if isinstance(convolution, nn.Conv2d) and is_norm:
                yield parent, conv_name, norm_name


def fold_norms(model: nn.Module):
    """Folds every norm into the convolution before it, in place. Leaky ReLUs stay."""
    for parent, conv_name, norm_name in list(conv_norm_pairs(model)):
        norm = getattr(parent, norm_name)
        is_abn = isinstance(norm, InPlaceABN)
        fold_norm(getattr(parent, conv_name), norm, norm.scale() if is_abn else norm.weight)
        is_leaky = is_abn and norm.activation is not None
        setattr(parent, norm_name, nn.LeakyReLU(SLOPE, inplace=True) if is_leaky else nn.Identity())


@torch.no_grad()
def convert_plain_norms(model: nn.Module):
    """Turns weights of plain batch norm, which the InPlaceABN layers of `model` hold, into weights
    of InPlaceABN. The outputs are the same. The sign of a scale moves into the convolution before
    it."""
    for parent, conv_name, norm_name in conv_norm_pairs(model):
        convolution = getattr(parent, conv_name)
        norm = getattr(parent, norm_name)
        sign = torch.where(norm.weight < 0, -1.0, 1.0)
        convolution.weight.mul_(sign[:, None, None, None])
        norm.running_mean.mul_(sign)
        norm.weight.copy_((norm.weight.abs() - EPS).clamp(min=0))


# ---- convolutions ------------------------------------------------------------------------------


def conv(channels: int, out: int, kernel: int = 1, stride: int = 1, dilation: int = 1,
         bias: bool = False) -> nn.Conv2d:
    """A convolution that keeps the size of its input, but for the stride."""
    padding = dilation * (kernel // 2)
    return nn.Conv2d(channels, out, kernel, stride, padding, dilation, bias=bias)


def bare_norm(channels: int) -> InPlaceABN:
    return InPlaceABN(channels, activation=None)


def unit(channels: int, out: int, kernel: int = 1) -> list[nn.Module]:
    """A convolution and a norm with leaky ReLU."""
    return [conv(channels, out, kernel), InPlaceABN(out)]


def stack_maps(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Maps (B, C_i, h_i, w_i) -> (B, sum of C_i, h, w), resized to the size of the first."""
    size = maps[0].shape[2:]
    return torch.cat([maps[0], *(resize_map(x, size) for x in maps[1:])], 1)


def convolve_stack(convolution: nn.Conv2d, maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """convolution(stack_maps(maps)) of a 1x1 convolution, without the stack.

    A 1x1 convolution commutes with resizing, so each map is convolved at its own size."""
    size = maps[0].shape[2:]
    first, *others = convolution.weight.split([x.shape[1] for x in maps], 1)
    total = F.conv2d(maps[0], first, convolution.bias)
    for x, weight in zip(maps[1:], others):
        x = F.conv2d(x, weight)
        total = total + (x if x.shape[2:] == size else resize_map(x, size))
    return total


# ---- branches ----------------------------------------------------------------------------------


class EdgeBranch(nn.Module):
    """Edges between parts, from c1, c2 and c3. channels: of these maps; mid: of the features."""

    def __init__(self, channels: Sequence[int], mid: int):
        super().__init__()
        self.conv1 = nn.Sequential(*unit(channels[0], mid))
        self.conv2 = nn.Sequential(*unit(channels[1], mid))
        self.conv3 = nn.Sequential(*unit(channels[2], mid))
        # The same for the three scales.
        self.conv4 = conv(mid, 2, 3, bias=True)
        self.conv5 = conv(6, 2, bias=True)

    def features(self, c1: torch.Tensor, c2: torch.Tensor, c3: torch.Tensor) -> list[torch.Tensor]:
        """-> three maps of `mid` channels, each of the size of its input."""
        return [self.conv1(c1), self.conv2(c2), self.conv3(c3)]

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """What `features` returns -> edge logits (B, 2, h, w), h and w those of c1."""
        return self.conv5(stack_maps([self.conv4(x) for x in features]))


class Fusion(nn.Sequential):
    """The last layers: the parsing feature (B, mid, h, w) and the three features of the edge branch
    -> fusion logits (B, num_classes, h, w), those of inference."""

    def __init__(self, mid: int, num_classes: int):
        super().__init__(*unit(4 * mid, mid), nn.Dropout2d(0.1), conv(mid, num_classes, bias=True))

    def forward(self, feature: torch.Tensor, edge_features: list[torch.Tensor]) -> torch.Tensor:
        first, norm, dropout, last = self
        x = convolve_stack(first, [feature, *edge_features])
        return last(dropout(norm(x)))
