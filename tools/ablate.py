"""Trains and measures the rows of the paper's tables.

On drawn crowds a row takes a minute; on a data set, it is the paper's own training.

    python -m tools.ablate --table 4a                              # on drawn crowds, on a CPU
    python -m tools.ablate --table all --seeds 0 1 2
    python -m tools.ablate --table all --data MHP --root DIR       # the paper's own, on a GPU
    torchrun --nproc-per-node 8 -m tools.ablate --table all --data MHP --root DIR

torchrun's processes share the trainings. A row and seed has a folder OUT/DATA/ROW-SEED. It is
finished once it has metrics.json; the same command skips finished rows and resumes the others. Rows
of one training, such as thresholds, share its weights. Settings of train.py, such as --epochs 36,
change the base of all rows. OUT/DATA/results.md has the tables, results.json the numbers; --json
docs/results.json --page docs/results.md brings both into the documents.
"""
import json
import os
import re
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import train
from uniparser import PRESETS, Config, UniParser, get_config
from util.checkpoints import read_checkpoint
from util.cli import (Between, CommandParser, Ending, add_settings, add_shared, as_flags,
                      describe, filled, given_settings, start)
from util.datasets import DATASETS, DRAWN
from util.files import naming, read_json, write_file, write_json
from util.masks import matrix_nms
from util.photos import share_of_process
from util.reports import mean_and_spread
from util.run import Run, find_device

METRICS = dict(AP50='AP^p_50', APvol='AP^p_vol', PCP50='PCP_50', mIoU='mIoU')
# What a training changes in the base, in the order in which they run: one of each table first.
TRAININGS = {
    'base': {},
    'no_metric': dict(lambda_metric=0.0),
    'no_aux': dict(lambda_ins=0.0, lambda_cate=0.0, lambda_neg=0.0),
    'no_parsing': dict(lambda_par=0.0),
    'inner': dict(space='inner'),
    'convs': dict(fusion='convs'),
    'light': dict(light=True),
    'released': dict(recipe='released'),
    'grid_20': dict(grid=20),
    'only_ins': dict(lambda_cate=0.0, lambda_neg=0.0),
    'only_cate': dict(lambda_ins=0.0),
    'multi': dict(fusion='multi'),
    'sigmoid_after': dict(space='sigmoid_after'),
    'sigmoid_before': dict(space='sigmoid_before'),
    'sigma_01': dict(sigma=0.1),
    'grid_80': dict(grid=80),
    'released_time': dict(recipe='released', samples=1068),
    'sigma_01_grid_20': dict(sigma=0.1, grid=20),
    'sigma_01_grid_80': dict(sigma=0.1, grid=80),
}


# --------------------------------------------------------------------------------------------------
# The paper's tables


class Row(NamedTuple):
    """A row of a table."""
    text: str
    training: str = 'base'       # one of TRAININGS
    test: dict = {}              # changes of inference settings
    nms: str = ''                # the kernel of Matrix NMS: gaussian, linear, or none
    paper: tuple = ()            # its AP^p_50, AP^p_vol, PCP_50, where it has the row

    @property
    def name(self) -> str:
        """Names folders: the training, then what inference changes."""
        words = [self.training]
        words += [f'{name}={value}' for name, value in self.test.items()]
        if self.nms:
            words.append(f'{self.nms}-nms')
        return '+'.join(words)

    @property
    def flags(self) -> str:
        """What the row adds to train.py and infer.py."""
        flags = as_flags({**TRAININGS[self.training], **self.test})
        return f'`{flags}`' if flags else ''


BASE = 42.8, 46.3, 46.7
NO_NMS = dict(theta_same=1.0)
EVERY_CELL = dict(theta_same=1.0, peaks=1)


def threshold_rows() -> list:
    """Table 9. The base has theta_mask 0.5 and theta_center 0.1."""
    published = {                # theta_mask: results with theta_center 0.2, 0.1, 0.05
        0.5: [(42.6, 46.2, 46.6), BASE, (42.5, 46.2, 46.5)],
        0.45: [(42.4, 46.0, 46.2), (42.6, 46.1, 46.4), (42.4, 45.9, 46.0)],
        0.55: [(42.3, 45.9, 46.3), (42.6, 46.1, 46.4), (42.2, 45.9, 46.1)],
    }
    rows = []
    for mask, papers in published.items():
        for center, paper in zip((0.2, 0.1, 0.05), papers):
            is_base = (mask, center) == (0.5, 0.1)
            test = {} if is_base else dict(theta_mask=mask, theta_center=center)
            text = f'theta_mask {mask}, theta_center {center}'
            rows.append(Row(text, test=test, paper=paper))
    return rows


