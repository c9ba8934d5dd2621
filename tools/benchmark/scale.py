"""How time and peak memory grow: with people, megapixels (of 3 people and of a crowd of 13), photos
of a folder, images of `evaluate.py`, processes. The shipped model; each point in processes of its
own."""
import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import data
from infer import WEIGHTS
from tools.benchmark.child import Child, measure_program
from tools.benchmark.clock import Clock
from tools.benchmark.planted import BANDS, person_boxes, plant_people
from tools.benchmark.record import PHOTO, command_of, write_record
from uniparser import UniParser, decode
from util.images import read_photo
from util.results import write_results
from util.submissions import PredictionWriter

REPEATS = 7                                  # of a photo
WARM_UP = 1                                  # not counted: kernels are chosen, memory is taken
PEOPLE = 3                                   # in a photo, where their number is not the point
CROWD = 13
DRAWN = 100                                  # different images of drawn data; others are links
WAY = 'load', 'preprocess', 'network', 'decode', 'save'            # of a photo to its files
SMALL = 48, 64                               # width and height of its photos
SMALL_SIDE = 64                              # --test-short-side for them


# --------------------------------------------------------------------------------------------------
# One photo


def start_photo(photo: str, megapixels: float | None, people: int) -> Callable:
    """In a Child: -> a function that parses a photo, resized to these megapixels, REPEATS times. It
    returns the number of people and the CPU seconds of each step."""
    model = UniParser.from_pretrained(WEIGHTS, max_people=255).fold()
    config = model.config
    image = read_photo(Path(photo))
    if megapixels:
        scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
        image = image.resize((round(image.width * scale), round(image.height * scale)))
    folder = tempfile.TemporaryDirectory()
    file = Path(folder.name, 'photo.jpg')
    image.save(file, quality=90)
    planted = plant_people(model.outputs(data.network_input(image, config)), people, config)

    @torch.inference_mode()
    def run() -> dict:
        geometry = data.input_geometry(image, config)
        clock = Clock(model.device)
        for repeat in range(WARM_UP + REPEATS):
            if repeat == WARM_UP:
                clock = Clock(model.device)
            loaded = clock('load', read_photo, file)
            images = clock('preprocess', data.network_input, loaded, config, geometry)
            clock('network', model.outputs, images)
            found = clock('decode', decode, planted, 0, geometry, config)
            found = replace(found, class_names=model.class_names, photo=loaded, path=photo)
            clock('save', write_results, Path(folder.name), 'photo', found)
            # What saving does, in parts; a new object does not know what the first one computed.
            found = replace(found)
            clock('overlay', found.overlay)
            clock('JSON', found.to_dict)
        seconds = {name: round(clock.median(name)[1] / 1000, 4) for name in clock.process}
        return dict(people=len(found), **seconds)
    return run


def measure_photo(photo: str, megapixels: float | None, people: int) -> dict:
    with Child(start_photo, photo, megapixels, people) as child:
        done = child()
    cpu = sum(done.result[name] for name in WAY)
    return dict(**done.result, cpu=round(cpu, 3), memory=round(done.memory, 2))


def scale_people(args, people: int) -> dict:
    found = measure_photo(args.photo, None, people)
    return dict(x=found['people'], **found)


def scale_megapixels(args, megapixels: float) -> dict:
    return dict(x=megapixels, **measure_photo(args.photo, megapixels, PEOPLE))


def scale_crowd(args, megapixels: float) -> dict:
    return dict(x=megapixels, **measure_photo(args.photo, megapixels, CROWD))


# --------------------------------------------------------------------------------------------------
# Whole commands


def scale_folder(args, count: int) -> dict:
    """`infer.py` on a folder of small photos."""
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder, 'photo.jpg')
        read_photo(args.photo).resize(SMALL).save(original, quality=90)
        link_copies(original, Path(folder, 'photos'), count)
        side = str(SMALL_SIDE)
        done = measure_program('infer.py', Path(folder, 'photos'), '--out', Path(folder, 'out'),
                               '--device', 'cpu', '--test-short-side', side, '--long-side', side)
        made = len(list(Path(folder, 'out').glob('*.json')))
    return dict(x=made, **as_row(done))


def scale_processes(args, processes: int) -> dict:
    """`infer.py` on a folder of the photo, in processes of torchrun."""
    with tempfile.TemporaryDirectory() as folder:
        link_copies(Path(args.photo), Path(folder, 'photos'), args.photos)
        done = measure_program('infer.py', Path(folder, 'photos'), '--out', Path(folder, 'out'),
                               '--device', 'cpu', processes=processes)
    return dict(x=processes, photos=args.photos, **as_row(done))


