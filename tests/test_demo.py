"""The page of demo.py: its answers, and in a real browser (headless Chromium) uploads, legend, downloads and errors. The
browser's tests are skipped without Gradio, Selenium, Chromium and its driver."""
import base64
import contextlib
import http.client
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import demo
from oneshot import EOPNet
from schp import SCHP
from tests.helpers import HERE, call, tiny_model, write_photo
from util import datasets
from util.labels import LABEL_SETS, TARGETS
from util.rle import decode_rle

CHROMIUM, DRIVER = shutil.which('chromium') or shutil.which('chromium-browser'), shutil.which('chromedriver')
MISSING = [name for name, there in dict(gradio=importlib.util.find_spec('gradio'), chromedriver=DRIVER, chromium=CHROMIUM,
                                        selenium=importlib.util.find_spec('selenium')).items() if not there]
needs_browser = pytest.mark.skipif(bool(MISSING), reason=f'the page in a browser needs {", ".join(MISSING)}')
PERSON = LABEL_SETS['pascal'].names
CIHP = datasets.CIHP.class_names


@pytest.fixture(scope='session')
def files(checkpoint, tmp_path_factory):
    """Weights of the three systems and photos. Two photos are no photos."""
    folder = tmp_path_factory.mktemp('page')
    shutil.copy(checkpoint, folder / 'uniparser.pt')
    tiny_model('ccp', theta_center=0.0, theta_score=0.0, theta_mask=0.1, theta_same=1.0, theta_paint=0.0, theta_part=0.0,
               max_people=4, test_short_side=48, long_side=96).save(folder / 'cihp.pt')
    torch.manual_seed(0)
    SCHP(PERSON, (48, 40), (), (1, 1, 1, 1), 4).save(folder / 'schp.pt')
    model = EOPNet(stem=8, middle=1, channels=16, high_level=False, num_labels=4, way='kway')
    model.save(folder / 'eopnet.pt')
    write_photo(folder / 'holiday photo.png', size=(90, 60)), write_photo(folder / 'support.png', 1, size=(50, 40))
    mask = np.zeros((40, 50), np.uint8)
    mask[5:20, 5:45], mask[20:35, 5:45] = 1, 2
    Image.fromarray(mask).save(folder / 'mask.png')
    (folder / '<b>bad.jpg').write_text('no photo')
    return folder


# ---- without a browser -----------------------------------------------------------------------------------------


def options(folder, **more):
    return SimpleNamespace(**dict(out=folder, only=None, maps=False, max_size=None, labels=None, theta_score=0.0) | more)


def read_path(data, size):
    """SVG path of rectangles -> bool (H, W)."""
    mask = np.zeros(size[::-1], bool)
    for x, y, end, back in re.findall(r'M(\d+) (\d+)H(\d+)v1H(\d+)z', data):
        assert x == back and not mask[int(y), int(x):int(end)].any()
        mask[int(y), int(x):int(end)] = True
    return mask


def parse(files, folder, name, *example, steps=None, **more):
    """Answer of the page to the holiday photo. steps: a list that receives the progress."""
    network = demo.load(str(files / name), 'cpu')
    pipeline = demo.choose_pipeline(network, options(folder, **more), *example)
    steps = [] if steps is None else steps
    return demo.parse_photo(pipeline, str(files / 'holiday photo.png'), lambda share, desc: steps.append((share, desc)))


