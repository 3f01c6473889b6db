# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Checks on the source itself: imports, private names of other libraries, unsafe calls, sizes.

Every check takes the root of a source tree and returns one line for each violation, so that the tests can also run it
on small trees that break the rule.
"""

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath

PACKAGES = ("trl_ext", "recipes", "eval", "examples")

# Each layer may import the layers above it in this list and itself; the members of one layer do not import each other.
# "trl_ext" is the public API in `trl_ext/__init__.py`.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"critic_modes", "messages", "files"}),
    frozenset({"_compat", "text", "micro_batches", "processes", "folders"}),
    frozenset({"objectives", "kl_control", "rewards.base", "sharding"}),
    frozenset({"checks", "rewards", "actor_critic"}),
    frozenset({"monitoring", "planner", "integrations"}),
    frozenset({"experience", "checkpoint"}),
    frozenset({"learning", "critic_learning", "step_gate"}),
    frozenset({"config"}),
    frozenset({"evaluation", "arguments", "identity", "resuming", "sampling"}),
    frozenset({"assembly", "model_card"}),
    frozenset({"trainer"}),
    frozenset({"trl_ext"}),
    frozenset({"reports", "worlds"}),
    frozenset({"running"}),
    frozenset({"instructions", "chatting", "comparing", "interpolating"}),
    frozenset({"commands"}),
    frozenset({"recipes", "examples", "__main__"}),
    frozenset({"eval"}),
)

# Integrations know nothing of the trainer or what is made for it, and it knows nothing of them.
NO_INTEGRATIONS = frozenset({"experience", "config", "checkpoint", "learning", "assembly", "arguments", "trainer"})

# Strings that may name a package, by file: the recipes are scripts and YAML files, which are run and read.
ALLOWED_NAMES_IN_STRINGS = frozenset({("trl_ext/running/places.py", "recipes")})
# Calls whose arguments are modules or parts of a path.
_REACHING = frozenset({"Path", "joinpath", "join", "import_module", "run_module", "run_path", "files"})

# What a package may import besides itself and the standard library.
ONLY_IMPORTS = {"objectives": frozenset({"torch"}), "kl_control": frozenset[str]()}

FOREIGN = ("trl", "peft", "transformers")
MAIN = "__name__ == '__main__'"
# More lines than this are a warning: the rule is "split by concept". The trainer's limit is a rule.
LONG_MODULE = 400
LINE_LIMITS = {"trl_ext/trainer.py": 450}
# Leading underscores that are documented (named tuples), or argparse's, which has no other way to list the options.
NOT_PRIVATE = frozenset({"_asdict", "_replace", "_fields", "_make", "_actions"})
# Whether something can be pickled may be asked; nothing is ever read back.
PICKLE_ALLOWED = ("pickle", "pickle.dumps", "pickle.PicklingError")
PICKLES = ("pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
UNSAFE_CALLS = {
    "torch.load": "unpickles: use safetensors",
    "torch.save": "pickles: use safetensors",
    "yaml.load": "runs constructors: use yaml.safe_load",
    "yaml.full_load": "runs constructors: use yaml.safe_load",
    "yaml.unsafe_load": "runs constructors: use yaml.safe_load",
    "yaml.load_all": "runs constructors: use yaml.safe_load_all",
}
HEADER = "# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0."


def layers_picture() -> str:
    """Return `LAYERS` as a Mermaid chart, for CONTRIBUTING.md: the highest layer on top, arrows in place of imports."""
    nodes = [f'    layer{i}["{", ".join(sorted(layer))}"]' for i, layer in enumerate(LAYERS)]
    arrows = [f"    layer{i} --> layer{i - 1}" for i in range(len(LAYERS) - 1, 0, -1)]
    return "\n".join(["```mermaid", "flowchart TB", *reversed(nodes), *arrows, "```"])


def python_files(root: Path, folders: tuple[str, ...] = PACKAGES) -> list[Path]:
    """Every Python file of the given folders, sorted."""
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def _parsed(root: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in python_files(root):
        yield path.relative_to(root).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(tree: ast.Module, file: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that is imported anywhere in the file, functions and type-checking blocks too.

    `from a import b` gives `a.b`: `b` may be a module. Relative imports are made absolute.
    """
    package = file.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)


