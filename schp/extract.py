"""schp extract: the classes of every pixel of photos of one person.

Per photo NAME: NAME.png (palette image of the photo's size; value = class id, colors of Pascal VOC), overlays/NAME.png
(a picture with a legend) and, with --logits, NAME.npy (float32 (H, W, classes), before the softmax).

For IntegratedPIFu: DIR/train_set_list.txt and test_set_list.txt name its subjects; of each one
DIR/rendering_script/buffer_fixed_full_mesh/ID/*image* are parsed into OUT/ID/*parse*.npy, float32 (H, W), where the
labels 0..6 of Pascal-Person-Part are 0, 0.5, 0.6 .. 1.
"""
import os
from pathlib import Path

import numpy as np
import torch

from util.cli import Between
from util.files import find_photos, printable, read_list, write_array, write_png
from util.labels import voc_palette
from util.photos import PhotoJob, PhotoPipeline, check_failures, name_jobs, share_of_process
from util.pictures import overlay, palette_image
from util.run import sum_over_processes
from schp.warp import as_array, crop, crop_matrix, invert, label_map, warp

CODES = np.float32([0, 0.5, 0.6, 0.7, 0.8, 0.9, 1])      # IntegratedPIFu compares float32 numbers with these
PASCAL = 'checkpoints/exp-schp-201908270938-pascal-person-part.pth'          # IntegratedPIFu's default


def add_flags(parser):
    parser.add_argument('photos', nargs='*', help='files, folders (searched through) and globs')
    parser.add_argument('--out', help='folder for the results (default: results; for IntegratedPIFu '
                                      'render_human_parse_results)')
    parser.add_argument('--logits', action='store_true', help='also write NAME.npy')
    parser.add_argument('--integratedpifu', metavar='DIR', help='parse the renderings of IntegratedPIFu in this folder')
    parser.add_argument('--flip', action='store_true', help='average with the mirrored photo')
    parser.add_argument('--scales', type=Between(0.1, 10, float), nargs='+', default=[1.0],
                        help='average over these scales')
    parser.add_argument('--batch-size', type=Between(1, 10 ** 6), default=4, help='photos at a time')


class Extractor(PhotoPipeline):
    """Writes the results of photos. options: flip and scales of `Parser.crop_logits`."""

    def __init__(self, model, folder, logits=False, **options):
        super().__init__(folder, model.device)
        self.model, self.logits, self.options, self.colors = model, logits, options, voc_palette()

    def targets(self, name):
        logits = [self.folder / f'{name}.npy'] if self.logits else []
        return [self.folder / f'{name}.png', self.folder / 'overlays' / f'{name}.png', *logits]

    def prepare(self, photo):
        matrix = crop_matrix(photo.size[::-1], self.model.size)
        return crop(as_array(photo), matrix, self.model.size), invert(matrix)

    @torch.inference_mode()
    def outputs(self, inputs):
        crops = torch.stack([image for image, _ in inputs]).to(self.model.device, memory_format=torch.channels_last)
        return list(zip(self.model.crop_logits(crops, **self.options), (back for _, back in inputs)))

    def write(self, job):
        with self.turn, torch.inference_mode():
            size = job.photo.size[::-1]
            labels = label_map(*job.out, size).cpu().numpy()
            logits = warp(*job.out, size).permute(1, 2, 0).cpu().numpy() if self.logits else None
        self.write_files(job.name, job.photo, labels, logits)
        return f'{printable(job.path)}: {len(np.unique(labels[labels > 0]))} classes', 1

    def write_files(self, name, photo, labels, logits):
        if logits is not None:
            write_array(self.folder / f'{name}.npy', logits)
        picture = overlay(photo, labels[None], self.model.labels, colors=self.colors)
        write_png(self.folder / 'overlays' / f'{name}.png', picture)
        write_png(self.folder / f'{name}.png', palette_image(labels, self.colors))


class PIFuExtractor(Extractor):
    def targets(self, name):
        return [self.folder / f'{name}.npy']

    def write_files(self, name, photo, labels, logits):
        write_array(self.folder / f'{name}.npy', CODES[labels])


def renderings(folder):
    """Jobs of the renderings of all subjects; a subject without any is a job that cannot be read."""
    jobs = []
    lists, advice = ('train_set_list.txt', 'test_set_list.txt'), '--integratedpifu is the folder of IntegratedPIFu'
    for subject in (i for name in lists for i in read_list(os.path.join(folder, name), advice)):
        images = Path(folder, 'rendering_script', 'buffer_fixed_full_mesh', subject)
        found = sorted(p for p in images.glob('*image*') if p.is_file())
        jobs += [PhotoJob(p, os.path.join(subject, p.stem.replace('image', 'parse'))) for p in found or [images]]
    return jobs


def extract(args, load_model):
    """load_model(args) -> the Parser of --weights."""
    if bool(args.photos) == bool(args.integratedpifu):
        raise ValueError('give photos, or --integratedpifu with a folder (python -m schp extract --help)')
    if args.integratedpifu:
        args.weights, make, out = args.weights or PASCAL, PIFuExtractor, args.out or 'render_human_parse_results'
        jobs = renderings(args.integratedpifu)
    else:
        make, out = Extractor, args.out or 'results'
        jobs = name_jobs(find_photos(args.photos))
    model = load_model(args)
    if args.integratedpifu and model.num_classes != len(CODES):
        raise ValueError(f'{args.weights} has {model.num_classes} classes, but IntegratedPIFu needs the {len(CODES)} '
                         'of Pascal-Person-Part')
    jobs = share_of_process(jobs)
    counts = make(model, out, args.logits, flip=args.flip, scales=args.scales).run(jobs, args.batch_size)
    failed = counts.count(None)
    print(f'{len(counts) - failed} of {len(counts)} photos -> {out}/')
    check_failures(sum_over_processes(failed))
