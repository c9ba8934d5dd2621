"""Trains and measures the rows of the paper's tables: on drawn crowds, which take a minute per row, or on a data set.

    python -m tools.ablate --table 4a                                  # Table 4 (a) on drawn crowds, CPU
    python -m tools.ablate --table all --seeds 0 1 2
    python -m tools.ablate --table all --data MHP --root DIR           # the paper's own tables, on a GPU
    torchrun --nproc-per-node 8 -m tools.ablate --table all --data MHP --root DIR     # the processes share the trainings

A row and seed has a folder OUT/DATA/ROW-SEED. It is finished once it has metrics.json; the same command skips finished
rows and resumes the others. Rows of one training, such as thresholds, share its weights. Settings of train.py, such as
--epochs 36, change the base of all rows. OUT/DATA/results.md has the tables, results.json the numbers; --json
docs/results.json --page docs/results.md brings both into the documents.
"""
import json
import os
import re
import time
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import train
from uniparser import PRESETS, Config, UniParser, get_config
from util.checkpoints import read_checkpoint
from util.cli import Between, CommandParser, add_settings, as_flags, describe, given_settings, start
from util.datasets import DATASETS, DRAWN
from util.files import write_file, write_json
from util.masks import matrix_nms
from util.photos import share_of_process
from util.reports import mean_and_spread
from util.run import Run, find_device

NAMES = dict(AP50='AP^p_50', APvol='AP^p_vol', PCP50='PCP_50', mIoU='mIoU')
# What a training changes in the base, in the order in which they run: one of each table first.
TRAININGS = dict(
    base={}, no_metric=dict(lambda_metric=0.0), no_aux=dict(lambda_ins=0.0, lambda_cate=0.0, lambda_neg=0.0),
    no_parsing=dict(lambda_par=0.0), inner=dict(space='inner'), convs=dict(fusion='convs'), light=dict(light=True),
    released=dict(recipe='released'), grid_20=dict(grid=20), only_ins=dict(lambda_cate=0.0, lambda_neg=0.0),
    only_cate=dict(lambda_ins=0.0), multi=dict(fusion='multi'), sigmoid_after=dict(space='sigmoid_after'),
    sigmoid_before=dict(space='sigmoid_before'), sigma_01=dict(sigma=0.1), grid_80=dict(grid=80),
    released_time=dict(recipe='released', samples=1068), sigma_01_grid_20=dict(sigma=0.1, grid=20),
    sigma_01_grid_80=dict(sigma=0.1, grid=80))
NO_NMS, EVERY_CELL = dict(theta_same=1.0), dict(theta_same=1.0, peaks=1)


class Row(NamedTuple):
    """A row of a table: its text, one of TRAININGS, changes of inference settings, the kernel of Matrix NMS or '', and
    the paper's AP^p_50, AP^p_vol, PCP_50."""
    text: str
    training: str = 'base'
    test: dict = {}
    nms: str = ''
    paper: tuple = ()

    @property
    def name(self):
        """Names folders: the training, then what inference changes."""
        words = [f'{k}={v}' for k, v in self.test.items()] + ([f'{self.nms}-nms'] if self.nms else [])
        return '+'.join([self.training, *words])

    @property
    def flags(self):
        """What the row adds to train.py and infer.py."""
        flags = as_flags({**TRAININGS[self.training], **self.test})
        return f'`{flags}`' if flags else ''


def thresholds(published):
    """Table 9: {theta_mask: the paper's results with theta_center 0.2, 0.1, 0.05}."""
    return [Row(f'theta_mask {mask}, theta_center {center}', 'base',
                {} if (mask, center) == (0.5, 0.1) else dict(theta_mask=mask, theta_center=center), paper=paper)
            for mask, papers in published.items() for center, paper in zip((0.2, 0.1, 0.05), papers)]


