"""Videos, frame by frame, into NAME_overlay.mp4 and NAME.jsonl. Needs PyAV (pip install av).

A line of NAME.jsonl is the record of one frame: that of a photo's NAME.json, with `video` in the
place of `photo`, the number of the frame in the video, from 0 on, and its time in seconds. Frames
are read, parsed and written as a stream. People are found in each frame anew, and a Tracker gives
them the ids that they had before.
"""
import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from errno import EINVAL
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from PIL import Image
from tqdm import tqdm

from util.cli import Between, refuse_given
from util.files import (MARK, check_target, counted, make_folder, naming, printable, replacing,
                        writing)
from util.photos import PhotoJob, PhotoPipeline, ahead
from util.pictures import add_ids, add_legend, overlay, overlay_people, palette
from util.run import catching_signals
from util.tracking import Tracker

VIDEOS = {'.mp4', '.m4v', '.mov', '.3gp', '.mkv', '.webm', '.avi', '.mpg', '.mpeg', '.mts', '.ts',
          '.wmv', '.flv'}
# A playlist could name other files.
FORMATS = 'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,asf,flv'
ENCODERS = 'libx264', 'libopenh264', 'mpeg4'      # the first that this build of FFmpeg has
ADVICE = 'get it again, or convert it to MP4'
ENDINGS = '_overlay.mp4', '.jsonl'                # of the results
MOST_TICKS = 65535                                # per second, in MPEG-4
# Seconds between two frames. An MP4 file cannot hold a gap of days, and no camera writes one.
LONGEST_GAP = 3600
VIDEO_FLAGS = 'fps', 'no_track'                   # they mean nothing for photos
IN_WORK = 2                                       # frames at a time that threads parse or draw


def import_av() -> ModuleType:
    """PyAV; raises a ModuleNotFoundError with advice."""
    try:
        import av
        if hasattr(av.VideoFrame, 'rotation'):
            return av
        reason = 'a newer PyAV: pip install --upgrade av'
    except ImportError:
        reason = 'PyAV: pip install av'
    raise ModuleNotFoundError(f'reading videos needs {reason}')


# ---- reading -----------------------------------------------------------------------------------


@dataclass
class Frame(PhotoJob):
    """A frame of a video on its way through a pipeline."""
    number: int = 0                               # in the video, from 0 on
    time: float = 0.0                             # seconds since the first frame
    tick: int = 0                                 # number of its interval of 1 / rate seconds


class Video:
    """A video that is read once, from its start to its end.

    rate     frames per second
    count    an estimate of the number of frames; None: unknown
    damaged  the number of places that could not be read so far
    """

    def __init__(self, path: str | Path, fps: float | None = None):
        self.path = path
        self.av = import_av()
        self.damaged = 0
        with naming(path, 'check its name'):
            if os.path.exists(path) and not os.path.isfile(path):
                raise OSError(EINVAL, 'it is not a regular file')            # a pipe would block
            self.file = open(path, 'rb')          # FFmpeg would take some names for addresses
        try:
            self.open(fps)
        except BaseException:
            self.file.close()
            raise

    def open(self, fps: float | None):
        name = printable(self.path)
        try:
            self.container = self.av.open(self.file, metadata_errors='replace',
                                          container_options={'format_whitelist': FORMATS})
        except (self.av.FFmpegError, OSError) as error:
            raise ValueError(f'{name} cannot be read as a video ({error.strerror}); '
                             f'{ADVICE}') from None
        if not self.container.streams.video:
            raise ValueError(f'{name} has no pictures; give a video')
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = 'AUTO'
        own = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        rate = own if fps is None else min(own, Fraction(fps))
        self.rate = rate.limit_denominator(max(1, int(MOST_TICKS / rate)))
        # A frame may come early by this share of an interval: a camera's intervals vary.
        self.early = 0.5 if rate == own else 0.01
        duration = self.stream.duration
        self.count = None
        if duration:
            self.count = math.ceil(float(duration * self.stream.time_base) * self.rate)

    def close(self):
        self.container.close()
        self.file.close()

    def decode(self) -> Iterator:
        """Yields PyAV's frames, without those that are damaged."""
        try:
            for packet in self.container.demux(self.stream):
                try:
                    yield from packet.decode()
                except self.av.FFmpegError:
                    self.damaged += 1
        except (self.av.FFmpegError, OSError):    # the rest cannot be read
            self.damaged += 1

    def __iter__(self) -> Iterator[Frame]:
        """Yields the first frame in each tick, an interval of 1 / rate seconds."""
        start = None                              # time of the first frame
        last = -1                                 # tick of the last frame
        for number, frame in enumerate(self.decode()):
            time = number / float(self.rate) if frame.time is None else frame.time
            if start is None:
                start = time
                before = time
            if time - before > LONGEST_GAP:       # the time stamps are damaged from here on
                self.damaged += 1
                return
            before = time
            tick = int((time - start) * self.rate + self.early)
            if tick > last:
                last = tick
                yield Frame(self.path, f'frame {number}', self.upright(frame), number=number,
                            time=round(time - start, 4), tick=tick)

    def upright(self, frame) -> Image.Image:
        """PyAV's frame, turned as a phone's rotation tag says, with square pixels."""
        image = frame.to_image()
        aspect = self.stream.sample_aspect_ratio  # width / height of a pixel
        if aspect and 0.1 < aspect < 10 and aspect != 1:
            width = max(1, round(image.width * aspect))
            image = image.resize((width, image.height), Image.BILINEAR)
        return image.rotate(frame.rotation, expand=True) if frame.rotation else image


