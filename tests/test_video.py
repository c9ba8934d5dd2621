"""Videos through infer.py. Skipped without PyAV (pip install av).

Claimed: frames, times and people are those of the photos; rotation and square pixels are
respected; files that are no videos get one sentence; an interruption or a full disk leaves no
incomplete file; a video is a stream.
"""
import json
import os
import resource
import signal
import sys
from fractions import Fraction

import numpy as np
import pytest

import infer
from data import input_geometry, network_input
from tests.helpers import SIZE, call, picture, tiny_model, write_photo, write_video
from uniparser import UniParser, decode, kernels_at
from util import files, video
from util.datasets import CIHP
from util.files import MARK
from util.labels import LABEL_SETS
from util.pictures import erode
from util.rle import decode_rle
from util.tracking import Tracker

av = pytest.importorskip('av', reason='videos need PyAV: pip install av')


def turn(path, quarters):
    """Overwrites the rotation of an MP4 file, as a phone that is held upright writes it."""
    content = bytearray(path.read_bytes())
    at = content.index(b'tkhd') + 4 + 40                      # version 0: the matrix follows 40 bytes
    a, b = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarters]
    numbers = [a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30]
    content[at:at + 36] = b''.join(n.to_bytes(4, 'big', signed=True) for n in numbers)
    path.write_bytes(content)