def check_answer(picture, cutouts, paths, photo='holiday photo'):
    """Picture, cut-outs and files tell the same story. -> the people of the JSON file."""
    paths = {os.path.basename(path): path for path in paths}
    record = json.loads(open(paths[f'{photo}.json']).read())
    assert record['photo'] == f'{photo}.png' and 'about' in picture
    drawn = dict(re.findall(r'<path data-part="([^"]*)" d="([^"]*)">', picture))
    parts = {f'person {p["id"]}: {part["name"]}': part for p in record['people'] for part in p['parts']}
    people = {f'person {p["id"]}': p for p in record['people']}
    assert set(drawn) == set(parts) and set(cutouts) == set(parts) | set(people)
    numbers = re.findall(r'<text x="(\d+)" y="(\d+)" font-size="4">(\d+)</text>', picture)
    assert numbers == [(f'{p["center"][0]:.0f}', f'{p["center"][1]:.0f}', str(p['id'])) for p in record['people']]
    for name, part in parts.items():
        mask = decode_rle(part['rle']['counts'], record['width'], record['height'])
        assert np.array_equal(read_path(drawn[name], (record['width'], record['height'])), mask)
        assert f'{name}, {part["area"]:,} pixels' in picture and f'</i>{part["name"]} ' in picture
    for name, thing in {**parts, **people}.items():
        cut = Image.open(cutouts[name])
        assert cut.size == tuple(thing['box'][2:]) and (np.asarray(cut)[..., 3] > 0).sum() == thing['area']
    archive = zipfile.ZipFile(paths[f'{photo}.zip']).namelist()
    assert {f'{photo}_cutouts/{os.path.basename(path)}' for path in cutouts.values()} < set(archive) and f'{photo}.json' in archive
    return record['people']


def test_a_uniparser_shows_people_and_parts(files, tmp_path):
    people = check_answer(*parse(files, tmp_path / 'out', 'uniparser.pt'))
    assert len(people) > 1


def test_a_label_set_and_a_threshold_are_those_of_the_command(files, tmp_path):
    steps = []
    everybody = check_answer(*parse(files, tmp_path / 'all', 'cihp.pt', labels='atr', steps=steps))
    assert {part['name'] for person in everybody for part in person['parts']} <= set(LABEL_SETS['atr'].names)
    assert [words for _, words in steps] == ['reading the photo', 'parsing', 'writing the files']
    scores = [person['score'] for person in everybody]
    assert len(scores) > 1 and scores[0] > scores[1]
    picture, cutouts, paths = parse(files, tmp_path / 'best', 'cihp.pt', labels='atr', theta_score=sum(scores[:2]) / 2)
    best, = check_answer(picture, cutouts, paths)
    assert best == everybody[0]
    # The legend has the colors of the indexed picture.
    colors = Image.open([path for path in paths if path.endswith('parts.png')][0]).getpalette()
    legend = re.findall(r'class="parts" style="background: #(\w+)"', picture)
    assert legend == [bytes(colors[3 * part['id']:3 * part['id'] + 3]).hex() for part in best['parts']]


def test_the_settings_follow_the_weights(files):
    shown = {name: demo.load(str(files / f'{name}.pt'), 'cpu').settings() for name in ('uniparser', 'cihp', 'schp', 'eopnet')}
    visible = {name: [setting['visible'] for setting in settings] for name, settings in shown.items()}
    assert visible == dict(uniparser=[False, False, True], cihp=[True, True, True], schp=[False, False, False],
                           eopnet=[False, False, True])
    assert shown['cihp'][0]['choices'] == [demo.OWN, *TARGETS] and shown['cihp'][1]['value'] == 0


def test_the_page_waits_for_what_is_missing(files):
    """It shows a hint and no error, and no result of another choice."""
    networks = demo.load_networks([str(files / 'eopnet.pt'), str(files / 'cihp.pt')], 'cpu')
    gr = SimpleNamespace(Dropdown=dict)
    for weights, photo, hint in (('cihp.pt', None, 'Drop a photo'), ('eopnet.pt', 'a.png', 'by example'), ('eopnet.pt', None, 'Drop')):
        answers = list(demo.answer(gr, networks, None, None, None, weights, photo, demo.OWN, 0.5, None, None, ''))
        (text, *rest), = answers
        assert hint in text and rest == [dict(choices=[], value=None), None, {}]


def test_people_have_one_color_each(monkeypatch):
    drawn = []
    monkeypatch.setattr(demo, 'overlay', lambda photo, maps, colors, **_: drawn.append((maps, colors)) or photo)
    parsing = np.zeros((2, 3, 4), np.uint8)
    parsing[0, 0], parsing[1, 1], parsing[1, 2] = 1, 1, 2
    people = [dict(id=k, score=1, center=(1, 1), parts=[]) for k in (1, 2)]
    text = demo.draw_picture(Image.new('RGB', (4, 3)), parsing, people, ['background', 'x', 'y'], '')
    (parts, _), (whole, colors) = drawn
    assert np.array_equal(parts, parsing) and np.array_equal(whole, (parsing > 0) * np.array([1, 2])[:, None, None])
    swatches = re.findall(r'class="people" style="background: #(\w+)"', text)
    assert swatches == [bytes(colors[k]).hex() for k in (1, 2)] and swatches[0] != swatches[1]


