"""Files: naming, reading and writing them, with one sentence where something is wrong. Needs no torch."""
import glob
import io
import os
import unicodedata
import warnings
from collections import Counter
from contextlib import contextmanager
from errno import EINVAL
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

UNKNOWN = 255
PHOTOS = '.jpg', '.jpeg', '.png'
FORMATS = 'JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF'         # Pillow knows more, and starts Ghostscript for one
ENDINGS = {'.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff'}



def printable(text):
    """Names of files may hold line breaks, codes that move the cursor and bytes that are no text."""
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


@contextmanager
def naming(path, advice='--root is the folder of the unpacked download'):
    """Whatever goes wrong with a file becomes one sentence that names it and tells what to do."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f'{printable(path)} does not exist; {advice}') from None
    except Image.DecompressionBombError:
        most = 2 * Image.MAX_IMAGE_PIXELS // 10 ** 6
        raise ValueError(f'{printable(path)} has more than {most} million pixels; make it smaller') from None
    except UnidentifiedImageError:
        reason = f'no {", ".join(FORMATS)}' if os.path.getsize(path) else 'empty'
        raise ValueError(f'{printable(path)} cannot be read (it is {reason}); get the file again') from None
    except Exception as error:                    # Pillow, scipy and json have a dozen classes of them
        system = isinstance(error, OSError) and error.strerror
        raise ValueError(f'{printable(path)} cannot be read ({system or printable(error) or type(error).__name__}); '
                         + ('check it' if system else 'get the file again')) from None


@contextmanager
def open_image(path):
    """Pillow image whose pixels are not yet decoded."""
    if os.path.exists(path) and not os.path.isfile(path):
        kind = 'a folder without photos, or that may not be read' if os.path.isdir(path) else 'no regular file'
        raise OSError(EINVAL, f'it is {kind}')                # opening a pipe would wait for ever
    with Image.open(path, formats=FORMATS) as image:
        yield image


def load(path, draft=None):
    """Decoded Pillow image, of several the first. A JPEG may come at a half, quarter or eighth if that covers
    draft (w, h)."""
    with naming(path, 'check its name'), open_image(path) as image:
        if draft is not None:
            image.draft('RGB', tuple(max(1, int(v)) for v in draft))
        image.load()
        return image


def to_rgb(image):
    """Pillow image of any mode -> RGB, turned the way its EXIF tag says."""
    if image.getexif().get(0x0112, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith('I'):                # 16 bits, which Pillow would clip
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image if image.mode == 'RGB' else image.convert('RGB')


def read_photo(path, draft=None):
    """RGB Pillow image of a file, the way it is meant to be seen."""
    image = load(path, draft)
    with naming(path):
        return to_rgb(image)


def photo_size(path):
    """(width, height) after the EXIF turn, from the header alone."""
    with naming(path), open_image(path) as image:
        turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


def read_labels(path, num_classes=UNKNOWN):
    """Label PNG -> uint8 (H, W): channel 0 of a color image (MHP's are RGB), the indices of a palette."""
    image = load(path)
    if image.mode not in ('1', 'L', 'P', 'LA', 'PA', 'RGB', 'RGBA'):
        raise ValueError(f'{path} is no 8-bit label map (mode {image.mode}); unpack it again')
    labels = np.asarray(image.getchannel(0) if len(image.getbands()) > 1 else image).astype(np.uint8)
    if labels.max(initial=0) > num_classes:
        strange = labels[(labels > num_classes) & (labels != UNKNOWN)]
        if len(strange):
            raise ValueError(f'{path} has the label {strange[0]}, but there are only {num_classes} classes; '
                             'is it of another data set?')
    return labels


def index_folder(folder, endings=PHOTOS):
    """{name without ending: path} of a folder's files, sorted. One look: a glob an image takes minutes."""
    with naming(folder):
        files = sorted((e.name, e.path) for e in os.scandir(folder) if not e.name.startswith('.'))
    return {os.path.splitext(n)[0]: path for n, path in files if n.lower().endswith(endings)}


def pick_files(folder, ids, endings=PHOTOS):
    """Paths of the files named by ids; FileNotFoundError with the first missing one and their number."""
    files = index_folder(folder, endings)
    missing = [i for i in ids if i not in files]
    if missing:
        raise FileNotFoundError(f'{folder} lacks {len(missing)} of {len(ids)} files, the first is '
                                f'{missing[0]}{endings[0]}; unpack the download again')
    return [files[i] for i in ids]


def pick_all(folder):
    """index_folder; FileNotFoundError where there is no photo."""
    files = index_folder(folder)
    if not files:
        raise FileNotFoundError(f'{folder} holds no photos ({", ".join(PHOTOS)})')
    return files


def read_list(path):
    with naming(path), open(path) as f:
        return list(dict.fromkeys(f.read().split()))


def inside(root, name):
    """root/name where there is such a folder, else root: people give either."""
    return os.path.join(root, name) if os.path.isdir(os.path.join(root, name)) else root


def read_map(path, shape, largest=65535):
    """Channel 0 of a .png (the indices of a palette image), of this shape (H, W) and labels 0..largest."""
    try:
        with Image.open(path) as image:
            labels = np.asarray(image.getchannel(0) if len(image.getbands()) > 1 else image)
    except FileNotFoundError:
        raise FileNotFoundError(f'{path} is missing; write the predictions again') from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f'{path} cannot be read as an image ({error}); write it again') from None
    if labels.shape != shape:
        raise ValueError(f'{path} is {labels.shape[1]}x{labels.shape[0]} pixels, but the ground truth is '
                         f'{shape[1]}x{shape[0]}; write predictions in the size of the photo')
    if not labels.max() <= largest:
        raise ValueError(f'{path} holds the label {labels.max()}, but the labels are 0..{largest}')
    return labels.astype(np.uint8, copy=False) if largest < 256 else labels


