"""asyncpg, whose SCRAM and TLS are its own: the right password, and wrong ones."""
import asyncio
import os
import ssl

import asyncpg

secure = {}
if os.environ.get("SECURE"):
    secure = {"ssl": ssl.create_default_context(cafile=os.environ["PGSSLROOTCERT"])}
at = {"host": os.environ.get("PGHOST", "127.0.0.1"), "port": int(os.environ["PGPORT"]), "database": "pleat", **secure}


async def one(user, password):
    conn = await asyncpg.connect(user=user, password=password, **at)
    assert str(await conn.fetchval("SELECT 1")) == "1"
    await conn.close()


async def main():
    await one(os.environ["PGUSER"], os.environ["RIGHT"])
    for user, password in [(os.environ["PGUSER"], "wrong"), ("nobody", os.environ["RIGHT"])]:
        try:
            await one(user, password)
            raise SystemExit(f"{user!r} came in with {password!r}")
        except asyncpg.InvalidPasswordError:
            pass
    await one(os.environ["PGUSER"], os.environ["RIGHT"])


asyncio.run(main())
