"""psycopg 3: the right password, and wrong ones."""
import os

import psycopg

secure = {"sslmode": "verify-full", "channel_binding": "require"} if os.environ.get("SECURE") else {}
at = {"host": os.environ.get("PGHOST", "127.0.0.1"), "port": os.environ["PGPORT"], "dbname": "pleat", **secure}


def one(user, password):
    with psycopg.connect(user=user, password=password, **at) as conn:
        assert str(conn.execute("SELECT 1").fetchone()[0]) == "1"


one(os.environ["PGUSER"], os.environ["RIGHT"])
for user, password in [(os.environ["PGUSER"], "wrong"), ("nobody", os.environ["RIGHT"]), (os.environ["PGUSER"], "")]:
    try:
        one(user, password)
        raise SystemExit(f"{user!r} came in with {password!r}")
    except psycopg.OperationalError as error:
        told = str(error)
        assert "password authentication failed" in told or (not password and "no password" in told), told
one(os.environ["PGUSER"], os.environ["RIGHT"])
