"""Counts the people that a model finds, misses and invents in photos without labels of parts.

    python -m tools.count_people coco_people/images --instances coco_people/instances
    python -m tools.count_people coco_backgrounds/images                  # photos of nobody
    python -m tools.count_people --data COCO --root coco --split held      # with keypoints

--instances: a folder of ID.png (0 = nobody, 255 = crowd, else a person). A person counts as found
where a detection's mask has an IoU of at least --iou with the person's. A detection that lies
mostly in a crowd is not counted as false.

--data COCO counts as util/person_counts.py says; there the IoU must be above 0.5, and small people
are not looked for. --curve prints found people against false ones for many values of a threshold.
"""
from dataclasses import astuple, dataclass, replace

import numpy as np
from tqdm import tqdm

from data import input_geometry, network_input
from infer import add_model_flags, check_classes, load_model
from uniparser import Config, decode
from util import person_counts
from util.cli import Between, CommandParser, add_shared, filled, flag, refuse_given, start
from util.datasets import COCO, open_dataset
from util.files import pick_all, pick_files, user_errors
from util.images import read_labels, read_stored

CROWD = 255
IOU = 0.5                                         # --iou, if it is not given
SPLIT = 'held'                                    # --split, if it is not given
VALUES = [step / 20 for step in range(1, 20)]     # of a threshold, for --curve


# --------------------------------------------------------------------------------------------------
# A folder of photos


@dataclass
class Counts:
    """Of one photo."""
    people: int                  # in the photo
    found: int
    false: int                   # detections of nobody
    detections: int
    painted: int                 # pixels of nobody that the model paints
    outside: int                 # pixels of nobody


def match(masks: np.ndarray, ids: np.ndarray, iou: float) -> tuple[int, int, int]:
    """Each detection takes the person with the largest IoU that no better detection has found.

    Args:
        masks: (N, H, W) bool, best detection first.
        ids: (H, W) uint8, see the top of this file.
        iou: the smallest IoU of a detection with a person it finds.

    Returns the numbers of people, of found people, and of false detections.
    """
    people = [ids == k for k in range(1, CROWD) if (ids == k).any()]
    crowd = ids == CROWD
    free = list(range(len(people)))
    false = 0
    for mask in masks:
        ious = {k: (mask & people[k]).sum() / (mask | people[k]).sum() for k in free}
        best = max(ious, key=ious.get, default=None)
        if best is not None and ious[best] >= iou:
            free.remove(best)
        elif (mask & crowd).sum() <= 0.5 * mask.sum():
            false += 1
    return len(people), len(people) - len(free), false


def count(model, path: str, instances: str | None, iou: float) -> Counts:
    """Counts of a photo. instances: the path of its ID.png, or None where it shows nobody."""
    photo = read_stored(path)
    height, width = photo.height, photo.width
    ids = read_labels(instances) if instances else np.zeros((height, width), np.uint8)
    if ids.shape != (height, width):
        raise ValueError(f'{path} and {instances} differ in size; get them again')
    masks = model.predict(photo)[0].parsing > 0
    people, found, false = match(masks, ids, iou)
    nobody = ids == 0
    painted = masks.any(0) & nobody
    return Counts(people, found, false, len(masks), painted.sum(), nobody.sum())


def print_folder(args):
    """Prints the counts of the folder of photos."""
    photos = pick_all(args.photos)
    instances = [None] * len(photos)
    if args.instances:
        advice = 'give the folder with an ID.png for each photo'
        instances = pick_files(args.instances, list(photos), ('.png',), advice)
    model = load_model(args, args.device)
    counts = [count(model, path, known, args.iou)
              for path, known in zip(tqdm(photos.values(), unit='photo', disable=None), instances)]
    total = Counts(*np.sum([astuple(one) for one in counts], 0).tolist())
    wrong = sum(one.false > 0 for one in counts)
    print(f'{len(counts)} photos: {total.found} of {total.people} people found, {total.false} of '
          f'{total.detections} detections false, in {wrong} photos; '
          f'{person_counts.percent(total.painted, total.outside)} of the other pixels painted')


# --------------------------------------------------------------------------------------------------
# A split of COCO


def print_split(args):
    """Prints the counts of the split: one line, or one for each value of --curve."""
    dataset = open_dataset(args.data, args.root, args.split, licenses=args.licenses)
    model = load_model(args, args.device)
    check_classes(model, args.weights, args.data, dataset.class_names)
    if args.curve == 'theta_score' and model.config.score != 'parsing':
        raise ValueError('--curve theta_score is for --score parsing; give that, too')
    if not args.curve:
        total, = count_split(model, dataset, [model.config])
        print(total.summary())
        return
    configs = [replace(model.config, **{args.curve: value}) for value in VALUES]
    for value, total in zip(VALUES, count_split(model, dataset, configs)):
        print(f'{flag(args.curve)} {value:.2f}: {total.summary()}')


def count_split(model, dataset: COCO, configs: list[Config]) -> list[person_counts.Counts]:
    """Counts over a split, one for each of the configs, which differ in their thresholds alone."""
    totals = [person_counts.Counts() for _ in configs]
    for k in tqdm(range(len(dataset)), unit='photo', disable=None):
        photo = dataset.read_photo(dataset.photos[k])
        people, ignore = dataset.persons(k)
        geometry = input_geometry(photo, model.config)
        out = model.outputs(network_input(photo, model.config, geometry))
        for n, config in enumerate(configs):
            found = decode(out, 0, geometry, config, model.fusion)
            totals[n] += person_counts.count_photo(found.parsing, people, ignore)
    return totals


# --------------------------------------------------------------------------------------------------
# The command


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('photos', nargs='?', help='folder of photos')
    parser.add_argument('--instances', type=filled,
                        help='folder of ID.png; without it, the photos show nobody')
    parser.add_argument('--iou', type=Between(0, 1, float),
                        help='without --data: smallest IoU of two masks of one person '
                             f'(default: {IOU})')
    parser.add_argument('--data', choices=['COCO'],
                        help='count on a split of this data set instead')
    add_shared(parser, 'root', help='with --data: its folder, as downloaded')
    add_shared(parser, 'split', SPLIT, default=None, choices=COCO.splits,
               help='with --data: its split')
    parser.add_argument('--curve', choices=['theta_score', 'theta_person'],
                        help='with --data: setting to count with many values of')
    add_shared(parser, 'licenses')
    add_model_flags(parser)
    return parser.parse_args(argv)


def check_flags(args):
    """ValueError for flags that would do nothing."""
    if bool(args.photos) == bool(args.data):
        raise ValueError('give a folder of photos, or --data COCO with --root')
    if args.photos:
        refuse_given(args, ('root', 'split', 'licenses', 'curve'),
                     'is for a data set; name it with --data, or leave this out')
    else:
        refuse_given(args, ('instances', 'iou'), 'is for a folder of photos; leave it out')
    # A setting that is not given is no attribute.
    if args.curve and hasattr(args, args.curve):
        raise ValueError(f'{flag(args.curve)} has many values with --curve; leave it out')


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        check_flags(args)
        args.split = args.split or SPLIT
        args.iou = IOU if args.iou is None else args.iou
        if args.data:
            print_split(args)
        else:
            print_folder(args)


if __name__ == '__main__':
    start(main)
