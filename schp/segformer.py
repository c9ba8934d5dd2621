"""SCHP's heads on a SegFormer backbone: the variant of ViWear's fork for virtual try-on, nine merged labels.

SegFormer (Xie et al. 2021, arXiv:2105.15203) has a hierarchical transformer, here MiT-B4, and an all-MLP head. SCHP
(Li et al. 2020, arXiv:1910.09777) adds an edge module and a fusion module. Modules have the names of the fork's
checkpoints, so its files load as they are. The backbone is written from the paper.

    name     output                                      size of (H, W) images
    backbone four maps of 64, 128, 320, 512 channels     1/4, 1/8, 1/16, 1/32
    head     parsing logits (C) and feature (256)        1/4
    edge     edge logits (2) and features (768)          1/4
    fusion   fusion logits (C), those of inference       1/4
"""
import re
from collections import OrderedDict

import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.ops import StochasticDepth

from schp.layers import EdgeBranch, conv, convolve_stack, unit
from schp.single_person import Parser
from util.checkpoints import load_strictly, read_checkpoint, reading

HEADS, SR_RATIOS = (1, 2, 5, 8), (8, 4, 2, 1)             # of the four stages; each head has `width` channels


def to_map(tokens, size):                                 # (B, H * W, C) -> (B, C, H, W)
    return tokens.transpose(1, 2).unflatten(2, size)


