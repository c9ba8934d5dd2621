"""Models for torch.hub.

    model = torch.hub.load(REPO, 'uniparser')      # REPO: OWNER/NAME on GitHub; or a folder, with source='local'
    result = model.predict('photo.jpg')[0]
    torch.hub.help(REPO, 'schp')
"""
import sys
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path

dependencies = ['torch', 'torchvision', 'numpy', 'PIL', 'scipy', 'tqdm']
HERE = Path(__file__).resolve().parent
NAMES = {path.stem for path in HERE.glob('*.py')} | {'schp', 'oneshot', 'tools', 'util'}


def take_modules(ours):
    """Removes from sys.modules the modules with one of NAMES, ours or those of other programs -> {name: module}."""
    found = [name for name, module in sys.modules.items() if name.split('.')[0] in NAMES and
             Path(getattr(module, '__file__', None) or '.').resolve().is_relative_to(HERE) == ours]
    return {name: sys.modules.pop(name) for name in found}


def exists_elsewhere(name):
    """Whether `import name` finds a file outside this folder."""
    spec = PathFinder.find_spec(name, [p for p in sys.path if Path(p).resolve() != HERE])
    return spec is not None and spec.origin is not None


@contextmanager
def own_modules():
    """Inside, names such as `data` and `util` are this repository's. Afterwards a program's own files of these names
    are found again, imported before or not."""
    theirs = take_modules(ours=False)
    sys.path.insert(0, str(HERE))
    try:
        yield
    finally:
        sys.path.remove(str(HERE))
        kept = {name: module for name, module in take_modules(ours=True).items()
                if not exists_elsewhere(name.split('.')[0])}             # pickle and torch.compile look there
        sys.modules.update({**kept, **theirs})


with own_modules():
    from infer import WEIGHTS
    from oneshot import load_model
    from schp import SCHP
    from uniparser import UniParser
    from util.run import find_device


def __dir__():
    """What torch.hub.list shows."""
    return ['uniparser', 'schp', 'oneshot', 'dependencies']


def uniparser(path=str(WEIGHTS), device='cpu', **settings):
    """UniParser: every person in a photo, and every part of each, pixel by pixel.

        model = torch.hub.load(REPO, 'uniparser')
        result = model.predict('photo.jpg')[0]       # a path, Pillow image, array or tensor; or a list of these
        result.people[0].parts['hair'].mask          # bool (H, W); result.overlay(), result.save('results')

    Args:
        path (str): a file of train.py or of the authors; default: the weights that ship, 19 classes of CIHP.
        device (str): cpu, cuda, mps or auto.
        settings: thresholds and sizes of inference, such as theta_center=0.2 or test_short_side=480.

    Returns the model in eval mode and folded, for inference alone. ValueError or OSError where a file is not fit.
    """
    return UniParser.from_pretrained(path, device, **settings).fold()


def schp(path, labels=None, device='cpu'):
    """SCHP, or its SegFormer variant: every part of the person in a photo.

        model = torch.hub.load(REPO, 'schp', 'exp-schp-201908261155-lip.pth')
        labels = model.predict([photo])[0]           # RGB photo -> uint8 (H, W); model.labels names the classes

    Args:
        path (str): any released file of SCHP, or one of schp train.
        labels (str): lip, atr, pascal, cihp, merged or merged-sep; default: by the number of classes, 20 being lip.
        device (str): cpu, cuda, mps or auto.

    Returns the model in eval mode, its norms folded. ValueError or OSError where a file is not fit.
    """
    return SCHP.from_pretrained(path, labels, find_device(device)).fold()


def oneshot(path=str(WEIGHTS), device='cpu'):
    """One-shot parsing: a photo in the classes that a label map of another photo names.

        model = torch.hub.load(REPO, 'oneshot', 'eopnet.pt')
        labels = model.predict(photo, support, support_labels)        # uint8 (H, W), RGB photos

    Args:
        path (str): a file of oneshot train or of EOP-Net's authors; or of UniParser, without training (default: the
            weights that ship), whose model has learn(supports, masks) and people(outputs, photo, prototypes).
        device (str): cpu, cuda, mps or auto.

    Returns the model in eval mode. ValueError or OSError where a file is not fit.
    """
    return load_model(path, device)
