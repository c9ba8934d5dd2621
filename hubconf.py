"""Models for torch.hub, and for programs with files of their own called `data` or `util`.

    model = torch.hub.load(REPO, 'uniparser')    # REPO: OWNER/NAME, or a folder with source='local'
    result = model.predict('photo.jpg')[0]
    torch.hub.help(REPO, 'schp')

Installed with pip, the same functions are in a package:

    from uniparser_torch.hubconf import uniparser
    model = uniparser()
"""
import importlib
import sys
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path

dependencies = ['torch', 'torchvision', 'numpy', 'PIL', 'scipy', 'tqdm']
HERE = Path(__file__).resolve().parent
FILES = {path.stem for path in HERE.glob('*.py')} - {'__main__'}
NAMES = FILES | {'schp', 'oneshot', 'tools', 'util'}
# {name: module} of this repository, so that no file is loaded twice.
LOADED = {}


def take_modules(ours: bool) -> dict:
    """Takes the modules with one of NAMES out of sys.modules -> {name: module}.

    Args:
        ours: the modules of this folder, or those of other programs.
    """
    taken = {}
    for name, module in list(sys.modules.items()):
        path = Path(getattr(module, '__file__', None) or '.').resolve()
        if name.split('.')[0] in NAMES and path.is_relative_to(HERE) == ours:
            taken[name] = sys.modules.pop(name)
    return taken


def exists_elsewhere(name: str) -> bool:
    """Whether `import name` finds a file outside this folder."""
    spec = PathFinder.find_spec(name, [p for p in sys.path if Path(p).resolve() != HERE])
    return spec is not None and spec.origin is not None


@contextmanager
def own_modules():
    """Inside, names such as `data` and `util` are this repository's.

    Afterwards a program's own files of these names are found again, imported before or not.
    """
    theirs = take_modules(ours=False)
    before = take_modules(ours=True)
    sys.modules.update({**LOADED, **before})
    sys.path.insert(0, str(HERE))
    try:
        yield
    finally:
        sys.path.remove(str(HERE))
        LOADED.update(take_modules(ours=True))
        for name, module in LOADED.items():
            # pickle and torch.compile look for classes in sys.modules. A name that the program
            # may still want for a file of its own stays free.
            if name in before or not exists_elsewhere(name.split('.')[0]):
                sys.modules[name] = module
        sys.modules.update(theirs)


def load_module(name: str):
    """A module of this repository by its name here, such as 'oneshot.parse'. The neighbors are
    loaded when they are asked for: the files at the top import only each other and util/."""
    with own_modules():
        return importlib.import_module(name)


with own_modules():
    from infer import WEIGHTS
    from uniparser import UniParser


def __dir__():
    """What torch.hub.list shows."""
    return ['uniparser', 'schp', 'oneshot', 'dependencies']


def uniparser(path: str = str(WEIGHTS), device: str = 'cpu', **settings) -> UniParser:
    """UniParser: every person in a photo, and every part of each, pixel by pixel.

        model = torch.hub.load(REPO, 'uniparser')
        result = model.predict('photo.jpg')[0]   # a path, Pillow image, array, tensor, or a list
        result[0].select('hair')                 # bool (H, W), of the best person
        result.save('results')

    Args:
        path: a file of train.py or of the authors; default: the weights that ship, with the
            19 classes of CIHP.
        device: cpu, cuda, mps or auto.
        settings: thresholds and sizes of inference, such as theta_center=0.2 or
            test_short_side=480.

    Returns the model in eval mode and folded, for inference alone. ValueError or OSError where a
    file is not fit.
    """
    return UniParser.from_pretrained(path, device, **settings).fold()


def schp(path: str, labels: str | None = None, device: str = 'cpu'):
    """SCHP, or its SegFormer variant: every part of the person in a photo.

        model = torch.hub.load(REPO, 'schp', 'exp-schp-201908261155-lip.pth')
        result = model.predict('photo.jpg')[0]   # as UniParser's, with one person
        result.labels                            # uint8 (H, W); model.class_names names the ids

    Args:
        path: any released file of SCHP, or one of schp train.
        labels: lip, atr, pascal, cihp, merged or merged-sep; default: by the number of
            classes, 20 being lip.
        device: cpu, cuda, mps or auto.

    Returns the model in eval mode and folded. ValueError or OSError where a file is not fit.
    """
    return load_module('schp').load_model(path, labels, device)


def oneshot(path: str = str(WEIGHTS), device: str = 'cpu'):
    """One-shot parsing: a photo in the classes that a label map of another photo names.

        model = torch.hub.load(REPO, 'oneshot', 'eopnet.pt')
        result = model.predict(photo, support, support_labels)        # as UniParser's
        result.labels                            # uint8 (H, W), ids of support_labels

    Args:
        path: a file of oneshot train or of EOP-Net's authors; or of UniParser, without
            training (default: the weights that ship).
        device: cpu, cuda, mps or auto.

    Returns the model in eval mode. ValueError or OSError where a file is not fit.
    """
    return load_module('oneshot').load_model(path, device)
