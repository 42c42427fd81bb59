"""Hooks of the guide: pages of the API reference, equations, links from names to the reference.

mkdocs calls `on_config`, `on_files`, `on_page_markdown` and `on_page_content`; mkdocstrings loads
`Docstrings`. The package's sources are read, never imported, so a build needs no JAX.
"""

from __future__ import annotations

import ast
import functools
import html
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import griffe
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "fedjax_lite"
FURTHER = ("types", "trees", "run.checkpoint", "run.history", "checks.arguments")
"""Public modules that the package's own ``__all__`` does not name."""
REPOSITORY = "https://github.com/fedjax-lite/fedjax_lite/blob/main"


class Public(NamedTuple):
    """A public name: where users find it, and where it is defined."""

    name: str
    """Dotted, as users write it: ``fedjax_lite.algorithms.fedavg``."""
    defined: str
    """Dotted, as mkdocstrings finds it: ``fedjax_lite.algorithms.fedavg.fedavg``."""


# -- what is public, from the sources -----------------------------------------------------------


@functools.cache
def source_of(module: str) -> Path | None:
    """The file of a module, or None."""
    stem = ROOT.joinpath(*module.split("."))
    return next((p for p in (stem / "__init__.py", stem.with_suffix(".py")) if p.exists()), None)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """A source file, parsed."""
    return ast.parse(path.read_text())


