"""Parses photos: every person, every part of each, as pixels.

    python infer.py photo.jpg holiday/ 'more/*.png' --out results/
    python infer.py photo.jpg --only hair,dress --cutouts
    python infer.py --data MHP --root data/LV-MHP-v2 --split val --weights runs/MHP/best.pt --out results/

Per photo NAME: NAME_parts.png (indexed; value = class id), NAME_people.png (indexed; value = person id, best first),
NAME_overlay.png (for the eye) and NAME.json (scores, boxes, areas, masks as COCO RLE). With --data: the predictions of
a whole split, for evaluate.py.
"""
import argparse
import glob
import io
import json
import os
import sys
import threading
import unicodedata
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

import data
from util.benchmark import benchmark_inference
from util.export import export
from losses import category_masks, make_targets
from predict import decode, input_size, outputs, prepare
from util.submissions import FORMS, PredictionWriter, make_folder, write_file
from uniparser import PRESETS, UniParser, correlate, find_device, get_config

WEIGHTS = Path(__file__).parent / 'weights' / 'uniparser_ccp.pt'
PHOTO = Path(__file__).parent / 'assets' / 'street.jpg'
AHEAD = 4                                                # photos read before, and written after, their turn
SETTINGS = ('theta_center', 'theta_mask', 'theta_part', 'max_people', 'test_short_side', 'long_side')


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('photos', nargs='*', help='files, folders (searched through) and globs')
    parser.add_argument('--out', default='results', help='folder for the results (default: results)')
    parser.add_argument('--weights', default=str(WEIGHTS),
                        help='a checkpoint of train.py or of the authors (default: weights/uniparser_ccp.pt)')
    parser.add_argument('--device', default='auto', choices=['auto', 'cpu', 'cuda', 'mps'])
    parser.add_argument('--only', metavar='NAMES', help='keep these parts, e.g. hair,dress')
    parser.add_argument('--cutouts', action='store_true', help='also write each person and part as an RGBA picture')
    parser.add_argument('--maps', action='store_true',
                        help='also draw heat map and correlations of two people and a part, as Fig. 4')
    parser.add_argument('--data', choices=list(data.DATASETS), help='predict a split of this data set instead')
    parser.add_argument('--root', help='with --data: its folder, as downloaded')
    parser.add_argument('--split', help='with --data: default val')
    parser.add_argument('--format', choices=FORMS, help='with --data: form of the predictions, default instances')
    parser.add_argument('--export', metavar='FILE.onnx', help='write the network as ONNX (needs onnx and onnxscript)')
    parser.add_argument('--benchmark', action='store_true', help='measure the speed on this machine')
    parser.add_argument('--preset', choices=list(PRESETS), help='with --benchmark: an untrained network, no weights')
    parser.add_argument('--backbone', help='with --preset: another')
    parser.add_argument('--light', action='store_true', help='with --preset: UniParser_light')
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), help='with --benchmark: of the photo, pixels')
    parser.add_argument('--people', type=int, help='with --benchmark: people to decode (default: 10)')
    parser.add_argument('--oracle', choices=['centers', 'people', 'classes'],
                        help='with --data: put the truth in place of a part of the network, to see what the rest costs')
    group = parser.add_argument_group('settings (default: those the weights were saved with)')
    for name in SETTINGS:
        group.add_argument('--' + name.replace('_', '-'), type=float if name.startswith('theta') else int,
                           default=argparse.SUPPRESS)
    return parser.parse_args(argv)


def load_model(args, device):
    device = find_device(device)
    if device == 'cuda':
        torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', 0)))          # torchrun's: a GPU a process
    changes = {name: getattr(args, name) for name in SETTINGS if hasattr(args, name)}
    if args.benchmark and args.size:
        changes.update(test_short_side=min(args.size), long_side=max(args.size))
    if args.preset:
        torch.manual_seed(0)
        changes.update({name: getattr(args, name) for name in ('backbone', 'light') if getattr(args, name)})
        model = UniParser(get_config(args.preset, pretrained='', **changes))
        return model.to(device).fuse()
    if args.weights == str(WEIGHTS) and not WEIGHTS.exists():
        raise FileNotFoundError(f'{WEIGHTS} is missing; clone the repository again, or give others with --weights')
    return UniParser.from_pretrained(args.weights, device, **changes).fuse()


# ---------------------------------------------------------------------------------------------------------------
# Photos


def keep_parts(parsing, class_names, only):
    """Sets all parts to 0 but those named; ValueError on unknown names."""
    wanted = [name.strip() for name in only.split(',')]
    unknown = [name for name in wanted if name not in class_names[1:]]
    if unknown:
        raise ValueError(f'--only: unknown part {unknown[0]!r}; these weights know {", ".join(class_names[1:])}')
    table = np.zeros(256, np.uint8)
    for name in wanted:
        table[class_names.index(name)] = class_names.index(name)
    return table[parsing]


