"""The plan of the house, kept true: minris.py read as text and as a syntax tree.

The order of its sections is that of the list in its docstring. What a section may not touch stands
in MAY_NOT_USE below, what it may import in its functions in IMPORTED_BY.
"""

import ast
import collections
import inspect
import itertools
import re
import subprocess
import symtable
import sys
import tomllib
from pathlib import Path

import pytest

import minris

FILE = Path(minris.__file__)
SOURCE = FILE.read_text("utf-8")
LINES = SOURCE.splitlines()
TREE = ast.parse(SOURCE)
PROJECT = Path(__file__).parents[1]

BANNER = re.compile(r"# (\d+)\. ([A-Z]+) -+")
BANNERS = [(n, m) for n, line in enumerate(LINES, 1) if (m := BANNER.fullmatch(line))]
SECTIONS = [match[2] for _, match in BANNERS]
FRONT = "FRONT"

MODELS = frozenset(model.__name__ for model in minris.Stored.__subclasses__())
SQL = MODELS | {"database", "peewee", "sqlite3", "fetch_rows", "insert_row", "update_row"}
NETWORK = frozenset({"socket", "asyncio", "urllib"})
FILES = frozenset({"Path", "open", "os", "tempfile", "shutil"})
CLOCK = frozenset({"datetime", "time"})
RULES = frozenset({"MPPS_TRANSITIONS", "STEP_TRANSITIONS", "STEP_STATUS_AFTER"})

# By section: names that it may not use, and sections of which it may use nothing.
CORE = {"WORKLIST", "MPPS", "UPS", "AVAILABILITY", "WORKFLOW", "INTERCHANGE"}
MAY_NOT_USE = {
    "STANDARD": (FILES | CLOCK | NETWORK | SQL, set()),
    "CONFIG": (SQL | NETWORK - {"urllib"}, set()),
    "DATASETS": (SQL | NETWORK | FILES, set()),
    "STORE": (NETWORK | RULES, set()),
    "CONTEXT": (NETWORK, set()),
    "ACCESS": ({"asyncio", "urllib"}, set()),
    "WORKLIST": (NETWORK | FILES, set()),
    "MPPS": (NETWORK | FILES, set()),
    "INTERCHANGE": (NETWORK, set()),
    "ASSOCIATION": (SQL, {"STORE", *CORE}),
    "DIMSE": (SQL | RULES | NETWORK - {"asyncio"}, set()),
    "DICOMWEB": (SQL | RULES, set()),
    "PAGES": (SQL, set()),  # which buttons there are it reads from the tables of rules
    "CONFORMANCE": (SQL, set()),
    "SIMULATOR": (SQL, {"STORE", *CORE}),
    "APPLIANCE": (RULES, set()),
}
# Libraries of others that are imported where they are needed, inside functions.
IMPORTED_BY = {
    "bottle": {"DICOMWEB", "PAGES"},
    "a2wsgi": {"DICOMWEB"},
    "uvicorn": {"DICOMWEB"},
    "h11": {"DICOMWEB"},
    "wsproto": {"DICOMWEB"},
    "pynetdicom": {"ASSOCIATION", "DELIVERY", "SIMULATOR"},
    "pydicom": {"CONFORMANCE", "SIMULATOR"},
    "pypinyin": {"DATASETS"},
    "apscheduler": {"APPLIANCE"},
    "barcode": {"PAGES"},
    "segno": {"PAGES"},
}
AT_THE_TOP = {"peewee", "pydicom"}

LONGEST_FUNCTION = 60
LONG_FUNCTIONS = {
    "play_day",  # the script of the demonstration: one scene after the other
    "add_pages",  # which method answers which path: one line each
}

