"""Makes the pictures of the docs: ``python docs/pictures.py RUN`` after ``fedclip demo``."""

import json
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from fedclip.cache.common.console import show_table
from fedclip.extract.demo.dataset import SEED
from fedclip.extract.demo.draw import STYLES, draw_picture
from fedclip.extract.demo.shapes import THINGS
from fedclip.federate.report.terminal import results_table
from fedclip.federate.runs.results import RunResult, read_result

DOCS = Path(__file__).parent
ROWS_PER_STYLE = 2


def main(run: Path) -> None:
    """Draw a sheet of the demo's images, and the table of a run of it."""
    rows = [
        np.concatenate([draw_picture(style, thing, SEED, index) for thing in THINGS], axis=1)
        for style in STYLES
        for index in range(ROWS_PER_STYLE)
    ]
    Image.fromarray(np.concatenate(rows)).save(DOCS / "demo-images.png", optimize=True)
    contents = [json.loads(path.read_text()) for path in sorted(run.glob("*/result.json"))]
    results = [each for each in map(read_result, contents) if isinstance(each, RunResult)]
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=140, file=nowhere, force_terminal=True)
        show_table(results_table(results), console)
    # Without the fonts that the picture would fetch: a reader's own will do.
    svg = re.sub(r"@font-face \{[^}]*\}", "", console.export_svg(title="fedclip demo"))
    (DOCS / "demo-table.svg").write_text(svg)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
