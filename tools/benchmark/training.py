"""Images/s of training: of the data pipeline, of the steps, and of both."""
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import data
from tools.benchmark.record import by, headline, write_record
from train import UniParserTask, make_loader, open_sets, preset_of, train_step
from uniparser import Config, UniParser, get_config
from util.cli import given_settings
from util.files import counted
from util.run import Run, memory, synchronize
from util.workers import read_batches, workers_of

SECONDS = 30                                 # for each rate of training, at most


def benchmark_training(args):
    """Prints images/s of the data pipeline alone, of the steps alone, and of both."""
    config = get_config(preset_of(args.data, args.recipe), **given_settings(args, Config))
    run = Run(args.device, args.amp)
    rows = measure_training(config, args.root, run)
    write_record(args.json, args.command, rows, run.device)


def measure_training(config: Config, root: str | None, run: Run) -> list[dict]:
    """The rows of `time_training`. MHP without a root: on drawn files."""
    if config.data == 'MHP' and not root:
        with tempfile.TemporaryDirectory() as folder:
            draw_mhp(Path(folder), 'train', 64)
            draw_mhp(Path(folder), 'val', 1)
            return measure_training(config, folder, run)
    train_set, val_set = open_sets(config, root, False)
    model = UniParser(config, train_set.class_names, train_set.flip_pairs)
    # Frozen as if ImageNet weights were loaded.
    model.backbone.freeze(4 if config.pretrained else 0)
    model.to(run.device, memory_format=torch.channels_last)
    loader = make_loader(data.Samples(train_set, config), config, run)
    with workers_of(loader):
        return time_training(UniParserTask(config, model, loader, val_set), run)


def time_training(task: UniParserTask, run: Run, steps: int = 20) -> list[dict]:
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
    shape = list(batch['images'].shape)
    measured = f'batches of {by(shape)}, {counted(config.workers, "worker")}'
    print(f'{headline(measured, run.device)}; {steps} steps or {SECONDS} s')
    parts = [
        ('data alone', read_batches(task.loader), lambda batch: None),
        ('steps alone, one batch', itertools.repeat(batch), step),
        ('both', read_batches(task.loader), step),
    ]
    rows = []
    for name, batches, function in parts:
        rate = measure_rate(batches, function, steps)
        print(f'{name:28} {rate:8.2f} images/s', flush=True)
        rows.append(dict(step=name, rate=round(rate, 3), batch=shape, workers=config.workers))
    print(f'peak memory {memory(run.device):.2f} GB')
    return rows


def measure_rate(batches, function, steps: int) -> float:
    """Images/s of function(batch)."""
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
    return count / (time.perf_counter() - begin)


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
