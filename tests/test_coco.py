"""COCO's people are read from the official folders: outlines of all three kinds, crowds, splits,
licenses, windows, and label maps of parts; what is broken is named. python -m pytest"""

import json

import numpy as np
import pytest
from PIL import Image

import data
import train
from tests.helpers import SHORT, call, write_photo
from uniparser import INFERENCE, get_config
from util.datasets import COCO, Mixed, coco, open_dataset
from util.rle import encode_rle

SIZE = 60, 40  # width, height of every photo


def rectangle(x, y, w, h):
    mask = np.zeros(SIZE[::-1], bool)
    mask[y:y + h, x:x + w] = True
    return mask


def plain_counts(mask):
    """Run lengths down the columns, beginning with zeros, by a loop."""
    counts, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {'size': list(mask.shape), 'counts': counts}


def polygon(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def annotation(number, image, segmentation, **more):
    return {'id': number, 'image_id': image, 'category_id': 1, 'iscrowd': 0, 'segmentation': segmentation, **more}


def write_coco(root, images, folder='val2017', kind='person_keypoints'):
    """images: {id: (license, list of annotations)}."""
    records = []
    for number, (license, _) in images.items():
        name = f'{number:012d}.jpg'
        write_photo(root / folder / name, number, SIZE)
        records.append({'id': number, 'file_name': name, 'width': SIZE[0], 'height': SIZE[1], 'license': license})
    content = {
        'images': records,
        'annotations': [a for _, found in images.values() for a in found],
        'categories': [{'id': 1, 'name': 'person'}, {'id': 2, 'name': 'bicycle'}],
    }
    path = root / 'annotations' / f'{kind}_{folder}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


BOXES = {1: (2, 3, 20, 15), 2: (25, 5, 12, 30), 3: (40, 10, 15, 20)}


def three_outlines():
    """One photo with a polygon, a compressed string and plain counts."""
    masks = {n: rectangle(*box) for n, box in BOXES.items()}
    x, y, w, h = BOXES[2]
    compressed = encode_rle(masks[2][y:y + h, x:x + w], x, y, SIZE[::-1])
    return masks, [annotation(1, 7, polygon(*BOXES[1])), annotation(2, 7, compressed), annotation(3, 7, plain_counts(masks[3]))]


def test_polygons_and_both_kinds_of_run_lengths_give_the_same_masks(tmp_path):
    masks, annotations = three_outlines()
    write_coco(tmp_path, {7: (4, annotations)})
    image, parsing, ignore = open_dataset('COCO', tmp_path, 'val').read(0)
    assert image.shape == (40, 60, 3) and not ignore.any()
    assert [(p == 255).tolist() for p in parsing] == [m.tolist() for m in masks.values()]


def test_people_without_parts_are_unknown_and_crowds_and_tiny_people_are_ignored(tmp_path):
    crowd, tiny = rectangle(0, 0, 30, 10), rectangle(50, 30, 9, 9)
    person = rectangle(*BOXES[1])
    write_coco(
        tmp_path,
        {
            7: (
                4,
                [
                    annotation(1, 7, polygon(*BOXES[1])),
                    annotation(2, 7, plain_counts(crowd), iscrowd=1),
                    annotation(3, 7, plain_counts(tiny)),
                ],
            )
        },
    )
    _, parsing, ignore = open_dataset('COCO', tmp_path, 'val').read(0)
    assert len(parsing) == 1 and set(np.unique(parsing)) == {0, 255}
    # A crowd's region does not take away the pixels of a person.
    assert (ignore == (crowd | tiny) & ~person).all()


def test_pseudo_masks_teach_with_an_open_edge_and_are_not_measured(tmp_path):
    mask = rectangle(10, 5, 30, 30)
    write_coco(tmp_path, {5: (4, [annotation(1, 5, plain_counts(mask), pseudo_mask=True), annotation(2, 5, polygon(*BOXES[3]))])})
    person, ignore = (x[0] if x.ndim == 3 else x for x in open_dataset('COCO', tmp_path, 'val', pseudo=True).read(0)[1:])
    assert ((person == 255) == mask).all()
    assert ignore[5, 20] and ignore[4, 20] and not ignore[20, 25] and not ignore[0, 0]
    _, parsing, ignore = open_dataset('COCO', tmp_path, 'val').read(0)
    assert len(parsing) == 1 and ignore[20, 25]


def person_of(image):
    return [annotation(image, image, polygon(*BOXES[1]))]


@pytest.fixture
def twelve(tmp_path):
    """Photos 1 to 9 in val2017 and 20 to 22 in train2017, one person each."""
    for folder, numbers in (('val2017', range(1, 10)), ('train2017', range(20, 23))):
        write_coco(tmp_path, {n: (4 if n % 2 else 1, person_of(n)) for n in numbers}, folder)
    return tmp_path


def test_the_splits_set_every_fifth_id_aside(twelve):
    ids = {split: [int(i) for i in open_dataset('COCO', twelve, split).ids] for split in COCO.splits}
    assert ids['train'] == [20, 21, 22] and ids['val'] == [*range(1, 10)]
    assert sorted(ids['held']) == [5, 20] and sorted(ids['tune'] + ids['test']) == [5, 20]
    assert sorted(ids['fit']) == [1, 2, 3, 4, 6, 7, 8, 9, 21, 22]


def test_splits_go_by_the_id_of_the_annotation_file_whatever_the_photo_is_called(twelve):
    """As COCO means it: the name of a file is only its name."""
    for folder in 'val2017', 'train2017':
        path = twelve / 'annotations' / f'person_keypoints_{folder}.json'
        content = json.loads(path.read_text())
        for image in content['images']:
            name = f'img_{image["id"] + 1}.jpg'
            (twelve / folder / image['file_name']).rename(twelve / folder / name)
            image['file_name'] = name
        path.write_text(json.dumps(content))
    assert sorted(open_dataset('COCO', twelve, 'held').ids) == ['img_21', 'img_6']
    assert len(open_dataset('COCO', twelve, 'fit')) == 10
    assert open_dataset('COCO', twelve, 'train').ids == ['img_21', 'img_22', 'img_23']


def test_an_image_id_that_is_no_number_is_named_with_its_file(twelve):
    path = twelve / 'annotations' / 'person_keypoints_val2017.json'
    path.write_text(path.read_text().replace('"id": 5,', '"id": "img_c",').replace('"image_id": 5,', '"image_id": "img_c",'))
    with pytest.raises(ValueError, match="person_keypoints_val2017.json cannot be read .*'img_c'"):
        open_dataset('COCO', twelve, 'held')


def test_licenses_choose_photos(twelve):
    ids = [int(i) for i in open_dataset('COCO', twelve, 'val', licenses='free').ids]
    assert ids == [1, 3, 5, 7, 9]
    assert len(open_dataset('COCO', twelve, 'val', licenses='1, 4').ids) == 9
    with pytest.raises(ValueError, match="--licenses is 'mine'; give free, or ids"):
        open_dataset('COCO', twelve, 'val', licenses='mine')
    with pytest.raises(ValueError, match='no photo of people with these licenses'):
        open_dataset('COCO', twelve, 'val', licenses='3')


def test_keypoints_may_be_null(tmp_path):
    """As other tools export it: there are none."""
    points = [20, 10, 2] * 17
    write_coco(tmp_path, {7: (4, [{**person_of(7)[0], 'keypoints': null} for null in (None, [0] * 51, points)])})
    people, _ = open_dataset('COCO', tmp_path, 'val').persons(0)
    assert [person.keypoints is None for person in people] == [True, True, False]


def test_instances_are_read_where_there_are_no_keypoints_and_other_things_are_left_out(tmp_path):
    bicycle = annotation(9, 7, polygon(*BOXES[3])) | {'category_id': 2}
    write_coco(tmp_path, {7: (4, [*person_of(7), bicycle]), 8: (4, [])}, kind='instances')
    dataset = open_dataset('COCO', tmp_path, 'val')
    assert len(dataset) == 1 and len(dataset.read(0)[1]) == 1


def test_labels_of_parts_are_read_back(tmp_path):
    write_coco(tmp_path / 'coco', {7: (4, person_of(7))})
    labels = np.zeros(SIZE[::-1], np.uint8)
    labels[3:8, 2:22], labels[30:, 30:] = 13, 9  # a face, and trousers outside of the person
    (tmp_path / 'parts').mkdir()
    Image.fromarray(labels).save(tmp_path / 'parts' / '000000000007_7.png')
    _, parsing, _ = open_dataset('COCO', tmp_path / 'coco', 'val', parts=tmp_path / 'parts').read(0)
    person = rectangle(*BOXES[1])
    assert (parsing[0][3:8, 2:22] == 13).all()
    assert (parsing[0][8:18, 2:22] == 255).all() and not parsing[0][~person].any()


@pytest.mark.parametrize(
    'harm, sentence',
    [
        (lambda root: (root / 'val2017' / '000000000007.jpg').unlink(), 'lacks 1 of 1 photos'),
        (lambda root: (root / 'annotations' / 'person_keypoints_val2017.json').unlink(), 'has neither annotations/person'),
        (lambda root: (root / 'annotations' / 'person_keypoints_val2017.json').write_text('{'), 'cannot be read'),
        (lambda root: (root / 'annotations' / 'person_keypoints_val2017.json').write_text('{}'), 'cannot be read'),
    ],
)
def test_a_broken_download_is_one_sentence(tmp_path, harm, sentence):
    write_coco(tmp_path, {7: (4, person_of(7))})
    harm(tmp_path)
    done = call(data, '--data', 'COCO', '--root', tmp_path, '--out', tmp_path / 'x.png')
    assert done.returncode == 2 and done.stderr.startswith('error: ') and sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize('outline', [{'size': [40, 60], 'counts': [1, 2]}, {'size': [10, 10], 'counts': [100]}, [[1, 2]]])
def test_a_broken_outline_names_the_annotation(tmp_path, outline):
    write_coco(tmp_path, {7: (4, [annotation(31, 7, outline)])})
    with pytest.raises(ValueError, match='annotation 31 of .*000000000007.jpg'):
        open_dataset('COCO', tmp_path, 'val').read(0)


def test_a_label_map_of_another_size_is_named(tmp_path):
    write_coco(tmp_path / 'coco', {7: (4, person_of(7))})
    (tmp_path / 'parts').mkdir()
    Image.new('L', (5, 5), 1).save(tmp_path / 'parts' / '000000000007_7.png')
    with pytest.raises(ValueError, match='000000000007_7.png and .* differ in size'):
        open_dataset('COCO', tmp_path / 'coco', 'val', parts=tmp_path / 'parts').read(0)


def test_windows_are_a_function_of_seed_epoch_and_index_and_hold_people(twelve):
    dataset = open_dataset('COCO', twelve, 'fit', samples=30)
    assert len(dataset) == 30
    first = [dataset.read(i, 1, 2) for i in range(30)]
    for i, (image, parsing, ignore) in enumerate(first):
        again = dataset.read(i, 1, 2)
        assert all((a == b).all() for a, b in zip((image, parsing, ignore), again))
        assert image.shape[:2] == ignore.shape == parsing.shape[1:]
    assert len({image.tobytes() for image, _, _ in first}) > 15
    assert any((a[0].shape != b[0].shape) for a, b in zip(first, (dataset.read(i, 1, 3) for i in range(30))))
    assert sum(len(parsing) for _, parsing, _ in first) > 20


def test_people_who_are_hardly_in_a_window_are_ignored():
    parsing = np.zeros((2, 40, 60), np.uint8)
    parsing[0, :20, :20], parsing[1, :, 30:] = 255, 255
    inside, ignore = coco.cut(parsing, np.zeros((40, 60), bool), (slice(0, 40), slice(18, 60)))
    assert len(inside) == 1 and (inside[0, :, 12:] == 255).all()
    assert ignore[:20, :2].all() and not ignore[:, 2:].any()


def test_a_mixture_reads_its_sets(twelve):
    dataset = open_dataset('COCO', twelve, 'fit')
    other = open_dataset('COCO', twelve, 'held')
    mixed = Mixed([dataset, other])
    assert len(mixed) == 12 and mixed.ids == dataset.ids + other.ids
    assert (mixed.read(11)[0] == other.read(1)[0]).all() and mixed.size(0) == SIZE
    assert mixed.landscape.all() and (mixed.read_parsing(3)[0] == dataset.read_parsing(3)[0]).all()


def test_a_model_trains_on_people_without_parts(twelve, tmp_path):
    done = call(
        train,
        '--data',
        'COCO',
        '--root',
        twelve,
        *SHORT,
        '--pretrained',
        '',
        '--epochs',
        '1',
        '--grid',
        '8',
        '--short-side',
        '64',
        '--test-short-side',
        '64',
        '--workers',
        '0',
        '--out',
        tmp_path / 'run',
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    last = [json.loads(line) for line in (tmp_path / 'run' / 'log.jsonl').read_text().splitlines() if '"aux_ins"' in line][-1]
    assert last['aux_ins'] > 0 and last['center'] > 0 and last['parsing'] == 0


def test_the_share_of_coco_beside_ccp():
    assert train.count_images(get_config('ccp', samples=200)) == (200, 0)
    assert train.count_images(get_config('ccp', samples=200, coco='x', coco_share=0.75)) == (50, 150)
    with pytest.raises(ValueError, match='--coco adds photos to the scenes of --data CCP'):
        train.count_images(get_config('mhp', samples=200, coco='x'))


def test_photos_of_coco_beside_ccp_have_a_preset_of_their_own():
    def config(*flags):
        return train.fresh_config(train.parse_arguments(flags))

    photos = config('--data', 'CCP', '--coco', 'somewhere')
    assert photos.coco == 'somewhere' and photos.data == 'CCP' and photos.num_classes == 19
    assert photos.whole and photos.theta_person > 0 and train.count_images(photos) == (400, 400)
    assert config('--data', 'CCP', '--coco', 'somewhere', '--samples', '100').samples == 100
    assert not config('--data', 'CCP').whole
    # A training on COCO alone may go on from the shipped weights, which are of that preset.
    coco = config('--data', 'COCO')
    assert all(getattr(coco, name) == getattr(photos, name) for name in INFERENCE) and coco.samples == 0
