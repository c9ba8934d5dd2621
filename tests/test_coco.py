"""COCO's people are read from the official folders: outlines of all three kinds, crowds, splits,
licenses, windows, and label maps of parts; what is broken is named. python -m pytest"""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import data
import train
from tests.helpers import SHORT, call, stop_at_step, weights, write_photo
from tests.test_data import write_ccp
from tools import count_people, oracle
from uniparser import INFERENCE, UniParser, get_config
from util.datasets import COCO, Mixed, coco, open_dataset
from util.results import Parsing
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


@pytest.mark.parametrize('flags, people', [([], 2), (['--no-pseudo'], 1)])
def test_a_training_may_ignore_pseudo_masks(tmp_path, flags, people):
    """The validation ignores them in any case."""
    for folder, n in (('train2017', 1), ('val2017', 5)):
        found = [annotation(n, n, plain_counts(rectangle(*BOXES[1])), pseudo_mask=True), annotation(9, n, polygon(*BOXES[3]))]
        write_coco(tmp_path, {n: (4, found)}, folder)
    args = train.parse_arguments(['--data', 'COCO', *flags])
    train_set, val_set = train.open_sets(train.fresh_config(args), tmp_path, False)
    assert len(train_set.read(0)[1]) == people and len(val_set.read(0)[1]) == 1


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


TINY = [*SHORT, '--pretrained', '', '--no-dcn', '--epochs', '1', '--grid', '8', '--short-side', '64', '--test-short-side', '64', '--workers', '0']


def logged(run, name):
    """The last record of the log of a run that has this entry."""
    return [json.loads(line) for line in (run / 'log.jsonl').read_text().splitlines() if f'"{name}"' in line][-1]


