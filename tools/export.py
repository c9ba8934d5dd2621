"""Writes a model for other programs: as ONNX, or as a weights file without the state of the training.

    python -m tools.export --weights runs/MHP/best.pt --out uniparser.onnx
    python -m tools.export --weights runs/MHP/best.pt --out uniparser.pt --half
    python -m tools.export --weights UniParser_MHP_r101_light.pth --out uniparser.pt     # a released file in our format
    python -m tools.export --weights exp-schp-201908261155-lip.pth --out schp.onnx       # SCHP, too

The ONNX file of SCHP takes image (B, 3, H, W) float32, BGR in 0..1, minus mean, over std, of the size in its metadata,
and gives logits (B, C, H, W), before the softmax. mean and std (of B, G, R), labels and size are metadata, as JSON.

The ONNX file of UniParser computes the correlations of an image:

    image      (1, 3, H, W) float32   RGB in 0..1, minus mean, over std; H and W multiples of 32
    scores     (P,)                   of the max_people highest peaks of the heat map, best first          Eq. (1)
    centers    (P, 2)                 their pixels (x, y) in the image
    q_ins      (P, H/4, W/4)          correlations with their people; meaningless where the score is low    Eq. (2)
    q_cate     (K, H/4, W/4)          correlations with the categories                                      Eq. (3)

mean, std, class_names and the settings named here are in the file's metadata, as JSON. A photo is scaled (bilinear)
to a short side of test_short_side, but no long side above long_side; zeros are added right and below after normalizing
(`data.network_input`). People are the peaks with scores > theta_center, each where its q_ins > theta_mask; a person
whose mask has an IoU above theta_same with that of a better one is left out (`util.beyond.distinct`). With assign
"correlation", the classes of a person are those with a mean q_cate above theta_part inside that mask
(`uniparser.part_scores`), and the label of a pixel is the one of them with the largest q_cate, or 0 where that is not
above theta_paint (if that is 0: theta_mask). With assign "mixture", posteriors stand in for q_cate
(`util.beyond.mixture`). With score "parsing", `util.beyond.parsing_quality` replaces the scores, and people
below theta_score are left out. Finally the labels are scaled to the photo's size (`uniparser.decode`). flip_test is not
in the file: run it on the mirror image, too.
"""
import importlib
import io
import json
import os

import torch
import torch.nn as nn

from data import MEAN, STD
from infer import WEIGHTS
from schp import SCHP
from uniparser import INFERENCE, PRESETS, ConvTower, UniParser, correlate, get_config, keep_peaks
from schp import crops
from util.checkpoints import find_system, read_checkpoint
from util.cli import CommandParser, describe, filled, start
from util.files import user_errors, write_file
from util.labels import LABEL_SETS


class Correlations(nn.Module):
    """The network up to the correlations, for a single image."""

    def __init__(self, model):
        super().__init__()
        self.model, self.people = model, min(model.config.max_people, model.config.grid ** 2)

    def forward(self, image):
        config, out = self.model.config, self.model(image)
        logits, cells = keep_peaks(out['heatmap'][0, 0], config).flatten().topk(self.people)
        k_ins = out['k_ins'][0].flatten(1)[:, cells].T
        cell = torch.stack([cells % config.grid, cells // config.grid], dim=1)
        size = torch.tensor([image.shape[-1], image.shape[-2]])
        q_ins = correlate(k_ins, out['f_ins'][0], config.space)                                         # Eq. (2)
        q_cate = correlate(out['k_cate'], out['f_cate'][0], config.space)                               # Eq. (3)
        return logits.sigmoid(), (2 * cell + 1) * size / (2 * config.grid), q_ins, q_cate


def export_onnx(model, path):
    """Writes a folded UniParser on the CPU to `path`."""
    if model.config.fusion != 'index':
        raise ValueError(f'the ONNX file holds correlations, but the fusion {model.config.fusion!r} does not use them')
    for module in model.modules():
        if isinstance(module, ConvTower):
            module.cache = None                          # the coordinates' share depends on the size
    height, width = (torch.export.Dim(name, min=2, max=256) for name in ('height', 'width'))
    settings = {key: getattr(model.config, key) for key in INFERENCE}
    write_onnx(path, Correlations(model), torch.zeros(1, 3, 256, 320), ({2: 32 * height, 3: 32 * width},),
               ['scores', 'centers', 'q_ins', 'q_cate'],
               dict(settings, mean=MEAN, std=STD, class_names=model.class_names))


class Logits(nn.Module):
    """Crops -> logits of SCHP at the size of the crops."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        return self.model.crop_logits(image)


def export_schp(model, path):
    """Writes a folded SCHP on the CPU to `path`."""
    write_onnx(path, Logits(model), torch.zeros(2, 3, *model.size), ({0: torch.export.Dim('batch', min=1, max=1024)},),
               ['logits'], dict(mean=crops.MEAN, std=crops.STD, labels=model.labels, size=model.size))


def write_onnx(path, model, image, shapes, outputs, metadata):
    """Writes a model of one input, `image`, with metadata as JSON; ModuleNotFoundError with advice where a package is
    missing."""
    try:
        for name in 'onnx', 'onnxscript':                # what torch.onnx needs
            importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'an ONNX file needs {error.name}; pip install onnx onnxscript onnxruntime') from None
    program = torch.onnx.export(model.eval(), (image,), dynamo=True, opset_version=19, verbose=False,
                                input_names=['image'], output_names=outputs, dynamic_shapes=shapes, external_data=False)
    for key, value in metadata.items():
        program.model.metadata_props[key] = json.dumps(value)
    file = io.BytesIO()
    program.save(file, external_data=False)
    write_file(path, file.getvalue())


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('--weights', type=filled, default=str(WEIGHTS),
                        help='a checkpoint of train.py or of the released code')
    parser.add_argument('--preset', choices=list(PRESETS), help='an untrained network instead of weights')
    parser.add_argument('--labels', choices=list(LABEL_SETS), help='SCHP with 20 classes: lip (default) or cihp')
    parser.add_argument('--out', required=True, metavar='FILE', help='FILE.onnx or FILE.pt')
    parser.add_argument('--half', action='store_true', help='FILE.pt in half precision: half the size')
    return parser.parse_args(argv)


def export(args):
    schp = not args.preset and find_system(read_checkpoint(args.weights)) == 'schp'
    if schp:
        model = SCHP.from_pretrained(args.weights, args.labels)
    elif args.preset:
        torch.manual_seed(0)
        model = UniParser(get_config(args.preset, pretrained='')).eval()
    else:
        model = UniParser.from_pretrained(args.weights)
    if args.out.endswith('.onnx'):
        export_schp(model.fold(), args.out) if schp else export_onnx(model.fold(), args.out)
    else:
        (model.half() if args.half else model).save(args.out)
    print(f'{args.out}: {os.path.getsize(args.out) / 1e6:.1f} MB, {describe(model.config)}')


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        export(args)


if __name__ == '__main__':
    start(main)
