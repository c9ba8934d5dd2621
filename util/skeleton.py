"""What a person's 17 keypoints (COCO's) say about the parts of a person, in the classes of CIHP.

`can_be` answers for every pixel: which classes can be there? `CAN_BE` answers it for the keypoints
themselves; `tools.count_people` judges a model by it. "Left" is the person's own left, as in COCO
and CIHP.
"""
import numpy as np
from PIL import Image, ImageDraw

from util.datasets.cihp import CIHP
from util.datasets.coco_file import KEYPOINTS

CLASSES = CIHP.class_names
VISIBLE = 2                                       # v of a keypoint that can be seen

# Labels that can be at a visible keypoint. "arm", "leg" and "shoe" are those of its own side.
CAN_BE = {
    'nose': 'face sunglasses scarf',
    'eye': 'face sunglasses',
    'ear': 'face hair hat scarf',
    'shoulder': 'upper-clothes dress coat torso-skin scarf hair',
    'elbow': 'arm upper-clothes dress coat',
    'wrist': 'arm glove upper-clothes coat',
    'hip': 'upper-clothes dress coat pants skirt',
    'knee': 'leg pants dress skirt coat',
    'ankle': 'leg shoe socks pants',
}
SIDED = 'arm', 'leg', 'shoe'                      # classes with a left and a right
OUTER = 'elbow', 'wrist', 'knee', 'ankle'         # the keypoints at which sides are judged

# Lengths between joints, in heights of a standing adult.
LENGTHS = {
    ('shoulder', 'hip'): 0.30,
    ('hip', 'knee'): 0.25,
    ('knee', 'ankle'): 0.25,
    ('shoulder', 'elbow'): 0.17,
    ('elbow', 'wrist'): 0.15,
}
ACROSS = {'shoulder': 0.22, 'eye': 0.045, 'ear': 0.09}  # between left and right
# Half the width of a dressed limb, in heights. The mask bounds it, too.
WIDTHS = {
    ('shoulder', 'elbow'): 0.045,
    ('elbow', 'wrist'): 0.04,
    ('hip', 'knee'): 0.07,
    ('knee', 'ankle'): 0.05,
}


def class_ids(names: str, side: str | None = None) -> list[int]:
    """Ids of classes; with a side, "arm" is left-arm or right-arm."""
    return [CLASSES.index(f'{side}-{name}' if name in SIDED else name) for name in names.split()]


def split_name(keypoint: str) -> tuple[str | None, str]:
    """'left_elbow' -> 'left', 'elbow'; 'nose' -> None, 'nose'."""
    side, _, joint = keypoint.rpartition('_')
    return side or None, joint


def labels_at(keypoint: str) -> list[int]:
    """Ids of the classes that can be at a keypoint, such as 'left_elbow'."""
    side, joint = split_name(keypoint)
    return class_ids(CAN_BE[joint], side)


def side_of(label: int) -> str | None:
    """'left' or 'right' of an arm, leg or shoe; None for other classes and for 255."""
    name = CLASSES[label] if label < len(CLASSES) else ''
    side = name.split('-')[0]
    return side if name.split('-')[-1] in SIDED and side in ('left', 'right') else None


# ---- geometry ----------------------------------------------------------------------------------


class Body:
    """The keypoints of a person. points (17, 3): x, y in pixels and v."""

    def __init__(self, points: np.ndarray):
        self.points = dict(zip(KEYPOINTS, np.asarray(points, float)))
        self.height = self.standing_height()

    def at(self, name, least=VISIBLE):
        """(x, y) of a keypoint, or None where its v is less than `least`."""
        point = self.points[name]
        return point[:2] if point[2] >= least else None

    def middle(self, joint, least=1):
        """The middle of the left and the right joint, or the one that is given, or None."""
        found = [self.at(f'{side}_{joint}', least) for side in ('left', 'right')]
        found = [point for point in found if point is not None]
        return np.mean(found, 0) if found else None

    def standing_height(self):
        """Pixels that this person would have standing upright, from the lengths between the joints;
        0 if unknown. A limb that points to the camera looks short, so the mean of the two largest
        answers counts."""
        heights = []
        for (first, second), length in LENGTHS.items():
            for side in ('left', 'right'):
                heights.append(self.distance(f'{side}_{first}', f'{side}_{second}') / length)
        for joint, length in ACROSS.items():
            heights.append(self.distance(f'left_{joint}', f'right_{joint}') / length)
        heights = sorted(heights)
        return heights[-1] if heights[-2] == 0 else float(np.mean(heights[-2:]))

    def distance(self, first, second):
        """Pixels between two keypoints, 0 where one is not given."""
        first, second = self.at(first, 1), self.at(second, 1)
        if first is None or second is None:
            return 0.0
        return float(np.linalg.norm(first - second))

    def up(self):
        """The unit vector from hips to shoulders, or from shoulders to the head; else upwards in
        the photo."""
        hips = self.middle('hip')
        shoulders = self.middle('shoulder')
        head = self.middle('eye')
        for low, high in ((hips, shoulders), (shoulders, head)):
            if low is not None and high is not None and np.linalg.norm(high - low) > 1:
                return (high - low) / np.linalg.norm(high - low)
        return np.array([0.0, -1.0])


