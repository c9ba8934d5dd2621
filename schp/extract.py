"""schp extract: the classes of every pixel of photos of one person.

Per photo NAME: NAME.png (palette image of the photo's size; value = class id, colors of Pascal
VOC), overlays/NAME.jpg (a picture with a legend), NAME.json (areas, boxes, masks as COCO RLE), with
--logits NAME.npy (float32 (H, W, classes), before the softmax) and with --cutouts the folder
NAME_cutouts. Per video (with pip install av): NAME_overlay.mp4 and NAME.jsonl, one line per frame.
index.html shows them all. --labels says which classes the weights have, --to asks for results in
another label set.

For IntegratedPIFu: DIR/train_set_list.txt and test_set_list.txt name its subjects. The files
DIR/rendering_script/buffer_fixed_full_mesh/ID/*image* of each are parsed into OUT/ID/*parse*.npy,
float32 (H, W), where the labels 0..6 of Pascal-Person-Part are 0, 0.5, 0.6 .. 1.
"""
import argparse
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from schp.crops import crop, crop_matrix, invert, label_map, warp
from schp.network import load_model
from schp.single_person import SinglePersonNetwork
from util.cli import Between, add_shared, check_source, filled, refuse_given
from util.files import (check_failures, counted, find_photos, printable, read_list, write_array,
                        write_jpeg, write_png)
from util.labels import TARGETS, find_set, names_of, voc_palette
from util.photos import PhotoJob, PhotoPipeline, end_run, name_jobs, share_of_process
from util.pictures import palette_image
from util.results import Parsing, as_one_person, check_cutouts, write_record
from util.run import sum_over_processes
from util.tryon import TryOn
from util.video import (VIDEO_FLAGS, add_video_flags, check_video_flags, parse_videos,
                        split_videos)

# IntegratedPIFu compares float32 numbers with these.
CODES = np.float32([0, 0.5, 0.6, 0.7, 0.8, 0.9, 1])

# IntegratedPIFu's default.
PASCAL = 'checkpoints/exp-schp-201908270938-pascal-person-part.pth'


def add_flags(parser: argparse.ArgumentParser):
    parser.add_argument('photos', nargs='*', help='files, folders (searched through) and globs')
    parser.add_argument('--out', type=filled, help='folder for the results (default: results; for '
                                      'IntegratedPIFu render_human_parse_results)')
    parser.add_argument('--to', choices=TARGETS,
                        help='give the results in this label set, see docs/labels.md')
    add_shared(parser, 'agnostic')
    parser.add_argument('--cutouts', action='store_true',
                        help='also write the person and each part as an RGBA picture')
    parser.add_argument('--logits', action='store_true',
                        help='also write NAME.npy, the numbers before the softmax, of the classes '
                             'of the weights')
    parser.add_argument('--integratedpifu', type=filled, metavar='DIR',
                        help='parse the renderings of IntegratedPIFu in this folder')
    parser.add_argument('--flip', action='store_true', help='average with the mirrored photo')
    parser.add_argument('--scales', type=Between(0.1, 10, float), nargs='+', default=[1.0],
                        help='scales to average over (default: 1)')
    parser.add_argument('--batch-size', type=Between(1, 10 ** 6), default=4,
                        help='photos at a time (default: %(default)s)')
    add_video_flags(parser)