def read_video(path):
    """Average rate and name of the codec, (time, picture) of every frame."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [(frame.time, frame.to_image()) for frame in container.decode(stream)]
        return stream.average_rate, stream.codec_context.name, frames


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def parse(checkpoint, cwd, *arguments):
    return call(infer, *arguments, '--weights', checkpoint, '--out', 'out', '--device', 'cpu', cwd=cwd)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != 'index.html')


# ---- results ---------------------------------------------------------------------------------------------------


def test_each_frame_is_parsed_as_a_photo_of_it_is(checkpoint, tmp_path):
    write_video(tmp_path / 'a.mp4')
    done = parse(checkpoint, tmp_path, 'a.mp4', '--no-track')
    assert done.returncode == 0 and done.stdout.startswith('a.mp4: 8 frames, at most '), done.stderr
    assert done.stdout.endswith('1 of 1 video -> out/\n') and names_in(tmp_path / 'out') == ['a.jsonl', 'a_overlay.mp4']
    lines, (_, _, frames) = read_lines(tmp_path / 'out' / 'a.jsonl'), read_video(tmp_path / 'a.mp4')
    for k, (_, frame) in enumerate(frames):
        frame.save(tmp_path / f'{k}.png')
    assert parse(checkpoint, tmp_path, *(f'{k}.png' for k in range(8))).returncode == 0
    for k, line in enumerate(lines):
        assert list(line)[:4] == ['software', 'video', 'frame', 'time'] and (line['video'], line['frame']) == ('a.mp4', k)
        assert abs(line['time'] - k * 1001 / 30000) < 1e-3
        record = json.loads((tmp_path / 'out' / f'{k}.json').read_text())
        assert {name: line[name] for name in ('width', 'height', 'people')} == {
            name: record[name] for name in ('width', 'height', 'people')}
    assert len(lines) == 8 and any(line['people'] for line in lines)


def test_the_overlay_has_the_rate_and_the_pictures_of_the_video_and_a_legend(checkpoint, tmp_path):
    write_video(tmp_path / 'a.mp4', ticks=range(12), size=(64, 46))
    assert parse(checkpoint, tmp_path, 'a.mp4', '--theta-center', '0.999').returncode == 0         # nobody is found
    rate, codec, frames = read_video(tmp_path / 'out' / 'a_overlay.mp4')
    assert rate == Fraction(30000, 1001) and len(frames) == 12
    assert codec == 'h264' or 'libx264' not in av.codec.codecs_available
    for k, (time, frame) in enumerate(frames):
        assert abs(time - k * 1001 / 30000) < 1e-3 and frame.width == 64 and frame.height > 46     # the legend is below
        error = np.abs(np.asarray(frame, int)[:46] - np.asarray(picture(k, (64, 46)), int))
        assert error.mean() < 15, k                           # compressed twice
    nearest = [min(range(12), key=lambda j: np.abs(np.asarray(frame, int)[:46] - np.asarray(picture(j, (64, 46)), int)).sum())
               for _, frame in frames]
    assert nearest == list(range(12))


def test_people_are_painted(checkpoint, tmp_path):
    write_video(tmp_path / 'a.mp4')
    assert parse(checkpoint, tmp_path, 'a.mp4').returncode == 0
    line, (_, _, frames) = read_lines(tmp_path / 'out' / 'a.jsonl')[3], read_video(tmp_path / 'out' / 'a_overlay.mp4')
    x, y, w, h = line['people'][0]['box']
    painted = np.asarray(frames[3][1], int)[y:y + h, x:x + w]
    assert np.abs(painted - np.asarray(picture(3), int)[y:y + h, x:x + w]).mean() > 20


def test_a_part_that_is_unknown_is_only_outlined(tmp_path):
    """No class is sure, so a whole person is 255 all over: the frame shows through, as in photos."""
    tiny_model(theta_center=0.0, theta_part=1.0, theta_mask=0.1, max_people=1, whole=True, test_short_side=48).save(tmp_path / 'whole.pt')
    write_video(tmp_path / 'a.mp4', ticks=range(2))
    assert parse(tmp_path / 'whole.pt', tmp_path, 'a.mp4').returncode == 0
    line, (_, _, frames) = read_lines(tmp_path / 'out' / 'a.jsonl')[1], read_video(tmp_path / 'out' / 'a_overlay.mp4')
    person, = line['people']
    assert person['parts'] == []
    inside = erode(decode_rle(person['rle']['counts'], *SIZE), 2)
    inside[:SIZE[1] // 2] = False                             # where the id stands
    assert inside.sum() > 100
    assert np.abs(np.asarray(frames[1][1], int)[:SIZE[1]][inside] - np.asarray(picture(1), int)[inside]).mean() < 15


def test_fewer_frames_per_second_are_the_right_ones(checkpoint, tmp_path):
    write_video(tmp_path / 'a.mp4', ticks=range(20), rate=20)
    assert parse(checkpoint, tmp_path, 'a.mp4', '--fps', '5').returncode == 0
    lines, (rate, _, frames) = read_lines(tmp_path / 'out' / 'a.jsonl'), read_video(tmp_path / 'out' / 'a_overlay.mp4')
    assert rate == 5 and [round(time, 3) for time, _ in frames] == [0, 0.2, 0.4, 0.6, 0.8]
    for line, (time, _) in zip(lines, frames, strict=True):
        assert line['time'] == line['frame'] / 20 and abs(line['time'] - time) < 1e-3


def test_more_frames_per_second_than_there_are_change_nothing(checkpoint, tmp_path):
    write_video(tmp_path / 'a.mp4', ticks=range(5), rate=20)
    assert parse(checkpoint, tmp_path, 'a.mp4', '--fps', '1000').returncode == 0
    rate, _, frames = read_video(tmp_path / 'out' / 'a_overlay.mp4')
    assert rate == 20 and len(frames) == 5


def test_a_video_of_changing_speed_keeps_its_times(checkpoint, tmp_path):
    ticks = [0, 1, 2, 10, 11, 30]
    write_video(tmp_path / 'a.mp4', ticks=ticks, rate=25)
    assert parse(checkpoint, tmp_path, 'a.mp4', '--fps', '1000').returncode == 0
    lines, (_, _, frames) = read_lines(tmp_path / 'out' / 'a.jsonl'), read_video(tmp_path / 'out' / 'a_overlay.mp4')
    assert [line['frame'] for line in lines] == sorted({line['frame'] for line in lines}) and len(lines) > 2
    for line, (time, _) in zip(lines, frames, strict=True):
        assert line['time'] == ticks[line['frame']] / 25 and abs(line['time'] - time) < 0.15


@pytest.mark.parametrize('quarters, corner', [(0, (0, 0)), (1, (1, 0)), (2, (1, 1)), (3, (0, 1))])
def test_a_phones_rotation_is_respected(tmp_path, quarters, corner):
    turn(write_video(tmp_path / 'a.mp4'), quarters)
    opened = video.Video(tmp_path / 'a.mp4')
    image = next(iter(opened)).photo
    opened.close()
    assert image.size == (SIZE if quarters % 2 == 0 else SIZE[::-1])
    x, y = (3 + c * (side - 7) for c, side in zip(corner, image.size))
    red, green, blue = image.getpixel((x, y))
    assert red > 180 and green < 90 and blue < 90             # the red corner


def test_pixels_become_square(tmp_path):
    opened = video.Video(write_video(tmp_path / 'a.mp4', aspect=Fraction(3, 2)))
    image = next(iter(opened)).photo
    opened.close()
    assert image.size == (96, 48)


def test_max_size_and_only_work_for_videos(checkpoint, tmp_path):
    write_video(tmp_path / 'a.mp4', size=(128, 96))
    assert parse(checkpoint, tmp_path, 'a.mp4', '--max-size', '50', '--only', 'head,left-arm').returncode == 0
    lines, (_, _, frames) = read_lines(tmp_path / 'out' / 'a.jsonl'), read_video(tmp_path / 'out' / 'a_overlay.mp4')
    assert (lines[0]['width'], lines[0]['height']) == (50, 38) and frames[0][1].width == 50
    parts = {part['name'] for line in lines for person in line['people'] for part in person['parts']}
    assert parts and parts <= {'head', 'left-arm'}


def test_other_label_sets_work_for_videos(tmp_path):
    model = tiny_model('cihp', theta_center=0.0, theta_part=0.0, theta_mask=0.1, theta_same=1.0, max_people=4, test_short_side=48)
    model.class_names = list(CIHP.class_names)
    model.save(tmp_path / 'cihp.pt')
    write_video(tmp_path / 'a.mp4', ticks=range(3))
    assert parse(tmp_path / 'cihp.pt', tmp_path, 'a.mp4', '--labels', 'atr').returncode == 0
    parts = {(part['id'], part['name']) for line in read_lines(tmp_path / 'out' / 'a.jsonl') for person in line['people']
             for part in person['parts']}
    assert parts and parts <= set(enumerate(LABEL_SETS['atr'].names))


def test_odd_sides_and_builds_without_h264_get_a_video_too(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(video, 'ENCODERS', ('no-such-encoder', 'mpeg4'))
    write_video(tmp_path / 'a.mp4', ticks=range(3))
    assert parse(checkpoint, tmp_path, 'a.mp4', '--max-size', '37').returncode == 0
    _, codec, frames = read_video(tmp_path / 'out' / 'a_overlay.mp4')
    assert codec == 'mpeg4' and len(frames) == 3 and frames[0][1].width == 38


def test_videos_and_photos_are_parsed_in_one_call(checkpoint, tmp_path):
    write_photo(tmp_path / 'a.png'), write_video(tmp_path / 'a.mp4', ticks=range(3)), (tmp_path / 'b.mov').write_text('no')
    done = parse(checkpoint, tmp_path, 'a.png', 'a.mp4', 'b.mov')
    assert done.returncode == 2 and '1 of 1 photo,' in done.stdout and '1 of 2 videos' in done.stdout
    assert 'b.mov cannot be read as a video' in done.stderr and done.stderr.endswith('error: 1 file was not parsed\n')
    assert len(list((tmp_path / 'out').glob('*.json'))) == len(list((tmp_path / 'out').glob('*.jsonl'))) == 1


def test_a_long_video_is_never_held_as_a_whole(checkpoint, tmp_path, monkeypatch):
    waiting, most = [0], []
    add, upright = video.OverlayWriter.add, video.Video.upright

    def counted_upright(self, frame):
        waiting[0] += 1
        most.append(waiting[0])
        return upright(self, frame)

    def counted_add(self, *arguments):
        waiting[0] -= 1
        add(self, *arguments)
    monkeypatch.setattr(video.Video, 'upright', counted_upright)
    monkeypatch.setattr(video.OverlayWriter, 'add', counted_add)
    write_video(tmp_path / 'a.mp4', ticks=range(60))
    assert parse(checkpoint, tmp_path, 'a.mp4').returncode == 0
    assert len(most) == 60 and max(most) < 10 and waiting == [0]


def test_frames_in_a_folder_keep_their_order(tmp_path):
    names = ['frame_1.png', 'frame_2.png', 'frame_10.png', 'frame_100.png', 'later/frame_3.png', 'x.png']
    for name in reversed(names):
        write_photo(tmp_path / name)
    assert [str(path.relative_to(tmp_path)) for path in files.find_photos([str(tmp_path)])] == names
    assert [path.name for path in files.find_photos([f'{tmp_path}/frame_*'])] == names[:4]


# ---- ids -------------------------------------------------------------------------------------------------------


def test_ids_are_those_of_the_tracker_and_nothing_else_depends_on_it(checkpoint, tmp_path):
    write_video(tmp_path / 'a.mp4', ticks=range(10))
    assert parse(checkpoint, tmp_path, 'a.mp4').returncode == 0
    tracked = read_lines(tmp_path / 'out' / 'a.jsonl')
    assert parse(checkpoint, tmp_path, 'a.mp4', '--no-track').returncode == 0
    ranked = read_lines(tmp_path / 'out' / 'a.jsonl')
    model = UniParser.from_pretrained(checkpoint).fold()
    tracker, config, moved = Tracker(), model.config, 0
    opened = video.Video(tmp_path / 'a.mp4')
    for frame, line, rank in zip(opened, tracked, ranked, strict=True):
        assert [person.pop('id') for person in rank['people']] == list(range(1, len(rank['people']) + 1))
        geometry = input_geometry(frame.photo, config)
        out = model.outputs(network_input(frame.photo, config, geometry))
        found = decode(out, 0, geometry, config, model.fusion)
        kernels = kernels_at(out, 0, found.centers, geometry, config)
        ids = tracker.follow(frame.photo, found.parsing, frame.time, kernels)
        assert [person.pop('id') for person in line['people']] == ids
        assert line == rank
        moved += ids != sorted(ids)
    opened.close()
    assert moved                                              # not only ranks


def test_people_may_have_colors_instead_of_parts(checkpoint, tmp_path):
    write_video(tmp_path / 'a.mp4', ticks=range(3), size=(256, 192))
    pictures = []
    for colors in 'parts', 'people':
        assert parse(checkpoint, tmp_path, 'a.mp4', '--colors', colors).returncode == 0
        pictures.append(read_video(tmp_path / 'out' / 'a_overlay.mp4')[2][1][1])
    parts, people = pictures
    assert people.height == 192 < parts.height                # a legend of parts, none of people
    difference = np.asarray(people, int) - np.asarray(parts, int)[:192]
    assert np.abs(difference).mean() > 10


# ---- what goes wrong -------------------------------------------------------------------------------------------


def write_sound(path):
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('aac', rate=8000, layout='mono')
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), 'fltp', 'mono')
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_playlist(path):
    """FFmpeg would read the other file that a playlist names."""
    write_video(path.parent / 'secret.ts', codec='mpeg2video', rate=25)
    path.write_text('#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n')


def write_header(path):
    """An MP4 file whose frames are missing."""
    write_video(path)
    content = path.read_bytes()
    at = content.index(b'mdat')
    path.write_bytes(content[:at + 4] + bytes(content.index(b'moov') - at - 8) + content[content.index(b'moov') - 4:])


@pytest.mark.parametrize('write, message', [
    (lambda path: None, 'does not exist'), (lambda path: path.write_bytes(b''), 'cannot be read as a video'),
    (lambda path: path.write_text('no video'), 'cannot be read as a video'),
    (lambda path: path.write_bytes(write_video(path).read_bytes()[:900]), 'cannot be read as a video'),
    (write_playlist, 'cannot be read as a video'), (write_sound, 'has no pictures'), (write_header, 'no frame'),
    (lambda path: path.mkdir(), 'not a regular file'), (lambda path: os.mkfifo(path), 'not a regular file')])
def test_what_is_no_video_gets_one_sentence_and_no_result(checkpoint, tmp_path, write, message):
    write(tmp_path / 'a.mp4')
    done = parse(checkpoint, tmp_path, 'a.mp4')
    first, second = done.stderr.strip().splitlines()
    assert done.returncode == 2 and first.startswith('error: a.mp4 ') and message in first, done.stderr
    assert second == 'error: 1 file was not parsed' and len(first) < 200
    assert not (tmp_path / 'out').exists() or names_in(tmp_path / 'out') == []


def test_without_pyav_a_sentence_names_the_package(checkpoint, tmp_path, monkeypatch):
    write_video(tmp_path / 'a.mp4')
    monkeypatch.setitem(sys.modules, 'av', None)
    done = parse(checkpoint, tmp_path, 'a.mp4')
    assert done.returncode == 2 and 'pip install av' in done.stderr and 'Traceback' not in done.stderr
    monkeypatch.setitem(sys.modules, 'av', type(sys)('av'))                  # one that knows no rotation
    monkeypatch.setattr(sys.modules['av'], 'VideoFrame', object, raising=False)
    assert 'pip install --upgrade av' in parse(checkpoint, tmp_path, 'a.mp4').stderr


@pytest.mark.parametrize('fps', ['0', '-1', 'nan', 'inf'])
def test_a_rate_that_cannot_be_is_refused(checkpoint, tmp_path, fps):
    done = parse(checkpoint, tmp_path, 'a.mp4', f'--fps={fps}')
    assert done.returncode == 2 and '--fps is ' in done.stderr


def test_damaged_frames_are_left_out_and_the_others_kept(checkpoint, tmp_path):
    path = write_video(tmp_path / 'a.mov', codec='png')
    content = bytearray(path.read_bytes())
    starts = [i for i in range(len(content)) if content[i:i + 4] == b'\x89PNG']
    content[starts[3]:starts[3] + 8] = bytes(8)
    path.write_bytes(content)
    done = parse(checkpoint, tmp_path, 'a.mov')
    assert len(starts) == 8 and done.returncode == 2
    assert 'a.mov is damaged in 1 place; what can be read, 7 frames, is in out/a_overlay.mp4' in done.stderr
    lines, (_, _, frames) = read_lines(tmp_path / 'out' / 'a.jsonl'), read_video(tmp_path / 'out' / 'a_overlay.mp4')
    assert len(lines) == len(frames) == 7 and abs(frames[3][0] - 4 * 1001 / 30000) < 1e-3          # the times stay


def write_gap(path, gap=10 ** 8):
    """Three frames, and two after a gap of so many frames in the time stamps."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('mjpeg', rate=30)
        stream.width, stream.height, stream.pix_fmt = *SIZE, 'yuvj420p'
        for k, tick in enumerate((0, 1, 2, gap, gap + 1)):
            frame = av.VideoFrame.from_image(picture(k))
            frame.pts, frame.time_base = tick, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_a_gap_of_months_in_the_time_stamps_is_damage(checkpoint, tmp_path):
    write_gap(tmp_path / 'a.mkv'), write_video(tmp_path / 'b.mp4', ticks=range(3))
    done = parse(checkpoint, tmp_path, 'a.mkv', 'b.mp4')
    assert done.returncode == 2 and 'Traceback' not in done.stderr and '1 of 2 videos' in done.stdout
    assert 'a.mkv is damaged in 1 place; what can be read, 3 frames, is in out/a_overlay.mp4' in done.stderr
    assert len(read_video(tmp_path / 'out' / 'a_overlay.mp4')[2]) == len(read_lines(tmp_path / 'out' / 'b.jsonl')) == 3
    write_gap(tmp_path / 'c.mkv', 30 * 600)                   # ten minutes are none
    assert parse(checkpoint, tmp_path, 'c.mkv').returncode == 0
    assert abs(read_lines(tmp_path / 'out' / 'c.jsonl')[3]['time'] - 600) < 0.1


