"""A-CE2P, the network of SCHP, and the reading of weights files.

    c1 .. c4            layer1 .. layer4    (B, 256 .. 2048, ..)  strides 4, 8, 16, 16
    context encoding    context_encoding    (B, 512, H/16, W/16)  pyramid pooling of c4
    parsing branch      decoder             (B, 256, h, w)        feature; its conv4: logits
    edge branch         edge                3 x (B, 256, ..)      features; itself: edge logits
    fusion              fushion             (B, C, h, w)          logits, those of inference

h = ceil(H / 4) and w = ceil(W / 4). Modules and parameters have the names of the released code
("fushion" included), so its weights load by name.
"""
from collections.abc import Sequence
from os import PathLike

import torch
import torch.nn as nn
import torch.nn.functional as F

from schp.config import SCHPConfig
from schp.layers import (HEADS, EdgeBranch, Fusion, bare_norm, conv, convert_plain_norms,
                         unit)
from schp.segformer import SegFormer, load_mit
from schp.single_person import SinglePersonNetwork
from util.checkpoints import (FORMAT, check_settings, load_strictly, name_command, read_checkpoint,
                              reading)
from util.labels import LabelSet, choose_labels
from util.run import find_device
from util.tensors import resize_map


class Bottleneck(nn.Module):
    """ResNet's block with expansion 4. The 3x3 convolution carries stride and dilation."""

    def __init__(self, channels: int, planes: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        out = 4 * planes
        self.conv1 = conv(channels, planes)
        self.bn1 = bare_norm(planes)
        self.conv2 = conv(planes, planes, 3, stride, dilation)
        self.bn2 = bare_norm(planes)
        self.conv3 = conv(planes, out)
        self.bn3 = bare_norm(out)
        self.downsample = nn.Identity()
        if channels != out:
            self.downsample = nn.Sequential(conv(channels, out, stride=stride), bare_norm(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn1(self.conv1(x)).relu_()
        y = self.bn2(self.conv2(y)).relu_()
        return (self.bn3(self.conv3(y)) + self.downsample(x)).relu_()


class ContextEncoding(nn.Module):
    """Pyramid scene parsing (PSP): averages over 1, 4, 9 and 36 regions join every position."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(n), *unit(channels, out)) for n in (1, 2, 3, 6))
        self.bottleneck = nn.Sequential(*unit(channels + 4 * out, out, 3))

    def forward(self, c4: torch.Tensor) -> torch.Tensor:
        averages = [resize_map(stage(c4), c4.shape[2:]) for stage in self.stages]
        return self.bottleneck(torch.cat([*averages, c4], 1))


class Decoder(nn.Module):
    """The parsing branch: context (stride 16) and c1 (stride 4) -> feature (stride 4), which conv4
    classifies. low: channels of c1 beside the context."""

    def __init__(self, context: int, c1: int, mid: int, low: int, num_classes: int):
        super().__init__()
        self.conv1 = nn.Sequential(*unit(context, mid))
        self.conv2 = nn.Sequential(*unit(c1, low))
        self.conv3 = nn.Sequential(*unit(mid + low, mid), *unit(mid, mid))
        self.conv4 = conv(mid, num_classes, bias=True)

    def forward(self, context: torch.Tensor, c1: torch.Tensor) -> torch.Tensor:
        x = resize_map(self.conv1(context), c1.shape[2:])
        return self.conv3(torch.cat([x, self.conv2(c1)], 1))


class SCHP(SinglePersonNetwork):
    """A-CE2P. labels, size, flip_pairs: see `SinglePersonNetwork`.

    blocks, width: of the backbone; the defaults are the paper's ResNet-101. (1, 1, 1, 1) and 8
    train in seconds on a CPU."""

    # An entry of its released checkpoints, and of no others.
    sign = 'fushion.3.weight'

    def __init__(self, labels: Sequence[str], size: tuple = (473, 473),
                 flip_pairs: Sequence[tuple] = (), blocks: tuple = (3, 4, 23, 3), width: int = 64):
        super().__init__(labels, size, flip_pairs)
        self.blocks = tuple(blocks)
        self.width = width
        self.config = SCHPConfig(size=self.size, blocks=self.blocks, width=width)

        # ResNet, with three 3x3 convolutions in the stem and a dilated last stage.
        self.conv1 = conv(3, width, 3, 2)
        self.bn1 = bare_norm(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = bare_norm(width)
        self.conv3 = conv(width, 2 * width, 3)
        self.bn3 = bare_norm(2 * width)
        channels = 2 * width
        for i, stride in enumerate((1, 2, 2, 1)):
            planes = width * 2 ** i
            dilation = 2 if i == 3 else 1
            stage = [Bottleneck(channels, planes, stride, dilation)]
            channels = 4 * planes
            for _ in range(1, blocks[i]):
                stage.append(Bottleneck(channels, planes, 1, dilation))
            setattr(self, f'layer{i + 1}', nn.Sequential(*stage))

        mid = 4 * width
        self.context_encoding = ContextEncoding(channels, 2 * mid)
        self.decoder = Decoder(2 * mid, mid, mid, mid * 3 // 16, self.num_classes)
        self.edge = EdgeBranch((mid, 2 * mid, 4 * mid), mid)
        self.fushion = Fusion(mid, self.num_classes)

    def forward(self, images: torch.Tensor, heads: Sequence[str] = HEADS) -> dict:
        x = self.bn1(self.conv1(images)).relu_()                             # (B,   64, H/2, W/2)
        x = self.bn2(self.conv2(x)).relu_()
        x = self.bn3(self.conv3(x)).relu_()                                  # (B,  128, H/2, W/2)
        c1 = self.layer1(F.max_pool2d(x, 3, 2, 1))                           # (B,  256, h, w)
        c2 = self.layer2(c1)                                                 # (B,  512, h/2, w/2)
        c3 = self.layer3(c2)                                                 # (B, 1024, h/4, w/4)
        context = self.context_encoding(self.layer4(c3))                     # (B,  512, h/4, w/4)
        feature = self.decoder(context, c1)                                  # (B,  256, h, w)
        edge_features = self.edge.features(c1, c2, c3)

        out = {}
        if 'parsing' in heads:
            out['parsing'] = self.decoder.conv4(feature)                     # (B, C, h, w)
        if 'fusion' in heads:
            out['fusion'] = self.fushion(feature, edge_features)             # (B, C, h, w)
        if 'edge' in heads:
            out['edge'] = self.edge(edge_features)                           # (B, 2, h, w)
        return out

    @staticmethod
    def sizes(weights: dict) -> dict:
        """blocks and width of a released checkpoint, from its weights."""
        blocks = []
        for i in (1, 2, 3, 4):
            stage = {key.split('.')[1] for key in weights if key.startswith(f'layer{i}.')}
            blocks.append(len(stage))
        return dict(blocks=tuple(blocks), width=len(weights['conv1.weight']))

    @classmethod
    def from_pretrained(cls, path: str | PathLike, labels: str | LabelSet | None = None,
                        device: str | torch.device = 'cpu') -> SinglePersonNetwork:
        """A network in eval mode, from a file of ours or of the released code: both generations of
        its files for one person, those for several people, and what its training writes. A file of
        the SegFormer variant gives a `SegFormer`. Depth, width and number of classes are read off
        the weights.

        labels: see `util.labels.choose_labels`; give 'cihp' for the files for several people.
        OSError or ValueError, with one sentence, for a file that does not fit."""
        state = read_checkpoint(path)
        if command := name_command(state, 'schp'):
            raise ValueError(f'{path} {command}')
        with reading(path):
            read = from_own_file if state.get('format') == FORMAT else from_released_file
            model = read(state, labels, path)
        return model.to(device).eval()


# ---- both networks -----------------------------------------------------------------------------


NETWORKS = {'ace2p': SCHP, 'segformer': SegFormer}


def build(config: SCHPConfig, labels: LabelSet) -> SinglePersonNetwork:
    """An untrained network. The size of the LabelSet is replaced by that of the config."""
    network = NETWORKS[config.network]
    model = network(labels.names, config.size, labels.flip_pairs, config.blocks, config.width)
    model.config = config
    return model


def load_model(path: str | PathLike, labels: str | None, device: str) -> SinglePersonNetwork:
    """The network of a file, folded, on a device such as 'auto'."""
    return SCHP.from_pretrained(path, labels, find_device(device)).fold()


def load_imagenet(model: SinglePersonNetwork, path: str | PathLike):
    """Loads ImageNet weights into the backbone: of SCHP resnet101-imagenet.pth of MIT CSAIL
    (sceneparsing.csail.mit.edu), of SegFormer those of `load_mit`."""
    if isinstance(model, SegFormer):
        load_mit(model, path)
        return
    # torchvision's ResNets do not fit, because their stem is one 7x7 convolution. The scales of the
    # file's norms are read as |weight| + eps, as in the released training.
    heads = {key: value for key, value in model.state_dict().items()
             if not key.startswith(('conv', 'bn', 'layer'))}
    backbone = {str(key): value for key, value in read_checkpoint(path).items()}
    backbone = {key: value for key, value in backbone.items()
                if not key.startswith('fc.') and not key.endswith('.num_batches_tracked')}
    load_strictly(model, {**heads, **backbone}, path)


# ---- files -------------------------------------------------------------------------------------


def from_own_file(state: dict, labels: str | LabelSet | None,
                  path: str | PathLike) -> SinglePersonNetwork:
    """The network of a file that `SinglePersonNetwork.save` wrote. labels: other names, or None."""
    check_settings(state['config'], SCHPConfig)
    config = SCHPConfig(**state['config'])
    names = [str(name) for name in state['class_names']]
    chosen = LabelSet(names, config.size, state['flip_pairs'])
    if labels is not None:
        chosen = choose_labels(len(names), labels, path)
    # The meta device takes no memory, whatever sizes the file claims.
    with torch.device('meta'):
        model = build(config, chosen)
    load_strictly(model, state['model'], path)
    return model


def from_released_file(state: dict, labels: str | LabelSet | None,
                       path: str | PathLike) -> SinglePersonNetwork:
    """The network of a file of the released code or of ViWear's fork."""
    weights, is_plain = released_weights(state)
    name = find_network(weights, path)
    network = NETWORKS[name]
    chosen = choose_labels(len(weights[network.sign]), labels, path)
    config = SCHPConfig(size=tuple(chosen.size), network=name, **network.sizes(weights))
    with torch.device('meta'):
        model = build(config, chosen)
    load_strictly(model, weights, path)
    if is_plain:
        convert_plain_norms(model)
    return model


def released_weights(state: dict) -> tuple[dict, bool]:
    """The content of a released file -> weights by our names, and whether their norms are plain
    batch norms.

    Two generations share the names of files. Files of 2019 have plain batch norm with its counters,
    and outside the backbone a norm is a module `bn` inside another. Files since 2020 have
    InPlaceABN."""
    weights = state.get('state_dict', state)
    weights = {str(key).removeprefix('module.'): value for key, value in weights.items()}
    counters = [key for key in weights if key.endswith('.num_batches_tracked')]
    # The head of SegFormer has a batch norm of its own.
    is_plain = any(not key.startswith('head.') for key in counters)
    if not is_plain:
        return weights, False
    plain = {key.replace('.bn.', '.'): value for key, value in weights.items()
             if key not in counters}
    return plain, True


def find_network(weights: dict, path: str | PathLike) -> str:
    """The one of NETWORKS that released weights belong to. ValueError where it is none."""
    for name, network in NETWORKS.items():
        if getattr(weights.get(network.sign), 'ndim', 0) == 4:
            return name
    raise ValueError(f'{path} is not a checkpoint of SCHP: it has no {SCHP.sign}')
