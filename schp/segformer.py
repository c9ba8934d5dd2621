"""SCHP's branches on a SegFormer backbone: the variant of ViWear's fork for virtual try-on.

SegFormer (Xie et al. 2021, arXiv:2105.15203) has a hierarchical transformer, here MiT-B4, and an
all-MLP head. The fork adds the edge branch and the fusion layers of SCHP. Modules have the names of
the fork's checkpoints, so its files load as they are. The backbone is written from the paper.

    backbone    four maps of 64, 128, 320, 512 channels    1/4, 1/8, 1/16, 1/32 of (H, W)
    head        feature (256) and parsing logits (C)       1/4
    edge        features (3 x 256) and edge logits (2)     1/4, 1/8, 1/16; 1/4
    fusion      fusion logits (C), those of inference      1/4
"""
import re
from collections import OrderedDict
from collections.abc import Sequence
from os import PathLike

import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.ops import StochasticDepth

from schp.layers import HEADS, EdgeBranch, Fusion, conv
from schp.single_person import SinglePersonNetwork
from util.checkpoints import load_strictly, read_checkpoint, reading

# Of the four stages. Each attention head has `width` channels.
ATTENTION_HEADS = (1, 2, 5, 8)
SR_RATIOS = (8, 4, 2, 1)

# Pixels of a side: the first stage has a quarter of them, and its attention an eighth of those.
SMALLEST = 32

# Largest probability of stochastic depth, that of the last block.
DROP = 0.1


# ---- Mix Transformer ---------------------------------------------------------------------------


def to_map(tokens: torch.Tensor, size: tuple) -> torch.Tensor:
    """(B, H * W, C) -> (B, C, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, size)


def to_tokens(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return x.flatten(2).transpose(1, 2)


class PatchEmbed(nn.Module):
    """Overlapping patches, a strided convolution: (B, C, H, W) -> tokens (B, N, dim), size."""

    def __init__(self, channels: int, dim: int, kernel: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple]:
        x = self.proj(x)
        return self.norm(to_tokens(x)), x.shape[2:]


class Attention(nn.Module):
    """Eq. (1) of SegFormer. Keys and values come from a sequence that is ratio^2 times shorter,
    Eq. (2)."""

    def __init__(self, dim: int, heads: int, ratio: int):
        super().__init__()
        self.heads = heads
        self.ratio = ratio
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        if ratio > 1:
            self.sr = nn.Conv2d(dim, dim, ratio, ratio)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor, size: tuple) -> torch.Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)        # (B, heads, N, width)
        if self.ratio > 1:
            x = self.norm(to_tokens(self.sr(to_map(x, size))))               # (B, M, C)
        kv = self.kv(x).unflatten(-1, (2, self.heads, -1))                   # (B, M, 2, heads, ..)
        k, v = kv.permute(2, 0, 3, 1, 4)                                     # (B, heads, M, width)
        x = F.scaled_dot_product_attention(q, k, v)                          # (B, heads, N, width)
        return self.proj(x.transpose(1, 2).flatten(2))                       # (B, N, C)


class MixFFN(nn.Module):
    """Eq. (3) of SegFormer: a 3x3 depth-wise convolution in the MLP takes the place of a positional
    encoding."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        convolution = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.dwconv = nn.Sequential(OrderedDict(dwconv=convolution))

    def forward(self, x: torch.Tensor, size: tuple) -> torch.Tensor:
        x = self.dwconv(to_map(self.fc1(x), size))
        return self.fc2(F.gelu(to_tokens(x)))


class Block(nn.Module):
    """Attention and Mix-FFN, each with a norm before it and a shortcut around it."""

    def __init__(self, dim: int, heads: int, ratio: int, drop: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, ratio)
        self.mlp = MixFFN(dim, 4 * dim)
        self.drop = StochasticDepth(drop, 'row')

    def forward(self, x: torch.Tensor, size: tuple) -> torch.Tensor:
        x = x + self.drop(self.attn(self.norm1(x), size))
        return x + self.drop(self.mlp(self.norm2(x), size))


