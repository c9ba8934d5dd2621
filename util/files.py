"""Files: finding, naming, writing them, and errors in one sentence. Needs no torch.

Every result carries MARK, and only files with the mark are replaced. Every file is written under a
temporary name and renamed, so that no error or kill leaves half of one.
"""
import glob
import io
import json
import math
import os
import re
import sys
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EINVAL
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

UNKNOWN = 255                                     # label of a pixel whose part is unknown
PHOTOS = '.jpg', '.jpeg', '.png'                  # endings in data sets
ENDINGS = {*PHOTOS, '.webp', '.bmp', '.gif', '.tif', '.tiff'}             # of a user's photos
FORMATS = ['JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF']   # another would start Ghostscript
MODERN = {'.avif': 'AVIF', '.heic': 'HEIF', '.heif': 'HEIF'}      # if this Pillow reads them
EXHAUSTED = "can't start new thread", 'DefaultCPUAllocator'   # in messages of Python and torch
USER_ERRORS = OSError, ValueError, ModuleNotFoundError, MemoryError, RuntimeError
MARK = 'UniParser in pure PyTorch'                # in every result
RESULTS = '.png', '.jpg'                          # endings of the pictures among them
ADDRESS = re.compile('(https?|ftp|s3|gs):/', re.IGNORECASE)       # a Path has one slash there
ROOT_ADVICE = '--root is the folder of the unpacked download'

warnings.filterwarnings('ignore', module='PIL')   # about files that are odd but readable


def add_modern_formats():
    """Registers HEIC and AVIF if pillow-heif is installed and Pillow has libavif."""
    try:
        import pillow_heif
        pillow_heif.register_heif_opener()
    except ImportError:
        pass
    Image.init()
    readable = {ending: kind for ending, kind in MODERN.items() if kind in Image.OPEN}
    ENDINGS.update(readable)
    FORMATS.extend(sorted(set(readable.values())))


add_modern_formats()


# ---- errors in one sentence --------------------------------------------------------------------


@contextmanager
def user_errors() -> Iterator[None]:
    """In a command: a user's mistake becomes one sentence on stderr and exit code 2."""
    try:
        yield
    except USER_ERRORS as error:
        # On a line of its own, also where a progress bar is drawn. tools/onnx_parse.py draws none,
        # and works without tqdm.
        bars = sys.modules.get('tqdm')
        write = bars.tqdm.write if bars else print
        write(f'error: {explain(error)}', file=sys.stderr)
        sys.exit(2)


def explain(error: Exception) -> str:
    """One of USER_ERRORS as a sentence; a bug is raised again."""
    if is_exhausted(error):
        return 'the memory or the threads of this machine are used up; end other programs'
    if isinstance(error, RuntimeError):
        raise error
    return '\n'.join(map(printable, str(error).split('\n')))


def is_exhausted(error: Exception) -> bool:
    """Whether an error says that this machine's memory or threads are used up."""
    if isinstance(error, RuntimeError):
        return any(text in str(error) for text in EXHAUSTED)
    return isinstance(error, MemoryError)


def printable(text) -> str:
    """Text without line breaks, terminal codes and undecodable bytes, which file names may hold."""
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def short(text, length: int = 80) -> str:
    """Text from a file, fit to be printed: printable and of this length at most."""
    return printable(text)[:length]


def counted(number: int, one: str, several: str = '') -> str:
    """'1 photo' or '2 photos'; several: of a noun whose plural does not end in s."""
    return f'{number:,} {one if number == 1 else several or one + "s"}'


def check_failures(failed: int, kind: str = 'photo'):
    """Raises a ValueError if photos, or files of another kind, were not parsed.

    Called when all others are done.
    """
    if failed:
        verb = 'was' if failed == 1 else 'were'
        raise ValueError(f'{counted(failed, kind)} {verb} not parsed')


def no_file(name: str, advice: str) -> str:
    """The sentence about a file that does not exist."""
    if ADDRESS.match(name):
        return f'{name} is an address, and files are read; download it first'
    return f'{name} does not exist; {advice}'


