"""Clothing-agnostic masks for virtual try-on: which pixels a try-on network draws anew.

The steps and sizes are those of the maskers of CatVTON (AutoMasker in model/cloth_masker.py) and
IDM-VTON (get_mask_location in gradio_demo/utils_mask.py). docs/tryon.md says what is the same and
what is not. Needs no torch; scipy is imported where it is needed, because tools/onnx_parse.py works
without it.
"""
from collections.abc import Iterable

import numpy as np

from util.files import UNKNOWN
from util.masks import box_of, flatten_people

KINDS = 'upper', 'lower', 'overall'               # of garments, of --agnostic

# Names of classes in all label sets, in small letters. What is in none of the lines is kept: hats,
# hair, faces, glasses, hands, gloves, bags, scarves, socks, feet and shoes.
UPPER = {'upper-clothes', 'coat', 'upper-body', 't-shirt', 'polo-shirt', 'sweater', 'singlet',
         'bikini/bra', 'tie', 'jacket/windbreaker/hoodie', 'other-upper-body-clothes'}
LOWER = {'pants', 'skirt', 'belt', 'lower-clothes', 'lower-body', 'shorts/swimshorts',
         'other-lower-body-clothes'}
WHOLE = {'dress', 'jumpsuits', 'one-piece', 'robe', 'other-full-body-clothes'}
NECK = {'torso-skin', 'neck'}
TORSO = UPPER | WHOLE | NECK
ARMS = {'left-arm', 'right-arm', 'arm'}
WRISTS = {'watch', 'wristband'}
LEGS = {'left-leg', 'right-leg', 'leg'}
BARE = {'upper': NECK | ARMS | WRISTS, 'lower': LEGS, 'overall': NECK | ARMS | WRISTS | LEGS}
WORN = {'upper': UPPER | WHOLE, 'lower': LOWER | WHOLE, 'overall': UPPER | LOWER | WHOLE}

# Classes that end a limb: where they are, no hand or foot is looked for at the end of the skin.
ENDS = {'left-hand', 'right-hand', 'hands', 'left-foot', 'right-foot', 'feet'}
HANDS = {'left-hand', 'right-hand', 'hands', 'glove', 'gloves'}
FEET = {'left-foot', 'right-foot', 'feet', 'socks', 'stockings', 'shoe',
        *(f'{side}-{kind}' for side in ('left', 'right')
          for kind in ('shoe', 'boot', 'highheel', 'sandal'))}

SIDE = 1024                                       # of a person, in pixels, at which masks are made
# Shares, of lengths: of the long side of the person's box.
GROWTH = 1 / 64
HAND = 1 / 9
SPECK = 1 / 100                                   # of the region: smaller parts of it do not grow
BORDER = 1 / 100                                  # a limb that ends so near the border is cut off


# ---- label sets and people ---------------------------------------------------------------------


def pick_ids(class_names: list[str], names: Iterable[str]) -> np.ndarray:
    """The ids of the classes with these names, in any case."""
    return np.array([c for c, name in enumerate(class_names) if name.lower() in names], np.uint8)


def check_garments(class_names: list[str], kind: str):
    """ValueError where none of the classes is a garment of the kind, one of KINDS."""
    if kind not in KINDS:
        raise ValueError(f'the kind of garments {kind!r} is unknown; choose one of '
                         f'{", ".join(KINDS)}')
    if not len(pick_ids(class_names, WORN[kind])):
        raise ValueError(f'the classes {", ".join(class_names[1:4])}, .. have no garments, which '
                         f'--agnostic {kind} needs; take the label set of CIHP, LIP or ATR')


def choose_people(parsing: np.ndarray, person: int | str = 'largest') -> list[int]:
    """Indices of the chosen people in a parsing (N, H, W), best first.

    person: an id, which counts from 1; 'largest', by visible pixels; or 'all'. [] where the photo
    has no such person. ValueError for another text.
    """
    if person == 'all':
        return list(range(len(parsing)))
    if person == 'largest':
        _, people = flatten_people(parsing)
        areas = np.bincount(people.ravel(), minlength=2)[1:]
        return [int(areas.argmax())] if areas.any() else []
    if isinstance(person, str):
        raise ValueError(f"the person {person!r} is unknown; give an id, 'largest' or 'all'")
    return [person - 1] if 1 <= person <= len(parsing) else []


