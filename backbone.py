"""The backbone: torchvision's ResNets, with modulated deformable convolution in stages 2 to 4 (Sec.
6.1).

Modulated deformable convolution is Zhu et al. 2019, arXiv:1811.11168.
"""
import torch
import torch.nn as nn
import torchvision
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import deform_conv2d

from util import checkpoints
from util.fast import deform_conv2d_cpu


class ModulatedDeformConv2d(nn.Conv2d):
    """Deformable convolution v2: a plain convolution predicts, for each output pixel and each of
    the 9 taps, an offset (dy, dx) in pixels and a weight in 0..1. Starts as the plain convolution
    times 1/2 (offsets 0, sigmoid(0))."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__(conv.in_channels, conv.out_channels, 3, conv.stride, padding=1,
                         groups=conv.groups, bias=False)
        self.weight = conv.weight
        self.conv_offset = nn.Conv2d(conv.in_channels, 27, 3, conv.stride, padding=1)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x):                                       # (B, C, H, W)
        offset, mask = self.conv_offset(x).split((18, 9), dim=1)
        mask = mask.sigmoid()
        # In an ONNX export torchvision's stays, for which ONNX has an operator.
        if x.device.type == 'cpu' and not torch.compiler.is_exporting():
            return deform_conv2d_cpu(x, offset, mask, self.weight, self.bias, self.stride[0])
        return deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.padding,
                             mask=mask)


class Backbone(nn.Module):
    """torchvision's ResNet without its classifier, under the same keys, so that its weights load by
    name. Another backbone needs `channels` (of C2..C5), `forward` -> C2..C5 at strides 4..32,
    `load_imagenet`, `freeze` and `fold`.

    `stages`: how many of the 4 stages hold ImageNet weights. If any, stem and stage 1 are frozen,
    and the loaded BatchNorms keep their statistics while gamma and beta are trained (released code;
    the paper is silent).
    """

    def __init__(self, name: str, dcn: bool, stages: int):
        super().__init__()
        net = make_resnet(name)
        self.name = name
        self.channels = [net.fc.in_features // n for n in (8, 4, 2, 1)]
        self.conv1 = net.conv1
        self.bn1 = net.bn1
        self.relu = net.relu
        self.maxpool = net.maxpool
        self.layer1 = net.layer1
        self.layer2 = net.layer2
        self.layer3 = net.layer3
        self.layer4 = net.layer4
        if dcn:
            for block in [*self.layer2, *self.layer3, *self.layer4]:
                block.conv2 = ModulatedDeformConv2d(block.conv2)
        self.freeze(stages)

    def freeze(self, stages: int):
        """Notes how many stages hold ImageNet weights. Stem and stage 1 are trained only if none
        does."""
        self.stages = stages
        for module in (self.conv1, self.bn1, self.layer1):
            module.requires_grad_(stages == 0)

    def train(self, mode=True):
        super().train(mode)
        if self.stages:
            # The stem and the stages that hold ImageNet weights keep their statistics.
            parts = [self.bn1, self.layer1, self.layer2, self.layer3, self.layer4]
            for part in parts[:self.stages + 1]:
                for module in part.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        module.eval()
        return self

    def forward(self, x):                                       # (B, 3, H, W)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))    # (B, 64, H/4, W/4)
        c2 = self.layer1(x)                                     # stride 4
        c3 = self.layer2(c2)                                    # stride 8
        c4 = self.layer3(c3)                                    # stride 16
        c5 = self.layer4(c4)                                    # stride 32
        return c2, c3, c4, c5

    def load_imagenet(self, source: str) -> int:
        """Loads 'imagenet' or a file, see `checkpoints.load_imagenet`; returns the number of stages
        loaded."""
        stages = checkpoints.load_imagenet(self, source, self.name, optional=('conv_offset',))
        self.freeze(stages)
        return stages

    def fold(self):
        """Folds every BatchNorm into the convolution before it, for inference."""
        # '0' and '1': the convolution and the norm of a shortcut.
        pairs = ('conv1', 'bn1'), ('conv2', 'bn2'), ('conv3', 'bn3'), ('0', '1')
        for module in list(self.modules()):
            for conv, norm in pairs:
                if isinstance(getattr(module, norm, None), nn.BatchNorm2d):
                    fold_norm(getattr(module, conv), getattr(module, norm))
                    setattr(module, norm, nn.Identity())


def make_resnet(name: str) -> ResNet:
    """A ResNet of torchvision with random weights; resnet10, for drawn people and tests, has one
    block per stage."""
    if name == 'resnet10':
        return ResNet(BasicBlock, [1, 1, 1, 1])
    is_resnet = name.startswith(('resnet', 'resnext', 'wide_resnet'))
    if is_resnet and name in torchvision.models.list_models():
        return torchvision.models.get_model(name, weights=None)
    raise ValueError(f'unknown backbone {name!r}; use a torchvision ResNet such as resnet18 or '
                     'resnet50')


def fold_norm(conv: nn.Conv2d, norm: nn.Module, scale: torch.Tensor | None = None):
    """Folds a batch norm with fixed statistics into the convolution before it, in place. scale:
    that of the norm, (C,), where it is not `norm.weight`."""
    scale = (norm.weight if scale is None else scale) / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    conv.weight.mul_(scale.view(-1, 1, 1, 1))
    conv.bias = nn.Parameter(shift, requires_grad=False)