# ---------------------------------------------------------------------------------------------------------------
# Results


def visible(found):
    """The people of a Parsing of whom something is seen: `released` and --only leave others."""
    some = found.parsing.any((1, 2))
    return found if some.all() else type(found)(*(field[some] for field in found))


def describe_people(found, class_names):
    """Parsing -> list of dictionaries for the JSON file, best person first; ids from 1."""
    people = []
    for n, (labels, score, center) in enumerate(zip(*found), 1):
        box, parts = data.box_of(labels), []
        x, y, w, h = box
        cut = labels[y:y + h, x:x + w]
        areas = np.bincount(cut.ravel()).tolist()
        for c in range(1, len(areas)):
            if areas[c]:
                left, top, *sides = data.box_of(cut == c)
                parts.append({'id': c, 'name': class_names[c], 'area': areas[c], 'box': [x + left, y + top, *sides],
                              'rle': encode_rle(cut == c, x, y, labels.shape)})
        people.append({'id': n, 'score': round(float(score), 4), 'center': [round(float(v), 1) for v in center],
                       'box': box, 'area': sum(areas[1:]), 'parts': parts})
    return people


def write_results(folder, name, path, photo, found, class_names, cutouts):
    parts, people = flatten(found.parsing)
    colors = data.palette(256)
    write_png(folder / f'{name}_parts.png', indexed(parts, colors))
    write_png(folder / f'{name}_people.png', indexed(people, colors))
    write_png(folder / f'{name}_overlay.png', data.overlay(np.asarray(photo), found.parsing, class_names))
    record = {'photo': str(path), 'width': photo.width, 'height': photo.height,
              'people': describe_people(found, class_names)}
    if cutouts:
        for person, labels in zip(record['people'], found.parsing):
            stem = f'{name}_person{person["id"]}'
            write_png(folder / f'{stem}.png', cut_out(photo, labels > 0, person['box']))
            for part in person['parts']:
                file = f'{stem}_{part["name"].replace("/", "-").replace(" ", "-")}.png'
                write_png(folder / file, cut_out(photo, labels == part['id'], part['box']))
    write_file(folder / f'{name}.json', json.dumps(record))   # last: where it exists, the photo is done


@torch.no_grad()
def draw_maps(model, out, photo, found, height=400):
    """Photo, heat map (Eq. 1), q_ins of the best two people (Eq. 2), q_cate of their largest part (Eq. 3), parsing."""
    padded, size = input_size(photo, model.config)
    grid = model.config.grid * found.centers[:2] * (size[::-1] / np.array(photo.size) / padded[::-1])
    cells = grid.astype(int) @ (1, model.config.grid)                        # of the people found: row * S + column
    q_ins = correlate(out['k_ins'][0].flatten(1).T[cells], out['f_ins'][0], model.config.space)
    areas = np.bincount(found.parsing[:2].ravel(), minlength=256)[1:len(model.class_names)]
    largest = int(areas.argmax())
    q_cate = correlate(out['k_cate'][largest:largest + 1], out['f_cate'][0], model.config.space)
    names = ['heat map', *[f'person {n + 1}' for n in range(len(q_ins))], model.class_names[largest + 1]]
    panels = [('photo', photo)]
    for name, values in zip(names, [out['heatmap'][0, 0].sigmoid(), *q_ins, *q_cate]):
        image = Image.fromarray((values.clamp(0, 1) * 255).byte().cpu().numpy()).resize(padded[::-1], Image.BILINEAR)
        panels.append((name, Image.fromarray(RAMP[np.asarray(image)[:size[0], :size[1]]])))
    panels.append(('parsing', data.overlay(photo, found.parsing)))
    width = min(max(1, round(photo.width * height / photo.height)), 10 * height)
    sheet = Image.new('RGB', (len(panels) * (width + 6) - 6, height + 24), 'white')
    for k, (name, image) in enumerate(panels):
        sheet.paste(image.resize((width, height), Image.BILINEAR), (k * (width + 6), 24))
        ImageDraw.Draw(sheet).text((k * (width + 6), 4), name, 'black', ImageFont.load_default(14))
    return sheet


# ---------------------------------------------------------------------------------------------------------------
# The two jobs


