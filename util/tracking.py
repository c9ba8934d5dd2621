"""People of a video keep their ids: who in a frame is who in the frames before. Needs no torch.

Three things speak for one person in two frames.

- The masks overlap.
- The kernels are alike (Eq. 2). They are unit vectors, and those of different people in a frame are
  far apart. But the network also sees where in the frame a pixel lies. So the kernel of a person
  who has hardly moved is the same in the next frame (cosine 0.98; others 0.0), but after a pan by a
  body's width it is the kernel of whoever stands there now.
- The colors are alike, wherever the person is (Bhattacharyya coefficient 1.0; others 0.63).

The numbers are medians over the drawn clips of `python -m tools.tracking`.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

from util.masks import mask_ious

# Seconds for which a person who is not seen keeps the id, and the number of frames for which this
# holds even if --fps leaves more than a second between them.
MEMORY = 1.0
FRAMES = 3
# Long side in pixels of the masks and pictures that are compared: a person of a tenth of the height
# still has some hundred pixels.
SIDE = 160
# Levels of red, green and blue in a histogram. With 4, two people in dark clothes are alike.
LEVELS = 8
# Weight of the colors that a person had before: those of a half hidden person show the rest, too.
KEEP = 0.8
# The least mean of the likenesses of place and colors, each in 0..1, of the same person in two
# neighboring frames. Someone half of whose mask overlaps needs half of the colors.
LIKE = 0.5
# The least likeness of the colors alone, where a person was hidden or moved far. In the drawn clips
# it is above 0.95 for 95 % of the pairs of one person, and below 0.83 for 95 % of other pairs.
SAME_COLORS = 0.85


@dataclass
class Look:
    """A person in a frame."""
    mask: np.ndarray                    # (h, w) bool, reduced
    histogram: np.ndarray               # (LEVELS^3,), of its colors; sum 1
    kernel: np.ndarray | None           # (C,), unit length; None: the system has none


@dataclass
class Track:
    """A person with an id, as seen last."""
    id: int
    look: Look
    time: float                         # seconds
    frame: int


class Tracker:
    """Gives the people of a video their ids, frame by frame: 1, 2, .. in the order in which they
    appear, the better score first."""

    def __init__(self):
        self.tracks = []
        self.count = 0                  # ids so far
        self.frame = 0
        self.picture = None             # the last frame, gray and reduced

    def follow(self, photo: Image.Image, parsing: np.ndarray, time: float,
               kernels: np.ndarray | None = None) -> list[int]:
        """The ids of the people of the next frame.

        photo: RGB; parsing (N, H, W) uint8, a label map per person, best first; time: of the frame,
        in seconds; kernels (N, C) of unit length, or None.
        """
        self.frame += 1
        self.tracks = [track for track in self.tracks if time - track.time <= MEMORY
                       or self.frame - track.frame <= FRAMES]
        picture = reduce(np.asarray(photo.convert('L')))
        looks = describe(photo, parsing, kernels)
        known = self.match(looks, picture)
        self.picture = picture

        ids = []
        for n, look in enumerate(looks):
            track = known.get(n)
            if track is None:
                self.count += 1
                track = Track(self.count, look, time, self.frame)
                self.tracks.append(track)
            else:
                look.histogram = KEEP * track.look.histogram + (1 - KEEP) * look.histogram
                track.look = look
                track.time = time
                track.frame = self.frame
            ids.append(track.id)
        return ids

    def match(self, looks: list[Look], picture: np.ndarray) -> dict[int, Track]:
        """{number of a person of the frame: its track}, without those who are new."""
        if not self.tracks or not looks:
            return {}
        before = [track.look for track in self.tracks]
        colors = like_colors(before, looks)                     # (tracks, people)
        places = self.like_places(before, looks, colors, picture)

        # People of the last frame are found by place and colors, others by colors alone: who has
        # been hidden comes back elsewhere.
        recent = np.array([track.frame == self.frame - 1 for track in self.tracks])
        pairs = choose(recent[:, None] * (places + colors) / 2, LIKE)
        rest = colors.copy()
        for track, person in pairs:
            rest[track] = 0
            rest[:, person] = 0
        pairs += choose(rest, SAME_COLORS)
        return {person: self.tracks[track] for track, person in pairs}

    def like_places(self, before: list[Look], looks: list[Look], colors: np.ndarray,
                    picture: np.ndarray) -> np.ndarray:
        """How much the places are alike, (tracks, people) in 0..1: IoUs of the masks, after the
        camera's motion, averaged with the cosines of kernels if the camera stood still."""
        still = overlaps([look.mask for look in before], looks)
        shift = camera_shift(self.picture, picture)
        if any(shift):
            panned = overlaps([move(look.mask, shift) for look in before], looks)
            # A person who walks looks like a pan, too. With the right guess, people of the same
            # colors overlap more.
            if best_sum(panned * colors) > best_sum(still * colors):
                return panned
        if any(look.kernel is None for look in (*before, *looks)):
            return still
        kernels = np.array([look.kernel for look in before])
        cosines = kernels @ np.array([look.kernel for look in looks]).T
        return (still + cosines) / 2


