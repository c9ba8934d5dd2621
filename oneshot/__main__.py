"""The commands: python -m oneshot parse | train | evaluate."""
import argparse

import oneshot
from oneshot.config import DATASETS, Config
from oneshot.evaluation import evaluate
from oneshot.parse import parse
from oneshot.training import train
from train import STOPPED, run_command
from util.cli import (Between, CommandParser, Ending, add_command, add_settings, add_shared, filled,
                      start)
from util.run import add_run_flags
from util.video import add_video_flags

COMMANDS = dict(train=train, evaluate=evaluate, parse=parse)


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = CommandParser(oneshot.__doc__)
    commands = parser.add_subparsers(dest='command', required=True,
                                     metavar='parse | train | evaluate')
    add_train_flags(add_command(
        commands, 'train', 'train on ATR-OS, LIP-OS, CIHP-OS or CCP-OS'))
    add_evaluate_flags(add_command(
        commands, 'evaluate', 'score the test episodes of a data set'))
    add_parse_flags(add_command(
        commands, 'parse', 'parse photos into the classes of an example'))
    return parser.parse_args(argv)


def add_train_flags(command):
    add_shared(command, 'data', 'ATR', choices=DATASETS)
    add_shared(command, 'recipe', 'paper')
    add_run_flags(command)
    command.add_argument('--stage', type=number_or_all, choices=(1, 2, 3, 'all'),
                         default=argparse.SUPPRESS,
                         help='stage of POPNet: 1 people, 2 parents, 3 classes, or one after the '
                              'other (default: all)')
    command.add_argument('--previous', type=filled, metavar='FILE',
                         help='POPNet: best.pt of the stage before')
    command.add_argument('--ablate', action='store_true',
                         help='POPNet: train without stages before that are missing')
    add_settings(command, Config, skip=('data', 'recipe', 'num_labels', 'way', 'stage', 'earlier'),
                 default='the defaults are the released ones')
    add_way(command, argparse.SUPPRESS)


def add_evaluate_flags(command):
    add_shared(command, 'data', choices=DATASETS, default='ATR')
    add_shared(command, 'root')
    command.add_argument('--fold', type=Between(1, 2), default=1,
                         help='fold of novel classes: 1 or 2 (default: %(default)s)')
    add_way(command, 'kway')
    command.add_argument('--agm', action='store_true', help='score the AGM head, too')
    command.add_argument('--list', type=filled, metavar='FILE',
                         help='test episodes: read from it, or written if it does not exist')
    command.add_argument('--json', type=Ending('.json'), metavar='FILE',
                         help='also write the scores to it')
    add_model_flags(command)


def add_parse_flags(command):
    command.add_argument('photos', nargs='+', help='files, folders (searched through) and globs')
    command.add_argument('--support', type=filled, nargs='+', required=True,
                         help='the example: one or several photos')
    command.add_argument('--support-mask', type=filled, nargs='*', default=[],
                         help='masks of the support photos, PNG: ids or colors')
    command.add_argument('--names', type=filled,
                         help='names of the classes: a,b,c or a JSON file')
    command.add_argument('--stored', action='store_true',
                         help="use the stored prototypes; mask ids are then the training set's")
    command.add_argument('--out', type=filled, default='results',
                         help='folder for the results (default: results)')
    command.add_argument('--cutouts', action='store_true',
                         help='also write each person and part as an RGBA picture')
    add_video_flags(command)
    add_model_flags(command)
    # Flags of infer.py that its pipeline asks for.
    command.set_defaults(only=None, maps=False)


def add_model_flags(command):
    command.add_argument('--weights', type=filled, required=True,
                         help='a file of oneshot train, of the authors, or of UniParser')
    add_shared(command, 'device', choices=None)


def add_way(command, default):
    command.add_argument('--way', type=full_way, metavar='{k,1}', default=default,
                         help='all classes at once (k), or one class against the rest (1) '
                              '(default: k)')


def number_or_all(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def full_way(text: str) -> str:
    """argparse type: k and 1 stand for kway and 1way."""
    way = text if text.endswith('way') else text + 'way'
    if way not in ('kway', '1way'):
        raise argparse.ArgumentTypeError(f' is {text}; choose k or 1')
    return way


def main(argv=None):
    args = parse_arguments(argv)
    stopped = STOPPED if args.command == 'train' else 'stopped'
    run_command(COMMANDS[args.command], args, stopped=stopped)


if __name__ == '__main__':
    start(main)