class MiT(nn.Module):
    """Mix Transformer: images (B, 3, H, W) -> [c1, c2, c3, c4], c_i (B, dims[i], H / 2^(i+1), ..).

    Stochastic depth grows linearly with the block, from 0 to DROP."""

    def __init__(self, depths: Sequence[int], dims: Sequence[int]):
        super().__init__()
        last = max(1, sum(depths) - 1)
        before = 0
        for i, dim in enumerate(dims):
            if i == 0:
                patches = PatchEmbed(3, dim, 7, 4)
            else:
                patches = PatchEmbed(dims[i - 1], dim, 3, 2)
            drops = [DROP * (before + j) / last for j in range(depths[i])]
            blocks = nn.ModuleList(
                Block(dim, ATTENTION_HEADS[i], SR_RATIOS[i], drop) for drop in drops)
            before += depths[i]
            self.add_module(f'patch_embed{i + 1}', patches)
            self.add_module(f'block{i + 1}', blocks)
            self.add_module(f'norm{i + 1}', nn.LayerNorm(dim, eps=1e-6))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for i in '1234':
            tokens, size = self.get_submodule(f'patch_embed{i}')(x)
            for block in self.get_submodule(f'block{i}'):
                tokens = block(tokens, size)
            x = to_map(self.get_submodule(f'norm{i}')(tokens), size)
            maps.append(x)
        return maps


# ---- the network -------------------------------------------------------------------------------


class Head(nn.Module):
    """All-MLP head (SegFormer, Eq. 4): maps -> feature (B, mid, h, w), which `linear_pred`
    classifies. `conv_seg` is in every checkpoint of the fork; no forward uses it."""

    def __init__(self, dims: Sequence[int], mid: int, num_classes: int):
        super().__init__()
        for i, dim in enumerate(dims, 1):
            layer = nn.Sequential(OrderedDict(proj=nn.Linear(dim, mid)))
            self.add_module(f'linear_c{i}', layer)
        self.linear_fuse = nn.Sequential(OrderedDict(
            conv=conv(4 * mid, mid), bn=nn.BatchNorm2d(mid), relu=nn.ReLU()))
        self.dropout = nn.Dropout2d(0.1)
        self.linear_pred = conv(mid, num_classes, bias=True)
        self.conv_seg = conv(mid // 2, num_classes, bias=True)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        fuse = self.linear_fuse
        size = maps[0].shape[2:]
        # The convolution has a bias once its norm is folded.
        x = 0 if fuse.conv.bias is None else fuse.conv.bias[:, None, None]
        shares = fuse.conv.weight.flatten(1).chunk(4, dim=1)
        for i, share in zip((4, 3, 2, 1), shares):
            # Two linear maps in turn are one, and it commutes with resizing.
            proj = self.get_submodule(f'linear_c{i}').proj
            weight = (share @ proj.weight)[..., None, None]
            c = F.conv2d(maps[i - 1], weight, share @ proj.bias)
            if i > 1:
                c = F.interpolate(c, size, mode='bilinear', align_corners=False)
            x = x + c
        return fuse.relu(fuse.bn(x))


class SegFormer(SinglePersonNetwork):
    """The fork's `segformer_mit_b4`. labels, size, flip_pairs: see `SinglePersonNetwork`.

    blocks, width: those of MiT-B4. (1, 1, 1, 1) and 8 train in seconds on a CPU."""

    # An entry of the fork's checkpoints, and of no others.
    sign = 'head.linear_pred.weight'

    def __init__(self, labels: Sequence[str], size: tuple = (512, 384),
                 flip_pairs: Sequence[tuple] = (), blocks: tuple = (3, 8, 27, 3), width: int = 64):
        super().__init__(labels, size, flip_pairs)
        dims = [width * n for n in ATTENTION_HEADS]
        # SegFormer's own head has 768 channels, not 256.
        mid = 4 * width
        self.backbone = MiT(blocks, dims)
        self.head = Head(dims, mid, self.num_classes)
        self.edge = EdgeBranch(dims[:3], mid)
        self.fusion = Fusion(mid, self.num_classes)

        # The usual weights of vision transformers.
        for linear in (m for m in self.backbone.modules() if isinstance(m, nn.Linear)):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, images: torch.Tensor, heads: Sequence[str] = HEADS) -> dict:
        if min(images.shape[2:]) < SMALLEST:
            raise ValueError(f'the network segformer needs images of {SMALLEST} pixels at least, '
                             f'not {tuple(images.shape[2:])}; choose a larger --size or --scales')
        c1, c2, c3, c4 = self.backbone(images)
        feature = self.head((c1, c2, c3, c4))                                # (B, 256, h, w)
        edge_features = self.edge.features(c1, c2, c3)

        out = {}
        if 'parsing' in heads:
            out['parsing'] = self.head.linear_pred(self.head.dropout(feature))
        if 'fusion' in heads:
            out['fusion'] = self.fusion(feature, edge_features)              # (B, C, h, w)
        if 'edge' in heads:
            out['edge'] = self.edge(edge_features)                           # (B, 2, h, w)
        return out

    @staticmethod
    def sizes(weights: dict) -> dict:
        """blocks and width of a checkpoint of the fork, from its weights."""
        names = {tuple(key.split('.')[1:3]) for key in weights if key.startswith('backbone.block')}
        blocks = tuple(sum(stage == f'block{i}' for stage, _ in names) for i in '1234')
        return dict(blocks=blocks, width=len(weights['backbone.patch_embed1.proj.weight']))


