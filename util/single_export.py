"""schp.py export: the network of a weights file as ONNX, for pipelines that run it in ONNX Runtime.

    image    (B, 3, H, W) float32   crops of the photos, BGR in 0..1, minus mean, over std; (H, W) is `size`
    logits   (B, C, H, W)           of the fusion head, at the size of the crop; the label is the largest

mean, std, size, class_names and flip_pairs are in the file's metadata, as JSON. util/warp.py has the crop
(`crop_matrix`, `crop`) and the way back to the photo (`label_map` with the inverse matrix).
"""
import os

import torch
import torch.nn as nn

from util.onnx_file import write_onnx
from util.warp import MEAN, STD


class FusionLogits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        return self.model.crop_logits(image)


def add_flags(parser):
    parser.add_argument('--out', required=True, metavar='FILE', help='FILE.onnx')


def export(args, load_model):
    """load_model(args) -> the Parser of --weights."""
    if not args.weights:
        raise ValueError('give the weights with --weights')
    write_parser(args.out, load_model(args).cpu())
    print(f'{args.out}: {os.path.getsize(args.out) / 1e6:.1f} MB')


def write_parser(path, model):
    """Writes a folded Parser on the CPU; the number of images may vary."""
    write_onnx(path, FusionLogits(model), torch.zeros(2, 3, *model.size), ['logits'],
               {0: torch.export.Dim('images', min=1, max=1024)},
               dict(mean=MEAN, std=STD, size=model.size, class_names=model.labels, flip_pairs=model.flip_pairs))