TABLES = {
    '4a': ('Table 4 (a): metric loss and Matrix NMS', [
        Row('no metric loss', 'no_metric', NO_NMS, '', (34.6, 43.6, 41.9)),
        Row('no metric loss, Matrix NMS', 'no_metric', NO_NMS, 'gaussian', (34.6, 43.6, 41.9)),
        Row('metric loss', 'base', NO_NMS, '', BASE),
        Row('metric loss, Matrix NMS', 'base', NO_NMS, 'gaussian', BASE),
    ]),
    '4b': ('Table 4 (b): auxiliary loss (*)', [
        Row('no auxiliary loss', 'no_aux', paper=(15.9, 34.6, 27.3)),
        Row('instances alone', 'only_ins', paper=(35.5, 42.7, 27.0)),
        Row('categories alone', 'only_cate', paper=(29.4, 42.0, 38.6)),
        Row('both', paper=BASE),
    ]),
    '4c': ('Table 4 (c): metric space', [
        Row('cosine', paper=BASE),
        Row('inner product', 'inner', paper=(37.6, 42.9, 45.1)),
        Row('sigmoid after the product', 'sigmoid_after', paper=(0.2, 0.1, 0.3)),
        Row('sigmoid before the product', 'sigmoid_before', paper=(0.0, 0.0, 0.0)),
    ]),
    '4d': ('Table 4 (d): fusion', [
        Row('index', paper=BASE),
        Row('convolutions', 'convs', paper=(32.4, 38.4, 34.5)),
        Row('multiplication', 'multi', paper=(37.7, 39.2, 38.1)),
    ]),
    '5': ('Table 5: joint optimization', [
        Row('parsing loss', paper=BASE),
        Row('no parsing loss', 'no_parsing', paper=(30.1, 41.5, 34.3)),
    ]),
    '8': ('Table 8: grid and sigma', [
        Row('grid 20, sigma 0.2', 'grid_20', paper=(33.6, 39.1, 38.7)),
        Row('grid 20, sigma 0.1', 'sigma_01_grid_20', paper=(29.5, 36.2, 33.2)),
        Row('grid 40, sigma 0.2', paper=BASE),
        Row('grid 40, sigma 0.1', 'sigma_01', paper=(41.1, 45.7, 45.5)),
        Row('grid 80, sigma 0.2', 'grid_80', paper=(41.5, 46.0, 46.3)),
        Row('grid 80, sigma 0.1', 'sigma_01_grid_80', paper=(40.8, 45.2, 44.9)),
    ]),
    '9': ('Table 9: thresholds', threshold_rows()),
    '6': ('Table 6: light', [
        Row('full', paper=BASE),
        Row('light', 'light', paper=(41.1, 45.6, 45.3)),
    ]),
    # The next tables are not in the paper.
    'recipe': ('Recipes', [
        Row('paper'),
        Row('released, as many images', 'released'),
        Row('released, 1,068 images instead of 1,600', 'released_time'),
    ]),
    'filter': ('Part filter', [
        Row('part filter'),
        Row('no part filter', test=dict(theta_part=0.0)),
    ]),
    'peaks': ('Duplicates', [
        Row('5x5 maximum, theta_same 0.6'),
        Row('5x5 maximum', test=NO_NMS),
        Row('every cell', test=EVERY_CELL),
        Row('every cell, theta_same 0.6', test=dict(peaks=1)),
        Row('every cell, Matrix NMS (Gaussian)', test=EVERY_CELL, nms='gaussian'),
        Row('every cell, Matrix NMS (linear)', test=EVERY_CELL, nms='linear'),
    ]),
}


# --------------------------------------------------------------------------------------------------
# Training and measuring


class SuppressingUniParser(UniParser):
    """UniParser with Matrix NMS (`kernel`). People whose score falls below theta_center are left
    out."""

    def predict(self, photos, **options):
        return [self.suppress(found) for found in super().predict(photos, **options)]

    def suppress(self, found):
        found = replace(found, scores=matrix_nms(found.parsing > 0, found.scores, self.kernel))
        order = np.argsort(-found.scores, kind='stable')
        return found.take(order[found.scores[order] > self.config.theta_center])


