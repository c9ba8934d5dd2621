"""What demo.py shows: photos through the networks of all three systems, and a picture whose parts tell their names."""
import base64
import html
import io
import os
import shutil
import signal
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

import infer
import oneshot
import schp
from infer import ParsingPipeline
from uniparser import UniParser
from util.checkpoints import find_system, read_checkpoint
from util.files import USER_ERRORS, explain
from oneshot.parse import ExampleParser, read_names, read_supports
from oneshot.by_uniparser import UniParserByExample
from oneshot.use import as_one_person
from schp.parser import Parser
from util.photos import PhotoJob
from util.pictures import overlay, palette
from util.results import describe_people, file_part

SHOWN = 900                                               # pixels of the long side of the picture
STYLE = """
.picture svg {width: 100%; max-height: 75vh}
.picture path {fill: transparent; cursor: pointer}
.picture path:hover {fill: rgb(255 255 255 / 65%)}
.picture p {margin: 4px 0}
.picture span {white-space: nowrap}
.picture i {display: inline-block; width: 12px; height: 12px; margin: 0 4px 0 10px; border: 1px solid black}
"""
SCRIPT = """
element.addEventListener('click', event => {
    if (event.target.dataset.part) trigger('click', {part: event.target.dataset.part})
})
element.addEventListener('mouseover', event => {
    if (event.target.dataset.part) element.querySelector('.about').textContent = event.target.textContent
})"""


def import_gradio(folder):
    """Gradio, told to send nothing to anybody and to keep its files in this folder."""
    os.environ.update(GRADIO_ANALYTICS_ENABLED='False', GRADIO_RUN_HISTORY='False', GRADIO_TEMP_DIR=str(folder),
                      HF_HUB_DISABLE_TELEMETRY='1', HF_HUB_OFFLINE='1', DISABLE_TELEMETRY='1')
    try:
        import gradio
    except ImportError:
        raise ModuleNotFoundError('the page needs Gradio: pip install gradio') from None
    if int(gradio.__version__.split('.')[0]) < 6:
        raise ModuleNotFoundError(f'the page needs Gradio 6, not {gradio.__version__}: pip install --upgrade gradio')
    return gradio


