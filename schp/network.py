"""A-CE2P, the network of SCHP, and the files of networks.

Maps c1 .. c4 are the backbone's stages, at strides 4, 8, 16 and 16. Names are those of the released code.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from schp.config import SCHPConfig
from schp.layers import EdgeBranch, bare_norm, conv, convert_plain_norms, convolve_stack, resize, unit
from schp.segformer import SegFormer, load_mit
from schp.single_person import Parser
from util.checkpoints import FORMAT, check_settings, load_strictly, name_command, read_checkpoint, reading
from util.labels import LabelSet, choose_labels
from util.run import find_device

HEADS = ('parsing', 'fusion', 'edge')


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


class SCHP(Parser):
    """A-CE2P. labels, size, flip_pairs: see `Parser`. blocks and width are the paper's ResNet-101; (1, 1,
    1, 1) and 8 train in seconds on a CPU."""
    sign = 'fushion.3.weight'                             # an entry of its released checkpoints, and of no others

    def __init__(self, labels, size=(473, 473), flip_pairs=(), blocks=(3, 4, 23, 3), width=64):
        super().__init__(labels, size, flip_pairs)
        self.blocks, self.width = tuple(blocks), width
        self.config = SCHPConfig(size=self.size, blocks=self.blocks, width=width)
        self.conv1, self.bn1 = conv(3, width, 3, 2), bare_norm(width)
        self.conv2, self.bn2 = conv(width, width, 3), bare_norm(width)
        self.conv3, self.bn3 = conv(width, 2 * width, 3), bare_norm(2 * width)
        channels = 2 * width
        for i, (count, stride) in enumerate(zip(blocks, (1, 2, 2, 1))):
            planes, dilation = width * 2 ** i, 2 if i == 3 else 1
            first = Bottleneck(channels, planes, stride, dilation)
            channels = 4 * planes
            rest = [Bottleneck(channels, planes, 1, dilation) for _ in range(1, count)]
            setattr(self, f'layer{i + 1}', nn.Sequential(first, *rest))
        mid = 4 * width
        self.context_encoding = ContextEncoding(channels, 2 * mid)
        self.decoder = Decoder(2 * mid, mid, mid, mid * 3 // 16, self.num_classes)
        self.edge = EdgeBranch((mid, 2 * mid, 4 * mid), mid)
        self.fushion = nn.Sequential(*unit(4 * mid, mid), nn.Dropout2d(0.1), conv(mid, self.num_classes, bias=True))

    def forward(self, images, heads=HEADS):
        """images (B,3,H,W), BGR, normalized by MEAN and STD -> dict of logits: parsing and fusion (B,C,h,w), edge
        (B,2,h,w); h = ceil(H/4), w = ceil(W/4). Only the heads asked for are computed."""
        x = self.bn1(self.conv1(images)).relu_()          # (B,  64, H/2, W/2)
        x = self.bn2(self.conv2(x)).relu_()
        x = self.bn3(self.conv3(x)).relu_()               # (B, 128, H/2, W/2)
        c1 = self.layer1(F.max_pool2d(x, 3, 2, 1))        # (B, 256, h, w)
        c2 = self.layer2(c1)                              # (B, 512, h/2, w/2)
        c3 = self.layer3(c2)                              # (B,1024, h/4, w/4)
        context = self.context_encoding(self.layer4(c3))  # (B, 512, h/4, w/4)
        feature = self.decoder(context, c1)               # (B, 256, h, w)
        edge_features = self.edge.features(c1, c2, c3)
        compute = dict(parsing=lambda: self.decoder.conv4(feature), edge=lambda: self.edge(edge_features),
                       fusion=lambda: self.fushion[1:](convolve_stack(self.fushion[0], [feature, *edge_features])))
        return {head: compute[head]() for head in heads}

    @staticmethod
    def sizes(weights):
        """dict of blocks and width of a released checkpoint, from its weights."""
        blocks = (len({k.split('.')[1] for k in weights if k.startswith(f'layer{i}.')}) for i in (1, 2, 3, 4))
        return dict(blocks=tuple(blocks), width=len(weights['conv1.weight']))

    @classmethod
    def from_pretrained(cls, path, labels=None, device='cpu'):
        """A model in eval mode from our own file, or from one of the released code: both generations of the
        single-person files, the multi-person files, what its training writes, and the files of ViWear's fork, which
        give a `SegFormer`. labels: see `choose_labels`; give
        'cihp' for the multi-person files. Depth, width and number of classes are read off the weights."""
        state = read_checkpoint(path)
        if command := name_command(state, 'schp'):
            raise ValueError(f'{path} {command}')
        with reading(path):
            own = state.get('format') == FORMAT
            model, weights, plain_norms = (from_own_file if own else from_released_file)(state, labels, path)
            load_strictly(model, weights, path)
        if plain_norms:
            convert_plain_norms(model)
        return model.to(device).eval()


# ---- files --------------------------------------------------------------------------------------------------


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


NETWORKS = {'ace2p': SCHP, 'segformer': SegFormer}
LOADERS = {'ace2p': load_imagenet, 'segformer': load_mit}             # of ImageNet weights


def build(config, labels):
    """An untrained network of a config for a LabelSet, whose size the config replaces."""
    model = NETWORKS[config.network](labels.names, config.size, labels.flip_pairs, config.blocks, config.width)
    model.config = config
    return model


def from_own_file(state, labels, path):
    check_settings(state['config'], SCHPConfig)
    config = SCHPConfig(**state['config'])
    own = LabelSet([*map(str, state['class_names'])], config.size, state['flip_pairs'])
    if labels is not None:
        own = choose_labels(len(own.names), labels, path)
    with torch.device('meta'):                                # takes no memory, whatever sizes the file claims
        return build(config, own), state['model'], False


def from_released_file(state, labels, path):
    weights, plain_norms = released_weights(state)
    network = next((name for name, n in NETWORKS.items() if getattr(weights.get(n.sign), 'ndim', 0) == 4), None)
    if not network:
        raise ValueError(f'{path} is not a checkpoint of SCHP: it has no {SCHP.sign}')
    chosen = choose_labels(len(weights[NETWORKS[network].sign]), labels, path)
    config = SCHPConfig(size=tuple(chosen.size), network=network, **NETWORKS[network].sizes(weights))
    with torch.device('meta'):
        return build(config, chosen), weights, plain_norms


def load_model(args, path=None):
    """The model of --weights, folded, on the device."""
    if not (path or args.weights):
        raise ValueError('--weights is missing: a file of the released code or of schp train')
    model = SCHP.from_pretrained(path or args.weights, args.labels, find_device(args.device))
    return model.folded().to(memory_format=torch.channels_last)