# What may be called while the file is imported: readers of tables and builders of constants.
CALLED_AT_IMPORT = {
    "rows", "body_rows", "tag_of", "logging.getLogger", "re.compile", "struct.Struct", "peewee.DatabaseProxy",
    "types.MappingProxyType", "datadict.add_dict_entries", "datadict.dictionary_has_tag",
    "functools.lru_cache", "dataclasses.dataclass", "dataclasses.field", "peewee.CompositeKey",
    "frozenset", "set", "dict", "list", "tuple", "map", "zip", "bytes", "str", "int", "len",
    "enumerate", "sorted", "range",
    ".split", ".splitlines", ".strip", ".replace", ".items", ".values", ".keys", ".pack", ".encode",
    ".children", ".union", ".format",
}  # fmt: skip
CALLED_AT_IMPORT_BY_FORM = re.compile(r"[a-z_]+_table|character_set|peewee\.[A-Z][A-Za-z]+Field")


def section_of(line: int) -> str:
    """The section that a line lies in."""
    return next((match[2] for start, match in reversed(BANNERS) if start <= line), FRONT)


def number_of(section: str) -> int:
    return SECTIONS.index(section) if section in SECTIONS else -1


def definitions() -> dict[str, str]:
    """The section that defines each module-level name."""
    found = {}
    for node in TREE.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.setdefault(node.name, section_of(node.lineno))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for part in ast.walk(target):
                    if isinstance(part, ast.Name):
                        found.setdefault(part.id, section_of(node.lineno))
    return found


DEFINED_IN = definitions()


def uses() -> dict[str, set[tuple[str, str]]]:
    """By section: (who, which global name), for functions, classes and the module's own lines."""
    found = collections.defaultdict(set)

    def scope(table: symtable.SymbolTable) -> None:
        if table.get_type() != "module":
            for symbol in table.get_symbols():
                if symbol.is_global() and symbol.is_referenced():
                    who = f"{table.get_name()} (line {table.get_lineno()})"
                    found[section_of(table.get_lineno())].add((who, symbol.get_name()))
        for child in table.get_children():
            scope(child)

    scope(symtable.symtable(SOURCE, str(FILE), "exec"))
    for node in TREE.body:
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr | ast.If):
            for part in ast.walk(node):
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load):
                    found[section_of(node.lineno)].add((f"line {node.lineno}", part.id))
    return found


USES = uses()


def functions() -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in ast.walk(TREE) if isinstance(node, kinds)]


# The sections


def test_the_banners_are_the_list_of_the_docstring():
    listed = re.findall(r"^ ?(\d+)\. ([A-Z]+)  +\S", minris.__doc__, re.M)
    assert [(match[1], match[2]) for _, match in BANNERS] == listed


def test_the_sections_are_numbered_upwards():
    numbers = [int(match[1]) for _, match in BANNERS]
    assert numbers == sorted(set(numbers))


def test_the_banners_are_equally_long():
    assert {len(match[0]) for _, match in BANNERS} == {96}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_opens_with_its_charter(section):
    line = BANNERS[number_of(section)][0]
    assert LINES[line] == "#"
    assert LINES[line + 1].startswith("# ")


@pytest.mark.parametrize("section", SECTIONS)
def test_a_charter_names_what_there_is(section):
    line = BANNERS[number_of(section)][0]
    charter = " ".join(
        text.removeprefix("#").strip()
        for text in LINES[line : line + 20]
        if text.startswith("#") and not BANNER.fullmatch(text)
    )
    named = re.findall(r"For others: ([^.]*)\.", charter)
    names = re.findall(r"\b(?!the )[A-Za-z_]+\b", re.sub(r"\bthe \w+", "", named[0]))
    assert names, "a charter says what is for others"
    assert [name for name in names if not hasattr(minris, name)] == []


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_uses_no_name_of_a_later_one(section):
    later = [
        f"{who} uses {name} of {DEFINED_IN[name]}"
        for who, name in sorted(USES[section])
        if name in DEFINED_IN and number_of(DEFINED_IN[name]) > number_of(section)
    ]
    assert not later, "\n".join(later)