def test_a_part_that_is_unknown_is_only_outlined():
    photo = Image.new('RGB', (80, 60), (30, 60, 90))
    people = [dict(id=1, score=1, center=(1, 1), parts=[])]
    text = demo.draw_picture(photo, np.full((1, 60, 80), 255, np.uint8), people, ['background', 'x'], '')
    drawn, = re.findall(r'class="parts" [^>]*href="data:image/jpeg;base64,([^"]*)"', text)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn))), int)
    assert np.abs(pixels[16:40, 16:60] - (30, 60, 90)).max() < 5


def test_a_schp_file_shows_one_person(files, tmp_path):
    person, = check_answer(*parse(files, tmp_path / 'out', 'schp.pt'))
    assert person['score'] == 1 and {part['name'] for part in person['parts']} <= set(PERSON[1:])
    labels = demo.load(str(files / 'schp.pt'), 'cpu').model.predict(files / 'holiday photo.png')[0].labels
    assert person['area'] == (labels > 0).sum() > 0


@pytest.mark.parametrize('name', ['eopnet.pt', 'uniparser.pt'])
def test_an_example_names_the_classes(files, tmp_path, name):
    people = check_answer(*parse(files, tmp_path / 'out', name, files / 'support.png', files / 'mask.png', 'top, bottom'))
    assert {part['name'] for person in people for part in person['parts']} <= {'top', 'bottom'}
    assert people or name == 'eopnet.pt'


@pytest.mark.parametrize('name, example, message', [
    ('eopnet.pt', (), 'give both'), ('uniparser.pt', ('support.png', None), 'give both'),
    ('uniparser.pt', ('support.png', 'support.png'), 'at most 254'),
    ('uniparser.pt', ('support.png', 'mask.png', 'a'), '1 names'),
    ('uniparser.pt', ('holiday photo.png', 'mask.png', None), 'a mask has the size of its photo'),
    ('uniparser.pt', ('support.png', 'mask.png', '/etc/x.json'), 'names themselves')])
def test_examples_that_cannot_be_are_refused(files, tmp_path, name, example, message):
    example = [files / e if e and e.endswith('png') else e for e in example]
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(files, tmp_path, name, *example)


def test_a_small_share_is_not_nothing():
    assert [demo.show_share(area, 10000) for area in (4, 6, 1234)] == ['&lt;0.1%', '0.1%', '12.3%']


def test_names_of_strangers_are_text_and_nothing_else():
    people = [dict(id=1, score=1, center=(1, 1), parts=[dict(id=1, name='<b onclick="x">&', area=4)])]
    text = demo.draw_picture(Image.new('RGB', (4, 3)), np.ones((1, 3, 4), np.uint8), people, ['background', 'x'], '<i>')
    assert '<b onclick' not in text and '<i>' not in text and '&lt;b onclick=&quot;x&quot;&gt;&amp;' in text


def test_a_large_photo_is_shown_smaller_and_nobody_is_a_picture_too():
    text = demo.draw_picture(Image.new('RGB', (3000, 20)), np.zeros((0, 20, 3000), np.uint8), [], ['background', 'x'], 'nobody')
    assert 'viewBox="0 0 900 6"' in text and '<path' not in text and 'nobody' in text


@pytest.mark.parametrize('arguments, message', [
    (['--weights', 'no.pt'], 'no.pt does not exist'), (['--max-size', '0'], '--max-size is 0'), (['--port', '0'], '--port is 0')])
