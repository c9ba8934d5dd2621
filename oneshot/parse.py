"""The command parse: photos in the classes that masks of support photos name."""
import json
import math
import sys

import numpy as np
from PIL import Image

from infer import ParsingPipeline
from oneshot.episodes import IGNORE
from oneshot.models import load_model
from oneshot.network import ExampleNetwork, list_names
from util.files import find_photos, naming
from util.images import first_channel, load_image, read_photo, to_rgb
from util.photos import end_run, name_jobs, share_of_process
from util.results import Parsing
from util.video import check_video_flags, parse_videos, split_videos

MOST = IGNORE - 1     # classes: labels are bytes, 0 background, 255 ignore
Classes = dict[int, str]      # id -> name


# -------------------------------------------------------------------------------------------------
# Masks


def read_masks(paths: list[str]) -> tuple[list[np.ndarray], Classes]:
    """PNG files -> label maps uint8 (H,W), and {id: name} of their classes.

    Indexed and gray pictures hold ids: 0 background, 255 ignore; a class is called after its id. In
    pictures of colors black is background, and each other color is a class, called #rrggbb, with
    ids in the order of these names. ValueError where a picture is a JPEG, or has no or too many
    classes, or is of another kind than the first.
    """
    images = [load_image(path) for path in paths]
    for path, image in zip(paths, images):
        if image.format == 'JPEG':
            raise ValueError(f'{path} is a JPEG, which changes labels at their edges; save the '
                             'mask as PNG')
    colored = [is_colored(image) for image in images]
    if any(colored) and not all(colored):
        raise ValueError(f'{paths[colored.index(True)]} tells classes by color, '
                         f'{paths[colored.index(False)]} by index; give masks of one kind')
    if all(colored):
        return read_colors(paths, [color_codes(image) for image in images])
    return read_ids(paths, [first_channel(image).astype(np.int64) for image in images])


def read_ids(paths: list[str], maps: list[np.ndarray]) -> tuple[list[np.ndarray], Classes]:
    """Maps of ids -> what `read_masks` returns."""
    found = set()
    for path, labels in zip(paths, maps):
        ids = [int(i) for i in np.unique(labels) if i not in (0, IGNORE)]
        check_classes(path, ids, 'ids', largest=MOST)
        found.update(ids)
    return [labels.astype(np.uint8) for labels in maps], {i: str(i) for i in sorted(found)}


def read_colors(paths: list[str], maps: list[np.ndarray]) -> tuple[list[np.ndarray], Classes]:
    """Maps of colors, see `color_codes` -> what `read_masks` returns."""
    found = set()
    for path, labels in zip(paths, maps):
        codes = [int(code) for code in np.unique(labels) if code]
        check_classes(path, codes, 'colors')
        found.update(codes)
    if len(found) > MOST:
        raise ValueError(f'the masks have {len(found)} colors together, but there are at most '
                         f'{MOST} classes; use the same color for a class in all of them')
    codes = sorted(found)
    label_maps = [np.searchsorted([0, *codes], labels).astype(np.uint8) for labels in maps]
    return label_maps, {i: f'#{code:06x}' for i, code in enumerate(codes, 1)}


def check_classes(path: str, classes: list[int], kind: str, largest: float = math.inf):
    """ValueError where a mask has no class, or more or larger ones than a label map can hold."""
    if not classes:
        raise ValueError(f'{path} has no class; label pixels of the support photo with ids from 1, '
                         'or with colors')
    if len(classes) > MOST or max(classes) > largest:
        raise ValueError(f'{path} has {len(classes)} {kind} up to {max(classes)}, but there are at '
                         f'most {MOST} classes; save it as PNG with one flat value per class, '
                         'without smoothed edges')


def is_colored(image: Image.Image) -> bool:
    """Whether the classes of a mask are colors, not indices or gray values."""
    if 'RGB' not in image.mode and image.mode not in ('CMYK', 'YCbCr', 'LAB', 'HSV'):
        return False
    pixels = np.asarray(to_rgb(image))
    return bool((pixels != pixels[..., :1]).any())


def color_codes(image: Image.Image) -> np.ndarray:
    """Pillow image -> int32 (H,W), 0xRRGGBB; transparent pixels are black."""
    pixels = np.array(to_rgb(image)).astype(np.int32)
    codes = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    if image.mode == 'RGBA':
        codes[np.asarray(image.getchannel('A')) == 0] = 0
    return codes


