"""Reading photos and label maps. Any error is one sentence that names the file. Needs no torch."""
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EINVAL
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from util.files import FORMATS, UNKNOWN, naming, printable, short

ORIENTATION = 0x0112                              # EXIF tag of how a phone was held; 1 is upright
START_OF_SCAN = b'\xff\xda'                       # a marker of JPEG
MARKER = re.compile(b'\xff[^\x00\xff\xd0-\xd7]')   # any but those in the data of a scan
MOST_SCANS = 100                                  # of a JPEG; progressive ones have about ten


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """Pillow image whose pixels are not yet decoded."""
    if os.path.exists(path) and not os.path.isfile(path):     # opening a pipe would block
        if os.path.isdir(path):
            raise OSError(EINVAL, 'it is a folder without photos, or without read permission; '
                                  'name videos one by one')
        raise OSError(EINVAL, 'it is not a regular file')
    with Image.open(path, formats=FORMATS) as image:
        yield image


def check_scans(image: Image.Image, path: str | Path):
    """Raises a ValueError for a JPEG of more than MOST_SCANS scans.

    Each of them passes over all pixels, and an empty one takes a few bytes: thousands would keep
    libjpeg busy for minutes, in which it hears no signal.
    """
    if image.format not in ('JPEG', 'MPO'):
        return
    content = Path(path).read_bytes()
    if content.count(START_OF_SCAN) > MOST_SCANS and count_scans(content) > MOST_SCANS:
        raise ValueError(f'it is a JPEG of more than {MOST_SCANS} scans')


def count_scans(content: bytes) -> int:
    """The scans of a JPEG, without those of thumbnails in its header."""
    count = 0
    place = 2                                     # behind the start of the image
    while len(content) >= place + 4 and content[place] == 0xFF:
        count += content[place:place + 2] == START_OF_SCAN
        place += 2 + int.from_bytes(content[place + 2:place + 4])
        # In the data of a scan FF comes before 00, a restart marker or another FF.
        marker = MARKER.search(content, place)
        if not marker:
            break
        place = marker.start()
    return count


def load_image(path: str | Path, draft: tuple[float, float] | None = None) -> Image.Image:
    """Decoded Pillow image; the first of a file with several.

    A JPEG may be decoded at a half, quarter or eighth of its size if that covers draft (w, h).
    """
    with naming(path, 'check its name'), open_image(path) as image:
        if draft is not None:
            image.draft('RGB', tuple(max(1, int(side)) for side in draft))
        check_scans(image, path)
        image.load()
        return image


# ---- photos ------------------------------------------------------------------------------------


def to_rgb(image: Image.Image) -> Image.Image:
    """Pillow image of any mode -> RGB. Transparency is dropped."""
    if image.mode.startswith('I'):                # 16 bits, which Pillow would clip
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image if image.mode == 'RGB' else image.convert('RGB')


def upright(image: Image.Image) -> Image.Image:
    """Pillow image, turned as its EXIF tag says."""
    if image.getexif().get(ORIENTATION, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def read_photo(path: str | Path) -> Image.Image:
    """A user's photo: RGB Pillow image, turned as its EXIF tag says."""
    image = load_image(path)
    with naming(path):
        return to_rgb(upright(image))


def read_stored(path: str | Path, draft: tuple[float, float] | None = None) -> Image.Image:
    """A photo of a data set: RGB Pillow image as stored.

    Its labels were drawn on the stored pixels, so an EXIF tag turns neither.
    """
    image = load_image(path, draft)
    with naming(path):
        return to_rgb(image)


def stored_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of a data set's photo, from the header alone."""
    with naming(path), open_image(path) as image:
        return image.size


# ---- label maps --------------------------------------------------------------------------------


def first_channel(image: Image.Image) -> np.ndarray:
    """Pillow image -> array (H, W) of integers.

    These are channel 0 of a color image (MHP's label maps are RGB) or the indices of a palette.
    Raises a ValueError for negative or fractional values.
    """
    labels = np.asarray(image.getchannel(0) if len(image.getbands()) > 1 else image)
    fractional = labels.dtype.kind == 'f' and not (labels == np.round(labels)).all()
    if fractional or labels.min(initial=0) < 0:
        raise ValueError(f'its labels are no integers from 0 on (mode {image.mode})')
    return labels


def read_labels(path: str | Path, num_classes: int = UNKNOWN) -> np.ndarray:
    """Label map of a data set -> uint8 (H, W) with labels 0..num_classes and 255."""
    image = load_image(path)
    if image.mode not in ('1', 'L', 'P', 'LA', 'PA', 'RGB', 'RGBA'):
        raise ValueError(f'{path} is no 8-bit label map (mode {image.mode}); unpack it again')
    labels = first_channel(image).astype(np.uint8)
    if labels.max(initial=0) > num_classes:
        strange = labels[(labels > num_classes) & (labels != UNKNOWN)]
        if len(strange):
            raise ValueError(f'{path} has the label {strange[0]}, but there are only {num_classes} '
                             'classes; is it of another data set?')
    return labels


def read_prediction(path: str | Path, shape: tuple[int, int], largest: int = 65535) -> np.ndarray:
    """Label map of a prediction, which must have this shape (H, W) and labels 0..largest.

    uint8 if they fit, else int32.
    """
    name = printable(path)
    try:
        with open_image(path) as image:
            width, height = image.size            # before decoding: the file may claim any size
            check_scans(image, path)
            labels = first_channel(image) if (height, width) == shape else None
    except FileNotFoundError:
        raise FileNotFoundError(f'{name} is missing; write the predictions again') from None
    except Exception as error:                    # Pillow raises a dozen classes
        reason = getattr(error, 'strerror', None) or short(error, 300)
        raise ValueError(f'{name} cannot be read as a label map ({reason}); write it '
                         'again') from None
    if labels is None:
        raise ValueError(f'{name} is {width}x{height} pixels, but the ground truth is '
                         f'{shape[1]}x{shape[0]}; write predictions in the size of the photo')
    if not labels.max() <= largest:
        raise ValueError(f'{name} holds the label {labels.max()}, but the labels are 0..{largest}')
    return labels.astype(np.uint8 if largest < 256 else np.int32, copy=False)
