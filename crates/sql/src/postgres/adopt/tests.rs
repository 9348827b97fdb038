//! Small databases, and what is proposed for them.

use super::*;

struct Build(Database);

impl Build {
    fn new() -> Build {
        Build(Database::default())
    }

    /// Columns as `name type`, `!` behind what is not null, `+` behind what a sequence fills.
    fn table(mut self, name: &str, primary_key: &[&str], columns: &str, rows: u64, bytes: u64) -> Build {
        let columns = columns.split(", ").map(|column| {
            let (name, decl_type) = column.split_once(' ').unwrap();
            let not_null = decl_type.ends_with(['!', '+']) || primary_key.contains(&name);
            ColumnFacts {
                name: name.to_owned(),
                decl_type: decl_type.trim_end_matches(['!', '+']).to_owned(),
                not_null,
                serial: decl_type.ends_with('+'),
                ..ColumnFacts::default()
            }
        });
        let text = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let unique =
            Unique { name: format!("{name}_pkey"), columns: text(primary_key).into_iter().map(Some).collect() };
        self.0.tables.push(TableFacts {
            key: name.to_owned(),
            name: name.to_owned(),
            columns: columns.collect(),
            primary_key: text(primary_key),
            uniques: if primary_key.is_empty() { vec![] } else { vec![unique] },
            rows,
            bytes,
            ..TableFacts::default()
        });
        self
    }

    fn unique(mut self, table: &str, columns: &[&str]) -> Build {
        let at = self.0.tables.iter().position(|known| known.key == table).unwrap();
        let columns = columns.iter().map(|name| Some((*name).to_owned())).collect();
        self.0.tables[at].uniques.push(Unique { name: format!("{table}_unique"), columns });
        self
    }

    /// `orders.customer_id`, `customers.id`; columns of several with commas.
    fn reference(mut self, from: &str, to: &str) -> Build {
        let side = |text: &str| {
            let (table, columns) = text.split_once('.').unwrap();
            (table.to_owned(), columns.split(',').map(str::to_owned).collect::<Vec<_>>())
        };
        let ((table, columns), (to, to_columns)) = (side(from), side(to));
        let name = format!("{table}_{}_fkey", columns.join("_"));
        self.0.references.push(ForeignKey { name, table, columns, to, to_columns });
        self
    }

    fn ran(mut self, calls: u64, time_ms: f64, text: &str) -> Build {
        self.0.statements.push(StatementFacts { text: text.to_owned(), calls, time_ms });
        self
    }

    fn propose(&self) -> Proposal {
        propose(&self.0)
    }
}

/// `name: kind by column` of each table.
fn shown(proposal: &Proposal) -> Vec<String> {
    let table = |table: &TableProposal| match table.placed.column() {
        Some(column) => format!("{}: {column}", table.name),
        None => format!("{}: {}", table.name, table.placed.name()),
    };
    proposal.tables.iter().map(table).collect()
}

fn shop() -> Build {
    Build::new()
        .table("countries", &["code"], "code text, name text", 200, 32 << 10)
        .table("customers", &["id"], "id bigint, country text, email text", 100_000, 20 << 20)
        .table(
            "orders",
            &["customer_id", "id"],
            "id bigint, customer_id bigint, made timestamp with time zone",
            1_000_000,
            200 << 20,
        )
        .table(
            "items",
            &["customer_id", "order_id", "n"],
            "customer_id bigint, order_id bigint, n integer, product_id bigint",
            5_000_000,
            900 << 20,
        )
        .table("events", &[], "customer_id bigint!, kind text, at timestamp with time zone", 9_000_000, 800 << 20)
        .table("settings", &["k"], "k text, v jsonb", 10, 16 << 10)
        .reference("customers.country", "countries.code")
        .reference("orders.customer_id", "customers.id")
        .reference("items.customer_id,order_id", "orders.customer_id,id")
        .unique("customers", &["email"])
}

