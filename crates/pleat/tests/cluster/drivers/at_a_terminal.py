"""`pleat user add` at a terminal: what is typed is not shown, twice the same is wanted, Ctrl-C leaves all as it was."""
import os
import pty
import select
import sys
import time


def type_in(user, first, second, interrupt=False):
    """What the terminal showed, and how the program ended."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(os.environ["PLEAT"], ["pleat", "user", "add", user])
    shown = b""

    def until(words):
        nonlocal shown
        begun = time.monotonic()
        while words not in shown:
            assert time.monotonic() - begun < 60, shown
            if select.select([terminal], [], [], 1)[0]:
                try:
                    shown += os.read(terminal, 4096)
                except OSError:
                    break

    until(b"Password for user")
    if interrupt:
        os.write(terminal, b"\x03")
    else:
        os.write(terminal, first + b"\n")
        until(b"Again")
        os.write(terminal, second + b"\n")
    until(b"nothing of the kind, to its end")
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    return shown, os.waitstatus_to_exitcode(status)


shown, code = type_in("typed", b"typed in", b"typed in")
assert code == 0 and b"added user typed" in shown and b"typed in" not in shown, (code, shown)
shown, code = type_in("unsure", b"one", b"two")
assert code == 1 and b"differ" in shown and b"one" not in shown, (code, shown)
shown, code = type_in("unsure", b"", b"", interrupt=True)
assert code == 1 and b"nothing was changed" in shown, (code, shown)
sys.exit(0)
