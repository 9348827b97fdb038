"""psycopg 3: the extended protocol, values as text and in binary, prepared statements, COPY, pipelines."""
import datetime
import decimal
import os
import uuid

import psycopg

dsn = f"host=127.0.0.1 port={os.environ['PGPORT']} user=pleat dbname=pleat"
with psycopg.connect(dsn, autocommit=True) as conn:
    conn.execute("DROP TABLE IF EXISTS p3")
    conn.execute(
        "CREATE TABLE p3 (id INTEGER PRIMARY KEY, name TEXT, active BOOLEAN, at TIMESTAMP, raw BYTEA, price NUMERIC, u UUID, j JSON) SHARD BY (id)"
    )
    u = uuid.uuid4()
    at = datetime.datetime(2024, 2, 29, 12, 30, 1, 5)
    row = (1, "ü", True, at, b"\x00\xff", decimal.Decimal("1.25"), u)
    conn.execute("INSERT INTO p3 (id, name, active, at, raw, price, u) VALUES (%s, %s, %s, %s, %s, %s, %s)", row)
    for binary in (False, True):
        cur = conn.cursor(binary=binary)
        for key in (1, "1"):
            cur.execute("SELECT id, name, active, at, raw, price, u FROM p3 WHERE id = %s", (key,))
            assert cur.fetchone() == row, (binary, key)
        # Binary parameters.
        cur.execute("SELECT id FROM p3 WHERE id = %b AND active = %b AND name = %b", (1, True, "ü"))
        assert cur.fetchall() == [(1,)]
        cur.execute("SELECT count(*), sum(id), avg(price) FROM p3")
        assert cur.fetchone() == (1, 1, 1.25)
    # Prepared by name after some uses.
    for n in range(2, 30):
        conn.execute("INSERT INTO p3 (id, name) VALUES (%s, %s)", (n, f"n{n}"), prepare=True)
    with conn.cursor() as cur:
        cur.executemany("INSERT INTO p3 (id, name) VALUES (%s, %s)", [(n, "many") for n in range(30, 60)])
    with conn.pipeline():
        got = [conn.execute("SELECT name FROM p3 WHERE id = %s", (n,)) for n in range(2, 10)]
    assert [cur.fetchone()[0] for cur in got] == [f"n{n}" for n in range(2, 10)]

    # What is between two Syncs is done all or not at all.
    try:
        with conn.pipeline() as pipeline:
            conn.execute("INSERT INTO p3 (id) VALUES (1000)")
            conn.execute("INSERT INTO p3 (id) VALUES (1)")
            pipeline.sync()
        raise SystemExit("a double key was taken")
    except psycopg.errors.UniqueViolation:
        pass
    assert conn.execute("SELECT count(*) FROM p3 WHERE id = 1000").fetchone() == (0,)

    with conn.transaction():
        conn.execute("DELETE FROM p3 WHERE id >= %s", (50,))
        try:
            with conn.transaction():
                conn.execute("DELETE FROM p3")
                raise ValueError
        except ValueError:
            pass
    assert conn.execute("SELECT count(*) FROM p3").fetchone() == (49,)

    # A moment as JavaScript writes it is one in both formats, and is found by what was read.
    conn.execute("INSERT INTO p3 (id, at) VALUES (2000, '2023-11-14T22:13:20.000Z')")
    moment = datetime.datetime(2023, 11, 14, 22, 13, 20)
    for binary in (False, True):
        cur = conn.cursor(binary=binary)
        assert cur.execute("SELECT at FROM p3 WHERE id = 2000").fetchone() == (moment,), binary
    conn.execute("UPDATE p3 SET at = %s WHERE id = 2000", ("2023-11-14T22:13:20Z",))
    assert conn.execute("SELECT id FROM p3 WHERE at = %s", (moment,)).fetchall() == [(2000,)]
    conn.execute("DELETE FROM p3 WHERE id = 2000")

    with conn.cursor() as cur:
        with cur.copy("COPY p3 (id, name, active) FROM STDIN") as copy:
            for n in range(100, 200):
                copy.write_row((n, "tab\tnew\nline", n % 2 == 0))
        with cur.copy("COPY (SELECT id, name FROM p3 WHERE id >= 198 ORDER BY id) TO STDOUT") as copy:
            assert list(copy.rows()) == [("198", "tab\tnew\nline"), ("199", "tab\tnew\nline")]
    # A cursor of the server, with a value.
    with conn.transaction():
        with conn.cursor("rows") as cur:
            cur.itersize = 7
            cur.execute("SELECT id, active FROM p3 WHERE id >= %s ORDER BY id", (100,))
            assert [row for row in cur] == [(n, n % 2 == 0) for n in range(100, 200)]
    try:
        conn.execute("SELECT %s::int8", ("x",))
        raise SystemExit("x is no number")
    except psycopg.errors.InvalidTextRepresentation:
        pass
    assert conn.execute("SELECT %s::int8 + 1", ("41",)).fetchone()[0] in (42, "42")
    conn.execute("SET statement_timeout = '300ms'")
    try:
        conn.execute("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n")
        raise SystemExit("it never ends")
    except psycopg.errors.QueryCanceled:
        pass
