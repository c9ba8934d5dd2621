"""Parses photos: every person, every part of each, as pixels.

    python infer.py photo.jpg holiday/ 'more/*.png' --out results/
    python infer.py photo.jpg --only hair,dress --cutouts
    python infer.py photo.jpg --labels atr                 # the ids, names and colors of another label set
    python infer.py --list --weights runs/MHP/best.pt      # ids, colors and names of a weights file
    python infer.py video.mp4 --fps 10
    python infer.py --data MHP --root data/LV-MHP-v2 --split val --weights runs/MHP/best.pt --out results/

Per photo NAME: NAME_parts.png (indexed; value = class id), NAME_people.png (indexed; value = person id, best first),
NAME_overlay.png (a picture with a legend) and NAME.json (scores, boxes, areas, masks as COCO RLE). Per video (with
pip install av): NAME_overlay.mp4 and NAME.jsonl, one line per frame. With --data: the predictions of a whole split,
for evaluate.py.
"""
import preflight
preflight.require('data', 'uniparser', 'util')

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import network_input
from uniparser import CHOICES, INFERENCE, RANGES, Config, UniParser, decode
from util import released
from util.checkpoints import SIGNS, find_system, read_checkpoint, reading
from util.datasets import DATASETS, open_dataset
from util.episodes import FOLDS
from util.files import find_photos, printable, read_photo, short, user_errors, write_png
from util.labelmaps import TARGETS, find_set, find_tables, names_of
from util.labels import choose_labels, voc_palette
from util.maps import draw_maps, read_points
from util.nobody import advice
from util.photos import PhotoPipeline, check_failures, name_jobs, share_of_process
from util.pictures import palette
from util.results import keep_parts
from util.run import add_settings, find_device, sum_over_processes
from util.submissions import FORMS, PredictionWriter
from util.video import VIDEOS, parse_videos

WEIGHTS = Path(__file__).parent / 'weights' / 'uniparser_ccp.pt'


def add_model_flags(parser):
    """Flags of every command that runs a model: weights, device, and the settings of inference."""
    parser.add_argument('--weights', type=preflight.filled, default=str(WEIGHTS),
                        help='a checkpoint of train.py or of the released code (default: weights/uniparser_ccp.pt)')
    parser.add_argument('--device', default='auto', choices=['auto', 'cpu', 'cuda', 'mps'])
    add_settings(parser, Config, RANGES, CHOICES, only=INFERENCE, default='those the weights were saved with')


def parse_arguments(argv=None):
    parser = preflight.CommandParser(__doc__)
    parser.add_argument('photos', nargs='*', help='files, folders (searched for photos) and globs')
    parser.add_argument('--out', default='results', help='folder for the results (default: results)')
    parser.add_argument('--only', type=preflight.filled, metavar='NAMES', help='keep these parts, e.g. hair,dress')
    parser.add_argument('--labels', choices=TARGETS, help='give the results in this label set, see docs/labels.md')
    parser.add_argument('--list', action='store_true', help='print ids, colors and names of --weights or --labels')
    parser.add_argument('--cutouts', action='store_true', help='also write each person and part as an RGBA picture')
    parser.add_argument('--max-size', type=preflight.Between(1, 10 ** 6), metavar='PIXELS',
                        help='reduce larger photos to this long side first')
    parser.add_argument('--maps', action='store_true',
                        help='also draw heat map and correlations of people and parts, as Fig. 4')
    parser.add_argument('--at', action='append', default=[], metavar='X,Y',
                        help='with --maps and one photo: also draw the correlations with this pixel; may be repeated')
    parser.add_argument('--fps', type=preflight.Between(0.01, 1000, float), metavar='N',
                        help='parse N frames per second of videos (default: theirs)')
    parser.add_argument('--data', choices=list(DATASETS), help='predict a split of this data set instead')
    parser.add_argument('--root', help='with --data: its folder, as downloaded')
    parser.add_argument('--split', default='val', help='with --data: default val')
    parser.add_argument('--format', choices=FORMS, default=FORMS[0], help='with --data: form of the predictions')
    add_model_flags(parser)
    return parser.parse_args(argv)