def component(module: str, root: Path) -> str | None:
    """The part of the design that a dotted name belongs to, or None for other people's modules."""
    top, *rest = module.split(".")
    if top in ("recipes", "eval", "examples"):
        return top
    if top != "trl_ext":
        return None
    if rest[:2] == ["rewards", "base"]:
        return "rewards.base"
    is_module = rest and any((root / "trl_ext" / f"{rest[0]}{end}").exists() for end in (".py", ""))
    return rest[0] if is_module and rest[0] != "__init__" else "trl_ext"


def _level(part: str) -> int | None:
    return next((i for i, layer in enumerate(LAYERS) if part in layer), None)


def _may_import(importer: str, imported: str) -> bool:
    # `rewards/__init__.py` collects its own package; `rewards.base` is the one module that stands a layer below it.
    if imported == "integrations" and importer in NO_INTEGRATIONS:
        return False
    upper, lower = _level(importer), _level(imported)
    return importer == imported or (upper is not None and lower is not None and lower < upper)


def _without_main(tree: ast.Module) -> ast.Module:
    """The module as its importers run it: `python -m` under a former name may forward to a higher layer."""
    body = [node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == MAIN)]
    return ast.Module(body=body, type_ignores=[])


def layer_violations(root: Path) -> list[str]:
    """Imports against the direction of the layers, and modules that no layer names."""
    found = []
    for file, tree in _parsed(root):
        importer = component(file.removesuffix(".py").replace("/", "."), root)
        assert importer is not None
        if _level(importer) is None:
            found.append(f"{file}: '{importer}' is in no layer; add it to LAYERS in tests/architecture.py")
            continue
        for line, module in imported_modules(_without_main(tree), file):
            imported = component(module, root)
            if imported is not None and not _may_import(importer, imported):
                found.append(f"{file}:{line}: {importer} must not import {imported} ({module})")
    return found


def circle_violations(root: Path) -> list[str]:
    """A circle of modules that import each other.

    `LAYERS` rules out circles of packages: no layer imports a higher one, and its members do not import each other.
    """
    modules = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file, _ in _parsed(root)}
    trees = dict(_parsed(root))
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for module, file in modules.items():
        for _, name in imported_modules(_without_main(trees[file]), file):
            imported = name if name in modules else name.rpartition(".")[0]
            graph[module] |= {imported} & modules.keys() - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [f"{' <- '.join(modules[module] for module in error.args[1])}: a circle of imports"]
    return []


def _strings(node: ast.AST) -> list[str]:
    """The strings among the elements or arguments of a node."""
    children = ast.iter_child_nodes(node)
    return [child.value for child in children if isinstance(child, ast.Constant) and isinstance(child.value, str)]