BASE = 42.8, 46.3, 46.7
TABLES = {
    '4a': ('Table 4 (a): metric loss and Matrix NMS', [
        Row('no metric loss', 'no_metric', NO_NMS, '', (34.6, 43.6, 41.9)),
        Row('no metric loss, Matrix NMS', 'no_metric', NO_NMS, 'gaussian', (34.6, 43.6, 41.9)),
        Row('metric loss', 'base', NO_NMS, '', BASE),
        Row('metric loss, Matrix NMS', 'base', NO_NMS, 'gaussian', BASE)]),
    '4b': ('Table 4 (b): auxiliary loss (*)', [
        Row('no auxiliary loss', 'no_aux', paper=(15.9, 34.6, 27.3)),
        Row('instances alone', 'only_ins', paper=(35.5, 42.7, 27.0)),
        Row('categories alone', 'only_cate', paper=(29.4, 42.0, 38.6)),
        Row('both', paper=BASE)]),
    '4c': ('Table 4 (c): metric space', [
        Row('cosine', paper=BASE), Row('inner product', 'inner', paper=(37.6, 42.9, 45.1)),
        Row('sigmoid after the product', 'sigmoid_after', paper=(0.2, 0.1, 0.3)),
        Row('sigmoid before the product', 'sigmoid_before', paper=(0.0, 0.0, 0.0))]),
    '4d': ('Table 4 (d): fusion', [
        Row('index', paper=BASE), Row('convolutions', 'convs', paper=(32.4, 38.4, 34.5)),
        Row('multiplication', 'multi', paper=(37.7, 39.2, 38.1))]),
    '5': ('Table 5: joint optimization', [
        Row('parsing loss', paper=BASE), Row('no parsing loss', 'no_parsing', paper=(30.1, 41.5, 34.3))]),
    '8': ('Table 8: grid and sigma', [
        Row('grid 20, sigma 0.2', 'grid_20', paper=(33.6, 39.1, 38.7)),
        Row('grid 20, sigma 0.1', 'sigma_01_grid_20', paper=(29.5, 36.2, 33.2)),
        Row('grid 40, sigma 0.2', paper=BASE),
        Row('grid 40, sigma 0.1', 'sigma_01', paper=(41.1, 45.7, 45.5)),
        Row('grid 80, sigma 0.2', 'grid_80', paper=(41.5, 46.0, 46.3)),
        Row('grid 80, sigma 0.1', 'sigma_01_grid_80', paper=(40.8, 45.2, 44.9))]),
    '9': ('Table 9: thresholds', thresholds({
        0.5: [(42.6, 46.2, 46.6), BASE, (42.5, 46.2, 46.5)],
        0.45: [(42.4, 46.0, 46.2), (42.6, 46.1, 46.4), (42.4, 45.9, 46.0)],
        0.55: [(42.3, 45.9, 46.3), (42.6, 46.1, 46.4), (42.2, 45.9, 46.1)]})),
    '6': ('Table 6: light', [Row('full', paper=BASE), Row('light', 'light', paper=(41.1, 45.6, 45.3))]),
    'recipe': ('Recipes', [Row('paper'), Row('released, as many images', 'released'),
                           Row('released, 1,068 images instead of 1,600', 'released_time')]),
    'filter': ('Part filter', [Row('part filter'), Row('no part filter', test=dict(theta_part=0.0))]),
    'peaks': ('Duplicates', [
        Row('5x5 maximum, theta_same 0.6'), Row('5x5 maximum', test=NO_NMS), Row('every cell', test=EVERY_CELL),
        Row('every cell, theta_same 0.6', test=dict(peaks=1)),
        Row('every cell, Matrix NMS (Gaussian)', test=EVERY_CELL, nms='gaussian'),
        Row('every cell, Matrix NMS (linear)', test=EVERY_CELL, nms='linear')]),
}


# ---------------------------------------------------------------------------------------------------------------
# Matrix NMS


class SuppressingParser(UniParser):
    """UniParser with Matrix NMS (`kernel`): people below theta_center after the decay are left out."""

    def predict(self, photos, batch_size=8):
        return [self.suppress(found) for found in super().predict(photos, batch_size)]

    def suppress(self, found):
        found = found._replace(scores=matrix_nms(found.parsing > 0, found.scores, self.kernel))
        order = np.argsort(-found.scores, kind='stable')
        return found.select(order[found.scores[order] > self.config.theta_center])