def test_what_ffmpeg_cannot_write_is_one_sentence_and_the_next_video_goes_on(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(video, 'LONGEST_GAP', 10 ** 12)
    write_gap(tmp_path / 'a.mkv'), write_video(tmp_path / 'b.mp4', ticks=range(3))
    done = parse(checkpoint, tmp_path, 'a.mkv', 'b.mp4')
    assert done.returncode == 2 and 'Traceback' not in done.stderr and '1 of 2 videos' in done.stdout
    assert 'a_overlay.mp4 cannot be written' in done.stderr
    assert names_in(tmp_path / 'out') == ['b.jsonl', 'b_overlay.mp4']


@pytest.mark.parametrize('seed', range(6))
def test_overwritten_bytes_give_fewer_frames_or_a_sentence(checkpoint, tmp_path, seed):
    rng, path = np.random.default_rng(seed), write_video(tmp_path / 'a.mp4', ticks=range(12))
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    content[rng.integers(0, len(content), 40)] = rng.integers(0, 256, 40)
    path.write_bytes(content.tobytes())
    done = parse(checkpoint, tmp_path, 'a.mp4')
    assert done.returncode in (0, 2) and 'Traceback' not in done.stderr
    if (tmp_path / 'out' / 'a.jsonl').exists():
        assert len(read_lines(tmp_path / 'out' / 'a.jsonl')) == len(read_video(tmp_path / 'out' / 'a_overlay.mp4')[2]) > 0
    else:
        assert done.returncode == 2


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_done(checkpoint, tmp_path, monkeypatch, number):
    add, count = video.OverlayWriter.add, []

    def stopped(self, *arguments):
        add(self, *arguments)
        count.append(1)
        if len(count) == 3:
            os.kill(os.getpid(), number)
    monkeypatch.setattr(video.OverlayWriter, 'add', stopped)
    write_video(tmp_path / 'a.mp4', ticks=range(20)), write_video(tmp_path / 'b.mp4')
    before = signal.getsignal(signal.SIGINT)
    done = parse(checkpoint, tmp_path, 'a.mp4', 'b.mp4')
    assert done.returncode == 130 and done.stderr.splitlines()[-1].startswith('stopped; ')
    assert names_in(tmp_path / 'out') == ['a.jsonl', 'a_overlay.mp4'] and signal.getsignal(signal.SIGINT) == before
    assert len(read_lines(tmp_path / 'out' / 'a.jsonl')) == len(read_video(tmp_path / 'out' / 'a_overlay.mp4')[2]) == 3


def test_a_full_disk_leaves_no_half_video(checkpoint, tmp_path):
    write_video(tmp_path / 'a.mp4', ticks=range(30))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        done = parse(checkpoint, tmp_path, 'a.mp4')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert done.returncode == 2 and 'a_overlay.mp4 cannot be written' in done.stderr, done.stderr
    assert 'Traceback' not in done.stderr and names_in(tmp_path / 'out') == []


@pytest.mark.parametrize('name', ['a_overlay.mp4', 'a.jsonl'])
def test_files_of_the_user_are_not_replaced_and_results_are(checkpoint, tmp_path, name):
    write_video(tmp_path / 'a.mp4', ticks=range(3))
    for _ in range(2):                                        # its own results
        assert parse(checkpoint, tmp_path, 'a.mp4').returncode == 0
    assert MARK.encode() in (tmp_path / 'out' / name).read_bytes()
    (tmp_path / 'out' / name).unlink()
    (write_video if name.endswith('mp4') else write_photo)(tmp_path / 'out' / name.replace('jsonl', 'png'))
    (tmp_path / 'out' / name.replace('jsonl', 'png')).rename(tmp_path / 'out' / name)
    before = (tmp_path / 'out' / name).read_bytes()
    done = parse(checkpoint, tmp_path, 'a.mp4')
    assert done.returncode == 2 and f'{name} exists and this program did not write it' in done.stderr
    assert (tmp_path / 'out' / name).read_bytes() == before


def test_no_video_is_replaced_by_the_result_of_another(checkpoint, tmp_path):
    write_video(tmp_path / 'a.mp4', ticks=range(3))
    assert parse(checkpoint, tmp_path, 'a.mp4').returncode == 0
    before = (tmp_path / 'out' / 'a_overlay.mp4').read_bytes()
    done = parse(checkpoint, tmp_path, 'a.mp4', 'out/a_overlay.mp4')
    assert done.returncode == 2 and 'is an input and would be replaced' in done.stderr
    assert (tmp_path / 'out' / 'a_overlay.mp4').read_bytes() == before
    assert (tmp_path / 'out' / 'a_overlay_overlay.mp4').exists()


def test_flags_for_photos_are_refused(checkpoint, tmp_path):
    write_video(tmp_path / 'a.mp4')
    for flag in '--maps', '--cutouts':
        done = parse(checkpoint, tmp_path, 'a.mp4', flag)
        assert done.returncode == 2 and f'{flag} is for photos' in done.stderr and not (tmp_path / 'out').exists()
