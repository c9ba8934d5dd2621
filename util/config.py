"""UniParser's settings: one flat dataclass whose defaults are the paper's text on MHPv2.0, and
presets of differences.

Beside each field stand its default, its one-line help and its limits. Every field is a flag of
`train.py`; those of INFERENCE are flags of `infer.py`, too. The two neighbors declare their own
settings with the same `setting`.
"""
import difflib
from dataclasses import dataclass, field, fields, replace

from util.cli import flag, outside


def setting(default, help: str, low=None, high=None, choices: tuple | None = None):
    """A dataclass field with its one-line help and its limits: numbers from low to high, or some
    choices."""
    return field(default=default, metadata=dict(help=help, low=low, high=high, choices=choices))


def check_ranges(config) -> None:
    """Raises ValueError, which names the flag, if a setting is not one of its choices, or not from
    `low` to `high`. NaN is in no range. Each value of a tuple is checked."""
    for f in fields(config):
        value = getattr(config, f.name)
        choices = f.metadata['choices']
        if choices and value not in choices:
            names = ', '.join(map(str, choices))
            raise ValueError(f'{flag(f.name)} is {value!r:.40}; choose one of {names}')
        low = f.metadata['low']
        high = f.metadata['high']
        if low is None:
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if not low <= number <= high:
                raise ValueError(outside(flag(f.name), number, low, high))


KERNELS = 1, 3, 5, 7
MANY = 10 ** 6
PIXELS = 10000


