"""The Xception-65-like backbone of EOP-Net, from a DeepLabv3+ (Chen et al. 2018) that was trained on COCO.

Names are those of the released state dicts, because files are loaded by name. In the released code the leading ReLU of
a block works in place, so its skip connection carries relu(x), not x. Here that is written out.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from util.checkpoints import read_checkpoint


class SepConv(nn.Module):
    """Depthwise 3x3 and pointwise 1x1 convolution, each with BatchNorm; with `relu`, each with a ReLU too."""

    def __init__(self, c_in, c_out, stride=1, dilation=1, relu=False):
        super().__init__()
        self.depthwise = nn.Conv2d(c_in, c_in, 3, stride, dilation, dilation, groups=c_in, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(c_in)
        self.pointwise = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.pointwise_bn = nn.BatchNorm2d(c_out)
        self.act = nn.ReLU() if relu else nn.Identity()

    def forward(self, x):
        x = self.act(self.depthwise_bn(self.depthwise(x)))
        return self.act(self.pointwise_bn(self.pointwise(x)))


class Block(nn.Module):
    """Three separable convolutions, each after a ReLU (the first only with `leading_relu`), and a skip connection.

    The third has the stride. The skip is a 1x1 convolution with BatchNorm where the shape changes.
    """

    def __init__(self, c_in, c_mid, c_out, stride=1, leading_relu=True):
        super().__init__()
        self.leading_relu = leading_relu
        self.skip = self.skipbn = None
        if stride > 1 or c_in != c_out:
            self.skip = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.skipbn = nn.BatchNorm2d(c_out)
        convs = SepConv(c_in, c_mid), SepConv(c_mid, c_out), SepConv(c_out, c_out, stride)
        layers = [layer for conv in convs for layer in (nn.ReLU(), conv)]
        self.rep = nn.Sequential(*layers[not leading_relu:])

    def shortcut(self, x):
        return x if self.skip is None else self.skipbn(self.skip(x))

    def forward(self, x):
        x = F.relu(x) if self.leading_relu else x             # once more inside rep, where it changes nothing
        return self.rep(x) + self.shortcut(x)


class LowLevelBlock(Block):
    """Block 2: it also returns what it has before its last convolution, the decoder's low-level feature."""

    def __init__(self, c_in, c_out):
        super().__init__(c_in, c_out, c_out, 2)
        self.block2_lastconv = nn.Sequential(*self.rep[4:])
        self.rep = self.rep[:4]

    def forward(self, x):
        x = F.relu(x)
        low = self.rep(x)
        return self.block2_lastconv(low) + self.shortcut(x), low


class Xception(nn.Module):
    """images (B,3,H,W) -> low-level feature (B,8w,H/4,W/4), output (B,64w,H/16,W/16), for a stem of w channels.

    The released network has w = 32 and 16 blocks in its middle flow. Sizes are rounded up.
    """

    def __init__(self, stem=32, middle=16):
        super().__init__()
        c = [channels * stem // 32 for channels in (32, 64, 128, 256, 728, 1024, 1536, 2048)]
        self.low_channels, self.channels, self.exit = c[3], c[7], middle + 4
        self.conv1 = nn.Conv2d(3, c[0], 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c[0])
        self.conv2 = nn.Conv2d(c[0], c[1], 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c[1])
        self.block1 = Block(c[1], c[2], c[2], 2, leading_relu=False)
        self.block2 = LowLevelBlock(c[2], c[3])
        self.block3 = Block(c[3], c[4], c[4], 2)
        for i in range(4, self.exit):
            self.add_module(f'block{i}', Block(c[4], c[4], c[4]))
        self.add_module(f'block{self.exit}', Block(c[4], c[4], c[5]))
        self.conv3 = SepConv(c[5], c[6], dilation=2, relu=True)
        self.conv4 = SepConv(c[6], c[6], dilation=2, relu=True)
        self.conv5 = SepConv(c[6], c[7], dilation=2, relu=True)

    def forward(self, images):
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn2(self.conv2(x)))
        x, low = self.block2(self.block1(x))
        for i in range(3, self.exit + 1):
            x = self.get_submodule(f'block{i}')(x)
        return low, self.conv5(self.conv4(self.conv3(x)))


class Atrous(nn.Module):
    """A SepConv with ReLUs under the released name."""

    def __init__(self, c_in, c_out, dilation=1):
        super().__init__()
        self.atrous_convolution = SepConv(c_in, c_out, dilation=dilation, relu=True)

    def forward(self, x):
        return self.atrous_convolution(x)


