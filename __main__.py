"""The installed command. It starts every program of this repository:

    uniparser photo.jpg --out results/             # infer.py
    uniparser train --data MHP --root DIR          # train.py; so do infer, evaluate, data and demo
    uniparser schp extract photo.jpg --weights F   # python -m schp
    uniparser oneshot parse photo.jpg ..           # python -m oneshot
    uniparser tools.export --out uniparser.onnx    # python -m tools.export, or another of tools/

`python -m uniparser_torch` does the same. `uniparser train --help` prints the flags of a program.
A photo with the name of a program needs its folder: `uniparser ./train`.
"""
import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAMS = {
    'infer': 'infer',
    'train': 'train',
    'evaluate': 'evaluate',
    'data': 'data',
    'demo': 'demo',
    'schp': 'schp.__main__',
    'oneshot': 'oneshot.__main__',
}
for path in sorted(HERE.glob('tools/[a-z]*.py')):
    PROGRAMS[f'tools.{path.stem}'] = f'tools.{path.stem}'
# A program of several files is a folder.
for path in sorted(HERE.glob('tools/[a-z]*/__main__.py')):
    PROGRAMS[f'tools.{path.parent.name}'] = f'tools.{path.parent.name}.__main__'


def main():
    if sys.argv[1:] in ([], ['-h'], ['--help']):
        print(__doc__)
        return
    # Messages of a program call it by these words.
    sys.argv[0] = 'uniparser'
    name = 'infer'
    if sys.argv[1] in PROGRAMS:
        name = sys.argv.pop(1)
        sys.argv[0] = f'uniparser {name}'
    # The files of this folder import each other by short names, such as `data`. First on the path,
    # they are found before files of the working directory.
    sys.path.insert(0, str(HERE))
    cli = importlib.import_module('util.cli')
    word = sys.argv[1] if name == 'infer' and len(sys.argv) > 1 else ''
    if word.isalnum() and not Path(word).exists():
        cli.fail(f'{word} is neither a program nor a file; see uniparser --help')
    cli.start(importlib.import_module(PROGRAMS[name]).main)


if __name__ == '__main__':
    main()
