//! A small application with sqlx, on shards that are PostgreSQL servers: an order book.

use futures::TryStreamExt;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolCopyExt, PgPoolOptions, PgRow};
use sqlx::types::chrono::{DateTime, Utc};
use sqlx::types::{Decimal, Json, Uuid};
use sqlx::{Acquire, Connection, Error, FromRow, Postgres, QueryBuilder, Row};

use crate::harness::PATIENCE;

const COLUMNS: &str = "customer uuid, id int, product int REFERENCES rs_products (id), placed timestamptz NOT NULL, total numeric(20, 5), \
    tags text[], parts int8[], doc jsonb, raw bytea, open bool DEFAULT true, PRIMARY KEY (customer, id)";
const CUSTOMERS: u128 = 12;
const INSERT: &str = "INSERT INTO rs_orders VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";

#[derive(Debug, PartialEq)]
struct Order {
    customer: Uuid,
    id: i32,
    product: Option<i32>,
    placed: DateTime<Utc>,
    total: Decimal,
    tags: Vec<Option<String>>,
    parts: Vec<i64>,
    doc: Json<Vec<Option<u64>>>,
    raw: Vec<u8>,
    open: bool,
}

impl FromRow<'_, PgRow> for Order {
    fn from_row(row: &PgRow) -> Result<Order, Error> {
        Ok(Order {
            customer: row.try_get("customer")?,
            id: row.try_get("id")?,
            product: row.try_get("product")?,
            placed: row.try_get("placed")?,
            total: row.try_get("total")?,
            tags: row.try_get("tags")?,
            parts: row.try_get("parts")?,
            doc: row.try_get("doc")?,
            raw: row.try_get("raw")?,
            open: row.try_get("open")?,
        })
    }
}

impl Order {
    fn of(customer: u128, id: i32) -> Order {
        let number = u64::try_from(customer).unwrap();
        Order {
            customer: Uuid::from_u128(customer),
            id,
            product: Some(id % 3),
            placed: DateTime::from_timestamp_micros(1_709_209_801_000_005).unwrap(),
            total: Decimal::new(i64::try_from(number * 100_000 + 12_500).unwrap(), 5),
            tags: vec![Some("a".to_owned()), Some("b'c\\".to_owned()), None],
            parts: vec![i64::MAX, -1],
            doc: Json(vec![Some(number), None]),
            raw: vec![0, 255, u8::try_from(number).unwrap()],
            open: true,
        }
    }
}

/// The SQLSTATE of what must not come about.
fn state<T: std::fmt::Debug>(done: Result<T, Error>) -> String {
    let error = done.unwrap_err();
    let error = error.as_database_error().unwrap_or_else(|| panic!("{error}"));
    error.code().unwrap().into_owned()
}

async fn count(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM rs_orders").fetch_one(pool).await.unwrap()
}

/// Go through the application, at this port.
pub async fn drive(port: u16) {
    let options =
        PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(port).username("pleat").database("pleat");
    let options = options.application_name("it's sqlx");
    let pool = PgPoolOptions::new().max_connections(4).acquire_timeout(PATIENCE).connect_with(options).await.unwrap();
    let name: String = sqlx::query_scalar("SHOW application_name").fetch_one(&pool).await.unwrap();
    assert_eq!(name, "it's sqlx");
    for make in [
        "CREATE TABLE rs_products (id int PRIMARY KEY, name text) REFERENCE",
        &format!("CREATE TABLE rs_orders ({COLUMNS}) SHARD BY (customer)"),
        "INSERT INTO rs_products VALUES (0, 'product 0'), (1, 'product 1'), (2, 'product 2')",
    ] {
        sqlx::raw_sql(make).execute(&pool).await.unwrap();
    }
    prepared(&pool).await;
    asked(&pool).await;
    transactions(&pool).await;
    copied(&pool).await;
    errors(&pool).await;

    let mut listener = PgListener::connect_with(&pool).await.unwrap();
    listener.listen("rs_news").await.unwrap();
    sqlx::query("SELECT pg_notify('rs_news', $1)").bind("here").execute(&pool).await.unwrap();
    let heard = tokio::time::timeout(PATIENCE, listener.recv()).await.unwrap().unwrap();
    assert_eq!((heard.channel(), heard.payload()), ("rs_news", "here"));
    drop(listener);
    pool.close().await;
}

