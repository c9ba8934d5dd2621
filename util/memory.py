"""The memory of a process, by the standard library alone."""
import re
import sys
from pathlib import Path

try:
    import resource
except ImportError:
    # Windows lacks it.
    resource = None


def peak_memory() -> float:
    """GB, the most that this process held at a time; 0 where it is unknown.

    `ru_maxrss` is not used where there is something better: on Linux a new process inherits it from
    its parent, across exec.
    """
    try:
        status = Path('/proc/self/status').read_text()
        return int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) / 2 ** 20
    except (OSError, TypeError):
        if resource is None:
            return 0.0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # Bytes on macOS, kilobytes elsewhere.
        return peak / (2 ** 30 if sys.platform == 'darwin' else 2 ** 20)
