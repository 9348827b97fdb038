//! The difference between two catalogs, as events.

use pleat_cluster::{Catalog, Decision, Node, NodeState, Operation, OperationId, Shard, ShardState, Step, Table, View};
use pleat_host::Progress;
use serde_json::{Value as Json, json};

use crate::http::{DecisionBody, OperationBody, PolicyBody, ProgressBody, StepBody};

/// Something that changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub kind: &'static str,
    pub data: Json,
}

/// What happened between two catalogs, in an order in which a reader can follow it: nodes, shards and tables
/// before the decisions and operations that speak of them, and an operation's steps before its end.
pub fn changes(before: &Catalog, after: &Catalog) -> Vec<Change> {
    let mut found = Vec::new();
    for node in after.nodes.values() {
        found.extend(node_change(before.nodes.get(&node.id), node));
    }
    for shard in after.shards.values() {
        found.extend(shard_change(before.shards.get(&shard.id), shard, after));
    }
    for (name, table) in &after.tables {
        found.extend(table_change(before.tables.get(name), table));
    }
    for (_, table) in before.tables.iter().filter(|(name, _)| !after.tables.contains_key(*name)) {
        found.push(table_event(table, "dropped"));
    }
    for (name, view) in &after.views {
        match before.views.get(name) {
            None => found.push(view_event(view, "created")),
            Some(before) if before != view => found.push(view_event(view, "changed")),
            Some(_) => {}
        }
    }
    for (_, view) in before.views.iter().filter(|(name, _)| !after.views.contains_key(*name)) {
        found.push(view_event(view, "dropped"));
    }
    if before.policy != after.policy {
        found.push(Change { kind: "policy", data: json(&PolicyBody::from(&after.policy)) });
    }
    let new_decisions = after.decisions.values().filter(|decision| !before.decisions.contains_key(&decision.id));
    found.extend(new_decisions.map(decision_event));
    for operation in after.operations.values() {
        operation_changes(before.operations.get(&operation.id), operation, &mut found);
    }
    found
}

fn node_change(before: Option<&Node>, node: &Node) -> Option<Change> {
    let change = match before {
        None => "created",
        Some(before) if before == node => return None,
        Some(_) if node.state == NodeState::Removed => "removed",
        Some(_) => "changed",
    };
    let state = match node.state {
        NodeState::Active => "active",
        NodeState::Removed => "removed",
    };
    let data = json!({ "node": node.name, "address": node.address, "state": state, "change": change });
    Some(Change { kind: "node", data })
}

fn shard_change(before: Option<&Shard>, shard: &Shard, after: &Catalog) -> Option<Change> {
    let change = match before {
        None => "created",
        Some(before) if before == shard => return None,
        Some(_) if shard.state == ShardState::Removed => "removed",
        Some(_) => "changed",
    };
    let state = match shard.state {
        ShardState::Creating => "creating",
        ShardState::Active => "active",
        ShardState::Leaving => "leaving",
        ShardState::Removed => "removed",
    };
    let replicas: Vec<_> = shard.replicas.iter().map(ToString::to_string).collect();
    let distrusted: Vec<_> = shard.distrusted.iter().map(ToString::to_string).collect();
    let data = json!({
        "shard": shard.id.to_string(),
        "state": state,
        "partitions": after.partitions_of(shard.id).len(),
        "replicas": replicas,
        "distrusted": distrusted,
        "disagreement": shard.disagreement,
        "change": change,
    });
    Some(Change { kind: "shard", data })
}

fn table_change(before: Option<&Table>, table: &Table) -> Option<Change> {
    match before {
        None => Some(table_event(table, "created")),
        Some(before) if before != table => Some(table_event(table, "changed")),
        Some(_) => None,
    }
}

fn table_event(table: &Table, change: &str) -> Change {
    Change { kind: "table", data: json!({ "table": table.name, "kind": table.kind_name(), "change": change }) }
}

fn view_event(view: &View, change: &str) -> Change {
    Change { kind: "table", data: json!({ "table": view.name, "kind": "view", "change": change }) }
}

fn decision_event(decision: &Decision) -> Change {
    Change { kind: "decision", data: json(&DecisionBody::from(decision)) }
}

fn operation_changes(before: Option<&Operation>, operation: &Operation, found: &mut Vec<Change>) {
    let known: &[Step] = before.map_or(&[], |before| &before.steps);
    let steps = operation.steps.iter().enumerate().filter(|(at, step)| known.get(*at) != Some(*step));
    let steps = steps.map(|(_, step)| step_event(operation, step));
    // Steps alone are told by their own events.
    let changed = before.is_none_or(|before| {
        let bare = |operation: &Operation| Operation { steps: Vec::new(), updated: 0, ..operation.clone() };
        bare(before) != bare(operation)
    });
    if before.is_none() {
        found.push(operation_event(operation));
    }
    found.extend(steps);
    if before.is_some() && changed {
        found.push(operation_event(operation));
    }
}

fn step_event(operation: &Operation, step: &Step) -> Change {
    let mut data = json(&StepBody::from(step));
    if let Json::Object(map) = &mut data {
        map.insert("operation".to_owned(), operation.id.to_string().into());
    }
    Change { kind: "step", data }
}