@contextmanager
def naming(path: str | Path, advice: str = ROOT_ADVICE) -> Iterator[None]:
    """Turns any error about a file into one sentence that names the file and says what to do."""
    name = printable(path)
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(no_file(name, advice)) from None
    except Image.DecompressionBombError:
        most = 2 * Image.MAX_IMAGE_PIXELS // 10 ** 6
        raise ValueError(f'{name} has more than {most} million pixels; make it smaller') from None
    except UnidentifiedImageError:
        formats = f'not a {", ".join(FORMATS[:-1])} or {FORMATS[-1]}'
        reason = formats if os.path.getsize(path) else 'empty'
        raise ValueError(f'{name} cannot be read (it is {reason}); replace it or leave it '
                         'out') from None
    except Exception as error:                    # Pillow, scipy and json raise a dozen classes
        if isinstance(error, OSError) and error.strerror:     # of the operating system
            raise ValueError(f'{name} cannot be read ({error.strerror}); check the path') from None
        reason = short(error, 300) or type(error).__name__
        raise ValueError(f'{name} cannot be read ({reason}); get the file again') from None


# ---- finding and naming ------------------------------------------------------------------------


def check_name(name: str, source: str, advice: str, folders: bool = False):
    """Raises a ValueError for a name that would leave its folder or is no name of a file.

    source and advice are the start and the end of the sentence. folders: the name may be of a
    file in a folder inside.
    """
    parts = os.path.normpath(name).split(os.sep) if folders else [name]
    bad = '\0' in name
    for part in parts:
        too_long = len(part.encode(errors='replace')) > 255
        bad = bad or too_long or part in ('', '.', '..') or bool({'/', os.sep} & set(part))
    if bad:
        raise ValueError(f'{source} {short(name)!r}, which is not a file name; {advice}')


def index_folder(folder: str | Path, endings: tuple[str, ...] = PHOTOS,
                 advice: str = ROOT_ADVICE) -> dict[str, str]:
    """{name without ending: path} of a folder's files, sorted.

    The folder is listed once: a glob per image takes minutes on large data sets.
    """
    with naming(folder, advice):
        files = sorted((e.name, e.path) for e in os.scandir(folder) if not e.name.startswith('.'))
    return {os.path.splitext(name)[0]: path for name, path in files
            if name.lower().endswith(endings)}


def pick_files(folder: str | Path, ids: list[str], endings: tuple[str, ...] = PHOTOS,
               advice: str = '') -> list[str]:
    """Paths of the files named by ids.

    Raises a FileNotFoundError with the first missing one and their number. advice: the end of that
    sentence; by default, it is about a download.
    """
    files = index_folder(folder, endings, advice or ROOT_ADVICE)
    missing = [i for i in ids if i not in files]
    if missing:
        raise FileNotFoundError(f'{printable(folder)} lacks {len(missing)} of {len(ids)} files, '
                                f'the first is {short(missing[0])}{endings[0]}; '
                                f'{advice or "unpack the download again"}')
    return [files[i] for i in ids]


def pick_all(folder: str | Path) -> dict[str, str]:
    """index_folder; raises a FileNotFoundError if there is no photo."""
    files = index_folder(folder, advice='give a folder of photos')
    if not files:
        raise FileNotFoundError(f'{folder} holds no photos ({", ".join(PHOTOS)})')
    return files


def inside(root: str, name: str) -> str:
    """root/name if that folder exists, else root: users give either."""
    path = os.path.join(root, name)
    return path if os.path.isdir(path) else root


def by_number(path: Path) -> tuple:
    """Sorting key of a path by which frame_2.png comes before frame_10.png."""
    key = []
    for part in path.parts:
        words = re.split(r'(\d+)', part)          # every second word is a number
        key.append([int(word) if i % 2 else word for i, word in enumerate(words)])
    return key, path


def find_photos(arguments: list[str]) -> list[Path]:
    """Files, folders (without the results of earlier runs in them) and globs -> paths.

    They have no repeats and the order of the arguments; those of a folder or glob the order of
    their names, numbers by value.
    """
    if '' in arguments:
        raise ValueError('the name of a photo is empty; give files, folders or globs')
    addresses = [a for a in arguments if ADDRESS.match(a) and not os.path.lexists(a)]
    if addresses:
        raise ValueError(no_file(printable(addresses[0]), ''))
    paths = []
    unreadable = []                               # photos in formats for which a package is missing
    for argument in arguments:
        if os.path.isdir(argument):
            found, lacking = search_folder(argument)
            unreadable += lacking
        elif os.path.lexists(argument) or not glob.has_magic(argument):
            found = [Path(argument)]
        else:
            names = glob.glob(argument, recursive=True)
            found = [Path(name) for name in names if not os.path.isdir(name)]
        # A missing file is reported later.
        paths += sorted(found, key=by_number) or [Path(argument)]
    if unreadable:
        print(f'skipped: {len(unreadable)} photos such as {printable(unreadable[0])}; HEIC needs '
              'pip install pillow-heif, AVIF a newer Pillow', file=sys.stderr)
    return list(dict.fromkeys(paths))