def choose(likeness: np.ndarray, least: float) -> list[tuple[int, int]]:
    """The pairs (row, column) of the assignment with the largest sum of likeness (N, M), among the
    pairs above `least`."""
    allowed = np.where(likeness > least, likeness, 0)
    rows, columns = linear_sum_assignment(allowed, maximize=True)
    return [pair for pair in zip(rows.tolist(), columns.tolist()) if allowed[pair]]


def best_sum(likeness: np.ndarray) -> float:
    """The sum of the best assignment."""
    return likeness[linear_sum_assignment(likeness, maximize=True)].sum()


# ---- what two frames have in common ------------------------------------------------------------


def describe(photo: Image.Image, parsing: np.ndarray,
             kernels: np.ndarray | None) -> list[Look]:
    """The people of a frame, see `Tracker.follow`."""
    pixels = reduce(np.asarray(photo)).astype(np.int64) * LEVELS // 256
    codes = pixels @ [LEVELS ** 2, LEVELS, 1]                   # (h, w)
    looks = []
    for n, labels in enumerate(parsing):
        mask = reduce(labels) > 0
        counts = np.bincount(codes[mask], minlength=LEVELS ** 3)
        kernel = None if kernels is None else kernels[n]
        looks.append(Look(mask, counts / max(1, counts.sum()), kernel))
    return looks


def reduce(values: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) -> every k-th pixel, at most SIDE on the long side."""
    step = -(-max(values.shape[:2]) // SIDE)
    return values[::step, ::step]


def like_colors(before: Sequence[Look], now: Sequence[Look]) -> np.ndarray:
    """Bhattacharyya coefficients (N, M) in 0..1 of the histograms."""
    first = np.sqrt([look.histogram for look in before])
    second = np.sqrt([look.histogram for look in now])
    return first @ second.T


def overlaps(masks: Sequence[np.ndarray], now: Sequence[Look]) -> np.ndarray:
    """IoUs (N, M) in 0..1 of masks of the last frame and of the people now."""
    return mask_ious(np.array(masks), np.array([look.mask for look in now]))


def camera_shift(before: np.ndarray, now: np.ndarray) -> tuple[int, int]:
    """How far (y, x) the content of a gray picture (h, w) has moved in the next, in pixels: at most
    half of each side.

    Phase correlation (Kuglin & Hines 1975): the spectra of both differ in phase alone, and the
    inverse transform of that difference has its peak at the shift.
    """
    # A window that falls to 0 at the edges: the transform continues a picture periodically.
    window = np.outer(np.hanning(before.shape[0]), np.hanning(before.shape[1]))
    first, second = (np.fft.rfft2((picture - picture.mean()) * window) for picture in (before, now))
    cross = second * first.conj()
    peaks = np.fft.irfft2(cross / (np.abs(cross) + 1e-9), before.shape)
    shift = np.unravel_index(peaks.argmax(), peaks.shape)
    # The second half of the rows and columns are shifts upwards and to the left.
    return tuple(int((s + side // 2) % side - side // 2) for s, side in zip(shift, before.shape))


def move(mask: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
    """A mask (h, w) moved by (y, x) pixels; what leaves the frame is lost."""
    moved = np.zeros_like(mask)
    rows, columns = mask.nonzero()
    rows = rows + shift[0]
    columns = columns + shift[1]
    inside = (0 <= rows) & (rows < mask.shape[0]) & (0 <= columns) & (columns < mask.shape[1])
    moved[rows[inside], columns[inside]] = True
    return moved
