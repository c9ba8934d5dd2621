"""Writes a model for other programs: as ONNX, or as a weights file without the training's state,
in torch's form or that of safetensors.

    python -m tools.export --weights runs/MHP/best.pt --out uniparser.onnx
    python -m tools.export --weights runs/MHP/best.pt --out uniparser.pt --half
    python -m tools.export --weights runs/MHP/best.pt --out uniparser.safetensors
    python -m tools.export --weights Uniparser_MHP_r101_light.pth --out uniparser.pt   # released
    python -m tools.export --weights exp-schp-201908261155-lip.pth --out parsing_lip.onnx     # SCHP

Weights files of all three systems are read and written; UniParser and SCHP have ONNX files. In
their metadata are the settings and the names of the classes, as JSON.

The ONNX file of UniParser computes the correlations of an image:

    image    (1, 3, H, W) float32  RGB in 0..1, minus mean, over std; H, W multiples of 32
    scores   (P,)                  of the max_people highest peaks of the heat map       Eq. (1)
    centers  (P, 2)                their pixels (x, y) in the image
    q_ins    (P, H/4, W/4)         correlations with their people                        Eq. (2)
    q_cate   (K, H/4, W/4)         correlations with the categories                      Eq. (3)

Peaks come best first. q_ins means nothing where the score is low. With flip_test, the network sees
the mirror image, too. tools/onnx_parse.py has what comes before and after, without torch.

The ONNX file of SCHP has the names of those that IDM-VTON and OOTDiffusion load, parsing_lip.onnx
and parsing_atr.onnx, and can take their place:

    input.1  (B, 3, H, W) float32  BGR in 0..1, minus mean, over std; H, W are the `size`
    parsing  (B, C, h, w)          logits before the fusion; h = ceil(H / 4), w = ceil(W / 4)
    fusion   (B, C, h, w)          logits of the result, before the softmax
    edge     (B, 2, h, w)          logits of "no edge" and "edge"

The fusion logits are enlarged to (H, W), bilinear, with corners on corners. Then they go back to
the photo, where the largest one is the label (schp/crops.py).
"""
import importlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn as nn

import oneshot
from correlation import correlate
from data import MEAN, STD
from infer import WEIGHTS
from schp import HEADS, SCHP, SinglePersonNetwork, crops
from uniparser import INFERENCE, PRESETS, UniParser, get_config, keep_peaks
from util.beyond import averaged
from util.checkpoints import SAFE, find_system, read_checkpoint
from util.cli import CommandParser, filled, start
from util.files import MARK, counted, user_errors, write_file
from util.labels import LABEL_SETS
from util.run import NAMES, is_of_a_run

NEEDED = 'onnx', 'onnxscript'                # what torch.onnx needs
OPSET = 19
ENDINGS = '.onnx', '.pt', SAFE                # of --out


class Correlations(nn.Module):
    """A UniParser up to the correlations, for a single image: the outputs of the ONNX file."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.people = min(model.config.max_people, model.config.grid ** 2)

    def forward(self, image):
        config = self.model.config
        out = self.model(image)
        if config.flip_test:
            out = averaged(out, self.model(image.flip(3)), self.model.flip_pairs)
        logits, cells = keep_peaks(out['heatmap'][0, 0], config).flatten().topk(self.people)
        k_ins = out['k_ins'][0].flatten(1)[:, cells].T
        column = cells % config.grid
        row = cells // config.grid
        size = torch.tensor([image.shape[-1], image.shape[-2]])
        centers = (2 * torch.stack([column, row], dim=1) + 1) * size / (2 * config.grid)
        q_ins = correlate(k_ins, out['f_ins'][0], config.space)                          # Eq. (2)
        q_cate = correlate(out['k_cate'], out['f_cate'][0], config.space)                # Eq. (3)
        return logits.sigmoid(), centers, q_ins, q_cate


class Heads(nn.Module):
    """Crops -> the logits of an SCHP, in the order of the released network's outputs."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        out = self.model(image)
        return tuple(out[name] for name in HEADS)


def export_onnx(model: UniParser, path: str):
    """Writes a folded UniParser on the CPU to `path`."""
    config = model.config
    if config.fusion != 'index':
        raise ValueError(f'the ONNX file holds correlations, but the fusion {config.fusion!r} does '
                         'not use them')
    height = 32 * torch.export.Dim('height', min=2, max=256)
    width = 32 * torch.export.Dim('width', min=2, max=256)
    settings = {name: getattr(config, name) for name in INFERENCE}
    metadata = dict(settings, system='uniparser', recipe=config.recipe, mean=MEAN, std=STD,
                    class_names=model.class_names, flip_pairs=model.flip_pairs)
    write_onnx(path, Correlations(model), {'image': torch.zeros(1, 3, 256, 320)},
               {2: height, 3: width}, ['scores', 'centers', 'q_ins', 'q_cate'], metadata)


def export_schp(model: nn.Module, path: str):
    """Writes a folded SCHP on the CPU to `path`."""
    batch = torch.export.Dim('batch', min=1, max=1024)
    metadata = dict(system='schp', mean=crops.MEAN, std=crops.STD, labels=model.class_names,
                    size=model.size)
    write_onnx(path, Heads(model), {'input.1': torch.zeros(2, 3, *model.size)}, {0: batch}, HEADS,
               metadata)