def load_model(args, device):
    """The model of --weights with the given settings, folded, on the device."""
    device = find_device(device)
    if device == 'cuda':
        torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', 0)))          # torchrun's: one GPU per process
    changes = {name: getattr(args, name) for name in INFERENCE if hasattr(args, name)}
    if args.weights == str(WEIGHTS) and not WEIGHTS.exists():
        raise FileNotFoundError(f'{WEIGHTS} is missing; clone the repository again, or give others with --weights')
    return UniParser.from_pretrained(args.weights, device, **changes).fold()


# ---------------------------------------------------------------------------------------------------------------
# Photos


class PhotoParser(PhotoPipeline):
    """Parses photos into args.out; points: those of --at. Another system overrides `prepare`, `decode` and `message`;
    its model has device, class_names and outputs(input)."""
    endings = '_parts.png', '_people.png', '_overlay.png', '_maps.png', '.json'

    def __init__(self, model, args, points=()):
        super().__init__(args.out, model.device, getattr(args, 'max_size', None))
        self.model, self.args, self.class_names, self.points = model, args, model.class_names, points
        self.labels = getattr(args, 'labels', None)
        if self.labels:
            find_set(self.class_names, self.labels)                                         # refuses other classes
            self.class_names = list(names_of(self.labels))
        self.kept = np.array([c for c, name in enumerate(self.class_names) if c and name], np.uint8)   # ids in legends
        if args.only:
            self.kept = np.setdiff1d(keep_parts(self.kept, self.class_names, args.only), 0)  # refuses unknown names

    def prepare(self, photo):
        return network_input(photo, self.model.config)

    def outputs(self, inputs):
        return [self.model.outputs(image) for image in inputs]

    def decode(self, out, photo):
        """The network's outputs -> Parsing."""
        return decode(out, 0, photo, self.model.config, self.model.fusion)

    def find(self, out, photo, path=None):
        """The network's outputs -> Parsing in the classes of --labels, of people with visible parts of --only."""
        found = self.decode(out, photo).attach(photo, self.model.class_names, path)
        if self.labels:
            found = found.convert(self.labels)
        if self.args.only:
            found = found._replace(parsing=keep_parts(found.parsing, self.class_names, self.args.only))
        return found.visible()

    def write(self, result):
        ((path, name), photo, out), args = result, self.args
        if out is None:
            return f'error: {photo}', None
        with self.turn:
            found = self.find(out, photo, path)
            if args.maps:
                write_png(self.folder / f'{name}_maps.png', draw_maps(self.model, out, photo, found, self.points))
        found.save(self.folder, name, args.cutouts)
        return f'{printable(path)}: {self.message(found)}{self.reason(found, out)}', len(found.scores)

    def message(self, found):
        """What was found in a photo, as text."""
        number = len(found.scores)
        if number:
            return f'{number} {"person" if number == 1 else "people"}'
        if self.args.only:
            return f'found no person with {" or ".join(self.args.only.split(","))}'
        return 'found no person'

    def reason(self, found, out):
        """Why a UniParser found nobody, as text; '' where there are people, or --only left them out."""
        if len(found.scores) or self.args.only or not isinstance(self.model, UniParser):
            return ''
        return advice(out, 0, self.model.config)

    def run(self, jobs):
        """-> the number of photos that were not parsed."""
        counts = super().run(jobs)
        good = [number for number in counts if number is not None]
        print(f'{len(good)} of {len(jobs)} photos, {sum(good)} people -> {self.folder}/')
        return len(jobs) - len(good)


# ---------------------------------------------------------------------------------------------------------------
# A split of a data set


def predict_split(args, dataset, predict):
    """Writes the predictions of a split. predict(image, parsing, ignore) -> Parsing."""
    with PredictionWriter(args.out, args.format) as writer:
        for i in tqdm(range(len(dataset)), unit='photo'):
            writer.add(dataset.ids[i], predict(*dataset.read(i)).labelled())
    root, labels = (f'--{flag} {value} ' if (value := getattr(args, flag, None)) else '' for flag in ('root', 'labels'))
    print(f'{len(dataset)} images -> {args.out}/; next: python evaluate.py --data {args.data} {root}{labels}--split '
          f'{args.split} --predictions {args.out}')


def parse_image(model, image, labels):
    found = model.predict(image)[0]
    return found.convert(labels) if labels else found


def check_classes(model, weights, name, class_names):
    """ValueError where the model of the file `weights` has other classes than the data set of that name."""
    if list(class_names) != list(model.class_names):
        raise ValueError(f'{weights} was trained for other classes than {name} has; use weights of that set')


