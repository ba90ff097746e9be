"""A file system in memory, served over /dev/fuse, that can stop responding.

    python3 disk.py DIRECTORY

Mounts the file system on DIRECTORY and prints `mounted`. After SIGUSR1 it answers at most one more request and prints `dead`;
after SIGUSR2 it answers again and prints `alive`. Needs root. A process that waits for an answer can be killed, because the
server has not read the request.
"""

import ctypes
import errno
import os
import signal
import stat
import struct
import sys
import threading

ALIVE = threading.Event()
ROOT = 1


class Node:
    def __init__(self, mode, uid):
        self.mode, self.uid, self.nlink = mode, uid, 1
        self.data = bytearray()
        self.names = {}


nodes = {ROOT: Node(stat.S_IFDIR | 0o755, 0)}


def attr(number):
    node = nodes[number]
    times = (0, 0, 0, 0, 0, 0)
    return struct.pack("<6Q10I", number, len(node.data), 0, *times[:3], *times[3:], node.mode, node.nlink, node.uid, 0, 0, 4096, 0)


def entry(number):
    # The entry is valid for 0 s, so the kernel asks each time.
    return struct.pack("<4Q2I", number, 0, 0, 0, 0, 0) + attr(number)


def name_of(data):
    return data.rstrip(b"\0")


def make(parent, name, mode, uid):
    number = max(nodes) + 1
    nodes[number] = Node(mode, uid)
    nodes[parent].names[name] = number
    return number


def lookup(node, data, uid):
    number = nodes[node].names.get(name_of(data))
    return entry(number) if number else -errno.ENOENT


def getattr_(node, data, uid):
    return struct.pack("<QII", 0, 0, 0) + attr(node)


def setattr_(node, data, uid):
    valid, _, _, size = struct.unpack_from("<IIQQ", data)
    (mode,) = struct.unpack_from("<I", data, 68)
    if valid & 1:
        nodes[node].mode = stat.S_IFMT(nodes[node].mode) | stat.S_IMODE(mode)
    if valid & 8:
        old = nodes[node].data
        nodes[node].data = old[:size] + bytes(size - len(old[:size]))
    return getattr_(node, data, uid)


def mkdir(node, data, uid):
    (mode,) = struct.unpack_from("<I", data)
    return entry(make(node, name_of(data[8:]), stat.S_IFDIR | mode, uid))


def unlink(node, data, uid):
    number = nodes[node].names.pop(name_of(data), None)
    if number is None:
        return -errno.ENOENT
    nodes[number].nlink = 0
    return b""


def open_(node, data, uid):
    return struct.pack("<QII", 0, 0, 0)


def create(node, data, uid):
    (_, mode) = struct.unpack_from("<II", data)
    return entry(make(node, name_of(data[16:]), stat.S_IFREG | stat.S_IMODE(mode), uid)) + open_(node, data, uid)


def read(node, data, uid):
    _, offset, size = struct.unpack_from("<QQI", data)
    return bytes(nodes[node].data[offset : offset + size])


def write(node, data, uid):
    _, offset, size = struct.unpack_from("<QQI", data)
    nodes[node].data[offset : offset + size] = data[40 : 40 + size]
    return struct.pack("<II", size, 0)


def readdir(node, data, uid):
    _, offset, size = struct.unpack_from("<QQI", data)
    out = b""
    for at, (name, number) in enumerate(nodes[node].names.items()):
        piece = struct.pack("<QQII", number, at + 1, len(name), stat.S_IFMT(nodes[number].mode) >> 12) + name
        piece += bytes(-len(piece) % 8)
        if at >= offset and len(out) + len(piece) <= size:
            out += piece
    return out


def statfs(node, data, uid):
    return struct.pack("<5Q10I", 1 << 30, 1 << 30, 1 << 30, 1 << 20, 1 << 20, 4096, 255, 4096, *[0] * 7)


def init(node, data, uid):
    return struct.pack("<4I2H2I2HI7I", 7, 31, 0, 0, 16, 16, 1 << 17, 1, 0, 0, 0, *[0] * 7)


def nothing(node, data, uid):
    return b""


# FLUSH is not implemented, so that closing a file does not wait for the server, as on a disk: a child closes the log
# files before it executes its program.
ANSWERS = {
    1: lookup, 3: getattr_, 4: setattr_, 9: mkdir, 10: unlink, 11: unlink, 14: open_, 15: read, 16: write, 17: statfs,
    18: nothing, 20: nothing, 26: init, 27: open_, 28: readdir, 29: nothing, 35: create,
}
# FORGET, INTERRUPT and BATCH_FORGET have no answer.
WITHOUT_ANSWER = {2, 36, 42}


def serve(fuse):
    while True:
        ALIVE.wait()
        request = os.read(fuse, 1 << 20)
        _, opcode, unique, node, uid = struct.unpack_from("<IIQQI", request)
        if opcode in WITHOUT_ANSWER:
            continue
        answer = ANSWERS[opcode](node, request[40:], uid) if opcode in ANSWERS else -errno.ENOSYS
        error, body = (answer, b"") if isinstance(answer, int) else (0, answer)
        # The kernel refuses the answer to an interrupted request.
        try:
            os.write(fuse, struct.pack("<IiQ", 16 + len(body), error, unique) + body)
        except OSError:
            pass


def main():
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if ctypes.CDLL(None, use_errno=True).mount(b"disk", sys.argv[1].encode(), b"fuse", 0, options) != 0:
        sys.exit(f"cannot mount: {os.strerror(ctypes.get_errno())}")
    ALIVE.set()
    threading.Thread(target=serve, args=(fuse,), daemon=True).start()
    print("mounted", flush=True)
    while True:
        ALIVE.clear() if signal.sigwait({signal.SIGUSR1, signal.SIGUSR2}) == signal.SIGUSR1 else ALIVE.set()
        print("dead" if not ALIVE.is_set() else "alive", flush=True)


signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
main()