@pytest.mark.parametrize("section", [name for name in MAY_NOT_USE if name in SECTIONS])
def test_a_section_does_not_touch_what_is_not_its_own(section):
    names, sections = MAY_NOT_USE[section]
    touched = [
        f"{who} uses {name}"
        for who, name in sorted(USES[section])
        if name in names or DEFINED_IN.get(name) in sections
    ]
    assert not touched, "\n".join(touched)


# Imports and import


def imported(node: ast.Import | ast.ImportFrom) -> set[str]:
    """The top-level packages of an import statement."""
    if isinstance(node, ast.ImportFrom):
        return {node.module.partition(".")[0]}
    return {alias.name.partition(".")[0] for alias in node.names}


IMPORTS = [
    (package, section_of(node.lineno), node.lineno, node in TREE.body)
    for node in ast.walk(TREE)
    if isinstance(node, ast.Import | ast.ImportFrom)
    for package in imported(node)
]


def test_at_the_top_are_only_the_standard_library_peewee_and_pydicom():
    others = {package for package, _, _, top in IMPORTS if top} - set(sys.stdlib_module_names)
    assert others == AT_THE_TOP


def test_other_libraries_are_imported_in_the_sections_that_are_theirs():
    astray = [
        f"{package} in {section}, line {line}"
        for package, section, line, top in IMPORTS
        if not top
        and package not in sys.stdlib_module_names
        and section not in IMPORTED_BY.get(package, ())
    ]
    assert not astray, "\n".join(astray)


def test_the_header_of_the_lone_file_asks_for_what_the_project_asks_for():
    header = SOURCE.split("# ///")[1].replace("\n# ", "\n").replace("script\n", "", 1)
    alone = tomllib.loads(header.strip().removeprefix("script"))
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    assert alone["requires-python"] == project["requires-python"]
    assert sorted(alone["dependencies"]) == sorted(project["dependencies"])


def test_every_library_is_a_dependency():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    optional = itertools.chain.from_iterable(project["optional-dependencies"].values())
    asked = [*project["dependencies"], *optional]
    names = {re.match(r"[\w-]+", line)[0].lower() for line in asked}
    used = {package for package, *_ in IMPORTS} - set(sys.stdlib_module_names)
    distributions = {"barcode": "python-barcode"}
    assert {distributions.get(package, package) for package in used} <= names


def called_at_import() -> list[tuple[int, str]]:
    """Line and name of every call that runs when the file is imported."""
    found = []

    class Visitor(ast.NodeVisitor):
        def visit_FunctionDef(self, node):
            for part in (*node.decorator_list, *node.args.defaults, *node.args.kw_defaults):
                if part:
                    self.visit(part)

        visit_AsyncFunctionDef = visit_FunctionDef

        def visit_Lambda(self, node):
            pass

        def visit_If(self, node):
            if ast.unparse(node.test) != "__name__ == '__main__'":
                self.generic_visit(node)

        def visit_Call(self, node):
            whole = ast.unparse(node.func)
            dotted = isinstance(node.func, ast.Attribute)
            simple = dotted and isinstance(node.func.value, ast.Name)
            found.append((node.lineno, whole if simple or not dotted else f".{node.func.attr}"))
            self.generic_visit(node)

    Visitor().visit(TREE)
    return found


def allowed_at_import(name: str) -> bool:
    return (
        name in CALLED_AT_IMPORT
        or "." + name.rpartition(".")[2] in CALLED_AT_IMPORT
        or bool(CALLED_AT_IMPORT_BY_FORM.fullmatch(name))
        or (
            inspect.isclass(getattr(minris, name, None))
            and not issubclass(getattr(minris, name), minris.threading.Thread)
        )
    )


def test_nothing_is_called_at_import_but_readers_of_tables_and_builders_of_constants():
    assert [call for call in called_at_import() if not allowed_at_import(call[1])] == []


