"""A page on this computer: drop a photo, see its people and parts, download cut-outs, masks, JSON.

    python demo.py --weights weights/uniparser_ccp.pt exp-schp-201908261155-lip.pth --port 8000

The page serves this computer alone, asks nothing of the internet, and removes photos and results
when it ends. It needs Gradio: pip install gradio"""
import base64
import html
import io
import os
import re
import shutil
import signal
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image
from torch import nn

import hubconf
from infer import WEIGHTS, ParsingPipeline, load_model
from util.checkpoints import find_system, read_checkpoint
from util.cli import Between, CommandParser, add_shared, filled, start
from util.files import USER_ERRORS, explain, user_errors
from util.labels import LABEL_SETS
from util.photos import PhotoJob
from util.pictures import overlay, palette
from util.results import as_one_person, cutout_name

# The neighbors are reached through hubconf, because files at the top do not import them.
parse = hubconf.load_module('oneshot.parse')
by_uniparser = hubconf.load_module('oneshot.by_uniparser')

ASSETS = Path(__file__).parent / 'assets'
NAMES = 'hair,face,top,skirt,arms,legs,shoes'   # of the classes of example_mask.png
LOCAL_ADDRESS = re.compile(rb'(http://)?(127\.0\.0\.1|localhost)(:\d+)?', re.IGNORECASE)
SHOWN = 900                                     # pixels of the long side of the picture
STYLE = """
.picture svg {width: 100%; max-height: 75vh}
.picture path {fill: transparent; cursor: pointer}
.picture path:hover {fill: rgb(255 255 255 / 65%)}
.picture p {margin: 4px 0}
.picture span {white-space: nowrap}
.picture i {display: inline-block; width: 12px; height: 12px; margin: 0 4px 0 10px;
            border: 1px solid black}
"""
SCRIPT = """
element.addEventListener('click', event => {
    if (event.target.dataset.part) trigger('click', {part: event.target.dataset.part})
})
element.addEventListener('mouseover', event => {
    if (event.target.dataset.part)
        element.querySelector('.about').textContent = event.target.textContent
})"""


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('--weights', type=filled, nargs='+', default=[str(WEIGHTS)],
                        help='weights files of any system (default: weights/uniparser_ccp.pt)')
    parser.add_argument('--labels', choices=list(LABEL_SETS),
                        help='label set of SCHP files: 20 classes, lip (default) or cihp; 9, '
                             'merged (default) or merged-sep')
    add_shared(parser, 'device')
    parser.add_argument('--max-size', type=Between(1, 10 ** 6), metavar='PIXELS',
                        help='reduce larger photos to this long side first')
    parser.add_argument('--port', type=Between(1, 65535), default=7860,
                        help='port of the page (default: %(default)s)')
    return parser.parse_args(argv)


# --------------------------------------------------------------------------------------------------
# Networks


@dataclass
class Network:
    """A weights file on the page."""
    system: str                  # uniparser | schp | oneshot
    model: nn.Module             # ready for photos

    @property
    def by_example(self) -> dict:
        """Whether the page shows and opens the inputs of an example, as options of Gradio."""
        return dict(visible=self.system != 'schp', open=self.system == 'oneshot')


def load(path: str, device: str, labels: str | None = None) -> Network:
    """A weights file of any system -> Network. labels: the label set of an SCHP file, or None."""
    system = find_system(read_checkpoint(path))
    if system == 'schp':
        return Network(system, hubconf.schp(path, labels, device))
    if system == 'oneshot':
        return Network(system, hubconf.oneshot(path, device))
    return Network('uniparser', load_model(SimpleNamespace(weights=path), device))


def load_networks(paths: list, device: str, labels: str | None = None) -> dict:
    """Weights files -> {name: Network}. The name is that of the file, or its path where two files
    have the same name."""
    names = [Path(path).name for path in paths]
    networks = {}
    for path, name in zip(paths, names):
        networks[path if names.count(name) > 1 else name] = load(path, device, labels)
    return networks


class OnePersonPipeline(ParsingPipeline):
    """Parses photos of one person with an SCHP, which does not separate people: the score is 1."""

    def prepare(self, photo):
        return photo

    def outputs(self, photos):
        return self.model.predict_maps(photos)

    def decode(self, labels, photo):
        return as_one_person(labels)

    def message(self, found):
        if not len(found.scores):
            return 'found no person'
        return f'{len(np.unique(found.parsing[found.parsing > 0]))} classes'


