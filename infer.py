"""Parses photos: every person, every part of each, as pixels.

    python infer.py photo.jpg holiday/ 'more/*.png' --out results/
    python infer.py photo.jpg --only hair,dress --cutouts
    python infer.py photo.jpg --labels atr                 # results in another label set
    python infer.py photo.jpg --colors people              # an overlay of people with their ids
    python infer.py --list --weights runs/MHP/best.pt      # classes of a weights file
    python infer.py holiday/ --format coco                 # also one COCO file, to label and train
    python infer.py video.mp4 --fps 10
    python infer.py --data MHP --root data/LV-MHP-v2 --split val --weights runs/MHP/best.pt

Per photo NAME: NAME_parts.png (indexed; value = class id), NAME_people.png (indexed; value = person
id, best first), NAME_overlay.jpg (a picture with a legend), NAME.json (scores, boxes, areas, masks
as COCO RLE) and, with --cutouts, the folder NAME_cutouts. index.html shows them all. Per video
(with pip install av): NAME_overlay.mp4 and NAME.jsonl, one line per frame. With --data: the
predictions of a whole split, for evaluate.py.
"""
import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from correlation import correlate
from data import Geometry, input_geometry, network_input
from maps import draw_maps, read_points
from uniparser import (INFERENCE, Config, UniParser, decode, find_centers, find_people,
                       kernels_at, part_scores)
from util.beyond import map_quality, mixture, parsing_quality
from util.charts import need_matplotlib
from util.classes import list_classes
from util.cli import (Between, CommandParser, add_settings, add_shared, check_source, filled, flag,
                      refuse_given, start)
from util.coco_export import NAME as ANNOTATIONS
from util.coco_export import Result, check_unchanged, write_annotations
from util.datasets import DATASETS, open_dataset
from util.files import counted, find_photos, printable, user_errors, write_png
from util.images import read_photo
from util.labels import TARGETS, find_set, names_of
from util.photos import PhotoJob, PhotoPipeline, end_run, name_jobs, share_of_process
from util.results import Parsing, check_cutouts, keep_parts
from util.run import find_device
from util.submissions import FORMS, SUBMITTED, PredictionWriter
from util.tryon import TryOn, add_tryon_flags, check_tryon_flags
from util.video import (VIDEO_FLAGS, add_video_flags, check_video_flags, parse_videos,
                        split_videos)

COCO = 'coco'                                     # --format for photos
WEIGHTS = Path(__file__).parent / 'weights' / 'uniparser_ccp.pt'

# Flags that mean something for photos alone, and for data sets alone.
FOR_PHOTOS = ('only', 'cutouts', 'agnostic', 'single', 'person', 'max_size', 'maps', 'at',
              'colors', *VIDEO_FLAGS)
FOR_DATA = 'root', 'split'


# --------------------------------------------------------------------------------------------------
# Flags


def add_model_flags(parser: argparse.ArgumentParser, **own):
    """Flags of every command that runs a UniParser: weights, device, and settings of inference.

    own: settings whose default is the command's own
    """
    parser.add_argument('--weights', type=filled, default=str(WEIGHTS),
                        help='a weights file of train.py or of the released code '
                             '(default: weights/uniparser_ccp.pt)')
    add_shared(parser, 'device')
    add_settings(parser, Config, only=INFERENCE,
                 default='default: those the weights were saved with', own=own)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(__doc__)
    parser.add_argument('photos', nargs='*',
                        help='files, folders (searched for photos) and globs')
    parser.add_argument('--out', type=filled, help='folder for the results (default: results)')
    parser.add_argument('--only', type=filled, metavar='NAMES',
                        help='keep these parts, e.g. hair,dress')
    parser.add_argument('--labels', choices=TARGETS,
                        help='give the results in this label set, see docs/labels.md')
    parser.add_argument('--list', action='store_true',
                        help='print ids, colors and names of --weights or --labels')
    parser.add_argument('--cutouts', action='store_true',
                        help='also write each person and part as an RGBA picture')
    add_tryon_flags(parser)
    parser.add_argument('--max-size', type=Between(1, 10 ** 6), metavar='PIXELS',
                        help='reduce larger photos to this long side first')
    parser.add_argument('--maps', action='store_true',
                        help='also draw heat map and correlations of people and parts, as Fig. 4 '
                             '(pip install matplotlib)')
    parser.add_argument('--at', action='append', default=[], metavar='X,Y',
                        help='with --maps and one photo: also draw the correlations with this '
                             'pixel; may be repeated')
    add_video_flags(parser)
    parser.add_argument('--data', choices=list(DATASETS),
                        help='predict a split of this data set instead')
    add_shared(parser, 'root', help='with --data: its folder, as downloaded')
    add_shared(parser, 'split', 'val', help='with --data: its split', default=None)
    parser.add_argument('--format', choices=(COCO, *FORMS),
                        help=f'{COCO}: also write {ANNOTATIONS}, one COCO file of all photos; the '
                             f'others: form of the predictions of --data (default: {FORMS[0]})')
    parser.add_argument('--polygons', action='store_true',
                        help=f'with --format {COCO}: polygons instead of run lengths')
    add_model_flags(parser)
    return parser.parse_args(argv)


