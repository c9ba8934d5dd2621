"""tools/plot.py: logs become curves, curves become pictures."""
import json
import re

import pytest
from PIL import Image

from tests.helpers import call
from tools import plot


def write_log(folder, *records):
    folder.mkdir(parents=True)
    (folder / 'log.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    return folder


def step(epoch, iteration, total, **more):
    return dict(epoch=epoch, iter=iteration, lr=0.1, images_per_second=3, memory=1, total=total, **more)


@pytest.fixture
def runs(tmp_path):
    """Two runs of 10 steps per epoch. The first was killed after step 17 and resumed from step 12; a line is still written."""
    first = write_log(tmp_path / 'first', step(1, 4, 9.0), step(1, 10, 8.0), dict(epoch=1, mIoU=0.2), step(2, 12, 7.0),
                      step(2, 17, 99.0), step(2, 15, 6.0), step(2, 20, 5.0), dict(epoch=2, mIoU=0.4))
    with open(first / 'log.jsonl', 'a') as file:
        file.write('{"epoch": 3, "it')
    second = write_log(tmp_path / '$second$', step(1, 10, 4.0, parsing=1.0), dict(epoch=1, cycle=1), dict(epoch=1, mIoU=float('nan')))
    return first, second


def test_a_log_becomes_curves_over_steps(tmp_path):
    log = write_log(tmp_path / 'run', step(1, 4, 9.0), step(1, 10, 8.0), dict(epoch=1, mIoU=0.2, AP50=0.0),
                    step(2, 3, 7.0, aux_neg=0.0), step(2, 7, 99.0), step(2, 5, 6.0), step(2, 10, 5.0), dict(epoch=2, cycle=1), dict(epoch=2, mIoU=0.4))
    curves = plot.read_log(log)
    assert curves == dict(lr=([4, 10, 13, 15, 20], [0.1] * 5), total=([4, 10, 13, 15, 20], [9, 8, 7, 6, 5]),
                          mIoU=([10, 20], [0.2, 0.4]), AP50=([10], [0]))


def test_runs_become_a_picture(runs, tmp_path):
    for name in 'curves.png', 'curves.svg':
        done = call(plot, *runs, '--out', tmp_path / name)
        assert done.returncode == 0 and done.stdout.startswith('2 runs -> '), done.stderr
    assert Image.open(tmp_path / 'curves.png').size == (1600, 300)                # lr, total, mIoU, parsing
    text = (tmp_path / 'curves.svg').read_text()
    drawn = re.findall('<!-- (.*) -->', text)
    assert {'lr', 'total', 'mIoU', 'parsing', 'step', str(runs[0]), str(runs[1])} <= set(drawn)
    assert not {'images_per_second', 'memory', 'cycle'} & set(drawn)
    again = call(plot, *runs, '--out', tmp_path / 'curves.svg')
    assert again.returncode == 0 and (tmp_path / 'curves.svg').read_text() == text


@pytest.mark.parametrize('arguments, message', [
    (['nowhere'], 'log.jsonl does not exist; give the folders of runs'), (['broken'], 'broken/log.jsonl cannot be read'),
    (['list'], 'list/log.jsonl cannot be read'), (['empty'], 'empty/log.jsonl holds no step'),
    (['good', '--out', 'x.pdf'], 'x.pdf ends neither in .png nor in .svg'), (['good', '--out', 'mine.png'], 'did not write it')])
def test_mistakes_get_one_sentence(tmp_path, arguments, message):
    write_log(tmp_path / 'good', step(1, 1, 1.0)), write_log(tmp_path / 'list', [1]), write_log(tmp_path / 'empty')
    write_log(tmp_path / 'broken', 1)
    (tmp_path / 'mine.png').write_bytes(b'mine')
    done = call(plot, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count('\n') == 1
    assert (tmp_path / 'mine.png').read_bytes() == b'mine'