def test_importing_writes_no_file_opens_no_socket_and_starts_nothing(tmp_path):
    watch = """
import os, sys, threading
sys.modules["requests"] = None  # a test tool brings it, and pydicom would import it
done = []
def hook(event, arguments):
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        done.append((event, arguments[0]))
    if event.partition(".")[0] in ("socket", "subprocess", "sqlite3") or event in (
        "os.mkdir", "os.remove", "os.rename", "os.system", "os.exec", "os.fork"):
        done.append((event, arguments))
sys.addaudithook(hook)
import minris
lazy = {"bottle", "uvicorn", "a2wsgi", "h11", "wsproto", "pynetdicom", "apscheduler", "pypinyin"}
print(done, threading.active_count(), sorted(lazy & set(sys.modules)))
"""
    command = [sys.executable, "-B", "-c", watch]
    environment = {"PYTHONPATH": str(FILE.parent), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "[] 1 []"


def test_there_is_no_global():
    lines = [node.lineno for node in ast.walk(TREE) if isinstance(node, ast.Global)]
    assert lines == []


# How it is written


def public(nodes: list[ast.stmt], owner: str = "") -> list[tuple[str, ast.AST]]:
    """Public functions, classes and methods by dotted name; peewee's Meta is none of them."""
    found = []
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name.startswith("_") or (owner and node.name == "Meta"):
                continue
            found.append((f"{owner}{node.name}", node))
            if isinstance(node, ast.ClassDef):
                found += public(node.body, f"{node.name}.")
    return found


def overrides(name: str) -> bool:
    """Whether a method is that of a class of others, which says what it is for."""
    owner, _, method = name.rpartition(".")
    bases = getattr(minris, owner).__mro__[1:] if owner else ()
    return any(hasattr(base, method) for base in bases if base.__module__ != "minris")


def test_every_public_name_is_documented():
    silent = [
        f"{name} (line {node.lineno})"
        for name, node in public(TREE.body)
        if not ast.get_docstring(node) and not overrides(name)
    ]
    assert not silent, "\n".join(silent)


def test_every_public_function_is_typed():
    untyped = []
    for name, node in public(TREE.body):
        if isinstance(node, ast.ClassDef):
            continue
        given = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        bare = [a.arg for a in given if not a.annotation and a.arg not in ("self", "cls")]
        if bare or not node.returns:
            untyped.append(f"{name} (line {node.lineno})")
    assert not untyped, "\n".join(untyped)


def test_functions_are_short():
    long = {
        node.name for node in functions() if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    }
    assert long == LONG_FUNCTIONS


def test_exceptions_of_every_kind_are_caught_by_name_and_in_few_places():
    places = collections.Counter()
    for function in functions():
        for node in ast.walk(function):
            if isinstance(node, ast.ExceptHandler):
                assert node.type, f"a bare except in line {node.lineno}"
                if ast.unparse(node.type) in ("Exception", "BaseException"):
                    places[section_of(node.lineno)] += 1
    assert set(places) <= {"STORE", "ASSOCIATION", "DIMSE", "DICOMWEB", "DELIVERY", "APPLIANCE"}


def test_only_the_simulator_and_the_command_line_print():
    printing = {
        section for section in USES for _, name in USES[section] if name in ("print", "input")
    }
    assert printing <= {"SIMULATOR", "APPLIANCE"}


def test_lines_of_the_log_are_made_by_the_log():
    made_before = [
        node.lineno
        for node in ast.walk(TREE)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).startswith("log.")
        and node.args
        and isinstance(node.args[0], ast.JoinedStr | ast.BinOp)
    ]
    assert made_before == []


def test_a_template_takes_nothing_unescaped_but_its_own_parts():
    """The base of the layout, the board in its frame, and attributes made of our own words."""
    words = r"'[^']*'( \+ f\.name \+ '[^']*')? if [^']* else ''"
    parts = [part.strip() for part in re.findall(r"\{\{!(.*?)\}\}", SOURCE)]
    strange = {part for part in parts if not re.fullmatch(words, part)}
    assert strange <= {"base", "board", "described"}


def test_no_style_and_no_script_stands_in_the_file():
    assert re.findall(r"<style|<script(?![^>]*\bsrc=)|style=|\son[a-z]+=\"", SOURCE) == []