def check_flags(args: argparse.Namespace):
    """ValueError where flags do not go together; ModuleNotFoundError where --maps lacks a
    package."""
    if args.list:
        if args.photos or args.data:
            raise ValueError('--list parses nothing; leave out the photos, and name a weights file '
                             'with --weights')
        given = 'out', 'format', 'polygons', *FOR_PHOTOS, *FOR_DATA
        refuse_given(args, given, 'is for parsing; leave out --list')
        return
    check_source(args.photos, args.data, '--data', 'a data set', 'python infer.py')
    if args.photos:
        refuse_given(args, FOR_DATA, 'is for a data set; name it with --data, or leave this out')
    else:
        refuse_given(args, FOR_PHOTOS, 'is for photos, not for a data set; leave it out')
    check_tryon_flags(args)
    if args.maps and args.labels:
        raise ValueError('--maps draws categories of the network itself; leave out --labels')
    if args.maps:
        need_matplotlib()
    if args.at and not args.maps:
        raise ValueError('--at adds maps to the page of --maps; give that flag too')
    check_format(args)


def check_format(args: argparse.Namespace):
    """ValueError where --format and --polygons do not go with the other flags."""
    if args.polygons and args.format != COCO:
        raise ValueError(f'--polygons is a form of outlines for --format {COCO}; give that, too')
    if args.data and args.format == COCO:
        raise ValueError(f'--format {COCO} is for photos; with --data choose one of '
                         f'{", ".join(FORMS)}')
    if args.photos and args.format in FORMS:
        raise ValueError(f'--format {args.format} is for --data; for photos there is {COCO}')
    if args.format == COCO and args.max_size:
        raise ValueError(f'--format {COCO} describes the photos in their own size; leave out '
                         '--max-size')
    if args.format == COCO and int(os.environ.get('WORLD_SIZE', 1)) > 1:
        raise ValueError(f'--format {COCO} is for one process; start it without torchrun')


# --------------------------------------------------------------------------------------------------
# From the flags to the photos


def infer(args: argparse.Namespace):
    """Does what the flags ask for."""
    check_flags(args)
    args.out = args.out or 'results'
    args.split = args.split or 'val'
    if args.list:
        list_classes(args.weights, args.labels)
    elif args.data:
        parse_split(args)
    else:
        parse_files(args)


def parse_files(args: argparse.Namespace):
    """Parses the photos and videos of the arguments into args.out. ValueError at the end if some
    could not be parsed."""
    paths = find_photos(args.photos)
    check_video_flags(args, paths)
    points = open_points(args, paths) if args.at else ()
    model = load_model(args, args.device)

    # Each process of torchrun takes its share.
    jobs = share_of_process(name_jobs(paths))
    photos, videos = split_videos(jobs)
    for name in ('maps', 'cutouts', 'agnostic', 'single'):
        if videos and getattr(args, name):
            raise ValueError(f'{flag(name)} is for photos; parse the videos without it')
    if args.format:
        check_annotations(args.out, [job.name for job in photos], videos)

    pipeline = ParsingPipeline(model, args, points)
    failed = pipeline.run(photos) if photos or not videos else 0
    if args.format:
        write_coco(pipeline, args.polygons)
    failed += parse_videos(pipeline, jobs, args)
    end_run(args.out, failed, 'file' if videos else 'photo')


