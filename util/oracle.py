"""Predicts a split with the ground truth in place of a part of the network, which shows what the other parts cost.

    python -m util.oracle people --data CCP --root DIR --out results/        # then evaluate.py as usual
    python -m util.oracle where --data COCO --root coco --split held         # where people are lost, a table
"""
import preflight
preflight.require('data', 'infer', 'losses', 'uniparser', 'util')


import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from data import input_size, network_input, resize_sample
from infer import add_model_flags, load_model, open_split, predict_split
from losses import make_targets
from uniparser import decode
from util.datasets import DATASETS
from util.files import user_errors
from util.submissions import FORMS
from util.where import print_where


@torch.no_grad()
def predict_with_truth(model, kind, image, parsing, ignore):
    """Parsing of one image where the ground truth replaces a part of the network: the heat map (centers), that and the
    correlations with people (people), or the correlations with categories (classes)."""
    config, photo = model.config, Image.fromarray(image)
    out, (padded, size) = model.outputs(network_input(photo, config)), input_size(photo, config)
    _, parsing, ignore = resize_sample(image, parsing, ignore, size[::-1], config.recipe)
    below = (0, padded[1] - size[1], 0, padded[0] - size[0])
    parsing, ignore = (F.pad(torch.from_numpy(np.array(x)), below) for x in (parsing, ignore))
    truth = make_targets(parsing, ignore, out['f_ins'].shape[-2:], config)
    if kind == 'classes':
        out['f_cate'] = truth['categories'].view(1, -1, *out['f_cate'].shape[-2:])
        out['k_cate'] = torch.eye(config.num_classes)
    else:
        cells, heat = truth['cells'][truth['exists']], torch.full((config.grid ** 2,), -9.0)
        heat[cells] = 9.0
        out['heatmap'] = heat.view(1, 1, config.grid, config.grid)
    if kind == 'people':
        out['f_ins'] = truth['persons'][truth['exists']].float()[None]                     # (1, N, h, w)
        out['k_ins'] = torch.zeros(1, len(cells), config.grid ** 2)
        out['k_ins'][0, torch.arange(len(cells)), cells] = 1
    return decode({k: v.cpu() for k, v in out.items()}, 0, photo, config, model.fusion)


def parse_arguments(argv=None):
    parser = preflight.CommandParser(__doc__)
    parser.add_argument('part', choices=['centers', 'people', 'classes', 'where'],
                        help='what the ground truth replaces; where: nothing, see util/where.py')
    parser.add_argument('--data', choices=list(DATASETS), required=True)
    parser.add_argument('--root', help='folder of the data set, as downloaded')
    parser.add_argument('--split', default='val')
    parser.add_argument('--out', help='folder for the predictions')
    parser.add_argument('--format', choices=FORMS, default=FORMS[0], help='form of the predictions')
    add_model_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        if args.part == 'where' and args.data != 'COCO' or args.part != 'where' and not args.out:
            raise ValueError('where is for --data COCO; the others write predictions to the folder --out')
        model = load_model(args, args.device)
        dataset = open_split(args, model)
        if args.part == 'where':
            return print_where(model, dataset)
        predict_split(args, dataset, lambda *sample: predict_with_truth(model, args.part, *sample))


if __name__ == '__main__':
    preflight.start(main)
