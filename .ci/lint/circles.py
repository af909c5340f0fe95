"""Modules of a crate depend on each other without circles.

The units are a crate's top-level modules, each with all that is below it, and the root file: a folder is one thing,
whose files may know each other. A unit depends on another if its code, tests and documentation left out, names
something in it; a name that the root re-exports counts for the module which it comes from. `--deep` prints the
circles among all modules too, for information.
"""

import pathlib
import re
import subprocess
import sys

root = pathlib.Path(__file__).resolve().parents[2]
# Dependencies that may close a circle, each with its reason: crate, from, to (`*`: any).
EXPLAINED = {
    ("core", "error", "*"): "an error carries the types whose values it refuses",
    ("quant-linear", "error", "*"): "an error carries the types whose values it refuses",
    ("quant-linear", "layer", "run"): "a layer holds its runtime and choices, and running is what it does: "
                                      "two folders of one type, its contents and its calls",
    ("backend-cpu-simd", "isa", "engine"): "an instruction set is had if its kernels can be made",
    ("backend-cuda", "ops", "backend"): "the tests of folding, on the emulator, go through the backend",
}


def code(path):
    """The source without comments, strings and unit tests."""
    text = path.read_text()
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
    return re.split(r"#\[cfg\(test\)\]\s*mod \w+ \{", text)[0]


def expand(tree):
    """The paths of a use tree: `a::{b, c::d as e}` gives a::b and a::c::d, each with its name here."""
    tree = tree.strip()
    brace = tree.find("{")
    if brace < 0:
        path, _, name = tree.partition(" as ")
        parts = [part.strip() for part in path.split("::")]
        parts = parts[:-1] if parts[-1] == "self" and len(parts) > 1 else parts
        return [(parts, name.strip() or parts[-1])]
    head = [part.strip() for part in tree[:brace].split("::") if part.strip()]
    found, depth, item = [], 0, ""
    for c in tree[brace + 1:tree.rindex("}")] + ",":
        depth += (c == "{") - (c == "}")
        if c == "," and depth == 0:
            if item.strip():
                found += [(head + parts, name) for parts, name in expand(item)] if item.strip() != "self" \
                    else [(head, head[-1])]
            item = ""
        else:
            item += c
    return found


class Crate:
    def __init__(self, source):
        self.source, self.files = source, {}
        for path in sorted(source.rglob("*.rs")):
            parts = list(path.relative_to(source).with_suffix("").parts)
            if parts[-1] in ("mod", "lib", "main"):
                parts.pop()
            self.files.setdefault(tuple(parts), path)
        self.codes = {module: code(path) for module, path in self.files.items()}
        # What a module's `use` declarations call a name.
        self.names = {module: {name: self.absolute(module, parts) for parts, name in self.uses(module)}
                      for module in self.codes}

    def uses(self, module):
        for tree in re.findall(r"\buse\s+([^;]+);", self.codes[module]):
            yield from expand(tree)

    def absolute(self, module, parts):
        """The path from the crate's root, or None for another crate's."""
        at = list(module)
        parts = list(parts)
        if parts and parts[0] == "crate":
            return tuple(parts[1:])
        if parts and parts[0] in ("self", "super"):
            while parts and parts[0] in ("self", "super"):
                at = at[:-1] if parts.pop(0) == "super" else at
            return tuple(at + parts)
        child = tuple(at + parts[:1])
        return tuple(at + parts) if child in self.files else None

    def home(self, path, seen=()):
        """The module that a path's item lives in, through re-exports."""
        for end in range(len(path), -1, -1):
            module = tuple(path[:end])
            if module in self.files:
                rest = path[end:]
                onward = self.names[module].get(rest[0]) if rest else None
                if onward is not None and (module, rest[0]) not in seen:
                    return self.home(onward + tuple(rest[1:]), (*seen, (module, rest[0])))
                return module
        return ()

    def edges(self):
        for module, text in self.codes.items():
            body = re.sub(r"\bpub(?:\([^)]*\))?\s+use\s+[^;]+;", "", text)
            paths = [parts for tree in re.findall(r"\buse\s+([^;]+);", body) for parts, _ in expand(tree)]
            paths += [path.split("::") for path in re.findall(r"\b(?:crate|super|self)(?:::\w+)+", body)]
            # What is named by way of a child module: `decode::check`.
            paths += [path.split("::") for path in re.findall(r"(?<![:\w])\w+::\w+", body)
                      if (*module, path.split("::")[0]) in self.files]
            for parts in paths:
                path = self.absolute(module, parts)
                if path is not None:
                    yield module, self.home(path)


def circles(edges):
    """Strongly connected sets of more than one node."""
    graph = {}
    for a, b in edges:
        graph.setdefault(a, set()).add(b)
        graph.setdefault(b, set())
    reach = {}
    for start in graph:
        todo, seen = list(graph[start]), set()
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += graph[node]
        reach[start] = seen
    sets = {frozenset(b for b in graph if b in reach[a] and a in reach[b]) for a in graph if a in reach[a]}
    return [sorted(s) for s in sets if len(s) > 1], len(graph)


faults = units = crates = 0
# Of git, because what other steps build at the same time comes and goes.
listed = subprocess.run(["git", "ls-files", "*Cargo.toml"], cwd=root, check=True, capture_output=True, text=True)
for manifest in sorted(root / name for name in listed.stdout.splitlines()):
    source = manifest.parent / "src"
    if "target" in manifest.parts or not source.is_dir():
        continue
    crate, name = Crate(source), str(manifest.parent.relative_to(root))
    edges = set(crate.edges())
    top = {(a[:1], b[:1]) for a, b in edges if a[:1] != b[:1]}
    title = lambda unit: "::".join(unit) or "(root)"
    for crate_name, start, end in EXPLAINED:
        if crate_name == name:
            allowed = {(a, b) for a, b in top if title(a) == start and end in ("*", title(b))}
            if not allowed:
                faults += 1
                print(f"{name}: {start} -> {end} is explained and is not there: remove it")
            top -= allowed
    found, count = circles(top)
    crates, units = crates + 1, units + count
    for circle in found:
        faults += 1
        print(f"{name}: " + " <-> ".join(map(title, circle)))
        for a, b in sorted(edges):
            if (a[:1], b[:1]) in top and a[:1] in circle and b[:1] in circle:
                print(f"    {'::'.join(a) or '(root)'} -> {'::'.join(b) or '(root)'}")
    if "--deep" in sys.argv:
        for circle in circles({(a, b) for a, b in edges if a != b})[0]:
            print(f"{name}, deep: {', '.join('::'.join(module) or '(root)' for module in circle)}")
print(f"circles: {crates} crates, {units} units, {faults} circles")
sys.exit(bool(faults) or not units)