#[test]
fn what_hangs_together_lies_together() {
    let proposal = shop().propose();
    assert_eq!(proposal.root.as_deref(), Some("customers.id"));
    let wanted = [
        "countries: reference",
        "customers: id",
        "orders: customer_id",
        "items: customer_id",
        "events: customer_id",
        "settings: single",
    ];
    assert_eq!(shown(&proposal)[..5], wanted[..5]);
    let [obstacle] = proposal.obstacles.as_slice() else { panic!("{:?}", proposal.obstacles) };
    assert_eq!((obstacle.table.as_str(), obstacle.kind), ("customers", ObstacleKind::Unique));
    assert!(obstacle.what.contains("email"), "{obstacle:?}");
    let reason = &proposal.tables[2].reasons[0];
    assert!(reason.contains("orders_customer_id_fkey") && reason.contains("customers"), "{reason}");
    assert!(proposal.tables[4].reasons[0].contains("no foreign key"), "{:?}", proposal.tables[4].reasons);
}

#[test]
fn statements_are_judged_by_the_planner() {
    let proposal = shop()
        .ran(900, 900.0, "SELECT * FROM orders o JOIN customers c ON c.id = o.customer_id WHERE c.id = $1")
        .ran(50, 500.0, "SELECT kind, count(*) FROM events WHERE at > now() - interval $1 GROUP BY kind")
        .ran(50, 50.0, "UPDATE orders SET customer_id = $1 WHERE id = $2 AND customer_id = $3")
        .ran(10, 1.0, "BEGIN")
        .ran(10, 1.0, "SELECT name FROM countries WHERE code = $1")
        .propose();
    let names: Vec<&str> = proposal.statements.iter().map(|judged| judged.verdict.name()).collect();
    assert_eq!(names, ["one_shard", "several_shards", "refused", "session", "any_shard"]);
    let Verdict::Refused { sqlstate, message, .. } = &proposal.statements[2].verdict else { panic!() };
    assert_eq!(*sqlstate, "0A000", "{message}");
}

#[test]
fn statements_decide_where_the_schema_leaves_it_open() {
    // pgbench's tables have no foreign keys, and all have a bid; but its statements go by each table's own key.
    let build = Build::new()
        .table("pgbench_accounts", &["aid"], "aid integer, bid integer, abalance integer", 1_000_000, 150 << 20)
        .table("pgbench_branches", &["bid"], "bid integer, bbalance integer", 10, 16 << 10)
        .table("pgbench_tellers", &["tid"], "tid integer, bid integer, tbalance integer", 100, 32 << 10)
        .table("pgbench_history", &[], "tid integer!, bid integer!, aid integer!, delta integer", 50_000, 4 << 20)
        .ran(1_000, 100.0, "UPDATE pgbench_accounts SET abalance = abalance + $1 WHERE aid = $2")
        .ran(1_000, 90.0, "SELECT abalance FROM pgbench_accounts WHERE aid = $1")
        .ran(1_000, 100.0, "UPDATE pgbench_tellers SET tbalance = tbalance + $1 WHERE tid = $2")
        .ran(1_000, 100.0, "UPDATE pgbench_branches SET bbalance = bbalance + $1 WHERE bid = $2")
        .ran(1_000, 100.0, "INSERT INTO pgbench_history (tid, bid, aid, delta) VALUES ($1, $2, $3, $4)");
    let proposal = build.propose();
    let wanted = ["pgbench_accounts: aid", "pgbench_branches: bid", "pgbench_tellers: tid", "pgbench_history: aid"];
    assert_eq!(shown(&proposal), wanted);
    assert!(proposal.statements.iter().all(|judged| judged.verdict == Verdict::OneShard));
    assert!(proposal.obstacles.is_empty(), "{:?}", proposal.obstacles);
    assert!(proposal.alternatives.iter().any(|other| other.root.contains("bid")), "{:?}", proposal.alternatives);
}

