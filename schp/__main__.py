"""SCHP's commands: python -m schp extract | train | evaluate | fuse | prepare."""
from schp import evaluation, extract, fuse, prepare
from schp.config import SCHPConfig
from schp.data import DATASETS
from schp.training import train
from train import STOPPED, run_command
from util.cli import CommandParser, add_settings, filled, start
from util.labels import LABEL_SETS
from util.run import add_run_flags

USES = ((extract.extract, extract.add_flags, 'the classes of every pixel of photos of one person'),
        (evaluation.evaluate, evaluation.add_flags, 'mIoU, pixel accuracy and mean accuracy of a split'),
        (fuse.fuse, fuse.add_flags, 'the parts of several people, from two networks and person masks'))


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    commands = parser.add_subparsers(required=True, metavar='extract | evaluate | fuse | train | prepare')
    command = commands.add_parser('train', help='train a network through the cycles of self-correction')
    command.set_defaults(function=train)
    command.add_argument('--data', choices=list(DATASETS), help='default: LIP')
    command.add_argument('--recipe', choices=('paper', 'released'), help='default: paper')
    command.add_argument('--weights', type=filled, help='begin with the weights and the cycle of this file')
    command.add_argument('--reset-cycle', action='store_true', help='with --weights: begin with cycle 0')
    add_run_flags(command)
    add_settings(command, SCHPConfig, skip=('data', 'recipe'))
    command = commands.add_parser('prepare', help='write a set with merged labels, in the layout of LIP')
    command.set_defaults(function=prepare.command)
    prepare.add_flags(command)
    for function, add_flags, text in USES:
        command = commands.add_parser(function.__name__, help=text)
        command.set_defaults(function=function)
        add_flags(command)
        command.add_argument('--weights', type=filled, help='a file of the released code or of schp train')
        command.add_argument('--labels', choices=list(LABEL_SETS),
                             help='20 classes: lip (default) or cihp; 9: merged (default) or merged-sep')
        command.add_argument('--device', default='auto', choices=['auto', 'cpu', 'cuda', 'mps'])
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    run_command(args.function, args, stopped=STOPPED if args.function is train else 'stopped')


if __name__ == '__main__':
    start(main)
