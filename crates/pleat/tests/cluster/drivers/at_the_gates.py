"""Sessions that are in the middle of something when the gates of their shard close.

Argument: the port. Reads a line from standard input before it goes on, which is to come when the gates are closed. Tells as JSON what became of it."""

import json
import socket
import struct
import sys

PORT, SESSIONS = int(sys.argv[1]), 16


class Session:
    def __init__(self):
        self.socket = socket.create_connection(("127.0.0.1", PORT), timeout=60)
        startup = struct.pack("!i", 196608) + b"user\0pleat\0database\0pleat\0\0"
        self.socket.sendall(struct.pack("!i", len(startup) + 4) + startup)
        self.rest = b""
        self.until_ready()

    def send(self, *messages):
        self.socket.sendall(b"".join(tag + struct.pack("!i", len(body) + 4) + body for tag, body in messages))

    def take(self, count):
        while len(self.rest) < count:
            more = self.socket.recv(65536)
            if not more:
                raise EOFError("the connection was closed")
            self.rest += more
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def until_ready(self):
        """What was answered: tags, errors, warnings, and the state in the end."""
        told = []
        while True:
            tag, length = struct.unpack("!ci", self.take(5))
            body = self.take(length - 4)
            if tag == b"C":
                told.append(body.rstrip(b"\0").decode())
            elif tag in b"EN":
                told.append(tag.decode() + " " + body.replace(b"\0", b" ").decode())
            elif tag == b"Z":
                return told + [body.decode()]

    def series(self, text):
        """Parse, Bind and Execute of a statement without parameters."""
        parse = b"\0" + text.encode() + b"\0" + struct.pack("!h", 0)
        bind = b"\0\0" + struct.pack("!hhh", 0, 0, 0)
        self.send((b"P", parse), (b"B", bind), (b"E", b"\0" + struct.pack("!i", 0)))

    def query(self, text):
        self.send((b"Q", text.encode() + b"\0"))


# A read that waits in its series, and then a write in the same.
series = [Session() for _ in range(SESSIONS)]
for number, session in enumerate(series):
    session.series(f"SELECT n FROM grows WHERE id = -{number + 1}")
# A transaction that has only read.
reading = Session()
reading.query("BEGIN")
reading.until_ready()
reading.query("SELECT n FROM grows WHERE id = -1")
reading.until_ready()
print("ready", flush=True)
sys.stdin.readline()
reading.query("COMMIT")
committed = reading.until_ready()
for number, session in enumerate(series):
    session.series(f"INSERT INTO grows VALUES ({1000000 + number}, 7, 1, NULL)")
    session.send((b"S", b""))
inserted = [session.until_ready() for session in series]
print(json.dumps({"committed": committed, "inserted": inserted}))
