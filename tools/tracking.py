"""How well people of a video keep their ids: clips in which it is known who is who.

    python -m tools.tracking                                 # a pan over assets/street.jpg
    python -m tools.tracking --photo group.jpg               # over another photo of several people
    python -m tools.tracking --root clothing-co-parsing      # and clips drawn from CCP's people

pan     a window moves over the photo; who is who comes from the parsed photo
fast    the same with a sixth of the frames
two     two people of CCP walk past each other, one in front of the other
three   the same behind a third, who stands
row     a pan by half a body's width per frame along ten people of CCP

For each clip, without and with tracking (`util/tracking.py`): the share of the people who are found
in two neighboring frames and keep their id, and the number of id switches: how often a person is
found with another id than the last time (Bernardin & Stiefelhagen 2008). A person is found where a
mask has an IoU above 0.5 with the person's visible pixels. Without tracking, ids are 1, 2, .. in
each frame, best first.
"""
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image, ImageOps

from data import input_geometry, network_input
from infer import add_model_flags, load_model
from uniparser import UniParser, decode, kernels_at
from util.cli import Between, CommandParser, add_shared, filled, start
from util.datasets import CCP, open_dataset, scenes
from util.files import user_errors
from util.images import read_photo
from util.masks import mask_ious
from util.person_counts import IOU, percent
from util.tracking import Tracker

FRAMES = 36
FPS = 12                                          # so a clip takes three seconds
SIZE = 640, 480                                   # of drawn frames
TALL = 0.8                                        # height of drawn people, of a frame's
BODY = 150                                        # pixels: about the width of such a person
WINDOW = 0.55                                     # width of a pan's window, of the photo's
Frame = tuple[Image.Image, np.ndarray]            # a picture, and the people's masks (N, H, W)


# ---- clips -------------------------------------------------------------------------------------


def pan(photo: Image.Image, masks: np.ndarray, width: int, frames: int) -> Iterator[Frame]:
    """A window moves from the left edge of the photo to the right edge."""
    for x in np.linspace(0, photo.width - width, frames).round().astype(int).tolist():
        yield photo.crop((x, 0, x + width, photo.height)), masks[:, :, x:x + width]


def draw_crossing(source: CCP, count: int, rng: np.random.Generator) -> Iterator[Frame]:
    """Two people walk past each other; a third stands in the middle, in front of both."""
    stage = draw_stage(source, SIZE, rng)
    cast = draw_people(source, count, stage, rng)
    for share in np.linspace(0.12, 0.88, FRAMES):
        places = [share, 1 - share, 0.5]
        yield paste(stage, cast, [x * SIZE[0] for x in places[:count]])


def draw_row(source: CCP, rng: np.random.Generator, count: int = 10) -> Iterator[Frame]:
    """A pan along people side by side, by half a body per frame."""
    stage = draw_stage(source, (count * BODY, SIZE[1]), rng)
    cast = draw_people(source, count, stage, rng)
    row, masks = paste(stage, cast, [(n + 0.5) * BODY for n in range(count)])
    frames = 1 + (row.width - SIZE[0]) // (BODY // 2)
    return pan(row, masks, SIZE[0], frames)


