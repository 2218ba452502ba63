"""Build minris.py, the one file to copy to a server, from the package src/minris.

    python src/amalgamate.py            write minris.py
    python src/amalgamate.py --check    exit 1 if minris.py differs from what src/ makes

The modules follow the order of the floors in the docstring of `minris/__init__.py`, each with a
banner of its name and docstring. Imports within the package are removed, all others moved to the
top. Calls that read templates and static/ are replaced by the texts of the files.
Refused: a name defined twice, an import of another form, an import from the same or a higher floor.
"""

import ast
import graphlib
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

SRC = Path(__file__).resolve().parent
ROOT = SRC.parent
PACKAGE = SRC / "minris"

READERS = ("template", "static_files")  # calls that are replaced by the texts of files
MODULE_OF = {"python-barcode": "barcode"}  # libraries whose module has another name
WIDTH = 96
IMPORTS = ast.Import | ast.ImportFrom

HEAD = '''\
# Made of src/minris by src/amalgamate.py. Change it there, not here.
#
# /// script
{header}
# ///
"""{docstring}
"""

import sys

if sys.version_info < ({python}):
    sys.exit("minris needs Python {words} or later, and this is Python " + sys.version.split()[0])

{imports}

LIBRARIES = {libraries}
# Python keeps the syntax tree of a running script, some 50 MiB; to serve, the script therefore
# replaces its process and loads itself as a module.
AS_MODULE = (
    "import importlib.util as u, sys; del sys.argv[0]; "
    "spec = u.spec_from_file_location('minris', sys.argv[0]); "
    "sys.modules['minris'] = minris = u.module_from_spec(spec); "
    "spec.loader.exec_module(minris); sys.exit(minris.main())"
)


def is_to_serve(arguments: list[str]) -> bool:
    """Whether the command is `serve`, which is also the default."""
    words = [word for word in arguments if not word.startswith("--config=")]
    if "--config" in words:
        at = words.index("--config")
        del words[at : at + 2]
    return words in ([], ["serve"])


if __name__ == "__main__":
    missing = [name for name, module in LIBRARIES.items() if not importlib.util.find_spec(module)]
    if missing:
        install = f"{{sys.executable}} -m pip install {{' '.join(missing)}}"
        sys.exit(f"minris: libraries are missing. Install them: {{install}}")
    if os.name == "posix" and sys.executable and is_to_serve(sys.argv[1:]):
        # compile and cache it here, so that the memory for compiling is freed with this process
        importlib.machinery.SourceFileLoader("minris", sys.argv[0]).get_code("minris")
        flags = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv)]
        os.execv(sys.executable, [sys.executable, *flags, "-P", "-c", AS_MODULE, *sys.argv])

{other_imports}

{code}
'''

BANNER = """

# {line}
# {name}
{words}
# {line}

{code}
"""

TAIL = """

if __name__ == "__main__":
    sys.exit(main())
"""


class Refused(Exception):
    """The modules cannot be combined into one file."""


class Module:
    """A module of the package: its imports, its names, and its remaining code."""

    def __init__(self, path: Path) -> None:
        dotted = ".".join(path.relative_to(SRC).with_suffix("").parts)
        self.name = dotted.removesuffix(".__init__")
        self.path = path
        self.source = path.read_text("utf-8")
        self.tree = ast.parse(self.source)
        self.docstring = ast.get_docstring(self.tree) or ""
        self.uses: set[str] = set()
        self.libraries: set[str] = set()
        for node in self.tree.body:
            if isinstance(node, IMPORTS):
                self._note_import(node)

    @property
    def room(self) -> str:
        """Its folder or module in the list of floors."""
        return self.name.partition(".")[2].partition(".")[0]

    def _note_import(self, node: ast.Import | ast.ImportFrom) -> None:
        strange = any(alias.asname or alias.name == "*" for alias in node.names)
        if isinstance(node, ast.Import):
            strange |= any(alias.name.startswith("minris") for alias in node.names)
            self.libraries.update(f"import {alias.name}" for alias in node.names)
        elif node.module and node.module.partition(".")[0] == "minris":
            self.uses.add(node.module)
        else:
            self.libraries.update(f"from {node.module} import {alias.name}" for alias in node.names)
        if strange or getattr(node, "level", 0):
            raise Refused(f"{self.at(node)}: only `from minris.… import name`, or a library's name")

    def at(self, node: ast.stmt) -> str:
        """Return file and line of a statement, for messages."""
        return f"{self.path.relative_to(ROOT)}, line {node.lineno}"

    def names(self) -> Iterator[tuple[str, ast.stmt]]:
        """Yield its top-level names with their statements."""
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield node.name, node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    for part in ast.walk(target):
                        if isinstance(part, ast.Name):
                            yield part.id, node

    def code(self) -> str:
        """Return its code without docstring and imports, with the texts of the files it reads."""
        lines = self.source.splitlines()
        for number, node in reversed(list(enumerate(self.tree.body))):
            if (number == 0 and self.docstring) or is_dropped(node):
                lines[node.lineno - 1 : node.end_lineno] = []
            elif isinstance(node, ast.Assign) and (text := file_texts(node.value)):
                left = ast.unparse(node.targets[0])
                lines[node.lineno - 1 : node.end_lineno] = f"{left} = {text}".split("\n")
        return re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines)).strip("\n")


def is_dropped(node: ast.stmt) -> bool:
    """Whether a statement is an import, or a function that reads files."""
    return isinstance(node, IMPORTS) or (isinstance(node, ast.FunctionDef) and node.name in READERS)


