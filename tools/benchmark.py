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
import copy
import itertools
import math
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image, ImageDraw
from torch.utils.flop_counter import FlopCounterMode

import data
from infer import add_model_flags, load_model
from schp import NETWORKS, build
from schp.config import SCHPConfig
from schp.config import preset as schp_preset
from train import UniParserTask, make_loader, open_sets, preset_of, train_step
from uniparser import INFERENCE, PRESETS, Config, UniParser, decode, find_centers, get_config
from util.cli import (Between, CommandParser, add_command, add_settings, add_shared,
                      given_settings, start)
from util.datasets import DATASETS
from util.files import user_errors
from util.images import read_photo
from util.labels import LABEL_SETS
from util.pictures import overlay
from util.results import write_results
from util.run import Run, find_device, memory, synchronize
from util.workers import read_batches, workers_of

PHOTO = Path(__file__).parent.parent / 'assets' / 'street.jpg'
REPEATS = 10                                 # of each step of inference
WARM_UP = 2                                  # repeats that are not counted
BANDS = 6                                    # parts of a planted person
SECONDS = 30                                 # for each rate of training, at most
BACKGROUND = -9.0                            # logit of a cell of the heat map without a center


class Clock:
    """Median wall and process milliseconds of named functions, called alternately."""

    def __init__(self, device):
        self.device = device
        self.wall = {}
        self.process = {}

    def __call__(self, name: str, function, *arguments):
        """Calls the function, keeps its times under the name, and returns its result."""
        wall = time.perf_counter()
        process = time.process_time()
        result = function(*arguments)
        synchronize(self.device)
        self.wall.setdefault(name, []).append(1000 * (time.perf_counter() - wall))
        self.process.setdefault(name, []).append(1000 * (time.process_time() - process))
        return result

    def median(self, name: str) -> tuple[float, float]:
        return statistics.median(self.wall[name]), statistics.median(self.process[name])

    def cost(self, name: str) -> float:
        """Milliseconds for the unit: on a CPU the time of all threads."""
        wall, process = self.median(name)
        return process if self.device.type == 'cpu' else wall


def multiply_adds(function, *arguments) -> int:
    """Multiply-adds of the convolutions and matrix products of a call, without those of the
    sampling in deformable convolutions."""
    def deform_conv2d(x, weight, *_, out_shape, **__):
        return 2 * math.prod(out_shape) * math.prod(weight[1:])

    counted = {torch.ops.torchvision.deform_conv2d: deform_conv2d}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        function(*arguments)
    return counter.get_total_flops() // 2


def describe_machine(size, device: torch.device) -> str:
    """The start of every table: size of the images, device, threads, version of torch."""
    return (f'{"x".join(map(str, size))}, {device}, {torch.get_num_threads()} threads, '
            f'torch {torch.__version__}')


# --------------------------------------------------------------------------------------------------
# Inference


def plant_people(out: dict, people: int, config: Config) -> dict:
    """Outputs of the network in which people stand side by side, of BANDS parts each.

    Args:
        out: outputs of a UniParser for one photo, which give the sizes.
        people: their number; at most C - 1, because kernels are orthogonal.
    """
    S = config.grid
    C, h, w = out['f_ins'].shape[1:]
    K = len(out['k_cate'])
    people = min(people, C - 1)
    unit = torch.eye(C)
    heatmap = torch.full((S, S), BACKGROUND)
    k_ins = torch.zeros(C, S, S)
    f_ins = torch.zeros(C, h, w)
    f_cate = torch.zeros(C, h, w)
    # The background has a direction of its own in both spaces.
    f_ins[people] = 1
    f_cate[C - 1] = 1
    for n in range(people):
        x0 = int((n + 0.1) * w / people)
        x1 = max(int((n + 0.9) * w / people), x0 + 1)
        y0 = h // 8
        y1 = h - h // 8
        f_ins[:, y0:y1, x0:x1] = unit[n].view(-1, 1, 1)
        for band in range(BANDS):
            top = y0 + band * (y1 - y0) // BANDS
            bottom = y0 + (band + 1) * (y1 - y0) // BANDS
            category = (n + band) % min(K, C - 1)
            f_cate[:, top:bottom, x0:x1] = unit[category].view(-1, 1, 1)
        # A center is the maximum of 5x5 cells: neighbors are four rows apart.
        row = S // 2 - 6 + 4 * (n % 4)
        column = (x0 + x1) * S // (2 * w)
        heatmap[row, column] = 5 - n / people
        k_ins[:, row, column] = unit[n]
    planted = dict(heatmap=heatmap[None, None], f_ins=f_ins[None], k_ins=k_ins[None],
                   f_cate=f_cate[None], k_cate=unit[:K], flip_pairs=out['flip_pairs'])
    return {name: tensor.to(out['f_ins'].device) for name, tensor in planted.items()}


