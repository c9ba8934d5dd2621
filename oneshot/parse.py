"""Photos in the classes that masks of support photos name: reading the masks and their names, writing the results."""
import json
import sys

import numpy as np

from infer import PhotoParser
from oneshot.episodes import IGNORE
from util.files import naming
from util.images import first_channel, load_image, read_photo, to_rgb

MOST = IGNORE - 1                                     # classes: labels are bytes, 0 background, 255 ignore


# ---------------------------------------------------------------------------------------------------------------
# Masks


def is_colored(image):
    """Whether a Pillow image of a mask tells its classes by color, not by index or gray value."""
    if 'RGB' not in image.mode and image.mode not in ('CMYK', 'YCbCr', 'LAB', 'HSV'):
        return False
    pixels = np.asarray(to_rgb(image))
    return bool((pixels != pixels[..., :1]).any())


def color_codes(image):
    """Pillow image -> int32 (H,W), 0xRRGGBB; transparent pixels are black."""
    pixels = np.array(to_rgb(image)).astype(np.int32)
    codes = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    return np.where(np.asarray(image.getchannel('A')) > 0, codes, 0) if image.mode == 'RGBA' else codes


def read_masks(paths):
    """PNG files -> label maps uint8 (H,W), and {id: name} of their classes.

    Indexed and gray pictures hold ids: 0 background, 255 ignore; a class is called after its id. In pictures of colors
    black is background, and each other color is a class, called #rrggbb, with ids in the order of these names.
    """
    images = [load_image(path) for path in paths]
    for path, image in zip(paths, images):
        if image.format == 'JPEG':
            raise ValueError(f'{path} is a JPEG, which changes labels at their edges; save the mask as PNG')
    colored = [is_colored(image) for image in images]
    if any(colored) and not all(colored):
        raise ValueError(f'{paths[colored.index(True)]} tells classes by color, {paths[colored.index(False)]} by index'
                         '; give masks of one kind')
    maps = [color_codes(image) if color else first_channel(image).astype(np.int64)
            for image, color in zip(images, colored)]
    present = [np.unique(labels) for labels in maps]
    for path, ids in zip(paths, present):
        kind = 'colors' if colored[0] else 'ids'
        classes = [i for i in ids if i and (colored[0] or i != IGNORE)]
        if not classes:
            raise ValueError(f'{path} has no class; label pixels of the support photo with ids from 1, or with colors')
        if len(classes) > MOST or (not colored[0] and not 0 <= min(classes) <= max(classes) <= MOST):
            raise ValueError(f'{path} has {len(classes)} {kind} up to {max(classes)}, but there are at most {MOST} '
                             'classes; save it as PNG with one flat value per class, without smoothed edges')
    if not colored[0]:
        ids = sorted({int(i) for found in present for i in found} - {0, IGNORE})
        return [labels.astype(np.uint8) for labels in maps], {i: str(i) for i in ids}
    codes = sorted({int(i) for found in present for i in found} - {0})
    if len(codes) > MOST:
        raise ValueError(f'the masks have {len(codes)} colors together, but there are at most {MOST} classes; use the '
                         'same color for a class in all of them')
    return [np.searchsorted([0, *codes], labels).astype(np.uint8) for labels in maps], \
           {i: f'#{code:06x}' for i, code in enumerate(codes, 1)}


def read_names(given, classes):
    """--names -> list of class names by id, the background first.

    given: None; 'a,b,c', or a JSON file with a list: names of the masks' classes in their order, or of all ids if the
    first is background; or a JSON file with {id or #rrggbb: name}. classes: {id: name} of `read_masks`.
    """
    names = dict(classes)
    if given and given.endswith('.json'):
        with naming(given, 'check --names'), open(given, encoding='utf-8') as file:
            content = json.load(file)
        if not isinstance(content, (list, dict)):
            raise ValueError(f'{given} holds a {type(content).__name__}; give a list of names, or {{id: name}}')
    else:
        content = [name.strip() for name in given.split(',')] if given else {}
    if isinstance(content, list) and content and str(content[0]).lower() == 'background':
        content = {str(i): name for i, name in enumerate(content)}
    if isinstance(content, list):
        if len(content) != len(classes):
            raise ValueError(f'--names has {len(content)} names, but the masks have {len(classes)} classes: '
                             f'{", ".join(classes.values())}')
        names = dict(zip(classes, map(str, content)))
    else:
        content = {str(key).lower(): str(name) for key, name in content.items()}
        names.update({i: content[key] for i, default in classes.items() for key in (str(i), default) if key in content})
        if given and (lacking := [default for i, default in classes.items() if not {str(i), default} & content.keys()]):
            raise ValueError(f'--names lacks {", ".join(lacking)}, of the masks\' classes')
    return ['background'] + [names.get(i, '') for i in range(1, max(classes) + 1)]


def check_learned(learned, classes):
    """ValueError where no class of the masks, {id: name}, is among the ids `learned`; a line on stderr for some."""
    lost = [name for i, name in classes.items() if i not in learned]
    sentence = f'the masks have too few pixels of {", ".join(lost)} at the size of the network'
    if len(lost) == len(classes):
        raise ValueError(f'{sentence}; label more of each class, or larger people')
    if lost:
        print(f'skipped: {sentence}', file=sys.stderr)


def read_supports(photos, masks):
    """Paths -> Pillow photos, label maps (H,W), {id: name}. ValueError where they do not fit each other."""
    if len(photos) != len(masks):
        raise ValueError(f'there are {len(photos)} --support photos and {len(masks)} --support-mask files; give one '
                         'mask for each photo, in the same order')
    images, (labels, classes) = [read_photo(path) for path in photos], read_masks(masks)
    for photo, path, mask, mask_path in zip(images, photos, labels, masks):
        if mask.shape != photo.size[::-1]:
            raise ValueError(f'{mask_path} is {mask.shape[1]}x{mask.shape[0]} pixels, but {path} is '
                             f'{photo.width}x{photo.height}; a mask has the size of its photo')
    return images, labels, classes


# ---------------------------------------------------------------------------------------------------------------
# Photos


class ExampleParser(PhotoParser):
    """Parses photos into the classes of an example. model: an EOPNet or UniParserByExample."""

    def __init__(self, model, args, example, class_names):
        model.class_names = class_names
        super().__init__(model, args)
        self.example = example

    def prepare(self, photo):
        return self.model.prepare(photo)

    def decode(self, out, photo):
        return self.model.people(out, photo, self.example)

    def message(self, found):
        ids = np.unique(found.parsing)
        return ', '.join(self.class_names[i] for i in ids if i) or 'found none of the classes'
