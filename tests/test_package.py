"""The wheel, installed into an empty folder, works beside another project's `data.py` and `util/`."""
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from tests.helpers import HERE, SHORT, run

MISSING = [name for name in ('pip', 'setuptools') if not importlib.util.find_spec(name)]
if MISSING or int(importlib.metadata.version('setuptools').split('.')[0]) < 77:
    pytest.skip('building the package needs pip and setuptools 77', allow_module_level=True)
PROJECT = tomllib.loads((HERE / 'pyproject.toml').read_text())


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Built from a copy, because a build leaves files beside the sources."""
    folder = tmp_path_factory.mktemp('wheel')
    skipped = shutil.ignore_patterns('.*', 'tests', 'runs', 'results', 'build', 'dist', '*.egg-info', '__pycache__')
    shutil.copytree(HERE, folder / 'source', ignore=skipped)
    pip('wheel', '--no-build-isolation', '--no-deps', '--wheel-dir', folder, folder / 'source')
    path, = folder.glob('*.whl')
    return path


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """A folder that holds the package alone."""
    folder = tmp_path_factory.mktemp('installed')
    pip('install', '--no-deps', '--target', folder, wheel)
    return folder


def pip(*words):
    command = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q', *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def project(tmp_path):
    """Another project, with files called as files of this one."""
    (tmp_path / 'util').mkdir()
    (tmp_path / 'data.py').write_text('mine = 1')
    (tmp_path / 'train.py').write_text('mine = 2')
    (tmp_path / 'util' / '__init__.py').write_text('mine = 3')
    shutil.copy(HERE / 'assets' / 'street.jpg', tmp_path)
    return tmp_path


def run_installed(installed, cwd, *command):
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(installed)}
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_module_the_weights_and_the_assets(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = '', 'schp', 'oneshot', 'tools', 'tools/benchmark', 'util', 'util/datasets', 'assets', 'weights'
    files = {path.relative_to(HERE) for folder in folders for path in (HERE / folder).iterdir()
             if path.suffix == '.py' or folder in ('assets', 'weights') and path.is_file()}
    left_out = {Path('setup.py'), Path('test_uniparser.py')}
    assert {f'uniparser_torch/{file.as_posix()}' for file in files - left_out} <= names
    assert not [name for name in names if 'tests/' in name or Path(name).name.startswith('test_') or name.endswith('setup.py')]


def test_the_packages_are_all_folders_with_code():
    folders = {path.parent.relative_to(HERE).parts for path in HERE.glob('*/**/*.py')
               if not {'tests', 'build'} & set(path.parts) and not path.relative_to(HERE).parts[0].startswith('.')}
    packages = {tuple(name.split('.')[1:]) for name in PROJECT['tool']['setuptools']['packages']}
    assert packages == folders | {()}


def test_the_metadata_names_version_requirements_and_extras(wheel):
    archive = zipfile.ZipFile(wheel)
    path, = [name for name in archive.namelist() if name.endswith('.dist-info/METADATA')]
    metadata = message_from_string(archive.read(path).decode())
    needed = [line for line in metadata.get_all('Requires-Dist') if 'extra ==' not in line]
    words = {re.match(r'[\w-]+', line)[0] for line in needed}
    assert metadata['Version'] == '0.1.0' and metadata['License-Expression'] == 'MIT'
    assert words == {'torch', 'torchvision', 'numpy', 'pillow', 'scipy', 'tqdm'}
    assert set(metadata.get_all('Provides-Extra')) == {'page', 'video', 'onnx', 'safetensors', 'plots', 'test'}


@pytest.mark.parametrize('command', [('uniparser',), ('python', '-m', 'uniparser_torch')])
def test_the_command_parses_a_photo_beside_files_of_other_names(installed, project, command):
    start = [sys.executable, *command[1:]] if command[1:] else [installed / 'bin' / 'uniparser']
    out = run_installed(installed, project, *start, 'street.jpg', '--device', 'cpu')
    assert out.splitlines() == ['street.jpg: 4 people', '1 of 1 photo, 4 people -> results/']
    assert len(json.loads((project / 'results' / 'street.json').read_text())['people']) == 4


def test_a_mistyped_program_is_no_photo(tmp_path):
    done = run('python', HERE / '__main__.py', 'traine', cwd=tmp_path)
    assert done.returncode == 2 and done.stderr == 'error: traine is neither a program nor a file; see uniparser --help\n'


def test_every_program_is_reached(installed, project):
    """In one process, to import torch once."""
    code = '''
import sys
from uniparser_torch.__main__ import PROGRAMS, main
for name in PROGRAMS:
    sys.argv = ['uniparser', name, '--help']
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, name
sys.argv = ['uniparser']
main()
'''
    out = run_installed(installed, project, sys.executable, '-c', code)
    programs = ['infer', 'train', 'evaluate', 'data', 'demo', 'schp', 'oneshot']
    programs += [f'tools.{path.stem}' for path in HERE.glob('tools/*.py') if path.stem != '__init__']
    assert sorted(re.findall(r'^usage: uniparser (\S+) \[-h\]', out, re.M)) == sorted(programs)
    assert 'uniparser schp extract photo.jpg' in out


def test_training_and_evaluation_start_processes_beside_files_of_other_names(installed, project):
    start = installed / 'bin' / 'uniparser'
    run_installed(installed, project, start, 'train', *SHORT, '--epochs', '1', '--workers', '1', '--out', 'run')
    run_installed(installed, project, start, 'infer', '--data', 'synthetic', '--weights', 'run/best.pt', '--out', 'predictions',
                  '--device', 'cpu')
    out = run_installed(installed, project, start, 'evaluate', '--data', 'synthetic', '--predictions', 'predictions',
                        '--workers', '2')
    assert 'AP^p_50' in out or 'AP50' in out


HUB = '''
{before}
from uniparser_torch.hubconf import oneshot, schp, uniparser
import data, util
assert (data.mine, util.mine) == (1, 3)
model = uniparser()
assert len(model.predict('street.jpg')[0].people) == 4
assert hasattr(oneshot(), 'learn')
try:
    schp('no.pth')
except FileNotFoundError as error:
    print(error)
import train
assert train.mine == 2 and data.mine == 1
'''


@pytest.mark.parametrize('before', ['', 'import data, util'])
def test_the_functions_of_hubconf_leave_the_files_of_a_program_alone(installed, project, before):
    out = run_installed(installed, project, sys.executable, '-c', HUB.format(before=before))
    assert 'no.pth does not exist' in out