@dataclass(frozen=True)
class Config:
    recipe: str = setting(
        'paper', "the paper's text, or the released code", choices=('paper', 'released'))

    # ---- data (Sec. 4.1)
    data: str = setting(
        'MHP', 'data set')
    num_classes: int = setting(
        58, 'K: parts, without the background', low=1, high=254)
    short_side: tuple = setting(
        (640, 800), 'shorter side of training images, in pixels; two values are a range, '
                    'other numbers choices',
        low=1, high=PIXELS)
    long_side: int = setting(
        1333, 'longest side of any image, in pixels', low=1, high=PIXELS)
    test_short_side: int = setting(
        800, 'shorter side of photos in inference, in pixels', low=1, high=PIXELS)
    flip: float = setting(
        0.5, 'probability of the mirror image', low=0, high=1)
    crop: float = setting(
        0.0, 'probability of a random crop', low=0, high=1)
    crop_min: float = setting(
        0.5, 'smallest share of the width, and of the height, of a crop', low=0, high=1)
    color_jitter: float = setting(
        0.0, 'strength of changes in brightness, contrast and saturation; 0 = off', low=0, high=1)
    degrade: float = setting(
        0.0, 'probability of each of four defects: gray, dark, blurred and compressed images',
        low=0, high=1)

    # ---- network
    backbone: str = setting(
        'resnet50', 'backbone: any ResNet of torchvision')
    pretrained: str = setting(
        'imagenet', "weights to begin with: 'imagenet', a file (torchvision's keys, or a "
                    "UniParser), or '' for none")
    # Set on loading: the stages that keep their ImageNet BatchNorm statistics.
    pretrained_stages: int = setting(
        0, 'stages that keep their ImageNet statistics; set on loading', low=0, high=4)
    dcn: bool = setting(
        True, 'modulated deformable convolution in stages 2-4 (Sec. 6.1)')
    light: bool = setting(
        False, 'UniParser_light: P2 alone instead of the pyramid (Sec. 4.2)')
    neck_channels: int = setting(
        256, 'channels of the pyramid and of F_neck', low=1, high=4096)
    compress_kernel: int = setting(
        1, 'kernel that compresses the pyramid (Sec. 3.1); released code: 3', choices=KERNELS)
    share_compression: bool = setting(
        True, 'one F_neck for all branches; released code: the category branch has its own')
    channels: int = setting(
        128, 'C, channels of kernels and features (Sec. 6.1)', low=1, high=4096)
    center_depth: int = setting(
        4, 'convolutions of the center branch before its output, the fifth (Sec. 3.2)',
        low=1, high=50)
    depth: int = setting(
        5, 'convolutions of the other two branches; released code: 4', low=1, high=50)
    category_coords: bool = setting(
        False, 'coordinates in the category branch, too; released code: yes')
    space: str = setting(
        'cosine', 'space of kernels and features (Tab. 4 c)',
        choices=('cosine', 'inner', 'sigmoid_after', 'sigmoid_before'))
    fusion: str = setting(
        'index', 'fusion of people and categories (Tab. 4 d)', choices=('index', 'convs', 'multi'))

    # ---- targets (Secs. 3.2, 6.1)
    grid: int = setting(
        40, 'S: cells of the heat map along each side', low=2, high=1000)
    sigma: float = setting(
        0.2, "share of a person's height and width whose cells are positive", low=0, high=100)
    center_radius: int = setting(
        0, "largest distance of a positive cell from the barycenter's; 0 = any; released code: 1",
        low=0, high=1000)

    # ---- loss weights (Sec. 6.2); 0 switches a term off (Tabs. 4, 5)
    lambda_center: float = setting(
        1.0, 'weight of the center loss', low=0, high=MANY)
    # lambda_aux, for each of the three parts of Eq. (5).
    lambda_ins: float = setting(
        3.0, 'weight of the auxiliary loss of people', low=0, high=MANY)
    lambda_cate: float = setting(
        3.0, 'weight of the auxiliary loss of categories', low=0, high=MANY)
    lambda_neg: float = setting(
        3.0, 'weight of the auxiliary loss of absent categories', low=0, high=MANY)
    lambda_par: float = setting(
        3.0, 'weight of the parsing loss', low=0, high=MANY)
    lambda_metric: float = setting(
        1.0, 'weight of the metric loss', low=0, high=MANY)
    lambda_cross: float = setting(
        0.0, 'weight of a balanced cross-entropy of the categories; not in the paper',
        low=0, high=MANY)
    # Recipe released: only whether it is 0 counts.
    lambda_pull: float = setting(
        0.0, 'weight of the term that pulls a category together (Sec. 6.5, CIHP)', low=0, high=MANY)

    # ---- inference (Sec. 6.2)
    theta_center: float = setting(
        0.1, 'value that a center must exceed', low=0, high=1)
    theta_mask: float = setting(
        0.5, "value that the correlation of a person's pixel must exceed", low=0, high=1)
    theta_paint: float = setting(
        0.0,
        "value that the correlation (mixture: posterior) of a pixel's class must exceed; "
        '0 = theta-mask',
        low=0, high=1)
    theta_part: float = setting(
        0.3, 'value that the mean correlation of a part must exceed; from the released code',
        low=0, high=1)
    theta_same: float = setting(
        0.6, 'mask IoU above which two detections are the same person; 1 = never', low=0, high=1)
    peaks: int = setting(
        5, 'side of the square of cells in which a center is the maximum; 1 = every cell',
        choices=KERNELS)
    max_people: int = setting(
        100, 'people per photo, at most', low=1, high=255)
    score: str = setting(
        'center', 'score of a person: its center, or the clarity of its parts',
        choices=('center', 'parsing'))
    theta_score: float = setting(
        0.0, 'with --score parsing: smallest score of a person', low=0, high=1)
    theta_person: float = setting(
        0.0, "value that the clarity of a person's center and map must exceed; 0 = any",
        low=0, high=1)
    assign: str = setting(
        'correlation',
        "assignment of classes to a person's pixels: each alone, or by their shares in the "
        'person',
        choices=('correlation', 'mixture'))
    theta_side: float = setting(
        0.0, "lead in correlation that a left part's class must have over the right one's; smaller "
             'leads are unlabeled; 0 = any',
        low=0, high=2)
    whole: bool = setting(
        False, "keep pixels of a person that no class claims, as 255")
    flip_test: bool = setting(
        False, 'average the photo with its mirror image: twice the time')

    # ---- training (Secs. 4.1, 6.2)
    batch_size: int = setting(
        8, 'images per step, over all processes', low=1, high=MANY)
    accumulate: int = setting(
        1, 'passes per step, each with a share of its images', low=1, high=MANY)
    epochs: int = setting(
        12, 'passes over the training images', low=1, high=MANY)
    milestones: tuple = setting(
        (), 'epochs after which the learning rate is divided by 10; none = at 3/4 and 11/12',
        low=0, high=MANY)
    optimizer: str = setting(
        'sgd', 'optimizer', choices=('sgd', 'adamw'))
    lr: float = setting(
        6.25e-4, 'learning rate per image of the batch', low=0, high=1000)
    backbone_lr: float = setting(
        1.0, "factor on the backbone's learning rate", low=0, high=1000)
    schedule: str = setting(
        'step', 'schedule of the learning rate', choices=('step', 'cosine'))
    warmup: int = setting(
        500, 'steps until the learning rate is full', low=0, high=10 ** 9)
    weight_decay: float = setting(
        1e-4, 'weight decay', low=0, high=1000)
    clip: float = setting(
        35.0, 'largest norm of the gradients; 0 = any', low=0, high=10 ** 9)
    val_every: int = setting(
        1, 'epochs between two validations', low=1, high=MANY)
    val_images: int = setting(
        0, 'images of a validation; 0 = all', low=0, high=10 ** 9)
    workers: int = setting(
        4, 'processes that read images', low=0, high=1000)
    seed: int = setting(
        0, 'seed of all random numbers', low=0, high=2 ** 32)

    # ---- scenes of CCP, drawn ones, and COCO
    samples: int = setting(
        0, 'training images per epoch of CCP, COCO and synthetic; 0 = their default',
        low=0, high=10 ** 9)
    backgrounds: str = setting(
        '', 'CCP: folder of photos without people, for a fifth of the scenes')
    people: str = setting(
        '', 'CCP: folder of images/ and instances/, people without parts, for a tenth')
    tagged: str = setting(
        '', 'CCP: folder of label maps of further photos, written by tools.tagged')
    rare: float = setting(
        0.0, 'CCP: share below which a class counts as rare, and its people are drawn more often; '
             '0 = off',
        low=0, high=1)
    things: float = setting(
        0.0, 'CCP: share of scenes with blobs, mostly of clothes, that are nobody', low=0, high=1)
    coco: str = setting(
        '', 'CCP: folder of COCO, whose photos are mixed in')
    coco_share: float = setting(
        0.5, 'CCP: share of the photos of --coco among the images', low=0, high=1)
    licenses: str = setting(
        '', "licenses of COCO's photos: free, or ids such as 4,5; '' = all")
    parts: str = setting(
        '', "folder of label maps of COCO's people, written by tools.keypoints")
    pseudo: bool = setting(
        True, "train on people of COCO whose masks are marked pseudo_mask")

    def __post_init__(self):
        check_ranges(self)
        sides = self.short_side
        if not sides or len(sides) == 2 and sides[0] > sides[1]:
            given = ' '.join(map(str, sides)) or 'empty'
            raise ValueError(f'--short-side is {given}; give a range, the smaller value first, '
                             'such as 640 800, or one value, or several')
        if self.fusion != 'index' and (self.flip_test or self.assign == 'mixture'):
            raise ValueError('--flip-test and --assign mixture are for --fusion index, '
                             f'not {self.fusion}')

    def choose(self, paper, released):
        """The switch between the recipes. A difference that is more than a number stands beside it:
        first what the paper says, then what the released code does (released.py)."""
        return released if self.recipe == 'released' else paper


