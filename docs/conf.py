"""Sphinx's configuration of the documentation site; CONTRIBUTING.md has the command that builds it.

The pages are Markdown and read well without Sphinx. Three of their parts are made at build time:
a line `<!-- commands -->` becomes the reference of the command line, from the app itself;
`<!-- api: MODULE -->` becomes that of the module's public names, from their docstrings; and a
notebook becomes a page of its text and code.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

import typer
from sphinx.application import Sphinx

from fedclip import __version__
from fedclip.cli import app as commands

ROOT = Path(__file__).resolve().parents[1]

project = "fedclip"
author = "The fedclip authors"
copyright = author  # noqa: A001 - Sphinx reads it by this name
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown", ".ipynb": "markdown"}
templates_path: list[str] = []

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 4
highlight_language = "text"
smartquotes = False  # would turn the hyphens of options into dashes
default_role = "code"  # docstrings mark code by single backquotes

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True

# Annotations name classes of libraries, whose documentation is elsewhere, and of internal modules.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r".*")]

html_theme = "furo"
html_title = "fedclip"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


def leaves(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command below a group with the words that call it."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, each in command.commands.items():
        yield from leaves(each, (*path, name))


def prose(text: str) -> str:
    """Make Markdown of a help text, with commands and options as code."""
    text = text.replace("\\[", "[")  # rich's escape
    text = re.sub(r"([\\`*_<\[{])", r"\\\1", text)
    text = re.sub(r"'((?:fedclip|torchrun) [^']*)'", r"`\1`", text)
    return re.sub(r"(?<![\w`-])(--?[a-z][a-z-]*)(?![^`\n]*`)", r"`\1`", text)


def placeholder(parameter: Any) -> str:
    """Name a parameter's value."""
    kinds = {int: "INTEGER", float: "NUMBER"}
    return str(parameter.metavar or kinds.get(type(parameter.default), "TEXT"))


def described(parameter: Any) -> str:
    """Describe a parameter by its help, default and environment variable."""
    sentences = [prose(parameter.help or "")]
    if parameter.required and parameter.param_type_name == "option":
        sentences.append("Required.")
    if parameter.default not in (None, False, "", ()) and parameter.show_default:
        default = parameter.default
        shown = ", ".join(map(str, default)) if isinstance(default, list | tuple) else default
        sentences.append(f"Default: {prose(str(shown))}.")
    if parameter.envvar:
        sentences.append(f"Environment variable: `{parameter.envvar}`.")
    return " ".join(filter(None, sentences))


def command_page() -> str:
    """Write the reference of all commands, a section for each."""
    every = list(leaves(typer.main.get_command(commands), ("fedclip",)))
    lines = ["| command | what it does |", "|---|---|"]
    for path, command in every:
        summary = " ".join(command.help.partition("\n\n")[0].split())
        lines.append(f"| [`{' '.join(path)}`](#{'-'.join(path)}) | {prose(summary)} |")
    lines.append("")
    for path, command in every:
        name = " ".join(path)
        context = command.make_context(path[-1], [], resilient_parsing=True)
        parameters = [each for each in command.get_params(context) if each.name != "help"]
        arguments = [each for each in parameters if each.param_type_name == "argument"]
        options = [each for each in parameters if each.param_type_name == "option"]
        usage = [name, *(["[OPTIONS]"] if options else [])]
        usage += [placeholder(each) for each in arguments]
        lines += [f"## {name}", "", prose(command.help), "", "```text", " ".join(usage), "```", ""]
        for each in arguments:
            lines += [f"`{placeholder(each)}`", f": {described(each)}", ""]
        lines += [f"```{{program}} {name}", "```", ""]

        def panel(each: Any) -> str:
            return each.rich_help_panel or "Other options"

        order = {title: at for at, title in reversed([*enumerate(map(panel, options))])}
        for title, each_of in groupby(
            sorted(options, key=lambda each: order[panel(each)]), key=panel
        ):
            lines += [f"**{title}**", ""]
            for each in each_of:
                value = "" if each.is_flag else f" {placeholder(each)}"
                names = ", ".join(f"{flag}{value}" for flag in (*each.opts, *each.secondary_opts))
                lines += [f"````{{option}} {names}", described(each), "````", ""]
        if command.examples:
            lines += ["**Examples**", "", "```text", *command.examples, "```", ""]
    return "\n".join(lines)


def module_page(name: str) -> str:
    """Write the reference of a module: its docstring and its public names."""
    module = import_module(name)
    lines = ["````{eval-rst}", f".. automodule:: {name}", ""]
    for each in getattr(module, "__all__", ()):
        value = getattr(module, each)
        home = f"{getattr(value, '__module__', name)}.{each}"
        if DOCUMENTED.setdefault(home, name) != name:
            lines += [f"`{each}` is that of :py:obj:`{DOCUMENTED[home]}.{each}`.", ""]
        elif inspect.isclass(value):
            lines += [f".. autoclass:: {name}.{each}", "   :members:", ""]
        elif callable(value):
            lines += [f".. autofunction:: {name}.{each}", ""]
        else:
            lines += [f".. autodata:: {name}.{each}", ""]
    return "\n".join([*lines, "````"])


# The module below which each public name is documented.
DOCUMENTED: dict[str, str] = {}


def notebook_page(notebook: dict[str, Any]) -> str:
    """Write a notebook's text and code as Markdown."""
    cells = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        cells.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(cells)


MADE: dict[str, Callable[..., str]] = {
    r"<!-- commands -->": command_page,
    r"<!-- api: (\S+) -->": module_page,
}


def make_parts(app: Sphinx, docname: str, source: list[str]) -> None:
    """Fill in what is made at build time."""
    if app.env.doc2path(docname).suffix == ".ipynb":
        source[0] = notebook_page(json.loads(source[0]))
    for pattern, make in MADE.items():
        while found := re.search(pattern, source[0]):
            source[0] = source[0].replace(found[0], make(*found.groups()))


def keep_options(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Mark the options in blocks of commands, so that a narrow page breaks no line within one."""

    def mark(block: re.Match[str]) -> str:
        return re.sub(r"(?<![\w-])--[a-z][a-z-]*", r'<span class="pre">\g<0></span>', block[0])

    context["body"] = re.sub(r"<pre>.*?</pre>", mark, context.get("body", ""), flags=re.DOTALL)


def setup(app: Sphinx) -> None:
    """Register the hooks."""
    app.connect("source-read", make_parts)
    app.connect("html-page-context", keep_options)
