"""A person whose clothes are unsure is still a person: pixels of the person's map that no class
claims are 255."""

import numpy as np

from util.files import UNKNOWN


def keep_whole(parsing, whole):
    """Writes 255 (this person, part unknown) into a label map, in place, where a person is and no
    class is. parsing (H, W) uint8; whole (H, W): not 0 on the person's pixels."""
    parsing[(parsing == 0) & (whole > 0)] = UNKNOWN


def without_unknown(parsing):
    """Label maps uint8 -> the same with 0 in place of 255: for evaluators, and for pictures of
    parts."""
    return np.where(parsing == UNKNOWN, np.uint8(0), parsing)
