"""The models that parse by example, and how a file chooses among them."""
from oneshot.by_uniparser import UniParserByExample
from oneshot.eopnet import EOPNet
from util.checkpoints import name_command, read_checkpoint
from util.run import find_device


def load_model(path, device):
    """An EOPNet or, from a file of UniParser, a UniParserByExample."""
    state, device = read_checkpoint(path), find_device(device)
    if name_command(state, 'oneshot') and not name_command(state, 'uniparser'):
        return UniParserByExample.from_pretrained(path, device)
    return EOPNet.from_pretrained(path, device)
