"""Predicts a split with the ground truth in place of a part of the network.

The difference to the usual predictions shows what that part costs.

    python -m tools.oracle people --data CCP --root DIR --out results/   # then evaluate.py as usual
    python -m tools.oracle where --data COCO --root DIR --split held     # where people are lost

`where` replaces nothing: it prints the share of COCO's people who pass each stage between the
heat map and the result.
"""
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from correlation import correlate
from data import Geometry, input_geometry, network_input, resize_sample
from infer import add_model_flags, check_classes, load_model, open_split, predict_split
from losses import Targets, make_loss
from uniparser import Config, decode, find_centers
from util.beyond import person_mask
from util.cli import CommandParser, add_shared, filled, refuse_given, start
from util.datasets import COCO, DATASETS, open_dataset
from util.datasets.coco import Person
from util.files import user_errors
from util.masks import mask_ious
from util.person_counts import IOU, SMALLEST_SHARE, percent
from util.results import Parsing
from util.submissions import FORMS

SURE = 9.0                                   # logit of a center; -SURE: of a cell without one
STAGES = (
    'a peak of the heat map lies in the person',
    'the map of the best cell in the person has an IoU above 0.5',
    'the map of some peak has an IoU above 0.5',
    'a person of the result has an IoU above 0.5',
)


# --------------------------------------------------------------------------------------------------
# The ground truth in place of a part


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


# --------------------------------------------------------------------------------------------------
# Where people are lost


def print_where(model, dataset: COCO):
    """Prints the share of the people of a split that pass each stage."""
    rows = []
    for k in tqdm(range(len(dataset)), unit='photo', disable=None):
        people, ignore = dataset.persons(k)
        rows.append(stages_of_photo(model, dataset.read_photo(dataset.photos[k]), people, ignore))
    rows = np.concatenate(rows)
    for name, passed in zip(STAGES, rows.sum(0).tolist()):
        print(f'{percent(passed, len(rows)):>8} of {len(rows)} people: {name}')


@torch.no_grad()
def stages_of_photo(model, photo: Image.Image, people: list[Person],
                    ignore: np.ndarray) -> np.ndarray:
    """Which stages each person of at least 1 % of the photo passes: bool (people, STAGES)."""
    config = model.config
    least = SMALLEST_SHARE * ignore.size
    people = [person for person in people if np.count_nonzero(person.mask) >= least]
    passed = np.zeros((len(people), len(STAGES)), bool)
    if not people:
        return passed
    geometry = input_geometry(photo, config)
    out = model.outputs(network_input(photo, config, geometry))
    masks = np.array([person.mask for person in people])
    heatmap = out['heatmap'][0, 0]
    k_ins = out['k_ins'][0].flatten(1).T                        # (S*S, C)

    def ious_of(cells):
        """IoUs of the maps of some cells with the people, at the photo's size."""
        q_ins = correlate(k_ins[cells], out['f_ins'][0], config.space)
        found = [person_mask(q, geometry.size, geometry.photo, config.theta_mask) for q in q_ins]
        return mask_ious(np.array(found, bool).reshape(-1, *geometry.photo), masks)

    cells, _ = find_centers(heatmap, config)
    peaks = ious_of(cells)
    result = mask_ious(decode(out, 0, geometry, config, model.fusion).parsing > 0, masks)
    heat = heatmap.flatten().cpu().numpy()
    for n, person in enumerate(people):
        own = np.flatnonzero(cells_of(person.mask, geometry, config.grid))
        passed[n, 0] = np.isin(cells.cpu().numpy(), own).any()
        if len(own):
            best = own[heat[own].argmax()]
            passed[n, 1] = ious_of([best])[0, n] > IOU
        passed[n, 2] = peaks[:, n].max(initial=0) > IOU
        passed[n, 3] = result[:, n].max(initial=0) > IOU
    return passed


def cells_of(mask: np.ndarray, geometry: Geometry, grid: int) -> np.ndarray:
    """The cells of the heat map whose middle lies in a person's mask (H0, W0): bool (S, S)."""
    cells = torch.arange(grid * grid)
    x, y = geometry.cell_centers(cells, grid).long().T.numpy()
    height, width = geometry.photo
    there = (y < height) & (x < width)            # the others lie in the padding
    inside = np.zeros(grid * grid, bool)
    inside[there] = mask[y[there], x[there]]
    return inside.reshape(grid, grid)


# --------------------------------------------------------------------------------------------------
# The command


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('part', choices=['centers', 'people', 'classes', 'where'],
                        help='what the ground truth replaces; where: nothing, see above')
    add_shared(parser, 'data', choices=list(DATASETS), required=True)
    add_shared(parser, 'root')
    add_shared(parser, 'split')
    add_shared(parser, 'licenses')
    parser.add_argument('--out', type=filled, help='folder for the predictions')
    parser.add_argument('--format', choices=FORMS,
                        help=f'form of the predictions (default: {FORMS[0]})')
    add_model_flags(parser)
    return parser.parse_args(argv)


def check_flags(args):
    """ValueError where flags are missing or would do nothing."""
    if args.part != 'where':
        if not args.out:
            raise ValueError(f'{args.part} writes predictions; name their folder with --out')
        refuse_given(args, ['licenses'], 'is for where; leave it out')
        return
    if args.data != 'COCO':
        raise ValueError('where is for --data COCO')
    refuse_given(args, ('out', 'format'), 'is for predictions, and where writes none; leave it out')


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        check_flags(args)
        args.format = args.format or FORMS[0]
        model = load_model(args, args.device)
        if args.part == 'where':
            dataset = open_dataset(args.data, args.root, args.split, licenses=args.licenses)
            check_classes(model, args.weights, args.data, dataset.class_names)
            return print_where(model, dataset)
        dataset = open_split(args, model)

        def predict(image, parsing, ignore):
            return predict_with_truth(model, args.part, image, parsing, ignore)

        predict_split(args, dataset, predict)


if __name__ == '__main__':
    start(main)
