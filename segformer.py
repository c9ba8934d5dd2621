"""SCHP's heads on a SegFormer backbone: the variant of ViWear's fork for virtual try-on, nine merged labels.

SegFormer (Xie et al. 2021, arXiv:2105.15203) has a hierarchical transformer, here MiT-B4, and an all-MLP head. SCHP
(Li et al. 2020, arXiv:1910.09777) adds an edge module and a fusion module. Modules have the names of the fork's
checkpoints, so its files load as they are. The backbone is written from the paper.

    name     output                                      size of (H, W) images
    MiT      four maps of 64, 128, 320, 512 channels     1/4, 1/8, 1/16, 1/32
    Head     parsing logits (C) and feature (256)        1/4
    Edge     edge logits (2) and features (768)          1/4
    fusion   fusion logits (C), those of inference       1/4
"""
from collections import OrderedDict

import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.ops import StochasticDepth

from util.checkpoints import load_strictly, read_checkpoint, reading
from util.norms import InPlaceABN

CHANNELS = 256                                            # of every head; the SegFormer paper has 768 for B4


def to_map(tokens, size):                                 # (B, H * W, C) -> (B, C, H, W)
    return tokens.transpose(1, 2).unflatten(2, size)


def to_tokens(x):                                         # (B, C, H, W) -> (B, H * W, C)
    return x.flatten(2).transpose(1, 2)


def resize(x, size, align_corners):
    return x if x.shape[2:] == size else F.interpolate(x, size, mode='bilinear', align_corners=align_corners)


class PatchEmbed(nn.Module):
    """Overlapping patches, a strided convolution: (B, C, H, W) -> tokens (B, N, dim) and their size."""

    def __init__(self, channels, dim, kernel, stride):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(channels, dim, kernel, stride, kernel // 2), nn.LayerNorm(dim)

    def forward(self, x):
        x = self.proj(x)
        return self.norm(to_tokens(x)), x.shape[2:]


class Attention(nn.Module):
    """Eq. (1) with the keys and values of a sequence that is `ratio`^2 times shorter, Eq. (2)."""

    def __init__(self, dim, heads, ratio):
        super().__init__()
        self.heads, self.ratio = heads, ratio
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        if ratio > 1:
            self.sr, self.norm = nn.Conv2d(dim, dim, ratio, ratio), nn.LayerNorm(dim)

    def forward(self, x, size):
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)                 # (B, heads, N, 64)
        if self.ratio > 1:
            x = self.norm(to_tokens(self.sr(to_map(x, size))))                        # (B, M, C)
        k, v = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)   # (B, heads, M, 64) each
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MixFFN(nn.Module):
    """Eq. (3): a 3x3 depth-wise convolution in the MLP takes the place of a positional encoding."""

    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dwconv = nn.Sequential(OrderedDict(dwconv=nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)))

    def forward(self, x, size):
        return self.fc2(F.gelu(to_tokens(self.dwconv(to_map(self.fc1(x), size)))))


class Block(nn.Module):
    def __init__(self, dim, heads, ratio, drop):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = Attention(dim, heads, ratio), MixFFN(dim, 4 * dim)
        self.drop = StochasticDepth(drop, 'row')

    def forward(self, x, size):
        x = x + self.drop(self.attn(self.norm1(x), size))
        return x + self.drop(self.mlp(self.norm2(x), size))


class MiT(nn.Module):
    """images (B, 3, H, W) -> [c1, c2, c3, c4], (B, dims[i], H / 2^(i+2), W / 2^(i+2)). Stochastic depth grows linearly
    with the block, from 0 to 0.1."""

    def __init__(self, depths, dims, heads, sr_ratios):
        super().__init__()
        drops = iter([0.1 * i / max(1, sum(depths) - 1) for i in range(sum(depths))])
        for i, dim in enumerate(dims):
            patches = PatchEmbed(dims[i - 1], dim, 3, 2) if i else PatchEmbed(3, dim, 7, 4)
            blocks = nn.ModuleList(Block(dim, heads[i], sr_ratios[i], next(drops)) for _ in range(depths[i]))
            for name, module in dict(patch_embed=patches, block=blocks, norm=nn.LayerNorm(dim, eps=1e-6)).items():
                self.add_module(f'{name}{i + 1}', module)

    def forward(self, x):
        maps = []
        for i in '1234':
            tokens, size = self.get_submodule(f'patch_embed{i}')(x)
            for block in self.get_submodule(f'block{i}'):
                tokens = block(tokens, size)
            x = to_map(self.get_submodule(f'norm{i}')(tokens), size)
            maps.append(x)
        return maps


