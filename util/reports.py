"""The numbers of `evaluate.ParsingMetrics` as a table, a CSV file and a picture."""
import csv
import io
import math

import numpy as np
from PIL import Image

from util.pictures import draw_panel


def table(metrics, result, class_names=(), cihp=False):
    """The numbers as a table in percent."""
    def percent(*values):
        return ''.join('      -' if math.isnan(x) else f'{100 * x:7.2f}' for x in values)

    def rows(thresholds, *names):
        head = 'IoU >      vol' + ''.join(f'{t:7.4g}' for t in thresholds)
        return [head] + [f'{name:7}' + percent(result[key + 'vol'], *result[key]) for name, key in names]
    cihp_rows = [('AP^r', 'APr')] if cihp else []
    lines = [f'{result["images"]} images, {result["people"]} people, {result["detections"]} detections', '',
             *rows(metrics.thresholds, ('AP^p', 'AP'), ('PCP', 'PCP'), *cihp_rows), '']
    lines += [*rows(metrics.human_thresholds, ('AP^h', 'APh')), ''] if cihp else []
    names = dict(AP50='AP^p_50', APvol='AP^p_vol', PCP50='PCP_50', mIoU='mIoU', mean_accuracy='mean accuracy',
                 pixel_accuracy='pixel accuracy')
    lines += ['   '.join(f'{name} {percent(result[key]).strip()}' for key, name in names.items())]
    if class_names:
        cihp = cihp and not math.isnan(result['APrvol'])
        lines += ['', f'{"class":30}    IoU    acc' + (' AP^r_50 AP^r_vol' if cihp else '')]
        parts = [[math.nan] * 9] + result['APr_class']
        lines += [f'{c:3} {name:26}{percent(result["IoU"][c], result["accuracy"][c])}'
                  + (f' {percent(parts[c][4])}  {percent(float(np.mean(parts[c])))}' if cihp else '')
                  for c, name in enumerate(class_names)]
    return '\n'.join(lines)


def per_image(metrics, ids):
    """CSV of all detections: the person (0, 1 .. of the image) with the largest IoU, that IoU, the score, and
    whether it is a true positive at 0.5. People that no detection found follow, without detection, IoU and score."""
    order, _, person, _, num_parts = metrics.ranking()
    hit, found = np.zeros(len(order), bool), np.zeros(len(num_parts), bool)
    hit[order] = tp = metrics.found_at(0.5)
    found[person[tp]] = True
    hit, found, text = iter(hit.tolist()), iter(found.tolist()), io.StringIO()
    write = csv.writer(text, lineterminator='\n').writerow
    write(['image', 'detection', 'person', 'iou', 'score', 'true_positive_50'])
    for index in sorted(metrics.records):
        record = metrics.records[index]
        for i, (who, x, score) in enumerate(zip(record['person'], record['iou'], record['scores'])):
            write([ids[index], i, *([who, x] if who >= 0 else ['', '']), score, int(next(hit))])
        for who in range(len(record['num_parts'])):
            if not next(found):
                write([ids[index], '', who, '', '', ''])
    return text.getvalue()


def plot(metrics, result, title):
    """PNG bytes: precision over recall at 0.5; AP^p and PCP over the threshold."""
    found = np.cumsum(metrics.found_at(0.5))
    recall, precision = found / max(result['people'], 1), found / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    blue, orange, pale = (31, 100, 180), (225, 112, 20), (170, 200, 232)
    canvas = Image.new('RGB', (1840, 1040), 'white')                 # twice the final size, for smooth lines
    draw_panel(canvas, 120, f'{title}: people found at IoU > 0.5', 'recall', 'precision', [
        ('as ranked', pale, recall, precision),
        (f'envelope, AP^p_50 = {100 * result["AP50"]:.2f}', blue, recall, envelope)])
    draw_panel(canvas, 1040, f'{title}: over the threshold', 'IoU threshold', '', [
        (f'AP^p, vol = {100 * result["APvol"]:.2f}', blue, metrics.thresholds, result['AP']),
        (f'PCP, vol = {100 * result["PCPvol"]:.2f}', orange, metrics.thresholds, result['PCP'])])
    data = io.BytesIO()
    canvas.resize((920, 520), Image.LANCZOS).save(data, 'PNG')
    return data.getvalue()


def mean_and_spread(values):
    """'31.4 +- 0.8' with one sign: the mean and the standard deviation of a sample; of one value, the value."""
    spread = f' \N{PLUS-MINUS SIGN} {np.std(values, ddof=1):.1f}' if len(values) > 1 else ''
    return f'{np.mean(values):.1f}{spread}'