# ---- ImageNet weights --------------------------------------------------------------------------


# Names of the Hugging Face hub (stages 0..3) and of the original files (stages 1..4).
STAGES = {'patch_embeddings': 'patch_embed', 'block': 'block', 'layer_norm': 'norm'}
MODULES = {
    '.attention.self.query.': '.attn.q.',
    '.attention.self.key.': '.attn.k.',
    '.attention.self.value.': '.attn.v.',
    '.attention.self.sr.': '.attn.sr.',
    '.attention.self.layer_norm.': '.attn.norm.',
    '.attention.output.dense.': '.attn.proj.',
    '.layer_norm_1.': '.norm1.',
    '.layer_norm_2.': '.norm2.',
    '.mlp.dense1.': '.mlp.fc1.',
    '.mlp.dense2.': '.mlp.fc2.',
    '.layer_norm.': '.norm.'}
CLASSIFIERS = ('head.', 'classifier.')


def load_mit(model: SegFormer, path: str | PathLike):
    """Loads ImageNet weights into the backbone: mit_b4.pth, or pytorch_model.bin of the hub's
    nvidia/mit-b4. They were trained on RGB images, and the fork feeds BGR all the same. NVIDIA's
    license of these weights is non-commercial. OSError or ValueError for any other file."""
    with reading(path):
        load_strictly(model.backbone, read_mit(path), path)


def read_mit(path: str | PathLike) -> dict:
    """Weights of the backbone by their original names, without the ImageNet classifier."""
    state = read_checkpoint(path)
    with reading(path):
        prefix = re.compile(r'^(module\.)?(segformer\.encoder\.|encoder\.|backbone\.)?')
        weights = state.get('state_dict', state)
        weights = {prefix.sub('', key): value for key, value in weights.items()}
        weights = {key: value for key, value in weights.items() if not key.startswith(CLASSIFIERS)}
        if any(key.startswith('patch_embeddings.') for key in weights):
            return from_hub(weights)
        return weights


def from_hub(weights: dict) -> dict:
    """Weights by the names of the hub -> by the original names."""
    renamed = {original_name(key): value for key, value in weights.items()}
    # The original has keys and values in one layer.
    for key in [key for key in renamed if '.attn.k.' in key]:
        value_key = key.replace('.attn.k.', '.attn.v.')
        if value_key in renamed:
            both = torch.cat([renamed.pop(key), renamed.pop(value_key)])
            renamed[key.replace('.attn.k.', '.attn.kv.')] = both
    return renamed


def original_name(key: str) -> str:
    stage = re.match(r'(patch_embeddings|block|layer_norm)\.(\d)\b', key)
    if stage:
        key = f'{STAGES[stage[1]]}{int(stage[2]) + 1}{key[stage.end():]}'
    for hub, original in MODULES.items():
        key = key.replace(hub, original)
    return key
