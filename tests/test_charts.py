"""Charts: curves, the matrices of `--maps`, and what happens without Matplotlib."""
import sys

import numpy as np
import pytest

import evaluate
import infer
from tests.helpers import HERE, call, run
from tools import plot
from util.charts import check_chart, draw_curves, encode, make_figure, matrix_picture, running_mean
from util.pictures import RAMP


def test_a_running_mean_is_that_of_a_slow_loop():
    values = np.random.default_rng(0).random(50)
    for count in 0, 1, 2, 7, 50, 60:
        slow = [values[max(0, i + 1 - max(1, count)):i + 1].mean() for i in range(50)]
        assert np.allclose(running_mean(values, count), slow)


def test_points_of_nan_and_no_points_are_left_out():
    axes = make_figure(3, 3).add_subplot()
    lines = draw_curves(axes, 'title', dict(a=([1, 2, 3], [5, float('nan'), 7]), b=((), ())))
    assert [line.get_xydata().tolist() for line in lines] == [[[1, 5], [3, 7]], []]


def test_matrices_of_correlations_have_a_bright_diagonal():
    values = np.array([[1, 0, 0.5], [0, 1, -0.2], [0.5, -0.2, 1]])
    picture = np.asarray(matrix_picture('A', values, ['head', 'torso', 'left-arm']))
    # The matrix is where the colors of the ramp are.
    colored = (picture[:, :, None] == RAMP[[0, 128, 255]]).all(-1)            # (H, W, 3)
    rows, columns = (np.flatnonzero(colored.any((axis, 2))) for axis in (1, 0))
    rows, columns = (np.linspace(line[0], line[-1], 25).round().astype(int)[[2, 10, 18]] for line in (rows, columns))
    found = colored[rows[:, None], columns].argmax(-1)
    assert colored[rows[:, None], columns].any(-1).all() and found.tolist() == [[2, 0, 1], [0, 2, 0], [1, 0, 2]]


def test_few_people_and_many_categories_fit_on_the_sheet():
    """Nothing but white touches the edges, so nothing is cut off."""
    for count in 1, 2, 19, 58:
        picture = np.asarray(matrix_picture('A_cate: cosines of the kernels of the categories', np.eye(count), ['other-clothes'] * count))
        edges = picture[0], picture[-1], picture[:, 0], picture[:, -1]
        assert all((edge == 255).all() for edge in edges), count


WITHOUT = '''
import sys
sys.modules['matplotlib'] = None
import evaluate
evaluate.main(sys.argv[1:])
'''


def test_without_matplotlib_all_but_charts_works(checkpoint, tmp_path, monkeypatch):
    done = call(infer, '--data', 'synthetic', '--weights', checkpoint, '--out', 'pred', '--device', 'cpu', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    words = '--data', 'synthetic', '--predictions', 'pred', '--workers', '1'
    monkeypatch.setenv('PYTHONPATH', str(HERE))
    assert run('python', '-c', WITHOUT, *words, cwd=tmp_path).returncode == 0
    for name in [name for name in sys.modules if name.split('.')[0] == 'matplotlib']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    for program, arguments in ((evaluate, [*words, '--plot', 'o.png']), (plot, ['run']), (infer, ['nowhere.jpg', '--maps'])):
        done = call(program, *arguments, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr == 'error: charts need Matplotlib: pip install matplotlib\n'
        assert not done.stdout


def test_evaluate_refuses_a_chart_of_another_form():
    with pytest.raises(ValueError, match='o.gif ends neither'):
        check_chart('o.gif')
    assert encode(make_figure(1, 1), '.svg').startswith(b'<?xml')
