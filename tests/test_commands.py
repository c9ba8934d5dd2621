"""How every command starts and ends: Ctrl-C, flags in and out of range."""
import argparse
import math
import os
import signal
import subprocess
import sys
import threading
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data
import demo
import evaluate
import infer
import train
from oneshot import __main__ as oneshot
from schp import SCHP, build
from schp import __main__ as schp
from schp.config import SCHPConfig
from tests.helpers import HERE, call, tiny_model, write_photo
from tests.test_coco import person_of, write_coco
from tools.benchmark import __main__ as benchmark
from tools import (ablate, count_people, export, keypoints, mean, oracle, plot,
                   self_correction, tagged)
from uniparser import Config
from util import checkpoints, run
from util.cli import Between, CommandParser, start
from util.labels import LabelSet
from util.submissions import FORMS


# ---- Ctrl-C


# evaluate.py, with a job that lasts.
SLOW = '''
import sys, time
folder, workers = sys.argv[1:]
sys.argv[0] = 'evaluate.py'
sys.path.insert(0, folder)
import evaluate
from util.cli import start

class Metrics:
    records = {}

class Job:
    dataset = range(99)
    metrics = Metrics()

    def __call__(self, i):
        # One write: those of two workers would mix.
        print('job\\n', end='', flush=True)
        time.sleep(5)

start(lambda: evaluate.evaluate(Job(), int(workers)))
'''


@pytest.mark.parametrize('workers', [1, 2])
def test_ctrl_c_is_one_sentence_until_the_end(workers):
    """After the imports: all processes of evaluate.py receive the signal, as in a terminal."""
    process = subprocess.Popen([sys.executable, '-c', SLOW, str(HERE), str(workers)], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               start_new_session=True)
    assert process.stdout.readline() == 'job\n'
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == 'stopped' and 'Traceback' not in err, err


def test_ctrl_c_ends_a_command_with_a_word(capsys, monkeypatch):
    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(9)

    for name in ('stdout', 'stderr'):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    with pytest.raises(SystemExit) as stop:
        start(interrupt)
    assert stop.value.code == 130 and capsys.readouterr().err == 'stopped\n'


# ---- flags


NOWHERE = ['--root', 'no']
# Arguments with which a command ends after its flags were checked.
BASES = {
    'train': (train, ['--data', 'MHP', *NOWHERE]),
    'infer': (infer, ['--data', 'MHP', '--weights', 'no.pt']),
    'evaluate': (evaluate, [*NOWHERE, '--predictions', 'no']),
    'data': (data, ['--data', 'MHP', *NOWHERE]),
    'demo': (demo, ['--weights', 'no.pt']),
    'schp train': (schp, ['train', *NOWHERE]),
    'segformer': (schp, ['train', '--network', 'segformer', *NOWHERE]),
    'schp extract': (schp, ['extract', 'no.jpg', '--weights', 'no.pt']),
    'schp fuse': (schp, ['fuse', 'no.jpg', '--weights', 'no.pt']),
    'schp evaluate': (schp, ['evaluate', *NOWHERE, '--weights', 'no.pt']),
    'schp prepare': (schp, ['prepare', *NOWHERE, '--out', 'new']),
    'oneshot train': (oneshot, ['train', *NOWHERE]),
    'oneshot evaluate': (oneshot, ['evaluate', *NOWHERE, '--weights', 'no.pt']),
    'oneshot parse': (oneshot, ['parse', 'no.jpg', '--support', 'no.jpg', '--weights', 'no.pt']),
    'benchmark infer': (benchmark, ['infer', 'no.jpg', '--weights', 'no.pt']),
    'benchmark peers': (benchmark, ['peers', 'no.jpg']),
    'benchmark scale': (benchmark, ['scale', 'no.jpg']),
    'benchmark gpu': (benchmark, ['gpu', 'no.jpg']),
    'benchmark train': (benchmark, ['train', '--data', 'CIHP', *NOWHERE]),
    'benchmark schp': (benchmark, ['schp']),
    'export': (export, ['--weights', 'no.pt', '--out', 'new.pt']),
    'oracle': (oracle, ['people', '--data', 'MHP', '--weights', 'no.pt', '--out', 'new']),
    'ablate': (ablate, ['--table', '5', '--data', 'MHP', *NOWHERE]),
    'self_correction': (self_correction, NOWHERE),
    'count_people': (count_people, ['no', '--weights', 'no.pt']),
    'keypoints': (keypoints, [*NOWHERE, '--out', 'new', '--weights', 'no.pt']),
    'mean': (mean, ['no.pt', 'no.pt', '--out', 'new.pt']),
    'tagged': (tagged, [*NOWHERE, '--out', 'new', '--weights', 'no.pt'])}
