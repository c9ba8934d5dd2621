"""Every fast path gives what the slow one gives; photos of a folder give what each photo gives."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import infer
from tests.helpers import HERE, tiny_model
from util import photos
from util.masks import flatten_people

torch.set_num_threads(1)


# ---- folders ---------------------------------------------------------------------------------------------------


def write_photos(folder, count):
    rng = np.random.default_rng(0)
    for i in range(count):
        size = (60, 80, 3) if i % 3 else (80, 50, 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / f'{i:02d}.png')
    (folder / '04.png').write_bytes(b'no photo')


def parse_folder(checkpoint, folder, out, launcher=()):
    command = [sys.executable, *launcher, HERE / 'infer.py', folder, '--weights', checkpoint, '--out', out, '--device', 'cpu']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)


def test_a_folder_gives_what_each_photo_gives_and_processes_share_it(tmp_path):
    model, photos = tiny_model(theta_center=0.0, theta_part=0.0, test_short_side=64), tmp_path / 'photos'
    model.save(tmp_path / 'w.pt')
    photos.mkdir()
    write_photos(photos, 9)
    done = parse_folder(tmp_path / 'w.pt', photos, tmp_path / 'all')
    assert done.returncode == 2 and '8 of 9 photos' in done.stdout and '04.png' in done.stderr, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(str(photos))]
    assert [Path(line.split(':')[0]).stem for line in lines] == [f'{i:02d}' for i in range(9) if i != 4]
    for i in 0, 1, 8:
        found = model.predict(photos / f'{i:02d}.png')[0]
        record = json.loads((tmp_path / 'all' / f'{i:02d}.json').read_text())
        people = np.asarray(Image.open(tmp_path / 'all' / f'{i:02d}_people.png'))
        assert len(record['people']) == len(found.scores) > 0
        assert (people == flatten_people(found.parsing)[1]).mean() > 0.99      # folded: rounded otherwise
    for i in range(0, 8, 2):                              # the first process has nothing but these, and fails at once
        (photos / f'{i:02d}.png').write_bytes(b'no photo')
    launcher = '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--standalone'
    done = parse_folder(tmp_path / 'w.pt', photos, tmp_path / 'two', launcher=launcher)
    assert done.returncode != 0 and '4 of 4 photos' in done.stdout and '1 of 5 photos' in done.stdout
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ('all', 'two'))
    pages = first.pop('index.html'), second.pop('index.html')
    assert all(pages) and len(first) == 8 * 4 and len(second) == 5 * 4 and second.items() <= first.items()


def test_people_without_a_part_are_left_out(tmp_path, capsys):
    """`released` finds people of whom nothing is painted."""
    model = tiny_model('mhp_released', theta_center=0.0, theta_part=0.99, test_short_side=64)
    model.save(tmp_path / 'w.pt')
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(tmp_path / 'a.png')
    found = model.predict(tmp_path / 'a.png')[0]
    assert len(found.scores) > 0 and not found.parsing.any()
    infer.main([str(tmp_path / 'a.png'), '--weights', str(tmp_path / 'w.pt'), '--out', str(tmp_path / 'out'), '--maps',
                '--device', 'cpu'])
    assert 'found no person' in capsys.readouterr().out
    assert json.loads((tmp_path / 'out' / 'a.json').read_text())['people'] == []


def test_what_goes_ahead_comes_in_order_and_never_far_ahead():
    from concurrent.futures import ThreadPoolExecutor
    started = []
    with ThreadPoolExecutor(4) as pool:
        for i, value in enumerate(photos.ahead(pool, lambda v: started.append(v) or v * v, iter(range(50)))):
            assert value == i * i and max(started) <= i + photos.AHEAD + 1
    assert sorted(started) == list(range(50))
