"""The plan of the house, kept true: the modules of src/minris read as text and as syntax trees.

Floors and folders are those of the docstring of `minris/__init__.py`. What a room may not touch
stands in MAY_NOT_USE below, which libraries it may import in IMPORTED_BY.
"""

import ast
import collections
import itertools
import re
import subprocess
import symtable
import sys
import tomllib
from collections.abc import Iterator

import pytest
from conftest import MADE, ROOT, every_name

import amalgamate
import minris
from minris.store.models import Stored

MODULES = [amalgamate.Module(path) for path in sorted((ROOT / "src" / "minris").rglob("*.py"))]
BY_NAME = {module.name: module for module in MODULES}
FLOORS = amalgamate.floors(minris.__doc__)
NAMES = every_name()

MODELS = frozenset(model.__name__ for model in Stored.__subclasses__())
SQL = MODELS | {"database", "peewee", "sqlite3", "fetch_rows", "insert_row", "update_row"}
NETWORK = frozenset({"socket", "asyncio", "urllib"})
FILES = frozenset({"Path", "open", "os", "tempfile", "shutil"})
CLOCK = frozenset({"time"})
RULES = frozenset({"MPPS_TRANSITIONS", "STEP_TRANSITIONS", "STEP_STATUS_AFTER"})

# By room: names that it may not use, and rooms of which it may use nothing.
CORE = {"orders", "mpps", "ups", "images", "housekeeping", "interchange"}
MAY_NOT_USE = {
    "standard": (FILES | CLOCK | NETWORK | SQL, set()),
    "config": (SQL | NETWORK - {"urllib"}, set()),
    "dataset": (SQL | NETWORK | FILES, set()),
    "store": (NETWORK | RULES, set()),
    "access": ({"asyncio", "urllib"}, set()),
    "orders": (NETWORK | FILES, set()),
    "mpps": (NETWORK | FILES, set()),
    "ups": (NETWORK | FILES, set()),
    "images": (NETWORK | FILES, set()),
    "interchange": (NETWORK, set()),
    "upper_layer": (SQL, {"store", *CORE}),
    "dimse": (SQL | RULES | NETWORK - {"asyncio"}, set()),
    "web": (SQL | RULES, set()),
    "dicomweb": (SQL | RULES, set()),
    "pages": (SQL, set()),  # which buttons there are it reads from the tables of rules
    "conformance": (SQL, set()),
    "simulator": (SQL, {"store", "access", "outbox", *CORE}),
    "appliance": (RULES, set()),
    "cli": (RULES, set()),
}
# Libraries of others that are imported where they are needed, inside functions.
IMPORTED_BY = {
    "bottle": {"web", "dicomweb", "pages"},
    "a2wsgi": {"web"},
    "uvicorn": {"web"},
    "h11": {"web"},
    "wsproto": {"web"},
    "pynetdicom": {"upper_layer", "simulator"},
    "pydicom": {"conformance", "simulator"},
    "pypinyin": {"dataset"},
    "apscheduler": {"appliance"},
    "barcode": {"pages"},
    "segno": {"pages"},
}
AT_THE_TOP = {"peewee", "pydicom"}

LONGEST_FUNCTION = 60
LONG_FUNCTIONS: set[str] = set()
LONGEST_MODULE = 600
LONG_MODULES: set[str] = set()

# What may be called while a module is imported: readers of tables and builders of constants.
CALLED_AT_IMPORT = {
    "rows", "body_rows", "table", "one_of", "tag_of", "template", "static_files", "logging.getLogger", "re.compile", "struct.Struct",
    "peewee.DatabaseProxy", "types.MappingProxyType", "datadict.add_dict_entries",
    "datadict.dictionary_has_tag", "functools.lru_cache", "cached", "dataclasses.dataclass",
    "dataclasses.field", "peewee.CompositeKey", "text_columns", "keyed_by", ".__subclasses__",
    "frozenset", "set", "dict", "list", "tuple", "map", "zip", "bytes", "str", "int", "len",
    "enumerate", "sorted", "range", "Path", ".resolve",
    ".split", ".splitlines", ".strip", ".replace", ".items", ".values", ".keys", ".pack", ".encode",
    ".children", ".union", ".format",
}  # fmt: skip
CALLED_AT_IMPORT_BY_FORM = re.compile(r"[a-z_]+_table|character_set|peewee\.[A-Z][A-Za-z]+Field")


def names_of(module: amalgamate.Module) -> list[ast.ImportFrom]:
    """Its imports of other modules of the package."""
    return [
        node
        for node in module.tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minris")
    ]


