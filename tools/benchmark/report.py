"""The tables and charts of docs/speed.md, from docs/speed.json alone."""
from pathlib import Path

from tools.benchmark.peers import IMPORTS, SEMANTIC
from tools.benchmark.record import PROGRAM, by, read_record
from util.charts import draw_curves, make_figure, need_matplotlib, write_chart
from util.files import make_folder, printable

# File names of the charts of docs/speed.md.
PEOPLE_CHART = 'speed_people.png'
SCALE_CHART = 'speed_scale.png'

# {series of `scale`: name of its axis}
AXES = {'people': 'people in a photo', 'megapixels': 'megapixels of a photo',
        'crowd': 'megapixels, 13 people',
        'folder': 'photos in a folder', 'images': 'images in evaluate.py',
        'processes': 'processes'}
STEPS = 'network', 'load', 'preprocess', 'decode', 'overlay', 'JSON', 'save'

# What the sentences of docs/speed.md are about.
ORDINARY = 0.46                              # megapixels of an ordinary photo
LARGE = 12                                   # megapixels, at least, of a large one
GROUP = 3                                    # people whose photo gives the time of the network
GROWING = 'UniParser, R-50', 'UniParser, shipped model'          # pipelines for 1 and 10 people


def write_report(args):
    """Prints the tables and the facts; with --charts, also draws the charts."""
    content = read_record(args.json)
    if args.charts:
        need_matplotlib()
    for name, text in tables(content).items():
        print(f'{name}\n\n{text}\n')
    for name, text in facts(content).items():
        print(f'{name}: {text}')
    if args.charts:
        make_folder(args.charts)
        for name, figure in charts(content).items():
            write_chart(Path(args.charts, name), figure)
            print(printable(Path(args.charts, name)))


# --------------------------------------------------------------------------------------------------
# Tables


def tables(content: dict) -> dict[str, str]:
    """{name: Markdown table} of everything in a file of numbers."""
    found = {
        'infer': infer_table(content),
        'onnx': onnx_table(content),
        'peers': peer_table(rows_of(content, 'peers')),
        'schp': schp_table(content),
        'train': train_table(content),
        **gpu_tables(rows_of(content, 'gpu')),
        'machines': machine_table(content),
    }
    for series in AXES:
        found[series] = scale_table(rows_of_series(content, series), series)
    return {name: text for name, text in found.items() if text}


def sections(content: dict, command: str) -> dict[str, list[dict]]:
    """{flags as text: rows} of all runs of a command."""
    start = f'{PROGRAM} {command}'
    return {name.removeprefix(start).strip(): section['rows'] for name, section in content.items()
            if f'{name} '.startswith(f'{start} ')}


def rows_of(content: dict, command: str) -> list[dict]:
    """The rows of all runs of a command, one after the other."""
    return [row for rows in sections(content, command).values() for row in rows]


def rows_of_series(content: dict, series: str) -> list[dict]:
    return [row for row in rows_of(content, 'scale') if row['series'] == series]


