"""demo.ipynb runs from top to bottom, and ships with the outputs of such a run."""
import base64
import copy
import io
import re

import pytest
from PIL import Image

from tests.helpers import HERE

nbformat = pytest.importorskip('nbformat')
nbclient = pytest.importorskip('nbclient')
pytest.importorskip('ipykernel')
pytest.importorskip('matplotlib')

PATH = HERE / 'demo.ipynb'


@pytest.fixture(scope='module')
def notebook():
    return nbformat.read(PATH, 4)


def outputs(notebook):
    """Per cell of code: the words that it prints and the sizes of its pictures."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            words = ''.join(output.text for output in cell.outputs if output.output_type == 'stream')
            pictures = [output.data['image/jpeg'] for output in cell.outputs if 'image/jpeg' in output.get('data', {})]
            sizes = [Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures]
            found.append((re.findall('person', words), sizes))
    return found


def test_the_notebook_runs_to_its_end(notebook, tmp_path, monkeypatch):
    for name in 'IPYTHONDIR', 'JUPYTER_CONFIG_DIR', 'JUPYTER_RUNTIME_DIR':
        monkeypatch.setenv(name, str(tmp_path / name))
    fresh = copy.deepcopy(notebook)
    for cell in fresh.cells:
        cell.pop('outputs', None), cell.pop('execution_count', None)
        if cell.cell_type == 'code':
            cell.update(outputs=[], execution_count=None)
    nbclient.NotebookClient(fresh, timeout=900, resources=dict(metadata=dict(path=HERE))).execute()      # raises where a cell fails
    assert not warnings_of(fresh)
    assert outputs(fresh) == outputs(notebook)


def warnings_of(notebook):
    return [output for cell in notebook.cells for output in cell.get('outputs', ()) if output.get('name') == 'stderr']


def test_it_ships_with_its_outputs_and_is_small(notebook):
    assert PATH.stat().st_size < 1e6
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum(len(sizes) for _, sizes in outputs(notebook)) == 4 and not warnings_of(notebook)
    written = ''.join(str(output.get('text', '')) + str(output.get('data', {}).get('text/plain', '')) for cell in code for output in cell.outputs)
    assert not re.search(r'/\w+/|\\\w+\\|0x[0-9a-f]{6}', written)           # a path or an address of a machine