def ahead(pool, function, items):
    """function(item) of each item, in their order; threads work on the next AHEAD meanwhile."""
    futures = deque()
    for item in items:
        futures.append(pool.submit(function, item))
        if len(futures) > AHEAD:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def parse_photos(model, args):
    """Parses args.photos; returns how many failed. While the network is at work, threads read the next photos and write
    the last results. Under torchrun each process takes its share."""
    paths, folder = find_photos(args.photos, args.out), Path(args.out)
    world = int(os.environ.get('WORLD_SIZE', 1))
    jobs = list(zip(paths, result_names(paths)))[int(os.environ['RANK']) if world > 1 else 0::world]
    turn = threading.Lock() if model.device.type == 'mps' else nullcontext()         # MPS is not for several threads
    make_folder(folder)

    def read(job):
        try:
            photo = data.read_photo(job[0])
            return job, photo, prepare(photo, model.config)
        except (OSError, ValueError) as error:
            return job, error, None

    def parse(photos):
        for job, photo, image in photos:
            with turn:
                out = None if image is None else outputs(model, image)
            yield job, photo, out

    def write(result):
        (path, name), photo, out = result
        if out is None:
            return f'error: {photo}', None
        with turn:
            found = decode(out, 0, photo, model.config)
            if args.only:
                found = found._replace(parsing=keep_parts(found.parsing, model.class_names, args.only))
            found = visible(found)
            if args.maps:
                write_png(folder / f'{name}_maps.png', draw_maps(model, out, photo, found))
        write_results(folder, name, path, photo, found, model.class_names, args.cutouts)
        number = len(found.scores)
        message = f'{number} {"person" if number == 1 else "people"}'
        if not number and args.only:
            message = f'nobody with {args.only} found'
        elif not number:
            message = f'nobody found; lower --theta-center ({model.config.theta_center}) or --theta-part'
        return f'{data.printable(path)}: {message}', number

    counts = []
    with ThreadPoolExecutor(4) as pool, tqdm(total=len(jobs), disable=len(jobs) < 2 or None, unit='photo') as bar:
        for message, number in ahead(pool, write, parse(ahead(pool, read, jobs))):
            bar.write(message, file=sys.stderr if number is None else None)
            bar.update()
            counts.append(number)
    good = [number for number in counts if number is not None]
    print(f'{len(good)} of {len(jobs)} photos, {sum(good)} people -> {folder}/')
    return wait_for_others(len(jobs) - len(good))


def wait_for_others(failed):
    """The sum over all processes. torchrun ends all as soon as one exits with an error: none may before all are
    done."""
    if not dist.is_torchelastic_launched():
        return failed
    dist.init_process_group('gloo', timeout=timedelta(days=30))
    failed = torch.tensor(failed)
    dist.all_reduce(failed)
    dist.destroy_process_group()
    return failed.item()


def predict_split(model, args):
    split = args.split or 'val'
    dataset = data.open_dataset(args.data, args.root, split)
    if list(dataset.class_names) != list(model.class_names):
        raise ValueError(f'{args.weights} was trained for other classes than {args.data} has; use weights of that set')
    with PredictionWriter(args.out, args.format or FORMS[0]) as writer:
        for i in tqdm(range(len(dataset)), unit='photo'):
            sample = dataset.read(i)
            found = predict_with_truth(model, args.oracle, *sample) if args.oracle else model.predict(sample[0])[0]
            writer.add(dataset.ids[i], found)
    root = f'--root {args.root} ' if args.root else ''
    print(f'{len(dataset)} images -> {args.out}/; next: python evaluate.py --data {args.data} {root}--split {split} '
          f'--predictions {args.out}')
    return 0


def main(argv=None):
    args = parse_arguments(argv)
    try:
        if (args.backbone or args.light) and not args.preset:
            raise ValueError('--backbone and --light go with --preset; weights know their own')
        if args.preset and not (args.benchmark or args.export):
            raise ValueError('--preset goes with --benchmark or --export')
        if (args.size or args.people is not None) and not args.benchmark:
            raise ValueError('--size and --people go with --benchmark')
        if args.export and args.photos and not args.benchmark:
            raise ValueError('--export writes the network; parse photos without it')
        if args.data and int(os.environ.get('WORLD_SIZE', 1)) > 1:
            raise ValueError('--data is for one process; start it without torchrun')
        if args.export:
            export(load_model(args, 'cpu'), args.export)
            print(f'{args.export}: {os.path.getsize(args.export) / 1e6:.1f} MB, of H and W that are multiples of 32')
        if args.benchmark:
            benchmark(args)
        if args.export or args.benchmark:
            return
        if bool(args.photos) == bool(args.data):
            raise ValueError('give photos, or --data with a data set (python infer.py --help)')
        if args.data and (args.only or args.cutouts or args.maps):
            raise ValueError('--only, --cutouts and --maps are for photos, not for --data')
        if args.photos and (args.root or args.split or args.format or args.oracle):
            raise ValueError('--root, --split, --format and --oracle go with --data')
        model = load_model(args, args.device)
        failed = parse_photos(model, args) if args.photos else predict_split(model, args)
        if failed:
            raise ValueError(f'{failed} photo{"s" * (failed > 1)} could not be read')
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f'stopped; every photo with a .json in {args.out} is done', file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    sys.stdout.reconfigure(errors='backslashreplace')    # a terminal need not know the letters of a file's name
    main()
