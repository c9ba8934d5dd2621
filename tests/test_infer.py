"""Photos to files: results, names, flags; predictions of a split."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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
from util.masks import decode_rle, encode_rle
from util.pictures import RAMP, matrix_picture
from util.run import Run


# ---- infer.py --------------------------------------------------------------------------------------------------


def test_a_folder_is_parsed_and_a_broken_photo_is_reported(checkpoint, tmp_path):
    for k, name in enumerate(('a b.png', 'sub/é.jpg', 'sub/a b.jpg', '-dash.png')):
        write_photo(tmp_path / 'in' / name, k)
    (tmp_path / 'in' / 'broken.jpg').write_text('not a photo')
    done = call(infer, 'in', '--weights', checkpoint, '--out', 'out', '--cutouts', cwd=tmp_path)
    assert done.returncode == 2 and 'broken.jpg' in done.stderr and '1 photo' in done.stderr
    assert 'Traceback' not in done.stderr and '4 of 5 photos' in done.stdout
    out = tmp_path / 'out'
    records = {p.stem: json.loads(p.read_text()) for p in out.glob('*.json')}
    assert len(records) == 4 and 'é' in records and len({r['photo'] for r in records.values()}) == 4
    for name, record in records.items():
        check_pixels(out, name, record, datasets.Synthetic.class_names)


def check_pixels(out, name, record, class_names):
    """Pictures, boxes and run lengths tell the same story."""
    parts, people = (np.asarray(Image.open(out / f'{name}_{kind}.png')) for kind in ('parts', 'people'))
    assert parts.shape == people.shape == (record['height'], record['width'])
    assert Image.open(out / f'{name}_parts.png').mode == 'P' and Image.open(out / f'{name}_overlay.png').mode == 'RGB'
    assert ((parts > 0) == (people > 0)).all() and record['people']
    for person in record['people']:
        whole = np.zeros(parts.shape, np.uint8)
        for part in person['parts']:
            mask = decode_rle(part['rle']['counts'], record['width'], record['height'])
            rows, cols = np.nonzero(mask)
            assert part['rle']['size'] == [record['height'], record['width']] and part['area'] == mask.sum()
            assert part['box'] == [cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1]
            assert part['name'] == class_names[part['id']]
            whole[mask] = part['id']
        mine = people == person['id']
        assert (parts[mine] == whole[mine]).all() and person['area'] == (whole > 0).sum()
        cut = Image.open(out / f'{name}_person{person["id"]}.png')
        assert cut.mode == 'RGBA' and cut.size == tuple(person['box'][2:])
        assert (np.asarray(cut)[..., 3] > 0).sum() == person['area']
        assert len(list(out.glob(f'{name}_person{person["id"]}_*.png'))) == len(person['parts'])


@pytest.mark.parametrize('seed', range(4))
def test_run_lengths_are_those_of_coco(seed):
    rng = np.random.default_rng(seed)
    for share in (0, 0.02, 0.5, 1):
        mask = rng.random((37, 53)) < share
        if share == 0.02:
            mask = np.kron(mask, np.ones((9, 9))) > 0
        for y, x, photo in (0, 0, mask), (3, 5, np.pad(mask, ((3, 9), (5, 0)))):
            rle = encode_rle(mask, x, y, photo.shape)
            assert rle['size'] == list(photo.shape)
            assert np.array_equal(decode_rle(rle['counts'], photo.shape[1], photo.shape[0]), photo)


def test_maps_show_the_people_that_were_found(monkeypatch):
    """The panels of two people are drawn from the cells of their own peaks, whoever else the heat map shows."""
    model = tiny_model(theta_center=0.0, theta_part=0.0, theta_mask=0.1, theta_same=1.0, test_short_side=96)
    torch.nn.init.normal_(model.center_locator.heatmap.weight)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
    found = model.predict(photo)[0]
    assert len(found.scores) > 2
    kept = type(found)(*(field[1:] for field in found))                      # as if the best had no part
    out = model.outputs(data.network_input(photo, model.config))
    cells, scores = find_centers(out['heatmap'][0, 0], model.config)
    seen = []
    monkeypatch.setattr(maps, 'correlate', lambda k, f, space: seen.append(k) or correlate(k, f, space))
    maps.draw_maps(model, out, photo, kept)
    own = [cells[np.isclose(scores, score)][0] for score in kept.scores]
    assert torch.equal(seen[0], out['k_ins'][0].flatten(1).T[torch.stack(own)]) and torch.equal(seen[1], out['k_cate'])
    assert maps.draw_maps(model, out, photo, type(found)(*(field[:0] for field in found))).width > 0
    maps.draw_maps(model, out, photo, kept, [('79,59', 79, 59), ('0,30', 0, 30)])
    for k, (name, row, column) in enumerate((name, *cell) for cell in ((23, 31), (12, 0)) for name in ('f_ins', 'f_cate')):
        assert torch.equal(seen[k - 4][0], out[name][0, :, row, column])     # the photo has 24x32 cells


def test_the_page_of_maps_shows_the_points(checkpoint, tmp_path):
    """--at adds two panels per point, with a cross; the first row stays as it is."""
    write_photo(tmp_path / 'a.png')
    pages = []
    for points in [], ['--at', '20,10', '--at', '59,39']:
        done = call(infer, tmp_path / 'a.png', '--weights', checkpoint, '--out', tmp_path, '--maps', *points)
        assert done.returncode == 0, done.stderr
        pages.append(np.asarray(Image.open(tmp_path / 'a_maps.png')))
    without, with_points = pages
    assert len(with_points) - len(without) == 430 and np.array_equal(without[:424], with_points[:424, :without.shape[1]])

def test_a_cross_marks_the_pixel_of_a_point():
    photo = Image.new('RGB', (60, 40))
    panel = maps.PanelMaker(photo, tiny_config(test_short_side=80, long_side=200))
    name, picture = panel('x', torch.zeros(24, 32), (20, 10))                # the input is 120x80 pixels, padded to 128x96
    white = np.argwhere(np.asarray(picture).min(2) == 255)
    assert name == 'x' and picture.size == (120, 80) and np.abs(white.mean(0) - (21, 41)).max() <= 1
    assert panel('x', torch.zeros(24, 32))[1].getcolors() == [(9600, tuple(RAMP[0]))]


@pytest.mark.parametrize('arguments, sentence', [
    (['--maps', '--at', '60,0'], '--at 60,0 is outside the photo; its columns are 0 to 59, its rows 0 to 39'),
    (['--maps', '--at', '0,40'], '--at 0,40 is outside the photo; its columns are 0 to 59, its rows 0 to 39'),
    (['--maps', '--at', 'x,y'], "--at 'x,y' is no point; give a column and a row in pixels, such as --at 240,300"),
    (['--maps', '--at', '1.5,2'], "--at '1.5,2' is no point"), (['--maps', '--at=-1,2'], "--at '-1,2' is no point"),
    (['--maps', '--at', '5'], "--at '5' is no point"), (['--at', '5,5'], '--at adds maps to the page of --maps')])
def test_wrong_points_get_a_sentence(checkpoint, tmp_path, arguments, sentence):
    write_photo(tmp_path / 'a.png')
    done = call(infer, tmp_path / 'a.png', '--weights', checkpoint, '--out', tmp_path / 'out', *arguments)
    assert done.returncode == 2 and done.stderr.startswith(f'error: {sentence}') and done.stderr.count('\n') == 1
    assert not (tmp_path / 'out').exists()


def test_points_are_for_one_photo(checkpoint, tmp_path):
    write_photo(tmp_path / 'a.png'), write_photo(tmp_path / 'b.png')
    done = call(infer, tmp_path / 'a.png', tmp_path / 'b.png', '--weights', checkpoint, '--maps', '--at', '1,1')
    assert done.returncode == 2 and done.stderr == 'error: --at is for one photo, not for 2\n'


def test_points_follow_a_reduced_photo():
    assert maps.read_points(['10,20', '0,0'], (60, 40), 0.5) == [('10,20', 5.0, 10.0), ('0,0', 0.0, 0.0)]


def test_matrices_of_correlations_have_a_bright_diagonal():
    names = ['head', 'torso', 'left-arm']
    values = np.array([[1, 0, 0.5], [0, 1, -0.2], [0.5, -0.2, 1]])
    picture = np.asarray(matrix_picture('A', values, names))
    corner = picture.shape[0] - 3 * 32, picture.shape[1]
    margin = picture.shape[0] - 3 * 32 - 32

    def color(row, column):
        return tuple(picture[corner[0] + row * 32 + 2, margin + column * 32 + 2])
    assert all(color(k, k) == tuple(RAMP[255]) for k in range(3))
    assert color(0, 1) == color(1, 0) == color(1, 2) == tuple(RAMP[0]) and color(0, 2) == tuple(RAMP[127])


def test_results_among_the_photos_are_not_photos(checkpoint, tmp_path):
    write_photo(tmp_path / 'a.png')
    for _ in range(2):
        done = call(infer, tmp_path, '--weights', checkpoint, '--out', tmp_path / 'results')
        assert done.returncode == 0 and '1 of 1 photos' in done.stdout


def test_only_keeps_the_named_parts(checkpoint, tmp_path):
    write_photo(tmp_path / 'a.png')
    done = call(infer, tmp_path / 'a.png', '--weights', checkpoint, '--out', tmp_path, '--only',
               'head, left-arm')
    assert done.returncode == 0, done.stderr
    assert set(np.unique(np.asarray(Image.open(tmp_path / 'a_parts.png')))) <= {0, 1, 3}
    done = call(infer, tmp_path / 'a.png', '--weights', checkpoint, '--out', tmp_path, '--only', 'hat')
    assert done.returncode == 2 and "unknown part 'hat'" in done.stderr and 'left-leg' in done.stderr


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
    ([], 'give photos'), (['nothing.jpg'], 'nothing.jpg does not exist'), (['no*.jpg'], 'no*.jpg does not exist'),
    (['.'], 'a folder without photos'), (['a.jpg', '--weights', 'no.pt'], 'no.pt does not exist'),
    (['--data', 'MHP'], 'other classes')])
def test_mistakes_in_infer_get_one_sentence(checkpoint, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    if '--data' in arguments:
        (tmp_path / 'list').mkdir(), (tmp_path / 'list' / 'val.txt').write_text('1')
        write_photo(tmp_path / 'val' / 'images' / '1.jpg'), write_photo(tmp_path / 'val' / 'parsing_annos' / '1_01_01.png')
        arguments = [*arguments, '--root', '.']
    with pytest.raises(SystemExit) as stop:
        infer.main([*(() if '--weights' in arguments else ('--weights', str(checkpoint))), *arguments, '--device', 'cpu'])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_predictions_of_a_split_evaluate_to_what_training_reports(checkpoint, tmp_path):
    model = UniParser.from_pretrained(checkpoint)
    dataset = open_dataset('synthetic', None, 'val')
    expected = train.UniParserTask(model.config, model, None, dataset).validate(Run('cpu'))
    done = call(infer, '--data', 'synthetic', '--weights', checkpoint, '--out', tmp_path / 'pred')
    assert done.returncode == 0, done.stderr
    done = call(evaluate, '--data', 'synthetic', '--predictions', tmp_path / 'pred', '--json',
               tmp_path / 'metrics.json')
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 'metrics.json').read_text())
    for name in train.UniParserTask.reported:
        assert abs(found[name] - expected[name]) < 1e-4, name                # infer.py folds BatchNorm: ties may turn


def test_cihp_validation_equals_evaluate(tmp_path):
    """Unlabelled bystanders and official class maps: the run's validation and evaluate.py give the same numbers."""
    root, names = tmp_path / 'instance-level_human_parsing' / 'Validation', datasets.CIHP.class_names
    rng = np.random.default_rng(0)
    for name in ('1', '2', '3'):
        human = np.kron(rng.integers(0, 3, (3, 4)), np.ones((16, 16), int))
        category = np.kron(rng.integers(1, 20, (6, 8)), np.ones((8, 8), int))
        category[human == 0] *= rng.random() < 0.9                           # labelled, but nobody's: a bystander
        parts = np.where(human > 0, (human - 1) * 20 + category, 0)
        write_photo(root / 'Images' / f'{name}.jpg', int(name), (64, 48))
        for folder, ids in dict(Category_ids=category, Human_ids=human, Instance_ids=parts).items():
            (root / folder).mkdir(exist_ok=True)
            Image.fromarray(ids.astype(np.uint8)).save(root / folder / f'{name}.png')
    model = tiny_model('cihp', theta_center=0.0, theta_part=0.0, theta_mask=0.1, theta_same=1.0, max_people=4, test_short_side=48)
    model.class_names = list(names)
    model.save(tmp_path / 'm.pt')
    dataset = open_dataset('CIHP', tmp_path, 'val')
    assert dataset.read(0)[2].any()
    expected = train.UniParserTask(model.config, model, None, dataset).validate(Run('cpu'))
    done = call(infer, '--data', 'CIHP', '--root', tmp_path, '--weights', tmp_path / 'm.pt', '--out', tmp_path / 'pred')
    assert done.returncode == 0, done.stderr
    done = call(evaluate, '--data', 'CIHP', '--root', tmp_path, '--predictions', tmp_path / 'pred', '--json',
                tmp_path / 'metrics.json', '--workers', '1')
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 'metrics.json').read_text())
    for name in (*train.UniParserTask.reported, 'APr50', 'APh50'):
        assert abs(found[name] - expected[name]) < 1e-4, name


def test_with_the_truth_for_people_and_classes_little_is_left_to_get_wrong(monkeypatch):
    model, dataset, found = tiny_model(num_classes=6, test_short_side=96, long_side=128), open_dataset('synthetic'), []
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