#[test]
fn what_stands_in_the_way_is_told_with_its_remedy() {
    let proposal = Build::new()
        .table("tenants", &["id"], "id integer+, name text", 1_000, 1 << 20)
        .table("users", &["id"], "id integer+, tenant_id integer!, boss integer", 100_000, 50 << 20)
        .table("notes", &["id"], "id integer+, tenant_id integer, user_id integer!", 1_000_000, 500 << 20)
        .reference("users.tenant_id", "tenants.id")
        .reference("notes.tenant_id", "tenants.id")
        .reference("notes.user_id", "users.id")
        .propose();
    assert_eq!(shown(&proposal), ["tenants: id", "users: tenant_id", "notes: tenant_id"]);
    let of = |kind| proposal.obstacles.iter().filter(move |obstacle| obstacle.kind == kind).collect::<Vec<_>>();
    let unique: Vec<&str> = of(ObstacleKind::Unique).iter().map(|obstacle| obstacle.remedy.as_str()).collect();
    assert!(unique.iter().all(|remedy| remedy.contains("PRIMARY KEY (tenant_id, id)")), "{unique:?}");
    assert_eq!(unique.len(), 2);
    let [foreign] = of(ObstacleKind::ForeignKey)[..] else { panic!() };
    assert!(
        foreign.remedy.contains("FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id)"),
        "{foreign:?}"
    );
    let [null] = of(ObstacleKind::NullKey)[..] else { panic!() };
    assert_eq!(null.table, "notes");
}

#[test]
fn what_can_be_no_key_is_not_proposed() {
    let mut build = Build::new()
        .table("prices", &["at"], "at timestamp with time zone, price numeric", 1_000_000, 90 << 20)
        .table("parts", &["id"], "id bigint", 1_000_000, 90 << 20)
        .table("old", &["id"], "id bigint", 1_000_000, 90 << 20);
    build.0.tables[1].oddity = Some(Oddity::Partitioned);
    build.0.tables[2].columns[0].loose = true;
    let proposal = build.propose();
    assert_eq!(shown(&proposal), ["prices: single", "parts: single", "old: single"]);
    assert!(proposal.tables[0].reasons[0].contains("None of its columns"));
    assert!(proposal.tables[1].reasons[0].contains("partitioned"));
    assert_eq!(proposal.root, None);
}

#[test]
fn a_key_of_few_values_spreads_nothing() {
    let shop = |distinct| {
        let mut build = Build::new()
            .table("regions", &["id"], "id bigint, name text", 3, 16 << 10)
            .table("users", &["id"], "id bigint, region_id bigint!", 1_000_000, 500 << 20)
            .reference("users.region_id", "regions.id");
        build.0.tables[1].columns[1].distinct = Some(distinct);
        shown(&build.propose())
    };
    assert_eq!(shop(3.0), ["regions: reference", "users: id"]);
}

#[test]
fn an_empty_database_gets_an_empty_proposal() {
    let proposal = Build::new().propose();
    assert!(proposal.tables.is_empty() && proposal.root.is_none() && proposal.obstacles.is_empty());
}

#[test]
fn many_tables_and_statements_are_done_in_time() {
    let mut build = Build::new().table("tenants", &["id"], "id bigint, name text", 100, 1 << 20);
    for at in 0..300 {
        let name = format!("t{at}");
        build = build
            .table(&name, &["id"], "tenant_id bigint!, id bigint, a text", 1_000, 1 << 20)
            .reference(&format!("{name}.tenant_id"), "tenants.id")
            .ran(10, 1.0, &format!("SELECT * FROM {name} WHERE tenant_id = $1 AND id = $2"))
            .ran(10, 1.0, &format!("UPDATE {name} SET a = $1 WHERE tenant_id = $2 AND id = $3"));
    }
    let proposal = build.propose();
    assert!(shown(&proposal)[1..].iter().all(|table| table.ends_with(": tenant_id")));
}
