"""Damages files, kills writers and asks as a stranger, and counts what comes of it.

    python -m tests.robustness.attack --json tests/robustness/attack.json
    python -m tests.robustness.attack --tries 20 --seed 7

The same seed makes the same damages and requests. Whatever is not promised in docs/robustness.md
ends the attack with a traceback; its table has the counts of the first command.
"""
import asyncio
import json
import os
import pickle
import random
import signal
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image
from scipy.io import savemat

import demo
from oneshot.episodes import read_episodes
from schp import SCHP
from tests.robustness.test_faults import fork, mend_png
from util.checkpoints import read_checkpoint, write_checkpoint
from util.cli import Between, CommandParser, Ending, start
from util.config import Config
from util.datasets.ccp import mat_shape, read_mat
from util.files import naming, write_array, write_json, write_png
from util.images import read_labels, read_photo, read_prediction
from util.submissions import FORMS, PredictionWriter, open_predictions

torch.set_num_threads(1)
SIZE = 60, 40                                     # of pictures: width and height
IMAGES = 'a', 'b', 'c'                            # of a split
LABELS = np.random.default_rng(1).integers(0, 9, SIZE[::-1]).astype(np.uint8)


# ---- damaged files -----------------------------------------------------------------------------


def write_photo(path: Path):
    Image.fromarray(LABELS * np.uint8(28)).convert('RGB').save(path)


def write_maps(path: Path):
    Image.fromarray(LABELS).save(path)


def write_weights(path: Path, **options):
    torch.manual_seed(0)
    SCHP(('background', 'hat'), (48, 40), (), (1, 1, 1, 1), 4).save(path)
    torch.save(torch.load(path, weights_only=True), path, **options)


def write_old_weights(path: Path):
    write_weights(path, _use_new_zipfile_serialization=False)


def write_mat(path: Path):
    savemat(path, dict(groundtruth=LABELS, other=LABELS), do_compression=True)


def read_groundtruth(path: Path):
    with naming(path):
        if mat_shape(path, 'groundtruth') != LABELS.shape:
            raise ValueError('it has another size')
        read_mat(path, 'groundtruth')


def write_pickle(path: Path):
    path.write_bytes(pickle.dumps([[0, 1, 2], [3, np.int64(4), 5], [1, 1, 2]]))


def write_predictions(path: Path, form: str, label: int = 1):
    with PredictionWriter(path.parent, form) as writer:
        for image in IMAGES:
            writer.add(image, (np.full((1, 4, 6), label, np.uint8), [0.5]))


def read_predictions(folder: Path, form: str) -> set[int]:
    """The labels in all images."""
    predictions = open_predictions(folder, form, IMAGES)
    found = set()
    for image in IMAGES:
        for parsing in predictions.read(image, (4, 6), 300).parsing:
            found.update(np.unique(getattr(parsing, 'labels', parsing)).tolist())
    return found - {0}


# Kind of file: its name, who writes a good one, who reads it.
FILES = {
    'photo, JPEG': ('a.jpg', write_photo, read_photo),
    'photo, PNG': ('a.png', write_photo, read_photo),
    'photo, WebP': ('a.webp', write_photo, read_photo),
    'photo, GIF': ('a.gif', write_photo, read_photo),
    'photo, TIFF': ('a.tif', write_photo, read_photo),
    'photo, BMP': ('a.bmp', write_photo, read_photo),
    'label map, PNG': ('a.png', write_maps, read_labels),
    'predicted label map, PNG': ('a.png', write_maps, lambda path: read_prediction(path, SIZE[::-1])),
    'labels, .mat': ('a.mat', write_mat, read_groundtruth),
    'weights, zip': ('a.pt', write_weights, SCHP.from_pretrained),
    'weights, format before torch 1.6': ('a.pt', write_old_weights, SCHP.from_pretrained),
    'list of episodes, pickle': ('a.pkl', write_pickle, read_episodes),
    'predictions, instances.json': (
        'instances.json', lambda path: write_predictions(path, 'instances'),
        lambda path: read_predictions(path.parent, 'instances')),
    'predictions, results.txt': (
        'results.txt', lambda path: write_predictions(path, 'mhp'),
        lambda path: read_predictions(path.parent, 'mhp')),
}


