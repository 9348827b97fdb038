//! `/users`: who may connect over the PostgreSQL protocol.
//!
//! A password never comes here. What comes is the verifier that its owner's side has made of it ([`scram`]): this address
//! has no TLS yet, what a node is sent may end in a log, and what the catalog has is on every disk. It has the form that PostgreSQL
//! keeps, so one that PostgreSQL has made can be taken along. What is there is never shown.

use axum::Json;
use axum::extract::{Path, Request, State};
use pleat_cluster::{Command, CommandError, Secret, User, rfc3339};
use pleat_engine::scram;
use pleat_host::HostError;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json_;
use utoipa::ToSchema;

use super::App;
use super::extract::{Media, Query, body, media, object, unsupported};
use super::problem::{CONFLICT, ErrorBody, Problem};
use crate::session::Failure;
use crate::settings::STATUS_TIME_MAX;

const USER_BODY_BYTES_MAX: usize = 16 * 1024;

/// A user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UserBody {
    pub name: String,
    pub added: String,
    /// When the password was set.
    pub changed: String,
}

/// Users.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UsersBody {
    pub users: Vec<UserBody>,
}

/// A user's new password.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UserRequest {
    /// What SCRAM makes of the password, in PostgreSQL's form.
    #[schema(example = "SCRAM-SHA-256$4096:c2FsdCBvZiBhZGE=$…:…")]
    pub verifier: String,
}

/// How a user is removed.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Removal {
    /// Also the last user. Without any, nobody on the node's machine is asked for a password.
    #[serde(default)]
    last: bool,
}

impl From<&User> for UserBody {
    fn from(user: &User) -> Self {
        Self { name: user.name.clone(), added: rfc3339(user.added), changed: rfc3339(user.changed) }
    }
}

/// List users.
#[utoipa::path(get, path = "/users", tag = "users",
    responses((status = 200, body = UsersBody), (status = 503, body = ErrorBody)))]
pub async fn list(State(app): State<App>) -> Result<Json<UsersBody>, Problem> {
    let catalog = app.backend.fresh_catalog(STATUS_TIME_MAX).await?;
    Ok(Json(UsersBody { users: catalog.users.values().map(UserBody::from).collect() }))
}

/// Add a user, or change its password.
///
/// From the first user on the PostgreSQL address asks everybody for a password. Sessions that are open go on.
#[utoipa::path(put, path = "/users/{name}", tag = "users", request_body = UserRequest,
    params(("name" = String, Path, description = "the user, to the letter")),
    responses(
        (status = 200, body = UserBody), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 415, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn put(
    State(app): State<App>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<UserBody>, Problem> {
    if media(request.headers())? != Media::Json {
        return Err(unsupported("PUT /users/{name} takes one JSON object".to_owned()));
    }
    let hint = "`pleat user add` makes a verifier of a password; it has the form that PostgreSQL keeps";
    let wrong = |what: String| Problem::bad_request(what, hint);
    let fields = object(&body(request, USER_BODY_BYTES_MAX).await?, &["verifier"])?;
    let verifier = fields.get("verifier").and_then(Json_::as_str).and_then(scram::parse);
    let verifier = verifier.ok_or_else(|| wrong("\"verifier\" must be a SCRAM-SHA-256 verifier".to_owned()))?;
    User::check_name(&name).map_err(wrong)?;
    verifier.check().map_err(|what| wrong(format!("the verifier can't be used: {what}")))?;
    let secret = scram::random().map_err(|_| Problem(Failure::internal("the system gives no random bytes")))?;
    let at = app.backend.now_ms();
    let command = Command::PutUser { name: name.clone(), verifier, secret: Secret(secret), at };
    app.backend.command(command, STATUS_TIME_MAX).await.map_err(refused)?;
    tracing::info!(user = ?name, "a user's password was set");
    let catalog = app.backend.catalog();
    let user = catalog.users.get(&name).ok_or_else(|| unknown(&name))?;
    Ok(Json(UserBody::from(user)))
}

/// Remove a user.
///
/// It can't connect any more; sessions that it has open go on.
#[utoipa::path(delete, path = "/users/{name}", tag = "users",
    params(("name" = String, Path, description = "the user, to the letter"), Removal),
    responses(
        (status = 200, body = UserBody), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn remove(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(removal): Query<Removal>,
) -> Result<Json<UserBody>, Problem> {
    let catalog = app.backend.fresh_catalog(STATUS_TIME_MAX).await?;
    let user = UserBody::from(catalog.users.get(&name).ok_or_else(|| unknown(&name))?);
    let command = Command::RemoveUser { name: name.clone(), last: removal.last, at: app.backend.now_ms() };
    match app.backend.command(command, STATUS_TIME_MAX).await {
        Ok(_) => {}
        Err(HostError::Command(CommandError::Unknown { .. })) => return Err(unknown(&name)),
        Err(error) => return Err(refused(error)),
    }
    tracing::info!(user = ?name, "a user was removed");
    Ok(Json(user))
}

fn refused(error: HostError) -> Problem {
    match error {
        HostError::Command(CommandError::Invalid { what }) => {
            let hint = "GET /users lists users; to remove the last one say last=true (`pleat user remove --last`)";
            Problem::new(CONFLICT, what, hint)
        }
        error => error.into(),
    }
}

fn unknown(name: &str) -> Problem {
    Problem::not_found(format!("there is no user {name:?}"), "GET /users lists them")
}