def choose_pipeline(network: Network, options, support: str | None = None,
                    mask: str | None = None, names: str | None = '') -> ParsingPipeline:
    """The ParsingPipeline of a network.

    Args:
        options: those of infer.py.
        support, mask: paths of an example that names the classes. EOP-Net needs it, a UniParser
            takes it.
        names: 'a,b,c', the classes of the mask.
    """
    if network.system == 'schp':
        return OnePersonPipeline(network.model, options)
    if network.system == 'uniparser' and not (support or mask):
        return ParsingPipeline(network.model, options)
    if not (support and mask):
        raise ValueError('an example is a support photo and its mask; give both')
    names = names or ''
    if names.endswith('.json'):
        raise ValueError('--names: give the names themselves here, such as hair,dress')
    supports, masks, classes = parse.read_supports([support], [mask])
    learner = network.model
    if network.system == 'uniparser':
        learner = by_uniparser.UniParserByExample(learner)
    example = learner.learn(supports, masks)
    return parse.ExamplePipeline(learner, options, example, parse.read_names(names, classes))


# --------------------------------------------------------------------------------------------------
# Photos


def answer(gr, networks: dict, folder: str, max_size: int | None, weights: str,
           photo: str | None, *example):
    """Yields what the page shows, first nothing and then the results: HTML, a list of people and
    parts, paths of the files to download, and {name: path} of the cut-outs.

    Args:
        gr: Gradio.
        networks: {name: Network}.
        folder: of all results.
        max_size: larger photos are reduced to this long side; None: none are.
        weights: the name of a network.
        photo: a path; None: there is no photo yet.
        example: support, mask and names of `choose_pipeline`.
    """
    yield '', gr.Dropdown(choices=[], value=None), None, {}
    if not photo:
        return
    out = tempfile.mkdtemp(dir=folder)
    options = SimpleNamespace(out=out, only=None, maps=False, max_size=max_size)
    try:
        pipeline = choose_pipeline(networks[weights], options, *example)
        picture, cutouts, files = parse_photo(pipeline, photo)
    except USER_ERRORS as error:
        # Folders of this computer are nothing for a page.
        text = explain(error)
        for path in filter(None, (photo, *example[:2])):
            text = text.replace(f'{Path(path).parent}{os.sep}', '')
        raise gr.Error(html.escape(text), title='error', duration=None,
                       print_exception=False) from None
    first = next(iter(cutouts), None)
    yield picture, gr.Dropdown(choices=list(cutouts), value=first), files, cutouts


def parse_photo(pipeline: ParsingPipeline, path: str) -> tuple:
    """Writes the files of infer.py --cutouts into the pipeline's folder.

    Returns the HTML of the picture, {name: path of its cut-out} of people and parts, and the paths
    of the files to download.
    """
    name = Path(path).stem[:100]
    job = pipeline.read(PhotoJob(path, name))
    if job.error is not None:
        raise ValueError(job.error)
    job, = pipeline.parse([job])
    with pipeline.turn:
        found = pipeline.find(job.out, job.photo, Path(path).name)
    found.save(pipeline.folder, name, cutouts=True)
    people = [person.to_dict() for person in found]
    picture = draw_picture(job.photo, found.parsing, people, pipeline.class_names,
                           pipeline.message(found))
    cutouts = list_cutouts(pipeline.folder / f'{name}_cutouts', people)
    return picture, cutouts, list_files(pipeline.folder, name)


def list_cutouts(folder: Path, people: list) -> dict:
    """{title: path of the cut-out} of people and their parts, in the order of the picture."""
    cutouts = {}
    for person in people:
        cutouts[title(person)] = str(folder / cutout_name(person['id']))
        for part in person['parts']:
            path = folder / cutout_name(person['id'], part['name'])
            cutouts[title(person, part)] = str(path)
    return cutouts


def list_files(folder: Path, name: str) -> list:
    """Paths of the results, and of a ZIP file of the whole folder beside it."""
    endings = '_overlay.jpg', '_parts.png', '_people.png', '.json'
    files = [str(folder / f'{name}{ending}') for ending in endings]
    archive = shutil.make_archive(str(folder.parent / f'{folder.name}_all' / name), 'zip', folder)
    return [*files, archive]