def damage(rng: random.Random, content: bytes) -> bytes:
    """Bytes set, inserted, removed or cut off, most of them near the ends, where the structure of
    most files is."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 10])):
        at = min(int(rng.expovariate(1 / 200)), len(content) - 1)
        at = rng.choice([at, len(content) - 1 - at, rng.randrange(len(content))])
        kind = rng.randrange(8)
        if kind < 5:
            content[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        elif kind == 5:
            content[at:at] = rng.randbytes(rng.randrange(1, 20))
        elif kind == 6:
            del content[at:at + rng.randrange(1, 20)]
        elif rng.random() < 0.3:
            del content[at:]
        content = content or bytearray(b'x')
    return bytes(content)


def attack_file(rng: random.Random, tries: int, name: str, write, read) -> tuple[int, int]:
    """-> how many damaged files were read, and how many refused in one sentence with their name."""
    taken = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        write(path)
        read(path)
        whole = path.read_bytes()
        for _ in range(tries):
            content = damage(rng, whole)
            # With the right checksum the changed part of a PNG is read.
            content = mend_png(content) if path.suffix == '.png' and rng.random() < 0.7 else content
            path.write_bytes(content)
            try:
                read(path)
                taken += 1
            except (ValueError, OSError) as error:
                assert folder in str(error) and str(error).isprintable(), error
    return taken, tries - taken


# ---- kills -------------------------------------------------------------------------------------


def write_state(path: Path, label: int):
    write_checkpoint(path, 'schp', Config(), dict(weight=torch.full((1000,), label)))


def read_state(path: Path) -> set[int]:
    return set(read_checkpoint(path)['model']['weight'].tolist())


# Kind of output: its name, who writes it with a label, who reads its labels.
OUTPUTS = {
    'weights': ('a.pt', write_state, read_state),
    'PNG': ('a.png', lambda path, label: write_png(path, Image.new('L', (200, 200), label)),
            lambda path: set(np.unique(Image.open(path)).tolist())),
    'array': ('a.npy', lambda path, label: write_array(path, np.full((200, 200), label)),
              lambda path: set(np.unique(np.load(path)).tolist())),
    'JSON': ('a.json', lambda path, label: write_json(path, [label] * 1000),
             lambda path: set(json.loads(path.read_text()))),
    **{f'predictions, {form}': ('x', lambda path, label, form=form: write_predictions(path, form, label),
                                lambda path, form=form: read_predictions(path.parent, form))
       for form in FORMS},
}


def attack_writer(rng: random.Random, tries: int, name: str, write, read) -> tuple[int, int]:
    """A process that writes an output again and again, with other labels each time, is killed.

    -> how often the output was whole, all of it of one time, and how often it was refused.
    """
    taken = 0
    for _ in range(tries):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            reader, writer = os.pipe()

            def rewrite(path=path, writer=writer):
                write(path, 1)
                os.write(writer, b'!')
                for label in [2, 1] * 10 ** 6:
                    write(path, label)
            pid = fork(rewrite)
            os.read(reader, 1)
            time.sleep(rng.uniform(0, 0.02))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(reader), os.close(writer)
            try:
                assert len(read(path)) == 1, f'{name} is of two times'
                taken += 1
            except (ValueError, OSError) as error:
                assert folder in str(error), error
    return taken, tries - taken


# ---- requests ----------------------------------------------------------------------------------

QUICK = 100                                       # of these for each try of the others
LOCAL = '127.0.0.1', 'localhost'
HOSTS = (*LOCAL, 'evil.example', '127.0.0.1.evil.example', 'localhost.evil.example', '[::1]', '',
         'evil.example#localhost', 'localhost@evil.example', '127.0.0.2', 'evil.example\\localhost')


def draw_address(rng: random.Random) -> str:
    start = rng.choice(['', '', 'http://', 'https://', '//'])
    host = rng.choice([rng.choice(LOCAL), rng.choice(HOSTS)])
    end = rng.choice(['', ':7860', ':80', ':x', ':7860@evil.example', ':7860/', ':80,evil.example'])
    return start + host + end


def is_local(address: str) -> bool:
    """As the standard library reads an address."""
    parts = urlsplit(address if '//' in address else f'//{address}')
    return parts.hostname in LOCAL and parts.username is None


def attack_page(rng: random.Random, tries: int) -> tuple[int, int]:
    """Requests with strange headers -> how many reach the page, and how many are refused."""
    tries *= QUICK
    reached = []

    async def page(scope, receive, send):
        reached.append(scope)

    async def send(message):
        assert message.get('status', 403) == 403

    for _ in range(tries):
        headers = [(b'host', draw_address(rng).encode())]
        if rng.random() < 0.5:
            headers.append((rng.choice([b'origin', b'host', b'accept']), draw_address(rng).encode()))
        rng.shuffle(headers)
        asyncio.run(demo.LocalRequests(page)(dict(type='http', headers=headers), None, send))
    for scope in reached:
        asked = [value.decode() for name, value in scope['headers'] if name != b'accept']
        assert all(map(is_local, asked)), asked
    return len(reached), tries - len(reached)


def attack_uploads(rng: random.Random, tries: int) -> tuple[int, int]:
    """Paths in the place of dropped files -> how many the page takes, and how many it refuses."""
    tries *= QUICK
    gr = SimpleNamespace(Error=lambda text, **_: PermissionError(text))
    taken = 0
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder, 'own')
        for name in ('own/a.png', 'own/sub/b.png', 'own2/c.png', 'd.png'):
            Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
            Path(folder, name).write_bytes(b'x')
        Path(own, 'link.png').symlink_to('../d.png')
        words = 'a.png', 'b.png', 'c.png', 'd.png', 'sub', '..', '.', 'own', 'own2', 'link.png', '', '/etc', 'passwd'
        for _ in range(tries):
            path = os.sep.join(rng.choices(words, k=rng.randrange(1, 5)))
            path = rng.choice([path, os.path.join(own, path), f'{own}{path}'])
            try:
                found = demo.uploaded_path(gr, str(own), SimpleNamespace(path=path))
                assert os.path.realpath(found) in (str(own / 'a.png'), str(own / 'sub' / 'b.png')), path
                taken += 1
            except PermissionError:
                pass
    return taken, tries - taken


# ---- all ---------------------------------------------------------------------------------------


def attack(seed: int, tries: int) -> dict[str, tuple[int, int]]:
    """{what was attacked: (how often it was taken or whole, how often refused)}"""
    rows = {}

    def add(kind, function, *arguments):
        rows[kind] = function(random.Random(f'{seed} {kind}'), tries, *arguments)
        print(f'{kind}: {rows[kind][0]} taken, {rows[kind][1]} refused', flush=True)

    for kind, file in FILES.items():
        add(f'damaged {kind}', attack_file, *file)
    for kind, output in OUTPUTS.items():
        add(f'killed while it writes {kind}', attack_writer, *output)
    add('requests to the page', attack_page)
    add('paths as uploads of the page', attack_uploads)
    return rows


def table(rows: dict) -> str:
    """The table of docs/robustness.md."""
    lines = ['| attack | tries | read, whole or answered | refused |', '| --- | --- | --- | --- |']
    lines += [f'| {kind} | {taken + refused} | {taken} | {refused} |'
              for kind, (taken, refused) in rows.items()]
    return '\n'.join(lines) + '\n'


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('--tries', type=Between(1, 10 ** 6), default=100,
                        help='of each attack; a hundred times as many of the page (default: '
                             '%(default)s)')
    parser.add_argument('--seed', type=Between(0, 2 ** 32), default=0,
                        help='of the attacks (default: %(default)s)')
    parser.add_argument('--json', type=Ending('.json'), help='also write the counts to it')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    rows = attack(args.seed, args.tries)
    print(table(rows))
    if args.json:
        write_json(args.json, rows)


if __name__ == '__main__':
    start(main)
