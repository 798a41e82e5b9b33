"""Small files of a workdir, local or in a bucket: written whole or not at all."""

import os

from etils import epath

from resnext_jax.errors import UserError


def in_bucket(path: str | epath.Path) -> bool:
    """Whether this is a path like gs://bucket/run: no directories to make, nothing to append to or to rename."""
    return "://" in str(path)


def write_whole(path: epath.Path, content: bytes | str) -> None:
    """Whoever reads `path`, after a kill too, finds all of `content` or what was there before.

    Raises:
      UserError: it could not be written.
    """
    content = content.encode() if isinstance(content, str) else content
    try:
        if in_bucket(path):
            path.write_bytes(content)  # an object appears when all of it is there
            return
        temporary = path.parent / f".{path.name}.tmp-{os.getpid()}"
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: epath.Path, error: OSError) -> UserError:
    """The instruction for a file that the file system, or the bucket, would not take."""
    return UserError(
        f"{path} could not be written ({error.strerror or error}). What was saved before is untouched. Make room, or "
        "mend what is wrong with the directory, and run the same command again: it goes on from the newest checkpoint."
    )
