"""Photos to files: results, names, flags, maps; predictions of a split."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks

import data
import evaluate
import infer
import train
from evaluate import parsing_metrics
from tests.helpers import call, tiny_config, tiny_model, write_photo
from uniparser import UniParser, correlate, find_centers
from util import datasets, files
from tools import oracle
import maps
from util.datasets import open_dataset
from util.masks import box_of
from util.pictures import RAMP
from util.rle import Runs, decode_rle, encode_rle, encode_runs
from util.run import Run


# ---- results of photos


def test_a_folder_is_parsed_and_a_broken_photo_is_reported(checkpoint, tmp_path):
    write_photo(tmp_path / 'in' / 'a b.png', 0)
    write_photo(tmp_path / 'in' / 'sub' / 'é.jpg', 1)
    write_photo(tmp_path / 'in' / 'sub' / 'a b.jpg', 2)
    write_photo(tmp_path / 'in' / '-dash.png', 3)
    (tmp_path / 'in' / 'broken.jpg').write_text('not a photo')
    done = call(infer, 'in', '--weights', checkpoint, '--out', 'out', '--cutouts', cwd=tmp_path)
    assert done.returncode == 2
    assert 'broken.jpg' in done.stderr and '1 photo' in done.stderr
    assert 'Traceback' not in done.stderr and '4 of 5 photos' in done.stdout
    out = tmp_path / 'out'
    records = {path.stem: json.loads(path.read_text()) for path in out.glob('*.json')}
    assert len(records) == 4 and 'é' in records
    assert len({record['photo'] for record in records.values()}) == 4
    for name, record in records.items():
        check_pixels(out, name, record, datasets.Synthetic.class_names)


def check_pixels(out, name, record, class_names):
    """Pictures, boxes and run lengths tell the same story."""
    parts_picture = Image.open(out / f'{name}_parts.png')
    assert parts_picture.mode == 'P'
    assert Image.open(out / f'{name}_overlay.jpg').mode == 'RGB'
    parts = np.asarray(parts_picture)
    people = np.asarray(Image.open(out / f'{name}_people.png'))
    shape = record['height'], record['width']
    assert parts.shape == people.shape == shape
    assert ((parts > 0) == (people > 0)).all() and record['people']
    for person in record['people']:
        whole = np.zeros(shape, np.uint8)
        for part in person['parts']:
            mask = decode_rle(part['rle']['counts'], record['width'], record['height'])
            rows, cols = np.nonzero(mask)
            assert part['rle']['size'] == list(shape) and part['area'] == mask.sum()
            assert part['box'] == [cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1]
            assert part['name'] == class_names[part['id']]
            whole[mask] = part['id']
        mine = people == person['id']
        assert (parts[mine] == whole[mine]).all() and person['area'] == (whole > 0).sum()
        cut = Image.open(out / f'{name}_cutouts' / f'person{person["id"]}.png')
        assert cut.mode == 'RGBA' and cut.size == tuple(person['box'][2:])
        assert (np.asarray(cut)[..., 3] > 0).sum() == person['area']
        pictures = list((out / f'{name}_cutouts').glob(f'person{person["id"]}_*.png'))
        assert len(pictures) == len(person['parts'])


@pytest.mark.parametrize('seed', range(4))
def test_run_lengths_are_those_of_coco(seed):
    rng = np.random.default_rng(seed)
    for share in (0, 0.02, 0.5, 1):
        mask = rng.random((37, 53)) < share
        if share == 0.02:
            mask = np.kron(mask, np.ones((9, 9))) > 0
        padded = np.pad(mask, ((3, 9), (5, 0)))
        for y, x, photo in (0, 0, mask), (3, 5, padded):
            height, width = photo.shape
            rle = encode_rle(mask, x, y, photo.shape)
            assert rle['size'] == [height, width]
            assert np.array_equal(decode_rle(rle['counts'], width, height), photo)
            official = coco_masks.encode(np.asfortranarray(photo, np.uint8))
            assert rle['counts'] == official['counts'].decode()


@pytest.mark.parametrize('seed', range(6))
def test_runs_of_a_label_map_are_those_of_its_masks(seed):
    """Areas, boxes and run lengths of all labels at once, of noise, of patches, and of whole columns."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 0, 1, 2, 7, 255], rng.integers(1, [40, 50])).astype(np.uint8)
    labels = np.kron(labels, np.ones((1 + seed % 3 * 4, 1 + seed % 2 * 6), np.uint8))
    photo = np.pad(labels, ((3, 9), (5, 0)) if seed % 2 else 0)
    y, x = (3, 5) if seed % 2 else (0, 0)
    runs = Runs(labels, x, y, photo.shape)
    split = runs.split()
    assert list(split) == sorted(set(labels.ravel().tolist()) - {0})
    masks = [(runs, photo > 0), *((split[c], photo == c) for c in split)]
    rles = encode_runs([found for found, _ in masks])
    for (found, mask), rle in zip(masks, rles):
        if mask.any():
            assert (found.area, found.box) == (mask.sum(), box_of(mask))
        official = coco_masks.encode(np.asfortranarray(mask, np.uint8))
        assert rle == {'size': list(photo.shape), 'counts': official['counts'].decode()}