# ---- writing -----------------------------------------------------------------------------------


class OverlayWriter:
    """Writes Pillow images to an MP4 file, as H.264 if this build of FFmpeg can.

    rate: ticks per second.
    """

    def __init__(self, av: ModuleType, file: BinaryIO, rate: Fraction):
        self.av = av
        self.rate = rate
        self.stream = None                        # its size is that of the first image
        self.container = av.open(file, 'w', format='mp4')
        self.container.metadata['comment'] = MARK

    def open_stream(self, size: tuple[int, int]):
        name = self.find_encoder()
        self.size = size
        self.stream = self.container.add_stream(name, rate=self.rate)
        self.stream.width, self.stream.height = size
        self.stream.pix_fmt = 'yuv420p'
        self.stream.codec_context.time_base = 1 / self.rate
        if name == 'libx264':
            self.stream.options = {'crf': '20', 'preset': 'veryfast'}
        else:
            self.stream.bit_rate = int(0.2 * math.prod(size) * self.rate)

    def find_encoder(self) -> str:
        for name in ENCODERS[:-1]:
            try:
                self.av.codec.Codec(name, 'w')
                return name
            except ValueError:                    # not in this build
                continue
        return ENCODERS[-1]                       # part of FFmpeg itself

    def add(self, image: Image.Image, tick: int):
        if self.stream is None:
            # Both sides must be even.
            self.open_stream((image.width + image.width % 2, image.height + image.height % 2))
        frame = self.av.VideoFrame.from_image(image.crop((0, 0, *self.size)))
        frame.pts = tick
        frame.time_base = 1 / self.rate
        self.encode(frame)

    def encode(self, frame):
        """Writes a frame of PyAV, or with None those that the encoder still holds."""
        try:
            self.container.mux(self.stream.encode(frame))
        except self.av.FFmpegError as error:      # some of them are no OSError
            raise OSError(error.errno, error.strerror) from None

    def close(self):
        if self.stream is not None:
            self.encode(None)
        self.container.close()


# ---- the command -------------------------------------------------------------------------------


def add_video_flags(parser: argparse.ArgumentParser):
    """The flags of every command that parses videos; --colors is for photos, too."""
    parser.add_argument('--fps', type=Between(0.01, 1000, float), metavar='N',
                        help='parse N frames per second of videos (default: theirs)')
    parser.add_argument('--no-track', action='store_true',
                        help='number the people of each frame of a video anew, best first')
    parser.add_argument('--colors', choices=['parts', 'people'],
                        help='what has a color in overlays: parts, or people, with their ids '
                             '(default: parts)')


def check_video_flags(args: argparse.Namespace, paths: list[Path]):
    """ValueError with the first of these flags that is given where no path is that of a video."""
    if not any(path.suffix.lower() in VIDEOS for path in paths):
        refuse_given(args, VIDEO_FLAGS,
                     'is for videos, and there is none among the files; leave it out')


def split_videos(jobs: list[PhotoJob]) -> tuple[list[PhotoJob], list[PhotoJob]]:
    """-> the jobs of photos, and those of videos."""
    photos = []
    videos = []
    for job in jobs:
        kind = videos if Path(job.path).suffix.lower() in VIDEOS else photos
        kind.append(job)
    return photos, videos


def read_frames(pipeline: PhotoPipeline, video: Video) -> Iterator[Frame]:
    """Yields the frames, all of one size, with the network's input."""
    size = None                                   # a stream may change it, an MP4 file cannot
    for frame in video:
        size = size or frame.photo.size
        if frame.photo.size != size:
            frame.photo = frame.photo.resize(size)
        frame.photo = pipeline.fit(frame.photo)
        frame.input = pipeline.prepare(frame.photo)
        yield frame


