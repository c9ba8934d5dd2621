"""Times on this machine, and sizes.

    python -m tools.benchmark infer        # from reading a photo to writing its results
    python -m tools.benchmark infer --preset mhp --size 512 512
    python -m tools.benchmark schp         # SCHP's network on a crop, or --network segformer
    python -m tools.benchmark train        # the data pipeline, the steps, and both
    python -m tools.benchmark parameters

Beside milliseconds stands the unit "ResNet-50": the time of one forward of torchvision's plain
ResNet-50 in float32 on an image of the same size, measured alternately with the rest; on a CPU the
process time of all threads. The unit makes numbers of different machines comparable.
"""
from pathlib import Path

from infer import add_model_flags
from schp import NETWORKS
from tools.benchmark.inference import benchmark_inference
from tools.benchmark.schp import benchmark_schp
from tools.benchmark.sizes import count_parameters
from tools.benchmark.training import benchmark_training
from uniparser import PRESETS, Config
from util.cli import Between, CommandParser, add_command, add_settings, add_shared, start
from util.datasets import DATASETS
from util.files import user_errors
from util.labels import LABEL_SETS

PHOTO = Path(__file__).parents[2] / 'assets' / 'street.jpg'


def parse_arguments(argv=None):
    parser = CommandParser(__doc__, prog='python -m tools.benchmark')
    commands = parser.add_subparsers(required=True, metavar='infer | schp | train | parameters')
    command = add_command(commands, 'infer', 'from reading a photo to writing its results')
    command.set_defaults(function=benchmark_inference)
    add_inference_flags(command)
    command = add_command(commands, 'schp', "SCHP's network on a crop")
    command.set_defaults(function=benchmark_schp)
    add_schp_flags(command)
    command = add_command(commands, 'train',
                          'images/s of training; MHP without --root: on drawn files')
    command.set_defaults(function=benchmark_training)
    add_training_flags(command)
    command = add_command(commands, 'parameters', 'parameters of all presets')
    command.set_defaults(function=count_parameters)
    return parser.parse_args(argv)


def add_inference_flags(parser):
    parser.add_argument('photo', nargs='?', default=str(PHOTO),
                        help='photo to parse (default: assets/street.jpg)')
    parser.add_argument('--preset', choices=list(PRESETS),
                        help='an untrained network instead of weights')
    parser.add_argument('--light', action='store_true', help='with --preset: UniParser_light')
    parser.add_argument('--size', type=Between(1, 10000), nargs=2, metavar=('H', 'W'),
                        help='size of the photo, in pixels (default: its own)')
    parser.add_argument('--decode', type=Between(1, 255), default=10,
                        help='people to decode (default: 10)')
    parser.add_argument('--onnx', metavar='FILE',
                        help='file of the same network (tools.export), timed in ONNX Runtime')
    add_model_flags(parser)


def add_schp_flags(parser):
    parser.add_argument('--network', choices=list(NETWORKS), default='ace2p',
                        help="SCHP's own network or the SegFormer variant (default: %(default)s)")
    parser.add_argument('--labels', choices=list(LABEL_SETS),
                        help='label set of the network (default: lip, of segformer merged)')
    parser.add_argument('--repeats', type=Between(1, 10 ** 6), default=5,
                        help='measurements (default: %(default)s)')
    add_shared(parser, 'device')


def add_training_flags(parser):
    add_shared(parser, 'data', choices=list(DATASETS), default='synthetic')
    add_shared(parser, 'root')
    add_shared(parser, 'recipe', 'paper')
    add_shared(parser, 'device')
    add_shared(parser, 'amp')
    add_settings(parser, Config, skip=('data', 'recipe', 'num_classes', 'pretrained_stages'))


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        args.function(args)


if __name__ == '__main__':
    start(main)
