"""Times on this machine, and sizes.

    python -m tools.benchmark infer                       # from reading a photo to writing its results
    python -m tools.benchmark infer --preset mhp --size 512 512
    python -m tools.benchmark schp                        # SCHP's network on a crop, or --network segformer
    python -m tools.benchmark train                       # the data pipeline, the steps, and both
    python -m tools.benchmark evaluate
    python -m tools.benchmark parameters

Beside milliseconds stands the unit "ResNet-50": the time of one forward of torchvision's plain ResNet-50 in float32 on
an image of the same size, measured alternately with the rest; on a CPU the process time of all threads. The unit makes
numbers of different machines comparable.
"""
import argparse
import itertools
import math
import os
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
from evaluate import Job, evaluate
from infer import add_model_flags, load_model
from schp import NETWORKS, build
from train import UniParserTask, make_loader, open_sets, preset_of, train_step
from uniparser import INFERENCE, PRESETS, Config, UniParser, decode, find_centers, get_config
from util.cli import Between, CommandParser, add_settings, given_settings, start
from util.datasets import DATASETS, open_dataset
from util.files import user_errors
from util.images import read_photo, read_prediction
from util.labels import LABEL_SETS
from util.pictures import overlay
from util.results import describe_people, write_results
from util.run import Run, find_device, memory, synchronize
from schp.config import SCHPConfig
from schp.config import preset as schp_preset
from util.submissions import PredictionWriter, open_predictions

PHOTO = Path(__file__).parent.parent / 'assets' / 'street.jpg'
BANDS = 6                                                # parts of a planted person
SECONDS = 30                                             # for each rate of training, at most


class Clock:
    """Median wall and process milliseconds of named functions, called alternately."""

    def __init__(self, device):
        self.device, self.wall, self.process = device, {}, {}

    def __call__(self, name, function, *arguments):
        wall, process = time.perf_counter(), time.process_time()
        result = function(*arguments)
        synchronize(self.device)
        self.wall.setdefault(name, []).append(1000 * (time.perf_counter() - wall))
        self.process.setdefault(name, []).append(1000 * (time.process_time() - process))
        return result

    def median(self, name):
        return statistics.median(self.wall[name]), statistics.median(self.process[name])

    def cost(self, name):
        """Milliseconds for the unit: on a CPU the time of all threads."""
        return self.median(name)[self.device.type == 'cpu']


def multiply_adds(function, *arguments):
    """Of convolutions and matrix products, without those of the sampling in deformable convolutions."""
    def deform_conv2d(x, weight, *_, out_shape, **__):
        return 2 * math.prod(out_shape) * math.prod(weight[1:])

    with FlopCounterMode(display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: deform_conv2d}) as counter:
        function(*arguments)
    return counter.get_total_flops() // 2


def plant_people(out, people, config):
    """Outputs of the network in which that many people stand side by side, of BANDS parts each."""
    S, (C, h, w), device = config.grid, out['f_ins'].shape[1:], out['f_ins'].device
    K, people = len(out['k_cate']), min(people, C - 1)
    heatmap, k_ins = torch.full((S, S), -9.0), torch.zeros(C, S, S)
    f_ins, f_cate = torch.zeros(C, h, w), torch.zeros(C, h, w)
    f_ins[people], f_cate[C - 1] = 1, 1                  # the background
    for n in range(people):
        x0, x1 = int((n + 0.1) * w / people), max(int((n + 0.9) * w / people), int((n + 0.1) * w / people) + 1)
        y0, y1 = h // 8, h - h // 8
        f_ins[:, y0:y1, x0:x1] = torch.eye(C)[n].view(-1, 1, 1)
        for band in range(BANDS):
            top, bottom = y0 + band * (y1 - y0) // BANDS, y0 + (band + 1) * (y1 - y0) // BANDS
            f_cate[:, top:bottom, x0:x1] = torch.eye(C)[(n + band) % min(K, C - 1)].view(-1, 1, 1)
        row, column = S // 2 - 6 + 4 * (n % 4), (x0 + x1) * S // (2 * w)     # rows apart: peaks are 5x5 maxima
        heatmap[row, column], k_ins[:, row, column] = 5 - n / people, torch.eye(C)[n]
    planted = dict(heatmap=heatmap[None, None], f_ins=f_ins[None], k_ins=k_ins[None], f_cate=f_cate[None],
                   k_cate=torch.eye(C)[:K])
    return {k: v.to(device) for k, v in planted.items()}


def start_onnx(path):
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ModuleNotFoundError('--onnx needs onnxruntime; pip install onnxruntime') from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])


# ---- inference ---------------------------------------------------------------------------------------------