class Head(nn.Module):
    """All-MLP head (SegFormer, Eq. 4): maps -> parsing logits (B, C, h, w), feature (B, 256, h, w). `conv_seg` is in
    every checkpoint of the fork and in no forward."""

    def __init__(self, dims, num_classes):
        super().__init__()
        for i, dim in enumerate(dims, 1):
            self.add_module(f'linear_c{i}', nn.Sequential(OrderedDict(proj=nn.Linear(dim, CHANNELS))))
        self.linear_fuse = nn.Sequential(OrderedDict(
            conv=nn.Conv2d(4 * CHANNELS, CHANNELS, 1, bias=False), bn=nn.BatchNorm2d(CHANNELS), relu=nn.ReLU()))
        self.dropout, self.linear_pred = nn.Dropout2d(0.1), nn.Conv2d(CHANNELS, num_classes, 1)
        self.conv_seg = nn.Conv2d(128, num_classes, 1)

    def forward(self, maps):
        size = maps[0].shape[2:]
        shares = self.linear_fuse.conv.weight.chunk(4, dim=1)              # for c4, c3, c2, c1
        x = 0
        for i, share in zip((4, 3, 2, 1), shares):
            c = to_map(self.get_submodule(f'linear_c{i}')(to_tokens(maps[i - 1])), maps[i - 1].shape[2:])
            x = x + resize(F.conv2d(c, share), size, align_corners=False)  # a 1x1 convolution commutes with resizing
        feature = self.linear_fuse.relu(self.linear_fuse.bn(x))
        return self.linear_pred(self.dropout(feature)), feature


def conv_norm(channels):
    return nn.Sequential(nn.Conv2d(channels, CHANNELS, 1, bias=False), InPlaceABN(CHANNELS))


class Edge(nn.Module):
    """SCHP's edge module: c1, c2, c3 -> edge logits (B, 2, h, w), features (B, 768, h, w)."""

    def __init__(self, dims):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (conv_norm(dim) for dim in dims[:3])
        self.conv4, self.conv5 = nn.Conv2d(CHANNELS, 2, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, maps):
        size = maps[0].shape[2:]
        features = [conv(c) for conv, c in zip((self.conv1, self.conv2, self.conv3), maps)]
        edges = [resize(self.conv4(f), size, align_corners=True) for f in features]
        return self.conv5(torch.cat(edges, 1)), torch.cat([resize(f, size, align_corners=True) for f in features], 1)


class SegFormer(nn.Module):
    """images (B, 3, H, W), BGR, normalized as for SCHP -> dict of logits at 1/4 of the size: parsing and fusion
    (B, C, h, w), edge (B, 2, h, w). `backbone(images)` gives the four maps. The defaults are the fork's
    `segformer_mit_b4`; `depths=(1, 1, 1, 1)` makes a small one."""

    def __init__(self, num_classes=9, depths=(3, 8, 27, 3), dims=(64, 128, 320, 512), heads=(1, 2, 5, 8),
                 sr_ratios=(8, 4, 2, 1)):
        super().__init__()
        self.backbone = MiT(depths, dims, heads, sr_ratios)
        self.head, self.edge = Head(dims, num_classes), Edge(dims)
        self.fusion = nn.Sequential(*conv_norm(4 * CHANNELS), nn.Dropout2d(0.1), nn.Conv2d(CHANNELS, num_classes, 1))
        for linear in (m for m in self.backbone.modules() if isinstance(m, nn.Linear)):
            nn.init.trunc_normal_(linear.weight, std=0.02)                # usual for vision transformers
            nn.init.zeros_(linear.bias)

    def forward(self, images):
        maps = self.backbone(images)
        parsing, feature = self.head(maps)
        edge, edge_features = self.edge(maps)
        return dict(parsing=parsing, fusion=self.fusion(torch.cat([feature, edge_features], 1)), edge=edge)


def from_state(state, path):
    """A SegFormer in eval mode from a checkpoint of the fork, as read from `path`: {state_dict, ..} or the weights
    alone, with or without `module.`. Classes and depths are read off the weights, the rest has to fit."""
    with reading(path):
        state = state.get('state_dict', state)
        weights = {key.removeprefix('module.'): value for key, value in state.items()}
        if not {'backbone.patch_embed1.proj.weight', 'head.linear_pred.weight'} <= set(weights):
            raise ValueError(f'{path} is no checkpoint of segformer_mit_b4; the ImageNet weights mit_b4.pth alone are '
                             'no parser, and SCHP\'s own files belong to its ResNet-101')
        blocks = {tuple(key.split('.')[1:3]) for key in weights if key.startswith('backbone.block')}
        with torch.device('meta'):                          # load_strictly allocates
            model = SegFormer(num_classes=len(weights['head.linear_pred.weight']),
                              depths=[sum(stage == f'block{i}' for stage, _ in blocks) for i in '1234'])
        load_strictly(model, weights, path)
        return model.eval()


def load_checkpoint(path):
    """`from_state` of a file. ValueError or OSError with one sentence for any other file."""
    return from_state(read_checkpoint(path), path)