def check_annotations(out: str, names: list[str], videos: list):
    """ValueError, before minutes of parsing, if --format coco cannot write its file. names: of the
    results of the photos."""
    if videos:
        raise ValueError(f'--format {COCO} is for photos; parse the videos without it')
    clash = [name for name in names if f'{name}.json'.lower() == ANNOTATIONS]
    if clash:
        raise ValueError(f'the results of a photo called {clash[0]} would be {ANNOTATIONS}, too; '
                         'give it another name')
    check_unchanged(Path(out) / ANNOTATIONS)


def write_coco(pipeline: 'ParsingPipeline', polygons: bool):
    """Writes one COCO file of all photos that were parsed. polygons: see `write_annotations`."""
    results = [Result(job.path, pipeline.folder / f'{job.name}.json') for job in pipeline.parsed]
    if not results:
        return
    counts = write_annotations(pipeline.folder, results, pipeline.class_names, polygons)
    print(f'{counted(counts.photos, "photo")}, {counted(counts.people, "person", "people")}, '
          f'{counted(counts.parts, "annotation")} -> {pipeline.folder / ANNOTATIONS}')


def open_points(args: argparse.Namespace, paths: list[Path]) -> list:
    """The points of --at in the one photo, in pixels of the photo that --max-size leaves."""
    if len(paths) != 1:
        raise ValueError(f'--at is for one photo, not for {len(paths)}')
    size = read_photo(paths[0]).size
    longest = max(size)
    scale = min(1, (args.max_size or longest) / longest)
    return read_points(args.at, size, scale)


def load_model(args: argparse.Namespace, device: str) -> UniParser:
    """The model of --weights with the given settings, folded, on the device. ValueError for a
    setting that these weights would ignore."""
    device = find_device(device)
    if device == 'cuda':
        # torchrun: one GPU per process.
        torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', 0)))
    if args.weights == str(WEIGHTS) and not WEIGHTS.exists():
        raise FileNotFoundError(f'{WEIGHTS} is missing; clone the repository again, or give others '
                                'with --weights')
    changes = {name: getattr(args, name) for name in INFERENCE if hasattr(args, name)}
    model = UniParser.from_pretrained(args.weights, device, **changes)
    if changes.get('theta_score') and model.config.score != 'parsing':
        raise ValueError('--theta-score is for --score parsing; give that, too, or use '
                         '--theta-center')
    return model.fold()


# --------------------------------------------------------------------------------------------------
# From a photo to its files