# What may change when a trained model is used.
INFERENCE = (
    'theta_center', 'theta_mask', 'theta_paint', 'theta_part', 'theta_same', 'theta_score',
    'theta_person', 'theta_side', 'peaks', 'max_people', 'score', 'assign', 'whole', 'flip_test',
    'test_short_side', 'long_side')


# -------------------------------------------------------------------------------------------------
# Presets: differences from the defaults


# Sec. 6.5: no term for absent categories, and one that pulls a category together.
CIHP = dict(
    data='CIHP', num_classes=19,
    lambda_neg=0.0, lambda_pull=1.0,
    epochs=75, milestones=(50, 65))

# What the released code has in place of the paper's text, as far as it is a number or a switch.
RELEASED = dict(
    recipe='released',
    short_side=(640, 672, 704, 736, 768, 800),
    compress_kernel=3, share_compression=False, depth=4, category_coords=True,
    center_radius=1,
    lambda_neg=2.0,
    theta_same=1.0)

# Drawn people, on a CPU in minutes.
SYNTHETIC = dict(
    data='synthetic', num_classes=6, samples=1600,
    short_side=(96,), long_side=128, test_short_side=96,
    backbone='resnet10', pretrained='', dcn=False,
    neck_channels=64, channels=32, depth=3, center_depth=3,
    center_radius=1,
    epochs=2, optimizer='adamw', lr=3.75e-4, schedule='cosine', warmup=50, workers=0)