class DeepLab(nn.Module):
    """The backbone and the decoder of feature level 'mid': `mid_level`."""

    def __init__(self, stem=32, middle=16, c=256, high_level=True):
        super().__init__()
        self.xception_features = Xception(stem, middle)
        low, wide = 3 * c // 16, self.xception_features.channels
        self.feature_projection_conv1 = nn.Conv2d(self.xception_features.low_channels, low, 1, bias=False)
        self.feature_projection_bn1 = nn.BatchNorm2d(low)
        self.midfea_adapt_conv = nn.Conv2d(wide, c, 1, bias=False)
        self.midfea_adapt_bn = nn.BatchNorm2d(c)
        self.midfea_conv = nn.Sequential(Atrous(c + low, c))
        if high_level:
            self.add_high_level(wide, low, c)

    def add_high_level(self, wide, low, c):
        """DeepLab's pyramid: part of released files, without a share in the forward pass or a gradient."""
        self.aspp1 = nn.Module()
        self.aspp1.atrous_convolution = nn.Conv2d(wide, c, 1, bias=False)
        self.aspp1.bn = nn.BatchNorm2d(c)
        self.aspp2, self.aspp3, self.aspp4 = (Atrous(wide, c, dilation) for dilation in (6, 12, 18))
        self.global_avg_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, c, 1, bias=False),
                                             nn.BatchNorm2d(c), nn.ReLU())
        self.concat_projection_conv1 = nn.Conv2d(5 * c, c, 1, bias=False)
        self.concat_projection_bn1 = nn.BatchNorm2d(c)
        self.decoder1 = nn.Sequential(Atrous(c + low, c))

    def mid_level(self, images):
        """Images (B,3,H,W), BGR in -1..1 -> (B,C,h,w), h = ceil(H/4)."""
        low, x = self.xception_features(images)
        x = F.relu(self.midfea_adapt_bn(self.midfea_adapt_conv(x)))
        low = F.relu(self.feature_projection_bn1(self.feature_projection_conv1(low)))
        return self.midfea_conv(torch.cat([upsample(x, low.shape[2:]), low], 1))

    def load_backbone(self, path):
        """Start from DeepLabv3+ trained on COCO (deeplab_v3plus_v3.pth): copy what has the same name and shape.

        Returns the copied names. What does not fit, such as DeepLab's classifier, is left out, as released.
        """
        own, state = self.state_dict(), read_weights(path)
        fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
        if not any(key.startswith('xception_features.') for key in fitting):
            raise ValueError(f'{path} has no weight that fits this backbone; give deeplab_v3plus_v3.pth')
        self.load_state_dict(fitting, strict=False)
        return list(fitting)


def upsample(x, size):
    return F.interpolate(x, size, mode='bilinear', align_corners=True)


def pass_norm(bn, x, batch, of_class):
    """bn of x (B*P,C,h,w), batch = (B, P), as if it were called on the B images of one pass after the other.

    In training every pass has its own statistics. The running ones move once a class, in the order of `of_class`.
    """
    if not bn.training:
        return bn(x)
    passes, shape = batch[1], x.shape
    mean, var = (bn.running_mean.new_zeros(passes * shape[1]) for _ in range(2))
    x = F.batch_norm(x.reshape(batch[0], -1, *shape[2:]), mean, var, bn.weight.repeat(passes), bn.bias.repeat(passes),
                     True, 1.0, bn.eps)                       # momentum 1 leaves the pass's own statistics in mean, var
    for i in of_class:
        bn.running_mean.lerp_(mean.view(passes, -1)[i], bn.momentum)
        bn.running_var.lerp_(var.view(passes, -1)[i], bn.momentum)
    bn.num_batches_tracked += len(of_class)
    return x.view(shape)


def read_weights(path):
    """The state dict of a file of ours or of the authors, without the prefix that DataParallel adds."""
    state = read_checkpoint(path)
    state = state.get('model', state) if 'format' in state else state.get('state_dict', state)
    if not isinstance(state, dict):
        raise ValueError(f'{path} holds no state dict; give a checkpoint of EOP-Net or deeplab_v3plus_v3.pth')
    return {str(key).removeprefix('module.'): value for key, value in state.items() if torch.is_tensor(value)}
