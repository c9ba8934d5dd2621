"""Times of inference and of training on this machine: `python infer.py --benchmark`, `python train.py --benchmark`.

Next to milliseconds stands the unit "ResNet-50": the time of one forward of torchvision's plain ResNet-50 in float32
on an image of the same size, measured in turns with the rest; on a CPU process time, of all threads together. It makes
numbers of different machines comparable.
"""
import itertools
import math
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

import data
from evaluate import draw_benchmark
from predict import decode, find_centers, outputs, prepare

BANDS = 6                                                # parts of a planted person
SECONDS = 30                                             # for each rate of training, at most


class Clock:
    """Median wall and process milliseconds of named functions, called in turns."""

    def __init__(self, device):
        self.device, self.wall, self.process = device, {}, {}

    def __call__(self, name, function, *arguments):
        wall, process = time.perf_counter(), time.process_time()
        result = function(*arguments)
        if self.device.type != 'cpu':
            getattr(torch, self.device.type).synchronize()
        self.wall.setdefault(name, []).append(1000 * (time.perf_counter() - wall))
        self.process.setdefault(name, []).append(1000 * (time.process_time() - process))
        return result

    def median(self, name):
        return statistics.median(self.wall[name]), statistics.median(self.process[name])

    def cost(self, name):
        """What a unit counts: on a CPU the time of all threads."""
        return self.median(name)[self.device.type == 'cpu']


def memory(device):
    """Gigabytes: peak on CUDA, peak of the resident set elsewhere."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2 ** 30
    try:
        import resource                                  # Unix alone has it
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2 ** 30 if sys.platform == 'darwin' else 2 ** 20)


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
    return {**out, **{k: v.to(device) for k, v in planted.items()}}


def start_onnx(path):
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ModuleNotFoundError('--benchmark with --export needs onnxruntime; pip install onnxruntime') from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])


def benchmark_inference(model, path, size, people, save, onnx=None, repeats=10):
    """Prints a table of the steps from a photo's file to its results' files. save(folder, photo, found) writes them;
    onnx: file of the same network, to be run by ONNX Runtime on the CPU."""
    device, config = model.device, model.config
    if people < 1:
        raise ValueError(f'--people is {people}; it is at least 1')
    photo = data.read_photo(path)
    if size:
        photo = photo.resize(size[::-1])
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        photo.save(Path(folder, 'photo.jpg'), quality=95)
        clock, images = Clock(device), prepare(photo, config).to(device, memory_format=torch.channels_last)
        plain = torchvision.models.resnet50().eval().to(device)
        out = outputs(model, images)
        session = start_onnx(onnx) if onnx else None
        planted = [plant_people(out, n, config) for n in sorted({1, people})]
        planted = {len(find_centers(out['heatmap'][0, 0], config)[0]): out for out in planted}
        for k in range(repeats + 2):
            if k == 2:                                   # the first two are not counted
                clock = Clock(device)
            clock('plain ResNet-50', plain, images)
            clock('load', data.read_photo, Path(folder, 'photo.jpg'))
            clock('preprocess', prepare, photo, config)
            features = clock('backbone', model.backbone, images)
            pyramid = clock('FPN', model.pyramid, features)
            clock('heads', model.heads, pyramid)
            clock('network', outputs, model, images)
            if session:
                clock('ONNX Runtime', session.run, None, dict(image=images.cpu().numpy()))
            for n in planted:
                found = clock(f'decode {n}', decode, planted[n], 0, photo, config)
            clock('save', save, Path(folder), photo, found)
        counts = {'plain ResNet-50': multiply_adds(plain, images), 'backbone': multiply_adds(model.backbone, images),
                  'FPN': multiply_adds(model.pyramid, features), 'heads': multiply_adds(model.heads, pyramid),
                  'network': multiply_adds(model, images)}
    parameters = {'plain ResNet-50': plain, 'backbone': model.backbone, 'FPN': model.fpn, 'network': model}
    parameters = {k: sum(p.numel() for p in m.parameters()) / 1e6 for k, m in parameters.items()}
    parameters['heads'] = parameters['network'] - parameters['backbone'] - parameters['FPN']
    size = 'x'.join(map(str, images.shape[2:]))
    print(f'{size}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}; median of {repeats}')
    print(f'{"":16} {"ms":>9} {"CPU ms":>9} {"ResNet-50":>10} {"params M":>9} {"MACs G":>9} {"GFLOP/s":>9}')
    for name in clock.wall:
        wall, process = clock.median(name)
        row = f'{name:16} {wall:9.1f} {process:9.1f} {clock.cost(name) / clock.cost("plain ResNet-50"):10.2f}'
        if name in counts:
            row += f' {parameters[name]:9.2f} {counts[name] / 1e9:9.1f} {2 * counts[name] / wall / 1e6:9.0f}'
        print(row)
    print(f'peak memory {memory(device):.2f} GB')


@contextmanager
def drawn_photos():
    """Root of files as MHPv2 has them, for as long as they are needed."""
    with tempfile.TemporaryDirectory() as root:
        for split, count in ('train', 64), ('val', 1):
            draw_benchmark(Path(root), count, split)
        yield root


def benchmark_training(model, loader, config, device, amp, steps=20):
    """Prints images/s of the data pipeline alone, of the steps alone (with one batch again and again), and of both."""
    from train import make_optimizer, train_step
    optimizer, scaler = make_optimizer(model, config), torch.amp.GradScaler(device.type, enabled=amp == torch.float16)
    steps = min(steps, len(loader) - 1)

    def step(batch):
        train_step(model, [batch], optimizer, scaler, config, device, amp, config.lr)
        if device.type != 'cpu':
            getattr(torch, device.type).synchronize()

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

    model.train()
    batch = next(data.read_batches(loader))
    print(f'batches of {"x".join(map(str, batch["images"].shape))}, {config.workers} workers, {device}, '
          f'{torch.get_num_threads()} threads, torch {torch.__version__}; {steps} steps or {SECONDS} s')
    rate('data alone', data.read_batches(loader), lambda batch: None)
    rate('steps alone, one batch', itertools.repeat(batch), step)
    rate('both', data.read_batches(loader), step)
    print(f'peak memory {memory(device):.2f} GB')



def draw_benchmark(root, num_images, split='val'):
    """Files as MHPv2 has them, 600 x 800 with 3 people of 12 parts, and predictions a few pixels off."""
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


def benchmark(workers, num_images=40):
    """Prints the time to evaluate and that to decode the same PNG files in one process, the best of three."""
    from data import open_dataset
    with tempfile.TemporaryDirectory() as root:
        draw_benchmark(Path(root), num_images)
        files = [*Path(root).glob('val/parsing_annos/*.png'), *Path(root).glob('pred/instances/*.png')]

        def job(workers):
            predictions = open_predictions(Path(root, 'pred'))
            evaluate(Job(open_dataset('MHP', root, 'val'), predictions), workers).result()
        runs = {'decode': lambda: [read_map(f, (600, 800)) for f in files],
                'evaluate, 1 worker': lambda: job(1), f'evaluate, {workers} workers': lambda: job(workers)}
        seconds = {name: [] for name in runs}
        for name, function in 3 * list(runs.items()):
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    print(f'{num_images} images of 800x600, 3 people and 3 detections each, {len(files)} PNG files')
    for name, times in seconds.items():
        print(f'{name:20} {1000 * min(times) / num_images:6.1f} ms an image, '
              f'{min(times) / min(seconds["decode"]):.2f} of decoding')



def count_parameters():
    """Prints how many parameters each part of each model has."""
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
