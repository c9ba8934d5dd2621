"""Files: finding, naming, reading and writing them; any error is one sentence. Needs no torch."""
import glob
import io
import json
import os
import re
import sys
import unicodedata
import warnings
from collections import Counter
from contextlib import contextmanager
from errno import EINVAL
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

UNKNOWN = 255                                                 # label of a pixel whose part is unknown
PHOTOS = '.jpg', '.jpeg', '.png'                              # of data sets
ENDINGS = {*PHOTOS, '.webp', '.bmp', '.gif', '.tif', '.tiff'}                # of a user's photos
FORMATS = 'JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF'         # Pillow knows more, and starts Ghostscript for one
MODERN = {'.avif': 'AVIF', '.heic': 'HEIF', '.heif': 'HEIF'}  # read where this Pillow or a plugin can
EXHAUSTED = "can't start new thread", 'DefaultCPUAllocator'   # in messages of Python and torch
USER_ERRORS = OSError, ValueError, ModuleNotFoundError, MemoryError, RuntimeError
MARK = 'UniParser in pure PyTorch'                            # in every result: other files are never replaced
warnings.filterwarnings('ignore', module='PIL')               # about files that are odd but readable


@contextmanager
def user_errors():
    """In a command: a user's mistake becomes one sentence on stderr and exit code 2, without a traceback."""
    try:
        yield
    except USER_ERRORS as error:
        print(f'error: {explain(error)}', file=sys.stderr)
        sys.exit(2)


def explain(error):
    """One of USER_ERRORS as a sentence; a bug is raised again."""
    if isinstance(error, RuntimeError) and not is_exhausted(error):
        raise error
    if is_exhausted(error):
        return 'the memory or the threads of this machine are used up; end other programs'
    return '\n'.join(map(printable, str(error).split('\n')))


def is_exhausted(error):
    """Whether an error says that this machine's memory or threads are used up."""
    known = isinstance(error, RuntimeError) and any(text in str(error) for text in EXHAUSTED)
    return known or isinstance(error, MemoryError)


def add_modern_formats():
    """Registers HEIC and AVIF where pillow-heif is installed and Pillow has libavif."""
    global FORMATS
    try:
        import pillow_heif
        pillow_heif.register_heif_opener()
    except ImportError:
        pass
    Image.init()
    readable = {ending: kind for ending, kind in MODERN.items() if kind in Image.OPEN}
    ENDINGS.update(readable)
    FORMATS += tuple(sorted(set(readable.values())))


add_modern_formats()


# ---- finding and naming ------------------------------------------------------------------------------------


def printable(text):
    """Text without line breaks, terminal codes and undecodable bytes, which file names may hold."""
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def short(text, length=80):
    """Text from a file, fit to be printed: printable and of this length at most."""
    return printable(text)[:length]


def check_name(name, source, advice, folders=False):
    """ValueError where a name, after which files are written or read, would leave its folder or is no name of a file.
    folders: it may name a file in a folder inside."""
    parts = os.path.normpath(name).split(os.sep) if folders else [name]
    bad = any(p in ('', '.', '..') or {'/', os.sep} & set(p) or len(p.encode(errors='replace')) > 255 for p in parts)
    if bad or '\0' in name:
        raise ValueError(f'{source} {short(name)!r}, which is not a file name; {advice}')


ROOT_ADVICE = '--root is the folder of the unpacked download'