def test_results_among_the_photos_are_not_photos(checkpoint, tmp_path):
    write_photo(tmp_path / 'a.png')
    for _ in range(2):
        done = call(infer, tmp_path, '--weights', checkpoint, '--out', tmp_path / 'results')
        assert done.returncode == 0 and '1 of 1 photo,' in done.stdout


def test_only_keeps_the_named_parts(checkpoint, tmp_path):
    write_photo(tmp_path / 'a.png')
    start = tmp_path / 'a.png', '--weights', checkpoint, '--out', tmp_path, '--only'
    done = call(infer, *start, 'head, Left arm')
    assert done.returncode == 0, done.stderr
    assert set(np.unique(np.asarray(Image.open(tmp_path / 'a_parts.png')))) <= {0, 1, 3}
    done = call(infer, *start, 'hat')
    assert done.returncode == 2
    assert "unknown part 'hat'" in done.stderr and 'left-leg' in done.stderr


def test_nobody_found_is_said_and_is_no_error(checkpoint, tmp_path):
    write_photo(tmp_path / 'a.png')
    done = call(infer, tmp_path / 'a.png', '--weights', checkpoint, '--out', tmp_path,
                '--theta-center', '0.999')
    assert done.returncode == 0 and 'found no person' in done.stdout + done.stderr
    assert json.loads((tmp_path / 'a.json').read_text())['people'] == []
    assert not np.asarray(Image.open(tmp_path / 'a_parts.png')).any()


def test_names_of_results_are_unique():
    paths = [Path(p) for p in ('x/a.jpg', 'y/a.jpg', 'y/a.png', 'y/b.jpg', 'z/y/a.png')]
    names = files.result_names(paths)
    assert len(set(names)) == 5 and names[3] == 'b'


@pytest.mark.parametrize('arguments, message', [
    ([], 'give photos'),
    (['nothing.jpg'], 'nothing.jpg does not exist'),
    (['no*.jpg'], 'no*.jpg does not exist'),
    (['.'], 'a folder without photos, or without read permission; name videos one by one'),
    (['a.jpg', '--data', 'synthetic'], 'give photos or --data, not both'),
    (['a.jpg', '--only', 'arms'], "unknown part 'arms' (did you mean left-arm, right-arm?); the parts are head"),
    (['a.jpg', '--weights', 'a.onnx'], 'a.onnx is an ONNX file; parse photos with it by python -m tools.onnx_parse'),
    (['a.jpg', '--weights', 'no.pt'], 'no.pt does not exist'),
    (['--data', 'MHP', '--root', '.'], 'other classes')])
def test_mistakes_in_infer_get_one_sentence(checkpoint, tmp_path, monkeypatch, capsys, arguments,
                                            message):
    monkeypatch.chdir(tmp_path)
    if '--data' in arguments:
        (tmp_path / 'list').mkdir()
        (tmp_path / 'list' / 'val.txt').write_text('1')
        write_photo(tmp_path / 'val' / 'images' / '1.jpg')
        write_photo(tmp_path / 'val' / 'parsing_annos' / '1_01_01.png')
    (tmp_path / 'a.onnx').touch()
    if '--weights' not in arguments:
        arguments = ['--weights', str(checkpoint), *arguments]
    with pytest.raises(SystemExit) as stop:
        infer.main([*arguments, '--device', 'cpu'])
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize('arguments, sentence', [
    (['a.png', '--root', 'x'], '--root is for a data set; name it with --data'),
    (['a.png', '--split', 'val'], '--split is for a data set'),
    (['a.png', '--fps', '5'], '--fps is for videos, and there is none among the files'),
    (['--data', 'synthetic', '--cutouts'], '--cutouts is for photos, not for a data set'),
    (['--data', 'synthetic', '--only', 'head'], '--only is for photos, not for a data set'),
    (['--data', 'synthetic', '--max-size', '100'], '--max-size is for photos'),
    (['--data', 'synthetic', '--fps', '5'], '--fps is for photos'),
    (['a.png', '--score', 'center', '--theta-score', '0.5'], '--theta-score is for --score parsing'),
    (['--list', '--cutouts'], '--cutouts is for parsing; leave out --list'),
    (['--list', '--out', 'x'], '--out is for parsing'),
    (['--list', '--split', 'val'], '--split is for parsing'),
    (['a.png', 'https://example.com/b.jpg'], 'https://example.com/b.jpg is an address, and files are read; download it'),
    (['S3://bucket/*.jpg'], 'S3://bucket/*.jpg is an address')])
