"""Sixteen clients, over all nodes, that write while partitions change servers: rows of their own, a transaction now and then, and a read of each
row after it was written.

Arguments: the ports, and how long to go on at most (seconds). Ends when its standard input does. Tells as JSON what was acknowledged and is not there,
what is there and should not be, what failed, and how long statements took (ms)."""

import json
import random
import sys
import threading
import time

import psycopg2

PORTS = sys.argv[1].split(",")
LIMIT = time.monotonic() + float(sys.argv[2])
LOSES = len(sys.argv) > 3
CLIENTS = 16
done = threading.Event()


def connect(number):
    return psycopg2.connect(host="127.0.0.1", port=PORTS[number % len(PORTS)], user="pleat", dbname="pleat", connect_timeout=30)


def ended():
    sys.stdin.read()
    done.set()


class Client(threading.Thread):
    def __init__(self, number):
        super().__init__()
        self.number, self.rows, self.doubtful = number, {}, set()
        self.failures, self.took, self.stale = [], [], []

    def run(self):
        chance, count, connection = random.Random(self.number), 0, None
        while not done.is_set() and time.monotonic() < LIMIT:
            count += 1
            touched = []
            try:
                if connection is None or connection.closed:
                    connection = connect(self.number)
                self.step(connection, chance, count, touched)
            except psycopg2.Error as error:
                self.failures.append(f"{error.pgcode} {error}".strip())
                self.doubtful.update(touched)
                try:
                    connection.rollback()
                except Exception:
                    connection = None
                if LOSES:
                    time.sleep(0.05)

    def step(self, connection, chance, count, touched):
        begun = time.monotonic()
        known = [row for row in self.rows if row not in self.doubtful]
        kind = chance.random()
        after = {}
        connection.autocommit = kind < 0.8
        with connection.cursor() as cursor:
            if kind < 0.5 or len(known) < 4:
                row = count * CLIENTS + self.number
                touched.append(row)
                cursor.execute("INSERT INTO grows (id, writer, n, t) VALUES (%s, %s, 1, %s)", (row, self.number, "x" * chance.randrange(200)))
                after[row] = 1
            elif kind < 0.7:
                row = chance.choice(known)
                touched.append(row)
                cursor.execute("UPDATE grows SET n = n + 1 WHERE id = %s RETURNING n", (row,))
                after[row] = self.rows[row] + 1
                told = cursor.fetchone()
                if told != (after[row],):
                    self.stale.append(f"{row} became {told} and not {after[row]}")
            elif kind < 0.8:
                row = chance.choice(known)
                touched.append(row)
                cursor.execute("DELETE FROM grows WHERE id = %s", (row,))
                if cursor.rowcount != 1:
                    self.stale.append(f"{row} was not there to be deleted")
                after[row] = None
            else:
                # In order, so that two don't wait for each other.
                for row in sorted(chance.sample(known, 3)):
                    touched.append(row)
                    cursor.execute("UPDATE grows SET n = n + 1 WHERE id = %s", (row,))
                    if cursor.rowcount != 1:
                        self.stale.append(f"{row} was not there to be updated")
                    after[row] = self.rows[row] + 1
                connection.commit()
            self.took.append((time.monotonic() - begun) * 1000)
            for row, n in after.items():
                if n is None:
                    del self.rows[row]
                else:
                    self.rows[row] = n
            if count % 5 == 0 and self.rows:
                row = chance.choice(list(self.rows))
                cursor.execute("SELECT n FROM grows WHERE id = %s", (row,))
                found = cursor.fetchone()
                if row not in self.doubtful and found != (self.rows[row],):
                    self.stale.append(f"{row} reads as {found} and not as {self.rows[row]}")
            if count % 50 == 0:
                cursor.execute("SELECT count(*), count(DISTINCT id) FROM grows WHERE writer = %s", (self.number,))
                all_rows, ids = cursor.fetchone()
                if not self.doubtful and (all_rows, ids) != (len(self.rows), len(self.rows)):
                    self.stale.append(f"{all_rows} rows with {ids} ids where {len(self.rows)} are")
        if not connection.autocommit:
            connection.commit()


threading.Thread(target=ended, daemon=True).start()
clients = [Client(number) for number in range(CLIENTS)]
for client in clients:
    client.start()
for client in clients:
    client.join()
connection = connect(0)
with connection.cursor() as cursor:
    cursor.execute("SELECT id, n FROM grows")
    listed = cursor.fetchall()
found = dict(listed)
expected, doubtful = {}, set()
for client in clients:
    expected.update(client.rows)
    doubtful.update(client.doubtful)
took = sorted(ms for client in clients for ms in client.took)
print(
    json.dumps(
        {
            "rows": len(expected),
            "doubled": len(listed) - len(found),
            "lost": [f"{row}: {found.get(row)}, not {n}" for row, n in expected.items() if row not in doubtful and found.get(row) != n][:5],
            "ghosts": [row for row in found if row not in expected and row not in doubtful][:5],
            "stale": [what for client in clients for what in client.stale][:5],
            "failures": [what for client in clients for what in client.failures][:5],
            "failed": sum(len(client.failures) for client in clients),
            "statements": len(took),
            "p50": took[len(took) // 2],
            "p99": took[len(took) * 99 // 100],
            "longest": took[-1],
        }
    )
)