def start_onnx(path: str):
    """A session of ONNX Runtime with torch's number of threads."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ModuleNotFoundError('--onnx needs onnxruntime; pip install onnxruntime') from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])


def time_steps(model: UniParser, photo: Image.Image, people: int, session=None) -> tuple:
    """Times the steps from reading a photo to writing its results.

    Args:
        model: folded.
        photo: RGB.
        people: decoding is timed with this many planted people, and with one.
        session: the same network in ONNX Runtime, or None.

    Returns a Clock and the network's input.
    """
    device = model.device
    config = model.config
    geometry = data.input_geometry(photo, config)
    images = data.network_input(photo, config, geometry)
    images = images.to(device, memory_format=torch.channels_last)
    plain = torchvision.models.resnet50().eval().to(device)
    out = model.outputs(images)
    planted = {}
    for number in sorted({1, people}):
        scene = plant_people(out, number, config)
        planted[len(find_centers(scene['heatmap'][0, 0], config)[0])] = scene
    clock = Clock(device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'photo.jpg')
        photo.save(file, quality=95)
        for repeat in range(WARM_UP + REPEATS):
            if repeat == WARM_UP:
                clock = Clock(device)
            clock('plain ResNet-50', plain, images)
            clock('load', read_photo, file)
            clock('preprocess', data.network_input, photo, config)
            features = clock('backbone', model.backbone, images)
            pyramid = clock('FPN', model.pyramid, features)
            clock('heads', model.heads, pyramid)
            clock('network', model.outputs, images)
            if session:
                clock('ONNX Runtime', session.run, None, dict(image=images.cpu().numpy()))
            for number, scene in planted.items():
                found = clock(f'decode {number}', decode, scene, 0, geometry, config)
            clock('overlay', overlay, photo, found.parsing, model.class_names)
            found = replace(found, class_names=model.class_names, photo=photo, path=file)
            clock('JSON', found.to_dict)
            clock('save', write_results, Path(folder), 'photo', found)
    return clock, images


def count_operations(model: UniParser, images: torch.Tensor) -> tuple[dict, dict]:
    """{step: multiply-adds} and {step: parameters} of the network's steps."""
    plain = torchvision.models.resnet50().eval().to(images.device)
    features = model.backbone(images)
    pyramid = model.pyramid(features)
    operations = {
        'plain ResNet-50': multiply_adds(plain, images),
        'backbone': multiply_adds(model.backbone, images),
        'FPN': multiply_adds(model.pyramid, features),
        'heads': multiply_adds(model.heads, pyramid),
        'network': multiply_adds(model, images),
    }
    parameters = {
        'plain ResNet-50': count_weights(plain),
        'backbone': count_weights(model.backbone),
        'FPN': count_weights(model.fpn),
        'network': count_weights(model),
    }
    parameters['heads'] = parameters['network'] - parameters['backbone'] - parameters['FPN']
    return operations, parameters


