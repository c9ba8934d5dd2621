"""index.html of a folder of results.

Claimed: it names each photo with its number of people, its links lead to all files of the folder, in
every browser and without a connection, and it replaces no other page.
"""
import json
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

import infer
from tests.helpers import call, write_photo, write_video
from util.files import MARK, counted
from util.index import write_index
from util.results import Parsing, write_results

NAMES = ['background', 'hair', 'T-shirt <&> "top"']


class Page(HTMLParser):
    """What a browser makes of a page: addresses, tags, lines of text."""

    def __init__(self, path):
        super().__init__()
        self.addresses = []
        self.tags = []
        self.colors = []
        self.lines = []
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ('href', 'src'):
                self.addresses.append(value)
            if tag == 'i':
                self.colors.append(value.removeprefix('background: '))

    def handle_data(self, data):
        self.lines += filter(str.strip, data.split('\n'))

    def files(self):
        """The paths that the addresses lead to."""
        for address in self.addresses:
            parts = urlsplit(address)
            assert not (parts.scheme or parts.netloc or parts.query or parts.fragment), address
        return {unquote(address) for address in self.addresses}


def save(folder, name, labels, **options):
    """Results of a gray photo with one person per label map."""
    maps = np.array(labels, np.uint8)
    count, height, width = maps.shape
    photo = Image.new('RGB', (width, height), 'gray')
    found = Parsing(maps, np.linspace(0.9, 0.5, count), np.ones((count, 2)), NAMES, photo, f'in/{name}.jpg')
    write_results(folder, name, found, **options)


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('name', ['a', 'a #1 50% ?x=<b>&"c\'', 'a:b', 'é 中', '..a', 'index'])
def test_links_lead_to_all_files_of_a_photo_of_any_name(tmp_path, name):
    maps = np.zeros((2, 20, 30), np.uint8)
    maps[0, :9, :9] = 1
    maps[1, 9:, :9] = 2
    save(tmp_path, name, maps, cutouts=True)
    write_index(tmp_path)
    page = Page(tmp_path / 'index.html')
    assert page.files() == files_of(tmp_path) - {'index.html'} and len(page.files()) == 8
    assert f'in/{name}.jpg' in page.lines and ': 2 people' in page.lines and '1 photo, 2 people' in page.lines
    # The legend has the colors of the label map and the names as they are.
    palette = Image.open(tmp_path / f'{name}_parts.png').getpalette()
    assert page.colors == ['#%02x%02x%02x' % tuple(palette[3 * i:3 * i + 3]) for i in (1, 2)]
    assert NAMES[2] in page.lines and {'script', 'link', 'b', 'iframe'} & set(page.tags) == {'b'}


def test_an_overlay_of_people_has_names_without_colors_of_parts(tmp_path):
    """It is the photo, in its size, with each person in the color of NAME_people.png."""
    maps = np.zeros((2, 90, 60), np.uint8)
    maps[0, 30:80, :20] = 1
    maps[1, 30:80, 40:] = 2
    save(tmp_path, 'a', maps, people=True)
    drawn = np.asarray(Image.open(tmp_path / 'a_overlay.jpg'), float)
    ids = Image.open(tmp_path / 'a_people.png')
    colors = np.array(ids.getpalette()).reshape(-1, 3)
    assert drawn.shape == (90, 60, 3)
    for n, x in ((1, 8), (2, 50)):
        assert np.asarray(ids)[60, x] == n
        assert np.abs(drawn[55:70, x - 4:x + 4] - 0.45 * 128 - 0.55 * colors[n]).max() < 9
    write_index(tmp_path)
    page = Page(tmp_path / 'index.html')
    assert page.colors == [] and set(NAMES[1:]) <= set(page.lines)


def test_a_run_adds_its_photos_to_those_of_earlier_runs(checkpoint, tmp_path):
    for k in 0, 1:
        write_photo(tmp_path / f'{k}.png', k)
        done = call(infer, tmp_path / f'{k}.png', '--weights', checkpoint, '--out', tmp_path / 'out')
        assert done.returncode == 0, done.stderr
    page = Page(tmp_path / 'out' / 'index.html')
    people = [len(json.loads((tmp_path / 'out' / f'{k}.json').read_text())['people']) for k in (0, 1)]
    assert f'2 photos, {sum(people)} people' in page.lines
    assert [line for line in page.lines if line.endswith('.png') and '/' in line] == [str(tmp_path / f'{k}.png') for k in (0, 1)]
    assert page.files() == files_of(tmp_path / 'out') - {'index.html'}
    # A broken photo costs the others nothing.
    (tmp_path / '2.png').write_text('no photo')
    write_photo(tmp_path / '3.png', 3)
    done = call(infer, tmp_path / '2.png', tmp_path / '3.png', '--weights', checkpoint, '--out', tmp_path / 'out')
    assert done.returncode == 2 and '3 photos' in (tmp_path / 'out' / 'index.html').read_text()


def test_the_page_of_another_stays(checkpoint, tmp_path):
    write_photo(tmp_path / 'a.png')
    (tmp_path / 'index.html').write_text('my site')
    done = call(infer, 'a.png', '--weights', checkpoint, '--out', '.', cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == 'index.html is not of this program and stays as it is\n'
    assert (tmp_path / 'index.html').read_text() == 'my site' and (tmp_path / 'a.json').exists()


def test_photos_come_in_the_order_of_their_numbers_and_other_files_are_none(tmp_path):
    maps = np.ones((1, 4, 6), np.uint8)
    for name in 'f_10', 'f_2', 'f_1':
        save(tmp_path, name, maps)
    (tmp_path / 'labels.json').write_text('{"photo": "x", "people": []}')            # not ours
    (tmp_path / 'cut.json').write_text(json.dumps(dict(software=MARK))[:-1])
    (tmp_path / 'list.json').write_text(json.dumps([MARK]))
    (tmp_path / 'video.jsonl').write_text(json.dumps(dict(software=MARK)) + '\n')
    write_index(tmp_path)
    page = Page(tmp_path / 'index.html')
    assert [line for line in page.lines if line.startswith('in/')] == [f'in/f_{k}.jpg' for k in (1, 2, 10)]
    assert '3 photos, 3 people, 1 video' in page.lines and 'labels.json' not in page.files()


def test_nouns_follow_their_numbers():
    assert counted(1, 'photo') == '1 photo' and counted(0, 'photo') == '0 photos'
    assert counted(1, 'person', 'people') == '1 person' and counted(12345, 'person', 'people') == '12,345 people'


def test_a_folder_without_results_gets_no_page(tmp_path):
    write_index(tmp_path)
    assert not list(tmp_path.iterdir())


def test_videos_are_on_the_page(checkpoint, tmp_path):
    pytest.importorskip('av')
    write_video(tmp_path / 'v.mp4')
    done = call(infer, tmp_path / 'v.mp4', '--weights', checkpoint, '--out', tmp_path / 'out', '--max-size', '32')
    assert done.returncode == 0, done.stderr
    page = Page(tmp_path / 'out' / 'index.html')
    assert page.files() == {'v_overlay.mp4', 'v.jsonl'} and 'video' in page.tags
