"""A small application with each driver, on shards that are PostgreSQL servers: what it prepares, copies, writes and rolls back."""

import asyncio
import datetime
import decimal
import json
import os
import uuid

import asyncpg
import psycopg
import psycopg2
import sqlalchemy as sa
from sqlalchemy.orm import Session, declarative_base

PORT = int(os.environ["PGPORT"])
WHERE = {"host": "127.0.0.1", "port": PORT, "user": "pleat", "dbname": "pleat"}
COLUMNS = "id uuid PRIMARY KEY, n int, exact numeric(20, 5), at timestamptz, words text[], doc jsonb, raw bytea"
NOW = datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.timezone.utc)


def values(number):
    row = (uuid.UUID(int=number), number, decimal.Decimal(number) / 8, NOW, ["a", "b'c", None], {"k": [number, None]}, bytes([0, number % 256]))
    return row


def with_psycopg():
    with psycopg.connect(**WHERE, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE p3 ({COLUMNS}) SHARD BY (id)")
        insert = "INSERT INTO p3 VALUES (%s, %s, %s, %s, %s, %s, %s)"
        wrapped = [(*row[:5], psycopg.types.json.Jsonb(row[5]), row[6]) for row in map(values, range(20))]
        with connection.transaction():
            connection.cursor().executemany(insert, wrapped)
        # Prepared after some times, in binary, and in a pipeline over several servers.
        for _ in range(8):
            for number in (3, 4, 5):
                found = connection.execute("SELECT * FROM p3 WHERE id = %s", (uuid.UUID(int=number),), prepare=True).fetchone()
                assert found == values(number), found
        with connection.pipeline():
            cursors = [connection.execute("SELECT n FROM p3 WHERE id = %s", (uuid.UUID(int=number),)) for number in range(10)]
        assert [cursor.fetchone()[0] for cursor in cursors] == list(range(10))
        found = connection.cursor(binary=True).execute("SELECT sum(exact), max(at), count(*) FROM p3").fetchone()
        assert found == (decimal.Decimal("23.75"), NOW, 20), found
        try:
            with connection.transaction():
                connection.execute("UPDATE p3 SET n = n + 100")
                with connection.transaction():
                    connection.execute("DELETE FROM p3")
                    raise psycopg.Rollback
        except psycopg.Rollback:
            pass
        assert connection.execute("SELECT min(n), count(*) FROM p3").fetchone() == (100, 20)
        with connection.cursor().copy("COPY p3 (id, n) FROM STDIN") as copy:
            for number in range(1000, 1050):
                copy.write_row((uuid.UUID(int=number), number))
        with connection.cursor().copy("COPY (SELECT id, n FROM p3 WHERE n >= 1000) TO STDOUT (FORMAT binary)") as copy:
            copy.set_types(["uuid", "int4"])
            assert sorted(n for _, n in copy.rows()) == list(range(1000, 1050))
        try:
            connection.execute("INSERT INTO p3 (id) VALUES (%s)", (uuid.UUID(int=1),))
            raise AssertionError("it is there already")
        except psycopg.errors.UniqueViolation as error:
            assert error.diag.constraint_name == "p3_pkey", error.diag.constraint_name


async def with_asyncpg():
    connection = await asyncpg.connect(host="127.0.0.1", port=PORT, user="pleat", database="pleat")
    await connection.execute(f"CREATE TABLE ap ({COLUMNS}) SHARD BY (id)")
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    await connection.executemany("INSERT INTO ap VALUES ($1, $2, $3, $4, $5, $6, $7)", [values(number) for number in range(20)])
    statement = await connection.prepare("SELECT * FROM ap WHERE id = $1")
    for number in range(20):
        assert tuple(await statement.fetchrow(uuid.UUID(int=number))) == values(number)
    found = await connection.fetchrow("SELECT sum(exact) AS exact, array_agg(n ORDER BY n) AS n FROM ap WHERE n < $1", 3)
    assert (found["exact"], found["n"]) == (decimal.Decimal("0.37500"), [0, 1, 2]), found
    transaction = connection.transaction()
    await transaction.start()
    assert await connection.execute("DELETE FROM ap") == "DELETE 20"
    await transaction.rollback()
    rows = [(uuid.UUID(int=number), number) for number in range(1000, 1100)]
    assert await connection.copy_records_to_table("ap", records=rows, columns=["id", "n"]) == "COPY 100"
    assert await connection.fetchval("SELECT count(*) FROM ap") == 120
    heard = asyncio.get_running_loop().create_future()
    await connection.add_listener("news", lambda *told: heard.done() or heard.set_result(told[3]))
    other = await asyncpg.connect(host="127.0.0.1", port=PORT, user="pleat", database="pleat")
    await other.execute("NOTIFY news, 'here'")
    assert await asyncio.wait_for(heard, 60) == "here"
    await told_with_the_commit(connection, other)
    try:
        await asyncio.wait_for(connection.fetchval("SELECT pg_sleep(600)"), 1)
        raise AssertionError("it did not end")
    except (asyncio.TimeoutError, TimeoutError):
        pass
    assert await connection.fetchval("SELECT 1") == 1
    await other.close()
    await connection.close()


async def told_with_the_commit(connection, other):
    heard = asyncio.Queue()
    await connection.add_listener("orders", lambda *told: heard.put_nowait(told[3]))
    await other.execute("CREATE TABLE an (id uuid PRIMARY KEY REFERENCES ap (id) DEFERRABLE INITIALLY DEFERRED) SHARD BY (id)")
    for number in range(2000, 2010):
        # On whichever server the row is: who hears of it finds it.
        async with other.transaction():
            await other.execute("INSERT INTO ap (id) VALUES ($1)", uuid.UUID(int=number))
            await other.execute("SELECT pg_notify('orders', $1)", str(number))
        assert await asyncio.wait_for(heard.get(), 60) == str(number)
        assert await connection.fetchval("SELECT count(*) FROM ap WHERE id = $1", uuid.UUID(int=number)) == 1
        try:
            async with other.transaction():
                await other.execute("INSERT INTO an VALUES ($1)", uuid.UUID(int=number + 1000))
                await other.execute("NOTIFY orders, 'a commit that fails'")
            raise AssertionError("it was committed")
        except asyncpg.ForeignKeyViolationError:
            pass
        try:
            await other.execute("SELECT pg_notify('orders', id::text) FROM ap WHERE id = $1", uuid.UUID(int=number))
            raise AssertionError("it notified where the row is")
        except asyncpg.FeatureNotSupportedError:
            pass
    try:
        async with other.transaction():
            await other.execute("UPDATE ap SET n = -1")
            await other.execute("NOTIFY orders, 'what cannot be prepared'")
        raise AssertionError("it was committed")
    except asyncpg.FeatureNotSupportedError as error:
        assert "NOTIFY after COMMIT" in error.hint, error.hint
    assert await connection.fetchval("SELECT count(*) FROM ap WHERE n = -1") == 0
    await other.execute("NOTIFY orders, 'the last'")
    assert await asyncio.wait_for(heard.get(), 60) == "the last"


def with_sqlalchemy():
    base = declarative_base()

    class Author(base):
        __tablename__ = "authors"
        id = sa.Column(sa.BigInteger, primary_key=True, autoincrement=False)
        name = sa.Column(sa.Text, nullable=False)

    class Book(base):
        __tablename__ = "books"
        author_id = sa.Column(sa.BigInteger, sa.ForeignKey("authors.id"), primary_key=True)
        number = sa.Column(sa.Integer, primary_key=True)
        title = sa.Column(sa.Text)

    engine = sa.create_engine(f"postgresql+psycopg2://pleat@127.0.0.1:{PORT}/pleat")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("CREATE TABLE authors (id bigint PRIMARY KEY, name text NOT NULL) SHARD BY (id)"))
        connection.execute(
            sa.text(
                "CREATE TABLE books (author_id bigint REFERENCES authors (id), number int, title text, PRIMARY KEY (author_id, number)) "
                "SHARD BY (author_id)"
            )
        )
    with Session(engine) as session:
        session.add_all(Author(id=number, name=f"author {number}") for number in range(12))
        session.flush()
        session.add_all(Book(author_id=number, number=part, title=f"{number}/{part}") for number in range(12) for part in range(3))
        session.commit()
        joined = session.query(Author.name, sa.func.count()).join(Book, Book.author_id == Author.id).group_by(Author.name)
        assert joined.order_by(Author.name).first() == ("author 0", 3)
        author = session.get(Author, 5)
        author.name = "renamed"
        session.rollback()
        assert session.get(Author, 5).name == "author 5"
        session.query(Book).filter(Book.number > 0).delete()
        session.commit()
        assert session.query(Book).count() == 12
    tables = sa.inspect(engine)
    assert tables.get_pk_constraint("books")["constrained_columns"] == ["author_id", "number"]
    assert tables.get_foreign_keys("books")[0]["referred_table"] == "authors"