def search_folder(folder: str) -> tuple[list[Path], list[str]]:
    """Photos in a folder and its folders, and names of photos that no package reads.

    Folders without read permission are listed as photos: reading them reports what is wrong.
    """
    photos = []
    unreadable = []
    lacking = set(MODERN) - ENDINGS
    for place, _, names in os.walk(folder, onerror=lambda e: photos.append(Path(e.filename))):
        # macOS puts a file ._NAME beside NAME on disks of others.
        names = [name for name in names if not name.startswith('._')]
        photos += [Path(place, name) for name in names if Path(name).suffix.lower() in ENDINGS]
        unreadable += [name for name in names if Path(name).suffix.lower() in lacking]

    def is_result(path):
        return path.suffix in RESULTS and path.is_file() and is_ours(path)
    return [path for path in photos if not is_result(path)], unreadable


def result_names(paths: list[Path]) -> list[str]:
    """A unique name for the results of each photo: its stem.

    Photos with the same stem add folder, ending or number.
    """
    stems = Counter(normal_form(path.stem) for path in paths)
    names = []
    for path in paths:
        name = path.stem
        if stems[normal_form(path.stem)] > 1:
            ending = path.suffix.replace('.', '_')
            name = f'{path.parent.name}_{path.stem}{ending}'.lstrip('_')
        # The limit is 255 bytes, and an ending such as `_overlay.jpg` follows.
        while len(os.fsencode(name)) > 150:
            name = name[:-1]
        names.append(name)
    return unique_names(names)


def normal_form(name: str) -> str:
    """What equal names share on file systems that ignore capitals or the form of an accent."""
    return unicodedata.normalize('NFC', name).casefold()


def unique_names(names: list[str]) -> list[str]:
    """The names, with numbers behind those that a file system may take for an earlier one."""
    found = []
    taken = set()
    last = Counter()                              # the last number of each name
    for name in names:
        unique = name
        number = last[name] or 1
        while normal_form(unique) in taken:
            number += 1
            unique = f'{name}_{number}'
        last[name] = number                       # the next one of this name begins here
        taken.add(normal_form(unique))
        found.append(unique)
    return found


# ---- texts -------------------------------------------------------------------------------------


def read_list(path: str | Path, *advice: str) -> list[str]:
    """Words of a text file, each once. advice: see `naming`."""
    with naming(path, *advice), open(path) as f:
        return list(dict.fromkeys(f.read().split()))


def read_json(path: str | Path) -> dict:
    """The object in a JSON file; a ValueError that names the file if it holds none."""
    with naming(path), open(path, encoding='utf-8') as file:
        content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError('it holds no object')
    return content


def read_score(value: str | float) -> float:
    """A score in a file; a ValueError for NaN, which has no rank, and for infinite ones."""
    score = float(value)
    if not math.isfinite(score):
        raise ValueError(f'a score is {score}')
    return score


def read_rows(path: Path, parse: Callable, form: str) -> list:
    """parse(words) of each line of a text file with spaces or commas between the words.

    form: of a line, for the sentence about a wrong one.
    """
    if not path.is_file():
        raise FileNotFoundError(f'{printable(path)} is missing; write the predictions again')
    with naming(path):
        lines = path.read_text().splitlines()
    rows = []
    for i, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(parse(line.replace(',', ' ').split()))
        except (ValueError, LookupError, OverflowError):
            raise ValueError(f'{printable(path)}, line {i} is {line[:60]!r}, but should be '
                             f'{form}') from None
    return rows


# ---- writing -----------------------------------------------------------------------------------