class Grid:
    """The pixels (h, w) on which distances are measured."""

    def __init__(self, shape):
        self.y, self.x = np.mgrid[:shape[0], :shape[1]].astype(np.float32)

    def to_point(self, point):
        """Distances (h, w) to a point, in pixels."""
        return np.hypot(self.x - point[0], self.y - point[1])

    def to_segment(self, first, second):
        """Distances (h, w) to the line between two points, in pixels."""
        along = np.subtract(second, first)
        share = self.along(first, along) / max(float(along @ along), 1e-6)
        share = share.clip(0, 1)
        across_x = self.x - first[0] - share * along[0]
        across_y = self.y - first[1] - share * along[1]
        return np.hypot(across_x, across_y)

    def along(self, origin, direction):
        """How far (h, w) each pixel lies from the origin along a vector, times the length of the
        vector."""
        return (self.x - origin[0]) * direction[0] + (self.y - origin[1]) * direction[1]

    def polygon(self, corners):
        """bool (h, w): inside a polygon, whose corners are put in order around their middle."""
        corners = np.asarray(corners)
        around = corners - corners.mean(0)
        corners = corners[np.argsort(np.arctan2(around[:, 1], around[:, 0]))]
        image = Image.new('1', self.x.shape[::-1])
        ImageDraw.Draw(image).polygon([tuple(corner) for corner in corners], fill=1)
        return np.array(image)


# ---- zones -------------------------------------------------------------------------------------