async fn prepared(pool: &PgPool) {
    for customer in 0..CUSTOMERS {
        for id in 0..3 {
            let order = Order::of(customer, id);
            let insert = sqlx::query(INSERT)
                .bind(order.customer)
                .bind(id)
                .bind(order.product)
                .bind(order.placed)
                .bind(order.total);
            let insert = insert.bind(order.tags).bind(order.parts).bind(order.doc).bind(order.raw);
            assert_eq!(insert.execute(pool).await.unwrap().rows_affected(), 1);
        }
    }
    // The same statement, prepared once on each connection, and carried to each server.
    for customer in 0..CUSTOMERS {
        let find = sqlx::query_as("SELECT * FROM rs_orders WHERE customer = $1 AND id = $2");
        let found: Order = find.bind(Uuid::from_u128(customer)).bind(2).fetch_one(pool).await.unwrap();
        assert_eq!(found, Order::of(customer, 2));
    }
    let none: Option<PgRow> = sqlx::query("SELECT 1 FROM rs_orders WHERE customer = $1")
        .bind(Uuid::max())
        .fetch_optional(pool)
        .await
        .unwrap();
    assert!(none.is_none());
}

async fn asked(pool: &PgPool) {
    let sums: (i64, Decimal, DateTime<Utc>, Vec<i32>) =
        sqlx::query_as("SELECT count(*), sum(total), max(placed), array_agg(DISTINCT id ORDER BY id) FROM rs_orders")
            .fetch_one(pool)
            .await
            .unwrap();
    assert_eq!(sums, (36, Decimal::new(20_250_000, 5), Order::of(0, 0).placed, vec![0, 1, 2]));
    let joined = "SELECT p.name, count(*) FROM rs_orders o JOIN rs_products p ON p.id = o.product WHERE o.id >= $1 GROUP BY p.name ORDER BY p.name LIMIT $2";
    let joined: Vec<(String, i64)> = sqlx::query_as(joined).bind(1).bind(5_i64).fetch_all(pool).await.unwrap();
    assert_eq!(joined, [("product 1".to_owned(), 12), ("product 2".to_owned(), 12)]);
    // One after the other, as they come.
    let mut seen = Vec::new();
    let mut rows = sqlx::query("SELECT customer, id FROM rs_orders WHERE id <> $1").bind(0).fetch(pool);
    while let Some(row) = rows.try_next().await.unwrap() {
        seen.push((row.get::<Uuid, _>(0), row.get::<i32, _>("id")));
    }
    drop(rows);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 24);
    // And left in the middle: the connection is used again.
    for _ in 0..8 {
        assert!(sqlx::query("SELECT * FROM rs_orders").fetch(pool).try_next().await.unwrap().is_some());
    }
    let several =
        sqlx::raw_sql("UPDATE rs_orders SET open = false WHERE id = 0; UPDATE rs_products SET name = name; SELECT 1");
    assert_eq!(several.execute(pool).await.unwrap().rows_affected(), 12 + 3 + 1);
    let returned: Vec<Uuid> = sqlx::query_scalar("UPDATE rs_orders SET open = $1 WHERE id = 0 RETURNING customer")
        .bind(true)
        .fetch_all(pool)
        .await
        .unwrap();
    assert_eq!(returned.len(), 12);
}

async fn transactions(pool: &PgPool) {
    let mut transaction = pool.begin().await.unwrap();
    assert_eq!(
        sqlx::query("DELETE FROM rs_orders WHERE id = 2").execute(&mut *transaction).await.unwrap().rows_affected(),
        12
    );
    assert_eq!(count(pool).await, 36);
    transaction.rollback().await.unwrap();
    // One that is dropped is rolled back, too.
    let mut left = pool.begin().await.unwrap();
    sqlx::query("DELETE FROM rs_orders").execute(&mut *left).await.unwrap();
    drop(left);
    assert_eq!(count(pool).await, 36);

    let mut transaction = pool.begin().await.unwrap();
    let mut insert = QueryBuilder::<Postgres>::new("INSERT INTO rs_orders (customer, id, placed) ");
    insert.push_values(20_u128..30, |mut row, customer| {
        row.push_bind(Uuid::from_u128(customer)).push_bind(9).push("now()");
    });
    assert_eq!(insert.build().execute(&mut *transaction).await.unwrap().rows_affected(), 10);
    let mut savepoint = transaction.begin().await.unwrap();
    let twice =
        sqlx::query("INSERT INTO rs_orders (customer, id, placed) VALUES ($1, 9, now())").bind(Uuid::from_u128(20));
    assert_eq!(state(twice.execute(&mut *savepoint).await), "23505");
    assert_eq!(state(sqlx::query("SELECT 1").execute(&mut *savepoint).await), "25P02");
    savepoint.rollback().await.unwrap();
    sqlx::query("UPDATE rs_products SET name = name || $1 WHERE id = 0")
        .bind("!")
        .execute(&mut *transaction)
        .await
        .unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(count(pool).await, 46);
    let name: String = sqlx::query_scalar("SELECT name FROM rs_products WHERE id = 0").fetch_one(pool).await.unwrap();
    assert_eq!(name, "product 0!");
}