def read_names(given: str | None, classes: Classes) -> list[str]:
    """--names -> list of class names by id, the background first.

    given: None; 'a,b,c', or a JSON file with a list: names of the masks' classes in their order, or
    of all ids if the first is background; or a JSON file with {id or #rrggbb: name}. classes:
    {id: name} of `read_masks`. ValueError where names are missing.
    """
    if not given:
        content = {}
    elif given.endswith('.json'):
        content = read_names_file(given)
    else:
        content = [name.strip() for name in given.split(',')]
    # A list of all ids, because it has a name for 0, too.
    if isinstance(content, list) and content and str(content[0]).lower() == 'background':
        content = dict(enumerate(content))
    names = dict(classes)
    if isinstance(content, list):
        if len(content) != len(classes):
            raise ValueError(f'--names has {len(content)} names, but the masks have {len(classes)} '
                             f'classes: {", ".join(classes.values())}')
        names = {i: str(name) for i, name in zip(classes, content)}
    else:
        content = {str(key).lower(): str(name) for key, name in content.items()}
        missing = []
        for i, default in classes.items():
            if default in content:
                names[i] = content[default]
            elif str(i) in content:
                names[i] = content[str(i)]
            else:
                missing.append(default)
        if given and missing:
            raise ValueError(f'--names lacks {", ".join(missing)}, of the masks\' classes')
    return list_names({i: names[i] for i in classes})


def read_names_file(path: str) -> list | dict:
    with naming(path, 'check --names'), open(path, encoding='utf-8') as file:
        content = json.load(file)
    if not isinstance(content, (list, dict)):
        raise ValueError(f'{path} holds a {type(content).__name__}; give a list of names, or '
                         '{id: name}')
    return content


def read_supports(photos: list[str], masks: list[str]) -> tuple[
        list[Image.Image], list[np.ndarray], Classes]:
    """Paths -> Pillow photos, label maps (H,W), {id: name}. ValueError where they do not fit each
    other."""
    if len(photos) != len(masks):
        raise ValueError(f'there are {len(photos)} --support photos and {len(masks)} '
                         '--support-mask files; give one mask for each photo, in the same order')
    images = [read_photo(path) for path in photos]
    labels, classes = read_masks(masks)
    for photo, path, mask, mask_path in zip(images, photos, labels, masks):
        if mask.shape != photo.size[::-1]:
            raise ValueError(f'{mask_path} is {mask.shape[1]}x{mask.shape[0]} pixels, but {path} '
                             f'is {photo.width}x{photo.height}; a mask has the size of its photo')
    return images, labels, classes


def check_learned(learned: list[int], classes: Classes):
    """ValueError where no class of the masks, {id: name}, is among the ids `learned`; a line on
    stderr where some are not."""
    lost = [name for i, name in classes.items() if i not in learned]
    sentence = f'the masks have too few pixels of {", ".join(lost)} at the size of the network'
    if len(lost) == len(classes):
        raise ValueError(f'{sentence}; label more of each class, or larger people')
    if lost:
        print(f'skipped: {sentence}', file=sys.stderr)


# -------------------------------------------------------------------------------------------------
# Photos


class ExamplePipeline(ParsingPipeline):
    """Parses photos into the classes of an example. model: see oneshot/models.py."""

    def __init__(self, model, args, example, class_names: list[str]):
        model.class_names = class_names
        super().__init__(model, args)
        self.example = example

    def prepare(self, photo: Image.Image):
        return self.model.prepare(photo)

    def outputs(self, inputs: list) -> list:
        return [self.model.outputs(image) for image in inputs]

    def decode(self, out, photo: Image.Image) -> Parsing:
        return self.model.people(out, photo, self.example)

    def kernels(self, out, found: Parsing) -> np.ndarray | None:
        if isinstance(self.model, ExampleNetwork):
            return None                           # its people are one
        return super().kernels(out, found)

    def message(self, found: Parsing) -> str:
        ids = np.unique(found.parsing)
        return ', '.join(self.class_names[i] for i in ids if i) or 'found none of the classes'


def parse(args):
    paths = find_photos(args.photos)
    check_video_flags(args, paths)
    supports, masks, classes = read_supports(args.support, args.support_mask)
    names = read_names(args.names, classes)
    model = load_model(args.weights, args.device)
    if args.stored and not isinstance(model, ExampleNetwork):
        raise ValueError('--stored: UniParser has no stored prototypes; leave it out')
    options = dict(stored=True) if args.stored else {}
    example = model.learn(supports, masks, **options)
    check_learned(model.learned(example), {i: names[i] for i in classes})
    pipeline = ExamplePipeline(model, args, example, names)
    jobs = share_of_process(name_jobs(paths))
    photos, videos = split_videos(jobs)
    if videos and args.cutouts:
        raise ValueError('--cutouts is for photos; parse the videos without it')
    failed = pipeline.run(photos) if photos or not videos else 0
    failed += parse_videos(pipeline, jobs, args)
    end_run(args.out, failed, 'file' if videos else 'photo')
