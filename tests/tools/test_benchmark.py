"""The benchmarks run, and count what they say they count. What stands in docs/speed.md was measured: it is in
docs/speed.json. How long something takes is claimed nowhere."""
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import deform_conv2d

from data import network_input
from infer import WEIGHTS
from tests.helpers import HERE, tiny_model
from tests.tools.held import make_dying, make_failing, make_holder
from tools.benchmark import __main__ as benchmark
from tools.benchmark import gpu, peers, report, scale, schp, training
from tools.benchmark.child import Child, measure_program
from tools.benchmark.clock import multiply_adds
from tools.benchmark.planted import BANDS, plant_people
from tools.benchmark.record import PROGRAM, command_of
from uniparser import UniParser, decode
from util.datasets import MHP
from util.memory import peak_memory


@pytest.mark.parametrize('preset, people', [('mhp', 1), ('mhp', 10), ('mhp_released', 7), ('ccp', 25)])
def test_planted_people_are_decoded(preset, people):
    model = tiny_model(preset, grid=40, channels=64, test_short_side=96, long_side=128).fold()
    photo = Image.new('RGB', (128, 96))
    out = plant_people(model.outputs(network_input(photo, model.config)), people, model.config)
    found = decode(out, 0, photo, model.config)
    assert len(found.scores) == people
    assert all(len(np.unique(p)) == 1 + BANDS for p in found.parsing)
    left = [np.nonzero(p.any(0))[0].min() for p in found.parsing]
    assert left == sorted(left) and (found.parsing > 0).sum(0).max() == 1     # side by side, the first leftmost


def test_people_who_leave_the_heat_map_are_refused():
    model = tiny_model('synthetic', channels=64, test_short_side=96, long_side=128).fold()
    out = model.outputs(network_input(Image.new('RGB', (128, 96)), model.config))
    with pytest.raises(ValueError, match='126 people do not fit into a heat map'):
        plant_people(out, 126, model.config)


def test_benchmark_of_inference_counts_and_measures(capsys):
    benchmark.main(['infer', '--preset', 'synthetic', '--size', '64', '96', '--decode', '3', '--device', 'cpu'])
    table = {line[:16].strip(): line[16:].split() for line in capsys.readouterr().out.splitlines()}
    assert {'load', 'preprocess', 'backbone', 'FPN', 'heads', 'network', 'decode 1', 'decode 3', 'save'} < set(table)
    adds = {name: float(table[name][4]) for name in ('backbone', 'FPN', 'heads', 'network', 'plain ResNet-50')}
    assert adds['network'] == pytest.approx(adds['backbone'] + adds['FPN'] + adds['heads'], abs=0.2)
    assert float(table['network'][3]) == pytest.approx(float(table['backbone'][3]) + float(table['FPN'][3])
                                                       + float(table['heads'][3]), abs=0.02)
    assert float(table['plain ResNet-50'][2]) == 1 and float(table['plain ResNet-50'][3]) == 25.56


def test_benchmark_of_schp_counts_and_measures(capsys, monkeypatch):
    monkeypatch.setattr(schp, 'schp_preset', lambda *_: dict(data='LIP', blocks=(1, 1, 1, 1), width=8))
    benchmark.main(['schp', '--labels', 'pascal', '--repeats', '1', '--device', 'cpu'])
    table = {line[:16].strip(): line[16:].split() for line in capsys.readouterr().out.splitlines()}
    assert {'plain ResNet-101', 'all heads', 'folded, fusion'} < set(table)
    assert float(table['plain ResNet-101'][2]) == 1 and float(table['all heads'][3]) < float(table['plain ResNet-101'][3])