class Study:
    """The rows of a command. args: of the command."""

    def __init__(self, args):
        self.args = args
        self.folder = Path(args.out, args.data)
        preset = train.preset_of(args.data, None)
        # {name of a table: (title, its rows that the data set can have)}
        self.tables = {}
        known = [name for name in TRAININGS if can_train(name, args.data, preset)]
        for name in TABLES if args.table == 'all' else [args.table]:
            title, rows = TABLES[name]
            self.tables[name] = title, [row for row in rows if row.training in known]
        # Several tables share a row.
        self.rows = {row.name: row for _, rows in self.tables.values() for row in rows}
        self.trainings = {name: [row for row in self.rows.values() if row.training == name]
                          for name in known}
        self.settings = given_settings(args, Config)
        epochs = self.settings.get('epochs', get_config(preset).epochs)
        # A training is validated at its end alone.
        self.given = {'epochs': epochs, **self.settings, 'val_every': epochs}

    def path(self, name: str, seed: int) -> Path:
        return self.folder / f'{name}-{seed}'

    def finished(self, name: str, seed: int) -> dict | None:
        """The metrics of a finished row, else None. ValueError where it had other settings."""
        path = self.path(name, seed) / 'metrics.json'
        if not path.exists():
            return None
        record = read_json(path)
        given = record.get('given')
        if given != json.loads(json.dumps(self.given)):
            raise ValueError(f'{path} was made with other settings, {given}; choose another --out')
        return record

    def run(self):
        """Trains and measures what is missing: all trainings with the first seed, then with the
        second, and so on."""
        jobs = [(name, seed) for seed in self.args.seeds
                for name, rows in self.trainings.items() if rows]
        jobs = share_of_process(jobs)
        self.read_documents()                     # after hours of training is too late
        # Each training has one process, with a GPU of its own.
        if os.environ.pop('RANK', None) and torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
        for training, seed in jobs:
            if not self.finished(training, seed):
                self.train(training, seed)
            for row in self.trainings[training]:
                if not self.finished(row.name, seed):
                    self.write(row.name, seed, self.measure(row, seed))
            self.report()

    def train(self, training: str, seed: int):
        """Trains, or resumes, and writes the metrics of the last epoch, with the seconds of this
        process."""
        begin = time.process_time()
        folder = self.path(training, seed)
        try:
            result = train.train(self.training_arguments(training, seed))
        except train.Diverged as error:
            print(f'{folder} diverged: {error}')
            self.write(training, seed, dict.fromkeys(METRICS, 0.0), diverged=True)
            return
        if not result and read_checkpoint(folder / 'last.pt')['epoch'] < self.given['epochs']:
            # It was stopped; last.pt is where it goes on.
            raise KeyboardInterrupt
        result = result or self.measure(Row('', training), seed)
        self.write(training, seed, result, seconds=round(time.process_time() - begin))

    def training_arguments(self, training, seed):
        """Those of train.py."""
        folder = self.path(training, seed)
        args = train.parse_arguments(['--device', self.args.device])
        if (folder / 'last.pt').exists():
            args.resume = str(folder)
            return args
        changes = {**self.given, **TRAININGS[training], 'seed': seed}
        args.recipe = changes.pop('recipe', None)
        args.data = self.args.data
        args.root = self.args.root
        args.out = str(folder)
        vars(args).update(changes)
        return args

    def measure(self, row: Row, seed: int) -> dict:
        """Metrics of a row on the weights of its training."""
        state = self.finished(row.training, seed)
        if state and state.get('diverged'):
            return dict.fromkeys(METRICS, 0.0)
        network = SuppressingUniParser if row.nms else UniParser
        path = self.path(row.training, seed) / 'last.pt'
        model = network.from_pretrained(path, self.args.device, **row.test).fold()
        model.kernel = row.nms
        _, val_set = train.open_sets(model.config, self.args.root, False)
        task = train.UniParserTask(model.config, model, None, val_set)
        return task.validate(Run(self.args.device))

    def write(self, name: str, seed: int, result: dict, **more):
        """Writes metrics.json of a row. result: metrics in 0..1; more: is stored beside them."""
        numbers = {key: round(100 * result[key], 2) for key in METRICS}
        folder = self.path(name, seed)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / 'metrics.json', dict(numbers, **more, given=self.given))
        text = ' '.join(f'{METRICS[key]} {value:.1f}' for key, value in numbers.items())
        print(f'{name}, seed {seed}: {text}', flush=True)

    def results(self) -> dict:
        """{row: {seed: its numbers in percent}} of all finished rows."""
        found = {}
        for name in self.rows:
            for seed in self.args.seeds:
                record = self.finished(name, seed)
                if record:
                    del record['given']
                    found.setdefault(name, {})[str(seed)] = record
        return found

    def report(self):
        """Writes results.json and results.md; the numbers into --json, too, under `ablation` and
        the data set, and the tables into --page."""
        args = self.args
        found = self.results()
        flags = {'table': args.table, 'data': args.data, **self.settings,
                 'seeds': tuple(args.seeds)}
        config = get_config(train.preset_of(args.data, None), **self.settings)
        section = dict(command=f'python -m tools.ablate {as_flags(flags)}',
                       settings=describe(config), measured=str(date.today()),
                       torch=torch.__version__, device=find_device(args.device),
                       threads=torch.get_num_threads(), rows=found)
        write_json(self.folder / 'results.json', section)
        tables = [markdown(name, found, self.tables) for name in self.tables]
        write_file(self.folder / 'results.md', '\n\n'.join(tables) + '\n')
        content, page = self.read_documents()
        if args.json:
            content.setdefault('ablation', {})[args.data] = section
            write_json(args.json, content)
        if args.page:
            write_file(args.page, replace_tables(page, found, self.tables))

    def read_documents(self) -> tuple[dict, str]:
        """The present content of --json and of --page."""
        args = self.args
        content = {}
        page = ''
        if args.json and os.path.exists(args.json):
            content = read_json(args.json)
        if args.page:
            with naming(args.page, '--page is a page that exists'):
                page = Path(args.page).read_text()
        return content, page


