"""The documents agree with the code: their commands run, their names exist, their examples work."""
import contextlib
import hashlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import textwrap
import types
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import data
import demo
import evaluate
import infer
import losses
from oneshot import __main__ as oneshot
from schp import __main__ as schp
import train
from tests.helpers import HERE, SHORT, call, run, write_photo, write_tiny_mhp, write_video
from tests.robustness import attack
from tests.test_layout import MODULES
from uniparser import PRESETS, Config, UniParser, get_config
from tools.benchmark import __main__ as benchmark
from tools import (ablate, count_people, export, keypoints, mean, onnx_parse, oracle, plot, self_correction,
                   tagged, tracking)
from util import datasets
from util.cli import CommandParser, given_settings
from util.datasets import DATASETS, open_dataset
from util.masks import flatten_people

PATHS = [path for folder in ('', 'docs', 'weights', 'schp', 'oneshot') for path in sorted((HERE / folder).glob('*.md'))]
DOCS = {str(path.relative_to(HERE)): path.read_text() for path in PATHS}
README = DOCS['README.md']
CODE = {name: path.read_text() for name, path in MODULES.items()}
PROGRAMS = {'train.py': train, 'infer.py': infer, 'data.py': data, 'evaluate.py': evaluate, 'tools.benchmark': benchmark,
            'tools.export': export, 'tools.oracle': oracle, 'tools.ablate': ablate, 'oneshot': oneshot, 'schp': schp,
            'demo.py': demo, 'tools.self_correction': self_correction, 'tools.count_people': count_people, 'tools.tagged': tagged,
             'tools.keypoints': keypoints, 'tools.mean': mean, 'tools.onnx_parse': onnx_parse, 'tools.plot': plot,
             'tools.tracking': tracking, 'tests.robustness.attack': attack}
TINY = [*SHORT, '--pretrained', '', '--no-dcn', '--epochs', '1', '--grid', '8', '--short-side', '64', '--test-short-side', '64',
        '--workers', '0']

STARTS = 'python ', 'torchrun ', 'uniparser '


def indented_commands(text):
    """Every indented line that starts a program, as words, without its comment. A line may end with a backslash."""
    lines = [line.split('  #')[0].strip() for line in text.replace('\\\n', ' ').splitlines() if line.startswith('    ')]
    commands = [c for line in lines for c in line.split(' && ')]
    return [shlex.split(c) for c in commands if c.startswith(STARTS)]


def inline_commands(text):
    """The same of the commands in backticks."""
    spans = re.findall(r'`([^`\n]+)`', re.sub(r'```.*?```', '', text, flags=re.S))
    return [shlex.split(span) for span in spans if span.startswith(STARTS)]


def program_and_arguments(words):
    """Words of a command -> name in PROGRAMS, its arguments. torchrun and its one flag are left out."""
    if words[0] == 'uniparser':
        name = words[1] if words[1] in PROGRAMS else f'{words[1]}.py'
        return (name, words[2:]) if name in PROGRAMS else ('infer.py', words[1:])
    words = words[3:] if words[0] == 'torchrun' else words[1:]
    return (words[1], words[2:]) if words[0] == '-m' else (words[0], words[1:])


def section(text, title):
    """The text from a title to the next one of the same or a higher level."""
    level = title.split()[0]
    return re.split(rf'^#{{1,{len(level)}}} ', text[text.index(title + '\n') + len(title):], flags=re.M)[0]


def link_project(folder):
    for name in ('assets', 'weights'):
        (folder / name).symlink_to(HERE / name)


# ---- what runs -------------------------------------------------------------------------------------------------


