"""asyncpg: everything in binary, every statement prepared and described before it runs."""
import asyncio
import datetime
import decimal
import os
import uuid

import asyncpg


async def main():
    pool = await asyncpg.create_pool(
        host="127.0.0.1", port=int(os.environ["PGPORT"]), user="pleat", database="pleat", min_size=1, max_size=4
    )
    async with pool.acquire() as conn:
        await conn.execute("DROP TABLE IF EXISTS ap")
        await conn.execute(
            "CREATE TABLE ap (id INTEGER PRIMARY KEY, name TEXT, active BOOLEAN, day DATE, at TIMESTAMPTZ, raw BYTEA, price NUMERIC, w REAL, u UUID) SHARD BY (id)"
        )
        at = datetime.datetime(2024, 2, 29, 12, 30, 1, 5, tzinfo=datetime.timezone.utc)
        row = (1, "ü", True, at.date(), at, b"\x00\xff", decimal.Decimal("1.25"), 0.5, uuid.uuid4())
        await conn.execute("INSERT INTO ap VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)", *row)
        got = await conn.fetchrow("SELECT * FROM ap WHERE id = $1", 1)
        assert tuple(got) == row, (tuple(got), row)
        assert await conn.fetchval("SELECT count(*) FROM ap WHERE name = $1 AND w < $2", "ü", 1.0) == 1
        await conn.executemany("INSERT INTO ap (id, name) VALUES ($1, $2)", [(n, f"n{n}") for n in range(2, 300)])
        try:
            await conn.executemany("INSERT INTO ap (id) VALUES ($1)", [(1000,), (1,)])
            raise SystemExit("a double key was taken")
        except asyncpg.UniqueViolationError:
            pass
        assert await conn.fetchval("SELECT count(*) FROM ap") == 299
        async with conn.transaction():
            # A cursor reads in parts.
            seen = [record["id"] async for record in conn.cursor("SELECT id FROM ap ORDER BY id", prefetch=50)]
            assert seen == list(range(1, 300))
        try:
            async with conn.transaction():
                await conn.execute("DELETE FROM ap")
                raise ValueError
        except ValueError:
            pass
        assert await conn.fetchval("SELECT count(*) FROM ap") == 299
    await pool.close()


async def cancelled():
    conn = await asyncpg.connect(host="127.0.0.1", port=int(os.environ["PGPORT"]), user="pleat", database="pleat")
    try:
        await conn.fetchval(
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n", timeout=0.5
        )
        raise SystemExit("it never ends")
    except asyncio.TimeoutError:
        pass
    assert await conn.fetchval("SELECT 1") == 1
    await conn.close()


asyncio.run(main())
asyncio.run(cancelled())