def test_a_model_trains_on_people_without_parts(twelve, tmp_path):
    done = call(train, '--data', 'COCO', '--root', twelve, *TINY, '--out', tmp_path / 'run', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    last = logged(tmp_path / 'run', 'aux_ins')
    assert last['aux_ins'] > 0 and last['center'] > 0 and last['parsing'] == 0
    assert 'AP50' not in done.stdout and set(logged(tmp_path / 'run', 'found')) >= {'keypoints_right', 'false_per_180', 'side_right'}


def write_face(root, number):
    """The label map of the person of a photo: a face and nothing else."""
    root.mkdir(exist_ok=True)
    Image.new('L', SIZE, 13).save(root / f'{number:012d}_{number}.png')


def test_a_training_says_that_people_without_parts_teach_no_classes(twelve, tmp_path):
    """Not where the network knows the classes, or where there are label maps of some of its people."""
    write_face(tmp_path / 'of-train', 20)

    def notes(*flags):
        done = call(train, '--data', 'COCO', '--root', twelve, *TINY, *flags, '--device', 'cpu', cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if line.startswith('note: ')]

    assert notes('--out', 'first') == [train.NO_PARTS]
    assert notes('--parts', 'of-train') == notes('--pretrained', 'first/last.pt') == []
    done = call(train, '--resume', 'first', '--epochs', '2', '--device', 'cpu', cwd=tmp_path)
    assert done.returncode == 0 and 'note: ' not in done.stdout


def test_label_maps_of_other_photos_are_refused(twelve, tmp_path):
    write_face(tmp_path / 'of-val', 9)
    done = call(train, '--data', 'COCO', '--root', twelve, *TINY, '--parts', 'of-val', cwd=tmp_path)
    assert done.returncode == 2 and 'of-val has no label map of a person of the split train' in done.stderr
    assert open_dataset('COCO', twelve, 'fit', parts=tmp_path / 'of-val').has_parts


def test_photos_of_other_licenses_may_be_missing(tmp_path):
    """Those of even ids are not free, and nobody has downloaded them. Every program takes the same flag."""
    coco = tmp_path / 'coco'
    for folder, numbers in (('val2017', range(1, 10)), ('train2017', range(21, 30))):
        write_coco(coco, {n: (4 if n % 2 else 1, person_of(n)) for n in numbers}, folder)
        for path in (coco / folder).glob('*[02468].jpg'):
            path.unlink()
    done = call(train, '--data', 'COCO', '--root', coco, *TINY, '--licenses', 'free', '--out', tmp_path / 'run', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '12 training and 5 validation images' in done.stdout
    model = ['--weights', tmp_path / 'run' / 'last.pt', '--device', 'cpu']
    commands = [(data, 'val', ['--out', tmp_path / 'x.png']), (count_people, 'test', model), (oracle, 'val', model)]
    for program, split, more in commands:
        command = [*(['where'] if program is oracle else []), '--data', 'COCO', '--root', coco, '--split', split, *more]
        done = call(program, *command)
        assert done.returncode == 2 and 'lacks ' in done.stderr, (program, done.stderr)
        done = call(program, *command, '--licenses', 'free')
        assert done.returncode == 0, (program, done.stderr)
        done = call(program, *command, '--licenses', 'mine')
        assert done.returncode == 2 and "--licenses is 'mine'; give free" in done.stderr


def test_label_maps_are_checked(twelve, tmp_path):
    write_face(tmp_path / 'parts', 9)
    check = ['--data', 'COCO', '--root', twelve, '--parts', tmp_path / 'parts', '--out', tmp_path / 'x.png']
    done = call(data, *check)
    assert done.returncode == 0 and ', face 1,' in done.stdout, done.stderr
    Image.new('L', SIZE, 99).save(tmp_path / 'parts' / f'{9:012d}_9.png')
    done = call(data, *check)
    assert done.returncode == 2 and f'{9:012d}_9.png' in done.stderr and '1 of 9 images cannot be read' in done.stderr


@pytest.mark.parametrize('program, arguments, flag', [
    (data, ['--data', 'synthetic', '--licenses', 'free'], '--licenses'), (data, ['--data', 'synthetic', '--parts', 'x'], '--parts'),
    (count_people, ['.', '--licenses', 'free'], '--licenses'),
    (oracle, ['people', '--data', 'synthetic', '--out', 'x', '--licenses', 'free'], '--licenses')])
def test_flags_of_coco_are_refused_elsewhere(tmp_path, program, arguments, flag):
    done = call(program, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f'error: {flag} is for ') and len(done.stderr.splitlines()) == 1


def standing(image, nose):
    """A person of the first box, with a nose (or no keypoints at all), who is found in the photo."""
    points = [0] * 51
    points[:3] = 5, 5, 2
    return [annotation(image, image, polygon(*BOXES[1]), **({'keypoints': points} if nose else {}))]


@pytest.mark.parametrize('nose', [True, False])
def test_people_without_parts_are_counted_and_the_best_model_labels_their_keypoints(tmp_path, monkeypatch, nose):
    """For AP^p any label inside a person without parts is right. The first and the second epoch find the person, but the first has a
    dress at the nose; the third finds nobody."""
    for folder in ('train2017', 'val2017'):
        write_coco(tmp_path, {n: (4, standing(n, nose)) for n in range(1, 9)}, folder)
    person = rectangle(*BOXES[1])
    names = iter([name for name in ('dress', 'face', None) for _ in range(4)])
    kernels = []  # of the categories, at each validated photo

    def predict(model, image):
        name = next(names)
        kernels.append(model.state_dict()['category_builder.k_cate'].clone())
        parsing = np.array([person * np.uint8(COCO.class_names.index(name))] if name else np.zeros((0, *person.shape), np.uint8))
        return [Parsing(parsing, np.ones(len(parsing)), np.zeros((len(parsing), 2)), COCO.class_names)]

    monkeypatch.setattr(UniParser, 'predict', predict)
    run = tmp_path / 'run'
    done = call(train, '--data', 'COCO', '--root', tmp_path, *TINY, '--epochs', '3', '--val-every', '1', '--out', run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (run / 'log.jsonl').read_text().splitlines() if '"found"' in line]
    assert [record['found'] for record in records] == [1, 1, 0]
    expected = [0, 1, 0] if nose else [np.nan] * 3
    assert np.array_equal([record['keypoints_right'] for record in records], expected, equal_nan=True)
    # Without keypoints the first model that finds all people stays the best.
    best = torch.load(run / 'best.pt', weights_only=True)['model']['category_builder.k_cate']
    assert [torch.equal(best, kernels[4 * epoch]) for epoch in range(3)] == [not nose, nose, False]


def test_the_share_of_coco_beside_ccp():
    assert train.count_images(get_config('ccp', samples=200)) == (200, 0)
    assert train.count_images(get_config('ccp', samples=200, coco='x', coco_share=0.75)) == (50, 150)
    with pytest.raises(ValueError, match='--coco adds photos to the scenes of --data CCP'):
        train.count_images(get_config('mhp', samples=200, coco='x'))


@pytest.mark.parametrize('flags, sentence', [
    (['--data', 'CCP', '--parts', 'x'], '--parts is for photos of COCO; give --data COCO, or --data CCP with --coco'),
    (['--licenses', 'free'], '--licenses is for photos of COCO'),
    (['--data', 'CCP', '--no-pseudo'], '--pseudo is for photos of COCO'),
    (['--data', 'MHP', '--coco', '', '--parts', 'x'], '--parts is for photos of COCO'),
    (['--data', 'CCP', '--coco-share', '0.5'], '--coco-share is for --coco'),
    (['--data', 'COCO', '--coco-share', '0'], '--coco-share is for --coco')])
def test_settings_of_coco_without_its_photos_are_refused(tmp_path, flags, sentence):
    done = call(train, *flags, '--root', tmp_path, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f'error: {sentence}') and len(done.stderr.splitlines()) == 1


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


def test_scenes_beside_photos_of_coco_train_and_resume(tmp_path, monkeypatch):
    """Every flag of such a training, stopped in its middle and resumed from the folder of the run alone: it reads the same photos, and
    its weights are the bits of a training that was not stopped. CCP's people here have hair, but no face; those of COCO have faces."""
    ccp, coco_root, parts = tmp_path / 'ccp', tmp_path / 'coco', tmp_path / 'parts'
    ccp.mkdir()
    write_ccp(ccp, monkeypatch)
    write_photo(tmp_path / 'nobody' / 'a.jpg', 1, (90, 60))
    for folder, numbers in (('val2017', range(1, 4)), ('train2017', range(21, 25))):
        write_coco(coco_root, {n: (4 if n % 2 else 1, person_of(n)) for n in numbers}, folder)
        for n in numbers:
            write_face(parts, n)
            if n % 2 == 0:  # not free: nobody has downloaded it
                (coco_root / folder / f'{n:012d}.jpg').unlink()
    flags = ['--data', 'CCP', '--root', ccp, '--coco', coco_root, '--parts', parts, '--licenses', 'free', '--coco-share', '0.25',
             '--backgrounds', tmp_path / 'nobody', '--long-side', '90', '--rare', '0', *TINY, '--epochs', '2']
    seen, sources = set(), []
    loss, read = train.UniParserTask.loss, Image.open

    def noting(task, net, batch, run):
        seen.update(np.unique(torch.cat([p.flatten() for p in batch['parsings']])).tolist())
        return loss(task, net, batch, run)

    def opening(file, *more, **options):
        sources.append(str(file))
        return read(file, *more, **options)

    monkeypatch.setattr(train.UniParserTask, 'loss', noting)
    monkeypatch.setattr(Image, 'open', opening)
    done = call(train, *flags, '--out', tmp_path / 'whole', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '12 training and 100 validation images' in done.stdout and 'AP50' in done.stdout.splitlines()[-1]
    assert {COCO.class_names.index(name) for name in ('hair', 'face')} <= seen
    assert any('nobody' in source for source in sources)

    steps = stop_at_step(monkeypatch, 3)
    done = call(train, *flags, '--out', tmp_path / 'parted', cwd=tmp_path)
    assert done.returncode == 0 and 'stopped; continue with --resume' in done.stdout and len(steps) == 3
    seen.clear()
    done = call(train, '--resume', tmp_path / 'parted', '--device', 'cpu', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(steps) == 8 and COCO.class_names.index('face') in seen
    parted = weights(tmp_path / 'parted')
    assert all(torch.equal(value, parted[name]) for name, value in weights(tmp_path / 'whole').items())