def file_texts(call: ast.expr) -> str:
    """Return the literal for `template("file")` or `static_files("file", …)`, else an empty text."""
    name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
    if not isinstance(call, ast.Call) or name not in READERS:
        return ""
    names = [ast.literal_eval(argument) for argument in call.args]
    if name == "template":
        return literal(PACKAGE / "pages" / names[0])
    items = [f'    "{name}": {literal(ROOT / "static" / name)},\n' for name in names]
    return "{\n" + "".join(items) + "}"


def literal(path: Path) -> str:
    """Return the text of a file as a readable literal."""
    text = path.read_text("utf-8")
    if '"""' in text:
        raise Refused(f"{path.relative_to(ROOT)}: a text with three quotes cannot be a literal")
    return ("r" if "\\" in text else "") + f'"""{text}"""'


def floors(docstring: str) -> dict[str, int]:
    """Return the floor of each folder and module, in the order of the list."""
    found, floor = {}, 0
    for number, room in re.findall(r"^( ?\d+|  )  ([a-z_]+)  ", docstring, re.M):
        floor = int(number) if number.strip() else floor
        found[room] = floor
    return found


def check_floors(modules: Mapping[str, Module], floor_of: Mapping[str, int]) -> None:
    """Refuse an import that is unknown or not from a lower floor."""
    for module in modules.values():
        if module.room not in floor_of:
            raise Refused(f"{module.name} is not in the list of src/minris/__init__.py")
        for used in module.uses - {"minris"}:
            if used not in modules:
                raise Refused(f"{module.name} imports {used}, which does not exist")
            room = modules[used].room
            if room != module.room and floor_of[room] >= floor_of[module.room]:
                raise Refused(f"{module.name} imports {used}, which is not on a floor below")


def check_names(modules: Iterable[Module]) -> None:
    """Refuse a name that is defined by two modules."""
    seen: dict[str, str] = {}
    for module in modules:
        for name, node in module.names():
            where = seen.setdefault(name, module.at(node))
            if not where.startswith(str(module.path.relative_to(ROOT))):
                raise Refused(f"{module.at(node)}: {name} is also defined in {where}")


def in_order(modules: Mapping[str, Module], floor_of: Mapping[str, int]) -> list[Module]:
    """Return the modules by floor and folder, each after those that it imports."""
    ordered: list[Module] = []
    for room in floor_of:
        inside = {name: module for name, module in modules.items() if module.room == room}
        graph = {name: sorted(inside[name].uses & set(inside)) for name in sorted(inside)}
        try:
            names = graphlib.TopologicalSorter(graph).static_order()
            ordered += [modules[name] for name in names]
        except graphlib.CycleError as error:
            raise Refused(f"circular imports: {' -> '.join(error.args[1])}") from None
    return ordered


def project() -> dict[str, Any]:
    """Return the table [project] of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def header() -> str:
    """Return the metadata for runners such as uv (PEP 723)."""
    dependencies = "".join(f'#   "{line}",\n' for line in project()["dependencies"])
    python = project()["requires-python"]
    return f'# requires-python = "{python}"\n# dependencies = [\n{dependencies}# ]'


def libraries() -> str:
    """Return the required libraries with their modules."""
    needed = [line for line in project()["dependencies"] if ";" not in line]
    names = [re.match(r"[\w-]+", line)[0] for line in needed]
    items = "".join(f'    "{name}": "{MODULE_OF.get(name, name)}",\n' for name in names)
    return "{\n" + items + "}"


def gathered(modules: Iterable[Module]) -> tuple[str, str]:
    """Return the imports of all modules: of the standard library, and of other libraries."""
    lines = {line for module in modules for line in module.libraries}
    lines |= {"import importlib.machinery", "import importlib.util", "import os"}
    lines -= {"import sys"}
    froms: dict[str, list[str]] = {}
    for line in sorted(line for line in lines if line.startswith("from ")):
        _, module_name, _, name = line.split(" ")
        froms.setdefault(module_name, []).append(name)
    plain = sorted(line for line in lines if line.startswith("import "))
    every = plain + [f"from {name} import {', '.join(froms[name])}" for name in froms]
    ours = [line for line in every if line.split()[1].partition(".")[0] in sys.stdlib_module_names]
    return "\n".join(ours), "\n".join(line for line in every if line not in ours)


def banner(module: Module) -> str:
    """Return a module with its banner."""
    words = "\n".join(f"# {line}".rstrip() for line in module.docstring.splitlines())
    return BANNER.format(line="-" * WIDTH, name=module.name, words=words, code=module.code())


def amalgamated() -> str:
    """Return the text of minris.py. Raises Refused."""
    modules = {module.name: module for module in map(Module, sorted(PACKAGE.rglob("*.py")))}
    first = modules.pop("minris")
    del modules["minris.__main__"]
    floor_of = floors(first.docstring)
    check_floors(modules, floor_of)
    check_names([first, *modules.values()])
    ordered = in_order(modules, floor_of)
    imports, other_imports = gathered([first, *ordered])
    python = re.findall(r"\d+", project()["requires-python"])
    head = HEAD.format(
        header=header(),
        docstring=first.docstring,
        python=", ".join(python),
        words=".".join(python),
        imports=imports,
        libraries=libraries(),
        other_imports=other_imports,
        code=first.code(),
    )
    return head + "".join(banner(m) for m in ordered if m.code()) + TAIL


def main() -> int:
    """Write or check minris.py; return the exit status."""
    made = ROOT / "minris.py"
    try:
        text = amalgamated()
    except Refused as refused:
        print(f"amalgamate.py: {refused}", file=sys.stderr)
        return 1
    if "--check" not in sys.argv[1:]:
        made.write_text(text, "utf-8")
    elif not made.is_file() or made.read_text("utf-8") != text:
        print("minris.py is out of date. Run python src/amalgamate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
