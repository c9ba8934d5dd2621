"""schp fuse: the parts of several people in a photo, from two networks for one person and anybody's person masks.

People come from UniParser, or from --people DIR: id maps DIR/NAME.png or infer.py's NAME_people.png, where value i is
person i, with the scores in NAME.json (people: [{score}]) or NAME.txt (the first number of line i), 1 without either;
or a folder of predictions as evaluate.py reads it.

Per photo NAME: global_parsing/NAME.png (classes); instance_parsing/NAME.png (parts) and NAME.txt, `class confidence` of
part i in line i; global_tag/NAME.png (people) and NAME.txt, `score y0 x0 y1 x1` of person i in line i;
overlays/NAME.png. This is CIHP's form of instance parsing, which evaluate.py reads.
"""
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from infer import WEIGHTS
from util.cli import Between
from uniparser import UniParser
from schp.crowd import choose_people, fuse_logits, parse_people
from util.datasets import DATASETS, open_dataset
from util.files import check_pair, find_photos, naming, printable, read_rows, write_pair, write_png
from util.images import read_prediction
from util.labels import check_classes, voc_palette
from util.masks import as_label_maps
from util.photos import PhotoJob, PhotoPipeline, check_failures, name_jobs, share_of_process
from util.pictures import overlay, palette_image
from util.run import sum_over_processes
from util.submissions import open_predictions


def add_flags(parser):
    parser.add_argument('photos', nargs='*', help='files, folders (searched through) and globs')
    parser.add_argument('--out', default='results', help='folder for the results (default: results)')
    parser.add_argument('--local-weights', help='weights for the crops of people (default: those of --weights); '
                        'alone, without --weights, they decide without a parsing of the whole photo')
    parser.add_argument('--people', metavar='DIR', help="instance masks of any model (default: UniParser's people)")
    parser.add_argument('--people-weights', default=str(WEIGHTS),
                        help="UniParser's (default: weights/uniparser_ccp.pt)")
    parser.add_argument('--min-score', type=Between(-1e6, 1e6, float), default=0.5, help='of people (default: 0.5)')
    parser.add_argument('--data', choices=list(DATASETS), help='predict a split of this data set instead')
    parser.add_argument('--root', help='with --data: its folder, as downloaded')
    parser.add_argument('--split', default='val', help='with --data: default val')


class Fuser(PhotoPipeline):
    """models: for whole photos (or None) and for the crops of people. find_people(name, photo) -> masks bool (N,H,W)
    and scores (N,). dataset: the jobs are its images, (id, id)."""

    def __init__(self, folder, models, find_people, min_score, dataset=None):
        super().__init__(folder, models[1].device)
        self.models, self.find_people, self.min_score, self.dataset = models, find_people, min_score, dataset
        self.positions = {name: i for i, name in enumerate(dataset.ids)} if dataset else {}
        self.colors = voc_palette()

    def targets(self, name):
        kinds = 'global_parsing', 'instance_parsing', 'global_tag', 'overlays'
        return [self.folder / kind / f'{name}.png' for kind in kinds]

    def check_target(self, path):
        super().check_target(path)
        if path.parent.name in ('instance_parsing', 'global_tag'):
            check_pair(path)

    def open(self, path):
        return Image.fromarray(self.dataset.read(self.positions[path])[0]) if self.dataset else super().open(path)

    def prepare(self, photo):
        return photo                                         # the crops are known when the people are

    def parse_batch(self, batch):
        for job in batch:
            try:
                if job.error is None:
                    job.out = self.fuse(job.name, job.photo)
            except (OSError, ValueError) as error:           # of the masks of --people
                job.error = str(error)
            yield job

    def fuse(self, name, photo):
        """-> CrowdParsing, and score and inclusive box (x0, y0, x1, y1) of every person."""
        people, chosen = choose_people(*self.find_people(name, photo), self.min_score)
        array = np.asarray(photo)
        whole = self.whole(photo)
        pieces = [np.ascontiguousarray(array[y0:y1 + 1, x0:x1 + 1]) for _, _, (x0, y0, x1, y1) in chosen]
        local = self.models[1].predict(pieces, logits=True)
        crops = [(crop, logits.transpose(1, 2, 0)) for (_, _, crop), logits in zip(chosen, local)]
        return parse_people(fuse_logits(whole, crops), people, [score for score, _, _ in chosen]), chosen

    def whole(self, photo):
        """Logits (H,W,C) of the network for whole photos; zeros where there is none."""
        if self.models[0] is None:
            return np.zeros((photo.height, photo.width, self.models[1].num_classes), np.float32)
        return self.models[0].predict([photo], logits=True)[0].transpose(1, 2, 0)

    def write(self, job):
        found, chosen = job.out
        people = [f'{score} {y0} {x0} {y1} {x1}\n' for score, (x0, y0, x1, y1), _ in chosen]
        parts = [f'{c} {confidence}\n' for c, confidence in zip(found.part_classes, found.confidences)]
        for kind, labels, lines in (('global_parsing', found.parsing, None), ('instance_parsing', found.parts, parts),
                                    ('global_tag', found.people, people)):
            image = palette_image(labels, self.colors) if labels.dtype == np.uint8 else Image.fromarray(labels)
            target = self.folder / kind / f'{job.name}.png'
            write_png(target, image) if lines is None else write_pair(target, image, ''.join(lines))
        maps = [found.parsing * (found.people == i) for i in range(1, len(chosen) + 1)]
        picture = overlay(job.photo, np.array(maps).reshape(-1, *found.parsing.shape), self.models[1].labels,
                          colors=self.colors)
        write_png(self.folder / 'overlays' / f'{job.name}.png', picture)
        return f'{printable(job.path)}: {len(chosen)} people', len(chosen)


