// A small application with node's `pg`, on shards that are PostgreSQL servers: an order book.
"use strict";

const assert = require("node:assert");
const { Client, Pool, types } = require("pg");
const Cursor = require("pg-cursor");
const QueryStream = require("pg-query-stream");

const where = { host: "127.0.0.1", port: Number(process.env.PGPORT), user: "pleat", database: "pleat", application_name: "it's node" };
const uuid = (number) => "00000000-0000-0000-0000-" + String(number).padStart(12, "0");
const placed = new Date("2024-02-29T12:30:01.005Z");
const COLUMNS =
  "customer uuid, id int, product int REFERENCES js_products (id), placed timestamptz NOT NULL, total numeric(20, 5), " +
  "tags text[], parts int8[], doc jsonb, raw bytea, open bool DEFAULT true, PRIMARY KEY (customer, id)";

// What a driver sends for an order, and what it is to read again: numbers without a loss are texts.
function order(customer, id) {
  return [uuid(customer), id, id % 3, placed, `${customer}.12500`, ["a", "b'c\\", null], ["9007199254740993", "-1"], { k: [customer, null] }, Buffer.from([0, 255, customer])];
}

async function fails(code, doing) {
  await assert.rejects(doing, (error) => {
    assert.strictEqual(error.code, code, `${error.code}: ${error.message}`);
    return true;
  });
}

async function prepared(client) {
  const insert = { name: "insert", text: "INSERT INTO js_orders VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)" };
  for (let customer = 0; customer < 12; customer++) {
    for (let id = 0; id < 3; id++) {
      const done = await client.query({ ...insert, values: order(customer, id) });
      assert.deepStrictEqual([done.command, done.rowCount], ["INSERT", 1]);
    }
  }
  // Prepared once, and carried to each server.
  const find = { name: "find", text: "SELECT * FROM js_orders WHERE customer = $1 AND id = $2", rowMode: "array" };
  for (let customer = 0; customer < 12; customer++) {
    const found = await client.query({ ...find, values: [uuid(customer), 2] });
    assert.deepStrictEqual(found.rows, [[...order(customer, 2), true]]);
  }
  assert.deepStrictEqual((await client.query({ ...find, values: [uuid(99), 0] })).rows, []);
}

async function asked(client) {
  const sums = await client.query("SELECT count(*), sum(total), max(placed), array_agg(DISTINCT id ORDER BY id) AS ids FROM js_orders");
  assert.deepStrictEqual(sums.rows, [{ count: "36", sum: "202.50000", max: placed, ids: [0, 1, 2] }]);
  const joined = await client.query(
    "SELECT p.name, count(*)::int AS orders FROM js_orders o JOIN js_products p ON p.id = o.product WHERE o.doc -> 'k' IS NOT NULL GROUP BY p.name ORDER BY p.name DESC LIMIT 2",
  );
  assert.deepStrictEqual(joined.rows, [{ name: "product 2", orders: 12 }, { name: "product 1", orders: 12 }]);
  const several = await client.query("SELECT 1 AS a; UPDATE js_orders SET open = false WHERE id = 0; SELECT count(*)::int AS shut FROM js_orders WHERE NOT open");
  assert.deepStrictEqual(several.map((result) => [result.command, result.rowCount]), [["SELECT", 1], ["UPDATE", 12], ["SELECT", 1]]);
  assert.strictEqual(several[2].rows[0].shut, 12);
  const returned = await client.query("UPDATE js_orders SET total = total + $1 WHERE id = $2 RETURNING customer", ["0.00001", 1]);
  assert.strictEqual(returned.rows.length, 12);
  // What is not awaited is sent one after the other.
  const queued = await Promise.all(Array.from({ length: 12 }, (_, customer) => client.query("SELECT count(*)::int AS n FROM js_orders WHERE customer = $1", [uuid(customer)])));
  assert.deepStrictEqual(queued.map((result) => result.rows[0].n), Array(12).fill(3));
}

async function portals(client) {
  await client.query("BEGIN");
  const cursor = client.query(new Cursor("SELECT id FROM js_orders WHERE customer = $1 ORDER BY id", [uuid(1)]));
  assert.deepStrictEqual((await cursor.read(2)).map((row) => row.id), [0, 1]);
  assert.deepStrictEqual((await cursor.read(2)).map((row) => row.id), [2]);
  await cursor.close();
  // Over several servers, in parts.
  const seen = [];
  for await (const row of client.query(new QueryStream("SELECT customer, id FROM js_orders WHERE id >= $1", [1], { batchSize: 5 }))) seen.push(row);
  assert.strictEqual(new Set(seen.map((row) => row.customer + row.id)).size, 24);
  await client.query("COMMIT");
  // A portal that is left open in the middle, and no transaction.
  const left = client.query(new Cursor("SELECT customer FROM js_orders WHERE customer = $1", [uuid(2)]));
  assert.strictEqual((await left.read(1)).length, 1);
  await left.close();
  assert.strictEqual((await client.query("SELECT 1 AS one")).rows[0].one, 1);
}

