"""Draws the curves of one or several runs: losses, learning rate and metrics of the validation.

    python -m tools.plot runs/MHP
    python -m tools.plot runs/MHP runs/MHP-2 runs/lip --out compared.svg

It reads log.jsonl of each run, of train.py, `schp train` and `oneshot train`, also while the run
trains. There is a panel per quantity and a curve per run. Needs Matplotlib: pip install matplotlib
"""
import json
import math
from pathlib import Path

from util.charts import check_chart, draw_curves, make_figure, plain, write_chart
from util.cli import CommandParser, filled, start
from util.files import check_target, counted, naming, printable, user_errors

COLUMNS = 4                                       # panels in a row
# What a record of the log holds besides losses, rate and metrics.
LEFT_OUT = 'epoch', 'iter', 'cycle', 'images_per_second', 'memory'


def read_log(folder: str | Path) -> dict:
    """log.jsonl of a run -> {quantity: (steps, values)}, losses first, without losses that are 0 in
    every step; steps count from the first epoch on. ValueError or FileNotFoundError where there is
    no such log."""
    path = Path(folder) / 'log.jsonl'
    with naming(path, 'give the folders of runs'), open(path) as file:
        # The last line may still be written.
        records = [json.loads(line) for line in file if line.endswith('\n')]
        records = keep_last_run(records)
        # The last step of an epoch is always in the log.
        steps_per_epoch = max((record.get('iter', 1) for record in records), default=1)
        curves = {}
        for record in records:
            # A validation follows the last step of its epoch.
            step = (record['epoch'] - 1) * steps_per_epoch + record.get('iter', steps_per_epoch)
            for name, value in record.items():
                if name not in LEFT_OUT:
                    steps, values = curves.setdefault(name, ([], []))
                    steps.append(step)
                    values.append(float(value))
    if not curves:
        raise ValueError(f'{printable(path)} holds no step; wait until the run has logged one')
    # A loss that is switched off is 0. A metric may be, too, and stays.
    measured = {name for record in records if 'iter' not in record for name in record}
    return {name: curve for name, curve in curves.items() if name in measured or any(curve[1])}


def keep_last_run(records: list[dict]) -> list[dict]:
    """The records without those of steps that a run repeats, because it was killed and resumed."""
    kept = []
    for record in records:
        place = place_of(record)
        while kept and place_of(kept[-1]) > place:
            kept.pop()
        kept.append(record)
    return kept


def place_of(record: dict) -> tuple:
    """Sorts the records of a run; the validation of an epoch stands after its steps."""
    return record['epoch'], record.get('iter', math.inf)


def draw_runs(runs: dict):
    """{name of a run: its curves, see `read_log`} -> a figure with a panel per quantity."""
    names = list(dict.fromkeys(name for curves in runs.values() for name in curves))
    columns = min(COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure = make_figure(4 * columns, 3 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names):
        # A run without the quantity keeps its color.
        curves = {run: curves.get(name, ((), ())) for run, curves in runs.items()}
        lines = draw_curves(axes, name, curves, smooth=name != 'lr')
        axes.sharex(panels[0])
    for axes in panels[len(names):]:
        axes.remove()
    figure.supxlabel('step', fontsize='medium')
    if len(runs) > 1:
        figure.legend(lines, map(plain, runs), loc='outside upper left', ncols=columns)
    return figure


def parse_arguments(argv: list[str] | None = None):
    parser = CommandParser(__doc__)
    parser.add_argument('runs', nargs='+', metavar='RUN', help='folders of runs')
    parser.add_argument('--out', type=filled, default='curves.png', metavar='FILE',
                        help='FILE.png or FILE.svg (default: %(default)s)')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    with user_errors():
        check_chart(args.out)
        check_target(args.out)
        figure = draw_runs({run: read_log(run) for run in args.runs})
        write_chart(args.out, figure)
        print(f'{counted(len(args.runs), "run")} -> {printable(args.out)}')


if __name__ == '__main__':
    start(main)