RUNS_WITHOUT_FILES = ('benchmark schp',)


class Caught(Exception):
    """Holds a parser."""


def parsers(program, arguments):
    """The parser of a command, or those of its commands."""
    def catch(self, *_, **__):
        raise Caught(self)

    former = CommandParser.parse_args
    CommandParser.parse_args = catch
    parse = getattr(program, 'parse_arguments', program.main)
    try:
        parse(arguments)
    except Caught as caught:
        whole = caught.args[0]
    finally:
        CommandParser.parse_args = former
    commands = [action for action in whole._actions if hasattr(action, '_parser_class')]
    if not commands:
        return [whole]
    return [parser for action in commands for parser in action.choices.values()]


def numbers(parser):
    """{flag: action} of the flags that take numbers."""
    return {action.option_strings[0]: action for action in parser._actions
            if isinstance(action.type, Between)}


def numbers_of(name):
    """The same of an entry of BASES."""
    program, arguments = BASES[name]
    every = parsers(program, arguments)
    found = [parser for parser in every if parser.prog.split()[-1] == arguments[0]]
    return numbers((found or every)[0])


def test_every_number_among_the_flags_of_all_commands_has_a_range():
    found = 0
    for program, arguments in BASES.values():
        for parser in parsers(program, arguments):
            assert isinstance(parser, CommandParser)
            plain = [action.option_strings for action in parser._actions
                     if action.type in (int, float) and not action.choices]
            assert not plain, (program.__name__, plain)
            found += len(numbers(parser))
    assert found > 200


def test_every_text_among_the_flags_of_all_commands_is_filled():
    """A shell makes an empty one of an unset variable; some of them meant that no flag was given."""
    found = set()
    for program, arguments in BASES.values():
        for parser in parsers(program, arguments):
            for action in parser._actions:
                is_text = action.type is None and action.nargs != 0 and not action.choices
                # That of a setting may be empty: it stands for none.
                if is_text and action.option_strings and action.metavar != 'TEXT':
                    found.update(action.option_strings)
    # These have sentences of their own for it.
    assert found <= {'--at', '--data', '--licenses', '--device', '--onnx'}, found


def unexplained(parser):
    """The flags whose help is missing, or lacks their default."""
    without = None, False, [], argparse.SUPPRESS
    lacking = []
    for action in parser._actions:
        text = action.help or ''
        has_default = action.default not in without
        if not text or has_default and 'default' not in text and not text.endswith(']'):
            lacking.append(action.dest)
    return lacking


def test_help_explains_every_flag_of_all_commands():
    for program, arguments in BASES.values():
        for parser in parsers(program, arguments):
            assert parser.description, parser.prog
            assert not unexplained(parser), (parser.prog, unexplained(parser))
            # A bare % in a help text would raise.
            parser.format_help()
    parser.add_argument('--planted')
    parser.add_argument('--silent', default='a', help='a letter')
    assert unexplained(parser) == ['planted', 'silent']


NUMBERS = st.one_of(
    st.integers(), st.floats(),
    st.sampled_from([0, 1, -1, 2, math.nan, math.inf, -math.inf, 10 ** 30, 0.5]))
WORDS = st.sampled_from(['', 'x', 'none', '1.5.2', '--', '0x10', '1e', ' ', '\u0663', 'nan nan', 'a\nb',
                         '9' * 5000])


def check_flag(name, action, text, tmp_path):
    """One sentence and exit code 2, whatever is given: about the flag where it is out of range,
    else about a missing file, or about settings that do not go together."""
    program, arguments = BASES[name]
    flag = action.option_strings[0]
    between = action.type
    try:
        inside = between.low <= between.kind(text) <= between.high
    except ValueError:
        inside = False
    times = action.nargs if isinstance(action.nargs, int) else 1
    if inside and name in RUNS_WITHOUT_FILES:
        program.parse_arguments([*arguments, flag, *[text] * times])
        return
    given = [f'{flag}={text}'] if times == 1 else [flag, *[text] * times]
    done = call(program, *arguments, *given, cwd=tmp_path)
    error = done.stderr
    assert done.returncode == 2 and error.startswith('error: '), (text, error)
    assert error.count('\n') == 1, (text, error)
    range_ = f'give a value from {between.low} to {between.high}'
    refused = range_ in error or 'see ' in error.split(';')[-1]
    assert refused == (not inside) and (inside or flag in error), (flag, text, error)
    assert done.stdout == '' and not os.listdir(tmp_path), (done.stdout, os.listdir(tmp_path))