def map_of_person(parsing: np.ndarray, person: int | str = 'largest') -> np.ndarray:
    """The label map (H, W) uint8 of the chosen person alone; zeros where the photo has no such
    person. A pixel of two people is the better one's, as in NAME_people.png."""
    parts, people = flatten_people(parsing)
    chosen = np.isin(people, [n + 1 for n in choose_people(parsing, person)])
    return np.where(chosen & (parts != UNKNOWN), parts, np.uint8(0))


# ---- the mask ----------------------------------------------------------------------------------


def agnostic_mask(parsing: np.ndarray, class_names: list[str], kind: str,
                  person: int | str = 'largest') -> np.ndarray:
    """Where garments of a kind are to be drawn anew -> bool (H, W).

    parsing      (N, H, W) uint8, the people, best first
    class_names  of its ids, the background first
    kind         'upper', 'lower' or 'overall': which garments
    person       see `choose_people`

    No pixel of anybody else is in the mask. Raises a ValueError for classes without such garments.
    """
    check_garments(class_names, kind)
    parts, people = flatten_people(parsing)
    mask = np.zeros(people.shape, bool)
    for n in choose_people(parsing, person):
        own = people == n + 1
        if own.any():
            mask |= mask_of_person(np.where(own, parts, 0), (people > 0) & ~own, class_names, kind)
    return mask


