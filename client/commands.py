"""``fedward site …``: the command line of a site's operator. Each command imports what it needs when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="A hospital's own site: fill, check and keep its encrypted vault.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Site = Annotated[Path, typer.Option("--site", help="The site's directory.", envvar="FEDWARD_SITE")]
HERE = Path()
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Labels = Annotated[
    Path | None, typer.Option(help="Label sheet, CSV or XLSX: columns file, patient, accession or sop; label …")
]
LabelColumns = Annotated[
    list[str] | None, typer.Option("--label-column", help="A column that holds labels; may be repeated.")
]
Readers = Annotated[
    str | None, typer.Option(help="Columns of two or more readers, with commas between. Default: reader_1, reader_2 …")
]
Consensus = Annotated[str | None, typer.Option(help="Column of the readers' consensus. Default: consensus.")]
Disagreement = Annotated[
    str, typer.Option(help="Readers differ without consensus: refuse the image, or exclude it from the labelled ones.")
]
Worksheet = Annotated[str, typer.Option(help="Worksheet of an XLSX file. Default: its first.")]
OptOut = Annotated[Path | None, typer.Option(help="List of patients who withheld consent; they stay out.")]
Boxes = Annotated[Path | None, typer.Option(help="Sheet of lesion boxes: file or sop, label, x, y, width, height.")]
Masks = Annotated[Path | None, typer.Option(help="Folder of masks, each named as its image.")]
Workers = Annotated[int, typer.Option(min=1, help="Decoding processes.")]
Pacs = Annotated[str, typer.Option(help="DICOMweb address, for example https://pacs.hospital:8042/dicom-web.")]


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="The new site's directory.")],
    name: Annotated[str | None, typer.Option(help="The site's alias. Default: the directory's name.")] = None,
    key: Annotated[
        str, typer.Option(help="Who holds the key: file:PATH, passphrase:, vault:URL … (docs/keys.md).")
    ] = "file:keys/vault.key",
    compression: Annotated[str, typer.Option(help="none, or jpeg-ls: lossless, half the disk, slower.")] = "none",
    synthetic: Annotated[bool, typer.Option("--synthetic", help="The images will be phantoms, of nobody.")] = False,
) -> None:
    """Make a site: site.yaml, a key, an empty vault, a policy to edit."""
    from client import cli

    cli.init(directory, name=name, key=key, compression=compression, synthetic=synthetic)


@app.command("import")
def import_(
    sources: Annotated[list[Path], typer.Argument(help="Files, folders, ZIPs, DICOMDIR.")],
    site: Site = HERE,
    labels: Labels = None,
    label_column: LabelColumns = None,
    readers: Readers = None,
    consensus: Consensus = None,
    disagreement: Disagreement = "refuse",
    worksheet: Worksheet = "",
    opt_out: OptOut = None,
    boxes: Boxes = None,
    masks: Masks = None,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Bring images into the vault, de-identified; what is refused is listed, and the rest goes on."""
    from client import cli

    given = cli.Given(labels, label_column, readers, consensus, disagreement, worksheet, opt_out, boxes, masks)
    cli.import_(site, sources, given, workers=workers, as_json=as_json)


@app.command()
def label(
    labels: Annotated[Path, typer.Argument(help="Label sheet, CSV or XLSX.")],
    site: Site = HERE,
    label_column: LabelColumns = None,
    readers: Readers = None,
    consensus: Consensus = None,
    disagreement: Disagreement = "refuse",
    worksheet: Worksheet = "",
) -> None:
    """Label images that are in the vault already."""
    from client import cli

    cli.label(site, cli.Given(labels, label_column, readers, consensus, disagreement, worksheet))