def test_flags_that_would_do_nothing_are_refused(checkpoint, tmp_path, arguments, sentence):
    write_photo(tmp_path / 'a.png')
    done = call(infer, *arguments, '--weights', checkpoint, '--device', 'cpu', cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f'error: {sentence}'), done.stderr
    assert done.stderr.count('\n') == 1 and [path.name for path in tmp_path.iterdir()] == ['a.png']


def test_an_address_is_no_file_in_python_either():
    with pytest.raises(FileNotFoundError, match='https://example.com/a.jpg is an address'):
        tiny_model().predict('https://example.com/a.jpg')
    with pytest.raises(FileNotFoundError, match='https://example.com/a.pt is an address'):
        UniParser.from_pretrained('https://example.com/a.pt')


def test_people_in_colors_are_those_of_python(checkpoint, tmp_path):
    write_photo(tmp_path / 'a.png')
    done = call(infer, tmp_path / 'a.png', '--weights', checkpoint, '--device', 'cpu', '--colors', 'people', '--out', tmp_path / 'out')
    assert done.returncode == 0, done.stderr
    found = UniParser.from_pretrained(checkpoint).fold().predict(tmp_path / 'a.png')[0]
    found.save(tmp_path / 'people', people=True)
    found.save(tmp_path / 'parts')
    drawn, people, parts = ((tmp_path / kind / 'a_overlay.jpg').read_bytes() for kind in ('out', 'people', 'parts'))
    assert len(found) and drawn == people != parts


# ---- maps


def test_maps_show_the_people_that_were_found(monkeypatch):
    """The panels of two people are drawn from the cells of their own peaks, whoever else the heat
    map shows."""
    model = tiny_model(theta_center=0.0, theta_part=0.0, theta_mask=0.1, theta_same=1.0,
                       test_short_side=96)
    torch.nn.init.normal_(model.center_locator.heatmap.weight)
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    photo = Image.fromarray(noise)
    found = model.predict(photo)[0]
    assert len(found.scores) > 2
    # As if the best had no part.
    kept = found.take(slice(1, None))
    nobody = found.take(slice(0))
    out = model.outputs(data.network_input(photo, model.config))
    cells, scores = find_centers(out['heatmap'][0, 0], model.config)
    seen = []

    def correlate_and_note(kernels, features, space):
        seen.append(kernels)
        return correlate(kernels, features, space)

    monkeypatch.setattr(maps, 'correlate', correlate_and_note)
    maps.draw_maps(model, out, photo, kept)
    own = torch.stack([cells[np.isclose(scores, score)][0] for score in kept.scores])
    assert torch.equal(seen[0], out['k_ins'][0].flatten(1).T[own])
    assert torch.equal(seen[1], out['k_cate'])
    assert maps.draw_maps(model, out, photo, nobody).width > 0
    # The photo has 24x32 pixels of the features.
    maps.draw_maps(model, out, photo, kept, [('79,59', 79, 59), ('0,30', 0, 30)])
    last = [kernels[0] for kernels in seen[-4:]]
    expected = [out[name][0, :, row, column]
                for row, column in ((23, 31), (12, 0)) for name in ('f_ins', 'f_cate')]
    assert all(torch.equal(a, b) for a, b in zip(last, expected))


def test_the_page_of_maps_only_outlines_an_unknown_part():
    model = tiny_model(theta_center=0.0, theta_part=1.0, theta_mask=0.1, max_people=1, whole=True, test_short_side=96)
    photo = Image.new('RGB', (80, 60), (30, 60, 90))
    found = model.predict(photo)[0]
    assert len(found) == 1 and set(np.unique(found.parsing)) <= {0, 255}
    found.parsing[:] = 255
    out = model.outputs(data.network_input(photo, model.config))
    page = np.asarray(maps.draw_maps(model, out, photo, found, height=60))
    # Photo, heat map, person, part and parsing side by side, below their titles.
    first, parsing = (page[24:84, 86 * k:86 * k + 80] for k in (0, 4))
    assert (first == (30, 60, 90)).all() and (parsing[0] == 255).all()
    assert (parsing[5:-5, 5:-5] == (30, 60, 90)).all()