def can_train(training: str, data: str, preset: str) -> bool:
    """Whether a data set can have a training: only drawn sets have a number of samples, and some
    presets have no released recipe."""
    changes = TRAININGS[training]
    if 'samples' in changes and data not in DRAWN:
        return False
    return 'recipe' not in changes or f'{preset}_released' in PRESETS


# --------------------------------------------------------------------------------------------------
# Tables as text


def markdown(name: str, found: dict, tables: dict = TABLES) -> str:
    """One table: the paper's numbers beside the mean and the spread over the seeds. found: as of
    Study.results."""
    title, rows = tables[name]
    head = ['row', 'flags', 'paper', *METRICS.values(), 'seeds']
    lines = [f'**{title}**', '', f'| {" | ".join(head)} |', '| --- ' * len(head) + '|']
    for row in rows:
        paper = ' / '.join(f'{value:.1f}' for value in row.paper) or 'not published'
        seeds = list(found.get(row.name, {}).values())
        cells = ['not run'] * len(METRICS)
        if seeds:
            cells = [mean_and_spread([numbers[key] for numbers in seeds]) for key in METRICS]
        count = str(len(seeds))
        diverged = sum(numbers.get('diverged', False) for numbers in seeds)
        if diverged:
            count += f', {diverged} diverged'
        lines.append(f'| {" | ".join([row.text, row.flags, paper, *cells, count])} |')
    return '\n'.join(lines)


def replace_tables(page: str, found: dict, tables: dict = TABLES) -> str:
    """A page with the tables replaced that stand below their commands, `.. --table NAME ..`."""
    for name in tables:
        _, _, table = markdown(name, found, tables).partition('\n\n')
        below_command = rf'(^ .*--table {name}(?: .*)?\n\n)(?:\|.*\n)+'
        page = re.sub(below_command, lambda match: f'{match[1]}{table}\n', page, flags=re.M)
    return page


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('--table', choices=[*TABLES, 'all'], required=True,
                        help='table of the paper')
    add_shared(parser, 'data', choices=list(DATASETS), default='crowd',
               help='data set; crowd: drawn people')
    add_shared(parser, 'root')
    parser.add_argument('--seeds', type=Between(0, 2 ** 32), nargs='+', default=[0],
                        help='seeds; each row is trained once with each (default: 0)')
    add_shared(parser, 'device')
    parser.add_argument('--out', type=filled, default='runs/ablate',
                        help='folder of the runs and the tables (default: %(default)s)')
    parser.add_argument('--json', type=Ending('.json'), metavar='FILE',
                        help='also write the numbers into this file')
    parser.add_argument('--page', type=Ending('.md'), metavar='FILE',
                        help='also replace the tables in this page, such as docs/results.md')
    fixed = 'data', 'recipe', 'num_classes', 'pretrained_stages', 'seed', 'val_every'
    add_settings(parser, Config, fixed)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    stopped = 'stopped; the same command continues'
    train.run_command(lambda: Study(args).run(), stopped=stopped)


if __name__ == '__main__':
    start(main)
