"""The tables and charts of docs/speed.md, from docs/speed.json alone."""
from pathlib import Path

from tools.benchmark.peers import IMPORTS, SEMANTIC
from tools.benchmark.record import PROGRAM, read_record
from util.charts import draw_curves, make_figure, need_matplotlib, write_chart
from util.files import make_folder, printable

# Charts of docs/speed.md: {name of the file: what it needs, see `charts`}.
PEOPLE_CHART = 'speed_people.png'
SCALE_CHART = 'speed_scale.png'

# {series of `scale`: name of its axis}
AXES = {'people': 'people in a photo', 'megapixels': 'megapixels of a photo',
        'crowd': 'megapixels, 13 people',
        'folder': 'photos in a folder', 'images': 'images in evaluate.py',
        'processes': 'processes'}
STEPS = 'network', 'load', 'preprocess', 'decode', 'overlay', 'JSON', 'save'


def write_report(args):
    """Prints the tables; with --charts, also draws the charts."""
    content = read_record(args.json)
    if args.charts:
        need_matplotlib()
    for name, text in tables(content).items():
        print(f'{name}\n\n{text}\n')
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
        'gpu': gpu_table(rows_of(content, 'gpu')),
        'machines': machine_table(content),
    }
    scale = rows_of(content, 'scale')
    for series in AXES:
        found[series] = scale_table([row for row in scale if row['series'] == series], series)
    return {name: text for name, text in found.items() if text}


def sections(content: dict, command: str) -> dict[str, list[dict]]:
    """{flags as text: rows} of all runs of a command."""
    start = f'{PROGRAM} {command}'
    return {name.removeprefix(start).strip(): section['rows'] for name, section in content.items()
            if f'{name} '.startswith(f'{start} ')}


def rows_of(content: dict, command: str) -> list[dict]:
    """The rows of all runs of a command, one after the other."""
    return [row for rows in sections(content, command).values() for row in rows]


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
        decoded = [name for name in steps if name.startswith('decode ')]
        one, many = (steps[name] for name in (decoded[0], decoded[-1]))
        lines.append([code('infer', flags), by(network['size']),
                      giga(network['multiply_adds']), f'{network["cpu_ms"]:.0f} ms',
                      decimals(network['units']), f'{one["cpu_ms"]:.0f} ms',
                      f'{many["cpu_ms"]:.0f} ms'])
    head = ['command', 'input', 'multiply-adds', 'network', 'units', 'decoding 1 person',
            'decoding 10 people']
    return markdown(head, lines)


def by(size: list[int]) -> str:
    return 'x'.join(map(str, size))


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


def gpu_table(rows: list[dict]) -> str:
    lines = [[f'{row["network"]} {by(row["size"])}', row['batch'], row['precision'], row['mode'],
              decimals(row['network_ms']), decimals(row['floor_ms']), decimals(row['photo_ms']),
              decimals(row['memory'])] for row in rows if row['kind'] == 'inference']
    return markdown(['network', 'batch', 'precision', 'mode', 'network, ms', 'floor, ms',
                     'a photo to labels, ms', 'peak GB'], lines)


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
        draw_growth(panels[1][column], '', xs, [row['memory'] for row in mine])
    panels[0][0].set_ylabel('seconds')
    panels[1][0].set_ylabel('peak GB')
    return figure


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