def parse_frames(pipeline: PhotoPipeline, video: Video,
                 args: argparse.Namespace) -> Iterator[tuple[Frame, Image.Image, dict]]:
    """Yields every frame, its overlay and its record for NAME.jsonl. args: no_track and colors."""
    names = pipeline.class_names
    tracker = None if args.no_track else Tracker()

    def find(frame):
        with pipeline.turn:
            found = pipeline.find(frame.out, frame.photo)
            return frame, found, pipeline.kernels(frame.out, found)

    def number(found_frames):
        # One frame after the other: the ids depend on the frames before.
        for frame, found, kernels in found_frames:
            frame.out = None                      # its memory is needed for the next frames
            if tracker:
                ids = tracker.follow(frame.photo, found.parsing, frame.time, kernels)
            else:
                ids = list(range(1, len(found) + 1))
            yield frame, found, ids

    def draw(numbered):
        frame, found, ids = numbered
        people = [person.to_dict() for person in found]
        for person, i in zip(people, ids):
            person['id'] = i
        record = dict(software=MARK, video=str(video.path), frame=frame.number, time=frame.time,
                      width=frame.photo.width, height=frame.photo.height, people=people)
        if args.colors == 'people':
            picture = overlay_people(frame.photo, found.parsing, ids)
        else:
            colors = palette(len(names) - 1) if found.colors is None else found.colors
            picture = overlay(frame.photo, found.parsing, colors=colors, unknown=False)
            picture = add_legend(picture, colors, names, pipeline.kept)
        add_ids(picture, found.parsing, ids)
        return frame, picture, record

    with ThreadPoolExecutor(IN_WORK) as pool:
        found = ahead(pool, find, pipeline.parse(read_frames(pipeline, video)), IN_WORK)
        yield from ahead(pool, draw, number(found), IN_WORK)


def parse_video(pipeline: PhotoPipeline, path: str | Path, name: str,
                args: argparse.Namespace) -> str:
    """Parses a video into the pipeline's folder; returns a message.

    The pipeline has `find`, class_names, and kept, the ids in the legend. args: see
    `add_video_flags`. SIGINT and SIGTERM end it after a frame: both files are completed, then
    KeyboardInterrupt is raised. Raises a ValueError or an OSError if something cannot be read or
    written.
    """
    targets = [pipeline.folder / f'{name}{ending}' for ending in ENDINGS]
    for target in targets:
        check_target(target, pipeline.inputs)
    make_folder(pipeline.folder)
    count = 0
    most = 0                                      # people in a frame
    with closing(Video(path, args.fps)) as video, catching_signals() as seen, writing(targets[0]), \
            replacing(targets[0]) as pictures, replacing(targets[1]) as records:
        with open(pictures, 'wb') as file, open(records, 'w', encoding='utf-8') as lines, \
                closing(OverlayWriter(video.av, file, video.rate)) as writer, \
                closing(parse_frames(pipeline, video, args)) as frames:
            progress = tqdm(frames, total=video.count, disable=None, unit='frame')
            for frame, picture, record in progress:
                writer.add(picture, frame.tick)
                lines.write(json.dumps(record) + '\n')
                count += 1
                most = max(most, len(record['people']))
                if seen:                          # a signal
                    break
        if not count:
            raise ValueError(f'{printable(path)} has no frame that can be read; {ADVICE}')
    if seen:
        raise KeyboardInterrupt
    if video.damaged:
        raise ValueError(f'{printable(path)} is damaged in {counted(video.damaged, "place")}; what '
                         f'can be read, {counted(count, "frame")}, is in {targets[0]}')
    people = counted(most, 'person', 'people')
    return f'{printable(path)}: {counted(count, "frame")}, at most {people}'


def parse_videos(pipeline: PhotoPipeline, jobs: list[PhotoJob], args: argparse.Namespace) -> int:
    """Parses the videos among the jobs of a run, see `parse_video`; returns the number of those
    that could not be read to their end."""
    # The results of a video may not replace any of the files, photos included.
    pipeline.inputs = {os.path.realpath(job.path) for job in jobs}
    _, videos = split_videos(jobs)
    failed = 0
    for job in videos:
        try:
            print(parse_video(pipeline, job.path, job.name, args))
        except (OSError, ValueError, ModuleNotFoundError) as error:
            print(f'error: {error}', file=sys.stderr)
            failed += 1
    if videos:
        print(f'{len(videos) - failed} of {counted(len(videos), "video")} -> {pipeline.folder}/')
    return failed
