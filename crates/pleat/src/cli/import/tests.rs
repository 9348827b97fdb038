//! Imports into a small server that stands for a cluster.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Query, State as Shared};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, response::IntoResponse};

use super::*;

/// What the server got, and what it is to do.
#[derive(Default)]
struct Cluster {
    /// Batches taken, by id.
    batches: BTreeMap<String, Value>,
    /// Answer so many requests with a retryable error, having taken the batch all the same.
    fail: u32,
    /// After so many batches, refuse for good.
    refuse_after: Option<usize>,
    attempts: u32,
}

type Handle = Arc<Mutex<Cluster>>;

async fn take(
    Shared(cluster): Shared<Handle>,
    Query(query): Query<BTreeMap<String, String>>,
    Json(body): Json<Value>,
) -> axum::response::Response {
    let mut cluster = cluster.lock().unwrap();
    cluster.attempts += 1;
    let known = cluster.batches.len();
    if cluster.refuse_after.is_some_and(|most| known >= most) {
        let body = json!({"error": "no such table", "code": "42P01", "hint": "make it", "retryable": false});
        return (StatusCode::BAD_REQUEST, Json(body)).into_response();
    }
    cluster.batches.insert(query["batch_id"].clone(), body.clone());
    if cluster.fail > 0 {
        cluster.fail -= 1;
        let body = json!({"error": "moving", "code": "40001", "hint": "again", "retryable": true});
        return (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response();
    }
    // Rows whose id is 13 are rejected.
    let rows = body["rows"].as_array().unwrap();
    let rejected: Vec<Value> = (0..rows.len())
        .filter(|index| rows[*index][0] == json!(13))
        .map(|index| json!({"row": index, "error": "unlucky", "code": "23514"}))
        .collect();
    Json(json!({"inserted": rows.len() - rejected.len(), "rejected": rejected})).into_response()
}

async fn serve() -> (Handle, String) {
    let cluster = Handle::default();
    let table = json!({"name": "t", "rows": 1_000_000, "columns": [
        {"name": "id", "type": "INTEGER"}, {"name": "name", "type": "TEXT"},
        {"name": "upper", "type": "TEXT", "generated": true}]});
    let app = Router::new()
        .route("/tables/t", get(move || async move { Json(table) }))
        .route("/tables/t/rows", post(take))
        .route("/health", get(|| async { Json(json!({"cluster_id": "c1"})) }))
        .with_state(cluster.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (cluster, url)
}

fn args(file: PathBuf, url: &str) -> ImportArgs {
    ImportArgs {
        target: Target { url: url.to_string(), json: true },
        file,
        table: "t".to_string(),
        null: Some("NA".to_string()),
        exported: false,
        columns: None,
        no_header: false,
        delimiter: b',',
        batch: 10,
        jobs: 3,
        rejects: None,
        retry_seconds: 60,
        restart: false,
    }
}

fn write(dir: &tempfile::TempDir, rows: u32) -> PathBuf {
    let path = dir.path().join("data.csv");
    let rows: String = (1..=rows).map(|n| format!("name {n},{n}\n")).collect();
    std::fs::write(&path, format!("NAME,id\n{rows}")).unwrap();
    path
}

fn ids(cluster: &Handle) -> Vec<i64> {
    let cluster = cluster.lock().unwrap();
    let rows = cluster.batches.values().flat_map(|body| body["rows"].as_array().unwrap().clone());
    let mut ids: Vec<i64> = rows.map(|row| row[1].as_i64().unwrap()).collect();
    ids.sort_unstable();
    ids
}

#[tokio::test]
async fn every_row_arrives_once_though_answers_are_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, url) = serve().await;
    cluster.lock().unwrap().fail = 4;
    run(args(write(&dir, 95), &url)).await.unwrap();
    assert_eq!(ids(&cluster), (1..=95).collect::<Vec<_>>());
    assert_eq!(cluster.lock().unwrap().attempts, 14, "ten batches and four repetitions");
    let columns = cluster.lock().unwrap().batches.values().next().unwrap()["columns"].clone();
    assert_eq!(columns, json!(["name", "id"]), "by the header, in the table's spelling");
    assert!(!dir.path().join("data.import-state.json").exists());
    assert!(!dir.path().join("data.rejected.csv").exists());
}

