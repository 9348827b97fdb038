//! `PUT /failpoints`: where this process is to die. Only in a program that was built for tests.

use axum::http::StatusCode;
use pleat_host::failpoint;

use super::problem::Problem;

/// Takes what the environment variable `FAILPOINTS` takes.
pub async fn configure(text: String) -> Result<StatusCode, Problem> {
    failpoint::configure(&text).map_err(|why| Problem::bad_request(why, "name=abort"))?;
    tracing::warn!(failpoints = text, "this process was told where to die");
    Ok(StatusCode::NO_CONTENT)
}
