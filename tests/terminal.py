"""Runs a program on a new terminal, types Ctrl-C once the file $SAID has the line `up`, and exits like the program."""
import os
import pty
import sys
import time

child, master = pty.fork()
if child == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
said, deadline = os.environ["SAID"], time.monotonic() + 60
while not (os.path.exists(said) and "up\n" in open(said).read()):
    if time.monotonic() > deadline:
        sys.exit("the program does not come up")
    time.sleep(0.02)
os.write(master, b"\x03")
try:
    # Reads the output so that the program can write; the read fails when the program ends.
    while os.read(master, 4096):
        pass
except OSError:
    pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
