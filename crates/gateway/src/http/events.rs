//! `GET /events`: the cluster's events as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use futures::stream::{self, Stream, StreamExt};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use utoipa::IntoParams;

use super::App;
use super::extract::Query;
use super::problem::{ErrorBody, Problem};
use crate::feed::{Event, Feed};
use crate::session::{Failure, OVERLOADED};
use crate::settings::EVENT_STREAMS_MAX;

/// How often a quiet stream shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Where to begin.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// The id of the last event seen, like the header `Last-Event-ID`.
    after: Option<String>,
}

/// Follow what happens in the cluster.
///
/// Events are `operation`, `step`, `progress`, `decision`, `shard`, `table`, `node`, `policy` and `leader`, each with JSON.
/// `progress` says once a second how far an operation is; it is not repeated to those who come back.
/// The first one is `ready`. After `reset`, events were missed: read the lists again.
#[utoipa::path(get, path = "/events", tag = "cluster",
    params(EventsQuery, ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event seen")),
    responses((status = 200, body = String, content_type = "text/event-stream"), (status = 503, body = ErrorBody)))]
pub async fn events(
    State(app): State<App>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<SseEvent, Infallible>>>, Problem> {
    let permit = app.event_streams.clone().try_acquire_owned().map_err(|_| {
        Failure::passing(
            OVERLOADED,
            format!("{EVENT_STREAMS_MAX} event streams are open at this node"),
            "close one, or follow another node",
        )
        .at_limit("event_streams")
    })?;
    let header = headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let joined = app.feed.join(header.or(query.after).as_deref());
    let ready = json!({ "generation": app.backend.catalog().generation, "node": app.backend.node().to_string() });
    let mut first = vec![SseEvent::default().id(app.feed.newest()).event("ready").data(ready.to_string())];
    if joined.reset {
        first.push(reset("the event that you saw last is not remembered any more"));
    }
    first.extend(joined.missed.iter().map(|event| sse(&app.feed, event)));
    let live = joined.events.map(|events| live(app.clone(), events));
    let live = stream::iter(live).flatten();
    let events = stream::iter(first).chain(live).map(move |event| {
        // Held as long as the stream lives.
        let _ = &permit;
        Ok(event)
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn live(app: App, events: Receiver<Event>) -> impl Stream<Item = SseEvent> {
    stream::unfold((app, events), |(app, mut events)| async move {
        let event = match events.recv().await {
            Ok(event) => sse(&app.feed, &event),
            Err(RecvError::Lagged(missed)) => {
                reset(&format!("{missed} events were missed: the client reads too slowly"))
            }
            Err(RecvError::Closed) => return None,
        };
        Some((event, (app, events)))
    })
}

fn sse(feed: &Feed, event: &Event) -> SseEvent {
    SseEvent::default().id(feed.id(event.number)).event(event.kind).data(event.data.as_ref())
}

fn reset(reason: &str) -> SseEvent {
    let data = json!({ "reason": reason, "hint": "read the lists again" });
    SseEvent::default().event("reset").data(data.to_string())
}
