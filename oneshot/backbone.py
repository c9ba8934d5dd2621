"""The backbone of EOP-Net and POPNet: a DeepLabv3+ (Chen et al. 2018) on an Xception, trained on
COCO.

Names are those of the released state dicts, because files are loaded by name. In the released code
the first ReLU of a block works in place, so that the skip connection carries relu(x), not x. Here
that is written out.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from util.checkpoints import read_checkpoint, to_float
from util.tensors import resize_map

# -------------------------------------------------------------------------------------------------
# Xception


class SepConv(nn.Module):
    """Depthwise 3x3 and pointwise 1x1 convolution, each with BatchNorm; with `relu` also each with
    a ReLU."""

    def __init__(self, c_in, c_out, stride=1, dilation=1, relu=False):
        super().__init__()
        self.depthwise = nn.Conv2d(c_in, c_in, 3, stride, padding=dilation, dilation=dilation,
                                   groups=c_in, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(c_in)
        self.pointwise = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.pointwise_bn = nn.BatchNorm2d(c_out)
        self.act = nn.ReLU() if relu else nn.Identity()

    def forward(self, x):
        x = self.act(self.depthwise_bn(self.depthwise(x)))
        return self.act(self.pointwise_bn(self.pointwise(x)))


class Block(nn.Module):
    """Three separable convolutions, each after a ReLU, and a skip connection.

    The third has the stride. The skip is a 1x1 convolution with BatchNorm where the shape changes.
    Without `leading_relu` the first convolution has no ReLU before it.
    """

    def __init__(self, c_in, c_mid, c_out, stride=1, leading_relu=True):
        super().__init__()
        self.leading_relu = leading_relu
        self.skip = None
        self.skipbn = None
        if stride > 1 or c_in != c_out:
            self.skip = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.skipbn = nn.BatchNorm2d(c_out)
        layers = [nn.ReLU(), SepConv(c_in, c_mid),
                  nn.ReLU(), SepConv(c_mid, c_out),
                  nn.ReLU(), SepConv(c_out, c_out, stride)]
        if not leading_relu:
            layers = layers[1:]
        self.rep = nn.Sequential(*layers)

    def shortcut(self, x):
        if self.skip is None:
            return x
        return self.skipbn(self.skip(x))

    def forward(self, x):
        # The skip connection carries relu(x); the same ReLU inside `rep` then changes nothing.
        if self.leading_relu:
            x = F.relu(x)
        return self.rep(x) + self.shortcut(x)


class LowLevelBlock(Block):
    """Block 2. It also returns the map before its last convolution: the decoder's low-level
    feature."""

    def __init__(self, c_in, c_out):
        super().__init__(c_in, c_out, c_out, 2)
        self.block2_lastconv = nn.Sequential(*self.rep[4:])
        self.rep = self.rep[:4]

    def forward(self, x):
        x = F.relu(x)
        low = self.rep(x)
        return self.block2_lastconv(low) + self.shortcut(x), low


class Xception(nn.Module):
    """Images (B,3,H,W) -> low-level feature (B,8w,H/4,W/4) and output (B,64w,H/16,W/16), for a stem
    of w channels. Sizes are rounded up. The released network has w = 32 and 16 middle blocks."""

    def __init__(self, stem=32, middle=16):
        super().__init__()
        c = [channels * stem // 32 for channels in (32, 64, 128, 256, 728, 1024, 1536, 2048)]
        self.low_channels = c[3]
        self.channels = c[7]
        self.last = middle + 4                                     # number of the last block
        # Entry flow.
        self.conv1 = nn.Conv2d(3, c[0], 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c[0])
        self.conv2 = nn.Conv2d(c[0], c[1], 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c[1])
        self.block1 = Block(c[1], c[2], c[2], 2, leading_relu=False)
        self.block2 = LowLevelBlock(c[2], c[3])
        self.block3 = Block(c[3], c[4], c[4], 2)
        # Middle flow.
        for i in range(4, self.last):
            self.add_module(f'block{i}', Block(c[4], c[4], c[4]))
        # Exit flow.
        self.add_module(f'block{self.last}', Block(c[4], c[4], c[5]))
        self.conv3 = SepConv(c[5], c[6], dilation=2, relu=True)
        self.conv4 = SepConv(c[6], c[6], dilation=2, relu=True)
        self.conv5 = SepConv(c[6], c[7], dilation=2, relu=True)

    def forward(self, images):
        x = F.relu(self.bn1(self.conv1(images)))                   # (B, w, H/2, W/2)
        x = F.relu(self.bn2(self.conv2(x)))
        x, low = self.block2(self.block1(x))                       # H/8, and low (B, 8w, H/4, W/4)
        for i in range(3, self.last + 1):
            x = self.get_submodule(f'block{i}')(x)                 # (B, 32w, H/16, W/16)
        return low, self.conv5(self.conv4(self.conv3(x)))


# -------------------------------------------------------------------------------------------------
# DeepLab


class Atrous(nn.Module):
    """A SepConv with ReLUs under the released name."""

    def __init__(self, c_in, c_out, dilation=1):
        super().__init__()
        self.atrous_convolution = SepConv(c_in, c_out, dilation=dilation, relu=True)

    def forward(self, x):
        return self.atrous_convolution(x)


class DeepLab(nn.Module):
    """The backbone and two decoders, `mid_level` and `high_level`: features of c channels at a
    quarter of the size. EOP-Net runs the first, POPNet the second; their files have both."""

    def __init__(self, stem=32, middle=16, c=256, high_level=True):
        super().__init__()
        self.xception_features = Xception(stem, middle)
        wide = self.xception_features.channels
        low = 3 * c // 16
        self.feature_projection_conv1 = nn.Conv2d(self.xception_features.low_channels, low, 1,
                                                  bias=False)
        self.feature_projection_bn1 = nn.BatchNorm2d(low)
        self.midfea_adapt_conv = nn.Conv2d(wide, c, 1, bias=False)
        self.midfea_adapt_bn = nn.BatchNorm2d(c)
        self.midfea_conv = nn.Sequential(Atrous(c + low, c))
        if high_level:
            self.add_high_level(wide, low, c)

    def add_high_level(self, wide, low, c):
        """DeepLab's pyramid and its decoder."""
        self.aspp1 = nn.Module()
        self.aspp1.atrous_convolution = nn.Conv2d(wide, c, 1, bias=False)
        self.aspp1.bn = nn.BatchNorm2d(c)
        self.aspp2 = Atrous(wide, c, 6)
        self.aspp3 = Atrous(wide, c, 12)
        self.aspp4 = Atrous(wide, c, 18)
        self.global_avg_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1),
                                             nn.Conv2d(wide, c, 1, bias=False),
                                             nn.BatchNorm2d(c), nn.ReLU())
        self.concat_projection_conv1 = nn.Conv2d(5 * c, c, 1, bias=False)
        self.concat_projection_bn1 = nn.BatchNorm2d(c)
        self.decoder1 = nn.Sequential(Atrous(c + low, c))

    def mid_level(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W), BGR in -1..1 -> (B,C,h,w), h = ceil(H/4), w = ceil(W/4)."""
        low, x = self.xception_features(images)
        x = F.relu(self.midfea_adapt_bn(self.midfea_adapt_conv(x)))                # (B,C,H/16,..)
        low = F.relu(self.feature_projection_bn1(self.feature_projection_conv1(low)))
        x = resize_map(x, low.shape[2:])                                           # (B,C,h,w)
        return self.midfea_conv(torch.cat([x, low], 1))

    def high_level(self, images: Tensor) -> Tensor:
        """The same of DeepLab's pyramid (B,3,H,W) -> (B,C,h,w)."""
        low, x = self.xception_features(images)
        levels = [F.relu(self.aspp1.bn(self.aspp1.atrous_convolution(x))),
                  self.aspp2(x), self.aspp3(x), self.aspp4(x),
                  self.global_avg_pool(x).expand(-1, -1, *x.shape[2:])]            # (B,C,H/16,..)
        x = F.relu(self.concat_projection_bn1(self.concat_projection_conv1(torch.cat(levels, 1))))
        low = F.relu(self.feature_projection_bn1(self.feature_projection_conv1(low)))
        x = resize_map(x, low.shape[2:])                                           # (B,C,h,w)
        return self.decoder1(torch.cat([x, low], 1))

    def load_backbone(self, path) -> list[str]:
        """Starts from DeepLabv3+ trained on COCO (deeplab_v3plus_v3.pth): copies every entry of the
        same name and shape, and returns their names. Other entries, such as DeepLab's classifier,
        are left out, as released. ValueError where none fits the backbone."""
        own = self.state_dict()
        fitting = {key: value for key, value in read_weights(path).items()
                   if key in own and own[key].shape == value.shape}
        if not any(key.startswith('xception_features.') for key in fitting):
            raise ValueError(f'{path} has no weight that fits this backbone; give '
                             'deeplab_v3plus_v3.pth')
        self.load_state_dict(to_float(fitting, own, path), strict=False)
        return list(fitting)


def read_weights(path) -> dict[str, Tensor]:
    """The state dict of a file of ours or of the authors, without the prefix that DataParallel
    adds. ValueError where there is none."""
    state = read_checkpoint(path)
    if 'format' in state:
        state = state.get('model', state)
    else:
        state = state.get('state_dict', state)
    if not isinstance(state, dict):
        raise ValueError(f'{path} holds no state dict; give a checkpoint of EOP-Net or '
                         'deeplab_v3plus_v3.pth')
    return {str(key).removeprefix('module.'): value for key, value in state.items()
            if torch.is_tensor(value)}
