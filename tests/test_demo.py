"""The page of demo.py: its answers, and in a real browser (headless Chromium) uploads, legend, downloads and errors. The
browser's tests are skipped without Gradio, Selenium, Chromium and its driver."""
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
from tests.helpers import HERE, call, write_photo
from util.labels import LABEL_SETS
from util.masks import decode_rle

CHROMIUM, DRIVER = shutil.which('chromium') or shutil.which('chromium-browser'), shutil.which('chromedriver')
MISSING = [name for name, there in dict(gradio=importlib.util.find_spec('gradio'), chromedriver=DRIVER, chromium=CHROMIUM,
                                        selenium=importlib.util.find_spec('selenium')).items() if not there]
needs_browser = pytest.mark.skipif(bool(MISSING), reason=f'the page in a browser needs {", ".join(MISSING)}')
PERSON = LABEL_SETS['pascal'].names


@pytest.fixture(scope='session')
def files(checkpoint, tmp_path_factory):
    """Weights of the three systems and photos. Two photos are no photos."""
    folder = tmp_path_factory.mktemp('page')
    shutil.copy(checkpoint, folder / 'uniparser.pt')
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


def options(folder):
    return SimpleNamespace(out=folder, only=None, maps=False, max_size=None)


def read_path(data, size):
    """SVG path of rectangles -> bool (H, W)."""
    mask = np.zeros(size[::-1], bool)
    for x, y, end, back in re.findall(r'M(\d+) (\d+)H(\d+)v1H(\d+)z', data):
        assert x == back and not mask[int(y), int(x):int(end)].any()
        mask[int(y), int(x):int(end)] = True
    return mask


def parse(files, folder, name, *example):
    network = demo.load(str(files / name), 'cpu')
    return demo.parse_photo(demo.choose_pipeline(network, options(folder), *example), str(files / 'holiday photo.png'))


def check_answer(picture, cutouts, paths, photo='holiday photo'):
    """Picture, cut-outs and files tell the same story. -> the people of the JSON file."""
    paths = {os.path.basename(path): path for path in paths}
    record = json.loads(open(paths[f'{photo}.json']).read())
    assert record['photo'] == f'{photo}.png' and 'about' in picture
    drawn = dict(re.findall(r'<path data-part="([^"]*)" d="([^"]*)">', picture))
    parts = {f'person {p["id"]}: {part["name"]}': part for p in record['people'] for part in p['parts']}
    people = {f'person {p["id"]}': p for p in record['people']}
    assert set(drawn) == set(parts) and set(cutouts) == set(parts) | set(people)
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


def test_names_of_strangers_are_text_and_nothing_else():
    people = [dict(id=1, score=1, parts=[dict(id=1, name='<b onclick="x">&', area=4)])]
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
    arguments = ['--weights', *(str(files / f'{name}.pt') for name in ('uniparser', 'schp', 'eopnet')), '--device', 'cpu']
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
    return WebDriverWait(browser, 120, ignored_exceptions=[StaleElementReferenceException]).until(lambda _: condition())


def upload(browser, path, place=0):
    find(browser, 'input[type=file]')[place].send_keys(str(path))


def choose(browser, label, name):
    """Chooses an entry of a dropdown."""
    find(browser, f'input[aria-label="{label}"]')[0].click()
    wait(browser, lambda: [o for o in find(browser, '[role=option]') if o.text.strip().endswith(name)])[0].click()


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
        wait(browser, lambda: find(browser, '.picture path') and find(browser, 'a[download$=".json"]'))
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
        assert archive.testzip() is None and len([name for name in archive.namelist() if not name.endswith('/')]) == 4 + len(parts) + len(record['people'])
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
def test_a_sample_is_parsed_and_the_screen_shows_it(browser):
    with opened(browser):
        wait(browser, lambda: find(browser, '.gallery-item'))[0].click()
        wait(browser, lambda: find(browser, '.picture path') and find(browser, 'a[download="street.json"]'))
        picture = np.asarray(Image.open(io.BytesIO(find(browser, '.picture svg')[0].screenshot_as_png)).convert('RGB'))
        assert min(picture.shape[:2]) > 200 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000


@needs_browser
def test_the_three_systems_are_one_choice(browser, files):
    with opened(browser):
        assert not [e for e in find(browser, 'input[type=file]')[1:] if e.is_displayed()]
        choose(browser, 'weights', 'schp.pt')
        wait(browser, lambda: 'by example' not in find(browser, 'body')[0].text)
        upload(browser, files / 'holiday photo.png')
        wait(browser, lambda: text_of(browser, '.picture b') == ['person 1'] and find(browser, 'a[download$=".json"]'))
        record = json.loads(download(browser, 'holiday photo.json'))
        assert {part['name'] for part in record['people'][0]['parts']} <= set(PERSON)
        choose(browser, 'weights', 'eopnet.pt')
        wait(browser, lambda: 'its mask' in find(browser, 'body')[0].text)
        find(browser, 'button.primary')[0].click()
        wait(browser, lambda: any('give both' in text for text in text_of(browser, '.toast-body')))
        wait(browser, lambda: not find(browser, '.picture path'))            # no result of another choice is left


@needs_browser
def test_a_bad_photo_gets_the_sentence_of_the_command(browser, files):
    with opened(browser):
        upload(browser, files / '<b>bad.jpg')
        toast = wait(browser, lambda: text_of(browser, '.toast-body'))[0]
        assert 'bad.jpg cannot be read (it is not a JPEG' in toast and '/' not in toast.split('bad.jpg')[0]
        assert 'Traceback' not in toast and not find(browser, '.toast-body b')


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
        for place, kind in enumerate(kinds):
            answers = set()
            for path in tmp_path / 'secret.png', tmp_path / 'none.png', files / 'mask.png', link, '/etc/passwd', tmp_path:
                values = ['uniparser.pt'] + [None] * (len(kinds) - 1)
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
