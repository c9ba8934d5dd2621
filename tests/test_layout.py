"""The rule of the house: every import goes downwards, none in a circle, none inside a function.

Read from the sources, without running them. The same functions find planted breaches.
"""
import ast
import subprocess
import sys

from tests.helpers import HERE

ROOMS = 'schp', 'oneshot', 'tools', 'util'                # every other module is at the top
# What the modules of a room may import. Nothing imports tools/.
ALLOWED = {
    'util': {'util'},
    'top': {'top', 'util'},
    'schp': {'schp', 'top', 'util'},
    'oneshot': {'oneshot', 'top', 'util'},
    'tools': {'schp', 'oneshot', 'top', 'util'},
}


def find_modules():
    """{module: path} of the project, without tests."""
    paths = [path for path in sorted(HERE.glob('*.py')) if not path.name.startswith('test_')]
    for room in ROOMS:
        paths += sorted(HERE.glob(f'{room}/**/*.py'))
    return {'.'.join(path.relative_to(HERE).with_suffix('').parts).removesuffix('.__init__'): path for path in paths}


MODULES = find_modules()


def imports(tree, modules):
    """Names of the project's modules that a syntax tree imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, 'imports have full names here'
            found |= {node.module, *(f'{node.module}.{alias.name}' for alias in node.names)}
    return found & modules


def room_of(module):
    first = module.split('.')[0]
    return first if first in ROOMS else 'top'


def same_program(module, other):
    """A program may be a folder in tools/, such as tools.benchmark. Its files import each other."""
    return room_of(module) == 'tools' and module.split('.')[:2] == other.split('.')[:2]


def find_breaches(sources):
    """{module: source} -> sentences, one for each breach of the rule."""
    graph, breaches = {}, []
    for module, source in sources.items():
        tree = ast.parse(source)
        graph[module] = imports(tree, set(sources)) - {module}
        for other in sorted(graph[module]):
            if room_of(other) not in ALLOWED[room_of(module)] and not same_program(module, other):
                breaches.append(f'{module} imports {other}')
        for function in ast.walk(tree):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for other in sorted(imports(function, set(sources))):
                    breaches.append(f'{module} imports {other} inside a function')
    circle = [module for module in graph if module in reachable(module, graph)]
    if circle:
        breaches.append(f'circle: {" ".join(sorted(circle))}')
    return breaches


def reachable(module, graph):
    """Everything that a module imports, directly or not."""
    found, left = set(), list(graph[module])
    while left:
        other = left.pop()
        if other not in found:
            found.add(other)
            left += graph[other]
    return found


def test_every_import_goes_downwards_and_none_in_a_circle():
    sources = {name: path.read_text() for name, path in MODULES.items()}
    assert {'uniparser', 'hubconf', 'schp', 'oneshot', 'tools.benchmark', 'util.files', 'util.datasets'} <= set(sources)
    assert 'correlation' in imports(ast.parse(sources['losses']), set(sources))
    assert find_breaches(sources) == []


def test_planted_breaches_are_found():
    house = {'util.files': '', 'util.datasets': '', 'uniparser': '', 'train': '', 'schp': '', 'schp.data': '', 'oneshot': '',
             'tools.export': ''}
    breaches = [
        ({'util.files': 'import uniparser'}, 'util.files imports uniparser'),
        ({'util.files': 'from tools.export import main'}, 'util.files imports tools.export'),
        ({'util.datasets': 'from schp import data'}, 'util.datasets imports schp.data'),
        ({'uniparser': 'from schp import SCHP'}, 'uniparser imports schp'),
        ({'uniparser': 'if True:\n    import tools.export'}, 'uniparser imports tools.export'),
        ({'schp.data': 'import oneshot'}, 'schp.data imports oneshot'),
        ({'oneshot': 'from schp import data as d'}, 'oneshot imports schp.data'),
        ({'schp': 'from tools import export'}, 'schp imports tools.export'),
        ({'tools.plot': 'from tools import export'}, 'tools.plot imports tools.export'),
        ({'tools.speed.clock': 'from tools import export'}, 'tools.speed.clock imports tools.export'),
        ({'train': 'def f():\n    from util import files'}, 'train imports util.files inside a function'),
        ({'train': 'import uniparser', 'uniparser': 'import train'}, 'circle: train uniparser'),
        ({'schp': 'from schp.data import x', 'schp.data': 'from schp import y'}, 'circle: schp schp.data'),
        ({'util.files': 'import util.datasets', 'util.datasets': 'from util.files import x'}, 'circle: util.datasets util.files'),
    ]
    for change, breach in breaches:
        assert breach in find_breaches({**house, **change}), breach
    fine = {'uniparser': 'from util.files import x\nimport train', 'schp': 'import uniparser\nfrom schp.data import x',
            'tools.export': 'import schp, oneshot, train\nfrom util import files',
            'tools.speed.clock': 'import train', 'tools.speed.__main__': 'from tools.speed.clock import x', 'util.files': 'import os, torch'}
    assert find_breaches({**house, **fine}) == []


def test_evaluate_loads_no_torch():
    code = 'import evaluate, sys; print([m for m in sys.modules if m.split(".")[0] in ("torch", "torchvision")])'
    done = subprocess.run([sys.executable, '-c', code], cwd=HERE, capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stdout + done.stderr
