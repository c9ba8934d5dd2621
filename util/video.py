"""Videos, frame by frame, into NAME_overlay.mp4 and NAME.jsonl. Needs PyAV (pip install av).

A line of NAME.jsonl is the record of one frame: that of a photo's NAME.json, with `video` in the place of `photo`, the
number of the frame in the video, from 0 on, and its time in seconds. Frames are read, parsed and written as a stream.
People are found in each frame anew: their ids follow the scores, not the person.
"""
import json
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from errno import EINVAL
from fractions import Fraction

from PIL import Image
from tqdm import tqdm

from util.files import MARK, check_target, make_folder, naming, printable, replacing, writing
from util.photos import PhotoJob, ahead
from util.pictures import add_legend, overlay, palette
from util.results import describe_people
from util.run import catching_signals

VIDEOS = {'.mp4', '.m4v', '.mov', '.3gp', '.mkv', '.webm', '.avi', '.mpg', '.mpeg', '.mts', '.ts', '.wmv', '.flv'}
FORMATS = 'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,asf,flv'    # a playlist could name other files
ENCODERS = 'libx264', 'libopenh264', 'mpeg4'              # the first that this build of FFmpeg has
ADVICE = 'get it again, or convert it to MP4'


def import_av():
    try:
        import av
        if hasattr(av.VideoFrame, 'rotation'):
            return av
        reason = 'a newer PyAV: pip install --upgrade av'
    except ImportError:
        reason = 'PyAV: pip install av'
    raise ModuleNotFoundError(f'reading videos needs {reason}')


@dataclass
class Frame(PhotoJob):
    """A frame of a video on its way through a pipeline."""
    number: int = 0                                       # in the video, from 0 on
    time: float = 0.0                                     # seconds since the first frame
    tick: int = 0                                         # number of its interval of 1 / rate seconds


class Video:
    """A video that is read once, from its start to its end. rate: frames per second; count: an estimate of the number
    of frames; damaged: the number of places that could not be read so far."""

    def __init__(self, path, fps=None):
        self.path, self.av, self.file, self.damaged = path, import_av(), None, 0
        with naming(path, 'check its name'):
            if os.path.exists(path) and not os.path.isfile(path):
                raise OSError(EINVAL, 'it is not a regular file')            # opening a pipe would block
            self.file = open(path, 'rb')                      # FFmpeg would take some names for addresses
        try:
            self.open(fps)
        except BaseException:
            self.file.close()
            raise

    def open(self, fps):
        try:
            self.container = self.av.open(self.file, metadata_errors='replace',
                                          container_options={'format_whitelist': FORMATS})
        except (self.av.FFmpegError, OSError) as error:
            raise ValueError(f'{printable(self.path)} cannot be read as a video ({error.strerror}); {ADVICE}') from None
        if not self.container.streams.video:
            raise ValueError(f'{printable(self.path)} has no pictures; give a video')
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = 'AUTO'
        own = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        rate = own if fps is None else min(own, Fraction(fps))
        self.rate = rate.limit_denominator(max(1, int(65535 / rate)))        # a limit of MPEG-4
        self.early = 0.5 if rate == own else 0.01             # of an interval: a camera's intervals vary
        self.seconds = self.stream.duration and float(self.stream.duration * self.stream.time_base)
        self.count = math.ceil(self.seconds * self.rate) if self.seconds else None

    def close(self):
        self.container.close()
        self.file.close()

    def decode(self):
        """Yields PyAV's frames, without those that are damaged."""
        try:
            for packet in self.container.demux(self.stream):
                try:
                    yield from packet.decode()
                except self.av.FFmpegError:
                    self.damaged += 1
        except (self.av.FFmpegError, OSError):                # the rest cannot be read
            self.damaged += 1

    def __iter__(self):
        """Yields the first Frame in each tick, an interval of 1 / rate seconds."""
        start, last = None, -1
        for number, frame in enumerate(self.decode()):
            time = number / float(self.rate) if frame.time is None else frame.time
            start = time if start is None else start
            tick = int((time - start) * self.rate + self.early)
            if tick > last:
                last = tick
                photo = self.upright(frame)
                yield Frame(self.path, f'frame {number}', photo, number=number, time=round(time - start, 4), tick=tick)

    def upright(self, frame):
        """Frame -> Pillow image, turned as a phone's rotation tag says, with square pixels."""
        image, aspect = frame.to_image(), self.stream.sample_aspect_ratio
        if aspect and 0.1 < aspect < 10 and aspect != 1:
            image = image.resize((max(1, round(image.width * aspect)), image.height), Image.BILINEAR)
        return image.rotate(frame.rotation, expand=True) if frame.rotation else image