class ParsingPipeline(PhotoPipeline):
    """Parses photos into args.out.

    Another system overrides `prepare`, `outputs`, `decode` and `message`; its model has device and
    class_names.

    args: has out, only and maps; with cutouts, also that. max_size, labels, colors, agnostic,
          single and person are optional.
    points: those of --at, see `maps.read_points`.
    parsed: the jobs of `run` that have results
    """
    endings = '_parts.png', '_people.png', '_overlay.jpg', '_maps.png', '.json'

    def __init__(self, model, args: argparse.Namespace, points: list | tuple = ()):
        super().__init__(args.out, model.device, getattr(args, 'max_size', None))
        self.model = model
        self.args = args
        self.points = points
        self.parsed = []
        self.class_names = model.class_names
        self.labels = getattr(args, 'labels', None)
        if self.labels:
            # Refuses a model whose classes are of no known set.
            find_set(self.class_names, self.labels)
            self.class_names = list(names_of(self.labels))
        self.tryon = TryOn(args, self.class_names)
        self.endings += self.tryon.endings
        # The ids in legends.
        ids = [c for c, name in enumerate(self.class_names) if c and name]
        self.kept = np.array(ids, np.uint8)
        if args.only:
            # Refuses unknown names; ids that are not kept become 0.
            self.kept = np.setdiff1d(keep_parts(self.kept, self.class_names, args.only), 0)

    def run(self, jobs: list[PhotoJob]) -> int:
        """Parses photos and writes their results -> the number of photos that were not parsed."""
        counts = super().run(jobs)
        self.parsed = [job for job, number in zip(jobs, counts) if number is not None]
        good = [number for number in counts if number is not None]
        print(f'{len(good):,} of {counted(len(jobs), "photo")}, '
              f'{counted(sum(good), "person", "people")} -> {self.folder}/')
        return len(jobs) - len(good)

    def check_targets(self, name: str):
        super().check_targets(name)
        check_cutouts(self.folder / f'{name}_cutouts', self.inputs)

    # ---- the way of a photo: its input, the output for it, its people, their files

    def prepare(self, photo: Image.Image) -> tuple[torch.Tensor, Geometry]:
        geometry = input_geometry(photo, self.model.config)
        return network_input(photo, self.model.config, geometry), geometry

    def outputs(self, inputs: list) -> list[dict]:
        """The network's outputs for each photo, and its geometry."""
        return [dict(self.model.outputs(image), geometry=geometry) for image, geometry in inputs]

    def write(self, job: PhotoJob) -> tuple[str, int]:
        with self.turn:
            found = self.find(job.out, job.photo, job.path)
            text = self.report(job.out, found)
            if self.args.maps:
                page = draw_maps(self.model, job.out, job.photo, found, self.points)
                write_png(self.folder / f'{job.name}_maps.png', page)
        self.tryon.write(self.folder, job.name, found)
        people = getattr(self.args, 'colors', None) == 'people'
        found.save(self.folder, job.name, self.args.cutouts, people)
        return f'{printable(job.path)}: {text}', len(found)

    def find(self, out, photo: Image.Image, path=None) -> Parsing:
        """The network's output for a photo -> its people with visible parts, in the classes of
        --labels and with the parts of --only."""
        found = self.decode(out, photo)
        found = replace(found, class_names=self.model.class_names, photo=photo, path=path)
        if self.labels:
            found = found.convert(self.labels)
        if self.args.only:
            parsing = keep_parts(found.parsing, self.class_names, self.args.only)
            found = replace(found, parsing=parsing)
        return found.visible()

    def decode(self, out, photo: Image.Image) -> Parsing:
        """The network's output for a photo -> all people, in the classes of the model."""
        return decode(out, 0, out['geometry'], self.model.config, self.model.fusion)

    def kernels(self, out, found: Parsing) -> np.ndarray | None:
        config = self.model.config
        geometry = input_geometry(found.photo, config)
        return kernels_at(out, 0, found.centers, geometry, config)

    def message(self, found: Parsing) -> str:
        """What was found in a photo."""
        number = len(found)
        if number:
            missing = self.tryon.message(found)
            return f'{counted(number, "person", "people")}{missing}'
        if self.args.only:
            return f'found no person with {" or ".join(self.args.only.split(","))}'
        return 'found no person'

    def report(self, out, found: Parsing) -> str:
        """What was found in a photo; and if it is nobody, why."""
        text = self.message(found)
        if not len(found) and not self.args.only:
            text += self.reason(out, found.photo)
        return text

    def reason(self, out, photo: Image.Image) -> str:
        """Why nobody was found in a photo, to follow the message; '' where it is not known."""
        # Nothing is kept of the people before --labels, and few photos show nobody.
        if self.labels and len(self.decode(out, photo).visible()):
            return f'; the people in it have no part in the label set {self.labels}'
        if not isinstance(self.model, UniParser):
            return ''
        return advice(out, 0, self.model.config)


# --------------------------------------------------------------------------------------------------
# Why nobody was found


def advice(out: dict, i: int, config: Config) -> str:
    """A sentence for image i of a network's outputs, in which `decode` finds nobody: the threshold
    that held the best candidate back. '' where none can be named."""
    found = held_back(out, i, config) if config.fusion == 'index' else None
    if not found:
        return ''
    name, value = found
    asked = getattr(config, name)
    return f'; the best candidate has {value:.2f} where {flag(name)} asks for more than {asked:g}'


@torch.no_grad()
def held_back(out: dict, i: int, config: Config) -> tuple[str, float] | None:
    """The first setting that no candidate passes, in the order of `decode`, and the value of the
    best candidate, which is at most the setting's. None where the candidates pass each threshold,
    but lose all their pixels at the photo's size."""
    _, scores = find_centers(out['heatmap'][i, 0], replace(config, theta_center=0.0))
    if not len(scores) or scores[0] <= config.theta_center:
        return 'theta_center', float(scores[:1].sum())

    people = find_people(out, i, config)
    q_ins = people.q_ins
    gate = q_ins > config.theta_mask
    if not gate.any():
        return 'theta_mask', float(q_ins.max())

    # The two filters of people, see `rank_people`.
    q_cate = correlate(out['k_cate'], out['f_cate'][i], config.space)
    if config.theta_person:
        quality = map_quality(gate, q_ins, people.scores)
        if quality.max() <= config.theta_person:
            return 'theta_person', float(quality.max())
        gate = gate[quality > config.theta_person]
        q_ins = q_ins[quality > config.theta_person]
    if config.score == 'parsing':
        quality = parsing_quality(gate, q_ins, q_cate)
        if quality.max() <= config.theta_score:
            return 'theta_score', float(quality.max())
        gate = gate[quality > config.theta_score]
    return part_held_back(gate, q_cate, config)