def test_impossible_counts_get_one_sentence(capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(['infer', '--decode', '0', '--device', 'cpu'])
    assert stopped.value.code == 2 and '--decode is 0' in capsys.readouterr().err


def test_multiply_adds_are_counted():
    conv = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert multiply_adds(conv, torch.zeros(1, 3, 6, 7)) == 3 * 5 * 9 * 6 * 7
    x, offset, weight = torch.zeros(1, 4, 6, 7), torch.zeros(1, 18, 6, 7), torch.zeros(5, 4, 3, 3)
    assert multiply_adds(deform_conv2d, x, offset, weight, None, 1, 1) == 5 * 4 * 9 * 6 * 7
    assert multiply_adds(torch.mm, torch.zeros(2, 3), torch.zeros(3, 4)) == 24


def test_benchmark_of_training_measures(capsys):
    benchmark.main(['train', '--backbone', 'resnet10', '--samples', '12', '--batch-size', '4', '--device', 'cpu'])
    printed = capsys.readouterr().out
    assert printed.count('images/s') == 3 and 'both' in printed and 'batches of 4x3x96x128' in printed


def test_drawn_files_feed_the_benchmark_of_training(capsys, monkeypatch):
    monkeypatch.setattr(training, 'time_training', lambda task, run: print(
        task.model.backbone.stages, task.config.pretrained, *next(iter(task.loader))['images'].shape))
    benchmark.main(['train', '--data', 'MHP', '--backbone', 'resnet18', '--workers', '0', '--batch-size', '2',
                    '--short-side', '64', '--device', 'cpu'])
    assert capsys.readouterr().out == '4 imagenet 2 3 64 96\n'


# ---- memory of processes ---------------------------------------------------------------------------------------


def test_the_memory_is_that_of_the_child():
    """Not of this process, which holds more; and it grows with what the child holds."""
    mine = b'x' * (700 * 2 ** 20)
    assert peak_memory() > 0.68
    with Child(make_holder, 0) as small, Child(make_holder, 200) as large:
        first, second, more = small(), large(), large(100)
    assert (first.result, second.result, more.result) == (0, 200, 300) and len(mine) == 700 * 2 ** 20
    assert first.memory < 0.3
    assert 190 / 1024 < second.memory - first.memory < 260 / 1024
    assert 90 / 1024 <= more.memory - second.memory < 110 / 1024


def test_the_memory_of_a_program_is_its_own(tmp_path):
    """On Linux, ru_maxrss of a new process starts with that of its parent."""
    mine = b'x' * (700 * 2 ** 20)
    program = tmp_path / 'program.py'
    program.write_text('import sys, time\nblock = b"x" * (int(sys.argv[1]) * 2 ** 20)\n'
                       'begin = time.process_time()\nwhile time.process_time() < begin + 0.2: pass\n')
    small, large = (measure_program(program, str(megabytes)) for megabytes in (1, 200))
    assert small.memory < 0.1 and 190 / 1024 < large.memory - small.memory < 210 / 1024 and mine
    assert small.cpu >= 0.2 and small.wall >= 0.2
    program.write_text('raise SystemExit("error: photo.jpg is missing")')
    with pytest.raises(ValueError, match='program.py failed: error: photo.jpg is missing'):
        measure_program(program)


def test_the_error_of_a_process_is_reported_not_the_last_line_of_torchrun(tmp_path):
    program = tmp_path / 'program.py'
    program.write_text('raise SystemExit("error: photo.jpg is missing")')
    with pytest.raises(ValueError, match='program.py failed: error: photo.jpg is missing$'):
        measure_program(program, processes=2)


@pytest.mark.parametrize('given, threads', [(None, '1'), ('3', '3')])
def test_a_program_has_one_thread_unless_the_user_sets_more(given, threads, tmp_path, monkeypatch):
    if given:
        monkeypatch.setenv('OMP_NUM_THREADS', given)
    else:
        monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    program = tmp_path / 'program.py'
    program.write_text('import os\nraise SystemExit("error: " + os.environ["OMP_NUM_THREADS"])')
    with pytest.raises(ValueError, match=f'failed: error: {threads}$'):
        measure_program(program)


def test_without_the_module_of_unix_the_memory_is_unknown(tmp_path):
    """As on Windows; and the commands start, which import all of the benchmark."""
    code = ('import pathlib, sys\nsys.modules["resource"] = None\n'
            'from tools.benchmark import __main__\nfrom util import memory\n'
            'memory.Path = lambda name: pathlib.Path("missing")\nprint(memory.peak_memory())')
    done = subprocess.run([sys.executable, '-c', code], cwd=HERE, text=True, capture_output=True)
    assert done.stdout == '0.0\n', done.stderr


def test_errors_of_a_child_are_those_of_its_parent():
    with Child(make_failing) as child, pytest.raises(ValueError, match='no photo'):
        child()
    with Child(make_dying) as child, pytest.raises(ValueError, match='free memory'):
        child()


# ---- peers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('people', [1, 3, 30, 60, 100])
def test_planted_people_pass_the_filters_of_the_shipped_model(people):
    model = UniParser.from_pretrained(WEIGHTS, test_short_side=448).fold()
    pipeline, photo = peers.OneStage(model, people), Image.open(HERE / 'assets' / 'street.jpg').convert('RGB')
    pipeline.prepare(photo)
    parsing = pipeline(photo)
    assert parsing.shape == (people, 640, 480) and (parsing > 0).any((1, 2)).all()


@pytest.mark.parametrize('people', [1, 4, 10])
def test_planted_boxes_give_as_many_people_each_in_the_own_box(people, monkeypatch):
    """The network for one person is played by one that finds class 1 above and 2 below in every crop."""
    def predict_maps(crops):
        assert all(crop.dtype == np.uint8 and crop.shape[2] == 3 for crop in crops)
        sizes.extend(crop.shape[:2] for crop in crops)
        return [1 + (np.arange(len(crop)) >= len(crop) / 2)[:, None].repeat(crop.shape[1], 1) for crop in crops]

    sizes = []
    parser = SimpleNamespace(size=(8, 8), predict_maps=predict_maps)
    monkeypatch.setattr(peers, 'single_person', lambda name: parser)
    photo = Image.new('RGB', (300, 120))
    torch.manual_seed(0)
    pipeline = peers.TopDown('ace2p', people, min_size=120, max_size=300)
    pipeline.prepare(photo)
    with torch.inference_mode():
        parsing = pipeline(photo)
    assert pipeline.input(photo) == '120x300, crops 8x8' and len(sizes) == len(parsing) == people
    # The masks of a box of whole pixels fill it, up to a pixel of resizing at its edges.
    columns = 300 / people
    for n, person in enumerate(parsing):
        x = np.nonzero(person.any(0))[0]
        assert abs(x[0] - (n + 0.1) * columns) <= 2.5 and abs(x[-1] + 1 - (n + 0.9) * columns) <= 2.5
        y = np.nonzero(person.any(1))[0]
        assert abs(y[0] - 15) <= 4 and abs(y[-1] + 1 - 105) <= 4
        assert set(np.unique(person)) == {0, 1, 2} and person[20].max() == 1 and person[100].max() == 2
        height, width = sizes[n]
        assert height == pytest.approx(1.2 * 90, abs=6) and 0.8 * columns <= width <= min(300, 1.2 * 0.8 * columns + 6)


def test_peers_are_measured_and_recorded(tmp_path, capsys):
    names = [peers.IMPORTS, 'UniParser, shipped model']
    file = tmp_path / 'speed.json'
    file.write_text(json.dumps({'another': dict(rows=[], date='2026-01-01', machine=dict(cpu='a', cores=1, threads=1, torch='2'))}))
    benchmark.main(['peers', '--decode', '4', '2', '--only', *names, '--repeats', '1', '--json', str(file)])
    content = json.loads(file.read_text())
    command, = set(content) - {'another'}
    rows = content[command]['rows']
    assert [(row['pipeline'], row['people']) for row in rows] == [(names[0], 0), (names[1], 2), (names[1], 4)]
    assert rows[1]['input'] == '448x336' and rows[0]['cpu'] < rows[1]['cpu'] and rows[0]['memory'] < rows[1]['memory']
    assert '--json' not in command and content[command]['machine'].keys() == {'cpu', 'cores', 'threads', 'torch'}
    assert 'CPU s, 4 people' in report.tables(content)['peers'] and capsys.readouterr().out.count('CPU s') == 3


# ---- growth ----------------------------------------------------------------------------------------------------


def test_growth_is_measured_and_recorded(tmp_path):
    file = tmp_path / 'speed.json'
    benchmark.main(['scale', '--tiny', '--only', 'people,folder,images', '--json', str(file)])
    content = json.loads(file.read_text())
    assert list(content) == [f'python -m tools.benchmark scale --only {name} --tiny' for name in ('people', 'folder', 'images')]
    rows = report.rows_of(content, 'scale')
    assert [(row['series'], row['x']) for row in rows] == [('people', 2), ('folder', 3), ('images', 3)]
    # evaluate.py needs no torch, and its memory is not this benchmark's.
    assert all(row['cpu'] > 0 for row in rows) and rows[2]['memory'] < 0.5 * rows[1]['memory']
    steps = rows[0]
    assert steps['cpu'] == pytest.approx(sum(steps[step] for step in scale.WAY), abs=1e-3)
    # Saving draws the overlay and writes the JSON file, too.
    assert set(report.STEPS) - set(scale.WAY) == {'overlay', 'JSON'} and steps['overlay'] < steps['save']


def test_processes_share_a_folder(capsys):
    benchmark.main(['scale', '--tiny', '--only', 'processes', '--photos', '2'])
    one, = re.findall(r'processes +(\d) +photos (\d) .* memory ([\d.]+)', capsys.readouterr().out)
    assert one[:2] == ('2', '2') and float(one[2]) > 2 * 0.2


def test_drawn_predictions_are_read_as_drawn(tmp_path, monkeypatch):
    """Links repeat the first images; every image has a prediction."""
    monkeypatch.setattr(scale, 'DRAWN', 2)
    scale.draw_predictions(tmp_path, 5)
    dataset = MHP(str(tmp_path), 'val')
    truths = [dataset.read(i)[1] for i in range(5)]
    assert all(truth.shape == (3, 64, 48) and len(np.unique(truth)) > 6 for truth in truths)
    assert (truths[0] == truths[4]).all() and not (truths[0] == truths[1]).all()
    assert len(json.loads((tmp_path / 'found' / 'instances.json').read_text())) == 5


# ---- a GPU -----------------------------------------------------------------------------------------------------


def test_the_script_for_gpus_runs_on_a_cpu(tmp_path, capsys):
    file = tmp_path / 'speed.json'
    benchmark.main(['gpu', '--tiny', '--device', 'cpu', '--json', str(file)])
    printed = capsys.readouterr().out
    rows = json.loads(file.read_text())['python -m tools.benchmark gpu --tiny --device cpu']['rows']
    kinds = [row['kind'] for row in rows]
    assert [kinds.count(kind) for kind in ('floor', 'labels', 'training', 'inference')] == [2, 2, 3, 8]
    exact, half = (row for row in rows if row['kind'] == 'labels')
    assert exact['same'] == 1 and exact['people'] == exact['expected_people'] == 4 and half['same'] > 0.99
    assert all(row['mode'] == 'eager' and row['people'] == 3 for row in rows if row['kind'] == 'inference')
    tables = report.tables(json.loads(file.read_text()))
    lines = {name: table.splitlines()[2:] for name, table in tables.items() if name.startswith('gpu ')}
    assert {name: len(found) for name, found in lines.items()} == {
        'gpu inference': 8, 'gpu training': 3, 'gpu labels': 2, 'gpu floor': 2}
    assert lines['gpu labels'][0] == f'| {exact["precision"]} | 4 | 4 | 100.000 % |'
    assert lines['gpu training'][2].startswith('| both | 4x3x96x128 | ')
    assert printed.count('CUDA graphs need a GPU') == printed.count('torch.compile takes a CPU minutes') == 8


def test_the_script_for_gpus_plans_every_row_and_keeps_its_budget(capsys, monkeypatch):
    cases = gpu.plan(False)
    assert len(cases) == len(set(cases)) == 4 * 2 * 2 * 2 * 3
    assert cases[0] == ('r50', (800, 1333), 1, 'tf32', 'eager') and {case.mode for case in cases[:64]} == {'eager', 'graph'}
    assert not gpu.left_out(cases[-1], torch.device('cuda'), 10, 480)
    assert '480 s' in gpu.left_out(cases[0], torch.device('cuda'), 481, 480)

    def broken(*_):
        raise RuntimeError('no kernel\nfor this')
    monkeypatch.setattr(gpu, 'compare_labels', broken)
    monkeypatch.setattr(gpu, 'train_rows', lambda *_: [])
    monkeypatch.setattr(gpu.time, 'perf_counter', iter(range(0, 10 ** 6, 1000)).__next__)
    benchmark.main(['gpu', '--tiny', '--device', 'cpu', '--seconds', '9'])
    printed = capsys.readouterr().out
    assert 'left out: labels: RuntimeError: no kernel\n' in printed and printed.count('the 9 s of --seconds are over') == 8


# ---- the file and the page -------------------------------------------------------------------------------------


def test_a_command_is_recorded_without_its_file():
    assert command_of(['infer', '--json', 'a.json', '--size', '64', '64']) == 'python -m tools.benchmark infer --size 64 64'
    assert command_of(['peers', 'my photo.jpg', '--json=a.json']) == "python -m tools.benchmark peers 'my photo.jpg'"


@pytest.mark.parametrize('words, sentence', [
    (['scale', '--only', 'people,dogs'], "has 'dogs'; give some of people,megapixels"),
    (['scale', '--json', 'results.txt'], 'give a name that ends in .json'),
    (['scale', '--json', 'list.json'], 'it holds no object'),
    (['peers', '--json', 'other.json'], "other.json is no file of measured numbers ('a' has no rows)"),
    (['peers', '--decode', '0'], '--decode is 0; give a value from 1 to 100'),
    (['peers', 'no.jpg', '--only', 'SegFormer-B4, one crop'], 'no.jpg'),
    (['infer', '--decode', '101'], '--decode is 101; give a value from 1 to 100'),
    (['gpu', '--seconds', '0'], '--seconds is 0'),
    (['report', '--json', 'none.json'], 'none.json'),
    (['report', '--json', 'other.json'], 'other.json is no file of measured numbers'),
])
def test_bad_input_is_one_sentence_and_harms_no_file(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = {'list.json': '[1]', 'other.json': '{"a": 1}'}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(words)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and sentence in error and len(error.splitlines()) == 1
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


PAGE = (HERE / 'docs' / 'speed.md').read_text()
NUMBERS = json.loads((HERE / 'docs' / 'speed.json').read_text())


def test_every_table_of_the_page_is_one_of_the_file():
    """So every number in them is."""
    tables = re.findall(r'^(\|.*\|(?:\n\|.*\|)*)$', PAGE, re.M)
    assert sorted(tables) == sorted(report.tables(NUMBERS).values()) and len(tables) > 8


def test_every_fact_of_the_file_stands_in_the_sentences_of_the_page():
    prose = '\n'.join(line for line in PAGE.splitlines() if not line.startswith('|'))
    facts = report.facts(NUMBERS)
    assert len(facts) == 9
    missing = {name: fact for name, fact in facts.items()
               if not re.search(rf'(?<![\d.,]){re.escape(fact)}(?!\d|[.,]\d)', prose)}
    assert not missing


def test_facts_are_those_of_the_rows():
    def photo(series, x, **seconds):
        return dict(series=series, x=x, **{'network': 2.0, 'decode': 1.0, 'overlay': 0.5, 'JSON': 0.1, 'cpu': 3.0, **seconds})

    scale_rows = [photo('people', 1, network=9.0), photo('people', 3, network=0.25), photo('megapixels', 0.46),
                  photo('megapixels', 3), photo('megapixels', 12, decode=3.4), photo('crowd', 24, overlay=0.9)]
    peer_rows = [dict(pipeline='UniParser, R-50', people=people, cpu=cpu) for people, cpu in ((1, 4.0), (3, 9.0), (10, 5.0))]
    content = {f'{PROGRAM} scale': dict(rows=scale_rows), f'{PROGRAM} peers': dict(rows=peer_rows)}
    assert report.facts(content) == {'around 0.46': '50 %', 'large 12': '2.0', 'crowd 24': '1.0', 'limit 1': '4.0',
                                     'limit 2': '8.0', 'ten UniParser, R-50': '25 %'}


@pytest.mark.parametrize('people, lines', [(10, 1), (20, 0)])
def test_the_column_of_ten_people_holds_ten_people(people, lines):
    steps = {'network': 50.0, 'decode 1': 3.0, f'decode {people}': 7.0}
    rows = [dict(step=name, cpu_ms=ms, units=1.0, size=[8, 9], multiply_adds=10 ** 9) for name, ms in steps.items()]
    table = report.infer_table({f'{PROGRAM} infer': dict(rows=rows)})
    assert len(table.splitlines()) == (2 + lines if lines else 0) and ('| 3 ms | 7 ms |' in table) == bool(lines)


def test_a_changed_number_is_noticed():
    for command, section in NUMBERS.items():
        changed = json.loads(json.dumps(NUMBERS))
        for row in changed[command]['rows']:
            row.update({name: 2 * row[name] + 1 for name in ('cpu', 'units', 'rate') if name in row})
        assert report.tables(changed) != report.tables(NUMBERS), command


def test_the_numbers_were_measured_by_commands_that_exist():
    for command, section in NUMBERS.items():
        args = benchmark.parse_arguments(command.removeprefix('python -m tools.benchmark ').split())
        assert args.function and re.fullmatch(r'20\d\d-\d\d-\d\d', section['date']) and section['rows']
        assert {'cpu', 'cores', 'threads', 'torch'} <= section['machine'].keys()


def test_the_charts_are_drawn_from_the_file(tmp_path):
    pytest.importorskip('matplotlib')
    figures = report.charts(NUMBERS)
    assert set(figures) == {report.PEOPLE_CHART, report.SCALE_CHART}
    left = figures[report.PEOPLE_CHART].axes[0]
    drawn = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    rows = report.rows_of(NUMBERS, 'peers')
    for name in set(peers.PIPELINES) - {peers.IMPORTS}:
        values = [row['cpu'] for row in rows if row['pipeline'] == name]
        assert drawn[name] == (values if len(values) > 1 else values * 3)
    figure = figures[report.SCALE_CHART]
    series = [name for name in report.AXES if name != 'crowd']
    for n, name in enumerate(series):
        rows = report.rows_of_series(NUMBERS, name)
        upper, lower = figure.axes[n], figure.axes[n + len(series)]
        measured, linear = upper.lines
        seconds = [row['cpu' if name in ('people', 'megapixels') else 'wall'] for row in rows]
        assert list(measured.get_xdata()) == list(linear.get_xdata()) == [row['x'] for row in rows]
        assert list(measured.get_ydata()) == seconds and linear.get_ydata()[-1] == pytest.approx(seconds[-1])
        # A slope of one on logarithmic axes.
        assert np.ptp(np.divide(linear.get_ydata(), linear.get_xdata())) == pytest.approx(0, abs=1e-9)
        assert linear.get_linestyle() == '--' and linear.get_color() == 'gray'
        only, = lower.lines
        assert list(only.get_ydata()) == [row['memory'] for row in rows]
        assert upper.get_xscale() == upper.get_yscale() == 'log' and upper.get_title('left') == report.AXES[name]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['linear']
    for name in figures:
        path = HERE / 'assets' / name
        assert path.stat().st_size < 80_000 and re.search(rf'!\[[^\]]{{20,}}\]\(../assets/{name}\)', PAGE)
