import java.io.ByteArrayOutputStream;
import java.io.StringReader;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.sql.BatchUpdateException;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.sql.Types;
import java.time.OffsetDateTime;
import java.time.ZoneOffset;
import java.util.Arrays;
import java.util.HashSet;
import java.util.Objects;
import java.util.Set;
import java.util.UUID;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyManager;
import org.postgresql.jdbc.PreferQueryMode;
import org.postgresql.util.PGobject;

/** A small application with PostgreSQL's JDBC driver, on shards that are PostgreSQL servers: an order book. */
public class OnServers {
    static final String URL = "jdbc:postgresql://127.0.0.1:" + System.getenv("PGPORT") + "/pleat?user=pleat&ApplicationName=it's+Java";
    static final OffsetDateTime PLACED = OffsetDateTime.of(2024, 2, 29, 12, 30, 1, 5_000, ZoneOffset.UTC);
    static final String COLUMNS = "customer uuid, id int, product int REFERENCES pj_products (id), placed timestamptz NOT NULL, total numeric(20, 5), "
        + "tags text[], parts int8[], doc jsonb, raw bytea, weight float8, open bool DEFAULT true, PRIMARY KEY (customer, id)";

    interface Doing {
        void run() throws Exception;
    }

    static void same(Object wanted, Object found) {
        if (!Objects.deepEquals(wanted, found)) {
            throw new AssertionError("wanted " + wanted + ", found " + found);
        }
    }

    static SQLException fails(String state, Doing doing) throws Exception {
        try {
            doing.run();
        } catch (SQLException error) {
            same(state, error.getSQLState());
            return error;
        }
        throw new AssertionError("it did not fail with " + state);
    }

    static UUID uuid(int number) {
        return new UUID(0, number);
    }