def _tail(node: ast.expr) -> list[str]:
    """Strings at the end of a path: `base / "a" / "b"` gives ["a", "b"]."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and (last := _strings(node)):
        return [*_tail(node.left), last[-1]]
    return []


def _climbed(node: ast.AST) -> int | None:
    """How many folders an expression climbs from `__file__`, or None where it is about something else."""
    match node:
        case ast.Name(id="__file__"):
            return 0
        case ast.Subscript(value=ast.Attribute(value=base, attr="parents"), slice=ast.Constant(value=int(index))):
            up = index + 1
        case ast.Attribute(value=base, attr=attribute):
            up = int(attribute == "parent")
        case ast.Call(func=ast.Attribute(attr="dirname"), args=[base]):
            up = 1
        case ast.Call(func=ast.Attribute() as base) if _climbed(base) is not None:
            up = 0
        case ast.Call(args=[base]):
            up = 0
        case _:
            return None
    below = _climbed(base)
    return None if below is None else below + up


def _names_in_strings(node: ast.AST, file: str, root: Path) -> str | None:
    """The module or package that a node names in a string, or reaches by a path."""
    if file.startswith("trl_ext/") and (_climbed(node) or 0) >= len(PurePosixPath(file).parts):
        return "a path out of trl_ext"
    if isinstance(node, ast.BinOp) and (tail := _tail(node)):
        return "/".join(tail) if tail[0] in PACKAGES and (root / "/".join(tail)).exists() else None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        path = root / re.sub(r"^(\.*/)+", "", node.value).removesuffix(".py").replace(".", "/")
        named = re.fullmatch(rf"[./]*({'|'.join(PACKAGES)})([./]\w+)+", node.value)
        return node.value if named and (path.is_dir() or path.with_suffix(".py").is_file()) else None
    if isinstance(node, ast.JoinedStr):
        return next((s for s in _strings(node)[:1] if re.match(rf"({'|'.join(PACKAGES)})[./]", s)), None)
    strings = _strings(node)
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        after = strings[strings.index("-m") + 1 :][:1] if "-m" in strings else []
        named_all = len(strings) > 1 and set(strings) <= set(PACKAGES)
        return ", ".join(strings if named_all else [s for s in after if s in PACKAGES]) or None
    if isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        return next((s for s in strings if s in PACKAGES), None) if called in _REACHING else None
    return None


def name_in_string_violations(root: Path) -> list[str]:
    """Strings that name a package or module of the repository, or reach one by a path, instead of an import.

    Docstrings are free to name them, and so is a longer text, such as a message that shows a command line.
    """
    found: dict[tuple[str, int, str], str] = {}
    for file, tree in _parsed(root):
        nodes = list(ast.walk(tree))
        documentation = {node.value for node in nodes if isinstance(node, ast.Expr) and _strings(node)}
        beginnings = {n.left for n in nodes if isinstance(n, ast.BinOp) and isinstance(n.left, ast.BinOp)}
        for node in (node for node in nodes if node not in documentation | beginnings):
            name = _names_in_strings(node, file, root)
            if name is not None and (file, name) not in ALLOWED_NAMES_IN_STRINGS:
                line: int = node.lineno  # type: ignore[attr-defined]
                found.setdefault((file, line, name), f"{file}:{line}: names {name} in a string: import it instead")
    return list(found.values())


def dependency_violations(root: Path) -> list[str]:
    """Imports of libraries by the packages that are meant to do without them."""
    found = []
    for file, tree in _parsed(root):
        own = "/".join(file.split("/")[:2])
        allowed = ONLY_IMPORTS.get(own.removeprefix("trl_ext/"))
        if allowed is None:
            continue
        for line, module in imported_modules(tree, file):
            top = module.split(".")[0]
            if top not in allowed | sys.stdlib_module_names | {"trl_ext"}:
                found.append(f"{file}:{line}: {own} must not import {top}")
    return found


def _is_private(name: str) -> bool:
    dunder = name.startswith("__") and name.endswith("__")
    return name.startswith("_") and not dunder and name not in NOT_PRIVATE


def _own_private_names(trees: list[ast.Module]) -> set[str]:
    """Private functions, classes, methods, fields and attributes that this source itself defines."""
    names: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _root(node) in ("self", "cls"):
            names.add(node.attr)
    return {name for name in names if _is_private(name)}


def _root(node: ast.expr) -> str | None:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super":
        return "super"
    return node.id if isinstance(node, ast.Name) else None


def _other_libraries(tree: ast.Module) -> set[str]:
    """Names bound by `import x` to modules that are not trl, peft or transformers (torch._dynamo is not our rule)."""
    aliases = [alias for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return {(a.asname or a.name).split(".")[0] for a in aliases if a.name.split(".")[0] not in FOREIGN}


def _foreign_names(tree: ast.Module) -> set[str]:
    """Names that this file imports from trl, peft or transformers."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            for alias in node.names:
                if (module or alias.name).split(".")[0] in FOREIGN and not getattr(node, "level", 0):
                    names.add((alias.asname or alias.name).split(".")[0])
    return names


def private_name_violations(root: Path) -> list[str]:
    """Private names of trl, peft or transformers, imported or read from their objects, outside `_compat.py`.

    What a private attribute belongs to cannot be known from the source, so every one that this source does not define
    counts, except directly on `self`, `cls` or `super()`: a trainer is made by overriding the hooks of its base.
    """
    parsed = dict(_parsed(root))
    own = _own_private_names(list(parsed.values()))
    found = []
    for file, tree in parsed.items():
        if file == "trl_ext/_compat.py":
            continue
        for line, module in imported_modules(tree, file):
            top, *rest = module.split(".")
            if top in FOREIGN and any(map(_is_private, rest)):
                found.append(f"{file}:{line}: imports the private name {module}")
        skipped, foreign = _other_libraries(tree), _foreign_names(tree)
        for node in ast.walk(tree):
            name = _private_access(node, skipped)
            if name is not None and (name not in own or (isinstance(node, ast.expr) and _root(node) in foreign)):
                found.append(f"{file}:{node.lineno}: reads the private name {name}")  # type: ignore[attr-defined]
    return found