async fn copied(pool: &PgPool) {
    let mut copy =
        pool.copy_in_raw("COPY rs_orders (customer, id, placed, tags) FROM STDIN (FORMAT csv)").await.unwrap();
    for number in 1_000..1_500 {
        let line = format!("{},1,2024-01-01 00:00:00+00,\"{{\"\"a,b\"\",c}}\"\n", Uuid::from_u128(number));
        copy.send(line.into_bytes()).await.unwrap();
    }
    assert_eq!(copy.finish().await.unwrap(), 500);
    let from = Uuid::from_u128(1_000);
    let out = format!("COPY (SELECT customer, tags FROM rs_orders WHERE customer >= '{from}') TO STDOUT (FORMAT csv)");
    let pieces: Vec<_> = pool.copy_out_raw(&out).await.unwrap().try_collect().await.unwrap();
    let text = String::from_utf8(pieces.concat()).unwrap();
    assert_eq!((text.lines().count(), text.contains(&format!("{from},\"{{\"\"a,b\"\",c}}\""))), (500, true));
    // Given up in the middle, and with a row that can't be.
    let mut copy = pool.copy_in_raw("COPY rs_orders (customer, id, placed) FROM STDIN").await.unwrap();
    copy.send(format!("{}\t1\t2024-01-01\n", Uuid::from_u128(9_000)).into_bytes()).await.unwrap();
    copy.abort("no more").await.unwrap();
    let mut copy = pool.copy_in_raw("COPY rs_orders (customer, id, placed) FROM STDIN").await.unwrap();
    copy.send(&b"x\t1\t2024-01-01\n"[..]).await.unwrap();
    assert_eq!(state(copy.finish().await), "22P02");
    let gone = sqlx::query("DELETE FROM rs_orders WHERE customer >= $1").bind(from).execute(pool).await.unwrap();
    assert_eq!(gone.rows_affected(), 500);
}

async fn errors(pool: &PgPool) {
    let one = Uuid::from_u128(1);
    let mut connection = pool.acquire().await.unwrap();
    for (text, code) in [
        ("SELECT * FROM nowhere", "42P01"),
        ("SELEC 1", "42601"),
        ("SELECT nothing FROM rs_orders WHERE customer = $1", "42703"),
        ("INSERT INTO rs_orders (customer, id) VALUES ($1, 1)", "23502"),
        ("INSERT INTO rs_orders (customer, id, product, placed) VALUES ($1, 50, 77, now())", "23503"),
        ("SELECT id / 0 FROM rs_orders WHERE customer <> $1", "22012"),
        ("UPDATE rs_orders SET customer = gen_random_uuid() WHERE customer = $1", "0A000"),
    ] {
        // Each leaves its connection as good as before.
        assert_eq!(state(sqlx::query(text).bind(one).execute(&mut *connection).await), code, "{text}");
        connection.ping().await.unwrap();
    }
    let twice = sqlx::query("INSERT INTO rs_orders (customer, id, placed) VALUES ($1, 0, now())").bind(one);
    let error = twice.execute(&mut *connection).await.unwrap_err();
    let error = error.as_database_error().unwrap();
    assert_eq!(
        (error.code().as_deref(), error.table(), error.constraint()),
        (Some("23505"), Some("rs_orders"), Some("rs_orders_pkey"))
    );
    sqlx::query("SET statement_timeout = 200").execute(&mut *connection).await.unwrap();
    assert_eq!(state(sqlx::query("SELECT pg_sleep(60)").execute(&mut *connection).await), "57014");
    let one: i32 = sqlx::query_scalar("SELECT 1").fetch_one(&mut *connection).await.unwrap();
    assert_eq!(one, 1);
}