def test_the_page_of_maps_shows_the_points(checkpoint, tmp_path):
    """--at adds two panels per point, with a cross; the first row stays as it is."""
    write_photo(tmp_path / 'a.png')
    pages = []
    for points in [], ['--at', '20,10', '--at', '59,39']:
        done = call(infer, tmp_path / 'a.png', '--weights', checkpoint, '--out', tmp_path,
                    '--maps', *points)
        assert done.returncode == 0, done.stderr
        pages.append(np.asarray(Image.open(tmp_path / 'a_maps.png')))
    without, with_points = pages
    assert len(with_points) - len(without) == 430
    assert np.array_equal(without[:424], with_points[:424, :without.shape[1]])


def test_a_cross_marks_the_pixel_of_a_point():
    photo = Image.new('RGB', (60, 40))
    # The input is 120x80 pixels, padded to 128x96.
    panel = maps.PanelMaker(photo, data.input_geometry(photo, tiny_config(test_short_side=80, long_side=200)))
    name, picture = panel('x', torch.zeros(24, 32), (20, 10))
    white = np.argwhere(np.asarray(picture).min(2) == 255)
    assert name == 'x' and picture.size == (120, 80)
    assert np.abs(white.mean(0) - (21, 41)).max() <= 1
    assert panel('x', torch.zeros(24, 32))[1].getcolors() == [(9600, tuple(RAMP[0]))]


@pytest.mark.parametrize('arguments, sentence', [
    (['--maps', '--at', '60,0'],
     '--at 60,0 is outside the photo; its columns are 0 to 59, its rows 0 to 39'),
    (['--maps', '--at', '0,40'],
     '--at 0,40 is outside the photo; its columns are 0 to 59, its rows 0 to 39'),
    (['--maps', '--at', 'x,y'],
     "--at 'x,y' is no point; give a column and a row in pixels, such as --at 240,300"),
    (['--maps', '--at', '1.5,2'], "--at '1.5,2' is no point"),
    (['--maps', '--at=-1,2'], "--at '-1,2' is no point"),
    (['--maps', '--at', '5'], "--at '5' is no point"),
    (['--at', '5,5'], '--at adds maps to the page of --maps')])
def test_wrong_points_get_a_sentence(checkpoint, tmp_path, arguments, sentence):
    write_photo(tmp_path / 'a.png')
    done = call(infer, tmp_path / 'a.png', '--weights', checkpoint, '--out', tmp_path / 'out',
                *arguments)
    assert done.returncode == 2 and done.stderr.startswith(f'error: {sentence}')
    assert done.stderr.count('\n') == 1
    assert not (tmp_path / 'out').exists()


def test_points_are_for_one_photo(checkpoint, tmp_path):
    photos = tmp_path / 'a.png', tmp_path / 'b.png'
    for path in photos:
        write_photo(path)
    done = call(infer, *photos, '--weights', checkpoint, '--maps', '--at', '1,1')
    assert done.returncode == 2 and done.stderr == 'error: --at is for one photo, not for 2\n'
    done = call(infer, '--data', 'synthetic', '--weights', checkpoint, '--maps', '--at', '1,1')
    assert done.returncode == 2 and '--maps is for photos, not for a data set' in done.stderr


def test_points_follow_a_reduced_photo():
    points = maps.read_points(['10,20', '0,0'], (60, 40), 0.5)
    assert points == [('10,20', 5.0, 10.0), ('0,0', 0.0, 0.0)]


# ---- predictions of a split


def test_predictions_of_a_split_evaluate_to_what_training_reports(checkpoint, tmp_path):
    model = UniParser.from_pretrained(checkpoint)
    dataset = open_dataset('synthetic', None, 'val')
    expected = train.UniParserTask(model.config, model, None, dataset).validate(Run('cpu'))
    done = call(infer, '--data', 'synthetic', '--weights', checkpoint, '--out', tmp_path / 'pred')
    assert done.returncode == 0, done.stderr
    done = call(evaluate, '--data', 'synthetic', '--predictions', tmp_path / 'pred',
                '--json', tmp_path / 'metrics.json')
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 'metrics.json').read_text())
    for name in train.UniParserTask.reported:
        # infer.py folds BatchNorm: ties may turn.
        assert abs(found[name] - expected[name]) < 1e-4, name


def write_test_split(root):
    """MHPv2's test photos, whose labels are not public."""
    (root / 'list').mkdir()
    (root / 'list' / 'test_all.txt').write_text('1\n')
    write_photo(root / 'test' / 'images' / '1.jpg')