def can_be(points: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Which classes can be at each pixel of a person: bool (20, h, w).

    About a pixel without any the keypoints say nothing. points (17, 3) in pixels of mask (h, w)
    bool.
    """
    body = Body(points)
    grid = Grid(mask.shape)
    allowed = np.zeros((len(CLASSES), *mask.shape), bool)
    if body.height == 0:
        return allowed
    allow_torso(allowed, body, grid)
    allow_limbs(allowed, body, grid, ('shoulder', 'elbow', 'wrist'), 'arm',
                ('upper-clothes dress coat', 'upper-clothes dress coat'))
    allow_limbs(allowed, body, grid, ('hip', 'knee', 'ankle'), 'leg',
                ('pants skirt dress coat', 'pants'))
    allow_knees(allowed, body, grid)
    allow_hands(allowed, body, grid)
    allow_feet(allowed, body, grid)
    allow_head(allowed, body, grid)
    return allowed & mask


def allow(allowed, where, names, side=None, alone=False):
    """Adds classes to the pixels `where`; alone: no other class can be there."""
    if alone:
        allowed[:, where] = False
    for c in class_ids(names, side):
        allowed[c] |= where


def allow_torso(allowed, body, grid):
    """Tops between shoulders and hips; around the hips trousers and skirts, too."""
    shoulders = body.middle('shoulder')
    hips = body.middle('hip')
    tall = body.height
    if shoulders is None:
        return
    if hips is None:                              # the photo ends above them, or they are hidden
        hips = shoulders - 0.25 * tall * body.up()
    inside = grid.to_segment(shoulders, hips) < 0.06 * tall
    corners = [body.at(f'{side}_{joint}', 1)
               for joint in ('shoulder', 'hip') for side in ('left', 'right')]
    if all(corner is not None for corner in corners):
        inside |= grid.polygon(corners)
    # 0 at the shoulders, 1 at the hips.
    length = max(float(np.linalg.norm(hips - shoulders)), 0.1 * tall)
    depth = grid.along(shoulders, (hips - shoulders) / length) / length
    inside &= (depth > 0.05) & (depth < 1.15)
    allow(allowed, inside, 'upper-clothes dress coat')
    allow(allowed, inside & (depth < 0.5), 'torso-skin scarf hair')
    allow(allowed, inside & (depth > 0.75), 'pants skirt')


def allow_limbs(allowed, body, grid, joints, part, garments):
    """Capsules between the joints of both sides, whose upper and lower halves may have different
    garments. Where those of both sides are about equally near, the side is open, and only garments
    can be there."""
    near = {}
    for side in ('left', 'right'):
        near[side] = np.full(grid.x.shape, np.inf)
        for first, second, names in zip(joints, joints[1:], garments):
            start = body.at(f'{side}_{first}')
            end = body.at(f'{side}_{second}')
            if start is not None and end is not None:
                width = WIDTHS[first, second] * body.height
                distance = grid.to_segment(start, end) / width
                near[side] = np.minimum(near[side], distance)
                allow(allowed, distance < 1, names)
    for side, other in (('left', 'right'), ('right', 'left')):
        allow(allowed, (near[side] < 1) & (1.4 * near[side] < near[other]), part, side)


def allow_knees(allowed, body, grid):
    """Skirts, dresses and coats may hang down over the knees."""
    for side in ('left', 'right'):
        knee = body.at(f'{side}_knee')
        ankle = body.at(f'{side}_ankle')
        if knee is not None and ankle is not None:
            end = knee + 0.5 * (ankle - knee)
            width = WIDTHS['knee', 'ankle'] * body.height
            allow(allowed, grid.to_segment(knee, end) < width, 'skirt dress coat')


def allow_hands(allowed, body, grid):
    """A disc beyond each wrist: the arm, of which CIHP's hands are a part, or a glove."""
    for side in ('left', 'right'):
        elbow = body.at(f'{side}_elbow')
        wrist = body.at(f'{side}_wrist')
        if elbow is None or wrist is None:
            continue
        length = max(float(np.linalg.norm(wrist - elbow)), 1.0)
        hand = wrist + 0.06 * body.height * (wrist - elbow) / length
        allow(allowed, grid.to_point(hand) < 0.05 * body.height, 'arm glove', side)


def allow_feet(allowed, body, grid):
    """Below each ankle: shoe, bare foot (CIHP's leg) or sock. Where both ankles are about equally
    near, nothing is known."""
    feet = {}                                     # {side: below the ankle (h, w), distance (h, w)}
    for side in ('left', 'right'):
        ankle = body.at(f'{side}_ankle')
        knee = body.at(f'{side}_knee', 1)
        if ankle is None:
            continue
        down = np.array([0.0, 1.0]) if knee is None else ankle - knee
        down = down / max(float(np.linalg.norm(down)), 1.0)
        below = grid.along(ankle, down) > 0.015 * body.height
        feet[side] = below, grid.to_point(ankle)
    for side, (below, distance) in feet.items():
        others = [other[1] for name, other in feet.items() if name != side]
        nearest = np.min(others, 0) if others else np.inf
        inside = below & (distance < 0.11 * body.height) & (1.4 * distance < nearest)
        allow(allowed, inside, 'shoe leg socks', side, alone=True)


def allow_head(allowed, body, grid):
    """The face around nose and eyes; hair and hats above and around; the neck below."""
    seen = {name: body.at(name) for name in KEYPOINTS[:5]}
    seen = {name: point for name, point in seen.items() if point is not None}
    front = [point for name, point in seen.items() if 'ear' not in name]
    shoulders = body.middle('shoulder')
    up = body.up()
    wide = face_width(body)
    if not front:
        # From behind: the middle of the ears, or a point above the shoulders.
        if seen:
            middle = np.mean(list(seen.values()), 0)
        elif shoulders is not None and body.middle('hip') is not None:
            middle = shoulders + 0.15 * body.height * up
        else:
            return
        allow(allowed, grid.to_point(middle) < 0.8 * wide, 'hair hat', alone=True)
        return
    eyes = body.middle('eye', VISIBLE)
    eyes = front[0] if eyes is None else eyes
    high = grid.along(eyes, up) / wide            # 0 at the eyes, in widths of a face
    ball = grid.to_point(eyes) < 1.15 * wide
    allow(allowed, ball & (high < 0.9) & (high > -0.9), 'face hair hat sunglasses', alone=True)
    allow(allowed, ball & (high >= 0.75), 'hair hat', alone=True)
    if shoulders is not None:
        neck = (grid.to_segment(eyes, shoulders) < 0.45 * wide) & (high <= -0.8)
        allow(allowed, neck, 'face torso-skin scarf hair upper-clothes coat')
    core = np.min([grid.to_segment(front[0], point) for point in front], 0) < 0.22 * wide
    allow(allowed, core, 'face sunglasses', alone=True)


def face_width(body):
    """Width of the face in pixels, from the keypoints of the head, or the body's height."""
    wide = max(2.2 * body.distance('left_eye', 'right_eye'),
               body.distance('left_ear', 'right_ear'),
               1.2 * body.distance('nose', 'left_ear'),
               1.2 * body.distance('nose', 'right_ear'))
    if body.middle('shoulder') is None:
        return wide or 0.085 * body.height
    return float(np.clip(wide, 0.06 * body.height, 0.11 * body.height))
