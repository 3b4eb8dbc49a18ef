"""Reads disk images with other people's libraries, each run as a program of its own: one request a line, one answer a line.

Request: reader, tab, path of the leaf, tab, paths of its parents (tabs between). Answer: "content SIZE SHA256" or
"refused WHY".
"""

import hashlib
import pathlib
import sys

PIECE = 1 << 20


def digest(size, read):
    state, offset = hashlib.sha256(), 0
    while offset < size:
        data = read(offset, min(PIECE, size - offset))
        if not data:
            raise ValueError(f"nothing can be read at {offset} of {size}")
        state.update(data)
        offset += len(data)
    return f"content {size} {state.hexdigest()}"


def dissect_vhdx(leaf, parents):
    from dissect.hypervisor.disk.vhdx import VHDX

    disk = VHDX(pathlib.Path(leaf))

    def read(offset, length):
        disk.seek(offset)
        return disk.read(length)

    return digest(disk.size, read)


def dissect_vhd(leaf, parents):
    from dissect.hypervisor.disk.vhd import VHD

    with open(leaf, "rb") as file:
        disk = VHD(file)

        def read(offset, length):
            disk.seek(offset)
            return disk.read(length)

        return digest(disk.size, read)


def libvhdi(leaf, parents):
    import pyvhdi

    files = []
    for path in [leaf, *parents]:
        file = pyvhdi.file()
        file.open(path)
        if files:
            files[-1].set_parent(file)
        files.append(file)
    try:
        return digest(files[0].get_media_size(), lambda offset, length: files[0].read_buffer_at_offset(length, offset))
    finally:
        for file in files:
            file.close()


READERS = {"dissect-vhdx": dissect_vhdx, "dissect-vhd": dissect_vhd, "libvhdi": libvhdi}

for line in sys.stdin:
    name, leaf, *parents = line.rstrip("\n").split("\t")
    try:
        answer = READERS[name](leaf, parents)
    except ImportError as error:
        answer = f"missing {error}"
    except Exception as error:
        answer = f"refused {type(error).__name__}: {error}"
    print(" ".join(answer.split()), flush=True)
