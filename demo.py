"""A page on this computer: drop a photo, see its people and parts, download cut-outs, masks and JSON.

    python demo.py --weights weights/uniparser_ccp.pt exp-schp-201908261155-lip.pth --port 8000

The page serves this computer alone, asks nothing of the internet, and removes photos and results when it ends.
It needs Gradio: pip install gradio"""
import tempfile
from functools import partial
from pathlib import Path

from infer import WEIGHTS
from util.cli import Between, CommandParser, filled, start
from util.files import user_errors
from util.labels import LABEL_SETS
from util.page import SCRIPT, answer, by_example, import_gradio, load_models, serve

ASSETS = Path(__file__).parent / 'assets'
NAMES = 'hair,face,top,skirt,arms,legs,shoes'              # of the classes of example_mask.png


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('--weights', type=filled, nargs='+', default=[str(WEIGHTS)], help='of any system')
    parser.add_argument('--labels', choices=list(LABEL_SETS), help='of SCHP files with 20 or 9 classes, as for python -m schp')
    parser.add_argument('--device', default='auto', choices=['auto', 'cpu', 'cuda', 'mps'])
    parser.add_argument('--max-size', type=Between(1, 10 ** 6), metavar='PIXELS',
                        help='reduce larger photos to this long side first')
    parser.add_argument('--port', type=Between(1, 65535), default=7860)
    return parser.parse_args(argv)


def build(gr, models, parse):
    """The page. models: {name: network}; parse: `answer` with its first arguments."""
    gr.Image.preprocess = lambda self, payload: payload and payload.path     # util/files.py reads the dropped file
    drop = partial(gr.Image, sources=['upload', 'clipboard'])

    def choose(event: gr.EventData):
        return event.part

    with gr.Blocks(title='Multi-human parsing', analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        cutouts = gr.State({})
        with gr.Row():
            with gr.Column(scale=2):
                photo = drop(label='photo', height=360)
                gr.Examples([str(ASSETS / 'street.jpg'), str(ASSETS / 'example.jpg')], photo, label='samples')
                weights = gr.Dropdown(list(models), value=next(iter(models)), label='weights')
                with gr.Accordion('by example', **by_example(models[weights.value])) as example:
                    support = drop(label='support photo')
                    mask = drop(label='its mask (PNG: ids or colors)')
                    names = gr.Textbox(label='names of the classes, such as hair,dress')
                    gr.Examples([[str(ASSETS / 'example.jpg'), str(ASSETS / 'example_mask.png'), NAMES]],
                                [support, mask, names], label='samples')
                button = gr.Button('Parse', variant='primary')
            with gr.Column(scale=3):
                picture = gr.HTML(js_on_load=SCRIPT)
        with gr.Row():
            with gr.Column(scale=2):
                part = gr.Dropdown([], label='person or part')
                files = gr.File(label='files', file_count='multiple', interactive=False)
            with gr.Column(scale=3):
                cutout = gr.Image(label='cut-out', interactive=False, height=400, buttons=['download', 'fullscreen'])
        given = weights, photo, support, mask, names
        gr.on([photo.change, button.click], parse, list(given), [picture, part, files, cutouts])
        weights.change(lambda name: gr.Accordion(**by_example(models[name])), weights, example)
        picture.click(choose, None, part)
        part.change(lambda name, paths: paths.get(name), [part, cutouts], cutout)
    return blocks


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors(), tempfile.TemporaryDirectory(prefix='parsing-') as folder:
        models, gr = load_models(args.weights, args.device, args.labels), import_gradio(folder)
        serve(gr, build(gr, models, partial(answer, gr, models, folder, args.max_size)), args.port)


if __name__ == '__main__':
    start(main)