@functools.cache
def bindings(module: str) -> dict[str, tuple[str, str] | None]:
    """Names bound at a module's top level: None where defined there, else (module, name)."""
    path = source_of(module)
    found: dict[str, tuple[str, str] | None] = {}
    if path is None:
        return found
    body = tree_of(path).body
    # What is imported when it is asked for is bound for type checkers alone.
    later = [child for node in body if isinstance(node, ast.If) for child in node.body]
    for node in [*body, *later]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = None
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = None
        elif isinstance(node, ast.Assign):
            names = [name for target in node.targets for name in ast.walk(target)]
            found |= {name.id: None for name in names if isinstance(name, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            for name in node.names:
                found[name.asname or name.name] = (node.module or "", name.name)
    return found


@functools.cache
def public_names(module: str) -> tuple[str, ...]:
    """A module's ``__all__``; without one, what it defines itself under a public name."""
    path = source_of(module)
    assert path is not None
    for node in tree_of(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return tuple(ast.literal_eval(node.value))
    return tuple(n for n, origin in bindings(module).items() if origin is None and n[0] != "_")


def resolve(module: str, name: str) -> str:
    """The dotted path where a public name is defined, or of the module that it names."""
    origin = bindings(module).get(name)
    if name in bindings(module) and origin != (module, name):
        return f"{module}.{name}" if origin is None else resolve(*origin)
    if source_of(f"{module}.{name}") is not None:
        return f"{module}.{name}"
    raise PluginError(f"{module} declares {name!r} public, but binds no such name")


@functools.cache
def modules() -> dict[str, str]:
    """Every public module, as users write it, and where it is; depth first, the package first."""
    found: dict[str, str] = {}

    def visit(module: str, defined: str, further: tuple[str, ...] = ()) -> None:
        found[module] = defined
        inside = {f"{module}.{name}": resolve(defined, name) for name in public_names(defined)}
        inside |= {f"{module}.{name}": f"{defined}.{name}" for name in further}
        for child, place in sorted(inside.items()):
            if source_of(place) is not None and place not in found.values():
                visit(child, place)

    visit(PACKAGE, PACKAGE, FURTHER)
    return found


@functools.cache
def reference() -> dict[str, tuple[Public, ...]]:
    """Every public module and what it offers, modules apart."""
    found = {}
    for module, defined in modules().items():
        every = [Public(f"{module}.{n}", resolve(defined, n)) for n in public_names(defined)]
        found[module] = tuple(one for one in every if source_of(one.defined) is None)
    return found


def is_further(name: str) -> bool:
    """Whether a dotted path leads to a module that is not imported as ``fl.name``."""
    return any(f"{name}.".startswith(f"{PACKAGE}.{further}.") for further in FURTHER)


def parent_of(module: str) -> str:
    """The public module whose page lists this one; "" for the package."""
    parent = module.rpartition(".")[0]
    while parent and parent not in modules():
        parent = parent.rpartition(".")[0]
    return parent


@functools.cache
def homes() -> dict[str, str]:
    """Which module's page shows a definition: the innermost module that offers it."""
    home: dict[str, str] = {}
    for module, names in reference().items():
        for one in names:
            if one.defined not in home or module.count(".") > home[one.defined].count("."):
                home[one.defined] = module
    return home


@functools.cache
def links() -> dict[str, str]:
    """From every dotted public path to the identifier that autorefs knows."""
    targets = {module: module for module in reference()}
    return targets | {one.name: one.defined for names in reference().values() for one in names}


@functools.cache
def by_last_name() -> dict[str, str]:
    """From a bare public name to its identifier, where only one thing has it."""
    found: dict[str, set[str]] = {}
    for path, target in links().items():
        found.setdefault(path.rsplit(".", 1)[-1], set()).add(target)
    return {name: targets.pop() for name, targets in found.items() if len(targets) == 1}


# -- the pages of the reference -----------------------------------------------------------------


def page_of(module: str) -> str:
    """The reference page of a module, in the guide's folder."""
    return f"api/{module.removeprefix(PACKAGE).removeprefix('.') or 'index'}.md"


def summary_of(defined: str) -> str:
    """The first line of a definition's docstring; a module's, if it is one."""
    path = source_of(defined)
    if path is not None:
        return (ast.get_docstring(tree_of(path)) or "").split("\n")[0]
    module, name = defined.rsplit(".", 1)
    path = source_of(module)
    assert path is not None
    body = tree_of(path).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return (ast.get_docstring(node) or "").split("\n")[0]
        bound = isinstance(node, ast.Assign | ast.AnnAssign)
        names = re.findall(r"\w+", ast.unparse(node).partition(" = ")[0]) if bound else []
        text = after.value if isinstance(after, ast.Expr) else None
        if name in names and isinstance(text, ast.Constant):
            return str(text.value).split("\n")[0]
    return ""


def unpacked(defined: str) -> str | None:
    """The assignment of a name bound with others, ``A, B = 1, 2``, which griffe does not see."""
    module, name = defined.rsplit(".", 1)
    path = source_of(module)
    assert path is not None
    for node in tree_of(path).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        parts = target.elts if isinstance(target, ast.Tuple) else []
        if name in [part.id for part in parts if isinstance(part, ast.Name)]:
            return ast.unparse(node)
    return None


def short(name: str) -> str:
    """A dotted path as users write it, ``fl.data.load``; further modules in full."""
    return name if is_further(name) else re.sub(rf"^{PACKAGE}", "fl", name)


def reference_page(module: str) -> str:
    """The Markdown of a module's page: a table of names, then each with its docstring."""
    names = reference()[module]
    lines = [
        f"# {short(module)} {{ #{module} }}",
        "",
        f"::: {modules()[module]}",
        "    options: {members: false, ",
    ]
    lines[-1] += "show_root_heading: false, show_root_toc_entry: false}"
    children = [m for m in reference() if parent_of(m) == module]
    if children:
        lines += ["", "| module | |", "|---|---|"]
        lines += [
            f"| [`{short(m)}`]({Path(page_of(m)).name}) | {escape(summary_of(modules()[m]))} |"
            for m in children
        ]
    if names:
        lines += ["", "| name | |", "|---|---|"]
    for one in names:
        last = one.name.rsplit(".", 1)[1]
        lines.append(f"| [`{last}`][{one.defined}] | {escape(summary_of(one.defined))} |")
    for one in names:
        if homes()[one.defined] != module:
            continue
        source = source_of(one.defined.rsplit(".", 1)[0])
        assert source is not None
        path = source.relative_to(ROOT)
        aliases = [p for p, target in links().items() if target == one.defined and p != target]
        lines += ["", "".join(f'<a id="{alias}"></a>' for alias in aliases), ""]
        if assignment := unpacked(one.defined):
            lines += [
                f"## {short(one.name)} {{ #{one.defined} }}",
                "",
                "```python",
                assignment,
                "```",
            ]
            continue
        lines += [f"::: {one.defined}", "    options:"]
        lines += [f"      heading: {short(min(aliases, key=len, default=one.name))}"]
        lines += [f"      toc_label: {one.name.rsplit('.', 1)[1]}"]
        lines += ["", f"[{path}]({REPOSITORY}/{path}){{ .source }}"]
    return "\n".join(lines) + "\n"


def escape(summary: str) -> str:
    """A docstring's line inside a table."""
    return in_markdown(summary).replace("|", "\\|")


def on_config(config: Any) -> Any:
    """Fills the navigation's "API reference" with a page a public module."""
    for entry in config.nav:
        if "API reference" in entry:
            entry["API reference"] = [{short(m): page_of(m)} for m in reference()]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the reference; they are in no folder."""
    for module in reference():
        files.append(File.generated(config, page_of(module), content=reference_page(module)))
    return files


# -- text ---------------------------------------------------------------------------------------

_DISPLAY = re.compile(r"^( *)\.\. math::[ ]*(.*(?:\n(?:\1 +.*|[ ]*(?=\n\1 )))*)", re.MULTILINE)
_TABLE = re.compile(r"^((?:=+ )+=+\n(?:.+\n)+(?:=+ )+=+\n)", re.MULTILINE)
_PROSE = re.compile(
    r"^(Returns|Guarantees|Yields):[ ]*\n((?:  .*(?:\n|$)|\n(?=  ))*)", re.MULTILINE
)
"""Sections whose text may hold a colon, before which griffe would see a type."""
_INLINE = re.compile(r":math:`([^`]+)`")
_CODE = re.compile(r"(?<![`\[])`([A-Za-z_][\w.]*)`(?!`)")


def in_markdown(text: str) -> str:
    r"""Equations of a docstring as inline code, ``\(..\)`` or ``\[..\]``, for `on_page_content`."""
    text = _DISPLAY.sub(lambda m: f"{m[1]}\n{m[1]}`\\[{' '.join(m[2].split())}\\]`\n", text)
    text = _TABLE.sub(r"```text\n\1```\n", text)
    return _INLINE.sub(lambda m: f"`\\({' '.join(m[1].split())}\\)`", text)


class Docstrings(griffe.Extension):
    """Prepares docstrings for Markdown: equations, sections that griffe does not know, links."""

    def on_package(self, *, pkg: griffe.Module, loader: Any, **kwargs: Any) -> None:
        """The package itself is no member of anything."""
        self.on_object(obj=pkg, loader=loader)

    def on_object(self, *, obj: griffe.Object, loader: Any, **kwargs: Any) -> None:
        """Rewrites one docstring."""
        if obj.docstring is None:
            return
        text = re.sub(r"^Example:", "Examples:", obj.docstring.value, flags=re.MULTILINE)
        text = re.sub(r"^Raises:\n +([^:\n]+)$", r"**Raises.** \1", text, flags=re.MULTILINE)
        text = re.sub(r"^(>>> (?:.+\n?)+)", r"```pycon\n\1\n```\n", text, flags=re.MULTILINE)
        text = _PROSE.sub(lambda m: f"**{m[1]}:**\n\n{textwrap.dedent(m[2])}", text)
        text = re.sub(r"^(References?): *", r"**\1.** ", text, flags=re.MULTILINE)
        text = in_markdown(text)
        mine = {p.name for p in obj.parameters} if isinstance(obj, griffe.Function) else set()
        mine |= set(obj.members) | {obj.name}
        obj.docstring.value = "\n".join(linked(text.split("\n"), mine))


def linked(lines: list[str], own: set[str]) -> Iterator[str]:
    """Lines in which names of the library lead to their entry; `own` names do not."""
    code = False
    for line in lines:
        code = line.lstrip().startswith(">>>") or (code and bool(line.strip()))

        def link(match: re.Match[str]) -> str:
            name = match[1]
            known = links().get(name) or by_last_name().get(name)
            return match[0] if known is None or name in own else f"[{match[0]}][{known}]"

        yield line if code else _CODE.sub(link, line)


_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_FL = re.compile(r"(?<![`\[])`((?:fl|fedjax_lite)\.[A-Za-z_][\w.]*)([^`]*)`(?!`)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turns ``fl.name`` in the prose into links; a name that does not exist is an error."""

    def link(match: re.Match[str]) -> str:
        path = re.sub(r"^fl\.", f"{PACKAGE}.", match[1])
        if match[1].startswith("fl.") and is_further(path):
            raise PluginError(f"{page.file.src_uri}: {match[0]} is not imported with the package")
        known = path
        while known not in links():  # fl.data.load("digits").x: the longest known beginning
            known, _, last = known.rpartition(".")
            if not known or known in reference():
                raise PluginError(f"{page.file.src_uri}: {match[0]} is no public name ({last!r})")
        return f"[{match[0]}][{links()[known]}]"

    if page.file.src_uri.startswith("api/"):
        return markdown
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_FL.sub(link, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join(parts) + _FL.sub(link, markdown[end:])


_EQUATION = re.compile(r"<code>\\([(\[])(.+?)\\[)\]]</code>", re.DOTALL)


_DRAWING = re.compile(r'<img alt="([^"]*)" src="[^"]*?(assets/[\w-]+\.svg)"[^>]*>')


def on_page_content(text: str, page: Any, config: Any, files: Any) -> str:
    """Sets equations as MathML and drawings inline, so that they take the page's colours."""

    def drawing(match: re.Match[str]) -> str:
        svg = (Path(config.docs_dir) / match[2]).read_text()
        return svg.replace("<svg ", f'<svg role="img" aria-label="{match[1]}" ', 1)

    return _DRAWING.sub(drawing, _EQUATION.sub(equation, text))


def equation(match: re.Match[str]) -> str:
    """MathML, which browsers draw without a script, of an equation in LaTeX."""
    latex, inline = html.unescape(match[2]), match[1] == "("
    if "&" in latex and r"\begin" not in latex:  # columns to align, as in LaTeX's align
        rows = [
            first + "&" + rest.replace("&", "")
            for first, _, rest in (row.partition("&") for row in latex.split(r"\\"))
        ]
        latex = r"\begin{align*}" + r"\\".join(rows) + r"\end{align*}"
    return convert(latex, display="inline" if inline else "block")


def on_post_page(output: str, page: Any, config: Any) -> str:
    """The link to the repository stays a link: as a component it asks GitHub for its stars."""
    return output.replace(' data-md-component="source"', "")


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    """The same for the page of what is not found."""
    return on_post_page(output_content, None, config)
