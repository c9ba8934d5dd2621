"""Models that parse by example, and which of them a file holds.

What photos and test episodes need of a model, an `EOPNet`, a `POPNet` or a `UniParserByExample`:

    of users' photos, Pillow images, and label maps uint8 (H,W)

    learn(supports, masks) -> example                   what supports teach
    learned(example) -> [id]                            the classes that they could teach
    prepare(photo) -> input                             the network's
    outputs(input) -> out
    people(out, photo, example) -> Parsing              in the supports' labels

    of test episodes, photos uint8 (H,W,3) and labels uint8 (H,W)

    encode_query(photo) -> query                        what the network sees
    encode_support(photo, labels, fold) -> support      what it teaches
    predict_episode(query, support, c, size, heads)     -> {head: label map uint8 (H,W)}. k-way: c
                                                        is None, labels are the fold's; 1-way:
                                                        labels are 1 for the class c, and 0
"""
from oneshot.by_uniparser import UniParserByExample
from oneshot.backbone import read_weights
from oneshot.eopnet import EOPNet
from oneshot.popnet import POPNet
from util.checkpoints import name_command, read_checkpoint
from util.run import find_device


def load_model(path, device: str) -> EOPNet | POPNet | UniParserByExample:
    """The model of a file: of oneshot train, of the authors, or of UniParser. It is in eval
    mode. FileNotFoundError; ValueError for any other file."""
    device = find_device(device)
    state = read_checkpoint(path)
    if name_command(state, 'oneshot') and not name_command(state, 'uniparser'):
        return UniParserByExample.from_pretrained(path, device)
    kind = POPNet if is_popnet(state, path) else EOPNet
    return kind.from_pretrained(path, device)


def is_popnet(state: dict, path) -> bool:
    """Whether a file, as read, is one of POPNet."""
    if 'format' in state:
        config = state.get('config')
        return isinstance(config, dict) and config.get('system') == POPNet.system
    return POPNet.sign in read_weights(path)