def time_steps(model, photo, people, session=None, repeats=10):
    """-> Clock of the steps from reading a photo to writing its results, and the network's input."""
    device, config = model.device, model.config
    images = data.network_input(photo, config).to(device, memory_format=torch.channels_last)
    plain, out = torchvision.models.resnet50().eval().to(device), model.outputs(images)
    planted = [plant_people(out, n, config) for n in sorted({1, people})]
    planted = {len(find_centers(out['heatmap'][0, 0], config)[0]): out for out in planted}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'photo.jpg')
        photo.save(file, quality=95)
        clock = Clock(device)
        for k in range(repeats + 2):
            if k == 2:                                   # the first two are not counted
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
            for n in planted:
                found = clock(f'decode {n}', decode, planted[n], 0, photo, config)
            clock('overlay', overlay, photo, found.parsing, model.class_names)
            clock('JSON', describe_people, found, model.class_names)
            clock('save', write_results, Path(folder), 'photo', file, photo, found, model.class_names, False)
    return clock, images


def count_operations(model, images):
    """{step: multiply-adds} and {step: parameters} of the network's steps."""
    plain = torchvision.models.resnet50().eval().to(images.device)
    features = model.backbone(images)
    pyramid = model.pyramid(features)
    steps = {'plain ResNet-50': (plain, images), 'backbone': (model.backbone, images), 'FPN': (model.pyramid, features),
             'heads': (model.heads, pyramid), 'network': (model, images)}
    parts = {'plain ResNet-50': plain, 'backbone': model.backbone, 'FPN': model.fpn, 'network': model}
    parameters = {k: sum(p.numel() for p in m.parameters()) for k, m in parts.items()}
    parameters['heads'] = parameters['network'] - parameters['backbone'] - parameters['FPN']
    return {k: multiply_adds(*step) for k, step in steps.items()}, parameters


@torch.inference_mode()
def benchmark_inference(args):
    """Prints a table of the steps from reading a photo to writing its results."""
    model, photo = benchmarked_model(args), read_photo(args.photo)
    photo = photo.resize(args.size[::-1]) if args.size else photo
    clock, images = time_steps(model, photo, args.decode, start_onnx(args.onnx) if args.onnx else None)
    counts, parameters = count_operations(model, images)
    size = 'x'.join(map(str, images.shape[2:]))
    print(f'{size}, {model.device}, {torch.get_num_threads()} threads, torch {torch.__version__}; median of 10')
    print(f'{"":16} {"ms":>9} {"CPU ms":>9} {"ResNet-50":>10} {"params M":>9} {"MACs G":>9} {"GFLOP/s":>9}')
    for name in clock.wall:
        wall, process = clock.median(name)
        row = f'{name:16} {wall:9.1f} {process:9.1f} {clock.cost(name) / clock.cost("plain ResNet-50"):10.2f}'
        if name in counts:
            row += f' {parameters[name] / 1e6:9.2f} {counts[name] / 1e9:9.1f} {2 * counts[name] / wall / 1e6:9.0f}'
        print(row)
    print(f'peak memory {memory(model.device):.2f} GB')


def benchmarked_model(args):
    """The model of --weights, or an untrained one of --preset; its test size is --size."""
    if args.size:
        args.test_short_side, args.long_side = min(args.size), max(args.size)
    if not args.preset:
        return load_model(args, args.device)
    torch.manual_seed(0)
    changes = {name: getattr(args, name) for name in INFERENCE if hasattr(args, name)}
    changes.update({name: getattr(args, name) for name in ('backbone', 'light') if getattr(args, name)})
    return UniParser(get_config(args.preset, pretrained='', **changes)).to(find_device(args.device)).fold()


@torch.inference_mode()
def benchmark_schp(args):
    """Prints the time of a network on a crop, as loaded and as it runs, in units of torchvision's plain ResNet-101."""
    device, default = torch.device(find_device(args.device)), 'merged' if args.network == 'segformer' else 'lip'
    labels = LABEL_SETS[args.labels or default]
    config = SCHPConfig(**{**schp_preset('LIP', args.network, 0), 'network': args.network, 'size': labels.size})
    torch.manual_seed(0)
    model, images = build(config, labels).to(device).eval(), torch.rand(1, 3, *labels.size, device=device)
    plain, fast = torchvision.models.resnet101().eval().to(device), model.folded().to(memory_format=torch.channels_last)
    steps = {'plain ResNet-101': lambda: plain(images), 'all heads': lambda: model(images),
             'folded, fusion': lambda: fast(images.to(memory_format=torch.channels_last), heads=('fusion',))}
    clock = Clock(device)
    for k in range(args.repeats + 1):
        clock = Clock(device) if k == 1 else clock           # the first is not counted
        for name, step in steps.items():
            clock(name, step)
    size = 'x'.join(map(str, labels.size))
    print(f'{size}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}; median of {args.repeats}')
    print(f'{"":16} {"ms":>9} {"CPU ms":>9} {"ResNet-101":>10} {"MACs G":>9}')
    for name, step in steps.items():
        wall, process = clock.median(name)
        print(f'{name:16} {wall:9.1f} {process:9.1f} {clock.cost(name) / clock.cost("plain ResNet-101"):10.2f} '
              f'{multiply_adds(step) / 1e9:9.1f}')