def test_a_split_without_labels_is_for_the_challenge(tmp_path):
    write_test_split(tmp_path)
    model = tiny_model('mhp', theta_center=0.0, theta_mask=0.1, test_short_side=48)
    model.class_names = list(datasets.MHP.class_names)
    model.save(tmp_path / 'm.pt')
    split = '--data', 'MHP', '--root', tmp_path, '--split', 'test'
    for form, advice in (('mhp', 'submit them; the labels of MHP test are not public'),
                         ('instances', 'the labels of MHP test are not public; to submit predictions, write them '
                                       'with --format mhp')):
        done = call(infer, *split, '--weights', tmp_path / 'm.pt', '--out', tmp_path / form, '--format', form)
        assert done.returncode == 0 and done.stdout.endswith(f'next: {advice}\n'), done.stdout + done.stderr
        done = call(evaluate, *split, '--predictions', tmp_path / form)
        assert done.returncode == 2 and done.stdout == ''
        assert done.stderr.startswith('error: MHP test has no ground truth to compare with')


def test_the_test_split_of_cihp_has_no_labels(tmp_path):
    write_cihp(tmp_path)
    folder = tmp_path / 'instance-level_human_parsing'
    write_photo(folder / 'Testing' / 'Images' / '9.jpg')
    assert open_dataset('CIHP', tmp_path, 'val').has_truth and not open_dataset('CIHP', tmp_path, 'test').has_truth
    assert open_dataset('synthetic').has_truth


def write_cihp(root):
    """Three photos of up to two people, with pixels that are labeled but nobody's: bystanders."""
    folder = root / 'instance-level_human_parsing' / 'Validation'
    rng = np.random.default_rng(0)
    for name in ('1', '2', '3'):
        human = np.kron(rng.integers(0, 3, (3, 4)), np.ones((16, 16), int))
        category = np.kron(rng.integers(1, 20, (6, 8)), np.ones((8, 8), int))
        category[human == 0] *= rng.random() < 0.9
        parts = np.where(human > 0, (human - 1) * 20 + category, 0)
        write_photo(folder / 'Images' / f'{name}.jpg', int(name), (64, 48))
        maps_of = dict(Category_ids=category, Human_ids=human, Instance_ids=parts)
        for kind, ids in maps_of.items():
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(ids.astype(np.uint8)).save(folder / kind / f'{name}.png')


def test_cihp_validation_equals_evaluate(tmp_path):
    """Unlabeled bystanders and official class maps: the run's validation and evaluate.py give the
    same numbers."""
    write_cihp(tmp_path)
    model = tiny_model('cihp', theta_center=0.0, theta_part=0.0, theta_mask=0.1, theta_same=1.0,
                       max_people=4, test_short_side=48)
    model.class_names = list(datasets.CIHP.class_names)
    model.save(tmp_path / 'm.pt')
    dataset = open_dataset('CIHP', tmp_path, 'val')
    assert dataset.read(0)[2].any()
    expected = train.UniParserTask(model.config, model, None, dataset).validate(Run('cpu'))
    data_flags = '--data', 'CIHP', '--root', tmp_path
    done = call(infer, *data_flags, '--weights', tmp_path / 'm.pt', '--out', tmp_path / 'pred')
    assert done.returncode == 0, done.stderr
    done = call(evaluate, *data_flags, '--predictions', tmp_path / 'pred',
                '--json', tmp_path / 'metrics.json', '--workers', '1')
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 'metrics.json').read_text())
    for name in (*train.UniParserTask.reported, 'APr50', 'APh50'):
        assert abs(found[name] - expected[name]) < 1e-4, name


def test_with_the_truth_for_people_and_classes_little_is_left_to_get_wrong(monkeypatch):
    model = tiny_model(num_classes=6, test_short_side=96, long_side=128)
    dataset = open_dataset('synthetic')
    found = []
    samples = [dataset.read(i) for i in range(4)]
    for sample in samples:
        with monkeypatch.context() as patch:
            patch.setattr(oracle, 'decode', lambda out, *_: out)
            out = oracle.predict_with_truth(model, 'classes', *sample)
            patch.undo()
            patch.setattr(model, 'outputs', lambda *_: out)
            found.append(oracle.predict_with_truth(model, 'people', *sample))
    metrics = parsing_metrics(found, [parsing for _, parsing, _ in samples], 6)
    assert metrics['people'] > 4 and metrics['AP50'] == 1.0 and metrics['APvol'] > 0.75
    centers = oracle.predict_with_truth(model, 'centers', *samples[0])
    assert len(centers.scores) <= len(samples[0][1])
