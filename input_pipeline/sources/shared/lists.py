"""Class names and prompts that lie beside the data, as clip_benchmark publishes them."""

from collections.abc import Container
from pathlib import Path

from etils import epath

from input_pipeline.checks import unicode
from input_pipeline.files.ranges import read_files
from input_pipeline.records import given

CLASS_NAMES = "classnames.txt"  # a line for each class, in the order of the labels
TEMPLATES = "zeroshot_classification_templates.txt"  # with {c} in the place of the class name
FILES = (CLASS_NAMES, TEMPLATES)


def read(
    folder: Path | epath.Path, names: Container[str] = FILES
) -> tuple[list[str] | None, list[str] | None]:
    """The lines of both files of a folder, without blanks around them, with `{}` in prompts; None
    where there is no such file. Empty lines count: a class of CLEVR has an empty name.

    Args:
      names: of FILES, those that may be there; others are not asked for.

    Raises:
      ValueError: a file is empty, as a download that failed leaves it, or no text.
    """
    class_names, templates = (_lines(folder / n) if n in names else None for n in FILES)
    return class_names, templates and [text.replace("{c}", "{}") for text in templates]


def _lines(path: Path | epath.Path) -> list[str] | None:
    try:
        text = unicode.decode(given(read_files([path])[0]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from None
    if not text.strip():
        raise ValueError(f"{path} is empty. Download it again, or delete it.")
    return [line.strip() for line in text.splitlines()]
