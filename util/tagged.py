"""Labels the photos of CCP that have tags of the whole image instead of pixel labels: pseudo labels for training.

    python -m util.tagged --root clothing-co-parsing --out tagged/ --flip-test
    python train.py --data CCP --root clothing-co-parsing --tagged tagged/

A photo's largest person gets the parts that the model finds, but no class that the tags exclude; hair, face and limbs
may always be there. A pixel whose class has a correlation (with --assign mixture: a posterior) below --certain is
unknown (255). A photo is left out where that person scores less than --confident, where a tagged garment, hat, glove,
sock or scarf has nearly no pixels, and where clothes are tagged that CIHP has no class for. torchrun shares the photos
among processes.

Unless given, the settings are --score parsing --assign correlation --theta-paint 0.2 --theta-part 0.1: with the tags,
a label is seldom wrong.
"""
import preflight
preflight.require('data', 'infer', 'uniparser', 'util')

import json
import os
from dataclasses import replace

import numpy as np
import torch
from scipy.io import loadmat

from data import network_input
from infer import add_model_flags, check_classes, load_model
from uniparser import decode
from util.datasets import CIHP, UNKNOWN, read_layers
from util.files import index_folder, inside, naming, pick_files, printable, read_stored, user_errors, write_png
from util.photos import PhotoPipeline, check_failures, share_of_process
from util.pictures import palette, palette_image
from util.run import sum_over_processes

ALWAYS = 'hair', 'face', 'left-arm', 'right-arm', 'left-leg', 'right-leg'
FOREIGN = 'tights', 'bodysuit'                     # clothes without a class of CIHP
SMALLEST = {**dict.fromkeys(('upper-clothes', 'dress', 'coat', 'pants', 'skirt'), 0.02),      # share in the person
            **dict.fromkeys(('hat', 'glove', 'socks', 'scarf'), 0.001)}
DEFAULTS = dict(score='parsing', theta_score=0.0, assign='correlation', theta_paint=0.2, theta_part=0.1, whole=False)


class Tags:
    """Reads the tags of photos as classes of CIHP."""

    def __init__(self):
        self.rows = json.loads(read_layers()['mapping.json'])['map']

    def read(self, path):
        """-> allowed (19,) bool: which classes can appear; None where there are clothes that CIHP does not have."""
        with naming(path):
            tags = loadmat(path)['tags'].ravel().tolist()
            rows = [self.rows[tag] for tag in tags]
        if any(row['name'] in FOREIGN for row in rows):
            return None
        allowed = np.zeros(256, bool)
        for row in rows:
            ids = row['cihp']
            allowed[list(ids.values()) if isinstance(ids, dict) else ids] = True
        allowed[[CIHP.class_names.index(name) for name in ALWAYS]] = True
        return allowed[1:20]


class Labeler(PhotoPipeline):
    """Writes label maps of tagged photos. tags: their files by name."""
    endings = '.png',

    def __init__(self, model, args, tags):
        super().__init__(args.out, model.device)
        self.model, self.args, self.files, self.tags = model, args, tags, Tags()

    def open(self, path):
        return read_stored(path)

    def prepare(self, photo):
        return network_input(photo, self.model.config)

    def outputs(self, inputs):
        return [self.model.outputs(image) for image in inputs]

    def write(self, result):
        ((path, name), photo, out), target = result, self.targets(result[0][1])[0]
        try:
            allowed = self.tags.read(self.files[name]) if out else None
        except (OSError, ValueError) as error:
            photo, out = error, None
        if out is None:
            return f'error: {photo}', None
        with self.turn:
            labels = None if allowed is None else self.label(out, photo, allowed)
        if labels is not None:
            write_png(target, palette_image(labels, palette(19)))
        elif target.exists():                                        # of an earlier model, which was certain
            target.unlink()
        return f'{printable(path)}: {"left out" if labels is None else "labeled"}', int(labels is not None)

    def label(self, out, photo, allowed):
        """Label map (H, W) of the largest person of a Pillow photo, or None where it is not certain. out: see
        `outputs`; allowed: see `Tags.read`."""
        config, excluded = self.model.config, ~torch.from_numpy(allowed).to(self.model.device)
        k_cate = out['k_cate'].masked_fill(excluded[:, None], -1.0)  # features are not negative: q is at most -1
        found = decode(dict(out, k_cate=k_cate), 0, photo, config)
        n = (found.parsing > 0).sum((1, 2)).argmax() if len(found.scores) else 0
        if not len(found.scores) or found.scores[n] < self.args.confident:
            return None
        labels, center = found.parsing[n], found.centers[n]
        areas = np.bincount(labels.ravel(), minlength=20)[1:]
        if any(tagged and area < SMALLEST.get(name, 0) * areas.sum()
               for name, area, tagged in zip(CIHP.class_names[1:], areas, allowed)):
            return None
        sure = decode(dict(out, k_cate=k_cate), 0, photo, replace(config, theta_paint=self.args.certain))
        sure = (sure.parsing[(sure.centers == center).all(1)] == labels).any(0)            # the same person again
        return np.where((labels > 0) & ~sure, np.uint8(UNKNOWN), labels)


def parse_arguments(argv=None):
    parser = preflight.CommandParser(__doc__)
    parser.add_argument('--root', required=True, help='folder of CCP, as downloaded')
    parser.add_argument('--out', required=True, help='folder for the label maps')
    parser.add_argument('--confident', type=preflight.Between(0, 1, float), default=0.4, metavar='SCORE',
                        help='smallest score of a person; default 0.4')
    parser.add_argument('--certain', type=preflight.Between(0.01, 1, float), default=0.4, metavar='VALUE',
                        help="smallest correlation or posterior of a pixel's class; default 0.4")
    add_model_flags(parser)
    parser.set_defaults(**DEFAULTS)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        root, model = inside(args.root, 'clothing-co-parsing'), load_model(args, args.device)
        check_classes(model, args.weights, 'CIHP', CIHP.class_names)
        if model.config.space != 'cosine' or model.config.fusion != 'index':
            raise ValueError(f'{args.weights} has the space {model.config.space} and the fusion {model.config.fusion}; '
                             'tags can exclude classes with cosine and index alone')
        folder = os.path.join(root, 'annotations', 'image-level')
        tags = index_folder(folder, ('.mat',))
        if not tags:
            raise FileNotFoundError(f'{folder} has no .mat file; unpack the download again')
        jobs = share_of_process(list(zip(pick_files(os.path.join(root, 'photos'), list(tags)), tags)))
        counts = Labeler(model, args, tags).run(jobs)
        failed = counts.count(None)
        kept = sum_over_processes(sum(count for count in counts if count))
        if int(os.environ.get('RANK', 0)) == 0:
            print(f'{kept} of {len(tags)} photos labeled -> {os.path.join(args.out, "")}')
        check_failures(failed)


if __name__ == '__main__':
    preflight.start(main)