# ---- training ----------------------------------------------------------------------------------------------


def benchmark_training(args):
    """Prints images/s of the data pipeline alone, of the steps alone (repeating one batch), and of both."""
    if args.data == 'MHP' and not args.root:
        with tempfile.TemporaryDirectory() as root:
            for split, count in ('train', 64), ('val', 1):
                draw_mhp(Path(root), count, split)
            args.root = root
            return benchmark_training(args)
    changes = given_settings(args, Config)
    config, run = get_config(preset_of(args.data, args.recipe), **changes), Run(args.device, args.amp)
    train_set, val_set = open_sets(config, args.root, False)
    model = UniParser(config, train_set.class_names, train_set.flip_pairs)
    model.backbone.freeze(4 if config.pretrained else 0)                     # frozen as if ImageNet weights were loaded
    task = UniParserTask(config, model.to(run.device, memory_format=torch.channels_last),
                         make_loader(data.Samples(train_set, config), config, run), val_set)
    with data.workers_of(task.loader):
        time_training(task, run)


def time_training(task, run, steps=20):
    config, optimizer = task.config, task.optimizer()
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.amp == torch.float16)
    steps = min(steps, len(task.loader) - 1)

    def step(batch):
        train_step(task.model, lambda net, batch: task.loss(net, batch, run), [batch], optimizer, scaler, config.lr,
                   config.clip)
        synchronize(run.device)

    def rate(name, batches, function):
        batches = iter(batches)
        function(next(batches))                          # workers start, kernels are chosen
        start, count = time.perf_counter(), 0
        for batch in itertools.islice(batches, steps):
            function(batch)
            count += len(batch['images'])
            if time.perf_counter() - start > SECONDS:
                break
        print(f'{name:28} {count / (time.perf_counter() - start):8.2f} images/s')

    task.model.train()
    batch = next(data.read_batches(task.loader))
    print(f'batches of {"x".join(map(str, batch["images"].shape))}, {config.workers} workers, {run.device}, '
          f'{torch.get_num_threads()} threads, torch {torch.__version__}; {steps} steps or {SECONDS} s')
    rate('data alone', data.read_batches(task.loader), lambda batch: None)
    rate('steps alone, one batch', itertools.repeat(batch), step)
    rate('both', data.read_batches(task.loader), step)
    print(f'peak memory {memory(run.device):.2f} GB')


# ---- evaluation --------------------------------------------------------------------------------------------


def draw_mhp(root, num_images, split='val'):
    """Files in the layout of MHPv2, 600 x 800 with 3 people of 12 parts, and predictions a few pixels off."""
    for folder in ('images', 'parsing_annos'):
        (root / split / folder).mkdir(parents=True)
    (root / 'list').mkdir(exist_ok=True)
    (root / 'list' / f'{split}.txt').write_text('\n'.join(map(str, range(num_images))))
    rng, angle = np.random.default_rng(0), np.arange(0, 6.28, 0.05)
    with PredictionWriter(root / 'pred') as writer:
        for image in range(num_images):
            coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8))
            coarse.resize((800, 600), Image.BICUBIC).save(root / split / 'images' / f'{image}.jpg', quality=90)
            people = [Image.new('L', (800, 600)) for _ in range(3)]
            for k, person in enumerate(people):
                center = rng.uniform(100, 220) + 230 * k, rng.uniform(240, 360)
                for label in rng.choice(np.arange(1, 59), 12, replace=False):
                    radius = rng.uniform(20, 60) * (1 + 0.1 * rng.standard_normal(len(angle)))
                    x, y = center + rng.uniform(-1, 1, 2) * (50, 180)
                    outline = zip(x + radius * np.cos(angle), y + radius * np.sin(angle))
                    ImageDraw.Draw(person).polygon(list(outline), fill=int(label))
                rgb = Image.merge('RGB', [person] * 3)                  # as the released labels are
                rgb.save(root / split / 'parsing_annos' / f'{image}_03_{k + 1:02d}.png')
            maps = [np.roll(person, rng.integers(-9, 9, 2), (0, 1)) for person in people]
            writer.add(image, (maps, rng.random(3)))