def markdown(head: list[str], rows: list[list]) -> str:
    """A table; '' without rows."""
    if not rows:
        return ''
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def decimals(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 99.95:
        return f'{value:.0f}'
    if value >= 9.995:
        return f'{value:.1f}'
    return f'{value:.2f}'


def code(command: str, flags: str) -> str:
    """A command of this program in Markdown."""
    return f'`{f"{command} {flags}".strip()}`'


def giga(value: float) -> str:
    return f'{value / 1e9:.1f} G'


def infer_table(content: dict) -> str:
    lines = []
    for flags, rows in sections(content, 'infer').items():
        if '--onnx' in flags:
            continue
        steps = {row['step']: row for row in rows}
        network = steps['network']
        # With another --decode, a run has no time for the last column.
        if 'decode 10' not in steps:
            continue
        lines.append([code('infer', flags), by(network['size']),
                      giga(network['multiply_adds']), f'{network["cpu_ms"]:.0f} ms',
                      decimals(network['units']), f'{steps["decode 1"]["cpu_ms"]:.0f} ms',
                      f'{steps["decode 10"]["cpu_ms"]:.0f} ms'])
    head = ['command', 'input', 'multiply-adds', 'network', 'units', 'decoding 1 person',
            'decoding 10 people']
    return markdown(head, lines)


def onnx_table(content: dict) -> str:
    lines = []
    for flags, rows in sections(content, 'infer').items():
        steps = {row['step']: row for row in rows}
        if 'ONNX Runtime' in steps:
            onnx = steps['ONNX Runtime']
            network = steps['network']
            lines.append([code('infer', flags), by(onnx['size']), decimals(onnx['units']),
                          decimals(network['units'])])
    return markdown(['command', 'input', 'ONNX Runtime, units', 'torch in the same run, units'],
                    lines)


def peer_table(rows: list[dict]) -> str:
    counts = sorted({row['people'] for row in rows if not semantic(row)})
    lines = []
    for name in dict.fromkeys(row['pipeline'] for row in rows):
        mine = [row for row in rows if row['pipeline'] == name]
        by_count = {row['people']: row for row in mine}
        if semantic(mine[0]):
            by_count = dict.fromkeys(counts, mine[0])
        cells = []
        for key in ('cpu', 'memory'):
            cells += [decimals(by_count[count][key]) if count in by_count else '' for count in
                      counts]
        lines.append([name, mine[0]['input'], *cells])
    head = ['pipeline', 'input']
    head += [f'CPU s, {count} {"person" if count == 1 else "people"}' for count in counts]
    head += [f'GB, {count}' for count in counts]
    return markdown(head, lines)


def semantic(row: dict) -> bool:
    """Whether a pipeline of `peers` tells no people apart: its cost does not depend on them."""
    return row['pipeline'] in SEMANTIC


def scale_table(rows: list[dict], series: str) -> str:
    if not rows:
        return ''
    if 'network' in rows[0]:
        lines = [[f'{row["x"]:g}', *(f'{row[step]:.3f}' for step in STEPS), f'{row["cpu"]:.3f}',
                  around(row), decimals(row['memory'])] for row in rows]
        return markdown([AXES[series], *(f'{step}, s' for step in STEPS), 'all, CPU s',
                         'around the network', 'peak GB'], lines)
    lines = []
    for row in rows:
        count = row.get('photos', row['x'])
        lines.append([row['x'], decimals(row['wall']), decimals(row['cpu']),
                      decimals(count / row['wall']), decimals(row['memory'])])
    unit = 'images' if series == 'images' else 'photos'
    return markdown([AXES[series], 'seconds', 'CPU s', f'{unit}/s', 'peak GB'], lines)


def around(row: dict) -> str:
    """The time of all other steps in percent of the network's."""
    return f'{100 * (row["cpu"] / row["network"] - 1):.0f} %'


def schp_table(content: dict) -> str:
    lines = []
    for flags, rows in sections(content, 'schp').items():
        steps = {row['step']: row for row in rows}
        every = steps['all heads']
        lines.append([code('schp', flags), by(every['size']), giga(every['multiply_adds']),
                      f'{steps["plain ResNet-101"]["cpu_ms"]:.0f} ms', decimals(every['units']),
                      decimals(steps['folded, fusion']['units'])])
    return markdown(['command', 'crop', 'multiply-adds', 'the unit, plain ResNet-101',
                     'all heads, units', 'folded, fusion head alone, units'], lines)


def train_table(content: dict) -> str:
    lines = []
    for flags, rows in sections(content, 'train').items():
        rates = [decimals(row['rate']) for row in rows]
        lines.append([code('train', flags), by(rows[0]['batch']), *rates])
    return markdown(['command', 'batch', 'data alone, images/s', 'steps alone', 'both'], lines)


def gpu_tables(rows: list[dict]) -> dict[str, str]:
    """A table of each kind of row."""
    found = {}
    for kind, (head, cells) in GPU_TABLES.items():
        found[f'gpu {kind}'] = markdown(head, [cells(row) for row in rows if row['kind'] == kind])
    return found


def inference_cells(row: dict) -> list:
    return [f'{row["network"]} {by(row["size"])}', row['batch'], row['precision'], row['mode'],
            decimals(row['network_ms']), decimals(row['floor_ms']), decimals(row['photo_ms']),
            decimals(row['memory'])]


def training_cells(row: dict) -> list:
    return [row['step'], by(row['batch']), row['precision'], decimals(row['rate']),
            decimals(row['memory'])]


def label_cells(row: dict) -> list:
    return [row['precision'], row['people'], row['expected_people'], f'{100 * row["same"]:.3f} %']


def floor_cells(row: dict) -> list:
    return [row['precision'], decimals(row['tflops'])]


# {kind of row: (head, its cells)}
GPU_TABLES = {
    'inference': (['network', 'batch', 'precision', 'mode', 'network, ms', 'floor, ms',
                   'a photo to labels, ms', 'peak GB'], inference_cells),
    'training': (['step of training', 'batch', 'precision', 'images/s', 'peak GB'], training_cells),
    'labels': (['precision', 'people', 'people on a CPU', 'pixels of the same class'], label_cells),
    'floor': (['precision', 'matrix product, TFLOP/s'], floor_cells),
}


def machine_table(content: dict) -> str:
    """Date and machine of every command."""
    lines = []
    for command, section in content.items():
        machine = section['machine']
        lines.append([f'`{command.removeprefix(PROGRAM).strip()}`', section['date'],
                      machine.get('gpu', machine['cpu']), machine['cores'], machine['threads'],
                      machine['torch']])
    return markdown(['command', 'date', 'machine', 'cores', 'threads', 'torch'], lines)


# --------------------------------------------------------------------------------------------------
# Sentences


def facts(content: dict) -> dict[str, str]:
    """{name: number with its unit} that the sentences of docs/speed.md state; without those whose
    rows a file of numbers lacks."""
    return {**step_facts(content), **limit_facts(content), **people_facts(content)}


def step_facts(content: dict) -> dict[str, str]:
    """The other steps beside the network: all in percent, and the three that grow as a multiple."""
    found = {}
    for row in rows_of_series(content, 'megapixels'):
        if row['x'] == ORDINARY:
            found[f'around {ORDINARY}'] = around(row)
        if row['x'] >= LARGE:
            found[f'large {row["x"]:g}'] = growing(row)
    for row in rows_of_series(content, 'crowd'):
        found[f'crowd {row["x"]:g}'] = growing(row)
    return found


def growing(row: dict) -> str:
    """Decoding, overlay and JSON together, as a multiple of the network's time."""
    return f'{(row["decode"] + row["overlay"] + row["JSON"]) / row["network"]:.1f}'


def limit_facts(content: dict) -> dict[str, str]:
    """Photos/s of the network alone, by the number of processes."""
    found = {}
    for row in rows_of_series(content, 'people'):
        if row['x'] == GROUP:
            for processes in (1, 2):
                found[f'limit {processes}'] = f'{processes / row["network"]:.1f}'
    return found


def people_facts(content: dict) -> dict[str, str]:
    """What a photo of ten people costs more than one of one person."""
    found = {}
    for name in GROWING:
        cpu = {row['people']: row['cpu'] for row in rows_of(content, 'peers')
               if row['pipeline'] == name}
        if {1, 10} <= cpu.keys():
            found[f'ten {name}'] = f'{100 * (cpu[10] / cpu[1] - 1):.0f} %'
    return found


# --------------------------------------------------------------------------------------------------
# Charts


def charts(content: dict) -> dict:
    """{file name: figure of Matplotlib} for the sections that a file of numbers has."""
    found = {}
    if rows_of(content, 'peers'):
        found[PEOPLE_CHART] = people_chart(rows_of(content, 'peers'))
    if rows_of(content, 'scale'):
        found[SCALE_CHART] = scale_chart(rows_of(content, 'scale'))
    return found


def people_chart(rows: list[dict]):
    """Seconds and memory of each pipeline against people."""
    figure = make_figure(8, 3.8)
    counts = sorted({row['people'] for row in rows if not semantic(row)})
    panels = figure.subplots(1, 2)
    for axes, key, title in zip(panels, ('cpu', 'memory'), ('CPU seconds a photo', 'peak GB')):
        lines = draw_curves(axes, title, peer_curves(rows, key, counts))
        for line in lines:
            if line.get_label() in SEMANTIC:
                line.set_linestyle(':')
        axes.set_xlabel('people in the photo')
        axes.set_xticks(counts)
        axes.set_ylim(bottom=0)
    figure.legend(handles=lines, loc='outside lower center', ncols=3, fontsize=8)
    return figure


def peer_curves(rows: list[dict], key: str, counts: list[int]) -> dict:
    curves = {}
    for name in dict.fromkeys(row['pipeline'] for row in rows):
        mine = [row for row in rows if row['pipeline'] == name]
        if name == IMPORTS:
            continue
        if semantic(mine[0]):
            curves[name] = (counts, [mine[0][key]] * len(counts))
        else:
            curves[name] = ([row['people'] for row in mine], [row[key] for row in mine])
    return curves


def scale_chart(rows: list[dict]):
    """Time above, memory below, one column for each series; both axes logarithmic."""
    # A crowd has too few points for a curve.
    names = [name for name in AXES
             if name != 'crowd' and any(row['series'] == name for row in rows)]
    figure = make_figure(2.4 * len(names), 4.2)
    panels = figure.subplots(2, len(names), squeeze=False)
    for column, name in enumerate(names):
        mine = [row for row in rows if row['series'] == name]
        xs = [row['x'] for row in mine]
        seconds = [row.get('wall', row['cpu']) for row in mine]
        draw_growth(panels[0][column], AXES[name], xs, seconds)
        line = draw_linear(panels[0][column], xs, seconds)
        draw_growth(panels[1][column], '', xs, [row['memory'] for row in mine])
    panels[0][0].set_ylabel('seconds')
    panels[1][0].set_ylabel('peak GB')
    figure.legend(handles=[line], loc='outside lower center', fontsize=8)
    return figure


def draw_linear(axes, xs: list, ys: list):
    """Draws and returns the line through the last point that grows as fast as x."""
    slope = ys[-1] / xs[-1]
    line, = axes.plot(xs, [slope * x for x in xs], '--', color='gray', linewidth=0.8,
                      label='linear')
    return line


def draw_growth(axes, title: str, xs: list, ys: list):
    draw_curves(axes, title, {'measured': (xs, ys)})
    axes.set_title(title, loc='left', fontsize=9)
    axes.set_xscale('log')
    axes.set_yscale('log')
    ticks = xs[:1]
    for x in xs:
        # Labels of points side by side would overlap.
        if x > 1.8 * ticks[-1]:
            ticks.append(x)
    axes.set_xticks(ticks, [f'{x:,g}' for x in ticks], fontsize=7)
    axes.minorticks_off()
    # A flat line must look flat.
    low, high = min(ys), max(ys)
    if high < 3 * low:
        axes.set_ylim(low / 2, high * 2)
    else:
        axes.set_ylim(low / 1.5, high * 1.5)
    ticks = [low, high] if high > 1.2 * low else [high]
    axes.set_yticks(ticks, [f'{tick:.3g}' for tick in ticks], fontsize=7)