def test_mistakes_in_the_command_get_one_sentence(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setitem(sys.modules, 'gradio', SimpleNamespace(__version__='6.0.0'))
    done = call(demo, *arguments, '--device', 'cpu', cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith('error: ') and message in done.stderr


@pytest.mark.parametrize('module, message', [(None, 'pip install gradio'),
                                             (SimpleNamespace(__version__='5.9.1'), 'pip install --upgrade gradio')])
def test_without_gradio_a_sentence_names_the_package(monkeypatch, module, message):
    monkeypatch.setitem(sys.modules, 'gradio', module)
    done = call(demo)
    assert done.returncode == 2 and message in done.stderr and 'Traceback' not in done.stderr


# ---- in a browser ----------------------------------------------------------------------------------------------

START = '''
import socket, sys
def watch(event, arguments):
    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.bind'):
        address = arguments[0] if event == 'socket.getaddrinfo' else arguments[1]
        host = address[0] if isinstance(address, tuple) else address
        if isinstance(host, str) and host not in ('127.0.0.1', 'localhost', '::1', ''):
            print('NETWORK', event, address, flush=True)
sys.addaudithook(watch)
import demo
demo.main(sys.argv[1:])
'''


@pytest.fixture(scope='module')
def server(files, tmp_path_factory):
    """The program as a user starts it, and what it prints."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    output = tmp_path_factory.mktemp('server') / 'output'
    arguments = ['--weights', *(str(files / f'{name}.pt') for name in ('uniparser', 'cihp', 'schp', 'eopnet')), '--device', 'cpu']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(HERE), 'TMPDIR': str(output.parent)}
    with open(output, 'w') as file:
        process = subprocess.Popen([sys.executable, '-c', START, *arguments, '--port', str(port)], stdout=file,
                                   stderr=subprocess.STDOUT, env=environment, cwd=output.parent)
    while process.poll() is None and 'http' not in output.read_text():
        time.sleep(0.2)
    assert process.poll() is None, output.read_text()
    yield SimpleNamespace(address=f'http://127.0.0.1:{port}', output=output, process=process)
    process.send_signal(signal.SIGTERM)
    process.wait(60)


@pytest.fixture(scope='module')
def browser(server, tmp_path_factory):
    from selenium import webdriver
    options, downloads = webdriver.ChromeOptions(), tmp_path_factory.mktemp('downloads')
    options.binary_location = CHROMIUM
    for flag in ('headless=new', 'no-sandbox', 'disable-dev-shm-usage', 'disable-gpu', 'window-size=1300,1700',
                 'use-fake-device-for-media-stream', 'use-fake-ui-for-media-stream',
                 f'user-data-dir={tmp_path_factory.mktemp("chromium")}'):
        options.add_argument(f'--{flag}')
    options.add_experimental_option('prefs', {'download.default_directory': str(downloads),
                                              'profile.default_content_setting_values.automatic_downloads': 1})
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL'})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.downloads, driver.server = downloads, server
    yield driver
    driver.quit()


@contextlib.contextmanager
def opened(browser):
    """The page, freshly loaded; prints what the server said where a step fails."""
    browser.get(browser.server.address)
    wait(browser, lambda: find(browser, 'input[type=file]') and find(browser, 'button.primary'))
    try:
        yield
    except BaseException:
        browser.save_screenshot(str(browser.downloads / 'failed.png'))
        print(browser.server.output.read_text(), browser.downloads / 'failed.png')
        raise


def find(browser, selector):
    return browser.find_elements('css selector', selector)


def wait(browser, condition):
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait
    return WebDriverWait(browser, 300, ignored_exceptions=[StaleElementReferenceException]).until(lambda _: condition())


def upload(browser, path, place=0):
    find(browser, 'input[type=file]')[place].send_keys(str(path))


def choose(browser, label, name):
    """Chooses an entry of a dropdown."""
    find(browser, f'input[aria-label="{label}"]')[0].click()
    wait(browser, lambda: [o for o in find(browser, '[role=option]') if o.text.strip().endswith(name)])[0].click()


def wait_for_result(browser, name):
    wait(browser, lambda: find(browser, '.picture path') and find(browser, f'a[download="{name}.json"]'))


def toasts(browser):
    return [text for text in text_of(browser, '.toast-body') if text.strip()]


def download(browser, name):
    """Clicks a file of the page -> its bytes."""
    path = browser.downloads / name
    path.unlink(missing_ok=True)
    link, = wait(browser, lambda: [a for a in find(browser, 'a[download]') if a.get_attribute('download') == name])
    browser.execute_script('arguments[0].click()', link)
    wait(browser, path.exists)                                # Chromium renames it when it is complete
    return path.read_bytes()


def text_of(browser, selector):
    return [element.get_attribute('textContent') for element in find(browser, selector)]


@needs_browser
def test_a_photo_is_dropped_and_everything_is_downloaded(browser, files):
    with opened(browser):
        upload(browser, files / 'holiday photo.png')
        wait_for_result(browser, 'holiday photo')
        record = json.loads(download(browser, 'holiday photo.json'))
        parts = {f'person {p["id"]}: {part["name"]}': part for p in record['people'] for part in p['parts']}
        legend = [text.split() for text in text_of(browser, '.picture span')]
        shares = [[part['name'], f'{part["area"] / 5400:.1%}'] for part in parts.values()]
        assert legend == shares and len(text_of(browser, '.picture b')) == len(record['people']) > 1
        people, labels = (np.asarray(Image.open(io.BytesIO(download(browser, f'holiday photo_{kind}.png'))))
                          for kind in ('people', 'parts'))
        assert people.shape == (60, 90) and set(np.unique(people)) - {0} <= {p['id'] for p in record['people']}
        assert ((labels > 0) == (people > 0)).all() and people.any()
        assert Image.open(io.BytesIO(download(browser, 'holiday photo_overlay.jpg'))).width == 90
        archive = zipfile.ZipFile(io.BytesIO(download(browser, 'holiday photo.zip')))
        assert archive.testzip() is None and len([name for name in archive.namelist() if not name.endswith('/')]) == \
            4 + len(parts) + len(record['people'])
        click_a_part(browser, parts)


def click_a_part(browser, parts):
    """A part tells its name and area under the mouse, and a click cuts it out."""
    name = text_of(browser, '.picture title')[-1].rsplit(', ', 2)[0]
    path = find(browser, '.picture path')[-1]
    for event in 'mouseover', 'click':
        browser.execute_script(f'arguments[0].dispatchEvent(new MouseEvent("{event}", {{bubbles: true}}))', path)
    about, = text_of(browser, '.about')
    assert about == f'{name}, {parts[name]["area"]:,} pixels, {parts[name]["area"] / 5400:.1%} of the photo'
    file = f'{name.replace("person ", "person").replace(": ", "_")}.png'
    cut = np.asarray(Image.open(io.BytesIO(download(browser, file))))
    assert cut.shape[:2] == tuple(parts[name]['box'][:1:-1]) and (cut[..., 3] > 0).sum() == parts[name]['area']
    choose(browser, 'person or part', 'person 1')
    wait(browser, lambda: find(browser, 'a[download="person1.png"]'))


@needs_browser
def test_the_page_opens_with_a_parsed_sample(browser):
    with opened(browser):
        wait_for_result(browser, 'street')
        picture = np.asarray(Image.open(io.BytesIO(find(browser, '.picture svg')[0].screenshot_as_png)).convert('RGB'))
        assert min(picture.shape[:2]) > 200 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000
        assert text_of(browser, 'h1') == ['Multi-human parsing'] and not toasts(browser)
        wait(browser, lambda: find(browser, '.gallery-item'))[1].click()
        wait_for_result(browser, 'example')


@needs_browser
@pytest.mark.parametrize('width', [1300, 800, 420])
def test_the_result_is_beside_the_photo_or_next_to_it(browser, width):
    """In a narrow window, the result follows the photo and its samples, and the settings come last."""
    browser.set_window_size(width, 1700)
    try:
        with opened(browser):
            wait_for_result(browser, 'street')
            photo, picture, settings = (find(browser, selector)[0].rect for selector in ('.left img', '.picture svg', '.settings'))
            if browser.execute_script('return window.innerWidth') > 767:
                assert picture['x'] > photo['x'] + photo['width'] and abs(picture['y'] - photo['y']) < 150
            else:
                assert photo['y'] + photo['height'] < picture['y'] < photo['y'] + 600
                assert settings['y'] > picture['y'] + picture['height']
            assert browser.execute_script('return document.documentElement.scrollWidth <= window.innerWidth')
    finally:
        browser.set_window_size(1300, 1700)


@needs_browser
def test_colors_and_numbers_are_chosen_without_an_answer(browser):
    def shown():
        return [bool(find(browser, f'.picture {kind}')[0].is_displayed()) for kind in
                ('image.parts', 'image.people', 'i.parts', 'i.people', 'text')]

    with opened(browser):
        wait_for_result(browser, 'street')
        assert shown() == [True, False, True, False, True]
        picture = find(browser, '.picture svg')[0]
        find(browser, '.colors [value=people]')[0].click()
        wait(browser, lambda: shown() == [False, True, False, True, True])
        find(browser, '.numbers input')[0].click()
        wait(browser, lambda: shown() == [False, True, False, True, False])
        assert find(browser, '.picture svg')[0] == picture                   # the same element
        # The legend is as wide as the picture, also without the squares of the parts.
        place = find(browser, '.picture')[0]
        assert place.get_property('scrollWidth') <= place.get_property('clientWidth')
        assert {span.size['height'] for span in find(browser, '.picture span')} == {find(browser, '.picture span')[0].size['height']}


@needs_browser
def test_the_four_files_are_one_choice(browser, files):
    """Another model clears the result and has its own settings; nothing is an error before there is something to parse."""
    with opened(browser):
        wait_for_result(browser, 'street')
        assert not [e for e in find(browser, 'input[type=file]')[1:] if e.is_displayed()]
        assert not [e for e in find(browser, 'input[aria-label="label set"]') if e.is_displayed()]
        choose(browser, 'weights', 'cihp.pt')
        wait(browser, lambda: find(browser, 'input[aria-label="label set"]'))
        wait_for_result(browser, 'street')
        choose(browser, 'label set', 'atr')
        wait(browser, lambda: {text.rsplit(' ', 1)[0] for text in text_of(browser, '.picture span')} - set(CIHP))
        legend = {text.rsplit(' ', 1)[0] for text in text_of(browser, '.picture span')}
        assert legend <= set(LABEL_SETS['atr'].names)
        choose(browser, 'weights', 'schp.pt')
        wait(browser, lambda: 'by example' not in find(browser, 'body')[0].text)
        upload(browser, files / 'holiday photo.png')
        wait_for_result(browser, 'holiday photo')
        wait(browser, lambda: text_of(browser, '.picture b') == ['person 1'])
        record = json.loads(download(browser, 'holiday photo.json'))
        assert {part['name'] for part in record['people'][0]['parts']} <= set(PERSON)
        choose(browser, 'weights', 'eopnet.pt')
        wait(browser, lambda: 'parses by example' in find(browser, 'body')[0].text)
        assert not find(browser, '.picture path') and not find(browser, 'a[download$=".json"]') and not toasts(browser)
        upload(browser, files / 'support.png', 1)
        wait(browser, lambda: len(find(browser, '.settings img')) > 1)       # with that of the samples
        find(browser, 'button.primary')[0].click()
        wait(browser, lambda: any('give both' in text for text in toasts(browser)))


@needs_browser
def test_a_webcam_takes_the_photo(browser):
    with opened(browser):
        wait_for_result(browser, 'street')
        find(browser, '[aria-label="Remove Image"], [aria-label="Clear"]')[0].click()
        wait(browser, lambda: 'Drop a photo or click a sample' in find(browser, 'body')[0].text)
        find(browser, '[aria-label="Capture from camera"]')[0].click()
        wait(browser, lambda: find(browser, '[title="grant webcam access"] button'))[0].click()      # asks for the camera
        wait(browser, lambda: find(browser, '.left video') and find(browser, '[aria-label="capture photo"]'))
        time.sleep(1)                                                        # its first picture may be black
        find(browser, '[aria-label="capture photo"]')[0].click()
        wait(browser, lambda: find(browser, '.picture path'))


@needs_browser
def test_bad_photos_get_the_sentence_of_the_command(browser, files):
    (files / 'empty.jpg').touch()
    (files / 'cut.jpg').write_bytes((HERE / 'assets' / 'street.jpg').read_bytes()[:5000])
    with opened(browser):
        wait_for_result(browser, 'street')
        for name, reason in (('<b>bad.jpg', 'it is not a JPEG'), ('empty.jpg', 'it is empty'), ('cut.jpg', 'image file is truncated')):
            upload(browser, files / name)
            short = name.removeprefix('<b>')
            toast, = wait(browser, lambda: [text for text in toasts(browser) if f'{short} cannot be read ({reason}' in text])
            assert '/' not in toast.split(short)[0] and 'Traceback' not in toast
            assert not find(browser, '.toast-body b') and not find(browser, '.picture path')


@needs_browser
def test_the_page_is_private(browser):
    """Nothing is asked of another computer, by the browser or by the program, and no other computer can ask."""
    with opened(browser):
        time.sleep(1)
    seen = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    sent = [e['params'] for e in seen if e['method'] == 'Network.requestWillBeSent']
    urls = [e['request']['url'] for e in sent if e['documentURL'].startswith(browser.server.address)]    # of no new tab
    assert len(urls) > 20 and all(url.startswith((browser.server.address, 'data:', 'blob:')) for url in urls), urls
    output = browser.server.output.read_text()
    assert not list(HERE.glob('*.pyi')) and not list(HERE.glob('util/*.pyi'))                      # Gradio's
    assert 'NETWORK' not in output and 'Traceback' not in output and 'gradio.live' not in output


# ---- from another program. Gradio prints tracebacks about what it refuses, so this comes after the test of privacy -------

needs_gradio = pytest.mark.skipif('gradio' in MISSING, reason='the page needs gradio')


def ask(server, path, content=None, **headers):
    """A request as another program sends it -> status and text of the answer."""
    connection = http.client.HTTPConnection(server.address.removeprefix('http://'), timeout=60)
    body = None if content is None else json.dumps(content)
    connection.request('POST' if body else 'GET', f'/gradio_api/{path}', body,
                       {'Content-Type': 'application/json', **headers})
    response = connection.getresponse()
    return response.status, response.read().decode()


def call_endpoint(server, name, values):
    status, text = ask(server, f'call{name}', dict(data=values))
    return ask(server, f'call{name}/{json.loads(text)["event_id"]}')[1] if status == 200 else text


@needs_gradio
def test_the_page_reads_no_file_that_was_not_dropped_on_it(server, files, tmp_path):
    """Every endpoint that Gradio lists, with paths in the place of uploads. Existing and missing files look alike."""
    write_photo(tmp_path / 'secret.png', size=(90, 60))
    endpoints = json.loads(ask(server, 'info')[1])['named_endpoints']
    assert endpoints
    link = server.output.parent / 'secret link.png'
    link.symlink_to(tmp_path / 'secret.png')
    attacked = 0
    for name, about in endpoints.items():
        kinds = [parameter['python_type']['type'] for parameter in about['parameters']]
        defaults = [None if 'filepath' in kind else parameter['parameter_default'] for kind, parameter in zip(kinds, about['parameters'])]
        for place, kind in enumerate(kinds):
            answers = set()
            for path in tmp_path / 'secret.png', tmp_path / 'none.png', files / 'mask.png', link, '/etc/passwd', tmp_path:
                values = defaults.copy()
                values[place] = dict(path=str(path)) if 'filepath' in kind else str(path)
                answers.add(call_endpoint(server, name, values))
            assert not any('base64' in answer or 'root:' in answer for answer in answers)
            if 'filepath' in kind:
                attacked += 1
                assert len(answers) == 1 and 'dropped on it' in answers.pop()
    assert attacked >= 3
    for path in tmp_path / 'secret.png', '/etc/passwd':
        assert ask(server, f'file={path}')[0] in (403, 404)


@needs_gradio
def test_the_page_answers_no_other_site(server):
    port = server.address.rpartition(':')[2]
    assert ask(server, 'info')[0] == 200
    for host in f'localhost:{port}', '127.0.0.1', 'LOCALHOST':
        assert ask(server, 'info', Host=host)[0] == 200
    for headers in (dict(Host=f'evil.example:{port}'), dict(Host='127.0.0.1.evil.example'), dict(Host=''),
                    dict(Origin='https://evil.example'), dict(Origin='null'), dict(Host='localhost', Origin='http://[::')):
        status, text = ask(server, 'info', **headers)
        assert status == 403 and 'named_endpoints' not in text, headers


# ---- the end ---------------------------------------------------------------------------------------------------


@needs_browser
def test_photos_and_results_end_with_the_program(browser):
    browser.server.process.send_signal(signal.SIGTERM)
    browser.server.process.wait(60)
    assert not list(browser.server.output.parent.glob('parsing-*'))