def write_onnx(path: str, model: nn.Module, example: dict, shape: dict, outputs: Sequence[str],
               metadata: dict):
    """Writes a model with one input.

    Args:
        example: {name of the input: an example of it}.
        shape: {axis: torch.export.Dim} of the axes of any size.
        outputs: their names.
        metadata: is stored as JSON.

    ModuleNotFoundError with advice where a package is missing.
    """
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f'an ONNX file needs {error.name}; pip install onnx '
                                      'onnxscript onnxruntime') from None
    program = torch.onnx.export(model.eval(), tuple(example.values()), dynamo=True,
                                opset_version=OPSET, verbose=False, input_names=list(example),
                                output_names=list(outputs), dynamic_shapes=(shape,),
                                external_data=False)
    for key, value in dict(metadata, software=MARK).items():
        program.model.metadata_props[key] = json.dumps(value)
    file = io.BytesIO()
    program.save(file, external_data=False)
    write_file(path, file.getvalue())


def open_model(args):
    """The model of the arguments, of any system, on the CPU."""
    if args.preset:
        torch.manual_seed(0)
        return UniParser(get_config(args.preset, pretrained='')).eval()
    system = find_system(read_checkpoint(args.weights))
    if system == 'schp':
        return SCHP.from_pretrained(args.weights, args.labels)
    if system == 'oneshot':
        return oneshot.load_model(args.weights, 'cpu')
    return UniParser.from_pretrained(args.weights)


def check_out(args):
    """ValueError where --out has another ending, or would replace the weights, the state of a
    training, or a file that this program did not write."""
    out = Path(args.out)
    if out.suffix not in ENDINGS:
        raise ValueError(f'--out is {args.out}; its ending is {", ".join(ENDINGS[:-1])} or '
                         f'{ENDINGS[-1]}')
    if not os.path.lexists(out):
        return
    if not args.preset and os.path.realpath(out) == os.path.realpath(args.weights):
        raise ValueError(f'{out} is an input and would be replaced by a result; choose another '
                         '--out')
    if not is_export(out):
        raise ValueError(f'{out} exists and this program did not write it, or it belongs to a run; '
                         'choose another --out')


def is_export(path: Path) -> bool:
    """Whether this command wrote a file: an ONNX file with the mark, or weights alone."""
    if not path.is_file() or any(map(path.match, NAMES)):
        return False
    if path.suffix == '.onnx':
        return MARK.encode() in path.read_bytes()
    return is_of_a_run(path) and 'optimizer' not in read_checkpoint(path)


def export(args):
    check_out(args)
    if args.half and args.out.endswith('.onnx'):
        raise ValueError('--half is for weights files; the ONNX file holds float32')
    model = open_model(args)
    if not args.out.endswith('.onnx'):
        if args.half:
            model = model.half()
        model.save(args.out)
    elif isinstance(model, UniParser):
        export_onnx(model.fold(), args.out)
    elif isinstance(model, SinglePersonNetwork):
        export_schp(model.fold(), args.out)
    else:
        raise ValueError(f'{args.weights} is of one-shot parsing, whose network also reads an '
                         f'example, so it has no ONNX file; --out FILE{SAFE} writes its weights')
    text = f'{args.out}: {os.path.getsize(args.out) / 1e6:.1f} MB'
    if hasattr(model, 'class_names'):             # one-shot parsing has none of its own
        number = len([name for name in model.class_names[1:] if name])
        text += f', {counted(number, "class", "classes")}'
    print(f'{text}; next: {next_step(model, args.out)}')


def next_step(model: nn.Module, out: str) -> str:
    """What the file of a model is for: the command that parses photos with it."""
    is_onnx = out.endswith('.onnx')
    if isinstance(model, UniParser):
        command = 'python -m tools.onnx_parse PHOTO' if is_onnx else 'python infer.py PHOTO'
    elif isinstance(model, SinglePersonNetwork):
        if is_onnx:
            return 'give it to IDM-VTON or OOTDiffusion (schp/README.md)'
        command = 'python -m schp extract PHOTO'
    else:
        command = 'python -m oneshot parse PHOTO --support EXAMPLE --support-mask MASK'
    return f'{command} --weights {out}'


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('--weights', type=filled, default=str(WEIGHTS),
                        help='a weights file of train.py, schp train, oneshot train or the '
                             'released code (default: weights/uniparser_ccp.pt)')
    parser.add_argument('--preset', choices=list(PRESETS),
                        help='an untrained network instead of weights')
    parser.add_argument('--labels', choices=list(LABEL_SETS),
                        help='label set of SCHP with 20 classes: lip (default) or cihp')
    parser.add_argument('--out', type=filled, required=True, metavar='FILE',
                        help='FILE.onnx, FILE.pt or FILE.safetensors')
    parser.add_argument('--half', action='store_true',
                        help='weights file in half precision: half the size')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        export(args)


if __name__ == '__main__':
    start(main)
