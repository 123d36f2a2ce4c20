"""The commands about what a job has left: results, export, report, verify, frames, cite."""

from __future__ import annotations

from pathlib import Path

import click

from daemon.options import OneOf, Pipeline, config_option, load_config


@click.command()
@click.argument("name", metavar="OUT_OR_ID")
@click.option("--partial", is_flag=True, help="Of an unfinished job: the records that are done.")
@config_option
def results(name: str, partial: bool, config_file: Path | None, state_dir: Path | None) -> None:
    """Prints sequences.tsv of a job or output folder."""
    from daemon import show

    show.results(load_config(config_file, state_dir=state_dir), name, partial)


@click.command()
@click.argument("name", metavar="OUT_OR_ID")
@click.option("--to", "form", type=OneOf(["parquet", "npy", "h5-per-id"]), required=True)
@click.option("--into", type=click.Path(path_type=Path), help="Folder (default: OUT/export).")
@config_option
def export(
    name: str, form: str, into: Path | None, config_file: Path | None, state_dir: Path | None
) -> None:
    """Writes tables and embeddings of a finished job in another format; prints the files."""
    from daemon.find import find_results
    from ops.errors import UsageError
    from ops.export import export as write
    from ops.place import is_remote

    out = find_results(load_config(config_file, state_dir=state_dir), name)
    if into is None and is_remote(out):
        raise UsageError(f"name a folder for the files of {out} with --into")
    for path in write(out, form, into or Path(out) / "export"):
        click.echo(path)


@click.command()
@click.argument("fasta", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--chunk-length", type=click.IntRange(min=3), default=500, show_default=True)
@click.option("--nucleotide", type=click.Path(path_type=Path), required=True)
@click.option("--protein", type=click.Path(path_type=Path), required=True)
def frames(fasta: tuple[Path, ...], chunk_length: int, nucleotide: Path, protein: Path) -> None:
    """Writes all stop-free frames, in the original's order and with its ids."""
    from ops.frames_export import write_frames

    count = write_frames(fasta, chunk_length, nucleotide, protein)
    click.echo(f"vnp: {count} frames", err=True)


@click.command()
@click.argument("name", metavar="OUT_OR_ID")
@click.option("--repair", is_flag=True, help="Compute anew what is damaged, and nothing else.")
@click.option("--recompute", type=click.IntRange(min=1), help="Compute so many shards again, too.")
@click.option("--device", help="For --repair and --recompute: cpu, cuda or cuda:N.")
@config_option
def verify(
    name: str,
    repair: bool,
    recompute: int | None,
    device: str | None,
    config_file: Path | None,
    state_dir: Path | None,
) -> int:
    """Reads everything in an output folder again and checks it."""
    config = load_config(config_file, state_dir=state_dir, device=device)
    if repair:
        from daemon.repair import repair as repair_folder

        return repair_folder(config, name)
    from daemon import show

    code = show.verify(config, name)
    if recompute and not code:
        from daemon.recompute import recompute as recompute_shards

        code = recompute_shards(config, name, recompute)
    return code


@click.command()
@click.option("--pipeline", type=Pipeline(), default="virus", show_default=True)
def cite(pipeline: str) -> None:
    """Prints what to cite."""
    from ops.citations import citations

    click.echo("\n".join(citations(pipeline)))


@click.command()
@click.argument("name", metavar="OUT_OR_ID")
@click.option("--into", type=click.Path(path_type=Path), help="Folder (default: OUT).")
@config_option
def report(name: str, into: Path | None, config_file: Path | None, state_dir: Path | None) -> None:
    """Writes report.html and vnp_mqc.tsv of a finished job; prints the files."""
    from daemon.find import find_results
    from ops.durable import describe_os_error, make_dir
    from ops.place import place_of
    from ops.report import gather_report
    from ops.report_html import multiqc, render

    out = find_results(load_config(config_file, state_dir=state_dir), name)
    gathered = gather_report(out)
    target = place_of(out if into is None else into)
    try:
        if into is not None:
            make_dir(into)
        for file, data in (("report.html", render(gathered)), ("vnp_mqc.tsv", multiqc(gathered))):
            target.write(file, data)
            click.echo(target.path(file))
    except OSError as error:  # OUT may be the service's, which its group may only read
        where = f"{target}" if into is not None else f"{target} (--into names another)"
        raise describe_os_error(error, where) from error


COMMANDS = (results, export, report, frames, verify, cite)
