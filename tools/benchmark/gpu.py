"""What a GPU does: one run of at most eight minutes, which needs no other file.

Rows of inference: network, size, batch, precision and mode, each with the network alone, the way
from photos in memory to label maps, and the peak memory. Then training with half precision, and
labels against those of a CPU. The floor of a row is its multiply-adds at the measured rate of a
large matrix product in the same precision. The most useful rows come first; what is left out is
printed with its reason. On a CPU, --tiny tries the same way in seconds.
"""
import contextlib
import gc
import itertools
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

import data
from infer import WEIGHTS
from tools.benchmark.clock import Clock, multiply_adds
from tools.benchmark.planted import plant_people
from tools.benchmark.record import headline, write_record
from tools.benchmark.training import measure_training
from uniparser import UniParser, decode, get_config
from util.images import read_photo
from util.run import Run, find_device, memory, synchronize

BUDGET = 400                                 # seconds, after which no row starts; one takes 80
PEOPLE = 3                                   # planted in every photo
WARM_UP = 3                                  # runs that are not counted
REPEATS = 10

# {name: (preset, its changes)}; of the shipped model, the file.
NETWORKS = {
    'r50': ('mhp', {}),
    'shipped': (None, {}),
    'light': ('mhp', dict(light=True)),
    'r101': ('mhp', dict(backbone='resnet101')),
}
SIZES = (800, 1333), (448, 448)
BATCHES = 1, 8
# Modes that a CPU lacks, or that take it minutes.
CUDA_ONLY = {'graph': 'CUDA graphs need a GPU', 'compile': 'torch.compile takes a CPU minutes'}
MODES = 'eager', 'graph', 'compile'
PRECISIONS = 'tf32', 'bf16'

TINY_NETWORKS = {'tiny': ('synthetic', {}), 'shipped': (None, {})}
TINY_SIZES = ((64, 96),)
TINY_BATCHES = 1, 2
MATRIX = 8192                                # rows of the matrices of the floor
TINY_MATRIX = 256


class Case(NamedTuple):
    """A row of inference."""
    network: str
    size: tuple                         # height and width of the photos in the network
    batch: int
    precision: str
    mode: str


# --------------------------------------------------------------------------------------------------
# The plan


def plan(tiny: bool) -> list[Case]:
    """All rows, in the order of their measurement: by mode, because compiling takes longest."""
    networks = TINY_NETWORKS if tiny else NETWORKS
    sizes = TINY_SIZES if tiny else SIZES
    batches = TINY_BATCHES if tiny else BATCHES
    order = itertools.product(MODES, networks, PRECISIONS, sizes, batches)
    return [Case(network, size, batch, precision, mode)
            for mode, network, precision, size, batch in order]


def benchmark_gpu(args):
    """Prints the rows, and what is left out with its reason."""
    begin = time.perf_counter()
    device = torch.device(find_device(args.device))
    torch.backends.cudnn.benchmark = True
    photo = read_photo(args.photo)
    print(headline('networks, precisions and modes', device), flush=True)
    rates = {}
    rows = []
    for precision in PRECISIONS:
        rates[precision] = matrix_rate(precision, device, TINY_MATRIX if args.tiny else MATRIX)
        rows.append(dict(kind='floor', precision=precision, tflops=round(rates[precision], 3)))
        print(f'matrix product in {precision}: {rates[precision]:.2f} TFLOP/s', flush=True)

    # Labels and training first: they are few rows, and the answers most asked for.
    rows += attempt('labels', compare_labels, photo, device)
    rows += attempt('training', train_rows, args.tiny, device)
    for case in plan(args.tiny):
        reason = left_out(case, device, time.perf_counter() - begin, args.seconds)
        if reason:
            print(f'left out: {name_of(case)}: {reason}', flush=True)
            continue
        rows += attempt(name_of(case), infer_rows, case, photo, device, rates[case.precision])
    write_record(args.json, args.command, rows, device)


def left_out(case: Case, device: torch.device, seconds: float, budget: int) -> str:
    """Why a row is not measured; '' if it is."""
    if device.type != 'cuda' and case.mode in CUDA_ONLY:
        return CUDA_ONLY[case.mode]
    if seconds > budget:
        return f'the {budget} s of --seconds are over'
    return ''


def name_of(case: Case) -> str:
    height, width = case.size
    return f'{case.network} {height}x{width} batch {case.batch} {case.precision} {case.mode}'


def attempt(name: str, function: Callable, *arguments) -> list[dict]:
    """The rows of a function. Its error costs these rows alone: a run on a GPU is rare."""
    # A compiled network refers to itself, so it would count as memory of the next row.
    gc.collect()
    try:
        return function(*arguments)
    except Exception as error:
        lines = str(error).splitlines() or ['']
        print(f'left out: {name}: {type(error).__name__}: {lines[0]}', flush=True)
        return []


# --------------------------------------------------------------------------------------------------
# Inference


@contextlib.contextmanager
def precision_of(name: str, device: torch.device) -> Iterator[None]:
    """float32 whose products a GPU may round to TF32, or autocast to bfloat16. (Weights stay
    float32: torchvision's deformable convolution has no bfloat16.)"""
    former = torch.get_float32_matmul_precision()
    former_cudnn = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision('high')
    torch.backends.cudnn.allow_tf32 = True
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=name == 'bf16'):
            yield
    finally:
        torch.set_float32_matmul_precision(former)
        torch.backends.cudnn.allow_tf32 = former_cudnn


