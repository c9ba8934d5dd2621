"""Labels the photos of CCP that have tags of the whole image instead of pixel labels: pseudo labels for training.

    python -m util.tagged --root clothing-co-parsing --out tagged/ --flip-test
    python train.py --data CCP --root clothing-co-parsing --tagged tagged/

A photo's largest person gets the parts that the model finds, but no class that the tags exclude; hair, face and limbs
may always be there. A pixel whose class has a correlation (with --assign mixture: a posterior) below --certain is
unknown (255). A photo is left out where that person scores less than --confident, where a tagged garment has nearly no
pixels, and where clothes are tagged that CIHP has no class for. torchrun shares the photos among processes.

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
from tqdm import tqdm

from data import network_input
from infer import add_model_flags, load_model
from uniparser import decode
from util.datasets import CIHP, UNKNOWN, read_layers
from util.files import (index_folder, inside, is_ours, make_folder, naming, pick_files, read_stored, user_errors,
                        write_png)
from util.photos import share_of_process
from util.pictures import palette, palette_image
from util.run import sum_over_processes

ALWAYS = 'hair', 'face', 'left-arm', 'right-arm', 'left-leg', 'right-leg'
FOREIGN = 'tights', 'bodysuit'                     # clothes without a class of CIHP
GARMENTS = tuple(map(CIHP.class_names.index, ('upper-clothes', 'dress', 'coat', 'pants', 'skirt')))
SMALLEST = 0.02                                    # share of a garment in the person
DEFAULTS = dict(score='parsing', theta_score=0.0, assign='correlation', theta_paint=0.2, theta_part=0.1)


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


def label(model, photo, allowed, confident, certain):
    """Label map (H, W) of the largest person of a Pillow photo, or None where it is not certain. allowed: see
    `Tags.read`."""
    out = model.outputs(network_input(photo, model.config))
    excluded = ~torch.from_numpy(allowed).to(model.device)
    out['k_cate'] = out['k_cate'].masked_fill(excluded[:, None], -1.0)   # features are not negative: q is at most -1
    found = decode(out, 0, photo, model.config)
    n = (found.parsing > 0).sum((1, 2)).argmax() if len(found.scores) else 0
    if not len(found.scores) or found.scores[n] < confident:
        return None
    labels, center = found.parsing[n], found.centers[n]
    if not labels.any():
        return None
    areas = np.bincount(labels.ravel(), minlength=20)[1:]
    if any(areas[c - 1] < SMALLEST * areas.sum() for c in GARMENTS if allowed[c - 1]):
        return None
    sure = decode(out, 0, photo, replace(model.config, theta_paint=certain))                 # the same person again
    sure = (sure.parsing[(sure.centers == center).all(1)] == labels).any(0)
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
        root, tags, model = inside(args.root, 'clothing-co-parsing'), Tags(), load_model(args, args.device)
        if list(model.class_names) != list(CIHP.class_names):
            raise ValueError(f'{args.weights} was trained for other classes than CIHP has; use weights of CIHP or CCP')
        if model.config.space != 'cosine' or model.config.fusion != 'index':
            raise ValueError(f'{args.weights} has the space {model.config.space} and the fusion {model.config.fusion}; '
                             'tags can exclude classes with cosine and index alone')
        folder = os.path.join(root, 'annotations', 'image-level')
        files = index_folder(folder, ('.mat',))
        if not files:
            raise FileNotFoundError(f'{folder} has no .mat file; unpack the download again')
        photos, kept = pick_files(os.path.join(root, 'photos'), list(files)), 0
        make_folder(args.out)
        for path, photo in tqdm(share_of_process(list(zip(files.values(), photos))), unit='photo'):
            allowed = tags.read(path)
            labels = None if allowed is None else label(
                model, read_stored(photo), allowed, args.confident, args.certain)
            target = os.path.join(args.out, os.path.splitext(os.path.basename(photo))[0] + '.png')
            if labels is not None:
                write_png(target, palette_image(labels, palette(19)))
                kept += 1
            elif os.path.exists(target) and is_ours(target):
                os.remove(target)                                    # of an earlier model, which was certain
        kept = sum_over_processes(kept)
        if int(os.environ.get('RANK', 0)) == 0:
            print(f'{kept} of {len(files)} photos labeled -> {os.path.join(args.out, "")}')


if __name__ == '__main__':
    preflight.start(main)