def open_split(args, model):
    """The data set of the arguments; ValueError where the model has other classes, or with --labels where no table
    leads from one of them to that set."""
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        raise ValueError('--data is for one process; start it without torchrun')
    dataset = open_dataset(args.data, args.root, args.split)
    if getattr(args, 'labels', None):
        find_set(dataset.class_names, args.labels), find_set(model.class_names, args.labels)
    else:
        check_classes(model, args.weights, args.data, dataset.class_names)
    return dataset


# ---------------------------------------------------------------------------------------------------------------
# Classes


def read_classes(path):
    """Class names, the background first, and colors (256, 3) of a weights file of any of the three systems."""
    state = read_checkpoint(path)
    system = find_system(state)
    with reading(path):
        if 'class_names' in state:
            names = state['class_names']
        elif system == 'uniparser':
            names = released.convert(state, path)[2]
        elif system:
            weights = {str(key).removeprefix('module.'): value for key, value in state.get('state_dict', state).items()}
            names = released_names(system, weights)
        else:
            raise ValueError(f'{path} is no weights file of UniParser, SCHP or one-shot parsing; give one of these')
        return [short(name) for name in names[:256]], voc_palette() if system == 'schp' else palette(256)


def released_names(system, weights):
    """Class names of a released file of SCHP or EOP-Net, which does not hold them, by the number of its classes."""
    if system == 'schp':
        return choose_labels(next(len(weights[sign]) for sign in SIGNS if sign in weights)).names
    fold = FOLDS['lip' if len(weights['prototype']) == 20 else 'atr', 1]
    return [fold.names.get(i, '') for i in range(fold.num_labels)]


def list_classes(path, labels=None):
    """Prints id, color and name of the classes of a weights file; or of the set `labels`, with the file's classes that
    go there."""
    names, colors = read_classes(path)
    origins = [''] * len(names)
    if labels:
        own, names, colors = names, names_of(labels), voc_palette()
        tables = find_tables(find_set(own, labels), labels)
        origins = [', '.join(n for n, *ids in zip(own, *tables) if c in ids) for c in range(len(names))]
    for c, (name, origin) in enumerate(zip(names, origins)):
        if name:
            print(f'{c:3}  #{bytes(colors[c]).hex()}  {name:24}{origin}'.rstrip())


def open_points(args, photos):
    """The points of --at in the one photo, in pixels of the photo that --max-size leaves."""
    if len(photos) != 1:
        raise ValueError(f'--at is for one photo, not for {len(photos)}')
    size = read_photo(photos[0]).size
    return read_points(args.at, size, min(1, (args.max_size or max(size)) / max(size)))


def infer(args):
    if args.list and (args.photos or args.data):
        raise ValueError('--list parses nothing; leave out the photos, and name a weights file with --weights')
    if args.list:
        return list_classes(args.weights, args.labels)
    if bool(args.photos) == bool(args.data):
        raise ValueError('give photos, or --data with a data set (python infer.py --help)')
    if args.maps and args.labels:
        raise ValueError('--maps draws categories of the network itself; leave out --labels')
    if args.at and not args.maps:
        raise ValueError('--at adds maps to the page of --maps; give that flag too')
    photos = find_photos(args.photos) if args.photos else []
    points = open_points(args, photos) if args.at else ()
    model = load_model(args, args.device)
    if args.data:
        return predict_split(args, open_split(args, model), lambda image, *_: parse_image(model, image, args.labels))
    jobs = share_of_process(name_jobs(photos))
    videos = [job for job in jobs if Path(job[0]).suffix.lower() in VIDEOS]
    if videos and (args.maps or args.cutouts):
        raise ValueError(f'--{"maps" if args.maps else "cutouts"} is for photos; parse the videos without it')
    photos, parser = [job for job in jobs if job not in videos], PhotoParser(model, args, points)
    failed = parser.run(photos) if photos or not videos else 0
    parser.inputs = {os.path.realpath(path) for path, _ in jobs}
    failed += parse_videos(parser, videos, args.fps)
    check_failures(sum_over_processes(failed), 'file' if videos else 'photo')


def main(argv=None):
    args = parse_arguments(argv)
    try:
        with user_errors():
            infer(args)
    except KeyboardInterrupt:
        done = 'the predictions are incomplete' if args.data else \
            f'every photo with a .json in {args.out} is done, and of a video the frames in its .jsonl'
        print(f'stopped; {done}', file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    preflight.start(main)
