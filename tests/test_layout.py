"""The layout's rules: imports run one way, files and functions stay short, evaluate.py loads no torch."""
import ast
import subprocess
import sys

import pytest

from tests.helpers import HERE

LONGEST = {'uniparser.py': 625, 'losses.py': 260}        # lines; any other file has at most 500
SOURCES = sorted(p for p in [*HERE.glob('*.py'), *HERE.glob('util/*.py')] if not p.name.startswith('test_'))
MODULES = {'.'.join(p.relative_to(HERE).with_suffix('').parts): p for p in SOURCES}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def imported(node):
    """Names of the project's modules that an import statement loads."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom):
        names = [node.module, *(f'{node.module}.{alias.name}' for alias in node.names)]
    return {name for name in names if name in MODULES}


def graph():
    return {name: set().union(*(imported(node) for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))))
            for name, tree in TREES.items()}


def reachable(name, edges, seen=frozenset()):
    found = set()
    for other in edges[name] - seen:
        found |= {other} | reachable(other, edges, seen | {other} | found)
    return found


def test_imports_have_no_circle():
    edges = graph()
    assert edges['losses'] >= {'uniparser', 'util.released'} and edges['train'] >= {'losses', 'data'}
    assert [name for name in edges if name in reachable(name, edges)] == []


def test_the_circle_test_finds_circles():
    edges = dict(a={'b'}, b={'c'}, c={'a'}, d={'a'})
    assert [name for name in edges if name in reachable(name, edges)] == ['a', 'b', 'c']


@pytest.mark.parametrize('name', MODULES)
def test_files_and_functions_are_short_and_import_at_the_top(name):
    assert len(MODULES[name].read_text().splitlines()) <= LONGEST.get(MODULES[name].name, 500)
    for function in (n for n in ast.walk(TREES[name]) if isinstance(n, ast.FunctionDef)):
        assert function.end_lineno - function.lineno < 45, function.name
        inside = [n for n in ast.walk(function) if isinstance(n, (ast.Import, ast.ImportFrom))]
        assert not any(imported(node) for node in inside), f'{function.name} imports a project module'


def test_evaluate_loads_no_torch():
    code = 'import evaluate, sys; print([m for m in sys.modules if m.split(".")[0] in ("torch", "torchvision")])'
    done = subprocess.run([sys.executable, '-c', code], cwd=HERE, capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stdout + done.stderr