def test_every_command_of_the_readme_runs(tmp_path):
    """In order, in one folder, with a tiny data set and a tiny network in place of the real ones."""
    link_project(tmp_path)
    write_tiny_mhp(tmp_path / 'data' / 'LV-MHP-v2')
    write_photo(tmp_path / 'photo.jpg'), write_photo(tmp_path / 'holiday' / 'b.jpg'), write_photo(tmp_path / 'holiday' / 'c.jpg')
    commands, ran = indented_commands(README), set()
    for words in commands:
        words = ['data/LV-MHP-v2' if word == 'DIR' else word for word in words]
        name, arguments = program_and_arguments(words)
        missing = '.onnx' in words[-1] and 'onnxscript' or words[-1] == 'video.mp4' and 'av'
        if name in ('pytest', 'demo.py') or missing and not importlib.util.find_spec(missing):
            continue                                     # pytest is running just now; the page: tests/test_demo.py
        if words[-1] == 'video.mp4':
            write_video(tmp_path / 'video.mp4', ticks=range(2))
        if name == 'train.py' and '--resume' not in words:
            arguments = [*arguments, *TINY]
        if name == 'tools.benchmark':
            arguments = [*arguments, '--size', '64', '64']
        if words[0] == 'torchrun':
            launcher = ['python', '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
            done = run(*launcher, HERE / name, *arguments, cwd=tmp_path)
        else:
            done = call(PROGRAMS[name], *arguments, cwd=tmp_path)
        assert done.returncode == 0, (words, done.stderr[-2000:])
        if words[1:] == ['infer.py', 'assets/street.jpg']:
            assert ''.join(f'    {line}\n' for line in done.stdout.splitlines()) in README
            table = re.findall(r'^\| `(street\S+|index\.html)` \|', README, re.M)
            assert sorted(table) == sorted(path.name for path in (tmp_path / 'results').iterdir())
        ran.add(name)
    assert ran >= {'train.py', 'infer.py', 'data.py', 'evaluate.py', 'tools.benchmark'} and len(commands) > 10


def test_the_snippets_of_the_readme_run(tmp_path):
    link_project(tmp_path)
    snippets = re.findall(r'```python\n(.*?)```', README, re.S)
    assert snippets
    found = {}
    with contextlib.chdir(tmp_path):
        for code in snippets:
            exec(code, found)
    people, hair = found['people'], found['hair']
    assert len(people) == 4 and str(people).startswith('4 people: hair, glove, upper-clothes, ') and '4 people: hair, glove, ..' in README
    assert hair.shape == (640, 480) and hair.dtype == bool and hair.any()


def write_my_data(root):
    """Drawn scenes in the layout of docs/data.md, with a crowd and some unknown parts in a corner of each."""
    for folder in ('images', 'classes', 'people'):
        (root / folder).mkdir(parents=True)
    for split, count in ('train', 4), ('val', 2):
        scenes, names = open_dataset('synthetic', split='val'), [f'{split}{i}' for i in range(count)]
        (root / f'{split}.txt').write_text('\n'.join(names))
        for i, name in enumerate(names):
            image, parsing, _ = scenes.read(i)
            classes, people = flatten_people(parsing)
            people[:8, :8], classes[20:40][people[20:40] > 0] = 255, 255
            for folder, array in ('images', image), ('classes', classes), ('people', people):
                Image.fromarray(array).save(root / folder / f'{name}.{"jpg" if folder == "images" else "png"}')


def test_the_worked_example_of_a_data_set_trains_and_is_evaluated(tmp_path, monkeypatch):
    text = section(DOCS['docs/data.md'], '## Add your own data set')
    code, = re.findall(r'```python\n(.*?)```', text, re.S)
    assert len(code.strip().splitlines()) <= 30
    module = types.ModuleType('util.datasets.mydata')        # as if it were a file
    exec(code, vars(module))
    monkeypatch.setitem(DATASETS, 'MyData', module.MyData)
    write_my_data(tmp_path / 'mydata')

    dataset, people = open_dataset('MyData', tmp_path / 'mydata', 'val'), 0
    for i, name in enumerate(dataset.ids):
        image, parsing, ignore = dataset.read(i)
        classes, ids = (np.array(Image.open(tmp_path / 'mydata' / kind / f'{name}.png')) for kind in ('classes', 'people'))
        assert image.shape[:2] == ignore.shape == ids.shape and np.array_equal(ignore, ids == 255) and ignore.any()
        for n, person in enumerate(np.unique(ids[(ids > 0) & (ids < 255)])):
            assert np.array_equal(parsing[n], np.where(ids == person, classes, 0))
        assert (parsing == 255).any() and len(parsing) == n + 1
        people += len(parsing)

    extra = {'train.py': TINY, 'evaluate.py': ['--workers', '1']}
    for words in indented_commands(text):
        name, arguments = program_and_arguments(words)
        done = call(PROGRAMS[name], *arguments, *extra.pop(name, ()), cwd=tmp_path)
        assert done.returncode == 0, (words, done.stderr[-2000:])
    assert not extra and f'2 images, {people} people' in done.stdout        # evaluate.py comes last
    model = UniParser.from_pretrained(tmp_path / 'runs' / 'MyData' / 'best.pt')
    assert model.class_names == list(module.MyData.class_names) and model.flip_pairs == [[5, 6]]
    assert (model.config.data, model.config.num_classes, model.config.lambda_neg) == ('MyData', 6, Config.lambda_neg)


def test_the_worked_example_of_a_loss_term_is_a_method(monkeypatch):
    """The sum of two people's maps exceeds 1 by 0.5 in one of three known pixels."""
    method, call_of_it = re.findall(r'```python\n(.*?)```', section(DOCS['CONTRIBUTING.md'], '## A loss term'), re.S)
    found = {}
    exec(textwrap.dedent(method), vars(losses), found)
    maps = losses.Correlations(torch.tensor([[[0.75, 1.0, 0.0, 1.0]], [[0.75, 0.0, 0.5, 1.0]]]), None)
    known = SimpleNamespace(known=torch.tensor([[True, True, True, False]]))
    loss = types.MethodType(found['overlap_loss'], losses.UniParserLoss(Config()))
    assert loss([maps, maps], [known, known]).item() == pytest.approx(0.5 / 3)
    terms, weights = {}, {}
    exec(textwrap.dedent(call_of_it), dict(config=SimpleNamespace(lambda_overlap=2), losses=terms, weights=weights, maps=[maps],
                                           targets=[known], self=SimpleNamespace(overlap_loss=loss)))
    assert terms['overlap'] > 0 and weights == dict(overlap=2)


def test_the_long_tests_of_robustness_start():
    words, = [w for w in inline_commands(DOCS['docs/robustness.md']) if '--headers' in w]
    done = subprocess.run([sys.executable, *words[1:-1], '20'], cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith('20 headers: '), done.stderr


# ---- what is named exists --------------------------------------------------------------------------------------


def refuse(parser, message):
    raise ValueError(message)


@pytest.fixture
def strict(monkeypatch):
    """Parsers that raise ValueError instead of ending the program, and know the data set of the worked example."""
    monkeypatch.setattr(CommandParser, 'error', refuse)
    monkeypatch.setitem(DATASETS, 'MyData', datasets.MHP)


@pytest.mark.parametrize('name', list(DOCS))
def test_every_command_of_the_documents_is_accepted(name, strict):
    commands = [*indented_commands(DOCS[name]), *inline_commands(DOCS[name])]
    for words in commands:
        program, arguments = program_and_arguments(words)
        if program == '-c':
            compile(arguments[0], name, 'exec')
        elif program == 'pytest':
            assert all((HERE / path).is_file() for path in arguments), words
        elif program == 'tests.robustness.test_faults':
            source = (HERE / 'tests' / 'robustness' / 'test_faults.py').read_text()
            assert re.fullmatch(r'--[a-z]+', arguments[0]) and f"'{arguments[0][2:]}'" in source, words
        elif not arguments or arguments[-1] == '--help':
            assert program in PROGRAMS, words
        elif program == 'data.py':                       # it parses in main
            assert set(word for word in arguments if word.startswith('--')) <= flags_of(data), words
        else:
            try:
                PROGRAMS[program].parse_arguments(arguments)
            except ValueError as error:
                pytest.fail(f'{" ".join(words)}: {error}')


def flags_of(program, *command):
    return set(re.findall(r'(?<![\w-])--[a-z][a-z-]*', call(program, *command, '--help').stdout))


@pytest.mark.parametrize('name', list(DOCS))
def test_every_flag_of_the_documents_exists(name):
    known = {'--nproc-per-node', '--headers', '--fuzz', '--soak', '--kills'}.union(
        *(flags_of(program) for program in PROGRAMS.values()),
        *(flags_of(benchmark, kind) for kind in ('infer', 'peers', 'scale', 'schp', 'train', 'gpu', 'report')),
        *(flags_of(oneshot, kind) for kind in ('train', 'evaluate', 'parse')),
        *(flags_of(schp, kind) for kind in ('train', 'evaluate', 'extract', 'fuse', 'prepare')))
    assert '--light' in known and '--onnx' in known
    assert set(re.findall(r'(?<![\w-])--[a-z][a-z-]*', DOCS[name])) <= known


def test_the_settings_of_the_papers_longer_runs_are_accepted(strict):
    table = section(DOCS['docs/results.md'], '### Tables 1, 3, 6 and 7: longer training, larger networks')
    rows = re.findall(r'^\| \d \| .* \| `(.*)` \| .* \|$', table, re.M)
    assert len(rows) == 6
    for row in rows:
        args = train.parse_arguments(shlex.split(row))
        get_config(train.preset_of(args.data or 'MHP', args.recipe), **given_settings(args, Config))


@pytest.mark.parametrize('name', list(DOCS))
def test_links_and_files_of_the_documents_exist(name):
    folder, text = (HERE / name).parent, DOCS[name]
    for target, anchor in re.findall(r'\]\((?!http)([^)#]*)(?:#([^)]+))?\)', text):
        path = folder / target if target else HERE / name
        assert path.exists(), target
        if anchor:
            titles = re.findall(r'^#+ (.*)$', path.read_text(), re.M)
            assert anchor in [re.sub(r'[^\w -]', '', title).lower().replace(' ', '-') for title in titles], anchor
    for file in re.findall(r'`((?:util|tests|docs|assets|weights)/[\w./]*|[\w/]+\.(?:py|md))`', text):
        assert 'mydata' in file or any((HERE / place / file).exists() for place in ('', 'util')), file


@pytest.mark.parametrize('name', [name for name in DOCS if not name.startswith('weights/')])
def test_names_in_the_documents_occur_in_the_code(name):
    """Words in backticks, except placeholders in capitals and the words of the worked example."""
    example = ''.join(re.findall(r'```python\n(.*?)```', DOCS[name], re.S))
    for word in re.findall(r'`([A-Za-z_]\w*)(?:\(\))?`', DOCS[name]):
        if not word.isupper():
            assert any(re.search(rf'\b{word}\b', code) for code in (*CODE.values(), example)), word


def released_files(text):
    """Names such as exp-schp-201908261155-lip.pth, which torchvision's are not."""
    names = re.findall(r'(?<![\w./*-])(?:checkpoints/)?([\w-]+\.(?:pth|bin))(?!\.tar)\b', text)
    return {name for name in names if 'imagenet_v1' not in name}


def test_the_table_of_weights_has_every_file_that_code_and_documents_name():
    table = section(DOCS['docs/weights.md'], '# Where to get weights')
    listed = {name for row in re.findall(r'^\| (`.*?`) \|', table, re.M) for name in re.findall(r'`(.*?)`', row)}
    others = [text for name, text in DOCS.items() if name != 'docs/weights.md']
    named = set().union(*(released_files(text) for text in (*CODE.values(), *others)))
    assert {'exp-schp-201908261155-lip.pth', 'mit_b4.pth', 'deeplab_v3plus_v3.pth'} <= named <= listed
    sums = dict(re.findall(r'^    (\w+)  (\S+)$', table, re.M))
    assert set(sums.values()) <= listed and all(re.fullmatch('[0-9a-f]{64}', digest) for digest in sums)
    with pytest.raises(FileNotFoundError, match='docs/weights.md'):
        UniParser.from_pretrained('nothing.pth')


def definition(name):
    """The source of a class or function of the method."""
    source = CODE['uniparser'] + CODE['losses'] + CODE['correlation']
    found = re.search(rf'^( *)(class|def) {name}\b.*?(?=^\1(class|def|@) ?|\Z)', source, re.S | re.M)
    return found and found[0]


def test_equations_are_tagged_in_the_functions_that_the_readme_names():
    rows = dict(re.findall(r'^\| ((?:Eq|Sec)\..*?) \| (.*) \|$', section(README, '## Paper and code'), re.M))
    numbers = set()
    for paper, names in rows.items():
        for name in re.findall(r'`(\w+)`', names):
            assert definition(name) or name in PRESETS, name
            if equation := re.match(r'Eq\. \((\d)\)', paper):
                numbers.add(int(equation[1]))
                assert re.search(rf'Eqs?\. (\(\d\)[ ,and]*)*\({equation[1]}\)', definition(name)), (name, paper)
    assert numbers == {1, 2, 3, 4, 5, 6} and len(rows) == 10


def test_the_results_of_the_readme_are_those_of_the_tables():
    rows = re.findall(r'\| ([\d.]+(?: / [\d.]+)+) \|', section(README, '## Results'))
    for row in rows:
        assert row in DOCS['docs/results.md'] or f'| {row.replace(" / ", " | ")} |' in DOCS['docs/results.md'], row
    shipped = [row.replace(' / ', ' | ') for row in rows[3:5]]
    assert len(rows) == 7 and all(f'| {row} |' in DOCS['weights/README.md'] for row in shipped)


# ---- the shipped weights ---------------------------------------------------------------------------------------


def test_the_weights_are_those_of_their_card():
    weights = HERE / 'weights' / 'uniparser_ccp.pt'
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in DOCS['weights/README.md'] and weights.stat().st_size < 30e6
    config = UniParser.from_pretrained(weights).config
    assert config.data == 'CCP' and config.test_short_side == config.long_side == 448
    assert not any(os.path.dirname(getattr(config, name)) for name in ('pretrained', 'backgrounds', 'people', 'tagged', 'coco', 'parts'))


def test_the_weights_that_ship_parse_the_demo_photo():
    found = UniParser.from_pretrained(HERE / 'weights' / 'uniparser_ccp.pt').fold().predict(HERE / 'assets' / 'street.jpg')[0]
    names = datasets.CIHP.class_names
    person = found.parsing[0]
    assert len(found.scores) == 4 and found.parsing.shape == (4, 640, 480)
    columns = {side: np.nonzero(person == names.index(f'{side}-leg'))[1] for side in ('left', 'right')}
    hair, pants = (np.nonzero(found.parsing.max(0) == names.index(name))[0] for name in ('hair', 'pants'))
    assert hair.mean() < pants.mean() or not len(pants)                      # heads up
    assert not all(map(len, columns.values())) or columns['right'].mean() < columns['left'].mean()     # own left