@app.command()
def pull(
    pacs: Pacs,
    site: Site = HERE,
    modality: Annotated[str | None, typer.Option(help="Modalities, with commas between, for example CR,DX.")] = None,
    since: Annotated[str | None, typer.Option("--from", help="First study date, YYYY-MM-DD.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Last study date, YYYY-MM-DD.")] = None,
    user: Annotated[str | None, typer.Option(help="Login; the password is asked for, or in --password-file.")] = None,
    password_file: Annotated[Path | None, typer.Option(help="File that holds the password.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File that holds a bearer token, in place of a login.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="Certificate of the authority that the PACS trusts.")] = None,
    labels: Labels = None,
    label_column: LabelColumns = None,
    readers: Readers = None,
    consensus: Consensus = None,
    disagreement: Disagreement = "refuse",
    worksheet: Worksheet = "",
    opt_out: OptOut = None,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Fetch images from a PACS by DICOMweb, and import them."""
    from client import cli

    given = cli.Given(labels, label_column, readers, consensus, disagreement, worksheet, opt_out)
    login = cli.Login(user, password_file, token_file, ca)
    query = cli.Wanted(modality, since, until)
    cli.pull(site, pacs, query, login, given, workers=workers, as_json=as_json)


@app.command()
def receive(
    site: Site = HERE,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 11112,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    title: Annotated[str, typer.Option(help="Our AE title.")] = "FEDWARD",
    callers: Annotated[
        list[str] | None, typer.Option("--from", help="AE title that may send; may be repeated. Default: any.")
    ] = None,
    labels: Labels = None,
    label_column: LabelColumns = None,
    opt_out: OptOut = None,
    for_s: Annotated[
        float | None, typer.Option("--for", help="Stop after so many seconds. Default: at Ctrl-C.")
    ] = None,
) -> None:
    """Receive images that a PACS or device sends (C-STORE), and import them as they come."""
    from client import cli

    given = cli.Given(labels, label_column, opt_out=opt_out)
    cli.receive(site, given, host=host, port=port, title=title, callers=callers or [], for_s=for_s)


@app.command()
def info(site: Site = HERE, as_json: Json = False) -> None:
    """Show what the vault holds, in counts."""
    from client import cli

    cli.info(site, as_json=as_json)


@app.command()
def verify(
    site: Site = HERE,
    accept: Annotated[
        bool, typer.Option("--accept", help="The site's memory is lost: take the vault as it is for the latest.")
    ] = False,
) -> None:
    """Check every byte: vault, site's memory, audit log. Writes nothing."""
    from client import cli

    cli.verify(site, accept=accept)


@app.command()
def erase(
    patient: Annotated[
        str, typer.Option(help="The patient's number, as the hospital writes it; - reads it from a pipe.")
    ],
    site: Site = HERE,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a patient for good, and keep every later import from bringing them back."""
    from client import cli

    cli.erase(site, patient, yes=yes)


@app.command("rotate-key")
def rotate_key(
    site: Site = HERE,
    key: Annotated[str | None, typer.Option(help="Where the new key is. Default: a new one beside the old.")] = None,
    reencrypt: Annotated[
        bool, typer.Option("--reencrypt", help="Also a new data key: every image is written anew.")
    ] = False,
) -> None:
    """Lock the vault with another key."""
    from client import cli

    cli.rotate_key(site, key, reencrypt=reencrypt)


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    site: Site = HERE,
) -> None:
    """Write vault, policy, memory, audit log and ledger to one file; keys are not in it."""
    from client import cli

    cli.backup(site, target)


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="A backup.")],
    directory: Annotated[Path, typer.Argument(help="The directory to make; must not exist.")],
    key: Annotated[str | None, typer.Option(help="Where the key is now, for example file:PATH.")] = None,
) -> None:
    """Make a site anew from a backup."""
    from client import cli

    cli.restore(source, directory, key=key)


@app.command()
def doctor(site: Site = HERE, as_json: Json = False) -> None:
    """Look for what is wrong or soon will be: disk, memory, GPU, key, versions, clock, vault."""
    from client import cli

    cli.doctor(site, as_json=as_json)


@app.command()
def locate(
    reference: Annotated[
        str, typer.Argument(help="A reference out of rejected.csv, or an image's number, for example 17.")
    ],
    sources: Annotated[list[Path], typer.Argument(help="What was imported.")],
    site: Site = HERE,
) -> None:
    """Say which file a line of rejected.csv, or an image of the readiness report, means; only this site can."""
    from client import cli

    cli.locate(site, reference, sources)
