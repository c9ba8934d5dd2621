"""How every command starts and ends: Ctrl-C, flags in and out of range."""
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
from oneshot import __main__ as oneshot
from schp import SCHP, build
from schp import __main__ as schp
import train
from tests.helpers import HERE, call
from tests.test_layout import MODULES
from uniparser import Config
from util.cli import Between, CommandParser
from util.cli import start as start_command
from util import checkpoints, run
from tools import tagged
from tools import self_correction
from tools import oracle
from tools import export
from tools import count_people
from tools import benchmark
from tools import ablate
from schp.config import SCHPConfig
from util.labels import LabelSet

PROGRAMS = dict(data=data, demo=demo, evaluate=evaluate, infer=infer, oneshot=oneshot, schp=schp, train=train)
TOOLS = {'tools.benchmark': benchmark, 'tools.export': export, 'tools.oracle': oracle, 'tools.self_correction': self_correction,
         'tools.count_people': count_people, 'tools.ablate': ablate, 'tools.tagged': tagged}
COMMANDS = {'data', 'demo', 'evaluate', 'infer', 'train', 'schp.__main__', 'oneshot.__main__', *TOOLS}


def start(*arguments, cwd=HERE, path=()):
    """A python process in a folder, with PYTHONPATH."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(map(str, path))}
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=cwd, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# ---- Ctrl-C ------------------------------------------------------------------------------------------------------------


def test_all_commands_are_known():
    """Every file with a main starts it the same way."""
    start = "if __name__ == '__main__':\n    start(main)"
    modules = {name: path.read_text() for name, path in MODULES.items() if name != '__main__'}       # it starts the others
    starts = {name for name, text in modules.items() if start in text}
    assert starts == COMMANDS == {name for name, text in modules.items() if '__name__ == ' in text}


@pytest.mark.parametrize('where', ['numpy', 'evaluation'])
def test_ctrl_c_is_one_sentence_until_the_end(tmp_path, where):
    """After the imports: evaluate.py with two processes, all of which receive the signal, as in a terminal."""
    code = ('import sys, time; sys.argv[0] = "evaluate.py"; sys.path.insert(0, sys.argv.pop(1)); import evaluate; from util.cli import start\n'
            'class Job(list):\n'
            '    dataset, metrics = range(99), type("M", (), dict(records={}))\n'
            '    def __call__(self, i):\n        print("job\\n", end="", flush=True); time.sleep(5)\n'
            'start(lambda: evaluate.evaluate(Job(), 1 if "numpy" in sys.argv else 2))')
    process = subprocess.Popen([sys.executable, '-c', code, str(HERE), where], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)
    assert process.stdout.readline() == 'job\n'             # one write: those of two workers would mix
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and err.splitlines()[-1] == 'stopped' and 'Traceback' not in err, err


def test_ctrl_c_ends_a_command_with_a_word(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, 'reconfigure', lambda **_: None, raising=False)
    with pytest.raises(SystemExit) as stop:
        start_command(lambda: os.kill(os.getpid(), signal.SIGINT) or threading.Event().wait(9))
    assert stop.value.code == 130 and capsys.readouterr().err == 'stopped\n'


# ---- flags -------------------------------------------------------------------------------------------------------------


NOWHERE = ['--root', 'no']
BASES = {                                         # arguments with which a command ends after its flags were checked
    'train': (train, ['--data', 'MHP', *NOWHERE]), 'infer': (infer, ['--data', 'MHP', '--weights', 'no.pt']),
    'evaluate': (evaluate, [*NOWHERE, '--predictions', 'no']),
    'schp train': (schp, ['train', *NOWHERE]), 'segformer': (schp, ['train', '--network', 'segformer', *NOWHERE]),
    'schp extract': (schp, ['extract', 'no.jpg', '--weights', 'no.pt']),
    'schp fuse': (schp, ['fuse', 'no.jpg', '--weights', 'no.pt']),
    'schp evaluate': (schp, ['evaluate', *NOWHERE, '--weights', 'no.pt']),
    'schp prepare': (schp, ['prepare', *NOWHERE, '--out', 'new']),
    'oneshot train': (oneshot, ['train', *NOWHERE]),
    'oneshot evaluate': (oneshot, ['evaluate', *NOWHERE, '--weights', 'no.pt']),
    'oneshot parse': (oneshot, ['parse', 'no.jpg', '--support', 'no.jpg', '--weights', 'no.pt']),
    'data': (data, ['--data', 'MHP', *NOWHERE]),
    'benchmark infer': (benchmark, ['infer', 'no.jpg', '--weights', 'no.pt']),
    'benchmark train': (benchmark, ['train', '--data', 'CIHP', *NOWHERE]),
    'benchmark schp': (benchmark, ['schp']),
    'export': (export, ['--weights', 'no.pt', '--out', 'new.pt']),
    'oracle': (oracle, ['people', '--data', 'MHP', '--weights', 'no.pt', '--out', 'new']),
    'demo': (demo, ['--weights', 'no.pt']),
    'ablate': (ablate, ['--table', '5', '--data', 'MHP', *NOWHERE]),
    'self_correction': (self_correction, NOWHERE), 'count_people': (count_people, ['no', '--weights', 'no.pt']),
    'tagged': (tagged, [*NOWHERE, '--out', 'new', '--weights', 'no.pt'])}
RUNS_WITHOUT_FILES = 'benchmark schp',


class Caught(Exception):
    """Holds a parser."""


def parsers(program, arguments):
    """The parser of a command, and those of its commands."""
    def catch(self, *_, **__):
        raise Caught(self)
    former, CommandParser.parse_args = CommandParser.parse_args, catch
    try:
        (program.parse_arguments if hasattr(program, 'parse_arguments') else program.main)(arguments)
    except Caught as caught:
        whole = caught.args[0]
    finally:
        CommandParser.parse_args = former
    subs = [a for a in whole._actions if hasattr(a, '_parser_class')]
    return [parser for action in subs for parser in action.choices.values()] or [whole]


def numbers(parser):
    """{flag: Between} of a parser."""
    return {a.option_strings[0]: a for a in parser._actions if isinstance(a.type, Between)}


def test_every_number_among_the_flags_of_all_commands_has_a_range():
    found = 0
    for program, arguments in BASES.values():
        for parser in parsers(program, arguments):
            assert isinstance(parser, CommandParser)
            plain = [a.option_strings for a in parser._actions if a.type in (int, float) and not a.choices]
            assert not plain, (program.__name__, plain)
            found += len(numbers(parser))
    assert found > 200 and {program for program, _ in BASES.values()} == {*PROGRAMS.values(), *TOOLS.values()}
    assert not [name for name, path in MODULES.items() if 'type=int' in path.read_text() or 'type=float' in path.read_text()]


def flags_of(name):
    program, arguments = BASES[name]
    found = [parser for parser in parsers(program, arguments) if parser.prog.split()[-1] == arguments[0]]
    return numbers((found or parsers(program, arguments))[0])


NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, 1, -1, 2, math.nan, math.inf, -math.inf, 10 ** 30, 0.5]))
WORDS = st.sampled_from(['', 'x', 'none', '1.5.2', '--', '0x10', '1e', ' ', '\u0663', 'nan nan', 'a\nb', '9' * 5000])


def check_flag(name, action, text, tmp_path):
    """One sentence and exit code 2, whatever is given: about the flag where it is out of range, else about a missing file,
    or about settings that do not go together."""
    (program, arguments), flag, between = BASES[name], action.option_strings[0], action.type
    try:
        inside = between.low <= between.kind(text) <= between.high
    except ValueError:
        inside = False
    times = action.nargs if isinstance(action.nargs, int) else 1
    if inside and name in RUNS_WITHOUT_FILES:
        program.parse_arguments([*arguments, flag, *[text] * times])
        return
    done = call(program, *arguments, *([f'{flag}={text}'] if times == 1 else [flag, *[text] * times]), cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith('error: ') and done.stderr.count('\n') == 1, (text, done.stderr)
    refused = f'give a value from {between.low} to {between.high}' in done.stderr or 'see ' in done.stderr.split(';')[-1]
    assert refused == (not inside) and (inside or flag in done.stderr), (flag, text, done.stderr)
    assert done.stdout == '' and not os.listdir(tmp_path), (done.stdout, os.listdir(tmp_path))


@pytest.mark.parametrize('name', [name for name in BASES if name not in ('data', 'export', 'oneshot parse')])
def test_any_value_of_any_flag_is_taken_or_refused_in_one_sentence(tmp_path, name):
    flags = flags_of(name)
    assert flags

    @settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(flags)), st.one_of(NUMBERS.map(str), WORDS, st.floats(0, 1)))
    def check(flag, value):
        between = flags[flag].type
        if isinstance(value, float):              # a share of the range
            low, high = max(between.low, -1e6), min(between.high, 1e6)
            value = str(between.kind(low + value * (high - low)))
        check_flag(name, flags[flag], value, tmp_path)
    check()
    for flag, action in flags.items():            # the ends of every range, and just outside
        between = action.type
        for value in between.low, between.high, math.nan, -math.inf, between.high * 2 + 1, between.low - 1, '', 'word':
            check_flag(name, action, str(value), tmp_path)


@pytest.mark.parametrize('name', BASES)
def test_too_many_values_and_unknown_flags_are_one_sentence(tmp_path, name):
    program, arguments = BASES[name]
    for more in ['--unknown'], ['--unknown', '3'], *([flag] for flag in (flags_of(name) if name != 'data' else ())
                                                      if flags_of(name)[flag].nargs != '*'):
        done = call(program, *arguments, *more, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith('error: ') and done.stderr.count('\n') == 1, done.stderr
        assert more[0] in done.stderr and not os.listdir(tmp_path)


@pytest.mark.parametrize('arguments, sentence', [
    (['--lr', 'nan'], '--lr is nan; give a value from 1e-12 to 1000'), (['--workers', '-1'], '--workers is -1; give a value'),
    (['--seed', '-1'], '--seed is -1'), (['--clip', 'nan'], '--clip is nan'),
    (['--size', '48'], '--size is (48,); give 2 numbers'),
    (['--blocks', '1', '1', '1', '1', '1'], '--blocks is (1, 1, 1, 1, 1); give 4 numbers'),
    (['--phase', '1'], '--phase is 1; it is 0, and of the network segformer'), (['--size'], '--size is (); give 2'),
    (['--network', 'vgg'], "argument --network: invalid choice: 'vgg'"), (['--lr', '1', '2'], 'unrecognized arguments: 2')])
def test_settings_of_schp_are_refused_by_their_flag(tmp_path, arguments, sentence):
    done = call(schp, 'train', *NOWHERE, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f'error: {sentence}') and done.stderr.count('\n') == 1, done.stderr


def test_a_network_can_be_built_of_any_setting_in_range():
    """In a file or a script the same ranges hold."""
    for field in (f for f in fields(SCHPConfig) if f.metadata['low'] is not None):
        name, low, high, default = field.name, field.metadata['low'], field.metadata['high'], field.default
        for value in low, high:
            value = (value,) * len(default) if isinstance(default, tuple) else value
            assert getattr(replace(SCHPConfig(network='segformer'), **{name: value}), name) == value
        for value in low - 1, high + 1, math.nan:
            with pytest.raises(ValueError, match='--' + name.replace('_', '-')):
                replace(SCHPConfig(network='segformer'), **{name: (value,) * 2 if isinstance(default, tuple) else value})


def test_clip_0_is_the_default_and_files_with_a_million_load(tmp_path):
    assert SCHPConfig().clip == 0 and Config().clip == 35
    torch.manual_seed(0)
    model = build(replace(SCHPConfig(), size=(48, 40), blocks=(1, 1, 1, 1), width=4, clip=1e6),
                  LabelSet(('background', 'hair'), (48, 40), ()))
    model.save(tmp_path / 'a.pt')
    assert checkpoints.read_checkpoint(tmp_path / 'a.pt')['config']['clip'] == 1e6
    assert SCHP.from_pretrained(tmp_path / 'a.pt').config.clip == 1e6


@pytest.mark.parametrize('name', ['gpu', '', 'cuda:x', '0', 'meta'])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(ValueError, match='--device'):
        run.find_device(name)
