-- A shop. Customers, their orders and the lines of these lie together, by the customer; reviews lie by the product; products
-- and countries are everywhere; settings are on one shard.
CREATE TABLE customers (customer INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE, country TEXT, joined TEXT, credit REAL) SHARD BY (customer);
CREATE TABLE orders (customer INTEGER, nr INTEGER, placed TEXT, status TEXT, total REAL, PRIMARY KEY (customer, nr)) SHARD BY (customer);
CREATE TABLE lines (customer INTEGER, nr INTEGER, line INTEGER, product INTEGER, amount INTEGER, price REAL, PRIMARY KEY (customer, nr, line)) SHARD BY (customer);
CREATE TABLE reviews (product INTEGER, customer INTEGER, stars INTEGER, text TEXT, PRIMARY KEY (product, customer)) SHARD BY (product);
CREATE TABLE products (product INTEGER PRIMARY KEY, title TEXT, price REAL) REFERENCE;
CREATE TABLE countries (code TEXT PRIMARY KEY, name TEXT) REFERENCE;
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT) SINGLE;
-- Views.
CREATE VIEW open_orders AS SELECT customer, nr, placed, total, status FROM orders WHERE status IN ('open', 'paid');
CREATE VIEW worth(buyer, worth) AS SELECT customer, sum(amount * price) FROM lines GROUP BY customer;
CREATE VIEW good_customers AS SELECT buyer, worth FROM worth WHERE worth > 20;
