"""One COCO file of a folder of photos: what is written, that other programs read it, that --data COCO gives the people back
pixel for pixel, also after CVAT has renumbered everything, and that a training goes on from it. python -m pytest

CVAT reads and writes COCO by Datumaro, Label Studio reads it by label-studio-converter. What the two demand and change is
written down here as functions; docs/annotations.md says how they were checked.
"""
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as official
from pycocotools.coco import COCO as Official

import data
import infer
import train
from tests.helpers import HERE, SHORT, call, tiny_model, write_photo, write_video
from tests.test_coco import plain_counts
from uniparser import UniParser
from util.checkpoints import read_checkpoint
from util.coco_export import Result, annotate, write_annotations
from util.datasets import CIHP, MHP, Synthetic, open_dataset
from util.datasets.coco_file import order_classes, pair_sides
from util.files import MARK
from util.labels import LABEL_SETS
from util.masks import box_of
from util.rle import encode_rle
from util.polygons import fill_polygon, trace_polygons

CLASSES = Synthetic.class_names
TURNED = 'sub/turned.jpg'                        # its EXIF tag turns it
NAMES = ['a b.png', 'sub/é.jpg', TURNED]


def write_turned(path):
    """A photo of 40 x 60 pixels that is stored as 60 x 40."""
    write_photo(path, 5)
    photo = Image.open(path)
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.save(path, exif=exif)


@pytest.fixture(scope='module')
def parsed(checkpoint, tmp_path_factory):
    """A folder of three photos and a broken one, and its results with run lengths and with polygons."""
    place = tmp_path_factory.mktemp('parsed')
    write_photo(place / 'in' / NAMES[0], 0)
    write_photo(place / 'in' / NAMES[1], 1)
    write_turned(place / 'in' / TURNED)
    (place / 'in' / 'broken.jpg').write_text('not a photo')
    for out, more in (('rle', ()), ('polygons', ['--polygons'])):
        done = call(infer, 'in', '--weights', checkpoint, '--out', out, '--whole', '--format', 'coco', *more, cwd=place)
        assert done.returncode == 2 and 'Traceback' not in done.stderr, done.stderr
        assert '3 photos, ' in done.stdout and 'annotations.json' in done.stdout
    return place


def read_file(folder):
    return json.loads((folder / 'annotations.json').read_text())


def read_people(root, split='train'):
    """{name of the photo: parsing} of a data set."""
    dataset = open_dataset('COCO', root, split)
    return {name_of(path): dataset.read(i)[1] for i, path in enumerate(dataset.photos)}


def name_of(path):
    return Path(path).name


@pytest.fixture(scope='module')
def truth(checkpoint, parsed):
    """{name of the photo: parsing} of the model itself."""
    model = UniParser.from_pretrained(checkpoint, whole=True).fold()
    found = {name_of(name): model.predict(parsed / 'in' / name)[0].visible().parsing for name in NAMES}
    assert all(len(parsing) > 1 for parsing in found.values())
    assert any((parsing == 255).any() for parsing in found.values())
    assert found['turned.jpg'].shape[1:] == (60, 40)
    return found


# ---- outlines ----------------------------------------------------------------------------------


def noisy_masks(number):
    """Masks of all kinds: specks, rings, holes in holes, diagonal bridges."""
    rng = np.random.default_rng(0)
    for k in range(number):
        height, width = rng.integers(1, 25, 2)
        mask = rng.random((height, width)) < (0.2, 0.5, 0.7, 0.9)[k % 4]
        if k % 3 == 0:
            mask = mask.repeat(3, 0).repeat(2, 1)
        yield mask


def test_outlines_give_their_mask_back_in_disjoint_rings():
    for mask in noisy_masks(300):
        painted = np.zeros(mask.shape, int)
        for ring in trace_polygons(mask):
            assert len(ring) > 2 and (ring * 2 == np.round(ring * 2)).all()
            painted += fill_polygon(ring, mask.shape[::-1])
        assert (painted == mask).all()