def count_weights(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.inference_mode()
def benchmark_inference(args):
    """Prints a table of the steps from reading a photo to writing its results."""
    model = benchmarked_model(args)
    photo = read_photo(args.photo)
    if args.size:
        height, width = args.size
        photo = photo.resize((width, height))
    session = start_onnx(args.onnx) if args.onnx else None
    clock, images = time_steps(model, photo, args.decode, session)
    operations, parameters = count_operations(model, images)
    print(f'{describe_machine(images.shape[2:], model.device)}; median of {REPEATS}')
    print(f'{"":16} {"ms":>9} {"CPU ms":>9} {"ResNet-50":>10} {"params M":>9} {"MACs G":>9} '
          f'{"GFLOP/s":>9}')
    for name in clock.wall:
        wall, process = clock.median(name)
        units = clock.cost(name) / clock.cost('plain ResNet-50')
        row = f'{name:16} {wall:9.1f} {process:9.1f} {units:10.2f}'
        if name in operations:
            row += f' {parameters[name] / 1e6:9.2f} {operations[name] / 1e9:9.1f}'
            row += f' {2 * operations[name] / wall / 1e6:9.0f}'
        print(row)
    print(f'peak memory {memory(model.device):.2f} GB')


def benchmarked_model(args) -> UniParser:
    """The model of --weights, or an untrained one of --preset. Its test size is --size."""
    if args.size:
        args.test_short_side = min(args.size)
        args.long_side = max(args.size)
    if not args.preset:
        return load_model(args, args.device)
    changes = {name: getattr(args, name) for name in INFERENCE if hasattr(args, name)}
    if args.light:
        changes['light'] = True
    torch.manual_seed(0)
    model = UniParser(get_config(args.preset, pretrained='', **changes))
    return model.to(find_device(args.device)).fold()


# --------------------------------------------------------------------------------------------------
# SCHP


@torch.inference_mode()
def benchmark_schp(args):
    """Prints the time of a network on a crop, as loaded and as it runs, in units of torchvision's
    plain ResNet-101."""
    device = torch.device(find_device(args.device))
    default = 'merged' if args.network == 'segformer' else 'lip'
    labels = LABEL_SETS[args.labels or default]
    settings = schp_preset('LIP', args.network, 0)
    config = SCHPConfig(**{**settings, 'network': args.network, 'size': labels.size})
    torch.manual_seed(0)
    model = build(config, labels).to(device).eval()
    images = torch.rand(1, 3, *labels.size, device=device)
    plain = torchvision.models.resnet101().eval().to(device)
    folded = copy.deepcopy(model).fold()
    fast_images = images.to(memory_format=torch.channels_last)
    steps = {
        'plain ResNet-101': lambda: plain(images),
        'all heads': lambda: model(images),
        'folded, fusion': lambda: folded(fast_images, heads=('fusion',)),
    }
    clock = Clock(device)
    for repeat in range(args.repeats + 1):
        if repeat == 1:                          # the first is not counted
            clock = Clock(device)
        for name, step in steps.items():
            clock(name, step)
    print(f'{describe_machine(labels.size, device)}; median of {args.repeats}')
    print(f'{"":16} {"ms":>9} {"CPU ms":>9} {"ResNet-101":>10} {"MACs G":>9}')
    for name, step in steps.items():
        wall, process = clock.median(name)
        units = clock.cost(name) / clock.cost('plain ResNet-101')
        print(f'{name:16} {wall:9.1f} {process:9.1f} {units:10.2f} '
              f'{multiply_adds(step) / 1e9:9.1f}')


# --------------------------------------------------------------------------------------------------
# Training


def benchmark_training(args):
    """Prints images/s of the data pipeline alone, of the steps alone, and of both."""
    if args.data == 'MHP' and not args.root:
        with tempfile.TemporaryDirectory() as root:
            draw_mhp(Path(root), 'train', 64)
            draw_mhp(Path(root), 'val', 1)
            args.root = root
            return benchmark_training(args)
    config = get_config(preset_of(args.data, args.recipe), **given_settings(args, Config))
    run = Run(args.device, args.amp)
    train_set, val_set = open_sets(config, args.root, False)
    model = UniParser(config, train_set.class_names, train_set.flip_pairs)
    # Frozen as if ImageNet weights were loaded.
    model.backbone.freeze(4 if config.pretrained else 0)
    model.to(run.device, memory_format=torch.channels_last)
    loader = make_loader(data.Samples(train_set, config), config, run)
    with workers_of(loader):
        time_training(UniParserTask(config, model, loader, val_set), run)


def time_training(task: UniParserTask, run: Run, steps: int = 20):
    """Prints the rates of a task: at most this many steps, and SECONDS, for each."""
    config = task.config
    optimizer = task.optimizer()
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.amp == torch.float16)
    steps = min(steps, len(task.loader) - 1)

    def loss(net, batch):
        return task.loss(net, batch, run)

    def step(batch):
        train_step(task.model, loss, [batch], optimizer, scaler, config.lr, config.clip)
        synchronize(run.device)

    task.model.train()
    batch = next(read_batches(task.loader))
    print(f'batches of {"x".join(map(str, batch["images"].shape))}, {config.workers} workers, '
          f'{run.device}, {torch.get_num_threads()} threads, torch {torch.__version__}; '
          f'{steps} steps or {SECONDS} s')
    print_rate('data alone', read_batches(task.loader), lambda batch: None, steps)
    print_rate('steps alone, one batch', itertools.repeat(batch), step, steps)
    print_rate('both', read_batches(task.loader), step, steps)
    print(f'peak memory {memory(run.device):.2f} GB')