def part_held_back(gate, q_cate, config) -> tuple[str, float] | None:
    """The same for the parts of people whom the filters let pass. gate (N, h, w) bool."""
    theta_paint = config.theta_paint or config.theta_mask
    if config.assign == 'mixture':
        found = [mixture(q_cate, person, config.theta_part) for person in gate]
        mean = max(float(means.max()) for _, means in found)
        if mean <= config.theta_part:
            return 'theta_part', mean
        value = max(float(maps.max()) for maps, _ in found)
        return ('theta_paint', value) if value <= theta_paint else None
    # Here the mean of a part counts only what is above theta_paint.
    value = float((gate[:, None] * q_cate).max())
    if value <= theta_paint:
        return 'theta_paint', value
    mean = float(part_scores(gate, q_cate, theta_paint).max())
    return ('theta_part', mean) if mean <= config.theta_part else None


# --------------------------------------------------------------------------------------------------
# A split of a data set


def parse_split(args: argparse.Namespace):
    """Writes the predictions of the split of the arguments."""
    args.format = args.format or FORMS[0]
    model = load_model(args, args.device)
    dataset = open_split(args, model)

    def predict(image, parsing, ignore):
        found = model.predict(image)[0]
        return found.convert(args.labels) if args.labels else found

    predict_split(args, dataset, predict)


def predict_split(args: argparse.Namespace, dataset, predict: Callable):
    """Writes the predictions of a split. predict(image, parsing, ignore) -> Parsing, with the
    arrays of `dataset.read`."""
    with PredictionWriter(args.out, args.format) as writer:
        for i in tqdm(range(len(dataset)), unit='photo', disable=None):
            writer.add(dataset.ids[i], predict(*dataset.read(i)).labeled())
    print(f'{counted(len(dataset), "image")} -> {args.out}/; next: {next_step(args, dataset)}')


def next_step(args: argparse.Namespace, dataset) -> str:
    """What the predictions of a split are for: evaluate.py, or the server of a challenge."""
    if not dataset.has_truth:
        form = SUBMITTED.get(args.data, args.format)
        if args.format == form:
            return f'submit them; the labels of {args.data} {args.split} are not public'
        return (f'the labels of {args.data} {args.split} are not public; to submit predictions, '
                f'write them with --format {form}')
    words = f'python evaluate.py --data {args.data}'
    for name in ('root', 'labels'):
        value = getattr(args, name, None)
        if value:
            words += f' --{name} {value}'
    return words + f' --split {args.split} --predictions {args.out}'


def open_split(args: argparse.Namespace, model: UniParser):
    """The data set of the arguments. ValueError where the model has other classes, or with --labels
    where no table leads from one of them to that set."""
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        raise ValueError('--data is for one process; start it without torchrun')
    dataset = open_dataset(args.data, args.root, args.split)
    labels = getattr(args, 'labels', None)
    if labels:
        find_set(dataset.class_names, labels)
        find_set(model.class_names, labels)
    else:
        check_classes(model, args.weights, args.data, dataset.class_names)
    return dataset


def check_classes(model: UniParser, weights: str, name: str, class_names: list[str]):
    """ValueError where the model of the file `weights` has other classes than the data set of that
    name."""
    if list(class_names) != list(model.class_names):
        raise ValueError(f'{weights} was trained for other classes than {name} has; use weights of '
                         'that set')


# --------------------------------------------------------------------------------------------------
# The command


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    try:
        with user_errors():
            infer(args)
    except KeyboardInterrupt:
        if args.data:
            done = 'the predictions are incomplete'
        else:
            done = (f'every photo with a .json in {args.out} is done, and of a video the frames in '
                    'its .jsonl')
        print(f'stopped; {done}', file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    start(main)
