"""torchvision's ResNets as backbones."""
import torch.nn as nn
import torchvision
from torchvision.models.resnet import BasicBlock, ResNet

from util.checkpoints import load_imagenet
from util.deform import ModulatedDeformConv2d


class Backbone(nn.Module):
    """torchvision's ResNet without its classifier, under the same keys, so that its weights load by name. Another
    backbone needs `channels` (of C2..C5), `forward` -> C2..C5 at strides 4..32, and `load_imagenet`; `UniParser.fold`
    folds pairs named conv1/bn1 .. conv3/bn3 and 0/1.

    `stages`: how many of the 4 stages hold ImageNet weights. If any, stem and stage 1 are frozen, and the loaded
    BatchNorms keep their statistics while gamma and beta are trained (released code; the paper is silent).
    """

    def __init__(self, name, dcn, stages):
        super().__init__()
        if name == 'resnet10':                            # one block per stage: for drawn people and tests
            net = ResNet(BasicBlock, [1, 1, 1, 1])
        elif name.startswith(('resnet', 'resnext', 'wide_resnet')) and name in torchvision.models.list_models():
            net = torchvision.models.get_model(name, weights=None)
        else:
            raise ValueError(f'unknown backbone {name!r}; use a torchvision ResNet such as resnet18 or resnet50')
        self.name, self.channels = name, [net.fc.in_features // n for n in (8, 4, 2, 1)]
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        if dcn:
            for block in [*self.layer2, *self.layer3, *self.layer4]:
                block.conv2 = ModulatedDeformConv2d(block.conv2)
        self.freeze(stages)

    def freeze(self, stages):
        self.stages = stages
        for module in (self.conv1, self.bn1, self.layer1):
            module.requires_grad_(stages == 0)

    def train(self, mode=True):
        super().train(mode)
        loaded = (self.bn1, self.layer1, self.layer2, self.layer3, self.layer4)[:self.stages + 1 if self.stages else 0]
        for norm in (m for module in loaded for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.eval()
        return self

    def forward(self, x):                                                    # (B, 3, H, W)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))                 # (B, 64, H/4, W/4)
        c2 = self.layer1(x)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)                                   # strides 4, 8, 16, 32

    def load_imagenet(self, source):
        """Loads 'imagenet' or a file, see `checkpoints.load_imagenet`; returns the number of stages loaded."""
        self.freeze(load_imagenet(self, source, self.name, optional=('conv_offset',)))
        return self.stages

    def fold(self):
        """Folds every BatchNorm into the convolution before it, for inference."""
        for module in list(self.modules()):
            for conv, norm in ('conv1', 'bn1'), ('conv2', 'bn2'), ('conv3', 'bn3'), ('0', '1'):
                if isinstance(getattr(module, norm, None), nn.BatchNorm2d):
                    fold_norm(getattr(module, conv), getattr(module, norm))
                    setattr(module, norm, nn.Identity())


def fold_norm(conv, norm, scale=None):
    """Folds a batch norm with fixed statistics into the convolution before it, in place. scale: that of the norm, (C,),
    where it is not `norm.weight`."""
    scale = (norm.weight if scale is None else scale) / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    conv.weight.mul_(scale.view(-1, 1, 1, 1))
    conv.bias = nn.Parameter(shift, requires_grad=False)
