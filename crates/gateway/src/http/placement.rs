//! `POST /tables/{table}/placement`: where a table's rows live.

use axum::Json;
use axum::extract::{Path, Request, State};
use pleat_cluster::{Engine, TableChange, TableKind};
use pleat_sql::postgres::Placement;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json_;
use utoipa::ToSchema;

use super::App;
use super::extract::{Media, body, media, object, unsupported};
use super::problem::{ErrorBody, Problem};
use crate::pg::relay;
use crate::session;

const BODY_BYTES_MAX: usize = 64 * 1024;
const HINT: &str =
    "send {\"shard_key\": \"customer_id\"}, {\"placement\": \"reference\"} or {\"placement\": \"single\"}";

/// Where its rows are to live.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlacementRequest {
    /// `sharded` (which a shard key says by itself), `reference` or `single`.
    #[schema(example = "sharded")]
    pub placement: Option<String>,
    /// The column that says on which shard a row is.
    #[schema(example = "customer_id")]
    pub shard_key: Option<String>,
    /// Other tables that are placed at the same moment, such as those that foreign keys tie to this one. PostgreSQL shards only.
    #[serde(default)]
    pub also: Vec<PlacementOfBody>,
}

/// Where another table's rows are to live.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlacementOfBody {
    #[schema(example = "orders")]
    pub table: String,
    pub placement: Option<String>,
    pub shard_key: Option<String>,
}

/// Where the rows live now.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PlacedBody {
    /// The tables whose placement has changed, each with what it was and what it is: `orders: single to sharded by customer_id`.
    pub changed: Vec<String>,
    /// For people: what was so already, what is to be known.
    pub notices: Vec<String>,
}

/// Place a table anew.
///
/// Its rows go along. The answer comes when all is done, or nothing; `GET /operations` shows how it stands.
#[utoipa::path(post, path = "/tables/{table}/placement", tag = "tables", request_body = PlacementRequest,
    params(("table" = String, Path, description = "The table's name, in any case")),
    responses(
        (status = 200, body = PlacedBody), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 413, body = ErrorBody), (status = 415, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 503, body = ErrorBody), (status = 504, body = ErrorBody)))]
pub async fn place(
    State(app): State<App>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<PlacedBody>, Problem> {
    let _admitted = app.admit()?;
    if media(request.headers())? != Media::Json {
        return Err(unsupported("POST /tables/{table}/placement takes one JSON object".to_owned()));
    }
    let asked = object(&body(request, BODY_BYTES_MAX).await?, &["placement", "shard_key", "also"])?;
    let asked: PlacementRequest = serde_json::from_value(Json_::Object(asked))
        .map_err(|error| Problem::bad_request(format!("the body: {error}"), HINT))?;
    let mut wanted = vec![(name.to_ascii_lowercase(), placement(asked.placement, asked.shard_key)?)];
    for other in asked.also {
        wanted.push((other.table.to_ascii_lowercase(), placement(other.placement, other.shard_key)?));
    }
    let catalog = app.backend.catalog();
    if let Some((unknown, _)) = wanted.iter().find(|(name, _)| catalog.table(name).is_none()) {
        return Err(super::tables::unknown(unknown));
    }
    let texts: Vec<String> = wanted.iter().map(|(name, placement)| written(name, placement)).collect();
    let before: Vec<_> = wanted.iter().filter_map(|(name, _)| catalog.table(name).cloned()).collect();
    let text = format!("ALTER TABLE {}", texts.join(", "));
    let notices = match (catalog.engine, wanted.len()) {
        (Engine::Postgres, _) => relay::place(&app, &wanted, false, "http", &text).await?,
        (Engine::Sqlite, 1) => {
            let request = session::Request { text, origin: "http", ..session::Request::default() };
            app.executor.execute(request).await?.notice.into_iter().collect()
        }
        (Engine::Sqlite, _) => {
            let what = "embedded shards place one table at a time";
            return Err(Problem::bad_request(what, "leave \"also\" out, and ask for the others afterwards"));
        }
    };
    let now = app.backend.catalog();
    let changes = before.into_iter().map(|before| {
        let after = now.table(&before.name).cloned();
        TableChange { before: Some(before), after }
    });
    Ok(Json(PlacedBody { changed: changes.filter_map(|change| told(&change)).collect(), notices }))
}

fn placement(placement: Option<String>, key: Option<String>) -> Result<Placement, Problem> {
    match (placement.as_deref(), key) {
        (None | Some("sharded"), Some(key)) => Ok(Placement::Sharded { key }),
        (Some("reference"), None) => Ok(Placement::Reference),
        (Some("single"), None) => Ok(Placement::Single),
        (Some("reference" | "single"), Some(_)) => {
            Err(Problem::bad_request("a table has a shard key only when it is sharded", HINT))
        }
        (Some("sharded") | None, None) => Err(Problem::bad_request("\"shard_key\" is missing", HINT)),
        (Some(other), _) => Err(Problem::bad_request(format!("\"placement\" can't be \"{other}\""), HINT)),
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The clause for one table.
fn written(name: &str, placement: &Placement) -> String {
    match placement {
        Placement::Sharded { key } => format!("{} SHARD BY ({})", quoted(name), quoted(key)),
        Placement::Reference => format!("{} REFERENCE", quoted(name)),
        Placement::Single => format!("{} SINGLE", quoted(name)),
    }
}

/// What has changed; `None`: nothing.
fn told(change: &TableChange) -> Option<String> {
    let (before, after) = (change.before.as_ref()?, change.after.as_ref()?);
    let shown = |kind: &TableKind| match kind {
        TableKind::Sharded { key, .. } => format!("sharded by {key}"),
        TableKind::Reference => "reference".to_owned(),
        TableKind::Single { .. } => "single".to_owned(),
    };
    (before.kind != after.kind).then(|| format!("{}: {} to {}", after.name, shown(&before.kind), shown(&after.kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(of: Option<&str>) -> Option<String> {
        of.map(str::to_owned)
    }

    #[test]
    fn a_placement_is_one_of_three() {
        let read = |of, key| placement(text(of), text(key)).map_err(|problem| problem.0.message);
        let sharded = Placement::Sharded { key: "K".to_owned() };
        assert_eq!(read(None, Some("K")), Ok(sharded.clone()));
        assert_eq!(read(Some("sharded"), Some("K")), Ok(sharded.clone()));
        assert_eq!(read(Some("reference"), None), Ok(Placement::Reference));
        assert_eq!(read(Some("single"), None), Ok(Placement::Single));
        assert_eq!(read(None, None).unwrap_err(), "\"shard_key\" is missing");
        assert_eq!(read(Some("single"), Some("k")).unwrap_err(), "a table has a shard key only when it is sharded");
        assert_eq!(read(Some("here"), None).unwrap_err(), "\"placement\" can't be \"here\"");
        assert_eq!(written("a\"b", &sharded), "\"a\"\"b\" SHARD BY (\"K\")");
    }
}
