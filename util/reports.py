"""The numbers of `evaluate.ParsingMetrics` as a table, a CSV file and a picture."""
import csv
import io
import math

import numpy as np

from util.charts import draw_curves, make_figure
from util.files import counted

NAMES = {                                         # keys of a result, and their names in the table
    'AP50': 'AP^p_50',
    'APvol': 'AP^p_vol',
    'PCP50': 'PCP_50',
    'mIoU': 'mIoU',
    'mean_accuracy': 'mean accuracy',
    'pixel_accuracy': 'pixel accuracy',
}


def percent(*values: float) -> str:
    """Numbers in percent, in columns of 7 characters; nan is a dash."""
    return ''.join('      -' if math.isnan(x) else f'{100 * x:7.2f}' for x in values)


def table(metrics, result: dict, class_names: tuple[str, ...] = (), cihp: bool = False) -> str:
    """The numbers as a table in percent. cihp: with AP^r and AP^h."""
    def rows(thresholds, names):
        head = 'IoU >      vol' + ''.join(f'{t:7.4g}' for t in thresholds)
        lines = [f'{name:7}' + percent(result[key + 'vol'], *result[key])
                 for key, name in names.items()]
        return [head, *lines, '']

    counts = (counted(result['images'], 'image'), counted(result['people'], 'person', 'people'),
              counted(result['detections'], 'detection'))
    lines = [', '.join(counts), '']
    names = {'AP': 'AP^p', 'PCP': 'PCP'}
    if cihp:
        names['APr'] = 'AP^r'
    lines += rows(metrics.thresholds, names)
    if cihp:
        lines += rows(metrics.human_thresholds, {'APh': 'AP^h'})
    lines.append('   '.join(f'{name} {percent(result[key]).strip()}' for key,
                            name in NAMES.items()))
    if class_names:
        lines += ['', *class_rows(result, class_names, cihp and not math.isnan(result['APrvol']))]
    return '\n'.join(lines)


def class_rows(result: dict, class_names: tuple[str, ...], parts: bool) -> list[str]:
    """IoU and accuracy of each class. parts: AP^r at 0.5 and its mean, too."""
    lines = [f'{"class":30}    IoU    acc' + (' AP^r_50 AP^r_vol' if parts else '')]
    by_class = [[math.nan] * 9] + result['APr_class']         # the background has no AP^r
    for c, name in enumerate(class_names):
        line = f'{c:3} {name:26}{percent(result["IoU"][c], result["accuracy"][c])}'
        if parts:
            line += f' {percent(by_class[c][4])}  {percent(float(np.mean(by_class[c])))}'
        lines.append(line)
    return lines


def per_image(metrics, ids: list[str]) -> str:
    """CSV of all detections.

    Their columns are the person (0, 1 .. of the image) with the largest IoU, that IoU, the score,
    and whether it is a true positive at 0.5. People that no detection found follow, without
    detection, IoU and score.
    """
    ranking = metrics.ranking()
    found_at_50 = metrics.found_at(0.5)
    hit = np.zeros(len(ranking.order), bool)      # of the detections, in the order of the images
    hit[ranking.order] = found_at_50
    found = np.zeros(len(ranking.num_parts), bool)            # of the people
    found[ranking.person[found_at_50]] = True

    text = io.StringIO()
    write = csv.writer(text, lineterminator='\n').writerow
    write(['image', 'detection', 'person', 'iou', 'score', 'true_positive_50'])
    detection = 0                                 # counted over all images
    person = 0
    for index in sorted(metrics.records):
        record = metrics.records[index]
        rows = zip(record['person'], record['iou'], record['scores'])
        for i, (best, iou, score) in enumerate(rows):
            match = [best, iou] if best >= 0 else ['', '']
            write([ids[index], i, *match, score, int(hit[detection])])
            detection += 1
        for i in range(len(record['num_parts'])):
            if not found[person]:
                write([ids[index], '', i, '', '', ''])
            person += 1
    return text.getvalue()


def plot(metrics, result: dict, title: str):
    """A figure: precision over recall at 0.5; AP^p and PCP over the threshold. title: of the
    data."""
    found = np.cumsum(metrics.found_at(0.5))
    recall = found / max(result['people'], 1)
    precision = found / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    figure = make_figure(9.2, 5.2)
    left, right = figure.subplots(1, 2)
    draw_curves(left, f'{title}: people found at IoU > 0.5', {
        'as ranked': (recall, precision),
        f'envelope, AP^p_50 = {100 * result["AP50"]:.2f}': (recall, envelope)})
    left.set(xlabel='recall', ylabel='precision')
    draw_curves(right, f'{title}: over the threshold', {
        f'AP^p, vol = {100 * result["APvol"]:.2f}': (metrics.thresholds, result['AP']),
        f'PCP, vol = {100 * result["PCPvol"]:.2f}': (metrics.thresholds, result['PCP'])})
    right.set(xlabel='IoU threshold')
    for axes in left, right:
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        # Below the axes the names cover no curve.
        axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.12), frameon=False)
    return figure


def mean_and_spread(values: list[float]) -> str:
    """'31.4 +- 0.8', with one sign: mean and standard deviation of a sample; or the one value."""
    if len(values) == 1:
        return f'{values[0]:.1f}'
    return f'{np.mean(values):.1f} \N{PLUS-MINUS SIGN} {np.std(values, ddof=1):.1f}'
