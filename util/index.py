"""index.html of a folder of results: each photo with its people, parts and files, for a browser.

The page follows from the NAME.json and NAME.jsonl files of the folder: photos of earlier runs stay
in it. It needs no script and no connection. Needs no torch.
"""
import html
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from util.coco_export import NAME as ANNOTATIONS
from util.files import MARK, by_number, check_target, counted, is_ours, printable, write_file
from util.results import find_cutouts

# The files of a photo NAME, of all commands that write NAME.json.
OVERLAYS = '{}_overlay.jpg', 'overlays/{}.jpg'
LABEL_MAPS = '{}_parts.png', '{}.png', 'global_parsing/{}.png'
FILES = (*OVERLAYS, *LABEL_MAPS, '{}_people.png', 'global_tag/{}.png', 'instance_parsing/{}.png',
         '{}_maps.png', '{}_mask.png', '{}_agnostic.jpg', '{}.npy', '{}.json')
VIDEO_FILES = '{}_overlay.mp4', '{}.jsonl'
HEIGHT = 640                                      # pixels of a thumbnail, at most

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="generator" content="{mark}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{font: 15px/1.5 sans-serif; margin: 24px}}
main {{display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 32px}}
figure {{margin: 0; content-visibility: auto; contain-intrinsic-size: auto 640px}}
figure > a > img {{height: auto; object-fit: cover; object-position: top}}
video {{width: 100%; height: auto}}
figcaption p {{margin: 4px 0}}
b {{overflow-wrap: anywhere}}
i {{display: inline-block; width: 12px; height: 12px; margin: 0 4px 0 0; border: 1px solid black}}
span {{white-space: nowrap; margin-right: 10px}}
details img {{background: silver; margin: 2px; max-width: 100%; max-height: 90px}}
</style>
<h1>{title}</h1>
<p>{summary}</p>
<main>
{entries}
</main>
</html>
"""


def write_index(folder: str | Path):
    """Writes the page of a folder, if there are results in it. A page of another origin stays."""
    folder = Path(folder)
    photos = []
    people = 0
    for name, record in read_records(folder):
        photos.append(photo_entry(folder, name, record))
        people += len(record['people'])
    videos = [video_entry(folder, name) for name in names_of(folder, '.jsonl')]
    if not photos and not videos:
        return
    path = folder / 'index.html'
    try:
        check_target(path)
    except ValueError:
        print(f'{printable(path)} is not of this program and stays as it is', file=sys.stderr)
        return
    counts = counted(len(photos), 'photo'), counted(people, 'person', 'people')
    if videos:
        counts += counted(len(videos), 'video'),
    page = PAGE.format(mark=MARK, title=text(folder.resolve().name), summary=', '.join(counts),
                       entries='\n'.join(photos + videos))
    write_file(path, page)


def names_of(folder: Path, ending: str) -> list[str]:
    """The names of the results with this ending, numbers by value."""
    paths = [path for path in folder.glob(f'*{ending}') if path.is_file() and is_ours(path)]
    return [path.name.removesuffix(ending) for path in sorted(paths, key=by_number)]


def read_records(folder: Path) -> Iterator[tuple[str, dict]]:
    """Yields the name and the record of each photo in the folder."""
    for name in names_of(folder, '.json'):
        if f'{name}.json' == ANNOTATIONS:         # of all photos: large, and no record
            continue
        try:
            record = json.loads((folder / f'{name}.json').read_text())
        except (OSError, ValueError):             # damaged by another program
            continue
        if isinstance(record, dict) and {'photo', 'people'} <= record.keys():
            yield name, record


# ---- pieces of the page --------------------------------------------------------------------------


def photo_entry(folder: Path, name: str, record: dict) -> str:
    """The figure of a photo: thumbnail, number of people, legend, links to its files."""
    files = existing(folder, FILES, name)
    image = ''
    of_parts = True
    overlays = existing(folder, OVERLAYS, name)
    if overlays:
        # An overlay has a legend at its lower edge, one of people (--colors) has none.
        with Image.open(folder / overlays[0]) as picture:
            of_parts = picture.height > record['height']
        # Without that legend, which would be too small to read here.
        width = record['width'] * HEIGHT / record['height']
        style = (f'width: min(100%, {width:.0f}px); '
                 f'aspect-ratio: {record["width"]} / {record["height"]}')
        image = link(overlays[0], f'<img src="{address(overlays[0])}" style="{style}" '
                                  'loading="lazy" alt="">')
    return (f'<figure>{image}<figcaption><p><b>{text(record["photo"])}</b>: '
            f'{counted(len(record["people"]), "person", "people")}</p>'
            f'<p>{legend(folder, name, record["people"], of_parts)}</p>'
            f'<p>{links(files)}</p>{cutout_list(folder / f"{name}_cutouts")}</figcaption></figure>')


def video_entry(folder: Path, name: str) -> str:
    """The figure of a video, with links to its files."""
    files = existing(folder, VIDEO_FILES, name)
    source = address(VIDEO_FILES[0].format(name))
    return (f'<figure><video src="{source}" controls preload="none" width="320"></video>'
            f'<figcaption><p><b>{text(name)}</b></p><p>{links(files)}</p></figcaption></figure>')


def legend(folder: Path, name: str, people: list[dict], colored: bool = True) -> str:
    """Names of the parts of all people, by id, and their colors."""
    names = {}
    for person in people:
        for part in person['parts']:
            names[part['id']] = part['name']
    colors = colors_of(folder, name) if colored else b''
    words = []
    for i, part in sorted(names.items()):
        color = colors[3 * i:3 * i + 3].hex()
        square = f'<i style="background: #{color}"></i>' if color else ''
        words.append(f'<span>{square}{text(part)}</span>')
    return '\n'.join(words)


def colors_of(folder: Path, name: str) -> bytes:
    """The palette of a photo's label map, three bytes per id; empty if there is none."""
    for label_map in existing(folder, LABEL_MAPS, name):
        # Opens the file without reading the pixels, which `getpalette` would do.
        with Image.open(folder / label_map) as image:
            if image.mode == 'P':
                return bytes(image.palette.palette)
    return b''


def cutout_list(folder: Path) -> str:
    """The cut-outs of a photo, folded in."""
    pictures = []
    for path in find_cutouts(folder):
        file = f'{folder.name}/{path.name}'
        title = text(path.stem)
        pictures.append(link(file, f'<img src="{address(file)}" loading="lazy" alt="{title}" '
                                   f'title="{title}">'))
    if not pictures:
        return ''
    number = counted(len(pictures), 'cut-out')
    return f'<details><summary>{number}</summary>{"".join(pictures)}</details>'


def existing(folder: Path, forms: tuple[str, ...], name: str) -> list[str]:
    """The files of a photo that exist, relative to the folder."""
    files = [form.format(name) for form in forms]
    return [file for file in files if (folder / file).is_file()]


def links(files: list[str]) -> str:
    return ',\n'.join(link(file, text(file)) for file in files)


def link(file: str, content: str) -> str:
    return f'<a href="{address(file)}">{content}</a>'


def address(file: str) -> str:
    """The relative address of a file, whatever bytes its name has."""
    return quote(os.fsencode(file))


def text(words) -> str:
    """Any text, harmless in HTML."""
    return html.escape(printable(words))
