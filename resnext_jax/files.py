"""Files on a local disk or in a bucket: write them completely or not at all, read names, compute checksums."""

import hashlib
import io
import secrets

from etils import epath

from resnext_jax.errors import UserError

MAX_NAMES_BYTES = 64_000_000  # far above any list of names: 1000 bytes for each of 64,000 classes


def in_bucket(path: str | epath.Path) -> bool:
    """Return whether a path is like gs://bucket/run, where nothing can be locked, appended to or renamed."""
    return "://" in str(path)


def replace_file(path: epath.Path, content: bytes | str) -> None:
    """Writes a file so that readers find the old or the new content, even if this process is killed."""
    content = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    if in_bucket(path):
        path.write_bytes(content)  # an object appears when it is complete
        return
    temporary = path.parent / f".{path.name}.tmp-{secrets.token_hex(8)}"  # hosts may share the directory
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_names(path: epath.PathLike) -> list[str]:
    """Return the names in a text file, one per line, without blanks around them; empty lines are skipped.

    Lines end as on any system, and a byte-order mark is no part of the first name.

    Raises:
      UserError: the file cannot be read, is not text in UTF-8, or has no name in it.
    """
    advice = "Give a text file in UTF-8 with one name per line."
    try:
        with epath.Path(path).expanduser().open("rb") as file:
            content = file.read(MAX_NAMES_BYTES + 1)
        if len(content) > MAX_NAMES_BYTES:
            raise ValueError(f"it has more than {MAX_NAMES_BYTES:,} bytes")
        text = content.decode("utf-8-sig")
        if "\0" in text:
            raise ValueError("it holds zero bytes, as no text does but one in UTF-16")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} could not be read: {reason}. {advice}") from None
    # Not `splitlines`: it splits at characters that may stand in a name too.
    names = [name for line in io.StringIO(text, newline=None) if (name := line.strip())]
    if not names:
        raise UserError(f"{path} has no name in it. {advice}")
    return names


def sha256_of(path: epath.PathLike) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: epath.Path, content: bytes | str) -> None:
    """Writes a file of a workdir with `replace_file`.

    Raises:
      UserError: it could not be written.
    """
    try:
        replace_file(path, content)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: epath.Path, error: OSError) -> UserError:
    """Return the error for a file that could not be written."""
    return UserError(
        f"{path} could not be written ({error.strerror or error}). What was saved before is untouched. Free disk space "
        "or fix the directory, and run the same command again: it continues from the newest checkpoint."
    )


def cannot_read(path: str | epath.Path, error: Exception) -> UserError:
    """Return the error for a file or directory that this user may not read; it is not called damaged."""
    return UserError(
        f"{path} could not be read ({getattr(error, 'strerror', None) or 'Permission denied'}). Nothing was changed. "
        "Let this user read it and all files in it, or give another path."
    )
