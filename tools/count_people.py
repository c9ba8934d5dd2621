"""Counts the people that a model finds, misses and invents in photos without labels of parts.

    python -m tools.count_people coco_people/images --instances coco_people/instances
    python -m tools.count_people coco_backgrounds/images             # photos of nobody

--instances: a folder of ID.png (0 = nobody, 255 = crowd, else a person). A person counts as found
where a detection's mask has an IoU of at least --iou with the person's. A detection that lies
mostly in a crowd is not counted as false.
"""
from dataclasses import astuple, dataclass

import numpy as np
from tqdm import tqdm

from infer import add_model_flags, load_model
from util.cli import Between, CommandParser, start
from util.files import pick_all, pick_files, user_errors
from util.images import read_labels, read_stored

CROWD = 255


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


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('photos', help='folder of photos')
    parser.add_argument('--instances', help='folder of ID.png; without it, the photos show nobody')
    parser.add_argument('--iou', type=Between(0, 1, float), default=0.5,
                        help='smallest IoU of two masks of one person (default: %(default)s)')
    add_model_flags(parser)
    return parser.parse_args(argv)


def count_people(args):
    photos = pick_all(args.photos)
    instances = [None] * len(photos)
    if args.instances:
        instances = pick_files(args.instances, list(photos), ('.png',))
    model = load_model(args, args.device)
    counts = [count(model, path, known, args.iou)
              for path, known in zip(tqdm(photos.values(), unit='photo'), instances)]
    total = Counts(*np.sum([astuple(one) for one in counts], 0).tolist())
    wrong = sum(one.false > 0 for one in counts)
    print(f'{len(counts)} photos: {total.found} of {total.people} people found, {total.false} of '
          f'{total.detections} detections false, in {wrong} photos; '
          f'{100 * total.painted / total.outside:.1f} % of the other pixels painted')


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        count_people(args)


if __name__ == '__main__':
    start(main)
