"""Removes files from an initramfs and adds others: cpio archives in the format `newc`."""

import stat

MAGIC = b"070701"
END = "TRAILER!!!"


def members(archive):
    """Yields (name, raw member) for each member. Several archives may be concatenated."""
    at = 0
    while at < len(archive):
        if archive[at : at + 1] == b"\0":
            at += 1  # Padding between two archives.
            continue
        assert archive[at : at + 6] == MAGIC, f"no cpio archive at {at}"
        field = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        size, name_size = field[6], field[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        end = padded(padded(at + 110 + name_size) + size)
        if name != END:
            yield name.removeprefix("./"), archive[at:end]
        at = end


def padded(length):
    return length + -length % 4


def member(name, content, mode):
    """One member, owned by root. Its parent directories must exist."""
    encoded = name.encode() + b"\0"
    fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0]
    head = MAGIC + b"".join(b"%08X" % field for field in fields) + encoded
    return head.ljust(padded(len(head)), b"\0") + content.ljust(padded(len(content)), b"\0")


def changed(archive, without=(), files=None):
    """The archive without the members named in `without`, and with `files`: {path: content or (content, mode)}."""
    kept = [raw for name, raw in members(archive) if name not in without]
    for path, content in (files or {}).items():
        content, mode = content if isinstance(content, tuple) else (content, 0o644)
        content = content.encode() if isinstance(content, str) else content
        kept.append(member(path, content, stat.S_IFREG | mode))
    return b"".join(kept) + member(END, b"", 0)