@contextmanager
def naming(path, advice=ROOT_ADVICE):
    """Turns any error about a file into one sentence that names the file and says what to do."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f'{printable(path)} does not exist; {advice}') from None
    except Image.DecompressionBombError:
        most = 2 * Image.MAX_IMAGE_PIXELS // 10 ** 6
        raise ValueError(f'{printable(path)} has more than {most} million pixels; make it smaller') from None
    except UnidentifiedImageError:
        reason = f'not a {", ".join(FORMATS[:-1])} or {FORMATS[-1]}' if os.path.getsize(path) else 'empty'
        raise ValueError(f'{printable(path)} cannot be read (it is {reason}); replace it or leave it out') from None
    except Exception as error:                    # Pillow, scipy and json raise a dozen classes
        system = isinstance(error, OSError) and error.strerror
        raise ValueError(f'{printable(path)} cannot be read ({system or short(error, 300) or type(error).__name__}); '
                         + ('check the path' if system else 'get the file again')) from None


def index_folder(folder, endings=PHOTOS, advice=ROOT_ADVICE):
    """{name without ending: path} of a folder's files, sorted. The folder is listed once: a glob per image takes
    minutes on large data sets."""
    with naming(folder, advice):
        files = sorted((e.name, e.path) for e in os.scandir(folder) if not e.name.startswith('.'))
    return {os.path.splitext(n)[0]: path for n, path in files if n.lower().endswith(endings)}


def pick_files(folder, ids, endings=PHOTOS):
    """Paths of the files named by ids; FileNotFoundError with the first missing one and their number."""
    files = index_folder(folder, endings)
    missing = [i for i in ids if i not in files]
    if missing:
        raise FileNotFoundError(f'{printable(folder)} lacks {len(missing)} of {len(ids)} files, the first is '
                                f'{short(missing[0])}{endings[0]}; unpack the download again')
    return [files[i] for i in ids]


def pick_all(folder):
    """index_folder; FileNotFoundError where there is no photo."""
    files = index_folder(folder, advice='give a folder of photos')
    if not files:
        raise FileNotFoundError(f'{folder} holds no photos ({", ".join(PHOTOS)})')
    return files


def inside(root, name):
    """root/name if that folder exists, else root: users give either."""
    return os.path.join(root, name) if os.path.isdir(os.path.join(root, name)) else root


def by_number(path):
    """Sorting key of a path by which frame_2.png comes before frame_10.png."""
    words = [re.split(r'(\d+)', part) for part in path.parts]                # every second word is a number
    return [[int(word) if i % 2 else word for i, word in enumerate(part)] for part in words], path


def find_photos(arguments):
    """Files, folders (without the results of earlier runs in them) and globs -> list of paths without repeats, in the
    order of the arguments; those of a folder or glob in the order of their names, numbers by value."""
    paths = []
    if '' in arguments:
        raise ValueError('the name of a photo is empty; give files, folders or globs')
    unreadable = []                               # photos in formats for which a package is missing
    for argument in arguments:
        if os.path.isdir(argument):
            found = []                            # folders without read permission are listed too
            for folder, _, names in os.walk(argument, onerror=lambda error: found.append(Path(error.filename))):
                found += [Path(folder, name) for name in names if Path(name).suffix.lower() in ENDINGS]
                unreadable += [name for name in names if Path(name).suffix.lower() in set(MODERN) - ENDINGS]
            found = [p for p in found if not (p.suffix.lower() == '.png' and p.is_file() and is_ours(p))]
        elif os.path.lexists(argument) or not glob.has_magic(argument):
            found = [Path(argument)]
        else:
            found = [Path(p) for p in glob.glob(argument, recursive=True) if not os.path.isdir(p)]
        paths += sorted(found, key=by_number) or [Path(argument)]            # a missing file is reported later
    if unreadable:
        print(f'skipped: {len(unreadable)} photos such as {printable(unreadable[0])}; HEIC needs pip install '
              'pillow-heif, AVIF a newer Pillow', file=sys.stderr)
    return list(dict.fromkeys(paths))


def result_names(paths):
    """A unique name for the results of each photo: its stem; photos with the same stem add folder, ending or number."""
    def folded(name):                             # file systems may ignore capitals or the form of an accent
        return unicodedata.normalize('NFC', name).casefold()

    names, taken, last = [], set(), Counter()
    stems = Counter(folded(p.stem) for p in paths)
    for p in paths:
        several = stems[folded(p.stem)] > 1
        name = f'{p.parent.name}_{p.stem}{p.suffix.replace(".", "_")}'.lstrip('_') if several else p.stem
        while len(os.fsencode(name)) > 150:       # the limit is 255 bytes, and `_person1_..` follows
            name = name[:-1]
        unique, n = name, last[name] or 1
        while folded(unique) in taken:
            n += 1
            unique = f'{name}_{n}'
        last[name] = n                                        # the next photo of this name begins here
        taken.add(folded(unique))
        names.append(unique)
    return names


# ---- reading -----------------------------------------------------------------------------------------------


@contextmanager
def open_image(path):
    """Pillow image whose pixels are not yet decoded."""
    if os.path.exists(path) and not os.path.isfile(path):
        kind = 'a folder without photos, or without read permission' if os.path.isdir(path) else 'not a regular file'
        raise OSError(EINVAL, f'it is {kind}')    # opening a pipe would block
    with Image.open(path, formats=FORMATS) as image:
        yield image


def load_image(path, draft=None):
    """Decoded Pillow image; the first of a file with several. A JPEG may be decoded at a half, quarter or eighth of
    its size if that covers draft (w, h)."""
    with naming(path, 'check its name'), open_image(path) as image:
        if draft is not None:
            image.draft('RGB', tuple(max(1, int(v)) for v in draft))
        image.load()
        return image


def to_rgb(image):
    """Pillow image of any mode -> RGB. Transparency is dropped."""
    if image.mode.startswith('I'):                # 16 bits, which Pillow would clip
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image if image.mode == 'RGB' else image.convert('RGB')


def upright(image):
    """Pillow image, turned as its EXIF tag says."""
    return ImageOps.exif_transpose(image) if image.getexif().get(0x0112, 1) != 1 else image


def read_photo(path):
    """A user's photo: RGB Pillow image, turned as its EXIF tag says."""
    image = load_image(path)
    with naming(path):
        return to_rgb(upright(image))


