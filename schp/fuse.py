"""schp fuse: the parts of several people in a photo, from two networks for one person and anybody's
person masks.

People come from UniParser, or from --people DIR. Its forms:
- id maps DIR/NAME.png, or infer.py's NAME_people.png, where value i is person i. Their scores stand
  in NAME.json (people: [{score}]) or NAME.txt (the first number of line i); 1 without either.
- a folder of predictions as evaluate.py reads it.

Per photo NAME:
    global_parsing/NAME.png             classes
    instance_parsing/NAME.png, .txt     parts; line i is `class confidence` of part i
    global_tag/NAME.png, .txt           people; line i is `score y0 x0 y1 x1` of person i
    overlays/NAME.jpg                   a picture with a legend
    NAME.json                           people and parts: scores, boxes, areas, masks as COCO RLE
    NAME_cutouts/                       with --cutouts: RGBA pictures of people and parts
Per video (with pip install av): NAME_overlay.mp4 and NAME.jsonl, one line per frame, as infer.py
writes them. index.html shows them all.
The first three folders are CIHP's form of instance parsing, which evaluate.py reads, in the classes
of the weights. --to gives all other results in another label set. With --data, only the folders are
written.
"""
import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from infer import WEIGHTS
from schp.crowd import CrowdParsing, Person, choose_people, fuse_logits, parse_people
from schp.data import check_classes
from schp.network import load_model
from schp.single_person import SinglePersonNetwork
from uniparser import UniParser
from util.cli import Between, add_shared, check_source, filled, refuse_given
from util.datasets import DATASETS, Photos, open_dataset
from util.files import (check_pair, counted, find_photos, naming, printable,
                        read_rows, read_score, write_jpeg, write_pair, write_png)
from util.images import read_prediction
from util.labels import TARGETS, find_set, names_of, voc_palette
from util.masks import CroppedMap, as_label_maps
from util.photos import PhotoJob, PhotoPipeline, finish_run, name_jobs, share_of_process
from util.pictures import palette_image
from util.results import Parsing, check_cutouts, write_record
from util.run import sum_over_processes
from util.submissions import mark_finished, mark_unfinished, open_predictions
from util.video import VIDEOS, add_video_flags, check_video_flags, parse_videos, split_videos

# find_people(name, photo) -> masks (N, H, W), bool, and scores (N,).
FindPeople = Callable[[str, Image.Image], tuple[np.ndarray, Sequence[float]]]


def add_flags(parser: argparse.ArgumentParser):
    parser.add_argument('photos', nargs='*', help='files, folders (searched through) and globs')
    parser.add_argument('--out', type=filled, default='results',
                        help='folder for the results (default: results)')
    parser.add_argument('--local-weights', type=filled,
                        help='weights for the crops of people (default: those of --weights); '
                        'alone, without --weights, they decide without a parsing of the whole '
                        'photo')
    parser.add_argument('--people', type=filled, metavar='DIR',
                        help="instance masks of any model (default: UniParser's people)")
    parser.add_argument('--people-weights', type=filled,
                        help="UniParser's weights (default: weights/uniparser_ccp.pt)")
    parser.add_argument('--min-score', type=Between(-1e6, 1e6, float), default=0.5,
                        help='smallest score of a person (default: %(default)s)')
    parser.add_argument('--data', choices=list(DATASETS),
                        help='predict a split of this data set instead')
    add_shared(parser, 'root', help='with --data: its folder, as downloaded')
    add_shared(parser, 'split', 'val', help='with --data: its split', default=None)
    parser.add_argument('--to', choices=TARGETS,
                        help='give people, cut-outs and overlays in this label set, see '
                             'docs/labels.md')
    parser.add_argument('--cutouts', action='store_true',
                        help='also write each person and part as an RGBA picture')
    add_video_flags(parser)