# --------------------------------------------------------------------------------------------------
# The picture


def title(person: dict, part: dict | None = None) -> str:
    return f'person {person["id"]}' + (f': {part["name"]}' if part else '')


def draw_picture(photo: Image.Image, parsing: np.ndarray, people: list, class_names: list,
                 message: str) -> str:
    """HTML of a message, the photo with colored parts, and a legend. Under the mouse, the name and
    the area of a part replace the message.

    Args:
        photo: RGB.
        parsing: (N, H, W) uint8, of the photo's size.
        people: as in the JSON file, in the order of parsing.
        class_names: the background first.
        message: any text.
    """
    scale = min(1, SHOWN / max(photo.size))
    width = max(1, round(photo.width * scale))
    height = max(1, round(photo.height * scale))
    maps = np.zeros((len(parsing), height, width), np.uint8)
    for small, labels in zip(maps, parsing):
        small[:] = Image.fromarray(labels).resize((width, height), Image.NEAREST)
    colors = palette(len(class_names) - 1)
    paths = []
    legend = []
    for person, labels in zip(people, maps):
        legend.append(f'<p><b>{title(person)}</b> (score {person["score"]:.2f})')
        for part in person['parts']:
            # Names come from files of strangers.
            name = html.escape(title(person, part))
            share = f'{part["area"] / (photo.width * photo.height):.1%}'
            paths.append(f'<path data-part="{name}" d="{outline(labels == part["id"])}">'
                         f'<title>{name}, {part["area"]:,} pixels, {share} of the photo</title>'
                         '</path>')
            color = '#%02x%02x%02x' % tuple(colors[part['id']])
            legend.append(f'<span><i style="background: {color}"></i>'
                          f'{html.escape(part["name"])} {share}</span>')
        legend.append('</p>')
    small = photo.resize((width, height), Image.BILINEAR)
    source = encode_jpeg(overlay(small, maps, colors=colors))
    return (f'<div class="picture"><p class="about">{html.escape(message)}</p>'
            f'<svg viewBox="0 0 {width} {height}" shape-rendering="crispEdges">'
            f'<image width="{width}" height="{height}" href="{source}"/>{"".join(paths)}</svg>'
            f'{"".join(legend)}</div>')


def encode_jpeg(picture: Image.Image) -> str:
    """Pillow picture -> an address that holds it."""
    file = io.BytesIO()
    picture.save(file, 'JPEG', quality=90)
    return f'data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}'


def outline(mask: np.ndarray) -> str:
    """bool (H, W) -> an SVG path of its pixels: a rectangle for every run in a row."""
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps > 0)
    ends = np.nonzero(steps < 0)[1]
    runs = zip(rows.tolist(), starts.tolist(), ends.tolist())
    return ''.join(f'M{x} {y}H{end}v1H{x}z' for y, x, end in runs)


# --------------------------------------------------------------------------------------------------
# The page


def import_gradio(folder: str):
    """Gradio, told to send nothing to anybody and to keep its files in this folder."""
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED='False',
        GRADIO_RUN_HISTORY='False',
        GRADIO_TEMP_DIR=str(folder),
        HF_HUB_DISABLE_TELEMETRY='1',
        HF_HUB_OFFLINE='1',
        DISABLE_TELEMETRY='1',
    )
    try:
        import gradio
    except ImportError:
        raise ModuleNotFoundError('the page needs Gradio: pip install gradio') from None
    if int(gradio.__version__.split('.')[0]) < 6:
        raise ModuleNotFoundError(f'the page needs Gradio 6, not {gradio.__version__}: '
                                  'pip install --upgrade gradio')
    return gradio