/// How far an operation is.
pub fn progress_event(operation: OperationId, progress: &Progress) -> Change {
    let mut data = json(&ProgressBody::from(progress));
    if let Json::Object(map) = &mut data {
        map.insert("operation".to_owned(), operation.to_string().into());
    }
    Change { kind: "progress", data }
}

fn operation_event(operation: &Operation) -> Change {
    let mut data = json(&OperationBody::from(operation));
    if let Json::Object(map) = &mut data {
        map.remove("steps");
        map.remove("progress");
    }
    Change { kind: "operation", data }
}

fn json<T: serde::Serialize>(body: &T) -> Json {
    // Bodies are plain structs; serializing one into a tree can't fail.
    serde_json::to_value(body).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use pleat_cluster::{
        Cause, Command, Decision, DecisionId, NodeId, OperationId, OperationKind, Phase, Policy, ShardId, Strategy,
        Verdict,
    };

    use super::*;

    /// A line per event: its kind and what tells it apart.
    fn told(before: &Catalog, after: &Catalog) -> Vec<String> {
        let text = |change: &Change| match change.kind {
            "node" => format!("node {} {}", change.data["node"], change.data["change"]),
            "shard" => {
                format!("shard {} {} {}", change.data["shard"], change.data["change"], change.data["partitions"])
            }
            "operation" => format!("operation {} {}", change.data["id"], change.data["phase"]),
            "step" => {
                format!("step {} {} {}", change.data["operation"], change.data["name"], !change.data["ended"].is_null())
            }
            "decision" => format!("decision {} {}", change.data["id"], change.data["verdict"]),
            other => other.to_owned(),
        };
        changes(before, after).iter().map(|change| text(change).replace('"', "")).collect()
    }

    fn founded() -> Catalog {
        let mut catalog = Catalog::default();
        let init = Command::Init {
            cluster_id: "c".to_owned(),
            partition_count: 8,
            replication_factor: 1,
            nodes: vec![(NodeId(1), "node-1".to_owned(), "127.0.0.1:8080".to_owned())],
            incarnations: Default::default(),
            shards: 1,
            engine: Default::default(),
            policy: Policy::default(),
            at: 1,
        };
        catalog.apply(&init).unwrap();
        catalog.apply(&Command::ActivateShard { shard: ShardId(1), at: 2 }).unwrap();
        catalog
    }

    fn apply(catalog: &mut Catalog, commands: &[Command]) -> Vec<String> {
        let before = catalog.clone();
        commands.iter().for_each(|command| {
            catalog.apply(command).unwrap();
        });
        told(&before, catalog)
    }

    #[test]
    fn a_new_cluster_is_told_node_by_node() {
        assert_eq!(
            told(&Catalog::default(), &founded()),
            ["node node-1 created", "shard shard-1 created 8", "policy"][..2]
        );
    }

    #[test]
    fn a_split_reads_as_a_story() {
        let mut catalog = founded();
        let kind = OperationKind::Split {
            from: ShardId(1),
            to: ShardId(2),
            partitions: (4..8).map(pleat_cluster::PartitionId).collect(),
        };
        let decision = Decision {
            id: DecisionId(0),
            at: 3,
            generation: catalog.generation,
            strategy: Strategy::Hot,
            measurements: vec![],
            options: vec![],
            verdict: Verdict::Hold { reason: "x".to_owned() },
            operation: None,
        };
        let start = Command::RecordDecision { decision, start: Some(kind), at: 3 };
        assert_eq!(
            apply(&mut catalog, &[start]),
            ["shard shard-2 created 0", "decision decision-1 hold", "operation op-1 Pending"]
        );
        let step = |step: &str, ended| Command::JournalStep {
            epoch: 1,
            operation: OperationId(1),
            step: step.to_owned(),
            ended,
            detail: String::new(),
            at: 4,
        };
        assert_eq!(apply(&mut catalog, &[step("copy", false)]), ["step op-1 copy false", "operation op-1 Progressing"]);
        // Several commands that the watcher sees as one.
        let commands = [step("copy", true), step("fence", false), step("fence", true)];
        assert_eq!(apply(&mut catalog, &commands), ["step op-1 copy true", "step op-1 fence true"]);
        let commands = [
            Command::ActivateShard { shard: ShardId(2), at: 5 },
            Command::CommitOperation { epoch: 1, operation: OperationId(1), at: 6 },
            Command::FinishOperation {
                epoch: 1,
                operation: OperationId(1),
                phase: Phase::Successful,
                message: String::new(),
                at: 7,
            },
        ];
        assert_eq!(
            apply(&mut catalog, &commands),
            ["shard shard-1 changed 4", "shard shard-2 changed 4", "operation op-1 Successful"]
        );
        assert!(told(&catalog, &catalog).is_empty());
    }

    #[test]
    fn a_request_to_cancel_is_told() {
        let mut catalog = founded();
        let kind =
            OperationKind::Split { from: ShardId(1), to: ShardId(2), partitions: vec![pleat_cluster::PartitionId(0)] };
        let start =
            Command::StartOperation { kind, cause: Cause::Request("http".to_owned()), reason: String::new(), at: 3 };
        apply(&mut catalog, &[start]);
        let cancel = Command::CancelOperation { operation: OperationId(1), at: 4 };
        assert_eq!(apply(&mut catalog, &[cancel]), ["operation op-1 Pending"]);
    }
}
