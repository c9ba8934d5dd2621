"""A page on this computer: drop a photo, see its people and parts, download cut-outs, masks, JSON.

    python demo.py --weights weights/uniparser_ccp.pt exp-schp-201908261155-lip.pth --port 8000

The page serves this computer alone, asks nothing of the internet, and removes photos and results
when it ends. It needs Gradio: pip install gradio"""
import base64
import copy
import html
import io
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from util.files import USER_ERRORS, counted, explain, user_errors
from util.labels import LABEL_SETS, TARGETS, find_set
from util.photos import PhotoJob
from util.pictures import overlay, palette
from util.results import as_one_person, cutout_name, file_parts

# The neighbors are reached through hubconf, because files at the top do not import them.
parse = hubconf.load_module('oneshot.parse')
by_uniparser = hubconf.load_module('oneshot.by_uniparser')

ASSETS = Path(__file__).parent / 'assets'
NAMES = 'hair,face,top,skirt,arms,legs,shoes'   # of the classes of example_mask.png
LOCAL_ADDRESS = re.compile(rb'(http://)?(127\.0\.0\.1|localhost)(:\d+)?', re.IGNORECASE)
SHOWN = 900                                     # pixels of the long side of the picture
OWN = 'of the weights'                          # the label set that a network was trained for
STYLE = """
.picture svg {width: 100%; max-height: 75vh}
.picture path {fill: transparent; cursor: pointer}
.picture path:hover {fill: rgb(255 255 255 / 65%)}
.picture text {font-weight: bold; fill: white; stroke: black; stroke-width: 0.2em;
               paint-order: stroke; text-anchor: middle; pointer-events: none}
.picture p {margin: 4px 0}
.picture span {white-space: nowrap; margin-left: 10px}
.picture i {display: inline-block; width: 12px; height: 12px; margin-right: 4px;
            border: 1px solid black}
/* The choice of colors and numbers needs no answer of the program. */
body:has(.colors [value=people]:checked) .picture .parts {display: none}
body:has(.colors [value=parts]:checked) .picture .people {display: none}
body:has(.numbers input:not(:checked)) .picture text {display: none}
/* The room of the picture, also while there is none: what is below does not jump. */
.place {min-height: 420px}
/* In a narrow window the result comes after the photo, before the settings. */
@media (max-width: 767px) {
    .left {display: contents}
    .result {order: 1}
    .settings {order: 2}
}
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
    class_names: list            # empty: the classes are those of an example

    def settings(self) -> tuple[dict, dict, dict]:
        """How the page shows the label set, --theta-score and the inputs of an example, as options
        of Gradio."""
        try:
            find_set(self.class_names, TARGETS[0])
            targets = TARGETS
        except ValueError:
            # No table leads from these classes to others.
            targets = ()
        labels = dict(choices=[OWN, *targets], value=OWN, visible=bool(targets))
        config = self.model.config
        scored = self.system == 'uniparser' and config.score == 'parsing'
        theta = dict(visible=scored, value=config.theta_score if scored else 0)
        example = dict(visible=self.system != 'schp', open=self.system == 'oneshot')
        return labels, theta, example


def load(path: str, device: str, labels: str | None = None) -> Network:
    """A weights file of any system -> Network. labels: the label set of an SCHP file, or None."""
    system = find_system(read_checkpoint(path))
    if system == 'schp':
        model = hubconf.schp(path, labels, device)
        return Network(system, model, list(model.class_names))
    if system == 'oneshot':
        return Network(system, hubconf.oneshot(path, device), [])
    model = load_model(SimpleNamespace(weights=path), device)
    return Network('uniparser', model, model.class_names)


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
        number = len(np.unique(found.parsing[found.parsing > 0]))
        return counted(number, 'class', 'classes')


def choose_pipeline(network: Network, options, support: str | None = None,
                    mask: str | None = None, names: str | None = '') -> ParsingPipeline:
    """The ParsingPipeline of a network.

    Args:
        options: those of infer.py; its theta_score is for a UniParser alone.
        support, mask: paths of an example that names the classes. EOP-Net needs it, a UniParser
            takes it.
        names: 'a,b,c', the classes of the mask.
    """
    if network.system == 'schp':
        return OnePersonPipeline(network.model, options)
    if network.system == 'uniparser' and not (support or mask):
        # A copy that shares the weights: the next photo may have another threshold.
        model = copy.copy(network.model)
        model.config = replace(model.config, theta_score=options.theta_score)
        return ParsingPipeline(model, options)
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


def answer(gr, networks: dict, folder: str, max_size: int | None, progress: Callable,
           weights: str, photo: str | None, labels: str, theta_score: float, *example):
    """Yields what the page shows, first no results or a hint, and then the results: HTML, a list of
    people and parts, paths of the files to download, and {name: path} of the cut-outs.

    Args:
        gr: Gradio.
        networks: {name: Network}.
        folder: of all results.
        max_size: larger photos are reduced to this long side; None: none are.
        progress: progress(share, desc=words) is told what is being done.
        weights: the name of a network.
        photo: a path; None: there is no photo yet.
        labels: of the results, see infer.py; or OWN.
        theta_score: the threshold of a UniParser.
        example: support, mask and names of `choose_pipeline`.
    """
    network = networks[weights]
    hint = missing(network, photo, example)
    yield hint, gr.Dropdown(choices=[], value=None), None, {}
    if hint:
        return
    out = tempfile.mkdtemp(dir=folder)
    options = SimpleNamespace(out=out, only=None, maps=False, max_size=max_size,
                              labels=None if labels == OWN else labels, theta_score=theta_score)
    try:
        pipeline = choose_pipeline(network, options, *example)
        picture, cutouts, files = parse_photo(pipeline, photo, progress)
    except USER_ERRORS as error:
        # Folders of this computer are nothing for a page.
        text = explain(error)
        for path in filter(None, (photo, *example[:2])):
            text = text.replace(f'{Path(path).parent}{os.sep}', '')
        raise gr.Error(html.escape(text), title='error', duration=None,
                       print_exception=False) from None
    first = next(iter(cutouts), None)
    yield picture, gr.Dropdown(choices=list(cutouts), value=first), files, cutouts


def missing(network: Network, photo: str | None, example: tuple) -> str:
    """What the page waits for; '' where a photo can be parsed."""
    if not photo:
        return 'Drop a photo or click a sample.'
    if network.system == 'oneshot' and not any(example[:2]):
        return 'This network parses by example: give a support photo and its mask, press "Parse".'
    return ''


def parse_photo(pipeline: ParsingPipeline, path: str, progress: Callable) -> tuple:
    """Writes the files of infer.py --cutouts into the pipeline's folder. progress: see `answer`.

    Returns the HTML of the picture, {name: path of its cut-out} of people and parts, and the paths
    of the files to download.
    """
    name = Path(path).stem[:100]
    progress(0.1, desc='reading the photo')
    job = pipeline.read(PhotoJob(path, name))
    if job.error is not None:
        raise ValueError(job.error)
    progress(0.3, desc='parsing')
    job, = pipeline.parse([job])
    with pipeline.turn:
        found = pipeline.find(job.out, job.photo, Path(path).name)
        message = pipeline.report(job.out, found)
    progress(0.7, desc='writing the files')
    found.save(pipeline.folder, name, cutouts=True)
    people = [person.to_dict() for person in found]
    picture = draw_picture(job.photo, found.parsing, people, pipeline.class_names,
                           message, found.colors)
    parts = file_parts(pipeline.class_names)
    cutouts = list_cutouts(pipeline.folder / f'{name}_cutouts', people, parts)
    return picture, cutouts, list_files(pipeline.folder, name)


def list_cutouts(folder: Path, people: list, parts: list) -> dict:
    """{title: path of the cut-out} of people and their parts, in the order of the picture. parts:
    of `file_parts`."""
    cutouts = {}
    for person in people:
        cutouts[title(person)] = str(folder / cutout_name(person['id']))
        for part in person['parts']:
            path = folder / cutout_name(person['id'], parts[part['id']])
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
                 message: str, colors: np.ndarray | None = None) -> str:
    """HTML of a message, the photo with colored parts and numbered people, and a legend. Under the
    mouse, the name and the area of a part replace the message. STYLE chooses between the colors of
    parts and of people.

    Args:
        photo: RGB.
        parsing: (N, H, W) uint8, of the photo's size.
        people: as in the JSON file, in the order of parsing.
        class_names: the background first.
        message: any text.
        colors: (256, 3) uint8, of the parts; None: `palette`.
    """
    scale = min(1, SHOWN / max(photo.size))
    width = max(1, round(photo.width * scale))
    height = max(1, round(photo.height * scale))
    maps = np.zeros((len(parsing), height, width), np.uint8)
    for small, labels in zip(maps, parsing):
        small[:] = Image.fromarray(labels).resize((width, height), Image.NEAREST)
    if colors is None:
        colors = palette(len(class_names) - 1)
    ids = np.arange(len(maps)) % 254 + 1          # of the colors of people
    paths = []
    numbers = []
    legend = []
    for person, labels, color in zip(people, maps, palette(256)[ids]):
        x, y = np.array(person['center']) * scale
        numbers.append(f'<text x="{x:.0f}" y="{y:.0f}" font-size="{max(width, height) / 25:.0f}">'
                       f'{person["id"]}</text>')
        legend.append(f'<p>{swatch(color, "people")}<b>{title(person)}</b> '
                      f'(score {person["score"]:.2f})')
        for part in person['parts']:
            share = show_share(part['area'], photo.width * photo.height)
            paths.append(draw_part(title(person, part), part, share, labels))
            # The space lets the line break here.
            legend.append(f' <span>{swatch(colors[part["id"]], "parts")}'
                          f'{html.escape(part["name"])} {share}</span>')
        legend.append('</p>')
    small = photo.resize((width, height), Image.BILINEAR)
    whole = (maps > 0) * ids[:, None, None].astype(np.uint8)
    images = [draw_image(overlay(small, maps, colors=colors, unknown=False), 'parts'),
              draw_image(overlay(small, whole, colors=palette(256)), 'people')]
    return (f'<div class="picture"><p class="about">{html.escape(message)}</p>'
            f'<svg viewBox="0 0 {width} {height}" shape-rendering="crispEdges">'
            f'{"".join(images + paths + numbers)}</svg>{"".join(legend)}</div>')


def show_share(area: int, whole: int) -> str:
    """Pixels of a part among those of the photo, in percent, for HTML."""
    share = f'{area / whole:.1%}'
    return '&lt;0.1%' if share == '0.0%' else share


def draw_part(name: str, part: dict, share: str, labels: np.ndarray) -> str:
    """SVG of a part, which the mouse finds. share: of the photo; labels (H, W): of the person."""
    # Names come from files of strangers.
    name = html.escape(name)
    return (f'<path data-part="{name}" d="{outline(labels == part["id"])}">'
            f'<title>{name}, {part["area"]:,} pixels, {share} of the photo</title></path>')


def draw_image(picture: Image.Image, kind: str) -> str:
    """SVG of a picture. kind: of its colors, parts or people."""
    return (f'<image class="{kind}" width="{picture.width}" height="{picture.height}" '
            f'href="{encode_jpeg(picture)}"/>')


def swatch(color: np.ndarray, kind: str) -> str:
    """A square of the legend. kind: of its colors, parts or people."""
    return '<i class="%s" style="background: #%02x%02x%02x"></i>' % (kind, *color)


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

    def parse(progress=gr.Progress(), *given):
        yield from respond(progress, *given)

    def choose(event: gr.EventData):
        return event.part

    def show_settings(name):
        labels, theta, example = networks[name].settings()
        return gr.Dropdown(**labels), gr.Slider(**theta), gr.Accordion(**example)

    with gr.Blocks(title='Multi-human parsing', analytics_enabled=False,
                   delete_cache=(600, 3600)) as blocks:
        cutouts = gr.State({})
        gr.Markdown('# Multi-human parsing\n'
                    'Finds every person in a photo and labels body parts and garments. Photos stay '
                    'on this computer.')
        first = next(iter(networks))
        labels_options, theta_options, example_options = networks[first].settings()
        with gr.Row():
            with gr.Column(scale=2, elem_classes='left'):
                with gr.Column():
                    photo = drop(str(ASSETS / 'street.jpg'), label='photo', height=360,
                                 sources=['upload', 'webcam', 'clipboard'])
                    gr.Examples([str(ASSETS / 'street.jpg'), str(ASSETS / 'example.jpg')], photo,
                                label='samples')
                with gr.Column(elem_classes='settings'):
                    weights = gr.Dropdown(list(networks), value=first, label='weights')
                    labels = gr.Dropdown(label='label set', **labels_options)
                    theta = gr.Slider(0, 1, step=0.01, **theta_options,
                                      label='least score of a person (--theta-score)')
                    with gr.Row():
                        gr.Radio(['parts', 'people'], value='parts', label='colors of',
                                 interactive=True, elem_classes='colors')
                        gr.Checkbox(True, label='numbers on people', interactive=True,
                                    elem_classes='numbers')
                    with gr.Accordion('by example', **example_options) as example:
                        support = drop(label='support photo')
                        mask = drop(label='its mask (PNG: ids or colors)')
                        names = gr.Textbox(label='names of the classes, such as hair,dress')
                        sample = [str(ASSETS / 'example.jpg'), str(ASSETS / 'example_mask.png'),
                                  NAMES]
                        gr.Examples([sample], [support, mask, names], label='samples')
                    button = gr.Button('Parse', variant='primary')
            with gr.Column(scale=3, elem_classes='result'):
                picture = gr.HTML(js_on_load=SCRIPT, elem_classes='place')
                part = gr.Dropdown([], label='person or part', allow_custom_value=True)
                cutout = gr.Image(label='cut-out', interactive=False, height=300,
                                  buttons=['download', 'fullscreen'])
                files = gr.File(label='files', file_count='multiple', interactive=False)
        given = [weights, photo, labels, theta, support, mask, names]
        answers = dict(fn=parse, inputs=given, outputs=[picture, part, files, cutouts],
                       show_progress_on=picture)
        gr.on([blocks.load, photo.change, labels.input, theta.release, button.click],
              trigger_mode='always_last', **answers)
        weights.input(show_settings, weights, [labels, theta, example]).then(**answers)
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