class LocalRequests:
    """ASGI middleware of the page: refuses what another site makes a browser ask.

    Its address may lead to this computer (DNS rebinding), so the headers Host and Origin must name
    this one. Any port will do: it may be forwarded.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope['type'] == 'lifespan' or self.is_local(scope['headers']):
            await self.app(scope, receive, send)
            return
        await send(dict(type='http.response.start', status=403,
                        headers=[(b'content-type', b'text/plain')]))
        await send(dict(type='http.response.body', body=b'this page serves this computer alone'))

    def is_local(self, headers: list) -> bool:
        """headers: pairs of bytes, as ASGI gives them."""
        addresses = [value for name, value in headers if name in (b'host', b'origin')]
        names = [name for name, value in headers]
        return b'host' in names and all(map(LOCAL_ADDRESS.fullmatch, addresses))


def uploaded_path(gr, folder: str, payload) -> str | None:
    """The path of a file that was dropped on the page, or of a sample: one in Gradio's folder.

    Who asks without a browser may name any file of this computer; whether it exists is no matter.
    """
    if not payload:
        return None
    path = os.path.realpath(payload.path or '')
    if not path.startswith(os.path.realpath(folder) + os.sep) or not os.path.isfile(path):
        raise gr.Error('the page takes photos that were dropped on it', print_exception=False)
    return path


def build(gr, networks: dict, respond, folder: str):
    """The page. networks: {name: Network}; respond: `answer` with its first arguments; folder: that
    of `import_gradio`."""
    # The project's own reader opens the dropped file, with its limits and its sentences.
    gr.Image.preprocess = lambda self, payload: uploaded_path(gr, folder, payload)
    drop = partial(gr.Image, sources=['upload', 'clipboard'])

    def choose(event: gr.EventData):
        return event.part

    with gr.Blocks(title='Multi-human parsing', analytics_enabled=False,
                   delete_cache=(600, 3600)) as blocks:
        cutouts = gr.State({})
        with gr.Row():
            with gr.Column(scale=2):
                photo = drop(label='photo', height=360)
                gr.Examples([str(ASSETS / 'street.jpg'), str(ASSETS / 'example.jpg')], photo,
                            label='samples')
                weights = gr.Dropdown(list(networks), value=next(iter(networks)), label='weights')
                shown = networks[weights.value].by_example
                with gr.Accordion('by example', **shown) as example:
                    support = drop(label='support photo')
                    mask = drop(label='its mask (PNG: ids or colors)')
                    names = gr.Textbox(label='names of the classes, such as hair,dress')
                    sample = [str(ASSETS / 'example.jpg'), str(ASSETS / 'example_mask.png'), NAMES]
                    gr.Examples([sample], [support, mask, names], label='samples')
                button = gr.Button('Parse', variant='primary')
            with gr.Column(scale=3):
                picture = gr.HTML(js_on_load=SCRIPT)
        with gr.Row():
            with gr.Column(scale=2):
                part = gr.Dropdown([], label='person or part')
                files = gr.File(label='files', file_count='multiple', interactive=False)
            with gr.Column(scale=3):
                cutout = gr.Image(label='cut-out', interactive=False, height=400,
                                  buttons=['download', 'fullscreen'])
        given = [weights, photo, support, mask, names]
        gr.on([photo.change, button.click], respond, given, [picture, part, files, cutouts])
        weights.change(lambda name: gr.Accordion(**networks[name].by_example), weights, example)
        picture.click(choose, None, part)
        part.change(lambda name, paths: paths.get(name), [part, cutouts], cutout)
    return blocks


def serve(gr, blocks, port: int):
    """Shows the page to this computer until Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Other fonts are loaded from the internet.
    theme = gr.themes.Default(font='sans-serif', font_mono='monospace')
    try:
        blocks.launch(server_name='127.0.0.1', server_port=port, share=False, max_file_size='50mb',
                      theme=theme, css=STYLE, footer_links=[], ssr_mode=False, quiet=True,
                      prevent_thread_lock=True,
                      app_kwargs=dict(middleware=[(LocalRequests, (), {})]))
    except OSError:
        raise OSError(f'--port {port} is used by another program; choose another') from None
    print(f'http://127.0.0.1:{port} (Ctrl-C ends)', flush=True)
    blocks.block_thread()


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors(), tempfile.TemporaryDirectory(prefix='parsing-') as folder:
        networks = load_networks(args.weights, args.device, args.labels)
        gr = import_gradio(folder)
        respond = partial(answer, gr, networks, folder, args.max_size)
        serve(gr, build(gr, networks, respond, folder), args.port)


if __name__ == '__main__':
    start(main)
