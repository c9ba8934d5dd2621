"""One-shot parsing's commands: python -m oneshot parse | train | evaluate."""
import preflight
from oneshot import main

if __name__ == '__main__':
    preflight.start(main)