async function transactions(client, other) {
  const count = async (through) => (await through.query("SELECT count(*)::int AS n FROM js_orders")).rows[0].n;
  await client.query("BEGIN");
  await client.query("DELETE FROM js_orders WHERE id = 2");
  assert.deepStrictEqual([await count(client), await count(other)], [24, 36]);
  await client.query("ROLLBACK");
  assert.strictEqual(await count(client), 36);
  await client.query("BEGIN ISOLATION LEVEL REPEATABLE READ");
  await client.query("INSERT INTO js_orders (customer, id, placed) VALUES ($1, 9, now()), ($2, 9, now())", [uuid(20), uuid(21)]);
  await client.query("SAVEPOINT s");
  await fails("23505", () => client.query("INSERT INTO js_orders (customer, id, placed) VALUES ($1, 9, now())", [uuid(20)]));
  await fails("25P02", () => client.query("SELECT 1"));
  await client.query("ROLLBACK TO SAVEPOINT s");
  await client.query("UPDATE js_products SET name = name || '!' WHERE id = 0");
  await client.query("COMMIT");
  assert.strictEqual(await count(other), 38);
  assert.strictEqual((await other.query("SELECT name FROM js_products WHERE id = 0")).rows[0].name, "product 0!");
}

async function errors(client) {
  await fails("42P01", () => client.query("SELECT * FROM nowhere"));
  await fails("42601", () => client.query("SELEC 1"));
  await fails("22P02", () => client.query("SELECT * FROM js_orders WHERE customer = $1", ["no uuid"]));
  await fails("23502", () => client.query("INSERT INTO js_orders (customer, id) VALUES ($1, 1)", [uuid(50)]));
  await fails("23503", () => client.query("INSERT INTO js_orders (customer, id, product, placed) VALUES ($1, 1, 77, now())", [uuid(50)]));
  await fails("22012", () => client.query("SELECT id / $1::int FROM js_orders", [0]));
  await fails("0A000", () => client.query("UPDATE js_orders SET customer = $1 WHERE id = 0", [uuid(60)]));
  try {
    await client.query("INSERT INTO js_orders (customer, id, placed) VALUES ($1, 0, now())", [uuid(1)]);
    assert.fail("it is there already");
  } catch (error) {
    assert.deepStrictEqual([error.code, error.table, error.constraint, error.severity], ["23505", "js_orders", "js_orders_pkey", "ERROR"]);
  }
  // A prepared statement whose text is wrong can be prepared again.
  await fails("42703", () => client.query({ name: "wrong", text: "SELECT nothing FROM js_orders" }));
  assert.strictEqual((await client.query({ name: "right", text: "SELECT 2 AS two" })).rows[0].two, 2);
}

async function main() {
  types.setTypeParser(types.builtins.NUMERIC, (text) => text);
  const client = new Client(where);
  await client.connect();
  await client.query("CREATE TABLE js_products (id int PRIMARY KEY, name text) REFERENCE");
  await client.query(`CREATE TABLE js_orders (${COLUMNS}) SHARD BY (customer)`);
  for (let id = 0; id < 3; id++) await client.query("INSERT INTO js_products VALUES ($1, $2)", [id, `product ${id}`]);
  assert.strictEqual((await client.query("SHOW application_name")).rows[0].application_name, "it's node");

  const pool = new Pool({ ...where, max: 4 });
  await prepared(client);
  await asked(client);
  await portals(client);
  await transactions(client, pool);
  await errors(client);

  const heard = new Promise((resolve) => client.on("notification", (told) => resolve(told.payload)));
  await client.query("LISTEN js_news");
  await pool.query("SELECT pg_notify('js_news', $1)", ["here"]);
  assert.strictEqual(await heard, "here");
  await Promise.all(Array.from({ length: 40 }, (_, number) => pool.query("UPDATE js_orders SET doc = $1 WHERE customer = $2", [{ number }, uuid(number % 12)])));
  await fails("57014", () => pool.query("SET statement_timeout = 200; SELECT pg_sleep(60)"));
  await pool.end();
  await client.end();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
