"""Does self-correction mend noisy labels? Trains SCHP on corrupted labels with and without its cycles.

    python -m tools.self_correction --root clothing-co-parsing --out runs/self_correction

The people are CCP's single photos. The training labels of 35 % of them, drawn once per photo, are wrong in three ways:
shifted by up to 5 % of the photo's sides, left and right swapped, a part missing. Validation labels stay as they are.
All runs have equally many epochs and images:

    plain      no cycles, the rate falls to its end in one cosine
    average    cycles that average the models, labels stay as they are
    correct    cycles that average the models and correct the labels

FOLDER/results.json gets the mIoU of every run; a second call goes on with the runs that it lacks.
"""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from schp import SCHPTask, build
from train import make_loader, run_command, train_task
from util.cli import Between, CommandParser, start
from util.datasets import swap_sides
from util.files import write_file
from util.labels import LabelSet
from util.run import Run
from schp.config import PRESETS, SCHPConfig
from util.metrics import confusion_matrix
from schp.evaluation import semantic_metrics
from schp.data import Reduced, Samples, flatten, open_dataset

SHARE, SHIFT = 0.35, 0.05
SETTINGS = dict(PRESETS['CCP'], size=(64, 48), width=12, batch_size=16, epochs=40, lr=0.03, cycle_start=25,
                cycle_epochs=5)
RUNS = dict(plain=dict(cycle_start=SETTINGS['epochs']), average=dict(correct_labels=False), correct={})


def corrupt(labels, flip_pairs, rng):
    """Label map (H,W) uint8 -> the same or, for a share of the people, one with all three errors."""
    struck, offset, part = rng.random() < SHARE, rng.uniform(-SHIFT, SHIFT, 2), rng.random()
    if not struck:
        return labels
    labels = swap_sides(shift(labels, np.round(offset * labels.shape).astype(int)), flip_pairs)
    present = np.setdiff1d(labels, (0, 255))
    if len(present):
        labels = np.where(labels == present[int(part * len(present))], 0, labels).astype(np.uint8)
    return labels


def shift(labels, offset):
    """Label map moved by offset (down, right); what was outside is background."""
    (dy, dx), (h, w) = offset, labels.shape
    moved = np.zeros_like(labels)
    moved[max(0, dy):h + min(0, dy), max(0, dx):w + min(0, dx)] = \
        labels[max(0, -dy):h + min(0, -dy), max(0, -dx):w + min(0, -dx)]
    return moved


class Corrupted(Reduced):
    """The first `count` photos of a data set in memory, with corrupted labels of this seed."""

    def __init__(self, dataset, size, count, seed):
        super().__init__(dataset, size)
        self.count, self.seed = min(count, len(dataset)), seed

    def __len__(self):
        return self.count

    def read(self, i, seed=0, epoch=0):
        image, parsing, ignore = super().read(i)
        labels = corrupt(parsing[0], self.flip_pairs, np.random.default_rng((8, self.seed, i)))
        return image, labels[None], labels == 255


def label_quality(clean, corrupted):
    """mIoU of the corrupted training labels themselves."""
    pairs = ((flatten(*corrupted.read(i)[1:]), flatten(*clean.read(i)[1:])) for i in range(len(corrupted)))
    return semantic_metrics(sum(confusion_matrix(np.where(noisy == 255, 0, noisy), truth, len(clean.class_names))
                                for noisy, truth in pairs))['mIoU']


def train_once(config, train_set, val_set, folder, device):
    """-> metrics of the last validation."""
    run = Run(device, None)
    torch.manual_seed(config.seed)
    model = build(config, LabelSet(val_set.class_names, config.size, val_set.flip_pairs)).to(run.device)
    loader = make_loader(Samples(train_set, config), config, run)
    return train_task(SCHPTask(config, model, loader, val_set), run, folder, None, f'{len(train_set)} training images')


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('--root', required=True, help='folder of Clothing Co-Parsing, as downloaded')
    parser.add_argument('--out', default='runs/self_correction', help='folder of the runs')
    parser.add_argument('--seeds', type=Between(0, 2 ** 32), nargs='+', default=[0, 1, 2])
    parser.add_argument('--runs', nargs='+', choices=list(RUNS), default=list(RUNS))
    parser.add_argument('--photos', type=Between(1, 10 ** 6), default=400, help='training photos')
    parser.add_argument('--device', default='auto', choices=['auto', 'cpu', 'cuda', 'mps'])
    return parser.parse_args(argv)


def compare(args):
    out = Path(args.out)
    results = json.loads((out / 'results.json').read_text()) if (out / 'results.json').exists() else {}
    config = replace(SCHPConfig(), **dict(SETTINGS, data='CCP', val_every=SETTINGS['epochs']))
    val_set = Reduced(open_dataset('CCP', args.root, 'val'), config.size)
    for seed in args.seeds:
        clean = Reduced(open_dataset('CCP', args.root, 'train'), config.size)
        train_set = Corrupted(clean, config.size, args.photos, seed)
        print(f'seed {seed}: mIoU of the training labels {100 * label_quality(clean, train_set):.2f}', flush=True)
        for name in args.runs:
            if f'{name} {seed}' in results:
                continue
            changed = replace(config, seed=seed, **RUNS[name])
            metrics = train_once(changed, train_set, val_set, out / f'{name}_{seed}', args.device)
            if not metrics:
                return
            results[f'{name} {seed}'] = metrics['mIoU']
            write_file(out / 'results.json', json.dumps(results, indent=1) + '\n')
    print_table(results, args)


def print_table(results, args):
    print(f'{"run":10}' + ''.join(f'  seed {seed}' for seed in args.seeds) + '   mean')
    for name in args.runs:
        values = [100 * results[f'{name} {seed}'] for seed in args.seeds]
        print(f'{name:10}' + ''.join(f'{v:8.2f}' for v in values) + f'{np.mean(values):7.2f}')


def main(argv=None):
    run_command(lambda: compare(parse_arguments(argv)))


if __name__ == '__main__':
    start(main)