def read_rows(path, parse, form):
    """parse(words) of each line of a text file with spaces or commas between the words."""
    if not path.is_file():
        raise FileNotFoundError(f'{path} is missing; write the predictions again')
    rows = []
    for i, line in enumerate(path.read_text().splitlines(), 1):
        try:
            rows += [parse(line.replace(',', ' ').split())] if line.strip() else []
        except (ValueError, LookupError):
            raise ValueError(f'{path}, line {i} is {line[:60]!r}, but should be {form}') from None
    return rows


def find_photos(arguments, out=None):
    """Files, folders (but for `out`, which holds results) and globs -> list of paths, each once, in a stable order."""
    paths = []
    for argument in arguments:
        if os.path.isdir(argument):
            found = []                                   # with the folders that may not be read
            for folder, _, names in os.walk(argument, onerror=lambda error: found.append(Path(error.filename))):
                found += [Path(folder, name) for name in names if Path(name).suffix.lower() in ENDINGS]
            found = [p for p in found if not (out and Path(out).resolve() in Path(os.path.realpath(p)).parents)]
        elif os.path.lexists(argument) or not glob.has_magic(argument):
            found = [Path(argument)]
        else:
            found = [Path(p) for p in glob.glob(argument, recursive=True) if not os.path.isdir(p)]
        paths += sorted(found) or [Path(argument)]       # what is missing is reported when its turn comes
    return list(dict.fromkeys(paths))


def result_names(paths):
    """A name for each photo's results: its stem, or where several have that stem, told apart by folder or number."""
    def folded(name):                                    # some file systems know no capitals, or one form of an accent
        return unicodedata.normalize('NFC', name).casefold()

    names, taken = [], set()
    stems = Counter(folded(p.stem) for p in paths)
    for p in paths:
        several = stems[folded(p.stem)] > 1
        name = f'{p.parent.name}_{p.stem}{p.suffix.replace(".", "_")}'.lstrip('_') if several else p.stem
        while len(os.fsencode(name)) > 150:              # of 255 bytes that a name may have: `_person1_..` follows
            name = name[:-1]
        unique, n = name, 1
        while folded(unique) in taken:
            n += 1
            unique = f'{name}_{n}'
        taken.add(folded(unique))
        names.append(unique)
    return names


def make_folder(path):
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise OSError(f'{path} cannot be made a folder ({error.strerror}); choose another') from None


@contextmanager
def writing(path):
    try:
        yield
    except OSError as error:
        raise OSError(f'{path} cannot be written ({error.strerror or error}); make room or choose another '
                      'folder') from None


def write_file(path, content):
    """Text or bytes, under another name until it is complete."""
    path = Path(path)
    make_folder(path.parent)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        with writing(path):
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_png(path, image):
    png = io.BytesIO()
    image.save(png, format='PNG', compress_level=1)      # a third of the time, 6 % more bytes
    write_file(path, png.getvalue())
