"""How every command starts: Ctrl-C during the imports, files of the same name, flags in and out of range."""
import ast
import math
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data
import demo
import evaluate
import infer
import oneshot
import preflight
import schp
import train
from tests.helpers import HERE, call
from tests.test_layout import MODULES, TREES, graph, reachable
from uniparser import Config
from util import checkpoints, run
from tools import tagged
from tools import self_correction
from tools import oracle
from tools import export
from tools import count_people
from tools import benchmark
from tools import ablate
from schp.config import RANGES, SCHPConfig

PROGRAMS = dict(data=data, demo=demo, evaluate=evaluate, infer=infer, oneshot=oneshot, schp=schp, train=train)
TOOLS = {'tools.benchmark': benchmark, 'tools.export': export, 'tools.oracle': oracle, 'tools.self_correction': self_correction,
         'tools.count_people': count_people, 'tools.ablate': ablate, 'tools.tagged': tagged}
COMMANDS = {**{name: [HERE / f'{name}.py'] for name in PROGRAMS}, **{name: ['-m', name] for name in TOOLS}}


def start(*arguments, cwd=HERE, path=()):
    """A python process in a folder, with PYTHONPATH."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(map(str, path))}
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=cwd, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# ---- Ctrl-C ------------------------------------------------------------------------------------------------------------


SLOW = '''import sys, time
print('importing', flush=True)
try:
    time.sleep(60)
except BaseException:                         # as a library that tries several things would
    raise ImportError('numpy.core.multiarray failed to import')
'''


def test_all_commands_are_known():
    """Every file with a main starts it the same way."""
    start = "if __name__ == '__main__':\n    preflight.start(main)"
    starts = {name for name, path in MODULES.items() if start in path.read_text()}
    assert starts == set(COMMANDS) == {name for name, path in MODULES.items() if '__main__\'' in path.read_text()} - {'preflight'}


@pytest.mark.parametrize('name', COMMANDS)
def test_ctrl_c_during_the_imports_is_one_word(tmp_path, name):
    """torch and numpy take long here, and what Ctrl-C raises inside them would be turned into another error."""
    for module in 'torch', 'numpy':
        (tmp_path / f'{module}.py').write_text(SLOW)
    process = start(*COMMANDS[name], path=[tmp_path])
    assert process.stdout.readline() == 'importing\n', process.stderr.read()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (130, '', 'stopped\n')


def test_ctrl_c_is_one_word_from_the_first_import_on(tmp_path):
    (tmp_path / 'argparse.py').write_text(SLOW)
    process = start(HERE / 'train.py', path=[tmp_path])
    assert process.stdout.readline() == 'importing\n', process.stderr.read()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (130, '', 'stopped\n')


def test_who_imports_the_repository_keeps_its_own_ctrl_c(tmp_path):
    (tmp_path / 'torch.py').write_text(SLOW.split('try:')[0] + 'time.sleep(60)')
    process = start('-c', 'import uniparser', cwd=tmp_path, path=[tmp_path, HERE])
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert 'KeyboardInterrupt' in process.communicate(timeout=300)[1] and process.returncode != 130


def test_an_ignored_ctrl_c_stays_ignored(tmp_path):
    """As the shell leaves it for a command in the background."""
    (tmp_path / 'torch.py').write_text(SLOW.split('try:')[0] + 'time.sleep(1)\nprint("on", flush=True)\nsys.exit(7)')
    code = f'import os, signal; signal.signal(2, signal.SIG_IGN); os.execv({sys.executable!r}, ["python", "train.py"])'
    process = start('-c', code, path=[tmp_path])
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=300)[0] == 'on\n' and process.returncode == 7


@pytest.mark.parametrize('where', ['numpy', 'evaluation'])
def test_ctrl_c_is_one_sentence_until_the_end(tmp_path, where):
    """After the imports: evaluate.py with two processes, all of which receive the signal, as in a terminal."""
    code = ('import sys, time; sys.argv[0] = "evaluate.py"; sys.path.insert(0, sys.argv.pop(1)); import evaluate, preflight\n'
            'class Job(list):\n'
            '    dataset, metrics = range(99), type("M", (), dict(records={}))\n'
            '    def __call__(self, i):\n        print("job\\n", end="", flush=True); time.sleep(5)\n'
            'preflight.start(lambda: evaluate.evaluate(Job(), 1 if "numpy" in sys.argv else 2))')
    process = subprocess.Popen([sys.executable, '-c', code, str(HERE), where], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)
    assert process.stdout.readline() == 'job\n'             # one write: those of two workers would mix
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and err.splitlines()[-1] == 'stopped' and 'Traceback' not in err, err


def test_start_gives_ctrl_c_back_and_ends_with_a_word(capsys, monkeypatch):
    former = signal.signal(signal.SIGINT, preflight.leave)
    try:
        monkeypatch.setattr(sys.stdout, 'reconfigure', lambda **_: None, raising=False)
        with pytest.raises(SystemExit) as stop:
            preflight.start(lambda: os.kill(os.getpid(), signal.SIGINT) or threading.Event().wait(9))
    finally:
        signal.signal(signal.SIGINT, former)
    assert stop.value.code == 130 and capsys.readouterr().err == 'stopped\n'


# ---- files of the same name --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', [name for name, tree in TREES.items() if '.' not in name or name in TOOLS])
def test_every_file_at_the_top_requires_what_it_imports(name):
    """Its own imports, and theirs, before any other import: torch alone takes seconds. hubconf.py sets a program's modules
    of the same names aside instead."""
    if name in ('preflight', 'hubconf'):
        return
    needed = {other.split('.')[0] for other in reachable(name, graph())} - {'preflight'}
    calls = [node for node in TREES[name].body
             if isinstance(node, ast.Expr) and ast.unparse(node).startswith('preflight.require(')]
    assert len(calls) == 1 and [word.value for word in calls[0].value.args] == sorted(needed)
    assert ast.unparse(TREES[name].body[1]) == 'import preflight' and calls[0] is TREES[name].body[2]


@pytest.mark.parametrize('other, module', [
    ('data.py', 'uniparser'), ('util/__init__.py', 'uniparser'), ('util.py', 'uniparser'), ('train.py', 'schp'),
    ('evaluate.py', 'train'), ('infer.py', 'oneshot'), ('data/__init__.py', 'infer'), ('losses.py', 'train'),
    ('util.py', 'evaluate')])
def test_a_file_of_the_same_name_is_named(tmp_path, other, module):
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / other).write_text('open("ran", "w")')
    process = start('-c', f'import {module}', cwd=tmp_path, path=[HERE])
    err = process.communicate(timeout=300)[1]
    own = HERE / ('util/__init__.py' if other.startswith('util') else f'{other.split("/")[0].removesuffix(".py")}.py')
    assert err.splitlines()[-1] == (f'ImportError: `import {own.parent.name if own.name == "__init__.py" else own.stem}` finds '
                                    f'{tmp_path / other} instead of {own}; rename the former, or put {HERE} before its '
                                    'folder in sys.path or PYTHONPATH')
    assert process.returncode == 1 and not (tmp_path / 'ran').exists()


def test_a_file_of_the_same_name_stops_a_command_with_one_sentence(tmp_path):
    (tmp_path / 'data.py').write_text('')
    for arguments in ['-P', HERE / 'infer.py'], ['-m', 'tools.export']:
        process = start(*arguments, cwd=tmp_path, path=[tmp_path, HERE])
        err = process.communicate(timeout=300)[1]
        assert process.returncode == 2 and err.startswith('error: `import data` finds ') and err.count('\n') == 1, err


def test_a_module_that_is_imported_already_is_named(tmp_path):
    (tmp_path / 'data.py').write_text('')
    code = f'import data, sys; sys.path.insert(0, {str(HERE)!r}); import uniparser'
    err = start('-c', code, cwd=tmp_path).communicate(timeout=300)[1]
    assert f'finds {tmp_path / "data.py"} instead of' in err.splitlines()[-1]


def test_files_that_are_in_nobodys_way_are_left_alone(tmp_path):
    """A train.py of the user's, a folder of data without Python files, other names."""
    (tmp_path / 'train.py').write_text(''), (tmp_path / 'mine.py').write_text('')
    (tmp_path / 'data').mkdir(), (tmp_path / 'util').mkdir()
    process = start('-c', 'import uniparser, mine, train; print(train.__file__)', cwd=tmp_path, path=[HERE])
    out, err = process.communicate(timeout=300)
    assert out.strip() == str(tmp_path / 'train.py'), err


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
    'benchmark schp': (benchmark, ['schp']), 'benchmark evaluate': (benchmark, ['evaluate']),
    'export': (export, ['--weights', 'no.pt', '--out', 'new.pt']),
    'oracle': (oracle, ['people', '--data', 'MHP', '--weights', 'no.pt', '--out', 'new']),
    'demo': (demo, ['--weights', 'no.pt']),
    'ablate': (ablate, ['--table', '5', '--data', 'MHP', *NOWHERE]),
    'self_correction': (self_correction, NOWHERE), 'count_people': (count_people, ['no', '--weights', 'no.pt']),
    'tagged': (tagged, [*NOWHERE, '--out', 'new', '--weights', 'no.pt'])}