    static long number(Connection connection, String query) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(query)) {
            rows.next();
            return rows.getLong(1);
        }
    }

    static PGobject of(String type, String text) throws SQLException {
        PGobject value = new PGobject();
        value.setType(type);
        value.setValue(text);
        return value;
    }

    static boolean isSimple(Connection connection) throws SQLException {
        return connection.unwrap(PGConnection.class).getPreferQueryMode() == PreferQueryMode.SIMPLE;
    }

    static void fill(PreparedStatement insert, int customer, int id) throws SQLException {
        insert.setObject(1, uuid(customer));
        insert.setInt(2, id);
        insert.setInt(3, id % 3);
        insert.setObject(4, PLACED);
        insert.setBigDecimal(5, new BigDecimal(customer + ".12500"));
        insert.setArray(6, insert.getConnection().createArrayOf("text", new String[] {"a", "b'c\\", null}));
        insert.setArray(7, insert.getConnection().createArrayOf("int8", new Long[] {Long.MAX_VALUE, -1L}));
        insert.setObject(8, of("jsonb", "{\"k\": [" + customer + ", null]}"));
        // In the simple protocol the driver can't write a byte[].
        if (isSimple(insert.getConnection())) {
            insert.setObject(9, of("bytea", String.format("\\x00ff%02x", customer)));
        } else {
            insert.setBytes(9, new byte[] {0, -1, (byte) customer});
        }
        insert.setDouble(10, customer / 8.0);
    }

    static void isOrder(ResultSet row, int customer, int id) throws SQLException {
        same(uuid(customer), row.getObject("customer"));
        same(id, row.getInt("id"));
        same(PLACED.toInstant(), row.getObject("placed", OffsetDateTime.class).toInstant());
        same(new BigDecimal(customer + ".12500"), row.getBigDecimal("total"));
        same(new String[] {"a", "b'c\\", null}, row.getArray("tags").getArray());
        same(new Long[] {Long.MAX_VALUE, -1L}, row.getArray("parts").getArray());
        same("{\"k\": [" + customer + ", null]}", ((PGobject) row.getObject("doc")).getValue());
        same(new byte[] {0, -1, (byte) customer}, row.getBytes("raw"));
        same(customer / 8.0, row.getDouble("weight"));
        same(true, row.getBoolean("open"));
    }

    static void prepared(Connection connection) throws Exception {
        String text = "INSERT INTO pj_orders (customer, id, product, placed, total, tags, parts, doc, raw, weight) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        try (PreparedStatement insert = connection.prepareStatement(text)) {
            for (int customer = 0; customer < 12; customer++) {
                for (int id = 0; id < 3; id++) {
                    fill(insert, customer, id);
                    insert.addBatch();
                }
            }
            int[] counts = insert.executeBatch();
            same(36, counts.length);
            // One statement of many rows, where the driver rewrites them, has no counts.
            for (int count : counts) {
                same(true, count == 1 || count == Statement.SUCCESS_NO_INFO);
            }
        }
        // From the fifth time on it has a name on the server, and values come in binary.
        try (PreparedStatement find = connection.prepareStatement("SELECT * FROM pj_orders WHERE customer = ? AND id = ?")) {
            if (!isSimple(connection)) {
                same(11, find.getMetaData().getColumnCount());
                same(Types.INTEGER, find.getParameterMetaData().getParameterType(2));
            }
            for (int round = 0; round < 36; round++) {
                find.setObject(1, uuid(round % 12));
                find.setInt(2, round / 12);
                try (ResultSet row = find.executeQuery()) {
                    same(true, row.next());
                    isOrder(row, round % 12, round / 12);
                    same(false, row.next());
                }
            }
        }
    }

    static void asked(Connection connection) throws Exception {
        try (Statement statement = connection.createStatement()) {
            ResultSet sums = statement.executeQuery("SELECT count(*), sum(total), max(placed), avg(weight) FROM pj_orders");
            sums.next();
            same(36L, sums.getLong(1));
            same(new BigDecimal("202.50000"), sums.getBigDecimal(2));
            same(0.6875, sums.getDouble(4));
            ResultSet joined = statement.executeQuery("SELECT p.name, count(*) FROM pj_orders o JOIN pj_products p ON p.id = o.product GROUP BY p.name ORDER BY p.name DESC LIMIT 1");
            joined.next();
            same("product 2", joined.getString(1));
            same(12, joined.getInt(2));
            same(12, statement.executeUpdate("UPDATE pj_orders SET open = false WHERE id = 0", Statement.RETURN_GENERATED_KEYS));
            Set<Object> returned = new HashSet<>();
            for (ResultSet keys = statement.getGeneratedKeys(); keys.next();) {
                returned.add(keys.getObject("customer"));
            }
            same(12, returned.size());
            // Several statements in one text.
            same(true, statement.execute("SELECT 1; UPDATE pj_products SET name = name; SELECT 2"));
            same(false, statement.getMoreResults());
            same(3, statement.getUpdateCount());
            same(true, statement.getMoreResults());
        }
        ResultSet keys = connection.getMetaData().getPrimaryKeys(null, null, "pj_orders");
        same(true, keys.next());
        same("customer", keys.getString("COLUMN_NAME"));
        ResultSet tables = connection.getMetaData().getTables(null, "public", "pj_%", new String[] {"TABLE"});
        same(true, tables.next() && tables.next());
        same(false, tables.next());
        // In parts: a portal with a limit of rows, on one server and on several.
        connection.setAutoCommit(false);
        for (String condition : new String[] {"customer = '" + uuid(1) + "'", "id >= 0"}) {
            try (PreparedStatement parts = connection.prepareStatement("SELECT customer, id FROM pj_orders WHERE " + condition)) {
                parts.setFetchSize(2);
                Set<String> seen = new HashSet<>();
                for (ResultSet rows = parts.executeQuery(); rows.next();) {
                    seen.add(rows.getString(1) + rows.getInt(2));
                }
                same(condition.startsWith("id") ? 36 : 3, seen.size());
            }
        }
        connection.commit();
        connection.setAutoCommit(true);
    }

    static void copied(Connection connection) throws Exception {
        CopyManager copy = connection.unwrap(PGConnection.class).getCopyAPI();
        StringBuilder rows = new StringBuilder();
        for (int number = 0; number < 500; number++) {
            rows.append(uuid(1000 + number)).append(",1,\"2024-01-01 00:00:00+00\",\"{\"\"a,b\"\",c}\"\n");
        }
        String form = " (FORMAT csv)";
        same(500L, copy.copyIn("COPY pj_orders (customer, id, placed, tags) FROM STDIN" + form, new StringReader(rows.toString())));
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        same(500L, copy.copyOut("COPY (SELECT customer, tags FROM pj_orders WHERE customer >= '" + uuid(1000) + "') TO STDOUT" + form, out));
        String[] lines = out.toString(StandardCharsets.UTF_8).split("\n");
        Arrays.sort(lines);
        same(uuid(1000) + ",\"{\"\"a,b\"\",c}\"", lines[0]);
        // It is part of its transaction, and all or nothing.
        connection.setAutoCommit(false);
        same(1L, copy.copyIn("COPY pj_orders (customer, id, placed) FROM STDIN", new StringReader(uuid(9000) + "\t1\t2024-01-01\n")));
        connection.rollback();
        connection.setAutoCommit(true);
        fails("23505", () -> copy.copyIn("COPY pj_orders (customer, id, placed) FROM STDIN",
            new StringReader(uuid(9001) + "\t1\t2024-01-01\n" + uuid(1) + "\t1\t2024-01-01\n")));
        fails("22P02", () -> copy.copyIn("COPY pj_orders (customer, id, placed) FROM STDIN", new StringReader("x\t1\t2024-01-01\n")));
        same(0L, number(connection, "SELECT count(*) FROM pj_orders WHERE customer > '" + uuid(8000) + "'"));
        try (Statement statement = connection.createStatement()) {
            same(500, statement.executeUpdate("DELETE FROM pj_orders WHERE customer >= '" + uuid(1000) + "'"));
        }
    }

    static void transactions(Connection connection, Connection other) throws Exception {
        String count = "SELECT count(*) FROM pj_orders";
        connection.setAutoCommit(false);
        connection.setTransactionIsolation(Connection.TRANSACTION_REPEATABLE_READ);
        try (Statement statement = connection.createStatement()) {
            same(12, statement.executeUpdate("DELETE FROM pj_orders WHERE id = 2"));
            same(24L, number(connection, count));
            same(36L, number(other, count));
            connection.rollback();
            same(36L, number(connection, count));
            statement.executeUpdate("INSERT INTO pj_orders (customer, id, placed) VALUES ('" + uuid(20) + "', 9, now()), ('" + uuid(21) + "', 9, now())");
            Savepoint savepoint = connection.setSavepoint("s");
            fails("23505", () -> statement.executeUpdate("INSERT INTO pj_orders (customer, id, placed) VALUES ('" + uuid(20) + "', 9, now())"));
            fails("25P02", () -> statement.executeQuery("SELECT 1"));
            connection.rollback(savepoint);
            statement.executeUpdate("UPDATE pj_products SET name = name || '!' WHERE id = 0");
            connection.commit();
        }
        connection.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
        same(38L, number(other, count));
        connection.setReadOnly(true);
        fails("25006", () -> number(connection, "INSERT INTO pj_products VALUES (99, 'x') RETURNING id"));
        connection.rollback();
        connection.setReadOnly(false);
        connection.setAutoCommit(true);
    }

    static void errors(Connection connection) throws Exception {
        try (Statement statement = connection.createStatement()) {
            fails("42P01", () -> statement.executeQuery("SELECT * FROM nowhere"));
            fails("42601", () -> statement.executeQuery("SELEC 1"));
            fails("23503", () -> statement.executeUpdate("INSERT INTO pj_orders (customer, id, product, placed) VALUES ('" + uuid(50) + "', 1, 77, now())"));
            fails("22012", () -> statement.executeQuery("SELECT id / 0 FROM pj_orders"));
            fails("0A000", () -> statement.executeUpdate("UPDATE pj_orders SET customer = '" + uuid(60) + "' WHERE id = 0"));
            fails("23502", () -> statement.executeUpdate("INSERT INTO pj_orders (customer, id) VALUES ('" + uuid(50) + "', 1)"));
            statement.setQueryTimeout(3);
            fails("57014", () -> statement.executeQuery("SELECT pg_sleep(60)"));
        }
        // A batch over several servers whose third row is there already.
        connection.setAutoCommit(false);
        try (PreparedStatement insert = connection.prepareStatement("INSERT INTO pj_orders (customer, id, placed) VALUES (?, 0, now())")) {
            for (int customer : new int[] {70, 71, 1, 72}) {
                insert.setObject(1, uuid(customer));
                insert.addBatch();
            }
            SQLException failed = fails("23505", insert::executeBatch);
            same(true, failed instanceof BatchUpdateException);
        }
        connection.rollback();
        connection.setAutoCommit(true);
        same(0L, number(connection, "SELECT count(*) FROM pj_orders WHERE customer IN ('" + uuid(70) + "', '" + uuid(71) + "')"));
        same(1L, number(connection, "SELECT 1"));
    }

    static void told(Connection connection, Connection other) throws Exception {
        try (Statement listen = connection.createStatement(); PreparedStatement notify = other.prepareStatement("SELECT pg_notify('pj_news', ?)")) {
            listen.execute("LISTEN pj_news");
            notify.setString(1, "here");
            notify.execute();
            PGNotification[] heard = connection.unwrap(PGConnection.class).getNotifications(60_000);
            same("here", heard[0].getParameter());
        }
    }

    public static void main(String[] arguments) throws Exception {
        // As it is; with the simple protocol alone; with batches as one statement.
        String[] ways = {"", "&preferQueryMode=simple", "&reWriteBatchedInserts=true&prepareThreshold=1"};
        for (String way : ways) {
            try (Connection connection = DriverManager.getConnection(URL + way); Connection other = DriverManager.getConnection(URL + way)) {
                try (Statement statement = connection.createStatement()) {
                    statement.execute("DROP TABLE IF EXISTS pj_orders");
                    statement.execute("DROP TABLE IF EXISTS pj_products");
                    statement.execute("CREATE TABLE pj_products (id int PRIMARY KEY, name text) REFERENCE");
                    statement.execute("CREATE TABLE pj_orders (" + COLUMNS + ") SHARD BY (customer)");
                    same(3, statement.executeUpdate("INSERT INTO pj_products VALUES (0, 'product 0'), (1, 'product 1'), (2, 'product 2')"));
                }
                try {
                    prepared(connection);
                    asked(connection);
                    copied(connection);
                    transactions(connection, other);
                    errors(connection);
                    told(connection, other);
                } catch (Throwable error) {
                    throw new AssertionError("with \"" + way + "\"", error);
                }
            }
        }
    }
}
