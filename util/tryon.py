"""The flags and files of virtual try-on, for every command that parses photos of people.

--agnostic: NAME_mask.png and NAME_agnostic.jpg, as the loaders of CatVTON and IDM-VTON read them.
--single: NAME.png, the label map of one person, as in image-parse-v3/ of VITON-HD.
"""
import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from util.agnostic import check_garments, choose_people, map_of_person
from util.cli import add_shared
from util.files import write_jpeg, write_png
from util.pictures import palette, palette_image
from util.results import Parsing

GRAY = 128, 128, 128                              # as in the agnostic pictures of VITON-HD
AGNOSTIC = '_mask.png', '_agnostic.jpg'           # endings of the files of --agnostic
SINGLE = '.png'                                   # .. of --single


# ---- flags -------------------------------------------------------------------------------------


def add_tryon_flags(parser: argparse.ArgumentParser):
    """--agnostic, --single and --person."""
    add_shared(parser, 'agnostic')
    parser.add_argument('--single', action='store_true',
                        help='also write NAME.png, the label map of one person alone')
    parser.add_argument('--person', type=read_person, metavar='ID',
                        help='whom --agnostic and --single are about: the id of a person in '
                             'NAME_people.png, largest, or all (default: largest)')


def read_person(text: str) -> int | str:
    """argparse type of --person, see `choose_people`."""
    if text in ('largest', 'all'):
        return text
    if text.isascii() and text.isdigit() and len(text) < 4 and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(f' is {text[:40]}; give largest, all, or the id of a person, '
                                     'from 1')


def check_tryon_flags(args: argparse.Namespace):
    """ValueError where these flags do not go together with each other or with --only."""
    chosen = args.agnostic or args.single
    if args.person and not chosen:
        raise ValueError('--person is for --agnostic and --single; give one of them, too')
    if args.single and args.person == 'all':
        raise ValueError('--single is for one person; give --person an id, or largest')
    if args.agnostic and args.only:
        raise ValueError('--agnostic needs the parts that --only leaves out; give one of the two')


# ---- files -------------------------------------------------------------------------------------


class TryOn:
    """Writes the files of the flags.

    args         has agnostic, single and person, or none of them
    class_names  of the results, the background first

    Raises a ValueError where --agnostic asks for garments that are none of the classes.
    """

    def __init__(self, args: argparse.Namespace, class_names: list[str]):
        self.agnostic = getattr(args, 'agnostic', None)
        self.single = getattr(args, 'single', False)
        self.person = getattr(args, 'person', None) or 'largest'
        self.endings = AGNOSTIC if self.agnostic else ()
        if self.single:
            self.endings += SINGLE,
        if self.agnostic:
            check_garments(class_names, self.agnostic)

    def write(self, folder: Path, name: str, found: Parsing):
        """Writes the files of a photo with the people `found`."""
        if self.agnostic:
            write_agnostic(folder, name, found.photo, found.agnostic(self.agnostic, self.person))
        if self.single:
            labels = map_of_person(found.parsing, self.person)
            colors = palette(256) if found.colors is None else found.colors
            write_png(folder / f'{name}{SINGLE}', palette_image(labels, colors))

    def message(self, found: Parsing) -> str:
        """What to add to the message about a photo with people: that the chosen one is missing."""
        if not self.endings or choose_people(found.parsing, self.person):
            return ''
        return f', but none has the id {self.person}'


def write_agnostic(folder: Path, name: str, photo: Image.Image, mask: np.ndarray):
    """Writes NAME_mask.png, where 255 is to be drawn anew and 0 is not, and NAME_agnostic.jpg, the
    photo with gray there. mask (H, W) bool."""
    white = Image.fromarray(mask * np.uint8(255))
    write_png(folder / f'{name}_mask.png', white)
    gray = photo.copy()
    gray.paste(GRAY, mask=white)
    write_jpeg(folder / f'{name}_agnostic.jpg', gray)
