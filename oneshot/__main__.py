"""One-shot parsing's commands: python -m oneshot parse | train | evaluate."""
from oneshot import main
from util.cli import start

if __name__ == '__main__':
    start(main)