def mask_of_person(labels: np.ndarray, others: np.ndarray, class_names: list[str],
                   kind: str) -> np.ndarray:
    """The mask of `agnostic_mask` for one person.

    labels  (H, W) uint8, the person's, not empty
    others  (H, W) bool, pixels of other people
    """
    x, y, w, h = box_of(labels)
    side = max(w, h)
    # Wide enough for the mask to grow: it touches the photo's border only where the person does.
    margin = side // 8 + 8
    box = slice(max(0, y - margin), y + h + margin), slice(max(0, x - margin), x + w + margin)
    mask = np.zeros(labels.shape, bool)
    labels = labels[box]
    others = others[box]

    # Every `step`th pixel of large people: nobody sees the difference after the mask has grown.
    step = -(-side // SIDE)
    small = grow_region(labels[::step, ::step], others[::step, ::step], class_names, kind)
    height, width = labels.shape
    mask[box] = small.repeat(step, 0).repeat(step, 1)[:height, :width] & ~others
    return mask


def grow_region(labels: np.ndarray, others: np.ndarray, class_names: list[str],
                kind: str) -> np.ndarray:
    """The steps of a mask, for one person in a crop -> bool (h, w).

    labels (h, w) uint8, the person's; others (h, w) bool, pixels of other people
    """
    side = max(box_of(labels)[2:]) if labels.any() else 0
    face = without_specks(pick(labels, class_names, {'face'}))
    ends = limb_ends(labels, face, class_names, kind, side)
    worn = pick(labels, class_names, WORN[kind])
    bare = pick(labels, class_names, BARE[kind]) & ~ends
    kept = (labels > 0) & (labels != UNKNOWN) & ~worn & ~bare
    # These stay, however far the mask grows.
    fixed = face | ends | others

    # The garments and the skin beside them grow to cover wider garments, too, and the background
    # between arms and torso. What is kept stays ..
    region = without_specks(worn | bare, SPECK)
    region = hulls(dilate(region, max(1, round(side * GROWTH)))) & ~kept & ~others
    # .. but for a narrow rim where it meets the garments: a new garment may end elsewhere.
    region = soften(region, side // 25 | 1)
    region = dilate((region | worn | bare) & ~fixed, (side // 250 | 1) // 2)
    return region & ~fixed


def pick(labels: np.ndarray, class_names: list[str], names: set[str]) -> np.ndarray:
    """bool (H, W): pixels of the classes with these names."""
    return np.isin(labels, pick_ids(class_names, names))


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """bool (H, W): pixels with a pixel of the mask in the square of side 2 radius + 1 on them."""
    from scipy import ndimage
    return ndimage.maximum_filter(mask, 2 * radius + 1, mode='constant')


def soften(mask: np.ndarray, size: int) -> np.ndarray:
    """A mask (H, W) blurred and cut at 25 of 255, as in CatVTON: it grows by about size / 5 and its
    corners become round.

    size: of the kernel, odd, in pixels. Sigma is what OpenCV takes for a kernel of this size.
    """
    from scipy import ndimage
    sigma = 0.3 * ((size - 1) / 2 - 1) + 0.8
    values = ndimage.gaussian_filter(mask.astype(np.float32), sigma, mode='mirror',
                                     radius=size // 2)
    return values >= 25 / 255


def without_specks(mask: np.ndarray, share: float = 0.1) -> np.ndarray:
    """A mask (H, W) without the connected parts that have less than a share of the pixels of its
    largest: a stray pixel would shift its box, its end or its hull."""
    from scipy import ndimage
    numbers, _ = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(numbers.ravel(), minlength=2)
    areas[0] = 0
    return (areas >= share * areas.max())[numbers] & mask


def hulls(mask: np.ndarray) -> np.ndarray:
    """bool (H, W): the convex hull of each connected part of a mask, as in CatVTON."""
    from scipy import ndimage
    filled = np.zeros_like(mask)
    numbers, _ = ndimage.label(mask, np.ones((3, 3)))
    for number, place in enumerate(ndimage.find_objects(numbers), 1):
        filled[place] |= hull(numbers[place] == number)
    return filled


def hull(mask: np.ndarray) -> np.ndarray:
    """bool (h, w): pixels whose centers are in the convex hull of the squares of a mask's pixels.

    Each row of the mask has a pixel.
    """
    from scipy.spatial import ConvexHull
    # The corners of the first and of the last pixel of each row.
    rows = np.arange(len(mask))
    first = mask.argmax(1)
    last = mask.shape[1] - mask[:, ::-1].argmax(1)
    xs = np.concatenate([first, first, last, last])
    ys = np.concatenate([rows, rows + 1, rows, rows + 1])

    # Inside is on the inner side of every edge.
    x = np.arange(mask.shape[1]) + 0.5
    y = rows[:, None] + 0.5
    inside = np.ones(mask.shape, bool)
    for normal_x, normal_y, offset in ConvexHull(np.stack([xs, ys], 1)).equations:
        inside &= normal_x * x + normal_y * y + offset <= 1e-9
    return inside


# ---- hands and feet ----------------------------------------------------------------------------


def limb_ends(labels: np.ndarray, face: np.ndarray, class_names: list[str], kind: str,
              side: int) -> np.ndarray:
    """bool (H, W): the person's hands and bare feet, those at the ends of the skin to be redrawn.

    face (H, W) bool: pixels of the face; side: the long side of the person's box, in pixels

    Most label sets have no class for them, and neither DensePose nor a pose is asked. A hand is
    taken to be the end of an arm, as long as the face; likewise a foot. Skin that ends at the
    border of the photo has neither.
    """
    ends = pick(labels, class_names, ENDS)
    length = max(side * HAND, box_of(face)[3] if face.any() else 0)
    shoulders = find_shoulders(face, pick(labels, class_names, TORSO), length)
    if shoulders is None:
        return ends
    clothes = pick(labels, class_names, WORN['overall'])
    for limbs, covers in ((ARMS, HANDS), (LEGS, FEET)):
        # What covers the end of a limb is a class of its own, and kept anyway.
        if pick(labels, class_names, covers).any():
            continue
        for c in pick_ids(class_names, limbs & BARE[kind]):
            skin = without_specks(labels == c)
            for limb, shoulder in split_limb(skin, shoulders, class_names[c]):
                ends |= find_end(limb, clothes, shoulder, length, BORDER * side)
    return ends


def find_shoulders(face: np.ndarray, torso: np.ndarray,
                   length: float) -> list[tuple[float, float]] | None:
    """(x, y) of both shoulders: half a face below the chin, or below the collar where no face is
    seen, at the sides of the torso. None where neither is seen.

    face, torso (H, W) bool; length: of a face, in pixels
    """
    if not face.any() and not torso.any():
        return None
    x, y, width, height = box_of(face if face.any() else torso)
    top = y + height if face.any() else y
    columns = np.flatnonzero(torso[round(top + 0.2 * length):round(top + 0.8 * length)].any(0))
    if len(columns):
        left, right = columns[0], columns[-1]
    else:
        left, right = x + width / 2 - length, x + width / 2 + length
    return [(left, top + length / 2), (right, top + length / 2)]


def split_limb(skin: np.ndarray, shoulders: list[tuple[float, float]],
               name: str) -> list[tuple[np.ndarray, tuple[float, float]]]:
    """The limbs of a class in pixels skin (H, W), each with its shoulder (x, y).

    name: of the class. A left or right limb belongs to the nearer shoulder; in classes without a
    side, each pixel does.
    """
    ys, xs = np.nonzero(skin)
    if not len(ys):
        return []
    distances = np.array([np.hypot(xs - x, ys - y) for x, y in shoulders])
    if name.lower().startswith(('left', 'right')):
        return [(skin, shoulders[distances.min(1).argmin()])]
    nearer = distances.argmin(0)
    limbs = []
    for k in np.unique(nearer):
        limb = np.zeros_like(skin)
        limb[ys[nearer == k], xs[nearer == k]] = True
        limbs.append((limb, shoulders[k]))
    return limbs


def find_end(limb: np.ndarray, clothes: np.ndarray, shoulder: tuple[float, float], length: float,
             rim: float) -> np.ndarray:
    """bool (H, W): the pixels of a limb (H, W) within `length` of its end.

    A limb starts at the clothes (H, W), where they touch it next to the shoulder (x, y), and ends
    where the way from there through the limb is longest: at the hand, even if it is at the chin.
    It has no end where that place is within `rim` of the border. All in pixels.
    """
    from scipy.sparse.csgraph import breadth_first_order
    ys, xs = np.nonzero(limb)
    distance = np.hypot(xs - shoulder[0], ys - shoulder[1])
    touching = dilate(clothes, 2)[ys, xs]
    start = np.where(touching | ~touching.any(), distance, np.inf).argmin()
    way = breadth_first_order(neighbor_graph(limb), start, return_predecessors=False)
    end = way[-1]
    if len(way) < len(ys):
        # A sleeve, a strap or a bracelet divides the limb: the end is beyond it.
        distance[way] = -1
        end = distance.argmax()
    x = xs[end]
    y = ys[end]
    near = np.zeros_like(limb)
    if min(x, y, limb.shape[1] - 1 - x, limb.shape[0] - 1 - y) >= rim:
        close = np.hypot(xs - x, ys - y) <= length
        near[ys[close], xs[close]] = True
    return near


def neighbor_graph(mask: np.ndarray):
    """Which of the n pixels of a mask (H, W), numbered by rows, touch each other, at corners, too:
    sparse (n, n)."""
    from scipy.sparse import coo_array
    numbers = np.full(np.add(mask.shape, 1), -1)
    numbers[:-1, :-1][mask] = np.arange(mask.sum())
    pairs = []
    for there in ((0, 1), (1, -1), (1, 0), (1, 1)):
        # A pixel outside has the number -1; at the left border, so has its neighbor on the left.
        neighbors = np.roll(numbers, np.negative(there), (0, 1))
        both = (numbers >= 0) & (neighbors >= 0)
        pairs.append((numbers[both], neighbors[both]))
    a, b = np.concatenate(pairs, 1)
    graph = coo_array((np.ones(2 * len(a)), (np.append(a, b), np.append(b, a))),
                      shape=(mask.sum(), mask.sum()))
    return graph.tocsr()
