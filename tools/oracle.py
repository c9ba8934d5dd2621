"""Predicts a split with the ground truth in place of a part of the network.

The difference to the usual predictions shows what that part costs.

    python -m tools.oracle people --data CCP --root DIR --out results/   # then evaluate.py as usual
"""
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from data import Geometry, input_geometry, network_input, resize_sample
from infer import add_model_flags, load_model, open_split, predict_split
from losses import Targets, make_loss
from uniparser import Config, decode
from util.cli import CommandParser, filled, start
from util.datasets import DATASETS
from util.files import user_errors
from util.results import Parsing
from util.submissions import FORMS

SURE = 9.0                                   # logit of a center; -SURE: of a cell without one


@torch.no_grad()
def predict_with_truth(model, part: str, image: np.ndarray, parsing: np.ndarray,
                       ignore: np.ndarray) -> Parsing:
    """Predicts one image, where the ground truth replaces a part of the network.

    Args:
        model: a folded UniParser.
        part: centers: the heat map; people: the heat map and the correlations with people;
            classes: the correlations with categories.
        image, parsing, ignore: of a data set, see `data.py`.
    """
    config = model.config
    photo = Image.fromarray(image)
    geometry = input_geometry(photo, config)
    out = model.outputs(network_input(photo, config, geometry))
    out = {name: tensor.cpu() for name, tensor in out.items()}
    height, width = out['f_ins'].shape[-2:]
    truth = make_targets(image, parsing, ignore, geometry, (height, width), config)
    if part == 'classes':
        # Eq. (3) with one-hot features and kernels gives the masks of the categories themselves.
        out['f_cate'] = truth.categories.view(1, -1, height, width)
        out['k_cate'] = torch.eye(config.num_classes)
    else:
        cells = truth.cells[truth.exists]
        heatmap = torch.full((config.grid ** 2,), -SURE)
        heatmap[cells] = SURE
        out['heatmap'] = heatmap.view(1, 1, config.grid, config.grid)
    if part == 'people':
        # Eq. (2), the same of the masks of people.
        persons = truth.persons[truth.exists].float()
        k_ins = torch.zeros(1, len(cells), config.grid ** 2)
        k_ins[0, torch.arange(len(cells)), cells] = 1
        out['f_ins'] = persons[None]                                            # (1, N, h, w)
        out['k_ins'] = k_ins
    return decode(out, 0, geometry, config, model.fusion)


def make_targets(image: np.ndarray, parsing: np.ndarray, ignore: np.ndarray, geometry: Geometry,
                 size: tuple, config: Config) -> Targets:
    """The targets of training for an image as the network sees it in inference: resized and padded
    as its geometry says. size: (h, w) of the features."""
    height, width = geometry.size
    _, parsing, ignore = resize_sample(image, parsing, ignore, (width, height), config)
    below = geometry.padded[0] - height
    right = geometry.padded[1] - width
    parsing = F.pad(torch.from_numpy(np.array(parsing)), (0, right, 0, below))
    ignore = F.pad(torch.from_numpy(np.array(ignore)), (0, right, 0, below))
    return make_loss(config).make_targets(parsing, ignore, size)


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('part', choices=['centers', 'people', 'classes'],
                        help='what the ground truth replaces')
    parser.add_argument('--data', choices=list(DATASETS), required=True)
    parser.add_argument('--root', help='folder of the data set, as downloaded')
    parser.add_argument('--split', default='val')
    parser.add_argument('--out', type=filled, required=True, help='folder for the predictions')
    parser.add_argument('--format', choices=FORMS, default=FORMS[0], help='form of the predictions')
    add_model_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        model = load_model(args, args.device)
        dataset = open_split(args, model)

        def predict(image, parsing, ignore):
            return predict_with_truth(model, args.part, image, parsing, ignore)

        predict_split(args, dataset, predict)


if __name__ == '__main__':
    start(main)
