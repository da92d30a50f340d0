"""`spikeloom corpus`: a corpus of sessions from several sources, prepared in one go, with a table of what is missing."""

from launch.table import as_text, print_table
from launch.verb import Verb


def _schema() -> type:
    from data_prep.corpus import CorpusConfig

    return CorpusConfig


def _run(config) -> int:
    from data_prep.corpus import prepare_corpus
    from data_prep.prepare import KEPT
    from launch.progress import ItemProgress

    total = sum(len(member.sessions) + len(member.held_out) for member in config.members)
    with ItemProgress("reading", total) as progress:
        report = prepare_corpus(config, lambda row: progress.step(row.file, worked=row.status != KEPT))
    show_corpus(report)
    return report.exit_code


def show_corpus(report) -> None:
    """Prints a row a recipe, a row a session that is missing or refused, and how many there are to pretrain on."""
    groups: dict[str, list] = {}
    for one in report.sessions:
        groups.setdefault(one.recipe, []).append(one)
    rows = [_totals(recipe, sessions) for recipe, sessions in groups.items()]
    if len(rows) > 1:
        rows.append(_totals("all", list(report.sessions)))
    columns = ("recipe", "expected", "found", "missing", "refused", "units", "spikes", "hours")
    print_table(f"sessions in {report.output}", columns, rows)
    absent = [(one.recipe, one.name, one.why) for one in report.sessions if len(one.found) < max(1, len(one.rows))]
    if absent:
        print_table("missing", ("recipe", "session", "why"), absent)
    for note in report.notes:
        print(as_text(note))
    train, held_out = len(report.ids(held_out=False)), len(report.ids(held_out=True))
    print(f"{train} sessions to pretrain on, {held_out} held out: their ids are in {report.output}/corpus.json")


def _totals(name: str, sessions: list) -> tuple:
    found = [row for one in sessions for row in one.found]
    refused = sum(len(one.rows) - len(one.found) for one in sessions)
    return (
        name,
        len(sessions),
        sum(bool(one.found) for one in sessions),
        sum(not one.rows for one in sessions),
        refused,
        sum(row.units for row in found),
        sum(row.spikes for row in found),
        sum(row.seconds for row in found) / 3600,
    )


def _plan(config) -> list[str]:
    from data_prep.corpus import check_corpus, place_of, there

    check_corpus(config)
    lines = [f"would prepare the corpus {config.name} into {config.output}:"]
    for member in config.members:
        place, files = place_of(config, member), there(config, member)
        wanted = len(member.sessions) + len(member.held_out)
        if files is None:
            version = f"{member.recipe.dandiset}/{member.recipe.version or 'draft'}"
            place = f"dandiset {version} of the archive {config.archive.instance}"
        elif place:
            place = f"{place}, where {len(files)} of {wanted} files are"
        lines.append(
            f"  {member.recipe.name}: {len(member.sessions)} sessions to pretrain on, {len(member.held_out)} held out, "
            f"from {place or f'nowhere: there is no folder {member.folder} below root={config.root}'}"
        )
    return lines


CORPUS = Verb(
    "prepare every session that a corpus lists, and say which are missing",
    "spikeloom corpus corpora/poyo_mp.yaml root=DATA output=sessions",
    _schema,
    _run,
    _plan,
    needs="a corpus file",
)