class ExtractPipeline(PhotoPipeline):
    """Writes the results of photos.

    args: has out, flip, scales, logits, cutouts, agnostic, colors and to; see `add_flags`
    """

    def __init__(self, model: SinglePersonNetwork, args: argparse.Namespace):
        super().__init__(args.out, model.device)
        if args.to:
            # Refuses a model whose classes are of no known set.
            find_set(model.class_names, args.to)
        self.model = model
        self.args = args
        self.colors = voc_palette()
        # Of the legend of a video.
        self.class_names = list(names_of(args.to) if args.to else model.class_names)
        self.kept = np.arange(1, len(self.class_names))
        self.tryon = TryOn(args, self.class_names)

    def targets(self, name):
        endings = ['.png', '.json', *(['.npy'] if self.args.logits else []), *self.tryon.endings]
        paths = [self.folder / (name + ending) for ending in endings]
        return [*paths, self.folder / 'overlays' / f'{name}.jpg']

    def check_targets(self, name):
        super().check_targets(name)
        check_cutouts(self.folder / f'{name}_cutouts', self.inputs)

    def prepare(self, photo):
        """-> the crop, and the matrix of the way back."""
        matrix = crop_matrix(photo.size[::-1], self.model.size)
        return crop(np.asarray(photo), matrix, self.model.size), invert(matrix)

    @torch.inference_mode()
    def outputs(self, inputs):
        """-> pairs of logits (C, h, w) of a crop and the matrix of the way back."""
        crops = torch.stack([image for image, _ in inputs])
        crops = crops.to(self.model.device, memory_format=torch.channels_last)
        logits = self.model.crop_logits(crops, self.args.flip, self.args.scales)
        return list(zip(logits, (matrix for _, matrix in inputs)))

    def find(self, out, photo: Image.Image, path: str | Path | None = None) -> Parsing:
        """What `outputs` gives for a photo -> its person, in the classes of --to."""
        crop_logits, matrix = out
        with torch.inference_mode():
            labels = label_map(crop_logits, matrix, photo.size[::-1]).cpu().numpy()
        found = as_one_person(labels, class_names=self.model.class_names, photo=photo, path=path,
                              colors=self.colors)
        return found.convert(self.args.to) if self.args.to else found

    def write(self, job):
        crop_logits, matrix = job.out
        logits = None
        with self.turn, torch.inference_mode():
            found = self.find(job.out, job.photo, job.path)
            if self.args.logits:
                size = job.photo.size[::-1]
                logits = warp(crop_logits, matrix, size).permute(1, 2, 0).cpu().numpy()
        self.write_files(job.name, found, logits)
        count = len(np.unique(found.labels[found.labels > 0]))
        return f'{printable(job.path)}: {counted(count, "class", "classes")}', 1

    def write_files(self, name: str, found: Parsing, logits: np.ndarray | None):
        if logits is not None:
            write_array(self.folder / f'{name}.npy', logits)
        picture = found.overlay(self.args.colors == 'people')
        write_jpeg(self.folder / 'overlays' / f'{name}.jpg', picture)
        write_png(self.folder / f'{name}.png', palette_image(found.labels, self.colors))
        self.tryon.write(self.folder, name, found)
        write_record(self.folder, name, found, self.args.cutouts)


class PIFuPipeline(ExtractPipeline):
    """Writes the arrays of IntegratedPIFu."""

    def targets(self, name):
        return [self.folder / f'{name}.npy']

    def write_files(self, name, found, logits):
        write_array(self.folder / f'{name}.npy', CODES[found.labels])


def renderings(folder: str) -> list[PhotoJob]:
    """Jobs for the renderings of all subjects. A subject without any is a job that fails."""
    subjects = []
    for name in ('train_set_list.txt', 'test_set_list.txt'):
        advice = '--integratedpifu is the folder of IntegratedPIFu'
        subjects += read_list(os.path.join(folder, name), advice)
    jobs = []
    for subject in subjects:
        images = Path(folder, 'rendering_script', 'buffer_fixed_full_mesh', subject)
        found = sorted(path for path in images.glob('*image*') if path.is_file())
        for path in found or [images]:
            name = path.stem.replace('image', 'parse')
            jobs.append(PhotoJob(path, os.path.join(subject, name)))
    return jobs


def extract(args: argparse.Namespace):
    """`python -m schp extract`."""
    check_source(args.photos, args.integratedpifu, '--integratedpifu', 'a folder',
                 'python -m schp extract')
    if args.integratedpifu:
        extract_renderings(args)
        return
    if not args.weights:
        raise ValueError('--weights is missing: a file of the released code or of schp train')
    args.out = args.out or 'results'
    paths = find_photos(args.photos)
    check_video_flags(args, paths)
    jobs = share_of_process(name_jobs(paths))
    photos, videos = split_videos(jobs)
    if videos:
        refuse_given(args, ('logits', 'cutouts', 'agnostic'),
                     'is for photos; parse the videos without it')
    model = load_model(args.weights, args.labels, args.device)
    pipeline = ExtractPipeline(model, args)
    failed = run(pipeline, photos, args.batch_size) if photos or not videos else 0
    failed += parse_videos(pipeline, jobs, args)
    end_run(args.out, failed, 'file' if videos else 'photo')


def extract_renderings(args: argparse.Namespace):
    """The same with --integratedpifu."""
    refuse_given(args, ('to', 'agnostic', 'cutouts', 'logits', 'colors', *VIDEO_FLAGS),
                 'is for photos; IntegratedPIFu reads its own arrays alone')
    args.out = args.out or 'render_human_parse_results'
    jobs = renderings(args.integratedpifu)
    weights = args.weights or PASCAL
    model = load_model(weights, args.labels, args.device)
    if model.num_classes != len(CODES):
        raise ValueError(f'{weights} has {model.num_classes} classes, but IntegratedPIFu needs the '
                         f'{len(CODES)} of Pascal-Person-Part')
    failed = run(PIFuPipeline(model, args), share_of_process(jobs), args.batch_size)
    check_failures(sum_over_processes(failed))


def run(pipeline: ExtractPipeline, jobs: list[PhotoJob], batch_size: int) -> int:
    """Parses photos -> the number of those that failed."""
    counts = pipeline.run(jobs, batch_size)
    failed = counts.count(None)
    print(f'{len(counts) - failed:,} of {counted(len(counts), "photo")} -> {pipeline.folder}/')
    return failed
