"""Times and memory on this machine, and sizes.

    python -m tools.benchmark infer        # from reading a photo to writing its results
    python -m tools.benchmark infer --preset mhp --size 512 512
    python -m tools.benchmark peers        # beside Mask R-CNN with a parser on every crop
    python -m tools.benchmark scale        # how both grow: people, megapixels, photos, processes
    python -m tools.benchmark schp         # SCHP's network on a crop, or --network segformer
    python -m tools.benchmark train        # the data pipeline, the steps, and both
    python -m tools.benchmark gpu          # networks, precisions and modes of a GPU in 8 minutes
    python -m tools.benchmark parameters
    python -m tools.benchmark report       # tables and charts of docs/speed.json

Beside milliseconds stands the unit "ResNet-50": the time of one forward of torchvision's plain
ResNet-50 in float32 on an image of the same size, measured alternately with the rest; on a CPU the
process time of all threads. The unit makes numbers of different machines comparable. With --json
FILE, the numbers are merged into a file, such as docs/speed.json, with date and machine.
"""
import sys

from infer import add_model_flags
from schp import NETWORKS
from tools.benchmark.gpu import BUDGET, benchmark_gpu
from tools.benchmark.inference import benchmark_inference
from tools.benchmark.peers import PIPELINES, benchmark_peers
from tools.benchmark.record import PHOTO, command_of, open_record
from tools.benchmark.report import write_report
from tools.benchmark.scale import benchmark_scale, names_of_series
from tools.benchmark.schp import benchmark_schp
from tools.benchmark.sizes import count_parameters
from tools.benchmark.training import benchmark_training
from uniparser import PRESETS, Config
from util.cli import (Between, CommandParser, Ending, add_command, add_settings, add_shared, filled,
                      start)
from util.datasets import DATASETS
from util.files import user_errors
from util.labels import LABEL_SETS


def parse_arguments(argv=None):
    parser = CommandParser(__doc__, prog='python -m tools.benchmark')
    words = 'infer | peers | scale | schp | train | gpu | parameters | report'
    commands = parser.add_subparsers(required=True, metavar=words)

    def add(name, function, add_flags, help):
        command = add_command(commands, name, help)
        command.set_defaults(function=function)
        add_flags(command)

    add('infer', benchmark_inference, add_inference_flags,
        'from reading a photo to writing its results')
    add('peers', benchmark_peers, add_peer_flags,
        "UniParser beside Mask R-CNN with a network on every person's crop")
    add('scale', benchmark_scale, add_scale_flags, 'how time and peak memory grow')
    add('schp', benchmark_schp, add_schp_flags, "SCHP's network on a crop")
    add('train', benchmark_training, add_training_flags,
        'images/s of training; MHP without --root: on drawn files')
    add('gpu', benchmark_gpu, add_gpu_flags, 'networks, precisions and modes of a GPU')
    add('parameters', count_parameters, lambda command: None, 'parameters of all presets')
    add('report', write_report, add_report_flags, 'tables and charts of a file of numbers')
    args = parser.parse_args(argv)
    args.command = command_of(sys.argv[1:] if argv is None else argv)
    return args


def add_json(parser):
    parser.add_argument('--json', type=Ending('.json'), metavar='FILE',
                        help='merge the numbers into this file')


def add_peer_flags(parser):
    add_photo(parser)
    parser.add_argument('--decode', type=Between(1, 100), nargs='+', default=[1, 3, 10],
                        metavar='N', help='people in the photo (default: 1 3 10)')
    parser.add_argument('--only', choices=list(PIPELINES), nargs='+', metavar='NAME',
                        help=f'these pipelines alone, of {", ".join(map(repr, PIPELINES))}')
    parser.add_argument('--repeats', type=Between(1, 1000), default=3,
                        help='measurements of each (default: %(default)s)')
    add_json(parser)


def add_scale_flags(parser):
    add_photo(parser)
    parser.add_argument('--only', type=names_of_series, metavar='NAMES',
                        help='some of people,megapixels,crowd,folder,images,processes')
    parser.add_argument('--photos', type=Between(1, 10 ** 6), default=40,
                        help='photos of the folder for one and two processes '
                             '(default: %(default)s)')
    parser.add_argument('--tiny', action='store_true', help='a few small points, to try it')
    add_json(parser)


def add_gpu_flags(parser):
    add_photo(parser)
    add_shared(parser, 'device')
    parser.add_argument('--seconds', type=Between(1, 10 ** 6), default=BUDGET,
                        help='start no row after these (default: %(default)s)')
    parser.add_argument('--tiny', action='store_true', help='small networks, to try it on a CPU')
    add_json(parser)


def add_report_flags(parser):
    parser.add_argument('--json', type=Ending('.json'), default='docs/speed.json', metavar='FILE',
                        help='the file of numbers (default: %(default)s)')
    parser.add_argument('--charts', type=filled, metavar='FOLDER',
                        help='draw the charts there (pip install matplotlib)')


def add_photo(parser):
    parser.add_argument('photo', nargs='?', default=str(PHOTO),
                        help='photo to parse (default: assets/street.jpg)')


def add_inference_flags(parser):
    add_photo(parser)
    parser.add_argument('--preset', choices=list(PRESETS),
                        help='an untrained network instead of weights')
    parser.add_argument('--light', action='store_true', help='with --preset: UniParser_light')
    parser.add_argument('--size', type=Between(1, 10000), nargs=2, metavar=('H', 'W'),
                        help='size of the photo, in pixels (default: its own)')
    parser.add_argument('--decode', type=Between(1, 100), default=10,
                        help='people to decode (default: 10)')
    parser.add_argument('--onnx', metavar='FILE',
                        help='file of the same network (tools.export), timed in ONNX Runtime')
    add_json(parser)
    add_model_flags(parser)


def add_schp_flags(parser):
    parser.add_argument('--network', choices=list(NETWORKS), default='ace2p',
                        help="SCHP's own network or the SegFormer variant (default: %(default)s)")
    parser.add_argument('--labels', choices=list(LABEL_SETS),
                        help='label set of the network (default: lip, of segformer merged)')
    parser.add_argument('--repeats', type=Between(1, 10 ** 6), default=5,
                        help='measurements (default: %(default)s)')
    add_shared(parser, 'device')
    add_json(parser)


def add_training_flags(parser):
    add_shared(parser, 'data', choices=list(DATASETS), default='synthetic')
    add_shared(parser, 'root')
    add_shared(parser, 'recipe', 'paper')
    add_shared(parser, 'device')
    add_shared(parser, 'amp')
    add_json(parser)
    add_settings(parser, Config, skip=('data', 'recipe', 'num_classes', 'pretrained_stages'))


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        if args.function not in (count_parameters, write_report):
            open_record(args.json)
        args.function(args)


if __name__ == '__main__':
    start(main)