class FusePipeline(PhotoPipeline):
    """Writes the results of photos.

    whole, local: the networks for whole photos (or None) and for the crops of people
    args: has out, min_score, cutouts, colors and to; see `add_flags`
    dataset: jobs are its images, by id; or None"""

    def __init__(self, whole: SinglePersonNetwork | None, local: SinglePersonNetwork,
                 find_people: FindPeople, args: argparse.Namespace, dataset: Photos | None = None):
        super().__init__(args.out, local.device)
        if args.to:
            # Refuses a model whose classes are of no known set.
            find_set(local.class_names, args.to)
        self.args = args
        self.whole = whole
        self.local = local
        self.find_people = find_people
        self.dataset = dataset
        self.positions = {name: i for i, name in enumerate(dataset.ids)} if dataset else {}
        self.colors = voc_palette()
        # Of the legend of a video.
        self.class_names = list(names_of(args.to) if args.to else local.class_names)
        self.kept = np.arange(1, len(self.class_names))

    def targets(self, name):
        kinds = 'global_parsing', 'instance_parsing', 'global_tag'
        maps = [self.folder / kind / f'{name}.png' for kind in kinds]
        paths = [*maps, self.folder / 'overlays' / f'{name}.jpg']
        if self.dataset is None:
            paths.append(self.folder / f'{name}.json')
        return paths

    def check_targets(self, name):
        super().check_targets(name)
        check_cutouts(self.folder / f'{name}_cutouts', self.inputs)

    def check_target(self, path):
        super().check_target(path)
        if path.parent.name in ('instance_parsing', 'global_tag'):
            check_pair(path)

    def open(self, path):
        if self.dataset is None:
            return super().open(path)
        return Image.fromarray(self.dataset.read(self.positions[path])[0])

    def prepare(self, photo):
        """The crops are known when the people are."""
        return photo

    def parse_batch(self, batch):
        for job in batch:
            try:
                if job.error is None:
                    job.out = self.fuse(job.name, job.photo)
            except (OSError, ValueError) as error:
                # Of the masks of --people.
                job.error = str(error)
            yield job

    def fuse(self, name: str, photo: Image.Image) -> tuple[CrowdParsing, list[Person]]:
        masks, scores = self.find_people(name, photo)
        people, chosen = choose_people(masks, scores, self.args.min_score)
        whole = self.whole_logits(photo)

        # The crops of people, each through the local network.
        array = np.asarray(photo)
        pieces = []
        for person in chosen:
            x0, y0, x1, y1 = person.crop
            pieces.append(np.ascontiguousarray(array[y0:y1 + 1, x0:x1 + 1]))
        local = self.local.predict_maps(pieces, logits=True)
        crops = [(person.crop, logits.transpose(1, 2, 0)) for person, logits in zip(chosen, local)]

        logits = fuse_logits(whole, crops)
        return parse_people(logits, people, [person.score for person in chosen]), chosen

    def whole_logits(self, photo: Image.Image) -> np.ndarray:
        """Logits (H, W, C) of the network for whole photos; zeros where there is none."""
        if self.whole is None:
            return np.zeros((photo.height, photo.width, self.local.num_classes), np.float32)
        return self.whole.predict_maps([photo], logits=True)[0].transpose(1, 2, 0)

    def find(self, out, photo, path=None):
        found, chosen = out
        scores = np.array([person.score for person in chosen])
        corners = np.array([person.box for person in chosen]).reshape(-1, 2, 2)
        # A box has its last pixels in it.
        people = Parsing(self.label_maps(found, len(chosen)), scores, corners.mean(1) + 0.5,
                         self.local.class_names, photo, path, self.colors)
        return people.convert(self.args.to) if self.args.to else people.visible()

    def label_maps(self, found: CrowdParsing, number: int) -> np.ndarray:
        """The classes of each person, uint8 (number, H, W)."""
        maps = [found.parsing * (found.people == i) for i in range(1, number + 1)]
        return np.array(maps, np.uint8).reshape(-1, *found.parsing.shape)

    def write(self, job):
        found, chosen = job.out
        self.write_maps(job.name, found, chosen)
        people = self.find(job.out, job.photo, job.path)
        picture = people.overlay(self.args.colors == 'people')
        write_jpeg(self.folder / 'overlays' / f'{job.name}.jpg', picture)
        if self.dataset is None:
            write_record(self.folder, job.name, people, self.args.cutouts)
        number = counted(len(chosen), 'person', 'people')
        return f'{printable(job.path)}: {number}', len(chosen)

    def write_maps(self, name: str, found: CrowdParsing, chosen: list[Person]):
        """Writes the files of CIHP's form."""
        people = []
        for person in chosen:
            x0, y0, x1, y1 = person.box
            people.append(f'{person.score} {y0} {x0} {y1} {x1}\n')
        parts = [f'{c} {confidence}\n'
                 for c, confidence in zip(found.part_classes, found.confidences)]
        pictures = [palette_image(labels, self.colors)
                    for labels in (found.parsing, found.parts, found.people)]
        paths = self.targets(name)
        write_png(paths[0], pictures[0])
        write_pair(paths[1], pictures[1], ''.join(parts))
        write_pair(paths[2], pictures[2], ''.join(people))


# ---- people ------------------------------------------------------------------------------------


def uniparser_people(weights: str, device: str | torch.device) -> FindPeople:
    # The scale of --min-score is that of centers.
    model = UniParser.from_pretrained(weights, device, score='center').fold()

    def find_people(name, photo):
        found = model.predict(photo)[0]
        return found.parsing > 0, found.scores
    return find_people


