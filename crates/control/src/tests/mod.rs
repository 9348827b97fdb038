//! The control loop on a small world of real engines, broken in every way at every call.

mod members;
mod merge;
mod moves;
mod place;
mod rebalance;
mod rebuild;
mod scale;
mod schema;
mod servers;
mod side_by_side;
mod world;

use std::sync::Arc;
use std::time::Duration;

use pleat_cluster::*;
use pleat_provision::Embedded;

use crate::cluster::ClusterProbe;
use crate::lead;
use crate::stop::Stop;
use crate::work::{Epochs, Tools};
use crate::{Cluster, Settings};
use world::{Inner, World};

/// The tools of the leader of the present term.
fn tools(world: &Arc<World>) -> Tools {
    let cluster: Arc<dyn Cluster> = world.clone();
    let provisioner = Arc::new(Embedded::new(ClusterProbe(cluster.clone())));
    let epochs = Arc::new(Epochs::new(world.with(|inner| inner.term)));
    // Small messages, so that everything takes several.
    let (chunk_rows, chunk_bytes) = world.with(|inner| inner.chunk);
    let settings = Settings { chunk_rows, chunk_bytes, ..Settings::default() };
    Tools { cluster, provisioner, settings, epochs }
}

/// Lead until every operation has ended; a leader that dies is followed by another.
async fn until_quiet(world: &Arc<World>) {
    until_quiet_within(world, Duration::from_secs(3600)).await;
}

async fn until_quiet_within(world: &Arc<World>, limit: Duration) {
    loop {
        let quiet = async {
            let mut catalog = world.watch_catalog();
            let is_quiet = |catalog: &Arc<Catalog>| {
                catalog.open_operations().count() == 0
                    && catalog.shards.values().all(|shard| shard.state != ShardState::Creating)
            };
            catalog.wait_for(is_quiet).await.unwrap();
        };
        tokio::select! {
            () = lead::lead(tools(world)) => unreachable!("a leader leads until it is stopped"),
            () = quiet => return,
            () = world.crashed.notified() => world.with(Inner::next_term),
            () = tokio::time::sleep(limit) => {
                panic!("it takes for ever: {:#?}", world.with(|inner| inner.catalog.operations.clone()))
            }
        }
    }
}

fn column(name: &str, decl_type: &str) -> Column {
    Column {
        name: name.to_owned(),
        decl_type: decl_type.to_owned(),
        collation: None,
        not_null: false,
        generated: false,
        serial: None,
        has_default: false,
    }
}

fn table(name: &str, second: &str, kind: TableKind) -> Table {
    Table {
        id: TableId(0),
        name: name.to_owned(),
        kind,
        columns: vec![column("id", "INTEGER"), column(second, "TEXT")],
        primary_key: vec!["id".to_owned()],
        rowid_alias: true,
        without_rowid: false,
        create_sql: format!("CREATE TABLE {name}(id INTEGER PRIMARY KEY, {second} TEXT)"),
        indexes: Vec::new(),
        triggers: Vec::new(),
    }
}

fn ddl(effect: DdlEffect, sql: &str) -> OperationKind {
    OperationKind::Ddl { effect, sql: sql.to_owned(), layout: 0 }
}

fn create(table: Table) -> OperationKind {
    let sql = table.create_sql.clone();
    ddl(DdlEffect::CreateTable(table), &sql)
}

fn users() -> Table {
    table("users", "v", TableKind::Sharded { key: "id".to_owned(), key_type: KeyType::Integer })
}

/// A cluster with a sharded table, a reference table, and rows in both.
async fn furnished(shards: u32) -> Arc<World> {
    let world = World::new(shards);
    world.start(create(users()));
    world.start(create(table("cities", "name", TableKind::Reference)));
    until_quiet(&world).await;
    world.with(|inner| {
        for _ in 0..400 {
            inner.put_user();
        }
        for _ in 0..20 {
            inner.put_city();
        }
        inner.check_quiet();
        inner.begin();
    });
    world
}

fn operation(world: &World, id: OperationId) -> Operation {
    world.with(|inner| inner.catalog.operations[&id].clone())
}

fn step_names(operation: &Operation) -> Vec<&str> {
    operation.steps.iter().map(|step| step.name.as_str()).collect()
}

/// Carry one operation out as its leader would, once.
async fn carry_out(world: &Arc<World>, id: OperationId) -> Result<(), Stop> {
    lead::carry_out(&tools(world), id).await
}