RUNS_WITHOUT_FILES = 'benchmark schp', 'benchmark evaluate'


class Caught(Exception):
    """Holds a parser."""


def parsers(program, arguments):
    """The parser of a command, and those of its commands."""
    def catch(self, *_, **__):
        raise Caught(self)
    former, preflight.CommandParser.parse_args = preflight.CommandParser.parse_args, catch
    try:
        (program.parse_arguments if hasattr(program, 'parse_arguments') else program.main)(arguments)
    except Caught as caught:
        whole = caught.args[0]
    finally:
        preflight.CommandParser.parse_args = former
    subs = [a for a in whole._actions if hasattr(a, '_parser_class')]
    return [parser for action in subs for parser in action.choices.values()] or [whole]


def numbers(parser):
    """{flag: Between} of a parser."""
    return {a.option_strings[0]: a for a in parser._actions if isinstance(a.type, preflight.Between)}


def test_every_number_among_the_flags_of_all_commands_has_a_range():
    found = 0
    for program, arguments in BASES.values():
        for parser in parsers(program, arguments):
            assert isinstance(parser, preflight.CommandParser)
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
    for name, (low, high) in RANGES.items():
        default = getattr(SCHPConfig(), name)
        for value in low, high:
            value = (value,) * len(default) if isinstance(default, tuple) else value
            assert getattr(replace(SCHPConfig(network='segformer'), **{name: value}), name) == value
        for value in low - 1, high + 1, math.nan:
            with pytest.raises(ValueError, match='--' + name.replace('_', '-')):
                replace(SCHPConfig(network='segformer'), **{name: (value,) * 2 if isinstance(default, tuple) else value})


def test_clip_0_is_the_default_and_files_with_a_million_load(tmp_path):
    assert SCHPConfig().clip == 0 and Config().clip == 35
    torch.manual_seed(0)
    model = schp.build(replace(SCHPConfig(), size=(48, 40), blocks=(1, 1, 1, 1), width=4, clip=1e6),
                       schp.LabelSet(('background', 'hair'), (48, 40), ()))
    model.save(tmp_path / 'a.pt')
    assert checkpoints.read_checkpoint(tmp_path / 'a.pt')['config']['clip'] == 1e6
    assert schp.SCHP.from_pretrained(tmp_path / 'a.pt').config.clip == 1e6


@pytest.mark.parametrize('name', ['gpu', '', 'cuda:x', '0', 'meta'])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(ValueError, match='--device'):
        run.find_device(name)
