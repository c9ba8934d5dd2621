"""Does self-correction mend noisy labels? Trains SCHP on corrupted labels with and without cycles.

    python -m tools.self_correction --root clothing-co-parsing --out runs/self_correction

The people are CCP's single photos. The training labels of 35 % of them, drawn once per photo, are
wrong in three ways: shifted by up to 5 % of the photo's sides, left and right swapped, a part
missing. Validation labels stay as they are. All runs have equally many epochs and images:

    plain      no cycles, the rate falls to its end in one cosine
    average    cycles that average the models, labels stay as they are
    correct    cycles that average the models and correct the labels

FOLDER/results.json gets the mIoU of every run; a second call goes on with the runs that it lacks.
"""
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from schp import SCHPTask, build
from schp.config import PRESETS, SCHPConfig
from schp.data import Reduced, Samples, flatten, open_dataset
from schp.evaluation import semantic_metrics
from train import make_loader, run_command, train_task
from util.cli import Between, CommandParser, add_shared, filled, start
from util.datasets import swap_sides
from util.files import read_json, write_json
from util.labels import LabelSet
from util.metrics import confusion_matrix
from util.run import Run

SHARE = 0.35                                 # of the people with wrong labels
SHIFT = 0.05                                 # of the photo's sides, at most
CORRUPTION = 8                               # of the seeds of the corrupted labels
SETTINGS = dict(PRESETS['CCP'], size=(64, 48), width=12, batch_size=16, epochs=40, lr=0.03,
                cycle_start=25, cycle_epochs=5)
RUNS = {
    'plain': dict(cycle_start=SETTINGS['epochs']),
    'average': dict(correct_labels=False),
    'correct': {},
}


def corrupt(labels: np.ndarray, flip_pairs, rng: np.random.Generator) -> np.ndarray:
    """Label map (H, W) uint8 -> the same or, for a share of the people, one with all three errors.

    The generator is asked for all numbers first, so that a photo's errors do not depend on SHARE.
    """
    is_struck = rng.random() < SHARE
    offset = rng.uniform(-SHIFT, SHIFT, 2)
    part = rng.random()
    if not is_struck:
        return labels
    labels = shift(labels, np.round(offset * labels.shape).astype(int))
    labels = swap_sides(labels, flip_pairs)
    present = np.setdiff1d(labels, (0, 255))
    if len(present):
        missing = present[int(part * len(present))]
        labels = np.where(labels == missing, 0, labels).astype(np.uint8)
    return labels


def shift(labels: np.ndarray, offset) -> np.ndarray:
    """Label map (H, W) moved by offset (down, right), in pixels. What was outside is background."""
    height, width = labels.shape
    down, right = offset
    moved = np.zeros_like(labels)
    source = labels[max(0, -down):height + min(0, -down), max(0, -right):width + min(0, -right)]
    moved[max(0, down):height + min(0, down), max(0, right):width + min(0, right)] = source
    return moved


class Corrupted(Reduced):
    """The first `count` photos of a data set in memory, with corrupted labels of this seed."""

    def __init__(self, dataset, size, count, seed):
        super().__init__(dataset, size)
        self.count = min(count, len(dataset))
        self.seed = seed

    def __len__(self):
        return self.count

    def read(self, i, seed=0, epoch=0):
        image, parsing, _ = super().read(i)
        rng = np.random.default_rng((CORRUPTION, self.seed, i))
        labels = corrupt(parsing[0], self.flip_pairs, rng)
        return image, labels[None], labels == 255


def label_quality(clean: Reduced, corrupted: Reduced) -> float:
    """mIoU of the corrupted training labels themselves, in 0..1."""
    matrix = 0
    for i in range(len(corrupted)):
        _, parsing, ignore = clean.read(i)
        truth = flatten(parsing, ignore)
        _, parsing, ignore = corrupted.read(i)
        noisy = flatten(parsing, ignore)
        noisy = np.where(noisy == 255, 0, noisy)
        matrix = matrix + confusion_matrix(noisy, truth, len(clean.class_names))
    return semantic_metrics(matrix)['mIoU']


def train_once(config: SCHPConfig, train_set: Reduced, val_set: Reduced, folder: Path,
               device: str) -> dict | None:
    """Trains a network -> metrics of the last validation, or None where it was stopped."""
    run = Run(device, None)
    torch.manual_seed(config.seed)
    labels = LabelSet(val_set.class_names, config.size, val_set.flip_pairs)
    model = build(config, labels).to(run.device)
    loader = make_loader(Samples(train_set, config), config, run)
    task = SCHPTask(config, model, loader, val_set)
    return train_task(task, run, folder, None, f'{len(train_set)} training images')


def compare(args):
    """Trains the runs that results.json lacks, and prints the table."""
    out = Path(args.out)
    path = out / 'results.json'
    results = {'photos': args.photos}
    if path.exists():
        results = read_json(path)
        if results.get('photos') != args.photos:
            raise ValueError(f'{path} was made with other --photos, {results.get("photos")}; '
                             'choose another --out')
    config = replace(SCHPConfig(), **dict(SETTINGS, data='CCP', val_every=SETTINGS['epochs']))
    val_set = Reduced(open_dataset('CCP', args.root, 'val'), config.size)
    for seed in args.seeds:
        clean = Reduced(open_dataset('CCP', args.root, 'train'), config.size)
        train_set = Corrupted(clean, config.size, args.photos, seed)
        quality = 100 * label_quality(clean, train_set)
        print(f'seed {seed}: mIoU of the training labels {quality:.2f}', flush=True)
        for name in args.runs:
            if f'{name} {seed}' in results:
                continue
            changed = replace(config, seed=seed, **RUNS[name])
            folder = out / f'{name}_{seed}'
            metrics = train_once(changed, train_set, val_set, folder, args.device)
            if not metrics:
                return
            results[f'{name} {seed}'] = metrics['mIoU']
            write_json(path, results)
    print_table(results, args)


def print_table(results, args):
    print(f'{"run":10}' + ''.join(f'  seed {seed}' for seed in args.seeds) + '   mean')
    for name in args.runs:
        values = [100 * results[f'{name} {seed}'] for seed in args.seeds]
        cells = ''.join(f'{value:8.2f}' for value in values)
        print(f'{name:10}{cells}{np.mean(values):7.2f}')


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('--root', type=filled, required=True, help='folder of CCP, as downloaded')
    parser.add_argument('--out', type=filled, default='runs/self_correction',
                        help='folder of the runs (default: %(default)s)')
    parser.add_argument('--seeds', type=Between(0, 2 ** 32), nargs='+', default=[0, 1, 2],
                        help='seeds; each run is trained once with each (default: 0 1 2)')
    parser.add_argument('--runs', nargs='+', choices=list(RUNS), default=list(RUNS),
                        help='runs to train (default: all)')
    parser.add_argument('--photos', type=Between(1, 10 ** 6), default=400,
                        help='training photos (default: %(default)s)')
    add_shared(parser, 'device')
    return parser.parse_args(argv)


def main(argv=None):
    run_command(lambda: compare(parse_arguments(argv)))


if __name__ == '__main__':
    start(main)
