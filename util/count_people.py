"""Counts the people that a model finds, misses and invents in photos whose people are known, but not their parts.

    python -m util.count_people coco_people/images --instances coco_people/instances
    python -m util.count_people coco_backgrounds/images             # photos of nobody

    python -m util.count_people --data COCO --root coco --split held                  # with keypoints

--instances: a folder of ID.png (0 = nobody, 255 = crowd, else a person). A person counts as found where a detection's
mask has an IoU of at least --iou with the person's. A detection that lies mostly in a crowd is not counted as false.
--data COCO counts as util/person_counts.py says; --curve prints found people against false ones for many values of a
threshold.
"""
import preflight
preflight.require('data', 'infer', 'uniparser', 'util')

from dataclasses import replace

import numpy as np
from tqdm import tqdm

from data import network_input
from infer import add_model_flags, load_model
from uniparser import decode
from util.datasets import COCO, open_dataset
from util.files import pick_all, pick_files, read_labels, read_stored, user_errors
from util.person_counts import Counts, count_photo


def match(masks, ids, iou):
    """masks (N, H, W) bool, best first; ids (H, W) uint8 -> numbers of people, found people, false detections. Each
    detection takes the person with the largest IoU that no better one has found."""
    people, crowd = [ids == k for k in range(1, 255) if (ids == k).any()], ids == 255
    free, false = list(range(len(people))), 0
    for mask in masks:
        scores = {k: (mask & people[k]).sum() / (mask | people[k]).sum() for k in free}
        best = max(scores, key=scores.get, default=None)
        if best is not None and scores[best] >= iou:
            free.remove(best)
        else:
            false += bool((mask & crowd).sum() <= 0.5 * mask.sum())
    return len(people), len(people) - len(free), false


def count(model, photos, instances, iou):
    """Sums of `match` over photos, and the share of the pixels outside of people and crowds that the model paints."""
    rows = []
    for path, known in zip(tqdm(photos, unit='photo'), instances):
        photo = read_stored(path)
        ids = read_labels(known) if known else np.zeros(photo.size[::-1], np.uint8)
        if ids.shape != photo.size[::-1]:
            raise ValueError(f'{path} and {known} differ in size; get them again')
        masks = model.predict(photo)[0].parsing > 0
        rows.append((*match(masks, ids, iou), len(masks), (masks.any(0) & (ids == 0)).sum(), (ids == 0).sum()))
    return np.array(rows)


def count_dataset(model, dataset, configs):
    """Counts over a split of COCO, one for each of the configs, which differ in their thresholds."""
    totals = [Counts() for _ in configs]
    for k in tqdm(range(len(dataset)), unit='photo'):
        photo = read_stored(dataset.photos[k])
        people, ignore = dataset.persons(k)
        out = model.outputs(network_input(photo, model.config))
        for n, config in enumerate(configs):
            found = decode(out, 0, photo, config, model.fusion)
            totals[n] += count_photo(found.parsing, people, ignore)
    return totals


def print_counts(model, dataset, curve):
    """Prints the counts of a split. curve: None, or the name of a threshold, which then takes many values."""
    if not curve:
        return print(*(total.summary() for total in count_dataset(model, dataset, [model.config])))
    values = [step / 20 for step in range(1, 20)]
    totals = count_dataset(model, dataset, [replace(model.config, **{curve: value}) for value in values])
    for value, total in zip(values, totals):
        print(f'{preflight.flag(curve)} {value:.2f}: {total.summary()}')


def parse_arguments(argv=None):
    parser = preflight.CommandParser(__doc__)
    parser.add_argument('photos', nargs='?', help='folder of photos')
    parser.add_argument('--data', choices=['COCO'], help='count on a split of this data set instead')
    parser.add_argument('--root', help='with --data: its folder, as downloaded')
    parser.add_argument('--split', default='held', choices=COCO.splits, help='with --data: default held')
    parser.add_argument('--curve', choices=['theta_score', 'theta_person'],
                        help='with --data: for many values of this setting')
    parser.add_argument('--instances', help='folder of ID.png; without it, the photos show nobody')
    parser.add_argument('--iou', type=preflight.Between(0, 1, float), default=0.5,
                        help='without --data: of masks; default 0.5')
    add_model_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        if bool(args.photos) == bool(args.data):
            raise ValueError('give a folder of photos, or --data COCO with --root')
        if args.data:
            dataset = open_dataset(args.data, args.root, args.split)
            return print_counts(load_model(args, args.device), dataset, args.curve)
        photos = pick_all(args.photos)
        instances = pick_files(args.instances, list(photos), ('.png',)) if args.instances else [None] * len(photos)
        rows = count(load_model(args, args.device), list(photos.values()), instances, args.iou)
        people, found, false, detections, painted, outside = rows.sum(0).tolist()
        print(f'{len(rows)} photos: {found} of {people} people found, {false} of {detections} detections false, in '
              f'{(rows[:, 2] > 0).sum()} photos; {100 * painted / outside:.1f} % of the other pixels painted')


if __name__ == '__main__':
    preflight.start(main)
