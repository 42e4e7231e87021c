"""The data sets of the evaluation suites: what is there, and where the rest is to be had.

    python -m evaluators.datasets check --root data

Nothing is downloaded.
"""

from evaluators.datasets import suites, tasks
from input_pipeline import command_line


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    parser = command_line.Parser(prog="python -m evaluators.datasets", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "check",
        help="what is there, what is missing, and how to get it",
        description="Tells which data sets are there, which are incomplete, and where each is to "
        "be had. Nothing is downloaded.\n\n"
        "    python -m evaluators.datasets check --root data\n\n"
        "A set is a folder below DIR in clip_benchmark's layout, as its repository holds it "
        "(test/nshards.txt, test/*.tar, classnames.txt, zeroshot_classification_templates.txt), "
        "or of prepared shards, beside which the two lists may lie, too; of segmentation, as "
        "mmsegmentation lays it out. All files are looked for; no image is read.",
    )
    command.add_argument(
        "--root",
        type=command_line.path_argument,
        default="data",
        metavar="DIR",
        help="of the data sets",
    )
    command.set_defaults(run=_check)
    args = parser.parse_args(argv)
    return command_line.run(args.run, args)


def _check(args) -> None:
    rows: dict[str, tuple] = {}  # folder -> the task, and all suites that want it
    for name in tasks.SUITES:
        for task in tasks.suite(name):
            _, wanted_by = rows.setdefault(task.folder, (task, []))
            if name not in wanted_by:
                wanted_by.append(name)
    lines = [("", "folder", "images", "suites", "where to get it, or what it lacks")]
    there = 0
    for folder, (task, wanted_by) in rows.items():
        found = suites.find(task, args.root)
        there += found.section is not None
        state = "there" if found.section else "incomplete" if found.lacks else "missing"
        images = "" if task.images is None else f"{task.images:,}"
        about = "" if found.section else found.lacks or task.source
        lines.append((state, folder, images, " ".join(wanted_by), about))
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    print(
        f"\n{there} of {len(rows)} data sets are in {args.root}. Nothing is downloaded here. Get "
        "what Hugging Face has by its\nown tool, with your account where it asks for one: hf "
        f"download REPOSITORY --repo-type dataset --local-dir {args.root}/FOLDER"
    )