def uniparser_people(weights, device):
    model = UniParser.from_pretrained(weights, device, score='center').fold()               # the scale of --min-score

    def find_people(name, photo):
        found = model.predict(photo)[0]
        return found.parsing > 0, found.scores
    return find_people


def people_of_folder(folder):
    """find_people for the masks of --people; see the top of this file for their forms."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder} is no folder; --people is the folder of the instance masks')
    if any(any(folder.glob(sign)) for sign in ('instances.json', 'results.txt', 'global_parsing')):
        predictions = open_predictions(folder)

        def find_people(name, photo):
            shape = photo.size[::-1]
            found = predictions.read(name, shape, 255)
            return np.array([full_mask(m, shape) for m in found.parsing], bool).reshape(-1, *shape), found.scores
        return find_people
    return lambda name, photo: read_ids(folder, name, photo.size[::-1])


def full_mask(parsing, shape):
    """A label map (H, W), or its crop to a box -> bool (H, W)."""
    if isinstance(parsing, np.ndarray):
        return parsing > 0
    mask = np.zeros(shape, bool)
    mask[parsing.box] = parsing.mask
    return mask


def read_ids(folder, name, shape):
    """Masks (N,H,W) and scores (N,) of an id map; ids without pixels are left out."""
    files = [folder / f'{name}{ending}.png' for ending in ('', '_people')]
    ids = read_prediction(next((f for f in files if f.is_file()), files[0]), shape, 255)
    present = [i for i in np.unique(ids) if i]
    record, lines = folder / f'{name}.json', folder / f'{name}.txt'
    if record.is_file():
        with naming(record):
            scores = {p['id']: float(p['score']) for p in json.loads(record.read_text())['people']}
    elif lines.is_file():
        scores = dict(enumerate(read_rows(lines, lambda words: float(words[0]), '`score ...`'), 1))
    else:
        scores = dict.fromkeys(present, 1.0)
    if missing := [i for i in present if i not in scores]:
        raise ValueError(f'{folder}/{name} has no score of person {missing[0]}; give one score for each person')
    return as_label_maps([ids == i for i in present], shape) > 0, [scores[i] for i in present]


def load_networks(args, load_model):
    """-> the networks for whole photos, or None, and for crops."""
    if not args.weights and not args.local_weights:
        raise ValueError('give --weights for whole photos, --local-weights for the crops of people, or both')
    model = load_model(args, args.weights) if args.weights else None
    local = load_model(args, args.local_weights) if args.local_weights else model
    if model and local.num_classes != model.num_classes:
        raise ValueError(f'{args.local_weights} has {local.num_classes} classes, {args.weights} {model.num_classes}; '
                         'give two networks of the same classes')
    return model, local


def fuse(args, load_model):
    """load_model(args, path) -> the Parser of a file."""
    if bool(args.photos) == bool(args.data):
        raise ValueError('give photos, or --data with a data set (python -m schp fuse --help)')
    model, local = load_networks(args, load_model)
    dataset = open_dataset(args.data, args.root, args.split) if args.data else None
    if dataset:
        check_classes(args.local_weights or args.weights, local, args.data, dataset)
    find_people = people_of_folder(args.people) if args.people else uniparser_people(args.people_weights, local.device)
    jobs = [PhotoJob(name, name) for name in dataset.ids] if dataset else name_jobs(find_photos(args.photos))
    with torch.inference_mode():
        counts = Fuser(args.out, (model, local), find_people, args.min_score, dataset).run(share_of_process(jobs))
    good = [number for number in counts if number is not None]
    print(f'{len(good)} of {len(counts)} photos, {sum(good)} people -> {args.out}/')
    check_failures(sum_over_processes(len(counts) - len(good)))
