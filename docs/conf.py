"""Sphinx: how the documentation is built. The command is in CONTRIBUTING.md."""

import sys
import tomllib
from pathlib import Path

import torch

torch.set_num_threads(1)  # threads of the gallery's small networks would wait for each other on a busy machine

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "pyengm"
author = "The pyengm maintainers"
copyright = author
version = release = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]["version"]

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "generated",
    "api_pages",
    "docstring_markup",
]
exclude_patterns = ["_build", "gallery/**"]

html_theme = "furo"
html_title = f"pyengm {release}"
html_static_path = ["_static"]
html_css_files = ["drawings.css"]
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

default_role = "code"
nitpicky = True  # every link must lead somewhere, except from types in signatures: those of torch need its inventory
nitpick_ignore_regex = [("py:class", ".*"), ("py:obj", r"typing\..*|.*\.BaseT")]  # BaseT: a type variable
autosummary_generate = False
autodoc_typehints = "signature"
autodoc_mock_imports = ["lightning", "accelerate", "transformers"]  # so that the build needs none of them
maximum_signature_line_length = 100
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

copybutton_exclude = ".linenos, .gp, .go"

sphinx_gallery_conf = {
    "examples_dirs": ["gallery"],
    "gallery_dirs": ["auto_gallery"],
    "within_subsection_order": "FileNameSortKey",
    "filename_pattern": r"plot_\w+\.py",
    "reset_modules": ("gallery_style.reset",),
    "image_scrapers": ("matplotlib",),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "min_reported_time": 3600,
    "plot_gallery": True,
    "nested_sections": False,
    "write_computation_times": False,
}