@pytest.mark.parametrize('name', [name for name in BASES
                                  if name not in ('data', 'export', 'oneshot parse')])
def test_any_value_of_any_flag_is_taken_or_refused_in_one_sentence(tmp_path, name):
    flags = numbers_of(name)
    assert flags

    @settings(max_examples=60, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(flags)), st.one_of(NUMBERS.map(str), WORDS, st.floats(0, 1)))
    def check(flag, value):
        between = flags[flag].type
        if isinstance(value, float):
            # A share of the range.
            low = max(between.low, -1e6)
            high = min(between.high, 1e6)
            value = str(between.kind(low + value * (high - low)))
        check_flag(name, flags[flag], value, tmp_path)

    check()
    # The ends of every range, and just outside.
    for action in flags.values():
        low = action.type.low
        high = action.type.high
        for value in low, high, math.nan, -math.inf, high * 2 + 1, low - 1, '', 'word':
            check_flag(name, action, str(value), tmp_path)


@pytest.mark.parametrize('name', BASES)
def test_too_many_values_and_unknown_flags_are_one_sentence(tmp_path, name):
    program, arguments = BASES[name]
    wrong = [['--unknown'], ['--unknown', '3']]
    if name != 'data':
        wrong += [[flag] for flag, action in numbers_of(name).items() if action.nargs != '*']
    for more in wrong:
        done = call(program, *arguments, *more, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith('error: '), done.stderr
        assert done.stderr.count('\n') == 1 and more[0] in done.stderr
        assert not os.listdir(tmp_path)


SPLIT_OF_COCO = ['--data', 'COCO', '--root', 'coco']


@pytest.mark.parametrize('program, arguments, sentence', [
    (keypoints, ['--root', 'coco', '--out', 'new', '--sheet-only'], '--sheet-only is for a sheet of people; name its file with --sheet'),
    (keypoints, ['--root', 'coco', '--out', 'new', '--sheet-people', '3'], '--sheet-people is for a sheet of people'),
    (count_people, ['photos', '--curve', 'theta_person'], '--curve is for a data set; name it with --data'),
    (count_people, ['photos', '--root', 'coco'], '--root is for a data set'),
    (count_people, ['photos', '--split', 'held'], '--split is for a data set'),
    (count_people, [*SPLIT_OF_COCO, '--instances', 'masks'], '--instances is for a folder of photos'),
    (count_people, [*SPLIT_OF_COCO, '--iou', '0'], '--iou is for a folder of photos'),
    (count_people, [*SPLIT_OF_COCO, '--curve', 'theta_score', '--score', 'center'], '--curve theta_score is for --score parsing'),
    (count_people, [*SPLIT_OF_COCO, '--curve', 'theta_person', '--theta-person', '0'], '--theta-person has many values with --curve'),
    (oracle, ['where', *SPLIT_OF_COCO, '--out', 'new'], '--out is for predictions, and where writes none'),
    (oracle, ['where', *SPLIT_OF_COCO, '--format', FORMS[0]], '--format is for predictions')])
def test_flags_that_would_do_nothing_are_refused(tmp_path, program, arguments, sentence):
    write_coco(tmp_path / 'coco', {5: (4, person_of(5))})
    write_coco(tmp_path / 'coco', {6: (4, person_of(6))}, 'train2017')
    write_photo(tmp_path / 'photos' / 'a.jpg')
    tiny_model('cihp', test_short_side=64, long_side=96).save(tmp_path / 'tiny.pt')
    before = sorted(os.listdir(tmp_path))
    done = call(program, *arguments, '--weights', 'tiny.pt', '--device', 'cpu', cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(f'error: {sentence}'), done.stderr
    assert done.stdout == '' and sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize('program, arguments, sentence', [
    (count_people, ['photos', '--instances', 'none'], 'none does not exist; give the folder with an ID.png for each photo'),
    (count_people, ['photos', '--instances', 'photos'],
     'photos lacks 1 of 1 files, the first is a.png; give the folder with an ID.png for each photo'),
    (oracle, ['people', *SPLIT_OF_COCO], 'people writes predictions; name their folder with --out'),
    (oracle, ['where', '--data', 'synthetic'], 'where is for --data COCO'),
    (oracle, ['where', '--data', 'COCO', '--root', 'coco/val2017'], 'coco/val2017 holds no annotations of COCO; give the folder above it'),
    (oracle, ['where', '--data', 'COCO', '--root', 'coco/annotations'], 'coco/annotations holds no annotations of COCO; give the folder')])
def test_a_wrong_folder_is_followed_by_the_right_advice(tmp_path, program, arguments, sentence):
    write_coco(tmp_path / 'coco', {5: (4, person_of(5))})
    write_photo(tmp_path / 'photos' / 'a.jpg')
    tiny_model('cihp').save(tmp_path / 'tiny.pt')
    done = call(program, *arguments, '--weights', 'tiny.pt', '--device', 'cpu', cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(f'error: {sentence}'), done.stderr


@pytest.mark.parametrize('file, program, arguments, sentence', [
    ('schp/__main__.py', schp, ['extract', '--bogus'], 'unrecognized arguments: --bogus; see python -m schp extract --help'),
    ('schp/__main__.py', schp, [], ' | prepare; see python -m schp --help'),
    ('oneshot/__main__.py', oneshot, [], ': parse | train | evaluate; see python -m oneshot --help'),
    ('oneshot/__main__.py', oneshot, ['train', '--way', '3'], 'error: --way is 3; choose k or 1'),
    ('tools/plot.py', plot, [], ': RUN; see python -m tools.plot --help')])
def test_a_mistake_points_to_the_help_of_its_command(monkeypatch, file, program, arguments, sentence):
    monkeypatch.setattr(sys, 'argv', [str(HERE / file)])
    done = call(program, *arguments)
    assert done.returncode == 2 and done.stderr.endswith(sentence + '\n'), done.stderr


# ---- settings


@pytest.mark.parametrize('arguments, sentence', [
    (['--lr', 'nan'], '--lr is nan; give a value from 1e-12 to 1000'),
    (['--workers', '-1'], '--workers is -1; give a value'),
    (['--seed', '-1'], '--seed is -1'),
    (['--clip', 'nan'], '--clip is nan'),
    (['--size', '48'], '--size is 48; give 2 numbers'),
    (['--size'], '--size is none; give 2'),
    (['--blocks', '1', '1', '1', '1', '1'], '--blocks is 1 1 1 1 1; give 4 numbers'),
    (['--phase', '1'], '--phase is 1; it is 0, and of the network segformer'),
    (['--network', 'vgg'], "argument --network: invalid choice: 'vgg'"),
    (['--lr', '1', '2'], 'unrecognized arguments: 2')])
def test_settings_of_schp_are_refused_by_their_flag(tmp_path, arguments, sentence):
    done = call(schp, 'train', *NOWHERE, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f'error: {sentence}'), done.stderr
    assert done.stderr.count('\n') == 1


@pytest.mark.parametrize('field', [field for field in fields(SCHPConfig)
                                   if field.metadata['low'] is not None], ids=lambda field: field.name)
def test_a_network_can_be_built_of_any_setting_in_range(field):
    """In a file or a script the same ranges hold."""
    config = SCHPConfig(network='segformer')
    low = field.metadata['low']
    high = field.metadata['high']
    is_tuple = isinstance(field.default, tuple)
    for value in low, high:
        value = (value,) * len(field.default) if is_tuple else value
        assert getattr(replace(config, **{field.name: value}), field.name) == value
    for value in low - 1, high + 1, math.nan:
        value = (value,) * 2 if is_tuple else value
        with pytest.raises(ValueError, match='--' + field.name.replace('_', '-')):
            replace(config, **{field.name: value})


def test_clip_0_is_the_default_and_files_with_a_million_load(tmp_path):
    assert SCHPConfig().clip == 0 and Config().clip == 35
    torch.manual_seed(0)
    config = replace(SCHPConfig(), size=(48, 40), blocks=(1, 1, 1, 1), width=4, clip=1e6)
    model = build(config, LabelSet(('background', 'hair'), (48, 40), ()))
    model.save(tmp_path / 'a.pt')
    assert checkpoints.read_checkpoint(tmp_path / 'a.pt')['config']['clip'] == 1e6
    assert SCHP.from_pretrained(tmp_path / 'a.pt').config.clip == 1e6


@pytest.mark.parametrize('name', ['gpu', '', 'cuda:x', '0', 'meta'])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(ValueError, match='--device'):
        run.find_device(name)
