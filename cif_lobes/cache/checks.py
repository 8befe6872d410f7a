"""What tells a damaged teacher cache from a sound one: every byte is under a CRC-32.

The states of a text are under theirs in the table `checksums`, and are checked whenever
they are read. Everything else, HDF5's own structures included, is under the seal: the
first 512 bytes of the file, which HDF5 leaves to its user, hold

    b"teacher\\0", address and bytes of `values` (two uint64), ..., CRC-32 (uint32)

The seal is checked before HDF5 parses anything that it covers, and is written last, so
that an unfinished cache has none. A checksum does not keep out who forges one: hence
`own_dataset`.
"""

import os
import struct
import zlib

import h5py
import torch

SEAL_BYTES = 512
_MAGIC = b"teacher\0"
_HEAD, _CHECKSUM = "<8sQQ", "<I"
_BLOCK = 1 << 20  # bytes read at a time


def as_bytes(tensor):
    """The memory of a contiguous tensor; NumPy has no bfloat16."""
    return tensor.view(torch.uint8).numpy()


def checksum(states):
    """CRC-32 of the memory of a contiguous tensor."""
    return zlib.crc32(as_bytes(states))


def read_states(fd, address, shape, dtype, expected):
    """Positioned read of the states of a text, which are known by their checksum.

    Arguments
    ---------
    fd : int
        Open file. Its offset, which forked workers share, stays.
    address : int
        Byte at which the states begin.
    shape : tuple of int
    dtype : torch.dtype
    expected : int
        Their checksum.

    Returns
    -------
    torch.Tensor or None
        None if the file ends too early, or holds something else.
    """
    states = torch.empty(shape, dtype=dtype)
    whole = os.preadv(fd, [as_bytes(states)], address) == states.nbytes
    return states if whole and checksum(states) == expected else None


def write_all(fd, data, address):
    """Positioned write of any number of bytes; one call of the system writes 2 GB."""
    data = memoryview(data).cast("B")
    while data:
        written = os.pwrite(fd, data, address)
        data, address = data[written:], address + written


def write_seal(fd, address, size):
    """Seal a cache; from now on any change to it is noticed.

    Arguments
    ---------
    fd : int
        The file, open for reading and writing.
    address, size : int
        Bytes before `values`, and of `values`.
    """
    head = struct.pack(_HEAD, _MAGIC, address, size)
    head = head.ljust(SEAL_BYTES - struct.calcsize(_CHECKSUM), b"\0")
    index = _index_checksum(fd, head, address, size)
    write_all(fd, head + struct.pack(_CHECKSUM, index), 0)


def read_seal(fd):
    """Check the seal of a cache.

    Arguments
    ---------
    fd : int
        The file, open for reading.

    Returns
    -------
    tuple of int or None
        Address and size of `values`; None if the file has no seal.

    Raises
    ------
    ValueError
        If anything but the states is not as it was sealed.
    """
    block = os.pread(fd, SEAL_BYTES, 0)
    if len(block) < SEAL_BYTES or not block.startswith(_MAGIC):
        return None
    _, address, size = struct.unpack_from(_HEAD, block)
    head = block[: -struct.calcsize(_CHECKSUM)]
    (sealed,) = struct.unpack(_CHECKSUM, block[len(head) :])
    found = _index_checksum(fd, head, address, size)
    if found != sealed:
        raise ValueError(f"its index has checksum {found:08x}, sealed as {sealed:08x}")
    return address, size


def own_dataset(file, name):
    """A dataset whose numbers lie in this very file, one after another.

    HDF5 can also point at another file, any that the user may read: through an external
    link, external storage or a virtual dataset. A cache from someone else must not.

    Arguments
    ---------
    file : h5py.File
    name : str

    Returns
    -------
    h5py.Dataset

    Raises
    ------
    ValueError
        If there is no such dataset, or it is kept in another way.
    """
    link = file.get(name, getlink=True)
    found = file[name] if isinstance(link, h5py.HardLink) else None
    if isinstance(found, h5py.Dataset):
        layout = found.id.get_create_plist()
        contiguous = layout.get_layout() == h5py.h5d.CONTIGUOUS
        if contiguous and not layout.get_external_count():
            return found
    raise ValueError(f"{name!r} is no dataset of its own, but points elsewhere")


def _index_checksum(fd, head, address, size):
    """Of all but the states and the checksum itself."""
    end = os.fstat(fd).st_size
    found = _checksum_of(fd, SEAL_BYTES, min(address, end), zlib.crc32(head))
    return _checksum_of(fd, min(address + size, end), end, found)


def _checksum_of(fd, start, stop, before):
    while start < stop:
        data = os.pread(fd, min(stop - start, _BLOCK), start)
        if not data:
            break
        before = zlib.crc32(data, before)
        start += len(data)
    return before