def test_a_hole_stays_open():
    mask = np.zeros((12, 12), bool)
    mask[1:11, 1:11] = True
    mask[4:7, 4:7] = False
    mask[8, 8] = False
    rings = trace_polygons(mask)
    assert len(rings) > 1 and not any(fill_polygon(ring, (12, 12))[5, 5] for ring in rings)
    whole = official.decode(official.merge(official.frPyObjects([ring.ravel().tolist() for ring in rings], 12, 12)))
    assert not whole[5, 5] and not whole[8, 8] and whole[2, 2]


def test_a_disk_needs_few_points():
    rows, columns = np.mgrid[:101, :101]
    mask = np.hypot(rows - 50, columns - 50) < 45
    ring, = trace_polygons(mask)
    edges = np.count_nonzero(np.diff(mask.astype(int), axis=0)) + np.count_nonzero(np.diff(mask.astype(int), axis=1))
    assert len(ring) < edges / 4


def inside_by_crossings(x, y, points):
    """Whether a ray from (x, y) to the right crosses the outline an odd number of times, edge by edge."""
    odd = False
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0)):
        if (y0 <= y) != (y1 <= y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            odd = not odd
    return odd


def test_a_polygon_holds_the_pixels_whose_middle_is_inside():
    rng = np.random.default_rng(1)
    for _ in range(30):
        points = rng.uniform(-8, 28, (rng.integers(3, 9), 2))        # crosses itself and the border
        mask = fill_polygon(points, (20, 15))
        slow = [[inside_by_crossings(x + 0.5, y + 0.5, points) for x in range(20)] for y in range(15)]
        assert (mask == slow).all()


def test_polygons_are_filled_as_in_pycocotools():
    rng = np.random.default_rng(2)
    different = total = 0
    for _ in range(50):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
        points = 60 + rng.uniform(20, 50, (12, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)
        theirs = official.decode(official.frPyObjects([points.ravel().tolist()], 120, 120))[:, :, 0]
        different += np.count_nonzero(fill_polygon(points, (120, 120)) != theirs)
        total += np.count_nonzero(theirs)
    assert different / total < 0.01


@pytest.mark.parametrize('points', [[[1, 2], [3, 4]], [[0, 0], [5, 0], [float('nan'), 3]]])
def test_a_polygon_that_is_none_is_refused(points):
    with pytest.raises(ValueError, match='a polygon has three points or more'):
        fill_polygon(points, (9, 9))


# ---- the file ----------------------------------------------------------------------------------


@pytest.mark.parametrize('form', ['rle', 'polygons'])
def test_the_people_come_back_pixel_for_pixel(parsed, truth, form):
    found = read_people(parsed / form)
    assert set(found) == set(truth)
    for name, parsing in truth.items():
        assert np.array_equal(found[name], parsing), name


@pytest.mark.parametrize('form, share', [('rle', 0), ('polygons', 0.001)])
def test_pycocotools_reads_the_file(parsed, truth, form, share):
    """Run lengths exactly; polygons, which it fills by a rule of its own, to one pixel in a thousand."""
    coco = Official(parsed / form / 'annotations.json')
    unknown = coco.getCatIds(['person'])
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == [*CLASSES[1:], 'person'] and coco.getCatIds()[0] == 1
    different = pixels = 0
    for image in coco.loadImgs(coco.getImgIds()):
        parsing = truth[name_of(image['file_name'])]
        assert (image['height'], image['width']) == parsing.shape[1:]
        painted = np.zeros_like(parsing)
        for a in coco.loadAnns(coco.getAnnIds(image['id'], iscrowd=False)):
            label = 255 if [a['category_id']] == unknown else a['category_id']
            mask = coco.annToMask(a).astype(bool)
            wanted = parsing[a['person'] - 1] == label
            assert a['area'] == wanted.sum() and a['bbox'] == box_of(wanted)
            assert a['attributes'] == {'person': a['person']} and 0 <= a['score'] <= 1
            assert isinstance(a['segmentation'], dict if form == 'rle' else list)
            different += np.count_nonzero(mask != wanted)
            painted[a['person'] - 1][wanted] = label
        assert np.array_equal(painted, parsing)          # no part is missing
        pixels += np.count_nonzero(parsing)
    assert different <= share * pixels


def test_photos_are_named_from_their_common_folder_and_the_broken_one_is_left_out(parsed):
    file = read_file(parsed / 'rle')
    assert sorted(image['file_name'] for image in file['images']) == sorted(NAMES)
    assert file['info'] == {'description': MARK, 'photos': '../in'}
    assert [a['id'] for a in file['annotations']] == [*range(1, len(file['annotations']) + 1)]


def test_only_and_labels_hold_for_the_file(tmp_path):
    weights = tmp_path / 'model.pt'
    tiny_model('ccp', theta_center=0.0, theta_part=0.0, theta_mask=0.1, theta_same=1.0, theta_paint=0.0, theta_score=0.0,
               assign='correlation', score='center', max_people=2, test_short_side=48, long_side=64).save(weights)
    write_photo(tmp_path / 'in' / 'x.png')
    done = call(infer, 'in/x.png', '--weights', weights, '--labels', 'atr', '--only', 'hat,hair,bag,pants', '--format', 'coco', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    file = read_file(tmp_path / 'results')
    names = {c['id']: c['name'] for c in file['categories']}
    assert [names[i] for i in sorted(names)] == [*LABEL_SETS['atr'].names[1:], 'person']
    assert {names[a['category_id']] for a in file['annotations']} <= {'Hat', 'Hair', 'Bag', 'Pants'}


def test_ten_thousand_photos_need_no_memory(tmp_path, parsed):
    """Memory of the writer grows by a line per photo, not by its people."""
    record = next(path for path in (parsed / 'rle').glob('*.json') if path.name != 'annotations.json')
    results = [Result(f'in/{i:05d}.jpg', record) for i in range(150)]
    tracemalloc.start()
    write_annotations(tmp_path, results, CLASSES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = (tmp_path / 'annotations.json').stat().st_size
    assert size > 10 ** 6 and peak < size / 5
    assert len(read_file(tmp_path)['images']) == 150


def test_a_failure_keeps_the_old_file_and_leaves_no_half_one(tmp_path, parsed):
    record = next(path for path in (parsed / 'rle').glob('*.json') if path.name != 'annotations.json')
    write_annotations(tmp_path, [Result('in/x.jpg', record)], CLASSES)
    before = (tmp_path / 'annotations.json').read_bytes()
    with pytest.raises(OSError):
        write_annotations(tmp_path, [Result('in/x.jpg', record), Result('in/y.jpg', tmp_path / 'gone.json')], CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ['annotations.json']
    assert (tmp_path / 'annotations.json').read_bytes() == before


def test_a_file_of_the_users_is_kept_and_nothing_is_parsed(checkpoint, tmp_path):
    write_photo(tmp_path / 'in' / 'x.png')
    (tmp_path / 'results').mkdir()
    (tmp_path / 'results' / 'annotations.json').write_text('{"mine": 1}')
    done = call(infer, 'in', '--weights', checkpoint, '--format', 'coco', cwd=tmp_path)
    assert done.returncode == 2 and 'annotations.json exists and this program did not write it' in done.stderr
    assert [path.name for path in (tmp_path / 'results').iterdir()] == ['annotations.json']
    assert (tmp_path / 'results' / 'annotations.json').read_text() == '{"mine": 1}'


def test_a_corrected_file_is_kept(checkpoint, tmp_path):
    """One that nobody changed is written again; any change, be it of a letter, keeps it."""
    write_photo(tmp_path / 'in' / 'x.png')
    path = tmp_path / 'results' / 'annotations.json'
    again = 'in', '--weights', checkpoint, '--format', 'coco'
    for _ in range(2):
        assert call(infer, *again, cwd=tmp_path).returncode == 0
    written = path.read_text()
    for changed in (written.replace('"person": 1', '"person": 2', 1), json.dumps(json.loads(written)), written[:-90]):
        path.write_text(changed)
        done = call(infer, *again, cwd=tmp_path)
        assert done.returncode == 2 and 'was changed since this program wrote it, so it is kept' in done.stderr
        assert path.read_text() == changed


@pytest.mark.parametrize('flags, sentence', [
    (['in', '--polygons'], '--polygons is a form of outlines for --format coco'),
    (['in', '--format', 'mhp'], '--format mhp is for --data; for photos there is coco'),
    (['--data', 'synthetic', '--format', 'coco'], '--format coco is for photos; with --data choose one of instances'),
    (['in', '--format', 'coco', '--max-size', '50'], 'leave out --max-size'),
    (['named', '--format', 'coco'], 'the results of a photo called Annotations would be annotations.json, too')])
def test_flags_that_do_not_go_together(checkpoint, tmp_path, flags, sentence):
    write_photo(tmp_path / 'in' / 'x.png')
    write_photo(tmp_path / 'named' / 'Annotations.png')
    done = call(infer, *flags, '--weights', checkpoint, cwd=tmp_path)
    assert done.returncode == 2 and sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / 'results').exists()


def test_videos_and_several_processes_are_refused(checkpoint, tmp_path, monkeypatch):
    pytest.importorskip('av')
    write_video(tmp_path / 'x.mp4')
    done = call(infer, 'x.mp4', '--weights', checkpoint, '--format', 'coco', cwd=tmp_path)
    assert done.returncode == 2 and '--format coco is for photos; parse the videos without it' in done.stderr
    monkeypatch.setenv('WORLD_SIZE', '2')
    done = call(infer, 'x.png', '--weights', checkpoint, '--format', 'coco', cwd=tmp_path)
    assert done.returncode == 2 and '--format coco is for one process' in done.stderr


def test_a_class_called_person_is_refused(tmp_path):
    with pytest.raises(ValueError, match='one of the classes is called person'):
        write_annotations(tmp_path, [], ['background', 'Person'])


# ---- other programs ----------------------------------------------------------------------------


def check_for_cvat(file):
    """What Datumaro's importer of COCO instances demands, by which CVAT reads the file. CVAT finds the photo of a task by
    file_name without its ending, and keeps an attribute if its label has one of that name."""
    categories = {c['id']: c['name'] for c in file['categories']}
    assert len(set(categories.values())) == len(file['categories'])
    assert all(type(i) is int and i > 0 for i in categories)         # 0 stands for no label there
    sizes = {}
    for image in file['images']:
        assert type(image['id']) is int and type(image['width']) is type(image['height']) is int
        assert not image['file_name'].startswith(('/', '..'))
        sizes[image['id']] = [image['height'], image['width']]
    ids = [a['id'] for a in file['annotations']]
    assert len(set(ids)) == len(ids) and all(type(i) is int and i > 0 for i in ids)
    for a in file['annotations']:
        assert type(a['category_id']) is int and a['category_id'] in categories
        assert type(a['image_id']) is int and type(a['iscrowd']) is int and len(a['bbox']) == 4
        assert all(isinstance(value, (int, float, str)) for value in a['attributes'].values())
        outline = a['segmentation']
        if isinstance(outline, dict):
            assert isinstance(outline['counts'], str) and outline['size'] == sizes[a['image_id']]
        else:
            assert outline and all(len(ring) >= 6 and len(ring) % 2 == 0 for ring in outline)


@pytest.mark.parametrize('form', ['rle', 'polygons'])
def test_cvat_finds_what_it_demands(parsed, form):
    check_for_cvat(read_file(parsed / form))


def as_cvat_exports(file):
    """The same labels as CVAT writes them: the labels of the task have an order of their own, masks are plain counts with
    iscrowd = 1, person is a text among the attributes, the last photo comes first."""
    names = {c['id']: c['name'] for c in file['categories']}
    order = ['person', *sorted(set(names.values()) - {'person'}, reverse=True)]
    images = [dict(image, id=n, license=0) for n, image in enumerate(reversed(file['images']), 1)]
    new = {image['id']: n for n, image in enumerate(reversed(file['images']), 1)}
    annotations = []
    for a in reversed(file['annotations']):
        mask = isinstance(a['segmentation'], dict)
        outline = plain_counts(official.decode(a['segmentation']).astype(bool)) if mask else a['segmentation']
        annotations.append({
            'id': len(annotations) + 1, 'image_id': new[a['image_id']], 'category_id': order.index(names[a['category_id']]) + 1,
            'segmentation': outline, 'area': float(a['area']), 'bbox': a['bbox'], 'iscrowd': int(mask),
            'attributes': {'person': f'{a["person"]}', 'occluded': False}})
    categories = [{'id': n, 'name': name, 'supercategory': ''} for n, name in enumerate(order, 1)]
    return {'licenses': [{'name': '', 'id': 0, 'url': ''}], 'info': {'contributor': '', 'year': ''}, 'categories': categories,
            'images': images, 'annotations': annotations}


@pytest.mark.parametrize('form, photos', [('rle', 'images/default'), ('polygons', 'images'), ('rle', '.')])
def test_labels_come_back_from_cvat(parsed, truth, form, photos, tmp_path):
    """The classes of this file are of no known set, so they have the order of the task's labels."""
    shutil.copytree(parsed / 'in', tmp_path / photos, dirs_exist_ok=True)
    (tmp_path / 'annotations').mkdir()
    exported = as_cvat_exports(read_file(parsed / form))
    (tmp_path / 'annotations' / 'instances_default.json').write_text(json.dumps(exported))
    dataset = open_dataset('COCO', tmp_path, 'train')
    assert sorted(dataset.class_names[1:]) == sorted(CLASSES[1:]) and dataset.class_names[1] != CLASSES[1]
    table = np.arange(256, dtype=np.uint8)
    table[:len(CLASSES)] = [dataset.class_names.index(name) for name in CLASSES]
    for i, path in enumerate(dataset.photos):
        image, parsing, ignore = dataset.read(i)
        assert np.array_equal(parsing, table[truth[name_of(path)]]) and not ignore.any()


def test_renumbered_classes_of_cihp_have_its_order(tmp_path):
    names = [*reversed(CIHP.class_names[1:])]
    write_labels(tmp_path, [part(1, 'Hair', 1)], [name.capitalize() for name in names])
    dataset = open_dataset('COCO', tmp_path, 'train')
    assert dataset.class_names == CIHP.class_names and dataset.flip_pairs == CIHP.flip_pairs
    assert set(np.unique(dataset.read(0)[1])) == {0, CIHP.class_names.index('hair')}


def test_label_studio_finds_what_it_reads(parsed, truth):
    """Its converter takes width, height and file_name of the image, bbox, and the rings of `segmentation`, in percent. Run
    lengths it does not read."""
    file = read_file(parsed / 'polygons')
    images = {image['id']: image for image in file['images']}
    labels = {c['id']: c['name'] for c in file['categories']}
    painted = {name: np.zeros_like(parsing) for name, parsing in truth.items()}
    for a in file['annotations']:
        image = images[a['image_id']]
        x, y, w, h = a['bbox']
        assert 0 <= x / image['width'] <= (x + w) / image['width'] <= 1 and 0 <= y <= y + h <= image['height']
        for ring in a['segmentation']:
            percent = np.array(list(zip(*[iter(ring)] * 2))) / [image['width'], image['height']] * 100
            assert (percent >= 0).all() and (percent <= 100).all()
            back = fill_polygon(np.round(percent / 100 * [image['width'], image['height']], 6), (image['width'], image['height']))
            name = labels[a['category_id']]
            label = CLASSES.index(name) if name in CLASSES else 255
            painted[name_of(image['file_name'])][a['person'] - 1][back] = label
    for name, parsing in truth.items():
        assert np.array_equal(painted[name], parsing)


# ---- reading -----------------------------------------------------------------------------------


def part(number, name, person, box=(2, 3, 20, 15), **more):
    """An annotation of a rectangle; name: of its category."""
    x, y, w, h = box
    ring = [x, y, x + w, y, x + w, y + h, x, y + h]
    found = {'id': number, 'image_id': 1, 'name': name, 'segmentation': [ring], 'bbox': list(box), 'area': w * h, 'iscrowd': 0}
    return {**found, **({} if person is None else {'person': person}), **more}


def write_labels(root, annotations, names=('top', 'Left sleeve', 'right sleeve'), photos=('x.png',), **info):
    """annotations.json of photos of 60 x 40 pixels beside it."""
    categories = [{'id': 3 * n + 2, 'name': name} for n, name in enumerate([*names, 'person'])]
    ids = {c['name']: c['id'] for c in categories}
    rows = [{**{k: v for k, v in a.items() if k != 'name'}, 'category_id': ids.get(a['name'], 99)} for a in annotations]
    images = []
    for n, name in enumerate(photos, 1):
        write_photo(root / name, n)
        images.append({'id': n, 'file_name': name, 'width': 60, 'height': 40})
    (root / 'annotations.json').write_text(json.dumps(
        {'info': info, 'images': images, 'annotations': rows, 'categories': categories}))


def test_parts_cover_the_person_and_later_parts_earlier_ones(tmp_path):
    write_labels(tmp_path, [part(1, 'top', 2, (0, 0, 30, 10)), part(2, 'right sleeve', 2, (0, 0, 5, 5)),
                            part(3, 'person', 2, (0, 0, 40, 12)), part(4, 'top', 1, (30, 30, 3, 3)),
                            part(5, 'person', None, (20, 20, 30, 10)), part(6, 'person', None, (0, 30, 9, 9), iscrowd=1)])
    dataset = open_dataset('COCO', tmp_path, 'train')
    assert dataset.class_names == ('background', 'top', 'Left sleeve', 'right sleeve') and dataset.flip_pairs == ((2, 3),)
    _, parsing, ignore = dataset.read(0)
    expected = np.zeros((3, 40, 60), np.uint8)       # without a number first, then person 1 and 2
    expected[0, 20:30, 20:50] = 255
    expected[1, 30:33, 30:33] = 1
    expected[2, :12, :40], expected[2, :10, :30], expected[2, :5, :5] = 255, 1, 3
    assert np.array_equal(parsing, expected)
    assert ignore[30:39, :9].all() and ignore.sum() == 81


def test_a_file_of_people_alone_has_the_classes_of_cihp(tmp_path):
    write_labels(tmp_path, [part(1, 'person', None)], ())
    dataset = open_dataset('COCO', tmp_path, 'train')
    assert dataset.class_names == CIHP.class_names and (dataset.read(0)[1] == 255).sum() == 300


def test_all_photos_train_and_every_fifth_is_measured(tmp_path):
    names = [f'{n}.png' for n in range(7)]
    write_labels(tmp_path, [part(1, 'top', 1)], photos=names)
    ids = {split: open_dataset('COCO', tmp_path, split).ids for split in ('train', 'val', 'fit', 'held', 'tune', 'test')}
    assert ids['train'] == [*'0123456'] and ids['val'] == ids['held'] == ['0', '5']
    assert ids['fit'] == [*'12346'] and ids['tune'] == ['0'] and ids['test'] == ['5']
    image, parsing, ignore = open_dataset('COCO', tmp_path, 'train').read(3)     # of nobody
    assert parsing.shape == (0, 40, 60) and not ignore.any()


def test_windows_of_corrected_photos(tmp_path):
    write_labels(tmp_path, [part(1, 'top', 1)])
    dataset = open_dataset('COCO', tmp_path, 'train', samples=8)
    assert len(dataset) == 8 and all(set(np.unique(dataset.read(i)[1])) <= {0, 1} for i in range(8))


@pytest.mark.parametrize('annotation, sentence', [
    (part(31, 'top', None), 'annotation 31, top, says of no person that it is a part'),
    (part(31, 'top', '', attributes={'person': None}), 'annotation 31, top, says of no person that it is a part'),
    (part(31, 'top', 1, attributes={'person': 2}), 'annotation 31 has two numbers of a person, 1 and 2'),
    (part(31, 'top', 1, segmentation=[]), 'annotation 31, top, has no outline'),
    (part(31, 'shoe', 1), 'annotation 31 is of category 99, which the file does not list'),
    (part(31, 'top', 1, image_id=7), 'an annotation of image 7, which it does not list'),
    (part(31, 'top', 1, segmentation=[[1, 2, 3, 4]]), 'annotation 31 of .*x.png')])
def test_what_cannot_be_read_is_one_sentence(tmp_path, annotation, sentence):
    write_labels(tmp_path, [annotation])
    done = call(data, '--data', 'COCO', '--root', tmp_path, '--split', 'train', '--out', tmp_path / 'samples.png')
    assert done.returncode == 2 and len([line for line in done.stderr.splitlines() if line.startswith(('error: ', 'bad: '))]) <= 2
    with pytest.raises(ValueError, match=sentence):
        open_dataset('COCO', tmp_path, 'train').read(0)


def test_numbers_may_be_texts_and_fractions(tmp_path):
    write_labels(tmp_path, [part(1, 'top', None, attributes={'person': '1'}), part(2, 'Left sleeve', 1.0, (2, 20, 9, 9)),
                            part(3, 'right sleeve', None, (30, 20, 9, 9), attributes={'person': '1.0'})])
    assert len(open_dataset('COCO', tmp_path, 'train').read(0)[1]) == 1


def test_two_categories_of_one_name_are_refused(tmp_path):
    write_labels(tmp_path, [], ('top', 'Top'))
    with pytest.raises(ValueError, match='2 categories, 1 of different names'):
        open_dataset('COCO', tmp_path, 'train')


@pytest.mark.parametrize('name, sentence', [('gone.png', 'lacks 1 of 2 photos of .*the first is gone.png'),
                                            ('../x.png', "lists the photo '../x.png', which is not a file name")])
def test_photos_that_are_not_there(tmp_path, name, sentence):
    write_labels(tmp_path, [part(1, 'top', 1)])
    file = read_file(tmp_path)
    file['images'].append({'id': 2, 'file_name': name, 'width': 60, 'height': 40})
    (tmp_path / 'annotations.json').write_text(json.dumps(file))
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        open_dataset('COCO', tmp_path, 'train')


def test_a_photo_of_another_size_is_named(tmp_path):
    write_labels(tmp_path, [part(1, 'top', 1)])
    write_photo(tmp_path / 'x.png', size=(50, 40))
    for samples in (0, 4):
        with pytest.raises(ValueError, match='x.png is of size'):
            open_dataset('COCO', tmp_path, 'train', samples=samples).read(0)


@pytest.mark.parametrize('dataset', [CIHP, MHP])
def test_classes_and_sides_of_a_set_are_known_by_their_names(dataset):
    assert pair_sides(dataset.class_names) == dataset.flip_pairs
    assert order_classes([name.upper() for name in sorted(dataset.class_names[1:])], 'x') == dataset.class_names
    assert order_classes(['hair', 'face'], 'x') == ('background', 'hair', 'face')       # of no set


@pytest.mark.parametrize('name', LABEL_SETS)
def test_sides_of_the_label_sets_are_known_by_their_names(name):
    labels = LABEL_SETS[name]
    assert pair_sides(labels.names) == tuple(labels.flip_pairs)


# ---- the circle --------------------------------------------------------------------------------


def test_corrected_labels_train_and_the_weights_parse_again(tmp_path):
    """Parse with the shipped weights, correct, train one step from them, parse again: same classes, other weights."""
    for name in ('street.jpg', 'example.jpg'):
        photo = Image.open(HERE / 'assets' / name)
        photo.thumbnail((160, 160))
        (tmp_path / 'in').mkdir(exist_ok=True)
        photo.save(tmp_path / 'in' / name)
    shipped = HERE / 'weights' / 'uniparser_ccp.pt'
    done = call(infer, 'in', '--format', 'coco', '--test-short-side', '160', cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    # The first part becomes a scarf, the last one goes.
    file = read_file(tmp_path / 'results')
    ids = {c['name']: c['id'] for c in file['categories']}
    removed = file['annotations'].pop()
    changed = file['annotations'][0]
    changed['category_id'] = ids['scarf']
    (tmp_path / 'results' / 'annotations.json').write_text(json.dumps(file))
    dataset = open_dataset('COCO', tmp_path / 'results', 'train')
    first, last = dataset.read(0)[1], dataset.read(1)[1]
    assert (first[changed['person'] - 1] == ids['scarf']).sum() == changed['area']
    assert not (last[removed['person'] - 1:removed['person']] == removed['category_id']).any()

    done = call(train, '--data', 'COCO', '--root', 'results', '--pretrained', shipped, '--samples', '2', '--batch-size', '2',
                '--epochs', '1', '--short-side', '96', '--test-short-side', '96', '--val-images', '1', '--workers', '0', '--lr', '1e-6',
                '--device', 'cpu', '--out', 'run', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f'training goes on from all weights of {shipped}' in done.stdout and 'from scratch' not in done.stdout
    before, after = read_checkpoint(shipped), read_checkpoint(tmp_path / 'run' / 'last.pt')
    assert [*after['class_names']] == [*before['class_names']]
    kernels = before['model']['category_builder.k_cate'].float(), after['model']['category_builder.k_cate']
    assert 0 < (kernels[0] - kernels[1]).abs().max() < 0.01
    done = call(infer, 'in', '--weights', tmp_path / 'run' / 'last.pt', '--out', 'again', cwd=tmp_path)
    assert done.returncode == 0 and '2 of 2 photos' in done.stdout


def test_a_training_has_the_classes_of_the_file(tmp_path):
    write_labels(tmp_path, [part(1, 'top', 1), part(2, 'Left sleeve', 1, (2, 20, 9, 9))], photos=[f'{n}.png' for n in range(4)])
    done = call(train, '--data', 'COCO', '--root', tmp_path, *SHORT, '--pretrained', '', '--epochs', '1', '--grid', '8', '--short-side', '64',
                '--test-short-side', '64', '--workers', '0', '--out', tmp_path / 'run', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model = UniParser.from_pretrained(tmp_path / 'run' / 'best.pt')
    assert model.class_names == ['background', 'top', 'Left sleeve', 'right sleeve'] and model.config.num_classes == 3
    assert model.flip_pairs == [[2, 3]]
    done = call(train, '--resume', tmp_path / 'run', '--epochs', '2', '--device', 'cpu', cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_weights_of_the_same_classes_in_another_order_are_refused(tmp_path):
    model = tiny_model(num_classes=2)
    model.class_names = ['background', 'hair', 'face']
    model.save(tmp_path / 'start.pt')
    other = UniParser(model.config, ['background', 'face', 'hair'])
    other.config = type(other.config)(**{**vars(other.config), 'pretrained': str(tmp_path / 'start.pt')})
    with pytest.raises(ValueError, match='another order: its class 1 is hair, that of the data face'):
        other.load_pretrained()


def test_an_annotation_of_what_is_left_of_a_person():
    """The unknown pixels are the person's mask without the parts, and nothing is annotated twice."""
    mask = np.zeros((20, 30), bool)
    mask[2:18, 3:25] = True
    hair = mask.copy()
    hair[8:] = False

    def encode(m):
        x, y, w, h = box_of(m)
        return encode_rle(m[y:y + h, x:x + w], x, y, m.shape)
    parts = [{'id': 1, 'box': box_of(hair), 'area': int(hair.sum()), 'rle': encode(hair)}]
    person = {'id': 4, 'score': 0.5, 'area': int(mask.sum()), 'rle': encode(mask), 'parts': parts}
    known, unknown = annotate(person, (30, 20), 9, False)
    assert known['category_id'] == 1 and unknown['category_id'] == 9 and unknown['person'] == 4
    assert (official.decode(unknown['segmentation']) == (mask & ~hair)).all()
    assert unknown['area'] == (mask & ~hair).sum() and unknown['bbox'] == [3, 8, 22, 10]
