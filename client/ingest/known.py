"""What a vault holds, as far as an import must know it: some 300 bytes an image; the rest is read when needed."""

from __future__ import annotations

from client.vault.records import Record, Row
from client.vault.store import Vault

Image = Row | Record
"""In the vault, or on its way into it."""


class Known:
    """The vault's images, and those still to be committed, by file, place, object and pixels."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._files: dict[bytes, int | Record] = {}  # the first image of each file, by the digest of its content
        self._parts: dict[bytes, int | Record] = {}  # a file's other images
        self._places: dict[bytes, int | Record] = {}
        self._pixels: dict[bytes, int | Record] = {}
        self._objects: set[bytes] = set()
        self._splits: dict[bytes, str] = {}

    def remember(self, image: Image) -> None:
        """Know ``image`` from now on; a :class:`Row` takes the place of the :class:`Record` that became it."""
        held = image.id if isinstance(image, Row) else image
        keys = image.keys
        if "source" in keys:
            source = _packed(keys["source"])
            if source not in self._files or self._same_part(self._files[source], image):
                self._files[source] = held
            else:
                self._parts[keys["part"].encode()] = held
        if "sop" in keys:
            self._places[_packed(keys["place"])] = held
            self._objects.add(_packed(keys["sop"]))
        self._pixels[_packed(image.digest)] = held
        self._splits[_packed(image.patient)] = image.split

    def file(self, source: str) -> Image | None:
        """The first image of the file with this content."""
        return self._image(self._files.get(_packed(source)))

    def part(self, source: str, number: int) -> Image | None:
        """That picture of the file with this content."""
        part = part_name(source, number)
        first = self.file(source)
        return (
            first if first is not None and first.keys["part"] == part else self._image(self._parts.get(part.encode()))
        )

    def place(self, place: str) -> Image | None:
        """The image of a DICOM object's frame."""
        return self._image(self._places.get(_packed(place)))

    def pixels(self, digest: str) -> Image | None:
        """The image with these pixels."""
        return self._image(self._pixels.get(_packed(digest)))

    def has_object(self, sop: str) -> bool:
        return _packed(sop) in self._objects

    def split(self, patient: str) -> str:
        """The split of a patient, or empty."""
        return self._splits.get(_packed(patient), "")

    def _same_part(self, first: int | Record, image: Image) -> bool:
        """Whether ``image`` is the ``first`` of its file, or became of it."""
        if isinstance(first, int):
            return isinstance(image, Row) and first == image.id
        return first.keys["part"] == image.keys["part"]

    def _image(self, held: int | Record | None) -> Image | None:
        return self._vault.row(held) if isinstance(held, int) else held


def part_name(source: str, number: int) -> str:
    """What an image's key ``part`` says: its file's content, and which picture of that file it is."""
    return f"{source}/{number}"


def _packed(pseudonym: str) -> bytes:
    """A pseudonym or digest in 16 bytes. Others than an importer's own (a data set's patients) stay as they are."""
    try:
        return bytes.fromhex(pseudonym[:32])
    except ValueError:
        return pseudonym.encode()
