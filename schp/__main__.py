"""SCHP's commands: python -m schp extract | train | evaluate | fuse | prepare."""
from schp import main
from util.cli import start

if __name__ == '__main__':
    start(main)
