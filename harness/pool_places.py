"""Where images lie before they enter a pool: files below a folder, or members of tar files."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.pool_check import ImageFacts, Rejected, check_image


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Bytes on disk: a whole file, or a part of one."""

    file: str
    offset: int = 0
    size: int = -1
    """-1: to the end of the file."""

    def read(self) -> bytes:
        """The bytes; raises OSError where there are none, Rejected for what is no file (reading may never end)."""
        if not stat.S_ISREG(os.stat(self.file).st_mode):
            raise Rejected("missing_image", "not a file")
        with open(self.file, "rb") as f:
            f.seek(self.offset)
            return f.read(self.size)


class ImageFolder:
    """Images as files below a folder; a key is the path from there."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def place(self, key: str) -> Place | Rejected:
        """Where an image lies; whether it does is seen when it is read."""
        return Place(file=f"{self.root}/{key}")


class ImageTars:
    """Images in tar files (plain ones: their members are read in place).

    A key is a member's name, or `NAME/member` for a member of NAME.tar.
    """

    def __init__(self, root: Path, files: list[Path]) -> None:
        self.root = root.resolve()
        self._members = {f.stem: dict(_members(f)) for f in files}
        self._files = {f.stem: str(f.resolve()) for f in files}

    def place(self, key: str) -> Place | Rejected:
        """Where an image lies, or why that cannot be said."""
        stem, _, rest = key.partition("/")
        hits = [(stem, rest)] if rest in self._members.get(stem, ()) else []
        hits = hits or [(s, key) for s, members in self._members.items() if key in members]
        if len(hits) > 1:
            return Rejected("ambiguous_image", "in " + " and ".join(f"{s}.tar" for s, _ in hits[:4]))
        if not hits:
            return Rejected("missing_image", "in no tar file")
        ((stem, name),) = hits
        offset, size = self._members[stem][name]
        return Place(file=self._files[stem], offset=offset, size=size)


def _members(file: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    try:
        with tarfile.open(file, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or it would keep an object for every image
                if member.isreg() and not member.issparse():
                    yield member.name.removeprefix("./"), (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as e:
        raise HarnessError(f"{file} is not a plain tar file ({e}): unpack it if it is compressed.") from None


def find_images(path: Path) -> ImageFolder | ImageTars:
    """Images at a folder of files, at a folder of tar files, or in one tar file.

    Raises HarnessError where there is nothing of the kind.
    """
    if path.is_file():
        return ImageTars(path.parent, [path])
    if not path.is_dir():
        raise HarnessError(f"there is no image folder {path}: give it with --images DIR.")
    tars = sorted(path.glob("*.tar"))
    return ImageTars(path, tars) if tars else ImageFolder(path)


def check_bytes(image: Place | bytes | Rejected) -> ImageFacts | Rejected:
    """What there is to know of an image, or why it cannot be used."""
    if isinstance(image, Rejected):
        return image
    try:
        data = image if isinstance(image, bytes) else image.read()
        return check_image(data)
    except OSError as e:
        return Rejected("missing_image", (e.strerror or type(e).__name__).lower())
    except Rejected as e:
        return e