def read_stored(path, draft=None):
    """A photo of a data set: RGB Pillow image as stored. Its labels were drawn on the stored pixels, so an EXIF tag
    turns neither."""
    image = load_image(path, draft)
    with naming(path):
        return to_rgb(image)


def stored_size(path):
    """(width, height) of a data set's photo, from the header alone."""
    with naming(path), open_image(path) as image:
        return image.size


def first_channel(image):
    """Pillow image -> array (H, W) of integers: channel 0 of a color image (MHP's label maps are RGB), the indices of a
    palette. ValueError for negative or fractional values."""
    labels = np.asarray(image.getchannel(0) if len(image.getbands()) > 1 else image)
    if labels.dtype.kind == 'f' and not (labels == np.round(labels)).all() or labels.min(initial=0) < 0:
        raise ValueError(f'its labels are no integers from 0 on (mode {image.mode})')
    return labels


def read_labels(path, num_classes=UNKNOWN):
    """Label map of a data set -> uint8 (H, W) with labels 0..num_classes and 255."""
    image = load_image(path)
    if image.mode not in ('1', 'L', 'P', 'LA', 'PA', 'RGB', 'RGBA'):
        raise ValueError(f'{path} is no 8-bit label map (mode {image.mode}); unpack it again')
    labels = first_channel(image).astype(np.uint8)
    if labels.max(initial=0) > num_classes:
        strange = labels[(labels > num_classes) & (labels != UNKNOWN)]
        if len(strange):
            raise ValueError(f'{path} has the label {strange[0]}, but there are only {num_classes} classes; '
                             'is it of another data set?')
    return labels


def read_prediction(path, shape, largest=65535):
    """Label map of a prediction, which must have this shape (H, W) and labels 0..largest; uint8 where they fit."""
    name = printable(path)
    try:
        with open_image(path) as image:
            width, height = image.size                        # before decoding: the file may claim any size
            labels = first_channel(image) if (height, width) == shape else None
    except FileNotFoundError:
        raise FileNotFoundError(f'{name} is missing; write the predictions again') from None
    except Exception as error:                    # Pillow raises a dozen classes
        raise ValueError(f'{name} cannot be read as a label map ({short(error, 300)}); write it again') from None
    if labels is None:
        raise ValueError(f'{name} is {width}x{height} pixels, but the ground truth is {shape[1]}x{shape[0]}; write '
                         'predictions in the size of the photo')
    if not labels.max() <= largest:
        raise ValueError(f'{name} holds the label {labels.max()}, but the labels are 0..{largest}')
    return labels.astype(np.uint8 if largest < 256 else np.int32, copy=False)


def read_list(path, *advice):
    """Words of a text file, each once. advice: see `naming`."""
    with naming(path, *advice), open(path) as f:
        return list(dict.fromkeys(f.read().split()))


