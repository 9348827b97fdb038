"""Serial columns on shards that are PostgreSQL servers, as drivers and ORMs make and use them."""

import asyncio
import os
import threading

import asyncpg
import django
import psycopg
import psycopg2
import sqlalchemy as sa
from django.conf import settings
from sqlalchemy.orm import Session, declarative_base

PORT = int(os.environ["PGPORT"])
WHERE = {"host": "127.0.0.1", "port": PORT, "user": "pleat", "dbname": "pleat"}


def with_psycopg():
    with psycopg.connect(**WHERE, autocommit=True) as connection:
        connection.execute("CREATE TABLE posts (id bigserial PRIMARY KEY, title text) SHARD BY (id)")
        first = connection.execute("INSERT INTO posts (title) VALUES (%s) RETURNING id", ("a",)).fetchone()[0]
        assert connection.execute("SELECT currval('posts_id_seq'), lastval()").fetchone() == (first, first)
        seen = {first}
        # Prepared on the server from the sixth on.
        for number in range(20):
            seen.add(connection.execute("INSERT INTO posts (title) VALUES (%s) RETURNING id", (str(number),), prepare=True).fetchone()[0])
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO posts (title) VALUES (%s) RETURNING id", [(str(number),) for number in range(20)], returning=True)
            while True:
                seen.add(cursor.fetchone()[0])
                if not cursor.nextset():
                    break
        assert len(seen) == 41, seen
        rows = connection.execute("INSERT INTO posts (title) VALUES (%s), (%s), (%s) RETURNING id, title", ("x", "y", "z")).fetchall()
        assert [title for _, title in rows] == ["x", "y", "z"] and not seen & {id for id, _ in rows}, rows
        with connection.cursor() as cursor:
            with cursor.copy("COPY posts (title) FROM STDIN") as copy:
                for number in range(100):
                    copy.write_row((f"copied {number}\t\\",))
            with cursor.copy("COPY posts (title) FROM STDIN WITH (FORMAT csv, HEADER)") as copy:
                copy.write('title\n"quoted, ""one"""\nplain')
            with cursor.copy("COPY posts (title) FROM STDIN WITH (FORMAT binary)") as copy:
                copy.set_types(["text"])
                for number in range(100):
                    copy.write_row((f"binary {number}",))
        assert connection.execute("SELECT count(*), count(DISTINCT id) FROM posts").fetchone() == (246, 246)
        # In a pipeline nothing waits for an answer.
        with connection.pipeline(), connection.transaction():
            cursors = [connection.execute("INSERT INTO posts (title) VALUES (%s) RETURNING id", ("p",)) for _ in range(10)]
        assert len({cursor.fetchone()[0] for cursor in cursors}) == 10
        # Rolled back, an id is not given again.
        with connection.transaction(force_rollback=True):
            gone = connection.execute("INSERT INTO posts DEFAULT VALUES RETURNING id").fetchone()[0]
        assert connection.execute("INSERT INTO posts DEFAULT VALUES RETURNING id").fetchone()[0] != gone


async def with_asyncpg():
    connection = await asyncpg.connect(host="127.0.0.1", port=PORT, user="pleat", database="pleat")
    statement = await connection.prepare("INSERT INTO posts (title) VALUES ($1) RETURNING id")
    assert [str(parameter.name) for parameter in statement.get_parameters()] == ["text"]
    assert [attribute.name for attribute in statement.get_attributes()] == ["id"]
    ids = {await statement.fetchval(f"async {number}") for number in range(50)}
    assert len(ids) == 50
    await connection.executemany("INSERT INTO posts (title) VALUES ($1)", [(str(number),) for number in range(50)])
    value = await connection.fetchval("SELECT nextval('posts_id_seq')")
    assert value not in ids
    assert await connection.fetchval("SELECT count(*) FROM posts WHERE id = ANY($1::bigint[])", list(ids)) == 50
    await connection.close()


def with_sqlalchemy():
    base = declarative_base()

    class Author(base):
        __tablename__ = "authors_by_id"
        id = sa.Column(sa.BigInteger, primary_key=True)
        name = sa.Column(sa.Text, nullable=False)
        made = sa.Column(sa.DateTime(timezone=True), server_default=sa.func.now())

    engine = sa.create_engine(f"postgresql+psycopg2://pleat@127.0.0.1:{PORT}/pleat")
    # In a transaction that has looked whether the table is there, it can't be made.
    base.metadata.create_all(engine.execution_options(isolation_level="AUTOCOMMIT"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("ALTER TABLE authors_by_id SHARD BY (id)"))
    with Session(engine) as session:
        authors = [Author(name=f"author {number}") for number in range(30)]
        session.add_all(authors)
        session.flush()
        assert len({author.id for author in authors}) == 30
        session.commit()
        # Each got the id of its own row, whichever server that is on.
        for number, id in enumerate([author.id for author in authors]):
            session.expire_all()
            assert session.get(Author, id).name == f"author {number}"
        assert session.get(Author, id).made is not None
    table = sa.inspect(engine)
    [id] = [column for column in table.get_columns("authors_by_id") if column["name"] == "id"]
    assert "nextval('authors_by_id_id_seq'" in id["default"], id


def with_django():
    settings.configure(
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "HOST": "127.0.0.1",
                "PORT": str(PORT),
                "USER": "pleat",
                "NAME": "pleat",
            }
        },
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        SECRET_KEY="for this test",
        USE_TZ=True,
    )
    django.setup()
    from django.db import connection, models

    class Visit(models.Model):
        visitor = models.IntegerField()

        class Meta:
            app_label = "counted"
            db_table = "counted_visits"

    with connection.schema_editor() as editor:
        editor.create_model(Visit)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE counted_visits SHARD BY (id)")
    visits = [Visit.objects.create(visitor=number) for number in range(20)]
    made = Visit.objects.bulk_create([Visit(visitor=number) for number in range(100)])
    ids = {visit.id for visit in visits} | {visit.pk for visit in made}
    assert len(ids) == 120 and None not in ids
    assert Visit.objects.get(id=visits[3].id).visitor == 3
    assert all(Visit.objects.get(id=visit.pk).visitor == visit.visitor for visit in made)
    Visit.objects.filter(id__in=list(ids)[:60]).delete()
    assert Visit.objects.count() == 60


def at_the_same_time():
    """Sessions of all nodes, each with transactions of several rows, some of which are rolled back."""
    ports = [int(port) for port in os.environ["PGPORTS"].split()]
    found, errors = [], []

    def one(number):
        try:
            connection = psycopg2.connect(**{**WHERE, "port": ports[number % len(ports)]})
            with connection.cursor() as cursor:
                for turn in range(40):
                    cursor.execute("INSERT INTO lines (tenant) VALUES (%s), (%s) RETURNING id", (number, number + 1))
                    ids = [id for id, in cursor.fetchall()]
                    if turn % 5 == 0:
                        connection.rollback()
                    else:
                        connection.commit()
                        found.extend(ids)
            connection.close()
        except Exception as error:  # told to the test
            errors.append(repr(error))

    connection = psycopg2.connect(**WHERE)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE lines (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tenant int) SHARD BY (tenant)")
        threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert not errors, errors
        cursor.execute("SELECT count(*), count(DISTINCT id) FROM lines")
        assert cursor.fetchone() == (len(found), len(set(found))) == (8 * 32 * 2, 8 * 32 * 2)
    connection.close()


with_psycopg()
asyncio.run(with_asyncpg())
with_sqlalchemy()
with_django()
at_the_same_time()