@torch.inference_mode()
def matrix_rate(precision: str, device: torch.device, rows: int) -> float:
    """TFLOP/s of the product of two square matrices."""
    a = torch.rand(rows, rows, device=device)
    b = torch.rand(rows, rows, device=device)
    if precision == 'bf16':
        a, b = a.bfloat16(), b.bfloat16()
    clock = Clock(device)
    with precision_of(precision, device):
        for repeat in range(WARM_UP + REPEATS):
            if repeat == WARM_UP:
                clock = Clock(device)
            clock('product', torch.mm, a, b)
    wall, _ = clock.median('product')
    return 2 * rows ** 3 / wall / 1e9


def build(network: str, size: tuple) -> UniParser:
    """A folded network whose inputs have this size."""
    preset, changes = {**NETWORKS, **TINY_NETWORKS}[network]
    sides = dict(test_short_side=min(size), long_side=max(size))
    if preset is None:
        return UniParser.from_pretrained(WEIGHTS, **sides).fold()
    torch.manual_seed(0)
    return UniParser(get_config(preset, pretrained='', **changes, **sides)).fold()


def capture(forward: Callable, images: torch.Tensor) -> Callable:
    """A CUDA graph of the network: it replays the kernels without Python."""
    # What is chosen at the first call must not be captured.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            forward(images)
    torch.cuda.current_stream().wait_stream(stream)
    inputs = images.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = forward(inputs)

    def replay(images):
        inputs.copy_(images)
        graph.replay()
        return out
    return replay


@torch.inference_mode()
def infer_rows(case: Case, photo: Image.Image, device: torch.device, rate: float) -> list[dict]:
    """One row: the network alone, and from photos in memory to label maps."""
    height, width = case.size
    photos = [photo.resize((width, height))] * case.batch
    model = build(case.network, case.size).to(device)
    config = model.config
    geometry = data.input_geometry(photos[0], config)
    images = torch.cat([data.network_input(item, config) for item in photos])
    images = images.to(device, memory_format=torch.channels_last)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)

    def parse():
        inputs = torch.cat([data.network_input(item, config, geometry) for item in photos])
        model.outputs(inputs)
        with torch.autocast(device.type, enabled=False):
            return [decode(planted, 0, geometry, config) for _ in photos]

    with precision_of(case.precision, device):
        operations = multiply_adds(model, images)
        planted = plant_people(model.outputs(images), PEOPLE, config)
        if case.mode == 'graph':
            model.forward = capture(model.forward, images)
        if case.mode == 'compile':
            # Torch compiles a function only so many times, for all networks together.
            torch.compiler.reset()
            model.forward = torch.compile(model.forward)
        clock = Clock(device)
        for repeat in range(WARM_UP + REPEATS):
            if repeat == WARM_UP:
                clock = Clock(device)
            clock('network', model.outputs, images)
            found = clock('photo', parse)
    network, _ = clock.median('network')
    whole, _ = clock.median('photo')
    floor = 2 * operations / rate / 1e9
    row = dict(kind='inference', **case._asdict(), people=len(found[0]),
               network_ms=round(network, 2), photo_ms=round(whole / case.batch, 2),
               floor_ms=round(floor, 2), memory=round(memory(device), 2))
    print(f'{name_of(case):44} network {network:9.2f} ms, floor {floor:7.2f} ms, photo to labels '
          f'{whole / case.batch:8.2f} ms a photo, {row["memory"]:.2f} GB', flush=True)
    return [row]


# --------------------------------------------------------------------------------------------------
# Labels and training


@torch.inference_mode()
def compare_labels(photo: Image.Image, device: torch.device) -> list[dict]:
    """The shipped model's labels of a photo, on this device in each precision, against those of a
    CPU in float32: the share of pixels that have the same class."""
    model = UniParser.from_pretrained(WEIGHTS).fold()
    expected = model.predict(photo)[0].parsing
    model.to(device)
    rows = []
    for precision in PRECISIONS:
        with precision_of(precision, device):
            found = model.predict(photo)[0].parsing
        same = float((flat(found) == flat(expected)).mean())
        rows.append(dict(kind='labels', precision=precision, people=len(found),
                         expected_people=len(expected), same=round(same, 6)))
        print(f'labels in {precision}: {len(found)} people, {len(expected)} on a CPU; '
              f'{100 * same:.3f} % of the pixels have the same class', flush=True)
    return rows


def flat(parsing: np.ndarray) -> np.ndarray:
    """Label maps (N, H, W) -> (H, W): the largest class of each pixel."""
    return parsing.max(axis=0, initial=0)


def train_rows(tiny: bool, device: torch.device) -> list[dict]:
    """Images/s of training r50 on drawn files, with half precision."""
    if tiny:
        config = get_config('synthetic', samples=12, batch_size=4)
    else:
        config = get_config('mhp', workers=8)
    run = Run(device, True)
    rows = measure_training(config, None, run)
    synchronize(device)
    return [dict(kind='training', precision=str(run.amp).removeprefix('torch.'),
                 memory=round(memory(device), 2), **row) for row in rows]
