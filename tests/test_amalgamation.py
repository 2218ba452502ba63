"""minris.py is what src/amalgamate.py makes of src/minris, and what it cannot make it refuses."""

import os
import re
import subprocess
import sys

import pytest
from conftest import MADE, ROOT

import amalgamate


def test_minris_py_is_what_src_makes():
    assert MADE.read_text("utf-8") == amalgamate.amalgamated(), "run python src/amalgamate.py"


def test_check_says_so_with_its_exit_status(tmp_path):
    command = [sys.executable, ROOT / "src" / "amalgamate.py", "--check"]
    assert subprocess.run(command, check=False).returncode == 0


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small house; write a module by its name."""
    monkeypatch.setattr(amalgamate, "ROOT", tmp_path)
    monkeypatch.setattr(amalgamate, "SRC", tmp_path / "src")
    monkeypatch.setattr(amalgamate, "PACKAGE", tmp_path / "src" / "minris")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nrequires-python = ">=3.11"\ndependencies = ["bottle"]\n'
    )

    def write(name, text):
        path = tmp_path / "src" / "minris" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("__init__.py", '"""A house.\n\n 1  cellar  stores\n 2  hall  guests\n"""\n\nHERE = 1\n')
    write("__main__.py", "")
    write("cellar/__init__.py", '"""The cellar."""\n')
    write("hall/__init__.py", '"""The hall."""\n')
    write("cellar/wine.py", '"""Wine."""\n\nimport re\n\nWINE = re.compile("red")\n')
    write(
        "hall/table.py",
        '"""The table."""\n\nfrom minris.cellar.wine import WINE\n\n\ndef main():\n    return WINE\n',
    )
    return write


def test_the_modules_stand_in_the_order_of_the_floors_behind_their_banners(package):
    text = amalgamate.amalgamated()
    assert "from minris" not in text
    assert "import os\nimport re" in text
    assert text.index("HERE = 1") < text.index("# minris.cellar.wine\n# Wine.")
    assert text.index("WINE = re.compile") < text.index("# minris.hall.table\n# The table.")
    assert '# requires-python = ">=3.11"\n# dependencies = [\n#   "bottle",\n# ]\n# ///' in text


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("cellar/up.py", "from minris.hall.table import main\n", "not on a floor below"),
        ("hall/gone.py", "from minris.attic.box import BOX\n", "which does not exist"),
        ("hall/other.py", "WINE = 2\n", "WINE is also defined in"),
        ("hall/alias.py", "from minris.cellar.wine import WINE as RED\n", "line 1"),
        ("hall/star.py", "from minris.cellar.wine import *\n", "line 1"),
        ("hall/dots.py", "from .table import main\n", "line 1"),
        ("hall/whole.py", "import minris.cellar.wine\n", "line 1"),
        ("attic/box.py", "BOX = 1\n", "not in the list"),
    ],
)
def test_what_cannot_be_one_file_is_refused(package, name, text, words):
    package(name, text)
    with pytest.raises(amalgamate.Refused, match=words):
        amalgamate.amalgamated()


def test_a_circle_is_refused(package):
    package("hall/one.py", "from minris.hall.two import TWO\n\nONE = 1\n")
    package("hall/two.py", "from minris.hall.one import ONE\n\nTWO = 2\n")
    with pytest.raises(amalgamate.Refused, match="circular"):
        amalgamate.amalgamated()


@pytest.mark.parametrize(
    ("template", "made"),
    [
        ("<p>{{t('Name')}}</p>\n", 'PAGE = """<p>{{t(\'Name\')}}</p>\n"""'),
        ("{{a.split('\\n')}}\n", 'PAGE = r"""{{a.split(\'\\n\')}}\n"""'),
    ],
)
def test_the_text_of_a_template_stands_in_the_file(package, template, made):
    package("pages/p.html", template)
    package("hall/page.py", 'from minris.hall.t import template\n\nPAGE = template("p.html")\n')
    package("hall/t.py", "def template(name):\n    return name\n")
    assert made in amalgamate.amalgamated()
    assert "def template" not in amalgamate.amalgamated()


def test_the_files_of_static_stand_in_the_file(package, tmp_path):
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "a.css").write_text("p { color: red }\n")
    package(
        "hall/t.py", "def static_files(name):\n    return {}\n\n\nALL = static_files('a.css')\n"
    )
    made = 'ALL = {\n    "a.css": """p { color: red }\n""",\n}\n'
    assert made in amalgamate.amalgamated()
    assert "def static_files" not in amalgamate.amalgamated()


def test_a_text_that_would_end_its_literal_is_refused(package):
    package("pages/p.html", '<p title="""></p>')
    package("hall/page.py", 'PAGE = template("p.html")\n')
    with pytest.raises(amalgamate.Refused, match="three quotes"):
        amalgamate.amalgamated()


# What it is made of works in it too.

OF_EVERY_KIND = (
    "tests/orders/test_undo.py",
    "tests/interchange/test_interchange.py",
    "tests/delivery/test_outbox.py",
    "tests/dimse/test_dimse.py",
)
NOT_AT_LENGTH = "not bytes_changed and not cut_anywhere and not hundred and not of_200"


def test_tests_of_every_kind_pass_against_the_made_file_too():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "made", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *OF_EVERY_KIND, "-k", NOT_AT_LENGTH],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        check=False,
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0, done.stdout[-2000:]
    assert passed, done.stdout[-2000:]
    assert int(passed[1]) >= 60