def with_psycopg2():
    connection = psycopg2.connect(**WHERE)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM authors WHERE id IN %s", ((1, 2, 99),))
        assert cursor.fetchone() == (2,)
        cursor.execute("UPDATE authors SET name = name || %s RETURNING id", ("!",))
        assert sorted(cursor.fetchall()) == [(number,) for number in range(12)]
    connection.close()


def with_views():
    def refused(statement, code, *words):
        try:
            connection.execute(statement)
        except psycopg.Error as error:
            assert error.sqlstate == code and all(word in str(error) for word in words), error
        else:
            raise AssertionError(f"{statement} was not refused")

    with psycopg.connect(**WHERE, autocommit=True) as connection:
        for statement in (
            "CREATE TABLE people (id int PRIMARY KEY, name text, age int) SHARD BY (id)",
            "CREATE TABLE calls (person int, n int, minutes int, PRIMARY KEY (person, n)) SHARD BY (person)",
            "CREATE TABLE rates (kind text PRIMARY KEY, cents int) REFERENCE",
            "CREATE TABLE notes (id int PRIMARY KEY, said text, kind text) SINGLE",
            "CREATE SCHEMA told",
            "CREATE VIEW adults AS SELECT id, name, age AS years FROM people WHERE age >= 18",
            "CREATE VIEW told.talk (who, sum) AS SELECT a.id, sum(c.minutes) FROM adults a JOIN calls c ON c.person = a.id GROUP BY a.id",
            "CREATE VIEW loud AS SELECT id, said FROM notes WHERE said LIKE '%!'",
            "CREATE VIEW priced AS SELECT n.id, r.cents FROM notes n JOIN rates r ON r.kind = n.kind",
        ):
            connection.execute(statement)
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO people VALUES (%s, %s, %s)", [(n, f"p{n}", n * 2) for n in range(30)])
            cursor.executemany("INSERT INTO calls VALUES (%s, %s, %s)", [(n % 30, n, n) for n in range(90)])
            cursor.execute("INSERT INTO rates VALUES ('day', 7)")
            cursor.execute("INSERT INTO notes VALUES (1, 'yes!', 'day'), (2, 'no', 'day')")

        def one(statement, *values, **how):
            return connection.execute(statement, values, **how).fetchone()

        assert one("SELECT count(*), min(id) FROM adults") == (21, 9)
        for number in (9, 10, 29):
            for _ in range(7):
                assert one("SELECT name, years FROM adults WHERE id = %s", number, prepare=True) == (f"p{number}", number * 2)
        assert one("SELECT name FROM adults WHERE id = %s", 8) is None
        assert one("SELECT sum FROM told.talk WHERE who = %s", 12) == (12 + 42 + 72,)
        talk = connection.execute("SELECT * FROM told.talk ORDER BY sum DESC LIMIT 2").fetchall()
        assert talk == [(29, 29 + 59 + 89), (28, 28 + 58 + 88)], talk
        assert one("SELECT sum(sum), count(*) FROM told.talk")[1] == 21
        assert one("SELECT p.id, a FROM people p JOIN adults a ON a.id = p.id WHERE p.id = 11")[0] == 11
        assert one("SELECT * FROM priced WHERE id = 2") == (2, 7)
        with connection.cursor().copy("COPY (SELECT id FROM adults) TO STDOUT") as copy:
            assert sorted(int(row[0]) for row in copy.rows()) == list(range(9, 30))
        with connection.transaction():
            with connection.cursor("far") as cursor:
                cursor.execute("SELECT id FROM adults ORDER BY id")
                assert cursor.fetchmany(2) == [(9,), (10,)]

        # Through a view of one shard; but not of several, and not of copies.
        connection.execute("INSERT INTO loud VALUES (3, 'ha!')")
        connection.execute("UPDATE loud SET said = 'hm' WHERE id = 1")
        assert connection.execute("SELECT id FROM loud").fetchall() == [(3,)]
        refused("UPDATE adults SET name = 'x'", "0A000", "adults", "write to its table")
        refused("CREATE VIEW cheap AS SELECT * FROM rates; DELETE FROM cheap", "0A000", "cheap")

        # Views follow what they stand on.
        connection.execute("ALTER TABLE people RENAME COLUMN name TO called")
        connection.execute("ALTER TABLE people RENAME TO persons")
        assert one("SELECT name FROM adults WHERE id = 9") == ("p9",)
        connection.execute("CREATE OR REPLACE VIEW adults AS SELECT id, upper(called) AS name, age AS years FROM persons WHERE age > 20")
        assert one("SELECT min(id), min(name) FROM adults") == (11, "P11")
        assert one("SELECT min(who) FROM told.talk") == (11,)
        refused("ALTER TABLE persons DROP COLUMN called", "2BP01")
        refused("CREATE MATERIALIZED VIEW m AS SELECT * FROM adults", "0A000", "materialized")
        refused("CREATE TEMP VIEW m AS SELECT * FROM adults", "0A000", "temporary")
        refused("CREATE VIEW m AS SELECT ctid FROM persons", "0A000", "ctid")
        refused("COPY adults TO STDOUT", "42809", "adults")
        connection.execute("DROP VIEW adults CASCADE")
        refused("SELECT * FROM told.talk", "42P01")
        connection.execute("CREATE TABLE adults (id int PRIMARY KEY) SHARD BY (id)")
        connection.execute("INSERT INTO adults VALUES (1)")
        assert one("SELECT * FROM adults") == (1,)


with_psycopg()
asyncio.run(with_asyncpg())
with_sqlalchemy()
with_psycopg2()
with_views()