def uses(module: amalgamate.Module) -> set[tuple[str, str]]:
    """(who, which global name), for functions, classes and the module's own lines."""
    found = set()

    def scope(table: symtable.SymbolTable) -> None:
        if table.get_type() != "module":
            for symbol in table.get_symbols():
                if symbol.is_global() and symbol.is_referenced():
                    found.add(
                        (f"{table.get_name()} (line {table.get_lineno()})", symbol.get_name())
                    )
        for child in table.get_children():
            scope(child)

    scope(symtable.symtable(module.source, str(module.path), "exec"))
    for node in module.tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr | ast.If):
            for part in ast.walk(node):
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load):
                    found.add((f"line {node.lineno}", part.id))
    return found


USES = {module.name: uses(module) for module in MODULES}


def everywhere() -> Iterator[tuple[amalgamate.Module, ast.AST]]:
    """Every node of every module."""
    for module in MODULES:
        for node in ast.walk(module.tree):
            yield module, node


def functions() -> list[tuple[amalgamate.Module, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function and method."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [(module, node) for module, node in everywhere() if isinstance(node, kinds)]


each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)


# Floors and rooms


def test_the_list_of_floors_names_every_folder_and_single_module():
    package = ROOT / "src" / "minris"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    single = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    assert set(FLOORS) == folders | single


def test_no_import_leads_up_and_none_in_a_circle():
    inside = {name: module for name, module in BY_NAME.items() if module.room in FLOORS}
    amalgamate.check_floors(inside, FLOORS)
    assert len(amalgamate.in_order(inside, FLOORS)) == len(inside)


def test_a_name_stands_once_in_the_package():
    amalgamate.check_names(MODULES)


def test_a_module_of_tests_has_a_name_of_its_own():
    names = collections.Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert max(names.values()) == 1, names.most_common(1)


@each_module
def test_a_module_says_what_it_is_about(module):
    assert module.docstring.splitlines()[0].endswith((".", "?"))


@pytest.mark.parametrize(
    "module",
    [m for m in MODULES if m.path.name == "__init__.py" and m.name != "minris"],
    ids=lambda module: module.name,
)
def test_the_module_of_a_folder_is_its_docstring_alone(module):
    assert len(module.tree.body) == 1


def test_modules_are_short():
    long = {module.name for module in MODULES if module.source.count("\n") > LONGEST_MODULE}
    assert long == LONG_MODULES


@each_module
def test_a_module_imports_the_others_at_its_top(module):
    inside = [
        node.lineno
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minris")
        if node not in module.tree.body
    ]
    assert inside == []


@each_module
def test_a_module_imports_no_name_with_a_leading_underscore(module):
    inside = [
        alias.name
        for node in names_of(module)
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert inside == []


@each_module
def test_a_module_touches_what_is_its_own(module):
    if module.room not in MAY_NOT_USE:
        return
    names, rooms = MAY_NOT_USE[module.room]
    touched = [f"{who} uses {name}" for who, name in sorted(USES[module.name]) if name in names]
    touched += [used for used in module.uses if used != "minris" and BY_NAME[used].room in rooms]
    assert not touched, "\n".join(touched)


# Libraries, and import


IMPORTS = [
    (name.partition(".")[0], module, node.lineno, node in module.tree.body)
    for module, node in everywhere()
    if isinstance(node, ast.Import | ast.ImportFrom)
    for name in (
        [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    )
    if name.partition(".")[0] not in {"minris", *sys.stdlib_module_names}
]


def test_at_the_top_are_only_the_standard_library_peewee_and_pydicom():
    assert {package for package, _, _, top in IMPORTS if top} == AT_THE_TOP


def test_other_libraries_are_imported_in_the_rooms_that_are_theirs():
    astray = [
        f"{package} in {module.name}, line {line}"
        for package, module, line, top in IMPORTS
        if not top and module.room not in IMPORTED_BY.get(package, ())
    ]
    assert not astray, "\n".join(astray)


def test_every_library_is_a_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    optional = itertools.chain.from_iterable(project["optional-dependencies"].values())
    asked = [*project["dependencies"], *optional]
    names = {re.match(r"[\w-]+", line)[0].lower() for line in asked}
    distributions = {"barcode": "python-barcode"}
    assert {distributions.get(package, package) for package, *_ in IMPORTS} <= names


def called_at_import(module: amalgamate.Module) -> list[tuple[int, str]]:
    """Line and name of every call that runs when a module is imported."""
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

    Visitor().visit(module.tree)
    return found


def allowed_at_import(name: str) -> bool:
    return (
        name in CALLED_AT_IMPORT
        or "." + name.rpartition(".")[2] in CALLED_AT_IMPORT
        or bool(CALLED_AT_IMPORT_BY_FORM.fullmatch(name))
        or isinstance(NAMES.get(name), type)
    )


@each_module
def test_nothing_is_called_at_import_but_readers_of_tables_and_builders_of_constants(module):
    assert [call for call in called_at_import(module) if not allowed_at_import(call[1])] == []


@pytest.mark.parametrize("folder", [ROOT, ROOT / "src"], ids=["one file", "package"])
def test_importing_writes_no_file_opens_no_socket_and_starts_nothing(folder, tmp_path):
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
if hasattr(minris, "__path__"):
    import minris.cli
lazy = {"bottle", "uvicorn", "a2wsgi", "h11", "wsproto", "pynetdicom", "apscheduler", "pypinyin"}
print(done, threading.active_count(), sorted(lazy & set(sys.modules)))
"""
    command = [sys.executable, "-B", "-c", watch]
    environment = {"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "[] 1 []"


@each_module
def test_there_is_no_global(module):
    assert [n.lineno for n in ast.walk(module.tree) if isinstance(n, ast.Global)] == []


# How it is written


def is_protocol(node: ast.ClassDef) -> bool:
    """Whether a class only says what another one has, which documents it."""
    return any(ast.unparse(base) == "Protocol" for base in node.bases)


def public(nodes: list[ast.stmt], owner: str = "") -> list[tuple[str, ast.AST]]:
    """Public functions, classes and methods by dotted name; peewee's Meta is none of them."""
    found = []
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name.startswith("_") or (owner and node.name == "Meta"):
                continue
            found.append((f"{owner}{node.name}", node))
            if isinstance(node, ast.ClassDef) and not is_protocol(node):
                found += public(node.body, f"{node.name}.")
    return found


def overrides(name: str) -> bool:
    """Whether a method is that of a class of others, which says what it is for."""
    owner, _, method = name.rpartition(".")
    bases = NAMES[owner].__mro__[1:] if owner else ()
    return any(hasattr(base, method) for base in bases if not base.__module__.startswith("minris"))


@each_module
def test_every_public_name_is_documented(module):
    silent = [
        f"{name} (line {node.lineno})"
        for name, node in public(module.tree.body)
        if not ast.get_docstring(node) and not overrides(name)
    ]
    assert not silent, "\n".join(silent)


@each_module
def test_every_public_function_is_typed(module):
    untyped = []
    for name, node in public(module.tree.body):
        if isinstance(node, ast.ClassDef):
            continue
        given = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        bare = [a.arg for a in given if not a.annotation and a.arg not in ("self", "cls")]
        if bare or not node.returns:
            untyped.append(f"{name} (line {node.lineno})")
    assert not untyped, "\n".join(untyped)


def test_functions_are_short():
    long = {
        node.name for _, node in functions() if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    }
    assert long == LONG_FUNCTIONS


def test_exceptions_of_every_kind_are_caught_by_name_and_in_few_places():
    places = collections.Counter()
    for module, node in everywhere():
        if isinstance(node, ast.ExceptHandler):
            assert node.type, f"a bare except in line {node.lineno}"
            if ast.unparse(node.type) in ("Exception", "BaseException"):
                places[module.room] += 1
    assert set(places) <= {
        "store",
        "upper_layer",
        "dimse",
        "dicomweb",
        "web",
        "pages",
        "delivery",
        "appliance",
    }


def test_only_the_simulator_and_the_command_line_print():
    printing = {
        module.room
        for module in MODULES
        for _, name in USES[module.name]
        if name in ("print", "input")
    }
    assert printing <= {"simulator", "appliance", "cli"}


@each_module
def test_lines_of_the_log_are_made_by_the_log(module):
    made_before = [
        node.lineno
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).startswith("log.")
        and node.args
        and isinstance(node.args[0], ast.JoinedStr | ast.BinOp)
    ]
    assert made_before == []


def test_a_template_takes_nothing_unescaped_but_its_own_parts():
    """The base of the layout, parts in their page, and attributes made of our own words."""
    words = r"'[^']*'( \+ f\.name \+ '[^']*')? if [^']* else ''"
    parts = [part.strip() for part in re.findall(r"\{\{!(.*?)\}\}", MADE.read_text("utf-8"))]
    strange = {part for part in parts if not re.fullmatch(words, part)}
    assert strange <= {"base", "board", "found", "slots", "described", "row"}


def test_no_style_and_no_script_stands_in_the_file():
    source = MADE.read_text("utf-8")
    assert re.findall(r"<style|<script(?![^>]*\bsrc=)|style=|\son[a-z]+=\"", source) == []
