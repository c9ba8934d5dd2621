"""SCHP: the parts of one person, from anybody's checkpoint.

    python -m schp extract photos/ --weights exp-schp-201908261155-lip.pth --out parsing/
    python -m schp evaluate --data LIP --root data/LIP --weights F
    python -m schp fuse photo.jpg --weights GLOBAL --local-weights LOCAL
    python -m schp train --data LIP --root data/LIP --pretrained resnet101-imagenet.pth
    python -m schp prepare --data DeepFashion --root DIR --out NEW

schp/README.md describes the commands.
"""
import argparse
from collections.abc import Sequence

from schp import evaluation, extract, fuse, prepare, training
from schp.config import SCHPConfig
from schp.data import DATASETS
from train import STOPPED, run_command
from util.cli import CommandParser, add_command, add_settings, add_shared, filled, start
from util.labels import LABEL_SETS
from util.run import add_run_flags


def add_train_flags(parser: argparse.ArgumentParser):
    add_shared(parser, 'data', 'LIP', choices=list(DATASETS))
    add_shared(parser, 'recipe', 'paper')
    parser.add_argument('--weights', type=filled,
                        help='file to begin with: its weights and its cycle')
    parser.add_argument('--reset-cycle', action='store_true',
                        help='with --weights: begin with cycle 0')
    add_run_flags(parser)
    add_settings(parser, SCHPConfig, skip=('data', 'recipe'))


def add_network_flags(parser: argparse.ArgumentParser):
    """The flags of commands that use a trained network."""
    parser.add_argument('--weights', type=filled,
                        help='a file of the released code or of schp train')
    parser.add_argument('--labels', choices=list(LABEL_SETS),
                        help='label set of the weights: 20 classes, lip (default) or cihp; 9, '
                             'merged (default) or merged-sep')
    add_shared(parser, 'device')


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a command, and its function as `function`."""
    parser = CommandParser(__doc__)
    commands = parser.add_subparsers(required=True,
                                     metavar='extract | evaluate | fuse | train | prepare')

    command = add_command(commands, 'extract',
                          'the classes of every pixel of photos of one person', extract.__doc__)
    extract.add_flags(command)
    add_network_flags(command)
    command.set_defaults(function=extract.extract)

    command = add_command(commands, 'evaluate',
                          'mIoU, pixel accuracy and mean accuracy of a split', evaluation.__doc__)
    evaluation.add_flags(command)
    add_network_flags(command)
    command.set_defaults(function=evaluation.evaluate)

    command = add_command(commands, 'fuse',
                          'the parts of several people, from two networks and person masks',
                          fuse.__doc__)
    fuse.add_flags(command)
    add_network_flags(command)
    command.set_defaults(function=fuse.fuse)

    command = add_command(commands, 'train',
                          'train a network through the cycles of self-correction')
    add_train_flags(command)
    command.set_defaults(function=training.train)

    command = add_command(commands, 'prepare',
                          'write a set with merged labels, in the layout of LIP', prepare.__doc__)
    prepare.add_flags(command)
    command.set_defaults(function=prepare.command)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None):
    args = parse_arguments(argv)
    # A stopped training says so itself; before it begins, this sentence does.
    stopped = STOPPED if args.function is training.train else 'stopped'
    run_command(args.function, args, stopped=stopped)


if __name__ == '__main__':
    start(main)
