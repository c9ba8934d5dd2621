"""What several test files share: tiny models, drawn labels, commands."""
import contextlib
import io
import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

import train
import uniparser
from uniparser import UniParser, get_config
from util.datasets import DATASETS, open_dataset

torch.set_num_threads(1)            # on two busy cores two threads can be ten times slower than one
HERE = Path(__file__).resolve().parent.parent
TINY = dict(backbone='resnet10', pretrained='', dcn=False, neck_channels=16, channels=8, depth=2, center_depth=1, grid=12)


def tiny_config(preset='synthetic', **changes):
    return get_config(preset, **{**TINY, **changes})


def tiny_model(preset='synthetic', seed=0, **changes):
    """Random weights of usual size: those of `init_weights` give features that are nearly all alike."""
    torch.manual_seed(seed)
    config = tiny_config(preset, **changes)
    model = UniParser(config, DATASETS[config.data].class_names if 'num_classes' not in changes else None,
                      DATASETS[config.data].flip_pairs)
    for name, p in model.named_parameters():
        if p.ndim == 4 and not name.startswith('backbone'):
            torch.nn.init.kaiming_normal_(p)
    return model


def two_people(height=64, width=96):
    """Two overlapping people of parts 1..3, one of them partly unknown, and an ignored corner."""
    parsing, ignore = torch.zeros(2, height, width, dtype=torch.uint8), torch.zeros(height, width, dtype=torch.bool)
    parsing[0, 8:24, 8:40], parsing[0, 24:48, 8:40] = 1, 2
    parsing[1, 16:40, 36:76], parsing[1, 40:60, 36:76], parsing[1, 16:20, 36:76] = 2, 3, 255
    ignore[:12, 80:] = True
    return parsing, ignore


def random_leaves(batch, height, width, config, seed=0, dtype=torch.float32):
    """What the model could return for images (height, width) before it is brought into `config.space`."""
    g, S, C = torch.Generator().manual_seed(seed), config.grid, config.channels
    shapes = dict(f_ins=(batch, C, height // 4, width // 4), k_ins=(batch, C, S, S), f_cate=(batch, C, height // 4, width // 4))
    leaves = {k: torch.rand(*shape, generator=g, dtype=dtype) + 0.01 for k, shape in shapes.items()}
    leaves.update(heatmap=torch.randn(batch, 1, S, S, generator=g, dtype=dtype),
                  k_cate=torch.randn(config.num_classes, C, generator=g, dtype=dtype))
    return {k: v.requires_grad_() for k, v in leaves.items()}


def in_space(leaves, config):
    return {k: v if k == 'heatmap' else uniparser.to_space(v, config.space) for k, v in leaves.items()}


def random_out(batch, height, width, config, seed=0):
    return in_space(random_leaves(batch, height, width, config, seed), config)


def run(*command, **options):
    """A command as a user gives it, in a process of its own."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(HERE)}
    command = [sys.executable if c == 'python' else str(c) for c in command]
    return subprocess.run(command, capture_output=True, text=True, env=environment, **options)


def call(program, *arguments, cwd='.'):
    """The same in this process, which spares the imports: program is a module with a main."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(cwd):
        try:
            program.main([str(a) for a in arguments])
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


SHORT = ['--backbone', 'resnet10', '--neck-channels', '16', '--channels', '8', '--depth', '1', '--center-depth', '1',
         '--batch-size', '4', '--samples', '12', '--val-images', '4', '--warmup', '2', '--device', 'cpu']


def stop_at_step(monkeypatch, number):
    """Training receives SIGTERM in this step, counted from 1. Returns a list that grows with each step."""
    step, count = train.train_step, []

    def counted(*args):
        count.append(1)
        if len(count) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)
    monkeypatch.setattr(train, 'train_step', counted)
    return count


def weights(run_folder):
    return torch.load(Path(run_folder) / 'last.pt', weights_only=True)['model']


def write_photo(path, seed=0, size=(60, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)


def write_tiny_mhp(root):
    """Four photos of a drawn scene each, in MHPv2's layout."""
    dataset = open_dataset('synthetic')
    for split in ('train', 'val'):
        (root / 'list').mkdir(parents=True, exist_ok=True)
        (root / 'list' / f'{split}.txt').write_text('1\n2\n3\n4\n')
        (root / split / 'parsing_annos').mkdir(parents=True)
        for i in range(1, 5):
            image, parsing, _ = dataset.read(i)
            write_photo(root / split / 'images' / f'{i}.jpg')
            Image.fromarray(image).save(root / split / 'images' / f'{i}.jpg')
            for n, labels in enumerate(parsing, 1):
                rgb = np.stack([labels] * 3, -1)
                Image.fromarray(rgb).save(root / split / 'parsing_annos' / f'{i}_{len(parsing):02d}_{n:02d}.png')


SIZE = 64, 48                        # of a frame


def picture(k, size=SIZE):
    """A gray gradient with a red corner at the top left and a white bar that moves."""
    width, height = size
    pixels = np.repeat(np.linspace(40, 200, height)[:, None, None], width, 1).repeat(3, 2).astype(np.uint8)
    pixels[:, 4 * k % width:4 * k % width + 6], pixels[:height // 3, :width // 3] = 255, (255, 0, 0)
    return Image.fromarray(pixels)


def write_video(path, ticks=range(8), rate=Fraction(30000, 1001), size=SIZE, codec='mpeg4', aspect=None):
    """One frame per tick of 1 / rate seconds. Needs PyAV."""
    import av
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.bit_rate = *size, 10 ** 6
        stream.pix_fmt = 'rgb24' if codec == 'png' else 'yuv420p'
        stream.codec_context.time_base = 1 / Fraction(rate)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for k, tick in enumerate(ticks):
            frame = av.VideoFrame.from_image(picture(k, size))
            frame.pts, frame.time_base = tick, 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