def read_rows(path, parse, form):
    """parse(words) of each line of a text file with spaces or commas between the words."""
    if not path.is_file():
        raise FileNotFoundError(f'{printable(path)} is missing; write the predictions again')
    with naming(path):
        lines, rows = path.read_text().splitlines(), []
    for i, line in enumerate(lines, 1):
        try:
            rows += [parse(line.replace(',', ' ').split())] if line.strip() else []
        except (ValueError, LookupError, OverflowError):
            raise ValueError(f'{printable(path)}, line {i} is {line[:60]!r}, but should be {form}') from None
    return rows


# ---- writing -----------------------------------------------------------------------------------------------


def make_folder(path):
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise OSError(f'{printable(path)} cannot be made a folder ({error.strerror}); choose another') from None


@contextmanager
def writing(path):
    """Turns an error while writing into one sentence that names the file."""
    try:
        yield
    except OSError as error:
        if not error.strerror:                    # a sentence already, of `make_folder`
            raise
        raise OSError(f'{printable(path)} cannot be written ({error.strerror}); make room or choose another '
                      'folder') from None


@contextmanager
def replacing(path):
    """The temporary path of this process, renamed to `path` at the end: no half-written file is left, and no error or
    kill harms what `path` held before."""
    path = Path(path)
    make_folder(path.parent)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder, names):
    """Removes what killed processes left of files with these names (globs) in a folder that no other process writes
    to."""
    for path in (path for name in names for path in Path(folder).glob(f'.{name}.*')):
        if path.suffix[1:].isdigit() and path.is_file():
            path.unlink(missing_ok=True)


def write_file(path, content):
    """Writes text or bytes to a file that the user named: it is replaced."""
    with writing(path), replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path, content):
    """write_file of JSON; NaN, which JSON lacks, becomes null."""
    content = json.loads(json.dumps(content), parse_constant=lambda _: None)
    write_file(path, json.dumps(content, indent=1) + '\n')


def is_ours(path):
    """Whether a file carries the mark that `write_result`, `write_png` and, at its end, an MP4 file leave."""
    try:
        with open(path, 'rb') as file:
            if str(path).endswith('.mp4'):
                file.seek(max(0, os.path.getsize(path) - 2048))
            return MARK.encode() in file.read(2048)
    except OSError:                                           # reading it as a photo reports what is wrong
        return False


def check_target(path, inputs=()):
    """ValueError where a result would replace a file that this program did not write, or one of the inputs (real
    paths)."""
    if os.path.lexists(path) and not (os.path.isfile(path) and is_ours(path)):
        raise ValueError(f'{printable(path)} exists and this program did not write it; choose another --out')
    if os.path.realpath(path) in inputs:
        raise ValueError(f'{printable(path)} is an input and would be replaced by a result; choose another --out')


def check_pair(path):
    """ValueError where NAME.txt beside a result NAME.png is not ours: it cannot carry the mark, but the PNG does."""
    lines = Path(path).with_suffix('.txt')
    if os.path.lexists(lines) and not is_ours(path):
        raise ValueError(f'{printable(lines)} exists and this program did not write it; choose another --out')


def write_result(path, content):
    """write_file for a name that this program chose: only files with its mark are replaced."""
    check_target(path)
    write_file(path, content)


def write_png(path, image):
    """Writes a Pillow image as a result, with the mark."""
    png, info = io.BytesIO(), PngInfo()
    info.add_text('Software', MARK)
    image.save(png, format='PNG', compress_level=1, pnginfo=info)            # a third of the time, 6 % more bytes
    write_result(path, png.getvalue())


def write_pair(path, image, text):
    """write_png, and NAME.txt beside it."""
    check_pair(path)
    write_png(path, image)
    write_file(Path(path).with_suffix('.txt'), text)


def write_array(path, array):
    """Writes an array as a result, .npy. The mark is a comment in its header, which is a Python expression that ends in
    spaces."""
    npy, mark = io.BytesIO(), f'# {MARK}\n'.encode()
    np.save(npy, np.ascontiguousarray(array))
    write_result(path, npy.getvalue().replace(b' ' * (len(mark) - 1) + b'\n', mark, 1))