CROWD = {
    **SYNTHETIC,
    'data': 'crowd', 'num_classes': 12,
    'center_radius': 0,
    'epochs': 1, 'batch_size': 4, 'lr': 7.5e-4}

# Photos of single people, composed into scenes.
CCP = dict(
    data='CCP', num_classes=19,
    short_side=(240, 320), long_side=320, test_short_side=320,
    color_jitter=0.3, crop=0.4, crop_min=0.35, degrade=0.05,
    backbone='resnet18', dcn=False,
    neck_channels=128, channels=64, depth=3, center_depth=3,
    center_radius=1,
    lambda_cross=1.0,
    score='parsing', theta_score=0.25, assign='mixture', theta_paint=0.45, theta_part=0.65,
    epochs=20, val_every=5, optimizer='adamw', lr=1.25e-4, backbone_lr=0.3,
    schedule='cosine', warmup=100, workers=1)

# CCP's scenes and COCO's photos (--coco), from a model of CCP's: for anybody's photos.
# weights/README.md says how the values were chosen.
PHOTOS = {
    **CCP,
    'short_side': (192, 352), 'long_side': 448, 'test_short_side': 448,
    'crop': 0.5, 'crop_min': 0.3,
    'theta_score': 0.4, 'theta_person': 0.47, 'theta_paint': 0.4, 'theta_side': 0.2, 'whole': True,
    'samples': 800, 'rare': 1.0, 'things': 0.2,
    'epochs': 12, 'val_every': 100, 'lr': 6e-5}

# COCO's people alone, or a file of parts. Sizes and inference are those of `photos`, the preset of
# the shipped weights, so that training may go on from them.
COCO = {
    **PHOTOS,
    'data': 'COCO',
    'samples': 0, 'rare': 0.0, 'things': 0.0,
    'epochs': 20, 'val_every': 5, 'lr': 1.25e-4}

PRESETS = {
    'mhp': {},
    'cihp': CIHP,
    'densepose': dict(data='DensePose', num_classes=14),
    'ccp': CCP,
    'photos': PHOTOS,
    'coco': COCO,
    'synthetic': SYNTHETIC,
    'crowd': CROWD,
    'mhp_released': {
        **RELEASED,
        'theta_center': 0.2,
        'epochs': 36},
    'cihp_released': {
        **CIHP, **RELEASED,
        'backbone': 'resnet101', 'light': True,
        'lambda_center': 0.2, 'lambda_neg': 0.0,
        'theta_part': 0.275,
        'lr': 2.25e-4, 'warmup': 0},
    'crowd_released': {
        **CROWD, **RELEASED,
        'short_side': (96,),
        'depth': 3}}


def get_config(preset: str = 'mhp', **changes) -> Config:
    """Config of a preset with some fields changed; ValueError on unknown names and on values out of
    range."""
    if preset not in PRESETS:
        raise ValueError(f'unknown preset {preset!r}; choose one of {", ".join(PRESETS)}')
    names = [f.name for f in fields(Config)]
    unknown = [name for name in changes if name not in names]
    if unknown:
        close = difflib.get_close_matches(unknown[0], names, 1)
        hint = f'; did you mean {close[0]!r}?' if close else ''
        raise ValueError(f'unknown setting {unknown[0]!r}{hint}')
    settings = dict(PRESETS[preset])
    # A learned fusion assigns classes itself: the mixture and its thresholds are for the index
    # fusion.
    if changes.get('fusion', 'index') != 'index' and settings.get('assign') == 'mixture':
        for name in ('assign', 'theta_paint', 'theta_part'):
            del settings[name]
    return replace(Config(), **{**settings, **changes})