def scale_images(args, count: int) -> dict:
    """`evaluate.py` on drawn labels and predictions."""
    with tempfile.TemporaryDirectory() as folder:
        draw_predictions(Path(folder), count)
        done = measure_program('evaluate.py', '--data', 'MHP', '--root', folder, '--predictions',
                               Path(folder, 'found'), '--workers', '1')
    return dict(x=count, **as_row(done))


def as_row(done) -> dict:
    return dict(wall=round(done.wall, 2), cpu=round(done.cpu, 2), memory=round(done.memory, 2))


def link_copies(original: Path, folder: Path, count: int):
    """A folder with the file under many names, which takes the room of one."""
    folder.mkdir()
    # A link does not cross file systems.
    first = folder / f'{0:06d}{original.suffix}'
    first.write_bytes(original.read_bytes())
    for i in range(1, count):
        os.link(first, folder / f'{i:06d}{original.suffix}')


def draw_predictions(root: Path, count: int):
    """Small label maps in the layout of MHPv2, and predictions of them in root/found: every person
    a few pixels off. Only DRAWN images differ."""
    images = root / 'val' / 'images'
    truth = root / 'val' / 'parsing_annos'
    for folder in (images, truth, root / 'list'):
        folder.mkdir(parents=True)
    (root / 'list' / 'val.txt').write_text('\n'.join(map(str, range(count))))
    rng = np.random.default_rng(0)
    with PredictionWriter(root / 'found') as writer:
        for i in range(count):
            if i < DRAWN:
                parsing = draw_people(rng)
                Image.new('RGB', SMALL).save(images / f'{i}.jpg')
                for n, person in enumerate(parsing):
                    label = Image.fromarray(person)
                    # The released labels have three equal channels.
                    label = Image.merge('RGB', [label] * 3)
                    label.save(truth / f'{i}_{PEOPLE:02d}_{n + 1:02d}.png')
            else:
                os.link(images / f'{i % DRAWN}.jpg', images / f'{i}.jpg')
                for n in range(PEOPLE):
                    name = f'{PEOPLE:02d}_{n + 1:02d}.png'
                    os.link(truth / f'{i % DRAWN}_{name}', truth / f'{i}_{name}')
            moved = np.roll(parsing, rng.integers(-4, 5), axis=2)
            writer.add(str(i), (moved, rng.uniform(0, 1, PEOPLE)))


def draw_people(rng: np.random.Generator) -> np.ndarray:
    """Label maps (PEOPLE, H, W) of people side by side, each of BANDS classes of MHPv2."""
    width, height = SMALL
    parsing = np.zeros((PEOPLE, height, width), np.uint8)
    for person, (x0, y0, x1, y1) in zip(parsing, person_boxes(PEOPLE, height, width)):
        rows = np.linspace(y0, y1, BANDS + 1).astype(int)
        for top, bottom, label in zip(rows, rows[1:], rng.permutation(58) + 1):
            person[top:bottom, x0:x1] = label
    return parsing


# --------------------------------------------------------------------------------------------------
# The benchmark


# {what grows: (function of the flags and a point, points)}
SERIES = {
    'people': (scale_people, (1, 3, 10, 30, 100)),
    'megapixels': (scale_megapixels, (0.3, 0.46, 1, 3, 12, 24)),
    'crowd': (scale_crowd, (12, 24)),
    'folder': (scale_folder, (10, 100, 1000, 10000)),
    'images': (scale_images, (100, 1000, 10000)),
    'processes': (scale_processes, (1, 2)),
}
TINY = {'people': (2,), 'megapixels': (0.02,), 'crowd': (0.02,), 'folder': (3,), 'images': (3,),
        'processes': (2,)}


def names_of_series(text: str) -> list[str]:
    """argparse type: 'people,folder' -> the names."""
    names = text.split(',')
    unknown = [name for name in names if name not in SERIES]
    if unknown:
        raise argparse.ArgumentTypeError(f' has {unknown[0]!r}; give some of {",".join(SERIES)}')
    return names


def benchmark_scale(args):
    """Prints seconds and peak memory of every point."""
    # A bad photo is reported before the processes start.
    read_photo(args.photo)
    for name in args.only or SERIES:
        rows = []
        function, points = SERIES[name]
        if args.tiny:
            points = TINY[name]
        for point in points:
            row = dict(series=name, **function(args, point))
            rows.append(row)
            numbers = ' '.join(f'{key} {value:g}' for key, value in row.items()
                               if key not in ('series', 'x'))
            print(f'{name:12} {row["x"]:>8g}  {numbers}', flush=True)
        # Each series is a section of the file, so that it can be measured again alone.
        write_record(args.json, command_for(name, args), rows)


def command_for(name: str, args) -> str:
    """The command that measures this series alone."""
    words = ['scale', '--only', name]
    if args.photo != str(PHOTO):
        words.insert(1, args.photo)
    if name == 'processes':
        words += ['--photos', str(args.photos)]
    if args.tiny:
        words.append('--tiny')
    return command_of(words)
