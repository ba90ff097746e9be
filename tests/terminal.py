"""Runs a program on a terminal of its own; types Ctrl-C when it has said `up` in $SAID; exits as it does."""
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
        sys.exit("it does not come up")
    time.sleep(0.02)
os.write(master, b"\x03")
try:
    # What it writes has to go somewhere; at its end the terminal gives an error.
    while os.read(master, 4096):
        pass
except OSError:
    pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