def _private_access(node: ast.AST, skipped: set[str]) -> str | None:
    if isinstance(node, ast.Attribute) and _is_private(node.attr):
        direct = isinstance(node.value, ast.Name | ast.Call)
        if _root(node) in skipped or (direct and _root(node.value) in ("self", "cls", "super")):
            return None
        return node.attr
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1
    if is_call and node.func.id in ("getattr", "setattr", "hasattr") and isinstance(node.args[1], ast.Constant):  # type: ignore[attr-defined]
        name = node.args[1].value  # type: ignore[attr-defined]
        on_self = isinstance(node.args[0], ast.Name) and node.args[0].id in ("self", "cls")  # type: ignore[attr-defined]
        return name if isinstance(name, str) and _is_private(name) and not on_self else None
    return None


def unsafe_violations(root: Path) -> list[str]:
    """Pickle in any form, `trust_remote_code=True`, YAML loaders that run constructors."""
    found = []
    for file, tree in _parsed(root):
        for line, module in imported_modules(tree, file):
            if module.split(".")[0] in PICKLES and module not in PICKLE_ALLOWED:
                found.append(f"{file}:{line}: {module} executes what it loads: use safetensors or JSON")
            if module in UNSAFE_CALLS:
                found.append(f"{file}:{line}: {module} {UNSAFE_CALLS[module]}")
        for node in ast.walk(tree):
            name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if name.startswith("pickle.") and name not in PICKLE_ALLOWED:
                found.append(f"{file}: {name} executes what it loads: use safetensors or JSON")
            if name in UNSAFE_CALLS:
                found.append(f"{file}:{node.lineno}: {name} {UNSAFE_CALLS[name]}")  # type: ignore[attr-defined]
            for switch in ("trust_remote_code", "allow_pickle"):
                if _switches_on(node, switch):
                    found.append(f"{file}: {switch}=True runs code that came with the data")
    return found


def _switches_on(node: ast.AST, switch: str) -> bool:
    def is_true(value: ast.expr | None) -> bool:
        return isinstance(value, ast.Constant) and value.value is True

    if isinstance(node, ast.keyword):
        return node.arg == switch and is_true(node.value)
    if isinstance(node, ast.AnnAssign):
        return isinstance(node.target, ast.Name) and node.target.id == switch and is_true(node.value)
    if isinstance(node, ast.Assign):
        return any(ast.unparse(t).endswith(switch) for t in node.targets) and is_true(node.value)
    if isinstance(node, ast.Dict):
        return any(isinstance(k, ast.Constant) and k.value == switch and is_true(v) for k, v in zip(node.keys, node.values, strict=True))  # fmt: skip # noqa: E501
    if isinstance(node, ast.arguments):
        positional = [*node.posonlyargs, *node.args]
        pairs = [*zip(reversed(positional), reversed(node.defaults), strict=False)]
        pairs += [(arg, default) for arg, default in zip(node.kwonlyargs, node.kw_defaults, strict=True) if default]
        return any(arg.arg == switch and is_true(default) for arg, default in pairs)
    return False


def line_counts(root: Path) -> dict[str, int]:
    """Lines of each Python file, by its path from `root`."""
    return {p.relative_to(root).as_posix(): len(p.read_text("utf-8").splitlines()) for p in python_files(root)}


def size_violations(root: Path) -> list[str]:
    """Modules longer than their limit in `LINE_LIMITS`."""
    limits = [(file, count, LINE_LIMITS.get(file, count)) for file, count in line_counts(root).items()]
    return [f"{file}: {count} lines, the limit is {limit}" for file, count, limit in limits if count > limit]


def unfinished_violations(root: Path) -> list[str]:
    """Marks of unfinished work, and files without the licence line."""
    marks = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
    found = []
    for path in python_files(root):
        file, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        if text and not text.startswith(HEADER) and not text.startswith(("#!", "# /// script")):
            found.append(f"{file}:1: does not start with the licence line")
        for number, line in enumerate(text.splitlines(), start=1):
            if match := marks.search(line):
                found.append(f"{file}:{number}: {match.group()}")
    return found


if __name__ == "__main__":
    print(layers_picture())
