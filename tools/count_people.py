"""Counts the people that a model finds, misses and invents in photos whose people are known, but not their parts.

    python -m tools.count_people coco_people/images --instances coco_people/instances
    python -m tools.count_people coco_backgrounds/images             # photos of nobody

--instances: a folder of ID.png (0 = nobody, 255 = crowd, else a person). A person counts as found where a detection's
mask has an IoU of at least --iou with the person's. A detection that lies mostly in a crowd is not counted as false.
"""
import numpy as np
from tqdm import tqdm

from infer import add_model_flags, load_model
from util.cli import Between, CommandParser, start
from util.files import pick_all, pick_files, user_errors
from util.images import read_labels, read_stored


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


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('photos', help='folder of photos')
    parser.add_argument('--instances', help='folder of ID.png; without it, the photos show nobody')
    parser.add_argument('--iou', type=Between(0, 1, float), default=0.5, help='of masks; default 0.5')
    add_model_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        photos = pick_all(args.photos)
        instances = pick_files(args.instances, list(photos), ('.png',)) if args.instances else [None] * len(photos)
        rows = count(load_model(args, args.device), list(photos.values()), instances, args.iou)
        people, found, false, detections, painted, outside = rows.sum(0).tolist()
        print(f'{len(rows)} photos: {found} of {people} people found, {false} of {detections} detections false, in '
              f'{(rows[:, 2] > 0).sum()} photos; {100 * painted / outside:.1f} % of the other pixels painted')


if __name__ == '__main__':
    start(main)