def benchmark_evaluation(args, num_images=40):
    """Prints the time to evaluate and that to decode the same PNG files in one process, the best of three."""
    workers = max(2, args.workers)
    with tempfile.TemporaryDirectory() as root:
        draw_mhp(Path(root), num_images)
        files = [*Path(root).glob('val/parsing_annos/*.png'), *Path(root).glob('pred/instances/*.png')]

        def job(workers):
            predictions = open_predictions(Path(root, 'pred'))
            evaluate(Job(open_dataset('MHP', root, 'val'), predictions), workers).result()
        runs = {'decode': lambda: [read_prediction(f, (600, 800)) for f in files],
                'evaluate, 1 worker': lambda: job(1), f'evaluate, {workers} workers': lambda: job(workers)}
        seconds = {name: [] for name in runs}
        for name, function in 3 * list(runs.items()):
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    print(f'{num_images} images of 800x600, 3 people and 3 detections each, {len(files)} PNG files')
    for name, times in seconds.items():
        print(f'{name:20} {1000 * min(times) / num_images:6.1f} ms per image, '
              f'{min(times) / min(seconds["decode"]):.2f} of decoding')


# ---- sizes -------------------------------------------------------------------------------------------------


def count_parameters(args):
    """Prints the number of parameters of each part of each model."""
    print(f'{"preset":14} {"changes":25} {"backbone":>11} {"pyramid":>10} {"branches":>10} {"all":>11} {"trained":>11}')
    r101, light = dict(backbone='resnet101'), dict(light=True)
    models = [*((name, {}) for name in PRESETS), ('mhp', light), ('mhp', r101), ('mhp', {**r101, **light}),
              ('mhp_released', r101), ('mhp_released', {**r101, **light})]
    for preset, changes in models:
        config = get_config(preset, **changes)
        model = UniParser(replace(config, pretrained_stages=4 if config.pretrained else 0))
        parts = [sum(p.numel() for p in m.parameters()) for m in (model.backbone, model.fpn, model)]
        counts = [parts[0], parts[1], parts[2] - parts[0] - parts[1], parts[2],
                  sum(p.numel() for p in model.parameters() if p.requires_grad)]
        words = ' '.join(v if isinstance(v, str) else k for k, v in changes.items())
        print(f'{preset:14} {words:25} {counts[0]:11,} {counts[1]:10,} {counts[2]:10,} {counts[3]:11,} {counts[4]:11,}')


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    commands = parser.add_subparsers(required=True, metavar='infer | schp | train | evaluate | parameters')
    infer = commands.add_parser('infer', help='from reading a photo to writing its results')
    infer.set_defaults(function=benchmark_inference)
    infer.add_argument('photo', nargs='?', default=str(PHOTO))
    infer.add_argument('--preset', choices=list(PRESETS), help='an untrained network instead of weights')
    infer.add_argument('--backbone', help='with --preset: another backbone')
    infer.add_argument('--light', action='store_true', help='with --preset: UniParser_light')
    infer.add_argument('--size', type=Between(1, 10000), nargs=2, metavar=('H', 'W'),
                       help='of the photo, in pixels')
    infer.add_argument('--decode', type=Between(1, 255), default=10, help='people to decode (default: 10)')
    infer.add_argument('--onnx', metavar='FILE', help='file of the same network (tools.export), timed in ONNX Runtime')
    add_model_flags(infer)
    schp = commands.add_parser('schp', help="SCHP's network on a crop")
    schp.set_defaults(function=benchmark_schp)
    schp.add_argument('--network', choices=list(NETWORKS), default='ace2p')
    schp.add_argument('--labels', choices=list(LABEL_SETS), help='default: lip, of segformer merged')
    schp.add_argument('--repeats', type=Between(1, 10 ** 6), default=5)
    schp.add_argument('--device', default='auto', choices=['auto', 'cpu', 'cuda', 'mps'])
    train = commands.add_parser('train', help='images/s of training; MHP without --root: on drawn files')
    train.set_defaults(function=benchmark_training)
    train.add_argument('--data', choices=list(DATASETS), default='synthetic')
    train.add_argument('--root', help='folder of the data set, as downloaded')
    train.add_argument('--recipe', choices=['paper', 'released'])
    train.add_argument('--device', default='auto', choices=['auto', 'cpu', 'cuda', 'mps'])
    train.add_argument('--amp', action=argparse.BooleanOptionalAction, help='half precision; default: on CUDA')
    add_settings(train, Config, skip=('data', 'recipe', 'num_classes', 'pretrained_stages'))
    evaluation = commands.add_parser('evaluate', help='evaluate.py on drawn people')
    evaluation.set_defaults(function=benchmark_evaluation)
    evaluation.add_argument('--workers', type=Between(1, 1000), default=min(8, os.cpu_count()),
                            help='processes')
    commands.add_parser('parameters', help='of all presets').set_defaults(function=count_parameters)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        args.function(args)


if __name__ == '__main__':
    start(main)