def to_tokens(x):                                         # (B, C, H, W) -> (B, H * W, C)
    return x.flatten(2).transpose(1, 2)


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
    """All-MLP head (SegFormer, Eq. 4): maps -> feature (B, mid, h, w); linear_pred classifies it. `conv_seg` is in
    every checkpoint of the fork and in no forward."""

    def __init__(self, dims, mid, num_classes):
        super().__init__()
        for i, dim in enumerate(dims, 1):
            self.add_module(f'linear_c{i}', nn.Sequential(OrderedDict(proj=nn.Linear(dim, mid))))
        self.linear_fuse = nn.Sequential(OrderedDict(
            conv=conv(4 * mid, mid), bn=nn.BatchNorm2d(mid), relu=nn.ReLU()))
        self.dropout, self.linear_pred = nn.Dropout2d(0.1), conv(mid, num_classes, bias=True)
        self.conv_seg = conv(mid // 2, num_classes, bias=True)

    def forward(self, maps):
        fuse, size = self.linear_fuse, maps[0].shape[2:]
        x = 0 if fuse.conv.bias is None else fuse.conv.bias[:, None, None]           # from the norm, once it is folded
        for i, share in zip((4, 3, 2, 1), fuse.conv.weight.flatten(1).chunk(4, dim=1)):
            proj = self.get_submodule(f'linear_c{i}').proj        # two linear maps in turn are one, and commute with
            c = F.conv2d(maps[i - 1], (share @ proj.weight)[..., None, None], share @ proj.bias)        # resizing
            x = x + (c if i == 1 else F.interpolate(c, size, mode='bilinear', align_corners=False))
        return fuse.relu(fuse.bn(x))


class SegFormer(Parser):
    """labels, size, flip_pairs: see `Parser`. blocks and width are those of MiT-B4, the fork's `segformer_mit_b4`; (1,
    1, 1, 1) and 8 train in seconds on a CPU. `backbone(images)` gives the four maps."""

    sign = 'head.linear_pred.weight'                      # an entry of the fork's checkpoints, and of no others

    def __init__(self, labels, size=(512, 384), flip_pairs=(), blocks=(3, 8, 27, 3), width=64):
        super().__init__(labels, size, flip_pairs)
        dims, mid = [width * n for n in HEADS], 4 * width       # SegFormer's own head has 768 channels, not 256
        self.backbone = MiT(blocks, dims, HEADS, SR_RATIOS)
        self.head, self.edge = Head(dims, mid, self.num_classes), EdgeBranch(dims[:3], mid)
        self.fusion = nn.Sequential(*unit(4 * mid, mid), nn.Dropout2d(0.1), conv(mid, self.num_classes, bias=True))
        for linear in (m for m in self.backbone.modules() if isinstance(m, nn.Linear)):
            nn.init.trunc_normal_(linear.weight, std=0.02)                # usual for vision transformers
            nn.init.zeros_(linear.bias)

    def forward(self, images, heads=('parsing', 'fusion', 'edge')):
        """images (B, 3, H, W), BGR, normalized as for SCHP -> dict of logits at 1/4 of the size: parsing and fusion
        (B, C, h, w), edge (B, 2, h, w). Only the heads asked for are computed."""
        c1, c2, c3, c4 = self.backbone(images)
        feature, edge_features = self.head((c1, c2, c3, c4)), self.edge.features(c1, c2, c3)
        compute = dict(parsing=lambda: self.head.linear_pred(self.head.dropout(feature)),
                       fusion=lambda: self.fusion[1:](convolve_stack(self.fusion[0], [feature, *edge_features])),
                       edge=lambda: self.edge(edge_features))
        return {head: compute[head]() for head in heads}

    @staticmethod
    def sizes(weights):
        """dict of blocks and width of a checkpoint of the fork, from its weights."""
        blocks = {tuple(key.split('.')[1:3]) for key in weights if key.startswith('backbone.block')}
        return dict(blocks=tuple(sum(stage == f'block{i}' for stage, _ in blocks) for i in '1234'),
                    width=len(weights['backbone.patch_embed1.proj.weight']))


# ---- ImageNet weights, in the keys of the original files or in those of the Hugging Face hub -----------------

STAGES = {'patch_embeddings': 'patch_embed', 'block': 'block', 'layer_norm': 'norm'}       # hub: 0..3, original: 1..4
MODULES = (('.attention.self.query.', '.attn.q.'), ('.attention.self.key.', '.attn.k.'),
           ('.attention.self.value.', '.attn.v.'), ('.attention.self.sr.', '.attn.sr.'),
           ('.attention.self.layer_norm.', '.attn.norm.'), ('.attention.output.dense.', '.attn.proj.'),
           ('.layer_norm_1.', '.norm1.'), ('.layer_norm_2.', '.norm2.'), ('.mlp.dense1.', '.mlp.fc1.'),
           ('.mlp.dense2.', '.mlp.fc2.'), ('.layer_norm.', '.norm.'))
CLASSIFIERS = 'head.', 'classifier.'


def from_hub(weights):
    """Weights of the hub's `segformer.encoder` in the original keys. The original has keys and values in one layer."""
    renamed = {}
    for key, value in weights.items():
        key = re.sub(r'^(patch_embeddings|block|layer_norm)\.(\d)\b', lambda m: STAGES[m[1]] + str(int(m[2]) + 1), key)
        for hub, original in MODULES:
            key = key.replace(hub, original)
        renamed[key] = value
    for key in [key for key in renamed if '.attn.k.' in key]:
        value = renamed.pop(key.replace('.attn.k.', '.attn.v.'), None)
        if value is not None:
            renamed[key.replace('.attn.k.', '.attn.kv.')] = torch.cat([renamed.pop(key), value])
    return renamed


def read_mit(path):
    """Backbone weights by their original names (patch_embed1.proj.weight, ..), without the ImageNet classifier."""
    state = read_checkpoint(path)
    with reading(path):
        prefix = re.compile(r'^(module\.)?(segformer\.encoder\.|encoder\.|backbone\.)?')
        weights = {prefix.sub('', key): value for key, value in state.get('state_dict', state).items()}
        weights = {key: value for key, value in weights.items() if not key.startswith(CLASSIFIERS)}
        return from_hub(weights) if any(key.startswith('patch_embeddings.') for key in weights) else weights


def load_mit(model, path):
    """Puts ImageNet weights into the backbone of a `SegFormer`, strictly: mit_b4.pth, or pytorch_model.bin of the hub's
    nvidia/mit-b4. They were trained on RGB, and the fork feeds BGR all the same. NVIDIA's license of these weights
    is non-commercial. ValueError or OSError with one sentence for any other file."""
    with reading(path):
        load_strictly(model.backbone, read_mit(path), path)
