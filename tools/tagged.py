"""Labels the photos of CCP that have tags of the whole image instead of pixel labels.

    python -m tools.tagged --root clothing-co-parsing --out tagged/ --flip-test
    python train.py --data CCP --root clothing-co-parsing --tagged tagged/

A photo's largest person gets the parts that the model finds, but no class that the tags exclude;
hair, face and limbs may always be there. A pixel whose class has a correlation (with --assign
mixture: a posterior) below --certain is unknown (255). A photo is left out where that person scores
less than --confident, where a tagged garment, hat, glove, sock or scarf has nearly no pixels, and
where clothes are tagged that CIHP has no class for. torchrun shares the photos among processes.

Unless given, the settings are --score parsing --assign correlation --theta-paint 0.2 --theta-part
0.1: with the tags, a label is seldom wrong.
"""
import json
import math
import os
from dataclasses import replace

import numpy as np
import torch

from data import input_geometry, network_input
from infer import add_model_flags, check_classes, load_model
from uniparser import decode
from util.cli import Between, CommandParser, filled, start
from util.datasets import CIHP, read_layers
from util.datasets.ccp import mat_shape, read_mat
from util.files import (UNKNOWN, check_failures, counted, index_folder, inside, naming, pick_files,
                        printable, user_errors, write_png)
from util.images import read_stored
from util.photos import PhotoJob, PhotoPipeline, share_of_process
from util.pictures import palette, palette_image
from util.run import sum_over_processes

NAMES = CIHP.class_names
ALWAYS = 'hair', 'face', 'left-arm', 'right-arm', 'left-leg', 'right-leg'
FOREIGN = 'tights', 'bodysuit'               # clothes without a class of CIHP
MOST_TAGS = 1000                             # of a photo; CCP's have about ten
# Smallest shares of tagged classes in the person.
SMALLEST = {
    **dict.fromkeys(('upper-clothes', 'dress', 'coat', 'pants', 'skirt'), 0.02),
    **dict.fromkeys(('hat', 'glove', 'socks', 'scarf'), 0.001),
}
DEFAULTS = dict(score='parsing', theta_score=0.0, assign='correlation', theta_paint=0.2,
                theta_part=0.1, whole=False)


class Tags:
    """Reads the tags of photos as classes of CIHP."""

    def __init__(self):
        self.rows = json.loads(read_layers()['mapping.json'])['map']

    def read(self, path: str) -> np.ndarray | None:
        """The classes that can appear in a photo: bool (19,), without the background. None where
        the photo shows clothes that CIHP does not have."""
        with naming(path):
            if math.prod(mat_shape(path, 'tags')) > MOST_TAGS:
                raise ValueError('it has too many tags')
            tags = read_mat(path, 'tags').astype(int).ravel().tolist()
            rows = [self.rows[tag] for tag in tags]
        if any(row['name'] in FOREIGN for row in rows):
            return None
        allowed = np.zeros(256, bool)
        for row in rows:
            # Shoes, for example, are a left and a right class of CIHP.
            ids = row['cihp']
            allowed[list(ids.values()) if isinstance(ids, dict) else ids] = True
        allowed[[NAMES.index(name) for name in ALWAYS]] = True
        return allowed[1:20]


