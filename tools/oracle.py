"""Predicts a split with the ground truth in place of a part of the network, which shows what the other parts cost.

    python -m tools.oracle people --data CCP --root DIR --out results/        # then evaluate.py as usual
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from data import input_geometry, network_input, resize_sample
from infer import add_model_flags, load_model, open_split, predict_split
from losses import make_loss
from uniparser import decode
from util.cli import CommandParser, start
from util.datasets import DATASETS
from util.files import user_errors
from util.submissions import FORMS


@torch.no_grad()
def predict_with_truth(model, kind, image, parsing, ignore):
    """Parsing of one image where the ground truth replaces a part of the network: the heat map (centers), that and the
    correlations with people (people), or the correlations with categories (classes)."""
    config = model.config
    photo = Image.fromarray(image)
    geometry = input_geometry(photo, config)
    out = model.outputs(network_input(photo, config, geometry))

    # The targets of the photo as the network sees it.
    _, parsing, ignore = resize_sample(image, parsing, ignore, geometry.size[::-1], config)
    below = 0, geometry.padded[1] - geometry.size[1], 0, geometry.padded[0] - geometry.size[0]
    parsing = F.pad(torch.from_numpy(np.array(parsing)), below)
    ignore = F.pad(torch.from_numpy(np.array(ignore)), below)
    truth = make_loss(config).make_targets(parsing, ignore, out['f_ins'].shape[-2:])

    if kind == 'classes':
        out['f_cate'] = truth.categories.view(1, -1, *out['f_cate'].shape[-2:])
        out['k_cate'] = torch.eye(config.num_classes)
    else:
        cells = truth.cells[truth.exists]
        heat = torch.full((config.grid ** 2,), -9.0)
        heat[cells] = 9.0
        out['heatmap'] = heat.view(1, 1, config.grid, config.grid)
    if kind == 'people':
        # One feature channel per person: its mask.
        out['f_ins'] = truth.persons[truth.exists].float()[None]             # (1, N, h, w)
        out['k_ins'] = torch.zeros(1, len(cells), config.grid ** 2)
        out['k_ins'][0, torch.arange(len(cells)), cells] = 1
    out = {name: value.cpu() for name, value in out.items()}
    return decode(out, 0, geometry, config, model.fusion)


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('part', choices=['centers', 'people', 'classes'], help='what the ground truth replaces')
    parser.add_argument('--data', choices=list(DATASETS), required=True)
    parser.add_argument('--root', help='folder of the data set, as downloaded')
    parser.add_argument('--split', default='val')
    parser.add_argument('--out', required=True, help='folder for the predictions')
    parser.add_argument('--format', choices=FORMS, default=FORMS[0], help='form of the predictions')
    add_model_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        model = load_model(args, args.device)
        dataset = open_split(args, model)
        predict_split(args, dataset, lambda *sample: predict_with_truth(model, args.part, *sample))


if __name__ == '__main__':
    start(main)