def print_rate(name: str, batches, function, steps: int):
    """Prints the images/s of function(batch)."""
    batches = iter(batches)
    # The first batch is not counted: workers start, and kernels are chosen.
    function(next(batches))
    begin = time.perf_counter()
    count = 0
    for batch in itertools.islice(batches, steps):
        function(batch)
        count += len(batch['images'])
        if time.perf_counter() - begin > SECONDS:
            break
    print(f'{name:28} {count / (time.perf_counter() - begin):8.2f} images/s')


def draw_mhp(root: Path, split: str, num_images: int):
    """Files in the layout of MHPv2: photos of 800x600 pixels with 3 people of 12 parts."""
    images = root / split / 'images'
    annotations = root / split / 'parsing_annos'
    images.mkdir(parents=True)
    annotations.mkdir()
    (root / 'list').mkdir(exist_ok=True)
    (root / 'list' / f'{split}.txt').write_text('\n'.join(map(str, range(num_images))))
    rng = np.random.default_rng(0)
    for image in range(num_images):
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8))
        coarse.resize((800, 600), Image.BICUBIC).save(images / f'{image}.jpg', quality=90)
        for n in range(3):
            person = draw_person(rng, n)
            # The released labels have three equal channels.
            rgb = Image.merge('RGB', [person] * 3)
            rgb.save(annotations / f'{image}_03_{n + 1:02d}.png')


def draw_person(rng: np.random.Generator, n: int) -> Image.Image:
    """Labels (Pillow, L) of the n-th of three people from the left: 12 parts with ragged edges."""
    person = Image.new('L', (800, 600))
    center = rng.uniform(100, 220) + 230 * n, rng.uniform(240, 360)
    angle = np.arange(0, 2 * np.pi, 0.05)
    for label in rng.choice(np.arange(1, 59), 12, replace=False):
        radius = rng.uniform(20, 60) * (1 + 0.1 * rng.standard_normal(len(angle)))
        x, y = center + rng.uniform(-1, 1, 2) * (50, 180)
        outline = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1)
        ImageDraw.Draw(person).polygon(outline.ravel().tolist(), fill=int(label))
    return person


# --------------------------------------------------------------------------------------------------
# Sizes


def count_parameters(args):
    """Prints the number of parameters of each part of each model."""
    r101 = dict(backbone='resnet101')
    light = dict(light=True)
    models = [(name, {}) for name in PRESETS]
    models += [('mhp', light), ('mhp', r101), ('mhp', {**r101, **light})]
    models += [('mhp_released', r101), ('mhp_released', {**r101, **light})]
    print(f'{"preset":14} {"changes":25} {"backbone":>11} {"pyramid":>10} {"branches":>10} '
          f'{"all":>11} {"trained":>11}')
    for preset, changes in models:
        config = get_config(preset, **changes)
        # The norms of all stages stay frozen when ImageNet weights are loaded.
        model = UniParser(replace(config, pretrained_stages=4 if config.pretrained else 0))
        backbone = count_weights(model.backbone)
        pyramid = count_weights(model.fpn)
        every = count_weights(model)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        words = ' '.join(v if isinstance(v, str) else k for k, v in changes.items())
        print(f'{preset:14} {words:25} {backbone:11,} {pyramid:10,} '
              f'{every - backbone - pyramid:10,} {every:11,} {trained:11,}')


# --------------------------------------------------------------------------------------------------
# Flags


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
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