def draw_stage(source: CCP, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """The place of a photo of CCP, without its person."""
    k = int(rng.integers(len(source.names)))
    labels = source.annotation(k)[0]
    mask = Image.fromarray((np.asarray(labels) > 0) * np.uint8(255))
    empty = scenes.remove_person(source.photo(k).resize(mask.size), mask, rng)
    return ImageOps.fit(empty, size, Image.BILINEAR)


def draw_people(source: CCP, count: int, stage: Image.Image,
                rng: np.random.Generator) -> list[tuple]:
    """Cut-outs of different people, see `scenes.take_person`."""
    cast = []
    for k in rng.permutation(len(source.names)):
        tall = TALL * SIZE[1] * rng.uniform(0.95, 1.05)
        person = scenes.take_person(source, k, tall, stage, rng, rng)
        if person:
            cast.append(person)
        if len(cast) == count:
            break
    return cast


def paste(stage: Image.Image, cast: list[tuple], places: list[float]) -> Frame:
    """The people at these columns; each hides those before, who stand a little farther back."""
    image = stage.copy()
    owner = Image.new('L', stage.size)            # number of the nearest person, from 1 on
    for n, ((_, alpha, person), middle) in enumerate(zip(cast, places)):
        feet = round((0.88 + 0.04 * min(n, 2)) * stage.height)
        corner = round(middle - alpha.width / 2), feet - alpha.getbbox()[3]
        image.paste(person, corner, alpha)
        owner.paste(n + 1, corner, alpha.point([255 * (v > 127) for v in range(256)]))
    numbers = np.arange(1, len(cast) + 1)[:, None, None]
    return image, np.asarray(owner) == numbers


# ---- ids ---------------------------------------------------------------------------------------


class Count:
    """Compares the ids of a clip with who is who."""

    def __init__(self):
        self.switches = 0
        self.pairs = 0                            # of a person in two neighboring frames
        self.kept = 0                             # pairs with the same id
        self.last = {}                            # {person: the id last found}
        self.frame = {}                           # the same of the last frame alone

    def add(self, people: dict[int, int]):
        """{person: id} of the next frame."""
        for person, i in people.items():
            self.switches += self.last.get(person, i) != i
            if person in self.frame:
                self.pairs += 1
                self.kept += self.frame[person] == i
        self.last |= people
        self.frame = people

    def merge(self, other: 'Count'):
        """Adds the numbers of another clip."""
        self.switches += other.switches
        self.pairs += other.pairs
        self.kept += other.kept


def find_pairs(masks: np.ndarray, truth: np.ndarray) -> dict[int, int]:
    """Masks (N, H, W) found in a frame, of the people (M, H, W) -> {person: its mask}."""
    ious = mask_ious(truth, masks)
    pairs = {}
    for person, row in enumerate(ious):
        if row.max(initial=0) > IOU:              # no second mask can be above a half
            pairs[person] = int(row.argmax())
    return pairs


def measure(model: UniParser, clip: Iterable[Frame]) -> tuple[int, Count, Count]:
    """-> the number of frames, and the counts without and with tracking."""
    before = Count()
    after = Count()
    tracker = Tracker()
    number = 0
    for image, truth in clip:
        geometry = input_geometry(image, model.config)
        out = model.outputs(network_input(image, model.config, geometry))
        found = decode(out, 0, geometry, model.config, model.fusion)
        kernels = kernels_at(out, 0, found.centers, geometry, model.config)
        ids = tracker.follow(image, found.parsing, number / FPS, kernels)
        pairs = find_pairs(found.parsing > 0, truth)
        before.add({person: n + 1 for person, n in pairs.items()})
        after.add({person: ids[n] for person, n in pairs.items()})
        number += 1
    return number, before, after


# ---- the command -------------------------------------------------------------------------------


def list_clips(args, model: UniParser) -> Iterator[tuple[str, list[Iterable[Frame]]]]:
    """Names and the clips of each."""
    photo = read_photo(args.photo)
    masks = model.predict(photo)[0].parsing > 0
    width = round(WINDOW * photo.width)
    yield 'pan', [pan(photo, masks, width, FRAMES)]
    yield 'fast', [pan(photo, masks, width, FRAMES // 6)]
    if not args.root:
        return
    source = open_dataset('CCP', args.root, 'test')
    seeds = range(args.clips)
    yield 'two', [draw_crossing(source, 2, np.random.default_rng(seed)) for seed in seeds]
    yield 'three', [draw_crossing(source, 3, np.random.default_rng(seed)) for seed in seeds]
    yield 'row', [draw_row(source, np.random.default_rng(seed)) for seed in seeds]


def print_row(name: str, frames: int, before: Count, after: Count):
    shares = f'{percent(before.kept, before.pairs)} -> {percent(after.kept, after.pairs)}'
    print(f'{name:10}{frames:>8}{shares:>22}{f"{before.switches} -> {after.switches}":>16}',
          flush=True)


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('--photo', type=filled, default='assets/street.jpg',
                        help='photo of several people (default: %(default)s)')
    add_shared(parser, 'root', help='folder of CCP, for the drawn clips')
    parser.add_argument('--clips', type=Between(1, 1000), default=1,
                        help='drawn clips of each kind (default: %(default)s)')
    add_model_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        model = load_model(args, args.device)
        print(f'{"clip":10}{"frames":>8}{"neighbors keep id":>22}{"id switches":>16}')
        for name, clips in list_clips(args, model):
            number = 0
            before = Count()
            after = Count()
            for clip in clips:
                frames, ranked, tracked = measure(model, clip)
                number += frames
                before.merge(ranked)
                after.merge(tracked)
            print_row(name, number, before, after)
        if not args.root:
            print('the drawn clips need CCP: give its folder with --root, see docs/data.md')


if __name__ == '__main__':
    start(main)