# ---------------------------------------------------------------------------------------------------------------
# One row


class Study:
    """The rows of a command. args: of the command."""

    def __init__(self, args):
        self.args, self.folder = args, Path(args.out, args.data)
        preset, names = train.preset_of(args.data, None), list(TABLES) if args.table == 'all' else [args.table]
        known = [t for t, changes in TRAININGS.items() if ('samples' not in changes or args.data in DRAWN)
                 and ('recipe' not in changes or f'{preset}_released' in PRESETS)]
        self.tables = {n: (TABLES[n][0], [r for r in TABLES[n][1] if r.training in known]) for n in names}
        rows = {row.name: row for _, rows in self.tables.values() for row in rows}
        self.trainings = {t: [r for r in rows.values() if r.training == t] for t in known}
        given = {'epochs': get_config(preset).epochs, **given_settings(args, Config)}
        self.given = {**given, 'val_every': given['epochs']}

    def path(self, name, seed):
        return self.folder / f'{name}-{seed}'

    def finished(self, name, seed):
        """The metrics of a finished row, else None; ValueError where it was made with other settings."""
        path = self.path(name, seed) / 'metrics.json'
        if not path.exists():
            return None
        record = json.loads(path.read_text())
        if record['given'] != json.loads(json.dumps(self.given)):
            raise ValueError(f'{path} was made with other settings, {record["given"]}; choose another --out')
        return record

    def run(self):
        """Trains and measures what is missing: all trainings with the first seed, then with the second, .."""
        jobs = share_of_process([(t, seed) for seed in self.args.seeds for t, rows in self.trainings.items() if rows])
        if os.environ.pop('RANK', None) and torch.cuda.is_available():           # each training has one process
            torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
        for training, seed in jobs:
            if not self.finished(training, seed):
                self.train(training, seed)
            for row in self.trainings[training]:
                if not self.finished(row.name, seed):
                    self.write(row.name, seed, self.measure(row, seed))
            self.report()

    def train(self, training, seed):
        """Trains, or resumes, and writes the metrics of the last epoch, with the time of this process in seconds."""
        folder, begin = self.path(training, seed), time.process_time()
        changes = {**self.given, **TRAININGS[training], 'seed': seed}
        recipe = changes.pop('recipe', None)
        args = train.parse_arguments(['--device', self.args.device])
        if (folder / 'last.pt').exists():
            args.resume = str(folder)
        else:
            vars(args).update(changes, data=self.args.data, recipe=recipe, root=self.args.root, out=str(folder))
        try:
            result = train.train(args)
        except train.Diverged as error:
            print(f'{folder} diverged: {error}')
            return self.write(training, seed, dict.fromkeys(NAMES, 0.0), diverged=True)
        if not result and read_checkpoint(folder / 'last.pt')['epoch'] < self.given['epochs']:
            raise KeyboardInterrupt                          # it was stopped, and last.pt is where it goes on
        result = result or self.measure(Row('', training), seed)
        self.write(training, seed, result, seconds=round(time.process_time() - begin))

    def measure(self, row, seed):
        """Metrics of a row on the weights of its training."""
        state = self.finished(row.training, seed)
        if state and state.get('diverged'):
            return dict.fromkeys(NAMES, 0.0)
        loaded = SuppressingParser if row.nms else UniParser
        model = loaded.from_pretrained(self.path(row.training, seed) / 'last.pt', self.args.device, **row.test).fold()
        model.kernel = row.nms
        _, val_set = train.open_sets(model.config, self.args.root, False)
        return train.UniParserTask(model.config, model, None, val_set).validate(Run(self.args.device))

    def write(self, name, seed, result, **more):
        numbers = {k: round(100 * result[k], 2) for k in NAMES}
        self.path(name, seed).mkdir(parents=True, exist_ok=True)
        write_json(self.path(name, seed) / 'metrics.json', dict(numbers, **more, given=self.given))
        print(f'{name}, seed {seed}: ' + ' '.join(f'{NAMES[k]} {v:.1f}' for k, v in numbers.items()), flush=True)

    def results(self):
        """{row: {seed: its numbers in percent}} of all finished rows."""
        found = {}
        for name in dict.fromkeys(row.name for _, rows in self.tables.values() for row in rows):
            for seed in self.args.seeds:
                if record := self.finished(name, seed):
                    found.setdefault(name, {})[str(seed)] = {k: v for k, v in record.items() if k != 'given'}
        return found

    def report(self):
        """Writes results.json and results.md, and the numbers into --json too, under `ablation` and the data set."""
        args, found = self.args, self.results()
        given = given_settings(args, Config)
        flags = as_flags({'table': args.table, 'data': args.data, **given, 'seeds': tuple(args.seeds)})
        section = dict(command=f'python -m tools.ablate {flags}',
                       settings=describe(get_config(train.preset_of(args.data, None), **given)),
                       measured=str(date.today()), torch=torch.__version__, device=find_device(args.device),
                       threads=torch.get_num_threads(), rows=found)
        write_json(self.folder / 'results.json', section)
        write_file(self.folder / 'results.md', '\n\n'.join(markdown(n, found, self.tables) for n in self.tables) + '\n')
        if args.json:
            content = json.loads(Path(args.json).read_text()) if os.path.exists(args.json) else {}
            content.setdefault('ablation', {})[args.data] = section
            write_json(args.json, content)
        if args.page:
            write_file(args.page, replace_tables(Path(args.page).read_text(), found, self.tables))


