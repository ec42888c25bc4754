"""Settings of the book: lectures and notebooks as one site, built by `make book`.

The source root is the root of the repository (sphinx-build -c lectures).
"""

import json
import os
from pathlib import Path

os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}  # inherited by the notebooks' kernels

project = "driftlab"
author = "driftlab contributors"
copyright = "MIT licence"
root_doc = "lectures/index"
include_patterns = ["lectures/**", "notebooks/*.ipynb"]
exclude_patterns = ["lectures/_data/**"]
extensions = [
    "myst_nb",
    "sphinx_proof",
    "sphinxcontrib.bibtex",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",  # MathJax 3.2.2 from a wheel: no page asks the network for anything
]
bibtex_bibfiles = ["references.bib"]  # beside this file
bibtex_reference_style = "author_year"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 2
proof_uniform_numbering = True
proof_title_format = " %t"  # the titles carry the numbers: "Theorem 2.6 Probability flow"

# A stored result would outlive the module that made it, so notebooks run at every build, unless the
# tests have just run them all: then their outputs are shown.
nb_execution_mode = os.environ.get("BOOK_EXECUTION", "force")
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
nb_ipywidgets_js = {}  # sliders carry a static twin; the widget scripts would come from a CDN

html_theme = "furo"
html_title = "driftlab: the course"
html_static_path = ["_static"]
html_css_files = ["course.css"]
html_show_sphinx = False
html_copy_source = False


def executed(app, docname: str, source: list[str]) -> None:
    """Show what the tests' execution of this notebook printed, if its cells are still the same."""
    kept = Path(app.srcdir, "build", "executed", f"{Path(docname).name}.ipynb")
    if not docname.startswith("notebooks/") or not kept.exists():
        return
    found = kept.read_text()
    if sources(found) == sources(source[0]):
        source[0] = found


def sources(notebook: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(notebook)["cells"]]


def setup(app) -> None:
    if nb_execution_mode == "off":
        app.connect("source-read", executed)
