//! `GET /openapi.json`: this interface, described by itself.

use axum::Json;
use utoipa::OpenApi;

/// The document, generated from the handlers.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Pleat",
        description = "An elastic SQL database. Errors are {error, code, hint, retryable} with a fitting status; \
                       a request is to be repeated exactly when retryable is true.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "queries", description = "SQL"),
        (name = "sessions", description = "Transactions over several requests, and what is in doubt"),
        (name = "tables", description = "Tables, and rows in bulk"),
        (name = "cluster", description = "Nodes, shards, health, events"),
        (name = "operations", description = "The journal of every change of the cluster"),
        (name = "users", description = "Who may connect over the PostgreSQL protocol"),
        (name = "decisions", description = "What the autoscaler concluded, and why"),
    ),
    paths(
        super::query::query,
        super::statements::list,
        super::statements::reset,
        super::sessions::open,
        super::sessions::list,
        super::sessions::close,
        super::sessions::query,
        super::txns::list,
        super::tables::list,
        super::tables::show,
        super::placement::place,
        super::rows::insert,
        super::shards::list,
        super::health::health,
        super::scrape::metrics,
        super::cluster::status,
        super::cluster::list_nodes,
        super::operations::list,
        super::operations::begin,
        super::operations::show,
        super::operations::cancel,
        super::rebalance::begin,
        super::decisions::list,
        super::decisions::show,
        super::decisions::approve,
        super::decisions::policy,
        super::decisions::change,
        super::users::list,
        super::users::put,
        super::users::remove,
        super::events::events,
        document,
    ),
)]
pub struct Document;

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "cluster",
    responses((status = 200, body = Object, content_type = "application/json")))]
pub async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Method and path of everything that the document describes.
    fn described() -> BTreeSet<(String, String)> {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let methods = paths.iter().flat_map(|(path, item)| {
            item.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone()))
        });
        methods.collect()
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let served: BTreeSet<_> = super::super::endpoints()
            .into_iter()
            .map(|endpoint| (endpoint.method.to_string(), endpoint.path.to_owned()))
            .collect();
        assert_eq!(served, described());
    }

    #[test]
    fn every_reference_in_the_document_leads_somewhere() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let text = document.to_string();
        let references: BTreeSet<_> =
            text.split("\"$ref\":\"#").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(references.len() > 10, "{references:?}");
        for reference in references {
            assert!(document.pointer(reference).is_some(), "{reference}");
        }
    }

    #[test]
    fn every_failure_is_described() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        for status in ["400", "409", "413", "415", "422", "500", "503", "504"] {
            assert!(document["paths"]["/query"]["post"]["responses"].get(status).is_some(), "{status}");
        }
    }
}