def make_folder(path: str | Path):
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise OSError(f'{printable(path)} cannot be made a folder ({error.strerror}); choose '
                      'another') from None


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns an error while writing into one sentence that names the file."""
    try:
        yield
    except OSError as error:
        if not error.strerror:                    # a sentence already, of `make_folder`
            raise
        raise OSError(f'{printable(path)} cannot be written ({error.strerror}); make room or '
                      'choose another folder') from None


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """The temporary path of this process, renamed to `path` at the end.

    No half-written file is left, and no error or kill harms what `path` held before.
    """
    path = Path(path)
    make_folder(path.parent)
    if path.exists() and not path.is_file():      # a folder, or a device such as /dev/null
        raise OSError(EINVAL, 'it is not a regular file')
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: str | Path, names: list[str]):
    """Removes what killed processes left of files with these names (globs).

    No other process may write to the folder.
    """
    for name in names:
        for path in Path(folder).glob(f'.{name}.*'):
            if path.suffix[1:].isdigit() and path.is_file():
                path.unlink(missing_ok=True)


def write_file(path: str | Path, content: str | bytes):
    """Writes text or bytes to a file that the user named: it is replaced."""
    with writing(path), replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, content):
    """write_file of JSON; NaN, which JSON lacks, becomes null."""
    content = json.loads(json.dumps(content), parse_constant=lambda _: None)
    write_file(path, json.dumps(content, indent=1) + '\n')


# ---- results: files with the mark --------------------------------------------------------------


def is_ours(path: str | Path) -> bool:
    """Whether a file carries the mark of a result: at its start, or at the end of an MP4 file."""
    try:
        with open(path, 'rb') as file:
            if str(path).endswith('.mp4'):
                file.seek(max(0, os.path.getsize(path) - 2048))
            return MARK.encode() in file.read(2048)
    except OSError:                               # reading it as a photo reports what is wrong
        return False


def check_target(path: str | Path, inputs: set[str] = frozenset()):
    """Raises a ValueError if a result would replace a file that this program did not write.

    The inputs (real paths) are not replaced either, even if they are earlier results.
    """
    if os.path.lexists(path) and not (os.path.isfile(path) and is_ours(path)):
        raise ValueError(f'{printable(path)} exists and this program did not write it; choose '
                         'another --out')
    if os.path.realpath(path) in inputs:
        raise ValueError(f'{printable(path)} is an input and would be replaced by a result; choose '
                         'another --out')


def check_pair(path: str | Path):
    """Raises a ValueError if NAME.txt beside a result NAME.png is not ours.

    A text cannot carry the mark, but the PNG does.
    """
    lines = Path(path).with_suffix('.txt')
    if os.path.lexists(lines) and not is_ours(path):
        raise ValueError(f'{printable(lines)} exists and this program did not write it; choose '
                         'another --out')


def write_result(path: str | Path, content: str | bytes):
    """write_file for a name that this program chose: only files with its mark are replaced."""
    check_target(path)
    write_file(path, content)


def write_png(path: str | Path, image: Image.Image):
    """Writes a Pillow image as a result, with the mark."""
    png = io.BytesIO()
    info = PngInfo()
    info.add_text('Software', MARK)
    # Level 1 takes a third of the time for 6 % more bytes. Label maps, compressed by their runs
    # alone, have a third to a half fewer bytes.
    options = {'compress_type': zlib.Z_RLE} if image.mode == 'P' else {}
    image.save(png, format='PNG', compress_level=1, pnginfo=info, **options)
    write_result(path, png.getvalue())


def write_jpeg(path: str | Path, image: Image.Image):
    """Writes a Pillow image as a result, with the mark as its comment: a fifth of the bytes and of
    the time of a PNG."""
    jpeg = io.BytesIO()
    # Colors have the full resolution: thin letters and outlines keep theirs.
    image.save(jpeg, format='JPEG', quality=90, subsampling=0, comment=MARK)
    write_result(path, jpeg.getvalue())


def write_pair(path: str | Path, image: Image.Image, text: str):
    """write_png, and NAME.txt beside it."""
    check_pair(path)
    write_png(path, image)
    write_file(Path(path).with_suffix('.txt'), text)


def write_array(path: str | Path, array: np.ndarray):
    """Writes an array as a result, .npy.

    The mark is a comment in its header, which is a Python expression that ends in spaces.
    """
    npy = io.BytesIO()
    np.save(npy, np.ascontiguousarray(array))
    mark = f'# {MARK}\n'.encode()
    spaces = b' ' * (len(mark) - 1) + b'\n'
    write_result(path, npy.getvalue().replace(spaces, mark, 1))