def people_of_folder(folder: str) -> FindPeople:
    """The masks of --people; see the top of this file for their forms."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder} is not a folder; --people is the folder of the instance '
                                'masks')
    signs = 'instances.json', 'results.txt', 'global_parsing'
    if not any((folder / sign).exists() for sign in signs):
        return lambda name, photo: read_id_map(folder, name, photo.size[::-1])
    predictions = open_predictions(folder)

    def find_people(name, photo):
        shape = photo.size[::-1]
        found = predictions.read(name, shape, 255)
        masks = [full_mask(parsing, shape) for parsing in found.parsing]
        return np.array(masks, bool).reshape(-1, *shape), found.scores
    return find_people


def full_mask(parsing: np.ndarray | CroppedMap, shape: tuple) -> np.ndarray:
    """A label map (H, W), or its crop to a box -> bool (H, W)."""
    if isinstance(parsing, np.ndarray):
        return parsing > 0
    mask = np.zeros(shape, bool)
    mask[parsing.box] = parsing.mask
    return mask


def read_id_map(folder: Path, name: str, shape: tuple) -> tuple[np.ndarray, list[float]]:
    """Masks (N, H, W) and scores (N,) of an id map; ids without pixels are left out."""
    path = folder / f'{name}.png'
    other = folder / f'{name}_people.png'
    if not path.is_file() and other.is_file():
        path = other
    ids = read_prediction(path, shape, 255)
    present = [i for i in np.unique(ids) if i]

    record = folder / f'{name}.json'
    lines = folder / f'{name}.txt'
    if record.is_file():
        with naming(record):
            people = json.loads(record.read_text())['people']
            scores = {person['id']: read_score(person['score']) for person in people}
    elif lines.is_file():
        rows = read_rows(lines, lambda words: read_score(words[0]), '`score ...`')
        scores = dict(enumerate(rows, 1))
    else:
        scores = dict.fromkeys(present, 1.0)
    missing = [i for i in present if i not in scores]
    if missing:
        raise ValueError(f'{folder}/{name} has no score of person {missing[0]}; give one score for '
                         'each person')
    masks = as_label_maps([ids == i for i in present], shape) > 0
    return masks, [scores[i] for i in present]


# ---- the command -------------------------------------------------------------------------------


def load_networks(args: argparse.Namespace) -> tuple:
    """-> the networks for whole photos, or None, and for the crops of people."""
    if not args.weights and not args.local_weights:
        raise ValueError('give --weights for whole photos, --local-weights for the crops of '
                         'people, or both')
    whole = load_model(args.weights, args.labels, args.device) if args.weights else None
    if not args.local_weights:
        return whole, whole
    local = load_model(args.local_weights, args.labels, args.device)
    if whole and local.num_classes != whole.num_classes:
        raise ValueError(f'{args.local_weights} has {local.num_classes} classes, {args.weights} '
                         f'{whole.num_classes}; give two networks of the same classes')
    return whole, local


def fuse(args: argparse.Namespace):
    """`python -m schp fuse`."""
    check_source(args.photos, args.data, '--data', 'a data set', 'python -m schp fuse')
    if args.photos:
        refuse_given(args, ('root', 'split'), 'is for a data set; name it with --data, or leave '
                     'this out')
    else:
        refuse_given(args, ('to', 'cutouts'), 'is for photos, not for a data set; leave it out')
    if args.people:
        refuse_given(args, ('people_weights',), 'is for people that UniParser finds; leave it out, '
                     'or leave out --people')
    paths = find_photos(args.photos) if args.photos else []
    check_video_flags(args, paths)
    if args.people and any(path.suffix.lower() in VIDEOS for path in paths):
        raise ValueError("--people has masks of photos; parse the videos without it, with "
                         "UniParser's people")
    whole, local = load_networks(args)
    dataset = None
    if args.data:
        dataset = open_dataset(args.data, args.root, args.split or 'val')
        check_classes(args.local_weights or args.weights, local, args.data, dataset)
    if args.people:
        same = os.path.realpath(args.people) == os.path.realpath(args.out)
        # NAME.json may hold the scores of these people.
        if same and (args.photos or Path(args.people, 'global_tag').is_dir()):
            raise ValueError('--people would be replaced by the results; choose another --out')
        find_people = people_of_folder(args.people)
    else:
        find_people = uniparser_people(args.people_weights or str(WEIGHTS), local.device)

    if dataset is None:
        jobs = name_jobs(paths)
    else:
        jobs = [PhotoJob(name, name) for name in dataset.ids]
    jobs = share_of_process(jobs)
    photos, videos = split_videos(jobs)
    if videos:
        refuse_given(args, ('cutouts',), 'is for photos; parse the videos without it')
    pipeline = FusePipeline(whole, local, find_people, args, dataset)
    mark_unfinished(args.out)
    failed = 0
    with torch.inference_mode():
        if photos or not videos:
            counts = pipeline.run(photos)
            good = [number for number in counts if number is not None]
            print(f'{len(good):,} of {counted(len(counts), "photo")}, '
                  f'{counted(sum(good), "person", "people")} -> {args.out}/')
            failed = len(counts) - len(good)
        failed += parse_videos(pipeline, jobs, args)
    failed = sum_over_processes(failed)
    if not failed:
        mark_finished(args.out)
    finish_run(args.out, failed, 'file' if videos else 'photo')