class OverlayWriter:
    """Writes Pillow images to an MP4 file, as H.264 where this build of FFmpeg can. rate: ticks per second."""

    def __init__(self, av, file, rate):
        self.av, self.rate, self.stream = av, rate, None
        self.container = av.open(file, 'w', format='mp4')
        self.container.metadata['comment'] = MARK

    def open_stream(self, size):
        for name in ENCODERS:
            try:
                self.av.codec.Codec(name, 'w')
            except ValueError:                                # not in this build
                continue
            self.stream = self.container.add_stream(name, rate=self.rate)
            break
        self.stream.width, self.stream.height = self.size = size
        self.stream.pix_fmt, self.stream.codec_context.time_base = 'yuv420p', 1 / self.rate
        if name == 'libx264':
            self.stream.options = {'crf': '20', 'preset': 'veryfast'}
        else:
            self.stream.bit_rate = int(0.2 * math.prod(size) * self.rate)

    def add(self, image, tick):
        if self.stream is None:
            self.open_stream((image.width + image.width % 2, image.height + image.height % 2))
        frame = self.av.VideoFrame.from_image(image.crop((0, 0, *self.size)))    # both sides must be even
        frame.pts, frame.time_base = tick, 1 / self.rate
        self.container.mux(self.stream.encode(frame))

    def close(self):
        if self.stream is not None:
            self.container.mux(self.stream.encode(None))
        self.container.close()


def parse_frames(parser, video, path):
    """Yields tick, overlay, line of NAME.jsonl and number of people of every frame."""
    names, size = parser.class_names, []

    def read():
        for frame in video:
            size[:] = size or frame.photo.size                # a stream may change it, an MP4 file cannot
            if frame.photo.size != tuple(size):
                frame.photo = frame.photo.resize(size)
            frame.photo = parser.fit(frame.photo)
            frame.input = parser.prepare(frame.photo)
            yield frame

    def draw(frame):
        image = frame.photo
        with parser.turn:
            found = parser.find(frame.out, image)
        record = dict(software=MARK, video=str(path), frame=frame.number, time=frame.time, width=image.width,
                      height=image.height, people=describe_people(found, names))
        colors = palette(len(names) - 1) if found.colors is None else found.colors
        picture = add_legend(overlay(image, found.parsing, colors=colors), colors, names, parser.kept)
        return frame.tick, picture, json.dumps(record) + '\n', len(found.scores)

    with ThreadPoolExecutor(2) as pool:
        yield from ahead(pool, draw, parser.parse(read()))


def parse_video(parser, path, name, fps=None):
    """Parses a video into the parser's folder (a `ParsingPipeline`); fps: frames per second, at most and by default the
    video's own. SIGINT and SIGTERM end it after a frame: both files are completed, then KeyboardInterrupt is raised.
    Returns a message. ValueError or OSError where something cannot be read or written."""
    targets = [parser.folder / f'{name}{ending}' for ending in ('_overlay.mp4', '.jsonl')]
    for target in targets:
        check_target(target, parser.inputs)
    make_folder(parser.folder)
    count, most = 0, 0
    with closing(Video(path, fps)) as video, catching_signals() as seen, writing(targets[0]), \
            replacing(targets[0]) as pictures, replacing(targets[1]) as records:
        with open(pictures, 'wb') as file, open(records, 'w', encoding='utf-8') as lines, \
                closing(OverlayWriter(video.av, file, video.rate)) as writer, \
                closing(parse_frames(parser, video, path)) as frames:
            for tick, picture, line, people in tqdm(frames, total=video.count, disable=None, unit='frame'):
                writer.add(picture, tick)
                lines.write(line)
                count, most = count + 1, max(most, people)
                if seen:
                    break
        if not count:
            raise ValueError(f'{printable(path)} has no frame that can be read; {ADVICE}')
    if seen:
        raise KeyboardInterrupt
    if video.damaged:
        places = f'{video.damaged} place{"s" * (video.damaged > 1)}'
        raise ValueError(f'{printable(path)} is damaged in {places}; the {count} frames that can be read are in '
                         f'{targets[0]}')
    return f'{printable(path)}: {count} frames, at most {most} {"person" if most == 1 else "people"}'


def parse_videos(parser, jobs, fps=None):
    """-> the number of videos that could not be read to their end."""
    failed = 0
    for job in jobs:
        try:
            print(parse_video(parser, job.path, job.name, fps))
        except (OSError, ValueError, ModuleNotFoundError) as error:
            print(f'error: {error}', file=sys.stderr)
            failed += 1
    if jobs:
        print(f'{len(jobs) - failed} of {len(jobs)} videos -> {parser.folder}/')
    return failed