class LabelPipeline(PhotoPipeline):
    """Writes label maps of tagged photos. tags: {name of a photo: path of its tags}."""
    endings = '.png',

    def __init__(self, model, args, tags):
        super().__init__(args.out, model.device)
        self.model = model
        self.args = args
        self.files = tags
        self.tags = Tags()

    def open(self, path):
        return read_stored(path)

    def prepare(self, photo):
        geometry = input_geometry(photo, self.model.config)
        return network_input(photo, self.model.config, geometry), geometry

    def outputs(self, inputs):
        return [dict(self.model.outputs(image), geometry=geometry) for image, geometry in inputs]

    def write(self, job):
        try:
            allowed = self.tags.read(self.files[job.name])
        except (OSError, ValueError) as error:
            return f'error: {error}', None
        labels = None
        if allowed is not None:
            with self.turn:
                labels = self.label(job.out, allowed)
        target, = self.targets(job.name)
        if labels is not None:
            write_png(target, palette_image(labels, palette(19)))
            return f'{printable(job.path)}: labeled', 1
        # A map of an earlier model, which was certain of this photo.
        target.unlink(missing_ok=True)
        return f'{printable(job.path)}: left out', 0

    def label(self, out: dict, allowed: np.ndarray) -> np.ndarray | None:
        """The label map of the largest person, (H, W) uint8, or None where it is not certain.

        Args:
            out: of `outputs`.
            allowed: of `Tags.read`.
        """
        config = self.model.config
        # Features are not negative, so a kernel of -1 correlates with none of them.
        excluded = ~torch.from_numpy(allowed).to(self.model.device)
        k_cate = out['k_cate'].masked_fill(excluded[:, None], -1.0)
        out = dict(out, k_cate=k_cate)
        found = decode(out, 0, out['geometry'], config)
        if not len(found.scores):
            return None
        largest = (found.parsing > 0).sum((1, 2)).argmax()
        labels = found.parsing[largest]
        if found.scores[largest] < self.args.confident or lacks_a_garment(labels, allowed):
            return None
        # The same person again, painted only where the network is certain.
        certain = replace(config, theta_paint=self.args.certain)
        sure = decode(out, 0, out['geometry'], certain)
        same = (sure.centers == found.centers[largest]).all(1)
        sure = (sure.parsing[same] == labels).any(0)
        return np.where((labels > 0) & ~sure, np.uint8(UNKNOWN), labels)


def lacks_a_garment(labels: np.ndarray, tagged: np.ndarray) -> bool:
    """Whether a tagged class has a smaller share of the person's pixels than it must have."""
    areas = np.bincount(labels.ravel(), minlength=20)[1:]
    for name, area, is_tagged in zip(NAMES[1:], areas, tagged):
        if is_tagged and area < SMALLEST.get(name, 0) * areas.sum():
            return True
    return False


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('--root', type=filled, required=True, help='folder of CCP, as downloaded')
    parser.add_argument('--out', type=filled, required=True, help='folder for the label maps')
    parser.add_argument('--confident', type=Between(0, 1, float), default=0.4, metavar='SCORE',
                        help='smallest score of a person (default: %(default)s)')
    parser.add_argument('--certain', type=Between(0.01, 1, float), default=0.4, metavar='VALUE',
                        help="smallest correlation or posterior of a pixel's class "
                             '(default: %(default)s)')
    add_model_flags(parser, **DEFAULTS)
    return parser.parse_args(argv)


def check_model(model, path: str):
    """ValueError where tags cannot exclude classes of the model in the file `path`."""
    check_classes(model, path, 'CIHP', NAMES)
    if model.config.space != 'cosine' or model.config.fusion != 'index':
        raise ValueError(f'{path} has the space {model.config.space} and the fusion '
                         f'{model.config.fusion}; tags can exclude classes with cosine and index '
                         'alone')


def label_photos(args):
    root = inside(args.root, 'clothing-co-parsing')
    model = load_model(args, args.device)
    check_model(model, args.weights)
    folder = os.path.join(root, 'annotations', 'image-level')
    tags = index_folder(folder, ('.mat',))
    if not tags:
        raise FileNotFoundError(f'{folder} has no .mat file; unpack the download again')
    paths = pick_files(os.path.join(root, 'photos'), list(tags))
    jobs = [PhotoJob(path, name) for path, name in zip(paths, tags)]
    counts = LabelPipeline(model, args, tags).run(share_of_process(jobs))
    kept = sum_over_processes(sum(count for count in counts if count))
    if int(os.environ.get('RANK', 0)) == 0:
        print(f'{kept} of {counted(len(tags), "photo")} labeled -> {os.path.join(args.out, "")}')
    check_failures(counts.count(None))


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        label_photos(args)


if __name__ == '__main__':
    start(main)