#[tokio::test]
async fn an_import_that_was_stopped_goes_on_under_the_same_batch_ids() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, url) = serve().await;
    let file = write(&dir, 95);
    cluster.lock().unwrap().refuse_after = Some(4);
    let error = run(args(file.clone(), &url)).await.unwrap_err();
    assert!(format!("{error:#}").contains("run the same command again"), "{error:#}");
    assert!(format!("{error:#}").contains("no such table [42P01]"), "{error:#}");
    cluster.lock().unwrap().refuse_after = None;
    run(args(file, &url)).await.unwrap();
    assert_eq!(ids(&cluster), (1..=95).collect::<Vec<_>>());
    assert_eq!(cluster.lock().unwrap().batches.len(), 10, "no batch came under two ids");
}

#[tokio::test]
async fn rejected_rows_are_written_with_their_lines_and_reasons() {
    let dir = tempfile::tempdir().unwrap();
    let (_, url) = serve().await;
    let path = dir.path().join("data.csv");
    std::fs::write(&path, "id,name\n1,a\n13,\"b, c\"\n2\n3,d\n").unwrap();
    let error = run(args(path, &url)).await.unwrap_err();
    assert!(error.downcast_ref::<Reported>().is_some(), "{error:#}");
    let rejects = std::fs::read_to_string(dir.path().join("data.rejected.csv")).unwrap();
    assert_eq!(rejects, "line,reason,id,name\n3,unlucky [23514],13,\"b, c\"\n4,\"the row has 1 fields, not 2\",2\n");
}

#[tokio::test]
async fn a_gzip_file_is_recognised_and_a_damaged_one_is_an_error() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let (cluster, url) = serve().await;
    let text: String = std::fs::read_to_string(write(&dir, 30)).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    let packed = encoder.finish().unwrap();
    let path = dir.path().join("data.csv.gz");
    std::fs::write(&path, &packed).unwrap();
    run(args(path.clone(), &url)).await.unwrap();
    assert_eq!(ids(&cluster).len(), 30);
    std::fs::write(&path, &packed[..packed.len() / 2]).unwrap();
    let error = format!("{:#}", run(args(path, &url)).await.unwrap_err());
    assert!(error.contains("near line"), "{error}");
}

#[tokio::test]
async fn columns_that_do_not_fit_are_refused_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, url) = serve().await;
    let file = write(&dir, 3);
    let refused = async |change: &dyn Fn(&mut ImportArgs)| {
        let mut args = args(file.clone(), &url);
        change(&mut args);
        run(args).await.unwrap_err().to_string()
    };
    let message = refused(&|args| args.columns = Some(vec!["nmae".to_string(), "id".to_string()])).await;
    assert!(message.contains("no column 'nmae' (did you mean 'name'?). Its columns: id, name"), "{message}");
    let message = refused(&|args| args.columns = Some(vec!["id".to_string()])).await;
    assert!(message.contains("--columns names 1 columns") && message.contains("2 fields"), "{message}");
    let message = refused(&|args| args.columns = Some(vec!["id".to_string(), "ID".to_string()])).await;
    assert!(message.contains("named twice"), "{message}");
    assert_eq!(cluster.lock().unwrap().attempts, 0);
}

#[test]
fn the_summary_counts_the_rows_of_this_run() {
    assert_eq!(told("t", 3000, 0, 2.0), "3,000 rows into t in 2.0 s (1,500 rows/s)");
    assert_eq!(told("t", 0, 0, 0.01), "0 rows into t in 0.0 s");
    assert_eq!(
        told("t", 3001, 3000, 1.0),
        "1 row into t in 1.0 s (1 rows/s); 3,001 with those from before the interruption"
    );
}