def serve(gr, blocks, port):
    """Shows the page to this computer until Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    theme = gr.themes.Default(font='sans-serif', font_mono='monospace')      # others are loaded from the internet
    try:
        blocks.launch(server_name='127.0.0.1', server_port=port, share=False, max_file_size='50mb', theme=theme,
                      css=STYLE, footer_links=[], ssr_mode=False, quiet=True, prevent_thread_lock=True)
    except OSError:
        raise OSError(f'--port {port} is used by another program; choose another') from None
    print(f'http://127.0.0.1:{port} (Ctrl-C ends)', flush=True)
    blocks.block_thread()


# ---------------------------------------------------------------------------------------------------------------
# Networks


def load(path, device, labels=None):
    """A weights file of any system -> UniParser, Parser (SCHP or SegFormer) or EOPNet, ready for photos."""
    system = find_system(read_checkpoint(path))
    if system == 'schp':
        return schp.load_model(SimpleNamespace(weights=path, labels=labels, device=device))
    if system == 'oneshot':
        return oneshot.load_model(path, device)
    return infer.load_model(SimpleNamespace(weights=path), device)


def load_models(paths, device, labels=None):
    """{name: network} of weights files; the name is that of the file, or its path where two have the same."""
    names = [Path(path).name for path in paths]
    return {path if names.count(name) > 1 else name: load(path, device, labels) for path, name in zip(paths, names)}


def by_example(model):
    """Whether the page shows and opens the inputs of an example."""
    return dict(visible=not isinstance(model, Parser), open=isinstance(model, oneshot.EOPNet))


class PersonParser(ParsingPipeline):
    """Parses photos of one person with a Parser, which tells no people apart: its score is 1."""

    def __init__(self, model, args):
        model.class_names = list(model.labels)
        super().__init__(model, args)

    def prepare(self, photo):
        return photo

    def outputs(self, photos):
        return self.model.predict(photos)

    def decode(self, labels, photo):
        return as_one_person(labels, np.ones(labels.shape))

    def message(self, found):
        return f'{len(np.unique(found.parsing[found.parsing > 0]))} classes' if len(found.scores) else 'found no person'


def choose_parser(model, args, support=None, mask=None, names=''):
    """The ParsingPipeline of a model. support and mask, paths: an example that names the classes, which EOP-Net needs and a
    UniParser takes. names: 'a,b,c'."""
    if isinstance(model, Parser):
        return PersonParser(model, args)
    if isinstance(model, UniParser) and not (support or mask):
        return ParsingPipeline(model, args)
    if not (support and mask):
        raise ValueError('an example is a support photo and its mask; give both')
    names = names or ''
    if names.endswith('.json'):
        raise ValueError('--names: give the names themselves here, such as hair,dress')
    supports, masks, classes = read_supports([support], [mask])
    learner = UniParserByExample(model) if isinstance(model, UniParser) else model
    return ExampleParser(learner, args, learner.learn(supports, masks), read_names(names, classes))


# ---------------------------------------------------------------------------------------------------------------
# Photos


def answer(gr, models, folder, max_size, weights, photo, *example):
    """Yields what the page shows, first nothing and then the results: HTML, a list of people and parts, paths of the
    files to download, {name: path} of the cut-outs. example: see `choose_parser`."""
    yield '', gr.Dropdown(choices=[], value=None), None, {}
    if not photo:
        return
    options = SimpleNamespace(out=tempfile.mkdtemp(dir=folder), only=None, maps=False, max_size=max_size)
    try:
        picture, cutouts, files = parse_photo(choose_parser(models[weights], options, *example), photo)
    except USER_ERRORS as error:
        text = explain(error)
        for path in filter(None, (photo, *example[:2])):
            text = text.replace(f'{Path(path).parent}{os.sep}', '')
        raise gr.Error(html.escape(text), title='error', duration=None, print_exception=False) from None
    yield picture, gr.Dropdown(choices=list(cutouts), value=next(iter(cutouts), None)), files, cutouts


def parse_photo(parser, path):
    """Writes the files of infer.py --cutouts into the parser's folder and returns (HTML of the picture, {name: path of
    its cut-out} of people and parts, paths of the files to download)."""
    name, folder = Path(path).stem[:100], parser.folder
    job = parser.read(PhotoJob(path, name))
    if job.error is not None:
        raise ValueError(job.error)
    [job] = parser.parse([job])
    with parser.turn:
        found = parser.find(job.out, job.photo, Path(path).name)
    found.save(folder, name, cutouts=True)
    people = describe_people(found, parser.class_names)
    cutouts = {}
    for person in people:
        stem = f'{name}_person{person["id"]}'
        cutouts[title(person)] = str(folder / f'{stem}.png')
        cutouts.update({title(person, part): str(folder / f'{stem}_{file_part(part["name"])}.png')
                        for part in person['parts']})
    files = [str(folder / f'{name}{ending}') for ending in ('_overlay.png', '_parts.png', '_people.png', '.json')]
    every = shutil.make_archive(str(folder.parent / f'{folder.name}_all' / name), 'zip', folder)
    picture = draw_picture(job.photo, found.parsing, people, parser.class_names, parser.message(found))
    return picture, cutouts, [*files, every]


def title(person, part=None):
    return f'person {person["id"]}' + (f': {part["name"]}' if part else '')


def draw_picture(photo, parsing, people, class_names, message):
    """HTML: the message, which names and areas of the colored parts replace under the mouse, the photo, and a legend.
    people: those of `describe_people`, in the order of parsing (N, H, W)."""
    scale = min(1, SHOWN / max(photo.size))
    width, height = size = [max(1, round(side * scale)) for side in photo.size]
    maps = np.stack([np.asarray(Image.fromarray(labels).resize(size, Image.NEAREST)) for labels in parsing]
                    or [np.zeros((height, width), np.uint8)])
    colors, jpeg = palette(len(class_names) - 1), io.BytesIO()
    overlay(photo.resize(size, Image.BILINEAR), maps, colors=colors).save(jpeg, 'JPEG', quality=90)
    paths, legend = [], []
    for person, labels in zip(people, maps):
        legend.append(f'<p><b>{title(person)}</b> (score {person["score"]:.2f})')
        for part in person['parts']:
            name, share = html.escape(title(person, part)), f'{part["area"] / (photo.width * photo.height):.1%}'
            paths.append(f'<path data-part="{name}" d="{outline(labels == part["id"])}">'
                         f'<title>{name}, {part["area"]:,} pixels, {share} of the photo</title></path>')
            color = '#%02x%02x%02x' % tuple(colors[part['id']])
            legend.append(f'<span><i style="background: {color}"></i>{html.escape(part["name"])} {share}</span>')
        legend.append('</p>')
    source = base64.b64encode(jpeg.getvalue()).decode()
    return (f'<div class="picture"><p class="about">{html.escape(message)}</p>'
            f'<svg viewBox="0 0 {width} {height}" shape-rendering="crispEdges">'
            f'<image width="{width}" height="{height}" href="data:image/jpeg;base64,{source}"/>{"".join(paths)}</svg>'
            f'{"".join(legend)}</div>')


def outline(mask):
    """bool (H, W) -> an SVG path of its pixels: a rectangle for every run in a row."""
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps > 0)
    ends = np.nonzero(steps < 0)[1]
    return ''.join(f'M{x} {y}H{end}v1H{x}z' for y, x, end in zip(rows.tolist(), starts.tolist(), ends.tolist()))
