"""SCHP's commands: python -m schp extract | train | evaluate | fuse | prepare."""
import preflight
from schp import main

if __name__ == '__main__':
    preflight.start(main)