# ---------------------------------------------------------------------------------------------------------------
# Tables


def markdown(name, found, tables=TABLES):
    """One table: the paper's numbers beside the mean and the spread over the seeds. found: as Study.results."""
    title, rows = tables[name]
    head = ['row', 'flags', 'paper', *NAMES.values(), 'seeds']
    lines = [f'**{title}**', '', f'| {" | ".join(head)} |', '| --- ' * len(head) + '|']
    for row in rows:
        paper = ' / '.join(f'{v:.1f}' for v in row.paper) or 'not published'
        seeds = list(found.get(row.name, {}).values())
        cells = [mean_and_spread([s[k] for s in seeds]) if seeds else 'not run' for k in NAMES]
        diverged = sum(s.get('diverged', False) for s in seeds)
        lines.append(f'| {row.text} | {row.flags} | {paper} | ' + ' | '.join(cells) + f' | {len(seeds)}'
                     + (f', {diverged} diverged' if diverged else '') + ' |')
    return '\n'.join(lines)


def replace_tables(page, found, tables=TABLES):
    """A page with the tables replaced that stand below their commands, `.. --table NAME ..`."""
    for name in tables:
        table = markdown(name, found, tables).partition('\n\n')[2]
        page = re.sub(rf'(^ .*--table {name}(?: .*)?\n\n)(?:\|.*\n)+', lambda m: f'{m[1]}{table}\n', page, flags=re.M)
    return page


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('--table', choices=[*TABLES, 'all'], required=True)
    parser.add_argument('--data', choices=list(DATASETS), default='crowd', help='default: crowd, drawn people')
    parser.add_argument('--root', help='folder of the data set, as downloaded')
    parser.add_argument('--seeds', type=Between(0, 2 ** 32), nargs='+', default=[0])
    parser.add_argument('--device', default='auto', choices=['auto', 'cpu', 'cuda', 'mps'])
    parser.add_argument('--out', default='runs/ablate', help='default: runs/ablate')
    parser.add_argument('--json', metavar='FILE', help='also write the numbers into this file')
    parser.add_argument('--page', metavar='FILE', help='also replace the tables in this page, such as docs/results.md')
    fixed = 'data', 'recipe', 'num_classes', 'pretrained_stages', 'seed', 'val_every'
    add_settings(parser, Config, fixed)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    train.run_command(lambda: Study(args).run(), stopped='stopped; the same command continues')


if __name__ == '__main__':
    start(main)
