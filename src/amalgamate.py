"""Make minris.py, the one file that is copied to a box, of the package src/minris.

    python src/amalgamate.py            write minris.py
    python src/amalgamate.py --check    exit 1 if minris.py is not what src/ makes

The modules stand in the order of the floors, which the docstring of `minris/__init__.py` lists,
each behind a banner with its name and docstring. Their imports of one another are dropped, the
others gathered at the top. The texts of templates and of static/ stand where the package reads them.
A name that stands twice, an import of another form, or one from a floor above is refused.
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

READERS = ("template", "static_files")  # of files, whose texts stand in the place of the call
MODULE_OF = {"python-barcode": "barcode"}  # where a library's name is not that of its module
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
# Python keeps the syntax tree of a script, some 50 MiB, for as long as it runs: to serve, the script
# replaces itself by itself as a module.
AS_MODULE = (
    "import importlib.util as u, sys; del sys.argv[0]; "
    "spec = u.spec_from_file_location('minris', sys.argv[0]); "
    "sys.modules['minris'] = minris = u.module_from_spec(spec); "
    "spec.loader.exec_module(minris); sys.exit(minris.main())"
)


def is_to_serve(arguments: list[str]) -> bool:
    """Whether a command line asks for `serve`, be it by saying nothing else."""
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
        # compiled and kept for next time here: what compiling takes stays in this process
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
    """Why the modules cannot be made into one file."""


class Module:
    """A module of the package: what it imports and defines, and the text that is left of it."""

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
        """The folder or single module that the list of floors names."""
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
        """Where a statement stands, for messages."""
        return f"{self.path.relative_to(ROOT)}, line {node.lineno}"

    def names(self) -> Iterator[tuple[str, ast.stmt]]:
        """The names of its top level, with their statements."""
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield node.name, node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    for part in ast.walk(target):
                        if isinstance(part, ast.Name):
                            yield part.id, node

    def code(self) -> str:
        """Its text without docstring and imports, and with the texts of the files it reads."""
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
    """What stands for `template("file")` or `static_files("file", …)`; nothing for another value."""
    name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
    if not isinstance(call, ast.Call) or name not in READERS:
        return ""
    names = [ast.literal_eval(argument) for argument in call.args]
    if name == "template":
        return literal(PACKAGE / "pages" / names[0])
    items = [f'    "{name}": {literal(ROOT / "static" / name)},\n' for name in names]
    return "{\n" + "".join(items) + "}"


def literal(path: Path) -> str:
    """The text of a file as a literal that can be read."""
    text = path.read_text("utf-8")
    if '"""' in text:
        raise Refused(f"{path.relative_to(ROOT)}: three quotes in a text that goes into the file")
    return ("r" if "\\" in text else "") + f'"""{text}"""'


def floors(docstring: str) -> dict[str, int]:
    """The floor of each folder and single module, in the order of the list."""
    found, floor = {}, 0
    for number, room in re.findall(r"^( ?\d+|  )  ([a-z_]+)  ", docstring, re.M):
        floor = int(number) if number.strip() else floor
        found[room] = floor
    return found


def check_floors(modules: Mapping[str, Module], floor_of: Mapping[str, int]) -> None:
    """Refuse an import that does not lead down, or that leads out of the package."""
    for module in modules.values():
        if module.room not in floor_of:
            raise Refused(f"{module.name} is not in the list of src/minris/__init__.py")
        for used in module.uses - {"minris"}:
            if used not in modules:
                raise Refused(f"{module.name} imports {used}, which is not there")
            room = modules[used].room
            if room != module.room and floor_of[room] >= floor_of[module.room]:
                raise Refused(f"{module.name} imports {used}, which is not on a floor below")


def check_names(modules: Iterable[Module]) -> None:
    """Refuse a name that two modules define."""
    seen: dict[str, str] = {}
    for module in modules:
        for name, node in module.names():
            where = seen.setdefault(name, module.at(node))
            if not where.startswith(str(module.path.relative_to(ROOT))):
                raise Refused(f"{module.at(node)}: {name} stands in {where} too")


def in_order(modules: Mapping[str, Module], floor_of: Mapping[str, int]) -> list[Module]:
    """The modules floor by floor, each folder together, what is used before what uses it."""
    ordered: list[Module] = []
    for room in floor_of:
        inside = {name: module for name, module in modules.items() if module.room == room}
        graph = {name: sorted(inside[name].uses & set(inside)) for name in sorted(inside)}
        try:
            names = graphlib.TopologicalSorter(graph).static_order()
            ordered += [modules[name] for name in names]
        except graphlib.CycleError as error:
            raise Refused(f"a circle of imports: {' -> '.join(error.args[1])}") from None
    return ordered


def project() -> dict[str, Any]:
    """The table [project] of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def header() -> str:
    """What runners such as uv read (PEP 723)."""
    dependencies = "".join(f'#   "{line}",\n' for line in project()["dependencies"])
    python = project()["requires-python"]
    return f'# requires-python = "{python}"\n# dependencies = [\n{dependencies}# ]'


def libraries() -> str:
    """The libraries that every box needs, with the modules that they bring."""
    needed = [line for line in project()["dependencies"] if ";" not in line]
    names = [re.match(r"[\w-]+", line)[0] for line in needed]
    items = "".join(f'    "{name}": "{MODULE_OF.get(name, name)}",\n' for name in names)
    return "{\n" + items + "}"


def gathered(modules: Iterable[Module]) -> tuple[str, str]:
    """The imports of all modules: those of the standard library, and those of others."""
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
    """A module behind its banner."""
    words = "\n".join(f"# {line}".rstrip() for line in module.docstring.splitlines())
    return BANNER.format(line="-" * WIDTH, name=module.name, words=words, code=module.code())


def amalgamated() -> str:
    """The text of minris.py. Raises Refused."""
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
    """Write minris.py, or compare it."""
    made = ROOT / "minris.py"
    try:
        text = amalgamated()
    except Refused as refused:
        print(f"amalgamate.py: {refused}", file=sys.stderr)
        return 1
    if "--check" not in sys.argv[1:]:
        made.write_text(text, "utf-8")
    elif not made.is_file() or made.read_text("utf-8") != text:
        print("minris.py is not what src/ makes: run python src/amalgamate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
