"""psycopg2: the simple protocol, values put into the text by the driver."""
import datetime
import os

import psycopg2
import psycopg2.extras

conn = psycopg2.connect(host="127.0.0.1", port=os.environ["PGPORT"], user="pleat", dbname="pleat")
conn.autocommit = True
cur = conn.cursor()
cur.execute("DROP TABLE IF EXISTS p2")
cur.execute("CREATE TABLE p2 (id INTEGER PRIMARY KEY, name TEXT, active BOOLEAN, day DATE, raw BYTEA, price NUMERIC) SHARD BY (id)")
cur.execute(
    "INSERT INTO p2 VALUES (%s, %s, %s, %s, %s, %s)",
    (1, "it's \\ ü", True, datetime.date(2024, 2, 29), b"\x00\xff'", 12.5),
)
assert cur.rowcount == 1
cur.execute("SELECT * FROM p2 WHERE id = %s", (1,))
row = cur.fetchone()
assert row[:4] == (1, "it's \\ ü", True, datetime.date(2024, 2, 29)), row
assert bytes(row[4]) == b"\x00\xff'" and float(row[5]) == 12.5, row
# A text finds the number, on its shard.
cur.execute("SELECT name FROM p2 WHERE id = %s", ("1",))
assert cur.fetchone() == ("it's \\ ü",)

conn.autocommit = False
psycopg2.extras.execute_values(cur, "INSERT INTO p2 (id, name) VALUES %s", [(n, f"n{n}") for n in range(2, 200)])
conn.rollback()
cur.execute("SELECT count(*) FROM p2")
assert cur.fetchone() == (1,)
psycopg2.extras.execute_values(cur, "INSERT INTO p2 (id, name) VALUES %s", [(n, f"n{n}") for n in range(2, 200)])
conn.commit()
try:
    cur.execute("INSERT INTO p2 (id) VALUES (1)")
    raise SystemExit("a double key was taken")
except psycopg2.errors.UniqueViolation:
    pass
try:
    cur.execute("SELECT 1")
    raise SystemExit("a failed transaction went on")
except psycopg2.errors.InFailedSqlTransaction:
    conn.rollback()
with conn:
    cur.execute("UPDATE p2 SET name = 'x' WHERE id > 100 RETURNING id, active")
    assert len(cur.fetchall()) == 99 and cur.rowcount == 99
with conn:
    with conn.cursor("rows") as named:
        named.itersize = 50
        named.execute("SELECT id FROM p2 ORDER BY id")
        assert [row[0] for row in named] == list(range(1, 200))
cur.execute("SELECT version()")
assert "Pleat" in cur.fetchone()[0]
conn.close()
